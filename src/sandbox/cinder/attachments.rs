//! `/attachments`: the attachments flow.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::actions::{deletion_allowed, finish_detach};
use super::connections::{self, Failure};
use super::{Context, own_volume, views, volume_mut};
use crate::sandbox::clock;
use crate::sandbox::http::{ApiError, Reply, required};
use crate::sandbox::state::{Attachment, State};

/// An attachment of the project.
fn own<'a>(context: &Context<'_>, state: &'a State, id: &str) -> Result<&'a Attachment, ApiError> {
    let row = Uuid::parse_str(id).ok().and_then(|id| state.attachments.get(&id));
    row.filter(|row| {
        state.volumes.get(&row.volume_id).is_some_and(|one| one.project_id == context.project)
    })
    .ok_or_else(|| {
        ApiError::new(
            404,
            format!("Volume attachment could not be found with filter: attachment_id = {id}."),
        )
    })
}

/// The row again, after something else had the chance to change it.
fn row_mut(state: &mut State, id: Uuid) -> Result<&mut Attachment, ApiError> {
    state.attachments.get_mut(&id).ok_or_else(ApiError::internal)
}

pub(super) fn show(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    context.cloud.store.read(|state| {
        let row = own(context, state, id)?;
        Ok(Reply::json(200, &json!({"attachment": views::attachment(row)})))
    })
}

pub(super) fn list(context: &Context<'_>, detail: bool) -> Result<Reply, ApiError> {
    let is = |key: &str, value: Option<&str>| match context.request.query(key) {
        Some(wanted) => value == Some(wanted),
        None => true,
    };
    context.cloud.store.read(|state| {
        let rows = state.attachments.values().filter(|row| {
            own(context, state, &row.id.to_string()).is_ok()
                && is("volume_id", Some(&row.volume_id.to_string()))
                && is("status", Some(&row.attach_status))
                && is("attach_status", Some(&row.attach_status))
                && is("instance_id", row.instance_uuid.as_deref())
        });
        let rows: Vec<Value> = rows
            .map(|row| if detail { views::attachment(row) } else { views::attachment_summary(row) })
            .collect();
        Ok(Reply::json(200, &json!({"attachments": rows})))
    })
}

/// What a create is given, checked as its schema does.
struct Given {
    volume: String,
    instance_uuid: Option<String>,
    connector: Option<Map<String, Value>>,
    mode: Option<String>,
}

impl Given {
    fn of(context: &Context<'_>) -> Result<Self, ApiError> {
        let body = context.request.object("attachment")?;
        let shown = Value::Object(body.clone());
        let known: &[&str] = if context.at_least(54) {
            &["volume_uuid", "instance_uuid", "connector", "mode"]
        } else {
            &["volume_uuid", "instance_uuid", "connector"]
        };
        if let Some(key) = body.keys().find(|key| !known.contains(&key.as_str())) {
            let problem = format!("Additional properties are not allowed ('{key}' was unexpected)");
            return Err(ApiError::field("attachment", &shown, &problem));
        }
        let uuid = |key: &str| match body.get(key).map(|value| (value, value.as_str())) {
            None => Ok(None),
            Some((_, Some(text))) if Uuid::parse_str(text).is_ok() => Ok(Some(text.to_owned())),
            Some((value, _)) => Err(ApiError::field(key, value, "is not a 'uuid'")),
        };
        let missing = |key: &str| ApiError::field("attachment", &shown, &required(key));
        let instance_uuid = uuid("instance_uuid")?;
        if instance_uuid.is_none() && context.is_queens() {
            return Err(missing("instance_uuid"));
        }
        let connector = match body.get("connector") {
            None | Some(Value::Null) => None,
            Some(Value::Object(connector)) => Some(connector.clone()),
            Some(other) => {
                return Err(ApiError::field("connector", other, "is not of type 'object'"));
            }
        };
        let mode = match body.get("mode") {
            None => None,
            Some(Value::String(mode)) if ["rw", "ro"].contains(&mode.as_str()) => {
                Some(mode.clone())
            }
            Some(other) => {
                return Err(ApiError::field("mode", other, "is not one of ['rw', 'ro']"));
            }
        };
        let volume = uuid("volume_uuid")?.ok_or_else(|| missing("volume_uuid"))?;
        Ok(Self { volume, instance_uuid, connector, mode })
    }
}

