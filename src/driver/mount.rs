//! Mount: the volume is attached, checked, mounted and counted, or everything is as it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use uuid::Uuid;

use super::attach::{Connected, Reserved};
use super::failover::Takeover;
use super::journal::{AttachmentStage, Entry, MountRecord};
use super::pace::Pace;
use super::plan::{CloudState, Goal, MountState, Observed, Step, plan};
use super::prepare::Prepared;
use super::{Driver, DriverError, VolumeName, metadata, references};
use crate::docker::Caller;
use crate::error_chain::Chain;
use crate::host::HostError;
use crate::host::attach::Device;
use crate::host::filesystem::{blocking, grow, mount, partition};
use crate::openstack::{AttachmentInfo, Holder, Reservation, Volume, VolumeStatus};
use crate::shown::shown;

/// How long Cinder may take to make a volume ready, the caller long gone.
const SETTLING_LIMIT: Duration = Duration::from_secs(30 * 60);
/// How long the device of a mounted volume may be without its session. The kernel's initiator gives
/// up after 120 s (`node.session.timeo.replacement_timeout`), Docker's engine too.
const DEVICE_LIMIT: Duration = Duration::from_secs(60);
/// A mount that cannot be opened within this time is dead.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How often one Mount begins anew because somebody else was faster at the reserve.
const ROUNDS: usize = 200;
impl Driver {
    pub(super) async fn mount_volume(
        &self,
        caller: &Caller,
        name: &str,
        id: &str,
    ) -> Result<PathBuf, DriverError> {
        let name = VolumeName::parse(name)?;
        self.adopt(&name).await;
        // What is mounted here needs no word from Cinder.
        let known = self.journal.by_name(name.as_str()).filter(|entry| entry.mount.is_some());
        let (volume_id, volume) = match known {
            Some(entry) => (entry.volume_id, None),
            None => {
                let volume = self.find_known(&name).await?;
                (volume.id, Some(volume))
            }
        };
        let _guard = self.volumes.lock_for(&volume_id, caller, name.as_str()).await?;
        let entry = self.ensure_mounted(&name, volume_id, volume).await?;
        self.count(&entry, &name, id, caller).await
    }

    /// Counts one reference and says which directory the container gets.
    async fn count(
        &self,
        entry: &Arc<Entry>,
        name: &VolumeName,
        id: &str,
        caller: &Caller,
    ) -> Result<PathBuf, DriverError> {
        let entry = self.settle_references(entry).await?;
        let Some(directory) = entry.mount.as_ref().and_then(|record| record.directory.clone())
        else {
            return Err(DriverError::Refused("it is not mounted".to_owned()));
        };
        let counted = self
            .journal
            .update(entry.volume_id, |entry| {
                entry.names.insert(name.to_string());
                references::add(&mut entry.references, id, caller.engine);
            })
            .await;
        if let Err(error) = counted {
            // Mounted, but the reference could not be kept: nobody may believe in it.
            if entry.users() == 0 {
                self.let_go_again(entry.volume_id);
            }
            return Err(error.into());
        }
        self.set_idle(entry.volume_id, false);
        Ok(directory)
    }

    /// Plans and acts until the volume is mounted.
    async fn ensure_mounted(
        &self,
        name: &VolumeName,
        id: Uuid,
        mut volume: Option<Volume>,
    ) -> Result<Arc<Entry>, DriverError> {
        let mut waits = Waits::new(self.settings.wait_for_release);
        for _ in 0..ROUNDS {
            let entry = self.journal.get(id)?.unwrap_or_else(|| Arc::new(Entry::new(id)));
            if volume.is_none() && !entry.has_liabilities() {
                // It was mounted when we looked, and was let go of until we had its lock.
                volume = Some(self.volume_of(name, id).await?);
            }
            let observed = self.observe(&entry, volume.as_ref()).await?;
            let steps = plan(&observed, Goal::Mounted).map_err(DriverError::Refused)?;
            match steps.first() {
                Some(Step::Use) => return Ok(entry),
                Some(Step::Reserve) => {
                    let Some(found) = &volume else { continue };
                    match self.attach(name, found).await? {
                        Attached::Here(entry) => return Ok(entry),
                        // It may stay so, whatever state Cinder shows.
                        Attached::Taken(error) => {
                            waits.for_release().await.map_err(|()| error)?;
                        }
                    }
                }
                Some(Step::WaitForDevice) => {
                    waits.for_device().await?;
                    continue;
                }
                Some(Step::WaitUntilSettled) => waits.for_settling(name).await?,
                Some(Step::WaitForRelease) => {
                    let Some(held) = &volume else { continue };
                    let takeover = self.judge_holder(held).await?;
                    if let Takeover::Now(attachment) = &takeover {
                        self.cut_off(held, attachment).await?;
                    } else if waits.for_release().await.is_err() {
                        return Err(held_elsewhere(volume.as_ref(), &takeover));
                    }
                }
                _ => self.clear(&entry).await?,
            }
            volume = Some(self.volume_of(name, id).await?);
        }
        Err(held_elsewhere(volume.as_ref(), &Takeover::NotAsked))
    }

