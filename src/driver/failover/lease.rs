//! A sign of life in the volume's metadata, and what another host makes of its absence. Pure.
//!
//! No clock is compared with another host's: who wants the volume watches the sign on a clock of
//! its own, and takes one that has not changed for the lease's time for silence. Silence proves
//! nothing (a paused machine and one that only lost its way to Cinder are silent too); it is the
//! storage that keeps a silent host from writing ([`super::proof`]).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::openstack::{Volume, VolumeStatus};

/// Metadata key of the sign.
pub const LEASE: &str = "docker.lease";

/// A holder's sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The holder's attachment: a sign that an earlier holder left speaks of nobody.
    pub attachment: String,
    /// Another one at each renewal.
    pub sign: Uuid,
    /// The silence, in seconds, after which the holder may be taken for gone.
    pub seconds: u64,
}

impl Lease {
    /// A new sign.
    pub fn renewed(attachment: &str, time: Duration) -> Self {
        Self { attachment: attachment.to_owned(), sign: Uuid::new_v4(), seconds: time.as_secs() }
    }

    /// As a value of metadata (Cinder takes 255 characters; this has about 120).
    pub fn to_metadata(&self) -> String {
        serde_json::json!(self).to_string()
    }

    fn of(volume: &Volume) -> Option<Self> {
        serde_json::from_str(volume.metadata.get(LEASE)?).ok()
    }
}

/// What the holder of a volume looks like from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// It may live.
    MayLive {
        /// It is silent for good if it stays silent for so long.
        until_gone: Duration,
    },
    /// It has been silent for its lease's time.
    Silent {
        /// Its attachment.
        attachment: String,
        /// For how long, seen from here.
        since: Duration,
    },
    /// Nothing can ever be said of it; why.
    Unknowable(&'static str),
}

#[derive(Debug)]
struct Sighting {
    lease: Lease,
    /// By when it was there, on the caller's clock.
    at: Duration,
}

/// The signs that this host has seen.
#[derive(Debug, Default)]
pub struct Sightings(Mutex<HashMap<Uuid, Sighting>>);

impl Sightings {
    /// Judges the holder of a volume that is in use, which was read between `asked` and `answered`
    /// on a clock that goes on while the machine is suspended. `least` is a lease's shortest time.
    pub fn judge(
        &self,
        volume: &Volume,
        asked: Duration,
        answered: Duration,
        least: Duration,
    ) -> Holder {
        let (attachment, lease) = match judged(volume) {
            Ok(found) => found,
            Err(why) => return Holder::Unknowable(why),
        };
        let time = Duration::from_secs(lease.seconds).max(least);
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sighting = seen
            .entry(volume.id)
            .and_modify(|sighting| {
                if sighting.lease != lease {
                    *sighting = Sighting { lease: lease.clone(), at: answered };
                }
            })
            .or_insert_with(|| Sighting { lease: lease.clone(), at: answered });
        // The shortest that it can be: from the end of the first look to the begin of this one.
        let silent = asked.saturating_sub(sighting.at);
        if silent < time {
            return Holder::MayLive { until_gone: time - silent };
        }
        Holder::Silent { attachment: attachment.to_owned(), since: silent }
    }

