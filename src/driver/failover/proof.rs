//! Does the storage cut a host off for good when its attachment is deleted? It is tried, once for
//! each volume type, on this host and with a volume that holds nothing.
//!
//! Cinder promises nothing of the sort, and many back ends do not do it: they leave the session be,
//! or let the old host's initiator log in again as soon as the volume is exported to the next one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::driver::attach::{Connected, Reserved};
use crate::driver::journal::file;
use crate::driver::metadata::{self, FormatState};
use crate::driver::operate::Answer;
use crate::driver::{Driver, DriverError, VolumeName};
use crate::error_chain::Chain;
use crate::host::HostError;
use crate::host::attach::Device;
use crate::host::filesystem::block_device::{Access, BlockDevice};
use crate::host::filesystem::blocking;
use crate::openstack::{AttachFlow, Reservation, Volume, VolumeStatus};

/// How long the device must stay cut off with its volume exported to nobody, …
const ALONE: Duration = Duration::from_secs(10);
/// … and exported to another host. open-iscsi tries to log in again every few seconds.
const EXPORTED: Duration = Duration::from_secs(45);
/// Between two attempts to read.
const PAUSE: Duration = Duration::from_millis(200);
/// What is read at a time.
const BLOCK: usize = 4096;

/// Volume types whose storage was seen to cut a host off: `StateDir/failover.json`.
#[derive(Debug)]
pub(super) struct Proofs {
    path: PathBuf,
    proven: Mutex<Proven>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Proven {
    types: BTreeMap<String, Proof>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Proof {
    /// When, RFC 3339.
    at: String,
    /// With which volume.
    volume: Uuid,
}

impl Proofs {
    /// What cannot be read proves nothing.
    pub fn read(state_dir: &Path) -> Self {
        let path = state_dir.join("failover.json");
        let proven = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::error!(path = %path.display(), %error, "what was proven cannot be read");
                Proven::default()
            }),
            Err(_) => Proven::default(),
        };
        Self { path, proven: Mutex::new(proven) }
    }

    pub fn has(&self, volume_type: &str) -> bool {
        let proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        proven.types.contains_key(volume_type)
    }

    /// Notes what was seen; the disk first.
    async fn note(&self, volume_type: &str, proof: Option<Proof>) -> Result<(), DriverError> {
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match proof {
            Some(proof) => drop(proven.types.insert(volume_type.to_owned(), proof)),
            None => drop(proven.types.remove(volume_type)),
        }
        file::write(&self.path, &proven)
            .await
            .map_err(|source| HostError::io("write", &self.path, source))?;
        *self.proven.lock().unwrap_or_else(PoisonError::into_inner) = proven;
        Ok(())
    }
}

