//! The rules about the calls of an engine, from Get to Remove: the whole daemon as a process, real
//! devices, filesystems and mount namespaces, an embedded cloud that keeps Cinder's rules.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and says what it could not look at, and plays engines"
)]

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cinder_docker_driver::host::filesystem::mountinfo::DeviceNumber;
use cinder_docker_driver::sandbox::faults::{Action, Canned, Rule};
use cinder_docker_driver::sandbox::{Behaviour, Quotas};
use serde_json::{Value, json};
use support::container::{self, Container};
use support::{Cloud, Node, ask, loops_of, sh};

// ---- Engines, containers and what else lives on a host.

/// A directory whose mounts a service of this machine (as with PrivateTmp) sees too, as slaves of ours.
fn shared_with_a_service() -> &'static Path {
    // They end with these pipes, and so with the tests.
    static SHARED: OnceLock<(PathBuf, [ChildStdin; 2])> = OnceLock::new();
    let (shared, _) = SHARED.get_or_init(|| {
        let shared = tempfile::tempdir().unwrap().keep().canonicalize().unwrap();
        let at = shared.display();
        sh(&format!(
            "mount --bind {at} {at} && mount --make-private {at} && mount --make-shared {at}"
        ));
        let service = container::without_mounts(&at.to_string());
        let (_, first) =
            container::resident("unshare", &["-m", "--propagation", "slave", "sh", "-c", &service]);
        let clean_up = format!("echo ready; cat; umount -l {at}; rm -rf {at}");
        let (_, second) = container::resident("sh", &["-c", &clean_up]);
        (shared, [first, second])
    });
    shared
}

async fn host(cloud: &Cloud) -> Node {
    host_with(cloud, json!({})).await
}

async fn host_with(cloud: &Cloud, more: Value) -> Node {
    container::prepare();
    Node::start_with(cloud, more).await
}

/// An engine that asks one thing and is gone.
async fn by_an_engine_that_dies(node: &Node, call: &str, body: Value) -> Value {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--unix-socket"])
        .arg(&node.socket)
        .args(["--data", &body.to_string()])
        .arg(format!("http://plugin/VolumeDriver.{call}"));
    // The cloud may be needed for the answer, and runs on this very thread.
    let output = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn mount_by_an_engine_that_dies(node: &Node, name: &str, id: &str) -> PathBuf {
    let answer = by_an_engine_that_dies(node, "Mount", json!({ "Name": name, "ID": id })).await;
    let path = answer["Mountpoint"].as_str().unwrap_or_default();
    assert!(!path.is_empty(), "{answer}");
    path.into()
}

/// The journal's entry of a volume.
fn entry_file(node: &Node, id: &str) -> PathBuf {
    node.state_dir().join("volumes").join(format!("{id}.json"))
}

fn entry(node: &Node, id: &str) -> Value {
    serde_json::from_slice(&fs::read(entry_file(node, id)).unwrap()).unwrap()
}

/// How many users a volume has here, by its own word.
async fn users(node: &Node, name: &str) -> u64 {
    node.get(name).await.unwrap()["Status"]["users_here"].as_u64().unwrap_or(0)
}

async fn id_of(cloud: &Cloud, name: &str) -> String {
    cloud.volume(name).await["id"].as_str().unwrap().to_owned()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_called(cloud: &Cloud, call: &str) {
    until(call, async || cloud.calls().iter().any(|seen| seen == call)).await;
}

async fn until_released(node: &Node, cloud: &Cloud, name: &str) {
    node.until_clean().await;
    cloud.until(name, "available").await;
    node.assert_clean(cloud);
}

/// A file of the volume, without the driver: its first filesystem, mounted for a moment.
fn on_the_volume(cloud: &Cloud, id: &str, line: &str) {
    let at = tempfile::tempdir().unwrap();
    let lock = std::env::temp_dir().join("loop-devices-of-tests.lock");
    sh(&format!(
        "exec 9>{0}; flock 9; mount -o loop {1} {2}; flock -u 9; cd {2} && {line}; \
         code=$?; cd /; umount {2} && exit $code",
        lock.display(),
        cloud.image(id).display(),
        at.path().display()
    ));
}

fn unavailable() -> Rule {
    Rule::on("*", Action::Answer(Canned::status(503))).forever()
}

// ---- Get

#[tokio::test]
async fn get_echoes_the_name_and_says_since_when_in_rfc_3339() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    for name in ["v", "V.1_x-y", "0"] {
        node.create(name, json!({})).await.unwrap();
        let found = node.get(name).await.unwrap();
        assert_eq!(found["Name"], *name);
        assert_eq!(found["Mountpoint"], "", "it is not mounted");
        let made = found["CreatedAt"].as_str().unwrap();
        assert!(made.ends_with('Z') && made.contains('T') && made.len() >= 20, "{made}");
        let status = &found["Status"];
        assert_eq!(status["status"], "available");
        assert_eq!(status["size"], 1);
        assert_eq!(status["id"], cloud.volume(name).await["id"]);
    }
}

#[tokio::test]
async fn get_finds_no_volume_that_is_being_deleted() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    let id = cloud.create("v", json!({})).await;
    node.get("v").await.unwrap();
    cloud.force(&id, json!({ "status": "deleting" }));
    for name in ["v", &id] {
        let error = node.get(name).await.unwrap_err();
        assert!(error.contains("no volume"), "{error}");
    }
    assert_eq!(node.list().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn get_of_a_known_name_is_answered_from_memory_when_cinder_gives_no_clean_answer() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let made = node.get("v").await.unwrap()["CreatedAt"].clone();
    for action in [
        Action::Answer(Canned::status(401)),
        Action::Answer(Canned::status(403)),
        Action::Answer(Canned::status(500)),
        Action::Answer(Canned { status: 404, body: Some("<html>".into()), retry_after: None }),
        Action::NotJson,
        Action::HalfBody,
        Action::DropBefore,
        Action::Delay(20_000),
        Action::SlowBody,
    ] {
        cloud.fail(Rule::on("list-volumes", action.clone()).forever());
        let begun = Instant::now();
        let found = node.get("v").await.unwrap_or_else(|error| panic!("{action:?}: {error}"));
        assert!(begun.elapsed() < Duration::from_secs(6), "{action:?}: {:?}", begun.elapsed());
        assert_eq!(found["CreatedAt"], made);
        assert!(found["Status"]["cinder"].as_str().unwrap().contains("no clean answer"), "{found}");
        cloud.clear_faults();
    }
    cloud.create("v2", json!({})).await;
    let other = id_of(&cloud, "v2").await;
    cloud.force(&other, json!({ "name": "v" }));
    assert_eq!(node.get("v").await.unwrap()["CreatedAt"], made, "the journal knows ours");
}

#[tokio::test]
async fn get_of_an_unknown_name_without_a_cloud_is_an_error_and_create_makes_nothing() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    cloud.create("theirs", json!({})).await;
    cloud.fail(Rule::on("list-volumes", Action::Answer(Canned::status(503))).forever());
    for name in ["theirs", "new"] {
        let error = node.get(name).await.unwrap_err();
        assert!(error.contains("503") && !error.contains("no volume"), "{error}");
        let error = node.create(name, json!({})).await.unwrap_err();
        assert!(error.contains("503"), "{error}");
    }
    cloud.clear_faults();
    assert_eq!(cloud.volumes().await.len(), 1);
}

