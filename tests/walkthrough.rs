//! What people read about the driver, typed on machines with a real Docker Engine.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, says what it saw, and starts programs itself"
)]

mod support;

#[path = "support/engine.rs"]
mod engine;
#[path = "support/transcript.rs"]
mod transcript;

use engine::Machine;
use serde_json::json;
use support::Cloud;

#[tokio::test]
async fn the_commands_of_the_docker_post_print_what_it_says() {
    let cloud = Cloud::start().await;
    let uuid = json!({ "HostUUID": "219b0670-a214-4281-8424-5bb3beaaa106" });
    let Some(box_1) = Machine::boot("box-1", &cloud, uuid).await else { return };
    let compose = include_str!("fixtures/walkthrough-docker-compose.yml");
    std::fs::write(box_1.home().join("docker-compose.yml"), compose).unwrap();
    transcript::play("walkthrough-docker.txt", &cloud, &[&box_1]).await;
    box_1.clear().await;
}

#[tokio::test]
async fn the_commands_of_the_marathon_post_move_the_volume_to_the_other_node() {
    let cloud = Cloud::start().await;
    let uuid = |last| json!({ "HostUUID": format!("219b0670-a214-4281-8424-5bb3beaaa{last}") });
    let (first, second) = tokio::join!(
        Machine::boot("container1", &cloud, uuid(106)),
        Machine::boot("container2", &cloud, uuid(107)),
    );
    let (Some(first), Some(second)) = (first, second) else { return };
    transcript::play("walkthrough-marathon.txt", &cloud, &[&first, &second]).await;
    first.clear().await;
    second.clear().await;
}

#[tokio::test]
async fn what_else_an_engine_does_with_volumes_works() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    transcript::play("walkthrough-engine.txt", &cloud, &[&machine]).await;
    machine.clear().await;
}

/// What the engine asked the plugin about a volume, in order, as the plugin's log tells it; what
/// is asked several times in a row once.
fn asked(machine: &Machine, volume: &str) -> Vec<String> {
    let log = machine.log("plugin");
    let volume = format!("volume=\"{volume}\"");
    let mut asked: Vec<String> = log
        .lines()
        .filter_map(|line| {
            let (operation, outcome) = line.split_once("operation{op=")?.1.split_once("}: ")?;
            let answered = outcome.starts_with("done") || outcome.starts_with("failed");
            (answered && operation.contains(&volume)).then(|| operation.split(' ').next())?
        })
        .map(str::to_owned)
        .collect();
    asked.dedup();
    asked
}

#[tokio::test]
async fn an_engine_asks_for_a_volume_before_everything_it_does_with_it() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    machine.sh("docker volume create -d cinder web").await;
    assert_eq!(asked(&machine, "web"), ["Get", "Create"]);
    machine.sh("docker run --rm -v web:/data ubuntu true").await;
    machine.sh("docker volume rm web").await;
    let all = ["Get", "Create", "Get", "Mount", "Get", "Unmount", "Get", "Remove"];
    assert_eq!(asked(&machine, "web"), all);
}

#[tokio::test]
async fn a_running_container_does_not_notice_a_restart_of_the_plugin() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    machine
        .sh("docker run -d --name web -v web:/data --volume-driver=cinder ubuntu \
             sh -c 'while echo line >>/data/log; do sleep 0.05; done'")
        .await;
    for crash in [true, false] {
        if crash {
            machine.kill("plugin").await;
        } else {
            machine.stop("plugin").await;
        }
        let lines = "docker exec web sh -c 'wc -l </data/log'";
        let before = machine.sh(lines).await;
        machine.until(&format!("test $({lines}) -gt {before}")).await;
        assert_eq!(cloud.status("web").await, "in-use");
        machine.start_plugin().await;
        // The same container's ID once more, and a second container.
        machine.sh("docker cp web:/data/log - >/dev/null").await;
        machine.sh("docker run --rm -v web:/data ubuntu test -s /data/log").await;
        let before = machine.sh(lines).await;
        machine.until(&format!("test $({lines}) -gt {before}")).await;
    }
    let error = machine.run("docker volume rm web").await;
    assert!(!error.status.success(), "it is still used");
    machine.sh("docker kill web").await;
    cloud.until("web", "available").await;
    machine.sh("docker rm web; docker run --rm -v web:/data ubuntu test -s /data/log").await;
    machine.clear().await;
}

#[tokio::test]
async fn a_crash_of_the_engine_leaves_nothing_behind() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    for (name, restart) in [("lasting", "always"), ("fleeting", "no")] {
        machine
            .sh(&format!(
                "docker run -d --name {name} --restart {restart} -v {name}:/data \
                 --volume-driver=cinder ubuntu sh -c 'echo start >>/data/log; sleep infinity'"
            ))
            .await;
        machine.until(&format!("docker exec {name} test -s /data/log")).await;
    }
    machine.kill("dockerd").await;
    machine.start_engine().await.unwrap();
    // This one is started again, on its volume.
    machine.until("docker exec lasting sh -c 'test $(wc -l </data/log) = 2'").await;
    assert_eq!(cloud.status("lasting").await, "in-use");
    // This one is not, and no engine will ever unmount its volume. It can be used all the same,
    assert_eq!(machine.sh("docker inspect -f '{{.State.Running}}' fleeting").await, "false");
    let log = machine.sh("docker run --rm -v fleeting:/data ubuntu cat /data/log").await;
    assert_eq!(log, "start");
    // and removed.
    machine.sh("docker rm fleeting && docker volume rm fleeting").await;
    assert_eq!(cloud.volumes().await.len(), 1);
    // The last container of the other one takes the volume away, whatever was counted before.
    machine.sh("docker rm -f lasting").await;
    cloud.until("lasting", "available").await;
    machine.clear().await;
}
