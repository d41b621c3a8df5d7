//! The options of `docker volume create -o NAME=VALUE`: one row each.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::metadata::{self, MountSettings, OnRemove};
use super::{DriverError, VolumeName};
use crate::host::filesystem::probe::FsType;
use crate::host::filesystem::{format, mount};
use crate::shown::shown;

/// Everything that options can ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CreateOptions {
    /// GiB.
    pub size: Option<u64>,
    /// Volume type.
    pub volume_type: Option<String>,
    /// Availability zone.
    pub availability_zone: Option<String>,
    /// Description.
    pub description: Option<String>,
    /// The user's own metadata.
    pub metadata: BTreeMap<String, String>,
    /// Where the data comes from; `None` = a blank volume.
    pub source: Option<Source>,
    /// The existing volume that gets the name; nothing is created then.
    pub volume_id: Option<Uuid>,
    /// Hints for Cinder's scheduler: the volumes of `same_host` and `different_host` by name or id.
    pub hints: BTreeMap<String, Vec<String>>,
    /// `hints` as given.
    pub hints_text: Option<String>,
    /// Several hosts may have it at once, read-only.
    pub multiattach: bool,
    /// What becomes of it at `docker volume rm`.
    pub on_remove: Option<OnRemove>,
    /// The profile that was chosen.
    pub profile: Option<String>,
    /// What matters when it is mounted.
    pub mount: MountSettings,
}

/// The option that names a profile.
pub(super) const PROFILE: &str = "profile";
/// So many problems are told at once.
const MOST_PROBLEMS: usize = 10;

/// What a volume is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A snapshot, by name or id.
    Snapshot(String),
    /// A snapshot of a volume: that one by name or id, the snapshot too.
    SnapshotOf {
        /// The volume.
        volume: String,
        /// The snapshot.
        snapshot: String,
    },
    /// Another volume, by name or id.
    Volume(String),
    /// An image, by name or id.
    Image(String),
    /// A backup, by name or id.
    Backup(String),
}

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// An example value.
    pub example: &'static str,
    /// What it does, for people.
    pub help: &'static str,
    apply: fn(&mut CreateOptions, &str) -> Result<(), String>,
}

