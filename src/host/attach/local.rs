//! Connection type `local`: the device is already there (`data.device_path`).
//!
//! Nothing is connected and nothing removed; but what the path leads to is checked every time, since
//! loop and DRBD minors are handed out again.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Device, DeviceState, block};
use crate::connection_info::ConnectionInfo;
use crate::effects::{self, Kind};
use crate::host::filesystem::block_device::{Access, BlockDevice};
use crate::host::filesystem::blocking;
use crate::host::filesystem::mountinfo::{self, DeviceNumber};
use crate::host::{HostError, Paths};
use crate::shown::shown;

/// Opening a device whose back end is dead may hang.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// Longest path of a device that is believed, in bytes: they are short, and errors quote them.
const PATH_LIMIT: usize = 200;
/// Writing out what is cached.
const FLUSH_LIMIT: Duration = Duration::from_secs(40);
/// Of loop devices, by the kernel's `Documentation/admin-guide/devices.txt`.
const LOOP_MAJOR: u32 = 7;

/// A device that is simply there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalRecord {
    /// `/dev/loop0`, `/dev/drbd1000`.
    pub device_path: PathBuf,
    /// It was found fit for use. Until then there is nothing to undo, whatever the path leads to.
    /// (The first entries did not say so: theirs is looked at.)
    #[serde(default = "yes")]
    pub taken: bool,
}

fn yes() -> bool {
    true
}

/// Reads `data.device_path`: a plain absolute path below [`Paths::dev`]. Changes nothing.
pub fn plan(paths: &Paths, info: &ConnectionInfo) -> Result<LocalRecord, HostError> {
    let refuse = |why: String| Err(HostError::Refused { what: format!("Cinder's answer {why}") });
    let Some(text) = info.data.0.get("device_path").and_then(|value| value.as_str()) else {
        return refuse("for a local volume has no device_path".into());
    };
    let path = Path::new(text);
    let plain = !text.chars().any(char::is_control)
        && text.len() <= PATH_LIMIT
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && path.strip_prefix(&paths.dev).is_ok_and(|rest| rest != Path::new(""));
    if !plain {
        return refuse(format!(
            "names \"{}\" as the device, which is no plain path below {}",
            shown(text),
            paths.dev.display()
        ));
    }
    Ok(LocalRecord { device_path: path.to_owned(), taken: false })
}

/// The device, if it may be used: a block device of at least `size` bytes, not mounted here and in
/// use by nobody. [`HostError::Refused`] or [`HostError::Busy`] otherwise.
pub async fn connect(
    paths: &Paths,
    record: &mut LocalRecord,
    size: u64,
) -> Result<Device, HostError> {
    let Some(device) = look(paths, record).await? else {
        return Err(HostError::Refused {
            what: format!(
                "{} is not there; is the storage service of this host running?",
                record.device_path.display()
            ),
        });
    };
    not_mounted(paths, &device)?;
    let path = device.path.clone();
    open_limited(&path, move |path| BlockDevice::open(path, Access::Exclusive).map(drop)).await?;
    if device.state != DeviceState::Running {
        return Err(HostError::Refused {
            what: format!("{} does not run, says the kernel", device.path.display()),
        });
    }
    if device.size < size {
        return Err(HostError::Refused {
            what: format!(
                "{} has {} bytes where the volume has {size}; it may be another volume",
                device.path.display(),
                device.size
            ),
        });
    }
    record.taken = true;
    Ok(device)
}

/// The device as the kernel has it now; `None` when it was refused, when the node is missing or
/// nothing is behind it (a loop device that was taken down).
pub async fn find(paths: &Paths, record: &LocalRecord) -> Result<Option<Device>, HostError> {
    if record.taken { look(paths, record).await } else { Ok(None) }
}

/// Has the kernel look at the device's size again, and answers the device. Only a loop device does
/// not notice by itself that what is below it has grown.
pub async fn rescan(paths: &Paths, record: &LocalRecord) -> Result<Option<Device>, HostError> {
    let Some(device) = find(paths, record).await? else { return Ok(None) };
    if device.number.major != LOOP_MAJOR {
        return Ok(Some(device));
    }
    let path = device.path.clone();
    let what = format!("reading the size of {}", path.display());
    let shown = format!("set capacity {}", path.display());
    let work = blocking(what, OPEN_LIMIT, move || {
        let open = fs::File::open(&path).map_err(|e| HostError::io("open", &path, e))?;
        #[expect(unsafe_code, reason = "nix has no safe wrapper for this ioctl")]
        // SAFETY: the descriptor is open, and the call takes no argument.
        unsafe { loop_set_capacity(open.as_raw_fd()) }
            .map(drop)
            .map_err(|e| HostError::io("read the size of", &path, e.into()))
    });
    effects::run(Kind::Kernel, || shown, work).await?;
    find(paths, record).await
}

nix::ioctl_none_bad!(
    /// `LOOP_SET_CAPACITY` of linux/loop.h.
    loop_set_capacity,
    0x4C07
);

async fn look(paths: &Paths, record: &LocalRecord) -> Result<Option<Device>, HostError> {
    let Some(path) = resolve(paths, &record.device_path)? else { return Ok(None) };
    let opened = open_limited(&path, |path| {
        let open = BlockDevice::open(path, Access::Shared)?;
        Ok((open.number(), open.size(), open.is_read_only()?))
    })
    .await;
    let (number, size, read_only) = match opened {
        Err(HostError::Io { source, .. }) if is_absent(&source) => return Ok(None),
        opened => opened?,
    };
    if size == 0 {
        return Ok(None);
    }
    let sysfs = paths.sys.join(format!("dev/block/{number}"));
    let state = block::state(&sysfs);
    let wwid = ["device/wwid", "wwid"]
        .iter()
        .find_map(|file| fs::read_to_string(sysfs.join(file)).ok())
        .map(|wwid| wwid.trim().to_owned());
    Ok(Some(Device { path, number, size, read_only, state, wwid }))
}

