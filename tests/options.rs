//! The options of `docker volume create -o NAME=VALUE`, each through the real daemon to what is
//! then seen in Cinder and in the mounted filesystem.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and looks at devices and mounts with tools"
)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cinder_docker_driver::driver::options::TABLE;
use cinder_docker_driver::sandbox::faults::{Action, Canned};
use serde_json::{Value, json};
use support::{Cloud, Node, sh};

/// Each row is tested by the functions `option_NAME…` of this file.
#[test]
fn every_row_of_the_table_has_a_test() {
    let source = include_str!("options.rs");
    for row in TABLE {
        assert!(
            source.contains(&format!("async fn option_{}_", row.name)),
            "the option {} has no test",
            row.name
        );
        for alias in row.aliases {
            assert!(source.contains(&format!("\"{alias}\"")), "the alias {alias} has no test");
        }
    }
}

const ID: &str = "8f2c1f2e-6c1c-4d57-9d0a-222222222222";

/// A column of findmnt about the filesystem that holds a path.
fn mounted(at: &Path, column: &str) -> String {
    sh(&format!("findmnt -bno {column} -T {}", at.display())).trim().to_owned()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A volume with a file in it, and its id.
async fn with_data(cloud: &Cloud, node: &Node, name: &str) -> String {
    node.create(name, json!({})).await.unwrap();
    let at = node.mount(name, "c").await.unwrap();
    fs::write(at.join("x"), name).unwrap();
    node.unmount(name, "c").await.unwrap();
    cloud.volume(name).await["id"].as_str().unwrap().to_owned()
}

/// A snapshot of a volume, and its id.
async fn snapshot(cloud: &Cloud, volume: &str, name: &str) -> String {
    let body = json!({ "snapshot": { "volume_id": volume, "name": name } });
    let made = cloud.cinder("POST", "/snapshots", body).await;
    let id = made["snapshot"]["id"].as_str().unwrap().to_owned();
    until("snapped", async || {
        let found = cloud.cinder("GET", &format!("/snapshots/{id}"), Value::Null).await;
        found["snapshot"]["status"] == "available"
    })
    .await;
    id
}

#[tokio::test]
async fn option_size_is_the_volumes_size_in_gib() {
    let cloud = Cloud::start().await;
    let node = Node::start_with(&cloud, json!({ "DefaultVolSz": 3 })).await;
    for (n, (value, size)) in
        [(json!("2"), 2), (json!("2GiB"), 2), (json!("2g"), 2), (json!(2), 2), (json!("1T"), 1024)]
            .into_iter()
            .enumerate()
    {
        let name = format!("v{n}");
        node.create(&name, json!({ "size": value })).await.unwrap();
        assert_eq!(cloud.volume(&name).await["size"], size, "{value}");
    }
    let at = node.mount("v0", "c").await.unwrap();
    let size: u64 = mounted(&at, "SIZE").parse().unwrap();
    assert!(size > 1_900_000_000, "{size}");
    node.unmount("v0", "c").await.unwrap();
    node.create("default", Value::Null).await.unwrap();
    assert_eq!(cloud.volume("default").await["size"], 3);
}

#[tokio::test]
async fn option_type_is_the_volumes_type() {
    let cloud = Cloud::start().await;
    let node = Node::start_with(&cloud, json!({ "DefaultVolumeType": "__DEFAULT__" })).await;
    for (name, options, expected) in [
        ("a", json!({ "type": "multiattach" }), "multiattach"),
        ("b", json!({ "volume_type": "lvmdriver-1" }), "lvmdriver-1"),
        ("c", json!({}), "__DEFAULT__"),
    ] {
        node.create(name, options).await.unwrap();
        assert_eq!(cloud.volume(name).await["volume_type"], expected);
        assert_eq!(node.get(name).await.unwrap()["Status"]["type"], expected);
    }
    node.mount("a", "c").await.unwrap();
    node.unmount("a", "c").await.unwrap();
}

#[tokio::test]
async fn option_fs_is_the_filesystem_made() {
    let cloud = Cloud::start().await;
    let node = Node::start_with(&cloud, json!({ "DefaultFilesystem": "xfs" })).await;
    // Another host, with another default: what was said at create holds there too.
    let other = Node::start(&cloud).await;
    for (name, options, expected) in [
        ("e", json!({ "fs": "ext4" }), "ext4"),
        ("x", json!({ "fstype": "xfs" }), "xfs"),
        ("b", json!({ "filesystem": "btrfs" }), "btrfs"),
        ("default", json!({}), "xfs"),
    ] {
        node.create(name, options).await.unwrap();
        for host in [&other, &node] {
            let at = host.mount(name, "c").await.unwrap();
            assert_eq!(mounted(&at, "FSTYPE"), expected, "{name}");
            assert_eq!(host.get(name).await.unwrap()["Status"]["filesystem"], expected);
            fs::write(at.join("x"), "").unwrap();
            host.unmount(name, "c").await.unwrap();
        }
        let uuid = cloud.volume(name).await["metadata"]["docker.format"].clone();
        assert!(uuid.as_str().unwrap().starts_with("formatted:"), "{uuid}");
    }
    other.assert_clean(&cloud);
}

#[tokio::test]
async fn option_mkfs_opts_reaches_mkfs() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({ "mkfs_opts": "-N 4096 -L label" })).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    assert_eq!(mounted(&at, "LABEL"), "label");
    assert_eq!(sh(&format!("stat -f -c %c {}", at.display())).trim(), "4096");
    node.unmount("v", "c").await.unwrap();
    node.create("x", json!({ "mkfs_opts": "-m reflink=0", "fs": "xfs" })).await.unwrap();
    let at = node.mount("x", "c").await.unwrap();
    let info = sh(&format!("xfs_info {}", node.mount_point().join("x").display()));
    assert!(info.contains("reflink=0"), "{info}");
    assert!(at.exists());
    node.unmount("x", "c").await.unwrap();
}

