//! The embedded Keystone: v3, and v2.0 where the behaviour has it.
//!
//! At `/v3` and `/v2.0`, and the same below `/identity`, as DevStack has it. Every wrong user,
//! password, project or role is one and the same 401, as in the real one.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::clock;
use super::cloud::Cloud;
use super::http::{Reply, Request};
use super::options::{Behaviour, Generation, Nova};
use super::state::{Project, State, Token, User, hex_id};

/// Catalog and services are in one region.
pub(super) const REGION: &str = "RegionOne";
const DOMAIN_ID: &str = "default";
const DOMAIN_NAME: &str = "Default";
const ROLE: &str = "member";
const NO_SUCH_PAGE: &str = "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n\
    <h1>Not Found</h1>\n<p>The requested URL was not found on the server. If you entered the URL \
    manually please check your spelling and try again.</p>\n";

/// The call's name, for fault rules and the log.
pub(super) fn classify(request: &Request) -> &'static str {
    match (request.method.as_str(), without_prefix(&request.segments())) {
        ("POST", ["v3", "auth", "tokens"] | ["v2.0", "tokens"]) => "authenticate",
        ("GET" | "HEAD", ["v3", "auth", "tokens"]) => "validate-token",
        ("DELETE", ["v3", "auth", "tokens"]) => "revoke-token",
        ("GET", [] | ["v3"] | ["v2.0"]) => "identity-versions",
        _ => "identity-other",
    }
}

fn without_prefix<'a, 'b>(segments: &'b [&'a str]) -> &'b [&'a str] {
    segments.strip_prefix(&["identity"]).unwrap_or(segments)
}

pub(super) fn handle(cloud: &Cloud, request: &Request, call: &str) -> Reply {
    let segments = request.segments();
    let path = without_prefix(&segments);
    let behaviour = cloud.behaviour();
    let prefix = if path.len() < segments.len() { "/identity" } else { "" };
    let base = format!("{}{prefix}", request.base);
    let answered = match (call, path) {
        ("identity-versions", []) => Ok(versions(&behaviour, &base)),
        ("identity-versions", ["v3"]) => {
            Ok(Reply::json(200, &json!({"version": version_3(&behaviour, &base)})))
        }
        (_, ["v2.0", ..]) if !behaviour.legacy_apis => Err(Refusal::NoSuchPage),
        ("identity-versions", ["v2.0"]) => {
            Ok(Reply::json(200, &json!({"version": version_2(&base)})))
        }
        ("authenticate", ["v3", ..]) => login_3(cloud, request),
        ("authenticate", ["v2.0", ..]) => login_2(cloud, request),
        ("validate-token", _) => validate(cloud, request),
        ("revoke-token", _) => revoke(cloud, request),
        _ => Err(Refusal::NoSuchPage),
    };
    answered
        .unwrap_or_else(|refusal| refusal.reply(&behaviour, &base))
        .header("Vary", "X-Auth-Token")
        .header("Date", date(behaviour.clock_ahead))
        .header("x-openstack-request-id", format!("req-{}", Uuid::new_v4()))
}

/// The moment by a clock that is so many seconds ahead.
fn date(ahead: i64) -> String {
    let (now, apart) = (SystemTime::now(), Duration::from_secs(ahead.unsigned_abs()));
    let then = if ahead < 0 { now.checked_sub(apart) } else { now.checked_add(apart) };
    httpdate::fmt_http_date(then.unwrap_or(now))
}

/// Why Keystone says no.
enum Refusal {
    Unauthorized,
    /// A path that leads nowhere.
    NoSuchPage,
    NotFound(String),
    Malformed(String),
}

impl Refusal {
    fn reply(&self, behaviour: &Behaviour, base: &str) -> Reply {
        let (status, title, message) = match self {
            Self::Unauthorized => return unauthorized(base),
            Self::NoSuchPage if behaviour.generation == Generation::Zed => return no_such_page(),
            Self::NoSuchPage => (404, "Not Found", "The resource could not be found."),
            Self::NotFound(message) => (404, "Not Found", message.as_str()),
            Self::Malformed(message) => (400, "Bad Request", message.as_str()),
        };
        let error = json!({"code": status, "message": message, "title": title});
        Reply::json(status, &json!({"error": error}))
    }
}

