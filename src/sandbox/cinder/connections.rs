//! Makes volumes reachable for a host, and unreachable again: what `cinder-volume` and its driver
//! do in the real one.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Context, volume_mut};
use crate::sandbox::cloud::Cloud;
use crate::sandbox::http::ApiError;
use crate::sandbox::state::{Chap, Export, State, Volume, secret};
use crate::sandbox::storage::Targets;

/// A device that somebody has open for a moment (udev looks at it) is gone after the last close.
const GONE_WITHIN: Duration = Duration::from_secs(2);
/// Of targets that are on paper only: an address that is nobody's (TEST-NET-1).
const PAPER_PORTAL: &str = "192.0.2.1:3260";
const GONE_POLL: Duration = Duration::from_millis(5);

/// Whose connection it is in the actions flow: the host and its initiator.
pub(super) fn of_connector(connector: &Map<String, Value>) -> String {
    let text = |key| connector.get(key).and_then(Value::as_str).unwrap_or("-");
    format!("{} {}", text("host"), text("initiator"))
}

/// Refuses a connector that the back end could not serve.
pub(super) fn check(context: &Context<'_>, connector: &Map<String, Value>) -> Result<(), ApiError> {
    if context.cloud.targets.is_none() && !context.behaviour.paper_exports {
        return Ok(()); // a loop device is for whoever is on this host
    }
    match connector.get("initiator").and_then(Value::as_str) {
        Some(initiator) if !initiator.is_empty() => Ok(()),
        _ => Err(ApiError::invalid_input("Connector doesn't have required information: initiator")),
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Failure {
    Refused(ApiError),
    Backend(io::Error),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Backend(error)
    }
}

/// Makes the volume reachable for `connection`; again for the same one answers the same. The
/// caller holds the volume's lock. Answers `{"driver_volume_type", "data"}`.
pub(super) async fn open(
    context: &Context<'_>,
    id: Uuid,
    connection: &str,
    read_only: bool,
) -> Result<Map<String, Value>, Failure> {
    let cloud = context.cloud;
    let (volume, before) = cloud.store.change(|state| {
        let volume = volume_mut(state, id)?;
        if volume.chap.is_none() {
            // The driver's `provider_auth`: made once, and written to the volume's row.
            volume.chap = Some(Chap { username: secret(20), password: secret(16) });
            volume.touch();
        }
        let volume = volume.clone();
        Ok::<_, ApiError>((volume, find(state, id, connection).cloned()))
    })?;
    let read_only = read_only || access_mode(&volume) == "ro";
    if context.behaviour.paper_exports {
        return Ok(target(context, &volume, PAPER_PORTAL));
    }
    let device = match &cloud.targets {
        Some(targets) => {
            let chap = volume.chap.as_ref().ok_or_else(ApiError::internal)?;
            targets.open(id, &cloud.storage.volume(id), chap).await?;
            None
        }
        None => match before.filter(|one| one.read_only == read_only) {
            Some(Export { device: Some(device), .. }) => return Ok(local(&volume, &device)),
            _ => {
                close(cloud, id, |one| one.connection == connection).await?;
                Some(cloud.blocking(move |storage| storage.attach(id, read_only)).await?)
            }
        },
    };
    let info = match (&device, &cloud.targets) {
        (Some(device), _) => local(&volume, device),
        (None, Some(targets)) => target(context, &volume, &targets.portal()),
        (None, None) => return Err(ApiError::internal().into()),
    };
    let connection = connection.to_owned();
    let export = Export { volume_id: id, connection, read_only, device };
    cloud.store.change(|state| {
        if !state.exports.contains(&export) {
            state.exports.push(export);
        }
    });
    Ok(info)
}

fn find<'a>(state: &'a State, id: Uuid, connection: &str) -> Option<&'a Export> {
    state.exports.iter().find(|one| one.volume_id == id && one.connection == connection)
}

/// Cinder says the mode of the volume, whatever the attachment asked for.
fn access_mode(volume: &Volume) -> &str {
    let mode = volume.admin_metadata.get("attached_mode").map(String::as_str);
    let read_only = volume.admin_metadata.get("readonly").is_some_and(|flag| flag == "True");
    mode.unwrap_or(if read_only { "ro" } else { "rw" })
}

/// An iSCSI target as tgt exports it: LUN 0 is the controller.
fn target(context: &Context<'_>, volume: &Volume, portal: &str) -> Map<String, Value> {
    let mut data = Map::from_iter([
        ("target_discovered".to_owned(), false.into()),
        ("target_portal".to_owned(), portal.into()),
        ("target_iqn".to_owned(), Targets::name(volume.id).into()),
        ("target_lun".to_owned(), 1.into()),
        ("volume_id".to_owned(), volume.id.to_string().into()),
        ("encrypted".to_owned(), volume.encrypted.into()),
        ("qos_specs".to_owned(), Value::Null),
        ("access_mode".to_owned(), access_mode(volume).into()),
    ]);
    if let Some(chap) = &volume.chap {
        data.insert("auth_method".to_owned(), "CHAP".into());
        data.insert("auth_username".to_owned(), chap.username.clone().into());
        data.insert("auth_password".to_owned(), chap.password.clone().into());
    }
    if !context.is_queens() {
        data.insert("cacheable".to_owned(), false.into());
    }
    connection_info("iscsi", data)
}

fn connection_info(kind: &str, data: Map<String, Value>) -> Map<String, Value> {
    Map::from_iter([
        ("driver_volume_type".to_owned(), kind.into()),
        ("data".to_owned(), Value::Object(data)),
    ])
}

