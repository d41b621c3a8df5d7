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
use super::options::{self, CreateOptions, Source};
use super::pace::Pace;
use super::prepare::not_restored;
use super::release::age;
use super::resolve::Lookup;
use super::{Driver, DriverError, VolumeName};
use crate::config::Profile;
use crate::docker::Caller;
use crate::error_chain::Chain;
use crate::openstack::{CloudError, CloudErrorKind, CreateVolume, Volume, VolumeStatus};
use crate::shown::shown;

/// First wait between two looks at a volume; it doubles up to [`SLOWEST_POLL`].
const FASTEST_POLL: Duration = Duration::from_millis(100);
/// Longest wait between two looks at a volume.
const SLOWEST_POLL: Duration = Duration::from_secs(1);
/// How long a creation may take in all, its caller long gone: an image of many GiB is copied.
const CREATION_LIMIT: Duration = Duration::from_secs(30 * 60);
/// How long the earlier of two volumes waits for the later to go.
const RIVAL_PATIENCE: Duration = Duration::from_secs(5);
/// So long after it was made a volume that another came before is still withdrawn.
const TWIN_LIMIT: Duration = Duration::from_secs(600);
/// So many of a volume's snapshots are told.
const MOST_SNAPSHOTS: usize = 20;
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
        let options = self.with_profile(&name, options)?;
        let options = CreateOptions::parse(&options, self.default_fs())?;
        let _creating = self.creating.lock_for(&name.to_string(), caller, name.as_str()).await?;
        let deadline = Instant::now() + CREATION_LIMIT;
        if let Some(id) = options.volume_id {
            let volume = Box::pin(self.take_in(&name, id, &options, deadline)).await?;
            return self.remember(&name, &volume).await;
        }
        let volume = match self.existing(&name, deadline).await? {
            Some(volume) => {
                log_contradictions(&name, &volume, &options);
                let volume = self.until_created(volume, deadline).await?;
                if let Some(backup) = metadata::restoring(&volume) {
                    return Err(not_restored(&volume, backup));
                }
                volume
            }
            None => return self.make(&name, &options, deadline).await,
        };
        self.remember(&name, &volume).await
    }

    /// The options, completed by those of the profile that they name, or else of the first whose
    /// patterns fit the volume's name.
    fn with_profile(
        &self,
        name: &VolumeName,
        given: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, DriverError> {
        let profiles = &self.settings.profiles;
        let profile = match given.get(options::PROFILE) {
            Some(none) if none.is_empty() => None,
            Some(asked) => {
                let found = profiles.iter().find(|profile| profile.name == *asked);
                Some(found.ok_or_else(|| unknown_profile(asked, profiles))?)
            }
            None => profiles.iter().find(|profile| profile.is_for(name.as_str())),
        };
        let mut all = given.clone();
        all.remove(options::PROFILE);
        if let Some(profile) = profile {
            all = options::completed(&all, &profile.options);
            all.insert(options::PROFILE.to_owned(), profile.name.clone());
        }
        Ok(all)
    }

    /// The volume of this name, if there is one; one that is being deleted is waited out. Anything
    /// but a complete answer of Cinder is an error: this is where duplicates would come from.
    pub(super) async fn existing(
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
        let made = async {
            let volume = self.post_and_settle(name, &request, nonce, deadline).await?;
            self.check_shareable(options, volume, nonce).await
        };
        let made = made.await;
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
            Err(error) => return Err(self.with_zones(request, error).await),
        };
        if let Some(made) = self.made_at_once(name, &volume).await {
            return Ok(made);
        }
        let mut volume = self.until_created(volume, deadline).await?;
        if let Some(backup) = request.metadata.get(metadata::BACKUP) {
            volume = self.restore(name, request, backup, volume, deadline).await?;
        }
        self.settle(name, volume, nonce, deadline).await
    }

    /// One look at all of the name can tell both that the volume is there already and that it is the
    /// only one. `None` when it does not, or cannot: then each is looked for.
    async fn made_at_once(&self, name: &VolumeName, ours: &Volume) -> Option<Volume> {
        let mut named = self.cloud.volumes_named(name.as_str()).await.ok()?;
        if self.rival_among(&named, ours).is_some() {
            return None;
        }
        let at = named.iter().position(|volume| volume.id == ours.id)?;
        let made = named.swap_remove(at);
        let waits_for_data = made.metadata.contains_key(metadata::BACKUP);
        (made.status == VolumeStatus::Available && !waits_for_data).then_some(made)
    }

    /// Takes a volume back that was to be `multiattach` and is of a type without it.
    async fn check_shareable(
        &self,
        options: &CreateOptions,
        volume: Volume,
        nonce: Uuid,
    ) -> Result<Volume, DriverError> {
        if !options.multiattach || volume.multiattach || metadata::nonce(&volume) != Some(nonce) {
            return Ok(volume);
        }
        if volume.status == VolumeStatus::Available {
            self.cloud.delete_volume(volume.id).await?;
        }
        Err(DriverError::Refused(format!(
            "volumes of type \"{}\" are on one host at a time: choose a type that has the extra spec \
             multiattach=\"<is> True\" (the new volume {} is deleted again)",
            shown(volume.volume_type.as_deref().unwrap_or("none")),
            volume.id
        )))
    }

    /// A refusal of a zone names those that there are.
    async fn with_zones(&self, request: &CreateVolume, error: CloudError) -> DriverError {
        let is_about_it = request.availability_zone.is_some()
            && error.kind == CloudErrorKind::BadRequest
            && error.message.to_lowercase().contains("availability zone");
        if is_about_it && let Ok(zones) = self.cloud.availability_zones().await {
            return DriverError::Refused(format!("{error}; there are: {}", zones.join(", ")));
        }
        error.into()
    }

    /// Fills a new volume from a backup where Cinder has not done so itself, and writes our metadata
    /// again: with the data, Cinder restores the metadata of the volume that was backed up.
    async fn restore(
        &self,
        name: &VolumeName,
        request: &CreateVolume,
        backup: &str,
        mut volume: Volume,
        deadline: Instant,
    ) -> Result<Volume, DriverError> {
        let id = volume.id;
        if request.backup_id.is_none() {
            // Nobody has used it: none of our hosts mounts it until the backup has come.
            if let Err(error) = self.cloud.restore_backup(backup, id).await {
                if !error.is_ambiguous()
                    && let Err(undo) = self.cloud.delete_volume(id).await
                {
                    let (cause, undo) = (Box::new(error.into()), Box::new(undo.into()));
                    return Err(DriverError::Undo { cause, undo });
                }
                return Err(error.into());
            }
            volume.status = VolumeStatus::Restoring;
            volume = self.until_created(volume, deadline).await?;
        }
        let mut tags = request.metadata.clone();
        // Of the volume that was backed up, which may have been removed since.
        for key in [metadata::RETAINED, metadata::RESTORING] {
            tags.insert(key.to_owned(), String::new());
        }
        tags.entry(metadata::CLUSTER.to_owned()).or_default();
        self.cloud.set_metadata(id, &tags).await?;
        if volume.name != name.as_str() {
            self.cloud.rename_volume(id, name.as_str()).await?;
        }
        Ok(self.cloud.volume(id).await?)
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
        while matches!(
            volume.status,
            VolumeStatus::Creating | VolumeStatus::Downloading | VolumeStatus::Restoring
        ) {
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
        if matches!(volume.status, VolumeStatus::Error | VolumeStatus::ErrorRestoring) {
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
            "volume {} ended in status {}: {reason} ({removed})",
            volume.id, volume.status
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
            if is_later(&ours, &rival) || Instant::now() > end {
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
        let named = self.cloud.volumes_named(name.as_str()).await?;
        Ok(self.rival_among(&named, ours).cloned())
    }

    /// The first other live volume of those of the name.
    fn rival_among<'a>(&self, named: &'a [Volume], ours: &Volume) -> Option<&'a Volume> {
        let is_rival = |volume: &&Volume| {
            volume.id != ours.id
                && !self.is_of_other_cluster(volume)
                && !matches!(
                    volume.status,
                    VolumeStatus::Deleting
                        | VolumeStatus::Error
                        | VolumeStatus::ErrorRestoring
                        | VolumeStatus::ErrorDeleting
                )
        };
        named.iter().filter(is_rival).min_by(|a, b| in_order(a).cmp(&in_order(b)))
    }

    /// Withdraws a volume that we made if another of its name was there before: whoever made that one
    /// relies on it. (An earlier one of ours is what the other's maker takes.) Never late: what has stood
    /// for some time somebody may have used, by other means than this driver.
    async fn withdraw_twin(
        &self,
        name: &VolumeName,
        ours: &Volume,
        nonce: Uuid,
    ) -> Result<(), DriverError> {
        if is_new(ours)
            && let Some(rival) = self.rival(name, ours).await?
            && is_later(ours, &rival)
            && self.withdraw(ours, nonce).await?
        {
            tracing::info!(
                volume = name.as_str(), volume_id = %ours.id, rival = %rival.id,
                "removed a blank volume that an interrupted creation left beside the one in use"
            );
        }
        Ok(())
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
            metadata: options.to_metadata(),
            hints: self.hints(options).await?,
            ..CreateVolume::default()
        };
        let mut tag = |key: &str, value: String| request.metadata.insert(key.to_owned(), value);
        tag(metadata::NONCE, nonce.to_string());
        if let Some(cluster) = &self.settings.cluster {
            tag(metadata::CLUSTER, cluster.clone());
        }
        match &options.source {
            None => {
                // Said here, so that every host makes the same filesystem.
                tag(metadata::FS, options.mount.fs.unwrap_or(self.default_fs()).to_string());
                tag(metadata::FORMAT, FormatState::Unformatted.to_string());
                request.size.get_or_insert(self.settings.default_size);
            }
            Some(Source::Snapshot(snapshot)) => {
                request.snapshot_id = Some(self.cloud.snapshot(snapshot).await?.id);
            }
            Some(Source::Volume(volume)) => {
                let source = self.find(&VolumeName::parse(volume)?).await?;
                request.source_volid = Some(source.id.to_string());
            }
            Some(Source::SnapshotOf { volume, snapshot }) => {
                let source = self.find(&VolumeName::parse(volume)?).await?;
                request.snapshot_id = Some(self.snapshot_of(&source, snapshot).await?);
            }
            Some(Source::Image(image)) => {
                let id = self.cloud.image_id(image).await?;
                tag(metadata::IMAGE, id.clone());
                request.image_id = Some(id);
                request.size.get_or_insert(self.settings.default_size);
            }
            Some(Source::Backup(backup)) => {
                let backup = self.cloud.backup(backup).await?;
                if backup.status != "available" {
                    return Err(DriverError::Refused(format!(
                        "backup {} is {} in Cinder: it must be available",
                        backup.id,
                        shown(&backup.status)
                    )));
                }
                tag(metadata::BACKUP, backup.id.clone());
                request.size.get_or_insert(backup.size);
                if self.cloud.creates_from_backup().await? {
                    request.backup_id = Some(backup.id);
                } else {
                    tag(metadata::RESTORING, backup.id);
                }
            }
        }
        if options.source.is_none() {
            fill(&mut request.volume_type, &self.settings.default_type);
        }
        // A copy is where its source is, unless somebody says so.
        if matches!(options.source, None | Some(Source::Image(_) | Source::Backup(_))) {
            fill(&mut request.availability_zone, &self.settings.availability_zone);
        }
        Ok(request)
    }

    /// The only snapshot of this name or id that the volume has.
    async fn snapshot_of(&self, volume: &Volume, asked: &str) -> Result<String, DriverError> {
        let all = self.cloud.snapshots(Some(volume.id)).await?;
        let fit: Vec<_> = all.iter().filter(|one| one.name == asked || one.id == asked).collect();
        let listed = |snapshots: &mut dyn Iterator<Item = &str>| {
            let shown: Vec<_> = snapshots.take(MOST_SNAPSHOTS).map(shown).collect();
            if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
        };
        match fit.as_slice() {
            [only] => Ok(only.id.clone()),
            [] => Err(DriverError::Refused(format!(
                "volume {} has no snapshot \"{}\"; it has: {}",
                volume.id,
                shown(asked),
                listed(&mut all.iter().map(|one| &*one.name))
            ))),
            several => Err(DriverError::Refused(format!(
                "volume {} has {} snapshots \"{}\": give one of the ids {}",
                volume.id,
                several.len(),
                shown(asked),
                listed(&mut several.iter().map(|one| &*one.id))
            ))),
        }
    }

    /// The hints, with the ids of the volumes that they name.
    async fn hints(
        &self,
        options: &CreateOptions,
    ) -> Result<BTreeMap<String, Vec<String>>, DriverError> {
        let mut hints = options.hints.clone();
        for (hint, values) in &mut hints {
            if options::VOLUME_HINTS.contains(&hint.as_str()) {
                for value in values {
                    *value = self.find(&VolumeName::parse(value)?).await?.id.to_string();
                }
            }
        }
        Ok(hints)
    }

    /// At start: creations whose outcome was never learned. A volume that ended in `error` is
    /// removed, and so is one that came after another of its name and that nobody has used. Any other is
    /// an ordinary volume by now, or says that it waits for its backup: whether somebody else has used it
    /// since, nobody knows.
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
                let is_under_way = matches!(
                    volume.status,
                    VolumeStatus::Creating | VolumeStatus::Downloading | VolumeStatus::Restoring
                );
                if is_under_way {
                    continue;
                }
                if volume.status == VolumeStatus::Error {
                    let error = self.creation_failed(&volume).await;
                    tracing::warn!(volume = name.as_str(), "an earlier creation failed: {error}");
                } else if let Err(error) = self.withdraw_twin(&name, &volume, creation.nonce).await
                {
                    tracing::warn!(volume = name.as_str(), "not settled yet: {}", Chain(&error));
                    continue;
                }
            }
            self.journal.end_creation(creation.nonce).await;
        }
    }
}

