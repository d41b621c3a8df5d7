//! An embedded Keystone (v2.0, v3) and Cinder (v2, v3 with attachments), with volumes as sparse
//! files: Docker users try everything with no OpenStack at all, and the tests use the same code.
//!
//! As strict as the real ones: where it disagrees with a real Cinder, that is a bug here.
//!
//! All on one loopback address and port:
//!
//! | | |
//! | --- | --- |
//! | Keystone | `/v3`, `/v2.0`, and below `/identity`, as DevStack has it |
//! | Cinder | `/volume/v3/PROJECT`, `/volume/v2/PROJECT` |
//! | Glance | `/image`: has no image |
//! | Nova | `/compute`: knows no instance |
//! | for tests and people | `/sandbox`: see [`control`] |

pub mod faults;

mod cinder;
mod clock;
mod cloud;
pub mod control;
mod http;
mod keystone;
mod options;
mod server;
mod state;
mod storage;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

pub use options::{Behaviour, Generation, Nova, Options, Quotas};

use cloud::Cloud;
use state::Store;
use storage::{Storage, Targets};

/// A sandbox that stops may still be busy with a file: its successor waits so long for the
/// directory.
const LOCK_WITHIN: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// A running sandbox. Dropping it stops serving; volumes and exports stay.
#[derive(Debug)]
pub struct Sandbox {
    address: SocketAddr,
    cloud: Arc<Cloud>,
    _stop: DropGuard,
}

impl Sandbox {
    /// Loads the state, finds loop devices that are still there, and serves.
    ///
    /// # Errors
    /// An address that is not a loopback one, or taken; a directory that cannot be used, or is
    /// used by another sandbox; a state file that cannot be read; with `iscsi`, no tgtd.
    pub async fn start(options: Options) -> io::Result<Self> {
        if !options.listen.ip().is_loopback() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the sandbox has well-known passwords and listens on a loopback address only, \
                     not on {}",
                    options.listen
                ),
            ));
        }
        std::fs::create_dir_all(&options.dir)?;
        let dir = options.dir.canonicalize()?;
        let lock = lock(&dir).await?;
        let stopped = CancellationToken::new();
        let store = Store::open(dir.join("state.json"))?;
        let storage = Storage::open(&dir)?;
        let targets = if options.iscsi {
            let before = store.read(|state| state.iscsi_port);
            let wanted = Some(options.iscsi_port).filter(|port| *port > 0);
            let targets = Targets::start(&dir, wanted.or(before)).await?;
            store.change(|state| state.iscsi_port = Some(targets.port()));
            Some(targets)
        } else {
            None
        };
        let stop = stopped.clone();
        let cloud = Arc::new(Cloud::new(store, storage, targets, options.behaviour, stop, lock));
        cinder::restore(&cloud).await?;
        cinder::resume(&cloud);
        cloud.store.save().await?;
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        cloud.spawn(server::serve(Arc::clone(&cloud), listener));
        Ok(Self { address, cloud, _stop: stopped.drop_guard() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Faults, delays and the log of requests.
    pub fn faults(&self) -> &Arc<faults::Faults> {
        &self.cloud.faults
    }

    /// Which cloud it behaves like now.
    pub fn behaviour(&self) -> Behaviour {
        self.cloud.behaviour()
    }

    /// Behaves differently from now on.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.cloud.set_behaviour(behaviour);
    }

    /// Keys for a config file that uses this sandbox: `Endpoint` (v3), `Username`, `Password`,
    /// `TenantID`, `DomainName`, `Region`.
    pub fn config(&self) -> Map<String, Value> {
        control::config(&self.cloud, &format!("http://{}", self.address))
    }

    /// Id and secret of an application credential for the same user and project.
    pub fn application_credential(&self) -> Option<(String, String)> {
        self.cloud.store.read(|state| {
            let credential = state.application_credentials.first()?;
            Some((credential.id.clone(), credential.secret.clone()))
        })
    }

    /// Id of a project by name: `mesos`, which the user of [`Self::config`] is in, or `other`.
    pub fn project(&self, name: &str) -> Option<String> {
        self.cloud.store.read(|state| {
            Some(state.projects.iter().find(|project| project.name == name)?.id.clone())
        })
    }

    /// All tokens end now, as when Keystone's keys were changed.
    pub fn revoke_tokens(&self) {
        self.cloud.store.change(|state| state.tokens.clear());
    }

    /// Sets fields of a volume's row, whatever Cinder's rules say: `{"status": "error"}`.
    ///
    /// # Errors
    /// No such volume or field, or a value of another type.
    pub fn force(&self, volume: Uuid, fields: &Map<String, Value>) -> Result<(), String> {
        control::force_fields(&self.cloud, volume, fields)
    }

    /// Makes many volumes `NAME0`, `NAME1`, … that have no file: for lists.
    pub fn fill(&self, count: u64, name: &str) -> Vec<Uuid> {
        control::fill(&self.cloud, count, name)
    }

    /// The file that holds a volume.
    pub fn volume_file(&self, volume: Uuid) -> PathBuf {
        self.cloud.storage.volume(volume)
    }

    /// The loop devices that connections of a volume have now.
    pub fn devices(&self, volume: Uuid) -> Vec<PathBuf> {
        self.cloud.store.read(|state| {
            let exports = state.exports.iter().filter(|one| one.volume_id == volume);
            exports.filter_map(|one| one.device.clone()).collect()
        })
    }

    /// Takes every export back, whatever the cloud says of it, and ends tgtd: the end of a test.
    ///
    /// # Errors
    /// A device that is mounted or held by somebody; a target with a session.
    pub async fn detach_all(&self) -> io::Result<()> {
        cinder::detach_all(&self.cloud).await?;
        match &self.cloud.targets {
            Some(targets) => targets.stop().await,
            None => Ok(()),
        }
    }
}

/// One sandbox for one directory.
async fn lock(dir: &Path) -> io::Result<Flock<File>> {
    let deadline = Instant::now() + LOCK_WITHIN;
    loop {
        let file =
            File::options().write(true).create(true).truncate(false).open(dir.join("lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                tokio::time::sleep(LOCK_POLL).await;
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    format!("another sandbox uses {}", dir.display()),
                ));
            }
            Err((_, error)) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