#[tokio::test]
async fn a_name_that_cinder_proves_gone_is_forgotten() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let id = id_of(&cloud, "v").await;
    cloud.cinder("DELETE", &format!("/volumes/{id}"), Value::Null).await;
    until("deleted", async || cloud.volumes().await.is_empty()).await;
    node.get("v").await.unwrap_err();
    cloud.fail(unavailable());
    node.get("v").await.unwrap_err();
    assert!(!entry_file(&node, &id).exists());
}

#[tokio::test]
async fn a_name_that_passed_to_another_volume_means_the_new_one() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let old = id_of(&cloud, "v").await;
    cloud.force(&old, json!({ "name": "old" }));
    // The new one is known by its own word, never by a look at the old one.
    let new = cloud.create("v", json!({ "size": 2 })).await;
    assert_eq!(node.get("v").await.unwrap()["Status"]["id"], *new);
    for _ in 0..4 {
        node.kill();
        node.run().await;
        cloud.fail(unavailable());
        let found = node.get("v").await.unwrap();
        assert_eq!(found["Status"]["id"], *new, "from memory");
        cloud.clear_faults();
    }
    assert_eq!(node.get("old").await.unwrap()["Status"]["id"], *old);
}

#[tokio::test]
async fn several_volumes_of_one_name_are_an_error_that_lists_their_ids() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    let a = cloud.create("a", json!({})).await;
    let b = cloud.create("b", json!({})).await;
    for id in [&a, &b] {
        cloud.force(id, json!({ "name": "twin" }));
    }
    for error in [
        node.get("twin").await.unwrap_err(),
        node.create("twin", json!({})).await.unwrap_err(),
        node.mount("twin", "c").await.unwrap_err(),
        node.remove("twin").await.unwrap_err(),
    ] {
        assert!(error.contains(&a) && error.contains(&b), "{error}");
    }
    assert_eq!(cloud.volumes().await.len(), 2);
    // The way out that the error names.
    let mounted = node.mount(&b, "c").await.unwrap();
    assert!(mounted.starts_with(node.mount_point().join(&b)));
    assert_eq!(cloud.volumes().await.iter().filter(|v| v["status"] == "in-use").count(), 1);
    node.unmount(&b, "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn of_several_volumes_of_a_name_the_one_that_is_known_here_is_used() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let ours = id_of(&cloud, "v").await;
    let other = cloud.create("other", json!({})).await;
    cloud.force(&other, json!({ "name": "v" }));
    assert_eq!(node.get("v").await.unwrap()["Status"]["id"], *ours);
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    node.remove("v").await.unwrap();
    let left = cloud.volumes().await;
    assert_eq!((left.len(), &left[0]["id"]), (1, &json!(other)));
}

#[tokio::test]
async fn a_uuid_is_a_name_of_its_volume() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    let id = cloud.create("v", json!({})).await;
    assert_eq!(node.get(&id).await.unwrap()["Name"], *id);
    node.create(&id, json!({})).await.unwrap();
    let by_name = node.mount("v", "c").await.unwrap();
    assert_eq!(node.mount(&id, "d").await.unwrap(), by_name, "one volume, one mount");
    assert_eq!(users(&node, "v").await, 2);
    node.unmount("v", "c").await.unwrap();
    assert_eq!(node.mounts().len(), 1);
    node.unmount(&id, "d").await.unwrap();
    node.assert_clean(&cloud);
    assert_eq!(cloud.volumes().await.len(), 1);
}

#[tokio::test]
async fn names_that_differ_in_case_are_different_volumes() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    cloud.create("DATA", json!({})).await;
    let error = node.get("data").await.unwrap_err();
    assert!(error.contains("no volume"), "{error}");
    node.create("data", json!({})).await.unwrap();
    let ids = (id_of(&cloud, "DATA").await, id_of(&cloud, "data").await);
    assert_ne!(ids.0, ids.1);
    assert_eq!(node.get("data").await.unwrap()["Status"]["id"], *ids.1);
    assert_eq!(node.get("DATA").await.unwrap()["Status"]["id"], *ids.0);
    node.remove("data").await.unwrap();
    assert_eq!(cloud.volumes().await[0]["name"], "DATA");
}

#[tokio::test]
async fn a_name_that_docker_cannot_say_never_reaches_cinder_or_a_path() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    cloud.forget_calls();
    let long = "x".repeat(256);
    for name in ["../../etc", "/etc", "a/b", "a\nb", ".", "-x", "ä", " ", long.as_str()] {
        for call in ["Create", "Get", "Mount", "Unmount", "Path", "Remove"] {
            let body = json!({ "Name": name, "ID": "c" }).to_string();
            let (status, answer) =
                node.try_call(&format!("/VolumeDriver.{call}"), &body).await.unwrap();
            assert_eq!(status, 400, "{call} {name:?}: {answer}");
        }
    }
    assert_eq!(cloud.calls(), Vec::<String>::new());
}

// ---- List

#[tokio::test]
async fn list_shows_what_the_drivers_made_and_what_is_mounted_here() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("ours", json!({})).await.unwrap();
    node.create("described", json!({ "description": "web shop" })).await.unwrap();
    cloud.create("of-go", json!({ "description": "Docker volume." })).await;
    cloud.create("foreign", json!({})).await;
    cloud.create("foreign-mounted", json!({})).await;
    for (n, unsayable) in ["", "a b", "-x", "../x", "ä"].into_iter().enumerate() {
        let id = cloud.create(&format!("x{n}"), json!({ "description": "Docker volume." })).await;
        cloud.force(&id, json!({ "name": unsayable }));
    }
    let nameless = cloud.create("x", json!({ "description": "Docker volume." })).await;
    cloud.force(&nameless, json!({ "name": null }));
    let mounted = node.mount("foreign-mounted", "c").await.unwrap();
    let listed = node.list().await.unwrap();
    assert_eq!(listed, ["described", "foreign-mounted", "of-go", "ours"]);
    let answer = node.call("List", json!({})).await.unwrap();
    for volume in answer["Volumes"].as_array().unwrap() {
        let expected =
            if volume["Name"] == "foreign-mounted" { mounted.to_str().unwrap() } else { "" };
        assert_eq!(volume["Mountpoint"].as_str().unwrap_or_default(), expected, "{volume}");
    }
    let all = host_with(&cloud, json!({ "ListAll": true })).await;
    let listed = all.list().await.unwrap();
    assert_eq!(listed, ["described", "foreign", "foreign-mounted", "of-go", "ours"]);
    node.unmount("foreign-mounted", "c").await.unwrap();
    let listed = node.list().await.unwrap();
    assert!(listed.contains(&"foreign-mounted".to_owned()), "a name known here: {listed:?}");
}

// ---- Create

#[tokio::test]
async fn create_of_a_volume_that_exists_makes_no_second_one() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    let id = cloud.create("v", json!({ "size": 3 })).await;
    node.create("v", json!({ "size": "1", "type": "other", "fs": "xfs" })).await.unwrap();
    let found = cloud.volume("v").await;
    assert_eq!((&found["id"], &found["size"]), (&json!(id), &json!(3)));
    assert!(node.log().contains("with another size"), "a contradiction is worth a line");
    assert!(!cloud.calls().iter().any(|call| call == "delete-volume"));
}

#[tokio::test]
async fn create_waits_for_a_volume_that_is_still_being_created() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    cloud.sandbox.set_behaviour(Behaviour { creating_ms: 1500, ..Behaviour::default() });
    cloud.cinder("POST", "/volumes", json!({ "volume": { "name": "v", "size": 1 } })).await;
    assert_eq!(cloud.status("v").await, "creating");
    node.create("v", json!({})).await.unwrap();
    assert_eq!(cloud.status("v").await, "available");
    node.create("w", json!({})).await.unwrap();
    assert_eq!(cloud.status("w").await, "available");
}

