//! The tests of the iSCSI connector that need a kernel's initiator, where there is one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, is_asked_for};
use crate::support;

/// Test files that skip everything on a machine without an initiator.
const FILES: [&str; 2] = ["iscsi_connector", "iscsi_host"];

/// Where cargo put the test programs. It is asked, rather than a directory searched: so they are
/// of today's source, even when only the scenarios are run.
fn programs() -> Vec<(String, PathBuf)> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    // TARGET/PROFILE/deps/scenarios-0123456789abcdef
    let this = std::env::current_exe().unwrap();
    let target = this.ancestors().nth(3).unwrap();
    let mut command = Command::new(cargo);
    command.args(["test", "--locked", "--no-run", "--message-format=json", "--target-dir"]);
    command.arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    for file in FILES {
        command.args(["--test", file]);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let found: Vec<(String, PathBuf)> = messages
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|message| message["profile"]["test"] == true)
        .map(|message| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&message["target"]["name"]), text(&message["executable"]).into())
        })
        .collect();
    assert_eq!(found.len(), FILES.len(), "{messages}");
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
    let programs = tokio::task::spawn_blocking(programs).await.unwrap();
    let node = Node::boot("initiator", image).await;
    put_stripped(&node, &support::binary(), "/root/cinder-docker-driver").await;
    for (name, program) in programs {
        let here = format!("/root/{name}");
        put_stripped(&node, &program, &here).await;
        let run = format!("CINDER_RIG=1 CINDER_DRIVER_BINARY=/root/cinder-docker-driver {here}");
        let list = node.sh(&format!("{here} --list --format terse")).await;
        let tests: Vec<&str> =
            list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
        assert!(!tests.is_empty(), "{list}");
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
