//! Nothing is lost, whatever goes wrong: each operation meets each fault at each of its steps.
//!
//! For n = 1, 2, 3 … until the operation ends without having met the fault: prepare a volume, arm
//! the fault at the nth step, call as Docker does, start the daemon again if it died, call again
//! what failed, look at everything, let go, look again. A table says how each case ended; one that
//! left something over, lost a byte, or told Docker what was not so, fails.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test fails by panicking, starts programs itself, and prints its table"
)]

mod bench;
mod bypass;
mod cloud;
mod devices;
mod disk;
mod effects;
mod host;
mod iscsi;
mod iscsiadm;
mod model;
mod naming;
mod outage;
mod planted;
mod power_cut;
mod racing;
mod slow;
mod soak;
#[path = "../support/mod.rs"]
mod support;
mod table;
mod tools;
