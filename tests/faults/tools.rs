//! Every tool that an operation runs fails, lies, is killed, babbles, or hangs.

use crate::bench::{Fault, Operation};
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
