//! Decisions: where Docker, the cloud and this host meet.
//!
//! One file an operation. Each takes the volume's lock, observes, asks [`plan`] for the steps and
//! takes them; what it does is in the [`journal`] before it is done.

mod adopt;
mod attach;
mod create;
mod error;
mod failover;
mod flights;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod get;
pub mod health;
pub mod journal;
mod list;
mod locks;
pub mod metadata;
mod mount;
mod name;
mod operate;
pub mod options;
mod pace;
pub mod plan;
mod prepare;
mod recover;
pub mod references;
mod release;
mod remove;
mod renaming;
pub mod report;
mod resize;
mod resolve;
mod snapshot;
mod unmount;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

pub use error::DriverError;
pub use name::VolumeName;

use crate::config::{DriverSettings, HostSettings};
use crate::docker::{
    Arguments, Caller, Engine, Failure, Listed, Operation, Question, VolumeDriver, VolumeInfo,
};
use crate::error_chain::Chain;
use crate::host::attach::{Attacher, DeviceState};
use crate::host::filesystem::mount::is_healthy;
use crate::host::filesystem::mountinfo::{self, MountEntry};
use crate::host::identity::HostIdentity;
use crate::host::process::{self, MountHolder};
use crate::host::{Exec, HostError, Paths};
use crate::locks::Locks;
use crate::metrics;
use crate::openstack::Cloud;
use journal::{Entry, Journal, MountRecord};
use metadata::fs_type;
use plan::MountState;

/// How long a volume stays mounted that nobody uses: a late success that nobody collected.
const IDLE_GRACE: Duration = Duration::from_secs(60);
/// How often a process is looked at again whose mounts cannot be read, …
const LOOKS_AT_UNREAD: usize = 5;
/// … and the wait before each look.
const ENDING_TIME: Duration = Duration::from_millis(20);
/// First wait before something that failed is tried again.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// The driver of this host.
#[derive(Debug)]
pub struct Driver {
    settings: DriverSettings,
    mount_point: PathBuf,
    cloud: Cloud,
    host: Host,
    journal: Journal,
    volumes: Locks<Uuid>,
    creating: Locks<String>,
    /// Look-ups for Get.
    looking_up: flights::Flights<String, Result<resolve::Lookup, Arc<DriverError>>>,
    failover: failover::Failover,
    /// When to let go of a mount that has no users.
    idle: Mutex<HashMap<Uuid, Instant>>,
    /// Wakes the background work that finishes what operations left.
    work: Notify,
}

/// This machine.
#[derive(Debug)]
struct Host {
    paths: Paths,
    exec: Exec,
    identity: HostIdentity,
    attacher: Attacher,
    boot_id: String,
    has_own_uuid: bool,
}

impl Driver {
    /// A driver with its journal open. Touches no network.
    pub fn new(
        settings: DriverSettings,
        host: &HostSettings,
        cloud: Cloud,
        paths: Paths,
    ) -> Result<Self, DriverError> {
        let exec = Exec::new(&paths);
        let identity = HostIdentity::discover(&paths, host)?;
        for warning in identity.warnings(&paths, host) {
            tracing::warn!("{warning}");
        }
        let boot_id = process::boot_id(&paths).map_err(|source| {
            HostError::io("read", paths.proc.join("sys/kernel/random/boot_id"), source)
        })?;
        let attacher = Attacher::new(paths.clone(), exec.clone(), &identity);
        let journal = Journal::open(&settings.state_dir)?;
        let failover = failover::Failover::new(settings.failover.clone(), &settings.state_dir);
        let has_own_uuid = host.host_uuid.is_some();
        Ok(Self {
            settings,
            mount_point: host.mount_point.clone(),
            cloud,
            host: Host { paths, exec, identity, attacher, boot_id, has_own_uuid },
            journal,
            volumes: Locks::default(),
            creating: Locks::default(),
            looking_up: flights::Flights::default(),
            failover,
            idle: Mutex::default(),
            work: Notify::new(),
        })
    }

    /// Where the journal is.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The mount that an entry speaks of, if the kernel still has it: same boot (device numbers
    /// are handed out anew in each), same path, same device; and what somebody has mounted over it.
    fn kernel_mount(
        &self,
        entry: &Entry,
    ) -> Result<Option<(MountEntry, Option<MountEntry>)>, DriverError> {
        let Some(record) = entry.mount.as_ref().filter(|_| self.is_of_this_boot(entry)) else {
            return Ok(None);
        };
        let mut mounts = mountinfo::own(&self.host.paths).map_err(|source| {
            HostError::io("read", self.host.paths.proc.join("self/mountinfo"), source)
        })?;
        mounts.retain(|mount| mount.mount_point == record.at);
        let ours = mounts.iter().rposition(|mount| {
            mount.device == record.device || mount.block_device() == Some(record.device)
        });
        Ok(ours.map(|at| {
            let over = (at + 1 < mounts.len()).then(|| mounts.swap_remove(mounts.len() - 1));
            (mounts.swap_remove(at), over)
        }))
    }

