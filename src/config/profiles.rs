//! `Profiles`: named sets of create options, for those who can pass none.
//!
//! ```json
//! "Profiles": {
//!     "database": { "names": ["db-*", "pg-?"], "type": "fast", "fs": "xfs", "size": 50 }
//! }
//! ```
//!
//! `names` are patterns of volume names; every other member is an option as after
//! `docker volume create -o`.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use super::file::Members;
use crate::shown::shown;

/// The member that is no option.
const NAMES: &str = "names";
/// Longest name of a profile, in characters: it has a place in metadata.
const LONGEST_NAME: usize = 64;

/// A named set of create options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// What `-o profile=` says.
    pub name: String,
    /// Patterns of volume names that have it without asking: `*` stands for any characters, `?` for
    /// one.
    pub names: Vec<String>,
    /// The options, as Docker would send them.
    pub options: BTreeMap<String, String>,
}

impl Profile {
    /// Whether a volume of this name has the profile without asking.
    pub fn is_for(&self, name: &str) -> bool {
        self.names.iter().any(|pattern| matches(pattern, name))
    }
}

/// Reads the object as it is written. The error continues a sentence that began with the key.
pub(super) fn read(raw: &RawValue) -> Result<Vec<Profile>, String> {
    let mut profiles: Vec<Profile> = Vec::new();
    for (name, value) in members(raw).ok_or("is not a usable JSON value")? {
        if !is_plain(&name) {
            return Err(format!(
                "has a profile \"{}\": a name is of letters, digits, '_', '.' and '-', at most \
                 {LONGEST_NAME}",
                shown(&name)
            ));
        }
        if profiles.iter().any(|profile| profile.name == name) {
            return Err(format!("has the profile {name:?} twice"));
        }
        let profile = one(name.clone(), value);
        profiles.push(profile.map_err(|what| format!("has a profile {name:?} that {what}"))?);
    }
    Ok(profiles)
}

fn one(name: String, raw: &RawValue) -> Result<Profile, String> {
    let members = members(raw).ok_or("is not an object of options")?;
    let mut profile = Profile { name, names: Vec::new(), options: BTreeMap::new() };
    for (key, raw) in members {
        let value: Value = serde_json::from_str(raw.get()).map_err(|_| "is not usable JSON")?;
        if key == NAMES {
            profile.names = patterns(value)?;
            continue;
        }
        let text = match value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            _ => {
                let key = shown(&key);
                return Err(format!("has an option \"{key}\" that is neither text nor a number"));
            }
        };
        if profile.options.insert(key.clone(), text).is_some() {
            return Err(format!("has the option \"{}\" twice", shown(&key)));
        }
    }
    Ok(profile)
}

fn patterns(value: Value) -> Result<Vec<String>, String> {
    let wrong = || format!("has {NAMES:?} that are not a list of patterns like \"db-*\"");
    let texts = match value {
        Value::String(text) => vec![text],
        Value::Array(items) => {
            let texts = items.into_iter().map(|item| item.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or_else(wrong)?
        }
        _ => return Err(wrong()),
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-*?".contains(c);
    match texts.iter().find(|text| text.is_empty() || !text.chars().all(allowed)) {
        Some(text) => {
            Err(format!("has a pattern \"{}\", which no volume's name can be like", shown(text)))
        }
        None => Ok(texts),
    }
}

fn members(raw: &RawValue) -> Option<Vec<(String, &RawValue)>> {
    let Members(members) = serde_json::from_str(raw.get()).ok()?;
    let named = |(key, value): (&RawValue, _)| Some((serde_json::from_str(key.get()).ok()?, value));
    members.into_iter().map(named).collect()
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST_NAME
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// Whether the whole name is like the pattern. Linear but for the retries of the last `*`.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where the last star is, and where what it stands for ends so far.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, end)) = star else { return false };
                star = Some((at, end + 1));
                p = at + 1;
                n = end + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_text(text: &str) -> Result<Vec<Profile>, String> {
        read(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_pattern_is_like_the_whole_name() {
        for (pattern, like, unlike) in [
            ("db-*", &["db-", "db-1", "db-a-b"][..], &["db", "xdb-1", "DB-1"][..]),
            ("*", &["a", "anything"], &[]),
            ("pg-?", &["pg-1"], &["pg-", "pg-12"]),
            ("*-db", &["a-db", "a-db-db"], &["a-db-", "db"]),
            ("a*b*c", &["abc", "axxbyyc", "abcbc"], &["ab", "acb", "abcd"]),
            ("exact", &["exact"], &["exact1", "exac", ""]),
        ] {
            assert!(like.iter().all(|name| matches(pattern, name)), "{pattern}");
            assert!(!unlike.iter().any(|name| matches(pattern, name)), "{pattern}");
        }
    }

    /// By trying everything.
    fn obviously(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                (0..=name.len()).any(|taken| obviously(rest, &name[taken..]))
            }
            (Some((p, rest)), Some((n, more))) => (*p == b'?' || p == n) && obviously(rest, more),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_are_what_they_seem(pattern in "[ab*?]{0,7}", name in "[ab]{0,9}") {
            let expected = obviously(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(matches(&pattern, &name), expected);
        }
    }

    #[test]
    fn profiles_keep_the_order_of_the_file() {
        let text = r#"{"z": {"names": "z*", "size": 5, "read_only": true}, "a": {"fs": "xfs"}}"#;
        let profiles = read_text(text).unwrap();
        let names: Vec<_> = profiles.iter().map(|profile| &*profile.name).collect();
        assert_eq!(names, ["z", "a"]);
        assert_eq!(profiles[0].names, ["z*"]);
        let options: Vec<_> =
            profiles[0].options.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(options, [("read_only", "true"), ("size", "5")]);
    }

    #[test]
    fn what_is_no_profile_is_told_with_its_name() {
        for (text, told) in [
            (r#"{"a b": {}}"#, "a name is of letters"),
            (r#"{"": {}}"#, "a name is of letters"),
            (r#"{"a": 5}"#, "\"a\" that is not an object"),
            (r#"{"a": {}, "a": {}}"#, "\"a\" twice"),
            (r#"{"a": {"fs": ["xfs"]}}"#, "option \"fs\" that is neither text nor a number"),
            (r#"{"a": {"fs": "xfs", "fs": "ext4"}}"#, "option \"fs\" twice"),
            (r#"{"a": {"names": 5}}"#, "not a list of patterns"),
            (r#"{"a": {"names": ["a/b"]}}"#, "pattern \"a/b\""),
            (r#"{"a": {"names": [""]}}"#, "pattern \"\""),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
