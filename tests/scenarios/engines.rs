//! Other engines than plain Docker, through the same socket: Podman, Compose, Swarm.

use serde_json::{Value, json};

use crate::rig::{DEBIAN_12, DEBIAN_13, Node, Project, is_asked_for, until};

/// What Podman is told of the plugin; how long it waits is up to the scenario.
const PLUGIN: &str = "[engine.volume_plugins]\ncinder = \"/run/docker/plugins/cinder.sock\"\n";

/// Seconds that Podman gives a plugin when `hasty`: less than attaching and formatting take.
const HASTY: &str = "CONTAINERS_CONF=/root/hasty.conf";

/// Podman with the volume `volume` at `/data`; nodes have no network for containers of Podman.
fn podman_run(options: &str, volume: &str, command: &str) -> String {
    format!("podman run {options} --network none -v {volume}:/data busybox sh -c '{command}'")
}

/// How many the driver counts as users of the volume.
async fn users(node: &Node, volume: &str) -> Value {
    let rows: Value =
        serde_json::from_str(&node.sh("cinder-docker-driver status --json").await).unwrap();
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == volume);
    row.unwrap_or_else(|| panic!("{volume}: {rows}"))["users"].clone()
}

/// Podman's own ways: it gives a plugin a few seconds and then forgets it, counts its containers
/// itself, and knows no volume that it was not told of.
///
/// A volume is made with options, seen, used by two containers and a restart of the driver
/// between, cannot be removed meanwhile; then one that Docker made is used and both are removed.
/// A mount that takes longer than Podman waits is there at the user's next try.
async fn podman(image: &str) {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("podman", image, &project, json!({})).await;
    let patient = format!("[engine]\nvolume_plugin_timeout = 120\n{PLUGIN}");
    node.write("/etc/containers/containers.conf", &patient).await;
    let hasty = format!("[engine]\nvolume_plugin_timeout = 1\n{PLUGIN}");
    node.write("/root/hasty.conf", &hasty).await;
    node.sh("docker save busybox | podman load").await;

    node.sh("podman volume create --driver cinder -o size=2 -o fs=xfs pod").await;
    assert_eq!(project.volume("pod").await["size"], 2);
    let listed = node.sh("podman volume ls --format '{{.Driver}} {{.Name}}'").await;
    assert_eq!(listed, "cinder pod");
    let shown: Value = serde_json::from_str(&node.sh("podman volume inspect pod").await).unwrap();
    let status = &shown[0]["Status"];
    assert_eq!(status["id"], project.id("pod").await.as_str(), "{shown}");
    assert_eq!((&status["filesystem"], &status["size"]), (&json!("xfs"), &json!(2)), "{shown}");

    // Podman gives up and sends no Unmount. The driver goes on; the next try joins it, and is the
    // only user.
    let write = podman_run("-d --name writer", "pod", "echo first >/data/x; exec sleep infinity");
    let said = node.fails(&format!("{HASTY} {write}")).await;
    assert!(said.contains("deadline exceeded"), "{said}");
    node.sh("podman rm -f writer").await;
    node.sh(&write).await;
    node.until("podman exec writer grep first /data/x").await;
    assert_eq!(node.sh("podman exec writer stat -f -c %T /data").await, "xfs");
    assert_eq!(users(&node, "pod").await, 1);

    // The plugin is restarted under the container, and a second one comes and goes.
    node.sh("systemctl restart cinder-docker-driver").await;
    node.sh(&podman_run("--rm", "pod", "grep first /data/x && echo second >>/data/x")).await;
    assert_eq!(node.sh("podman exec writer cat /data/x").await, "first\nsecond");
    let said = node.fails("podman volume rm pod").await;
    assert!(said.contains("being used"), "{said}");
    node.sh("podman rm -f -t 0 writer").await;
    project.until("pod", "available").await;

    // What Docker made and wrote, Podman reads.
    node.sh("docker volume create -d cinder -o size=1 shared").await;
    node.sh("docker run --rm -v shared:/data busybox sh -c 'echo docker >/data/x'").await;
    node.sh("podman volume create --driver cinder shared").await;
    let read = node.sh(&podman_run("--rm", "shared", "cat /data/x; echo podman >/data/x")).await;
    assert_eq!(read, "docker");
    assert_eq!(node.sh("docker run --rm -v shared:/data busybox cat /data/x").await, "podman");

    assert_eq!(project.volumes().await.len(), 2);
    node.assert_clean().await;
    project.assert_clean().await;
    node.sh("podman volume rm pod shared").await;
    assert_eq!(project.volumes().await.len(), 0);
}

#[tokio::test]
async fn podman_4_on_debian_12() {
    podman(DEBIAN_12).await;
}

#[tokio::test]
async fn podman_5_on_debian_13() {
    podman(DEBIAN_13).await;
}

