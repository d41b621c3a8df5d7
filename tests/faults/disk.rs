//! The disk of the journal refuses, from any of an operation's writes on.

use std::collections::BTreeMap;

use serde_json::json;

use crate::host::{Host, SmallDisk, journal_on};
use crate::support::sh;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Create,
    MountFresh,
    MountFormatted,
    MountSecond,
    Unmount,
    Remove,
}

/// What becomes of the disk, until the operation was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Full,
    /// And then the daemon is killed, and started while it still is.
    FullThenKilled,
    ReadOnly,
}

impl Trouble {
    fn begin(self, disk: &SmallDisk) {
        match self {
            Self::Full | Self::FullThenKilled => disk.fill(),
            Self::ReadOnly => {
                for part in ["volumes", "creations"] {
                    let at = disk.path().join("state").join(part);
                    sh(&format!(
                        "mount --bind {0} {0} && mount -o remount,bind,ro {0}",
                        at.display()
                    ));
                }
            }
        }
    }

    fn end(self, disk: &SmallDisk) {
        match self {
            Self::Full | Self::FullThenKilled => disk.empty(),
            Self::ReadOnly => {
                for part in ["volumes", "creations"] {
                    sh(&format!("umount {}", disk.path().join("state").join(part).display()));
                }
            }
        }
    }

    /// What an error says then.
    fn reason(self) -> &'static str {
        match self {
            Self::Full | Self::FullThenKilled => "No space left",
            Self::ReadOnly => "Read-only file system",
        }
    }
}

async fn prepare(host: &Host, call: Call, name: &str) {
    match call {
        Call::Create => {}
        Call::MountFresh | Call::Remove => host.node.create(name, json!({})).await.unwrap(),
        Call::MountFormatted => drop(host.with_bytes(name, json!({})).await),
        Call::MountSecond | Call::Unmount => {
            host.with_bytes(name, json!({})).await;
            host.node.mount(name, "c").await.unwrap();
        }
    }
    // The note of what the engine was told is none of the operation's writes.
    tokio::time::sleep(std::time::Duration::from_millis(40)).await;
}

async fn act(host: &Host, call: Call, name: &str) -> Result<(), String> {
    match call {
        Call::Create => host.node.create(name, json!({})).await,
        Call::MountFresh | Call::MountFormatted => host.node.mount(name, "c").await.map(drop),
        Call::MountSecond => host.node.mount(name, "d").await.map(drop),
        Call::Unmount => host.node.unmount(name, "c").await,
        Call::Remove => host.node.remove(name).await,
    }
}

/// One case: how it was answered; `None` when the operation had fewer writes this time.
async fn case(
    host: &mut Host,
    disk: &SmallDisk,
    call: Call,
    trouble: Trouble,
    nth: usize,
) -> Option<&'static str> {
    let name = name_of(call, trouble, nth);
    prepare(host, call, &name).await;
    let (answer, met) =
        host.with_mischief(nth, "journal", act(host, call, &name), |_| trouble.begin(disk)).await;
    met?;
    if trouble == Trouble::FullThenKilled {
        host.node.kill();
        host.node.run().await;
    }
    if let Err(error) = &answer {
        assert!(error.contains(trouble.reason()) && error.contains(&name), "{error}");
        assert!(!matches!(call, Call::Unmount | Call::Remove), "letting go goes on: {error}");
    }
    // What is true while the disk still refuses.
    let here = host.node.mount_point().join(&name).display().to_string();
    let is_mounted = host.node.mounts().contains(&here);
    match (call, &answer) {
        (Call::Unmount | Call::Remove, _) => assert!(!is_mounted),
        // Undone; if only its reference could not be kept, that takes a moment longer.
        (Call::MountFresh | Call::MountFormatted, Err(_)) => host.until_unmounted(&name).await,
        (Call::Create, _) => {}
        _ => assert!(is_mounted),
    }
    trouble.end(disk);
    // The engine goes on with what it was told.
    match (call, &answer) {
        (Call::Create, _) => host.node.create(&name, json!({})).await.unwrap(),
        (Call::MountFresh | Call::MountFormatted, Ok(())) => {
            host.node.unmount(&name, "c").await.unwrap();
        }
        (Call::MountSecond, answer) => {
            if answer.is_ok() {
                host.node.unmount(&name, "d").await.unwrap();
            }
            assert!(host.node.mounts().contains(&here), "the first container still has it");
            host.node.unmount(&name, "c").await.unwrap();
        }
        _ => {}
    }
    if call == Call::MountFormatted && answer.is_err() && nth <= 4 {
        // No later operation wakes what makes the journal good again.
        host.until_free(&name).await;
    }
    Some(if answer.is_ok() { "succeeded" } else { "refused" })
}