/// Flask's page for people.
fn no_such_page() -> Reply {
    Reply {
        status: 404,
        headers: vec![("Content-Type", "text/html; charset=utf-8".into())],
        body: NO_SUCH_PAGE.into(),
    }
}

/// Keystone, when a token is not one of its own.
fn no_such_token() -> Refusal {
    Refusal::NotFound("Could not recognize Fernet token".to_owned())
}

/// The one 401 of Keystone and of the middleware in front of Cinder.
pub(super) fn unauthorized(base: &str) -> Reply {
    let error = json!({
        "code": 401,
        "message": "The request you have made requires authentication.",
        "title": "Unauthorized",
    });
    Reply::json(401, &json!({"error": error}))
        .header("WWW-Authenticate", format!("Keystone uri=\"{base}\""))
}

fn versions(behaviour: &Behaviour, base: &str) -> Reply {
    let mut values = vec![version_3(behaviour, base)];
    if behaviour.legacy_apis {
        values.push(version_2(base));
    }
    Reply::json(300, &json!({"versions": {"values": values}}))
}

fn version_3(behaviour: &Behaviour, base: &str) -> Value {
    let (id, updated) = match behaviour.generation {
        Generation::Queens => ("v3.8", "2017-02-22T00:00:00Z"),
        Generation::Zed => ("v3.14", "2020-04-07T00:00:00Z"),
    };
    json!({
        "id": id,
        "status": "stable",
        "updated": updated,
        "links": [{"rel": "self", "href": format!("{base}/v3/")}],
        "media-types": [{
            "base": "application/json",
            "type": "application/vnd.openstack.identity-v3+json",
        }],
    })
}

fn version_2(base: &str) -> Value {
    json!({
        "id": "v2.0",
        "status": "deprecated",
        "updated": "2016-08-04T00:00:00Z",
        "links": [
            {"rel": "self", "href": format!("{base}/v2.0/")},
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
        ],
        "media-types": [{
            "base": "application/json",
            "type": "application/vnd.openstack.identity-v2.0+json",
        }],
    })
}

/// Who logged in, for which project.
struct Login {
    user: User,
    project: Option<Project>,
    methods: Vec<String>,
    application_credential: Option<String>,
}

impl Login {
    fn new(user: User, project: Option<Project>, method: &str) -> Self {
        let methods = vec![method.to_owned()];
        Self { user, project, methods, application_credential: None }
    }

    /// With a token, which stays what it was.
    fn again(token: &Token, user: User, project: Option<Project>) -> Self {
        let mut methods = vec!["token".to_owned()];
        methods.extend(token.methods.iter().filter(|method| *method != "token").cloned());
        let application_credential = token.application_credential.clone();
        Self { user, project, methods, application_credential }
    }
}

fn login_3(cloud: &Cloud, request: &Request) -> Result<Reply, Refusal> {
    let body = request.json().map_err(|error| Refusal::Malformed(error.message))?;
    let auth = member(&body, "auth")?;
    let identity = member(auth, "identity")?;
    let method = identity.get("methods").and_then(|methods| methods.get(0)).and_then(Value::as_str);
    let login = cloud.store.read(|state| match method {
        Some("password") => {
            let user = password_user(state, &identity["password"]["user"]);
            let user = user.ok_or(Refusal::Unauthorized)?;
            let project = scope_3(state, &user, auth.get("scope")).ok_or(Refusal::Unauthorized)?;
            Ok(Login::new(user, project, "password"))
        }
        Some("token") => {
            let id = identity["token"]["id"].as_str();
            let token = id.and_then(|id| find_token(state, id)).ok_or_else(no_such_token)?;
            let user = find_user(state, &token.user_id).ok_or(Refusal::Unauthorized)?;
            let project = scope_3(state, &user, auth.get("scope")).ok_or(Refusal::Unauthorized)?;
            Ok(Login::again(&token, user, project))
        }
        Some("application_credential") => {
            application_credential(state, &identity["application_credential"])
        }
        _ => Err(Refusal::Unauthorized),
    })?;
    let (id, token) = issue(cloud, &login);
    let view = token_3(cloud, request, &token).ok_or(Refusal::Unauthorized)?;
    Ok(Reply::json(201, &view).header("X-Subject-Token", id))
}

