//! The socket server: accept loop, routes, one task an operation.
//!
//! Nothing here waits for anything of another connection, and each operation is a task of its own:
//! hyper drops a handler when its client hangs up, but what was begun must run to its end. The
//! handler only waits for the task, until the answer is due.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::delivery::{Outgoing, Receipt, Watched};
use super::protocol::{self, Action, Call, VolumeCall, VolumeRequest};
use super::{Caller, Engine, Failure, Listed, Question, Subject, VolumeDriver, peer};
use crate::shown::shown;
use crate::{memory, metrics};

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until Create and Mount are answered. dockerd gives them 120 s and never asks again.
    pub create_and_mount: Duration,
    /// Until the other calls are answered. dockerd gives them 60 s.
    pub others: Duration,
    /// For running operations to end after the shutdown.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            create_and_mount: Duration::from_secs(110),
            others: Duration::from_secs(50),
            // Well below systemd's 90 s until it kills.
            drain: Duration::from_secs(60),
        }
    }
}

/// Pauses after a failed accept (out of descriptors, most likely): the first, and the longest.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Serves the driver on the socket until `shutdown` resolves; then accepts nobody any more, lets
/// idle connections go and waits for running operations to end, up to [`Limits::drain`].
pub async fn serve(
    listener: UnixListener,
    driver: Arc<dyn VolumeDriver>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let server =
        Server { driver, limits, tasks: TaskTracker::new(), stopping: CancellationToken::new() };
    tokio::select! {
        () = accept(&listener, &server) => {}
        () = shutdown => {}
    }
    drop(listener);
    server.stopping.cancel();
    server.tasks.close();
    if timeout(limits.drain, server.tasks.wait()).await.is_err() {
        let running = server.tasks.len();
        tracing::warn!(running, "stopping although operations still run");
    }
}

