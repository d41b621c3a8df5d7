//! What is known of volumes, for people and for programs: Cinder's word, the journal's and the
//! kernel's. Changes nothing, takes no lock and touches no device.
//!
//! The shapes are stable: keys are added, none changes its meaning or goes.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::journal::{AttachmentStage, Entry};
use super::metadata;
use super::{Driver, DriverError};
use crate::error_chain::Chain;
use crate::host::attach::DeviceRecord;
use crate::host::attach::iscsi::{self, SessionFacts};
use crate::host::filesystem::mount::is_healthy;
use crate::host::filesystem::mountinfo::{self, MountEntry};
use crate::host::{Paths, process};
use crate::openstack::{AttachmentInfo, Cloud, Volume, VolumeStatus};

/// Where reports come from.
#[derive(Debug)]
pub struct Report<'a> {
    /// The cloud.
    pub cloud: &'a Cloud,
    /// This host.
    pub paths: &'a Paths,
    /// The journal's usable entries.
    pub entries: Vec<Arc<Entry>>,
    /// The cluster of this host (`ClusterID`).
    pub cluster: Option<&'a str>,
}

impl Driver {
    /// Reports of this driver.
    pub(super) fn report(&self) -> Report<'_> {
        Report {
            cloud: &self.cloud,
            paths: &self.host.paths,
            entries: self.journal.all(),
            cluster: self.settings.cluster.as_deref(),
        }
    }
}

impl Report<'_> {
    /// `{"Volumes": […]}`: what this driver made and what this host knows, or with `all` every volume
    /// of the project, by name. Each has
    ///
    /// ```text
    /// name, id, size (GiB), type, status     as Cinder says
    /// cluster, ours                          its ClusterID; made by or adopted by this driver and cluster
    /// attached                               who has it: [{attachment, host, at, instance, since}]
    /// mounted_at, users                      here; null and 0 when it is not mounted here
    /// ```
    ///
    /// What this host holds and Cinder does not list has the status `not in Cinder`.
    ///
    /// # Errors
    /// When Cinder gives no complete list.
    pub async fn list(&self, all: bool) -> Result<Value, DriverError> {
        let mounts = mountinfo::own(self.paths).unwrap_or_default();
        let mut rows = Vec::new();
        let mut listed = BTreeSet::new();
        let (mut next, mut seen) = (None, BTreeSet::new());
        loop {
            let page = self.cloud.list_page::<Volume>(next.as_deref()).await?;
            for volume in &page.volumes {
                let entry = self.entries.iter().find(|entry| entry.volume_id == volume.id);
                listed.insert(volume.id);
                if all || entry.is_some() || self.is_ours(volume) {
                    rows.push(self.row(volume, entry.map(AsRef::as_ref), &mounts));
                }
            }
            next = page.next;
            match &next {
                None => break,
                Some(next) if seen.insert(next.clone()) => {}
                Some(_) => {
                    return Err(DriverError::Refused(
                        "the pages of Cinder's list come to no end".to_owned(),
                    ));
                }
            }
        }
        let held = self.entries.iter().filter(|entry| entry.has_liabilities());
        for entry in held.filter(|entry| !listed.contains(&entry.volume_id)) {
            rows.push(row_of_entry(entry, &mounts));
        }
        let key = |row: &Value| (row["name"].to_string(), row["id"].to_string());
        rows.sort_by_cached_key(key);
        Ok(json!({ "Volumes": rows }))
    }

    /// All that is known of the volume with this name or id:
    ///
    /// ```text
    /// name, id
    /// cinder         what Cinder says; null when it has no such volume or gave no answer
    /// cinder_error   why there is no clean answer, or null
    /// here           as `status` shows it; null when this host holds nothing of it
    /// journal        this host's entry as it is; null when there is none
    /// ```
    ///
    /// # Errors
    /// When neither Cinder nor this host knows it, or several volumes have the name.
    pub async fn inspect(&self, name: &str) -> Result<Value, DriverError> {
        let given = Uuid::parse_str(name).ok();
        let answers =
            |entry: &&Arc<Entry>| entry.names.contains(name) || Some(entry.volume_id) == given;
        let mut known = self.entries.iter().filter(answers);
        let first = known.next();
        // A name can pass from one volume to another; what is mounted here answers to it.
        let entry = known.find(|entry| entry.mount.is_some()).or(first);
        let found = match entry {
            Some(entry) => match self.cloud.volume(entry.volume_id).await {
                Ok(volume) => Ok(Some(volume)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(DriverError::from(error)),
            },
            None => find_any(self.cloud, name).await.map(Some),
        };
        let (volume, error) = match (found, entry) {
            (Ok(volume), _) => (volume, None),
            (Err(error), Some(_)) => (None, Some(Chain(&error).to_string())),
            (Err(error), None) => return Err(error),
        };
        let entry = entry.or_else(|| {
            let id = volume.as_ref()?.id;
            self.entries.iter().find(|entry| entry.volume_id == id)
        });
        let here = entry.filter(|entry| entry.has_liabilities()).map(|entry| {
            let facts = HostFacts::read(self.paths);
            facts.and_then(|facts| held_here(entry, &facts)).unwrap_or_else(
                |error| json!({ "error": format!("this host cannot be looked at: {error}") }),
            )
        });
        let id = volume.as_ref().map(|volume| volume.id).or(entry.map(|entry| entry.volume_id));
        let journal = entry.map(|entry| serde_json::to_value(&**entry)).transpose();
        Ok(json!({
            "name": volume.as_ref().map_or(name, |volume| &*volume.name),
            "id": id,
            "cinder": volume.as_ref().map(|volume| self.as_cinder_has_it(volume)),
            "cinder_error": error,
            "here": here,
            // A map with keys that are no strings; there is none.
            "journal": journal.unwrap_or_default(),
        }))
    }

    /// Whether a volume is this driver's and this cluster's, and was not removed from Docker.
    fn is_ours(&self, volume: &Volume) -> bool {
        metadata::is_ours(volume)
            && metadata::cluster(volume) == self.cluster
            && metadata::retained(volume).is_none()
    }

    fn row(&self, volume: &Volume, entry: Option<&Entry>, mounts: &[MountEntry]) -> Value {
        json!({
            "name": volume.name,
            "id": volume.id,
            "size": volume.size,
            "type": volume.volume_type,
            "status": volume.status.as_str(),
            "cluster": metadata::cluster(volume),
            "ours": self.is_ours(volume),
            "attached": volume.attachments.iter().map(who).collect::<Vec<_>>(),
            "mounted_at": entry.and_then(|entry| mounted_at(entry, mounts)),
            "users": entry.map_or(0, Entry::users),
        })
    }

    fn as_cinder_has_it(&self, volume: &Volume) -> Value {
        json!({
            "name": volume.name,
            "id": volume.id,
            "status": volume.status.as_str(),
            "size": volume.size,
            "type": volume.volume_type,
            "availability_zone": volume.availability_zone,
            "description": volume.description,
            "cluster": metadata::cluster(volume),
            "ours": self.is_ours(volume),
            "bootable": volume.bootable,
            "encrypted": volume.encrypted,
            "multiattach": volume.multiattach,
            "snapshot": volume.snapshot_id,
            "source": volume.source_volid,
            "from_image": volume.from_image,
            "attached": volume.attachments.iter().map(who).collect::<Vec<_>>(),
            "created_at": volume.created_at,
            "updated_at": volume.updated_at,
            "metadata": volume.metadata,
        })
    }
}

