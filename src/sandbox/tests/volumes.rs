//! Volumes, lists, quotas, snapshots and what survives a restart.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Client, on_paper};
use crate::sandbox::{Behaviour, Quotas};

#[tokio::test]
async fn a_list_is_paged_and_newest_first() {
    let client = Client::new(on_paper()).await;
    client.sandbox.fill(25, "v");
    let mut path = "/volumes/detail?limit=10".to_owned();
    let mut names = Vec::new();
    let mut pages = 0;
    loop {
        let page = client.get(&path).await;
        pages += 1;
        names.extend(page["volumes"].as_array().unwrap().iter().map(|one| one["name"].clone()));
        let Some(next) = page["volumes_links"][0]["href"].as_str() else { break };
        assert_eq!(page["volumes_links"][0]["rel"], "next");
        let (_, rest) = next.split_once(&client.root).unwrap();
        path = rest.to_owned();
    }
    let wanted: Vec<Value> = (0..25).rev().map(|n| json!(format!("v{n}"))).collect();
    assert_eq!(names, wanted);
    assert_eq!(pages, 3);
}

#[tokio::test]
async fn a_limit_above_the_clouds_is_cut_to_it() {
    let client = Client::new(Behaviour { max_limit: 5, ..on_paper() }).await;
    client.sandbox.fill(7, "v");
    let page = client.get("/volumes?limit=1000").await;
    assert_eq!(page["volumes"].as_array().unwrap().len(), 5);
    assert!(page["volumes_links"].is_array());
    let marker = format!("/volumes?marker={}", Uuid::nil());
    assert_eq!(client.cinder("GET", &marker, Value::Null).await.status, 404);
    assert_eq!(client.cinder("GET", "/volumes?limit=x", Value::Null).await.status, 400);
}

