//! Sends requests: time-outs, retries, size limits, request ids.
//!
//! The rule about repeating: a read may be repeated whenever its answer is lost; an effect only
//! when it certainly did not happen. A caller may drop the future at any time: nothing is kept
//! here between two awaits.

use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use crate::effects::{self, Kind};
use crate::metrics;

use super::answer::{self, Answer};
use super::page::Sink;
use super::tls::Clients;
use super::{CloudError, CloudErrorKind};

/// A microversion of the block storage API, such as `(3, 44)`.
pub type Microversion = (u32, u32);

/// A longer Retry-After is handed to the caller instead of being waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Between two tries, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Tries of one call, the first included.
const TRIES: u32 = 4;

/// Largest answer that is about one thing.
const SMALL: usize = 1024 * 1024;
/// Largest page of a list (1000 volumes are about 1 MiB).
const LARGE: usize = 16 * 1024 * 1024;

/// Who is asked. Its name stands in errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Identity,
    BlockStorage,
    Image,
}

impl Service {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Identity => "Keystone",
            Self::BlockStorage => "Cinder",
            Self::Image => "Glance",
        }
    }

    /// As metrics name it.
    fn label(self) -> &'static str {
        match self {
            Self::Identity => "keystone",
            Self::BlockStorage => "cinder",
            Self::Image => "glance",
        }
    }
}

/// Whether a request may be sent again when nobody knows what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing, or the same again.
    Always,
    /// Only when it certainly did not happen.
    WhenNotDone,
}

/// One request, before it has a host and a token.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) service: Service,
    /// What it is for, as it stands after "cannot": `reserve volume ID`.
    pub(super) what: String,
    pub(super) method: Method,
    /// Below the service's endpoint, with its leading slash.
    pub(super) path: String,
    /// Already encoded.
    pub(super) query: Option<String>,
    /// May hold secrets: never shown.
    pub(super) body: Option<Body>,
    pub(super) microversion: Option<Microversion>,
    /// The token that Keystone is asked about.
    pub(super) subject_token: Option<SecretString>,
    pub(super) repeat: Repeat,
    /// The success codes; another 2xx is not understood (a proxy's login page is a 200, too).
    pub(super) accept: &'static [u16],
    /// A 404 says that the very thing in the path is gone, not something that the body named.
    pub(super) missing_is_an_answer: bool,
    pub(super) limit: usize,
}

/// A JSON body. Debug shows nothing of it.
pub(super) struct Body(pub(super) Value);

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body(..)")
    }
}

impl Call {
    /// A GET of one thing.
    pub(super) fn read(service: Service, what: impl Into<String>, path: impl Into<String>) -> Self {
        Self {
            service,
            what: what.into(),
            method: Method::GET,
            path: path.into(),
            query: None,
            body: None,
            microversion: None,
            subject_token: None,
            repeat: Repeat::Always,
            accept: &[200],
            missing_is_an_answer: true,
            limit: SMALL,
        }
    }

    /// A GET of many things: the thing in the path is the list itself.
    pub(super) fn list(
        service: Service,
        what: impl Into<String>,
        path: impl Into<String>,
        query: Option<String>,
    ) -> Self {
        Self { query, missing_is_an_answer: false, limit: LARGE, ..Self::read(service, what, path) }
    }

    /// A request of Cinder that changes something.
    pub(super) fn effect(
        method: Method,
        what: impl Into<String>,
        path: impl Into<String>,
        body: Option<Value>,
        accept: &'static [u16],
    ) -> Self {
        Self {
            method,
            body: body.map(Body),
            repeat: Repeat::WhenNotDone,
            accept,
            ..Self::read(Service::BlockStorage, what, path)
        }
    }