const COMPOSE_FILE: &str = r#"
version: "3.4"
services:
  web:
    image: busybox
    command: sh -c "date +%N >>/own/starts && date +%N >>/old/starts && exec sleep infinity"
    volumes:
      - own:/own
      - old:/old
volumes:
  own:
    driver: cinder
    driver_opts: {size: "2", fs: xfs}
  old:
    external: true
    name: made-before
"#;

/// A compose file says how big a volume is and which one was there before; what is in them
/// outlives the containers, and `down -v` removes only what Compose made.
#[tokio::test]
async fn compose_makes_one_volume_and_uses_one_made_before() {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("compose", DEBIAN_12, &project, json!({})).await;
    node.write("/root/app/docker-compose.yml", COMPOSE_FILE).await;
    node.sh("docker volume create -d cinder -o size=1 made-before").await;
    for starts in ["1\n1", "2\n2"] {
        node.sh("cd app && docker-compose up -d").await;
        // As many lines in each as there were starts: nothing written before is lost.
        let count = "docker exec app_web_1 sh -c 'wc -l </own/starts; wc -l </old/starts'";
        node.until(&format!("test \"$({count})\" = '{starts}'")).await;
        let own = project.volume("app_own").await;
        assert_eq!((&own["size"], &own["status"]), (&json!(2), &json!("in-use")), "{own}");
        assert_eq!(node.sh("docker exec app_web_1 stat -f -c %T /own").await, "xfs");
        node.sh("cd app && docker-compose down -t 0").await;
        project.until("app_own", "available").await;
    }
    node.sh("cd app && docker-compose down -v").await;
    let left = project.volumes().await;
    assert_eq!(left.len(), 1, "{left:?}");
    let read = "docker run --rm -v made-before:/old busybox sh -c 'wc -l </old/starts'";
    assert_eq!(node.sh(read).await, "2");
    node.assert_clean().await;
    project.assert_clean().await;
}

/// A task that adds a line to what it finds on the volume, and then says what is there.
fn task(line: &str) -> String {
    format!("sh -c 'echo {line} >>/data/log; exec tail -f /data/log'")
}

/// What the service's running task found and wrote, when that is more than `before`.
async fn found_after(node: &Node, before: &str) -> String {
    let ids = "docker ps -q --filter label=com.docker.swarm.service.name=web";
    let log = until(300, "a task of the service runs", || async {
        // Between two tasks there is none.
        let found = node.run(&format!("docker logs $({ids})")).await;
        let log = String::from_utf8_lossy(&found.stdout).trim_end().to_owned();
        if found.status.success() && log.len() > before.len() { Ok(log) } else { Err(log) }
    })
    .await;
    assert!(log.starts_with(before), "{before} was written, but {log} is there");
    log
}

/// Swarm starts a service with a new volume, replaces its task when it is killed, when dockerd is
/// restarted and when the service changes; each task finds what the ones before it wrote. Without
/// the service the volume is free.
///
/// Swarm's scheduler sees a plugin only after its first use since dockerd started. The unit
/// `cinder-docker-driver-swarm` is that use: without it the task waits for ever.
async fn swarm(image: &str) {
    if !is_asked_for() {
        return;
    }
    let project = Project::create().await;
    let node = Node::with_driver("swarm", image, &project, json!({})).await;
    node.sh("docker swarm init --advertise-addr 10.0.2.15").await;
    node.sh(&format!(
        "docker service create --detach --no-resolve-image --name web --stop-grace-period 1s --restart-delay 1s \
         --mount type=volume,source=web,target=/data,volume-driver=cinder,volume-opt=size=2 \
         busybox {}",
        task("one")
    ))
    .await;
    node.until("docker service ps --no-trunc web | grep 'missing plugin'").await;
    node.sh("systemctl enable --now cinder-docker-driver-swarm").await;
    let mut log = found_after(&node, "").await;
    assert_eq!(log, "one");
    assert_eq!(project.volume("web").await["size"], 2);

    node.sh("docker kill $(docker ps -q)").await;
    log = found_after(&node, &log).await;

    node.sh("systemctl restart docker").await;
    log = found_after(&node, &log).await;

    let update = format!("docker service update --detach --args \"{}\" web", task("two"));
    node.sh(&update).await;
    log = found_after(&node, &log).await;
    assert!(log.ends_with("\ntwo"), "{log}");

    node.sh("docker service rm web").await;
    project.until("web", "available").await;
    node.assert_clean().await;
    project.assert_clean().await;
    node.until("docker volume rm web").await;
    assert_eq!(project.volumes().await.len(), 0);
}

#[tokio::test]
async fn swarm_on_debian_12() {
    swarm(DEBIAN_12).await;
}

#[tokio::test]
async fn swarm_on_debian_13() {
    swarm(DEBIAN_13).await;
}