#[tokio::test]
async fn create_waits_until_the_volume_before_it_is_deleted() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    let old = cloud.create("v", json!({})).await;
    cloud.sandbox.set_behaviour(Behaviour { deleting_ms: 1500, ..Behaviour::default() });
    cloud.cinder("DELETE", &format!("/volumes/{old}"), Value::Null).await;
    assert_eq!(cloud.status("v").await, "deleting");
    node.create("v", json!({})).await.unwrap();
    let found = cloud.volume("v").await;
    assert_ne!(found["id"], *old);
    assert_eq!(found["status"], "available");
}

#[tokio::test]
async fn a_volume_that_ends_in_error_is_removed_and_cinders_reason_told() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    cloud.fail_once("create-volume", Action::FailCreate("No weighed backends available".into()));
    let error = node.create("v", json!({})).await.unwrap_err();
    assert!(error.contains("No weighed backends available"), "{error}");
    assert!(error.contains("removed again"), "{error}");
    until("gone", async || cloud.volumes().await.is_empty()).await;
    // One that somebody else made is left alone.
    let id = cloud.create("theirs", json!({})).await;
    cloud.force(&id, json!({ "status": "error" }));
    let error = node.create("theirs", json!({})).await.unwrap_err();
    assert!(error.contains("status error"), "{error}");
    assert_eq!(cloud.status("theirs").await, "error");
    let error = node.mount("theirs", "c").await.unwrap_err();
    assert!(error.contains("status error"), "{error}");
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_finds_its_volume() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    for (n, action) in [
        Action::DropAfter,
        Action::HalfBody,
        Action::NotJson,
        Action::AnswerAfter(Canned::status(504)),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("v{n}");
        cloud.fail_once("create-volume", action.clone());
        node.create(&name, json!({})).await.unwrap_or_else(|error| panic!("{action:?}: {error}"));
        assert_eq!(cloud.status(&name).await, "available");
    }
    cloud.fail_once("create-volume", Action::DropBefore);
    let lost = node.create("lost", json!({})).await;
    assert_eq!(cloud.volumes().await.len(), 4 + usize::from(lost.is_ok()));
    node.create("lost", json!({})).await.unwrap();
    cloud.volume("lost").await;
}

#[tokio::test]
async fn what_cinder_refuses_is_told_in_its_words_and_leaves_nothing() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    let error = node.create("v", json!({ "type": "no-such" })).await.unwrap_err();
    assert!(error.contains("Volume type") && error.contains("no-such"), "{error}");
    let error = node.create("v", json!({ "availability_zone": "mars" })).await.unwrap_err();
    assert!(error.contains("Availability zone 'mars' is invalid"), "{error}");
    let error = node.create("v", json!({ "snapshot": "no-such" })).await.unwrap_err();
    assert!(error.contains("no snapshot named"), "{error}");
    let error = node.create("v", json!({ "from": "no-such" })).await.unwrap_err();
    assert!(error.contains("no volume \"no-such\""), "{error}");
    let quotas = Quotas { gigabytes: 5, ..Quotas::default() };
    cloud.sandbox.set_behaviour(Behaviour { quotas, ..Behaviour::default() });
    let error = node.create("v", json!({ "size": "6" })).await.unwrap_err();
    assert!(error.contains("quota is 5G"), "{error}");
    assert!(error.starts_with("cannot create volume \"v\""), "{error}");
    assert!(cloud.volumes().await.is_empty());
    let left = fs::read_dir(node.state_dir().join("creations")).unwrap().count();
    assert_eq!(left, 0, "nothing to be looked for later");
}

#[tokio::test]
async fn a_create_that_was_killed_leaves_one_volume_for_the_next() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    cloud.fail_once("create-volume", Action::DelayAnswer(60_000));
    let client = ask(&node.socket, "Create", &json!({ "Name": "v" }));
    until("made", async || !cloud.volumes().await.is_empty()).await;
    node.kill();
    drop(client);
    let creations = node.state_dir().join("creations");
    assert_eq!(fs::read_dir(&creations).unwrap().count(), 1, "the nonce is known");
    node.run().await;
    node.create("v", json!({})).await.unwrap();
    cloud.volume("v").await;
    until("ended", async || fs::read_dir(&creations).unwrap().count() == 0).await;
}

// ---- Mount: who uses a volume

#[tokio::test]
async fn docker_cp_does_not_take_the_volume_from_its_container() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let mounted = node.mount("v", "c").await.unwrap();
    assert_eq!(node.mount("v", "c").await.unwrap(), mounted);
    assert_eq!(users(&node, "v").await, 2);
    // The counts are the journal's.
    assert!(node.stop());
    node.run().await;
    assert_eq!(users(&node, "v").await, 2);
    node.unmount("v", "c").await.unwrap();
    assert_eq!(node.mounts().len(), 1, "the container goes on");
    node.kill();
    node.run().await;
    assert_eq!(users(&node, "v").await, 1);
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn unmount_of_what_is_not_mounted_or_by_an_unknown_id_is_success() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    node.unmount("v", "c").await.unwrap();
    node.unmount("unknown", "c").await.unwrap();
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "somebody else").await.unwrap();
    assert_eq!(node.mounts().len(), 1);
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_reference_of_an_engine_that_is_gone_counts_only_while_a_container_holds_the_volume() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let mounted = mount_by_an_engine_that_dies(&node, "v", "c").await;
    let container = Container::with(&mounted);
    // Seen at our start, at a Mount, and at Remove.
    node.kill();
    node.run().await;
    assert_eq!(users(&node, "v").await, 1);
    node.mount("v", "d").await.unwrap();
    node.unmount("v", "d").await.unwrap();
    assert_eq!(users(&node, "v").await, 1);
    let error = node.remove("v").await.unwrap_err();
    assert!(error.contains("mounted on this host"), "{error}");
    assert_eq!(node.mounts().len(), 1);

    drop(container);
    node.mount("v", "d").await.unwrap();
    assert_eq!(users(&node, "v").await, 1, "only the one that lives");
    node.unmount("v", "d").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn remove_is_not_stopped_by_references_that_nobody_backs() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    mount_by_an_engine_that_dies(&node, "v", "c").await;
    node.remove("v").await.unwrap();
    assert!(cloud.volumes().await.is_empty());
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn an_unbacked_reference_found_at_our_start_is_dropped() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    mount_by_an_engine_that_dies(&node, "v", "c").await;
    let id = id_of(&cloud, "v").await;
    assert_eq!(entry(&node, &id)["references"].as_array().unwrap().len(), 1);
    node.kill();
    node.run().await;
    until("dropped", async || users(&node, "v").await == 0).await;
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_container_of_the_engine_before_is_unmounted_by_the_next_one() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    // live-restore: the container goes on without its engine, and no Mount is repeated.
    let mounted = mount_by_an_engine_that_dies(&node, "v", "c").await;
    let container = Container::with(&mounted);
    // Another Mount of that ID (docker cp) by the next engine, and its end.
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    assert_eq!(users(&node, "v").await, 1);
    drop(container);
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_slave_copy_of_our_mount_is_no_holder() {
    let cloud = Cloud::start().await;
    let place = shared_with_a_service().join("slave");
    let node = host_with(&cloud, json!({ "MountPoint": place })).await;
    node.create("v", json!({})).await.unwrap();
    mount_by_an_engine_that_dies(&node, "v", "c").await;
    let copies =
        sh(&format!("grep -l ' {}/v .* master:' /proc/[0-9]*/mountinfo; true", place.display()));
    assert!(!copies.is_empty(), "the service must see it for this test to mean anything");
    node.mount("v", "d").await.unwrap();
    assert_eq!(users(&node, "v").await, 1, "a copy backs no reference");
    node.unmount("v", "d").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn what_a_container_still_holds_stays_attached_and_is_released_after_it() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let mounted = node.mount("v", "c").await.unwrap();
    let container = Container::with(&mounted);
    node.unmount("v", "c").await.unwrap();
    assert_eq!(cloud.status("v").await, "in-use");
    assert_eq!(loops_of(cloud.dir()).len(), 1, "its device must not go below it");
    let error = node.remove("v").await.unwrap_err();
    assert!(error.contains("still has it mounted"), "{error}");
    fs::write(container.volume().join("x"), "").unwrap();
    drop(container);
    // In the background, without another word from the engine.
    until_released(&node, &cloud, "v").await;
}

