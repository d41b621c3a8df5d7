//! What is measured.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::Bench;
use crate::floor::{Floor, Known};
use crate::process::{Activity, Size, peak_pss};
use crate::recording::{Event, Names, Strace, What, steps};
use crate::report::{Table, Times, ms, ratio};
use crate::rig::{Daemon, Docker, Exchange, Proxy, now};

pub type Suite = fn(&mut Bench);

/// In the order in which they run: what slows the cloud comes last.
pub const SUITES: &[(&str, Suite)] = &[
    ("counts", counts),
    ("start", start),
    ("calls", calls),
    ("creating", creating),
    ("parallel", parallel),
    ("growth", growth),
    ("memory", memory),
    ("list", list),
];

/// Between two operations: what one does after its answer is not the next one's.
const REST: Duration = Duration::from_millis(15);

/// An operation as Docker asks for it: how it is called here, its call, the mount id.
const OPERATIONS: &[(&str, &str, &str)] = &[
    ("Get (missing)", "Get", ""),
    ("Create", "Create", ""),
    ("Get", "Get", ""),
    ("Mount (fresh)", "Mount", "c"),
    ("Mount (second container)", "Mount", "d"),
    ("Get (mounted)", "Get", ""),
    ("Path", "Path", ""),
    ("Unmount (second container)", "Unmount", "d"),
    ("Unmount", "Unmount", "c"),
    ("Mount (formatted)", "Mount", "c"),
    // Again, so that the next operation finds it unmounted; its time counts with the first one's.
    ("Unmount", "Unmount", "c"),
    ("Remove", "Remove", ""),
];

/// Milliseconds.
fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let begun = Instant::now();
    let done = work();
    (begun.elapsed().as_secs_f64() * 1000.0, done)
}

fn operate(docker: &mut Docker, operation: (&str, &str, &str), name: &str) {
    let (shown, call, id) = operation;
    let body = json!({ "Name": name, "ID": id, "Opts": null }).to_string();
    let answer = docker.call(&format!("/VolumeDriver.{call}"), &body);
    let missing = shown.ends_with("(missing)");
    assert_eq!(answer.status, if missing { 500 } else { 200 }, "{shown}: {}", answer.body);
}

// ---- counts, and the recording that the floor replays

/// So long each call takes while the recording is made: what overlaps is then seen to.
const RECORDING_LATENCY: u64 = 20;

fn counts(bench: &mut Bench) {
    recording(bench);
}

