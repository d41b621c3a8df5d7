//! What the daemon has done, counted, for Prometheus (text exposition format 0.0.4).
//!
//! Off unless the config has `Metrics`: then nothing is counted, and counting costs a look at one
//! word. Every label comes from a list in this program, and never from a volume, a host or an answer:
//! how many series there can be is known.

pub mod server;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

/// All names begin so.
const PREFIX: &str = "cinder_docker_driver";

/// Upper bounds of the buckets for operations, in seconds: from what needs no call to what Docker
/// gives up after.
const OPERATION_BUCKETS: [f64; 11] =
    [0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Upper bounds of the buckets for requests to the cloud, in seconds: to the time-out of an effect.
const REQUEST_BUCKETS: [f64; 9] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 90.0];

/// Operations of Docker that are shown from the start: a series that appears with its first failure
/// has no rate.
const KNOWN_OPERATIONS: [&str; 7] = ["Create", "Get", "List", "Mount", "Path", "Remove", "Unmount"];
const OUTCOMES: [&str; 3] = ["ok", "bad_request", "failed"];

/// HTTP statuses that are shown as they are; of others only the class, for a server may make any up.
const KNOWN_STATUSES: [(u16, &str); 18] = [
    (200, "200"),
    (201, "201"),
    (202, "202"),
    (204, "204"),
    (300, "300"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (409, "409"),
    (413, "413"),
    (429, "429"),
    (500, "500"),
    (501, "501"),
    (502, "502"),
    (503, "503"),
    (504, "504"),
    (408, "408"),
];

static COUNTED: OnceLock<Mutex<Counted>> = OnceLock::new();

#[derive(Debug, Default)]
struct Counted {
    /// By operation and outcome.
    operations: BTreeMap<(&'static str, &'static str), u64>,
    /// By operation.
    operation_times: BTreeMap<&'static str, Histogram<11>>,
    /// By service, method, call and status.
    requests: BTreeMap<(&'static str, &'static str, &'static str, &'static str), u64>,
    /// By service.
    request_times: BTreeMap<&'static str, Histogram<9>>,
    /// By kind.
    errors: BTreeMap<&'static str, u64>,
    /// By outcome.
    tokens: BTreeMap<&'static str, u64>,
}

/// How long things took.
#[derive(Debug)]
struct Histogram<const N: usize> {
    /// How many took no longer than the bucket's bound, and longer than the one below.
    buckets: [u64; N],
    count: u64,
    seconds: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { buckets: [0; N], count: 0, seconds: 0.0 }
    }
}

impl<const N: usize> Histogram<N> {
    fn note(&mut self, bounds: &[f64; N], took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(at) = bounds.iter().position(|bound| seconds <= *bound) {
            self.buckets[at] += 1;
        }
        self.count += 1;
        self.seconds += seconds;
    }
}

/// What is true at the moment of a scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Volumes mounted here, by the kernel's word.
    pub mounts: usize,
    /// What the journal has still to do.
    pub backlog: Backlog,
}

/// What the journal has still to do, or cannot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Backlog {
    /// Volumes that nobody here uses, and that are yet to be let go of.
    pub to_release: usize,
    /// Creations that have begun and not ended.
    pub creating: usize,
    /// Reserves that were never answered and may happen yet.
    pub unanswered: usize,
    /// Entries whose files are behind: the disk refused.
    pub unwritten: usize,
    /// Entries that cannot be read; their volumes are left alone.
    pub unusable: usize,
}

impl Backlog {
    /// The parts, by the name of their label.
    fn parts(&self) -> [(&'static str, usize); 5] {
        [
            ("to_release", self.to_release),
            ("creating", self.creating),
            ("unanswered", self.unanswered),
            ("unwritten", self.unwritten),
            ("unusable", self.unusable),
        ]
    }
}

/// Counts from now on.
pub fn enable() {
    COUNTED.get_or_init(|| {
        let mut counted = Counted::default();
        for operation in KNOWN_OPERATIONS {
            for outcome in OUTCOMES {
                counted.operations.insert((operation, outcome), 0);
            }
        }
        for outcome in ["ok", "failed"] {
            counted.tokens.insert(outcome, 0);
        }
        Mutex::new(counted)
    });
}

fn counted() -> Option<MutexGuard<'static, Counted>> {
    // Nothing under the lock can panic half way.
    COUNTED.get().map(|counted| counted.lock().unwrap_or_else(PoisonError::into_inner))
}

