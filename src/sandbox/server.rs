//! Accepts connections, gives each request to its service and does to it what the fault rules say.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use super::cloud::Cloud;
use super::faults::{Answer, Canned, Effects, Entry, Instead};
use super::http::{ApiError, Reply, Request};
use super::{cinder, control, keystone};

/// Larger requests are refused.
const BODY_LIMIT: usize = 1 << 20;
/// Between the bytes of an endless body.
const DRIP: Duration = Duration::from_millis(50);

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves until the task is dropped.
pub(super) async fn serve(cloud: Arc<Cloud>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                cloud.faults.accepted_connection();
                cloud.spawn(connection(Arc::clone(&cloud), stream));
            }
            // Out of descriptors, or the client is gone already: go on, without spinning.
            Err(error) => {
                tracing::warn!(%error, "the sandbox cannot accept a connection");
                tokio::time::sleep(DRIP).await;
            }
        }
    }
}

async fn connection(cloud: Arc<Cloud>, stream: TcpStream) {
    // A late packet must not wait for an acknowledgement; failing to say so only costs time.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let cloud = Arc::clone(&cloud);
        async move {
            // A task of its own: hyper drops the handler when the client hangs up, but Cinder
            // finishes what it began.
            let (done, answer) = tokio::sync::oneshot::channel();
            let task = Arc::clone(&cloud);
            cloud.spawn(async move {
                let _ = done.send(handle(&task, request).await);
            });
            // An error here makes hyper close the connection without an answer.
            answer.await.unwrap_or(None).ok_or_else(|| io::Error::other("dropped on request"))
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the sandbox ended early");
    }
}

/// `None` = close the connection.
async fn handle(
    cloud: &Arc<Cloud>,
    request: hyper::Request<Incoming>,
) -> Option<hyper::Response<Body>> {
    let request = match read(request).await {
        Ok(request) => request,
        Err(error) => return Some(response(&error.reply())),
    };
    if request.path == "/sandbox" || request.path.starts_with("/sandbox/") {
        return Some(response(&control::handle(cloud, &request).await));
    }
    let route = Route::of(cloud, &request);
    let faults = &cloud.faults;
    let sequence = faults.begin(Entry {
        sequence: 0,
        call: route.call.clone(),
        method: request.method.to_string(),
        path: path_and_query(&request),
        microversion: request.header("OpenStack-API-Version").map(str::to_owned),
        status: None,
        volume_id: route.volume_id,
    });
    let plan = faults.plan(&route.call, request.method.as_str(), &request.path, route.volume_id);
    tokio::time::sleep(plan.delay).await;
    if plan.revoke_tokens {
        cloud.store.change(|state| state.tokens.clear());
    }
    let reply = match plan.instead {
        Some(Instead::Drop) => return None,
        Some(Instead::Answer(canned)) => canned_reply(&canned),
        Some(Instead::AnswerBefore(canned, late)) => {
            let task = Arc::clone(cloud);
            cloud.spawn(async move {
                tokio::time::sleep(late).await;
                effect(&task, &request, &route, &plan.effects).await;
            });
            canned_reply(&canned)
        }
        None => effect(cloud, &request, &route, &plan.effects).await,
    };
    tokio::time::sleep(plan.delay_answer).await;
    let answered = match plan.answer {
        Answer::Whole => response(&reply),
        Answer::Dropped => return None,
        Answer::Half => half(&reply),
        Answer::Html => response(&Reply {
            status: reply.status,
            headers: vec![("Content-Type", "text/html".into())],
            body: Bytes::from_static(b"<html><body><h1>It works!</h1></body></html>"),
        }),
        Answer::Endless => endless(&reply),
        Answer::Flood => flood(&reply),
        Answer::Other(canned) => response(&canned_reply(&canned)),
    };
    faults.end(sequence, answered.status().as_u16());
    Some(answered)
}

/// What a call does in the cloud, and its answer.
async fn effect(cloud: &Arc<Cloud>, request: &Request, route: &Route, effects: &Effects) -> Reply {
    let reply = match route.service {
        Service::Identity => keystone::handle(cloud, request, &route.call),
        Service::Volume => cinder::handle(cloud, request, &route.call, effects).await,
        Service::Image => image(cloud, request),
        Service::Compute => compute(request),
    };
    match cloud.store.save().await {
        Ok(()) => reply,
        Err(error) => {
            tracing::error!(%error, "the sandbox cannot write its state");
            ApiError::internal().reply()
        }
    }
}

