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
#[path = "support/pages.rs"]
mod pages;
#[path = "support/transcript.rs"]
mod transcript;

use cinder_docker_driver::sandbox::faults::{Action, Canned, Rule};
use engine::{Machine, OTHER_ENGINE};
use serde_json::json;
use support::gate::{self, Gate};
use support::{Cloud, has_untold};

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

/// Waits until a snapshot or a backup is there.
async fn until_made(cloud: &Cloud, kind: &str, volume: &str, name: &str) {
    let one = kind.trim_end_matches('s');
    let body = json!({ one: { "volume_id": volume, "name": name } });
    let made = cloud.cinder("POST", &format!("/{kind}"), body).await;
    let path = format!("/{kind}/{}", made[one]["id"].as_str().unwrap_or_else(|| panic!("{made}")));
    while cloud.cinder("GET", &path, serde_json::Value::Null).await[one]["status"] != "available" {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Everything that can be said at a create, as people say it; what inspect then shows; and that the
/// volume can be used.
#[tokio::test]
async fn every_option_is_said_to_an_engine_and_shown_by_it() {
    let cloud = Cloud::start().await;
    let more = json!({
        "ClusterID": "blue",
        "Profiles": {
            "database": { "names": ["db-*"], "size": 2, "fs": "xfs" },
            "small": { "type": "solidfire" },
        },
    });
    let Some(machine) = Machine::boot("box-1", &cloud, more).await else { return };
    machine
        .sh("docker volume create -d cinder -o type=multiattach -o on_remove=retain origin")
        .await;
    let run = "docker run --rm -v";
    machine.sh(&format!("{run} origin:/data ubuntu sh -c 'echo origin >/data/x'")).await;
    let id_of = async |name: &str| cloud.volume(name).await["id"].as_str().unwrap().to_owned();
    let origin = id_of("origin").await;
    until_made(&cloud, "snapshots", &origin, "nightly").await;
    until_made(&cloud, "backups", &origin, "weekly").await;
    let elsewhere = cloud.create("Made elsewhere", json!({})).await;

    let mut said = std::collections::BTreeSet::new();
    let new = |more: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
        more.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
    };
    for (name, options, data) in [
        (
            "new",
            new(&[
                ("size", "2"),
                ("type", "solidfire"),
                ("fs", "ext4"),
                ("mkfs_opts", "-N 4096"),
                ("mount_opts", "noatime"),
                ("availability_zone", "nova"),
                ("description", "web shop"),
                ("metadata", "team=web,tier=1"),
                ("hints", "same_host=origin"),
                ("uid", "999"),
                ("gid", "998"),
                ("mode", "0770"),
                ("on_remove", "snapshot"),
            ]),
            None,
        ),
        ("snapped", new(&[("snapshot", "nightly")]), Some("origin")),
        ("of-it", new(&[("from", "origin@nightly")]), Some("origin")),
        (
            "shared",
            new(&[("from", "origin"), ("read_only", "true"), ("multiattach", "true")]),
            Some("origin"),
        ),
        ("restored", new(&[("backup", "weekly")]), Some("origin")),
        ("adopted", new(&[("volume_id", &elsewhere)]), None),
        ("typed", new(&[("profile", "small")]), None),
    ] {
        let words: Vec<_> =
            options.iter().map(|(name, value)| format!("-o '{name}={value}'")).collect();
        machine.sh(&format!("docker volume create -d cinder {} {name}", words.join(" "))).await;
        let inspect = format!("docker volume inspect -f '{{{{json .Status}}}}' {name}");
        let status: serde_json::Value = serde_json::from_str(&machine.sh(&inspect).await).unwrap();
        assert_eq!(status["cluster"], "blue");
        for (option, value) in options {
            said.insert(option);
            let shown = &status["options"][option];
            let names = ["snapshot", "from", "backup"];
            match option {
                // Of whatever it was, Cinder keeps the id.
                "from" if value.contains('@') => assert!(shown.is_null(), "{status}"),
                option if names.contains(&option) => {
                    let id = shown.as_str().and_then(|id| uuid::Uuid::parse_str(id).ok());
                    assert!(id.is_some(), "{option}: {status}");
                }
                _ => assert_eq!(*shown, *value, "{option}: {status}"),
            }
        }
        let has =
            machine.sh(&format!("{run} {name}:/data ubuntu sh -c 'cat /data/x || true'")).await;
        assert_eq!(has, data.unwrap_or_default(), "{name}");
    }
    // The other options have their volumes in tests/options.rs.
    let elsewhere = std::collections::BTreeSet::from(["image", "partition"]);
    let known: std::collections::BTreeSet<&str> =
        cinder_docker_driver::driver::options::TABLE.iter().map(|row| row.name).collect();
    assert_eq!(&said | &elsewhere, known);

    // Who can pass no options has those of the profile for the name.
    let fs = machine.sh(&format!("{run} db-1:/data --volume-driver=cinder ubuntu mount")).await;
    assert!(fs.lines().any(|line| line.contains(" on /data type xfs ")), "{fs}");
    let wrong = machine.run("docker volume create -d cinder -o profile=databse x").await;
    let error = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && error.contains("did you mean \"database\"?"), "{error}");

    // What is retained is gone for the engine, and comes back by its id.
    machine.sh("docker volume rm origin").await;
    assert_eq!(machine.sh("docker volume ls -q | grep -c origin || true").await, "0");
    let kept = cloud.volumes().await.into_iter().find(|volume| volume["id"] == *origin).unwrap();
    assert!(kept["name"].as_str().unwrap().starts_with("origin-removed-"), "{kept}");
    machine.sh(&format!("docker volume create -d cinder -o volume_id={origin} again")).await;
    assert_eq!(machine.sh(&format!("{run} again:/data ubuntu cat /data/x")).await, "origin");

    // On a machine that does not say whose it is, people read what is missing.
    let Some(other) = Machine::boot("box-2", &cloud, json!({})).await else { return };
    let refused = other.run(&format!("{run} again:/data --volume-driver=cinder ubuntu true")).await;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("set \"ClusterID\": \"blue\""), "{error}");
    other.clear().await;
    machine.clear().await;
}

