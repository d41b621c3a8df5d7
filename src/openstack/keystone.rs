//! Keystone: credentials → token and catalog. Who keeps the token is `session.rs`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use url::Url;

use super::answer::Answer;
use super::catalog::Catalog;
use super::endpoint::{IdentityEndpoint, IdentityVersion};
use super::http::{Body, Call, Http, Repeat, Service};
use super::{CloudError, CloudErrorKind};
use crate::config::{CloudSettings, Credentials, NameOrId, Scope};

/// A token is renewed when less than this, or a tenth of its life, is left.
const RENEW_BEFORE: Duration = Duration::from_secs(5 * 60);

/// A token with all that came with it.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) secret: SecretString,
    pub(super) project_id: Option<String>,
    pub(super) roles: Vec<String>,
    pub(super) catalog: Catalog,
    /// Root of the identity version that gave it.
    pub(super) identity_url: Url,
    /// By how many seconds Keystone's clock was ahead of ours.
    pub(super) clock_ahead: Option<i64>,
    obtained: Instant,
    /// From `obtained` on. By Keystone's own clock where possible, for this host's may be wrong.
    lifetime: Option<Duration>,
}

impl Token {
    /// What is left of its life; `None` = Keystone did not say.
    pub(super) fn expires_in(&self) -> Option<Duration> {
        Some(self.lifetime?.saturating_sub(self.obtained.elapsed()))
    }

    pub(super) fn has_expired(&self) -> bool {
        self.expires_in().is_some_and(|left| left.is_zero())
    }

    pub(super) fn should_be_renewed(&self) -> bool {
        match (self.expires_in(), self.lifetime) {
            (Some(left), Some(lifetime)) => left < RENEW_BEFORE.min(lifetime / 10),
            _ => false,
        }
    }
}

/// A Keystone and the credentials for it.
#[derive(Debug)]
pub(super) struct Keystone {
    endpoint: IdentityEndpoint,
    credentials: Credentials,
    scope: Scope,
    version: OnceCell<IdentityVersion>,
}

impl Keystone {
    pub(super) fn new(settings: &CloudSettings) -> Result<Self, CloudError> {
        Ok(Self {
            endpoint: IdentityEndpoint::parse(&settings.endpoint)?,
            credentials: settings.credentials.clone(),
            scope: settings.scope.clone(),
            version: OnceCell::new(),
        })
    }

    /// Asks for a token. Never ambiguous: a token that was issued and lost does no harm.
    pub(super) async fn authenticate(&self, http: &Http) -> Result<Token, CloudError> {
        let result = match self.version(http).await {
            Ok(IdentityVersion::V3) => self.authenticate_v3(http).await,
            Ok(IdentityVersion::V2) => self.authenticate_v2(http).await,
            Err(error) => Err(error),
        };
        result.map_err(|error| self.in_words_of_the_config(error).before_sending())
    }

    async fn version(&self, http: &Http) -> Result<IdentityVersion, CloudError> {
        match self.endpoint.version {
            Some(version) => Ok(version),
            None => self.version.get_or_try_init(|| self.discover(http)).await.copied(),
        }
    }

    /// The root lists the versions, with HTTP 300. Where a proxy hides the root, the versions are
    /// tried one by one.
    async fn discover(&self, http: &Http) -> Result<IdentityVersion, CloudError> {
        let listing = Call {
            accept: &[200, 300],
            ..Call::read(Service::Identity, "list the versions of the identity API", "/")
        };
        let refusal = match http.send(self.endpoint.base(), &listing, None).await {
            Ok(answer) => {
                let document: Value = answer.json(&listing).unwrap_or_default();
                match IdentityEndpoint::best_version(&document) {
                    Some(version) => return Ok(version),
                    None => answer.unexpected(&listing, "it lists no known version"),
                }
            }
            Err(error) if error.status.is_none() => return Err(error),
            Err(error) => error,
        };
        for version in [IdentityVersion::V3, IdentityVersion::V2] {
            let probe = Call::read(Service::Identity, "find the identity API", "");
            if http.send(&self.endpoint.versioned(version), &probe, None).await.is_ok() {
                return Ok(version);
            }
        }
        Err(refusal)
    }

