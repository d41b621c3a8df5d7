//! A host on which a test can do anything at any moment: put something in place of a tool, stop the
//! daemon before any of its effects and fill a disk, take a device away, plant a link.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::gate::{self, Gate};
use crate::support::{Cloud, Node, sh};

/// What is written before, and must be there after.
pub const BYTES: &str = "written before the fault";

const TOOLS: [&str; 8] =
    ["mount", "umount", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "xfs_growfs", "e2fsck", "resize2fs"];

/// A host, and a cloud of its own.
pub struct Host {
    pub cloud: Cloud,
    pub node: Node,
    gate: Gate,
}

impl Host {
    pub async fn new(more: Value) -> Self {
        let mut host = Self::prepare(more).await;
        host.node.run().await;
        host
    }

    /// One whose daemon does not run yet.
    pub async fn prepare(more: Value) -> Self {
        let cloud = Cloud::start_with(|options| options.behaviour.creating_ms = 0).await;
        let mut node = Node::prepare(cloud.sandbox.config(), more);
        let gate = Gate::of(&mut node);
        fs::create_dir(gate.file("tools")).unwrap();
        let host = Self { cloud, node, gate };
        for tool in TOOLS {
            host.mend(tool);
        }
        host
    }

    /// A file of the test's own, outside of all that is looked at.
    pub fn file(&self, name: &str) -> PathBuf {
        self.gate.file(name)
    }

    fn tool(&self, tool: &str) -> PathBuf {
        self.gate.file("tools").join(tool)
    }

    /// Has a shell run this in place of a tool, which is `$real`.
    pub fn replace(&self, tool: &str, shell: &str) {
        let script = format!(
            "#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\nreal=$(command -v {tool})\n{shell}\n"
        );
        self.put(tool, script.as_bytes(), 0o755);
    }

    pub fn mend(&self, tool: &str) {
        self.replace(tool, "exec $real \"$@\"");
    }

    /// Moved into place: the daemon may start it at any moment.
    pub fn put(&self, tool: &str, bytes: &[u8], mode: u32) {
        let new = self.file("new-tool");
        fs::write(&new, bytes).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(new, self.tool(tool)).unwrap();
    }

    /// As when its package is removed, or just upgraded.
    pub fn lose(&self, tool: &str) {
        fs::remove_file(self.tool(tool)).unwrap();
    }

    /// A call that the daemon is stopped in before its `nth` effect (of a kind, if that is not
    /// empty), while `mischief` happens, which is told what effect it is. The answer, and the effect
    /// if there was one.
    pub async fn with_mischief<T>(
        &self,
        nth: usize,
        kind: &str,
        call: impl Future<Output = T>,
        mischief: impl FnOnce(&str),
    ) -> (T, Option<String>) {
        let paused = self.file("paused");
        self.gate.plan_for("pause", nth, kind);
        let (mut mischief, mut met, mut answer) = (Some(mischief), None, None);
        let mut call = std::pin::pin!(call);
        // The last effects come after the answer.
        let mut patience = Duration::from_millis(40);
        while answer.is_none() || !patience.is_zero() {
            if paused.exists()
                && let Some(mischief) = mischief.take()
            {
                let log = self.gate.log();
                let mut of_kind = gate::begun(&log).filter(|what| what.starts_with(kind));
                let what = of_kind.nth(nth - 1).unwrap();
                mischief(what);
                met = Some(what.to_owned());
                fs::remove_file(&paused).unwrap();
            }
            let pause = tokio::time::sleep(Duration::from_millis(2));
            tokio::select! {
                result = &mut call, if answer.is_none() => answer = Some(result),
                () = pause => {
                    if answer.is_some() {
                        patience = patience.saturating_sub(Duration::from_millis(2));
                    }
                }
            }
        }
        self.gate.end();
        (answer.unwrap(), met)
    }

    /// The effects of a call.
    pub async fn effects_of(&self, call: impl Future<Output = Result<(), String>>) -> Vec<String> {
        self.gate.watch();
        call.await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate::begun(&self.gate.end()).map(str::to_owned).collect()
    }

    /// A volume with a filesystem and [`BYTES`], mounted nowhere; its id.
    pub async fn with_bytes(&self, name: &str, options: Value) -> String {
        self.node.create(name, options).await.unwrap();
        let at = self.node.mount(name, "before").await.unwrap();
        fs::write(at.join("bytes"), BYTES).unwrap();
        self.node.unmount(name, "before").await.unwrap();
        self.cloud.volume(name).await["id"].as_str().unwrap().to_owned()
    }

    pub async fn id_of(&self, name: &str) -> String {
        self.cloud.volume(name).await["id"].as_str().unwrap().to_owned()
    }

    /// Asserts that the volume is held by nobody, can be mounted, and has its bytes if it had any.
    pub async fn assert_sound(&self, name: &str, has_bytes: bool) {
        self.until_free(name).await;
        let at = self.node.mount(name, "after").await.unwrap();
        if has_bytes {
            assert_eq!(fs::read_to_string(at.join("bytes")).unwrap(), BYTES, "{name}");
        }
        fs::write(at.join("more"), "").unwrap();
        self.node.unmount(name, "after").await.unwrap();
        assert_eq!(self.cloud.status(name).await, "available");
    }

    /// Waits until the volume is held no more, whatever the journal could note of that.
    pub async fn until_unmounted(&self, name: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.node.mounts().is_empty() || self.cloud.status(name).await != "available" {
            assert!(Instant::now() < end, "{name} is still held\n{}", self.node.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until nothing is held for a volume, here or in the cloud.
    pub async fn until_free(&self, name: &str) {
        let end = Instant::now() + Duration::from_secs(90);
        let id = self.id_of(name).await;
        let at = self.node.mount_point().join(name).display().to_string();
        loop {
            let mounted = self.node.mounts().contains(&at);
            let owed = self.node.liabilities().into_iter().find(|row| row.contains(&id));
            let status = self.cloud.status(name).await;
            if !mounted && owed.is_none() && status == "available" {
                return;
            }
            assert!(
                Instant::now() < end,
                "{name}: mounted: {mounted}, {status}, {owed:?}\n{}",
                self.node.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asserts that nothing is left over on this host.
    pub async fn assert_clean(&self) {
        self.node.until_clean().await;
        self.node.assert_clean(&self.cloud);
    }

    /// Changes with every write to a volume's image.
    pub fn stamp(&self, id: &str) -> String {
        sh(&format!("stat -c '%y %z %b %s' {}", self.cloud.image(id).display()))
    }
}

/// A tmpfs, gone with the value.
pub struct SmallDisk(TempDir);

impl SmallDisk {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        sh(&format!("mount -t tmpfs -o size=512k small {}", dir.path().display()));
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn fill(&self) {
        use std::io::Write;
        let mut file = fs::File::create(self.0.path().join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    pub fn empty(&self) {
        fs::remove_file(self.0.path().join("filler")).ok();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mounts = format!("umount -l {}", self.0.path().display());
        std::process::Command::new("sh").args(["-c", &mounts]).status().ok();
    }
}

/// The configuration of a host whose journal is on a disk of its own.
pub fn journal_on(disk: &SmallDisk) -> Value {
    json!({ "StateDir": disk.path().join("state") })
}
