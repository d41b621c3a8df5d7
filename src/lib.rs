//! cinder-docker-driver gives containers persistent block storage from OpenStack Cinder.
//!
//! ```text
//!            this host                                                          the cloud
//! dockerd ──unix socket──▶ docker/ ──▶ driver/ ──▶ openstack/ ──HTTP──▶ Keystone, Cinder
//! (Podman, Swarm,          wire          decisions     │
//!  Marathon, compose)      protocol      and journal   │
//!                                          └────▶ host/ ──processes, sysfs──▶ iscsid, kernel, mkfs
//!                                   sandbox/ = an embedded Keystone + Cinder with file-backed volumes
//! ```
//!
//! One room for each party: [`docker`] knows Docker's JSON and nothing of clouds; [`openstack`]
//! knows Keystone and Cinder and nothing of hosts; [`host`] knows this machine and nothing of
//! either; [`driver`] is where they meet and where every decision is taken. Data flows down and
//! returns; nothing calls back up.

#[cfg(test)]
mod arbitrary;
pub mod cli;
pub mod config;
pub mod connection_info;
pub mod daemon;
pub mod docker;
pub mod driver;
pub mod effects;
pub mod error_chain;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod host;
pub mod locks;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod openstack;
pub mod sandbox;
pub mod shown;
