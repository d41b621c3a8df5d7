//! The options of `docker volume create -o NAME=VALUE`: one row each.

use std::collections::BTreeMap;

use super::DriverError;
use super::metadata::{self, MountSettings};
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
    /// What matters when it is mounted.
    pub mount: MountSettings,
}

/// So many problems are told at once.
const MOST_PROBLEMS: usize = 10;

/// What a volume is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A snapshot, by name or id.
    Snapshot(String),
    /// Another volume, by name or id.
    Volume(String),
    /// An image, by name or id.
    Image(String),
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
        example: "other",
        help: "make it a clone of this volume (name or id)",
        apply: |options, value| source(options, Source::Volume(text(value)?)),
    },
    Row {
        name: "image",
        aliases: &["image_id"],
        example: "debian-12",
        help: "make it from this image (name or id)",
        apply: |options, value| source(options, Source::Image(text(value)?)),
    },
    Row {
        name: "availability_zone",
        aliases: &["az"],
        example: "nova",
        help: "Cinder availability zone",
        apply: |options, value| put(&mut options.availability_zone, text(value)?),
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
        help: "attach and mount read-only (needs snapshot, from or image)",
        apply: |options, value| {
            options.mount.read_only = boolean(value)?;
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
];

impl CreateOptions {
    /// Reads Docker's options. All problems are reported at once (of very many, the first);
    /// nothing is silently ignored.
    pub fn parse(
        given: &BTreeMap<String, String>,
        default_fs: FsType,
    ) -> Result<Self, DriverError> {
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
        problems.extend(options.contradictions(default_fs));
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

    fn contradictions(&self, default_fs: FsType) -> Vec<String> {
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
                        "option \"{name}\" is for a blank volume: one made from a snapshot, volume \
                         or image is never formatted"
                    ));
                }
            }
        } else {
            if settings.read_only {
                problems.push(
                    "option \"read_only\" needs \"snapshot\", \"from\" or \"image\": a blank volume \
                     could never be formatted"
                        .to_owned(),
                );
            }
            if settings.partition.is_some() {
                problems.push(
                    "option \"partition\" needs \"snapshot\", \"from\" or \"image\": a blank volume \
                     has none"
                        .to_owned(),
                );
            }
        }
        if let Some(words) = &settings.mkfs_opts
            && let Err(reason) = format::check_options(settings.fs.unwrap_or(default_fs), words)
        {
            problems.push(format!("option mkfs_opts=\"{}\": {reason}", shown(words)));
        }
        problems
    }
}

fn find(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name || row.aliases.contains(&name))
}

fn unknown(name: &str) -> String {
    let shown = shown(name);
    let nearest = TABLE
        .iter()
        .flat_map(|row| row.aliases.iter().chain([&row.name]))
        .map(|known| (strsim::damerau_levenshtein(known, &name.to_lowercase()), *known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3));
    match nearest {
        Some((_, known)) => format!("unknown option \"{shown}\": did you mean \"{known}\"?"),
        None => {
            let names: Vec<_> = TABLE.iter().map(|row| row.name).collect();
            format!("unknown option \"{shown}\": there are {}", names.join(", "))
        }
    }
}

fn put<T>(place: &mut Option<T>, value: T) -> Result<(), String> {
    *place = Some(value);
    Ok(())
}

fn source(options: &mut CreateOptions, source: Source) -> Result<(), String> {
    if options.source.is_some() {
        return Err("only one of \"snapshot\", \"from\" and \"image\" can be given".to_owned());
    }
    put(&mut options.source, source)
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
