//! Create options, profiles and clusters, where a real Cinder judges what the driver asks of it.

use serde_json::{Value, json};

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, Project, is_asked_for, until};

const RUN: &str = "docker run --rm --network none -v";

async fn create(node: &Node, options: &[&str], name: &str) {
    let words: Vec<_> = options.iter().map(|option| format!("-o '{option}'")).collect();
    node.sh(&format!("docker volume create -d cinder {} {name}", words.join(" "))).await;
}

async fn read(node: &Node, name: &str) -> String {
    node.sh(&format!("{RUN} {name}:/data ubuntu cat /data/x")).await
}

/// What `docker volume inspect` says of an option.
async fn option(node: &Node, name: &str, option: &str) -> String {
    let line = format!("docker volume inspect -f '{{{{.Status.options.{option}}}}}' {name}");
    node.sh(&line).await
}

/// A snapshot of a volume, as others take it; its id.
async fn snapshot(project: &Project, volume: &str, name: &str) -> String {
    copy(project, "snapshot", volume, name).await
}

/// A snapshot or a backup of a volume; its id, once it is there.
async fn copy(project: &Project, kind: &str, volume: &str, name: &str) -> String {
    let body = json!({ kind: { "volume_id": volume, "name": name } });
    let made = project.cinder("POST", &format!("/{kind}s"), body).await;
    let id = made[kind]["id"].as_str().unwrap().to_owned();
    until(120, kind, || async {
        let found = project.cinder("GET", &format!("/{kind}s/{id}"), Value::Null).await;
        let is_there = found[kind]["status"] == "available";
        if is_there { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    id
}

/// A volume with everything that a blank one can have; copies of it in each way, two hosts that read
/// one of them at once; one made elsewhere; one from an image with partitions; and what a removal
/// leaves. A host that does not say its cluster touches none of them.
#[tokio::test]
async fn a_real_cinder_takes_every_option() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let blue = json!({
        "ClusterID": "blue",
        "Profiles": { "database": { "names": ["db-*"], "size": 2, "fs": "xfs" } },
    });
    let (one, two) = tokio::join!(
        Node::with_driver("one", DEBIAN_12, &project, blue.clone()),
        Node::with_driver("two", DEBIAN_13, &project, blue),
    );

    create(&one, &["size=1"], "first").await;
    let all = [
        "size=2G",
        "type=multiattach",
        "fs=ext4",
        "mkfs_opts=-N 4096",
        "mount_opts=noatime",
        "availability_zone=nova",
        "description=web shop",
        "metadata=team=web,tier=1",
        "hints=same_host=first",
        "uid=999",
        "gid=998",
        "mode=0770",
        "on_remove=snapshot",
    ];
    create(&one, &all, "origin").await;
    let found = one
        .sh(&format!(
            "{RUN} origin:/data ubuntu sh -c 'echo origin >/data/x; stat -c %u:%g:%a /data'"
        ))
        .await;
    assert_eq!(found, "999:998:770");
    for said in all {
        let (name, value) = said.split_once('=').unwrap();
        let value = if name == "size" { "2" } else { value };
        assert_eq!(option(&one, "origin", name).await, value, "{name}");
    }
    let origin = project.id("origin").await;
    let nightly = snapshot(&project, &origin, "nightly").await;

    // Copies.
    create(&one, &["snapshot=nightly"], "by-name").await;
    create(&one, &["from=origin@nightly", "size=3"], "of-it").await;
    create(&one, &["from=origin", "read_only=true", "multiattach=true"], "shared").await;
    assert_eq!(read(&one, "by-name").await, "origin");
    assert_eq!(read(&two, "of-it").await, "origin");
    let reader = |node: &str| {
        format!(
            "docker run -d --name {node} --network none -v shared:/data \
         --volume-driver=cinder ubuntu sh -c 'cat /data/x && exec sleep infinity'"
        )
    };
    let (here, there) = (reader("reader"), reader("reader"));
    tokio::join!(one.sh(&here), two.sh(&there));
    for node in [&one, &two] {
        assert_eq!(node.until("docker logs reader | grep .").await, "origin");
        node.fails("docker exec reader touch /data/y").await;
    }
    let holders = project.volume("shared").await["attachments"].as_array().unwrap().len();
    assert_eq!(holders, 2);
    tokio::join!(one.sh("docker rm -f reader"), two.sh("docker rm -f reader"));
    let told = one
        .fails("docker volume create -d cinder -o from=first -o read_only=1 -o multiattach=1 x")
        .await;
    assert!(told.contains("are on one host at a time"), "{told}");

    // Made elsewhere, of an image with partitions, by a profile, and what cannot be.
    let elsewhere = project.make("Made elsewhere", json!({})).await;
    create(&one, &[&format!("volume_id={elsewhere}"), "metadata=k=v"], "adopted").await;
    one.sh(&format!("{RUN} adopted:/data ubuntu touch /data/x")).await;
    create(&one, &["image=partitioned", "partition=1"], "of-image").await;
    let listed = one.sh(&format!("{RUN} of-image:/data ubuntu ls /data")).await;
    assert!(listed.contains("hello"), "{listed}");
    let fs = one.sh(&format!("{RUN} db-1:/data --volume-driver=cinder ubuntu mount")).await;
    assert!(fs.lines().any(|line| line.contains(" on /data type xfs ")), "{fs}");
    for (options, told) in [
        ("-o availability_zone=mars", "there are: nova"),
        ("-o backup=weekly", "there is no backup named"),
        ("-o from=origin@weekly", "no snapshot \"weekly\"; it has: nightly"),
        ("-o hints=diferent_host=first", "did you mean \"different_host\""),
    ] {
        let error = one.fails(&format!("docker volume create -d cinder {options} x")).await;
        assert!(error.contains(told), "{options}: {error}");
    }

    // A host that does not say whose it is makes no blank twin. It finds the sentence that helps.
    two.write_config(&project, json!({})).await;
    two.sh("systemctl restart cinder-docker-driver").await;
    let error = two.fails(&format!("{RUN} by-name:/data --volume-driver=cinder ubuntu true")).await;
    assert!(error.contains("this host has no ClusterID in its config"), "{error}");
    assert_eq!(project.volumes().await.iter().filter(|v| v["name"] == "by-name").count(), 1);

    // A removal that keeps everything; Cinder itself refuses to delete what has a snapshot.
    one.sh("docker volume rm origin").await;
    one.fails("docker volume inspect origin").await;
    let volumes = project.volumes().await;
    let kept = volumes.iter().find(|volume| volume["id"] == *origin).unwrap();
    let kept = kept["name"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("origin-removed-2"), "{kept}");
    create(&one, &[&format!("snapshot={kept}")], "from-last").await;
    assert_eq!(read(&one, "from-last").await, "origin");
    create(&one, &[&format!("volume_id={origin}"), "on_remove=delete"], "again").await;
    assert_eq!(read(&one, "again").await, "origin");
    let error = one.fails("docker volume rm again").await;
    assert!(error.contains("have snapshots"), "{error}");

    let last = project.cinder("GET", &format!("/snapshots?name={kept}"), Value::Null).await;
    let last = last["snapshots"][0]["id"].as_str().unwrap().to_owned();
    let delete = format!("openstack volume snapshot delete {nightly} {last}");
    project.client(&delete.split(' ').collect::<Vec<_>>()).await;
    until(60, "no snapshots", || async {
        let left = project.cinder("GET", "/snapshots", Value::Null).await;
        if left["snapshots"] == json!([]) { Ok(()) } else { Err(left.to_string()) }
    })
    .await;
    let made = "first by-name of-it shared of-image db-1 from-last again";
    one.sh(&format!("docker volume rm {made}")).await;
    one.assert_clean().await;
    two.assert_clean().await;
    project.assert_clean().await;
    let left: Vec<_> = project.volumes().await.iter().map(|v| v["name"].clone()).collect();
    assert_eq!(left, ["adopted"], "made elsewhere, so it stays");
}

/// Cinder's backup service restores: the data and the metadata of the volume that was backed up. The
/// new volume has the first, and is no twin of the old one for the second.
#[tokio::test]
async fn a_volume_made_from_a_backup_is_one_of_its_own() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let one = Node::with_driver("one", DEBIAN_13, &project, json!({})).await;
    let write = |name: &str, text: &str| {
        format!("{RUN} {name}:/data ubuntu sh -c 'echo {text} >/data/x && sync'")
    };

    create(
        &one,
        &["size=1", "fs=xfs", "metadata=team=web", "uid=999", "mount_opts=noatime"],
        "origin",
    )
    .await;
    one.sh(&write("origin", "monday")).await;
    project.until("origin", "available").await;
    let origin = project.id("origin").await;
    let weekly = copy(&project, "backup", &origin, "weekly").await;
    one.sh(&write("origin", "tuesday")).await;

    create(&one, &["backup=weekly", "metadata=team=shop"], "restored").await;
    create(&one, &[&format!("backup={weekly}"), "size=2"], "larger").await;
    for name in ["restored", "larger"] {
        assert_eq!(read(&one, name).await, "monday", "{name}");
        assert_eq!(option(&one, name, "backup").await, weekly, "{name}");
        assert_ne!(project.id(name).await, origin);
    }
    let metadata = option(&one, "restored", "metadata").await;
    assert_eq!(metadata, format!("src_backup_id={weekly},team=shop"), "the first is Cinder's");
    let df = format!("{RUN} larger:/data ubuntu df -k /data | awk 'END {{ print $(NF-4) }}'");
    let size: u64 = one.sh(&df).await.parse().unwrap();
    assert!(size > 3 << 19, "the filesystem has {size} KiB of 2 GiB");

    // Each goes its own way.
    one.sh(&write("restored", "wednesday")).await;
    let both = format!(
        "{RUN} restored:/a -v origin:/b ubuntu sh -c 'cat /a/x /b/x; touch /b/y && stat -c %u /b'"
    );
    assert_eq!(one.sh(&both).await, "wednesday\ntuesday\n999");
    let again = copy(&project, "backup", &origin, "weekly").await;
    let told = one.fails("docker volume create -d cinder -o backup=weekly third").await;
    assert!(told.contains(&weekly) && told.contains(&again), "{told}");

    one.sh("docker volume rm origin restored larger").await;
    for id in [weekly, again] {
        project.cinder("DELETE", &format!("/backups/{id}"), Value::Null).await;
    }
    one.assert_clean().await;
    project.assert_clean().await;
    assert_eq!(project.volumes().await, Vec::<Value>::new());
}
