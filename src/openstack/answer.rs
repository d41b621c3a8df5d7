//! What an answer means, or the lack of one: success, or an error in words.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, LOCATION};
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use super::http::{Call, Service, retry_after};
use super::{CloudError, CloudErrorKind};

/// Longest message of a service that is passed on, in characters.
const LONGEST_MESSAGE: usize = 400;

/// What webob says when no route matches: the API lacks the call. It says nothing of the thing.
const NO_SUCH_ROUTE: &str = "The resource could not be found.";

/// An accepted success.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) request_id: Option<String>,
    /// Keystone v3 gives the token here.
    pub(super) subject_token: Option<SecretString>,
    /// By how many seconds the service's clock was ahead of ours when it answered (its Date, whole
    /// seconds).
    pub(super) clock_ahead: Option<i64>,
    /// Empty when it went elsewhere.
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// Whether there is no body.
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// The body, which must be JSON of this shape.
    pub(super) fn json<T: DeserializeOwned>(&self, call: &Call) -> Result<T, CloudError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            // serde's own text may quote the body; its place is enough.
            self.unexpected(
                call,
                &format!(
                    "its answer is not the expected JSON (line {}, column {})",
                    error.line(),
                    error.column()
                ),
            )
        })
    }

    /// A success whose content makes no sense.
    pub(super) fn unexpected(&self, call: &Call, reason: &str) -> CloudError {
        CloudError {
            status: Some(self.status),
            request_id: self.request_id.clone(),
            ..CloudError::new(
                CloudErrorKind::Ambiguous,
                unclear(call, reason, &reference(Some(self.status), self.request_id.as_deref())),
            )
        }
    }
}

/// Sorts an answer into success, whose body is elsewhere, or error.
pub(super) fn judge(
    call: &Call,
    url: &Url,
    status: u16,
    headers: &HeaderMap,
    refusal: &[u8],
) -> Result<Answer, CloudError> {
    if call.accept.contains(&status) {
        return Ok(Answer {
            status,
            request_id: request_id(headers),
            subject_token: header(headers, "x-subject-token").map(SecretString::from),
            clock_ahead: header(headers, "date").and_then(|date| clock_ahead(&date)),
            body: Vec::new(),
        });
    }
    match status {
        200..300 => Err(not_understood(call, status, headers, "it is an answer to something else")),
        300..400 => Err(redirected(call, url, status, headers)),
        _ => Err(refused(call, status, headers, refusal)),
    }
}

/// `None` for a date that makes no sense.
fn clock_ahead(date: &str) -> Option<i64> {
    let theirs = httpdate::parse_http_date(date).ok()?;
    match theirs.duration_since(SystemTime::now()) {
        Ok(ahead) => i64::try_from(ahead.as_secs()).ok(),
        Err(behind) => i64::try_from(behind.duration().as_secs()).ok().map(|seconds| -seconds),
    }
}

/// The service said no, or that it failed.
fn refused(call: &Call, status: u16, headers: &HeaderMap, body: &[u8]) -> CloudError {
    let fault = Fault::read(body);
    let retry_after = retry_after(headers);
    let kind = kind_of(call, status, &fault, retry_after);
    let message = match (&fault.message, call.service) {
        // Its schema errors quote the request, password and all.
        (_, Service::Identity) if status == 400 => "it does not understand the request".to_owned(),
        (Some(message), _) => message.clone(),
        (None, _) => "an error without a reason".to_owned(),
    };
    let id = request_id(headers);
    let reference = reference(Some(status), id.as_deref());
    let service = call.service.name();
    let what = &call.what;
    let message = match kind {
        CloudErrorKind::Ambiguous => unclear(call, &message, &reference),
        CloudErrorKind::NotFound => format!("cannot {what}: {service} says: {message} {reference}"),
        CloudErrorKind::Busy => {
            format!("cannot {what}: {service} asks to try again later: {message} {reference}")
        }
        CloudErrorKind::Quota => {
            format!("{service} refused to {what}: quota exceeded: {message} {reference}")
        }
        CloudErrorKind::Forbidden => format!(
            "{service} refused to {what}: not allowed: {message} {reference}; \
             the user needs the role \"member\" in the project"
        ),
        CloudErrorKind::Unauthenticated => {
            format!("{service} refused to {what}: it does not accept the token {reference}")
        }
        _ => format!("{service} refused to {what}: {message} {reference}"),
    };
    CloudError { kind, message, status: Some(status), request_id: id, retry_after }
}

fn kind_of(
    call: &Call,
    status: u16,
    fault: &Fault,
    retry_after: Option<Duration>,
) -> CloudErrorKind {
    let message = fault.message.as_deref().unwrap_or_default();
    match status {
        400 if message.contains("instance_uuid") && message.contains("required") => {
            CloudErrorKind::NeedsInstanceUuid
        }
        400 if message.starts_with("Invalid volume:") => CloudErrorKind::InvalidState,
        401 => CloudErrorKind::Unauthenticated,
        // An unknown application credential and a token of another cloud are not found; of a path
        // that leads nowhere Keystone says nothing, in HTML, or the one sentence.
        404 if call.service == Service::Identity
            && fault.name.as_deref() == Some("error")
            && message != NO_SUCH_ROUTE =>
        {
            CloudErrorKind::Unauthenticated
        }
        403 => CloudErrorKind::Forbidden,
        404 if fault.name.as_deref() == Some("itemNotFound") && message != NO_SUCH_ROUTE => {
            if call.missing_is_an_answer {
                CloudErrorKind::NotFound
            } else {
                CloudErrorKind::BadRequest
            }
        }
        // Not from Cinder's own code: a proxy, or an API without this call. No proof of anything.
        404 if !call.has_effect() => CloudErrorKind::Ambiguous,
        409 => CloudErrorKind::InvalidState,
        // Quotas say Retry-After: 0; with more it is Cinder's rate limiter.
        413 if retry_after.is_some_and(|wait| !wait.is_zero()) => CloudErrorKind::Busy,
        413 if fault.name.as_deref() == Some("overLimit") => CloudErrorKind::Quota,
        429 => CloudErrorKind::Busy,
        503 if retry_after.is_some() => CloudErrorKind::Busy,
        // 408 and what proxies make of it: the request had arrived.
        408 | 500.. => CloudErrorKind::Ambiguous,
        _ => CloudErrorKind::BadRequest,
    }
}

