//! How fast and how large the daemon is, each figure beside its floor.
//!
//! ```text
//! cargo bench                          everything: some 10 minutes
//! cargo bench -- --quick               under 2 minutes
//! cargo bench -- --only calls,memory   these suites (see SUITES)
//! cargo bench -- --json FILE           the figures as JSON too
//! cargo bench -- --binary FILE         another build of the daemon
//! ```
//!
//! The release build of the daemon runs as a process against the embedded cloud, which is another
//! process and keeps its volumes in memory; loop devices, mkfs and mounts are real. The floor is a
//! recording of the daemon's own run, replayed by `floor.py`, which says what it is. Counts come from
//! a run of their own, since strace slows everything. Needs root, strace and python3; a busy machine
//! makes the times useless, not the counts.

#![allow(missing_docs, reason = "a program")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a benchmark fails by panicking, prints, and starts programs itself"
)]

mod floor;
mod process;
mod recording;
mod report;
mod rig;
mod suites;
#[path = "../../tests/support/unix_http.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod unix_http;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use rig::{Cloud, Daemon, Proxy};

/// Set for the run in a mount namespace of its own.
const INSIDE: &str = "CINDER_BENCH_INSIDE";

struct Arguments {
    quick: bool,
    only: Vec<String>,
    json: Option<PathBuf>,
    binary: PathBuf,
}

fn arguments() -> Arguments {
    let mut found = Arguments {
        quick: false,
        only: Vec::new(),
        json: None,
        binary: env!("CARGO_BIN_EXE_cinder-docker-driver").into(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match &*word {
            "--quick" => found.quick = true,
            "--only" => found.only.extend(value().split(',').map(str::to_owned)),
            "--json" => found.json = Some(std::path::absolute(value()).unwrap()),
            "--binary" => found.binary = std::path::absolute(value()).unwrap(),
            // What cargo adds.
            "--bench" => {}
            _ => {
                let names: Vec<_> = suites::SUITES.iter().map(|(name, _)| *name).collect();
                eprintln!(
                    "usage: cargo bench -- [--quick] [--only SUITE,…] [--json FILE] [--binary FILE]\n\
                     suites: {}",
                    names.join(", ")
                );
                std::process::exit(2);
            }
        }
    }
    found
}

fn main() {
    let arguments = arguments();
    if std::env::var_os(INSIDE).is_none() {
        // What other programs mount and unmount is not to be seen in the figures, nor ours there.
        let error = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1")
            .exec();
        panic!("cannot run unshare: {error}");
    }
    assert!(nix::unistd::geteuid().is_root(), "the benchmark mounts: it needs root");
    if arguments.binary.components().any(|part| part.as_os_str() == "debug") {
        eprintln!("this is a debug build: the figures mean nothing");
    }
    let mut bench = Bench::new(&arguments);
    let machine = machine(&arguments.binary);
    println!("{}", shown(&machine));
    bench.results.insert("machine".into(), machine);
    for (name, suite) in suites::SUITES {
        if arguments.only.is_empty() || arguments.only.iter().any(|one| one == name) {
            let begun = std::time::Instant::now();
            suite(&mut bench);
            eprintln!("({name}: {:.0} s)", begun.elapsed().as_secs_f64());
        }
    }
    bench.results.insert("load at the end".into(), json!(load()));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&Value::Object(bench.results.clone())).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap().trim().to_owned()
}

fn machine(binary: &Path) -> Value {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim().to_owned();
    let output = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    json!({
        "processors": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "kernel": kernel,
        "load at the beginning": load(),
        "commit": output("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"]),
        "binary bytes": fs::metadata(binary).unwrap().len(),
    })
}

fn shown(machine: &Value) -> String {
    let fields = machine.as_object().unwrap().iter();
    fields.map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join(", ")
}

/// What all suites share.
struct Bench {
    quick: bool,
    binary: PathBuf,
    dir: PathBuf,
    cloud_dir: PathBuf,
    cloud: Cloud,
    /// Operation → its steps; made once, when first needed.
    recording: Option<Value>,
    /// A token that the daemon got.
    token: String,
    volumes: u64,
    daemons: u64,
    results: serde_json::Map<String, Value>,
    _clean_up: CleanUp,
}

impl Bench {
    fn new(arguments: &Arguments) -> Self {
        // The journal is on the disk that /var/tmp is on, as in real life; the cloud's own files
        // must cost nothing.
        let name = format!("cinder-bench-{}", std::process::id());
        let dir = Path::new("/var/tmp").join(&name);
        let memory = Path::new("/dev/shm");
        let cloud_dir = if memory.is_dir() { memory } else { Path::new("/var/tmp") }
            .join(format!("{name}-cloud"));
        fs::create_dir_all(&dir).unwrap();
        let clean_up = CleanUp(vec![dir.clone(), cloud_dir.clone()]);
        Self {
            quick: arguments.quick,
            binary: arguments.binary.clone(),
            cloud: Cloud::start(&arguments.binary, &cloud_dir),
            dir,
            cloud_dir,
            recording: None,
            token: String::new(),
            volumes: 0,
            daemons: 0,
            results: serde_json::Map::new(),
            _clean_up: clean_up,
        }
    }

    /// A name that no volume had.
    fn name(&mut self) -> String {
        self.volumes += 1;
        format!("v{}x", self.volumes)
    }

    /// A daemon with directories of its own.
    fn daemon(&mut self, proxy: Option<&Proxy>, more: &Value) -> Daemon {
        let dir = self.daemon_dir();
        Daemon::start(&self.binary, &dir, &self.cloud, proxy, more).0
    }

    /// The same, of another cloud.
    fn daemon_of(&mut self, cloud: &Cloud, proxy: Option<&Proxy>, more: &Value) -> Daemon {
        let dir = self.daemon_dir();
        Daemon::start(&self.binary, &dir, cloud, proxy, more).0
    }

    fn daemon_dir(&mut self) -> PathBuf {
        self.daemons += 1;
        self.dir.join(format!("host{}", self.daemons))
    }

    /// A cloud without volumes.
    fn another_cloud(&self, name: &str) -> Cloud {
        Cloud::start(&self.binary, &self.cloud_dir.join(name))
    }

    fn note(&mut self, suite: &str, row: Value) {
        let rows = self.results.entry(suite).or_insert_with(|| json!([]));
        rows.as_array_mut().unwrap().push(row);
    }

    fn times(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

/// Takes away what a run leaves: mounts, loop devices, directories.
struct CleanUp(Vec<PathBuf>);

impl Drop for CleanUp {
    fn drop(&mut self) {
        let below = |path: &str| self.0.iter().any(|dir| Path::new(path).starts_with(dir));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for at in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if below(at) {
                Command::new("umount").arg(at).status().ok();
            }
        }
        for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let file = fs::read_to_string(device.path().join("loop/backing_file"));
            if file.is_ok_and(|file| below(file.trim())) {
                let node = Path::new("/dev").join(device.file_name());
                Command::new("losetup").arg("-d").arg(node).status().ok();
            }
        }
        for dir in &self.0 {
            fs::remove_dir_all(dir).ok();
        }
    }
}
