//! Freezes a mounted filesystem for a moment, so that a snapshot of its device holds everything that
//! was written, and nothing by half.
//!
//! A frozen filesystem stops whoever writes to it, and nothing ends that but a thaw: not the end of
//! the process that froze it, not even an unmount, after which the device stays claimed. So two
//! can thaw, and neither depends on the other, on a cloud or on a caller:
//!
//! - a process of its own, which freezes, and thaws when the daemon ends or stands still ([`guard`]);
//! - a thread of the daemon, which has that process thaw when it is told to, when [`Frozen`] is
//!   dropped, and at the latest when the time is up; and thaws by itself if that process does not.
//!
//! When both are killed, the journal says what is to be thawed ([`thaw`]).

pub mod guard;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use tokio::sync::oneshot;

use self::guard::Guard;
use super::blocking;
use super::mountinfo::{self, DeviceNumber};
use crate::effects::{self, Kind};
use crate::host::{HostError, Paths};

/// Opening the mount's root, and thawing, touch no device.
const THAW_LIMIT: Duration = Duration::from_secs(20);
/// How often a thaw that fails is tried again, and the pause before it.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// A filesystem that is frozen until this is dropped, or its time is up.
#[derive(Debug)]
#[must_use]
pub struct Frozen {
    stop: mpsc::Sender<()>,
    thawed: oneshot::Receiver<Result<Thawed, HostError>>,
}

/// How a freeze ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thawed {
    /// For how long writers had to wait.
    pub frozen_for: Duration,
    /// It was thawed because its time was up.
    pub too_late: bool,
}

/// Freezes what is mounted at `at` from `device`, for `limit` at most, from the moment on in which
/// writers have to wait. What is cached should be written out before: that takes time, too.
///
/// # Errors
/// [`HostError::Busy`] when somebody else has frozen it already; it is left to them.
/// [`HostError::Refused`] when something else is mounted there. After any error it is not frozen, or
/// is thawed as soon as the kernel allows.
pub async fn freeze(
    paths: &Paths,
    at: &Path,
    device: DeviceNumber,
    limit: Duration,
) -> Result<Frozen, HostError> {
    let (stop, stopped) = mpsc::channel();
    let (ready, frozen) = oneshot::channel();
    let (ended, thawed) = oneshot::channel();
    let (path, paths) = (at.to_owned(), paths.clone());
    std::thread::Builder::new()
        .name("freeze".to_owned())
        .spawn(move || {
            let guarded = open(&paths, &path, device).and_then(|root| {
                let guard = Guard::start(&paths, &root, limit);
                let what = || format!("cannot freeze {}", path.display());
                let guard = guard.map_err(|source| HostError::Tool { what: what(), source })?;
                Ok((root, guard))
            });
            match guarded {
                Ok((root, guard)) => {
                    keep_frozen(&root, guard, &path, limit, &stopped, ready, ended);
                }
                // Who asked may have gone.
                Err(error) => drop(ready.send(Err(error))),
            }
        })
        .map_err(|source| HostError::io("start a thread for", at, source))?;
    // A thread that hangs in the kernel finds `stopped` closed when it comes back, and thaws.
    let timeout = || HostError::Timeout {
        what: format!("freezing the filesystem at {}", at.display()),
        seconds: limit.as_secs(),
    };
    match tokio::time::timeout(limit, frozen).await {
        Ok(Ok(Ok(()))) => Ok(Frozen { stop, thawed }),
        Ok(Ok(Err(error))) => {
            // What is not known to be frozen is thawed; nobody shall forget it before.
            let _ = tokio::time::timeout(THAW_LIMIT, thawed).await;
            Err(error)
        }
        Ok(Err(_)) => Err(broken_off(at)),
        Err(_) => Err(timeout()),
    }
}

impl Frozen {
    /// Thaws it, and says how long it was frozen.
    ///
    /// # Errors
    /// The kernel does not thaw it; nothing can be written to it.
    pub async fn thaw(self) -> Result<Thawed, HostError> {
        drop(self.stop);
        match tokio::time::timeout(THAW_LIMIT, self.thawed).await {
            Ok(Ok(thawed)) => thawed,
            Ok(Err(_)) => Err(broken_off(Path::new("the mount"))),
            Err(_) => Err(HostError::Timeout {
                what: "thawing the filesystem".to_owned(),
                seconds: THAW_LIMIT.as_secs(),
            }),
        }
    }
}

fn broken_off(at: &Path) -> HostError {
    HostError::Refused {
        what: format!("freezing {} broke off inside the driver; it is thawed", at.display()),
    }
}

