//! What each operation may cost: calls, connections, processes, journal writes. Counts are the same
//! on every machine; times are not, and `cargo bench` has those.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use cinder_docker_driver::sandbox::faults::{Action, Rule};
use serde_json::{Value, json};
use support::gate::{self, Gate};
use support::{Cloud, Node, ask};

/// A host whose effects are counted.
struct Counted {
    cloud: Cloud,
    node: Node,
    gate: Gate,
}

/// What one operation cost.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    /// Calls by name, sorted.
    calls: Vec<String>,
    connections: u64,
    /// Tools, in order.
    tools: Vec<String>,
    /// Files of the journal that were replaced or removed.
    journal: usize,
}

impl Counted {
    async fn start(more: Value) -> Self {
        let cloud = Cloud::start().await;
        let mut node = Node::prepare(cloud.sandbox.config(), more);
        let gate = Gate::of(&mut node);
        node.run().await;
        let counted = Self { cloud, node, gate };
        // What is asked once, and a connection to begin with.
        counted.node.create("first", json!({})).await.unwrap();
        counted.node.mount("first", "c").await.unwrap();
        counted.node.unmount("first", "c").await.unwrap();
        counted
    }

    /// Counts what one call costs, and what it does right after its answer.
    async fn cost(&self, call: &str, body: Value) -> Cost {
        self.cloud.forget_calls();
        let connections = self.cloud.sandbox.faults().connections();
        self.gate.watch();
        self.node.call(call, body).await.unwrap();
        self.node.until_told().await;
        let log = self.gate.end();
        let begun: Vec<_> = gate::begun(&log).filter_map(|what| what.split_once(' ')).collect();
        let of = |kind: &str| {
            let found = begun.iter().filter(|(found, _)| *found == kind);
            found.map(|(_, what)| (*what).to_owned()).collect::<Vec<_>>()
        };
        let tools = of("process");
        let journal = of("journal");
        let done = |what: &&String| what.starts_with("rename") || what.ends_with(".json");
        let mut calls = self.cloud.calls();
        calls.sort();
        Cost {
            calls,
            connections: self.cloud.sandbox.faults().connections() - connections,
            tools: tools.iter().filter_map(|line| line.split(' ').next()).map(Into::into).collect(),
            journal: journal.iter().filter(done).count(),
        }
    }
}

fn cost(calls: &[&str], tools: &[&str], journal: usize) -> Cost {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut calls = owned(calls);
    calls.sort();
    Cost { calls, connections: 0, tools: owned(tools), journal }
}

#[tokio::test]
async fn each_operation_costs_what_the_design_allows() {
    let host = Counted::start(json!({})).await;
    let volume = |id: &str| json!({ "Name": "v", "ID": id });
    let mount = [
        // In a row: the look, the attachment, its connector, its completion. The second look runs
        // beside the connector.
        "show-volume",
        "attachment-create",
        "attachment-update",
        "show-volume",
        "attachment-complete",
    ];
    let formats = [&mount[..], &["set-metadata", "set-metadata"]].concat();

    let made = host.cost("Create", json!({ "Name": "v", "Opts": null })).await;
    // Looks for others of the name: before, at once (were it there, that would be all), and when it
    // is there. How often it is looked at until then depends on the time it takes. The journal: that
    // it begins, that it is there, that it has ended.
    let looks = made.calls.iter().filter(|call| *call == "show-volume").count();
    assert!((1..=4).contains(&looks), "{made:?}");
    let mut others = made.calls.clone();
    others.retain(|call| call != "show-volume");
    assert_eq!(others, ["create-volume", "list-volumes", "list-volumes", "list-volumes"]);
    assert_eq!((made.connections, made.tools.len(), made.journal), (0, 0, 3));

    assert_eq!(host.cost("Get", volume("")).await, cost(&["list-volumes"], &[], 0));
    assert_eq!(
        host.cost("Mount", volume("c")).await,
        cost(&formats, &["mkfs.ext4", "mount"], MOUNT_WRITES + 1)
    );
    // A second container, and all that Docker asks about what is mounted: no call at all. The
    // journal counts the reference, and that its engine was told.
    assert_eq!(host.cost("Mount", volume("d")).await, cost(&[], &[], 2));
    for call in ["Get", "Path", "Capabilities"] {
        assert_eq!(host.cost(call, volume("")).await, cost(&[], &[], 0), "{call}");
    }
    assert_eq!(host.cost("Unmount", volume("d")).await, cost(&[], &[], 1));
    assert_eq!(
        host.cost("Unmount", volume("c")).await,
        cost(&["attachment-delete"], &["umount"], UNMOUNT_WRITES)
    );
    assert_eq!(host.cost("Mount", volume("c")).await, cost(&mount, &["mount"], MOUNT_WRITES));
    host.cost("Unmount", volume("c")).await;
    assert_eq!(host.cost("List", json!({})).await, cost(&["list-volumes"], &[], 0));
    assert_eq!(host.cost("Path", volume("")).await, cost(&[], &[], 0));

    let mut removed = host.cost("Remove", volume("")).await;
    removed.calls.dedup();
    assert_eq!(removed, cost(&["show-volume", "delete-volume"], &[], 1).with_sorted_calls());
}

