//! Mount: the volume is attached, checked, mounted and counted, or everything is as it was.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::journal::{AttachmentRecord, AttachmentStage, Entry, Facts, MountRecord};
use super::plan::{CloudState, Goal, MountState, Observed, Step, plan};
use super::prepare::Prepared;
use super::{Driver, DriverError, VolumeName, metadata, references};
use crate::config::AttachFlowSetting;
use crate::docker::Caller;
use crate::error_chain::Chain;
use crate::host::HostError;
use crate::host::attach::{Device, DeviceRecord};
use crate::host::filesystem::{blocking, grow, mount};
use crate::openstack::{
    AttachFlow, AttachmentInfo, CloudError, CloudErrorKind, Holder, Reservation, Volume,
    VolumeStatus,
};
use crate::shown::shown;

/// First wait between two looks at a volume; it doubles up to [`SLOWEST_POLL`].
const FASTEST_POLL: Duration = Duration::from_millis(100);
/// Longest wait between two looks at a volume.
const SLOWEST_POLL: Duration = Duration::from_secs(1);
/// How long Cinder may take to make a volume ready, the caller long gone.
const SETTLING_LIMIT: Duration = Duration::from_secs(30 * 60);
/// A mount that cannot be opened within this time is dead.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How often one Mount begins anew because somebody else was faster at the reserve.
const ROUNDS: usize = 200;
/// Bytes of a GiB.
const GIB: u64 = 1 << 30;

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
            self.set_idle(entry.volume_id, entry.users() == 0);
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
                Some(Step::WaitUntilSettled) => waits.for_settling(name).await?,
                Some(Step::WaitForRelease) => {
                    if waits.for_release().await.is_err() {
                        return Err(held_elsewhere(volume.as_ref()));
                    }
                }
                _ => self.clear(&entry).await?,
            }
            volume = Some(self.volume_of(name, id).await?);
        }
        Err(held_elsewhere(volume.as_ref()))
    }

    async fn volume_of(&self, name: &VolumeName, id: Uuid) -> Result<Volume, DriverError> {
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

    /// Takes the volume in Cinder.
    pub(super) async fn reserve(
        &self,
        name: &VolumeName,
        volume: &Volume,
    ) -> Result<Reserved, DriverError> {
        let read_only = metadata::MountSettings::of(volume)?.read_only;
        bytes_of(volume)?;
        let at = self.place_of(name.as_str());
        let mountpoint = self.shown_mountpoint(&at);
        let mut flow = self.flow_for(volume).await?;
        loop {
            let record = AttachmentRecord {
                flow,
                stage: AttachmentStage::Reserving,
                attachment_id: None,
                connector: self.host.identity.connector(&mountpoint, read_only),
                instance_uuid: self.host.identity.uuid,
                mountpoint: mountpoint.clone(),
                updated_at: Default::default(),
            };
            let facts = Facts::of(volume, metadata::is_ours(volume));
            let boot_id = self.host.boot_id.clone();
            self.journal
                .update(volume.id, |entry| {
                    entry.facts = Some(facts);
                    entry.boot_id = boot_id;
                    entry.references.clear();
                    entry.attachment = Some(record);
                    entry.last_error = None;
                })
                .await?;
            match self.cloud.reserve(flow, volume.id).await {
                Ok(reservation) => {
                    let id = reservation.attachment_id.clone();
                    let noted = self
                        .update_attachment(volume.id, |attachment| {
                            attachment.stage = AttachmentStage::Reserved;
                            attachment.attachment_id = id;
                        })
                        .await;
                    let Err(error) = noted else { return Ok(Reserved::Ours(reservation)) };
                    // Nobody would remember it after a crash: give it back while we know.
                    self.cloud.unreserve(&reservation, None).await?;
                    self.journal.update_regardless(volume.id, |e| e.attachment = None).await?;
                    return Err(error);
                }
                Err(error) => {
                    // Nothing was confirmed to us, so there is nothing to undo.
                    self.journal.update_regardless(volume.id, |e| e.attachment = None).await?;
                    match error.kind {
                        CloudErrorKind::NeedsInstanceUuid if !volume.multiattach => {
                            flow = AttachFlow::Actions;
                        }
                        CloudErrorKind::InvalidState => return Ok(Reserved::Taken(error.into())),
                        _ => return Err(error.into()),
                    }
                }
            }
        }
    }

    /// An operator who set HostUUID wants to see it in *Attached to*, and
    /// only the actions flow takes it without asking Nova.
    async fn flow_for(&self, volume: &Volume) -> Result<AttachFlow, DriverError> {
        Ok(match self.settings.attach_flow {
            _ if volume.multiattach => AttachFlow::Attachments,
            AttachFlowSetting::Actions => AttachFlow::Actions,
            AttachFlowSetting::Attachments => AttachFlow::Attachments,
            AttachFlowSetting::Auto if self.host.has_own_uuid => AttachFlow::Actions,
            AttachFlowSetting::Auto => self.cloud.preferred_flow().await?,
        })
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
            self.update_attachment(id, |attachment| {
                attachment.stage = AttachmentStage::Attached;
                attachment.attachment_id = Some(attachment_id);
            })
            .await?;
        }
        let mount = mounted?;
        completed?;
        let entry = self
            .journal
            .update(id, |entry| {
                entry.mount = Some(mount);
                entry.formatting = None;
                entry.names.insert(name.to_string());
            })
            .await?;
        Ok(entry)
    }

    /// Exports a reserved volume to this host and connects its device.
    ///
    /// What was known of the volume before the reserve decides nothing any more: until then another
    /// container or host may have formatted, extended or filled it. It is read again, and from now on
    /// nobody else changes it.
    pub(super) async fn connect_reserved(
        &self,
        name: &VolumeName,
        volume: &Volume,
        reservation: &Reservation,
    ) -> Result<Connected, DriverError> {
        let id = volume.id;
        if volume.multiattach {
            self.check_alone(volume, reservation).await?;
        }
        let entry = self.journal.get(id)?;
        let Some(attachment) = entry.as_ref().and_then(|entry| entry.attachment.as_ref()) else {
            return Err(DriverError::Refused("its reservation is not in the journal".to_owned()));
        };
        let connect = self.cloud.connect(reservation, &attachment.connector);
        let (info, volume) = match reservation.flow {
            AttachFlow::Attachments => {
                let (info, volume) = tokio::join!(connect, self.cloud.volume(id));
                (info?, volume?)
            }
            // This reservation has no id: what proves it ours is noted before the export, which may
            // take a minute and see us killed.
            AttachFlow::Actions => {
                let volume = self.cloud.volume(id).await?;
                let seen = volume.updated_at.clone();
                self.update_attachment(id, |attachment| attachment.updated_at.extend(seen)).await?;
                (self.stamp_beside(reservation, connect).await??, volume)
            }
        };
        let size = bytes_of(&volume)?;
        let mut record = self.host.attacher.plan(&info)?;
        self.note_device(id, &record, AttachmentStage::Reserved).await?;
        let tell = async {
            self.note_stamp(reservation).await?;
            let told = self.tell_connector(&volume, reservation);
            if let Err(error) = self.stamp_beside(reservation, told).await? {
                tracing::warn!(
                    volume = name.as_str(), %error, "the connector is not in the metadata"
                );
            }
            Ok::<_, DriverError>(())
        };
        let (device, told) =
            tokio::join!(self.host.attacher.connect(&mut record, &info, size), tell,);
        // The completion may follow at once.
        let noted = match (&device, told) {
            (Ok(_), Ok(())) => self.note_device(id, &record, AttachmentStage::Completing).await,
            (_, told) => told,
        };
        match (device, noted) {
            (Ok(device), Ok(())) => Ok(Connected { device, volume }),
            (device, noted) => {
                // What connecting has told so far is needed to undo it.
                self.journal.update_regardless(id, |entry| entry.device = Some(record)).await?;
                noted?;
                device.map(|device| Connected { device, volume }).map_err(DriverError::from)
            }
        }
    }

    async fn note_device(
        &self,
        id: Uuid,
        record: &DeviceRecord,
        stage: AttachmentStage,
    ) -> Result<(), DriverError> {
        let record = record.clone();
        self.journal
            .update(id, |entry| {
                entry.device = Some(record);
                if let Some(attachment) = &mut entry.attachment {
                    attachment.stage = stage;
                }
            })
            .await?;
        Ok(())
    }

    /// Mounts a connected device at `MountPoint/NAME` and finds the directory for containers.
    async fn mount_device(
        &self,
        name: &VolumeName,
        volume: &Volume,
        device: &Device,
    ) -> Result<MountRecord, DriverError> {
        let settings = metadata::MountSettings::of(volume)?;
        let Prepared { device, filesystem } = self.prepare(name, volume, device).await?;
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
            if let Err(error) = grow::grow(exec, &device, &filesystem, &at).await {
                tracing::warn!(
                    volume = name.as_str(),
                    "the filesystem did not grow: {}",
                    Chain(&error)
                );
            }
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

    /// On a multiattach volume a reservation excludes nobody: unless ours is the only attachment,
    /// or all are read-only, we are one too many.
    async fn check_alone(
        &self,
        volume: &Volume,
        reservation: &Reservation,
    ) -> Result<(), DriverError> {
        let rows = self.cloud.attachments_of(volume.id).await?;
        let others: Vec<_> =
            rows.iter().filter(|row| Some(&row.id) != reservation.attachment_id.as_ref()).collect();
        let read_only = metadata::MountSettings::of(volume)?.read_only
            && others.iter().all(|row| row.attach_mode.as_deref() == Some("ro"));
        if others.is_empty() || read_only {
            return Ok(());
        }
        Err(DriverError::Refused(format!(
            "it allows several attachments, and {} other host has it (attachment {}): an ordinary \
             filesystem can have one writer only. Stop what uses it there, or make it read_only",
            others.len(),
            others[0].id
        )))
    }

    /// Notes the volume's `updated_at` as our own call left it: while it stands, the reservation is
    /// ours. Only the actions flow needs it; a look that fails costs proof, no more.
    async fn note_stamp(&self, reservation: &Reservation) -> Result<(), DriverError> {
        let id = reservation.volume_id;
        if reservation.flow == AttachFlow::Attachments {
            return Ok(());
        }
        let Ok(volume) = self.cloud.volume(id).await else { return Ok(()) };
        let seen = volume.updated_at.filter(|_| volume.status == VolumeStatus::Attaching);
        self.update_attachment(id, |attachment| attachment.updated_at.extend(seen)).await
    }

    /// Notes how a call of ours moves the volume's `updated_at`, as long as the call takes.
    async fn stamp_beside<T>(
        &self,
        reservation: &Reservation,
        call: impl Future<Output = T>,
    ) -> Result<T, DriverError> {
        let mut call = pin!(call);
        let mut pause = FASTEST_POLL;
        loop {
            if let Ok(answer) = timeout(pause, &mut call).await {
                return Ok(answer);
            }
            self.note_stamp(reservation).await?;
            pause = (pause * 2).min(SLOWEST_POLL);
        }
    }

    /// Actions flow: leaves the connector in the metadata, so that another host can release the
    /// volume for an operator when this one is lost.
    async fn tell_connector(
        &self,
        volume: &Volume,
        reservation: &Reservation,
    ) -> Result<(), CloudError> {
        if reservation.flow == AttachFlow::Attachments {
            return Ok(());
        }
        let identity = &self.host.identity;
        let text = serde_json::json!({
            "initiator": identity.initiator, "ip": identity.ip, "host": identity.host,
        })
        .to_string();
        // Longer than Cinder takes: another host then asks the operator.
        if text.len() > 255 || volume.metadata.get(metadata::CONNECTOR) == Some(&text) {
            return Ok(());
        }
        let change = [(metadata::CONNECTOR.to_owned(), text)].into();
        self.cloud.set_metadata(volume.id, &change).await
    }

    async fn update_attachment(
        &self,
        id: Uuid,
        change: impl FnOnce(&mut AttachmentRecord),
    ) -> Result<(), DriverError> {
        self.journal
            .update(id, |entry| {
                if let Some(attachment) = &mut entry.attachment {
                    change(attachment);
                }
            })
            .await?;
        Ok(())
    }

    /// `MountPoint/NAME`, where the volume of this name is mounted.
    pub(super) fn place_of(&self, name: &str) -> PathBuf {
        self.mount_point.join(name)
    }
}

