//! What operators write, and what they are told about it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cinder_docker_driver::config::{
    self, AttachFlowSetting, Credentials, NameOrId, Scope, Settings,
};
use secrecy::ExposeSecret;
use tempfile::TempDir;

/// A directory with a config file in it, and an environment.
struct Case {
    directory: TempDir,
    variables: HashMap<String, String>,
}

impl Case {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // So that a clouds.yaml of whoever runs the tests is not found.
        let home = directory.path().to_str().unwrap().to_owned();
        Self { directory, variables: HashMap::from([("HOME".to_owned(), home)]) }
    }

    fn with_config(text: impl AsRef<[u8]>) -> Self {
        let case = Self::new();
        case.write("config.json", text);
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn env(mut self, variables: &[(&str, &str)]) -> Self {
        let owned = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        self.variables.extend(owned);
        self
    }

    fn load(&self) -> Result<(Settings, Vec<String>), Vec<String>> {
        config::load(&self.path("config.json"), &|name| self.variables.get(name).cloned())
            .map(|(settings, warnings)| {
                (settings, warnings.iter().map(ToString::to_string).collect())
            })
            .map_err(|errors| errors.problems().to_vec())
    }

    /// The settings, when there is nothing to warn about.
    #[track_caller]
    fn settings(&self) -> Settings {
        let (settings, warnings) = self.load().unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        settings
    }

    #[track_caller]
    fn warnings(&self) -> Vec<String> {
        self.load().unwrap().1
    }

    #[track_caller]
    fn problems(&self) -> Vec<String> {
        self.load().unwrap_err()
    }
}

/// A config with what is required and the members given.
fn complete_with(members: &str) -> Case {
    Case::with_config(format!(
        "{{\"Endpoint\": \"http://k:5000/v3\", \"Username\": \"u\", \"Password\": \"hunter2\", \
         \"TenantID\": \"p\",\n{members}}}"
    ))
}

#[track_caller]
fn assert_password(settings: &Settings, name: &str, secret: &str) {
    let Credentials::Password { user, password, .. } = &settings.cloud.credentials else {
        panic!("{:?}", settings.cloud.credentials)
    };
    assert_eq!(*user, NameOrId::Name(name.to_owned()));
    assert_eq!(password.expose_secret(), secret);
}

#[track_caller]
fn assert_project(settings: &Settings, project: &NameOrId, domain: &str) {
    let Scope::Project { project: found, domain: found_domain } = &settings.cloud.scope else {
        panic!("{:?}", settings.cloud.scope)
    };
    assert_eq!(found, project);
    assert_eq!(*found_domain, NameOrId::Name(domain.to_owned()));
}

fn id(text: &str) -> NameOrId {
    NameOrId::Id(text.to_owned())
}

fn name(text: &str) -> NameOrId {
    NameOrId::Name(text.to_owned())
}

// The Go driver's configurations.

#[test]
fn the_config_of_the_first_post_loads_with_the_go_drivers_defaults() {
    let case = Case::with_config(
        r#"
    {
        "HostUUID": "82ee38eb-821b-42d0-8c61-c4974d0c8536",
        "Endpoint": "http://172.16.140.243:5000/v2.0",
        "Username": "jdg",
        "Password": "NotMyPassword",
        "TenantID": "3dce5dd10b414ac1b942aba8ce8558e7"
    }
"#,
    );
    let settings = case.settings();
    assert_eq!(settings.cloud.endpoint, "http://172.16.140.243:5000/v2.0");
    assert_password(&settings, "jdg", "NotMyPassword");
    assert_project(&settings, &id("3dce5dd10b414ac1b942aba8ce8558e7"), "Default");
    assert_eq!(settings.cloud.region, "RegionOne");
    assert_eq!(settings.cloud.interface, "public");
    assert!(!settings.cloud.insecure);
    let uuid = settings.host.host_uuid.unwrap().to_string();
    assert_eq!(uuid, "82ee38eb-821b-42d0-8c61-c4974d0c8536");
    assert_eq!(settings.host.mount_point, Path::new("/var/lib/cinder/mount"));
    assert_eq!(settings.host.initiator_iface, "default");
    assert_eq!(settings.host.initiator_ip, None);
    assert_eq!(settings.driver.default_size, 1);
    assert_eq!(settings.driver.content_directory, "volume_content");
    assert_eq!(settings.driver.state_dir, Path::new("/var/lib/cinder/dockerdriver/state"));
    assert_eq!(settings.driver.default_filesystem, "ext4");
    assert_eq!(settings.driver.attach_flow, AttachFlowSetting::Auto);
    assert!(settings.driver.failover.types.is_empty(), "off");
    assert_eq!(settings.driver.wait_for_release, Duration::from_secs(15));
    assert!(settings.driver.format_foreign);
    assert!(!settings.driver.new_volumes_are_dirty);
    assert_eq!(settings.socket_group, None);
}

