//! The tests that need a kernel's iSCSI initiator, where there is one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, is_asked_for};
use crate::support;

/// Test files that skip everything on a machine without an initiator.
const FILES: [&str; 2] = ["iscsi_connector", "iscsi_host"];
/// Has tests that do so, in modules `iscsi` and `iscsiadm`; they need a debug build of the daemon.
const FAULTS: &str = "faults";
const DAEMON: &str = "cinder-docker-driver";

/// Names the faults that `tests/faults/iscsi.rs` tries, at every effect of every operation. That
/// takes hours: raise nextest's `slow-timeout`.
const ASKED: &str = "CINDER_ISCSI_FAULTS";

/// Where cargo put the test programs, and the daemon of the same build. It is asked, rather than a
/// directory searched: so they are of today's source, even when only the scenarios are run.
fn programs(files: &[&str]) -> Vec<(String, PathBuf)> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    // TARGET/PROFILE/deps/scenarios-0123456789abcdef
    let this = std::env::current_exe().unwrap();
    let target = this.ancestors().nth(3).unwrap();
    let mut command = Command::new(cargo);
    command.args(["test", "--locked", "--no-run", "--message-format=json", "--target-dir"]);
    command.arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    for file in files {
        command.args(["--test", file]);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let found: Vec<(String, PathBuf)> = messages
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|message| {
            let is_daemon =
                message["target"]["name"] == DAEMON && message["executable"].is_string();
            message["profile"]["test"] == true || is_daemon
        })
        .map(|message| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&message["target"]["name"]), text(&message["executable"]).into())
        })
        .collect();
    assert_eq!(found.len(), files.len() + 1, "{messages}");
    found
}

/// Copies a program into the node, without what only a debugger reads.
async fn put_stripped(node: &Node, program: &Path, to: &str) {
    let stripped = tempfile::NamedTempFile::new().unwrap();
    support::sh(&format!("strip -o '{}' '{}'", stripped.path().display(), program.display()));
    node.put(stripped.path(), to).await;
}

/// Against tgtd in the node itself: sessions with CHAP, targets that refuse, die and hang, crashes,
/// strangers' sessions, what the Go driver left.
async fn initiator(image: &str) {
    if !is_asked_for() {
        return;
    }
    let programs = tokio::task::spawn_blocking(|| programs(&FILES)).await.unwrap();
    let node = Node::boot("initiator", image).await;
    put_stripped(&node, &support::binary(), "/root/cinder-docker-driver").await;
    for (name, program) in programs.into_iter().filter(|(name, _)| name != DAEMON) {
        let here = format!("/root/{name}");
        put_stripped(&node, &program, &here).await;
        let run = format!("CINDER_RIG=1 CINDER_DRIVER_BINARY=/root/cinder-docker-driver {here}");
        let list = node.sh(&format!("{here} --list --format terse")).await;
        let tests: Vec<&str> =
            list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
        assert!(!tests.is_empty(), "{list}");
        // They take minutes, and are about the kernel and the target more than about open-iscsi.
        let once = [
            "of_64_luns_behind_one_target_one_goes_and_63_go_on",
            "iscsid_may_be_restarted_at_any_moment",
        ];
        let tests: Vec<&str> =
            tests.into_iter().filter(|test| !once.contains(test) || image == DEBIAN_12).collect();
        // One at a time: they share iscsid and the mount table.
        for test in &tests {
            let said = node.sh(&format!("{run} --exact {test} 2>&1")).await;
            let is_passed = said.contains("test result: ok. 1 passed; 0 failed; 0 ignored");
            assert!(is_passed && !said.contains("SKIPPED"), "{said}");
        }
        // Past the capture of the test harness: what was run must be seen.
        let shown = format!("{name} in {image}: {} tests passed\n", tests.len());
        std::io::stderr().write_all(shown.as_bytes()).unwrap();
    }
}

#[tokio::test]
async fn the_connector_works_with_the_initiator_of_debian_12() {
    initiator(DEBIAN_12).await;
}

#[tokio::test]
async fn the_connector_works_with_the_initiator_of_debian_13() {
    initiator(DEBIAN_13).await;
}

/// Runs a module of `tests/faults/` in a node.
async fn faults(module: &'static str) {
    if !is_asked_for() {
        return;
    }
    let programs = tokio::task::spawn_blocking(|| programs(&[FAULTS])).await.unwrap();
    let node = Node::boot(module, DEBIAN_12).await;
    for (name, program) in &programs {
        put_stripped(&node, program, &format!("/root/{name}")).await;
    }
    // Docker Engine looks at each mount, and has no part in this.
    node.sh("systemctl stop docker.socket docker.service containerd.service").await;
    let (faults, more) = match std::env::var(ASKED) {
        Ok(faults) => (format!("{ASKED}='{faults}'"), "--include-ignored"),
        Err(_) => (String::new(), ""),
    };
    let begun = Instant::now();
    // It may take longer than one command in a node may: it says itself that it has ended.
    node.sh(&format!(
        "{faults} CINDER_RIG=1 CINDER_DRIVER_BINARY=/root/{DAEMON} setsid sh -c '/root/{FAULTS} \
         {module}:: --nocapture --test-threads 1 {more}; echo ended' >/root/log 2>&1 </dev/null &"
    ))
    .await;
    let said = loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let said = node.sh("cat /root/log").await;
        if said.ends_with("\nended") {
            break said;
        }
    };
    let shown = format!("{said}\nfaults in {module}: {} s\n", begun.elapsed().as_secs());
    std::io::stderr().write_all(shown.as_bytes()).unwrap();
    assert!(said.contains("test result: ok.") && !said.contains("SKIPPED"), "{said}");
}

/// A Mount and an Unmount with real iSCSI: the daemon is killed, answers are lost. A session of
/// somebody else to the same portal stays as it is.
#[tokio::test]
async fn nothing_is_lost_on_iscsi_whatever_goes_wrong() {
    faults("iscsi").await;
}

/// Logins and logouts: iscsiadm says anything, hangs, is killed.
#[tokio::test]
async fn nothing_is_lost_on_iscsi_whatever_iscsiadm_says() {
    faults("iscsiadm").await;
}
