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
use std::process::Output;

use async_trait::async_trait;
use uuid::Uuid;

/// Where people type.
#[async_trait]
pub trait Machine {
    /// The name in its prompt.
    fn prompt(&self) -> &str;
    /// Runs a line there.
    async fn run(&self, line: &str) -> Output;
    /// Words that differ from run to run, such as directories, and what is shown instead.
    fn masks(&self) -> Vec<(String, String)>;
}

/// Where `cinder list` is typed.
#[async_trait]
pub trait Listing {
    /// The cells of the table, in the order of [`COLUMNS`].
    async fn rows(&self) -> Vec<[String; COLUMNS.len()]>;
}

/// The columns that python-cinderclient prints.
pub const COLUMNS: [&str; 7] =
    ["ID", "Status", "Name", "Size", "Volume Type", "Bootable", "Attached to"];

/// Plays the transcript in `tests/fixtures`; what comes must be what is kept.
pub async fn play(file: &str, cloud: &dyn Listing, machines: &[&dyn Machine]) {
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
fn typed<'a>(line: &'a str, machines: &[&'a dyn Machine]) -> Option<(&'a dyn Machine, &'a str)> {
    let (prompt, typed) = line.split_once("$ ")?;
    let machine = match prompt.strip_prefix('[').and_then(|rest| rest.strip_suffix(" ~]")) {
        Some(name) => machines.iter().copied().find(|machine| machine.prompt() == name)?,
        None if prompt.is_empty() => machines.first().copied()?,
        None => return None,
    };
    Some((machine, typed))
}

/// The table that python-cinderclient prints, by name, with what differs from run to run replaced.
async fn cinder_list(cloud: &dyn Listing, masks: &mut Masks) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    let mut volumes = cloud.rows().await;
    // By name: the client sorts by id, which differs from run to run.
    volumes.sort_by(|one, other| one[2].cmp(&other[2]));
    for row in volumes {
        rows.push(row.map(|cell| masks.apply(&cell)));
    }
    let widths: Vec<usize> = (0..COLUMNS.len())
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
    /// Of the machines.
    words: Vec<(String, String)>,
    shown: HashMap<String, String>,
}

impl Masks {
    fn new(machines: &[&dyn Machine]) -> Self {
        let mut words: Vec<_> = machines.iter().flat_map(|machine| machine.masks()).collect();
        // One may be part of another.
        words.sort_by_key(|(word, _)| std::cmp::Reverse(word.len()));
        Self { words, shown: HashMap::new() }
    }

    fn apply(&mut self, text: &str) -> String {
        // Docker 20.10 prints the one, 26.1 the other for a volume without labels.
        let mut text = text.replace("\"Labels\": {}", "\"Labels\": null");
        for (word, shown) in &self.words {
            text = text.replace(word, shown);
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
        } else if is_disk(word) {
            return "<disk>".to_owned();
        } else {
            return word.to_owned();
        };
        let number =
            self.shown.values().filter(|shown| shown.starts_with(&format!("<{kind}-"))).count() + 1;
        self.shown.entry(word.to_owned()).or_insert_with(|| format!("<{kind}-{number}>")).clone()
    }
}

/// The kernel's name of a loop device or a SCSI disk.
fn is_disk(word: &str) -> bool {
    word.strip_prefix("loop").is_some_and(|rest| rest.parse::<u32>().is_ok())
        || word.strip_prefix("sd").is_some_and(|rest| {
            (1..=2).contains(&rest.len()) && rest.chars().all(|c| c.is_ascii_lowercase())
        })
}