/// Programs of the documentation that are elsewhere on these machines, in `$DIR/tools`.
async fn make_tools(machine: &Machine) {
    let tools = machine.dir().join("tools");
    let plugin = format!(
        "exec '{}' --config {}/config.json \"$@\"",
        support::binary().display(),
        machine.dir().display()
    );
    // Compose 2 is a plugin of docker; Compose 1 was a program.
    let docker =
        "if [ \"$1\" = compose ] && ! PATH=${PATH#*:} docker compose version >/dev/null 2>&1; then
                      shift; exec docker-compose \"$@\"
                  fi
                  PATH=${PATH#*:} exec docker \"$@\"";
    std::fs::create_dir(&tools).unwrap();
    for (name, script) in [("cinder-docker-driver", plugin.as_str()), ("docker", docker)] {
        std::fs::write(tools.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
    }
    machine.sh("chmod +x $DIR/tools/*").await;
}

#[tokio::test]
async fn every_command_of_the_documentation_does_what_it_says() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    machine.sh("docker tag ubuntu busybox").await;
    make_tools(&machine).await;
    let mut commands = 0;
    for page in pages::all() {
        for block in page.blocks() {
            let place = format!("{}, line {}", page.name, block.line);
            let comment = block.comment.as_deref().unwrap_or("");
            if let Some(name) = comment.strip_prefix("file: ") {
                std::fs::write(machine.home().join(name), &block.text).unwrap();
            }
            if block.language != "sh" || comment.starts_with("run by ") {
                continue;
            }
            commands += block.text.lines().count();
            let output = machine
                .run_beside_the_cloud(&format!("set -e; PATH=$DIR/tools:$PATH\n{}", block.text))
                .await;
            let said = String::from_utf8_lossy(&output.stderr);
            match comment.strip_prefix("fails: ") {
                Some(error) => {
                    assert!(!output.status.success() && said.contains(error), "{place}: {said}");
                }
                None => assert!(output.status.success() && comment.is_empty(), "{place}: {said}"),
            }
        }
        // A page leaves nothing behind, in the cloud neither. The README, the last one, says no
        // more than what to begin with.
        machine.clear().await;
        let left = cloud.volumes().await;
        assert!(left.is_empty() || page.name == "README.md", "{}: {left:?}", page.name);
    }
    assert!(commands > 30, "{commands}");
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
async fn status_names_the_containers_that_have_a_volume() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    for name in ["web-1", "web-2"] {
        let run = "docker run -d -v web:/data --volume-driver=cinder --name";
        machine.sh(&format!("{run} {name} ubuntu sleep 999")).await;
    }
    let program = format!("'{}' --config $DIR/config.json", support::binary().display());
    let rows = machine.sh(&format!("{program} status --json")).await;
    let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
    let containers = rows[0]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 2, "{rows}");
    for name in ["web-1", "web-2"] {
        let id = machine.sh(&format!("docker inspect -f '{{{{.Id}}}}' {name}")).await;
        let container = containers.iter().find(|one| one["name"] == name);
        let container = container.unwrap_or_else(|| panic!("{name} is not in {rows}"));
        assert_eq!((&container["id"], &container["at"]), (&json!(id), &json!("/data")), "{rows}");
    }
    let shown = machine.sh(&format!("{program} status")).await;
    assert!(shown.contains("used by: web-1 (") || shown.contains("used by: web-2 ("), "{shown}");
    // Without an engine that answers, the kernel still tells the ids.
    machine.sh("kill -STOP $(cat $DIR/dockerd.pid)").await;
    let rows = machine.sh(&format!("{program} status --json")).await;
    machine.sh("kill -CONT $(cat $DIR/dockerd.pid)").await;
    let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
    let containers = rows[0]["containers"].as_array().unwrap();
    assert!(containers.iter().all(|one| one["id"].is_string() && one["name"].is_null()), "{rows}");
    machine.sh("docker rm -f web-1 web-2").await;
    machine.clear().await;
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

/// A container that writes without end, and what it has written.
const WRITER: &str = "docker run -d --name web -v web:/data --volume-driver=cinder ubuntu \
                      sh -c 'while echo line >>/data/log; do sleep 0.05; done'";
const LINES: &str = "docker exec web sh -c 'wc -l </data/log'";

/// Waits until the container has written more.
async fn until_written(machine: &Machine) {
    let before = machine.sh(LINES).await;
    machine.until(&format!("test $({LINES}) -gt {before}")).await;
}

#[tokio::test]
async fn a_container_that_is_removed_in_the_middle_of_its_mount_leaves_nothing() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    for (step, removal) in [
        ("attachment-create", "docker rm -f web"),
        ("attachment-update", "docker rm -f web"),
        ("attachment-complete", "docker kill web; docker rm -f web"),
    ] {
        machine
            .sh("docker create --name web -v web:/data --volume-driver=cinder ubuntu sleep 99")
            .await;
        cloud.forget_calls();
        cloud.fail_once(step, Action::Delay(2500));
        machine.sh("{ docker start web; echo >$DIR/started; } >/dev/null 2>&1 &").await;
        while !cloud.calls().iter().any(|call| call == step) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        machine.run(removal).await;
        machine.until("rm $DIR/started").await;
        machine.run("docker rm -f web").await;
        cloud.until("web", "available").await;
        machine.clear().await;
        machine.sh("docker run --rm -v web:/data ubuntu touch /data/usable").await;
        machine.sh("docker volume rm web").await;
        cloud.clear_faults();
    }
    assert_eq!(cloud.volumes().await.len(), 0);
}

