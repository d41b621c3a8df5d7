//! `snapshot` and `snapshots`: the real daemon, real devices and filesystems, and an embedded cloud
//! that keeps Cinder's rules.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cinder_docker_driver::sandbox::Behaviour;
use cinder_docker_driver::sandbox::faults::{Action, Canned, Rule};
use serde_json::{Value, json};
use support::{Cloud, Node, sh};

/// What a command printed, if it went well, or what it said on standard error.
async fn cli(node: &Node, args: &[&str]) -> Result<String, String> {
    let done = node.cli(args).await;
    match done.status.success() {
        true => Ok(String::from_utf8(done.stdout).unwrap()),
        false => Err(String::from_utf8(done.stderr).unwrap()),
    }
}

async fn listed(node: &Node, args: &[&str]) -> Vec<Value> {
    let text = cli(node, &[&["snapshots", "--json"], args].concat()).await.unwrap();
    serde_json::from_str(&text).unwrap()
}

/// MiB of the filesystem at a path.
fn mebibytes(at: &Path) -> u64 {
    let text = sh(&format!("df -m --output=size {} | tail -1", at.display()));
    text.trim().parse().unwrap()
}

/// Somebody who writes, and waits as long as the filesystem is frozen.
struct Writer(std::thread::JoinHandle<Duration>);

impl Writer {
    fn of(file: PathBuf) -> Self {
        Self(std::thread::spawn(move || {
            let begun = Instant::now();
            fs::write(file, "written").unwrap();
            begun.elapsed()
        }))
    }

    fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    /// How long it had to wait, which must not be longer than that.
    async fn waited(self, limit: Duration) -> Duration {
        let end = Instant::now() + limit;
        while !self.is_done() {
            assert!(Instant::now() < end, "it still waits");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.0.join().unwrap()
    }
}

fn is_marked_frozen(node: &Node) -> bool {
    let entries = fs::read_dir(node.state_dir().join("volumes")).unwrap();
    entries
        .flatten()
        .any(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("\"frozen\"")))
}

/// Asks for a snapshot, and does not wait for the answer.
fn ask_for_snapshot(node: &Node, name: &str) -> tokio::task::JoinHandle<String> {
    let socket = node.socket.clone();
    let body = json!({ "Name": name, "Snapshot": "s" }).to_string();
    tokio::task::spawn_blocking(move || {
        sh(&format!(
            "curl --silent --unix-socket {} --data '{body}' http://plugin/Operator.Snapshot || true",
            socket.display()
        ))
    })
}

