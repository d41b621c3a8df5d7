//! An embedded Keystone (v2.0, v3) and Cinder (v2, v3 with attachments), with volumes as sparse
//! files: Docker users try everything with no OpenStack at all, and the tests use the same code.
//!
//! As strict as the real ones: where it disagrees with a real Cinder, that is a bug here.

pub mod cinder;
pub mod faults;
pub mod keystone;
pub mod storage;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// What a sandbox is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Holds the volumes (`volumes/ID`, sparse files) and the state (`state.json`), across restarts.
    pub dir: PathBuf,
    /// `127.0.0.1:0` = any free port.
    pub listen: SocketAddr,
    /// Serve volumes as iSCSI targets (tgtd) instead of loop devices.
    pub iscsi: bool,
}

/// A running sandbox. Dropping it stops serving; volumes and exports stay.
#[derive(Debug)]
pub struct Sandbox {
    address: SocketAddr,
    faults: Arc<faults::Faults>,
}

impl Sandbox {
    /// Loads the state, finds loop devices that are still there, and serves.
    pub async fn start(options: Options) -> std::io::Result<Self> {
        todo!()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Faults, delays and the log of requests.
    pub fn faults(&self) -> &Arc<faults::Faults> {
        &self.faults
    }

    /// Keys for a config file that uses this sandbox: `Endpoint` (v3), `Username`, `Password`,
    /// `TenantID`, `DomainName`, `Region`.
    pub fn config(&self) -> serde_json::Map<String, serde_json::Value> {
        todo!()
    }
}
