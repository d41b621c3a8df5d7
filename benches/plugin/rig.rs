//! What is measured and what it talks to: the daemon and the embedded cloud, each a process of its
//! own, and a proxy that terminates TLS or writes down what passes.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Map, Value, json};

use crate::unix_http;

/// For what should take no time on a busy machine either.
const PATIENCE: Duration = Duration::from_secs(60);

/// Certificates for 127.0.0.1 that the tests of the client use too.
pub fn certificate(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "src/openstack/tests/tls", name].iter().collect()
}

/// Seconds since 1970, the clock of strace's `-ttt`.
pub fn now() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64()
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The embedded cloud. It runs from a copy of the program, so that the daemon shares no page with it
/// (PSS divides shared pages), and in memory, so that its own disk writes don't count.
pub struct Cloud {
    child: Child,
    pub address: SocketAddr,
    pub config: Map<String, Value>,
}

impl Cloud {
    pub fn start(binary: &Path, dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let copy = dir.join("cloud");
        fs::copy(binary, &copy).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let child = Command::new(&copy)
            .args(["sandbox", "--cloud-only", "--listen", &address.to_string(), "--dir"])
            .arg(dir.join("sandbox"))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        until("the cloud listens", || TcpStream::connect(address).is_ok());
        let mut cloud = Self { child, address, config: Map::new() };
        let Value::Object(config) = cloud.control("GET", "config", &Value::Null) else {
            panic!("no config of the sandbox");
        };
        cloud.config = config;
        cloud.control(
            "PUT",
            "behaviour",
            &json!({ "quotas": { "volumes": 1_000_000, "gigabytes": 1_000_000_000 } }),
        );
        cloud.timing(0, 0);
        cloud
    }

    /// A request to the sandbox's own interface for tests.
    pub fn control(&self, method: &str, path: &str, body: &Value) -> Value {
        let (_, answer) = self.ask(method, &format!("/sandbox/{path}"), body, None);
        serde_json::from_slice(&answer).unwrap_or(Value::Null)
    }

