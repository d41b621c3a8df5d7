//! The same on real iSCSI: volumes from tgtd with CHAP, by the kernel's initiator.
//!
//! Needs root, tgtd, open-iscsi and a kernel with iscsi_tcp: a scenario runs it in a node of the
//! rig. Everything is some ten times slower there, so only what differs most from loop devices is
//! run by default ([`by_default`]). With [`FAULTS_VARIABLE`] the faults that it names happen at
//! every effect; other operations are ignored tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::bench::{Fault, Operation, Storage};
use crate::support::{Cloud, sh};
use crate::table::{Choice, chosen_cases, flow};

#[path = "../support/initiator.rs"]
pub mod initiator;

/// Names of faults, with blanks between them.
pub const FAULTS_VARIABLE: &str = "CINDER_ISCSI_FAULTS";
/// A process that is gone before it did anything, and one whose work is done and not known: what
/// is between them is no step of ours.
const DEFAULT_FAULTS: &str = "kill-before lose";

const FOREIGN_IQN: &str = "iqn.2010-10.example.test:theirs";
const FOREIGN_BYTES: u64 = 8 << 20;

/// This host as an initiator, with a session that is somebody else's: to another target of the
/// very portal that serves our volumes.
pub struct Initiator {
    port: u16,
    /// What there was before any volume of ours.
    before: Held,
    disk: PathBuf,
}

/// What this host and the target hold of iSCSI.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    /// Number and target.
    sessions: BTreeSet<String>,
    /// Everything in open-iscsi's data base.
    records: BTreeMap<PathBuf, String>,
    /// SCSI disks, with the number that the kernel gives to no second one.
    disks: BTreeSet<String>,
    /// Targets with their LUNs, accounts and nexuses.
    targets: String,
}

fn read(file: impl AsRef<Path>) -> String {
    fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

fn names(directory: &str) -> Vec<String> {
    let Ok(found) = fs::read_dir(directory) else { return Vec::new() };
    found.flatten().map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn add_files(directory: &Path, files: &mut BTreeMap<PathBuf, String>) {
    let Ok(found) = fs::read_dir(directory) else { return };
    for path in found.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            add_files(&path, files);
            files.insert(path, String::new());
        } else {
            let text = read(&path);
            files.insert(path, text);
        }
    }
}

impl Held {
    fn now(port: u16) -> Self {
        let class = "/sys/class/iscsi_session";
        let sessions = names(class)
            .into_iter()
            .map(|name| format!("{name} {}", read(format!("{class}/{name}/targetname"))))
            .collect();
        let disks = names("/sys/block")
            .into_iter()
            .filter(|name| name.starts_with("sd"))
            .map(|name| format!("{name} {}", read(format!("/sys/block/{name}/diskseq"))))
            .collect();
        let mut records = BTreeMap::new();
        for root in ["/etc/iscsi", "/var/lib/iscsi"] {
            add_files(Path::new(root), &mut records);
        }
        Self { sessions, records, disks, targets: tgtadm(port, "--op show --mode target") }
    }
}

fn tgtadm(port: u16, what: &str) -> String {
    sh(&format!("tgtadm -C {port} --lld iscsi {what}"))
}

impl Initiator {
    /// A cloud that serves volumes by iSCSI, and the session of somebody else.
    pub async fn start() -> (Cloud, Self) {
        // tgtd's control port is a `short`, and the same number.
        let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
        let port = (first..).find(free).unwrap();
        let cloud = Cloud::start_with(|options| {
            options.iscsi = true;
            options.iscsi_port = port;
        })
        .await;
        let file = cloud.dir().join("theirs");
        fs::File::create(&file).unwrap().set_len(FOREIGN_BYTES).unwrap();
        tgtadm(port, &format!("--op new --mode target --tid 1 -T {FOREIGN_IQN}"));
        let file = file.display();
        tgtadm(port, &format!("--op new --mode logicalunit --tid 1 --lun 1 -b {file}"));
        tgtadm(port, "--op bind --mode target --tid 1 -I ALL");
        let node = format!("iscsiadm -m node -T {FOREIGN_IQN} -p 127.0.0.1:{port}");
        sh(&format!("{node} --op new && {node} --login && udevadm settle"));
        let link = format!("/dev/disk/by-path/ip-127.0.0.1:{port}-iscsi-{FOREIGN_IQN}-lun-1");
        let disk = fs::canonicalize(link).unwrap();
        let initiator = Self { port, before: Held::now(port), disk };
        assert_eq!(initiator.before.targets.matches("I_T nexus:").count(), 1);
        (cloud, initiator)
    }

    /// Asserts that nothing of ours is left, and that what is others' is as it was and works.
    pub fn assert_as_before(&self) {
        let (now, before) = (Held::now(self.port), &self.before);
        assert_eq!(now.sessions, before.sessions);
        assert_eq!(now.disks, before.disks);
        let files = |held: &Held| held.records.keys().cloned().collect::<Vec<_>>();
        assert_eq!(files(&now), files(before));
        // Not their text, which has secrets.
        let changed = now.records.iter().find(|(file, text)| before.records[*file] != **text);
        assert_eq!(changed.map(|(file, _)| file), None, "a record changed");
        assert_eq!(now.targets, before.targets);
        let mut disk = fs::OpenOptions::new().write(true).open(&self.disk).unwrap();
        disk.write_all(&[0x5a; 4096]).unwrap();
        disk.sync_all().unwrap();
    }

