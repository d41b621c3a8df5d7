//! Every answer that a cloud may give to each call of an operation.

use cinder_docker_driver::sandbox::faults::{Action, Canned};

use crate::bench::{Fault, GONE, Operation};
use crate::table::{every_case, flow};

fn faults() -> Vec<Fault> {
    let status = |name, status| Fault::Cloud(name, Action::Answer(Canned::status(status)));
    let body = |name, status, body: &str| {
        let body = Some(body.to_owned());
        Fault::Cloud(name, Action::Answer(Canned { body, ..Canned::status(status) }))
    };
    vec![
        status("400", 400),
        Fault::Cloud("401", Action::RevokeTokens),
        status("403", 403),
        status(GONE, 404),
        body("404 of a proxy", 404, "<html><h1>Not Found</h1></html>"),
        status("409", 409),
        status("413", 413),
        Fault::Cloud("429", Action::Answer(Canned::retry_after(429, 1))),
        status("500", 500),
        Fault::Cloud("500 after", Action::AnswerAfter(Canned::status(500))),
        status("503", 503),
        Fault::Cloud("504, done later", Action::AnswerBefore(Canned::status(504), 300)),
        Fault::Cloud("reset before", Action::DropBefore),
        Fault::Cloud("reset after", Action::DropAfter),
        Fault::Cloud("half a body", Action::HalfBody),
        Fault::Cloud("not JSON", Action::NotJson),
        Fault::Cloud("a flood", Action::Flood),
        body("other JSON", 200, r#"{"volume": [], "attachment": 7, "volumes": "none"}"#),
        body("a list", 202, "[1, 2]"),
    ]
}

#[tokio::test]
async fn creating() {
    every_case(Operation::Create, flow(false), &faults()).await;
}

#[tokio::test]
async fn mounting_a_fresh_volume() {
    every_case(Operation::MountFresh, flow(false), &faults()).await;
}

#[tokio::test]
async fn mounting_a_formatted_volume() {
    every_case(Operation::MountFormatted, flow(false), &faults()).await;
}

#[tokio::test]
async fn unmounting() {
    every_case(Operation::Unmount, flow(false), &faults()).await;
}

#[tokio::test]
async fn removing() {
    every_case(Operation::Remove, flow(false), &faults()).await;
}

#[tokio::test]
async fn mounting_a_formatted_volume_by_the_actions_flow() {
    every_case(Operation::MountFormatted, flow(true), &faults()).await;
}

#[tokio::test]
async fn unmounting_by_the_actions_flow() {
    every_case(Operation::Unmount, flow(true), &faults()).await;
}

#[tokio::test]
async fn resizing_a_free_volume() {
    every_case(Operation::ResizeFree, flow(false), &faults()).await;
}

#[tokio::test]
async fn resizing_a_mounted_volume() {
    every_case(Operation::ResizeMounted, flow(false), &faults()).await;
}

#[tokio::test]
async fn taking_a_snapshot_of_a_mounted_volume() {
    every_case(Operation::Snapshot, flow(false), &faults()).await;
}
