//! `/backups`: copies of volumes outside the back end, and volumes made from them.
//!
//! The rules are those of `cinder/backup/api.py`; that a restore brings the metadata of the volume
//! that was backed up, in place of the volume's own, is `BackupMetadataAPI` in
//! `cinder/backup/driver.py`.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Context, own_volume, views, volume_mut};
use crate::sandbox::clock;
use crate::sandbox::cloud::{Cloud, pause};
use crate::sandbox::http::{ApiError, Reply};
use crate::sandbox::state::{Backup, State};

/// A backup of the project.
pub(super) fn own<'a>(state: &'a State, project: &str, id: &str) -> Result<&'a Backup, ApiError> {
    let found = Uuid::parse_str(id).ok().and_then(|id| state.backups.get(&id));
    found
        .filter(|backup| backup.project_id == project)
        .ok_or_else(|| ApiError::not_found("Backup", id))
}

pub(super) fn show(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    context.cloud.store.read(|state| {
        let backup = own(state, &context.project, id)?;
        Ok(Reply::json(200, &json!({ "backup": view(context, backup) })))
    })
}

/// Newest first; `name`, `volume_id` and `status` filter.
pub(super) fn list(context: &Context<'_>, detail: bool) -> Result<Reply, ApiError> {
    let is = |key: &str, value: &str| context.lets_through(key, value);
    context.cloud.store.read(|state| {
        let mut rows: Vec<&Backup> = state
            .backups
            .values()
            .filter(|row| {
                row.project_id == context.project
                    && is("name", row.name.as_deref().unwrap_or_default())
                    && is("volume_id", &row.volume_id.to_string())
                    && is("status", &row.status)
            })
            .collect();
        rows.sort_by(|a, b| (&b.created_at, b.id).cmp(&(&a.created_at, a.id)));
        let row = |row: &Backup| if detail { view(context, row) } else { summary(context, row) };
        let rows: Vec<Value> = rows.into_iter().map(row).collect();
        Ok(Reply::json(200, &json!({ "backups": rows })))
    })
}

pub(super) fn create(context: &Context<'_>) -> Result<Reply, ApiError> {
    let body = context.request.object("backup")?;
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    let volume_id = text("volume_id").unwrap_or_default();
    let (view, id) = context.cloud.store.change(|state| {
        let volume = own_volume(state, &context.project, &volume_id)?.clone();
        if volume.status != "available" {
            return Err(ApiError::invalid_volume(format!(
                "Volume to be backed up must be available or in-use, but the current status is \
                 \"{}\".",
                volume.status
            )));
        }
        let backup = Backup {
            id: Uuid::new_v4(),
            project_id: context.project.clone(),
            name: text("name"),
            description: text("description"),
            volume_id: volume.id,
            availability_zone: volume.availability_zone,
            size: volume.size,
            status: "creating".to_owned(),
            metadata: volume.metadata,
            created_at: clock::cinder(clock::now()),
            updated_at: None,
        };
        volume_mut(state, volume.id)?.set_status("backing-up");
        let (view, id) = (summary(context, &backup), backup.id);
        state.backups.insert(id, backup);
        Ok((view, id))
    })?;
    finish_create(context.cloud, id, context.behaviour.creating_ms);
    Ok(Reply::json(202, &json!({ "backup": view })))
}

fn finish_create(cloud: &Arc<Cloud>, id: Uuid, milliseconds: u64) {
    let task = Arc::clone(cloud);
    cloud.spawn(async move {
        let found = task.store.read(|state| {
            let backup = state.backups.get(&id)?;
            Some((backup.volume_id, backup.size))
        });
        let Some((volume, size)) = found else { return };
        let made = task.blocking(move |storage| storage.create_backup(id, volume, size)).await;
        pause(milliseconds).await;
        task.store.change(|state| {
            if let Some(volume) = state.volumes.get_mut(&volume) {
                volume.set_status("available");
            }
            if let Some(backup) = state.backups.get_mut(&id) {
                backup.set_status(if made.is_ok() { "available" } else { "error" });
            }
        });
        task.save_or_log().await;
    });
}

