//! `resize`: the real daemon, real devices and filesystems, and an embedded cloud that keeps Cinder's
//! rules.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cinder_docker_driver::sandbox::faults::{Action, Rule};
use cinder_docker_driver::sandbox::{Behaviour, Quotas};
use serde_json::{Value, json};
use support::{Cloud, Node, sh};

/// What a command printed, if it went well, or what it said on standard error.
async fn resize(node: &Node, name: &str, size: &str) -> Result<String, String> {
    let done = node.cli(&["resize", name, size]).await;
    match done.status.success() {
        true => Ok(String::from_utf8(done.stdout).unwrap()),
        false => Err(String::from_utf8(done.stderr).unwrap()),
    }
}

/// MiB of the filesystem at a path.
fn mebibytes(at: &Path) -> u64 {
    let text = sh(&format!("df -m --output=size {} | tail -1", at.display()));
    text.trim().parse().unwrap()
}

/// ext4 grows online only for a process that may use the last reserved blocks.
fn may_grow_ext4() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    u64::from_str_radix(line, 16).unwrap() & 1 << 24 != 0 // CAP_SYS_RESOURCE
}

#[tokio::test]
async fn a_free_volume_is_extended_and_its_filesystem_grows_with_the_next_mount() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({ "fs": "xfs" })).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    fs::write(at.join("file"), "here").unwrap();
    assert!(mebibytes(&at) < 1024);
    node.unmount("v", "c").await.unwrap();

    let said = resize(&node, "v", "2G").await.unwrap();
    assert!(said.contains("has 2 GiB now, and had 1"), "{said}");
    assert!(said.contains("grows with the next start"), "{said}");
    assert_eq!(cloud.volume("v").await["size"], 2);
    assert_eq!(cloud.status("v").await, "available");
    assert_eq!(node.get("v").await.unwrap()["Status"]["size"], 2, "{:?}", node.get("v").await);

    let at = node.mount("v", "c").await.unwrap();
    assert!(mebibytes(&at) > 1800, "{}", mebibytes(&at));
    assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "here");
    node.unmount("v", "c").await.unwrap();

    cloud.forget_calls();
    let said = resize(&node, "v", "2").await.unwrap();
    assert!(said.contains("has 2 GiB\n"), "{said}");
    assert!(!cloud.calls().contains(&"os-extend".to_owned()));
    node.assert_clean(&cloud);
}

/// A container that writes all along: each line is on the disk before the next one begins.
struct Writer {
    ends: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<usize>,
}

impl Writer {
    fn at(file: &Path) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (asked, mut file) = (Arc::clone(&ends), File::create(file).unwrap());
        let thread = std::thread::spawn(move || {
            let mut lines = 0;
            while !asked.load(Ordering::Relaxed) {
                writeln!(file, "{lines}").unwrap();
                file.sync_data().unwrap();
                lines += 1;
            }
            lines
        });
        Self { ends, thread }
    }

    /// How many lines it has written.
    fn end(self) -> usize {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[tokio::test]
async fn a_mounted_volume_grows_while_it_is_written_to() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for fs_type in ["xfs", "btrfs"] {
        node.create(fs_type, json!({ "fs": fs_type })).await.unwrap();
        let at = node.mount(fs_type, "c").await.unwrap();
        let before = mebibytes(&at);
        let writer = Writer::at(&at.join("log"));
        let said = resize(&node, fs_type, "3").await.unwrap();
        let lines = writer.end();
        assert!(said.contains("has grown from"), "{fs_type}: {said}");
        assert!(before < 1024 + 1 && mebibytes(&at) > 2700, "{fs_type}: {}", mebibytes(&at));
        let log = fs::read_to_string(at.join("log")).unwrap();
        assert_eq!(log.lines().count(), lines, "{fs_type}");
        assert!(lines > 1, "{fs_type}");
        assert_eq!(cloud.volume(fs_type).await["size"], 3);
        assert_eq!(cloud.status(fs_type).await, "in-use");
        // Once more changes nothing.
        let again = resize(&node, fs_type, "3").await.unwrap();
        assert!(again.contains("all that there is"), "{fs_type}: {again}");
        node.unmount(fs_type, "c").await.unwrap();
        let at = node.mount(fs_type, "c").await.unwrap();
        assert_eq!(fs::read_to_string(at.join("log")).unwrap(), log, "{fs_type}");
        node.unmount(fs_type, "c").await.unwrap();
    }
    node.assert_clean(&cloud);
}