/// Accepts connections for ever.
async fn accept(listener: &UnixListener, server: &Server) {
    let (mut pause, longest) = ACCEPT_PAUSE;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                pause = ACCEPT_PAUSE.0;
                server.tasks.spawn(server.clone().serve_connection(stream));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection on the plugin socket");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        }
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What an operation answers; a mount with its receipt.
type Outcome = Result<(Value, Option<Receipt>), Failure>;

#[derive(Clone)]
struct Server {
    driver: Arc<dyn VolumeDriver>,
    limits: Limits,
    /// Connections and operations.
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Server {
    async fn serve_connection(self, stream: UnixStream) {
        let engine = peer::engine(&stream);
        let outgoing = Outgoing::default();
        let io = TokioIo::new(Watched::new(stream, outgoing.clone()));
        let stopping = self.stopping.clone();
        let service = service_fn(move |request| {
            let (server, outgoing) = (self.clone(), outgoing.clone());
            async move { Ok::<_, Infallible>(server.answer(engine, &outgoing, request).await) }
        });
        let mut connection = pin!(
            http1::Builder::new()
                // An engine keeps a connection open for ever, and a close that races with its next
                // request makes it repeat that with an empty body.
                .header_read_timeout(None)
                .serve_connection(io, service)
        );
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = %crate::error_chain::Chain(&error), "a connection broke");
        }
    }

    async fn answer(
        &self,
        engine: Option<Engine>,
        outgoing: &Outgoing,
        request: Request<Incoming>,
    ) -> Response<Body> {
        memory::work();
        let path = request.uri().path();
        let Some(call) = Call::from_path(path) else {
            return refusal(StatusCode::NOT_FOUND, &format!("this plugin has no {}", shown(path)));
        };
        if request.method() != Method::POST {
            let mut response =
                refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} takes POST only"));
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let body = match Limited::new(request.into_body(), protocol::MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                let limit = protocol::MAX_BODY;
                let message = format!("the request is larger than {limit} bytes");
                return refusal(StatusCode::PAYLOAD_TOO_LARGE, &message);
            }
            Err(error) => {
                let message = format!("the request could not be read: {error}");
                return refusal(StatusCode::BAD_REQUEST, &message);
            }
        };
        let call = match call {
            Call::Activate => return success(&protocol::activated()),
            Call::Capabilities => return success(&protocol::capabilities()),
            Call::List => return self.list(engine).await,
            Call::Ask(subject) => return self.ask(engine, subject, &body).await,
            Call::Volume(call) => call,
        };
        let request = match VolumeRequest::parse(call, &body) {
            Ok(request) => request,
            Err(message) => return refusal(StatusCode::BAD_REQUEST, &message),
        };
        match self.operate(engine, call, request).await {
            Ok((answer, receipt)) => {
                if let Some(receipt) = receipt {
                    outgoing.put(receipt);
                }
                success(&answer)
            }
            Err(failure) => failed(&failure),
        }
    }

    /// Runs an operation in its own task and waits for it until the answer is due.
    async fn operate(
        &self,
        engine: Option<Engine>,
        call: VolumeCall,
        request: VolumeRequest,
    ) -> Outcome {
        let limit = match call {
            VolumeCall::Create | VolumeCall::Mount | VolumeCall::Operate(_) => {
                self.limits.create_and_mount
            }
            _ => self.limits.others,
        };
        let (caller, _answered) = caller(engine, limit);
        let deadline = caller.deadline;
        let what = format!("{call:?} of volume \"{}\"", shown(&request.name));
        let span = tracing::info_span!("operation", op = ?call, volume = request.name);
        let task = self.clone().run(caller, request);
        let logged = logged(call.name(), call.is_read(), task);
        let running = self.tasks.spawn(logged.instrument(span));
        match timeout_at(deadline, running).await {
            Ok(ended) => ended.unwrap_or_else(|error| Err(crashed(&what, &error))),
            // Dropping the handle leaves the task alone. Should it still mount, its receipt is
            // dropped with its outcome.
            Err(_) => Err(failure(format!(
                "{what} is not finished after {} s, but goes on: try again in a while",
                limit.as_secs_f32()
            ))),
        }
    }

    async fn run(self, caller: Caller, request: VolumeRequest) -> Outcome {
        let driver = &self.driver;
        let VolumeRequest { name, action } = request;
        let answer = match action {
            Action::Create(options) => {
                driver.create(&caller, &name, &options).await.map(|()| protocol::done())
            }
            Action::Remove => driver.remove(&caller, &name).await.map(|()| protocol::done()),
            Action::Unmount(id) => {
                driver.unmount(&caller, &name, &id).await.map(|()| protocol::done())
            }
            Action::Path => driver.path(&name).await.map(|path| protocol::path(path.as_deref())),
            Action::Get => driver.get(&caller, &name).await.map(|info| protocol::volume(&info)),
            Action::Operate(operation, arguments) => {
                driver.operate(&caller, operation, &name, &arguments).await.map(Value::Object)
            }
            Action::Mount(id) => {
                let mountpoint = driver.mount(&caller, &name, &id).await?;
                // From here on the reference is taken back unless the answer gets through.
                let receipt =
                    Receipt::new(self.driver.clone(), self.tasks.clone(), caller.engine, name, id);
                let answer = protocol::mounted(&mountpoint).ok_or_else(|| {
                    failure(format!("the volume is mounted at no usable path: {mountpoint:?}"))
                })?;
                return Ok((answer, Some(receipt)));
            }
        };
        answer.map(|answer| (answer, None))
    }

    /// Answers an operator's question, in a task of its own as all operations.
    async fn ask(&self, engine: Option<Engine>, subject: Subject, body: &[u8]) -> Response<Body> {
        let question = match Question::parse(subject, body) {
            Ok(question) => question,
            Err(message) => return refusal(StatusCode::BAD_REQUEST, &message),
        };
        let limit =
            if subject.is_read() { self.limits.others } else { self.limits.create_and_mount };
        let (caller, _answered) = caller(engine, limit);
        let deadline = caller.deadline;
        let span =
            tracing::info_span!("operation", op = subject.name(), volume = question.volume());
        let driver = self.driver.clone();
        let task = async move { Ok((driver.ask(&caller, &question).await?, None)) };
        let logged = logged(subject.name(), subject.is_read(), task);
        let running = self.tasks.spawn(logged.instrument(span));
        match timeout_at(deadline, running).await {
            Ok(Ok(Ok((answer, _)))) => success(&answer),
            Ok(Ok(Err(failure))) => failed(&failure),
            Ok(Err(error)) => failed(&crashed(subject.path(), &error)),
            Err(_) => failed(&failure(format!(
                "no answer after {} s, but what was begun goes on: try again in a while",
                limit.as_secs_f32()
            ))),
        }
    }

    async fn list(&self, engine: Option<Engine>) -> Response<Body> {
        let begun = Instant::now();
        let (caller, answered) = caller(engine, self.limits.others);
        let deadline = caller.deadline;
        let driver = self.driver.clone();
        let span = tracing::info_span!("operation", op = "List");
        let listing = async move { driver.list(&caller).await };
        let running = self.tasks.spawn(listing.instrument(span));
        let too_late = || Err(failure("the list of volumes takes too long, try again".to_owned()));
        let first = timeout_at(deadline, first_page(running)).await.unwrap_or_else(|_| too_late());
        metrics::operation("List", if first.is_ok() { "ok" } else { "failed" }, begun.elapsed());
        match first {
            Ok((first, pages)) => list_response(&first, pages, deadline, answered),
            Err(failure) => {
                tracing::warn!(error = failure.message, "cannot list the volumes");
                failed(&failure)
            }
        }
    }
}

