//! Waiting for a volume's lock as long as the caller does.

use std::hash::Hash;

use super::DriverError;
use crate::docker::Caller;
use crate::locks::{Guard, Locks};

impl<K: Hash + Eq + Clone> Locks<K> {
    /// Waits for the lock as long as the caller does.
    pub(super) async fn lock_for(
        &self,
        key: &K,
        caller: &Caller,
        shown: &str,
    ) -> Result<Guard, DriverError> {
        tokio::select! {
            // A free lock is taken even for a caller who has gone: what was asked for is done.
            biased;
            guard = self.lock(key) => Ok(guard),
            () = caller.gone.cancelled() => Err(Self::busy(shown)),
            () = tokio::time::sleep_until(caller.deadline) => Err(Self::busy(shown)),
        }
    }

    fn busy(shown: &str) -> DriverError {
        DriverError::NotYet(format!(
            "another operation on \"{shown}\" is still running; try again when it is done"
        ))
    }
}
