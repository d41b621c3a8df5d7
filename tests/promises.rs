//! The promises about people's data, each shown by tests that fail when it is broken.
//!
//! The whole daemon as a process, real block devices and filesystems, an embedded cloud that keeps
//! Cinder's rules.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, Instant};

use cinder_docker_driver::sandbox::faults::{Action, Canned, Rule};
use serde_json::{Value, json};
use support::{Cloud, Node, ask, loops_of, sh};

const GIB: u64 = 1 << 30;

/// Waits until the cloud has seen a call.
async fn until_called(cloud: &Cloud, call: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    while !cloud.calls().iter().any(|seen| seen == call) {
        assert!(Instant::now() < end, "{call} was never sent: {:?}", cloud.calls());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn digest(cloud: &Cloud, id: &str) -> String {
    // Sparse files: only what is allocated is read.
    sh(&format!(
        "cp --sparse=always {0} {0}.copy && sha256sum < {0}.copy; rm {0}.copy",
        cloud.image(id).display()
    ))
}

// ---- 1. We never format what may hold data.

#[tokio::test]
async fn promise_1_a_volume_with_unknown_data_is_refused_and_left_as_it_was() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for (name, at) in [("start", 4096), ("middle", GIB / 2), ("end", GIB - 4096)] {
        let id = cloud.create(name, json!({})).await;
        let file = fs::OpenOptions::new().write(true).open(cloud.image(&id)).unwrap();
        // One sample in sixteen MiB would miss a single block: a stretch of data, as real data is.
        let length = if name == "middle" { 64 << 20 } else { 4096 };
        for offset in (0..length).step_by(4096) {
            file.write_all_at(b"somebody's records", at + offset).unwrap();
        }
        let before = digest(&cloud, &id);
        let error = node.mount(name, "c").await.unwrap_err();
        assert!(error.contains("format"), "{error}");
        assert_eq!(digest(&cloud, &id), before, "{name}");
        assert_eq!(cloud.status(name).await, "available");
    }
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn promise_1_a_volume_of_ours_that_is_not_blank_is_refused() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let id = cloud.volume("v").await["id"].as_str().unwrap().to_owned();
    let file = fs::OpenOptions::new().write(true).open(cloud.image(&id)).unwrap();
    file.write_all_at(b"an old tenant's", 1 << 20).unwrap();
    let before = digest(&cloud, &id);
    node.mount("v", "c").await.unwrap_err();
    assert_eq!(digest(&cloud, &id), before);
    let state = cloud.volume("v").await["metadata"]["docker.format"].clone();
    assert_eq!(state, "unformatted", "it must still be known as never formatted");
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn promise_1_another_filesystem_than_the_recorded_one_is_refused_until_it_is_accepted() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    let id = cloud.volume("v").await["id"].as_str().unwrap().to_owned();
    sh(&format!("mkfs.ext4 -q -F {}", cloud.image(&id).display()));
    let before = digest(&cloud, &id);
    let error = node.mount("v", "c").await.unwrap_err();
    assert!(error.contains("accept-uuid v"), "{error}");
    assert_eq!(digest(&cloud, &id), before);
    node.assert_clean(&cloud);

    let shown = node.cli(&["accept-uuid", "v"]).await;
    assert!(!shown.status.success(), "it must not be done without the id");
    node.mount("v", "c").await.unwrap_err();
    let done = node.cli(&["accept-uuid", "v", "--id", &id]).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
}

#[tokio::test]
async fn promise_1_a_volume_that_was_formatted_and_reads_blank_is_refused() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    let id = cloud.volume("v").await["id"].as_str().unwrap().to_owned();
    sh(&format!("truncate -s 0 {0} && truncate -s 1G {0}", cloud.image(&id).display()));
    let error = node.mount("v", "c").await.unwrap_err();
    assert!(error.contains("damaged"), "{error}");
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn promise_1_data_made_elsewhere_is_mounted_as_it_is() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for (name, mkfs) in [("e", "mkfs.ext4 -q -F"), ("x", "mkfs.xfs -q -f")] {
        let id = cloud.create(name, json!({})).await;
        let (image, at) = (cloud.image(&id), cloud.dir().join(name));
        fs::create_dir(&at).unwrap();
        sh(&format!(
            "{mkfs} {0} && mount -o loop {0} {1} && echo kept > {1}/old && umount {1}",
            image.display(),
            at.display()
        ));
        let mounted = node.mount(name, "c").await.unwrap();
        assert_eq!(fs::read_to_string(mounted.join("old")).unwrap(), "kept\n");
        assert_eq!(mounted, node.mount_point().join(name), "data at the root: the root is given");
        node.unmount(name, "c").await.unwrap();
        assert_eq!(cloud.volume(name).await["metadata"]["docker.directory"], "/");
    }
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn promise_1_a_blank_volume_made_elsewhere_is_formatted_unless_the_operator_objects() {
    let cloud = Cloud::start().await;
    cloud.create("a", json!({})).await;
    let cautious = Node::start_with(&cloud, json!({ "FormatForeign": false })).await;
    let error = cautious.mount("a", "c").await.unwrap_err();
    assert!(error.contains("FormatForeign"), "{error}");
    let node = Node::start(&cloud).await;
    node.mount("a", "c").await.unwrap();
    node.unmount("a", "c").await.unwrap();
}

#[tokio::test]
async fn promise_1_a_copy_of_something_is_never_formatted() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let id = cloud.create("origin", json!({})).await;
    cloud.create("clone", json!({ "source_volid": id })).await;
    let error = node.mount("clone", "c").await.unwrap_err();
    assert!(error.contains("not formatted"), "{error}");
    node.assert_clean(&cloud);
}

