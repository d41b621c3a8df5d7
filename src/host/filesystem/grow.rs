//! Grows a mounted filesystem to its device.

use std::path::Path;
use std::time::Duration;

use super::probe::{Filesystem, FsType};
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

/// Whether the device is larger than the filesystem by more than its own rounding.
pub fn is_needed(device: &Device, fs: &Filesystem) -> bool {
    device.size.saturating_sub(fs.size) >= ROUNDING
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
