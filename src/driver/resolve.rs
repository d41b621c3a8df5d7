//! From a Docker name to a Cinder volume.
//!
//! A Docker name is a Cinder name, exactly; or, failing that, a volume's UUID. Cinder names aren't
//! unique: none → not found; one → it; several → an error that lists the ids, unless the journal
//! knows which is ours.

use std::sync::Arc;

use uuid::Uuid;

use super::journal::{Entry, Facts};
use super::{Driver, DriverError, VolumeName, metadata};
use crate::openstack::{Volume, VolumeStatus};
use crate::shown::shown;

/// What Cinder has under a name.
#[derive(Debug, Clone)]
pub(super) enum Lookup {
    /// One volume.
    Found(Box<Volume>),
    /// Only volumes that are being deleted.
    Leaving,
    /// Nothing, and Cinder said so.
    Nothing,
}

impl Driver {
    /// The volume of this name. One that is being deleted does not exist.
    pub(super) async fn find(&self, name: &VolumeName) -> Result<Volume, DriverError> {
        found(name, self.look_up(name).await?)
    }

    /// The same for Get: who asks at once shares an answer that was asked for after they did.
    pub(super) async fn find_for_many(&self, name: &VolumeName) -> Result<Volume, DriverError> {
        let key = name.to_string();
        let ask = || async { self.look_up(name).await.map_err(Arc::new) };
        found(name, self.looking_up.share(&key, ask).await?)
    }

