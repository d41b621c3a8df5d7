//! Serves the metrics: `GET /metrics` on a Unix socket or a loopback address.
//!
//! No request can keep the daemon from its work: few connections at a time, each for a short while,
//! one request on each.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Gauges;
use crate::docker::socket::{self, SocketFile};

/// Scrapers at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 4;
/// For a whole scrape.
const LIMIT: Duration = Duration::from_secs(10);
/// After an accept that failed (out of descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// The format, with its version.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where metrics are served (`Metrics`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `unix:/run/…`
    Unix(PathBuf),
    /// `127.0.0.1:9101`, `[::1]:9101`: loopback only, for nobody is asked who he is.
    Tcp(SocketAddr),
}

impl Address {
    /// As it is written in the config.
    ///
    /// # Errors
    /// The end of a sentence that begins with the key's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            if !path.is_absolute() || path.file_name().is_none() {
                return Err(format!("must name an absolute path after unix:, not {text:?}"));
            }
            return Ok(Self::Unix(path));
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("must be unix:/PATH or a loopback address with a port (127.0.0.1:9101), not {text:?}")
        })?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "is {text}, which others can reach: metrics are served on loopback addresses and \
                 Unix sockets only"
            ));
        }
        if address.port() == 0 {
            return Err(format!("must name a port, not {text:?}"));
        }
        Ok(Self::Tcp(address))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The Unix socket.
    #[error(transparent)]
    Socket(#[from] socket::SocketError),
    /// The port.
    #[error("cannot listen on {address} for metrics")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A place where scrapers come.
#[derive(Debug)]
pub struct Listener {
    accepting: Accepting,
    file: Option<SocketFile>,
}

#[derive(Debug)]
enum Accepting {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A connection, whatever it comes by: hyper's code is there once then, not once for each kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Accepting {
    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

impl Listener {
    /// Listens; the Unix socket gets `group`, mode 0660, as the plugin's own.
    pub async fn bind(address: &Address, group: Option<&str>) -> Result<Self, ServeError> {
        Ok(match address {
            Address::Unix(path) => {
                let (listener, file) = socket::bind(path, group)?;
                Self { accepting: Accepting::Unix(listener), file: Some(file) }
            }
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address).await;
                let listener =
                    listener.map_err(|source| ServeError::Listen { address: *address, source })?;
                Self { accepting: Accepting::Tcp(listener), file: None }
            }
        })
    }

    /// Serves until it is dropped; `gauges` is asked at each scrape.
    pub async fn serve(self, gauges: impl Fn() -> Gauges + Send + Sync + 'static) {
        // Removed when the daemon stops and this future is dropped.
        let _file = self.file.map(RemovedAtLast);
        let gauges: Arc<dyn Fn() -> Gauges + Send + Sync> = Arc::new(gauges);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // It is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let gauges = Arc::clone(&gauges);
            match self.accepting.accept().await {
                Ok(stream) => drop(tokio::spawn(async move {
                    scrape(stream, gauges).await;
                    drop(place);
                })),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for metrics");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

struct RemovedAtLast(SocketFile);

impl Drop for RemovedAtLast {
    fn drop(&mut self) {
        self.0.unlink();
    }
}

/// One request, one answer.
async fn scrape(stream: Box<dyn Stream>, gauges: Arc<dyn Fn() -> Gauges + Send + Sync>) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(&request, &*gauges);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection =
        http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    // A scraper that is slow or broken has only itself to blame.
    if let Ok(Err(error)) = timeout(LIMIT, connection).await {
        tracing::debug!(%error, "a scrape broke off");
    }
}

fn answer(request: &Request<Incoming>, gauges: &dyn Fn() -> Gauges) -> Response<Full<Bytes>> {
    let (status, text) = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET | &Method::HEAD) => {
            (StatusCode::OK, super::exposition(&gauges()))
        }
        ("/metrics", _) => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_on_this_host_is_an_address() {
        for text in ["127.0.0.1:9101", "127.1.2.3:1", "[::1]:9101", "unix:/run/x/metrics.sock"] {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
        for (text, says) in [
            ("0.0.0.0:9101", "others can reach"),
            ("192.0.2.1:9101", "others can reach"),
            ("[::]:9101", "others can reach"),
            ("127.0.0.1:0", "port"),
            ("127.0.0.1", "loopback address with a port"),
            ("localhost:9101", "loopback address with a port"),
            ("unix:metrics.sock", "absolute"),
            ("unix:/", "absolute"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
