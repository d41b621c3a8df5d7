//! Volumes that others made, used by naming them.

use serde_json::json;

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, Project, is_asked_for};

/// Attaches a volume to the node as an instance would, runs a line that finds it at `$disk`, and
/// detaches it: what is on it then, the driver did not put there.
pub async fn as_an_instance(project: &Project, node: &Node, name: &str, line: &str) {
    let id = project.id(name).await;
    project.act(&id, json!({ "os-reserve": {} })).await;
    let (record, connector) = node.log_in_by_hand(project, &id, "an-instance").await;
    node.sh(&format!(
        "set -e
         for try in $(seq 600); do disk=$(ls -d /sys/block/sd* 2>/dev/null) && break; sleep 0.1; done
         disk=/dev/$(basename $disk); udevadm settle
         {line}
         sync; {record} --logout >/dev/null; {record} --op delete"
    ))
    .await;
    let attach = json!({ "os-attach": { "host_name": "an-instance", "mountpoint": "/dev/vdb" } });
    let disconnect = json!({ "os-terminate_connection": { "connector": connector } });
    // The export goes with the attachment.
    for action in
        [attach, json!({ "os-begin_detaching": {} }), disconnect, json!({ "os-detach": {} })]
    {
        project.act(&id, action).await;
    }
    project.until(name, "available").await;
}

/// What a container sees in a volume.
async fn seen(node: &Node, volume: &str, line: &str) -> String {
    let typed = "docker run --rm --network none --volume-driver=cinder";
    node.sh(&format!("{typed} -v {volume}:/data busybox sh -c '{line}'")).await
}

/// The file is there, and the filesystem has more than that many KiB.
async fn assert_kept_and_larger_than(kib: u32, node: &Node, volume: &str) {
    let line = "cat /data/file; df -k /data | tail -n 1 | grep -oE \"[0-9]{7}\" | head -n 1";
    let there = seen(node, volume, line).await;
    let (file, size) = there.split_once('\n').unwrap();
    assert_eq!(file, "kept");
    assert!(size.parse::<u32>().unwrap() > kib, "{volume}: {there}");
}

/// A volume made with `cinder create` and used by naming it: blank, it is formatted; with data at
/// the root of its ext4 or xfs, or in a partition, that data is there, and stays.
#[tokio::test]
async fn volumes_that_others_made_and_filled_are_used_as_they_are() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("box", DEBIAN_12, &project, json!({})).await;

    project.client(&["cinder", "create", "--name", "blank", "1"]).await;
    project.until("blank", "available").await;
    assert_eq!(seen(&node, "blank", "ls -A /data; echo kept >/data/file").await, "");
    assert_eq!(seen(&node, "blank", "cat /data/file").await, "kept");

    let fill = "mount $disk /mnt && echo kept >/mnt/file && umount /mnt";
    for (name, make) in [("ext4", "mkfs.ext4 -q $disk"), ("xfs", "mkfs.xfs -q $disk")] {
        project.make(name, json!({})).await;
        as_an_instance(&project, &node, name, &format!("{make}; {fill}")).await;
        assert_eq!(seen(&node, name, "cat /data/file; touch /data/more").await, "kept");
        let there = seen(&node, name, "grep /data /proc/mounts | cut -d\" \" -f3; ls /data").await;
        // The root itself, which an ext4 shares with lost+found.
        let lost_found = if name == "ext4" { "lost+found\n" } else { "" };
        assert_eq!(there, format!("{name}\nfile\n{lost_found}more"));
    }

    project.make("disk", json!({})).await;
    let partition = "echo 'label: gpt
