//! Which directory of the filesystem containers see.
//!
//! The Go driver hands out `MountPoint/NAME/volume_content`, so that databases don't meet
//! `lost+found`. The sub-directory is opened with openat2(RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV):
//! a foreign volume may hold a symbolic link to `/`.
//!
//! These calls touch the volume and may hang with it: run them off the runtime, with a deadline.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchown, fsync};

use crate::effects::{self, Kind};
use crate::host::HostError;

/// Mode of a new content directory: image users are not root, and must be able to enter.
const DEFAULT_MODE: u32 = 0o755;

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

/// Looks at the root of a mount. Something other than a directory under the content directory's
/// name counts as data.
pub fn inspect(mount: &Path, content_directory: &str) -> Result<RootContents, HostError> {
    check_name(content_directory)?;
    let root = open_root(mount)?;
    if find(&root, mount, content_directory)?.is_some() {
        return Ok(RootContents::HasContentDirectory);
    }
    let entries = fs::read_dir(mount).map_err(|e| HostError::io("list", mount, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| HostError::io("list", mount, e))?;
        if entry.file_name() != "lost+found" {
            return Ok(RootContents::Data);
        }
    }
    Ok(RootContents::Empty)
}

/// Creates the content directory (0755 unless told) if it is missing; repairs the Go driver's mode
/// 0000 to 0755, exactly that. A symbolic link or anything but a directory is refused.
///
/// A new directory has mode 0000 until its owner is right: an empty one of that mode is one that a
/// crash left half made, and is finished.
pub fn ensure(
    mount: &Path,
    content_directory: &str,
    ownership: &Ownership,
) -> Result<(), HostError> {
    check_name(content_directory)?;
    let path = mount.join(content_directory);
    let root = open_root(mount)?;
    if let Some(directory) = find(&root, mount, content_directory)? {
        let stat = fstat(&directory).map_err(|e| HostError::io("look at", &path, e.into()))?;
        if stat.st_mode & 0o7777 != 0 {
            return Ok(());
        }
        let is_empty =
            fs::read_dir(&path).map_err(|e| HostError::io("list", &path, e))?.next().is_none();
        if is_empty {
            return finish(&directory, &path, mount, ownership);
        }
        return set_mode(&directory, &path, DEFAULT_MODE);
    }
    let make = || Ok::<_, HostError>(mkdirat(&root, content_directory, Mode::empty()));
    match effects::run_blocking(Kind::File, || format!("mkdir {}", path.display()), make)? {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            return Err(HostError::Refused {
                what: format!(
                    "{content_directory} on this volume is a symbolic link, a mount or no \
                     directory, and containers would see what is behind it; look at the volume by \
                     hand, or name another ContentDirectory"
                ),
            });
        }
        Err(e) => return Err(HostError::io("create", path, e.into())),
    }
    let directory = find(&root, mount, content_directory)?.ok_or_else(|| HostError::Refused {
        what: format!("{} vanished while it was made", path.display()),
    })?;
    finish(&directory, &path, mount, ownership)
}

fn finish(
    directory: &OwnedFd,
    path: &Path,
    mount: &Path,
    ownership: &Ownership,
) -> Result<(), HostError> {
    own(directory, path, ownership)?;
    effects::run_blocking(
        Kind::File,
        || format!("fsync {}", path.display()),
        || fsync(directory).map_err(|e| HostError::io("fsync", path, e.into())),
    )?;
    sync_root(mount)
}

/// Sets owner and mode of a volume's root when the root itself is handed out and was just made.
pub fn own_root(mount: &Path, ownership: &Ownership) -> Result<(), HostError> {
    let root = open_root(mount)?;
    own(&root, mount, ownership)?;
    sync_root(mount)
}

/// One plain name: what containers see is a directory right below the root.
fn check_name(name: &str) -> Result<(), HostError> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    if plain {
        return Ok(());
    }
    Err(HostError::Refused {
        what: format!("{name:?} cannot be a content directory: it must be one plain name"),
    })
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn open_root(mount: &Path) -> Result<OwnedFd, HostError> {
    open(mount, DIRECTORY, Mode::empty()).map_err(|e| HostError::io("open", mount, e.into()))
}

/// The directory of that name on the same filesystem; `None` for nothing, a link, a mount or a file.
fn find(root: &OwnedFd, mount: &Path, name: &str) -> Result<Option<OwnedFd>, HostError> {
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::RESOLVE_BENEATH;
    let opened = match openat2(root, name, OpenHow::new().flags(DIRECTORY).resolve(resolve)) {
        // Before Linux 5.6. For a single name O_NOFOLLOW and the device number say the same.
        Err(Errno::ENOSYS) => open_on_same_device(root, name),
        opened => opened,
    };
    match opened {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => Ok(None),
        Err(e) => Err(HostError::io("open", mount.join(name), e.into())),
    }
}

