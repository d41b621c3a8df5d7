//! What this host has done and is about to do, one small JSON file a volume.
//!
//! Written by temp + fsync + rename + fsync(directory) before each step that cannot be taken back
//! (intent) and after it (fact). It is a hint that says where to look: the kernel and Cinder are
//! the truth. An entry that cannot be read, or of an unknown version, blocks only its volume.

mod entry;
pub(super) mod file;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Notify;
use uuid::Uuid;

pub use entry::{
    AttachmentRecord, AttachmentStage, Creation, Entry, Facts, Formatting, MountRecord, Reference,
    Unanswered, VERSION,
};

use super::references::disown_untold;
use crate::locks::Locks;

/// Why the journal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file or directory could not be read or written.
    #[error("cannot {action} the journal {}", path.display())]
    Io {
        /// `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another daemon uses it.
    #[error(
        "another cinder-docker-driver uses {}: stop it, or give this one its own StateDir",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// An entry that makes no sense; only its volume is affected.
    #[error(
        "the journal entry {} cannot be used ({reason}); nothing is done to this volume until it \
         is moved away: what it described is then found again from the kernel and Cinder",
        path.display()
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The journal of this host. The directory is locked while it is open.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    entries: Mutex<Entries>,
    unusable: HashMap<Uuid, Unusable>,
    creations: Mutex<HashMap<Uuid, Creation>>,
    behind: Mutex<HashSet<Uuid>>,
    fell_behind: Notify,
    writing: Locks<Uuid>,
    _lock: Flock<std::fs::File>,
}

