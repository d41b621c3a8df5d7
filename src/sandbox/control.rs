//! `/sandbox`: faults, the request log and the table of volumes, for people and for tests that
//! run the sandbox as a process of its own. Needs no token.
//!
//! | | |
//! | --- | --- |
//! | `POST /sandbox/faults` | adds a rule (see [`faults`](super::faults)) |
//! | `GET`, `DELETE /sandbox/faults` | shows, forgets all rules |
//! | `GET`, `DELETE /sandbox/requests` | shows, forgets the log; `?call=NAME` picks |
//! | `GET /sandbox/connections` | TCP connections accepted |
//! | `GET`, `PUT /sandbox/behaviour` | shows, changes the behaviour; keys left out keep their value |
//! | `GET /sandbox/volumes` | a table, as `cinder list` prints it |
//! | `POST /sandbox/volumes` | many volumes at once: `{"count": 10000, "name": "web-"}` |
//! | `POST /sandbox/volumes/ID` | forces fields of a volume: `{"status": "error"}` |
//! | `GET /sandbox/config` | keys for a config file that uses this sandbox |

use std::sync::Arc;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::cloud::Cloud;
use super::faults::Rule;
use super::http::{ApiError, Reply, Request};
use super::options::Behaviour;
use super::state::{State, Volume};

/// The columns of the table.
const COLUMNS: [&str; 6] = ["ID", "Status", "Name", "Size", "Type", "Attached to"];

pub(super) async fn handle(cloud: &Arc<Cloud>, request: &Request) -> Reply {
    let segments = request.segments();
    let answered = match (request.method.as_str(), segments.get(1..).unwrap_or_default()) {
        ("POST", ["faults"]) => add_rule(cloud, request),
        ("GET", ["faults"]) => Ok(Reply::json(200, &json!(cloud.faults.rules()))),
        ("DELETE", ["faults"]) => {
            cloud.faults.clear();
            Ok(Reply::empty(204))
        }
        ("GET", ["requests"]) => {
            let mut entries = cloud.faults.requests();
            if let Some(call) = request.query("call") {
                entries.retain(|entry| entry.call == call);
            }
            Ok(Reply::json(200, &json!(entries)))
        }
        ("DELETE", ["requests"]) => {
            cloud.faults.clear_requests();
            Ok(Reply::empty(204))
        }
        ("GET", ["connections"]) => Ok(Reply::json(200, &json!(cloud.faults.connections()))),
        ("GET", ["behaviour"]) => Ok(Reply::json(200, &json!(cloud.behaviour()))),
        ("PUT", ["behaviour"]) => change_behaviour(cloud, request),
        ("GET", ["volumes"]) => Ok(Reply::text(200, cloud.store.read(table))),
        ("POST", ["volumes"]) => fill_as_asked(cloud, request),
        ("POST", ["volumes", id]) => force(cloud, request, id),
        ("GET", ["config"]) => Ok(Reply::json(200, &Value::Object(config(cloud, &request.base)))),
        _ => Err(ApiError::no_such_path()),
    };
    cloud.save_or_log().await;
    answered.unwrap_or_else(|error| error.reply())
}

fn bad(error: &serde_json::Error) -> ApiError {
    ApiError::bad(error.to_string())
}

fn add_rule(cloud: &Cloud, request: &Request) -> Result<Reply, ApiError> {
    let rule: Rule = serde_json::from_slice(&request.body).map_err(|error| bad(&error))?;
    cloud.faults.add(rule);
    Ok(Reply::empty(204))
}

fn change_behaviour(cloud: &Cloud, request: &Request) -> Result<Reply, ApiError> {
    let mut merged = serde_json::to_value(cloud.behaviour()).map_err(|error| bad(&error))?;
    for (key, value) in request.json()? {
        merged[key] = value;
    }
    let behaviour: Behaviour = serde_json::from_value(merged).map_err(|error| bad(&error))?;
    cloud.set_behaviour(behaviour);
    Ok(Reply::empty(204))
}

/// Sets fields of a volume's row, whatever Cinder's rules say.
pub(super) fn force_fields(
    cloud: &Cloud,
    id: Uuid,
    fields: &Map<String, Value>,
) -> Result<(), String> {
    cloud.store.change(|state| {
        let volume = state.volumes.get_mut(&id).ok_or_else(|| format!("no volume {id}"))?;
        let mut row = serde_json::to_value(&*volume).map_err(|error| error.to_string())?;
        for (key, value) in fields {
            if key == "id" || row.get(key).is_none() {
                return Err(format!("a volume has no field {key} that could be set"));
            }
            row[key] = value.clone();
        }
        let mut forced: Volume = serde_json::from_value(row).map_err(|error| error.to_string())?;
        if !fields.contains_key("updated_at") {
            forced.touch();
        }
        *volume = forced;
        Ok(())
    })
}