#[tokio::test]
async fn a_mount_that_was_taken_away_by_hand_is_not_released_below_its_container() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let mounted = node.mount("v", "c").await.unwrap();
    let container = Container::with(&mounted);
    sh(&format!("umount {}", node.mount_point().join("v").display()));
    let error = node.mount("v", "d").await.unwrap_err();
    assert!(error.contains("still held by process"), "{error}");
    node.unmount("v", "c").await.unwrap();
    assert_eq!(cloud.status("v").await, "in-use");
    drop(container);
    let mounted = node.mount("v", "d").await.unwrap();
    fs::write(mounted.join("x"), "").unwrap();
    node.unmount("v", "d").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_restart_keeps_mounts_and_a_second_container_costs_no_call() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let mounted = node.mount("v", "c").await.unwrap();
    fs::write(mounted.join("x"), "kept").unwrap();
    assert!(node.stop());
    assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), "kept");
    cloud.fail(unavailable());
    cloud.forget_calls();
    node.run().await;
    assert_eq!(node.mount("v", "d").await.unwrap(), mounted);
    node.unmount("v", "d").await.unwrap();
    assert_eq!(cloud.calls(), Vec::<String>::new());
    cloud.clear_faults();
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

// ---- Mount: reboots

/// What a reboot leaves of a mounted volume: the journal, and what Cinder thinks.
async fn reboot(node: &mut Node, cloud: &Cloud, id: &str) {
    node.kill();
    for mount in node.mounts() {
        sh(&format!("umount {mount}"));
    }
    for device in loops_of(cloud.dir()) {
        sh(&format!("losetup -d {}", device.display()));
    }
    until("detached", async || loops_of(cloud.dir()).is_empty()).await;
    let mut entry = entry(node, id);
    entry["boot_id"] = json!("00000000-0000-0000-0000-000000000000");
    fs::write(entry_file(node, id), entry.to_string()).unwrap();
}

/// A filesystem of somebody else, on the device that the journal believes to be the volume's.
struct Stranger {
    dir: tempfile::TempDir,
    device: String,
}

impl Stranger {
    fn behind_the_entry(node: &Node, id: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        sh(&format!("truncate -s 64M {0} && mkfs.ext4 -q {0}", image.display()));
        let lock = std::env::temp_dir().join("loop-devices-of-tests.lock");
        let losetup = format!("losetup --find --show {}", image.display());
        let device = sh(&format!("flock {} {losetup}", lock.display())).trim().to_owned();
        let number = fs::metadata(&device).unwrap().rdev();
        let mut entry = entry(node, id);
        entry["device"]["device_path"] = json!(device);
        entry["mount"]["device_path"] = json!(device);
        entry["mount"]["device"] = json!(DeviceNumber::from_raw(number));
        fs::write(entry_file(node, id), entry.to_string()).unwrap();
        Self { dir, device }
    }

    fn mount_at(&self, at: &Path) {
        fs::create_dir_all(at).unwrap();
        sh(&format!("mount {0} {1} && touch {1}/theirs", self.device, at.display()));
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        Command::new("umount").args(["--all-targets", &self.device]).status().ok();
        Command::new("losetup").args(["-d", &self.device]).status().ok();
    }
}

#[tokio::test]
async fn a_new_boot_voids_all_references_and_attaches_afresh() {
    for flow in ["attachments", "actions"] {
        let cloud = Cloud::start().await;
        let mut node = host_with(&cloud, json!({ "AttachFlow": flow })).await;
        node.create("v", json!({})).await.unwrap();
        let id = id_of(&cloud, "v").await;
        let mounted = node.mount("v", "before").await.unwrap();
        fs::write(mounted.join("x"), "kept").unwrap();
        reboot(&mut node, &cloud, &id).await;
        node.run().await;
        let mounted = node.mount("v", "after").await.unwrap();
        assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), "kept");
        assert_eq!(users(&node, "v").await, 1);
        node.unmount("v", "after").await.unwrap();
        node.assert_clean(&cloud);
        assert_eq!(cloud.status("v").await, "available");
    }
}

#[tokio::test]
async fn after_a_boot_what_nobody_asks_for_is_released_in_the_background() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let id = id_of(&cloud, "v").await;
    node.mount("v", "before").await.unwrap();
    reboot(&mut node, &cloud, &id).await;
    node.run().await;
    until_released(&node, &cloud, "v").await;
}

#[tokio::test]
async fn after_a_boot_a_device_and_a_place_that_others_took_are_not_ours() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let id = id_of(&cloud, "v").await;
    node.mount("v", "before").await.unwrap();
    reboot(&mut node, &cloud, &id).await;
    let stranger = Stranger::behind_the_entry(&node, &id);
    let place = node.mount_point().join("v");
    stranger.mount_at(&place);
    node.run().await;
    let error = node.mount("v", "after").await.unwrap_err();
    assert!(error.contains("already mounted at"), "{error}");
    assert!(place.join("theirs").exists(), "it is left alone");
    cloud.until("v", "available").await;
    sh(&format!("umount {}", place.display()));
    let mounted = node.mount("v", "after").await.unwrap();
    assert!(!mounted.join("theirs").exists());
    node.unmount("v", "after").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn after_a_boot_a_device_that_others_took_does_not_stop_the_release() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let id = id_of(&cloud, "v").await;
    node.mount("v", "before").await.unwrap();
    reboot(&mut node, &cloud, &id).await;
    let stranger = Stranger::behind_the_entry(&node, &id);
    let elsewhere = stranger.dir.path().join("elsewhere");
    stranger.mount_at(&elsewhere);
    node.run().await;
    until_released(&node, &cloud, "v").await;
    assert!(elsewhere.join("theirs").exists());
}

// ---- Mount: what Cinder says

#[tokio::test]
async fn a_volume_renamed_or_deleted_in_cinder_while_mounted_still_unmounts() {
    for flow in ["attachments", "actions"] {
        let cloud = Cloud::start().await;
        let node = host_with(&cloud, json!({ "AttachFlow": flow })).await;
        node.create("renamed", json!({})).await.unwrap();
        node.create("deleted", json!({})).await.unwrap();
        let id = id_of(&cloud, "renamed").await;
        for name in ["renamed", "deleted"] {
            node.mount(name, "c").await.unwrap();
        }
        let rename = json!({ "volume": { "name": "another" } });
        cloud.cinder("PUT", &format!("/volumes/{id}"), rename).await;
        // An administrator's force: the row is gone for us, whatever becomes of the export.
        let gone = id_of(&cloud, "deleted").await;
        cloud.force(&gone, json!({ "project_id": "another project" }));
        for name in ["renamed", "deleted"] {
            let found = node.get(name).await.unwrap();
            assert_ne!(found["Mountpoint"], "", "Get is the hinge: without it no Unmount comes");
            node.unmount(name, "c").await.unwrap();
        }
        assert_eq!(node.mounts(), Vec::<String>::new());
        node.until_clean().await;
        assert_eq!(cloud.status("another").await, "available");
        node.get("renamed").await.unwrap_err();
        node.get("deleted").await.unwrap_err();
    }
}

