//! Block devices of volumes on this host. A new connection type is a file here and one arm in
//! [`Attacher::plan`].
//!
//! ```text
//! connection_info ─plan─▶ DeviceRecord ─connect─▶ Device      (the record is journaled first)
//!                         DeviceRecord ─find────▶ Option<Device>
//!                         DeviceRecord ─disconnect─▶ ()       (needs no secret, no cloud)
//! ```

pub mod block;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod iscsi;
pub mod local;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::filesystem::mountinfo::DeviceNumber;
use super::identity::HostIdentity;
use super::{Exec, HostError, Paths};
use crate::connection_info::ConnectionInfo;
use crate::shown::shown;

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
    /// Whether it carries I/O.
    pub state: DeviceState,
    /// World-wide id, where the transport has one.
    pub wwid: Option<String>,
}

/// Whether a device carries I/O, by the kernel's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// It does.
    Running,
    /// The kernel holds its I/O back until the session with its target is there again, or is given
    /// up: a restart of iscsid, a network that stutters. Nothing is lost yet.
    Waiting,
    /// It does not, and will not by itself.
    Failed,
}

/// Connects and disconnects devices. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Attacher {
    paths: Paths,
    exec: Exec,
    iscsi_iface: Option<String>,
    locks: Arc<iscsi::TargetLocks>,
}

impl Attacher {
    /// An attacher for this host.
    pub fn new(paths: Paths, exec: Exec, identity: &HostIdentity) -> Self {
        // `default` is what a login without a name takes anyway.
        let iscsi_iface = identity.iscsi_iface.clone().filter(|name| name != "default");
        Self { paths, exec, iscsi_iface, locks: Arc::default() }
    }

    fn iscsi(&self) -> iscsi::Connector<'_> {
        iscsi::Connector {
            paths: &self.paths,
            exec: &self.exec,
            iface: self.iscsi_iface.as_deref(),
            locks: &self.locks,
        }
    }

    /// Checks a connection_info (everything from the cloud is untrusted: control characters,
    /// paths, portals) and says what connecting it will put on this host. `encrypted` volumes and
    /// types we lack are [`HostError::Unsupported`]. Changes nothing.
    pub fn plan(&self, info: &ConnectionInfo) -> Result<DeviceRecord, HostError> {
        if is_encrypted(info) {
            return Err(HostError::Unsupported {
                what: "the volume is encrypted, and this driver cannot get its key: what it wrote \
                       would damage the volume; use a volume type without encryption"
                    .to_owned(),
            });
        }
        match info.driver_volume_type.as_str() {
            "local" => local::plan(&self.paths, info).map(DeviceRecord::Local),
            "iscsi" => self.iscsi().plan(info).map(DeviceRecord::Iscsi),
            other => Err(HostError::Unsupported {
                what: format!(
                    "the volume's storage is reached by \"{}\", which this driver does not \
                     have; it has iscsi and local: use a volume type on such a back end",
                    shown(other)
                ),
            }),
        }
    }

    /// Connects. The record is updated with what only connecting tells (whether we opened the
    /// session, wwid): journal it again. On failure everything that this call did on the host is
    /// undone, or the error says what could not be.
    ///
    /// `size` is the volume's in bytes: a smaller device, or one that is mounted, held or does not
    /// run, is refused.
    pub async fn connect(
        &self,
        record: &mut DeviceRecord,
        info: &ConnectionInfo,
        size: u64,
    ) -> Result<Device, HostError> {
        match record {
            DeviceRecord::Local(record) => local::connect(&self.paths, record, size).await,
            DeviceRecord::Iscsi(record) => self.iscsi().connect(record, info, size).await,
        }
    }

    /// The device of a record, if the kernel has it: for iSCSI, the LUN below a session with that
    /// target in sysfs, never a by-path link.
    pub async fn find(&self, record: &DeviceRecord) -> Result<Option<Device>, HostError> {
        match record {
            DeviceRecord::Local(record) => local::find(&self.paths, record).await,
            DeviceRecord::Iscsi(record) => self.iscsi().find(record),
        }
    }

    /// Flushes and removes the device, logs out if we opened the session and no other LUN uses
    /// it, deletes the node record. What is already gone is success. Never touches a device that
    /// is mounted or claimed in any namespace ([`HostError::Busy`]), nor one that is not proven
    /// to be the record's. An error of the flush is told after everything was removed; calling
    /// again then succeeds.
    pub async fn disconnect(&self, record: &DeviceRecord) -> Result<(), HostError> {
        match record {
            DeviceRecord::Local(record) => local::disconnect(&self.paths, record).await,
            DeviceRecord::Iscsi(record) => self.iscsi().disconnect(record).await,
        }
    }

    /// Ends every use of a device that was taken from this host, mounted or not: what waits for its
    /// target gets an error now instead of in two minutes. [`Attacher::disconnect`] is still to
    /// follow.
    pub async fn cut(&self, record: &DeviceRecord) -> Result<(), HostError> {
        match record {
            DeviceRecord::Local(_) => Ok(()),
            DeviceRecord::Iscsi(record) => self.iscsi().cut(record).await,
        }
    }

    /// Makes the kernel look at the device's size again (the volume was extended); answers it as
    /// it is then.
    pub async fn rescan(&self, record: &DeviceRecord) -> Result<Option<Device>, HostError> {
        match record {
            DeviceRecord::Local(record) => local::rescan(&self.paths, record).await,
            DeviceRecord::Iscsi(record) => self.iscsi().rescan(record).await,
        }
    }

    /// The record of an iSCSI device that was connected without us (the Go driver did) and that
    /// the driver takes over, session and node record included; `None` when the device is below no
    /// session. The caller has proven that it is the volume's.
    pub fn adopt(&self, number: DeviceNumber) -> Result<Option<DeviceRecord>, HostError> {
        Ok(self.iscsi().adopt(number)?.map(DeviceRecord::Iscsi))
    }
}

