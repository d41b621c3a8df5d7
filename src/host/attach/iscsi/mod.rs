//! The iSCSI connector: iscsiadm for login and logout, sysfs for everything else.
//!
//! ```text
//! connect     session there? ─no─▶ probe portals ▶ node record ▶ iscsiadm --login
//!                  └──────────────────────┴▶ purge leftover ▶ scan our LUN ▶ wait ▶ verify
//! disconnect  in use? ─no─▶ flush ▶ delete device ▶ wait ─ours, no other LUN─▶ logout ▶ drop record
//! ```
//!
//! What is whose: a session is *ours* when the journal says that we opened it in this boot, or
//! its node record has our mark (see `node_record.rs`). `opened_session` of every volume on such
//! a session is true, so the last one to leave logs out, whichever opened it. A session that
//! somebody else opened is used, and left when we go; of its devices we remove only the one whose
//! world-wide id we saw when we connected.

mod connection;
mod device;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod iscsiadm;
mod login;
mod multipath;
mod node_record;
mod session;
mod uevent;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use self::connection::Connection;
use self::node_record::{NodeDb, Owner};
use self::session::Session;
use super::Device;
use crate::connection_info::ConnectionInfo;
use crate::error_chain::Chain;
use crate::host::filesystem::mountinfo::DeviceNumber;
use crate::host::{Exec, HostError, Paths, process};
use crate::locks::{Guard, Locks};

/// An iSCSI LUN of this host. Lists, so that multipath needs no other shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IscsiRecord {
    /// Every way to the volume that Cinder named, in its order.
    pub paths: Vec<IscsiPath>,
    /// World-wide id seen when it was connected.
    pub wwid: Option<String>,
    /// The boot in which it was connected: sessions of another boot are gone, and one that looks
    /// the same is not ours.
    #[serde(default)]
    pub boot_id: String,
}

/// One way to the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IscsiPath {
    /// `10.0.0.9:3260`, `[fd00::1]:3260`.
    pub portal: String,
    /// Target name.
    pub iqn: String,
    /// LUN.
    pub lun: u64,
    /// This driver opened the session, for this volume or for another one of the same target (we
    /// log out when no other LUN uses it).
    pub opened_session: bool,
    /// This driver wrote the node record.
    pub wrote_node: bool,
}

impl IscsiPath {
    /// The same way, whatever is known about it.
    fn is_way(&self, other: &Self) -> bool {
        (&self.portal, &self.iqn, self.lun) == (&other.portal, &other.iqn, other.lun)
    }
}

/// A session of this host with a target, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFacts {
    /// Its number: `3` of `session3`.
    pub id: u32,
    /// The target's name.
    pub target: String,
    /// The portal that the login was asked for.
    pub portal: Option<SocketAddr>,
    /// `LOGGED_IN`, `FAILED` or `FREE`.
    pub state: String,
    /// Whether a node record says that this driver opened it, in this boot.
    pub has_our_mark: bool,
    /// Whether somebody would lose a disk by a logout.
    pub is_used: bool,
}

impl SessionFacts {
    /// Whether it goes to the target of this path through its portal.
    pub fn serves(&self, path: &IscsiPath) -> bool {
        self.target == path.iqn && self.portal.is_some() && self.portal == path.portal.parse().ok()
    }
}

/// All iSCSI sessions of this host, whoever opened them. Reads only.
///
/// # Errors
/// When sysfs cannot be read.
pub fn sessions(paths: &Paths) -> Result<Vec<SessionFacts>, HostError> {
    let db = NodeDb::find(paths);
    // Where it is not known, no mark is of this boot.
    let boot_id = process::boot_id(paths).unwrap_or_default();
    Ok(session::all(paths)?
        .into_iter()
        .map(|session| {
            let mark =
                session.portal.and_then(|portal| db.owner(&way(portal, &session.iqn, 0)).ok());
            SessionFacts {
                id: session.id,
                has_our_mark: matches!(mark, Some(Owner::Us(boot)) if boot == boot_id),
                is_used: session.is_used(),
                target: session.iqn,
                portal: session.portal,
                state: session.state,
            }
        })
        .collect())
}

/// A way of which nothing is known but where it goes.
fn way(portal: SocketAddr, iqn: &str, lun: u64) -> IscsiPath {
    IscsiPath {
        portal: portal.to_string(),
        iqn: iqn.to_owned(),
        lun,
        opened_session: false,
        wrote_node: false,
    }
}

