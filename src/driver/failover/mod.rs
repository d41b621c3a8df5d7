//! Failover, which an operator has to ask for: a volume is taken from a host that is gone.
//!
//! *Gone* needs two things. The holder has given no sign of life for its whole lease
//! ([`lease`]): that only delays and detects. And its storage cuts a host off for good when its
//! attachment is deleted, which [`proof`] has seen on this host: so a holder that was only silent
//! can neither read nor write any more when the next one begins. ARCHITECTURE.md says what this
//! guarantees and what it does not.

pub(super) mod lease;
mod proof;

use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::journal::{AttachmentRecord, Entry, MountRecord};
use super::{Driver, DriverError};
use crate::config::FailoverSettings;
use crate::error_chain::Chain;
use crate::host::filesystem::shutdown::shut_down;
use crate::openstack::{AttachFlow, Volume};
use lease::{Holder, LEASE, Lease, Sightings};
use proof::Proofs;

/// A lease is renewed this often within its time.
const RENEWALS: u32 = 4;
/// No lease is shorter, whatever stands in a volume's metadata.
pub(super) const SHORTEST_LEASE: Duration = Duration::from_secs(10);

/// What this host knows of other hosts.
#[derive(Debug)]
pub(super) struct Failover {
    settings: FailoverSettings,
    proofs: Proofs,
    sightings: Sightings,
    /// A volume with a lease was mounted.
    mounted: Notify,
}

/// Whether a volume can be taken from who has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Takeover {
    /// Its type is not one of `Failover`.
    NotAsked,
    /// Never, and why.
    Never(String),
    /// Not before its holder has been silent for so much longer.
    In(Duration),
    /// Now: by deleting this attachment.
    Now(String),
}

impl Failover {
    pub fn new(settings: FailoverSettings, state_dir: &std::path::Path) -> Self {
        Self {
            settings,
            proofs: Proofs::read(state_dir),
            sightings: Sightings::default(),
            mounted: Notify::new(),
        }
    }

    fn covers(&self, volume_type: Option<&str>) -> bool {
        volume_type.is_some_and(|name| self.settings.types.iter().any(|known| known == name))
    }

    /// The metadata that goes with an attachment of ours, if its volume may be taken from us.
    pub fn sign(&self, volume: &Volume, attachment: Option<&str>) -> Option<(String, String)> {
        let attachment = attachment?;
        let eligible = self.covers(volume.volume_type.as_deref()) && !volume.multiattach;
        let lease = Lease::renewed(attachment, self.settings.lease);
        eligible.then(|| (LEASE.to_owned(), lease.to_metadata()))
    }

    /// A mount may have a lease now.
    pub fn note_mounted(&self, volume: uuid::Uuid) {
        self.sightings.forget(volume);
        self.mounted.notify_one();
    }

    /// Judges the holder of a volume that was read between two moments since the boot.
    fn judge(&self, volume: &Volume, asked: Duration, answered: Duration) -> Takeover {
        let Some(volume_type) =
            volume.volume_type.as_deref().filter(|name| self.covers(Some(name)))
        else {
            return Takeover::NotAsked;
        };
        if !self.proofs.has(volume_type) {
            return Takeover::Never(format!(
                "it has not been proven on this host that the storage of type \"{volume_type}\" \
                 cuts a host off: see \"cinder-docker-driver prove-failover --help\""
            ));
        }
        match self.sightings.judge(volume, asked, answered, SHORTEST_LEASE) {
            Holder::Unknowable(why) => Takeover::Never(why.to_owned()),
            Holder::MayLive { until_gone } => Takeover::In(until_gone),
            Holder::Silent { attachment, since } => {
                tracing::warn!(
                    volume = volume.name,
                    volume_id = %volume.id,
                    attachment,
                    "its holder has given no sign of life for {} s",
                    since.as_secs()
                );
                Takeover::Now(attachment)
            }
        }
    }
}

/// Time since the boot, suspended time included (`CLOCK_BOOTTIME`): a host that slept must not
/// take its own sleep for another's life.
fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

impl Driver {
    /// Whether a volume can be taken from who has it. Reads it, if it can at all.
    pub(super) async fn judge_holder(&self, volume: &Volume) -> Result<Takeover, DriverError> {
        if !self.failover.covers(volume.volume_type.as_deref()) {
            return Ok(Takeover::NotAsked);
        }
        let asked = since_boot();
        let volume = self.cloud.volume(volume.id).await?;
        Ok(self.failover.judge(&volume, asked, since_boot()))
    }

