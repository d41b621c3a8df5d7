//! What an operator types, on hosts with a real initiator, and what is true afterwards.

use serde_json::{Value, json};

use crate::outside::as_an_instance;
use crate::rig::{DEBIAN_12, DEBIAN_13, Node, Project, is_asked_for};

/// Numbered lines, each of which is on the disk before the next is written.
const WRITER: &str = "docker run -d --network none --name writer -v ledger:/data busybox sh -c \
    'n=0; while n=$((n + 1)) && echo $n >>/data/log && sync; do sleep 0.5; done'";

fn assert_says(said: &str, all: &[&str]) {
    for words in all {
        assert!(said.contains(words), "no '{words}' in: {said}");
    }
}

/// The JSON that a command prints.
async fn json_of(node: &Node, command: &str) -> Value {
    let said = node.sh(&format!("cinder-docker-driver {command} --json")).await;
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{command}: {error}: {said}"))
}

/// Of a list of objects, the one with this name.
fn named<'a>(rows: &'a Value, name: &str) -> &'a Value {
    let mut found = rows.as_array().unwrap().iter().filter(|row| row["name"] == name);
    found.next().unwrap_or_else(|| panic!("no {name} in {rows}"))
}

/// Has the driver itself mount a volume, as Docker would, or unmount it.
async fn ask(node: &Node, call: &str, volume: &str) {
    let answer = node
        .sh(&format!(
            "curl --silent --unix-socket /run/docker/plugins/cinder.sock --data \
             '{{\"Name\":\"{volume}\",\"ID\":\"an-operator\"}}' http://plugin/VolumeDriver.{call}"
        ))
        .await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["Err"].as_str().unwrap_or_default(), "", "{call} {volume}");
}

