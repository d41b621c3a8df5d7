//! What others plant below MountPoint and StateDir, what they see of what the daemon makes, and
//! what they learn from it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cinder_docker_driver::sandbox::faults::{Action, Canned};
use serde_json::json;
use uuid::Uuid;

use crate::host::{BYTES, Host};
use crate::support::{mounts_below, sh};

/// Somebody else's directory, to which a link leads.
struct Victim(tempfile::TempDir);

impl Victim {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "precious").unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self) -> PathBuf {
        self.path().join("file")
    }

    fn assert_untouched(&self, what: &str) {
        let names: Vec<_> =
            fs::read_dir(self.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["file"], "{what}");
        assert_eq!(fs::read_to_string(self.file()).unwrap(), "precious", "{what}");
        let mode = fs::metadata(self.file()).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o644, "{what}");
    }
}

/// Files below a directory, with their modes; what is mounted there is not looked into.
fn modes(directory: &Path, found: &mut BTreeMap<PathBuf, u32>) {
    let device = fs::metadata(directory).unwrap().dev();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.dev() == device {
            found.insert(path.clone(), metadata.mode());
            if metadata.is_dir() {
                modes(&path, found);
            }
        }
    }
}

/// The mode that a path must have; the type included.
fn wanted(host: &Host, path: &Path) -> Option<u32> {
    let (state, mount) = (host.node.state_dir(), host.node.mount_point());
    let is_id = |path: &Path| {
        path.file_stem().is_some_and(|stem| Uuid::parse_str(&stem.to_string_lossy()).is_ok())
    };
    let extension = path.extension().and_then(|extension| extension.to_str());
    Some(match path {
        path if path == state || path == mount => 0o40_700,
        path if path == state.join("volumes") || path == state.join("creations") => 0o40_700,
        path if path == state.join("lock") => 0o100_600,
        path if path.starts_with(&state)
            && is_id(path)
            && matches!(extension, Some("json" | "new")) =>
        {
            0o100_600
        }
        path if path.parent() == Some(&mount) => 0o40_700,
        path if *path == host.node.socket => 0o140_660,
        _ => return None,
    })
}

/// Before each of its effects, and with a umask that hides nothing.
#[tokio::test]
async fn all_that_the_daemon_makes_is_for_root_alone_at_any_moment() {
    let mut host = Host::prepare(json!({})).await;
    host.node.run_below(["/bin/sh", "-c", "umask 0; exec \"$@\"", "sh"].map(Into::into).to_vec());
    host.node.run().await;
    let mut seen = BTreeMap::new();
    let mut looks = 0;
    'steps: for step in ["create", "mount", "unmount", "remove"] {
        for nth in 1.. {
            let name = format!("{step}-{nth}");
            if step != "create" {
                host.node.create(&name, json!({})).await.unwrap();
            }
            if step == "unmount" {
                host.node.mount(&name, "c").await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(40)).await;
            }
            let act = async {
                match step {
                    "create" => host.node.create(&name, json!({})).await,
                    "mount" => host.node.mount(&name, "c").await.map(drop),
                    "unmount" => host.node.unmount(&name, "c").await,
                    _ => host.node.remove(&name).await,
                }
            };
            let look = |_: &str| {
                looks += 1;
                modes(host.node.dir.path(), &mut seen);
            };
            let (answer, met) = host.with_mischief(nth, "", act, look).await;
            answer.unwrap();
            if step == "mount" {
                host.node.unmount(&name, "c").await.unwrap();
            }
            if step != "remove" {
                host.node.remove(&name).await.unwrap();
            }
            if met.is_none() {
                continue 'steps;
            }
        }
    }
    let ours = ["config.json", "log"].map(|name| host.node.dir.path().join(name));
    seen.retain(|path, _| !ours.contains(path));
    for (path, mode) in &seen {
        let wanted = wanted(&host, path);
        assert_eq!(Some(*mode), wanted, "{}: {mode:o}", path.display());
    }
    println!("{} files and directories, seen at {looks} moments", seen.len());
    assert!(seen.len() > 20 && looks > 40, "there must be something to see");
    host.assert_clean().await;
}

