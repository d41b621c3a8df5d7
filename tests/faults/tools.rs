//! Every tool that an operation runs fails, lies, is killed, babbles, or hangs.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use serde_json::json;

use crate::bench::{Bench, Fault, Operation};
use crate::host::Host;
use crate::support::{ask, sh};
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

#[tokio::test]
async fn resizing_a_mounted_volume() {
    every_case(Operation::ResizeMounted, flow(false), &FAULTS).await;
}

/// mkfs writes copies of the superblock before the first one, and half-made ones before whole ones:
/// whatever it leaves is known for ours by the UUID that it was given.
#[tokio::test]
async fn a_format_that_is_interrupted_at_any_moment_is_done_again() {
    let mut bench = Bench::new(flow(false)).await;
    let mut interrupted = 0;
    for fs in ["ext4", "xfs", "btrfs"] {
        for delay in 1..=15 {
            let name = format!("{fs}-{delay}");
            let options = json!({ "Name": name, "Opts": { "fs": fs } });
            bench.call_with("Create", &options, None).await.unwrap();
            let shell = format!(
                "$real \"$@\" & sleep 0.{delay:03}; kill -9 $! 2>/dev/null && exit 1; wait $!; exit $?"
            );
            let fault = Fault::Tool("killed", Box::leak(shell.into_boxed_str()));
            let body = json!({ "Name": name, "ID": "c" });
            let first = bench.call_with("Mount", &body, Some(&(fault, 1))).await;
            if first.is_err() {
                interrupted += 1;
                bench.call_with("Mount", &body, None).await.unwrap();
            }
            bench.call_with("Unmount", &body, None).await.unwrap();
            bench.call_with("Remove", &body, None).await.unwrap();
        }
    }
    println!("{interrupted} of 45 formats were interrupted");
    assert!(interrupted > 5);
    bench.assert_nothing_left().await;
}