#[tokio::test]
async fn option_mount_opts_reaches_every_mount() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for (name, option) in [("a", "mount_opts"), ("b", "mountopts")] {
        node.create(name, json!({ option: "noatime,nodev,commit=30" })).await.unwrap();
        for _ in 0..2 {
            let at = node.mount(name, "c").await.unwrap();
            let options = mounted(&at, "OPTIONS");
            for expected in ["noatime", "nodev", "commit=30"] {
                assert!(options.split(',').any(|one| one == expected), "{options}");
            }
            node.unmount(name, "c").await.unwrap();
        }
    }
}

#[tokio::test]
async fn option_snapshot_makes_the_volume_from_it() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let origin = with_data(&cloud, &node, "origin").await;
    let id = snapshot(&cloud, &origin, "nightly").await;
    for (name, options) in
        [("a", json!({ "snapshot": "nightly" })), ("b", json!({ "snapshot_id": id, "size": "2" }))]
    {
        node.create(name, options).await.unwrap();
        let found = cloud.volume(name).await;
        assert_eq!(found["snapshot_id"], *id);
        assert_eq!(found["size"], if name == "a" { 1 } else { 2 });
        let at = node.mount(name, "c").await.unwrap();
        assert_eq!(fs::read_to_string(at.join("x")).unwrap(), "origin");
        node.unmount(name, "c").await.unwrap();
    }
    snapshot(&cloud, &origin, "nightly").await;
    let error = node.create("c", json!({ "snapshot": "nightly" })).await.unwrap_err();
    assert!(error.contains("2 snapshots are named") && error.contains(&id), "{error}");
    let big = cloud.create("big", json!({ "size": 2 })).await;
    snapshot(&cloud, &big, "of-big").await;
    let error = node.create("d", json!({ "snapshot": "of-big", "size": "1" })).await.unwrap_err();
    assert!(error.contains("cannot be smaller than the snapshot size 2GB"), "{error}");
}

/// A backup of a volume, and its id.
async fn backup(cloud: &Cloud, volume: &str, name: &str) -> String {
    let body = json!({ "backup": { "volume_id": volume, "name": name } });
    let made = cloud.cinder("POST", "/backups", body).await;
    let id = made["backup"]["id"].as_str().unwrap().to_owned();
    until("backed up", async || {
        let found = cloud.cinder("GET", &format!("/backups/{id}"), Value::Null).await;
        found["backup"]["status"] == "available"
    })
    .await;
    id
}

/// New clouds (3.47) make the volume from the backup, old ones restore it over a blank volume.
#[tokio::test]
async fn option_backup_makes_the_volume_from_it_on_new_clouds_and_old() {
    let cloud = Cloud::start().await;
    let v2 = cloud.sandbox.config()["Endpoint"].as_str().unwrap().replace("/v3", "/volume/v2");
    for (old, more) in [(false, json!({})), (true, json!({ "BlockStorageEndpoint": v2 }))] {
        let node = Node::start_with(&cloud, more).await;
        let origin = format!("origin-{old}");
        let nightly = format!("nightly-{old}");
        let volume = with_data(&cloud, &node, &origin).await;
        let id = backup(&cloud, &volume, &nightly).await;
        let nonce = cloud.volume(&origin).await["metadata"]["docker.nonce"].clone();
        cloud.forget_calls();
        for (name, options) in [
            (format!("a-{old}"), json!({ "backup": nightly, "metadata": "team=web" })),
            (format!("b-{old}"), json!({ "backup_id": id, "size": "2", "on_remove": "retain" })),
        ] {
            node.create(&name, options).await.unwrap();
            let found = cloud.volume(&name).await;
            assert_eq!(found["size"], if name.starts_with('a') { 1 } else { 2 });
            let metadata = &found["metadata"];
            assert_eq!(
                (&metadata["docker.backup"], &metadata["src_backup_id"]),
                (&json!(id), &json!(id))
            );
            assert_ne!(metadata["docker.nonce"], nonce, "of its own, though Cinder restores those");
            assert!(metadata["docker.format"].as_str().unwrap().starts_with("formatted:"));
            if name.starts_with('a') {
                assert_eq!(metadata["team"], "web");
            }
            let at = node.mount(&name, "c").await.unwrap();
            assert_eq!(fs::read_to_string(at.join("x")).unwrap(), origin);
            node.unmount(&name, "c").await.unwrap();
            assert_eq!(node.get(&name).await.unwrap()["Status"]["options"]["backup"], *id);
        }
        let restored = cloud.calls().iter().filter(|call| *call == "restore-backup").count();
        assert_eq!(restored, if old { 2 } else { 0 });
        // Too small, unknown, twice: refused, and nothing is left.
        let before = cloud.volumes().await.len();
        let error = node.create("c", json!({ "backup": "none" })).await.unwrap_err();
        assert!(error.contains("there is no backup named \"none\""), "{error}");
        if old {
            cloud.fail_once("restore-backup", Action::Answer(Canned::status(413)));
            let error = node.create("c", json!({ "backup": id })).await.unwrap_err();
            assert!(error.contains("refused to restore backup"), "{error}");
            until("deleted", async || cloud.volumes().await.len() == before).await;
        }
        backup(&cloud, &volume, &nightly).await;
        let error = node.create("c", json!({ "backup": nightly })).await.unwrap_err();
        assert!(error.contains("2 backups are named") && error.contains(&id), "{error}");
        assert_eq!(cloud.volumes().await.len(), before);
        node.assert_clean(&cloud);
    }
}

