//! The whole daemon on a host with a real iSCSI initiator: volumes of the embedded cloud, exported
//! by tgtd with CHAP, and what the Go driver left mounted.
//!
//! Needs root, tgtd, open-iscsi and a kernel with iscsi_tcp; says loudly that it is skipped
//! elsewhere. To run it on another machine, copy this test's binary and the daemon's there and
//! name the latter in `CINDER_DRIVER_BINARY`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and starts programs itself"
)]

#[path = "support/initiator.rs"]
mod initiator;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::container::{self, Container};
use support::{Cloud, Node, sh};

const HOST_UUID: &str = "219b0670-a214-4281-8424-5bb3beaaa107";

/// Sessions to a volume's target.
fn sessions(id: &str) -> usize {
    let Ok(found) = fs::read_dir("/sys/class/iscsi_session") else { return 0 };
    found
        .flatten()
        .filter(|one| {
            fs::read_to_string(one.path().join("targetname")).is_ok_and(|name| name.contains(id))
        })
        .count()
}

async fn blocking(line: String) -> String {
    // The target that it talks to is served by this very thread's cloud.
    tokio::task::spawn_blocking(move || sh(&line)).await.unwrap()
}

/// What the Go driver did for a Mount, call by call: reserve, initialize, iscsiadm, mkfs, mount,
/// a content directory of mode 0000, attach.
async fn mount_as_the_go_driver(cloud: &Cloud, node: &Node, name: &str) -> (String, PathBuf) {
    let id = cloud.create(name, json!({ "description": "Docker volume." })).await;
    let action = format!("/volumes/{id}/action");
    cloud.cinder("POST", &action, json!({ "os-reserve": {} })).await;
    let initiator = fs::read_to_string("/etc/iscsi/initiatorname.iscsi").unwrap();
    let initiator = initiator.lines().find_map(|l| l.strip_prefix("InitiatorName=")).unwrap();
    let connector = json!({ "initiator": initiator, "ip": "127.0.0.1", "host": "go",
        "platform": "x86_64", "os_type": "linux", "multipath": false });
    let answer = cloud
        .cinder("POST", &action, json!({ "os-initialize_connection": { "connector": connector } }))
        .await;
    let data = &answer["connection_info"]["data"];
    let text = |key: &str| data[key].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    let node_record =
        format!("iscsiadm -m node -T {} -p {}", text("target_iqn"), text("target_portal"));
    blocking(format!("{node_record} --interface default --op new")).await;
    for (key, value) in [
        ("authmethod", "CHAP".to_owned()),
        ("username", text("auth_username")),
        ("password", text("auth_password")),
    ] {
        blocking(format!("{node_record} --op update -n node.session.auth.{key} -v {value}")).await;
    }
    blocking(format!("{node_record} --login")).await;
    let link = format!(
        "/dev/disk/by-path/ip-{}-iscsi-{}-lun-{}",
        text("target_portal"),
        text("target_iqn"),
        data["target_lun"]
    );
    blocking(format!("udevadm settle; until test -e {link}; do sleep 0.1; done")).await;
    let device = fs::canonicalize(&link).unwrap();
    let at = node.mount_point().join(name);
    fs::create_dir_all(&at).unwrap();
    blocking(format!("mkfs.ext4 -q -F {0} && mount {0} {1}", device.display(), at.display())).await;
    let content = at.join("volume_content");
    fs::create_dir(&content).unwrap();
    fs::write(content.join("kept"), "from the old driver").unwrap();
    fs::set_permissions(&content, fs::Permissions::from_mode(0o000)).unwrap();
    let attach = json!({ "instance_uuid": HOST_UUID, "mountpoint": device, "mode": "rw" });
    cloud.cinder("POST", &action, json!({ "os-attach": attach })).await;
    assert_eq!(cloud.status(name).await, "in-use");
    (id, content)
}

