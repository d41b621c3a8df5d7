//! Which mount options a user may give.
//!
//! An allow-list: `mount_opts` comes from whoever may run `docker volume create`, and mount(8) runs
//! as root. What would mount something else, somewhere else, or go around the driver's own checks
//! is refused with the reason.

use crate::shown::shown;

/// Options without a value.
const FLAGS: &[&str] = &[
    // Any filesystem.
    "defaults",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "diratime",
    "nodiratime",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "async",
    "sync",
    "dirsync",
    "discard",
    "nodiscard",
    "iversion",
    "noiversion",
    "acl",
    "noacl",
    "barrier",
    "nobarrier",
    "quota",
    "noquota",
    "_netdev",
    // ext4.
    "user_xattr",
    "nouser_xattr",
    "delalloc",
    "nodelalloc",
    "auto_da_alloc",
    "noauto_da_alloc",
    "journal_checksum",
    "nojournal_checksum",
    "journal_async_commit",
    "init_itable",
    "noinit_itable",
    "dioread_lock",
    "dioread_nolock",
    "block_validity",
    "noblock_validity",
    "nombcache",
    "grpid",
    "nogrpid",
    "bsdgroups",
    "sysvgroups",
    "usrquota",
    "grpquota",
    "prjquota",
    // XFS.
    "inode32",
    "inode64",
    "largeio",
    "nolargeio",
    "noalign",
    "swalloc",
    "wsync",
    "filestreams",
    "ikeep",
    "noikeep",
    "attr2",
    "noattr2",
    "uquota",
    "gquota",
    "pquota",
    "uqnoenforce",
    "gqnoenforce",
    "pqnoenforce",
    "qnoenforce",
    "uqnoquota",
    // Btrfs.
    "compress",
    "compress-force",
    "autodefrag",
    "noautodefrag",
    "datacow",
    "nodatacow",
    "datasum",
    "nodatasum",
    "flushoncommit",
    "noflushoncommit",
    "space_cache",
    "nospace_cache",
    "clear_cache",
    "ssd",
    "nossd",
    "ssd_spread",
    "nossd_spread",
    "treelog",
    "notreelog",
    "user_subvol_rm_allowed",
];

/// Options with a value for SELinux.
const CONTEXTS: &[&str] = &["context", "fscontext", "defcontext", "rootcontext"];

/// Other options with a value.
const WITH_VALUE: &[&str] = &[
    // ext4.
    "data",
    "data_err",
    "commit",
    "barrier",
    "init_itable",
    "inode_readahead_blks",
    "stripe",
    "min_batch_time",
    "max_batch_time",
    "journal_ioprio",
    "auto_da_alloc",
    "resuid",
    "resgid",
    // XFS.
    "logbufs",
    "logbsize",
    "allocsize",
    "sunit",
    "swidth",
    // Btrfs.
    "compress",
    "compress-force",
    "discard",
    "max_inline",
    "metadata_ratio",
    "space_cache",
    "thread_pool",
    "fatal_errors",
];

/// Names that people try, and why they don't pass.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["ro", "rw"],
        "whether a volume is read-only is said by the option read_only, or by Docker's own :ro",
    ),
    (
        &["errors"],
        "after an error the filesystem is always made read-only: continuing destroys data, and a \
         panic takes the host with it",
    ),
    (&["bind", "rbind", "move", "remount"], "the driver mounts the volume itself, once"),
    (
        &[
            "shared",
            "rshared",
            "slave",
            "rslave",
            "private",
            "rprivate",
            "unbindable",
            "runbindable",
        ],
        "propagation is chosen for each container: docker run --mount …,bind-propagation=…",
    ),
    (
        &["loop", "offset", "sizelimit"],
        "the volume is a block device; to mount one of its partitions use the option partition",
    ),
    (
        &["uid", "gid", "umask", "fmask", "dmask", "mode"],
        "this filesystem keeps owners and modes itself: use the options uid, gid and mode of the \
         volume",
    ),
    (
        &["noload", "norecovery", "nologreplay", "rescue", "recovery", "usebackuproot"],
        "the journal must be replayed before anything is written",
    ),
    (&["nouuid"], "the driver adds it when a copy of a mounted XFS is mounted"),
    (
        &["journal_dev", "journal_path", "logdev", "rtdev", "device"],
        "a volume is one device, and the option would name another",
    ),
    (
        &["subvol", "subvolid"],
        "the top of the filesystem is mounted; containers see a directory below it",
    ),
    (
        &["user", "users", "owner", "group", "noauto", "auto", "nofail", "nouser"],
        "it has a meaning in /etc/fstab only",
    ),
    (&["dax"], "a Cinder volume is not memory"),
];

