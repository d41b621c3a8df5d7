//! Superblocks of the filesystems that we mount: ext2/3/4, XFS, Btrfs.
//!
//! Checksums are verified where the filesystem has them: a superblock that fails is "damaged", which
//! is never mounted, never formatted.

use uuid::Uuid;

use super::scan::Finding;
use super::{Contents, Filesystem, FsType};

/// Where the superblocks are.
pub(super) const EXT_AT: u64 = 1024;
pub(super) const BTRFS_AT: u64 = 64 * 1024;
/// Bytes of ext's and of btrfs' superblock.
pub(super) const EXT_SIZE: usize = 1024;
pub(super) const BTRFS_SIZE: usize = 4096;

/// Looks at the first 256 KiB of a device.
pub(super) fn find(head: &[u8]) -> Vec<Finding> {
    let ext = head.get(1024..1024 + EXT_SIZE).and_then(ext);
    let xfs = xfs(head);
    let btrfs = head.get(0x1_0000..0x1_0000 + BTRFS_SIZE).and_then(|sb| btrfs(sb, BTRFS_AT));
    [(EXT_AT, ext), (0, xfs), (BTRFS_AT, btrfs)]
        .into_iter()
        .filter_map(|(at, what)| Some(Finding { at, what: what? }))
        .collect()
}

/// Where the superblocks have their UUIDs.
pub(super) const EXT_UUID: usize = 0x68;
pub(super) const XFS_UUID: usize = 32;
pub(super) const BTRFS_UUID: usize = 32;

/// A filesystem that cannot be mounted, if it says whose it is.
pub(super) fn unfinished(what: &str, sb: &[u8], uuid_at: usize) -> Option<Contents> {
    Some(Contents::Unfinished { what: what.to_owned(), uuid: uuid(sb, uuid_at)? })
}

/// <https://docs.kernel.org/filesystems/ext4/super.html>
pub(super) fn ext(sb: &[u8]) -> Option<Contents> {
    const VALID_FS: u16 = 1;
    const ERROR_FS: u16 = 2;
    const COMPAT_HAS_JOURNAL: u32 = 0x4;
    const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
    const INCOMPAT_64BIT: u32 = 0x80;
    const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
    // What ext3 may have: filetype, recover, meta_bg; sparse_super, large_file, btree_dir.
    const EXT3_INCOMPAT: u32 = 0x2 | 0x4 | 0x10;
    const EXT3_RO_COMPAT: u32 = 0x1 | 0x2 | 0x4;

    if le16(sb, 0x38)? != 0xef53 {
        return None;
    }
    let shift = le32(sb, 0x18)?;
    let (compat, incompat, ro_compat) = (le32(sb, 0x5c)?, le32(sb, 0x60)?, le32(sb, 0x64)?);
    let low = le32(sb, 0x04)?;
    let checksum_is_right =
        ro_compat & RO_COMPAT_METADATA_CSUM == 0 || le32(sb, 0x3fc)? == crc32c(sb.get(..0x3fc)?);
    if shift > 6 || !checksum_is_right {
        return unfinished("a damaged ext2/3/4 superblock", sb, EXT_UUID);
    }
    if incompat & INCOMPAT_JOURNAL_DEV != 0 {
        return Some(Contents::Other("an external ext4 journal".into()));
    }
    let high = if incompat & INCOMPAT_64BIT == 0 { 0 } else { le32(sb, 0x150)? };
    let blocks = u64::from(high) << 32 | u64::from(low);
    let Some(size) = blocks.checked_mul(1024 << shift).filter(|size| *size > 0) else {
        return unfinished("a damaged ext2/3/4 superblock", sb, EXT_UUID);
    };
    let journal = compat & COMPAT_HAS_JOURNAL != 0;
    let state = le16(sb, 0x3a)?;
    Some(Contents::Filesystem(Filesystem {
        fs_type: FsType::Ext4,
        mount_type: if incompat & !EXT3_INCOMPAT != 0 || ro_compat & !EXT3_RO_COMPAT != 0 {
            "ext4"
        } else if journal {
            "ext3"
        } else {
            "ext2"
        },
        uuid: uuid(sb, EXT_UUID)?,
        label: label(sb.get(0x78..0x88)?),
        size,
        // With a journal the kernel leaves VALID_FS set while mounted; without one it clears it.
        needs_check: state & ERROR_FS != 0 || state & VALID_FS == 0,
    }))
}

