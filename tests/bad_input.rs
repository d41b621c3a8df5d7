//! Bad input from every side: engines, people, config files, Keystone, Cinder. Each gets an error
//! that can be read, and afterwards Cinder, the mounts, the loop devices and the state directory
//! are what they were before.
//!
//! The corpus is `tests/fixtures/bad-input/*.json`; raw requests are in a table here. In a fixture
//! `LONG 300` stands for 300 letters, `NESTED 9` for 9 opening brackets, and a word in capitals
//! (`VOLUME`, `OTHER`, …) for what the test puts there.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and starts the daemon and the tools that it needs"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cinder_docker_driver::sandbox::faults::{Action, Canned, Rule};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use serde_json::{Map, Value, json};
use support::{Cloud, Node, binary, loops_of, sh};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};

/// As long as an error may be and still be read in a terminal.
const READABLE: usize = 600;
/// What fixtures put where secrets are.
const SECRETS: [&str; 3] = ["hunter2", "geheim", "sandbox-token"];

/// Everything that bad input must leave alone.
#[derive(Debug, PartialEq)]
struct World {
    volumes: Vec<Value>,
    attachments: Value,
    mounts: Vec<String>,
    loops: Vec<PathBuf>,
    state: BTreeMap<PathBuf, Value>,
}

impl World {
    async fn of(cloud: &Cloud, node: &Node) -> Self {
        let attachments = cloud.cinder("GET", "/attachments/detail", Value::Null).await;
        assert!(attachments["attachments"].is_array(), "{attachments}");
        let mut state = BTreeMap::new();
        collect(&node.state_dir(), &mut state);
        Self {
            volumes: cloud.volumes().await,
            attachments,
            mounts: node.mounts(),
            loops: loops_of(cloud.dir()),
            state,
        }
    }

    /// Without what a reservation that was given back leaves: Cinder's time of the last change and
    /// the connector that other hosts would need; in the journal the last error, the boot, the UUID of
    /// an mkfs that was not begun, and a reserve that was not answered and may still happen. `formatted` = volumes that may have been formatted.
    fn settled(mut self, formatted: &[&str]) -> Self {
        for volume in &mut self.volumes {
            volume["updated_at"] = Value::Null;
            let metadata = volume["metadata"].as_object_mut().unwrap();
            metadata.remove("docker.connector");
            if formatted.iter().any(|name| volume["name"] == *name) {
                volume["metadata"]["docker.format"] = Value::Null;
            }
        }
        for entry in self.state.values_mut().filter(|entry| entry.is_object()) {
            for key in ["last_error", "boot_id", "formatting", "unanswered"] {
                entry[key] = Value::Null;
            }
            // What Cinder last said of it.
            for key in ["size", "options"] {
                entry["facts"][key] = Value::Null;
            }
        }
        self
    }
}

/// The files below a directory; JSON as such.
fn collect(dir: &Path, files: &mut BTreeMap<PathBuf, Value>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            files.insert(entry.path(), Value::Null);
            collect(&entry.path(), files);
        } else {
            let text = fs::read_to_string(entry.path()).unwrap();
            let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
            files.insert(entry.path(), value);
        }
    }
}

#[track_caller]
fn assert_same(before: &World, after: &World) {
    for (before, after) in before.volumes.iter().zip(&after.volumes) {
        assert_eq!(before, after, "a volume in Cinder");
    }
    assert_eq!(before.volumes.len(), after.volumes.len(), "volumes in Cinder");
    assert_eq!(before.attachments, after.attachments, "attachments in Cinder");
    assert_eq!(before.mounts, after.mounts, "mounts");
    assert_eq!(before.loops, after.loops, "loop devices");
    for (path, content) in &before.state {
        assert_eq!(Some(content), after.state.get(path), "{}", path.display());
    }
    assert_eq!(before.state.len(), after.state.len(), "files in the state directory");
}

/// What is wrong with an error: it must be one line that a person can read, and say this.
fn fault_of(error: &str, says: &str) -> Option<&'static str> {
    if error.trim().is_empty() {
        return Some("empty");
    }
    if error.chars().any(char::is_control) {
        return Some("has control characters");
    }
    if error.chars().count() > READABLE {
        return Some("too long");
    }
    if SECRETS.iter().any(|secret| error.contains(secret)) {
        return Some("tells a secret");
    }
    (!error.contains(says)).then_some("does not say what it should")
}

/// The cases of a table that went wrong: all of them are told at once.
#[derive(Default)]
struct Faults(std::sync::Mutex<Vec<String>>);

impl Faults {
    fn add(&self, case: &str, fault: &str, found: &str) {
        let found: String = found.chars().take(300).collect();
        self.0.lock().unwrap().push(format!("{case}: {fault}: {found:?}"));
    }

    /// Judges the error of a case.
    fn judge(&self, case: &str, error: &str, says: &str) {
        if let Some(fault) = fault_of(error, says) {
            self.add(case, &format!("{fault} ({says:?})"), error);
        }
    }