fn login_2(cloud: &Cloud, request: &Request) -> Result<Reply, Refusal> {
    let body = request.json().map_err(|error| Refusal::Malformed(error.message))?;
    let Some(Value::Object(auth)) = body.get("auth") else {
        return Err(Refusal::Malformed(
            "Expecting to find auth in request body. The server could not comply with the request \
             since it is either malformed or otherwise incorrect. The client is assumed to be in \
             error."
                .into(),
        ));
    };
    let login = cloud.store.read(|state| {
        let (user, method) = if let Some(credentials) = auth.get("passwordCredentials") {
            let name = credentials["username"].as_str();
            let id = credentials["userId"].as_str();
            let found = state.users.iter().find(|user| {
                (name == Some(&user.name) || id == Some(&user.id))
                    && credentials["password"].as_str() == Some(&user.password)
            });
            (found?.clone(), "password")
        } else {
            let token = find_token(state, auth.get("token")?["id"].as_str()?)?;
            (find_user(state, &token.user_id)?, "token")
        };
        let text = |key| auth.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let project = match (text("tenantId"), text("tenantName")) {
            (None, None) => None,
            (id, name) => Some(find_project(state, &user, id, name)?),
        };
        Some(Login::new(user, project, method))
    });
    let login = login.ok_or(Refusal::Unauthorized)?;
    let (id, token) = issue(cloud, &login);
    Ok(Reply::json(200, &token_2(cloud, request, &id, &token, &login)))
}

fn member<'a>(
    object: &'a Map<String, Value>,
    key: &str,
) -> Result<&'a Map<String, Value>, Refusal> {
    match object.get(key) {
        Some(Value::Object(member)) => Ok(member),
        Some(_) => Err(Refusal::Malformed(format!("'{key}' is not of type 'object'"))),
        None => Err(Refusal::Malformed(super::http::required(key))),
    }
}

fn is_default_domain(domain: Option<&Value>) -> bool {
    domain.is_some_and(|domain| {
        domain["id"].as_str() == Some(DOMAIN_ID) || domain["name"].as_str() == Some(DOMAIN_NAME)
    })
}

fn password_user(state: &State, wanted: &Value) -> Option<User> {
    let found = state.users.iter().find(|user| {
        let by_id = wanted["id"].as_str() == Some(&user.id);
        let by_name =
            wanted["name"].as_str() == Some(&user.name) && is_default_domain(wanted.get("domain"));
        (by_id || by_name) && wanted["password"].as_str() == Some(&user.password)
    });
    found.cloned()
}

/// An unknown id is the one thing that Keystone does not call a 401.
fn application_credential(state: &State, wanted: &Value) -> Result<Login, Refusal> {
    let known = |id: &str| state.application_credentials.iter().any(|one| one.id == id);
    if let Some(id) = wanted["id"].as_str().filter(|id| !known(id)) {
        let message = format!("Could not find Application Credential: {id}.");
        return Err(Refusal::NotFound(message));
    }
    let credential = state.application_credentials.iter().find(|credential| {
        let by_id = wanted["id"].as_str() == Some(&credential.id);
        let by_name = wanted["name"].as_str() == Some(&credential.name)
            && find_user(state, &credential.user_id).is_some_and(|user| {
                let owner = &wanted["user"];
                owner["id"].as_str() == Some(&user.id)
                    || owner["name"].as_str() == Some(&user.name)
                        && is_default_domain(owner.get("domain"))
            });
        (by_id || by_name) && wanted["secret"].as_str() == Some(&credential.secret)
    });
    let credential = credential.ok_or(Refusal::Unauthorized)?;
    let user = find_user(state, &credential.user_id).ok_or(Refusal::Unauthorized)?;
    let project = find_project(state, &user, Some(&credential.project_id), None);
    let project = Some(project.ok_or(Refusal::Unauthorized)?);
    let login = Login::new(user, project, "application_credential");
    Ok(Login { application_credential: Some(credential.id.clone()), ..login })
}

