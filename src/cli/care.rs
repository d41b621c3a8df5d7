//! `adopt`, and `release --host`: requests that are about more than one named volume.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::operate::{OperateError, is_typed, operate, post, show};
use super::progress::while_waiting;
use super::{AdoptArgs, ReleaseArgs};
use crate::docker::{Arguments, Operation, Subject};

/// Takes a volume made elsewhere into the driver's care, once the operator has said its id.
///
/// # Errors
/// When the daemon cannot be asked or refuses, or the operator does not confirm.
pub async fn adopt(socket: &Path, args: &AdoptArgs) -> Result<(), OperateError> {
    let ask = async |id: Option<&str>| {
        let body = json!({ "Name": args.name, "NewName": args.new_name, "ID": id });
        let what = format!("the daemon looks at what is on {}", args.name);
        while_waiting(&what, post(socket, Subject::Adopt.path(), &body)).await
    };
    let id = match &args.id {
        Some(id) => id.clone(),
        None => {
            let plan = ask(None).await?;
            let id = plan["ID"].as_str().unwrap_or_default();
            show(&plan)?;
            if !is_typed(&format!("Type the volume's id ({id}) to go on: "), id)? {
                return Err(OperateError::NotConfirmed);
            }
            id.to_owned()
        }
    };
    show(&ask(Some(&id)).await?)?;
    writeln!(io::stdout(), "Done.")?;
    Ok(())
}

/// Takes one volume, or all of a host that is gone, from who has them.
///
/// # Errors
/// As [`adopt`]; and when some of several were not released.
pub async fn release(socket: &Path, args: &ReleaseArgs) -> Result<(), OperateError> {
    match (&args.name, &args.host) {
        (Some(name), _) => {
            let arguments = Arguments { id: args.id.clone(), ..Arguments::default() };
            operate(socket, Operation::Release, name, arguments).await
        }
        (None, Some(host)) => release_host(socket, host, args.confirm.as_deref()).await,
        // clap wants one of the two.
        (None, None) => Ok(()),
    }
}

async fn release_host(
    socket: &Path,
    host: &str,
    confirmed: Option<&str>,
) -> Result<(), OperateError> {
    let everything = json!({ "All": true });
    let list = post(socket, Subject::List.path(), &everything);
    let list = while_waiting("asking Cinder for all volumes", list).await?;
    let volumes: Vec<&Value> = list["Volumes"].as_array().into_iter().flatten().collect();
    let of_host = volumes.iter().filter(|row| holders(row).any(|holder| holder == Some(host)));
    // What another host has as well is not taken from it unasked.
    let (held, shared): (Vec<&Value>, Vec<&Value>) =
        of_host.copied().partition(|row| holders(row).all(|holder| holder == Some(host)));
    let mut out = io::stdout();
    for row in &held {
        writeln!(out, "- {}", shown(row))?;
    }
    for row in shared {
        writeln!(out, "- {} stays: others have it, too", shown(row))?;
    }
    if held.is_empty() {
        return Err(OperateError::Refused(match known_hosts(&volumes) {
            hosts if hosts.is_empty() => {
                format!("Cinder shows no volume attached to {host}, nor to any other host")
            }
            hosts => format!("Cinder shows no volume attached to {host}; to these: {hosts}"),
        }));
    }
    writeln!(
        out,
        "All of these are taken from {host}. It must not run any more: should it still write, it \
         destroys the filesystems together with the next host."
    )?;
    let is_confirmed = match confirmed {
        Some(confirmed) => confirmed == host,
        None => is_typed(&format!("Type the host's name ({host}) to go on: "), host)?,
    };
    if !is_confirmed {
        return Err(OperateError::HostNotConfirmed);
    }
    let mut failed = 0;
    for row in &held {
        let attachments: Vec<&Value> = attached(row).map(|one| &one["attachment"]).collect();
        let body = json!({ "ID": row["id"], "Host": host, "Attachments": attachments });
        let what = format!("releasing {}", row["name"].as_str().unwrap_or_default());
        let released = post(socket, Subject::ReleaseFrom.path(), &body);
        match while_waiting(&what, released).await {
            Ok(answer) => show(&answer)?,
            Err(OperateError::Refused(error)) => {
                failed += 1;
                writeln!(io::stderr(), "{error}")?;
            }
            Err(error) => return Err(error),
        }
    }
    if failed > 0 {
        return Err(OperateError::NotAll { failed, all: held.len() });
    }
    writeln!(out, "Done.")?;
    Ok(())
}

fn attached(row: &Value) -> impl Iterator<Item = &Value> {
    row["attached"].as_array().into_iter().flatten()
}

fn holders(row: &Value) -> impl Iterator<Item = Option<&str>> {
    attached(row).map(|one| one["host"].as_str())
}

/// `db (id, 20 GiB) at /var/lib/cinder/mount/db since …`
fn shown(row: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let first = &row["attached"][0];
    format!(
        "{} ({}, {} GiB), attachment {}, at {} since {} UTC",
        text(&row["name"]),
        text(&row["id"]),
        row["size"],
        text(&first["attachment"]),
        text(&first["at"]),
        text(&first["since"])
    )
}

fn known_hosts(volumes: &[&Value]) -> String {
    let hosts: std::collections::BTreeSet<&str> =
        volumes.iter().flat_map(|row| holders(row)).flatten().collect();
    hosts.into_iter().collect::<Vec<_>>().join(", ")
}
