//! What is on a device: read from the *open* descriptor, in-process.
//!
//! The only place that can make a [`Blank`], which mkfs takes. Any error is a refusal, never
//! "blank". Short reads are errors.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod partitions;
mod scan;
mod signatures;
mod superblock;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use self::scan::{Finding, Window};
use super::block_device::{Access, BlockDevice};
use super::blocking;
use crate::host::HostError;
use crate::host::attach::Device;

/// Filesystems that we make, check, mount and grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext4 (ext2 and ext3 are mounted as such too).
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        })
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// No signature of anything, and every read succeeded. Whether it may be formatted is decided
    /// by [`blank`], which reads more.
    NoSignature,
    /// A filesystem that we know.
    Filesystem(Filesystem),
    /// A partition table.
    Partitions(Vec<Partition>),
    /// A filesystem that cannot be mounted: one that mkfs did not finish, or that was damaged.
    Unfinished {
        /// In words.
        what: String,
        /// The UUID that its superblock, or a copy of it, says.
        uuid: Uuid,
    },
    /// Something else, in words: `LUKS container`, `LVM physical volume`, `swap`, `several
    /// signatures: ext4, xfs`.
    Other(String),
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSignature => f.write_str("nothing that is known"),
            Self::Filesystem(fs) if fs.label.is_empty() => {
                write!(f, "{} {}", fs.mount_type, fs.uuid)
            }
            Self::Filesystem(fs) => {
                write!(f, "{} {} labelled {:?}", fs.mount_type, fs.uuid, fs.label)
            }
            Self::Partitions(partitions) => {
                write!(f, "a partition table (partitions: {})", partitions.len())
            }
            Self::Unfinished { what, .. } | Self::Other(what) => f.write_str(what),
        }
    }
}

/// A filesystem's superblock, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// Its type.
    pub fs_type: FsType,
    /// `ext2`/`ext3`/`ext4`/`xfs`/`btrfs` for mount.
    pub mount_type: &'static str,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its label.
    pub label: String,
    /// Bytes that it covers.
    pub size: u64,
    /// It needs a check before mounting (ext: error flag, or not clean without a journal).
    pub needs_check: bool,
}

/// One entry of a partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What is on it.
    pub contents: Box<Contents>,
}

/// How hard to look before a device counts as blank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlankProof {
    /// Ours and still `unformatted`: zero in its first and last 2 MiB.
    Ours,
    /// Made elsewhere: zero in its first and last 16 MiB and in 64 samples spread between.
    Foreign,
    /// Ours and still `unformatted`, on a back end that hands out unwiped blocks
    /// (`"NewVolumeBlocks": "dirty"`), or with a mkfs that our own journal began and never saw end:
    /// signatures and the first and last 2 MiB are wiped.
    OursDirty,
}

/// A device that was proven blank. Only this module makes one; mkfs takes it by value.
#[derive(Debug)]
pub struct Blank {
    device: Device,
}

