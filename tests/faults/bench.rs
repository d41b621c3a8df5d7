//! One host and one cloud, on which an operation meets a fault; and everything that must hold
//! afterwards.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cinder_docker_driver::sandbox::Behaviour;
use cinder_docker_driver::sandbox::faults::{Action, Rule};
use serde_json::{Value, json};

use crate::iscsi::Initiator;
use crate::support::gate::{self, Gate};
use crate::support::{Cloud, Node, loops_of, sh};

/// What is written before, and must be there after.
const BYTES: &str = "written before the fault";
/// How long the driver waits for the answer of a call with an effect.
const CLIENT: Duration = Duration::from_secs(90);
/// So long after its time an effect that comes late is there.
const LATE: Duration = Duration::from_secs(1);

/// The column in which Cinder says in its own words that something is gone, which is there.
pub const GONE: &str = "404";
/// The calls after which that is believed, for nothing else could ever prove it.
const PROOFS: [&str; 4] =
    ["show-volume", "attachment-delete", "os-terminate_connection", "os-unreserve"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    /// Of a volume without a filesystem.
    MountFresh,
    MountFormatted,
    /// Of a volume that Cinder is still making.
    MountCreating,
    /// Of a volume that was extended in Cinder.
    MountExtended,
    /// For a second container.
    MountSecond,
    Unmount,
    /// Of one of two containers.
    UnmountFirst,
    Remove,
    /// Of a volume that nobody has.
    ResizeFree,
    /// Of a volume that a container uses.
    ResizeMounted,
    /// Of a volume that a container uses: its filesystem is frozen meanwhile.
    Snapshot,
}

impl Operation {
    pub fn is_mount(self) -> bool {
        !matches!(
            self,
            Self::Create | Self::Unmount | Self::UnmountFirst | Self::Remove | Self::ResizeFree
        )
    }

    /// Whether the volume has 2 GiB afterwards.
    fn grows(self) -> bool {
        matches!(self, Self::MountExtended | Self::ResizeFree | Self::ResizeMounted)
    }

    /// Whether the volume has [`BYTES`] before the fault.
    pub fn has_bytes(self) -> bool {
        !matches!(self, Self::Create | Self::MountFresh | Self::MountCreating | Self::Remove)
    }
}

