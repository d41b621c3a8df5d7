//! The host's side: this machine, and nothing of Docker or OpenStack's API.

pub mod attach;
pub mod error;
pub mod exec;
pub mod filesystem;
pub mod identity;
pub mod paths;
pub mod process;

pub use error::HostError;
pub use exec::{Cmd, Exec};
pub use paths::Paths;
