//! `/snapshots`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Context, create, metadata, own_volume, views, volumes};
use crate::sandbox::clock;
use crate::sandbox::cloud::{Cloud, pause};
use crate::sandbox::http::{ApiError, Reply};
use crate::sandbox::state::{Snapshot, State};

/// A snapshot of the project.
pub(super) fn own<'a>(state: &'a State, project: &str, id: &str) -> Result<&'a Snapshot, ApiError> {
    let found = Uuid::parse_str(id).ok().and_then(|id| state.snapshots.get(&id));
    found
        .filter(|snapshot| snapshot.project_id == project)
        .ok_or_else(|| ApiError::not_found("Snapshot", id))
}

pub(super) fn show(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    context.cloud.store.read(|state| {
        let snapshot = own(state, &context.project, id)?;
        Ok(Reply::json(200, &json!({"snapshot": views::snapshot(context, snapshot)})))
    })
}

/// Newest first; `name`, `volume_id` and `status` filter.
pub(super) fn list(context: &Context<'_>, detail: bool) -> Result<Reply, ApiError> {
    let limit = volumes::limit(context)?;
    let is = |key: &str, value: &str| context.lets_through(key, value);
    context.cloud.store.read(|state| {
        let mut rows: Vec<&Snapshot> = state
            .snapshots
            .values()
            .filter(|row| {
                row.project_id == context.project
                    && is("name", row.name.as_deref().unwrap_or_default())
                    && is("volume_id", &row.volume_id.to_string())
                    && is("status", &row.status)
            })
            .collect();
        rows.sort_by(|a, b| (&b.created_at, b.id).cmp(&(&a.created_at, a.id)));
        let first = match context.request.query("marker") {
            None => 0,
            Some(marker) => {
                let id = own(state, &context.project, marker)?.id;
                rows.iter().position(|row| row.id == id).map_or(rows.len(), |at| at + 1)
            }
        };
        let view = |row: &Snapshot| match detail {
            true => views::snapshot(context, row),
            false => views::snapshot_summary(context, row),
        };
        let page: Vec<Value> = rows.into_iter().skip(first).take(limit).map(view).collect();
        let full = limit > 0 && page.len() >= limit;
        let path = if detail { "snapshots/detail" } else { "snapshots" };
        Ok(Reply::json(200, &views::page(context, "snapshots", path, page, full)))
    })
}

pub(super) fn create(context: &Context<'_>) -> Result<Reply, ApiError> {
    let body = context.request.object("snapshot")?;
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    let force = body.get("force").is_some_and(|force| *force == Value::Bool(true));
    let volume_id = text("volume_id").unwrap_or_default();
    let metadata = body.get("metadata").filter(|given| !given.is_null());
    let metadata = metadata.map(metadata::parse).transpose()?.unwrap_or_else(BTreeMap::new);
    let (view, id) = context.cloud.store.change(|state| {
        let volume = own_volume(state, &context.project, &volume_id)?.clone();
        // From 3.66 on, a volume in use needs no force.
        let in_use = volume.status == "in-use" && (force || context.at_least(66));
        if volume.status != "available" && !in_use {
            return Err(ApiError::invalid_volume(format!(
                "Volume {} status must be available, but current status is: {}.",
                volume.id, volume.status
            )));
        }
        let used = create::Usage::of(state, &context.project).snapshots;
        if used + 1 > context.behaviour.quotas.snapshots {
            return Err(ApiError::new(
                413,
                format!(
                    "SnapshotLimitExceeded: Maximum number of snapshots allowed ({}) exceeded",
                    context.behaviour.quotas.snapshots
                ),
            ));
        }
        create::check_quota(context, state, 0, volume.size)?;
        let snapshot = Snapshot {
            id: Uuid::new_v4(),
            project_id: context.project.clone(),
            user_id: context.user.clone(),
            name: text("name"),
            description: text("description"),
            volume_id: volume.id,
            size: volume.size,
            status: "creating".to_owned(),
            metadata,
            created_at: clock::cinder(clock::now()),
            updated_at: None,
        };
        let view = views::snapshot_summary(context, &snapshot);
        let id = snapshot.id;
        state.snapshots.insert(id, snapshot);
        Ok((view, id))
    })?;
    let fails = context.effects.fail_snapshot;
    finish_create(context.cloud, id, context.behaviour.creating_ms, fails);
    Ok(Reply::json(202, &json!({"snapshot": view})))
}

fn finish_create(cloud: &Arc<Cloud>, id: Uuid, milliseconds: u64, fails: bool) {
    let task = Arc::clone(cloud);
    cloud.spawn(async move {
        let found = task.store.read(|state| {
            let snapshot = state.snapshots.get(&id)?;
            Some((snapshot.volume_id, snapshot.size))
        });
        let Some((volume, size)) = found else { return };
        let made = task.blocking(move |storage| storage.create_snapshot(id, volume, size)).await;
        pause(milliseconds).await;
        task.store.change(|state| {
            let Some(snapshot) = state.snapshots.get_mut(&id) else { return };
            let status = if made.is_ok() && !fails { "available" } else { "error" };
            status.clone_into(&mut snapshot.status);
            snapshot.updated_at = Some(clock::cinder(clock::now()));
        });
        task.save_or_log().await;
    });
}

pub(super) fn delete(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    let id = context.cloud.store.change(|state| {
        let id = own(state, &context.project, id)?.id;
        let snapshot =
            state.snapshots.get_mut(&id).ok_or_else(|| ApiError::not_found("Snapshot", id))?;
        if !["available", "error"].contains(&snapshot.status.as_str()) {
            return Err(ApiError::bad(
                "Invalid snapshot: Snapshot status must be available or error to delete.",
            ));
        }
        "deleting".clone_into(&mut snapshot.status);
        Ok(id)
    })?;
    finish_delete(context.cloud, id, context.behaviour.deleting_ms);
    Ok(Reply {
        headers: vec![("Content-Type", "text/html; charset=UTF-8".into())],
        ..Reply::empty(202)
    })
}

fn finish_delete(cloud: &Arc<Cloud>, id: Uuid, milliseconds: u64) {
    let task = Arc::clone(cloud);
    cloud.spawn(async move {
        pause(milliseconds).await;
        let removed = task.blocking(move |storage| storage.remove_snapshot(id)).await;
        task.store.change(|state| match removed {
            Ok(()) => {
                state.snapshots.remove(&id);
            }
            Err(error) => {
                tracing::error!(%id, %error, "the sandbox cannot remove a snapshot");
                if let Some(snapshot) = state.snapshots.get_mut(&id) {
                    "error_deleting".clone_into(&mut snapshot.status);
                }
            }
        });
        task.save_or_log().await;
    });
}

/// Goes on with what was unfinished when the sandbox stopped.
pub(super) fn resume(cloud: &Arc<Cloud>) {
    let rows: Vec<(Uuid, String)> = cloud
        .store
        .read(|state| state.snapshots.values().map(|row| (row.id, row.status.clone())).collect());
    for (id, status) in rows {
        match status.as_str() {
            "creating" => finish_create(cloud, id, 0, false),
            "deleting" => finish_delete(cloud, id, 0),
            _ => {}
        }
    }
}
