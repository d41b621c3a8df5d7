//! Metrics as Prometheus reads them: a strict reader of the text format, and figures that agree with
//! what was done.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cinder_docker_driver::sandbox::faults::{Action, Canned, Rule};
use serde_json::json;
use support::{Cloud, Node};

// ---- The text format 0.0.4, read more strictly than Prometheus reads it.

#[derive(Debug)]
struct Family {
    kind: String,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

type Families = BTreeMap<String, Family>;

fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// Panics at whatever is not exactly so: HELP, TYPE and then the samples of each family, once, each
/// series once, buckets that add up.
fn parse(text: &str) -> Families {
    assert!(text.ends_with('\n'), "the last line has no end");
    let mut families = Families::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let help = line.strip_prefix("# HELP ").unwrap_or_else(|| panic!("no HELP: {line}"));
        let (name, help) = help.split_once(' ').unwrap();
        assert!(is_name(name) && !help.trim().is_empty(), "{line}");
        let line = lines.next().unwrap();
        let kind =
            line.strip_prefix(&format!("# TYPE {name} ")).unwrap_or_else(|| panic!("{line}"));
        assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        let mut family = Family { kind: kind.to_owned(), samples: Vec::new() };
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let sample = sample(line);
            let suffix = sample.name.strip_prefix(name).unwrap_or_else(|| panic!("{line}"));
            let allowed =
                if kind == "histogram" { &["_bucket", "_sum", "_count"][..] } else { &[""] };
            assert!(allowed.contains(&suffix), "{line}");
            let again =
                |other: &Sample| (&other.name, &other.labels) == (&sample.name, &sample.labels);
            assert!(!family.samples.iter().any(again), "twice: {line}");
            family.samples.push(sample);
        }
        if kind == "histogram" {
            check_buckets(&family);
        }
        if kind != "gauge" {
            assert!(family.samples.iter().all(|sample| sample.value >= 0.0), "{family:?}");
        }
        assert!(families.insert(name.to_owned(), family).is_none(), "{name} twice");
    }
    families
}

/// `name{label="value",…} number`
fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => {
            (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}")))
        }
    };
    assert!(is_name(name), "{line}");
    let mut parsed = BTreeMap::new();
    let mut rest = labels;
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
        assert!(is_name(label) && !label.contains(':') && !label.starts_with("__"), "{line}");
        let (mut value, mut characters) = (String::new(), after.char_indices());
        let end = loop {
            match characters.next().unwrap_or_else(|| panic!("{line}")) {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next().unwrap().1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    other => panic!("escape of {other}: {line}"),
                }),
                (_, c) => value.push(c),
            }
        };
        assert!(parsed.insert(label.to_owned(), value).is_none(), "{line}");
        rest = &after[end + 1..];
        if !rest.is_empty() {
            rest = rest.strip_prefix(',').unwrap_or_else(|| panic!("{line}"));
            assert!(!rest.is_empty(), "{line}");
        }
    }
    let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
    Sample { name: name.to_owned(), labels: parsed, value }
}

/// Of each series: bounds that rise to +Inf, counts that never fall, and end in the count.
fn check_buckets(family: &Family) {
    let without_le = |sample: &Sample| {
        let mut labels = sample.labels.clone();
        labels.remove("le");
        labels
    };
    let series: BTreeSet<_> = family.samples.iter().map(without_le).collect();
    for labels in series {
        let of = |suffix: &str| -> Vec<&Sample> {
            let named = family.samples.iter().filter(|sample| sample.name.ends_with(suffix));
            named.filter(|sample| without_le(sample) == labels).collect()
        };
        let bound = |sample: &&Sample| -> f64 {
            let le = &sample.labels["le"];
            if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() }
        };
        let buckets = of("_bucket");
        assert!(buckets.is_sorted_by(|a, b| bound(a) < bound(b)), "{buckets:?}");
        assert!(buckets.is_sorted_by_key(|sample| sample.value), "{buckets:?}");
        assert_eq!(bound(buckets.last().unwrap()), f64::INFINITY);
        let ([count], [_sum]) = (&of("_count")[..], &of("_sum")[..]) else { panic!("{labels:?}") };
        assert_eq!(count.value, buckets.last().unwrap().value);
    }
}