/// Reserves the volume, and exports it at once if a connector came too.
pub(super) async fn create(context: &Context<'_>) -> Result<Reply, ApiError> {
    let given = Given::of(context)?;
    let row =
        context.change_volume(&given.volume, |state, id| reserve(context, state, id, &given))?;
    let Some(connector) = &given.connector else {
        return Ok(Reply::json(200, &json!({"attachment": views::attachment(&row)})));
    };
    // A failure leaves the reservation, whose id the client never hears: so does Cinder.
    let info = export(context, &row, connector).await.map_err(|error| {
        ApiError::new(500, format!("Unable to create attachment for volume.({}).", error.message))
    })?;
    // Cinder answers the row as it was, with the connection_info added.
    let row = Attachment { connection_info: Some(info), ..row };
    Ok(Reply::json(200, &json!({"attachment": views::attachment(&row)})))
}

fn reserve(
    context: &Context<'_>,
    state: &mut State,
    id: Uuid,
    given: &Given,
) -> Result<Attachment, ApiError> {
    // The same instance may attach again: it may be moving to another host.
    let again = given.instance_uuid.is_some()
        && state.attachments_of(id).any(|row| row.instance_uuid == given.instance_uuid);
    let volume = volume_mut(state, id)?;
    if volume.status.contains("error") {
        return Err(ApiError::invalid_volume(format!(
            "Volume attachments can not be created if the volume is in an error state. The Volume \
             {id} currently has a status of: {} ",
            volume.status
        )));
    }
    let (allowed, said): (&[&str], _) = if volume.multiattach {
        (&["available", "in-use", "downloading"], "available or in-use or downloading")
    } else {
        (&["available", "downloading"], "available or downloading")
    };
    if allowed.contains(&volume.status.as_str()) {
        volume.set_status("reserved");
    } else if !(again && ["in-use", "reserved"].contains(&volume.status.as_str())) {
        let tail = if context.is_queens() {
            String::new()
        } else {
            format!(" to reserve, but the current status is {}.", volume.status)
        };
        return Err(ApiError::invalid_volume(format!("Volume {id} status must be {said}{tail}")));
    }
    // Cinder takes any `readonly` key for true, and `null` is a text.
    let attach_mode = if volume.admin_metadata.contains_key("readonly") {
        "ro"
    } else {
        given.mode.as_deref().unwrap_or("null")
    };
    let row = Attachment {
        id: Uuid::new_v4(),
        volume_id: id,
        attach_status: "reserved".to_owned(),
        instance_uuid: given.instance_uuid.clone(),
        host: None,
        mountpoint: None,
        attach_mode: Some(attach_mode.to_owned()),
        read_only: given.mode.as_deref() == Some("ro"),
        attached_at: None,
        connector: None,
        connection_info: None,
    };
    state.attachments.insert(row.id, row.clone());
    Ok(row)
}

/// Exports the volume for an attachment; answers the flattened connection_info.
async fn export(
    context: &Context<'_>,
    row: &Attachment,
    connector: &Map<String, Value>,
) -> Result<Map<String, Value>, ApiError> {
    connections::check(context, connector)?;
    let _lock = context.cloud.lock_volume(row.volume_id).await;
    context.cloud.store.read(|state| own(context, state, &row.id.to_string()).map(drop))?;
    let mode = connector.get("mode").and_then(Value::as_str);
    let read_only = row.read_only || mode == Some("ro");
    let opened = connections::open(context, row.volume_id, &row.id.to_string(), read_only).await;
    let mut info = opened.map_err(|failure| match failure {
        Failure::Refused(refusal) => refusal,
        Failure::Backend(error) => ApiError::new(
            500,
            format!(
                "Bad or unexpected response from the storage volume backend API: Create export \
                 for volume failed ({error})."
            ),
        ),
    })?;
    if let Some(Value::Object(data)) = info.remove("data") {
        info.extend(data);
    }
    info.insert("attachment_id".to_owned(), row.id.to_string().into());
    let text = |key| connector.get(key).and_then(Value::as_str).map(str::to_owned);
    context.cloud.store.change(|state| {
        let stored = row_mut(state, row.id)?;
        if stored.attach_mode.as_deref() == Some("null") {
            stored.attach_mode = Some(mode.unwrap_or("rw").to_owned());
        }
        stored.read_only = read_only;
        "attaching".clone_into(&mut stored.attach_status);
        stored.host = Some(text("host").unwrap_or_default());
        stored.mountpoint = Some(text("mountpoint").unwrap_or_else(|| "na".to_owned()));
        stored.attached_at = Some(clock::cinder(clock::now()));
        stored.connector = Some(Value::Object(connector.clone()));
        stored.connection_info = Some(info.clone());
        let volume = volume_mut(state, row.volume_id)?;
        if context.is_queens() {
            let mode = mode.unwrap_or("rw").to_owned();
            volume.admin_metadata.insert("attached_mode".to_owned(), mode);
        }
        "attaching".clone_into(&mut volume.attach_status);
        volume.set_status("attaching");
        Ok(info)
    })
}

