//! The block storage API: one method for each call that the driver makes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use url::form_urlencoded;
use uuid::Uuid;

use super::answer::{Answer, one_line};
use super::http::{Call, Http, Microversion, Patience, Repeat, Service};
use super::model::{Picked, RawVolume, text};
use super::page::Page;
use super::session::Sessions;
use super::{Backup, CloudError, CloudErrorKind, CreateVolume, Snapshot, Volume, VolumePage, tls};
use crate::config::CloudSettings;

/// Volumes asked for at once; Cinder's own cap (`osapi_max_limit`) is the same by default.
const PAGE: &str = "1000";
/// More pages than this are a server that doesn't count on.
const MOST_PAGES: usize = 10_000;
/// Messages about a resource can be listed from here on.
const MESSAGES: Microversion = (3, 3);
/// A volume can be created from a backup from here on.
const CREATE_FROM_BACKUP: Microversion = (3, 47);
/// Messages can be filtered and sorted from here on.
const MESSAGE_FILTERS: Microversion = (3, 5);
/// A volume in use can be extended from here on.
const EXTEND_IN_USE: Microversion = (3, 42);

/// A project in a cloud: credentials, token, catalog and connection pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cloud {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sessions: Arc<Sessions>,
    /// Set when this Cinder refused an attachment without an instance.
    needs_instance_uuid: AtomicBool,
}

/// What `check` and `status` show of a cloud.
#[derive(Debug, Clone)]
pub struct CloudFacts {
    /// Identity endpoint as used, with its version.
    pub identity_url: String,
    /// Block storage endpoint as used.
    pub block_storage_url: String,
    /// Project id of the token.
    pub project_id: String,
    /// Highest microversion, `None` on v2.
    pub max_microversion: Option<(u32, u32)>,
    /// When the token ends.
    pub token_expires_in: Option<Duration>,
    /// Roles in the token.
    pub roles: Vec<String>,
    /// By how many seconds Keystone's clock is ahead of this host's, by the Date of its answer;
    /// negative when it is behind.
    pub clock_ahead: Option<i64>,
}

/// What a project uses, and may use; `None` = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Volumes.
    pub volumes: (u64, Option<u64>),
    /// GiB of volumes and snapshots.
    pub gigabytes: (u64, Option<u64>),
}

impl Cloud {
    /// Prepares the client. Touches no network; reads the CA file and client certificate.
    pub fn new(settings: &CloudSettings) -> Result<Self, CloudError> {
        Self::with_patience(settings, Patience::default())
    }

    pub(super) fn with_patience(
        settings: &CloudSettings,
        patience: Patience,
    ) -> Result<Self, CloudError> {
        let http = Http::new(tls::Clients::new(settings)?, patience);
        let sessions = Arc::new(Sessions::new(settings, http)?);
        Ok(Self {
            inner: Arc::new(Inner { sessions, needs_instance_uuid: AtomicBool::new(false) }),
        })
    }

    /// Authenticates (once for all callers), looks the catalog up and asks for versions.
    pub async fn facts(&self) -> Result<CloudFacts, CloudError> {
        let session = self.inner.sessions.session().await?;
        Ok(CloudFacts {
            identity_url: session.token.identity_url.to_string(),
            block_storage_url: session.block_storage.url.to_string(),
            project_id: session.project_id.clone(),
            max_microversion: self.max_microversion().await?,
            token_expires_in: session.token.expires_in(),
            roles: session.token.roles.clone(),
            clock_ahead: session.token.clock_ahead,
        })
    }

    /// `GET /volumes/ID`.
    pub async fn volume(&self, id: Uuid) -> Result<Volume, CloudError> {
        let what = format!("read volume {id}");
        let call = Call::read(Service::BlockStorage, what, format!("/volumes/{id}"));
        self.one_volume(&call, |volume| volume.id == id).await
    }

    /// Every volume of exactly this name, whatever its state: `GET /volumes/detail?name=`, paged
    /// to the end and compared byte for byte (Cinder's filter may ignore case, or be ignored).
    pub async fn volumes_named(&self, name: &str) -> Result<Vec<Volume>, CloudError> {
        let what = format!("look up volume {name:?}");
        let mut found = Vec::new();
        let mut next = Some(query(&[("name", name)]));
        let mut pages = Pages::default();
        while let Some(query) = next {
            let page: VolumePage = self.volume_page(&what, query).await?;
            next = pages.after(&what, page.next)?;
            found.extend(page.volumes.into_iter().filter(|volume| volume.name == name));
        }
        Ok(found)
    }

