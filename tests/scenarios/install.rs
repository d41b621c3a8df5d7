//! The life of an installation, with systemd as PID 1: install, start, upgrade, reboot, uninstall;
//! and `check` on hosts where something is wrong.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::rig::{DEBIAN_12_PLAIN, Node, Project, is_asked_for};

/// What `install.sh` writes: mode, owner and path.
const INSTALLED: &str = "\
755 root /usr/bin/cinder-docker-driver
700 root /var/lib/cinder/dockerdriver
600 root /var/lib/cinder/dockerdriver/config.json
644 root /etc/systemd/system/cinder-docker-driver.service
644 root /etc/systemd/system/cinder-docker-driver.socket
644 root /etc/systemd/system/cinder-docker-driver-swarm.service
644 root /etc/systemd/system/cinder-docker-driver-sandbox.service";

fn assert_says(said: &str, all: &[&str]) {
    for words in all {
        assert!(said.contains(words), "no '{words}' in: {said}");
    }
}

/// A container that writes a line to its volume again and again.
struct Writer<'a> {
    node: &'a Node,
}

impl<'a> Writer<'a> {
    async fn start(node: &'a Node) -> Self {
        let script = "while echo line >>/data/log; do sleep 0.3; done";
        node.sh(&format!(
            "docker run -d --name writer --restart=always -v data:/data busybox sh -c '{script}'"
        ))
        .await;
        Self { node }
    }

    async fn lines(&self) -> usize {
        let count = self.node.sh("docker exec writer sh -c 'wc -l </data/log'").await;
        count.parse().unwrap()
    }

    /// What changes when the container stops, be it for a moment.
    async fn life(&self) -> String {
        let format = "{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}}";
        self.node.sh(&format!("docker inspect -f '{format}' writer")).await
    }

    /// Its file becomes longer; how long it was first.
    async fn assert_writes(&self) -> usize {
        let before = self.lines().await;
        self.node
            .until(&format!("test $(docker exec writer sh -c 'wc -l </data/log') -gt {before}"))
            .await;
        before
    }
}

/// The pid of the plugin, and the checksum of the program that it runs.
async fn running(node: &Node) -> (String, String) {
    let said = node
        .sh("pid=$(systemctl show -P MainPID cinder-docker-driver); \
             echo $pid; sha256sum </proc/$pid/exe")
        .await;
    let (pid, sum) = said.split_once('\n').unwrap();
    (pid.to_owned(), sum.to_owned())
}

