//! A host under test: the real daemon as a process of its own, with its own socket, state,
//! mountpoint and identity, against an embedded cloud in the test's process.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and starts programs itself"
)]

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cinder_docker_driver::sandbox::faults::{Action, Entry, Rule};
use cinder_docker_driver::sandbox::{Options, Sandbox};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

pub mod container;
pub mod gate;

/// The daemon under test.
pub fn binary() -> PathBuf {
    std::env::var_os("CINDER_DRIVER_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_cinder-docker-driver").into(), PathBuf::from)
}

/// A cloud of its own, gone with the test.
pub struct Cloud {
    pub sandbox: Sandbox,
    dir: TempDir,
}

impl Cloud {
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(dir.path());
        change(&mut options);
        Self { sandbox: Sandbox::start(options).await.unwrap(), dir }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// From now on nothing listens at its address, which is what [`Self::come_back`] needs. What it
    /// has exported stays, as the targets do when the API is down.
    pub async fn go_down(&mut self) -> SocketAddr {
        let address = self.sandbox.address();
        let elsewhere = Options::new(self.dir.path().join("elsewhere"));
        self.sandbox = Sandbox::start(elsewhere).await.unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            assert!(Instant::now() < end, "it still listens");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        address
    }

    /// The same cloud again, with what it had.
    pub async fn come_back(&mut self, address: SocketAddr) {
        let options = Options { listen: address, ..Options::new(self.dir.path()) };
        self.sandbox = Sandbox::start(options).await.unwrap();
    }

    pub fn fail(&self, rule: Rule) {
        self.sandbox.faults().add(rule);
    }

    pub fn fail_once(&self, call: &str, action: Action) {
        self.fail(Rule::on(call, action));
    }

    pub fn clear_faults(&self) {
        self.sandbox.faults().clear();
    }

    /// The calls since the last look, by name.
    pub fn calls(&self) -> Vec<String> {
        self.sandbox.faults().requests().into_iter().map(|entry: Entry| entry.call).collect()
    }

    pub fn forget_calls(&self) {
        self.sandbox.faults().clear_requests();
    }

    /// All volumes as Cinder shows them.
    pub async fn volumes(&self) -> Vec<Value> {
        let answer = self.cinder("GET", "/volumes/detail", Value::Null).await;
        answer["volumes"].as_array().cloned().unwrap_or_else(|| panic!("{answer}"))
    }

    pub async fn volume(&self, name: &str) -> Value {
        let found: Vec<_> =
            self.volumes().await.into_iter().filter(|volume| volume["name"] == name).collect();
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        found[0].clone()
    }

    pub async fn status(&self, name: &str) -> String {
        self.volume(name).await["status"].as_str().unwrap().to_owned()
    }