#[tokio::test]
async fn mount_waits_for_a_volume_that_is_still_being_created() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    cloud.sandbox.set_behaviour(Behaviour { creating_ms: 1500, ..Behaviour::default() });
    cloud.cinder("POST", "/volumes", json!({ "volume": { "name": "v", "size": 1 } })).await;
    assert_eq!(cloud.status("v").await, "creating");
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn mount_of_a_volume_that_another_host_has_names_it_and_since_when() {
    let cloud = Cloud::start().await;
    let (a, b) = (host(&cloud).await, host_with(&cloud, json!({ "WaitForRelease": 2 })).await);
    a.create("v", json!({})).await.unwrap();
    a.mount("v", "c").await.unwrap();
    let begun = Instant::now();
    let error = b.mount("v", "c").await.unwrap_err();
    assert!(begun.elapsed() >= Duration::from_secs(2), "it waits for the release");
    let attachment = cloud.volume("v").await["attachments"][0].clone();
    let since = attachment["attached_at"].as_str().unwrap();
    assert!(error.contains(attachment["device"].as_str().unwrap()), "{error}");
    assert!(error.contains(since), "{error}");
    assert_eq!(b.mounts(), Vec::<String>::new());
    assert_eq!(b.liabilities(), Vec::<String>::new());
    a.unmount("v", "c").await.unwrap();
}

#[tokio::test]
async fn mount_of_a_volume_that_another_host_lets_go_of_in_time_succeeds() {
    let cloud = Cloud::start().await;
    let (a, b) = (host(&cloud).await, host_with(&cloud, json!({ "WaitForRelease": 15 })).await);
    a.create("v", json!({})).await.unwrap();
    let mounted = a.mount("v", "c").await.unwrap();
    fs::write(mounted.join("x"), "handed over").unwrap();
    let (on_b, ()) = tokio::join!(b.mount("v", "c"), async {
        cloud.forget_calls();
        until_called(&cloud, "show-volume").await;
        a.unmount("v", "c").await.unwrap();
    });
    assert_eq!(fs::read_to_string(on_b.unwrap().join("x")).unwrap(), "handed over");
    b.unmount("v", "c").await.unwrap();
}

#[tokio::test]
async fn a_reserve_that_cinder_keeps_refusing_is_not_hammered() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let body = json!({ "badRequest": { "code": 400, "message": "Invalid volume: it migrates" } });
    let refusal = Canned { status: 400, body: Some(body.to_string()), retry_after: None };
    cloud.fail(Rule::on("attachment-create", Action::Answer(refusal)).forever());
    cloud.forget_calls();
    let error = node.mount("v", "c").await.unwrap_err();
    assert!(error.contains("it migrates"), "Cinder's own reason: {error}");
    let asked = cloud.calls().iter().filter(|call| *call == "attachment-create").count();
    assert!(asked <= 10, "{asked} times in a second");
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn what_a_mount_knew_before_its_reserve_decides_nothing() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    // A look that was slow: until its answer comes, another container has come and gone, and the
    // volume that was blank holds data.
    cloud.fail_once("show-volume", Action::DelayAnswer(2_500));
    cloud.forget_calls();
    let (late, ()) = tokio::join!(node.mount("v", "late"), async {
        until_called(&cloud, "show-volume").await;
        let mounted = node.mount("v", "c").await.unwrap();
        fs::write(mounted.join("x"), "data").unwrap();
        node.unmount("v", "c").await.unwrap();
    });
    assert_eq!(fs::read_to_string(late.unwrap().join("x")).unwrap(), "data");
    node.unmount("v", "late").await.unwrap();
    node.assert_clean(&cloud);
}

// ---- Mount: what is on the host

/// As after an I/O error that the filesystem could not bear.
fn shut_down(at: &Path) {
    sh(&format!("xfs_io -x -c shutdown {}", at.display()));
}

#[tokio::test]
async fn a_mount_that_died_and_that_nobody_holds_is_made_afresh() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    for fs_type in ["ext4", "xfs"] {
        node.create(fs_type, json!({ "fs": fs_type })).await.unwrap();
        let mounted = mount_by_an_engine_that_dies(&node, fs_type, "c").await;
        fs::write(mounted.join("x"), "kept").unwrap();
        sh(&format!("sync -f {}", mounted.display()));
        shut_down(&node.mount_point().join(fs_type));
        let mounted = node.mount(fs_type, "d").await.unwrap();
        assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), "kept", "{fs_type}");
        fs::write(mounted.join("y"), "writable").unwrap();
        node.unmount(fs_type, "d").await.unwrap();
        node.assert_clean(&cloud);
    }
}

#[tokio::test]
async fn a_mount_that_died_below_a_container_is_left_to_it_and_refused_to_others() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    for fs_type in ["ext4", "xfs"] {
        node.create(fs_type, json!({ "fs": fs_type })).await.unwrap();
        let mounted = node.mount(fs_type, "c").await.unwrap();
        let container = Container::with(&mounted);
        shut_down(&node.mount_point().join(fs_type));
        let error = node.mount(fs_type, "d").await.unwrap_err();
        assert!(error.contains("has failed") && error.contains("stop the containers"), "{error}");
        assert_eq!(node.mounts().len(), 1);
        assert_eq!(users(&node, fs_type).await, 1);
        drop(container);
        // The data loss is told, and yet everything is let go of.
        node.unmount(fs_type, "c").await.ok();
        until_released(&node, &cloud, fs_type).await;
    }
}

#[tokio::test]
async fn what_is_in_the_way_of_a_mount_is_refused_and_left_alone() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    let outside = tempfile::tempdir().unwrap();
    for name in ["mounted", "linked", "filled"] {
        node.create(name, json!({})).await.unwrap();
    }
    let at = |name: &str| node.mount_point().join(name);
    sh(&format!("mkdir -p {0} && mount -t tmpfs theirs {0}", at("mounted").display()));
    let error = node.mount("mounted", "c").await.unwrap_err();
    assert!(error.contains("theirs is already mounted at"), "{error}");
    node.remove("mounted").await.unwrap();
    assert_eq!(node.mounts().len(), 1, "still there");
    sh(&format!("umount {0} && rmdir {0}", at("mounted").display()));

    symlink(outside.path(), at("linked")).unwrap();
    let error = node.mount("linked", "c").await.unwrap_err();
    assert!(error.contains("symbolic link"), "{error}");
    assert!(at("linked").is_symlink());
    fs::remove_file(at("linked")).unwrap();

    fs::create_dir(at("filled")).unwrap();
    fs::write(at("filled").join("of this host"), "").unwrap();
    let error = node.mount("filled", "c").await.unwrap_err();
    assert!(error.contains("own disk"), "{error}");
    assert!(at("filled").join("of this host").exists());
    fs::remove_dir_all(at("filled")).unwrap();
    for name in ["linked", "filled"] {
        assert_eq!(cloud.status(name).await, "available");
    }
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_mount_over_ours_is_refused_and_left_and_hides_nothing() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let mounted = node.mount("v", "c").await.unwrap();
    fs::write(mounted.join("x"), "kept").unwrap();
    let at = node.mount_point().join("v");
    sh(&format!("mount -t tmpfs theirs {0} && touch {0}/theirs", at.display()));
    let error = node.mount("v", "d").await.unwrap_err();
    assert!(error.contains("theirs is mounted over it"), "{error}");
    assert_eq!(users(&node, "v").await, 1, "the container goes on");
    let error = node.unmount("v", "c").await.unwrap_err();
    assert!(error.contains("theirs is mounted over it"), "{error}");
    assert!(at.join("theirs").exists());
    assert_eq!(cloud.status("v").await, "in-use");
    sh(&format!("umount {}", at.display()));
    until_released(&node, &cloud, "v").await;
    let mounted = node.mount("v", "c").await.unwrap();
    assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), "kept");
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_process_in_the_volume_is_named_and_the_unmount_finished_after_it() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let mounted = node.mount("v", "c").await.unwrap();
    let mut inside = Command::new("sleep").arg("100").current_dir(&mounted).spawn().unwrap();
    let error = node.unmount("v", "c").await.unwrap_err();
    assert!(error.contains(&format!("process {} (sleep)", inside.id())), "{error}");
    assert_eq!(cloud.status("v").await, "in-use");
    assert_eq!(users(&node, "v").await, 0, "Docker does not repeat it");
    inside.kill().unwrap();
    inside.wait().unwrap();
    until_released(&node, &cloud, "v").await;
}

