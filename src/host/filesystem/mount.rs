//! Check, mount, verify, unmount.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::mountinfo::{self, DeviceNumber, MountEntry};
use super::probe::{Contents, Filesystem, FsType, probe_node};
use super::{block_device, blocking, mount_options};
use crate::effects::{self, Kind};
use crate::host::attach::Device;
use crate::host::exec::ExecError;
use crate::host::{Cmd, Exec, HostError, Paths, process};

/// e2fsck reads all metadata of a large filesystem; a Mount that outlives its caller goes on.
const CHECK_LIMIT: Duration = Duration::from_secs(600);
/// Replaying a journal, or ext4's wait for a stale multi-mount protection (44 s by default).
const MOUNT_LIMIT: Duration = Duration::from_secs(90);
/// Fits into the 50 s of an Unmount.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(40);
const SYNC_LIMIT: Duration = Duration::from_secs(40);
/// Whoever looks at a filesystem (`df`, a monitoring agent with a mount namespace of its own) keeps it
/// busy for moments, and is gone before it can be named.
const MOMENT: Duration = Duration::from_secs(1);
/// Between two tries in a [`MOMENT`].
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// For what only looks at `/proc`.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// Users of a busy filesystem that an error names.
const NAMED: usize = 8;
/// Mounts on top of each other at one path that unmount takes away.
const STACK_LIMIT: usize = 4;

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
    mount_options::check(options)
}

/// Runs the filesystem's check when its superblock asks for one (e2fsck -p; xfs and btrfs never).
/// Errors that were not repaired are a refusal.
pub async fn check(exec: &Exec, device: &Device, fs: &Filesystem) -> Result<(), HostError> {
    if !fs.needs_check || fs.fs_type != FsType::Ext4 {
        return Ok(());
    }
    let path = device.path.display();
    let cmd = Cmd::new("e2fsck", CHECK_LIMIT).arg("-p").arg(&device.path);
    let failed =
        |source| HostError::Tool { what: format!("cannot check the filesystem on {path}"), source };
    let output = exec.output(&cmd).await.map_err(failed)?;
    // e2fsck(8): a sum of 1 = corrected, 2 = corrected, reboot (when it is mounted), 4 = left
    // uncorrected, 8 = operational error, 16 = usage, 32 = cancelled, 128 = library error.
    match output.code {
        Some(0..4) => Ok(()),
        Some(code) if code & !0b111 == 0 => Err(HostError::Refused {
            what: format!(
                "the filesystem on {path} has errors that cannot be repaired without a person: {}; \
                 run e2fsck {path} by hand while the volume is attached",
                output.quote()
            ),
        }),
        code => Err(failed(ExecError::Failed {
            cmd: cmd.to_string(),
            status: output.status.clone(),
            code,
            output: output.quote(),
        })),
    }
}

/// Creates `at` (0700) if need be, mounts the device there with mount(8) and `_netdev`, and
/// verifies by mountinfo that this very device is mounted there before anything touches the path.
/// `at` must be an empty directory, not a symbolic link, with nothing mounted on it. Nothing stays
/// mounted after an error, unless mount(8) itself hangs.
pub async fn mount(
    exec: &Exec,
    paths: &Paths,
    device: &Device,
    fs: &Filesystem,
    at: &Path,
    options: &MountOptions,
) -> Result<MountEntry, HostError> {
    if device.read_only && !options.read_only {
        return Err(HostError::Refused {
            what: format!(
                "{} is attached read-only; mount the volume read-only (option read_only) or attach \
                 it for writing",
                device.path.display()
            ),
        });
    }
    for entry in mounts(paths)? {
        if entry.mount_point == at || entry.block_device() == Some(device.number) {
            return Err(HostError::Busy {
                what: format!(
                    "cannot mount {} at {}: {} is already mounted at {}",
                    device.path.display(),
                    at.display(),
                    entry.source,
                    entry.mount_point.display()
                ),
            });
        }
    }
    refuse_btrfs_copy(paths, device, fs).await?;
    let created = prepare(at)?;
    let mounted = mount_verified(exec, paths, device, fs, at, options).await;
    if mounted.is_err() {
        undo(exec, paths, device, at, created).await;
    }
    mounted
}

