//! The cloud's side: Keystone and Cinder, and nothing of hosts.
//!
//! [`Cloud`] is the only thing the driver uses: one method for each call that it makes.

mod answer;
pub mod attachment;
pub mod catalog;
pub mod cinder;
mod endpoint;
pub mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod http;
pub mod keystone;
pub mod model;
mod page;
mod session;
#[cfg(test)]
mod tests;
mod tls;

pub use attachment::{AttachFlow, Connection, Holder, Reservation};
pub use cinder::{Cloud, CloudFacts, Limits};
pub use error::{CloudError, CloudErrorKind};
pub use model::{AttachmentInfo, Backup, CreateVolume, Snapshot, Volume, VolumePage, VolumeStatus};
