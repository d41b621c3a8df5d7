//! What a sandbox is started with, and which cloud it behaves like.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a sandbox is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Holds the volumes (`volumes/ID`, sparse files) and the state (`state.json`), across restarts.
    pub dir: PathBuf,
    /// `127.0.0.1:0` = any free port. A loopback address only: the password is no secret.
    pub listen: SocketAddr,
    /// Serve volumes as iSCSI targets (tgtd) instead of loop devices.
    pub iscsi: bool,
    /// Where the targets are then, on 127.0.0.1; 0 = a free port. At most 32767: tgtd's control
    /// socket has the same number.
    pub iscsi_port: u16,
    /// Which cloud it behaves like.
    pub behaviour: Behaviour,
}

impl Options {
    /// A sandbox in this directory, on any free port, with loop devices and default behaviour.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            iscsi: false,
            iscsi_port: 0,
            behaviour: Behaviour::default(),
        }
    }

    /// The same, behaving like this.
    #[must_use]
    pub fn behaviour(mut self, behaviour: Behaviour) -> Self {
        self.behaviour = behaviour;
        self
    }
}

/// Which cloud the sandbox behaves like. Tests change it at any time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// The release that it takes after.
    pub generation: Generation,
    /// Also serve Keystone v2.0 and Cinder v2 (removed in Queens and Xena of the real ones).
    pub legacy_apis: bool,
    /// What Cinder hears when it asks Nova about an attachment that has an instance.
    pub nova: Nova,
    /// Answer iSCSI connection_info for targets that are on paper only, and touch nothing of this
    /// machine: for tests of the API.
    pub paper_exports: bool,
    /// A volume whose loop device is in use is taken from its host all the same: the next export
    /// shows its contents of that moment, and what the old host writes on goes nowhere. Otherwise
    /// such a request fails.
    pub cuts_off: bool,
    /// How long a new volume stays `creating`, in milliseconds.
    pub creating_ms: u64,
    /// How long a deleted volume is still seen `deleting`, in milliseconds.
    pub deleting_ms: u64,
    /// How long a volume stays `extending`, in milliseconds.
    pub extending_ms: u64,
    /// How long a token lives, in seconds.
    pub token_seconds: u32,
    /// By how many seconds Keystone's Date is ahead of the truth; negative when it is behind.
    pub clock_ahead: i64,
    /// Of each project.
    pub quotas: Quotas,
    /// Most rows that a list answers at once (`osapi_max_limit`).
    pub max_limit: usize,
    /// Whether the catalog has the block storage service.
    pub block_storage: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            generation: Generation::Zed,
            legacy_apis: true,
            nova: Nova::KnowsNoInstance,
            paper_exports: false,
            cuts_off: false,
            creating_ms: 20,
            deleting_ms: 20,
            extending_ms: 20,
            token_seconds: 24 * 3600,
            clock_ahead: 0,
            quotas: Quotas::default(),
            max_limit: 1000,
            block_storage: true,
        }
    }
}

/// An OpenStack release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Generation {
    /// Cinder 12, 2018: microversions to 3.50, attachments need an instance_uuid.
    Queens,
    /// Cinder 21, 2022: microversions to 3.70, Nova is asked before an attachment is deleted.
    Zed,
}

impl Generation {
    /// Highest microversion of v3.
    pub(super) fn max_minor(self) -> u32 {
        match self {
            Self::Queens => 50,
            Self::Zed => 70,
        }
    }
}

/// What Nova says about the instance of an attachment that is to be deleted (bug 2004555).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nova {
    /// 404: Cinder goes ahead.
    KnowsNoInstance,
    /// It is an instance of its own: Cinder answers 409.
    ClaimsInstance,
    /// No Nova in the catalog: Cinder answers 500.
    Absent,
}

/// Limits of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Number of volumes.
    pub volumes: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// GiB of volumes and snapshots together.
    pub gigabytes: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { volumes: 1000, snapshots: 1000, gigabytes: 10_000 }
    }
}
