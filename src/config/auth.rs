//! How to reach the cloud and log in, put together from the three [`places`](super::places).

use std::path::PathBuf;

use secrecy::ExposeSecret;
use url::Url;

use super::file::ConfigFile;
use super::findings::Findings;
use super::places::{
    AUTH_TYPE, BLOCK_STORAGE_ENDPOINT, CA_CERT, CERT, CREDENTIAL_ID, CREDENTIAL_NAME,
    CREDENTIAL_SECRET, ENDPOINT, Field, Found, INSECURE, INTERFACE, KEY, PASSWORD,
    PROJECT_DOMAIN_ID, PROJECT_DOMAIN_NAME, PROJECT_ID, PROJECT_NAME, Places, REGION, TOKEN,
    USER_DOMAIN_ID, USER_DOMAIN_NAME, USER_ID, USER_NAME, VERIFY,
};
use super::{CloudSettings, Credentials, NameOrId, Scope};

/// The Go driver's region, and DevStack's.
const DEFAULT_REGION: &str = "RegionOne";
/// The domain that every Keystone is born with, as the Go driver wrote it.
const DEFAULT_DOMAIN: &str = "Default";

/// Everything about the cloud. `None` when a part is missing or wrong, which is then noted.
pub(super) fn settings(places: &Places<'_>, findings: &mut Findings) -> Option<CloudSettings> {
    let endpoint = match places.find(&ENDPOINT) {
        Some(found) => address(&found, findings),
        None => {
            places.missing("the address of Keystone", &[ENDPOINT], findings);
            None
        }
    };
    let credentials = credentials(places, findings);
    refuse_contradictions(places.config(), findings);
    let scope = match &credentials {
        Some(Credentials::ApplicationCredential { .. }) => Scope::Unscoped,
        _ => scope(places),
    };
    if matches!((&credentials, &scope), (Some(Credentials::Password { .. }), Scope::Unscoped)) {
        findings.warn(
            "no project is named (TenantID, ProjectID or ProjectName): the user's default project \
             is used, if it has one",
        );
    }
    let region = places.find_text(&REGION).unwrap_or_else(|| {
        // A cloud of clouds.yaml without a region has only one.
        if places.have_a_cloud() { String::new() } else { DEFAULT_REGION.to_owned() }
    });
    let insecure = insecure(places, findings);
    if insecure {
        findings.warn(
            "Insecure is set: TLS certificates are not verified, so anybody on the way can read \
             the password",
        );
    }
    let settings = CloudSettings {
        endpoint: endpoint.unwrap_or_default(),
        credentials: credentials?,
        scope,
        region,
        interface: interface(places, findings),
        block_storage_endpoint: places
            .find(&BLOCK_STORAGE_ENDPOINT)
            .and_then(|found| address(&found, findings)),
        ca_file: readable(places, &CA_CERT, findings),
        client_certificate: client_certificate(places, findings),
        insecure,
    };
    Some(settings)
}

/// An address that a client can be given. It is never quoted: people write passwords into it.
fn address(found: &Found, findings: &mut Findings) -> Option<String> {
    let text = found.text();
    let what = match Url::parse(text) {
        Err(error) => {
            format!("is not a URL ({error}): it should look like http://10.0.0.1:5000/v3")
        }
        Ok(url) if !matches!(url.scheme(), "http" | "https") => {
            "must begin with http:// or https://".to_owned()
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            "must not hold a user or password: there are Username and Password for them".to_owned()
        }
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            "must end with its path, without ? and #".to_owned()
        }
        Ok(_) => return Some(text.to_owned()),
    };
    findings.wrong(&found.origin, what);
    None
}

/// A way to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Password,
    ApplicationCredential,
    Token,
}

impl Method {
    /// By what a place shows that it means this method, and how it is called in messages.
    fn signs(self) -> (&'static [Field], &'static str) {
        match self {
            Self::Password => (&[PASSWORD], "a password"),
            Self::ApplicationCredential => {
                (&[CREDENTIAL_ID, CREDENTIAL_NAME, CREDENTIAL_SECRET], "an application credential")
            }
            Self::Token => (&[TOKEN], "a token"),
        }
    }
}

/// The method of the nearest place that shows one. An `auth_type` beside it decides between two.
fn method(places: &Places<'_>, findings: &mut Findings) -> Option<Method> {
    for place in places.nearest_first() {
        if let Some(found) = place.get(&AUTH_TYPE) {
            let method = match found.text().to_ascii_lowercase().as_str() {
                "password" | "v2password" | "v3password" => Method::Password,
                "token" | "v2token" | "v3token" => Method::Token,
                "v3applicationcredential" => Method::ApplicationCredential,
                other => {
                    let known = "password, token and v3applicationcredential";
                    findings.wrong(&found.origin, format!("is {other:?}; known are {known}"));
                    return None;
                }
            };
            return Some(method);
        }
        let shown: Vec<Method> = [Method::Password, Method::ApplicationCredential, Method::Token]
            .into_iter()
            .filter(|method| method.signs().0.iter().any(|field| place.get(field).is_some()))
            .collect();
        match shown.as_slice() {
            [] => {}
            [method] => return Some(*method),
            several => {
                let several: Vec<_> = several.iter().map(|method| method.signs().1).collect();
                let several = several.join(" and ");
                findings.problem(format!("{}: {several} are given, keep one", place.name()));
                return None;
            }
        }
    }
    Some(Method::Password)
}

