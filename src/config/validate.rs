//! What the file says about this host and the driver's decisions, checked.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret;
use uuid::Uuid;

use super::file::ConfigFile;
use super::findings::{Findings, Origin};
use super::{AttachFlowSetting, DriverSettings, FailoverSettings, HostSettings, Profile};
use crate::driver::{metadata, options};
use crate::metrics::server::Address;

const DEFAULT_MOUNT_POINT: &str = "/var/lib/cinder/mount";
const DEFAULT_STATE_DIR: &str = "/var/lib/cinder/dockerdriver/state";
/// GiB, as in the Go driver.
/// Cinder keeps sizes in 32 bits.
const MAX_SIZE: u64 = i32::MAX as u64;
const DEFAULT_SIZE: u64 = 1;
/// The interface that the kernel routes by.
const DEFAULT_INTERFACE: &str = "default";
/// The Go driver's sub-directory, so that its volumes show what they showed.
const DEFAULT_CONTENT_DIRECTORY: &str = "volume_content";
/// Seconds. After `docker kill` on the old host it may not have begun to let go yet.
const DEFAULT_WAIT_FOR_RELEASE: u64 = 15;
/// Seconds. A Mount has 110 in all and must still attach.
const MAX_WAIT_FOR_RELEASE: u64 = 90;
/// Seconds: longer than Cinder and its network are away for in a restart.
const DEFAULT_FAILOVER_LEASE: u64 = 300;
const FAILOVER_LEASES: RangeInclusive<u64> = 10..=3600;

/// Reads single keys, noting what is wrong with them.
pub(super) struct Checker<'a> {
    file: &'a ConfigFile,
    findings: &'a mut Findings,
}

impl<'a> Checker<'a> {
    pub fn new(file: &'a ConfigFile, findings: &'a mut Findings) -> Self {
        Self { file, findings }
    }

    /// The group of the plugin socket.
    pub fn socket_group(&mut self) -> Option<String> {
        self.checked("SocketGroup", |group| Ok(group.to_owned()))
    }

    /// Where metrics are served.
    pub fn metrics(&mut self) -> Option<Address> {
        self.checked("Metrics", Address::parse)
    }

    pub fn host(&mut self) -> HostSettings {
        HostSettings {
            mount_point: self.directory("MountPoint", DEFAULT_MOUNT_POINT),
            initiator_ip: self.checked("InitiatorIP", address),
            initiator_iface: self
                .checked("InitiatorIFace", interface_name)
                .unwrap_or_else(|| DEFAULT_INTERFACE.to_owned()),
            connector_host: self.checked("ConnectorHost", host_name),
            host_uuid: self.checked("HostUUID", uuid),
        }
    }

    pub fn driver(&mut self, mount_point: &Path) -> DriverSettings {
        let state_dir = self.directory("StateDir", DEFAULT_STATE_DIR);
        if state_dir.starts_with(mount_point) {
            self.findings.problem(format!(
                "StateDir {} lies in MountPoint {}, where every name may be a volume: move one",
                state_dir.display(),
                mount_point.display()
            ));
        }
        let attach_flow = match self.choice("AttachFlow", &["auto", "actions", "attachments"]) {
            "actions" => AttachFlowSetting::Actions,
            "attachments" => AttachFlowSetting::Attachments,
            _ => AttachFlowSetting::Auto,
        };
        let default_filesystem = self.choice("DefaultFilesystem", &["ext4", "xfs", "btrfs"]);
        DriverSettings {
            state_dir,
            default_size: self.default_size(),
            default_type: self.checked("DefaultVolumeType", |name| Ok(name.to_owned())),
            default_filesystem: default_filesystem.to_owned(),
            attach_flow,
            list_all: self.file.flag("ListAll").unwrap_or(false),
            remove_foreign: self.file.flag("RemoveForeign").unwrap_or(false),
            format_foreign: self.file.flag("FormatForeign").unwrap_or(true),
            new_volumes_are_dirty: self.choice("NewVolumeBlocks", &["clean", "dirty"]) == "dirty",
            wait_for_release: self.wait_for_release(),
            content_directory: self.content_directory(),
            failover: self.failover(attach_flow),
            cluster: self.checked("ClusterID", cluster),
            availability_zone: self.checked("AvailabilityZone", |name| Ok(name.to_owned())),
            profiles: self.profiles(default_filesystem),
        }
    }

    /// The profiles, each option of which is looked at now: not when a container needs it.
    fn profiles(&mut self, default_filesystem: &str) -> Vec<Profile> {
        let Some((profiles, origin)) = self.file.profiles("Profiles") else { return Vec::new() };
        for profile in profiles {
            // The choice was checked above.
            let Some(fs) = metadata::fs_type(default_filesystem) else { continue };
            let alone = !profile.names.is_empty();
            for problem in options::problems_of_profile(&profile.options, alone, fs) {
                let what =
                    format!("has a profile {:?} with a wrong option: {problem}", profile.name);
                self.findings.wrong(origin, what);
            }
        }
        profiles.to_vec()
    }

    fn default_size(&mut self) -> u64 {
        match self.file.number("DefaultVolSz") {
            None => DEFAULT_SIZE,
            // The Go driver could not tell 0 from a key that was left out.
            Some((0, origin)) => {
                self.findings.warn(format!("{origin} is 0, {DEFAULT_SIZE} (GiB) is used"));
                DEFAULT_SIZE
            }
            Some((size, origin)) => {
                if size > MAX_SIZE {
                    self.findings.wrong(origin, "is more GiB than any volume has");
                }
                size
            }
        }
    }

