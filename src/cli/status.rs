//! `status`: what this host holds, by the journal's word and the kernel's. Works beside a running
//! daemon and without one.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::engines;
use super::table::{cell, table};
use crate::driver::journal;
use crate::driver::report::{HostFacts, held_here};
use crate::host::Paths;

/// A table or JSON of what is mounted here, by whom, and what is still to be undone.
///
/// # Errors
/// When the journal or `/proc` cannot be read.
pub async fn status(
    state_dir: &Path,
    socket: &Path,
    paths: &Paths,
    as_json: bool,
) -> io::Result<String> {
    let entries = match journal::peek(state_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let facts = HostFacts::read(paths)?;
    let (mut rows, mut unanswered) = (Vec::new(), Vec::new());
    for (path, entry) in entries {
        match entry {
            Ok(entry) if entry.has_liabilities() => rows.push(held_here(&entry, &facts)?),
            Ok(entry) if entry.unanswered.is_some() => unanswered.push(entry.shown_name()),
            Ok(_) => {}
            Err(reason) => rows.push(json!({
                "name": path.file_stem().map(|stem| stem.to_string_lossy()),
                "state": "unusable journal entry", "file": path, "last_error": reason,
            })),
        }
    }
    rows.sort_by_cached_key(|row| row["name"].to_string());
    if containers(&rows).next().is_some() {
        let names = engines::names().await;
        rows.iter_mut().for_each(|row| name_containers(row, &names));
    }
    if as_json {
        return Ok(format!("{}\n", Value::Array(rows)));
    }
    let mut text = match rows.is_empty() {
        true => "No volume is mounted or attached on this host.\n".to_owned(),
        false => table(
            ["NAME", "STATE", "USERS", "SINCE", "DEVICE", "MOUNTPOINT"],
            &rows.iter().map(shown).collect::<Vec<_>>(),
        ),
    };
    // Writing to a String cannot fail.
    if !unanswered.is_empty() {
        let _ = writeln!(
            text,
            "A reserve was never answered, and is watched: {}.",
            unanswered.join(", ")
        );
    }
    let connected = std::os::unix::net::UnixStream::connect(socket);
    if connected.is_err_and(|error| error.kind() != io::ErrorKind::PermissionDenied) {
        let _ = writeln!(text, "The daemon does not run: nobody listens on {}.", socket.display());
    }
    Ok(text)
}

/// The ids of all containers.
fn containers(rows: &[Value]) -> impl Iterator<Item = &str> {
    let all = rows.iter().flat_map(|row| row["containers"].as_array().into_iter().flatten());
    all.filter_map(|container| container["id"].as_str())
}

fn name_containers(row: &mut Value, names: &BTreeMap<String, String>) {
    for container in row["containers"].as_array_mut().into_iter().flatten() {
        let name = container["id"].as_str().and_then(|id| names.get(id)).cloned();
        container["name"] = name.into();
    }
}

/// A row's cells, and the lines below it.
fn shown(row: &Value) -> ([String; 6], Vec<String>) {
    let mut cells =
        ["name", "state", "users", "since", "device", "mountpoint"].map(|key| cell(&row[key]));
    // Adopted mounts were there before.
    cells[3] = match row["since"].as_u64() {
        None | Some(0) => "-".to_owned(),
        Some(seconds) => moment(seconds),
    };
    let mut details = Vec::new();
    let list = |key: &str| row[key].as_array().into_iter().flatten();
    let users: Vec<String> = list("containers").map(user).collect();
    if !users.is_empty() {
        details.push(format!("used by: {}", users.join(", ")));
    }
    if let Some(attachment) = row["attachment"].as_str() {
        details.push(format!("attachment: {attachment} of volume {}", cell(&row["id"])));
    }
    for session in list("sessions") {
        details.push(format!(
            "session: {} LUN {} at {}, {}",
            cell(&session["target"]),
            session["lun"],
            cell(&session["portal"]),
            session["state"].as_str().unwrap_or("there is none")
        ));
    }
    for left in list("to_do").filter_map(Value::as_str) {
        details.push(format!("to do: {left}"));
    }
    if let Some(error) = row["last_error"].as_str() {
        details.push(format!("last error: {error}"));
    }
    (cells, details)
}

/// `web-1 (0123456789ab)`, or the process where no container is known.
fn user(holder: &Value) -> String {
    match (holder["name"].as_str(), holder["id"].as_str()) {
        (Some(name), Some(id)) => format!("{name} ({})", short(id)),
        (None, Some(id)) => format!("container {}", short(id)),
        _ => format!("process {} ({})", holder["pid"], cell(&holder["command"])),
    }
}

/// As Docker shows an id.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// `2026-11-25 14:02 UTC`
fn moment(seconds: u64) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH);
    let text = humantime::format_rfc3339_seconds(at).to_string();
    let (day, time) = text.split_once('T').unwrap_or((&text, ""));
    format!("{day} {} UTC", time.get(..5).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_day_and_a_time() {
        assert_eq!(moment(1_795_400_639), "2026-11-23 02:23 UTC");
        assert_eq!(moment(0), "1970-01-01 00:00 UTC");
    }

    #[test]
    fn users_are_named_as_well_as_they_are_known() {
        let id = "0123456789abcdef".repeat(4);
        let mut row = json!({ "containers": [{ "id": id }, { "pid": 7, "command": "postgres" }] });
        name_containers(&mut row, &BTreeMap::from([(id, "web-1".to_owned())]));
        let (_, details) = shown(&row);
        assert_eq!(details, ["used by: web-1 (0123456789ab), process 7 (postgres)"]);
        name_containers(&mut row, &BTreeMap::new());
        let (_, details) = shown(&row);
        assert!(details[0].contains("container 0123456789ab,"), "{details:?}");
    }
}
