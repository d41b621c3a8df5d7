//! The daemon is killed at each effect that an operation has on the world; each effect is made to
//! fail; the answer of each is lost.

use crate::bench::{Fault, Operation};
use crate::table::{every_case, flow};

const FAULTS: [Fault; 5] = [
    Fault::Gate("kill-before"),
    Fault::Gate("kill-midway"),
    Fault::Gate("kill-after"),
    Fault::Gate("fail"),
    Fault::Gate("lose"),
];

#[tokio::test]
async fn creating() {
    every_case(Operation::Create, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn mounting_a_fresh_volume() {
    every_case(Operation::MountFresh, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn mounting_a_formatted_volume() {
    every_case(Operation::MountFormatted, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn mounting_a_volume_that_is_still_being_made() {
    every_case(Operation::MountCreating, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn mounting_an_extended_volume() {
    every_case(Operation::MountExtended, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn mounting_for_a_second_container() {
    every_case(Operation::MountSecond, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn unmounting() {
    every_case(Operation::Unmount, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn unmounting_the_first_of_two() {
    every_case(Operation::UnmountFirst, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn removing() {
    every_case(Operation::Remove, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn mounting_a_fresh_volume_by_the_actions_flow() {
    every_case(Operation::MountFresh, flow(true), &FAULTS).await;
}

#[tokio::test]
async fn mounting_a_formatted_volume_by_the_actions_flow() {
    every_case(Operation::MountFormatted, flow(true), &FAULTS).await;
}

#[tokio::test]
async fn unmounting_by_the_actions_flow() {
    every_case(Operation::Unmount, flow(true), &FAULTS).await;
}

#[tokio::test]
async fn resizing_a_free_volume() {
    every_case(Operation::ResizeFree, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn resizing_a_mounted_volume() {
    every_case(Operation::ResizeMounted, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn taking_a_snapshot_of_a_mounted_volume() {
    every_case(Operation::Snapshot, flow(false), &FAULTS).await;
}

#[tokio::test]
async fn resizing_a_mounted_volume_by_the_actions_flow() {
    every_case(Operation::ResizeMounted, flow(true), &FAULTS).await;
}