fn credentials(places: &Places<'_>, findings: &mut Findings) -> Option<Credentials> {
    let user = places.name_or_id(&USER_ID, &USER_NAME);
    let user_domain = places
        .name_or_id(&USER_DOMAIN_ID, &USER_DOMAIN_NAME)
        .unwrap_or_else(|| NameOrId::Name(DEFAULT_DOMAIN.to_owned()));
    match method(places, findings)? {
        Method::Password => {
            let password = places.find(&PASSWORD);
            if user.is_none() {
                places.missing("the user", &[USER_NAME, USER_ID], findings);
            }
            if password.is_none() {
                places.missing("the password", &[PASSWORD], findings);
            }
            Some(Credentials::Password { user: user?, user_domain, password: password?.value })
        }
        Method::ApplicationCredential => {
            let credential = places.name_or_id(&CREDENTIAL_ID, &CREDENTIAL_NAME);
            let secret = places.find(&CREDENTIAL_SECRET);
            if credential.is_none() {
                let fields = [CREDENTIAL_ID, CREDENTIAL_NAME];
                places.missing("the application credential's id", &fields, findings);
            }
            if secret.is_none() {
                places.missing(
                    "the application credential's secret",
                    &[CREDENTIAL_SECRET],
                    findings,
                );
            }
            let (credential, secret) = (credential?, secret?.value);
            if matches!(credential, NameOrId::Name(_)) && user.is_none() {
                let what = "the user of an application credential given by name";
                places.missing(what, &[USER_NAME, USER_ID], findings);
                return None;
            }
            let user = user.map(|user| (user, user_domain));
            Some(Credentials::ApplicationCredential { credential, user, secret })
        }
        Method::Token => {
            let token = places.find(&TOKEN);
            if token.is_none() {
                places.missing("the token", &[TOKEN], findings);
            }
            Some(Credentials::Token(token?.value))
        }
    }
}

fn scope(places: &Places<'_>) -> Scope {
    match places.name_or_id(&PROJECT_ID, &PROJECT_NAME) {
        None => Scope::Unscoped,
        Some(project) => Scope::Project {
            project,
            domain: places
                .name_or_id(&PROJECT_DOMAIN_ID, &PROJECT_DOMAIN_NAME)
                .unwrap_or_else(|| NameOrId::Name(DEFAULT_DOMAIN.to_owned())),
        },
    }
}

/// Keystone v2.0 called a project a tenant; a file may say both, but not two things.
fn refuse_contradictions(config: &ConfigFile, findings: &mut Findings) {
    for (new, old) in [("ProjectID", "TenantID"), ("ProjectName", "TenantName")] {
        let Some(((a, origin), (b, _))) = config.text(new).zip(config.text(old)) else { continue };
        let (a, b) = (a.expose_secret().trim(), b.expose_secret().trim());
        if !a.is_empty() && !b.is_empty() && a != b {
            findings.wrong(origin, format!("differs from {old}: keep one"));
        }
    }
}

/// `publicURL`, as old clients wrote it, is `public`.
fn interface(places: &Places<'_>, findings: &mut Findings) -> String {
    const DEFAULT: &str = "public";
    let Some(found) = places.find(&INTERFACE) else { return DEFAULT.to_owned() };
    let text = found.text();
    let text = text.strip_suffix("URL").unwrap_or(text).to_ascii_lowercase();
    if !matches!(text.as_str(), "public" | "internal" | "admin") {
        findings.wrong(&found.origin, format!("is {text:?}; it must be public, internal or admin"));
    }
    text
}

fn insecure(places: &Places<'_>, findings: &mut Findings) -> bool {
    if let Some(flag) = places.config().flag("Insecure") {
        return flag;
    }
    let mut switch = |field: &Field| {
        let found = places.find(field)?;
        match found.text().to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Some(true),
            "0" | "false" | "no" | "off" => Some(false),
            _ => {
                findings.wrong(&found.origin, "must be true or false");
                None
            }
        }
    };
    switch(&INSECURE).or_else(|| switch(&VERIFY).map(|verify| !verify)).unwrap_or(false)
}

/// The certificate and its key, which may be in the same file.
fn client_certificate(places: &Places<'_>, findings: &mut Findings) -> Option<(PathBuf, PathBuf)> {
    let certificate = readable(places, &CERT, findings);
    let key = readable(places, &KEY, findings);
    if certificate.is_none() && key.is_some() {
        places.missing("the client certificate of Key", &[CERT], findings);
    }
    let certificate = certificate?;
    let key = key.unwrap_or_else(|| certificate.clone());
    Some((certificate, key))
}

/// The path of a file that is there to be read.
fn readable(places: &Places<'_>, field: &Field, findings: &mut Findings) -> Option<PathBuf> {
    let path = places.path(field)?;
    if let Err(error) = std::fs::File::open(&path)
        && let Some(found) = places.find(field)
    {
        findings.wrong(&found.origin, format!("cannot be read: {}: {error}", path.display()));
    }
    Some(path)
}
