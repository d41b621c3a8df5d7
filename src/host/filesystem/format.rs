//! mkfs. Takes a [`Blank`], so nothing else can be formatted.

use uuid::Uuid;

use super::probe::{Blank, FsType};
use crate::host::{Exec, HostError};

/// Makes a filesystem with this UUID. `extra` = words of `mkfs_opts`, added after our own
/// (`-m0 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard` for ext4, `-K` for xfs and btrfs).
/// Never `-F`/`-f`.
pub async fn mkfs(
    exec: &Exec,
    blank: Blank,
    fs_type: FsType,
    uuid: Uuid,
    extra: &[String],
) -> Result<(), HostError> {
    todo!()
}

/// Splits and checks `mkfs_opts`: words, no `-F`, `-f`, `--force`, no second device, no UUID.
pub fn check_options(fs_type: FsType, options: &str) -> Result<Vec<String>, String> {
    todo!()
}

/// The tool that makes a filesystem.
pub fn tool(fs_type: FsType) -> &'static str {
    match fs_type {
        FsType::Ext4 => "mkfs.ext4",
        FsType::Xfs => "mkfs.xfs",
        FsType::Btrfs => "mkfs.btrfs",
    }
}
