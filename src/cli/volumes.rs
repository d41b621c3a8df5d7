//! `ls` and `inspect`: from the running daemon, which has a token; without one, from the cloud and
//! the journal.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::operate::{OperateError, post};
use super::progress::while_waiting;
use super::table::{cell, table};
use crate::config::Settings;
use crate::docker::Subject;
use crate::driver::journal;
use crate::driver::report::Report;
use crate::error_chain::Chain;
use crate::host::Paths;
use crate::openstack::Cloud;

/// A table of volumes, or JSON: the list of [`Report::list`].
///
/// # Errors
/// When neither daemon nor cloud gives an answer.
pub async fn ls(
    socket: &Path,
    settings: impl FnOnce() -> Result<Settings, String>,
    all: bool,
    as_json: bool,
) -> Result<String, OperateError> {
    let asked = async {
        match post(socket, Subject::List.path(), &json!({ "All": all })).await {
            Err(OperateError::NoDaemon { .. }) => {
                let (cloud, entries, cluster) = without_daemon(settings)?;
                let paths = Paths::default();
                let report =
                    Report { cloud: &cloud, paths: &paths, entries, cluster: cluster.as_deref() };
                report.list(all).await.map_err(|error| OperateError::Cloud(said(&error)))
            }
            answer => answer,
        }
    };
    let answer = while_waiting("asking Cinder for the volumes", asked).await?;
    if as_json {
        return Ok(format!("{:#}\n", answer["Volumes"]));
    }
    let rows: Vec<_> = answer["Volumes"].as_array().into_iter().flatten().map(row).collect();
    Ok(match rows.is_empty() {
        true if all => "There is no volume in the project.\n".to_owned(),
        true => "This driver has made no volume; --all lists those of others.\n".to_owned(),
        false => table(["NAME", "SIZE", "TYPE", "STATUS", "ATTACHED TO", "MOUNTED HERE"], &rows),
    })
}

fn row(volume: &Value) -> ([String; 6], Vec<String>) {
    let holders: Vec<&str> = volume["attached"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| {
            let host = one["host"].as_str().or(one["instance"].as_str());
            host.unwrap_or("an unknown host")
        })
        .collect();
    let name = match volume["name"].as_str() {
        Some(name) if !name.is_empty() => name,
        _ => volume["id"].as_str().unwrap_or_default(),
    };
    let size = match &volume["size"] {
        Value::Null => "-".to_owned(),
        size => format!("{size} GiB"),
    };
    let cells = [
        name.to_owned(),
        size,
        cell(&volume["type"]),
        cell(&volume["status"]),
        if holders.is_empty() { "-".to_owned() } else { holders.join(", ") },
        cell(&volume["mounted_at"]),
    ];
    (cells, Vec::new())
}

/// Everything about one volume, for people or as JSON ([`Report::inspect`]).
///
/// # Errors
/// As [`ls`]; when nobody knows the volume.
pub async fn inspect(
    socket: &Path,
    settings: impl FnOnce() -> Result<Settings, String>,
    name: &str,
    as_json: bool,
) -> Result<String, OperateError> {
    let asked = async {
        match post(socket, Subject::Inspect.path(), &json!({ "Name": name })).await {
            Err(OperateError::NoDaemon { .. }) => {
                let (cloud, entries, cluster) = without_daemon(settings)?;
                let paths = Paths::default();
                let report =
                    Report { cloud: &cloud, paths: &paths, entries, cluster: cluster.as_deref() };
                let found = report.inspect(name).await;
                found.map_err(|error| OperateError::Refused(said(&error.during("inspect", name))))
            }
            answer => answer,
        }
    };
    let answer = while_waiting(&format!("asking for {name}"), asked).await?;
    if as_json {
        return Ok(format!("{answer:#}\n"));
    }
    let mut text = String::new();
    for (part, title) in [
        ("cinder", "In Cinder"),
        ("here", "On this host"),
        ("journal", "In the journal of this host"),
    ] {
        text.push_str(title);
        match &answer[part] {
            Value::Null => match (&answer["cinder_error"], part) {
                (Value::String(error), "cinder") => text.push_str(&format!(": {error}\n")),
                _ => text.push_str(": nothing\n"),
            },
            value => {
                text.push_str(":\n");
                lines(value, 1, &mut text);
            }
        }
    }
    Ok(text)
}

/// Members as `key: value`, deeper ones further in; what is null or empty is left out.
fn lines(value: &Value, depth: usize, text: &mut String) {
    let indent = "    ".repeat(depth);
    let mut member = |key: &str, value: &Value| match value {
        Value::Null => {}
        Value::Array(list) if list.is_empty() => {}
        Value::Object(map) if map.is_empty() => {}
        Value::Array(_) | Value::Object(_) => {
            text.push_str(&format!("{indent}{key}:\n"));
            lines(value, depth + 1, text);
        }
        scalar => text.push_str(&format!("{indent}{key}: {}\n", cell(scalar))),
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| member(key, value)),
        Value::Array(list) => {
            for (number, value) in list.iter().enumerate() {
                member(&(number + 1).to_string(), value);
            }
        }
        scalar => text.push_str(&format!("{indent}{}\n", cell(scalar))),
    }
}

/// The cloud, the journal's entries, and the cluster of this host.
type Direct = (Cloud, Vec<Arc<journal::Entry>>, Option<String>);

fn without_daemon(
    settings: impl FnOnce() -> Result<Settings, String>,
) -> Result<Direct, OperateError> {
    let settings = settings().map_err(OperateError::Cloud)?;
    let cloud = Cloud::new(&settings.cloud).map_err(|error| OperateError::Cloud(said(&error)))?;
    let entries = match journal::peek(&settings.driver.state_dir) {
        Ok(entries) => {
            entries.into_iter().filter_map(|(_, entry)| entry.ok().map(Arc::new)).collect()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(OperateError::Terminal(error)),
    };
    Ok((cloud, entries, settings.driver.cluster))
}

fn said(error: &(dyn std::error::Error + 'static)) -> String {
    Chain(error).to_string()
}
