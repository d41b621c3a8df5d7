//! Both attach flows, on paper and with loop devices.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc::O_EXCL;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::{Client, Directory, connector, on_paper};
use crate::sandbox::{Behaviour, Generation, Nova, Options};

const INSTANCE: &str = "219b0670-a214-4281-8424-5bb3beaaa107";

fn with_loops() -> Behaviour {
    Behaviour { creating_ms: 0, deleting_ms: 0, ..Behaviour::default() }
}

impl Client {
    async fn reserve_attachment(&self, volume: Uuid, more: Value) -> super::Answer {
        let mut attachment = json!({"volume_uuid": volume});
        for (key, value) in more.as_object().into_iter().flatten() {
            attachment[key] = value.clone();
        }
        self.cinder("POST", "/attachments", json!({"attachment": attachment})).await
    }

    /// An attachment with its connector; answers its id and connection_info.
    async fn attachment(&self, volume: Uuid, host: &str, more: Value) -> (String, Value) {
        let reserved = self.reserve_attachment(volume, more).await;
        assert_eq!(reserved.status, 200, "{reserved:?}");
        let id = reserved.body["attachment"]["id"].as_str().unwrap().to_owned();
        let body = json!({"attachment": {"connector": connector(host)}});
        let updated = self.cinder("PUT", &format!("/attachments/{id}"), body).await;
        assert_eq!(updated.status, 200, "{updated:?}");
        (id, updated.body["attachment"]["connection_info"].clone())
    }

    async fn complete(&self, attachment: &str) {
        let path = format!("/attachments/{attachment}/action");
        let answer = self.cinder("POST", &path, json!({"os-complete": {}})).await;
        assert_eq!(answer.status, 204, "{answer:?}");
    }

    async fn delete_attachment(&self, attachment: &str) -> super::Answer {
        self.cinder("DELETE", &format!("/attachments/{attachment}"), Value::Null).await
    }
}

/// What sysfs says of a block device.
fn attribute(device: &Path, name: &str) -> Option<String> {
    let directory = Path::new("/sys/block").join(device.file_name().unwrap());
    Some(std::fs::read_to_string(directory.join(name)).ok()?.trim_end().to_owned())
}

fn backing_file(device: &Path) -> Option<PathBuf> {
    attribute(device, "loop/backing_file").map(PathBuf::from)
}

fn path(value: &Value) -> PathBuf {
    PathBuf::from(value.as_str().unwrap())
}

#[tokio::test]
async fn of_many_reserves_at_once_one_wins() {
    let client = Client::new(on_paper()).await;
    let volume = client.volume("a").await;
    let tries: Vec<_> = (0..8).map(|_| client.action(volume, "os-reserve", json!({}))).collect();
    let answers = futures_util::future::join_all(tries).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.status == 400).count(), 7);
}

#[tokio::test]
async fn the_two_flows_exclude_each_other() {
    let client = Client::new(on_paper()).await;
    let volume = client.volume("a").await;
    assert_eq!(client.action(volume, "os-reserve", json!({})).await.status, 202);
    let refused = client.reserve_attachment(volume, json!({})).await;
    assert_eq!(
        refused.error(),
        (
            400,
            &*format!(
                "Invalid volume: Volume {volume} status must be available or downloading to \
                 reserve, but the current status is attaching."
            )
        )
    );
    assert_eq!(client.action(volume, "os-unreserve", json!({})).await.status, 202);
    assert_eq!(client.reserve_attachment(volume, json!({})).await.status, 200);
    assert_eq!(client.status(volume).await, "reserved");
    assert_eq!(client.action(volume, "os-reserve", json!({})).await.status, 400);
    assert_eq!(client.action(volume, "os-unreserve", json!({})).await.status, 202);
    assert_eq!(client.status(volume).await, "reserved");
}

