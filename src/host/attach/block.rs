//! What the kernel says of a block device, and the few things done to one.
//!
//! Opening, reading and flushing a device whose target is dead may hang in the kernel for minutes:
//! all of that runs on a blocking thread under a deadline ([`blocking`]). Attributes in sysfs
//! are answered from memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::{major, minor};
use tokio::time::{Instant, sleep};

use super::{Device, DeviceState};
use crate::effects::{self, Kind};
use crate::host::filesystem::mountinfo::{self, DeviceNumber};
use crate::host::{HostError, Paths};

/// How long opening and reading a device may take.
const OPEN_LIMIT: Duration = Duration::from_secs(15);
/// How long a new disk may be there without being open to anybody, and the pause between looks.
const APPEARANCE_LIMIT: Duration = Duration::from_secs(3);
const APPEARANCE_POLL: Duration = Duration::from_millis(20);
/// How long flushing may take: dirty pages may be many, but a dead target must not hold us up.
const FLUSH_LIMIT: Duration = Duration::from_secs(20);
/// A sector of sysfs' `size`, whatever the device's own.
const SECTOR: u64 = 512;

/// The block device that a path names; symbolic links are followed.
pub fn device_at(paths: &Paths, path: &Path) -> Result<Device, HostError> {
    let number = number_of_node(path)?;
    let link = paths.sys.join(format!("dev/block/{}:{}", number.major, number.minor));
    let sysfs = fs::canonicalize(&link).map_err(|source| HostError::io("read", link, source))?;
    let path = fs::canonicalize(path).map_err(|source| HostError::io("resolve", path, source))?;
    describe(&sysfs, path, number)
}

/// The block device that the kernel calls `name` (`sdb`, `dm-0`). Its node below `/dev` must be
/// that device.
pub fn device_named(paths: &Paths, name: &str) -> Result<Device, HostError> {
    let sysfs = paths.sys.join("class/block").join(name);
    let path = paths.dev.join(name.replace('!', "/"));
    let number = number_in_sysfs(&sysfs)?;
    let found = number_of_node(&path)?;
    if found != number {
        return Err(HostError::Refused {
            what: format!(
                "{} is device {}:{}, but the kernel's {name} is {}:{}; /dev is not this host's",
                path.display(),
                found.major,
                found.minor,
                number.major,
                number.minor,
            ),
        });
    }
    describe(&sysfs, path, number)
}

fn describe(sysfs: &Path, path: PathBuf, number: DeviceNumber) -> Result<Device, HostError> {
    let sectors: u64 = parse_attribute(sysfs, "size")?;
    Ok(Device {
        path,
        number,
        size: sectors * SECTOR,
        read_only: attribute(sysfs, "ro").is_ok_and(|ro| ro != "0"),
        state: state(sysfs),
        wwid: attribute(sysfs, "device/wwid").or_else(|_| attribute(sysfs, "wwid")).ok(),
    })
}

/// A SCSI disk says `running`, `blocked`, `transport-offline`, … (`sdev_states` of the kernel's
/// `scsi_sysfs.c`); a device-mapper device is as good as the best disk below it; other devices say
/// nothing.
pub fn state(sysfs: &Path) -> DeviceState {
    if let Ok(state) = attribute(sysfs, "device/state") {
        return match state.as_str() {
            "running" | "live" => DeviceState::Running,
            "blocked" | "quiesce" | "created" | "created-blocked" => DeviceState::Waiting,
            _ => DeviceState::Failed,
        };
    }
    let disks = fs::read_dir(sysfs.join("slaves")).into_iter().flatten().flatten();
    let states: Vec<_> = disks.map(|disk| state(&disk.path())).collect();
    let best =
        [DeviceState::Running, DeviceState::Waiting].into_iter().find(|s| states.contains(s));
    match states.is_empty() {
        true => DeviceState::Running,
        false => best.unwrap_or(DeviceState::Failed),
    }
}

fn number_of_node(path: &Path) -> Result<DeviceNumber, HostError> {
    let meta = fs::metadata(path).map_err(|source| HostError::io("find", path, source))?;
    if !meta.file_type().is_block_device() {
        return Err(HostError::Refused {
            what: format!("{} is not a block device", path.display()),
        });
    }
    let part = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
    Ok(DeviceNumber { major: part(major(meta.rdev())), minor: part(minor(meta.rdev())) })
}

fn number_in_sysfs(sysfs: &Path) -> Result<DeviceNumber, HostError> {
    let file = sysfs.join("dev");
    let text = attribute(sysfs, "dev").map_err(|source| HostError::io("read", &file, source))?;
    text.split_once(':')
        .and_then(|(major, minor)| {
            Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
        })
        .ok_or_else(|| HostError::io("read", file, io::ErrorKind::InvalidData.into()))
}

/// An attribute of sysfs, without the newline.
pub fn attribute(directory: &Path, name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(directory.join(name))?.trim().to_owned())
}

fn parse_attribute<T: std::str::FromStr>(directory: &Path, name: &str) -> Result<T, HostError> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    attribute(directory, name)
        .and_then(|text| text.parse().map_err(|_| ()).map_err(invalid))
        .map_err(|source| HostError::io("read", directory.join(name), source))
}

