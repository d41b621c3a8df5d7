//! Connection type `local`: the device is already there (`data.device_path`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A device that is simply there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalRecord {
    /// `/dev/loop0`, `/dev/drbd1000`.
    pub device_path: PathBuf,
}
