//! Create: idempotent, and two hosts that create one name at once end with one volume.
//!
//! Every creation carries a nonce in metadata, journaled before the POST. Who then sees another
//! volume of the name doesn't win by order alone: the later one (created_at, then id) deletes its
//! own at once; the earlier looks again for up to 5 s and, if the other is still there, deletes
//! its own and takes that one. Both volumes are blank, so nothing is lost either way.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::journal::{Creation, VERSION};
use super::metadata::{self, FormatState};
use super::options::{CreateOptions, Source};
use super::pace::Pace;
use super::resolve::Lookup;
use super::{Driver, DriverError, VolumeName};
use crate::docker::Caller;
use crate::openstack::{CloudError, CreateVolume, Volume, VolumeStatus};

/// First wait between two looks at a volume; it doubles up to [`SLOWEST_POLL`].
const FASTEST_POLL: Duration = Duration::from_millis(100);
/// Longest wait between two looks at a volume.
const SLOWEST_POLL: Duration = Duration::from_secs(1);
/// How long a creation may take in all, its caller long gone: an image of many GiB is copied.
const CREATION_LIMIT: Duration = Duration::from_secs(30 * 60);
/// How long the earlier of two volumes waits for the later to go.
const RIVAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long to look for a volume whose POST had no clear answer.
const LOST_ANSWER_PATIENCE: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) async fn create_volume(
        &self,
        caller: &Caller,
        name: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<(), DriverError> {
        let name = VolumeName::parse(name)?;
        let options = CreateOptions::parse(options, self.default_fs())?;
        let _creating = self.creating.lock_for(&name.to_string(), caller, name.as_str()).await?;
        let deadline = Instant::now() + CREATION_LIMIT;
        let volume = match self.existing(&name, deadline).await? {
            Some(volume) => {
                log_contradictions(&name, &volume, &options);
                self.until_created(volume, deadline).await?
            }
            None => return self.make(&name, &options, deadline).await,
        };
        self.remember(&name, &volume).await
    }

    /// The volume of this name, if there is one; one that is being deleted is waited out. Anything
    /// but a complete answer of Cinder is an error: this is where duplicates would come from.
    async fn existing(
        &self,
        name: &VolumeName,
        deadline: Instant,
    ) -> Result<Option<Volume>, DriverError> {
        let mut pace = Pace::new();
        loop {
            match self.look_up(name).await? {
                Lookup::Found(volume) => return Ok(Some(*volume)),
                Lookup::Nothing => return Ok(None),
                Lookup::Leaving => {}
            }
            if Instant::now() > deadline {
                return Err(DriverError::NotYet(
                    "an older volume of this name is still being deleted in Cinder".to_owned(),
                ));
            }
            pace.next().await;
        }
    }

    async fn make(
        &self,
        name: &VolumeName,
        options: &CreateOptions,
        deadline: Instant,
    ) -> Result<(), DriverError> {
        let nonce = Uuid::new_v4();
        let request = self.request(name, options, nonce).await?;
        let noted = self
            .journal
            .begin_creation(Creation {
                version: VERSION,
                nonce,
                name: name.to_string(),
                metadata: request.metadata.clone(),
            })
            .await;
        if let Err(error) = noted {
            self.work.notify_one();
            return Err(error.into());
        }
        let made = self.post_and_settle(name, &request, nonce, deadline).await;
        // An unclear answer stays in the journal: recovery looks for the nonce again.
        let unclear = matches!(&made, Err(DriverError::Cloud(error)) if error.is_ambiguous());
        let end = async {
            if unclear || !self.journal.end_creation(nonce).await {
                self.work.notify_one();
            }
        };
        // Whichever is on the disk first: a creation that seems to run is looked after again.
        let remember = async { self.remember(name, &made?).await };
        tokio::join!(end, remember).1
    }

    async fn post_and_settle(
        &self,
        name: &VolumeName,
        request: &CreateVolume,
        nonce: Uuid,
        deadline: Instant,
    ) -> Result<Volume, DriverError> {
        let volume = match self.cloud.create_volume(request).await {
            Ok(volume) => volume,
            Err(error) if error.is_ambiguous() => self.find_lost(name, nonce, error).await?,
            Err(error) => return Err(error.into()),
        };
        let volume = self.until_created(volume, deadline).await?;
        self.settle(name, volume, nonce, deadline).await
    }

    /// The POST had no clear answer: the volume is there if one carries our nonce.
    async fn find_lost(
        &self,
        name: &VolumeName,
        nonce: Uuid,
        error: CloudError,
    ) -> Result<Volume, DriverError> {
        let end = Instant::now() + LOST_ANSWER_PATIENCE;
        let mut pause = FASTEST_POLL;
        loop {
            // Cinder may be silent for this look too; the first error says more.
            if let Ok(volumes) = self.cloud.volumes_named(name.as_str()).await
                && let Some(volume) =
                    volumes.into_iter().find(|volume| metadata::nonce(volume) == Some(nonce))
            {
                return Ok(volume);
            }
            if Instant::now() > end {
                return Err(error.into());
            }
            sleep(pause).await;
            pause = (pause * 2).min(SLOWEST_POLL);
        }
    }

    /// Waits until the volume is there. One that ends in `error` is removed again if we made it.
    pub(super) async fn until_created(
        &self,
        mut volume: Volume,
        deadline: Instant,
    ) -> Result<Volume, DriverError> {
        let mut pace = Pace::new();
        while matches!(volume.status, VolumeStatus::Creating | VolumeStatus::Downloading) {
            if Instant::now() > deadline {
                return Err(DriverError::NotYet(format!(
                    "Cinder is still creating it (volume {}); try again later",
                    volume.id
                )));
            }
            pace.next().await;
            volume = match self.cloud.volume(volume.id).await {
                Ok(volume) => volume,
                Err(error) if error.is_not_found() => {
                    return Err(DriverError::Refused(format!(
                        "volume {} was deleted in Cinder while it was being created",
                        volume.id
                    )));
                }
                // It is being made whether or not we can look: look again.
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(volume_id = %volume.id, %error, "cannot look yet");
                    continue;
                }
            };
        }
        if volume.status == VolumeStatus::Error {
            return Err(self.creation_failed(&volume).await);
        }
        Ok(volume)
    }

    async fn creation_failed(&self, volume: &Volume) -> DriverError {
        let reason = match self.cloud.messages(volume.id).await {
            Ok(messages) if !messages.is_empty() => messages.join("; "),
            _ => "Cinder gives no reason; its administrator finds it in the logs".to_owned(),
        };
        let unused = FormatState::of(volume).ok() == Some(Some(FormatState::Unformatted))
            || volume.metadata.contains_key(metadata::NONCE) && volume.attachments.is_empty();
        let removed = if unused && metadata::nonce(volume).is_some_and(|n| self.began(n)) {
            match self.cloud.delete_volume(volume.id).await {
                Ok(()) => "it was removed again",
                Err(_) => "it could not be removed: delete it in Cinder",
            }
        } else {
            "remove it with \"docker volume rm\" first"
        };
        DriverError::Refused(format!(
            "volume {} ended in status error: {reason} ({removed})",
            volume.id
        ))
    }

    fn began(&self, nonce: Uuid) -> bool {
        self.journal.creations().iter().any(|creation| creation.nonce == nonce)
    }

    /// Leaves one volume of the name, whoever else created it at the same time.
    async fn settle(
        &self,
        name: &VolumeName,
        ours: Volume,
        nonce: Uuid,
        deadline: Instant,
    ) -> Result<Volume, DriverError> {
        let end = Instant::now() + RIVAL_PATIENCE;
        let mut pause = FASTEST_POLL;
        loop {
            let Some(rival) = self.rival(name, &ours).await? else { return Ok(ours) };
            let later = (&ours.created_at, ours.id) > (&rival.created_at, rival.id);
            if later || Instant::now() > end {
                tracing::info!(
                    volume = name.as_str(), volume_id = %ours.id, rival = %rival.id,
                    "another host created the same volume at the same time; its volume is used"
                );
                return match self.withdraw(&ours, nonce).await? {
                    true => self.until_created(rival, deadline).await,
                    false => Ok(ours),
                };
            }
            sleep(pause).await;
            pause = (pause * 2).min(SLOWEST_POLL);
        }
    }

    /// Another live volume of the name.
    async fn rival(&self, name: &VolumeName, ours: &Volume) -> Result<Option<Volume>, DriverError> {
        let volumes = self.cloud.volumes_named(name.as_str()).await?;
        Ok(volumes
            .into_iter()
            .filter(|volume| {
                volume.id != ours.id
                    && !matches!(
                        volume.status,
                        VolumeStatus::Deleting | VolumeStatus::Error | VolumeStatus::ErrorDeleting
                    )
            })
            .min_by(|a, b| (&a.created_at, a.id).cmp(&(&b.created_at, b.id))))
    }

    /// Deletes the volume that we have just made, if that is certain to lose nothing.
    async fn withdraw(&self, ours: &Volume, nonce: Uuid) -> Result<bool, DriverError> {
        let now = self.cloud.volume(ours.id).await?;
        let untouched = metadata::nonce(&now) == Some(nonce)
            && FormatState::of(&now)? == Some(FormatState::Unformatted)
            && now.status == VolumeStatus::Available;
        if untouched {
            self.cloud.delete_volume(ours.id).await?;
        }
        Ok(untouched)
    }

    async fn request(
        &self,
        name: &VolumeName,
        options: &CreateOptions,
        nonce: Uuid,
    ) -> Result<CreateVolume, DriverError> {
        let mut request = CreateVolume {
            name: name.to_string(),
            size: options.size,
            volume_type: options.volume_type.clone(),
            availability_zone: options.availability_zone.clone(),
            description: Some(
                options.description.clone().unwrap_or_else(|| metadata::DESCRIPTION.to_owned()),
            ),
            metadata: options.metadata.clone(),
            ..CreateVolume::default()
        };
        request.metadata.insert(metadata::NONCE.to_owned(), nonce.to_string());
        let mut mount = options.mount.clone();
        match &options.source {
            None => {
                // Said here, so that every host makes the same filesystem.
                mount.fs.get_or_insert_with(|| self.default_fs());
                request.size.get_or_insert(self.settings.default_size);
                let state = FormatState::Unformatted.to_string();
                request.metadata.insert(metadata::FORMAT.to_owned(), state);
            }
            Some(Source::Snapshot(snapshot)) => {
                request.snapshot_id = Some(self.cloud.snapshot(snapshot).await?.id);
            }
            Some(Source::Volume(volume)) => {
                let source = self.find(&VolumeName::parse(volume)?).await?;
                request.source_volid = Some(source.id.to_string());
            }
            Some(Source::Image(image)) => {
                request.image_id = Some(self.cloud.image_id(image).await?);
                request.size.get_or_insert(self.settings.default_size);
            }
        }
        if request.volume_type.is_none() && options.source.is_none() {
            request.volume_type.clone_from(&self.settings.default_type);
        }
        request.metadata.extend(mount.to_metadata());
        Ok(request)
    }

    /// At start: creations whose outcome was never learned. A volume that ended in `error` is
    /// removed; any other is an ordinary volume by now.
    pub(super) async fn finish_creations(&self) {
        for creation in self.journal.creations() {
            let Ok(name) = VolumeName::parse(&creation.name) else {
                self.journal.end_creation(creation.nonce).await;
                continue;
            };
            // A creation of this name that runs now looks after its own.
            let Some(_creating) = self.creating.try_lock(&creation.name) else { continue };
            let Ok(volumes) = self.cloud.volumes_named(name.as_str()).await else { continue };
            let ours = volumes.into_iter().find(|v| metadata::nonce(v) == Some(creation.nonce));
            if let Some(volume) = ours {
                if volume.status == VolumeStatus::Creating {
                    continue;
                }
                if volume.status == VolumeStatus::Error {
                    let error = self.creation_failed(&volume).await;
                    tracing::warn!(volume = name.as_str(), "an earlier creation failed: {error}");
                }
            }
            self.journal.end_creation(creation.nonce).await;
        }
    }
}

/// Docker takes an existing volume for success; that it is not what was asked for is worth a line.
fn log_contradictions(name: &VolumeName, volume: &Volume, options: &CreateOptions) {
    if options.size.is_some_and(|size| size != volume.size) {
        tracing::warn!(
            volume = name.as_str(),
            asked = options.size,
            has = volume.size,
            "the volume exists already, with another size (GiB)"
        );
    }
    if options.volume_type.is_some() && options.volume_type != volume.volume_type {
        tracing::warn!(
            volume = name.as_str(),
            asked = options.volume_type,
            has = volume.volume_type,
            "the volume exists already, with another type"
        );
    }
}
