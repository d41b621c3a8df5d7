//! Wire types of the VolumeDriver protocol. No I/O.

use serde_json::{Map, Value};

/// A volume in the answer to Get.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeInfo {
    /// The name that was asked for, byte for byte.
    pub name: String,
    /// Directory for containers; `None` (sent as "") unless mounted here.
    pub mountpoint: Option<String>,
    /// RFC 3339 with a zone; left out when unknown.
    pub created_at: Option<String>,
    /// Shown by `docker volume inspect`.
    pub status: Map<String, Value>,
}

/// A volume in the answer to List.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its Docker name.
    pub name: String,
    /// Directory for containers; `None` (sent as "") unless mounted here.
    pub mountpoint: Option<String>,
}