/// A link, a file or somebody's mount comes in the way of a Mount before any effect that it could
/// lead elsewhere.
#[tokio::test]
async fn a_place_that_is_swapped_during_a_mount_leads_nowhere() {
    let host = Host::new(json!({})).await;
    host.node.create("first", json!({})).await.unwrap();
    host.node.mount("first", "c").await.unwrap();
    host.node.unmount("first", "c").await.unwrap();
    let mut outcomes = BTreeMap::<_, usize>::new();
    for (swap, kind) in [
        ("link", "file"),
        ("link", "process"),
        ("file", "file"),
        ("filled", "process"),
        ("mount", "process"),
    ] {
        for nth in 1.. {
            let victim = Victim::new();
            let name = format!("{swap}-{kind}-{nth}");
            host.with_bytes(&name, json!({})).await;
            let at = host.node.mount_point().join(&name);
            let is_mounted =
                || mounts_below(&host.node.mount_point()).contains(&at.display().to_string());
            let mut planted = false;
            let mischief = |_: &str| {
                if is_mounted() {
                    return;
                }
                fs::remove_dir(&at).ok();
                match swap {
                    "link" => symlink(victim.path(), &at).unwrap(),
                    "file" => fs::write(&at, "theirs").unwrap(),
                    "filled" => {
                        fs::create_dir(&at).unwrap();
                        fs::write(at.join("theirs"), "").unwrap();
                    }
                    _ => {
                        fs::create_dir(&at).unwrap();
                        sh(&format!("mount -t tmpfs theirs {}", at.display()));
                    }
                }
                planted = true;
            };
            let mount = host.node.mount(&name, "c");
            let (answer, met) = host.with_mischief(nth, kind, mount, mischief).await;
            let what = format!("{name}, before {met:?}: {answer:?}");
            let strayed = sh("cut -d' ' -f5 /proc/self/mountinfo");
            let strayed = strayed.lines().find(|at| Path::new(at).starts_with(victim.path()));
            assert_eq!(strayed, None, "{what}");
            victim.assert_untouched(&what);
            match &answer {
                Ok(path) => {
                    assert_eq!(fs::read_to_string(path.join("bytes")).unwrap(), BYTES, "{what}");
                    assert!(is_mounted(), "{what}");
                    host.node.unmount(&name, "c").await.unwrap();
                }
                Err(error) => assert!(planted && error.contains(&name), "{what}"),
            }
            *outcomes.entry((swap, planted, answer.is_ok())).or_default() += 1;
            if planted {
                // Theirs is left to them, on top or below.
                match swap {
                    "link" | "file" => drop(fs::remove_file(&at)),
                    "filled" => drop(fs::remove_dir_all(&at)),
                    _ => {
                        sh(&format!("umount {0}; rmdir {0}", at.display()));
                    }
                }
            }
            host.assert_sound(&name, true).await;
            host.node.remove(&name).await.unwrap();
            if met.is_none() {
                break;
            }
        }
    }
    for ((swap, planted, mounted), count) in &outcomes {
        let how = if *mounted { "mounted" } else { "refused" };
        let when = if *planted { "planted" } else { "too late" };
        println!("{swap:<8} {when:<8} {how:<8} {count}");
    }
    assert!(outcomes.keys().any(|(_, _, mounted)| !mounted));
    host.node.remove("first").await.unwrap();
    host.assert_clean().await;
}

#[tokio::test]
async fn a_link_in_the_place_of_a_file_of_the_journal_is_not_followed() {
    let mut host = Host::new(json!({})).await;
    let victim = Victim::new();
    let id = host.with_bytes("v", json!({})).await;
    let volumes = host.node.state_dir().join("volumes");
    let (entry, new) = (volumes.join(format!("{id}.json")), volumes.join(format!("{id}.new")));
    // What is written first.
    symlink(victim.file(), &new).unwrap();
    let error = host.node.mount("v", "c").await.unwrap_err();
    assert!(error.contains(&id) && error.contains("journal"), "{error}");
    victim.assert_untouched("the link of a write");
    assert!(!new.is_symlink(), "what is in the way of a write is taken away");
    host.assert_sound("v", true).await;
    // The entry itself is replaced, and what it led to left.
    fs::remove_file(&entry).unwrap();
    symlink(victim.file(), &entry).unwrap();
    host.node.mount("v", "c").await.unwrap();
    host.node.unmount("v", "c").await.unwrap();
    victim.assert_untouched("the entry");
    assert!(!entry.is_symlink());
    host.assert_sound("v", true).await;
    // At a start, whatever is no plain file is no entry of ours, and nothing waits for it.
    host.node.kill();
    let link = format!("ln -s {}", victim.file().display());
    for plant in [link.as_str(), "mkfifo", "mkdir"] {
        fs::remove_file(&entry).ok();
        sh(&format!("{plant} {}", entry.display()));
        host.node.run().await;
        let error = host.node.mount("v", "c").await.unwrap_err();
        assert!(error.contains("no plain file"), "{plant}: {error}");
        assert!(!error.contains("precious") && !host.node.log().contains("precious"));
        victim.assert_untouched(plant);
        assert_eq!(host.cloud.status("v").await, "available");
        // What stops the daemon in good time reads what is there.
        fs::remove_file(&entry).or_else(|_| fs::remove_dir(&entry)).unwrap();
        host.node.kill();
    }
    fs::remove_file(&entry).ok();
    // The lock, and what a crash left unfinished.
    let lock = host.node.state_dir().join("lock");
    fs::remove_file(&lock).unwrap();
    symlink(victim.file(), &lock).unwrap();
    host.node.spawn();
    while !host.node.has_ended() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    victim.assert_untouched("the lock");
    fs::remove_file(&lock).unwrap();
    symlink(victim.file(), &new).unwrap();
    host.node.run().await;
    victim.assert_untouched("what was unfinished");
    assert!(!new.is_symlink());
    host.assert_sound("v", true).await;
    host.assert_clean().await;
}

