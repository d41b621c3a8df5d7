//! Remove: deletes volumes that this driver made, or keeps them under another name where their
//! create said so; and says why not otherwise.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::metadata::{self, OnRemove};
use super::pace::Pace;
use super::{Driver, DriverError, VolumeName};
use crate::docker::Caller;
use crate::error_chain::Chain;
use crate::openstack::{Volume, VolumeStatus};

/// A volume that is `deleting` for this long is left to Cinder: it finishes alone.
const DELETING_PATIENCE: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) async fn remove_volume(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<(), DriverError> {
        let name = VolumeName::parse(name)?;
        if let Some(entry) = self.journal.by_name(name.as_str()) {
            let _guard = self.volumes.lock_for(&entry.volume_id, caller, name.as_str()).await?;
            self.let_go_for_remove(entry.volume_id).await?;
        }
        let volume = match self.find_known(&name).await {
            Ok(volume) => volume,
            Err(DriverError::NotFound(gone)) => {
                note_unforgotten(&name, self.forget_name(&gone).await);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let _guard = self.volumes.lock_for(&volume.id, caller, name.as_str()).await?;
        // A Mount may have come between; what is held here is never deleted.
        self.let_go_for_remove(volume.id).await?;
        check_unused(&name, &volume)?;
        let kept = match OnRemove::of(&volume)? {
            OnRemove::Delete => None,
            what => metadata::retained(&volume).is_none().then_some(what),
        };
        if let Some(what) = kept {
            self.retain(&name, &volume, what).await?;
            note_unforgotten(
                &name,
                self.journal.forget(volume.id).await.map_err(DriverError::from),
            );
            return Ok(());
        }
        self.check_deletable(&volume)?;
        match self.cloud.delete_volume(volume.id).await {
            Ok(()) => self.until_deleted(volume.id).await?,
            Err(error) if error.is_not_found() => {}
            Err(error) if error.is_ambiguous() => {
                tracing::warn!(volume = name.as_str(), %error, "the answer to the deletion is unclear");
                self.until_deleted(volume.id).await?;
            }
            Err(error) => return Err(error.into()),
        }
        note_unforgotten(&name, self.journal.forget(volume.id).await.map_err(DriverError::from));
        Ok(())
    }

    /// Refuses while the volume is really used here; cleans up what is left of it otherwise.
    async fn let_go_for_remove(&self, id: Uuid) -> Result<(), DriverError> {
        let Some(entry) = self.journal.get(id)? else { return Ok(()) };
        if !entry.has_liabilities() {
            return Ok(());
        }
        let entry = self.settle_references(&entry).await?;
        if entry.users() > 0 && self.is_mounted(&entry)? {
            return Err(DriverError::Refused(format!(
                "it is mounted on this host and used by {}: stop those containers first",
                shown_users(&entry.references)
            )));
        }
        let outcome = self.let_go(id, false).await?;
        if let Some(holder) = outcome.held.first() {
            return Err(DriverError::Refused(format!(
                "a container on this host still has it mounted (process {}, {}): stop it first",
                holder.pid, holder.command
            )));
        }
        match outcome.cloud_error {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn check_deletable(&self, volume: &Volume) -> Result<(), DriverError> {
        if self.settings.remove_foreign || self.is_ours(volume) {
            return Ok(());
        }
        let id = volume.id;
        let why = match (metadata::retained(volume), &self.settings.cluster) {
            (Some(was), _) => format!(
                "it was retained when the Docker volume \"{}\" was removed",
                crate::shown::shown(was)
            ),
            (None, Some(cluster)) if metadata::is_ours(volume) => format!(
                "it does not say that it is of this cluster (\"openstack volume set --property \
                 {}={cluster} {id}\" does)",
                metadata::CLUSTER
            ),
            _ => "it was not made by this driver".to_owned(),
        };
        Err(DriverError::Refused(format!(
            "{why}, so it is not deleted; to delete it: \"openstack volume delete {id}\" (or set \
             RemoveForeign)"
        )))
    }

    async fn until_deleted(&self, id: Uuid) -> Result<(), DriverError> {
        let end = Instant::now() + DELETING_PATIENCE;
        let mut pace = Pace::new();
        loop {
            match self.cloud.volume(id).await {
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error.into()),
                Ok(volume) => match volume.status {
                    VolumeStatus::Deleting if Instant::now() > end => return Ok(()),
                    VolumeStatus::Deleting => {}
                    VolumeStatus::ErrorDeleting => {
                        let messages = self.cloud.messages(id).await.unwrap_or_default();
                        let reason = messages.first().map_or("no reason given", String::as_str);
                        return Err(DriverError::Refused(format!(
                            "Cinder could not delete volume {id} (error_deleting): {reason}"
                        )));
                    }
                    _ if Instant::now() > end => {
                        return Err(DriverError::Refused(format!(
                            "Cinder has not begun to delete volume {id}; try again"
                        )));
                    }
                    _ => {}
                },
            }
            pace.next().await;
        }
    }
}

fn check_unused(name: &VolumeName, volume: &Volume) -> Result<(), DriverError> {
    if let Some(attachment) = volume.attachments.first() {
        return Err(DriverError::Refused(format!(
            "volume {} is attached to {}: stop what uses it there first",
            volume.id,
            super::mount::shown_holder(attachment)
        )));
    }
    match &volume.status {
        VolumeStatus::Creating | VolumeStatus::Downloading | VolumeStatus::Restoring => {
            Err(DriverError::NotYet(format!(
                "\"{name}\" is still being created; try again when it is done"
            )))
        }
        _ => Ok(()),
    }
}

/// The volume is gone, whatever the disk says: an entry that stays holds nothing, and goes once its
/// name is asked for again.
fn note_unforgotten(name: &VolumeName, forgotten: Result<(), DriverError>) {
    if let Err(error) = forgotten {
        tracing::warn!(volume = name.as_str(), "it stays in the journal: {}", Chain(&error));
    }
}

fn shown_users(references: &[super::journal::Reference]) -> String {
    let ids: Vec<String> = references
        .iter()
        .map(|reference| {
            let short: String = reference.id.chars().take(12).collect();
            format!("container {short}")
        })
        .collect();
    if ids.is_empty() { "a container".to_owned() } else { ids.join(", ") }
}