    /// Cuts a silent holder off, by deleting its attachment.
    pub(super) async fn cut_off(
        &self,
        volume: &Volume,
        attachment: &str,
    ) -> Result<(), DriverError> {
        let flow = AttachFlow::Attachments;
        self.cloud.release(flow, volume.id, attachment, &Value::Null).await?;
        tracing::warn!(
            volume = volume.name,
            volume_id = %volume.id,
            attachment,
            "taken from the host that was silent; its storage lets that one in no more"
        );
        Ok(())
    }

    /// Gives a sign of life for each volume that may be taken from us, and stops the filesystems of
    /// those that were. Sleeps without waking while there are none.
    pub(super) async fn renew_for_ever(self: &Arc<Self>) {
        let failover = &self.failover;
        if failover.settings.types.is_empty() {
            return;
        }
        loop {
            let mut renewals: JoinSet<()> = self
                .journal
                .all()
                .into_iter()
                .filter(|entry| self.is_leased(entry))
                .map(|entry| {
                    let driver = Arc::clone(self);
                    async move { driver.renew(&entry).await }
                })
                .collect();
            if renewals.is_empty() {
                failover.mounted.notified().await;
                continue;
            }
            while renewals.join_next().await.is_some() {}
            sleep(failover.settings.lease / RENEWALS).await;
        }
    }

    fn is_leased(&self, entry: &Entry) -> bool {
        let volume_type = entry.facts.as_ref().and_then(|facts| facts.volume_type.as_deref());
        self.failover.covers(volume_type)
            && entry.taken.is_none()
            && self.is_of_this_boot(entry)
            && leased_parts(entry).is_some()
    }

    async fn renew(&self, entry: &Entry) {
        let Some((_, attachment)) = leased_parts(entry) else { return };
        let renewed = async {
            match self.volume_if_any(entry.volume_id).await? {
                Some(volume) if holds(&volume, attachment) => {
                    if let Some(sign) = self.failover.sign(&volume, Some(attachment)) {
                        self.cloud.set_metadata(volume.id, &[sign].into()).await?;
                    }
                    Ok(())
                }
                _ => self.see_if_taken(entry.volume_id).await,
            }
        };
        if let Err(error) = renewed.await {
            tracing::warn!(
                volume = entry.shown_name(),
                "no sign of life could be given; another host takes the volume when there is none \
                 for {} s: {}",
                self.failover.settings.lease.as_secs(),
                Chain(&error)
            );
        }
    }

    /// Our attachment is gone although nobody here gave it back: another host, or an operator, has
    /// taken the volume. What is still in memory here must never be written, and containers should
    /// see errors rather than wait: the filesystem is stopped.
    async fn see_if_taken(&self, id: uuid::Uuid) -> Result<(), DriverError> {
        // An operation that has the volume may be giving it back at this moment.
        let Some(_guard) = self.volumes.try_lock(&id) else { return Ok(()) };
        let Some(entry) = self.journal.get(id)?.filter(|entry| self.is_leased(entry)) else {
            return Ok(());
        };
        let Some((mount, attachment)) = leased_parts(&entry) else { return Ok(()) };
        match self.volume_if_any(id).await? {
            Some(volume) if holds(&volume, attachment) => return Ok(()),
            _ => {}
        }
        let text = "Cinder shows it attached to this host no more: another host or an operator has \
                    taken it. Its filesystem was stopped here; stop its containers";
        tracing::error!(volume = entry.shown_name(), "{text}");
        if self.is_mounted(&entry)? {
            // At once: stopping waits for what waits for the device, as do containers, which could
            // not even be killed.
            let cut = async {
                match &entry.device {
                    Some(device) => self.host.attacher.cut(device).await,
                    None => Ok(()),
                }
            };
            let (stopped, cut) = tokio::join!(shut_down(&mount.at, mount.device), cut);
            for error in [stopped, cut].into_iter().filter_map(Result::err) {
                tracing::error!(
                    volume = entry.shown_name(),
                    "its filesystem could not be stopped: {}",
                    Chain(&error)
                );
            }
        }
        self.journal
            .update_regardless(id, |entry| {
                entry.taken = Some(attachment.to_owned());
                entry.last_error = Some(text.to_owned());
            })
            .await?;
        Ok(())
    }
}

fn holds(volume: &Volume, attachment: &str) -> bool {
    volume.attachments.iter().any(|held| held.attachment_id == attachment)
}

/// The mount and attachment of a volume that is mounted by the attachments flow.
fn leased_parts(entry: &Entry) -> Option<(&MountRecord, &str)> {
    let record: &AttachmentRecord = entry.attachment.as_ref().filter(|_| entry.is_complete())?;
    if record.flow != AttachFlow::Attachments {
        return None;
    }
    Some((entry.mount.as_ref()?, record.attachment_id.as_deref()?))
}
