//! Stops a mounted filesystem: from then on nothing is written, and every use of it fails.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::blocking;
use super::mountinfo::DeviceNumber;
use crate::effects::{self, Kind};
use crate::host::HostError;

/// Nothing is waited for in it: what takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// Stops the filesystem of `device` that is mounted at `at` without writing anything out
/// (`EXT4_IOC_SHUTDOWN` and `XFS_IOC_GOINGDOWN` are one number; kernels without it for Btrfs answer
/// ENOTTY). It stays mounted.
///
/// [`HostError::Refused`] when something else is there.
pub async fn shut_down(at: &Path, device: DeviceNumber) -> Result<(), HostError> {
    let at = at.to_owned();
    let what = format!("stopping the filesystem at {}", at.display());
    let work = move || {
        let failed = |source| HostError::io("stop the filesystem at", &at, source);
        let root = File::open(&at).map_err(failed)?;
        // The path alone may be a directory of the host's own filesystem by now.
        let found = DeviceNumber::from_raw(root.metadata().map_err(failed)?.dev());
        if found != device {
            return Err(HostError::Refused {
                what: format!("{} is on device {found}, not on {device}", at.display()),
            });
        }
        effects::run_blocking(
            Kind::Kernel,
            || format!("shutdown {}", at.display()),
            || {
                // SAFETY: the descriptor is open, and the call reads one u32.
                #[expect(unsafe_code, reason = "nix has no wrapper for this ioctl")]
                unsafe { ioctl::going_down(root.as_raw_fd(), &ioctl::NO_LOG_FLUSH) }
                    .map(drop)
                    .map_err(|error| failed(error.into()))
            },
        )
    };
    blocking(what, LIMIT, work).await
}

/// `<linux/ext4.h>`, `xfs_fs.h`
mod ioctl {
    use nix::{ioctl_write_ptr_bad, request_code_read};

    /// `EXT4_GOING_FLAGS_NOLOGFLUSH`, `XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`.
    pub const NO_LOG_FLUSH: u32 = 2;

    ioctl_write_ptr_bad!(
        /// Stop the filesystem.
        going_down,
        request_code_read!(b'X', 125, size_of::<u32>()),
        u32
    );
}