fn redirected(call: &Call, url: &Url, status: u16, headers: &HeaderMap) -> CloudError {
    let target = header(headers, "location").and_then(|target| url.join(&target).ok());
    let target = match target {
        Some(target) => format!("to {}", place(&target)),
        None => format!("without a usable {LOCATION}"),
    };
    let id = request_id(headers);
    let message = format!(
        "cannot {}: {} at {} redirects {target}; write the final address into the config {}",
        call.what,
        call.service.name(),
        place(url),
        reference(Some(status), id.as_deref())
    );
    CloudError {
        status: Some(status),
        request_id: id,
        ..CloudError::new(CloudErrorKind::BadRequest, message)
    }
}

/// An answer that came in part, or makes no sense.
pub(super) fn not_understood(
    call: &Call,
    status: u16,
    headers: &HeaderMap,
    reason: &str,
) -> CloudError {
    let id = request_id(headers);
    let message = unclear(call, reason, &reference(Some(status), id.as_deref()));
    CloudError {
        status: Some(status),
        request_id: id,
        ..CloudError::new(CloudErrorKind::Ambiguous, message)
    }
}

/// The request may have arrived, but no answer did.
pub(super) fn no_answer(call: &Call, url: &Url, reason: &str) -> CloudError {
    let message = unclear(call, &format!("{reason} from {}", authority(url)), "");
    CloudError::new(CloudErrorKind::Ambiguous, message)
}

/// No connection, or one that broke.
pub(super) fn transport_failure(call: &Call, url: &Url, error: &reqwest::Error) -> CloudError {
    let reason = transport_reason(error);
    if error.is_connect() || was_never_written(error) {
        let message = format!(
            "cannot {}: no connection to {} at {}: {reason}",
            call.what,
            call.service.name(),
            authority(url)
        );
        return CloudError::new(CloudErrorKind::Unreachable, message);
    }
    no_answer(call, url, &format!("{reason}: no answer"))
}

fn unclear(call: &Call, reason: &str, reference: &str) -> String {
    let service = call.service.name();
    let what = &call.what;
    let space = if reference.is_empty() { "" } else { " " };
    let warning = if call.has_effect() { "; it may have happened all the same" } else { "" };
    format!("cannot {what}: no clear answer of {service}: {reason}{space}{reference}{warning}")
}

/// hyper gave the request up before a byte of it was sent.
fn was_never_written(error: &reqwest::Error) -> bool {
    causes(error)
        .any(|cause| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled))
}

fn transport_reason(error: &reqwest::Error) -> String {
    for cause in causes(error) {
        let mut cause: &(dyn Error + 'static) = cause;
        // An io::Error hides what it wraps from `source()`.
        while let Some(inner) = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            cause = inner;
        }
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return tls_reason(tls);
        }
    }
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    let innermost = causes(error).last().map(ToString::to_string).unwrap_or_default();
    if error.is_dns() {
        return format!("the name is not known ({innermost})");
    }
    innermost
}

fn tls_reason(error: &rustls::Error) -> String {
    use rustls::CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, UnknownIssuer,
    };
    match error {
        rustls::Error::InvalidCertificate(UnknownIssuer) => {
            "its certificate is signed by an authority that this host does not trust; \
             set CACert to the authority's PEM file"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            "its certificate has expired".to_owned()
        }
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "its certificate is for another name".to_owned()
        }
        rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired) => {
            "it wants a client certificate; set Cert and Key".to_owned()
        }
        other => format!("TLS: {other}"),
    }
}

fn causes<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}

/// A service's error: `{NAME: {"code": …, "message": …}}`.
#[derive(Default)]
struct Fault {
    name: Option<String>,
    message: Option<String>,
}

impl Fault {
    fn read(body: &[u8]) -> Self {
        let Ok(Value::Object(outer)) = serde_json::from_slice(body) else {
            return Self::default();
        };
        let Some((name, inner)) = outer.into_iter().find(|(_, inner)| inner.is_object()) else {
            return Self::default();
        };
        let message = inner["message"].as_str().map(one_line);
        Self { name: Some(name), message: message.filter(|message| !message.is_empty()) }
    }
}

/// The first line, of bearable length: the rest of a schema error quotes the schema and the
/// request.
pub(super) fn one_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default().trim();
    let mut out: String = line.chars().filter(|c| !c.is_control()).take(LONGEST_MESSAGE).collect();
    if line.chars().count() > LONGEST_MESSAGE {
        out.push('…');
    }
    out
}

/// `(HTTP 413, req-…)`.
fn reference(status: Option<u16>, request_id: Option<&str>) -> String {
    match (status, request_id) {
        (Some(status), Some(id)) => format!("(HTTP {status}, {id})"),
        (Some(status), None) => format!("(HTTP {status})"),
        (None, _) => String::new(),
    }
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = header(headers, "x-openstack-request-id")
        .or_else(|| header(headers, "x-compute-request-id"))?;
    Some(one_line(&id))
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// `host:port`.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port_or_known_default() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// A URL without its query and without any user name and password.
fn place(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), authority(url), url.path())
}