/// Where a request goes, and what it is called in rules and log.
struct Route {
    service: Service,
    call: String,
    volume_id: Option<Uuid>,
}

enum Service {
    Identity,
    Volume,
    Image,
    Compute,
}

impl Route {
    fn of(cloud: &Cloud, request: &Request) -> Self {
        let segments = request.segments();
        match segments.split_first() {
            Some((&"volume", rest)) => {
                let (call, volume_id) = cinder::classify(cloud, request, rest);
                Self { service: Service::Volume, call, volume_id }
            }
            Some((&"image", _)) => {
                Self { service: Service::Image, call: "list-images".into(), volume_id: None }
            }
            Some((&"compute", _)) => {
                Self { service: Service::Compute, call: "compute".into(), volume_id: None }
            }
            _ => Self {
                service: Service::Identity,
                call: keystone::classify(request).into(),
                volume_id: None,
            },
        }
    }
}

/// A Glance without images.
fn image(cloud: &Cloud, request: &Request) -> Reply {
    if keystone::token(cloud, request).is_none() {
        return keystone::unauthorized(&request.base);
    }
    if request.segments() != ["image", "v2", "images"] {
        return ApiError::no_such_path().reply();
    }
    let first = path_and_query(request).trim_start_matches("/image").to_owned();
    let none = json!({"images": [], "first": first, "schema": "/v2/schemas/images"});
    Reply::json(200, &none).header("X-Openstack-Request-Id", format!("req-{}", Uuid::new_v4()))
}

/// A Nova that knows no instance.
fn compute(request: &Request) -> Reply {
    let segments = request.segments();
    let instance = segments.iter().skip_while(|part| **part != "servers").nth(1).unwrap_or(&"?");
    ApiError::not_found("Instance", instance).reply()
}

async fn read(request: hyper::Request<Incoming>) -> Result<Request, ApiError> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_LIMIT).collect().await;
    let body = body.map_err(|_| ApiError::bad("Malformed request body"))?.to_bytes();
    let query = parts.uri.query().unwrap_or_default();
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("127.0.0.1");
    Ok(Request {
        base: format!("http://{host}"),
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        headers: parts.headers,
        body,
    })
}

fn path_and_query(request: &Request) -> String {
    if request.query.is_empty() {
        return request.path.clone();
    }
    let query =
        url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&request.query).finish();
    format!("{}?{query}", request.path)
}

fn canned_reply(canned: &Canned) -> Reply {
    let reply = match &canned.body {
        Some(body) => Reply {
            status: canned.status,
            headers: vec![("Content-Type", "application/json".into())],
            body: Bytes::from(body.clone()),
        },
        None => ApiError::new(canned.status, "This answer was asked for.").reply(),
    };
    match canned.retry_after {
        Some(seconds) => reply.header("Retry-After", seconds.to_string()),
        None => reply,
    }
}

fn response(reply: &Reply) -> hyper::Response<Body> {
    with_body(reply, Full::new(reply.body.clone()).map_err(never).boxed_unsync())
}

fn never(never: Infallible) -> io::Error {
    match never {}
}

/// Promises the whole body, sends half of it, and closes.
fn half(reply: &Reply) -> hyper::Response<Body> {
    let half = reply.body.slice(..reply.body.len() / 2);
    let parts = [Ok(Frame::data(half)), Err(io::Error::other("half a body on request"))];
    let mut response =
        with_body(reply, BodyExt::boxed_unsync(StreamBody::new(stream::iter(parts))));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(reply.body.len().max(2)));
    response
}

/// A body that begins with a blank and goes on so.
fn endless(reply: &Reply) -> hyper::Response<Body> {
    let drip = stream::unfold((), |()| async {
        tokio::time::sleep(DRIP).await;
        Some((Ok(Frame::data(Bytes::from_static(b" "))), ()))
    });
    with_body(reply, BodyExt::boxed_unsync(StreamBody::new(drip)))
}

/// A body of blanks, as fast as it is taken.
fn flood(reply: &Reply) -> hyper::Response<Body> {
    let blanks = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b' '; 64 * 1024]))));
    with_body(reply, BodyExt::boxed_unsync(StreamBody::new(blanks)))
}

fn with_body(reply: &Reply, body: Body) -> hyper::Response<Body> {
    let mut response = hyper::Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(reply.status)
        .unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in &reply.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(*name), HeaderValue::from_str(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