fn local(volume: &Volume, device: &Path) -> Map<String, Value> {
    let data = Map::from_iter([
        ("device_path".to_owned(), json!(device)),
        ("volume_id".to_owned(), volume.id.to_string().into()),
        ("encrypted".to_owned(), volume.encrypted.into()),
        ("qos_specs".to_owned(), Value::Null),
        ("access_mode".to_owned(), access_mode(volume).into()),
        ("cacheable".to_owned(), false.into()),
    ]);
    connection_info("local", data)
}

/// Takes the connections of a volume back that `which` picks. The caller holds the volume's lock.
/// [`io::ErrorKind::ResourceBusy`] when a device is mounted or held; that one stays.
pub(super) async fn close(
    cloud: &Arc<Cloud>,
    id: Uuid,
    which: impl Fn(&Export) -> bool,
) -> io::Result<()> {
    let picked: Vec<Export> = cloud.store.read(|state| {
        let of_volume = state.exports.iter().filter(|one| one.volume_id == id && which(one));
        of_volume.cloned().collect()
    });
    for export in picked {
        let last = cloud
            .store
            .read(|state| state.exports.iter().filter(|one| one.volume_id == id).nth(1).is_none());
        match (export.device.clone(), &cloud.targets) {
            (Some(device), _) => detach(cloud, id, device).await?,
            (None, Some(targets)) if last => targets.close(id).await?,
            (None, _) => {} // others use the same target
        }
        cloud.store.change(|state| state.exports.retain(|one| *one != export));
    }
    Ok(())
}

/// Takes all connections of a volume back. The caller holds the volume's lock.
pub(super) async fn remove_all(cloud: &Arc<Cloud>, id: Uuid) -> io::Result<()> {
    close(cloud, id, |_| true).await
}

/// Detaches the device and waits until it is gone.
async fn detach(cloud: &Arc<Cloud>, id: Uuid, device: PathBuf) -> io::Result<()> {
    let deadline = Instant::now() + GONE_WITHIN;
    let cuts_off = cloud.behaviour().cuts_off;
    loop {
        let device = device.clone();
        let gone = cloud
            .blocking(move |storage| {
                match storage.detach(id, &device) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy && cuts_off => {
                        storage.cut_off(id, &device)?;
                    }
                    other => other?,
                }
                storage.is_gone(id, &device)
            })
            .await?;
        if gone || Instant::now() > deadline {
            return Ok(()); // what is still open goes with its last close
        }
        tokio::time::sleep(GONE_POLL).await;
    }
}

/// At the start: finds the loop devices of our volumes again, exports anew what a reboot took,
/// and removes devices that nobody was told of.
pub(in crate::sandbox) async fn restore(cloud: &Arc<Cloud>) -> io::Result<()> {
    let exports: Vec<Export> = cloud.store.read(|state| state.exports.clone());
    let found = cloud.blocking(|storage| storage.attached()).await?;
    for (id, device) in &found {
        let known = |one: &Export| one.volume_id == *id && one.device.as_ref() == Some(device);
        if !exports.iter().any(known) {
            let (id, device) = (*id, device.clone());
            if let Err(error) = cloud.blocking(move |storage| storage.detach(id, &device)).await {
                tracing::warn!(%id, %error, "a loop device of the sandbox is held by somebody");
            }
        }
    }
    for export in exports {
        // A volume whose file is gone must not keep the others from being served.
        if let Err(error) = restore_export(cloud, &export, &found).await {
            tracing::warn!(id = %export.volume_id, %error, "the sandbox cannot export a volume again");
        }
    }
    Ok(())
}

async fn restore_export(
    cloud: &Arc<Cloud>,
    export: &Export,
    found: &[(Uuid, PathBuf)],
) -> io::Result<()> {
    let (id, read_only) = (export.volume_id, export.read_only);
    let Some(before) = export.device.clone() else { return restore_target(cloud, id).await };
    if !found.contains(&(id, before)) {
        let device = cloud.blocking(move |storage| storage.attach(id, read_only)).await?;
        cloud.store.change(|state| moved(state, export, &device));
    }
    Ok(())
}

/// A target is as persistent as its tgtd.
async fn restore_target(cloud: &Arc<Cloud>, id: Uuid) -> io::Result<()> {
    let chap = cloud.store.read(|state| state.volumes.get(&id)?.chap.clone());
    match (&cloud.targets, chap) {
        (Some(targets), Some(chap)) => targets.open(id, &cloud.storage.volume(id), &chap).await,
        _ => Ok(()),
    }
}

/// Takes all connections of all volumes back.
pub(in crate::sandbox) async fn detach_all(cloud: &Arc<Cloud>) -> io::Result<()> {
    let volumes: BTreeSet<Uuid> =
        cloud.store.read(|state| state.exports.iter().map(|one| one.volume_id).collect());
    for id in volumes {
        let _lock = cloud.lock_volume(id).await;
        remove_all(cloud, id).await?;
    }
    cloud.store.save().await
}

/// A connection has another device now.
fn moved(state: &mut State, export: &Export, device: &Path) {
    for one in state.exports.iter_mut().filter(|one| *one == export) {
        one.device = Some(device.to_owned());
    }
    let attachment = Uuid::parse_str(&export.connection).ok();
    let attachment = attachment.and_then(|id| state.attachments.get_mut(&id));
    if let Some(info) = attachment.and_then(|row| row.connection_info.as_mut()) {
        info.insert("device_path".to_owned(), json!(device));
    }
}
