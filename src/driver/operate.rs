//! What the operator of this host can ask for: the ways out that errors name (release, format,
//! accept-uuid), prove-failover, adopt, resize and snapshots.
//!
//! What destroys something is asked twice: without the volume's id it says what it would do and
//! changes nothing for good; with the id it does it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::attach::{Connected, Reserved};
use super::metadata::{self, FormatState, MountSettings};
use super::prepare::choose_partition;
use super::release::{DOUBTFUL_FOR, unchanged_for};
use super::{Driver, DriverError, VolumeName, report};
use crate::docker::{Arguments, Caller, Operation};
use crate::error_chain::Chain;
use crate::host::filesystem::probe::{self, BlankProof, Contents};
use crate::openstack::{AttachFlow, Reservation, Volume, VolumeStatus};

/// What a request is answered with.
#[derive(Debug)]
pub(super) struct Answer {
    /// The id that confirms it: the volume's, or a snapshot's that is to be deleted.
    pub volume: Uuid,
    /// Sentences for the operator.
    pub says: Vec<String>,
    /// Whether it was done.
    pub done: bool,
}

impl Answer {
    fn into_json(self) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("ID".into(), json!(self.volume));
        map.insert("Says".into(), json!(self.says));
        map.insert("Done".into(), json!(self.done));
        map
    }
}

impl Driver {
    pub(super) async fn operate_on(
        &self,
        caller: &Caller,
        operation: Operation,
        name: &str,
        arguments: &Arguments,
    ) -> Result<Map<String, Value>, DriverError> {
        let name = VolumeName::parse(name)?;
        let volume = self.find_known(&name).await?;
        let confirmed = match arguments.id.as_deref() {
            // Its id is the snapshot's.
            _ if operation == Operation::DeleteSnapshot => false,
            id => is_confirmed(&volume, id)?,
        };
        let _guard = self.volumes.lock_for(&volume.id, caller, name.as_str()).await?;
        let answer = match operation {
            Operation::Release => self.release_by_hand(&volume, confirmed).await?,
            Operation::Format => {
                Box::pin(self.with_device(&name, &volume, |connected| {
                    self.format_by_hand(connected, confirmed)
                }))
                .await?
            }
            Operation::AcceptUuid => {
                Box::pin(self.with_device(&name, &volume, |connected| {
                    self.accept_uuid(connected, confirmed)
                }))
                .await?
            }
            Operation::ProveFailover => {
                Box::pin(self.prove_failover(&name, &volume, confirmed)).await?
            }
            Operation::Resize => {
                let size = arguments.size.as_deref();
                Box::pin(self.resize_volume(&name, volume.id, size)).await?
            }
            Operation::Snapshot => {
                let snapshot = arguments.snapshot.as_deref();
                Box::pin(self.snapshot_volume(&name, volume.id, snapshot)).await?
            }
            Operation::DeleteSnapshot => {
                Box::pin(self.delete_snapshot_of(&volume, arguments)).await?
            }
        };
        Ok(answer.into_json())
    }

    /// Takes the volume from whoever has it, here or elsewhere, because the operator says so.
    async fn release_by_hand(
        &self,
        volume: &Volume,
        confirmed: bool,
    ) -> Result<Answer, DriverError> {
        let mut says = Vec::new();
        let entry = self.journal.get(volume.id)?;
        if let Some(entry) = entry.filter(|entry| entry.has_liabilities()) {
            let entry = self.settle_references(&entry).await?;
            let held = match &entry.mount {
                Some(record) => self.holders(record).await,
                None => Vec::new(),
            };
            if entry.users() > 0 || !held.is_empty() {
                return Err(DriverError::Refused(
                    "it is in use on this very host: stop its containers instead".to_owned(),
                ));
            }
            says.push("it is held by this host, and nobody here uses it".to_owned());
            if confirmed {
                let outcome = self.let_go(volume.id, false).await?;
                if let Some(error) = outcome.cloud_error {
                    return Err(error);
                }
            }
            return Ok(Answer { volume: volume.id, says, done: confirmed });
        }
        for attachment in &volume.attachments {
            says.push(format!(
                "attachment {} of {} is deleted; that host must not run any more, or its writes \
                 and the next host's destroy the filesystem",
                attachment.attachment_id,
                super::mount::shown_holder(attachment)
            ));
        }
        if volume.attachments.is_empty() {
            says.push(reservation_to_free(volume)?);
        }
        if confirmed {
            self.free(volume).await?;
        }
        Ok(Answer { volume: volume.id, says, done: confirmed })
    }