    /// Makes a volume as `cinder create` does.
    pub async fn create(&self, name: &str, more: Value) -> String {
        let mut volume = json!({ "name": name, "size": 1 });
        merge(&mut volume, more);
        let made = self.cinder("POST", "/volumes", json!({ "volume": volume })).await;
        let id = made["volume"]["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        self.until(name, "available").await;
        id
    }

    pub async fn until(&self, name: &str, status: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while self.status(name).await != status {
            assert!(Instant::now() < end, "{name} is {}, not {status}", self.status(name).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The file behind a volume.
    pub fn image(&self, id: &str) -> PathBuf {
        self.sandbox.volume_file(id.parse().unwrap())
    }

    /// Forces fields of a volume, past Cinder's rules.
    pub fn force(&self, id: &str, fields: Value) {
        let Value::Object(fields) = fields else { panic!("not an object") };
        self.sandbox.force(id.parse().unwrap(), &fields).unwrap();
    }

    /// Cinder has not touched the volume's row for longer than anything in doubt is left alone.
    pub async fn let_ten_minutes_pass(&self, name: &str) {
        let before = std::time::SystemTime::now() - Duration::from_secs(601);
        let before = humantime::format_rfc3339_micros(before).to_string();
        let id = self.volume(name).await["id"].as_str().unwrap().to_owned();
        self.force(&id, json!({ "updated_at": before.trim_end_matches('Z') }));
    }

    /// A call to Cinder v3 as the sandbox's own user.
    pub async fn cinder(&self, method: &str, path: &str, body: Value) -> Value {
        self.cinder_at(method, path, body, "3.44").await
    }

    pub async fn cinder_at(&self, method: &str, path: &str, body: Value, version: &str) -> Value {
        let config = self.sandbox.config();
        let text = |key: &str| config[key].as_str().unwrap().to_owned();
        let auth = json!({ "auth": {
            "identity": { "methods": ["password"], "password": { "user": {
                "name": text("Username"), "domain": { "id": "default" },
                "password": text("Password") } } },
            "scope": { "project": { "id": text("TenantID") } } } });
        let (head, answer) = self.exchange("POST", "/v3/auth/tokens", Some(auth), &[]).await;
        let token = head
            .lines()
            .find_map(|line| {
                line.to_lowercase()
                    .starts_with("x-subject-token:")
                    .then(|| line[16..].trim().to_owned())
            })
            .unwrap_or_else(|| panic!("no token: {head}"));
        let url = answer["token"]["catalog"]
            .as_array()
            .unwrap()
            .iter()
            .find(|service| service["type"] == "volumev3")
            .unwrap()["endpoints"][0]["url"]
            .as_str()
            .unwrap()
            .to_owned();
        let base = url.splitn(4, '/').nth(3).unwrap().to_owned();
        let version = format!("volume {version}");
        let headers = [("X-Auth-Token", token.as_str()), ("OpenStack-API-Version", &version)];
        let body = (!body.is_null()).then_some(body);
        self.exchange(method, &format!("/{base}{path}"), body, &headers).await.1
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> (String, Value) {
        let stream = tokio::net::TcpStream::connect(self.sandbox.address()).await.unwrap();
        let (head, body) = exchange(stream, method, path, body, headers).await.unwrap();
        (head, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // Loop devices outlive their sandbox on purpose; not those of a test.
        for device in loops_of(self.dir.path()) {
            Command::new("losetup").arg("-d").arg(device).status().ok();
        }
    }
}

/// Loop devices whose file is below `dir`.
pub fn loops_of(dir: &Path) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir("/sys/block") else { return Vec::new() };
    found
        .flatten()
        .filter(|entry| {
            fs::read_to_string(entry.path().join("loop/backing_file"))
                .is_ok_and(|file| file.starts_with(&dir.display().to_string()))
        })
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .collect()
}

/// A host: the daemon and everything that is its own.
pub struct Node {
    pub dir: Arc<TempDir>,
    pub socket: PathBuf,
    config: Map<String, Value>,
    environment: Vec<(&'static str, PathBuf)>,
    below: Vec<OsString>,
    arguments: Vec<OsString>,
    daemon: Option<Child>,
    /// The longest that a call was waited for, in milliseconds.
    longest: AtomicU64,
}

/// How long dockerd waits for an answer; nothing is repeated after that.
fn patience_of_docker(path: &str) -> Duration {
    let long = ["/VolumeDriver.Create", "/VolumeDriver.Mount"].contains(&path)
        || path.starts_with("/Operator.");
    Duration::from_secs(if long { 120 } else { 60 })
}

impl Node {
    pub async fn start(cloud: &Cloud) -> Self {
        Self::start_with(cloud, json!({})).await
    }

    /// `more` = further keys of its config file; null takes one out.
    pub async fn start_with(cloud: &Cloud, more: Value) -> Self {
        let mut node = Self::prepare(cloud.sandbox.config(), more);
        node.run().await;
        node
    }

    pub fn prepare(cloud: Map<String, Value>, more: Value) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut config = Value::Object(cloud);
        let name = dir.path().file_name().unwrap().to_string_lossy().replace('.', "");
        merge(
            &mut config,
            json!({
                "MountPoint": dir.path().join("mount"),
                "StateDir": dir.path().join("state"),
                "ConnectorHost": format!("host-{name}"),
                "WaitForRelease": 1,
            }),
        );
        merge(&mut config, more);
        let Value::Object(config) = config else { unreachable!() };
        let socket = dir.path().join("cinder.sock");
        Self {
            dir,
            socket,
            config,
            environment: Vec::new(),
            below: Vec::new(),
            arguments: Vec::new(),
            daemon: None,
            longest: AtomicU64::new(0),
        }
    }

    /// Starts the daemon and waits until it answers.
    pub async fn run(&mut self) {
        self.spawn();
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok((200, _)) = self.try_call("/Plugin.Activate", "").await {
                return;
            }
            let ended = self.daemon.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none() && Instant::now() < end, "no daemon: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn write_config(&self) {
        let path = self.config_path();
        let text = serde_json::to_string(&self.config).unwrap();
        fs::write(&path, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&path, mode).unwrap();
    }

    pub fn spawn(&mut self) {
        self.write_config();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut words = self.below.clone();
        words.push(binary().into());
        let child = Command::new(&words[0])
            .args(&words[1..])
            .arg("--config")
            .arg(self.config_path())
            .arg("--socket")
            .arg(&self.socket)
            .arg("--debug")
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/nowhere")
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(child);
    }

    pub fn set(&mut self, key: &str, value: Value) {
        self.config.insert(key.to_owned(), value);
    }

    /// For the daemons that are started from now on.
    pub fn set_variable(&mut self, name: &'static str, value: &Path) {
        self.environment.push((name, value.to_owned()));
    }

    /// The daemon runs below this program: its words, up to the daemon's own.
    pub fn run_below(&mut self, words: Vec<OsString>) {
        self.below = words;
    }

    /// For the daemons that are started from now on.
    pub fn add_argument(&mut self, argument: &str) {
        self.arguments.push(argument.into());
    }

    /// Whether the daemon has ended; it is no child any more then.
    pub fn has_ended(&mut self) -> bool {
        let ended = self.daemon.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
        if ended {
            self.daemon = None;
        }
        ended
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("config.json")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    pub fn mount_point(&self) -> PathBuf {
        self.config["MountPoint"].as_str().unwrap().into()
    }

    pub fn state_dir(&self) -> PathBuf {
        self.config["StateDir"].as_str().unwrap().into()
    }

    /// As [`has_untold`].
    pub fn has_untold(&self) -> bool {
        has_untold(&self.state_dir())
    }

    /// Waits until it has noted which of its answers arrived.
    pub async fn until_told(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.has_untold() {
            assert!(Instant::now() < end, "a reference stays untold: {}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// `kill -9`, once it has noted which of its answers arrived: that takes a moment.
    pub fn kill(&mut self) {
        let end = Instant::now() + Duration::from_millis(500);
        while self.has_untold() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        if let Some(mut child) = self.daemon.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// SIGTERM; whether it ended with 0.
    pub fn stop(&mut self) -> bool {
        let Some(mut child) = self.daemon.take() else { return false };
        Command::new("kill").arg(child.id().to_string()).status().unwrap();
        child.wait().unwrap().success()
    }

    /// Asserts that the answer comes, or the connection ends, before Docker gives up.
    pub async fn try_call(&self, path: &str, body: &str) -> std::io::Result<(u16, Value)> {
        let begun = Instant::now();
        let answer = call_at(&self.socket, path, body).await;
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap();
        self.longest.fetch_max(milliseconds, Ordering::Relaxed);
        answer.unwrap_or_else(|| panic!("Docker has given up {path} {body}: {}", self.log()))
    }

    /// The longest that a call was waited for.
    pub fn longest_answer(&self) -> Duration {
        Duration::from_millis(self.longest.load(Ordering::Relaxed))
    }

    /// One call of Docker's protocol; `Ok` = the answer, `Err` = its `Err`.
    pub async fn call(&self, call: &str, body: Value) -> Result<Value, String> {
        let path = format!("/VolumeDriver.{call}");
        let (status, answer) = self
            .try_call(&path, &body.to_string())
            .await
            .unwrap_or_else(|error| panic!("{call}: {error}\n{}", self.log()));
        let error = answer["Err"].as_str().unwrap_or_default().to_owned();
        if status == 200 {
            assert_eq!(error, "", "an error with status 200");
            return Ok(answer);
        }
        assert!(status >= 400 && !error.is_empty(), "{call}: {status} {answer}");
        Err(error)
    }

    pub async fn create(&self, name: &str, opts: Value) -> Result<(), String> {
        self.call("Create", json!({ "Name": name, "Opts": opts })).await.map(drop)
    }

    pub async fn mount(&self, name: &str, id: &str) -> Result<PathBuf, String> {
        let answer = self.call("Mount", json!({ "Name": name, "ID": id })).await?;
        let path = answer["Mountpoint"].as_str().unwrap_or_default();
        assert!(!path.is_empty(), "a Mount without a mountpoint: {answer}");
        Ok(path.into())
    }

    pub async fn unmount(&self, name: &str, id: &str) -> Result<(), String> {
        self.call("Unmount", json!({ "Name": name, "ID": id })).await.map(drop)
    }

    pub async fn remove(&self, name: &str) -> Result<(), String> {
        self.call("Remove", json!({ "Name": name })).await.map(drop)
    }

    pub async fn get(&self, name: &str) -> Result<Value, String> {
        Ok(self.call("Get", json!({ "Name": name })).await?["Volume"].clone())
    }

    pub async fn list(&self) -> Result<Vec<String>, String> {
        let answer = self.call("List", json!({})).await?;
        let mut names: Vec<String> = answer["Volumes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|volume| volume["Name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        Ok(names)
    }

    /// What is mounted below this host's mountpoint.
    pub fn mounts(&self) -> Vec<String> {
        mounts_below(&self.mount_point())
    }

    /// Journal entries that say something may have to be undone.
    pub fn liabilities(&self) -> Vec<String> {
        let output = Command::new(binary())
            .args([
                "--config".as_ref(),
                self.config_path().as_os_str(),
                "status".as_ref(),
                "--json".as_ref(),
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        rows.iter().map(ToString::to_string).collect()
    }

    /// Runs the binary with this host's config and socket.
    pub async fn cli(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.arg("--config").arg(self.config_path()).arg("--socket").arg(&self.socket);
        command.args(args).stdin(Stdio::null());
        // The cloud that it asks may run on this very thread.
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Waits until nothing is held here any more.
    pub async fn until_clean(&self) {
        // Cinder may take 90 s for a call, and what failed is tried again after a pause.
        let end = Instant::now() + Duration::from_secs(150);
        while !(self.mounts().is_empty() && self.liabilities().is_empty()) {
            let (mounts, liabilities) = (self.mounts(), self.liabilities());
            assert!(Instant::now() < end, "{mounts:?} {liabilities:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asserts that nothing is left over: no mount, no loop device, no directory, no journal; and
    /// that the daemon has not panicked.
    pub fn assert_clean(&self, cloud: &Cloud) {
        assert_eq!(self.log().lines().find(|line| line.contains("panicked")), None);
        assert_eq!(self.mounts(), Vec::<String>::new(), "{}", self.log());
        assert_eq!(loops_of(cloud.dir()), Vec::<PathBuf>::new(), "{}", self.log());
        assert_eq!(self.liabilities(), Vec::<String>::new());
        let left: Vec<_> = match fs::read_dir(self.mount_point()) {
            Ok(found) => found.flatten().map(|entry| entry.path()).collect(),
            Err(_) => Vec::new(),
        };
        assert_eq!(left, Vec::<PathBuf>::new());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        for mount in self.mounts() {
            Command::new("umount").arg(mount).status().ok();
        }
    }
}

pub fn mounts_below(dir: &Path) -> Vec<String> {
    let dir = format!("{}/", dir.display());
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|at| at.starts_with(&dir))
        .map(str::to_owned)
        .collect()
}

/// Whether the daemon with this state has yet to note that an engine got its answer.
pub fn has_untold(state_dir: &Path) -> bool {
    let untold = |file: fs::DirEntry| {
        fs::read_to_string(file.path()).is_ok_and(|entry| entry.contains("\"untold\""))
    };
    let entries = fs::read_dir(state_dir.join("volumes"));
    entries.is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(untold)))
}

/// A shell command that must succeed; its output.
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a daemon answers at its socket; `None` = nothing before Docker gives up.
pub async fn call_at(
    socket: &Path,
    path: &str,
    body: &str,
) -> Option<std::io::Result<(u16, Value)>> {
    let exchange = async {
        let stream = UnixStream::connect(socket).await?;
        let (head, answer) = exchange_raw(stream, "POST", path, body.as_bytes(), &[]).await?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok((status, serde_json::from_slice(&answer).unwrap_or(Value::Null)))
    };
    tokio::time::timeout(patience_of_docker(path), exchange).await.ok()
}

/// A client that asks and does not wait for the answer; it hangs up when dropped.
#[must_use]
pub fn ask(socket: &Path, call: &str, body: &Value) -> StdUnixStream {
    use std::io::Write;
    let mut stream = StdUnixStream::connect(socket).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST /VolumeDriver.{call} HTTP/1.1\r\nHost:\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}

fn merge(into: &mut Value, more: Value) {
    let (Value::Object(into), Value::Object(more)) = (into, more) else { return };
    for (key, value) in more {
        if value.is_null() {
            into.remove(&key);
        } else {
            into.insert(key, value);
        }
    }
}

async fn exchange<S: AsyncReadExt + AsyncWriteExt + Unpin>(
    stream: S,
    method: &str,
    path: &str,
    body: Option<Value>,
    headers: &[(&str, &str)],
) -> std::io::Result<(String, Vec<u8>)> {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    exchange_raw(stream, method, path, body.as_bytes(), headers).await
}

/// One HTTP exchange, byte for byte as dockerd sends it: an empty Host, no Content-Type.
async fn exchange_raw<S: AsyncReadExt + AsyncWriteExt + Unpin>(
    mut stream: S,
    method: &str,
    path: &str,
    body: &[u8],
    headers: &[(&str, &str)],
) -> std::io::Result<(String, Vec<u8>)> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost:\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let body = answer[end + 4..].to_vec();
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    Ok((head, if chunked { unchunk(&body)? } else { body }))
}

fn unchunk(mut body: &[u8]) -> std::io::Result<Vec<u8>> {
    let cut = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|w| w == b"\r\n").ok_or_else(cut)?;
        let size = std::str::from_utf8(&body[..end])
            .ok()
            .and_then(|text| usize::from_str_radix(text, 16).ok())
            .ok_or_else(cut)?;
        if size == 0 {
            return Ok(whole);
        }
        whole.extend_from_slice(body.get(end + 2..end + 2 + size).ok_or_else(cut)?);
        body = body.get(end + 2 + size + 2..).ok_or_else(cut)?;
    }
}
