//! See [`crate::fuzzing`].

use std::os::unix::ffi::OsStrExt;

use super::mountinfo::{MountEntry, parse};

/// `/proc/PID/mountinfo`.
pub fn mountinfo(data: &[u8]) {
    let found = parse(data);
    assert!(found.len() <= data.split(|byte| *byte == b'\n').count());
    let lines: Vec<u8> = found.iter().flat_map(line).collect();
    assert_eq!(parse(&lines), found, "it reads differently when it is written out");
}

/// The line as the kernel would write it.
fn line(entry: &MountEntry) -> Vec<u8> {
    let mut line = format!("{} {} {}", entry.id, entry.parent, entry.device).into_bytes();
    let mut put = |field: &[u8]| {
        line.push(b' ');
        for byte in field {
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' => line.extend(format!("\\{byte:03o}").bytes()),
                byte => line.push(*byte),
            }
        }
    };
    put(entry.root.as_os_str().as_bytes());
    put(entry.mount_point.as_os_str().as_bytes());
    put(entry.options.as_bytes());
    for (tag, group) in [("shared", entry.shared), ("master", entry.master)] {
        if let Some(group) = group {
            put(format!("{tag}:{group}").as_bytes());
        }
    }
    for field in ["-", &entry.fs_type, &entry.source, &entry.super_options] {
        put(field.as_bytes());
    }
    line.push(b'\n');
    line
}