/// Records each operation once, on first need, and prints what it counted.
fn recording(bench: &mut Bench) -> Value {
    if let Some(recording) = &bench.recording {
        return recording.clone();
    }
    let proxy = Proxy::start(&bench.cloud, false);
    let daemon = bench.daemon(Some(&proxy), &json!({}));
    let mut docker = daemon.client();
    // What is asked once, and a connection to begin with.
    let warm_up = bench.name();
    for operation in OPERATIONS {
        operate(&mut docker, *operation, &warm_up);
    }
    bench.cloud.latency(RECORDING_LATENCY);
    let strace = Strace::attach(daemon.pid(), &bench.dir.join("strace"));
    let name = bench.name();
    operate(&mut docker, OPERATIONS[0], &name);
    proxy.take();
    let mut windows = Vec::new();
    let (mut exchanges, mut connections) = (Vec::<Exchange>::new(), Vec::new());
    for operation in OPERATIONS {
        std::thread::sleep(REST * 4);
        let before = (proxy.connections(), proxy.bytes());
        let begun = now();
        operate(&mut docker, *operation, &name);
        let answered = now();
        std::thread::sleep(REST * 4);
        windows.push((begun, answered, now()));
        connections.push((proxy.connections() - before.0, proxy.bytes() - before.1));
        exchanges.extend(proxy.take());
    }
    let events = strace.end();
    bench.cloud.latency(0);

    let names = names_of(&daemon, &name, &exchanges);
    let token = exchanges.iter().flat_map(|one| &one.headers).find(|h| h.0 == "X-Auth-Token");
    bench.token = token.expect("a call with a token").1.clone();
    let mut table = Table::new(
        format!("Counts (API latency {RECORDING_LATENCY} ms)"),
        &[
            "operation",
            "calls",
            "in a row",
            "connections",
            "bytes",
            "processes",
            "journal",
            "after",
        ],
    );
    let mut recording = Map::new();
    for (at, (operation, _, _)) in OPERATIONS.iter().enumerate() {
        let (begun, answered, ended) = windows[at];
        let count = |from: f64, to: f64, is: fn(&What) -> bool| {
            let within = |event: &&Event| event.begun >= from && event.begun <= to;
            events.iter().filter(within).filter(|event| is(&event.what)).count()
        };
        let is_process = |what: &What| matches!(what, What::Process(_));
        let is_journal = |what: &What| matches!(what, What::JournalWrite | What::JournalRemove);
        let of_it: Vec<_> =
            exchanges.iter().filter(|one| one.begun >= begun && one.begun <= answered).collect();
        let row = json!({
            "operation": operation,
            "calls": of_it.len(),
            "calls in a row": in_a_row(&of_it),
            "new connections": connections[at].0,
            "bytes": connections[at].1,
            "processes": count(begun, answered, is_process),
            "journal writes": count(begun, answered, is_journal),
            "journal writes after the answer": count(answered, ended, is_journal),
            "what is called": of_it.iter().map(|one| format!("{} {}", one.method, one.path)).collect::<Vec<_>>(),
        });
        if recording.contains_key(*operation) {
            continue;
        }
        let cells = [
            "calls",
            "calls in a row",
            "new connections",
            "bytes",
            "processes",
            "journal writes",
            "journal writes after the answer",
        ];
        let cells = cells.iter().map(|key| row[*key].to_string());
        table.row(std::iter::once((*operation).to_owned()).chain(cells).collect());
        bench.note("counts", row);
        recording
            .insert((*operation).to_owned(), steps(&exchanges, &events, (begun, answered), &names));
    }
    table.print();
    let recording = Value::Object(recording);
    bench.results.insert("recording".into(), recording.clone());
    bench.recording = Some(recording.clone());
    recording
}

/// The longest chain of calls of which each began when the one before had ended.
fn in_a_row(calls: &[&Exchange]) -> usize {
    let mut longest: Vec<usize> = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        let before = calls[..at].iter().zip(&longest).filter(|(one, _)| one.ended <= call.begun);
        longest.push(1 + before.map(|(_, length)| *length).max().unwrap_or(0));
    }
    longest.into_iter().max().unwrap_or(0)
}

/// What is of this volume and this host alone, in the order in which it is replaced.
fn names_of(daemon: &Daemon, name: &str, exchanges: &[Exchange]) -> Names {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut names: Names = vec![
        (daemon.mount_point().join(name).display().to_string(), "MOUNT"),
        (name.to_owned(), "NAME"),
    ];
    for one in exchanges {
        let found = [
            (text(&one.answer["volume"]["id"]), "VOLUME"),
            (text(&one.answer["attachment"]["id"]), "ATTACHMENT"),
            (text(&one.answer["attachment"]["connection_info"]["device_path"]), "DEVICE"),
        ];
        for (value, key) in found {
            if let Some(value) = value
                && !names.iter().any(|(old, _)| *old == value)
            {
                names.push((value, key));
            }
        }
    }
    names
}

// ---- start

fn start(bench: &mut Bench) {
    let mut table = Table::new(
        "Start to the answer to Activate (floor: a process that ends at once), ms",
        &["API latency", "p50", "p99", "floor", "ratio"],
    );
    let mut floor = Times::default();
    for _ in 0..bench.times(20, 5) {
        floor.add(timed(|| std::process::Command::new("/bin/true").status().unwrap()).0);
    }
    for latency in [0, 20, 200] {
        bench.cloud.latency(latency);
        let mut times = Times::default();
        for _ in 0..bench.times(20, 5) {
            let dir = bench.daemon_dir();
            let (daemon, took) =
                Daemon::start(&bench.binary, &dir, &bench.cloud, None, &Value::Null);
            times.add(took.as_secs_f64() * 1000.0);
            daemon.stop();
        }
        table.row(vec![
            latency.to_string(),
            ms(times.p50()),
            ms(times.p99()),
            ms(floor.p50()),
            ratio(times.p50(), floor.p50()),
        ]);
        bench.note(
            "start",
            json!({ "latency": latency, "ms": times.json(), "floor": floor.json() }),
        );
    }
    bench.cloud.latency(0);
    table.print();
}