    /// One page of all volumes of the project, of which only a `T` each is kept. `next` is `None` at
    /// first, then what the page before said.
    pub async fn list_page<T: From<Volume> + Send>(
        &self,
        next: Option<&str>,
    ) -> Result<VolumePage<T>, CloudError> {
        let query = next.map_or_else(|| query(&[("limit", PAGE)]), ToOwned::to_owned);
        self.volume_page("list the volumes", query).await
    }

    async fn volume_page<T: From<Volume> + Send>(
        &self,
        what: &str,
        query: String,
    ) -> Result<VolumePage<T>, CloudError> {
        let call = Call::list(Service::BlockStorage, what, "/volumes/detail", Some(query));
        let mut page = Page::<Picked<T>>::of("volumes");
        let answer = self.inner.sessions.send_into(&call, &mut page).await?;
        let (rows, rest) = page.end().map_err(|at| {
            let reason = format!("its answer is not the expected JSON (byte {at})");
            answer.unexpected(&call, &reason)
        })?;
        Ok(VolumePage {
            volumes: rows.into_iter().filter_map(|picked| picked.0).collect(),
            next: rest.get("volumes_links").and_then(next_query),
        })
    }

    /// `POST /volumes`. Ambiguous answers are the caller's to resolve (by nonce in the metadata).
    pub async fn create_volume(&self, volume: &CreateVolume) -> Result<Volume, CloudError> {
        let what = format!("create volume {:?}", volume.name);
        let body = Some(volume.to_json());
        let call = Call {
            // It is about a type, zone, snapshot, … that the body names.
            missing_is_an_answer: false,
            microversion: volume.backup_id.as_ref().map(|_| CREATE_FROM_BACKUP),
            ..Call::effect(Method::POST, what, "/volumes", body, &[200, 202])
        };
        // Cinder shows what it was given; an answer about another volume would pass for ours.
        self.one_volume(&call, |made| {
            made.name == volume.name
                && volume.metadata.iter().all(|(key, value)| made.metadata.get(key) == Some(value))
        })
        .await
    }

    async fn one_volume(
        &self,
        call: &Call,
        is_meant: impl Fn(&Volume) -> bool,
    ) -> Result<Volume, CloudError> {
        let answer = self.send(call).await?;
        let raw: OneVolume = answer.json(call)?;
        match raw.volume.usable() {
            Some(volume) if is_meant(&volume) => Ok(volume),
            Some(_) => Err(answer.unexpected(call, "its answer is about another volume")),
            None => Err(answer.unexpected(call, "its volume has no usable id")),
        }
    }

    /// `DELETE /volumes/ID`. A 404 is [`super::CloudErrorKind::NotFound`].
    pub async fn delete_volume(&self, id: Uuid) -> Result<(), CloudError> {
        let what = format!("delete volume {id}");
        let path = format!("/volumes/{id}");
        self.send(&Call::effect(Method::DELETE, what, path, None, &[202, 204])).await?;
        Ok(())
    }

    /// Whether this cloud extends volumes while they are in use (3.42); its highest microversion.
    pub async fn extends_in_use(&self) -> Result<(bool, Option<(u32, u32)>), CloudError> {
        let highest = self.max_microversion().await?;
        Ok((highest.is_some_and(|highest| highest >= EXTEND_IN_USE), highest))
    }

    /// Begins to make a volume larger (os-extend): `size` GiB. Success means that it is `extending`,
    /// no more. Without `in_use` only an available volume is taken, whoever is faster.
    ///
    /// The answer may be lost: whether it happened, the volume shows.
    pub async fn extend_volume(&self, id: Uuid, size: u64, in_use: bool) -> Result<(), CloudError> {
        let call = Call {
            microversion: in_use.then_some(EXTEND_IN_USE),
            ..Call::effect(
                Method::POST,
                format!("extend volume {id}"),
                format!("/volumes/{id}/action"),
                Some(json!({ "os-extend": { "new_size": size } })),
                &[202],
            )
        };
        let answer = self.send(&call).await?;
        match answer.is_empty() {
            true => Ok(()),
            false => Err(answer.unexpected(&call, "a body where Cinder sends none")),
        }
    }

