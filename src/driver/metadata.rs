//! What we keep in a volume's metadata, so that every host knows it.
//!
//! ```text
//! docker.nonce      who made it: proves that a creation is ours
//! docker.format     unformatted → formatting:UUID → formatted:UUID
//! docker.directory  what containers see: a sub-directory's name, or "/" for the root
//! docker.connector  actions flow: who attached it, so that another host can release it
//! docker.fs …       create options that matter at a later Mount, on any host
//! docker.cluster    the ClusterID of the hosts whose volume it is
//! docker.on_remove  what becomes of it at "docker volume rm"
//! docker.retained   its name while it was a Docker volume: removed, and kept all the same
//! docker.restoring  the backup that it waits for: until that has come it is not mounted
//! docker.backup …   create options that Cinder does not show
//! ```

use std::collections::BTreeMap;
use std::fmt;

use uuid::Uuid;

use super::DriverError;
use crate::host::filesystem::mount;
use crate::host::filesystem::probe::FsType;
use crate::openstack::Volume;
use crate::shown::shown;

/// The Go driver's only mark; new volumes get it too unless `description` is given.
pub const DESCRIPTION: &str = "Docker volume.";
/// Keys of ours begin with this; the `metadata` option may not set them.
pub const PREFIX: &str = "docker.";
/// Proves that a creation is ours.
pub const NONCE: &str = "docker.nonce";
/// Format state.
pub const FORMAT: &str = "docker.format";
/// What containers see.
pub const DIRECTORY: &str = "docker.directory";
/// Who attached it (actions flow).
pub const CONNECTOR: &str = "docker.connector";
/// Create option `fs`.
pub const FS: &str = "docker.fs";
/// Create option `mkfs_opts`.
pub const MKFS_OPTS: &str = "docker.mkfs_opts";
/// Create option `mount_opts`.
pub const MOUNT_OPTS: &str = "docker.mount_opts";
/// Create option `read_only`.
pub const READ_ONLY: &str = "docker.read_only";
/// Create option `partition`.
pub const PARTITION: &str = "docker.partition";
/// Create option `uid`.
pub const UID: &str = "docker.uid";
/// Create option `gid`.
pub const GID: &str = "docker.gid";
/// Create option `mode`, octal.
pub const MODE: &str = "docker.mode";

/// Create option `on_remove`.
pub const ON_REMOVE: &str = "docker.on_remove";
/// The name under which it was removed from Docker and kept; empty = it was not.
pub const RETAINED: &str = "docker.retained";
/// Whose volume it is; empty = nobody's.
pub const CLUSTER: &str = "docker.cluster";
/// The backup it was made from (id). It has data, though Cinder does not show why.
pub const BACKUP: &str = "docker.backup";
/// The backup that is still to be restored to it (id); empty = it was. Until then it is nobody's.
pub const RESTORING: &str = "docker.restoring";
/// The image it was made from (id).
pub const IMAGE: &str = "docker.image";
/// Create option `hints`.
pub const HINTS: &str = "docker.hints";
/// The profile whose options it has.
pub const PROFILE: &str = "docker.profile";
/// It had this id before a create gave it its name (option `volume_id`).
pub const ADOPTED: &str = "docker.adopted";

/// What becomes of a volume at `docker volume rm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRemove {
    /// It is deleted.
    #[default]
    Delete,
    /// It is renamed and stays in Cinder.
    Retain,
    /// The same, with a snapshot of what it holds then.
    Snapshot,
}

impl OnRemove {
    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "delete" => Some(Self::Delete),
            "retain" => Some(Self::Retain),
            "snapshot" => Some(Self::Snapshot),
            _ => None,
        }
    }

    /// Of a volume. What is not understood is an error: it must not end in a deletion.
    pub fn of(volume: &Volume) -> Result<Self, DriverError> {
        let text = volume.metadata.get(ON_REMOVE).map(String::as_str);
        Ok(parse(ON_REMOVE, text, Self::named)?.unwrap_or_default())
    }
}

impl fmt::Display for OnRemove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delete => "delete",
            Self::Retain => "retain",
            Self::Snapshot => "snapshot",
        })
    }
}

/// Whether a volume is this driver's, the cluster's, and was not removed from Docker. Such a one is
/// listed, and may be deleted.
pub fn is_of(volume: &Volume, own: Option<&str>) -> bool {
    is_ours(volume) && cluster(volume) == own && retained(volume).is_none()
}

/// Whether a volume says that it is another cluster's.
pub fn is_of_other(volume: &Volume, own: Option<&str>) -> bool {
    let tag = cluster(volume);
    tag.is_some() && tag != own
}

/// The cluster whose volume it is.
pub fn cluster(volume: &Volume) -> Option<&str> {
    filled(volume, CLUSTER)
}

/// The name under which it was removed from Docker, if it was retained then. One that still has its
/// name is not removed: the removal broke off.
pub fn retained(volume: &Volume) -> Option<&str> {
    filled(volume, RETAINED).filter(|was| *was != volume.name)
}

