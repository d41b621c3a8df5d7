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
    let known = known(paths, disk)?.into_iter().find(|known| known.number == partition.number);
    match known {
        Some(known) if (known.start, known.size) == (partition.start, partition.size) => {
            Ok(known.device)
        }
        _ => Err(HostError::Refused {
            what: format!(
                "the kernel does not know partition {} of {} as its table has it; let it read the \
                 table again with: blockdev --rereadpt {}",
                partition.number,
                disk.path.display(),
                disk.path.display()
            ),
        }),
    }
}

/// A partition as the kernel knows it.
#[derive(Debug)]
pub struct Known {
    /// Its device.
    pub device: Device,
    /// Its number, from 1.
    pub number: u32,
    /// First byte.
    start: u64,
    size: u64,
    /// Bytes between its end and the next partition, or the end of the disk.
    pub behind: u64,
}

/// The partition of the disk that has this device number, if one has.
pub fn with_number(
    paths: &Paths,
    disk: &Device,
    number: DeviceNumber,
) -> Result<Option<Known>, HostError> {
    Ok(known(paths, disk)?.into_iter().find(|known| known.device.number == number))
}

/// All partitions of the disk that the kernel knows.
fn known(paths: &Paths, disk: &Device) -> Result<Vec<Known>, HostError> {
    let directory = paths.sys.join(format!("dev/block/{}", disk.number));
    let entries = fs::read_dir(&directory).map_err(|e| HostError::io("list", &directory, e))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| HostError::io("list", &directory, e))?;
        let sysfs = entry.path();
        let bytes = |name| attribute(&sysfs, name)?.checked_mul(SYSFS_SECTOR);
        let (Some(number), Some(start), Some(size), Some(device)) = (
            attribute(&sysfs, "partition").and_then(|number| number.try_into().ok()),
            bytes("start"),
            bytes("size"),
            device_number(&sysfs),
        ) else {
            continue;
        };
        let device = Device {
            path: paths.dev.join(entry.file_name()),
            number: device,
            size,
            read_only: disk.read_only || attribute(&sysfs, "ro") == Some(1),
            state: disk.state,
            wwid: disk.wwid.clone(),
        };
        found.push(Known { device, number, start, size, behind: 0 });
    }
    let starts: Vec<u64> = found.iter().map(|known| known.start).collect();
    for known in &mut found {
        let after = starts.iter().filter(|start| **start > known.start).min();
        let limit = after.copied().unwrap_or(disk.size);
        known.behind = limit.saturating_sub(known.start.saturating_add(known.size));
    }
    Ok(found)
}

fn attribute(sysfs: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(sysfs.join(name)).ok()?.trim().parse().ok()
}

fn device_number(sysfs: &Path) -> Option<DeviceNumber> {
    let text = fs::read_to_string(sysfs.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}
