//! The real cloud that `tests/rig/cloud` runs, seen from a project of one scenario alone.

use std::process::Command;
use std::sync::OnceLock;

use async_trait::async_trait;
use reqwest::{Client, Method};
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

use super::{output, tool, until};
use crate::transcript::{COLUMNS, Listing};

/// Microversion for what the scenarios ask: 3.44 knows attachments.
const VERSION: &str = "volume 3.44";

/// What `tests/rig/cloud status` says of the running cloud.
async fn cloud() -> &'static Value {
    static CLOUD: OnceCell<Value> = OnceCell::const_new();
    CLOUD
        .get_or_init(|| async {
            for verb in ["up", "status"] {
                let mut command = Command::new(tool("cloud"));
                command.arg(verb);
                let output = output(command).await;
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "cloud {verb}: {errors}");
                if verb == "status" {
                    return serde_json::from_slice(&output.stdout).unwrap();
                }
            }
            unreachable!()
        })
        .await
}

/// Ports of this machine that nodes must reach.
pub(super) async fn ports() -> Vec<String> {
    let ports = cloud().await["ports"].as_object().unwrap();
    ports.values().map(Value::to_string).collect()
}

/// Ports of Keystone and Cinder.
pub async fn api_ports() -> Vec<String> {
    let ports = &cloud().await["ports"];
    [&ports["keystone"], &ports["cinder"]].map(Value::to_string).into()
}

fn client() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        // Required although nothing here is encrypted.
        rustls::crypto::ring::default_provider().install_default().ok();
        Client::builder().no_proxy().build().unwrap()
    })
}

