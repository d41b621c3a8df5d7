//! `status`: what this host holds, by the journal's word and the kernel's. Works beside a running
//! daemon and without one.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::driver::journal::{self, AttachmentStage, Entry};
use crate::host::Paths;
use crate::host::filesystem::mountinfo;

/// A table or JSON of what is mounted here and what is still to be undone.
pub fn status(
    state_dir: &Path,
    socket: &Path,
    paths: &Paths,
    as_json: bool,
) -> std::io::Result<String> {
    let entries = match journal::peek(state_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut rows = Vec::new();
    for (path, entry) in entries {
        match entry {
            Ok(entry) if entry.has_liabilities() => rows.push(row(&entry, paths)?),
            Ok(_) => {}
            Err(reason) => rows.push(json!({
                "name": path.file_stem().map(|stem| stem.to_string_lossy()),
                "state": "unusable journal entry", "file": path, "last_error": reason,
            })),
        }
    }
    if as_json {
        return Ok(format!("{}\n", Value::Array(rows)));
    }
    let mut text = match rows.is_empty() {
        true => "No volume is mounted or attached on this host.\n".to_owned(),
        false => table(&rows),
    };
    let connected = std::os::unix::net::UnixStream::connect(socket);
    if connected.is_err_and(|error| error.kind() != std::io::ErrorKind::PermissionDenied) {
        let _ = writeln!(text, "The daemon does not run: nobody listens on {}.", socket.display());
    }
    Ok(text)
}

fn row(entry: &Entry, paths: &Paths) -> std::io::Result<Value> {
    let mounted = match &entry.mount {
        Some(record) => {
            mountinfo::at(paths, &record.at)?.is_some_and(|found| found.device == record.device)
        }
        None => false,
    };
    let state = match (mounted, entry.is_complete(), entry.users()) {
        (true, true, 1..) => "mounted",
        (true, true, 0) => "mounted, unused",
        (true, false, _) => "being mounted or released",
        (false, ..) => "to be released",
    };
    let attachment = entry.attachment.as_ref();
    Ok(json!({
        "name": entry.shown_name(),
        "id": entry.volume_id,
        "state": state,
        "mountpoint": entry.mount.as_ref().map(|record| &record.at),
        "device": entry.mount.as_ref().map(|record| &record.device_path),
        "filesystem": entry.mount.as_ref().map(|record| record.fs_type.to_string()),
        "users": entry.users(),
        "references": entry.references,
        "attachment": attachment.and_then(|attachment| attachment.attachment_id.as_deref()),
        "attached": attachment.is_some_and(|a| a.stage == AttachmentStage::Attached),
        "since": entry.mount.as_ref().map(|record| record.since),
        "last_error": entry.last_error,
    }))
}

fn table(rows: &[Value]) -> String {
    const COLUMNS: [(&str, &str); 5] = [
        ("NAME", "name"),
        ("STATE", "state"),
        ("USERS", "users"),
        ("DEVICE", "device"),
        ("MOUNTPOINT", "mountpoint"),
    ];
    let cell = |row: &Value, key: &str| match &row[key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let widths = COLUMNS.map(|(title, key)| {
        rows.iter()
            .map(|row| cell(row, key).chars().count())
            .chain([title.len()])
            .max()
            .unwrap_or(0)
    });
    let mut text = String::new();
    let mut line = |cells: [String; 5], error: &Value| {
        let mut shown = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            // Writing to a String cannot fail.
            let _ = write!(shown, "{cell:width$}   ");
        }
        text.push_str(shown.trim_end());
        text.push('\n');
        if let Value::String(error) = error {
            let _ = writeln!(text, "    last error: {error}");
        }
    };
    line(COLUMNS.map(|(title, _)| title.to_owned()), &Value::Null);
    for row in rows {
        line(COLUMNS.map(|(_, key)| cell(row, key)), &row["last_error"]);
    }
    text
}