    /// Sets these metadata keys, keeps the others (`POST /volumes/ID/metadata`). Idempotent, so it
    /// is repeated when ambiguous.
    pub async fn set_metadata(
        &self,
        id: Uuid,
        metadata: &BTreeMap<String, String>,
    ) -> Result<(), CloudError> {
        let call = Call {
            repeat: Repeat::Always,
            ..Call::effect(
                Method::POST,
                format!("write metadata of volume {id}"),
                format!("/volumes/{id}/metadata"),
                Some(json!({ "metadata": metadata })),
                &[200],
            )
        };
        let answer = self.send(&call).await?;
        // Cinder answers with all the metadata: proof that it is Cinder, and that it is written.
        let now: Value = answer.json(&call)?;
        let written = metadata.iter().all(|(key, value)| now["metadata"][key] == value.as_str());
        if written { Ok(()) } else { Err(answer.unexpected(&call, "the metadata did not change")) }
    }

    /// Gives a volume another name (`PUT /volumes/ID`). Idempotent, so it is repeated when ambiguous.
    pub async fn rename_volume(&self, id: Uuid, name: &str) -> Result<Volume, CloudError> {
        let call = Call {
            repeat: Repeat::Always,
            ..Call::effect(
                Method::PUT,
                format!("rename volume {id} to {name:?}"),
                format!("/volumes/{id}"),
                Some(json!({ "volume": { "name": name } })),
                &[200],
            )
        };
        self.one_volume(&call, |volume| volume.id == id && volume.name == name).await
    }

    /// A backup by id or by exact name. Several of one name: an error that lists the ids.
    pub async fn backup(&self, name_or_id: &str) -> Result<Backup, CloudError> {
        self.by_id_or_name("backup", name_or_id, Backup::read, |one| (&one.id, &one.name)).await
    }

    /// Whether this Cinder makes volumes from backups itself (3.47).
    pub async fn creates_from_backup(&self) -> Result<bool, CloudError> {
        Ok(self.max_microversion().await? >= Some(CREATE_FROM_BACKUP))
    }

    /// Writes a backup over an available volume (`POST /backups/ID/restore`); it is not finished at
    /// once, and the volume is `restoring-backup` until it is.
    pub async fn restore_backup(&self, backup: &str, volume: Uuid) -> Result<(), CloudError> {
        let call = Call {
            missing_is_an_answer: false,
            ..Call::effect(
                Method::POST,
                format!("restore backup {backup} to volume {volume}"),
                format!("/backups/{backup}/restore"),
                Some(json!({ "restore": { "volume_id": volume } })),
                &[202],
            )
        };
        let answer = self.send(&call).await?;
        let body: Value = answer.json(&call)?;
        match body["restore"]["volume_id"] == volume.to_string() {
            true => Ok(()),
            false => Err(answer.unexpected(&call, "its answer is about another volume")),
        }
    }

    /// The availability zones that take new volumes (`GET /os-availability-zone`).
    pub async fn availability_zones(&self) -> Result<Vec<String>, CloudError> {
        let rows = self
            .rows(
                Service::BlockStorage,
                "list the availability zones",
                "/os-availability-zone",
                "availabilityZoneInfo",
                String::new(),
                None,
            )
            .await?;
        let usable = rows.iter().filter(|row| row["zoneState"]["available"] == true);
        Ok(usable.filter_map(|row| text(&row["zoneName"])).collect())
    }

    /// What the project may have and has (`GET /limits`).
    pub async fn limits(&self) -> Result<Limits, CloudError> {
        let call = Call::list(Service::BlockStorage, "read the quota", "/limits", None);
        let answer = self.send(&call).await?;
        let body: Value = answer.json(&call)?;
        let absolute = &body["limits"]["absolute"];
        if !absolute.is_object() {
            return Err(answer.unexpected(&call, "its answer has no limits"));
        }
        // -1 is no limit.
        let limit = |key: &str| absolute[key].as_u64();
        let used = |key: &str| absolute[key].as_u64().unwrap_or_default();
        Ok(Limits {
            volumes: (used("totalVolumesUsed"), limit("maxTotalVolumes")),
            gigabytes: (used("totalGigabytesUsed"), limit("maxTotalVolumeGigabytes")),
        })
    }

    /// A snapshot by id or by exact name. Several of one name: an error that lists the ids.
    pub async fn snapshot(&self, name_or_id: &str) -> Result<Snapshot, CloudError> {
        self.by_id_or_name("snapshot", name_or_id, Snapshot::read, |one| (&one.id, &one.name)).await
    }

