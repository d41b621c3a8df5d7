//! See [`crate::fuzzing`]. Devices that are empty but for some bytes:
//!
//! ```text
//! size (1, of SIZES)  flags (1)  512-byte blocks more (2)  { place (1)  offset (2)  length (2)  bytes }…
//! ```
//!
//! Numbers are little-endian. Bytes of length 0 are a sector that cannot be read.

use std::cell::Cell;
use std::io;

use super::scan::{self, Blocks, Window};
use super::superblock::{
    BTRFS_AT, BTRFS_SIZE, EXT_AT, EXT_SIZE, crc32_ieee, crc32c, crc32c_finished, le32, le64,
};
use super::{BlankProof, Contents, FsType, MIB, Partition, contents, trace};
use crate::fuzzing::assert_readable;
use crate::host::HostError;

const KIB: u64 = 1024;
const GIB: u64 = 1024 * MIB;
const SIZES: [u64; 6] = [512, MIB, 8 * MIB, 100 * MIB, GIB, 256 * GIB + MIB];

/// Blocks of 4096 bytes, not of 512.
const LARGE_BLOCKS: u8 = 1;
/// What has a checksum gets the right one: no fuzzer finds it.
const SEALED: u8 = 2;
/// Two bits that choose the proof.
const PROOF_SHIFT: u8 = 2;

#[derive(Debug)]
struct Sparse {
    size: u64,
    block: u64,
    flags: u8,
    written: Vec<(u64, Vec<u8>)>,
    unreadable: Vec<u64>,
    /// A read has failed.
    failed: Cell<bool>,
}

impl Blocks for Sparse {
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, HostError> {
        let end = offset.saturating_add(length as u64);
        let unreadable = self.unreadable.iter().any(|at| *at < end && offset < at + 512);
        if end > self.size || unreadable {
            self.failed.set(true);
            return Err(HostError::io("read", "/dev/fuzz", io::Error::other("at this place")));
        }
        let mut bytes = vec![0; length];
        for (at, written) in &self.written {
            let (from, to) = (offset.max(*at), end.min(at + written.len() as u64));
            if from < to {
                let part = &written[as_len(from - at)..as_len(to - at)];
                bytes[as_len(from - offset)..as_len(to - offset)].copy_from_slice(part);
            }
        }
        Ok(bytes)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "inside of a buffer")]
fn as_len(bytes: u64) -> usize {
    bytes as usize
}

impl Sparse {
    fn parse(data: &[u8]) -> Option<Self> {
        let ([size, flags, more @ ..], mut rest) = data.split_first_chunk::<4>()?;
        let more = u64::from(u16::from_le_bytes(*more)) * 512;
        let mut device = Self {
            size: SIZES[usize::from(*size) % SIZES.len()] + more,
            block: if flags & LARGE_BLOCKS == 0 { 512 } else { 4096 },
            flags: *flags,
            written: Vec::new(),
            unreadable: Vec::new(),
            failed: Cell::new(false),
        };
        while let Some(([place, a, b, c, d], behind)) = rest.split_first_chunk::<5>() {
            let at = device.place(*place) + u64::from(u16::from_le_bytes([*a, *b]));
            let length = usize::from(u16::from_le_bytes([*c, *d]));
            let (bytes, behind) = behind.split_at(length.min(behind.len()));
            if length == 0 {
                device.unreadable.push(at);
            } else {
                device.written.push((at, bytes.to_vec()));
            }
            rest = behind;
        }
        if flags & SEALED != 0 {
            device.seal();
        }
        Some(device)
    }

    /// Where something can stand.
    fn place(&self, number: u8) -> u64 {
        let from_end = |bytes: u64| self.size.saturating_sub(bytes);
        let places = [
            0,
            512,
            EXT_AT,
            4 * KIB,
            32 * KIB,
            BTRFS_AT,
            128 * KIB,
            MIB,
            2 * MIB,
            8 * MIB,
            32 * MIB,
            64 * MIB,
            128 * MIB,
            256 * GIB,
            (self.size / 4096).div_ceil(4) * 4096,
            from_end(self.size % self.block + self.block),
            from_end(512),
            from_end(KIB),
            from_end(4 * KIB),
            from_end(8 * KIB),
            from_end(64 * KIB),
            from_end(128 * KIB),
            from_end(256 * KIB),
            from_end(2 * MIB),
            from_end(16 * MIB),
            self.size / 2,
            self.size / 65,
        ];
        places[usize::from(number) % places.len()]
    }

    fn look(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        let found = self.read(at, length).ok();
        self.failed.set(false);
        found
    }

    fn put(&mut self, at: u64, checksum: u32) {
        self.written.push((at, checksum.to_le_bytes().to_vec()));
    }

    /// Puts right checksums wherever a magic number stands.
    fn seal(&mut self) {
        if let Some(sb) = self.look(EXT_AT, EXT_SIZE).filter(|sb| sb[0x38..0x3a] == [0x53, 0xef]) {
            self.put(EXT_AT + 0x3fc, crc32c(&sb[..0x3fc]));
        }
        if let Some(sb) = self.look(0, 512).filter(|sb| sb.starts_with(b"XFSB")) {
            let sector = usize::from(u16::from_be_bytes([sb[102], sb[103]]));
            if let Some(mut sb) = self.look(0, sector).filter(|sb| sb.len() > 228) {
                sb[224..228].fill(0);
                self.put(224, crc32c_finished(&sb));
            }
        }
        for at in [BTRFS_AT, 64 * MIB] {
            if let Some(sb) = self.look(at, BTRFS_SIZE).filter(|sb| &sb[64..72] == b"_BHRfS_M") {
                self.put(at, crc32c_finished(&sb[32..]));
            }
        }
        let last = (self.size / self.block).saturating_sub(1) * self.block;
        for at in [self.block, last] {
            self.seal_gpt(at);
        }
    }

