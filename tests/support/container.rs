//! A container, as far as mounts go: the same filesystem, mounted in another namespace.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use super::sh;

/// The namespace of all containers of these tests, and what it ends with.
static NAMESPACE: OnceLock<(u32, ChildStdin)> = OnceLock::new();

/// Makes the namespace, if there is none yet. To be called before a test has mounts of its own: a
/// new namespace is a copy of the old one, and would hold them.
pub fn prepare() {
    namespace();
}

fn namespace() -> u32 {
    NAMESPACE
        .get_or_init(|| {
            let (child, input) = resident("unshare", &["-m", "sh", "-c", &without_mounts("")]);
            (child.id(), input)
        })
        .0
}

/// What a shell does in a new namespace: it lets go of what other programs have mounted for tests
/// at that moment, but for what has `kept` in its path, and stays.
pub fn without_mounts(kept: &str) -> String {
    let keep = if kept.is_empty() { String::new() } else { format!("| grep -v {kept}") };
    format!(
        "grep -o ' {}/[^ ]*' /proc/self/mounts {keep} | tac | while read m; do umount -l $m; done; \
         echo ready; exec cat",
        std::env::temp_dir().display()
    )
}

/// A process that says `ready`, and stays until its input ends.
pub fn resident(program: &str, args: &[&str]) -> (Child, ChildStdin) {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let input = child.stdin.take().unwrap();
    (child, input)
}

/// A container with a volume, until it is dropped.
#[derive(Debug)]
pub struct Container {
    at: tempfile::TempDir,
}

impl Container {
    /// With the volume that is mounted at or above this directory.
    pub fn with(volume: &Path) -> Self {
        let at = tempfile::tempdir().unwrap();
        let device = sh(&format!("findmnt -no SOURCE -T {}", volume.display()));
        // Of a directory: `/dev/loop0[/volume_content]`.
        let device = device.trim().split('[').next().unwrap();
        inside(&format!("mount {device} {}", at.path().display()));
        Self { at }
    }

    /// Where everybody can look at what it sees of the volume.
    pub fn volume(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", namespace()));
        root.join(self.at.path().strip_prefix("/").unwrap())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        inside(&format!("umount {}", self.at.path().display()));
    }
}

fn inside(line: &str) {
    sh(&format!("nsenter --mount=/proc/{}/ns/mnt {line}", namespace()));
}