#[tokio::test]
async fn hundreds_of_volumes_are_still_known_after_each_start_of_an_engine() {
    const COUNT: usize = 300;
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    cloud.sandbox.fill(COUNT as u64, "many");
    machine
        .sh(&format!(
            "seq 0 {} | xargs -P 4 -I @ curl -sSf -o /dev/null --unix-socket /run/docker.sock \
             -H 'Content-Type: application/json' -d '{{\"Name\":\"many@\",\"Driver\":\"cinder\"}}' \
             http://docker/volumes/create",
            COUNT - 1
        ))
        .await;
    let known = "docker volume ls --quiet --filter driver=cinder | grep -c ^many";
    assert_eq!(machine.sh(known).await, COUNT.to_string());
    // Cinder may be down, and that forgets nothing either.
    for is_down in [false, true] {
        if is_down {
            let refusal = Action::Answer(Canned::status(503));
            cloud.fail(Rule::on("*", refusal).forever());
        }
        machine.stop("dockerd").await;
        cloud.forget_calls();
        let answered = machine.log("plugin").matches("operation{op=Get").count();
        let begun = std::time::Instant::now();
        machine.start_engine().await.unwrap();
        let took = begun.elapsed();
        cloud.clear_faults();
        let calls = cloud.calls().len();
        let gets = machine.log("plugin").matches("operation{op=Get").count() - answered;
        println!(
            "{COUNT} volumes, Cinder {}: the engine started in {took:.1?}; {gets} lines about \
             Gets, {calls} calls to the cloud",
            if is_down { "down" } else { "up" }
        );
        assert!(calls <= 4 * COUNT + 10, "{calls} calls");
        assert_eq!(machine.sh(known).await, COUNT.to_string());
        machine.sh("docker volume inspect many0 many299").await;
    }
}

