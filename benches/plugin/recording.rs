//! One real operation of the daemon as a list: its calls, as a proxy saw them, and what it did to the
//! host, as strace saw it. `floor.py` replays such lists.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::Exchange;

/// The system calls that are looked at.
const TRACED: &str =
    "trace=execve,fsync,fdatasync,syncfs,unlink,unlinkat,mkdir,mkdirat,rmdir,ioctl";

/// Something that the daemon did to the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub begun: f64,
    pub ended: f64,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A process, with its arguments.
    Process(Vec<String>),
    /// A file of the journal: temp, fsync, rename, fsync of the directory.
    JournalWrite,
    /// A file of the journal is removed, the directory written.
    JournalRemove,
    /// syncfs of a mount.
    Syncfs(String),
    /// fsync, or BLKFLSBUF, of a device.
    Flush {
        path: String,
        drop_cache: bool,
    },
    Mkdir(String),
    Rmdir(String),
}

/// strace beside a daemon that runs.
pub struct Strace {
    child: Child,
    file: PathBuf,
}

impl Strace {
    pub fn attach(pid: u32, file: &Path) -> Self {
        let mut child = Command::new("strace")
            .args(["-f", "-ttt", "-T", "-y", "-s", "4096", "-e", TRACED])
            .args(["-p", &pid.to_string(), "-o"])
            .arg(file)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is needed to count processes");
        // It says so once it has all threads.
        let mut line = String::new();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "strace: {line}");
        std::thread::spawn(move || said.lines().count());
        std::thread::sleep(Duration::from_millis(100));
        Self { child, file: file.to_owned() }
    }

    /// Detaches; what it saw, in order.
    pub fn end(mut self) -> Vec<Event> {
        std::thread::sleep(Duration::from_millis(100));
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-INT", &pid]).status().unwrap();
        self.child.wait().unwrap();
        let text = fs::read(&self.file).unwrap();
        parse(&String::from_utf8_lossy(&text))
    }
}

/// A system call that has returned.
struct Call<'a> {
    thread: u32,
    begun: f64,
    ended: f64,
    name: &'a str,
    arguments: String,
}

fn parse(text: &str) -> Vec<Event> {
    let mut unfinished: HashMap<u32, (f64, &str, String)> = HashMap::new();
    let mut tools: HashMap<u32, usize> = HashMap::new();
    let mut writing: HashMap<u32, (f64, What)> = HashMap::new();
    let mut events: Vec<Event> = Vec::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Ok(thread) = thread.parse::<u32>() else { continue };
        let Some((time, rest)) = rest.trim_start().split_once(' ') else { continue };
        let Ok(time) = time.parse::<f64>() else { continue };
        if rest.starts_with("+++") {
            if let Some(at) = tools.remove(&thread) {
                events[at].ended = time;
            }
            continue;
        }
        let call = if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            if let Some((name, arguments)) = begun.split_once('(') {
                unfinished.insert(thread, (time, name, arguments.to_owned()));
            }
            continue;
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((begun, name, mut arguments)) = unfinished.remove(&thread) else { continue };
            arguments.push_str(resumed.split_once("resumed>").map_or("", |(_, rest)| rest));
            Call { thread, begun, ended: time, name, arguments }
        } else {
            let Some((name, arguments)) = rest.split_once('(') else { continue };
            let ended = time + time_taken(rest).unwrap_or(0.0);
            Call { thread, begun: time, ended, name, arguments: arguments.to_owned() }
        };
        // What a tool does is the tool's.
        if tools.contains_key(&thread) {
            continue;
        }
        if call.name == "execve" {
            if !call.arguments.contains(") = 0") {
                continue;
            }
            tools.insert(thread, events.len());
        }
        look(call, &mut writing, &mut events);
    }
    events.sort_by(|one, other| one.begun.total_cmp(&other.begun));
    events
}

/// `… = 0 <0.001234>`
fn time_taken(text: &str) -> Option<f64> {
    text.rsplit_once('<')?.1.strip_suffix('>')?.parse().ok()
}