/// `PUT`: the connector of a reserved attachment.
pub(super) async fn update(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    let body = context.request.object("attachment")?;
    let connector = match body.get("connector") {
        Some(Value::Object(connector)) if !connector.is_empty() => connector,
        Some(other) => {
            return Err(ApiError::field("connector", other, "does not have enough properties"));
        }
        None => {
            return Err(ApiError::field(
                "attachment",
                &Value::Object(body),
                &required("connector"),
            ));
        }
    };
    let row = context.cloud.store.read(|state| {
        let row = own(context, state, id)?;
        let volume = own_volume(state, &context.project, &row.volume_id.to_string())?;
        if volume.status.contains("error") {
            return Err(ApiError::new(
                409,
                format!(
                    "Resource conflict: Volume attachments can not be updated if the volume is in \
                     an error state. The Volume {} currently has a status of: {} ",
                    volume.id, volume.status
                ),
            ));
        }
        let several = state.attachments_of(volume.id).nth(1).is_some();
        let connected =
            state.attachments_of(volume.id).any(|other| other.connection_info.is_some());
        if several && connected && !volume.multiattach {
            return Err(ApiError::new(
                409,
                format!("Resource conflict: duplicate connectors detected on volume {}", volume.id),
            ));
        }
        Ok(row.clone())
    })?;
    let info = export(context, &row, connector).await.map_err(|error| {
        ApiError::new(500, format!("Unable to update attachment.({}).", error.message))
    })?;
    // Cinder answers the row as it was, with the connection_info added.
    let row = Attachment { connection_info: Some(info), ..row };
    Ok(Reply::json(200, &json!({"attachment": views::attachment(&row)})))
}

/// os-complete: no questions asked.
pub(super) fn complete(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    if !context.request.json()?.contains_key("os-complete") {
        return Err(ApiError::bad("There is no such action"));
    }
    context.cloud.store.change(|state| {
        let row = own(context, state, id)?;
        let (id, volume) = (row.id, row.volume_id);
        "attached".clone_into(&mut row_mut(state, id)?.attach_status);
        let volume = volume_mut(state, volume)?;
        "attached".clone_into(&mut volume.attach_status);
        volume.set_status("in-use");
        Ok(Reply::empty(204))
    })
}

/// One call for terminate and detach. When the host has not let go, the row stays.
pub(super) async fn delete(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    let row = context.cloud.store.read(|state| {
        let row = own(context, state, id)?;
        deletion_allowed(context, state, row.volume_id, Some(id))?;
        Ok(row.clone())
    })?;
    let _lock = context.cloud.lock_volume(row.volume_id).await;
    let connection = row.id.to_string();
    let closed =
        connections::close(context.cloud, row.volume_id, |one| one.connection == connection);
    if let Err(error) = closed.await {
        tracing::warn!(attachment = %row.id, %error, "the sandbox cannot take an export back");
        return Err(ApiError::internal());
    }
    context.cloud.store.change(|state| {
        own(context, state, id)?;
        state.attachments.remove(&row.id);
        finish_detach(state, row.volume_id)?;
        let left = state.attachments_of(row.volume_id).map(views::attachment_summary);
        Ok(Reply::json(200, &json!({"attachments": left.collect::<Vec<_>>()})))
    })
}