/// It is blank until the backup is restored to it, and is not formatted in that time.
#[tokio::test]
async fn option_backup_is_never_formatted_before_its_data_has_come() {
    let cloud = Cloud::start().await;
    let v2 = cloud.sandbox.config()["Endpoint"].as_str().unwrap().replace("/v3", "/volume/v2");
    let node = Node::start_with(&cloud, json!({ "BlockStorageEndpoint": v2 })).await;
    let other = Node::start(&cloud).await;
    let volume = with_data(&cloud, &node, "origin").await;
    let id = backup(&cloud, &volume, "nightly").await;
    cloud.forget_calls();
    cloud.fail_once("restore-backup", Action::Delay(1500));
    let (made, refused) = tokio::join!(node.create("v", json!({ "backup": id })), async {
        until("asked", async || cloud.calls().iter().any(|call| call == "restore-backup")).await;
        let refused = other.mount("v", "c").await.unwrap_err();
        // It is free again when Cinder comes to restore.
        cloud.until("v", "available").await;
        refused
    });
    assert!(refused.contains("waits for the restore of backup"), "{refused}");
    made.unwrap();
    let at = other.mount("v", "c").await.unwrap();
    assert_eq!(fs::read_to_string(at.join("x")).unwrap(), "origin");
    other.unmount("v", "c").await.unwrap();
}

#[tokio::test]
async fn option_from_names_a_snapshot_of_the_volume_too() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let origin = with_data(&cloud, &node, "origin").await;
    let other = with_data(&cloud, &node, "other").await;
    let id = snapshot(&cloud, &origin, "nightly").await;
    // The name alone would mean either.
    snapshot(&cloud, &other, "nightly").await;
    for (name, from) in [
        ("a", "origin@nightly".to_owned()),
        ("b", format!("origin@{id}")),
        ("c", format!("{origin}@nightly")),
    ] {
        node.create(name, json!({ "from": from })).await.unwrap();
        assert_eq!(cloud.volume(name).await["snapshot_id"], *id, "{from}");
        let at = node.mount(name, "c").await.unwrap();
        assert_eq!(fs::read_to_string(at.join("x")).unwrap(), "origin");
        node.unmount(name, "c").await.unwrap();
        assert_eq!(node.get(name).await.unwrap()["Status"]["options"]["snapshot"], *id);
    }
    let error = node.create("d", json!({ "from": "origin@weekly" })).await.unwrap_err();
    assert!(error.contains("no snapshot \"weekly\"; it has: nightly"), "{error}");
    let second = snapshot(&cloud, &origin, "nightly").await;
    let error = node.create("d", json!({ "from": "origin@nightly" })).await.unwrap_err();
    assert!(error.contains("2 snapshots \"nightly\"") && error.contains(&second), "{error}");
    let error = node.create("d", json!({ "from": "gone@nightly" })).await.unwrap_err();
    assert!(error.contains("no volume \"gone\""), "{error}");
}

#[tokio::test]
async fn option_volume_id_gives_an_existing_volume_the_name() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for (name, option) in [("web", "volume_id"), ("db", "adopt")] {
        let id =
            cloud.create(&format!("Old name of {name}"), json!({ "metadata": {"k": "v"} })).await;
        let options = json!({ option: id, "mount_opts": "noatime", "metadata": "team=web" });
        // Once more, as Docker does it: nothing changes.
        for _ in 0..2 {
            node.create(name, options.clone()).await.unwrap();
            let found = cloud.volume(name).await;
            assert_eq!((&found["id"], &found["metadata"]["k"]), (&json!(id), &json!("v")));
            assert_eq!(found["metadata"]["team"], "web");
        }
        let at = node.mount(name, "c").await.unwrap();
        assert!(mounted(&at, "OPTIONS").contains("noatime"));
        let options = node.get(name).await.unwrap()["Status"]["options"].clone();
        assert_eq!(
            (&options["volume_id"], &options["mount_opts"]),
            (&json!(id), &json!("noatime"))
        );
        node.unmount(name, "c").await.unwrap();
        assert!(node.list().await.unwrap().contains(&name.to_owned()));
        // It stays what it was: made elsewhere.
        let error = node.remove(name).await.unwrap_err();
        assert!(error.contains("it was not made by this driver"), "{error}");
    }
    assert_eq!(cloud.volumes().await.len(), 2);
}

