//! Docker's calls in any order, on one host and three volumes, with faults in between; a model
//! knows what must be true.

use std::collections::BTreeMap;
use std::fs;

use cinder_docker_driver::sandbox::faults::{Action, Canned};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use serde_json::json;

use crate::bench::{Bench, Fault};
use crate::support::container::{self, Container};
use crate::table::flow;

/// Calls in each sequence.
const CALLS: usize = 14;

/// Sequences of calls; the variable PROPTEST_CASES asks for another number.
fn sequences() -> u32 {
    if std::env::var_os("CINDER_LONG").is_some() { 200 } else { 12 }
}

#[derive(Debug, Clone, Copy)]
enum Call {
    Create,
    /// Mount, or Unmount if this id has it mounted.
    Toggle(usize),
    Remove,
    /// The daemon is killed and started again.
    Restart,
}

/// What must be true of one volume.
#[derive(Debug, Default)]
struct Known {
    exists: bool,
    users: BTreeMap<usize, User>,
    /// Mounts that failed. One that the daemon did not live to answer may be counted for as long as
    /// any container has the volume.
    unanswered: usize,
    bytes: Option<String>,
}

#[derive(Debug)]
struct User {
    container: Container,
    /// The daemon did not live to note that its answer arrived. Its next start counts this user only
    /// if the container is there by then; and it lets go of nothing that a container has.
    is_unsure: bool,
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        2 => Just(Call::Create),
        6 => (0usize..2).prop_map(Call::Toggle),
        1 => Just(Call::Remove),
        1 => Just(Call::Restart),
    ]
}

fn fault() -> impl Strategy<Value = Option<(Fault, u32)>> {
    let gate =
        prop::sample::select(vec!["kill-before", "kill-midway", "kill-after", "fail", "lose"]);
    let cloud = prop::sample::select(vec![
        ("500", Action::Answer(Canned::status(500))),
        ("500 after", Action::AnswerAfter(Canned::status(500))),
        ("401", Action::RevokeTokens),
        ("reset after", Action::DropAfter),
        ("half a body", Action::HalfBody),
    ]);
    prop_oneof![
        1 => Just(None),
        3 => (gate, 1u32..30).prop_map(|(name, nth)| Some((Fault::Gate(name), nth))),
        2 => (cloud, 1u32..8).prop_map(|((name, action), nth)| Some((Fault::Cloud(name, action), nth))),
    ]
}

struct World {
    bench: Bench,
    volumes: [Known; 3],
    written: u32,
}

impl World {
    /// One call with its fault, then the same without one until it is done.
    async fn step(&mut self, volume: usize, call: Call, fault: Option<&(Fault, u32)>) {
        let name = format!("v{volume}");
        let mounts =
            matches!(call, Call::Toggle(id) if !self.volumes[volume].users.contains_key(&id));
        let (verb, body) = match call {
            Call::Restart => return self.bench.restart().await,
            Call::Create => ("Create", json!({ "Name": name, "Opts": {} })),
            Call::Remove => ("Remove", json!({ "Name": name })),
            Call::Toggle(id) => {
                let verb = if mounts { "Mount" } else { "Unmount" };
                (verb, json!({ "Name": name, "ID": format!("id{id}") }))
            }
        };
        if let Call::Toggle(id) = call {
            // An engine ends the container first.
            self.volumes[volume].users.remove(&id);
        }
        let (mut answer, died) = match fault {
            Some((fault, nth)) => {
                let (answer, died, _) = self.bench.meet(verb, &body, fault, *nth).await;
                (answer, died)
            }
            None => (self.bench.settled_call(verb, &body, &name).await.0, false),
        };
        let is_unsure = died && answer.is_ok();
        let known = &mut self.volumes[volume];
        if answer.is_err() {
            known.unanswered += usize::from(mounts);
            answer = self.bench.settled_call(verb, &body, &name).await.0;
        }
        match call {
            Call::Restart => {}
            Call::Create => {
                assert_eq!(answer, Ok(()), "Create of {name}");
                known.exists = true;
            }
            Call::Remove if !known.users.is_empty() => {
                assert!(answer.is_err(), "{name} was removed in use");
            }
            // Docker asks with Get first; what is gone already is an error to some.
            Call::Remove => *known = Known::default(),
            Call::Toggle(_) if mounts && !known.exists => {
                assert!(answer.is_err(), "{name} was mounted and does not exist");
            }
            Call::Toggle(id) if mounts => {
                assert_eq!(answer, Ok(()), "Mount of {name}");
                let container = Container::with(&self.bench.content(&name));
                known.users.insert(id, User { container, is_unsure });
            }
            Call::Toggle(_) => assert_eq!(answer, Ok(()), "Unmount of {name}"),
        }
        if known.users.is_empty() {
            known.unanswered = 0;
        }
    }

    /// What Docker and containers see is what the model knows.
    async fn check(&mut self) {
        for (index, known) in self.volumes.iter_mut().enumerate() {
            let name = format!("v{index}");
            assert_eq!(self.bench.exists(&name).await, known.exists, "{name} exists");
            let users = self.bench.users(&name).await;
            let least = known.users.values().filter(|user| !user.is_unsure).count();
            let most = known.users.len() + known.unanswered;
            assert!(
                (least..=most).contains(&users),
                "{users} users of {name}, not {least}..={most}"
            );
            for user in known.users.values() {
                let bytes = user.container.volume().join("volume_content/bytes");
                assert_eq!(fs::read_to_string(&bytes).ok(), known.bytes, "what {name} holds");
                self.written += 1;
                let text = format!("{} in {name}", self.written);
                fs::write(bytes, &text).unwrap();
                known.bytes = Some(text);
            }
        }
    }
}

/// A volume, a call about it, and the fault that it meets.
type Step = (usize, Call, Option<(Fault, u32)>);

async fn run(calls: &[Step]) {
    container::prepare();
    let mut world =
        World { bench: Bench::new(flow(false)).await, volumes: Default::default(), written: 0 };
    for (volume, call, fault) in calls {
        world.step(*volume, *call, fault.as_ref()).await;
        world.check().await;
    }
    for volume in 0..world.volumes.len() {
        for id in world.volumes[volume].users.keys().copied().collect::<Vec<_>>() {
            world.step(volume, Call::Toggle(id), None).await;
        }
        if world.volumes[volume].exists {
            world.step(volume, Call::Remove, None).await;
        }
    }
    world.bench.assert_nothing_left().await;
}

#[test]
fn any_order_of_calls_with_any_faults_ends_as_the_model_says() {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = asked.unwrap_or_else(sequences);
    let config =
        Config { cases, max_shrink_iters: 30, failure_persistence: None, ..Config::default() };
    let sequence = prop::collection::vec((0usize..3, call(), fault()), CALLS);
    let mut runner = TestRunner::new(config);
    let result = runner.run(&sequence, |calls| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let run = std::panic::AssertUnwindSafe(|| runtime.block_on(run(&calls)));
        std::panic::catch_unwind(run).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            TestCaseError::fail(text)
        })
    });
    println!("{cases} sequences of {CALLS} calls");
    match result {
        Ok(()) => {}
        // In one line, which a log that shows only a part of it may still have.
        Err(TestError::Fail(reason, calls)) => panic!("{reason} after {calls:?}"),
        Err(error) => panic!("{error}"),
    }
}
