//! Volumes that get a name, lose it, or are filled from a backup: with a fault at each effect, no
//! volume is lost and none is taken for what it is not.

use std::fs;

use serde_json::{Value, json};

use crate::bench::{Bench, Fault};
use crate::support::Cloud;

const FAULTS: [Fault; 4] = [
    Fault::Gate("kill-before"),
    Fault::Gate("kill-after"),
    Fault::Gate("fail"),
    Fault::Gate("lose"),
];

async fn fill(bench: &Bench, name: &str) -> String {
    let at = bench.node.mount(name, "c").await.unwrap();
    fs::write(at.join("bytes"), name).unwrap();
    bench.node.unmount(name, "c").await.unwrap();
    bench.node.until_told().await;
    bench.cloud.volume(name).await["id"].as_str().unwrap().to_owned()
}

async fn bytes(bench: &Bench, name: &str) -> String {
    let at = bench.node.mount(name, "c").await.unwrap();
    let bytes = fs::read_to_string(at.join("bytes")).unwrap();
    bench.node.unmount(name, "c").await.unwrap();
    bytes
}

async fn by_id(cloud: &Cloud, id: &str) -> Value {
    let answer = cloud.cinder("GET", &format!("/volumes/{id}"), Value::Null).await;
    answer["volume"].clone()
}

/// Runs the case for each fault at each effect; answers how many cases there were.
async fn at_each_effect(
    bench: &mut Bench,
    what: &str,
    case: impl AsyncFn(&mut Bench, &str, (Fault, u32)),
) {
    let mut cases = 0;
    for fault in FAULTS {
        for nth in 1.. {
            let name = format!("{what}-{}-{nth}", fault.name());
            case(bench, &name, (fault.clone(), nth)).await;
            if bench.met.len() < nth as usize {
                break;
            }
            cases += 1;
        }
    }
    println!("{what}: {cases} cases");
    assert!(cases >= 12, "{what}: {cases} cases only");
    bench.node.until_clean().await;
    bench.node.assert_clean(&bench.cloud);
}

#[tokio::test]
async fn a_volume_that_is_given_a_name_is_always_there() {
    let mut bench = Bench::new(json!({})).await;
    at_each_effect(&mut bench, "adopt", async |bench, name, fault| {
        let old = format!("Old {name}");
        let id = bench.cloud.create(&old, json!({})).await;
        let body = json!({ "Name": name, "Opts": { "volume_id": id, "mount_opts": "noatime" } });
        let first = bench.call_with("Create", &body, Some(&fault)).await;
        let now = by_id(&bench.cloud, &id).await["name"].as_str().unwrap().to_owned();
        assert!(now == old || now == name, "{now}: {first:?}");
        if first.is_err() {
            bench.node.call("Create", body).await.unwrap();
        }
        let now = by_id(&bench.cloud, &id).await;
        assert_eq!(
            (&now["name"], &now["metadata"]["docker.mount_opts"]),
            (&json!(name), &json!("noatime"))
        );
        assert_eq!(fill(bench, name).await, id);
        assert_eq!(bytes(bench, name).await, name);
    })
    .await;
}

#[tokio::test]
async fn a_volume_that_is_retained_is_always_there() {
    let mut bench = Bench::new(json!({})).await;
    at_each_effect(&mut bench, "retain", async |bench, name, fault| {
        bench.node.create(name, json!({ "on_remove": "snapshot" })).await.unwrap();
        let id = fill(bench, name).await;
        bench.call_with("Remove", &json!({ "Name": name }), Some(&fault)).await.ok();
        // The volume is there, by one name or the other. Docker, or its user, tries again.
        assert_eq!(by_id(&bench.cloud, &id).await["status"], "available");
        if bench.node.get(name).await.is_ok() {
            assert_eq!(bytes(bench, name).await, name);
            bench.node.remove(name).await.unwrap();
        }
        assert!(bench.node.get(name).await.is_err());
        let kept = by_id(&bench.cloud, &id).await["name"].as_str().unwrap().to_owned();
        assert!(kept.starts_with(&format!("{name}-removed-")), "{kept}");
        let query = format!("/snapshots/detail?volume_id={id}");
        let taken = bench.cloud.cinder("GET", &query, Value::Null).await;
        let last = taken["snapshots"].as_array().unwrap().iter().find(|s| s["name"] == *kept);
        assert!(last.is_some(), "no snapshot {kept}: {taken}");
        bench.node.create(name, json!({ "volume_id": id })).await.unwrap();
        assert_eq!(bytes(bench, name).await, name);
    })
    .await;
}

#[tokio::test]
async fn a_volume_from_a_backup_is_never_a_blank_one() {
    let mut bench = Bench::new(json!({})).await;
    let v2 =
        bench.cloud.sandbox.config()["Endpoint"].as_str().unwrap().replace("/v3", "/volume/v2");
    for (what, endpoint) in [("new", Value::Null), ("old", json!(v2))] {
        bench.node.kill();
        bench.node.set("BlockStorageEndpoint", endpoint);
        bench.node.run().await;
        let origin = format!("origin-{what}");
        bench.node.create(&origin, json!({})).await.unwrap();
        let volume = fill(&bench, &origin).await;
        let backup = json!({ "backup": { "volume_id": volume, "name": what } });
        bench.cloud.cinder("POST", "/backups", backup).await;
        bench.cloud.until(&origin, "available").await;
        at_each_effect(&mut bench, what, async |bench, name, fault| {
            let body = json!({ "Name": name, "Opts": { "backup": what } });
            let mut made = bench.call_with("Create", &body, Some(&fault)).await;
            for _ in 0..3 {
                let Err(error) = &made else { break };
                // The only case that needs a person, who is told what to do.
                if error.contains("remove it (\"docker volume rm\") and create it again") {
                    assert_eq!(what, "old", "{error}");
                    bench.node.mount(name, "c").await.unwrap_err();
                    bench.node.remove(name).await.unwrap();
                }
                made = bench.node.call("Create", body.clone()).await.map(drop);
            }
            made.unwrap_or_else(|error| panic!("{name}: {error}"));
            let found = bytes(bench, name).await;
            assert_eq!(found, format!("origin-{what}"), "{name}");
            bench.cloud.volume(name).await;
        })
        .await;
    }
}
