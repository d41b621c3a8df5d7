//! The life of an installation, with systemd as PID 1: install, start, upgrade, reboot, uninstall;
//! and `check` on hosts where something is wrong.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::rig::{DEBIAN_12, DEBIAN_12_PLAIN, DEBIAN_13, Node, Project, is_asked_for};
use crate::support;

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
            "docker run -d --name writer --restart=always --volume-driver cinder -v data:/data \
             busybox sh -c '{script}'"
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
    node.sh("mkdir -p /root/tree/bin /root/tree/tmp && cp /bin/busybox /root/tree/bin && \
         chroot /root/tree /bin/busybox --install -s /bin && \
         tar -C /root/tree -c . | docker import -c 'CMD [\"sh\"]' - busybox")
        .await;
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
    assert_says(&log, &["INFO ready version=", "op=Mount volume=\"data\""]);
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
    let read =
        "docker run --rm --volume-driver cinder -v data:/data busybox sh -c 'wc -l </data/log'";
    let kept = node.sh(read).await;
    assert!(kept.parse::<usize>().unwrap() > lines, "{kept} lines");
    node.assert_clean().await;
    project.assert_clean().await;
}

/// `debs/1.deb` as a release has it (or `CINDER_DRIVER_DEB`, which is one), and the next revision of
/// it, `debs/2.deb`.
fn make_debs(to: &Path) {
    let to = to.display();
    match std::env::var("CINDER_DRIVER_DEB") {
        Ok(deb) => support::sh(&format!("mkdir {to}/debs && cp '{deb}' {to}/debs/1.deb")),
        Err(_) => support::sh(&format!(
            "strip -o {to}/program '{}' && \
             '{}/.ci/release' --packages {to}/program {to}/release >{to}/log 2>&1 || \
             {{ cat {to}/log; exit 1; }}; mkdir {to}/debs && mv {to}/release/*.deb {to}/debs/1.deb",
            support::binary().display(),
            env!("CARGO_MANIFEST_DIR"),
        )),
    };
    support::sh(&format!(
        "dpkg-deb -R {to}/debs/1.deb {to}/tree && \
         sed -i 's/^Version: .*/&.2/' {to}/tree/DEBIAN/control && \
         dpkg-deb -Zgzip -z1 -b {to}/tree {to}/debs/2.deb"
    ));
}

/// The `.deb`, with systemd and a container that writes: enabled but not started without a
/// configuration; an upgrade restarts the daemon alone; the removal is refused until nothing is
/// mounted, and then leaves nothing that runs.
#[tokio::test]
async fn a_debian_package_from_the_first_day_to_the_last() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::boot("deb", DEBIAN_12).await;
    let made = tempfile::tempdir().unwrap();
    make_debs(made.path());
    node.put(&made.path().join("debs"), "/root/debs").await;

    let said = node.sh("dpkg --install /root/debs/1.deb 2>&1").await;
    assert_says(&said, &["put your cloud into /var/lib/cinder/dockerdriver/config.json"]);
    let state = "systemctl is-enabled cinder-docker-driver.service cinder-docker-driver.socket; \
                 systemctl is-active cinder-docker-driver.service; true";
    assert_eq!(node.sh(state).await, "enabled\nenabled\ninactive");
    // As at a boot: there is nothing to start, which is no failure.
    node.sh("systemctl start cinder-docker-driver.service cinder-docker-driver.socket").await;
    assert_eq!(node.sh(state).await, "enabled\nenabled\ninactive");
    assert_eq!(node.sh("ls /run/docker/plugins 2>/dev/null; true").await, "");

    node.write_config(&project, json!({})).await;
    node.sh("systemctl enable --now cinder-docker-driver").await;
    let writer = Writer::start(&node).await;
    project.until("data", "in-use").await;
    let (life, before) = (writer.life().await, running(&node).await);
    let lines = writer.assert_writes().await;
    let upgrade = node.sh("dpkg --install /root/debs/2.deb 2>&1");
    tokio::pin!(upgrade);
    loop {
        tokio::select! {
            _ = &mut upgrade => break,
            () = sleep(Duration::from_millis(300)) => {
                assert_eq!(project.status("data").await, "in-use");
            }
        }
    }
    assert!(writer.assert_writes().await > lines);
    assert_eq!(writer.life().await, life);
    assert_ne!(running(&node).await.0, before.0, "the new one runs");

    let said = node.fails("dpkg --remove cinder-docker-driver 2>&1").await;
    assert_says(&said, &["/var/lib/cinder/mount/data\n", "Stop the containers"]);
    writer.assert_writes().await;
    assert_eq!(writer.life().await, life);
    node.sh("docker rm -f writer").await;
    project.until("data", "available").await;
    node.assert_clean().await;
    node.sh("dpkg --remove cinder-docker-driver").await;
    let left = "systemctl list-units --all --plain --no-legend 'cinder-docker-driver*' | \
                grep -v ' not-found '; ls /run/docker/plugins; pgrep cinder-docker; ls /var/lib/cinder/dockerdriver";
    assert_eq!(node.sh(&format!("{left}; true")).await, "config.json\nowes-nothing\nstate");
    node.sh("dpkg --purge cinder-docker-driver").await;
    let left = "find / -xdev -name '*cinder-docker-driver*' -not -path '/root/*' -not -path '/var/cache/*'; ls -d /var/lib/cinder";
    assert_eq!(node.sh(&format!("{left} 2>/dev/null; true")).await, "");
    project.assert_clean().await;
}

