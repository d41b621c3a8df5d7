//! What the journal keeps of one volume.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::docker::Engine;
use crate::driver::metadata;
use crate::host::attach::DeviceRecord;
use crate::host::filesystem::mountinfo::DeviceNumber;
use crate::host::filesystem::probe::FsType;
use crate::openstack::{AttachFlow, Volume};

/// The format of the files; an entry of another version blocks only its volume.
pub const VERSION: u32 = 1;

/// One volume: its names, and everything that we may hold for it.
///
/// `attachment`, `device` and `mount` are *liabilities*: each is written before the step that
/// makes it (intent), completed after it (fact), and taken out when it was undone. They say where
/// to look; what is there, the kernel and Cinder know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// [`VERSION`].
    pub version: u32,
    /// The Cinder volume.
    pub volume_id: Uuid,
    /// Every Docker name by which this host ever answered for it with success.
    pub names: BTreeSet<String>,
    /// What Cinder last said of it, for answers while Cinder is silent.
    pub facts: Option<Facts>,
    /// What Cinder may hold for us.
    pub attachment: Option<AttachmentRecord>,
    /// A reserve that has not happened, but still might. No liability: nothing has to be undone yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<Unanswered>,
    /// What this host's kernel may hold.
    pub device: Option<DeviceRecord>,
    /// What may be mounted.
    pub mount: Option<MountRecord>,
    /// mkfs was begun with this UUID, and the filesystem not mounted since.
    pub formatting: Option<Formatting>,
    /// Who uses the mount.
    pub references: Vec<Reference>,
    /// The boot in which device, mount and references were true.
    pub boot_id: String,
    /// The last thing that went wrong, for `docker volume inspect`.
    pub last_error: Option<String>,
    /// An attachment that was taken from us, and the filesystem stopped therefore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<String>,
    /// Cinder may be extending it to this many GiB while it is mounted here: until that is over its
    /// attachment is not given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resizing: Option<u64>,
    /// The mounted filesystem may be frozen for a snapshot, since so many seconds after 1970. Should
    /// nobody have lived to end that, it is thawed at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<u64>,
}

/// What Cinder last said of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its name in Cinder.
    pub name: String,
    /// GiB.
    pub size: u64,
    /// Type.
    pub volume_type: Option<String>,
    /// Zone.
    pub availability_zone: Option<String>,
    /// Cinder's time stamp (UTC, no zone).
    pub created_at: String,
    /// Ours or the Go driver's: [`super::super::metadata::is_ours`].
    pub ours: bool,
    /// Its cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Its create options.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// An attachment, or one in the making.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// The flow that makes it; only that flow releases it.
    pub flow: AttachFlow,
    /// How far it got.
    pub stage: AttachmentStage,
    /// Attachments flow: from the reserve. Actions flow: from the completion.
    pub attachment_id: Option<String>,
    /// The connector exactly as sent; the same is sent at release.
    pub connector: serde_json::Value,
    /// `instance_uuid` of os-attach.
    pub instance_uuid: Uuid,
    /// `HOST:/path`, shown by Cinder's clients as the device.
    pub mountpoint: String,
    /// Actions flow: the volume's `updated_at` as our own calls left it. While it stands, the
    /// reservation is ours.
    pub updated_at: BTreeSet<String>,
}

/// A reserve that was never answered: a proxy may have given up waiting for it, not Cinder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unanswered {
    /// What it would make.
    pub attachment: AttachmentRecord,
    /// When Cinder was last seen without it at first, seconds since 1970.
    pub since: u64,
}

/// How far an attachment got. Each stage is written before its step begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachmentStage {
    /// Reserve was sent. No answer yet, or none that is clear: nothing is proven to be ours.
    Reserving,
    /// Cinder answered the reserve; the export may be under way.
    Reserved,
    /// The completion was sent.
    Completing,
    /// Cinder answered the completion.
    Attached,
}

/// A mount, or one in the making.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// `MountPoint/NAME`.
    pub at: PathBuf,
    /// The directory that containers get; known once the mount is complete.
    pub directory: Option<PathBuf>,
    /// The filesystem's device.
    pub device: DeviceNumber,
    /// Its node, for people.
    pub device_path: PathBuf,
    /// Its type.
    pub fs_type: FsType,
    /// Its UUID.
    pub fs_uuid: Uuid,
    /// Mounted read-only on purpose.
    pub read_only: bool,
    /// Since when, seconds since 1970.
    pub since: u64,
}

/// mkfs, begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formatting {
    /// The filesystem's UUID.
    pub uuid: Uuid,
    /// Its type.
    pub fs_type: FsType,
}

/// How often an id has mounted and not unmounted. `docker cp` on a running container mounts with
/// that container's id, so a set of ids would take the volume away from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Docker's mount id.
    pub id: String,
    /// The engine that asked.
    pub engine: Option<Engine>,
    /// How often.
    pub count: u32,
    /// How many of them the engine has not been told of yet. A daemon that died with them never
    /// told it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub untold: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Entry {
    /// An entry that knows nothing yet.
    pub fn new(volume_id: Uuid) -> Self {
        Self {
            version: VERSION,
            volume_id,
            names: BTreeSet::new(),
            facts: None,
            attachment: None,
            unanswered: None,
            device: None,
            mount: None,
            formatting: None,
            references: Vec::new(),
            boot_id: String::new(),
            last_error: None,
            taken: None,
            resizing: None,
            frozen: None,
        }
    }

    /// Whether there is anything that may have to be undone.
    pub fn has_liabilities(&self) -> bool {
        self.attachment.is_some() || self.device.is_some() || self.mount.is_some()
    }

    /// Whether every step of the mount was finished: Cinder knows, and the directory is chosen.
    pub fn is_complete(&self) -> bool {
        let attached = |record: &AttachmentRecord| record.stage == AttachmentStage::Attached;
        self.attachment.as_ref().is_some_and(attached)
            && self.device.is_some()
            && self.mount.as_ref().is_some_and(|record| record.directory.is_some())
    }

    /// A name for people: a Docker name, Cinder's name, or the id.
    pub fn shown_name(&self) -> String {
        self.names
            .first()
            .cloned()
            .or_else(|| self.facts.as_ref().map(|facts| facts.name.clone()))
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| self.volume_id.to_string())
    }

    /// How many references there are in all.
    pub fn users(&self) -> u32 {
        let counts = self.references.iter().map(|reference| reference.count);
        counts.fold(0, u32::saturating_add)
    }
}

impl Facts {
    /// What is worth remembering of a volume.
    pub fn of(volume: &Volume, ours: bool) -> Self {
        Self {
            name: volume.name.clone(),
            size: volume.size,
            volume_type: volume.volume_type.clone(),
            availability_zone: volume.availability_zone.clone(),
            created_at: volume.created_at.clone(),
            ours,
            cluster: metadata::cluster(volume).map(str::to_owned),
            options: metadata::options_of(volume),
        }
    }
}

/// A creation under way: written before the POST, so that a crash leaves a trace of the nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creation {
    /// [`VERSION`].
    pub version: u32,
    /// In the new volume's metadata: proves that it is ours.
    pub nonce: Uuid,
    /// The name.
    pub name: String,
    /// The metadata that it gets, for people who read the file.
    pub metadata: BTreeMap<String, String>,
}
