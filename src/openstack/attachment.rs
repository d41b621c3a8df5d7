//! The two attach flows behind one interface.
//!
//! ```text
//!               reserve            connect                      complete       release
//! actions       os-reserve         os-initialize_connection     os-attach      os-begin_detaching (before the host lets
//!                                                                              go), os-terminate_connection, os-detach
//! attachments   POST attachment    PUT attachment (connector)   os-complete    DELETE attachment
//! ```
//!
//! The reservation is Cinder's compare-and-swap: nothing continues unless it *answered* success.

mod actions;
mod attachments;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{AttachmentInfo, Cloud, CloudError, CloudErrorKind, Volume, VolumeStatus};
use crate::connection_info::ConnectionInfo;

/// Which of the two flows; an attachment is released by the flow that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachFlow {
    /// Volume actions (v2, and v3 at any microversion).
    Actions,
    /// `/attachments` (v3 from 3.44).
    Attachments,
}

/// What Cinder answered to our reserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The flow.
    pub flow: AttachFlow,
    /// The volume.
    pub volume_id: Uuid,
    /// Attachments flow: the attachment's id. Actions flow: not known before `complete`.
    pub attachment_id: Option<String>,
}

impl Reservation {
    /// The id in the attachments flow, `None` in the actions flow.
    fn attachment(&self) -> Result<Option<&str>, CloudError> {
        match (self.flow, &self.attachment_id) {
            (AttachFlow::Actions, _) => Ok(None),
            (AttachFlow::Attachments, Some(id)) => Ok(Some(id)),
            (AttachFlow::Attachments, None) => Err(CloudError::new(
                CloudErrorKind::BadRequest,
                format!("the attachment of volume {} has no id: nothing was sent", self.volume_id),
            )),
        }
    }
}

/// Who attaches: goes into the attachment so that people and other hosts can see it.
#[derive(Debug, Clone)]
pub struct Holder {
    /// `instance_uuid` of os-attach (actions flow only).
    pub instance_uuid: Uuid,
    /// `mountpoint`: `HOST:/path`, at most 255 characters; clients show it as the device.
    pub mountpoint: String,
    /// Read-only attachment.
    pub read_only: bool,
}

/// A connector as JSON, exactly as sent; the same must be sent at release.
pub type Connection = Value;

impl Cloud {
    /// The flow that this cloud takes for a host without a HostUUID of its own: attachments from
    /// microversion 3.44 on a v3 endpoint, otherwise actions. Asks Cinder once and remembers.
    pub async fn preferred_flow(&self) -> Result<AttachFlow, CloudError> {
        if self.has_attachments().await? && !self.needs_instance_uuid() {
            Ok(AttachFlow::Attachments)
        } else {
            Ok(AttachFlow::Actions)
        }
    }

    /// Reserves the volume. Success means that Cinder answered success; an ambiguous answer is an
    /// error with [`CloudError::is_ambiguous`], and then only what Cinder confirmed may be undone.
    ///
    /// In the attachments flow Queens-era clouds demand an instance_uuid: a 400 that says so comes
    /// back as [`super::CloudErrorKind::NeedsInstanceUuid`], and from then on
    /// [`Cloud::preferred_flow`] says actions.
    pub async fn reserve(
        &self,
        flow: AttachFlow,
        volume_id: Uuid,
    ) -> Result<Reservation, CloudError> {
        let attachment_id = match flow {
            AttachFlow::Actions => {
                self.os_reserve(volume_id).await?;
                None
            }
            AttachFlow::Attachments => Some(self.create_attachment(volume_id).await?),
        };
        Ok(Reservation { flow, volume_id, attachment_id })
    }

    /// Exports the volume to this host. Never call it without a [`Reservation`].
    ///
    /// `connector` carries the holder's mountpoint too (attachments flow shows it as the device).
    pub async fn connect(
        &self,
        reservation: &Reservation,
        connector: &Connection,
    ) -> Result<ConnectionInfo, CloudError> {
        let volume_id = reservation.volume_id;
        match reservation.attachment()? {
            None => self.os_initialize_connection(volume_id, connector).await,
            Some(attachment) => self.update_attachment(volume_id, attachment, connector).await,
        }
    }