#[tokio::test]
async fn option_volume_id_takes_nothing_away_from_anybody() {
    let cloud = Cloud::start().await;
    let (node, other) = tokio::join!(Node::start(&cloud), Node::start(&cloud));
    let id = cloud.create("free", json!({})).await;
    node.create("taken", json!({})).await.unwrap();
    node.create("used", json!({})).await.unwrap();
    let ours = cloud.volume("taken").await["id"].clone();
    let used = cloud.volume("used").await["id"].clone();
    let foreign = cloud.create("Its name", json!({})).await;
    other.mount("used", "c").await.unwrap();
    other.mount(&foreign, "c").await.unwrap();
    let unknown = uuid::Uuid::new_v4();
    for (name, id, told) in [
        ("taken", json!(id), "the name is taken by volume"),
        ("web", ours, "is the Docker volume \"taken\" already"),
        ("web", used, "attached to"),
        ("web", json!(foreign), "attached to"),
        ("web", json!(unknown), "could not be found"),
    ] {
        let error = node.create(name, json!({ "volume_id": id })).await.unwrap_err();
        assert!(error.contains(told), "{told}: {error}");
    }
    let names: std::collections::BTreeSet<_> =
        cloud.volumes().await.iter().map(|found| found["name"].to_string()).collect();
    let kept = ["\"Its name\"", "\"free\"", "\"taken\"", "\"used\""];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), kept);
    // Somebody makes one of the name in the middle: both are what they were.
    cloud.forget_calls();
    cloud.fail_once("update-volume", Action::Delay(1000));
    let adopt = json!({ "volume_id": id });
    let (adopted, ()) = tokio::join!(node.create("web", adopt), async {
        until("asked", async || cloud.calls().iter().any(|call| call == "update-volume")).await;
        cloud.create("web", json!({})).await;
    });
    let error = adopted.unwrap_err();
    assert!(error.contains("got the name at the same time"), "{error}");
    assert_eq!(cloud.volume("free").await["id"], *id);
    assert_ne!(cloud.volume("web").await["id"], *id);
    other.unmount("used", "c").await.unwrap();
    other.unmount(&foreign, "c").await.unwrap();
}

#[tokio::test]
async fn option_hints_reach_the_scheduler() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("first", json!({})).await.unwrap();
    let id = cloud.volume("first").await["id"].as_str().unwrap().to_owned();
    let cases = [
        (json!({ "hints": "same_host=first" }), true),
        (json!({ "scheduler_hints": format!("same_host={id}, same_host=first") }), true),
        // The sandbox has one back end only.
        (json!({ "hints": "different_host=first" }), false),
        (json!({ "hints": format!("different_host={id},local_to_instance=x") }), false),
    ];
    for (n, (options, has_place)) in cases.into_iter().enumerate() {
        let name = format!("v{n}");
        let made = node.create(&name, options).await;
        if has_place {
            made.unwrap();
            let options = node.get(&name).await.unwrap()["Status"]["options"].clone();
            assert!(options["hints"].as_str().unwrap().starts_with("same_host="), "{options}");
        } else {
            let error = made.unwrap_err();
            assert!(error.contains("Could not find any available weighted backend"), "{error}");
            assert!(error.contains("it was removed again"), "{error}");
        }
    }
    let error = node.create("v", json!({ "hints": "different_host=gone" })).await.unwrap_err();
    assert!(error.contains("no volume \"gone\""), "{error}");
}