/// The one volume of this name, or with this id; Docker need not be able to say the name.
pub(super) async fn find_any(cloud: &Cloud, name: &str) -> Result<Volume, DriverError> {
    let mut named = cloud.volumes_named(name).await?;
    named.retain(|volume| volume.status != VolumeStatus::Deleting);
    if named.len() > 1 {
        let ids = named.iter().map(|volume| volume.id).collect();
        return Err(DriverError::Duplicates { name: name.to_owned(), ids });
    }
    if let Some(volume) = named.pop() {
        return Ok(volume);
    }
    let gone = || DriverError::NotFound(crate::shown::shown(name));
    let id = Uuid::parse_str(name).map_err(|_| gone())?;
    match cloud.volume(id).await {
        Err(error) if error.is_not_found() => Err(gone()),
        found => Ok(found?),
    }
}

fn row_of_entry(entry: &Entry, mounts: &[MountEntry]) -> Value {
    let facts = entry.facts.as_ref();
    json!({
        "name": entry.shown_name(),
        "id": entry.volume_id,
        "size": facts.map(|facts| facts.size),
        "type": facts.and_then(|facts| facts.volume_type.as_deref()),
        "status": "not in Cinder",
        "cluster": facts.and_then(|facts| facts.cluster.as_deref()),
        "ours": facts.is_some_and(|facts| facts.ours),
        "attached": [],
        "mounted_at": mounted_at(entry, mounts),
        "users": entry.users(),
    })
}

/// Who has a volume.
fn who(attachment: &AttachmentInfo) -> Value {
    let (host, at) = holder_of(attachment);
    json!({
        "attachment": attachment.attachment_id,
        "host": host,
        "at": at,
        "instance": attachment.server_id,
        "since": attachment.attached_at,
    })
}

