//! The heart of it: a container's data follows it from host to host.

use serde_json::json;

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, Project, is_asked_for};

const UUIDS: [&str; 2] =
    ["219b0670-a214-4281-8424-5bb3beaaa106", "219b0670-a214-4281-8424-5bb3beaaa107"];
/// Even, so that the data comes home.
const MOVES: usize = 6;
/// Of `tests/run --long`.
const MANY_MOVES: usize = 20;

/// The file that a step writes.
fn name(step: usize) -> String {
    format!("{step:02}.bin")
}

/// A container on node 1 writes; it is killed; on node 2 one reads. There and back, again and again:
/// Cinder always names the node that has it, what was written is there, and nothing is left over.
#[tokio::test]
async fn moves_between_two_nodes_lose_nothing() {
    if !is_asked_for() {
        return;
    }
    let moves = if std::env::var_os("CINDER_LONG").is_some() { MANY_MOVES } else { MOVES };
    let project = Project::create().await;
    let (one, two) = tokio::join!(
        Node::with_driver("one", DEBIAN_12, &project, json!({ "HostUUID": UUIDS[0] })),
        Node::with_driver("two", DEBIAN_13, &project, json!({ "HostUUID": UUIDS[1] })),
    );
    let nodes = [&one, &two];
    one.sh("docker volume create -d cinder -o size=1 data").await;
    // Checksums of what is on the volume, the newest last.
    let mut written: Vec<String> = Vec::new();
    for step in 0..=moves {
        let (here, there) = (nodes[step % 2], nodes[(step + 1) % 2]);
        let is_end = step == 0 || step == moves;
        // At each move what came last is read; at the last one everything.
        let known = if is_end { written.len() } else { 1 };
        let read = (step - known..step).map(name).collect::<Vec<_>>().join(" ");
        let megabytes = if is_end { 100 } else { 1 };
        let script = format!(
            "cd /data; sha256sum {read} </dev/null; \
             dd if=/dev/urandom of={new} bs=1M count={megabytes} 2>/dev/null; sha256sum {new}; \
             sync; echo ready; exec sleep infinity",
            new = name(step)
        );
        here.sh(&format!(
            "docker run -d --name mover --network none -v data:/data ubuntu sh -c '{script}'"
        ))
        .await;
        let log = here.until("docker logs mover 2>&1 | grep -B 100 ready").await;
        let mut sums: Vec<String> =
            log.lines().filter(|line| line.ends_with(".bin")).map(str::to_owned).collect();
        let new = sums.pop().unwrap();
        assert_eq!(sums, written[written.len() - known..], "move {step}: {log}");
        written.push(new);
        let volume = project.volume("data").await;
        assert_eq!(volume["attachments"][0]["server_id"], UUIDS[step % 2], "{volume}");
        assert_eq!(there.leftovers().await, "", "move {step}");
        here.sh("docker kill mover && docker rm mover").await;
    }
    project.until("data", "available").await;
    one.assert_clean().await;
    two.assert_clean().await;
    project.assert_clean().await;
    one.sh("docker volume rm data").await;
    assert_eq!(project.volumes().await.len(), 0);
}
