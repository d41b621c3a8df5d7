//! The power fails between any two system calls that write the journal, and the disk has of what was
//! not yet synced whatever it likes: the next start finds each entry as it was last acknowledged, or
//! as it was just being written, and nothing else.
//!
//! The calls are the daemon's own, as strace sees them. What a disk may have is what POSIX allows: of a
//! file that was not synced nothing, a part, zeros or all; of a directory's changes since its last
//! sync any.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use cinder_docker_driver::driver::journal::{Creation, Entry, Journal};
use serde_json::json;

use crate::support::gate::Gate;
use crate::support::{Cloud, Node};

const TRACED: &str = "openat,write,ftruncate,fsync,rename,unlink";
const DIRECTORIES: [&str; 2] = ["volumes", "creations"];
/// Of more changes than this only those that came first are taken, not any.
const MOST_CHANGES: usize = 6;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Open {
        path: PathBuf,
        fd: String,
    },
    Write {
        fd: String,
        path: PathBuf,
        bytes: Vec<u8>,
    },
    Truncate {
        path: PathBuf,
    },
    Sync {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    /// The effect of this number begins, or has ended: from now on the daemon relies on it.
    Begin {
        number: String,
        what: String,
    },
    End {
        number: String,
    },
}

/// `"a\nb"` as strace writes it.
fn unquoted(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next().unwrap() {
                b'n' => b'\n',
                b't' => b'\t',
                other @ (b'"' | b'\\') => other,
                other => panic!("\\{} in {text}", char::from(other)),
            },
            byte => byte,
        });
    }
    bytes
}

/// The first string of a call's arguments; strings have no quotes but escaped ones.
fn quoted(arguments: &str) -> Option<Vec<u8>> {
    let begin = arguments.find('"')? + 1;
    let mut end = begin;
    let bytes = arguments.as_bytes();
    while bytes[end] != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    assert!(!arguments[end..].starts_with("\"..."), "strace has cut it: {arguments}");
    Some(unquoted(&arguments[begin..end]))
}

/// The calls that succeeded, in the order in which they ended.
fn parsed(trace: &str, state: &Path, log: &Path) -> Vec<Call> {
    let mut begun: BTreeMap<&str, &str> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let (pid, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        if let Some(first) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(pid, first);
            continue;
        }
        let whole = match call.strip_prefix("<... ") {
            Some(rest) => {
                let Some(first) = begun.remove(pid) else { continue };
                format!("{first}{}", rest.split_once(" resumed>").unwrap().1)
            }
            None => call.to_owned(),
        };
        let Some((name, arguments)) = whole.split_once('(') else { continue };
        let Some((arguments, result)) = arguments.rsplit_once(" = ") else { continue };
        if result.starts_with('-') {
            continue;
        }
        // "12</a/path>", of a directory or a file
        let descriptor = |text: &str| {
            let (fd, rest) = text.split_once('<')?;
            Some((fd.to_owned(), PathBuf::from(rest.split_once('>')?.0)))
        };
        let path = |bytes: Vec<u8>| PathBuf::from(String::from_utf8(bytes).unwrap());
        calls.extend(match name {
            "openat" if arguments.contains("O_CREAT") => descriptor(result)
                .map(|(fd, _)| Call::Open { path: path(quoted(arguments).unwrap()), fd }),
            "write" => descriptor(arguments).and_then(|(fd, path)| {
                if path != log && !path.starts_with(state) {
                    return None;
                }
                let bytes = quoted(arguments)?;
                if path != log {
                    return Some(Call::Write { fd, path, bytes });
                }
                let note = String::from_utf8(bytes).unwrap();
                let (number, what) = note.trim_end().split_once(' ').unwrap();
                let (number, what) = (number.to_owned(), what.to_owned());
                Some(match &*what {
                    "end" => Call::End { number },
                    _ => Call::Begin { number, what },
                })
            }),
            "ftruncate" => {
                assert!(arguments.contains(", 0)"), "{whole}");
                descriptor(arguments).map(|(_, path)| Call::Truncate { path })
            }
            "fsync" => descriptor(arguments).map(|(_, path)| Call::Sync { path }),
            "rename" => {
                let (_, second) = arguments.split_once("\", ").unwrap();
                let (from, to) = (quoted(arguments).unwrap(), quoted(second).unwrap());
                Some(Call::Rename { from: path(from), to: path(to) })
            }
            "unlink" => quoted(arguments).map(|at| Call::Unlink { path: path(at) }),
            _ => None,
        });
    }
    calls
}

