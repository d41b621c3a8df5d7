//! Unmount: count down; the last one out lets go.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::journal::Entry;
use super::{Driver, DriverError, VolumeName, references};
use crate::docker::{Caller, Engine};
use crate::error_chain::Chain;
use crate::host::filesystem::mountinfo;
use crate::host::process::MountHolder;

/// So long a look for holders is worth something before the unmount. (After it the kernel is asked.)
const FRESH: Duration = Duration::from_millis(200);

impl Driver {
    pub(super) async fn unmount_volume(
        &self,
        caller: &Caller,
        name: &str,
        id: &str,
    ) -> Result<(), DriverError> {
        let name = VolumeName::parse(name)?;
        self.adopt(&name).await;
        let Some(entry) = self.journal.by_name(name.as_str()) else {
            return self.refuse_what_cannot_be_told(&name);
        };
        let volume_id = entry.volume_id;
        // Counted down before anything is waited for: should we die, or give up waiting, Docker
        // does not ask again.
        let begun = Instant::now();
        let (counted_down, looked) =
            tokio::join!(self.count_down(caller, volume_id, id), self.look_ahead(&entry));
        let counted_down = counted_down?;
        let _guard = match self.volumes.lock_for(&volume_id, caller, name.as_str()).await {
            Ok(guard) => guard,
            Err(busy) => {
                self.let_go_again(volume_id);
                return Err(busy);
            }
        };
        if !counted_down {
            // The Mount that it belongs to may have held the lock.
            self.count_down(caller, volume_id, id).await?;
        }
        let Some(entry) = self.journal.get(volume_id)? else { return Ok(()) };
        let entry = self.settle_references(&entry).await?;
        if entry.users() > 0 || !entry.has_liabilities() {
            return Ok(());
        }
        self.let_go_of_unused(volume_id, looked.filter(|_| begun.elapsed() < FRESH)).await
    }

    /// Who else holds the volume, if this is its last reference here: all processes are looked at while
    /// the journal is written.
    async fn look_ahead(&self, entry: &Entry) -> Option<Vec<MountHolder>> {
        match &entry.mount {
            Some(record) if entry.users() == 1 => Some(self.holders(record).await),
            _ => None,
        }
    }

    /// No entry has the name. Then there is nothing to let go of, unless something is mounted there that
    /// an entry speaks of which cannot be used.
    fn refuse_what_cannot_be_told(&self, name: &VolumeName) -> Result<(), DriverError> {
        let Some(error) = self.journal.unusable_named(name.as_str()) else { return Ok(()) };
        match mountinfo::at(&self.host.paths, &self.place_of(name.as_str())) {
            Ok(None) => Ok(()),
            Ok(Some(_)) | Err(_) => Err(error.into()),
        }
    }

    /// One reference less for this id. Whether there was one.
    async fn count_down(
        &self,
        caller: &Caller,
        volume_id: Uuid,
        id: &str,
    ) -> Result<bool, DriverError> {
        let mut taken = false;
        self.journal
            .update_regardless(volume_id, |entry| {
                taken = references::take(&mut entry.references, id, caller.engine);
            })
            .await?;
        Ok(taken)
    }

