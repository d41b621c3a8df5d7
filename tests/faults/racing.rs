//! Hosts that race for the same few names, while the cloud answers badly and daemons are killed.
//!
//! Each host runs containers as Docker does, several at a time. What was told to Docker must be so, all
//! along: a volume is mounted on one host at a time, as the kernel sees it; what a container wrote is
//! there for the next one, wherever that runs; a volume is formatted once. When the weather is fine
//! again and all containers have ended, nothing is held anywhere.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cinder_docker_driver::sandbox::faults::{Action, Canned, Rule};
use futures_util::future::{join, join_all};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{Cloud, Node, call_at, has_untold};

/// Names at a time. Others follow, for one that is in doubt stays so for 10 minutes.
const NAMES: u64 = 3;
/// Containers at a time on each host.
const CONTAINERS: usize = 3;
/// What is wrong now and then. Not 404: "it is gone" in Cinder's own words is believed (`bench.rs`).
const STATUSES: [u16; 9] = [400, 403, 409, 413, 429, 500, 502, 503, 504];
/// What it happens to; each of all calls as often as these together.
const CALLS: [&str; 16] = [
    "attachment-create",
    "attachment-update",
    "attachment-complete",
    "attachment-delete",
    "os-reserve",
    "os-unreserve",
    "os-initialize_connection",
    "os-attach",
    "os-begin_detaching",
    "os-terminate_connection",
    "os-detach",
    "create-volume",
    "delete-volume",
    "show-volume",
    "list-volumes",
    "authenticate",
];

/// Hosts, for how many seconds they race, and for how many of these for the same names: more with
/// `tests/run --long`.
fn size() -> (usize, u64, u64) {
    if std::env::var_os("CINDER_LONG").is_some() { (3, 240, 12) } else { (2, 20, 4) }
}

/// Numbers that come again with their seed (splitmix64). The variable `CINDER_SEED` asks for others.
struct Dice(u64);

impl Dice {
    fn of(seed: u64, who: usize) -> Self {
        let mut dice = Self(seed ^ (who as u64) << 32);
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    async fn pause(&mut self, from: u64, below: u64) {
        sleep(Duration::from_millis(from + self.below(below - from))).await;
    }
}

/// What is to be seen of a host without its daemon.
struct Host {
    socket: PathBuf,
    mount_point: PathBuf,
    state: PathBuf,
    /// Changes before the daemon is killed.
    life: Cell<u32>,
}

struct World {
    cloud: Cloud,
    hosts: Vec<Host>,
    begun: Instant,
    /// Seconds.
    age: u64,
    /// What a volume (its file) holds: who wrote it, and for which name.
    written: RefCell<BTreeMap<PathBuf, (usize, String, String)>>,
    /// The UUID of its filesystem.
    formatted: RefCell<BTreeMap<PathBuf, [u8; 16]>>,
    counts: RefCell<BTreeMap<&'static str, u32>>,
}

/// What is mounted below a directory: where, and the file behind it.
fn mounted_below(dir: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| Path::new(fields[4]).starts_with(dir))
        .filter_map(|fields| {
            let file = format!("/sys/dev/block/{}/loop/backing_file", fields[2]);
            Some((fields[4].into(), fs::read_to_string(file).ok()?.trim_end().into()))
        })
        .collect()
}

impl World {
    fn count(&self, what: &'static str) {
        *self.counts.borrow_mut().entry(what).or_insert(0) += 1;
    }

    fn counted(&self, what: &str) -> u32 {
        self.counts.borrow().get(what).copied().unwrap_or(0)
    }

    /// The names that are used now.
    fn names(&self) -> impl Iterator<Item = String> + use<> {
        let age = self.begun.elapsed().as_secs() / self.age;
        (0..NAMES).map(move |number| format!("v{age}-{number}"))
    }

    /// As dockerd: a connection that breaks is an error like any other.
    async fn call(&self, host: usize, verb: &'static str, body: Value) -> Result<Value, String> {
        let path = format!("/VolumeDriver.{verb}");
        let answer = call_at(&self.hosts[host].socket, &path, &body.to_string()).await;
        let answer = answer.unwrap_or_else(|| panic!("Docker has given up {verb} {body}"));
        self.count("calls");
        match answer {
            Ok((200, answer)) => {
                self.count(verb);
                Ok(answer)
            }
            Ok((_, answer)) => {
                self.count("refused");
                Err(answer["Err"].as_str().unwrap().to_owned())
            }
            Err(error) => {
                self.count("lost");
                Err(format!("no answer: {error}"))
            }
        }
    }

