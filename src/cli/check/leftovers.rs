//! What is on this host of volumes and belongs to nobody: sessions, mounts, directories, journal
//! entries. And whether Cinder and this host agree about who has what.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use super::Findings;
use super::cloud::Seen;
use crate::config::Settings;
use crate::driver::journal::{self, Entry};
use crate::host::Paths;
use crate::host::attach::DeviceRecord;
use crate::host::attach::iscsi::{self, IscsiPath, SessionFacts};
use crate::host::filesystem::mountinfo;

/// A directory that has been there for less may be of a mount that is just being made.
const YOUNG: Duration = Duration::from_secs(600);
/// For a connection to a storage portal.
const PORTAL_LIMIT: Duration = Duration::from_secs(3);

/// The journal as it is on disk.
pub(super) struct Left {
    entries: Vec<Entry>,
    unusable: Vec<(PathBuf, String)>,
}

impl Left {
    /// `None` when it is not shown to us.
    pub(super) fn read(state_dir: &Path) -> Option<Self> {
        let found = match journal::peek(state_dir) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return None,
            // None yet, or one that is told of elsewhere.
            Err(_) => Vec::new(),
        };
        let mut left = Self { entries: Vec::new(), unusable: Vec::new() };
        for (path, entry) in found {
            match entry {
                Ok(entry) => left.entries.push(entry),
                Err(reason) => left.unusable.push((path, reason)),
            }
        }
        Some(left)
    }

    fn knows_place(&self, at: &Path) -> bool {
        let places = self.entries.iter().filter_map(|entry| entry.mount.as_ref());
        // A name is known before its mount is: it may be under way.
        let name = at.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let under_way = |entry: &Entry| entry.has_liabilities() && entry.names.contains(name);
        places.clone().any(|record| record.at == at) || self.entries.iter().any(under_way)
    }

    fn iscsi_paths(&self) -> impl Iterator<Item = &IscsiPath> {
        self.entries.iter().filter_map(|entry| entry.device.as_ref()).flat_map(
            |device| match device {
                DeviceRecord::Iscsi(record) => record.paths.as_slice(),
                DeviceRecord::Local(_) => &[],
            },
        )
    }
}

/// Says what is left over, or that nothing is.
pub(super) async fn check(
    paths: &Paths,
    settings: &Settings,
    seen: Option<&[Seen]>,
    host: Option<&str>,
    findings: &mut Findings,
) {
    let Some(left) = Left::read(&settings.driver.state_dir) else {
        return findings.skip("leftovers", "the journal is shown to root only");
    };
    let before = findings.all().len();
    journal_entries(&left, seen, findings);
    sessions(paths, &left, findings);
    records(paths, &left, findings);
    mounts(paths, &settings.host.mount_point, &left, findings);
    directories(paths, &settings.host.mount_point, &left, findings);
    if let (Some(seen), Some(host)) = (seen, host) {
        attachments(seen, host, &left, findings);
    }
    if findings.all().len() == before {
        findings.ok("leftovers", "none: no session, mount, directory or entry without an owner");
    }
    portals(&left, findings).await;
}

fn journal_entries(left: &Left, seen: Option<&[Seen]>, findings: &mut Findings) {
    for (path, reason) in &left.unusable {
        findings.warn(
            "leftovers",
            format!("the journal entry {} cannot be used ({reason})", path.display()),
            format!(
                "mv {} /root/, then: systemctl restart cinder-docker-driver; what it described is \
                 found again from the kernel and Cinder",
                path.display()
            ),
        );
    }
    let Some(seen) = seen else { return };
    let there: BTreeSet<Uuid> = seen.iter().map(|volume| volume.id).collect();
    for entry in left.entries.iter().filter(|entry| entry.has_liabilities()) {
        if !there.contains(&entry.volume_id) {
            findings.warn(
                "leftovers",
                format!(
                    "this host holds {} ({}), which is not in the project any more",
                    entry.shown_name(),
                    entry.volume_id
                ),
                "stop the containers that use it; see cinder-docker-driver status",
            );
        }
    }
}

/// Of `sessions`, those that this driver opened and that no entry speaks of.
pub(super) fn stray_sessions(mut sessions: Vec<SessionFacts>, left: &Left) -> Vec<SessionFacts> {
    let is_known = |session: &SessionFacts| left.iscsi_paths().any(|path| session.serves(path));
    sessions.retain(|session| session.has_our_mark && !is_known(session));
    sessions
}

/// Of node records of ours without a session, those that no entry speaks of.
pub(super) fn stray_records(mut records: Vec<IscsiPath>, left: &Left) -> Vec<IscsiPath> {
    let goes_there = |record: &IscsiPath, path: &IscsiPath| {
        (&record.iqn, &record.portal) == (&path.iqn, &path.portal)
    };
    records.retain(|record| !left.iscsi_paths().any(|path| goes_there(record, path)));
    records
}