    pub(super) async fn volume_of(
        &self,
        name: &VolumeName,
        id: Uuid,
    ) -> Result<Volume, DriverError> {
        self.cloud.volume(id).await.map_err(|error| match error.is_not_found() {
            true => DriverError::NotFound(name.to_string()),
            false => error.into(),
        })
    }

    async fn observe(
        &self,
        entry: &Entry,
        volume: Option<&Volume>,
    ) -> Result<Observed, DriverError> {
        let mut observed = self.observe_here(entry).await?;
        observed.cloud = volume.map(cloud_state);
        if let Some(record) = &entry.mount {
            if observed.mount == MountState::Healthy && !answers(&record.at).await {
                observed.mount = MountState::Broken;
            }
            if observed.mount == MountState::Broken {
                observed.used = !self.holders(record).await.is_empty();
            }
        }
        Ok(observed)
    }

    /// Undoes what an earlier operation, crash or boot left, so that the volume can be attached
    /// afresh.
    async fn clear(&self, entry: &Entry) -> Result<(), DriverError> {
        let id = entry.volume_id;
        self.journal.update(id, |entry| entry.references.clear()).await?;
        let outcome = self.let_go(id, false).await?;
        if let Some(holder) = outcome.held.first() {
            return Err(DriverError::Refused(format!(
                "its earlier mount is still held by process {} ({}): stop that container, then try \
                 again",
                holder.pid, holder.command
            )));
        }
        outcome.cloud_error.map_or(Ok(()), Err)
    }

    /// Attaches and mounts an available volume.
    async fn attach(&self, name: &VolumeName, volume: &Volume) -> Result<Attached, DriverError> {
        let reservation = match self.reserve(name, volume).await? {
            Reserved::Ours(reservation) => reservation,
            Reserved::Taken(error) => return Ok(Attached::Taken(error)),
        };
        match Box::pin(self.attach_reserved(name, volume, &reservation)).await {
            Ok(entry) => Ok(Attached::Here(entry)),
            Err(cause) => {
                let text = Chain(&cause).to_string();
                self.journal
                    .update_regardless(volume.id, |entry| entry.last_error = Some(text))
                    .await?;
                let undo = match self.let_go(volume.id, true).await {
                    Ok(outcome) => outcome.cloud_error,
                    Err(error) => Some(error),
                };
                self.work.notify_one();
                Err(match undo {
                    None => cause,
                    Some(undo) => {
                        DriverError::Undo { cause: Box::new(cause), undo: Box::new(undo) }
                    }
                })
            }
        }
    }

    async fn attach_reserved(
        &self,
        name: &VolumeName,
        volume: &Volume,
        reservation: &Reservation,
    ) -> Result<Arc<Entry>, DriverError> {
        let id = volume.id;
        let Connected { device, volume } =
            Box::pin(self.connect_reserved(name, volume, reservation)).await?;
        let holder = Holder {
            instance_uuid: self.host.identity.uuid,
            mountpoint: self.shown_mountpoint(&self.place_of(name.as_str())),
            read_only: metadata::MountSettings::of(&volume)?.read_only,
        };
        // Cinder's completion needs nothing of the host, nor the host of it.
        let (completed, mounted) = tokio::join!(
            self.cloud.complete(reservation, &holder),
            Box::pin(self.mount_device(name, &volume, &device)),
        );
        if let Ok(attachment_id) = &completed {
            let attachment_id = attachment_id.clone();
            // Both are written with the reference, or with what is undone.
            self.journal
                .update_with_next(id, |entry| {
                    if let Some(attachment) = &mut entry.attachment {
                        attachment.stage = AttachmentStage::Attached;
                        attachment.attachment_id = Some(attachment_id);
                    }
                })
                .await?;
        }
        let mount = mounted?;
        completed?;
        let entry = self
            .journal
            .update_with_next(id, |entry| {
                entry.mount = Some(mount);
                entry.formatting = None;
                entry.names.insert(name.to_string());
            })
            .await?;
        self.failover.note_mounted(id);
        Ok(entry)
    }

