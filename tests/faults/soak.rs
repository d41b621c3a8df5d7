//! Containers that come and go for a while, many at once; nothing grows, and idle is idle.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Cloud, Node};

/// How long, in seconds; the variable `CINDER_SOAK_SECONDS` asks for more.
const SECONDS: u64 = 60;
/// Containers at a time.
const CONTAINERS: usize = 6;
/// How long the daemon is watched doing nothing.
const IDLE: Duration = Duration::from_secs(5);

/// What a daemon takes of its host.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// Of its own, in KiB.
    memory: u64,
    descriptors: usize,
    threads: usize,
    /// Clock ticks.
    cpu: u64,
    log: usize,
}

impl Taken {
    fn by(node: &Node) -> Self {
        let proc = format!("/proc/{}", node.pid());
        let read = |file: &str| fs::read_to_string(format!("{proc}/{file}")).unwrap();
        let count = |directory: &str| fs::read_dir(format!("{proc}/{directory}")).unwrap().count();
        let memory = read("smaps_rollup");
        let memory = memory.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        let stat = read("stat");
        // Behind the name, which may hold anything; 14 and 15 of all are the times.
        let times = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
        Self {
            memory: memory.trim().trim_end_matches(" kB").parse().unwrap(),
            descriptors: count("fd"),
            threads: count("task"),
            cpu: times.map(|ticks| ticks.parse::<u64>().unwrap()).sum(),
            log: node.log().len(),
        }
    }
}

/// One after another: each container finds what the one before it wrote.
async fn containers(node: &Node, index: usize, until: Instant) -> BTreeMap<&'static str, u32> {
    let name = format!("soak{index}");
    let mut done = BTreeMap::new();
    let mut last = None;
    for round in 0_u32.. {
        if Instant::now() >= until {
            break;
        }
        let mut count = |what| *done.entry(what).or_insert(0) += 1;
        node.create(&name, json!({})).await.unwrap();
        let path = node.mount(&name, "c").await.unwrap();
        count("mounts");
        let file = path.join("bytes");
        assert_eq!(fs::read_to_string(&file).ok(), last, "{name} in round {round}");
        last = Some(format!("{round}"));
        fs::write(&file, last.as_ref().unwrap()).unwrap();
        if (round as usize + index).is_multiple_of(3) {
            // docker cp, and a second container.
            node.mount(&name, "c").await.unwrap();
            node.mount(&name, "second").await.unwrap();
            node.unmount(&name, "c").await.unwrap();
            node.unmount(&name, "second").await.unwrap();
            count("second containers");
        }
        assert!(node.list().await.unwrap().contains(&name));
        for _ in 0..3 {
            assert!(node.get(&name).await.unwrap()["Mountpoint"] != "");
        }
        node.unmount(&name, "c").await.unwrap();
        if round % 5 == 4 {
            node.remove(&name).await.unwrap();
            count("removals");
            last = None;
        }
    }
    node.remove(&name).await.ok();
    done
}

#[tokio::test]
async fn nothing_grows_while_containers_come_and_go() {
    let asked = std::env::var("CINDER_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds = Duration::from_secs(asked.unwrap_or(SECONDS));
    let cloud = Cloud::start().await;
    let node = Node::start(&cloud).await;
    let mut samples = Vec::new();
    let mut done: BTreeMap<&str, u32> = BTreeMap::new();
    // Four parts, each with an idle moment after it.
    for _ in 0..4 {
        let until = Instant::now() + seconds / 4;
        for part in join_all((0..CONTAINERS).map(|index| containers(&node, index, until))).await {
            for (what, count) in part {
                *done.entry(what).or_insert(0) += count;
            }
        }
        node.until_clean().await;
        // Threads for blocking work end after 10 s.
        tokio::time::sleep(Duration::from_secs(11)).await;
        samples.push(Taken::by(&node));
    }
    node.assert_clean(&cloud);
    tokio::time::sleep(IDLE).await;
    let idle = Taken::by(&node);
    println!("{CONTAINERS} containers at a time for {} s: {done:?}", seconds.as_secs());
    for sample in &samples {
        println!("{sample:?}");
    }
    println!("idle for {} s: {idle:?}", IDLE.as_secs());

    let (first, last) = (samples[0], samples[3]);
    assert!(done["mounts"] > 100, "{done:?}");
    assert!(last.memory <= first.memory + 4096, "memory: {samples:?}");
    assert!(last.descriptors <= first.descriptors + 2, "descriptors: {samples:?}");
    assert!(last.threads <= first.threads, "threads: {samples:?}");
    assert_eq!(idle.log, last.log, "it talks to itself");
    assert!(idle.cpu - last.cpu <= 1, "it works on nothing: {last:?} {idle:?}");
}