/// Targets and portals of which this driver wrote a node record, in whatever boot, and to which this
/// host has no session. Reads only.
///
/// # Errors
/// When sysfs or open-iscsi's data base cannot be read.
pub fn idle_records(paths: &Paths) -> Result<Vec<IscsiPath>, HostError> {
    // First: one that a login is made from just now has its session by then, or is in the journal.
    let mut records = NodeDb::find(paths).ours()?;
    let sessions = session::all(paths)?;
    records.retain(|path| !sessions.iter().any(|session| session.serves(path)));
    Ok(records)
}

/// Removes a record of [`idle_records`]; somebody else's is left.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_record(paths: &Paths, path: &IscsiPath) -> Result<(), HostError> {
    NodeDb::find(paths).remove(path)
}

/// Ends a session that this driver opened in this boot and that no journal entry speaks of: removes
/// its disks, logs out, removes the node record.
///
/// # Errors
/// [`HostError::Busy`] when somebody uses one of its disks: then nothing was changed. When it cannot
/// be ended.
pub async fn end(paths: &Paths, exec: &Exec, session: &SessionFacts) -> Result<(), HostError> {
    let refused = |what: &str| HostError::Refused { what: what.to_owned() };
    let portal = session.portal.ok_or_else(|| refused("its portal is not known"))?;
    let sessions = session::all(paths)?;
    let found = sessions.iter().find(|found| found.id == session.id && found.iqn == session.target);
    // It ended by itself.
    let Some(found) = found else { return Ok(()) };
    let mut luns: Vec<u64> = found.luns().into_iter().map(|lun| lun.lun).collect();
    if luns.is_empty() {
        luns.push(0);
    }
    let record = IscsiRecord {
        paths: luns.into_iter().map(|lun| way(portal, &session.target, lun)).collect(),
        wwid: None,
        boot_id: String::new(),
    };
    let locks = TargetLocks::default();
    let connector = Connector { paths, exec, iface: None, locks: &locks };
    if !connector.is_ours(&record, &record.paths[0])? {
        return Err(refused("it is not this driver's"));
    }
    connector.disconnect(&record).await
}

/// One lock a target: logins, logouts and scans of one target exclude each other.
#[derive(Debug, Default)]
pub struct TargetLocks(Locks<String>);

impl TargetLocks {
    /// Locks all targets of a record, in the order of their names, so that two records that share
    /// targets cannot wait for each other.
    async fn lock(&self, record: &IscsiRecord) -> Vec<Guard> {
        let targets: BTreeSet<&String> = record.paths.iter().map(|path| &path.iqn).collect();
        let mut guards = Vec::with_capacity(targets.len());
        for target in targets {
            guards.push(self.0.lock(target).await);
        }
        guards
    }
}

/// How far a connect went: what its undoing must look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Session,
    Device,
}

/// The connector, with what it needs of this host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connector<'a> {
    pub paths: &'a Paths,
    pub exec: &'a Exec,
    pub iface: Option<&'a str>,
    pub locks: &'a TargetLocks,
}

