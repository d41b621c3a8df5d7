//! `/proc/PID/mountinfo` (proc(5)).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::Paths;

/// major:minor of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
}

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Mount id.
    pub id: u32,
    /// Device of the filesystem.
    pub device: DeviceNumber,
    /// Path inside the filesystem that is the root of this mount.
    pub root: PathBuf,
    /// Where it is mounted (octal escapes undone; any bytes).
    pub mount_point: PathBuf,
    /// Per-mount options: `rw,noatime`.
    pub options: String,
    /// Peer group of `shared:N`.
    pub shared: Option<u32>,
    /// Peer group of `master:N`.
    pub master: Option<u32>,
    /// Filesystem type.
    pub fs_type: String,
    /// Source as given: `/dev/sdb`.
    pub source: String,
    /// Per-superblock options: `rw,errors=remount-ro`; a filesystem stopped by errors says `ro`.
    pub super_options: String,
}

/// Parses a whole mountinfo; a line that makes no sense is skipped.
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    todo!()
}

/// Mounts of our own namespace (`/proc/self/mountinfo`).
pub fn own(paths: &Paths) -> std::io::Result<Vec<MountEntry>> {
    let text = std::fs::read_to_string(paths.proc.join("self/mountinfo"))?;
    let entry = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let (major, minor) = words.get(2)?.split_once(':')?;
        Some(MountEntry {
            id: words.first()?.parse().ok()?,
            device: DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? },
            root: words.get(3)?.into(),
            mount_point: words.get(4)?.into(),
            options: (*words.get(5)?).to_owned(),
            shared: None,
            master: None,
            fs_type: String::new(),
            source: String::new(),
            super_options: String::new(),
        })
    };
    Ok(text.lines().filter_map(entry).collect())
}

/// The topmost mount at exactly this path, in our own namespace.
pub fn at(paths: &Paths, mount_point: &Path) -> std::io::Result<Option<MountEntry>> {
    todo!()
}
