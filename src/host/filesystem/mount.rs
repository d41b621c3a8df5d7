//! Check, mount, verify, unmount.

use std::path::Path;

use super::mountinfo::MountEntry;
use super::probe::Filesystem;
use crate::host::attach::Device;
use crate::host::{Exec, HostError, Paths};

/// How to mount.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountOptions {
    /// Read-only, and without replaying the journal (`ro,noload` / `ro,norecovery`).
    pub read_only: bool,
    /// Words of `mount_opts`, already checked by [`check_options`].
    pub extra: Vec<String>,
}

/// Checks `mount_opts` against the allow-list; a refused one says why.
pub fn check_options(options: &str) -> Result<Vec<String>, String> {
    todo!()
}

/// Runs the filesystem's check when its superblock asks for one (e2fsck -p; xfs and btrfs never).
/// Errors that were not repaired are a refusal.
pub async fn check(exec: &Exec, device: &Device, fs: &Filesystem) -> Result<(), HostError> {
    todo!()
}

/// Creates `at` (0700) if need be, mounts the device there with mount(8) and `_netdev`, and
/// verifies by mountinfo that this very device is mounted there before anything touches the path.
/// `at` must be an empty directory, not a symbolic link, with nothing mounted on it.
pub async fn mount(
    exec: &Exec,
    paths: &Paths,
    device: &Device,
    fs: &Filesystem,
    at: &Path,
    options: &MountOptions,
) -> Result<MountEntry, HostError> {
    todo!()
}

/// `syncfs` on a mount. EIO and the like come back as an error: data may be lost.
pub async fn sync(at: &Path) -> Result<(), HostError> {
    todo!()
}

/// Unmounts what is at `at`, never lazily; [`HostError::Busy`] names the processes. Not mounted is
/// success. Verifies by mountinfo that it is gone, then removes the empty directory (a directory
/// that isn't empty is left and is no error).
pub async fn unmount(exec: &Exec, paths: &Paths, at: &Path) -> Result<(), HostError> {
    todo!()
}

/// Whether a mounted filesystem still works: its superblock is not read-only against `read_only`.
pub fn is_healthy(entry: &MountEntry, read_only: bool) -> bool {
    todo!()
}