fn look(call: Call<'_>, writing: &mut HashMap<u32, (f64, What)>, events: &mut Vec<Event>) {
    let Call { thread, begun, ended, name, arguments } = call;
    // -y writes descriptors as 7</the/path>.
    let path = || {
        let (_, rest) = arguments.split_once('<')?;
        Some(rest.split_once('>')?.0.to_owned())
    };
    let quoted = || Some(arguments.split('"').nth(1)?.to_owned());
    let in_directory = || match quoted()? {
        name if name.starts_with('/') => Some(name),
        name => Some(format!("{}/{name}", path()?)),
    };
    let what = match name {
        "execve" => {
            let list = arguments.split_once('[').and_then(|(_, rest)| rest.split_once("], "));
            let list = list.map(|(list, _)| format!("[{list}]")).unwrap_or_default();
            Some(What::Process(serde_json::from_str(&list).unwrap_or_default()))
        }
        "fsync" | "fdatasync" => match path() {
            Some(path) if path.ends_with(".new") => {
                writing.insert(thread, (begun, What::JournalWrite));
                None
            }
            Some(path) if path.starts_with("/dev/") => {
                Some(What::Flush { path, drop_cache: false })
            }
            // The directory, at last.
            Some(_) => {
                if let Some((begun, what)) = writing.remove(&thread) {
                    events.push(Event { begun, ended, what });
                }
                None
            }
            None => None,
        },
        "unlink" | "unlinkat" => match quoted() {
            Some(path) if path.ends_with(".json") => {
                writing.insert(thread, (begun, What::JournalRemove));
                None
            }
            _ => None,
        },
        "ioctl" if arguments.contains("BLKFLSBUF") => {
            path().map(|path| What::Flush { path, drop_cache: true })
        }
        "syncfs" => path().map(What::Syncfs),
        "mkdir" | "mkdirat" if arguments.contains("= 0") => in_directory().map(What::Mkdir),
        "rmdir" if arguments.contains("= 0") => quoted().map(What::Rmdir),
        _ => None,
    };
    events.extend(what.map(|what| Event { begun, ended, what }));
}

/// What the names of one run mean: written as `{NAME}` in a recording.
pub type Names = Vec<(String, &'static str)>;

/// The steps of one operation, those of calls and host merged in the order of their beginning.
///
/// Each has `after`: the steps that had ended before it began.
pub fn steps(
    exchanges: &[Exchange],
    events: &[Event],
    (from, to): (f64, f64),
    names: &Names,
) -> Value {
    let mut found: Vec<(f64, f64, Value)> = Vec::new();
    for one in exchanges.iter().filter(|one| one.begun >= from && one.begun <= to) {
        let step = json!({
            "kind": "call", "method": one.method, "path": one.path, "body": one.body,
            "headers": one.headers, "status": one.status,
        });
        found.push((one.begun, one.ended, step));
    }
    for event in events.iter().filter(|event| event.begun >= from && event.begun <= to) {
        let step = match &event.what {
            What::Process(words) => json!({ "kind": "process", "words": words }),
            What::JournalWrite => json!({ "kind": "journal" }),
            What::JournalRemove => json!({ "kind": "journal-remove" }),
            What::Syncfs(path) => json!({ "kind": "syncfs", "path": path }),
            What::Flush { path, drop_cache } => {
                json!({ "kind": "flush", "path": path, "drop_cache": drop_cache })
            }
            What::Mkdir(path) => json!({ "kind": "mkdir", "path": path }),
            What::Rmdir(path) => json!({ "kind": "rmdir", "path": path }),
        };
        found.push((event.begun, event.ended, step));
    }
    found.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut steps = Vec::new();
    for (at, (begun, _, step)) in found.iter().enumerate() {
        let before = found[..at].iter().enumerate().filter(|(_, (_, ended, _))| ended <= begun);
        let mut text = step.to_string();
        for (from, to) in names {
            text = text.replace(from, &format!("{{{to}}}"));
        }
        let mut step: Value = serde_json::from_str(&text).unwrap();
        step["after"] = before.map(|(index, _)| index).collect();
        steps.push(step);
    }
    Value::Array(steps)
}
