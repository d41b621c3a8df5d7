//! Other processes, through `/proc`: is an engine alive, who holds a filesystem.

use super::Paths;
use super::filesystem::mountinfo::DeviceNumber;
use std::path::Path;

/// The start time (clock ticks since boot) of a process, field 22 of `/proc/PID/stat`; `None`
/// when there is no such process.
pub fn start_time(paths: &Paths, pid: i32) -> Option<u64> {
    todo!()
}

/// The kernel's boot id: changes at every boot.
pub fn boot_id(paths: &Paths) -> std::io::Result<String> {
    let text = std::fs::read_to_string(paths.proc.join("sys/kernel/random/boot_id"))?;
    Ok(text.trim().to_owned())
}

/// A process in another mount namespace that still has the filesystem mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountHolder {
    /// One process of that namespace.
    pub pid: i32,
    /// Its command name.
    pub command: String,
    /// Where it sees the filesystem; empty when its mountinfo could not be read.
    pub mount_point: String,
}

/// Looks through the mount namespaces of all processes for mounts of the device.
///
/// Not holders: our own namespace; *slave copies* of our mount at `ours` (same path, `master:N`
/// of our peer group), which go when we unmount. A mountinfo that can't be read counts as a holder
/// (a process that has just ended does not).
pub fn mount_holders(paths: &Paths, device: DeviceNumber, ours: &Path) -> Vec<MountHolder> {
    todo!()
}

/// Processes of our own namespace that keep files open below `path` (to say who makes umount
/// busy): pid and command.
pub fn file_users(paths: &Paths, path: &Path) -> Vec<(i32, String)> {
    todo!()
}
