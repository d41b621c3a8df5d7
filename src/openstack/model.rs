//! What Cinder says, as the rest of the program sees it. Unknown JSON fields are ignored.
//!
//! Reading is tolerant: clouds of ten years and many back ends write sizes as strings, leave
//! fields out or null. Only an id is needed.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::connection_info::{ConnectionData, ConnectionInfo};
use crate::shown::shown;

/// A Cinder volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: Uuid,
    /// Its name; Cinder's may be null, then empty.
    pub name: String,
    /// Where it stands.
    pub status: VolumeStatus,
    /// Size in GiB.
    pub size: u64,
    /// Volume type name.
    pub volume_type: Option<String>,
    /// Availability zone.
    pub availability_zone: Option<String>,
    /// Free text; the Go driver's mark is `Docker volume.`.
    pub description: Option<String>,
    /// Metadata, ours among it.
    pub metadata: BTreeMap<String, String>,
    /// Who has it.
    pub attachments: Vec<AttachmentInfo>,
    /// Bootable (`"true"`).
    pub bootable: bool,
    /// Data at rest is encrypted by the consumer.
    pub encrypted: bool,
    /// Several attachments at once are allowed.
    pub multiattach: bool,
    /// Made from this snapshot.
    pub snapshot_id: Option<String>,
    /// Made from this volume.
    pub source_volid: Option<String>,
    /// Made from an image (`volume_image_metadata` is present).
    pub from_image: bool,
    /// Cinder's time stamp, without a zone, as given (UTC): `2026-11-22T02:24:00.419476`.
    pub created_at: String,
    /// Moves whenever Cinder changes the volume's row.
    pub updated_at: Option<String>,
}

/// Cinder's volume states that matter; anything else is kept by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeStatus {
    /// Being made.
    Creating,
    /// Being filled from an image.
    Downloading,
    /// Being filled from a backup.
    Restoring,
    /// Free.
    Available,
    /// Reserved by the attachments flow.
    Reserved,
    /// Reserved by the actions flow, or an attachment with a connector.
    Attaching,
    /// Attached.
    InUse,
    /// Being let go.
    Detaching,
    /// Being deleted.
    Deleting,
    /// Being grown.
    Extending,
    /// `error`.
    Error,
    /// `error_restoring`: not all of a backup came.
    ErrorRestoring,
    /// `error_deleting`.
    ErrorDeleting,
    /// `error_extending`.
    ErrorExtending,
    /// Any other, by name.
    Other(String),
}

/// One row of `volume.attachments`: somebody who has the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentInfo {
    /// Attachment id.
    pub attachment_id: String,
    /// `server_id`: the instance, or a plugin's HostUUID.
    pub server_id: Option<String>,
    /// Host name (admins only see it).
    pub host_name: Option<String>,
    /// The `mountpoint` that was given at attach; ours carries host and path.
    pub device: Option<String>,
    /// Since when (UTC, no zone).
    pub attached_at: Option<String>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The volume it was taken of.
    pub volume_id: String,
    /// Size in GiB.
    pub size: u64,
    /// Status as Cinder says it.
    pub status: String,
    /// Cinder's time stamp (UTC, no zone).
    pub created_at: String,
    /// Metadata.
    pub metadata: BTreeMap<String, String>,
}

/// One page of a listing.
#[derive(Debug, Clone)]
pub struct VolumePage<T = Volume> {
    /// The volumes of this page.
    pub volumes: Vec<T>,
    /// Opaque: give it to the next call. `None` = this was the last page.
    pub next: Option<String>,
}