/// The value of the one series of this name with these labels among its own.
#[track_caller]
fn value(families: &Families, name: &str, labels: &[(&str, &str)]) -> f64 {
    let all = families.values().flat_map(|family| &family.samples);
    let has = |sample: &&Sample| {
        let has = |(label, value): &(&str, &str)| {
            sample.labels.get(*label).is_some_and(|found| found == value)
        };
        sample.name == format!("cinder_docker_driver_{name}") && labels.iter().all(has)
    };
    let found: Vec<_> = all.filter(has).collect();
    let [sample] = found[..] else { panic!("{name} {labels:?}: {found:?}") };
    sample.value
}

/// Every series there is.
fn series(families: &Families) -> BTreeSet<String> {
    let all = families.values().flat_map(|family| &family.samples);
    all.map(|sample| format!("{} {:?}", sample.name, sample.labels)).collect()
}

// ---- Scraping.

fn exchange(mut stream: impl Read + Write, request: &str) -> (String, String) {
    write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn scrape(socket: &Path) -> Families {
    let (head, body) = exchange(UnixStream::connect(socket).unwrap(), "GET /metrics");
    let head = head.to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    parse(&body)
}

/// A host with metrics on a Unix socket, and that socket.
async fn measured(cloud: &Cloud) -> (Node, std::path::PathBuf) {
    let mut node = Node::prepare(cloud.sandbox.config(), json!({}));
    let socket = node.dir.path().join("metrics.sock");
    node.set("Metrics", json!(format!("unix:{}", socket.display())));
    node.run().await;
    (node, socket)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sockets on which a process listens, of all families.
fn listeners(pid: u32) -> usize {
    let own: BTreeSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let of = |file: &str, state: usize, wanted: &str, inode: usize| {
        let table = fs::read_to_string(file).unwrap_or_default();
        let listening = table.lines().filter(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.get(state) == Some(&wanted) && words.get(inode).is_some_and(|i| own.contains(*i))
        });
        listening.count()
    };
    // Unix: flags with __SO_ACCEPTCON; TCP: state LISTEN.
    of("/proc/net/unix", 3, "00010000", 6)
        + of("/proc/net/tcp", 3, "0A", 9)
        + of("/proc/net/tcp6", 3, "0A", 9)
}

// ---- The tests.

#[tokio::test]
async fn nothing_is_served_unless_it_is_asked_for() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    assert_eq!(listeners(node.pid()), 1, "the plugin's socket");
    let (node, _) = measured(&cloud).await;
    assert_eq!(listeners(node.pid()), 2);
}

#[tokio::test]
async fn figures_agree_with_what_was_done() {
    let cloud = Cloud::start().await;
    let (mut node, socket) = measured(&cloud).await;
    let metadata = fs::metadata(&socket).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o7777, metadata.uid()), (0o660, 0));
    let before = scrape(&socket);
    let mounts = |outcome| [("operation", "Mount"), ("outcome", outcome)];
    for outcome in ["ok", "bad_request", "failed"] {
        assert_eq!(
            value(&before, "operations_total", &mounts(outcome)),
            0.0,
            "shown from the start"
        );
    }
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(value(&before, "build_info", &version), 1.0);

    node.create("v", json!({})).await.unwrap();
    node.mount("v", "c").await.unwrap();
    node.mount("v", "d").await.unwrap();
    node.mount("no-such", "c").await.unwrap_err();
    node.mount("../etc", "c").await.unwrap_err();
    node.list().await.unwrap();
    let now = scrape(&socket);
    assert_eq!(value(&now, "operations_total", &mounts("ok")), 2.0);
    assert_eq!(value(&now, "operations_total", &mounts("failed")), 1.0);
    assert_eq!(value(&now, "operations_total", &mounts("bad_request")), 1.0);
    assert_eq!(value(&now, "operation_duration_seconds_count", &[("operation", "Mount")]), 4.0);
    let lists = [("operation", "List"), ("outcome", "ok")];
    assert_eq!(value(&now, "operations_total", &lists), 1.0);
    assert_eq!(value(&now, "errors_total", &[("kind", "not_found")]), 1.0);
    assert_eq!(value(&now, "errors_total", &[("kind", "bad_request")]), 1.0);
    assert_eq!(value(&now, "mounts", &[]), 1.0);
    assert_eq!(value(&now, "token_requests_total", &[("outcome", "ok")]), 1.0);
    let complete = [("service", "cinder"), ("method", "POST"), ("call", "os-complete")];
    assert_eq!(value(&now, "cloud_requests_total", &complete), 1.0);
    let made = [("call", "attachments"), ("method", "POST"), ("status", "200")];
    assert_eq!(value(&now, "cloud_requests_total", &made), 1.0);
    // Each request that the cloud has seen, and no other.
    let requests: f64 = now["cinder_docker_driver_cloud_requests_total"]
        .samples
        .iter()
        .map(|sample| sample.value)
        .sum();
    assert_eq!(requests, f64::from(u32::try_from(cloud.calls().len()).unwrap()));
    assert_eq!(now["process_open_fds"].kind, "gauge");

    cloud.sandbox.revoke_tokens();
    node.get("no-such").await.unwrap_err();
    let now = scrape(&socket);
    assert_eq!(value(&now, "token_requests_total", &[("outcome", "ok")]), 2.0);
    let refused = [("service", "cinder"), ("status", "401")];
    assert_eq!(value(&now, "cloud_requests_total", &refused), 1.0);

    // Cinder is away when the last container ends: the volume is yet to be given back.
    node.unmount("v", "d").await.unwrap();
    cloud.fail(Rule::on("*", Action::Answer(Canned::status(500))).forever());
    node.unmount("v", "c").await.ok();
    let now = scrape(&socket);
    assert_eq!(value(&now, "mounts", &[]), 0.0);
    assert_eq!(value(&now, "journal_backlog", &[("kind", "to_release")]), 1.0);
    cloud.clear_faults();
    node.until_clean().await;
    assert_eq!(value(&scrape(&socket), "journal_backlog", &[("kind", "to_release")]), 0.0);
    assert!(node.stop());
    assert!(!socket.exists());
}