/// What a file has: on the disk for sure, and as the kernel shows it.
#[derive(Debug, Clone, Default)]
struct File {
    synced: Vec<u8>,
    shown: Vec<u8>,
}

/// A name gets a file, or none.
#[derive(Debug, Clone)]
struct Change(Vec<(PathBuf, Option<usize>)>);

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        for (name, file) in &self.0 {
            match file {
                Some(file) => drop(names.insert(name.clone(), *file)),
                None => drop(names.remove(name)),
            }
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Directory {
    synced: BTreeMap<PathBuf, usize>,
    shown: BTreeMap<PathBuf, usize>,
    since: Vec<Change>,
}

/// What of a file that was not synced the disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Nothing,
    Half,
    Zeros,
    All,
}

/// Names and contents.
type Image = BTreeMap<PathBuf, Vec<u8>>;

#[derive(Debug, Default)]
struct Disk {
    files: Vec<File>,
    directories: BTreeMap<PathBuf, Directory>,
    /// Where each descriptor writes.
    positions: BTreeMap<String, usize>,
}

impl Disk {
    fn of(state: &Path) -> Self {
        let directories = DIRECTORIES.map(|name| (state.join(name), Directory::default()));
        Self { directories: directories.into(), ..Self::default() }
    }

    fn file(&mut self, path: &Path) -> Option<&mut File> {
        let file = *self.directories.get(path.parent()?)?.shown.get(path)?;
        Some(&mut self.files[file])
    }

    fn change(&mut self, names: Vec<(PathBuf, Option<usize>)>) {
        let parent = names[0].0.parent().unwrap();
        let Some(directory) = self.directories.get_mut(parent) else { return };
        let change = Change(names);
        change.apply(&mut directory.shown);
        directory.since.push(change);
    }

    fn happen(&mut self, call: &Call) {
        match call {
            Call::Open { path, fd } => {
                self.positions.insert(fd.clone(), 0);
                if self.file(path).is_none() {
                    self.files.push(File::default());
                    let file = self.files.len() - 1;
                    self.change(vec![(path.clone(), Some(file))]);
                }
            }
            Call::Write { fd, path, bytes } => {
                let at = self.positions.entry(fd.clone()).or_default();
                let from = *at;
                *at += bytes.len();
                if let Some(file) = self.file(path) {
                    file.shown.resize(from, 0);
                    file.shown.extend(bytes);
                }
            }
            Call::Truncate { path } => {
                if let Some(file) = self.file(path) {
                    file.shown.clear();
                }
            }
            Call::Sync { path } => {
                if let Some(directory) = self.directories.get_mut(path) {
                    directory.synced = directory.shown.clone();
                    directory.since.clear();
                } else if let Some(file) = self.file(path) {
                    file.synced = file.shown.clone();
                }
            }
            Call::Rename { from, to } => {
                let file = self.directories.get(from.parent().unwrap());
                if let Some(file) = file.and_then(|directory| directory.shown.get(from).copied()) {
                    self.change(vec![(to.clone(), Some(file)), (from.clone(), None)]);
                }
            }
            Call::Unlink { path } => self.change(vec![(path.clone(), None)]),
            Call::Begin { .. } | Call::End { .. } => {}
        }
    }

