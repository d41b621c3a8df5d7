//! The sandbox against recordings of real clouds.
//!
//! | recording | of | |
//! | --- | --- | --- |
//! | `fixtures/exchanges-driver.md` | Zed | every call of the driver, each refusal; also played against a real cloud |
//! | `fixtures/exchanges-modern.md` | Keystone 22 and Cinder 21, Zed | v3 at large |
//! | `fixtures/exchanges-old.md` | Keystone 12 and Cinder 12, Queens | v2.0, v2 and v3 |
//!
//! Each request is sent in the recorded order, with ids mapped as they appear. Of the driver's
//! recording, everything in the answer must be as recorded; of the older two, the status, the
//! error's kind and message, the JSON paths with their types, and the values of [`COMPARED`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a panic is how a test fails"
)]

#[path = "support/exchanges.rs"]
mod exchanges;
#[path = "support/real_cloud.rs"]
mod real_cloud;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cinder_docker_driver::sandbox::faults::{Action, Entry};
use cinder_docker_driver::sandbox::{Behaviour, Generation, Nova, Options, Quotas, Sandbox};
use exchanges::{Answer, Exchange, Place, Player, differences, parse, paths, rewrite, shapes};
use serde_json::{Value, json};
use support::{Cloud, Node};
use tokio::sync::Mutex;

const DRIVER: &str = include_str!("fixtures/exchanges-driver.md");

/// What depends on the cloud, so that only its paths and types count: the catalog, the roles and the
/// quota.
const OF_EACH_CLOUD: &[&str] = &[
    ".token.catalog",
    ".token.roles",
    ".token.user",
    ".token.project.name",
    ".token.audit_ids",
    ".limits.absolute",
];

/// What the sandbox has in its own way besides: its targets are on paper.
const OF_THE_SANDBOX: &[&str] = &[
    ".connection_info.data.target_portal",
    ".attachment.connection_info.target_portal",
    ".attachments[].connection_info.target_portal",
];

#[tokio::test]
async fn the_sandbox_answers_the_driver_as_a_real_cloud_did() {
    let (differences, _) = play_on_sandbox().await;
    assert_none(&differences);
}

/// The recording is of the real one. With `CINDER_TEST_RECORD=1`, it is made anew.
#[tokio::test]
async fn the_recording_is_what_a_real_cloud_answers() {
    let Some(cloud) = real_cloud::real_cloud() else { return };
    let place = Place {
        endpoint: cloud.endpoint,
        username: cloud.username,
        password: cloud.password,
        project: cloud.project,
        application_credential: None,
    };
    let recorded = parse(DRIVER);
    let player = Arc::new(Mutex::new(Player::of(&place).await));
    let played = Arc::clone(&player);
    let exchanges = recorded.clone();
    // A task of its own: what it made is removed also when it fails.
    let play = tokio::spawn(async move {
        let mut player = played.lock().await;
        let mut answers = Vec::new();
        for exchange in &exchanges {
            let answer = player.play(exchange).await;
            answers.push(player.shown(&answer));
        }
        answers
    });
    let outcome = play.await;
    player.lock().await.clean_up().await;
    let answers = outcome.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    if std::env::var("CINDER_TEST_RECORD").as_deref() == Ok("1") {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/exchanges-driver.md");
        std::fs::write(file, rewrite(DRIVER, &answers)).unwrap();
        return;
    }
    let mut found = Vec::new();
    for (exchange, answer) in recorded.iter().zip(&answers) {
        found.extend(compared(exchange, answer, OF_EACH_CLOUD));
    }
    assert_none(&found);
}

/// Plays the driver's recording; answers what differs, and what was asked.
async fn play_on_sandbox() -> (Vec<String>, Vec<Entry>) {
    let dir = tempfile::tempdir().unwrap();
    let behaviour = Behaviour { legacy_apis: false, ..as_recorded() };
    let sandbox = Sandbox::start(Options::new(dir.path()).behaviour(behaviour)).await.unwrap();
    let config = sandbox.config();
    let text = |key: &str| config[key].as_str().unwrap().to_owned();
    let (credential, secret) = sandbox.application_credential().unwrap();
    let place = Place {
        endpoint: text("Endpoint"),
        username: text("Username"),
        password: text("Password"),
        project: "mesos".to_owned(),
        application_credential: Some((credential, "sandbox".to_owned(), secret)),
    };
    let mut player = Player::of(&place).await;
    sandbox.faults().clear_requests();
    let loose = [OF_EACH_CLOUD, OF_THE_SANDBOX].concat();
    let mut found = Vec::new();
    for exchange in &parse(DRIVER) {
        let answer = player.play(exchange).await;
        found.extend(compared(exchange, &player.shown(&answer), &loose));
    }
    (found, sandbox.faults().requests())
}