#[test]
fn the_config_of_the_mesos_post_loads() {
    let case = Case::with_config(
        r#"    {
        "Endpoint": "http://172.27.31.11:5000/v2.0",
        "Username": "mesos",
        "Password": "mesospw",
        "TenantID": "c637cfebdc844837a6eb7011c4732255",
        "DefaultVolSz": 1,
        "HostUUID": "219b0670-a214-4281-8424-5bb3beaaa107",
        "InitiatorIP": "172.27.30.107"
}

"#,
    );
    let settings = case.settings();
    assert_eq!(settings.driver.default_size, 1);
    assert_eq!(settings.host.initiator_ip, Some(IpAddr::V4(Ipv4Addr::new(172, 27, 30, 107))));
    assert_password(&settings, "mesos", "mesospw");
}

#[test]
fn the_go_drivers_own_v3_config_loads() {
    let case = Case::with_config(
        r#"{ "Endpoint": "http://10.117.36.27/identity/v3", "Username": "admin",
             "Password": "nomoresecret", "TenantID": "f90c6e1559594a198f2a8c9228002bcf",
             "DomainName": "MyAuthDomain", "Region": "RegionTwo", "SocketGroup": "docker" }"#,
    );
    let settings = case.settings();
    let Credentials::Password { user_domain, .. } = &settings.cloud.credentials else { panic!() };
    assert_eq!(*user_domain, name("MyAuthDomain"));
    assert_project(&settings, &id("f90c6e1559594a198f2a8c9228002bcf"), "MyAuthDomain");
    assert_eq!(settings.cloud.region, "RegionTwo");
    assert_eq!(settings.socket_group.as_deref(), Some("docker"));
}

#[test]
fn the_example_has_every_key_of_the_go_driver_and_loads() {
    let text = include_str!("../config.example.json");
    let case = Case::with_config(text);
    case.settings();
    let keys: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap();
    for key in [
        "Endpoint",
        "Username",
        "Password",
        "TenantID",
        "DefaultVolSz",
        "HostUUID",
        "InitiatorIP",
        "InitiatorIFace",
        "MountPoint",
        "SocketGroup",
        "DomainName",
        "Region",
    ] {
        assert!(keys.contains_key(key), "{key}");
    }
}

#[test]
fn keys_match_without_regard_to_case_and_empty_or_null_is_left_out() {
    let case = Case::with_config(
        r#"{"endpoint": "http://k/v3", "USERNAME": "u", "password": "p", "TenantId": "t",
            "HostUUID": "", "InitiatorIP": null, "Region": "", "MountPoint": "",
            "defaultvolsz": null, "Insecure": null}"#,
    );
    let settings = case.settings();
    assert_eq!(settings.host.host_uuid, None);
    assert_eq!(settings.cloud.region, "RegionOne");
    assert_eq!(settings.host.mount_point, Path::new("/var/lib/cinder/mount"));
}