    /// Mounts a connected device at `MountPoint/NAME` and finds the directory for containers.
    async fn mount_device(
        &self,
        name: &VolumeName,
        volume: &Volume,
        device: &Device,
    ) -> Result<MountRecord, DriverError> {
        let settings = metadata::MountSettings::of(volume)?;
        let disk = device;
        let Prepared { device, filesystem } = self.prepare(name, volume, disk).await?;
        let at = self.place_of(name.as_str());
        let record = MountRecord {
            at: at.clone(),
            directory: None,
            device: device.number,
            device_path: device.path.clone(),
            fs_type: filesystem.fs_type,
            fs_uuid: filesystem.uuid,
            read_only: settings.read_only,
            since: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs(),
        };
        self.check_unmounted(&record, volume.id)?;
        let intent = record.clone();
        self.journal.update(volume.id, |entry| entry.mount = Some(intent)).await?;
        let options = mount::MountOptions {
            read_only: settings.read_only,
            extra: match &settings.mount_opts {
                Some(options) => mount::check_options(options).map_err(DriverError::Refused)?,
                None => Vec::new(),
            },
        };
        let (exec, paths) = (&self.host.exec, &self.host.paths);
        let mounted = mount::mount(exec, paths, &device, &filesystem, &at, &options).await?;
        if !settings.read_only && grow::is_needed(&device, &filesystem) {
            // The data is all there without it: worth a line, not a refusal.
            let limit = grow::MOUNT_LIMIT;
            if let Err(error) = grow::grow(exec, &device, filesystem.fs_type, &at, limit).await {
                tracing::warn!(
                    volume = name.as_str(),
                    "the filesystem did not grow: {}",
                    Chain(&error)
                );
            }
        }
        if device.number != disk.number
            && let Ok(Some(known)) = partition::with_number(paths, disk, device.number)
            && let Some(unused) = super::resize::unused(disk, &known)
        {
            tracing::warn!(volume = name.as_str(), "its filesystem is smaller than it: {unused}");
        }
        let directory = self.choose_directory(volume, &at, &settings).await?;
        // btrfs shows a number of its own, by which its other mounts are found.
        Ok(MountRecord { directory: Some(directory), device: mounted.device, ..record })
    }

    /// Nothing may be mounted there already: it would be hidden, or taken for the volume.
    fn check_unmounted(&self, record: &MountRecord, id: Uuid) -> Result<(), DriverError> {
        let found = crate::host::filesystem::mountinfo::at(&self.host.paths, &record.at)
            .map_err(|source| HostError::io("read", "/proc/self/mountinfo", source))?;
        match found {
            None => Ok(()),
            Some(entry) => Err(DriverError::Refused(format!(
                "{} is already mounted at {}, and it is not known to be this volume ({id}): \
                 unmount it, or move it away",
                entry.source,
                record.at.display()
            ))),
        }
    }

    /// `MountPoint/NAME`, where the volume of this name is mounted.
    pub(super) fn place_of(&self, name: &str) -> PathBuf {
        self.mount_point.join(name)
    }
}

/// How attaching ended that did not fail.
enum Attached {
    /// Mounted.
    Here(Arc<Entry>),
    /// As [`Reserved::Taken`]; nothing was changed.
    Taken(DriverError),
}

/// How long one Mount may wait for what.
struct Waits {
    pace: Pace,
    release_by: Instant,
    settled_by: Instant,
    device_by: Instant,
}

impl Waits {
    fn new(wait_for_release: Duration) -> Self {
        let now = Instant::now();
        Self {
            pace: Pace::calm(),
            release_by: now + wait_for_release,
            settled_by: now + SETTLING_LIMIT,
            device_by: now + DEVICE_LIMIT,
        }
    }

