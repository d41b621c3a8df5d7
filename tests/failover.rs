//! Failover: who is taken for gone, who is not, and what becomes of one that was only silent.
//!
//! What the storage does is tried in `scenarios/failover.rs`; here both hosts are one machine, with
//! loop devices, which cut nobody off.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use cinder_docker_driver::sandbox::Behaviour;
use cinder_docker_driver::sandbox::faults::{Action, Canned, Rule};
use serde_json::{Value, json};
use support::{Cloud, Node, sh};

/// The sandbox's type for volumes that name none.
const TYPE: &str = "lvmdriver-1";

/// The shortest lease that the config takes, in seconds.
const LEASE: u64 = 10;

fn config(more: &Value) -> Value {
    let mut config = json!({ "Failover": [TYPE], "FailoverLease": LEASE, "WaitForRelease": 30 });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// What prove-failover leaves behind on a host whose storage does it.
fn prove(node: &Node) {
    let state = node.state_dir();
    fs::create_dir_all(&state).unwrap();
    let proof = json!({ "at": "2026-01-01T00:00:00Z", "volume": uuid::Uuid::nil() });
    let proven = json!({ "types": { TYPE: proof } });
    fs::write(state.join("failover.json"), proven.to_string()).unwrap();
}

async fn proven_host(cloud: &Cloud, more: &Value) -> Node {
    let mut node = Node::prepare(cloud.sandbox.config(), config(more));
    prove(&node);
    node.run().await;
    node
}

/// A cloud whose storage lets the next host have what the last one wrote, and nothing more of it.
async fn revoking_cloud() -> Cloud {
    let cloud = Cloud::start().await;
    cloud.sandbox.set_behaviour(Behaviour { cuts_off: true, ..Behaviour::default() });
    cloud
}

/// A host with a volume mounted that has some bytes.
async fn holder(cloud: &Cloud, more: &Value) -> Node {
    let node = proven_host(cloud, more).await;
    node.create("v", json!({})).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    fs::write(at.join("bytes"), "by the first").unwrap();
    sh("sync");
    node
}

async fn attachment(cloud: &Cloud) -> String {
    let volume = cloud.volume("v").await;
    let attachments = volume["attachments"].as_array().unwrap();
    assert_eq!(attachments.len(), 1, "{volume}");
    attachments[0]["attachment_id"].as_str().unwrap().to_owned()
}

/// The holder stops, as a machine does that is paused, and another host takes its volume. When it
/// runs on, it learns that it was taken for gone: its filesystem is stopped, its container sees
/// errors, and what it does afterwards touches nothing of the new holder's.
#[tokio::test]
async fn a_host_that_was_only_paused_stops_its_filesystem() {
    let cloud = revoking_cloud().await;
    let mut a = holder(&cloud, &json!({})).await;
    let b = proven_host(&cloud, &json!({})).await;
    let of_a = attachment(&cloud).await;
    let in_a = a.mount_point().join("v/volume_content");
    sh(&format!("kill -STOP {}", a.pid()));

    let in_b = b.mount("v", "d").await.unwrap();
    assert_eq!(fs::read_to_string(in_b.join("bytes")).unwrap(), "by the first");
    let of_b = attachment(&cloud).await;
    assert_ne!(of_a, of_b);

    sh(&format!("kill -CONT {}", a.pid()));
    let end = Instant::now() + Duration::from_secs(60);
    while fs::write(in_a.join("late"), "by the first, too late").is_ok() {
        assert!(Instant::now() < end, "{}", a.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let told = async || a.get("v").await.unwrap()["Status"]["last_error"].clone();
    while !told().await.as_str().is_some_and(|error| error.contains("has taken it")) {
        assert!(Instant::now() < end, "{}", a.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A second container gets no dead filesystem.
    let error = a.mount("v", "e").await.unwrap_err();
    assert!(error.contains("\"v\""), "{error}");
    // A new run of the daemon knows it, too.
    a.kill();
    a.run().await;
    a.unmount("v", "c").await.ok();
    a.until_clean().await;
    assert_eq!(attachment(&cloud).await, of_b);

    fs::write(in_b.join("more"), "by the second").unwrap();
    b.unmount("v", "d").await.unwrap();
    b.until_clean().await;
    let again = a.mount("v", "c").await.unwrap();
    assert_eq!(fs::read_to_string(again.join("more")).unwrap(), "by the second");
    a.unmount("v", "c").await.unwrap();
    a.assert_clean(&cloud);
    b.assert_clean(&cloud);
}

/// Of several hosts that all want the volume of a dead one, one gets it.
#[tokio::test]
async fn of_many_hosts_one_takes_over() {
    let cloud = revoking_cloud().await;
    let mut dead = holder(&cloud, &json!({})).await;
    dead.kill();
    let others = [
        proven_host(&cloud, &json!({})).await,
        proven_host(&cloud, &json!({})).await,
        proven_host(&cloud, &json!({})).await,
    ];
    let answers =
        futures_util::future::join_all(others.iter().map(|other| other.mount("v", "d"))).await;
    let won: Vec<usize> = (0..3).filter(|index| answers[*index].is_ok()).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    let winner = &others[won[0]];
    for (index, (other, answer)) in others.iter().zip(&answers).enumerate() {
        if index != won[0] {
            let error = answer.as_ref().unwrap_err();
            assert!(error.contains("volume") && error.contains("since"), "{error}");
            assert_eq!(other.liabilities(), Vec::<String>::new());
        }
    }
    winner.unmount("v", "d").await.unwrap();
    winner.until_clean().await;
    // What the dead one held here is let go of without a word to the others.
    dead.run().await;
    dead.unmount("v", "c").await.ok();
    dead.until_clean().await;
    assert_eq!(cloud.status("v").await, "available");
}

/// A host that lives is never taken for gone, however long another waits and whatever it asks.
#[tokio::test]
async fn a_host_that_lives_keeps_its_volume() {
    let cloud = Cloud::start().await;
    let a = holder(&cloud, &json!({})).await;
    let b = proven_host(&cloud, &json!({})).await;
    let of_a = attachment(&cloud).await;
    // Three leases.
    let error = b.mount("v", "d").await.unwrap_err();
    assert!(error.contains("no sign of life for"), "{error}");
    assert_eq!(attachment(&cloud).await, of_a);
    fs::write(a.mount_point().join("v/volume_content/bytes"), "still here").unwrap();
    a.unmount("v", "c").await.unwrap();
    // Nothing is renewed that is not mounted.
    a.until_clean().await;
    cloud.forget_calls();
    tokio::time::sleep(Duration::from_secs(LEASE / 2)).await;
    assert_eq!(cloud.calls(), Vec::<String>::new());
}

/// Refused for good: `WaitForRelease` of a second must do.
async fn assert_never(cloud: &Cloud, b: &Node, why: &str) {
    let before = attachment(cloud).await;
    // The first look begins the lease.
    let first = b.mount("v", "d").await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(LEASE + 1)).await;
    let error = b.mount("v", "d").await.unwrap_err();
    assert!(first.contains(why) && error.contains(why), "{first}\n{error}");
    assert_eq!(attachment(cloud).await, before);
    assert_eq!(b.liabilities(), Vec::<String>::new());
}

#[tokio::test]
async fn without_a_proof_nothing_is_taken() {
    let cloud = Cloud::start().await;
    let mut a = holder(&cloud, &json!({})).await;
    a.kill();
    let b = Node::start_with(&cloud, config(&json!({ "WaitForRelease": 1 }))).await;
    assert_never(&cloud, &b, "prove-failover").await;
}

#[tokio::test]
async fn who_gives_no_signs_of_life_is_never_taken_for_gone() {
    let cloud = Cloud::start().await;
    let mut a = holder(&cloud, &json!({ "Failover": null })).await;
    a.kill();
    let b = proven_host(&cloud, &json!({ "WaitForRelease": 1 })).await;
    assert_never(&cloud, &b, "gives no signs of life").await;
}

#[tokio::test]
async fn off_means_off() {
    let cloud = Cloud::start().await;
    let mut a = holder(&cloud, &json!({})).await;
    a.kill();
    let b = proven_host(&cloud, &json!({ "Failover": null, "WaitForRelease": 1 })).await;
    assert_never(&cloud, &b, "cinder-docker-driver release v").await;
    let b = proven_host(&cloud, &json!({ "Failover": ["another"], "WaitForRelease": 1 })).await;
    assert_never(&cloud, &b, "cinder-docker-driver release v").await;
}

/// The holder's renewals fail while Cinder is down, and so do the looks of the other: nobody is
/// taken for gone, and what is mounted works on.
#[tokio::test]
async fn an_outage_of_cinder_is_nobodys_death() {
    let cloud = Cloud::start().await;
    let a = holder(&cloud, &json!({})).await;
    let b = proven_host(&cloud, &json!({ "WaitForRelease": 1 })).await;
    let of_a = attachment(&cloud).await;
    b.mount("v", "d").await.unwrap_err();
    cloud.fail(Rule::on("*", Action::Answer(Canned::status(503))).forever());
    tokio::time::sleep(Duration::from_secs(2 * LEASE)).await;
    fs::write(a.mount_point().join("v/volume_content/bytes"), "in the outage").unwrap();
    b.mount("v", "d").await.unwrap_err();
    cloud.clear_faults();
    // The first one to be back is the holder.
    let end = Instant::now() + Duration::from_secs(60);
    cloud.forget_calls();
    while !cloud.calls().iter().any(|call| call == "set-metadata") {
        assert!(Instant::now() < end, "{:?}", cloud.calls());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    b.mount("v", "d").await.unwrap_err();
    assert_eq!(attachment(&cloud).await, of_a);
    a.unmount("v", "c").await.unwrap();
}

/// Loop devices go on answering, and that is what the proof says.
#[tokio::test]
async fn a_storage_that_cuts_nobody_off_is_found_out() {
    let cloud = Cloud::start().await;
    let node = Node::start_with(&cloud, config(&json!({}))).await;
    node.create("v", json!({})).await.unwrap();
    let id = cloud.volume("v").await["id"].as_str().unwrap().to_owned();
    prove(&node);
    let output = node.cli(&["prove-failover", "v", "--id", &id]).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("does not cut a host off"), "{said}");
    node.until_clean().await;
    node.assert_clean(&cloud);
    assert_eq!(cloud.status("v").await, "available");
    let proven = fs::read_to_string(node.state_dir().join("failover.json")).unwrap();
    assert!(!proven.contains(TYPE), "{proven}");
    // It was read, and nothing was written: a container can have it.
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    // Now it holds something.
    let output = node.cli(&["prove-failover", "v", "--id", &id]).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("with a volume that holds nothing"), "{said}");
    node.assert_clean(&cloud);
}
