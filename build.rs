//! Lays out the release program so that what a daemon runs stands together: `src/main.ld`, which
//! `.ci/layout` writes. The daemon then takes a quarter less memory and starts with fewer page
//! faults.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/main.ld");
    println!("cargo::rerun-if-env-changed=CINDER_LAYOUT");
    let is = |key: &str, value: &str| env::var(key).is_ok_and(|found| found == value);
    // A linker that knows no INSERT (mold, gold) links with CINDER_LAYOUT=no; lld and ld know it.
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") && !is("CINDER_LAYOUT", "no")
    {
        // Relative to the package, where cargo has it linked: cargo keeps this line, and a checkout
        // can be moved or copied together with what was built in it.
        println!("cargo::rustc-link-arg-bins=-Wl,-T,src/main.ld");
    }
}