/// What tells one call and answer from another: ids, names and values do not.
fn sort_of(entry: &Entry) -> String {
    let (path, query) = entry.path.split_once('?').unwrap_or((&entry.path, ""));
    let mut keys: Vec<_> = query.split('&').map(|pair| pair.split('=').next().unwrap()).collect();
    keys.sort_unstable();
    format!(
        "{} {} {} ?{} @{} -> {}",
        entry.method,
        shapes(path),
        entry.call,
        keys.join("&"),
        entry.microversion.as_deref().unwrap_or("none"),
        entry.status.unwrap()
    )
}

/// Calls of the test itself, told from the daemon's by this.
const OUR_OWN: &str = "3.45";

/// The daemon's whole life, in each of the attach flows: whatever it asks Cinder and Keystone, and
/// whatever they answer, a real cloud was asked and has answered.
#[tokio::test]
async fn every_call_of_the_daemon_was_recorded() {
    let (_, played) = play_on_sandbox().await;
    let recorded: BTreeSet<String> = played.iter().map(sort_of).collect();
    let lives = tokio::join!(asked_by_the_daemon("actions"), asked_by_the_daemon("attachments"));
    for (flow, asked) in [("actions", lives.0), ("attachments", lives.1)] {
        assert!(asked.len() > 25, "{flow}: it did not live: {asked:#?}");
        let missing: Vec<_> = asked.difference(&recorded).collect();
        assert!(missing.is_empty(), "{flow}: not in exchanges-driver.md: {missing:#?}");
    }
}

async fn asked_by_the_daemon(flow: &str) -> BTreeSet<String> {
    let cloud = Cloud::start_with(|options| options.behaviour.legacy_apis = false).await;
    live(&cloud, flow).await;
    let asked = cloud.sandbox.faults().requests();
    let ours = format!("volume {OUR_OWN}");
    let of_daemon = asked.iter().filter(|entry| entry.microversion.as_ref() != Some(&ours));
    // A 401 comes from the door, whatever is asked for. A back end that fails (here: a device that
    // is busy) is nothing that could be recorded.
    let answered =
        of_daemon.filter(|entry| entry.status.is_some_and(|status| status != 401 && status < 500));
    answered.map(sort_of).collect()
}