// ---- Mount: what is on the volume

#[tokio::test]
async fn a_link_to_the_hosts_root_in_a_foreign_volume_leads_nobody_out() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    for (name, target) in [("root", "/"), ("etc", "/etc"), ("up", "../../..")] {
        let id = cloud.create(name, json!({})).await;
        sh(&format!("mkfs.ext4 -q {}", cloud.image(&id).display()));
        on_the_volume(&cloud, &id, &format!("ln -s {target} volume_content"));
        let mounted = node.mount(name, "c").await.unwrap();
        assert_eq!(mounted, node.mount_point().join(name), "the root, and not what it leads to");
        assert_eq!(mounted.canonicalize().unwrap(), mounted);
        assert!(mounted.join("volume_content").is_symlink(), "it is left as it was");
        node.unmount(name, "c").await.unwrap();
    }
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn the_go_drivers_content_directory_is_found_and_its_mode_0000_repaired() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    for (name, mode, expected) in [("go", "0000", 0o755), ("own", "0710", 0o710)] {
        let id = cloud.create(name, json!({ "description": "Docker volume." })).await;
        sh(&format!("mkfs.ext4 -q {}", cloud.image(&id).display()));
        on_the_volume(
            &cloud,
            &id,
            &format!(
                "mkdir volume_content && echo kept > volume_content/x && chmod {mode} volume_content"
            ),
        );
        let mounted = node.mount(name, "c").await.unwrap();
        assert_eq!(mounted, node.mount_point().join(name).join("volume_content"));
        assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), "kept\n");
        let found = fs::metadata(&mounted).unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, expected, "{name}");
        node.unmount(name, "c").await.unwrap();
    }
}

/// What docs/migration.md says of each: the driver, how its volumes look, and what is to be set.
#[tokio::test]
async fn volumes_of_other_drivers_show_containers_what_they_showed() {
    const DATA: &str = "mkdir -m 700 data && echo kept >data/x";
    const ROOT: &str = "echo kept >x";
    let cloud = Cloud::start().await;
    let plain = host(&cloud).await;
    let for_data = Node::start_with(&cloud, json!({ "ContentDirectory": "data" })).await;
    let for_root = Node::start_with(&cloud, json!({ "ContentDirectory": "" })).await;
    for (name, made_by, content, node, directory) in [
        ("rex-ray", "mkfs.ext4 -F -q", DATA, &for_data, "data"),
        ("hervenicol", "mkfs.ext4 -q -L hervenicol", DATA, &for_data, "data"),
        ("openhpi", "mkfs.ext4 -q -L openhpi", ROOT, &plain, ""),
        ("openhpi-xfs", "mkfs.xfs -q -L openhpi", ROOT, &plain, ""),
        ("fuxi", "mkfs.ext4 -q", ROOT, &for_root, ""),
        // With the directory chosen for another driver's volumes, these are what they were.
        ("jgraichen", "mkfs.ext4 -q", ROOT, &for_data, ""),
        (
            "go",
            "mkfs.ext4 -q",
            "mkdir -m 0 volume_content && echo kept >volume_content/x",
            &plain,
            "volume_content",
        ),
    ] {
        let id = cloud.create(name, json!({ "description": "" })).await;
        sh(&format!("{made_by} {}", cloud.image(&id).display()));
        on_the_volume(&cloud, &id, content);
        let mounted = node.mount(name, "c").await.unwrap();
        assert_eq!(mounted, node.mount_point().join(name).join(directory), "{name}");
        assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), "kept\n", "{name}");
        node.unmount(name, "c").await.unwrap();
        // Made elsewhere: what another driver's user has is not deleted by accident.
        node.remove(name).await.unwrap_err();
    }

    // Both on one host: old volumes are marked in Cinder. So too one that was mounted before that.
    let id = cloud.create("marked", json!({})).await;
    sh(&format!("mkfs.ext4 -q {}", cloud.image(&id).display()));
    on_the_volume(&cloud, &id, DATA);
    let mounted = plain.mount("marked", "c").await.unwrap();
    assert!(mounted.join("data/x").exists(), "the root holds something: it is shown");
    plain.unmount("marked", "c").await.unwrap();
    let metadata = json!({ "metadata": { "docker.directory": "data" } });
    cloud.cinder("POST", &format!("/volumes/{id}/metadata"), metadata).await;
    let mounted = plain.mount("marked", "c").await.unwrap();
    assert_eq!(mounted, plain.mount_point().join("marked/data"));
    plain.unmount("marked", "c").await.unwrap();
    plain.assert_clean(&cloud);
}

#[tokio::test]
async fn a_volume_with_nothing_but_lost_found_looks_empty_to_containers() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    let id = cloud.create("foreign", json!({})).await;
    sh(&format!("mkfs.ext4 -q {}", cloud.image(&id).display()));
    node.create("fresh", json!({})).await.unwrap();
    for name in ["foreign", "fresh"] {
        let mounted = node.mount(name, "c").await.unwrap();
        assert_eq!(mounted, node.mount_point().join(name).join("volume_content"));
        assert_eq!(fs::read_dir(&mounted).unwrap().count(), 0, "{name}");
        let metadata = fs::metadata(&mounted).unwrap();
        assert_eq!((metadata.uid(), metadata.permissions().mode() & 0o7777), (0, 0o755));
        node.unmount(name, "c").await.unwrap();
    }
    assert_eq!(fs::metadata(node.mount_point()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_volume_extended_in_cinder_is_larger_at_its_next_mount() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    for fs_type in ["xfs", "btrfs", "ext4"] {
        node.create(fs_type, json!({ "fs": fs_type })).await.unwrap();
        let mounted = node.mount(fs_type, "c").await.unwrap();
        fs::write(mounted.join("x"), "kept").unwrap();
        node.unmount(fs_type, "c").await.unwrap();
        let path = format!("/volumes/{}/action", id_of(&cloud, fs_type).await);
        cloud.cinder("POST", &path, json!({ "os-extend": { "new_size": 2 } })).await;
        // It waits for Cinder to finish with it, too.
        let mounted = node.mount(fs_type, "c").await.unwrap();
        assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), "kept");
        let size: u64 =
            sh(&format!("findmnt -bno SIZE -T {}", mounted.display())).trim().parse().unwrap();
        if fs_type == "ext4" && !has_sys_resource() {
            eprintln!("not looked at for ext4: growing it needs CAP_SYS_RESOURCE");
            assert!(node.log().contains("the filesystem did not grow"), "it is worth a line");
        } else {
            assert!(size > 1_600_000_000, "{fs_type}: {size}\n{}", node.log());
        }
        node.unmount(fs_type, "c").await.unwrap();
    }
    node.assert_clean(&cloud);
}