#[tokio::test]
async fn detaching_begins_only_in_use_and_can_be_rolled_back() {
    let client = Client::new(on_paper()).await;
    let volume = client.volume("a").await;
    assert_eq!(client.action(volume, "os-begin_detaching", json!({})).await.status, 400);
    let holder = json!({"instance_uuid": INSTANCE, "mountpoint": "/x", "mode": "rw"});
    assert_eq!(client.action(volume, "os-attach", holder).await.status, 202);
    assert_eq!(client.action(volume, "os-begin_detaching", json!({})).await.status, 202);
    assert_eq!(client.action(volume, "os-begin_detaching", json!({})).await.status, 400);
    assert_eq!(client.action(volume, "os-roll_detaching", json!({})).await.status, 202);
    assert_eq!(client.status(volume).await, "in-use");
}

#[tokio::test]
async fn os_detach_of_an_unknown_attachment_is_a_conflict() {
    let client = Client::new(on_paper()).await;
    let volume = client.volume("a").await;
    let refused =
        client.action(volume, "os-detach", json!({"attachment_id": Uuid::new_v4()})).await;
    assert_eq!(refused.status, 409);
    assert_eq!(client.action(volume, "os-detach", Value::Null).await.status, 202);
}

#[tokio::test]
async fn an_attachment_with_an_instance_needs_nova_to_be_deleted() {
    let client = Client::new(Behaviour { nova: Nova::Absent, ..on_paper() }).await;
    let volume = client.volume("a").await;
    let (id, _) = client.attachment(volume, "h", json!({"instance_uuid": INSTANCE})).await;
    assert_eq!(client.delete_attachment(&id).await.status, 500);
    client.sandbox.set_behaviour(Behaviour { nova: Nova::ClaimsInstance, ..on_paper() });
    assert_eq!(client.delete_attachment(&id).await.status, 409);
    client.sandbox.set_behaviour(on_paper());
    assert_eq!(client.delete_attachment(&id).await.status, 200);
    assert_eq!(client.status(volume).await, "available");
}

#[tokio::test]
async fn queens_demands_an_instance_and_ends_at_3_50() {
    let behaviour = Behaviour { generation: Generation::Queens, ..on_paper() };
    let mut client = Client::new(behaviour).await;
    client.version = "volume 3.50";
    let volume = client.volume("a").await;
    let refused = client.reserve_attachment(volume, json!({})).await;
    assert_eq!(refused.status, 400);
    assert!(refused.error().1.ends_with("'instance_uuid' is a required property"), "{refused:?}");
    let given = json!({"instance_uuid": INSTANCE});
    assert_eq!(client.reserve_attachment(volume, given).await.status, 200);
    client.version = "volume 3.51";
    assert_eq!(client.cinder("GET", "/volumes", Value::Null).await.status, 406);
}

#[tokio::test]
async fn a_multiattach_volume_is_terminated_only_through_attachments() {
    let client = Client::new(on_paper()).await;
    let volume =
        client.volume_like(json!({"name": "m", "size": 1, "volume_type": "multiattach"})).await;
    let (first, _) = client.attachment(volume, "h1", json!({})).await;
    client.complete(&first).await;
    let (second, _) = client.attachment(volume, "h2", json!({})).await;
    client.complete(&second).await;
    let terminated = client
        .action(volume, "os-terminate_connection", json!({"connector": connector("h1")}))
        .await;
    assert_eq!(terminated.status, 409);
    let left = client.delete_attachment(&first).await;
    assert_eq!(left.body["attachments"][0]["id"], second.as_str());
    assert_eq!(client.status(volume).await, "in-use");
    client.delete_attachment(&second).await;
    assert_eq!(client.status(volume).await, "available");
}