    /// What may be found after a power cut.
    fn after_a_power_cut(&self) -> BTreeSet<Image> {
        let mut images = BTreeSet::from([Image::new()]);
        for directory in self.directories.values() {
            let count = directory.since.len();
            let sets: Vec<u32> = match count <= MOST_CHANGES {
                true => (0..1 << count).collect(),
                false => (0..=count).map(|first| (1_u32 << first) - 1).collect(),
            };
            let mut here = BTreeSet::new();
            for set in sets {
                let mut names = directory.synced.clone();
                for (number, change) in directory.since.iter().enumerate() {
                    if set & (1 << number) != 0 {
                        change.apply(&mut names);
                    }
                }
                for kept in [Kept::Nothing, Kept::Half, Kept::Zeros, Kept::All] {
                    let file = |file: usize| self.files[file].after_a_power_cut(kept);
                    here.insert(
                        names.iter().map(|(n, f)| (n.clone(), file(*f))).collect::<Image>(),
                    );
                }
            }
            let together = |image: &Image| {
                let all = here.iter().map(|more| image.clone().into_iter().chain(more.clone()));
                all.map(Iterator::collect).collect::<Vec<Image>>()
            };
            images = images.iter().flat_map(together).collect();
        }
        images
    }

    fn shown(&self, path: &Path) -> Option<Vec<u8>> {
        let file = self.directories.get(path.parent()?)?.shown.get(path)?;
        Some(self.files[*file].shown.clone())
    }
}

impl File {
    fn after_a_power_cut(&self, kept: Kept) -> Vec<u8> {
        match kept {
            _ if self.synced == self.shown => self.shown.clone(),
            Kept::Nothing => self.synced.clone(),
            Kept::Half => self.shown[..self.shown.len() / 2].to_vec(),
            Kept::Zeros => vec![0; self.shown.len()],
            Kept::All => self.shown.clone(),
        }
    }
}

/// What a start finds: the entries and creations, in whatever order.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    entries: Vec<Entry>,
    creations: Vec<Creation>,
}

/// Starts on a directory like this, as the daemon does.
fn started_on(image: &Image) -> Result<Found, String> {
    let state = tempfile::tempdir().unwrap();
    for directory in DIRECTORIES {
        fs::create_dir(state.path().join(directory)).unwrap();
    }
    let end = |path: &Path| {
        let parent = path.parent().unwrap().file_name().unwrap();
        state.path().join(parent).join(path.file_name().unwrap())
    };
    for (path, bytes) in image {
        fs::write(end(path), bytes).unwrap();
    }
    let journal = Journal::open(state.path()).map_err(|error| error.to_string())?;
    if let Some((id, _, reason)) = journal.unusable().next() {
        return Err(format!("the entry of {id} cannot be used: {reason}"));
    }
    for path in image.keys().map(|path| end(path)) {
        if path.exists() != path.extension().is_some_and(|extension| extension == "json") {
            return Err(format!("an unfinished file stays: {path:?}"));
        }
    }
    let mut entries: Vec<_> = journal.all().iter().map(|entry| (**entry).clone()).collect();
    entries.sort_by_key(|entry| entry.volume_id);
    let mut creations = journal.creations();
    creations.sort_by_key(|creation| creation.nonce);
    Ok(Found { entries, creations })
}

/// Of each file what may be found, by the daemon's own reading; nothing is also something.
type Allowed = BTreeMap<PathBuf, BTreeSet<Option<Vec<u8>>>>;

fn is_allowed(image: &Image, allowed: &Allowed) -> Result<(), String> {
    let found = started_on(image)?;
    let as_read = |path: &PathBuf, bytes: &Vec<u8>| {
        started_on(&Image::from([(path.clone(), bytes.clone())])).unwrap()
    };
    let mut expected = Found { entries: Vec::new(), creations: Vec::new() };
    for (path, contents) in allowed {
        let is = image.get(path);
        if !contents.contains(&is.cloned()) {
            let text = is.map(|bytes| String::from_utf8_lossy(bytes));
            return Err(format!("{path:?} is {text:?}"));
        }
        if let Some(bytes) = is {
            let one = as_read(path, bytes);
            expected.entries.extend(one.entries);
            expected.creations.extend(one.creations);
        }
    }
    expected.entries.sort_by_key(|entry| entry.volume_id);
    expected.creations.sort_by_key(|creation| creation.nonce);
    match found == expected {
        true => Ok(()),
        false => Err(format!("found {found:?}\ninstead of {expected:?}")),
    }
}

