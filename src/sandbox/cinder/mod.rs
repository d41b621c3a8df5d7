//! The embedded Cinder: v3 at `/volume/v3/PROJECT`, and v2 at `/volume/v2/PROJECT` where the
//! behaviour has it.
//!
//! The rules are Cinder's own (`cinder/volume/api.py`, `cinder/volume/manager.py`); codes, messages
//! and JSON are those recorded of real ones, which `tests/sandbox_exchanges.rs` replays.

mod actions;
mod attachments;
mod backups;
mod connections;
mod create;
mod metadata;
mod others;
mod snapshots;
mod views;
mod volumes;

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

pub(super) use connections::{detach_all, restore};
pub(super) use create::resume;

use super::cloud::Cloud;
use super::faults::Effects;
use super::http::{ApiError, Reply, Request};
use super::keystone;
use super::options::{Behaviour, Generation};
use super::state::{State, Volume};

/// A call to Cinder, its token and version checked.
struct Context<'a> {
    cloud: &'a Arc<Cloud>,
    request: &'a Request,
    effects: &'a Effects,
    behaviour: Behaviour,
    project: String,
    user: String,
    /// Minor part of the microversion; `None` = v2.
    minor: Option<u32>,
}

impl Context<'_> {
    /// v3, and this microversion or a later one.
    fn at_least(&self, minor: u32) -> bool {
        self.minor.is_some_and(|asked| asked >= minor)
    }

    fn is_queens(&self) -> bool {
        self.behaviour.generation == Generation::Queens
    }

    /// Whether the filter `key` of a list, if it is there, lets this value through: as MySQL does,
    /// without regard to case.
    fn lets_through(&self, key: &str, value: &str) -> bool {
        let wanted = self.request.query(key);
        wanted.is_none_or(|wanted| value.to_lowercase() == wanted.to_lowercase())
    }

    /// `http://HOST:PORT/volume/v3/PROJECT`
    fn url(&self) -> String {
        let version = if self.minor.is_some() { "v3" } else { "v2" };
        format!("{}/volume/{version}/{}", self.request.base, self.project)
    }

    /// Looks at a volume of the project.
    fn volume<T>(
        &self,
        id: &str,
        look: impl FnOnce(&State, &Volume) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.cloud.store.read(|state| look(state, own_volume(state, &self.project, id)?))
    }

    /// Changes a volume of the project: check and change are one step, as Cinder's
    /// `conditional_update` is. Whatever `change` wants to refuse, it refuses before it changes.
    fn change_volume<T>(
        &self,
        id: &str,
        change: impl FnOnce(&mut State, Uuid) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.cloud.store.change(|state| {
            let id = own_volume(state, &self.project, id)?.id;
            change(state, id)
        })
    }
}

fn own_volume<'a>(state: &'a State, project: &str, id: &str) -> Result<&'a Volume, ApiError> {
    let found = Uuid::parse_str(id).ok().and_then(|id| state.volumes.get(&id));
    found
        .filter(|volume| volume.project_id == project)
        .ok_or_else(|| ApiError::not_found("Volume", id))
}

/// A volume whose id came from the state itself.
fn volume_mut(state: &mut State, id: Uuid) -> Result<&mut Volume, ApiError> {
    state.volumes.get_mut(&id).ok_or_else(|| ApiError::not_found("Volume", id))
}

/// The name of calls that lead nowhere.
const NOWHERE: &str = "volume-other";

/// webob's answer for those; not in Cinder's own form.
fn nowhere() -> Reply {
    Reply::json(
        404,
        &json!({
            "code": "404 Not Found",
            "message": "The resource could not be found.<br /><br />\n\n\n",
            "title": "Not Found",
        }),
    )
}

