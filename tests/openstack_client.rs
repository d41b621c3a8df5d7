//! The OpenStack client against a real Keystone and Cinder.
//!
//! Which one, and what happens where there is none: `support/real_cloud.rs`. Every volume that a
//! test makes has a name of its own and is removed at its end, also when the test fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a panic is how a test fails"
)]

#[path = "support/real_cloud.rs"]
mod real_cloud;

use std::collections::BTreeMap;
use std::env;
use std::future::Future;
use std::time::Duration;

use cinder_docker_driver::config::{CloudSettings, Credentials, NameOrId, Scope};
use cinder_docker_driver::openstack::{
    AttachFlow, Cloud, CloudErrorKind, CreateVolume, Holder, Volume, VolumeStatus,
};
use serde_json::{Value, json};
use uuid::Uuid;

/// The settings of the cloud to test with, if there is one.
fn settings() -> Option<CloudSettings> {
    let cloud = real_cloud::real_cloud()?;
    let domain = NameOrId::Name(cloud.domain);
    Some(CloudSettings {
        endpoint: cloud.endpoint,
        credentials: Credentials::Password {
            user: NameOrId::Name(cloud.username),
            user_domain: domain.clone(),
            password: cloud.password.into(),
        },
        scope: Scope::Project { project: NameOrId::Name(cloud.project), domain },
        region: cloud.region,
        interface: "public".to_owned(),
        block_storage_endpoint: None,
        ca_file: None,
        client_certificate: None,
        insecure: false,
    })
}

/// Runs a test with a client and a volume name of its own, and removes every volume whose name
/// begins with that afterwards.
async fn with_cloud<F, T>(test: F)
where
    F: FnOnce(Cloud, String) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let Some(settings) = settings() else { return };
    let cloud = Cloud::new(&settings).unwrap();
    let name = format!("client-test-{}", Uuid::new_v4().simple());
    // Spawned: shows that the client may be used from tasks, and survives a panic.
    let outcome = tokio::spawn(test(cloud.clone(), name.clone())).await;
    remove_all(&cloud, &name).await;
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