/// Writes out what is cached for the device. There is nothing to remove, and a device that is gone
/// is success; one that is mounted here is [`HostError::Busy`]. One that was refused is not touched.
pub async fn disconnect(paths: &Paths, record: &LocalRecord) -> Result<(), HostError> {
    let Some(device) = find(paths, record).await? else { return Ok(()) };
    not_mounted(paths, &device)?;
    let path = device.path.clone();
    blocking(format!("flushing {}", path.display()), FLUSH_LIMIT, move || {
        BlockDevice::open(&path, Access::Shared)?.flush()
    })
    .await
}

async fn open_limited<T, F>(path: &Path, work: F) -> Result<T, HostError>
where
    T: Send + 'static,
    F: FnOnce(&Path) -> Result<T, HostError> + Send + 'static,
{
    let path = path.to_owned();
    blocking(format!("opening {}", path.display()), OPEN_LIMIT, move || work(&path)).await
}

/// Follows links (`/dev/mapper/x`, `/dev/disk/by-id/x`) as long as they stay below [`Paths::dev`].
fn resolve(paths: &Paths, path: &Path) -> Result<Option<PathBuf>, HostError> {
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(e) if is_absent(&e) => return Ok(None),
        Err(e) => return Err(HostError::io("resolve", path, e)),
    };
    let dev = paths.dev.canonicalize().map_err(|e| HostError::io("resolve", &paths.dev, e))?;
    if real.starts_with(&dev) {
        return Ok(Some(real));
    }
    Err(HostError::Refused {
        what: format!("{} leads out of {}", path.display(), paths.dev.display()),
    })
}

/// `ENXIO` and `ENODEV`: the node is there, the device is not.
fn is_absent(error: &io::Error) -> bool {
    let code = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default());
    use nix::errno::Errno::{ENODEV, ENOENT, ENXIO};
    matches!(code, ENOENT | ENXIO | ENODEV)
}

fn not_mounted(paths: &Paths, device: &Device) -> Result<(), HostError> {
    let mounts = mountinfo::own(paths)
        .map_err(|e| HostError::io("read", paths.proc.join("self/mountinfo"), e))?;
    let is_here = |number: Option<DeviceNumber>| number == Some(device.number);
    match mounts.iter().find(|entry| is_here(entry.block_device())) {
        None => Ok(()),
        Some(entry) => Err(HostError::Busy {
            what: format!(
                "{} is mounted at {}",
                device.path.display(),
                entry.mount_point.display()
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::connection_info::ConnectionData;

    fn planned(data: &serde_json::Value) -> Result<LocalRecord, HostError> {
        let info = ConnectionInfo {
            driver_volume_type: "local".into(),
            data: ConnectionData(data.as_object().unwrap().clone()),
        };
        plan(&Paths::default(), &info)
    }

    #[test]
    fn a_plain_path_below_dev_is_taken() {
        for path in ["/dev/loop0", "/dev/mapper/vg-volume", "/dev/drbd/by-res/x/0"] {
            let record = planned(&json!({ "device_path": path })).unwrap();
            assert_eq!(record.device_path, Path::new(path));
        }
    }

    #[test]
    fn every_other_path_is_refused() {
        for data in [
            json!({}),
            json!({ "device_path": 7 }),
            json!({ "device_path": "" }),
            json!({ "device_path": "/dev" }),
            json!({ "device_path": "/dev/" }),
            json!({ "device_path": "loop0" }),
            json!({ "device_path": "/etc/shadow" }),
            json!({ "device_path": "/device/sda" }),
            json!({ "device_path": "/dev/../etc/shadow" }),
            json!({ "device_path": "/dev/loop0\n" }),
        ] {
            assert!(matches!(planned(&data), Err(HostError::Refused { .. })), "{data}");
        }
    }

    #[tokio::test]
    async fn a_node_that_is_missing_is_no_device() {
        let mut record = LocalRecord { device_path: "/dev/no-such-volume".into(), taken: false };
        let paths = Paths::default();
        assert!(matches!(connect(&paths, &mut record, 0).await, Err(HostError::Refused { .. })));
        record.taken = true;
        assert_eq!(find(&paths, &record).await.unwrap(), None);
        disconnect(&paths, &record).await.unwrap();
    }

    #[tokio::test]
    async fn a_link_that_leads_out_of_dev_or_to_no_block_device_is_refused() {
        let dev = tempfile::tempdir().unwrap();
        let paths = Paths { dev: dev.path().into(), ..Paths::default() };
        std::os::unix::fs::symlink("/etc/passwd", dev.path().join("link")).unwrap();
        fs::write(dev.path().join("file"), "").unwrap();
        for name in ["link", "file"] {
            let mut record = LocalRecord { device_path: dev.path().join(name), taken: false };
            let error = connect(&paths, &mut record, 0).await.unwrap_err();
            assert!(matches!(error, HostError::Refused { .. }), "{error}");
            // What was refused must not keep the volume reserved.
            disconnect(&paths, &record).await.unwrap();
        }
    }
}