/// The call's name and its volume, for fault rules and the log. `path` is what follows `/volume`.
pub(super) fn classify(cloud: &Cloud, request: &Request, path: &[&str]) -> (String, Option<Uuid>) {
    let name = match (request.method.as_str(), path.get(2..).unwrap_or_default()) {
        ("GET", _) if path.len() < 2 => "volume-versions",
        ("GET", ["volumes"] | ["volumes", "detail"]) => "list-volumes",
        ("POST", ["volumes"]) => "create-volume",
        ("GET", ["volumes", _]) => "show-volume",
        ("PUT", ["volumes", _]) => "update-volume",
        ("DELETE", ["volumes", _]) => "delete-volume",
        ("GET", ["volumes", _, "metadata"]) => "show-metadata",
        ("POST", ["volumes", _, "metadata"]) => "set-metadata",
        ("PUT", ["volumes", _, "metadata"]) => "replace-metadata",
        ("GET", ["volumes", _, "metadata", _]) => "show-metadata-key",
        ("PUT", ["volumes", _, "metadata", _]) => "set-metadata-key",
        ("DELETE", ["volumes", _, "metadata", _]) => "delete-metadata-key",
        ("POST", ["volumes", _, "action"]) => &action_name(request),
        ("GET", ["snapshots"] | ["snapshots", "detail"]) => "list-snapshots",
        ("POST", ["snapshots"]) => "create-snapshot",
        ("GET", ["snapshots", _]) => "show-snapshot",
        ("DELETE", ["snapshots", _]) => "delete-snapshot",
        ("GET", ["backups"] | ["backups", "detail"]) => "list-backups",
        ("POST", ["backups"]) => "create-backup",
        ("GET", ["backups", _]) => "show-backup",
        ("POST", ["backups", _, "restore"]) => "restore-backup",
        ("GET", ["os-availability-zone"]) => "list-zones",
        ("GET", ["attachments"] | ["attachments", "detail"]) => "attachment-list",
        ("POST", ["attachments"]) => "attachment-create",
        ("GET", ["attachments", _]) => "attachment-show",
        ("PUT", ["attachments", _]) => "attachment-update",
        ("DELETE", ["attachments", _]) => "attachment-delete",
        ("POST", ["attachments", _, "action"]) => "attachment-complete",
        ("GET", ["types"]) => "list-types",
        ("GET", ["types", _]) => "show-type",
        ("GET", ["limits"]) => "limits",
        ("GET", ["messages"]) => "list-messages",
        ("GET", ["messages", _]) => "show-message",
        _ => NOWHERE,
    };
    (name.to_owned(), volume_of(cloud, request, path))
}

/// The action is the only key of the body.
fn action_name(request: &Request) -> String {
    let action = request.json().ok().and_then(|body| body.keys().next().cloned());
    action.unwrap_or_else(|| "volume-action".to_owned())
}

/// The volume that a request names, in its path, its body or through an attachment.
fn volume_of(cloud: &Cloud, request: &Request, path: &[&str]) -> Option<Uuid> {
    match path.get(2..)? {
        ["volumes", id, ..] => Uuid::parse_str(id).ok(),
        ["attachments", id, ..] => {
            let id = Uuid::parse_str(id).ok()?;
            cloud.store.read(|state| Some(state.attachments.get(&id)?.volume_id))
        }
        ["attachments"] => {
            let attachment = request.object("attachment").ok()?;
            Uuid::parse_str(attachment.get("volume_uuid")?.as_str()?).ok()
        }
        _ => None,
    }
}