#[tokio::test]
async fn names_are_found_without_regard_to_case() {
    let client = Client::new(on_paper()).await;
    let (one, two) = (client.volume("Web").await, client.volume("wEB").await);
    client.volume("webs").await;
    let found = client.get("/volumes/detail?name=web").await;
    let found: BTreeSet<Uuid> = found["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| volume["id"].as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(found, BTreeSet::from([one, two]));
}

#[tokio::test]
async fn quotas_count_volumes_snapshots_and_growth() {
    let quotas = Quotas { volumes: 2, snapshots: 1, gigabytes: 5 };
    let client = Client::new(Behaviour { quotas, ..on_paper() }).await;
    let volume = client.volume("a").await;
    let snapshot = json!({"snapshot": {"name": "s", "volume_id": volume}});
    assert_eq!(client.cinder("POST", "/snapshots", snapshot.clone()).await.status, 202);
    assert_eq!(client.cinder("POST", "/snapshots", snapshot).await.status, 413);
    let grown = client.action(volume, "os-extend", json!({"new_size": 5})).await;
    assert_eq!(
        grown.error(),
        (
            413,
            "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed \
             gigabytes quota. Requested 4G, quota is 5G and 2G has been consumed."
        )
    );
    assert_eq!(grown.header("retry-after").as_deref(), Some("0"));
    client.volume("b").await;
    let third = client.cinder("POST", "/volumes", json!({"volume": {"size": 1}})).await;
    assert_eq!(third.status, 413);
    assert!(third.error().1.starts_with("VolumeLimitExceeded"), "{third:?}");
}

#[tokio::test]
async fn a_copy_has_the_contents_of_its_source() {
    let client = Client::new(on_paper()).await;
    let volume = client.volume("a").await;
    let write = |text: &[u8]| {
        let file = std::fs::File::options().write(true).open(client.sandbox.volume_file(volume));
        file.unwrap().write_all_at(text, 4096).unwrap();
    };
    let read = |id: Uuid| {
        let mut text = [0; 3];
        let file = std::fs::File::open(client.sandbox.volume_file(id)).unwrap();
        file.read_exact_at(&mut text, 4096).unwrap();
        (String::from_utf8(text.to_vec()).unwrap(), file.metadata().unwrap().len() >> 30)
    };
    write(b"old");
    let body = json!({"snapshot": {"name": "s", "volume_id": volume}});
    let snapshot = client.cinder("POST", "/snapshots", body).await.body["snapshot"]["id"].clone();
    let path = format!("/snapshots/{}", snapshot.as_str().unwrap());
    while client.get(&path).await["snapshot"]["status"] != "available" {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    write(b"new");
    let from_snapshot = client.volume_like(json!({"snapshot_id": snapshot, "size": 2})).await;
    let clone = client.volume_like(json!({"source_volid": volume})).await;
    assert_eq!(read(from_snapshot), ("old".into(), 2));
    assert_eq!(read(clone), ("new".into(), 1));
    let refused = client.cinder("DELETE", &format!("/volumes/{volume}"), Value::Null).await;
    assert!(refused.error().1.contains("have snapshots"), "{refused:?}");
}

#[tokio::test]
async fn metadata_is_merged_replaced_and_deleted_and_leaves_updated_at() {
    let client = Client::new(on_paper()).await;
    let volume = client.volume_like(json!({"size": 1, "metadata": {"a": "1"}})).await;
    let path = format!("/volumes/{volume}");
    let before = client.get(&path).await["volume"]["updated_at"].clone();
    let metadata = format!("{path}/metadata");
    let set = client.cinder("POST", &metadata, json!({"metadata": {"b": "2"}})).await;
    assert_eq!((set.status, &set.body), (200, &json!({"metadata": {"a": "1", "b": "2"}})));
    assert_eq!(client.get(&path).await["volume"]["updated_at"], before);
    client.cinder("PUT", &metadata, json!({"metadata": {"c": "3"}})).await;
    assert_eq!(client.get(&metadata).await, json!({"metadata": {"c": "3"}}));
    let key = format!("{metadata}/c");
    assert_eq!(client.cinder("DELETE", &key, Value::Null).await.status, 200);
    assert_eq!(client.cinder("DELETE", &key, Value::Null).await.status, 404);
    let wrong = client.cinder("POST", &metadata, json!({"metadata": {"d": 4}})).await;
    assert_eq!(wrong.status, 400);
}

#[tokio::test]
async fn creating_and_deleting_take_their_time_and_go_on_after_a_restart() {
    let slow = Behaviour { creating_ms: 600_000, deleting_ms: 600_000, ..on_paper() };
    let client = Client::new(slow).await;
    let created = client.cinder("POST", "/volumes", json!({"volume": {"size": 1}})).await;
    assert_eq!(created.body["volume"]["status"], "creating");
    let id: Uuid = created.body["volume"]["id"].as_str().unwrap().parse().unwrap();
    let path = format!("/volumes/{id}");
    assert_eq!(client.cinder("DELETE", &path, Value::Null).await.status, 400);
    let client = client.restart().await;
    client.until(id, "available").await;
    assert!(client.sandbox.volume_file(id).exists());
    assert_eq!(client.cinder("DELETE", &path, Value::Null).await.status, 202);
    assert_eq!(client.status(id).await, "deleting");
    let client = client.restart().await;
    client.until(id, "gone").await;
    assert!(!client.sandbox.volume_file(id).exists());
}

#[tokio::test]
async fn volumes_and_tokens_survive_a_restart() {
    let client = Client::new(on_paper()).await;
    let id = client.volume("a").await;
    let token = client.token.clone();
    let mut client = client.restart().await;
    client.token = token;
    assert_eq!(client.get(&format!("/volumes/{id}")).await["volume"]["name"], "a");
}

#[tokio::test]
async fn a_directory_has_one_sandbox() {
    let client = Client::new(on_paper()).await;
    let second = crate::sandbox::Options::new(client.dir.path());
    let error = crate::sandbox::Sandbox::start(second).await.unwrap_err();
    assert!(error.to_string().starts_with("another sandbox uses "), "{error}");
}

#[tokio::test]
async fn only_loopback_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = crate::sandbox::Options::new(dir.path());
    options.listen = "0.0.0.0:0".parse().unwrap();
    let error = crate::sandbox::Sandbox::start(options).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}