    /// Asserts that one volume of ours is here beside what is others': one session with one disk.
    pub fn assert_one_volume(&self) {
        let (now, before) = (Held::now(self.port), &self.before);
        let more = |now: &BTreeSet<String>, before: &BTreeSet<String>| {
            assert!(now.is_superset(before), "others': {before:?}, now: {now:?}");
            now.difference(before).count()
        };
        assert_eq!(more(&now.sessions, &before.sessions), 1, "sessions: {:?}", now.sessions);
        assert_eq!(more(&now.disks, &before.disks), 1, "disks: {:?}", now.disks);
        assert_eq!(now.targets.matches("I_T nexus:").count(), 2, "{}", now.targets);
        for (file, text) in &before.records {
            assert_eq!(now.records.get(file), Some(text), "{}", file.display());
        }
        // The record and the directory of its target.
        assert_eq!(now.records.len(), before.records.len() + 2, "{:?}", now.records.keys());
    }
}

impl Drop for Initiator {
    fn drop(&mut self) {
        let node = format!("iscsiadm -m node -T {FOREIGN_IQN} -p 127.0.0.1:{}", self.port);
        let tgtadm = format!("tgtadm -C {} --lld iscsi", self.port);
        // A tgtd that still has targets of a case that failed stays.
        let line = format!(
            "{node} --logout; {node} --op delete; {tgtadm} --op delete --mode target --tid 1; \
             {tgtadm} --op delete --mode system"
        );
        Command::new("sh").args(["-c", &line]).output().ok();
    }
}

/// The cases that are run by default. A kill before a look is one before the next change, and one
/// before the second half of a journal write leaves what the first half does; a call comes right
/// after one of those. On loop devices all
/// cases run anyway, and what the cloud answers is no different here, nor what a mountpoint does.
fn by_default(fault: &str, what: &str) -> bool {
    let is_of_iscsi =
        ["process iscsiadm", "kernel ", "file write the node", "file remove the node"]
            .iter()
            .any(|kind| what.starts_with(kind));
    let changes = ["journal rename", "process "];
    is_of_iscsi || (fault == "kill-before" && changes.iter().any(|kind| what.starts_with(kind)))
}

/// The faults that were asked for, at every effect; else two at some.
fn faults() -> (Vec<Fault>, Option<Choice>) {
    let asked = std::env::var(FAULTS_VARIABLE);
    let choice: Option<Choice> = if asked.is_ok() { None } else { Some(by_default) };
    let asked = asked.unwrap_or_else(|_| DEFAULT_FAULTS.to_owned());
    let known = ["kill-before", "kill-midway", "kill-after", "fail", "lose"];
    let faults: Vec<Fault> =
        known.into_iter().filter(|name| asked.contains(name)).map(Fault::Gate).collect();
    assert_eq!(faults.len(), asked.split_whitespace().count(), "{FAULTS_VARIABLE}={asked}");
    (faults, choice)
}

async fn every_case(test: &str, operation: Operation, config: Value) {
    if !initiator::is_here(test) {
        return;
    }
    let begun = Instant::now();
    let (faults, choice) = faults();
    chosen_cases(Storage::Iscsi, operation, config, &faults, choice).await;
    println!("by iSCSI, in {} s", begun.elapsed().as_secs());
}

#[tokio::test]
async fn mounting_a_formatted_volume() {
    every_case("mounting_a_formatted_volume", Operation::MountFormatted, flow(false)).await;
}

#[tokio::test]
async fn unmounting() {
    every_case("unmounting", Operation::Unmount, flow(false)).await;
}

#[tokio::test]
#[ignore = "takes long"]
async fn mounting_a_fresh_volume() {
    every_case("mounting_a_fresh_volume", Operation::MountFresh, flow(false)).await;
}

#[tokio::test]
#[ignore = "takes long"]
async fn mounting_an_extended_volume() {
    every_case("mounting_an_extended_volume", Operation::MountExtended, flow(false)).await;
}

#[tokio::test]
#[ignore = "takes long"]
async fn mounting_for_a_second_container() {
    every_case("mounting_for_a_second_container", Operation::MountSecond, flow(false)).await;
}

#[tokio::test]
#[ignore = "takes long"]
async fn unmounting_the_first_of_two() {
    every_case("unmounting_the_first_of_two", Operation::UnmountFirst, flow(false)).await;
}

#[tokio::test]
#[ignore = "takes long"]
async fn mounting_a_formatted_volume_by_the_actions_flow() {
    let test = "mounting_a_formatted_volume_by_the_actions_flow";
    every_case(test, Operation::MountFormatted, flow(true)).await;
}

#[tokio::test]
#[ignore = "takes long"]
async fn unmounting_by_the_actions_flow() {
    every_case("unmounting_by_the_actions_flow", Operation::Unmount, flow(true)).await;
}