    /// Takes a volume from a host that is gone, if it is held exactly as the operator was shown:
    /// between the showing and the word of the operator a living host may have come.
    pub(super) async fn release_from(
        &self,
        caller: &Caller,
        id: &str,
        host: &str,
        shown: &[String],
    ) -> Result<Value, DriverError> {
        let id = Uuid::parse_str(id)
            .map_err(|_| DriverError::BadRequest("that is no volume's id".to_owned()))?;
        if host == self.host.identity.host {
            return Err(DriverError::Refused(format!(
                "{host} is this very host: stop the containers that use its volumes instead"
            )));
        }
        let _guard = self.volumes.lock_for(&id, caller, &id.to_string()).await?;
        let volume =
            self.volume_if_any(id).await?.ok_or_else(|| DriverError::NotFound(id.to_string()))?;
        if self.journal.get(id)?.is_some_and(|entry| entry.has_liabilities()) {
            return Err(DriverError::Refused("this host holds it, too".to_owned()));
        }
        let held: Vec<_> = volume
            .attachments
            .iter()
            .map(|attachment| (&attachment.attachment_id, report::holder_of(attachment).0))
            .collect();
        let as_shown = held.len() == shown.len()
            && held.iter().all(|(id, holder)| shown.contains(id) && *holder == Some(host));
        if !as_shown || held.is_empty() {
            return Err(DriverError::Refused(format!(
                "what holds it is not what was shown: now it is {}; nothing was done",
                match volume.attachments.first() {
                    Some(attachment) => super::mount::shown_holder(attachment),
                    None => format!("{} in Cinder", volume.status),
                }
            )));
        }
        self.free(&volume).await?;
        let says = [format!("\"{}\" is taken from {host}", shown_name(&volume))];
        Ok(report::answer(id, &says, true))
    }

    /// Takes a volume that was made elsewhere into the driver's care: it gets our mark, so that it is
    /// listed, and removed by `docker volume rm`, and the UUID of its filesystem, so that no other is
    /// ever taken for it. Nothing of what is on it changes.
    pub(super) async fn adopt_by_hand(
        &self,
        caller: &Caller,
        given: &str,
        new_name: &str,
        confirmed: Option<&str>,
    ) -> Result<Value, DriverError> {
        let volume = report::find_any(&self.cloud, given).await?;
        let confirmed = is_confirmed(&volume, confirmed)?;
        let name = self.name_after_adoption(&volume, new_name).await?;
        let _guard = self.volumes.lock_for(&volume.id, caller, name.as_str()).await?;
        if self.is_of_other_cluster(&volume) {
            return Err(self.of_other_cluster(&volume));
        }
        if self.is_ours(&volume) {
            return Err(DriverError::Refused(
                "it is in the driver's care already: there is nothing to adopt".to_owned(),
            ));
        }
        if let Some(attachment) = volume.attachments.first() {
            return Err(DriverError::Refused(format!(
                "volume {} is in use: it is attached to {}",
                volume.id,
                super::mount::shown_holder(attachment)
            )));
        }
        let answer = Box::pin(self.with_device(&name, &volume, |connected| {
            self.adopt_connected(connected, &name, confirmed)
        }))
        .await?;
        if answer.done {
            let volume = self.cloud.volume(volume.id).await?;
            self.remember(&name, &volume).await?;
        }
        Ok(Value::Object(answer.into_json()))
    }

    /// The name by which Docker will know it. No other volume may have it.
    async fn name_after_adoption(
        &self,
        volume: &Volume,
        new_name: &str,
    ) -> Result<VolumeName, DriverError> {
        if new_name.is_empty() {
            return VolumeName::parse(&volume.name).map_err(|_| {
                DriverError::Refused(format!(
                    "its name in Cinder, \"{}\", is none that Docker can say: give it another, \
                     \"cinder-docker-driver adopt {} NEW-NAME\"",
                    crate::shown::shown(&volume.name),
                    volume.id
                ))
            });
        }
        let name = VolumeName::parse(new_name)?;
        let others = self.cloud.volumes_named(new_name).await?;
        let is_twin = |other: &&Volume| {
            other.id != volume.id
                && other.status != VolumeStatus::Deleting
                && !self.is_of_other_cluster(other)
        };
        match others.iter().find(is_twin) {
            Some(other) => Err(DriverError::Refused(format!(
                "there is a volume named \"{name}\" already, {}: choose another name",
                other.id
            ))),
            None => Ok(name),
        }
    }