/// What Docker asks for, of the volume `v`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// With this filesystem.
    Mount(&'static str),
    MountFresh,
    /// Of a volume whose superblock asks for a check.
    MountDirty,
    /// Of a volume that was extended in Cinder.
    MountExtended(&'static str),
    Unmount,
}

impl Call {
    async fn prepare(self, host: &Host) {
        let fs = match self {
            Self::Mount(fs) | Self::MountExtended(fs) => fs,
            _ => "ext4",
        };
        if self == Self::MountFresh {
            return host.node.create("v", json!({})).await.unwrap();
        }
        let id = host.with_bytes("v", json!({ "fs": fs })).await;
        match self {
            Self::MountDirty => make_dirty(host, &id),
            Self::MountExtended(_) => {
                let extend = json!({ "os-extend": { "new_size": 2 } });
                host.cloud.cinder("POST", &format!("/volumes/{id}/action"), extend).await;
                host.cloud.until("v", "available").await;
            }
            Self::Unmount => drop(host.node.mount("v", "c").await.unwrap()),
            _ => {}
        }
    }

    async fn act(self, host: &Host) -> Result<(), String> {
        match self {
            Self::Unmount => host.node.unmount("v", "c").await,
            _ => host.node.mount("v", "c").await.map(drop),
        }
    }
}

/// As after a crash of the host that had it mounted: errors were seen.
fn make_dirty(host: &Host, id: &str) {
    let image = host.cloud.image(id);
    sh(&format!("debugfs -w -R 'set_super_value state 2' {} 2>&1", image.display()));
}

fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

fn pids(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// How a call is answered that waits for a tool that hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Succeeds,
    /// With this in its error.
    Fails(&'static str),
    /// It is told that the operation goes on.
    GoesOn,
}

/// What a hanging tool does, in a shell; `$left` is a file for the ids of those it leaves behind.
const HANGS: &str = "exec sleep 1000";
const STUBBORN: &str =
    "trap '' TERM INT HUP; setsid sleep 1000 & echo $! >>$left; while :; do sleep 1000; done";
const DONE_FIRST: &str = "$real \"$@\"; while :; do sleep 1000; done";
const LEAVES_ONE_BEHIND: &str = "setsid sleep 1000 & echo $! >>$left; exec $real \"$@\"";

async fn a_hanging_tool(tool: &str, call: Call, shell: &str, expected: Answer) {
    let what = format!("{tool}, {call:?}, {shell}");
    let host = Host::new(json!({})).await;
    call.prepare(&host).await;
    let (started, left) = (host.file("started"), host.file("left"));
    // Where the tool can tell, it hangs for this volume only.
    let others = match tool {
        "mount" | "umount" => "case $* in */v) ;; *) exec $real \"$@\" ;; esac",
        _ => "",
    };
    let shell =
        format!("{others}\necho $$ >>{}\nleft={}\n{shell}", started.display(), left.display());
    host.replace(tool, &shell);
    let is_answered = Cell::new(false);
    let asked = async {
        // So long does Docker wait.
        let patience = Duration::from_secs(if call == Call::Unmount { 60 } else { 120 });
        let answer = tokio::time::timeout(patience, call.act(&host)).await;
        is_answered.set(true);
        answer.unwrap_or_else(|_| panic!("{what}: Docker gave up waiting\n{}", host.node.log()))
    };
    let meanwhile = async {
        while !started.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        host.node.get("v").await.unwrap();
        host.node.list().await.unwrap();
        host.node.create("other", json!({ "fs": "btrfs" })).await.unwrap();
        host.node.mount("other", "c").await.unwrap();
        host.node.unmount("other", "c").await.unwrap();
        host.node.remove("other").await.unwrap();
        // The rest happened while it hung.
        assert!(!is_answered.get() || shell.ends_with(LEAVES_ONE_BEHIND), "{what}");
    };
    let (answer, ()) = tokio::join!(asked, meanwhile);
    match (expected, &answer) {
        (Answer::Succeeds, Ok(())) => {}
        (Answer::Fails(says), Err(error)) => assert!(error.contains(says), "{what}: {error}"),
        (Answer::GoesOn, Err(error)) => assert!(error.contains("goes on"), "{what}: {error}"),
        _ => panic!("{what}: {answer:?}"),
    }
    host.mend(tool);
    if expected == Answer::GoesOn {
        // It waits for the first, which fails in the end, and begins anew.
        call.act(&host).await.unwrap();
    }
    if call != Call::Unmount && (answer.is_ok() || expected == Answer::GoesOn) {
        host.node.unmount("v", "c").await.unwrap();
    }
    host.assert_sound("v", call != Call::MountFresh).await;
    host.node.remove("v").await.unwrap();
    host.assert_clean().await;
    assert!(!pids(&started).is_empty(), "{what}: it was never run");
    let alive: Vec<_> = pids(&started).into_iter().filter(|pid| is_alive(pid)).collect();
    for pid in pids(&left).iter().filter(|pid| is_alive(pid)) {
        Command::new("kill").args(["-KILL", pid]).status().unwrap();
    }
    assert!(alive.is_empty(), "{what}: {alive:?} still run");
}

/// A Mount whose client hangs up early: what nobody collected is let go of in the end.
async fn a_mount_that_nobody_collects() {
    let host = Host::new(json!({})).await;
    host.with_bytes("v", json!({})).await;
    let started = host.file("started");
    host.replace("mount", &format!("echo >{}; sleep 1; exec $real \"$@\"", started.display()));
    let client = ask(&host.node.socket, "Mount", &json!({ "Name": "v", "ID": "c" }));
    while !started.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(client);
    host.cloud.until("v", "in-use").await;
    while host.node.mounts().is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    host.mend("mount");
    // Nobody asks again, and nobody says that it is not needed.
    host.assert_sound("v", true).await;
    host.assert_clean().await;
}

/// Tools that end never, or after Docker gave up; all at the same time, each on a host of its own.
#[tokio::test]
async fn a_tool_that_hangs_is_ended_and_docker_is_answered_in_time() {
    use Answer::{Fails, GoesOn, Succeeds};
    let cases = [
        ("mount", Call::Mount("ext4"), HANGS, Fails("took longer than 90 s")),
        ("mount", Call::Mount("btrfs"), STUBBORN, Fails("took longer than 90 s")),
        ("mount", Call::Mount("xfs"), DONE_FIRST, Fails("took longer than 90 s")),
        ("mount", Call::Mount("ext4"), LEAVES_ONE_BEHIND, Succeeds),
        ("umount", Call::Unmount, HANGS, Fails("took longer than 40 s")),
        ("umount", Call::Unmount, STUBBORN, Fails("took longer than 40 s")),
        // It did its work, says the kernel.
        ("umount", Call::Unmount, DONE_FIRST, Succeeds),
        // The data is all there without it.
        ("xfs_growfs", Call::MountExtended("xfs"), HANGS, Succeeds),
        ("resize2fs", Call::MountExtended("ext4"), STUBBORN, Succeeds),
        // These may take longer than Docker waits.
        ("mkfs.ext4", Call::MountFresh, "sleep 113; exit 1", GoesOn),
        ("e2fsck", Call::MountDirty, "sleep 113; exit 8", GoesOn),
    ];
    let hanging = join_all(
        cases.map(|(tool, call, shell, expected)| a_hanging_tool(tool, call, shell, expected)),
    );
    let (hung, ()) = tokio::join!(hanging, a_mount_that_nobody_collects());
    println!("{} tools hung", hung.len());
}

/// How a tool can be there and not run.
#[tokio::test]
async fn a_tool_that_cannot_be_started_is_said_and_nothing_is_lost() {
    let calls = [
        ("mount", Call::Mount("ext4")),
        ("umount", Call::Unmount),
        ("mkfs.ext4", Call::MountFresh),
        ("e2fsck", Call::MountDirty),
        ("xfs_growfs", Call::MountExtended("xfs")),
    ];
    let mut tries = Vec::new();
    for (tool, call) in calls {
        for state in ["removed", "not executable", "half there"] {
            tries.push(async move {
                let what = format!("{tool}, {state}");
                let host = Host::new(json!({})).await;
                call.prepare(&host).await;
                match state {
                    "removed" => host.lose(tool),
                    "not executable" => host.put(tool, b"#!/bin/sh\nexit 0\n", 0o644),
                    _ => host.put(tool, b"#!/no/such/interpreter\n", 0o755),
                }
                let answer = call.act(&host).await;
                match (call, &answer) {
                    (Call::MountExtended(_), Ok(())) => {}
                    (Call::MountExtended(_), _) | (_, Ok(())) => panic!("{what}: {answer:?}"),
                    (_, Err(error)) => {
                        let says = format!("cannot start {tool}");
                        assert!(error.contains(&says) && error.contains("\"v\""), "{error}");
                    }
                }
                // Its package is installed again.
                host.mend(tool);
                if answer.is_ok() {
                    host.node.unmount("v", "c").await.unwrap();
                }
                host.assert_sound("v", call != Call::MountFresh).await;
                host.assert_clean().await;
            });
        }
    }
    println!("{} tools could not be started", in_turns(tries).await);
}

/// A few at a time: each is a daemon and a cloud.
async fn in_turns(tries: Vec<impl Future<Output = ()>>) -> usize {
    stream::iter(tries).buffer_unordered(4).collect::<Vec<_>>().await.len()
}

/// e2fsck(8): what each code must lead to.
#[tokio::test]
async fn every_exit_code_of_e2fsck_leads_where_it_must() {
    let host = Host::new(json!({})).await;
    let id = host.with_bytes("v", json!({})).await;
    make_dirty(&host, &id);
    let before = host.stamp(&id);
    // 4 = errors left, 8 = operational error, 16 = usage, 32 = cancelled, 128 = library; sums.
    for code in [4, 5, 6, 7, 8, 9, 12, 16, 32, 64, 127, 128, 255] {
        host.replace("e2fsck", &format!("echo 'it says why' >&2; exit {code}"));
        let error = host.node.mount("v", "c").await.unwrap_err();
        assert!(error.contains("it says why") && error.contains("e2fsck"), "{code}: {error}");
        let by_hand = error.contains("by hand");
        assert_eq!(by_hand, code < 8, "{code}: {error}");
        host.until_free("v").await;
        assert_eq!(host.stamp(&id), before, "{code}: it was not touched");
    }
    host.replace("e2fsck", "kill -SEGV $$");
    let error = host.node.mount("v", "c").await.unwrap_err();
    assert!(error.contains("signal 11"), "{error}");
    // 1 = errors corrected, 2 = and the host should be booted, for a root filesystem.
    for code in [0, 1, 2, 3] {
        make_dirty(&host, &id);
        let run = host.file(&format!("run-{code}"));
        host.replace("e2fsck", &format!("touch {}; exit {code}", run.display()));
        host.assert_sound("v", true).await;
        assert!(run.exists(), "{code}");
    }
    // The real one.
    make_dirty(&host, &id);
    host.mend("e2fsck");
    host.assert_sound("v", true).await;
    host.assert_clean().await;
}

/// mount(8) and umount(8), which do their work or do not, whatever they then say.
#[tokio::test]
async fn whatever_mount_and_umount_say_the_kernel_is_believed() {
    let host = Host::new(json!({})).await;
    let mut names = Vec::new();
    for code in [1, 2, 4, 8, 16, 32, 64] {
        for done in [false, true] {
            let name = format!("{}-{code}", if done { "done" } else { "not" });
            host.with_bytes(&name, json!({})).await;
            let first = if done { "$real \"$@\";" } else { "" };
            let shell =
                format!("case $* in */{name}) {first} exit {code} ;; esac; exec $real \"$@\"");
            host.replace("mount", &shell);
            let error = host.node.mount(&name, "c").await.unwrap_err();
            assert!(error.contains(&format!("exit {code}")), "{name}: {error}");
            host.until_free(&name).await;
            host.mend("mount");
            host.node.mount(&name, "c").await.unwrap();
            host.replace("umount", &shell);
            let answer = host.node.unmount(&name, "c").await;
            assert_eq!(answer.is_ok(), done, "{name}: {answer:?}");
            if let Err(error) = answer {
                assert!(error.contains(&format!("exit {code}")), "{name}: {error}");
                assert_eq!(host.cloud.status(&name).await, "in-use", "still mounted");
            }
            host.mend("umount");
            names.push(name);
        }
    }
    // Docker repeats no Unmount: what was not done is done in the background.
    for name in &names {
        host.assert_sound(name, true).await;
    }
    println!("{} exit codes of mount and umount", 2 * names.len());
    host.assert_clean().await;
}