/// What a person or a fate breaks; of what `check` then speaks, and how; what it finds; the command
/// that it names; what is typed to mend it.
struct Broken {
    case: &'static str,
    break_it: &'static str,
    what: &'static str,
    level: &'static str,
    found: &'static str,
    mend: &'static str,
    mended: &'static str,
}

/// The config as it was.
const RESTORE: &str = "cp -p /root/config.json $CONFIG";

const BROKEN: &[Broken] = &[
    Broken {
        case: "a password is wrong",
        break_it: "sed -i 's/scenario-password/another/' $CONFIG",
        what: "cloud",
        level: "error",
        found: "does not accept these credentials",
        mend: "correct Username, Password, TenantID",
        mended: RESTORE,
    },
    Broken {
        case: "Keystone is somewhere else",
        break_it: "sed -i 's#127.0.0.1:[0-9]*#127.0.0.1:9#' $CONFIG",
        what: "cloud",
        level: "error",
        found: "no connection to Keystone at 127.0.0.1:9",
        mend: "correct Endpoint",
        mended: RESTORE,
    },
    Broken {
        case: "a comma is missing",
        break_it: "sed -i 's/,$//' $CONFIG",
        what: "config",
        level: "error",
        found: "not valid JSON",
        mend: "edit /var/lib/cinder/dockerdriver/config.json",
        mended: RESTORE,
    },
    Broken {
        case: "a key is misspelt",
        break_it: "sed -i 's/InitiatorIP/IntiatorIP/' $CONFIG",
        what: "config",
        level: "warning",
        found: "did you mean InitiatorIP?",
        mend: "edit /var/lib/cinder/dockerdriver/config.json",
        mended: RESTORE,
    },
    Broken {
        case: "everybody can read the password",
        break_it: "chmod 644 $CONFIG",
        what: "config",
        level: "warning",
        found: "every user of this host may read",
        mend: "chmod 600 /var/lib/cinder/dockerdriver/config.json",
        mended: "chmod 600 /var/lib/cinder/dockerdriver/config.json",
    },
    Broken {
        case: "a tool is missing",
        break_it: "mv /usr/sbin/mkfs.ext4 /root/",
        what: "tools",
        level: "error",
        found: "mkfs.ext4 is not installed",
        mend: "apt-get install e2fsprogs",
        mended: "mv /root/mkfs.ext4 /usr/sbin/",
    },
    Broken {
        case: "iscsid is stopped",
        break_it: "systemctl stop iscsid.socket iscsid.service",
        what: "iscsid",
        level: "warning",
        found: "it does not run",
        mend: "systemctl enable --now iscsid.socket",
        mended: "systemctl enable --now iscsid.socket",
    },
    Broken {
        case: "the host has no initiator name",
        break_it: "rm /etc/iscsi/initiatorname.iscsi",
        what: "initiator",
        level: "error",
        found: "names no initiator",
        mend: "echo \"InitiatorName=$(iscsi-iname)\" >/etc/iscsi/initiatorname.iscsi",
        mended: "echo \"InitiatorName=$(iscsi-iname)\" >/etc/iscsi/initiatorname.iscsi",
    },
    Broken {
        case: "the kernel's modules are gone",
        break_it: "rmmod iscsi_tcp && mv /lib/modules/$(uname -r) /root/modules",
        what: "kernel",
        level: "error",
        found: "no module iscsi_tcp",
        mend: "then reboot",
        // The unit loads what was missing.
        mended: "mv /root/modules /lib/modules/$(uname -r) && \
                 systemctl restart cinder-docker-driver && test -e /sys/module/iscsi_tcp",
    },
    Broken {
        case: "a file is where volumes are mounted",
        break_it: "rm -rf /var/lib/cinder/mount && touch /var/lib/cinder/mount",
        what: "MountPoint",
        level: "error",
        found: "is no directory",
        mend: "mv /var/lib/cinder/mount /var/lib/cinder/mount.old",
        mended: "mv /var/lib/cinder/mount /var/lib/cinder/mount.old",
    },
    Broken {
        case: "volumes are mounted where nobody sees them",
        break_it: "mkdir -m 700 /var/lib/cinder/mount && cd /var/lib/cinder/mount && \
                   mount --bind . . && mount --make-private /var/lib/cinder/mount",
        what: "MountPoint",
        level: "warning",
        found: "on a mount that is not shared",
        mend: "mount --make-rshared /var/lib/cinder/mount",
        mended: "mount --make-rshared /var/lib/cinder/mount",
    },
    Broken {
        case: "the disk of the journal is read-only",
        break_it: "cd $STATE && mount --bind . . && mount -o remount,bind,ro $STATE",
        what: "StateDir",
        level: "error",
        found: "cannot be written to: Read-only file system",
        mend: "mount -o remount,rw",
        mended: "umount $STATE",
    },
    Broken {
        case: "the disk of the journal is full",
        break_it: "truncate -s 4M /root/full && mkfs.ext4 -qm 0 /root/full && \
                   mount /root/full $STATE && chmod 700 $STATE && \
                   ! head -c 4M /dev/zero 2>/dev/null >$STATE/fill",
        what: "StateDir",
        level: "error",
        found: "has no space left",
        mend: "df -h",
        mended: "umount $STATE",
    },
    Broken {
        case: "the plugin is stopped",
        break_it: "systemctl stop cinder-docker-driver.socket cinder-docker-driver.service",
        what: "socket",
        level: "warning",
        found: "nobody listens",
        mend: "systemctl enable --now cinder-docker-driver",
        mended: "systemctl enable --now cinder-docker-driver",
    },
    Broken {
        case: "the plugin hangs",
        break_it: "systemctl kill --signal STOP cinder-docker-driver",
        what: "socket",
        level: "error",
        found: "does not answer",
        mend: "systemctl restart cinder-docker-driver",
        mended: "systemctl restart cinder-docker-driver",
    },
];

