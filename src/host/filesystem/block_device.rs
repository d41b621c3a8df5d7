//! An open block device: what it is, and reads and writes that reach the device itself.
//!
//! `O_DIRECT` goes past the page cache. Through the cache a device whose target is dead can still
//! answer, and one whose blocks were replaced behind the kernel's back shows the old ones. The
//! kernel writes dirty cached pages of the range out before a direct read, so what mkfs has just
//! written is seen.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::mountinfo::DeviceNumber;
use crate::effects::{self, Kind};
use crate::host::HostError;

/// Alignment of direct reads and writes, in memory and on the device. Covers every logical block
/// size that Linux has; the end of the device needs no alignment beyond its own blocks.
const ALIGNMENT: u64 = 64 * 1024;

/// Read at a time when looking for zeros.
const CHUNK: u64 = 1024 * 1024;

/// How long a busy device is waited for.
const BUSY_GRACE: Duration = Duration::from_secs(1);
const BUSY_POLL: Duration = Duration::from_millis(10);

/// How a device is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read only, beside whoever uses it.
    Shared,
    /// Read only and `O_EXCL`: fails when the device is mounted, or held by device mapper, md, swap
    /// or anybody else with `O_EXCL`.
    Exclusive,
    /// As `Exclusive`, and writable.
    ExclusiveWrite,
}

/// A block device, open.
#[derive(Debug)]
pub struct BlockDevice {
    file: File,
    path: PathBuf,
    number: DeviceNumber,
    size: u64,
}

impl BlockDevice {
    /// Opens the node and asks the kernel for number and size. Blocks as long as the device does.
    ///
    /// [`HostError::Refused`] for what is no block device, [`HostError::Busy`] when exclusive access
    /// is not to be had.
    pub fn open(path: &Path, access: Access) -> Result<Self, HostError> {
        let mut flags = OFlag::O_DIRECT;
        if access != Access::Shared {
            flags |= OFlag::O_EXCL;
        }
        // Not every kernel says ENOTBLK for what is no block device: look before opening, since a
        // FIFO would block and a tape would rewind; and at the descriptor again afterwards.
        let node = std::fs::metadata(path).map_err(|e| HostError::io("look at", path, e))?;
        if !node.file_type().is_block_device() {
            return Err(not_a_block_device(path));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ExclusiveWrite).custom_flags(flags.bits());
        let mut file = open_when_free(path, &options).map_err(|error| {
            if !is_busy(&error) {
                return HostError::io("open", path, error);
            }
            HostError::Busy {
                what: format!(
                    "{} is in use: it is mounted, or held by device mapper, md, swap or another \
                     program",
                    path.display()
                ),
            }
        })?;
        let opened = file.metadata().map_err(|e| HostError::io("look at", path, e))?;
        if !opened.file_type().is_block_device() {
            return Err(not_a_block_device(path));
        }
        let size =
            file.seek(SeekFrom::End(0)).map_err(|e| HostError::io("get the size of", path, e))?;
        let number = DeviceNumber::from_raw(opened.rdev());
        Ok(Self { file, path: path.to_owned(), number, size })
    }

    /// The node that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number.
    pub fn number(&self) -> DeviceNumber {
        self.number
    }

    /// Size in bytes (the end of the open device, as BLKGETSIZE64 says it).
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the kernel refuses writes (BLKROGET).
    pub fn is_read_only(&self) -> Result<bool, HostError> {
        let mut flag = 0;
        // SAFETY: the descriptor is open, and BLKROGET writes one int to `flag`.
        #[expect(unsafe_code, reason = "nix has no wrapper for this ioctl")]
        unsafe { ioctl::blkroget(self.file.as_raw_fd(), &raw mut flag) }
            .map_err(|e| HostError::io("ask for the write protection of", &self.path, e.into()))?;
        Ok(flag != 0)
    }

