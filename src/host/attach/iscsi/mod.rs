//! The iSCSI connector: iscsiadm for login and logout, sysfs for everything else.

use serde::{Deserialize, Serialize};

/// An iSCSI LUN of this host. Lists, so that multipath needs no other shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IscsiRecord {
    /// Every way to the volume that Cinder named, in its order.
    pub paths: Vec<IscsiPath>,
    /// World-wide id seen when it was connected.
    pub wwid: Option<String>,
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
    /// We opened the session (we log out when no other LUN uses it). Set *before* the login, so a
    /// crash in between is cleaned up.
    pub opened_session: bool,
    /// We wrote the node record.
    pub wrote_node: bool,
}

/// One lock a target: logins, logouts and scans of one target exclude each other.
#[derive(Debug, Default)]
pub struct TargetLocks {}
