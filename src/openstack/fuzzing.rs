//! See [`crate::fuzzing`]. An answer is its status and, behind a space, its `Retry-After` on the
//! first line, and its body behind.

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use serde_json::Value;
use url::Url;

use super::answer::{Answer, judge};
use super::attachment::AttachmentRow;
use super::catalog::{BLOCK_STORAGE, IMAGE};
use super::cinder::{OneVolume, next_query};
use super::endpoint::{
    BlockStorageAddress, BlockStorageEndpoint, BlockStorageVersion, IdentityEndpoint,
    block_storage_versions,
};
use super::http::{Call, Service};
use super::keystone::{self, Token};
use super::model::{Picked, RawVolume, is_plain};
use super::page::{Page, Sink};
use super::{CloudError, CloudErrorKind, Snapshot, Volume};
use crate::connection_info::ConnectionInfo;
use crate::fuzzing::{assert_readable, first_line};

/// The token that Keystone gives in its header.
const TOKEN: &str = "gAAAAABtoken-nobody-may-see";

pub(crate) fn connection(answer: &Value) -> Option<ConnectionInfo> {
    ConnectionInfo::read(answer)
}

pub(crate) fn volume(data: &[u8]) -> Option<Volume> {
    serde_json::from_slice::<RawVolume>(data).ok()?.usable()
}

/// Status, headers and body.
fn answer(data: &[u8]) -> Option<(u16, HeaderMap, &[u8])> {
    let (head, body) = first_line(data);
    let mut words = std::str::from_utf8(head).ok()?.splitn(2, ' ');
    let status = words.next()?.parse().ok().filter(|status| (200..600).contains(status))?;
    let mut headers = HeaderMap::new();
    if let Some(wait) = words.next() {
        headers.insert(RETRY_AFTER, HeaderValue::from_str(wait).ok()?);
    }
    headers.insert("x-subject-token", HeaderValue::from_static(TOKEN));
    Some((status, headers, body))
}

fn address() -> Option<Url> {
    Url::parse("http://cinder.example:8776/v3/abc").ok()
}

/// Any answer of Cinder, to each kind of call.
pub fn cinder_answer(data: &[u8]) {
    let Some((status, headers, body)) = answer(data) else { return };
    let Some(url) = address() else { return };
    let calls = [
        Call::read(Service::BlockStorage, "read volume 1", "/volumes/1"),
        Call::list(Service::BlockStorage, "list the volumes", "/volumes/detail", None),
        Call::effect(Method::POST, "reserve volume 1", "/volumes/1/action", None, &[200, 202]),
    ];
    for call in &calls {
        match judge(call, &url, status, &headers, body) {
            Ok(answer) => {
                assert!(call.accept.contains(&status));
                read(call, &Answer { body: body.to_vec(), ..answer }, &url);
            }
            Err(error) => check_error(call, status, &error),
        }
    }
}

fn check_error(call: &Call, status: u16, error: &CloudError) {
    use CloudErrorKind::{Ambiguous, Busy, NotFound};
    assert_readable(&error.message);
    assert_eq!(error.status, Some(status));
    if error.kind == NotFound {
        assert!(status == 404 && call.missing_is_an_answer, "{error:?}");
    }
    if (500..600).contains(&status) || (200..300).contains(&status) {
        assert!(matches!(error.kind, Ambiguous | Busy), "{error:?}");
    }
}

/// Everything that a body can be read as.
fn read(call: &Call, answer: &Answer, url: &Url) {
    read_page(&answer.body, url);
    if let Ok(one) = answer.json::<OneVolume>(call)
        && let Some(volume) = one.volume.usable()
    {
        check_volume(&volume);
    }
    let Ok(body) = answer.json::<Value>(call) else { return };
    let rows = |key: &str| body[key].as_array().cloned().unwrap_or_default();
    for row in rows("attachments").iter().filter_map(AttachmentRow::read) {
        assert!(is_plain(&row.id), "{row:?}");
    }
    for snapshot in rows("snapshots").iter().filter_map(Snapshot::read) {
        assert!(!snapshot.id.is_empty());
    }
    let (version, _) = block_storage_versions(&body);
    assert!(version.is_none() || body["versions"].is_array());
}

