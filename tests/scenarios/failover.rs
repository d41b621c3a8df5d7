//! Hosts that are gone, or look like it, and others that take their volumes over by themselves.

use serde_json::{Value, json};

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, Project, api_ports, is_asked_for};

/// Writes numbered lines, each of which is on the disk before the next is written.
const WRITER: &str = "docker run -d --network none --name writer -v data:/data busybox sh -c \
    'touch /data/log; n=$(wc -l </data/log); \
     while n=$((n + 1)) && echo $n >>/data/log && sync; do sleep 0.5; done'";

fn failover() -> Value {
    json!({ "Failover": ["revoking", "lvmdriver-1"], "FailoverLease": 30, "WaitForRelease": 60 })
}

/// Two hosts with Failover, and a volume of storage that revokes, made and written to on the first.
async fn two_hosts() -> (Project, Node, Node) {
    let project = Project::create().await;
    let (one, two) = tokio::join!(
        Node::with_driver("one", DEBIAN_13, &project, failover()),
        Node::with_driver("two", DEBIAN_12, &project, failover()),
    );
    let prove = async {
        let proof = prove(&project, &two, "revoking").await;
        assert!(proof.is_ok_and(|said| said.contains("proven")));
    };
    let write = async {
        one.sh("docker volume create -d cinder -o type=revoking data").await;
        one.sh(WRITER).await;
    };
    tokio::join!(prove, write);
    (project, one, two)
}

/// Tries whether the storage of a type cuts a host off.
async fn prove(project: &Project, node: &Node, volume_type: &str) -> Result<String, String> {
    node.sh(&format!("docker volume create -d cinder -o type={volume_type} proof")).await;
    let id = project.id("proof").await;
    let output = node.run(&format!("cinder-docker-driver prove-failover proof --id {id}")).await;
    node.sh("docker volume rm proof").await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The number of lines that are on the disk: one less than there are, of at least five.
async fn synced(node: &Node) -> usize {
    node.until("docker exec writer sh -c 'test $(wc -l </data/log) -gt 5'").await;
    node.sh("docker exec writer sh -c 'wc -l </data/log'").await.parse::<usize>().unwrap() - 1
}

/// The log's lines, which must be all numbers from 1 on.
fn counted(log: &str) -> usize {
    for (index, line) in log.lines().enumerate() {
        assert_eq!(line, (index + 1).to_string(), "{log}");
    }
    log.lines().count()
}

/// The power of a node fails. Another one, whose container wants the volume, gets it after the
/// lease, with every line that had reached the disk; and the first gets it back later.
#[tokio::test]
async fn a_dead_host_is_replaced_without_a_person() {
    if !is_asked_for() {
        return;
    }
    let (project, one, two) = two_hosts().await;
    let written = synced(&one).await;
    one.cut_power().await;

    let read = "docker run --rm --network none -v data:/data busybox cat /data/log";
    let log = two.until(read).await;
    assert!(counted(&log) >= written, "{written} lines were written: {log}");
    assert!(two.log().await.contains("taken from the host that was silent"));

    one.power_on().await;
    one.until("docker start writer").await;
    assert!(synced(&one).await > written);
    one.sh("docker rm -f writer").await;
    assert!(counted(&two.sh(read).await) > written);
    two.sh("docker volume rm data").await;
    one.assert_clean().await;
    two.assert_clean().await;
    project.assert_clean().await;
}

/// A node loses its way to Keystone and Cinder, but not to the storage, and its container writes on.
/// It is taken for gone, and the storage cuts it off: whatever it had been told was on the disk is
/// there for the next one, and nothing that it writes later. When it hears of it, it stops what is
/// left. And storage that does not cut a host off is not used for this.
#[tokio::test]
async fn a_host_that_lost_its_way_to_the_cloud_writes_no_more() {
    if !is_asked_for() {
        return;
    }
    let (project, one, two) = two_hosts().await;
    let refused = prove(&project, &two, "lvmdriver-1").await.unwrap_err();
    assert!(refused.contains("does not cut a host off"), "{refused}");
    assert!(refused.contains("exported to another host"), "{refused}");

    let ports = api_ports().await.join(",");
    let rule = format!("OUTPUT -p tcp -m multiport --dports {ports} -j DROP");
    one.sh(&format!("iptables -I {rule}")).await;
    let written = synced(&one).await;
    two.until(WRITER).await;
    let log = "docker exec writer cat /data/log";
    assert!(counted(&two.sh(log).await) >= written);

    one.sh(&format!("iptables -D {rule}")).await;
    one.until("journalctl --merge -u cinder-docker-driver | grep -q 'has taken it'").await;
    one.until("docker rm -f writer").await;
    one.assert_clean().await;
    let before = counted(&two.sh(log).await);
    two.until(&format!("test $(docker exec writer sh -c 'wc -l </data/log') -gt {before}")).await;
    two.sh("docker rm -f writer").await;
    two.assert_clean().await;

    // The filesystem is sound, and the log one host's after the other's.
    let read = "docker run --rm --network none -v data:/data busybox cat /data/log";
    assert!(counted(&one.sh(read).await) > before);
    one.sh("docker volume rm data").await;
    one.assert_clean().await;
    project.assert_clean().await;
}