// ---- 2. One writer.

#[tokio::test]
async fn promise_2_of_two_hosts_that_race_for_a_volume_one_gets_it() {
    for flow in ["attachments", "actions"] {
        let cloud = Cloud::start().await;
        let config = json!({ "AttachFlow": flow });
        let (a, b) = (
            Node::start_with(&cloud, config.clone()).await,
            Node::start_with(&cloud, config).await,
        );
        a.create("v", json!({})).await.unwrap();
        cloud.forget_calls();
        let (on_a, on_b) = tokio::join!(a.mount("v", "c"), b.mount("v", "c"));
        assert!(on_a.is_ok() != on_b.is_ok(), "{on_a:?} {on_b:?}");
        let exports = cloud
            .calls()
            .iter()
            .filter(|call| *call == "attachment-update" || *call == "os-initialize_connection")
            .count();
        assert_eq!(exports, 1, "only who reserved it may export it");
        let (winner, loser) = if on_a.is_ok() { (&a, &b) } else { (&b, &a) };
        let error = on_a.and(on_b).unwrap_err();
        assert!(error.contains("attached to host-"), "it names the holder: {error}");
        winner.unmount("v", "c").await.unwrap();
        loser.mount("v", "c").await.unwrap();
        loser.unmount("v", "c").await.unwrap();
        loser.assert_clean(&cloud);
    }
}

#[tokio::test]
async fn promise_2_after_an_unclear_answer_to_the_reserve_nothing_is_exported() {
    for (flow, reserve, export) in [
        ("attachments", "attachment-create", "attachment-update"),
        ("actions", "os-reserve", "os-initialize_connection"),
    ] {
        let cloud = Cloud::start().await;
        let node = Node::start_with(&cloud, json!({ "AttachFlow": flow })).await;
        node.create("v", json!({})).await.unwrap();
        cloud.fail_once(reserve, Action::DropAfter);
        node.mount("v", "c").await.unwrap_err();
        let calls = cloud.calls();
        assert!(!calls.iter().any(|call| call == export), "{calls:?}");
        assert!(
            !calls.iter().any(|call| call == "os-unreserve" || call == "attachment-delete"),
            "only what Cinder confirmed may be undone: {calls:?}"
        );
        let error = node.mount("v", "c").await.unwrap_err();
        assert!(error.contains("left alone until nothing has changed for 10 minutes"), "{error}");
        assert_ne!(cloud.status("v").await, "available");

        // What nobody has touched for so long is nobody's.
        cloud.let_ten_minutes_pass("v").await;
        node.mount("v", "c").await.unwrap();
        node.unmount("v", "c").await.unwrap();
        node.assert_clean(&cloud);
    }
}