async fn mount_verified(
    exec: &Exec,
    paths: &Paths,
    device: &Device,
    fs: &Filesystem,
    at: &Path,
    options: &MountOptions,
) -> Result<MountEntry, HostError> {
    let mut words = words(fs, options);
    let mut result = exec.run(&mount_command(device, fs, at, &words)).await;
    if matches!(result, Err(ExecError::Failed { .. }))
        && fs.fs_type == FsType::Xfs
        && mounted_original(paths, device, fs).await?.is_some()
    {
        words.push("nouuid".to_owned());
        result = exec.run(&mount_command(device, fs, at, &words)).await;
    }
    result.map_err(|source| HostError::Tool {
        what: format!(
            "cannot mount {} ({}) at {}; the kernel's log (dmesg) says more",
            device.path.display(),
            fs.mount_type,
            at.display()
        ),
        source,
    })?;
    let entry = mountinfo::at(paths, at).map_err(|e| unreadable(paths, e))?;
    match entry {
        Some(entry)
            if entry.block_device() == Some(device.number)
                && entry.fs_type == fs.mount_type
                && is_healthy(&entry, options.read_only) =>
        {
            Ok(entry)
        }
        other => {
            unmount_strayed(exec, paths, device, at).await;
            Err(HostError::Refused {
                what: format!(
                    "mount reported success, but at {} there is {} and not {} of {}",
                    at.display(),
                    other.map_or("nothing".to_owned(), |entry| format!(
                        "{} of {} ({})",
                        entry.fs_type, entry.source, entry.super_options
                    )),
                    fs.mount_type,
                    device.path.display()
                ),
            })
        }
    }
}

/// The device was mounted nowhere before: where mount(8) was led, by a link that somebody put in
/// place of the directory, it is not left.
async fn unmount_strayed(exec: &Exec, paths: &Paths, device: &Device, at: &Path) {
    let strayed = mounts(paths)
        .unwrap_or_default()
        .into_iter()
        .find(|entry| entry.block_device() == Some(device.number) && entry.mount_point != at);
    let Some(entry) = strayed else { return };
    let cmd = Cmd::new("umount", UNMOUNT_LIMIT).arg("--no-canonicalize").arg(entry.mount_point);
    if let Err(error) = exec.run(&cmd).await {
        tracing::warn!(path = %at.display(), %error, "a mount went elsewhere and stays there");
    }
}

/// Takes back what a failed mount left. Its own failures are logged: the first error is the one to
/// report.
async fn undo(exec: &Exec, paths: &Paths, device: &Device, at: &Path, created: bool) {
    match mountinfo::at(paths, at) {
        Ok(Some(entry)) if entry.block_device() == Some(device.number) => {
            if let Err(error) = unmount(exec, paths, at).await {
                tracing::warn!(path = %at.display(), %error, "cannot undo a mount that failed");
            }
        }
        Ok(None) if created => remove_directory(at),
        _ => {}
    }
}

fn mount_command(device: &Device, fs: &Filesystem, at: &Path, words: &[String]) -> Cmd {
    Cmd::new("mount", MOUNT_LIMIT)
        .args(["-t", fs.mount_type, "-o", &words.join(",")])
        .arg(&device.path)
        .arg(at)
}

/// The value of `-o`.
///
/// `_netdev` makes the host unmount before its network goes. An explicit `rw` keeps mount(8) from
/// falling back to a read-only mount. Access times stay at the kernel's `relatime`.
fn words(fs: &Filesystem, options: &MountOptions) -> Vec<String> {
    let own: &[&str] = match (fs.mount_type, options.read_only) {
        ("ext2", true) => &["_netdev", "ro", "errors=remount-ro"],
        ("ext3" | "ext4", true) => &["_netdev", "ro", "noload", "errors=remount-ro"],
        ("xfs", true) => &["_netdev", "ro", "norecovery"],
        ("btrfs", true) => &["_netdev", "ro", "rescue=nologreplay"],
        ("ext2" | "ext3" | "ext4", false) => &["_netdev", "rw", "errors=remount-ro"],
        (_, true) => &["_netdev", "ro"],
        (_, false) => &["_netdev", "rw"],
    };
    own.iter().map(|word| (*word).to_owned()).chain(options.extra.iter().cloned()).collect()
}