fn sessions(paths: &Paths, left: &Left, findings: &mut Findings) {
    let Ok(sessions) = iscsi::sessions(paths) else { return };
    for session in stray_sessions(sessions, left) {
        let portal = session.portal.map(|portal| portal.to_string()).unwrap_or_default();
        let logout = format!("iscsiadm -m node -T {} -p {portal} --logout", session.target);
        findings.warn(
            "leftovers",
            format!(
                "iSCSI session {} with {} was opened by this driver, and no journal entry speaks \
                 of it",
                session.id, session.target
            ),
            match session.is_used {
                true => format!(
                    "cinder-docker-driver check --fix, which leaves it if somebody uses its disk \
                     (lsblk -S); or: {logout}"
                ),
                false => format!("{logout} (or: cinder-docker-driver check --fix)"),
            },
        );
    }
}

fn records(paths: &Paths, left: &Left, findings: &mut Findings) {
    let Ok(records) = iscsi::idle_records(paths) else { return };
    for record in stray_records(records, left) {
        let IscsiPath { iqn, portal, .. } = record;
        findings.warn(
            "leftovers",
            format!(
                "open-iscsi has a record, with a secret in it where there is one, that this driver \
                 made of {iqn} at {portal}; no session and no journal entry needs it"
            ),
            format!(
                "iscsiadm -m node -T {iqn} -p {portal} -o delete (or: cinder-docker-driver check \
                 --fix)"
            ),
        );
    }
}

fn mounts(paths: &Paths, mount_point: &Path, left: &Left, findings: &mut Findings) {
    let mounts = mountinfo::own(paths).unwrap_or_default();
    for mount in mounts.iter().filter(|mount| mount.mount_point.parent() == Some(mount_point)) {
        if !left.knows_place(&mount.mount_point) {
            let at = mount.mount_point.display();
            findings.warn(
                "leftovers",
                format!("{} is mounted at {at}, and not by this driver", mount.source),
                format!("umount {at}, when nothing uses it"),
            );
        }
    }
}

fn directories(paths: &Paths, mount_point: &Path, left: &Left, findings: &mut Findings) {
    for (path, is_empty) in strays(paths, mount_point, left) {
        let at = path.display();
        if is_empty {
            findings.warn(
                "leftovers",
                format!("{at} is empty, and of no volume that is mounted here"),
                format!("rmdir {at} (or: cinder-docker-driver check --fix)"),
            );
        } else {
            findings.warn(
                "leftovers",
                format!("{at} holds files, and no volume is mounted there: they are on this host"),
                format!("ls -la {at}; move away what is needed"),
            );
        }
    }
}

/// Directories below MountPoint that nothing is mounted on and that the journal does not know, and
/// whether each is empty. Young ones are left out.
pub(super) fn strays(paths: &Paths, mount_point: &Path, left: &Left) -> Vec<(PathBuf, bool)> {
    let mounts = mountinfo::own(paths).unwrap_or_default();
    let old = |path: &Path| {
        let changed = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
        changed.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > YOUNG))
    };
    let mut found: Vec<_> = fs::read_dir(mount_point)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| !mounts.iter().any(|mount| mount.mount_point == *path))
        .filter(|path| !left.knows_place(path) && old(path))
        .filter_map(|path| {
            let is_empty = fs::read_dir(&path).ok()?.next().is_none();
            Some((path, is_empty))
        })
        .collect();
    found.sort();
    found
}

/// Cinder says that this host has it, and this host knows nothing of it.
fn attachments(seen: &[Seen], host: &str, left: &Left, findings: &mut Findings) {
    for volume in seen.iter().filter(|volume| volume.hosts.iter().any(|one| one == host)) {
        let known = left
            .entries
            .iter()
            .any(|entry| entry.volume_id == volume.id && entry.attachment.is_some());
        if !known {
            findings.warn(
                "leftovers",
                format!(
                    "Cinder says that this host ({host}) has {} ({}), and the journal does not",
                    volume.shown_name(),
                    volume.id
                ),
                format!("cinder-docker-driver release {}", volume.shown_name()),
            );
        }
    }
}

/// The storage that this host uses now must be reachable.
async fn portals(left: &Left, findings: &mut Findings) {
    let portals: BTreeSet<SocketAddr> =
        left.iscsi_paths().filter_map(|path| path.portal.parse().ok()).collect();
    let mut reached = Vec::new();
    for portal in portals {
        match timeout(PORTAL_LIMIT, TcpStream::connect(portal)).await {
            Ok(Ok(_)) => reached.push(portal.to_string()),
            Ok(Err(error)) => unreachable(portal, &error.to_string(), findings),
            Err(_) => {
                let limit = PORTAL_LIMIT.as_secs();
                unreachable(portal, &format!("no answer within {limit} s"), findings);
            }
        }
    }
    if !reached.is_empty() {
        findings.ok("portals", format!("{} can be reached", reached.join(", ")));
    }
}

fn unreachable(portal: SocketAddr, why: &str, findings: &mut Findings) {
    findings.error(
        "portals",
        format!("the storage portal {portal}, which a volume here needs, cannot be reached: {why}"),
        format!("look at the storage network: ip route get {}", portal.ip()),
    );
}
