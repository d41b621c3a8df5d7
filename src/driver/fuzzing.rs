//! See [`crate::fuzzing`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::failover::SHORTEST_LEASE;
use super::failover::lease::{Holder, Sightings};
use super::journal::{Creation, Entry, check_version};
use super::metadata::{self, FormatState, MountSettings, OnRemove};
use super::options::{CreateOptions, VOLUME_HINTS, completed, problems_of_profile};
use super::references::disown_untold;
use super::{DriverError, VolumeName};
use crate::fuzzing::assert_readable;
use crate::host::filesystem::probe::FsType;
use crate::host::filesystem::{format, mount};
use crate::openstack::Volume;

/// The options of a Create, and what a later Mount makes of them.
pub fn create_options(given: &BTreeMap<String, String>) {
    let options = match CreateOptions::parse(given, FsType::Ext4) {
        Ok(options) => options,
        Err(error) => return assert_readable(&error.to_string()),
    };
    assert!(options.size.is_none_or(|size| (1..=i32::MAX.unsigned_abs().into()).contains(&size)));
    assert!(options.metadata.keys().all(|key| !key.starts_with(metadata::PREFIX)));
    let stored = options.to_metadata();
    for (key, value) in &stored {
        // Cinder's limits.
        assert!((1..=255).contains(&key.chars().count()), "{key:?}");
        assert!((1..=255).contains(&value.chars().count()), "{key}={value:?}");
        assert!(!value.contains(char::is_control), "{key}={value:?}");
    }
    let Some(volume) = volume(&stored) else { unreachable!("no volume") };
    assert_eq!(MountSettings::of(&volume).ok().as_ref(), Some(&options.mount));
    check_settings(&options.mount);
    // What two hosts write is destroyed.
    assert!(!options.multiattach || options.mount.read_only);
    assert_eq!(OnRemove::of(&volume).ok(), Some(options.on_remove.unwrap_or_default()));
    let hints = || options.hints.iter();
    assert!(hints().all(|(key, values)| !key.is_empty() && !values.is_empty()));
    let volumes = hints().filter(|(key, _)| VOLUME_HINTS.contains(&key.as_str()));
    assert!(volumes.flat_map(|(_, values)| values).all(|name| VolumeName::is_valid(name)));
    // A profile's own words, said again at the create, change nothing.
    if problems_of_profile(given, false, FsType::Ext4).is_empty() {
        assert_eq!(&completed(given, given), given);
    }
}

/// A volume with this metadata.
fn volume(metadata: &BTreeMap<String, String>) -> Option<Volume> {
    let volume = json!({"id": "7095a8a7-389c-40e0-bfd7-b8e47a89f176", "metadata": metadata});
    crate::openstack::fuzzing::volume(volume.to_string().as_bytes())
}

/// A volume as Cinder shows it, with what anybody in the project wrote into its metadata.
pub fn volume_metadata(data: &[u8]) {
    let Some(mut volume) = crate::openstack::fuzzing::volume(data) else { return };
    check_lease(&volume);
    match MountSettings::of(&volume) {
        Ok(settings) => {
            check_settings(&settings);
            let again = self::volume(&settings.to_metadata()).map(|v| MountSettings::of(&v).ok());
            assert_eq!(again, Some(Some(settings)));
        }
        Err(error) => check_error(&error),
    }
    match FormatState::of(&volume) {
        Ok(None) => assert!(!volume.metadata.contains_key(metadata::FORMAT)),
        Ok(Some(state)) => {
            volume.metadata.insert(metadata::FORMAT.to_owned(), state.to_string());
            assert_eq!(FormatState::of(&volume).ok(), Some(Some(state)));
        }
        Err(error) => check_error(&error),
    }
    if metadata::nonce(&volume).is_some() {
        assert!(metadata::is_ours(&volume));
    }
    if let Err(error) = OnRemove::of(&volume) {
        check_error(&error);
    }
    assert!(metadata::cluster(&volume) != Some("") && metadata::retained(&volume) != Some(""));
    for (name, value) in metadata::options_of(&volume) {
        assert!(!["nonce", "connector", "format", "directory"].contains(&name.as_str()), "{name}");
        assert!(!value.is_empty(), "{name}");
    }
}

fn check_error(error: &DriverError) {
    assert_readable(&error.to_string());
    assert!(matches!(error, DriverError::Refused(_)), "{error:?}");
}

