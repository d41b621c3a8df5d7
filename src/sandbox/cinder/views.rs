//! Rows as JSON, with the keys that each microversion shows to a member of the project.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Context;
use crate::sandbox::state::{Attachment, Snapshot, State, Volume};

/// `{"rel": "self", …}` and the bookmark.
pub(super) fn links(context: &Context<'_>, collection: &str, id: Uuid) -> Value {
    let bookmark = format!("{}/volume/{}/{collection}/{id}", context.request.base, context.project);
    json!([
        {"rel": "self", "href": format!("{}/{collection}/{id}", context.url())},
        {"rel": "bookmark", "href": bookmark},
    ])
}

pub(super) fn volume_summary(context: &Context<'_>, volume: &Volume) -> Value {
    json!({
        "id": volume.id,
        "name": volume.name,
        "links": links(context, "volumes", volume.id),
    })
}

/// As answered to a create: without the tenant.
pub(super) fn new_volume(context: &Context<'_>, state: &State, volume: &Volume) -> Value {
    let mut metadata = volume.metadata.clone();
    metadata.extend(volume.admin_metadata.clone());
    let mut view = json!({
        "id": volume.id,
        "status": volume.status,
        "size": volume.size,
        "availability_zone": volume.availability_zone,
        "created_at": volume.created_at,
        "updated_at": volume.updated_at,
        "name": volume.name,
        "description": volume.description,
        "volume_type": volume.volume_type,
        "snapshot_id": volume.snapshot_id,
        "source_volid": volume.source_volid,
        "metadata": metadata,
        "links": links(context, "volumes", volume.id),
        "user_id": volume.user_id,
        "bootable": if volume.bootable { "true" } else { "false" },
        "encrypted": volume.encrypted,
        "replication_status": null,
        "consistencygroup_id": null,
        "multiattach": volume.multiattach,
        "attachments": holders(context, state, volume),
    });
    if context.at_least(13) {
        view["group_id"] = Value::Null;
    }
    if context.at_least(48) {
        view["service_uuid"] = Value::Null;
        view["shared_targets"] = false.into();
    }
    if context.at_least(63) {
        let kind = state.volume_types.iter().find(|kind| kind.name == volume.volume_type);
        view["volume_type_id"] = json!(kind.map(|kind| kind.id));
    }
    if context.at_least(65) {
        view["consumes_quota"] = true.into();
    }
    view
}

pub(super) fn volume(context: &Context<'_>, state: &State, volume: &Volume) -> Value {
    let mut view = new_volume(context, state, volume);
    view["os-vol-tenant-attr:tenant_id"] = volume.project_id.clone().into();
    view
}

/// `volume.attachments`: the completed ones only.
fn holders(context: &Context<'_>, state: &State, volume: &Volume) -> Vec<Value> {
    let attached = state.attachments_of(volume.id).filter(|row| row.attach_status == "attached");
    attached
        .map(|row| {
            // Queens shows it to everybody, later releases to administrators.
            let host = row.host.as_ref().filter(|_| context.is_queens());
            json!({
                "id": volume.id,
                "attachment_id": row.id,
                "volume_id": volume.id,
                "server_id": row.instance_uuid,
                "host_name": host,
                "device": row.mountpoint,
                "attached_at": row.attached_at,
            })
        })
        .collect()
}

pub(super) fn attachment_summary(row: &Attachment) -> Value {
    json!({
        "id": row.id,
        "status": row.attach_status,
        "instance": row.instance_uuid,
        "volume_id": row.volume_id,
    })
}

pub(super) fn attachment(row: &Attachment) -> Value {
    let mut view = attachment_summary(row);
    view["attached_at"] = row.attached_at.clone().unwrap_or_default().into();
    view["detached_at"] = "".into();
    view["attach_mode"] = json!(row.attach_mode);
    // Null for what os-attach made, {} before the connector came.
    view["connection_info"] = match (&row.connection_info, row.attach_status.as_str()) {
        (Some(info), _) => Value::Object(info.clone()),
        (None, "attached") => Value::Null,
        (None, _) => json!({}),
    };
    view
}

/// As answered to a create and in `GET /snapshots`.
pub(super) fn snapshot_summary(context: &Context<'_>, snapshot: &Snapshot) -> Value {
    let mut view = json!({
        "id": snapshot.id,
        "created_at": snapshot.created_at,
        "updated_at": snapshot.updated_at,
        "name": snapshot.name,
        "description": snapshot.description,
        "volume_id": snapshot.volume_id,
        "status": snapshot.status,
        "size": snapshot.size,
        "metadata": snapshot.metadata,
    });
    if context.at_least(14) {
        view["group_snapshot_id"] = Value::Null;
    }
    if context.at_least(41) {
        view["user_id"] = snapshot.user_id.clone().into();
    }
    if context.at_least(65) {
        view["consumes_quota"] = true.into();
    }
    view
}

pub(super) fn snapshot(context: &Context<'_>, snapshot: &Snapshot) -> Value {
    let mut view = snapshot_summary(context, snapshot);
    let progress = if snapshot.status == "available" { "100%" } else { "0%" };
    view["os-extended-snapshot-attributes:project_id"] = snapshot.project_id.clone().into();
    view["os-extended-snapshot-attributes:progress"] = progress.into();
    view
}

/// One page of a list: the rows, and the link to the next where there may be one.
pub(super) fn page(
    context: &Context<'_>,
    collection: &str,
    path: &str,
    rows: Vec<Value>,
    full: bool,
) -> Value {
    let last = rows.last().and_then(|row| row["id"].as_str()).map(str::to_owned);
    let mut view = Map::from_iter([(collection.to_owned(), Value::Array(rows))]);
    if let (true, Some(last)) = (full, last) {
        let kept = context.request.query.iter().filter(|(key, _)| key != "marker");
        let query = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(kept)
            .append_pair("marker", &last)
            .finish();
        let next = json!([{"rel": "next", "href": format!("{}/{path}?{query}", context.url())}]);
        view.insert(format!("{collection}_links"), next);
    }
    Value::Object(view)
}