    async fn adopt_connected(
        &self,
        Connected { device, volume }: Connected,
        name: &VolumeName,
        confirmed: bool,
    ) -> Result<Answer, DriverError> {
        let settings = MountSettings::of(&volume)?;
        let contents = match probe::probe(&device).await? {
            Contents::Partitions(partitions) => {
                let chosen = choose_partition(&partitions, settings.partition);
                (*chosen.map_err(DriverError::Refused)?.contents).clone()
            }
            contents => contents,
        };
        let Contents::Filesystem(filesystem) = contents else {
            return Err(DriverError::Refused(format!(
                "volume {} holds {}, and only a volume with a filesystem that this driver knows \
                 (ext4, xfs, btrfs) is adopted; nothing was changed",
                volume.id,
                shown(&contents)
            )));
        };
        match FormatState::of(&volume)? {
            None => {}
            Some(FormatState::Formatted(uuid)) if uuid == filesystem.uuid => {}
            Some(state) => {
                return Err(DriverError::Refused(format!(
                    "its metadata says {state}, but it holds an {} filesystem with UUID {}: see \
                     \"cinder-docker-driver accept-uuid\"",
                    filesystem.mount_type, filesystem.uuid
                )));
            }
        }
        let mut says = vec![format!(
            "volume {} ({} GiB) holds an {} filesystem with UUID {}, which stays as it is",
            volume.id, volume.size, filesystem.mount_type, filesystem.uuid
        )];
        if volume.name != name.as_str() {
            let old = crate::shown::shown(&volume.name);
            says.push(format!("in Cinder it is renamed from \"{old}\" to \"{name}\""));
        }
        says.push(format!(
            "it becomes this driver's: \"docker volume ls\" lists it, and \"docker volume rm {name}\" \
             will delete it with all that is on it"
        ));
        if confirmed {
            // The name first: what breaks off between the two is adopted by the same command again.
            if volume.name != name.as_str() {
                self.cloud.rename_volume(volume.id, name.as_str()).await?;
            }
            let nonce = metadata::nonce(&volume).unwrap_or_else(Uuid::new_v4);
            let mut marks = BTreeMap::from([
                (metadata::NONCE.to_owned(), nonce.to_string()),
                (metadata::FORMAT.to_owned(), FormatState::Formatted(filesystem.uuid).to_string()),
            ]);
            if let Some(cluster) = &self.settings.cluster {
                marks.insert(metadata::CLUSTER.to_owned(), cluster.clone());
            }
            if volume.metadata.contains_key(metadata::RETAINED) {
                marks.insert(metadata::RETAINED.to_owned(), String::new());
            }
            self.cloud.set_metadata(volume.id, &marks).await?;
        }
        Ok(Answer { volume: volume.id, says, done: confirmed })
    }

    async fn free(&self, volume: &Volume) -> Result<(), DriverError> {
        // The actions flow leaves its connector in the metadata; without it, it is the other flow.
        let connector: Option<Value> = volume
            .metadata
            .get(metadata::CONNECTOR)
            .and_then(|text| serde_json::from_str(text).ok());
        if volume.attachments.is_empty() {
            return self.free_reservation(volume, connector.as_ref()).await;
        }
        for attachment in &volume.attachments {
            let id = &attachment.attachment_id;
            let by_instance = attachment.server_id.is_some();
            match &connector {
                Some(connector) if by_instance => {
                    self.cloud.release(AttachFlow::Actions, volume.id, id, connector).await?;
                }
                _ => {
                    self.cloud
                        .release(AttachFlow::Attachments, volume.id, id, &Value::Null)
                        .await?;
                }
            }
        }
        Ok(())
    }

    async fn free_reservation(
        &self,
        volume: &Volume,
        connector: Option<&Value>,
    ) -> Result<(), DriverError> {
        // Attachments that are only reserved are not in the volume.
        let rows = self.cloud.attachments_of(volume.id).await.unwrap_or_default();
        for row in &rows {
            self.cloud.release(AttachFlow::Attachments, volume.id, &row.id, &Value::Null).await?;
        }
        if rows.is_empty() {
            let reservation = Reservation {
                flow: AttachFlow::Actions,
                volume_id: volume.id,
                attachment_id: None,
            };
            self.cloud.unreserve(&reservation, connector).await?;
        }
        Ok(())
    }

