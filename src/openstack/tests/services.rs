//! From the operator's address to the endpoints.

use std::time::Duration;

use serde_json::json;

use super::toy::{self, PASSWORD, PROJECT, Reply, TOKEN, Toy};
use super::{ID, cloud, id, is_read, shown};
use crate::config::{CloudSettings, Credentials, NameOrId};
use crate::openstack::{AttachFlow, Cloud};

#[tokio::test]
async fn an_endpoint_without_a_version_is_asked_for_its_versions() {
    let toy = Toy::start(|request| {
        (request.path == "/").then(|| {
            // A Keystone behind a proxy that doesn't know its public address.
            let links = json!([{"rel": "self", "href": "http://10.255.255.1:5000/v3/"}]);
            let values = json!([{"id": "v3.8", "status": "stable", "links": links},
                                {"id": "v2.0", "status": "deprecated"}]);
            Reply::Json(300, json!({"versions": {"values": values}}))
        })
    })
    .await;
    let settings = CloudSettings { endpoint: toy.url.clone(), ..toy.settings() };
    let facts = Cloud::new(&settings).unwrap().facts().await.unwrap();
    assert_eq!(facts.identity_url, format!("{}/v3", toy.url));
    assert_eq!(facts.block_storage_url, format!("{}/cinder/v3/{PROJECT}", toy.url));
    assert_eq!(facts.project_id, PROJECT);
    assert_eq!(facts.max_microversion, Some((3, 70)));
    assert_eq!(facts.roles, ["member"]);
    assert!(facts.token_expires_in.unwrap() > Duration::from_secs(3500));
}

#[tokio::test]
async fn versions_are_tried_where_the_root_is_hidden() {
    let toy = Toy::start(|request| {
        (request.line() == "GET /identity/v3")
            .then(|| Reply::Json(200, json!({"version": {"id": "v3.14"}})))
            .or_else(|| {
                let url = format!("http://{}", request.header("host").unwrap());
                (request.line() == "POST /identity/v3/auth/tokens")
                    .then(|| toy::token_v3(&url, 1, Duration::from_secs(60)))
            })
    })
    .await;
    let settings = CloudSettings { endpoint: format!("{}/identity/", toy.url), ..toy.settings() };
    let facts = Cloud::new(&settings).unwrap().facts().await.unwrap();
    assert_eq!(facts.identity_url, format!("{}/identity/v3", toy.url));
}

/// Keystone v2.0 and Cinder v2 as the Go driver met them.
async fn old_cloud() -> Toy {
    Toy::start(|request| {
        let url = format!("http://{}", request.header("host").unwrap());
        let endpoint = format!("{url}/v2/{PROJECT}");
        match &*request.line() {
            "POST /v2.0/tokens" => Some(Reply::Json(
                200,
                json!({"access": {
                    "token": {"id": TOKEN, "issued_at": "2026-11-22T02:24:00.000000Z",
                              "expires": "2026-11-22T03:24:00.000000Z",
                              "tenant": {"id": PROJECT, "name": "mesos", "enabled": true}},
                    "user": {"name": "mesos", "roles": [{"name": "member"}]},
                    "serviceCatalog": [{"type": "volumev2", "name": "cinderv2", "endpoints": [
                        {"region": "RegionOne", "publicURL": endpoint, "adminURL": endpoint,
                         "internalURL": endpoint}]}]}}),
            )),
            line if line == format!("GET /volumes/{ID}") => Some(shown("available")),
            _ => None,
        }
    })
    .await
}