    /// What sort of call it is, as metrics name it: the path without what names one thing, or the
    /// action. What is not known here is `other`.
    fn label(&self) -> &'static str {
        let parts: Vec<&str> = self.path.split('/').filter(|part| !part.is_empty()).collect();
        match parts.as_slice() {
            [] => "versions",
            ["auth", "tokens"] | ["tokens"] => "tokens",
            ["volumes"] | ["volumes", "detail"] => "volumes",
            ["volumes", _] => "volume",
            ["volumes", _, "metadata", ..] => "metadata",
            ["volumes", _, "action"] => self.action().unwrap_or("action"),
            ["attachments"] | ["attachments", "detail"] => "attachments",
            ["attachments", _] => "attachment",
            ["attachments", _, "action"] => "os-complete",
            ["snapshots", ..] => "snapshots",
            ["messages", ..] => "messages",
            ["backups", ..] => "backups",
            ["os-availability-zone"] => "zones",
            ["limits"] => "limits",
            ["types", ..] => "types",
            ["images", ..] => "images",
            _ => "other",
        }
    }

    /// The action is the only key of the body.
    fn action(&self) -> Option<&'static str> {
        const KNOWN: [&str; 9] = [
            "os-reserve",
            "os-unreserve",
            "os-initialize_connection",
            "os-terminate_connection",
            "os-attach",
            "os-detach",
            "os-begin_detaching",
            "os-roll_detaching",
            "os-extend",
        ];
        let Body(body) = self.body.as_ref()?;
        KNOWN.into_iter().find(|name| body.get(name).is_some())
    }

    /// Whether nobody knows what became of it when the answer is lost.
    pub(super) fn has_effect(&self) -> bool {
        self.repeat == Repeat::WhenNotDone
    }
}

/// How long to wait for answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// One try of a read.
    pub(super) read: Duration,
    /// No repetition of anything begins after this.
    pub(super) repeats: Duration,
    /// One try of an effect. Above the 60 s that Cinder waits for its own back end
    /// (`rpc_response_timeout`): what answers later than this has not answered.
    pub(super) effect: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            read: Duration::from_secs(20),
            repeats: Duration::from_secs(15),
            effect: Duration::from_secs(90),
        }
    }
}

/// The one connection pool of the process.
#[derive(Debug)]
pub(super) struct Http {
    clients: Clients,
    patience: Patience,
}

impl Http {
    pub(super) fn new(clients: Clients, patience: Patience) -> Self {
        Self { clients, patience }
    }

    /// Sends the call to `endpoint`, repeats it where that is safe, and answers only an accepted
    /// success.
    pub(super) async fn send(
        &self,
        endpoint: &Url,
        call: &Call,
        token: Option<&SecretString>,
    ) -> Result<Answer, CloudError> {
        let mut body = Vec::new();
        let answer = self.send_into(endpoint, call, token, &mut body).await?;
        Ok(Answer { body, ..answer })
    }

    /// The same; the body of a success goes into the sink, not into the answer.
    pub(super) async fn send_into(
        &self,
        endpoint: &Url,
        call: &Call,
        token: Option<&SecretString>,
        sink: &mut dyn Sink,
    ) -> Result<Answer, CloudError> {
        let url = target(endpoint, call);
        let started = Instant::now();
        let mut tries = 1;
        loop {
            let error = match self.try_once(&url, call, token, sink).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let pause = pause_before_repeating(call, &error, tries)
                .filter(|pause| started.elapsed() + *pause < self.patience.repeats);
            let Some(pause) = pause else { return Err(error) };
            tracing::debug!(%error, tries, pause_ms = pause.as_millis(), "trying again");
            tokio::time::sleep(pause).await;
            tries += 1;
        }
    }

    async fn try_once(
        &self,
        url: &Url,
        call: &Call,
        token: Option<&SecretString>,
        sink: &mut dyn Sink,
    ) -> Result<Answer, CloudError> {
        let started = Instant::now();
        let limit = match call.repeat {
            Repeat::Always => self.patience.read,
            Repeat::WhenNotDone => self.patience.effect,
        };
        let exchange = effects::run(
            Kind::Cloud,
            || format!("{} {}", call.method, call.what),
            self.exchange(url, call, token, sink),
        );
        let result = match tokio::time::timeout(limit, exchange).await {
            Ok(result) => result,
            Err(_) => Err(answer::no_answer(call, url, &format!("no answer for {limit:.0?}"))),
        };
        let (status, request_id) = match &result {
            Ok(answer) => (Some(answer.status), answer.request_id.as_deref()),
            Err(error) => (error.status, error.request_id.as_deref()),
        };
        metrics::cloud_request(
            call.service.label(),
            method_label(&call.method),
            call.label(),
            status,
            started.elapsed(),
        );
        tracing::debug!(
            method = %call.method,
            host = url.host_str(),
            path = url.path(),
            status,
            elapsed_ms = started.elapsed().as_millis(),
            request_id,
            "cloud call"
        );
        result
    }

