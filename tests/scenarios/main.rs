//! Scenarios on the real parts: Keystone, Cinder, an iSCSI target, and Docker hosts that are small
//! virtual machines with Debian's kernel, open-iscsi and Docker Engine. Each test is a story, and
//! says what it proves.
//!
//! `tests/rig` makes these parts; `tests/run --rig` sets them up and runs this.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, says what it saw, and starts programs itself"
)]

#[path = "../support/mod.rs"]
mod support;
#[path = "../support/transcript.rs"]
mod transcript;

mod rig;

mod engines;
mod failover;
mod growing;
mod initiator;
mod install;
mod many;
mod moving;
mod operators;
mod options;
mod outside;
mod plugin;
mod power;
mod restarts;
mod walkthrough;
