//! One question for all who ask the same at once.
//!
//! dockerd sends a Get for every known volume at its start, and one volume's Gets come in crowds.
//! Whoever asks *before* a question is sent shares its answer; whoever comes while it is under way
//! does not, for the answer may be older than what they have just done elsewhere. They wait for the
//! next one, of which at most [`AT_ONCE`] are under way, so a crowd costs a handful of calls and
//! nobody waits for more than one that is not their own.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OnceCell, Semaphore};

/// Two callers who come one after the other don't wait for each other.
const AT_ONCE: usize = 2;

/// Questions under way, by what is asked.
pub(super) struct Flights<K, T>(Mutex<HashMap<K, Weak<Lane<T>>>>);

struct Lane<T> {
    /// Takes up who comes, until it is sent.
    boarding: Mutex<Option<Arc<OnceCell<T>>>>,
    under_way: Semaphore,
}

impl<T> Lane<T> {
    /// Nobody may come along any more.
    fn close(&self, flight: &Arc<OnceCell<T>>) {
        let mut boarding = lock(&self.boarding);
        if boarding.as_ref().is_some_and(|open| Arc::ptr_eq(open, flight)) {
            *boarding = None;
        }
    }
}

impl<K: Hash + Eq + Clone, T: Clone> Flights<K, T> {
    /// The answer to a question that is sent after this call. `ask` may be dropped in the middle
    /// when its caller gives up; then another one's is sent.
    pub async fn share<F: Future<Output = T>>(&self, key: &K, ask: impl FnOnce() -> F) -> T {
        let lane = self.lane(key);
        let flight = Arc::clone(lock(&lane.boarding).get_or_insert_default());
        let send = async {
            // A semaphore that is never closed.
            let _permit = lane.under_way.acquire().await;
            // Who is here already comes along.
            tokio::task::yield_now().await;
            lane.close(&flight);
            ask().await
        };
        flight.get_or_init(|| send).await.clone()
    }

    fn lane(&self, key: &K) -> Arc<Lane<T>> {
        let mut lanes = lock(&self.0);
        if let Some(lane) = lanes.get(key).and_then(Weak::upgrade) {
            return lane;
        }
        lanes.retain(|_, lane| lane.strong_count() > 0);
        let lane =
            Arc::new(Lane { boarding: Mutex::default(), under_way: Semaphore::new(AT_ONCE) });
        lanes.insert(key.clone(), Arc::downgrade(&lane));
        lane
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K, T> fmt::Debug for Flights<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn who_asks_at_once_shares_one_answer() {
        let (flights, sent) = (Flights::default(), Cell::new(0));
        let ask = || async {
            sent.set(sent.get() + 1);
            sent.get()
        };
        let answers = join_all((0..300).map(|_| flights.share(&"v", ask))).await;
        assert_eq!((sent.get(), answers), (1, vec![1; 300]));
        flights.share(&"v", ask).await;
        assert_eq!(sent.get(), 2, "an answer is not kept");
    }

    #[tokio::test]
    async fn an_answer_under_way_serves_nobody_who_comes_later() {
        let (flights, sent, gate) = (Flights::default(), Cell::new(0), Notify::new());
        let ask = || async {
            let number = sent.get() + 1;
            sent.set(number);
            gate.notified().await;
            number
        };
        let first = flights.share(&"v", ask);
        // It has been sent when the others come, in a crowd each time.
        let late = async {
            while sent.get() < 1 {
                tokio::task::yield_now().await;
            }
            let second = join_all((0..10).map(|_| flights.share(&"v", ask)));
            let third = async {
                while sent.get() < 2 {
                    tokio::task::yield_now().await;
                }
                // Two are under way: this one waits, and is not answered by them.
                let third = join_all((0..10).map(|_| flights.share(&"v", ask)));
                let open = async {
                    tokio::task::yield_now().await;
                    assert_eq!(sent.get(), 2);
                    for _ in 0..3 {
                        gate.notify_one();
                        while sent.get() < 3 {
                            tokio::task::yield_now().await;
                        }
                    }
                    gate.notify_waiters();
                };
                tokio::join!(third, open).0
            };
            tokio::join!(second, third)
        };
        let (first, (second, third)) = tokio::join!(first, late);
        assert_eq!((first, second, third), (1, vec![2; 10], vec![3; 10]));
    }

    #[tokio::test]
    async fn one_who_gives_up_leaves_the_question_to_the_others() {
        let (flights, sent) = (Flights::default(), Cell::new(0));
        let first = flights.share(&"v", || {
            sent.set(sent.get() + 1);
            std::future::pending()
        });
        let other = async {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            flights.share(&"v", || std::future::ready(7)).await
        };
        let gone = tokio::time::timeout(std::time::Duration::from_millis(20), first);
        let (gone, answer) = tokio::join!(gone, other);
        assert!(gone.is_err());
        assert_eq!((answer, sent.get()), (7, 1));
        assert_eq!(flights.share(&"w", || std::future::ready(8)).await, 8);
        assert_eq!(lock(&flights.0).len(), 1, "lanes that nobody uses are forgotten");
    }
}
