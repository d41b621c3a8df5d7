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
    let commands = ["serve", "sandbox", "check", "status", "release", "format", "accept-uuid"];
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
    let lines: Vec<&str> = table.lines().collect();
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
