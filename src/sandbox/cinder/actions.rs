//! `/volumes/ID/action`: the actions flow of attaching, and extend.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::connections::{self, Failure};
use super::{Context, create, volume_mut};
use crate::sandbox::clock;
use crate::sandbox::cloud::pause;
use crate::sandbox::http::{ApiError, Reply, required};
use crate::sandbox::options::Nova;
use crate::sandbox::state::{Attachment, Message, State};

pub(super) async fn act(context: &Context<'_>, id: &str, action: &str) -> Result<Reply, ApiError> {
    let mut body = context.request.json()?;
    let arguments = body.remove(action).unwrap_or_default();
    match action {
        "os-reserve" => reserve(context, id),
        "os-unreserve" => unreserve(context, id),
        "os-begin_detaching" => begin_detaching(context, id),
        "os-roll_detaching" => roll_detaching(context, id),
        "os-initialize_connection" => initialize(context, id, connector(action, &arguments)?).await,
        "os-terminate_connection" => terminate(context, id, connector(action, &arguments)?).await,
        "os-attach" => attach(context, id, &arguments),
        "os-detach" => detach(context, id, &arguments).await,
        "os-extend" => extend(context, id, &arguments),
        "os-set_bootable" => set_bootable(context, id, &arguments),
        "os-update_readonly_flag" => set_read_only(context, id, &arguments),
        "os-force_detach" | "os-force_delete" | "os-reset_status" => context.volume(id, |_, _| {
            let rule = action.trim_start_matches("os-");
            Err(ApiError::new(
                403,
                format!(
                    "Policy doesn't allow volume_extension:volume_admin_actions:{rule} to be \
                         performed."
                ),
            ))
        }),
        other => Err(ApiError::bad(format!("There is no such action: {other}"))),
    }
}

fn connector<'a>(action: &str, arguments: &'a Value) -> Result<&'a Map<String, Value>, ApiError> {
    match arguments.get("connector") {
        Some(Value::Object(connector)) => Ok(connector),
        Some(other) => Err(ApiError::field("connector", other, "is not of type 'object'")),
        None => Err(ApiError::field(action, arguments, &required("connector"))),
    }
}

/// The compare-and-swap that everything rests on.
fn reserve(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    context.change_volume(id, |state, id| {
        let volume = volume_mut(state, id)?;
        let (allowed, said): (&[&str], _) = if volume.multiattach {
            (&["available", "in-use"], "available or in-use")
        } else {
            (&["available"], "available")
        };
        if !allowed.contains(&volume.status.as_str()) {
            return Err(ApiError::invalid_volume(format!(
                "Volume status must be {said} to reserve, but the status is {}.",
                volume.status
            )));
        }
        volume.set_status("attaching");
        Ok(Reply::empty(202))
    })
}

fn unreserve(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    context.change_volume(id, |state, id| {
        end_attaching(state, id)?;
        Ok(Reply::empty(202))
    })
}

/// `attaching` becomes what it was before; anything else stays.
fn end_attaching(state: &mut State, id: Uuid) -> Result<(), ApiError> {
    let used = state.attachments_of(id).next().is_some();
    let volume = volume_mut(state, id)?;
    if volume.status == "attaching" {
        volume.set_status(if used { "in-use" } else { "available" });
    }
    Ok(())
}

fn begin_detaching(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    context.change_volume(id, |state, id| {
        let volume = volume_mut(state, id)?;
        if volume.status != "in-use" || volume.attach_status != "attached" {
            return Err(ApiError::invalid_volume(
                "Unable to detach volume. Volume status must be 'in-use' and attach_status must \
                 be 'attached' to detach.",
            ));
        }
        volume.set_status("detaching");
        Ok(Reply::empty(202))
    })
}

fn roll_detaching(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    context.change_volume(id, |state, id| {
        let volume = volume_mut(state, id)?;
        if volume.status == "detaching" {
            volume.set_status("in-use");
        }
        Ok(Reply::empty(202))
    })
}

/// Checks nothing but maintenance: it exports a volume that another host has, too.
async fn initialize(
    context: &Context<'_>,
    id: &str,
    connector: &Map<String, Value>,
) -> Result<Reply, ApiError> {
    let id = context.volume(id, |_, volume| match volume.status.as_str() {
        "maintenance" => Err(ApiError::invalid_volume(
            "The volume connection cannot be initialized in maintenance mode.",
        )),
        _ => Ok(volume.id),
    })?;
    connections::check(context, connector)?;
    let _lock = context.cloud.lock_volume(id).await;
    let connection = connections::of_connector(connector);
    match connections::open(context, id, &connection, false).await {
        Ok(info) => Ok(Reply::json(200, &json!({"connection_info": info}))),
        Err(Failure::Refused(refusal)) => Err(refusal),
        Err(Failure::Backend(error)) => {
            tracing::warn!(%id, %error, "the sandbox cannot export a volume");
            Err(ApiError::new(500, "Unable to fetch connection information from backend."))
        }
    }
}

