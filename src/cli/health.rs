//! `health`: one line and an exit code, for monitoring (the habits of Nagios and its kin).

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::operate::post;
use crate::docker::Subject;

/// How long the daemon may take; systemd may have to start it first.
const LIMIT: Duration = Duration::from_secs(10);
/// … when it has to ask Cinder and look at the devices.
const DEEP_LIMIT: Duration = Duration::from_secs(45);

/// Asks the daemon whether it is well, prints one line (or the daemon's JSON), and answers 0 when
/// all is well, 1 when somebody should look, 2 when containers have no volumes or will have none.
///
/// # Errors
/// When nothing can be printed.
pub async fn health(socket: &Path, deep: bool, as_json: bool) -> io::Result<ExitCode> {
    let limit = if deep { DEEP_LIMIT } else { LIMIT };
    let body = json!({ "Deep": deep });
    let asked = timeout(limit, post(socket, Subject::Health.path(), &body)).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => unwell(&crate::error_chain::Chain(&error).to_string()),
        Err(_) => unwell(&format!("the daemon does not answer within {} s", limit.as_secs())),
    };
    let mut out = io::stdout().lock();
    if as_json {
        writeln!(out, "{answer:#}")?;
    } else {
        writeln!(out, "{}", line(&answer))?;
    }
    Ok(match answer["status"].as_str() {
        Some("ok") => ExitCode::SUCCESS,
        Some("warning") => ExitCode::from(1),
        _ => ExitCode::from(2),
    })
}

fn unwell(what: &str) -> Value {
    json!({ "status": "critical", "says": [what] })
}

fn line(answer: &Value) -> String {
    let says: Vec<String> = answer["says"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        // One line, whatever an error holds.
        .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let status = answer["status"].as_str().unwrap_or("critical").to_uppercase();
    if says.is_empty() {
        let mounts = answer["mounts"].as_u64().unwrap_or_default();
        let left = answer["backlog"]["to_release"].as_u64().unwrap_or_default();
        return format!("{status}: {mounts} volumes mounted, {left} to be released");
    }
    format!("{status}: {}", says.join("; "))
}
