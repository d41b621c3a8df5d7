//! What is wrong with a configuration: all of it, collected before anybody is told.

use std::fmt;
use std::path::{Path, PathBuf};

/// Something an operator should look at, though the settings can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning(String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why no settings could be made: every problem found, each a sentence that says where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    path: PathBuf,
    problems: Vec<String>,
}

impl ConfigErrors {
    /// The problems, in the order in which they were found.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use the configuration {}", self.path.display())?;
        if let [only] = self.problems.as_slice() {
            return write!(f, ": {only}");
        }
        write!(f, ", it has {} problems:", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Where a value was written, and under which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    /// `line 3, column 17` of the config file, `environment`, or a cloud of a clouds.yaml.
    pub place: String,
    /// The key or variable.
    pub name: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.name)
    }
}

/// Collects problems and warnings, so that one run tells them all.
#[derive(Debug, Default)]
pub(super) struct Findings {
    problems: Vec<String>,
    warnings: Vec<Warning>,
}

impl Findings {
    /// Notes a problem with the value at `origin`; `what` continues the sentence after its name.
    pub fn wrong(&mut self, origin: &Origin, what: impl fmt::Display) {
        self.problem(format!("{origin} {what}"));
    }

    /// Notes a problem that belongs to no single value.
    pub fn problem(&mut self, sentence: impl Into<String>) {
        self.problems.push(sentence.into());
    }

    /// Notes something that works but deserves a look.
    pub fn warn(&mut self, sentence: impl Into<String>) {
        self.warnings.push(Warning(sentence.into()));
    }

    /// `settings` with the warnings, unless there are problems or no settings.
    pub fn conclude<T>(
        self,
        path: &Path,
        settings: Option<T>,
    ) -> Result<(T, Vec<Warning>), ConfigErrors> {
        match settings {
            Some(settings) if self.problems.is_empty() => Ok((settings, self.warnings)),
            _ => Err(ConfigErrors { path: path.to_owned(), problems: self.problems }),
        }
    }
}
