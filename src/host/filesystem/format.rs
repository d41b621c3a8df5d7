//! mkfs. Takes a [`Blank`], so nothing else can be formatted.

use std::ffi::OsString;
use std::time::Duration;

use uuid::Uuid;

use super::block_device::{Access, BlockDevice};
use super::blocking;
use super::probe::{Blank, Contents, Filesystem, FsType, probe};
use crate::host::{Cmd, Exec, HostError};
use crate::shown::shown;

/// A large filesystem on a slow back end takes minutes; a Mount that outlives its caller goes on.
const MKFS_LIMIT: Duration = Duration::from_secs(600);
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// ext4: no blocks kept for root (the volume is for data), inode tables and journal zeroed later by
/// the kernel, no discard of a device that was just made.
const EXT4_EXTENDED: &str = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";

/// Makes a filesystem with this UUID. `extra` = words of `mkfs_opts`, checked by
/// [`check_options`], added after our own (`-m0 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard`
/// for ext4, `-K` for xfs and btrfs). Never `-F`/`-f`: then mkfs.xfs and mkfs.btrfs look for
/// themselves too, and every mkfs refuses a device that is mounted or held.
///
/// Answers what was read back: a filesystem of that type with that UUID.
pub async fn mkfs(
    exec: &Exec,
    blank: Blank,
    fs_type: FsType,
    uuid: Uuid,
    extra: &[String],
) -> Result<Filesystem, HostError> {
    let device = blank.device();
    let path = device.path.clone();
    let number = device.number;
    // Between the proof and mkfs the node must not have become another device. Opening it for
    // ourselves also waits until no process that was just started holds a copy of the proof's
    // descriptor: mkfs would take the device for one in use.
    blocking(format!("looking at {}", path.display()), LOOK_LIMIT, move || {
        let open = BlockDevice::open(&path, Access::Exclusive)?;
        if open.number() == number {
            return Ok(());
        }
        Err(HostError::Refused {
            what: format!("{} has become another device; it was not formatted", path.display()),
        })
    })
    .await?;
    exec.run(&command(fs_type, uuid, extra).arg(&device.path)).await.map_err(|source| {
        HostError::Tool {
            what: format!(
                "cannot make a filesystem of type {fs_type} on {}",
                device.path.display()
            ),
            source,
        }
    })?;
    match probe(device).await? {
        Contents::Filesystem(made) if made.fs_type == fs_type && made.uuid == uuid => Ok(made),
        other => Err(HostError::Refused {
            what: format!(
                "mkfs.{fs_type} reported success, but {} holds {other} where the new filesystem \
                 {uuid} must be; the device may have lost its target",
                device.path.display()
            ),
        }),
    }
}

/// The tool that makes a filesystem.
pub fn tool(fs_type: FsType) -> &'static str {
    match fs_type {
        FsType::Ext4 => "mkfs.ext4",
        FsType::Xfs => "mkfs.xfs",
        FsType::Btrfs => "mkfs.btrfs",
    }
}

/// The command line up to the device.
fn command(fs_type: FsType, uuid: Uuid, extra: &[String]) -> Cmd {
    let uuid = uuid.to_string();
    match fs_type {
        FsType::Ext4 => {
            // A second -E replaces the first: ours and theirs go into one, where the last wins.
            let (extended, rest) = split_extended(extra);
            let extended = [EXT4_EXTENDED.to_owned()]
                .into_iter()
                .chain(extended)
                .collect::<Vec<_>>()
                .join(",");
            Cmd::new(tool(fs_type), MKFS_LIMIT)
                .args(["-q", "-m0", "-E", &extended, "-U", &uuid])
                .args(rest)
        }
        FsType::Xfs => Cmd::new(tool(fs_type), MKFS_LIMIT)
            .args(["-q", "-K", "-m", &format!("uuid={uuid}")])
            .args(extra),
        FsType::Btrfs => {
            Cmd::new(tool(fs_type), MKFS_LIMIT).args(["-q", "-K", "-U", &uuid]).args(extra)
        }
    }
}

