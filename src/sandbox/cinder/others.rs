//! Zones, types, limits and user messages.

use serde_json::{Value, json};

use super::create::Usage;
use super::{Context, create, views};
use crate::sandbox::clock;
use crate::sandbox::http::{ApiError, Reply};
use crate::sandbox::state::{Message, VolumeType};

/// How long Cinder keeps a user message: 30 days, in microseconds.
const MESSAGE_KEPT: i64 = 30 * 86_400 * 1_000_000;

fn view_type(context: &Context<'_>, kind: &VolumeType) -> Value {
    let mut view = json!({
        "id": kind.id,
        "name": kind.name,
        "is_public": true,
        "description": kind.description,
        "os-volume-type-access:is_public": true,
    });
    if !context.is_queens() {
        // Of the extra specs, a member sees those that users need to know.
        view["extra_specs"] =
            if kind.multiattach { json!({"multiattach": "<is> True"}) } else { json!({}) };
    }
    view
}

pub(super) fn types(context: &Context<'_>) -> Reply {
    context.cloud.store.read(|state| {
        // `__DEFAULT__` came with Train.
        let known = |kind: &&VolumeType| !(context.is_queens() && kind.name == "__DEFAULT__");
        let types = state.volume_types.iter().filter(known);
        let types: Vec<Value> = types.map(|kind| view_type(context, kind)).collect();
        Reply::json(200, &json!({"volume_types": types}))
    })
}

pub(super) fn show_type(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    context.cloud.store.read(|state| {
        let kind = state.volume_types.iter().find(|kind| kind.id.to_string() == id);
        let kind = kind.ok_or_else(|| ApiError::not_found("Volume type", id))?;
        Ok(Reply::json(200, &json!({"volume_type": view_type(context, kind)})))
    })
}

/// The zones, to a member: without the hosts in them.
pub(super) fn zones() -> Reply {
    let zones = json!([{ "zoneName": create::ZONE, "zoneState": { "available": true } }]);
    Reply::json(200, &json!({ "availabilityZoneInfo": zones }))
}

pub(super) fn limits(context: &Context<'_>) -> Reply {
    let usage = context.cloud.store.read(|state| Usage::of(state, &context.project));
    let quotas = context.behaviour.quotas;
    let absolute = json!({
        "maxTotalVolumes": quotas.volumes,
        "maxTotalSnapshots": quotas.snapshots,
        "maxTotalVolumeGigabytes": quotas.gigabytes,
        "maxTotalBackups": 10,
        "maxTotalBackupGigabytes": 1000,
        "totalVolumesUsed": usage.volumes,
        "totalGigabytesUsed": usage.gigabytes,
        "totalSnapshotsUsed": usage.snapshots,
        "totalBackupsUsed": 0,
        "totalBackupGigabytesUsed": 0,
    });
    Reply::json(200, &json!({"limits": {"rate": [], "absolute": absolute}}))
}

fn view_message(context: &Context<'_>, message: &Message) -> Value {
    json!({
        "id": message.id,
        "event_id": message.event_id,
        "user_message": message.user_message,
        "message_level": "ERROR",
        "created_at": clock::cinder(message.created),
        "guaranteed_until": clock::cinder(message.created + MESSAGE_KEPT),
        "request_id": message.request_id,
        "links": views::links(context, "messages", message.id),
        "resource_type": "VOLUME",
        "resource_uuid": message.resource_uuid,
    })
}

/// Newest first. Filters came with paging, in 3.5; before, they were ignored.
pub(super) fn messages(context: &Context<'_>) -> Reply {
    let wanted = context.request.query("resource_uuid").filter(|_| context.at_least(5));
    context.cloud.store.read(|state| {
        let rows: Vec<Value> = state
            .messages
            .iter()
            .rev()
            .filter(|row| row.project_id == context.project)
            .filter(|row| wanted.is_none_or(|id| row.resource_uuid.to_string() == id))
            .map(|row| view_message(context, row))
            .collect();
        Reply::json(200, &json!({"messages": rows}))
    })
}

pub(super) fn show_message(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    context.cloud.store.read(|state| {
        let mut rows = state.messages.iter().filter(|row| row.project_id == context.project);
        let message = rows.find(|row| row.id.to_string() == id);
        let message = message.ok_or_else(|| ApiError::not_found("Message", id))?;
        Ok(Reply::json(200, &json!({"message": view_message(context, message)})))
    })
}