/// What may reach mkfs, mount and chown.
fn check_settings(settings: &MountSettings) {
    // To chown(2) it means "leave it".
    assert!(settings.uid != Some(u32::MAX) && settings.gid != Some(u32::MAX), "{settings:?}");
    assert!(settings.mode.is_none_or(|mode| mode <= 0o7777), "{settings:?}");
    assert!(settings.partition != Some(0), "{settings:?}");
    if let Some(options) = &settings.mount_opts {
        let words = mount::check_options(options);
        assert!(words.is_ok(), "{options:?}");
        check_mount_words(&words.unwrap_or_default());
    }
    for fs_type in [FsType::Ext4, FsType::Xfs, FsType::Btrfs] {
        let words =
            settings.mkfs_opts.as_deref().map(|words| format::check_options(fs_type, words));
        for word in words.and_then(Result::ok).unwrap_or_default() {
            let forced = ["-F", "-f", "--force", "-U"].contains(&&*word);
            assert!(!forced && !word.starts_with("/dev/"), "{word:?} for mkfs");
        }
    }
}

/// Filesystems split their options at every comma; only security modules look for quotes.
fn check_mount_words(words: &[String]) {
    let is_context = |word: &str| {
        ["context=", "fscontext=", "defcontext=", "rootcontext="]
            .iter()
            .any(|name| word.starts_with(name))
    };
    let plain = words.iter().filter(|word| !is_context(word));
    for piece in plain.flat_map(|word| word.split(',')) {
        let found = mount::check_options(piece);
        assert!(found.is_ok_and(|found| found == [piece]), "{piece:?} of {words:?}");
    }
    for word in words.iter().filter(|word| is_context(word) && word.contains([',', '"'])) {
        let value = word.split_once('=').map(|(_, value)| value).unwrap_or_default();
        let inside = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        assert!(inside.is_some_and(|inside| !inside.contains('"')), "{word:?}");
    }
}

/// Nobody is taken for gone at the first look, nor before the lease's time.
fn check_lease(volume: &Volume) {
    let seen = Sightings::default();
    let judge = |at: Duration| seen.judge(volume, at, at, SHORTEST_LEASE);
    match judge(Duration::ZERO) {
        Holder::Unknowable(_) => {}
        Holder::Silent { .. } => unreachable!("gone at the first look"),
        Holder::MayLive { until_gone } => {
            assert!(until_gone >= SHORTEST_LEASE, "{until_gone:?}");
            let almost = until_gone - Duration::from_nanos(1);
            assert!(matches!(judge(almost), Holder::MayLive { .. }));
            let Holder::Silent { attachment, .. } = judge(until_gone) else {
                unreachable!("silent for its whole lease");
            };
            let ids: Vec<_> = volume.attachments.iter().map(|a| &a.attachment_id).collect();
            assert_eq!(ids, [&attachment]);
        }
    }
}

/// A file of the journal.
pub fn journal_entry(data: &[u8]) {
    if let Ok(creation) = serde_json::from_slice::<Creation>(data) {
        let text = serde_json::to_vec(&creation).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<Creation>(&text).ok(), Some(creation));
    }
    let Ok(entry) = serde_json::from_slice::<Entry>(data) else { return };
    let mut entry = match check_version(entry) {
        Ok(entry) => entry,
        Err(reason) => return assert_readable(&reason),
    };
    let text = serde_json::to_vec(&entry).unwrap_or_default();
    let again = serde_json::from_slice::<Entry>(&text).ok();
    // The last digit of a fraction may change; connectors have none.
    let connectors = [&entry.attachment, &entry.unanswered.as_ref().map(|u| u.attachment.clone())]
        .map(|record| record.as_ref().is_some_and(|record| has_fraction(&record.connector)));
    if !connectors.contains(&true) {
        assert_eq!(again.as_ref(), Some(&entry), "it reads differently when it is written out");
    }
    assert!(!entry.shown_name().is_empty());
    if entry.is_complete() {
        assert!(entry.has_liabilities());
    }
    let users = entry.users();
    disown_untold(&mut entry.references);
    assert_eq!(entry.users(), users, "references were lost");
    assert!(entry.references.iter().all(|r| r.untold == 0 && r.count > 0));
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(has_fraction),
        Value::Object(members) => members.values().any(has_fraction),
        _ => false,
    }
}