/// `None` = no such project for this user; `Some(None)` = unscoped was asked for.
#[expect(clippy::option_option, reason = "the two are different answers")]
fn scope_3(state: &State, user: &User, scope: Option<&Value>) -> Option<Option<Project>> {
    match scope {
        None => {
            find_project(state, user, user.projects.first().map(String::as_str), None).map(Some)
        }
        Some(Value::String(text)) if text == "unscoped" => Some(None),
        Some(scope) => {
            let wanted = scope.get("project")?;
            let name = wanted["name"].as_str();
            if name.is_some() && !is_default_domain(wanted.get("domain")) {
                return None;
            }
            find_project(state, user, wanted["id"].as_str(), name).map(Some)
        }
    }
}

fn find_project(
    state: &State,
    user: &User,
    id: Option<&str>,
    name: Option<&str>,
) -> Option<Project> {
    let project = state.projects.iter().find(|project| match id {
        Some(id) => project.id == id,
        None => name == Some(&project.name),
    })?;
    user.projects.contains(&project.id).then(|| project.clone())
}

fn find_user(state: &State, id: &str) -> Option<User> {
    state.users.iter().find(|user| user.id == id).cloned()
}

fn find_token(state: &State, id: &str) -> Option<Token> {
    state.tokens.get(id).filter(|token| token.expires > clock::now()).cloned()
}

/// The token of a request to Cinder, if it is good.
pub(super) fn token(cloud: &Cloud, request: &Request) -> Option<Token> {
    let id = request.header("X-Auth-Token")?;
    cloud.store.read(|state| find_token(state, id))
}

fn issue(cloud: &Cloud, login: &Login) -> (String, Token) {
    let issued = clock::now();
    let id = format!("gAAAAA{}{}", hex_id(), hex_id());
    let token = Token {
        user_id: login.user.id.clone(),
        project_id: login.project.as_ref().map(|project| project.id.clone()),
        methods: login.methods.clone(),
        application_credential: login.application_credential.clone(),
        audit_id: hex_id().chars().take(22).collect(),
        issued,
        expires: issued + i64::from(cloud.behaviour().token_seconds) * 1_000_000,
    };
    cloud.store.change(|state| {
        state.tokens.retain(|_, token| token.expires > issued);
        state.tokens.insert(id.clone(), token.clone());
    });
    (id, token)
}

fn validate(cloud: &Cloud, request: &Request) -> Result<Reply, Refusal> {
    token(cloud, request).ok_or(Refusal::Unauthorized)?;
    let subject = request.header("X-Subject-Token").ok_or_else(no_such_token)?;
    let found = cloud.store.read(|state| find_token(state, subject)).ok_or_else(no_such_token)?;
    let view = token_3(cloud, request, &found).ok_or_else(no_such_token)?;
    Ok(Reply::json(200, &view).header("X-Subject-Token", subject))
}

fn revoke(cloud: &Cloud, request: &Request) -> Result<Reply, Refusal> {
    token(cloud, request).ok_or(Refusal::Unauthorized)?;
    let subject = request.header("X-Subject-Token").ok_or_else(no_such_token)?;
    let removed = cloud.store.change(|state| state.tokens.remove(subject));
    removed.map(|_| Reply::empty(204)).ok_or_else(no_such_token)
}

