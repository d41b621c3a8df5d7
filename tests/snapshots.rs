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
use support::gate::Gate;
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

/// Waits until it is frozen, which it is when Cinder is asked; somebody writes to it from then on.
async fn until_frozen(cloud: &Cloud, node: &Node, at: &Path) -> Writer {
    let end = Instant::now() + Duration::from_secs(20);
    while !cloud.calls().iter().any(|call| call == "create-snapshot") {
        assert!(Instant::now() < end, "it is never frozen: {}", node.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cloud.forget_calls();
    assert!(is_marked_frozen(node));
    let writer = Writer::of(at.join("probe"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!writer.is_done(), "it is not frozen");
    writer
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
    let waited = until_frozen(&cloud, &node, &at).await.waited(Duration::from_secs(16)).await;
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

/// The process that keeps watch over a frozen filesystem of this host: it has that open, and a socket.
fn guard_of(node: &Node) -> Option<i32> {
    let below = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.starts_with(node.dir.path()));
    fs::read_dir("/proc").unwrap().flatten().find_map(|process| {
        let is_guard =
            fs::read_to_string(process.path().join("comm")).is_ok_and(|n| n == "freeze-guard\n");
        let pid = process.file_name().to_str()?.parse().ok()?;
        (is_guard && below(process.path().join("fd/0"))).then_some(pid)
    })
}

fn signal(signal: &str, pid: impl std::fmt::Display) {
    sh(&format!("kill -{signal} {pid}"));
}

/// The guard is there as long as it has something to do, and in nobody's way afterwards.
async fn until_unguarded(node: &Node) {
    let end = Instant::now() + Duration::from_secs(3);
    while guard_of(node).is_some() {
        assert!(Instant::now() < end, "its guard is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether the daemon ends, which is waited for if it is expected.
async fn until_ended(node: &mut Node, expected: bool) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while expected && !node.has_ended() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.has_ended()
}

async fn until_not_marked(node: &Node) {
    let end = Instant::now() + Duration::from_secs(5);
    while is_marked_frozen(node) {
        assert!(Instant::now() < end, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_daemon_that_is_killed_for_good_leaves_no_filesystem_frozen() {
    let cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    for fs_type in ["ext4", "xfs", "btrfs"] {
        node.create(fs_type, json!({ "fs": fs_type })).await.unwrap();
        let at = node.mount(fs_type, "c").await.unwrap();
        cloud.fail_once("create-snapshot", Action::Delay(5_000));
        let asked = ask_for_snapshot(&node, fs_type);
        let writer = until_frozen(&cloud, &node, &at).await;

        let guard = PathBuf::from(format!("/proc/{}", guard_of(&node).unwrap()));
        assert_eq!(fs::read(guard.join("environ")).unwrap(), b"", "secrets may be in there");
        let mut open: Vec<_> = fs::read_dir(guard.join("fd"))
            .unwrap()
            .flatten()
            .map(|fd| fs::read_link(fd.path()).unwrap().display().to_string())
            .map(|to| to.split(':').next().unwrap().to_owned())
            .collect();
        // What all of this test's processes have inherited.
        open.retain(|to| to != "/dev/null" && to != "pipe");
        open.sort();
        open.dedup();
        let root = at.parent().unwrap().display().to_string();
        let log = node.dir.path().join("log").display().to_string();
        assert_eq!(open, [log, root.clone(), "socket".to_owned()], "{fs_type}");
        // As a terminal, a service manager and a shutdown do.
        let pid = guard_of(&node).unwrap();
        for name in ["INT", "HUP", "TERM", "PIPE"] {
            signal(name, pid);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!writer.is_done(), "{fs_type}: it is thawed already");

        node.kill();
        writer.waited(Duration::from_secs(2)).await;
        asked.await.unwrap();
        until_unguarded(&node).await;
        let log = node.log();
        assert!(log.contains(&format!("{root} was frozen; it is thawed")), "{log}");
        // What somebody else freezes now is theirs.
        sh(&format!("fsfreeze -f {root} && fsfreeze -u {root}"));

        node.run().await;
        until_not_marked(&node).await;
        assert!(!node.log().contains("it was left frozen"));
        node.unmount(fs_type, "c").await.unwrap();
    }
    node.assert_clean(&cloud);
}

/// At each step of a snapshot.
#[tokio::test]
async fn wherever_a_daemon_is_killed_for_good_all_that_writes_goes_on() {
    let cloud = Cloud::start().await;
    let mut node = Node::prepare(cloud.sandbox.config(), json!({}));
    let gate = Gate::of(&mut node);
    node.run().await;
    node.create("v", json!({})).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    let (mut kills, mut guarded) = (0, 0);
    for fault in ["kill-midway", "kill-after"] {
        for nth in 1.. {
            assert!(nth < 100, "it never ends");
            let name = format!("{fault}-{nth}");
            gate.plan(fault, nth);
            let ended = cli(&node, &["snapshot", "v", &name]).await;
            let met = gate.end();
            let is_last = !met.lines().any(|line| line.starts_with(&format!("{nth} ")));
            let died = ended.is_err_and(|error| error.contains("makes no sense"));
            assert_eq!(until_ended(&mut node, died).await, died, "{name}");
            // What was frozen is thawed, whoever is there.
            Writer::of(at.join("file")).waited(Duration::from_secs(2)).await;
            until_unguarded(&node).await;
            if died {
                kills += 1;
                guarded += usize::from(met.contains("process cinder-freeze-guard"));
                node.run().await;
                until_not_marked(&node).await;
            }
            if is_last {
                break;
            }
        }
    }
    println!("{kills} kills, {guarded} of them with a guard");
    assert!(kills > 10 && guarded > 5, "{kills} kills, {guarded} of them with a guard");
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_daemon_that_stands_still_leaves_no_filesystem_frozen() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    cloud.fail_once("create-snapshot", Action::Delay(18_000));
    let asked = ask_for_snapshot(&node, "v");
    let writer = until_frozen(&cloud, &node, &at).await;
    signal("STOP", node.pid());
    writer.waited(Duration::from_secs(16)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    signal("CONT", node.pid());
    let answer = asked.await.unwrap();
    assert!(answer.contains("thawed after 15."), "{answer}");
    until_unguarded(&node).await;
    assert!(!is_marked_frozen(&node));
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

/// Killed, or standing still: the daemon does its work.
#[tokio::test]
async fn a_guard_that_is_gone_leaves_no_filesystem_frozen() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    for name in ["KILL", "STOP"] {
        cloud.fail_once("create-snapshot", Action::Delay(2_000));
        let asked = ask_for_snapshot(&node, "v");
        let writer = until_frozen(&cloud, &node, &at).await;
        signal(name, guard_of(&node).unwrap());
        writer.waited(Duration::from_secs(8)).await;
        let answer = asked.await.unwrap();
        assert!(answer.contains("written out, and frozen for"), "{answer}");
        until_unguarded(&node).await;
        assert!(!is_marked_frozen(&node));
        let snapshot = listed(&node, &["v"]).await[0]["id"].as_str().unwrap().to_owned();
        cli(&node, &["snapshot", "--delete", "v", "s", "--id", &snapshot]).await.unwrap();
    }
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

/// The kernel says whose freeze it is, and only that is ended.
#[tokio::test]
async fn a_daemon_that_is_killed_ends_nobody_elses_freeze() {
    let cloud = Cloud::start().await;
    let mut node = Node::prepare(cloud.sandbox.config(), json!({}));
    let gate = Gate::of(&mut node);
    node.run().await;
    node.create("v", json!({})).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    let root = at.parent().unwrap().display().to_string();
    for fault in ["kill-before", "kill-after"] {
        // The only effects of their kind until then: the write-out, and the freeze.
        gate.plan_for(fault, 2, "kernel");
        sh(&format!("fsfreeze -f {root}"));
        cli(&node, &["snapshot", "v", "s"]).await.unwrap_err();
        assert!(until_ended(&mut node, true).await, "{}", node.log());
        let log = gate.end();
        assert!(log.contains(&format!("kernel freeze {root}")), "{log}");
        until_unguarded(&node).await;
        let writer = Writer::of(at.join(fault));
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!writer.is_done(), "{fault}: another's freeze was ended");
        sh(&format!("fsfreeze -u {root}"));
        writer.waited(Duration::from_secs(2)).await;
        node.run().await;
        until_not_marked(&node).await;
    }
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

/// Its guard, too, as when the kernel has no memory left.
#[tokio::test]
async fn a_daemon_that_is_killed_with_its_guard_thaws_at_its_next_start() {
    let cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    for fs_type in ["ext4", "xfs", "btrfs"] {
        node.create(fs_type, json!({ "fs": fs_type })).await.unwrap();
        let at = node.mount(fs_type, "c").await.unwrap();
        cloud.fail_once("create-snapshot", Action::Delay(5_000));
        let asked = ask_for_snapshot(&node, fs_type);
        let writer = until_frozen(&cloud, &node, &at).await;
        signal("KILL", guard_of(&node).unwrap());
        node.kill();
        asked.await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!writer.is_done(), "{fs_type}: the kernel thaws nothing by itself");
        // Before anything that takes time: the cloud does not answer at all.
        cloud.fail(Rule::on("*", Action::Delay(8_000)).times(3));
        node.run().await;
        writer.waited(Duration::from_secs(3)).await;
        cloud.clear_faults();
        until_not_marked(&node).await;
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