#[tokio::test]
async fn promise_2_a_multiattach_volume_has_one_writer_too() {
    let cloud = Cloud::start().await;
    let (a, b) = (Node::start(&cloud).await, Node::start(&cloud).await);
    let id = cloud.create("m", json!({})).await;
    cloud.force(&id, json!({ "multiattach": true }));
    a.mount("m", "c").await.unwrap();
    b.mount("m", "c").await.unwrap_err();
    a.unmount("m", "c").await.unwrap();
    // Another machine has it by its own attachment.
    cloud.cinder("POST", "/attachments", json!({ "attachment": { "volume_uuid": id } })).await;
    cloud.force(&id, json!({ "status": "available" }));
    cloud.forget_calls();
    b.mount("m", "c").await.unwrap_err();
    assert!(!cloud.calls().contains(&"attachment-update".to_owned()), "{:?}", cloud.calls());
    b.assert_clean(&cloud);
}

// ---- 3. Docker hears the truth.

#[tokio::test]
async fn promise_3_a_mount_that_fails_anywhere_leaves_everything_as_it_was() {
    let calls = [
        (
            "attachments",
            ["attachment-create", "attachment-update", "attachment-complete", "set-metadata"],
        ),
        ("actions", ["os-reserve", "os-initialize_connection", "os-attach", "set-metadata"]),
    ];
    for (flow, calls) in calls {
        let cloud = Cloud::start().await;
        let node = Node::start_with(&cloud, json!({ "AttachFlow": flow })).await;
        for (n, call) in calls.into_iter().enumerate() {
            let name = format!("v{n}");
            node.create(&name, json!({})).await.unwrap();
            cloud.fail(Rule::on(call, Action::Answer(Canned::status(500))).forever());
            let error = node.mount(&name, "c").await.unwrap_err();
            assert!(error.contains(&name) && error.contains("500"), "{error}");
            cloud.clear_faults();
            node.until_clean().await;
            node.assert_clean(&cloud);
            assert_eq!(cloud.status(&name).await, "available", "{flow} {call}\n{}", node.log());
            node.mount(&name, "c").await.unwrap();
            node.unmount(&name, "c").await.unwrap();
        }
        node.assert_clean(&cloud);
    }
}

#[tokio::test]
async fn promise_3_a_container_stops_although_cinder_is_silent_and_the_rest_is_finished_later() {
    for (flow, call) in
        [("attachments", "attachment-delete"), ("actions", "os-terminate_connection")]
    {
        let cloud = Cloud::start().await;
        let node = Node::start_with(&cloud, json!({ "AttachFlow": flow })).await;
        node.create("v", json!({})).await.unwrap();
        node.mount("v", "c").await.unwrap();
        cloud.fail(Rule::on(call, Action::Answer(Canned::status(500))).times(3));
        node.unmount("v", "c").await.unwrap();
        assert_eq!(node.mounts(), Vec::<String>::new());
        node.until_clean().await;
        assert_eq!(cloud.status("v").await, "available");
        node.assert_clean(&cloud);
    }
}

#[tokio::test]
async fn promise_3_a_volume_in_use_is_not_removed() {
    let cloud = Cloud::start().await;
    let (a, b) = (Node::start(&cloud).await, Node::start(&cloud).await);
    a.create("v", json!({})).await.unwrap();
    a.mount("v", "c").await.unwrap();
    let here = a.remove("v").await.unwrap_err();
    assert!(here.contains("mounted on this host"), "{here}");
    let there = b.remove("v").await.unwrap_err();
    assert!(there.contains("attached to host-"), "{there}");
    assert_eq!(cloud.status("v").await, "in-use");
    a.unmount("v", "c").await.unwrap();
    b.remove("v").await.unwrap();
    assert!(cloud.volumes().await.is_empty());
}

#[tokio::test]
async fn promise_3_a_list_without_its_end_is_no_list() {
    let cloud = Cloud::start().await;
    let node = Node::start_with(&cloud, json!({ "ListAll": true })).await;
    cloud.sandbox.fill(2500, "v-");
    assert_eq!(node.list().await.unwrap().len(), 2500);
    cloud.fail(Rule::on("list-volumes", Action::Answer(Canned::status(500))).from_nth(3).forever());
    let cut = node.try_call("/VolumeDriver.List", "{}").await;
    assert!(
        !matches!(&cut, Ok((200, answer)) if answer["Volumes"].is_array()),
        "a part must not look like the whole"
    );
}