/// Waits for something that comes within seconds.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_filesystem_in_a_partition_grows_to_that_and_what_is_behind_it_is_told() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let id = cloud.create("v", json!({})).await;
    let image = cloud.image(&id);
    sh(&format!(
        "set -e; printf ',500M,L\\n' | sfdisk --quiet --label gpt {0}
         loop=$(losetup --find --show --offset 1MiB --sizelimit 500MiB {0})
         mkfs.xfs -q $loop; losetup --detach $loop",
        image.display()
    ));
    // The sandbox lets the kernel read no partition table, as other back ends do.
    cloud.fail_once("attachment-update", Action::DelayAnswer(600));
    let kernel = async {
        let id = id.parse().unwrap();
        until("exported", async || !cloud.sandbox.devices(id).is_empty()).await;
        let disk = cloud.sandbox.devices(id).remove(0);
        sh(&format!("partx -u {}", disk.display()));
        disk
    };
    let (at, disk) = tokio::join!(node.mount("v", "c"), kernel);
    let at = at.unwrap();
    let disk = disk.display();
    fs::write(at.join("file"), "here").unwrap();
    let told = format!("\"growpart {disk} 1\"");
    assert!(node.log().contains(&told), "{}", node.log());

    // What has not grown is not said to have.
    let before = mebibytes(&at);
    let said = resize(&node, "v", "2").await.unwrap();
    assert!(said.contains("has 2 GiB now, and had 1"), "{said}");
    assert!(said.contains("has 0.4 GiB as before; it is in partition 1"), "{said}");
    assert!(said.contains("1.5 GiB behind it are unused") && said.contains(&told), "{said}");
    assert!(!said.contains("has grown"), "{said}");
    assert_eq!(mebibytes(&at), before);

    // What growpart does.
    sh(&format!(
        "echo ', +' | sfdisk --quiet --no-reread --force -N 1 {disk} && partx --update --nr 1 {disk}"
    ));
    let said = resize(&node, "v", "2").await.unwrap();
    assert!(said.contains("has grown from 0.4 GiB to 1.9 GiB\n"), "{said}");
    assert!(mebibytes(&at) > 1900, "{}", mebibytes(&at));
    let said = resize(&node, "v", "2").await.unwrap();
    assert!(said.contains("has 1.9 GiB, all that there is\n"), "{said}");
    assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "here");

    cloud.forget_calls();
    cloud.fail_once("attachment-delete", Action::Delay(600));
    let kernel = async {
        let is_called = async || cloud.calls().contains(&"attachment-delete".to_owned());
        until("attachment-delete", is_called).await;
        sh(&format!("partx -d {disk}"));
    };
    let (unmounted, ()) = tokio::join!(node.unmount("v", "c"), kernel);
    unmounted.unwrap();
    let said = resize(&node, "v", "3").await.unwrap();
    assert!(said.contains("in a partition, to the end of that"), "{said}");
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn an_ext4_grows_online_or_says_what_keeps_it_from_growing() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    let said = resize(&node, "v", "2").await;
    match may_grow_ext4() {
        true => assert!(mebibytes(&at) > 1800, "{said:?}"),
        false => {
            let error = said.unwrap_err();
            assert!(error.contains("resize2fs") && error.contains("works on"), "{error}");
            assert_eq!(cloud.volume("v").await["size"], 2);
        }
    }
    fs::write(at.join("file"), "written after it").unwrap();
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_the_reason() {
    let cloud = Cloud::start().await;
    let (node, other) = (Node::start(&cloud).await, Node::start(&cloud).await);
    node.create("v", json!({ "size": "2", "fs": "xfs" })).await.unwrap();
    for size in ["0", "1.5", "-1", "2MB", "99999999999999999999"] {
        let error = node.cli(&["resize", "v", "--", size]).await;
        assert!(!error.status.success(), "{size}");
    }
    let error = resize(&node, "v", "1").await.unwrap_err();
    assert!(error.contains("has 2 GiB") && error.contains("cannot be made smaller"), "{error}");
    let error = resize(&node, "nothing", "3").await.unwrap_err();
    assert!(error.contains("no volume \"nothing\""), "{error}");
    assert_eq!(cloud.volume("v").await["size"], 2);

    let at = node.mount("v", "c").await.unwrap();
    let error = resize(&other, "v", "3").await.unwrap_err();
    let host = cloud.volume("v").await["attachments"][0]["device"].as_str().unwrap().to_owned();
    assert!(error.contains(&host), "{host}: {error}");
    assert!(error.contains("\"cinder-docker-driver resize v 3\" on that host"), "{error}");

    let few = Quotas { gigabytes: 3, ..Quotas::default() };
    cloud.sandbox.set_behaviour(Behaviour { quotas: few, ..Behaviour::default() });
    let error = resize(&node, "v", "30").await.unwrap_err();
    assert!(error.contains("quota exceeded"), "{error}");
    assert!(error.contains("Requested 28G, quota is 3G and 2G has been consumed"), "{error}");
    cloud.sandbox.set_behaviour(Behaviour::default());

    // The scheduler says no afterwards, and leaves no trace in the status.
    cloud.fail_once("os-extend", Action::RefuseExtend);
    let error = resize(&node, "v", "3").await.unwrap_err();
    assert!(error.contains("No storage could be allocated"), "{error}");
    assert!(error.contains("cannot extend a volume in use"), "{error}");
    assert_eq!(cloud.status("v").await, "in-use");
    fs::write(at.join("file"), "works on").unwrap();

    // The back end fails: an administrator must look.
    cloud.fail_once("os-extend", Action::FailExtend);
    for _ in 0..2 {
        let error = resize(&node, "v", "3").await.unwrap_err();
        assert!(error.contains("Volume Driver failed to extend volume"), "{error}");
        assert!(error.contains("openstack volume set --state in-use"), "{error}");
    }
    fs::write(at.join("file"), "works on").unwrap();
    let id = cloud.volume("v").await["id"].as_str().unwrap().to_owned();
    cloud.force(&id, json!({ "status": "in-use" }));
    resize(&node, "v", "3").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_cloud_that_extends_no_volume_in_use_is_named_and_the_way_around_it_works() {
    let cloud = Cloud::start().await;
    let config = cloud.sandbox.config();
    let project = config["TenantID"].as_str().unwrap();
    let old = format!("http://{}/volume/v2/{project}", cloud.sandbox.address());
    let node = Node::start_with(&cloud, json!({ "BlockStorageEndpoint": old })).await;
    node.create("v", json!({ "fs": "xfs" })).await.unwrap();
    node.mount("v", "c").await.unwrap();
    cloud.forget_calls();
    let error = resize(&node, "v", "2").await.unwrap_err();
    assert!(error.contains("(v2) cannot extend a volume in use, which takes 3.42"), "{error}");
    assert!(error.contains("stop the containers"), "{error}");
    assert!(!cloud.calls().contains(&"os-extend".to_owned()));
    node.unmount("v", "c").await.unwrap();
    resize(&node, "v", "2").await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    assert!(mebibytes(&at) > 1800);
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn what_was_extended_without_us_only_grows() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({ "fs": "xfs" })).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    let id = cloud.volume("v").await["id"].as_str().unwrap().to_owned();
    let extend = json!({ "os-extend": { "new_size": 2 } });
    cloud.cinder_at("POST", &format!("/volumes/{id}/action"), extend, "3.42").await;
    while cloud.volume("v").await["size"] != 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cloud.until("v", "in-use").await;
    assert!(mebibytes(&at) < 1024);
    cloud.forget_calls();
    let said = resize(&node, "v", "2").await.unwrap();
    assert!(said.contains("has grown from"), "{said}");
    assert!(!cloud.calls().contains(&"os-extend".to_owned()));
    assert!(mebibytes(&at) > 1800);
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

/// Cinder makes a volume in-use again when it has extended one that was, whoever has it by then.
#[tokio::test]
async fn a_volume_is_not_given_back_while_cinder_extends_it() {
    let cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    node.create("v", json!({ "fs": "xfs" })).await.unwrap();
    node.mount("v", "c").await.unwrap();
    cloud.sandbox.set_behaviour(Behaviour { extending_ms: 3000, ..Behaviour::default() });
    let socket = node.socket.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let body = json!({ "Name": "v", "Size": "2" }).to_string();
        sh_lossy(&format!(
            "curl --silent --unix-socket {} --data '{body}' http://plugin/Operator.Resize",
            socket.display()
        ))
    });
    cloud.until("v", "extending").await;
    node.kill();
    asked.await.unwrap();
    node.run().await;
    // Another run of the daemon has to know it, too.
    node.unmount("v", "c").await.unwrap();
    assert_eq!(node.mounts(), Vec::<String>::new());
    assert_eq!(cloud.status("v").await, "extending");
    let attached = cloud.cinder("GET", "/attachments", Value::Null).await;
    assert_eq!(attached["attachments"].as_array().unwrap().len(), 1, "not given back yet");
    node.until_clean().await;
    cloud.until("v", "available").await;
    assert_eq!(cloud.volume("v").await["attachments"], json!([]));
    let at = node.mount("v", "c").await.unwrap();
    assert!(mebibytes(&at) > 1800);
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

