//! Where the facts of the cloud may be written: the config file, the environment (`OS_*`), a cloud
//! of clouds.yaml.
//!
//! Each [`Field`] has its names in all three; the nearest place that has it wins. Names and ids of
//! one thing go together: a `TenantID` in the file is not joined by an `OS_PROJECT_NAME`.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::clouds::CloudEntry;
use super::file::ConfigFile;
use super::findings::{Findings, Origin};
use super::{Environment, NameOrId};

/// One fact and its names: keys of the config file, variables, keys of a cloud in clouds.yaml.
/// Of several in one place, the first counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    keys: &'static [&'static str],
    variables: &'static [&'static str],
    cloud: &'static [&'static str],
}

const fn field(
    keys: &'static [&'static str],
    variables: &'static [&'static str],
    cloud: &'static [&'static str],
) -> Field {
    Field { keys, variables, cloud }
}

pub(super) const ENDPOINT: Field = field(&["Endpoint"], &["OS_AUTH_URL"], &["auth_url"]);
pub(super) const AUTH_TYPE: Field = field(&[], &["OS_AUTH_TYPE"], &["auth_type"]);
pub(super) const USER_ID: Field = field(&["UserID"], &["OS_USER_ID"], &["user_id"]);
pub(super) const USER_NAME: Field = field(&["Username"], &["OS_USERNAME"], &["username"]);
pub(super) const PASSWORD: Field = field(&["Password"], &["OS_PASSWORD"], &["password"]);
pub(super) const USER_DOMAIN_ID: Field = field(
    &["UserDomainID"],
    &["OS_USER_DOMAIN_ID", "OS_DEFAULT_DOMAIN_ID"],
    &["user_domain_id", "default_domain_id"],
);
pub(super) const USER_DOMAIN_NAME: Field = field(
    &["UserDomainName", "DomainName"],
    &["OS_USER_DOMAIN_NAME", "OS_DOMAIN_NAME", "OS_DEFAULT_DOMAIN_NAME"],
    &["user_domain_name", "default_domain_name"],
);
pub(super) const PROJECT_ID: Field = field(
    &["ProjectID", "TenantID"],
    &["OS_PROJECT_ID", "OS_TENANT_ID"],
    &["project_id", "tenant_id"],
);
pub(super) const PROJECT_NAME: Field = field(
    &["ProjectName", "TenantName"],
    &["OS_PROJECT_NAME", "OS_TENANT_NAME"],
    &["project_name", "tenant_name"],
);
pub(super) const PROJECT_DOMAIN_ID: Field = field(
    &["ProjectDomainID"],
    &["OS_PROJECT_DOMAIN_ID", "OS_DEFAULT_DOMAIN_ID"],
    &["project_domain_id", "default_domain_id"],
);
pub(super) const PROJECT_DOMAIN_NAME: Field = field(
    &["ProjectDomainName", "DomainName"],
    &["OS_PROJECT_DOMAIN_NAME", "OS_DOMAIN_NAME", "OS_DEFAULT_DOMAIN_NAME"],
    &["project_domain_name", "default_domain_name"],
);
pub(super) const CREDENTIAL_ID: Field = field(
    &["ApplicationCredentialID"],
    &["OS_APPLICATION_CREDENTIAL_ID"],
    &["application_credential_id"],
);
pub(super) const CREDENTIAL_NAME: Field = field(
    &["ApplicationCredentialName"],
    &["OS_APPLICATION_CREDENTIAL_NAME"],
    &["application_credential_name"],
);
pub(super) const CREDENTIAL_SECRET: Field = field(
    &["ApplicationCredentialSecret"],
    &["OS_APPLICATION_CREDENTIAL_SECRET"],
    &["application_credential_secret"],
);
pub(super) const TOKEN: Field = field(&["Token"], &["OS_TOKEN"], &["token"]);
pub(super) const REGION: Field = field(&["Region"], &["OS_REGION_NAME"], &["region_name"]);
pub(super) const INTERFACE: Field =
    field(&["Interface"], &["OS_INTERFACE", "OS_ENDPOINT_TYPE"], &["interface", "endpoint_type"]);
pub(super) const BLOCK_STORAGE_ENDPOINT: Field = field(
    &["BlockStorageEndpoint"],
    &["OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE", "OS_VOLUME_ENDPOINT_OVERRIDE"],
    &["block_storage_endpoint_override", "volumev3_endpoint_override", "volume_endpoint_override"],
);
pub(super) const CA_CERT: Field = field(&["CACert"], &["OS_CACERT"], &["cacert"]);
pub(super) const CERT: Field = field(&["Cert"], &["OS_CERT"], &["cert"]);
pub(super) const KEY: Field = field(&["Key"], &["OS_KEY"], &["key"]);
/// The config file's `Insecure` is a flag and read as such.
pub(super) const INSECURE: Field = field(&[], &["OS_INSECURE"], &["insecure"]);
pub(super) const VERIFY: Field = field(&[], &[], &["verify"]);
/// Read only to say that it is not understood.
pub(super) const PROFILE: Field = field(&[], &[], &["profile"]);

