//! Snapshots: taken while the filesystem is frozen, if it is mounted here; and deleted.
//!
//! ```text
//! journal "frozen" ▶ write out ▶ freeze ▶ POST /snapshots ▶ until Cinder has it ▶ thaw ▶ journal
//! ```
//!
//! The thaw depends on nothing of this: the process that froze thaws when its time is up, whatever
//! Cinder does, and when the daemon ends ([`freeze`]). Should it be killed, too, the next start thaws.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use uuid::Uuid;

use super::journal::{Entry, MountRecord};
use super::mount::shown_holder;
use super::operate::Answer;
use super::pace::Pace;
use super::plan::MountState;
use super::{Driver, DriverError, VolumeName, metadata, options};
use crate::docker::Arguments;
use crate::error_chain::Chain;
use crate::host::filesystem::freeze::{self, Thawed};
use crate::host::filesystem::mount;
use crate::openstack::{CloudError, Snapshot, Volume, VolumeStatus};
use crate::shown::shown;

/// How long a filesystem may be frozen: what writes to it waits. A snapshot that takes longer is
/// finished without.
const FREEZE_LIMIT: Duration = Duration::from_secs(15);
/// How long Cinder may take for a snapshot, the caller long gone.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(30 * 60);

impl Driver {
    /// Takes a snapshot. The caller holds the volume's lock.
    pub(super) async fn snapshot_volume(
        &self,
        name: &VolumeName,
        id: Uuid,
        snapshot: Option<&str>,
    ) -> Result<Answer, DriverError> {
        let wanted = match snapshot {
            Some(text) => options::text(text).map_err(|why| {
                DriverError::BadRequest(format!("the snapshot's name \"{}\": {why}", shown(text)))
            })?,
            None => default_name(name, SystemTime::now()),
        };
        let volume = self.settled(name, id).await?;
        let in_use = match &volume.status {
            VolumeStatus::Available => false,
            VolumeStatus::InUse => true,
            status => {
                return Err(DriverError::NotYet(format!(
                    "volume {id} is {status} in Cinder, which takes snapshots of available and \
                     in-use volumes: try again once it is"
                )));
            }
        };
        let others = self.cloud.snapshots(Some(id)).await?;
        if let Some(other) = others.iter().find(|other| other.name == wanted) {
            return Err(DriverError::Refused(format!(
                "it has a snapshot \"{}\" already, {} since {} UTC ({}): choose another name",
                shown(&wanted),
                shown(&other.status),
                shown(&other.created_at),
                other.id
            )));
        }
        let entry = self.journal.get(id)?;
        if let Some(entry) = &entry {
            self.thaw_what_was_left(entry).await?;
        }
        let mut says = Vec::new();
        let made = match self.mount_to_freeze(entry.as_deref()).await? {
            Some(record) => {
                let (made, thawed) = self.take_frozen(id, &record, &wanted).await?;
                says.push(shown_thaw(thawed));
                made
            }
            None => {
                says.push(not_frozen(&volume));
                self.take(id, &wanted, in_use, Instant::now()).await?
            }
        };
        let made = self.until_made(made, Instant::now() + SNAPSHOT_LIMIT).await?;
        if made.status != "available" {
            return Err(self.could_not_be_taken(name, &made).await);
        }
        let first =
            format!("snapshot \"{}\" ({}) of {} GiB is there", shown(&wanted), made.id, made.size);
        says.insert(0, first);
        says.push(format!(
            "use it with \"docker volume create -d cinder -o from='{name}@{}' NAME\"",
            shown(&wanted)
        ));
        Ok(Answer { volume: id, says, done: true })
    }

    /// The mount that has to be frozen: one that is written to.
    async fn mount_to_freeze(
        &self,
        entry: Option<&Entry>,
    ) -> Result<Option<MountRecord>, DriverError> {
        let Some(entry) = entry.filter(|entry| entry.has_liabilities()) else { return Ok(None) };
        let Some(record) = entry.mount.clone().filter(|record| !record.read_only) else {
            return Ok(None);
        };
        match self.mount_state(entry).await? {
            MountState::Healthy => Ok(Some(record)),
            MountState::Stalled => Err(DriverError::NotYet(
                "it is mounted here, but its iSCSI target does not answer: see whether this host \
                 reaches the storage, then try again"
                    .to_owned(),
            )),
            MountState::None | MountState::Gone | MountState::Broken => Ok(None),
        }
    }

