//! A node goes down with a volume in use, in order or not, and comes back.

use serde_json::{Value, json};

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, Project, is_asked_for};

/// A container that comes back by itself, counts its starts, and writes numbered lines, each of
/// which is on the disk before the next is written.
const WRITER: &str = "docker run -d --network none --name writer --restart always -v data:/data \
    --volume-driver=cinder busybox sh -c 'echo start >>/data/starts; touch /data/log; \
    n=$(wc -l </data/log); while n=$((n + 1)) && echo $n >>/data/log && sync; do sleep 0.5; done'";

/// A number that is on the disk: the last but one of at least five.
async fn synced(node: &Node) -> u64 {
    node.until("docker exec writer sh -c 'test $(wc -l </data/log) -gt 5'").await;
    let line = "docker exec writer sh -c 'tail -n 2 /data/log | head -n 1'";
    node.sh(line).await.parse().unwrap()
}

/// All numbers up to `at_least` are there, in order and once.
async fn assert_complete(node: &Node, at_least: u64) {
    let log = node.sh("docker exec writer cat /data/log").await;
    let numbers: Vec<u64> = log.lines().map_while(|line| line.parse().ok()).collect();
    let expected: Vec<u64> = (1..=at_least).collect();
    assert!(numbers.len() >= expected.len(), "only {} of {at_least} lines", numbers.len());
    assert_eq!(numbers[..expected.len()], expected[..]);
}

/// A node is rebooted while a container writes. Afterwards the container runs again, on its
/// volume, with all that it had written, and nobody had to help.
#[tokio::test]
async fn a_node_that_reboots_gets_its_volumes_back() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("box", DEBIAN_13, &project, json!({})).await;
    node.sh(WRITER).await;
    let written = synced(&node).await;
    node.shut_down().await;
    node.power_on().await;
    node.until("docker exec writer sh -c 'test $(wc -l </data/starts) = 2'").await;
    assert_complete(&node, written).await;
    assert_eq!(project.status("data").await, "in-use");
    node.sh("docker rm -f writer && docker volume rm data").await;
    node.assert_clean().await;
    project.assert_clean().await;
}

/// The power of a node fails while a container writes. Another node is refused, with an error that
/// names the holder: nobody knows that it is dead. When it is back, its container runs again with
/// every line that had reached the disk; and then, once the container has ended, the other node
/// gets the volume. With either attach flow.
async fn power_cut(one: (&str, Value), two: (&str, Value)) {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let (one, two) = tokio::join!(
        Node::with_driver("one", one.0, &project, one.1),
        Node::with_driver("two", two.0, &project, two.1),
    );
    one.sh(WRITER).await;
    let written = synced(&one).await;
    one.cut_power().await;

    let refused = two.fails("docker run --rm --network none -v data:/data busybox true").await;
    assert!(refused.contains("\"data\"") && refused.contains(&one.name), "{refused}");
    assert!(refused.contains("since"), "{refused}");
    assert_eq!(project.status("data").await, "in-use");
    assert_eq!(two.leftovers().await, "");

    one.power_on().await;
    one.until("docker exec writer sh -c 'test $(wc -l </data/starts) = 2'").await;
    assert_complete(&one, written).await;
    let refused = two.fails("docker run --rm --network none -v data:/data busybox true").await;
    assert!(refused.contains(&one.name), "{refused}");

    let written = synced(&one).await;
    one.sh("docker rm -f writer").await;
    let read = two.sh("docker run --rm --network none -v data:/data busybox cat /data/log").await;
    assert!(read.lines().count() as u64 >= written, "{written} lines were written: {read}");
    two.sh("docker volume rm data").await;
    one.assert_clean().await;
    two.assert_clean().await;
    project.assert_clean().await;
}

#[tokio::test]
async fn a_power_cut_loses_nothing_that_was_synced_with_actions() {
    let uuid =
        |last: u32| json!({ "HostUUID": format!("219b0670-a214-4281-8424-5bb3beaaa{last}") });
    power_cut((DEBIAN_12, uuid(106)), (DEBIAN_13, uuid(107))).await;
}

#[tokio::test]
async fn a_power_cut_loses_nothing_that_was_synced_with_attachments() {
    power_cut((DEBIAN_13, json!({})), (DEBIAN_12, json!({}))).await;
}