async fn terminate(
    context: &Context<'_>,
    id: &str,
    connector: &Map<String, Value>,
) -> Result<Reply, ApiError> {
    let id = context.volume(id, |state, volume| {
        deletion_allowed(context, state, volume.id, None)?;
        Ok(volume.id)
    })?;
    let _lock = context.cloud.lock_volume(id).await;
    let connection = connections::of_connector(connector);
    let closed = connections::close(context.cloud, id, |one| one.connection == connection).await;
    if let Err(error) = closed {
        tracing::warn!(%id, %error, "the sandbox cannot take an export back");
        return Err(ApiError::new(500, "Unable to terminate volume connection from backend."));
    }
    context.cloud.store.change(|state| end_attaching(state, id))?;
    Ok(Reply::empty(202))
}

/// Cinder's guard of bug 2004555: what an instance of Nova holds, only Nova may let go of.
/// `attachment` = `None`: whichever the volume has.
pub(super) fn deletion_allowed(
    context: &Context<'_>,
    state: &State,
    volume: Uuid,
    attachment: Option<&str>,
) -> Result<(), ApiError> {
    if context.is_queens() {
        return Ok(());
    }
    let mut rows = state.attachments_of(volume);
    let row = match attachment {
        Some(id) => Uuid::parse_str(id).ok().and_then(|id| state.attachments.get(&id)),
        None => match (rows.next(), rows.next()) {
            (None, _) => return Ok(()),
            (Some(only), None) => Some(only),
            (Some(_), Some(_)) => None,
        },
    };
    let Some(row) = row else { return Err(held_by_instance("")) };
    if row.volume_id != volume {
        return Err(ApiError::invalid_input("Mismatched volume and attachment"));
    }
    match (&row.instance_uuid, &row.connection_info) {
        (Some(instance), Some(_)) => match context.behaviour.nova {
            Nova::KnowsNoInstance => Ok(()),
            Nova::ClaimsInstance => Err(held_by_instance(instance)),
            Nova::Absent => Err(ApiError::internal()),
        },
        _ => Ok(()),
    }
}

fn held_by_instance(instance: &str) -> ApiError {
    ApiError::new(
        409,
        format!(
            "ConflictNovaUsingAttachment: Detach volume from instance {instance} using the Compute \
             API"
        ),
    )
}

/// What os-attach is given, checked as its schema does.
struct AttachArguments {
    instance_uuid: Option<String>,
    host: Option<String>,
    mountpoint: String,
    mode: String,
}

impl AttachArguments {
    fn of(arguments: &Value) -> Result<Self, ApiError> {
        let text = |key: &str, most: usize| match arguments.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.chars().count() <= most => Ok(Some(text.clone())),
            Some(value @ Value::String(_)) => Err(ApiError::field(key, value, "is too long")),
            Some(value) => Err(ApiError::field(key, value, "is not of type 'string'")),
        };
        let instance_uuid = text("instance_uuid", 255)?;
        if let Some(given) = instance_uuid.as_deref().filter(|text| Uuid::parse_str(text).is_err())
        {
            return Err(ApiError::field("instance_uuid", &given.into(), "is not a 'uuid'"));
        }
        let host = text("host_name", 255)?;
        let mountpoint = text("mountpoint", 255)?.filter(|text| !text.is_empty());
        let mountpoint = mountpoint
            .ok_or_else(|| ApiError::field("os-attach", arguments, &required("mountpoint")))?;
        if instance_uuid.is_none() && host.is_none() {
            return Err(ApiError::field("os-attach", arguments, &required("instance_uuid")));
        }
        let mode = text("mode", 255)?.unwrap_or_else(|| "rw".to_owned());
        if !["rw", "ro"].contains(&mode.as_str()) {
            return Err(ApiError::field("mode", &mode.into(), "is not one of ['rw', 'ro']"));
        }
        Ok(Self { instance_uuid, host: host.as_deref().map(sanitized), mountpoint, mode })
    }
}

/// Cinder's `sanitize_hostname`: lower case, blanks and underscores as dashes, the rest left out.
fn sanitized(host: &str) -> String {
    let dashed = host.to_lowercase().replace([' ', '_'], "-");
    let kept: String =
        dashed.chars().filter(|c| c.is_alphanumeric() || ['.', '-'].contains(c)).collect();
    kept.trim_matches(['.', '-']).to_owned()
}

