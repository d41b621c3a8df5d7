//! What all parts of the sandbox share.

use std::fs::File;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::Flock;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::faults::Faults;
use super::options::Behaviour;
use super::state::Store;
use super::storage::{Storage, Targets};
use crate::locks::{Guard, Locks};

/// The embedded cloud behind its API.
#[derive(Debug)]
pub(super) struct Cloud {
    pub(super) store: Store,
    pub(super) storage: Storage,
    /// Serves the volumes as iSCSI targets; without it they are loop devices.
    pub(super) targets: Option<Targets>,
    pub(super) faults: Arc<Faults>,
    behaviour: Mutex<Behaviour>,
    volume_locks: Locks<Uuid>,
    stopped: CancellationToken,
    /// Locked as long as anything of this cloud may touch its directory.
    _lock: Flock<File>,
}

impl Cloud {
    pub(super) fn new(
        store: Store,
        storage: Storage,
        targets: Option<Targets>,
        behaviour: Behaviour,
        stopped: CancellationToken,
        lock: Flock<File>,
    ) -> Self {
        Self {
            store,
            storage,
            targets,
            faults: Arc::default(),
            behaviour: Mutex::new(behaviour),
            volume_locks: Locks::default(),
            stopped,
            _lock: lock,
        }
    }

    pub(super) fn behaviour(&self) -> Behaviour {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_behaviour(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// Makes changes of one volume's exports one after the other.
    pub(super) async fn lock_volume(&self, id: Uuid) -> Guard {
        self.volume_locks.lock(&id).await
    }

    /// Runs a task until it ends or the sandbox stops.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.stopped.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Works on files and devices, off the runtime's thread.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Storage) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let cloud = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&cloud.storage)).await?
    }

    /// Writes the state in the background part of a call, where nobody hears of a failure.
    pub(super) async fn save_or_log(&self) {
        if let Err(error) = self.store.save().await {
            tracing::error!(%error, "the sandbox cannot write its state");
        }
    }
}

/// Milliseconds of the behaviour.
pub(super) async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}