/// How a reserve ended.
#[derive(Debug)]
pub(super) enum Reserved {
    /// Cinder answered success.
    Ours(Reservation),
    /// The volume's state does not allow it: somebody else was faster. Cinder's words.
    Taken(DriverError),
}

/// A reserved volume whose device is there.
#[derive(Debug)]
pub(super) struct Connected {
    /// The device.
    pub device: Device,
    /// What Cinder said of the volume once it was reserved.
    pub volume: Volume,
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
    pause: Duration,
    release_by: Instant,
    settled_by: Instant,
}

impl Waits {
    fn new(wait_for_release: Duration) -> Self {
        let now = Instant::now();
        Self {
            pause: FASTEST_POLL,
            release_by: now + wait_for_release,
            settled_by: now + SETTLING_LIMIT,
        }
    }

    async fn for_settling(&mut self, name: &VolumeName) -> Result<(), DriverError> {
        if Instant::now() > self.settled_by {
            return Err(DriverError::NotYet(format!(
                "Cinder has not finished making \"{name}\"; try again later"
            )));
        }
        self.next().await;
        Ok(())
    }

    async fn for_release(&mut self) -> Result<(), ()> {
        if Instant::now() > self.release_by {
            return Err(());
        }
        self.next().await;
        Ok(())
    }