#[tokio::test]
async fn option_multiattach_lets_several_hosts_read() {
    let cloud = Cloud::start().await;
    // While one is being let in, Cinder lets no other in.
    let patient = || Node::start_with(&cloud, json!({ "WaitForRelease": 30 }));
    let (node, other) = tokio::join!(patient(), patient());
    // A clone is of the type of its origin.
    node.create("origin", json!({ "type": "multiattach" })).await.unwrap();
    let at = node.mount("origin", "c").await.unwrap();
    fs::write(at.join("x"), "origin").unwrap();
    node.unmount("origin", "c").await.unwrap();
    for (name, option) in [("a", "multiattach"), ("b", "shared")] {
        let options = json!({ option: "true", "read_only": "true", "from": "origin" });
        node.create(name, options).await.unwrap();
        let (here, there) = tokio::join!(node.mount(name, "c"), other.mount(name, "c"));
        for at in [here.unwrap(), there.unwrap()] {
            assert_eq!(fs::read_to_string(at.join("x")).unwrap(), "origin");
            fs::write(at.join("y"), "").unwrap_err();
        }
        node.unmount(name, "c").await.unwrap();
        assert_eq!(cloud.status(name).await, "in-use");
        other.unmount(name, "c").await.unwrap();
        assert_eq!(cloud.status(name).await, "available");
        assert_eq!(node.get(name).await.unwrap()["Status"]["options"]["multiattach"], "true");
    }
    with_data(&cloud, &node, "single").await;
    let options = json!({ "multiattach": "true", "read_only": "true", "from": "single" });
    let error = node.create("c", options).await.unwrap_err();
    assert!(error.contains("type \"lvmdriver-1\" are on one host at a time"), "{error}");
    until("deleted again", async || cloud.volumes().await.len() == 4).await;
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn option_on_remove_says_what_becomes_of_the_volume() {
    let cloud = Cloud::start().await;
    let (node, other) = tokio::join!(Node::start(&cloud), Node::start(&cloud));
    for what in ["delete", "retain", "snapshot"] {
        node.create(what, json!({ "on_remove": what })).await.unwrap();
        let at = node.mount(what, "c").await.unwrap();
        fs::write(at.join("x"), what).unwrap();
        let options = node.get(what).await.unwrap()["Status"]["options"].clone();
        assert_eq!(options["on_remove"], what, "mounted, too");
        assert!(node.remove(what).await.is_err(), "it is used");
        node.unmount(what, "c").await.unwrap();
        let id = cloud.volume(what).await["id"].as_str().unwrap().to_owned();
        // On another host: what was said at the create holds there, too.
        other.remove(what).await.unwrap();
        until("away", async || cloud.volumes().await.iter().all(|v| v["name"] != what)).await;
        assert!(node.get(what).await.unwrap_err().contains("no volume"));
        assert!(!node.list().await.unwrap().iter().any(|name| name.contains(what)));
        let left = cloud.volumes().await.into_iter().find(|volume| volume["id"] == *id);
        let snapshots = cloud.cinder("GET", "/snapshots", Value::Null).await;
        let taken = snapshots["snapshots"].as_array().unwrap().clone();
        if what == "delete" {
            assert!(left.is_none() && taken.is_empty(), "{left:?} {taken:?}");
            continue;
        }
        let left = left.unwrap();
        let kept = left["name"].as_str().unwrap().to_owned();
        assert!(kept.starts_with(&format!("{what}-removed-2")), "{kept}");
        assert_eq!(left["metadata"]["docker.retained"], what);
        assert_eq!(taken.len(), usize::from(what == "snapshot"));
        // It is nobody's to delete now, by either name.
        for name in [&kept, &id] {
            let error = node.remove(name).await.unwrap_err();
            assert!(error.contains("it was retained when"), "{error}");
        }
        // The name is free, for a blank one; the data is where the new name says, or comes back.
        node.create(what, json!({})).await.unwrap();
        assert!(fs::read_dir(node.mount(what, "c").await.unwrap()).unwrap().next().is_none());
        node.unmount(what, "c").await.unwrap();
        node.remove(what).await.unwrap();
        if what == "snapshot" {
            assert_eq!(taken[0]["name"], *kept);
            node.create("from-last", json!({ "snapshot": kept })).await.unwrap();
            let at = node.mount("from-last", "c").await.unwrap();
            assert_eq!(fs::read_to_string(at.join("x")).unwrap(), what);
            node.unmount("from-last", "c").await.unwrap();
        }
        node.create(what, json!({ "volume_id": id })).await.unwrap();
        let at = node.mount(what, "c").await.unwrap();
        assert_eq!(fs::read_to_string(at.join("x")).unwrap(), what);
        node.unmount(what, "c").await.unwrap();
        assert_eq!(cloud.volume(what).await["id"], *id);
        assert!(node.list().await.unwrap().contains(&what.to_owned()));
    }
}

#[tokio::test]
async fn option_on_remove_changes_nothing_when_it_cannot_be_done() {
    let cloud = Cloud::start_with(|options| options.behaviour.quotas.snapshots = 0).await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({ "on_remove": "snapshot" })).await.unwrap();
    let error = node.remove("v").await.unwrap_err();
    assert!(error.contains("SnapshotLimitExceeded"), "{error}");
    assert_eq!(cloud.status("v").await, "available");
    // The mark is there, the name is not changed: it is a volume as before, and can be removed.
    node.create("w", json!({ "on_remove": "retain" })).await.unwrap();
    cloud.fail_once("update-volume", Action::Answer(Canned::status(403)));
    let error = node.remove("w").await.unwrap_err();
    assert!(error.contains("refused to rename volume"), "{error}");
    assert!(Node::start(&cloud).await.list().await.unwrap().contains(&"w".to_owned()));
    node.mount("w", "c").await.unwrap();
    node.unmount("w", "c").await.unwrap();
    node.remove("w").await.unwrap();
    assert!(node.get("w").await.is_err());
    // What nobody understands must not end in a deletion.
    let id = cloud.volume("v").await["id"].as_str().unwrap().to_owned();
    let body = json!({ "metadata": { "docker.on_remove": "keep" } });
    cloud.cinder("POST", &format!("/volumes/{id}/metadata"), body).await;
    let error = node.remove("v").await.unwrap_err();
    assert!(error.contains("docker.on_remove=\"keep\", which makes no sense"), "{error}");
}

#[tokio::test]
async fn option_profile_takes_what_is_not_said_from_the_config() {
    let cloud = Cloud::start().await;
    let profiles = json!({
        "database": { "names": ["db-*", "pg-?"], "type": "multiattach", "fs": "xfs", "size": 2,
                      "mkfs_opts": "-m reflink=0", "on_remove": "retain", "mount_opts": "noatime" },
        "later": { "names": "*-1", "size": "7" },
        "scratch": { "on_remove": "delete", "metadata": "kind=scratch" },
    });
    let node = Node::start_with(&cloud, json!({ "Profiles": profiles })).await;
    // By option, by name; of two that fit, the first.
    for (name, options) in
        [("web", json!({ "profile": "database" })), ("db-1", json!({})), ("pg-x", Value::Null)]
    {
        node.create(name, options).await.unwrap();
        let found = cloud.volume(name).await;
        assert_eq!((&found["size"], &found["volume_type"]), (&json!(2), &json!("multiattach")));
        let at = node.mount(name, "c").await.unwrap();
        assert_eq!(mounted(&at, "FSTYPE"), "xfs");
        assert!(mounted(&at, "OPTIONS").contains("noatime"));
        let options = node.get(name).await.unwrap()["Status"]["options"].clone();
        assert_eq!((&options["profile"], &options["fs"]), (&json!("database"), &json!("xfs")));
        node.unmount(name, "c").await.unwrap();
    }
    // What is said wins, under each of its names; the profile that is named, over the pattern's.
    node.create("db-2", json!({ "fstype": "ext4", "size": "1" })).await.unwrap();
    let found = cloud.volume("db-2").await;
    assert_eq!((&found["size"], &found["metadata"]["docker.fs"]), (&json!(1), &json!("ext4")));
    assert_eq!(found["metadata"]["docker.mkfs_opts"], Value::Null, "those are for xfs");
    node.create("db-3", json!({ "profile": "scratch" })).await.unwrap();
    let found = cloud.volume("db-3").await;
    assert_eq!((&found["size"], &found["metadata"]["kind"]), (&json!(1), &json!("scratch")));
    node.create("db-5", json!({ "profile": "" })).await.unwrap();
    assert_eq!(cloud.volume("db-5").await["size"], 1, "none at all");
    // A copy is as large, and of the type, as what it is a copy of.
    node.create("db-4", json!({ "from": "db-3" })).await.unwrap();
    let found = cloud.volume("db-4").await;
    assert_eq!((&found["size"], &found["volume_type"]), (&json!(1), &json!("lvmdriver-1")));
    assert_eq!(found["metadata"]["docker.on_remove"], "retain");
    let error = node.create("x", json!({ "profile": "databse" })).await.unwrap_err();
    assert!(error.contains("did you mean \"database\"?"), "{error}");
    let error = node.create("x", json!({ "profile": "zebra" })).await.unwrap_err();
    assert!(error.contains("there are database, later, scratch"), "{error}");
    let bare = Node::start(&cloud).await;
    let error = bare.create("x", json!({ "profile": "database" })).await.unwrap_err();
    assert!(error.contains("the config of this host has none"), "{error}");
}

