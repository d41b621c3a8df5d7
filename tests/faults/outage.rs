//! Clouds that are away for long, come back, flap, or are not all there: stories, each from the
//! trouble to the state in which nothing is left of it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use cinder_docker_driver::sandbox::Behaviour;
use cinder_docker_driver::sandbox::faults::{Action, Canned, Rule};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Cloud, Node, loops_of, sh};

/// Containers that come and go at once while Cinder flaps.
const CONTAINERS: usize = 16;
/// So often a call is repeated before it counts as never succeeding.
const TRIES: u32 = 300;

async fn write(node: &Node, name: &str, id: &str, text: &str) {
    let path = node.mount(name, id).await.unwrap();
    fs::write(path.join("bytes"), text).unwrap();
}

fn read(node: &Node, name: &str) -> String {
    let file = node.mount_point().join(name).join("volume_content/bytes");
    fs::read_to_string(file).unwrap()
}

/// What a host is after a power cut: no mount, no device, another boot.
fn reboot(node: &mut Node, cloud: &Cloud) {
    node.kill();
    for mount in node.mounts() {
        sh(&format!("umount {mount}"));
    }
    for device in loops_of(cloud.dir()) {
        sh(&format!("losetup -d {}", device.display()));
    }
    for file in fs::read_dir(node.state_dir().join("volumes")).unwrap().flatten() {
        let mut entry: Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
        if entry.get("boot_id").is_some() {
            entry["boot_id"] = json!("00000000-0000-0000-0000-000000000000");
            fs::write(file.path(), entry.to_string()).unwrap();
        }
    }
}

/// All that containers need of a host whose cloud is away. `used` is mounted, `idle` is known here.
async fn assert_containers_go_on(node: &Node, used: &str, idle: &str) {
    let mounted = node.get(used).await.unwrap();
    let content = node.mount_point().join(used).join("volume_content");
    assert_eq!(mounted["Mountpoint"], content.to_str().unwrap());
    assert_eq!(node.get(idle).await.unwrap()["Mountpoint"], "");
    let path = node.call("Path", json!({ "Name": used })).await.unwrap();
    assert_eq!(path["Mountpoint"], content.to_str().unwrap());
    // A second container comes and goes; the first one's mount is untouched.
    let before = read(node, used);
    write(node, used, "second", &before).await;
    node.unmount(used, "second").await.unwrap();
    let error = node.mount(idle, "c").await.unwrap_err();
    assert!(error.contains(idle) && error.contains("no connection"), "{error}");
    let error = node.create("new", json!({})).await.unwrap_err();
    assert!(error.contains("new") && error.contains("no connection"), "{error}");
    // Unknown is not proven absent, and a part is no list.
    node.get("unknown").await.unwrap_err();
    node.list().await.unwrap_err();
}

async fn a_long_outage(flow: &str) {
    let mut cloud = Cloud::start().await;
    let mut node = Node::start_with(&cloud, json!({ "AttachFlow": flow })).await;
    let volumes = ["stays", "stops", "survives", "idle"];
    for name in volumes {
        node.create(name, json!({})).await.unwrap();
        write(&node, name, "c", &format!("{name} before")).await;
    }
    node.unmount("idle", "c").await.unwrap();

    let address = cloud.go_down().await;
    assert_containers_go_on(&node, "stays", "idle").await;
    write(&node, "stops", "second", "stops during").await;
    node.unmount("stops", "c").await.unwrap();
    node.unmount("stops", "second").await.unwrap();
    assert_eq!(node.mounts().len(), 2, "it stopped here: {:?}", node.mounts());

    node.kill();
    node.run().await;
    write(&node, "survives", "second", "survives a kill").await;
    assert_containers_go_on(&node, "stays", "idle").await;
    assert_eq!(read(&node, "stays"), "stays before");
    // The daemon died while both had it, and is told of both.
    node.unmount("survives", "c").await.unwrap();
    assert_eq!(read(&node, "survives"), "survives a kill");

    reboot(&mut node, &cloud);
    node.run().await;
    // What this host holds in Cinder cannot be had afresh before it was given back there.
    let error = node.mount("stays", "c").await.unwrap_err();
    assert!(error.contains("stays") && error.contains("no connection"), "{error}");
    node.unmount("survives", "second").await.unwrap();
    node.kill();
    node.run().await;

    cloud.come_back(address).await;
    // The first one that is asked for comes at once; the others are given back in the background.
    write(&node, "stays", "c", "stays after").await;
    node.unmount("stays", "c").await.unwrap();
    node.until_clean().await;
    node.assert_clean(&cloud);
    let bytes = ["stays after", "stops during", "survives a kill", "idle before"];
    for (name, bytes) in volumes.into_iter().zip(bytes) {
        assert_eq!(cloud.status(name).await, "available");
        node.mount(name, "c").await.unwrap();
        assert_eq!(read(&node, name), bytes);
        node.unmount(name, "c").await.unwrap();
    }
    node.assert_clean(&cloud);
    assert_eq!(cloud.volumes().await.len(), volumes.len());
    println!("{flow}: longest answer {:.1} s", node.longest_answer().as_secs_f32());
}

