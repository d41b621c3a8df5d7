//! Keeps the process small: the allocator's settings, and what is given back when work has ended.

use std::time::Duration;

use tokio::sync::Notify;

/// So long nothing may have happened: an engine asks several things in a row.
const REST: Duration = Duration::from_millis(500);

/// One for the process, as its heap is.
static WORK: Notify = Notify::const_new();

/// glibc keeps a heap for each thread, and after the first large answer also what was large. Both are
/// for programs that allocate all day. To be called before there are threads.
#[cfg(target_env = "gnu")]
pub fn keep_small() {
    use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
    let settings = [(M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 64 * 1024), (M_TRIM_THRESHOLD, 64 * 1024)];
    for (name, value) in settings {
        #[expect(unsafe_code, reason = "there is no safe function for it")]
        // SAFETY: no other thread runs yet. A setting that is refused changes nothing.
        unsafe {
            mallopt(name, value)
        };
    }
}

/// Other C libraries give back by themselves, or cannot be asked.
#[cfg(not(target_env = "gnu"))]
pub fn keep_small() {}

/// Something is being done.
pub fn work() {
    WORK.notify_one();
}

/// Gives free memory back, once, whenever there was work and then none for half a second: of many
/// requests at once little remains in use, but it lies scattered over the heap. Never ends. Nothing
/// wakes up while there is no work.
pub async fn give_back_after_work() {
    loop {
        WORK.notified().await;
        while tokio::time::timeout(REST, WORK.notified()).await.is_ok() {}
        give_back();
    }
}

#[cfg(target_env = "gnu")]
fn give_back() {
    #[expect(unsafe_code, reason = "there is no safe function for it")]
    // SAFETY: it only releases pages that no allocation uses (malloc_trim(3)); thread-safe.
    unsafe {
        nix::libc::malloc_trim(0)
    };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}