/// The host of an attachment, and where the volume is there. Ours say `HOST:/path` as their device;
/// of others Cinder tells the host to administrators only.
pub fn holder_of(attachment: &AttachmentInfo) -> (Option<&str>, Option<&str>) {
    let device = attachment.device.as_deref();
    let ours = device.and_then(|device| {
        let slash = device.find(":/")?;
        (slash > 0).then(|| (&device[..slash], &device[slash + 1..]))
    });
    match ours {
        Some((host, at)) => (Some(host), Some(at)),
        None => (attachment.host_name.as_deref(), device),
    }
}

/// This host, read once for many volumes.
#[derive(Debug)]
pub struct HostFacts<'a> {
    paths: &'a Paths,
    mounts: Vec<MountEntry>,
    sessions: Vec<SessionFacts>,
    boot_id: String,
}

impl<'a> HostFacts<'a> {
    /// Reads mounts, sessions and the boot's id.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn read(paths: &'a Paths) -> std::io::Result<Self> {
        Ok(Self {
            paths,
            mounts: mountinfo::own(paths)?,
            // Without an initiator there are none; one that cannot be read says nothing.
            sessions: iscsi::sessions(paths).unwrap_or_default(),
            boot_id: process::boot_id(paths)?,
        })
    }
}

/// What this host holds of a volume, by the journal's word and the kernel's:
///
/// ```text
/// name, id, state
/// mountpoint, device, filesystem     of the mount, or null
/// users, references                  how often Docker has it mounted, by mount id
/// containers                         who holds it now, by the kernel: [{id, pid, command, at}]; the
///                                    id is null for what is in no container
/// attachment, flow, attached         in Cinder, as the journal knows it
/// sessions                           iSCSI: [{target, portal, lun, state}]; state null = no session
/// since                              of the mount, seconds since 1970
/// to_do                              what the journal has still to do: sentences
/// last_error                         the last thing that went wrong, or null
/// ```
///
/// # Errors
/// None that is not of `/proc`.
pub fn held_here(entry: &Entry, facts: &HostFacts<'_>) -> std::io::Result<Value> {
    let record = entry.mount.as_ref();
    let mounted = mount_of(entry, &facts.mounts);
    let healthy =
        record.zip(mounted).is_some_and(|(record, mounted)| is_healthy(mounted, record.read_only));
    let state = match (mounted.is_some(), entry.is_complete(), entry.users()) {
        (true, ..) if entry.taken.is_some() => "taken from this host",
        (true, true, 1..) if !healthy => "broken",
        (true, true, 1..) => "mounted",
        (true, true, 0) => "mounted, unused",
        (true, false, _) => "being mounted or released",
        (false, ..) => "to be released",
    };
    let holders = match (record, mounted) {
        (Some(record), Some(_)) => process::mount_holders(facts.paths, record.device, &record.at),
        _ => Vec::new(),
    };
    let containers: Vec<Value> = holders
        .iter()
        // What cannot be read may be anybody: no container is named for it.
        .filter(|holder| !holder.mount_point.is_empty())
        .map(|holder| {
            json!({
                "id": process::container_of(facts.paths, holder.pid),
                "pid": holder.pid,
                "command": holder.command,
                "at": holder.mount_point,
            })
        })
        .collect();
    let attachment = entry.attachment.as_ref();
    Ok(json!({
        "name": entry.shown_name(),
        "id": entry.volume_id,
        "state": state,
        "mountpoint": record.map(|record| &record.at),
        "device": record.map(|record| &record.device_path),
        "filesystem": record.map(|record| record.fs_type.to_string()),
        "users": entry.users(),
        "references": entry.references,
        "containers": containers,
        "attachment": attachment.and_then(|attachment| attachment.attachment_id.as_deref()),
        "flow": attachment.map(|attachment| attachment.flow),
        "attached": attachment.is_some_and(|a| a.stage == AttachmentStage::Attached),
        "sessions": sessions_of(entry, &facts.sessions),
        "since": record.map(|record| record.since),
        "to_do": to_do(entry, mounted.is_some(), entry.boot_id == facts.boot_id),
        "last_error": entry.last_error,
    }))
}

/// The mount that an entry speaks of, if the kernel has it.
fn mount_of<'a>(entry: &Entry, mounts: &'a [MountEntry]) -> Option<&'a MountEntry> {
    let record = entry.mount.as_ref()?;
    let top = mounts.iter().rfind(|mount| mount.mount_point == record.at)?;
    (top.device == record.device).then_some(top)
}

fn mounted_at<'a>(entry: &'a Entry, mounts: &[MountEntry]) -> Option<&'a std::path::Path> {
    mount_of(entry, mounts)?;
    entry.mount.as_ref().map(|record| record.at.as_path())
}