/// Btrfs finds the devices of a filesystem by its UUID. A kernel before 6.7 takes a copy beside its
/// original for the same device that has moved, and may mount the original in its place; later ones
/// mount both, and would mount one volume twice just as well.
async fn refuse_btrfs_copy(
    paths: &Paths,
    device: &Device,
    fs: &Filesystem,
) -> Result<(), HostError> {
    if fs.fs_type != FsType::Btrfs {
        return Ok(());
    }
    match mounted_original(paths, device, fs).await? {
        None => Ok(()),
        Some(_) if paths.sys.join("fs/btrfs/features/temp_fsid").exists() => Ok(()),
        Some(original) => Err(HostError::Refused {
            what: format!(
                "the btrfs {} is mounted at {} already, from the volume that this one is a copy of, \
                 and this kernel (before 6.7) cannot have both: stop the containers that use that \
                 one, or use this one on another host",
                fs.uuid,
                original.mount_point.display()
            ),
        }),
    }
}

/// Where a filesystem with this type and UUID is mounted from another volume: then this one is its
/// copy (a clone, a snapshot), and XFS wants `nouuid`. The *same* volume under a second device name
/// is refused: mounted twice it would be destroyed.
async fn mounted_original(
    paths: &Paths,
    device: &Device,
    fs: &Filesystem,
) -> Result<Option<MountEntry>, HostError> {
    for entry in mounts(paths)?.into_iter().filter(|entry| entry.fs_type == fs.mount_type) {
        let Some(number) = entry.block_device().filter(|number| *number != device.number) else {
            continue;
        };
        // A device that cannot be read now is not known to be the original.
        let Ok(Contents::Filesystem(other)) = probe_node(Path::new(&entry.source)).await else {
            continue;
        };
        if other.uuid != fs.uuid {
            continue;
        }
        let identity = |number: DeviceNumber| {
            let block = paths.sys.join(format!("dev/block/{number}"));
            ["device/wwid", "dm/uuid", "loop/backing_file"]
                .iter()
                .find_map(|file| std::fs::read_to_string(block.join(file)).ok())
        };
        return match (identity(device.number), identity(number)) {
            (Some(ours), Some(theirs)) if ours != theirs => Ok(Some(entry)),
            _ => Err(HostError::Refused {
                what: format!(
                    "the {} {} is already mounted at {} from {}, which may be the same volume; if \
                     this ({}) is a copy of it, stop what uses that one, or use the copy on another \
                     host",
                    fs.mount_type,
                    fs.uuid,
                    entry.mount_point.display(),
                    entry.source,
                    device.path.display()
                ),
            }),
        };
    }
    Ok(None)
}

fn mounts(paths: &Paths) -> Result<Vec<MountEntry>, HostError> {
    mountinfo::own(paths).map_err(|e| unreadable(paths, e))
}

fn unreadable(paths: &Paths, source: std::io::Error) -> HostError {
    HostError::io("read", paths.proc.join("self/mountinfo"), source)
}

/// Makes sure that `at` is an empty directory which is reached through real directories only.
/// Creates what is missing: `at` and its parent (`MountPoint`) for root alone. Answers whether it
/// made `at`.
fn prepare(at: &Path) -> Result<bool, HostError> {
    let refuse = |what: String| Err(HostError::Refused { what });
    let mut created = false;
    let mut names: Vec<&OsStr> = Vec::new();
    for component in at.components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => names.push(name),
            _ => return refuse(format!("{} is not an absolute path", at.display())),
        }
    }
    if !at.is_absolute() || names.is_empty() {
        return refuse(format!("{} is no place for a mount", at.display()));
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut path = PathBuf::from("/");
    let mut directory: OwnedFd =
        open("/", flags, Mode::empty()).map_err(|e| HostError::io("open", "/", e.into()))?;
    for (index, name) in names.iter().enumerate() {
        path.push(name);
        let mut opened = openat(&directory, *name, flags, Mode::empty());
        if matches!(opened, Err(Errno::ENOENT)) {
            let mode = if index + 2 < names.len() { 0o755 } else { 0o700 };
            let make = || mkdirat(&directory, *name, Mode::from_bits_truncate(mode));
            match effects::run_blocking(
                Kind::File,
                || format!("mkdir {}", path.display()),
                || Ok::<_, HostError>(make()),
            )? {
                Ok(()) => created = true,
                Err(Errno::EEXIST) => {}
                Err(e) => return Err(HostError::io("create", path, e.into())),
            }
            opened = openat(&directory, *name, flags, Mode::empty());
        }
        directory = match opened {
            Ok(opened) => opened,
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                return refuse(format!(
                    "cannot mount at {}: {} is a symbolic link or no directory; set MountPoint to \
                     a path of real directories",
                    at.display(),
                    path.display()
                ));
            }
            Err(e) => return Err(HostError::io("open", path, e.into())),
        };
    }
    let mut entries = std::fs::read_dir(at).map_err(|e| HostError::io("list", at, e))?;
    if entries.next().is_some() {
        return refuse(format!(
            "cannot mount at {}: the directory holds files on this host's own disk, which the \
             volume would hide; move them away",
            at.display()
        ));
    }
    Ok(created)
}