    /// Waits until the daemon has noted which of its answers arrived; whether it lives on since.
    async fn is_noted(&self, host: usize, life: u32) -> bool {
        let host = &self.hosts[host];
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end && host.life.get() == life {
            if !has_untold(&host.state) {
                return host.life.get() == life;
            }
            sleep(Duration::from_millis(5)).await;
        }
        false
    }

    /// A container reads what the last one wrote, and writes something else.
    fn read_and_write(&self, host: usize, name: &str, content: &Path, is_first: bool) {
        let at = content.parent().unwrap();
        let mut mounts = mounted_below(at);
        let who = format!("host {host}, {name}");
        assert_eq!(mounts.len(), 1, "{who}: mounted, it was told: {mounts:?}");
        let (_, file) = mounts.remove(0);
        assert!(file.exists(), "{who}: the volume was deleted under its container: {file:?}");
        let found = fs::read_to_string(content.join("bytes")).ok();
        let mut written = self.written.borrow_mut();
        let before = written.get(&file);
        assert_eq!(found.as_ref(), before.map(|(_, text, _)| text), "{who}: what {file:?} holds");
        if is_first && before.is_some_and(|(writer, ..)| *writer != host) {
            self.count("moved");
        }
        self.count("writes");
        let text = format!("{} by {who}", self.counted("writes"));
        fs::write(content.join("bytes"), &text).unwrap();

        let mut formatted = self.formatted.borrow_mut();
        let is = uuid_of(&file);
        let was = *formatted.entry(file.clone()).or_insert(is);
        assert_eq!(is, was, "{who}: {file:?} was formatted again");
        written.insert(file, (host, text, name.to_owned()));
    }

    /// A container comes, works, and goes.
    async fn run(
        &self,
        host: usize,
        name: &str,
        id: &str,
        dice: &mut Dice,
    ) -> Result<Value, String> {
        let life = self.hosts[host].life.get();
        let body = json!({ "Name": name, "ID": id });
        let answer = self.call(host, "Mount", body.clone()).await?;
        // Whom the daemon did not live to note it told, it takes for one that was not told.
        let is_sure = self.is_noted(host, life).await;
        if is_sure {
            let content = PathBuf::from(answer["Mountpoint"].as_str().unwrap());
            self.read_and_write(host, name, &content, true);
            dice.pause(0, 250).await;
            self.read_and_write(host, name, &content, false);
        } else {
            self.count("in doubt");
        }
        let end = Instant::now() + Duration::from_secs(90);
        while let Err(error) = self.call(host, "Unmount", body.clone()).await {
            if !is_sure && !error.starts_with("no answer") {
                break;
            }
            assert!(Instant::now() < end, "host {host}, {name}: not unmounted: {error}");
            sleep(Duration::from_millis(100)).await;
        }
        Ok(answer)
    }

    /// What a host's containers do.
    async fn work(&self, host: usize, worker: usize, mut dice: Dice, until: Instant) {
        let id = format!("container-{host}-{worker}");
        while Instant::now() < until {
            let names: Vec<_> = self.names().collect();
            let name = &*names[usize::try_from(dice.below(NAMES)).unwrap()];
            let body = json!({ "Name": name });
            let what = dice.below(20);
            let answer = match what {
                0 => self.call(host, "Remove", body).await,
                1 => self.call(host, "Path", body).await,
                2 | 3 => self.call(host, "Get", body).await,
                4..8 => self.call(host, "Create", json!({ "Name": name, "Opts": {} })).await,
                _ => self.run(host, name, &id, &mut dice).await,
            };
            // Nobody listens while a daemon is started again.
            let is_lost = answer.is_err_and(|error| error.starts_with("no answer"));
            dice.pause(0, if is_lost { 300 } else { 40 }).await;
        }
    }

    /// Something goes wrong with a call now and then.
    async fn bad_weather(&self, mut dice: Dice, until: Instant) {
        while Instant::now() < until {
            dice.pause(30, 300).await;
            if self.cloud.sandbox.faults().rules().len() >= 4 {
                // These calls do not come.
                self.cloud.clear_faults();
            }
            let status = dice.pick(&STATUSES);
            let ms = dice.below(800);
            let action = match dice.below(10) {
                0 | 1 => Action::Answer(Canned::status(status)),
                2 => Action::Answer(Canned::retry_after(dice.pick(&[429, 503]), 1)),
                3 => Action::AnswerAfter(Canned::status(dice.pick(&[500, 502, 504]))),
                4 => Action::DropBefore,
                5 => Action::DropAfter,
                6 => Action::HalfBody,
                7 => {
                    dice.pick(&[Some(()), None]).map_or(Action::NotJson, |()| Action::RevokeTokens)
                }
                8 => Action::Delay(ms),
                _ => Action::DelayAnswer(ms),
            };
            let call = if dice.below(2) == 0 { "*" } else { dice.pick(&CALLS) };
            self.cloud.fail(Rule::on(call, action));
            self.count("faults");
        }
    }