#[test]
fn values_that_the_go_driver_took_are_taken_still() {
    let digits = complete_with(r#""DefaultVolSz": "20""#).settings();
    assert_eq!(digits.driver.default_size, 20);
    let plain = complete_with(r#""HostUUID": "219B0670A21442818424 5BB3BE109DDD""#).problems();
    assert!(plain[0].contains("HostUUID"), "{plain:?}");
    let plain = complete_with(r#""HostUUID": "219b0670a214428184245bb3be109ddd""#).settings();
    let uuid = plain.host.host_uuid.unwrap().to_string();
    assert_eq!(uuid, "219b0670-a214-4281-8424-5bb3be109ddd");
    let device = complete_with(r#""InitiatorIFace": "/dev/eth4""#).settings();
    assert_eq!(device.host.initiator_iface, "eth4");
    let (zero, warnings) = complete_with(r#""DefaultVolSz": 0"#).load().unwrap();
    assert_eq!(zero.driver.default_size, 1);
    assert_eq!(warnings, ["line 2, column 17: DefaultVolSz is 0, 1 (GiB) is used"]);
}

// Every key.

#[test]
fn every_setting_of_this_host_and_the_driver_can_be_written() {
    let settings = complete_with(
        r#""MountPoint": "/mnt//cvols/", "InitiatorIP": "2001:db8::1", "InitiatorIFace": "eth1",
           "ConnectorHost": "node-7", "SocketGroup": "999", "StateDir": "/var/lib/x",
           "DefaultVolSz": 5, "DefaultVolumeType": "ssd", "DefaultFilesystem": "XFS",
           "AttachFlow": "attachments", "ListAll": true, "RemoveForeign": "true",
           "FormatForeign": false, "NewVolumeBlocks": "dirty", "WaitForRelease": "90",
           "ContentDirectory": "", "Failover": ["fast", "faster"], "FailoverLease": 60,
           "ClusterID": "blue-7", "AvailabilityZone": "zone 1",
           "Profiles": {"db": {"names": "db-*", "size": 5, "fs": "xfs"}, "other": {}}"#,
    )
    .settings();
    assert_eq!(settings.host.mount_point, Path::new("/mnt/cvols"));
    assert_eq!(settings.host.mount_point.as_os_str(), "/mnt/cvols");
    assert_eq!(settings.host.initiator_ip, Some("2001:db8::1".parse().unwrap()));
    assert_eq!(settings.host.initiator_iface, "eth1");
    assert_eq!(settings.host.connector_host.as_deref(), Some("node-7"));
    assert_eq!(settings.socket_group.as_deref(), Some("999"));
    let driver = settings.driver;
    assert_eq!(driver.state_dir, Path::new("/var/lib/x"));
    assert_eq!(driver.default_size, 5);
    assert_eq!(driver.default_type.as_deref(), Some("ssd"));
    assert_eq!(driver.default_filesystem, "xfs");
    assert_eq!(driver.attach_flow, AttachFlowSetting::Attachments);
    assert!(driver.list_all && driver.remove_foreign && !driver.format_foreign);
    assert!(driver.new_volumes_are_dirty);
    assert_eq!(driver.wait_for_release, Duration::from_secs(90));
    assert_eq!(driver.content_directory, "");
    assert_eq!(driver.failover.types, ["fast", "faster"]);
    assert_eq!(driver.failover.lease, Duration::from_secs(60));
    assert_eq!(driver.cluster.as_deref(), Some("blue-7"));
    assert_eq!(driver.availability_zone.as_deref(), Some("zone 1"));
    let [db, other] = &*driver.profiles else { panic!("{:?}", driver.profiles) };
    assert_eq!((&*db.name, &*db.names, &*other.name), ("db", &["db-*".to_owned()][..], "other"));
    assert_eq!((&*db.options["size"], &*db.options["fs"]), ("5", "xfs"));
    assert!(db.is_for("db-1") && !db.is_for("web") && !other.is_for("web"));
}

#[test]
fn every_setting_of_the_cloud_can_be_written() {
    let case = Case::new();
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        case.write(file, "");
    }
    let home = case.directory.path().display();
    case.write(
        "config.json",
        format!(
            r#"{{"Endpoint": "https://k:5000", "UserID": "uid", "Password": " p ",
                 "ProjectName": "proj", "ProjectDomainName": "pd", "UserDomainID": "ud",
                 "DomainName": "other", "Interface": "internalURL",
                 "BlockStorageEndpoint": "https://c:8776/v3", "CACert": "{home}/ca.pem",
                 "Cert": "~/cert.pem", "Key": "{home}/key.pem"}}"#
        ),
    );
    let cloud = case.settings().cloud;
    let Credentials::Password { user, user_domain, password } = &cloud.credentials else {
        panic!()
    };
    assert_eq!((user, user_domain), (&id("uid"), &id("ud")));
    assert_eq!(password.expose_secret(), " p ");
    let Scope::Project { project, domain } = &cloud.scope else { panic!() };
    assert_eq!((project, domain), (&name("proj"), &name("pd")));
    assert_eq!(cloud.interface, "internal");
    assert_eq!(cloud.block_storage_endpoint.as_deref(), Some("https://c:8776/v3"));
    assert_eq!(cloud.ca_file, Some(case.path("ca.pem")));
    assert_eq!(cloud.client_certificate, Some((case.path("cert.pem"), case.path("key.pem"))));
}

#[test]
fn an_application_credential_and_a_token_log_in_too() {
    let by_id = Case::with_config(
        r#"{"Endpoint": "http://k/v3", "ApplicationCredentialID": "i",
            "ApplicationCredentialSecret": "s"}"#,
    )
    .settings();
    let Credentials::ApplicationCredential { credential, user: None, secret } =
        by_id.cloud.credentials
    else {
        panic!()
    };
    assert_eq!((credential, secret.expose_secret()), (id("i"), "s"));
    assert!(matches!(by_id.cloud.scope, Scope::Unscoped));

    let by_name = Case::with_config(
        r#"{"Endpoint": "http://k/v3", "ApplicationCredentialName": "n", "Username": "u",
            "ApplicationCredentialSecret": "s", "TenantID": "ignored"}"#,
    )
    .settings();
    let Credentials::ApplicationCredential { credential, user, .. } = by_name.cloud.credentials
    else {
        panic!()
    };
    assert_eq!((credential, user), (name("n"), Some((name("u"), name("Default")))));

    let token = Case::with_config(r#"{"Endpoint": "http://k/v3", "Token": "t", "ProjectID": "p"}"#)
        .settings();
    let Credentials::Token(secret) = &token.cloud.credentials else { panic!() };
    assert_eq!(secret.expose_secret(), "t");
    assert_project(&token, &id("p"), "Default");
}

#[test]
fn an_application_credential_by_name_needs_its_user() {
    let problems = Case::with_config(
        r#"{"Endpoint": "http://k/v3", "ApplicationCredentialName": "n",
            "ApplicationCredentialSecret": "s"}"#,
    )
    .problems();
    assert!(problems[0].contains("Username"), "{problems:?}");
}