/// Root in a container or in a sandbox may lack it.
fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(set.trim(), 16).unwrap() >> 24 & 1 == 1
}

#[tokio::test]
async fn one_partition_with_a_filesystem_is_mounted_and_of_several_one_must_be_named() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    for (name, table) in
        [("one", ",100M,L\n,100M,S\n"), ("two", ",100M,L\n,100M,L\n"), ("none", ",100M,L\n")]
    {
        let id = cloud.create(name, json!({})).await;
        let image = cloud.image(&id);
        sh(&format!("printf '{table}' | sfdisk --quiet --label gpt {}", image.display()));
        // mkfs at the place of a partition: 1 MiB, and 101 MiB.
        let mkfs = |start: u64| {
            let image = image.display();
            sh(&format!("mkfs.ext4 -q -F -E offset={} {image} 100M", start << 20));
        };
        if name != "none" {
            mkfs(1);
        }
        if name == "two" {
            mkfs(101);
        }
        // The sandbox lets the kernel read no partition table, as other back ends do.
        cloud.forget_calls();
        cloud.fail_once("attachment-update", Action::DelayAnswer(600));
        cloud.fail_once("attachment-delete", Action::Delay(600));
        let kernel = async {
            until("exported", async || !cloud.sandbox.devices(id.parse().unwrap()).is_empty())
                .await;
            let device = cloud.sandbox.devices(id.parse().unwrap()).remove(0);
            sh(&format!("partx -u {}", device.display()));
            until_called(&cloud, "attachment-delete").await;
            sh(&format!("partx -d {}", device.display()));
        };
        let engine = async {
            let mounted = node.mount(name, "c").await?;
            let source = sh(&format!("findmnt -no SOURCE -T {}", mounted.display()));
            assert!(source.trim().ends_with("p1"), "{source}");
            node.unmount(name, "c").await
        };
        let (mounted, ()) = tokio::join!(engine, kernel);
        match name {
            "one" => mounted.unwrap(),
            "two" => {
                let error = mounted.unwrap_err();
                assert!(error.contains("several partitions"), "{error}");
                assert!(error.contains("docker.partition="), "it says how: {error}");
            }
            _ => {
                let error = mounted.unwrap_err();
                assert!(error.contains("not formatted"), "{error}");
            }
        }
        cloud.until(name, "available").await;
    }
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_copy_of_a_volume_has_its_data_and_is_mounted_beside_it() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    for fs_type in ["ext4", "xfs"] {
        let (snapped, cloned) = (format!("{fs_type}-snapped"), format!("{fs_type}-cloned"));
        node.create(fs_type, json!({ "fs": fs_type })).await.unwrap();
        let mounted = node.mount(fs_type, "c").await.unwrap();
        fs::write(mounted.join("x"), "of the origin").unwrap();
        node.unmount(fs_type, "c").await.unwrap();
        let id = id_of(&cloud, fs_type).await;
        let snapshot = json!({ "snapshot": { "volume_id": id, "name": format!("s-{fs_type}") } });
        cloud.cinder("POST", "/snapshots", snapshot).await;
        until("snapped", async || {
            let answer = cloud.cinder("GET", "/snapshots/detail", Value::Null).await;
            answer["snapshots"].as_array().unwrap().iter().all(|one| one["status"] == "available")
        })
        .await;
        node.create(&snapped, json!({ "snapshot": format!("s-{fs_type}") })).await.unwrap();
        node.create(&cloned, json!({ "from": fs_type })).await.unwrap();
        for name in [fs_type, &snapped, &cloned] {
            let mounted = node.mount(name, "c").await.unwrap();
            assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), "of the origin", "{name}");
            fs::write(mounted.join(name), "").unwrap();
        }
        for name in [fs_type, &snapped, &cloned] {
            node.unmount(name, "c").await.unwrap();
        }
    }
    node.assert_clean(&cloud);
}

// ---- Remove

#[tokio::test]
async fn remove_waits_for_cinder_and_then_leaves_the_rest_to_it() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    for name in ["quick", "slow", "stuck"] {
        node.create(name, json!({})).await.unwrap();
    }
    node.remove("quick").await.unwrap();
    assert!(!cloud.volumes().await.iter().any(|volume| volume["name"] == "quick"));
    cloud.sandbox.set_behaviour(Behaviour { deleting_ms: 1000, ..Behaviour::default() });
    node.remove("slow").await.unwrap();
    assert!(!cloud.volumes().await.iter().any(|volume| volume["name"] == "slow"));
    cloud.fail_once("delete-volume", Action::Stuck);
    let begun = Instant::now();
    node.remove("stuck").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(cloud.status("stuck").await, "deleting");
    node.get("stuck").await.unwrap_err();
    node.remove("stuck").await.unwrap();
    node.remove("never there").await.unwrap_err();
    node.remove("never-there").await.unwrap();
}

#[tokio::test]
async fn a_volume_that_cinder_cannot_delete_is_an_error() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    cloud.fail_once("delete-volume", Action::FailDelete);
    let error = node.remove("v").await.unwrap_err();
    assert!(error.contains("error_deleting"), "{error}");
    assert_eq!(cloud.status("v").await, "error_deleting");
    node.create("snapped", json!({})).await.unwrap();
    let id = id_of(&cloud, "snapped").await;
    cloud.cinder("POST", "/snapshots", json!({ "snapshot": { "volume_id": id } })).await;
    let error = node.remove("snapped").await.unwrap_err();
    assert!(error.contains("snapshots"), "Cinder's words: {error}");
    assert_eq!(cloud.status("snapped").await, "available");
    node.get("snapped").await.unwrap();
}

#[tokio::test]
async fn a_deletion_whose_answer_was_lost_is_looked_for() {
    let cloud = Cloud::start().await;
    let node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    cloud.fail_once("delete-volume", Action::DropAfter);
    node.remove("v").await.unwrap();
    assert!(cloud.volumes().await.is_empty());
}

// ---- The journal

