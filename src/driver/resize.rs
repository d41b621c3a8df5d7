//! Resize: a volume is made larger, while it is free or while this host has it mounted.
//!
//! ```text
//! available      os-extend ▶ until available           the filesystem grows at the next Mount
//! mounted here   os-extend (3.42) ▶ until in-use ▶ rescan the device ▶ grow the filesystem
//! elsewhere      refused
//! ```
//!
//! A partition stays as its table has it, for a table is not ours to write: its filesystem grows to
//! the partition, and what the disk has beyond is told with the command that adds it.
//!
//! Each part is found done or not by looking, so asking again finishes what was interrupted. Cinder
//! tells Nova's instances that a volume has grown; a host without Nova looks for itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::journal::Entry;
use super::mount::shown_holder;
use super::operate::Answer;
use super::pace::Pace;
use super::plan::MountState;
use super::{Driver, DriverError, VolumeName, options};
use crate::error_chain::Chain;
use crate::host::attach::{Device, DeviceRecord};
use crate::host::filesystem::grow;
use crate::host::filesystem::partition::{self, Known};
use crate::openstack::{CloudErrorKind, Volume, VolumeStatus};
use crate::shown::shown;

/// Bytes of a GiB.
const GIB: u64 = 1 << 30;
/// How long Cinder may take for a volume that is being made or extended, the caller long gone.
const SETTLING_LIMIT: Duration = Duration::from_secs(30 * 60);
/// How long the storage may take to show the new size once Cinder says that it is done. Some targets
/// (tgt) are made anew for it, and the session comes back by itself.
const RESCAN_LIMIT: Duration = Duration::from_secs(90);

/// Where a volume is that is to become larger.
enum Place {
    /// Nobody has it.
    Free,
    /// Mounted here.
    Here(Arc<Entry>),
}

impl Driver {
    /// Makes a volume larger. The caller holds the volume's lock.
    pub(super) async fn resize_volume(
        &self,
        name: &VolumeName,
        id: Uuid,
        size: Option<&str>,
    ) -> Result<Answer, DriverError> {
        let size = size.unwrap_or_default();
        let wanted = options::size(size)
            .map_err(|why| DriverError::BadRequest(format!("SIZE \"{}\": {why}", shown(size))))?;
        let mut volume = self.settled(name, id).await?;
        if wanted < volume.size {
            return Err(DriverError::Refused(format!(
                "volume {id} has {} GiB, and a volume cannot be made smaller: make one of {wanted} \
                 GiB and copy what is on it",
                volume.size
            )));
        }
        let place = self.place_to_resize(name, &mut volume, wanted).await?;
        let was = volume.size;
        if volume.size < wanted {
            volume = self.extend(name, &volume, &place, wanted).await?;
        }
        let mut says = vec![match was < volume.size {
            true => format!("volume {id} has {} GiB now, and had {was}", volume.size),
            false => format!("volume {id} has {} GiB", volume.size),
        }];
        says.push(match &place {
            Place::Free => "it is not mounted: a filesystem that is smaller grows with the next \
                            start of a container that uses it; in a partition, to the end of that"
                .to_owned(),
            Place::Here(entry) => self.grow_mounted(entry, &volume).await?,
        });
        self.remember(name, &volume).await?;
        self.journal.update_regardless(id, |entry| entry.resizing = None).await?;
        Ok(Answer { volume: id, says, done: true })
    }

    /// The volume, once Cinder is neither making nor extending it.
    pub(super) async fn settled(&self, name: &VolumeName, id: Uuid) -> Result<Volume, DriverError> {
        let end = Instant::now() + SETTLING_LIMIT;
        let mut pace = Pace::new();
        loop {
            let volume = self.volume_of(name, id).await?;
            match volume.status {
                VolumeStatus::Creating | VolumeStatus::Downloading | VolumeStatus::Extending => {}
                _ => return Ok(volume),
            }
            if Instant::now() > end {
                return Err(DriverError::NotYet(format!(
                    "Cinder shows volume {id} as {} for {} minutes: an administrator must look at \
                     it",
                    volume.status,
                    SETTLING_LIMIT.as_secs() / 60
                )));
            }
            pace.next().await;
        }
    }

