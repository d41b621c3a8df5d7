//! What is on a device: read from the *open* descriptor, in-process.
//!
//! The only place that can make a [`Blank`], which mkfs takes. Any error is a refusal, never
//! "blank". Short reads are errors.

use std::fmt;

use uuid::Uuid;

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
    /// Something else, in words: `LUKS container`, `LVM physical volume`, `swap`, `several
    /// signatures: ext4, xfs`.
    Other(String),
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
    /// (`"NewVolumeBlocks": "dirty"`): signatures and the first and last 2 MiB are wiped.
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

/// Reads the superblocks and partition tables of a device (blocking work is done off the runtime,
/// with a deadline).
pub async fn probe(device: &Device) -> Result<Contents, HostError> {
    todo!()
}

/// Proves that the device may be formatted: a block device of at least `size` bytes, opened
/// exclusively (`O_EXCL`: in use by nobody), read-write, no signature, every read succeeds,
/// and zero where [`BlankProof`] says. Otherwise [`HostError::Refused`] with what was found.
pub async fn blank(device: &Device, size: u64, proof: BlankProof) -> Result<Blank, HostError> {
    todo!()
}
