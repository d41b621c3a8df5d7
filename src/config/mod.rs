//! The operator's settings: file + environment + clouds.yaml → one validated [`Settings`].
//!
//! Three named steps: the *file* as it is written (`file.rs`, all optional), *merged* with what
//! the environment and clouds.yaml (`clouds.rs`) add (`places.rs`), *validated* (`auth.rs` for the
//! cloud, `validate.rs` for the rest) into [`Settings`], the only thing that the rest of the program
//! sees.

mod auth;
mod clouds;
mod file;
mod findings;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod places;
mod profiles;
mod validate;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use uuid::Uuid;

use file::ConfigFile;
use findings::Findings;
pub use findings::{ConfigErrors, Warning};
pub use profiles::Profile;

/// The config file of the Go driver, kept.
pub const DEFAULT_CONFIG_PATH: &str = "/var/lib/cinder/dockerdriver/config.json";
/// Where dockerd looks for the plugin.
pub const DEFAULT_SOCKET_PATH: &str = "/run/docker/plugins/cinder.sock";

/// Every key of the config file, in the spelling that messages use.
pub fn keys() -> impl Iterator<Item = &'static str> {
    file::KEYS.iter().map(|(key, _)| *key)
}

/// Looks a variable up. A parameter, so that tests need not change the process's own environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads the settings from the config file at `path`, from `OS_*` variables for what the file
/// leaves out, and from the clouds.yaml entry that either names (`Cloud`, `OS_CLOUD`) for the rest.
///
/// # Errors
/// All problems at once, each with its place. Without a config file the other two must suffice.
pub fn load(path: &Path, env: Environment<'_>) -> Result<(Settings, Vec<Warning>), ConfigErrors> {
    let mut findings = Findings::default();
    let settings = merge_and_validate(path, env, &mut findings).unwrap_or_else(|problem| {
        findings.problem(problem);
        None
    });
    findings.conclude(path, settings)
}

/// `None` when something is missing or wrong, as noted; an error when there is nothing to look at.
fn merge_and_validate(
    path: &Path,
    env: Environment<'_>,
    findings: &mut Findings,
) -> Result<Option<Settings>, String> {
    let (file, exists) = match file::read(path, findings)? {
        Some(file) => (file, true),
        None => (ConfigFile::default(), false),
    };
    let cloud_entry = clouds::read(&file, env, findings)?;
    let cloud_entry = cloud_entry.as_ref();
    if !exists && places::Places::new(&file, env, cloud_entry).are_empty() {
        return Err(HOW_TO_MAKE_ONE.to_owned());
    }
    Ok(validated(&file, env, cloud_entry, findings))
}

/// `None` when something is missing or wrong, as noted.
fn validated(
    file: &ConfigFile,
    env: Environment<'_>,
    cloud_entry: Option<&clouds::CloudEntry>,
    findings: &mut Findings,
) -> Option<Settings> {
    let places = places::Places::new(file, env, cloud_entry);
    let cloud = auth::settings(&places, findings);
    let mut checker = validate::Checker::new(file, findings);
    let host = checker.host();
    let driver = checker.driver(&host.mount_point);
    let socket_group = checker.socket_group();
    let metrics = checker.metrics();
    cloud.map(|cloud| Settings { cloud, host, driver, socket_group, metrics })
}

/// What to tell someone who has not configured anything.
const HOW_TO_MAKE_ONE: &str = r#"there is no such file, and no OS_* variable names a cloud.
Write it, readable by root only (chmod 600), with at least
{
    "Endpoint": "https://keystone.example:5000/v3",
    "Username": "…",
    "Password": "…",
    "TenantID": "the id of the project"
}
or name an entry of a clouds.yaml: { "Cloud": "…" }"#;

/// Everything the daemon needs to know, validated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach and authenticate at the cloud.
    pub cloud: CloudSettings,
    /// How this host presents itself and mounts.
    pub host: HostSettings,
    /// What the driver decides with.
    pub driver: DriverSettings,
    /// Group that owns the plugin socket (`SocketGroup`): a name or a number. `None` = root.
    pub socket_group: Option<String>,
    /// Where metrics are served (`Metrics`); `None` = nowhere, and nothing is counted.
    pub metrics: Option<crate::metrics::server::Address>,
}

/// Identity and endpoints (`Endpoint`, `Username`, … and `OS_*`).
#[derive(Debug, Clone)]
pub struct CloudSettings {
    /// Keystone's address as people write it: with `/v2.0`, `/v3`, or without a version.
    pub endpoint: String,
    /// Credentials.
    pub credentials: Credentials,
    /// What the token is scoped to. Ignored for an application credential.
    pub scope: Scope,
    /// Region in the catalog. Empty = the first one that has the service.
    pub region: String,
    /// Catalog interface: `public`, `internal` or `admin`.
    pub interface: String,
    /// Overrides the catalog (`BlockStorageEndpoint`), with or without the project id at its end.
    pub block_storage_endpoint: Option<String>,
    /// PEM bundle of extra certificate authorities (`CACert`, `OS_CACERT`).
    pub ca_file: Option<PathBuf>,
    /// PEM client certificate and its key (`Cert`/`Key`, `OS_CERT`/`OS_KEY`).
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Do not verify TLS certificates (`Insecure`, `OS_INSECURE`).
    pub insecure: bool,
}