impl Journal {
    /// Locks and reads `directory`, which is created (0700) if need be. Blocks for as long as
    /// reading takes; called once, at start.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io { action, path, source }
        };
        for sub in ["volumes", "creations"] {
            let path = directory.join(sub);
            file::create_private_dir(&path).map_err(io("create", &path))?;
        }
        let lock_path = directory.join("lock");
        let lock = file::open_private(&lock_path).map_err(io("open", &lock_path))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| JournalError::Locked { path: directory.to_owned() })?;
        for sub in ["volumes", "creations"] {
            let path = directory.join(sub);
            file::remove_unfinished(&path).map_err(io("read", &path))?;
        }
        let volumes = directory.join("volumes");
        let (entries, unusable) = read_entries(&volumes).map_err(io("read", &volumes))?;
        let path = directory.join("creations");
        let creations = file::read_all::<Creation>(&path)
            .map_err(io("read", &path))?
            .into_iter()
            .filter_map(|(path, creation)| match creation {
                Ok(creation) if creation.version == VERSION => Some((creation.nonce, creation)),
                _ => {
                    tracing::warn!(path = %path.display(), "a creation that cannot be read is left alone");
                    None
                }
            })
            .collect();
        Ok(Self {
            directory: directory.to_owned(),
            entries: Mutex::new(entries),
            unusable,
            creations: Mutex::new(creations),
            behind: Mutex::default(),
            fell_behind: Notify::new(),
            writing: Locks::default(),
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The entry of a volume; `None` when nothing is known. An unusable entry is an error.
    pub fn get(&self, id: Uuid) -> Result<Option<Arc<Entry>>, JournalError> {
        if let Some(unusable) = self.unusable.get(&id) {
            return Err(unusable.error());
        }
        Ok(self.lock_entries().by_id.get(&id).cloned())
    }

    /// Every usable entry.
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.lock_entries().by_id.values().cloned().collect()
    }

    /// Every entry that has this Docker name.
    pub fn all_named(&self, name: &str) -> Vec<Arc<Entry>> {
        self.lock_entries().named(name).cloned().collect()
    }

    /// The volumes whose entries cannot be used: id, file and reason.
    pub fn unusable(&self) -> impl Iterator<Item = (Uuid, &Path, &str)> {
        self.unusable.iter().map(|(id, entry)| (*id, entry.path.as_path(), entry.reason.as_str()))
    }

    /// The error for a Docker name that an unusable entry has, or may have: a torn one names none.
    pub fn unusable_named(&self, name: &str) -> Option<JournalError> {
        let has =
            |entry: &&Unusable| entry.names.as_ref().is_some_and(|names| names.contains(name));
        let found = self.unusable.values().find(has);
        let found = found.or_else(|| self.unusable.values().find(|entry| entry.names.is_none()));
        found.map(Unusable::error)
    }

    /// The entry that answers to a Docker name here.
    pub fn by_name(&self, name: &str) -> Option<Arc<Entry>> {
        let entries = self.lock_entries();
        // A name can pass from one volume to another; what is mounted here answers to it.
        let mut found = entries.named(name);
        let first = found.next()?;
        Some(found.find(|entry| entry.mount.is_some()).unwrap_or(first).clone())
    }

    /// Changes an entry, on disk first. When the disk refuses, nothing has changed.
    pub async fn update(
        &self,
        id: Uuid,
        change: impl FnOnce(&mut Entry),
    ) -> Result<Arc<Entry>, JournalError> {
        let _writing = self.writing.lock(&id).await;
        let (entry, changed) = self.changed(id, change)?;
        if changed || self.lock_behind().contains(&id) {
            let path = self.path_of(id);
            file::write(&path, &*entry).await.map_err(|source| JournalError::Io {
                action: "write",
                path,
                source,
            })?;
            self.lock_entries().insert(entry.clone());
            self.lock_behind().remove(&id);
        }
        Ok(entry)
    }

    /// Changes an entry in memory; its file follows with the entry's next change, or soon. Only for
    /// what another change follows at once, and for facts that a crash may forget: the file is then
    /// behind on the safe side, and names what may still have to be undone.
    pub async fn update_with_next(
        &self,
        id: Uuid,
        change: impl FnOnce(&mut Entry),
    ) -> Result<Arc<Entry>, JournalError> {
        let _writing = self.writing.lock(&id).await;
        let (entry, changed) = self.changed(id, change)?;
        if changed {
            self.lock_entries().insert(entry.clone());
            self.lock_behind().insert(id);
        }
        Ok(entry)
    }

    /// Changes an entry; a disk that refuses does not stop it. For letting go: a full disk must
    /// not keep a volume mounted. The file is then behind, on the safe side: it names what may
    /// still have to be undone, and undoing twice does no harm.
    pub async fn update_regardless(
        &self,
        id: Uuid,
        change: impl FnOnce(&mut Entry),
    ) -> Result<Arc<Entry>, JournalError> {
        let _writing = self.writing.lock(&id).await;
        let (entry, changed) = self.changed(id, change)?;
        if changed || self.lock_behind().contains(&id) {
            self.lock_entries().insert(entry.clone());
            self.write_regardless(id, &entry).await;
        }
        Ok(entry)
    }

    async fn write_regardless(&self, id: Uuid, entry: &Entry) {
        let written = file::write(&self.path_of(id), entry).await;
        let mut behind = self.lock_behind();
        match written {
            Ok(()) => drop(behind.remove(&id)),
            Err(error) => {
                tracing::error!(volume_id = %id, %error, "the journal could not be written");
                behind.insert(id);
                self.fell_behind.notify_one();
            }
        }
    }

    /// The volumes whose files are behind, because the disk refused.
    pub fn behind(&self) -> Vec<Uuid> {
        self.lock_behind().iter().copied().collect()
    }

    /// Waits until the disk refuses something that has to be written later.
    pub async fn fell_behind(&self) {
        self.fell_behind.notified().await;
    }

    /// Writes what the disk has refused so far.
    pub async fn catch_up(&self) {
        for id in self.behind() {
            let _writing = self.writing.lock(&id).await;
            let entry = self.lock_entries().by_id.get(&id).cloned();
            match entry {
                Some(entry) => self.write_regardless(id, &entry).await,
                // Forgotten since.
                None => {
                    self.lock_behind().remove(&id);
                }
            }
        }
    }

    /// Forgets a volume that is gone, unless something is held for it: an operation may have begun
    /// since the caller looked.
    pub async fn forget(&self, id: Uuid) -> Result<(), JournalError> {
        let _writing = self.writing.lock(&id).await;
        if self.get(id)?.is_some_and(|entry| entry.has_liabilities()) {
            return Ok(());
        }
        self.lock_entries().remove(id);
        self.lock_behind().remove(&id);
        let path = self.path_of(id);
        file::remove(&path).await.map_err(|source| JournalError::Io {
            action: "remove",
            path,
            source,
        })
    }

    /// Notes a creation before its POST. After an error it may be noted all the same, and is still
    /// to be ended.
    pub async fn begin_creation(&self, creation: Creation) -> Result<(), JournalError> {
        let path = self.creation_path(creation.nonce);
        let written = file::write(&path, &creation).await;
        self.lock_creations().insert(creation.nonce, creation);
        written.map_err(|source| JournalError::Io { action: "write", path, source })
    }

    /// The creation is over, one way or the other. Whether the disk knows it, too.
    pub async fn end_creation(&self, nonce: Uuid) -> bool {
        if let Err(error) = file::remove(&self.creation_path(nonce)).await {
            tracing::warn!(%nonce, %error, "a finished creation could not be removed from the journal");
            return false;
        }
        self.lock_creations().remove(&nonce);
        true
    }

    /// Creations that have begun and not ended.
    pub fn creations(&self) -> Vec<Creation> {
        self.lock_creations().values().cloned().collect()
    }

    fn changed(
        &self,
        id: Uuid,
        change: impl FnOnce(&mut Entry),
    ) -> Result<(Arc<Entry>, bool), JournalError> {
        let old = self.get(id)?;
        let mut entry = old.as_deref().cloned().unwrap_or_else(|| Entry::new(id));
        change(&mut entry);
        let changed = old.as_deref() != Some(&entry);
        Ok((Arc::new(entry), changed))
    }

    fn path_of(&self, id: Uuid) -> PathBuf {
        self.directory.join("volumes").join(format!("{id}.json"))
    }

    fn creation_path(&self, nonce: Uuid) -> PathBuf {
        self.directory.join("creations").join(format!("{nonce}.json"))
    }

    fn lock_entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_behind(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_creations(&self) -> MutexGuard<'_, HashMap<Uuid, Creation>> {
        self.creations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the entries of a journal without locking it: for `status`, beside a running daemon.
/// Entries that cannot be used come with the reason.
pub fn peek(directory: &Path) -> io::Result<Vec<(PathBuf, Result<Entry, String>)>> {
    let entries = file::read_all::<Entry>(&directory.join("volumes"))?;
    let looked_at = |(path, entry): (PathBuf, _)| {
        let entry = checked(&path, entry);
        (path, entry)
    };
    Ok(entries.into_iter().map(looked_at).collect())
}

/// The entries, and which of them have a name: that is asked with every call of Docker.
#[derive(Debug, Default)]
struct Entries {
    by_id: HashMap<Uuid, Arc<Entry>>,
    by_name: HashMap<String, BTreeSet<Uuid>>,
}

impl Entries {
    fn insert(&mut self, entry: Arc<Entry>) {
        let old = self.by_id.get(&entry.volume_id);
        if old.is_none_or(|old| old.names != entry.names) {
            self.remove(entry.volume_id);
            for name in &entry.names {
                self.by_name.entry(name.clone()).or_default().insert(entry.volume_id);
            }
        }
        self.by_id.insert(entry.volume_id, entry);
    }

    fn remove(&mut self, id: Uuid) {
        let Some(old) = self.by_id.remove(&id) else { return };
        for name in &old.names {
            if let Some(ids) = self.by_name.get_mut(name) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_name.remove(name);
                }
            }
        }
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_name.get(name).into_iter().flatten().filter_map(|id| self.by_id.get(id))
    }
}

