//! Filesystems on block devices: look, format, check, mount, grow.
//!
//! Whatever reads or writes a device may hang with it: it runs in `blocking`, off the runtime and
//! under a deadline, or as a process of its own.

pub mod block_device;
pub mod directory;
pub mod format;
pub mod freeze;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod grow;
pub mod mount;
mod mount_options;
pub mod mountinfo;
pub mod partition;
pub mod probe;
pub mod shutdown;

use std::time::Duration;

use super::HostError;

/// Runs blocking work on a thread of its own. A thread that hangs in the kernel is left behind: it
/// cannot be killed.
pub(crate) async fn blocking<T, F>(
    what: impl Into<String>,
    limit: Duration,
    work: F,
) -> Result<T, HostError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, HostError> + Send + 'static,
{
    let what = what.into();
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(panicked)) => Err(HostError::Refused {
            what: format!("{what} broke off inside the driver: {panicked}"),
        }),
        Err(_) => Err(HostError::Timeout { what, seconds: limit.as_secs() }),
    }
}
