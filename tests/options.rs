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
use cinder_docker_driver::sandbox::faults::Action;
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
    }
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
