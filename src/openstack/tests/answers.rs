//! What is repeated, what isn't, and what an answer is taken for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::toy::{self, Reply, Toy};
use super::{ID, cloud, id, impatient, is_read, nth, shown};
use crate::config::CloudSettings;
use crate::openstack::{AttachFlow, Cloud, CloudErrorKind, CreateVolume, VolumeStatus};

#[tokio::test]
async fn a_read_is_repeated_until_it_is_answered() {
    for bad in [
        Reply::Drop,
        Reply::Half,
        Reply::fault(500, "computeFault", "The server has either erred…"),
        Reply::Raw(502, Vec::new(), "<html>Bad Gateway</html>".to_owned()),
        Reply::Raw(503, vec![("Retry-After", "0".to_owned())], String::new()),
        Reply::Raw(429, Vec::new(), String::new()),
    ] {
        let next = nth(move |n| if n < 2 { bad.clone() } else { shown("available") });
        let toy = Toy::start(move |request| is_read(request).then(&next)).await;
        assert_eq!(cloud(&toy).volume(id()).await.unwrap().status, VolumeStatus::Available);
        assert_eq!(toy.calls().len(), 3);
    }
}

#[tokio::test]
async fn a_read_that_is_never_answered_ends_in_time() {
    let toy = Toy::start(|request| is_read(request).then_some(Reply::Hang)).await;
    let started = Instant::now();
    let error = impatient(&toy).volume(id()).await.unwrap_err();
    assert!(error.is_ambiguous());
    assert!(error.message.contains("no answer for"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn an_effect_without_a_clear_answer_is_ambiguous_and_sent_once() {
    for bad in [
        Reply::Drop,
        Reply::Half,
        Reply::Hang,
        Reply::fault(500, "computeFault", "The server has either erred…"),
        Reply::Raw(504, Vec::new(), "<html>Gateway Time-out</html>".to_owned()),
        Reply::Raw(503, Vec::new(), String::new()),
        // A login page, or another program on this port.
        Reply::Raw(200, Vec::new(), "<html>Welcome</html>".to_owned()),
    ] {
        let toy = Toy::start(move |request| {
            (request.action() == Some("os-reserve")).then(|| bad.clone())
        })
        .await;
        let error = impatient(&toy).reserve(AttachFlow::Actions, id()).await.unwrap_err();
        assert!(error.is_ambiguous(), "{error}");
        assert!(error.message.contains("it may have happened all the same"), "{error}");
        assert_eq!(toy.calls(), [format!("POST /volumes/{ID}/action")]);
    }
}

#[tokio::test]
async fn a_success_that_makes_no_sense_is_ambiguous_for_create_and_the_attachment() {
    for body in ["", "[]", "{\"volume\": {}, \"attachment\": {}}", "\u{fffd}"] {
        let toy = Toy::start(move |request| {
            matches!(request.action(), Some("volume" | "attachment"))
                .then(|| Reply::Raw(200, Vec::new(), body.to_owned()))
        })
        .await;
        let cloud = cloud(&toy);
        let wanted = CreateVolume { name: "db".to_owned(), ..CreateVolume::default() };
        assert!(cloud.create_volume(&wanted).await.unwrap_err().is_ambiguous(), "{body}");
        let error = cloud.reserve(AttachFlow::Attachments, id()).await.unwrap_err();
        assert!(error.is_ambiguous(), "{body}: {error}");
    }
}

#[tokio::test]
async fn an_effect_that_could_not_be_sent_is_tried_twice_and_is_not_ambiguous() {
    // Bound, and closed again: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let toy = Toy::start(|_| None).await;
    let address = Some(format!("http://127.0.0.1:{port}/v3"));
    let settings = CloudSettings { block_storage_endpoint: address, ..toy.settings() };
    let started = Instant::now();
    let cloud = Cloud::new(&settings).unwrap();
    let error = cloud.reserve(AttachFlow::Actions, id()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Unreachable);
    assert!(error.message.contains(&format!("no connection to Cinder at 127.0.0.1:{port}")));
    assert!(error.message.contains("refused"), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_busy_cloud_is_given_the_time_it_asks_for() {
    for status in [429, 503] {
        let next = nth(move |n| match n {
            0 => Reply::Raw(status, vec![("Retry-After", "1".to_owned())], String::new()),
            _ => Reply::empty(202),
        });
        let toy =
            Toy::start(move |request| (request.action() == Some("os-reserve")).then(&next)).await;
        let started = Instant::now();
        cloud(&toy).reserve(AttachFlow::Actions, id()).await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(1));
        assert_eq!(toy.calls().len(), 2);
    }
}

#[tokio::test]
async fn a_cloud_that_asks_for_too_much_time_gets_none() {
    let toy = Toy::start(|request| {
        is_read(request)
            .then(|| Reply::Raw(429, vec![("Retry-After", "3600".to_owned())], String::new()))
    })
    .await;
    let error = cloud(&toy).volume(id()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Busy);
    assert_eq!(error.retry_after, Some(Duration::from_secs(3600)));
    assert_eq!(toy.calls().len(), 1);
}

#[tokio::test]
async fn metadata_is_written_again_after_a_lost_answer() {
    let next = nth(|n| match n {
        0 => Reply::Drop,
        _ => Reply::Json(200, json!({"metadata": {"other": "x", "state": "formatted"}})),
    });
    let toy = Toy::start(move |request| (request.action() == Some("metadata")).then(&next)).await;
    let metadata = BTreeMap::from([("state".to_owned(), "formatted".to_owned())]);
    cloud(&toy).set_metadata(id(), &metadata).await.unwrap();
    assert_eq!(toy.calls().len(), 2);
}

#[tokio::test]
async fn an_answer_without_end_is_refused() {
    let long = "x".repeat(2 * 1024 * 1024);
    let toy = Toy::start(move |request| {
        is_read(request).then(|| {
            let mut volume = toy::volume(ID, "db", "available");
            volume["description"] = long.as_str().into();
            Reply::Json(200, json!({"volume": volume}))
        })
    })
    .await;
    let error = cloud(&toy).volume(id()).await.unwrap_err();
    assert!(error.message.contains("larger than"), "{error}");
}

#[tokio::test]
async fn only_cinders_own_404_proves_that_a_volume_is_gone() {
    for (reply, kind) in [
        (
            Reply::fault(404, "itemNotFound", &format!("Volume {ID} could not be found.")),
            CloudErrorKind::NotFound,
        ),
        (
            Reply::fault(404, "itemNotFound", "The resource could not be found."),
            CloudErrorKind::Ambiguous,
        ),
        (Reply::Raw(404, Vec::new(), "<html>nginx</html>".to_owned()), CloudErrorKind::Ambiguous),
    ] {
        let toy = Toy::start(move |request| is_read(request).then(|| reply.clone())).await;
        assert_eq!(cloud(&toy).volume(id()).await.unwrap_err().kind, kind);
    }
}

#[tokio::test]
async fn what_cinder_refuses_keeps_its_words_status_and_request_id() {
    use CloudErrorKind::{BadRequest, Busy, Forbidden, InvalidState, Quota};
    let gigabytes = "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds \
                     allowed gigabytes quota. Requested 2000G, quota is 1000G and 1G has been \
                     consumed.";
    for (status, name, message, kind) in [
        (413, "overLimit", gigabytes, Quota),
        (413, "requestEntityTooLarge", "Metadata property value greater than 255", BadRequest),
        (404, "itemNotFound", "Volume type with name nosuch could not be found.", BadRequest),
        (400, "badRequest", "Invalid input for field/attribute size. Value: 0.", BadRequest),
        (400, "badRequest", "Malformed request url", BadRequest),
        (400, "badRequest", "Invalid volume: Volume status must be available", InvalidState),
        (403, "forbidden", "Policy doesn't allow volume:create to be performed.", Forbidden),
        (409, "conflictingRequest", "in use", InvalidState),
        (406, "computeFault", "Version 3.999 is not supported by the API.", BadRequest),
        (429, "overLimit", "slow down", Busy),
    ] {
        let toy = Toy::start(move |request| {
            (request.action() == Some("volume")).then(|| Reply::fault(status, name, message))
        })
        .await;
        let wanted = CreateVolume { name: "db".to_owned(), ..CreateVolume::default() };
        let error = cloud(&toy).create_volume(&wanted).await.unwrap_err();
        assert_eq!((error.kind, error.status), (kind, Some(status)), "{error}");
        assert!(error.message.contains(message), "{error}");
        assert!(error.message.contains("create volume \"db\""), "{error}");
        assert!(error.message.contains(&format!("(HTTP {status}, req-toy)")), "{error}");
    }
}
