//! `snapshots`: those of a volume, or of the project, as Cinder lists them.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::config::CloudSettings;
use crate::openstack::{Cloud, CloudError, Snapshot, Volume};
use crate::shown::shown;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotsError {
    /// Keystone or Cinder.
    #[error("cannot list snapshots")]
    Cloud(#[from] CloudError),
    /// No such volume.
    #[error("no volume \"{0}\" in Cinder")]
    NoVolume(String),
    /// The text could not be made.
    #[error("cannot write the list")]
    Text(#[from] std::fmt::Error),
}

/// What is kept of each volume.
struct Named(Uuid, String);

impl From<Volume> for Named {
    fn from(volume: Volume) -> Self {
        Self(volume.id, volume.name)
    }
}

/// A table or JSON of the snapshots of a volume, or of all, newest first.
pub async fn snapshots(
    settings: &CloudSettings,
    name: Option<&str>,
    as_json: bool,
) -> Result<String, SnapshotsError> {
    let cloud = Cloud::new(settings)?;
    let (mut found, names) = match name {
        Some(name) => of_volume(&cloud, name).await?,
        None => (cloud.snapshots(None).await?, names(&cloud).await?),
    };
    found.sort_by(|one, other| other.created_at.cmp(&one.created_at));
    if as_json {
        let rows: Vec<Value> = found.iter().map(|one| row(one, &names)).collect();
        return Ok(format!("{}\n", Value::Array(rows)));
    }
    if found.is_empty() {
        return Ok("There are no snapshots.\n".to_owned());
    }
    table(&found, &names)
}

/// Those of every volume of this name, or of the volume with this id.
async fn of_volume(
    cloud: &Cloud,
    name: &str,
) -> Result<(Vec<Snapshot>, HashMap<String, String>), SnapshotsError> {
    let mut volumes = cloud.volumes_named(name).await?;
    if let (true, Ok(id)) = (volumes.is_empty(), Uuid::parse_str(name)) {
        match cloud.volume(id).await {
            Err(error) if error.is_not_found() => {}
            found => volumes.push(found?),
        }
    }
    if volumes.is_empty() {
        return Err(SnapshotsError::NoVolume(shown(name)));
    }
    let mut found = Vec::new();
    for volume in &volumes {
        found.extend(cloud.snapshots(Some(volume.id)).await?);
    }
    let names = volumes.into_iter().map(|volume| (volume.id.to_string(), volume.name)).collect();
    Ok((found, names))
}

/// The names of all volumes, by id.
async fn names(cloud: &Cloud) -> Result<HashMap<String, String>, CloudError> {
    let mut names = HashMap::new();
    let mut next = None;
    loop {
        let page = cloud.list_page::<Named>(next.as_deref()).await?;
        names.extend(page.volumes.into_iter().map(|Named(id, name)| (id.to_string(), name)));
        match page.next {
            Some(following) => next = Some(following),
            None => return Ok(names),
        }
    }
}

fn row(snapshot: &Snapshot, names: &HashMap<String, String>) -> Value {
    json!({
        "name": snapshot.name,
        "id": snapshot.id,
        "volume": names.get(&snapshot.volume_id),
        "volume_id": snapshot.volume_id,
        "size": snapshot.size,
        "created_at": format!("{}Z", snapshot.created_at),
        "status": snapshot.status,
    })
}

fn table(
    snapshots: &[Snapshot],
    names: &HashMap<String, String>,
) -> Result<String, SnapshotsError> {
    const TITLES: [&str; 6] = ["NAME", "ID", "VOLUME", "GIB", "TAKEN (UTC)", "STATUS"];
    let lines: Vec<[String; 6]> = snapshots
        .iter()
        .map(|one| {
            let volume = names.get(&one.volume_id).filter(|name| !name.is_empty());
            let taken = one.created_at.split('.').next().unwrap_or_default();
            [
                shown(&one.name),
                one.id.clone(),
                shown(volume.unwrap_or(&one.volume_id)),
                one.size.to_string(),
                shown(taken),
                shown(&one.status),
            ]
        })
        .collect();
    let mut text = String::new();
    let widths: Vec<usize> = (0..TITLES.len())
        .map(|column| {
            let cells = lines.iter().map(|line| line[column].chars().count());
            cells.chain([TITLES[column].len()]).max().unwrap_or_default()
        })
        .collect();
    for line in [TITLES.map(str::to_owned)].iter().chain(&lines) {
        let mut shown = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            write!(shown, "{cell:width$}   ")?;
        }
        writeln!(text, "{}", shown.trim_end())?;
    }
    Ok(text)
}
