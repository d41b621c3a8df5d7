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

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Cloud, CloudError};
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
pub type Connection = serde_json::Value;

impl Cloud {
    /// The flow that this cloud takes for a host without a HostUUID of its own: attachments from
    /// microversion 3.44 on a v3 endpoint, otherwise actions. Asks Cinder once and remembers.
    pub async fn preferred_flow(&self) -> Result<AttachFlow, CloudError> {
        todo!()
    }

    /// Reserves the volume. Success means that Cinder answered success; an ambiguous answer is an
    /// error with [`CloudError::is_ambiguous`], and then only what Cinder confirmed may be undone.
    ///
    /// In the attachments flow Queens-era clouds demand an instance_uuid: a 400 that says so comes
    /// back as [`super::CloudErrorKind::NeedsInstanceUuid`].
    pub async fn reserve(
        &self,
        flow: AttachFlow,
        volume_id: Uuid,
    ) -> Result<Reservation, CloudError> {
        todo!()
    }

    /// Exports the volume to this host. Never call it without a [`Reservation`].
    ///
    /// `connector` carries the holder's mountpoint too (attachments flow shows it as the device).
    pub async fn connect(
        &self,
        reservation: &Reservation,
        connector: &Connection,
    ) -> Result<ConnectionInfo, CloudError> {
        todo!()
    }

    /// Marks the volume attached; answers the attachment's id (actions flow: read back from the
    /// volume by `instance_uuid` and mountpoint). In the actions flow an ambiguous answer is
    /// resolved by looking at the volume.
    pub async fn complete(
        &self,
        reservation: &Reservation,
        holder: &Holder,
    ) -> Result<String, CloudError> {
        todo!()
    }

    /// Actions flow: os-begin_detaching, before the host lets go. A volume that is already
    /// `detaching` is fine. Attachments flow: nothing.
    pub async fn begin_release(&self, flow: AttachFlow, volume_id: Uuid) -> Result<(), CloudError> {
        todo!()
    }

    /// Actions flow: os-roll_detaching, when the host could not let go. Attachments flow: nothing.
    pub async fn roll_back_release(
        &self,
        flow: AttachFlow,
        volume_id: Uuid,
    ) -> Result<(), CloudError> {
        todo!()
    }

    /// Gives a *completed* attachment back, after the host let go of the device.
    /// Already gone is success.
    pub async fn release(
        &self,
        flow: AttachFlow,
        volume_id: Uuid,
        attachment_id: &str,
        connector: &Connection,
    ) -> Result<(), CloudError> {
        todo!()
    }

    /// Gives a reservation back that was not completed. `exported` = `connect` was begun, so
    /// the actions flow terminates the connection first. Already gone is success.
    pub async fn unreserve(
        &self,
        reservation: &Reservation,
        exported: Option<&Connection>,
    ) -> Result<(), CloudError> {
        todo!()
    }

    /// All attachments of a volume with their ids and whether each is read-only, reserved ones
    /// included (`GET /attachments?volume_id=`, 3.27). For multiattach volumes.
    pub async fn attachments_of(&self, volume_id: Uuid) -> Result<Vec<AttachmentRow>, CloudError> {
        todo!()
    }
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
    /// Whether every byte of it is promised to be read only (`attach_mode` = `ro` *asked for*).
    pub attach_mode: Option<String>,
}
