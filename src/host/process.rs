//! Other processes, through `/proc`: is an engine alive, who holds a filesystem.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Paths;
use super::filesystem::mountinfo::{self, DeviceNumber, MountEntry};

/// The start time (clock ticks since boot) of a process, field 22 of `/proc/PID/stat`; `None`
/// when there is no such process.
pub fn start_time(paths: &Paths, pid: i32) -> Option<u64> {
    stat_fields(paths, pid)?.get(19)?.parse().ok()
}

/// The fields of `/proc/PID/stat` from the third (the state) on. The second is the command in
/// brackets, which may itself hold brackets and spaces.
fn stat_fields(paths: &Paths, pid: i32) -> Option<Vec<String>> {
    let stat = fs::read(paths.proc.join(format!("{pid}/stat"))).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// Whether the process is there and has not ended (a zombie holds nothing any more).
fn is_alive(paths: &Paths, pid: i32) -> bool {
    stat_fields(paths, pid)
        .and_then(|fields| fields.into_iter().next())
        .is_some_and(|state| !matches!(state.as_str(), "Z" | "X"))
}

/// The kernel's boot id: changes at every boot.
pub fn boot_id(paths: &Paths) -> io::Result<String> {
    let id = fs::read_to_string(paths.proc.join("sys/kernel/random/boot_id"))?;
    Ok(id.trim().to_owned())
}

/// A process in another mount namespace that still has the filesystem mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountHolder {
    /// One process of that namespace.
    pub pid: i32,
    /// Its command name.
    pub command: String,
    /// Where it sees the filesystem; empty when its mountinfo could not be read.
    pub mount_point: String,
}

/// Looks through the mount namespaces of all processes for mounts of the device: the one that
/// [`MountEntry::device`] shows for our own mount (btrfs has an anonymous one).
///
/// Not holders: our own namespace; *copies* of our mount at `ours`, which go when we unmount:
/// slaves at the same path (`master:N` of our peer group), and what stands where ours does on a peer
/// or slave of the mount below ours. (In a managed plugin ours is at another path than the host's
/// copy.) A mountinfo that can't be read counts as a holder (a process that has just ended does not).
pub fn mount_holders(paths: &Paths, device: DeviceNumber, ours: &Path) -> Vec<MountHolder> {
    let own_namespace = fs::read_link(paths.proc.join("self/ns/mnt")).ok();
    let own_mounts = mountinfo::own(paths).unwrap_or_default();
    let our_mount =
        own_mounts.iter().rfind(|entry| entry.mount_point == ours && entry.device == device);
    let our_group = our_mount.and_then(|entry| entry.shared);
    let our_place = our_mount
        .and_then(|entry| Place::of(entry, &own_mounts))
        .filter(|place| place.shared.is_some());
    let is_copy = |entry: &MountEntry, mounts: &[MountEntry]| {
        let is_slave =
            entry.mount_point == ours && entry.master.is_some() && entry.master == our_group;
        is_slave
            || our_place.as_ref().zip(Place::of(entry, mounts)).is_some_and(|(ours, place)| {
                place.path == ours.path
                    && (place.shared == ours.shared || place.master == ours.shared)
            })
    };
    // A mount id is unique on the machine: this tells our own namespace when `ns/mnt` may not be
    // read (it takes CAP_SYS_PTRACE, or more under a security module).
    let is_own = |entry: &MountEntry| own_mounts.iter().any(|own| own.id == entry.id);
    // Every process of a namespace sees the same: one answer for each is enough. What could not be
    // read stands until another process of the namespace answers.
    let mut answers: BTreeMap<PathBuf, Option<MountHolder>> = BTreeMap::new();
    let mut nameless = Vec::new();
    for pid in pids(paths) {
        let namespace = fs::read_link(paths.proc.join(format!("{pid}/ns/mnt"))).ok();
        let known = namespace.as_ref().and_then(|namespace| answers.get(namespace));
        let answered = known.is_some_and(|answer| {
            answer.as_ref().is_none_or(|holder| !holder.mount_point.is_empty())
        });
        if answered || (namespace.is_some() && namespace == own_namespace) {
            continue;
        }
        let holder =
            |mount_point: String| MountHolder { pid, command: command(paths, pid), mount_point };
        let answer = match mountinfo::read(&paths.proc.join(format!("{pid}/mountinfo"))) {
            Ok(text) => {
                let mounts = mountinfo::parse(&text);
                mounts
                    .iter()
                    .find(|entry| {
                        entry.device == device && !is_copy(entry, &mounts) && !is_own(entry)
                    })
                    .map(|entry| holder(entry.mount_point.to_string_lossy().into_owned()))
            }
            Err(_) if !is_alive(paths, pid) => continue,
            Err(_) => Some(holder(String::new())),
        };
        match namespace {
            Some(namespace) => {
                answers.insert(namespace, answer);
            }
            None => nameless.extend(answer),
        }
    }
    answers.into_values().flatten().chain(nameless).collect()
}

