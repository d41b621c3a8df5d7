//! The config file as it is written: one JSON object, every key optional.
//!
//! Keys are matched without regard to case and the last of a repeated key counts, as the Go
//! driver's decoder did. Each value remembers its line and column for the messages.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::findings::{Findings, Origin};
use super::profiles::{self, Profile};

/// A configuration is a page of text: what is larger is another file.
const MAX_BYTES: u64 = 1024 * 1024;

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A JSON string.
    Text,
    /// A JSON string that nobody else may see.
    Secret,
    /// A whole number, or a string of digits.
    Number,
    /// `true` or `false`.
    Flag,
    /// A list of JSON strings; one alone is a list of one.
    List,
    /// An object of profiles, each an object of create options.
    Profiles,
}

/// Every key, in the spelling that messages use. A new key is a row here, its use in `auth.rs` or
/// `validate.rs`, and a row in docs/configuration.md.
pub(super) const KEYS: &[(&str, Kind)] = &[
    // The Go driver's.
    ("Endpoint", Kind::Text),
    ("Username", Kind::Text),
    ("Password", Kind::Secret),
    ("TenantID", Kind::Text),
    ("DomainName", Kind::Text),
    ("Region", Kind::Text),
    ("DefaultVolSz", Kind::Number),
    ("HostUUID", Kind::Text),
    ("InitiatorIP", Kind::Text),
    ("InitiatorIFace", Kind::Text),
    ("MountPoint", Kind::Text),
    ("SocketGroup", Kind::Text),
    // Ours: the cloud.
    ("UserID", Kind::Text),
    ("UserDomainID", Kind::Text),
    ("UserDomainName", Kind::Text),
    ("TenantName", Kind::Text),
    ("ProjectID", Kind::Text),
    ("ProjectName", Kind::Text),
    ("ProjectDomainID", Kind::Text),
    ("ProjectDomainName", Kind::Text),
    ("ApplicationCredentialID", Kind::Text),
    ("ApplicationCredentialName", Kind::Text),
    ("ApplicationCredentialSecret", Kind::Secret),
    ("Token", Kind::Secret),
    ("CACert", Kind::Text),
    ("Cert", Kind::Text),
    ("Key", Kind::Text),
    ("Insecure", Kind::Flag),
    ("Interface", Kind::Text),
    ("BlockStorageEndpoint", Kind::Text),
    ("Cloud", Kind::Text),
    ("CloudsFile", Kind::Text),
    // Ours: this host and the driver's decisions.
    ("ConnectorHost", Kind::Text),
    ("StateDir", Kind::Text),
    ("DefaultVolumeType", Kind::Text),
    ("DefaultFilesystem", Kind::Text),
    ("AttachFlow", Kind::Text),
    ("ListAll", Kind::Flag),
    ("RemoveForeign", Kind::Flag),
    ("FormatForeign", Kind::Flag),
    ("NewVolumeBlocks", Kind::Text),
    ("WaitForRelease", Kind::Number),
    ("ContentDirectory", Kind::Text),
    ("Failover", Kind::List),
    ("FailoverLease", Kind::Number),
    ("ClusterID", Kind::Text),
    ("AvailabilityZone", Kind::Text),
    ("Profiles", Kind::Profiles),
    ("Metrics", Kind::Text),
];

/// A value of the right kind.
#[derive(Debug, Clone)]
enum Value {
    Text(SecretString),
    Number(u64),
    Flag(bool),
    List(Vec<String>),
    Profiles(Vec<Profile>),
}

#[derive(Debug, Clone)]
struct Entry {
    value: Value,
    origin: Origin,
}

/// The file's entries. An absent file has none.
#[derive(Debug, Default)]
pub(super) struct ConfigFile {
    entries: BTreeMap<&'static str, Entry>,
    /// Keys whose value was refused: they are not *missing*.
    refused: BTreeSet<&'static str>,
}

impl ConfigFile {
    /// A text or a secret. `null` counts as left out.
    pub fn text(&self, key: &str) -> Option<(&SecretString, &Origin)> {
        match self.entries.get(key)? {
            Entry { value: Value::Text(text), origin } => Some((text, origin)),
            _ => None,
        }
    }

    /// A number. `null` counts as left out.
    pub fn number(&self, key: &str) -> Option<(u64, &Origin)> {
        match self.entries.get(key)? {
            Entry { value: Value::Number(number), origin } => Some((*number, origin)),
            _ => None,
        }
    }