/// The backup that was to be restored to it and was not, as far as is known.
pub fn restoring(volume: &Volume) -> Option<&str> {
    filled(volume, RESTORING)
}

fn filled<'a>(volume: &'a Volume, key: &str) -> Option<&'a str> {
    volume.metadata.get(key).map(String::as_str).filter(|text| !text.is_empty())
}

/// The create options by which a volume came to be what it is, as far as it shows them: for
/// `docker volume inspect`.
pub fn options_of(volume: &Volume) -> BTreeMap<String, String> {
    let own = |(key, value): (&String, &String)| {
        let name = key.strip_prefix(PREFIX)?;
        let is_said = OPTIONS.contains(&key.as_str()) && !value.is_empty();
        is_said.then(|| (name.to_owned(), value.clone()))
    };
    let mut options: BTreeMap<_, _> = volume.metadata.iter().filter_map(own).collect();
    let adopted = filled(volume, ADOPTED).map(str::to_owned);
    for (name, value) in [
        ("size", Some(volume.size.to_string())),
        ("type", volume.volume_type.clone()),
        ("availability_zone", volume.availability_zone.clone()),
        ("description", volume.description.clone().filter(|text| text != DESCRIPTION)),
        ("snapshot", volume.snapshot_id.clone()),
        ("from", volume.source_volid.clone()),
        ("multiattach", volume.multiattach.then(|| "true".to_owned())),
        ("volume_id", adopted),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            options.insert(name.to_owned(), value);
        }
    }
    // Cinder adds two of its own.
    let of_user = |key: &&String| {
        !key.starts_with(PREFIX) && !["readonly", "attached_mode"].contains(&key.as_str())
    };
    let pairs: Vec<_> = volume.metadata.keys().filter(of_user).collect();
    if !pairs.is_empty() {
        let shown = pairs.iter().map(|key| format!("{key}={}", volume.metadata[*key]));
        options.insert("metadata".to_owned(), shown.collect::<Vec<_>>().join(","));
    }
    options
}

/// Keys that hold a create option, as given.
const OPTIONS: &[&str] = &[
    FS, MKFS_OPTS, MOUNT_OPTS, READ_ONLY, PARTITION, UID, GID, MODE, ON_REMOVE, BACKUP, IMAGE,
    HINTS, PROFILE,
];

/// How far a volume of ours got in being formatted. A filesystem of another UUID than the one
/// recorded is refused: it is an old tenant's blocks, or the wrong LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatState {
    /// Created blank, never formatted.
    Unformatted,
    /// mkfs may have begun, with this UUID.
    Formatting(Uuid),
    /// mkfs is done; this is the filesystem.
    Formatted(Uuid),
}

impl FormatState {
    /// The recorded state; `None` for volumes that carry none (made elsewhere, from a source, or
    /// by the Go driver).
    pub fn of(volume: &Volume) -> Result<Option<Self>, DriverError> {
        let Some(text) = volume.metadata.get(FORMAT) else { return Ok(None) };
        let parsed = match text.split_once(':') {
            None if text == "unformatted" => Some(Self::Unformatted),
            Some(("formatting", uuid)) => Uuid::parse_str(uuid).ok().map(Self::Formatting),
            Some(("formatted", uuid)) => Uuid::parse_str(uuid).ok().map(Self::Formatted),
            _ => None,
        };
        parsed.map(Some).ok_or_else(|| {
            DriverError::Refused(format!(
                "its metadata says {FORMAT}=\"{}\", which this driver does not understand; it is \
                 left alone",
                shown(text)
            ))
        })
    }
}

impl fmt::Display for FormatState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unformatted => f.write_str("unformatted"),
            Self::Formatting(uuid) => write!(f, "formatting:{uuid}"),
            Self::Formatted(uuid) => write!(f, "formatted:{uuid}"),
        }
    }
}

/// Whether this driver, or the Go driver, made the volume.
pub fn is_ours(volume: &Volume) -> bool {
    volume.metadata.contains_key(NONCE) || volume.description.as_deref() == Some(DESCRIPTION)
}

/// The nonce of a volume that this driver made.
pub fn nonce(volume: &Volume) -> Option<Uuid> {
    volume.metadata.get(NONCE).and_then(|nonce| Uuid::parse_str(nonce).ok())
}

/// Create options that matter at a later Mount, on any host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountSettings {
    /// Filesystem to make; `None` = the host's default.
    pub fs: Option<FsType>,
    /// `mkfs_opts` as given.
    pub mkfs_opts: Option<String>,
    /// `mount_opts` as given.
    pub mount_opts: Option<String>,
    /// Attach and mount read-only.
    pub read_only: bool,
    /// Which partition.
    pub partition: Option<u32>,
    /// Owner of the new content directory.
    pub uid: Option<u32>,
    /// Group of the new content directory.
    pub gid: Option<u32>,
    /// Mode of the new content directory.
    pub mode: Option<u32>,
}