fn sessions_of(entry: &Entry, sessions: &[SessionFacts]) -> Vec<Value> {
    let Some(DeviceRecord::Iscsi(record)) = &entry.device else { return Vec::new() };
    record
        .paths
        .iter()
        .map(|path| {
            let session = sessions.iter().find(|session| session.serves(path));
            json!({
                "target": path.iqn,
                "portal": path.portal,
                "lun": path.lun,
                "state": session.map(|session| &session.state),
            })
        })
        .collect()
}

/// What the journal has still to do for a volume, in the order in which it will be done.
fn to_do(entry: &Entry, mounted: bool, this_boot: bool) -> Vec<String> {
    let mut left = Vec::new();
    if let Some(unanswered) = &entry.unanswered {
        let since = humantime::format_rfc3339_seconds(
            std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(unanswered.since),
        );
        left.push(format!(
            "watch whether a reserve that was never answered happens (since {since})"
        ));
    }
    if let Some(formatting) = &entry.formatting {
        left.push(format!("mount the {} that mkfs made, or make it again", formatting.fs_type));
    }
    let used = this_boot && mounted && entry.users() > 0;
    if used && entry.is_complete() {
        return left;
    }
    if this_boot && entry.is_complete() && mounted && entry.users() == 0 {
        left.push("release it a minute after its last use".to_owned());
    }
    if let Some(record) = entry.mount.as_ref().filter(|_| mounted) {
        left.push(format!("unmount {}", record.at.display()));
    }
    if let Some(device) = &entry.device {
        left.push(match device {
            DeviceRecord::Iscsi(_) => "remove its disk and end its iSCSI session".to_owned(),
            DeviceRecord::Local(_) => "flush its device".to_owned(),
        });
    }
    if let Some(attachment) = &entry.attachment {
        left.push(match attachment.stage {
            AttachmentStage::Attached => "tell Cinder that it is detached".to_owned(),
            AttachmentStage::Reserving => {
                "see whether Cinder reserved it, and give that back".to_owned()
            }
            AttachmentStage::Reserved | AttachmentStage::Completing => {
                "give its reservation back to Cinder".to_owned()
            }
        });
    }
    left
}

/// What `release --host` and `adopt` answer, as the operators' other requests do.
pub(super) fn answer(volume: Uuid, says: &[String], done: bool) -> Value {
    let mut map = Map::new();
    map.insert("ID".into(), json!(volume));
    map.insert("Says".into(), json!(says));
    map.insert("Done".into(), json!(done));
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(device: Option<&str>, host_name: Option<&str>) -> AttachmentInfo {
        AttachmentInfo {
            attachment_id: "a".into(),
            server_id: None,
            host_name: host_name.map(str::to_owned),
            device: device.map(str::to_owned),
            attached_at: None,
        }
    }

    #[test]
    fn the_host_of_an_attachment_is_read_from_ours_and_from_what_administrators_see() {
        let of = |device, host| {
            let attachment = attachment(device, host);
            let (host, at) = holder_of(&attachment);
            (host.map(str::to_owned), at.map(str::to_owned))
        };
        let pair = |a: Option<&str>, b: Option<&str>| (a.map(str::to_owned), b.map(str::to_owned));
        assert_eq!(of(Some("n1:/m/db"), None), pair(Some("n1"), Some("/m/db")));
        assert_eq!(of(Some("n1:/m/a:/b"), Some("x")), pair(Some("n1"), Some("/m/a:/b")));
        assert_eq!(
            of(Some("/dev/vdb"), Some("compute-3")),
            pair(Some("compute-3"), Some("/dev/vdb"))
        );
        assert_eq!(of(Some(":/x"), None), pair(None, Some(":/x")));
        assert_eq!(of(None, None), (None, None));
    }

    #[test]
    fn what_is_in_use_has_nothing_to_be_done_and_what_a_crash_left_has_all_of_it() {
        let mut entry = Entry::new(Uuid::new_v4());
        entry.boot_id = "b".into();
        assert_eq!(to_do(&entry, false, true), Vec::<String>::new());
        entry.attachment = Some(crate::driver::journal::AttachmentRecord {
            flow: crate::openstack::AttachFlow::Attachments,
            stage: AttachmentStage::Reserved,
            attachment_id: None,
            connector: Value::Null,
            instance_uuid: Uuid::nil(),
            mountpoint: String::new(),
            updated_at: BTreeSet::new(),
        });
        let left = to_do(&entry, false, true);
        assert_eq!(left, ["give its reservation back to Cinder"]);
    }
}