/// An operation ended so after so long: `ok`, `bad_request` or `failed`.
pub fn operation(operation: &'static str, outcome: &'static str, took: Duration) {
    let Some(mut counted) = counted() else { return };
    *counted.operations.entry((operation, outcome)).or_default() += 1;
    counted.operation_times.entry(operation).or_default().note(&OPERATION_BUCKETS, took);
}

/// A request to the cloud was answered with this status, or not at all, after so long.
pub fn cloud_request(
    service: &'static str,
    method: &'static str,
    call: &'static str,
    status: Option<u16>,
    took: Duration,
) {
    let Some(mut counted) = counted() else { return };
    *counted.requests.entry((service, method, call, status_label(status))).or_default() += 1;
    counted.request_times.entry(service).or_default().note(&REQUEST_BUCKETS, took);
}

/// An operation failed for a reason of this kind.
pub fn error(kind: &'static str) {
    let Some(mut counted) = counted() else { return };
    *counted.errors.entry(kind).or_default() += 1;
}

/// Keystone was asked for a token: `ok` or `failed`.
pub fn token(outcome: &'static str) {
    let Some(mut counted) = counted() else { return };
    *counted.tokens.entry(outcome).or_default() += 1;
}

fn status_label(status: Option<u16>) -> &'static str {
    let Some(status) = status else { return "none" };
    if let Some((_, label)) = KNOWN_STATUSES.iter().find(|(known, _)| *known == status) {
        return label;
    }
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "other",
    }
}

/// Everything, as Prometheus reads it.
pub fn exposition(gauges: &Gauges) -> String {
    let mut text = Text::default();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    text.family("build_info", "gauge", "Which build this is; always 1.");
    text.sample("build_info", &version, 1);
    if let Some(counted) = counted() {
        text.counted(&counted);
    }
    text.family("mounts", "gauge", "Volumes mounted on this host.");
    text.sample("mounts", &[], gauges.mounts);
    text.family(
        "journal_backlog",
        "gauge",
        "What the journal has still to do, or cannot, by kind.",
    );
    for (kind, count) in gauges.backlog.parts() {
        text.sample("journal_backlog", &[("kind", kind)], count);
    }
    text.0.push_str(&of_the_process());
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn counted(&mut self, counted: &Counted) {
        self.family("operations_total", "counter", "Operations, by how they ended.");
        for ((operation, outcome), count) in &counted.operations {
            let labels = [("operation", *operation), ("outcome", *outcome)];
            self.sample("operations_total", &labels, count);
        }
        self.family(
            "operation_duration_seconds",
            "histogram",
            "How long operations took, those that failed included.",
        );
        for (operation, histogram) in &counted.operation_times {
            let label = ("operation", *operation);
            self.histogram("operation_duration_seconds", label, &OPERATION_BUCKETS, histogram);
        }
        self.family(
            "cloud_requests_total",
            "counter",
            "Requests to Keystone, Cinder and Glance, each try; status none = no answer.",
        );
        for ((service, method, call, status), count) in &counted.requests {
            let labels =
                [("service", *service), ("method", *method), ("call", *call), ("status", *status)];
            self.sample("cloud_requests_total", &labels, count);
        }
        self.family(
            "cloud_request_duration_seconds",
            "histogram",
            "How long requests to the cloud took, those without an answer included.",
        );
        for (service, histogram) in &counted.request_times {
            let label = ("service", *service);
            self.histogram("cloud_request_duration_seconds", label, &REQUEST_BUCKETS, histogram);
        }
        self.family("errors_total", "counter", "Why operations failed, by kind.");
        for (kind, count) in &counted.errors {
            self.sample("errors_total", &[("kind", *kind)], count);
        }
        self.family(
            "token_requests_total",
            "counter",
            "Tokens asked for: the first, and renewals.",
        );
        for (outcome, count) in &counted.tokens {
            self.sample("token_requests_total", &[("outcome", *outcome)], count);
        }
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP {PREFIX}_{name} {help}\n# TYPE {PREFIX}_{name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.0, "{PREFIX}_{name}");
        for (index, (label, value)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            // They are words of this program: nothing in them needs an escape.
            let _ = write!(self.0, "{before}{label}=\"{value}\"");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{after} {value}");
    }

    fn histogram<const N: usize>(
        &mut self,
        name: &str,
        label: (&str, &str),
        bounds: &[f64; N],
        histogram: &Histogram<N>,
    ) {
        let buckets = format!("{name}_bucket");
        let mut below = 0;
        for (bound, count) in bounds.iter().zip(histogram.buckets) {
            below += count;
            self.sample(&buckets, &[label, ("le", &bound.to_string())], below);
        }
        self.sample(&buckets, &[label, ("le", "+Inf")], histogram.count);
        self.sample(&format!("{name}_sum"), &[label], histogram.seconds);
        self.sample(&format!("{name}_count"), &[label], histogram.count);
    }
}

/// What every exporter tells of its process, as far as it can be read.
fn of_the_process() -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        }
    };
    let started = process_start().map(|seconds| seconds.as_secs_f64());
    gauge("process_start_time_seconds", "When the daemon was started, since 1970.", started);
    gauge("process_resident_memory_bytes", "Memory of the daemon.", resident_bytes());
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|open| bounded(open.count()));
    gauge("process_open_fds", "Open files and sockets of the daemon.", open);
    text
}

