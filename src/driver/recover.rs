//! Finishing what was left: at start, and whenever an operation could not end.
//!
//! Journal × kernel × Cinder → finish or undo. Never touches what somebody uses.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::journal::Entry;
use super::{Driver, DriverError, FIRST_RETRY};
use crate::error_chain::Chain;

/// Longest wait before something that failed is tried again; it doubles from [`FIRST_RETRY`].
const LAST_RETRY: Duration = Duration::from_secs(300);
/// Wait before a volume is looked at again whose lock an operation has.
const BUSY_RETRY: Duration = Duration::from_secs(2);

impl Driver {
    /// Runs in the background until it is dropped: recovers, then finishes what operations leave.
    /// Sleeps without waking while there is nothing to do.
    pub async fn work_in_background(self: Arc<Self>) {
        self.recover().await;
        let mut retries: HashMap<Uuid, Retry> = HashMap::new();
        let mut creations_due = self.creations_due(Instant::now());
        loop {
            let now = Instant::now();
            let mut next: Option<Instant> = None;
            for entry in self.journal.all() {
                let id = entry.volume_id;
                let Some(due) = self.due(&entry, retries.get(&id), now) else {
                    retries.remove(&id);
                    continue;
                };
                let due = if due > now { due } else { self.finish(&entry, &mut retries).await };
                next = Some(next.map_or(due, |next| next.min(due)));
            }
            if creations_due.is_some_and(|due| due <= now) {
                self.finish_creations().await;
                creations_due = self.creations_due(Instant::now() + LAST_RETRY);
            }
            let wake = match (next, creations_due) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let sleep = async {
                match wake {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! { () = sleep => {}, () = self.work.notified() => {} }
        }
    }

    fn creations_due(&self, at: Instant) -> Option<Instant> {
        (!self.journal.creations().is_empty()).then_some(at)
    }

    /// At start: what the last run, boot or driver left.
    async fn recover(&self) {
        for (id, path, reason) in self.journal.unusable() {
            tracing::error!(volume_id = %id, path = %path.display(), reason, "left alone");
        }
        for entry in self.journal.all() {
            let _guard = self.volumes.lock(&entry.volume_id).await;
            if let Err(error) = self.settle_references(&entry).await {
                tracing::error!(volume = entry.shown_name(), "{}", Chain(&error));
            }
        }
        self.adopt_mounts().await;
    }

    /// When an entry needs work; `None` = it needs none.
    fn due(&self, entry: &Entry, retry: Option<&Retry>, now: Instant) -> Option<Instant> {
        if !entry.has_liabilities() {
            return None;
        }
        let this_boot = self.is_of_this_boot(entry);
        if this_boot && entry.users() > 0 {
            return None;
        }
        if let Some(retry) = retry {
            return Some(retry.at);
        }
        // Complete and unused: the caller may come again. Anything else is a remainder.
        if this_boot && entry.is_complete() {
            return Some(self.idle_until(entry.volume_id));
        }
        Some(now)
    }

    /// Lets go of a volume that nobody uses; when to look again.
    async fn finish(&self, entry: &Entry, retries: &mut HashMap<Uuid, Retry>) -> Instant {
        let id = entry.volume_id;
        let Some(_guard) = self.volumes.try_lock(&id) else { return Instant::now() + BUSY_RETRY };
        match self.finish_locked(id).await {
            Ok(true) => {
                retries.remove(&id);
                tracing::info!(volume = entry.shown_name(), "released what was left");
                Instant::now() + BUSY_RETRY
            }
            Ok(false) => Retry::again(retries, id),
            Err(error) => {
                let at = Retry::again(retries, id);
                tracing::warn!(volume = entry.shown_name(), "not released yet: {}", Chain(&error));
                at
            }
        }
    }

    /// Whether it is done. The entry is read again under the lock: an operation may have come.
    async fn finish_locked(&self, id: Uuid) -> Result<bool, DriverError> {
        let Some(entry) = self.journal.get(id)? else { return Ok(true) };
        let entry = self.settle_references(&entry).await?;
        if entry.users() > 0 || !entry.has_liabilities() {
            return Ok(true);
        }
        let outcome = self.let_go(id, false).await?;
        match outcome.cloud_error {
            Some(error) => Err(error),
            None => Ok(outcome.held.is_empty()),
        }
    }
}

/// When something is tried again.
#[derive(Debug, Clone, Copy)]
struct Retry {
    at: Instant,
    pause: Duration,
}

impl Retry {
    fn again(retries: &mut HashMap<Uuid, Self>, id: Uuid) -> Instant {
        let pause = retries.get(&id).map_or(FIRST_RETRY, |retry| (retry.pause * 2).min(LAST_RETRY));
        let at = Instant::now() + pause;
        retries.insert(id, Self { at, pause });
        at
    }
}