    async fn by_id_or_name<T>(
        &self,
        kind: &str,
        name_or_id: &str,
        read: fn(&Value) -> Option<T>,
        id_and_name: fn(&T) -> (&String, &String),
    ) -> Result<T, CloudError> {
        let what = format!("look up {kind} {name_or_id:?}");
        if let Ok(id) = Uuid::parse_str(name_or_id) {
            let call = Call::read(Service::BlockStorage, &*what, format!("/{kind}s/{id}"));
            match self.send(&call).await {
                Ok(answer) => {
                    let body: Value = answer.json(&call)?;
                    return read(&body[kind])
                        .ok_or_else(|| answer.unexpected(&call, &format!("its {kind} has no id")));
                }
                // A name may look like an id.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let (path, key) = (format!("/{kind}s/detail"), format!("{kind}s"));
        let named = query(&[("name", name_or_id)]);
        let rows = self.rows(Service::BlockStorage, &what, &path, &key, named, None).await?;
        let found = rows.iter().filter_map(read).filter(|one| id_and_name(one).1 == name_or_id);
        the_only_one(kind, name_or_id, found.collect(), |one| id_and_name(one).0)
    }

    /// Every snapshot of a volume, or of the project.
    pub async fn snapshots(&self, volume: Option<Uuid>) -> Result<Vec<Snapshot>, CloudError> {
        let id = volume.map(|id| id.to_string());
        let (what, query) = match &id {
            Some(id) => (format!("list the snapshots of volume {id}"), query(&[("volume_id", id)])),
            None => ("list the snapshots".to_owned(), query(&[("limit", PAGE)])),
        };
        let path = "/snapshots/detail";
        let rows = self.rows(Service::BlockStorage, &what, path, "snapshots", query, None).await?;
        let all = rows.iter().filter_map(Snapshot::read);
        // Cinder may ignore the filter.
        Ok(all.filter(|one| id.as_ref().is_none_or(|id| one.volume_id == *id)).collect())
    }

    /// One snapshot by its id. A 404 is [`super::CloudErrorKind::NotFound`].
    pub async fn snapshot_by_id(&self, id: &str) -> Result<Snapshot, CloudError> {
        let what = format!("read snapshot {id}");
        let call = Call::read(Service::BlockStorage, what, format!("/snapshots/{id}"));
        let answer = self.send(&call).await?;
        let body: Value = answer.json(&call)?;
        Snapshot::read(&body["snapshot"])
            .filter(|snapshot| snapshot.id == id)
            .ok_or_else(|| answer.unexpected(&call, "its answer is about another snapshot"))
    }

    /// `POST /snapshots`, by force where the volume is `in_use`. Success means that the snapshot is
    /// being made. Ambiguous answers are the caller's to resolve (by nonce in the metadata).
    pub async fn create_snapshot(
        &self,
        volume: Uuid,
        name: &str,
        metadata: &BTreeMap<String, String>,
        in_use: bool,
    ) -> Result<Snapshot, CloudError> {
        let mut body = json!({ "volume_id": volume, "name": name, "metadata": metadata });
        if in_use {
            // At the oldest microversion: from 3.66 on it may not be said any more.
            body["force"] = true.into();
        }
        let call = Call {
            // It is about the volume that the body names.
            missing_is_an_answer: false,
            ..Call::effect(
                Method::POST,
                format!("take a snapshot of volume {volume}"),
                "/snapshots",
                Some(json!({ "snapshot": body })),
                &[200, 202],
            )
        };
        let answer = self.send(&call).await?;
        let body: Value = answer.json(&call)?;
        Snapshot::read(&body["snapshot"])
            .filter(|made| made.volume_id == volume.to_string() && made.name == name)
            .ok_or_else(|| answer.unexpected(&call, "its answer is about another snapshot"))
    }

    /// `DELETE /snapshots/ID`. Success means that it is being deleted; a 404 is
    /// [`super::CloudErrorKind::NotFound`].
    pub async fn delete_snapshot(&self, id: &str) -> Result<(), CloudError> {
        let what = format!("delete snapshot {id}");
        let path = format!("/snapshots/{id}");
        self.send(&Call::effect(Method::DELETE, what, path, None, &[202, 204])).await?;
        Ok(())
    }

    /// Id of an image given by id or exact name (Glance from the catalog; an id is taken as such).
    pub async fn image_id(&self, name_or_id: &str) -> Result<String, CloudError> {
        if Uuid::parse_str(name_or_id).is_ok() {
            return Ok(name_or_id.to_owned());
        }
        let what = format!("look up image {name_or_id:?}");
        let named = query(&[("name", name_or_id)]);
        let rows = self.rows(Service::Image, &what, "/images", "images", named, None).await?;
        let ids = rows.iter().filter(|row| row["name"] == name_or_id);
        let ids = ids.filter_map(|row| text(&row["id"])).collect();
        the_only_one("image", name_or_id, ids, |id| id)
    }

    /// Cinder's user messages about a volume or snapshot, newest first (3.3); empty where there are
    /// none.
    pub async fn messages(&self, volume_id: Uuid) -> Result<Vec<String>, CloudError> {
        let Some(highest) = self.max_microversion().await?.filter(|highest| *highest >= MESSAGES)
        else {
            return Ok(Vec::new());
        };
        let id = volume_id.to_string();
        let rows = self
            .rows(
                Service::BlockStorage,
                &format!("read the messages about volume {id}"),
                "/messages",
                "messages",
                query(&[("resource_uuid", &id)]),
                Some(highest.min(MESSAGE_FILTERS)),
            )
            .await?;
        let mut messages: Vec<_> = rows
            .iter()
            .filter(|row| row["resource_uuid"] == id.as_str())
            .filter_map(|row| {
                Some((text(&row["created_at"])?, one_line(&text(&row["user_message"])?)))
            })
            .collect();
        messages.sort_by(|one, other| other.0.cmp(&one.0));
        Ok(messages.into_iter().map(|(_, message)| message).collect())
    }

    /// All rows of a list, to its last page.
    pub(super) async fn rows(
        &self,
        service: Service,
        what: &str,
        path: &str,
        key: &str,
        query: String,
        microversion: Option<Microversion>,
    ) -> Result<Vec<Value>, CloudError> {
        let mut rows = Vec::new();
        let mut pages = Pages::default();
        let mut next = Some(query);
        while let Some(query) = next {
            let call = Call { microversion, ..Call::list(service, what, path, Some(query)) };
            let answer = self.send(&call).await?;
            let mut page: Value = answer.json(&call)?;
            let Value::Array(found) = page[key].take() else {
                return Err(answer.unexpected(&call, &format!("its answer has no list {key:?}")));
            };
            rows.extend(found);
            // Glance gives the link by itself, Cinder among others.
            let following = match page["next"].as_str() {
                Some(link) => query_of(link),
                None => next_query(&page[format!("{key}_links")]),
            };
            next = pages.after(what, following)?;
        }
        Ok(rows)
    }

    /// Sends a call to its service, with the shared token.
    pub(super) async fn send(&self, call: &Call) -> Result<Answer, CloudError> {
        self.inner.sessions.send(call).await
    }

    /// Highest microversion of the block storage API, asked once.
    pub(super) async fn max_microversion(&self) -> Result<Option<Microversion>, CloudError> {
        self.inner.sessions.highest_microversion().await
    }

    /// Whether this Cinder has refused an attachment without an instance.
    pub(super) fn needs_instance_uuid(&self) -> bool {
        self.inner.needs_instance_uuid.load(Ordering::Relaxed)
    }

    pub(super) fn remember_that_it_needs_instance_uuid(&self) {
        self.inner.needs_instance_uuid.store(true, Ordering::Relaxed);
    }
}

#[derive(Deserialize)]
pub(super) struct OneVolume {
    pub(super) volume: RawVolume,
}

/// Watches that a list comes to its end.
#[derive(Default)]
struct Pages {
    seen: HashSet<String>,
}

impl Pages {
    fn after(&mut self, what: &str, next: Option<String>) -> Result<Option<String>, CloudError> {
        if let Some(next) = &next
            && (self.seen.len() >= MOST_PAGES || !self.seen.insert(next.clone()))
        {
            return Err(CloudError::new(
                CloudErrorKind::Ambiguous,
                format!("cannot {what}: the pages of Cinder's list come to no end"),
            ));
        }
        Ok(next)
    }
}

/// The query of the `next` link. Only that: its host and path are those of a public address that
/// may not be ours, and the token goes to no other host.
pub(super) fn next_query(links: &Value) -> Option<String> {
    let links = links.as_array()?;
    query_of(links.iter().find(|link| link["rel"] == "next")?["href"].as_str()?)
}

fn query_of(link: &str) -> Option<String> {
    let (_, query) = link.split_once('?')?;
    Some(query.split('#').next().unwrap_or_default().to_owned())
}

pub(super) fn query(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

fn the_only_one<T>(
    kind: &str,
    name: &str,
    mut found: Vec<T>,
    id: impl Fn(&T) -> &String,
) -> Result<T, CloudError> {
    if found.len() > 1 {
        let ids: Vec<_> = found.iter().map(|one| id(one).as_str()).collect();
        return Err(CloudError::new(
            CloudErrorKind::BadRequest,
            format!(
                "{} {kind}s are named {name:?}: give one of the ids {}",
                found.len(),
                ids.join(", ")
            ),
        ));
    }
    found.pop().ok_or_else(|| {
        CloudError::new(CloudErrorKind::NotFound, format!("there is no {kind} named {name:?}"))
    })
}
