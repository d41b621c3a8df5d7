//! What goes wrong at the cloud, in words that a person understands.

use std::time::Duration;

use crate::effects::Injected;

/// An error of Keystone or Cinder, or on the way to them.
///
/// Display says what was tried, on which object and why it failed, with Cinder's own message,
/// the HTTP status and the request id, for example
/// `Cinder refused to create volume "db": quota exceeded: … (HTTP 413, req-…)`.
/// It never holds a secret.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct CloudError {
    /// What sort of failure it is: what decisions are taken on.
    pub kind: CloudErrorKind,
    /// The whole sentence.
    pub message: String,
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// Request id of the answer.
    pub request_id: Option<String>,
    /// The service asked to wait this long.
    pub retry_after: Option<Duration>,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudErrorKind {
    /// The thing does not exist (404 about the very thing that was asked for).
    NotFound,
    /// Cinder refused because of the volume's state (400 Invalid volume, 409).
    InvalidState,
    /// The attachments flow wants an instance_uuid here (clouds before Victoria).
    NeedsInstanceUuid,
    /// Cinder refused the request as such (other 400, unknown type 404, 406).
    BadRequest,
    /// Quota (413 overLimit).
    Quota,
    /// Not allowed (403).
    Forbidden,
    /// Keystone does not know these credentials (401).
    Unauthenticated,
    /// The catalog has no such service, region or interface.
    Catalog,
    /// No answer is known: time-out, broken connection after sending, 5xx, answer cut or not
    /// understood. The request may have taken effect.
    Ambiguous,
    /// The request certainly did not take effect: could not connect, TLS failure, no name.
    Unreachable,
    /// 429 or 503 with Retry-After, after waiting as asked: did not take effect.
    Busy,
}

impl From<Injected> for CloudError {
    fn from(injected: Injected) -> Self {
        let kind = match injected.lost {
            true => CloudErrorKind::Ambiguous,
            false => CloudErrorKind::Unreachable,
        };
        Self::new(kind, injected.to_string())
    }
}

impl CloudError {
    /// An error that no answer stands behind.
    pub(super) fn new(kind: CloudErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), status: None, request_id: None, retry_after: None }
    }

    /// The same failure, seen from a request that was to follow it: that one was never sent, so
    /// it certainly had no effect.
    pub(super) fn before_sending(mut self) -> Self {
        if self.kind == CloudErrorKind::Ambiguous {
            self.kind = CloudErrorKind::Unreachable;
        }
        self
    }

    /// Its kind, as metrics name it.
    pub fn label(&self) -> &'static str {
        match self.kind {
            CloudErrorKind::NotFound => "cloud_not_found",
            CloudErrorKind::InvalidState => "cloud_invalid_state",
            CloudErrorKind::NeedsInstanceUuid => "cloud_needs_instance",
            CloudErrorKind::BadRequest => "cloud_bad_request",
            CloudErrorKind::Quota => "cloud_quota",
            CloudErrorKind::Forbidden => "cloud_forbidden",
            CloudErrorKind::Unauthenticated => "cloud_unauthenticated",
            CloudErrorKind::Catalog => "cloud_catalog",
            CloudErrorKind::Ambiguous => "cloud_ambiguous",
            CloudErrorKind::Unreachable => "cloud_unreachable",
            CloudErrorKind::Busy => "cloud_busy",
        }
    }

    /// Whether the request may have taken effect all the same.
    pub fn is_ambiguous(&self) -> bool {
        self.kind == CloudErrorKind::Ambiguous
    }

    /// Whether Cinder said positively that the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        self.kind == CloudErrorKind::NotFound
    }
}
