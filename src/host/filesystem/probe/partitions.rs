//! Partition tables: GPT with its checksums and its backup, MBR with logical partitions.

use super::scan::{Ends, Finding, Window, scan_partition};
use super::superblock::{crc32_ieee, le32, le64};
use super::{Contents, Partition, contents};
use crate::host::HostError;

/// Where MBR keeps its four entries of 16 bytes.
const MBR_ENTRIES: usize = 446;
const MBR_SIGNATURE: &[u8] = &[0x55, 0xaa];
/// A partition of this type covers the disk where GPT rules.
const PROTECTIVE: u8 = 0xee;
/// Types of an extended partition.
const EXTENDED: &[u8] = &[0x05, 0x0f, 0x85];
/// Logical partitions that are followed before a chain counts as endless.
const LOGICAL_LIMIT: u32 = 64;
/// GPT's table has 128 entries of 128 bytes almost everywhere.
const GPT_TABLE_LIMIT: u64 = 1024 * 1024;

/// Boot sectors of these filesystems end with 55AA too, and hold code where MBR has its entries.
const BOOT_SECTORS: &[(usize, &[u8])] = &[
    (3, b"NTFS    "),
    (3, b"EXFAT   "),
    (3, b"-FVE-FS-"),
    (3, b"ReFS\0"),
    (54, b"FAT"),
    (54, b"MSDOS"),
    (82, b"FAT32   "),
];

/// An entry of MBR, in logical blocks.
#[derive(Debug, Clone, Copy)]
struct MbrEntry {
    /// From 1.
    slot: u32,
    kind: u8,
    start: u64,
    count: u64,
}

/// Where a partition is, in bytes.
struct Extent {
    number: u32,
    start: u64,
    size: u64,
}

/// The partition table of a device, with what is on each partition.
pub(super) fn find(window: &Window<'_>, ends: &Ends) -> Result<Option<Finding>, HostError> {
    let entries = mbr(&ends.head);
    let protective = entries.iter().any(|entry| entry.kind == PROTECTIVE);
    let what = match (gpt(window, window.block)?, protective) {
        (Some(extents), true) => probe_all(window, extents)?,
        (Some(_), false) => Contents::Other("a GPT without its protective MBR".into()),
        (None, true) => match gpt(window, backup_gpt_at(window))? {
            Some(extents) => probe_all(window, extents)?,
            None => Contents::Other("a protective MBR without a valid GPT".into()),
        },
        (None, false) if !entries.is_empty() => probe_all(window, mbr_extents(window, &entries)?)?,
        (None, false) => return Ok(None),
    };
    Ok(Some(Finding { at: 0, what }))
}

/// A GPT at the end of a device that shows nothing at its beginning. Behind a filesystem it would
/// only be what a former table left.
pub(super) fn leftover(window: &Window<'_>) -> Result<Option<Finding>, HostError> {
    let at = backup_gpt_at(window);
    let what = Contents::Other("a backup GPT (the first one is gone)".into());
    Ok(gpt(window, at)?.map(|_| Finding { at, what }))
}

/// The backup's header is in the last block.
fn backup_gpt_at(window: &Window<'_>) -> u64 {
    let blocks = window.size / window.block;
    blocks.saturating_sub(1) * window.block
}

fn probe_all(window: &Window<'_>, extents: Vec<Extent>) -> Result<Contents, HostError> {
    let probe = |extent: Extent| {
        let contents = match window.part(extent.start, extent.size) {
            Some(part) if part.size > 0 => contents(scan_partition(&part)?),
            _ => Contents::Other("a partition that lies beyond the end of the device".into()),
        };
        let Extent { number, start, size } = extent;
        Ok(Partition { number, start, size, contents: Box::new(contents) })
    };
    Ok(Contents::Partitions(extents.into_iter().map(probe).collect::<Result<_, HostError>>()?))
}