    /// Attaches the volume here for the time of `work`, without mounting it.
    async fn with_device<F>(
        &self,
        name: &VolumeName,
        volume: &Volume,
        work: impl FnOnce(Connected) -> F,
    ) -> Result<Answer, DriverError>
    where
        F: Future<Output = Result<Answer, DriverError>>,
    {
        let not_free = || {
            DriverError::Refused(format!(
                "volume {} is {} in Cinder: it must be available, with no container using it",
                volume.id, volume.status
            ))
        };
        let held_here = self.journal.get(volume.id)?.is_some_and(|entry| entry.has_liabilities());
        if volume.status != VolumeStatus::Available || held_here {
            return Err(not_free());
        }
        let reservation = match self.reserve(name, volume).await? {
            Reserved::Ours(reservation) => reservation,
            Reserved::Taken(error) => return Err(error),
        };
        let answer = match Box::pin(self.connect_reserved(name, volume, &reservation)).await {
            Ok(connected) => work(connected).await,
            Err(error) => Err(error),
        };
        let outcome = self.let_go(volume.id, true).await;
        self.work.notify_one();
        match (answer, outcome) {
            (Ok(answer), Ok(outcome)) => outcome.cloud_error.map_or(Ok(answer), Err),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    }

    async fn format_by_hand(
        &self,
        Connected { device, volume }: Connected,
        confirmed: bool,
    ) -> Result<Answer, DriverError> {
        let found = match probe::probe(&device).await {
            Ok(contents) => shown(&contents),
            Err(error) => format!("something that cannot be read ({})", Chain(&error)),
        };
        let settings = MountSettings::of(&volume)?;
        let fs = settings.fs.unwrap_or_else(|| self.default_fs());
        let says = vec![
            format!("volume {} ({} GiB) holds {found}", volume.id, volume.size),
            format!("all of it is erased, and an empty {fs} filesystem is made"),
        ];
        if confirmed {
            self.format(&volume, &settings, device, BlankProof::OursDirty).await?;
            let id = volume.id;
            self.journal.update_regardless(id, |entry| entry.formatting = None).await?;
        }
        Ok(Answer { volume: volume.id, says, done: confirmed })
    }

    async fn accept_uuid(
        &self,
        Connected { device, volume }: Connected,
        confirmed: bool,
    ) -> Result<Answer, DriverError> {
        let contents = probe::probe(&device).await?;
        let Contents::Filesystem(filesystem) = contents else {
            return Err(DriverError::Refused(format!(
                "it holds {}, so there is no UUID to accept",
                shown(&contents)
            )));
        };
        let recorded = FormatState::of(&volume)?
            .map_or_else(|| "nothing".to_owned(), |state| state.to_string());
        let says = vec![format!(
            "volume {} holds an {} filesystem with UUID {}; its metadata says {recorded} and is set \
             to this UUID",
            volume.id, filesystem.fs_type, filesystem.uuid
        )];
        if confirmed {
            self.set_format(volume.id, FormatState::Formatted(filesystem.uuid)).await?;
        }
        Ok(Answer { volume: volume.id, says, done: confirmed })
    }
}

/// Whether the operator has said the volume's id. Another one is an error.
fn is_confirmed(volume: &Volume, id: Option<&str>) -> Result<bool, DriverError> {
    match id {
        None => Ok(false),
        Some(id) if Uuid::parse_str(id) == Ok(volume.id) => Ok(true),
        Some(_) => Err(DriverError::BadRequest(format!(
            "the id given is not the volume's ({}); nothing was done",
            volume.id
        ))),
    }
}

fn shown_name(volume: &Volume) -> String {
    crate::shown::shown(&volume.name)
}

/// A reservation may be freed by hand once it has stood unchanged for a while: until then some
/// host may be about to use it.
fn reservation_to_free(volume: &Volume) -> Result<String, DriverError> {
    let status = &volume.status;
    match volume.status {
        VolumeStatus::Reserved | VolumeStatus::Attaching | VolumeStatus::Detaching => {}
        _ => {
            return Err(DriverError::Refused(format!(
                "volume {} is {status}: there is nothing to release",
                volume.id
            )));
        }
    }
    match unchanged_for(volume) {
        Some(stood) if stood >= DOUBTFUL_FOR => Ok(format!(
            "it is {status} since {} minutes, by a host that is not known; it is set free",
            stood.as_secs() / 60
        )),
        _ => Err(DriverError::Refused(format!(
            "volume {} is {status} for less than {} minutes: some host may be at it; try again \
             later",
            volume.id,
            DOUBTFUL_FOR.as_secs() / 60
        ))),
    }
}

fn shown(contents: &Contents) -> String {
    match contents {
        Contents::NoSignature => "nothing that is known".to_owned(),
        Contents::Filesystem(filesystem) => {
            format!("an {} filesystem with UUID {}", filesystem.mount_type, filesystem.uuid)
        }
        Contents::Partitions(partitions) => {
            format!("a partition table with {} partitions", partitions.len())
        }
        Contents::Unfinished { what, .. } | Contents::Other(what) => what.clone(),
    }
}
