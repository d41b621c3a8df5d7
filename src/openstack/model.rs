//! What Cinder says, as the rest of the program sees it. Unknown JSON fields are ignored.

use std::collections::BTreeMap;

use uuid::Uuid;

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
    /// `error_deleting`.
    ErrorDeleting,
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
}

/// One page of a listing.
#[derive(Debug, Clone)]
pub struct VolumePage {
    /// The volumes of this page.
    pub volumes: Vec<Volume>,
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
}
