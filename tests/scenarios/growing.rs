//! A volume grows below a container that writes, on a real iSCSI target and a real Cinder.

use serde_json::json;

use crate::rig::{DEBIAN_12, Node, Project, is_asked_for};

/// A container that writes a line twice a second, and syncs it.
const WRITER: &str = "docker run -d --network none --name writer -v data:/data --volume-driver=cinder busybox \
    sh -c 'while echo line >>/data/log && sync; do sleep 0.5; done'";
const LINES: &str = "docker exec writer sh -c 'wc -l </data/log'";
/// MiB that the container has.
const SPACE: &str = "docker exec writer sh -c 'df -m /data | tail -1' | awk '{print $2}'";

/// Cinder extends the volume, its back end makes the target show it, the kernel reads the size again,
/// and ext4 grows, all while a container writes; then a snapshot is taken of it, frozen for the
/// moment, and restored beside it. The container was not restarted and lost no line.
#[tokio::test]
async fn a_volume_grows_below_a_container_that_writes() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("box", DEBIAN_12, &project, json!({})).await;
    node.sh(WRITER).await;
    let lines = node.until(LINES).await;
    let before: u64 = node.sh(SPACE).await.trim().parse().unwrap();
    let started = "docker inspect -f '{{.State.StartedAt}}' writer";
    let since = node.sh(started).await;

    let said = node.sh("cinder-docker-driver resize data 3").await;
    assert!(said.contains("has 3 GiB now, and had 1"), "{said}");
    assert!(said.contains("has grown from"), "{said}");
    let after: u64 = node.sh(SPACE).await.trim().parse().unwrap();
    assert!(before < 1024 && after > 2700, "{before} {after}");
    node.until(&format!("test $({LINES}) -gt {lines}")).await;
    let volume = project.volume("data").await;
    assert_eq!((&volume["size"], &volume["status"]), (&json!(3), &json!("in-use")));
    // The session that the target may have ended is there again, and the kernel had no errors.
    let errors = node.sh("dmesg | grep -Ei 'ext4-fs error|i/o error|remounting' || true").await;
    assert_eq!(errors, "");

    let lines = node.sh(LINES).await;
    let said = node.sh("cinder-docker-driver snapshot data then").await;
    assert!(said.contains("frozen for"), "{said}");
    node.until(&format!("test $({LINES}) -gt {lines}")).await;
    node.sh("docker volume create -d cinder -o from=data@then -o size=4 copy").await;
    let copied = node
        .sh("docker run --rm --network none -v copy:/data busybox sh -c 'wc -l </data/log'")
        .await;
    let (copied, lines): (u64, u64) =
        (copied.trim().parse().unwrap(), lines.trim().parse().unwrap());
    assert!(copied >= lines, "{copied} of {lines} lines");
    assert_eq!(node.sh(started).await, since, "it was restarted");

    node.sh("docker rm -f writer && docker volume rm copy").await;
    project.until("data", "available").await;
    // A free volume grows with its next start.
    node.sh("cinder-docker-driver resize data 5").await;
    let size = node
        .sh("docker run --rm --network none -v data:/data busybox sh -c 'df -m /data | tail -1'")
        .await;
    let size: u64 = size.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(size > 4600, "{size}");
    node.sh("id=$(cinder-docker-driver snapshots --json data | jq -r '.[0].id') && \
         cinder-docker-driver snapshot --delete data then --id $id")
        .await;
    node.sh("docker volume rm data").await;
    node.assert_clean().await;
    project.assert_clean().await;
}