    /// Where the volume is, if it can be made larger there. What an earlier crash left here is let go
    /// of first.
    async fn place_to_resize(
        &self,
        name: &VolumeName,
        volume: &mut Volume,
        wanted: u64,
    ) -> Result<Place, DriverError> {
        let id = volume.id;
        if volume.status == VolumeStatus::ErrorExtending {
            return Err(self.could_not_extend(volume).await);
        }
        if let Some(entry) = self.journal.get(id)?.filter(|entry| entry.has_liabilities()) {
            match self.mount_state(&entry).await? {
                MountState::Healthy => return Ok(Place::Here(entry)),
                MountState::Stalled => {
                    return Err(DriverError::NotYet(
                        "it is mounted here, but its iSCSI target does not answer: see whether \
                         this host reaches the storage, then try again"
                            .to_owned(),
                    ));
                }
                MountState::Broken => {
                    return Err(DriverError::Refused(
                        "it is mounted here, but its device or filesystem has failed: stop the \
                         containers that use it, then try again"
                            .to_owned(),
                    ));
                }
                MountState::None | MountState::Gone => {
                    let outcome = self.let_go(id, false).await?;
                    if let Some(error) = outcome.cloud_error {
                        return Err(error);
                    }
                    *volume = self.settled(name, id).await?;
                }
            }
        }
        match &volume.status {
            VolumeStatus::Available => Ok(Place::Free),
            VolumeStatus::InUse => Err(DriverError::Refused(format!(
                "volume {id} is attached to {}: its filesystem can be grown only there, with \
                 \"cinder-docker-driver resize {name} {wanted}\" on that host, or here once its \
                 containers are stopped",
                volume.attachments.first().map_or("an unknown host".to_owned(), shown_holder)
            ))),
            VolumeStatus::Reserved | VolumeStatus::Attaching | VolumeStatus::Detaching => {
                Err(DriverError::NotYet(format!(
                    "volume {id} is {} in Cinder: some host is attaching or releasing it; try \
                     again in a while",
                    volume.status
                )))
            }
            status => Err(DriverError::Refused(format!(
                "volume {id} is {status} in Cinder: an administrator must look at it"
            ))),
        }
    }

    /// Has Cinder extend the volume, and waits for it.
    async fn extend(
        &self,
        name: &VolumeName,
        volume: &Volume,
        place: &Place,
        wanted: u64,
    ) -> Result<Volume, DriverError> {
        let id = volume.id;
        let in_use = matches!(place, Place::Here(_));
        if in_use {
            let (can, highest) = self.cloud.extends_in_use().await?;
            if !can {
                let highest =
                    highest.map_or("v2".to_owned(), |(major, minor)| format!("{major}.{minor}"));
                return Err(DriverError::Refused(format!(
                    "this Cinder ({highest}) cannot extend a volume in use, which takes 3.42: stop \
                     the containers that use it, resize it, and start them again"
                )));
            }
            // As long as Cinder is at it, the attachment must not be given back: it would make the
            // volume in-use again afterwards, with nobody who has it.
            self.journal.update(id, |entry| entry.resizing = Some(wanted)).await?;
        }
        if let Err(error) = self.cloud.extend_volume(id, wanted, in_use).await {
            // The answer was lost, or an earlier request of ours came late.
            let unclear = error.is_ambiguous() || error.kind == CloudErrorKind::InvalidState;
            let now = if unclear { self.cloud.volume(id).await.ok() } else { None };
            let happened =
                now.is_some_and(|now| now.status == VolumeStatus::Extending || now.size >= wanted);
            if !happened {
                if in_use && !error.is_ambiguous() {
                    self.journal.update_regardless(id, |entry| entry.resizing = None).await?;
                }
                return Err(error.into());
            }
        }
        let now = self.settled(name, id).await?;
        if now.size >= wanted {
            return Ok(now);
        }
        if in_use {
            self.journal.update_regardless(id, |entry| entry.resizing = None).await?;
        }
        Err(self.could_not_extend(&now).await)
    }

    /// In Cinder's words. What its scheduler refuses (no space, a back end that cannot extend volumes
    /// in use) leaves no trace in the status.
    async fn could_not_extend(&self, volume: &Volume) -> DriverError {
        let id = volume.id;
        let messages = self.cloud.messages(id).await.unwrap_or_default();
        let reason = match messages.first() {
            Some(message) => format!("; its last message about it: {}", shown(message)),
            None => ", and gives no reason".to_owned(),
        };
        let mend = match (&volume.status, volume.attachments.is_empty()) {
            (VolumeStatus::ErrorExtending, free) => format!(
                "it is error_extending: an administrator must look at the back end, and then set \
                 it back with \"openstack volume set --state {} {id}\"",
                if free { "available" } else { "in-use" }
            ),
            (_, true) => "it is as it was: ask the cloud's operator".to_owned(),
            (_, false) => {
                "it is as it was, and works on. Some back ends cannot extend a volume in \
                           use: stop its containers and try again"
                    .to_owned()
            }
        };
        DriverError::Refused(format!("Cinder did not extend volume {id}{reason}; {mend}"))
    }

