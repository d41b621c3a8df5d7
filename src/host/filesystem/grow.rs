//! Grows a mounted filesystem to its device.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use super::probe::{Contents, Filesystem, FsType, probe};
use super::{blocking, mount};
use crate::host::attach::Device;
use crate::host::{Cmd, Exec, HostError};

/// Less than this at the end of a device is left over by the filesystems' own rounding (ext4 drops
/// a last group that is too small for its tables, XFS a small last allocation group). Cinder
/// extends by whole GiB.
const ROUNDING: u64 = 64 * 1024 * 1024;
/// Growing writes metadata for the new space; at a Mount it must fit into the Mount's budget.
pub const MOUNT_LIMIT: Duration = Duration::from_secs(90);
/// As long as it takes: the filesystem is in use all the while, and nobody waits for it.
pub const RESIZE_LIMIT: Duration = Duration::from_secs(1800);

/// For what only asks the kernel about a mount.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Whether the device is larger than the filesystem by more than its own rounding.
pub fn is_needed(device: &Device, fs: &Filesystem) -> bool {
    leaves_space(device, fs.size)
}

/// Whether a filesystem of so many bytes leaves more of its device unused than its own rounding.
pub fn leaves_space(device: &Device, size: u64) -> bool {
    is_worth_it(device.size.saturating_sub(size))
}

/// Whether so many bytes are more than a filesystem's own rounding.
pub fn is_worth_it(bytes: u64) -> bool {
    bytes >= ROUNDING
}

/// How many bytes of its device a mounted filesystem takes, by its own word.
pub async fn size_of(device: &Device, fs_type: FsType, at: &Path) -> Result<u64, HostError> {
    let place = at.to_owned();
    let what = format!("reading the size of the filesystem at {}", at.display());
    match fs_type {
        FsType::Ext4 => {
            // Its superblock is on the device once its journal is.
            mount::sync(at).await?;
            match probe(device).await? {
                Contents::Filesystem(fs) => Ok(fs.size),
                other => Err(HostError::Refused {
                    what: format!("{} holds {other} by now", device.path.display()),
                }),
            }
        }
        // Its superblock may be in the log for long.
        FsType::Xfs => blocking(what, LOOK_LIMIT, move || xfs_size(&place)).await,
        // What statfs(2) counts for it is the whole of its devices.
        FsType::Btrfs => {
            let look = move || {
                let found = nix::sys::statvfs::statvfs(&place)
                    .map_err(|error| HostError::io("look at", &place, error.into()))?;
                Ok(found.blocks() * found.fragment_size())
            };
            blocking(what, LOOK_LIMIT, look).await
        }
    }
}

fn xfs_size(at: &Path) -> Result<u64, HostError> {
    let root = File::open(at).map_err(|source| HostError::io("open", at, source))?;
    let mut geometry = ioctl::Geometry::default();
    #[expect(unsafe_code, reason = "nix has no wrapper for this ioctl")]
    // SAFETY: the descriptor is open, and the kernel writes a struct of just this layout.
    unsafe { ioctl::geometry(root.as_raw_fd(), &raw mut geometry) }
        .map_err(|error| HostError::io("read the geometry of", at, error.into()))?;
    Ok(u64::from(geometry.block_size) * geometry.data_blocks)
}

/// `xfs_fs.h`
mod ioctl {
    /// `struct xfs_fsop_geom_v1`
    #[repr(C)]
    #[derive(Debug, Default)]
    pub struct Geometry {
        pub block_size: u32,
        before: [u32; 7],
        pub data_blocks: u64,
        after: [u64; 3],
        uuid: [u64; 2],
        rest: [u32; 7],
    }

    nix::ioctl_read!(
        /// `XFS_IOC_FSGEOMETRY_V1`
        geometry,
        b'X',
        100,
        Geometry
    );
}

/// `resize2fs DEVICE`, `xfs_growfs PATH`, `btrfs filesystem resize max PATH`: all online, so the
/// filesystem must be mounted read-write. For ext4 the kernel asks for CAP_SYS_RESOURCE.
///
/// One that has the size of its device already stays as it is.
pub async fn grow(
    exec: &Exec,
    device: &Device,
    fs_type: FsType,
    mounted_at: &Path,
    limit: Duration,
) -> Result<(), HostError> {
    let cmd = match fs_type {
        FsType::Ext4 => Cmd::new("resize2fs", limit).arg(&device.path),
        FsType::Xfs => Cmd::new("xfs_growfs", limit).arg(mounted_at),
        FsType::Btrfs => {
            Cmd::new("btrfs", limit).args(["filesystem", "resize", "max"]).arg(mounted_at)
        }
    };
    exec.run(&cmd).await.map_err(|source| HostError::Tool {
        what: format!(
            "cannot grow the filesystem on {} to the {} bytes of its device; it works on at its old \
             size",
            device.path.display(),
            device.size
        ),
        source,
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::host::attach::DeviceState;
    use crate::host::filesystem::mountinfo::DeviceNumber;

    #[test]
    fn a_gib_more_is_grown_into_and_a_rounding_is_not() {
        let fs = Filesystem {
            fs_type: FsType::Ext4,
            mount_type: "ext4",
            uuid: Uuid::nil(),
            label: String::new(),
            size: 1 << 30,
            needs_check: false,
        };
        let device = |size| Device {
            path: "/dev/sdb".into(),
            number: DeviceNumber { major: 8, minor: 16 },
            size,
            read_only: false,
            state: DeviceState::Running,
            wwid: None,
        };
        assert!(is_needed(&device(2 << 30), &fs));
        assert!(!is_needed(&device((1 << 30) + 4096), &fs));
        assert!(!is_needed(&device(1 << 29), &fs));
    }
}
