//! One async lock for each key: what is done to one thing excludes itself, and nothing else.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

/// A lock for each key; a lock that nobody holds or waits for takes no memory.
pub struct Locks<K>(Mutex<HashMap<K, Weak<tokio::sync::Mutex<()>>>>);

/// Held until dropped.
pub type Guard = OwnedMutexGuard<()>;

impl<K: Hash + Eq + Clone> Locks<K> {
    /// Waits for the lock.
    pub async fn lock(&self, key: &K) -> Guard {
        self.of(key).lock_owned().await
    }

    /// The lock, if nobody has it.
    pub fn try_lock(&self, key: &K) -> Option<Guard> {
        self.of(key).try_lock_owned().ok()
    }

    fn of(&self, key: &K) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(key.clone(), Arc::downgrade(&lock));
        lock
    }
}

impl<K> Default for Locks<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K> fmt::Debug for Locks<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_key_excludes_itself_and_no_other() {
        let locks = Locks::default();
        let guard = locks.lock(&1).await;
        assert!(locks.try_lock(&1).is_none());
        assert!(locks.try_lock(&2).is_some());
        drop(guard);
        assert!(locks.try_lock(&1).is_some());
    }

    #[tokio::test]
    async fn locks_that_nobody_holds_are_forgotten() {
        let locks = Locks::default();
        for key in 0..100 {
            drop(locks.lock(&key).await);
        }
        assert!(locks.0.lock().unwrap().len() < 3);
    }
}