    fn seal_gpt(&mut self, at: u64) -> Option<()> {
        let header = self.look(at, 512).filter(|sector| sector.starts_with(b"EFI PART"))?;
        let (table, count, size) = (le64(&header, 72)?, le32(&header, 80)?, le32(&header, 84)?);
        let length = count.checked_mul(size).filter(|length| *length <= 1024 * 1024)?;
        let table = self.look(table.checked_mul(self.block)?, usize::try_from(length).ok()?)?;
        self.put(at + 88, crc32_ieee(&table));
        let length = usize::try_from(le32(&header, 12)?).ok()?;
        let mut header =
            self.look(at, length).filter(|header| (92..=4096).contains(&header.len()))?;
        header[16..20].fill(0);
        self.put(at + 16, crc32_ieee(&header));
        Some(())
    }

    fn window(&self) -> Window<'_> {
        Window::over(self, self.size, self.block)
    }

    /// Whether there is one of the three magic numbers of filesystems that are mounted.
    fn has_a_magic_number(&self) -> bool {
        let ext = self.look(EXT_AT, EXT_SIZE).is_some_and(|sb| sb[0x38..0x3a] == [0x53, 0xef]);
        let btrfs = self.look(BTRFS_AT, BTRFS_SIZE).is_some_and(|sb| &sb[64..72] == b"_BHRfS_M");
        ext || btrfs || self.look(0, 4).is_some_and(|word| word == b"XFSB")
    }
}

/// What is on a device.
pub fn device_contents(data: &[u8]) {
    let Some(device) = Sparse::parse(data) else { return };
    let found = match scan::scan(&device.window()) {
        Ok(found) => found,
        Err(_) => return assert!(device.failed.get(), "an error without a cause"),
    };
    assert!(!device.failed.get(), "what cannot be read was passed over");
    let contents = contents(found);
    assert_readable(&contents.to_string());
    if contents == Contents::NoSignature {
        assert!(!device.has_a_magic_number(), "a superblock was passed over");
    }
    check(&contents);
    if let Contents::Partitions(partitions) = &contents {
        check_partitions(partitions, device.size);
    }
}

fn check(contents: &Contents) {
    if let Contents::Filesystem(fs) = contents {
        assert!(fs.size > 0, "{fs:?}");
        let mounted_as: &[&str] = match fs.fs_type {
            FsType::Ext4 => &["ext2", "ext3", "ext4"],
            FsType::Xfs => &["xfs"],
            FsType::Btrfs => &["btrfs"],
        };
        assert!(mounted_as.contains(&fs.mount_type), "{fs:?}");
    }
}

/// Each has a number of its own, and only one that lies inside the device can be mounted.
fn check_partitions(partitions: &[Partition], size: u64) {
    let mut numbers: Vec<u32> = partitions.iter().map(|partition| partition.number).collect();
    numbers.sort_unstable();
    assert!(numbers.windows(2).all(|two| two[0] < two[1]), "two of one number: {partitions:?}");
    for partition in partitions {
        check(&partition.contents);
        if let Contents::Filesystem(_) = &*partition.contents {
            let end = partition.start.checked_add(partition.size);
            assert!(end.is_some_and(|end| end <= size), "{partition:?} of {size}");
        }
    }
}

/// Whether a device may be formatted.
pub fn blank_proof(data: &[u8]) {
    let Some(device) = Sparse::parse(data) else { return };
    let proof = match device.flags >> PROOF_SHIFT & 3 {
        0 | 1 => BlankProof::Ours,
        2 => BlankProof::Foreign,
        _ => BlankProof::OursDirty,
    };
    match trace(&device.window(), proof) {
        Err(_) => return assert!(device.failed.get(), "an error without a cause"),
        Ok(Some(what)) => {
            assert!(!device.failed.get(), "what cannot be read was passed over");
            return assert_readable(&what);
        }
        Ok(None) => assert!(!device.failed.get(), "blank, though it cannot be read"),
    }
    assert!(!device.has_a_magic_number(), "blank, with a superblock");
    // Only what was written can be anything but zero.
    let zero = |at: u64, length: u64| {
        for (start, bytes) in &device.written {
            let from = at.max(*start);
            let to = (at + length).min(start + bytes.len() as u64).min(device.size);
            if from < to {
                let found = device.look(from, as_len(to - from));
                assert!(found.is_some_and(|found| found.iter().all(|b| *b == 0)), "data at {from}");
            }
        }
    };
    let edge = if proof == BlankProof::Foreign { 16 * MIB } else { 2 * MIB };
    zero(0, edge);
    zero(device.size.saturating_sub(edge), edge);
    if proof == BlankProof::Foreign {
        (1..=64).for_each(|n| zero(device.size / 65 * n, 64 * KIB));
    }
}