// ---- 4. A crash anywhere is survivable.

#[tokio::test]
async fn promise_4_a_kill_at_any_call_of_a_mount_leaks_nothing() {
    let flows = [
        (
            "attachments",
            ["attachment-create", "attachment-update", "set-metadata", "attachment-complete"],
        ),
        ("actions", ["os-reserve", "os-initialize_connection", "set-metadata", "os-attach"]),
    ];
    for (flow, calls) in flows {
        let cloud = Cloud::start().await;
        let mut node = Node::start_with(&cloud, json!({ "AttachFlow": flow })).await;
        for (n, call) in calls.into_iter().enumerate() {
            for (m, delay) in
                [Action::Delay(60_000), Action::DelayAnswer(60_000)].into_iter().enumerate()
            {
                let name = format!("v{n}{m}");
                let effect = m == 1;
                node.create(&name, json!({})).await.unwrap();
                cloud.forget_calls();
                cloud.fail_once(call, delay);
                let client = ask(&node.socket, "Mount", &json!({ "Name": name, "ID": "c" }));
                until_called(&cloud, call).await;
                // Until the effect is there (only the answer is held back), and the journal has
                // what the look beside the call showed.
                tokio::time::sleep(Duration::from_millis(300)).await;
                node.kill();
                drop(client);
                cloud.clear_faults();
                node.run().await;
                if effect && n == 0 {
                    // Cinder never confirmed it to us, so it is not ours to undo yet.
                    let error = node.mount(&name, "c").await.unwrap_err();
                    assert!(error.contains("left alone"), "{error}");
                    assert_ne!(cloud.status(&name).await, "available");
                    cloud.let_ten_minutes_pass(&name).await;
                    node.kill();
                    node.run().await;
                }
                node.until_clean().await;
                cloud.until(&name, "available").await;
                node.assert_clean(&cloud);
                let mounted = node.mount(&name, "c").await.unwrap();
                fs::write(mounted.join("x"), "1").unwrap();
                node.unmount(&name, "c").await.unwrap();
                cloud.until(&name, "available").await;
            }
        }
        node.assert_clean(&cloud);
    }
}

#[tokio::test]
async fn promise_4_a_kill_during_unmount_is_finished_by_the_next_run() {
    for (flow, calls) in [
        ("attachments", vec!["attachment-delete"]),
        ("actions", vec!["os-begin_detaching", "os-terminate_connection", "os-detach"]),
    ] {
        let cloud = Cloud::start().await;
        let mut node = Node::start_with(&cloud, json!({ "AttachFlow": flow })).await;
        node.create("v", json!({})).await.unwrap();
        for call in calls {
            for delay in [Action::Delay(60_000), Action::DelayAnswer(60_000)] {
                let mounted = node.mount("v", "c").await.unwrap();
                fs::write(mounted.join("x"), call).unwrap();
                cloud.forget_calls();
                cloud.fail_once(call, delay);
                let client = ask(&node.socket, "Unmount", &json!({ "Name": "v", "ID": "c" }));
                until_called(&cloud, call).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
                node.kill();
                drop(client);
                cloud.clear_faults();
                node.run().await;
                node.until_clean().await;
                cloud.until("v", "available").await;
                let mounted = node.mount("v", "c").await.unwrap();
                assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), call);
                node.unmount("v", "c").await.unwrap();
            }
        }
        node.assert_clean(&cloud);
    }
}

