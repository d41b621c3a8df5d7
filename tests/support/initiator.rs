//! Whether this machine can play an iSCSI host: root, tgtd, open-iscsi, a kernel with iscsi_tcp.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What makes a machine a node of `tests/rig`.
const NODE: &str = "/usr/local/lib/node";

fn why_not() -> Option<&'static str> {
    let id = Command::new("id").arg("-u").output().unwrap();
    if id.stdout != b"0\n" {
        return Some("not root");
    }
    let is_installed = |tool| {
        ["/usr/sbin", "/usr/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(tool).exists())
    };
    if !["iscsiadm", "tgtd", "tgtadm"].into_iter().all(is_installed) {
        return Some("tgt or open-iscsi is not installed");
    }
    let _ = Command::new("modprobe").arg("iscsi_tcp").stderr(Stdio::null()).status();
    (!Path::new("/sys/class/iscsi_transport/tcp").exists()).then_some("no iscsi_tcp in this kernel")
}

/// Whether it can; says loudly that the test is skipped when not.
///
/// # Panics
///
/// In a node of the rig with `CINDER_RIG=1`: there everything must run. (The scenarios in
/// `initiator.rs` run these tests there, so elsewhere they may be skipped.)
pub fn is_here(test: &str) -> bool {
    let Some(reason) = why_not() else { return true };
    skip(test, reason);
    false
}

/// Says that a test is skipped, or fails it where nothing may be.
pub fn skip(test: &str, reason: &str) {
    let asked = std::env::var("CINDER_RIG").is_ok_and(|value| value == "1");
    assert!(!(asked && Path::new(NODE).exists()), "{test} cannot run in this node: {reason}");
    // Past the capture of the test harness: this must be seen.
    let shown = format!("SKIPPED {test}: {reason}\n");
    std::io::stderr().write_all(shown.as_bytes()).ok();
}