/// The findings of `check` that are not as they should be, after its exit code is looked at.
async fn check(node: &Node) -> Vec<Value> {
    let output = node.run("cinder-docker-driver check --json").await;
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let wrong: Vec<Value> = rows.into_iter().filter(|row| row["level"] != "ok").collect();
    let code = i32::from(wrong.iter().any(|row| row["level"] == "error"));
    assert_eq!(output.status.code(), Some(code), "{wrong:?}");
    wrong
}

/// On a good host `check` finds nothing. Whatever breaks, it finds exactly that, and what it says to
/// do mends it.
#[tokio::test]
async fn check_finds_whatever_is_broken() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("checked", DEBIAN_13, &project, json!({})).await;
    let paths = "CONFIG=/var/lib/cinder/dockerdriver/config.json; \
                 STATE=/var/lib/cinder/dockerdriver/state; ";
    node.sh(&format!("{paths} cp -p $CONFIG /root/config.json")).await;
    assert_eq!(check(&node).await, Vec::<Value>::new());
    for Broken { case, break_it, what, level, found, mend, mended } in BROKEN {
        println!("{case}");
        node.sh(&format!("{paths}{break_it}")).await;
        let wrong = check(&node).await;
        let [finding] = wrong.as_slice() else { panic!("{case}: {wrong:#?}") };
        assert_eq!((&finding["what"], &finding["level"]), (&json!(what), &json!(level)), "{case}");
        assert_says(finding["found"].as_str().unwrap(), &[found]);
        assert_says(finding["mend"].as_str().unwrap(), &[mend]);
        node.sh(&format!("{paths}{mended}")).await;
        assert_eq!(check(&node).await, Vec::<Value>::new(), "{case}");
    }
    // All of it is mended: a container gets its volume.
    node.sh("docker run --rm --volume-driver cinder -v data:/data busybox touch /data/file").await;
    node.assert_clean().await;
}