    /// The daemon is killed now and then, in the middle of whatever it does.
    async fn keep(&self, host: usize, mut node: Node, mut dice: Dice, until: Instant) -> Node {
        loop {
            dice.pause(2_000, 6_000).await;
            if Instant::now() >= until {
                return node;
            }
            let life = &self.hosts[host].life;
            life.set(life.get() + 1);
            kill(Pid::from_raw(node.pid().try_into().unwrap()), Signal::SIGKILL).unwrap();
            self.count("kills");
            while !node.has_ended() {
                sleep(Duration::from_millis(2)).await;
            }
            dice.pause(0, 500).await;
            node.run().await;
        }
    }

    /// No volume is mounted on two hosts, and of no name two volumes have data.
    async fn watch(&self) -> ! {
        let mut doubles = BTreeSet::new();
        for look in 0_u32.. {
            let mut seen: BTreeMap<PathBuf, usize> = BTreeMap::new();
            for (number, host) in self.hosts.iter().enumerate() {
                for (at, file) in mounted_below(&host.mount_point) {
                    let other = seen.insert(file, number);
                    assert!(other.is_none_or(|other| other == number), "{at:?} on {other:?} too");
                }
            }
            self.count("looks");
            // A volume's file may outlive the volume for a moment.
            if look % 50 == 0 {
                let now = self.with_data();
                let still: Vec<_> = now.intersection(&doubles).collect();
                assert_eq!(
                    still,
                    Vec::<&BTreeSet<_>>::new(),
                    "several volumes of a name have data"
                );
                doubles = now;
            }
            sleep(Duration::from_millis(10)).await;
        }
        unreachable!()
    }

    /// Of each name the volumes that have data, where these are several.
    fn with_data(&self) -> BTreeSet<BTreeSet<PathBuf>> {
        let mut of: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
        for (file, (_, _, name)) in &*self.written.borrow() {
            if file.exists() {
                of.entry(name.clone()).or_default().insert(file.clone());
            }
        }
        of.into_values().filter(|found| found.len() > 1).collect()
    }