pub(super) async fn handle(
    cloud: &Arc<Cloud>,
    request: &Request,
    call: &str,
    effects: &Effects,
) -> Reply {
    let id = format!("req-{}", Uuid::new_v4());
    let segments = request.segments();
    let version = Version::of(segments.get(1).copied(), &cloud.behaviour());
    let reply = match version {
        None => Reply::json(300, &versions(&cloud.behaviour(), &request.base)),
        Some(version) => {
            answer(cloud, request, call, effects, version).await.unwrap_or_else(|refusal| refusal)
        }
    };
    let reply = reply.header("X-Openstack-Request-Id", &id).header("X-Compute-Request-Id", id);
    match (version, microversion(request)) {
        // What stands before Cinder's own code knows no microversions.
        _ if reply.status == 401 || call == NOWHERE => reply,
        (Some(Version::V2), _) => reply,
        (_, asked) => reply
            .header("Openstack-Api-Version", format!("volume 3.{}", asked.unwrap_or(0)))
            .header("Vary", "OpenStack-API-Version"),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V2,
    V3,
    Unknown,
}

impl Version {
    fn of(segment: Option<&str>, behaviour: &Behaviour) -> Option<Self> {
        match segment? {
            "v3" => Some(Self::V3),
            "v2" if behaviour.legacy_apis => Some(Self::V2),
            _ => Some(Self::Unknown),
        }
    }
}

async fn answer(
    cloud: &Arc<Cloud>,
    request: &Request,
    call: &str,
    effects: &Effects,
    version: Version,
) -> Result<Reply, Reply> {
    let Some(token) = keystone::token(cloud, request) else {
        return Err(keystone::unauthorized(&request.base));
    };
    let behaviour = cloud.behaviour();
    let minor = match version {
        Version::V2 => None,
        Version::V3 => Some(supported(request, &behaviour).map_err(|error| error.reply())?),
        Version::Unknown => return Err(ApiError::no_such_path().reply()),
    };
    let segments = request.segments();
    let (Some(project), path) = (segments.get(2), segments.get(3..).unwrap_or_default()) else {
        return Ok(Reply::json(200, &versions(&behaviour, &request.base)));
    };
    if token.project_id.as_deref() != Some(project) {
        return Err(ApiError::bad("Malformed request url").reply());
    }
    if call == NOWHERE {
        return Err(nowhere());
    }
    let context = Context {
        cloud,
        request,
        effects,
        behaviour,
        project: (*project).to_owned(),
        user: token.user_id,
        minor,
    };
    dispatch(&context, call, path).await.map_err(|error| error.reply())
}

async fn dispatch(context: &Context<'_>, call: &str, path: &[&str]) -> Result<Reply, ApiError> {
    let id = path.get(1).copied().unwrap_or_default();
    let key = path.get(3).copied().unwrap_or_default();
    match call {
        "list-volumes" => volumes::list(context, path.len() == 2),
        "create-volume" => create::create(context),
        "show-volume" => volumes::show(context, id),
        "update-volume" => volumes::update(context, id),
        "delete-volume" => volumes::delete(context, id),
        "show-metadata" => metadata::show(context, id),
        "set-metadata" => metadata::set(context, id, false),
        "replace-metadata" => metadata::set(context, id, true),
        "show-metadata-key" => metadata::show_key(context, id, key),
        "set-metadata-key" => metadata::set_key(context, id, key),
        "delete-metadata-key" => metadata::delete_key(context, id, key),
        "list-snapshots" => snapshots::list(context, path.len() == 2),
        "create-snapshot" => snapshots::create(context),
        "show-snapshot" => snapshots::show(context, id),
        "delete-snapshot" => snapshots::delete(context, id),
        "list-backups" => backups::list(context, path.len() == 2),
        "create-backup" => backups::create(context),
        "show-backup" => backups::show(context, id),
        "restore-backup" => backups::restore(context, id),
        "list-zones" => Ok(others::zones()),
        "list-types" => Ok(others::types(context)),
        "show-type" => others::show_type(context, id),
        "limits" => Ok(others::limits(context)),
        "list-messages" if context.at_least(3) => Ok(others::messages(context)),
        "show-message" if context.at_least(3) => others::show_message(context, id),
        "attachment-list" if context.at_least(27) => attachments::list(context, path.len() == 2),
        "attachment-create" if context.at_least(27) => attachments::create(context).await,
        "attachment-show" if context.at_least(27) => attachments::show(context, id),
        "attachment-update" if context.at_least(27) => attachments::update(context, id).await,
        "attachment-delete" if context.at_least(27) => attachments::delete(context, id).await,
        "attachment-complete" if context.at_least(44) => attachments::complete(context, id),
        action if path.get(2) == Some(&"action") && path.first() == Some(&"volumes") => {
            actions::act(context, id, action).await
        }
        _ => Err(ApiError::no_such_path()),
    }
}

/// The minor part that the header asks for; without one, 3.0. `Err` holds what is no version.
fn asked(request: &Request, max: u32) -> Result<u32, String> {
    let Some(header) = request.header("OpenStack-API-Version") else { return Ok(0) };
    let Some(version) = header.split(',').find_map(|part| part.trim().strip_prefix("volume "))
    else {
        return Ok(0); // for other services
    };
    match version.trim() {
        "latest" => Ok(max),
        text => match text.split_once('.').map(|(major, minor)| (major.parse(), minor.parse())) {
            Some((Ok(3), Ok(minor))) => Ok(minor),
            _ => Err(text.to_owned()),
        },
    }
}

fn microversion(request: &Request) -> Option<u32> {
    asked(request, 0).ok()
}

fn supported(request: &Request, behaviour: &Behaviour) -> Result<u32, ApiError> {
    let max = behaviour.generation.max_minor();
    match asked(request, max) {
        Ok(minor) if minor <= max => Ok(minor),
        Ok(minor) => Err(ApiError::new(
            406,
            format!(
                "Version 3.{minor} is not supported by the API. Minimum is 3.0 and maximum is \
                 3.{max}."
            ),
        )),
        Err(text) => Err(ApiError::bad(format!(
            "API Version String {text} is of invalid format. Must be of format \
             MajorNum.MinorNum."
        ))),
    }
}

fn versions(behaviour: &Behaviour, base: &str) -> Value {
    let version = |number: u32, status: &str, max: &str, min: &str, updated: &str| {
        json!({
            "id": format!("v{number}.0"),
            "status": status,
            "version": max,
            "min_version": min,
            "updated": updated,
            "links": [
                {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
                {"rel": "self", "href": format!("{base}/volume/v{number}/")},
            ],
            "media-types": [{
                "base": "application/json",
                "type": format!("application/vnd.openstack.volume+json;version={number}"),
            }],
        })
    };
    let mut versions = Vec::new();
    if behaviour.legacy_apis {
        versions.push(version(2, "DEPRECATED", "", "", "2017-02-25T12:00:00Z"));
    }
    let max = format!("3.{}", behaviour.generation.max_minor());
    versions.push(version(3, "CURRENT", &max, "3.0", "2022-08-31T00:00:00Z"));
    json!({"versions": versions})
}