/// A volume that was made and filled by others is adopted under another name and used by a container;
/// `status`, `ls`, `inspect` and `health` say of it what iscsiadm, the kernel and Cinder say. Its host
/// loses its power; another one takes all that it had, by its name, once that is typed, and has every
/// line that had reached the disk.
#[tokio::test]
async fn commands_say_what_is_true_and_a_dead_host_is_relieved_by_its_name() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let (one, two) = tokio::join!(
        Node::with_driver("one", DEBIAN_13, &project, json!({})),
        Node::with_driver("two", DEBIAN_12, &project, json!({})),
    );

    project.make("theirs", json!({})).await;
    let fill = "mkfs.xfs -q $disk; mount $disk /mnt && echo kept >/mnt/file && umount /mnt";
    as_an_instance(&project, &one, "theirs", fill).await;
    let id = project.id("theirs").await;
    assert_eq!(json_of(&one, "ls").await, json!([]), "it is not the driver's");
    let all = json_of(&one, "ls --all").await;
    assert_eq!(named(&all, "theirs")["ours"], false, "{all}");
    let refused = one.fails("echo no | cinder-docker-driver adopt theirs ledger 2>&1").await;
    assert_says(&refused, &["xfs", &id, "that is not its id; nothing was done"]);
    assert_eq!(project.id("theirs").await, id);
    let said = one.sh(&format!("echo {id} | cinder-docker-driver adopt theirs ledger")).await;
    assert_says(&said, &["xfs", "Done."]);
    assert_eq!(project.id("ledger").await, id, "Cinder has the new name");
    assert_eq!(one.sh("docker volume ls -q").await, "ledger");
    let read = "docker run --rm --network none -v ledger:/data busybox cat /data/file";
    assert_eq!(one.sh(read).await, "kept");

    // In use: every word is held against the one who must know.
    one.sh(WRITER).await;
    let lines = "docker exec writer sh -c 'wc -l </data/log'";
    one.until(&format!("test $({lines}) -gt 3")).await;
    let session = one.sh("iscsiadm -m session").await;
    let [_, _, portal, target, ..] = session.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{session}")
    };
    let portal = portal.split_once(',').unwrap().0;
    let at = "/var/lib/cinder/mount/ledger";
    let device = one.sh(&format!("findmnt -no SOURCE {at}")).await;
    let lun = one.sh(&format!("ls -d /sys/block/{}/device/scsi_device/*", &device[5..])).await;
    let lun = lun.rsplit(':').next().unwrap();
    let container = one.sh("docker inspect -f '{{.Id}}' writer").await;
    let attached = project.cinder("GET", "/attachments", Value::Null).await;
    let attachment = attached["attachments"][0]["id"].as_str().unwrap();
    assert_eq!(attached["attachments"].as_array().unwrap().len(), 1, "{attached}");
    let status = one.sh("cinder-docker-driver status").await;
    assert_says(
        &status,
        &[
            &format!("used by: writer ({})", &container[..12]),
            &format!("attachment: {attachment} of volume {id}"),
            &format!("session: {target} LUN {lun} at {portal}, LOGGED_IN"),
            &device,
            at,
        ],
    );
    let rows = json_of(&one, "status").await;
    let row = named(&rows, "ledger");
    assert_eq!((&row["state"], &row["users"]), (&json!("mounted"), &json!(1)), "{row}");
    assert_eq!((&row["device"], &row["mountpoint"]), (&json!(device), &json!(at)), "{row}");
    assert_eq!((&row["attachment"], &row["to_do"]), (&json!(attachment), &json!([])), "{row}");
    assert_eq!(row["containers"][0]["name"], "writer", "{row}");
    let shown = &row["sessions"][0];
    assert_eq!((&shown["target"], &shown["portal"]), (&json!(target), &json!(portal)), "{row}");
    assert_eq!(shown["lun"].to_string(), lun, "{row}");

    for node in [&one, &two] {
        let rows = json_of(node, "ls").await;
        let row = named(&rows, "ledger");
        let attached = &row["attached"][0];
        assert_eq!(
            (&attached["host"], &attached["attachment"]),
            (&json!(one.name), &json!(attachment))
        );
        let here = if node.label == "one" { json!(at) } else { Value::Null };
        assert_eq!((&row["status"], &row["mounted_at"]), (&json!("in-use"), &here), "{row}");
        let shown = json_of(node, "inspect ledger").await;
        assert_eq!((&shown["id"], &shown["cinder"]["status"]), (&json!(id), &json!("in-use")));
        assert_eq!(shown["here"]["sessions"][0]["target"].as_str(), here.as_str().map(|_| target));
        assert_eq!(node.sh("cinder-docker-driver check | tail -n 1").await, "All is well.");
        let health = json_of(node, "health --deep").await;
        assert_eq!(health["status"], "ok", "{health}");
        assert_eq!(health["mounts"], json!(i32::from(node.label == "one")), "{health}");
    }

    // A second one, and one of the other host, which is not to be taken.
    one.sh("docker volume create -d cinder more").await;
    one.sh("docker run -d --network none -v more:/data busybox sh -c \
         'echo more >/data/file; sync; exec sleep infinity'")
        .await;
    two.sh("docker run -d --network none --name own -v own:/data --volume-driver=cinder busybox \
         sh -c 'while echo line >>/data/log && sync; do sleep 0.5; done'")
        .await;
    let written: usize = one.sh(lines).await.parse().unwrap();
    one.cut_power().await;

    let release = |typed: &str| {
        format!("echo {typed} | cinder-docker-driver release --host {} 2>&1", one.name)
    };
    let refused = two.fails(&release(&two.name)).await;
    let names =
        ["- ledger (", "- more (", "It must not run any more", "that is not the host's name"];
    assert_says(&refused, &names);
    assert!(!refused.contains("- own ("), "{refused}");
    let statuses = async || {
        let mut found = Vec::new();
        for name in ["ledger", "more", "own"] {
            found.push(project.status(name).await);
        }
        found.join(" ")
    };
    assert_eq!(statuses().await, "in-use in-use in-use", "nothing was done");
    let nobody = two.fails("cinder-docker-driver release --host nobody 2>&1").await;
    assert_says(&nobody, &["no volume attached to nobody", &one.name, &two.name]);
    let said = two.sh(&release(&one.name)).await;
    assert_says(&said, &["- ledger (", "- more (", "Done."]);
    assert_eq!(statuses().await, "available available in-use");
    let rows = json_of(&two, "ls").await;
    assert_eq!(named(&rows, "ledger")["attached"], json!([]), "{rows}");

    let log = two.sh("docker run --rm --network none -v ledger:/data busybox cat /data/log").await;
    let numbers: Vec<usize> = log.lines().map_while(|line| line.parse().ok()).collect();
    assert!(numbers.len() >= written, "{written} lines were written: {log}");
    assert!(numbers.iter().copied().eq(1..=numbers.len()), "{log}");
    let more = "docker run --rm --network none -v more:/data busybox cat /data/file";
    assert_eq!(two.sh(more).await, "more");
    two.until("docker exec own test -s /data/log").await;

    // It comes back, and claims nothing.
    one.power_on().await;
    one.assert_clean().await;
    assert_eq!(statuses().await, "available available in-use");
    assert_eq!(one.sh(read).await, "kept");
    one.sh("docker rm -f $(docker ps -aq)").await;
    two.sh("docker rm -f own").await;
    two.sh("docker volume rm ledger more own").await;
    assert_eq!(project.volumes().await.len(), 0);
    one.assert_clean().await;
    two.assert_clean().await;
    project.assert_clean().await;
}

/// All sessions and records of a node, by the volume that the target is named after.
async fn targets(node: &Node) -> (String, String) {
    let of = |list: &str| format!("{list} | grep -oE 'volume-[0-9a-f-]{{36}}' | sort -u");
    let records = "ls /etc/iscsi/nodes /var/lib/iscsi/nodes 2>/dev/null";
    (node.sh(&of("iscsiadm -m session 2>/dev/null")).await, node.sh(&of(records)).await)
}