#[tokio::test]
async fn containers_run_and_stop_while_the_cloud_is_away_for_long() {
    a_long_outage("attachments").await;
    a_long_outage("actions").await;
}

#[tokio::test]
async fn a_daemon_that_starts_before_its_cloud_needs_no_restart() {
    let mut cloud = Cloud::start().await;
    let id = cloud.create("v", json!({})).await;
    let config = cloud.sandbox.config();
    let address = cloud.go_down().await;
    let mut node = Node::prepare(config, json!({}));
    node.run().await;
    for (call, error) in [
        ("Get", node.get("v").await.unwrap_err()),
        ("Mount", node.mount("v", "c").await.unwrap_err()),
        ("Create", node.create("v", json!({})).await.unwrap_err()),
        ("Remove", node.remove("v").await.unwrap_err()),
    ] {
        let says_why = error.contains("\"v\"")
            && error.contains("no connection to Keystone")
            && error.contains(&address.to_string());
        assert!(says_why, "{call}: {error}");
    }
    cloud.come_back(address).await;
    assert_eq!(node.get("v").await.unwrap()["Status"]["id"], *id);
    write(&node, "v", "c", "v").await;
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_reserve_that_happens_after_its_answer_is_given_back() {
    for (flow, call, status) in
        [("attachments", "attachment-create", "reserved"), ("actions", "os-reserve", "attaching")]
    {
        for killed in [false, true] {
            let cloud = Cloud::start().await;
            let mut node = Node::start_with(&cloud, json!({ "AttachFlow": flow })).await;
            node.create("v", json!({})).await.unwrap();
            cloud.fail_once(call, Action::AnswerBefore(Canned::status(504), 3_000));
            let error = node.mount("v", "c").await.unwrap_err();
            assert!(error.contains("504"), "{error}");
            // Nobody asks again, and it has not happened yet.
            assert_eq!(cloud.status("v").await, "available");
            if killed {
                node.kill();
                node.run().await;
            }
            cloud.until("v", status).await;
            cloud.let_ten_minutes_pass("v").await;
            cloud.until("v", "available").await;
            node.until_clean().await;
            node.assert_clean(&cloud);
        }
    }
}

#[tokio::test]
async fn a_catalog_without_block_storage_is_explained_and_looked_at_again() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    cloud.sandbox.set_behaviour(Behaviour { block_storage: false, ..Behaviour::default() });
    for (call, error) in [
        ("Get", node.get("v").await.unwrap_err()),
        ("Mount", node.mount("v", "c").await.unwrap_err()),
        ("Create", node.create("v", json!({})).await.unwrap_err()),
    ] {
        for part in ["\"v\"", "block storage", "RegionOne", "interface public", "identity", "image"]
        {
            assert!(error.contains(part), "{call} does not say {part}: {error}");
        }
    }
    // Somebody registers it.
    cloud.sandbox.set_behaviour(Behaviour::default());
    node.create("v", json!({})).await.unwrap();
    write(&node, "v", "c", "v").await;
    // It vanishes again: what is here needs no catalog, and what Cinder must be told waits.
    cloud.sandbox.set_behaviour(Behaviour { block_storage: false, ..Behaviour::default() });
    cloud.sandbox.revoke_tokens();
    node.mount("v", "d").await.unwrap();
    node.unmount("v", "d").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    assert_eq!((node.mounts().len(), node.liabilities().len()), (0, 1), "it stopped here");
    cloud.sandbox.set_behaviour(Behaviour::default());
    node.until_clean().await;
    node.assert_clean(&cloud);
    assert_eq!(cloud.status("v").await, "available");
}

