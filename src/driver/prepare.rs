//! What is on a connected device, and making it mountable: probe, format or check; and which
//! directory of it containers see.

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::journal::Formatting;
use super::metadata::{self, FormatState, MountSettings};
use super::plan::{self, Preparation, Provenance};
use super::{Driver, DriverError, VolumeName};
use crate::host::HostError;
use crate::host::attach::Device;
use crate::host::filesystem::directory::{self, Ownership, RootContents};
use crate::host::filesystem::probe::{self, BlankProof, Contents, Filesystem, Partition};
use crate::host::filesystem::{blocking, format, mount, partition};
use crate::openstack::Volume;
use crate::shown::shown;

/// The root of the filesystem, as [`metadata::DIRECTORY`] says it.
const ROOT: &str = "/";

/// How long the device may take to show or make a directory.
pub(super) const DIRECTORY_LIMIT: Duration = Duration::from_secs(30);

/// A device that can be mounted.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The device, or the partition of it.
    pub device: Device,
    /// Its filesystem.
    pub filesystem: Filesystem,
}

/// Whose creation broke off before the data came: it holds nothing, and never will.
pub(super) fn not_restored(volume: &Volume, backup: &str) -> DriverError {
    DriverError::Refused(format!(
        "volume {} waits for the restore of backup {}, whose creation did not finish: remove it \
         (\"docker volume rm\") and create it again",
        volume.id,
        shown(backup)
    ))
}

/// What is not blank is not formatted, unless a person says so.
fn way_out(error: DriverError, name: &VolumeName) -> DriverError {
    match error {
        DriverError::Host(HostError::NotBlank { what }) => DriverError::Refused(format!(
            "{what} where it should be blank, so it is not formatted. If it is to be erased: \
             \"cinder-docker-driver format {name}\""
        )),
        other => other,
    }
}

impl Driver {
    /// Looks at the device and makes it mountable; formats it only if it is proven blank.
    pub(super) async fn prepare(
        &self,
        name: &VolumeName,
        volume: &Volume,
        device: &Device,
    ) -> Result<Prepared, DriverError> {
        if let Some(backup) = metadata::restoring(volume) {
            return Err(not_restored(volume, backup));
        }
        let settings = MountSettings::of(volume)?;
        let begun_here = self
            .journal
            .get(volume.id)?
            .and_then(|entry| entry.formatting.as_ref().map(|formatting| formatting.uuid));
        let from = Provenance {
            state: FormatState::of(volume)?,
            has_source: volume.snapshot_id.is_some()
                || volume.source_volid.is_some()
                || volume.from_image
                || volume.bootable
                || volume.metadata.contains_key(metadata::BACKUP),
            begun_here,
            read_only: settings.read_only || device.read_only,
            format_foreign: self.settings.format_foreign,
            dirty_blocks: self.settings.new_volumes_are_dirty,
        };
        let contents = probe::probe(device).await?;
        let (device, contents) = match contents {
            Contents::Partitions(partitions) => {
                let partition = choose_partition(&partitions, settings.partition)
                    .map_err(DriverError::Refused)?;
                let device = partition::device_of(&self.host.paths, device, partition)?;
                (device, (*partition.contents).clone())
            }
            contents => (device.clone(), contents),
        };
        match plan::prepare(&contents, &from, name.as_str()).map_err(DriverError::Refused)? {
            Preparation::Mount(filesystem) => {
                if !from.read_only {
                    mount::check(&self.host.exec, &device, &filesystem).await?;
                }
                Ok(Prepared { device, filesystem })
            }
            Preparation::Format(proof) => {
                let formatted = self.format(volume, &settings, device, proof).await;
                formatted.map_err(|error| way_out(error, name))
            }
            Preparation::FormatAgain => {
                tracing::warn!(
                    volume = name.as_str(),
                    "an interrupted mkfs of this host is made again"
                );
                self.format(volume, &settings, device, BlankProof::OursDirty).await
            }
        }
    }

