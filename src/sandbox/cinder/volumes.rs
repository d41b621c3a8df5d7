//! `/volumes`: list, show, rename, delete.

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Context, own_volume, views, volume_mut};
use crate::sandbox::cloud::{Cloud, pause};
use crate::sandbox::http::{ApiError, Reply, Request};
use crate::sandbox::state::Volume;

/// What a member may filter by; `~` = a part of it.
const FILTERS: &[&str] =
    &["name", "status", "metadata", "bootable", "availability_zone", "id", "group_id"];
/// Query parameters that are no filters.
const PAGING: &[&str] =
    &["limit", "marker", "offset", "sort", "sort_key", "sort_dir", "all_tenants", "with_count"];

pub(super) fn show(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    context.volume(id, |state, volume| {
        Ok(Reply::json(200, &json!({"volume": views::volume(context, state, volume)})))
    })
}

pub(super) fn list(context: &Context<'_>, detail: bool) -> Result<Reply, ApiError> {
    reject_unknown_filters(context)?;
    let limit = limit(context)?;
    let order = Order::of(context.request)?;
    context.cloud.store.read(|state| {
        let mut rows: Vec<&Volume> = state
            .volumes
            .values()
            .filter(|volume| volume.project_id == context.project && matches(context, volume))
            .collect();
        rows.sort_by(|a, b| order.compare(a, b));
        let total = rows.len();
        let first = match context.request.query("marker") {
            None => 0,
            Some(marker) => {
                let id = own_volume(state, &context.project, marker)?.id;
                rows.iter().position(|row| row.id == id).map_or(total, |at| at + 1)
            }
        };
        let first = first + number(context.request, "offset")?.unwrap_or(0);
        let page: Vec<Value> = rows
            .into_iter()
            .skip(first)
            .take(limit)
            .map(|volume| match detail {
                true => views::volume(context, state, volume),
                false => views::volume_summary(context, volume),
            })
            .collect();
        let full = limit > 0 && page.len() >= limit;
        let path = if detail { "volumes/detail" } else { "volumes" };
        let mut view = views::page(context, "volumes", path, page, full);
        let counted = context.request.query("with_count").is_some_and(is_true);
        if context.at_least(45) && counted {
            view["count"] = total.into();
        }
        Ok(Reply::json(200, &view))
    })
}

/// How many rows to answer; where there are so many, there is a link to the next page.
pub(super) fn limit(context: &Context<'_>) -> Result<usize, ApiError> {
    let max = context.behaviour.max_limit;
    Ok(number(context.request, "limit")?.map_or(max, |limit| limit.min(max)))
}

fn number(request: &Request, name: &str) -> Result<Option<usize>, ApiError> {
    let Some(text) = request.query(name) else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(value) => usize::try_from(value)
            .map(Some)
            .map_err(|_| ApiError::bad(format!("{name} param must be positive"))),
        Err(_) => Err(ApiError::bad(format!("{name} param must be an integer"))),
    }
}

fn is_true(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "1" | "t" | "true" | "on" | "y" | "yes")
}

/// Since 3.31 a filter that is not allowed is an error; before, it was ignored.
fn reject_unknown_filters(context: &Context<'_>) -> Result<(), ApiError> {
    if !context.at_least(31) {
        return Ok(());
    }
    let like = context.at_least(34);
    let unknown: Vec<&str> = context
        .request
        .query
        .iter()
        .map(|(key, _)| key.as_str())
        .filter(|key| {
            let plain = if like { key.trim_end_matches('~') } else { key };
            !PAGING.contains(key) && !FILTERS.contains(&plain)
        })
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(ApiError::bad(format!("Invalid filters {} are found in query options.", unknown.join(","))))
}

/// MySQL's usual collations compare without regard to case.
fn same(a: &str, b: &str) -> bool {
    a.to_lowercase() == b.to_lowercase()
}

fn matches(context: &Context<'_>, volume: &Volume) -> bool {
    context.request.query.iter().all(|(key, wanted)| {
        let name = volume.name.as_deref();
        match key.as_str() {
            "name" => name.is_some_and(|name| same(name, wanted)),
            "name~" => {
                name.is_some_and(|name| name.to_lowercase().contains(&wanted.to_lowercase()))
            }
            "status" => same(&volume.status, wanted),
            "bootable" => volume.bootable == is_true(wanted),
            "availability_zone" => same(&volume.availability_zone, wanted),
            "id" => same(&volume.id.to_string(), wanted),
            "metadata" => has_metadata(volume, wanted),
            _ => true,
        }
    })
}

/// The filter is a Python dictionary: `{'key': 'value'}`.
fn has_metadata(volume: &Volume, wanted: &str) -> bool {
    let wanted = serde_json::from_str::<Value>(&wanted.replace('\'', "\"")).unwrap_or_default();
    let Some(wanted) = wanted.as_object() else { return true };
    wanted.iter().all(|(key, value)| volume.metadata.get(key).map(String::as_str) == value.as_str())
}

/// `sort=KEY[:DIR],…` or `sort_key` and `sort_dir`; by default the newest first.
struct Order(Vec<(String, bool)>);

const SORT_KEYS: &[&str] = &["created_at", "name", "status", "size", "id", "updated_at"];

impl Order {
    fn of(request: &Request) -> Result<Self, ApiError> {
        let single = || {
            let key = request.query("sort_key")?;
            Some(format!("{key}:{}", request.query("sort_dir").unwrap_or("desc")))
        };
        let text = request.query("sort").map(str::to_owned).or_else(single);
        let mut keys = Vec::new();
        for part in text.as_deref().unwrap_or("created_at").split(',') {
            let (key, direction) = part.trim().split_once(':').unwrap_or((part.trim(), "desc"));
            let key = if key == "display_name" { "name" } else { key };
            if !SORT_KEYS.contains(&key) {
                return Err(ApiError::invalid_input("Sort key supplied was not valid."));
            }
            keys.push((key.to_owned(), direction == "asc"));
        }
        Ok(Self(keys))
    }