/// All options.
pub const TABLE: &[Row] = &[
    Row {
        name: "size",
        aliases: &[],
        example: "20G",
        help: "whole GiB: 20, 20G, 20GiB, 1T (default: DefaultVolSz, or the source's size)",
        apply: |options, value| put(&mut options.size, size(value)?),
    },
    Row {
        name: "type",
        aliases: &["volume_type"],
        example: "solidfire",
        help: "Cinder volume type",
        apply: |options, value| put(&mut options.volume_type, text(value)?),
    },
    Row {
        name: "fs",
        aliases: &["fstype", "filesystem"],
        example: "xfs",
        help: "filesystem to make: ext4 (default), xfs, btrfs",
        apply: |options, value| {
            let fs = metadata::fs_type(value).ok_or("it is ext4, xfs or btrfs")?;
            put(&mut options.mount.fs, fs)
        },
    },
    Row {
        name: "mkfs_opts",
        aliases: &[],
        example: "-N 1000000",
        help: "more words for mkfs",
        apply: |options, value| put(&mut options.mount.mkfs_opts, text(value)?),
    },
    Row {
        name: "mount_opts",
        aliases: &["mountopts"],
        example: "noatime,nodev",
        help: "more mount options",
        apply: |options, value| {
            mount::check_options(value)?;
            put(&mut options.mount.mount_opts, text(value)?)
        },
    },
    Row {
        name: "snapshot",
        aliases: &["snapshot_id"],
        example: "nightly",
        help: "make it from this snapshot (name or id)",
        apply: |options, value| source(options, Source::Snapshot(text(value)?)),
    },
    Row {
        name: "from",
        aliases: &["source_volid"],
        example: "other@nightly",
        help: "make it a clone of this volume, or from its snapshot: VOLUME or VOLUME@SNAPSHOT",
        apply: |options, value| source(options, from(value)?),
    },
    Row {
        name: "image",
        aliases: &["image_id"],
        example: "debian-12",
        help: "make it from this image (name or id)",
        apply: |options, value| source(options, Source::Image(text(value)?)),
    },
    Row {
        name: "backup",
        aliases: &["backup_id"],
        example: "weekly",
        help: "make it from this backup (name or id)",
        apply: |options, value| source(options, Source::Backup(text(value)?)),
    },
    Row {
        name: "volume_id",
        aliases: &["adopt"],
        example: "2f0c…",
        help: "use this existing Cinder volume (id), which is renamed, instead of making one",
        apply: |options, value| {
            let id = Uuid::parse_str(value).map_err(|_| "it is the id of a volume, a UUID")?;
            put(&mut options.volume_id, id)
        },
    },
    Row {
        name: "availability_zone",
        aliases: &["az"],
        example: "nova",
        help: "Cinder availability zone (default: AvailabilityZone, or the source's)",
        apply: |options, value| put(&mut options.availability_zone, text(value)?),
    },
    Row {
        name: "hints",
        aliases: &["scheduler_hints"],
        example: "different_host=db1",
        help: "for Cinder's scheduler: same_host=VOLUME, different_host=VOLUME, with commas between",
        apply: |options, value| {
            options.hints_text = Some(text(value)?);
            hints(&mut options.hints, value)
        },
    },
    Row {
        name: "description",
        aliases: &[],
        example: "web shop",
        help: "description in Cinder (default: \"Docker volume.\")",
        apply: |options, value| put(&mut options.description, text(value)?),
    },
    Row {
        name: "metadata",
        aliases: &["meta"],
        example: "team=web,tier=1",
        help: "metadata in Cinder, KEY=VALUE pairs with commas between",
        apply: |options, value| pairs(&mut options.metadata, value),
    },
    Row {
        name: "read_only",
        aliases: &["readonly", "ro"],
        example: "true",
        help: "attach and mount read-only (needs a source: snapshot, from, image or backup)",
        apply: |options, value| {
            options.mount.read_only = boolean(value)?;
            Ok(())
        },
    },
    Row {
        name: "multiattach",
        aliases: &["shared"],
        example: "true",
        help: "several hosts may use it at once (needs read_only and a type that allows it)",
        apply: |options, value| {
            options.multiattach = boolean(value)?;
            Ok(())
        },
    },
    Row {
        name: "uid",
        aliases: &[],
        example: "999",
        help: "owner of the new filesystem's directory",
        apply: |options, value| put(&mut options.mount.uid, number(value)?),
    },
    Row {
        name: "gid",
        aliases: &[],
        example: "999",
        help: "group of the new filesystem's directory",
        apply: |options, value| put(&mut options.mount.gid, number(value)?),
    },
    Row {
        name: "mode",
        aliases: &[],
        example: "0770",
        help: "mode of the new filesystem's directory, octal (default: 0755)",
        apply: |options, value| put(&mut options.mount.mode, mode(value)?),
    },
    Row {
        name: "partition",
        aliases: &[],
        example: "1",
        help: "which partition to mount, of a volume that has several",
        apply: |options, value| match number(value)? {
            0 => Err("partitions are counted from 1".to_owned()),
            partition => put(&mut options.mount.partition, partition),
        },
    },
    Row {
        name: "on_remove",
        aliases: &[],
        example: "retain",
        help: "at docker volume rm: delete (default); retain it in Cinder under another name; \
               snapshot: retain it, with a last snapshot",
        apply: |options, value| {
            let what = OnRemove::named(value).ok_or("it is delete, retain or snapshot")?;
            put(&mut options.on_remove, what)
        },
    },
    Row {
        name: PROFILE,
        aliases: &[],
        example: "database",
        help: "take what is not said here from this profile of the config file (Profiles); empty: none",
        apply: |options, value| put(&mut options.profile, text(value)?),
    },
];

/// What can be said of a volume that exists already.
const WITH_VOLUME_ID: &[&str] =
    &["volume_id", "mount_opts", "metadata", "read_only", "partition", "on_remove", "profile"];
/// What is for a blank volume.
const FOR_BLANK: &[&str] = &["fs", "mkfs_opts", "uid", "gid", "mode"];
/// Where the data comes from.
const SOURCES: &[&str] = &["snapshot", "from", "image", "backup"];

impl CreateOptions {
    /// Reads Docker's options. All problems are reported at once (of very many, the first);
    /// nothing is silently ignored.
    pub fn parse(
        given: &BTreeMap<String, String>,
        default_fs: FsType,
    ) -> Result<Self, DriverError> {
        let (options, mut problems) = Self::read(given);
        problems.extend(options.contradictions());
        problems.extend(options.wrong_mkfs_opts(default_fs));
        if options.volume_id.is_some() {
            let names = given.keys().filter_map(|name| find(name)).map(|row| row.name);
            for name in names.filter(|name| !WITH_VOLUME_ID.contains(name)) {
                problems.push(format!(
                    "option \"{name}\" is for a new volume: that of \"volume_id\" exists already"
                ));
            }
        }
        if problems.is_empty() {
            return Ok(options);
        }
        let more = problems.len().saturating_sub(MOST_PROBLEMS);
        problems.truncate(MOST_PROBLEMS);
        if more > 0 {
            problems.push(format!("and {more} more problems"));
        }
        Err(DriverError::BadRequest(problems.join("; ")))
    }

