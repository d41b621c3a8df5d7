//! Volume names as Docker sends them: dockerd checks none, so they are checked here, once.

use std::fmt;

use super::DriverError;
use crate::shown::shown;

/// Cinder's limit, in bytes; a directory name may be no longer either.
const MAX_LENGTH: usize = 255;

/// A name of the form `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 255 bytes: safe as a directory name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

impl VolumeName {
    /// Checks a name from Docker.
    pub fn parse(name: &str) -> Result<Self, DriverError> {
        if Self::is_valid(name) {
            return Ok(Self(name.to_owned()));
        }
        Err(DriverError::BadRequest(format!(
            "\"{}\" is not a volume name: use letters, digits, '_', '.' and '-', begin with a \
             letter or digit, and at most {MAX_LENGTH} characters",
            shown(name)
        )))
    }

    /// Whether Docker can say this name. Others are never listed and never become a path.
    pub fn is_valid(name: &str) -> bool {
        name.len() <= MAX_LENGTH
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "../../etc",
            "/etc",
            "a/b",
            "a\nb",
            "a b",
            "-x",
            "é",
            "a\0b",
            "_a",
            "a%2Fb",
            "a&limit=1",
            &"x".repeat(256),
        ] {
            assert!(VolumeName::parse(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn ordinary_names_pass_byte_for_byte() {
        for name in ["demovol-2", "cinderDisk", "a", "project_web.1", "0", &"x".repeat(255)] {
            assert_eq!(VolumeName::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_refused_name_is_shown_without_its_control_characters() {
        let error = VolumeName::parse("a\n\u{1b}[31m").unwrap_err().to_string();
        assert!(!error.contains('\n') && !error.contains('\u{1b}'), "{error}");
    }
}