/// Names of the devices that are built on this one: device-mapper maps, RAID arrays.
pub fn holders(paths: &Paths, name: &str) -> Vec<String> {
    fs::read_dir(paths.sys.join("class/block").join(name).join("holders"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Where the device is mounted in our mount namespace.
pub fn mounted_at(paths: &Paths, number: DeviceNumber) -> Result<Option<PathBuf>, HostError> {
    let mounts = mountinfo::own(paths)
        .map_err(|source| HostError::io("read", paths.proc.join("self/mountinfo"), source))?;
    Ok(mounts.into_iter().find(|mount| mount.device == number).map(|mount| mount.mount_point))
}

/// Whether somebody has claimed the device: a mount in any namespace, a map, an array, swap,
/// mkfs. (An O_EXCL open of a block device fails then; a plain open by a process is no claim.)
pub async fn is_claimed(path: &Path) -> Result<bool, HostError> {
    let what = format!("opening {}", path.display());
    let path = path.to_owned();
    blocking(what, OPEN_LIMIT, move || {
        let open = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path);
        // The kernel looks at claims before it asks the device, so any other error (a disk whose
        // target is gone has many) says that there is none.
        Ok(open.is_err_and(|error| error.raw_os_error() == Some(Errno::EBUSY as i32)))
    })
    .await
}

/// Reads the first 4 KiB: the device answers.
///
/// The kernel shows a new disk, and its node, a moment before it lets anybody open it; and a disk
/// whose target is gone cannot be opened either, with the same error.
pub async fn check_readable(path: &Path) -> Result<(), HostError> {
    let end = Instant::now() + APPEARANCE_LIMIT;
    loop {
        let read = read_begin(path).await;
        let is_absent = |error: &HostError| {
            matches!(error, HostError::Io { source, .. }
                if source.raw_os_error() == Some(Errno::ENXIO as i32))
        };
        if !read.as_ref().is_err_and(is_absent) || Instant::now() >= end {
            return read;
        }
        sleep(APPEARANCE_POLL).await;
    }
}

async fn read_begin(path: &Path) -> Result<(), HostError> {
    let what = format!("reading {}", path.display());
    let path = path.to_owned();
    blocking(what, OPEN_LIMIT, move || {
        File::open(&path)
            .and_then(|mut file| file.read_exact(&mut [0; 4096]))
            .map_err(|source| HostError::io("read", path, source))
    })
    .await
}

/// Writes what the kernel has in memory for the device to the device, has the device write
/// its own cache, and drops the kernel's copy.
pub async fn flush(path: &Path) -> Result<(), HostError> {
    let what = format!("flushing {}", path.display());
    let shown = format!("flush {}", path.display());
    let path = path.to_owned();
    let flush = blocking(what, FLUSH_LIMIT, move || {
        let file = File::open(&path).map_err(|source| HostError::io("open", &path, source))?;
        file.sync_all().map_err(|source| HostError::io("flush", &path, source))?;
        drop_cache(&file).map_err(|source| HostError::io("flush", path, source))
    });
    effects::run(Kind::Kernel, || shown, flush).await
}

nix::ioctl_none!(
    /// BLKFLSBUF of linux/fs.h.
    blkflsbuf,
    0x12,
    97
);

fn drop_cache(device: &File) -> io::Result<()> {
    #[expect(unsafe_code, reason = "an ioctl that nix has no safe function for")]
    // SAFETY: BLKFLSBUF takes no argument; the descriptor is open for the whole call.
    let result = unsafe { blkflsbuf(device.as_raw_fd()) };
    result.map(drop).map_err(io::Error::from)
}

/// Writes to an attribute of sysfs whose write does work in the kernel (`scan`, `delete`).
pub async fn write_attribute(
    file: PathBuf,
    value: String,
    limit: Duration,
) -> Result<(), HostError> {
    let what = format!("writing to {}", file.display());
    let shown = format!("{value} > {}", file.display());
    let write = blocking(what, limit, move || {
        // Not fs::write: an attribute is opened as it is, never created nor truncated.
        OpenOptions::new()
            .write(true)
            .open(&file)
            .and_then(|mut open| io::Write::write_all(&mut open, value.as_bytes()))
            .map_err(|source| HostError::io("write to", file, source))
    });
    effects::run(Kind::Kernel, || shown, write).await
}

/// Runs work that may hang in the kernel on a thread of its own. At the deadline the thread is
/// left behind: nothing can end it before the kernel does.
pub async fn blocking<T, F>(what: String, limit: Duration, work: F) -> Result<T, HostError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, HostError> + Send + 'static,
{
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(stopped)) => {
            Err(HostError::Refused { what: format!("{what} broke off: {stopped}") })
        }
        Err(_) => Err(HostError::Timeout { what, seconds: limit.as_secs() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device counts as whose disks below it (itself, if `map` is false) say this.
    fn state_of(disks: &[&str], map: bool) -> DeviceState {
        let sysfs = tempfile::tempdir().unwrap();
        for (index, text) in disks.iter().enumerate() {
            let disk = match map {
                true => sysfs.path().join(format!("slaves/sd{index}")),
                false => sysfs.path().to_owned(),
            };
            fs::create_dir_all(disk.join("device")).unwrap();
            fs::write(disk.join("device/state"), format!("{text}\n")).unwrap();
        }
        state(sysfs.path())
    }

    #[test]
    fn a_disk_that_waits_for_its_session_is_not_a_dead_one() {
        assert_eq!(state_of(&["running"], false), DeviceState::Running);
        assert_eq!(state_of(&["blocked"], false), DeviceState::Waiting);
        for dead in ["offline", "transport-offline", "cancel", "deleted", "anything"] {
            assert_eq!(state_of(&[dead], false), DeviceState::Failed, "{dead}");
        }
    }

    #[test]
    fn a_map_is_as_good_as_its_best_path_and_other_devices_run() {
        assert_eq!(state_of(&["offline", "running"], true), DeviceState::Running);
        assert_eq!(state_of(&["offline", "blocked"], true), DeviceState::Waiting);
        assert_eq!(state_of(&["offline", "offline"], true), DeviceState::Failed);
        assert_eq!(state_of(&[], false), DeviceState::Running);
    }
}