// ---- each call alone

fn calls(bench: &mut Bench) {
    let recording = recording(bench);
    // Latency, TLS, repetitions, and those of a quick run.
    let runs = [
        (0, false, 40, 6),
        (0, true, 20, 2),
        (20, false, 20, 3),
        (20, true, 10, 0),
        (200, false, 5, 1),
        (200, true, 3, 0),
    ];
    for (latency, tls, full, quick) in runs {
        let count = bench.times(full, quick);
        if count > 0 {
            calls_at(bench, &recording, latency, tls, count);
        }
    }
}

fn calls_at(bench: &mut Bench, recording: &Value, latency: u64, tls: bool, count: usize) {
    let proxy = tls.then(|| Proxy::start(&bench.cloud, true));
    let daemon = bench.daemon(proxy.as_ref(), &json!({}));
    let floor_dir = bench.dir.join(format!("floor{}", bench.daemons));
    let mut floor = Floor::start(
        &bench.cloud,
        proxy.as_ref(),
        recording,
        &bench.token,
        &floor_dir.join("state"),
    );
    let mut docker = daemon.client();
    let warm_up = bench.name();
    for operation in OPERATIONS {
        operate(&mut docker, *operation, &warm_up);
        std::thread::sleep(REST);
    }
    bench.cloud.latency(latency);
    let mut ours: Vec<(&str, Times)> = Vec::new();
    let mut floors: Vec<(&str, [Times; 2])> = Vec::new();
    fn of<'a, T: Default>(all: &'a mut Vec<(&'static str, T)>, name: &'static str) -> &'a mut T {
        let at = all.iter().position(|one| one.0 == name).unwrap_or_else(|| {
            all.push((name, T::default()));
            all.len() - 1
        });
        &mut all[at].1
    }
    for round in 0..count {
        let name = bench.name();
        for operation in OPERATIONS {
            let (took, ()) = timed(|| operate(&mut docker, *operation, &name));
            of(&mut ours, operation.0).add(took);
            std::thread::sleep(REST);
        }
        for (what, path) in
            [("Activate", "/Plugin.Activate"), ("Capabilities", "/VolumeDriver.Capabilities")]
        {
            let (took, _) = timed(|| docker.call(path, "{}"));
            of(&mut ours, what).add(took);
        }
        // The floor of the same, on a volume of its own; every other time with the journal.
        let name = bench.name();
        let at = floor_dir.join("mount").join(&name);
        let mut known = Known::from([
            ("NAME".to_owned(), name),
            ("MOUNT".to_owned(), at.display().to_string()),
        ]);
        for (operation, call, _) in OPERATIONS {
            if recording[*operation].as_array().is_none_or(Vec::is_empty) {
                continue;
            }
            if *call == "Mount" && *operation != "Mount (second container)" {
                known.remove("ATTACHMENT");
            }
            let journal = round % 2 == 1;
            let took = floor.run(operation, &mut known, journal);
            of(&mut floors, operation)[usize::from(journal)].add(took);
            std::thread::sleep(REST);
        }
    }
    bench.cloud.latency(0);
    let mut table = Table::new(
        format!(
            "API latency {latency} ms{}, {count} times, ms (floor: calls, processes, filesystem; \
             +journal: and fsyncs)",
            if tls { ", TLS" } else { "" }
        ),
        &["operation", "p50", "p99", "floor", "ratio", "+journal", "ratio "],
    );
    for (operation, times) in &ours {
        let none = [Times::default(), Times::default()];
        let floor = floors.iter().find(|one| one.0 == *operation).map_or(&none, |one| &one.1);
        let of_calls = if floor[0].is_empty() { f64::NAN } else { floor[0].p50() };
        // Nothing but the journal is no floor.
        let of_calls = if of_calls < 0.05 { f64::NAN } else { of_calls };
        table.row(vec![
            (*operation).to_owned(),
            ms(times.p50()),
            ms(times.p99()),
            ms(of_calls),
            ratio(times.p50(), of_calls),
            ms(floor[1].p50()),
            ratio(times.p50(), floor[1].p50()),
        ]);
        bench.note(
            "calls",
            json!({
                "operation": operation, "latency": latency, "tls": tls, "ms": times.json(),
                "floor": floor[0].json(), "floor with journal": floor[1].json(),
            }),
        );
    }
    table.print();
}