#[tokio::test]
async fn promise_4_what_is_in_use_survives_a_kill_untouched() {
    let cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let mounted = node.mount("v", "c").await.unwrap();
    let file = fs::File::create(mounted.join("x")).unwrap();
    node.kill();
    file.write_all_at(b"while it was away", 0).unwrap();
    node.run().await;
    assert_eq!(node.mount("v", "d").await.unwrap(), mounted);
    node.unmount("v", "d").await.unwrap();
    file.write_all_at(b"after", 100).unwrap();
    assert_eq!(node.mounts().len(), 1);
    drop(file);
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

// ---- 5. Every operation is idempotent and runs to its end.

#[tokio::test]
async fn promise_5_the_same_request_again_changes_nothing() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for _ in 0..3 {
        node.create("v", json!({ "size": "1" })).await.unwrap();
    }
    assert_eq!(cloud.volumes().await.len(), 1);
    node.mount("v", "c").await.unwrap();
    for _ in 0..3 {
        node.unmount("v", "c").await.unwrap();
    }
    node.unmount("v", "never seen").await.unwrap();
    node.unmount("no-such-volume", "c").await.unwrap();
    for _ in 0..3 {
        node.remove("v").await.unwrap();
    }
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn promise_5_a_mount_whose_client_hung_up_runs_to_its_end() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    cloud.fail_once("attachment-update", Action::Delay(500));
    let client = ask(&node.socket, "Mount", &json!({ "Name": "v", "ID": "c" }));
    until_called(&cloud, "attachment-update").await;
    drop(client);
    let end = Instant::now() + Duration::from_secs(20);
    while cloud.status("v").await != "in-use" || node.mounts().is_empty() {
        assert!(Instant::now() < end, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Nobody collected it, so it carries no reference: one user comes and goes.
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn promise_5_two_hosts_that_create_one_name_end_with_one_volume() {
    let cloud = Cloud::start().await;
    let (a, b) = (Node::start(&cloud).await, Node::start(&cloud).await);
    for n in 0..5 {
        let name = format!("v{n}");
        let (on_a, on_b) = tokio::join!(a.create(&name, json!({})), b.create(&name, json!({})));
        on_a.unwrap();
        on_b.unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let found = cloud.volumes().await;
            let live = found.iter().filter(|v| v["name"] == *name && v["status"] == "available");
            match live.count() {
                1 => break,
                n => assert!(n == 2 && Instant::now() < end, "{found:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        a.mount(&name, "c").await.unwrap();
        a.unmount(&name, "c").await.unwrap();
        b.mount(&name, "c").await.unwrap();
        b.unmount(&name, "c").await.unwrap();
    }
}

/// Also when one of them is killed before it could look for others, and Cinder makes its volume only
/// after that.
#[tokio::test]
async fn promise_5_a_creation_that_was_interrupted_leaves_no_second_volume() {
    for used in [false, true] {
        let cloud = Cloud::start().await;
        let (mut a, b) = (Node::start(&cloud).await, Node::start(&cloud).await);
        cloud.fail_once("create-volume", Action::Delay(1_500));
        let asked = ask(&a.socket, "Create", &json!({ "Name": "v", "Opts": {} }));
        let end = Instant::now() + Duration::from_secs(30);
        while !cloud.calls().iter().any(|call| call == "create-volume") {
            assert!(Instant::now() < end, "{}", a.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        a.kill();
        drop(asked);
        b.create("v", json!({})).await.unwrap();
        let content = b.mount("v", "c").await.unwrap();
        fs::write(content.join("bytes"), "b's").unwrap();
        while cloud.volumes().await.len() < 2 {
            assert!(Instant::now() < end, "{}", a.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if used {
            // Somebody works with it by its id: it is theirs.
            let all = cloud.volumes().await;
            let twin = all.iter().find(|volume| volume["status"] != "in-use").unwrap();
            let twin = twin["id"].as_str().unwrap().to_owned();
            b.mount(&twin, "c").await.unwrap();
            b.unmount(&twin, "c").await.unwrap();
        }
        a.run().await;
        let creations = a.state_dir().join("creations");
        while fs::read_dir(&creations).unwrap().next().is_some() {
            assert!(Instant::now() < end, "{}", a.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(cloud.volumes().await.len(), if used { 2 } else { 1 }, "{}", a.log());
        b.unmount("v", "c").await.unwrap();
        if used {
            let error = a.mount("v", "c").await.unwrap_err();
            assert!(error.contains("volumes are named"), "{error}");
            continue;
        }
        let content = a.mount("v", "c").await.unwrap();
        assert_eq!(fs::read_to_string(content.join("bytes")).unwrap(), "b's");
        a.unmount("v", "c").await.unwrap();
        a.assert_clean(&cloud);
    }
}

// ---- 6. dockerd never hangs on us.

#[tokio::test]
async fn promise_6_what_is_known_here_is_answered_while_the_cloud_hangs() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for name in ["idle", "used"] {
        node.create(name, json!({})).await.unwrap();
    }
    let mounted = node.mount("used", "c").await.unwrap();
    cloud.fail(Rule::on("*", Action::Delay(30_000)).forever());
    for (call, body, limit) in [
        ("/Plugin.Activate", "", 1),
        ("/VolumeDriver.Capabilities", "{}", 1),
        ("/VolumeDriver.Path", r#"{"Name":"used"}"#, 1),
        ("/VolumeDriver.Get", r#"{"Name":"used"}"#, 1),
        ("/VolumeDriver.Get", r#"{"Name":"idle"}"#, 6),
    ] {
        let begun = Instant::now();
        let (status, answer) = node.try_call(call, body).await.unwrap();
        assert_eq!(status, 200, "{call} {answer}");
        assert!(begun.elapsed() < Duration::from_secs(limit), "{call}: {:?}", begun.elapsed());
    }
    assert_eq!(node.get("used").await.unwrap()["Mountpoint"], mounted.to_str().unwrap());
    assert_eq!(node.get("idle").await.unwrap()["Mountpoint"], "");
    // A second container needs no word from Cinder, and the last one can go.
    node.mount("used", "d").await.unwrap();
    node.unmount("used", "d").await.unwrap();
    cloud.clear_faults();
    node.unmount("used", "c").await.unwrap();
}

#[tokio::test]
async fn promise_6_one_volumes_trouble_never_delays_another() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    for name in ["slow", "quick"] {
        node.create(name, json!({})).await.unwrap();
    }
    let slow: uuid::Uuid = cloud.volume("slow").await["id"].as_str().unwrap().parse().unwrap();
    cloud.fail(Rule::on("attachment-update", Action::Delay(8_000)).of_volume(slow));
    cloud.forget_calls();
    let begun = Instant::now();
    let slow = async {
        node.mount("slow", "c").await.unwrap();
        begun.elapsed()
    };
    let quick = async {
        // Not before the other one is stuck.
        until_called(&cloud, "attachment-update").await;
        node.mount("quick", "c").await.unwrap();
        begun.elapsed()
    };
    let (slow, quick) = tokio::join!(slow, quick);
    assert!(quick + Duration::from_secs(3) < slow, "{quick:?} {slow:?}");
    for name in ["slow", "quick"] {
        node.unmount(name, "c").await.unwrap();
    }
}

#[tokio::test]
async fn promise_6_the_socket_answers_before_the_cloud_does() {
    let nowhere = json!({ "Endpoint": "http://127.0.0.1:9/v3", "Username": "u", "Password": "p",
        "TenantID": "t", "DomainName": "Default" });
    let Value::Object(nowhere) = nowhere else { unreachable!() };
    let mut node = Node::prepare(nowhere, json!({}));
    node.run().await;
    let error = node.get("v").await.unwrap_err();
    assert!(error.contains("127.0.0.1:9"), "{error}");
    assert!(node.create("v", json!({})).await.is_err(), "no volume without a complete answer");
    assert!(node.stop(), "{}", node.log());
    assert!(!node.socket.exists(), "a dead socket costs every volume command 15 s");
}

// ---- 7. Secrets stay secret.

#[tokio::test]
async fn promise_7_no_secret_is_in_log_journal_or_process_table() {
    let cloud = Cloud::start().await;
    let mut config = cloud.sandbox.config();
    let password = config["Password"].as_str().unwrap().to_owned();
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    node.mount("v", "c").await.unwrap();
    let wrong = "a-password-that-is-wrong";
    config.insert("Password".into(), json!(wrong));
    let mut locked_out = Node::prepare(config, json!({}));
    locked_out.run().await;
    let error = locked_out.create("w", json!({})).await.unwrap_err();
    let told = [
        node.log(),
        locked_out.log(),
        error,
        sh(&format!("cat {}/*/*.json", node.state_dir().display())),
        sh(&format!(
            "tr '\\0' ' ' < /proc/{0}/cmdline; tr '\\0' ' ' < /proc/{0}/environ",
            node.pid()
        )),
        format!("{:?}", node.get("v").await),
    ]
    .join("\n");
    assert!(told.contains("attachment"), "the log must be there to be searched");
    for secret in [password.as_str(), wrong, "X-Subject-Token", "gAAAA"] {
        assert!(!told.contains(secret), "{secret} in: {told}");
    }
    for (path, mode) in [(node.state_dir(), 0o700), (node.mount_point(), 0o700)] {
        let found = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{}", path.display());
    }
    node.unmount("v", "c").await.unwrap();
}

// ---- 8. We touch only what is ours.

#[tokio::test]
async fn promise_8_a_reservation_of_somebody_else_is_left_alone() {
    for (how, status) in [("os-reserve", "attaching"), ("attachment", "reserved")] {
        let cloud = Cloud::start().await;
        let mut node = Node::start(&cloud).await;
        let id = cloud.create("v", json!({})).await;
        if how == "os-reserve" {
            cloud
                .cinder("POST", &format!("/volumes/{id}/action"), json!({ "os-reserve": {} }))
                .await;
        } else {
            cloud
                .cinder("POST", "/attachments", json!({ "attachment": { "volume_uuid": id } }))
                .await;
        }
        cloud.forget_calls();
        let error = node.mount("v", "c").await.unwrap_err();
        assert!(error.contains(status), "{error}");
        node.kill();
        node.run().await;
        node.until_clean().await;
        let refused = node.cli(&["release", "v", "--id", &id]).await;
        assert!(!refused.status.success(), "some host may be at it still");
        assert_eq!(cloud.status("v").await, status);
        let calls = cloud.calls();
        assert!(
            calls.iter().all(|call| {
                !call.starts_with("os-")
                    && call != "attachment-delete"
                    && call != "attachment-update"
            }),
            "{calls:?}"
        );
        cloud.force(&id, json!({ "updated_at": "2020-01-01T00:00:00.000000" }));
        let done = node.cli(&["release", "v", "--id", &id]).await;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(cloud.status("v").await, "available");
    }
}

#[tokio::test]
async fn promise_8_a_late_release_sends_nothing_when_the_volume_has_moved_on() {
    let config = json!({ "AttachFlow": "actions" });
    let cloud = Cloud::start().await;
    let (mut a, b) =
        (Node::start_with(&cloud, config.clone()).await, Node::start_with(&cloud, config).await);
    a.create("v", json!({})).await.unwrap();
    a.mount("v", "c").await.unwrap();
    // Cinder is silent while the container stops, and the daemon is killed before it is told.
    cloud.fail(Rule::on("*", Action::Answer(Canned::status(503))).forever());
    a.unmount("v", "c").await.unwrap();
    a.kill();
    cloud.clear_faults();
    // An operator sets the volume free, and another host takes it.
    let volume = cloud.volume("v").await;
    let (id, attachment) = (&volume["id"], &volume["attachments"][0]["attachment_id"]);
    let action = format!("/volumes/{}/action", id.as_str().unwrap());
    cloud.cinder("POST", &action, json!({ "os-terminate_connection": { "connector": { "initiator": "x", "host": "x" } } })).await;
    cloud.cinder("POST", &action, json!({ "os-detach": { "attachment_id": attachment } })).await;
    b.mount("v", "c").await.unwrap();
    cloud.forget_calls();
    a.run().await;
    a.until_clean().await;
    let calls = cloud.calls();
    assert!(calls.iter().all(|call| !call.starts_with("os-")), "{calls:?}");
    assert_eq!(cloud.status("v").await, "in-use");
    b.unmount("v", "c").await.unwrap();
}

#[tokio::test]
async fn promise_8_a_volume_of_somebody_else_is_not_deleted() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let id = cloud.create("theirs", json!({})).await;
    let error = node.remove("theirs").await.unwrap_err();
    assert!(error.contains(&format!("openstack volume delete {id}")), "{error}");
    assert!(!cloud.calls().contains(&"delete-volume".to_owned()));
    assert_eq!(node.list().await.unwrap(), Vec::<String>::new(), "nor listed");
    let bold = Node::start_with(&cloud, json!({ "RemoveForeign": true })).await;
    bold.remove("theirs").await.unwrap();
    assert!(loops_of(cloud.dir()).is_empty());
}
