//! The parts: a project of the real cloud, and nodes.

#![allow(dead_code, reason = "each scenario uses its own part")]

mod node;
mod project;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub use node::{DEBIAN_12, DEBIAN_12_PLAIN, DEBIAN_13, Node};
pub use project::{Project, api_ports, exports};

/// Whether the rig is asked for; says loudly that the scenario is skipped when not.
///
/// With `CI=true` everything must run, so there that is a failure.
#[must_use]
pub fn is_asked_for() -> bool {
    let asked = std::env::var("CINDER_RIG").is_ok_and(|value| value == "1");
    if !asked {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CINDER_RIG=1 is not set");
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        // Past the capture of the test harness: this must be seen.
        let shown = format!("\n*** SKIPPED {name}: it needs the rig: tests/run --rig ***\n");
        std::io::stderr().write_all(shown.as_bytes()).ok();
    }
    asked
}

/// A program of the rig.
fn tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rig").join(name)
}

/// Runs a program off the test's own threads.
async fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// Asks until the answer is there.
///
/// # Panics
///
/// After `seconds`, with what the last look found.
pub async fn until<T, F>(seconds: u64, what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match look().await {
            Ok(found) => return found,
            Err(found) => assert!(Instant::now() < end, "{what}: not in {seconds} s: {found}"),
        }
        // A look costs a node half a second of its processor.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
