//! The sandbox against recordings of real clouds: `fixtures/exchanges-modern.md` (Keystone 22 and
//! Cinder 21, Zed) and `fixtures/exchanges-old.md` (Keystone 12 and Cinder 12, Queens, with v2.0
//! and v2).
//!
//! Each request is sent in the recorded order. The answer must have the recorded status, error kind
//! and message, and exactly the recorded JSON paths, each of the recorded type. Ids are mapped as
//! they appear.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a panic is how a test fails"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use cinder_docker_driver::sandbox::{Behaviour, Generation, Nova, Options, Quotas, Sandbox};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Where the sandbox differs, and why: title of the exchange, the difference.
const EXCEPTIONS: &[(&str, &str)] = &[
    // The sandbox has a type for multiattach volumes, the recorded cloud had none.
    ("v3: types", ".volume_types[].extra_specs.multiattach: string is not recorded"),
];

/// Values that are compared, not only their types.
const COMPARED: &[&str] = &[
    "access_mode",
    "attach_mode",
    "attached_mode",
    "bootable",
    "code",
    "device",
    "driver_volume_type",
    "multiattach",
    "name",
    "readonly",
    "retryAfter",
    "server_id",
    "size",
    "status",
    "title",
    "totalVolumesUsed",
    "volume_type",
];

#[tokio::test]
async fn the_sandbox_answers_as_zed_did() {
    let behaviour = Behaviour { legacy_apis: false, ..as_recorded() };
    replay(include_str!("fixtures/exchanges-modern.md"), behaviour, 70).await;
}

#[tokio::test]
async fn the_sandbox_answers_as_queens_did() {
    let behaviour =
        Behaviour { generation: Generation::Queens, nova: Nova::Absent, ..as_recorded() };
    replay(include_str!("fixtures/exchanges-old.md"), behaviour, 120).await;
}

/// Connections are on paper: the recorded ones were iSCSI targets.
fn as_recorded() -> Behaviour {
    Behaviour {
        paper_exports: true,
        creating_ms: 0,
        deleting_ms: 0,
        quotas: Quotas { volumes: 20, snapshots: 10, gigabytes: 1000 },
        ..Behaviour::default()
    }
}

/// A recorded request and its answer.
#[derive(Debug)]
struct Exchange {
    title: String,
    method: String,
    url: String,
    headers: Vec<(String, String)>,
    body: Value,
    status: u16,
    answer_headers: Vec<(String, String)>,
    answer: Value,
}

/// Reads `### title`, then between fences: request line, headers and body; `HTTP status`, headers;
/// body; with an empty line before and after the answer's head.
fn parse(recording: &str) -> Vec<Exchange> {
    let sections = recording.split("\n### ").skip(1);
    sections
        .map(|section| {
            let (title, rest) = section.split_once('\n').unwrap();
            let fenced = rest.split("```").nth(1).unwrap().trim();
            let mut parts = fenced.splitn(3, "\n\n");
            let mut request = parts.next().unwrap().lines();
            let (method, url) = request.next().unwrap().split_once(' ').unwrap();
            let (bodies, headers): (Vec<&str>, Vec<&str>) =
                request.partition(|line| line.starts_with('{'));
            let mut head = parts.next().unwrap().lines();
            let status = head.next().unwrap().strip_prefix("HTTP ").unwrap().parse().unwrap();
            let answer = parts.next().unwrap();
            Exchange {
                title: title.to_owned(),
                method: method.to_owned(),
                url: url.to_owned(),
                headers: pairs(headers.into_iter()),
                body: bodies
                    .first()
                    .map_or(Value::Null, |body| serde_json::from_str(body).unwrap()),
                status,
                answer_headers: pairs(head),
                answer: match answer {
                    "(empty body)" => Value::Null,
                    text => serde_json::from_str(text).unwrap(),
                },
            }
        })
        .collect()
}

fn pairs<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let split = lines.map(|line| line.split_once(": ").unwrap());
    split.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

