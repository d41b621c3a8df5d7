//! Letting go of a volume: what the journal says that we may hold, undone in reverse.
//!
//! The host first, then Cinder. Each step is idempotent and leaves the journal only when it is
//! done, so an interrupted release is simply begun again.

use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::journal::{AttachmentRecord, AttachmentStage, Entry, MountRecord, Unanswered};
use super::plan::{Goal, MountState, Observed, Step, plan};
use super::{Driver, DriverError};
use crate::error_chain::Chain;
use crate::host::attach::DeviceRecord;
use crate::host::filesystem::mount;
use crate::host::process::MountHolder;
use crate::openstack::{AttachFlow, Holder, Reservation, Volume, VolumeStatus};

/// A reservation that we made but cannot prove to be still ours is left alone for this long.
pub(super) const DOUBTFUL_FOR: Duration = Duration::from_secs(600);

/// How a release ended.
#[derive(Debug, Default)]
pub(super) struct LetGo {
    /// The filesystem could not be written out: data may be lost.
    pub sync_error: Option<DriverError>,
    /// Other mount namespaces still have it; then it stays attached.
    pub held: Vec<MountHolder>,
    /// The host let go, but Cinder was not told yet. The journal finishes it.
    pub cloud_error: Option<DriverError>,
    /// [`Step::Sync`] is done.
    is_written_out: bool,
}

impl Driver {
    /// Lets go of a volume that nobody here refers to. The caller holds the volume's lock.
    ///
    /// `just_reserved`: this very operation made the reservation, so it is ours without a look.
    pub(super) async fn let_go(&self, id: Uuid, just_reserved: bool) -> Result<LetGo, DriverError> {
        self.let_go_after(None, id, just_reserved).await
    }

    /// As [`Driver::let_go`], by whoever has just looked for holders.
    pub(super) async fn let_go_after(
        &self,
        looked: Option<Vec<MountHolder>>,
        id: Uuid,
        just_reserved: bool,
    ) -> Result<LetGo, DriverError> {
        let mut outcome = LetGo::default();
        let Some(entry) = self.journal.get(id)? else { return Ok(outcome) };
        if !entry.has_liabilities() {
            return Ok(outcome);
        }
        // An unmount does not end a freeze: the device would stay claimed for ever.
        self.thaw_what_was_left(&entry).await?;
        let observed = self.observe_here(&entry).await?;
        if let Some(record) = &entry.mount
            && !matches!(observed.mount, MountState::None | MountState::Gone)
        {
            // Of a device that may hang nothing is written out before it must be.
            outcome.held = match (looked, observed.mount) {
                (Some(looked), _) => looked,
                (None, MountState::Healthy) => {
                    tokio::join!(self.holders(record), self.write_out(id, record, &mut outcome)).0
                }
                (None, _) => self.holders(record).await,
            };
            if !outcome.held.is_empty() {
                return Ok(outcome);
            }
        }
        let steps = plan(&observed, Goal::Released).map_err(DriverError::Refused)?;
        for step in steps {
            self.release_step(&entry, step, just_reserved, &mut outcome).await?;
            if !outcome.held.is_empty() || outcome.cloud_error.is_some() {
                break;
            }
        }
        if let Some(error) = &outcome.sync_error {
            tracing::error!(volume = entry.shown_name(), "data may be lost: {}", Chain(error));
        }
        self.set_idle(id, false);
        Ok(outcome)
    }

