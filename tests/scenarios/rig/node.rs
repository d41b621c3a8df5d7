//! A Docker host: a virtual machine that `tests/rig/node` starts, with the driver installed as its
//! users install it.

use std::path::Path;
use std::process::{Command, Output};

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::{Project, output, tool, until};
use crate::support;
use crate::transcript;

/// Images of `tests/rig/images`.
pub const DEBIAN_12: &str = "debian-12";
pub const DEBIAN_13: &str = "debian-13";
/// Without open-iscsi.
pub const DEBIAN_12_PLAIN: &str = "debian-12-plain";

/// Where the driver mounts volumes.
pub const MOUNT_POINT: &str = "/var/lib/cinder/mount";

/// Whole seconds that a command in a node may take.
const LIMIT: &str = "600";

/// A virtual machine. It is thrown away when dropped, unless `CINDER_RIG_KEEP=1`.
#[derive(Debug)]
pub struct Node {
    /// What the scenario calls it.
    pub label: String,
    /// What it calls itself: no other scenario's node has that name.
    pub name: String,
}

impl Node {
    /// Boots a machine, which can reach the cloud.
    pub async fn boot(label: &str, image: &str) -> Self {
        let node =
            Self { label: label.to_owned(), name: format!("{label}-{}", std::process::id()) };
        node.rig(&["up", &node.name, "--image", image]).await;
        let ports = super::project::ports().await;
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        node.rig(&[&["forward", &node.name], ports.as_slice()].concat()).await;
        node
    }

    /// Boots a machine with the driver, installed and started with a config for the project.
    /// `more` are further keys of the config.
    pub async fn with_driver(label: &str, image: &str, project: &Project, more: Value) -> Self {
        let node = Self::boot(label, image).await;
        node.put_release().await;
        node.write_config(project, more).await;
        node.sh("cd /root/release && ./install.sh && systemctl start cinder-docker-driver").await;
        node
    }