    /// Whether the volume is mounted here, by the kernel's word. Touches no device.
    fn is_mounted(&self, entry: &Entry) -> Result<bool, DriverError> {
        Ok(self.kernel_mount(entry)?.is_some())
    }

    /// Whether what an entry says of this host's kernel can still be true.
    fn is_of_this_boot(&self, entry: &Entry) -> bool {
        entry.boot_id == self.host.boot_id
    }

    /// The directory that containers get, of a volume that is mounted here.
    fn mounted_directory(&self, entry: &Entry) -> Result<Option<PathBuf>, DriverError> {
        Ok(if self.is_mounted(entry)? {
            entry.mount.as_ref().and_then(|record| record.directory.clone())
        } else {
            None
        })
    }

    async fn mount_state(&self, entry: &Entry) -> Result<MountState, DriverError> {
        let Some(record) = &entry.mount else { return Ok(MountState::None) };
        let Some((mounted, over)) = self.kernel_mount(entry)? else { return Ok(MountState::Gone) };
        if let Some(over) = over {
            return Err(DriverError::Refused(format!(
                "{} is mounted over it at {}: unmount that first",
                over.source,
                record.at.display()
            )));
        }
        let device = match &entry.device {
            Some(device) => self.host.attacher.find(device).await?,
            None => None,
        };
        if entry.taken.is_some() || !entry.is_complete() || !is_healthy(&mounted, record.read_only)
        {
            return Ok(MountState::Broken);
        }
        Ok(match device.map(|device| device.state) {
            Some(DeviceState::Running) => MountState::Healthy,
            Some(DeviceState::Waiting) => MountState::Stalled,
            Some(DeviceState::Failed) | None => MountState::Broken,
        })
    }

    /// Other mount namespaces that hold the volume's filesystem.
    async fn holders(&self, record: &MountRecord) -> Vec<MountHolder> {
        let mut found = self.look_for_holders(record).await;
        for _ in 0..LOOKS_AT_UNREAD {
            if found.is_empty() || !found.iter().all(references::is_unread) {
                break;
            }
            sleep(ENDING_TIME).await;
            found = references::still_there(&found, self.look_for_holders(record).await);
        }
        found
    }

    async fn look_for_holders(&self, record: &MountRecord) -> Vec<MountHolder> {
        let (paths, device, at) = (self.host.paths.clone(), record.device, record.at.clone());
        let found =
            tokio::task::spawn_blocking(move || process::mount_holders(&paths, device, &at));
        // A search that failed must count as found: what is held must not be let go.
        found.await.unwrap_or_else(|_| {
            vec![MountHolder { pid: 0, command: "unknown".into(), mount_point: String::new() }]
        })
    }

    /// Whether an engine's process still runs.
    fn lives(&self, engine: Engine) -> bool {
        process::start_time(&self.host.paths, engine.pid) == Some(engine.start_time)
    }

    /// What Cinder's clients show as the device: says which host has it, and where.
    fn shown_mountpoint(&self, at: &std::path::Path) -> String {
        let text = format!("{}:{}", self.host.identity.host, at.display());
        text.chars().take(255).collect()
    }

    /// Whether nobody uses a mount any more: then it is let go of after a while.
    fn set_idle(&self, id: Uuid, idle: bool) {
        let mut map = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle {
            map.entry(id).or_insert_with(|| Instant::now() + IDLE_GRACE);
        } else {
            map.remove(&id);
        }
        drop(map);
        self.work.notify_one();
    }

    /// Nobody uses a mount, nor will the one come who used it last: it is let go of at once.
    fn set_abandoned(&self, id: Uuid) {
        let mut map = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(id, Instant::now());
    }

    /// Nobody uses a mount, and letting go of it did not work: it is tried again soon.
    fn let_go_again(&self, id: Uuid) {
        let due = Instant::now() + FIRST_RETRY;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).insert(id, due);
        self.work.notify_one();
    }

    /// When to let go of a mount without users.
    fn idle_until(&self, id: Uuid) -> Instant {
        let mut map = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        *map.entry(id).or_insert_with(|| Instant::now() + IDLE_GRACE)
    }

    fn default_fs(&self) -> crate::host::filesystem::probe::FsType {
        // The config was validated; ext4 is the documented default.
        fs_type(&self.settings.default_filesystem)
            .unwrap_or(crate::host::filesystem::probe::FsType::Ext4)
    }
}

