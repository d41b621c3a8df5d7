//! Taking over what the Go driver left mounted, so that a host can swap binaries and keep its
//! volumes.
//!
//! A mount at `MountPoint/NAME` is adopted when its device belongs to an iSCSI session of that
//! very volume, and Cinder shows the volume attached to our HostUUID. Everything else is left
//! alone.

use std::path::{Path, PathBuf};

use super::journal::{AttachmentRecord, AttachmentStage, Facts, MountRecord};
use super::prepare::DIRECTORY_LIMIT;
use super::{Driver, DriverError, VolumeName, metadata};
use crate::error_chain::Chain;
use crate::host::HostError;
use crate::host::attach::DeviceRecord;
use crate::host::filesystem::blocking;
use crate::host::filesystem::directory::{self, Ownership, RootContents};
use crate::host::filesystem::mountinfo::{self, MountEntry};
use crate::host::filesystem::probe::FsType;
use crate::openstack::{AttachFlow, Volume};

impl Driver {
    /// Adopts what it can of the mounts below MountPoint that the journal does not know.
    pub(super) async fn adopt_mounts(&self) {
        let mounts = match mountinfo::own(&self.host.paths) {
            Ok(mounts) => mounts,
            Err(error) => return tracing::error!(%error, "cannot read the mounts of this host"),
        };
        for mount in mounts {
            if let Some(name) = self.unknown_volume_at(&mount) {
                self.adopt(&name).await;
            }
        }
    }

    /// Adopts the mount of this name if there is one, and says in the log why not otherwise.
    pub(super) async fn adopt(&self, name: &VolumeName) {
        let at = self.place_of(name.as_str());
        let Ok(Some(mount)) = mountinfo::at(&self.host.paths, &at) else { return };
        if self.unknown_volume_at(&mount).is_none() {
            return;
        }
        match self.adopt_mount(name, &mount).await {
            Ok(()) => tracing::info!(volume = name.as_str(), "adopted the mount that was there"),
            Err(error) => tracing::warn!(
                volume = name.as_str(),
                at = %at.display(),
                "a mount that this driver did not make is left alone: {}",
                Chain(&error)
            ),
        }
    }

    /// The volume name of a mount directly below MountPoint that no journal entry speaks of.
    fn unknown_volume_at(&self, mount: &MountEntry) -> Option<VolumeName> {
        if mount.mount_point.parent() != Some(Path::new(&self.mount_point)) {
            return None;
        }
        let name = VolumeName::parse(mount.mount_point.file_name()?.to_str()?).ok()?;
        let known =
            self.journal.all().iter().any(|entry| {
                entry.mount.as_ref().is_some_and(|record| record.at == mount.mount_point)
            });
        (!known).then_some(name)
    }

    async fn adopt_mount(&self, name: &VolumeName, mount: &MountEntry) -> Result<(), DriverError> {
        let device = self.host.attacher.adopt(mount.device)?.ok_or_else(|| {
            DriverError::Refused("its device belongs to no iSCSI session".to_owned())
        })?;
        let volume = self.find(name).await?;
        let _guard = self.volumes.lock(&volume.id).await;
        check_target(&device, &volume)?;
        let ours = self.host.identity.uuid.to_string();
        let attachment = volume
            .attachments
            .iter()
            .find(|attachment| attachment.server_id.as_deref() == Some(&ours))
            .ok_or_else(|| {
                DriverError::Refused(format!(
                    "Cinder does not show volume {} attached to this host ({ours})",
                    volume.id
                ))
            })?;
        let connected = self.host.attacher.find(&device).await?.ok_or_else(|| {
            DriverError::Refused("its device is not below its session".to_owned())
        })?;
        if connected.number != mount.device {
            return Err(DriverError::Refused("another device is mounted there".to_owned()));
        }
        let record = MountRecord {
            at: mount.mount_point.clone(),
            directory: Some(self.handed_out(&mount.mount_point).await?),
            device: mount.device,
            device_path: connected.path,
            fs_type: fs_type(&mount.fs_type)?,
            fs_uuid: uuid::Uuid::nil(),
            read_only: mount.options.split(',').any(|option| option == "ro"),
            since: 0,
        };
        let mountpoint = attachment.device.clone().unwrap_or_default();
        let attachment = AttachmentRecord {
            flow: AttachFlow::Actions,
            stage: AttachmentStage::Attached,
            attachment_id: Some(attachment.attachment_id.clone()),
            connector: self.host.identity.connector(&mountpoint, record.read_only),
            instance_uuid: self.host.identity.uuid,
            mountpoint,
            updated_at: Default::default(),
        };
        let facts = Facts::of(&volume, self.is_ours(&volume));
        let boot_id = self.host.boot_id.clone();
        self.journal
            .update(volume.id, |entry| {
                entry.names.insert(name.to_string());
                entry.facts = Some(facts);
                entry.attachment = Some(attachment);
                entry.device = Some(device);
                entry.mount = Some(record);
                entry.boot_id = boot_id;
            })
            .await?;
        // The Go driver kept no references: who uses it, the mount namespaces tell.
        self.set_idle(volume.id, true);
        Ok(())
    }
}

impl Driver {
    /// What the Go driver handed out to containers; its mode 0000 is repaired.
    async fn handed_out(&self, at: &Path) -> Result<PathBuf, DriverError> {
        let (place, name) = (at.to_owned(), self.settings.content_directory.clone());
        if name.is_empty() {
            return Ok(at.to_owned());
        }
        let content = at.join(&name);
        let found = blocking("looking at the volume's root", DIRECTORY_LIMIT, move || {
            let found = directory::inspect(&place, &name)?;
            if found == RootContents::HasContentDirectory {
                directory::ensure(&place, &name, &Ownership::default())?;
            }
            Ok(found)
        })
        .await?;
        Ok(if found == RootContents::HasContentDirectory { content } else { at.to_owned() })
    }
}

/// The reference back end, and the others that the Go driver worked with, name the volume in the
/// target. Where they don't, nothing proves whose device it is.
fn check_target(device: &DeviceRecord, volume: &Volume) -> Result<(), DriverError> {
    let id = volume.id.to_string();
    let named = match device {
        DeviceRecord::Iscsi(record) => record.paths.iter().all(|path| path.iqn.contains(&id)),
        DeviceRecord::Local(_) => false,
    };
    if named {
        return Ok(());
    }
    Err(DriverError::Refused(format!("its iSCSI target does not name volume {id}")))
}

fn fs_type(name: &str) -> Result<FsType, DriverError> {
    match name {
        "ext2" | "ext3" | "ext4" => Ok(FsType::Ext4),
        other => metadata::fs_type(other)
            .ok_or_else(|| HostError::Unsupported { what: format!("it holds {other}") }.into()),
    }
}
