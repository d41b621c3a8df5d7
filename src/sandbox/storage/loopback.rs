//! Loop devices: `drivers/block/loop.c` and `include/uapi/linux/loop.h` of the kernel.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::O_EXCL;

/// Another process may take the free device that we were shown; so we ask again, this often.
const ATTEMPTS: usize = 256;

const LO_FLAGS_READ_ONLY: u32 = 1;

/// `struct loop_info64`
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

mod ioctl {
    nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
    nix::ioctl_none_bad!(loop_set_capacity, 0x4C07);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, super::LoopConfig);
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
}

/// Attaches a file to a free loop device, which stays until [`detach`] (no AUTOCLEAR).
pub(in crate::sandbox) fn attach(file: &Path, read_only: bool) -> io::Result<PathBuf> {
    let backing = OpenOptions::new().read(true).write(!read_only).open(file)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        let device = PathBuf::from(format!("/dev/loop{}", get_free(control.as_raw_fd())?));
        let handle = OpenOptions::new().read(true).write(!read_only).open(&device)?;
        match configure(handle.as_raw_fd(), &backing, read_only) {
            Ok(()) => return Ok(device),
            Err(Errno::EBUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "every free loop device was taken by others"))
}

/// Detaches a loop device from this file; one that shows another file, or none, is left alone.
/// [`io::ErrorKind::ResourceBusy`] when it is mounted or held.
pub(in crate::sandbox) fn detach(device: &Path, file: &Path) -> io::Result<()> {
    if backing_file(device)?.as_deref() != Some(file) {
        return Ok(());
    }
    // LOOP_CLR_FD alone would succeed on a mounted device, and detach at the last close.
    let handle = match OpenOptions::new().read(true).custom_flags(O_EXCL).open(device) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    match clear(handle.as_raw_fd()) {
        Ok(()) | Err(Errno::ENXIO) => Ok(()), // ENXIO: somebody was quicker
        Err(error) => Err(error.into()),
    }
}

/// Detaches a loop device that is in use: the kernel does it at the last close.
pub(super) fn detach_at_last_close(device: &Path) -> io::Result<()> {
    let handle = OpenOptions::new().read(true).open(device)?;
    Ok(clear(handle.as_raw_fd())?)
}

/// Tells a loop device that its file has grown.
pub(super) fn resize(device: &Path) -> io::Result<()> {
    let handle = OpenOptions::new().read(true).open(device)?;
    Ok(set_capacity(handle.as_raw_fd())?)
}

/// All loop devices in use, with the file each shows.
pub(in crate::sandbox) fn all() -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("loop")) {
            let device = Path::new("/dev").join(&name);
            if let Some(file) = backing_file(&device)? {
                found.push((device, file));
            }
        }
    }
    Ok(found)
}

/// Loop devices that show this file.
pub(super) fn of_file(file: &Path) -> io::Result<Vec<PathBuf>> {
    let all = all()?.into_iter();
    Ok(all.filter(|(_, shown)| shown == file).map(|(device, _)| device).collect())
}

/// The file that a loop device shows, if any.
pub(super) fn backing_file(device: &Path) -> io::Result<Option<PathBuf>> {
    let name = device.file_name().unwrap_or_default();
    let attribute = Path::new("/sys/block").join(name).join("loop/backing_file");
    match std::fs::read_to_string(attribute) {
        Ok(text) => Ok(Some(PathBuf::from(text.trim_end_matches('\n')))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Detached between two looks, or between opening the attribute (kernfs) and reading it.
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENXIO | Errno::ENODEV) => Ok(None),
            _ => Err(error),
        },
    }
}

fn get_free(control: RawFd) -> nix::Result<i32> {
    #[expect(unsafe_code, reason = "nix has no safe wrapper for this ioctl")]
    // SAFETY: takes no argument.
    unsafe {
        ioctl::loop_ctl_get_free(control)
    }
}

fn configure(device: RawFd, file: &File, read_only: bool) -> nix::Result<()> {
    let config = LoopConfig {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: 0, // the default, 512
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: if read_only { LO_FLAGS_READ_ONLY } else { 0 },
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    #[expect(unsafe_code, reason = "nix has no safe wrapper for this ioctl")]
    // SAFETY: `config` has the layout of the kernel's `struct loop_config`, and lives on.
    unsafe { ioctl::loop_configure(device, &raw const config) }.map(drop)
}

fn clear(device: RawFd) -> nix::Result<()> {
    #[expect(unsafe_code, reason = "nix has no safe wrapper for this ioctl")]
    // SAFETY: takes no argument.
    unsafe { ioctl::loop_clr_fd(device) }.map(drop)
}

fn set_capacity(device: RawFd) -> nix::Result<()> {
    #[expect(unsafe_code, reason = "nix has no safe wrapper for this ioctl")]
    // SAFETY: takes no argument.
    unsafe { ioctl::loop_set_capacity(device) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As beside other clouds on one host.
    #[test]
    fn devices_that_come_and_go_do_not_disturb_a_look_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("volume");
        File::create(&file).unwrap().set_len(1 << 20).unwrap();
        std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                for _ in 0..2000 {
                    let device = attach(&file, false).unwrap();
                    detach(&device, &file).unwrap();
                }
            });
            while !others.is_finished() {
                all().unwrap();
            }
        });
    }
}