start=1MiB' | sfdisk -q $disk; udevadm settle; mkfs.ext4 -q ${disk}1
        mount ${disk}1 /mnt && echo kept >/mnt/file && umount /mnt";
    as_an_instance(&project, &node, "disk", partition).await;
    assert_eq!(seen(&node, "disk", "cat /data/file").await, "kept");

    // Something that is no filesystem is refused, and not touched.
    project.make("odd", json!({})).await;
    as_an_instance(&project, &node, "odd", "echo precious | dd of=$disk bs=1M seek=8 2>/dev/null")
        .await;
    let refused = node.fails("docker run --rm --network none -v odd:/data busybox true").await;
    assert!(refused.contains("\"odd\"") && refused.contains("format odd"), "{refused}");
    as_an_instance(
        &project,
        &node,
        "odd",
        "dd if=$disk bs=1M skip=8 count=1 2>/dev/null | grep -q precious",
    )
    .await;

    // They belong to others, so they are not removed.
    let refused = node.fails("docker volume rm ext4").await;
    assert!(refused.contains("ext4"), "{refused}");
    assert_eq!(project.volumes().await.len(), 5);
    node.assert_clean().await;
    project.assert_clean().await;
}

/// Volumes made from an image (with a partition table), from a snapshot, and from another volume,
/// by others and by the driver's own options.
#[tokio::test]
async fn volumes_made_from_images_snapshots_and_volumes() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("box", DEBIAN_13, &project, json!({})).await;

    project.client(&["cinder", "create", "--image", "partitioned", "--name", "image", "1"]).await;
    project.until("image", "available").await;
    assert_eq!(seen(&node, "image", "cat /data/hello").await, "from an image");
    node.sh("docker volume create -d cinder -o image=partitioned -o size=1 ours").await;
    assert_eq!(
        seen(&node, "ours", "cat /data/hello; echo more >/data/more").await,
        "from an image"
    );

    node.sh("docker volume create -d cinder -o size=1 source").await;
    assert_eq!(seen(&node, "source", "echo kept >/data/file").await, "");
    project.client(&["cinder", "snapshot-create", "--name", "friday", "source"]).await;
    let snapshot = crate::rig::until(60, "the snapshot is made", || async {
        let answer = project.cinder("GET", "/snapshots", serde_json::Value::Null).await;
        let snapshot = answer["snapshots"][0].clone();
        if snapshot["status"] == "available" { Ok(snapshot) } else { Err(answer.to_string()) }
    })
    .await;
    assert_eq!(seen(&node, "source", "echo changed >/data/file").await, "");

    let id = snapshot["id"].as_str().unwrap();
    project.make("restored", json!({ "snapshot_id": id, "size": 2 })).await;
    // The filesystem of 1 GiB has been grown to the volume's 2.
    assert_kept_and_larger_than(1_900_000, &node, "restored").await;

    node.sh("docker volume create -d cinder -o snapshot=friday again").await;
    assert_eq!(seen(&node, "again", "cat /data/file").await, "kept");
    node.sh("docker volume create -d cinder -o from=source copy").await;
    // Beside its source: two filesystems of one UUID.
    node.sh("docker run -d --network none --name holder -v source:/data busybox sleep infinity")
        .await;
    assert_eq!(seen(&node, "copy", "cat /data/file").await, "changed");
    node.sh("docker rm -f holder").await;

    node.sh("docker volume rm ours again copy").await;
    node.assert_clean().await;
    project.assert_clean().await;
}

/// A volume that was extended in Cinder while it was not mounted: at the next start the filesystem
/// is as large as the volume, and the data is there. ext4, xfs and btrfs.
#[tokio::test]
async fn a_volume_extended_in_cinder_is_grown_at_the_next_start() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("box", DEBIAN_13, &project, json!({})).await;
    for fs in ["ext4", "xfs", "btrfs"] {
        node.sh(&format!("docker volume create -d cinder -o size=1 -o fs={fs} {fs}")).await;
        assert_eq!(seen(&node, fs, "echo kept >/data/file").await, "");
        project.client(&["cinder", "extend", fs, "3"]).await;
        crate::rig::until(60, "the volume is extended", || async {
            let volume = project.volume(fs).await;
            let is_done = volume["size"] == 3 && volume["status"] == "available";
            if is_done { Ok(()) } else { Err(volume.to_string()) }
        })
        .await;
        assert_kept_and_larger_than(2_700_000, &node, fs).await;
    }
    node.sh("docker volume rm ext4 xfs btrfs").await;
    node.assert_clean().await;
    project.assert_clean().await;
}