    async fn release_step(
        &self,
        entry: &Entry,
        step: Step,
        just_reserved: bool,
        outcome: &mut LetGo,
    ) -> Result<(), DriverError> {
        let id = entry.volume_id;
        match (step, &entry.mount, &entry.device, &entry.attachment) {
            (Step::Sync, Some(record), ..) if !outcome.is_written_out => {
                self.write_out(id, record, outcome).await;
            }
            (Step::Unmount, Some(record), ..) => {
                // The directory goes when nobody is found to hold it: the next step.
                mount::take_away(&self.host.exec, &self.host.paths, &record.at).await?;
            }
            (Step::LookForHolders, Some(record), ..) => {
                // A namespace may have copied the mount since we looked. The kernel knows at once that
                // none has (of btrfs, whose mounts have a number of their own, it is not asked); who it
                // is takes a look at every process.
                let is_gone = !self.is_of_this_boot(entry)
                    || mount::is_gone_everywhere(&record.device_path, record.device).await;
                outcome.held = if is_gone { Vec::new() } else { self.holders(record).await };
                if outcome.held.is_empty() {
                    mount::remove_directory(&record.at);
                    let unmounted = |entry: &mut Entry| entry.mount = None;
                    match entry.device {
                        // Written when the device is gone, before Cinder is told: until then the
                        // kernel says that nothing is mounted.
                        Some(_) => self.journal.update_with_next(id, unmounted).await?,
                        None => self.journal.update_regardless(id, unmounted).await?,
                    };
                }
            }
            (Step::RemoveDevice, _, Some(device), _) => {
                // A path says nothing after a boot: another device may be behind it, in use. Of
                // iSCSI the node record is left, and what is below a session proves itself.
                if self.is_of_this_boot(entry) || !matches!(device, DeviceRecord::Local(_)) {
                    self.host.attacher.disconnect(device).await?;
                }
                self.journal.update_regardless(id, |entry| entry.device = None).await?;
            }
            (Step::GiveBack, .., Some(attachment)) => {
                let given_back = match self.until_extended(entry).await {
                    Ok(()) => self.give_back(id, attachment, just_reserved).await,
                    Err(error) => Err(error),
                };
                match given_back {
                    Ok(()) => {
                        let unanswered = unanswered(attachment);
                        self.journal
                            .update_regardless(id, |entry| {
                                entry.attachment = None;
                                entry.resizing = None;
                                // The same one again is not waited for anew.
                                let known = entry.unanswered.take();
                                let is_known = known.as_ref().map(|known| &known.attachment)
                                    == unanswered.as_ref().map(|new| &new.attachment);
                                entry.unanswered =
                                    if is_known { known } else { unanswered.or(known) };
                            })
                            .await?;
                        self.work.notify_one();
                    }
                    Err(error) => {
                        let text = Chain(&error).to_string();
                        tracing::warn!(
                            volume = entry.shown_name(),
                            "Cinder could not be told that the volume is free; trying again in \
                             the background: {text}"
                        );
                        self.journal.update_regardless(id, |e| e.last_error = Some(text)).await?;
                        outcome.cloud_error = Some(error);
                    }
                }
            }
            // The plan names only what the entry has.
            _ => {}
        }
        Ok(())
    }

    /// Before an unmount: what only the cache has is lost with a device that fails then.
    async fn write_out(&self, id: Uuid, record: &MountRecord, outcome: &mut LetGo) {
        outcome.is_written_out = true;
        if let Err(error) = mount::sync(&record.at).await {
            let error = DriverError::from(error);
            let text = Chain(&error).to_string();
            let noted = self.journal.update_regardless(id, |e| e.last_error = Some(text)).await;
            if let Err(unnoted) = noted {
                tracing::error!(volume_id = %id, %unnoted, "an error is not in the journal");
            }
            outcome.sync_error = Some(error);
        }
    }

    /// What the journal and the kernel show; Cinder is not asked, and who uses it is known to the
    /// caller.
    pub(super) async fn observe_here(&self, entry: &Entry) -> Result<Observed, DriverError> {
        Ok(Observed {
            cloud: None,
            attachment: entry.attachment.is_some(),
            device: entry.device.is_some(),
            mount: self.mount_state(entry).await?,
            used: false,
        })
    }

    /// Cinder makes a volume in-use again when it has extended one that was, whether or not somebody
    /// still has it by then.
    async fn until_extended(&self, entry: &Entry) -> Result<(), DriverError> {
        if entry.resizing.is_none() {
            return Ok(());
        }
        let id = entry.volume_id;
        match self.volume_if_any(id).await? {
            Some(volume) if volume.status == VolumeStatus::Extending => {
                Err(DriverError::NotYet(format!(
                    "Cinder is still extending volume {id}; it is given back once that is done"
                )))
            }
            _ => Ok(()),
        }
    }

    async fn give_back(
        &self,
        id: Uuid,
        record: &AttachmentRecord,
        just_reserved: bool,
    ) -> Result<(), DriverError> {
        let reservation = Reservation {
            flow: record.flow,
            volume_id: id,
            attachment_id: record.attachment_id.clone(),
        };
        match (record.stage, record.flow) {
            (AttachmentStage::Reserving, AttachFlow::Attachments) => {
                self.give_back_unanswered(id).await
            }
            (_, AttachFlow::Attachments) => {
                let Some(attachment) = &record.attachment_id else { return Ok(()) };
                Ok(self.cloud.release(record.flow, id, attachment, &record.connector).await?)
            }
            (AttachmentStage::Attached, AttachFlow::Actions) => {
                let Some(attachment) = &record.attachment_id else { return Ok(()) };
                if self.attachment_is_there(id, attachment).await? {
                    self.cloud.begin_release(record.flow, id).await?;
                    self.cloud.release(record.flow, id, attachment, &record.connector).await?;
                }
                Ok(())
            }
            (_, AttachFlow::Actions) => {
                self.give_back_uncompleted(record, &reservation, just_reserved).await
            }
        }
    }