/// Checks `mount_opts` (words separated by commas; commas inside double quotes belong to a word,
/// as in SELinux contexts) against the allow-list; a refused one says why.
pub(super) fn check(options: &str) -> Result<Vec<String>, String> {
    if let Some(bad) = options.chars().find(|c| c.is_control() || *c == '\\') {
        return Err(format!("mount_opts holds {bad:?}"));
    }
    let mut words = split(options)?;
    for word in &words {
        check_word(word)?;
    }
    // Said by the driver itself, or nothing at all.
    words.retain(|word| word != "defaults" && word != "_netdev");
    Ok(words)
}

fn split(options: &str) -> Result<Vec<String>, String> {
    let mut quoted = false;
    let words = options.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    });
    let words: Vec<String> =
        words.map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect();
    if quoted {
        return Err("mount_opts has a quote that is not closed".to_owned());
    }
    Ok(words)
}

fn check_word(word: &str) -> Result<(), String> {
    let (name, value) = word.split_once('=').map_or((word, None), |(n, v)| (n, Some(v)));
    let shown = shown(word);
    if let Some((_, why)) = REFUSED.iter().find(|(names, _)| names.contains(&name)) {
        return Err(format!("mount option \"{shown}\" is not allowed: {why}"));
    }
    let known = match value {
        None => FLAGS.contains(&name),
        Some(_) => takes_value(name),
    };
    match value {
        _ if !known && value.is_some() && FLAGS.contains(&name) => {
            Err(format!("mount option {name:?} takes no value"))
        }
        _ if !known && value.is_none() && takes_value(name) => {
            Err(format!("mount option {name:?} needs a value: {name}=…"))
        }
        _ if !known => Err(format!(
            "mount option \"{shown}\" is not allowed: it is none that the driver knows for ext4, xfs \
             or btrfs"
        )),
        // Filesystems split their options at every comma: quotes would hide one from us only.
        Some(value) if value.contains('"') && !is_quoted_context(name, value) => Err(format!(
            "mount option \"{shown}\" is not allowed: quotes stand around the whole value of an \
             SELinux context only"
        )),
        Some("" | "\"\"") => Err(format!("mount option {name:?} needs a value")),
        _ => Ok(()),
    }
}

fn takes_value(name: &str) -> bool {
    WITH_VALUE.contains(&name) || CONTEXTS.contains(&name)
}

/// Whether a security module reads the value, which takes the quotes off.
fn is_quoted_context(name: &str, value: &str) -> bool {
    let inside = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    CONTEXTS.contains(&name) && inside.is_some_and(|inside| !inside.contains('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Btrfs would see three options here, of which the second names another device.
    #[test]
    fn quotes_hide_no_option_from_the_list() {
        for options in [
            "compress=zlib\",device=/dev/sda,compress=zlib\"",
            "commit=\"5\"",
            "context=a\",bind,x=\"b",
            "context=\"a\",device=/dev/sda,rootcontext=\"b\"",
            "context=\"a\"\"b\"",
        ] {
            assert!(check(options).is_err(), "{options}");
        }
    }

    #[test]
    fn a_refused_option_is_not_repeated_without_end() {
        assert!(check(&"x".repeat(5000)).unwrap_err().len() < 400);
        assert!(check(&format!("bind={}", "x".repeat(5000))).unwrap_err().len() < 400);
    }

    #[test]
    fn allowed_options_come_back_as_words() {
        assert_eq!(
            check("noatime, nodev,data=journal,,discard=async").unwrap(),
            ["noatime", "nodev", "data=journal", "discard=async"]
        );
        assert!(check("").unwrap().is_empty());
        assert!(check("defaults,_netdev").unwrap().is_empty());
    }

    #[test]
    fn commas_inside_quotes_belong_to_the_context() {
        let context = r#"context="system_u:object_r:container_file_t:s0:c1,c2""#;
        assert_eq!(check(&format!("{context},noexec")).unwrap(), [context, "noexec"]);
        assert!(check("context=\"a,b").is_err());
    }

    #[test]
    fn what_goes_around_the_driver_is_refused_with_a_reason() {
        for (option, reason) in [
            ("ro", "read_only"),
            ("errors=panic", "panic"),
            ("noatime,remount", "once"),
            ("bind", "once"),
            ("rshared", "bind-propagation"),
            ("loop", "partition"),
            ("offset=512", "partition"),
            ("uid=1000", "option"),
            ("noload", "journal"),
            ("journal_path=/dev/sda", "one device"),
            ("subvol=x", "top"),
            ("X-mount.mkdir", "none that the driver knows"),
            ("noexec=1", "no value"),
            ("data", "needs a value"),
            ("data=", "needs a value"),
            ("noatime\nbind", "mount_opts"),
        ] {
            let error = check(option).unwrap_err();
            assert!(error.contains(reason), "{option}: {error}");
        }
    }
}
