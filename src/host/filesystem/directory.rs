//! Which directory of the filesystem containers see.
//!
//! The Go driver hands out `MountPoint/NAME/volume_content`, so that databases don't meet
//! `lost+found`. The sub-directory is opened with openat2(RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV):
//! a foreign volume may hold a symbolic link to `/`.

use std::path::Path;

use crate::host::HostError;

/// What is at the root of a mounted filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootContents {
    /// Nothing but `lost+found`.
    Empty,
    /// The content directory is there, and is a real directory.
    HasContentDirectory,
    /// Other things, and no content directory.
    Data,
}

/// Owner and mode for a *new* content directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ownership {
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
    /// `mode`; 0755 when not given.
    pub mode: Option<u32>,
}

/// Looks at the root of a mount.
pub fn inspect(mount: &Path, content_directory: &str) -> Result<RootContents, HostError> {
    todo!()
}

/// Creates the content directory (0755 unless told) if it is missing; repairs the Go driver's mode
/// 0000 to 0755, exactly that. A symbolic link or anything but a directory is refused.
pub fn ensure(
    mount: &Path,
    content_directory: &str,
    ownership: &Ownership,
) -> Result<(), HostError> {
    todo!()
}

/// Sets owner and mode of a volume's root when the root itself is handed out and was just made.
pub fn own_root(mount: &Path, ownership: &Ownership) -> Result<(), HostError> {
    todo!()
}