/// Cuts the power after each call; how many different disks there were, or what was wrong.
fn cut_everywhere(calls: &[Call], state: &Path) -> Result<(usize, usize), String> {
    let mut disk = Disk::of(state);
    let mut allowed = Allowed::new();
    let mut under_way: BTreeMap<&str, PathBuf> = BTreeMap::new();
    let (mut seen, mut acknowledged) = (BTreeSet::new(), 0);
    for (number, call) in calls.iter().enumerate() {
        disk.happen(call);
        match call {
            Call::Begin { number, what } => {
                let what = what.strip_prefix("journal ").unwrap_or_default();
                let words = ["rename to ", "remove "];
                let path = words.iter().find_map(|word| what.strip_prefix(word)).map(PathBuf::from);
                if let Some(path) = path.filter(|path| path.extension().unwrap() == "json") {
                    under_way.insert(number, path);
                }
            }
            Call::End { number } => {
                if let Some(path) = under_way.remove(&**number) {
                    let now = disk.shown(&path);
                    allowed.insert(path, BTreeSet::from([now]));
                    acknowledged += 1;
                }
            }
            Call::Rename { to: path, .. } | Call::Unlink { path }
                if path.extension().is_some_and(|extension| extension == "json") =>
            {
                let now = disk.shown(path);
                allowed.entry(path.clone()).or_insert_with(|| BTreeSet::from([None])).insert(now);
            }
            _ => {}
        }
        for image in disk.after_a_power_cut() {
            if seen.contains(&(image.clone(), allowed.clone())) {
                continue;
            }
            is_allowed(&image, &allowed)
                .map_err(|why| format!("after {} calls, the last {call:?}: {why}", number + 1))?;
            seen.insert((image, allowed.clone()));
        }
    }
    Ok((seen.len(), acknowledged))
}

#[tokio::test]
async fn the_journal_survives_a_power_cut_between_any_two_system_calls() {
    let cloud = Cloud::start().await;
    let mut node = Node::prepare(cloud.sandbox.config(), json!({}));
    let gate = Gate::of(&mut node);
    let trace = gate.file("trace");
    let words = [
        "/usr/bin/strace",
        "-D",
        "-f",
        "-y",
        "-s",
        "65536",
        "-e",
        &format!("trace={TRACED}"),
        "-o",
    ];
    node.run_below(
        words.iter().map(OsString::from).chain([trace.clone().into_os_string()]).collect(),
    );
    gate.watch();
    node.run().await;
    for name in ["v", "w"] {
        node.create(name, json!({})).await.unwrap();
        node.mount(name, "a").await.unwrap();
        node.mount(name, "b").await.unwrap();
    }
    node.until_told().await;
    for name in ["v", "w"] {
        node.unmount(name, "a").await.unwrap();
        node.unmount(name, "b").await.unwrap();
        node.remove(name).await.unwrap();
    }
    node.assert_clean(&cloud);
    assert!(node.stop(), "{}", node.log());

    let state = node.state_dir();
    let calls = parsed(&fs::read_to_string(trace).unwrap(), &state, &gate.file("log"));
    let (disks, acknowledged) = cut_everywhere(&calls, &state).unwrap();
    println!(
        "{} system calls, {acknowledged} changes acknowledged, {disks} disks after a power cut, lost 0",
        calls.len()
    );
    assert!(acknowledged > 20 && disks > 100, "{acknowledged} changes, {disks} disks");

    // Each of the syncs is needed, and its lack would be seen.
    let is_directory = |path: &Path| DIRECTORIES.iter().any(|name| state.join(name) == path);
    for directories in [true, false] {
        let mut without = calls.clone();
        without.retain(
            |call| !matches!(call, Call::Sync { path } if is_directory(path) == directories),
        );
        assert!(without.len() < calls.len());
        cut_everywhere(&without, &state).unwrap_err();
    }
}