    /// A request to Cinder with a token that somebody else got.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        token: Option<&str>,
    ) -> (u16, Vec<u8>) {
        let mut stream = BufReader::new(TcpStream::connect(self.address).unwrap());
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let token = token.map(|token| format!("X-Auth-Token: {token}\r\n")).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{token}\
             OpenStack-API-Version: volume 3.44\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.get_mut().write_all(head.as_bytes()).unwrap();
        let message = Message::read(&mut stream).unwrap().expect("an answer");
        let status = message.first.split(' ').nth(1).unwrap().parse().unwrap();
        (status, message.body)
    }

    /// Every call takes so long, besides what it does.
    pub fn latency(&self, milliseconds: u64) {
        self.control("DELETE", "faults", &Value::Null);
        if milliseconds > 0 {
            let rule = json!({ "call": "*", "count": null, "action": { "delay": milliseconds } });
            self.control("POST", "faults", &rule);
        }
    }

    /// How long volumes are `creating` and `deleting`.
    pub fn timing(&self, creating: u64, deleting: u64) {
        let times = json!({ "creating_ms": creating, "deleting_ms": deleting });
        self.control("PUT", "behaviour", &times);
    }

    /// Many volumes that nobody attaches.
    pub fn fill(&self, count: u64, name: &str) {
        self.control("POST", "volumes", &json!({ "count": count, "name": name }));
    }

    /// The calls since [`Cloud::forget_calls`].
    pub fn calls(&self) -> usize {
        self.control("GET", "requests", &Value::Null).as_array().unwrap().len()
    }

    pub fn forget_calls(&self) {
        self.control("DELETE", "requests", &Value::Null);
    }

    /// The path of Cinder v3 for the project.
    pub fn block_storage_path(&self) -> String {
        format!("/volume/v3/{}", self.config["TenantID"].as_str().unwrap())
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The daemon.
pub struct Daemon {
    child: Child,
    pub dir: PathBuf,
    pub socket: PathBuf,
}

impl Daemon {
    /// Starts it against the cloud, or against a proxy before it; says how long it took until it
    /// answered Activate.
    pub fn start(
        binary: &Path,
        dir: &Path,
        cloud: &Cloud,
        proxy: Option<&Proxy>,
        more: &Value,
    ) -> (Self, Duration) {
        fs::create_dir_all(dir).unwrap();
        let mut config = cloud.config.clone();
        config.insert("MountPoint".into(), json!(dir.join("mount")));
        config.insert("StateDir".into(), json!(dir.join("state")));
        config.insert("ConnectorHost".into(), json!("bench"));
        if let Some(proxy) = proxy {
            let scheme = if proxy.tls { "https" } else { "http" };
            let base = format!("{scheme}://{}", proxy.address);
            config.insert("Endpoint".into(), json!(format!("{base}/v3")));
            let block_storage = format!("{base}{}", cloud.block_storage_path());
            config.insert("BlockStorageEndpoint".into(), json!(block_storage));
            if proxy.tls {
                config.insert("CACert".into(), json!(certificate("ca.pem")));
            }
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            config.insert(key.clone(), value.clone());
        }
        let path = dir.join("config.json");
        fs::write(&path, Value::Object(config).to_string()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let socket = dir.join("cinder.sock");
        let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let mut command = Command::new(binary);
        command
            .arg("--config")
            .arg(&path)
            .arg("--socket")
            .arg(&socket)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let begun = Instant::now();
        let child = command.spawn().unwrap();
        let daemon = Self { child, dir: dir.to_owned(), socket };
        while std::os::unix::net::UnixStream::connect(&daemon.socket).is_err() {
            assert!(begun.elapsed() < PATIENCE, "no daemon: {}", daemon.log());
            std::thread::sleep(Duration::from_micros(50));
        }
        daemon.client().call("/Plugin.Activate", "");
        (daemon, begun.elapsed())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// A connection as dockerd keeps one.
    pub fn client(&self) -> Docker {
        Docker(unix_http::Client::connect(&self.socket))
    }

    pub fn mount_point(&self) -> PathBuf {
        self.dir.join("mount")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Ends it as systemd does, so that a program that watches it can write down what it saw; what
    /// is mounted stays.
    pub fn stop(self) {}
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        self.child.wait().ok();
    }
}

/// Docker's end of the socket.
pub struct Docker(unix_http::Client);

impl Docker {
    /// A call; an answer, success or not.
    pub fn call(&mut self, path: &str, body: &str) -> unix_http::Answer {
        self.0.call(path, body)
    }

    /// A call that must succeed.
    pub fn must(&mut self, call: &str, body: &Value) -> Value {
        let answer = self.call(&format!("/VolumeDriver.{call}"), &body.to_string());
        assert_eq!(answer.status, 200, "{call} {body}: {}", answer.body);
        answer.json()
    }
}

/// One HTTP message.
struct Message {
    /// Request or status line.
    first: String,
    /// Everything up to the empty line, as it came.
    head: String,
    body: Vec<u8>,
}

impl Message {
    /// `None` when the connection ended instead. Bodies have a Content-Length here: both ends are
    /// ours.
    fn read(stream: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut head = String::new();
        loop {
            let before = head.len();
            if stream.read_line(&mut head)? == 0 {
                return Ok(None);
            }
            if head[before..].trim_end().is_empty() {
                break;
            }
        }
        let length = header(&head, "content-length").and_then(|text| text.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body)?;
        let first = head.lines().next().unwrap_or_default().to_owned();
        Ok(Some(Self { first, head, body }))
    }

    fn write(&self, stream: &mut impl Write) -> io::Result<usize> {
        let bytes = [self.head.as_bytes(), &self.body].concat();
        stream.write_all(&bytes)?;
        stream.flush()?;
        Ok(bytes.len())
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// A call as it passed.
#[derive(Debug, Clone)]
pub struct Exchange {
    pub begun: f64,
    pub ended: f64,
    pub method: String,
    pub path: String,
    /// Those that Cinder looks at.
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub status: u16,
    pub answer: Value,
}

/// Passes requests on to the cloud, one thread a connection.
pub struct Proxy {
    pub address: SocketAddr,
    pub tls: bool,
    passed: Arc<Passed>,
}

#[derive(Default)]
struct Passed {
    connections: AtomicU64,
    bytes: AtomicU64,
    exchanges: Mutex<Vec<Exchange>>,
}

impl Proxy {
    pub fn start(cloud: &Cloud, tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let passed = Arc::<Passed>::default();
        let (upstream, shared) = (cloud.address, Arc::clone(&passed));
        let config = tls.then(server_config);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let (shared, config) = (Arc::clone(&shared), config.clone());
                std::thread::spawn(move || {
                    stream.set_nodelay(true).ok();
                    // A connection that ends in the middle is the client's business.
                    let _ = match config {
                        Some(config) => {
                            let tls = ServerConnection::new(config).unwrap();
                            pass(StreamOwned::new(tls, stream), upstream, &shared)
                        }
                        None => pass(stream, upstream, &shared),
                    };
                });
            }
        });
        Self { address, tls, passed }
    }

    pub fn connections(&self) -> u64 {
        self.passed.connections.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.passed.bytes.load(Ordering::Relaxed)
    }

    /// What passed since the last look.
    pub fn take(&self) -> Vec<Exchange> {
        std::mem::take(&mut *self.passed.exchanges.lock().unwrap())
    }
}

fn server_config() -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = vec![CertificateDer::from_pem_file(certificate("server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(certificate("server.key")).unwrap();
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Arc::new(builder.with_single_cert(chain, key).unwrap())
}

fn pass(client: impl Read + Write, upstream: SocketAddr, passed: &Passed) -> io::Result<()> {
    let server = TcpStream::connect(upstream)?;
    server.set_nodelay(true)?;
    let (mut client, mut server) = (BufReader::new(client), BufReader::new(server));
    while let Some(request) = Message::read(&mut client)? {
        let begun = now();
        let mut bytes = request.write(server.get_mut())?;
        let Some(answer) = Message::read(&mut server)? else { return Ok(()) };
        bytes += answer.write(client.get_mut())?;
        let ended = now();
        passed.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut words = request.first.split(' ').map(str::to_owned);
        let kept = ["X-Auth-Token", "OpenStack-API-Version", "Content-Type", "Accept"];
        let headers = kept
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), header(&request.head, name)?.to_owned())));
        let exchange = Exchange {
            begun,
            ended,
            method: words.next().unwrap_or_default(),
            path: words.next().unwrap_or_default(),
            headers: headers.collect(),
            body: String::from_utf8_lossy(&request.body).into_owned(),
            status: answer.first.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0),
            // A list is long, and nothing is learned from it.
            answer: match answer.body.len() {
                ..=65536 => serde_json::from_slice(&answer.body).unwrap_or(Value::Null),
                _ => Value::Null,
            },
        };
        passed.exchanges.lock().unwrap().push(exchange);
    }
    Ok(())
}