/// Of two volumes of one name the later one gives way.
fn is_later(ours: &Volume, rival: &Volume) -> bool {
    in_order(ours) > in_order(rival)
}

/// The order of volumes of one name, which every host sees alike.
fn in_order(volume: &Volume) -> (&str, Uuid) {
    (&volume.created_at, volume.id)
}

/// Whether Cinder made it less than [`TWIN_LIMIT`] ago.
fn is_new(volume: &Volume) -> bool {
    age(&volume.created_at).is_some_and(|age| age < TWIN_LIMIT)
}

fn fill(place: &mut Option<String>, default: &Option<String>) {
    if place.is_none() {
        place.clone_from(default);
    }
}

fn unknown_profile(asked: &str, profiles: &[Profile]) -> DriverError {
    let names = || profiles.iter().map(|profile| &*profile.name);
    let asked_shown = shown(asked);
    DriverError::BadRequest(match (options::nearest(names(), asked), profiles) {
        (Some(near), _) => {
            format!("there is no profile \"{asked_shown}\" in the config: did you mean \"{near}\"?")
        }
        (None, []) => format!(
            "there is no profile \"{asked_shown}\": the config of this host has none (Profiles)"
        ),
        (None, _) => format!(
            "there is no profile \"{asked_shown}\" in the config: there are {}",
            names().collect::<Vec<_>>().join(", ")
        ),
    })
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
