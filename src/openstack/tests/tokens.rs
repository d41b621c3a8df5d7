//! Logging in: once for all, again when needed, never in vain.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::toy::{self, PASSWORD, Reply, TOKEN, Toy};
use super::{cloud, id, impatient, is_read, shown};
use crate::openstack::{AttachFlow, CloudErrorKind, VolumeStatus};

#[tokio::test]
async fn many_callers_log_in_once() {
    let toy = Toy::start(|request| is_read(request).then(|| shown("available"))).await;
    let cloud = cloud(&toy);
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let cloud = cloud.clone();
            tokio::spawn(async move { cloud.volume(id()).await.map(|volume| volume.status) })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), VolumeStatus::Available);
    }
    assert_eq!(toy.logins(), 1);
}

#[tokio::test]
async fn many_callers_are_refused_by_one_login() {
    let toy = Toy::start(|request| {
        request.path.ends_with("/tokens").then(|| Reply::fault(401, "error", "no"))
    })
    .await;
    let cloud = cloud(&toy);
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let cloud = cloud.clone();
            tokio::spawn(async move { cloud.volume(id()).await.unwrap_err().kind })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), CloudErrorKind::Unauthenticated);
    }
    assert_eq!(toy.logins(), 1);
}

#[tokio::test]
async fn credentials_that_keystone_does_not_find_are_no_missing_api() {
    for (message, found) in [
        ("Could not find Application Credential: deadbeef.", "does not accept these credentials"),
        ("Could not recognize Fernet token", "does not accept these credentials"),
        ("The resource could not be found.", "there is no identity API"),
    ] {
        let toy = Toy::start(move |request| {
            request.path.ends_with("/tokens").then(|| Reply::fault(404, "error", message))
        })
        .await;
        let error = cloud(&toy).volume(id()).await.unwrap_err();
        assert!(error.message.contains(found), "{message}: {error}");
        assert_eq!(error.kind == CloudErrorKind::Unauthenticated, found.contains("accept"));
    }
}

#[tokio::test]
async fn a_caller_who_gives_up_does_not_take_the_login_with_him() {
    let release = Arc::new(AtomicUsize::new(0));
    let gate = Arc::clone(&release);
    let toy = Toy::start(move |request| {
        let login = request.path.ends_with("/tokens");
        // Keystone answers 503 until the caller is gone.
        (login && gate.load(Ordering::Relaxed) == 0)
            .then(|| Reply::fault(503, "error", "starting"))
            .or_else(|| is_read(request).then(|| shown("available")))
    })
    .await;
    let cloud = cloud(&toy);
    let asked = async {
        while toy.logins() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = cloud.volume(id()) => panic!("there is no token yet"),
        () = asked => {}
    }
    release.store(1, Ordering::Relaxed);
    while toy.logins() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(toy.calls().is_empty());
    cloud.volume(id()).await.unwrap();
    assert_eq!(toy.logins(), 2);
}

#[tokio::test]
async fn a_refused_token_is_renewed_once_for_all_and_the_calls_are_sent_again() {
    let first = format!("{TOKEN}-1");
    let toy = Toy::start(move |request| {
        if request.header("x-auth-token") == Some(&first) {
            return Some(Reply::fault(401, "error", "The request you have made requires…"));
        }
        is_read(request).then(|| shown("available"))
    })
    .await;
    let cloud = cloud(&toy);
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let cloud = cloud.clone();
            tokio::spawn(async move { cloud.volume(id()).await.is_ok() })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap());
    }
    assert_eq!(toy.logins(), 2);
}

#[tokio::test]
async fn an_endless_401_ends_with_an_error() {
    let toy = Toy::start(|request| {
        is_read(request).then(|| Reply::fault(401, "error", "The request you have made requires…"))
    })
    .await;
    let error = cloud(&toy).volume(id()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Unauthenticated);
    assert!(error.message.contains("same cloud"), "{error}");
    assert_eq!((toy.calls().len(), toy.logins()), (2, 2));
}

#[tokio::test]
async fn an_expired_token_is_not_sent() {
    let toy = Toy::start(|request| {
        if request.path.ends_with("/tokens") {
            let url = format!("http://{}", request.header("host").unwrap());
            return Some(toy::token_v3(&url, 1, Duration::ZERO));
        }
        is_read(request).then(|| shown("available"))
    })
    .await;
    let cloud = cloud(&toy);
    cloud.volume(id()).await.unwrap();
    cloud.volume(id()).await.unwrap();
    assert_eq!(toy.logins(), 2);
}

#[tokio::test]
async fn a_token_near_its_end_serves_while_it_is_renewed() {
    let logins = AtomicUsize::new(0);
    let toy = Toy::start(move |request| {
        if request.path.ends_with("/tokens") {
            let url = format!("http://{}", request.header("host").unwrap());
            // A life of 1 s, of which the last tenth is for renewal; then Keystone is slow.
            return match logins.fetch_add(1, Ordering::Relaxed) {
                0 => Some(toy::token_v3(&url, 1, Duration::from_secs(1))),
                _ => Some(toy::token_v3(&url, 2, Duration::from_secs(3600))),
            };
        }
        is_read(request).then(|| shown("available"))
    })
    .await;
    let cloud = cloud(&toy);
    // Used all along: the renewal comes in time, and no call is refused or waits for it.
    while toy.logins() < 2 {
        cloud.volume(id()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cloud.volume(id()).await.unwrap();
    assert_eq!(toy.logins(), 2);
}

#[tokio::test]
async fn a_login_without_an_answer_leaves_a_reserve_unsent_and_unambiguous() {
    let toy = Toy::start(|request| request.path.ends_with("/tokens").then_some(Reply::Hang)).await;
    let error = impatient(&toy).reserve(AttachFlow::Actions, id()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Unreachable, "{error}");
    assert!(toy.calls().is_empty());
}

#[tokio::test]
async fn keystones_schema_errors_do_not_repeat_the_request() {
    let toy = Toy::start(|request| {
        request.path.ends_with("/tokens").then(|| {
            let quoted = format!("{{'password': '{PASSWORD}'}} is not valid\n\nFailed validating");
            Reply::fault(400, "error", &quoted)
        })
    })
    .await;
    let error = cloud(&toy).volume(id()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::BadRequest);
    assert!(!error.message.contains(PASSWORD), "{error}");
}