    /// Each option by itself, and what is wrong with it.
    fn read(given: &BTreeMap<String, String>) -> (Self, Vec<String>) {
        let mut options = Self::default();
        let mut problems = Vec::new();
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, value) in given {
            let Some(row) = find(name) else {
                problems.push(unknown(name));
                continue;
            };
            if let Some(other) = seen.insert(row.name, name) {
                problems.push(format!("options \"{other}\" and \"{name}\" mean the same"));
            } else if let Err(reason) = (row.apply)(&mut options, value) {
                problems.push(format!("option {name}=\"{}\": {reason}", shown(value)));
            }
        }
        (options, problems)
    }

    fn contradictions(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let settings = &self.mount;
        if self.source.is_some() {
            for (name, given) in [
                ("fs", settings.fs.is_some()),
                ("mkfs_opts", settings.mkfs_opts.is_some()),
                ("uid", settings.uid.is_some()),
                ("gid", settings.gid.is_some()),
                ("mode", settings.mode.is_some()),
            ] {
                if given {
                    problems.push(format!(
                        "option \"{name}\" is for a blank volume: one made from a snapshot, volume, \
                         image or backup is never formatted"
                    ));
                }
            }
        } else if self.volume_id.is_none() {
            if settings.read_only {
                problems.push(
                    "option \"read_only\" needs \"snapshot\", \"from\", \"image\" or \"backup\": a \
                     blank volume could never be formatted"
                        .to_owned(),
                );
            }
            if settings.partition.is_some() {
                problems.push(
                    "option \"partition\" needs \"snapshot\", \"from\", \"image\" or \"backup\": a \
                     blank volume has none"
                        .to_owned(),
                );
            }
        }
        if self.multiattach && !settings.read_only {
            problems.push(
                "option \"multiattach\" needs \"read_only=true\": a filesystem that two hosts write \
                 to is destroyed"
                    .to_owned(),
            );
        }
        problems
    }

    fn wrong_mkfs_opts(&self, default_fs: FsType) -> Option<String> {
        let words = self.mount.mkfs_opts.as_ref()?;
        let fs = self.mount.fs.unwrap_or(default_fs);
        let reason = format::check_options(fs, words).err()?;
        Some(format!("option mkfs_opts=\"{}\": {reason}", shown(words)))
    }

    /// What of the options has a place in the new volume's metadata.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = self.metadata.clone();
        metadata.extend(self.mount.to_metadata());
        for (key, value) in [
            (metadata::HINTS, self.hints_text.clone()),
            (metadata::ON_REMOVE, self.on_remove.map(|what| what.to_string())),
            (metadata::PROFILE, self.profile.clone()),
        ] {
            if let Some(value) = value {
                metadata.insert(key.to_owned(), value);
            }
        }
        metadata
    }
}

/// What is wrong with the options of a profile. One that `stands_alone` is for those who can pass no
/// options; another may be only a part of what is needed.
pub fn problems_of_profile(
    given: &BTreeMap<String, String>,
    stands_alone: bool,
    default_fs: FsType,
) -> Vec<String> {
    let (options, mut problems) = CreateOptions::read(given);
    for name in ["profile", "volume_id"] {
        if given.keys().any(|given| find(given).is_some_and(|row| row.name == name)) {
            problems.push(format!("option \"{name}\" has no place in a profile"));
        }
    }
    let is_of_blank = |name: &&String| find(name).is_some_and(|row| FOR_BLANK.contains(&row.name));
    if stands_alone {
        problems.extend(options.contradictions());
    } else if options.source.is_some()
        && let Some(name) = given.keys().find(is_of_blank)
    {
        problems
            .push(format!("option \"{name}\" is for a blank volume, and the profile has a source"));
    }
    problems.extend(options.wrong_mkfs_opts(default_fs));
    problems
}

