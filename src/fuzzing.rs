//! What the fuzzer (`fuzz/`) calls: everything that parses foreign bytes, with what must be true of
//! whatever it makes of them. Each room has its own checks in a `fuzzing.rs` beside its parsers.
//!
//! Only in builds of the fuzzer and of the unit tests, which run every seed through its target.

use std::path::{Component, Path};

use serde_json::{Map, Value, json};

pub use crate::config::fuzzing::{clouds_yaml, config_file};
use crate::docker::protocol::{self, Action, Call, VolumeRequest};
use crate::docker::{Question, Subject, VolumeInfo};
use crate::driver::VolumeName;
pub use crate::driver::fuzzing::{journal_entry, volume_metadata};
pub use crate::host::attach::fuzzing::connection_info;
pub use crate::host::attach::iscsi::fuzzing::node_record;
pub use crate::host::filesystem::fuzzing::mountinfo;
pub use crate::host::filesystem::probe::fuzzing::{blank_proof, device_contents};
pub use crate::openstack::fuzzing::{cinder_answer, keystone_answer};

/// Takes bytes, and panics when something is not as it must be.
type Target = fn(&[u8]);

/// Each target and its name, which is also that of its file in `fuzz/fuzz_targets` and of its
/// directory in `fuzz/seeds`.
pub const TARGETS: &[(&str, Target)] = &[
    ("blank_proof", blank_proof),
    ("cinder_answer", cinder_answer),
    ("clouds_yaml", clouds_yaml),
    ("config_file", config_file),
    ("connection_info", connection_info),
    ("device_contents", device_contents),
    ("docker_request", docker_request),
    ("journal_entry", journal_entry),
    ("keystone_answer", keystone_answer),
    ("mountinfo", mountinfo),
    ("node_record", node_record),
    ("volume_metadata", volume_metadata),
];

/// Longest sentence that a person is given, in characters.
const LONGEST: usize = 4000;

/// A message for people and the log: one line, nothing that a terminal obeys, not endless.
pub(crate) fn assert_readable(message: &str) {
    assert!(!message.chars().any(char::is_control), "control characters: {message:?}");
    let length = message.chars().count();
    assert!(length <= LONGEST, "{length} characters: {message:.400}");
}

/// What stands before the first line break, and what behind it.
pub(crate) fn first_line(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &[]),
    }
}

/// A call of Docker: its path on the first line, its body behind.
pub fn docker_request(data: &[u8]) {
    let (path, body) = first_line(data);
    let call = std::str::from_utf8(path).ok().and_then(Call::from_path);
    let call = match call {
        Some(Call::Volume(call)) => call,
        Some(Call::Ask(subject)) => return operators_question(subject, body),
        _ => return,
    };
    let request = match VolumeRequest::parse(call, body) {
        Ok(request) => request,
        Err(message) => return assert_readable(&message),
    };
    assert!(!request.name.is_empty(), "a request without a name");
    let again = VolumeRequest::parse(call, written(&request).to_string().as_bytes());
    assert_eq!(again.as_ref(), Ok(&request), "it reads differently when it is written out");
    match VolumeName::parse(&request.name) {
        Ok(name) => assert_is_a_directory_name(name.as_str()),
        Err(error) => assert_readable(&error.to_string()),
    }
    if let Action::Create(options) = &request.action {
        crate::driver::fuzzing::create_options(options);
    }
    let answer = protocol::volume(&VolumeInfo {
        name: request.name.clone(),
        mountpoint: None,
        created_at: None,
        status: Map::new(),
    });
    let read: Option<Value> = serde_json::from_str(&answer.to_string()).ok();
    assert_eq!(read.map(|answer| answer["Volume"]["Name"].clone()), Some(json!(request.name)));
}

/// A question of our own commands is understood, or refused in words.
fn operators_question(subject: Subject, body: &[u8]) {
    match Question::parse(subject, body) {
        Ok(question) => {
            assert_eq!(question.subject(), subject, "it was understood as another one");
            let named = matches!(subject, Subject::Inspect | Subject::Adopt | Subject::ReleaseFrom);
            assert_eq!(named, !question.volume().is_empty(), "it names a volume, or needs none");
        }
        Err(message) => assert_readable(&message),
    }
}

/// The body that says the same.
fn written(request: &VolumeRequest) -> Value {
    let name = &request.name;
    match &request.action {
        Action::Create(options) => json!({"Name": name, "Opts": options}),
        Action::Mount(id) | Action::Unmount(id) => json!({"Name": name, "ID": id}),
        Action::Operate(_, said) => {
            json!({"Name": name, "ID": said.id, "Size": said.size, "Snapshot": said.snapshot})
        }
        Action::Remove | Action::Path | Action::Get => json!({"Name": name}),
    }
}

/// One part of a path, which leads nowhere else.
fn assert_is_a_directory_name(name: &str) {
    let at = Path::new("/mnt").join(name);
    let parts: Vec<_> = at.strip_prefix("/mnt").into_iter().flat_map(Path::components).collect();
    assert_eq!(parts, [Component::Normal(name.as_ref())]);
    assert!(name.len() <= 255);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    assert!(name.bytes().all(plain) && !name.starts_with(['_', '.', '-']), "{name:?}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn names(directory: &str) -> BTreeSet<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// What the fuzzer has found once is a seed.
    #[test]
    fn every_seed_passes_its_target() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        let mut failed = Vec::new();
        for (name, target) in TARGETS {
            let directory = fs::read_dir(seeds.join(name)).unwrap();
            let mut files: Vec<PathBuf> = directory.map(|seed| seed.unwrap().path()).collect();
            files.sort();
            assert!(!files.is_empty(), "{name} has no seeds");
            println!("{name}: {} cases", files.len());
            for file in files {
                let seed = fs::read(&file).unwrap();
                if std::panic::catch_unwind(|| target(&seed)).is_err() {
                    failed.push(file);
                }
            }
        }
        assert_eq!(failed, Vec::<PathBuf>::new());
    }

    #[test]
    fn every_target_can_be_run_by_the_fuzzer() {
        let targets: BTreeSet<String> =
            TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names("fuzz/fuzz_targets"), targets);
        assert_eq!(names("fuzz/seeds"), targets);
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml");
        let manifest = fs::read_to_string(manifest).unwrap();
        for name in targets {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
            let text = format!("fuzz/fuzz_targets/{name}.rs");
            let text = Path::new(env!("CARGO_MANIFEST_DIR")).join(text);
            let call = format!("fuzzing::{name}(data)");
            assert!(fs::read_to_string(text).unwrap().contains(&call), "{name}");
        }
    }
}
