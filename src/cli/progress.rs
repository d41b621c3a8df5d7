//! A line on a terminal that says what a command waits for.

use std::io::{self, IsTerminal, Write};
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// What is done sooner shows nothing.
const FIRST: Duration = Duration::from_millis(500);
/// Between two times shown.
const EACH: Duration = Duration::from_secs(1);
/// To the line's beginning, and what stands there erased.
const ERASE: &str = "\r\x1b[K";

/// Waits for `work`. On a terminal (standard error) a line says so, and for how long, and is gone
/// when it is done; anywhere else nothing is shown.
pub(super) async fn while_waiting<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut out = io::stderr();
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if dumb || !out.is_terminal() {
        return work.await;
    }
    let mut work = pin!(work);
    let begun = Instant::now();
    let mut ticks = interval_at(begun + FIRST, EACH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown = false;
    // What cannot be shown is not worth an error.
    let mut show = |text: &str| drop(write!(out, "{text}").and_then(|()| out.flush()));
    loop {
        tokio::select! {
            done = &mut work => {
                if shown {
                    show(ERASE);
                }
                return done;
            }
            _ = ticks.tick() => {
                shown = true;
                show(&format!("{ERASE}{what} … {} s", begun.elapsed().as_secs()));
            }
        }
    }
}