/// Over an available volume; without one, over a new one.
pub(super) fn restore(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    let body = context.request.object("restore")?;
    let volume_id = body.get("volume_id").and_then(Value::as_str);
    let volume_id = volume_id.ok_or_else(|| {
        // The driver never asks for it: Cinder would make a volume without our metadata.
        ApiError::new(501, "The sandbox restores to a volume that is there only.")
    })?;
    let (id, volume_id, name) = context.cloud.store.change(|state| {
        let backup = own(state, &context.project, id)?.clone();
        if backup.status != "available" {
            return Err(ApiError::bad("Invalid backup: Backup status must be available"));
        }
        let volume = own_volume(state, &context.project, volume_id)?.clone();
        if volume.status != "available" {
            return Err(ApiError::invalid_volume("Volume to be restored to must be available"));
        }
        if backup.size > volume.size {
            return Err(ApiError::invalid_volume(format!(
                "volume size {} is too small to restore backup of size {}.",
                volume.size, backup.size
            )));
        }
        begin_restore(state, backup.id, volume.id)?;
        Ok((backup.id, volume.id, volume.name))
    })?;
    finish_restore(context.cloud, id, volume_id, context.behaviour.creating_ms);
    let answer = json!({ "backup_id": id, "volume_id": volume_id, "volume_name": name });
    Ok(Reply::json(202, &json!({ "restore": answer })))
}

pub(super) fn begin_restore(state: &mut State, id: Uuid, volume: Uuid) -> Result<(), ApiError> {
    if let Some(backup) = state.backups.get_mut(&id) {
        backup.set_status("restoring");
    }
    volume_mut(state, volume)?.set_status("restoring-backup");
    Ok(())
}

pub(super) fn finish_restore(cloud: &Arc<Cloud>, id: Uuid, volume: Uuid, milliseconds: u64) {
    let task = Arc::clone(cloud);
    cloud.spawn(async move {
        pause(milliseconds).await;
        let Some(size) = task.store.read(|state| Some(state.volumes.get(&volume)?.size)) else {
            return;
        };
        let restored = task.blocking(move |storage| storage.restore_backup(id, volume, size)).await;
        task.store.change(|state| {
            let Some(backup) = state.backups.get_mut(&id) else { return };
            backup.set_status("available");
            let (metadata, origin) = (backup.metadata.clone(), backup.volume_id);
            let Some(volume) = state.volumes.get_mut(&volume) else { return };
            match restored {
                Ok(()) => {
                    if !metadata.is_empty() {
                        volume.metadata = metadata;
                    }
                    if volume.id != origin {
                        volume.metadata.insert("src_backup_id".to_owned(), id.to_string());
                    }
                    volume.set_status("available");
                }
                Err(_) => volume.set_status("error_restoring"),
            }
        });
        task.save_or_log().await;
    });
}

/// The backup that a new volume is to be made of (microversion 3.47).
pub(super) fn of_create<'a>(
    context: &Context<'_>,
    state: &'a State,
    body: &Map<String, Value>,
) -> Result<Option<&'a Backup>, ApiError> {
    let Some(id) = body.get("backup_id").and_then(Value::as_str).filter(|_| context.at_least(47))
    else {
        return Ok(None);
    };
    if Uuid::parse_str(id).is_err() {
        return Err(ApiError::bad("Backup ID must be in UUID form."));
    }
    let backup = own(state, &context.project, id)?;
    if backup.status != "available" {
        return Err(ApiError::bad(
            "Invalid backup: Originating backup status must be one of 'available' values",
        ));
    }
    Ok(Some(backup))
}

fn summary(context: &Context<'_>, backup: &Backup) -> Value {
    json!({
        "id": backup.id,
        "name": backup.name,
        "links": views::links(context, "backups", backup.id),
    })
}

fn view(context: &Context<'_>, backup: &Backup) -> Value {
    let mut view = json!({
        "id": backup.id,
        "status": backup.status,
        "size": backup.size,
        "object_count": 1,
        "availability_zone": backup.availability_zone,
        "container": "backups",
        "created_at": backup.created_at,
        "updated_at": backup.updated_at,
        "name": backup.name,
        "description": backup.description,
        "fail_reason": null,
        "volume_id": backup.volume_id,
        "links": views::links(context, "backups", backup.id),
        "is_incremental": false,
        "has_dependent_backups": false,
        "snapshot_id": null,
        "data_timestamp": backup.created_at,
    });
    if context.at_least(43) {
        view["metadata"] = json!({});
    }
    view
}

/// Goes on with what was unfinished when the sandbox stopped.
pub(super) fn resume(cloud: &Arc<Cloud>) {
    let rows: Vec<(Uuid, String)> = cloud
        .store
        .read(|state| state.backups.values().map(|row| (row.id, row.status.clone())).collect());
    for (id, _) in rows.into_iter().filter(|(_, status)| status == "creating") {
        finish_create(cloud, id, 0);
    }
}