/// The thread.
fn keep_frozen(
    root: &File,
    mut guard: Guard,
    at: &Path,
    limit: Duration,
    stopped: &mpsc::Receiver<()>,
    ready: oneshot::Sender<Result<(), HostError>>,
    ended: oneshot::Sender<Result<Thawed, HostError>>,
) {
    let begun = Instant::now();
    let what = || format!("freeze {}", at.display());
    let outcome = effects::run_blocking(Kind::Kernel, what, || guard.freeze(at));
    let failed = outcome.is_err();
    let is_theirs = matches!(outcome, Err(HostError::Busy { .. }));
    let _ = ready.send(outcome);
    if is_theirs {
        return;
    }
    let is_up = !failed
        && stopped.recv_timeout(limit.saturating_sub(begun.elapsed()))
            == Err(RecvTimeoutError::Timeout);
    let mut asked = Some(&mut guard);
    // After an error it is not known to be thawed.
    let thawed = thaw_now(at, || {
        if let Some(frozen_for) = asked.take().and_then(Guard::thaw) {
            return Ok(frozen_for);
        }
        ioctl::thaw(root).map(|_| begun.elapsed())
    });
    let thawed = thawed.map(|frozen_for| Thawed {
        frozen_for,
        // Also while this process stood still.
        too_late: is_up || (!failed && frozen_for >= limit),
    });
    let _ = ended.send(thawed);
}

/// Thaws what is mounted at `at` from `device`; whether it was frozen.
///
/// # Errors
/// The mount is not there, or the kernel does not thaw it.
pub async fn thaw(paths: &Paths, at: &Path, device: DeviceNumber) -> Result<bool, HostError> {
    let (paths, at) = (paths.clone(), at.to_owned());
    let what = format!("thawing the filesystem at {}", at.display());
    let work = move || {
        let root = open(&paths, &at, device)?;
        thaw_now(&at, || ioctl::thaw(&root))
    };
    blocking(what, THAW_LIMIT, work).await
}

fn thaw_now<T>(at: &Path, mut thaw: impl FnMut() -> Result<T, Errno>) -> Result<T, HostError> {
    let what = || format!("thaw {}", at.display());
    let failed = |errno: Errno| HostError::io("thaw", at, errno.into());
    keep_thawing(|| {
        let result = effects::run_blocking(Kind::Kernel, what, || thaw().map_err(failed));
        result.inspect_err(|error| {
            tracing::error!(path = %at.display(), %error, "still frozen; trying again");
        })
    })
}

/// Tries until it is thawed, or two seconds are over.
fn keep_thawing<T, E>(mut thaw: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let mut tries = 1;
    loop {
        match thaw() {
            Err(_) if tries < TRIES => {
                #[expect(clippy::disallowed_methods, reason = "on a thread for blocking work")]
                std::thread::sleep(PAUSE);
                tries += 1;
            }
            result => return result,
        }
    }
}

/// The root of the mount; the path alone may be a directory of the host's own filesystem by now.
fn open(paths: &Paths, at: &Path, device: DeviceNumber) -> Result<File, HostError> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let root = File::options().read(true).custom_flags(flags.bits()).open(at);
    let root = root.map_err(|source| HostError::io("open", at, source))?;
    // Not by its st_dev: a subvolume of btrfs has one of its own.
    let info = paths.proc.join(format!("self/fdinfo/{}", root.as_raw_fd()));
    let text = fs::read_to_string(&info).map_err(|source| HostError::io("read", info, source))?;
    let mount = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let mounts = mountinfo::own(paths)
        .map_err(|source| HostError::io("read", paths.proc.join("self/mountinfo"), source))?;
    let found = mounts.iter().find(|entry| Some(entry.id) == mount).map(|entry| entry.device);
    if found == Some(device) {
        return Ok(root);
    }
    let found = found.map_or("nothing that is known".to_owned(), |found| found.to_string());
    Err(HostError::Refused {
        what: format!("{} is on device {found}, not on {device}", at.display()),
    })
}

/// `linux/fs.h`
mod ioctl {
    use super::{AsRawFd, Errno, File, HostError, Path};

    nix::ioctl_readwrite!(fifreeze, b'X', 119, i32);
    nix::ioctl_readwrite!(fithaw, b'X', 120, i32);

    pub fn freeze(root: &File) -> Result<(), Errno> {
        let mut unused = 0;
        #[expect(unsafe_code, reason = "nix has no wrapper for this ioctl")]
        // SAFETY: the descriptor is open; the kernel neither reads nor writes the argument.
        unsafe { fifreeze(root.as_raw_fd(), &raw mut unused) }.map(drop)
    }

    /// What the outcome of a freeze means; 0 = it is frozen.
    pub fn frozen(errno: i32, at: &Path) -> Result<(), HostError> {
        match Errno::from_raw(errno) {
            _ if errno == 0 => Ok(()),
            Errno::EBUSY => Err(HostError::Busy {
                what: format!(
                    "the filesystem at {} is frozen already, by somebody else (fsfreeze, a backup): \
                     try again when they are done",
                    at.display()
                ),
            }),
            Errno::EOPNOTSUPP => Err(HostError::Unsupported {
                what: format!("the filesystem at {} cannot be frozen", at.display()),
            }),
            error => Err(HostError::io("freeze", at, error.into())),
        }
    }

    /// Whether it was frozen.
    pub fn thaw(root: &File) -> Result<bool, Errno> {
        let mut unused = 0;
        #[expect(unsafe_code, reason = "nix has no wrapper for this ioctl")]
        // SAFETY: as above.
        match unsafe { fithaw(root.as_raw_fd(), &raw mut unused) } {
            Ok(_) => Ok(true),
            Err(Errno::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
