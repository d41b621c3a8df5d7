//! What people read about the driver, typed on real Docker hosts. The transcripts are those that
//! `tests/walkthrough.rs` plays against the embedded cloud: both print the same.

use std::path::Path;

use serde_json::json;

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, Project, is_asked_for};
use crate::transcript;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

fn uuid(last: u32) -> serde_json::Value {
    json!({ "HostUUID": format!("219b0670-a214-4281-8424-5bb3beaaa{last}") })
}

/// The post about Docker, with its compose file: volumes are made, listed, inspected, used,
/// restarted with docker-compose, and removed; `cinder list` always shows what the post says.
async fn docker_post(image: &str, compose_file: &str) {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("box-1", image, &project, uuid(106)).await;
    node.put(&Path::new(FIXTURES).join(compose_file), "/root/docker-compose.yml").await;
    transcript::play("walkthrough-docker.txt", &project, &[&node]).await;
    node.assert_clean().await;
    project.assert_clean().await;
}

#[tokio::test]
async fn the_docker_post_on_debian_12_with_compose_v1() {
    docker_post(DEBIAN_12, "walkthrough-docker-compose.yml").await;
}

/// Its docker-compose is version 2 of the program, which reads no files of version 1.
#[tokio::test]
async fn the_docker_post_on_debian_13_with_compose_v3() {
    docker_post(DEBIAN_13, "walkthrough-docker-compose-v3.yml").await;
}

/// The post about Marathon: a task is killed on one node and started on another, and the volume
/// moves with it; `cinder list` shows the other HostUUID.
#[tokio::test]
async fn the_marathon_post_on_two_nodes() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let (first, second) = tokio::join!(
        Node::with_driver("container1", DEBIAN_12, &project, uuid(106)),
        Node::with_driver("container2", DEBIAN_13, &project, uuid(107)),
    );
    transcript::play("walkthrough-marathon.txt", &project, &[&first, &second]).await;
    first.assert_clean().await;
    second.assert_clean().await;
    project.assert_clean().await;
}

/// What else an engine does with volumes: `docker cp` into a running container, a second container
/// on the volume, image content that is copied to a new volume, nameless volumes, options.
async fn engine(image: &str) {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("box-1", image, &project, json!({})).await;
    transcript::play("walkthrough-engine.txt", &project, &[&node]).await;
    node.assert_clean().await;
    project.assert_clean().await;
}

#[tokio::test]
async fn what_an_engine_does_on_debian_12() {
    engine(DEBIAN_12).await;
}

#[tokio::test]
async fn what_an_engine_does_on_debian_13() {
    engine(DEBIAN_13).await;
}
