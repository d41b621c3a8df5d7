//! Finishing what was left: at start, and whenever an operation could not end.
//!
//! Journal × kernel × Cinder → finish or undo. Never touches what somebody uses.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;
use uuid::Uuid;

use super::journal::Entry;
use super::{Driver, DriverError, FIRST_RETRY};
use crate::error_chain::Chain;

/// Longest wait before something that failed is tried again; it doubles from [`FIRST_RETRY`].
const LAST_RETRY: Duration = Duration::from_secs(300);

impl Driver {
    /// Runs in the background until it is dropped: recovers, then finishes what operations leave.
    /// Sleeps without waking while there is nothing to do.
    pub async fn work_in_background(self: Arc<Self>) {
        self.settle_all().await;
        tokio::join!(
            self.adopt_mounts(),
            Box::pin(self.renew_for_ever()),
            Box::pin(self.finish_for_ever())
        );
    }

    /// Each volume in a task of its own: one that takes long holds up no other.
    async fn finish_for_ever(self: &Arc<Self>) {
        let mut retries: HashMap<Uuid, Retry> = HashMap::new();
        let mut running: JoinSet<(Uuid, bool)> = JoinSet::new();
        let mut busy: HashSet<Uuid> = HashSet::new();
        // What an earlier run left is looked at now, what comes later after a while.
        let mut notes = Some(Retry::first(Duration::ZERO));
        loop {
            let now = Instant::now();
            let mut next: Option<Instant> = None;
            for entry in self.journal.all() {
                let id = entry.volume_id;
                match self.due(&entry, retries.get(&id), now) {
                    _ if busy.contains(&id) => {}
                    None => drop(retries.remove(&id)),
                    Some(due) if due <= now => {
                        busy.insert(id);
                        let driver = Arc::clone(self);
                        let span = tracing::info_span!(
                            "operation",
                            op = "finish",
                            volume = entry.shown_name()
                        );
                        let finish = async move { (id, driver.finish(&entry).await) };
                        running.spawn(finish.instrument(span));
                    }
                    Some(due) => next = Some(next.map_or(due, |next| next.min(due))),
                }
            }
            if notes.is_some_and(|notes| notes.at <= now) {
                self.finish_creations().await;
                self.journal.catch_up().await;
                notes = notes.map(Retry::next);
            }
            let open = !self.journal.creations().is_empty() || !self.journal.behind().is_empty();
            notes = open.then(|| notes.unwrap_or_else(|| Retry::first(FIRST_RETRY)));
            if let Some(notes) = notes {
                next = Some(next.map_or(notes.at, |next| next.min(notes.at)));
            }
            let sleep = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.work.notified() => {}
                () = self.journal.fell_behind() => {}
                Some(ended) = running.join_next() => match ended {
                    Ok((id, done)) => {
                        busy.remove(&id);
                        Retry::note(&mut retries, id, done);
                    }
                    // Nobody knows any more whose it was: look at all again, later.
                    Err(error) => {
                        tracing::error!(%error, "background work broke off");
                        for id in busy.drain() {
                            Retry::note(&mut retries, id, false);
                        }
                    }
                },
            }
        }
    }

    /// At start: drops the references that the last run left and nobody backs.
    async fn settle_all(&self) {
        for (id, path, reason) in self.journal.unusable() {
            tracing::error!(volume_id = %id, path = %path.display(), reason, "left alone");
        }
        // Somebody waits for each of these.
        for entry in self.journal.all().into_iter().filter(|entry| entry.frozen.is_some()) {
            let Some(_guard) = self.volumes.try_lock(&entry.volume_id) else { continue };
            if let Err(error) = self.thaw_what_was_left(&entry).await {
                tracing::error!(volume = entry.shown_name(), "still frozen: {}", Chain(&error));
            }
        }
        for entry in self.journal.all() {
            // An operation that has the volume already settles for itself.
            let Some(_guard) = self.volumes.try_lock(&entry.volume_id) else { continue };
            if entry.references.is_empty() {
                // An Unmount that was interrupted: its caller does not come again.
                self.set_abandoned(entry.volume_id);
            }
            if let Err(error) = self.settle_references(&entry).await {
                tracing::error!(volume = entry.shown_name(), "{}", Chain(&error));
            }
        }
    }

    /// When an entry needs work; `None` = it needs none.
    fn due(&self, entry: &Entry, retry: Option<&Retry>, now: Instant) -> Option<Instant> {
        if !entry.has_liabilities() {
            let due = || retry.map_or(now, |retry| retry.at);
            return entry.unanswered.is_some().then(due);
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

    /// Lets go of a volume that nobody uses; whether that is done.
    async fn finish(&self, entry: &Entry) -> bool {
        let id = entry.volume_id;
        // An operation that has the volume will see to it, or leave it for the next look.
        let Some(_guard) = self.volumes.try_lock(&id) else { return false };
        match self.finish_locked(id).await {
            Ok(done) => done,
            Err(error) => {
                tracing::warn!(volume = entry.shown_name(), "not released yet: {}", Chain(&error));
                false
            }
        }
    }

    /// Whether it is done. The entry is read again under the lock: an operation may have come.
    async fn finish_locked(&self, id: Uuid) -> Result<bool, DriverError> {
        let Some(mut entry) = self.journal.get(id)? else { return Ok(true) };
        if let Some(unanswered) = &entry.unanswered
            && !entry.has_liabilities()
        {
            if self.look_for_unanswered(id, unanswered).await? {
                return Ok(true);
            }
            match self.journal.get(id)? {
                Some(now) if now.has_liabilities() => entry = now,
                _ => return Ok(false),
            }
        }
        let entry = self.settle_references(&entry).await?;
        if entry.users() > 0 || !entry.has_liabilities() {
            return Ok(true);
        }
        let outcome = self.let_go(id, false).await?;
        match outcome.cloud_error {
            Some(error) => Err(error),
            None if outcome.held.is_empty() => {
                tracing::info!(volume = entry.shown_name(), "released what was left");
                Ok(true)
            }
            None => Ok(false),
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
    fn note(retries: &mut HashMap<Uuid, Self>, id: Uuid, done: bool) {
        if done {
            retries.remove(&id);
            return;
        }
        let next = retries.get(&id).map_or_else(|| Self::first(FIRST_RETRY), |retry| retry.next());
        retries.insert(id, next);
    }

    fn first(wait: Duration) -> Self {
        Self { at: Instant::now() + wait, pause: FIRST_RETRY }
    }

    fn next(self) -> Self {
        let pause = (self.pause * 2).min(LAST_RETRY);
        Self { at: Instant::now() + pause, pause }
    }
}
