//! Transcripts: what people type and what they then see, kept in a file and played again.
//!
//! ```text
//! ## A remark.
//! [container1 ~]$ docker volume create -d cinder -o size=1 --name demovol
//! demovol
//! # cinder list
//! (a table)
//! ```
//!
//! `$ ` is typed on the first machine, `[NAME ~]$ ` on the one of that name. Kept are the standard
//! output, without empty lines, and an exit code that isn't 0. What differs from run to run is
//! replaced by its kind and the order of its first appearance: `<uuid-1>` is the same volume
//! throughout a transcript.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;
use uuid::Uuid;

use crate::engine::Machine;
use crate::support::Cloud;

/// Plays the transcript in `tests/fixtures`; what comes must be what is kept.
pub async fn play(file: &str, cloud: &Cloud, machines: &[&Machine]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file);
    let kept = std::fs::read_to_string(&path).unwrap();
    let mut masks = Masks::new(machines);
    let mut seen = String::new();
    for line in kept.lines() {
        let output = if line == "# cinder list" {
            cinder_list(cloud, &mut masks).await
        } else if let Some((machine, typed)) = typed(line, machines) {
            let output = machine.run(typed).await;
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            match output.status.code() {
                Some(0) => {}
                code => text.push_str(&format!("\n[exit {}]\n", code.unwrap_or(-1))),
            }
            if !output.stderr.is_empty() {
                eprintln!("{typed}: {}", String::from_utf8_lossy(&output.stderr));
            }
            masks.apply(&text)
        } else if line.is_empty() || line.starts_with("## ") {
            String::new()
        } else {
            // Output, as it was.
            continue;
        };
        seen.push_str(&format!("{line}\n"));
        for line in output.lines().filter(|line| !line.trim().is_empty()) {
            seen.push_str(&format!("{}\n", line.trim_end()));
        }
    }
    let difference = kept.lines().zip(seen.lines()).position(|(kept, seen)| kept != seen);
    if kept != seen {
        let line = difference.map_or("its end".to_owned(), |line| format!("line {}", line + 1));
        panic!("{file} differs from {line} on. What came:\n{seen}\nwhat was kept:\n{kept}");
    }
}

/// The machine and the command of a line with a prompt.
fn typed<'a>(line: &'a str, machines: &[&'a Machine]) -> Option<(&'a Machine, &'a str)> {
    let (prompt, typed) = line.split_once("$ ")?;
    let machine = match prompt.strip_prefix('[').and_then(|rest| rest.strip_suffix(" ~]")) {
        Some(name) => machines.iter().find(|machine| machine.name == name)?,
        None if prompt.is_empty() => machines.first()?,
        None => return None,
    };
    Some((machine, typed))
}

/// The table that python-cinderclient prints, from what the cloud answers.
async fn cinder_list(cloud: &Cloud, masks: &mut Masks) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        // As Python prints it.
        Value::Null => "None".to_owned(),
        other => other.to_string(),
    };
    let header = ["ID", "Status", "Name", "Size", "Volume Type", "Bootable", "Attached to"];
    let mut rows = vec![header.map(str::to_owned)];
    for volume in cloud.volumes().await {
        let attachments = volume["attachments"].as_array().unwrap();
        let servers: Vec<String> =
            attachments.iter().map(|attachment| text(&attachment["server_id"])).collect();
        let cells = ["id", "status", "name", "size", "volume_type", "bootable"]
            .map(|key| masks.apply(&text(&volume[key])));
        let [id, status, name, size, volume_type, bootable] = cells;
        let attached = masks.apply(&servers.join(","));
        rows.push([id, status, name, size, volume_type, bootable, attached]);
    }
    let widths: Vec<usize> = (0..header.len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let rule: String = widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect();
    let rule = format!("{rule}+\n");
    let mut table = rule.clone();
    for (number, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            table.push_str(&format!("| {cell:width$} "));
        }
        table.push_str("|\n");
        if number == 0 {
            table.push_str(&rule);
        }
    }
    table + &rule
}

/// What differs from run to run, by what is shown instead.
struct Masks {
    /// Directories of the machines.
    directories: Vec<(String, String)>,
    shown: HashMap<String, String>,
}

impl Masks {
    fn new(machines: &[&Machine]) -> Self {
        let directory = |machine: &&Machine| {
            (machine.dir().display().to_string(), format!("<{}>", machine.name))
        };
        Self { directories: machines.iter().map(directory).collect(), shown: HashMap::new() }
    }

    fn apply(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        for (directory, shown) in &self.directories {
            text = text.replace(directory, shown);
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-.:+".contains(c);
        let mut masked = String::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            masked.push_str(&self.word(&rest[..end]));
            let next = rest[end..].find(is_part).map_or(rest.len(), |length| end + length);
            masked.push_str(&rest[end..next]);
            rest = &rest[next..];
        }
        masked
    }

    fn word(&mut self, word: &str) -> String {
        let kind = if word.len() == 36 && Uuid::parse_str(word).is_ok() {
            // Those that the posts chose for their hosts.
            if word.starts_with("219b0670-") {
                return word.to_owned();
            }
            "uuid"
        } else if word.len() == 64 && word.chars().all(|c| c.is_ascii_hexdigit()) {
            "hex"
        } else if word.len() > 18 && word.as_bytes()[10] == b'T' && word.as_bytes()[4] == b'-' {
            return "<time>".to_owned();
        } else if word.strip_prefix("loop").is_some_and(|rest| rest.parse::<u32>().is_ok()) {
            return "<loop>".to_owned();
        } else {
            return word.to_owned();
        };
        let number =
            self.shown.values().filter(|shown| shown.starts_with(&format!("<{kind}-"))).count() + 1;
        self.shown.entry(word.to_owned()).or_insert_with(|| format!("<{kind}-{number}>")).clone()
    }
}
