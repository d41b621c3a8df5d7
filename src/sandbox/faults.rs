//! Faults on demand, and the log of what was asked.

/// Fault rules and request log of a sandbox; shared with its server.
#[derive(Debug, Default)]
pub struct Faults {}