/// What a new volume is to be.
#[derive(Debug, Clone, Default)]
pub struct CreateVolume {
    /// Name.
    pub name: String,
    /// GiB; `None` only with a source, then the source's size.
    pub size: Option<u64>,
    /// Volume type.
    pub volume_type: Option<String>,
    /// Availability zone.
    pub availability_zone: Option<String>,
    /// Description.
    pub description: Option<String>,
    /// Metadata.
    pub metadata: BTreeMap<String, String>,
    /// Make it from this snapshot (id).
    pub snapshot_id: Option<String>,
    /// Make it from this volume (id).
    pub source_volid: Option<String>,
    /// Make it from this image (id).
    pub image_id: Option<String>,
    /// Make it from this backup (id). Only from microversion 3.47 on.
    pub backup_id: Option<String>,
    /// `OS-SCH-HNT:scheduler_hints`; a hint of one value is a text, of several a list.
    pub hints: BTreeMap<String, Vec<String>>,
}

/// A backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Size in GiB of the volume that it is of.
    pub size: u64,
    /// Status as Cinder says it.
    pub status: String,
}

/// A volume as it comes: any field may be missing or of any type.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawVolume {
    id: Value,
    name: Value,
    status: Value,
    size: Value,
    volume_type: Value,
    availability_zone: Value,
    description: Value,
    metadata: Value,
    attachments: Value,
    bootable: Value,
    encrypted: Value,
    multiattach: Value,
    snapshot_id: Value,
    source_volid: Value,
    volume_image_metadata: Value,
    created_at: Value,
    updated_at: Value,
}

impl RawVolume {
    /// `None` = without a usable id, so nothing can be done with it.
    pub(super) fn usable(self) -> Option<Volume> {
        let Some(id) = self.id.as_str().and_then(|id| Uuid::parse_str(id).ok()) else {
            tracing::warn!(id = %self.id, "Cinder lists a volume without a usable id: left out");
            return None;
        };
        let metadata = match self.metadata {
            Value::Object(metadata) => metadata,
            _ => Map::new(),
        };
        let attachments = self.attachments.as_array().map(Vec::as_slice).unwrap_or_default();
        Some(Volume {
            id,
            name: text(&self.name).unwrap_or_default(),
            status: VolumeStatus::named(self.status.as_str().unwrap_or_default()),
            size: number(&self.size),
            volume_type: text(&self.volume_type),
            availability_zone: text(&self.availability_zone),
            description: text(&self.description),
            metadata: metadata
                .into_iter()
                .map(|(key, value)| (key, text(&value).unwrap_or_default()))
                .collect(),
            attachments: attachments.iter().filter_map(AttachmentInfo::read).collect(),
            bootable: flag(&self.bootable),
            encrypted: flag(&self.encrypted),
            multiattach: flag(&self.multiattach),
            snapshot_id: text(&self.snapshot_id),
            source_volid: text(&self.source_volid),
            from_image: self.volume_image_metadata.as_object().is_some_and(|map| !map.is_empty()),
            created_at: text(&self.created_at).unwrap_or_default(),
            updated_at: text(&self.updated_at),
        })
    }
}

/// What is kept of a volume that may have no usable id. Picked while the list is read: a page of all
/// that Cinder says would take several megabytes.
pub(super) struct Picked<T>(pub(super) Option<T>);

impl<'de, T: From<Volume>> Deserialize<'de> for Picked<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(RawVolume::deserialize(deserializer)?.usable().map(T::from)))
    }
}

impl VolumeStatus {
    fn named(name: &str) -> Self {
        match name {
            "creating" => Self::Creating,
            "downloading" => Self::Downloading,
            "restoring-backup" => Self::Restoring,
            "available" => Self::Available,
            "reserved" => Self::Reserved,
            "attaching" => Self::Attaching,
            "in-use" => Self::InUse,
            "detaching" => Self::Detaching,
            "deleting" => Self::Deleting,
            "extending" => Self::Extending,
            "error" => Self::Error,
            "error_restoring" => Self::ErrorRestoring,
            "error_deleting" => Self::ErrorDeleting,
            "error_extending" => Self::ErrorExtending,
            "" => Self::Other("unknown".to_owned()),
            other => Self::Other(shown(other)),
        }
    }

