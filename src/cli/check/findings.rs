//! What was looked at, what was found, and the command that mends it.

use std::io::{self, Write};

use serde::Serialize;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It could not be looked at, for lack of permission.
    Skipped,
    /// It may work, but somebody should look.
    Warning,
    /// Volumes cannot be used until it is mended.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `config`, `tools`, `initiator`, …
    pub what: &'static str,
    /// How grave it is.
    pub level: Level,
    /// A sentence.
    pub found: String,
    /// What to do, a command where there is one; `None` when nothing has to be done.
    pub mend: Option<String>,
}

/// All that was found, in the order in which it was looked at.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Notes that something is as it should be.
    pub(super) fn ok(&mut self, what: &'static str, found: impl Into<String>) {
        self.0.push(Finding { what, level: Level::Ok, found: found.into(), mend: None });
    }

    /// Notes something that somebody should look at.
    pub(super) fn warn(
        &mut self,
        what: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) {
        let mend = Some(mend.into());
        self.0.push(Finding { what, level: Level::Warning, found: found.into(), mend });
    }

    /// Notes something that must be mended.
    pub(super) fn error(
        &mut self,
        what: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) {
        let mend = Some(mend.into());
        self.0.push(Finding { what, level: Level::Error, found: found.into(), mend });
    }

    /// Notes that something could not be looked at.
    pub(super) fn skip(&mut self, what: &'static str, why: impl std::fmt::Display) {
        self.0.push(Finding {
            what,
            level: Level::Skipped,
            found: format!("not looked at: {why}"),
            mend: Some("run this command as root".to_owned()),
        });
    }

    /// The findings.
    pub fn all(&self) -> &[Finding] {
        &self.0
    }

    /// The gravest level.
    pub fn worst(&self) -> Level {
        self.0.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    /// For people.
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for Finding { what, level, found, mend } in &self.0 {
            let mark = match level {
                Level::Ok => "ok     ",
                Level::Skipped => "skipped",
                Level::Warning => "warning",
                Level::Error => "ERROR  ",
            };
            writeln!(out, "{mark}  {what}: {}", indented(found))?;
            if let Some(mend) = mend {
                writeln!(out, "         → {}", indented(mend))?;
            }
        }
        match self.worst() {
            Level::Ok => writeln!(out, "All is well."),
            Level::Skipped => writeln!(out, "What could be looked at is well."),
            Level::Warning => writeln!(out, "It can work; see the warnings."),
            Level::Error => writeln!(out, "It will not work until the errors are mended."),
        }
    }
}

/// Further lines stand below the first.
fn indented(text: &str) -> String {
    text.replace('\n', "\n           ")
}