/// `syncfs` on a mount. EIO and the like come back as an error: data may be lost.
pub async fn sync(at: &Path) -> Result<(), HostError> {
    let shown = format!("syncfs {}", at.display());
    let at = at.to_owned();
    let what = format!("writing out what is cached for {}", at.display());
    let sync = blocking(what, SYNC_LIMIT, move || {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mount =
            open(&at, flags, Mode::empty()).map_err(|e| HostError::io("open", &at, e.into()))?;
        nix::unistd::syncfs(mount)
            .map_err(|e| HostError::io("write out all data of", &at, e.into()))
    });
    effects::run(Kind::Kernel, || shown, sync).await
}

/// Unmounts what is at `at`, as [`take_away`], then removes the empty directory (a directory that
/// isn't empty is left and is no error).
///
/// The directory is also left when another mount namespace still holds the filesystem: removing a
/// directory detaches, lazily, whatever is mounted on it in other namespaces, and afterwards
/// nothing would show that the device is still in use.
pub async fn unmount(exec: &Exec, paths: &Paths, at: &Path) -> Result<(), HostError> {
    if let Some(device) = take_away(exec, paths, at).await? {
        remove_if_unheld(paths, device, at).await;
    }
    Ok(())
}

/// Unmounts what is at `at`, never lazily, and verifies by mountinfo that it is gone; answers the
/// device when nothing is mounted there any more. Not mounted is success. [`HostError::Busy`] names
/// the processes.
pub async fn take_away(
    exec: &Exec,
    paths: &Paths,
    at: &Path,
) -> Result<Option<DeviceNumber>, HostError> {
    let mut was = None;
    for _ in 0..STACK_LIMIT {
        match mountinfo::at(paths, at).map_err(|e| unreadable(paths, e))? {
            // Somebody's mount was there before ours: it stays theirs.
            Some(entry) if was.is_some_and(|device| device != entry.device) => return Ok(None),
            Some(entry) => was = Some(entry.device),
            None => return Ok(was),
        }
        unmount_one(exec, paths, at).await?;
    }
    Err(HostError::Busy { what: format!("{} is mounted over and over again", at.display()) })
}

/// Whether the kernel says that nobody has it mounted any more: [`block_device::is_free`].
pub async fn is_gone_everywhere(device: &Path, number: DeviceNumber) -> bool {
    let path = device.to_owned();
    let look = move || Ok(block_device::is_free(&path, number));
    let what = format!("asking for {} alone", device.display());
    blocking(what, LOOK_LIMIT, look).await.unwrap_or(false)
}

