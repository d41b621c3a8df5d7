//! No effect gets by the gate: the daemon's system calls, as strace sees them, change something only
//! between the gate's two notes of an effect.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::json;

use crate::support::gate::Gate;
use crate::support::{Cloud, Node};

/// System calls that change something outside, and those by which requests are sent and noticed.
const TRACED: &str = "execve,mkdir,mkdirat,rmdir,unlink,unlinkat,rename,renameat,renameat2,link,linkat,\
    symlink,symlinkat,mknod,mknodat,open,openat,openat2,creat,truncate,ftruncate,fallocate,chmod,\
    fchmod,fchmodat,chown,fchown,fchownat,lchown,utimensat,setxattr,fsetxattr,mount,umount2,move_mount,\
    fsmount,mount_setattr,ioctl,syncfs,fsync,write,writev,pwrite64,pwritev,sendto,sendmsg,recvfrom,\
    read,readv";

/// What of a traced call changes something; `None` = nothing.
fn change(call: &str, own_log: &str) -> Option<String> {
    let (name, arguments) = call.split_once('(')?;
    let changes = match name {
        "read" | "readv" | "recvfrom" => false,
        "open" | "openat" | "openat2" => {
            ["O_CREAT", "O_TRUNC"].iter().any(|flag| arguments.contains(flag))
                && !arguments.contains(own_log)
                && !arguments.contains("/dev/null")
        }
        // Answers to Docker, wake-ups of the runtime, log lines; what is left goes to a file or to
        // a network.
        "write" | "writev" | "pwrite64" | "pwritev" | "sendto" | "sendmsg" => {
            let to = arguments.split(',').next().unwrap_or_default();
            let harmless = ["<UNIX", "<anon_inode", "<pipe", "NETLINK", own_log];
            !to.starts_with("2<") && !harmless.iter().any(|harmless| to.contains(harmless))
        }
        // The last reads the geometry of an XFS.
        "ioctl" => ![
            "BLKGETSIZE64",
            "BLKROGET",
            "BLKSSZGET",
            "BLKPBSZGET",
            "TCGETS",
            "FIONBIO",
            "_IOC(_IOC_READ, 0x58, 0x64, 0x70)",
        ]
        .iter()
        .any(|harmless| arguments.contains(harmless)),
        _ => true,
    };
    changes.then(|| call.chars().take(200).collect())
}

/// The changes outside of any effect, between the two marks; and how many were inside.
fn outside_of_the_gate(trace: &str, own_log: &Path) -> (Vec<String>, usize) {
    let own_log = own_log.display().to_string();
    let mut open: BTreeSet<String> = BTreeSet::new();
    let mut children: BTreeSet<&str> = BTreeSet::new();
    let (mut inside, mut outside, mut watching) = (0, Vec::new(), false);
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        watching |= call.contains("mark-begin");
        if call.contains("mark-end") {
            break;
        }
        if call.starts_with("write(") && call.contains(&own_log) {
            let note = call.split('"').nth(1).unwrap_or_default().trim_end_matches("\\n");
            let number = note.split(' ').next().unwrap_or_default().to_owned();
            if note.ends_with(" end") {
                assert!(open.remove(&number), "{line}");
            } else {
                open.insert(number);
            }
            continue;
        }
        if !watching || children.contains(pid) || call.starts_with("<...") {
            continue;
        }
        if call.starts_with("execve(") {
            children.insert(pid);
        }
        match change(call, &own_log) {
            Some(_) if !open.is_empty() => inside += 1,
            Some(change) => outside.push(change),
            None => {}
        }
    }
    (outside, inside)
}

#[tokio::test]
async fn no_effect_gets_by_the_gate() {
    let cloud = Cloud::start().await;
    let mut node = Node::prepare(cloud.sandbox.config(), json!({}));
    let gate = Gate::of(&mut node);
    let trace = gate.file("trace");
    // -D: the daemon is our child, and strace its.
    let program =
        ["/usr/bin/strace", "-D", "-f", "-yy", "-s", "300", "-e", &format!("trace={TRACED}"), "-o"];
    node.run_below(
        program.iter().map(Into::into).chain([trace.clone().into_os_string()]).collect(),
    );
    node.run().await;
    gate.watch();

    node.call("Path", json!({ "Name": "mark-begin" })).await.ok();
    for options in [json!({}), json!({ "fs": "xfs" })] {
        node.create("v", options).await.unwrap();
        node.mount("v", "a").await.unwrap();
        node.mount("v", "b").await.unwrap();
        node.unmount("v", "b").await.unwrap();
        node.unmount("v", "a").await.unwrap();
        node.mount("v", "a").await.unwrap();
        let taken = node.cli(&["snapshot", "v", "s"]).await;
        assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
        // ext4 grows only with a capability that test machines may lack.
        node.cli(&["resize", "v", "2"]).await;
        node.unmount("v", "a").await.unwrap();
        let listed = node.cli(&["snapshots", "--json", "v"]).await.stdout;
        let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
        let snapshot = listed[0]["id"].as_str().unwrap();
        let deleted = node.cli(&["snapshot", "--delete", "v", "s", "--id", snapshot]).await;
        assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
        let id = cloud.volume("v").await["id"].as_str().unwrap().to_owned();
        let formatted = node.cli(&["format", "v", "--id", &id]).await;
        assert!(formatted.status.success(), "{}", String::from_utf8_lossy(&formatted.stderr));
        node.remove("v").await.unwrap();
    }
    node.call("Path", json!({ "Name": "mark-end" })).await.ok();
    node.assert_clean(&cloud);
    assert!(node.stop(), "{}", node.log());

    let trace = fs::read_to_string(trace).unwrap();
    let (outside, inside) = outside_of_the_gate(&trace, &gate.file("log"));
    println!("{inside} changes through the gate, {} outside of it", outside.len());
    assert!(inside > 100, "the trace shows only {inside} changes");
    assert!(outside.is_empty(), "outside of the gate:\n{}", outside.join("\n"));
}