fn open_on_same_device(root: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
    let directory = openat(root, name, DIRECTORY, Mode::empty())?;
    if fstat(&directory)?.st_dev == fstat(root)?.st_dev { Ok(directory) } else { Err(Errno::EXDEV) }
}

fn own(directory: &OwnedFd, path: &Path, ownership: &Ownership) -> Result<(), HostError> {
    let (uid, gid) = (ownership.uid.map(Uid::from_raw), ownership.gid.map(Gid::from_raw));
    effects::run_blocking(
        Kind::File,
        || format!("chown {}", path.display()),
        || {
            fchown(directory, uid, gid)
                .map_err(|e| HostError::io("change the owner of", path, e.into()))
        },
    )?;
    // After the owner: changing that clears set-id bits.
    set_mode(directory, path, ownership.mode.unwrap_or(DEFAULT_MODE))
}

fn set_mode(directory: &OwnedFd, path: &Path, mode: u32) -> Result<(), HostError> {
    effects::run_blocking(
        Kind::File,
        || format!("chmod {}", path.display()),
        || {
            fchmod(directory, Mode::from_bits_truncate(mode))
                .map_err(|e| HostError::io("change the mode of", path, e.into()))
        },
    )
}

fn sync_root(mount: &Path) -> Result<(), HostError> {
    effects::run_blocking(
        Kind::File,
        || format!("fsync {}", mount.display()),
        || fsync(open_root(mount)?).map_err(|e| HostError::io("fsync", mount, e.into())),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    const NAME: &str = "volume_content";

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn lost_found_alone_is_empty_and_anything_else_is_data() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("lost+found")).unwrap();
        assert_eq!(inspect(root.path(), NAME).unwrap(), RootContents::Empty);
        fs::write(root.path().join(NAME), "a file").unwrap();
        assert_eq!(inspect(root.path(), NAME).unwrap(), RootContents::Data);
        fs::remove_file(root.path().join(NAME)).unwrap();
        ensure(root.path(), NAME, &Ownership::default()).unwrap();
        assert_eq!(inspect(root.path(), NAME).unwrap(), RootContents::HasContentDirectory);
    }

    #[test]
    fn a_new_directory_gets_owner_and_mode_and_an_old_one_keeps_its_own() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(NAME);
        let postgres = Ownership { uid: Some(999), gid: Some(998), mode: Some(0o2770) };
        ensure(root.path(), NAME, &postgres).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), mode(&path)), (999, 998, 0o2770));
        ensure(root.path(), NAME, &Ownership::default()).unwrap();
        assert_eq!((path.metadata().unwrap().uid(), mode(&path)), (999, 0o2770));
    }

    #[test]
    fn only_the_mode_0000_of_the_go_driver_is_repaired() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(NAME);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("data"), "").unwrap();
        for (found, kept) in [(0o000, 0o755), (0o100, 0o100), (0o700, 0o700)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(found)).unwrap();
            ensure(root.path(), NAME, &Ownership { mode: Some(0o777), ..Ownership::default() })
                .unwrap();
            assert_eq!(mode(&path), kept);
        }
    }

    #[test]
    fn a_directory_that_a_crash_left_half_made_is_finished() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(NAME);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        let ownership = Ownership { uid: Some(7), gid: None, mode: Some(0o700) };
        ensure(root.path(), NAME, &ownership).unwrap();
        assert_eq!((path.metadata().unwrap().uid(), mode(&path)), (7, 0o700));
    }

    #[test]
    fn a_link_or_a_file_in_its_place_is_refused_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(NAME);
        symlink("/", &path).unwrap();
        assert_eq!(inspect(root.path(), NAME).unwrap(), RootContents::Data);
        let error = ensure(root.path(), NAME, &Ownership::default()).unwrap_err();
        assert!(matches!(error, HostError::Refused { .. }), "{error}");
        assert!(path.is_symlink());
        for name in ["", ".", "..", "a/b", "/etc"] {
            assert!(ensure(root.path(), name, &Ownership::default()).is_err(), "{name}");
        }
    }

    #[test]
    fn the_way_of_old_kernels_refuses_the_same() {
        let root = tempfile::tempdir().unwrap();
        symlink("/", root.path().join("link")).unwrap();
        fs::create_dir(root.path().join("real")).unwrap();
        let descriptor = open_root(root.path()).unwrap();
        assert!(open_on_same_device(&descriptor, "real").is_ok());
        assert!(open_on_same_device(&descriptor, "link").is_err());
        let slash = open_root(Path::new("/")).unwrap();
        assert_eq!(open_on_same_device(&slash, "proc").unwrap_err(), Errno::EXDEV);
    }

    #[test]
    fn a_handed_out_root_gets_owner_and_mode() {
        let root = tempfile::tempdir().unwrap();
        own_root(root.path(), &Ownership { uid: Some(5), ..Ownership::default() }).unwrap();
        assert_eq!(root.path().metadata().unwrap().uid(), 5);
        assert_eq!(mode(root.path()), 0o755);
    }
}