/// Not when a container needs it.
#[tokio::test]
async fn option_profile_that_is_wrong_is_found_by_check_and_at_the_start() {
    let cloud = Cloud::start().await;
    let profiles = json!({ "db": { "names": "db-*", "fs": "xfs", "sise": "5" } });
    let mut node = Node::prepare(cloud.sandbox.config(), json!({ "Profiles": profiles }));
    let told = "Profiles has a profile \"db\" with a wrong option: unknown option \"sise\": did you \
                mean \"size\"?";
    node.write_config();
    let check = node.cli(&["check"]).await;
    assert!(!check.status.success());
    let said = String::from_utf8_lossy(&check.stdout).replace("\n    ", " ");
    assert!(said.contains(told), "{said}");
    node.spawn();
    until("ended", async || node.has_ended()).await;
    assert!(node.log().contains(told), "{}", node.log());
}

#[tokio::test]
async fn option_from_makes_a_clone() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let id = with_data(&cloud, &node, "origin").await;
    for (name, options) in
        [("a", json!({ "from": "origin" })), ("b", json!({ "source_volid": id }))]
    {
        node.create(name, options).await.unwrap();
        assert_eq!(cloud.volume(name).await["source_volid"], *id);
        let at = node.mount(name, "c").await.unwrap();
        assert_eq!(fs::read_to_string(at.join("x")).unwrap(), "origin");
        fs::write(at.join("x"), "changed").unwrap();
        node.unmount(name, "c").await.unwrap();
    }
    let at = node.mount("origin", "c").await.unwrap();
    assert_eq!(fs::read_to_string(at.join("x")).unwrap(), "origin");
    node.unmount("origin", "c").await.unwrap();
}

/// The sandbox has no images: what is shown is how a cloud's refusal reads.
#[tokio::test]
async fn option_image_is_asked_of_the_cloud() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let id = "8f2c1f2e-6c1c-4d57-9d0a-111111111111";
    for option in ["image", "image_id"] {
        let error = node.create("v", json!({ option: id })).await.unwrap_err();
        assert!(error.starts_with("cannot create volume \"v\": "), "{error}");
        assert!(error.contains("Invalid image identifier"), "Cinder's words: {error}");
        assert!(error.contains("req-"), "{error}");
    }
    let error = node.create("v", json!({ "image": "debian-12" })).await.unwrap_err();
    assert!(error.contains("image"), "{error}");
    assert!(cloud.volumes().await.is_empty());
}

#[tokio::test]
async fn option_availability_zone_is_the_volumes_zone() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for (name, option) in [("a", "availability_zone"), ("b", "az")] {
        node.create(name, json!({ option: "nova" })).await.unwrap();
        assert_eq!(cloud.volume(name).await["availability_zone"], "nova");
        let error = node.create("elsewhere", json!({ option: "mars" })).await.unwrap_err();
        assert!(error.contains("'mars' is invalid"), "{error}");
        assert!(error.ends_with("there are: nova"), "{error}");
    }
}

#[tokio::test]
async fn option_availability_zone_has_a_default_in_the_config() {
    let cloud = Cloud::start().await;
    let node = Node::start_with(&cloud, json!({ "AvailabilityZone": "mars" })).await;
    let error = node.create("v", json!({})).await.unwrap_err();
    assert!(error.contains("'mars' is invalid") && error.ends_with("there are: nova"), "{error}");
    node.create("v", json!({ "az": "nova" })).await.unwrap();
    // A copy is where its source is.
    node.create("copy", json!({ "from": "v" })).await.unwrap();
}

#[tokio::test]
async fn option_description_is_shown_in_cinder() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({ "description": "web shop, größer" })).await.unwrap();
    assert_eq!(cloud.volume("v").await["description"], "web shop, größer");
    node.create("default", json!({})).await.unwrap();
    assert_eq!(cloud.volume("default").await["description"], "Docker volume.");
    // It is ours all the same.
    node.remove("v").await.unwrap();
}

#[tokio::test]
async fn option_metadata_is_kept_beside_our_own() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for (name, option) in [("a", "metadata"), ("b", "meta")] {
        node.create(name, json!({ option: "team=web, tier=1" })).await.unwrap();
        node.mount(name, "c").await.unwrap();
        node.unmount(name, "c").await.unwrap();
        let metadata = cloud.volume(name).await["metadata"].clone();
        assert_eq!((&metadata["team"], &metadata["tier"]), (&json!("web"), &json!("1")));
        assert!(metadata["docker.format"].as_str().unwrap().starts_with("formatted:"));
    }
}