    /// Lets go of a volume without references. Docker shows a failed Unmount to nobody and does
    /// not repeat it, so what could not be done now is done in the background.
    async fn let_go_of_unused(
        &self,
        id: Uuid,
        looked: Option<Vec<MountHolder>>,
    ) -> Result<(), DriverError> {
        let outcome = match self.let_go_after(looked, id, false).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let text = Chain(&error).to_string();
                self.journal.update_regardless(id, |entry| entry.last_error = Some(text)).await?;
                self.let_go_again(id);
                return Err(error);
            }
        };
        if let Some(holder) = outcome.held.first() {
            tracing::warn!(
                volume_id = %id, pid = holder.pid, command = holder.command, at = holder.mount_point,
                "another mount namespace still has it mounted, so it stays attached here"
            );
        }
        if !outcome.held.is_empty() || outcome.cloud_error.is_some() {
            self.let_go_again(id);
        }
        outcome.sync_error.map_or(Ok(()), Err)
    }

    /// Drops the references that nobody backs: those of an engine that is gone, unless another
    /// mount namespace still holds the filesystem; all of a mount that is gone (an Unmount that a
    /// full disk kept out of the journal); and all of an earlier boot.
    pub(super) async fn settle_references(
        &self,
        entry: &Arc<Entry>,
    ) -> Result<Arc<Entry>, DriverError> {
        let id = entry.volume_id;
        if !self.is_of_this_boot(entry) && !entry.references.is_empty() {
            return Ok(self.journal.update_regardless(id, |e| e.references.clear()).await?);
        }
        let gone = !entry.references.is_empty() && !self.is_mounted(entry)?;
        let orphans = references::any_orphans(&entry.references, |engine| self.lives(engine));
        let held = match &entry.mount {
            Some(record) if orphans || gone => !self.holders(record).await.is_empty(),
            _ => false,
        };
        if held || !(orphans || gone) {
            return Ok(Arc::clone(entry));
        }
        let settled = self
            .journal
            .update_regardless(id, |entry| {
                if gone {
                    entry.references.clear();
                }
                references::drop_orphans(&mut entry.references, |engine| self.lives(engine));
            })
            .await?;
        Ok(settled)
    }

    /// The engine has its answer to a Mount.
    pub(super) async fn note_told(&self, engine: Option<Engine>, name: &str, id: &str) {
        let Some(entry) = self.journal.by_name(name) else { return };
        let noted = self
            .journal
            .update_regardless(entry.volume_id, |entry| {
                references::told(&mut entry.references, id, engine);
            })
            .await;
        if let Err(error) = noted {
            tracing::error!(volume = name, %error, "a reference stays doubtful");
        }
    }

    /// Nobody collected the success of a Mount: takes its reference back. The volume stays
    /// mounted for a moment, for the caller may come again.
    ///
    /// Only that engine's: each command of Podman is an engine of its own, all with one id, and
    /// the next one may have counted itself already.
    pub(super) async fn take_reference_back(&self, engine: Option<Engine>, name: &str, id: &str) {
        let Some(entry) = self.journal.by_name(name) else { return };
        let _guard = self.volumes.lock(&entry.volume_id).await;
        let taken = self
            .journal
            .update_regardless(entry.volume_id, |entry| {
                references::take_own(&mut entry.references, id, engine);
            })
            .await;
        match taken {
            Ok(entry) => {
                tracing::info!(volume = name, "nobody waited for the mount");
                self.set_idle(entry.volume_id, entry.users() == 0);
            }
            Err(error) => tracing::error!(volume = name, %error, "a reference stays counted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::driver::journal::Reference;
    use crate::host::Paths;
    use crate::openstack::Cloud;

    /// A driver whose cloud is not asked, with a volume that a living engine uses.
    fn driver_with(id: Uuid, engine: Engine) -> (tempfile::TempDir, Driver) {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "Endpoint": "http://127.0.0.1:9/v3", "Username": "u", "Password": "p", "TenantID": "t",
            "MountPoint": dir.path().join("mount"), "StateDir": dir.path().join("state") });
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let (settings, _) = crate::config::load(&path, &|_| None).unwrap();
        let mut entry = Entry::new(id);
        entry.names.insert("v".into());
        entry.references =
            vec![Reference { id: "c".into(), engine: Some(engine), count: 1, untold: 0 }];
        let volumes = dir.path().join("state/volumes");
        std::fs::create_dir_all(&volumes).unwrap();
        let text = serde_json::to_string(&entry).unwrap();
        std::fs::write(volumes.join(format!("{id}.json")), text).unwrap();
        let cloud = Cloud::new(&settings.cloud).unwrap();
        let driver = Driver::new(settings.driver, &settings.host, cloud, Paths::default()).unwrap();
        (dir, driver)
    }

    #[tokio::test]
    async fn an_unmount_that_gave_up_waiting_for_its_volume_is_not_forgotten() {
        let engine = Engine { pid: 1, start_time: 1 };
        let id = Uuid::new_v4();
        let (_dir, driver) = driver_with(id, engine);
        // A Mount that waits for a dead target, say.
        let busy = driver.volumes.lock(&id).await;
        let caller = Caller {
            engine: Some(engine),
            deadline: Instant::now(),
            gone: CancellationToken::new(),
        };
        let error = driver.unmount_volume(&caller, "v", "c").await.unwrap_err();
        assert!(matches!(error, DriverError::NotYet(_)), "{error}");
        // Docker does not ask again; and a daemon that dies now begins with what is in the file.
        let written = std::fs::read(driver.journal.directory().join(format!("volumes/{id}.json")));
        let written: Entry = serde_json::from_slice(&written.unwrap()).unwrap();
        assert_eq!(written.references, []);
        assert!(driver.idle_until(id) <= Instant::now() + crate::driver::FIRST_RETRY);
        drop(busy);
    }
}