/// Where a mount stands. What is unmounted at a place goes from the same path on all peers and slaves
/// of the mount below it, too (mount_namespaces(7)).
struct Place {
    /// Peer group of the mount below.
    shared: Option<u32>,
    /// Whose slave the mount below is.
    master: Option<u32>,
    /// In the filesystem below, whatever of that is mounted.
    path: PathBuf,
}

impl Place {
    /// `None` when the mount below cannot be seen.
    fn of(entry: &MountEntry, mounts: &[MountEntry]) -> Option<Self> {
        let below = mounts.iter().find(|below| below.id == entry.parent)?;
        let path = below.root.join(entry.mount_point.strip_prefix(&below.mount_point).ok()?);
        Some(Self { shared: below.shared, master: below.master, path })
    }
}

/// The container that a process is in, by its control group: Docker, Podman and containerd name it
/// after the container's id, 64 hexadecimal digits.
pub fn container_of(paths: &Paths, pid: i32) -> Option<String> {
    let groups = fs::read_to_string(paths.proc.join(format!("{pid}/cgroup"))).ok()?;
    let is_id = |word: &&str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    // With containers in a container the innermost comes last.
    groups.split(|c: char| !c.is_ascii_alphanumeric()).rfind(is_id).map(str::to_owned)
}

/// Processes of our own namespace that keep files open below `path` (to say who makes umount
/// busy): pid and command.
pub fn file_users(paths: &Paths, path: &Path) -> Vec<(i32, String)> {
    let is_below = |link: PathBuf| fs::read_link(link).is_ok_and(|target| target.starts_with(path));
    let uses = |pid: &i32| {
        let process = paths.proc.join(pid.to_string());
        ["cwd", "root", "exe"].iter().any(|link| is_below(process.join(link)))
            || fs::read_dir(process.join("fd"))
                .is_ok_and(|open| open.flatten().any(|descriptor| is_below(descriptor.path())))
            || maps_below(&process, path)
    };
    pids(paths).into_iter().filter(uses).map(|pid| (pid, command(paths, pid))).collect()
}

/// Whether a file below `path` is mapped: it keeps a filesystem busy after its descriptor is closed.
fn maps_below(process: &Path, path: &Path) -> bool {
    // address perms offset device inode path
    fs::read(process.join("maps")).is_ok_and(|maps| {
        String::from_utf8_lossy(&maps)
            .lines()
            .filter_map(|line| line.find('/').map(|start| &line[start..]))
            .any(|mapped| Path::new(mapped).starts_with(path))
    })
}

fn pids(paths: &Paths) -> Vec<i32> {
    fs::read_dir(&paths.proc)
        .map(|entries| {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        })
        .unwrap_or_default()
}