/// The journal is lost while a volume is attached. `check` finds the session, and `check --fix` ends
/// it, but not while somebody uses its disk; nor a session that somebody else opened to the same
/// portal. A node record that was left is removed; somebody else's stays.
async fn leftovers(image: &str) {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("left", image, &project, json!({})).await;
    // A stranger's session, and a stranger's record.
    let id = project.make("stranger", json!({})).await;
    let (record, connector) = node.log_in_by_hand(&project, &id, "a-stranger").await;
    let nil = uuid::Uuid::nil();
    node.sh(&format!("iscsiadm -m node -T iqn.x:volume-{nil} -p 10.0.2.2:9 --op new >/dev/null"))
        .await;
    let stranger = format!("volume-{id}");
    let strangers_records = format!("volume-{nil}\n{stranger}");

    project.make("lost", json!({})).await;
    ask(&node, "Mount", "lost").await;
    let lost = format!("volume-{}", project.id("lost").await);
    let at = "/var/lib/cinder/mount/lost";
    let device = node.sh(&format!("findmnt -no SOURCE {at}")).await;
    node.sh(&format!("echo kept >{at}/file && sync")).await;
    let fix = "cinder-docker-driver check --fix";
    // All is known: nothing is done.
    assert!(node.sh(fix).await.starts_with("nothing to mend\n"));

    let units = "cinder-docker-driver.socket cinder-docker-driver.service";
    node.sh(&format!(
        "set -e; systemctl stop {units}; umount {at}; mkdir /root/lost; mount {device} /root/lost
         rm -r /var/lib/cinder/dockerdriver/state && rmdir {at}; systemctl start {units}"
    ))
    .await;
    let (sessions, records) = targets(&node).await;
    let both = |a: &str, b: &str| {
        let mut both: Vec<&str> = a.lines().chain([b]).collect();
        both.sort_unstable();
        both.join("\n")
    };
    assert_eq!(sessions, both(&stranger, &lost));
    assert_eq!(records, both(&strangers_records, &lost));
    let said = node.sh("cinder-docker-driver check").await;
    assert_says(&said, &[&format!("{lost} was opened by this driver, and no journal entry")]);
    assert!(!said.contains(&stranger), "{said}");

    // Somebody has its disk.
    let said = node.sh(&format!("{fix} | grep '^failed'")).await;
    assert_says(&said, &[&lost, &format!("{device} is mounted at /root/lost")]);
    assert_eq!(node.sh("cat /root/lost/file").await, "kept");
    node.sh("umount /root/lost").await;
    let said = node.sh(fix).await;
    assert_says(&said, &["mended   end iSCSI session ", &lost]);
    assert_eq!(targets(&node).await, (stranger.clone(), strangers_records.clone()));
    node.fails(&format!("test -e {device}")).await;

    // Cinder still has it attached, which is for a person to say.
    let said = node.sh("cinder-docker-driver check").await;
    assert_says(&said, &["has lost (", "→ cinder-docker-driver release lost"]);
    let id = project.id("lost").await;
    node.sh(&format!("cinder-docker-driver release lost --id {id}")).await;
    project.until("lost", "available").await;
    assert_eq!(node.sh("cinder-docker-driver check | tail -n 1").await, "All is well.");

    // A record that was left, as a crash between logout and removal may: used once, then forgotten.
    ask(&node, "Mount", "lost").await;
    assert_eq!(node.sh(&format!("cat {at}/file")).await, "kept", "no byte was lost");
    let nodes = node.sh("ls -d /etc/iscsi/nodes /var/lib/iscsi/nodes 2>/dev/null || true").await;
    node.sh(&format!("cp -a {nodes}/*{lost} /root/record")).await;
    ask(&node, "Unmount", "lost").await;
    project.until("lost", "available").await;
    node.sh(&format!("cp -a /root/record {nodes}/iqn.2010-10.org.openstack:{lost}")).await;
    let said = node.sh("cinder-docker-driver check").await;
    assert_says(&said, &[&lost, "no session and no journal entry needs it"]);
    let said = node.sh(fix).await;
    assert_says(&said, &["mended   remove the record of ", &lost]);
    assert!(said.ends_with("All is well."), "{said}");
    assert_eq!(targets(&node).await, (stranger, strangers_records));

    node.sh(&format!(
        "{record} --logout >/dev/null; {record} --op delete; iscsiadm -m node -p 10.0.2.2:9 --op delete"
    ))
    .await;
    let disconnect = json!({ "os-terminate_connection": { "connector": connector } });
    project.act(&id, disconnect).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn fix_ends_what_was_left_of_ours_on_debian_13() {
    leftovers(DEBIAN_13).await;
}

#[tokio::test]
async fn fix_ends_what_was_left_of_ours_on_debian_12() {
    leftovers(DEBIAN_12).await;
}
