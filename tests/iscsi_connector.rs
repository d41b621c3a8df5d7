//! The iSCSI connector against a real target (tgtd, one for each test, on ports of its own) and
//! the kernel's real initiator. Needs root, tgt, open-iscsi and a kernel with iscsi_tcp; elsewhere
//! every test says that it was skipped.

#![expect(clippy::disallowed_methods, reason = "tests start the tools themselves")]
#![expect(clippy::unwrap_used, reason = "these are tests")]

#[path = "support/initiator.rs"]
mod initiator;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cinder_docker_driver::connection_info::{ConnectionData, ConnectionInfo};
use cinder_docker_driver::error_chain::Chain;
use cinder_docker_driver::host::attach::{Attacher, DeviceRecord, DeviceState};
use cinder_docker_driver::host::identity::HostIdentity;
use cinder_docker_driver::host::{Exec, HostError, Paths};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

const MIB: u64 = 1024 * 1024;
const SIZE: u64 = 64 * MIB;
const USER: &str = "chapuser";
const PASSWORD: &str = "chap # secret";

/// One at a time: they share iscsid, and one of them stops it.
static TURN: Mutex<()> = Mutex::const_new(());

/// A tgtd with one target; LUN 1 and 2 are disks of `SIZE` bytes.
struct Target {
    daemon: Child,
    control: String,
    port: u16,
    iqn: String,
    directory: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

fn run(tool: &str, args: &[&str]) -> Output {
    Command::new(tool).args(args).stdin(Stdio::null()).output().unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Target {
    /// `None`, loudly, where the real thing is not there.
    async fn start(test: &str) -> Option<Self> {
        let turn = TURN.lock().await;
        if !initiator::is_here(test) {
            return None;
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = std::process::id() * 32 + NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().unwrap();
        let (control, port) = ((id % 30_000 + 100).to_string(), free_port());
        let daemon = start_tgtd(&control, port);
        let target = Self {
            daemon,
            control,
            port,
            iqn: format!("iqn.2010-10.example.test:volume-{}", uuid::Uuid::new_v4()),
            directory,
            _turn: turn,
        };
        target.publish();
        Some(target)
    }

    fn publish(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.tgtadm(&["--op", "show", "--mode", "sys"]).status.success() {
            assert!(Instant::now() < deadline, "tgtd does not answer");
            std::thread::yield_now();
        }
        self.must(&["--op", "new", "--mode", "target", "--tid", "1", "-T", &self.iqn]);
        for lun in [1, 2] {
            self.add_lun(lun);
        }
        self.must(&["--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"]);
        let new = ["--op", "new", "--mode", "account", "--user", USER, "--password", PASSWORD];
        self.must(&new);
        self.must(&["--op", "bind", "--mode", "account", "--tid", "1", "--user", USER]);
    }

    fn disk(&self, lun: u64) -> PathBuf {
        self.directory.path().join(format!("disk{lun}"))
    }

    fn add_lun(&self, lun: u64) {
        let disk = self.disk(lun);
        if !disk.exists() {
            File::create(&disk).unwrap().set_len(SIZE).unwrap();
        }
        let (lun, disk) = (lun.to_string(), disk.to_str().unwrap());
        let new = ["--op", "new", "--mode", "logicalunit", "--tid", "1"];
        self.must(&[&new[..], &["--lun", &lun, "-b", disk]].concat());
    }

    fn tgtadm(&self, args: &[&str]) -> Output {
        run("tgtadm", &[&["-C", &self.control, "--lld", "iscsi"], args].concat())
    }

    fn must(&self, args: &[&str]) {
        let output = self.tgtadm(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn portal(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn data(&self, lun: u64) -> Value {
        json!({
            "target_discovered": false,
            "target_portal": self.portal(),
            "target_iqn": self.iqn,
            "target_lun": lun,
            "volume_id": self.iqn.split("volume-").nth(1).unwrap(),
            "auth_method": "CHAP",
            "auth_username": USER,
            "auth_password": PASSWORD,
            "encrypted": false,
            "qos_specs": null,
            "access_mode": "rw",
        })
    }

    fn info(&self, lun: u64, changes: &[(&str, Value)]) -> ConnectionInfo {
        let mut data = self.data(lun);
        for (key, value) in changes {
            data[*key] = value.clone();
        }
        let Value::Object(data) = data else { unreachable!() };
        ConnectionInfo { driver_volume_type: "iscsi".into(), data: ConnectionData(data) }
    }

    fn sessions(&self) -> Vec<PathBuf> {
        fs::read_dir("/sys/class/iscsi_session")
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .filter(|session| {
                fs::read_to_string(session.join("targetname")).is_ok_and(|n| n.trim() == self.iqn)
            })
            .collect()
    }

    fn records(&self) -> Vec<PathBuf> {
        ["/etc/iscsi/nodes", "/var/lib/iscsi/nodes"]
            .iter()
            .map(|nodes| Path::new(nodes).join(&self.iqn))
            .filter(|target| target.exists())
            .collect()
    }

    fn assert_nothing_left(&self) {
        assert!(self.sessions().is_empty(), "a session is left: {:?}", self.sessions());
        assert!(self.records().is_empty(), "a node record is left: {:?}", self.records());
    }

    /// What an administrator does by hand: no mark of ours anywhere.
    fn log_in_by_hand(&self) {
        let node = ["-m", "node", "-T", &self.iqn, "-p", &self.portal()];
        let update = |key: &str, value: &str| {
            let op = ["--op", "update", "-n", key, "-v", value];
            assert!(run("iscsiadm", &[&node[..], &op].concat()).status.success());
        };
        assert!(run("iscsiadm", &[&node[..], &["--op", "new"]].concat()).status.success());
        update("node.session.auth.authmethod", "CHAP");
        update("node.session.auth.username", USER);
        update("node.session.auth.password", PASSWORD);
        update("node.session.scan", "manual");
        assert!(run("iscsiadm", &[&node[..], &["--login"]].concat()).status.success());
    }

    fn log_out_by_hand(&self) {
        run("iscsiadm", &["-m", "node", "-T", &self.iqn, "--logout"]);
        run("iscsiadm", &["-m", "node", "-T", &self.iqn, "--op", "delete"]);
    }
}

fn start_tgtd(control: &str, port: u16) -> Child {
    Command::new("tgtd")
        .args(["-f", "-C", control, "--iscsi", &format!("portal=127.0.0.1:{port}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Drop for Target {
    fn drop(&mut self) {
        // Only a test that failed leaves something.
        if !self.sessions().is_empty() || !self.records().is_empty() {
            self.log_out_by_hand();
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for end in ["", ".lock"] {
            let _ = fs::remove_file(format!("/var/run/tgtd/socket.{}{end}", self.control));
        }
    }
}

fn attacher() -> Attacher {
    let paths = Paths::default();
    let exec = Exec::new(&paths);
    let identity = HostIdentity {
        initiator: None,
        ip: None,
        host: "test".into(),
        uuid: uuid::Uuid::nil(),
        iscsi_iface: None,
    };
    Attacher::new(paths, exec, &identity)
}

/// What a restart leaves: the journal's text.
fn reloaded(record: &DeviceRecord) -> DeviceRecord {
    serde_json::from_str(&serde_json::to_string(record).unwrap()).unwrap()
}

fn disk_sequence(device: &Path) -> String {
    let name = device.file_name().unwrap().to_str().unwrap();
    fs::read_to_string(format!("/sys/class/block/{name}/diskseq")).unwrap()
}

fn text(error: &HostError) -> String {
    Chain(error).to_string()
}

#[tokio::test]
async fn a_volume_is_connected_with_chap_and_leaves_nothing_behind() {
    let Some(target) = Target::start("a_volume_is_connected_with_chap").await else { return };
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    let device = attacher.connect(&mut record, &info, SIZE).await.unwrap();
    assert_eq!(device.size, SIZE);
    assert!(device.state == DeviceState::Running && !device.read_only && device.wwid.is_some());
    assert_eq!(attacher.find(&record).await.unwrap(), Some(device.clone()));

    let [directory] = &target.records()[..] else { panic!("no node record") };
    let node = directory.join(format!("127.0.0.1,{}", target.port));
    assert_eq!(fs::metadata(&node).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!serde_json::to_string(&record).unwrap().contains(PASSWORD));

    let mut disk = fs::OpenOptions::new().read(true).write(true).open(&device.path).unwrap();
    disk.write_all(&[0xa5; 8192]).unwrap();
    drop(disk);

    // After a restart, from the journal alone; the write must have reached the storage.
    let attacher = self::attacher();
    let record = reloaded(&record);
    attacher.disconnect(&record).await.unwrap();
    target.assert_nothing_left();
    assert!(!device.path.exists());
    assert_eq!(attacher.find(&record).await.unwrap(), None);
    let mut stored = vec![0; 8192];
    File::open(target.directory.path().join("disk1")).unwrap().read_exact(&mut stored).unwrap();
    assert!(stored.iter().all(|byte| *byte == 0xa5));

    attacher.disconnect(&record).await.unwrap();
}

#[tokio::test]
async fn wrong_credentials_fail_at_once_and_leave_nothing() {
    let Some(target) = Target::start("wrong_credentials_fail_at_once").await else { return };
    let (attacher, info) = (attacher(), target.info(1, &[("auth_password", json!("mistaken"))]));
    let mut record = attacher.plan(&info).unwrap();
    let started = Instant::now();
    let error = attacher.connect(&mut record, &info, SIZE).await.unwrap_err();
    assert!(matches!(error, HostError::Login { .. }));
    assert!(text(&error).contains("CHAP") && text(&error).contains("exit 24"), "{}", text(&error));
    assert!(!text(&error).contains("mistaken"), "{}", text(&error));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    target.assert_nothing_left();
}

#[tokio::test]
async fn a_dead_portal_is_skipped() {
    let Some(target) = Target::start("a_dead_portal_is_skipped").await else { return };
    let dead = format!("127.0.0.1:{}", free_port());
    let info = target.info(
        1,
        &[
            ("target_portals", json!([dead, target.portal()])),
            ("target_iqns", json!([target.iqn, target.iqn])),
            ("target_luns", json!([1, 1])),
        ],
    );
    let attacher = attacher();
    let mut record = attacher.plan(&info).unwrap();
    let device = attacher.connect(&mut record, &info, SIZE).await.unwrap();
    assert_eq!(device.size, SIZE);
    let DeviceRecord::Iscsi(iscsi) = &record else { panic!("not iSCSI") };
    let opened: Vec<bool> = iscsi.paths.iter().map(|path| path.opened_session).collect();
    assert_eq!(opened, [false, true]);
    attacher.disconnect(&record).await.unwrap();
    target.assert_nothing_left();
}

#[tokio::test]
async fn without_any_live_portal_the_error_names_them_all() {
    let Some(target) = Target::start("without_any_live_portal").await else { return };
    let dead = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let info = target.info(
        1,
        &[("target_portals", json!(dead)), ("target_iqns", json!([target.iqn, target.iqn]))],
    );
    let attacher = attacher();
    let mut record = attacher.plan(&info).unwrap();
    let error = attacher.connect(&mut record, &info, SIZE).await.unwrap_err();
    assert!(dead.iter().all(|portal| text(&error).contains(portal)), "{}", text(&error));
    target.assert_nothing_left();
}

#[tokio::test]
async fn volumes_of_one_target_share_a_session_and_the_last_one_logs_out() {
    let Some(target) = Target::start("volumes_of_one_target_share_a_session").await else { return };
    let (attacher, infos) = (attacher(), [target.info(1, &[]), target.info(2, &[])]);
    let mut records = infos.each_ref().map(|info| attacher.plan(info).unwrap());
    let [first, second] = &mut records;
    let (a, b) = tokio::join!(
        attacher.connect(first, &infos[0], SIZE),
        attacher.connect(second, &infos[1], SIZE),
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_ne!(a.path, b.path);
    assert_eq!(target.sessions().len(), 1);

    attacher.disconnect(&records[0]).await.unwrap();
    assert!(!a.path.exists() && b.path.exists());
    assert_eq!(target.sessions().len(), 1);
    assert_eq!(attacher.find(&records[0]).await.unwrap(), None);
    let found = attacher.find(&records[1]).await.unwrap().unwrap();
    assert_eq!(found.state, DeviceState::Running);

    attacher.disconnect(&records[1]).await.unwrap();
    target.assert_nothing_left();
}

#[tokio::test]
async fn a_session_of_somebody_else_is_used_and_left() {
    let Some(target) = Target::start("a_session_of_somebody_else").await else { return };
    target.log_in_by_hand();
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    let device = attacher.connect(&mut record, &info, SIZE).await.unwrap();
    attacher.disconnect(&record).await.unwrap();
    assert!(!device.path.exists());
    assert_eq!(target.sessions().len(), 1);
    assert_eq!(target.records().len(), 1);
    target.log_out_by_hand();
    target.assert_nothing_left();
}

#[tokio::test]
async fn a_crash_before_the_journal_knows_of_the_login_leaks_nothing() {
    let Some(target) = Target::start("a_crash_before_the_journal_knows").await else { return };
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let planned = attacher.plan(&info).unwrap();
    let mut record = planned.clone();
    let device = attacher.connect(&mut record, &info, SIZE).await.unwrap();
    self::attacher().disconnect(&reloaded(&planned)).await.unwrap();
    assert!(!device.path.exists());
    target.assert_nothing_left();
}

#[tokio::test]
async fn what_sits_at_the_lun_already_is_never_used() {
    let Some(target) = Target::start("what_sits_at_the_lun_already").await else { return };
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut forgotten = attacher.plan(&info).unwrap();
    let stale = attacher.connect(&mut forgotten, &info, SIZE).await.unwrap();
    let stale = disk_sequence(&stale.path);
    let mut record = attacher.plan(&info).unwrap();
    let device = attacher.connect(&mut record, &info, SIZE).await.unwrap();
    assert_ne!(disk_sequence(&device.path), stale);
    assert_eq!(target.sessions().len(), 1);
    attacher.disconnect(&record).await.unwrap();
    target.assert_nothing_left();
}

#[tokio::test]
async fn a_lun_that_the_target_does_not_show_is_refused() {
    let Some(target) = Target::start("a_lun_that_the_target_does_not_show").await else { return };
    let (attacher, info) = (attacher(), target.info(9, &[]));
    let mut record = attacher.plan(&info).unwrap();
    let error = attacher.connect(&mut record, &info, SIZE).await.unwrap_err();
    assert!(text(&error).contains("no LUN 9"), "{}", text(&error));
    target.assert_nothing_left();
}

#[tokio::test]
async fn a_device_that_is_smaller_than_the_volume_is_refused() {
    let Some(target) = Target::start("a_device_that_is_smaller").await else { return };
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    let error = attacher.connect(&mut record, &info, SIZE + 1).await.unwrap_err();
    assert!(matches!(error, HostError::Refused { .. }));
    assert!(text(&error).contains("another volume's"), "{}", text(&error));
    target.assert_nothing_left();
}

#[tokio::test]
async fn an_unknown_target_is_named_and_leaves_nothing() {
    let Some(mut target) = Target::start("an_unknown_target").await else { return };
    target.iqn = format!("iqn.2010-10.example.test:volume-{}", uuid::Uuid::new_v4());
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    let error = attacher.connect(&mut record, &info, SIZE).await.unwrap_err();
    assert!(text(&error).contains(&target.iqn), "{}", text(&error));
    target.assert_nothing_left();
}

#[tokio::test]
async fn a_mounted_device_is_neither_removed_nor_replaced() {
    let Some(target) = Target::start("a_mounted_device").await else { return };
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    let device = attacher.connect(&mut record, &info, SIZE).await.unwrap();
    let (path, at) = (device.path.to_str().unwrap(), tempfile::tempdir().unwrap());
    let at = at.path().to_str().unwrap();
    assert!(run("mkfs.ext4", &["-q", path]).status.success());
    assert!(run("mount", &[path, at]).status.success());
    fs::write(Path::new(at).join("file"), "data").unwrap();

    let removed = attacher.disconnect(&record).await;
    let replaced = attacher.connect(&mut record.clone(), &info, SIZE).await;
    let kept = fs::read_to_string(Path::new(at).join("file")).unwrap();
    assert!(run("umount", &[at]).status.success());
    for error in [removed.unwrap_err(), replaced.unwrap_err()] {
        assert!(matches!(error, HostError::Busy { .. }), "{}", text(&error));
        assert!(text(&error).contains(at), "{}", text(&error));
    }
    assert_eq!(kept, "data");
    attacher.disconnect(&record).await.unwrap();
    target.assert_nothing_left();
}

#[tokio::test]
async fn a_mount_in_another_namespace_keeps_the_device() {
    let Some(target) = Target::start("a_mount_in_another_namespace").await else { return };
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    let device = attacher.connect(&mut record, &info, SIZE).await.unwrap();
    let path = device.path.to_str().unwrap();
    assert!(run("mkfs.ext4", &["-q", path]).status.success());
    let script = format!("mount {path} /mnt && echo mounted && exec sleep 600");
    let mut holder = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 8];
    holder.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();

    let error = attacher.disconnect(&record).await.unwrap_err();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(matches!(error, HostError::Busy { .. }), "{}", text(&error));
    attacher.disconnect(&record).await.unwrap();
    target.assert_nothing_left();
}

#[tokio::test]
async fn iscsid_is_started_when_it_does_not_run() {
    let Some(target) = Target::start("iscsid_is_started").await else { return };
    let stop = run("systemctl", &["stop", "iscsid.socket", "iscsid.service"]);
    if !stop.status.success() {
        initiator::skip("iscsid_is_started_when_it_does_not_run", "no systemd");
        return;
    }
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    attacher.connect(&mut record, &info, SIZE).await.unwrap();
    attacher.disconnect(&record).await.unwrap();
    target.assert_nothing_left();
}

#[tokio::test]
async fn a_device_of_another_driver_is_adopted_and_removed() {
    let Some(target) = Target::start("a_device_of_another_driver").await else { return };
    target.log_in_by_hand();
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    let device = attacher.connect(&mut record, &info, SIZE).await.unwrap();

    let adopted = attacher.adopt(device.number).unwrap().unwrap();
    assert_eq!(attacher.find(&adopted).await.unwrap(), Some(device));
    attacher.disconnect(&adopted).await.unwrap();
    target.assert_nothing_left();
}

#[tokio::test]
async fn a_broken_session_of_somebody_else_is_not_replaced() {
    let Some(target) = Target::start("a_broken_session_of_somebody_else").await else { return };
    target.log_in_by_hand();
    let pid = target.daemon.id().to_string();
    assert!(run("kill", &["-STOP", &pid]).status.success());
    let state = target.sessions()[0].join("state");
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&state).unwrap().trim() == "LOGGED_IN" {
        assert!(Instant::now() < deadline, "the kernel does not see that the target hangs");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    let error = attacher.connect(&mut record, &info, SIZE).await.unwrap_err();
    assert!(text(&error).contains("lost its connection"), "{}", text(&error));
    assert_eq!(target.sessions().len(), 1);
    let node = target.records()[0].join(format!("127.0.0.1,{}", target.port));
    assert!(!fs::read_to_string(node).unwrap().contains("cinder-docker-driver"));
    assert!(run("kill", &["-CONT", &pid]).status.success());
    target.log_out_by_hand();
}

/// Lets go of a volume whose target does not answer any more; answers the errors on the way.
async fn let_go(target: &Target, attacher: &Attacher, record: &DeviceRecord) -> Vec<String> {
    let mut errors = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let started = Instant::now();
        let result = attacher.disconnect(record).await;
        assert!(started.elapsed() < Duration::from_secs(50), "{:?}", started.elapsed());
        let Err(error) = result else { break };
        errors.push(text(&error));
        errors.dedup();
        assert!(Instant::now() < deadline, "{errors:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    target.assert_nothing_left();
    errors
}

#[tokio::test]
async fn a_target_that_died_holds_nobody_up() {
    let Some(mut target) = Target::start("a_target_that_died").await else { return };
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    attacher.connect(&mut record, &info, SIZE).await.unwrap();
    target.daemon.kill().unwrap();
    target.daemon.wait().unwrap();
    let_go(&target, &attacher, &record).await;
}

#[tokio::test]
async fn a_target_that_hangs_holds_nobody_up() {
    let Some(target) = Target::start("a_target_that_hangs").await else { return };
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    attacher.connect(&mut record, &info, SIZE).await.unwrap();
    let pid = target.daemon.id().to_string();
    assert!(run("kill", &["-STOP", &pid]).status.success());
    let errors = let_go(&target, &attacher, &record).await;
    assert!(run("kill", &["-CONT", &pid]).status.success());
    eprintln!("{errors:?}");
}

#[tokio::test]
async fn a_lun_that_the_target_shows_late_is_waited_for() {
    let Some(target) = Target::start("a_lun_that_the_target_shows_late").await else { return };
    let (attacher, info) = (attacher(), target.info(9, &[]));
    let mut record = attacher.plan(&info).unwrap();
    let appears = async {
        // Once the first scans have not found it.
        let end = Instant::now() + Duration::from_secs(60);
        while target.sessions().is_empty() {
            assert!(Instant::now() < end, "no session");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        target.add_lun(9);
    };
    let (device, ()) = tokio::join!(attacher.connect(&mut record, &info, SIZE), appears);
    assert_eq!(device.unwrap().size, SIZE);
    attacher.disconnect(&record).await.unwrap();
    target.assert_nothing_left();
}

/// What a crashed host, or a kernel with another target at that address, leaves below /dev.
#[tokio::test]
async fn a_by_path_link_to_another_disk_leads_nobody_astray() {
    let Some(target) = Target::start("a_by_path_link_to_another_disk").await else { return };
    let attacher = attacher();
    let infos = [target.info(1, &[]), target.info(2, &[])];
    let mut records = infos.each_ref().map(|info| attacher.plan(info).unwrap());
    let other = attacher.connect(&mut records[1], &infos[1], SIZE).await.unwrap();
    run("udevadm", &["settle"]);
    let link = format!("/dev/disk/by-path/ip-{}-iscsi-{}-lun-1", target.portal(), target.iqn);
    std::os::unix::fs::symlink(&other.path, &link).unwrap();

    let device = attacher.connect(&mut records[0], &infos[0], SIZE).await.unwrap();
    assert_ne!(device.number, other.number);
    let disk = fs::OpenOptions::new().write(true).open(&device.path).unwrap();
    disk.write_all_at(b"the first", 0).unwrap();
    drop(disk);
    attacher.disconnect(&records[0]).await.unwrap();
    assert_eq!(attacher.find(&records[1]).await.unwrap(), Some(other));
    attacher.disconnect(&records[1]).await.unwrap();
    let begins = |lun| {
        let mut bytes = [0; 9];
        File::open(target.disk(lun)).unwrap().read_exact(&mut bytes).unwrap();
        bytes
    };
    assert_eq!((&begins(1), &begins(2)), (b"the first", &[0; 9]));
    target.assert_nothing_left();
    // udev has replaced it, and taken its own away; if not, it must not stay for others.
    run("udevadm", &["settle"]);
    fs::remove_file(link).ok();
}

/// A record such as `iscsiadm -m discovery` leaves, with CHAP of its own, that logs in at boot.
fn write_stale_record(target: &Target) -> PathBuf {
    let roots = ["/var/lib/iscsi", "/etc/iscsi"].map(Path::new);
    let root = roots.into_iter().find(|root| root.join("nodes").is_dir()).unwrap_or(roots[1]);
    let tagged = root.join("nodes").join(&target.iqn).join(format!("127.0.0.1,{},1", target.port));
    fs::create_dir_all(&tagged).unwrap();
    let record = format!(
        "# BEGIN RECORD 2.1.8\nnode.name = {}\nnode.tpgt = 1\nnode.startup = automatic\n\
         iface.iscsi_ifacename = default\niface.transport_name = tcp\n\
         node.discovery_type = send_targets\nnode.session.auth.authmethod = CHAP\n\
         node.session.auth.username = somebody\nnode.session.auth.password = outdated\n\
         node.conn[0].address = 127.0.0.1\nnode.conn[0].port = {}\n\
         node.conn[0].startup = automatic\n# END RECORD\n",
        target.iqn, target.port
    );
    let file = tagged.join("default");
    fs::write(&file, record).unwrap();
    file
}

#[tokio::test]
async fn a_stale_record_of_the_volumes_own_target_is_replaced() {
    let Some(target) = Target::start("a_stale_record_of_the_volumes_own_target").await else {
        return;
    };
    let stale = write_stale_record(&target);
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let mut record = attacher.plan(&info).unwrap();
    attacher.connect(&mut record, &info, SIZE).await.unwrap();
    assert!(!stale.exists(), "it would log in at the next boot");
    let records = run("iscsiadm", &["-m", "node", "-T", &target.iqn]).stdout;
    let records = String::from_utf8_lossy(&records).into_owned();
    assert!(records.contains("node.startup = manual"), "{records}");
    assert!(records.contains("username = chapuser"), "{records}");
    attacher.disconnect(&record).await.unwrap();
    target.assert_nothing_left();
}

#[tokio::test]
async fn a_record_of_a_shared_target_that_logs_in_at_boot_is_left_alone() {
    let Some(target) = Target::start("a_record_of_a_shared_target").await else { return };
    let stale = write_stale_record(&target);
    let text_before = fs::read_to_string(&stale).unwrap();
    let volume = json!("6b9a1f5c-0a3d-4c46-9d47-3b6f0a1b2c3d");
    let (attacher, info) = (attacher(), target.info(1, &[("volume_id", volume)]));
    let mut record = attacher.plan(&info).unwrap();
    let error = attacher.connect(&mut record, &info, SIZE).await.unwrap_err();
    assert!(matches!(error, HostError::Refused { .. }), "{}", text(&error));
    assert!(text(&error).contains("logs in by itself at boot"), "{}", text(&error));
    assert!(target.sessions().is_empty());
    assert_eq!(fs::read_to_string(&stale).unwrap(), text_before);
    target.log_out_by_hand();
    target.assert_nothing_left();
}

/// Writes to a disk, again and again, and counts.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<std::io::Result<()>>,
}

impl Writer {
    fn start(disk: &Path, pause: Duration) -> Self {
        let open = fs::OpenOptions::new().write(true).custom_flags(nix::libc::O_SYNC).open(disk);
        let file = open.unwrap();
        let (stop, written) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let next = count.load(Ordering::Relaxed) + 1;
                file.write_all_at(&next.to_le_bytes(), 0)?;
                count.store(next, Ordering::Relaxed);
                std::thread::sleep(pause);
            }
            Ok(())
        });
        Self { stop, written, thread }
    }

    fn count(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// How much was written, if every write succeeded.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap();
        self.written.load(Ordering::Relaxed)
    }
}

/// Waits until each has written twice from now on: once may have been under way.
async fn until_all_go_on(writers: &[Writer]) {
    let before: Vec<u64> = writers.iter().map(Writer::count).collect();
    let end = Instant::now() + Duration::from_secs(120);
    for (writer, before) in writers.iter().zip(before) {
        while writer.count() < before + 2 {
            assert!(Instant::now() < end && !writer.thread.is_finished(), "no write succeeds");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn stored(target: &Target, lun: u64) -> u64 {
    let mut bytes = [0; 8];
    File::open(target.disk(lun)).unwrap().read_exact(&mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

#[tokio::test]
async fn iscsid_may_be_restarted_at_any_moment() {
    let Some(target) = Target::start("iscsid_may_be_restarted_at_any_moment").await else { return };
    let restart = || run("systemctl", &["restart", "iscsid.service"]);
    if !restart().status.success() {
        initiator::skip("iscsid_may_be_restarted_at_any_moment", "no systemd");
        return;
    }
    let (attacher, info) = (attacher(), target.info(1, &[]));
    let again_and_again = |times| {
        tokio::task::spawn_blocking(move || {
            for _ in 0..times {
                run("systemctl", &["reset-failed", "iscsid.service"]);
                run("systemctl", &["restart", "iscsid.service"]);
                std::thread::sleep(Duration::from_millis(300));
            }
        })
    };
    // While it logs in: it may fail, but then it leaves nothing; and soon it succeeds.
    let restarts = again_and_again(2);
    let mut record = attacher.plan(&info).unwrap();
    let mut device = attacher.connect(&mut record, &info, SIZE).await;
    restarts.await.unwrap();
    if let Err(error) = &device {
        eprintln!("restarted while it logged in: {}", text(error));
        target.assert_nothing_left();
        record = attacher.plan(&info).unwrap();
        device = attacher.connect(&mut record, &info, SIZE).await;
    }
    let device = device.unwrap();
    let sequence = disk_sequence(&device.path);

    // While it is used.
    let writer = [Writer::start(&device.path, Duration::from_millis(20))];
    until_all_go_on(&writer).await;
    again_and_again(1).await.unwrap();
    until_all_go_on(&writer).await;
    assert_eq!((target.sessions().len(), disk_sequence(&device.path)), (1, sequence));
    let [written] = writer.map(Writer::stop);

    // While it logs out.
    let restarts = again_and_again(2);
    let disconnected = attacher.disconnect(&record).await;
    restarts.await.unwrap();
    if let Err(error) = disconnected {
        eprintln!("restarted while it logged out: {}", text(&error));
        attacher.disconnect(&record).await.unwrap();
    }
    target.assert_nothing_left();
    assert_eq!(stored(&target, 1), written);
}

#[tokio::test]
async fn of_64_luns_behind_one_target_one_goes_and_63_go_on() {
    const LUNS: u64 = 64;
    let Some(target) = Target::start("of_64_luns_behind_one_target").await else { return };
    (3..=LUNS).for_each(|lun| target.add_lun(lun));
    let attacher = attacher();
    let infos = [target.info(1, &[]), target.info(2, &[])];
    let mut records = infos.each_ref().map(|info| attacher.plan(info).unwrap());
    let gone = attacher.connect(&mut records[0], &infos[0], SIZE).await.unwrap();
    let stays = attacher.connect(&mut records[1], &infos[1], SIZE).await.unwrap();
    // The others at once, as a rescan by hand brings them in: one by one takes minutes in a node.
    let [session] = &target.sessions()[..] else { panic!("not one session") };
    let session = fs::canonicalize(session.join("device")).unwrap();
    let host = session.parent().unwrap().file_name().unwrap().to_str().unwrap();
    fs::write(format!("/sys/class/scsi_host/{host}/scan"), "- - -").unwrap();
    let disk = |lun: u64| -> Option<PathBuf> {
        let number = host.trim_start_matches("host");
        let block = format!("/sys/bus/scsi/devices/{number}:0:0:{lun}/block");
        let name = fs::read_dir(block).ok()?.next()?.ok()?.file_name();
        Some(Path::new("/dev").join(name)).filter(|path| path.exists())
    };
    let end = Instant::now() + Duration::from_secs(240);
    while !(2..=LUNS).all(|lun| disk(lun).is_some()) {
        assert!(Instant::now() < end, "not all LUNs appear");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let disks: Vec<PathBuf> = (2..=LUNS).filter_map(disk).collect();
    assert_eq!(disks[0], stays.path);
    let sequences = || disks.iter().map(|path| disk_sequence(path)).collect::<Vec<_>>();
    let before = sequences();
    let pause = Duration::from_secs(1);
    let writers: Vec<_> = disks.iter().map(|path| Writer::start(path, pause)).collect();
    until_all_go_on(&writers).await;

    attacher.disconnect(&records[0]).await.unwrap();
    assert!(!gone.path.exists());
    until_all_go_on(&writers).await;
    assert_eq!(sequences(), before);
    assert_eq!(target.sessions().len(), 1);

    let written: Vec<u64> = writers.into_iter().map(Writer::stop).collect();
    // Nor does the last of ours end a session that others have come to use.
    attacher.disconnect(&records[1]).await.unwrap();
    assert!(!stays.path.exists() && disks[1..].iter().all(|path| path.exists()));
    assert_eq!(target.sessions().len(), 1);
    assert_eq!((2..=LUNS).map(|lun| stored(&target, lun)).collect::<Vec<_>>(), written);
    target.log_out_by_hand();
    target.assert_nothing_left();
}