/// A caller whose answer is due after `limit`, and the guard to drop when it was given (or when
/// nobody waits for it).
fn caller(engine: Option<Engine>, limit: Duration) -> (Caller, DropGuard) {
    let gone = CancellationToken::new();
    let answered = gone.clone().drop_guard();
    (Caller { engine, deadline: Instant::now() + limit, gone }, answered)
}

/// Logs how an operation ended, whoever still waits for it. Reads that go well are for debugging
/// (an engine sends three for every container); a Get that fails is often the question whether a
/// name is free.
async fn logged(
    operation: &'static str,
    is_read: bool,
    work: impl Future<Output = Outcome>,
) -> Outcome {
    let begun = Instant::now();
    let outcome = work.await;
    let elapsed = begun.elapsed();
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let kind = match &outcome {
        Ok(_) => "ok",
        Err(failure) if failure.bad_request => "bad_request",
        Err(_) => "failed",
    };
    metrics::operation(operation, kind, elapsed);
    match &outcome {
        Ok(_) if is_read => tracing::debug!(elapsed_ms, "done"),
        Ok(_) => tracing::info!(elapsed_ms, "done"),
        Err(failure) if is_read => tracing::info!(elapsed_ms, error = failure.message, "failed"),
        Err(failure) => tracing::warn!(elapsed_ms, error = failure.message, "failed"),
    }
    outcome
}

type Pages = mpsc::Receiver<Result<Vec<Listed>, Failure>>;

/// The first page and where the others come from. No page at all is an empty list.
async fn first_page(
    listing: JoinHandle<Result<Pages, Failure>>,
) -> Result<(Vec<Listed>, Pages), Failure> {
    let mut pages = listing.await.unwrap_or_else(|error| Err(crashed("List", &error)))?;
    let first = pages.recv().await.unwrap_or_else(|| Ok(Vec::new()))?;
    Ok((first, pages))
}

/// Sends page after page. If one fails or is late the body ends in an error, and hyper cuts the
/// connection off without the last chunk: a part must never look like the whole.
fn list_response(
    first: &[Listed],
    pages: Pages,
    deadline: Instant,
    answered: DropGuard,
) -> Response<Body> {
    let begin = protocol::list_page(first, true)
        .map(|page| protocol::LIST_BEGIN.to_owned() + &page)
        .map_err(io::Error::other);
    // `None` after the last chunk. The guard goes with it.
    let state = Some((pages, first.is_empty(), answered));
    let rest = stream::unfold(state, move |state| async move {
        let (mut pages, mut is_first, answered) = state?;
        let cut_off = |reason: String| {
            tracing::warn!(error = reason, "the list of volumes is cut off");
            Some((Err(io::Error::other(reason)), None))
        };
        match timeout_at(deadline, pages.recv()).await {
            Err(_) => cut_off("a page came too late".to_owned()),
            Ok(Some(Err(failure))) => cut_off(failure.message),
            Ok(None) => Some((Ok(protocol::LIST_END.to_owned()), None)),
            Ok(Some(Ok(volumes))) => match protocol::list_page(&volumes, is_first) {
                Err(error) => cut_off(error.to_string()),
                Ok(page) => {
                    is_first &= volumes.is_empty();
                    Some((Ok(page), Some((pages, is_first, answered))))
                }
            },
        }
    });
    let chunks = stream::once(std::future::ready(begin)).chain(rest);
    let frames = chunks.map(|chunk| chunk.map(|text| Frame::data(Bytes::from(text))));
    response(StatusCode::OK, StreamBody::new(frames).boxed_unsync())
}

fn success(answer: &Value) -> Response<Body> {
    response(StatusCode::OK, whole(answer))
}

fn failed(failure: &Failure) -> Response<Body> {
    let status = if failure.bad_request {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    refusal(status, &failure.message)
}

fn refusal(status: StatusCode, message: &str) -> Response<Body> {
    response(status, whole(&protocol::error(message)))
}

fn whole(answer: &Value) -> Body {
    let line = Bytes::from(format!("{answer}\n"));
    Full::new(line).map_err(|never| match never {}).boxed_unsync()
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(protocol::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn failure(message: String) -> Failure {
    Failure { bad_request: false, message }
}

/// A task that panicked has said where on standard error; the others go on.
fn crashed(what: &str, error: &JoinError) -> Failure {
    tracing::error!(%error, "{what} crashed");
    failure(format!("{what} failed by a bug of the plugin; its log has the place"))
}