    /// The name that Cinder uses.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Creating => "creating",
            Self::Downloading => "downloading",
            Self::Restoring => "restoring-backup",
            Self::Available => "available",
            Self::Reserved => "reserved",
            Self::Attaching => "attaching",
            Self::InUse => "in-use",
            Self::Detaching => "detaching",
            Self::Deleting => "deleting",
            Self::Extending => "extending",
            Self::Error => "error",
            Self::ErrorRestoring => "error_restoring",
            Self::ErrorDeleting => "error_deleting",
            Self::ErrorExtending => "error_extending",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for VolumeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl AttachmentInfo {
    fn read(row: &Value) -> Option<Self> {
        // Cinder before Havana gave only `id`, which is the volume's own today.
        let attachment_id = id(&row["attachment_id"])?;
        Some(Self {
            attachment_id,
            server_id: text(&row["server_id"]),
            host_name: text(&row["host_name"]),
            device: text(&row["device"]),
            attached_at: text(&row["attached_at"]),
        })
    }
}

impl Snapshot {
    pub(super) fn read(row: &Value) -> Option<Self> {
        Some(Self {
            id: id(&row["id"])?,
            name: text(&row["name"]).unwrap_or_default(),
            volume_id: text(&row["volume_id"]).unwrap_or_default(),
            size: number(&row["size"]),
            status: text(&row["status"]).unwrap_or_default(),
            created_at: text(&row["created_at"]).unwrap_or_default(),
            metadata: row["metadata"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, value)| (key.clone(), text(value).unwrap_or_default()))
                .collect(),
        })
    }
}

impl Backup {
    pub(super) fn read(row: &Value) -> Option<Self> {
        Some(Self {
            id: text(&row["id"])?,
            name: text(&row["name"]).unwrap_or_default(),
            size: number(&row["size"]),
            status: text(&row["status"]).unwrap_or_default(),
        })
    }
}

impl CreateVolume {
    /// The body of `POST /volumes`; what isn't set isn't sent.
    pub(super) fn to_json(&self) -> Value {
        let mut volume = Map::new();
        volume.insert("name".to_owned(), self.name.as_str().into());
        if let Some(size) = self.size {
            volume.insert("size".to_owned(), size.into());
        }
        for (key, value) in [
            ("volume_type", &self.volume_type),
            ("availability_zone", &self.availability_zone),
            ("description", &self.description),
            ("snapshot_id", &self.snapshot_id),
            ("source_volid", &self.source_volid),
            ("imageRef", &self.image_id),
            ("backup_id", &self.backup_id),
        ] {
            if let Some(value) = value {
                volume.insert(key.to_owned(), value.as_str().into());
            }
        }
        if !self.metadata.is_empty() {
            volume.insert("metadata".to_owned(), json!(self.metadata));
        }
        let mut body = json!({ "volume": volume });
        if !self.hints.is_empty() {
            let one_or_many = |values: &Vec<String>| match values.as_slice() {
                [only] => json!(only),
                many => json!(many),
            };
            let hints: Map<_, _> =
                self.hints.iter().map(|(key, v)| (key.clone(), one_or_many(v))).collect();
            body["OS-SCH-HNT:scheduler_hints"] = Value::Object(hints);
        }
        body
    }
}

impl ConnectionInfo {
    /// Reads `connection_info` of either flow: os-initialize_connection nests `data`, the
    /// attachments API puts its keys beside `driver_volume_type`.
    pub(super) fn read(connection_info: &Value) -> Option<Self> {
        let mut info = connection_info.as_object()?.clone();
        let Some(Value::String(driver_volume_type)) = info.remove("driver_volume_type") else {
            return None;
        };
        let data = match info.remove("data") {
            Some(Value::Object(data)) => data,
            _ => info,
        };
        Some(Self { driver_volume_type, data: ConnectionData(data) })
    }
}

/// A string that says something; numbers and booleans as they are written.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// An id that becomes a part of a path: nothing that could lead elsewhere.
pub(super) fn id(value: &Value) -> Option<String> {
    text(value).filter(|id| is_plain(id))
}

