//! A Docker name is a Cinder name: an existing volume gets one by being renamed (option `volume_id`),
//! and one that is removed from Docker and kept loses it the same way (option `on_remove`).
//!
//! A retained volume carries `docker.retained`. It is not listed and never deleted by Docker any
//! more; it is used by its new name or its id, or comes back by `-o volume_id=`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use uuid::Uuid;

use super::metadata::{self, OnRemove};
use super::mount::shown_holder;
use super::options::CreateOptions;
use super::pace::Pace;
use super::{Driver, DriverError, VolumeName};
use crate::openstack::{Volume, VolumeStatus};
use crate::shown::shown;

/// A last snapshot that takes longer is left to Cinder: the volume stays as well.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(20);
/// Longest name of a volume in Cinder.
const LONGEST_NAME: usize = 255;

impl Driver {
    /// Gives the volume of `id` the name. Doing it again changes nothing.
    pub(super) async fn take_in(
        &self,
        name: &VolumeName,
        id: Uuid,
        options: &CreateOptions,
        deadline: Instant,
    ) -> Result<Volume, DriverError> {
        let named = self.existing(name, deadline).await?;
        if let Some(other) = named.as_ref().filter(|volume| volume.id != id) {
            return Err(DriverError::Refused(format!(
                "the name is taken by volume {}, so volume {id} cannot have it: choose another name",
                other.id
            )));
        }
        let volume = match named {
            Some(volume) => volume,
            None => self.cloud.volume(id).await?,
        };
        let volume = self.until_created(volume, deadline).await?;
        let _guard = self.volumes.lock(&id).await;
        if volume.name != name.as_str() {
            self.check_free(&volume)?;
        }
        let tags = self.tags_of(&volume, options);
        if tags.iter().any(|(key, value)| volume.metadata.get(key) != Some(value)) {
            self.cloud.set_metadata(id, &tags).await?;
        }
        if volume.name == name.as_str() {
            return Ok(self.cloud.volume(id).await?);
        }
        let renamed = self.cloud.rename_volume(id, name.as_str()).await?;
        // Somebody may have made one of this name meanwhile.
        let twins = self.cloud.volumes_named(name.as_str()).await?;
        let twin = twins.iter().find(|twin| twin.id != id && !self.is_of_other_cluster(twin));
        if let Some(twin) = twin {
            self.cloud.rename_volume(id, &volume.name).await?;
            return Err(DriverError::Refused(format!(
                "volume {} got the name at the same time, so volume {id} has its old one, \"{}\", \
                 again",
                twin.id,
                shown(&volume.name)
            )));
        }
        tracing::info!(
            volume = name.as_str(), volume_id = %id, was = volume.name,
            "an existing volume was given this name"
        );
        Ok(renamed)
    }

    /// Whether a volume may be given another name: nobody uses it, and no Docker knows it by the
    /// old one.
    fn check_free(&self, volume: &Volume) -> Result<(), DriverError> {
        let id = volume.id;
        if self.is_of_other_cluster(volume) {
            return Err(self.of_other_cluster(volume));
        }
        if let Some(attachment) = volume.attachments.first() {
            return Err(DriverError::Refused(format!(
                "volume {id} is attached to {}: stop what uses it there first",
                shown_holder(attachment)
            )));
        }
        if volume.status != VolumeStatus::Available
            || self.journal.get(id)?.is_some_and(|entry| entry.has_liabilities())
        {
            return Err(DriverError::Refused(format!(
                "volume {id} is {} in Cinder, or still held by this host: it must be available",
                volume.status
            )));
        }
        if self.is_ours(volume) && VolumeName::is_valid(&volume.name) {
            return Err(DriverError::Refused(format!(
                "volume {id} is the Docker volume \"{}\" already: under its old name, Docker would \
                 make a blank one. Use that name, or rename it in Cinder",
                volume.name
            )));
        }
        Ok(())
    }

    fn tags_of(&self, volume: &Volume, options: &CreateOptions) -> BTreeMap<String, String> {
        let mut tags = options.to_metadata();
        tags.insert(metadata::ADOPTED.to_owned(), volume.id.to_string());
        if let Some(cluster) = &self.settings.cluster {
            tags.insert(metadata::CLUSTER.to_owned(), cluster.clone());
        }
        if volume.metadata.contains_key(metadata::RETAINED) {
            tags.insert(metadata::RETAINED.to_owned(), String::new());
        }
        tags
    }

    /// Takes the volume's name away and keeps the volume, with a last snapshot if `what` says so:
    /// Cinder deletes no volume that has one. Answers the new name.
    pub(super) async fn retain(
        &self,
        name: &VolumeName,
        volume: &Volume,
        what: OnRemove,
    ) -> Result<String, DriverError> {
        if volume.status != VolumeStatus::Available {
            return Err(DriverError::Refused(format!(
                "volume {} is {} in Cinder, and is to be retained: it must be available",
                volume.id, volume.status
            )));
        }
        let kept = retained_name(&volume.name, SystemTime::now());
        // First what may fail: until then nothing has changed.
        if what == OnRemove::Snapshot {
            self.last_snapshot(volume, &kept).await?;
        }
        let tag = [(metadata::RETAINED.to_owned(), volume.name.clone())].into();
        self.cloud.set_metadata(volume.id, &tag).await?;
        self.cloud.rename_volume(volume.id, &kept).await?;
        tracing::info!(
            volume = name.as_str(), volume_id = %volume.id, kept,
            "it is removed from Docker and retained in Cinder"
        );
        Ok(kept)
    }

    async fn last_snapshot(&self, volume: &Volume, name: &str) -> Result<(), DriverError> {
        let made = self.cloud.create_snapshot(volume.id, name, &BTreeMap::new(), false).await?;
        let end = Instant::now() + SNAPSHOT_PATIENCE;
        let mut pace = Pace::new();
        loop {
            let snapshot = self.cloud.snapshot_by_id(&made.id).await?;
            match snapshot.status.as_str() {
                "available" => return Ok(()),
                "creating" if Instant::now() < end => pace.next().await,
                "creating" => {
                    tracing::warn!(
                        volume_id = %volume.id, snapshot = made.id,
                        "its last snapshot is still being made; the volume is retained as well"
                    );
                    return Ok(());
                }
                status => {
                    return Err(DriverError::Refused(format!(
                        "its last snapshot, {}, ended in status {}; the volume is as it was",
                        made.id,
                        shown(status)
                    )));
                }
            }
        }
    }
}

/// `NAME-removed-20261125T140102Z`, NAME shortened if it must be.
fn retained_name(name: &str, now: SystemTime) -> String {
    let time: String = humantime::format_rfc3339_seconds(now)
        .to_string()
        .chars()
        .filter(|c| !matches!(c, '-' | ':'))
        .collect();
    let suffix = format!("-removed-{time}");
    let mut kept = name.to_owned();
    while kept.len() + suffix.len() > LONGEST_NAME {
        kept.pop();
    }
    kept + &suffix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_retained_volume_says_when_it_was_removed_and_fits_cinder() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_615_262);
        assert_eq!(retained_name("web", at), "web-removed-20261125T140102Z");
        let long = retained_name(&"é".repeat(200), at);
        assert!(long.len() <= 255 && long.ends_with("Z"), "{long}");
        assert!(VolumeName::is_valid(&retained_name(&"w".repeat(255), at)));
    }
}