    /// As [`Self::judge`]; success is a fault too.
    fn judge_result<T>(&self, case: &str, result: Result<T, String>, says: &[&str]) {
        match result {
            Ok(_) => self.add(case, "succeeded", ""),
            Err(error) => says.iter().for_each(|says| self.judge(case, &error, says)),
        }
    }

    #[track_caller]
    fn assert_none(&self) {
        let faults = self.0.lock().unwrap();
        assert!(faults.is_empty(), "{} cases went wrong:\n{}", faults.len(), faults.join("\n"));
    }
}

fn fixture(name: &str) -> Vec<Value> {
    let path = format!("{}/tests/fixtures/bad-input/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Puts in what the words in capitals stand for.
fn expand(text: &str, words: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (mark, unit) in [("LONG ", "x"), ("NESTED ", "[")] {
        while let Some(at) = text.find(mark) {
            let rest = &text[at + mark.len()..];
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let count: usize = rest[..digits].parse().unwrap();
            text.replace_range(at..at + mark.len() + digits, &unit.repeat(count));
        }
    }
    for (word, value) in words {
        text = text.replace(word, value);
    }
    text
}

// ---- Requests.

/// A request whose length is right.
fn post(path: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost:\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Status and body; 0 = the connection was closed without an answer. A client that says no more
/// has hung up, as the server sees it.
async fn send(socket: &Path, request: &[u8], hangs_up: bool) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // The server may answer and close before it has read all of it.
    stream.write_all(request).await.ok();
    if hangs_up {
        stream.shutdown().await.ok();
    }
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
    // Neither an answer nor an end is a failure; a connection that breaks is neither.
    read.await.unwrap().ok();
    let text = String::from_utf8(answer).unwrap();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

const VOLUME_CALLS: [&str; 10] = [
    "/VolumeDriver.Create",
    "/VolumeDriver.Remove",
    "/VolumeDriver.Mount",
    "/VolumeDriver.Unmount",
    "/VolumeDriver.Path",
    "/VolumeDriver.Get",
    "/Operator.Release",
    "/Operator.Format",
    "/Operator.AcceptUuid",
    "/Operator.ProveFailover",
];

/// Bodies that say no volume, for every call about one.
fn bad_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        ("nothing", text("")),
        ("blanks", text(" \r\n\t ")),
        ("null", text("null")),
        ("a list", text("[]")),
        ("a list of requests", text(r#"[{"Name":"kept"}]"#)),
        ("a text", text(r#""kept""#)),
        ("a number", text("7")),
        ("a form", text("Name=kept")),
        ("cut off", text(r#"{"Name":"kept""#)),
        ("cut off in the name", text(r#"{"Name":"kep"#)),
        ("two objects", text(r#"{"Name":"kept"}{"Name":"kept"}"#)),
        ("more after the end", text(r#"{"Name":"kept"} and more"#)),
        ("single quotes", text("{'Name':'kept'}")),
        ("a comma too many", text(r#"{"Name":"kept",}"#)),
        ("a comment", text(r#"{"Name":"kept" /* mine */}"#)),
        ("no name", text("{}")),
        ("other members only", text(r#"{"Volume":"kept","ID":"c"}"#)),
        ("an empty name", text(r#"{"Name":""}"#)),
        ("a name that is null", text(r#"{"Name":null}"#)),
        ("a name that is a number", text(r#"{"Name":7}"#)),
        ("a name that is a list", text(r#"{"Name":["kept"]}"#)),
        ("a name that is an object", text(r#"{"Name":{"Name":"kept"}}"#)),
        ("a name that is a flag", text(r#"{"Name":true}"#)),
        ("two names", text(r#"{"Name":"kept","Name":"other"}"#)),
        ("a raw NUL in the name", b"{\"Name\":\"ke\0pt\"}".to_vec()),
        ("a raw newline in the name", b"{\"Name\":\"ke\npt\"}".to_vec()),
        ("bytes that are no UTF-8", b"{\"Name\":\"ke\xff\xfept\"}".to_vec()),
        ("UTF-8 cut off", b"{\"Name\":\"ke\xe2\x82\"}".to_vec()),
        ("half a surrogate pair", text(r#"{"Name":"ke\ud800pt"}"#)),
        ("UTF-16", b"\xff\xfe{\0\"\0N\0".to_vec()),
        ("a byte order mark", b"\xef\xbb\xbf{\"Name\":\"kept\"}".to_vec()),
        ("a number without end", text(r#"{"Name":"kept","x":1e999999}"#)),
        ("deep nesting", text(&"[".repeat(50_000))),
        ("deep nesting in a member", text(&format!(r#"{{"Name":"kept","x":{}"#, "[".repeat(9000)))),
        ("deep objects", text(&r#"{"Name":"#.repeat(5000))),
    ]
}

#[tokio::test]
async fn malformed_requests_are_refused_and_change_nothing() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("kept", json!({})).await.unwrap();
    let before = World::of(&cloud, &node).await;

    let mut requests: Vec<(String, u16, Vec<u8>)> = Vec::new();
    for call in VOLUME_CALLS {
        for (case, body) in bad_bodies() {
            requests.push((format!("{call}: {case}"), 400, post(call, body)));
        }
        let large = format!(r#"{{"Name":"kept","x":"{}"}}"#, "x".repeat(64 * 1024));
        requests.push((format!("{call}: too large"), 413, post(call, large)));
        let chunk = format!("10001\r\n{}\r\n0\r\n\r\n", "x".repeat(0x10001));
        let head = format!(
            "POST {call} HTTP/1.1\r\nHost:\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        requests.push((format!("{call}: a large chunk"), 413, format!("{head}{chunk}").into()));
        for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
            let request = format!("{method} {call} HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n");
            requests.push((format!("{method} {call}"), 405, request.into()));
        }
    }
    for (case, call, body) in [
        ("options in a list", "Create", r#"{"Name":"new","Opts":["size=1"]}"#),
        ("options as text", "Create", r#"{"Name":"new","Opts":"size=1"}"#),
        ("options as a number", "Create", r#"{"Name":"new","Opts":1}"#),
        ("one option twice", "Create", r#"{"Name":"new","Opts":{"size":"1","size":"2"}}"#),
        ("options twice", "Create", r#"{"Name":"new","Opts":{},"Opts":{"size":"2"}}"#),
        ("an option in an option", "Create", r#"{"Name":"new","Opts":{"size":{"size":"1"}}}"#),
        ("an id that is a number", "Mount", r#"{"Name":"kept","ID":7}"#),
        ("an id that is an object", "Mount", r#"{"Name":"kept","ID":{}}"#),
        ("two ids", "Mount", r#"{"Name":"kept","ID":"a","ID":"b"}"#),
        ("an id that is a list", "Unmount", r#"{"Name":"kept","ID":["c"]}"#),
    ] {
        let request = post(&format!("/VolumeDriver.{call}"), body);
        requests.push((format!("{call}: {case}"), 400, request));
    }
    for path in [
        "/",
        "//VolumeDriver.Get",
        "/VolumeDriver.Get/",
        "/VolumeDriver.Get?Name=kept/x",
        "/volumedriver.get",
        "/VolumeDriver.Destroy",
        "/VolumeDriver.",
        "/Plugin.Deactivate",
        "/../etc/passwd",
        "/%2e%2e/etc/passwd",
        "/NetworkDriver.CreateNetwork",
        &format!("/{}", "x".repeat(5000)),
    ] {
        let status = if path.starts_with("/VolumeDriver.Get?") { 400 } else { 404 };
        requests.push((path.chars().take(40).collect(), status, post(path, "{}")));
    }
    let faults = Faults::default();
    for (case, status, request) in requests {
        let (got, body) = send(&node.socket, &request, false).await;
        if got != status {
            faults.add(&case, &format!("{got}, not {status}"), &body);
        }
        let answer: Value = serde_json::from_str(&body).unwrap_or_default();
        faults.judge(&case, answer["Err"].as_str().unwrap_or_default(), "");
    }
    faults.assert_none();
    assert_same(&before, &World::of(&cloud, &node).await);
}

#[tokio::test]
async fn what_is_not_http_is_dropped_and_harms_nobody() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("kept", json!({})).await.unwrap();
    let before = World::of(&cloud, &node).await;
    let head = |more: &str| format!("POST /VolumeDriver.Remove HTTP/1.1\r\nHost:\r\n{more}\r\n");
    let kept = r#"{"Name":"kept"}"#;
    let many: String = (0..5000).map(|n| format!("X-{n}: y\r\n")).collect();
    for (case, request) in [
        ("no HTTP", b"hello there\r\n\r\n".to_vec()),
        ("only line ends", b"\r\n\r\n\r\n\r\n".to_vec()),
        ("NULs", vec![0; 4096]),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("another version", b"POST /VolumeDriver.Remove HTTP/7.7\r\n\r\n".to_vec()),
        ("a request line without end", vec![b'A'; 1 << 20]),
        ("a header line without end", head(&format!("X: {}", "y".repeat(1 << 20))).into()),
        ("headers without end", head(&many).into()),
        ("a header without a colon", head("nonsense\r\n").into()),
        ("a header cut off", b"POST /VolumeDriver.Remove HTTP/1.1\r\nHos".to_vec()),
        ("a body cut off", (head("Content-Length: 100\r\n") + kept).into()),
        ("a negative length", (head("Content-Length: -1\r\n") + kept).into()),
        ("a length in words", (head("Content-Length: many\r\n") + kept).into()),
        (
            "a length beyond 64 bits",
            (head("Content-Length: 99999999999999999999\r\n") + kept).into(),
        ),
        ("two lengths", (head("Content-Length: 15\r\nContent-Length: 3\r\n") + kept).into()),
        ("a chunk that is none", head("Transfer-Encoding: chunked\r\n").into_bytes()),
        ("a chunk size that is none", (head("Transfer-Encoding: chunked\r\n") + "zz\r\n").into()),
        ("an unknown encoding", (head("Transfer-Encoding: gzip\r\n") + kept).into()),
        ("an empty call cut off", b"POST /VolumeDriver.Create HTTP/1.1\r\n".to_vec()),
    ] {
        let (status, _) = send(&node.socket, &request, true).await;
        assert!(status == 0 || status >= 400, "{case}: {status}");
    }
    assert_eq!(node.try_call("/Plugin.Activate", "").await.unwrap().0, 200);
    assert_same(&before, &World::of(&cloud, &node).await);
}

// ---- Names.

#[tokio::test]
async fn names_that_docker_must_not_say_are_refused_by_every_call() {
    let cloud = Cloud::start().await;
    let node = Node::start_with(&cloud, json!({ "ListAll": true })).await;
    node.create("kept", json!({})).await.unwrap();
    // Cinder takes any name; Docker's users must not reach such volumes by it.
    for name in ["../../etc", "a b", "kept\n", "KEPT"] {
        cloud.create(name, json!({})).await;
    }
    let before = World::of(&cloud, &node).await;
    let faults = Faults::default();
    for name in fixture("names") {
        let name = expand(name.as_str().unwrap(), &[]);
        for call in VOLUME_CALLS {
            let body = json!({ "Name": name, "ID": "c" }).to_string();
            let (status, answer) = node.try_call(call, &body).await.unwrap();
            let case = format!("{call} {:?}", name.chars().take(40).collect::<String>());
            if status != 400 {
                faults.add(&case, "another status", &answer.to_string());
            }
            faults.judge(&case, answer["Err"].as_str().unwrap_or_default(), "name");
        }
    }
    faults.assert_none();
    assert_eq!(node.list().await.unwrap(), ["KEPT", "kept"]);
    assert_same(&before, &World::of(&cloud, &node).await);
    assert_eq!(fs::read_dir(node.mount_point()).map_or(0, Iterator::count), 0);
}

// ---- Options.

#[tokio::test]
async fn options_that_make_no_sense_create_nothing() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let before = World::of(&cloud, &node).await;
    let faults = Faults::default();
    for case in fixture("options") {
        let opts = expand(&case["opts"].to_string(), &[]);
        let body = format!(r#"{{"Name":"new","Opts":{opts}}}"#);
        let (status, answer) = node.try_call("/VolumeDriver.Create", &body).await.unwrap();
        let shown = case["opts"].to_string();
        if status < 400 {
            faults.add(&shown, "succeeded", &answer.to_string());
        }
        let says = case["says"].as_str().unwrap();
        faults.judge(&shown, answer["Err"].as_str().unwrap_or_default(), says);
    }
    faults.assert_none();
    assert_same(&before, &World::of(&cloud, &node).await);
}

// ---- Config files.

#[test]
fn a_config_that_cannot_be_used_ends_the_start_and_leaves_nothing() {
    let faults = Faults::default();
    for case in fixture("config") {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        fs::write(&config, config_text(&case, dir.path())).unwrap();
        fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let (code, told) = start_with(&config, &dir.path().join("cinder.sock"));
        let name = case["case"].as_str().unwrap();
        if code != Some(1) {
            faults.add(name, &format!("ended with {code:?}"), &told);
        }
        // One line a problem.
        told.lines().for_each(|line| faults.judge(name, line, ""));
        for says in case["says"].as_array().unwrap().iter().filter_map(Value::as_str) {
            if !told.contains(says) {
                faults.add(name, &format!("does not say {says:?}"), &told);
            }
        }
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        if left != ["config.json"] {
            faults.add(name, "left something", &format!("{left:?}"));
        }
    }
    faults.assert_none();
}

/// Starts the daemon, which must end by itself: its exit code and what it said.
fn start_with(config: &Path, socket: &Path) -> (Option<i32>, String) {
    let child = Command::new("timeout")
        .arg("20")
        .arg(binary())
        .arg("--config")
        .arg(config)
        .arg("--socket")
        .arg(socket)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(child.stdout.is_empty());
    (child.status.code(), String::from_utf8(child.stderr).unwrap())
}

/// A config that would do, changed as the case says; or what the case has instead.
fn config_text(case: &Value, dir: &Path) -> Vec<u8> {
    if let Some(raw) = case["raw"].as_str() {
        return match raw.strip_prefix("BYTES ") {
            Some(bytes) => {
                bytes.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
            }
            None => expand(raw, &[]).into_bytes(),
        };
    }
    let mut config = json!({
        "Endpoint": "http://127.0.0.1:9/v3", "Username": "u", "Password": "hunter2",
        "TenantID": "83808667817e4102", "MountPoint": dir.join("mount"),
        "StateDir": dir.join("state"),
    });
    for (key, value) in case["set"].as_object().unwrap() {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
            value => config[key] = value.clone(),
        }
    }
    config.to_string().into_bytes()
}

#[test]
fn a_config_that_is_no_file_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = dir.path().join("cinder.sock");
    for path in [dir.path(), &pipe, Path::new("/dev/zero"), &dir.path().join("missing")] {
        let (code, told) = start_with(path, &socket);
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains(path.to_str().unwrap()), "{told}");
        assert!(!socket.exists());
    }
}

// ---- Keystone.

/// An answer to every request, as a whole: status line, headers and body.
type Answerer = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// A server on a port of its own, for answers that the sandbox would never give.
struct Toy {
    address: String,
    requests: Arc<AtomicUsize>,
}

impl Toy {
    /// `answer` gets the request, head and body.
    async fn start(answer: Answerer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !is_complete(&request) {
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    counted.fetch_add(1, Ordering::Relaxed);
                    let answer = answer(&String::from_utf8_lossy(&request));
                    stream.write_all(answer.as_bytes()).await.ok();
                });
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

fn is_complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    body.len() >= length.unwrap_or(0)
}

fn http_answer(status: u16, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// What the Keystone of a case answers; everything else is an endless 401.
fn keystone_answer(case: &Value, request: &str, address: &str) -> String {
    if !request.starts_with("POST /v3/auth/tokens ") {
        return http_answer(401, "", "");
    }
    let status = u16::try_from(case["status"].as_u64().unwrap()).unwrap();
    let mut headers = String::new();
    if let Some(location) = case["location"].as_str() {
        headers += &format!("Location: {location}\r\n");
    }
    if case["no_token"].is_null() {
        let token = case["token"].as_str().unwrap_or("sandbox-token");
        headers += &format!("X-Subject-Token: {token}\r\n");
    }
    let body = match (&case["body"], &case["json"]) {
        (Value::String(body), _) => body.clone(),
        (_, Value::Null) => token_body(case, address).to_string(),
        (_, body) => body.to_string(),
    };
    let sent = request.split_once("\r\n\r\n").unwrap().1;
    let sent = Value::String(sent.to_owned()).to_string();
    http_answer(status, &headers, &expand(&body, &[("ECHO", sent.trim_matches('"'))]))
}

fn token_body(case: &Value, address: &str) -> Value {
    let catalog = match case.get("catalog") {
        Some(catalog) => catalog.clone(),
        None => json!([{ "type": "volumev3", "endpoints": [{
            "interface": "public", "region": "RegionOne", "url": format!("http://{address}/v3") }] }]),
    };
    let mut token = json!({
        "methods": ["password"],
        "expires_at": case["expires"].as_str().unwrap_or("2099-01-01T00:00:00.000000Z"),
        "project": { "id": case["project"].as_str().unwrap_or("p") },
        "roles": [{ "name": "member" }],
        "catalog": catalog,
    });
    if let Some(key) = case["without"].as_str() {
        token.as_object_mut().unwrap().remove(key);
    }
    json!({ "token": token })
}

#[tokio::test]
async fn a_keystone_that_makes_no_sense_is_an_error_that_says_so() {
    let faults = &Faults::default();
    let checks = fixture("keystone").into_iter().map(|case| async move {
        let name = case["case"].as_str().unwrap().to_owned();
        let says = case["says"].as_str().unwrap().to_owned();
        let own = Arc::new(std::sync::OnceLock::<String>::new());
        let known = Arc::clone(&own);
        let toy = Toy::start(Arc::new(move |request| {
            keystone_answer(&case, request, known.get().map_or("", String::as_str))
        }))
        .await;
        own.set(toy.address.clone()).unwrap();
        let config = json!({ "Endpoint": format!("http://{}/v3", toy.address), "Username": "u",
            "Password": "hunter2", "TenantID": "p" });
        let Value::Object(config) = config else { unreachable!() };
        let mut node = Node::prepare(config, json!({}));
        node.run().await;
        let mut state = BTreeMap::new();
        collect(&node.state_dir(), &mut state);
        for call in ["Get", "Create", "Mount"] {
            let result = node.call(call, json!({ "Name": "vol-1", "ID": "c" })).await;
            faults.judge_result(&format!("{name}, {call}"), result, &[&says, "vol-1"]);
        }
        let result = node.call("List", json!({})).await;
        faults.judge_result(&format!("{name}, List"), result, &[&says]);
        if toy.requests() >= 60 {
            faults.add(&name, "asked without end", &toy.requests().to_string());
        }
        let mut after = BTreeMap::new();
        collect(&node.state_dir(), &mut after);
        assert_eq!(state, after, "{name}");
        assert_eq!(node.mounts(), Vec::<String>::new(), "{name}");
        for secret in SECRETS {
            assert!(!node.log().contains(secret), "{name}: a secret in: {}", node.log());
        }
    });
    stream::iter(checks).buffer_unordered(8).collect::<Vec<_>>().await;
    faults.assert_none();
}

// ---- Cinder.

/// Devices that Cinder must not hand us.
struct Decoys {
    dir: tempfile::TempDir,
    mounted: String,
    small: String,
}

impl Decoys {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let device = |name: &str, size: &str| {
            sh(&format!("truncate -s {size} {at}/{name} && losetup -f --show {at}/{name}"))
                .trim()
                .to_owned()
        };
        let mounted = device("mounted", "32M");
        sh(&format!(
            "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 {mounted} && mkdir {at}/m && mount -o ro {mounted} {at}/m"
        ));
        let small = device("small", "16M");
        Self { mounted, small, dir }
    }

    /// What is on them, of one that is mounted too.
    fn digest(&self) -> String {
        sh(&format!("sync; sha256sum < {}; sha256sum < {}", self.mounted, self.small))
    }
}

impl Drop for Decoys {
    fn drop(&mut self) {
        Command::new("umount").arg(self.dir.path().join("m")).status().ok();
        Command::new("losetup").arg("-d").args([&self.mounted, &self.small]).status().ok();
    }
}

/// The body of a case: as it is written, or a volume with changes.
fn answer_body(case: &Value, volume: &Value, words: &[(&str, &str)]) -> String {
    if let Some(body) = case["body"].as_str() {
        return expand(body, words);
    }
    if let Some(changes) = case["volume"].as_object() {
        let mut volume = volume.clone();
        for (key, value) in changes {
            volume[key] = value.clone();
        }
        return expand(&json!({ "volume": volume }).to_string(), words);
    }
    expand(&case["json"].to_string(), words)
}

fn canned(case: &Value, body: String) -> Action {
    let status = u16::try_from(case["status"].as_u64().unwrap_or(200)).unwrap();
    let canned = Canned { status, body: Some(body), retry_after: None };
    if case["after"] == true { Action::AnswerAfter(canned) } else { Action::Answer(canned) }
}

/// The answer of either flow with this connection_info.
fn connection_body(case: &Value, flow: &str, words: &[(&str, &str)]) -> String {
    let mut info = case["connection"].clone();
    if let Some(changes) = case["iscsi"].as_object() {
        let mut data = json!({ "target_portal": "192.0.2.1:3260", "target_lun": 1,
            "target_iqn": "iqn.2010-10.org.openstack:volume-1" });
        for (key, value) in changes {
            data[key] = value.clone();
        }
        info = json!({ "driver_volume_type": "iscsi", "data": data });
    }
    let body = if flow == "actions" {
        json!({ "connection_info": info })
    } else {
        // The attachments API has the keys of `data` beside the type.
        if let Some(Value::Object(data)) = info.get_mut("data").map(Value::take) {
            info.as_object_mut().unwrap().remove("data");
            info.as_object_mut().unwrap().extend(data);
        }
        json!({ "attachment": { "id": "7c9e6679-7425-40de-944b-e07fc1f90ae7",
            "status": "attaching", "connection_info": info } })
    };
    expand(&body.to_string(), words)
}

/// Mounts and removes volumes, one for each case, each with its own answer from Cinder.
async fn try_volumes(flow: &str, cases: Vec<Value>) {
    let cloud = Cloud::start_with(|options| options.behaviour.creating_ms = 0).await;
    let node = Node::start_with(&cloud, json!({ "AttachFlow": flow })).await;
    node.create("other", json!({})).await.unwrap();
    let other = cloud.volume("other").await["id"].as_str().unwrap().to_owned();
    let decoys = Decoys::new();
    let names: Vec<String> = (0..cases.len()).map(|n| format!("vol-{n}")).collect();
    for names in names.chunks(16) {
        for made in join_all(names.iter().map(|name| node.create(name, json!({})))).await {
            made.unwrap();
        }
    }
    let volumes = cloud.volumes().await;
    // The volume is formatted and mounted while Cinder is told that it is attached.
    let formatted: Vec<&str> = cases
        .iter()
        .zip(&names)
        .filter(|(case, _)| case["call"] == "attachment-complete")
        .map(|(_, name)| name.as_str())
        .collect();
    let before = World::of(&cloud, &node).await.settled(&formatted);
    let digest = decoys.digest();
    cloud.forget_calls();
    for (case, name) in cases.iter().zip(&names) {
        let volume = volumes.iter().find(|volume| volume["name"] == **name).unwrap();
        let id = volume["id"].as_str().unwrap();
        let words = [
            ("VOLUME", id),
            ("OTHER", other.as_str()),
            ("MOUNTED", &decoys.mounted),
            ("SMALL", &decoys.small),
        ];
        let (call, action) = if case["do"] == "connect" {
            let call =
                if flow == "actions" { "os-initialize_connection" } else { "attachment-update" };
            let body = connection_body(case, flow, &words);
            (call, Action::AnswerAfter(Canned { status: 200, body: Some(body), retry_after: None }))
        } else {
            (case["call"].as_str().unwrap(), canned(case, answer_body(case, volume, &words)))
        };
        cloud.fail(Rule::on(call, action).of_volume(id.parse().unwrap()).forever());
    }
    let (node_ref, faults) = (&node, &Faults::default());
    let tries = cases.iter().zip(&names).map(|(case, name)| async move {
        let what = format!("{flow}, {name}, {}: {}", case["call"], case["case"]);
        let result = if case["do"] == "remove" {
            node_ref.remove(name).await
        } else {
            node_ref.mount(name, "c").await.map(drop)
        };
        faults.judge_result(&what, result, &[case["says"].as_str().unwrap(), name]);
    });
    stream::iter(tries).buffer_unordered(16).collect::<Vec<_>>().await;
    faults.assert_none();
    cloud.clear_faults();
    node.until_clean().await;
    assert_same(&before, &World::of(&cloud, &node).await.settled(&formatted));
    assert_eq!(digest, decoys.digest(), "nobody may write to another's device");
    for secret in SECRETS {
        assert!(!node.log().contains(secret), "a secret in: {}", node.log());
    }
    // Nothing of all that was about another volume.
    let asked = cloud.sandbox.faults().requests();
    let strayed: Vec<_> =
        asked.iter().filter(|entry| entry.method != "GET" && entry.path.contains(&other)).collect();
    assert!(strayed.is_empty(), "{strayed:?}");
    // And the driver works as before.
    node.mount("vol-0", "c").await.unwrap();
    node.unmount("vol-0", "c").await.unwrap();
}

fn cases_of(what: &[&str]) -> Vec<Value> {
    let mut cases = fixture("cinder");
    cases.retain(|case| what.contains(&case["do"].as_str().unwrap()));
    cases
}

#[tokio::test]
async fn a_cinder_that_makes_no_sense_of_a_volume_is_an_error_that_says_so() {
    let (actions, attachments): (Vec<_>, Vec<_>) = cases_of(&["mount", "remove"])
        .into_iter()
        .partition(|case| case["call"].as_str().is_some_and(|call| call.starts_with("os-")));
    try_volumes("attachments", attachments).await;
    try_volumes("actions", actions).await;
}

#[tokio::test]
async fn a_connection_that_leads_elsewhere_is_refused() {
    try_volumes("attachments", cases_of(&["connect"])).await;
}

#[tokio::test]
async fn a_connection_that_leads_elsewhere_is_refused_in_the_other_flow_too() {
    try_volumes("actions", cases_of(&["connect"])).await;
}

#[tokio::test]
async fn a_cinder_that_makes_no_sense_of_its_lists_is_an_error_that_says_so() {
    let faults = &Faults::default();
    let checks = cases_of(&["create", "list", "get"]).into_iter().map(|case| async move {
        let what = format!("{} {}: {}", case["do"], case["call"], case["case"]);
        let cloud = Cloud::start().await;
        let mut node = Node::start(&cloud).await;
        node.create("other", json!({})).await.unwrap();
        let before = World::of(&cloud, &node).await;
        let mut volume = cloud.volume("other").await;
        volume["name"] = "vol-1".into();
        let body = answer_body(&case, &volume, &[]);
        let call = case["call"].as_str().unwrap();
        cloud.fail(Rule::on(call, canned(&case, body)).forever());
        let says = case["says"].as_str().unwrap();
        let result = match case["do"].as_str().unwrap() {
            "create" => node.create("vol-1", json!({})).await,
            "get" => node.get("vol-1").await.map(drop),
            _ if says == "CUT" => {
                let listed = node.try_call("/VolumeDriver.List", "{}").await;
                assert!(listed.is_err(), "{what}: a part must not look like the whole: {listed:?}");
                Err("vol-1 CUT".to_owned())
            }
            _ => node.list().await.map(drop).map_err(|error| format!("vol-1: {error}")),
        };
        faults.judge_result(&what, result, &[says, "vol-1"]);
        cloud.clear_faults();
        // A creation without a clear answer is looked for once more at the next start.
        node.kill();
        node.run().await;
        let end = Instant::now() + Duration::from_secs(20);
        while World::of(&cloud, &node).await != before {
            if Instant::now() > end {
                faults.add(&what, "left something", &format!("{:?}", cloud.volumes().await));
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if node.get("vol-1").await.is_ok() {
            faults.add(&what, "made a volume", "");
        }
    });
    stream::iter(checks).buffer_unordered(8).collect::<Vec<_>>().await;
    faults.assert_none();
}

/// A Cinder behind a catalog, whose list is paged by `next`: it gets the query of the request.
async fn paging_cinder(next: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Toy {
    let own = Arc::new(std::sync::OnceLock::<String>::new());
    let known = Arc::clone(&own);
    let toy = Toy::start(Arc::new(move |request: &str| {
        let address = known.get().map_or("", String::as_str);
        if request.starts_with("POST /v3/auth/tokens ") {
            let body = token_body(&json!({}), address).to_string();
            return http_answer(201, "X-Subject-Token: sandbox-token\r\n", &body);
        }
        let query = request.split(' ').nth(1).and_then(|path| path.split_once('?'));
        let links: Vec<_> = next(query.map_or("", |(_, query)| query))
            .map(|href| json!({ "rel": "next", "href": href }))
            .into_iter()
            .collect();
        http_answer(200, "", &json!({ "volumes": [], "volumes_links": links }).to_string())
    }))
    .await;
    own.set(toy.address.clone()).unwrap();
    toy
}

async fn node_of(toy: &Toy) -> Node {
    let config = json!({ "Endpoint": format!("http://{}/v3", toy.address), "Username": "u",
        "Password": "hunter2", "TenantID": "p" });
    let Value::Object(config) = config else { unreachable!() };
    let mut node = Node::prepare(config, Value::Object(Map::new()));
    node.run().await;
    node
}

#[tokio::test]
async fn a_list_that_goes_in_a_circle_comes_to_an_end() {
    let toy = paging_cinder(|query| {
        let page = if query.contains("marker=b") { "a" } else { "b" };
        Some(format!("http://127.0.0.1/v3/p/volumes/detail?marker={page}"))
    })
    .await;
    let node = node_of(&toy).await;
    for call in ["Get", "Create"] {
        let error = node.call(call, json!({ "Name": "vol-1" })).await.unwrap_err();
        assert_eq!(fault_of(&error, "no end"), None, "{error}");
    }
    let listed = node.try_call("/VolumeDriver.List", "{}").await;
    assert!(listed.is_err(), "a part must not look like the whole: {listed:?}");
    assert!(toy.requests() < 60, "{} requests", toy.requests());
}

#[tokio::test]
async fn a_next_page_on_another_host_never_gets_the_token() {
    let stranger = Toy::start(Arc::new(|_| http_answer(200, "", r#"{"volumes":[]}"#))).await;
    let elsewhere = format!("http://{}/v3/p/volumes/detail?marker=b", stranger.address);
    let toy =
        paging_cinder(move |query| (!query.contains("marker=b")).then(|| elsewhere.clone())).await;
    let node = node_of(&toy).await;
    assert_eq!(node.list().await.unwrap(), Vec::<String>::new());
    let error = node.get("vol-1").await.unwrap_err();
    assert!(error.contains("no volume"), "{error}");
    assert!(toy.requests() >= 5, "both pages were read, twice");
    assert_eq!(stranger.requests(), 0);
}

/// The most memory that the daemon has had so far, in MB.
fn most_memory(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// A Cinder of one list: `page` gets the number of the page and says what is in it, and whether
/// there is another.
async fn listing_cinder(page: impl Fn(usize) -> (String, bool) + Send + Sync + 'static) -> Toy {
    let own = Arc::new(std::sync::OnceLock::<String>::new());
    let known = Arc::clone(&own);
    let toy = Toy::start(Arc::new(move |request: &str| {
        let address = known.get().map_or("", String::as_str);
        if request.starts_with("POST /v3/auth/tokens ") {
            let body = token_body(&json!({}), address).to_string();
            return http_answer(201, "X-Subject-Token: sandbox-token\r\n", &body);
        }
        let marker = request.split_once("marker=").map_or("0", |(_, rest)| rest);
        let digits = marker.split(|c: char| !c.is_ascii_digit()).next().unwrap();
        let number: usize = digits.parse().unwrap();
        let (volumes, more) = page(number);
        let links = if more {
            format!(
                r#", "volumes_links": [{{"rel": "next", "href":
                   "http://{address}/v3/p/volumes/detail?marker={}"}}]"#,
                number + 1
            )
        } else {
            String::new()
        };
        http_answer(200, "", &format!(r#"{{"volumes": [{volumes}]{links}}}"#))
    }))
    .await;
    own.set(toy.address.clone()).unwrap();
    toy
}

fn volume_text(name: &str) -> String {
    format!(
        r#"{{"id": "{}", "name": "{name}", "status": "available", "size": 1,
           "metadata": {{"docker.format": "unformatted"}}, "attachments": [],
           "bootable": "false", "encrypted": false, "multiattach": false,
           "description": "Docker volume.", "created_at": "2026-01-01T00:00:00.000000"}}"#,
        uuid::Uuid::new_v4()
    )
}

/// Most that a daemon in a debug build may take for all that, in MB.
const MEMORY_LIMIT: u64 = 128;

#[tokio::test]
async fn a_list_of_tens_of_thousands_of_volumes_is_read_page_by_page() {
    let page = |name: &str| {
        (0..1000).map(|n| volume_text(&format!("{name}-{n}"))).collect::<Vec<_>>().join(",")
    };
    let (most, last) = (page("v"), page("last"));
    let toy = listing_cinder(move |number| match number {
        0..29 => (most.clone(), true),
        _ => (last.clone(), false),
    })
    .await;
    let node = node_of(&toy).await;
    let before = most_memory(&node);
    assert_eq!(node.list().await.unwrap().len(), 30_000);
    let error = node.get("no-such-volume").await.unwrap_err();
    assert!(error.contains("no volume"), "{error}");
    assert!(node.get("last-999").await.is_ok(), "on the last page");
    let after = most_memory(&node);
    println!("30,000 volumes: {before} MB before, {after} MB at most");
    assert!(after < MEMORY_LIMIT, "{after} MB");
}

#[tokio::test]
async fn an_answer_of_a_hundred_megabytes_is_cut_off() {
    // One volume that is a long story, and very many that are short ones.
    let long = "x".repeat(100 << 20);
    let many = vec![volume_text("v"); 250_000].join(",");
    for (what, volumes) in
        [("long", volume_text("v").replace("Docker volume.", &long)), ("many", many)]
    {
        let toy = listing_cinder(move |_| (volumes.clone(), false)).await;
        let node = node_of(&toy).await;
        let before = most_memory(&node);
        let error = node.call("List", json!({})).await.unwrap_err();
        assert!(error.contains("larger than"), "{what}: {error}");
        for call in ["Get", "Create"] {
            let error = node.call(call, json!({ "Name": "v" })).await.unwrap_err();
            assert_eq!(fault_of(&error, "larger than"), None, "{what}: {error}");
        }
        let after = most_memory(&node);
        println!("{what}: {before} MB before, {after} MB at most");
        assert!(after < MEMORY_LIMIT, "{what}: {after} MB");
        node.try_call("/Plugin.Activate", "").await.unwrap();
    }
}