    /// What is in doubt is left alone for 10 minutes: these are let pass.
    async fn settle(&self, nodes: &mut [Node]) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let busy: Vec<_> = self
                .cloud
                .volumes()
                .await
                .into_iter()
                .filter(|v| v["status"] != "available")
                .collect();
            if busy.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "left in Cinder: {busy:?}");
            let before = std::time::SystemTime::now() - Duration::from_secs(601);
            let before = humantime::format_rfc3339_micros(before).to_string();
            for volume in &busy {
                let passed = json!({ "updated_at": before.trim_end_matches('Z') });
                self.cloud.force(volume["id"].as_str().unwrap(), passed);
            }
            // The next look is at the next start, or some time away.
            for node in &mut *nodes {
                node.kill();
                node.run().await;
            }
            sleep(Duration::from_secs(1)).await;
        }
        for node in nodes {
            node.until_clean().await;
        }
    }

    /// All volumes have what was written last, on each host; then all is removed.
    async fn clear(&self, nodes: &[Node]) {
        let all = self.cloud.volumes().await;
        let mut of: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for volume in &all {
            let text = |key: &str| volume[key].as_str().unwrap().to_owned();
            of.entry(text("name")).or_default().push(text("id"));
        }
        let all: Vec<_> = of.iter().collect();
        // Not all at once: it is one machine.
        for some in all.chunks(6) {
            join_all(some.iter().map(|(name, ids)| self.clear_one(nodes, name, ids))).await;
        }
        let end = Instant::now() + Duration::from_secs(20);
        while !self.cloud.volumes().await.is_empty() {
            assert!(Instant::now() < end, "{:?}", self.cloud.volumes().await);
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn clear_one(&self, nodes: &[Node], name: &str, ids: &[String]) {
        // Whoever made more than one was killed before it could look for rivals.
        let has_data = |id: &&String| self.written.borrow().contains_key(&self.cloud.image(id));
        let (used, blank): (Vec<_>, Vec<_>) = ids.iter().partition(has_data);
        assert!(used.len() <= 1, "{name}: {used:?} have data");
        for id in blank.iter().skip(usize::from(used.is_empty())) {
            self.count("blank twins");
            self.cloud.cinder("DELETE", &format!("/volumes/{id}"), Value::Null).await;
        }
        let is_there = |id: &str, all: &[Value]| all.iter().any(|volume| volume["id"] == id);
        while {
            let all = self.cloud.volumes().await;
            ids.iter().filter(|id| is_there(id, &all)).count() > 1
        } {
            sleep(Duration::from_millis(20)).await;
        }
        let mut waiting: Vec<usize> = (0..nodes.len()).collect();
        while !waiting.is_empty() {
            let before = waiting.len();
            let mut refused = Vec::new();
            for host in waiting {
                match nodes[host].mount(name, "last").await {
                    Ok(content) => {
                        self.read_and_write(host, name, &content, true);
                        nodes[host].unmount(name, "last").await.unwrap();
                    }
                    // Killed in the middle: only that host knows that nothing else was on it.
                    Err(error) if error.contains("another host began to format it") => {
                        self.count("half formatted");
                        refused.push(host);
                    }
                    Err(error) => panic!("host {host}: {error}"),
                }
            }
            assert!(refused.len() < before, "{name}: no host knows who began to format it");
            waiting = refused;
        }
        nodes[0].remove(name).await.unwrap();
    }
}

/// Of the ext4 in a file. Read past the page cache's keeper, the kernel: it is the same cache.
fn uuid_of(file: &Path) -> [u8; 16] {
    let mut uuid = [0; 16];
    fs::File::open(file).unwrap().read_exact_at(&mut uuid, 1024 + 0x68).unwrap();
    uuid
}

async fn race(flow: &str, seed: u64) {
    let asked = std::env::var("CINDER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = asked.unwrap_or(seed);
    let (number, seconds, age) = size();
    println!("{number} hosts, {seconds} s, {flow}, CINDER_SEED={seed}");
    let cloud = Cloud::start().await;
    let mut nodes = Vec::new();
    for host in 0..number {
        let uuid = format!("aaaaaaaa-0000-4000-8000-00000000000{host}");
        let config = json!({ "HostUUID": uuid, "AttachFlow": flow });
        nodes.push(Node::start_with(&cloud, config).await);
    }
    let host = |node: &Node| Host {
        socket: node.socket.clone(),
        mount_point: node.mount_point(),
        state: node.state_dir(),
        life: Cell::new(0),
    };
    let world = World {
        hosts: nodes.iter().map(host).collect(),
        begun: Instant::now(),
        age,
        cloud,
        written: RefCell::default(),
        formatted: RefCell::default(),
        counts: RefCell::default(),
    };
    let until = Instant::now() + Duration::from_secs(seconds);
    let work = (0..number).flat_map(|host| (0..CONTAINERS).map(move |worker| (host, worker)));
    let work = work.map(|(host, worker)| {
        let dice = Dice::of(seed, 100 + host * CONTAINERS + worker);
        world.work(host, worker, dice, until)
    });
    let keep = nodes.into_iter().enumerate();
    let keep = keep.map(|(host, node)| world.keep(host, node, Dice::of(seed, host + 1), until));
    let storm = join(world.bad_weather(Dice::of(seed, 99), until), join_all(work));
    let mut nodes = tokio::select! {
        never = world.watch() => never,
        (_, nodes) = join(storm, join_all(keep)) => nodes,
    };
    world.cloud.clear_faults();
    world.settle(&mut nodes).await;
    world.clear(&nodes).await;
    for node in &nodes {
        node.until_clean().await;
        node.assert_clean(&world.cloud);
        for left in ["volumes", "creations"] {
            let found = fs::read_dir(node.state_dir().join(left)).unwrap().flatten();
            let mut found = found.map(|entry| entry.path());
            let is_left = |path: &PathBuf| {
                left == "creations" || path.extension().is_none_or(|e| e != "json")
            };
            assert_eq!(found.find(is_left), None);
        }
    }
    let attachments = world.cloud.cinder("GET", "/attachments/detail", Value::Null).await;
    assert_eq!(attachments["attachments"], json!([]));
    println!("{:?}, leaks 0", world.counts.borrow());
    for (what, least) in [("writes", 40), ("moved", 8), ("faults", 60), ("kills", 4)] {
        assert!(world.counted(what) >= least, "{what}: {:?}", world.counts.borrow());
    }
}

#[tokio::test]
async fn hosts_race_by_the_attachments_flow() {
    race("attachments", 1).await;
}

#[tokio::test]
async fn hosts_race_by_the_actions_flow() {
    race("actions", 2).await;
}
