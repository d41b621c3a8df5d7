//! `POST /volumes`, and the part of it that goes on after the answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Context, backups, metadata, own_volume, snapshots, views, volumes};
use crate::sandbox::clock;
use crate::sandbox::cloud::{Cloud, pause};
use crate::sandbox::http::{ApiError, Reply};
use crate::sandbox::state::{Message, State, Volume};
use crate::sandbox::storage::Source;

/// The only zone.
pub(super) const ZONE: &str = "nova";
/// The type of a volume for which none is asked.
const DEFAULT_TYPE: &str = "lvmdriver-1";

pub(super) fn create(context: &Context<'_>) -> Result<Reply, ApiError> {
    let body = context.request.object("volume")?;
    let unplaceable = unplaceable(context)?;
    let (view, id, source) = context.cloud.store.change(|state| {
        let (volume, source) = new_volume(context, state, &body)?;
        check_quota(context, state, 1, volume.size)?;
        let id = volume.id;
        let view = views::new_volume(context, state, &volume);
        state.volumes.insert(id, volume);
        Ok((view, id, source))
    })?;
    if !context.effects.stuck {
        let failure = context.effects.fail_create.clone().or(unplaceable);
        finish(context.cloud, id, source, context.behaviour.creating_ms, failure);
    }
    Ok(Reply::json(202, &json!({"volume": view})))
}

/// Why the scheduler finds no place, if it is asked for one that there isn't: all volumes are on one
/// back end (`DifferentBackendFilter`, `SameBackendFilter`).
fn unplaceable(context: &Context<'_>) -> Result<Option<String>, ApiError> {
    let key = "OS-SCH-HNT:scheduler_hints";
    let body = context.request.json()?;
    let hints = match body.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(hints)) => hints,
        Some(other) => {
            return Err(ApiError::field(key, other, "is not of type 'object', 'null'"));
        }
    };
    let is_there = |hint: &str| {
        let ids = match hints.get(hint) {
            Some(Value::Array(ids)) => ids.clone(),
            Some(id) => vec![id.clone()],
            None => Vec::new(),
        };
        let found = |id: &Value| {
            let known =
                |state: &State| own_volume(state, &context.project, id.as_str()?).ok().map(|_| ());
            context.cloud.store.read(known).is_some()
        };
        (!ids.is_empty()).then(|| ids.iter().any(found))
    };
    let refused = is_there("different_host") == Some(true) || is_there("same_host") == Some(false);
    Ok(refused.then(|| NO_BACK_END.to_owned()))
}

const NO_BACK_END: &str = "Could not find any available weighted backend.";

fn new_volume(
    context: &Context<'_>,
    state: &State,
    body: &Map<String, Value>,
) -> Result<(Volume, Option<Source>), ApiError> {
    let text = |key: &str| match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => match text.chars().count() {
            ..=255 => Ok(Some(text.clone())),
            long => {
                Err(ApiError::invalid_input(format!("{key} has {long} characters, more than 255.")))
            }
        },
        Some(value) => Err(ApiError::field(key, value, "is not of type 'string'")),
    };
    let mut multiattach = body.get("multiattach").is_some_and(|value| *value == Value::Bool(true));
    if multiattach && !context.is_queens() {
        return Err(ApiError::bad(
            "multiattach parameter has been removed. The default behavior is to use multiattach \
             enabled volume types. Contact your administrator to create a multiattach enabled \
             volume type and use it to create multiattach volumes.",
        ));
    }
    let (mut source, mut least, source_type) = source(context, state, body)?;
    if let Some(backup) = backups::of_create(context, state, body)? {
        let made_of = Source::Backup(backup.id);
        (source, least) = (Some(made_of), Some((backup.size, made_of)));
    }
    let asked_type = text("volume_type")?.filter(|name| !name.is_empty());
    let kind = match &asked_type {
        Some(asked) => state
            .volume_types
            .iter()
            .find(|kind| kind.name == *asked || kind.id.to_string() == *asked)
            .ok_or_else(|| ApiError::not_found("Volume type with name", asked))?,
        None => {
            let name = source_type.unwrap_or(DEFAULT_TYPE);
            let kind = state.volume_types.iter().find(|kind| kind.name == name);
            kind.ok_or_else(ApiError::internal)?
        }
    };
    multiattach |= kind.multiattach;
    if body.get("imageRef").or(body.get("image_id")).is_some_and(|image| !image.is_null()) {
        return Err(ApiError::bad("Invalid image identifier or unable to access requested image."));
    }
    let zone = text("availability_zone")?.unwrap_or_else(|| ZONE.to_owned());
    if zone != ZONE {
        return Err(ApiError::bad(format!("Availability zone '{zone}' is invalid.")));
    }
    let size = size(context, body.get("size"), least)?;
    let metadata = match body.get("metadata") {
        None | Some(Value::Null) => BTreeMap::new(),
        Some(given) => metadata::parse(given)?,
    };
    let volume = Volume {
        id: Uuid::new_v4(),
        project_id: context.project.clone(),
        user_id: context.user.clone(),
        name: text("name")?,
        description: text("description")?,
        size,
        status: "creating".to_owned(),
        previous_status: None,
        attach_status: "detached".to_owned(),
        volume_type: kind.name.clone(),
        availability_zone: zone,
        metadata,
        admin_metadata: BTreeMap::new(),
        bootable: false,
        multiattach,
        encrypted: false,
        snapshot_id: match source {
            Some(Source::Snapshot(id)) => Some(id),
            _ => None,
        },
        source_volid: match source {
            Some(Source::Volume(id)) => Some(id),
            _ => None,
        },
        created_at: clock::cinder(clock::now()),
        updated_at: None,
        chap: None,
        stuck: context.effects.stuck,
    };
    Ok((volume, source))
}

