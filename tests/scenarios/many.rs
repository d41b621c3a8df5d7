//! Many volumes at once, many on one target, many ways to one target.

use futures_util::future::join_all;
use serde_json::json;

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, Project, exports, is_asked_for};

/// Eight new volumes at once on two nodes, then each on the other node: everyone finds the data of
/// its own volume, and nothing is left over.
#[tokio::test]
async fn eight_volumes_at_once_on_two_nodes() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let (one, two) = tokio::join!(
        Node::with_driver("one", DEBIAN_12, &project, json!({})),
        Node::with_driver("two", DEBIAN_13, &project, json!({})),
    );
    let nodes = [&one, &two];
    let write = (0..8).map(|n| async move {
        let node = nodes[n % 2];
        node.sh(&format!(
            "docker run --rm --network none -v data-{n}:/data --volume-driver=cinder busybox \
             sh -c 'ls -A /data; echo {n} >/data/n'"
        ))
        .await
    });
    assert_eq!(join_all(write).await, [""; 8], "new volumes are empty");
    let read = (0..8).map(|n| async move {
        let node = nodes[(n + 1) % 2];
        node.sh(&format!("docker run --rm --network none -v data-{n}:/data busybox cat /data/n"))
            .await
    });
    assert_eq!(join_all(read).await, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    one.assert_clean().await;
    two.assert_clean().await;
    project.assert_clean().await;
    let names: Vec<String> = (0..8).map(|n| format!("data-{n}")).collect();
    one.sh(&format!("docker volume rm {}", names.join(" "))).await;
    assert_eq!(project.volumes().await.len(), 0);
}

/// Volumes of an array are LUNs of one target, over one session. One that goes does not disturb
/// the others, its number is used again for another volume, and the session ends with the last.
#[tokio::test]
async fn several_luns_on_one_target() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("box", DEBIAN_12, &project, json!({})).await;
    let other = Node::with_driver("other", DEBIAN_13, &project, json!({})).await;
    for name in ["aa", "bb", "cc", "dd"] {
        node.sh(&format!("docker volume create -d cinder -o type=array {name}")).await;
    }
    let hold = |name: &str| {
        format!(
            "docker run -d --network none --name {name} -v {name}:/data busybox \
             sh -c 'cat /data/name; echo {name} >/data/name; sync; exec sleep infinity'"
        )
    };
    for name in ["aa", "bb", "cc"] {
        node.sh(&hold(name)).await;
    }
    let sessions = "ls /sys/class/iscsi_session | wc -l";
    assert_eq!(node.sh(sessions).await, "1");
    assert_eq!(node.sh("ls -d /sys/block/sd* | wc -l").await, "3");

    // bb goes, on another host dd comes by the LUN number that is free now, and bb comes again.
    node.sh("docker rm -f bb").await;
    node.until("test $(ls -d /sys/block/sd* | wc -l) = 2").await;
    other.sh(&hold("dd")).await;
    assert_eq!(node.sh(&hold("bb").replace("--name bb", "--name bb2")).await.len(), 64);
    assert_eq!(node.until("docker logs bb2 | grep .").await, "bb");
    assert_eq!(node.sh(sessions).await, "1");
    for name in ["aa", "bb2", "cc"] {
        let name_of_volume = &name[..2];
        assert_eq!(node.sh(&format!("docker exec {name} cat /data/name")).await, name_of_volume);
    }
    // Each sees its own LUN only.
    assert_eq!(other.sh("ls -d /sys/block/sd* | wc -l").await, "1");
    assert_eq!(other.sh("docker exec dd cat /data/name").await, "dd");

    node.sh("docker rm -f aa bb2 cc").await;
    other.sh("docker rm -f dd").await;
    node.assert_clean().await;
    other.assert_clean().await;
    project.assert_clean().await;
    node.sh("docker volume rm aa bb cc dd").await;
}

/// Cinder names two portals, and the first is dead: the second is used. The cable of the one in
/// use is pulled for a moment while a container writes: it writes on.
#[tokio::test]
async fn two_portals_of_which_one_is_dead() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("box", DEBIAN_12, &project, json!({})).await;
    node.sh("docker volume create -d cinder -o type=two-portals data").await;
    let writer = "docker run -d --network none --name writer -v data:/data busybox \
        sh -c 'while echo line >>/data/log && sync; do sleep 0.5; done'";
    let portal = "cat /sys/class/iscsi_connection/*/persistent_address";

    // Both live: Cinder's first.
    node.sh(writer).await;
    assert_eq!(node.sh(portal).await, "10.0.4.2");
    node.sh("docker rm -f writer").await;
    node.assert_clean().await;

    node.link("san-b", false).await;
    node.sh(writer).await;
    assert_eq!(node.sh(portal).await, "10.0.2.2");
    let lines = "docker exec writer sh -c 'wc -l </data/log'";
    let before = node.sh(lines).await;
    node.link("san-b", true).await;
    node.link("san-a", false).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    node.link("san-a", true).await;
    node.until(&format!("test $({lines}) -gt $(({before} + 8))")).await;

    node.sh("docker rm -f writer").await;
    node.assert_clean().await;
    project.assert_clean().await;
    let id = project.id("data").await;
    assert!(!exports().await.contains(&id));
    node.sh("docker volume rm data").await;
}
