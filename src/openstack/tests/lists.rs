//! Look-ups by name: paged to the end, compared exactly.

use std::collections::HashSet;
use std::net::SocketAddr;

use serde_json::json;
use uuid::Uuid;

use super::toy::{self, Reply, Toy};
use super::{ID, cloud, id};
use crate::openstack::Volume;

#[tokio::test]
async fn names_are_compared_byte_for_byte_over_all_pages_of_this_host() {
    let toy = Toy::start(|request| {
        let other = Uuid::new_v4().to_string();
        match &*request.line() {
            // MySQL ignores case; the link names an address that isn't ours.
            "GET /volumes/detail?name=db" => Some(Reply::Json(
                200,
                json!({
                    "volumes": [toy::volume(&other, "DB", "available"), {"name": "db"}, {}],
                    "volumes_links": [{"rel": "self", "href": "http://10.255.255.1/"}, {
                        "rel": "next",
                        "href": "http://10.255.255.1/v3/x/volumes/detail?name=db&marker=m1"}]}),
            )),
            "GET /volumes/detail?name=db&marker=m1" => Some(Reply::Json(
                200,
                json!({"volumes": [toy::volume(ID, "db", "in-use"),
                                   toy::volume(&other, "db ", "available")]}),
            )),
            _ => None,
        }
    })
    .await;
    let found = cloud(&toy).volumes_named("db").await.unwrap();
    assert_eq!(found.iter().map(|volume| volume.id).collect::<Vec<_>>(), [id()]);
}

#[tokio::test]
async fn a_name_travels_encoded() {
    let toy = Toy::start(|request| {
        request.path.contains("detail").then(|| Reply::Json(200, json!({"volumes": []})))
    })
    .await;
    cloud(&toy).volumes_named("a b&limit=1/ü%").await.unwrap();
    assert_eq!(toy.calls(), ["GET /volumes/detail?name=a+b%26limit%3D1%2F%C3%BC%25"]);
}

#[tokio::test]
async fn pages_without_end_are_an_error() {
    let toy = Toy::start(|request| {
        request.path.contains("detail").then(|| {
            let link = json!([{"rel": "next", "href": "http://h/volumes/detail?marker=same"}]);
            Reply::Json(200, json!({"volumes": [], "volumes_links": link}))
        })
    })
    .await;
    let error = cloud(&toy).volumes_named("db").await.unwrap_err();
    assert!(error.message.contains("no end"), "{error}");
    assert_eq!(toy.calls().len(), 2);
}

/// Each connection's buffer grows with a page: the others stay small.
#[tokio::test]
async fn all_pages_come_over_one_connection() {
    let toy = Toy::start(|request| {
        request.path.contains("detail").then_some(())?;
        let marker = request.path.split("marker=").nth(1).map_or(0, |text| text.parse().unwrap());
        let href = format!("/volumes/detail?marker={}", marker + 1);
        let link = if marker < 9 { json!([{"rel": "next", "href": href}]) } else { json!([]) };
        let volumes = vec![toy::volume(ID, "db", "available"); 1000];
        Some(Reply::Json(200, json!({"volumes": volumes, "volumes_links": link})))
    })
    .await;
    let cloud = cloud(&toy);
    cloud.volume(id()).await.unwrap_err();
    futures_util::future::join_all((0..4).map(|n| cloud.volume(Uuid::from_u128(n)))).await;
    let peers = |requests: &[toy::Request]| -> HashSet<SocketAddr> {
        requests.iter().map(|request| request.peer).collect()
    };
    let before = toy.requests().len();
    assert!(peers(&toy.requests()).len() > 1, "one connection proves nothing");

    // A task, as in the daemon.
    let list = async move {
        let mut next = None;
        loop {
            let page = cloud.list_page::<Volume>(next.as_deref()).await.unwrap();
            assert_eq!(page.volumes.len(), 1000);
            next = page.next;
            if next.is_none() {
                return;
            }
        }
    };
    tokio::spawn(list).await.unwrap();
    let pages = &toy.requests()[before..];
    assert_eq!((pages.len(), peers(pages).len()), (10, 1));
}