#[tokio::test]
async fn with_live_restore_containers_outlive_a_crash_of_engine_and_plugin() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    let live = json!({ "live-restore": true });
    machine.stop("dockerd").await;
    machine.start_engine_with(live.clone()).await.unwrap();
    machine.sh(WRITER).await;
    until_written(&machine).await;
    let log = machine.mount_point().join("web/volume_content/log");
    let size = async || machine.sh(&format!("stat -c %s {}", log.display())).await;
    for plugin_dies in [false, true] {
        machine.kill("dockerd").await;
        if plugin_dies {
            machine.kill("plugin").await;
        }
        let before = size().await;
        machine.until(&format!("test $(stat -c %s {}) -gt {before}", log.display())).await;
        if plugin_dies {
            machine.start_plugin().await;
        }
        machine.start_engine_with(live.clone()).await.unwrap();
        until_written(&machine).await;
        assert_eq!(cloud.status("web").await, "in-use");
        // Another container comes and goes, and takes nothing away.
        machine.sh("docker run --rm -v web:/data ubuntu test -s /data/log").await;
        until_written(&machine).await;
        let refused = machine.run("docker volume rm web").await;
        assert!(!refused.status.success(), "it is used");
    }
    machine.sh("docker kill web").await;
    cloud.until("web", "available").await;
    machine.sh("docker rm web; docker run --rm -v web:/data ubuntu test -s /data/log").await;
    machine.clear().await;
}

#[tokio::test]
async fn two_engines_with_one_plugin_do_not_take_a_volume_from_each_other() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    machine.start_other_engine().await;
    // The second engine has taken the bridge of the first away.
    machine.sh(&WRITER.replace("run -d", "run -d --network none")).await;
    let other = format!("docker --host {OTHER_ENGINE}");
    let reader = format!(
        "{other} run -d --name web --network none -v web:/data \
                          --volume-driver=cinder ubuntu sleep 1000"
    );
    // At once, too: this one is new to both.
    let run = "run --rm --network none -v new:/data --volume-driver=cinder ubuntu touch /data";
    let (here, there) = (format!("docker {run}/one"), format!("{other} {run}/two"));
    let (first, second) = tokio::join!(machine.run(&here), machine.run(&there));
    for output in [first, second] {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let both = machine.sh("docker run --rm --network none -v new:/data ubuntu ls /data").await;
    assert_eq!(both.split_whitespace().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(cloud.volumes().await.len(), 2);
    // The first to go takes nothing from the other.
    machine.sh(&reader).await;
    assert_eq!(machine.users("web").await, 2);
    machine.sh(&format!("{other} rm -f web")).await;
    until_written(&machine).await;
    assert_eq!(cloud.status("web").await, "in-use");
    machine.sh(&reader).await;
    machine.sh("docker rm -f web").await;
    machine.sh(&format!("{other} exec web test -s /data/log")).await;
    assert_eq!(cloud.status("web").await, "in-use");
    let refused = machine.run("docker volume rm web").await;
    assert!(!refused.status.success(), "the other engine uses it");
    machine.sh(&format!("{other} rm -f web")).await;
    cloud.until("web", "available").await;
    machine.clear().await;
}

#[tokio::test]
async fn a_restart_of_the_plugin_in_the_middle_of_a_docker_cp_takes_nothing_away() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    machine.sh(WRITER).await;
    machine.sh("docker exec web sh -c 'head -c 30000000 /dev/zero >/data/large'").await;
    for (round, crash) in [true, false].into_iter().enumerate() {
        machine
            .sh(&format!(
                "{{ docker cp web:/data/large - | {{ head -c 1000 >/dev/null; \
                 until test -e $DIR/go-{round}; do sleep 0.05; done; cat; }} | wc -c \
                 >$DIR/copied-{round}; }} >/dev/null 2>&1 &"
            ))
            .await;
        while machine.users("web").await != 2 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        if crash {
            machine.kill("plugin").await;
        } else {
            machine.stop("plugin").await;
        }
        machine.start_plugin().await;
        assert_eq!(machine.users("web").await, 2, "both are still there");
        machine.sh(&format!("touch $DIR/go-{round}")).await;
        machine.until(&format!("test \"$(cat $DIR/copied-{round})\" -gt 29000000")).await;
        while machine.users("web").await != 1 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        until_written(&machine).await;
        assert_eq!(cloud.status("web").await, "in-use");
    }
    machine.sh("docker rm -f web").await;
    cloud.until("web", "available").await;
    machine.clear().await;
}