/// Takes away the uppermost mount.
async fn unmount_one(exec: &Exec, paths: &Paths, at: &Path) -> Result<(), HostError> {
    let begun = Instant::now();
    loop {
        // Plain umount(8), since it also tidies /run/mount/utab.
        let cmd = Cmd::new("umount", UNMOUNT_LIMIT).arg("--no-canonicalize").arg(at);
        match exec.run(&cmd).await {
            Ok(_) => return Ok(()),
            Err(ExecError::Failed { output, .. }) if output.contains("busy") => {
                let users = users(paths, at).await;
                if !users.is_empty() || begun.elapsed() >= MOMENT {
                    return Err(HostError::Busy { what: busy(at, &users) });
                }
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(source) => {
                if mountinfo::at(paths, at).is_ok_and(|entry| entry.is_none()) {
                    return Ok(());
                }
                let what = format!("cannot unmount {}", at.display());
                return Err(HostError::Tool { what, source });
            }
        }
    }
}

/// Who can be seen to keep a filesystem busy.
async fn users(paths: &Paths, at: &Path) -> Vec<String> {
    let (paths, path) = (paths.clone(), at.to_owned());
    let look = move || {
        let mut users: Vec<String> = process::file_users(&paths, &path)
            .into_iter()
            .map(|(pid, command)| format!("process {pid} ({command})"))
            .collect();
        let nested = mountinfo::own(&paths).unwrap_or_default();
        users.extend(
            nested
                .iter()
                .map(|entry| &entry.mount_point)
                .filter(|point| point.starts_with(&path) && **point != path)
                .map(|point| format!("a mount at {}", point.display())),
        );
        Ok(users)
    };
    blocking("looking for users", LOOK_LIMIT, look).await.unwrap_or_default()
}

fn busy(at: &Path, users: &[String]) -> String {
    let more = users.len().saturating_sub(NAMED);
    match users.is_empty() {
        true => format!(
            "{} is in use, by the kernel itself (a loop device, swap, an NFS export) or by a \
             process that cannot be seen",
            at.display()
        ),
        false => format!(
            "{} is in use by {}{}",
            at.display(),
            users.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", "),
            if more > 0 { format!(" and {more} more") } else { String::new() }
        ),
    }
}

async fn remove_if_unheld(paths: &Paths, device: DeviceNumber, at: &Path) {
    let (paths, path) = (paths.clone(), at.to_owned());
    let look = move || Ok(process::mount_holders(&paths, device, &path).is_empty());
    if blocking("looking for mounts in other namespaces", LOOK_LIMIT, look).await.unwrap_or(false) {
        remove_directory(at);
    }
}

/// Removes the directory of a mount that is gone, if it is empty. One that is missing, filled or
/// mounted on is fine; another failure, of the host's own disk, may be of the moment.
pub fn remove_directory(at: &Path) {
    const TRIES: u32 = 2;
    for _ in 0..TRIES {
        let what = || format!("rmdir {}", at.display());
        let removed = effects::run_blocking(Kind::File, what, || std::fs::remove_dir(at));
        let Err(error) = removed else { return };
        tracing::debug!(path = %at.display(), %error, "left the directory of a mount");
        let is_meant = [ErrorKind::NotFound, ErrorKind::DirectoryNotEmpty, ErrorKind::ResourceBusy];
        if is_meant.contains(&error.kind()) {
            return;
        }
    }
}

/// Whether a mounted filesystem still works: its superblock is not read-only against `read_only`,
/// and was not shut down.
///
/// ext4 stopped by an error shows `ro`, and from Linux 6.14 on `rw,emergency_ro` instead.
pub fn is_healthy(entry: &MountEntry, read_only: bool) -> bool {
    !entry.super_options.split(',').any(|option| match option {
        "ro" => !read_only,
        "emergency_ro" | "shutdown" => true,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(super_options: &str) -> MountEntry {
        let line = format!("1 1 7:0 / /mnt rw - ext4 /dev/loop0 {super_options}");
        mountinfo::parse(line.as_bytes()).remove(0)
    }

    #[test]
    fn a_superblock_turned_read_only_is_not_healthy() {
        assert!(is_healthy(&entry("rw,errors=remount-ro"), false));
        assert!(!is_healthy(&entry("ro,errors=remount-ro"), false));
        assert!(is_healthy(&entry("ro,norecovery"), true));
        assert!(!is_healthy(&entry("rw,emergency_ro,errors=remount-ro"), false));
        assert!(!is_healthy(&entry("ro,shutdown"), true));
    }

    #[test]
    fn directories_are_created_for_root_alone_and_symbolic_links_refused() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let at = root.join("cinder/mount/web");
        prepare(&at).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&at), 0o700);
        assert_eq!(mode(at.parent().unwrap()), 0o700);

        symlink(&at, root.join("link")).unwrap();
        for refused in [root.join("link"), root.join("link/web"), root.join("cinder/../x")] {
            assert!(matches!(prepare(&refused), Err(HostError::Refused { .. })), "{refused:?}");
        }
        assert!(matches!(prepare(Path::new("web")), Err(HostError::Refused { .. })));

        std::fs::write(at.join("file"), "").unwrap();
        let error = prepare(&at).unwrap_err().to_string();
        assert!(error.contains("own disk"), "{error}");
    }
}