/// The used entries of an MBR; none when the sector is none.
fn mbr(sector: &[u8]) -> Vec<MbrEntry> {
    let boot_sector = BOOT_SECTORS
        .iter()
        .any(|(at, magic)| sector.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    if sector.get(510..512) != Some(MBR_SIGNATURE) || boot_sector {
        return Vec::new();
    }
    let table = &sector[MBR_ENTRIES..510];
    // A boot flag that is neither 0 nor 0x80 means code, not a table.
    if table.chunks_exact(16).any(|entry| entry[0] & 0x7f != 0) {
        return Vec::new();
    }
    (1..)
        .zip(table.chunks_exact(16))
        .map(|(slot, entry)| MbrEntry {
            slot,
            kind: entry[4],
            start: le32(entry, 8).unwrap_or_default().into(),
            count: le32(entry, 12).unwrap_or_default().into(),
        })
        .filter(|entry| entry.kind != 0 && entry.count != 0)
        .collect()
}

/// Primary partitions keep the number of their slot; logical ones count from 5 on, as the kernel
/// counts them: through all extended partitions, and past tables that hold none.
fn mbr_extents(window: &Window<'_>, entries: &[MbrEntry]) -> Result<Vec<Extent>, HostError> {
    let block = window.block;
    let mut extents = Vec::new();
    let mut logical_number = 5;
    for entry in entries {
        if EXTENDED.contains(&entry.kind) {
            for (start, size) in logical(window, entry.start)? {
                extents.push(Extent { number: logical_number, start, size });
                logical_number += 1;
            }
        } else {
            let (start, size) = (entry.start * block, entry.count * block);
            extents.push(Extent { number: entry.slot, start, size });
        }
    }
    Ok(extents)
}

/// Each logical partition stands behind a table of its own, which names it (relative to itself) and
/// the next table (relative to the extended partition).
fn logical(window: &Window<'_>, extended: u64) -> Result<Vec<(u64, u64)>, HostError> {
    let block = window.block;
    let mut extents = Vec::new();
    let mut table = extended;
    for _ in 0..LOGICAL_LIMIT {
        let Some(sector) = window.read(table * block, 512)? else { break };
        let entries = mbr(&sector);
        if let Some(entry) = entries.iter().find(|entry| !EXTENDED.contains(&entry.kind)) {
            let start = (table + entry.start) * block;
            extents.push((start, entry.count * block));
        }
        match entries.iter().find(|entry| EXTENDED.contains(&entry.kind)) {
            Some(next) if next.start > 0 => table = extended + next.start,
            _ => break,
        }
    }
    Ok(extents)
}

/// The partitions of a GPT whose header stands at `at`; `None` when header or table fail their
/// checksum (UEFI specification, section 5.3).
fn gpt(window: &Window<'_>, at: u64) -> Result<Option<Vec<Extent>>, HostError> {
    let block = window.block;
    let Some(sector) = window.read(at, usize::try_from(block).unwrap_or(512))? else {
        return Ok(None);
    };
    let Some((table_at, count, entry_size, checksum)) = gpt_header(&sector, at / block) else {
        return Ok(None);
    };
    let length = u64::from(count) * u64::from(entry_size);
    let (Ok(length), Some(start)) = (usize::try_from(length), table_at.checked_mul(block)) else {
        return Ok(None);
    };
    let Some(table) = window.read(start, length)? else { return Ok(None) };
    if crc32_ieee(&table) != checksum {
        return Ok(None);
    }
    let extents =
        (1..).zip(table.chunks_exact(entry_size as usize)).filter_map(|(number, entry)| {
            let unused = entry.get(..16)?.iter().all(|byte| *byte == 0);
            let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
            let size = last.checked_add(1)?.checked_sub(first)?.checked_mul(block)?;
            let start = first.checked_mul(block)?;
            (!unused).then_some(Extent { number, start, size })
        });
    Ok(Some(extents.collect()))
}

/// Start of the table (in blocks), number and size of its entries, its checksum.
fn gpt_header(sector: &[u8], block_number: u64) -> Option<(u64, u32, u32, u32)> {
    if sector.get(..8)? != b"EFI PART" {
        return None;
    }
    let size = le32(sector, 12)? as usize;
    if size < 92 {
        return None;
    }
    let mut header = sector.get(..size)?.to_vec();
    header[16..20].fill(0);
    if crc32_ieee(&header) != le32(sector, 16)? || le64(sector, 24)? != block_number {
        return None;
    }
    let (count, entry_size) = (le32(sector, 80)?, le32(sector, 84)?);
    let sane = entry_size >= 128
        && count > 0
        && u64::from(count) * u64::from(entry_size) <= GPT_TABLE_LIMIT;
    sane.then_some((le64(sector, 72)?, count, entry_size, le32(sector, 88)?))
}

#[cfg(test)]
mod tests {
    use super::super::scan;
    use super::*;

    fn sector(entry: [u8; 16]) -> Vec<u8> {
        let mut sector = vec![0; 512];
        sector[510..].copy_from_slice(MBR_SIGNATURE);
        sector[MBR_ENTRIES..MBR_ENTRIES + 16].copy_from_slice(&entry);
        sector
    }

    const LINUX: [u8; 16] = [0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0];

    #[test]
    fn an_entry_of_an_mbr_gives_type_start_and_count() {
        let entries = mbr(&sector(LINUX));
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].kind, entries[0].start, entries[0].count), (0x83, 2048, 65536));
    }

    #[derive(Debug)]
    struct Disk(Vec<u8>);

    impl scan::Blocks for Disk {
        fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, HostError> {
            let start = usize::try_from(offset).unwrap();
            Ok(self.0[start..start + length].to_vec())
        }
    }

    #[test]
    fn logical_partitions_are_counted_as_the_kernel_counts_them() {
        let entry = |kind: u8, start: u32, count: u32| {
            [&[0, 0, 0, 0, kind, 0, 0, 0][..], &start.to_le_bytes(), &count.to_le_bytes()].concat()
        };
        let table = |entries: &[Vec<u8>]| {
            let entries = entries.concat();
            let mut sector = vec![0; 512];
            sector[MBR_ENTRIES..MBR_ENTRIES + entries.len()].copy_from_slice(&entries);
            sector[510..].copy_from_slice(MBR_SIGNATURE);
            sector
        };
        // Two extended partitions, of which the first begins with an empty table.
        let mut disk = Disk(vec![0; 512 * 1024]);
        for (block, entries) in [
            (0, vec![entry(5, 64, 64), entry(0x0f, 256, 64)]),
            (64, vec![entry(5, 32, 32)]),
            (96, vec![entry(0x83, 8, 8)]),
            (256, vec![entry(0x83, 16, 8)]),
        ] {
            disk.0[block * 512..][..512].copy_from_slice(&table(&entries));
        }
        let window = Window::over(&disk, 512 * 1024, 512);
        let extents = mbr_extents(&window, &mbr(&disk.0[..512])).unwrap();
        let found: Vec<_> = extents.iter().map(|e| (e.number, e.start / 512)).collect();
        assert_eq!(found, [(5, 104), (6, 272)]);
    }

    #[test]
    fn neither_a_bare_55aa_nor_a_boot_sector_is_an_mbr() {
        assert!(mbr(&sector([0; 16])).is_empty());
        let mut code = LINUX;
        code[0] = 0xeb;
        assert!(mbr(&sector(code)).is_empty());
        for (at, magic) in BOOT_SECTORS {
            let mut boot = sector(LINUX);
            boot[*at..at + magic.len()].copy_from_slice(magic);
            assert!(mbr(&boot).is_empty());
        }
    }
}
