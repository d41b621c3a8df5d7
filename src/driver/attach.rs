//! Attaching: the volume is reserved in Cinder, exported to this host, and its device connected.
//!
//! Each step is in the journal before it is taken. The reserve is the compare-and-swap: nothing
//! goes on without its answer.

use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;
use uuid::Uuid;

use super::journal::{AttachmentRecord, AttachmentStage, Facts};
use super::{Driver, DriverError, VolumeName, metadata};
use crate::config::AttachFlowSetting;
use crate::host::attach::{Device, DeviceRecord};
use crate::openstack::{AttachFlow, CloudError, CloudErrorKind, Reservation, Volume, VolumeStatus};

/// Bytes of a GiB.
const GIB: u64 = 1 << 30;
/// First wait between two looks at a volume beside a call; it doubles up to [`SLOWEST_LOOK`].
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// Longest wait between two looks.
const SLOWEST_LOOK: Duration = Duration::from_secs(1);

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

impl Driver {
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
            let facts = Facts::of(volume, self.is_ours(volume));
            let boot_id = self.host.boot_id.clone();
            self.journal
                .update(volume.id, |entry| {
                    entry.facts = Some(facts);
                    entry.boot_id = boot_id;
                    entry.references.clear();
                    entry.attachment = Some(record);
                    entry.last_error = None;
                    entry.taken = None;
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
                Err(error) if error.is_ambiguous() => {
                    // Nothing was confirmed to us, but Cinder may have done it: see to it later.
                    self.work.notify_one();
                    return Err(error.into());
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
            let told = self.tell_others(&volume, reservation);
            if let Err(error) = self.stamp_beside(reservation, told).await? {
                tracing::warn!(
                    volume = name.as_str(), %error, "its metadata does not say who has it"
                );
            }
            Ok::<_, DriverError>(())
        };
        let (device, told) =
            tokio::join!(self.host.attacher.connect(&mut record, &info, size), tell,);
        // The completion may follow at once.
        let noted = match (&device, told) {
            (Ok(_), Ok(())) => self.note_connected(reservation, &record).await,
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

    /// The device is there, and the completion may be sent.
    async fn note_connected(
        &self,
        reservation: &Reservation,
        record: &DeviceRecord,
    ) -> Result<(), DriverError> {
        let id = reservation.volume_id;
        if reservation.flow == AttachFlow::Actions {
            // Whether there is an attachment to look for, only this says.
            return self.note_device(id, record, AttachmentStage::Completing).await;
        }
        // The attachment is known by its id in any stage, and the device by the record that was
        // written before: mkfs or the mount is noted before anything else happens.
        let record = record.clone();
        self.journal
            .update_with_next(id, |entry| {
                entry.device = Some(record);
                if let Some(attachment) = &mut entry.attachment {
                    attachment.stage = AttachmentStage::Completing;
                }
            })
            .await?;
        Ok(())
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
        let mut pause = FIRST_LOOK;
        loop {
            if let Ok(answer) = timeout(pause, &mut call).await {
                return Ok(answer);
            }
            self.note_stamp(reservation).await?;
            pause = (pause * 2).min(SLOWEST_LOOK);
        }
    }

    /// Leaves in the metadata what another host needs when this one is lost. Actions flow: the
    /// connector, with which it can release the volume for an operator. Attachments flow: the first
    /// sign of life, if the volume may be taken over.
    async fn tell_others(
        &self,
        volume: &Volume,
        reservation: &Reservation,
    ) -> Result<(), CloudError> {
        if reservation.flow == AttachFlow::Attachments {
            return match self.failover.sign(volume, reservation.attachment_id.as_deref()) {
                Some(sign) => self.cloud.set_metadata(volume.id, &[sign].into()).await,
                None => Ok(()),
            };
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

    pub(super) async fn update_attachment(
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