/// One call; the status, the header with a token, and the JSON of the answer.
async fn send(
    method: &str,
    url: &str,
    token: Option<&str>,
    body: &Value,
) -> (u16, Option<String>, Value) {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = client().request(method, url).header("OpenStack-API-Version", VERSION);
    if let Some(token) = token {
        request = request.header("X-Auth-Token", token);
    }
    if !body.is_null() {
        request = request.json(body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let token = answer.headers().get("X-Subject-Token").map(|t| t.to_str().unwrap().to_owned());
    let text = answer.text().await.unwrap();
    (status, token, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// Somebody with a token for one project.
#[derive(Debug)]
struct Session {
    token: String,
    /// Keystone's v3 address.
    identity: String,
    /// Cinder's v3 address, with the project.
    volume: String,
}

impl Session {
    async fn open(endpoint: &str, user: &str, password: &str, project_id: &str) -> Self {
        let auth = json!({ "auth": {
            "identity": { "methods": ["password"], "password": { "user": {
                "name": user, "domain": { "id": "default" }, "password": password } } },
            "scope": { "project": { "id": project_id } } } });
        let url = format!("{endpoint}/auth/tokens");
        let (status, token, answer) = send("POST", &url, None, &auth).await;
        assert_eq!(status, 201, "{user}: {answer}");
        let services = answer["token"]["catalog"].as_array().unwrap();
        let volume = services.iter().find(|service| service["type"] == "volumev3").unwrap();
        Self {
            token: token.unwrap(),
            identity: endpoint.to_owned(),
            volume: volume["endpoints"][0]["url"].as_str().unwrap().to_owned(),
        }
    }

    /// A call to Keystone that must succeed.
    async fn keystone(&self, method: &str, path: &str, body: Value) -> Value {
        let url = format!("{}{path}", self.identity);
        let (status, _, answer) = send(method, &url, Some(&self.token), &body).await;
        assert!(status < 300, "{method} {path}: {status} {answer}");
        answer
    }

    /// A call to Cinder.
    async fn cinder(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let url = format!("{}{path}", self.volume);
        let (status, _, answer) = send(method, &url, Some(&self.token), &body).await;
        (status, answer)
    }
}

/// A project of its own, with a user: no scenario sees another one's volumes.
#[derive(Debug)]
pub struct Project {
    name: String,
    id: String,
    session: Session,
}

impl Project {
    /// Makes it, in the cloud, which is started if it does not run.
    pub async fn create() -> Self {
        let cloud = cloud().await;
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{cloud}")).to_owned();
        let endpoint = text(&cloud["endpoint"]);
        let admin = &cloud["admin"];
        let admin = Session::open(
            &endpoint,
            &text(&admin["user"]),
            &text(&admin["password"]),
            &text(&admin["project_id"]),
        )
        .await;
        let name = format!("scenario-{}", uuid::Uuid::new_v4().simple());
        let project = json!({ "project": { "name": name, "domain_id": "default" } });
        let id = text(&admin.keystone("POST", "/projects", project).await["project"]["id"]);
        let user =
            json!({ "user": { "name": name, "password": PASSWORD, "domain_id": "default" } });
        let user = text(&admin.keystone("POST", "/users", user).await["user"]["id"]);
        let roles = admin.keystone("GET", "/roles?name=member", Value::Null).await;
        let role = text(&roles["roles"][0]["id"]);
        let path = format!("/projects/{id}/users/{user}/roles/{role}");
        admin.keystone("PUT", &path, Value::Null).await;
        let quota = json!({ "quota_set": { "volumes": 100, "snapshots": 100, "gigabytes": 1000 } });
        let (status, answer) = admin.cinder("PUT", &format!("/os-quota-sets/{id}"), quota).await;
        assert_eq!(status, 200, "{answer}");
        let session = Session::open(&endpoint, &name, PASSWORD, &id).await;
        Self { name, id, session }
    }

    /// Keys of a driver's config.
    pub fn config(&self) -> Map<String, Value> {
        let config = json!({
            "Endpoint": self.session.identity,
            "Username": self.name,
            "Password": PASSWORD,
            "TenantID": self.id,
        });
        config.as_object().unwrap().clone()
    }

    /// A call to Cinder that must succeed.
    pub async fn cinder(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.session.cinder(method, path, body).await;
        assert!(status < 300, "{method} {path}: {status} {answer}");
        answer
    }

    /// What a person at an OpenStack client types: `cinder …` or `openstack …`.
    pub async fn client(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(tool("cloud"));
        command
            .args(arguments)
            .env("OS_USERNAME", &self.name)
            .env("OS_PASSWORD", PASSWORD)
            .env("OS_PROJECT_NAME", &self.name);
        let output = output(command).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// All volumes, as Cinder shows them.
    pub async fn volumes(&self) -> Vec<Value> {
        let answer = self.cinder("GET", "/volumes/detail", Value::Null).await;
        answer["volumes"].as_array().unwrap().clone()
    }

    /// The one volume of that name.
    pub async fn volume(&self, name: &str) -> Value {
        let mut found = self.volumes().await;
        found.retain(|volume| volume["name"] == name);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        found.remove(0)
    }

    pub async fn id(&self, name: &str) -> String {
        self.volume(name).await["id"].as_str().unwrap().to_owned()
    }

    pub async fn status(&self, name: &str) -> String {
        self.volume(name).await["status"].as_str().unwrap().to_owned()
    }

    /// Waits for a status; the volume then.
    pub async fn until(&self, name: &str, status: &str) -> Value {
        until(120, &format!("{name} is {status}"), || async {
            let volume = self.volume(name).await;
            if volume["status"] == status { Ok(volume) } else { Err(volume.to_string()) }
        })
        .await
    }

    /// Makes a volume as others do (`cinder create`), with further fields; its id.
    pub async fn make(&self, name: &str, more: Value) -> String {
        let mut volume = json!({ "name": name, "size": 1 });
        let Value::Object(more) = more else { panic!("not an object") };
        volume.as_object_mut().unwrap().extend(more);
        self.cinder("POST", "/volumes", json!({ "volume": volume })).await;
        let made = self.until(name, "available").await;
        made["id"].as_str().unwrap().to_owned()
    }

    /// An action on a volume.
    pub async fn act(&self, id: &str, action: Value) {
        self.cinder("POST", &format!("/volumes/{id}/action"), action).await;
    }

    /// Volumes that Cinder still has exports, connections or attachments for although they are
    /// `available`.
    pub async fn assert_clean(&self) {
        until(60, "Cinder has no attachment and no export left", || async {
            let volumes = self.volumes().await;
            let busy: Vec<&Value> =
                volumes.iter().filter(|volume| volume["status"] != "available").collect();
            let attachments = self.cinder("GET", "/attachments", Value::Null).await;
            let exports = exports().await;
            let exported: Vec<&Value> = volumes
                .iter()
                .filter(|volume| exports.contains(volume["id"].as_str().unwrap()))
                .collect();
            let attached = attachments["attachments"].as_array().unwrap();
            if busy.is_empty() && exported.is_empty() && attached.is_empty() {
                Ok(())
            } else {
                Err(format!("busy: {busy:?}, exported: {exported:?}, attachments: {attachments}"))
            }
        })
        .await;
    }
}

#[async_trait]
impl Listing for Project {
    /// From the table that the real `cinder list` prints.
    async fn rows(&self) -> Vec<[String; COLUMNS.len()]> {
        let table = self.client(&["cinder", "list"]).await;
        let mut rows = table
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
        let header = rows.next().unwrap_or_else(|| panic!("no table: {table}"));
        let places = COLUMNS.map(|column| {
            header.iter().position(|title| *title == column).unwrap_or_else(|| panic!("{table}"))
        });
        rows.map(|row| places.map(|place| row[place].to_owned())).collect()
    }
}

/// Of users that a scenario makes, for services on loopback.
const PASSWORD: &str = "scenario-password";

/// What the target exports, in tgtadm's words.
pub async fn exports() -> String {
    let mut command = Command::new("/usr/sbin/tgtadm");
    command.args(["--lld", "iscsi", "--op", "show", "--mode", "target"]);
    command.env("TGT_IPC_SOCKET", cloud().await["tgt_ipc_socket"].as_str().unwrap());
    String::from_utf8(output(command).await.stdout).unwrap()
}