    /// Logical block size in bytes (BLKSSZGET): the unit of partition tables.
    pub fn logical_block(&self) -> Result<u64, HostError> {
        let mut size = 0;
        // SAFETY: the descriptor is open, and BLKSSZGET writes one int to `size`.
        #[expect(unsafe_code, reason = "nix has no wrapper for this ioctl")]
        unsafe { ioctl::blksszget(self.file.as_raw_fd(), &raw mut size) }
            .map_err(|e| HostError::io("ask for the block size of", &self.path, e.into()))?;
        u64::try_from(size).ok().filter(|size| size.is_power_of_two()).ok_or_else(|| {
            HostError::Refused {
                what: format!("{} has a block size of {size} bytes", self.path.display()),
            }
        })
    }

    /// Reads exactly `length` bytes at `offset`; a short read is an error.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, HostError> {
        let mut buffer = Aligned::default();
        Ok(self.read_into(&mut buffer, offset, length)?.to_vec())
    }

    /// The offset of the first byte that is not zero, from `start` to before `end`.
    pub fn first_nonzero(&self, start: u64, end: u64) -> Result<Option<u64>, HostError> {
        let mut buffer = Aligned::default();
        let mut at = start;
        while at < end {
            let count = (end - at).min(CHUNK);
            let bytes = self.read_into(&mut buffer, at, as_len(count))?;
            if let Some(index) = zeros::first_nonzero(bytes) {
                return Ok(Some(at + index as u64));
            }
            at += count;
        }
        Ok(None)
    }

    /// As [`BlockDevice::read`], into memory that can be used again.
    fn read_into<'a>(
        &self,
        buffer: &'a mut Aligned,
        offset: u64,
        length: usize,
    ) -> Result<&'a [u8], HostError> {
        let failed = |source: io::Error| {
            let source = io::Error::new(source.kind(), format!("at byte {offset}: {source}"));
            HostError::io("read", &self.path, source)
        };
        let end = offset + length as u64;
        if end > self.size {
            let short = format!("the device ends at byte {}", self.size);
            return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, short)));
        }
        let first = offset - offset % ALIGNMENT;
        let last = end.next_multiple_of(ALIGNMENT).min(self.size);
        let bytes = buffer.first_mut(as_len(last - first));
        self.file.read_exact_at(bytes, first).map_err(failed)?;
        let skip = as_len(offset - first);
        Ok(&bytes[skip..skip + length])
    }

    /// Writes zeros over `length` bytes at `offset`, widened to whole blocks of 64 KiB, and waits
    /// until the device has them.
    pub(super) fn zero(&self, offset: u64, length: u64) -> Result<(), HostError> {
        let what = || format!("wipe {} at {offset}", self.path.display());
        effects::run_blocking(Kind::Kernel, what, || {
            let mut at = offset - offset % ALIGNMENT;
            let end = (offset + length).next_multiple_of(ALIGNMENT).min(self.size);
            let mut zeros = Aligned::zeroed(1024 * 1024);
            while at < end {
                let count = as_len((end - at).min(1024 * 1024));
                self.file
                    .write_all_at(&zeros.bytes_mut()[..count], at)
                    .map_err(|e| HostError::io("wipe", &self.path, e))?;
                at += count as u64;
            }
            self.file.sync_all().map_err(|e| HostError::io("flush", &self.path, e))
        })
    }

    /// Writes out everything that is cached for the device, waits until the device has it, and drops
    /// the cache (fsync, then BLKFLSBUF).
    pub fn flush(&self) -> Result<(), HostError> {
        effects::run_blocking(
            Kind::Kernel,
            || format!("flush {}", self.path.display()),
            || {
                self.file.sync_all().map_err(|e| HostError::io("flush", &self.path, e))?;
                // SAFETY: the descriptor is open, and BLKFLSBUF takes no argument.
                #[expect(unsafe_code, reason = "nix has no wrapper for this ioctl")]
                unsafe { ioctl::blkflsbuf(self.file.as_raw_fd()) }
                    .map_err(|e| HostError::io("flush", &self.path, e.into()))?;
                Ok(())
            },
        )
    }
}

