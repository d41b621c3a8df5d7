//! Every tool that an operation runs fails, lies, is killed, babbles, or hangs.

use serde_json::json;

use crate::bench::{Bench, Fault, Operation};
use crate::table::{every_case, flow};

const FAULTS: [Fault; 6] = [
    Fault::Tool("exit 1", "exit 1"),
    Fault::Tool("exit 32", "echo 'wrong fs type, bad superblock' >&2; exit 32"),
    Fault::Tool("killed", "kill -9 $$"),
    Fault::Tool("done, exit 1", "$real \"$@\"; exit 1"),
    Fault::Tool("nothing, exit 0", "exit 0"),
    Fault::Tool("garbage", "head -c 300000 /dev/urandom; head -c 300000 /dev/urandom >&2; exit 0"),
];

#[tokio::test]
async fn mounting_a_fresh_volume() {
    every_case(Operation::MountFresh, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn mounting_a_formatted_volume() {
    every_case(Operation::MountFormatted, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn mounting_an_extended_volume() {
    every_case(Operation::MountExtended, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn unmounting() {
    every_case(Operation::Unmount, flow(false), &FAULTS).await;
}

/// mkfs writes copies of the superblock before the first one, and half-made ones before whole ones:
/// whatever it leaves is known for ours by the UUID that it was given.
#[tokio::test]
async fn a_format_that_is_interrupted_at_any_moment_is_done_again() {
    let mut bench = Bench::new(flow(false)).await;
    let mut interrupted = 0;
    for fs in ["ext4", "xfs", "btrfs"] {
        for delay in 1..=15 {
            let name = format!("{fs}-{delay}");
            let options = json!({ "Name": name, "Opts": { "fs": fs } });
            bench.call_with("Create", &options, None).await.unwrap();
            let shell = format!(
                "$real \"$@\" & sleep 0.{delay:03}; kill -9 $! 2>/dev/null && exit 1; wait $!; exit $?"
            );
            let fault = Fault::Tool("killed", Box::leak(shell.into_boxed_str()));
            let body = json!({ "Name": name, "ID": "c" });
            let first = bench.call_with("Mount", &body, Some(&(fault, 1))).await;
            if first.is_err() {
                interrupted += 1;
                bench.call_with("Mount", &body, None).await.unwrap();
            }
            bench.call_with("Unmount", &body, None).await.unwrap();
            bench.call_with("Remove", &body, None).await.unwrap();
        }
    }
    println!("{interrupted} of 45 formats were interrupted");
    assert!(interrupted > 5);
    bench.assert_nothing_left().await;
}
