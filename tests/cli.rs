//! The command line as people and systemd use it: help, prompts, start, stop, hand-over.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and starts the program"
)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cinder_docker_driver::sandbox::faults::{Action, Rule};
use serde_json::{Value, json};
use support::{Cloud, Node, binary, sh};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn run(args: &[&str]) -> Output {
    Command::new(binary()).args(args).stdin(Stdio::null()).output().unwrap()
}

// ---- Help.

#[test]
fn help_is_worth_reading_and_fits_a_terminal() {
    let commands = [
        "serve",
        "sandbox",
        "check",
        "health",
        "status",
        "ls",
        "inspect",
        "adopt",
        "release",
        "format",
        "accept-uuid",
    ];
    let short = text(&run(&["-h"]).stdout);
    let long = text(&run(&["--help"]).stdout);
    for command in commands {
        assert!(short.contains(&format!("\n  {command} ")), "{command} is not in {short}");
        let own = run(&[command, "--help"]);
        assert!(own.status.success() && own.stdout.len() > 300, "{command}: {own:?}");
    }
    for help in [&short, &long] {
        assert!(help.contains("\nExamples:\n  docker volume create -d cinder"), "{help}");
        let widest = help.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{widest:?}: {help}");
    }
    assert!(long.contains("\n  size=20G ") && long.contains("\n  fs=xfs "), "{long}");
}

#[test]
fn the_version_is_one_line() {
    for flag in ["--version", "-V", "-version"] {
        let output = run(&[flag]);
        assert!(output.status.success());
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(text(&output.stdout), format!("cinder-docker-driver {version}\n"));
    }
}

#[test]
fn a_mistyped_command_names_the_right_one() {
    let output = run(&["statsu"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("'status'"), "{}", text(&output.stderr));
}

// ---- Operators' commands.

/// Runs a command of a host with this on its standard input.
async fn typed(node: &Node, args: &[&str], input: &str) -> Output {
    let mut command = Command::new(binary());
    command.arg("--config").arg(node.config_path()).arg("--socket").arg(&node.socket).args(args);
    answer(command, input.to_owned()).await
}

async fn answer(mut command: Command, input: String) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The cloud may run on this very thread.
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        // It may end without reading.
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap()
}

/// A volume that has been used, with the UUID of its filesystem.
async fn used_volume(cloud: &Cloud, node: &Node, name: &str) -> (String, String) {
    node.create(name, json!({})).await.unwrap();
    let mounted = node.mount(name, "c").await.unwrap();
    fs::write(mounted.join("x"), "kept").unwrap();
    node.unmount(name, "c").await.unwrap();
    let volume = cloud.volume(name).await;
    let id = volume["id"].as_str().unwrap().to_owned();
    (id, format_of(&volume))
}

fn format_of(volume: &Value) -> String {
    volume["metadata"]["docker.format"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn format_shows_what_it_erases_and_needs_the_volumes_id() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let (id, format) = used_volume(&cloud, &node, "v").await;
    let (other, _) = used_volume(&cloud, &node, "w").await;
    for wrong in ["", "\n", "y\n", "yes\n", "v\n", &format!("{other}\n"), &format!("{id}x\n")] {
        let output = typed(&node, &["format", "v"], wrong).await;
        assert_eq!(output.status.code(), Some(1), "{wrong:?}");
        let shown = text(&output.stdout);
        assert!(
            shown.contains(&id) && shown.contains("ext4") && shown.contains("erased"),
            "{shown}"
        );
        assert!(shown.ends_with("to go on: "), "{shown}");
        assert!(text(&output.stderr).contains("nothing was done"), "{}", text(&output.stderr));
        assert_eq!(format_of(&cloud.volume("v").await), format, "{wrong:?}");
    }
    let refused = node.cli(&["format", "v", "--id", &other]).await;
    assert!(text(&refused.stderr).contains("nothing was done"), "{}", text(&refused.stderr));
    let mounted = node.mount("v", "c").await.unwrap();
    assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), "kept");
    node.unmount("v", "c").await.unwrap();

    let output = typed(&node, &["format", "v"], &format!("  {id} \n")).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with("Done.\n"), "{}", text(&output.stdout));
    assert_ne!(format_of(&cloud.volume("v").await), format);
    let mounted = node.mount("v", "c").await.unwrap();
    assert!(!mounted.join("x").exists());
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_prompt_in_a_terminal_is_seen_before_it_is_answered() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let (id, format) = used_volume(&cloud, &node, "v").await;
    // script(1) gives the program a terminal of its own.
    let line = format!(
        "{} --config {} --socket {} format v",
        binary().display(),
        node.config_path().display(),
        node.socket.display()
    );
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let typed = format!("{id}\r");
    let seen = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let (mut seen, mut buffer) = (String::new(), [0; 4096]);
        while !seen.contains("to go on: ") {
            let count = output.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "it ended before it asked: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        child.stdin.as_mut().unwrap().write_all(typed.as_bytes()).unwrap();
        output.read_to_string(&mut seen).unwrap();
        assert!(child.wait().unwrap().success(), "{seen}");
        seen
    })
    .await
    .unwrap();
    assert!(seen.contains("Done."), "{seen}");
    assert_ne!(format_of(&cloud.volume("v").await), format);
}

