//! What the embedded cloud knows: the rows of Keystone's and Cinder's data bases, and the file
//! that keeps them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::clock::{self, Micros};

/// Everything that outlives a restart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    /// Format of this file.
    version: u32,
    pub(super) users: Vec<User>,
    pub(super) projects: Vec<Project>,
    pub(super) application_credentials: Vec<ApplicationCredential>,
    pub(super) role_id: String,
    pub(super) tokens: BTreeMap<String, Token>,
    pub(super) volume_types: Vec<VolumeType>,
    pub(super) volumes: BTreeMap<Uuid, Volume>,
    pub(super) snapshots: BTreeMap<Uuid, Snapshot>,
    #[serde(default)]
    pub(super) backups: BTreeMap<Uuid, Backup>,
    pub(super) attachments: BTreeMap<Uuid, Attachment>,
    pub(super) exports: Vec<Export>,
    /// Of the tgtd that serves them, if one was started.
    pub(super) iscsi_port: Option<u16>,
    pub(super) messages: Vec<Message>,
}

const VERSION: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct User {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) password: String,
    /// Ids of the projects in which the user is a member; the first is the default project.
    pub(super) projects: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Project {
    pub(super) id: String,
    pub(super) name: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ApplicationCredential {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) secret: String,
    pub(super) user_id: String,
    pub(super) project_id: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Token {
    pub(super) user_id: String,
    /// `None` = unscoped.
    pub(super) project_id: Option<String>,
    /// How its user proved to be themselves, the latest first.
    #[serde(default)]
    pub(super) methods: Vec<String>,
    /// Id of the application credential, if one was used.
    #[serde(default)]
    pub(super) application_credential: Option<String>,
    pub(super) audit_id: String,
    pub(super) issued: Micros,
    pub(super) expires: Micros,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct VolumeType {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) multiattach: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Volume {
    pub(super) id: Uuid,
    pub(super) project_id: String,
    pub(super) user_id: String,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    /// GiB.
    pub(super) size: u64,
    pub(super) status: String,
    /// What a volume returns to after `extending`.
    pub(super) previous_status: Option<String>,
    /// `detached`, `reserved`, `attaching`, `attached`, `detaching`
    pub(super) attach_status: String,
    /// Name of the type.
    pub(super) volume_type: String,
    pub(super) availability_zone: String,
    pub(super) metadata: BTreeMap<String, String>,
    /// `readonly` and `attached_mode`: shown with the user's metadata, not theirs to change.
    pub(super) admin_metadata: BTreeMap<String, String>,
    pub(super) bootable: bool,
    pub(super) multiattach: bool,
    pub(super) encrypted: bool,
    pub(super) snapshot_id: Option<Uuid>,
    pub(super) source_volid: Option<Uuid>,
    pub(super) created_at: String,
    pub(super) updated_at: Option<String>,
    /// CHAP of its target, made at the first connection and kept (`provider_auth`).
    pub(super) chap: Option<Chap>,
    /// A fault keeps it in this state for good.
    pub(super) stuck: bool,
}

impl Volume {
    /// Every change of the row moves `updated_at`; changes of metadata are in other tables.
    pub(super) fn touch(&mut self) {
        self.updated_at = Some(clock::cinder(clock::now()));
    }

    pub(super) fn set_status(&mut self, status: &str) {
        status.clone_into(&mut self.status);
        self.touch();
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chap {
    pub(super) username: String,
    pub(super) password: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub(super) id: Uuid,
    pub(super) project_id: String,
    pub(super) user_id: String,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) volume_id: Uuid,
    /// GiB.
    pub(super) size: u64,
    pub(super) status: String,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) created_at: String,
    pub(super) updated_at: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Backup {
    pub(super) id: Uuid,
    pub(super) project_id: String,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    /// The volume it is of.
    pub(super) volume_id: Uuid,
    pub(super) availability_zone: String,
    /// GiB of that volume.
    pub(super) size: u64,
    pub(super) status: String,
    /// That volume's metadata, which a restore brings back.
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) created_at: String,
    pub(super) updated_at: Option<String>,
}

impl Backup {
    pub(super) fn set_status(&mut self, status: &str) {
        status.clone_into(&mut self.status);
        self.updated_at = Some(clock::cinder(clock::now()));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Attachment {
    pub(super) id: Uuid,
    pub(super) volume_id: Uuid,
    /// `reserved`, `attaching`, `attached`, `error_attaching`
    pub(super) attach_status: String,
    pub(super) instance_uuid: Option<String>,
    pub(super) host: Option<String>,
    pub(super) mountpoint: Option<String>,
    /// Cinder's odd value: `ro` as soon as the volume has a `readonly` key, even `False`.
    pub(super) attach_mode: Option<String>,
    /// `mode: ro` was asked for.
    pub(super) read_only: bool,
    pub(super) attached_at: Option<String>,
    pub(super) connector: Option<Value>,
    /// Flattened, as the attachments API shows it. Attachments of os-attach have none.
    pub(super) connection_info: Option<Map<String, Value>>,
}

/// A volume made reachable for one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Export {
    pub(super) volume_id: Uuid,
    /// Whose it is: an attachment's id, or `HOST INITIATOR` of a connector.
    pub(super) connection: String,
    pub(super) read_only: bool,
    /// The loop device; none for a target.
    pub(super) device: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Message {
    pub(super) id: Uuid,
    pub(super) project_id: String,
    pub(super) resource_uuid: Uuid,
    pub(super) event_id: String,
    pub(super) user_message: String,
    pub(super) request_id: String,
    pub(super) created: Micros,
}

/// 32 hexadecimal digits, as Keystone's ids are.
pub(super) fn hex_id() -> String {
    Uuid::new_v4().simple().to_string()
}

/// A few letters and digits that nobody guesses.
pub(super) fn secret(length: usize) -> String {
    hex_id().chars().take(length).collect()
}

impl State {
    /// A cloud with the users `mesos` and `other`, each member of the project of the same name.
    pub(super) fn new() -> Self {
        let projects: Vec<Project> = ["mesos", "other"]
            .map(|name| Project { id: hex_id(), name: name.to_owned() })
            .into_iter()
            .collect();
        let users: Vec<User> = projects
            .iter()
            .map(|project| User {
                id: hex_id(),
                name: project.name.clone(),
                password: "mesospw".to_owned(),
                projects: vec![project.id.clone()],
            })
            .collect();
        let application_credentials = vec![ApplicationCredential {
            id: hex_id(),
            name: "sandbox".to_owned(),
            secret: secret(32),
            user_id: users[0].id.clone(),
            project_id: projects[0].id.clone(),
        }];
        let volume_types = [
            ("solidfire", None, false),
            ("lvmdriver-1", None, false),
            ("multiattach", None, true),
            ("__DEFAULT__", Some("Default Volume Type"), false),
        ]
        .map(|(name, description, multiattach)| VolumeType {
            id: Uuid::new_v4(),
            name: name.to_owned(),
            description: description.map(str::to_owned),
            multiattach,
        });
        Self {
            version: VERSION,
            users,
            projects,
            application_credentials,
            role_id: hex_id(),
            tokens: BTreeMap::new(),
            volume_types: volume_types.into(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            backups: BTreeMap::new(),
            attachments: BTreeMap::new(),
            exports: Vec::new(),
            iscsi_port: None,
            messages: Vec::new(),
        }
    }

    /// Attachments of a volume, in no particular order.
    pub(super) fn attachments_of(&self, volume_id: Uuid) -> impl Iterator<Item = &Attachment> {
        self.attachments.values().filter(move |row| row.volume_id == volume_id)
    }

    /// Status and attach status of a volume as its attachments say, after one of them went:
    /// attached, then attaching, then reserved; failed ones don't count.
    pub(super) fn statuses_from_attachments(
        &self,
        volume_id: Uuid,
    ) -> (&'static str, &'static str) {
        let has = |status| self.attachments_of(volume_id).any(|row| row.attach_status == status);
        if has("attached") {
            ("in-use", "attached")
        } else if has("attaching") {
            ("attaching", "attaching")
        } else if has("reserved") {
            ("reserved", "reserved")
        } else {
            ("available", "detached")
        }
    }
}

/// The state in memory and its file. A change is on disk once [`Store::save`] returned.
pub(super) struct Store {
    path: PathBuf,
    state: Mutex<(u64, State)>,
    /// Number of the last change that is on disk; held while writing, so that many changes
    /// that wait for it are written by one of them.
    saved: tokio::sync::Mutex<u64>,
}

/// The state holds passwords and tokens.
impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Loads the file, or begins a new cloud where there is none.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let state = match std::fs::read(&path) {
            Ok(bytes) => parse(&bytes).map_err(|problem| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("cannot read {}: {problem}; remove it to begin anew", path.display()),
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, state: Mutex::new((1, state)), saved: tokio::sync::Mutex::new(0) })
    }

    /// Looks at the state.
    pub(super) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Changes the state; nobody sees it half changed.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0 += 1;
        change(&mut guard.1)
    }

    /// Returns when every change made so far is on disk.
    pub(super) async fn save(&self) -> io::Result<()> {
        let wanted = self.state.lock().unwrap_or_else(PoisonError::into_inner).0;
        let mut saved = self.saved.lock().await;
        if *saved >= wanted {
            return Ok(());
        }
        let (number, bytes) = {
            let guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            (guard.0, serde_json::to_vec(&guard.1)?)
        };
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || replace(&path, &bytes)).await??;
        *saved = number;
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Result<State, String> {
    let state: State = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if state.version == VERSION {
        Ok(state)
    } else {
        Err(format!("its format is {}, this program knows {VERSION}", state.version))
    }
}

/// Replaces a file: after a crash it is the old or the new one, whole.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
