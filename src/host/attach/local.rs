//! Connection type `local`: the device is already there (`data.device_path`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Device, block};
use crate::connection_info::ConnectionInfo;
use crate::host::{HostError, Paths};

/// A device that is simply there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalRecord {
    /// `/dev/loop0`, `/dev/drbd1000`.
    pub device_path: PathBuf,
}

/// Reads `data.device_path`.
pub fn plan(_: &Paths, info: &ConnectionInfo) -> Result<LocalRecord, HostError> {
    match info.data.0.get("device_path").and_then(Value::as_str) {
        Some(path) if path.starts_with("/dev/") => Ok(LocalRecord { device_path: path.into() }),
        _ => Err(HostError::Refused {
            what: "Cinder's connection_info is unusable: `device_path` names no device".to_owned(),
        }),
    }
}

/// The device, if it is large enough.
pub async fn connect(paths: &Paths, record: &LocalRecord, size: u64) -> Result<Device, HostError> {
    let device = block::device_at(paths, &record.device_path)?;
    if device.size < size {
        return Err(HostError::Refused {
            what: format!("{} is smaller than the volume", record.device_path.display()),
        });
    }
    Ok(device)
}

/// The device, if it is there.
pub async fn find(paths: &Paths, record: &LocalRecord) -> Result<Option<Device>, HostError> {
    if record.device_path.exists() {
        block::device_at(paths, &record.device_path).map(Some)
    } else {
        Ok(None)
    }
}

/// Flushes the device, if it is there.
pub async fn disconnect(paths: &Paths, record: &LocalRecord) -> Result<(), HostError> {
    match find(paths, record).await? {
        Some(device) => block::flush(&device.path).await,
        None => Ok(()),
    }
}