/// Needs no reservation, as in Cinder.
fn attach(context: &Context<'_>, id: &str, arguments: &Value) -> Result<Reply, ApiError> {
    let given = AttachArguments::of(arguments)?;
    context.change_volume(id, |state, id| {
        let same_holder = |row: &&Attachment| match &given.instance_uuid {
            Some(instance) => row.instance_uuid.as_ref() == Some(instance),
            None => row.host == given.host,
        };
        let again = state.attachments_of(id).any(|row| same_holder(&row));
        let volume = volume_mut(state, id)?;
        if volume.status == "maintenance" {
            return Err(ApiError::invalid_volume(
                "The volume cannot be attached in maintenance mode.",
            ));
        }
        let read_only = volume.admin_metadata.entry("readonly".into()).or_insert("False".into());
        if read_only == "True" && given.mode != "ro" {
            return Err(ApiError::bad(format!(
                "Invalid attaching mode '{}' for volume {id}.",
                given.mode
            )));
        }
        let mode = volume.admin_metadata.get("attached_mode");
        if volume.status == "attaching"
            && !context.is_queens()
            && mode.is_some_and(|mode| *mode != given.mode)
        {
            return Err(ApiError::invalid_volume("being attached by different mode"));
        }
        if again && context.is_queens() {
            volume.set_status("in-use");
            return Ok(Reply::empty(202));
        }
        if again {
            return Err(ApiError::internal()); // a bug of Zed: it cannot save the volume here
        }
        if volume.status == "in-use" && !volume.multiattach {
            return Err(ApiError::invalid_volume(
                "volume is already attached and multiple attachments are not enabled",
            ));
        }
        volume.admin_metadata.insert("attached_mode".into(), given.mode.clone());
        volume.set_status("in-use");
        "attached".clone_into(&mut volume.attach_status);
        let row = Attachment {
            id: Uuid::new_v4(),
            volume_id: id,
            attach_status: "attached".to_owned(),
            instance_uuid: given.instance_uuid,
            host: given.host,
            mountpoint: Some(given.mountpoint),
            read_only: given.mode == "ro",
            attach_mode: Some(given.mode),
            attached_at: Some(clock::cinder(clock::now())),
            connector: None,
            connection_info: None,
        };
        state.attachments.insert(row.id, row);
        Ok(Reply::empty(202))
    })
}

/// Also repairs: without attachments the volume becomes available, whatever it was.
async fn detach(context: &Context<'_>, id: &str, arguments: &Value) -> Result<Reply, ApiError> {
    let attachment = arguments.get("attachment_id").and_then(Value::as_str);
    let (id, row) = context.volume(id, |state, volume| {
        deletion_allowed(context, state, volume.id, attachment)?;
        let mut rows = state.attachments_of(volume.id).map(|row| row.id);
        let row = match attachment {
            Some(id) => rows.find(|row| row.to_string() == id),
            None => {
                let first = rows.next();
                if rows.next().is_some() {
                    return Err(ApiError::invalid_volume(
                        "Detach volume failed: More than one attachment, but no attachment_id \
                         provided.",
                    ));
                }
                first
            }
        };
        Ok((volume.id, row))
    })?;
    if context.effects.stuck {
        return Ok(Reply::empty(202));
    }
    let _lock = context.cloud.lock_volume(id).await;
    let others = context
        .cloud
        .store
        .read(|state| state.attachments_of(id).any(|other| Some(other.id) != row));
    if !others {
        // `remove_export`: what os-terminate_connection left.
        connections::remove_all(context.cloud, id).await.map_err(|error| {
            tracing::warn!(%id, %error, "the sandbox cannot take an export back");
            ApiError::internal()
        })?;
    }
    context.cloud.store.change(|state| {
        if let Some(row) = row {
            state.attachments.remove(&row);
        }
        finish_detach(state, id)?;
        Ok(Reply::empty(202))
    })
}

/// After an attachment went: the volume's status from those that are left.
pub(super) fn finish_detach(state: &mut State, id: Uuid) -> Result<(), ApiError> {
    let (status, attach_status) = state.statuses_from_attachments(id);
    let volume = volume_mut(state, id)?;
    volume.admin_metadata.remove("attached_mode");
    attach_status.clone_into(&mut volume.attach_status);
    volume.set_status(status);
    Ok(())
}