    /// The volume is another's no more.
    pub fn forget(&self, id: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// The attachment and lease of a holder that can be judged.
fn judged(volume: &Volume) -> Result<(&str, Lease), &'static str> {
    if volume.status != VolumeStatus::InUse {
        return Err("it is between two states");
    }
    if volume.multiattach {
        return Err("it allows several attachments");
    }
    let [attachment] = volume.attachments.as_slice() else {
        return Err("it has not exactly one attachment");
    };
    if attachment.server_id.as_deref().is_some_and(|id| !id.is_empty()) {
        return Err("it is attached to an instance, or by a host with a HostUUID");
    }
    match Lease::of(volume) {
        Some(lease) if lease.attachment == attachment.attachment_id => {
            Ok((&attachment.attachment_id, lease))
        }
        _ => Err("its holder gives no signs of life: Failover is not configured there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::tests::volume;
    use crate::openstack::AttachmentInfo;

    const LEAST: Duration = Duration::from_secs(30);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn judge(seen: &Sightings, volume: &Volume, at: u64) -> Holder {
        seen.judge(volume, seconds(at), seconds(at), LEAST)
    }

    /// In use by a host with a lease of 60 seconds.
    fn held() -> (Volume, Lease) {
        let mut volume = volume("v");
        volume.status = VolumeStatus::InUse;
        volume.attachments = vec![AttachmentInfo {
            attachment_id: "an-attachment".into(),
            server_id: None,
            host_name: None,
            device: None,
            attached_at: None,
        }];
        let lease = Lease::renewed("an-attachment", seconds(60));
        volume.metadata.insert(LEASE.into(), lease.to_metadata());
        (volume, lease)
    }

    #[test]
    fn a_holder_is_silent_after_its_whole_lease_and_not_a_moment_before() {
        let (volume, _) = held();
        let seen = Sightings::default();
        let may_live = |left| Holder::MayLive { until_gone: seconds(left) };
        assert_eq!(judge(&seen, &volume, 1000), may_live(60));
        assert_eq!(judge(&seen, &volume, 1059), may_live(1));
        let silent = Holder::Silent { attachment: "an-attachment".into(), since: seconds(60) };
        assert_eq!(judge(&seen, &volume, 1060), silent);
    }

    /// Cinder may take long to answer: what was seen may be as new as the answer, and what is seen
    /// now as old as the question.
    #[test]
    fn the_time_that_looking_takes_is_no_silence() {
        let (volume, _) = held();
        let seen = Sightings::default();
        let may_live = |left| Holder::MayLive { until_gone: seconds(left) };
        assert_eq!(seen.judge(&volume, seconds(0), seconds(50), LEAST), may_live(60));
        assert_eq!(seen.judge(&volume, seconds(100), seconds(150), LEAST), may_live(10));
        let silent = Holder::Silent { attachment: "an-attachment".into(), since: seconds(60) };
        assert_eq!(seen.judge(&volume, seconds(110), seconds(160), LEAST), silent);
    }

    #[test]
    fn each_renewal_begins_the_lease_anew() {
        let (mut volume, _) = held();
        let seen = Sightings::default();
        judge(&seen, &volume, 0);
        let again = Lease::renewed("an-attachment", seconds(60));
        volume.metadata.insert(LEASE.into(), again.to_metadata());
        let may_live = Holder::MayLive { until_gone: seconds(60) };
        assert_eq!(judge(&seen, &volume, 59), may_live);
        assert_eq!(judge(&seen, &volume, 59), may_live);
        assert!(matches!(judge(&seen, &volume, 119), Holder::Silent { .. }));
    }

    /// Whatever stands in the metadata, a holder has at least the shortest lease.
    #[test]
    fn no_lease_is_shorter_than_the_shortest() {
        let (mut volume, lease) = held();
        let short = Lease { seconds: 0, ..lease };
        volume.metadata.insert(LEASE.into(), short.to_metadata());
        let may_live = Holder::MayLive { until_gone: LEAST };
        assert_eq!(judge(&Sightings::default(), &volume, 7), may_live);
    }

    #[test]
    fn who_cannot_be_judged_is_never_taken_for_gone() {
        let (held, lease) = held();
        let with = |change: &dyn Fn(&mut Volume)| {
            let mut volume = held.clone();
            change(&mut volume);
            let seen = Sightings::default();
            judge(&seen, &volume, 0);
            judge(&seen, &volume, 1_000_000)
        };
        assert!(matches!(with(&|_| {}), Holder::Silent { .. }));
        let cases: [&dyn Fn(&mut Volume); 9] = [
            &|volume| volume.status = VolumeStatus::Detaching,
            &|volume| volume.status = VolumeStatus::Attaching,
            &|volume| volume.multiattach = true,
            &|volume| volume.attachments.clear(),
            &|volume| volume.attachments.push(volume.attachments[0].clone()),
            // An instance of Nova's.
            &|volume| volume.attachments[0].server_id = Some("a-server".into()),
            // A host without Failover, after one with it.
            &|volume| volume.attachments[0].attachment_id = "another".into(),
            &|volume| drop(volume.metadata.remove(LEASE)),
            &|volume| {
                let text = lease.to_metadata().replace("seconds", "Seconds");
                volume.metadata.insert(LEASE.into(), text);
            },
        ];
        for case in cases {
            assert!(matches!(with(case), Holder::Unknowable(_)), "{:?}", with(case));
        }
    }
}