#[tokio::test]
async fn each_attachment_has_a_loop_device_until_it_is_deleted() {
    let client = Client::new(with_loops()).await;
    let volume =
        client.volume_like(json!({"name": "m", "size": 1, "volume_type": "multiattach"})).await;
    let (first, info) = client.attachment(volume, "h1", json!({"mode": "rw"})).await;
    client.complete(&first).await;
    assert_eq!(info["driver_volume_type"], "local");
    let one = path(&info["device_path"]);
    let (second, info) = client.attachment(volume, "h2", json!({"mode": "ro"})).await;
    let two = path(&info["device_path"]);
    let file = client.sandbox.volume_file(volume).canonicalize().unwrap();
    assert_ne!(one, two);
    assert_eq!(backing_file(&one).as_ref(), Some(&file));
    assert_eq!(backing_file(&two).as_ref(), Some(&file));
    std::fs::File::options().write(true).open(&one).unwrap().write_all(b"x").unwrap();
    assert_eq!(attribute(&one, "ro").as_deref(), Some("0"));
    assert_eq!(attribute(&two, "ro").as_deref(), Some("1"));
    assert_eq!(client.delete_attachment(&first).await.status, 200);
    assert_eq!(client.delete_attachment(&second).await.status, 200);
    assert_ne!(backing_file(&one).as_ref(), Some(&file));
    assert_ne!(backing_file(&two).as_ref(), Some(&file));
    assert_eq!(client.sandbox.devices(volume), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_device_that_is_held_cannot_be_taken_back() {
    let client = Client::new(with_loops()).await;
    let volume = client.volume("a").await;
    let given = json!({"connector": connector("h")});
    assert_eq!(client.action(volume, "os-reserve", json!({})).await.status, 202);
    let answer = client.action(volume, "os-initialize_connection", given.clone()).await;
    let device = path(&answer.body["connection_info"]["data"]["device_path"]);
    let again = client.action(volume, "os-initialize_connection", given.clone()).await;
    assert_eq!(path(&again.body["connection_info"]["data"]["device_path"]), device);
    let held = std::fs::File::options().read(true).custom_flags(O_EXCL).open(&device).unwrap();
    let busy = client.action(volume, "os-terminate_connection", given.clone()).await;
    assert_eq!(busy.error(), (500, "Unable to terminate volume connection from backend."));
    assert_eq!(client.status(volume).await, "attaching");
    assert!(backing_file(&device).is_some());
    drop(held);
    assert_eq!(client.action(volume, "os-terminate_connection", given).await.status, 202);
    assert_eq!(client.status(volume).await, "available");
    assert_eq!(client.sandbox.devices(volume), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn after_a_restart_the_devices_are_found_again_and_lost_ones_replaced() {
    let client = Client::new(with_loops()).await;
    let (kept, lost) = (client.volume("kept").await, client.volume("lost").await);
    let (kept_id, before) = client.attachment(kept, "h", json!({})).await;
    let (lost_id, gone) = client.attachment(lost, "h", json!({})).await;
    client.complete(&kept_id).await;
    // As a reboot does, and as a crash between device and state file does.
    let file = client.sandbox.volume_file(lost);
    crate::sandbox::storage::loopback::detach(&path(&gone["device_path"]), &file).unwrap();
    let orphan = crate::sandbox::storage::loopback::attach(&file, false).unwrap();
    let client = client.restart().await;
    assert_eq!(client.status(kept).await, "in-use");
    let shown = client.get(&format!("/attachments/{kept_id}")).await;
    assert_eq!(shown["attachment"]["connection_info"]["device_path"], before["device_path"]);
    let shown = client.get(&format!("/attachments/{lost_id}")).await;
    let again = path(&shown["attachment"]["connection_info"]["device_path"]);
    assert_eq!(backing_file(&again), Some(client.sandbox.volume_file(lost)));
    assert_eq!(client.sandbox.devices(lost), std::slice::from_ref(&again));
    assert!(orphan == again || backing_file(&orphan).as_ref() != Some(&file));
    client.delete_attachment(&kept_id).await;
    client.delete_attachment(&lost_id).await;
    assert_eq!(client.status(lost).await, "available");
}

#[tokio::test]
async fn an_extended_volume_grows_its_device() {
    let client = Client::new(with_loops()).await;
    let volume = client.volume("a").await;
    let (id, info) = client.attachment(volume, "h", json!({})).await;
    client.complete(&id).await;
    let answer = client.action(volume, "os-extend", json!({"new_size": 2})).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    client.until(volume, "in-use").await;
    let sectors = attribute(&path(&info["device_path"]), "size");
    assert_eq!(sectors, Some((2_u64 << 21).to_string()));
    client.delete_attachment(&id).await;
}

#[tokio::test]
async fn a_volume_is_a_target_of_tgtd_until_its_last_connection_ends() {
    if !Path::new("/usr/sbin/tgtd").exists() {
        eprintln!("no tgtd here (package tgt): nothing to test");
        return;
    }
    let dir = Directory::new();
    let mut options = Options::new(dir.path());
    options.iscsi = true;
    let client = Client::with(dir, options).await;
    let volume =
        client.volume_like(json!({"name": "m", "size": 1, "volume_type": "multiattach"})).await;
    let refused = client
        .action(volume, "os-initialize_connection", json!({"connector": {"host": "h"}}))
        .await;
    assert_eq!(
        refused.error(),
        (400, "Invalid input received: Connector doesn't have required information: initiator")
    );
    let (first, info) = client.attachment(volume, "h1", json!({})).await;
    client.complete(&first).await;
    let (second, other) = client.attachment(volume, "h2", json!({})).await;
    assert_eq!(info["driver_volume_type"], "iscsi");
    assert_eq!(info["auth_password"], other["auth_password"]);
    let portal = info["target_portal"].as_str().unwrap().to_owned();
    let iqn = info["target_iqn"].as_str().unwrap().to_owned();
    assert_eq!(targets(&portal).await, std::slice::from_ref(&iqn));
    let client = client.restart().await;
    assert_eq!(client.delete_attachment(&first).await.status, 200);
    assert_eq!(targets(&portal).await, [iqn]);
    assert_eq!(client.delete_attachment(&second).await.status, 200);
    assert_eq!(targets(&portal).await, Vec::<String>::new());
    client.sandbox.detach_all().await.unwrap();
}

/// What a portal answers to discovery: a login request of iSCSI (RFC 7143), then `SendTargets=All`.
async fn targets(portal: &str) -> Vec<String> {
    let mut stream = TcpStream::connect(portal).await.unwrap();
    let login = "InitiatorName=iqn.2026-01.test:x\0SessionType=Discovery\0AuthMethod=None\0";
    // Immediate login, straight from operational negotiation to the full feature phase.
    if exchange(&mut stream, [0x43, 0x87], login).await.is_err() {
        return Vec::new(); // a tgtd without targets hangs up
    }
    let answer = exchange(&mut stream, [0x04, 0x80], "SendTargets=All\0").await.unwrap();
    let names = answer.split('\0').filter_map(|pair| pair.strip_prefix("TargetName="));
    names.map(str::to_owned).collect()
}

async fn exchange(stream: &mut TcpStream, start: [u8; 2], text: &str) -> io::Result<String> {
    let mut request = vec![0; 48];
    request[..2].copy_from_slice(&start);
    request[5..8].copy_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes()[1..]);
    match start[0] {
        0x04 => request[20..24].fill(0xff), // no target transfer tag: a new exchange
        _ => request[8] = 0x40,             // a random ISID
    }
    request.extend(text.as_bytes());
    request.resize(request.len().next_multiple_of(4), 0);
    stream.write_all(&request).await?;
    let mut head = [0; 48];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
    let mut data = vec![0; length.next_multiple_of(4)];
    stream.read_exact(&mut data).await?;
    String::from_utf8(data[..length].to_vec()).map_err(io::Error::other)
}