fn extend(context: &Context<'_>, id: &str, arguments: &Value) -> Result<Reply, ApiError> {
    let asked = arguments.get("new_size");
    let asked =
        asked.ok_or_else(|| ApiError::field("os-extend", arguments, &required("new_size")))?;
    let text = asked.as_str().map_or_else(|| asked.to_string(), str::to_owned);
    let size: u64 = text
        .parse()
        .map_err(|_| ApiError::field("new_size", asked, "does not match '^[0-9]+$'"))?;
    let id = context.change_volume(id, |state, id| {
        let volume = volume_mut(state, id)?.clone();
        let more = size.checked_sub(volume.size).filter(|more| *more > 0).ok_or_else(|| {
            ApiError::invalid_input(format!(
                "New size for extend must be greater than current size. (current: {}, extended: \
                 {size}).",
                volume.size
            ))
        })?;
        let online = context.at_least(42) && volume.status == "in-use";
        let wanted = if online { "in-use" } else { "available" };
        if volume.status != wanted {
            return Err(ApiError::invalid_volume(format!(
                "Volume {id} status must be '{{'status': '{wanted}'}}' to extend, currently {}.",
                volume.status
            )));
        }
        create::check_quota(context, state, 0, more)?;
        let volume = volume_mut(state, id)?;
        volume.previous_status = Some(volume.status.clone());
        volume.set_status("extending");
        Ok(id)
    })?;
    finish_extend(context, id, size);
    Ok(Reply::empty(202))
}

/// What Cinder's scheduler and back end do with a volume that is `extending`. Nobody looks then
/// whether the volume still has the attachments that it had: it becomes what it was before.
fn finish_extend(context: &Context<'_>, id: Uuid, size: u64) {
    let task = Arc::clone(context.cloud);
    let (effects, pause_ms) = (context.effects.clone(), context.behaviour.extending_ms);
    context.cloud.spawn(async move {
        pause(pause_ms).await;
        if effects.stuck {
            return;
        }
        let grown = match (effects.refuse_extend, effects.fail_extend) {
            (true, _) => Err(REFUSED_EXTEND),
            (_, true) => Err(FAILED_EXTEND),
            _ => {
                let grown = task.blocking(move |storage| storage.extend(id, size)).await;
                grown.map_err(|error| {
                    tracing::error!(%id, %error, "the sandbox cannot grow a volume");
                    FAILED_EXTEND
                })
            }
        };
        task.store.change(|state| {
            let Some(volume) = state.volumes.get_mut(&id) else { return };
            let before = volume.previous_status.take();
            match grown {
                Ok(()) => volume.size = size,
                Err((event, reason)) => {
                    let message = Message {
                        id: Uuid::new_v4(),
                        project_id: volume.project_id.clone(),
                        resource_uuid: id,
                        event_id: event.to_owned(),
                        user_message: format!("extend volume:{reason}"),
                        request_id: format!("req-{}", Uuid::new_v4()),
                        created: clock::now(),
                    };
                    state.messages.push(message);
                }
            }
            let failed = grown == Err(FAILED_EXTEND);
            let status =
                if failed { "error_extending" } else { before.as_deref().unwrap_or("available") };
            volume.set_status(status);
        });
        task.save_or_log().await;
    });
}

/// Event and reason, of `cinder/message/message_field.py`: no back end passes the filters, for its
/// space or because it cannot extend volumes in use.
const REFUSED_EXTEND: (&str, &str) = (
    "VOLUME_VOLUME_003_002",
    "No storage could be allocated for this volume request. You may be able to try another size or \
     volume type.",
);
/// The back end's own failure.
const FAILED_EXTEND: (&str, &str) =
    ("VOLUME_VOLUME_003_010", "Volume Driver failed to extend volume.");

fn flag(arguments: &Value, key: &str) -> Result<bool, ApiError> {
    match arguments.get(key) {
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        other => {
            Err(ApiError::field(key, other.unwrap_or(&Value::Null), "is not of type 'boolean'"))
        }
    }
}

fn set_bootable(context: &Context<'_>, id: &str, arguments: &Value) -> Result<Reply, ApiError> {
    let bootable = flag(arguments, "bootable")?;
    context.change_volume(id, |state, id| {
        let volume = volume_mut(state, id)?;
        volume.bootable = bootable;
        volume.touch();
        Ok(Reply::empty(200))
    })
}

fn set_read_only(context: &Context<'_>, id: &str, arguments: &Value) -> Result<Reply, ApiError> {
    let read_only = flag(arguments, "readonly")?;
    context.change_volume(id, |state, id| {
        let volume = volume_mut(state, id)?;
        if volume.status != "available" {
            return Err(ApiError::invalid_volume(format!(
                "Volume {id} status must be available to update readonly flag, but current status \
                 is: {}.",
                volume.status
            )));
        }
        let value = if read_only { "True" } else { "False" };
        volume.admin_metadata.insert("readonly".to_owned(), value.to_owned());
        Ok(Reply::empty(202))
    })
}
