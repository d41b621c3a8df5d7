//! The embedded cloud, asked over HTTP.

mod attaching;
mod faults;
mod identity;
mod volumes;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::storage::loopback;
use super::{Behaviour, Options, Sandbox};

/// A sandbox in a directory of its own, and a member of its project who is logged in.
struct Client {
    sandbox: Sandbox,
    options: Options,
    dir: Directory,
    token: String,
    /// `/volume/v3/PROJECT`
    root: String,
    /// Microversion sent with every call.
    version: &'static str,
}

/// The directory of a sandbox. Exports outlive their sandbox on purpose; not those of a test that
/// failed.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for (device, file) in loopback::all().unwrap_or_default() {
            if file.starts_with(self.path()) {
                let _ = loopback::detach(&device, &file);
            }
        }
    }
}

/// Nothing of this machine is touched, and nothing takes time.
fn on_paper() -> Behaviour {
    Behaviour { paper_exports: true, creating_ms: 0, deleting_ms: 0, ..Behaviour::default() }
}

impl Client {
    async fn new(behaviour: Behaviour) -> Self {
        Self::start(Directory::new(), behaviour).await
    }

    async fn start(dir: Directory, behaviour: Behaviour) -> Self {
        let options = Options::new(dir.path()).behaviour(behaviour);
        Self::with(dir, options).await
    }

    async fn with(dir: Directory, options: Options) -> Self {
        let sandbox = Sandbox::start(options.clone()).await.unwrap();
        let root = format!("/volume/v3/{}", sandbox.project("mesos").unwrap());
        let (token, version) = (String::new(), "volume 3.70");
        let mut client = Self { sandbox, options, dir, token, root, version };
        client.log_in().await;
        client
    }

    /// Stops the sandbox and starts one in the same directory.
    async fn restart(self) -> Self {
        let Self { sandbox, options, dir, .. } = self;
        let behaviour = sandbox.behaviour();
        drop(sandbox);
        Self::with(dir, options.behaviour(behaviour)).await
    }

    async fn log_in(&mut self) {
        let project = self.sandbox.project("mesos").unwrap();
        let user = json!({"name": "mesos", "domain": {"id": "default"}, "password": "mesospw"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"id": project}},
        }});
        let answer = self.send("POST", "/v3/auth/tokens", &body).await.unwrap();
        assert_eq!(answer.status, 201, "{answer:?}");
        self.token = answer.header("x-subject-token").unwrap();
    }

    /// `None` = the connection ended before the answer did.
    async fn send(&self, method: &str, path: &str, body: &Value) -> Option<Answer> {
        let headers =
            [("X-Auth-Token", self.token.as_str()), ("OpenStack-API-Version", self.version)];
        send(&self.sandbox, method, path, &headers, body).await
    }

    /// A call to Cinder that is answered; `path` is below the project.
    async fn cinder(&self, method: &str, path: &str, body: Value) -> Answer {
        self.send(method, &format!("{}{path}", self.root), &body).await.unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.cinder("GET", path, Value::Null).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    async fn action(&self, volume: Uuid, action: &str, arguments: Value) -> Answer {
        let body = json!({ action: arguments });
        self.cinder("POST", &format!("/volumes/{volume}/action"), body).await
    }

    /// A volume of 1 GiB that is available.
    async fn volume(&self, name: &str) -> Uuid {
        self.volume_like(json!({"name": name, "size": 1})).await
    }

    async fn volume_like(&self, volume: Value) -> Uuid {
        let answer = self.cinder("POST", "/volumes", json!({"volume": volume})).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let id = answer.body["volume"]["id"].as_str().unwrap().parse().unwrap();
        self.until(id, "available").await;
        id
    }

    async fn status(&self, volume: Uuid) -> String {
        let answer = self.cinder("GET", &format!("/volumes/{volume}"), Value::Null).await;
        answer.body["volume"]["status"].as_str().unwrap_or("gone").to_owned()
    }

    async fn until(&self, volume: Uuid, status: &str) {
        let wait = async {
            while self.status(volume).await != status {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(waited.is_ok(), "{volume} is not {status} but {}", self.status(volume).await);
    }
}

/// Connector of a host.
fn connector(host: &str) -> Value {
    json!({"host": host, "initiator": format!("iqn.2026-01.test:{host}"), "ip": "127.0.0.1"})
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: hyper::HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<String> {
        Some(self.headers.get(name)?.to_str().ok()?.to_owned())
    }

    /// Status and message of an error in Cinder's form.
    fn error(&self) -> (u16, &str) {
        let kind = self.body.as_object().and_then(|body| body.values().next());
        (self.status, kind.and_then(|kind| kind["message"].as_str()).unwrap_or_default())
    }
}

/// One request on a connection of its own. A body that is no JSON is answered as text.
async fn send(
    sandbox: &Sandbox,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Option<Answer> {
    let stream = TcpStream::connect(sandbox.address()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driven = tokio::spawn(connection);
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let mut request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("Host", sandbox.address().to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.ok()?;
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.ok()?.to_bytes();
    driven.abort();
    let text = || Value::from(String::from_utf8_lossy(&bytes).into_owned());
    Some(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: serde_json::from_slice(&bytes).unwrap_or_else(|_| text()),
    })
}
