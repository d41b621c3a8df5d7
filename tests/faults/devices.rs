//! Devices that are not what Cinder says, that fail, and that go away; places where no volume can be
//! mounted.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use cinder_docker_driver::sandbox::faults::{Action, Canned};
use serde_json::json;
use tempfile::TempDir;

use crate::host::{BYTES, Host};
use crate::support::sh;

/// A loop device of the test's own, over a file that can be made worse afterwards.
struct Disk {
    node: String,
    file: PathBuf,
    _dir: TempDir,
}

impl Disk {
    /// `$file` is made, and `$node` is made worse, by lines of shell.
    fn new(make: &str, options: &str, worsen: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        let lock = std::env::temp_dir().join("loop-devices-of-tests.lock");
        let node = sh(&format!(
            "set -e; file={0}; {{ {make}; }} >/dev/null 2>&1; \
             node=$(flock {1} losetup -f --show {options} $file)\n{worsen}\necho $node",
            file.display(),
            lock.display()
        ));
        Self { node: node.trim().to_owned(), file, _dir: dir }
    }

    /// Changes with every write to it.
    fn stamp(&self) -> String {
        let (node, file) = (&self.node, self.file.display());
        sh(&format!("blockdev --flushbufs {node}; stat -c '%y %z %b %s' {file}"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The next user of the device wants to write, and would inherit that.
        Command::new("blockdev").arg("--setrw").arg(&self.node).status().ok();
        Command::new("losetup").arg("-d").arg(&self.node).status().ok();
    }
}

/// What Cinder answers when it hands out this device.
fn hands_out(node: &str) -> Action {
    let body = json!({ "attachment": { "id": "7c9e6679-7425-40de-944b-e07fc1f90ae7",
        "status": "attaching",
        "connection_info": { "driver_volume_type": "local", "device_path": node } } });
    let canned = Canned { status: 200, body: Some(body.to_string()), retry_after: None };
    Action::AnswerAfter(canned)
}

#[tokio::test]
async fn a_device_that_is_not_the_volume_is_refused_and_not_one_byte_of_it_changed() {
    let blank = "truncate -s 1G $file";
    let own = "cp --sparse=always $image $file";
    let other = "truncate -s 1G $file; mkfs.ext4 -q -m0 $file";
    let larger = "truncate -s 2G $file; mkfs.ext4 -q -m0 $file";
    let smaller = "cp --sparse=always $image $file; truncate -s 500M $file";
    // Name; whether the volume has a filesystem by Cinder's word; the device; what is said.
    let cases = [
        ("fresh-unreadable", false, blank, "", "truncate -s 0 $file", "Input/output error"),
        ("fresh-half-readable", false, blank, "", "truncate -s 500M $file", "Input/output error"),
        ("fresh-read-only", false, blank, "-r", "", "read-only"),
        ("fresh-set-read-only", false, blank, "", "blockdev --setro $node", "read-only"),
        ("fresh-others", false, other, "", "", "ext4"),
        ("fresh-others-larger", false, larger, "", "", "ext4"),
        ("fresh-empty", false, "truncate -s 0 $file", "", "", "is not there"),
        ("fresh-smaller", false, "truncate -s 500M $file", "", "", "may be another volume"),
        ("used-unreadable", true, own, "", "truncate -s 0 $file", "Input/output error"),
        ("used-half-readable", true, own, "", "truncate -s 100K $file", ""),
        ("used-read-only", true, own, "-r", "", "read-only"),
        ("used-set-read-only", true, own, "", "blockdev --setro $node", "read-only"),
        ("used-others", true, other, "", "", "UUID"),
        ("used-others-larger", true, larger, "", "", "UUID"),
        ("used-blank", true, blank, "", "", "formatted"),
        ("used-empty", true, "truncate -s 0 $file", "", "", "is not there"),
        ("used-smaller", true, smaller, "", "", "may be another volume"),
    ];
    let host = Host::new(json!({})).await;
    for (name, used, make, options, worsen, says) in cases {
        let id = match used {
            true => host.with_bytes(name, json!({})).await,
            false => {
                host.node.create(name, json!({})).await.unwrap();
                host.id_of(name).await
            }
        };
        let make = make.replace("$image", &host.cloud.image(&id).display().to_string());
        let disk = Disk::new(&make, options, worsen);
        let before = disk.stamp();
        host.cloud.fail_once("attachment-update", hands_out(&disk.node));
        let error = host.node.mount(name, "c").await.unwrap_err();
        assert!(error.contains(says) && error.contains(name), "{name}: {error}");
        host.until_free(name).await;
        assert_eq!(disk.stamp(), before, "{name}: {error}");
        let format = host.cloud.volume(name).await["metadata"]["docker.format"].clone();
        let is_formatted = format.as_str().is_some_and(|state| state.starts_with("formatted:"));
        assert_eq!(is_formatted, used, "{name}: {format}");
        // Cinder comes to its senses.
        host.cloud.clear_faults();
        host.assert_sound(name, used).await;
        println!("{name}: {error}");
    }
    println!("{} devices that are not the volume", cases.len());
    host.assert_clean().await;
}

#[tokio::test]
async fn a_device_that_goes_away_at_any_tool_leaves_nothing_behind() {
    let host = Host::new(json!({})).await;
    let detach = |tool: &str| match tool {
        // Its own words say where it is mounted only.
        "umount" => "for at; do :; done; losetup -d $(findmnt -no SOURCE $at); exec $real \"$@\"",
        "mkfs.ext4" => "for device; do :; done; losetup -d $device; exec $real \"$@\"",
        _ => "while [ $# -gt 2 ]; do shift; done; losetup -d $1; exec $real \"$@\"",
    };
    for (tool, name) in [("mount", "at-mount"), ("umount", "at-umount"), ("mkfs.ext4", "at-mkfs")] {
        match tool {
            "mkfs.ext4" => host.node.create(name, json!({})).await.unwrap(),
            _ => drop(host.with_bytes(name, json!({})).await),
        }
        if tool == "umount" {
            host.node.mount(name, "c").await.unwrap();
        }
        host.replace(tool, detach(tool));
        let answer = match tool {
            "umount" => host.node.unmount(name, "c").await,
            _ => host.node.mount(name, "c").await.map(drop),
        };
        host.mend(tool);
        match (tool, &answer) {
            ("mount", Err(error)) => assert!(error.contains(name), "{error}"),
            // The kernel takes a loop device away when the last one closes it.
            ("umount", Ok(())) => {}
            ("mkfs.ext4", Ok(())) => host.node.unmount(name, "c").await.unwrap(),
            ("mkfs.ext4", Err(error)) => assert!(error.contains(name), "{error}"),
            _ => panic!("{tool}: {answer:?}"),
        }
        host.assert_sound(name, tool != "mkfs.ext4").await;
    }
    host.assert_clean().await;
}

#[tokio::test]
async fn a_mounted_volume_that_cannot_be_written_any_more_is_let_go_of_and_said_to_be_damaged() {
    // The storage of this cloud is full; a device shows that as an I/O error.
    let host = Host::new(json!({})).await;
    host.node.create("probe", json!({})).await.unwrap();
    let id = host.id_of("probe").await;
    let storage = host.cloud.image(&id).parent().unwrap().to_owned();
    host.node.remove("probe").await.unwrap();
    let full = Full::over(&storage);
    host.with_bytes("v", json!({})).await;
    let at = host.node.mount("v", "c").await.unwrap();
    // More than the storage has, held in memory only so far.
    fs::write(at.join("large"), vec![7; 60 << 20]).unwrap();
    let error = host.node.unmount("v", "c").await.unwrap_err();
    // With the kernel's word for it: an I/O error, or that there is no space.
    let is_told =
        |text: &str| text.contains("cannot write out all data of") || text.contains("cannot flush");
    assert!(is_told(&error), "{error}");
    host.until_free("v").await;
    let status = host.node.get("v").await.unwrap()["Status"].clone();
    let told = status["last_error"].as_str().unwrap_or_else(|| panic!("{status}"));
    assert!(is_told(told), "{told}");
    // Storage grows, and what had arrived is there.
    full.grow();
    host.assert_sound("v", true).await;
    host.node.remove("v").await.unwrap();
    host.assert_clean().await;
}

#[tokio::test]
async fn a_mounted_volume_that_cannot_be_read_any_more_is_let_go_of() {
    let host = Host::new(json!({})).await;
    let id = host.with_bytes("v", json!({})).await;
    let image = host.cloud.image(&id);
    let kept = host.file("kept");
    sh(&format!("cp --sparse=always {} {}", image.display(), kept.display()));
    host.node.mount("v", "c").await.unwrap();
    fs::File::options().write(true).open(&image).unwrap().set_len(0).unwrap();
    sh("echo 3 >/proc/sys/vm/drop_caches");
    // Told or not that something was amiss: it is let go of.
    let answer = host.node.unmount("v", "c").await;
    println!("{answer:?}");
    host.until_free("v").await;
    let error = host.node.mount("v", "c").await.unwrap_err();
    assert!(error.contains("\"v\""), "{error}");
    host.until_free("v").await;
    sh(&format!("cp --sparse=always {} {}", kept.display(), image.display()));
    host.assert_sound("v", true).await;
    host.assert_clean().await;
}

/// A small tmpfs over a directory.
struct Full(PathBuf);

impl Full {
    fn over(directory: &Path) -> Self {
        sh(&format!("mount -t tmpfs -o size=40m,mode=700 storage {}", directory.display()));
        Self(directory.to_owned())
    }

    fn grow(&self) {
        sh(&format!("mount -o remount,size=400m {}", self.0.display()));
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[tokio::test]
async fn a_mountpoint_is_made_for_root_alone_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::create_dir(root.join("real")).unwrap();
    fs::create_dir(root.join("read-only")).unwrap();
    symlink(root.join("real"), root.join("link")).unwrap();
    fs::write(root.join("file"), "").unwrap();
    sh(&format!("mount -t tmpfs -o ro none {}", root.join("read-only").display()));
    for (place, says) in [
        ("link", "symbolic link"),
        ("link/below", "symbolic link"),
        ("file", "no directory"),
        ("read-only/mount", "Read-only file system"),
    ] {
        let host = Host::new(json!({ "MountPoint": root.join(place) })).await;
        host.node.create("v", json!({})).await.unwrap();
        let error = host.node.mount("v", "c").await.unwrap_err();
        assert!(error.contains(says), "{place}: {error}");
        assert_eq!(host.cloud.status("v").await, "available", "{place}");
        assert_eq!(fs::read_dir(root.join("real")).unwrap().count(), 0);
        host.node.until_clean().await;
    }
    sh(&format!("umount {}", root.join("read-only").display()));
    let host = Host::new(json!({ "MountPoint": root.join("not/there/yet") })).await;
    host.node.create("v", json!({})).await.unwrap();
    let at = host.node.mount("v", "c").await.unwrap();
    fs::write(at.join("bytes"), BYTES).unwrap();
    let mode = fs::metadata(root.join("not/there/yet")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o700, "root's alone, with what is mounted there");
    host.node.unmount("v", "c").await.unwrap();
    host.assert_sound("v", true).await;
    host.assert_clean().await;
}