fn command(paths: &Paths, pid: i32) -> String {
    fs::read(paths.proc.join(format!("{pid}/comm")))
        .map(|name| String::from_utf8_lossy(&name).trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const DEVICE: DeviceNumber = DeviceNumber { major: 8, minor: 16 };
    const OURS: &str = "/var/lib/cinder/mount/web";

    /// A `/proc` of made-up processes: pid, state, namespace, mountinfo.
    fn proc(processes: &[(&str, &str, &str, Option<&str>)]) -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        for (pid, state, namespace, mountinfo) in processes {
            let process = dir.path().join(pid);
            fs::create_dir_all(process.join("ns")).unwrap();
            symlink(format!("mnt:[{namespace}]"), process.join("ns/mnt")).unwrap();
            fs::write(process.join("comm"), "postgres\n").unwrap();
            fs::write(process.join("stat"), format!("{pid} (a) b) {state} 1 1")).unwrap();
            if let Some(text) = mountinfo {
                fs::write(process.join("mountinfo"), text).unwrap();
            }
        }
        let paths = Paths { proc: dir.path().into(), ..Paths::default() };
        (dir, paths)
    }

    fn line(point: &str, tags: &str) -> String {
        mount(31, point, tags)
    }

    fn mount(id: u32, point: &str, tags: &str) -> String {
        format!("{id} 1 8:16 / {point} rw{tags} - ext4 /dev/sdb rw\n")
    }

    fn holders(others: &[(&str, &str, &str, Option<&str>)]) -> Vec<(i32, String)> {
        let own = mount(30, OURS, " shared:7");
        let mut processes = vec![("self", "S", "1", Some(own.as_str()))];
        processes.extend(others);
        let (_dir, paths) = proc(&processes);
        mount_holders(&paths, DEVICE, Path::new(OURS))
            .into_iter()
            .map(|holder| (holder.pid, holder.mount_point))
            .collect()
    }

    #[test]
    fn a_mount_in_a_containers_namespace_is_a_holder_once() {
        let text = line("/data", "");
        let found = holders(&[
            ("5", "S", "1", Some(&text)),
            ("6", "S", "2", Some(&text)),
            ("7", "S", "2", Some(&text)),
        ]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, "/data");
    }

    #[test]
    fn a_slave_copy_of_our_mount_is_no_holder_and_a_slave_elsewhere_is_one() {
        assert_eq!(holders(&[("6", "S", "2", Some(&line(OURS, " master:7")))]), []);
        for (point, tags) in [("/data", " master:7"), (OURS, " master:8"), (OURS, "")] {
            assert_eq!(holders(&[("6", "S", "2", Some(&line(point, tags)))]).len(), 1, "{tags}");
        }
    }

    #[test]
    fn in_a_managed_plugin_the_hosts_copy_is_no_holder_and_a_containers_shared_bind_is_one() {
        const STATE: &str = "/var/lib/docker/plugins/1/propagated-mount";
        fn below(id: u32, root: &str, point: &str, tags: &str) -> String {
            format!("{id} 1 8:1 {root} {point} rw {tags} - ext4 /dev/sda rw\n")
        }
        fn on(id: u32, point: &str, tags: &str) -> String {
            let mount = id + 10;
            format!("{mount} {id} 8:16 / {point} rw {tags} - ext4 /dev/sdb rw\n")
        }
        fn host(tags: &str, point: &str) -> String {
            below(40, STATE, STATE, tags) + &on(40, point, "shared:7")
        }
        let ours =
            below(20, STATE, "/var/lib/cinder/mount", "shared:3") + &on(20, OURS, "shared:7");
        let copy = &format!("{STATE}/web");
        for (other, count) in [
            (host("shared:3", copy), 0),
            (host("master:3", copy), 0),
            // Another filesystem's directory of that name, another directory, no propagation.
            (host("shared:4", copy), 1),
            (host("shared:3", &format!("{STATE}/other")), 1),
            (host("", copy), 1),
            // Bound into a container with bind-propagation=rshared.
            (below(50, "/", "/", "") + &on(50, "/data", "shared:7"), 1),
            (on(77, copy, "shared:7"), 1),
        ] {
            let processes =
                [("self", "S", "1", Some(ours.as_str())), ("6", "S", "2", Some(other.as_str()))];
            let (_dir, paths) = proc(&processes);
            assert_eq!(mount_holders(&paths, DEVICE, Path::new(OURS)).len(), count, "{other}");
        }
    }

    #[test]
    fn an_unreadable_mountinfo_is_a_holder_unless_the_process_has_ended() {
        assert_eq!(holders(&[("6", "S", "2", None)]), [(6, String::new())]);
        assert_eq!(holders(&[("6", "Z", "2", None)]), []);
    }

    #[test]
    fn another_process_of_the_namespace_answers_for_one_that_could_not_be_read() {
        assert_eq!(holders(&[("6", "S", "2", None), ("7", "S", "2", Some(""))]), []);
    }

    #[test]
    fn our_own_mount_is_known_by_its_id_when_a_namespace_cannot_be_told() {
        let own = mount(30, OURS, " shared:7");
        assert_eq!(holders(&[("6", "S", "2", Some(&own))]), []);
    }

    #[test]
    fn a_start_time_is_found_behind_a_command_with_brackets() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("9")).unwrap();
        let stat = "9 (x) (y) S 1 9 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 9";
        fs::write(dir.path().join("9/stat"), stat).unwrap();
        let paths = Paths { proc: dir.path().into(), ..Paths::default() };
        assert_eq!(start_time(&paths, 9), Some(4711));
        assert_eq!(start_time(&paths, 10), None);
    }

    #[test]
    fn this_process_has_a_start_time_and_this_machine_a_boot_id() {
        let paths = Paths::default();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(&paths, own).is_some_and(|ticks| ticks > 0));
        assert_eq!(boot_id(&paths).unwrap().len(), 36);
    }

    #[test]
    fn a_container_is_known_by_its_control_group() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { proc: dir.path().into(), ..Paths::default() };
        let id = "0123456789abcdef".repeat(4);
        fs::create_dir(dir.path().join("9")).unwrap();
        for (groups, found) in [
            (format!("0::/system.slice/docker-{id}.scope\n"), Some(&id)),
            (format!("5:memory:/docker/{id}\n1:name=systemd:/docker/{id}\n"), Some(&id)),
            (format!("0::/machine.slice/libpod-{id}.scope/container\n"), Some(&id)),
            ("0::/user.slice/user-1000.slice/session-3.scope\n".to_owned(), None),
            (format!("0::/x/{id}0\n"), None),
        ] {
            fs::write(dir.path().join("9/cgroup"), &groups).unwrap();
            assert_eq!(container_of(&paths, 9).as_ref(), found, "{groups}");
        }
        assert_eq!(container_of(&paths, 10), None);
    }

    #[test]
    fn a_process_with_an_open_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let _open = fs::File::create(dir.path().join("file")).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let users = file_users(&Paths::default(), dir.path());
        assert!(users.iter().any(|(pid, _)| *pid == own), "{users:?}");
    }
}