/// What the volume is made from, that one's size and type.
type Origin<'a> = (Option<Source>, Option<(u64, Source)>, Option<&'a str>);

fn source<'a>(
    context: &Context<'_>,
    state: &'a State,
    body: &Map<String, Value>,
) -> Result<Origin<'a>, ApiError> {
    let id = |key| body.get(key).and_then(Value::as_str);
    for key in ["snapshot_id", "source_volid"] {
        let wrong = id(key).filter(|id| !context.is_queens() && Uuid::parse_str(id).is_err());
        if let Some(wrong) = wrong {
            let problem = "is not valid under any of the given schemas";
            return Err(ApiError::field(key, &wrong.into(), problem));
        }
    }
    if let Some(id) = id("snapshot_id") {
        let snapshot = snapshots::own(state, &context.project, id)?;
        if snapshot.status != "available" {
            return Err(ApiError::bad(
                "Invalid snapshot: Originating snapshot status must be one of 'available' values",
            ));
        }
        let kind = state.volumes.get(&snapshot.volume_id).map(|volume| volume.volume_type.as_str());
        let source = Source::Snapshot(snapshot.id);
        return Ok((Some(source), Some((snapshot.size, source)), kind));
    }
    if let Some(id) = id("source_volid") {
        let volume = own_volume(state, &context.project, id)?;
        if !["available", "in-use"].contains(&volume.status.as_str()) {
            return Err(ApiError::invalid_volume(
                "Originating source volume status must be one of 'available, in-use' values",
            ));
        }
        let source = Source::Volume(volume.id);
        return Ok((Some(source), Some((volume.size, source)), Some(&volume.volume_type)));
    }
    Ok((None, None, None))
}

/// The size in GiB; `least` is the source and its size.
fn size(
    context: &Context<'_>,
    asked: Option<&Value>,
    least: Option<(u64, Source)>,
) -> Result<u64, ApiError> {
    let size = match asked {
        None | Some(Value::Null) => match least {
            Some((size, _)) => size,
            None if context.is_queens() => {
                return Err(ApiError::invalid_input(
                    "Volume size 'None' must be an integer and greater than 0",
                ));
            }
            None => {
                return Err(ApiError::bad(
                    "The server could not comply with the request since it is either malformed or \
                     otherwise incorrect.",
                ));
            }
        },
        Some(value) => whole_gib(context, value)?,
    };
    match least {
        Some((least, Source::Snapshot(_))) if size < least => {
            Err(ApiError::invalid_input(format!(
                "Volume size '{size}'GB cannot be smaller than the snapshot size {least}GB. They must \
             be >= original snapshot size."
            )))
        }
        Some((least, Source::Volume(_))) if size < least => Err(ApiError::invalid_input(format!(
            "Volume size '{size}'GB cannot be smaller than original volume size  {least}GB. They \
             must be >= original volume size."
        ))),
        Some((least, Source::Backup(_))) if size < least => Err(ApiError::invalid_input(format!(
            "Volume size {size}GB cannot be smaller than the backup size {least}GB. They must be >= \
             backup size."
        ))),
        _ => Ok(size),
    }
}

/// A number, or digits as text.
fn whole_gib(context: &Context<'_>, value: &Value) -> Result<u64, ApiError> {
    let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match (shown.parse::<u64>(), context.is_queens()) {
        (Ok(size @ 1..), _) => Ok(size),
        (Ok(_), true) => Err(ApiError::invalid_input(format!(
            "Volume size '{shown}' must be an integer and greater than 0"
        ))),
        (Err(_), true) => Err(ApiError::invalid_input(format!(
            "Invalid volume size provided for create request: {shown} (size argument must be an \
             integer (or string representation of an integer) and greater than zero)."
        ))),
        (Ok(_), false) => Err(ApiError::field("size", value, "is less than the minimum of 1")),
        (Err(_), false) => Err(ApiError::field("size", value, "does not match '^[0-9]+$'")),
    }
}