    /// A flag. `null` counts as left out.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.entries.get(key)?.value {
            Value::Flag(flag) => Some(flag),
            _ => None,
        }
    }

    /// A list, and where it is. `null` counts as left out.
    pub fn list(&self, key: &str) -> Option<(&[String], &Origin)> {
        match self.entries.get(key)? {
            Entry { value: Value::List(list), origin } => Some((list, origin)),
            _ => None,
        }
    }

    /// The profiles, and where they are. `null` counts as left out.
    pub fn profiles(&self, key: &str) -> Option<(&[Profile], &Origin)> {
        match self.entries.get(key)? {
            Entry { value: Value::Profiles(profiles), origin } => Some((profiles, origin)),
            _ => None,
        }
    }

    /// Whether the key is there with a value that was refused (and reported).
    pub fn is_refused(&self, key: &str) -> bool {
        self.refused.contains(key)
    }

    fn holds_a_secret(&self) -> bool {
        KEYS.iter().any(|(key, kind)| *kind == Kind::Secret && self.entries.contains_key(key))
    }
}

/// Reads and parses the config file; `None` when there is no such file. Single values that cannot
/// be used are noted in `findings`; the error is a sentence about the file as a whole.
pub(super) fn read(path: &Path, findings: &mut Findings) -> Result<Option<ConfigFile>, String> {
    let (text, mode) = match read_text(path) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot read the file: {error}")),
    };
    let file = parse(text.expose_secret(), findings)?;
    if file.holds_a_secret() {
        warn_if_public(path, mode, findings);
    }
    Ok(Some(file))
}

/// Reads a regular file of at most 1 MiB, with its permission bits.
pub(super) fn read_text(path: &Path) -> io::Result<(SecretString, u32)> {
    let refuse = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    // Looked at before it is opened: opening a FIFO would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(refuse("it is not a regular file"));
    }
    let file = File::open(path)?;
    let mode = file.metadata()?.mode();
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refuse("it is larger than 1 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        refuse(&format!("it is not UTF-8 text: bad byte at {}", position(&good, good.len())))
    })?;
    Ok((text.into(), mode))
}

/// Warns about a file with a secret that others than its owner and group may read.
pub(super) fn warn_if_public(path: &Path, mode: u32, findings: &mut Findings) {
    if mode & 0o007 != 0 {
        let path = path.display();
        findings.warn(format!(
            "{path} holds a secret and every user of this host may read or change it: \
             chmod 600 {path}"
        ));
    }
}

pub(super) fn parse(text: &str, findings: &mut Findings) -> Result<ConfigFile, String> {
    // Some editors begin UTF-8 files with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // Said here: serde_json would quote what stands there, which may be a secret.
    if !text.trim_start().starts_with('{') {
        return Err("the file must hold one JSON object, { … }".to_owned());
    }
    let Members(members) = serde_json::from_str(text)
        .map_err(|error| format!("the file is not valid JSON: {error}"))?;
    let mut file = ConfigFile::default();
    for (key, value) in members {
        take_member(text, key, value, &mut file, findings);
    }
    Ok(file)
}

/// Files one member under its key.
fn take_member(
    text: &str,
    raw_key: &RawValue,
    raw_value: &RawValue,
    file: &mut ConfigFile,
    findings: &mut Findings,
) {
    let key_position = position(text, offset_in(text, raw_key));
    let written: String = match serde_json::from_str(raw_key.get()) {
        Ok(written) => written,
        Err(_) => {
            return findings.problem(format!("{key_position}: the key is not a valid string"));
        }
    };
    let Some((key, kind)) = KEYS.iter().find(|(key, _)| key.eq_ignore_ascii_case(&written)) else {
        let hint = nearest_key(&written)
            .map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
        return findings.warn(format!("{key_position}: unknown key {written:?} is ignored{hint}"));
    };
    if file.entries.remove(key).is_some() || file.refused.remove(key) {
        findings
            .warn(format!("{key_position}: {key} is there more than once, the last one counts"));
    }
    let origin = Origin {
        place: position(text, offset_in(text, raw_value)).to_string(),
        name: (*key).to_owned(),
    };
    match value_of(*kind, raw_value) {
        Ok(Some(value)) => {
            file.entries.insert(key, Entry { value, origin });
        }
        Ok(None) => {}
        Err(what) => {
            findings.wrong(&origin, what);
            file.refused.insert(key);
        }
    }
}