/// Journal writes of a Mount, each before a step that a crash must not forget or after one that must
/// be known: the reserve, its answer, the device, the mount, what came of it with the reference; and
/// that the engine was told.
const MOUNT_WRITES: usize = 6;
/// The reference; mount and device together; the attachment.
const UNMOUNT_WRITES: usize = 3;

impl Cost {
    fn with_sorted_calls(mut self) -> Self {
        self.calls.sort();
        self
    }
}

#[tokio::test]
async fn with_a_host_uuid_an_operation_costs_little_more() {
    let host = Counted::start(json!({ "HostUUID": uuid::Uuid::new_v4() })).await;
    let volume = |id: &str| json!({ "Name": "first", "ID": id });
    let mounted = host.cost("Mount", volume("c")).await;
    assert_eq!((mounted.connections, &*mounted.tools), (0, &["mount".to_owned()][..]));
    for (call, most) in [
        ("os-reserve", 1),
        ("os-initialize_connection", 1),
        ("os-attach", 1),
        ("set-metadata", 1),
        // Before and beside the export, beside the metadata, and for the attachment's id.
        ("show-volume", 4),
    ] {
        let count = mounted.calls.iter().filter(|found| *found == call).count();
        assert!(count <= most, "{call}: {mounted:?}");
    }
    assert_eq!(host.cost("Mount", volume("d")).await, cost(&[], &[], 2));
    host.cost("Unmount", volume("d")).await;
    let unmounted = host.cost("Unmount", volume("c")).await;
    let calls = ["show-volume", "os-begin_detaching", "os-terminate_connection", "os-detach"];
    let others = unmounted.calls.iter().filter(|call| !calls.contains(&&***call)).count();
    assert!(others == 0 && unmounted.calls.len() <= 5, "{unmounted:?}");
    assert_eq!((unmounted.connections, unmounted.tools.len()), (0, 1));
}

#[tokio::test]
async fn one_connection_serves_call_after_call() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    for _ in 0..50 {
        node.get("v").await.unwrap();
        node.list().await.unwrap();
    }
    assert_eq!(cloud.sandbox.faults().connections(), 1);
    // The second look runs beside the connector.
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    assert_eq!(cloud.sandbox.faults().connections(), 2);
}

/// At its start dockerd asks for every known volume, and a crowd may ask for one.
#[tokio::test]
async fn a_crowd_that_asks_the_same_is_answered_by_a_handful_of_calls() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    cloud.forget_calls();
    cloud.fail(Rule::on("list-volumes", Action::Delay(200)).forever());
    for (name, status) in [("v", 200), ("missing", 500)] {
        let asked: Vec<_> = (0..300)
            .map(|_| async {
                let body = json!({ "Name": name }).to_string();
                node.try_call("/VolumeDriver.Get", &body).await.unwrap()
            })
            .collect();
        for (found, answer) in futures_util::future::join_all(asked).await {
            assert_eq!(found, status, "{answer}");
        }
        let calls = cloud.calls();
        cloud.forget_calls();
        assert!((1..=12).contains(&calls.len()), "{name}: {calls:?}");
    }
}

/// An answer that was asked for before the question is no answer: the volume may have been made in
/// between, and dockerd believes that what Get does not find does not exist.
#[tokio::test]
async fn a_get_is_not_answered_by_what_another_get_asked_before_it() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("other", json!({})).await.unwrap();
    cloud.forget_calls();
    for round in 0..3 {
        let name = format!("v{round}");
        // Cinder has looked, and says so late.
        cloud.fail(Rule::on("list-volumes", Action::DelayAnswer(1500)).times(1));
        let early = ask(&node.socket, "Get", &json!({ "Name": name }));
        while cloud.calls().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        cloud.create(&name, json!({})).await;
        cloud.forget_calls();
        node.get(&name).await.unwrap();
        drop(early);
        assert_eq!(cloud.calls(), ["list-volumes"]);
        cloud.forget_calls();
    }
}

#[tokio::test]
async fn one_token_and_one_catalog_serve_all_who_come_at_once() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let all = async || {
        let asked = (0..64).map(|number| {
            let node = &node;
            async move { node.get(&format!("v{number}")).await.unwrap_err() }
        });
        for error in futures_util::future::join_all(asked).await {
            assert!(error.contains("no volume"), "{error}");
        }
    };
    all().await;
    assert_eq!(cloud.sandbox.faults().count("authenticate"), 1);
    cloud.sandbox.revoke_tokens();
    all().await;
    assert_eq!(cloud.sandbox.faults().count("authenticate"), 2);
    all().await;
    assert_eq!(cloud.sandbox.faults().count("authenticate"), 2);
}
