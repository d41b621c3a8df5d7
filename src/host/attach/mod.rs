//! Block devices of volumes on this host. A new connection type is a file here and one arm in
//! [`Attacher::plan`].
//!
//! ```text
//! connection_info ─plan─▶ DeviceRecord ─connect─▶ Device      (the record is journaled first)
//!                         DeviceRecord ─find────▶ Option<Device>
//!                         DeviceRecord ─disconnect─▶ ()       (needs no secret, no cloud)
//! ```

pub mod iscsi;
pub mod local;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::filesystem::mountinfo::DeviceNumber;
use super::identity::HostIdentity;
use super::{Exec, HostError, Paths};
use crate::connection_info::ConnectionInfo;

/// What the host holds, or is about to hold, for one volume: enough to find and undo it after a
/// crash. Goes into the journal, so there is no secret in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum DeviceRecord {
    /// A device that is simply there.
    Local(local::LocalRecord),
    /// An iSCSI LUN.
    Iscsi(iscsi::IscsiRecord),
}

/// A block device that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `/dev/sdb`; a device-mapper node when multipathd owns the disk.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
    /// Size in bytes.
    pub size: u64,
    /// The kernel says read-only.
    pub read_only: bool,
    /// The kernel says it runs (not offline, not blocked).
    pub running: bool,
    /// World-wide id, where the transport has one.
    pub wwid: Option<String>,
}

/// Connects and disconnects devices. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Attacher {
    paths: Paths,
    exec: Exec,
    iscsi_iface: Option<String>,
    locks: std::sync::Arc<iscsi::TargetLocks>,
}

impl Attacher {
    /// An attacher for this host.
    pub fn new(paths: Paths, exec: Exec, identity: &HostIdentity) -> Self {
        todo!()
    }

    /// Checks a connection_info (everything from the cloud is untrusted: control characters,
    /// paths, portals) and says what connecting it will put on this host. `encrypted` volumes and
    /// types we lack are [`HostError::Unsupported`]. Changes nothing.
    pub fn plan(&self, info: &ConnectionInfo) -> Result<DeviceRecord, HostError> {
        todo!()
    }

    /// Connects. The record is updated with what only connecting tells (which portal, whether we
    /// opened the session, H:C:T:L, wwid): journal it again. On failure everything that this call
    /// did on the host is undone, or the error says what could not be.
    ///
    /// `size` is the volume's in bytes: a smaller device, or one that is mounted, held or does not
    /// run, is refused.
    pub async fn connect(
        &self,
        record: &mut DeviceRecord,
        info: &ConnectionInfo,
        size: u64,
    ) -> Result<Device, HostError> {
        todo!()
    }

    /// The device of a record, if the kernel has it: for iSCSI, the LUN below a session with that
    /// target in sysfs, never a by-path link.
    pub async fn find(&self, record: &DeviceRecord) -> Result<Option<Device>, HostError> {
        todo!()
    }

    /// Flushes and removes the device, logs out if we opened the session and no other LUN uses
    /// it, deletes the node record. What is already gone is success. Never touches a device that
    /// is mounted anywhere in our namespace, nor one of a session that `record` does not own.
    pub async fn disconnect(&self, record: &DeviceRecord) -> Result<(), HostError> {
        todo!()
    }

    /// Makes the kernel look at the device's size again (the volume was extended); answers it as
    /// it is then.
    pub async fn rescan(&self, record: &DeviceRecord) -> Result<Option<Device>, HostError> {
        todo!()
    }
}