/// Whether nobody has the filesystem of this device mounted any more, in whatever namespace: the kernel
/// gives a device to one holder, and a mount is one. `false` says nothing: somebody else may hold it, or
/// it cannot be opened.
pub fn is_free(path: &Path, number: DeviceNumber) -> bool {
    let is_it = |found: std::fs::Metadata| {
        found.file_type().is_block_device() && DeviceNumber::from_raw(found.rdev()) == number
    };
    // Before it is opened, and the node that was: it may have been replaced between.
    std::fs::metadata(path).is_ok_and(is_it)
        && OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_EXCL.bits())
            .open(path)
            .and_then(|device| device.metadata())
            .is_ok_and(is_it)
}

/// Opens, and waits a little for a device that is busy. A process that is being started holds
/// copies of all our descriptors until it executes its program, also of an exclusive one that we
/// have just closed: what we use ourselves can look taken for a moment.
fn open_when_free(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let deadline = Instant::now() + BUSY_GRACE;
    loop {
        match options.open(path) {
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                #[expect(clippy::disallowed_methods, reason = "opening a device blocks anyway")]
                std::thread::sleep(BUSY_POLL);
            }
            opened => return opened,
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EBUSY as i32)
}

fn not_a_block_device(path: &Path) -> HostError {
    HostError::Refused { what: format!("{} is not a block device", path.display()) }
}

/// Lengths here are of buffers that fit into memory.
#[expect(clippy::cast_possible_truncation, reason = "never more than a few MiB")]
fn as_len(bytes: u64) -> usize {
    bytes as usize
}

/// Memory that direct I/O accepts.
#[derive(Default)]
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn zeroed(length: usize) -> Self {
        let alignment = as_len(ALIGNMENT);
        let bytes = vec![0; length + alignment];
        let start = bytes.as_ptr().align_offset(alignment);
        Self { bytes, start, length }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }

    /// So many bytes of it; it grows where it has fewer.
    fn first_mut(&mut self, length: usize) -> &mut [u8] {
        if self.length < length {
            *self = Self::zeroed(length);
        }
        &mut self.bytes_mut()[..length]
    }
}

/// Looking for zeros in memory.
mod zeros {
    const BLOCK: usize = 4096;
    static ZEROS: [u8; BLOCK] = [0; BLOCK];

    /// The index of the first byte that is not zero. Whole blocks are compared, which the C library
    /// does many bytes at a time.
    pub fn first_nonzero(bytes: &[u8]) -> Option<usize> {
        let mut blocks = bytes.chunks(BLOCK).enumerate();
        let (index, block) = blocks.find(|(_, block)| **block != ZEROS[..block.len()])?;
        block.iter().position(|byte| *byte != 0).map(|within| index * BLOCK + within)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn one_byte_is_found_wherever_it_stands() {
            for length in [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 7] {
                let mut bytes = vec![0; length];
                assert_eq!(first_nonzero(&bytes), None);
                for at in (0..length).step_by(511).chain(length.checked_sub(1)) {
                    bytes[at] = 1;
                    assert_eq!(first_nonzero(&bytes), Some(at), "of {length}");
                    bytes[at] = 0;
                }
            }
        }
    }
}

/// `<linux/fs.h>`
mod ioctl {
    use std::ffi::c_int;

    use nix::{ioctl_none_bad, ioctl_read_bad, request_code_none};

    ioctl_read_bad!(
        /// Read-only flag.
        blkroget,
        request_code_none!(0x12, 94),
        c_int
    );
    ioctl_none_bad!(
        /// Write out and drop the cache.
        blkflsbuf,
        request_code_none!(0x12, 97)
    );
    ioctl_read_bad!(
        /// Logical block size.
        blksszget,
        request_code_none!(0x12, 104),
        c_int
    );
}