fn name_of(call: Call, trouble: Trouble, nth: usize) -> String {
    format!("{call:?}-{trouble:?}-{nth}").to_lowercase()
}

const TROUBLES: [Trouble; 3] = [Trouble::Full, Trouble::FullThenKilled, Trouble::ReadOnly];

async fn every_write_of(call: Call, troubles: &[Trouble]) {
    let disk = SmallDisk::new();
    let mut host = Host::new(journal_on(&disk)).await;
    let name = "counted";
    prepare(&host, call, name).await;
    let effects = host.effects_of(act(&host, call, name)).await;
    for id in ["c", "d"] {
        host.node.unmount(name, id).await.unwrap();
    }
    host.node.remove(name).await.unwrap();
    let writes = effects.iter().filter(|what| what.starts_with("journal")).count();
    assert!(writes > 0, "{effects:?}");
    let mut table = BTreeMap::<_, usize>::new();
    let mut met = Vec::new();
    for &trouble in troubles {
        for nth in 1..=writes {
            if let Some(outcome) = case(&mut host, &disk, call, trouble, nth).await {
                *table.entry((format!("{trouble:?}"), outcome)).or_default() += 1;
                met.push(name_of(call, trouble, nth));
            }
        }
    }
    // What the disk refused is made good in the background, of all of them at once.
    for name in &met {
        if call == Call::Remove {
            assert!(host.node.get(name).await.is_err(), "it is removed");
            continue;
        }
        let has_bytes = !matches!(call, Call::Create | Call::MountFresh);
        host.assert_sound(name, has_bytes).await;
        host.node.remove(name).await.unwrap();
    }
    host.assert_clean().await;
    let left = host.cloud.volumes().await;
    let left: Vec<_> = left.iter().filter_map(|volume| volume["name"].as_str()).collect();
    let left: Vec<_> = met.iter().filter(|name| left.contains(&name.as_str())).collect();
    assert!(left.is_empty(), "one volume was made of each name, and is gone: {left:?}");
    println!("\n{call:?}: {} cases at {writes} journal writes", met.len());
    for ((trouble, outcome), count) in &table {
        println!("    {trouble:<16} {outcome:<10} {count}");
    }
    assert!(
        met.len() + troubles.len() >= troubles.len() * writes,
        "the writes are not the ones that were counted"
    );
}

#[tokio::test]
async fn creating() {
    every_write_of(Call::Create, &TROUBLES).await;
}

#[tokio::test]
async fn mounting_a_fresh_volume() {
    every_write_of(Call::MountFresh, &[Trouble::Full, Trouble::FullThenKilled]).await;
}

#[tokio::test]
async fn mounting_a_formatted_volume() {
    // The writes are some of those of a fresh volume.
    every_write_of(Call::MountFormatted, &[Trouble::Full]).await;
}

#[tokio::test]
async fn mounting_for_a_second_container() {
    every_write_of(Call::MountSecond, &TROUBLES).await;
}

#[tokio::test]
async fn unmounting() {
    every_write_of(Call::Unmount, &TROUBLES).await;
}

#[tokio::test]
async fn removing() {
    every_write_of(Call::Remove, &TROUBLES).await;
}
