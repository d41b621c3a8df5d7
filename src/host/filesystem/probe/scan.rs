//! Looks for everything that is known, and answers all that it found.
//!
//! Two reads find what is in use: the first 256 KiB and the last 256 to 512 KiB. Only where they
//! show nothing, the places of copies are read, which survive when somebody zeroes the beginning.

use std::fmt;

use crate::host::HostError;
use crate::host::filesystem::block_device::BlockDevice;

use super::{Contents, partitions, signatures, superblock};

/// Read at the beginning: reaches past the first ZFS label.
const HEAD: u64 = 256 * 1024;
/// Read at the end: from the last whole 256 KiB on, where the last ZFS label is; md, DRBD, RAID
/// controllers and GPT keep theirs behind that.
const TAIL: u64 = 256 * 1024;

/// Where the bytes come from.
pub(super) trait Blocks: fmt::Debug {
    /// Exactly `length` bytes at `offset`; a short read is an error.
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, HostError>;

    /// The offset of the first byte that is not zero, from `start` to before `end`.
    fn first_nonzero(&self, start: u64, end: u64) -> Result<Option<u64>, HostError> {
        let bytes = self.read(start, usize::try_from(end - start).unwrap_or(usize::MAX))?;
        Ok(bytes.iter().position(|byte| *byte != 0).map(|index| start + index as u64))
    }
}

impl Blocks for BlockDevice {
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, HostError> {
        Self::read(self, offset, length)
    }

    fn first_nonzero(&self, start: u64, end: u64) -> Result<Option<u64>, HostError> {
        Self::first_nonzero(self, start, end)
    }
}

/// A device or one of its partitions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window<'a> {
    device: &'a dyn Blocks,
    start: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Bytes of a logical block.
    pub(super) block: u64,
}

impl<'a> Window<'a> {
    /// The whole device.
    pub(super) fn whole(device: &'a BlockDevice) -> Result<Self, HostError> {
        Ok(Self::over(device, device.size(), device.logical_block()?))
    }

    /// All of a device of this size, with blocks of `block` bytes.
    pub(super) fn over(device: &'a dyn Blocks, size: u64, block: u64) -> Self {
        Self { device, start: 0, size, block }
    }

    /// A part of it; `None` when it doesn't lie inside.
    pub(super) fn part(&self, start: u64, size: u64) -> Option<Self> {
        let inside = start.checked_add(size).is_some_and(|end| end <= self.size);
        inside.then(|| Self { start: self.start + start, size, ..*self })
    }

    /// Reads what lies inside; `None` when the range doesn't.
    pub(super) fn read(&self, at: u64, length: usize) -> Result<Option<Vec<u8>>, HostError> {
        if self.part(at, length as u64).is_none() {
            return Ok(None);
        }
        self.device.read(self.start + at, length).map(Some)
    }

    /// The offset of the first byte that is not zero in a range that has to be there.
    pub(super) fn first_nonzero(&self, start: u64, end: u64) -> Result<Option<u64>, HostError> {
        let found = self.device.first_nonzero(self.start + start, self.start + end)?;
        Ok(found.map(|at| at - self.start))
    }

    fn read_ends(&self) -> Result<Ends, HostError> {
        let head = self.device.read(self.start, length(self.size.min(HEAD)))?;
        let whole = self.size - self.size % TAIL;
        let tail_at = whole.saturating_sub(TAIL);
        let tail = self.device.read(self.start + tail_at, length(self.size - tail_at))?;
        Ok(Ends { head, tail, tail_at, size: self.size })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most 512 KiB")]
fn length(bytes: u64) -> usize {
    bytes as usize
}

/// The two ends of a window, in memory.
pub(super) struct Ends {
    /// From byte 0.
    pub(super) head: Vec<u8>,
    tail: Vec<u8>,
    tail_at: u64,
    /// Bytes of the window.
    pub(super) size: u64,
}

impl Ends {
    /// Bytes at an offset, where they were read.
    pub(super) fn get(&self, at: u64, length: usize) -> Option<&[u8]> {
        let slice = |bytes: &[u8], start: u64| {
            let from = usize::try_from(at.checked_sub(start)?).ok()?;
            let to = from.checked_add(length)?;
            (to <= bytes.len()).then_some((from, to))
        };
        if let Some((from, to)) = slice(&self.head, 0) {
            return self.head.get(from..to);
        }
        let (from, to) = slice(&self.tail, self.tail_at)?;
        self.tail.get(from..to)
    }
}

/// One thing that was recognised.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    /// Its offset in the window.
    pub(super) at: u64,
    /// What it is.
    pub(super) what: Contents,
}

/// Looks at a device, partition tables included.
pub(super) fn scan(window: &Window<'_>) -> Result<Vec<Finding>, HostError> {
    let ends = window.read_ends()?;
    let mut found = superblocks(&ends);
    if let Some(table) = partitions::find(window, &ends)? {
        found.push(table);
    }
    if found.is_empty() {
        found.extend(signatures::leftovers(window)?);
    }
    Ok(found)
}

/// Looks at a partition: tables inside it are not looked for.
pub(super) fn scan_partition(window: &Window<'_>) -> Result<Vec<Finding>, HostError> {
    Ok(superblocks(&window.read_ends()?))
}

fn superblocks(ends: &Ends) -> Vec<Finding> {
    let mut found = superblock::find(&ends.head);
    found.extend(signatures::find(ends));
    found
}
