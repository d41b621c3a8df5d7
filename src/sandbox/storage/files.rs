//! Sparse files.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

/// Copied at once, in bytes.
const CHUNK: usize = 1 << 20;

/// Makes a file of zeros that takes no space.
pub(super) fn create(path: &Path, bytes: u64) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.set_len(bytes)
}

/// Grows a file; one that is large enough stays as it is.
pub(super) fn grow(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() < bytes { file.set_len(bytes) } else { Ok(()) }
}

/// Removes a file; there may be none.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Copies a file and makes the copy `bytes` long; holes stay holes. The copy appears whole or not
/// at all.
pub(super) fn copy(from: &Path, to: &Path, bytes: u64) -> io::Result<()> {
    let mut source = File::open(from)?;
    let temporary = to.with_extension("new");
    remove(&temporary)?;
    create(&temporary, bytes)?;
    let target = OpenOptions::new().write(true).open(&temporary)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some((start, end)) = next_data(&mut source, at)? {
        at = start;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let count = source.read_at(&mut buffer[..wanted], at)?;
            if count == 0 {
                break;
            }
            target.write_all_at(&buffer[..count], at)?;
            at += count as u64;
        }
    }
    std::fs::rename(&temporary, to)
}

/// Where the next data from `at` on begins and ends.
fn next_data(file: &mut File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let offset = i64::try_from(at).map_err(io::Error::other)?;
    let start = match lseek64(&*file, offset, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None), // only a hole is left
        Err(error) => return Err(error.into()),
    };
    let end = lseek64(&*file, start, Whence::SeekHole)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(Some((u64::try_from(start).unwrap_or(0), u64::try_from(end).unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        create(&from, 1 << 30).unwrap();
        let file = OpenOptions::new().write(true).open(&from).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", 700 << 20).unwrap();
        copy(&from, &to, 2 << 30).unwrap();
        let copied = File::open(&to).unwrap();
        let mut text = [0; 6];
        copied.read_exact_at(&mut text, 700 << 20).unwrap();
        assert_eq!(&text, b"middle");
        copied.read_exact_at(&mut text[..5], 0).unwrap();
        assert_eq!(&text[..5], b"begin");
        let metadata = copied.metadata().unwrap();
        assert_eq!(metadata.len(), 2 << 30);
        assert!(metadata.blocks() * 512 < 16 << 20, "{} blocks", metadata.blocks());
    }
}
