//! What runs beside a container is restarted, and the container does not notice.

use serde_json::json;

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, Project, is_asked_for};

/// A container that writes a line twice a second, and syncs it.
const WRITER: &str = "docker run -d --network none --name writer -v data:/data --volume-driver=cinder busybox \
    sh -c 'while echo line >>/data/log && sync; do sleep 0.5; done'";
const LINES: &str = "docker exec writer sh -c 'wc -l </data/log'";

/// The container still writes: there are more lines than now.
async fn assert_writes(node: &Node) {
    let before = node.until(LINES).await;
    node.until(&format!("test $({LINES}) -gt {before}")).await;
}

/// While a container writes: `docker cp` into it, a second container, then restarts of the plugin
/// (killed, and stopped in order), of iscsid, and of dockerd with live-restore. It writes on, its
/// volume stays in use, and the last container takes the volume away.
async fn restarts(image: &str) {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("box", image, &project, json!({})).await;
    // With live-restore containers go on without dockerd.
    node.sh("jq '.[\"live-restore\"] = true' /etc/docker/daemon.json >/root/daemon.json && \
             mv /root/daemon.json /etc/docker/daemon.json && systemctl reload docker")
        .await;
    node.sh(WRITER).await;
    assert_writes(&node).await;

    node.sh("echo copied >file && docker cp file writer:/data/file").await;
    assert_eq!(node.sh("docker exec writer cat /data/file").await, "copied");
    assert_eq!(
        node.sh("docker run --rm --network none -v data:/data busybox cat /data/file").await,
        "copied"
    );
    assert_writes(&node).await;

    for restart in [
        "systemctl kill --signal=KILL cinder-docker-driver",
        "systemctl restart cinder-docker-driver",
        "systemctl restart iscsid",
        "systemctl restart docker",
    ] {
        node.sh(restart).await;
        node.until("systemctl is-active docker cinder-docker-driver").await;
        assert_eq!(project.status("data").await, "in-use", "{restart}");
        // What came and went before the restart is not counted again, and the volume can be used.
        assert_eq!(
            node.sh("docker run --rm --network none -v data:/data busybox cat /data/file").await,
            "copied"
        );
        let refused = node.fails("docker volume rm data").await;
        assert!(refused.contains("in use"), "{restart}: {refused}");
        assert_writes(&node).await;
    }

    node.sh("docker rm -f writer").await;
    project.until("data", "available").await;
    assert_eq!(
        node.sh("docker run --rm --network none -v data:/data busybox cat /data/file").await,
        "copied"
    );
    node.sh("docker volume rm data").await;
    node.assert_clean().await;
    project.assert_clean().await;
}

#[tokio::test]
async fn restarts_beside_a_writing_container_on_debian_12() {
    restarts(DEBIAN_12).await;
}

#[tokio::test]
async fn restarts_beside_a_writing_container_on_debian_13() {
    restarts(DEBIAN_13).await;
}
