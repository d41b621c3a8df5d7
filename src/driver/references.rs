//! Who uses a mount: a count for each (engine, id).
//!
//! References of an engine that lives are believed. Those of one that is gone count only while
//! some other mount namespace still holds the filesystem.

use super::journal::Reference;
use crate::docker::Engine;
use crate::host::process::MountHolder;

/// An engine that never was: whose references only the kernel can confirm.
const NOBODY: Engine = Engine { pid: 0, start_time: 0 };

/// Counts one more for this id, which its engine is yet to be [`told`] of.
pub fn add(references: &mut Vec<Reference>, id: &str, engine: Option<Engine>) {
    match references.iter_mut().find(|r| r.id == id && r.engine == engine) {
        Some(reference) => {
            reference.count = reference.count.saturating_add(1);
            reference.untold = reference.untold.saturating_add(1);
        }
        None => references.push(Reference { id: id.to_owned(), engine, count: 1, untold: 1 }),
    }
}

/// The engine has heard of one.
pub fn told(references: &mut [Reference], id: &str, engine: Option<Engine>) {
    if let Some(own) = references.iter_mut().find(|r| r.id == id && r.engine == engine) {
        own.untold = own.untold.saturating_sub(1);
    }
}

/// The daemon that counted these is gone. What it told nobody of, its engine takes for a Mount
/// that failed, and sends no Unmount for: it counts only while a container is really there.
pub fn disown_untold(references: &mut Vec<Reference>) {
    let mut disowned = Vec::new();
    for reference in references.iter_mut().filter(|reference| reference.untold > 0) {
        let (id, count) = (reference.id.clone(), reference.untold.min(reference.count));
        reference.count -= count;
        reference.untold = 0;
        if count > 0 {
            disowned.push(Reference { id, engine: Some(NOBODY), count, untold: 0 });
        }
    }
    references.retain(|reference| reference.count > 0);
    for reference in disowned {
        let same = |r: &&mut Reference| r.id == reference.id && r.engine == reference.engine;
        match references.iter_mut().find(same) {
            Some(same) => same.count = same.count.saturating_add(reference.count),
            None => references.push(reference),
        }
    }
}

/// Counts one less for this id: the engine's own count first, otherwise that of an engine before
/// it (with live-restore the next engine unmounts what the last one mounted). Whether there was
/// one.
pub fn take(references: &mut Vec<Reference>, id: &str, engine: Option<Engine>) -> bool {
    if take_own(references, id, engine) {
        return true;
    }
    let before = references.iter().find(|r| r.id == id).map(|r| r.engine);
    before.is_some_and(|engine| take_own(references, id, engine))
}

/// Counts one less for this id and engine. Whether there was one.
pub fn take_own(references: &mut Vec<Reference>, id: &str, engine: Option<Engine>) -> bool {
    let own = references.iter().position(|r| r.id == id && r.engine == engine);
    let Some(at) = own else { return false };
    let reference = &mut references[at];
    reference.count = reference.count.saturating_sub(1);
    reference.untold = reference.untold.min(reference.count);
    if reference.count == 0 {
        references.remove(at);
    }
    true
}

/// Whether some reference is of an engine that is gone, so that only the kernel can tell.
pub fn any_orphans(references: &[Reference], lives: impl Fn(Engine) -> bool) -> bool {
    references.iter().any(|r| r.engine.is_some_and(|engine| !lives(engine)))
}

/// Drops the references of engines that are gone. For when nobody else holds the filesystem.
pub fn drop_orphans(references: &mut Vec<Reference>, lives: impl Fn(Engine) -> bool) {
    references.retain(|r| r.engine.is_none_or(&lives));
}

/// A process whose mounts could not be read. It counts as a holder; but while a process ends,
/// nobody can read it.
pub fn is_unread(holder: &MountHolder) -> bool {
    holder.mount_point.is_empty()
}

/// The holders of a second look: of those that cannot be read, only who was there before.
pub fn still_there(before: &[MountHolder], mut now: Vec<MountHolder>) -> Vec<MountHolder> {
    now.retain(|holder| !is_unread(holder) || before.iter().any(|old| old.pid == holder.pid));
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_cannot_be_read_counts_only_if_it_is_there_at_the_next_look() {
        let holder =
            |pid, at: &str| MountHolder { pid, command: "sh".into(), mount_point: at.into() };
        let before = [holder(1, ""), holder(2, "")];
        let pids = |now| still_there(&before, now).iter().map(|one| one.pid).collect::<Vec<_>>();
        assert_eq!(pids(vec![holder(2, ""), holder(3, "")]), [2]);
        assert_eq!(pids(vec![holder(3, "/data")]), [3]);
        assert_eq!(pids(Vec::new()), [0; 0]);
    }

    const OLD: Option<Engine> = Some(Engine { pid: 1, start_time: 10 });
    const NEW: Option<Engine> = Some(Engine { pid: 2, start_time: 20 });

    #[test]
    fn docker_cp_does_not_take_the_volume_from_its_container() {
        let mut references = Vec::new();
        add(&mut references, "c", OLD);
        add(&mut references, "c", OLD);
        assert!(take(&mut references, "c", OLD));
        assert_eq!(references.len(), 1);
        assert!(take(&mut references, "c", OLD));
        assert!(references.is_empty());
        assert!(!take(&mut references, "c", OLD));
    }

    #[test]
    fn the_next_engine_may_unmount_what_the_last_one_mounted() {
        let mut references = Vec::new();
        add(&mut references, "c", OLD);
        assert!(take(&mut references, "c", NEW));
        assert!(references.is_empty());
    }

    #[test]
    fn what_an_engine_never_heard_of_is_not_taken_from_another() {
        let mut references = Vec::new();
        add(&mut references, "c", NEW);
        assert!(!take_own(&mut references, "c", OLD));
        assert_eq!(references.len(), 1);
        assert!(take_own(&mut references, "c", NEW));
    }

    #[test]
    fn what_a_dead_daemon_told_nobody_of_is_confirmed_by_the_kernel_only() {
        let mut references = Vec::new();
        add(&mut references, "c", OLD);
        told(&mut references, "c", OLD);
        add(&mut references, "c", OLD);
        add(&mut references, "d", OLD);
        for _ in 0..2 {
            disown_untold(&mut references);
            let lives = |engine| Some(engine) == OLD;
            assert!(any_orphans(&references, lives));
            let counts: Vec<_> = references.iter().map(|r| (r.id.as_str(), r.count)).collect();
            assert_eq!(counts, [("c", 1), ("c", 1), ("d", 1)]);
        }
        // Its Unmount may come all the same: a container that started in that moment.
        assert!(take(&mut references, "d", OLD));
        drop_orphans(&mut references, |engine| Some(engine) == OLD);
        assert_eq!(references, [Reference { id: "c".into(), engine: OLD, count: 1, untold: 0 }]);
    }

    #[test]
    fn only_the_references_of_engines_that_are_gone_are_dropped() {
        let mut references = Vec::new();
        add(&mut references, "a", OLD);
        add(&mut references, "b", NEW);
        add(&mut references, "c", None);
        let lives = |engine| Some(engine) == NEW;
        assert!(any_orphans(&references, lives));
        drop_orphans(&mut references, lives);
        assert_eq!(references.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    }
}
