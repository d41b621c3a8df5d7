//! What goes wrong on this host.

use std::io;
use std::path::PathBuf;

use super::exec::ExecError;
use crate::effects::Injected;

/// An error of a process, a device, a filesystem or an iSCSI session.
///
/// Display is a sentence without its source; [`crate::error_chain::Chain`] prints both.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// `read`, `open`, `fsync`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tool could not be run, or failed.
    #[error("{what}")]
    Tool {
        /// What it was run for, as a sentence, with the next step for the operator.
        what: String,
        /// How it failed.
        #[source]
        source: ExecError,
    },
    /// Something took longer than it may.
    #[error("{what} took longer than {seconds} s")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The limit.
        seconds: u64,
    },
    /// The thing is still in use: the filesystem is busy, the device is held.
    #[error("{what}")]
    Busy {
        /// Who holds what.
        what: String,
    },
    /// What was found is not what it must be (another size, another filesystem, not a block
    /// device): nothing was changed.
    #[error("{what}")]
    Refused {
        /// What was found, and what to do.
        what: String,
    },
    /// A device that was to be formatted holds something: nothing was changed.
    #[error("{what}")]
    NotBlank {
        /// What it holds, and where.
        what: String,
    },
    /// Not possible here: a connection type we lack, a missing tool, no initiator.
    #[error("{what}")]
    Unsupported {
        /// What lacks, and the command that mends it.
        what: String,
    },
    /// A log-in to a target failed.
    #[error("{what}")]
    Login {
        /// Target, portal, exit code in words.
        what: String,
    },
}

impl From<Injected> for HostError {
    fn from(injected: Injected) -> Self {
        Self::Io { action: "do", path: injected.what.clone().into(), source: injected.into() }
    }
}

impl HostError {
    /// An I/O error on a path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }
}