fn force(cloud: &Cloud, request: &Request, id: &str) -> Result<Reply, ApiError> {
    let id = Uuid::parse_str(id).map_err(|_| ApiError::not_found("Volume", id))?;
    force_fields(cloud, id, &request.json()?).map_err(ApiError::bad)?;
    Ok(Reply::empty(204))
}

fn fill_as_asked(cloud: &Cloud, request: &Request) -> Result<Reply, ApiError> {
    let body = request.json()?;
    let count = body.get("count").and_then(Value::as_u64).unwrap_or(1);
    let name = body.get("name").and_then(Value::as_str).unwrap_or("volume-");
    Ok(Reply::json(200, &json!(fill(cloud, count, name))))
}

/// Makes many volumes that have no file: for lists. No quota counts.
pub(super) fn fill(cloud: &Cloud, count: u64, name: &str) -> Vec<Uuid> {
    cloud.store.change(|state| {
        let (Some(user), Some(project)) = (state.users.first(), state.projects.first()) else {
            return Vec::new();
        };
        let (user, project) = (user.id.clone(), project.id.clone());
        let start = super::clock::now();
        let volumes = (0..count).zip(start..).map(|(number, moment)| Volume {
            id: Uuid::new_v4(),
            project_id: project.clone(),
            user_id: user.clone(),
            name: Some(format!("{name}{number}")),
            description: None,
            size: 1,
            status: "available".to_owned(),
            previous_status: None,
            attach_status: "detached".to_owned(),
            volume_type: "lvmdriver-1".to_owned(),
            availability_zone: "nova".to_owned(),
            metadata: std::collections::BTreeMap::new(),
            admin_metadata: std::collections::BTreeMap::new(),
            bootable: false,
            multiattach: false,
            encrypted: false,
            snapshot_id: None,
            source_volid: None,
            created_at: super::clock::cinder(moment),
            updated_at: None,
            chap: None,
            stuck: false,
        });
        let volumes: Vec<Volume> = volumes.collect();
        let ids = volumes.iter().map(|volume| volume.id).collect();
        state.volumes.extend(volumes.into_iter().map(|volume| (volume.id, volume)));
        ids
    })
}

/// Keys for a config file: user, password and project of the first user.
pub(super) fn config(cloud: &Cloud, base: &str) -> Map<String, Value> {
    cloud.store.read(|state| {
        let user = state.users.first();
        let text = |value: Option<&String>| Value::from(value.cloned().unwrap_or_default());
        Map::from_iter([
            ("Endpoint".to_owned(), format!("{base}/v3").into()),
            ("Username".to_owned(), text(user.map(|user| &user.name))),
            ("Password".to_owned(), text(user.map(|user| &user.password))),
            ("TenantID".to_owned(), text(state.projects.first().map(|project| &project.id))),
            ("DomainName".to_owned(), "Default".into()),
            ("Region".to_owned(), super::keystone::REGION.into()),
        ])
    })
}

/// `cinder list` for those who have no client.
fn table(state: &State) -> String {
    let mut volumes: Vec<&Volume> = state.volumes.values().collect();
    volumes.sort_by(|a, b| b.created_at.cmp(&a.created_at));
    let rows = volumes.into_iter().map(|volume| {
        let holders: Vec<&str> = state
            .attachments_of(volume.id)
            .filter(|row| row.attach_status == "attached")
            .filter_map(|row| row.instance_uuid.as_deref().or(row.mountpoint.as_deref()))
            .collect();
        [
            volume.id.to_string(),
            volume.status.clone(),
            volume.name.clone().unwrap_or_else(|| "-".to_owned()),
            volume.size.to_string(),
            volume.volume_type.clone(),
            holders.join(", "),
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(COLUMNS.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(|column| width(column).unwrap_or(0)).collect();
    let rule: String = widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect();
    let mut text = format!("{rule}+\n");
    for (number, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths);
        text.extend(cells.map(|(cell, width)| format!("| {cell:width$} ", width = *width)));
        text.push_str("|\n");
        if number == 0 {
            text.push_str(&format!("{rule}+\n"));
        }
    }
    text.push_str(&format!("{rule}+\n"));
    text
}
