//! Roots of what the kernel and the distribution show; settable, for tests and for running inside
//! a managed plugin.

use std::path::PathBuf;

/// Where things are on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// `/sys`
    pub sys: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
    /// `/proc`
    pub proc: PathBuf,
    /// `/etc` (`machine-id`, `iscsi/initiatorname.iscsi`).
    pub etc: PathBuf,
    /// open-iscsi's data base: `/etc/iscsi` or `/var/lib/iscsi`; `None` = found by looking.
    pub iscsi_db: Option<PathBuf>,
    /// Searched for tools before the usual directories.
    pub tools: Option<PathBuf>,
    /// This program.
    pub program: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
            proc: "/proc".into(),
            etc: "/etc".into(),
            iscsi_db: None,
            tools: None,
            // Not the file of that name, which an upgrade may have replaced.
            program: "/proc/self/exe".into(),
        }
    }
}