/// Names the operation in an error.
fn named<T>(
    action: &'static str,
    name: &str,
    result: Result<T, DriverError>,
) -> Result<T, Failure> {
    result.map_err(|error| {
        metrics::error(error.label());
        Failure::from(error.during(action, name))
    })
}

#[async_trait]
impl VolumeDriver for Arc<Driver> {
    async fn create(
        &self,
        caller: &Caller,
        name: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        named("create", name, Box::pin(self.create_volume(caller, name, options)).await)
    }

    async fn remove(&self, caller: &Caller, name: &str) -> Result<(), Failure> {
        named("remove", name, Box::pin(self.remove_volume(caller, name)).await)
    }

    async fn mount(&self, caller: &Caller, name: &str, id: &str) -> Result<PathBuf, Failure> {
        named("mount", name, Box::pin(self.mount_volume(caller, name, id)).await)
    }

    async fn mount_collected(&self, engine: Option<Engine>, name: &str, id: &str) {
        self.note_told(engine, name, id).await;
    }

    async fn mount_uncollected(&self, engine: Option<Engine>, name: &str, id: &str) {
        self.take_reference_back(engine, name, id).await;
    }

    async fn unmount(&self, caller: &Caller, name: &str, id: &str) -> Result<(), Failure> {
        named("unmount", name, Box::pin(self.unmount_volume(caller, name, id)).await)
    }

    async fn path(&self, name: &str) -> Result<Option<PathBuf>, Failure> {
        named("find the path of", name, self.path_of(name))
    }

    async fn get(&self, caller: &Caller, name: &str) -> Result<VolumeInfo, Failure> {
        named("look up", name, self.get_volume(caller, name).await)
    }

    async fn list(
        &self,
        _caller: &Caller,
    ) -> Result<mpsc::Receiver<Result<Vec<Listed>, Failure>>, Failure> {
        Ok(Driver::list_volumes(self))
    }

    async fn operate(
        &self,
        caller: &Caller,
        operation: Operation,
        name: &str,
        arguments: &Arguments,
    ) -> Result<Map<String, Value>, Failure> {
        let action = match operation {
            Operation::Release => "release",
            Operation::Format => "format",
            Operation::AcceptUuid => "accept the UUID of",
            Operation::ProveFailover => "try failover with",
            Operation::Resize => "resize",
            Operation::Snapshot => "take a snapshot of",
            Operation::DeleteSnapshot => "delete a snapshot of",
        };
        let done = Box::pin(self.operate_on(caller, operation, name, arguments)).await;
        named(action, name, done)
    }

    async fn ask(&self, caller: &Caller, question: &Question) -> Result<Value, Failure> {
        let name = question.volume();
        match question {
            Question::List { all } => {
                let list = self.report().list(*all).await;
                list.map_err(|error| {
                    metrics::error(error.label());
                    let message = format!("cannot list volumes: {}", Chain(&error));
                    Failure { bad_request: false, message }
                })
            }
            Question::Inspect { .. } => named("inspect", name, self.report().inspect(name).await),
            Question::Health { deep } => Ok(self.health(*deep).await),
            Question::Adopt { new_name, confirmed, .. } => {
                let adopted = self.adopt_by_hand(caller, name, new_name, confirmed.as_deref());
                named("adopt", name, Box::pin(adopted).await)
            }
            Question::ReleaseFrom { host, attachments, .. } => {
                let released = self.release_from(caller, name, host, attachments);
                named("release", name, Box::pin(released).await)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::openstack::{Volume, VolumeStatus};
    use uuid::Uuid;

    /// An available volume of ours with nothing special about it.
    pub(crate) fn volume(name: &str) -> Volume {
        Volume {
            id: Uuid::new_v4(),
            name: name.to_owned(),
            status: VolumeStatus::Available,
            size: 1,
            volume_type: None,
            availability_zone: None,
            description: None,
            metadata: std::collections::BTreeMap::new(),
            attachments: Vec::new(),
            bootable: false,
            encrypted: false,
            multiattach: false,
            snapshot_id: None,
            source_volid: None,
            from_image: false,
            created_at: "2026-11-22T02:24:00.419476".to_owned(),
            updated_at: None,
        }
    }
}
