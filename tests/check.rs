//! `check` finds what is wrong, says which command mends it, and tells nothing else.
//!
//! A host where all is well is put together of real and made parts; each test case breaks one
//! thing of it, and exactly that must be found.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and starts the program"
)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use cinder_docker_driver::cli::{Finding, Findings, Level, examine, mend};
use cinder_docker_driver::host::Paths;
use cinder_docker_driver::sandbox::Behaviour;
use cinder_docker_driver::sandbox::faults::{Action, Canned, Rule};
use serde_json::{Map, Value, json};
use support::{Cloud, binary};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// A host where all is well.
struct Host {
    dir: TempDir,
    config: Map<String, Value>,
    paths: Paths,
    cloud: Cloud,
    daemon: JoinHandle<()>,
}

impl Host {
    async fn new() -> Self {
        let cloud = Cloud::start().await;
        let dir = tempfile::tempdir().unwrap();
        let root = |name: &str| dir.path().join(name);
        let mut config = cloud.sandbox.config();
        for key in ["MountPoint", "StateDir"] {
            fs::create_dir(root(key)).unwrap();
            fs::set_permissions(root(key), fs::Permissions::from_mode(0o700)).unwrap();
            config.insert(key.into(), json!(root(key)));
        }
        config.insert("InitiatorIP".into(), json!("127.0.0.1"));
        let paths = Paths {
            sys: root("sys"),
            proc: root("proc"),
            etc: root("etc"),
            iscsi_db: Some(root("etc/iscsi")),
            tools: Some(root("tools")),
            ..Paths::default()
        };
        let daemon = daemon(&root("cinder.sock"), ACTIVATED);
        let host = Self { config, paths, cloud, daemon, dir };
        host.write("sys/module/iscsi_tcp/refcnt", "0\n");
        host.write("sys/fs/selinux/enforce", "0\n");
        host.write(
            "proc/net/unix",
            "0: 00000002 00000000 00010000 0001 01 1 @ISCSIADM_ABSTRACT_NAMESPACE\n",
        );
        host.write(
            "proc/self/mountinfo",
            "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n",
        );
        host.write("proc/filesystems", "nodev\tsysfs\n\text4\n");
        host.write("etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.1993-08.org.debian:01:1\n");
        host.write("proc/sys/kernel/random/boot_id", "b\n");
        host.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("cinder.sock")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A tool of this host, in place of the system's.
    fn tool(&self, name: &str, script: &str) {
        self.write(&format!("tools/{name}"), &format!("#!/bin/sh\n{script}\n"));
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.path(&format!("tools/{name}")), mode).unwrap();
    }

    /// A directory below MountPoint that has been there for a day.
    fn old_directory(&self, name: &str, file: Option<&str>) -> PathBuf {
        let path = self.path("MountPoint").join(name);
        fs::create_dir(&path).unwrap();
        if let Some(file) = file {
            fs::write(path.join(file), "kept").unwrap();
        }
        let day_ago = SystemTime::now() - Duration::from_secs(24 * 3600);
        fs::File::open(&path).unwrap().set_modified(day_ago).unwrap();
        path
    }

    /// A journal entry as a crash may leave it.
    fn journal(&self, id: &str, more: &Value) {
        let mut entry = json!({
            "version": 1, "volume_id": id, "names": ["v"], "facts": null, "attachment": null,
            "device": null, "mount": null, "formatting": null, "references": [],
            "boot_id": "b", "last_error": null,
        });
        for (key, value) in more.as_object().unwrap() {
            entry[key] = value.clone();
        }
        self.write(&format!("StateDir/volumes/{id}.json"), &entry.to_string());
    }

    /// open-iscsi's record of a target on this machine, with a first line of its own.
    fn record(&self, target: &str, mark: &str) {
        self.write(
            &format!("etc/iscsi/nodes/{target}/127.0.0.1,3260"),
            &format!("{mark}node.name = {target}\n"),
        );
    }