/// As a number of the exposition format, which has only one type.
#[expect(clippy::cast_precision_loss, reason = "neither has more than 53 bits")]
fn bounded(count: usize) -> f64 {
    count as f64
}

fn resident_bytes() -> Option<f64> {
    // size resident shared …, in pages
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(bounded(pages.checked_mul(usize::try_from(page).ok()?)?))
}

/// Since 1970; the first question decides.
fn process_start() -> Option<Duration> {
    static START: OnceLock<Option<Duration>> = OnceLock::new();
    *START.get_or_init(|| {
        let up = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
        let own = i32::try_from(std::process::id()).ok()?;
        let ticks = crate::host::process::start_time(&crate::host::Paths::default(), own)?;
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
        let started = Duration::from_millis(ticks * 1000 / u64::try_from(per_second).ok()?);
        let lived = Duration::from(up).checked_sub(started)?;
        SystemTime::UNIX_EPOCH.elapsed().ok()?.checked_sub(lived)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_a_server_makes_up_is_no_new_series() {
        let labels: std::collections::BTreeSet<_> =
            (0..=u16::MAX).map(|status| status_label(Some(status))).collect();
        assert_eq!(labels.len(), KNOWN_STATUSES.len() + 6, "{labels:?}");
        assert_eq!(status_label(Some(404)), "404");
        assert_eq!(status_label(Some(418)), "4xx");
        assert_eq!(status_label(Some(999)), "other");
        assert_eq!(status_label(None), "none");
    }

    #[test]
    fn buckets_add_up() {
        let mut histogram = Histogram::default();
        for milliseconds in [1, 5, 6, 700, 200_000] {
            histogram.note(&OPERATION_BUCKETS, Duration::from_millis(milliseconds));
        }
        let mut text = Text::default();
        text.histogram("x", ("operation", "Mount"), &OPERATION_BUCKETS, &histogram);
        let line = |le: &str| {
            let begin = format!("{PREFIX}_x_bucket{{operation=\"Mount\",le=\"{le}\"}} ");
            text.0.lines().find_map(|line| line.strip_prefix(&begin)).unwrap().to_owned()
        };
        assert_eq!([line("0.005"), line("0.02"), line("1"), line("120")], ["2", "3", "4", "4"]);
        assert_eq!(line("+Inf"), "5");
        assert!(text.0.ends_with(&format!("{PREFIX}_x_count{{operation=\"Mount\"}} 5\n")));
    }

    #[test]
    fn the_start_of_this_process_is_a_moment_ago() {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let lived = now.checked_sub(process_start().unwrap()).unwrap();
        assert!(lived < Duration::from_secs(3600), "{lived:?}");
    }
}