/// A command whose exit code is of no interest.
fn sh_lossy(line: &str) {
    sh(&format!("{line} || true"));
}

#[tokio::test]
async fn one_that_was_interrupted_while_cinder_extends_goes_on_when_asked_again() {
    let cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    for mounted in [false, true] {
        let name = if mounted { "mounted" } else { "free" };
        node.create(name, json!({ "fs": "xfs" })).await.unwrap();
        let mut at = node.mount(name, "c").await.unwrap();
        if !mounted {
            node.unmount(name, "c").await.unwrap();
        }
        cloud.sandbox.set_behaviour(Behaviour { extending_ms: 1000, ..Behaviour::default() });
        let socket = node.socket.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let body = json!({ "Name": name, "Size": "2" }).to_string();
            sh_lossy(&format!(
                "curl --silent --unix-socket {} --data '{body}' http://plugin/Operator.Resize",
                socket.display()
            ));
        });
        cloud.until(name, "extending").await;
        node.kill();
        asked.await.unwrap();
        node.run().await;
        cloud.forget_calls();
        resize(&node, name, "2").await.unwrap();
        assert!(!cloud.calls().contains(&"os-extend".to_owned()), "{name}");
        if !mounted {
            at = node.mount(name, "c").await.unwrap();
        }
        assert!(mebibytes(&at) > 1800, "{name}");
        node.unmount(name, "c").await.unwrap();
    }
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn an_answer_that_is_lost_is_looked_for() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({ "fs": "xfs" })).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    cloud.fail(Rule::on("os-extend", Action::DropAfter));
    resize(&node, "v", "2").await.unwrap();
    assert!(mebibytes(&at) > 1800);
    cloud.fail(Rule::on("os-extend", Action::DropBefore));
    resize(&node, "v", "3").await.unwrap_err();
    assert_eq!(cloud.volume("v").await["size"], 2);
    resize(&node, "v", "3").await.unwrap();
    assert!(mebibytes(&at) > 2700);
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}