    /// A session without a disk, as sysfs has it, and its record.
    fn session(&self, id: u32, target: &str, mark: &str) {
        let session = format!("sys/devices/platform/host{id}/session{id}");
        fs::create_dir_all(self.path(&session)).unwrap();
        let class = format!("sys/class/iscsi_session/session{id}");
        self.write(&format!("{class}/targetname"), &format!("{target}\n"));
        self.write(&format!("{class}/state"), "LOGGED_IN\n");
        std::os::unix::fs::symlink(self.path(&session), self.path(&format!("{class}/device")))
            .unwrap();
        let connection = format!("sys/class/iscsi_connection/connection{id}:0");
        self.write(&format!("{connection}/persistent_address"), "127.0.0.1\n");
        self.write(&format!("{connection}/persistent_port"), "3260\n");
        self.record(target, mark);
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.config.insert(key.into(), value.into());
    }

    /// Writes the config, unless a test has written another.
    fn config_file(&self) -> PathBuf {
        let path = self.path("config.json");
        if !path.exists() {
            fs::write(&path, Value::Object(self.config.clone()).to_string()).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        path
    }

    fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        let mut behaviour = self.cloud.sandbox.behaviour();
        change(&mut behaviour);
        self.cloud.sandbox.set_behaviour(behaviour);
    }

    async fn examine(&self) -> Findings {
        examine(&self.config_file(), &self.socket(), &self.paths).await
    }

    /// The program itself, on the real host.
    async fn run(&self, more: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.arg("--config").arg(self.config_file()).arg("--socket").arg(self.socket());
        command.arg("check").args(more);
        // The cloud that it asks runs on this very thread.
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.daemon.abort();
    }
}