/// What goes wrong, once, at the nth of its kind.
#[derive(Debug, Clone)]
pub enum Fault {
    /// At an effect, in the daemon's own gate (`src/effects.rs`).
    Gate(&'static str),
    /// With a call, in the cloud.
    Cloud(&'static str, Action),
    /// With the nth call of one kind, in the cloud.
    Call(&'static str, Action, String),
    /// The token ends at a call, and Keystone does this from then on when it is asked for another.
    Renewal(&'static str, Action),
    /// With a process: what a shell does in place of the tool `$real`.
    Tool(&'static str, &'static str),
}

impl Fault {
    /// The heading of its column.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gate(name)
            | Self::Cloud(name, _)
            | Self::Call(name, ..)
            | Self::Renewal(name, _)
            | Self::Tool(name, _) => name,
        }
    }

    /// When the effect of a call happens that the driver did not wait for.
    fn late(&self) -> Option<Duration> {
        match self {
            Self::Cloud(_, action) | Self::Call(_, action, _) => match action {
                Action::AnswerBefore(_, ms) => Some(Duration::from_millis(*ms)),
                Action::Delay(ms) if Duration::from_millis(*ms) < 2 * CLIENT => {
                    Some(Duration::from_millis(*ms))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn kills(&self) -> bool {
        self.name().starts_with("kill-")
    }
}

/// The tools that the daemon runs, each behind a script that can do something else.
fn wrap_tools(faults: &Path) {
    let directory = faults.join("tools");
    fs::create_dir(&directory).unwrap();
    for tool in [
        "mount",
        "umount",
        "mkfs.ext4",
        "mkfs.xfs",
        "mkfs.btrfs",
        "xfs_growfs",
        "e2fsck",
        "resize2fs",
    ] {
        let faults = faults.display();
        let script = format!(
            "#!/bin/sh\n\
             PATH=/usr/sbin:/usr/bin:/sbin:/bin\n\
             real=$(command -v {tool})\n\
             if [ -e {faults}/tool-plan ]; then\n\
             \techo \"{tool} $*\" >>{faults}/tool-log\n\
             \t[ $(wc -l <{faults}/tool-log) -ne $(cat {faults}/tool-plan) ] || . {faults}/tool-fault\n\
             fi\n\
             exec $real \"$@\"\n"
        );
        let file = directory.join(tool);
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A host, a cloud, and what belongs to others and must stay as it is.
pub struct Bench {
    pub cloud: Cloud,
    pub node: Node,
    pub gate: Gate,
    foreign: Vec<Value>,
    /// Where volumes come by iSCSI.
    pub initiator: Option<Initiator>,
    /// All that the fault of the last case could have happened to.
    pub met: Vec<String>,
}

/// How volumes come to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    LoopDevices,
    /// From tgtd, by the kernel's initiator.
    Iscsi,
}

impl Bench {
    pub async fn new(more: Value) -> Self {
        Self::on(Storage::LoopDevices, more).await
    }

    pub async fn on(storage: Storage, more: Value) -> Self {
        let (cloud, initiator) = match storage {
            Storage::LoopDevices => (Cloud::start().await, None),
            Storage::Iscsi => {
                let (cloud, initiator) = Initiator::start().await;
                (cloud, Some(initiator))
            }
        };
        // Somebody else's: one in use by another host, one free.
        cloud.create("theirs-free", json!({})).await;
        let used = cloud.create("theirs-used", json!({})).await;
        let path = format!("/volumes/{used}/action");
        cloud.cinder("POST", &path, json!({ "os-reserve": {} })).await;
        let attach = json!({ "os-attach": {
            "instance_uuid": "11111111-2222-3333-4444-555555555555", "mountpoint": "/dev/vdb" } });
        cloud.cinder("POST", &path, attach).await;
        let mut node = Node::prepare(cloud.sandbox.config(), more);
        let gate = Gate::of(&mut node);
        wrap_tools(gate.path());
        node.run().await;
        let mut bench = Self { cloud, node, gate, foreign: Vec::new(), initiator, met: Vec::new() };
        bench.foreign = bench.theirs().await;
        assert_eq!(bench.foreign.len(), 2);
        bench
    }

    async fn theirs(&self) -> Vec<Value> {
        let mut all = self.cloud.volumes().await;
        all.retain(|volume| volume["name"].as_str().unwrap().starts_with("theirs"));
        all
    }

    fn arm(&self, fault: &Fault, nth: u32) {
        match fault {
            Fault::Gate(what) => self.gate.plan(what, usize::try_from(nth).unwrap()),
            Fault::Cloud(_, action) => {
                self.cloud.forget_calls();
                self.cloud.fail(Rule::on("*", action.clone()).from_nth(nth));
            }
            Fault::Renewal(_, action) => {
                self.cloud.forget_calls();
                self.cloud.fail(Rule::on("*", Action::RevokeTokens).from_nth(nth));
                self.cloud.fail(Rule::on("authenticate", action.clone()).forever());
            }
            Fault::Call(_, action, call) => {
                self.cloud.forget_calls();
                self.cloud.fail(Rule::on(call, action.clone()).from_nth(nth));
            }
            Fault::Tool(_, shell) => {
                fs::write(self.gate.file("tool-fault"), shell).unwrap();
                fs::write(self.gate.file("tool-plan"), nth.to_string()).unwrap();
            }
        }
    }

    /// What there was since the fault was armed that it could have happened to.
    fn disarm(&self, fault: &Fault) -> Vec<String> {
        let take = |name: &str| {
            let text = fs::read_to_string(self.gate.file(name)).unwrap_or_default();
            fs::remove_file(self.gate.file(name)).ok();
            text
        };
        match fault {
            Fault::Gate(_) => gate::begun(&self.gate.end()).map(str::to_owned).collect(),
            Fault::Cloud(..) | Fault::Renewal(..) => {
                self.cloud.clear_faults();
                self.cloud.calls()
            }
            Fault::Call(_, _, kind) => {
                self.cloud.clear_faults();
                self.cloud.calls().into_iter().filter(|call| call == kind).collect()
            }
            Fault::Tool(..) => {
                take("tool-plan");
                take("tool-log").lines().map(str::to_owned).collect()
            }
        }
    }

    /// As dockerd: a connection that breaks is an error like any other.
    async fn call(&self, call: &str, body: Value) -> Result<(), String> {
        let path = match call.starts_with('/') {
            true => call.to_owned(),
            false => format!("/VolumeDriver.{call}"),
        };
        let answer = self.node.try_call(&path, &body.to_string()).await;
        match answer {
            Ok((200, _)) => Ok(()),
            Ok((_, answer)) => Err(answer["Err"].as_str().unwrap().to_owned()),
            Err(error) => Err(format!("no answer: {error}")),
        }
    }

    /// A call that meets a fault; the daemon is started again if it dies of it.
    pub async fn call_with(
        &mut self,
        call: &str,
        body: &Value,
        fault: Option<&(Fault, u32)>,
    ) -> Result<(), String> {
        match fault {
            Some((fault, nth)) => self.meet(call, body, fault, *nth).await.0,
            None => self.call(call, body.clone()).await,
        }
    }

    /// What a call answers that meets a fault, whether the daemon died of it (it runs again then),
    /// and what the fault happened to.
    pub async fn meet(
        &mut self,
        call: &str,
        body: &Value,
        fault: &Fault,
        nth: u32,
    ) -> (Result<(), String>, bool, Option<String>) {
        self.arm(fault, nth);
        let answer = self.call(call, body.clone()).await;
        let died = self.has_died(fault, nth, &answer).await;
        self.met = self.disarm(fault);
        let met = self.met.get(nth as usize - 1).cloned();
        if died {
            self.node.run().await;
        }
        (answer, died, met)
    }

    /// A call after which nothing is in doubt any more; 10 minutes pass if need be, and whether they
    /// did.
    pub async fn settled_call(
        &mut self,
        call: &str,
        body: &Value,
        name: &str,
    ) -> (Result<(), String>, bool) {
        match self.call(call, body.clone()).await {
            Err(error) if error.contains("left alone until nothing has changed for 10 min") => {
                self.settle_doubt(name).await;
                (self.call(call, body.clone()).await, true)
            }
            answer => (answer, false),
        }
    }

    /// The longest that a call was waited for.
    pub fn longest_answer(&self) -> Duration {
        self.node.longest_answer()
    }

    /// The calls that an operation sends when nothing goes wrong.
    pub async fn calls_of(&mut self, operation: Operation) -> Vec<String> {
        let name = format!("{operation:?}-well").to_lowercase();
        self.prepare(operation, &name).await;
        self.cloud.forget_calls();
        let (call, body) = request(operation, &name);
        self.call(call, body).await.unwrap();
        self.cloud.calls()
    }

    pub async fn restart(&mut self) {
        self.node.kill();
        self.node.run().await;
    }

    pub async fn exists(&self, name: &str) -> bool {
        self.node.get(name).await.is_ok()
    }

    /// What containers get of a mounted volume.
    pub fn content(&self, name: &str) -> PathBuf {
        self.node.mount_point().join(name).join("volume_content")
    }

    /// Asserts that neither this host nor the cloud has anything but what is others'.
    pub async fn assert_nothing_left(&self) {
        self.node.until_clean().await;
        self.node.assert_clean(&self.cloud);
        if let Some(initiator) = &self.initiator {
            initiator.assert_as_before();
        }
        self.until_no_creations().await;
        assert_eq!(self.cloud.volumes().await, self.foreign);
    }

    /// Whether all cases of an operation have one volume, which each leaves as it was: making one
    /// takes longest where volumes come by iSCSI.
    fn is_shared(&self, operation: Operation) -> bool {
        let keeps = operation.has_bytes() && !operation.grows() && operation != Operation::Snapshot;
        keeps && self.initiator.is_some()
    }

    async fn prepare(&self, operation: Operation, name: &str) {
        let node = &self.node;
        let is_there = self.is_shared(operation) && self.exists(name).await;
        match operation {
            _ if is_there => {}
            Operation::Create => return,
            Operation::MountCreating => {
                let slow = Behaviour { creating_ms: 300, ..Behaviour::default() };
                self.cloud.sandbox.set_behaviour(slow);
                let metadata = json!({ "docker.format": "unformatted" });
                let volume = json!({ "name": name, "size": 1, "metadata": metadata });
                self.cloud.cinder("POST", "/volumes", json!({ "volume": volume })).await;
                self.cloud.sandbox.set_behaviour(Behaviour::default());
                return;
            }
            // xfs grows without a capability that test machines may lack.
            _ if operation.grows() => node.create(name, json!({ "fs": "xfs" })).await.unwrap(),
            _ => node.create(name, json!({})).await.unwrap(),
        }
        if !operation.has_bytes() {
            return;
        }
        if !is_there {
            let path = node.mount(name, "before").await.unwrap();
            fs::write(path.join("bytes"), BYTES).unwrap();
            node.unmount(name, "before").await.unwrap();
        }
        match operation {
            Operation::MountExtended => {
                let id = self.cloud.volume(name).await["id"].as_str().unwrap().to_owned();
                let extend = json!({ "os-extend": { "new_size": 2 } });
                self.cloud.cinder("POST", &format!("/volumes/{id}/action"), extend).await;
                self.cloud.until(name, "available").await;
            }
            Operation::MountSecond => drop(node.mount(name, "first").await.unwrap()),
            Operation::Unmount | Operation::ResizeMounted | Operation::Snapshot => {
                drop(node.mount(name, "c").await.unwrap());
            }
            Operation::UnmountFirst => {
                node.mount(name, "c").await.unwrap();
                node.mount(name, "first").await.unwrap();
            }
            _ => {}
        }
        // The notes of what the engine was told are effects too, and not this operation's.
        self.node.until_told().await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }

    /// Calls again what did not succeed, as Docker (or the person before it) does, and brings the
    /// volume to the state in which the operation leaves it. Whether that took 10 minutes.
    async fn complete(
        &mut self,
        operation: Operation,
        name: &str,
        first: &Result<(), String>,
    ) -> bool {
        match operation {
            Operation::Remove => {
                if self.node.get(name).await.is_ok() {
                    self.node.remove(name).await.unwrap();
                }
            }
            // Docker repeats no Unmount. What it was not told of stays counted, and the next
            // container that comes and goes does not change that.
            Operation::Unmount | Operation::UnmountFirst => {
                if first.is_err()
                    && self.users(name).await > usize::from(operation != Operation::Unmount)
                {
                    self.node.unmount(name, "c").await.unwrap();
                }
            }
            // A filesystem that did not grow is still all there; it grows at the next Mount.
            Operation::MountExtended if first.is_ok() && !self.has_grown(name) => {
                self.node.unmount(name, "c").await.unwrap();
                self.node.mount(name, "c").await.unwrap();
            }
            _ if first.is_ok() => {}
            // The first may have taken it all the same.
            Operation::Snapshot => {
                let (call, body) = request(operation, name);
                if let Err(error) = self.call(call, body).await {
                    assert!(error.contains("has a snapshot \"snap\" already"), "{error}");
                }
            }
            _ => {
                let (call, body) = request(operation, name);
                let (again, doubt) = self.settled_call(call, &body, name).await;
                again.unwrap_or_else(|error| panic!("again: {error}"));
                return doubt;
            }
        }
        false
    }

    pub async fn users(&self, name: &str) -> usize {
        let users = self.node.get(name).await.map(|volume| volume["Status"]["users_here"].clone());
        users.ok().and_then(|users| users.as_u64()).unwrap_or(0).try_into().unwrap()
    }

    /// Asserts that the volume is mounted exactly once, attached exactly once, and has its bytes.
    async fn assert_mounted(&self, operation: Operation, name: &str) {
        let at = self.node.mount_point().join(name);
        assert_eq!(self.node.mounts(), [at.display().to_string()]);
        match &self.initiator {
            None => assert_eq!(loops_of(self.cloud.dir()).len(), 1, "loop devices"),
            Some(initiator) => initiator.assert_one_volume(),
        }
        let volume = self.cloud.volume(name).await;
        assert_eq!(volume["status"], "in-use");
        assert_eq!(volume["attachments"].as_array().unwrap().len(), 1, "{volume}");
        self.assert_thawed(&at).await;
        let content = at.join("volume_content");
        if operation.has_bytes() {
            assert_eq!(fs::read_to_string(content.join("bytes")).unwrap(), BYTES);
        }
        fs::write(content.join("more"), "written after it").unwrap();
        if operation.grows() {
            assert!(self.has_grown(name), "the filesystem is smaller than its volume");
        }
    }

    /// Asserts that nothing has to wait that writes to it, and that the journal knows it.
    async fn assert_thawed(&self, at: &Path) {
        let end = Instant::now() + Duration::from_secs(20);
        let state = self.node.state_dir().join("volumes");
        let is_marked = |name: String| {
            fs::read_to_string(state.join(name)).is_ok_and(|text| text.contains("\"frozen\""))
        };
        while self.journaled("volumes").into_iter().any(is_marked) {
            assert!(Instant::now() < end, "it stays frozen\n{}", self.node.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let thawed = std::process::Command::new("fsfreeze").arg("-u").arg(at).output().unwrap();
        assert!(!thawed.status.success(), "it was frozen\n{}", self.node.log());
    }

    /// Whether the filesystem has most of 2 GiB.
    fn has_grown(&self, name: &str) -> bool {
        let at = self.node.mount_point().join(name);
        let size = sh(&format!("stat -f -c '%b %S' {}", at.display()));
        let (blocks, size) = size.trim().split_once(' ').unwrap();
        blocks.parse::<u64>().unwrap() * size.parse::<u64>().unwrap() > 3 << 29
    }

    /// Asserts that nothing is held, here or in the cloud, and that no byte is missing.
    async fn assert_free(&self, operation: Operation, name: &str) {
        self.node.until_clean().await;
        self.node.assert_clean(&self.cloud);
        if let Some(initiator) = &self.initiator {
            initiator.assert_as_before();
        }
        self.until_no_creations().await;
        self.until_no_unfinished().await;
        assert_eq!(self.theirs().await, self.foreign, "others' volumes");

        let mut volumes = self.cloud.volumes().await;
        volumes.retain(|volume| volume["name"] == name);
        if operation == Operation::Remove {
            assert_eq!(volumes, Vec::<Value>::new());
            return;
        }
        assert_eq!(volumes.len(), 1, "{volumes:?}");
        assert_eq!(volumes[0]["status"], "available", "{}", volumes[0]);
        assert_eq!(volumes[0]["attachments"], json!([]));
        let id = volumes[0]["id"].as_str().unwrap();
        let attachments = self.cloud.cinder("GET", "/attachments/detail", Value::Null).await;
        let ours = attachments["attachments"].as_array().unwrap().iter();
        assert_eq!(ours.filter(|attachment| attachment["volume_id"] == id).count(), 0);
        if operation.has_bytes() || operation.is_mount() {
            let image = self.cloud.image(id);
            assert!(is_intact(&image, operation.has_bytes()), "the filesystem or its bytes");
        }
    }

    fn journaled(&self, directory: &str) -> Vec<String> {
        let read = fs::read_dir(self.node.state_dir().join(directory)).unwrap();
        read.flatten().map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    /// What is just being written is no leftover, what stays is.
    async fn until_no_unfinished(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        let unfinished = |name: &String| !name.ends_with(".json");
        while let Some(name) = self.journaled("volumes").into_iter().find(unfinished) {
            assert!(Instant::now() < end, "{name}\n{}", self.node.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_no_creations(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.journaled("creations").is_empty() {
            let left = self.journaled("creations");
            assert!(Instant::now() < end, "creations: {left:?}\n{}", self.node.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// After a false "it is gone" from Cinder: what nobody remembers then is still there, and the
    /// operator's way out leads there.
    async fn release_by_hand(&self, name: &str, met: Option<&str>) {
        self.node.until_clean().await;
        let mut volumes = self.cloud.volumes().await;
        volumes.retain(|volume| volume["name"] == name && volume["status"] != "available");
        let Some(volume) = volumes.pop() else { return };
        assert!(met.is_some_and(|met| PROOFS.contains(&met)), "{met:?} is no proof: {volume}");
        self.cloud.let_ten_minutes_pass(name).await;
        let id = volume["id"].as_str().unwrap();
        let done = self.node.cli(&["release", name, "--id", id]).await;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    async fn discard(&self, name: &str) {
        if name.starts_with("snapshot") {
            let of = self.cloud.volume(name).await["id"].as_str().unwrap().to_owned();
            let path = format!("/snapshots/detail?volume_id={of}");
            let gone = async {
                loop {
                    let found = self.cloud.cinder("GET", &path, Value::Null).await;
                    let found = found["snapshots"].as_array().unwrap().clone();
                    if found.is_empty() {
                        break;
                    }
                    for one in found {
                        let path = format!("/snapshots/{}", one["id"].as_str().unwrap());
                        self.cloud.cinder("DELETE", &path, Value::Null).await;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
        }
        for volume in self.cloud.volumes().await {
            if volume["name"] == name {
                let path = format!("/volumes/{}", volume["id"].as_str().unwrap());
                self.cloud.cinder("DELETE", &path, Value::Null).await;
            }
        }
    }

    /// Whether the fault ended the daemon. It may also die of something that it does after its
    /// answer.
    async fn has_died(&mut self, fault: &Fault, nth: u32, answer: &Result<(), String>) -> bool {
        let lost = answer.as_ref().is_err_and(|error| error.starts_with("no answer"));
        let begun = Instant::now();
        let mut quiet = begun;
        while !self.node.has_ended() {
            let doomed = lost || self.is_doomed(fault, nth);
            if doomed || self.node.has_untold() {
                quiet = Instant::now();
            }
            let patience = Duration::from_millis(if fault.kills() { 50 } else { 0 });
            if quiet.elapsed() >= patience || begun.elapsed() > Duration::from_secs(20) {
                assert!(!doomed, "it met what kills it and lives: {answer:?}");
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        true
    }

    /// Whether the gate has noted an effect that is the daemon's last.
    fn is_doomed(&self, fault: &Fault, nth: u32) -> bool {
        let met = |line: &str| match line.split_once(' ') {
            Some((number, what)) if number == nth.to_string() => {
                what != "end" && (fault.name() != "kill-midway" || what.starts_with("process"))
            }
            _ => false,
        };
        fault.kills() && self.gate.log().lines().any(met)
    }

    /// What a reserve left of which nobody knows whose it is, is left alone for 10 minutes: these
    /// are let pass here.
    async fn settle_doubt(&mut self, name: &str) {
        self.cloud.let_ten_minutes_pass(name).await;
        // The next look is at the next start, or some seconds away.
        self.restart().await;
        self.cloud.until(name, "available").await;
    }

    async fn is_reserved(&self, name: &str) -> bool {
        self.cloud.volumes().await.iter().any(|volume| {
            volume["name"] == name
                && (volume["status"] == "reserved" || volume["status"] == "attaching")
        })
    }

    /// One case; what the fault happened to, if there was an nth, and how it ended.
    pub async fn case(
        &mut self,
        operation: Operation,
        fault: &Fault,
        nth: u32,
    ) -> (Option<String>, &'static str) {
        let case = format!("{operation:?}-{}-{nth}", fault.name().replace([' ', ','], "-"));
        let name = match self.is_shared(operation) {
            true => format!("{operation:?}"),
            false => case.to_lowercase(),
        };
        self.prepare(operation, &name).await;
        let (call, body) = request(operation, &name);
        let begun = Instant::now();
        let (first, died, met) = self.meet(call, &body, fault, nth).await;
        let doubt = self.complete(operation, &name, &first).await;
        let mut outcome = match (&first, died) {
            _ if doubt => "after 10 minutes",
            (_, true) => "killed, recovered",
            (Ok(()), _) => "succeeded",
            (Err(error), _) => {
                assert!(error.contains(&name), "an error names its volume: {error}");
                "error, then done"
            }
        };
        if operation == Operation::ResizeFree {
            self.node.mount(&name, "c").await.unwrap();
            self.assert_mounted(operation, &name).await;
            self.node.unmount(&name, "c").await.unwrap();
        }
        if operation.is_mount() || operation == Operation::UnmountFirst {
            self.assert_mounted(operation, &name).await;
            if operation.is_mount() {
                self.node.unmount(&name, "c").await.unwrap();
            }
            if matches!(operation, Operation::MountSecond | Operation::UnmountFirst) {
                self.assert_mounted(operation, &name).await;
                self.node.unmount(&name, "first").await.unwrap();
            }
        }
        if fault.name() == GONE {
            self.release_by_hand(&name, met.as_deref()).await;
        }
        if let (Some(call), Some(late)) = (&met, fault.late()) {
            tokio::time::sleep((late + LATE).saturating_sub(begun.elapsed())).await;
            if self.is_reserved(&name).await {
                self.settle_doubt(&name).await;
                outcome = "after 10 minutes";
            } else if call.contains("os-initialize_connection") {
                // Cinder exports whatever it is asked for, reserved or not, and nothing shows it: it
                // goes with the volume's next Unmount.
                self.node.mount(&name, "next").await.unwrap();
                self.node.unmount(&name, "next").await.unwrap();
            }
        }
        self.assert_free(operation, &name).await;
        if !self.is_shared(operation) {
            self.discard(&name).await;
        }
        (met, outcome)
    }
}

/// What Docker sends for an operation.
fn request(operation: Operation, name: &str) -> (&'static str, Value) {
    match operation {
        Operation::Create => ("Create", json!({ "Name": name, "Opts": {} })),
        Operation::Remove => ("Remove", json!({ "Name": name })),
        Operation::Unmount | Operation::UnmountFirst => {
            ("Unmount", json!({ "Name": name, "ID": "c" }))
        }
        Operation::ResizeFree | Operation::ResizeMounted => {
            ("/Operator.Resize", json!({ "Name": name, "Size": "2" }))
        }
        Operation::Snapshot => ("/Operator.Snapshot", json!({ "Name": name, "Snapshot": "snap" })),
        _ => ("Mount", json!({ "Name": name, "ID": "c" })),
    }
}

/// Whether an image holds a sound filesystem with what was written; looks at a copy.
fn is_intact(image: &Path, has_bytes: bool) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let (copy, at) = (dir.path().join("copy"), dir.path().join("at"));
    fs::create_dir(&at).unwrap();
    let bytes = if has_bytes { "grep -q before volume_content/bytes &&" } else { "" };
    let more = if has_bytes { "true" } else { "test -s volume_content/more" };
    let (copy, at, image) = (copy.display(), at.display(), image.display());
    std::process::Command::new("sh")
        .args(["-c", &format!(
            "cp --sparse=always {image} {copy} && \
             {{ blkid -p -s TYPE {copy} | grep -q xfs || fsck.ext4 -fn {copy} >/dev/null 2>&1; }} && \
             mount -o loop,ro {copy} {at} && \
             {{ (cd {at} && {bytes} {more}); found=$?; umount {at}; exit $found; }}"
        )])
        .status()
        .unwrap()
        .success()
}
