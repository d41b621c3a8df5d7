//! Bringing in and removing one LUN of a session.

use std::time::Duration;

use super::session::{Lun, Session};
use super::uevent::BlockEvents;
use super::{Connector, multipath};
use crate::error_chain::Chain;
use crate::host::HostError;
use crate::host::attach::{Device, DeviceState, block};

/// A scan asks the target, over the network.
const SCAN_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait for the disk after each scan: a target may map a LUN only after its login.
const SCAN_WAITS: [Duration; 4] = [
    Duration::from_secs(2),
    Duration::from_secs(3),
    Duration::from_secs(5),
    Duration::from_secs(5),
];
/// Deleting a device waits for what is under way on it.
const DELETE_LIMIT: Duration = Duration::from_secs(20);
/// udev and the like claim a device for moments.
const CLAIM_LIMIT: Duration = Duration::from_secs(3);

impl Connector<'_> {
    /// Deletes what sits at our LUN already: an earlier attachment that was not cleaned up, maybe
    /// of another volume whose number was given to ours. It is never used, whatever it is.
    pub(super) async fn purge_leftover(self, session: &Session, lun: u64) -> Result<(), HostError> {
        let Some(leftover) = session.lun(lun) else { return Ok(()) };
        tracing::warn!(target_name = session.iqn, lun, disk = leftover.disk, "removing a leftover");
        // A flush that fails loses nothing of ours.
        let _ = self.release_map(&leftover).await?;
        self.check_unused(&leftover).await?;
        self.delete(&leftover).await
    }

    /// Scans exactly our LUN and waits for its disk.
    pub(super) async fn bring_in(self, session: &Session, lun: u64) -> Result<Lun, HostError> {
        let host = session.host().ok_or_else(|| HostError::Refused {
            what: format!("{} is below no SCSI host", session.directory.display()),
        })?;
        let scan = self.paths.sys.join("class/scsi_host").join(host).join("scan");
        let events = BlockEvents::listen();
        for wait in SCAN_WAITS {
            // iSCSI has one channel and one target in each session.
            block::write_attribute(scan.clone(), format!("0 0 {lun}"), SCAN_LIMIT).await?;
            let look = || {
                let found = session.lun(lun).filter(|lun| lun.disk.is_some());
                Ok(found.filter(|lun| self.has_node(lun)))
            };
            if let Some(found) = events.wait_for(wait, look).await? {
                return Ok(found);
            }
        }
        Err(self.absence(session, lun))
    }

    fn has_node(self, lun: &Lun) -> bool {
        lun.disk.as_ref().is_some_and(|disk| self.paths.dev.join(disk).exists())
    }

    /// Why there is no usable disk.
    fn absence(self, session: &Session, lun: u64) -> HostError {
        let iqn = &session.iqn;
        match session.lun(lun).map(|found| found.disk) {
            None => HostError::Refused {
                what: format!(
                    "the iSCSI target {iqn} shows this host no LUN {lun}, which Cinder named: \
                     see the storage's log for the export of the volume"
                ),
            },
            Some(None) => HostError::Refused {
                what: format!("LUN {lun} of the iSCSI target {iqn} is not a disk"),
            },
            Some(Some(disk)) => HostError::Unsupported {
                what: format!(
                    "the kernel has the disk {disk}, but {} does not exist: this process needs \
                     the host's /dev",
                    self.paths.dev.join(&disk).display()
                ),
            },
        }
    }

    /// Proves that the new disk is what it must be, and answers the device to use.
    pub(super) async fn verify(
        self,
        session: &Session,
        lun: &Lun,
        size: u64,
    ) -> Result<Device, HostError> {
        let Some(disk) = &lun.disk else { return Err(self.absence(session, lun.lun)) };
        let events = BlockEvents::listen();
        let map = multipath::wait_for_map(self.paths, self.exec, &events, disk).await?;
        let device = block::device_named(self.paths, map.as_ref().unwrap_or(disk))?;
        let where_ = format!("LUN {} of the iSCSI target {}", lun.lun, session.iqn);
        // One that waits for its session: opening and reading it wait too, under their deadlines.
        if device.state == DeviceState::Failed {
            return Err(HostError::Refused { what: format!("{where_} does not run") });
        }
        if device.size < size {
            return Err(HostError::Refused {
                what: format!(
                    "{where_} has {} bytes, but the volume has {size}: it is another volume's (a \
                     LUN number given out twice), or the storage has not extended it; it was not \
                     touched",
                    device.size
                ),
            });
        }
        self.check_free(&device, block::holders(self.paths, node_name(&device))).await?;
        block::check_readable(&device.path).await?;
        Ok(Device { wwid: lun.wwid(), ..device })
    }

    /// The device of a disk: the map above it, where multipathd made one.
    pub(super) fn device_of(self, disk: &str) -> Result<Device, HostError> {
        let bare = block::device_named(self.paths, disk)?;
        match multipath::map_over(self.paths, disk) {
            Some(map) => Ok(Device { wwid: bare.wwid, ..block::device_named(self.paths, &map)? }),
            None => Ok(bare),
        }
    }

    /// Takes multipathd's map off a disk, if it has one that nobody uses.
    pub(super) async fn release_map(self, lun: &Lun) -> Result<Flushed, HostError> {
        let Some(disk) = &lun.disk else { return Ok(Ok(())) };
        let Some(map) = multipath::map_over(self.paths, disk) else { return Ok(Ok(())) };
        let device = block::device_named(self.paths, &map)?;
        self.check_free(&device, block::holders(self.paths, &map)).await?;
        let flushed = flush(&device).await?;
        multipath::remove_map(self.paths, self.exec, &map).await?;
        Ok(flushed)
    }

    /// Refuses a disk that is mounted, held or claimed.
    pub(super) async fn check_unused(self, lun: &Lun) -> Result<(), HostError> {
        let Some(disk) = &lun.disk else { return Ok(()) };
        let device = match block::device_named(self.paths, disk) {
            Ok(device) => device,
            // It went while we looked.
            Err(_) if !lun.exists() => return Ok(()),
            Err(error) => return Err(error),
        };
        self.check_free(&device, block::holders(self.paths, disk)).await
    }

    async fn check_free(self, device: &Device, holders: Vec<String>) -> Result<(), HostError> {
        let name = device.path.display();
        if let Some(at) = block::mounted_at(self.paths, device.number)? {
            let what = format!("{name} is mounted at {}", at.display());
            return Err(HostError::Busy { what });
        }
        if !holders.is_empty() {
            let what = format!("{name} is held by {}", holders.join(", "));
            return Err(HostError::Busy { what });
        }
        let deadline = tokio::time::Instant::now() + CLAIM_LIMIT;
        while block::is_claimed(&device.path).await? {
            if tokio::time::Instant::now() >= deadline {
                return Err(HostError::Busy {
                    what: format!(
                        "{name} is in use: mounted in another mount namespace (a container's), or \
                         opened exclusively by a process"
                    ),
                });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Flushes a disk.
    pub(super) async fn flush(self, session: &Session, lun: &Lun) -> Result<Flushed, HostError> {
        let Some(disk) = &lun.disk else { return Ok(Ok(())) };
        match block::device_named(self.paths, disk) {
            Ok(device) if session.is_logged_in() => flush(&device).await,
            Ok(device) => flush(&Device { state: DeviceState::Failed, ..device }).await,
            // It went while we looked.
            Err(_) if !lun.exists() => Ok(Ok(())),
            Err(error) => Err(error),
        }
    }

    /// Removes a logical unit from the kernel and waits until it is gone. (The kernel would do
    /// it to a mounted disk as well.)
    pub(super) async fn delete(self, lun: &Lun) -> Result<(), HostError> {
        let file = lun.directory.join("delete");
        let events = BlockEvents::listen();
        let written = block::write_attribute(file, "1".to_owned(), DELETE_LIMIT).await;
        if let Err(error) = written
            && lun.exists()
        {
            return Err(error);
        }
        let gone = events.wait_for(DELETE_LIMIT, || Ok((!lun.exists()).then_some(()))).await?;
        gone.ok_or_else(|| HostError::Timeout {
            what: format!("removing {} from the kernel", lun.disk.as_deref().unwrap_or("a LUN")),
            seconds: DELETE_LIMIT.as_secs(),
        })
    }

    /// Has the kernel read the disk's size again.
    pub(super) async fn read_capacity(self, lun: &Lun) -> Result<(), HostError> {
        let file = lun.directory.join("rescan");
        block::write_attribute(file, "1".to_owned(), SCAN_LIMIT).await?;
        let Some(disk) = &lun.disk else { return Ok(()) };
        match multipath::map_over(self.paths, disk) {
            Some(map) => multipath::resize_map(self.paths, self.exec, &map).await,
            None => Ok(()),
        }
    }
}

/// How a flush went. An error in here is the device's own, known for good: removing the device
/// goes on after it.
pub(super) type Flushed = Result<(), HostError>;

/// A device that cannot carry I/O has nothing to flush to: trying would hang until the kernel
/// gives its target up.
async fn flush(device: &Device) -> Result<Flushed, HostError> {
    let name = device.path.display();
    if device.state != DeviceState::Running {
        tracing::warn!(device = %name, "not flushed: its target is not there");
        return Ok(Ok(()));
    }
    match block::flush(&device.path).await {
        Err(error @ HostError::Timeout { .. }) => Err(error),
        flushed => {
            if let Err(error) = &flushed {
                tracing::warn!(device = %name, error = %Chain(error), "data may be lost");
            }
            Ok(flushed)
        }
    }
}

fn node_name(device: &Device) -> &str {
    device.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
