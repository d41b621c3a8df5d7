//! The device node of one partition of an attached disk.

use std::fs;
use std::path::Path;

use super::mountinfo::DeviceNumber;
use super::probe::Partition;
use crate::host::attach::Device;
use crate::host::{HostError, Paths};

/// Sysfs counts in sectors of 512 bytes, whatever the device's own.
const SYSFS_SECTOR: u64 = 512;

/// The kernel's device of a partition that [`super::probe::probe`] found on `disk`: below the disk
/// in sysfs, and accepted only when the kernel agrees on where it begins and how long it is.
pub fn device_of(paths: &Paths, disk: &Device, partition: &Partition) -> Result<Device, HostError> {
    let directory = paths.sys.join(format!("dev/block/{}", disk.number));
    let entries = fs::read_dir(&directory).map_err(|e| HostError::io("list", &directory, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| HostError::io("list", &directory, e))?;
        let sysfs = entry.path();
        if attribute(&sysfs, "partition") != Some(partition.number.into()) {
            continue;
        }
        let start = attribute(&sysfs, "start").map(|sectors| sectors * SYSFS_SECTOR);
        let size = attribute(&sysfs, "size").map(|sectors| sectors * SYSFS_SECTOR);
        let number = device_number(&sysfs);
        let (Some(number), true) =
            (number, (start, size) == (Some(partition.start), Some(partition.size)))
        else {
            break;
        };
        return Ok(Device {
            path: paths.dev.join(entry.file_name()),
            number,
            size: partition.size,
            read_only: disk.read_only || attribute(&sysfs, "ro") == Some(1),
            state: disk.state,
            wwid: disk.wwid.clone(),
        });
    }
    Err(HostError::Refused {
        what: format!(
            "the kernel does not know partition {} of {} as its table has it; let it read the \
             table again with: blockdev --rereadpt {}",
            partition.number,
            disk.path.display(),
            disk.path.display()
        ),
    })
}

fn attribute(sysfs: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(sysfs.join(name)).ok()?.trim().parse().ok()
}

fn device_number(sysfs: &Path) -> Option<DeviceNumber> {
    let text = fs::read_to_string(sysfs.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}