    /// Attachments flow: the reservation that an unanswered reserve may have made. Nothing on it says
    /// whose it is. One that was never connected and that nobody has touched for
    /// [`DOUBTFUL_FOR`] is given back: whoever made it finds it gone and begins anew.
    async fn give_back_unanswered(&self, id: Uuid) -> Result<(), DriverError> {
        let Some(volume) = self.volume_if_any(id).await? else { return Ok(()) };
        if !matches!(volume.status, VolumeStatus::Reserved) && !volume.multiattach {
            return Ok(());
        }
        let mut rows = self.cloud.attachments_of(id).await?;
        rows.retain(|row| row.status == "reserved" && row.instance.is_none());
        match (rows.as_slice(), unchanged_for(&volume)) {
            ([], _) => Ok(()),
            ([row], Some(stood)) if stood >= DOUBTFUL_FOR => {
                let flow = AttachFlow::Attachments;
                Ok(self.cloud.release(flow, id, &row.id, &serde_json::Value::Null).await?)
            }
            _ => Err(doubtful(id, "reserved")),
        }
    }

    /// Actions flow: the reservation, or the attachment that it may have become.
    async fn give_back_uncompleted(
        &self,
        record: &AttachmentRecord,
        reservation: &Reservation,
        just_reserved: bool,
    ) -> Result<(), DriverError> {
        let Some(volume) = self.volume_if_any(reservation.volume_id).await? else {
            return Ok(());
        };
        let holder = Holder {
            instance_uuid: record.instance_uuid,
            mountpoint: record.mountpoint.clone(),
            read_only: false,
        };
        if record.stage == AttachmentStage::Completing
            && let Some(attachment) = volume.attachment_of(&holder)
        {
            self.cloud.begin_release(record.flow, volume.id).await?;
            let id = &attachment.attachment_id;
            return Ok(self.cloud.release(record.flow, volume.id, id, &record.connector).await?);
        }
        if volume.status != VolumeStatus::Attaching {
            return Ok(());
        }
        let unmoved = volume.updated_at.as_ref().is_some_and(|at| record.updated_at.contains(at));
        if just_reserved || unmoved || unchanged_for(&volume) >= Some(DOUBTFUL_FOR) {
            return Ok(self.cloud.unreserve(reservation, Some(&record.connector)).await?);
        }
        Err(doubtful(volume.id, "being attached"))
    }

    /// Looks whether a reserve happened after all that was never answered: then it is a liability
    /// from now on. Whether it can be forgotten.
    pub(super) async fn look_for_unanswered(
        &self,
        id: Uuid,
        unanswered: &Unanswered,
    ) -> Result<bool, DriverError> {
        let taken = match unanswered.attachment.flow {
            AttachFlow::Attachments => VolumeStatus::Reserved,
            AttachFlow::Actions => VolumeStatus::Attaching,
        };
        let volume = self.volume_if_any(id).await?;
        let has_happened = volume.as_ref().is_some_and(|volume| volume.status == taken);
        // A clock that was set back ends the wait as well.
        let waited = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let waited = waited.checked_sub(unanswered.since).map(Duration::from_secs);
        if !has_happened && volume.is_some() && waited.is_some_and(|time| time < DOUBTFUL_FOR) {
            return Ok(false);
        }
        self.journal
            .update_regardless(id, |entry| {
                if has_happened {
                    entry.attachment = Some(unanswered.attachment.clone());
                } else {
                    entry.unanswered = None;
                }
            })
            .await?;
        Ok(!has_happened)
    }

    async fn attachment_is_there(&self, id: Uuid, attachment: &str) -> Result<bool, DriverError> {
        let volume = self.volume_if_any(id).await?;
        Ok(volume.is_some_and(|v| v.attachments.iter().any(|a| a.attachment_id == attachment)))
    }

    /// `None` = Cinder says that it is gone.
    pub(super) async fn volume_if_any(&self, id: Uuid) -> Result<Option<Volume>, DriverError> {
        match self.cloud.volume(id).await {
            Err(error) if error.is_not_found() => Ok(None),
            found => Ok(Some(found?)),
        }
    }
}

/// What has to be looked for when Cinder shows nothing of a reserve that was never answered.
fn unanswered(attachment: &AttachmentRecord) -> Option<Unanswered> {
    let attachment = attachment.clone();
    (attachment.stage == AttachmentStage::Reserving).then(|| Unanswered {
        attachment,
        since: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs(),
    })
}

fn doubtful(id: Uuid, state: &str) -> DriverError {
    DriverError::NotYet(format!(
        "volume {id} is {state}, by this host when it was interrupted or by another one: that is \
         not certain, so it is left alone until nothing has changed for {} minutes; then it is \
         given back by itself",
        DOUBTFUL_FOR.as_secs() / 60
    ))
}

/// How long Cinder has not touched the volume's row; `None` when its time makes no sense.
pub(super) fn unchanged_for(volume: &Volume) -> Option<Duration> {
    age(volume.updated_at.as_deref().unwrap_or(&volume.created_at))
}

/// How long ago one of Cinder's times was (UTC, which it does not say), by this host's clock; `None`
/// where that is behind.
pub(super) fn age(time: &str) -> Option<Duration> {
    SystemTime::now().duration_since(humantime::parse_rfc3339(&format!("{time}Z")).ok()?).ok()
}