    /// Looks a name up. An error means that Cinder gave no complete answer, or an ambiguous one, or
    /// that the name is another cluster's.
    pub(super) async fn look_up(&self, name: &VolumeName) -> Result<Lookup, DriverError> {
        let mut volumes = self.cloud.volumes_named(name.as_str()).await?;
        let others: Vec<_> =
            volumes.extract_if(.., |volume| self.is_of_other_cluster(volume)).collect();
        let known = self.journal.by_name(name.as_str()).map(|entry| entry.volume_id);
        let leaving = volumes.iter().any(|volume| volume.status == VolumeStatus::Deleting);
        if let Some(volume) = choose(name, volumes, known)? {
            return Ok(Lookup::Found(Box::new(volume)));
        }
        let by_id = match Uuid::parse_str(name.as_str()) {
            Ok(id) => match self.cloud.volume(id).await {
                Ok(volume) => Some(volume),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error.into()),
            },
            Err(_) => None,
        };
        let of_others = others.iter().find(|volume| volume.status != VolumeStatus::Deleting);
        Ok(match by_id {
            Some(volume) if self.is_of_other_cluster(&volume) => {
                return Err(self.of_other_cluster(&volume));
            }
            Some(volume) if volume.status != VolumeStatus::Deleting => {
                Lookup::Found(Box::new(volume))
            }
            // Between clusters that say who they are, each has its own. A host that does not say it
            // may have lost its configuration: a blank volume is not what its people expect.
            None if self.settings.cluster.is_none() && of_others.is_some() => {
                return Err(of_others.map_or(DriverError::NotFound(name.to_string()), |volume| {
                    self.of_other_cluster(volume)
                }));
            }
            Some(_) => Lookup::Leaving,
            None if leaving => Lookup::Leaving,
            None => Lookup::Nothing,
        })
    }

    /// As [`Driver::find`], by the id that the journal knows, if it still answers to the name.
    pub(super) async fn find_known(&self, name: &VolumeName) -> Result<Volume, DriverError> {
        if let Some(entry) = self.journal.by_name(name.as_str()) {
            match self.cloud.volume(entry.volume_id).await {
                Ok(volume) if answers_to(&volume, name) && self.is_of_other_cluster(&volume) => {
                    return Err(self.of_other_cluster(&volume));
                }
                Ok(volume) if answers_to(&volume, name) => return Ok(volume),
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.find(name).await
    }

    /// Whether a volume is this driver's and this cluster's, and was not removed from Docker.
    pub(super) fn is_ours(&self, volume: &Volume) -> bool {
        metadata::is_of(volume, self.settings.cluster.as_deref())
    }

    /// Whether a volume says that it is another cluster's.
    pub(super) fn is_of_other_cluster(&self, volume: &Volume) -> bool {
        metadata::is_of_other(volume, self.settings.cluster.as_deref())
    }

    pub(super) fn of_other_cluster(&self, volume: &Volume) -> DriverError {
        let theirs = shown(metadata::cluster(volume).unwrap_or_default());
        let (id, key) = (volume.id, metadata::CLUSTER);
        DriverError::Refused(match &self.settings.cluster {
            Some(ours) => format!(
                "volume {id} belongs to cluster \"{theirs}\" ({key} in its metadata), and this host to \
                 \"{ours}\" (ClusterID in its config)"
            ),
            None => format!(
                "volume {id} belongs to cluster \"{theirs}\" ({key} in its metadata), and this host has \
                 no ClusterID in its config: set \"ClusterID\": \"{theirs}\" if it is of that cluster, \
                 or choose another name"
            ),
        })
    }

    /// Remembers that this host answered for a volume by this name, which no other volume has then.
    /// A disk that refuses does not make the answer wrong.
    pub(super) async fn remember(
        &self,
        name: &VolumeName,
        volume: &Volume,
    ) -> Result<(), DriverError> {
        let facts = Facts::of(volume, self.is_ours(volume));
        self.journal
            .update_regardless(volume.id, |entry| {
                entry.names.insert(name.to_string());
                entry.facts = Some(facts);
            })
            .await?;
        for entry in self.journal.all_named(name.as_str()) {
            if entry.volume_id != volume.id {
                self.take_name(&entry, name.as_str()).await?;
            }
        }
        Ok(())
    }

    /// A volume does not answer to a name any more; what is held here still does.
    async fn take_name(&self, entry: &Entry, name: &str) -> Result<(), DriverError> {
        if entry.has_liabilities() {
            return Ok(());
        }
        if entry.names.len() == 1 {
            return Ok(self.journal.forget(entry.volume_id).await?);
        }
        self.journal
            .update_regardless(entry.volume_id, |entry| {
                entry.names.remove(name);
            })
            .await?;
        Ok(())
    }

    /// The name is proven gone from Cinder: forget it, and the volume if nothing is held for it.
    pub(super) async fn forget_name(&self, name: &str) -> Result<(), DriverError> {
        for entry in self.journal.all_named(name) {
            self.take_name(&entry, name).await?;
        }
        Ok(())
    }
}

fn found(name: &VolumeName, lookup: Lookup) -> Result<Volume, DriverError> {
    match lookup {
        Lookup::Found(volume) => Ok(*volume),
        Lookup::Leaving | Lookup::Nothing => Err(DriverError::NotFound(name.to_string())),
    }
}

fn answers_to(volume: &Volume, name: &VolumeName) -> bool {
    volume.status != VolumeStatus::Deleting
        && (volume.name == name.as_str() || Uuid::parse_str(name.as_str()) == Ok(volume.id))
}

fn choose(
    name: &VolumeName,
    mut volumes: Vec<Volume>,
    known: Option<Uuid>,
) -> Result<Option<Volume>, DriverError> {
    volumes.retain(|volume| volume.status != VolumeStatus::Deleting);
    if volumes.len() > 1
        && let Some(at) = volumes.iter().position(|volume| Some(volume.id) == known)
    {
        return Ok(Some(volumes.swap_remove(at)));
    }
    match volumes.len() {
        0 | 1 => Ok(volumes.pop()),
        _ => Err(DriverError::Duplicates {
            name: name.to_string(),
            ids: volumes.iter().map(|volume| volume.id).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::tests::volume;

    #[test]
    fn of_several_volumes_only_the_one_that_the_journal_knows_is_taken() {
        let name = VolumeName::parse("web").unwrap();
        let (a, b) = (volume("web"), volume("web"));
        let both = || vec![a.clone(), b.clone()];
        assert!(matches!(choose(&name, both(), None), Err(DriverError::Duplicates { .. })));
        assert_eq!(choose(&name, both(), Some(b.id)).unwrap().unwrap().id, b.id);
        assert!(choose(&name, both(), Some(Uuid::new_v4())).is_err());
    }

    #[test]
    fn a_volume_that_is_being_deleted_does_not_exist() {
        let name = VolumeName::parse("web").unwrap();
        let mut gone = volume("web");
        gone.status = VolumeStatus::Deleting;
        assert_eq!(choose(&name, vec![gone], None).unwrap(), None);
    }
}