#[tokio::test]
async fn a_page_that_fails_fails_the_look_up() {
    let toy = Toy::start(|request| {
        request.path.contains("detail").then(|| {
            if request.path.contains("marker") {
                return Reply::fault(404, "itemNotFound", "Volume m1 could not be found.");
            }
            let link = json!([{"rel": "next", "href": "/volumes/detail?marker=m1"}]);
            let volumes = json!([toy::volume(ID, "db", "available")]);
            Reply::Json(200, json!({"volumes": volumes, "volumes_links": link}))
        })
    })
    .await;
    let cloud = cloud(&toy);
    let error = cloud.volumes_named("db").await.unwrap_err();
    // The marker is gone, the volume isn't.
    assert!(!error.is_not_found(), "{error}");
    let page = cloud.list_page::<Volume>(None).await.unwrap();
    assert_eq!((page.volumes.len(), page.next.as_deref()), (1, Some("marker=m1")));
    assert!(cloud.list_page::<Volume>(page.next.as_deref()).await.is_err());
}

#[tokio::test]
async fn snapshots_and_images_of_one_name_are_told_apart_by_id() {
    let toy = Toy::start(|request| {
        let two = json!([{"id": "s1", "name": "snap", "size": "2", "status": "available"},
                         {"id": "s2", "name": "snap"}, {"id": "s3", "name": "Snap"}]);
        match &*request.line() {
            "GET /snapshots/detail?name=snap" => Some(Reply::Json(200, json!({"snapshots": two}))),
            "GET /snapshots/detail?name=Snap" => {
                Some(Reply::Json(200, json!({"snapshots": [two[2]]})))
            }
            "GET /glance/v2/images?name=debian" => Some(Reply::Json(
                200,
                json!({"images": [], "next": "/v2/images?name=debian&marker=x"}),
            )),
            "GET /glance/v2/images?name=debian&marker=x" => Some(Reply::Json(
                200,
                json!({"images": [{"id": "i1", "name": "debian"}, {"id": "i2", "name": "Debian"}]}),
            )),
            _ => None,
        }
    })
    .await;
    let cloud = cloud(&toy);
    let error = cloud.snapshot("snap").await.unwrap_err();
    assert!(error.message.contains("2 snapshots are named \"snap\""), "{error}");
    assert!(error.message.ends_with("s1, s2"), "{error}");
    assert_eq!(cloud.snapshot("Snap").await.unwrap().id, "s3");
    assert_eq!(cloud.image_id("debian").await.unwrap(), "i1");
    assert_eq!(cloud.image_id(ID).await.unwrap(), ID);
}

#[tokio::test]
async fn messages_are_of_this_volume_and_the_newest_comes_first() {
    let toy = Toy::start(|request| {
        request.path.contains("/messages").then(|| {
            assert_eq!(request.header("openstack-api-version"), Some("volume 3.5"));
            let message = |id: &str, at: &str, text: &str| {
                json!({"id": "m", "event_id": "VOLUME_000002", "resource_uuid": id,
                       "created_at": at, "user_message": text, "message_level": "ERROR"})
            };
            Reply::Json(
                200,
                json!({"messages": [
                    message(ID, "2026-11-22T02:00:00.000000", "old"),
                    message("another", "2026-11-22T04:00:00.000000", "foreign"),
                    message(ID, "2026-11-22T03:00:00.000000",
                        "schedule allocate volume:Could not find any available weighted backend."),
                ]}),
            )
        })
    })
    .await;
    let messages = cloud(&toy).messages(id()).await.unwrap();
    assert_eq!(
        messages,
        ["schedule allocate volume:Could not find any available weighted backend.", "old"]
    );
}
