//! The directories that the driver needs: are they there, whose are they, on what are they.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, Uid, access};

use super::Findings;
use crate::host::Paths;
use crate::host::filesystem::mountinfo::{self, MountEntry};

/// Filesystems that another host can change or take away while volumes are mounted.
const OF_OTHERS: &[&str] = &["nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "9p"];

/// `StateDir`: what is to be undone after a crash is kept there.
pub(super) fn check_state(paths: &Paths, path: &Path, findings: &mut Findings) {
    const WHAT: &str = "StateDir";
    if !check_directory(WHAT, path, findings) || !check_room(WHAT, path, findings) {
        return;
    }
    let Some(mount) = mount_of(paths, path) else { return };
    let kind = mount.fs_type.as_str();
    if kind == "tmpfs" || OF_OTHERS.contains(&kind) {
        findings.warn(
            WHAT,
            format!(
                "{} is on {kind}: after a crash this host may have forgotten what it must undo",
                path.display()
            ),
            "set StateDir to a directory on a local disk",
        );
    }
}

/// `MountPoint`: volumes are mounted below it, and containers must see them there.
pub(super) fn check_mount_point(paths: &Paths, path: &Path, findings: &mut Findings) {
    const WHAT: &str = "MountPoint";
    if !check_directory(WHAT, path, findings) {
        return;
    }
    match mount_of(paths, path) {
        Some(mount) if mount.shared.is_none() => findings.warn(
            WHAT,
            format!(
                "{} is on a mount that is not shared ({}): a Docker with mounts of its own does \
                 not see the volumes",
                path.display(),
                mount.mount_point.display()
            ),
            format!("mount --make-rshared {}", mount.mount_point.display()),
        ),
        Some(mount) if OF_OTHERS.contains(&mount.fs_type.as_str()) => findings.warn(
            WHAT,
            format!("{} is on {}, which another host serves", path.display(), mount.fs_type),
            "set MountPoint to a directory on a local disk",
        ),
        _ => {}
    }
}

/// Whether it is, or can become, a directory for root alone. Says so.
fn check_directory(what: &'static str, path: &Path, findings: &mut Findings) -> bool {
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return check_missing(what, path, findings);
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            findings.skip(what, format_args!("{shown} is shown to root only"));
            return false;
        }
        Err(error) => {
            let mend = format!("ls -ld {shown}; move away what is in the way");
            findings.error(what, format!("{shown} cannot be used: {error}"), mend);
            return false;
        }
    };
    if !metadata.is_dir() {
        let mend = format!("mv {shown} {shown}.old");
        findings.error(what, format!("{shown} is there, and is no directory"), mend);
        return false;
    }
    if !check_writable(what, path, findings) {
        return false;
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 || metadata.uid() != 0 {
        findings.warn(
            what,
            format!("{shown} has mode {mode:04o} and owner {}: it is root's alone", metadata.uid()),
            format!("chown root:root {shown} && chmod 700 {shown}"),
        );
    } else {
        findings.ok(what, format!("{shown} is there, for root alone"));
    }
    true
}

/// The daemon makes it at its start, where it can.
fn check_missing(what: &'static str, path: &Path, findings: &mut Findings) -> bool {
    let Some(above) = path.ancestors().skip(1).find(|above| above.exists()) else { return false };
    if !above.is_dir() {
        let mend = format!("mv {0} {0}.old", above.display());
        findings.error(what, format!("{} is no directory", above.display()), mend);
        return false;
    }
    if !check_writable(what, above, findings) {
        return false;
    }
    findings.ok(what, format!("{} is not there yet; the daemon makes it", path.display()));
    true
}

fn check_writable(what: &'static str, path: &Path, findings: &mut Findings) -> bool {
    let shown = path.display();
    // Who may not write says nothing about the daemon, which is root.
    if !Uid::effective().is_root() {
        findings.skip(what, format_args!("whether root can write to {shown}"));
        return false;
    }
    match access(path, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => true,
        Err(errno) => {
            let mend = format!("findmnt --target {shown}; mount -o remount,rw it, or set {what}");
            findings.error(what, format!("{shown} cannot be written to: {}", errno.desc()), mend);
            false
        }
    }
}

/// Bytes that the journal needs at the least; its entries are small.
const ROOM: u64 = 1024 * 1024;

/// Nothing is mounted before the journal says so, so a full disk stops everything.
fn check_room(what: &'static str, path: &Path, findings: &mut Findings) -> bool {
    let Some(there) = path.ancestors().find(|above| above.exists()) else { return true };
    let Ok(filesystem) = statvfs(there) else { return true };
    // What is reserved for root counts. Some filesystems tell no figures, or none of files.
    let bytes = filesystem.blocks_free().saturating_mul(filesystem.fragment_size());
    let no_bytes = filesystem.blocks() > 0 && bytes < ROOM;
    let no_files = filesystem.files() > 0 && filesystem.files_free() == 0;
    if !no_bytes && !no_files {
        return true;
    }
    let lacks = if no_bytes { "space" } else { "inodes" };
    findings.error(
        what,
        format!("the filesystem of {} has no {lacks} left", path.display()),
        format!("df -h {0}; df -i {0}; make room, or set {what}", there.display()),
    );
    false
}

/// The mount that a path, or what is there of it, is on.
fn mount_of(paths: &Paths, path: &Path) -> Option<MountEntry> {
    let there = path.ancestors().find_map(|above| above.canonicalize().ok())?;
    let mounts = mountinfo::own(paths).ok()?;
    // Of two at one place the later hides the earlier.
    mounts
        .into_iter()
        .filter(|mount| there.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.components().count())
}
