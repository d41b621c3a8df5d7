//! Get and Path. Get is the hinge: dockerd purges its record of a volume whose Get fails, and
//! never sends its Unmount.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::timeout_at;

use super::journal::{AttachmentStage, Entry};
use super::{Driver, DriverError, VolumeName, metadata};
use crate::docker::{Caller, VolumeInfo};
use crate::openstack::Volume;

/// A name that this host knows is answered from memory when Cinder gives no clean answer in this
/// time.
const PATIENCE_FOR_KNOWN: Duration = Duration::from_secs(3);

impl Driver {
    pub(super) fn path_of(&self, name: &str) -> Result<Option<PathBuf>, DriverError> {
        let name = VolumeName::parse(name)?;
        match self.journal.by_name(name.as_str()) {
            Some(entry) => self.mounted_directory(&entry),
            None => Ok(None),
        }
    }

    pub(super) async fn get_volume(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<VolumeInfo, DriverError> {
        let name = VolumeName::parse(name)?;
        let known = self.journal.by_name(name.as_str());
        if let Some(entry) = &known
            && entry.mount.is_some()
        {
            // Mounted, or not yet let go of: that holds whatever Cinder says.
            return self.answer_from_memory(&name, entry, None);
        }
        let patience = match known {
            Some(_) => caller.deadline.min(tokio::time::Instant::now() + PATIENCE_FOR_KNOWN),
            None => caller.deadline,
        };
        let answer = timeout_at(patience, self.find_for_many(&name)).await.unwrap_or_else(|_| {
            Err(DriverError::NotYet("Cinder does not answer; try again later".to_owned()))
        });
        match (answer, known) {
            (Ok(volume), _) => {
                self.remember(&name, &volume).await?;
                Ok(self.answer_from_cinder(&name, &volume))
            }
            (Err(DriverError::NotFound(gone)), _) => {
                self.forget_name(&gone).await?;
                Err(DriverError::NotFound(gone))
            }
            (Err(error), Some(entry)) => self.answer_from_memory(&name, &entry, Some(&error)),
            (Err(error), None) => Err(error),
        }
    }

    fn answer_from_cinder(&self, name: &VolumeName, volume: &Volume) -> VolumeInfo {
        let mut status = Map::new();
        status.insert("id".into(), json!(volume.id));
        status.insert("status".into(), json!(volume.status.as_str()));
        status.insert("size".into(), json!(volume.size));
        insert_some(&mut status, "type", volume.volume_type.as_deref());
        insert_some(&mut status, "availability_zone", volume.availability_zone.as_deref());
        let filesystem = volume.metadata.get(metadata::FS).map(String::as_str);
        insert_some(&mut status, "filesystem", filesystem);
        if let Some(attachment) = volume.attachments.first() {
            insert_some(&mut status, "attached_to", attachment.server_id.as_deref());
            insert_some(&mut status, "attached_host", attachment.host_name.as_deref());
            insert_some(&mut status, "attached_device", attachment.device.as_deref());
            insert_some(&mut status, "attached_at", attachment.attached_at.as_deref());
        }
        insert_some(&mut status, "cluster", metadata::cluster(volume));
        insert_some(&mut status, "retained", metadata::retained(volume));
        status.insert("options".into(), json!(metadata::options_of(volume)));
        if let Some(entry) = self.journal.by_name(name.as_str()) {
            insert_some(&mut status, "last_error", entry.last_error.as_deref());
        }
        VolumeInfo {
            name: name.to_string(),
            mountpoint: None,
            created_at: rfc3339(&volume.created_at),
            status,
        }
    }

    fn answer_from_memory(
        &self,
        name: &VolumeName,
        entry: &Entry,
        cloud_error: Option<&DriverError>,
    ) -> Result<VolumeInfo, DriverError> {
        let directory = self.mounted_directory(entry)?;
        let mut status = Map::new();
        status.insert("id".into(), json!(entry.volume_id));
        let attached = entry
            .attachment
            .as_ref()
            .is_some_and(|attachment| attachment.stage == AttachmentStage::Attached);
        if attached {
            status.insert("status".into(), json!("in-use"));
        }
        if let Some(facts) = &entry.facts {
            status.insert("size".into(), json!(facts.size));
            insert_some(&mut status, "type", facts.volume_type.as_deref());
            insert_some(&mut status, "availability_zone", facts.availability_zone.as_deref());
            insert_some(&mut status, "cluster", facts.cluster.as_deref());
            status.insert("options".into(), json!(facts.options));
        }
        if let Some(record) = &entry.mount {
            status.insert("filesystem".into(), json!(record.fs_type.to_string()));
            status.insert("device".into(), json!(record.device_path));
            status.insert("attached_to".into(), json!(self.host.identity.uuid));
            status.insert("attached_host".into(), json!(self.host.identity.host));
            status.insert("users_here".into(), json!(entry.users()));
        }
        insert_some(&mut status, "last_error", entry.last_error.as_deref());
        if let Some(error) = cloud_error {
            let text = crate::error_chain::Chain(error).to_string();
            status.insert("cinder".into(), json!(format!("no clean answer: {text}")));
        }
        Ok(VolumeInfo {
            name: name.to_string(),
            mountpoint: directory.map(|path| path.display().to_string()),
            created_at: entry.facts.as_ref().and_then(|facts| rfc3339(&facts.created_at)),
            status,
        })
    }
}

fn insert_some(status: &mut Map<String, Value>, key: &str, value: Option<&str>) {
    if let Some(value) = value {
        status.insert(key.to_owned(), json!(value));
    }
}

/// Cinder's time stamps carry no zone and mean UTC. Go's decoder refuses a whole answer for a time
/// that is not RFC 3339, so what does not parse is left out.
fn rfc3339(cinder: &str) -> Option<String> {
    let text = format!("{}Z", cinder.trim_end_matches('Z').replace(' ', "T"));
    humantime::parse_rfc3339(&text).ok().map(|_| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_get_their_zone_and_nonsense_is_left_out() {
        assert_eq!(
            rfc3339("2013-02-18T14:51:17.000000").as_deref(),
            Some("2013-02-18T14:51:17.000000Z")
        );
        for text in ["", "yesterday", "2013-02-18", "2013-02-30T14:51:17"] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }
}