async fn remove_all(cloud: &Cloud, prefix: &str) {
    let mut next = None;
    let mut left = Vec::new();
    loop {
        let page = cloud.list_page::<Volume>(next.as_deref()).await.unwrap();
        left.extend(page.volumes.into_iter().filter(|volume| volume.name.starts_with(prefix)));
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    for volume in left {
        // What a failed test left attached.
        for attachment in &volume.attachments {
            for flow in [AttachFlow::Attachments, AttachFlow::Actions] {
                let id = &attachment.attachment_id;
                let _ = cloud.release(flow, volume.id, id, &connector("left")).await;
            }
        }
        if volume.status != VolumeStatus::Deleting {
            cloud.delete_volume(volume.id).await.unwrap();
        }
        until_gone(cloud, volume.id).await;
    }
}

async fn until_gone(cloud: &Cloud, id: Uuid) {
    loop {
        match cloud.volume(id).await {
            Err(error) if error.is_not_found() => return,
            Err(error) => panic!("{error}"),
            Ok(volume) => assert_eq!(volume.status, VolumeStatus::Deleting),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn until(cloud: &Cloud, id: Uuid, wanted: VolumeStatus) -> Volume {
    loop {
        let volume = cloud.volume(id).await.unwrap();
        if volume.status == wanted {
            return volume;
        }
        assert_ne!(volume.status, VolumeStatus::Error);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn make(cloud: &Cloud, name: &str) -> Volume {
    let wanted = CreateVolume { name: name.to_owned(), size: Some(1), ..CreateVolume::default() };
    let volume = cloud.create_volume(&wanted).await.unwrap();
    until(cloud, volume.id, VolumeStatus::Available).await
}

fn connector(mountpoint: &str) -> Value {
    json!({
        "platform": "x86_64", "os_type": "linux", "ip": "127.0.0.1", "host": "client-test",
        "multipath": false, "initiator": "iqn.1993-08.org.debian:01:clienttest",
        "do_local_attach": false, "mountpoint": mountpoint, "mode": "rw",
    })
}

fn holder() -> Holder {
    Holder {
        instance_uuid: Uuid::new_v4(),
        mountpoint: "client-test:/var/lib/cinder/mount/x".to_owned(),
        read_only: false,
    }
}

#[tokio::test]
async fn facts_say_what_was_found() {
    with_cloud(|cloud, _| async move {
        let facts = cloud.facts().await.unwrap();
        assert!(facts.block_storage_url.ends_with(&facts.project_id), "{facts:?}");
        assert!(!facts.roles.is_empty());
        assert!(facts.token_expires_in.unwrap() > Duration::from_secs(60));
        let flow = cloud.preferred_flow().await.unwrap();
        let takes_attachments = facts.max_microversion.is_some_and(|highest| highest >= (3, 44));
        assert_eq!(flow == AttachFlow::Attachments, takes_attachments);
    })
    .await;
}

#[tokio::test]
async fn every_form_of_the_endpoint_leads_to_the_same_cloud() {
    let Some(mut settings) = settings() else { return };
    let written = settings.endpoint.trim_end_matches('/').to_owned();
    let root = written.trim_end_matches("/v3").trim_end_matches("/v2.0").to_owned();
    let mut found = Vec::new();
    for endpoint in [format!("{written}/"), root.clone(), format!("{root}/v3/auth/tokens")] {
        settings.endpoint = endpoint;
        found.push(Cloud::new(&settings).unwrap().facts().await.unwrap().block_storage_url);
    }
    settings.block_storage_endpoint = Some(found[0].clone());
    found.push(Cloud::new(&settings).unwrap().facts().await.unwrap().block_storage_url);
    assert!(found.iter().all(|url| *url == found[0]), "{found:?}");
}

#[tokio::test]
async fn a_volume_is_made_found_described_and_deleted() {
    with_cloud(|cloud, name| async move {
        let wanted = CreateVolume {
            name: name.clone(),
            size: Some(1),
            description: Some("Docker volume.".to_owned()),
            metadata: BTreeMap::from([("nonce".to_owned(), "n1".to_owned())]),
            ..CreateVolume::default()
        };
        let made = cloud.create_volume(&wanted).await.unwrap();
        assert_eq!((made.name.as_str(), made.size), (name.as_str(), 1));
        let volume = until(&cloud, made.id, VolumeStatus::Available).await;
        assert_eq!(volume.description.as_deref(), Some("Docker volume."));
        assert_eq!(volume.metadata["nonce"], "n1");
        assert!(!volume.bootable && !volume.encrypted && !volume.from_image);
        assert!(volume.created_at.starts_with("20"), "{}", volume.created_at);

        cloud
            .set_metadata(made.id, &BTreeMap::from([("state".to_owned(), "formatted".to_owned())]))
            .await
            .unwrap();
        let metadata = cloud.volume(made.id).await.unwrap().metadata;
        assert_eq!((&*metadata["nonce"], &*metadata["state"]), ("n1", "formatted"));

        let found = cloud.volumes_named(&name).await.unwrap();
        assert_eq!(found.iter().map(|volume| volume.id).collect::<Vec<_>>(), [made.id]);
        for other in [name.to_uppercase(), name[..name.len() - 1].to_owned(), "a&b=ü c".to_owned()]
        {
            assert!(cloud.volumes_named(&other).await.unwrap().is_empty(), "{other}");
        }
        let page = cloud.list_page::<Volume>(None).await.unwrap();
        assert!(page.volumes.iter().any(|volume| volume.id == made.id));
        assert!(cloud.messages(made.id).await.unwrap().is_empty());

        cloud.delete_volume(made.id).await.unwrap();
        until_gone(&cloud, made.id).await;
        let error = cloud.delete_volume(made.id).await.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::NotFound, "{error}");
        assert!(error.request_id.is_some() && error.message.contains("HTTP 404"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn all_volumes_of_one_name_are_found() {
    with_cloud(|cloud, name| async move {
        let mut made = [make(&cloud, &name).await.id, make(&cloud, &name).await.id];
        let found = cloud.volumes_named(&name).await.unwrap();
        let mut found: Vec<_> = found.iter().map(|volume| volume.id).collect();
        made.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, made);
    })
    .await;
}

/// The whole life of an attachment, with every idempotent step done twice.
async fn round_trip(cloud: Cloud, name: String, flow: AttachFlow) {
    let volume = make(&cloud, &name).await;
    let id = volume.id;
    let holder = holder();
    let connector = connector(&holder.mountpoint);

    let reservation = cloud.reserve(flow, id).await.unwrap();
    assert_eq!(reservation.attachment_id.is_some(), flow == AttachFlow::Attachments);
    let error = cloud.reserve(flow, id).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::InvalidState, "{error}");
    assert!(!error.is_ambiguous());

    let info = cloud.connect(&reservation, &connector).await.unwrap();
    assert_eq!(info.driver_volume_type, "iscsi");
    assert!(info.data.0["target_iqn"].as_str().unwrap().contains(&id.to_string()));
    assert!(info.data.0.contains_key("auth_password"));
    assert!(!format!("{info:?}").contains(info.data.0["auth_password"].as_str().unwrap()));

    let attachment = cloud.complete(&reservation, &holder).await.unwrap();
    let attached = cloud.volume(id).await.unwrap();
    assert_eq!(attached.status, VolumeStatus::InUse);
    assert_eq!(attached.attachments.len(), 1);
    assert_eq!(attached.attachments[0].attachment_id, attachment);
    assert_eq!(attached.attachments[0].device.as_deref(), Some(&*holder.mountpoint));
    if flow == AttachFlow::Actions {
        let server = attached.attachments[0].server_id.clone();
        assert_eq!(server, Some(holder.instance_uuid.to_string()));
    } else {
        let rows = cloud.attachments_of(id).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((&*rows[0].id, &*rows[0].status), (&*attachment, "attached"));
    }
    let error = cloud.reserve(flow, id).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::InvalidState, "{error}");
    let error = cloud.delete_volume(id).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::InvalidState, "{error}");

    // An attachment that isn't there takes nothing away.
    let stranger = Uuid::new_v4().to_string();
    cloud.release(flow, id, &stranger, &connector).await.unwrap();
    assert_eq!(cloud.volume(id).await.unwrap().status, VolumeStatus::InUse);

    for _ in 0..2 {
        cloud.begin_release(flow, id).await.unwrap();
    }
    cloud.release(flow, id, &attachment, &connector).await.unwrap();
    let free = cloud.volume(id).await.unwrap();
    assert_eq!((free.status, free.attachments.len()), (VolumeStatus::Available, 0));
    cloud.release(flow, id, &attachment, &connector).await.unwrap();

    // A late repetition leaves the next holder alone.
    let next = cloud.reserve(flow, id).await.unwrap();
    let reserved = cloud.volume(id).await.unwrap().status;
    cloud.release(flow, id, &attachment, &connector).await.unwrap();
    assert_eq!(cloud.volume(id).await.unwrap().status, reserved);

    // Given back before and after the connection, twice each.
    for exported in [false, true] {
        let reservation =
            if exported { cloud.reserve(flow, id).await.unwrap() } else { next.clone() };
        if exported {
            cloud.connect(&reservation, &connector).await.unwrap();
        }
        for _ in 0..2 {
            cloud.unreserve(&reservation, exported.then_some(&connector)).await.unwrap();
            assert_eq!(cloud.volume(id).await.unwrap().status, VolumeStatus::Available);
        }
    }

    cloud.delete_volume(id).await.unwrap();
    until_gone(&cloud, id).await;
    cloud.release(flow, id, &attachment, &connector).await.unwrap();
    cloud.unreserve(&next, Some(&connector)).await.unwrap();
    let error = cloud.reserve(flow, id).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn the_actions_flow_makes_a_round_trip() {
    with_cloud(|cloud, name| round_trip(cloud, name, AttachFlow::Actions)).await;
}

#[tokio::test]
async fn the_attachments_flow_makes_a_round_trip_where_the_cloud_takes_it() {
    with_cloud(|cloud, name| async move {
        match cloud.preferred_flow().await.unwrap() {
            AttachFlow::Attachments => round_trip(cloud, name, AttachFlow::Attachments).await,
            AttachFlow::Actions => {
                let volume = make(&cloud, &name).await;
                let refused = cloud.reserve(AttachFlow::Attachments, volume.id).await;
                assert_eq!(refused.unwrap_err().kind, CloudErrorKind::BadRequest);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn of_many_who_reserve_at_once_one_wins() {
    with_cloud(|cloud, name| async move {
        for flow in [AttachFlow::Actions, cloud.preferred_flow().await.unwrap()] {
            let volume = make(&cloud, &format!("{name}-{flow:?}")).await;
            let tasks: Vec<_> = (0..8)
                .map(|_| {
                    let cloud = cloud.clone();
                    tokio::spawn(async move { cloud.reserve(flow, volume.id).await })
                })
                .collect();
            let mut won = Vec::new();
            for task in tasks {
                won.extend(task.await.unwrap().ok());
            }
            assert_eq!(won.len(), 1);
            cloud.unreserve(&won[0], None).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn what_cinder_refuses_is_said_in_its_words() {
    with_cloud(|cloud, name| async move {
        let base = CreateVolume { name, size: Some(1), ..CreateVolume::default() };

        let too_big = CreateVolume { size: Some(10_000_000), ..base.clone() };
        let error = cloud.create_volume(&too_big).await.unwrap_err();
        assert_eq!((error.kind, error.status), (CloudErrorKind::Quota, Some(413)), "{error}");
        assert!(error.message.contains("quota"), "{error}");

        let odd = CreateVolume { volume_type: Some("no-such-type".to_owned()), ..base.clone() };
        let error = cloud.create_volume(&odd).await.unwrap_err();
        assert_eq!((error.kind, error.status), (CloudErrorKind::BadRequest, Some(404)), "{error}");
        assert!(error.message.contains("no-such-type"), "{error}");

        let nothing = CreateVolume { size: Some(0), ..base };
        let error = cloud.create_volume(&nothing).await.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::BadRequest, "{error}");

        let error = cloud.volume(Uuid::new_v4()).await.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::NotFound, "{error}");
    })
    .await;
}

#[tokio::test]
async fn wrong_credentials_and_addresses_are_named() {
    let Some(settings) = settings() else { return };
    let mut wrong = settings.clone();
    if let Credentials::Password { password, .. } = &mut wrong.credentials {
        *password = "not-the-passw0rd".to_owned().into();
    }
    let cloud = Cloud::new(&wrong).unwrap();
    let error = cloud.volumes_named("x").await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Unauthenticated, "{error}");
    assert!(error.message.contains("Username, Password, TenantID"), "{error}");
    assert!(!error.message.contains("not-the-passw0rd"), "{error}");

    let unknown = Credentials::ApplicationCredential {
        credential: NameOrId::Id("deadbeefdeadbeefdeadbeefdeadbeef".to_owned()),
        user: None,
        secret: "not-the-passw0rd".to_owned().into(),
    };
    let wrong = CloudSettings { credentials: unknown, ..settings.clone() };
    let error = Cloud::new(&wrong).unwrap().facts().await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Unauthenticated, "{error}");
    assert!(error.message.contains("application credential"), "{error}");

    let wrong = CloudSettings { region: "NoSuchRegion".to_owned(), ..settings.clone() };
    let error = Cloud::new(&wrong).unwrap().facts().await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Catalog, "{error}");
    assert!(error.message.contains("in NoSuchRegion"), "{error}");

    // Bound, and closed again: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}/v3");
    let error = Cloud::new(&CloudSettings { endpoint, ..settings }).unwrap().facts().await;
    let error = error.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Unreachable, "{error}");
    assert!(error.message.contains(&format!("127.0.0.1:{port}")), "{error}");
    assert!(error.message.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_snapshot_is_found_by_id_and_by_name() {
    with_cloud(|cloud, name| async move {
        let volume = make(&cloud, &name).await;
        let admin = Raw::connect(&cloud).await;
        let body = json!({"snapshot": {"name": name, "volume_id": volume.id}});
        let made = admin.post("/snapshots", &body).await;
        let id = made["snapshot"]["id"].as_str().unwrap().to_owned();
        let by_name = loop {
            let snapshot = cloud.snapshot(&name).await.unwrap();
            if snapshot.status == "available" {
                break snapshot;
            }
            assert_eq!(snapshot.status, "creating");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let by_id = cloud.snapshot(&id).await.unwrap();
        assert_eq!(by_name, by_id);
        assert_eq!((by_id.id, by_id.size), (id.clone(), 1));
        assert_eq!(by_id.volume_id, volume.id.to_string());

        let source = CreateVolume {
            name: format!("{name}-copy"),
            snapshot_id: Some(id.clone()),
            ..CreateVolume::default()
        };
        let copy = cloud.create_volume(&source).await.unwrap();
        let copy = until(&cloud, copy.id, VolumeStatus::Available).await;
        assert_eq!((copy.size, copy.snapshot_id), (1, Some(id.clone())));

        admin.delete(&format!("/snapshots/{id}")).await;
        loop {
            match cloud.snapshot(&id).await {
                Err(error) if error.is_not_found() => break,
                Err(error) => panic!("{error}"),
                Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        let error = cloud.snapshot(&name).await.unwrap_err();
        assert!(error.is_not_found() && error.message.contains(&name), "{error}");
    })
    .await;
}

/// Calls that the driver never makes.
struct Raw {
    http: reqwest::Client,
    block_storage_url: String,
    token: String,
}

impl Raw {
    async fn connect(cloud: &Cloud) -> Self {
        let facts = cloud.facts().await.unwrap();
        let var = |name: &str| env::var(format!("CINDER_TEST_{name}")).unwrap();
        let http = reqwest::Client::new();
        let login = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": var("USERNAME"), "domain": {"id": "default"},
                "password": var("PASSWORD")}}},
            "scope": {"project": {"id": facts.project_id}}}});
        let root = facts.identity_url.replace("/v2.0", "/v3");
        let answer = http.post(format!("{root}/auth/tokens")).json(&login).send().await.unwrap();
        let token = answer.headers()["x-subject-token"].to_str().unwrap().to_owned();
        Self { http, block_storage_url: facts.block_storage_url, token }
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let request = self.http.post(format!("{}{path}", self.block_storage_url)).json(body);
        let answer = request.header("X-Auth-Token", &self.token).send().await.unwrap();
        answer.error_for_status().unwrap().json().await.unwrap()
    }

    async fn delete(&self, path: &str) {
        let request = self.http.delete(format!("{}{path}", self.block_storage_url));
        let answer = request.header("X-Auth-Token", &self.token).send().await.unwrap();
        answer.error_for_status().unwrap();
    }
}