/// `given`, and of `profile` what was not given and still makes sense beside it: what is said at the
/// create wins.
pub fn completed(
    given: &BTreeMap<String, String>,
    profile: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let has =
        |name: &str| given.keys().any(|given| find(given).is_some_and(|row| row.name == name));
    let of = |options: &BTreeMap<String, String>, wanted: &str| {
        let mut all = options.iter();
        all.find(|(name, _)| find(name).is_some_and(|row| row.name == wanted))
            .map(|(_, v)| v.clone())
    };
    let has_source = SOURCES.iter().any(|name| has(name));
    let has_origin = has("from") || has("snapshot");
    let other_fs = has("fs") && of(given, "fs") != of(profile, "fs");
    let mut all = given.clone();
    for (name, value) in profile {
        let Some(row) = find(name) else { continue };
        let is_out = has(row.name)
            || has("volume_id") && !WITH_VOLUME_ID.contains(&row.name)
            || has_source && (FOR_BLANK.contains(&row.name) || SOURCES.contains(&row.name))
            // As of the defaults: the source has its own.
            || has_origin && ["size", "type", "availability_zone"].contains(&row.name)
            || has("backup") && row.name == "size"
            || other_fs && row.name == "mkfs_opts";
        if !is_out {
            all.insert(name.clone(), value.clone());
        }
    }
    all
}

fn find(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name || row.aliases.contains(&name))
}

fn unknown(name: &str) -> String {
    let shown = shown(name);
    let known = TABLE.iter().flat_map(|row| row.aliases.iter().chain([&row.name])).copied();
    match nearest(known, name) {
        Some(known) => format!("unknown option \"{shown}\": did you mean \"{known}\"?"),
        None => {
            let names: Vec<_> = TABLE.iter().map(|row| row.name).collect();
            format!("unknown option \"{shown}\": there are {}", names.join(", "))
        }
    }
}

/// The known word that looks most like `written`, if any does.
pub(super) fn nearest<'a>(known: impl Iterator<Item = &'a str>, written: &str) -> Option<&'a str> {
    known
        .map(|known| {
            let distance =
                strsim::damerau_levenshtein(&known.to_lowercase(), &written.to_lowercase());
            (distance, known)
        })
        .min()
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3))
        .map(|(_, known)| known)
}

fn put<T>(place: &mut Option<T>, value: T) -> Result<(), String> {
    *place = Some(value);
    Ok(())
}

fn source(options: &mut CreateOptions, source: Source) -> Result<(), String> {
    if options.source.is_some() {
        return Err(
            "only one of \"snapshot\", \"from\", \"image\" and \"backup\" can be given".to_owned()
        );
    }
    put(&mut options.source, source)
}

/// `VOLUME` or `VOLUME@SNAPSHOT`. No volume's Docker name has an `@`.
fn from(value: &str) -> Result<Source, String> {
    let value = text(value)?;
    let (volume, snapshot) = match value.split_once('@') {
        Some((volume, snapshot)) => (volume, Some(snapshot)),
        None => (&*value, None),
    };
    if !VolumeName::is_valid(volume) {
        return Err(format!("\"{}\" is not a volume name", shown(volume)));
    }
    match snapshot {
        None => Ok(Source::Volume(volume.to_owned())),
        Some("") => Err("a snapshot's name or id follows the @".to_owned()),
        Some(snapshot) => {
            Ok(Source::SnapshotOf { volume: volume.to_owned(), snapshot: snapshot.to_owned() })
        }
    }
}

/// Hints whose value is a volume.
pub(super) const VOLUME_HINTS: &[&str] = &["same_host", "different_host"];

fn hints(hints: &mut BTreeMap<String, Vec<String>>, value: &str) -> Result<(), String> {
    for pair in value.split(',') {
        let (key, value) = pair
            .split_once('=')
            .ok_or("it is HINT=VALUE pairs with commas between, as in different_host=VOLUME")?;
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || value.is_empty() {
            return Err("a hint and its value must not be empty".to_owned());
        }
        if VOLUME_HINTS.contains(&key) && !VolumeName::is_valid(value) {
            return Err(format!("\"{}\" is not a volume name", shown(value)));
        }
        // A near miss would be passed on, and the scheduler would ignore it without a word.
        if let Some(known) = nearest(VOLUME_HINTS.iter().copied(), key)
            && known != key
        {
            return Err(format!("unknown hint \"{}\": did you mean \"{known}\"?", shown(key)));
        }
        let values = hints.entry(key.to_owned()).or_default();
        if !VOLUME_HINTS.contains(&key) && !values.is_empty() {
            return Err(format!("hint \"{}\" is given twice", shown(key)));
        }
        values.push(value.to_owned());
    }
    Ok(())
}

