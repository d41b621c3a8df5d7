//! Grows a mounted filesystem to its device.

use std::path::Path;

use super::probe::Filesystem;
use crate::host::attach::Device;
use crate::host::{Exec, HostError};

/// Whether the device is larger than the filesystem by more than its own rounding.
pub fn is_needed(device: &Device, fs: &Filesystem) -> bool {
    todo!()
}

/// `resize2fs DEVICE`, `xfs_growfs PATH`, `btrfs filesystem resize max PATH`.
pub async fn grow(
    exec: &Exec,
    device: &Device,
    fs: &Filesystem,
    mounted_at: &Path,
) -> Result<(), HostError> {
    todo!()
}