/// Waits until it is frozen: who opens a file for writing has to wait then.
async fn until_frozen(node: &Node, at: &Path) -> Writer {
    let end = Instant::now() + Duration::from_secs(20);
    for number in 0.. {
        assert!(Instant::now() < end, "it is never frozen: {}", node.log());
        if is_marked_frozen(node) {
            let writer = Writer::of(at.join(format!("probe-{number}")));
            tokio::time::sleep(Duration::from_millis(200)).await;
            if !writer.is_done() {
                return writer;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!()
}

#[tokio::test]
async fn a_snapshot_of_a_mounted_volume_has_all_that_was_written_and_is_restored_beside_it() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for fs_type in ["ext4", "xfs", "btrfs"] {
        node.create(fs_type, json!({ "fs": fs_type })).await.unwrap();
        let at = node.mount(fs_type, "c").await.unwrap();
        // Not synced: what is only in memory must be in the snapshot all the same.
        let content = fs_type.repeat(100_000);
        fs::write(at.join("file"), &content).unwrap();
        let snapshot = format!("{fs_type}-before");
        let said = cli(&node, &["snapshot", fs_type, &snapshot]).await.unwrap();
        assert!(said.contains("written out, and frozen for"), "{said}");
        assert!(!is_marked_frozen(&node));
        fs::write(at.join("file"), "changed since").unwrap();

        let options = if fs_type == "ext4" {
            json!({ "snapshot": snapshot }) // it grows only with a capability that we may lack
        } else {
            json!({ "snapshot": snapshot, "size": "2" })
        };
        let copy = format!("{fs_type}-copy");
        node.create(&copy, options).await.unwrap();
        let restored = node.mount(&copy, "c").await.unwrap();
        assert_eq!(fs::read_to_string(restored.join("file")).unwrap(), content, "{fs_type}");
        if fs_type != "ext4" {
            assert!(mebibytes(&restored) > 1800, "{fs_type}: {}", mebibytes(&restored));
        }
        fs::write(restored.join("file"), "the copy's").unwrap();
        assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "changed since", "{fs_type}");
        node.unmount(&copy, "c").await.unwrap();
        node.unmount(fs_type, "c").await.unwrap();
    }
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn snapshots_are_listed_named_and_deleted() {
    let cloud = Cloud::start().await;
    let (node, other) = (Node::start(&cloud).await, Node::start(&cloud).await);
    assert_eq!(cli(&node, &["snapshots"]).await.unwrap(), "There are no snapshots.\n");
    node.create("v", json!({ "fs": "xfs" })).await.unwrap();
    node.create("w", json!({})).await.unwrap();

    let said = cli(&node, &["snapshot", "v", "first"]).await.unwrap();
    assert!(said.contains("snapshot \"first\"") && said.contains("nothing wrote to it"), "{said}");
    cli(&node, &["snapshot", "w"]).await.unwrap();
    let all = listed(&node, &[]).await;
    assert_eq!(all.len(), 2, "{all:?}");
    let of_w = listed(&node, &["w"]).await;
    assert_eq!(of_w.len(), 1);
    assert_eq!((&of_w[0]["volume"], &of_w[0]["size"]), (&json!("w"), &json!(1)));
    assert_eq!(of_w[0]["status"], "available");
    let name = of_w[0]["name"].as_str().unwrap();
    assert!(name.starts_with("w-20") && name.ends_with('Z') && name.len() == 18, "{name}");
    let taken = of_w[0]["created_at"].as_str().unwrap();
    humantime::parse_rfc3339(taken).unwrap();
    let table = cli(&node, &["snapshots", "v"]).await.unwrap();
    assert!(table.starts_with("NAME ") && table.contains("first "), "{table}");
    assert!(!table.contains(name), "{table}");
    let error = cli(&node, &["snapshots", "nothing"]).await.unwrap_err();
    assert!(error.contains("no volume \"nothing\""), "{error}");

    let error = cli(&node, &["snapshot", "v", "first"]).await.unwrap_err();
    assert!(error.contains("a snapshot \"first\" already, available since"), "{error}");
    assert_eq!(listed(&node, &["v"]).await.len(), 1);

    // Of a volume that another host has it is taken, and said what that means.
    other.mount("v", "c").await.unwrap();
    let said = cli(&node, &["snapshot", "v", "from-afar"]).await.unwrap();
    assert!(said.contains("not frozen") && said.contains("after a power cut"), "{said}");
    other.unmount("v", "c").await.unwrap();

    // Nothing is deleted that is not confirmed.
    let id =
        listed(&node, &["v"]).await.into_iter().find(|one| one["name"] == "first").unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned();
    cli(&node, &["snapshot", "--delete", "v"]).await.unwrap_err();
    cli(&node, &["snapshot", "--delete", "v", "first"]).await.unwrap_err();
    let volume = cloud.volume("v").await["id"].as_str().unwrap().to_owned();
    let error = cli(&node, &["snapshot", "--delete", "v", "first", "--id", &volume]).await;
    assert!(error.unwrap_err().contains("not the snapshot's"));
    let error = cli(&node, &["snapshot", "--delete", "w", "first"]).await.unwrap_err();
    assert!(error.contains("has no snapshot \"first\""), "{error}");
    assert_eq!(listed(&node, &["v"]).await.len(), 2);
    let said = cli(&node, &["snapshot", "--delete", "v", "first", "--id", &id]).await.unwrap();
    assert!(said.contains("deleted for good"), "{said}");
    let left = listed(&node, &["v"]).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["name"], "from-afar");
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_cloud_that_hangs_does_not_keep_a_filesystem_frozen() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    cloud.fail_once("create-snapshot", Action::Delay(25_000));
    let asked = ask_for_snapshot(&node, "v");
    let waited = until_frozen(&node, &at).await.waited(Duration::from_secs(16)).await;
    assert!(waited > Duration::from_secs(5), "{waited:?}");
    // It goes on without.
    let answer = asked.await.unwrap();
    assert!(
        answer.contains("thawed after 15.") && answer.contains("after a power cut"),
        "{answer}"
    );
    assert!(!is_marked_frozen(&node));
    assert_eq!(listed(&node, &["v"]).await[0]["status"], "available");
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_daemon_that_is_killed_with_a_frozen_filesystem_thaws_it_at_its_next_start() {
    let cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    for fs_type in ["ext4", "xfs", "btrfs"] {
        node.create(fs_type, json!({ "fs": fs_type })).await.unwrap();
        let at = node.mount(fs_type, "c").await.unwrap();
        cloud.fail_once("create-snapshot", Action::Delay(5_000));
        let asked = ask_for_snapshot(&node, fs_type);
        let writer = until_frozen(&node, &at).await;
        node.kill();
        asked.await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!writer.is_done(), "{fs_type}: the kernel thaws nothing by itself");
        // Before anything that takes time: the cloud does not answer at all.
        cloud.fail(Rule::on("*", Action::Delay(8_000)).times(3));
        node.run().await;
        writer.waited(Duration::from_secs(3)).await;
        cloud.clear_faults();
        let end = Instant::now() + Duration::from_secs(5);
        while is_marked_frozen(&node) {
            assert!(Instant::now() < end, "{}", node.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(node.log().contains("it was left frozen, and is thawed"));
        node.unmount(fs_type, "c").await.unwrap();
    }
    node.assert_clean(&cloud);
}

/// What could not be thawed at the start, here for a mount that hides it, is thawed before an Unmount:
/// that would not end the freeze, and leave the device claimed for ever.
#[tokio::test]
async fn an_unmount_thaws_first_what_the_journal_says_is_frozen() {
    let cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    let root = at.parent().unwrap().display().to_string();
    let id = cloud.volume("v").await["id"].as_str().unwrap().to_owned();
    node.kill();
    sh(&format!("fsfreeze -f {root}"));
    let file = node.state_dir().join("volumes").join(format!("{id}.json"));
    let mut entry: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    entry["frozen"] = json!(1);
    fs::write(&file, entry.to_string()).unwrap();
    sh(&format!("mount -t tmpfs none {root}"));
    node.run().await;
    let end = Instant::now() + Duration::from_secs(5);
    while !node.log().contains("still frozen") {
        assert!(Instant::now() < end, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(is_marked_frozen(&node));
    sh(&format!("umount {root}"));

    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
    assert!(!is_marked_frozen(&node));
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn what_fails_leaves_nothing_frozen_and_says_why() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    let write = || Writer::of(at.join("file")).waited(Duration::from_secs(2));

    cloud.fail_once("create-snapshot", Action::Answer(Canned::status(500)));
    cli(&node, &["snapshot", "v", "s"]).await.unwrap_err();
    write().await;
    cloud.fail_once("create-snapshot", Action::FailSnapshot);
    let error = cli(&node, &["snapshot", "v", "s"]).await.unwrap_err();
    write().await;
    assert!(error.contains("is error") && error.contains("snapshot --delete v "), "{error}");
    let failed = listed(&node, &["v"]).await[0]["id"].as_str().unwrap().to_owned();
    cli(&node, &["snapshot", "--delete", "v", "s", "--id", &failed]).await.unwrap();

    // The answer is lost; the snapshot is there.
    cloud.fail_once("create-snapshot", Action::DropAfter);
    cli(&node, &["snapshot", "v", "s"]).await.unwrap();
    write().await;
    assert_eq!(listed(&node, &["v"]).await.len(), 1);

    let few = cinder_docker_driver::sandbox::Quotas { snapshots: 1, ..Default::default() };
    cloud.sandbox.set_behaviour(Behaviour { quotas: few, ..Behaviour::default() });
    let error = cli(&node, &["snapshot", "v", "t"]).await.unwrap_err();
    assert!(error.contains("SnapshotLimitExceeded"), "{error}");
    write().await;
    cloud.sandbox.set_behaviour(Behaviour::default());

    // Somebody else's freeze is left to them.
    let root = at.parent().unwrap().display().to_string();
    sh(&format!("fsfreeze -f {root}"));
    let error = cli(&node, &["snapshot", "v", "t"]).await.unwrap_err();
    assert!(error.contains("frozen already, by somebody else"), "{error}");
    sh(&format!("fsfreeze -u {root}"));
    write().await;
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}