#[tokio::test]
async fn accept_uuid_shows_both_and_needs_the_volumes_id() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let (id, format) = used_volume(&cloud, &node, "v").await;
    let uuid = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
    sh(&format!("mkfs.ext4 -q -F -U {uuid} {}", cloud.image(&id).display()));
    let output = typed(&node, &["accept-uuid", "v"], "no\n").await;
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(shown.contains(uuid) && shown.contains(&format), "{shown}");
    assert_eq!(format_of(&cloud.volume("v").await), format);
    let output = typed(&node, &["accept-uuid", "v"], &format!("{id}\n")).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(format_of(&cloud.volume("v").await), format!("formatted:{uuid}"));
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
}

#[tokio::test]
async fn release_names_the_holder_and_needs_the_volumes_id() {
    let cloud = Cloud::start().await;
    let (mut gone, node) = (Node::start(&cloud).await, Node::start(&cloud).await);
    let (id, _) = used_volume(&cloud, &gone, "v").await;
    gone.mount("v", "c").await.unwrap();
    gone.kill();
    let output = typed(&node, &["release", "v"], "no\n").await;
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(shown.contains("host-") && shown.contains("must not run any more"), "{shown}");
    assert_eq!(cloud.status("v").await, "in-use");
    // That host is gone, its mount with it.
    for mount in gone.mounts() {
        sh(&format!("umount {mount}"));
    }
    let output = typed(&node, &["release", "v"], &format!("{id}\n")).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(cloud.status("v").await, "available");
    node.mount("v", "c").await.unwrap();
    let output = typed(&node, &["release", "v"], &format!("{id}\n")).await;
    assert!(text(&output.stderr).contains("in use on this very host"), "{output:?}");
    node.unmount("v", "c").await.unwrap();
}

#[tokio::test]
async fn an_operators_command_says_what_is_in_its_way() {
    let cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    let (id, _) = used_volume(&cloud, &node, "v").await;
    for (args, says) in [
        (vec!["release", "v"], "nothing to release"),
        (vec!["format", "no-such-volume"], "no volume"),
        (vec!["format", "../etc", "--id", &id], "not a volume name"),
        (vec!["accept-uuid", "v", "--id", "nonsense"], "nothing was done"),
    ] {
        let output = node.cli(&args).await;
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let told = text(&output.stderr);
        assert!(told.contains(says) && told.lines().count() == 1, "{args:?}: {told}");
    }
    assert!(node.stop());
    for command in ["release", "format", "accept-uuid"] {
        for args in [vec![command, "v"], vec![command, "v", "--id", &id]] {
            let output = node.cli(&args).await;
            assert_eq!(output.status.code(), Some(1));
            let told = text(&output.stderr);
            assert!(told.contains("systemctl start cinder-docker-driver"), "{told}");
            assert!(told.contains(node.socket.to_str().unwrap()), "{told}");
        }
    }
}

// ---- status.

