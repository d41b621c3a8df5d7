//! Docker's side: the VolumeDriver protocol, and nothing of clouds.

mod delivery;
mod peer;
pub mod protocol;
pub mod question;
pub mod server;
pub mod socket;

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use protocol::{Listed, VolumeInfo};
pub use question::{Question, Subject};

/// What the socket's server asks of the driver. Every method runs in a task of its own, so it
/// runs to its end whether or not the client is still there.
#[async_trait]
pub trait VolumeDriver: Send + Sync + 'static {
    /// The volume exists when this answers. Idempotent.
    async fn create(
        &self,
        caller: &Caller,
        name: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<(), Failure>;
    /// The volume is gone when this answers.
    async fn remove(&self, caller: &Caller, name: &str) -> Result<(), Failure>;
    /// Mounts the volume and counts one reference for `id`. Answers the directory for the
    /// container; it is never empty.
    async fn mount(&self, caller: &Caller, name: &str, id: &str) -> Result<PathBuf, Failure>;
    /// The success of a [`VolumeDriver::mount`] has reached the engine that asked for it.
    async fn mount_collected(&self, engine: Option<Engine>, name: &str, id: &str);
    /// Nobody collected the success of a [`VolumeDriver::mount`] (client gone or timed out): takes
    /// that one reference back, of the engine that asked for it.
    async fn mount_uncollected(&self, engine: Option<Engine>, name: &str, id: &str);
    /// Takes one reference of `id` back; the last one out unmounts.
    async fn unmount(&self, caller: &Caller, name: &str, id: &str) -> Result<(), Failure>;
    /// Where the volume is mounted here; `None` when it isn't. Touches neither cloud nor device.
    async fn path(&self, name: &str) -> Result<Option<PathBuf>, Failure>;
    /// Facts about one volume.
    async fn get(&self, caller: &Caller, name: &str) -> Result<VolumeInfo, Failure>;
    /// All volumes, page by page. An error in the first message becomes an error answer; a later
    /// one cuts the answer off, for a part must never look like the whole.
    async fn list(
        &self,
        caller: &Caller,
    ) -> Result<mpsc::Receiver<Result<Vec<Listed>, Failure>>, Failure>;
    /// An operator's request. One that destroys something says without the id in its arguments what
    /// it would do, and does it with the id; the others are done at once. Answers `ID`, `Says`
    /// (sentences) and `Done`.
    async fn operate(
        &self,
        caller: &Caller,
        operation: Operation,
        name: &str,
        arguments: &Arguments,
    ) -> Result<Map<String, Value>, Failure>;
    /// An operator's question, or a request that is about more than one named volume. Answers a
    /// JSON object.
    async fn ask(&self, _caller: &Caller, question: &Question) -> Result<Value, Failure> {
        let what = question.subject().path();
        Err(Failure { bad_request: true, message: format!("this driver has no {what}") })
    }
}

/// What an operator can ask for over the same socket, beside Docker's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Take a volume from whoever has it.
    Release,
    /// Erase a volume and make a filesystem.
    Format,
    /// Accept the filesystem that is on a volume as its own.
    AcceptUuid,
    /// Try whether the storage of a volume cuts a host off.
    ProveFailover,
    /// Make a volume larger.
    Resize,
    /// Take a snapshot of a volume.
    Snapshot,
    /// Delete a snapshot of a volume.
    DeleteSnapshot,
}

/// What an operator's request says besides the volume's name; what is empty was not said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arguments {
    /// `ID`: the id of what is to be changed confirms that it may be.
    pub id: Option<String>,
    /// `Size`, as a person writes it.
    pub size: Option<String>,
    /// `Snapshot`: name or id of one.
    pub snapshot: Option<String>,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 7] = [
        Self::Release,
        Self::Format,
        Self::AcceptUuid,
        Self::ProveFailover,
        Self::Resize,
        Self::Snapshot,
        Self::DeleteSnapshot,
    ];

    /// Whether it destroys something, and therefore waits until the id confirms it.
    pub fn is_confirmed(self) -> bool {
        !matches!(self, Self::Resize | Self::Snapshot)
    }

    /// Its path on the plugin's socket. The body is `{"Name":…}` with its [`Arguments`].
    pub fn path(self) -> &'static str {
        match self {
            Self::Release => "/Operator.Release",
            Self::Format => "/Operator.Format",
            Self::AcceptUuid => "/Operator.AcceptUuid",
            Self::ProveFailover => "/Operator.ProveFailover",
            Self::Resize => "/Operator.Resize",
            Self::Snapshot => "/Operator.Snapshot",
            Self::DeleteSnapshot => "/Operator.DeleteSnapshot",
        }
    }
}

/// Who asks, and for how long.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The engine at the other end of the socket (SO_PEERCRED), if it could be read.
    pub engine: Option<Engine>,
    /// When the answer must be there (110 s for Create and Mount, 50 s for the rest).
    pub deadline: Instant,
    /// Cancelled when the client has hung up or was answered already: stop *waiting* for locks
    /// then; what has begun goes on.
    pub gone: CancellationToken,
}

/// A container engine's process. A pid alone may be reused; with its start time it is unique
/// within a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Engine {
    /// Process id.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_time: u64,
}

/// An error for Docker: a whole sentence for the person who typed the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whether the request itself was wrong (HTTP 400) or its execution failed (HTTP 500).
    pub bad_request: bool,
    /// What failed, on which volume, why, and what to do next.
    pub message: String,
}