    async fn authenticate_v3(&self, http: &Http) -> Result<Token, CloudError> {
        let root = self.endpoint.versioned(IdentityVersion::V3);
        if let (Credentials::Token(token), Scope::Unscoped) = (&self.credentials, &self.scope) {
            return self.validate_v3(http, root, token).await;
        }
        let call = login("/auth/tokens", request_v3(&self.credentials, &self.scope));
        match http.send(&root, &call, None).await {
            Ok(answer) => token_v3(&call, &answer, root, None),
            // Clouds may forbid to exchange a token for another (`allow_rescope_scoped_token`).
            Err(error) if error.kind == CloudErrorKind::Forbidden => match &self.credentials {
                Credentials::Token(token) => self.validate_v3(http, root, token).await,
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Uses a ready-made token as it is.
    async fn validate_v3(
        &self,
        http: &Http,
        root: Url,
        token: &SecretString,
    ) -> Result<Token, CloudError> {
        let call = Call {
            subject_token: Some(token.clone()),
            ..Call::read(Service::Identity, "check the token", "/auth/tokens")
        };
        let answer = http.send(&root, &call, Some(token)).await?;
        token_v3(&call, &answer, root, Some(token))
    }

    async fn authenticate_v2(&self, http: &Http) -> Result<Token, CloudError> {
        let root = self.endpoint.versioned(IdentityVersion::V2);
        let call = login("/tokens", request_v2(&self.credentials, &self.scope)?);
        let answer = http.send(&root, &call, None).await?;
        token_v2(&call, &answer, root)
    }

    /// Keystone's 401 is the same for a wrong password, user, project and a missing role.
    fn in_words_of_the_config(&self, mut error: CloudError) -> CloudError {
        let id = error.request_id.as_deref().map(|id| format!(", {id}")).unwrap_or_default();
        error.message = match (error.kind, error.status) {
            (CloudErrorKind::Unauthenticated, Some(status)) => {
                let check = match self.credentials {
                    Credentials::Password { .. } => {
                        "it does not say which part is wrong: check Username, Password, TenantID \
                         (or TenantName) and the domains, and that the user has a role in the \
                         project"
                    }
                    Credentials::ApplicationCredential { .. } => {
                        "check the application credential's id (or name and user) and secret, and \
                         that it has not expired"
                    }
                    Credentials::Token(_) => "the token has expired or is of another cloud",
                };
                format!("Keystone does not accept these credentials (HTTP {status}{id}): {check}")
            }
            (_, Some(404)) => match self.endpoint.version {
                Some(IdentityVersion::V2) => format!(
                    "there is no identity API v2.0 at {} (HTTP 404{id}): let Endpoint be {}",
                    self.endpoint.base(),
                    self.endpoint.versioned(IdentityVersion::V3)
                ),
                _ => format!(
                    "there is no identity API at {} (HTTP 404{id}): check Endpoint",
                    self.endpoint.base()
                ),
            },
            _ => return error,
        };
        error
    }
}

/// A request for a token. It may be repeated at will, though it is a POST.
pub(super) fn login(path: &str, body: Value) -> Call {
    Call {
        method: Method::POST,
        body: Some(Body(body)),
        repeat: Repeat::Always,
        accept: &[200, 201],
        ..Call::read(Service::Identity, "get a token", path)
    }
}

fn request_v3(credentials: &Credentials, scope: &Scope) -> Value {
    let identity = match credentials {
        Credentials::Password { user, user_domain, password } => {
            let mut user = in_domain(user, user_domain);
            user["password"] = password.expose_secret().into();
            json!({"methods": ["password"], "password": {"user": user}})
        }
        Credentials::ApplicationCredential { credential, user, secret } => {
            let mut credential = by_name_or_id(credential);
            if let Some((user, domain)) = user {
                credential["user"] = in_domain(user, domain);
            }
            credential["secret"] = secret.expose_secret().into();
            json!({"methods": ["application_credential"], "application_credential": credential})
        }
        Credentials::Token(token) => {
            json!({"methods": ["token"], "token": {"id": token.expose_secret()}})
        }
    };
    let mut auth = json!({"identity": identity});
    // An application credential carries its project; Keystone refuses another scope.
    let has_scope = !matches!(credentials, Credentials::ApplicationCredential { .. });
    if let (true, Scope::Project { project, domain }) = (has_scope, scope) {
        auth["scope"] = json!({"project": in_domain(project, domain)});
    }
    json!({"auth": auth})
}

fn request_v2(credentials: &Credentials, scope: &Scope) -> Result<Value, CloudError> {
    let mut auth = match credentials {
        Credentials::Password { user, password, .. } => {
            let password = password.expose_secret();
            let user = match user {
                NameOrId::Name(name) => json!({"username": name, "password": password}),
                NameOrId::Id(id) => json!({"userId": id, "password": password}),
            };
            json!({"passwordCredentials": user})
        }
        Credentials::Token(token) => json!({"token": {"id": token.expose_secret()}}),
        Credentials::ApplicationCredential { .. } => {
            return Err(CloudError::new(
                CloudErrorKind::BadRequest,
                "application credentials need version 3 of the identity API: let Endpoint end \
                 in /v3",
            ));
        }
    };
    match scope {
        Scope::Project { project: NameOrId::Id(id), .. } => auth["tenantId"] = id.as_str().into(),
        Scope::Project { project: NameOrId::Name(name), .. } => {
            auth["tenantName"] = name.as_str().into();
        }
        Scope::Unscoped => {}
    }
    Ok(json!({"auth": auth}))
}

/// A user or project; only a name needs its domain.
fn in_domain(thing: &NameOrId, domain: &NameOrId) -> Value {
    let mut value = by_name_or_id(thing);
    if matches!(thing, NameOrId::Name(_)) {
        value["domain"] = match domain {
            // Everybody's first domain has the id `default` and the name `Default`, and people
            // write one for the other; only MySQL forgives that.
            NameOrId::Name(name) if name == "default" => json!({"id": "default"}),
            NameOrId::Id(id) if id == "Default" => json!({"name": "Default"}),
            domain => by_name_or_id(domain),
        };
    }
    value
}

fn by_name_or_id(thing: &NameOrId) -> Value {
    match thing {
        NameOrId::Name(name) => json!({"name": name}),
        NameOrId::Id(id) => json!({"id": id}),
    }
}

/// `ready_made`: the token itself, where Keystone only described it.
pub(super) fn token_v3(
    call: &Call,
    answer: &Answer,
    identity_url: Url,
    ready_made: Option<&SecretString>,
) -> Result<Token, CloudError> {
    let body: Value = answer.json(call)?;
    let token = &body["token"];
    let secret = ready_made.or(answer.subject_token.as_ref()).cloned();
    let secret = secret.ok_or_else(|| answer.unexpected(call, "its answer has no token"))?;
    let issued = if ready_made.is_some() { &Value::Null } else { &token["issued_at"] };
    Ok(Token {
        secret,
        project_id: text(&token["project"]["id"]),
        roles: names(&token["roles"]),
        catalog: Catalog::from_v3(&token["catalog"]),
        identity_url,
        clock_ahead: answer.clock_ahead,
        obtained: Instant::now(),
        lifetime: lifetime(issued, &token["expires_at"]),
    })
}

pub(super) fn token_v2(
    call: &Call,
    answer: &Answer,
    identity_url: Url,
) -> Result<Token, CloudError> {
    let body: Value = answer.json(call)?;
    let access = &body["access"];
    let token = &access["token"];
    let secret =
        text(&token["id"]).ok_or_else(|| answer.unexpected(call, "its answer has no token"))?;
    Ok(Token {
        secret: secret.into(),
        project_id: text(&token["tenant"]["id"]),
        roles: names(&access["user"]["roles"]),
        catalog: Catalog::from_v2(&access["serviceCatalog"]),
        identity_url,
        clock_ahead: answer.clock_ahead,
        obtained: Instant::now(),
        lifetime: lifetime(&token["issued_at"], &token["expires"]),
    })
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(ToOwned::to_owned)
}

fn names(roles: &Value) -> Vec<String> {
    let roles = roles.as_array().into_iter().flatten();
    roles.filter_map(|role| text(&role["name"])).collect()
}

/// From issue to end, or from now by this host's clock when the issue is unknown.
fn lifetime(issued: &Value, expires: &Value) -> Option<Duration> {
    let end = utc_seconds(expires.as_str()?)?;
    let start = match issued.as_str().and_then(utc_seconds) {
        Some(issued) => issued,
        None => SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs(),
    };
    Some(Duration::from_secs(end.saturating_sub(start)))
}

/// Seconds since 1970 of Keystone's `2026-11-23T02:23:59.000000Z`; always UTC, with or without
/// fraction and Z.
fn utc_seconds(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| -> Option<u64> { text.get(range)?.parse().ok() };
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let in_range = (1970..=9999).contains(&year) && (1..=12).contains(&month);
    if !in_range || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from the civil calendar, with the year beginning in March so that leap days come last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    // 719468 days lie between 0000-03-01 and 1970-01-01.
    let days = days.checked_sub(719_468)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NameOrId {
        NameOrId::Name(text.to_owned())
    }

    fn id(text: &str) -> NameOrId {
        NameOrId::Id(text.to_owned())
    }

    fn password(user: NameOrId, user_domain: NameOrId) -> Credentials {
        Credentials::Password { user, user_domain, password: "geheim".to_owned().into() }
    }

    fn project(project: NameOrId) -> Scope {
        Scope::Project { project, domain: name("Default") }
    }

    #[test]
    fn version_3_takes_user_and_project_by_name_with_their_domains() {
        let request = request_v3(&password(name("mesos"), name("Default")), &project(name("p")));
        assert_eq!(
            request,
            json!({"auth": {
                "identity": {"methods": ["password"], "password": {"user": {
                    "name": "mesos", "domain": {"name": "Default"}, "password": "geheim"}}},
                "scope": {"project": {"name": "p", "domain": {"name": "Default"}}}}})
        );
    }

    #[test]
    fn version_3_takes_user_and_project_by_id_without_a_domain() {
        let request = request_v3(&password(id("u1"), name("Default")), &project(id("p1")));
        let user = &request["auth"]["identity"]["password"]["user"];
        assert_eq!(*user, json!({"id": "u1", "password": "geheim"}));
        assert_eq!(request["auth"]["scope"], json!({"project": {"id": "p1"}}));
    }

    #[test]
    fn the_default_domain_is_found_by_whichever_of_its_names_was_written() {
        for (written, sent) in [
            (name("Default"), json!({"name": "Default"})),
            (name("default"), json!({"id": "default"})),
            (id("default"), json!({"id": "default"})),
            (id("Default"), json!({"name": "Default"})),
            (name("users"), json!({"name": "users"})),
        ] {
            assert_eq!(in_domain(&name("u"), &written)["domain"], sent, "{written:?}");
        }
    }

    #[test]
    fn an_application_credential_carries_no_scope() {
        let by_id = Credentials::ApplicationCredential {
            credential: id("c1"),
            user: None,
            secret: "geheim".to_owned().into(),
        };
        assert_eq!(
            request_v3(&by_id, &project(id("p1"))),
            json!({"auth": {"identity": {
                "methods": ["application_credential"],
                "application_credential": {"id": "c1", "secret": "geheim"}}}})
        );
        let by_name = Credentials::ApplicationCredential {
            credential: name("docker"),
            user: Some((name("mesos"), id("default"))),
            secret: "geheim".to_owned().into(),
        };
        assert_eq!(
            request_v3(&by_name, &Scope::Unscoped)["auth"]["identity"]["application_credential"],
            json!({"name": "docker", "secret": "geheim",
                   "user": {"name": "mesos", "domain": {"id": "default"}}})
        );
    }

    #[test]
    fn a_ready_made_token_is_scoped_to_the_project() {
        let token = Credentials::Token("t0k3n".to_owned().into());
        let request = request_v3(&token, &project(id("p1")));
        assert_eq!(request["auth"]["identity"]["token"], json!({"id": "t0k3n"}));
        assert_eq!(request["auth"]["scope"], json!({"project": {"id": "p1"}}));
    }

    #[test]
    fn version_2_knows_tenants_by_id_and_name_and_no_domains() {
        let user = password(name("mesos"), name("Default"));
        assert_eq!(
            request_v2(&user, &project(id("t1"))).unwrap(),
            json!({"auth": {"tenantId": "t1",
                "passwordCredentials": {"username": "mesos", "password": "geheim"}}})
        );
        let request = request_v2(&user, &project(name("mesos"))).unwrap();
        assert_eq!(request["auth"]["tenantName"], "mesos");
    }

    #[test]
    fn times_of_keystone_are_read_with_and_without_fraction_and_zone() {
        assert_eq!(utc_seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(utc_seconds("2000-02-29T12:00:00Z"), Some(951_825_600));
        assert_eq!(utc_seconds("2026-11-23T02:23:59.000000Z"), Some(1_795_400_639));
        assert_eq!(utc_seconds("2026-11-23T02:23:59"), Some(1_795_400_639));
        for nonsense in ["", "tomorrow", "2026-13-01T00:00:00Z", "2026-11-23", "20é6-11-23T00"] {
            assert_eq!(utc_seconds(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_wrong_clock_on_this_host_does_not_change_a_tokens_life() {
        let issued = json!("2001-01-01T00:00:00.000000Z");
        let expires = json!("2001-01-01T01:00:00.000000Z");
        assert_eq!(lifetime(&issued, &expires), Some(Duration::from_secs(3600)));
        assert_eq!(lifetime(&Value::Null, &expires), Some(Duration::ZERO));
        assert_eq!(lifetime(&issued, &Value::Null), None);
    }
}