    /// Has the kernel see the new size, and grows the filesystem; in words what came of it.
    async fn grow_mounted(&self, entry: &Entry, volume: &Volume) -> Result<String, DriverError> {
        let (Some(record), Some(device)) = (&entry.mount, &entry.device) else {
            return Err(DriverError::Refused("it is not mounted any more; try again".to_owned()));
        };
        let device = self.until_seen(device, volume).await?;
        let at = record.at.display();
        if record.read_only {
            return Ok(format!("it is mounted read-only at {at}, and grows once it is not"));
        }
        let mounted = self.kernel_mount(entry)?.and_then(|(mounted, _)| mounted.block_device());
        let mut beside = String::new();
        let device = if mounted == Some(device.number) {
            device
        } else {
            let paths = &self.host.paths;
            let found = mounted.map(|number| partition::with_number(paths, &device, number));
            let Some(known) = found.transpose()?.flatten() else {
                return Err(DriverError::Refused(format!(
                    "what is mounted at {at} is not on {}, the device of volume {}",
                    device.path.display(),
                    volume.id
                )));
            };
            beside = unused(&device, &known).map(|what| format!("; {what}")).unwrap_or_default();
            known.device
        };
        let before = grow::size_of(&device, record.fs_type, &record.at).await?;
        let exec = &self.host.exec;
        grow::grow(exec, &device, record.fs_type, &record.at, grow::RESIZE_LIMIT).await?;
        let after = grow::size_of(&device, record.fs_type, &record.at).await?;
        if grow::leaves_space(&device, after) {
            return Err(DriverError::NotYet(format!(
                "volume {} has {} GiB now, but its filesystem at {at} still has {}, although the \
                 tool that grows it reported success: resize it again, or see the kernel's log \
                 (dmesg)",
                volume.id,
                volume.size,
                gib(after)
            )));
        }
        Ok(match before < after {
            true => {
                let (before, after) = (gib(before), gib(after));
                format!("its filesystem at {at} has grown from {before} to {after}{beside}")
            }
            false if beside.is_empty() => {
                format!("its filesystem at {at} has {}, all that there is", gib(after))
            }
            false => format!("its filesystem at {at} has {} as before{beside}", gib(after)),
        })
    }

    /// Looks at the device again until it has the volume's size.
    async fn until_seen(
        &self,
        record: &DeviceRecord,
        volume: &Volume,
    ) -> Result<Device, DriverError> {
        let end = Instant::now() + RESCAN_LIMIT;
        let mut pace = Pace::new();
        loop {
            // A target that is made anew for the new size fails it for a moment.
            let looked = self.host.attacher.rescan(record).await;
            let found = match looked {
                Ok(Some(device)) if device.size / GIB >= volume.size => return Ok(device),
                Ok(Some(device)) => format!("{} has {} bytes", device.path.display(), device.size),
                Ok(None) => "the device is not there".to_owned(),
                Err(error) => Chain(&error).to_string(),
            };
            if Instant::now() >= end {
                return Err(DriverError::NotYet(format!(
                    "Cinder has extended volume {} to {} GiB, but this host does not see it ({found}): \
                     resize it again in a while; a storage that shows the size to new sessions only \
                     wants its containers stopped and started",
                    volume.id, volume.size
                )));
            }
            pace.next().await;
        }
    }
}

/// What of a disk a partition does not have, and how it gets it: in words, if it is worth any.
pub(super) fn unused(disk: &Device, partition: &Known) -> Option<String> {
    grow::is_worth_it(partition.behind).then(|| {
        format!(
            "it is in partition {number} of {disk}, which is not enlarged by itself, and {behind} \
             behind it are unused: \"growpart {disk} {number}\" (of cloud-guest-utils, or \
             cloud-utils-growpart) adds them while it is mounted here; then resize it again",
            number = partition.number,
            disk = disk.path.display(),
            behind = gib(partition.behind),
        )
    })
}

/// `1.9 GiB`
fn gib(bytes: u64) -> String {
    let tenths = bytes / (GIB / 10);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}