/// Whether a text is a single part of a path as it stands.
pub(super) fn is_plain(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !id.is_empty() && !id.starts_with('.') && id.bytes().all(plain)
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()).unwrap_or_default()
}

fn flag(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| {
        value.as_str().is_some_and(|text| text.trim().eq_ignore_ascii_case("true"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(volume: Value) -> Option<Volume> {
        serde_json::from_value::<RawVolume>(volume).unwrap().usable()
    }

    /// Cinder 12 (Queens), v2, attached with instance_uuid.
    fn queens() -> Value {
        json!({
            "status": "in-use", "user_id": "25f0318b14704b3d8f4602db2deb5fed",
            "attachments": [{
                "server_id": "219b0670-a214-4281-8424-5bb3beaaa107",
                "attachment_id": "9a39082a-76cb-4cc0-a390-9f8e420da17f",
                "attached_at": "2026-11-22T02:24:15.261466", "host_name": null,
                "volume_id": "7095a8a7-389c-40e0-bfd7-b8e47a89f176", "device": "/dev/vdb",
                "id": "7095a8a7-389c-40e0-bfd7-b8e47a89f176"}],
            "links": [], "availability_zone": "nova", "bootable": "false", "encrypted": false,
            "created_at": "2026-11-22T02:24:02.212385", "description": null,
            "os-vol-tenant-attr:tenant_id": "3580f8a1162f413882543cae9b93cc4c",
            "updated_at": "2026-11-22T02:24:15.278130", "volume_type": "solidfire",
            "name": "cinderDisk", "replication_status": null, "consistencygroup_id": null,
            "source_volid": null, "snapshot_id": null, "multiattach": false,
            "metadata": {"made-by": "bed", "readonly": "False", "attached_mode": "rw"},
            "id": "7095a8a7-389c-40e0-bfd7-b8e47a89f176", "size": 1
        })
    }

    #[test]
    fn an_attached_volume_is_read() {
        let volume = read(queens()).unwrap();
        assert_eq!(volume.id.to_string(), "7095a8a7-389c-40e0-bfd7-b8e47a89f176");
        assert_eq!(
            (&*volume.name, volume.size, volume.status),
            ("cinderDisk", 1, VolumeStatus::InUse)
        );
        assert_eq!(volume.volume_type.as_deref(), Some("solidfire"));
        assert_eq!(volume.description, None);
        assert_eq!(volume.metadata["made-by"], "bed");
        assert!(!volume.bootable && !volume.encrypted && !volume.multiattach && !volume.from_image);
        assert_eq!((volume.snapshot_id, volume.source_volid), (None, None));
        assert_eq!(volume.created_at, "2026-11-22T02:24:02.212385");
        assert_eq!(volume.updated_at.as_deref(), Some("2026-11-22T02:24:15.278130"));
        let [attachment] = &*volume.attachments else { panic!("one attachment") };
        assert_eq!(attachment.attachment_id, "9a39082a-76cb-4cc0-a390-9f8e420da17f");
        assert_eq!(attachment.server_id.as_deref(), Some("219b0670-a214-4281-8424-5bb3beaaa107"));
        assert_eq!(
            (&attachment.host_name, attachment.device.as_deref()),
            (&None, Some("/dev/vdb"))
        );
    }

    #[test]
    fn odd_fields_do_not_hide_a_volume() {
        let volume = read(json!({
            "id": "7095A8A7389C40E0BFD7B8E47A89F176", "name": null, "status": "awaiting-transfer",
            "size": "20", "bootable": true, "encrypted": "True", "multiattach": "false",
            "metadata": {"number": 7, "nothing": null}, "attachments": null, "description": "",
            "volume_type": ["?"], "volume_image_metadata": {"image_id": "i1"}, "created_at": 5,
            "snapshot_id": "s1"}))
        .unwrap();
        assert_eq!(volume.id.to_string(), "7095a8a7-389c-40e0-bfd7-b8e47a89f176");
        assert_eq!((&*volume.name, volume.size), ("", 20));
        assert_eq!(volume.status, VolumeStatus::Other("awaiting-transfer".to_owned()));
        assert!(volume.bootable && volume.encrypted && !volume.multiattach && volume.from_image);
        assert_eq!((&*volume.metadata["number"], &*volume.metadata["nothing"]), ("7", ""));
        assert_eq!((volume.volume_type, volume.description), (None, None));
        assert_eq!(volume.snapshot_id.as_deref(), Some("s1"));
    }

    #[test]
    fn only_an_id_is_needed() {
        let id = "7095a8a7-389c-40e0-bfd7-b8e47a89f176";
        assert_eq!(
            read(json!({ "id": id })).unwrap().status,
            VolumeStatus::Other("unknown".to_owned())
        );
        for unusable in [json!({}), json!({"id": null}), json!({"id": 7}), json!({"id": "../x"})] {
            assert_eq!(read(unusable.clone()), None, "{unusable}");
        }
    }

    #[test]
    fn every_status_keeps_its_name() {
        for name in [
            "creating",
            "downloading",
            "available",
            "reserved",
            "attaching",
            "in-use",
            "detaching",
            "deleting",
            "extending",
            "error",
            "error_deleting",
            "error_extending",
            "maintenance",
        ] {
            assert_eq!(VolumeStatus::named(name).to_string(), name);
        }
    }

    #[test]
    fn connection_info_of_both_flows_is_the_same() {
        let nested = json!({"driver_volume_type": "iscsi", "enforce_multipath": false,
            "data": {"target_portal": "127.0.0.1:3260", "target_lun": 1}});
        let flat = json!({"driver_volume_type": "iscsi",
            "target_portal": "127.0.0.1:3260", "target_lun": 1});
        let [nested, flat] = [nested, flat].map(|info| ConnectionInfo::read(&info).unwrap());
        assert_eq!(nested.driver_volume_type, flat.driver_volume_type);
        assert_eq!(nested.data.0, flat.data.0);
        for none in [json!({}), json!(null), json!({"data": {}}), json!({"driver_volume_type": 1})]
        {
            assert!(ConnectionInfo::read(&none).is_none(), "{none}");
        }
    }

    #[test]
    fn a_create_says_only_what_is_set() {
        let plain = CreateVolume { name: "db".into(), size: Some(2), ..CreateVolume::default() };
        assert_eq!(plain.to_json(), json!({"volume": {"name": "db", "size": 2}}));
        let all = CreateVolume {
            volume_type: Some("ssd".into()),
            availability_zone: Some("nova".into()),
            description: Some("Docker volume.".into()),
            metadata: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            snapshot_id: Some("s".into()),
            source_volid: Some("v".into()),
            image_id: Some("i".into()),
            ..plain
        };
        assert_eq!(
            all.to_json(),
            json!({"volume": {"name": "db", "size": 2, "volume_type": "ssd",
                "availability_zone": "nova", "description": "Docker volume.",
                "metadata": {"k": "v"}, "snapshot_id": "s", "source_volid": "v", "imageRef": "i"}})
        );
    }

    proptest! {
        #[test]
        fn any_json_is_a_volume_or_none(volume in crate::arbitrary::object(&[
            "id", "name", "status", "size", "metadata", "attachments", "created_at", "updated_at",
            "bootable", "encrypted", "multiattach", "volume_type", "snapshot_id", "source_volid",
        ])) {
            read(Value::Object(volume));
        }

        #[test]
        fn a_member_of_any_json_in_a_good_volume_is_read_or_refused(
            key in prop::sample::select(vec!["status", "size", "metadata", "attachments", "name"]),
            value in crate::arbitrary::json(),
        ) {
            let mut volume = queens();
            volume[key] = value;
            read(volume);
        }
    }
}