#[tokio::test]
async fn status_is_a_table_that_can_be_read_with_and_without_a_daemon() {
    let cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    assert_eq!(
        text(&node.cli(&["status"]).await.stdout),
        "No volume is mounted or attached on this host.\n"
    );
    let long = "a-name-that-is-longer-than-the-title-of-its-column";
    for name in ["v", long] {
        node.create(name, json!({})).await.unwrap();
        node.mount(name, "c").await.unwrap();
    }
    node.mount("v", "d").await.unwrap();
    let table = text(&node.cli(&["status"]).await.stdout);
    let lines: Vec<&str> = table.lines().filter(|line| !line.starts_with("    ")).collect();
    let [title, first, second] = lines.as_slice() else { panic!("{table}") };
    let column = |line: &str, name: &str| {
        line[title.find(name).unwrap()..].split("   ").next().unwrap().trim().to_owned()
    };
    for (name, users) in [("v", "2"), (long, "1")] {
        let line = if column(first, "NAME") == name { first } else { second };
        assert_eq!(column(line, "NAME"), name, "{table}");
        assert_eq!(column(line, "STATE"), "mounted", "{table}");
        assert_eq!(column(line, "USERS"), users, "{table}");
        assert!(column(line, "DEVICE").starts_with("/dev/"), "{table}");
        let at = node.mount_point().join(name);
        assert_eq!(column(line, "MOUNTPOINT"), at.to_str().unwrap(), "{table}");
    }
    assert!(node.stop());
    let without = text(&node.cli(&["status"]).await.stdout);
    assert!(without.starts_with(&table), "{without}");
    assert!(without.contains("The daemon does not run"), "{without}");
    node.run().await;
    for (name, id) in [("v", "c"), ("v", "d"), (long, "c")] {
        node.unmount(name, id).await.unwrap();
    }
    fs::write(node.state_dir().join("volumes/7c9e6679-7425-40de-944b-e07fc1f90ae7.json"), "{")
        .unwrap();
    let table = text(&node.cli(&["status"]).await.stdout);
    assert!(table.contains("7c9e6679") && table.contains("unusable journal entry"), "{table}");
    assert!(table.contains("    last error: "), "{table}");
}

/// Runs a command on a host and reads the JSON that it prints.
async fn json_of(node: &Node, args: &[&str]) -> Value {
    let output = node.cli(args).await;
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn status_says_by_whom_since_when_and_by_which_attachment() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let before = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let mounted = node.mount("v", "c").await.unwrap();
    // A process that has the volume in a namespace of its own, as a container has, and the copy
    // of the host's mount no more. What else is mounted on this machine it must not keep: other
    // tests run beside this one.
    let at = node.dir.path().join("in-container");
    fs::create_dir(&at).unwrap();
    let line = format!(
        "mount --bind {0} {1} && mount --make-private {1} && umount {2} && echo ready && \
         exec sleep 600",
        mounted.display(),
        at.display(),
        // What is handed out is a directory in it.
        mounted.parent().unwrap().display()
    );
    let mut holder = Command::new("unshare")
        .args(["-m", "--propagation", "slave", "sh", "-c", &line])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    holder.stdout.take().unwrap().read_exact(&mut ready).unwrap();
    let rows = json_of(&node, &["status", "--json"]).await;
    let row = &rows[0];
    let shown = text(&node.cli(&["status"]).await.stdout);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let volume = cloud.volume("v").await;
    assert_eq!(row["attachment"], volume["attachments"][0]["attachment_id"], "{row}");
    assert_eq!((&row["state"], &row["flow"]), (&json!("mounted"), &json!("attachments")));
    assert!(row["since"].as_u64().unwrap() >= before, "{row}");
    assert_eq!((&row["to_do"], &row["sessions"]), (&json!([]), &json!([])));
    let held: Vec<_> = row["containers"].as_array().unwrap().iter().collect();
    let ours = held.iter().find(|one| one["pid"] == holder.id());
    let ours = ours.unwrap_or_else(|| panic!("{held:?}"));
    assert_eq!((&ours["command"], &ours["at"]), (&json!("sleep"), &json!(at)), "{held:?}");
    let id = volume["id"].as_str().unwrap();
    assert!(shown.contains(&format!("of volume {id}\n")), "{shown}");
    assert!(shown.contains("    used by: ") && shown.contains(" UTC "), "{shown}");
    node.unmount("v", "c").await.unwrap();
}

#[tokio::test]
async fn status_says_what_a_crash_left_to_be_done() {
    let cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    node.mount("v", "c").await.unwrap();
    node.kill();
    let file = fs::read_dir(node.state_dir().join("volumes")).unwrap().next().unwrap().unwrap();
    let mut entry: Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    entry["references"] = json!([]);
    fs::write(file.path(), entry.to_string()).unwrap();
    let rows = json_of(&node, &["status", "--json"]).await;
    let row = &rows[0];
    assert_eq!(row["state"], "mounted, unused");
    let at = node.mount_point().join("v");
    assert_eq!(
        row["to_do"],
        json!([
            "release it a minute after its last use",
            format!("unmount {}", at.display()),
            "flush its device",
            "tell Cinder that it is detached",
        ])
    );
    let shown = text(&node.cli(&["status"]).await.stdout);
    assert!(shown.contains("\n    to do: tell Cinder that it is detached\n"), "{shown}");
}

