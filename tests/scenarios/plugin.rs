//! The driver as Docker's managed plugin, on hosts with nothing of it installed: its `iscsiadm` is the
//! plugin's, `iscsid` and the kernel are the host's.

use std::path::Path;

use serde_json::json;

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, Project, is_asked_for, until};
use crate::support;

/// Its program, and what it mounts, as the host sees them.
const PID: &str = "pidof cinder-docker-driver";
const MOUNTED: &str = "/var/lib/docker/plugins/*/propagated-mount";

/// Boots a machine and makes the plugin there as `docs/managed-plugin.md` says.
async fn node_with_plugin(label: &str, image: &str, project: &Project, plugin: &Path) -> Node {
    let node = Node::boot(label, image).await;
    node.put(plugin, "/root/plugin").await;
    node.write_config(project, json!({})).await;
    node.sh(
        "chmod 700 /var/lib/cinder/dockerdriver && docker plugin create cinder /root/plugin && \
         rm -r /root/plugin && docker plugin enable cinder",
    )
    .await;
    node
}

/// `cinder-docker-driver …` inside the plugin.
fn inside(command: &str) -> String {
    format!("nsenter --target $({PID}) --mount --net /usr/bin/cinder-docker-driver {command}")
}

/// Sessions, node records, disks, mounts: nothing is left, or will soon not be.
async fn assert_clean(node: &Node) {
    until(60, &format!("nothing is left over on {}", node.label), || async {
        let left = node
            .sh(&format!(
                "ls -d /sys/class/iscsi_session/* /sys/block/sd* 2>/dev/null
                 find /etc/iscsi/nodes /var/lib/iscsi/nodes -type f 2>/dev/null
                 grep propagated-mount/ /proc/self/mountinfo
                 ls -d {MOUNTED}/* 2>/dev/null
                 {} | tr -d ' \\n' | grep -v '^\\[\\]$'
                 true",
                inside("status --json")
            ))
            .await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// A volume on real iSCSI: written on one host and read on another; its session is the host's, and
/// survives the plugin; it is grown below a container, and frozen for a snapshot; and after a reboot
/// the container that Docker starts by itself has it again.
#[tokio::test]
async fn a_managed_plugin_uses_the_hosts_initiator() {
    if !is_asked_for() {
        return;
    }
    let built = tempfile::tempdir().unwrap();
    let plugin = built.path().join("plugin");
    support::sh(&format!(
        "cd '{root}' && strip -o '{at}/program' '{program}' && \
         plugin/build --tree / '{at}/program' '{at}/plugin'",
        root = env!("CARGO_MANIFEST_DIR"),
        program = support::binary().display(),
        at = built.path().display(),
    ));
    let project = Project::create().await;
    let (one, two) = tokio::join!(
        node_with_plugin("one", DEBIAN_12, &project, &plugin),
        node_with_plugin("two", DEBIAN_13, &project, &plugin),
    );
    for node in [&one, &two] {
        node.fails("command -v cinder-docker-driver").await;
    }

    one.sh("docker volume create -d cinder data").await;
    let write = "test -e /data/file || dd if=/dev/urandom of=/data/file bs=1M count=20 2>/dev/null; \
                 sha256sum /data/file; while echo line >>/data/log && sync; do sleep 0.5; done";
    let run = |how: &str, script: &str| {
        format!("docker run {how} --network none -v data:/data busybox sh -c '{script}'")
    };
    one.sh(&run("-d --name writer --restart always", write)).await;
    let sum = one.until("docker logs writer | grep /data/file").await;
    let lines = "docker exec writer sh -c 'wc -l </data/log'";
    let assert_writes = async || {
        let before = one.until(lines).await;
        one.until(&format!("test $({lines}) -gt {before}")).await;
    };
    assert_writes().await;

    // What holds it is the host's own session, with the secret in a record that only root reads.
    let id = project.id("data").await;
    let session = one.sh("iscsiadm -m session").await;
    assert!(session.contains(&format!("volume-{id}")) && session.lines().count() == 1, "{session}");
    let record = one.sh(&format!("stat -c %a /etc/iscsi/nodes/*volume-{id}/*")).await;
    assert_eq!(record, "600");
    let mount = format!("findmnt -no SOURCE,FSTYPE {MOUNTED}/data");
    assert_eq!(one.sh(&mount).await.split_whitespace().nth(1), Some("ext4"));
    let status = one.sh(&inside("status")).await;
    assert!(status.contains(&id) && status.contains("LOGGED_IN"), "{status}");

    // The plugin dies, and Docker starts it again: session and container are the same.
    let life = "docker inspect -f '{{.State.Pid}} {{.State.StartedAt}}' writer";
    let before = one.sh(life).await;
    one.sh(&format!("kill -KILL $({PID})")).await;
    one.until(PID).await;
    assert_writes().await;
    assert_eq!(one.sh("iscsiadm -m session").await, session);
    one.until(&run("--rm", "test -s /data/log")).await;
    assert_eq!(one.sh(life).await, before);
    let refused = one.fails("docker plugin disable cinder").await;
    assert!(refused.contains("in use"), "{refused}");

    let said = one.sh(&inside("resize data 2")).await;
    assert!(said.contains("has grown from"), "{said}");
    let space = "docker exec writer sh -c 'df -m /data | tail -1' | awk '{print $2}'";
    let space = one.sh(space).await;
    assert!(space.parse::<u32>().is_ok_and(|space| space > 1800), "{space}");
    let said = one.sh(&inside("snapshot data then")).await;
    assert!(said.contains("frozen for"), "{said}");
    assert_writes().await;
    assert_eq!(one.sh(life).await, before);

    // Another host is refused as long as this one has it, a reboot included.
    one.shut_down().await;
    let refused = two.fails(&run("--rm", "true")).await;
    assert!(refused.contains(&one.name), "{refused}");
    one.power_on().await;
    one.until("docker exec writer true").await;
    assert_writes().await;
    assert_eq!(one.sh("docker exec writer sha256sum /data/file").await, sum);
    one.sh("docker rm -f writer").await;
    project.until("data", "available").await;
    assert_clean(&one).await;

    // The data moves; and it stays over disable and enable, which an unused plugin lets happen.
    assert_eq!(two.sh(&run("--rm", "sha256sum /data/file; echo two >/data/two")).await, sum);
    two.sh("docker plugin disable cinder && docker plugin enable --timeout 120 cinder").await;
    assert_eq!(
        two.sh(&run("--rm", "cat /data/two; sha256sum /data/file")).await,
        format!("two\n{sum}")
    );
    assert_eq!(two.sh(&run("--rm", "sha256sum /data/file")).await, sum);
    assert_eq!(one.sh(&run("--rm", "cat /data/two")).await, "two");

    one.sh("docker volume create -d cinder -o from=data@then copy").await;
    let copied =
        one.sh("docker run --rm --network none -v copy:/data busybox sha256sum /data/file");
    assert_eq!(copied.await, sum);
    one.sh("docker volume rm copy").await;
    one.sh(&inside(&format!(
        "snapshot --delete data then --id {}",
        project
            .client(&["openstack", "volume", "snapshot", "show", "then", "-f", "value", "-c", "id"])
            .await
            .trim()
    )))
    .await;
    // Here it was created: for Docker that is a use of the plugin, until it is removed here.
    one.sh("docker volume rm data").await;
    for node in [&one, &two] {
        assert_clean(node).await;
        node.sh("docker plugin disable cinder && docker plugin rm cinder").await;
    }
    project.assert_clean().await;
}