    /// Formats a device that is proven blank: the UUID is in Cinder and in the journal before mkfs
    /// writes, and Cinder knows that it is done before the first mount.
    pub(super) async fn format(
        &self,
        volume: &Volume,
        settings: &MountSettings,
        device: Device,
        proof: BlankProof,
    ) -> Result<Prepared, DriverError> {
        let fs_type = settings.fs.unwrap_or_else(|| self.default_fs());
        let extra = match &settings.mkfs_opts {
            Some(words) => format::check_options(fs_type, words).map_err(DriverError::Refused)?,
            None => Vec::new(),
        };
        self.host.exec.find(format::tool(fs_type)).map_err(|source| HostError::Tool {
            what: format!("cannot make an {fs_type} filesystem"),
            source,
        })?;
        // Proven first: a volume that isn't blank keeps its state in Cinder, too.
        if proof != BlankProof::OursDirty {
            probe::blank(&device, device.size, proof).await?;
        }
        let uuid = Uuid::new_v4();
        // The journal first: only the host that knows the UUID may begin anew after a crash.
        self.journal
            .update(volume.id, |entry| entry.formatting = Some(Formatting { uuid, fs_type }))
            .await?;
        self.set_format(volume.id, FormatState::Formatting(uuid)).await?;
        let blank = probe::blank(&device, device.size, proof).await?;
        let filesystem = format::mkfs(&self.host.exec, blank, fs_type, uuid, &extra).await?;
        self.set_format(volume.id, FormatState::Formatted(uuid)).await?;
        Ok(Prepared { device, filesystem })
    }

    pub(super) async fn set_format(&self, id: Uuid, state: FormatState) -> Result<(), DriverError> {
        let change = [(metadata::FORMAT.to_owned(), state.to_string())].into();
        Ok(self.cloud.set_metadata(id, &change).await?)
    }

    /// The directory for containers: a sub-directory, so that databases don't meet `lost+found`;
    /// the root of a volume that holds data there already. That choice is kept in the metadata.
    pub(super) async fn choose_directory(
        &self,
        volume: &Volume,
        at: &Path,
        settings: &MountSettings,
    ) -> Result<PathBuf, DriverError> {
        let recorded = volume.metadata.get(metadata::DIRECTORY).map(String::as_str);
        let name = match recorded {
            Some(ROOT) => return Ok(at.to_owned()),
            Some(name) if is_plain(name) => name.to_owned(),
            Some(other) => {
                return Err(DriverError::Refused(format!(
                    "its metadata says {}=\"{}\", which is no directory name",
                    metadata::DIRECTORY,
                    shown(other)
                )));
            }
            None => self.settings.content_directory.clone(),
        };
        if name.is_empty() {
            return Ok(at.to_owned());
        }
        let (place, content) = (at.to_owned(), name.clone());
        let found = blocking("looking at the volume's root", DIRECTORY_LIMIT, move || {
            directory::inspect(&place, &content)
        })
        .await?;
        match found {
            RootContents::Data => {
                if recorded.is_none() && !settings.read_only {
                    let change = [(metadata::DIRECTORY.to_owned(), ROOT.to_owned())].into();
                    self.cloud.set_metadata(volume.id, &change).await?;
                }
                return Ok(at.to_owned());
            }
            // There is nothing in it, and nothing can be made.
            RootContents::Empty if settings.read_only => return Ok(at.to_owned()),
            RootContents::HasContentDirectory if settings.read_only => {}
            RootContents::Empty | RootContents::HasContentDirectory => {
                let ownership =
                    Ownership { uid: settings.uid, gid: settings.gid, mode: settings.mode };
                let (place, content) = (at.to_owned(), name.clone());
                blocking("making the content directory", DIRECTORY_LIMIT, move || {
                    directory::ensure(&place, &content, &ownership)
                })
                .await?;
            }
        }
        Ok(at.join(name))
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/')
}

/// One partition with a filesystem is mounted; of several the option `partition` says which.
pub(super) fn choose_partition(
    partitions: &[Partition],
    wanted: Option<u32>,
) -> Result<&Partition, String> {
    let shown = || {
        partitions
            .iter()
            .map(|partition| {
                format!("{}: {}", partition.number, shown_contents(&partition.contents))
            })
            .collect::<Vec<_>>()
            .join(", ")
    };
    if let Some(number) = wanted {
        return partitions
            .iter()
            .find(|partition| partition.number == number)
            .ok_or_else(|| format!("it has no partition {number}; it has {}", shown()));
    }
    let mut with_filesystem = partitions
        .iter()
        .filter(|partition| matches!(*partition.contents, Contents::Filesystem(_)));
    match (with_filesystem.next(), with_filesystem.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(format!(
            "it is partitioned, and no partition holds a filesystem ({}); it is not formatted",
            shown()
        )),
        (Some(_), Some(_)) => Err(format!(
            "it has several partitions with filesystems ({}): say which, with \"openstack volume \
             set --property {}=NUMBER\"",
            shown(),
            metadata::PARTITION
        )),
    }
}

fn shown_contents(contents: &Contents) -> String {
    match contents {
        Contents::NoSignature => "nothing known".to_owned(),
        Contents::Filesystem(filesystem) => filesystem.mount_type.to_owned(),
        Contents::Partitions(_) => "a partition table".to_owned(),
        Contents::Unfinished { what, .. } | Contents::Other(what) => what.clone(),
    }
}