    async fn exchange(
        &self,
        url: &Url,
        call: &Call,
        token: Option<&SecretString>,
        sink: &mut dyn Sink,
    ) -> Result<Answer, CloudError> {
        let client = self.clients.of(url.scheme()).await.map_err(CloudError::before_sending)?;
        let mut request = client.request(call.method.clone(), url.clone());
        if let Some(token) = token {
            request = request.header("X-Auth-Token", header_of(token, call)?);
        }
        if let Some(token) = &call.subject_token {
            request = request.header("X-Subject-Token", header_of(token, call)?);
        }
        if let Some((major, minor)) = call.microversion {
            request = request.header("OpenStack-API-Version", format!("volume {major}.{minor}"));
        }
        if let Some(Body(body)) = &call.body {
            request = request.json(body);
        }
        let mut response = request
            .header("Accept", "application/json")
            .send()
            .await
            .map_err(|error| answer::transport_failure(call, url, &error))?;

        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let announced = response.content_length().and_then(|length| length.try_into().ok());
        let mut refusal = Vec::new();
        let sink = if call.accept.contains(&status) { sink } else { &mut refusal };
        sink.begin(announced.filter(|length| *length <= call.limit).unwrap_or(0));
        let mut length = 0;
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(_) => {
                    let reason = "its answer broke off";
                    return Err(answer::not_understood(call, status, &headers, reason));
                }
            };
            length += chunk.len();
            if length > call.limit {
                let reason = format!("its answer is larger than {} bytes", call.limit);
                return Err(answer::not_understood(call, status, &headers, &reason));
            }
            sink.take(&chunk);
        }
        // Lets the connection go back to the pool, so that the next call takes it again: the buffer of
        // another one would grow beside its.
        drop(response);
        tokio::task::yield_now().await;
        answer::judge(call, url, status, &headers, &refusal)
    }
}

/// How long to wait before the next try; `None` = no next try.
fn pause_before_repeating(call: &Call, error: &CloudError, tries: u32) -> Option<Duration> {
    // Another 404 will look the same.
    let is_final = error.status.is_some_and(|status| (400..500).contains(&status) && status != 408);
    let most = match (error.kind, call.repeat) {
        (CloudErrorKind::Busy, _) => TRIES,
        (CloudErrorKind::Ambiguous, _) if is_final => return None,
        (CloudErrorKind::Unreachable | CloudErrorKind::Ambiguous, Repeat::Always) => TRIES,
        // Not connected: perhaps a restart of the API's front end. Once more.
        (CloudErrorKind::Unreachable, Repeat::WhenNotDone) => 2,
        _ => return None,
    };
    let pause = FIRST_PAUSE * 2_u32.pow(tries - 1);
    let pause = error.retry_after.unwrap_or(pause).max(pause);
    (tries < most && pause <= LONGEST_PAUSE).then_some(pause)
}

/// Retry-After in seconds; its other form, a date, is not read: then our own pauses serve.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn target(endpoint: &Url, call: &Call) -> Url {
    let mut url = endpoint.clone();
    url.set_path(&format!("{}{}", endpoint.path().trim_end_matches('/'), call.path));
    url.set_query(call.query.as_deref());
    url
}

fn header_of(token: &SecretString, call: &Call) -> Result<HeaderValue, CloudError> {
    let mut value = HeaderValue::from_str(token.expose_secret()).map_err(|_| {
        CloudError::new(
            CloudErrorKind::Unauthenticated,
            format!("cannot {}: the token holds characters that no token has", call.what),
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}