impl Connector<'_> {
    /// Checks a connection_info; changes nothing.
    pub fn plan(self, info: &ConnectionInfo) -> Result<IscsiRecord, HostError> {
        let paths = connection::parse(info)?.paths;
        Ok(IscsiRecord { paths, wwid: None, boot_id: self.boot_id()? })
    }

    /// See [`super::Attacher::connect`].
    pub async fn connect(
        self,
        record: &mut IscsiRecord,
        info: &ConnectionInfo,
        size: u64,
    ) -> Result<Device, HostError> {
        let connection = connection::parse(info)?;
        let same = record.paths.len() == connection.paths.len()
            && record.paths.iter().zip(&connection.paths).all(|(a, b)| a.is_way(b));
        if !same {
            return Err(HostError::Refused {
                what: "Cinder's connection_info names other targets than the journal".to_owned(),
            });
        }
        let _guards = self.locks.lock(record).await;
        record.boot_id = self.boot_id()?;
        let mut stage = Stage::Session;
        match self.connect_locked(record, &connection, size, &mut stage).await {
            Ok(device) => Ok(device),
            Err(cause) => Err(self.undo(record, stage, cause).await),
        }
    }

    async fn connect_locked(
        self,
        record: &mut IscsiRecord,
        connection: &Connection,
        size: u64,
        stage: &mut Stage,
    ) -> Result<Device, HostError> {
        let (index, session) = self.ensure_session(record, connection).await?;
        let lun = record.paths[index].lun;
        self.purge_leftover(&session, lun).await?;
        *stage = Stage::Device;
        let found = self.bring_in(&session, lun).await?;
        record.wwid = found.wwid();
        self.verify(&session, &found, size).await
    }

    async fn undo(self, record: &mut IscsiRecord, stage: Stage, cause: HostError) -> HostError {
        let undone = match stage {
            Stage::Session => self.close_sessions(record).await,
            Stage::Device => self.disconnect_locked(record).await,
        };
        match undone {
            Ok(()) => {
                for path in &mut record.paths {
                    (path.opened_session, path.wrote_node) = (false, false);
                }
                cause
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "cannot undo a failed attach");
                add_to(cause, &format!("; undoing it failed too: {}", Chain(&error)))
            }
        }
    }

    /// See [`super::Attacher::find`].
    pub fn find(self, record: &IscsiRecord) -> Result<Option<Device>, HostError> {
        for (_, lun) in self.devices(record)? {
            if let Some(disk) = &lun.disk {
                return self.device_of(disk).map(Some);
            }
        }
        Ok(None)
    }

    /// See [`super::Attacher::disconnect`].
    pub async fn disconnect(self, record: &IscsiRecord) -> Result<(), HostError> {
        let _guards = self.locks.lock(record).await;
        self.disconnect_locked(record).await
    }

    async fn disconnect_locked(self, record: &IscsiRecord) -> Result<(), HostError> {
        let devices = self.devices(record)?;
        // All of them first: a map above several paths must not lose one of them.
        let mut flushed = Ok(());
        for (_, lun) in &devices {
            flushed = flushed.and(self.release_map(lun).await?);
            self.check_unused(lun).await?;
        }
        for (session, lun) in &devices {
            flushed = flushed.and(self.flush(session, lun).await?);
            self.delete(lun).await?;
        }
        self.close_sessions(record).await?;
        // Told once all is gone: nobody could do anything about it any more.
        flushed
    }

    /// See [`super::Attacher::cut`].
    pub async fn cut(self, record: &IscsiRecord) -> Result<(), HostError> {
        let _guards = self.locks.lock(record).await;
        // The kernel answers what waits for a blocked disk when it is deleted, and only then.
        for (_, lun) in self.devices(record)? {
            self.delete(&lun).await?;
        }
        // iscsid may be in the middle of another attempt to log in, and not listen.
        if let Err(error) = self.close_sessions(record).await {
            tracing::info!("its session is ended later: {}", Chain(&error));
        }
        Ok(())
    }

    /// See [`super::Attacher::rescan`].
    pub async fn rescan(self, record: &IscsiRecord) -> Result<Option<Device>, HostError> {
        let _guards = self.locks.lock(record).await;
        for (_, lun) in self.devices(record)? {
            self.read_capacity(&lun).await?;
        }
        self.find(record)
    }

    /// The record of a device that somebody else, such as the Go driver, connected; `None` when
    /// it is below no session. It says that we opened the session: only for a device that is
    /// being taken over.
    pub fn adopt(self, number: DeviceNumber) -> Result<Option<IscsiRecord>, HostError> {
        for session in session::all(self.paths)? {
            let Some(portal) = session.portal else { continue };
            for lun in session.luns() {
                let Some(disk) = &lun.disk else { continue };
                let disks = [Some(disk.clone()), multipath::map_over(self.paths, disk)];
                let is_it = |name: &String| {
                    super::block::device_named(self.paths, name).is_ok_and(|d| d.number == number)
                };
                if disks.iter().flatten().any(is_it) {
                    let path = IscsiPath {
                        portal: portal.to_string(),
                        iqn: session.iqn.clone(),
                        lun: lun.lun,
                        opened_session: true,
                        wrote_node: true,
                    };
                    let (wwid, boot_id) = (lun.wwid(), self.boot_id()?);
                    return Ok(Some(IscsiRecord { paths: vec![path], wwid, boot_id }));
                }
            }
        }
        Ok(None)
    }

    /// Every device of the record that is there, with its session. In a session that is not ours
    /// only the device that we saw when we connected counts.
    fn devices(self, record: &IscsiRecord) -> Result<Vec<(Session, session::Lun)>, HostError> {
        let sessions = session::all(self.paths)?;
        let mut devices = Vec::new();
        for path in &record.paths {
            for session in sessions.iter().filter(|session| session.serves(path)) {
                let Some(lun) = session.lun(path.lun) else { continue };
                let seen = record.wwid.is_some() && lun.wwid() == record.wwid;
                if seen || self.is_ours(record, path)? {
                    devices.push((session.clone(), lun));
                } else {
                    tracing::warn!(
                        target_name = path.iqn,
                        lun = path.lun,
                        "a device that cannot be proven ours is left alone"
                    );
                }
            }
        }
        Ok(devices)
    }

    /// Whether the session through this path, if there is one, was opened by this driver.
    fn is_ours(self, record: &IscsiRecord, path: &IscsiPath) -> Result<bool, HostError> {
        let boot_id = self.boot_id()?;
        if path.opened_session && record.boot_id == boot_id {
            return Ok(true);
        }
        Ok(self.db().owner(path)? == Owner::Us(boot_id))
    }

    fn db(self) -> NodeDb {
        NodeDb::find(self.paths)
    }

    fn boot_id(self) -> Result<String, HostError> {
        process::boot_id(self.paths).map_err(|source| {
            HostError::io("read", self.paths.proc.join("sys/kernel/random/boot_id"), source)
        })
    }
}

