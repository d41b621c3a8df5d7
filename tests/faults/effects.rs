//! The daemon is killed at each effect that an operation has on the world; each effect is made to
//! fail; the answer of each is lost.

use crate::bench::{Fault, Operation};
use crate::table::{every_case, flow};

/// To the world, a kill before an effect is one after the effect before it: both are tried only with
/// `tests/run --long`.
fn faults() -> &'static [Fault] {
    if std::env::var_os("CINDER_LONG").is_some() { &FAULTS } else { &FAULTS[1..] }
}

const FAULTS: [Fault; 5] = [
    Fault::Gate("kill-before"),
    Fault::Gate("kill-midway"),
    Fault::Gate("kill-after"),
    Fault::Gate("fail"),
    Fault::Gate("lose"),
];

#[tokio::test]
async fn creating() {
    every_case(Operation::Create, flow(false), faults()).await;
}

#[tokio::test]
async fn mounting_a_fresh_volume() {
    every_case(Operation::MountFresh, flow(false), faults()).await;
}

#[tokio::test]
async fn mounting_a_formatted_volume() {
    every_case(Operation::MountFormatted, flow(false), faults()).await;
}

#[tokio::test]
async fn mounting_a_volume_that_is_still_being_made() {
    every_case(Operation::MountCreating, flow(false), faults()).await;
}

#[tokio::test]
async fn mounting_an_extended_volume() {
    every_case(Operation::MountExtended, flow(false), faults()).await;
}

#[tokio::test]
async fn mounting_for_a_second_container() {
    every_case(Operation::MountSecond, flow(false), faults()).await;
}

#[tokio::test]
async fn unmounting() {
    every_case(Operation::Unmount, flow(false), faults()).await;
}

#[tokio::test]
async fn unmounting_the_first_of_two() {
    every_case(Operation::UnmountFirst, flow(false), faults()).await;
}

#[tokio::test]
async fn removing() {
    every_case(Operation::Remove, flow(false), faults()).await;
}

#[tokio::test]
async fn mounting_a_fresh_volume_by_the_actions_flow() {
    every_case(Operation::MountFresh, flow(true), faults()).await;
}

#[tokio::test]
async fn mounting_a_formatted_volume_by_the_actions_flow() {
    every_case(Operation::MountFormatted, flow(true), faults()).await;
}

#[tokio::test]
async fn unmounting_by_the_actions_flow() {
    every_case(Operation::Unmount, flow(true), faults()).await;
}

#[tokio::test]
async fn resizing_a_free_volume() {
    every_case(Operation::ResizeFree, flow(false), faults()).await;
}

#[tokio::test]
async fn resizing_a_mounted_volume() {
    every_case(Operation::ResizeMounted, flow(false), faults()).await;
}

#[tokio::test]
async fn taking_a_snapshot_of_a_mounted_volume() {
    every_case(Operation::Snapshot, flow(false), faults()).await;
}

#[tokio::test]
async fn resizing_a_mounted_volume_by_the_actions_flow() {
    every_case(Operation::ResizeMounted, flow(true), faults()).await;
}