#[tokio::test]
async fn a_cloud_of_2016_is_served_with_actions() {
    let toy = old_cloud().await;
    let settings = CloudSettings { endpoint: format!("{}/v2.0", toy.url), ..toy.settings() };
    let cloud = Cloud::new(&settings).unwrap();
    assert_eq!(cloud.volume(id()).await.unwrap().name, "db");
    let facts = cloud.facts().await.unwrap();
    assert_eq!((facts.max_microversion, &*facts.roles[0]), (None, "member"));
    assert_eq!(cloud.preferred_flow().await.unwrap(), AttachFlow::Actions);
    assert!(cloud.messages(id()).await.unwrap().is_empty());
    let error = cloud.reserve(AttachFlow::Attachments, id()).await.unwrap_err();
    assert!(error.message.contains("no attachments API"), "{error}");
    let login = &toy.requests()[0];
    assert_eq!(login.body["auth"]["tenantId"], PROJECT);
    assert_eq!(toy.calls(), [format!("GET /volumes/{ID}")]);
}

#[tokio::test]
async fn a_missing_identity_version_and_a_v3_only_credential_are_explained() {
    let toy = Toy::start(|_| None).await;
    let v2 = CloudSettings { endpoint: format!("{}/v2.0", toy.url), ..toy.settings() };
    let error = Cloud::new(&v2).unwrap().facts().await.unwrap_err();
    let way_out = format!("let Endpoint be {}/v3", toy.url);
    assert!(error.message.ends_with(&way_out), "{error}");

    let credentials = Credentials::ApplicationCredential {
        credential: NameOrId::Id("c1".to_owned()),
        user: None,
        secret: PASSWORD.to_owned().into(),
    };
    let error = Cloud::new(&CloudSettings { credentials, ..v2 }).unwrap().facts().await;
    assert!(error.unwrap_err().message.contains("end in /v3"));
}

#[tokio::test]
async fn a_ready_made_token_is_used_as_it_is_where_it_may_not_be_exchanged() {
    let toy = Toy::start(|request| {
        let url = format!("http://{}", request.header("host").unwrap());
        match &*request.line() {
            "POST /v3/auth/tokens" => Some(Reply::fault(403, "error", "rescope a scoped token")),
            "GET /v3/auth/tokens" => {
                assert_eq!(request.header("x-subject-token"), Some("ready-made"));
                match toy::token_v3(&url, 1, Duration::from_secs(60)) {
                    Reply::Raw(_, _, body) => {
                        let body = body.replace("2026-", "2126-");
                        Some(Reply::Raw(200, Vec::new(), body))
                    }
                    other => Some(other),
                }
            }
            _ => is_read(request).then(|| shown("available")),
        }
    })
    .await;
    let credentials = Credentials::Token("ready-made".to_owned().into());
    let cloud = Cloud::new(&CloudSettings { credentials, ..toy.settings() }).unwrap();
    cloud.volume(id()).await.unwrap();
    let requests = toy.requests();
    assert_eq!(requests.last().unwrap().header("x-auth-token"), Some("ready-made"));
}

#[tokio::test]
async fn an_unversioned_block_storage_address_is_discovered() {
    let toy = Toy::start(|request| match &*request.line() {
        "GET /volume/" => Some(Reply::Json(
            300,
            json!({"versions": [{"id": "v2.0"}, {"id": "v3.0", "version": "3.50"}]}),
        )),
        _ => is_read(request).then(|| shown("available")),
    })
    .await;
    let address = Some(format!("{}/volume", toy.url));
    let settings = CloudSettings { block_storage_endpoint: address, ..toy.settings() };
    let facts = Cloud::new(&settings).unwrap().facts().await.unwrap();
    assert_eq!(facts.block_storage_url, format!("{}/volume/v3/{PROJECT}", toy.url));
    assert_eq!(facts.max_microversion, Some((3, 50)));
}

#[tokio::test]
async fn a_redirect_is_told_and_not_followed() {
    let toy = Toy::start(|request| {
        request.path.ends_with("/tokens").then(|| {
            let location = "https://elsewhere.example/v3/auth/tokens".to_owned();
            Reply::Raw(301, vec![("Location", location)], String::new())
        })
    })
    .await;
    let error = cloud(&toy).facts().await.unwrap_err();
    assert!(error.message.contains("to https://elsewhere.example:443/v3/auth/tokens"), "{error}");
    assert_eq!(toy.requests().len(), 1);
}