    /// Puts an unpacked release into `/root/release`.
    pub async fn put_release(&self) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let release = tempfile::tempdir().unwrap();
        let to = release.path().display();
        support::sh(&format!(
            "cd '{}' && cp -r install.sh config.example.json systemd '{to}' && \
             strip -o '{to}/cinder-docker-driver' '{}'",
            root.display(),
            support::binary().display(),
        ));
        self.put(release.path(), "/root/release").await;
    }

    /// Makes packages installable that a node with Debian 12 lacks.
    pub async fn offer_packages(&self, packages: &[&str]) {
        let mut command = Command::new(tool("packages"));
        command.arg(&self.name).args(packages);
        let output = output(command).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "packages {packages:?}: {errors}");
    }

    /// Writes the config of a user of the project.
    pub async fn write_config(&self, project: &Project, more: Value) {
        let mut config = project.config();
        config.insert("InitiatorIP".to_owned(), json!("10.0.2.15"));
        let Value::Object(more) = more else { panic!("not an object") };
        config.extend(more);
        self.write_config_file(&config).await;
    }

    pub async fn write_config_file(&self, config: &Map<String, Value>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        serde_json::to_writer_pretty(&file, config).unwrap();
        self.put(file.path(), "/var/lib/cinder/dockerdriver/config.json").await;
    }

    /// Writes a text file.
    pub async fn write(&self, path: &str, text: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        self.put(file.path(), path).await;
    }

    /// `tests/rig/node`, which must succeed.
    async fn rig(&self, arguments: &[&str]) -> Vec<u8> {
        let mut command = Command::new(tool("node"));
        command.args(arguments);
        let output = output(command).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "node {arguments:?}: {errors}");
        output.stdout
    }

    /// Copies a file or a directory into the node.
    pub async fn put(&self, from: &Path, to: &str) {
        self.rig(&["put", &self.name, from.to_str().unwrap(), to]).await;
    }

    /// Runs what a person types there, as root.
    pub async fn run(&self, line: &str) -> Output {
        let mut command = Command::new(tool("node"));
        command.args(["run", "-t", LIMIT, &self.name, line]);
        output(command).await
    }

    /// The output of a command that must succeed.
    pub async fn sh(&self, line: &str) -> String {
        let output = self.run(line).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{}: {line}: {}\n{out}\n{errors}",
            self.label,
            output.status
        );
        out.trim_end().to_owned()
    }

    /// What a command that must fail says.
    pub async fn fails(&self, line: &str) -> String {
        let output = self.run(line).await;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim_end().to_owned();
        // It took too long (124, 137), or the node is not there (255).
        let failed = !matches!(output.status.code(), None | Some(0 | 124 | 137 | 255));
        assert!(failed, "{}: {line} does not fail but: {} {said}", self.label, output.status);
        said
    }

    /// Waits until a command succeeds; its output.
    pub async fn until(&self, line: &str) -> String {
        until(240, line, || async {
            let output = self.run(line).await;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
            if output.status.success() {
                Ok(text(&output.stdout))
            } else {
                Err(format!("{} {}", text(&output.stdout), text(&output.stderr)))
            }
        })
        .await
    }

    /// Cuts the power.
    pub async fn cut_power(&self) {
        self.rig(&["kill", &self.name]).await;
    }

    /// Shuts down in order.
    pub async fn shut_down(&self) {
        self.rig(&["down", &self.name]).await;
    }

    /// Starts a machine that was shut down or lost its power.
    pub async fn power_on(&self) {
        self.rig(&["up", &self.name]).await;
    }

    /// Plugs or pulls a cable: `san-a` or `san-b`.
    pub async fn link(&self, network: &str, plugged: bool) {
        self.rig(&["link", &self.name, network, if plugged { "on" } else { "off" }]).await;
    }

    /// Logs in to a volume without the driver, as an operator or another service does. Returns the
    /// beginning of a line for `iscsiadm` about its record, and the connector that Cinder was given.
    pub async fn log_in_by_hand(&self, project: &Project, id: &str, host: &str) -> (String, Value) {
        let name = "sed -n 's/^InitiatorName=//p' /etc/iscsi/initiatorname.iscsi";
        let initiator = self.sh(name).await;
        let connector = json!({ "initiator": initiator, "host": host, "ip": "10.0.2.15" });
        let connect = json!({ "os-initialize_connection": { "connector": connector } });
        let answer = project.cinder("POST", &format!("/volumes/{id}/action"), connect).await;
        let text = |key: &str| answer["connection_info"]["data"][key].as_str().unwrap().to_owned();
        let record =
            format!("iscsiadm -m node -T {} -p {}", text("target_iqn"), text("target_portal"));
        self.sh(&format!(
            "set -e
             {record} --op new >/dev/null
             {record} --op update -n node.session.auth.authmethod -v CHAP \
                -n node.session.auth.username -v {} -n node.session.auth.password -v {}
             {record} --login >/dev/null",
            text("auth_username"),
            text("auth_password"),
        ))
        .await;
        (record, connector)
    }

    /// What the driver logged. (`--merge`: a journal may go on under the snapshot's machine id.)
    pub async fn log(&self) -> String {
        self.sh("journalctl --merge --quiet --no-pager --output cat --unit cinder-docker-driver")
            .await
    }

    /// What is left over here of any volume, one thing a line: sessions, node records, disks,
    /// mounts, mountpoints, entries of the journal.
    pub async fn leftovers(&self) -> String {
        self.sh("ls -d /sys/class/iscsi_session/* 2>/dev/null
             find /etc/iscsi/nodes /var/lib/iscsi/nodes -type f 2>/dev/null
             ls -d /sys/block/sd* 2>/dev/null
             grep ' /var/lib/cinder/mount/' /proc/self/mountinfo
             ls -d /var/lib/cinder/mount/* 2>/dev/null
             cinder-docker-driver status --json | tr -d ' \\n' | grep -v '^\\[\\]$'
             true")
            .await
    }

    /// Nothing is left over here, or will soon not be.
    pub async fn assert_clean(&self) {
        until(60, &format!("nothing is left over on {}", self.label), || async {
            let left = self.leftovers().await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    }
}

#[async_trait]
impl transcript::Machine for Node {
    fn prompt(&self) -> &str {
        &self.label
    }

    async fn run(&self, line: &str) -> Output {
        Self::run(self, line).await
    }

    fn masks(&self) -> Vec<(String, String)> {
        let shown = format!("<{}>/mount", self.label);
        vec![
            (format!("{}:{MOUNT_POINT}", self.name), format!("{}:{shown}", self.label)),
            (self.name.clone(), self.label.clone()),
            (MOUNT_POINT.to_owned(), shown),
        ]
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let line = "journalctl --merge --no-pager -n 60 -u cinder-docker-driver; \
                        journalctl --merge --no-pager -n 20 -u docker; dmesg | tail -n 20";
            let said =
                Command::new(tool("node")).args(["run", "-t", "60", &self.name, line]).output();
            if let Ok(said) = said {
                println!("--- {} ---\n{}", self.label, String::from_utf8_lossy(&said.stdout));
            }
        }
        if std::env::var("CINDER_RIG_KEEP").is_ok_and(|keep| keep == "1") {
            println!("{} is kept: tests/rig/node shell {}", self.label, self.name);
            return;
        }
        Command::new(tool("node")).args(["rm", &self.name]).status().ok();
    }
}
