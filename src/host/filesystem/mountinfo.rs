//! `/proc/PID/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::Paths;

/// Bytes that most hosts' mountinfo fits into.
const USUAL_SIZE: usize = 32 * 1024;

/// major:minor of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
}

impl DeviceNumber {
    /// From a `dev_t`, as in `st_rdev`.
    #[expect(clippy::cast_possible_truncation, reason = "Linux has 12 bits of major, 20 of minor")]
    pub fn from_raw(device: u64) -> Self {
        Self {
            major: nix::sys::stat::major(device) as u32,
            minor: nix::sys::stat::minor(device) as u32,
        }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Mount id.
    pub id: u32,
    /// Id of the mount that it stands on.
    pub parent: u32,
    /// Device of the filesystem. Btrfs shows an anonymous one (major 0): see
    /// [`MountEntry::block_device`].
    pub device: DeviceNumber,
    /// Path inside the filesystem that is the root of this mount.
    pub root: PathBuf,
    /// Where it is mounted (octal escapes undone; any bytes).
    pub mount_point: PathBuf,
    /// Per-mount options: `rw,noatime`.
    pub options: String,
    /// Peer group of `shared:N`.
    pub shared: Option<u32>,
    /// Peer group of `master:N`.
    pub master: Option<u32>,
    /// Filesystem type.
    pub fs_type: String,
    /// Source as given: `/dev/sdb`.
    pub source: String,
    /// Per-superblock options: `rw,errors=remount-ro`; a filesystem stopped by errors says `ro`.
    pub super_options: String,
}

impl MountEntry {
    /// The block device below: what the kernel shows, or for a filesystem with an anonymous number
    /// (btrfs) the number of the device node that it names as its source.
    pub fn block_device(&self) -> Option<DeviceNumber> {
        if self.device.major != 0 {
            return Some(self.device);
        }
        let node = fs::metadata(&self.source).ok()?;
        node.file_type().is_block_device().then(|| DeviceNumber::from_raw(node.rdev()))
    }
}

/// Parses a whole mountinfo; a line that makes no sense is skipped.
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// ```text
/// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
/// id parent device root mount_point options [tag…] - type source super_options
/// ```
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = device_number(fields.next()?)?;
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = text(fields.next()?);
    let (mut shared, mut master) = (None, None);
    // Any number of tags, also ones that we don't know, up to a lone dash.
    loop {
        match fields.next()? {
            b"-" => break,
            tag => {
                if let Some(group) = tag.strip_prefix(b"shared:") {
                    shared = number(group);
                } else if let Some(group) = tag.strip_prefix(b"master:") {
                    master = number(group);
                }
            }
        }
    }
    let fs_type = text(fields.next()?);
    // An empty source leaves its field empty (two spaces).
    let source = text(fields.next()?);
    let super_options = text(fields.next().unwrap_or_default());
    Some(MountEntry {
        id,
        parent,
        device,
        root,
        mount_point,
        options,
        shared,
        master,
        fs_type,
        source,
        super_options,
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn device_number(field: &[u8]) -> Option<DeviceNumber> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Undoes the kernel's `\040` for space, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Mounts of our own namespace (`/proc/self/mountinfo`).
pub fn own(paths: &Paths) -> std::io::Result<Vec<MountEntry>> {
    Ok(parse(&read(&paths.proc.join("self/mountinfo"))?))
}

/// The text of a mountinfo. Its size cannot be asked for, and a reader that begins with a few bytes
/// makes the kernel walk its list again and again.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(USUAL_SIZE);
    fs::File::open(path)?.read_to_end(&mut text)?;
    Ok(text)
}

/// The topmost mount at exactly this path, in our own namespace.
pub fn at(paths: &Paths, mount_point: &Path) -> std::io::Result<Option<MountEntry>> {
    // A mount on top of another at the same path comes later in the file.
    Ok(own(paths)?.into_iter().rfind(|entry| entry.mount_point == mount_point))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    const LINES: &[u8] = b"\
36 35 98:0 /mnt1 /mnt/with\\040space\\134\\012 rw,noatime shared:7 master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
37 35 0:44 / /mnt/btrfs rw - btrfs /dev/sdb rw,space_cache=v2
38 35 0:45 / /mnt/none rw,relatime -  - fuse.x  rw
not a mount
39 35 8:16 / /mnt/\xff\xfe rw unknown-tag - xfs /dev/sdb rw
";

    #[test]
    fn a_line_gives_device_root_point_groups_and_both_sets_of_options() {
        let entry = parse(LINES).remove(0);
        assert_eq!(entry.id, 36);
        assert_eq!(entry.device, DeviceNumber { major: 98, minor: 0 });
        assert_eq!(entry.root, Path::new("/mnt1"));
        assert_eq!(entry.mount_point, Path::new("/mnt/with space\\\n"));
        assert_eq!((entry.shared, entry.master), (Some(7), Some(1)));
        assert_eq!(entry.options, "rw,noatime");
        assert_eq!(entry.fs_type, "ext3");
        assert_eq!(entry.source, "/dev/root");
        assert_eq!(entry.super_options, "rw,errors=continue");
    }

    #[test]
    fn lines_that_make_no_sense_are_skipped_and_any_bytes_are_a_path() {
        let entries = parse(LINES);
        let last = entries.last().unwrap();
        assert_eq!(last.mount_point.as_os_str().as_bytes(), b"/mnt/\xff\xfe");
        assert!(entries.iter().all(|entry| entry.mount_point != Path::new("a")));
    }

    #[test]
    fn the_topmost_of_two_mounts_at_one_path_counts() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("self")).unwrap();
        fs::write(
            proc.path().join("self/mountinfo"),
            "40 1 8:0 / /mnt/a rw - ext4 /dev/sda rw\n\
             41 40 8:16 / /mnt/a rw - ext4 /dev/sdb rw\n\
             42 40 8:32 / /mnt/ab rw - ext4 /dev/sdc rw\n",
        )
        .unwrap();
        let paths = Paths { proc: proc.path().into(), ..Paths::default() };
        assert_eq!(at(&paths, Path::new("/mnt/a")).unwrap().unwrap().source, "/dev/sdb");
        assert_eq!(at(&paths, Path::new("/mnt/b")).unwrap(), None);
    }

    #[test]
    fn the_mounts_of_this_machine_are_read() {
        let root = at(&Paths::default(), Path::new("/")).unwrap();
        assert!(root.is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            parse(&bytes);
        }

        /// The kernel escapes exactly these four (`mangle` of fs/proc_namespace.c).
        #[test]
        fn a_mount_point_of_any_bytes_is_read_as_it_is(
            name in prop::collection::vec(1u8.., 1..40),
        ) {
            let escaped: Vec<u8> = name
                .iter()
                .flat_map(|byte| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                    byte => vec![*byte],
                })
                .collect();
            let line = [b"36 35 8:0 / /" as &[u8], &escaped, b" rw - ext4 /dev/sda rw\n"].concat();
            let found = parse(&line);
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].mount_point.as_os_str().as_bytes(), [b"/", &*name].concat());
        }
    }
}
