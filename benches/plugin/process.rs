//! What the kernel says of a process.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

/// Memory in kB, and what else a process has.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub rss: u64,
    pub pss: u64,
    pub anonymous: u64,
    /// Highest RSS so far.
    pub peak: u64,
    pub threads: u64,
    pub descriptors: u64,
}

impl Size {
    pub fn of(pid: u32) -> Self {
        let rollup = fields(&format!("/proc/{pid}/smaps_rollup"));
        let status = fields(&format!("/proc/{pid}/status"));
        let get = |from: &BTreeMap<String, u64>, key: &str| from.get(key).copied().unwrap_or(0);
        Self {
            rss: get(&rollup, "Rss"),
            pss: get(&rollup, "Pss"),
            anonymous: get(&rollup, "Anonymous"),
            peak: get(&status, "VmHWM"),
            threads: get(&status, "Threads"),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64,
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "rss_kb": self.rss, "pss_kb": self.pss, "anonymous_kb": self.anonymous,
            "peak_rss_kb": self.peak, "threads": self.threads, "descriptors": self.descriptors,
        })
    }

    pub fn cells(&self) -> Vec<String> {
        [self.rss, self.pss, self.anonymous, self.peak, self.threads, self.descriptors]
            .map(|value| value.to_string())
            .to_vec()
    }
}

/// The largest PSS until `done`, looked at every few milliseconds.
pub fn peak_pss(pid: u32, mut done: impl FnMut() -> bool) -> u64 {
    let mut peak = 0;
    while !done() {
        peak = peak.max(Size::of(pid).pss);
        std::thread::sleep(Duration::from_millis(2));
    }
    peak
}

/// What a process has done so far.
pub struct Activity {
    /// Of processor time, 100 a second.
    ticks: u64,
    /// Context switches of each thread.
    switches: BTreeMap<String, u64>,
}

impl Activity {
    pub fn of(pid: u32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let times = rest.split_whitespace().skip(11).take(2);
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let switches = tasks.map(|task| {
            let status = fields(&task.path().join("status").display().to_string());
            let count = status["voluntary_ctxt_switches"] + status["nonvoluntary_ctxt_switches"];
            (task.file_name().to_string_lossy().into_owned(), count)
        });
        Self {
            ticks: times.map(|text| text.parse::<u64>().unwrap()).sum(),
            switches: switches.collect(),
        }
    }

    /// Ticks and switches since then, those of threads that have ended not counted.
    pub fn since(&self, before: &Self) -> (u64, u64) {
        let switches = self
            .switches
            .iter()
            .map(|(thread, count)| count - before.switches.get(thread).copied().unwrap_or(0));
        (self.ticks - before.ticks, switches.sum())
    }
}

/// `Name:  123 kB`
fn fields(path: &str) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        Some((name.to_owned(), rest.split_whitespace().next()?.parse().ok()?))
    });
    lines.collect()
}