/// Takes the values of `-E` out of ext4's words.
fn split_extended(words: &[String]) -> (Vec<String>, Vec<OsString>) {
    let (mut extended, mut rest) = (Vec::new(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.strip_prefix("-E") {
            Some("") => extended.extend(words.next().cloned()),
            Some(value) => extended.push(value.to_owned()),
            None => rest.push(word.into()),
        }
    }
    (extended, rest)
}

/// What mkfs takes from a user: options with a value, and options without one.
struct Allowed {
    with_value: &'static [&'static str],
    alone: &'static [&'static str],
    /// Keys inside a value that would reach another device or file, or change the identity.
    refused_keys: &'static [&'static str],
}

fn allowed(fs_type: FsType) -> Allowed {
    match fs_type {
        FsType::Ext4 => Allowed {
            with_value: &[
                "-b", "-C", "-E", "-g", "-G", "-i", "-I", "-J", "-L", "-m", "-N", "-O", "-T",
            ],
            alone: &["-j"],
            refused_keys: &["device", "journal_dev", "offset"],
        },
        FsType::Xfs => Allowed {
            with_value: &["-b", "-d", "-i", "-l", "-L", "-m", "-n", "-s"],
            alone: &["-K"],
            refused_keys: &["file", "name", "logdev", "rtdev", "uuid", "size"],
        },
        FsType::Btrfs => Allowed {
            with_value: &[
                "-d",
                "--data",
                "-m",
                "--metadata",
                "-L",
                "--label",
                "-n",
                "--nodesize",
                "-s",
                "--sectorsize",
                "-O",
                "--features",
                "-R",
                "--runtime-features",
                "--csum",
                "--checksum",
            ],
            alone: &["-K", "--nodiscard", "-M", "--mixed"],
            refused_keys: &[],
        },
    }
}

/// Splits and checks `mkfs_opts`: words, no `-F`, `-f`, `--force`, no second device, no UUID.
///
/// Only options that shape the filesystem pass; the error names the word and says why.
pub fn check_options(fs_type: FsType, options: &str) -> Result<Vec<String>, String> {
    if let Some(bad) = options.chars().find(|c| c.is_control() || matches!(c, '\'' | '"' | '\\')) {
        return Err(format!(
            "mkfs_opts holds {bad:?}: it is split at spaces, without quoting or escapes"
        ));
    }
    let words: Vec<String> = options.split_whitespace().map(str::to_owned).collect();
    let allowed = allowed(fs_type);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let (name, attached) = split_word(word);
        if allowed.alone.contains(&name) && attached.is_none() {
            continue;
        }
        if !allowed.with_value.contains(&name) {
            return Err(refusal(fs_type, word, name, &allowed));
        }
        let value = match attached.or_else(|| rest.next().map(String::as_str)) {
            Some(value) if !value.is_empty() => value,
            _ => return Err(format!("mkfs_opts: {name} needs a value")),
        };
        let key = value.split(',').map(|part| part.split('=').next().unwrap_or(part));
        if let Some(key) = key.into_iter().find(|key| allowed.refused_keys.contains(key)) {
            // `size` shapes XFS' log (-l) and sectors (-s) and inodes (-i); only that of the data
            // section (-d) would leave a part of the volume unused.
            if key != "size" || name == "-d" {
                return Err(format!(
                    "mkfs_opts: {key} in {name} is not allowed: the filesystem covers this volume, \
                     all of it and nothing else, and its UUID is chosen by the driver"
                ));
            }
        }
    }
    Ok(words)
}

/// `-b4096` is `-b` and `4096`; `--label=x` is `--label` and `x`.
fn split_word(word: &str) -> (&str, Option<&str>) {
    if word.starts_with("--") {
        return word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
    }
    match word.char_indices().nth(2) {
        Some((at, _)) if word.starts_with('-') => (&word[..at], Some(&word[at..])),
        _ => (word, None),
    }
}