    /// Marks the volume attached; answers the attachment's id (actions flow: read back from the
    /// volume by `instance_uuid` and mountpoint). An ambiguous answer is resolved by looking.
    pub async fn complete(
        &self,
        reservation: &Reservation,
        holder: &Holder,
    ) -> Result<String, CloudError> {
        match reservation.attachment()? {
            None => self.os_attach(reservation.volume_id, holder).await,
            Some(attachment) => {
                self.complete_attachment(reservation.volume_id, attachment).await?;
                Ok(attachment.to_owned())
            }
        }
    }

    /// Actions flow: os-begin_detaching, before the host lets go. A volume that is already
    /// `detaching` is fine. Attachments flow: nothing.
    pub async fn begin_release(&self, flow: AttachFlow, volume_id: Uuid) -> Result<(), CloudError> {
        match flow {
            AttachFlow::Attachments => Ok(()),
            AttachFlow::Actions => {
                let wanted = &VolumeStatus::Detaching;
                self.change_status("begin to detach", volume_id, "os-begin_detaching", wanted).await
            }
        }
    }

    /// Gives a *completed* attachment back, after the host let go of the device.
    /// Already gone is success.
    ///
    /// Actions flow: nothing is sent unless this attachment is still on the volume, so that it may
    /// be repeated at any later time.
    pub async fn release(
        &self,
        flow: AttachFlow,
        volume_id: Uuid,
        attachment_id: &str,
        connector: &Connection,
    ) -> Result<(), CloudError> {
        match flow {
            AttachFlow::Attachments => self.delete_attachment(volume_id, attachment_id).await,
            AttachFlow::Actions => self.detach(volume_id, attachment_id, connector).await,
        }
    }

    /// Gives a reservation back that was not completed. `exported` = `connect` was begun, so
    /// the actions flow terminates the connection first. Already gone is success.
    ///
    /// A reservation of the actions flow carries no id: whether it is still ours is for the caller
    /// to know (that the volume's `updated_at` has not moved), and so is whether an ambiguous
    /// [`Cloud::complete`] made an attachment of it after all ([`Volume::attachment_of`]).
    pub async fn unreserve(
        &self,
        reservation: &Reservation,
        exported: Option<&Connection>,
    ) -> Result<(), CloudError> {
        let volume_id = reservation.volume_id;
        match reservation.attachment()? {
            None => self.give_reservation_back(volume_id, exported).await,
            Some(attachment) => self.delete_attachment(volume_id, attachment).await,
        }
    }

    /// All attachments of a volume with their ids and whether each is read-only, reserved ones
    /// included (`GET /attachments/detail?volume_id=`, 3.27). For multiattach volumes.
    pub async fn attachments_of(&self, volume_id: Uuid) -> Result<Vec<AttachmentRow>, CloudError> {
        self.list_attachments(volume_id).await
    }
}

impl Volume {
    /// The attachment that os-attach made for this holder: Cinder keeps what it was given.
    pub fn attachment_of(&self, holder: &Holder) -> Option<&AttachmentInfo> {
        self.attachments.iter().find(|attachment| {
            same_uuid(attachment.server_id.as_deref(), holder.instance_uuid)
                && attachment.device.as_deref() == Some(&*holder.mountpoint)
        })
    }
}

fn same_uuid(text: Option<&str>, uuid: Uuid) -> bool {
    text.is_some_and(|text| Uuid::parse_str(text) == Ok(uuid))
}

/// One row of `GET /attachments`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentRow {
    /// Its id.
    pub id: String,
    /// `reserved`, `attaching`, `attached`, `detaching`, …
    pub status: String,
    /// The instance, if any.
    pub instance: Option<String>,
    /// `ro`, `rw` or nothing. A `ro` proves nothing: Cinder also writes it, whatever was asked
    /// for, when the volume has ever been attached by actions (its `attachment_create` takes the
    /// `readonly: "False"` that os-attach left for true), and such a host does write.
    pub attach_mode: Option<String>,
}