/// Cinder counts whole GiB; less, or a fraction, cannot be honoured.
pub(super) fn size(value: &str) -> Result<u64, String> {
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "g" | "gb" | "gib" => 1,
        "t" | "tb" | "tib" => 1024,
        _ => return Err("it is a whole number of GiB, as in 20, 20G, 20GiB or 1T".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "it is a whole number of GiB, as in 20, 20G, 20GiB or 1T".to_owned())?;
    match number.checked_mul(factor) {
        Some(0) => Err("the smallest volume is 1 GiB".to_owned()),
        // Cinder keeps sizes in 32 bits.
        Some(size) if size <= i32::MAX as u64 => Ok(size),
        _ => Err("no volume is that large".to_owned()),
    }
}

/// Cinder's texts are at most 255 characters, and control characters have no place in any.
pub(super) fn text(value: &str) -> Result<String, String> {
    if value.is_empty() {
        Err("it is empty".to_owned())
    } else if value.chars().count() > 255 {
        Err("it is longer than 255 characters".to_owned())
    } else if value.chars().any(char::is_control) {
        Err("it holds control characters".to_owned())
    } else {
        Ok(value.to_owned())
    }
}

fn number(value: &str) -> Result<u32, String> {
    // u32::MAX means "leave it" to chown(2).
    match value.parse() {
        Ok(u32::MAX) | Err(_) => Err("it is a number from 0 to 4294967294".to_owned()),
        Ok(number) => Ok(number),
    }
}

fn mode(value: &str) -> Result<u32, String> {
    u32::from_str_radix(value, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777 && !value.starts_with('+'))
        .ok_or_else(|| "it is an octal mode, as in 0770".to_owned())
}

fn boolean(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "" | "true" | "yes" | "1" | "on" => Ok(true),
        "false" | "no" | "0" | "off" => Ok(false),
        _ => Err("it is true or false".to_owned()),
    }
}

