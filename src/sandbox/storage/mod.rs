//! Volumes as sparse files, exported as loop devices or iSCSI targets.

mod files;
pub(super) mod loopback;
mod targets;

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

pub(super) use targets::Targets;

/// Bytes of a GiB, the unit of Cinder's sizes.
const GIB: u64 = 1 << 30;

/// The files of a sandbox. All calls block.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    volumes: PathBuf,
    snapshots: PathBuf,
    backups: PathBuf,
}

impl Storage {
    /// Makes the directories. `directory` is canonical, so that it can be compared with what the
    /// kernel says of loop devices.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let storage = Self {
            volumes: directory.join("volumes"),
            snapshots: directory.join("snapshots"),
            backups: directory.join("backups"),
        };
        std::fs::create_dir_all(&storage.volumes)?;
        std::fs::create_dir_all(&storage.snapshots)?;
        std::fs::create_dir_all(&storage.backups)?;
        Ok(storage)
    }

    /// The file that holds a volume.
    pub(super) fn volume(&self, id: Uuid) -> PathBuf {
        self.volumes.join(id.to_string())
    }

    fn snapshot(&self, id: Uuid) -> PathBuf {
        self.snapshots.join(id.to_string())
    }

    fn backup(&self, id: Uuid) -> PathBuf {
        self.backups.join(id.to_string())
    }

    /// Makes a volume: blank, or a copy. Doing it again changes nothing that is there.
    pub(super) fn create(&self, id: Uuid, gib: u64, source: Option<Source>) -> io::Result<()> {
        let path = self.volume(id);
        match source {
            _ if path.exists() => Ok(()),
            // The backup service fills it.
            None | Some(Source::Backup(_)) => files::create(&path, gib * GIB),
            Some(Source::Volume(source)) => files::copy(&self.volume(source), &path, gib * GIB),
            Some(Source::Snapshot(source)) => files::copy(&self.snapshot(source), &path, gib * GIB),
        }
    }

    /// Makes a snapshot of what the volume holds now.
    pub(super) fn create_snapshot(&self, id: Uuid, volume: Uuid, gib: u64) -> io::Result<()> {
        files::copy(&self.volume(volume), &self.snapshot(id), gib * GIB)
    }

    /// Makes a backup of what the volume holds now.
    pub(super) fn create_backup(&self, id: Uuid, volume: Uuid, gib: u64) -> io::Result<()> {
        files::copy(&self.volume(volume), &self.backup(id), gib * GIB)
    }

    /// Writes a backup over a volume that nobody has attached.
    pub(super) fn restore_backup(&self, id: Uuid, volume: Uuid, gib: u64) -> io::Result<()> {
        files::copy(&self.backup(id), &self.volume(volume), gib * GIB)
    }

    /// Removes a volume's file; there may be none.
    pub(super) fn remove(&self, id: Uuid) -> io::Result<()> {
        files::remove(&self.volume(id))
    }

    /// Removes a snapshot's file; there may be none.
    pub(super) fn remove_snapshot(&self, id: Uuid) -> io::Result<()> {
        files::remove(&self.snapshot(id))
    }

    /// Grows a volume, and the loop devices that show it.
    pub(super) fn extend(&self, id: Uuid, gib: u64) -> io::Result<()> {
        let path = self.volume(id);
        files::grow(&path, gib * GIB)?;
        loopback::of_file(&path)?.iter().try_for_each(|device| loopback::resize(device))
    }

    /// A new loop device for the volume.
    pub(super) fn attach(&self, id: Uuid, read_only: bool) -> io::Result<PathBuf> {
        loopback::attach(&self.volume(id), read_only)
    }

    /// Removes a loop device of the volume; one that is not, or no longer, the volume's is left
    /// alone. [`io::ErrorKind::ResourceBusy`] when it is mounted or held.
    pub(super) fn detach(&self, id: Uuid, device: &Path) -> io::Result<()> {
        loopback::detach(device, &self.volume(id))
    }

    /// Takes the volume from whoever has the device open: it goes on in a file of its own.
    pub(super) fn cut_off(&self, id: Uuid, device: &Path) -> io::Result<()> {
        let path = self.volume(id);
        files::copy(&path, &path, path.metadata()?.len())?;
        loopback::detach_at_last_close(device)
    }

    /// The device shows the volume no longer.
    pub(super) fn is_gone(&self, id: Uuid, device: &Path) -> io::Result<bool> {
        loopback::backing_file(device).map(|file| file.as_deref() != Some(&*self.volume(id)))
    }

    /// Loop devices that show volumes of ours.
    pub(super) fn attached(&self) -> io::Result<Vec<(Uuid, PathBuf)>> {
        let found = loopback::all()?.into_iter().filter_map(|(device, file)| {
            let name = file.strip_prefix(&self.volumes).ok()?.to_str()?;
            Some((Uuid::parse_str(name).ok()?, device))
        });
        Ok(found.collect())
    }
}

/// What a volume is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Volume(Uuid),
    Snapshot(Uuid),
    Backup(Uuid),
}