#[tokio::test]
async fn option_read_only_attaches_and_mounts_a_copy_to_be_read() {
    let cloud = Cloud::start().await;
    let id = {
        let node = Node::start(&cloud).await;
        with_data(&cloud, &node, "origin").await
    };
    for flow in ["attachments", "actions"] {
        let node = Node::start_with(&cloud, json!({ "AttachFlow": flow })).await;
        for (n, option) in ["read_only", "readonly", "ro"].into_iter().enumerate() {
            let name = format!("{flow}-{n}");
            node.create(&name, json!({ option: "true", "from": id })).await.unwrap();
            let at = node.mount(&name, "c").await.unwrap();
            assert_eq!(fs::read_to_string(at.join("x")).unwrap(), "origin");
            fs::write(at.join("y"), "").unwrap_err();
            assert!(mounted(&at, "OPTIONS").split(',').any(|one| one == "ro"));
            if flow == "attachments" {
                let device = mounted(&at, "SOURCE");
                assert_eq!(sh(&format!("blockdev --getro {device}")).trim(), "1");
            }
            assert_eq!(node.mount(&name, "d").await.unwrap(), at);
            node.unmount(&name, "d").await.unwrap();
            node.unmount(&name, "c").await.unwrap();
            assert_eq!(cloud.status(&name).await, "available");
        }
        node.create(&format!("{flow}-rw"), json!({ "ro": "false", "from": id })).await.unwrap();
        let at = node.mount(&format!("{flow}-rw"), "c").await.unwrap();
        fs::write(at.join("y"), "").unwrap();
        node.unmount(&format!("{flow}-rw"), "c").await.unwrap();
        node.assert_clean(&cloud);
    }
}

async fn owned(node: &Node, name: &str) -> (u32, u32, u32) {
    let at = node.mount(name, "c").await.unwrap();
    let metadata = fs::metadata(&at).unwrap();
    node.unmount(name, "c").await.unwrap();
    (metadata.uid(), metadata.gid(), metadata.permissions().mode() & 0o7777)
}

#[tokio::test]
async fn option_uid_and_option_gid_own_the_new_directory() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("both", json!({ "uid": "999", "gid": "998" })).await.unwrap();
    assert_eq!(owned(&node, "both").await, (999, 998, 0o755));
    node.create("gid", json!({ "gid": "998", "fs": "xfs" })).await.unwrap();
    assert_eq!(owned(&node, "gid").await, (0, 998, 0o755));
}

#[tokio::test]
async fn option_uid_is_for_a_new_directory_only() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({ "uid": 999 })).await.unwrap();
    let at = node.mount("v", "c").await.unwrap();
    std::os::unix::fs::chown(&at, Some(5), Some(6)).unwrap();
    node.unmount("v", "c").await.unwrap();
    assert_eq!(owned(&node, "v").await, (5, 6, 0o755), "what its users made of it stays");
}

#[tokio::test]
async fn option_gid_alone_leaves_the_user() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({ "gid": "0", "mode": "2775" })).await.unwrap();
    assert_eq!(owned(&node, "v").await, (0, 0, 0o2775));
}

#[tokio::test]
async fn option_mode_is_the_new_directorys() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for (name, mode, expected) in
        [("a", "0770", 0o770), ("b", "1777", 0o1777), ("c", "0700", 0o700), ("d", "0", 0o000)]
    {
        node.create(name, json!({ "mode": mode, "uid": "33" })).await.unwrap();
        let found = owned(&node, name).await;
        assert_eq!(found, (33, 0, expected), "{mode}");
    }
}