    /// Takes it while the filesystem is frozen.
    async fn take_frozen(
        &self,
        id: Uuid,
        record: &MountRecord,
        wanted: &str,
    ) -> Result<(Snapshot, Thawed), DriverError> {
        // What is cached may take long to write; nobody has to wait for that.
        mount::sync(&record.at).await?;
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        self.journal.update(id, |entry| entry.frozen = Some(since)).await?;
        let end = Instant::now() + FREEZE_LIMIT;
        let paths = &self.host.paths;
        let frozen = match freeze::freeze(paths, &record.at, record.device, FREEZE_LIMIT).await {
            Ok(frozen) => frozen,
            Err(error) => {
                // Its thread thaws, or has no reason to. After a crash somebody looks again.
                if !matches!(error, crate::host::HostError::Timeout { .. }) {
                    self.journal.update_regardless(id, |entry| entry.frozen = None).await?;
                }
                return Err(error.into());
            }
        };
        let made = self.take(id, wanted, true, end).await;
        let thawed = frozen.thaw().await;
        match thawed {
            Ok(thawed) => {
                self.journal.update_regardless(id, |entry| entry.frozen = None).await?;
                Ok((made?, thawed))
            }
            Err(error) => Err(DriverError::NotYet(format!(
                "its filesystem at {at} is frozen, and the kernel does not thaw it ({}): all that \
                 writes to it waits. Thaw it with \"fsfreeze --unfreeze {at}\"",
                Chain(&error),
                at = record.at.display()
            ))),
        }
    }

    /// Asks Cinder for it and waits until it is there, or until `end`.
    async fn take(
        &self,
        id: Uuid,
        wanted: &str,
        in_use: bool,
        end: Instant,
    ) -> Result<Snapshot, DriverError> {
        let nonce = Uuid::new_v4().to_string();
        let marks: BTreeMap<_, _> = [(metadata::NONCE.to_owned(), nonce.clone())].into();
        let made = match self.cloud.create_snapshot(id, wanted, &marks, in_use).await {
            Err(error) if error.is_ambiguous() => self.find_made(id, &nonce, error).await?,
            made => made?,
        };
        self.until_made(made, end).await
    }

    /// After an answer that was lost.
    async fn find_made(
        &self,
        id: Uuid,
        nonce: &str,
        error: CloudError,
    ) -> Result<Snapshot, DriverError> {
        let all = self.cloud.snapshots(Some(id)).await.unwrap_or_default();
        let ours = |one: &Snapshot| one.metadata.get(metadata::NONCE).is_some_and(|n| n == nonce);
        all.into_iter().find(ours).ok_or_else(|| error.into())
    }

    /// The snapshot, once Cinder is done with it; or as it is at `end`.
    async fn until_made(&self, made: Snapshot, end: Instant) -> Result<Snapshot, DriverError> {
        let mut pace = Pace::new();
        let mut snapshot = made;
        while snapshot.status == "creating" && Instant::now() < end {
            pace.next().await;
            snapshot = match self.cloud.snapshot_by_id(&snapshot.id).await {
                // It is being made all the same; whether it was, is seen at the end.
                Err(error) if Instant::now() < end && !error.is_not_found() => {
                    tracing::debug!(%error, "cannot look at the snapshot");
                    continue;
                }
                found => found?,
            };
        }
        Ok(snapshot)
    }