/// Adds words to an error where its kind has room for them.
fn add_to(mut error: HostError, text: &str) -> HostError {
    match &mut error {
        HostError::Tool { what, .. }
        | HostError::Busy { what }
        | HostError::Refused { what }
        | HostError::NotBlank { what }
        | HostError::Unsupported { what }
        | HostError::Login { what } => what.push_str(text),
        HostError::Io { .. } | HostError::Timeout { .. } => {}
    }
    error
}

#[cfg(test)]
mod tests {
    use super::session::tests::{FakeSys, path};
    use super::*;

    const IQN: &str = "iqn.a:1";
    const PORTAL: &str = "10.0.0.9:3260";

    fn record(opened_session: bool, boot_id: &str, wwid: Option<&str>) -> IscsiRecord {
        IscsiRecord {
            paths: vec![IscsiPath { opened_session, ..path(IQN, PORTAL, 1) }],
            wwid: wwid.map(str::to_owned),
            boot_id: boot_id.to_owned(),
        }
    }

    /// How many devices of a record count, with a session whose LUN 1 has the id `naa.1`.
    fn devices(record: &IscsiRecord, node_of_boot: Option<&str>) -> usize {
        let sys = FakeSys::new();
        sys.session(1, IQN, "10.0.0.9", 3260, "LOGGED_IN");
        sys.lun(1, 1, "0", Some("sda"), "naa.1");
        let paths = sys.paths();
        if let Some(boot_id) = node_of_boot {
            NodeDb::find(&paths).write(&record.paths[0], None, None, boot_id).unwrap();
        }
        let (exec, locks) = (Exec::new(&paths), TargetLocks::default());
        let connector = Connector { paths: &paths, exec: &exec, iface: None, locks: &locks };
        connector.devices(record).unwrap().len()
    }

    #[test]
    fn a_device_in_a_session_of_ours_is_ours() {
        assert_eq!(devices(&record(true, "boot-1", None), None), 1, "by the journal");
        assert_eq!(devices(&record(false, "boot-1", None), Some("boot-1")), 1, "by the mark");
    }

    #[test]
    fn what_was_ours_before_a_reboot_is_not_ours() {
        assert_eq!(devices(&record(true, "boot-0", None), None), 0);
        assert_eq!(devices(&record(false, "boot-0", None), Some("boot-0")), 0);
    }

    #[test]
    fn in_a_session_of_somebody_else_only_the_device_that_was_seen_counts() {
        assert_eq!(devices(&record(false, "boot-1", Some("naa.1")), None), 1);
        assert_eq!(devices(&record(false, "boot-1", Some("naa.2")), None), 0);
        assert_eq!(devices(&record(false, "boot-1", None), None), 0);
    }

    #[tokio::test]
    async fn records_that_share_a_target_exclude_each_other() {
        let locks = TargetLocks::default();
        let (one, mut two) = (record(false, "", None), record(false, "", None));
        two.paths.insert(0, path("iqn.b:2", PORTAL, 1));
        let held = locks.lock(&one).await;
        let wait = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(wait, locks.lock(&two)).await.is_err());
        drop(held);
        assert_eq!(locks.lock(&two).await.len(), 2);
    }
}
