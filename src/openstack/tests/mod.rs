//! The client against a server that misbehaves.

mod answers;
mod attaching;
mod lists;
mod secrets;
mod services;
mod tls;
mod tokens;
mod toy;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use self::toy::{Reply, Request, Toy};
use super::http::Patience;
use super::{Cloud, Holder};

const ID: &str = "53aa8d84-9d11-44a7-92aa-db2043c78a70";
const ATTACHMENT: &str = "16b8fdb5-810e-43d2-a0de-a81a578590cf";

fn id() -> Uuid {
    ID.parse().unwrap()
}

fn cloud(toy: &Toy) -> Cloud {
    Cloud::new(&toy.settings()).unwrap()
}

/// Gives up sooner than people would.
fn impatient(toy: &Toy) -> Cloud {
    let patience = Patience {
        read: Duration::from_secs(1),
        repeats: Duration::from_secs(1),
        effect: Duration::from_secs(1),
    };
    Cloud::with_patience(&toy.settings(), patience).unwrap()
}

fn shown(status: &str) -> Reply {
    Reply::Json(200, json!({"volume": toy::volume(ID, "db", status)}))
}

fn attached(server: Uuid, device: &str) -> Reply {
    let mut volume = toy::volume(ID, "db", "in-use");
    volume["attachments"] = json!([{
        "id": ID, "attachment_id": ATTACHMENT, "volume_id": ID, "server_id": server,
        "host_name": null, "device": device, "attached_at": "2026-11-22T02:24:04.861543"}]);
    Reply::Json(200, json!({"volume": volume}))
}

fn holder() -> Holder {
    Holder {
        instance_uuid: "219b0670-a214-4281-8424-5bb3beaaa107".parse().unwrap(),
        mountpoint: "node1:/mnt/db".to_owned(),
        read_only: false,
    }
}

fn is_read(request: &Request) -> bool {
    request.line() == format!("GET /volumes/{ID}")
}

/// Answers the n-th time it is asked (from 0).
fn nth(answer: impl Fn(usize) -> Reply) -> impl Fn() -> Reply {
    let count = AtomicUsize::new(0);
    move || answer(count.fetch_add(1, Ordering::Relaxed))
}