const ACTIVATED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 29\r\nConnection: close\r\n\r\n\
                         {\"Implements\":[\"VolumeDriver\"]}";

/// Somebody who answers so on the socket, whatever is asked; with nothing, hangs up.
fn daemon(socket: &Path, answer: &'static str) -> JoinHandle<()> {
    fs::remove_file(socket).ok();
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // The request is short, and comes in one piece.
            let read = stream.read(&mut [0; 1024]).await.unwrap();
            assert!(read > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
}

/// How to break a host; what is said then: of what, how grave, the finding, the mend.
type Case = (&'static str, fn(&mut Host), &'static str, Level, &'static str, &'static str);

const CASES: &[Case] = &[
    (
        "a config that is missing a member",
        |host| host.set("Endpoint", ""),
        "config",
        Level::Error,
        "the address of Keystone",
        "edit ",
    ),
    (
        "a key that nobody knows",
        |host| host.set("DefaultVolSize", 2),
        "config",
        Level::Warning,
        "did you mean DefaultVolSz?",
        "edit ",
    ),
    (
        "a config that everybody may read",
        |host| {
            fs::set_permissions(host.config_file(), fs::Permissions::from_mode(0o644)).unwrap();
        },
        "config",
        Level::Warning,
        "every user of this host may read",
        "chmod 600 /",
    ),
    (
        "a CA file that is none",
        |host| {
            host.write("ca.pem", "no certificate\n");
            host.set("CACert", host.path("ca.pem").to_str().unwrap());
        },
        "cloud",
        Level::Error,
        "ca.pem",
        "correct CACert",
    ),
    (
        "a CA file that is missing",
        |host| host.set("CACert", "/no/such/ca.pem"),
        "config",
        Level::Error,
        "/no/such/ca.pem",
        "edit ",
    ),
    (
        "a wrong password",
        |host| host.set("Password", "hunter2"),
        "cloud",
        Level::Error,
        "does not accept these credentials",
        "correct Username, Password",
    ),
    (
        "an endpoint where nobody is",
        |host| host.set("Endpoint", "http://127.0.0.1:9/v3"),
        "cloud",
        Level::Error,
        "127.0.0.1:9",
        "correct Endpoint",
    ),
    (
        "a region that there is not",
        |host| host.set("Region", "RegionNine"),
        "cloud",
        Level::Error,
        "RegionNine",
        "correct Region",
    ),
    (
        "a Cinder that forbids",
        |host| {
            let answer = Action::Answer(Canned::status(403));
            host.cloud.fail(Rule::on("list-volumes", answer).forever());
        },
        "cinder",
        Level::Error,
        "not allowed",
        "openstack role add",
    ),
    (
        "no initiator name",
        |host| fs::remove_file(host.path("etc/iscsi/initiatorname.iscsi")).unwrap(),
        "initiator",
        Level::Error,
        "names no initiator",
        "iscsi-iname",
    ),
    (
        "an initiator name that is none",
        |host| host.write("etc/iscsi/initiatorname.iscsi", "InitiatorName=node-1\n"),
        "initiator",
        Level::Error,
        "node-1",
        "iscsi-iname",
    ),
    (
        "an initiator name of the image",
        |host| {
            let file = fs::File::options()
                .write(true)
                .open(host.path("etc/iscsi/initiatorname.iscsi"))
                .unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(400 * 24 * 3600)).unwrap();
        },
        "initiator",
        Level::Warning,
        "copied with an image",
        "iscsi-iname",
    ),
    (
        "an address of another host",
        |host| host.set("InitiatorIP", "192.0.2.77"),
        "initiator",
        Level::Warning,
        "192.0.2.77",
        "InitiatorIP",
    ),
    (
        "an interface that there is not",
        |host| host.set("InitiatorIFace", "nine0"),
        "initiator",
        Level::Warning,
        "nine0",
        "InitiatorIFace",
    ),
    (
        "no iscsid",
        |host| host.write("proc/net/unix", ""),
        "iscsid",
        Level::Warning,
        "does not run",
        "systemctl enable --now iscsid",
    ),
    (
        "a state directory below a file",
        |host| {
            host.write("file", "");
            host.set("StateDir", host.path("file/state").to_str().unwrap());
        },
        "StateDir",
        Level::Error,
        "cannot be used",
        "move away",
    ),
    (
        "a state directory that cannot be written to",
        |host| host.set("StateDir", "/proc/sys/state"),
        "StateDir",
        Level::Error,
        "cannot be written to",
        "findmnt",
    ),
    (
        "a state directory that others may enter",
        |host| {
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(host.path("StateDir"), mode).unwrap();
        },
        "StateDir",
        Level::Warning,
        "mode 0755",
        "chmod 700",
    ),
    (
        "a state directory in memory",
        |host| {
            let line = format!(
                "22 21 0:40 / {} rw shared:2 - tmpfs tmpfs rw\n",
                host.path("StateDir").display()
            );
            let root = "21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n";
            host.write("proc/self/mountinfo", &format!("{root}{line}"));
        },
        "StateDir",
        Level::Warning,
        "is on tmpfs",
        "local disk",
    ),
    (
        "a MountPoint that is a file",
        |host| {
            fs::remove_dir(host.path("MountPoint")).unwrap();
            host.write("MountPoint", "");
        },
        "MountPoint",
        Level::Error,
        "is no directory",
        "mv ",
    ),
    (
        "mounts that nobody else sees",
        |host| {
            host.write("proc/self/mountinfo", "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
        },
        "MountPoint",
        Level::Warning,
        "not shared",
        "mount --make-rshared /",
    ),
    (
        "a clock that is a little wrong",
        |host| host.behave(|cloud| cloud.clock_ahead = 90),
        "clock",
        Level::Warning,
        "s behind the cloud's",
        "timedatectl set-ntp true",
    ),
    (
        "a clock that is very wrong",
        |host| host.behave(|cloud| cloud.clock_ahead = -3600),
        "clock",
        Level::Error,
        "s ahead of the cloud's",
        "timedatectl set-ntp true",
    ),
    (
        "a quota that is used up",
        |host| host.behave(|cloud| cloud.quotas.volumes = 0),
        "quota",
        Level::Warning,
        "0 of 0 volumes",
        "larger quota",
    ),
    (
        "a quota without room for one more volume",
        |host| {
            host.behave(|cloud| cloud.quotas.gigabytes = 3);
            host.set("DefaultVolSz", 4);
        },
        "quota",
        Level::Warning,
        "no volume of the default size",
        "larger quota",
    ),
    (
        "Failover on a cloud that is too old for it",
        |host| {
            // From before 3.44: without a version document nothing is known to be there.
            let none = Action::Answer(Canned::status(404));
            host.cloud.fail(Rule::on("volume-versions", none).forever());
            host.set("Failover", "fast");
        },
        "failover",
        Level::Error,
        "needs microversion 3.44",
        "remove Failover",
    ),
    (
        "an initiator name out of a manual",
        |host| {
            host.write(
                "etc/iscsi/initiatorname.iscsi",
                "InitiatorName=iqn.2001-04.com.example:host1\n",
            );
        },
        "initiator",
        Level::Error,
        "example of the documentation",
        "iscsi-iname",
    ),
    (
        "a kernel without the filesystem",
        |host| {
            host.write("proc/filesystems", "nodev\tsysfs\n");
            host.tool("modprobe", "exit 1");
        },
        "kernel",
        Level::Error,
        "no module ext4",
        "DefaultFilesystem",
    ),
    (
        "an empty directory of no volume",
        |host| drop(host.old_directory("gone", None)),
        "leftovers",
        Level::Warning,
        "MountPoint/gone is empty",
        "rmdir /",
    ),
    (
        "files where a volume should be",
        |host| drop(host.old_directory("bare", Some("x"))),
        "leftovers",
        Level::Warning,
        "holds files, and no volume is mounted there",
        "move away what is needed",
    ),
    (
        "a mount that nobody knows",
        |host| {
            let root = "21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n";
            let at = host.path("MountPoint").join("strange");
            let line = format!("30 21 8:32 / {} rw shared:9 - ext4 /dev/sdc rw\n", at.display());
            host.write("proc/self/mountinfo", &format!("{root}{line}"));
        },
        "leftovers",
        Level::Warning,
        "/dev/sdc is mounted at",
        "umount /",
    ),
    (
        "a journal entry that cannot be read",
        |host| host.write("StateDir/volumes/7c9e6679-7425-40de-944b-e07fc1f90ae7.json", "{"),
        "leftovers",
        Level::Warning,
        "cannot be used",
        "mv /",
    ),
    (
        "a volume that is held here and is not there any more",
        |host| {
            host.journal(
                "7c9e6679-7425-40de-944b-e07fc1f90ae7",
                &json!({ "device": {
                    "type": "local", "device_path": "/dev/loop9", "taken": true } }),
            );
        },
        "leftovers",
        Level::Warning,
        "not in the project any more",
        "cinder-docker-driver status",
    ),
    (
        "a session that no entry speaks of",
        |host| {
            host.session(3, "iqn.x:left", "# cinder-docker-driver boot=b\n");
        },
        "leftovers",
        Level::Warning,
        "was opened by this driver, and no journal entry",
        "iscsiadm -m node -T iqn.x:left -p 127.0.0.1:3260 --logout",
    ),
    (
        "a record that nothing needs",
        |host| host.record("iqn.x:left", "# cinder-docker-driver boot=an-earlier-one\n"),
        "leftovers",
        Level::Warning,
        "made of iqn.x:left at 127.0.0.1:3260; no session and no journal entry",
        "iscsiadm -m node -T iqn.x:left -p 127.0.0.1:3260 -o delete",
    ),
    (
        "an SELinux that enforces",
        |host| host.write("sys/fs/selinux/enforce", "1"),
        "SELinux",
        Level::Warning,
        "enforces",
        "context=",
    ),
    (
        "nobody on the socket",
        |host| {
            fs::remove_file(host.socket()).unwrap();
            drop(std::os::unix::net::UnixListener::bind(host.socket()).unwrap());
        },
        "socket",
        Level::Warning,
        "nobody listens",
        "systemctl enable --now cinder-docker-driver",
    ),
    (
        "a daemon that hangs up",
        |host| host.daemon = daemon(&host.socket(), ""),
        "socket",
        Level::Error,
        "hangs up without an answer",
        "systemctl restart cinder-docker-driver",
    ),
    (
        "a daemon that hangs",
        |host| {
            host.daemon.abort();
            fs::remove_file(host.socket()).unwrap();
            // It is in the kernel's queue, and nobody accepts it.
            std::mem::forget(std::os::unix::net::UnixListener::bind(host.socket()).unwrap());
        },
        "socket",
        Level::Error,
        "does not answer within",
        "systemctl restart cinder-docker-driver",
    ),
    (
        "another plugin on the socket",
        |host| {
            let other = "HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n{\"Implements\":[\"authz\"]}";
            host.daemon = daemon(&host.socket(), other);
        },
        "socket",
        Level::Error,
        "is no volume driver",
        "systemctl restart cinder-docker-driver",
    ),
];

#[tokio::test]
async fn a_host_where_all_is_well_is_told_so() {
    let host = Host::new().await;
    let findings = host.examine().await;
    assert_eq!(findings.worst(), Level::Ok, "{findings:#?}");
    let what: Vec<_> = findings.all().iter().map(|finding| finding.what).collect();
    for looked_at in [
        "config",
        "tools",
        "initiator",
        "host id",
        "iscsid",
        "kernel",
        "StateDir",
        "MountPoint",
        "identity",
        "clock",
        "catalog",
        "quota",
        "leftovers",
        "cinder",
        "socket",
    ] {
        assert!(what.contains(&looked_at), "{looked_at} is not in {what:?}");
    }
}

#[tokio::test]
async fn each_thing_that_is_wrong_is_found_alone_and_with_what_mends_it() {
    for (case, break_it, what, level, found, mend) in CASES {
        let mut host = Host::new().await;
        break_it(&mut host);
        let findings = host.examine().await;
        let wrong: Vec<_> =
            findings.all().iter().filter(|finding| finding.level != Level::Ok).collect();
        let [finding] = wrong.as_slice() else { panic!("{case}: {wrong:#?}") };
        assert_eq!((finding.what, finding.level), (*what, *level), "{case}: {finding:?}");
        assert!(finding.found.contains(found), "{case}: {finding:?}");
        let command = finding.mend.as_deref().unwrap_or_default();
        assert!(command.contains(mend), "{case}: {finding:?}");
        let told = format!("{:?}", findings.all());
        for secret in ["hunter2", host.config["Password"].as_str().unwrap()] {
            assert!(!told.contains(secret), "{case}: {told}");
        }
    }
}

fn wrong(findings: &Findings) -> Vec<&Finding> {
    findings.all().iter().filter(|finding| finding.level != Level::Ok).collect()
}

#[tokio::test]
async fn a_host_with_the_same_initiator_name_is_found_by_what_it_told_cinder() {
    let host = Host::new().await;
    let ours = "iqn.1993-08.org.debian:01:1";
    for (name, initiator) in [("other", "iqn.1993-08.org.debian:01:2"), ("twin", ours)] {
        let connector = json!({ "host": format!("host-of-{name}"), "initiator": initiator });
        let metadata = json!({ "docker.connector": connector.to_string() });
        host.cloud.create(name, json!({ "metadata": metadata })).await;
    }
    let findings = host.examine().await;
    let [finding] = wrong(&findings)[..] else { panic!("{findings:#?}") };
    assert_eq!((finding.what, finding.level), ("initiator", Level::Error));
    assert!(finding.found.contains("host host-of-twin has the same"), "{finding:?}");
}

#[tokio::test]
async fn what_cinder_says_this_host_has_and_the_journal_does_not_is_found() {
    let mut host = Host::new().await;
    host.set("ConnectorHost", "node-1");
    let node = support::Node::start_with(&host.cloud, json!({ "ConnectorHost": "node-1" })).await;
    node.create("v", json!({})).await.unwrap();
    node.mount("v", "c").await.unwrap();
    let findings = host.examine().await;
    let [finding] = wrong(&findings)[..] else { panic!("{findings:#?}") };
    assert!(finding.found.contains("(node-1) has v ("), "{finding:?}");
    assert_eq!(finding.mend.as_deref(), Some("cinder-docker-driver release v"));
    node.unmount("v", "c").await.unwrap();
}

#[tokio::test]
async fn a_portal_that_a_volume_needs_must_be_reachable() {
    let host = Host::new().await;
    let id = host.cloud.create("v", json!({})).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let portal = listener.local_addr().unwrap().to_string();
    let path = json!({ "portal": portal, "iqn": "iqn.x:1", "lun": 1, "opened_session": false,
                       "wrote_node": false });
    let device = json!({ "type": "iscsi", "paths": [path], "wwid": null, "boot_id": "b" });
    host.journal(&id, &json!({ "device": device }));
    let findings = host.examine().await;
    assert_eq!(wrong(&findings), Vec::<&Finding>::new());
    assert!(findings.all().iter().any(|f| f.what == "portals" && f.found.contains(&portal)));
    drop(listener);
    let findings = host.examine().await;
    let [finding] = wrong(&findings)[..] else { panic!("{findings:#?}") };
    assert_eq!((finding.what, finding.level), ("portals", Level::Error));
    assert!(finding.found.contains(&portal), "{finding:?}");
}

#[tokio::test]
async fn fix_mends_what_is_safe_says_so_and_touches_no_data() {
    let host = Host::new().await;
    let config = host.config_file();
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    set(&config, 0o644);
    set(&host.path("MountPoint"), 0o755);
    fs::remove_dir(host.path("StateDir")).unwrap();
    let empty = host.old_directory("empty", None);
    let bare = host.old_directory("bare", Some("x"));
    let young = host.path("MountPoint/young");
    fs::create_dir(&young).unwrap();
    host.write("proc/net/unix", "");
    let listens =
        format!("echo @ISCSIADM_ABSTRACT_NAMESPACE >{}", host.path("proc/net/unix").display());
    host.tool("systemctl", &format!("echo \"$@\" >>{}; {listens}", host.path("called").display()));

    let mut told = Vec::new();
    mend(&config, &host.paths, &mut told).await.unwrap();
    let told = String::from_utf8(told).unwrap();
    let mended: Vec<_> = told.lines().filter_map(|line| line.strip_prefix("mended   ")).collect();
    assert_eq!(mended.len(), 5, "{told}");
    for what in ["chmod 600", "StateDir", "MountPoint root's alone", "rmdir", "iscsid.socket"] {
        assert!(mended.iter().any(|line| line.contains(what)), "{what}: {told}");
    }
    assert_eq!(mode(&config), 0o600);
    assert_eq!((mode(&host.path("StateDir")), mode(&host.path("MountPoint"))), (0o700, 0o700));
    assert_eq!(fs::read_to_string(host.path("called")).unwrap(), "enable --now iscsid.socket\n");
    assert!(!empty.exists() && young.exists());
    assert_eq!(fs::read_to_string(bare.join("x")).unwrap(), "kept");
    let findings = host.examine().await;
    let [finding] = wrong(&findings)[..] else { panic!("{findings:#?}") };
    assert!(finding.found.contains("bare holds files"), "only a person can mend it: {finding:?}");

    let mut told = Vec::new();
    mend(&config, &host.paths, &mut told).await.unwrap();
    assert_eq!(String::from_utf8(told).unwrap(), "nothing to mend\n");
}

/// Sessions and records: ours that no entry speaks of, of this boot and of an earlier one; one that an
/// entry speaks of; and somebody else's.
#[tokio::test]
async fn fix_ends_sessions_of_ours_that_were_left_and_no_others() {
    let ours = "# cinder-docker-driver boot=b\n";
    let earlier = "# cinder-docker-driver boot=an-earlier-one\n";
    let host = Host::new().await;
    host.session(1, "iqn.x:left", ours);
    host.session(2, "iqn.x:known", ours);
    host.session(3, "iqn.x:of-somebody", "");
    host.session(4, "iqn.x:of-another-boot", earlier);
    for (name, mark) in [("iqn.x:idle", earlier), ("iqn.x:idle-known", ours), ("iqn.x:idle-of", "")]
    {
        host.record(name, mark);
    }
    let path = |iqn| {
        json!({ "portal": "127.0.0.1:3260", "iqn": iqn, "lun": 1, "opened_session": true,
                "wrote_node": true })
    };
    host.journal(
        "7c9e6679-7425-40de-944b-e07fc1f90ae7",
        &json!({ "device": { "type": "iscsi", "wwid": null, "boot_id": "b",
                             "paths": [path("iqn.x:known"), path("iqn.x:idle-known")] } }),
    );
    let at = host.dir.path().display();
    host.tool(
        "iscsiadm",
        &format!(
            "echo \"$*\" >>{at}/called; while [ \"$1\" != -r ]; do shift; done
             rm -r {at}/sys/devices/platform/host$2 {at}/sys/class/iscsi_session/session$2"
        ),
    );
    let mut told = Vec::new();
    mend(&host.config_file(), &host.paths, &mut told).await.unwrap();
    let told = String::from_utf8(told).unwrap();
    assert_eq!(
        told,
        "mended   end iSCSI session 1 with iqn.x:left\n\
         mended   remove the record of iqn.x:idle at 127.0.0.1:3260\n"
    );
    let called = fs::read_to_string(host.path("called")).unwrap();
    assert_eq!(called.lines().count(), 1, "{called}");
    let mut left: Vec<String> = fs::read_dir(host.path("etc/iscsi/nodes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let kept = ["idle-known", "idle-of", "known", "of-another-boot", "of-somebody"];
    assert_eq!(left, kept.map(|name| format!("iqn.x:{name}")));
    assert_eq!(fs::read_dir(host.path("sys/class/iscsi_session")).unwrap().count(), 3);

    // A session that cannot be ended is told, and kept.
    host.session(1, "iqn.x:left", ours);
    host.tool("iscsiadm", "echo it does not work >&2; exit 1");
    let mut told = Vec::new();
    mend(&host.config_file(), &host.paths, &mut told).await.unwrap();
    let told = String::from_utf8(told).unwrap();
    assert!(told.starts_with("failed   end iSCSI session 1 with iqn.x:left: cannot log"), "{told}");
    assert!(host.path("etc/iscsi/nodes/iqn.x:left").exists());
}

#[tokio::test]
async fn fix_follows_no_link_and_says_what_it_could_not_mend() {
    let host = Host::new().await;
    let victim = host.path("victim");
    fs::create_dir(&victim).unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_dir(host.path("StateDir")).unwrap();
    std::os::unix::fs::symlink(&victim, host.path("StateDir")).unwrap();
    host.write("proc/net/unix", "");
    host.tool("systemctl", "echo no such unit >&2; exit 5");
    let mut told = Vec::new();
    mend(&host.config_file(), &host.paths, &mut told).await.unwrap();
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("failed   make ") && told.contains("StateDir"), "{told}");
    assert!(told.contains("failed   systemctl") && told.contains("no such unit"), "{told}");
    let mode = fs::metadata(&victim).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o755);
}

#[tokio::test]
async fn a_check_changes_nothing() {
    let host = Host::new().await;
    let listing = |host: &Host| {
        support::sh(&format!("cd {} && ls -lRA --time-style=full-iso .", host.dir.path().display()))
    };
    host.config_file();
    let (before, volumes) = (listing(&host), host.cloud.volumes().await);
    host.examine().await;
    assert_eq!((before, volumes), (listing(&host), host.cloud.volumes().await));
    let calls = host.cloud.sandbox.faults().requests();
    let effects: Vec<_> =
        calls.iter().filter(|c| c.method != "GET" && c.call != "authenticate").collect();
    assert!(effects.is_empty(), "{effects:?}");
}

#[tokio::test]
async fn an_error_is_exit_code_1_and_json_says_the_same() {
    let mut host = Host::new().await;
    host.set("Password", "hunter2");
    let shown = host.run(&[]).await;
    assert_eq!(shown.status.code(), Some(1));
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("ERROR    cloud: ") && text.contains("\n         → "), "{text}");
    assert!(text.ends_with("It will not work until the errors are mended.\n"), "{text}");
    let output = host.run(&["--json"]).await;
    assert_eq!(output.status.code(), Some(1));
    let rows: Vec<Map<String, Value>> = serde_json::from_slice(&output.stdout).unwrap();
    for row in &rows {
        let keys: Vec<_> = row.keys().map(String::as_str).collect();
        assert_eq!(keys, ["found", "level", "mend", "what"], "{row:?}");
    }
    assert!(rows.iter().any(|row| row["what"] == "cloud" && row["level"] == "error"), "{rows:?}");
    for told in [text.as_bytes(), &shown.stderr, &output.stdout, &output.stderr] {
        assert!(!String::from_utf8_lossy(told).contains("hunter2"));
    }
}

#[tokio::test]
async fn a_missing_config_is_told_with_one_that_would_do() {
    let host = Host::new().await;
    let missing = host.path("none.json");
    let findings = examine(&missing, &host.socket(), &host.paths).await;
    let config = findings.all().iter().find(|finding| finding.what == "config").unwrap();
    assert!(config.found.contains("\"Endpoint\""), "{config:?}");
    assert!(findings.all().iter().any(|f| f.what == "tools"), "the rest is looked at all the same");
}

/// The real program where the directory of the tools is empty.
#[tokio::test]
async fn a_missing_tool_is_named_with_its_package() {
    let host = Host::new().await;
    let line = format!(
        "mount -t tmpfs none /usr/sbin && exec {} --config {} --socket {} check --json",
        binary().display(),
        host.config_file().display(),
        host.socket().display()
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &line]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let missing = rows
        .iter()
        .find(|row| row["what"] == "tools" && row["found"].as_str().unwrap().contains("mkfs.ext4"))
        .unwrap_or_else(|| panic!("{rows:?}"));
    assert_eq!(missing["level"], "error");
    let mend = missing["mend"].as_str().unwrap();
    assert!(mend.starts_with("apt-get install e2fsprogs"), "{mend}");
    assert_eq!(output.status.code(), Some(1));
}

/// The real program where the disk of the journal is full, or has no inodes left.
#[tokio::test]
async fn a_full_disk_is_found() {
    let host = Host::new().await;
    let state = host.path("StateDir");
    for (options, fill, lacks) in [
        ("size=2m", "head -c 2M /dev/zero >fill || true", "no space left"),
        ("nr_inodes=3", "touch 1 2", "no inodes left"),
    ] {
        let line = format!(
            "mount -t tmpfs -o mode=700,{options} none {state} && (cd {state}; {fill}) && \
             exec {program} --config {config} --socket {socket} check --json",
            state = state.display(),
            program = binary().display(),
            config = host.config_file().display(),
            socket = host.socket().display()
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &line]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let full = rows
            .iter()
            .find(|row| row["what"] == "StateDir" && row["level"] == "error")
            .unwrap_or_else(|| panic!("{rows:?}"));
        assert!(full["found"].as_str().unwrap().ends_with(lacks), "{full}");
        assert!(full["mend"].as_str().unwrap().starts_with("df -h /"), "{full}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[tokio::test]
async fn without_root_it_says_what_it_could_not_look_at() {
    let host = Host::new().await;
    let config = host.config_file();
    // Nobody may read the config of another, but everything above it.
    for path in [host.dir.path(), &config] {
        std::os::unix::fs::chown(path, Some(65534), None).unwrap();
    }
    let program = readable_copy(&host.path("driver"));
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    command.arg("--config").arg(&config).arg("--socket").arg(host.socket());
    command.args(["check", "--json"]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let level = |what: &str| rows.iter().find(|row| row["what"] == what).map(|row| &row["level"]);
    assert_eq!(level("config"), Some(&json!("ok")), "{rows:?}");
    assert_eq!(level("cinder"), Some(&json!("ok")), "{rows:?}");
    assert_eq!(level("StateDir"), Some(&json!("skipped")), "{rows:?}");
    let skipped = rows.iter().find(|row| row["level"] == "skipped").unwrap();
    assert_eq!(skipped["mend"], "run this command as root");
}

/// The program where everybody may start it.
fn readable_copy(to: &Path) -> PathBuf {
    fs::copy(binary(), to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
    to.to_owned()
}