/// As a page of volumes, in pieces: it must say what the whole says.
fn read_page(body: &[u8], url: &Url) {
    let whole = serde_json::from_slice::<Value>(body);
    for length in [1, 7, body.len().max(1)] {
        let mut page = Page::<Value>::of("volumes");
        body.chunks(length).for_each(|piece| page.take(piece));
        if let Ok((rows, mut rest)) = page.end() {
            rest.insert("volumes".to_owned(), rows.into());
            match &whole {
                Ok(whole) => assert_eq!(*whole, Value::Object(rest)),
                // A row of a page may be as deep as a document.
                Err(error) => assert!(error.to_string().contains("recursion"), "{error}"),
            }
        }
    }
    let mut page = Page::<Picked<Volume>>::of("volumes");
    page.take(body);
    match page.end() {
        Ok((rows, rest)) => {
            if let Some(query) = rest.get("volumes_links").and_then(next_query) {
                let mut next = url.clone();
                next.set_query(Some(&query));
                assert_eq!(
                    (next.path(), next.host(), next.fragment()),
                    (url.path(), url.host(), None)
                );
            }
            rows.into_iter().filter_map(|picked| picked.0).for_each(|v| check_volume(&v));
        }
        // A page is not left half read.
        Err(at) => assert!(at <= body.len()),
    }
}

fn check_volume(volume: &Volume) {
    assert_readable(volume.status.as_str());
    for attachment in &volume.attachments {
        // It becomes a part of a path.
        assert!(is_plain(&attachment.attachment_id), "{attachment:?}");
        let path = format!("http://cinder.example/v3/abc/attachments/{}", attachment.attachment_id);
        assert_eq!(Url::parse(&path).map(String::from).as_ref(), Ok(&path));
    }
}

/// Keystone's answer to a login, and the way to Cinder that its catalog shows.
pub fn keystone_answer(data: &[u8]) {
    let Some((status, headers, body)) = answer(data) else { return };
    let Ok(identity) = Url::parse("http://keystone.example:5000/v3") else { return };
    if let Ok(document) = serde_json::from_slice::<Value>(body) {
        let best = IdentityEndpoint::best_version(&document);
        assert!(best.is_none() || document["versions"]["values"].is_array());
    }
    let call = keystone::login("/auth/tokens", Value::Null);
    let answer = match judge(&call, &identity, status, &headers, body) {
        Ok(answer) => Answer { body: body.to_vec(), ..answer },
        Err(error) => return assert_readable(&error.message),
    };
    let tokens = [
        keystone::token_v3(&call, &answer, identity.clone(), None),
        keystone::token_v2(&call, &answer, identity),
    ];
    for token in tokens {
        match token {
            Ok(token) => {
                // Unless the body says it, too.
                let repeated = body.windows(TOKEN.len()).any(|text| text == TOKEN.as_bytes());
                assert!(repeated || !format!("{token:?}").contains(TOKEN));
                check_token(&token);
            }
            Err(error) => {
                assert_readable(&error.message);
                assert!(!error.message.contains(TOKEN), "{}", error.message);
            }
        }
    }
}

fn check_token(token: &Token) {
    if token.has_expired() {
        assert!(token.expires_in().is_some_and(|left| left.is_zero()));
    }
    for region in ["", "RegionOne"] {
        if let Err(error) = token.catalog.find("image", IMAGE, region, "public") {
            assert_readable(&error.message);
        }
        let written = match token.catalog.find("block storage", BLOCK_STORAGE, region, "public") {
            Ok(written) => written,
            Err(error) => return assert_readable(&error.message),
        };
        // The session refuses any other project.
        let Some(project) = token.project_id.as_deref().filter(|id| is_plain(id)) else { return };
        match BlockStorageAddress::parse(written, project) {
            Err(error) => assert_readable(&error.message),
            Ok(BlockStorageAddress::Complete(endpoint)) => check_endpoint(&endpoint, project),
            Ok(BlockStorageAddress::Unversioned(root)) => {
                for version in [BlockStorageVersion::V2, BlockStorageVersion::V3] {
                    let endpoint = BlockStorageEndpoint::below_root(&root, version, project);
                    check_endpoint(&endpoint, project);
                }
            }
        }
    }
}

/// Nothing but the version and the project at its end, and no credentials in it.
fn check_endpoint(endpoint: &BlockStorageEndpoint, project: &str) {
    let url = &endpoint.url;
    assert!(matches!(url.scheme(), "http" | "https") && url.has_host(), "{url}");
    assert!(url.username().is_empty() && url.password().is_none(), "{url}");
    assert!(url.query().is_none() && url.fragment().is_none(), "{url}");
    let version = match endpoint.version {
        BlockStorageVersion::V2 => "v2",
        BlockStorageVersion::V3 => "v3",
    };
    assert!(url.path().ends_with(&format!("/{version}/{project}")), "{url}");
    let [versioned, root] = endpoint.roots();
    assert!(versioned.path().ends_with(version), "{versioned}");
    assert_eq!(root.host(), url.host());
}