impl MountSettings {
    /// As metadata.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::new();
        let mut set = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                metadata.insert(key.to_owned(), value);
            }
        };
        set(FS, self.fs.map(|fs| fs.to_string()));
        set(MKFS_OPTS, self.mkfs_opts.clone());
        set(MOUNT_OPTS, self.mount_opts.clone());
        set(READ_ONLY, self.read_only.then(|| "true".to_owned()));
        set(PARTITION, self.partition.map(|n| n.to_string()));
        set(UID, self.uid.map(|n| n.to_string()));
        set(GID, self.gid.map(|n| n.to_string()));
        set(MODE, self.mode.map(|mode| format!("{mode:04o}")));
        metadata
    }

    /// From metadata. What does not parse is an error, for somebody meant something by it.
    pub fn of(volume: &Volume) -> Result<Self, DriverError> {
        let get = |key: &'static str| volume.metadata.get(key).map(String::as_str);
        Ok(Self {
            fs: parse(FS, get(FS), fs_type)?,
            mkfs_opts: get(MKFS_OPTS).map(str::to_owned),
            mount_opts: parse(MOUNT_OPTS, get(MOUNT_OPTS), |text| {
                mount::check_options(text).ok().map(|_| text.to_owned())
            })?,
            read_only: parse(READ_ONLY, get(READ_ONLY), |text| text.parse().ok())?.unwrap_or(false),
            partition: parse(PARTITION, get(PARTITION), |text| number(text).filter(|n| *n > 0))?,
            uid: parse(UID, get(UID), owner)?,
            gid: parse(GID, get(GID), owner)?,
            mode: parse(MODE, get(MODE), |text| {
                u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)
            })?,
        })
    }
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok()
}

/// A user or group. To chown(2), `u32::MAX` means "leave it as it is".
fn owner(text: &str) -> Option<u32> {
    number(text).filter(|id| *id != u32::MAX)
}

/// A filesystem type by its name.
pub fn fs_type(name: &str) -> Option<FsType> {
    match name {
        "ext4" => Some(FsType::Ext4),
        "xfs" => Some(FsType::Xfs),
        "btrfs" => Some(FsType::Btrfs),
        _ => None,
    }
}

fn parse<T>(
    key: &str,
    value: Option<&str>,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, DriverError> {
    let Some(value) = value else { return Ok(None) };
    parse(value).map(Some).ok_or_else(|| {
        DriverError::Refused(format!(
            "its metadata says {key}=\"{}\", which makes no sense; correct it in Cinder",
            shown(value)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_the_way_through_cinder() {
        let settings = MountSettings {
            fs: Some(FsType::Xfs),
            mkfs_opts: Some("-m reflink=0".into()),
            mount_opts: Some("noatime".into()),
            read_only: true,
            partition: Some(2),
            uid: Some(999),
            gid: Some(0),
            mode: Some(0o2770),
        };
        let mut volume = crate::driver::tests::volume("v");
        volume.metadata = settings.to_metadata();
        assert_eq!(MountSettings::of(&volume).unwrap(), settings);
    }

    /// Anybody in the project can write metadata.
    #[test]
    fn what_no_option_could_have_set_is_refused() {
        for (key, values) in [
            (READ_ONLY, &["True", "yes", "1", ""] as &[_]),
            (PARTITION, &["0", "-1", "x"]),
            (UID, &["4294967295", "-1", "root"]),
            (GID, &["4294967295", ""]),
            (MODE, &["177777", "888", ""]),
            (FS, &["ntfs", ""]),
            (MOUNT_OPTS, &["bind", "compress=zlib\",device=/dev/sda,compress=zlib\""]),
        ] {
            for value in values {
                let mut volume = crate::driver::tests::volume("v");
                volume.metadata.insert(key.into(), (*value).into());
                let error = MountSettings::of(&volume).unwrap_err().to_string();
                assert!(error.contains(key), "{error}");
            }
        }
        let mut volume = crate::driver::tests::volume("v");
        volume.metadata.insert(READ_ONLY.into(), "false".into());
        assert!(!MountSettings::of(&volume).unwrap().read_only);
    }

    #[test]
    fn a_format_state_that_is_not_understood_is_refused() {
        let mut volume = crate::driver::tests::volume("v");
        assert_eq!(FormatState::of(&volume).unwrap(), None);
        for text in ["", "formatted", "formatted:x", "blank", "formatting:"] {
            volume.metadata.insert(FORMAT.into(), text.into());
            assert!(FormatState::of(&volume).is_err(), "{text}");
        }
        let uuid = Uuid::new_v4();
        for state in
            [FormatState::Unformatted, FormatState::Formatting(uuid), FormatState::Formatted(uuid)]
        {
            volume.metadata.insert(FORMAT.into(), state.to_string());
            assert_eq!(FormatState::of(&volume).unwrap(), Some(state));
        }
    }
}