fn refusal(fs_type: FsType, word: &str, name: &str, allowed: &Allowed) -> String {
    let shown = shown(word);
    match name {
        "-F" | "-f" | "--force" => {
            format!("mkfs_opts: {name} is not allowed: the driver never formats by force")
        }
        "-U" | "--uuid" => {
            format!("mkfs_opts: {name} is not allowed: the driver chooses the UUID and checks it")
        }
        _ if !word.starts_with('-') => format!(
            "mkfs_opts: \"{shown}\" is not an option; mkfs would take it for a device or a size"
        ),
        _ => {
            let known: Vec<&str> =
                allowed.with_value.iter().chain(allowed.alone).copied().collect();
            format!(
                "mkfs_opts: {shown} is not allowed for {fs_type}; these are: {}",
                known.join(" ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(fs_type: FsType, options: &str) -> String {
        check_options(fs_type, options).unwrap_err()
    }

    #[test]
    fn options_that_shape_a_filesystem_pass_as_words() {
        assert_eq!(
            check_options(FsType::Ext4, " -b 4096  -O^has_journal -L web ").unwrap(),
            ["-b", "4096", "-O^has_journal", "-L", "web"]
        );
        assert!(check_options(FsType::Xfs, "-i size=1024 -m reflink=1 -l size=32m").is_ok());
        assert!(check_options(FsType::Btrfs, "--label=web --nodesize 16384 -M").is_ok());
        assert!(check_options(FsType::Ext4, "").unwrap().is_empty());
    }

    #[test]
    fn force_uuid_dry_run_and_other_devices_are_refused() {
        for (fs_type, options) in [
            (FsType::Ext4, "-F"),
            (FsType::Ext4, "-qF"),
            (FsType::Ext4, "-n"),
            (FsType::Ext4, "-S"),
            (FsType::Ext4, "-U random"),
            (FsType::Ext4, "-Urandom"),
            (FsType::Ext4, "-b 4096 /dev/sda"),
            (FsType::Ext4, "-J device=/dev/sda1"),
            (FsType::Ext4, "-O journal_dev"),
            (FsType::Ext4, "-E nodiscard,offset=4096"),
            (FsType::Ext4, "-d /etc"),
            (FsType::Ext4, "-L"),
            (FsType::Ext4, "-L 'two words'"),
            (FsType::Xfs, "-f"),
            (FsType::Xfs, "-N"),
            (FsType::Xfs, "-m crc=1,uuid=1"),
            (FsType::Xfs, "-d name=/dev/sda"),
            (FsType::Xfs, "-d size=100m"),
            (FsType::Xfs, "-l logdev=/dev/sda"),
            (FsType::Xfs, "-r rtdev=/dev/sda"),
            (FsType::Btrfs, "--force"),
            (FsType::Btrfs, "--uuid=1"),
            (FsType::Btrfs, "-r /etc"),
            (FsType::Btrfs, "/dev/sda"),
            (FsType::Btrfs, "-M1"),
        ] {
            assert!(refused(fs_type, options).contains("mkfs_opts"), "{options}");
        }
    }

    #[test]
    fn a_refusal_says_why() {
        assert!(refused(FsType::Ext4, "-F").contains("never formats by force"));
        assert!(refused(FsType::Xfs, "/dev/sdb").contains("device"));
    }

    #[test]
    fn extended_options_of_the_user_join_ours() {
        let words: Vec<String> =
            ["-E", "stride=16", "-b", "4096", "-Ediscard"].map(str::to_owned).to_vec();
        let line = command(FsType::Ext4, Uuid::nil(), &words).to_string();
        assert!(line.contains("nodiscard,stride=16,discard -U"), "{line}");
        assert!(line.ends_with("-b 4096"), "{line}");
    }
}