/// Refuses what would exceed the project's quota: so many volumes more, so many GiB more.
pub(super) fn check_quota(
    context: &Context<'_>,
    state: &State,
    volumes: u64,
    gib: u64,
) -> Result<(), ApiError> {
    let usage = Usage::of(state, &context.project);
    let quotas = context.behaviour.quotas;
    if usage.gigabytes + gib > quotas.gigabytes {
        return Err(ApiError::new(
            413,
            format!(
                "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed \
                 gigabytes quota. Requested {gib}G, quota is {}G and {}G has been consumed.",
                quotas.gigabytes, usage.gigabytes
            ),
        ));
    }
    if usage.volumes + volumes > quotas.volumes {
        return Err(ApiError::new(
            413,
            format!(
                "VolumeLimitExceeded: Maximum number of volumes allowed ({}) exceeded for quota \
                 'volumes'.",
                quotas.volumes
            ),
        ));
    }
    Ok(())
}

/// What a project has.
pub(super) struct Usage {
    pub(super) volumes: u64,
    pub(super) snapshots: u64,
    /// Of both.
    pub(super) gigabytes: u64,
}

impl Usage {
    pub(super) fn of(state: &State, project: &str) -> Self {
        let volumes = || state.volumes.values().filter(|volume| volume.project_id == project);
        let snapshots = || state.snapshots.values().filter(|row| row.project_id == project);
        Self {
            volumes: volumes().count() as u64,
            snapshots: snapshots().count() as u64,
            gigabytes: volumes().map(|volume| volume.size).sum::<u64>()
                + snapshots().map(|snapshot| snapshot.size).sum::<u64>(),
        }
    }
}

/// Makes the file and the volume available, or lets it fail for a reason.
fn finish(
    cloud: &Arc<Cloud>,
    id: Uuid,
    source: Option<Source>,
    milliseconds: u64,
    failure: Option<String>,
) {
    let task = Arc::clone(cloud);
    cloud.spawn(async move {
        pause(milliseconds).await;
        let Some(size) = task.store.read(|state| Some(state.volumes.get(&id)?.size)) else {
            return;
        };
        let backup = match source {
            Some(Source::Backup(backup)) if failure.is_none() => Some(backup),
            _ => None,
        };
        let failure = match failure {
            Some(reason) => Some(reason),
            None => {
                let made = task.blocking(move |storage| storage.create(id, size, source)).await;
                made.err().map(|error| error.to_string())
            }
        };
        task.store.change(|state| {
            let Some(volume) = state.volumes.get_mut(&id) else { return };
            if volume.status != "creating" {
                return; // a test forced it
            }
            match failure {
                // The backup service goes on.
                None if backup.is_some() => volume.set_status("restoring-backup"),
                None => volume.set_status("available"),
                Some(reason) => {
                    volume.set_status("error");
                    let message = failed_create(volume, &reason);
                    state.messages.push(message);
                }
            }
        });
        task.save_or_log().await;
        if let Some(backup) = backup {
            backups::finish_restore(&task, backup, id, milliseconds);
        }
    });
}

/// The user message of a failed create.
fn failed_create(volume: &Volume, reason: &str) -> Message {
    let (step, event) = match reason {
        NO_BACK_END => ("schedule allocate volume", "VOLUME_VOLUME_001_003"),
        _ => ("create volume from backend storage", "VOLUME_VOLUME_008_012"),
    };
    Message {
        id: Uuid::new_v4(),
        project_id: volume.project_id.clone(),
        resource_uuid: volume.id,
        event_id: event.to_owned(),
        user_message: format!("{step}:{reason}"),
        request_id: format!("req-{}", Uuid::new_v4()),
        created: clock::now(),
    }
}

/// Goes on with what was unfinished when the sandbox stopped.
pub(in crate::sandbox) fn resume(cloud: &Arc<Cloud>) {
    let unfinished: Vec<Volume> = cloud.store.read(|state| {
        let volumes = state.volumes.values().filter(|volume| !volume.stuck);
        volumes.cloned().collect()
    });
    for volume in unfinished {
        let source =
            (volume.snapshot_id.map(Source::Snapshot)).or(volume.source_volid.map(Source::Volume));
        match volume.status.as_str() {
            "creating" => finish(cloud, volume.id, source, 0, None),
            "deleting" => volumes::finish_delete(cloud, volume.id, 0, false),
            "extending" => cloud.store.change(|state| {
                if let Some(row) = state.volumes.get_mut(&volume.id) {
                    row.set_status(volume.previous_status.as_deref().unwrap_or("available"));
                }
            }),
            _ => {}
        }
    }
    snapshots::resume(cloud);
    backups::resume(cloud);
}