// ---- volumes that are being made

fn creating(bench: &mut Bench) {
    let daemon = bench.daemon(None, &json!({}));
    let mut docker = daemon.client();
    let warm_up = bench.name();
    for operation in OPERATIONS {
        operate(&mut docker, *operation, &warm_up);
    }
    let mut table = Table::new(
        "A volume that is made elsewhere, and mounted at once; and Create of one that takes so \
         long, ms",
        &["creating", "Mount", "over", "calls", "Create", "over ", "calls "],
    );
    let latencies: &[u64] = if bench.quick { &[500] } else { &[500, 3000, 8000] };
    for creating in latencies {
        let (name, other) = (bench.name(), bench.name());
        recording(bench);
        bench.cloud.timing(*creating, 0);
        bench.cloud.forget_calls();
        let path = format!("{}/volumes", bench.cloud.block_storage_path());
        let body = json!({ "volume": { "name": name, "size": 1 } });
        let begun = Instant::now();
        let (status, answer) = bench.cloud.ask("POST", &path, &body, Some(&bench.token));
        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
        docker.must("Mount", &json!({ "Name": name, "ID": "c" }));
        let mount = begun.elapsed().as_secs_f64() * 1000.0;
        let mount_calls = bench.cloud.calls();
        bench.cloud.forget_calls();
        let (create, _) = timed(|| docker.must("Create", &json!({ "Name": other })));
        let create_calls = bench.cloud.calls();
        docker.must("Unmount", &json!({ "Name": name, "ID": "c" }));
        bench.cloud.timing(0, 0);
        docker.must("Remove", &json!({ "Name": other }));
        let over = |took: f64| took - *creating as f64;
        table.row(vec![
            creating.to_string(),
            ms(mount),
            ms(over(mount)),
            mount_calls.to_string(),
            ms(create),
            ms(over(create)),
            create_calls.to_string(),
        ]);
        bench.note(
            "creating",
            json!({
                "creating": creating, "mount": mount, "mount calls": mount_calls,
                "create": create, "create calls": create_calls,
            }),
        );
    }
    table.print();
}

// ---- many at once

/// Does something at once on so many connections; how long each took, and all.
fn at_once(
    daemon: &Daemon,
    count: usize,
    work: impl Fn(&mut Docker, usize) + Send + Sync,
) -> (Times, f64) {
    let (work, ready) = (&work, Arc::new(Barrier::new(count + 1)));
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..count)
            .map(|at| {
                let ready = Arc::clone(&ready);
                scope.spawn(move || {
                    let mut docker = daemon.client();
                    docker.call("/Plugin.Activate", "");
                    ready.wait();
                    timed(|| work(&mut docker, at)).0
                })
            })
            .collect();
        ready.wait();
        let (all, each) =
            timed(|| running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>());
        let mut times = Times::default();
        each.into_iter().for_each(|took| times.add(took));
        (times, all)
    })
}

/// Volumes with a filesystem, unmounted.
fn formatted(bench: &mut Bench, daemon: &Daemon, count: usize) -> Vec<String> {
    let names: Vec<_> = (0..count).map(|_| bench.name()).collect();
    let parts: Vec<_> = names.chunks(count.div_ceil(8)).collect();
    at_once(daemon, parts.len(), |docker, at| {
        for name in parts[at] {
            docker.must("Create", &json!({ "Name": name }));
            docker.must("Mount", &json!({ "Name": name, "ID": "c" }));
            docker.must("Unmount", &json!({ "Name": name, "ID": "c" }));
        }
    });
    names
}