    fn wait_for_release(&mut self) -> Duration {
        let seconds = match self.file.number("WaitForRelease") {
            None => DEFAULT_WAIT_FOR_RELEASE,
            Some((seconds, origin)) => {
                if seconds > MAX_WAIT_FOR_RELEASE {
                    let what = format!("must be 0 to {MAX_WAIT_FOR_RELEASE} seconds");
                    self.findings.wrong(origin, what);
                }
                seconds
            }
        };
        Duration::from_secs(seconds)
    }

    /// Another host can take an attachment away by its id alone only in the attachments flow.
    fn failover(&mut self, flow: AttachFlowSetting) -> FailoverSettings {
        let has_uuid = self.text("HostUUID").is_some_and(|(text, _)| !text.is_empty());
        let by_actions = match flow {
            AttachFlowSetting::Actions => true,
            AttachFlowSetting::Auto => has_uuid,
            AttachFlowSetting::Attachments => false,
        };
        let types = match self.file.list("Failover") {
            None => Vec::new(),
            Some((types, origin)) => {
                if types.iter().any(|name| name.trim().is_empty()) {
                    self.findings.wrong(origin, "must name volume types");
                }
                if by_actions && !types.is_empty() {
                    let what = "needs the attachments flow: leave HostUUID and AttachFlow out, or \
                                set AttachFlow to \"attachments\"";
                    self.findings.wrong(origin, what);
                }
                types.to_vec()
            }
        };
        let seconds = match self.file.number("FailoverLease") {
            None => DEFAULT_FAILOVER_LEASE,
            Some((seconds, origin)) => {
                if !FAILOVER_LEASES.contains(&seconds) {
                    let (least, most) = (FAILOVER_LEASES.start(), FAILOVER_LEASES.end());
                    self.findings.wrong(origin, format!("must be {least} to {most} seconds"));
                }
                seconds
            }
        };
        FailoverSettings { types, lease: Duration::from_secs(seconds) }
    }

    /// Empty, unlike other keys, says something: the root of the filesystem.
    fn content_directory(&mut self) -> String {
        let Some((text, origin)) = self.text("ContentDirectory") else {
            return DEFAULT_CONTENT_DIRECTORY.to_owned();
        };
        let plain = |text: &str| {
            text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-+".contains(c))
                && text.len() <= 255
                && !matches!(text, "." | ".." | "lost+found")
        };
        if !plain(text) {
            self.findings.wrong(origin, "must be the plain name of a directory, or empty");
        }
        text.to_owned()
    }

    /// One of `choices`; the first when the key is left out or wrong.
    fn choice(&mut self, key: &str, choices: &[&'static str]) -> &'static str {
        self.checked(key, |text| {
            let chosen = choices.iter().find(|choice| choice.eq_ignore_ascii_case(text));
            chosen.copied().ok_or_else(|| format!("must be one of {}", choices.join(", ")))
        })
        .unwrap_or(choices[0])
    }

    fn directory(&mut self, key: &str, default: &str) -> PathBuf {
        self.checked(key, |text| {
            let path = Path::new(text);
            if !path.is_absolute() {
                return Err("must be an absolute path".to_owned());
            }
            if path.components().any(|part| part == Component::ParentDir) {
                return Err("must not go through ..".to_owned());
            }
            // Collected anew: without a slash at its end and doubled ones.
            let path: PathBuf = path.components().collect();
            if path.parent().is_none() { Err("must not be /".to_owned()) } else { Ok(path) }
        })
        .unwrap_or_else(|| default.into())
    }

    /// The key's value through `check`, whose error continues a sentence that begins with the key.
    /// An empty text counts as left out.
    fn checked<T>(
        &mut self,
        key: &str,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (text, origin) = self.text(key).filter(|(text, _)| !text.is_empty())?;
        check(text).map_err(|what| self.findings.wrong(origin, what)).ok()
    }

    fn text(&self, key: &str) -> Option<(&'a str, &'a Origin)> {
        let (text, origin) = self.file.text(key)?;
        Some((text.expose_secret().trim(), origin))
    }
}

/// It has a place in every volume's metadata.
fn cluster(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if text.len() > 64 || !text.chars().all(plain) {
        return Err("must be of letters, digits, '_', '.' and '-', at most 64".to_owned());
    }
    Ok(text.to_owned())
}

fn address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("is not an IP address: {text:?}"))?;
    if address.is_unspecified() || address.is_multicast() {
        return Err(format!("is {text}, which is no address of a host"));
    }
    Ok(address)
}

/// The Go driver's README wrote `/dev/eth4`.
fn interface_name(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    if name.is_empty() || matches!(name, "." | "..") || name.contains(['/', ' ']) {
        return Err(format!("is not the name of a network interface: {text:?}"));
    }
    Ok(name.to_owned())
}

fn host_name(text: &str) -> Result<String, String> {
    if text.len() > 255 || text.contains(char::is_whitespace) {
        return Err("must be a host name".to_owned());
    }
    Ok(text.to_owned())
}

fn uuid(text: &str) -> Result<Uuid, String> {
    Uuid::try_parse(text).map_err(|_| {
        // Scripts paste the last octet of an address to its end, which has one to three digits.
        let digits = text.chars().filter(char::is_ascii_hexdigit).count();
        format!(
            "is not a UUID: {text:?} has {digits} hexadecimal digits; it takes 32, as 8-4-4-4-12 \
             or in one row (uuidgen makes one)"
        )
    })
}