/// On a Debian 12 with Docker and nothing else, `install.sh` installs what is missing and says what
/// to do next, which is enough. An upgrade, a reboot and a refused uninstallation leave a container
/// its volume; the uninstallation leaves config and state; and the next installation goes on.
#[tokio::test]
async fn an_installation_from_the_first_day_to_the_last() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::boot("fresh", DEBIAN_12_PLAIN).await;
    node.sh("/usr/local/lib/node/images").await;
    node.offer_packages(&["open-iscsi"]).await;
    node.put_release().await;
    node.fails("command -v iscsiadm").await;

    let said = node.sh("/root/release/install.sh 2>&1").await;
    assert_says(
        &said,
        &[
            "Installing open-iscsi",
            "Installed cinder-docker-driver ",
            "Next: put your cloud into /var/lib/cinder/dockerdriver/config.json",
            "    cinder-docker-driver check\n    systemctl enable --now cinder-docker-driver",
        ],
    );
    let files: Vec<&str> = INSTALLED.lines().map(|line| line.rsplit_once(' ').unwrap().1).collect();
    let found = node.sh(&format!("stat -c '%a %U %n' {}", files.join(" "))).await;
    assert_eq!(found, INSTALLED);
    // A node gets this name at each boot of its, whatever the package chose.
    node.sh(
        "sed 's/.* node.initiator=/InitiatorName=/' /proc/cmdline >/etc/iscsi/initiatorname.iscsi",
    )
    .await;

    // What it said.
    node.write_config(&project, json!({})).await;
    let said = node.sh("cinder-docker-driver check").await;
    assert_says(&said, &["warning  socket: ", "→ systemctl enable --now cinder-docker-driver\n"]);
    node.sh("systemctl enable --now cinder-docker-driver").await;
    let said = node.sh("cinder-docker-driver check").await;
    assert!(said.ends_with("All is well."), "{said}");

    let writer = Writer::start(&node).await;
    project.until("data", "in-use").await;
    let log = node.log().await;
    assert_says(&log, &["data"]);
    assert!(!log.contains("scenario-password"), "{log}");

    // An upgrade: only the plugin restarts.
    let (life, before) = (writer.life().await, running(&node).await);
    let lines = writer.assert_writes().await;
    node.sh("echo another build >>/root/release/cinder-docker-driver").await;
    let upgrade = node.sh("/root/release/install.sh 2>&1");
    tokio::pin!(upgrade);
    let said = loop {
        tokio::select! {
            said = &mut upgrade => break said,
            () = sleep(Duration::from_millis(300)) => {
                assert_eq!(project.status("data").await, "in-use");
            }
        }
    };
    assert_says(&said, &["Restarted the plugin; volumes stayed mounted."]);
    assert!(writer.assert_writes().await > lines);
    assert_eq!(writer.life().await, life);
    let after = running(&node).await;
    assert_ne!(after, before);
    assert_eq!(after.1, node.sh("sha256sum </root/release/cinder-docker-driver").await);
    // The same once more changes nothing.
    node.sh("/root/release/install.sh").await;
    assert_eq!(running(&node).await, after);

    // A reboot: the plugin is up before Docker, and so the container is back with its data.
    node.sh("docker exec writer sync").await;
    let lines = writer.lines().await;
    node.shut_down().await;
    node.power_on().await;
    let started = node
        .sh("systemctl show -P ActiveEnterTimestampMonotonic cinder-docker-driver; \
             systemctl show -P ExecMainStartTimestampMonotonic docker")
        .await;
    let started: Vec<u64> = started.lines().map(|time| time.parse().unwrap()).collect();
    assert!(0 < started[0] && started[0] < started[1], "{started:?}");
    node.until("docker exec writer true").await;
    assert!(writer.assert_writes().await >= lines);
    assert_eq!(project.status("data").await, "in-use");

    // Nobody could release a volume without the plugin.
    let said = node.fails("/root/release/install.sh --uninstall").await;
    let volume = "/var/lib/cinder/mount/data\n";
    assert_says(&said, &[volume, "docker ps --filter volume=NAME", "Nothing was changed."]);
    writer.assert_writes().await;
    node.sh("docker rm -f writer").await;
    project.until("data", "available").await;
    node.assert_clean().await;
    let said = node.sh("/root/release/install.sh --uninstall").await;
    assert_says(&said, &["Removed /usr/bin/cinder-docker-driver", "Kept: /var/lib/cinder/"]);
    let left = node.sh(&format!("ls -d {} 2>/dev/null || true", files.join(" "))).await;
    assert_eq!(left, "/var/lib/cinder/dockerdriver\n/var/lib/cinder/dockerdriver/config.json");
    let units = "systemctl list-units --all --plain --no-legend 'cinder-docker-driver*'; \
                 systemctl list-unit-files --no-legend 'cinder-docker-driver*'; \
                 ls /run/docker/plugins; pgrep cinder-docker || true";
    assert_eq!(node.sh(units).await, "");

    // With its config there, it starts at once, and what was written is there.
    let said = node.sh("/root/release/install.sh").await;
    assert_says(&said, &["Started the plugin."]);
    let kept = node.sh("docker run --rm -v data:/data busybox sh -c 'wc -l </data/log'").await;
    assert!(kept.parse::<usize>().unwrap() > lines, "{kept} lines");
    node.assert_clean().await;
    project.assert_clean().await;
}