fn parallel(bench: &mut Bench) {
    let daemon = bench.daemon(None, &json!({}));
    let counts: &[usize] = if bench.quick { &[1, 16] } else { &[1, 4, 16, 64, 256] };
    let names = formatted(bench, &daemon, *counts.last().unwrap());
    let mut table = Table::new(
        "At once, ms",
        &[
            "at once",
            "API latency",
            "Mount all",
            "slowest",
            "fastest",
            "of one",
            "Unmount all",
            "Get one name",
            "calls",
            "Get all names",
            "calls ",
        ],
    );
    let latencies: &[u64] = if bench.quick { &[0] } else { &[0, 200] };
    for latency in latencies {
        bench.cloud.latency(*latency);
        let mut one = f64::NAN;
        for count in counts {
            let (mounts, mount_all) = at_once(&daemon, *count, |docker, at| {
                docker.must("Mount", &json!({ "Name": names[at], "ID": "c" }));
            });
            std::thread::sleep(REST * 4);
            let (_, unmount_all) = at_once(&daemon, *count, |docker, at| {
                docker.must("Unmount", &json!({ "Name": names[at], "ID": "c" }));
            });
            bench.cloud.forget_calls();
            let (_, same) = at_once(&daemon, *count, |docker, _| {
                docker.must("Get", &json!({ "Name": names[0] }));
            });
            let same_calls = bench.cloud.calls();
            bench.cloud.forget_calls();
            let (_, different) = at_once(&daemon, *count, |docker, at| {
                docker.must("Get", &json!({ "Name": names[at] }));
            });
            let different_calls = bench.cloud.calls();
            if *count == 1 {
                one = mount_all;
            }
            let json = mounts.json();
            table.row(vec![
                count.to_string(),
                latency.to_string(),
                ms(mount_all),
                ms(mounts.p99()),
                ms(json["min"].as_f64().unwrap()),
                ratio(mount_all, one),
                ms(unmount_all),
                ms(same),
                same_calls.to_string(),
                ms(different),
                different_calls.to_string(),
            ]);
            bench.note(
                "parallel",
                json!({
                    "at once": count, "latency": latency, "mount all": mount_all, "each": json,
                    "unmount all": unmount_all, "get one name": same, "its calls": same_calls,
                    "get all names": different, "their calls": different_calls,
                }),
            );
        }
    }
    bench.cloud.latency(0);
    table.print();
}

// ---- growth

/// Medians of Get, Mount, Unmount of one volume.
fn costs(docker: &mut Docker, name: &str, times: usize) -> [Times; 4] {
    let mut found: [Times; 4] = Default::default();
    for _ in 0..times {
        for (at, (call, id)) in
            [("Get", ""), ("Mount", "c"), ("Path", ""), ("Unmount", "c")].into_iter().enumerate()
        {
            let body = json!({ "Name": name, "ID": id });
            found[at].add(timed(|| docker.must(call, &body)).0);
            std::thread::sleep(REST);
        }
    }
    found
}