/// A tmpfs, gone with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        sh(&format!("mount -t tmpfs -o size=256k small {}", dir.path().display()));
        Self(dir)
    }

    fn fill(&self) {
        let file = fs::File::create(self.0.path().join("filler")).unwrap();
        let mut at = 0;
        while file.write_all_at(&[1; 4096], at).is_ok() {
            at += 4096;
        }
    }

    fn empty(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_mounts_and_lets_unmounts_go_on() {
    let cloud = Cloud::start().await;
    let disk = SmallDisk::new();
    let mut node = host_with(&cloud, json!({ "StateDir": disk.0.path().join("state") })).await;
    for name in ["used", "idle"] {
        node.create(name, json!({})).await.unwrap();
    }
    node.mount("used", "c").await.unwrap();
    let foreign = cloud.create("foreign", json!({})).await;
    disk.fill();
    for (name, id) in [("idle", "c"), ("used", "d")] {
        let error = node.mount(name, id).await.unwrap_err();
        assert!(error.contains("No space left"), "{error}");
    }
    let error = node.create("new", json!({})).await.unwrap_err();
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(cloud.status("idle").await, "available");
    // An error here would make dockerd forget the volume.
    assert_eq!(node.get("foreign").await.unwrap()["Status"]["id"], *foreign);
    assert_eq!(users(&node, "used").await, 1);
    node.unmount("used", "c").await.unwrap();
    assert_eq!(cloud.status("used").await, "available");
    assert_eq!(node.mounts(), Vec::<String>::new());
    // The journal is behind now. What it says is looked at before it is believed.
    node.kill();
    disk.empty();
    node.run().await;
    let mounted = node.mount("used", "e").await.unwrap();
    fs::write(mounted.join("x"), "").unwrap();
    node.unmount("used", "e").await.unwrap();
    node.until_clean().await;
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn an_unusable_entry_blocks_only_its_volume() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    for name in ["torn", "newer", "good"] {
        node.create(name, json!({})).await.unwrap();
    }
    node.mount("good", "c").await.unwrap();
    let (torn, newer) = (id_of(&cloud, "torn").await, id_of(&cloud, "newer").await);
    node.kill();
    fs::write(entry_file(&node, &torn), "{\"version\": 1, \"volu").unwrap();
    let mut entry = entry(&node, &newer);
    entry["version"] = json!(99);
    fs::write(entry_file(&node, &newer), entry.to_string()).unwrap();
    node.run().await;
    for (name, id) in [("torn", &torn), ("newer", &newer)] {
        for error in [
            node.mount(name, "c").await.unwrap_err(),
            node.remove(name).await.unwrap_err(),
            node.create(name, json!({})).await.unwrap_err(),
        ] {
            assert!(error.contains(entry_file(&node, id).to_str().unwrap()), "{error}");
        }
        assert_eq!(cloud.status(name).await, "available");
    }
    node.mount("good", "d").await.unwrap();
    node.unmount("good", "d").await.unwrap();
    node.unmount("good", "c").await.unwrap();
    // The way out that the error names.
    node.kill();
    fs::remove_file(entry_file(&node, &torn)).unwrap();
    node.run().await;
    node.mount("torn", "c").await.unwrap();
    node.unmount("torn", "c").await.unwrap();
}

/// A running daemon's entry of a mounted volume, in the words of the first version that had a journal
/// (as that version wrote it: `fixtures/journal-first.json`).
fn as_the_first_version(entry: &Value) -> String {
    let mut first: Value =
        serde_json::from_str(include_str!("fixtures/journal-first.json")).unwrap();
    fn fill(first: &mut Value, entry: &Value) {
        match first {
            Value::Object(fields) => {
                fields.iter_mut().for_each(|(key, value)| fill(value, &entry[key]))
            }
            Value::Array(items) => {
                items.iter_mut().zip(0..).for_each(|(v, n): (_, usize)| fill(v, &entry[n]))
            }
            _ => *first = entry.clone(),
        }
    }
    fill(&mut first, entry);
    first.to_string()
}

/// Upgrades with a container that writes.
#[tokio::test]
async fn an_entry_of_the_first_version_is_read_and_its_volume_let_go_of() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let content = node.mount("v", "c").await.unwrap();
    node.until_told().await;
    node.kill();
    let file = entry_file(&node, &id_of(&cloud, "v").await);
    let now: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let first = as_the_first_version(&now);
    assert!(!first.contains("taken") && now.to_string().contains("taken"), "{first}");
    fs::write(&file, first).unwrap();
    fs::write(content.join("bytes"), "written while nobody ran").unwrap();
    node.run().await;
    assert_eq!(users(&node, "v").await, 1);
    node.mount("v", "d").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    assert_eq!(fs::read_to_string(content.join("bytes")).unwrap(), "written while nobody ran");
    node.unmount("v", "d").await.unwrap();
    node.assert_clean(&cloud);
    assert_eq!(cloud.status("v").await, "available");
    let content = node.mount("v", "e").await.unwrap();
    assert_eq!(fs::read_to_string(content.join("bytes")).unwrap(), "written while nobody ran");
    node.unmount("v", "e").await.unwrap();
    node.assert_clean(&cloud);
}

/// A step back to an older version with a container that writes: nothing is done, nothing is called
/// done, and the newer version goes on where it was.
#[tokio::test]
async fn a_mounted_volume_whose_entry_a_newer_version_wrote_is_left_alone() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let content = node.mount("v", "c").await.unwrap();
    node.until_told().await;
    node.kill();
    let file = entry_file(&node, &id_of(&cloud, "v").await);
    let ours = fs::read(&file).unwrap();
    let entry: Value = serde_json::from_slice(&ours).unwrap();

    // Only more of it: what this version does not know is nothing that it has to undo.
    let mut more = entry.clone();
    more["of_a_later_release"] = json!({ "x": [1, 2] });
    fs::write(&file, more.to_string()).unwrap();
    node.run().await;
    node.mount("v", "d").await.unwrap();
    node.unmount("v", "d").await.unwrap();
    assert_eq!(node.mounts().len(), 1);

    let (mut other, mut form) = (entry.clone(), entry.clone());
    other["version"] = json!(2);
    form["version"] = json!(2);
    form["mount"] = json!(["in another form"]);
    form["names"] = json!({ "v": "in another form" });
    for newer in [other, form] {
        node.kill();
        fs::write(&file, newer.to_string()).unwrap();
        node.run().await;
        for error in [
            node.mount("v", "d").await.unwrap_err(),
            node.unmount("v", "c").await.unwrap_err(),
            node.remove("v").await.unwrap_err(),
        ] {
            assert!(error.contains("its version is 2"), "{error}");
            assert!(error.contains("install the driver again that wrote it"), "{error}");
        }
        // No volume that is mounted nowhere.
        node.unmount("nothing", "c").await.unwrap();
        fs::write(content.join("bytes"), "still written").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), newer.to_string());
        assert_eq!(cloud.status("v").await, "in-use");
    }

    // The newer version is back.
    node.kill();
    fs::write(&file, ours).unwrap();
    node.run().await;
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);

    // The other way out, which troubleshooting.md has.
    let content = node.mount("v", "c").await.unwrap();
    assert_eq!(fs::read_to_string(content.join("bytes")).unwrap(), "still written");
    node.kill();
    fs::remove_file(&file).unwrap();
    node.run().await;
    sh(&format!("umount {}", content.parent().unwrap().display()));
    let id = id_of(&cloud, "v").await;
    let released = node.cli(&["release", "v", "--id", &id]).await;
    assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    let content = node.mount("v", "c").await.unwrap();
    assert_eq!(fs::read_to_string(content.join("bytes")).unwrap(), "still written");
    node.unmount("v", "c").await.unwrap();
}

#[tokio::test]
async fn status_shows_what_is_held_here_with_and_without_the_daemon() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud).await;
    let shown = async |node: &Node, args: &[&str]| {
        let output = node.cli(args).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(shown(&node, &["status"]).await.contains("No volume is mounted"));
    node.create("v", json!({ "fs": "btrfs" })).await.unwrap();
    node.mount("v", "c").await.unwrap();
    for _ in 0..2 {
        let table = shown(&node, &["status"]).await;
        let row =
            table.lines().find(|line| line.starts_with("v ")).unwrap_or_else(|| panic!("{table}"));
        assert!(row.contains("mounted") && row.contains("/dev/loop"), "{table}");
        assert!(!row.contains("to be released"), "{table}");
        let rows: Value = serde_json::from_str(&shown(&node, &["status", "--json"]).await).unwrap();
        assert_eq!(rows[0]["name"], "v");
        assert_eq!(rows[0]["state"], "mounted", "{rows}");
        assert_eq!(rows[0]["users"], 1);
        assert_eq!(rows[0]["id"], *id_of(&cloud, "v").await);
        node.kill();
    }
    node.run().await;
    node.unmount("v", "c").await.unwrap();
    assert_eq!(shown(&node, &["status", "--json"]).await.trim(), "[]");
}