    async fn for_device(&mut self) -> Result<(), DriverError> {
        if Instant::now() > self.device_by {
            return Err(DriverError::NotYet(format!(
                "it is mounted here, but its iSCSI target has not answered for {} seconds: see \
                 whether this host reaches the storage, then try again",
                DEVICE_LIMIT.as_secs()
            )));
        }
        self.pace.next().await;
        Ok(())
    }

    async fn for_settling(&mut self, name: &VolumeName) -> Result<(), DriverError> {
        if Instant::now() > self.settled_by {
            return Err(DriverError::NotYet(format!(
                "Cinder has not finished making \"{name}\"; try again later"
            )));
        }
        self.pace.next().await;
        Ok(())
    }

    async fn for_release(&mut self) -> Result<(), ()> {
        if Instant::now() > self.release_by {
            return Err(());
        }
        self.pace.next().await;
        Ok(())
    }
}

/// Whether a mount can be opened: an XFS that shut itself down shows it in nothing else.
async fn answers(at: &Path) -> bool {
    let at = at.to_owned();
    let open = move || std::fs::read_dir(&at).map_err(|e| HostError::io("open", &at, e));
    blocking("opening the mount", ANSWER_LIMIT, open).await.is_ok()
}

fn cloud_state(volume: &Volume) -> CloudState {
    match &volume.status {
        VolumeStatus::Available => CloudState::Available,
        VolumeStatus::Creating
        | VolumeStatus::Downloading
        | VolumeStatus::Restoring
        | VolumeStatus::Extending => CloudState::Settling,
        // With multiattach Cinder lets several in; whether they may stay is seen afterwards.
        VolumeStatus::InUse if volume.multiattach && is_read_only(volume) => CloudState::Available,
        VolumeStatus::InUse
        | VolumeStatus::Reserved
        | VolumeStatus::Attaching
        | VolumeStatus::Detaching => CloudState::Elsewhere,
        status => CloudState::Unusable(format!(
            "it is in status {} in Cinder: an administrator must look at volume {}",
            status, volume.id
        )),
    }
}

fn is_read_only(volume: &Volume) -> bool {
    volume.metadata.get(metadata::READ_ONLY).is_some_and(|value| value == "true")
}

/// Who has a volume, for people.
pub(super) fn shown_holder(attachment: &AttachmentInfo) -> String {
    let who = [&attachment.device, &attachment.host_name, &attachment.server_id]
        .into_iter()
        .flatten()
        .filter(|text| !text.is_empty())
        .map(|text| shown(text))
        .collect::<Vec<_>>()
        .join(", ");
    let who = if who.is_empty() { "an unknown host".to_owned() } else { who };
    match &attachment.attached_at {
        Some(since) => format!("{who} since {} UTC", shown(since)),
        None => who,
    }
}

fn held_elsewhere(volume: Option<&Volume>, takeover: &Takeover) -> DriverError {
    let Some(volume) = volume else {
        return DriverError::Refused("another host has it".to_owned());
    };
    let failover = match takeover {
        Takeover::Never(why) => format!(". Failover does not take it: {why}"),
        Takeover::In(left) => format!(
            ". If its host gives no sign of life for {} more seconds, the next start here takes it over",
            left.as_secs() + 1
        ),
        Takeover::NotAsked | Takeover::Now(_) => String::new(),
    };
    let why = match volume.attachments.first() {
        Some(attachment) => format!(
            "volume {} is attached to {}: stop the container that uses it there. If that host is \
             gone for good, \"cinder-docker-driver release {}\" takes it away from it",
            volume.id,
            shown_holder(attachment),
            sayable_name(volume)
        ),
        None => format!(
            "volume {} is in status {} since {} UTC: another host is attaching or releasing it. If \
             that never ends, \"cinder-docker-driver release {}\" frees it",
            volume.id,
            volume.status,
            shown(volume.updated_at.as_deref().unwrap_or("unknown")),
            sayable_name(volume)
        ),
    };
    DriverError::Refused(why + &failover)
}

/// By what a command can name the volume: Cinder takes names that Docker does not.
fn sayable_name(volume: &Volume) -> String {
    if VolumeName::is_valid(&volume.name) { volume.name.clone() } else { volume.id.to_string() }
}