// ---- ls and inspect.

#[tokio::test]
async fn ls_and_inspect_tell_the_same_through_the_daemon_and_without_it() {
    let cloud = Cloud::start().await;
    let (mut node, other) = (Node::start(&cloud).await, Node::start(&cloud).await);
    let foreign = cloud.create("foreign", json!({})).await;
    for (host, name) in [(&node, "here"), (&other, "there")] {
        host.create(name, json!({ "size": "2" })).await.unwrap();
        host.mount(name, "c").await.unwrap();
    }
    let list = json_of(&node, &["ls", "--json"]).await;
    let all = json_of(&node, &["ls", "--all", "--json"]).await;
    let names = |rows: &Value| -> Vec<String> {
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&list), ["here", "there"]);
    assert_eq!(names(&all), ["foreign", "here", "there"]);
    let here = &list[0];
    assert_eq!(
        (&here["size"], &here["status"], &here["ours"]),
        (&json!(2), &json!("in-use"), &json!(true))
    );
    assert_eq!(here["mounted_at"], json!(node.mount_point().join("here")));
    assert_eq!((&here["users"], &list[1]["mounted_at"]), (&json!(1), &Value::Null));
    let holder = list[1]["attached"][0]["host"].as_str().unwrap();
    assert!(holder.starts_with("host-"), "{list}");
    assert_eq!(list[1]["attached"][0]["at"], json!(other.mount_point().join("there")));

    let table = text(&node.cli(&["ls"]).await.stdout);
    assert!(table.starts_with("NAME ") && table.lines().count() == 3, "{table}");
    assert!(table.contains(holder) && table.contains("2 GiB"), "{table}");

    let inspected = json_of(&node, &["inspect", "here", "--json"]).await;
    assert_eq!(inspected["cinder"]["status"], "in-use");
    assert_eq!(inspected["here"]["state"], "mounted");
    assert_eq!(inspected["journal"]["volume_id"], inspected["id"]);
    let by_id = json_of(&node, &["inspect", &foreign, "--json"]).await;
    assert_eq!((&by_id["name"], &by_id["here"]), (&json!("foreign"), &Value::Null));
    let shown = text(&node.cli(&["inspect", "here"]).await.stdout);
    assert!(shown.contains("In Cinder:\n") && shown.contains("\n    state: mounted\n"), "{shown}");
    let missing = node.cli(&["inspect", "no-such"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("no volume \"no-such\""), "{missing:?}");

    node.kill();
    assert_eq!(json_of(&node, &["ls", "--json"]).await, list);
    assert_eq!(json_of(&node, &["ls", "--all", "--json"]).await, all);
    let again = json_of(&node, &["inspect", "here", "--json"]).await;
    assert_eq!((&again["cinder"], &again["here"]), (&inspected["cinder"], &inspected["here"]));
    let missing = node.cli(&["inspect", "no-such"]).await;
    assert!(text(&missing.stderr).contains("no volume \"no-such\""), "{missing:?}");
}

#[tokio::test]
async fn what_this_host_holds_is_shown_when_cinder_is_silent_or_has_lost_it() {
    let mut cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    node.mount("v", "c").await.unwrap();
    let address = cloud.go_down().await;
    let inspected = json_of(&node, &["inspect", "v", "--json"]).await;
    assert_eq!(inspected["cinder"], Value::Null);
    assert!(inspected["cinder_error"].as_str().unwrap().contains("no connection"), "{inspected}");
    assert_eq!(inspected["here"]["state"], "mounted");
    let failed = node.cli(&["ls"]).await;
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed.stderr).contains("no connection to"), "{failed:?}");
    cloud.come_back(address).await;
    node.unmount("v", "c").await.unwrap();
}

// ---- adopt.

/// A volume of somebody else, with a filesystem.
async fn foreign_volume(cloud: &Cloud, name: &str, make: &str) -> String {
    let id = cloud.create(name, json!({})).await;
    let image = cloud.image(&id);
    sh(&format!("truncate -s 1G {0} && {make} {0}", image.display()));
    id
}