    async fn could_not_be_taken(&self, name: &VolumeName, snapshot: &Snapshot) -> DriverError {
        let id = &snapshot.id;
        if snapshot.status == "creating" {
            return DriverError::NotYet(format!(
                "Cinder has not finished snapshot {id} after {} minutes: see \
                 \"cinder-docker-driver snapshots\"",
                SNAPSHOT_LIMIT.as_secs() / 60
            ));
        }
        let messages = match Uuid::parse_str(id) {
            Ok(id) => self.cloud.messages(id).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let reason = messages.first().map_or_else(
            || "Cinder gives no reason".to_owned(),
            |message| format!("Cinder says: {}", shown(message)),
        );
        DriverError::Refused(format!(
            "snapshot {id} is {}; {reason}. Remove it with \"cinder-docker-driver snapshot --delete \
             {name} {id}\"",
            shown(&snapshot.status)
        ))
    }

    /// Thaws what an earlier run of the daemon froze and did not live to thaw.
    pub(super) async fn thaw_what_was_left(&self, entry: &Entry) -> Result<(), DriverError> {
        if entry.frozen.is_none() {
            return Ok(());
        }
        let id = entry.volume_id;
        if let (Some(record), true) = (&entry.mount, self.is_mounted(entry)?)
            && freeze::thaw(&self.host.paths, &record.at, record.device).await?
        {
            tracing::warn!(volume = entry.shown_name(), "it was left frozen, and is thawed");
        }
        self.journal.update_regardless(id, |entry| entry.frozen = None).await?;
        Ok(())
    }

    /// Deletes a snapshot of the volume, once its id confirms it.
    pub(super) async fn delete_snapshot_of(
        &self,
        volume: &Volume,
        arguments: &Arguments,
    ) -> Result<Answer, DriverError> {
        let Some(wanted) = arguments.snapshot.as_deref() else {
            return Err(DriverError::BadRequest("no snapshot is named".to_owned()));
        };
        let all = self.cloud.snapshots(Some(volume.id)).await?;
        let found: Vec<_> =
            all.iter().filter(|one| one.id == wanted || one.name == wanted).collect();
        let [snapshot] = found[..] else {
            let shown_all = |all: &mut dyn Iterator<Item = &Snapshot>| {
                let all: Vec<_> =
                    all.map(|one| format!("\"{}\" ({})", shown(&one.name), one.id)).collect();
                if all.is_empty() { "none".to_owned() } else { all.join(", ") }
            };
            let text = match found.is_empty() {
                true => format!(
                    "volume {} has no snapshot \"{}\"; it has {}",
                    volume.id,
                    shown(wanted),
                    shown_all(&mut all.iter())
                ),
                false => format!(
                    "several snapshots have that name: say which by its id: {}",
                    shown_all(&mut found.iter().copied())
                ),
            };
            return Err(DriverError::Refused(text));
        };
        let id = Uuid::parse_str(&snapshot.id).map_err(|_| {
            DriverError::Refused(format!("the snapshot's id {} is no UUID", snapshot.id))
        })?;
        let says = vec![format!(
            "snapshot \"{}\" of {} GiB, taken at {} UTC, is deleted for good; volumes that were made \
             from it stay",
            shown(&snapshot.name),
            snapshot.size,
            shown(&snapshot.created_at)
        )];
        match arguments.id.as_deref().map(Uuid::parse_str) {
            None => return Ok(Answer { volume: id, says, done: false }),
            Some(given) if given == Ok(id) => {}
            Some(_) => {
                return Err(DriverError::BadRequest(format!(
                    "the id given is not the snapshot's ({id}); nothing was done"
                )));
            }
        }
        match self.cloud.delete_snapshot(&snapshot.id).await {
            Err(error) if error.is_not_found() => {}
            // Whether it is being deleted all the same shows below.
            Err(error) if error.is_ambiguous() => {}
            done => done?,
        }
        let end = Instant::now() + SNAPSHOT_LIMIT;
        let mut pace = Pace::new();
        loop {
            let now = match self.cloud.snapshot_by_id(&snapshot.id).await {
                Err(error) if error.is_not_found() => break,
                found => found?,
            };
            if now.status != "deleting" || Instant::now() > end {
                return Err(DriverError::Refused(format!(
                    "Cinder shows it as {} and not as gone: try again, or ask the cloud's operator",
                    shown(&now.status)
                )));
            }
            pace.next().await;
        }
        Ok(Answer { volume: id, says, done: true })
    }
}

/// `web-20261125T140000Z`
fn default_name(name: &VolumeName, now: SystemTime) -> String {
    let time = humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "");
    format!("{name}-{time}")
}

fn shown_thaw(thawed: Thawed) -> String {
    let seconds = thawed.frozen_for.as_secs_f32();
    match thawed.too_late {
        false => format!("its filesystem was written out, and frozen for {seconds:.1} s meanwhile"),
        true => format!(
            "its filesystem was thawed after {seconds:.1} s, before Cinder was done: the snapshot may \
             be as after a power cut"
        ),
    }
}

fn not_frozen(volume: &Volume) -> String {
    match volume.attachments.first() {
        Some(holder) => format!(
            "its filesystem was not frozen, so the snapshot is as after a power cut: the volume is \
             attached to {}. On that host it is frozen for the moment",
            shown_holder(holder)
        ),
        None => "nothing wrote to it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_without_a_name_is_named_after_the_volume_and_the_time() {
        let name = VolumeName::parse("web").unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_615_200);
        assert_eq!(default_name(&name, time), "web-20261125T140000Z");
    }
}