    fn compare(&self, a: &Volume, b: &Volume) -> std::cmp::Ordering {
        let by = |key: &str| match key {
            "created_at" => a.created_at.cmp(&b.created_at),
            "updated_at" => a.updated_at.cmp(&b.updated_at),
            "name" => a.name.cmp(&b.name),
            "status" => a.status.cmp(&b.status),
            "size" => a.size.cmp(&b.size),
            _ => a.id.cmp(&b.id),
        };
        let directed = |(key, ascending): &(String, bool)| match ascending {
            true => by(key),
            false => by(key).reverse(),
        };
        let first = self.0.iter().map(directed).find(|order| order.is_ne());
        first.unwrap_or_else(|| a.id.cmp(&b.id).reverse())
    }
}

/// `PUT /volumes/ID`: name, description, metadata.
pub(super) fn update(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    let body = context.request.object("volume")?;
    let text = |key: &str| body.get(key).map(|value| value.as_str().map(str::to_owned));
    let metadata = body.get("metadata").map(super::metadata::parse).transpose()?;
    let (name, description) = (text("name"), text("description"));
    context.change_volume(id, |state, id| {
        let volume = volume_mut(state, id)?;
        if let Some(name) = name {
            volume.name = name;
        }
        if let Some(description) = description {
            volume.description = description;
        }
        if let Some(metadata) = metadata {
            volume.metadata = metadata;
        }
        volume.touch();
        let volume = volume.clone();
        Ok(Reply::json(200, &json!({"volume": views::new_volume(context, state, &volume)})))
    })
}

/// States from which a volume may be deleted; `error_deleting` is not among them.
const DELETABLE: &[&str] =
    &["available", "error", "error_restoring", "error_extending", "error_managing"];

pub(super) fn delete(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    let cascade = context.request.query("cascade").is_some_and(is_true);
    let id = context.change_volume(id, |state, id| {
        let mut of_volume = state.snapshots.values().filter(|snapshot| snapshot.volume_id == id);
        let has_snapshots = if cascade {
            of_volume
                .any(|snapshot| !["available", "error", "deleting"].contains(&&*snapshot.status))
        } else {
            of_volume.next().is_some()
        };
        let volume = volume_mut(state, id)?;
        let free = DELETABLE.contains(&volume.status.as_str());
        if !free || volume.attach_status == "attached" || has_snapshots {
            let transfer = if context.is_queens() {
                "have snapshots or"
            } else {
                "have snapshots, awaiting a transfer, or"
            };
            return Err(ApiError::invalid_volume(format!(
                "Volume status must be available or error or error_restoring or error_extending \
                 or error_managing and must not be migrating, attached, belong to a group, \
                 {transfer} be disassociated from snapshots after volume transfer."
            )));
        }
        volume.previous_status = Some(volume.status.clone());
        volume.set_status("deleting");
        volume.stuck = context.effects.stuck;
        for snapshot in state.snapshots.values_mut().filter(|row| cascade && row.volume_id == id) {
            "deleting".clone_into(&mut snapshot.status);
        }
        Ok(id)
    })?;
    if !context.effects.stuck {
        let milliseconds = context.behaviour.deleting_ms;
        finish_delete(context.cloud, id, milliseconds, context.effects.fail_delete);
    }
    Ok(Reply {
        headers: vec![("Content-Type", "text/html; charset=UTF-8".into())],
        ..Reply::empty(202)
    })
}

/// The part of a delete that goes on after the answer.
pub(super) fn finish_delete(cloud: &Arc<Cloud>, id: Uuid, milliseconds: u64, fail: bool) {
    let task = Arc::clone(cloud);
    cloud.spawn(async move {
        pause(milliseconds).await;
        let failed = if fail { Some("error_deleting".to_owned()) } else { remove(&task, id).await };
        task.store.change(|state| match (failed, state.volumes.get_mut(&id)) {
            (Some(status), Some(volume)) => volume.set_status(&status),
            _ => {
                state.volumes.remove(&id);
                state.snapshots.retain(|_, snapshot| snapshot.volume_id != id);
                state.attachments.retain(|_, row| row.volume_id != id);
            }
        });
        task.save_or_log().await;
    });
}

/// Removes what the volume occupies; answers the status it gets when that fails. A busy one
/// becomes what it was, as in Cinder.
async fn remove(cloud: &Arc<Cloud>, id: Uuid) -> Option<String> {
    let _lock = cloud.lock_volume(id).await;
    let snapshots: Vec<Uuid> = cloud.store.read(|state| {
        let of_volume = state.snapshots.values().filter(|snapshot| snapshot.volume_id == id);
        of_volume.map(|snapshot| snapshot.id).collect()
    });
    if let Err(error) = super::connections::remove_all(cloud, id).await {
        tracing::warn!(%id, %error, "a volume of the sandbox is busy and cannot be deleted");
        let before = cloud.store.read(|state| state.volumes.get(&id)?.previous_status.clone());
        return Some(before.unwrap_or_else(|| "available".to_owned()));
    }
    let removed = cloud
        .blocking(move |storage| {
            snapshots.iter().try_for_each(|id| storage.remove_snapshot(*id))?;
            storage.remove(id)
        })
        .await;
    removed.err().map(|error| {
        tracing::error!(%id, %error, "the sandbox cannot remove a volume");
        "error_deleting".to_owned()
    })
}