/// <https://www.kernel.org/pub/linux/utils/fs/xfs/docs/xfs_filesystem_structure.pdf>, chapter 13.
pub(super) fn xfs(sb: &[u8]) -> Option<Contents> {
    if sb.get(..4)? != b"XFSB" {
        return None;
    }
    let block = be32(sb, 4)?;
    let blocks = be64(sb, 8)?;
    let log_start = be64(sb, 48)?;
    let version = be16(sb, 100)? & 0xf;
    let sector = usize::from(be16(sb, 102)?);
    let sane = block.is_power_of_two()
        && (512..=65536).contains(&block)
        && sector.is_power_of_two()
        && (512..=32768).contains(&sector)
        && (4..=5).contains(&version);
    let size = blocks.checked_mul(u64::from(block)).filter(|size| sane && *size > 0);
    let checksum_is_right = version < 5
        || sb.get(..sector).filter(|_| sane).is_some_and(|bytes| {
            let mut copy = bytes.to_vec();
            copy[224..228].fill(0);
            le32(bytes, 224) == Some(crc32c_finished(&copy))
        });
    let Some(size) = size.filter(|_| checksum_is_right) else {
        return unfinished("a damaged XFS superblock", sb, XFS_UUID);
    };
    if *sb.get(126)? != 0 {
        return unfinished("an XFS that mkfs did not finish", sb, XFS_UUID);
    }
    if log_start == 0 {
        return Some(Contents::Other("an XFS with its log on another device".into()));
    }
    Some(Contents::Filesystem(Filesystem {
        fs_type: FsType::Xfs,
        mount_type: "xfs",
        uuid: uuid(sb, XFS_UUID)?,
        label: label(sb.get(108..120)?),
        size,
        needs_check: false,
    }))
}

/// <https://btrfs.readthedocs.io/en/latest/dev/On-disk-format.html#superblock>; `at` is where this
/// copy was read: each says where it belongs.
pub(super) fn btrfs(sb: &[u8], at: u64) -> Option<Contents> {
    match sb.get(64..72)? {
        b"_BHRfS_M" => {}
        // mkfs writes the true magic last.
        b"!BHRfS_M" => {
            return unfinished("a Btrfs that mkfs did not finish", sb, BTRFS_UUID);
        }
        _ => return None,
    }
    const CSUM_CRC32C: u16 = 0;
    let checksum_is_right =
        le16(sb, 196)? != CSUM_CRC32C || le32(sb, 0)? == crc32c_finished(sb.get(32..BTRFS_SIZE)?);
    let device_size = le64(sb, 201 + 8)?;
    if !checksum_is_right || le64(sb, 48)? != at || device_size == 0 {
        return unfinished("a damaged Btrfs superblock", sb, BTRFS_UUID);
    }
    let devices = le64(sb, 136)?;
    if devices != 1 {
        return Some(Contents::Other(format!("a Btrfs over {devices} devices")));
    }
    Some(Contents::Filesystem(Filesystem {
        fs_type: FsType::Btrfs,
        mount_type: "btrfs",
        uuid: uuid(sb, BTRFS_UUID)?,
        label: label(sb.get(299..299 + 256)?),
        size: device_size,
        needs_check: false,
    }))
}