fn token_3(cloud: &Cloud, request: &Request, token: &Token) -> Option<Value> {
    let (user, project, role_id) = cloud.store.read(|state| {
        let project = token.project_id.as_ref();
        let project =
            project.and_then(|id| state.projects.iter().find(|project| project.id == *id));
        Some((find_user(state, &token.user_id)?, project.cloned(), state.role_id.clone()))
    })?;
    let domain = json!({"id": DOMAIN_ID, "name": DOMAIN_NAME});
    let mut view = json!({
        "methods": token.methods,
        "user": {
            "domain": domain,
            "id": user.id,
            "name": user.name,
            "password_expires_at": null,
        },
        "audit_ids": [token.audit_id],
        "expires_at": clock::keystone(token.expires),
        "issued_at": clock::keystone(token.issued),
    });
    if let Some(id) = &token.application_credential {
        let name = cloud.store.read(|state| {
            let mut credentials = state.application_credentials.iter();
            credentials.find(|one| one.id == *id).map(|one| one.name.clone())
        });
        view["application_credential"] = json!({"id": id, "name": name, "restricted": true});
    }
    if let Some(project) = project {
        let services = services(&cloud.behaviour(), &request.base, &project.id);
        view["project"] = json!({"domain": domain, "id": project.id, "name": project.name});
        view["is_domain"] = false.into();
        view["roles"] = json!([{"id": role_id, "name": ROLE}]);
        view["catalog"] = services.iter().map(Service::catalog_3).collect();
    }
    Some(json!({"token": view}))
}

fn token_2(cloud: &Cloud, request: &Request, id: &str, token: &Token, login: &Login) -> Value {
    let mut view = json!({
        "id": id,
        "issued_at": clock::keystone(token.issued),
        "expires": clock::keystone(token.expires),
        "audit_ids": [token.audit_id],
    });
    let mut catalog = Vec::new();
    let mut roles = Vec::new();
    if let Some(project) = &login.project {
        view["tenant"] =
            json!({"description": "", "enabled": true, "id": project.id, "name": project.name});
        let services = services(&cloud.behaviour(), &request.base, &project.id);
        catalog = services.iter().map(Service::catalog_2).collect();
        roles.push(json!({"name": ROLE}));
    }
    let role_ids = if roles.is_empty() {
        Vec::new()
    } else {
        vec![cloud.store.read(|state| state.role_id.clone())]
    };
    json!({"access": {
        "token": view,
        "serviceCatalog": catalog,
        "user": {
            "username": login.user.name,
            "roles_links": [],
            "id": login.user.id,
            "roles": roles,
            "name": login.user.name,
        },
        "metadata": {"is_admin": 0, "roles": role_ids},
    }})
}

/// A row of the catalog; its three interfaces have one URL.
struct Service {
    kind: &'static str,
    name: &'static str,
    url: String,
}

fn services(behaviour: &Behaviour, base: &str, project: &str) -> Vec<Service> {
    let queens = behaviour.generation == Generation::Queens;
    let service = |kind, name, path: &str| Service { kind, name, url: format!("{base}{path}") };
    let volume_3 = format!("/volume/v3/{project}");
    let identity = if queens && behaviour.legacy_apis { "/v2.0" } else { "/v3" };
    let mut services = vec![service("identity", "keystone", identity)];
    if behaviour.block_storage {
        if behaviour.legacy_apis {
            services.push(service("volumev2", "cinderv2", &format!("/volume/v2/{project}")));
        }
        services.push(service("volumev3", "cinderv3", &volume_3));
        if !queens {
            services.push(service("block-storage", "cinder", &volume_3));
        }
    }
    services.push(service("image", "glance", "/image"));
    if behaviour.nova != Nova::Absent {
        services.push(service("compute", "nova", &format!("/compute/v2.1/{project}")));
    }
    services
}

impl Service {
    fn id(&self, part: &str) -> String {
        let name = format!("{} {} {part}", self.kind, self.url);
        Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).simple().to_string()
    }

    fn catalog_3(&self) -> Value {
        let endpoints = ["public", "internal", "admin"].map(|interface| {
            json!({
                "id": self.id(interface),
                "interface": interface,
                "region_id": REGION,
                "region": REGION,
                "url": self.url,
            })
        });
        json!({
            "endpoints": endpoints,
            "id": self.id("service"),
            "type": self.kind,
            "name": self.name,
        })
    }

    fn catalog_2(&self) -> Value {
        json!({
            "endpoints": [{
                "adminURL": self.url,
                "region": REGION,
                "internalURL": self.url,
                "id": self.id("public"),
                "publicURL": self.url,
            }],
            "endpoints_links": [],
            "type": self.kind,
            "name": self.name,
        })
    }
}
