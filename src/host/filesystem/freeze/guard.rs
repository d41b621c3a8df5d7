//! The process that freezes a filesystem, and thaws it whatever becomes of the daemon.
//!
//! It is this program under another name, with the root of the mount as its standard input and one end
//! of a socket as its standard output; it opens nothing, and gets nothing of our environment. It
//! thaws when it is told to, when the daemon's end is closed (so at the end of the daemon, however
//! that comes), and when the time is up, also of a daemon that stands still. It freezes itself, so
//! that it knows what it has to thaw: never a filesystem that somebody else has frozen.
//!
//! ```text
//! daemon ─ F ▶ guard: FIFREEZE ─ errno ▶ daemon ─ T, or nobody is there ▶ guard: FITHAW ─ errno, ms ▶
//! ```
//!
//! Should it die before the daemon, the daemon thaws ([`super`]).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::SigSet;

use super::{ioctl, keep_thawing};
use crate::host::exec::{self, ExecError};
use crate::host::{HostError, Paths};

/// Its `argv[0]`, which says what this program is to be; `argv[1]` = the limit in milliseconds.
const NAME: &str = "cinder-freeze-guard";
/// What the kernel shows of a name: at most 15 bytes.
const SHORT_NAME: &std::ffi::CStr = c"freeze-guard";

const FREEZE: u8 = b'F';
const THAW: u8 = b'T';
/// It needs two seconds to give up ([`super::TRIES`]); one that stands still is not waited for.
const PATIENCE: Duration = Duration::from_secs(4);

/// The daemon's side of it.
#[derive(Debug)]
pub(super) struct Guard {
    process: Child,
    socket: UnixStream,
}

impl Guard {
    /// Starts it, for the mount whose root this is.
    pub(super) fn start(paths: &Paths, root: &File, limit: Duration) -> Result<Self, ExecError> {
        let failed = |source| ExecError::Start { cmd: NAME.to_owned(), source };
        let (socket, theirs) = UnixStream::pair().map_err(failed)?;
        let root = root.try_clone().map_err(failed)?;
        let args = [limit.as_millis().to_string().into()];
        let process = exec::start_ourselves(paths, NAME, args, root.into(), OwnedFd::from(theirs))?;
        Ok(Self { process, socket })
    }

    /// Has it freeze; waits as long as the kernel takes.
    pub(super) fn freeze(&mut self, at: &Path) -> Result<(), HostError> {
        let mut answer = [0; 4];
        let asked =
            self.socket.write_all(&[FREEZE]).and_then(|()| self.socket.read_exact(&mut answer));
        asked.map_err(|source| HostError::io("have another process freeze", at, source))?;
        ioctl::frozen(i32::from_ne_bytes(answer), at)
    }

    /// Has it thaw, and says how long it was frozen. `None` = it did not, and will not any more.
    pub(super) fn thaw(&mut self) -> Option<Duration> {
        let mut answer = [0; 8];
        let asked = self
            .socket
            .set_read_timeout(Some(PATIENCE))
            // It may have ended because the time was up: its answer is there all the same.
            .map(|()| drop(self.socket.write_all(&[THAW])))
            .and_then(|()| self.socket.read_exact(&mut answer));
        let [e0, e1, e2, e3, ms @ ..] = answer;
        if asked.is_ok() && i32::from_ne_bytes([e0, e1, e2, e3]) == 0 {
            return Some(Duration::from_millis(u32::from_ne_bytes(ms).into()));
        }
        // Later it might thaw what somebody else has frozen by then.
        let _ = self.process.kill();
        None
    }
}

impl Drop for Guard {
    /// It ends when nobody is there; one that hangs in the kernel is waited for.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = self.process.wait();
    }
}

/// The guard itself, if this process was started as one; to be called before anything else.
pub fn run(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if args.next().as_deref() != Some(OsStr::new(NAME)) {
        return None;
    }
    let limit = args.next().and_then(|limit| limit.to_str()?.parse().ok());
    let done = match limit {
        Some(limit) => stand_guard(Duration::from_millis(limit)),
        None => Err(ErrorKind::InvalidInput.into()),
    };
    Some(if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn stand_guard(limit: Duration) -> io::Result<()> {
    // Who stops the daemon, the host's shutdown and a terminal's Ctrl-C included, shall not end this.
    SigSet::all().thread_block()?;
    nix::sys::prctl::set_name(SHORT_NAME)?;
    let root = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut socket = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    if next_word(&mut socket)? != Some(FREEZE) {
        return Ok(());
    }
    let begun = Instant::now();
    let frozen = ioctl::freeze(&root);
    let told = socket.write_all(&errno(frozen).to_ne_bytes());
    if frozen.is_err() {
        return told;
    }
    // Zero would be for ever.
    let left = limit.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
    let is_left_alone = match socket.set_read_timeout(Some(left)) {
        Ok(()) => matches!(next_word(&mut socket), Ok(None)),
        Err(_) => false,
    };
    let thawed = keep_thawing(|| ioctl::thaw(&root));
    if is_left_alone || told.is_err() {
        say_what_was_done(thawed.is_ok());
    }
    let frozen_for = u32::try_from(begun.elapsed().as_millis()).unwrap_or(u32::MAX);
    let mut answer = [0; 8];
    answer[..4].copy_from_slice(&errno(thawed.map(drop)).to_ne_bytes());
    answer[4..].copy_from_slice(&frozen_for.to_ne_bytes());
    socket.write_all(&answer)
}

/// `None` when nobody is there any more.
fn next_word(socket: &mut UnixStream) -> io::Result<Option<u8>> {
    let mut word = [0];
    match socket.read_exact(&mut word) {
        Ok(()) => Ok(Some(word[0])),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn errno(result: Result<(), Errno>) -> i32 {
    result.err().map_or(0, |errno| errno as i32)
}

/// Nobody else is left to say it.
fn say_what_was_done(is_thawed: bool) {
    let at = fs::read_link("/proc/self/fd/0").unwrap_or_default();
    let at = at.display();
    let outcome = match is_thawed {
        true => "it is thawed".to_owned(),
        false => {
            format!("the kernel does not thaw it: thaw it with \"fsfreeze --unfreeze {at}\"")
        }
    };
    let _ = writeln!(
        io::stderr(),
        "{NAME}: the daemon ended while the filesystem at {at} was frozen; {outcome}"
    );
}