/// Text up to the first NUL.
fn label(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn uuid(bytes: &[u8], at: usize) -> Option<Uuid> {
    array(bytes, at).map(Uuid::from_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(super) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// CRC-32C as ext4 stores it: not inverted at the end.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc32(0x82f6_3b78, bytes)
}

/// CRC-32C as XFS and Btrfs store it.
pub(super) fn crc32c_finished(bytes: &[u8]) -> u32 {
    !crc32c(bytes)
}

/// CRC-32 as GPT stores it.
pub(super) fn crc32_ieee(bytes: &[u8]) -> u32 {
    !crc32(0xedb8_8320, bytes)
}

/// Bit by bit: it is run over a few KiB, once a mount.
fn crc32(polynomial: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ polynomial }
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain_ext(change: impl FnOnce(&mut [u8])) -> Option<Contents> {
        let mut sb = vec![0; EXT_SIZE];
        sb[0x04..0x08].copy_from_slice(&25_600_u32.to_le_bytes());
        sb[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        sb[0x3a] = 1;
        sb[0x68..0x78].copy_from_slice(&[7; 16]);
        sb[0x78..0x7c].copy_from_slice(b"data");
        change(&mut sb);
        ext(&sb)
    }

    fn filesystem(contents: Option<Contents>) -> Filesystem {
        match contents {
            Some(Contents::Filesystem(fs)) => fs,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn checksums_agree_with_the_published_check_values() {
        assert_eq!(crc32c_finished(b"123456789"), 0xe306_9283);
        assert_eq!(crc32_ieee(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn features_tell_ext2_ext3_and_ext4_apart() {
        let ext2 = filesystem(plain_ext(|_| {}));
        assert_eq!((ext2.mount_type, ext2.size, ext2.label.as_str()), ("ext2", 26_214_400, "data"));
        assert_eq!(filesystem(plain_ext(|sb| sb[0x5c] = 4)).mount_type, "ext3");
        assert_eq!(filesystem(plain_ext(|sb| sb[0x60] = 0x40)).mount_type, "ext4");
    }

    #[test]
    fn a_size_beyond_32_bits_of_blocks_is_read() {
        let fs = filesystem(plain_ext(|sb| {
            sb[0x18] = 2;
            sb[0x60] = 0x80;
            sb[0x150] = 1;
        }));
        assert_eq!(fs.size, (25_600 + (1 << 32)) * 4096);
    }

    #[test]
    fn an_unclean_ext2_or_one_with_errors_needs_a_check() {
        assert!(!filesystem(plain_ext(|_| {})).needs_check);
        assert!(filesystem(plain_ext(|sb| sb[0x3a] = 0)).needs_check);
        assert!(filesystem(plain_ext(|sb| sb[0x3a] = 3)).needs_check);
    }

    #[test]
    fn a_superblock_that_fails_its_checksum_is_damaged_not_absent() {
        let damaged = |found: Option<Contents>| {
            found.is_some_and(|found| found.to_string().contains("damaged"))
        };
        assert!(damaged(plain_ext(|sb| sb[0x65] = 4)));
        assert!(damaged(plain_ext(|sb| sb[0x18] = 7)));
        let mut sb = vec![0; 4096];
        sb[..4].copy_from_slice(b"XFSB");
        assert!(damaged(xfs(&sb)));
        let mut sb = vec![0; BTRFS_SIZE];
        sb[64..72].copy_from_slice(b"_BHRfS_M");
        assert!(damaged(btrfs(&sb, BTRFS_AT)));
    }

    #[test]
    fn an_xfs_that_claims_a_tiny_sector_is_damaged() {
        let mut sb = vec![0; 4096];
        sb[..4].copy_from_slice(b"XFSB");
        sb[101] = 5;
        sb[103] = 67;
        assert_eq!(xfs(&sb).unwrap().to_string(), "a damaged XFS superblock");
    }

    proptest! {
        /// A head of random bytes with the magic numbers in their places.
        #[test]
        fn any_superblock_is_read_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..4096),
            magic in 0usize..4,
        ) {
            let mut head = bytes;
            let (at, word): (usize, &[u8]) = match magic {
                0 => (0x438, &[0x53, 0xef]),
                1 => (0, b"XFSB"),
                2 => (0x40, b"_BHRfS_M"),
                _ => (0, b""),
            };
            if let Some(place) = head.get_mut(at..at + word.len()) {
                place.copy_from_slice(word);
            }
            find(&head);
            ext(&head);
            xfs(&head);
            btrfs(&head, 0);
        }
    }
}