#[tokio::test]
async fn promise_9_what_the_go_driver_left_mounted_is_adopted_and_let_go() {
    if !initiator::is_here("promise_9_what_the_go_driver_left_mounted_is_adopted_and_let_go") {
        return;
    }
    container::prepare();
    let cloud = Cloud::start_with(|options| options.iscsi = true).await;
    let config = json!({ "HostUUID": HOST_UUID });
    let mut node = Node::prepare(cloud.sandbox.config(), config);
    let (id, content) = mount_as_the_go_driver(&cloud, &node, "web").await;
    let old_container = Container::with(&content);

    node.run().await;
    // Adopted in the background: the socket answers first.
    let end = Instant::now() + Duration::from_secs(20);
    while node.get("web").await.unwrap()["Mountpoint"] != content.to_str().unwrap() {
        assert!(Instant::now() < end, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mode = fs::metadata(&content).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o755, "the Go driver's mode is repaired");

    // A second container comes and goes; the old one keeps its volume.
    assert_eq!(node.mount("web", "new").await.unwrap(), content);
    node.unmount("web", "new").await.unwrap();
    assert_eq!(fs::read_to_string(content.join("kept")).unwrap(), "from the old driver");
    assert_eq!((sessions(&id), cloud.status("web").await.as_str()), (1, "in-use"));

    // Docker's Unmount carries an id that this daemon never saw.
    drop(old_container);
    node.unmount("web", "old").await.unwrap();
    assert_eq!(node.mounts(), Vec::<String>::new(), "{}", node.log());
    assert_eq!((sessions(&id), cloud.status("web").await.as_str()), (0, "available"));
    let records = sh("iscsiadm -m node 2>&1 || true");
    assert!(!records.contains(&id), "{records}");

    let again = node.mount("web", "c").await.unwrap();
    assert_eq!(fs::read_to_string(again.join("kept")).unwrap(), "from the old driver");
    node.unmount("web", "c").await.unwrap();
    assert!(node.liabilities().is_empty());
}

#[tokio::test]
async fn promise_9_a_mount_that_is_not_proven_to_be_the_volume_is_left_alone() {
    if !initiator::is_here("promise_9_a_mount_that_is_not_proven_to_be_the_volume_is_left_alone") {
        return;
    }
    let cloud = Cloud::start_with(|options| options.iscsi = true).await;
    // Cinder shows it attached to another host's UUID.
    let config = json!({ "HostUUID": "82ee38eb-821b-42d0-8c61-c4974d0c8536", "WaitForRelease": 0 });
    let mut node = Node::prepare(cloud.sandbox.config(), config);
    let (id, content) = mount_as_the_go_driver(&cloud, &node, "web").await;
    node.run().await;
    node.unmount("web", "c").await.unwrap();
    node.mount("web", "c").await.unwrap_err();
    assert!(content.exists());
    assert_eq!((sessions(&id), cloud.status("web").await.as_str()), (1, "in-use"));
    blocking(format!(
        "umount {} && iscsiadm -m node --logoutall=all; iscsiadm -m node -o delete || true",
        node.mount_point().join("web").display()
    ))
    .await;
}

#[tokio::test]
async fn a_volume_comes_by_iscsi_with_chap_and_leaves_nothing_behind() {
    if !initiator::is_here("a_volume_comes_by_iscsi_with_chap_and_leaves_nothing_behind") {
        return;
    }
    let cloud = Cloud::start_with(|options| options.iscsi = true).await;
    for flow in ["actions", "attachments"] {
        let mut node = Node::start_with(&cloud, json!({ "AttachFlow": flow })).await;
        let name = format!("v-{flow}");
        node.create(&name, json!({})).await.unwrap();
        let id = cloud.volume(&name).await["id"].as_str().unwrap().to_owned();
        let mounted = node.mount(&name, "c").await.unwrap();
        fs::write(mounted.join("x"), "1").unwrap();
        node.kill();
        node.run().await;
        assert_eq!(node.mount(&name, "d").await.unwrap(), mounted, "{}", node.log());
        node.unmount(&name, "c").await.unwrap();
        assert_eq!(sessions(&id), 1);
        node.unmount(&name, "d").await.unwrap();
        assert_eq!((sessions(&id), cloud.status(&name).await.as_str()), (0, "available"));
        let mounted = node.mount(&name, "c").await.unwrap();
        assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), "1");
        node.unmount(&name, "c").await.unwrap();
        node.remove(&name).await.unwrap();
        // Nothing secret in what was logged, every command and call among it.
        let log = node.log();
        assert!(log.contains("iscsiadm") && !log.contains("password"), "{log}");
        assert!(node.mounts().is_empty() && node.liabilities().is_empty());
    }
    assert_eq!(cloud.volumes().await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_lun_with_another_volumes_filesystem_is_refused_and_left_as_it_was() {
    let test = "a_lun_with_another_volumes_filesystem_is_refused_and_left_as_it_was";
    if !initiator::is_here(test) {
        return;
    }
    let cloud = Cloud::start_with(|options| options.iscsi = true).await;
    let node = Node::start(&cloud).await;
    let mut images = Vec::new();
    for name in ["one", "two"] {
        node.create(name, json!({})).await.unwrap();
        let mounted = node.mount(name, "c").await.unwrap();
        fs::write(mounted.join("name"), name).unwrap();
        node.unmount(name, "c").await.unwrap();
        images.push((cloud.volume(name).await["id"].as_str().unwrap().to_owned(), name));
    }
    // The storage confuses them.
    let (one, two) = (cloud.image(&images[0].0), cloud.image(&images[1].0));
    let swap = format!(
        "cd {}; mv {1} x; mv {2} {1}; mv x {2}",
        cloud.dir().display(),
        one.display(),
        two.display()
    );
    sh(&swap);
    // Of what is allocated: an emulated processor takes long for a GiB of holes.
    let digest = |file: &Path| {
        let (dir, name) = (file.parent().unwrap().display(), file.file_name().unwrap().display());
        sh(&format!("tar -c --sparse --mtime=@0 -C {dir} {name} | sha256sum"))
    };
    let before = [digest(&one), digest(&two)];
    for (id, name) in &images {
        let error = node.mount(name, "c").await.unwrap_err();
        assert!(error.contains(&format!("accept-uuid {name}")), "{error}");
        assert_eq!((sessions(id), cloud.status(name).await.as_str()), (0, "available"), "{error}");
    }
    assert_eq!([digest(&one), digest(&two)], before);
    sh(&swap);
    for (_, name) in &images {
        let mounted = node.mount(name, "c").await.unwrap();
        assert_eq!(fs::read_to_string(mounted.join("name")).unwrap(), *name);
        node.unmount(name, "c").await.unwrap();
    }
    node.assert_clean(&cloud);
}