async fn replay(recording: &str, behaviour: Behaviour, at_least: usize) {
    let exchanges = parse(recording);
    assert!(exchanges.len() >= at_least, "only {} exchanges were read", exchanges.len());
    let dir = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::start(Options::new(dir.path()).behaviour(behaviour)).await.unwrap();
    let mut player = Player { sandbox, ids: BTreeMap::new(), token: None };
    player.learn_projects(&exchanges);
    let mut differences = Vec::new();
    for exchange in &exchanges {
        player.prepare(exchange).await;
        let answer = player.send(exchange).await;
        player.learn(exchange, &answer);
        let found = player.compare(exchange, &answer).into_iter();
        let counted = found.filter(|found| !is_exception(&exchange.title, found));
        differences.extend(counted.map(|found| format!("{}: {found}", exchange.title)));
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

fn is_exception(title: &str, difference: &str) -> bool {
    EXCEPTIONS.contains(&(title, difference))
}

struct Player {
    sandbox: Sandbox,
    /// Recorded id or token → ours.
    ids: BTreeMap<String, String>,
    token: Option<String>,
}

struct Answer {
    status: u16,
    headers: hyper::HeaderMap,
    body: Value,
}

impl Player {
    /// The requests name both projects before any answer does.
    fn learn_projects(&mut self, exchanges: &[Exchange]) {
        for (title, project) in [
            ("v3 token with catalog, scoped by project id", "mesos"),
            ("v3: existing project without a role in it", "other"),
        ] {
            let exchange = exchanges.iter().find(|exchange| exchange.title == title).unwrap();
            let recorded = exchange.body["auth"]["scope"]["project"]["id"].as_str().unwrap();
            self.ids.insert(recorded.to_owned(), self.sandbox.project(project).unwrap());
        }
    }

    /// What the recorder did without recording it, and waiting for what goes on in the background.
    async fn prepare(&mut self, exchange: &Exchange) {
        let Some(project) = self.sandbox.project("mesos").filter(|_| self.token.is_some()) else {
            return;
        };
        let root = format!("/volume/v3/{project}");
        let title = exchange.title.split_once(": ").map_or("", |(_, title)| title);
        match title {
            "create volume" => {
                for id in self.column(&format!("{root}/volumes"), "volumes").await {
                    self.own("DELETE", &format!("{root}/volumes/{id}"), &Value::Null).await;
                }
            }
            "os-extend" => {
                for id in self.column(&format!("{root}/volumes?status=in-use"), "volumes").await {
                    let path = format!("{root}/volumes/{id}/action");
                    let steps = [
                        json!({"os-begin_detaching": {}}),
                        json!({"os-terminate_connection": {"connector": {}}}),
                        json!({"os-detach": {}}),
                    ];
                    for step in &steps {
                        self.own("POST", &path, step).await;
                    }
                }
            }
            "delete volume" => {
                for id in self.column(&format!("{root}/attachments"), "attachments").await {
                    self.own("DELETE", &format!("{root}/attachments/{id}"), &Value::Null).await;
                }
            }
            "quota exceeded: number of volumes" => {
                let there = self.column(&format!("{root}/volumes"), "volumes").await.len();
                self.sandbox.fill(20 - there as u64, "q");
            }
            _ => {}
        }
        let settled = async {
            while self.is_busy(&root).await {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), settled).await.unwrap();
    }

    async fn is_busy(&self, root: &str) -> bool {
        let busy = ["creating", "deleting", "extending"];
        for collection in ["volumes", "snapshots"] {
            let path = format!("{root}/{collection}/detail");
            let rows = self.own("GET", &path, &Value::Null).await.body[collection].clone();
            let mut rows = rows.as_array().into_iter().flatten();
            if rows.any(|row| busy.contains(&row["status"].as_str().unwrap())) {
                return true;
            }
        }
        false
    }

    async fn column(&self, path: &str, collection: &str) -> Vec<String> {
        let answer = self.own("GET", path, &Value::Null).await;
        let rows = answer.body[collection].as_array().cloned().unwrap_or_default();
        rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    }

    /// A request that was not recorded.
    async fn own(&self, method: &str, path: &str, body: &Value) -> Answer {
        let headers = [
            ("X-Auth-Token".to_owned(), self.token.clone().unwrap_or_default()),
            ("OpenStack-API-Version".to_owned(), "volume 3.50".to_owned()),
        ];
        self.request(method, path, &headers, body).await
    }

    /// A recorded text with our ids.
    fn mapped(&self, text: &str) -> String {
        self.ids.iter().fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
    }

    async fn send(&self, exchange: &Exchange) -> Answer {
        let (_, rest) = exchange.url.split_once("://").unwrap();
        let (host, path) = rest.split_at(rest.find('/').unwrap());
        let root = if host.ends_with("8776") { "/volume" } else { "" };
        let mut headers: Vec<(String, String)> = exchange
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), self.mapped(value)))
            .collect();
        // The recording leaves the token out.
        let token = match exchange.title.as_str() {
            title if title.ends_with("no token") => None,
            title if title.ends_with("invalid token") => Some("nonsense".to_owned()),
            _ => self.token.clone(),
        };
        headers.extend(token.map(|token| ("X-Auth-Token".to_owned(), token)));
        let body = serde_json::from_str(&self.mapped(&exchange.body.to_string())).unwrap();
        let path = self.mapped(&format!("{root}{path}"));
        self.request(&exchange.method, &path, &headers, &body).await
    }

    async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &Value,
    ) -> Answer {
        let stream = TcpStream::connect(self.sandbox.address()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("Host", self.sandbox.address().to_string());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let response = sender.send_request(request.body(Full::new(bytes)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: match bytes.len() {
                0 => Value::Null,
                _ => serde_json::from_slice(&bytes).unwrap(),
            },
        }
    }

    /// Ids and tokens of the answer.
    fn learn(&mut self, exchange: &Exchange, answer: &Answer) {
        let header = exchange.answer_headers.iter().find(|(name, _)| name == "X-Subject-Token");
        let ours = answer.headers.get("X-Subject-Token").and_then(|token| token.to_str().ok());
        if let (Some((_, theirs)), Some(ours)) = (header, ours) {
            self.ids.insert(theirs.clone(), ours.to_owned());
            self.token = Some(ours.to_owned());
        }
        if let Some(token) = answer.body["access"]["token"]["id"].as_str() {
            self.token = Some(token.to_owned());
        }
        pair_ids(&exchange.answer, &answer.body, &mut self.ids);
    }

    fn compare(&self, exchange: &Exchange, answer: &Answer) -> Vec<String> {
        if exchange.status != answer.status {
            return vec![format!(
                "answered {} {}, recorded {}",
                answer.status, answer.body, exchange.status
            )];
        }
        let mut differences = Vec::new();
        let (theirs, ours) = (paths(&exchange.answer), paths(&answer.body));
        differences.extend(theirs.difference(&ours).map(|path| format!("{path} is missing")));
        differences.extend(ours.difference(&theirs).map(|path| format!("{path} is not recorded")));
        let (theirs, ours) = (message(&exchange.answer), message(&answer.body));
        let theirs = theirs.map(|text| self.mapped(&text));
        if theirs != ours {
            differences.push(format!("message {ours:?}, recorded {theirs:?}"));
        }
        compare_values("", &exchange.answer, &answer.body, &mut differences);
        let compared = ["Content-Type", "Retry-After", "Openstack-Api-Version"];
        for (name, theirs) in &exchange.answer_headers {
            let ours = answer.headers.get(name).and_then(|value| value.to_str().ok());
            if compared.contains(&name.as_str()) && ours != Some(theirs) {
                differences.push(format!("header {name} is {ours:?}, recorded {theirs}"));
            }
        }
        differences
    }
}

/// `volumes[].attachments[].device: string` for everything in the body.
fn paths(body: &Value) -> BTreeSet<String> {
    fn walk(path: &str, value: &Value, found: &mut BTreeSet<String>) {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        found.insert(format!("{path}: {kind}"));
        match value {
            Value::Array(items) => {
                items.iter().for_each(|item| walk(&format!("{path}[]"), item, found));
            }
            Value::Object(members) => {
                members.iter().for_each(|(key, item)| walk(&format!("{path}.{key}"), item, found));
            }
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    walk("", body, &mut found);
    found
}

/// First line of an error's message; JSON schema adds the schema below it.
fn message(body: &Value) -> Option<String> {
    let error = body.as_object()?.values().next()?;
    Some(error.get("message")?.as_str()?.lines().next()?.to_owned())
}

fn compare_values(path: &str, theirs: &Value, ours: &Value, differences: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (key, their) in theirs {
                let Some(our) = ours.get(key) else { continue };
                if COMPARED.contains(&key.as_str()) && their != our {
                    differences.push(format!("{path}.{key} is {our}, recorded {their}"));
                }
                compare_values(&format!("{path}.{key}"), their, our, differences);
            }
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            for (their, our) in theirs.iter().zip(ours) {
                compare_values(&format!("{path}[]"), their, our, differences);
            }
        }
        _ => {}
    }
}

/// Pairs what is an id at the same place of both answers.
fn pair_ids(theirs: &Value, ours: &Value, ids: &mut BTreeMap<String, String>) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (key, their) in theirs {
                if let Some(our) = ours.get(key) {
                    pair_ids(their, our, ids);
                }
            }
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            theirs.iter().zip(ours).for_each(|(their, our)| pair_ids(their, our, ids));
        }
        (Value::String(their), Value::String(our)) if uuid::Uuid::parse_str(their).is_ok() => {
            ids.entry(their.clone()).or_insert_with(|| our.clone());
        }
        _ => {}
    }
}