fn growth(bench: &mut Bench) {
    let mut table = Table::new(
        "Growth: one volume beside many others, p50, ms (the embedded cloud writes its whole state \
         at each change: see its floor)",
        &["of what", "how many", "Get", "Mount", "Path", "Unmount"],
    );
    let times = bench.times(9, 3);
    let recording = recording(bench);
    let mut row = |bench: &mut Bench, what: &str, many: usize, found: [Times; 4]| {
        let [get, mount, path, unmount] = found;
        table.row(vec![
            what.to_owned(),
            many.to_string(),
            ms(get.p50()),
            ms(mount.p50()),
            ms(path.p50()),
            ms(unmount.p50()),
        ]);
        bench.note(
            "growth",
            json!({
                "of": what, "many": many, "get": get.json(), "mount": mount.json(),
                "path": path.json(), "unmount": unmount.json(),
            }),
        );
    };

    // Journal entries: names that this host knows.
    let counts: &[usize] = if bench.quick { &[0, 1000] } else { &[0, 100, 1000, 10_000] };
    for count in counts {
        let daemon = bench.daemon(None, &json!({}));
        let mut docker = daemon.client();
        let name = formatted(bench, &daemon, 1).remove(0);
        docker.must("Get", &json!({ "Name": name }));
        let dir = daemon.dir.clone();
        let volumes = daemon.state_dir().join("volumes");
        daemon.stop();
        let entry = fs::read_dir(&volumes).unwrap().next().unwrap().unwrap().path();
        let entry: Value = serde_json::from_slice(&fs::read(entry).unwrap()).unwrap();
        for number in 0..*count {
            let id = format!("00000000-0000-4000-8000-{number:012}");
            let mut other = entry.clone();
            other["volume_id"] = json!(id);
            other["names"] = json!([format!("other{number}")]);
            fs::write(volumes.join(format!("{id}.json")), other.to_string()).unwrap();
        }
        let (daemon, started) =
            Daemon::start(&bench.binary, &dir, &bench.cloud, None, &Value::Null);
        let found = costs(&mut daemon.client(), &name, times);
        row(bench, "journal entries", *count, found);
        bench.note(
            "growth",
            json!({ "of": "journal entries", "many": count, "start": started.as_secs_f64() * 1000.0 }),
        );
    }

    // Mounted volumes.
    let daemon = bench.daemon(None, &json!({}));
    let counts: &[usize] = if bench.quick { &[0, 8] } else { &[0, 16, 64, 128] };
    let names = formatted(bench, &daemon, counts.last().unwrap() + 1);
    let mut mounted = 0;
    for count in counts {
        while mounted < *count {
            mounted += 1;
            daemon.client().must("Mount", &json!({ "Name": names[mounted], "ID": "c" }));
        }
        let found = costs(&mut daemon.client(), &names[0], times);
        row(bench, "mounted volumes", *count, found);
    }
    for name in &names[1..] {
        daemon.client().must("Unmount", &json!({ "Name": name, "ID": "c" }));
    }

    // References to the volume itself.
    let mut docker = daemon.client();
    let mut held = 0;
    let counts: &[usize] = if bench.quick { &[1, 100] } else { &[1, 10, 100, 1000] };
    for count in counts {
        while held < *count {
            held += 1;
            docker.must("Mount", &json!({ "Name": names[0], "ID": format!("r{held}") }));
        }
        let found = costs(&mut docker, &names[0], times);
        row(bench, "references to it", *count, found);
    }
    for number in 1..=held {
        docker.must("Unmount", &json!({ "Name": names[0], "ID": format!("r{number}") }));
    }

    // Volumes of the project, with the floor beside: the cloud itself grows slower.
    let mut floor = Floor::start(
        &bench.cloud,
        None,
        &recording,
        &bench.token,
        &bench.dir.join("growth-floor/state"),
    );
    let counts: &[usize] = if bench.quick { &[0, 1000] } else { &[0, 1000, 10_000] };
    let mut there = 0;
    for count in counts {
        bench.cloud.fill((*count - there) as u64, "growth");
        there = *count;
        let found = costs(&mut docker, &names[0], times);
        row(bench, "volumes of the project", *count, found);
        let name = bench.name();
        let at = bench.dir.join("growth-floor/mount").join(&name);
        let mut known = Known::from([
            ("NAME".to_owned(), name),
            ("MOUNT".to_owned(), at.display().to_string()),
        ]);
        let mut floors: [Times; 4] = Default::default();
        for operation in ["Create", "Mount (fresh)", "Unmount"] {
            floor.run(operation, &mut known, true);
            std::thread::sleep(REST);
        }
        for _ in 0..times {
            known.remove("ATTACHMENT");
            for (at, operation) in [(0, "Get"), (1, "Mount (formatted)"), (3, "Unmount")] {
                floors[at].add(floor.run(operation, &mut known, true));
                std::thread::sleep(REST);
            }
        }
        row(bench, "… their floor", *count, floors);
    }
    table.print();
}

// ---- memory