    async fn next(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(SLOWEST_POLL);
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
        VolumeStatus::Creating | VolumeStatus::Downloading | VolumeStatus::Extending => {
            CloudState::Settling
        }
        // With multiattach Cinder lets several in; whether they may stay is seen afterwards.
        VolumeStatus::InUse if volume.multiattach && is_read_only(volume) => CloudState::Available,
        VolumeStatus::InUse
        | VolumeStatus::Reserved
        | VolumeStatus::Attaching
        | VolumeStatus::Detaching => CloudState::Elsewhere,
        status => CloudState::Unusable(format!(
            "it is in status {} in Cinder: an administrator must look at volume {}",
            super::get::status_name(status),
            volume.id
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

fn held_elsewhere(volume: Option<&Volume>) -> DriverError {
    let Some(volume) = volume else {
        return DriverError::Refused("another host has it".to_owned());
    };
    DriverError::Refused(match volume.attachments.first() {
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
            super::get::status_name(&volume.status),
            shown(volume.updated_at.as_deref().unwrap_or("unknown")),
            sayable_name(volume)
        ),
    })
}

/// By what a command can name the volume: Cinder takes names that Docker does not.
fn sayable_name(volume: &Volume) -> String {
    if VolumeName::is_valid(&volume.name) { volume.name.clone() } else { volume.id.to_string() }
}

/// The volume's size in bytes. Without a size there is nothing to know its device by.
fn bytes_of(volume: &Volume) -> Result<u64, DriverError> {
    match volume.size.checked_mul(GIB) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(DriverError::Refused(format!(
            "Cinder gives volume {} no usable size, so its device could not be told from others: \
             an administrator must look at it",
            volume.id
        ))),
    }
}