/// What every version has.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

/// What other versions may have, too.
#[derive(serde::Deserialize)]
struct Named {
    names: BTreeSet<String>,
}

/// An entry of this version. Another's may have a form that is none here: the version says more.
fn checked(path: &Path, entry: Result<Entry, String>) -> Result<Entry, String> {
    entry.and_then(check_version).map_err(|reason| match file::read::<Versioned>(path) {
        Ok(Versioned { version }) if version != VERSION => other_version(version),
        _ => reason,
    })
}

/// An entry that makes no sense.
#[derive(Debug)]
struct Unusable {
    path: PathBuf,
    reason: String,
    /// Its Docker names, as far as they can be read.
    names: Option<BTreeSet<String>>,
}

impl Unusable {
    fn new(path: PathBuf, reason: String) -> Self {
        let names = file::read::<Named>(&path).ok().map(|named| named.names);
        Self { path, reason, names }
    }

    fn error(&self) -> JournalError {
        JournalError::Unusable { path: self.path.clone(), reason: self.reason.clone() }
    }
}

fn read_entries(directory: &Path) -> io::Result<(Entries, HashMap<Uuid, Unusable>)> {
    let mut usable = Entries::default();
    let mut unusable = HashMap::new();
    for (path, entry) in file::read_all::<Entry>(directory)? {
        let id = path.file_stem().and_then(|stem| Uuid::parse_str(&stem.to_string_lossy()).ok());
        match (id, checked(&path, entry)) {
            (Some(id), Ok(mut entry)) if entry.volume_id == id => {
                disown_untold(&mut entry.references);
                usable.insert(Arc::new(entry));
            }
            (Some(id), Ok(entry)) => {
                let reason = format!("it speaks of volume {}", entry.volume_id);
                unusable.insert(id, Unusable::new(path, reason));
            }
            (Some(id), Err(reason)) => {
                tracing::error!(path = %path.display(), reason, "a journal entry cannot be used; its volume is left alone");
                unusable.insert(id, Unusable::new(path, reason));
            }
            (None, _) => {
                tracing::warn!(path = %path.display(), "a file in the journal is not named after a volume");
            }
        }
    }
    Ok((usable, unusable))
}

