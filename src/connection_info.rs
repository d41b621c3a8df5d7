//! What the cloud tells a host about reaching a volume: the one thing that passes from
//! `openstack/` through `driver/` to `host/` as it came.

use std::fmt;

use serde_json::{Map, Value};

/// What a host needs to reach the volume: `connection_info`, the same for both flows (the
/// attachments flow flattens `data`; it is normalised at the edge).
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// `driver_volume_type`: `iscsi`, `local`, `rbd`, …
    pub driver_volume_type: String,
    /// The `data` object; may hold secrets, so its Debug shows keys only.
    pub data: ConnectionData,
}

/// The `data` of a connection_info: JSON from the cloud. Debug prints keys, never values.
#[derive(Clone)]
pub struct ConnectionData(pub Map<String, Value>);

impl fmt::Debug for ConnectionData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