fn memory(bench: &mut Bench) {
    let cloud = bench.another_cloud("memory");
    let daemon = bench.daemon_of(&cloud, None, &json!({ "ListAll": true }));
    let pid = daemon.pid();
    let mut table = Table::new(
        "Size, kB",
        &["when", "RSS", "PSS", "anonymous", "peak RSS", "threads", "descriptors"],
    );
    let mut look = |bench: &mut Bench, when: &str| {
        let size = Size::of(pid);
        table.row(std::iter::once(when.to_owned()).chain(size.cells()).collect());
        let mut row = size.json();
        row["when"] = json!(when);
        bench.note("memory", row);
        size
    };
    let settle = || std::thread::sleep(Duration::from_secs(1));
    settle();
    look(bench, "just started");
    let mut docker = daemon.client();
    let name = bench.name();
    docker.must("Create", &json!({ "Name": name }));
    settle();
    look(bench, "after a Create");

    // Threads that have nothing to do end first.
    settle();
    let before = Activity::of(pid);
    let seconds = if bench.quick { 5 } else { 20 };
    std::thread::sleep(Duration::from_secs(seconds));
    let (ticks, wake_ups) = Activity::of(pid).since(&before);
    let idle = json!({ "seconds": seconds, "cpu_ticks": ticks, "wake_ups": wake_ups });
    let idle_size = look(bench, "idle");

    for _ in 0..bench.times(3, 1) {
        at_once(&daemon, 16, |docker, _| {
            for _ in 0..63 {
                docker.must("Get", &json!({ "Name": name }));
            }
        });
    }
    settle();
    look(bench, "after 1,000 Gets, 16 at once");
    docker.must("Mount", &json!({ "Name": name, "ID": "c" }));
    settle();
    look(bench, "after a Mount with mkfs");

    let size = if bench.quick { 2000 } else { 10_000 };
    cloud.fill(size, "memory");
    let mut peak = 0;
    for _ in 0..bench.times(3, 1) {
        let done = Arc::new(AtomicBool::new(false));
        peak = peak.max(std::thread::scope(|scope| {
            let (seen, docker) = (Arc::clone(&done), &mut docker);
            scope.spawn(move || {
                let listed = docker.must("List", &json!({}));
                assert!(listed["Volumes"].as_array().unwrap().len() as u64 >= size);
                done.store(true, Ordering::Relaxed);
            });
            peak_pss(pid, || seen.load(Ordering::Relaxed))
        }));
    }
    settle();
    look(bench, &format!("after a List of {size}"));
    std::thread::sleep(Duration::from_secs(12));
    look(bench, "12 s later");
    docker.must("Unmount", &json!({ "Name": name, "ID": "c" }));
    table.print();
    println!(
        "\nIdle: {idle}. While listing {size} volumes PSS was at most {peak} kB, {} kB above idle.",
        peak.saturating_sub(idle_size.pss)
    );
    bench.note("memory", json!({ "idle": idle, "peak_pss_kb_while_listing": peak }));
}

// ---- lists

fn list(bench: &mut Bench) {
    let cloud = bench.another_cloud("list");
    // Both go through the proxy, so that the floor asks for the very pages that were answered.
    let proxy = Proxy::start(&cloud, false);
    let mut table =
        Table::new("List, ms", &["volumes", "p50", "p99", "floor", "ratio", "calls", "bytes"]);
    let daemon = bench.daemon_of(&cloud, Some(&proxy), &json!({ "ListAll": true }));
    let mut docker = daemon.client();
    let mut listed = || docker.must("List", &json!({}))["Volumes"].as_array().unwrap().len();
    let sizes: &[usize] = if bench.quick { &[1, 1000] } else { &[1, 10, 100, 1000, 10_000] };
    for size in sizes {
        let there = listed();
        cloud.fill((size - there) as u64, "list");
        proxy.take();
        let before = proxy.bytes();
        let there = listed();
        // The proxy writes down what it passed on after it has.
        std::thread::sleep(REST);
        let bytes = proxy.bytes() - before;
        let exchanges = proxy.take();
        let recording = json!({ "List": steps(&exchanges, &[], (0.0, f64::MAX), &Vec::new()) });
        let token = exchanges[0].headers.iter().find(|header| header.0 == "X-Auth-Token");
        let mut floor = Floor::start(
            &cloud,
            Some(&proxy),
            &recording,
            &token.unwrap().1,
            &bench.dir.join("list-floor"),
        );
        let (mut times, mut floors) = (Times::default(), Times::default());
        let repetitions = bench.times(if *size > 1000 { 7 } else { 20 }, 3);
        for _ in 0..repetitions {
            times.add(timed(&mut listed).0);
            floors.add(floor.run("List", &mut Known::new(), false));
        }
        table.row(vec![
            there.to_string(),
            ms(times.p50()),
            ms(times.p99()),
            ms(floors.p50()),
            ratio(times.p50(), floors.p50()),
            exchanges.len().to_string(),
            bytes.to_string(),
        ]);
        bench.note(
            "list",
            json!({
                "volumes": there, "ms": times.json(), "floor": floors.json(),
                "calls": exchanges.len(), "bytes": bytes,
            }),
        );
    }
    table.print();
}