/// The value as its kind wants it; `None` for `null`. The error continues a sentence that began
/// with the key and never quotes the value, which may be a secret under a misspelt key.
fn value_of(kind: Kind, raw: &RawValue) -> Result<Option<Value>, String> {
    use serde_json::Value as Json;
    let json: Json =
        serde_json::from_str(raw.get()).map_err(|_| "is not a usable JSON value".to_owned())?;
    let found = match &json {
        Json::Null => return Ok(None),
        Json::Bool(_) => "true or false",
        Json::Number(_) => "a number",
        Json::String(_) => "text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    };
    match (kind, json) {
        (Kind::Text, Json::String(text)) if text.trim().contains(char::is_control) => {
            Err("must not hold control characters".to_owned())
        }
        (Kind::Text | Kind::Secret, Json::String(text)) => Ok(Some(Value::Text(text.into()))),
        (Kind::Text | Kind::Secret, _) => {
            Err(format!("must be text in double quotes, not {found}"))
        }
        (Kind::Number, Json::Number(number)) => {
            number.as_u64().map(|number| Some(Value::Number(number))).ok_or_else(|| {
                "must be a whole number, not negative and without a fraction".to_owned()
            })
        }
        (Kind::Number, Json::String(digits)) => match digits.trim() {
            "" => Ok(None),
            digits => digits
                .parse()
                .map(|number| Some(Value::Number(number)))
                .map_err(|_| "must be a whole number".to_owned()),
        },
        (Kind::Number, _) => Err(format!("must be a whole number, not {found}")),
        (Kind::Flag, Json::Bool(flag)) => Ok(Some(Value::Flag(flag))),
        (Kind::Flag, Json::String(text)) => match text.trim().to_ascii_lowercase().as_str() {
            "" => Ok(None),
            "true" => Ok(Some(Value::Flag(true))),
            "false" => Ok(Some(Value::Flag(false))),
            _ => Err("must be true or false".to_owned()),
        },
        (Kind::Flag, _) => Err(format!("must be true or false, not {found}")),
        (Kind::List, Json::String(text)) => Ok(Some(Value::List(vec![text]))),
        (Kind::List, Json::Array(items)) => {
            let texts: Option<Vec<String>> =
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            texts
                .map(|texts| Some(Value::List(texts)))
                .ok_or_else(|| "must be a list of texts in double quotes".to_owned())
        }
        (Kind::List, _) => Err(format!("must be a list, not {found}")),
        (Kind::Profiles, Json::Object(_)) => {
            profiles::read(raw).map(|profiles| Some(Value::Profiles(profiles)))
        }
        (Kind::Profiles, _) => Err(format!("must be an object of profiles, not {found}")),
    }
}

/// The known key that looks most like `written`, if any does.
fn nearest_key(written: &str) -> Option<&'static str> {
    let written = written.to_lowercase();
    KEYS.iter()
        .map(|(key, _)| (strsim::damerau_levenshtein(&key.to_lowercase(), &written), *key))
        .min()
        .filter(|(distance, key)| *distance <= (key.len() / 3).max(1))
        .map(|(_, key)| key)
}

/// The members of an object in their order, repeated ones too, each a slice of the text.
pub(super) struct Members<'a>(pub(super) Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Line and column, both from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    line: usize,
    column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

fn position(text: &str, offset: usize) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Position {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

/// Where in `text` a value borrowed from it begins.
fn offset_in(text: &str, part: &RawValue) -> usize {
    part.get().as_ptr().addr().saturating_sub(text.as_ptr().addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (ConfigFile, Findings) {
        let mut findings = Findings::default();
        let file = parse(text, &mut findings).unwrap();
        (file, findings)
    }

    #[test]
    fn positions_count_characters_from_one() {
        assert_eq!(position("", 0), Position { line: 1, column: 1 });
        assert_eq!(position("{\n  \"é\": 1", 9), Position { line: 2, column: 7 });
    }

    #[test]
    fn a_value_knows_its_line_and_column_in_a_windows_file() {
        let (file, _) = parsed("\u{feff}{\r\n  \"Region\" : \"here\"\r\n}\r\n");
        let (_, origin) = file.text("Region").unwrap();
        assert_eq!(origin.place, "line 2, column 14");
    }

    #[test]
    fn the_nearest_key_is_named_only_when_it_is_near() {
        assert_eq!(nearest_key("Pasword"), Some("Password"));
        assert_eq!(nearest_key("user_name"), Some("Username"));
        assert_eq!(nearest_key("DefaultVolSize"), Some("DefaultVolSz"));
        assert_eq!(nearest_key("Kay"), Some("Key"));
        assert_eq!(nearest_key("Colour"), None);
    }

    #[test]
    fn key_names_are_distinct_without_regard_to_case() {
        let distinct: BTreeSet<_> = KEYS.iter().map(|(key, _)| key.to_lowercase()).collect();
        assert_eq!(distinct.len(), KEYS.len());
    }

    #[test]
    fn debug_output_of_the_file_shows_no_text() {
        let (file, findings) =
            parsed(r#"{"Password": "hunter2", "Token": 5, "Pasword": "hunter3"}"#);
        let shown = format!("{file:?} {findings:?}");
        assert!(!shown.contains("hunter"), "{shown}");
    }
}
