//! Recorded exchanges: requests with the answers that a real Keystone, Cinder and Glance gave, kept
//! in a file, and played again against any cloud.
//!
//! An exchange is a title, remarks, and between fences the request and its answer:
//!
//! ````text
//! ### Show volume, available
//!
//! Until: .volume.status = available
//! Keep: stamp = .volume.updated_at
//!
//! ```
//! GET {volumes}/v3/{project}/volumes/{volume}
//! X-Auth-Token: {token}
//! OpenStack-API-Version: volume 3.44
//!
//! HTTP 200
//! Content-Type: application/json
//!
//! {"volume": {"id": "{volume}", "status": "available", …}}
//! ```
//! ````
//!
//! A JSON body is one line below the headers. `Until` repeats the request until its answer is so
//! (`HTTP 404`, or a place in the body and its value, or a place that `rests`: its value has been
//! the same for [`REST`]). `Keep` names a value of the answer (a
//! header, or a place in the body): later requests use the name, and wherever the value turns up
//! in an answer, the name stands in its place. [`Player::of`] knows the names that there are from
//! the start. Other ids and times become their kind (`{uuid}`, `{time}`), secrets `{secret}`.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, and a recording that makes no sense is a failure"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use uuid::Uuid;

/// How long an `Until` may take.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// Cinder writes to a volume once more after it has said that it is available, and its times are
/// in whole seconds.
const REST: Duration = Duration::from_secs(2);

/// Headers that the driver looks at, and those that tell what sort of answer it is.
const HEADERS: &[&str] = &[
    "content-type",
    "openstack-api-version",
    "retry-after",
    "x-openstack-request-id",
    "x-subject-token",
];

/// Members of an answer that are secrets.
const SECRETS: &[&str] = &["auth_password", "auth_username"];

/// A request and the answer that was recorded.
#[derive(Debug, Clone)]
pub struct Exchange {
    pub title: String,
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Value,
    /// `None` = not recorded yet.
    pub answer: Option<Answer>,
    keep: Vec<(String, String)>,
    until: Option<String>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

/// The exchanges of a file, in their order.
pub fn parse(recording: &str) -> Vec<Exchange> {
    recording.split("\n### ").skip(1).map(parse_one).collect()
}

fn parse_one(section: &str) -> Exchange {
    let (title, rest) = section.split_once('\n').unwrap();
    let mut fences = rest.split("```");
    let remarks = fences.next().unwrap().lines();
    let fenced = fences.next().unwrap_or_else(|| panic!("{title}: no fence")).trim();
    let mut parts = fenced.splitn(3, "\n\n");
    let mut request = parts.next().unwrap().lines();
    let (method, url) = request.next().unwrap().split_once(' ').unwrap();
    let (bodies, headers): (Vec<&str>, Vec<&str>) = request.partition(|line| line.starts_with('{'));
    let body = bodies.first().map_or(Value::Null, |body| {
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{title}: {error}"))
    });
    let answer = parts.next().map(|head| {
        let mut head = head.lines();
        let status = head.next().unwrap().strip_prefix("HTTP ").unwrap().parse().unwrap();
        let body = match parts.next().unwrap() {
            "(empty body)" => Value::Null,
            text => serde_json::from_str(text).unwrap(),
        };
        Answer { status, headers: pairs(head), body }
    });
    let remark = |name: &str| {
        let name = format!("{name}: ");
        remarks.clone().filter_map(move |line| line.strip_prefix(&*name).map(str::to_owned))
    };
    let keep = remark("Keep").map(|text| {
        let (name, place) = text.split_once(" = ").unwrap();
        (format!("{{{name}}}"), place.to_owned())
    });
    Exchange {
        title: title.to_owned(),
        method: method.to_owned(),
        url: url.to_owned(),
        headers: pairs(headers.into_iter()),
        body,
        answer,
        keep: keep.collect(),
        until: remark("Until").next(),
    }
}

fn pairs<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let split = lines.map(|line| line.split_once(": ").unwrap());
    split.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The file with these answers in the place of the old ones.
pub fn rewrite(recording: &str, answers: &[Answer]) -> String {
    let mut sections = recording.split("\n### ");
    let mut text = sections.next().unwrap().to_owned();
    for (section, answer) in sections.zip(answers) {
        let (remarks, rest) = section.split_once("```\n").unwrap();
        let (fenced, rest) = rest.split_once("```").unwrap();
        let request = fenced.split("\n\n").next().unwrap().trim();
        let answer = answer.written();
        text.push_str(&format!("\n### {remarks}```\n{request}\n\n{answer}\n```{rest}"));
    }
    text
}

impl Answer {
    fn written(&self) -> String {
        let mut text = format!("HTTP {}\n", self.status);
        text.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}\n")));
        text.push('\n');
        match &self.body {
            Value::Null => text.push_str("(empty body)"),
            body => text.push_str(&serde_json::to_string_pretty(body).unwrap()),
        }
        text
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// A header, or `.volume.attachments.0.attachment_id`.
    fn at(&self, place: &str) -> Option<String> {
        let Some(path) = place.strip_prefix('.') else {
            return self.header(place).map(str::to_owned);
        };
        let value = self.body.pointer(&format!("/{}", path.replace('.', "/")))?;
        value.as_str().map(str::to_owned)
    }