#[tokio::test]
async fn option_partition_says_which_is_mounted() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let origin = cloud.create("origin", json!({})).await;
    let image = cloud.image(&origin);
    let image = image.display();
    sh(&format!("printf ',100M,L\\n,100M,L\\n' | sfdisk --quiet --label gpt {image}"));
    for (start, label) in [(1u64, "first"), (101, "second")] {
        sh(&format!("mkfs.ext4 -q -F -L {label} -E offset={} {image} 100M", start << 20));
    }
    for (option, expected) in [("1", "first"), ("2", "second"), ("3", "")] {
        let name = format!("p{option}");
        node.create(&name, json!({ "from": "origin", "partition": option })).await.unwrap();
        let id = cloud.volume(&name).await["id"].as_str().unwrap().parse().unwrap();
        // The sandbox lets the kernel read no partition table, as other back ends do.
        cloud.forget_calls();
        cloud.fail_once("attachment-update", Action::DelayAnswer(600));
        cloud.fail_once("attachment-delete", Action::Delay(600));
        let kernel = async {
            until("exported", async || !cloud.sandbox.devices(id).is_empty()).await;
            let device = cloud.sandbox.devices(id).remove(0);
            sh(&format!("partx -u {}", device.display()));
            until("given back", async || {
                cloud.calls().iter().any(|call| call == "attachment-delete")
            })
            .await;
            sh(&format!("partx -d {}", device.display()));
        };
        let engine = async {
            let at = node.mount(&name, "c").await?;
            assert_eq!(mounted(&at, "LABEL"), expected);
            node.unmount(&name, "c").await
        };
        let (answer, ()) = tokio::join!(engine, kernel);
        match option {
            "3" => {
                let error = answer.unwrap_err();
                assert!(error.contains("no partition 3"), "{error}");
            }
            _ => answer.unwrap(),
        }
    }
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn what_is_malformed_or_contradicts_itself_is_told_and_makes_nothing() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    cloud.forget_calls();
    let long = "x".repeat(256);
    for (options, told) in [
        (json!({ "size": "0" }), "the smallest volume is 1 GiB"),
        (json!({ "size": "1.5" }), "whole number of GiB"),
        (json!({ "size": "512M" }), "whole number of GiB"),
        (json!({ "size": "-1" }), "whole number of GiB"),
        (json!({ "size": "99999999999" }), "no volume is that large"),
        (json!({ "type": "" }), "it is empty"),
        (json!({ "type": long }), "longer than 255"),
        (json!({ "description": "a\nb" }), "control characters"),
        (json!({ "fs": "ntfs" }), "ext4, xfs or btrfs"),
        (json!({ "fs": "ext4", "fstype": "xfs" }), "mean the same"),
        (json!({ "mkfs_opts": "-F" }), "never formats by force"),
        (json!({ "mkfs_opts": "/dev/sda" }), "not an option"),
        (json!({ "mkfs_opts": "-U random" }), "chooses the UUID"),
        (json!({ "mkfs_opts": "-N 100", "fs": "xfs" }), "mkfs_opts"),
        (json!({ "mount_opts": "bind" }), "bind"),
        (json!({ "mount_opts": "loop=/dev/sda" }), "loop"),
        (json!({ "mount_opts": "ro,offset=4096" }), "mount_opts"),
        (json!({ "metadata": "team" }), "KEY=VALUE"),
        (json!({ "metadata": "docker.nonce=x" }), "the driver's own"),
        (json!({ "metadata": "a=1,a=2" }), "given twice"),
        (json!({ "read_only": "perhaps" }), "true or false"),
        (json!({ "read_only": "true" }), "could never be formatted"),
        (json!({ "uid": "root" }), "a number"),
        (json!({ "gid": "-1" }), "a number"),
        (json!({ "uid": "4294967295" }), "a number"),
        (json!({ "mode": "rwx" }), "octal"),
        (json!({ "mode": "0888" }), "octal"),
        (json!({ "mode": "17777" }), "octal"),
        (json!({ "partition": "0", "from": "x" }), "counted from 1"),
        (json!({ "partition": "1" }), "a blank volume has none"),
        (json!({ "snapshot": "a", "from": "b" }), "only one of"),
        (json!({ "image": "a", "snapshot": "b" }), "only one of"),
        (json!({ "snapshot": "a", "fs": "xfs" }), "never formatted"),
        (json!({ "from": "a", "mkfs_opts": "-N 100" }), "never formatted"),
        (json!({ "from": "a", "uid": "1" }), "never formatted"),
        (json!({ "from": "a", "mode": "0700" }), "never formatted"),
        (json!({ "from": "../a" }), "not a volume name"),
        (json!({ "from": "a@" }), "follows the @"),
        (json!({ "from": "a@b", "backup": "c" }), "only one of"),
        (json!({ "from": "@b" }), "not a volume name"),
        (json!({ "backup": "" }), "it is empty"),
        (json!({ "backup": "a", "fs": "xfs" }), "never formatted"),
        (json!({ "volume_id": "web" }), "a UUID"),
        (json!({ "volume_id": ID, "size": "1" }), "\"size\" is for a new volume"),
        (json!({ "adopt": ID, "az": "nova" }), "\"availability_zone\" is for a new volume"),
        (json!({ "volume_id": ID, "from": "a" }), "\"from\" is for a new volume"),
        (json!({ "hints": "first" }), "HINT=VALUE"),
        (json!({ "hints": "different_host=" }), "must not be empty"),
        (json!({ "hints": "diferent_host=a" }), "did you mean \"different_host\""),
        (json!({ "hints": "same_host=a/b" }), "not a volume name"),
        (json!({ "hints": "x=1,x=2" }), "given twice"),
        (json!({ "multiattach": "true" }), "two hosts write"),
        (json!({ "shared": "true", "from": "a" }), "two hosts write"),
        (json!({ "multiattach": "perhaps" }), "true or false"),
        (json!({ "on_remove": "keep" }), "delete, retain or snapshot"),
        (json!({ "profile": "x" }), "no profile \"x\""),
        (json!({ "sise": "1" }), "did you mean \"size\""),
        (json!({ "read-only": "true" }), "did you mean \"read_only\""),
        (json!({ "wombat": "1" }), "there are size, type"),
        (json!({ "size": ["1"] }), "neither text nor a number"),
        (json!({ "size": "x", "uid": "y", "nope": "z" }), "; "),
    ] {
        let body = json!({ "Name": "v", "Opts": options }).to_string();
        let (status, answer) = node.try_call("/VolumeDriver.Create", &body).await.unwrap();
        let error = answer["Err"].as_str().unwrap_or_default();
        assert_eq!(status, 400, "{options}: {answer}");
        assert!(error.contains(told), "{options}: {error}");
        assert!(!error.contains('\n'), "{error:?}");
    }
    assert!(!cloud.calls().iter().any(|call| call == "create-volume"), "{:?}", cloud.calls());
    assert!(cloud.volumes().await.is_empty());
    let left: Vec<PathBuf> = fs::read_dir(node.state_dir().join("creations"))
        .unwrap()
        .map(|found| found.unwrap().path())
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}
