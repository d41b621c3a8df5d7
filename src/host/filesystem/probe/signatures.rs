//! What else people keep on block devices: recognised, so that a refusal can say what it is.
//!
//! Offsets and magic numbers are those of the formats' own documentation and of libblkid.

use super::scan::{Ends, Finding, Window};
use super::superblock::{self, BTRFS_SIZE, EXT_SIZE, le16};
use super::{Contents, partitions};
use crate::host::HostError;

/// A constant at a constant place.
struct Magic {
    name: &'static str,
    at: u64,
    bytes: &'static [u8],
}

const fn magic(name: &'static str, at: u64, bytes: &'static [u8]) -> Magic {
    Magic { name, at, bytes }
}

const LUKS_COPY: &[u8] = b"SKUL\xba\xbe";
const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];

/// In the first 256 KiB.
const HEAD: &[Magic] = &[
    magic("LUKS container", 0, b"LUKS\xba\xbe"),
    magic("LVM1 physical volume", 0, b"HM\x01\0"),
    magic("RAID member (md 1.1)", 0, MD),
    magic("RAID member (md 1.2)", 4096, MD),
    magic(
        "bcache device",
        4120,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ),
    magic("bcachefs", 4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    magic("Stratis device", 516, b"!Stra0tis\x86\xff\x02^\x41rh"),
    magic("VDO device", 0, b"dmvdo001"),
    magic("dm-integrity device", 0, b"integrt\0"),
    magic("dm-verity hashes", 0, b"verity\0\0"),
    magic("dm-snapshot", 0, b"SnAp"),
    magic("Ceph BlueStore device", 0, b"bluestore block device"),
    magic("Oracle ASM disk", 32, b"ORCLDISK"),
    magic("BitLocker container", 3, b"-FVE-FS-"),
    magic("NTFS", 3, b"NTFS    "),
    magic("exFAT", 3, b"EXFAT   "),
    magic("ReFS", 3, b"ReFS\0"),
    magic("FAT", 54, b"FAT12   "),
    magic("FAT", 54, b"FAT16   "),
    magic("FAT", 54, b"FAT     "),
    magic("FAT", 82, b"FAT32   "),
    magic("FAT", 54, b"MSDOS"),
    magic("APFS", 32, b"NXSB"),
    magic("HFS+", 1024, b"H+\0\x04"),
    magic("HFS+", 1024, b"HX\0\x05"),
    magic("SquashFS", 0, b"hsqs"),
    magic("SquashFS", 0, b"sqsh"),
    magic("cramfs", 0, b"\x45\x3d\xcd\x28"),
    magic("romfs", 0, b"-rom1fs-"),
    magic("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
    magic("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    magic("ReiserFS", 65588, b"ReIsErFs"),
    magic("ReiserFS", 65588, b"ReIsEr2Fs"),
    magic("ReiserFS", 65588, b"ReIsEr3Fs"),
    magic("ReiserFS", 8244, b"ReIsErFs"),
    magic("Reiser4", 65536, b"ReIsEr4"),
    magic("JFS", 32768, b"JFS1"),
    magic("GFS2", 65536, b"\x01\x16\x19\x70"),
    magic("OCFS2", 1024, b"OCFSV2"),
    magic("OCFS2", 2048, b"OCFSV2"),
    magic("OCFS2", 4096, b"OCFSV2"),
    magic("OCFS2", 8192, b"OCFSV2"),
    magic("UFS", 9564, b"\x54\x19\x01\0"),
    magic("UFS", 66908, b"\x19\x01\x54\x19"),
    magic("ISO 9660 image", 32769, b"CD001"),
    magic("UDF", 32769, b"BEA01"),
    magic("UDF", 34817, b"BEA01"),
    magic("BSD disk label", 512, b"\x57\x45\x56\x82"),
    magic("Windows dynamic disk", 3072, b"PRIVHEAD"),
    magic("qcow2 image", 0, b"QFI\xfb"),
    magic("VMDK image", 0, b"KDMV"),
];

/// Swap and hibernation images stand at the end of the first page, whatever its size.
const SWAP: &[Magic] = &[
    magic("swap", 0, b"SWAPSPACE2"),
    magic("swap", 0, b"SWAP-SPACE"),
    magic("hibernation image", 0, b"S1SUSPEND"),
    magic("hibernation image", 0, b"S2SUSPEND"),
    magic("hibernation image", 0, b"ULSUSPEND"),
    magic("hibernation image", 0, b"LINHIB0001"),
];

/// Copies, and what begins further inside.
const INSIDE: &[Magic] = &[
    magic("VMFS member", 0x10_0000, b"\x0d\xd0\x01\xc0"),
    magic("VMFS", 0x20_0000, b"\x5e\xf1\xab\x2f"),
    magic("secondary LUKS2 header", 0x4000, LUKS_COPY),
    magic("secondary LUKS2 header", 0x8000, LUKS_COPY),
    magic("secondary LUKS2 header", 0x1_0000, LUKS_COPY),
    magic("secondary LUKS2 header", 0x2_0000, LUKS_COPY),
    magic("secondary LUKS2 header", 0x4_0000, LUKS_COPY),
    magic("secondary LUKS2 header", 0x8_0000, LUKS_COPY),
    magic("secondary LUKS2 header", 0x10_0000, LUKS_COPY),
    magic("secondary LUKS2 header", 0x20_0000, LUKS_COPY),
    magic("secondary LUKS2 header", 0x40_0000, LUKS_COPY),
    magic("second Stratis header", 4612, b"!Stra0tis\x86\xff\x02^\x41rh"),
];

/// Looks at both ends.
pub(super) fn find(ends: &Ends) -> Vec<Finding> {
    let holds = |at: u64, bytes: &[u8]| ends.get(at, bytes.len()) == Some(bytes);
    let mut found: Vec<Finding> =
        HEAD.iter().filter(|m| holds(m.at, m.bytes)).map(|m| other(m.at, m.name)).collect();
    for page in [4096, 8192, 16384, 32768, 65536] {
        found.extend(
            SWAP.iter().filter(|m| holds(page - 10, m.bytes)).map(|m| other(page - 10, m.name)),
        );
    }
    for sector in [0, 512, 1024, 1536] {
        if holds(sector, b"LABELONE") && holds(sector + 24, b"LVM2 001") {
            found.push(other(sector, "LVM physical volume"));
        }
    }
    found.extend(raid_at_the_end(ends, &holds));
    found.extend(zfs(ends));
    // Two magic numbers of one thing (FAT has several) are one finding.
    found.dedup_by(|a, b| a.what == b.what);
    found
}

/// A copy of a superblock whose first one is not there.
fn copy(at: u64, what: &str, sb: &[u8], uuid_at: usize) -> Option<Finding> {
    Some(Finding { at, what: superblock::unfinished(what, sb, uuid_at)? })
}

fn other(at: u64, name: &str) -> Finding {
    Finding { at, what: Contents::Other(name.to_owned()) }
}

/// md 0.90 and 1.0, DRBD, Intel and DDF firmware RAID keep their superblock behind the data: what
/// stands at the beginning looks like an ordinary filesystem.
fn raid_at_the_end(ends: &Ends, holds: &dyn Fn(u64, &[u8]) -> bool) -> Vec<Finding> {
    const KIB_64: u64 = 64 * 1024;
    let size = ends.size;
    let md_090 = (size - size % KIB_64).checked_sub(KIB_64);
    let md_10 = (size / 512).checked_sub(16).map(|sector| (sector - sector % 8) * 512);
    let drbd = size.checked_sub(4096).map(|at| at + 60);
    let ddf = size.checked_sub(512);
    let intel = size.checked_sub(1024);
    let big_endian: [u8; 4] = [0xa9, 0x2b, 0x4e, 0xfc];
    let places: [(&str, Option<u64>, &[u8]); 8] = [
        ("RAID member (md 0.90)", md_090, MD),
        ("RAID member (md 0.90)", md_090, &big_endian),
        ("RAID member (md 1.0)", md_10, MD),
        ("DRBD device", drbd, &[0x83, 0x74, 0x02, 0x6b]),
        ("DRBD device", drbd, &[0x83, 0x74, 0x02, 0x6c]),
        ("DRBD device", drbd, &[0x83, 0x74, 0x02, 0x6d]),
        ("firmware RAID member (DDF)", ddf, &[0xde, 0x11, 0xde, 0x11]),
        ("firmware RAID member (Intel)", intel, b"Intel Raid ISM Cfg Sig. "),
    ];
    places
        .into_iter()
        .filter_map(|(name, at, bytes)| {
            let at = at.filter(|at| holds(*at, bytes))?;
            Some(other(at, name))
        })
        .collect()
}

/// A ZFS label is 256 KiB, its second half a ring of uberblocks of 1 KiB or more each; two labels
/// stand at the beginning, two at the end.
fn zfs(ends: &Ends) -> Option<Finding> {
    const LABEL: u64 = 256 * 1024;
    const UBERBLOCK: [u8; 8] = 0x00ba_b10c_u64.to_le_bytes();
    let last = (ends.size - ends.size % LABEL).checked_sub(LABEL)?;
    let swapped: Vec<u8> = UBERBLOCK.iter().rev().copied().collect();
    [0, last].into_iter().flat_map(|label| (128..256).map(move |kib| label + kib * 1024)).find_map(
        |at| {
            let bytes = ends.get(at, UBERBLOCK.len())?;
            (bytes == UBERBLOCK || bytes == swapped).then(|| other(at, "ZFS pool member"))
        },
    )
}

/// Copies that survive when the beginning of a device was zeroed. They mean that there may be data,
/// and only that: behind a living filesystem they are often those of its predecessor.
pub(super) fn leftovers(window: &Window<'_>) -> Result<Vec<Finding>, HostError> {
    const MIB: u64 = 1024 * 1024;
    /// The magic number to the UUID.
    const XFS_HEAD: usize = 48;
    let mut found = Vec::new();
    for copy in INSIDE {
        if window.read(copy.at, copy.bytes.len())?.as_deref() == Some(copy.bytes) {
            found.push(other(copy.at, copy.name));
        }
    }
    // Groups 1 and 3 have a copy; a group has as many blocks as a block has bits. With blocks of
    // 1 KiB the first group begins at block 1.
    for group in [1, 3] {
        for (block, first) in [(1024, 1), (2048, 0), (4096, 0)] {
            let at = (group * block * 8 + first) * block;
            let Some(sb) = window.read(at, EXT_SIZE)? else { continue };
            let is_copy_of_group = le16(&sb, 0x5a) == u16::try_from(group).ok();
            if is_copy_of_group && superblock::ext(&sb).is_some() {
                let what = "a backup ext2/3/4 superblock (the first one is gone)";
                found.extend(copy(at, what, &sb, superblock::EXT_UUID));
            }
        }
    }
    for at in [64 * MIB, 256 * 1024 * MIB] {
        let Some(sb) = window.read(at, BTRFS_SIZE)? else { continue };
        if superblock::btrfs(&sb, at).is_some() {
            let what = "a backup Btrfs superblock (the first one is gone)";
            found.extend(copy(at, what, &sb, superblock::BTRFS_UUID));
        }
    }
    // mkfs.xfs makes four allocation groups below 4 TiB; each begins with a superblock.
    let at = (window.size / 4096).div_ceil(4) * 4096;
    if let Some(sb) = window.read(at, XFS_HEAD)?
        && sb.starts_with(b"XFSB")
    {
        let what = "a backup XFS superblock (the first one is gone)";
        found.extend(copy(at, what, &sb, superblock::XFS_UUID));
    }
    found.extend(partitions::leftover(window)?);
    Ok(found)
}