    /// First line of an error's message; JSON schema adds the schema below it.
    pub fn message(&self) -> Option<&str> {
        let error = self.body.as_object()?.values().next()?;
        error.get("message")?.as_str()?.lines().next()
    }
}

/// A cloud to play with, and who plays.
#[derive(Debug, Clone)]
pub struct Place {
    /// Keystone's address, with or without its version.
    pub endpoint: String,
    pub username: String,
    pub password: String,
    /// Its name.
    pub project: String,
    /// Id, name and secret of an application credential; `None` = one is made.
    pub application_credential: Option<(String, String, String)>,
}

/// Sends recorded requests and shows the answers as a recording has them.
#[derive(Debug)]
pub struct Player {
    http: reqwest::Client,
    /// What stands in the recording → what it is here.
    pub names: BTreeMap<String, String>,
    /// Known from the start, but no name for what turns up in an answer.
    given: BTreeMap<String, String>,
}

impl Default for Player {
    /// Knows no names.
    fn default() -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        Self { http, names: BTreeMap::new(), given: BTreeMap::new() }
    }
}

impl Player {
    /// Knows `{identity}`, `{volumes}` and `{images}` (the roots of the three services),
    /// `{username}`, `{password}`, `{project-name}`, `{project}` (its id), the application
    /// credential (`{credential}`, `{credential-name}`, `{credential-secret}`) and `{run}`, which
    /// makes a name new.
    pub async fn of(place: &Place) -> Self {
        let mut player = Self::default();
        let identity = place.endpoint.trim_end_matches('/').trim_end_matches("/v3").to_owned();
        let login = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": place.username, "domain": {"id": "default"}, "password": place.password}}},
            "scope": {"project": {"name": place.project, "domain": {"id": "default"}}}}});
        let token = player.send("POST", &format!("{identity}/v3/auth/tokens"), &[], &login).await;
        assert_eq!(token.status, 201, "{}", token.body);
        let project = token.at(".token.project.id").unwrap();
        let root = |kind: &str| {
            let services = token.body["token"]["catalog"].as_array().unwrap();
            let url =
                services.iter().find(|service| service["type"] == kind)?["endpoints"][0]["url"]
                    .as_str()?;
            let (root, _) = url.split_once("/v3/").unwrap_or((url, ""));
            Some(root.trim_end_matches('/').to_owned())
        };
        let volumes = root("volumev3").unwrap();
        player.give(&[("password", &place.password)]);
        player.given = [("{username}", &place.username), ("{project-name}", &place.project)]
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .into();
        let run = format!("{:.12}", Uuid::new_v4().simple());
        player.give(&[
            ("identity", &identity),
            ("volumes", &volumes),
            ("project", &project),
            ("run", &run),
        ]);
        if let Some(images) = root("image") {
            player.give(&[("images", &images)]);
        }
        let (id, name, secret) = match &place.application_credential {
            Some(known) => known.clone(),
            None => player.make_application_credential(&identity, &token).await,
        };
        player.give(&[
            ("credential", &id),
            ("credential-name", &name),
            ("credential-secret", &secret),
        ]);
        player
    }

    fn give(&mut self, names: &[(&str, &String)]) {
        let named = |(name, value): &(&str, &String)| (format!("{{{name}}}"), (*value).clone());
        self.names.extend(names.iter().map(named));
    }

    async fn make_application_credential(
        &self,
        identity: &str,
        login: &Answer,
    ) -> (String, String, String) {
        let url = credentials_url(identity, login);
        let token = login.header("x-subject-token").unwrap();
        let name = format!("credential-{}", Uuid::new_v4());
        let wanted = json!({"application_credential": {"name": name}});
        let made = self.send("POST", &url, &[("X-Auth-Token", token)], &wanted).await;
        assert_eq!(made.status, 201, "{}", made.body);
        let text = |key: &str| made.at(&format!(".application_credential.{key}")).unwrap();
        (text("id"), name, text("secret"))
    }

    /// Plays one exchange and keeps what it says.
    pub async fn play(&mut self, exchange: &Exchange) -> Answer {
        let title = &exchange.title;
        let url = self.here(&exchange.url);
        let headers: Vec<_> =
            exchange.headers.iter().map(|(name, value)| (&**name, self.here(value))).collect();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
        let body = serde_json::from_str(&self.here(&exchange.body.to_string())).unwrap();
        let end = Instant::now() + PATIENCE;
        let (mut last, mut since) = (None, Instant::now());
        let answer = loop {
            let answer = self.send(&exchange.method, &url, &headers, &body).await;
            let Some(until) = &exchange.until else { break answer };
            let is_so = if let Some((place, wanted)) = until.split_once(" = ") {
                answer.at(place) == Some(self.here(wanted))
            } else if let Some(place) = until.strip_suffix(" rests") {
                let now = answer.at(place);
                if now != last {
                    (last, since) = (now, Instant::now());
                }
                since.elapsed() >= REST
            } else {
                *until == format!("HTTP {}", answer.status)
            };
            if is_so {
                break answer;
            }
            assert!(Instant::now() < end, "{title}: never {until}: {}", answer.body);
            tokio::time::sleep(POLL).await;
        };
        for (name, place) in &exchange.keep {
            let value = answer.at(place);
            let value = value.unwrap_or_else(|| panic!("{title}: no {place} in {}", answer.body));
            self.names.insert(name.clone(), value);
        }
        answer
    }

    /// A recorded text with what its names mean here.
    pub fn here(&self, text: &str) -> String {
        let names = self.names.iter().chain(&self.given);
        names.fold(text.to_owned(), |text, (name, value)| text.replace(&**name, value))
    }

    /// One request; the body is sent if it is not null.
    pub async fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Answer {
        assert!(url.starts_with("http") && !url.contains('{'), "a name is not known: {url}");
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.http.request(method, url).header("Accept", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_null() {
            request = request.json(body);
        }
        let response = request.send().await.unwrap_or_else(|error| panic!("{url}: {error}"));
        let status = response.status().as_u16();
        let headers =
            response.headers().iter().filter(|(name, _)| HEADERS.contains(&name.as_str()));
        let headers: BTreeMap<String, String> = headers
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        let bytes = response.bytes().await.unwrap();
        let body = match bytes.len() {
            0 => Value::Null,
            // Keystone has pages for people, too.
            _ => serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into()),
        };
        Answer { status, headers: headers.into_iter().collect(), body }
    }

    /// The answer as a recording shows it.
    pub fn shown(&self, answer: &Answer) -> Answer {
        let mut body = self.shown_value("", &answer.body);
        // A list of everything has rows that are somebody else's.
        if let Some(rows) = body.get_mut("volumes").and_then(Value::as_array_mut) {
            rows.retain(|row| row["id"] != "{uuid}");
        }
        if answer.status == 413 {
            // How much is used depends on who else is there.
            let message = shown_numbers(answer.message().unwrap());
            let error = body.as_object_mut().unwrap().values_mut().next().unwrap();
            error["message"] = message.into();
        }
        let headers = answer.headers.iter().map(|(name, value)| {
            let shown = match (&**name, self.named(value)) {
                ("x-subject-token", named) if named == *value => "{secret}".to_owned(),
                (_, named) => shapes(&named),
            };
            (name.clone(), shown)
        });
        let headers = headers.collect();
        Answer { status: answer.status, headers, body }
    }

    fn shown_value(&self, key: &str, value: &Value) -> Value {
        match value {
            Value::String(_) if SECRETS.contains(&key) => "{secret}".into(),
            Value::String(text) => shapes(&self.named(text)).into(),
            Value::Array(items) => {
                let mut shown: Vec<_> =
                    items.iter().map(|item| self.shown_value("", item)).collect();
                // Cinder gives these in no order, and Keystone those.
                if key == "methods" {
                    shown.sort_by_key(ToString::to_string);
                }
                if key == "attachments" {
                    shown.sort_by_key(|row| {
                        row["attachment_id"].to_string() + &row["id"].to_string()
                    });
                }
                shown.into()
            }
            Value::Object(members) => {
                let members = members.iter();
                let shown = members.map(|(key, value)| (key.clone(), self.shown_value(key, value)));
                Value::Object(shown.collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    /// A text of this cloud with names for what has one.
    fn named(&self, text: &str) -> String {
        let mut names: Vec<_> = self.names.iter().collect();
        names.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
        names.into_iter().fold(text.to_owned(), |text, (name, value)| match value.len() {
            0 => text,
            // Too short to be told from a part of something else.
            1..8 if text == *value => name.clone(),
            1..8 => text,
            _ => text.replace(&**value, name),
        })
    }

    /// Removes what a play on a real cloud left: volumes with the name of this run, which are there
    /// when it failed, and the application credential.
    pub async fn clean_up(&self) {
        let root = self.here("{volumes}/v3/{project}");
        let identity = &self.names["{identity}"];
        let login = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": self.given["{username}"], "domain": {"id": "default"},
                "password": self.names["{password}"]}}},
            "scope": {"project": {"id": self.names["{project}"]}}}});
        let token = self.send("POST", &format!("{identity}/v3/auth/tokens"), &[], &login).await;
        let secret = token.header("x-subject-token").unwrap().to_owned();
        let headers = [("X-Auth-Token", &*secret), ("OpenStack-API-Version", "volume 3.44")];
        let left =
            self.send("GET", &format!("{root}/volumes/detail"), &headers, &Value::Null).await;
        for volume in left.body["volumes"].as_array().unwrap() {
            if !volume["name"].as_str().is_some_and(|name| name.contains(&self.names["{run}"])) {
                continue;
            }
            let id = volume["id"].as_str().unwrap();
            let url = format!("{root}/attachments?volume_id={id}");
            let rows =
                self.send("GET", &url, &headers, &Value::Null).await.body["attachments"].take();
            for row in rows.as_array().into_iter().flatten() {
                let url = format!("{root}/attachments/{}", row["id"].as_str().unwrap());
                self.send("DELETE", &url, &headers, &Value::Null).await;
            }
            let unreserve = json!({"os-unreserve": {}});
            self.send("POST", &format!("{root}/volumes/{id}/action"), &headers, &unreserve).await;
            self.send(
                "DELETE",
                &format!("{root}/volumes/{id}?cascade=true"),
                &headers,
                &Value::Null,
            )
            .await;
        }
        let url = format!("{}/{}", credentials_url(identity, &token), self.names["{credential}"]);
        self.send("DELETE", &url, &headers, &Value::Null).await;
    }
}

