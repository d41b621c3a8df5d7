//! The volume actions: each `POST /volumes/ID/action`, none with an id of its own, so that what
//! became of a lost one is read from the volume.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Connection, Holder};
use crate::connection_info::ConnectionInfo;
use crate::openstack::http::Call;
use crate::openstack::{Cloud, CloudError, CloudErrorKind, Volume, VolumeStatus};

/// How often an os-attach without an answer is looked for, a second apart: Cinder may be at it.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

impl Cloud {
    pub(super) async fn os_reserve(&self, volume_id: Uuid) -> Result<(), CloudError> {
        self.action("reserve", volume_id, "os-reserve", json!({})).await
    }

    pub(super) async fn os_initialize_connection(
        &self,
        volume_id: Uuid,
        connector: &Connection,
    ) -> Result<ConnectionInfo, CloudError> {
        let body = json!({"os-initialize_connection": {"connector": connector}});
        let call = Call::effect(
            Method::POST,
            format!("get the connection of volume {volume_id}"),
            format!("/volumes/{volume_id}/action"),
            Some(body),
            &[200],
        );
        let answer = self.send(&call).await?;
        let body: Value = answer.json(&call)?;
        ConnectionInfo::read(&body["connection_info"])
            .ok_or_else(|| answer.unexpected(&call, "its answer has no connection_info"))
    }

    /// os-attach says nothing but "accepted": the attachment's id is read back.
    pub(super) async fn os_attach(
        &self,
        volume_id: Uuid,
        holder: &Holder,
    ) -> Result<String, CloudError> {
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
        let looks = if unclear.as_ref().is_none_or(was_answered) { 1 } else { LOOKS };
        let mut seen = self.volume(volume_id).await;
        for _ in 1..looks {
            match &seen {
                Ok(volume) if volume.status == VolumeStatus::Attaching => {}
                _ => break,
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
            seen = self.volume(volume_id).await;
        }
        match (seen, unclear) {
            (Ok(volume), unclear) => match volume.attachment_of(holder) {
                Some(ours) => Ok(ours.attachment_id.clone()),
                None => Err(unclear.unwrap_or_else(|| attached_to_nobody(&volume))),
            },
            (Err(_), Some(unclear)) => Err(unclear),
            // Attached, but its id is unknown.
            (Err(error), None) => Err(CloudError { kind: CloudErrorKind::Ambiguous, ..error }),
        }
    }

    /// An action that only moves the status; fine if it is there already.
    pub(super) async fn change_status(
        &self,
        what: &str,
        volume_id: Uuid,
        action: &str,
        wanted: &VolumeStatus,
    ) -> Result<(), CloudError> {
        let Err(error) = self.action(what, volume_id, action, json!({})).await else {
            return Ok(());
        };
        if matches!(error.kind, CloudErrorKind::Ambiguous | CloudErrorKind::InvalidState) {
            let volume = self.volume(volume_id).await;
            if volume.is_ok_and(|volume| volume.status == *wanted) {
                return Ok(());
            }
        }
        Err(error)
    }

    /// os-terminate_connection and os-detach, if the attachment is still there.
    pub(super) async fn detach(
        &self,
        volume_id: Uuid,
        attachment_id: &str,
        connector: &Connection,
    ) -> Result<(), CloudError> {
        if self.is_detached(volume_id, attachment_id).await? {
            return Ok(());
        }
        self.os_terminate_connection(volume_id, connector).await?;
        let body = json!({ "attachment_id": attachment_id });
        let Err(error) = self.action("detach", volume_id, "os-detach", body).await else {
            return Ok(());
        };
        // The answer was lost, or somebody else was faster.
        match self.is_detached(volume_id, attachment_id).await {
            Ok(true) => Ok(()),
            _ => Err(error),
        }
    }

    /// os-terminate_connection where something was exported, else os-unreserve.
    pub(super) async fn give_reservation_back(
        &self,
        volume_id: Uuid,
        exported: Option<&Connection>,
    ) -> Result<(), CloudError> {
        if !self.is_reserved(volume_id).await? {
            return Ok(());
        }
        if let Some(connector) = exported {
            // It unreserves, too. Another os-unreserve could hit the next host's reservation.
            let Err(error) = self.os_terminate_connection(volume_id, connector).await else {
                return Ok(());
            };
            // Cinder may still be at it; but when it answered, the reservation stands.
            if !was_answered(&error) || !self.is_reserved(volume_id).await? {
                return Err(error);
            }
            tracing::warn!(%error, %volume_id, "giving the reservation back all the same");
        }
        match self.action("unreserve", volume_id, "os-unreserve", json!({})).await {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) if error.is_ambiguous() => match self.is_reserved(volume_id).await {
                Ok(false) => Ok(()),
                _ => Err(error),
            },
            result => result,
        }
    }

    async fn os_terminate_connection(
        &self,
        volume_id: Uuid,
        connector: &Connection,
    ) -> Result<(), CloudError> {
        let body = json!({ "connector": connector });
        let what = "end the connection of";
        match self.action(what, volume_id, "os-terminate_connection", body).await {
            Err(error) if error.is_not_found() => Ok(()),
            result => result,
        }
    }

    /// Whether this attachment has ended.
    async fn is_detached(&self, volume_id: Uuid, id: &str) -> Result<bool, CloudError> {
        let Some(volume) = self.volume_if_there(volume_id).await? else { return Ok(true) };
        // Cinder shows only what is `attached`: an attachment in `error_detaching` is hidden, and
        // its volume stays `detaching`.
        if volume.status == VolumeStatus::Detaching && volume.attachments.is_empty() {
            return Err(CloudError::new(
                CloudErrorKind::InvalidState,
                format!(
                    "Cinder began to detach volume {volume_id} (attachment {id}) and did not \
                     finish; an administrator of the cloud must look at it"
                ),
            ));
        }
        Ok(!volume.attachments.iter().any(|attachment| attachment.attachment_id == id))
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

    /// Cinder accepts every action of this flow with 202.
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
        let answer = self.send(&call).await?;
        match answer.is_empty() {
            true => Ok(()),
            false => Err(answer.unexpected(&call, "a body where Cinder sends none")),
        }
    }
}

/// Cinder itself has answered, so it is not at work any more. What proxies say for a service
/// that takes too long (408, 502, 503, 504) is no such answer.
fn was_answered(error: &CloudError) -> bool {
    matches!(error.status, Some(400..=407 | 409..=500))
}

fn attached_to_nobody(volume: &Volume) -> CloudError {
    CloudError::new(
        CloudErrorKind::Ambiguous,
        format!(
            "Cinder accepted to attach volume {}, but shows it as {} without an attachment of \
             this host",
            volume.id, volume.status
        ),
    )
}
