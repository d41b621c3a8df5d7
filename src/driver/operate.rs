//! What the operator of this host can ask for: the ways out that errors name (release, format,
//! accept-uuid), prove-failover, resize and snapshots.
//!
//! What destroys something is asked twice: without the volume's id it says what it would do and
//! changes nothing for good; with the id it does it.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::attach::{Connected, Reserved};
use super::metadata::{self, FormatState, MountSettings};
use super::release::{DOUBTFUL_FOR, unchanged_for};
use super::{Driver, DriverError, VolumeName};
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
            _ if operation == Operation::DeleteSnapshot => false,
            None => false,
            Some(id) if Uuid::parse_str(id) == Ok(volume.id) => true,
            Some(_) => {
                return Err(DriverError::BadRequest(format!(
                    "the id given is not the volume's ({}); nothing was done",
                    volume.id
                )));
            }
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
