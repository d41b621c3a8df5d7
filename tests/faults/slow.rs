//! Every call of an operation is answered late, without end, or never; and Keystone fails when it is
//! asked for a new token.
//!
//! The driver waits 20 s for a read and 90 s for anything else (`src/openstack/http.rs`), so that
//! Cinder's own 60 s for its back ends pass before. To a read all of these faults are one: no answer
//! within its time.
//!
//! Such cases wait more than they work: all are under way at once, each with a host and a cloud of
//! its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use cinder_docker_driver::sandbox::faults::{Action, Canned};
use tokio::runtime::Runtime;

use crate::bench::{Bench, Fault, Operation};
use crate::table::{flow, said};

/// Cases under way at once: each has a dozen open files.
const AT_ONCE: usize = 60;
/// Longer than anybody waits, in milliseconds.
const NEVER: u64 = 3_600_000;
const FIRST_COLUMN: usize = 46;
const COLUMN: usize = 18;

const OPERATIONS: [(Operation, bool); 7] = [
    (Operation::Create, false),
    (Operation::MountFresh, false),
    (Operation::MountFormatted, false),
    (Operation::Unmount, false),
    (Operation::Remove, false),
    (Operation::MountFormatted, true),
    (Operation::Unmount, true),
];

/// What goes wrong. To a read all are as the first of them.
const FAULTS: [(&str, Action); 5] = [
    ("after 60 s", Action::DelayAnswer(60_000)),
    ("done, no answer", Action::DelayAnswer(NEVER)),
    ("not done, no answer", Action::Delay(NEVER)),
    // Nobody waits for it any more when it happens.
    ("done after 93 s", Action::Delay(93_000)),
    ("endless body", Action::SlowBody),
];

fn is_read(call: &str) -> bool {
    ["show-", "list-", "authenticate", "volume-versions"].iter().any(|read| call.starts_with(read))
}

/// A call of an operation that goes well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Of [`OPERATIONS`].
    operation: usize,
    /// It is the nth of all calls, …
    at: u32,
    call: String,
    /// … and the nth of its name.
    nth: u32,
}

impl Place {
    async fn all() -> Vec<Self> {
        let mut places = Vec::new();
        for (operation, (kind, actions)) in OPERATIONS.into_iter().enumerate() {
            let calls = Bench::new(flow(actions)).await.calls_of(kind).await;
            let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
            for (call, at) in calls.iter().zip(1..) {
                let nth = *seen.entry(call).and_modify(|nth| *nth += 1).or_insert(1);
                places.push(Self { operation, at, call: call.clone(), nth });
            }
        }
        places
    }
}

struct Case {
    place: Place,
    fault: Fault,
    nth: u32,
}

impl Case {
    /// How the case ended, and the longest that Docker waited in it; or what went wrong.
    fn run(&self) -> Result<(&'static str, Duration), String> {
        let Self { place, fault, nth } = self;
        let (operation, actions) = OPERATIONS[place.operation];
        let work = async {
            let mut bench = Bench::new(flow(actions)).await;
            let (met, outcome) = bench.case(operation, fault, *nth).await;
            (met.map_or("not met", |_| outcome), bench.longest_answer())
        };
        let runtime = runtime();
        std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(work))).map_err(|panic| {
            format!("{operation:?} {}, {place:?}: {}", fault.name(), said(&*panic))
        })
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs the cases from the last on, so many at once, prints the table and fails with what went
/// wrong.
fn all_at_once(title: &str, columns: &[&'static str], cases: Vec<Case>, at_once: usize) {
    let count = cases.len();
    let queue = Mutex::new(cases);
    let (mut failures, mut longest) = (Vec::new(), Duration::ZERO);
    let mut table: BTreeMap<Place, BTreeMap<&str, &str>> = BTreeMap::new();
    let (done, ended) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..at_once {
            let (queue, done) = (&queue, done.clone());
            scope.spawn(move || {
                while let Some(case) = { queue.lock().unwrap().pop() } {
                    let result = case.run();
                    done.send((case, result)).unwrap();
                }
            });
        }
        drop(done);
        for (case, result) in ended {
            let outcome = match result {
                Ok((outcome, answer)) => {
                    longest = longest.max(answer);
                    outcome
                }
                Err(error) => {
                    failures.push(error);
                    "FAILED"
                }
            };
            table.entry(case.place).or_default().insert(case.fault.name(), outcome);
        }
    });

    let mut text = format!("\n{title:<FIRST_COLUMN$}");
    for name in columns {
        let _ = write!(text, " {name:<COLUMN$}");
    }
    for (place, outcomes) in &table {
        let (operation, actions) = OPERATIONS[place.operation];
        let flow = if actions { ", actions" } else { "" };
        let row = format!("{operation:?}{flow} {:>2} {}", place.at, place.call);
        let _ = write!(text, "\n{row:<FIRST_COLUMN$}");
        for name in columns {
            let _ = write!(text, " {:<COLUMN$}", outcomes.get(name).unwrap_or(&"-"));
        }
    }
    println!(
        "{text}\n{title}: {count} cases, {} failed, longest answer {:.1} s",
        failures.len(),
        longest.as_secs_f32()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    let outcomes = table.values().flat_map(BTreeMap::values);
    let met = outcomes.filter(|outcome| **outcome != "not met").count();
    assert!(met * 10 > count * 9, "{met} of {count} faults were met");
}

#[test]
fn every_call_is_answered_late_or_without_end_or_never() {
    let mut cases = Vec::new();
    for place in runtime().block_on(Place::all()) {
        for (name, action) in &FAULTS {
            if *name == FAULTS[0].0 || !is_read(&place.call) {
                let fault = Fault::Call(name, action.clone(), place.call.clone());
                cases.push(Case { place: place.clone(), fault, nth: place.nth });
            }
        }
    }
    // Those that take longest come first.
    cases.sort_by_key(|case| !is_read(&case.place.call));
    all_at_once("Late", &FAULTS.each_ref().map(|(name, _)| *name), cases, AT_ONCE);
}

#[test]
fn keystone_fails_whenever_the_token_must_be_renewed() {
    let faults = [
        ("Keystone gone", Action::DropBefore),
        ("401", Action::Answer(Canned::status(401))),
        ("500", Action::Answer(Canned::status(500))),
        ("half a body", Action::HalfBody),
    ];
    let mut cases = Vec::new();
    for place in runtime().block_on(Place::all()) {
        for (name, action) in &faults {
            let fault = Fault::Renewal(name, action.clone());
            cases.push(Case { place: place.clone(), fault, nth: place.at });
        }
    }
    all_at_once("Keystone", &faults.each_ref().map(|(name, _)| *name), cases, 12);
}