/// Who logs in.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// Keystone v2.0 or v3 password.
    Password {
        /// Name or id of the user.
        user: NameOrId,
        /// Domain of a user given by name (v3). `Default`/`default` when not configured.
        user_domain: NameOrId,
        /// The password.
        password: SecretString,
    },
    /// Keystone v3 application credential.
    ApplicationCredential {
        /// Name (then `user` is needed) or id of the credential.
        credential: NameOrId,
        /// User and its domain, for a credential given by name.
        user: Option<(NameOrId, NameOrId)>,
        /// Its secret.
        secret: SecretString,
    },
    /// A ready-made token, rescoped by Keystone.
    Token(SecretString),
}

/// The project of the token.
#[derive(Debug, Clone)]
pub enum Scope {
    /// By id or name; a name belongs to the domain given.
    Project {
        /// The project (v2.0: tenant). The Go driver's `TenantID` is an id.
        project: NameOrId,
        /// Domain of a project given by name.
        domain: NameOrId,
    },
    /// Whatever Keystone gives without asking (application credential, default project).
    Unscoped,
}

/// Keystone finds things by one or the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameOrId {
    /// A name.
    Name(String),
    /// An id.
    Id(String),
}

/// What the host's side needs.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// Where volumes are mounted, `MountPoint/NAME` (`MountPoint`).
    pub mount_point: PathBuf,
    /// Address given to Cinder as the connector's `ip` (`InitiatorIP`). Wins over the interface.
    pub initiator_ip: Option<IpAddr>,
    /// Network interface whose first global address is the connector's `ip`, or the name of an
    /// interface record of open-iscsi (`InitiatorIFace`). `default` = the kernel's choice.
    pub initiator_iface: String,
    /// Host name given to Cinder as the connector's `host` (`ConnectorHost`). `None` = hostname.
    pub connector_host: Option<String>,
    /// UUID that Cinder shows in *Attached to* (`HostUUID`), when the operator set one.
    pub host_uuid: Option<Uuid>,
}

/// What decisions depend on.
#[derive(Debug, Clone)]
pub struct DriverSettings {
    /// Where the journal lives (`StateDir`).
    pub state_dir: PathBuf,
    /// GiB of a volume created without `size` (`DefaultVolSz`).
    pub default_size: u64,
    /// Volume type of a volume created without `type` (`DefaultVolumeType`).
    pub default_type: Option<String>,
    /// Filesystem of a volume created without `fs` (`DefaultFilesystem`): ext4, xfs or btrfs.
    pub default_filesystem: String,
    /// Which attach flow to use (`AttachFlow`).
    pub attach_flow: AttachFlowSetting,
    /// List every nameable volume of the project (`ListAll`).
    pub list_all: bool,
    /// Remove may delete volumes that this driver did not make (`RemoveForeign`).
    pub remove_foreign: bool,
    /// A blank volume made elsewhere may be formatted (`FormatForeign`).
    pub format_foreign: bool,
    /// Back end hands out unwiped blocks (`"NewVolumeBlocks": "dirty"`).
    pub new_volumes_are_dirty: bool,
    /// How long a Mount waits for another host to let go (`WaitForRelease`, seconds).
    pub wait_for_release: Duration,
    /// Sub-directory of the filesystem that containers see (`ContentDirectory`).
    pub content_directory: String,
    /// Taking volumes from hosts that are gone.
    pub failover: FailoverSettings,
    /// Whose volumes these are, where several clusters share a project (`ClusterID`).
    pub cluster: Option<String>,
    /// Zone of a volume created without `availability_zone` (`AvailabilityZone`).
    pub availability_zone: Option<String>,
    /// Named sets of create options (`Profiles`), in the order of the file.
    pub profiles: Vec<Profile>,
}

/// `Failover`, `FailoverLease`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverSettings {
    /// Volume types whose volumes are taken from a host that gives no sign of life; none = off.
    pub types: Vec<String>,
    /// The silence after which a host may be taken for gone.
    pub lease: Duration,
}

/// `AttachFlow` in the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachFlowSetting {
    /// HostUUID set → actions; else attachments where the cloud takes them.
    Auto,
    /// Always os-reserve … os-attach.
    Actions,
    /// Always the attachments API.
    Attachments,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_file_is_a_configuration_or_refused_with_a_reason(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            members in crate::arbitrary::object(&[
                "Endpoint", "Username", "Password", "TenantID", "DefaultVolSz", "HostUUID",
                "InitiatorIP", "MountPoint", "SocketGroup", "WaitForRelease", "AttachFlow",
            ]),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("config.json");
            for text in [bytes, serde_json::to_vec(&members).unwrap()] {
                std::fs::write(&path, text).unwrap();
                if let Err(errors) = load(&path, &|_| None) {
                    prop_assert!(!errors.to_string().is_empty());
                }
            }
        }
    }
}
