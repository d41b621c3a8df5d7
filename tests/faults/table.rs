//! All cases of an operation, and how they ended.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::bench::{Bench, Fault, Operation, Storage};

/// An operation with more steps than this never ends.
const MOST_STEPS: u32 = 200;
const FIRST_COLUMN: usize = 46;
const COLUMN: usize = 16;

/// The configuration of a host for either attach flow.
pub fn flow(actions: bool) -> Value {
    match actions {
        true => json!({ "HostUUID": "aaaaaaaa-0000-4000-8000-000000000001", "WaitForRelease": 1 }),
        false => json!({ "WaitForRelease": 1 }),
    }
}

/// Runs every case, prints the table and fails with what went wrong.
pub async fn every_case(operation: Operation, config: Value, faults: &[Fault]) {
    chosen_cases(Storage::LoopDevices, operation, config, faults, None).await;
}

/// Whether a fault is to happen to what it met.
pub type Choice = fn(fault: &str, what: &str) -> bool;

/// Of all cases those that are chosen.
pub async fn chosen_cases(
    storage: Storage,
    operation: Operation,
    config: Value,
    faults: &[Fault],
    choice: Option<Choice>,
) {
    let mut bench = Bench::on(storage, config.clone()).await;
    let mut table: BTreeMap<u32, (String, BTreeMap<&str, &str>)> = BTreeMap::new();
    if choice.is_some() {
        // Without any fault: what there is to choose from.
        let _ = bench.case(operation, &Fault::Gate("none"), 1).await;
        let met = bench.met.iter().cloned().map(|what| (what, BTreeMap::new()));
        table.extend((1..).zip(met));
    }
    let (mut cases, mut failures, mut longest) = (0, Vec::new(), Duration::ZERO);
    for fault in faults {
        for nth in 1..=MOST_STEPS {
            assert!(nth < MOST_STEPS, "{operation:?} never ends");
            let known = table.get(&nth).map(|(what, _)| what.as_str());
            if fault.name() == "kill-midway" && known.is_some_and(|w| !w.starts_with("process")) {
                // Only processes have a middle.
                continue;
            }
            if let Some(chosen) = choice {
                match known {
                    Some(what) if chosen(fault.name(), what) => {}
                    Some(_) => continue,
                    None => break,
                }
            }
            let case = AssertUnwindSafe(Box::pin(bench.case(operation, fault, nth)));
            let ended = case.catch_unwind().await;
            longest = longest.max(bench.longest_answer());
            let outcome = match ended {
                Ok((None, _)) => break,
                Ok((Some(what), outcome)) => {
                    table.entry(nth).or_default().0 = what;
                    outcome
                }
                Err(panic) => {
                    let text = said(&*panic);
                    failures.push(format!("{operation:?}, {} at {nth}: {text}", fault.name()));
                    assert!(failures.len() < 20, "{}", failures.join("\n\n"));
                    bench = Bench::on(storage, config.clone()).await;
                    "FAILED"
                }
            };
            cases += 1;
            table.entry(nth).or_default().1.insert(fault.name(), outcome);
        }
    }
    let mut text = format!("\n{:<FIRST_COLUMN$}", format!("{operation:?}"));
    for fault in faults {
        let _ = write!(text, " {:<COLUMN$}", fault.name());
    }
    for (nth, (what, outcomes)) in &table {
        let what: String = shortened(what).chars().take(FIRST_COLUMN - 4).collect();
        let _ = write!(text, "\n{:<FIRST_COLUMN$}", format!("{nth:>2} {what}"));
        for fault in faults {
            let outcome = outcomes.get(fault.name()).copied().unwrap_or("-");
            let _ = write!(text, " {outcome:<COLUMN$}");
        }
    }
    println!(
        "{text}\n{operation:?}: {cases} cases, {} failed, longest answer {:.1} s",
        failures.len(),
        longest.as_secs_f32()
    );
    assert!(cases > 0, "{operation:?} met no faults");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// What a panic said.
pub fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
}

/// Without ids and directories.
fn shortened(what: &str) -> String {
    let short = |word: &str| {
        let word = match word.rsplit_once('/') {
            Some((_, last)) if word.starts_with('/') => last,
            _ => word,
        };
        let stem = word.split('.').next().unwrap_or(word);
        if uuid::Uuid::parse_str(stem).is_ok() { "ID".to_owned() } else { word.to_owned() }
    };
    what.split(' ').map(short).collect::<Vec<_>>().join(" ")
}