impl Blank {
    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// How long looking may take. Reads of a dead target end after iSCSI's replacement_timeout or not
/// at all.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// The proof reads up to 36 MiB, and a wipe writes 4 MiB.
const BLANK_LIMIT: Duration = Duration::from_secs(60);

const MIB: u64 = 1024 * 1024;
/// Samples between the two ends of a foreign volume, and how much each of them reads.
const SAMPLES: u64 = 64;
const SAMPLE: u64 = 64 * 1024;

/// Reads the superblocks and partition tables of a device (blocking work is done off the runtime,
/// with a deadline).
pub async fn probe(device: &Device) -> Result<Contents, HostError> {
    let device = device.clone();
    blocking(
        format!("reading the superblocks of {}", device.path.display()),
        PROBE_LIMIT,
        move || {
            let open = open(&device, Access::Shared)?;
            Ok(contents(scan::scan(&Window::whole(&open)?)?))
        },
    )
    .await
}

/// As [`probe`], for a node of which no more is known than its path.
pub(super) async fn probe_node(node: &Path) -> Result<Contents, HostError> {
    let node = node.to_owned();
    blocking(format!("reading the superblocks of {}", node.display()), PROBE_LIMIT, move || {
        let open = BlockDevice::open(&node, Access::Shared)?;
        Ok(contents(scan::scan(&Window::whole(&open)?)?))
    })
    .await
}

/// Proves that the device may be formatted: a block device of at least `size` bytes, opened
/// exclusively (`O_EXCL`: in use by nobody), read-write, no signature, every read succeeds,
/// and zero where [`BlankProof`] says. Otherwise an error that says what was found:
/// [`HostError::NotBlank`] for contents, [`HostError::Busy`] for a user of the device, and
/// [`HostError::Io`] for a read that failed. Only [`BlankProof::OursDirty`] ever writes.
///
/// The exclusive descriptor is closed at the end, since mkfs needs the device for itself: use the
/// proof at once.
pub async fn blank(device: &Device, size: u64, proof: BlankProof) -> Result<Blank, HostError> {
    let device = device.clone();
    let what = format!("proving that {} is blank", device.path.display());
    blocking(what, BLANK_LIMIT, move || {
        prove(&device, size, proof)?;
        Ok(Blank { device })
    })
    .await
}

fn prove(device: &Device, size: u64, proof: BlankProof) -> Result<(), HostError> {
    let access = match proof {
        BlankProof::OursDirty => Access::ExclusiveWrite,
        BlankProof::Ours | BlankProof::Foreign => Access::Exclusive,
    };
    let shown = device.path.display();
    let refuse =
        |why: String| Err(HostError::Refused { what: format!("not formatting {shown}: {why}") });
    if device.read_only {
        return refuse("it is attached read-only".into());
    }
    let open = open(device, access)?;
    if open.is_read_only()? {
        return refuse("it is read-only".into());
    }
    if open.size() < size {
        return refuse(format!(
            "it has {} bytes where the volume has {size}; it may be another volume",
            open.size()
        ));
    }
    let window = Window::whole(&open)?;
    if proof == BlankProof::OursDirty {
        wipe(&open, &scan::scan(&window)?)?;
    }
    match trace(&window, proof)? {
        Some(what) => Err(HostError::NotBlank { what: format!("{shown} holds {what}") }),
        None => Ok(()),
    }
}

/// The first thing that shows that a device is not blank, in words.
fn trace(window: &Window<'_>, proof: BlankProof) -> Result<Option<String>, HostError> {
    let found = scan::scan(window)?;
    if let Some(first) = found.first() {
        let at = first.at;
        return Ok(Some(format!("{} (at byte {at})", contents(found))));
    }
    let size = window.size;
    let edge = match proof {
        BlankProof::Ours | BlankProof::OursDirty => 2 * MIB,
        BlankProof::Foreign => 16 * MIB,
    };
    let mut ranges = vec![(0, edge.min(size)), (size.saturating_sub(edge), size)];
    if proof == BlankProof::Foreign {
        let step = size / (SAMPLES + 1);
        ranges.extend((1..=SAMPLES).map(|n| {
            let start = step * n;
            (start, (start + SAMPLE).min(size))
        }));
    }
    for (start, end) in ranges {
        if let Some(at) = window.first_nonzero(start, end)? {
            return Ok(Some(format!("unknown data (first at byte {at})")));
        }
    }
    Ok(None)
}

/// Opens the node and makes sure that it still is the device that was attached.
fn open(device: &Device, access: Access) -> Result<BlockDevice, HostError> {
    let open = BlockDevice::open(&device.path, access)?;
    if open.number() != device.number {
        return Err(HostError::Refused {
            what: format!(
                "{} is now the device {}, and was {} when the volume was attached",
                device.path.display(),
                open.number(),
                device.number
            ),
        });
    }
    if open.size() == 0 {
        return Err(HostError::Refused {
            what: format!("{} has 0 bytes: nothing is behind it", device.path.display()),
        });
    }
    Ok(open)
}

/// Zeros both ends, and whatever was recognised between them.
fn wipe(open: &BlockDevice, found: &[Finding]) -> Result<(), HostError> {
    let edge = (2 * MIB).min(open.size());
    open.zero(0, edge)?;
    open.zero(open.size() - edge, edge)?;
    for finding in found.iter().filter(|finding| finding.at >= edge) {
        open.zero(finding.at, 1)?;
    }
    // What stood behind a signature shows only now: a backup superblock, for one.
    for finding in scan::scan(&Window::whole(open)?)? {
        open.zero(finding.at, 1)?;
    }
    Ok(())
}

/// One finding is what the device holds, and so are several copies of one unfinished filesystem;
/// others are nothing that can be mounted safely.
fn contents(mut found: Vec<Finding>) -> Contents {
    let unfinished = |finding: &Finding| match finding.what {
        Contents::Unfinished { uuid, .. } => Some(uuid),
        _ => None,
    };
    let first = found.first().and_then(unfinished);
    let are_one = first.is_some() && found.iter().all(|finding| unfinished(finding) == first);
    match found.len() {
        0 => Contents::NoSignature,
        1 => found.remove(0).what,
        _ if are_one => found.remove(0).what,
        _ => {
            let names: Vec<String> = found.iter().map(|finding| finding.what.to_string()).collect();
            Contents::Other(format!("several signatures: {}", names.join(", ")))
        }
    }
}