fn credentials_url(identity: &str, login: &Answer) -> String {
    let user = login.at(".token.user.id").unwrap();
    format!("{identity}/v3/users/{user}/application_credentials")
}

/// Ids and times as their kind. Also what a recording of before names was made has to become.
pub fn shapes(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    let mut at_start = true;
    while let Some(first) = rest.chars().next() {
        if let Some((kind, length)) = shape(rest).filter(|_| at_start) {
            out.push_str(kind);
            rest = &rest[length..];
            at_start = false;
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            at_start = !first.is_alphanumeric();
        }
    }
    out
}

/// What kind of thing a text begins with, and how long that is.
fn shape(text: &str) -> Option<(&'static str, usize)> {
    let ends_at = |length: usize| !text[length..].starts_with(|next: char| next.is_alphanumeric());
    if text.get(..36).is_some_and(|id| Uuid::parse_str(id).is_ok()) && ends_at(36) {
        return Some(("{uuid}", 36));
    }
    let is_hex = |id: &str| id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if text.get(..32).is_some_and(is_hex) && ends_at(32) {
        return Some(("{hex}", 32));
    }
    let pattern = "dddd-dd-ddTdd:dd:dd";
    let second = text.get(..pattern.len())?;
    let fits = second.bytes().zip(pattern.bytes()).all(|(byte, wanted)| match wanted {
        b'd' => byte.is_ascii_digit(),
        other => byte == other,
    });
    if !fits {
        return None;
    }
    let fraction = text[second.len()..]
        .strip_prefix('.')
        .map_or(0, |digits| 1 + digits.bytes().take_while(u8::is_ascii_digit).count());
    let kind = if fraction > 1 { "{time}" } else { "{second}" };
    Some((kind, second.len() + fraction))
}