#[test]
fn two_ways_to_log_in_are_one_too_many() {
    let problems = complete_with(r#""Token": "t""#).problems();
    assert_eq!(problems, ["config file: a password and a token are given, keep one"]);
}

#[test]
fn an_empty_name_of_a_key_leaves_room_for_its_other_name() {
    let settings = complete_with(r#""ProjectID": """#).settings();
    assert_project(&settings, &id("p"), "Default");
    let tenant = [("OS_PROJECT_NAME", ""), ("OS_TENANT_NAME", "old")];
    assert_project(&Case::new().env(OPENRC).env(&tenant).settings(), &name("old"), "env-domain");
}

#[test]
fn two_names_of_one_key_must_not_differ() {
    let problems = complete_with(r#""ProjectID": "q""#).problems();
    assert_eq!(problems, ["line 2, column 14: ProjectID differs from TenantID: keep one"]);
    complete_with(r#""ProjectID": "p""#).settings();
}

// The environment.

const OPENRC: &[(&str, &str)] = &[
    ("OS_AUTH_URL", "http://env:5000/v3"),
    ("OS_USERNAME", "env-user"),
    ("OS_PASSWORD", "env-password"),
    ("OS_PROJECT_NAME", "env-project"),
    ("OS_PROJECT_DOMAIN_NAME", "env-domain"),
    ("OS_REGION_NAME", "env-region"),
    ("OS_INTERFACE", "internal"),
    ("OS_PROJECT_ID", ""),
];

#[test]
fn an_openrc_environment_suffices_without_a_config_file() {
    let settings = Case::new().env(OPENRC).settings();
    assert_eq!(settings.cloud.endpoint, "http://env:5000/v3");
    assert_password(&settings, "env-user", "env-password");
    assert_project(&settings, &name("env-project"), "env-domain");
    assert_eq!(settings.cloud.region, "env-region");
    assert_eq!(settings.cloud.interface, "internal");
}

#[test]
fn the_environment_fills_only_what_the_file_leaves_out() {
    let settings = Case::with_config(r#"{"Username": "u", "TenantID": "t", "Password": ""}"#)
        .env(OPENRC)
        .settings();
    assert_password(&settings, "u", "env-password");
    assert_project(&settings, &id("t"), "env-domain");
    assert_eq!(settings.cloud.endpoint, "http://env:5000/v3");
}

#[test]
fn a_password_in_the_file_wins_over_another_method_in_the_environment() {
    let settings = complete_with(r#""ListAll": false"#)
        .env(&[("OS_AUTH_TYPE", "v3token"), ("OS_TOKEN", "t")])
        .settings();
    assert_password(&settings, "u", "hunter2");
}

#[test]
fn os_auth_type_decides_between_two_methods() {
    let both =
        Case::new().env(OPENRC).env(&[("OS_TOKEN", "t"), ("OS_AUTH_TYPE", "v3token")]).settings();
    assert!(matches!(both.cloud.credentials, Credentials::Token(_)));
    let unknown = Case::new().env(OPENRC).env(&[("OS_AUTH_TYPE", "v3oidcpassword")]).problems();
    assert!(unknown[0].starts_with("environment: OS_AUTH_TYPE is \"v3oidcpassword\""));
}

#[test]
fn insecure_works_and_warns() {
    for case in [
        complete_with(r#""Insecure": true"#),
        complete_with(r#""ListAll": false"#).env(&[("OS_INSECURE", "True")]),
    ] {
        let (settings, warnings) = case.load().unwrap();
        assert!(settings.cloud.insecure);
        assert!(warnings[0].contains("not verified"), "{warnings:?}");
    }
    let off = complete_with(r#""Insecure": false"#).env(&[("OS_INSECURE", "1")]).settings();
    assert!(!off.cloud.insecure);
}

// clouds.yaml.

const CLOUDS: &str = "
clouds:
  mesos:
    auth:
      auth_url: http://clouds:5000/v3
      username: cloud-user
      project_id: 83808667817e4102
      user_domain_name: ud
    region_name: cloud-region
    interface: admin
    verify: false
    identity_api_version: 3
  other:
    auth_type: v3applicationcredential
    auth: {auth_url: 'http://o/v3', application_credential_id: i, application_credential_secret: s}
";

#[test]
fn a_cloud_of_clouds_yaml_with_its_secure_yaml_suffices() {
    let case = Case::with_config(r#"{"Cloud": "mesos"}"#);
    case.write(".config/openstack/clouds.yaml", CLOUDS);
    case.write(
        ".config/openstack/secure.yaml",
        "clouds: {mesos: {auth: {password: 0123}}, third: {auth: {password: x}}}",
    );
    let (settings, warnings) = case.load().unwrap();
    assert_eq!(settings.cloud.endpoint, "http://clouds:5000/v3");
    assert_password(&settings, "cloud-user", "0123");
    assert_project(&settings, &id("83808667817e4102"), "Default");
    assert_eq!(settings.cloud.region, "cloud-region");
    assert_eq!(settings.cloud.interface, "admin");
    assert!(settings.cloud.insecure);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn os_cloud_names_a_cloud_and_the_file_and_the_environment_win_over_it() {
    let case = Case::with_config(r#"{"Username": "u", "Region": "r"}"#).env(&[
        ("OS_CLOUD", "mesos"),
        ("OS_PASSWORD", "env-password"),
        ("OS_PROJECT_NAME", "env-project"),
        ("OS_INSECURE", "false"),
    ]);
    case.write(".config/openstack/clouds.yml", CLOUDS);
    let settings = case.settings();
    assert_password(&settings, "u", "env-password");
    assert_project(&settings, &name("env-project"), "Default");
    assert_eq!(settings.cloud.region, "r");
    assert_eq!(settings.cloud.endpoint, "http://clouds:5000/v3");
}

#[test]
fn clouds_file_names_another_place_and_a_cloud_without_region_takes_any() {
    let case = Case::new().env(&[("OS_CLOUD", "other")]);
    case.write("elsewhere.yaml", CLOUDS);
    let path = case.path("elsewhere.yaml");
    case.write("config.json", format!(r#"{{"CloudsFile": {path:?}}}"#));
    let settings = case.settings();
    assert_eq!(settings.cloud.region, "");
    assert!(matches!(settings.cloud.credentials, Credentials::ApplicationCredential { .. }));
}

#[test]
fn a_cloud_that_is_not_there_is_a_problem_that_names_those_that_are() {
    let case = Case::with_config(r#"{"Cloud": "meso"}"#);
    let problems = case.problems();
    assert!(problems[0].contains(".config/openstack/clouds.yaml"), "{problems:?}");
    case.write(".config/openstack/clouds.yaml", CLOUDS);
    let problems = case.problems();
    assert!(problems[0].contains(r#"no cloud "meso"; it has: "mesos", "other""#), "{problems:?}");
}

// Warnings.

#[test]
fn unknown_and_repeated_keys_are_warned_about_with_their_place() {
    let case = complete_with(
        "  \"HostUID\": \"219b0670-a214-4281-8424-5bb3be109ddd\",\n  \"Colour\": 1,\n  \
         \"region\": \"a\",\n  \"Region\": \"b\"",
    );
    let (settings, warnings) = case.load().unwrap();
    assert_eq!(settings.cloud.region, "b");
    assert_eq!(
        warnings,
        [
            "line 2, column 3: unknown key \"HostUID\" is ignored (did you mean HostUUID?)",
            "line 3, column 3: unknown key \"Colour\" is ignored",
            "line 5, column 3: Region is there more than once, the last one counts",
        ]
    );
}

#[test]
fn a_file_with_a_secret_that_all_may_read_is_warned_about() {
    let case = complete_with(r#""ListAll": false"#);
    let path = case.path("config.json");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let warnings = case.warnings();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].ends_with(&format!("chmod 600 {}", path.display())), "{warnings:?}");

    let without = Case::with_config(r#"{"ListAll": true}"#).env(OPENRC);
    fs::set_permissions(without.path("config.json"), fs::Permissions::from_mode(0o644)).unwrap();
    without.settings();
}

#[test]
fn a_user_without_a_project_is_warned_about() {
    let case = Case::with_config(r#"{"Endpoint": "http://k", "Username": "u", "Password": "p"}"#);
    let (settings, warnings) = case.load().unwrap();
    assert!(matches!(settings.cloud.scope, Scope::Unscoped));
    assert!(warnings[0].contains("TenantID"), "{warnings:?}");
}

// Problems.

#[test]
fn all_problems_are_told_at_once() {
    let problems = complete_with(
        r#"  "Endpoint": "keystone:5000",
  "MountPoint": "mnt",
  "DefaultVolSz": -1,
  "HostUUID": "219b0670-a214-4281-8424-5bb3beaaa5",
  "InitiatorIP": "172.27.30",
  "AttachFlow": "both",
  "ListAll": "maybe",
  "WaitForRelease": 91"#,
    )
    .problems();
    let mut problems = problems.iter();
    for begin in [
        "line 4, column 19: DefaultVolSz must be a whole number",
        "line 8, column 14: ListAll must be true or false",
        "line 2, column 15: Endpoint must begin with http:// or https://",
        "line 3, column 17: MountPoint must be an absolute path",
        "line 6, column 18: InitiatorIP is not an IP address: \"172.27.30\"",
        "line 5, column 15: HostUUID is not a UUID: \"219b0670-a214-4281-8424-5bb3beaaa5\" has 30",
        "line 7, column 17: AttachFlow must be one of auto, actions, attachments",
        "line 9, column 21: WaitForRelease must be 0 to 90 seconds",
    ] {
        let problem = problems.next().unwrap();
        assert!(problem.starts_with(begin), "{problem} should begin with {begin}");
    }
    assert_eq!(problems.next(), None);
}

#[test]
fn what_is_missing_is_named_with_the_places_to_write_it() {
    let problems = Case::with_config("{}").problems();
    assert_eq!(
        problems,
        [
            "the address of Keystone is missing: set Endpoint here, or OS_AUTH_URL in the \
             environment",
            "the user is missing: set Username or UserID here, or OS_USERNAME or OS_USER_ID in \
             the environment",
            "the password is missing: set Password here, or OS_PASSWORD in the environment",
        ]
    );
}

#[test]
fn without_any_config_the_error_says_how_to_make_one() {
    let case = Case::new();
    let path = case.path("config.json");
    let error = config::load(&path, &|_| None).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert!(error.contains("\"Endpoint\"") && error.contains("chmod 600"), "{error}");
}

#[test]
fn single_values_that_make_no_sense_are_refused() {
    for (member, named) in [
        (r#""Endpoint": 5"#, "Endpoint must be text in double quotes, not a number"),
        (r#""Endpoint": "ftp://k""#, "Endpoint must begin with"),
        (r#""Endpoint": "http://""#, "Endpoint is not a URL"),
        (r#""Endpoint": "http://u:hunter3@k/v3""#, "Endpoint must not hold a user"),
        (r#""Endpoint": "http://k/v3?x=1""#, "Endpoint must end with its path"),
        (r#""Password": 12345678"#, "Password must be text in double quotes, not a number"),
        (r#""Password": ["x"]"#, "Password must be text in double quotes, not a list"),
        (r#""DefaultVolSz": 1.5"#, "DefaultVolSz must be a whole number"),
        (r#""DefaultVolSz": "1GiB""#, "DefaultVolSz must be a whole number"),
        (r#""DefaultVolSz": true"#, "DefaultVolSz must be a whole number, not true or false"),
        (r#""DefaultVolSz": 1e99"#, "DefaultVolSz must be a whole number"),
        (r#""Insecure": 1"#, "Insecure must be true or false, not a number"),
        (r#""HostUUID": "node-7""#, "HostUUID is not a UUID"),
        (r#""InitiatorIP": "0.0.0.0""#, "InitiatorIP is 0.0.0.0"),
        (r#""InitiatorIP": "10.0.0.5/24""#, "InitiatorIP is not an IP address"),
        (r#""InitiatorIFace": "../eth0""#, "InitiatorIFace is not the name"),
        (r#""MountPoint": "/""#, "MountPoint must not be /"),
        (r#""MountPoint": "/mnt/../etc""#, "MountPoint must not go through .."),
        (r#""MountPoint": "/mnt\n""#, ""),
        (r#""MountPoint": "/mnt\n/x""#, "MountPoint must not hold control characters"),
        (r#""StateDir": "state""#, "StateDir must be an absolute path"),
        (r#""StateDir": "/var/lib/cinder/mount/state""#, "lies in MountPoint"),
        (r#""ContentDirectory": "../x""#, "ContentDirectory must be the plain name"),
        (r#""ContentDirectory": "lost+found""#, "ContentDirectory must be the plain name"),
        (r#""DefaultFilesystem": "ntfs""#, "DefaultFilesystem must be one of ext4, xfs, btrfs"),
        (r#""NewVolumeBlocks": "zero""#, "NewVolumeBlocks must be one of clean, dirty"),
        (r#""Failover": true"#, "Failover must be a list, not true or false"),
        (r#""Failover": ["a", 1]"#, "Failover must be a list of texts"),
        (r#""Failover": [""]"#, "Failover must name volume types"),
        (r#""Failover": "a", "AttachFlow": "actions""#, "Failover needs the attachments flow"),
        (
            r#""Failover": "a", "HostUUID": "219b0670-a214-4281-8424-5bb3beaaa509""#,
            "Failover needs the attachments flow",
        ),
        (r#""ClusterID": "a b""#, "ClusterID must be of letters"),
        (r#""ClusterID": 5"#, "ClusterID must be text"),
        (r#""Profiles": []"#, "Profiles must be an object of profiles, not a list"),
        (r#""Profiles": {"a b": {}}"#, "Profiles has a profile \"a b\": a name is of letters"),
        (
            r#""Profiles": {"db": {"sise": "5"}}"#,
            "Profiles has a profile \"db\" with a wrong option: unknown option \"sise\": did you mean \
             \"size\"?",
        ),
        (r#""Profiles": {"db": {"size": "5M"}}"#, "whole number of GiB"),
        (r#""Profiles": {"db": {"mount_opts": "bind"}}"#, "bind"),
        (r#""Profiles": {"db": {"fs": "xfs", "mkfs_opts": "-N 100"}}"#, "mkfs_opts"),
        (r#""DefaultFilesystem": "xfs", "Profiles": {"a": {"mkfs_opts": "-N 5"}}"#, "mkfs_opts"),
        (r#""Profiles": {"db": {"profile": "db"}}"#, "\"profile\" has no place in a profile"),
        (
            r#""Profiles": {"db": {"volume_id": "8f2c1f2e-6c1c-4d57-9d0a-222222222222"}}"#,
            "\"volume_id\" has no place in a profile",
        ),
        (r#""Profiles": {"db": {"from": "a", "fs": "xfs"}}"#, "the profile has a source"),
        (r#""Profiles": {"db": {"read_only": true}}"#, ""),
        (r#""Profiles": {"db": {"read_only": true, "names": "db"}}"#, "\"read_only\" needs"),
        (r#""FailoverLease": 5"#, "FailoverLease must be 10 to 3600 seconds"),
        (r#""ConnectorHost": "a b""#, "ConnectorHost must be a host name"),
        (r#""Interface": "private""#, "Interface is \"private\""),
        (r#""BlockStorageEndpoint": "c:8776""#, "BlockStorageEndpoint must begin with http://"),
        (r#""CACert": "/no/such/ca.pem""#, "CACert cannot be read: /no/such/ca.pem"),
        (r#""Key": "/no/such/key.pem""#, "Key cannot be read"),
        (r#""Cloud": true"#, "Cloud must be text"),
        (r#""Region": "\ud800""#, "Region is not a usable JSON value"),
    ] {
        let case = complete_with(member);
        match case.load() {
            Ok(_) => assert_eq!(named, "", "{member} was taken"),
            Err(problems) => {
                let all = problems.join("\n");
                assert!(!named.is_empty() && all.contains(named), "{member}: {all}");
                assert!(all.contains("line 2, column") || all.contains("StateDir"), "{all}");
                assert!(!all.contains("hunter"), "{all}");
            }
        }
    }
}

#[test]
fn files_that_are_no_configuration_are_refused_with_the_place() {
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(200_000), "]".repeat(200_000));
    let huge = format!("{{\"a\": \"{}\"}}", "x".repeat(1024 * 1024));
    let corpus: &[(&[u8], &str)] = &[
        (b"", "one JSON object"),
        (b"  \n", "one JSON object"),
        (b"hunter2", "one JSON object"),
        (b"\"hunter2\"", "one JSON object"),
        (b"[]", "one JSON object"),
        (b"null", "one JSON object"),
        (b"<html>", "one JSON object"),
        (b"Endpoint: http://k\nPassword: hunter2\n", "one JSON object"),
        (b"{", "line 1 column 1"),
        (b"{\n  Endpoint: \"http://k\"\n}", "key must be a string at line 2 column 3"),
        (b"{'Endpoint': 'http://k'}", "key must be a string at line 1 column 2"),
        (b"{\n\"Endpoint\": \"http://k\"\n\"Password\": \"hunter2\"}", "line 3 column 1"),
        (b"{\"Endpoint\": \"http://k\",\n}", "trailing comma at line 2 column 1"),
        (b"{\"Endpoint\" \"hunter2\"}", "expected `:` at line 1 column 13"),
        (b"{\"Password\": \"hunter2}", "line 1 column 22"),
        (b"{\"Password\": \"hunter2\nx\"}", "line 1 column 21"),
        (b"{\"Password\": \"hunter2\\x\"}", "line 1 column 23"),
        (b"{\"Password\": hunter2}", "line 1 column 14"),
        (b"{\"DefaultVolSz\": 01}", "line 1 column 19"),
        (b"{\"DefaultVolSz\": NaN}", "line 1 column 18"),
        (b"{} {}", "trailing characters at line 1 column 4"),
        (b"{} # hunter2", "trailing characters"),
        (b"// c\n{}", "one JSON object"),
        (b"{ // c\n}", "key must be a string"),
        (b"{\"Password\": \"hunter2\xff\"}", "not UTF-8 text: bad byte at line 1, column 22"),
        (b"\xff\xfe{\0}\0", "not UTF-8 text"),
        (b"\x7fELF\x02\x01", "one JSON object"),
        (deep.as_bytes(), ""),
        (huge.as_bytes(), "larger than 1 MiB"),
    ];
    for (bytes, told) in corpus {
        let case = Case::with_config(bytes).env(OPENRC);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        match case.load() {
            Ok(_) => assert_eq!(*told, "", "{shown} was taken"),
            Err(problems) => {
                let [only] = problems.as_slice() else { panic!("{shown}: {problems:?}") };
                assert!(only.contains(told), "{shown}: {only}");
                assert!(!only.contains("hunter2"), "{only}");
            }
        }
    }
}

#[test]
fn a_directory_or_a_fifo_is_not_read() {
    let case = Case::new();
    fs::create_dir(case.path("config.json")).unwrap();
    assert_eq!(case.problems(), ["cannot read the file: it is not a regular file"]);
    let case = Case::new();
    nix::unistd::mkfifo(&case.path("config.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(case.problems(), ["cannot read the file: it is not a regular file"]);
}

#[test]
fn no_secret_is_in_debug_output_or_messages() {
    let case = complete_with(r#""Pasword": "hunter3", "Endpoint": "hunter4 http://""#);
    let errors = config::load(&case.path("config.json"), &|_| None).unwrap_err();
    assert!(!format!("{errors:?} {errors}").contains("hunter"), "{errors:?}");
    let (settings, warnings) = complete_with(r#""Pasword": "hunter3""#).load().unwrap();
    assert!(!format!("{settings:?} {warnings:?}").contains("hunter"));
    assert!(!warnings.is_empty());
}

#[test]
fn metrics_are_off_and_served_on_this_host_only() {
    let metrics = |value: &str| complete_with(&format!("\"Metrics\": \"{value}\""));
    assert_eq!(complete_with("\"Region\": \"r\"").settings().metrics, None);
    assert_eq!(metrics("").settings().metrics, None);
    for value in ["127.0.0.1:9101", "[::1]:9101", "unix:/run/cinder-metrics.sock"] {
        assert_eq!(metrics(value).settings().metrics.unwrap().to_string(), value);
    }
    for (value, says) in [
        ("0.0.0.0:9101", "which others can reach"),
        ("10.0.0.9:9101", "which others can reach"),
        ("9101", "loopback address with a port"),
        ("unix:relative", "absolute path"),
    ] {
        let problems = metrics(value).problems();
        let [problem] = &problems[..] else { panic!("{value}: {problems:?}") };
        assert!(problem.contains("Metrics") && problem.contains(says), "{problem}");
    }
}