impl Field {
    /// Every key that means something in a cloud of clouds.yaml.
    pub fn cloud_keys() -> impl Iterator<Item = &'static str> {
        const ALL: &[Field] = &[
            ENDPOINT,
            AUTH_TYPE,
            USER_ID,
            USER_NAME,
            PASSWORD,
            USER_DOMAIN_ID,
            USER_DOMAIN_NAME,
            PROJECT_ID,
            PROJECT_NAME,
            PROJECT_DOMAIN_ID,
            PROJECT_DOMAIN_NAME,
            CREDENTIAL_ID,
            CREDENTIAL_NAME,
            CREDENTIAL_SECRET,
            TOKEN,
            REGION,
            INTERFACE,
            BLOCK_STORAGE_ENDPOINT,
            CA_CERT,
            CERT,
            KEY,
            INSECURE,
            VERIFY,
            PROFILE,
        ];
        ALL.iter().flat_map(|field| field.cloud.iter().copied())
    }
}

/// A value and where it was found.
pub(super) struct Found {
    pub value: SecretString,
    pub origin: Origin,
}

impl Found {
    /// Without blanks around it, which only a password may have.
    pub fn text(&self) -> &str {
        self.value.expose_secret().trim()
    }
}

/// The three places, nearest first.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    File(&'a ConfigFile),
    Environment(Environment<'a>),
    Cloud(&'a CloudEntry),
}

impl Place<'_> {
    /// How messages call it.
    pub fn name(&self) -> &str {
        match self {
            Place::File(_) => "config file",
            Place::Environment(_) => "environment",
            Place::Cloud(cloud) => cloud.place(),
        }
    }

    /// The field's value here. An empty one counts as left out.
    pub fn get(&self, field: &Field) -> Option<Found> {
        let found = |value: SecretString, origin| {
            Some(Found { value, origin }).filter(|found| !found.text().is_empty())
        };
        match self {
            Place::File(file) => field.keys.iter().find_map(|key| {
                let (value, origin) = file.text(key)?;
                found(value.clone(), origin.clone())
            }),
            Place::Environment(env) => field.variables.iter().find_map(|name| {
                let origin = Origin { place: "environment".to_owned(), name: (*name).to_owned() };
                found(env(name)?.into(), origin)
            }),
            Place::Cloud(cloud) => field.cloud.iter().find_map(|key| {
                let (value, origin) = cloud.get(key)?;
                found(value.clone(), origin)
            }),
        }
    }
}

/// The three places together.
pub(super) struct Places<'a> {
    config: &'a ConfigFile,
    nearest_first: Vec<Place<'a>>,
}

impl<'a> Places<'a> {
    pub fn new(
        config: &'a ConfigFile,
        env: Environment<'a>,
        cloud: Option<&'a CloudEntry>,
    ) -> Self {
        let nearest_first = [Place::File(config), Place::Environment(env)]
            .into_iter()
            .chain(cloud.map(Place::Cloud))
            .collect();
        Self { config, nearest_first }
    }

    /// Whether nothing anywhere says where the cloud is or who logs in.
    pub fn are_empty(&self) -> bool {
        self.find(&ENDPOINT).is_none()
            && self.find(&USER_NAME).is_none()
            && self.find(&USER_ID).is_none()
    }

    pub fn config(&self) -> &ConfigFile {
        self.config
    }

    pub fn nearest_first(&self) -> &[Place<'a>] {
        &self.nearest_first
    }

    /// Whether a cloud of clouds.yaml is among them.
    pub fn have_a_cloud(&self) -> bool {
        self.nearest_first.iter().any(|place| matches!(place, Place::Cloud(_)))
    }

    pub fn find(&self, field: &Field) -> Option<Found> {
        self.nearest_first.iter().find_map(|place| place.get(field))
    }

    pub fn find_text(&self, field: &Field) -> Option<String> {
        self.find(field).map(|found| found.text().to_owned())
    }

    /// The id or the name, from the nearest place that has either; there, the id.
    pub fn name_or_id(&self, id: &Field, name: &Field) -> Option<NameOrId> {
        self.nearest_first.iter().find_map(|place| {
            let id = place.get(id).map(|found| NameOrId::Id(found.text().to_owned()));
            id.or_else(|| Some(NameOrId::Name(place.get(name)?.text().to_owned())))
        })
    }

    /// A path, with `~/` as the user's home.
    pub fn path(&self, field: &Field) -> Option<PathBuf> {
        let text = self.find_text(field)?;
        let home = || {
            self.nearest_first.iter().find_map(|place| match place {
                Place::Environment(env) => env("HOME"),
                _ => None,
            })
        };
        match text.strip_prefix("~/").zip(home()) {
            Some((rest, home)) => Some(PathBuf::from(home).join(rest)),
            None => Some(text.into()),
        }
    }

    /// Notes that `what` is nowhere, and where it may be written.
    pub fn missing(&self, what: &str, fields: &[Field], findings: &mut Findings) {
        let keys: Vec<_> = fields.iter().flat_map(|field| field.keys).copied().collect();
        if keys.iter().any(|key| self.config.is_refused(key)) {
            return;
        }
        let variables: Vec<_> = fields.iter().flat_map(|field| field.variables).copied().collect();
        findings.problem(format!(
            "{what} is missing: set {} here, or {} in the environment",
            keys.join(" or "),
            variables.join(" or "),
        ));
    }
}