fn pairs(metadata: &mut BTreeMap<String, String>, value: &str) -> Result<(), String> {
    for pair in value.split(',') {
        let (key, value) =
            pair.split_once('=').ok_or("it is KEY=VALUE pairs with commas between")?;
        let (key, value) = (text(key.trim())?, text(value.trim())?);
        if key.starts_with(metadata::PREFIX) {
            return Err(format!(
                "keys that begin with \"{}\" are the driver's own",
                metadata::PREFIX
            ));
        }
        if metadata.contains_key(&key) {
            return Err(format!("key \"{key}\" is given twice"));
        }
        metadata.insert(key, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<CreateOptions, String> {
        let given = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        CreateOptions::parse(&given, FsType::Ext4).map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_are_whole_gib_in_binary_units() {
        for (text, size) in
            [("20", 20), ("20G", 20), ("20GiB", 20), ("20gb", 20), ("1T", 1024), ("2TiB", 2048)]
        {
            assert_eq!(parse(&[("size", text)]).unwrap().size, Some(size), "{text}");
        }
        for text in
            ["", "0", "abc", "-1", "1.5", "512M", "20 G", "+1", "99999999999999999999", "3T1"]
        {
            assert!(parse(&[("size", text)]).is_err(), "{text}");
        }
    }

    #[test]
    fn an_unknown_option_names_the_nearest() {
        let error = parse(&[("sise", "1")]).unwrap_err();
        assert!(error.contains("did you mean \"size\""), "{error}");
        let error = parse(&[("TYPE", "x")]).unwrap_err();
        assert!(error.contains("did you mean \"type\""), "{error}");
        let error = parse(&[("wombat", "x")]).unwrap_err();
        assert!(error.contains("there are size, type"), "{error}");
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let error = parse(&[("size", "x"), ("nope", "y"), ("uid", "-1")]).unwrap_err();
        assert_eq!(error.split("; ").count(), 3, "{error}");
    }

    #[test]
    fn of_very_many_problems_the_first_are_told() {
        let names: Vec<String> = (0..500).map(|n| format!("wombat{n}")).collect();
        let given: Vec<_> = names.iter().map(|name| (&**name, "")).collect();
        let error = parse(&given).unwrap_err();
        assert!(error.ends_with("; and 490 more problems"), "{error}");
        assert_eq!(error.matches("unknown option").count(), 10, "{error}");
    }

    #[test]
    fn two_names_of_one_option_and_two_sources_are_contradictions() {
        assert!(parse(&[("fs", "xfs"), ("fstype", "ext4")]).is_err());
        assert!(parse(&[("snapshot", "a"), ("from", "b")]).is_err());
        assert!(parse(&[("snapshot", "a"), ("fs", "xfs")]).is_err());
        assert!(parse(&[("read_only", "true")]).is_err());
        assert!(parse(&[("read_only", "true"), ("from", "x")]).is_ok());
    }

    #[test]
    fn metadata_cannot_forge_the_drivers_own_keys() {
        assert!(parse(&[("metadata", "a=b,docker.format=formatted")]).is_err());
        let options = parse(&[("metadata", "team=web, tier=1")]).unwrap();
        assert_eq!(options.metadata["tier"], "1");
    }

    /// Some rows with a value that makes sense.
    fn some_options() -> impl Strategy<Value = BTreeMap<String, String>> {
        let pairs: Vec<_> = TABLE
            .iter()
            .map(|row| match row.name {
                "volume_id" => (row.name, "8f2c1f2e-6c1c-4d57-9d0a-222222222222"),
                name => (name, row.example),
            })
            // Its words are for one filesystem.
            .filter(|(name, _)| *name != "mkfs_opts")
            .collect();
        proptest::sample::subsequence(pairs, 0..6).prop_map(|pairs| {
            pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        })
    }

    proptest! {
        /// Whoever is given a profile by the name of the volume cannot help it: what it says stands
        /// in the way of nothing that makes sense by itself.
        #[test]
        fn a_profile_contradicts_nothing_that_is_said_at_the_create(
            given in some_options().prop_filter("it makes sense by itself", |given| {
                CreateOptions::parse(given, FsType::Ext4).is_ok()
            }),
            profile in some_options().prop_filter("it is a profile", |profile| {
                problems_of_profile(profile, false, FsType::Ext4).is_empty()
            }),
        ) {
            let all = completed(&given, &profile);
            prop_assert!(given.iter().all(|(name, value)| all.get(name) == Some(value)));
            if let Err(error) = CreateOptions::parse(&all, FsType::Ext4) {
                let error = error.to_string();
                // A part of what is needed: the profile says so itself. Or it has the data of a
                // source, in whose place nobody should get a blank volume without a word.
                let of_part = ["read_only", "partition", "multiattach"];
                let needs = |name: &&&str| error.contains(&format!("option \"{name}\" needs"));
                let is_of_part =
                    of_part.iter().find(needs).is_some_and(|name| profile.contains_key(*name));
                let has_source = SOURCES.iter().any(|name| profile.contains_key(*name));
                let is_blank = has_source && error.contains("is for a blank volume");
                prop_assert!(is_of_part || is_blank, "{error}");
            }
        }

        #[test]
        fn hints_and_origins_are_read_or_refused_with_a_reason(
            value in "([a-z_]{1,14}[=@,]{0,2}){0,5}",
        ) {
            for name in ["hints", "from"] {
                match parse(&[(name, &value)]) {
                    Ok(options) => prop_assert!(
                        options.hints.values().flatten().all(|value| !value.is_empty())
                    ),
                    Err(error) => prop_assert!(error.contains(name), "{error}"),
                }
            }
        }
    }

    #[test]
    fn the_lists_of_names_are_of_the_table() {
        for name in WITH_VOLUME_ID.iter().chain(FOR_BLANK).chain(SOURCES) {
            assert!(TABLE.iter().any(|row| row.name == *name), "{name}");
        }
    }

    #[test]
    fn an_origin_is_a_volume_or_its_snapshot() {
        let of = |text| parse(&[("from", text)]).unwrap().source.unwrap();
        assert_eq!(of("db"), Source::Volume("db".into()));
        let snapshot = |volume: &str, snapshot: &str| Source::SnapshotOf {
            volume: volume.into(),
            snapshot: snapshot.into(),
        };
        assert_eq!(of("db@a b"), snapshot("db", "a b"));
        // The name of a snapshot may have one.
        assert_eq!(of("db@me@home"), snapshot("db", "me@home"));
    }

    #[test]
    fn several_volumes_of_one_hint_are_a_list() {
        let options = parse(&[("hints", "same_host=a, same_host=b,query=x")]).unwrap();
        assert_eq!(options.hints["same_host"], ["a", "b"]);
        assert_eq!(options.hints["query"], ["x"]);
    }

    #[test]
    fn names_and_aliases_are_all_different() {
        let mut names: Vec<_> =
            TABLE.iter().flat_map(|row| row.aliases.iter().chain([&row.name])).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
