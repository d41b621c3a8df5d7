//! What the driver says when it cannot or will not.

use std::sync::Arc;

use uuid::Uuid;

use super::journal::JournalError;
use crate::docker::Failure;
use crate::error_chain::Chain;
use crate::host::HostError;
use crate::openstack::CloudError;
use crate::shown::shown;

/// Why an operation did not happen.
///
/// Display never repeats its source; [`Chain`] joins them into the sentence that Docker shows.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The request itself is wrong: a name, an option. Nothing was done.
    #[error("{0}")]
    BadRequest(String),
    /// No volume of this name, and Cinder said so.
    #[error("no volume \"{0}\" in Cinder")]
    NotFound(String),
    /// Several volumes have the name.
    #[error(
        "{} volumes are named \"{name}\" in Cinder ({}): use one of these ids in place of the \
         name, or rename the others",
        ids.len(),
        ids.iter().map(Uuid::to_string).collect::<Vec<_>>().join(", ")
    )]
    Duplicates {
        /// The name.
        name: String,
        /// Their ids.
        ids: Vec<Uuid>,
    },
    /// We decline, and have changed nothing; says what was found and what to do.
    #[error("{0}")]
    Refused(String),
    /// It is not ready yet, and goes on without the caller: try again.
    #[error("{0}")]
    NotYet(String),
    /// Keystone or Cinder.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// This host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The journal could not be written or read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What several callers are told who asked the same at once.
    #[error(transparent)]
    Shared(#[from] Arc<DriverError>),
    /// What was being done, and to which volume.
    #[error("cannot {action} volume \"{name}\"")]
    Operation {
        /// `mount`, `create`, …
        action: &'static str,
        /// The Docker name, perhaps shortened: it is not checked yet.
        name: String,
        /// Why.
        #[source]
        source: Box<DriverError>,
    },
    /// The failure, and what could not be undone after it; the journal goes on trying.
    #[error("{cause}; undoing it is not finished and goes on in the background ({undo})", cause = Chain(cause.as_ref()), undo = Chain(undo.as_ref()))]
    Undo {
        /// Why the operation failed.
        cause: Box<DriverError>,
        /// Why it could not be undone yet.
        undo: Box<DriverError>,
    },
}

impl DriverError {
    /// Names the operation and the volume.
    pub fn during(self, action: &'static str, name: &str) -> Self {
        Self::Operation { action, name: shown(name), source: Box::new(self) }
    }

    /// What sort of failure it is, as metrics name it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::NotFound(_) => "not_found",
            Self::Duplicates { .. } => "duplicates",
            Self::Refused(_) => "refused",
            Self::NotYet(_) => "not_yet",
            Self::Cloud(error) => error.label(),
            Self::Host(_) => "host",
            Self::Journal(_) => "journal",
            Self::Shared(error) => error.label(),
            Self::Operation { source, .. } => source.label(),
            Self::Undo { .. } => "not_undone",
        }
    }

    fn is_bad_request(&self) -> bool {
        match self {
            Self::BadRequest(_) => true,
            Self::Operation { source, .. } => source.is_bad_request(),
            _ => false,
        }
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self { bad_request: error.is_bad_request(), message: Chain(&error).to_string() }
    }
}