async fn live(cloud: &Cloud, flow: &str) {
    let settings = json!({ "AttachFlow": flow, "RemoveForeign": true });
    let mut node = Node::start_with(cloud, settings.clone()).await;
    let other = Node::start_with(cloud, settings).await;
    assert_eq!(node.list().await.unwrap(), [""; 0]);
    node.get("v").await.unwrap_err();
    node.mount("v", "c").await.unwrap_err();
    node.cli(&["check"]).await;

    // A volume of somebody else is taken into care under another name.
    let made = json!({ "volume": { "name": "theirs", "size": 1 } });
    let made = cloud.cinder_at("POST", "/volumes", made, OUR_OWN).await;
    let theirs = made["volume"]["id"].as_str().unwrap();
    while cloud.cinder_at("GET", &format!("/volumes/{theirs}"), Value::Null, OUR_OWN).await["volume"]
        ["status"]
        != "available"
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let image = cloud.image(theirs);
    support::sh(&format!("truncate -s 1G {0} && mkfs.ext4 -q -F {0}", image.display()));
    let adopted = node.cli(&["adopt", "theirs", "ours", "--id", theirs]).await;
    assert!(adopted.status.success(), "{adopted:?}");
    node.cli(&["health", "--deep"]).await;
    node.remove("ours").await.unwrap();

    // Creations, and what is refused.
    node.create("v", json!({ "type": "solidfire", "metadata": "a=b" })).await.unwrap();
    node.create("v", json!({})).await.unwrap();
    let found = cloud.cinder_at("GET", "/volumes?name=v", Value::Null, OUR_OWN).await;
    let id = found["volumes"][0]["id"].as_str().unwrap().to_owned();
    let nothing = "00000000-0000-4000-8000-000000000000";
    for options in [
        json!({ "type": "nothing" }),
        json!({ "availability_zone": "nowhere" }),
        json!({ "size": 100_000 }),
        json!({ "snapshot": "nothing" }),
        json!({ "snapshot": nothing }),
        json!({ "from": "nothing" }),
        json!({ "from": nothing }),
        json!({ "image": "nothing" }),
        json!({ "image": nothing }),
        json!({ "backup": "nothing" }),
        json!({ "backup": nothing }),
        json!({ "volume_id": nothing }),
        json!({ "hints": "same_host=nothing" }),
        json!({ "from": "v@nothing" }),
        json!({ "description": "d".repeat(256) }),
    ] {
        node.create("refused", options.clone()).await.expect_err(&options.to_string());
    }

    // Mounts: twice on one host, refused to another, and by the volume's id.
    node.mount("v", "c1").await.unwrap();
    node.mount("v", "c2").await.unwrap();
    node.get("v").await.unwrap();
    other.mount("v", "c").await.unwrap_err();
    other.remove("v").await.unwrap_err();
    other.cli(&["release", "v", "--id", &id]).await;
    node.unmount("v", "c1").await.unwrap();
    node.unmount("v", "c2").await.unwrap();
    other.mount(&id, "c").await.unwrap();
    other.unmount(&id, "c").await.unwrap();
    node.create("reader", json!({ "read_only": true, "from": "v" })).await.unwrap();
    node.mount("reader", "c").await.unwrap();
    node.unmount("reader", "c").await.unwrap();

    // Copies.
    let snapshot = json!({"snapshot": {"name": "s", "volume_id": id}});
    let made = cloud.cinder_at("POST", "/snapshots", snapshot, OUR_OWN).await;
    let snapshot = made["snapshot"]["id"].as_str().unwrap().to_owned();
    let path = format!("/snapshots/{snapshot}");
    while cloud.cinder_at("GET", &path, Value::Null, OUR_OWN).await["snapshot"]["status"]
        != "available"
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.remove("v").await.unwrap_err();
    node.create("by-id", json!({ "snapshot": snapshot })).await.unwrap();
    node.create("by-name", json!({ "snapshot": "s" })).await.unwrap();
    node.create("of-it", json!({ "from": "v@s", "hints": "same_host=v" })).await.unwrap();
    node.create("copy", json!({ "from": "v" })).await.unwrap();
    node.create("grown", json!({ "from": id, "size": 2 })).await.unwrap();
    node.create("small", json!({ "from": "grown", "size": 1 })).await.unwrap_err();
    cloud.cinder_at("DELETE", &path, Value::Null, OUR_OWN).await;

    // A name that is taken away, and one that is given.
    node.create("kept", json!({ "on_remove": "snapshot" })).await.unwrap();
    node.remove("kept").await.unwrap();
    let elsewhere = json!({"volume": {"name": "Made elsewhere", "size": 1}});
    let made = cloud.cinder_at("POST", "/volumes", elsewhere, OUR_OWN).await;
    node.create("adopted", json!({ "volume_id": made["volume"]["id"] })).await.unwrap();

    // Several hosts, each with an attachment.
    node.create("many", json!({ "type": "multiattach" })).await.unwrap();
    node.mount("many", "c").await.unwrap();
    other.mount("many", "c").await.unwrap_err();
    node.unmount("many", "c").await.unwrap();

    // A list of many pages, and many volumes of one name.
    cloud.sandbox.set_behaviour(Behaviour { max_limit: 2, ..cloud.sandbox.behaviour() });
    assert!(node.list().await.unwrap().len() > 5);
    for _ in 0..3 {
        let twin = json!({"volume": {"name": "twin", "size": 1}});
        cloud.cinder_at("POST", "/volumes", twin, OUR_OWN).await;
    }
    node.mount("twin", "c").await.unwrap_err();
    cloud.sandbox.set_behaviour(Behaviour { max_limit: 1000, ..cloud.sandbox.behaviour() });

    // A token that is gone, a creation and a deletion that fail.
    cloud.sandbox.revoke_tokens();
    node.mount("v", "c").await.unwrap();
    cloud.sandbox.revoke_tokens();
    node.unmount("v", "c").await.unwrap();
    cloud.fail_once("create-volume", Action::FailCreate("asked for".into()));
    node.create("failed", json!({})).await.unwrap_err();

    // A crash with a mount, another in the midst of one, and a volume that goes away meanwhile.
    node.mount("v", "c").await.unwrap();
    node.kill();
    node.run().await;
    node.unmount("v", "c").await.unwrap();
    for call in ["os-reserve", "attachment-create", "os-initialize_connection", "attachment-update"]
    {
        cloud.fail_once(call, Action::DropAfter);
        node.mount("copy", "c").await.ok();
        node.unmount("copy", "c").await.ok();
        cloud.clear_faults();
    }
    for name in ["v", "reader", "by-id", "by-name", "grown", "many"] {
        node.remove(name).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    node.remove("v").await.ok();
    node.get("v").await.unwrap_err();
    node.cli(&["release", "copy", "--id", nothing]).await;
}

fn compared(exchange: &Exchange, answer: &Answer, loose: &[&str]) -> Vec<String> {
    let title = &exchange.title;
    let recorded = exchange.answer.as_ref();
    let recorded = recorded.unwrap_or_else(|| panic!("{title}: not recorded yet"));
    let found = differences(recorded, answer, loose).into_iter();
    found.map(|found| format!("{title}: {found}")).collect()
}

fn assert_none(differences: &[String]) {
    let all = differences.join("\n");
    assert!(differences.is_empty(), "{} differences:\n{all}", differences.len());
}

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

async fn replay(recording: &str, behaviour: Behaviour, at_least: usize) {
    let exchanges = parse(recording);
    assert!(exchanges.len() >= at_least, "only {} exchanges were read", exchanges.len());
    let dir = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::start(Options::new(dir.path()).behaviour(behaviour)).await.unwrap();
    let mut player = Replay { sandbox, player: Player::default(), token: None };
    player.learn_places(&exchanges);
    let mut differences = Vec::new();
    for exchange in &exchanges {
        player.prepare(exchange).await;
        let answer = player.send(exchange).await;
        player.learn(exchange, &answer);
        let found = player.compare(exchange.answer.as_ref().unwrap(), &answer).into_iter();
        let counted = found.filter(|found| !is_exception(&exchange.title, found));
        differences.extend(counted.map(|found| format!("{}: {found}", exchange.title)));
    }
    assert_none(&differences);
}

fn is_exception(title: &str, difference: &str) -> bool {
    EXCEPTIONS.contains(&(title, difference))
}

/// A replay of a recording that has ids and addresses as they were.
struct Replay {
    sandbox: Sandbox,
    player: Player,
    token: Option<String>,
}

impl Replay {
    /// The requests name the services and both projects before any answer does.
    fn learn_places(&mut self, exchanges: &[Exchange]) {
        let base = format!("http://{}", self.sandbox.address());
        for (recorded, here) in [
            ("http://127.0.0.1:5000", ""),
            ("http://127.0.0.1:15000", ""),
            ("http://127.0.0.1:8776", "/volume"),
            ("http://127.0.0.1:18776", "/volume"),
        ] {
            self.player.names.insert(recorded.to_owned(), format!("{base}{here}"));
        }
        for (title, project) in [
            ("v3 token with catalog, scoped by project id", "mesos"),
            ("v3: existing project without a role in it", "other"),
        ] {
            let exchange = exchanges.iter().find(|exchange| exchange.title == title).unwrap();
            let recorded = exchange.body["auth"]["scope"]["project"]["id"].as_str().unwrap();
            let ours = self.sandbox.project(project).unwrap();
            self.player.names.insert(recorded.to_owned(), ours);
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
        let token = self.token.clone().unwrap_or_default();
        let headers = [("X-Auth-Token", &*token), ("OpenStack-API-Version", "volume 3.50")];
        let url = format!("http://{}{path}", self.sandbox.address());
        self.player.send(method, &url, &headers, body).await
    }

    async fn send(&mut self, exchange: &Exchange) -> Answer {
        let mut exchange = exchange.clone();
        // The recording leaves the token out.
        let token = match exchange.title.as_str() {
            title if title.ends_with("no token") => None,
            title if title.ends_with("invalid token") => Some("nonsense".to_owned()),
            _ => self.token.clone(),
        };
        exchange.headers.extend(token.map(|token| ("X-Auth-Token".to_owned(), token)));
        self.player.play(&exchange).await
    }

    /// Ids and tokens of the answer.
    fn learn(&mut self, exchange: &Exchange, answer: &Answer) {
        let recorded = exchange.answer.as_ref().unwrap();
        let (theirs, ours) = (recorded.header("X-Subject-Token"), answer.header("X-Subject-Token"));
        if let (Some(theirs), Some(ours)) = (theirs, ours) {
            self.player.names.insert(theirs.to_owned(), ours.to_owned());
            self.token = Some(ours.to_owned());
        }
        if let Some(token) = answer.body["access"]["token"]["id"].as_str() {
            self.token = Some(token.to_owned());
        }
        pair_ids(&recorded.body, &answer.body, &mut self.player.names);
    }

    fn compare(&self, recorded: &Answer, answer: &Answer) -> Vec<String> {
        if recorded.status != answer.status {
            return vec![format!(
                "answered {} {}, recorded {}",
                answer.status, answer.body, recorded.status
            )];
        }
        let mut differences = Vec::new();
        let (theirs, ours) = (paths(&recorded.body), paths(&answer.body));
        differences.extend(theirs.difference(&ours).map(|path| format!("{path} is missing")));
        differences.extend(ours.difference(&theirs).map(|path| format!("{path} is not recorded")));
        let theirs = recorded.message().map(|text| self.player.here(text));
        let ours = answer.message();
        if theirs.as_deref() != ours {
            differences.push(format!("message {ours:?}, recorded {theirs:?}"));
        }
        compare_values("", &recorded.body, &answer.body, &mut differences);
        let compared = ["Content-Type", "Retry-After", "Openstack-Api-Version"];
        for (name, theirs) in &recorded.headers {
            let ours = answer.header(name);
            if compared.contains(&name.as_str()) && ours != Some(theirs) {
                differences.push(format!("header {name} is {ours:?}, recorded {theirs}"));
            }
        }
        differences
    }
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