fn shown_numbers(text: &str) -> String {
    let mut out = String::new();
    for part in text.split_inclusive(|c: char| !c.is_ascii_digit()) {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        out.push_str(if digits > 0 { "{number}" } else { "" });
        out.push_str(&part[digits..]);
    }
    out
}

/// `volumes[].attachments[].device: string` for everything in a body.
pub fn paths(body: &Value) -> BTreeSet<String> {
    fn walk(path: &str, value: &Value, found: &mut BTreeSet<String>) {
        found.insert(format!("{path}: {}", kind(value)));
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

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What differs between two answers: everything but the values below the places of `loose`,
/// of which only the paths and types count.
pub fn differences(theirs: &Answer, ours: &Answer, loose: &[&str]) -> Vec<String> {
    if theirs.status != ours.status {
        return vec![format!("answered {} {}, recorded {}", ours.status, ours.body, theirs.status)];
    }
    let mut found = Vec::new();
    for name in HEADERS {
        let (theirs, ours) = (theirs.header(name), ours.header(name));
        if theirs != ours {
            found.push(format!("header {name} is {ours:?}, recorded {theirs:?}"));
        }
    }
    compare("", &theirs.body, &ours.body, loose, &mut found);
    found
}

fn compare(path: &str, theirs: &Value, ours: &Value, loose: &[&str], found: &mut Vec<String>) {
    if loose.contains(&path) {
        let (theirs, ours) = (paths(theirs), paths(ours));
        found.extend(theirs.difference(&ours).map(|at| format!("{path}{at} is missing")));
        found.extend(ours.difference(&theirs).map(|at| format!("{path}{at} is not recorded")));
        return;
    }
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (key, their) in theirs {
                match ours.get(key) {
                    Some(our) => compare(&format!("{path}.{key}"), their, our, loose, found),
                    None => found.push(format!("{path}.{key} is missing")),
                }
            }
            let more = ours.keys().filter(|key| !theirs.contains_key(*key));
            found.extend(more.map(|key| format!("{path}.{key} is not recorded")));
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            for (their, our) in theirs.iter().zip(ours) {
                compare(&format!("{path}[]"), their, our, loose, found);
            }
        }
        // Of a JSON schema's message, the schema stands below the first line.
        (Value::String(their), Value::String(our))
            if path.ends_with(".message") && their.lines().next() == our.lines().next() => {}
        (their, our) if their == our => {}
        (their, our) => found.push(format!("{path} is {our}, recorded {their}")),
    }
}