/// Whether Cinder gives the volume to read only.
pub fn is_read_only(info: &ConnectionInfo) -> bool {
    info.data.0.get("access_mode").and_then(Value::as_str) == Some("ro")
}

/// Anything but a clear no is a yes: writing in clear to an encrypted volume destroys it.
fn is_encrypted(info: &ConnectionInfo) -> bool {
    !matches!(info.data.0.get("encrypted"), None | Some(Value::Null | Value::Bool(false)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::connection_info::ConnectionData;

    fn attacher() -> Attacher {
        let paths = Paths::default();
        let identity = HostIdentity {
            initiator: None,
            ip: None,
            host: "host".into(),
            uuid: uuid::Uuid::nil(),
            iscsi_iface: Some("default".into()),
        };
        Attacher::new(paths.clone(), Exec::new(&paths), &identity)
    }

    fn info(kind: &str, data: Value) -> ConnectionInfo {
        let Value::Object(data) = data else { panic!("not an object") };
        ConnectionInfo { driver_volume_type: kind.into(), data: ConnectionData(data) }
    }

    #[test]
    fn a_type_that_is_not_there_is_named() {
        let error = attacher().plan(&info("rbd", json!({}))).unwrap_err();
        assert!(matches!(error, HostError::Unsupported { .. }));
        assert!(error.to_string().contains("\"rbd\""), "{error}");
    }

    #[test]
    fn an_encrypted_volume_is_refused_whatever_its_type() {
        for kind in ["iscsi", "local"] {
            for encrypted in [json!(true), json!("True"), json!(1)] {
                let data = json!({
                    "target_portal": "10.0.0.9:3260",
                    "target_iqn": "iqn.a:1",
                    "target_lun": 1,
                    "device_path": "/dev/null",
                    "encrypted": encrypted,
                });
                let error = attacher().plan(&info(kind, data)).unwrap_err();
                assert!(error.to_string().contains("encrypted"), "{error}");
            }
        }
    }

    #[test]
    fn a_record_goes_through_the_journal_unchanged() {
        let data = json!({
            "target_portal": "10.0.0.9:3260",
            "target_iqn": "iqn.a:1",
            "target_lun": 1,
            "auth_method": "CHAP",
            "auth_username": "hidden",
            "auth_password": "hidden",
            "encrypted": false,
        });
        let record = attacher().plan(&info("iscsi", data)).unwrap();
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.contains(r#""type":"iscsi""#), "{text}");
        assert!(!text.contains("hidden"), "{text}");
        assert_eq!(serde_json::from_str::<DeviceRecord>(&text).unwrap(), record);
    }
}
