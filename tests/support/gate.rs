//! The gate of a daemon's effects (`src/effects.rs`), seen from outside: a directory in which it
//! finds a plan, and notes what comes by while there is one.

use std::fs;
use std::path::{Path, PathBuf};

use cinder_docker_driver::effects::FAULTS_VARIABLE;
use tempfile::TempDir;

use super::Node;

pub struct Gate {
    dir: TempDir,
}

impl Gate {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// That of a daemon which does not run yet.
    pub fn of(node: &mut Node) -> Self {
        let gate = Self::new();
        node.set_variable(FAULTS_VARIABLE, gate.path());
        gate
    }

    /// What a daemon with this gate has in its environment: `NAME=VALUE`.
    pub fn variable(&self) -> String {
        format!("{FAULTS_VARIABLE}={}", self.path().display())
    }

    /// Its directory, in which a test may keep files of its own.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// From now on effects are noted, and the nth of them meets a fault: `kill-before`,
    /// `kill-midway`, `kill-after`, `fail`, `lose`, `pause`.
    pub fn plan(&self, fault: &str, nth: usize) {
        self.plan_for(fault, nth, "");
    }

    /// The nth of a kind, such as `kernel`.
    pub fn plan_for(&self, fault: &str, nth: usize, kind: &str) {
        // Another plan begins to count anew, also where it says the same.
        let id = uuid::Uuid::new_v4();
        fs::write(self.file("plan"), format!("{fault} {nth} {id} {kind}")).unwrap();
    }

    /// From now on effects are noted.
    pub fn watch(&self) {
        self.plan("none", 0);
    }

    /// What was noted so far: `NUMBER KIND WHAT` where an effect began, `NUMBER end` where it ended.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// No plan any more. What was noted, which is gone then.
    pub fn end(&self) -> String {
        fs::remove_file(self.file("plan")).unwrap();
        let log = self.log();
        fs::remove_file(self.file("log")).ok();
        log
    }
}

/// The effects that began, each `KIND WHAT`.
pub fn begun(log: &str) -> impl Iterator<Item = &str> {
    log.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(_, what)| what)
        .filter(|what| *what != "end")
}