#[tokio::test]
async fn no_name_and_no_answer_makes_a_new_series() {
    let cloud = Cloud::start().await;
    let (node, socket) = measured(&cloud).await;
    let statuses = [418, 451, 499, 599];
    let provoke = async |round: usize| {
        for number in 0..20 {
            node.get(&format!("v{round}-{number}")).await.unwrap_err();
        }
        for status in statuses {
            let answer = Action::Answer(Canned::status(status + u16::try_from(round).unwrap() % 2));
            cloud.fail(Rule::on("list-volumes", answer));
            node.get("x").await.ok();
            cloud.clear_faults();
        }
    };
    provoke(0).await;
    let before = series(&scrape(&socket));
    for round in 1..4 {
        provoke(round * 2).await;
    }
    assert_eq!(series(&scrape(&socket)), before);
    assert!(before.len() < 200, "{}", before.len());
}

#[tokio::test]
async fn a_loopback_port_serves_the_same_and_only_that() {
    let cloud = Cloud::start().await;
    let mut node = Node::prepare(cloud.sandbox.config(), json!({}));
    let port = free_port();
    node.set("Metrics", json!(format!("127.0.0.1:{port}")));
    node.run().await;
    let connect = || std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (head, body) = exchange(connect(), "GET /metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(value(&parse(&body), "mounts", &[]), 0.0);
    let (head, body) = exchange(connect(), "HEAD /metrics");
    assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{head}");
    for (request, status) in [("POST /metrics", 405), ("GET /", 404), ("GET /Plugin.Activate", 404)]
    {
        let (head, _) = exchange(connect(), request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {head}");
    }
}

#[tokio::test]
async fn scrapers_that_never_end_keep_nobody_from_his_volumes() {
    let cloud = Cloud::start().await;
    let (node, socket) = measured(&cloud).await;
    let idle: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    node.create("v", json!({})).await.unwrap();
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    // They are given up one after the other; with those that hung up a scrape has its turn.
    drop(idle);
    let (sender, scraped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || sender.send(scrape(&socket)).ok());
    let families = tokio::time::timeout(Duration::from_secs(60), scraped).await.unwrap().unwrap();
    assert_eq!(
        value(&families, "operations_total", &[("operation", "Unmount"), ("outcome", "ok")]),
        1.0
    );
}

#[tokio::test]
async fn a_place_that_is_taken_costs_the_metrics_and_not_the_volumes() {
    let cloud = Cloud::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let node = Node::start_with(&cloud, json!({ "Metrics": address })).await;
    node.create("v", json!({})).await.unwrap();
    assert!(node.log().contains("no metrics: cannot listen on"), "{}", node.log());
    assert_eq!(listeners(node.pid()), 1);
}