/// A password in the environment, a token, a CHAP secret: with everything logged, nobody learns
/// them.
#[tokio::test]
async fn no_secret_reaches_a_tool_a_log_or_a_file() {
    const CHAP: &str = "chap-secret-that-is-known";
    let mut host = Host::prepare(json!({})).await;
    let password = host.cloud.sandbox.config()["Password"].as_str().unwrap().to_owned();
    host.node.set_variable("OS_PASSWORD", Path::new(&password));
    host.node.set_variable("RUST_LOG", Path::new("trace"));
    let dump = host.file("dump");
    for tool in ["mount", "umount", "mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_growfs"] {
        let shell = format!(
            "{{ tr '\\0' ' ' </proc/$$/environ; tr '\\0' ' ' </proc/$$/cmdline; \
             tr '\\0' ' ' </proc/$PPID/cmdline; echo; }} >>{}; exec $real \"$@\"",
            dump.display()
        );
        host.replace(tool, &shell);
    }
    host.node.run().await;
    let id = host.with_bytes("v", json!({})).await;
    sh(&format!(
        "debugfs -w -R 'set_super_value state 2' {} 2>&1",
        host.cloud.image(&id).display()
    ));
    host.node.mount("v", "c").await.unwrap();
    host.node.create("chap", json!({})).await.unwrap();
    let body = json!({ "attachment": { "id": Uuid::new_v4(), "status": "attaching",
        "connection_info": { "driver_volume_type": "iscsi", "target_portal": "127.0.0.1:9",
            "target_iqn": "iqn.2010-10.org.openstack:x", "target_lun": 1, "auth_method": "CHAP",
            "auth_username": "chap-user", "auth_password": CHAP } } });
    let canned = Canned { status: 200, body: Some(body.to_string()), retry_after: None };
    host.cloud.fail_once("attachment-update", Action::AnswerAfter(canned));
    let error = host.node.mount("chap", "c").await.unwrap_err();
    assert!(host.cloud.calls().iter().any(|call| call == "authenticate"));
    // As every token of the sandbox begins.
    let token = "gAAAAA";
    let status = host.node.cli(&["status", "--json"]).await;
    let (inspect, ls) =
        (host.node.cli(&["inspect", "chap", "--json"]).await, host.node.cli(&["ls"]).await);
    let check = host.node.cli(&["check"]).await;
    let told = [
        ("log", host.node.log()),
        ("tools", fs::read_to_string(&dump).unwrap()),
        ("journal", sh(&format!("cat {}/*/*", host.node.state_dir().display()))),
        ("error", error),
        ("Get", format!("{:?} {:?}", host.node.get("v").await, host.node.get("chap").await)),
        ("status", format!("{status:?}")),
        ("inspect", format!("{inspect:?}")),
        ("ls", format!("{ls:?}")),
        ("check", format!("{check:?}")),
        ("daemon", sh(&format!("tr '\\0' ' ' </proc/{}/cmdline", host.node.pid()))),
    ];
    assert!(told[0].1.contains("TRACE"), "everything is logged");
    for word in ["mkfs.ext4", "e2fsck", "/mount", "LC_ALL=C"] {
        assert!(told[1].1.contains(word), "{word}: {}", told[1].1);
    }
    for (where_, text) in &told {
        for secret in [password.as_str(), token, CHAP] {
            assert!(!text.contains(secret), "{secret} in the {where_}: {text}");
        }
    }
    host.node.unmount("v", "c").await.unwrap();
    host.node.until_clean().await;
    let mode = fs::metadata(host.node.config_path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
