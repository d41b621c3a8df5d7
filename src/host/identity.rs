//! Who this host is: initiator name, address, host name, host id → connector properties.

use std::net::IpAddr;

use uuid::Uuid;

use super::{HostError, Paths};
use crate::config::HostSettings;

/// What Cinder must know of this host.
#[derive(Debug, Clone)]
pub struct HostIdentity {
    /// `InitiatorName`; `None` when open-iscsi is not set up (only `local` volumes work then).
    pub initiator: Option<String>,
    /// The connector's `ip`.
    pub ip: Option<IpAddr>,
    /// The connector's `host`: the same at connect and release, always.
    pub host: String,
    /// `HostUUID`, or a UUID derived from /etc/machine-id.
    pub uuid: Uuid,
    /// Interface record of open-iscsi to log in through, when `InitiatorIFace` names one.
    pub iscsi_iface: Option<String>,
}

impl HostIdentity {
    /// Reads it all. An `InitiatorIP` that no interface has, or an unknown `InitiatorIFace`, is
    /// reported by [`HostIdentity::warnings`], not here.
    pub fn discover(paths: &Paths, settings: &HostSettings) -> Result<Self, HostError> {
        todo!()
    }

    /// The connector as Cinder takes it (`notes` of os-brick's get_connector_properties):
    /// `platform os_type ip host multipath:false initiator do_local_attach:false mountpoint mode`.
    pub fn connector(&self, mountpoint: &str, read_only: bool) -> serde_json::Value {
        todo!()
    }

    /// What an operator should know: no initiator name, address not found, …
    pub fn warnings(&self, paths: &Paths, settings: &HostSettings) -> Vec<String> {
        todo!()
    }
}