/// Between its answer to a Mount and its note that the answer arrived, a plugin can be killed. It does
/// not know then whether the engine will start the container or ask once more.
#[tokio::test]
async fn a_container_that_starts_while_the_plugin_dies_keeps_its_volume() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    let gate = Gate::new();
    machine.stop("plugin").await;
    machine.start_plugin_with(&gate.variable()).await;
    machine.sh(WRITER).await;
    until_written(&machine).await;
    machine.sh("docker stop --time 0 web").await;
    cloud.until("web", "available").await;

    // The effects of a start, of which the note is the last one.
    gate.watch();
    machine.sh("docker start web").await;
    while has_untold(&machine.state_dir()) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let effects = gate.end();
    let effects: Vec<_> =
        gate::begun(&effects).filter(|what| what.starts_with("journal")).collect();
    // It is written, then renamed: counted from 1, the last but one.
    let note = effects.len() - 1;
    assert!(effects[note - 1].starts_with("journal write"), "{effects:?}");
    machine.sh("docker stop --time 0 web").await;
    cloud.until("web", "available").await;

    for _ in 0..3 {
        gate.plan_for("kill-before", note, "journal");
        machine.sh("docker start web").await;
        machine.until("! kill -0 $(cat $DIR/plugin.pid)").await;
        assert!(has_untold(&machine.state_dir()), "it noted it: {:?}", gate.log());
        gate.end();
        machine.start_plugin_with(&gate.variable()).await;

        // Others come and go, and the volume stays for the one that has it.
        for _ in 0..2 {
            machine.sh("docker run --rm -v web:/data ubuntu test -s /data/log").await;
        }
        let error = machine.run("docker volume rm --force web").await;
        assert!(!error.status.success(), "it is still used");
        until_written(&machine).await;
        assert_eq!(cloud.status("web").await, "in-use");
        machine.sh("docker stop --time 0 web").await;
        cloud.until("web", "available").await;
    }
    machine.clear().await;
}

/// What an operator types beside a running container: the volume grows, a snapshot of it is taken and
/// used, and the container notices nothing but the space.
#[tokio::test]
async fn a_container_writes_on_while_its_volume_grows_and_a_snapshot_is_taken() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot("box-1", &cloud, json!({})).await else { return };
    machine.sh("docker volume create -d cinder -o fs=xfs web").await;
    machine.sh(WRITER).await;
    until_written(&machine).await;
    let space = "docker exec web sh -c 'df -m /data | tail -1' | awk '{print $2}'";
    let before: u64 = machine.sh(space).await.parse().unwrap();
    let started = "docker inspect -f '{{.State.StartedAt}}' web";
    let since = machine.sh(started).await;

    machine.driver("resize web 4").await;
    until_written(&machine).await;
    let after: u64 = machine.sh(space).await.parse().unwrap();
    assert!(before < 1024 && after > 3600, "{before} {after}");

    let lines = machine.sh(LINES).await;
    machine.driver("snapshot web growing").await;
    until_written(&machine).await;
    assert!(machine.driver("snapshots web").await.contains("growing"));
    machine.sh("docker volume create -d cinder -o from=web@growing -o size=5 copy").await;
    let copied = machine
        .sh("docker run --rm -v copy:/data ubuntu sh -c 'wc -l </data/log; df -m /data | tail -1'")
        .await;
    let copied_lines: u64 = copied.lines().next().unwrap().trim().parse().unwrap();
    assert!(copied_lines >= lines.parse().unwrap(), "{lines}: {copied}");
    let space: Vec<&str> = copied.lines().nth(1).unwrap().split_whitespace().collect();
    assert!(space[1].parse::<u64>().unwrap() > 4600, "{copied}");

    until_written(&machine).await;
    assert_eq!(machine.sh(started).await, since, "it was restarted");
    machine.sh("docker rm -f web && docker volume rm copy").await;
    cloud.until("web", "available").await;
    machine.clear().await;
}