#[tokio::test]
async fn a_cloud_that_asks_for_an_hour_is_not_waited_for() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for name in ["used", "idle", "old"] {
        node.create(name, json!({})).await.unwrap();
    }
    write(&node, "used", "c", "used").await;
    cloud.fail(Rule::on("*", Action::Answer(Canned::retry_after(429, 3600))).forever());
    for (call, name, error) in [
        ("Mount", "idle", node.mount("idle", "c").await.unwrap_err()),
        ("Create", "new", node.create("new", json!({})).await.unwrap_err()),
        ("Remove", "old", node.remove("old").await.unwrap_err()),
    ] {
        let says_why = error.contains(name) && error.contains("try again later");
        assert!(says_why, "{call}: {error}");
    }
    node.unmount("used", "c").await.unwrap();
    assert_eq!(node.mounts(), Vec::<String>::new());
    cloud.clear_faults();
    node.until_clean().await;
    node.assert_clean(&cloud);
    node.remove("old").await.unwrap();
    node.mount("used", "c").await.unwrap();
    assert_eq!(read(&node, "used"), "used");
    node.unmount("used", "c").await.unwrap();
    assert_eq!(cloud.volumes().await.len(), 2);
    // An hour was asked for; no call may have lasted even near Docker's patience.
    assert!(node.longest_answer() < Duration::from_secs(50), "{:?}", node.longest_answer());
}

/// Calls until it succeeds, as people do; how often it failed. Where 10 minutes must pass first, they
/// do.
async fn insist(
    cloud: &Cloud,
    name: &str,
    mut call: impl AsyncFnMut() -> Result<(), String>,
) -> u32 {
    let mut last = String::new();
    for failed in 0..TRIES {
        match call().await {
            Ok(()) => return failed,
            Err(error) => last = error,
        }
        assert!(last.contains(name), "an error names its volume: {last}");
        if last.contains("left alone until nothing has changed for 10 min") {
            let id = last.split(' ').find(|word| uuid::Uuid::parse_str(word).is_ok()).unwrap();
            cloud.force(id, json!({ "updated_at": "2020-01-01T00:00:00.000000" }));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{name}: failed {TRIES} times, at last: {last}");
}

#[tokio::test]
async fn sixteen_containers_come_and_go_while_cinder_flaps() {
    // The actions flow needs twice the calls for a mount, none of which may fail. Where half of them
    // do, a mount succeeds after minutes.
    for (flow, one_in) in [("attachments", 3), ("actions", 4)] {
        let cloud = Cloud::start().await;
        let node = Node::start_with(&cloud, json!({ "AttachFlow": flow })).await;
        // In no order: if it were every second one exactly, a volume that is left alone with the
        // cloud might never succeed.
        let mut random = 1_u32;
        for n in 1..20_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if random < u32::MAX / one_in {
                cloud.fail(Rule::on("*", Action::Answer(Canned::status(500))).from_nth(n));
            }
        }
        let one = async |index: usize| {
            let name = format!("flap{index}");
            let mut failed = BTreeMap::new();
            let create = async || node.create(&name, json!({})).await;
            failed.insert("Create", insist(&cloud, &name, create).await);
            let mount = async || node.mount(&name, "c").await.map(drop);
            failed.insert("Mount", insist(&cloud, &name, mount).await);
            write(&node, &name, "d", &name).await;
            node.unmount(&name, "c").await.unwrap();
            assert_eq!(read(&node, &name), name, "its other container has it");
            node.unmount(&name, "d").await.unwrap();
            failed
        };
        let mut failed: BTreeMap<&str, u32> = BTreeMap::new();
        for part in join_all((0..CONTAINERS).map(one)).await {
            for (call, count) in part {
                *failed.entry(call).or_insert(0) += count;
            }
        }
        let calls = cloud.calls().len();
        cloud.clear_faults();
        for index in 0..CONTAINERS {
            cloud.let_ten_minutes_pass(&format!("flap{index}")).await;
        }
        node.until_clean().await;
        node.assert_clean(&cloud);
        for index in 0..CONTAINERS {
            let name = format!("flap{index}");
            assert_eq!(cloud.status(&name).await, "available");
            node.mount(&name, "c").await.unwrap();
            assert_eq!(read(&node, &name), name);
            node.unmount(&name, "c").await.unwrap();
        }
        assert_eq!(cloud.volumes().await.len(), CONTAINERS, "one volume for each name");
        println!(
            "{flow}: {CONTAINERS} containers, {calls} calls of which one in {one_in} \
             failed; answered with an error: {failed:?}; longest answer {:.1} s",
            node.longest_answer().as_secs_f32()
        );
        assert!(failed["Mount"] > 0 && calls > 200, "it did not flap: {failed:?} {calls}");
    }
}