#[tokio::test]
async fn adopt_takes_a_volume_with_its_data_under_a_new_name() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let uuid = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
    let id = foreign_volume(&cloud, "old data", &format!("mkfs.ext4 -q -F -U {uuid}")).await;
    let before = cloud.volume("old data").await;

    let unnamed = node.cli(&["adopt", &id]).await;
    assert!(text(&unnamed.stderr).contains(&format!("adopt {id} NEW-NAME")), "{unnamed:?}");
    let output = typed(&node, &["adopt", "old data", "archive"], "no\n").await;
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    for part in [&*id, "ext4", uuid, "\"old data\" to \"archive\"", "docker volume rm archive"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let after = cloud.volume("old data").await;
    for key in ["name", "metadata", "status", "description"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    node.until_clean().await;

    let output = typed(&node, &["adopt", "old data", "archive"], &format!("{id}\n")).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(node.list().await.unwrap(), ["archive"]);
    assert_eq!(format_of(&cloud.volume("archive").await), format!("formatted:{uuid}"));
    let again = node.cli(&["adopt", "archive", "--id", &id]).await;
    assert!(text(&again.stderr).contains("already"), "{again:?}");
    node.mount("archive", "c").await.unwrap();
    node.unmount("archive", "c").await.unwrap();
    // Ours now, so Remove deletes it.
    node.remove("archive").await.unwrap();
    assert_eq!(cloud.volumes().await, Vec::<Value>::new());
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn adopt_refuses_what_it_does_not_know_and_changes_nothing() {
    let cloud = Cloud::start().await;
    let (node, other) = (Node::start(&cloud).await, Node::start(&cloud).await);
    other.create("theirs", json!({})).await.unwrap();
    let blank = cloud.create("blank", json!({})).await;
    let swap = foreign_volume(&cloud, "swap", "mkswap -q").await;
    let held = foreign_volume(&cloud, "held", "mkfs.ext4 -q -F").await;
    other.mount("held", "c").await.unwrap();
    let before = cloud.volumes().await;
    for (name, id, says) in [
        ("blank", &*blank, "nothing that is known"),
        ("swap", &*swap, "swap"),
        ("held", &*held, "in use: it is attached to host-"),
        ("no-such", &*held, "no volume"),
    ] {
        let output = node.cli(&["adopt", name, "--id", id]).await;
        assert_eq!(output.status.code(), Some(1), "{name}");
        let told = text(&output.stderr);
        assert!(told.contains(says) && told.lines().count() == 1, "{name}: {told}");
    }
    let taken = node.cli(&["adopt", "blank", "theirs", "--id", &blank]).await;
    assert!(text(&taken.stderr).contains("there is a volume named \"theirs\""), "{taken:?}");
    let wrong = node.cli(&["adopt", "blank", "--id", &swap]).await;
    assert!(text(&wrong.stderr).contains("nothing was done"), "{wrong:?}");
    node.until_clean().await;
    let kept = |volumes: Vec<Value>| -> Vec<Value> {
        volumes.iter().map(|v| json!([v["id"], v["name"], v["metadata"], v["status"]])).collect()
    };
    assert_eq!(kept(cloud.volumes().await), kept(before));
    other.unmount("held", "c").await.unwrap();
}

#[tokio::test]
async fn clusters_are_kept_apart_in_ls_and_adopt_brings_a_volume_into_one() {
    let cloud = Cloud::start().await;
    let east = Node::start_with(&cloud, json!({ "ClusterID": "east" })).await;
    let west = Node::start_with(&cloud, json!({ "ClusterID": "west" })).await;
    west.create("theirs", json!({})).await.unwrap();
    let theirs = cloud.volume("theirs").await["id"].as_str().unwrap().to_owned();
    let id = foreign_volume(&cloud, "old", "mkfs.ext4 -q -F").await;
    assert_eq!(json_of(&east, &["ls", "--json"]).await, json!([]));
    let all = json_of(&east, &["ls", "--all", "--json"]).await;
    assert_eq!(all[1]["cluster"], "west", "{all}");
    assert_eq!((&all[1]["ours"], &all[0]["ours"]), (&json!(false), &json!(false)));
    let refused = east.cli(&["adopt", "theirs", "--id", &theirs]).await;
    assert!(text(&refused.stderr).contains("belongs to cluster \"west\""), "{refused:?}");
    let adopted = east.cli(&["adopt", "old", "--id", &id]).await;
    assert!(adopted.status.success(), "{adopted:?}");
    let list = json_of(&east, &["ls", "--json"]).await;
    assert_eq!((&list[0]["name"], &list[0]["cluster"]), (&json!("old"), &json!("east")));
    assert_eq!(json_of(&west, &["ls", "--json"]).await[0]["name"], "theirs");
    east.remove("old").await.unwrap();
}

// ---- release --host.

#[tokio::test]
async fn release_of_a_host_shows_all_of_its_volumes_and_needs_its_name() {
    let cloud = Cloud::start().await;
    let (mut gone, node) = (Node::start(&cloud).await, Node::start(&cloud).await);
    for name in ["a", "b"] {
        gone.create(name, json!({})).await.unwrap();
        gone.mount(name, "c").await.unwrap();
    }
    node.create("mine", json!({})).await.unwrap();
    node.mount("mine", "c").await.unwrap();
    let rows = json_of(&node, &["ls", "--json"]).await;
    let host_of = |name: &str| {
        let row = rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
        row["attached"][0]["host"].as_str().unwrap().to_owned()
    };
    let (host, own) = (host_of("a"), host_of("mine"));
    let unknown = node.cli(&["release", "--host", "node-9"]).await;
    assert!(text(&unknown.stderr).contains(&host), "{unknown:?}");

    gone.kill();
    let output = typed(&node, &["release", "--host", &host], "yes\n").await;
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    assert!(
        shown.contains("- a (") && shown.contains("- b (") && !shown.contains("mine"),
        "{shown}"
    );
    assert!(shown.contains("must not run any more"), "{shown}");
    assert!(text(&output.stderr).contains("nothing was done"), "{output:?}");
    assert_eq!(
        (cloud.status("a").await, cloud.status("b").await),
        ("in-use".into(), "in-use".into())
    );
    for mount in gone.mounts() {
        sh(&format!("umount {mount}"));
    }
    // One that has moved on since it was shown is not taken from its new holder.
    let id = cloud.volume("b").await["id"].as_str().unwrap().to_owned();
    let stale = json!({ "ID": id, "Host": host, "Attachments": ["another"] }).to_string();
    let (status, answer) = node.try_call("/Operator.ReleaseFrom", &stale).await.unwrap();
    assert_eq!(status, 500);
    assert!(answer["Err"].as_str().unwrap().contains("not what was shown"), "{answer}");
    assert_eq!(cloud.status("b").await, "in-use");

    let output = typed(&node, &["release", "--host", &host], &format!("{host}\n")).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    for name in ["a", "b"] {
        assert_eq!(cloud.status(name).await, "available");
    }
    assert_eq!(cloud.status("mine").await, "in-use");
    let output = node.cli(&["release", "--host", &own, "--confirm", &own]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("this very host"), "{output:?}");
    assert_eq!(cloud.status("mine").await, "in-use");
    node.unmount("mine", "c").await.unwrap();
}

// ---- health.

#[tokio::test]
async fn health_is_one_line_and_an_exit_code() {
    let mut cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    node.mount("v", "c").await.unwrap();
    for args in [&["health"][..], &["health", "--deep"]] {
        let output = node.cli(args).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(text(&output.stdout), "OK: 1 volumes mounted, 0 to be released\n");
    }
    cloud.forget_calls();
    node.cli(&["health"]).await;
    assert_eq!(cloud.calls(), Vec::<String>::new(), "the daemon alone is asked");

    // Cinder away: only who asks deeply hears of it.
    let address = cloud.go_down().await;
    assert_eq!(node.cli(&["health"]).await.status.code(), Some(0));
    let deep = node.cli(&["health", "--deep"]).await;
    assert_eq!(deep.status.code(), Some(2));
    assert!(text(&deep.stdout).starts_with("CRITICAL: cannot read the quota"), "{deep:?}");
    cloud.come_back(address).await;

    // Somebody unmounts it below its container.
    sh(&format!("umount {}", node.mount_point().join("v").display()));
    let output = node.cli(&["health"]).await;
    assert_eq!(output.status.code(), Some(2));
    let line = text(&output.stdout);
    assert!(line.starts_with("CRITICAL: v is not mounted any more"), "{line}");
    assert_eq!(line.lines().count(), 1);
    let shown = node.cli(&["health", "--json"]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["status"], "critical");
    assert_eq!(shown["backlog"]["unusable"], 0);
    node.unmount("v", "c").await.unwrap();

    assert!(node.stop());
    fs::write(node.state_dir().join("volumes/7c9e6679-7425-40de-944b-e07fc1f90ae7.json"), "{")
        .unwrap();
    node.run().await;
    let output = node.cli(&["health"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).starts_with("WARNING: the journal entry "), "{output:?}");
    assert!(node.stop());
    let output = node.cli(&["health"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("systemctl start cinder-docker-driver"), "{output:?}");
}

// ---- Completions, manual pages, logs, progress.

#[test]
fn completions_know_every_command_and_shells_take_them() {
    let commands = ["status", "adopt", "release", "completions", "prove-failover"];
    for (shell, check) in [("bash", Some("bash -n")), ("zsh", None), ("fish", None)] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{output:?}");
        let script = text(&output.stdout);
        for command in commands {
            assert!(script.contains(command), "{shell}: {command}");
        }
        if let Some(check) = check {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("completions");
            fs::write(&file, script).unwrap();
            sh(&format!("{check} {}", file.display()));
            // What a person gets after "st" and the tab.
            let line = format!(
                ". {}; COMP_WORDS=(cinder-docker-driver st); COMP_CWORD=1; \
                 _cinder__docker__driver cinder-docker-driver st cinder-docker-driver; \
                 echo ${{COMPREPLY[@]}}",
                file.display()
            );
            assert_eq!(sh(&format!("bash -c '{line}'")).trim(), "status");
        }
    }
    assert_eq!(run(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn there_is_a_manual_page_for_the_program_and_each_command() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(&["man", dir.path().join("man8").to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let page = |name: &str| fs::read_to_string(dir.path().join("man8").join(name)).unwrap();
    for name in ["status", "ls", "adopt", "release", "check", "sandbox", "health"] {
        let page = page(&format!("cinder-docker-driver-{name}.8"));
        let title = format!(".TH cinder-docker-driver-{name} 8 ");
        assert!(page.contains(&title) && page.contains("SYNOPSIS"), "{page}");
    }
    let page = page("cinder-docker-driver.8");
    assert!(page.contains("size=20G"), "the options of volumes are in it: {page}");
    assert!(!page.contains("help(8)"), "{page}");
}

#[tokio::test]
async fn a_log_in_json_has_an_object_a_line_with_the_operation_and_cinders_request_ids() {
    let cloud = Cloud::start().await;
    let mut node = Node::prepare(cloud.sandbox.config(), json!({}));
    node.add_argument("--log-format=json");
    node.run().await;
    node.create("v", json!({})).await.unwrap();
    node.mount("v", "c").await.unwrap();
    let log = node.log();
    let rows: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let done = rows.iter().find(|row| {
        row["message"] == "done" && row["operation"] == json!({ "op": "Mount", "volume": "v" })
    });
    assert!(done.is_some_and(|row| row["level"] == "INFO" && row["elapsed_ms"].is_u64()), "{log}");
    let calls: Vec<&Value> = rows.iter().filter(|row| row["message"] == "cloud call").collect();
    let of_mount = calls.iter().filter(|row| row["operation"]["op"] == "Mount");
    assert!(of_mount.clone().count() >= 5, "{log}");
    for call in of_mount {
        let id = call["request_id"].as_str().unwrap_or_default();
        assert!(id.contains("req-") && call["operation"]["volume"] == "v", "{call}");
    }
    node.unmount("v", "c").await.unwrap();
}

#[tokio::test]
async fn long_work_says_on_a_terminal_what_it_waits_for_and_nowhere_else() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    cloud.fail(Rule::on("list-volumes", Action::Delay(1_800)).forever());
    let line = format!("{} --socket {} ls", binary().display(), node.socket.display());
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm");
    let seen = text(&answer(command, String::new()).await.stdout);
    assert!(seen.contains("asking Cinder for the volumes … 1 s"), "{seen:?}");
    assert!(seen.contains("\r\u{1b}[K"), "it is erased: {seen:?}");
    let output = node.cli(&["ls"]).await;
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

// ---- systemd.

/// The daemon of a host that is prepared but not started, as systemd would start it.
struct Service(Child);

impl Service {
    fn start(node: &Node, prepare: impl FnOnce(&mut Command)) -> Self {
        node.write_config();
        let mut command = Command::new("sh");
        // What exec keeps is the process id that LISTEN_PID must name.
        let line = format!(
            "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec {} --config {} --socket {}",
            binary().display(),
            node.config_path().display(),
            node.socket.display()
        );
        command.args(["-c", &line]).env_clear().stderr(Stdio::piped()).stdin(Stdio::null());
        prepare(&mut command);
        Self(command.spawn().unwrap())
    }

    fn stop(mut self) -> (Option<i32>, String) {
        sh(&format!("kill {}", self.0.id()));
        let code = self.0.wait().unwrap().code();
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (code, log)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test]
async fn a_socket_of_systemd_is_taken_over_and_left_behind() {
    let cloud = Cloud::start().await;
    let node = Node::prepare(cloud.sandbox.config(), json!({}));
    let listener = UnixListener::bind(&node.socket).unwrap();
    for _ in 0..2 {
        let passed = OwnedFd::from(listener.try_clone().unwrap());
        let service = Service::start(&node, |command| {
            command.env("LISTEN_FDS", "1").stdin(Stdio::from(passed));
        });
        // Answered from the first moment on: who comes early waits in the socket's queue.
        let (status, _) = node.try_call("/Plugin.Activate", "").await.unwrap();
        assert_eq!(status, 200);
        node.create("v", json!({})).await.unwrap();
        let (code, log) = service.stop();
        assert_eq!(code, Some(0), "{log}");
        assert!(node.socket.exists(), "it is systemd's");
        UnixStream::connect(&node.socket).unwrap();
    }
}

#[tokio::test]
async fn what_systemd_passed_must_be_one_listening_socket() {
    let cloud = Cloud::start().await;
    let node = Node::prepare(cloud.sandbox.config(), json!({}));
    for (fds, says) in [("1", "ListenStream"), ("2", "one ListenStream")] {
        let mut service = Service::start(&node, |command| {
            command.env("LISTEN_FDS", fds);
        });
        let code = service.0.wait().unwrap().code();
        let mut log = String::new();
        service.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(says), "{log}");
    }
}

#[tokio::test]
async fn systemd_hears_when_it_is_ready_and_when_it_stops() {
    let cloud = Cloud::start().await;
    let node = Node::prepare(cloud.sandbox.config(), json!({}));
    let address = node.dir.path().join("notify");
    let notify = UnixDatagram::bind(&address).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let service = Service::start(&node, |command| {
        command.env("NOTIFY_SOCKET", &address);
    });
    let heard = || {
        let mut buffer = [0; 4096];
        let count = notify.recv(&mut buffer).unwrap();
        text(&buffer[..count])
    };
    assert_eq!(heard().trim(), "READY=1");
    let (status, _) = node.try_call("/Plugin.Activate", "").await.unwrap();
    assert_eq!(status, 200, "ready means that it answers");
    let (code, log) = service.stop();
    assert_eq!((code, heard().trim()), (Some(0), "STOPPING=1"), "{log}");
}

#[tokio::test]
async fn a_stop_takes_the_socket_away_and_leaves_what_is_mounted() {
    let cloud = Cloud::start().await;
    let mut node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let mounted = node.mount("v", "c").await.unwrap();
    fs::write(mounted.join("x"), "1").unwrap();
    assert!(node.stop(), "{}", node.log());
    assert!(!node.socket.exists(), "a dead socket costs every volume command 15 s");
    assert_eq!(node.mounts().len(), 1);
    assert_eq!(fs::read_to_string(mounted.join("x")).unwrap(), "1");
    assert_eq!(cloud.status("v").await, "in-use");
    node.run().await;
    assert_eq!(node.mount("v", "d").await.unwrap(), mounted);
    node.unmount("v", "d").await.unwrap();
    node.unmount("v", "c").await.unwrap();
    node.assert_clean(&cloud);
}

/// A daemon that must refuse to start: what it says.
fn refused(config: &Path, socket: &Path) -> String {
    let begun = Instant::now();
    let mut command = Command::new("timeout");
    command.arg("20").arg(binary()).arg("--config").arg(config).arg("--socket").arg(socket);
    let output = command.env_clear().env("PATH", "/usr/bin:/bin").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{:?}: {output:?}", begun.elapsed());
    text(&output.stderr)
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    node.create("v", json!({})).await.unwrap();
    let told = refused(&node.config_path(), &node.socket);
    assert!(told.contains("another process is serving on"), "{told}");
    assert!(told.contains(node.socket.to_str().unwrap()), "{told}");
    // Another socket, but the same state.
    let elsewhere = node.dir.path().join("other.sock");
    let told = refused(&node.config_path(), &elsewhere);
    assert!(told.contains("another cinder-docker-driver uses"), "{told}");
    assert!(told.contains(node.state_dir().to_str().unwrap()), "{told}");
    assert!(!elsewhere.exists(), "it takes its own socket away");
    node.mount("v", "c").await.unwrap();
    node.unmount("v", "c").await.unwrap();
}
