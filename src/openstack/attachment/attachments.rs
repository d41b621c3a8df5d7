//! The attachments API: every attachment has an id of its own, and one DELETE ends the
//! connection, the attachment and the reservation.

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{AttachmentRow, Connection, same_uuid};
use crate::connection_info::ConnectionInfo;
use crate::openstack::cinder::query;
use crate::openstack::http::{Call, Microversion, Service};
use crate::openstack::model::{self, text};
use crate::openstack::{Cloud, CloudError, CloudErrorKind};

/// Attachments with os-complete; below, a volume stays `attaching` for ever.
const ATTACHMENTS: Microversion = (3, 44);

impl Cloud {
    /// Whether the API is there.
    pub(super) async fn has_attachments(&self) -> Result<bool, CloudError> {
        Ok(self.max_microversion().await?.is_some_and(|highest| highest >= ATTACHMENTS))
    }

    /// Reserves. The connector comes later, in a request of its own: when that fails, there is an
    /// attachment id to undo with.
    pub(super) async fn create_attachment(&self, volume_id: Uuid) -> Result<String, CloudError> {
        if !self.has_attachments().await? {
            return Err(CloudError::new(
                CloudErrorKind::BadRequest,
                format!(
                    "cannot reserve volume {volume_id}: this Cinder has no attachments API \
                     (microversion 3.44); set AttachFlow to \"actions\" or \"auto\""
                ),
            ));
        }
        // No instance_uuid: with one, deleting the attachment would ask Nova.
        let body = json!({"attachment": {"volume_uuid": volume_id}});
        let what = format!("reserve volume {volume_id}");
        let call = effect(Method::POST, what, "/attachments".to_owned(), Some(body), &[200, 202]);
        let answer = self.send(&call).await.inspect_err(|error| {
            if error.kind == CloudErrorKind::NeedsInstanceUuid {
                self.remember_that_it_needs_instance_uuid();
            }
        })?;
        let body: Value = answer.json(&call)?;
        let attachment = &body["attachment"];
        match model::id(&attachment["id"]) {
            Some(id) if same_uuid(attachment["volume_id"].as_str(), volume_id) => Ok(id),
            _ => Err(answer.unexpected(&call, "it made no attachment of this volume")),
        }
    }

    pub(super) async fn update_attachment(
        &self,
        volume_id: Uuid,
        id: &str,
        connector: &Connection,
    ) -> Result<ConnectionInfo, CloudError> {
        let body = json!({"attachment": {"connector": connector}});
        let what = format!("get the connection of volume {volume_id}");
        let call = effect(Method::PUT, what, format!("/attachments/{id}"), Some(body), &[200]);
        let answer = self.send(&call).await?;
        let body: Value = answer.json(&call)?;
        ConnectionInfo::read(&body["attachment"]["connection_info"])
            .ok_or_else(|| answer.unexpected(&call, "its answer has no connection_info"))
    }

    pub(super) async fn complete_attachment(
        &self,
        volume_id: Uuid,
        id: &str,
    ) -> Result<(), CloudError> {
        let body = json!({"os-complete": {}});
        let what = format!("attach volume {volume_id}");
        let path = format!("/attachments/{id}/action");
        let call = effect(Method::POST, what, path, Some(body), &[204]);
        match self.send(&call).await {
            Err(error) if error.is_ambiguous() => {
                match self.attachment_status(volume_id, id).await {
                    Ok(Some(status)) if status == "attached" => Ok(()),
                    _ => Err(error),
                }
            }
            result => result.map(drop),
        }
    }

    pub(super) async fn delete_attachment(
        &self,
        volume_id: Uuid,
        id: &str,
    ) -> Result<(), CloudError> {
        let what = format!("detach volume {volume_id}");
        let path = format!("/attachments/{id}");
        let call = effect(Method::DELETE, what, path, None, &[200]);
        // Cinder answers with the volume's other attachments: proof that it is Cinder.
        let deleted = self.send(&call).await.and_then(|answer| {
            let body: Value = answer.json(&call)?;
            match body["attachments"].is_array() {
                true => Ok(()),
                false => Err(answer.unexpected(&call, "it lists no attachments")),
            }
        });
        match deleted {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) if error.is_ambiguous() => {
                match self.attachment_status(volume_id, id).await {
                    Ok(None) => Ok(()),
                    _ => Err(error),
                }
            }
            result => result,
        }
    }

    pub(super) async fn list_attachments(
        &self,
        volume_id: Uuid,
    ) -> Result<Vec<AttachmentRow>, CloudError> {
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
        let rows = rows.iter().filter(|row| same_uuid(row["volume_id"].as_str(), volume_id));
        Ok(rows.filter_map(AttachmentRow::read).collect())
    }

    /// `None` = Cinder says that there is no such attachment.
    async fn attachment_status(
        &self,
        volume_id: Uuid,
        id: &str,
    ) -> Result<Option<String>, CloudError> {
        let what = format!("read the attachment of volume {volume_id}");
        let call = Call {
            microversion: Some(ATTACHMENTS),
            ..Call::read(Service::BlockStorage, what, format!("/attachments/{id}"))
        };
        let answer = match self.send(&call).await {
            Err(error) if error.is_not_found() => return Ok(None),
            result => result?,
        };
        let body: Value = answer.json(&call)?;
        let status = text(&body["attachment"]["status"]);
        status.map(Some).ok_or_else(|| answer.unexpected(&call, "its attachment has no status"))
    }
}

impl AttachmentRow {
    pub(in crate::openstack) fn read(row: &Value) -> Option<Self> {
        Some(Self {
            id: model::id(&row["id"])?,
            status: text(&row["status"]).unwrap_or_default(),
            instance: text(&row["instance"]),
            // Cinder's own word for "not asked for" is the string.
            attach_mode: text(&row["attach_mode"]).filter(|mode| mode != "null"),
        })
    }
}

fn effect(
    method: Method,
    what: String,
    path: String,
    body: Option<Value>,
    accept: &'static [u16],
) -> Call {
    Call { microversion: Some(ATTACHMENTS), ..Call::effect(method, what, path, body, accept) }
}