/// The driver inside the engine: `docker plugin create` from what `plugin/build` makes of this
/// machine's own tools.
#[tokio::test]
async fn a_managed_plugin_serves_containers_and_outlives_itself_and_the_engine() {
    let cloud = Cloud::start().await;
    let Some(machine) = Machine::boot_for_a_managed_plugin("box-1").await else { return };
    let config = cloud.sandbox.config();
    let build = pages::path("plugin/build");
    machine
        .sh(&format!(
            "{} --tree / '{}' $DIR/plugin >&2; mkdir -m 700 $DIR/state",
            build.display(),
            support::binary().display()
        ))
        .await;
    // Growing an ext4 takes it; where the tests may not have it themselves, nobody can give it.
    machine
        .sh("bound=$(sed -n 's/^CapBnd:[^0-9a-f]*//p' /proc/self/status); \
             [ $((0x$bound >> 24 & 1)) = 1 ] || sed -i 's/\"CAP_SYS_RESOURCE\", //' $DIR/plugin/config.json")
        .await;
    let text = |key: &str| config[key].as_str().unwrap().to_owned();
    machine
        .sh(&format!(
            "docker plugin create cinder $DIR/plugin && docker plugin set cinder \
             state.source=$DIR/state DEBUG=true \
             OS_AUTH_URL={} OS_USERNAME={} OS_PASSWORD='{}' OS_PROJECT_ID={} \
             ConnectorHost='box-\"1\"' DefaultFilesystem=xfs && docker plugin enable cinder",
            text("Endpoint"),
            text("Username"),
            text("Password"),
            text("TenantID"),
        ))
        .await;
    machine.sh("docker volume create -d cinder -o size=2 web").await;
    // Docker calls the driver by its whole name, tag included.
    assert_eq!(
        machine.sh("docker volume ls --format '{{.Driver}} {{.Name}}'").await,
        "cinder:latest web"
    );

    // Two containers on it; the first to go takes nothing from the other.
    let run = |how: &str, script: &str| {
        format!("docker run {how} --network none -v web:/data ubuntu sh -c '{script}'")
    };
    machine.sh(&run("-d --name web", "while echo line >>/data/log; do sleep 0.05; done")).await;
    machine.sh(&run("--rm", "test -s /data/log && touch /data/two")).await;
    until_written(&machine).await;
    machine.sh("test -e $DIR/docker/plugins/*/propagated-mount/web/volume_content/two").await;
    let status = machine.sh("docker volume inspect -f '{{json .Status}}' web").await;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["filesystem"], &status["size"]), (&json!("xfs"), &json!(2)), "{status}");
    assert_eq!(status["attached_host"], "box-\"1\"", "a setting came through as it is");
    let inside = "nsenter --target $(pidof cinder-docker-driver) --mount --net \
                  /usr/bin/cinder-docker-driver --config /run/cinder-docker-driver.json status";
    let shown = machine.sh(inside).await;
    assert!(shown.contains("web"), "{shown}");
    let refused = machine.run("docker plugin disable cinder").await;
    assert!(!refused.status.success(), "it is in use");

    // It dies, and the engine starts it again. The container does not notice.
    machine.sh("kill -KILL $(pidof cinder-docker-driver)").await;
    machine.until("pidof cinder-docker-driver").await;
    machine.until(&run("--rm", "test -e /data/two")).await;
    until_written(&machine).await;
    assert_eq!(cloud.status("web").await, "in-use");
    // Its administrator takes it away by force, as for an upgrade. The engine unmounts then; the
    // container keeps what it has, and nobody else gets it.
    machine.sh("docker plugin disable -f cinder").await;
    until_written(&machine).await;
    machine.sh("docker plugin enable cinder").await;
    until_written(&machine).await;
    assert_eq!(cloud.status("web").await, "in-use");
    machine.sh("docker rm -f web").await;
    cloud.until("web", "available").await;

    // The engine dies under a container, whose volume nobody unmounts: the next Mount does.
    machine.sh(&run("-d --name web", "exec sleep 1000")).await;
    machine.kill("dockerd").await;
    machine.start_engine_beside_the_cloud().await.unwrap();
    machine.sh("docker rm -f web").await;
    machine.until(&run("--rm", "test -e /data/two")).await;
    cloud.until("web", "available").await;
    machine
        .sh("docker volume rm web && docker plugin disable cinder && docker plugin rm cinder")
        .await;
    assert_eq!(cloud.volumes().await.len(), 0);
}
