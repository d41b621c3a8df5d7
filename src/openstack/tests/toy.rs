//! A cloud of a few lines for tests of the client: a real listener whose Keystone hands out
//! tokens and whose other answers the test scripts, broken ones too.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::config::{CloudSettings, Credentials, NameOrId, Scope};

/// The password of every toy user: no error, log or Debug may show it.
pub(super) const PASSWORD: &str = "p4ssw0rd-of-the-t0y";
/// Every toy token begins so.
pub(super) const TOKEN: &str = "t0ken-of-the-toy";
pub(super) const PROJECT: &str = "44b8e1a628ee4312ad57f728bb12231d";

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    /// With its query.
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Value,
    /// The client's end of the connection.
    pub(super) peer: SocketAddr,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| header.1.as_str())
    }

    /// Method and path below the project, as a test names a call: `GET /volumes/ID`.
    pub(super) fn line(&self) -> String {
        let path = self.path.split_once(PROJECT).map_or(&*self.path, |(_, rest)| rest);
        format!("{} {path}", self.method)
    }

    /// The name of a volume action: the key of the body.
    pub(super) fn action(&self) -> Option<&str> {
        Some(self.body.as_object()?.keys().next()?)
    }
}

#[derive(Debug, Clone)]
pub(super) enum Reply {
    Json(u16, Value),
    /// Status, header lines and body as they are.
    Raw(u16, Vec<(&'static str, String)>, String),
    /// The head and half of a body.
    Half,
    /// Closes the connection.
    Drop,
    /// Never answers.
    Hang,
}

impl Reply {
    /// A success without a body.
    pub(super) fn empty(status: u16) -> Self {
        Self::Raw(status, Vec::new(), String::new())
    }

    /// An error of Cinder.
    pub(super) fn fault(status: u16, name: &str, message: &str) -> Self {
        Self::Json(status, json!({name: {"code": status, "message": message}}))
    }
}

type Script = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

/// Stops when it is dropped.
pub(super) struct Toy {
    pub(super) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    task: AbortHandle,
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Toy {
    /// A cloud with microversion 3.70. What the script doesn't answer, a healthy Keystone and
    /// the version document do; all else is 404.
    pub(super) async fn start(
        script: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Script> = Arc::new(script);
        let served = (url.clone(), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (url, requests) = served.clone();
                tokio::spawn(connection(stream, url, requests, Arc::clone(&script)));
            }
        });
        Self { url, requests, task: task.abort_handle() }
    }

    pub(super) fn settings(&self) -> CloudSettings {
        CloudSettings {
            endpoint: format!("{}/v3", self.url),
            credentials: Credentials::Password {
                user: NameOrId::Name("mesos".to_owned()),
                user_domain: NameOrId::Name("Default".to_owned()),
                password: PASSWORD.to_owned().into(),
            },
            scope: Scope::Project {
                project: NameOrId::Id(PROJECT.to_owned()),
                domain: NameOrId::Name("Default".to_owned()),
            },
            region: "RegionOne".to_owned(),
            interface: "public".to_owned(),
            block_storage_endpoint: None,
            ca_file: None,
            client_certificate: None,
            insecure: false,
        }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Every call to Cinder so far.
    pub(super) fn calls(&self) -> Vec<String> {
        let requests = self.requests();
        let calls = requests.iter().filter(|request| request.path.contains(PROJECT));
        calls.map(Request::line).collect()
    }

    /// How often somebody logged in.
    pub(super) fn logins(&self) -> usize {
        let requests = self.requests();
        requests.iter().filter(|request| request.path.ends_with("/tokens")).count()
    }
}

async fn connection(
    stream: TcpStream,
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    script: Arc<Script>,
) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await {
        let logins = {
            let mut requests = requests.lock().unwrap();
            requests.push(request.clone());
            requests.iter().filter(|request| request.path.ends_with("/tokens")).count()
        };
        let reply = script(&request).unwrap_or_else(|| healthy(&request, &url, logins));
        let (status, headers, body) = match reply {
            Reply::Json(status, body) => (status, Vec::new(), body.to_string()),
            Reply::Raw(status, headers, body) => (status, headers, body),
            Reply::Half => {
                let half = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"volume\": {";
                let _ = stream.write_all(half.as_bytes()).await;
                return;
            }
            Reply::Drop => return,
            Reply::Hang => return std::future::pending().await,
        };
        let mut head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nX-Openstack-Request-Id: req-toy\r\n",
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    if stream.read_line(&mut line).await.ok()? == 0 {
        return None;
    }
    let mut first = line.split_whitespace().map(ToOwned::to_owned);
    let (method, path) = (first.next()?, first.next()?);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let peer = stream.get_ref().peer_addr().ok()?;
    let mut request = Request { method, path, headers, body: Value::Null, peer };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    request.body = serde_json::from_slice(&body).unwrap_or_default();
    Some(request)
}

fn healthy(request: &Request, url: &str, logins: usize) -> Reply {
    match (&*request.method, &*request.path) {
        ("POST", "/v3/auth/tokens") => token_v3(url, logins, Duration::from_secs(3600)),
        ("GET", "/cinder/v3/") => {
            Reply::Json(200, json!({"versions": [{"id": "v3.0", "version": "3.70"}]}))
        }
        _ => Reply::fault(404, "itemNotFound", "The resource could not be found."),
    }
}

/// Keystone's answer to a login: the n-th token, with a catalog that leads back here.
pub(super) fn token_v3(url: &str, n: usize, life: Duration) -> Reply {
    let minutes = life.as_secs() / 60;
    let body = json!({"token": {
        "issued_at": "2026-11-22T02:00:00.000000Z",
        "expires_at": format!("2026-11-22T{:02}:{:02}:{:02}.000000Z",
            2 + minutes / 60, minutes % 60, life.as_secs() % 60),
        "project": {"id": PROJECT, "name": "mesos"},
        "roles": [{"id": "1", "name": "member"}],
        "catalog": [{"type": "volumev3", "name": "cinderv3", "endpoints": [
            {"interface": "public", "region": "RegionOne",
             "url": format!("{url}/cinder/v3/{PROJECT}")}]}, {"type": "image", "endpoints": [
            {"interface": "public", "region": "RegionOne", "url": format!("{url}/glance")}]}]}});
    Reply::Raw(201, vec![("X-Subject-Token", format!("{TOKEN}-{n}"))], body.to_string())
}

/// A volume as Cinder shows it.
pub(super) fn volume(id: &str, name: &str, status: &str) -> Value {
    json!({
        "id": id, "name": name, "status": status, "size": 1, "attachments": [], "metadata": {},
        "bootable": "false", "encrypted": false, "multiattach": false, "snapshot_id": null,
        "created_at": "2026-11-22T02:24:00.419476", "updated_at": null,
    })
}
