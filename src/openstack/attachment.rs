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

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::cinder::query;
use super::http::{Call, Microversion, Service};
use super::model::{self, AttachmentInfo};
use super::{Cloud, CloudError, CloudErrorKind, Volume, VolumeStatus};
use crate::connection_info::ConnectionInfo;

/// Attachments with os-complete; below, a volume stays `attaching` for ever.
const ATTACHMENTS: Microversion = (3, 44);

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
        let highest = self.max_microversion().await?;
        let takes_attachments = highest.is_some_and(|highest| highest >= ATTACHMENTS);
        if takes_attachments && !self.needs_instance_uuid() {
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
                self.action("reserve", volume_id, "os-reserve", json!({})).await?;
                None
            }
            AttachFlow::Attachments => Some(self.create_attachment(volume_id).await?),
        };
        Ok(Reservation { flow, volume_id, attachment_id })
    }

    async fn create_attachment(&self, volume_id: Uuid) -> Result<String, CloudError> {
        let highest = self.max_microversion().await?;
        if highest.is_none_or(|highest| highest < ATTACHMENTS) {
            return Err(CloudError::new(
                CloudErrorKind::BadRequest,
                format!(
                    "cannot reserve volume {volume_id}: this Cinder has no attachments API \
                     (microversion 3.44); set AttachFlow to \"actions\" or \"auto\""
                ),
            ));
        }
        let call = Call {
            microversion: Some(ATTACHMENTS),
            ..Call::effect(
                Method::POST,
                format!("reserve volume {volume_id}"),
                "/attachments",
                // No instance_uuid: with one, deleting the attachment would ask Nova.
                Some(json!({"attachment": {"volume_uuid": volume_id}})),
                &[200, 202],
            )
        };
        let answer = self.send(&call).await.inspect_err(|error| {
            if error.kind == CloudErrorKind::NeedsInstanceUuid {
                self.remember_that_it_needs_instance_uuid();
            }
        })?;
        let body: Value = answer.json(&call)?;
        let attachment = &body["attachment"];
        let of_this_volume = same_uuid(attachment["volume_id"].as_str(), volume_id);
        match model::text(&attachment["id"]) {
            Some(id) if of_this_volume => Ok(id),
            _ => Err(answer.unexpected(&call, "it made no attachment of this volume")),
        }
    }

    /// Exports the volume to this host. Never call it without a [`Reservation`].
    ///
    /// `connector` carries the holder's mountpoint too (attachments flow shows it as the device).
    pub async fn connect(
        &self,
        reservation: &Reservation,
        connector: &Connection,
    ) -> Result<ConnectionInfo, CloudError> {
        let id = reservation.volume_id;
        let what = format!("get the connection of volume {id}");
        let connector = json!({ "connector": connector });
        let attachment = reservation.attachment()?;
        let call = match attachment {
            None => Call::effect(
                Method::POST,
                what,
                format!("/volumes/{id}/action"),
                Some(json!({ "os-initialize_connection": connector })),
                &[200],
            ),
            Some(attachment) => attachment_call(
                Method::PUT,
                what,
                format!("/attachments/{attachment}"),
                Some(json!({ "attachment": connector })),
                &[200],
            ),
        };
        let answer = self.send(&call).await?;
        let body: Value = answer.json(&call)?;
        let holder = if attachment.is_some() { &body["attachment"] } else { &body };
        ConnectionInfo::read(holder)
            .ok_or_else(|| answer.unexpected(&call, "its answer has no connection_info"))
    }

    /// Marks the volume attached; answers the attachment's id (actions flow: read back from the
    /// volume by `instance_uuid` and mountpoint). An ambiguous answer is resolved by looking.
    pub async fn complete(
        &self,
        reservation: &Reservation,
        holder: &Holder,
    ) -> Result<String, CloudError> {
        match reservation.attachment()? {
            None => self.attach(reservation.volume_id, holder).await,
            Some(attachment) => {
                self.complete_attachment(reservation.volume_id, attachment).await?;
                Ok(attachment.to_owned())
            }
        }
    }

    async fn attach(&self, volume_id: Uuid, holder: &Holder) -> Result<String, CloudError> {
        let body = json!({
            "instance_uuid": holder.instance_uuid,
            "mountpoint": holder.mountpoint,
            "mode": if holder.read_only { "ro" } else { "rw" },
        });
        let unclear = match self.action("attach", volume_id, "os-attach", body).await {
            Ok(()) => None,
            Err(error) if error.is_ambiguous() => Some(error),
            Err(error) => return Err(error),
        };
        let volume = self.volume(volume_id).await.map_err(|error| match &unclear {
            Some(unclear) => unclear.clone(),
            // Attached, but its id is unknown.
            None => CloudError { kind: CloudErrorKind::Ambiguous, ..error },
        })?;
        let ours = volume.attachments.iter().find(|one| is_of(one, holder));
        match (ours, unclear) {
            (Some(ours), _) => Ok(ours.attachment_id.clone()),
            (None, Some(error)) => Err(error),
            (None, None) => Err(CloudError::new(
                CloudErrorKind::Ambiguous,
                format!(
                    "Cinder accepted to attach volume {volume_id}, but shows it as {} without an \
                     attachment of this host",
                    volume.status
                ),
            )),
        }
    }

    async fn complete_attachment(
        &self,
        volume_id: Uuid,
        attachment: &str,
    ) -> Result<(), CloudError> {
        let call = attachment_call(
            Method::POST,
            format!("attach volume {volume_id}"),
            format!("/attachments/{attachment}/action"),
            Some(json!({"os-complete": {}})),
            &[200, 202, 204],
        );
        match self.send(&call).await {
            Err(error) if error.is_ambiguous() => {
                match self.attachment_status(volume_id, attachment).await {
                    Ok(Some(status)) if status == "attached" => Ok(()),
                    _ => Err(error),
                }
            }
            result => result.map(drop),
        }
    }

    /// Actions flow: os-begin_detaching, before the host lets go. A volume that is already
    /// `detaching` is fine. Attachments flow: nothing.
    pub async fn begin_release(&self, flow: AttachFlow, volume_id: Uuid) -> Result<(), CloudError> {
        self.change_status(
            flow,
            volume_id,
            "begin to detach",
            "os-begin_detaching",
            &VolumeStatus::Detaching,
        )
        .await
    }

    /// Actions flow: os-roll_detaching, when the host could not let go. Attachments flow: nothing.
    pub async fn roll_back_release(
        &self,
        flow: AttachFlow,
        volume_id: Uuid,
    ) -> Result<(), CloudError> {
        self.change_status(
            flow,
            volume_id,
            "give up detaching",
            "os-roll_detaching",
            &VolumeStatus::InUse,
        )
        .await
    }

    /// An action that only moves the status; fine if it is there already.
    async fn change_status(
        &self,
        flow: AttachFlow,
        volume_id: Uuid,
        what: &str,
        action: &str,
        wanted: &VolumeStatus,
    ) -> Result<(), CloudError> {
        if flow == AttachFlow::Attachments {
            return Ok(());
        }
        let Err(error) = self.action(what, volume_id, action, json!({})).await else {
            return Ok(());
        };
        if matches!(error.kind, CloudErrorKind::Ambiguous | CloudErrorKind::InvalidState) {
            match self.volume(volume_id).await {
                Ok(volume) if volume.status == *wanted => return Ok(()),
                _ => {}
            }
        }
        Err(error)
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
        if flow == AttachFlow::Attachments {
            return self.delete_attachment(volume_id, attachment_id).await;
        }
        if !self.has_attachment(volume_id, attachment_id).await? {
            return Ok(());
        }
        self.terminate(volume_id, connector).await?;
        let body = json!({ "attachment_id": attachment_id });
        match self.action("detach", volume_id, "os-detach", body).await {
            // Lost, or somebody else was faster.
            Err(error) => match self.has_attachment(volume_id, attachment_id).await {
                Ok(false) => Ok(()),
                _ => Err(error),
            },
            Ok(()) => Ok(()),
        }
    }

    /// Gives a reservation back that was not completed. `exported` = `connect` was begun, so
    /// the actions flow terminates the connection first. Already gone is success.
    ///
    /// A reservation of the actions flow carries no id: whether it is still ours is for the caller
    /// to know (that the volume's `updated_at` has not moved).
    pub async fn unreserve(
        &self,
        reservation: &Reservation,
        exported: Option<&Connection>,
    ) -> Result<(), CloudError> {
        let id = reservation.volume_id;
        if let Some(attachment) = reservation.attachment()? {
            return self.delete_attachment(id, attachment).await;
        }
        if !self.is_reserved(id).await? {
            return Ok(());
        }
        if let Some(connector) = exported {
            // It unreserves, too. Another os-unreserve could hit the next host's reservation.
            let Err(error) = self.terminate(id, connector).await else { return Ok(()) };
            // Without any answer it may still be at work; after a refusal the reservation stands.
            if error.status.is_none() || !self.is_reserved(id).await? {
                return Err(error);
            }
            tracing::warn!(%error, volume_id = %id, "giving the reservation back all the same");
        }
        match self.action("unreserve", id, "os-unreserve", json!({})).await {
            Err(error) if error.is_ambiguous() => match self.is_reserved(id).await {
                Ok(false) => Ok(()),
                _ => Err(error),
            },
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// All attachments of a volume with their ids and whether each is read-only, reserved ones
    /// included (`GET /attachments/detail?volume_id=`, 3.27). For multiattach volumes.
    pub async fn attachments_of(&self, volume_id: Uuid) -> Result<Vec<AttachmentRow>, CloudError> {
        let id = volume_id.to_string();
        let rows = self
            .rows(
                Service::BlockStorage,
                &format!("list the attachments of volume {id}"),
                "/attachments/detail",
                "attachments",
                query(&[("volume_id", &id)]),
                Some(ATTACHMENTS),
            )
            .await?;
        let of_this_volume =
            rows.iter().filter(|row| same_uuid(row["volume_id"].as_str(), volume_id));
        Ok(of_this_volume.filter_map(AttachmentRow::read).collect())
    }

    async fn terminate(&self, volume_id: Uuid, connector: &Connection) -> Result<(), CloudError> {
        let body = json!({ "connector": connector });
        let what = "end the connection of";
        match self.action(what, volume_id, "os-terminate_connection", body).await {
            Err(error) if error.is_not_found() => Ok(()),
            result => result,
        }
    }

    async fn has_attachment(&self, volume_id: Uuid, id: &str) -> Result<bool, CloudError> {
        let volume = self.volume_if_there(volume_id).await?;
        Ok(volume
            .is_some_and(|volume| volume.attachments.iter().any(|one| one.attachment_id == id)))
    }

    async fn is_reserved(&self, volume_id: Uuid) -> Result<bool, CloudError> {
        let volume = self.volume_if_there(volume_id).await?;
        Ok(volume.is_some_and(|volume| volume.status == VolumeStatus::Attaching))
    }

    async fn volume_if_there(&self, volume_id: Uuid) -> Result<Option<Volume>, CloudError> {
        match self.volume(volume_id).await {
            Err(error) if error.is_not_found() => Ok(None),
            result => result.map(Some),
        }
    }

    /// One DELETE ends the connection, the attachment and the reservation.
    async fn delete_attachment(&self, volume_id: Uuid, id: &str) -> Result<(), CloudError> {
        let what = format!("detach volume {volume_id}");
        let path = format!("/attachments/{id}");
        let call = attachment_call(Method::DELETE, what, path, None, &[200, 202, 204]);
        match self.send(&call).await {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) if error.is_ambiguous() => {
                match self.attachment_status(volume_id, id).await {
                    Ok(None) => Ok(()),
                    _ => Err(error),
                }
            }
            result => result.map(drop),
        }
    }

    /// `None` = Cinder says that there is no such attachment.
    async fn attachment_status(
        &self,
        volume_id: Uuid,
        id: &str,
    ) -> Result<Option<String>, CloudError> {
        let call = Call {
            microversion: Some(ATTACHMENTS),
            ..Call::read(
                Service::BlockStorage,
                format!("read the attachment of volume {volume_id}"),
                format!("/attachments/{id}"),
            )
        };
        match self.send(&call).await {
            Ok(answer) => {
                let body: Value = answer.json(&call)?;
                let status = model::text(&body["attachment"]["status"]);
                Ok(Some(status.ok_or_else(|| answer.unexpected(&call, "it has no status"))?))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `POST /volumes/ID/action`; Cinder accepts every action of the flow with 202.
    async fn action(
        &self,
        what: &str,
        volume_id: Uuid,
        action: &str,
        parameters: Value,
    ) -> Result<(), CloudError> {
        let call = Call::effect(
            Method::POST,
            format!("{what} volume {volume_id}"),
            format!("/volumes/{volume_id}/action"),
            Some(json!({ action: parameters })),
            &[202],
        );
        self.send(&call).await.map(drop)
    }
}

fn attachment_call(
    method: Method,
    what: String,
    path: String,
    body: Option<Value>,
    accept: &'static [u16],
) -> Call {
    Call { microversion: Some(ATTACHMENTS), ..Call::effect(method, what, path, body, accept) }
}

/// Cinder keeps what os-attach was given.
fn is_of(attachment: &AttachmentInfo, holder: &Holder) -> bool {
    same_uuid(attachment.server_id.as_deref(), holder.instance_uuid)
        && attachment.device.as_deref() == Some(&holder.mountpoint)
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
    /// `ro`, `rw` or nothing. A `ro` proves nothing about others: it is also Cinder's default for
    /// who asked for no mode, and may be written through.
    pub attach_mode: Option<String>,
}

impl AttachmentRow {
    fn read(row: &Value) -> Option<Self> {
        Some(Self {
            id: model::text(&row["id"])?,
            status: model::text(&row["status"]).unwrap_or_default(),
            instance: model::text(&row["instance"]),
            attach_mode: model::text(&row["attach_mode"]),
        })
    }
}