/// Why the storage does not do for failover: it answered a host that it should have cut off.
struct StillAnswers(&'static str);

impl Driver {
    /// Tries it with a volume of the type that holds nothing; an operator asked for it.
    pub(in crate::driver) async fn prove_failover(
        &self,
        name: &VolumeName,
        volume: &Volume,
        confirmed: bool,
    ) -> Result<Answer, DriverError> {
        let refuse = |why: String| Err(DriverError::Refused(why));
        let Some(volume_type) = volume.volume_type.clone() else {
            return refuse("it has no volume type, and Failover is by type".to_owned());
        };
        let held_here = self.journal.get(volume.id)?.is_some_and(|entry| entry.has_liabilities());
        if volume.status != VolumeStatus::Available || held_here {
            return refuse(format!(
                "volume {} is {} in Cinder: it must be available, with no container using it",
                volume.id, volume.status
            ));
        }
        let is_blank =
            metadata::is_ours(volume) && FormatState::of(volume)? == Some(FormatState::Unformatted);
        if !is_blank || volume.multiattach {
            return refuse(format!(
                "this is tried with a volume that holds nothing: \"docker volume create -d cinder \
                 -o type={volume_type} NAME\" makes one, which no container may have used"
            ));
        }
        let mut says = vec![format!(
            "volume {} of type \"{volume_type}\" is attached here, its attachment deleted while its \
             device is open, and the volume exported to a host that does not exist; meanwhile the \
             device must answer no more. Takes {} seconds. Nothing is written to it",
            volume.id,
            (ALONE + EXPORTED).as_secs()
        )];
        if confirmed {
            let seen = Box::pin(self.try_to_cut_off(name, volume)).await;
            self.work.notify_one();
            let proof = match seen? {
                Ok(()) => {
                    says = vec![format!(
                        "proven: the storage of type \"{volume_type}\" cuts a host off when its \
                         attachment is deleted. This host may take volumes of that type over"
                    )];
                    let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
                    Some(Proof { at, volume: volume.id })
                }
                Err(StillAnswers(when)) => {
                    self.failover.proofs.note(&volume_type, None).await?;
                    return refuse(format!(
                        "the storage of type \"{volume_type}\" does not cut a host off: the device \
                         still answered {when}. Volumes of that type are not taken over"
                    ));
                }
            };
            self.failover.proofs.note(&volume_type, proof).await?;
        }
        Ok(Answer { volume: volume.id, says, done: confirmed })
    }

    /// Attaches, lets itself be cut off and watches; and leaves nothing behind.
    async fn try_to_cut_off(
        &self,
        name: &VolumeName,
        volume: &Volume,
    ) -> Result<Result<(), StillAnswers>, DriverError> {
        let reservation = self.reserve_for_proof(name, volume).await?;
        let seen = match Box::pin(self.connect_reserved(name, volume, &reservation)).await {
            Ok(Connected { device, .. }) => {
                Box::pin(self.watch_it_cut_off(name, volume, &reservation, &device)).await
            }
            Err(error) => Err(error),
        };
        // Now the host lets go of a device that may be dead, then Cinder of what is left.
        let outcome = self.let_go(volume.id, true).await;
        match (seen, outcome) {
            (Ok(seen), Ok(outcome)) => outcome.cloud_error.map_or(Ok(seen), Err),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    }

    async fn reserve_for_proof(
        &self,
        name: &VolumeName,
        volume: &Volume,
    ) -> Result<Reservation, DriverError> {
        match self.reserve(name, volume).await? {
            Reserved::Ours(reservation) if reservation.flow == AttachFlow::Attachments => {
                Ok(reservation)
            }
            Reserved::Ours(_) => {
                let undone = self.let_go(volume.id, true).await?;
                Err(undone.cloud_error.unwrap_or_else(|| {
                    DriverError::Refused(
                        "Failover needs the attachments flow of Cinder v3 (from Victoria on): see \
                         AttachFlow and HostUUID in docs/configuration.md"
                            .to_owned(),
                    )
                }))
            }
            Reserved::Taken(error) => Err(error),
        }
    }

    async fn watch_it_cut_off(
        &self,
        name: &VolumeName,
        volume: &Volume,
        reservation: &Reservation,
        device: &Device,
    ) -> Result<Result<(), StillAnswers>, DriverError> {
        let path = device.path.clone();
        let open = move || BlockDevice::open(&path, Access::Shared);
        let device = Arc::new(blocking("opening the device", ALONE, open).await?);
        read(&device, ALONE).await?;

        // What is done here nobody else does: the attachment goes before the device. With reads under
        // way, as a host is cut off whose containers work: some storage then fails to take the export
        // back, and Cinder ignores that.
        let attachment = reservation.attachment_id.as_deref().unwrap_or_default();
        let released =
            self.cloud.release(AttachFlow::Attachments, volume.id, attachment, &Value::Null);
        let released = tokio::select! {
            released = released => released,
            never = read_on(&device) => match never {},
        };
        released.map_err(|error| {
            DriverError::Refused(format!(
                "Cinder did not take the volume from a host that has its device open, so the storage \
                 does not do for failover: {}",
                Chain(&error)
            ))
        })?;
        self.journal.update_regardless(volume.id, |entry| entry.attachment = None).await?;
        if answers_within(&device, ALONE).await {
            return Ok(Err(StillAnswers("when its attachment was deleted")));
        }

        let reservation = self.reserve_for_proof(name, volume).await?;
        let stranger = json!({
            "initiator": format!("iqn.2010-10.org.openstack:nobody-{}", Uuid::new_v4()),
            "host": "cinder-docker-driver-failover-proof",
            "ip": self.host.identity.ip,
            "multipath": false,
            "platform": std::env::consts::ARCH,
            "os_type": "linux",
        });
        let sent = stranger.clone();
        self.update_attachment(volume.id, |attachment| attachment.connector = sent).await?;
        self.cloud.connect(&reservation, &stranger).await?;
        if answers_within(&device, EXPORTED).await {
            return Ok(Err(StillAnswers("when the volume was exported to another host")));
        }
        Ok(Ok(()))
    }
}

/// Past the page cache. A read that hangs is left behind, and ends with its session.
async fn read(device: &Arc<BlockDevice>, limit: Duration) -> Result<(), HostError> {
    let device = Arc::clone(device);
    blocking("reading the device", limit, move || device.read(0, BLOCK).map(drop)).await
}

/// Reads until it is dropped, whatever comes of it.
async fn read_on(device: &Arc<BlockDevice>) -> Infallible {
    loop {
        // A device that fails at once is not asked without end.
        if read(device, ALONE).await.is_err() {
            sleep(PAUSE).await;
        }
    }
}

/// Whether any read succeeds that begins within this time.
async fn answers_within(device: &Arc<BlockDevice>, time: Duration) -> bool {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        if read(device, left).await.is_ok() {
            return true;
        }
        sleep(PAUSE.min(left)).await;
    }
}