pub(super) fn check_version(entry: Entry) -> Result<Entry, String> {
    if entry.version == VERSION { Ok(entry) } else { Err(other_version(entry.version)) }
}

fn other_version(version: u32) -> String {
    format!(
        "its version is {version}, and this driver writes {VERSION}: install the driver again that \
         wrote it"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn what_was_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let id = Uuid::new_v4();
        let journal = Journal::open(dir.path()).unwrap();
        journal
            .update(id, |entry| {
                entry.names.insert("web".into());
            })
            .await
            .unwrap();
        drop(journal);
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.by_name("web").unwrap().volume_id, id);
        journal.forget(id).await.unwrap();
        drop(journal);
        assert!(Journal::open(dir.path()).unwrap().all().is_empty());
    }

    #[tokio::test]
    async fn a_name_is_found_wherever_it_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let ids = |name: &str| {
            let mut ids: Vec<_> = journal.all_named(name).iter().map(|e| e.volume_id).collect();
            ids.sort();
            ids
        };
        for id in [one, other] {
            journal.update(id, |entry| entry.names.extend(["web".into()])).await.unwrap();
        }
        journal.update(one, |entry| entry.names.extend(["db".into()])).await.unwrap();
        assert_eq!(ids("web"), [one.min(other), one.max(other)]);
        journal.update(one, |entry| assert!(entry.names.remove("web"))).await.unwrap();
        assert_eq!((ids("web"), ids("db")), (vec![other], vec![one]));
        journal.forget(other).await.unwrap();
        assert_eq!((ids("web"), ids("db")), (vec![], vec![one]));
        assert!(journal.by_name("web").is_none());
        assert_eq!(journal.lock_entries().by_name.len(), 1);
    }

    #[tokio::test]
    async fn what_may_follow_later_is_on_disk_with_the_next_change_whatever_that_is() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let id = Uuid::new_v4();
        let on_disk = || std::fs::read_to_string(journal.path_of(id)).unwrap_or_default();
        for (round, text) in ["1", "2", "3"].into_iter().enumerate() {
            let change = |entry: &mut Entry| entry.boot_id = format!("later {text}");
            let entry = journal.update_with_next(id, change).await.unwrap();
            assert_eq!(journal.get(id).unwrap(), Some(entry));
            assert!(!on_disk().contains(&format!("later {text}")));
            assert_eq!(journal.behind(), [id]);
            match round {
                0 => drop(journal.update(id, |_| ()).await.unwrap()),
                1 => drop(journal.update_regardless(id, |_| ()).await.unwrap()),
                _ => journal.catch_up().await,
            }
            assert!(on_disk().contains(&format!("later {text}")));
            assert!(journal.behind().is_empty());
        }
    }

    #[tokio::test]
    async fn a_volume_of_which_something_is_held_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let id = Uuid::new_v4();
        let device =
            crate::host::attach::DeviceRecord::Local(crate::host::attach::local::LocalRecord {
                device_path: "/dev/loop0".into(),
                taken: true,
            });
        journal.update(id, |entry| entry.device = Some(device)).await.unwrap();
        journal.forget(id).await.unwrap();
        assert!(journal.get(id).unwrap().is_some());
        journal.update(id, |entry| entry.device = None).await.unwrap();
        journal.forget(id).await.unwrap();
        assert_eq!(journal.get(id).unwrap(), None);
    }

    #[tokio::test]
    async fn an_unreadable_or_newer_entry_blocks_only_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let (good, torn, newer) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
        let journal = Journal::open(dir.path()).unwrap();
        journal.update(good, |entry| entry.last_error = Some("x".into())).await.unwrap();
        drop(journal);
        let volumes = dir.path().join("volumes");
        std::fs::write(volumes.join(format!("{torn}.json")), "{\"version\":1,").unwrap();
        let text = serde_json::to_string(&Entry { version: 2, ..Entry::new(newer) }).unwrap();
        std::fs::write(volumes.join(format!("{newer}.json")), text).unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert!(journal.get(good).unwrap().is_some());
        assert!(journal.get(torn).is_err());
        let error = journal.get(newer).unwrap_err().to_string();
        assert!(error.contains("version is 2"), "{error}");
        assert!(journal.update(torn, |_| ()).await.is_err());
    }

    #[test]
    fn two_daemons_cannot_share_a_journal() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Journal::open(dir.path()).unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(JournalError::Locked { .. })));
    }

    #[tokio::test]
    async fn nobody_else_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("state")).unwrap();
        let id = Uuid::new_v4();
        journal.update(id, |entry| entry.boot_id = "b".into()).await.unwrap();
        for (path, mode) in [
            (journal.directory().to_owned(), 0o700),
            (journal.directory().join("volumes"), 0o700),
            (journal.path_of(id), 0o600),
        ] {
            let found = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{}", path.display());
        }
    }

    #[tokio::test]
    async fn a_disk_that_refuses_leaves_the_entry_as_it_was_but_lets_go_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let id = Uuid::new_v4();
        journal.update(id, |entry| entry.boot_id = "1".into()).await.unwrap();
        std::fs::remove_dir_all(dir.path().join("volumes")).unwrap();
        std::fs::write(dir.path().join("volumes"), "in the way").unwrap();
        assert!(journal.update(id, |entry| entry.boot_id = "2".into()).await.is_err());
        assert_eq!(journal.get(id).unwrap().unwrap().boot_id, "1");
        journal.update_regardless(id, |entry| entry.boot_id = "3".into()).await.unwrap();
        assert_eq!(journal.get(id).unwrap().unwrap().boot_id, "3");
    }
}
