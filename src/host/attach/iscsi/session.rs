//! iSCSI sessions and what hangs below them, as sysfs shows them.
//!
//! ```text
//! /sys/class/iscsi_session/session3/{targetname,state}
//! /sys/class/iscsi_session/session3/device ─▶ /sys/devices/platform/host0/session3
//!     …/session3/target0:0:0/0:0:0:1/{type,state,wwid,delete}        host:channel:target:LUN
//!     …/session3/target0:0:0/0:0:0:1/block/sdb
//! /sys/class/iscsi_connection/connection3:0/{persistent_address,persistent_port}
//! /sys/class/scsi_host/host0/scan
//! ```

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::IscsiPath;
use crate::host::attach::block::attribute;
use crate::host::{HostError, Paths};

/// SCSI peripheral device type of a storage array controller (SPC-4, table 144): the LUN that
/// an array shows besides the disks, and nobody's data.
const ARRAY_CONTROLLER: &str = "12";

/// A session with a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its number: `3` of `session3`.
    pub id: u32,
    /// The target's name.
    pub iqn: String,
    /// The portal that the login was asked for, whatever the target redirected it to.
    pub portal: Option<SocketAddr>,
    /// `LOGGED_IN`, `FAILED` or `FREE`.
    pub state: String,
    /// `/sys/devices/…/session3`.
    pub directory: PathBuf,
}

/// A logical unit that the kernel has below a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lun {
    /// Its number.
    pub lun: u64,
    /// `…/target0:0:0/0:0:0:1`.
    pub directory: PathBuf,
    /// The kernel's name of the disk: `sdb`; `None` while it is being set up, and for what is
    /// no disk.
    pub disk: Option<String>,
}

/// All sessions of this host; none when the kernel has no initiator. One that ends while we
/// look is left out.
pub fn all(paths: &Paths) -> Result<Vec<Session>, HostError> {
    let class = paths.sys.join("class/iscsi_session");
    let entries = match fs::read_dir(&class) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(HostError::io("read", class, source)),
    };
    Ok(entries.flatten().filter_map(|entry| read(paths, &entry.path())).collect())
}

fn read(paths: &Paths, class: &Path) -> Option<Session> {
    let id: u32 = class.file_name()?.to_str()?.strip_prefix("session")?.parse().ok()?;
    let connection = paths.sys.join(format!("class/iscsi_connection/connection{id}:0"));
    // The address that is connected to now is the fallback: very old kernels lack the other.
    let portal = ["persistent_", ""].iter().find_map(|prefix| {
        let address: IpAddr =
            attribute(&connection, &format!("{prefix}address")).ok()?.parse().ok()?;
        let port = attribute(&connection, &format!("{prefix}port")).ok()?.parse().ok()?;
        Some(SocketAddr::new(address, port))
    });
    Some(Session {
        id,
        iqn: attribute(class, "targetname").ok()?,
        portal,
        state: attribute(class, "state").ok()?,
        directory: fs::canonicalize(class.join("device")).ok()?,
    })
}

impl Session {
    /// Whether it goes to the target of this path through its portal.
    pub fn serves(&self, path: &IscsiPath) -> bool {
        self.iqn == path.iqn && self.portal.is_some() && self.portal == path.portal.parse().ok()
    }

    /// Whether it carries I/O now.
    pub fn is_logged_in(&self) -> bool {
        self.state == "LOGGED_IN"
    }

    /// The SCSI host that it belongs to: `host0`.
    pub fn host(&self) -> Option<&str> {
        self.directory.parent()?.file_name()?.to_str().filter(|name| name.starts_with("host"))
    }

    /// Every logical unit that the kernel has below it.
    pub fn luns(&self) -> Vec<Lun> {
        let targets = children(&self.directory, |name| name.starts_with("target"));
        targets
            .iter()
            .flat_map(|target| children(target, |name| name.matches(':').count() == 3))
            .filter_map(|directory| {
                let lun = directory.file_name()?.to_str()?.rsplit(':').next()?.parse().ok()?;
                let disk = children(&directory.join("block"), |_| true).pop();
                let disk = disk.and_then(|disk| Some(disk.file_name()?.to_str()?.to_owned()));
                Some(Lun { lun, directory, disk })
            })
            .collect()
    }

    /// The logical unit with this number.
    pub fn lun(&self, lun: u64) -> Option<Lun> {
        self.luns().into_iter().find(|found| found.lun == lun)
    }

    /// Whether a logical unit is there that a logout would take from somebody.
    pub fn is_used(&self) -> bool {
        let kind = |lun: &Lun| attribute(&lun.directory, "type");
        self.luns().iter().any(|lun| kind(lun).is_ok_and(|kind| kind != ARRAY_CONTROLLER))
    }
}

impl Lun {
    /// Its world-wide id.
    pub fn wwid(&self) -> Option<String> {
        attribute(&self.directory, "wwid").ok().filter(|wwid| !wwid.is_empty())
    }

    /// Whether the kernel still has it.
    pub fn exists(&self) -> bool {
        self.directory.exists()
    }
}

fn children(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(&is_wanted))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory that looks like sysfs with sessions.
    pub struct FakeSys(tempfile::TempDir);

    impl FakeSys {
        /// Of a host in the boot `boot-1`.
        pub fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let random = root.path().join("proc/sys/kernel/random");
            fs::create_dir_all(&random).unwrap();
            fs::write(random.join("boot_id"), "boot-1\n").unwrap();
            Self(root)
        }

        pub fn paths(&self) -> Paths {
            Paths {
                sys: self.0.path().join("sys"),
                proc: self.0.path().join("proc"),
                iscsi_db: Some(self.0.path().join("db")),
                ..Paths::default()
            }
        }

        fn put(&self, file: &str, text: &str) {
            let file = self.0.path().join("sys").join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("{text}\n")).unwrap();
        }

        pub fn session(&self, id: u32, iqn: &str, address: &str, port: u16, state: &str) {
            let device = format!("devices/platform/host{id}/session{id}");
            fs::create_dir_all(self.0.path().join("sys").join(&device)).unwrap();
            let class = format!("class/iscsi_session/session{id}");
            self.put(&format!("{class}/targetname"), iqn);
            self.put(&format!("{class}/state"), state);
            symlink(
                self.0.path().join("sys").join(&device),
                self.0.path().join("sys").join(&class).join("device"),
            )
            .unwrap();
            let connection = format!("class/iscsi_connection/connection{id}:0");
            self.put(&format!("{connection}/persistent_address"), address);
            self.put(&format!("{connection}/persistent_port"), &port.to_string());
        }

        pub fn lun(&self, id: u32, lun: u64, kind: &str, disk: Option<&str>, wwid: &str) {
            let directory =
                format!("devices/platform/host{id}/session{id}/target{id}:0:0/{id}:0:0:{lun}");
            self.put(&format!("{directory}/type"), kind);
            self.put(&format!("{directory}/wwid"), wwid);
            if let Some(disk) = disk {
                self.put(&format!("{directory}/block/{disk}/size"), "2048");
            }
        }
    }

    pub fn path(iqn: &str, portal: &str, lun: u64) -> IscsiPath {
        IscsiPath {
            portal: portal.into(),
            iqn: iqn.into(),
            lun,
            opened_session: false,
            wrote_node: false,
        }
    }

    #[test]
    fn a_session_is_found_by_target_and_portal() {
        let sys = FakeSys::new();
        sys.session(1, "iqn.a:1", "10.0.0.9", 3260, "LOGGED_IN");
        sys.session(2, "iqn.a:1", "fd00::1", 3260, "FAILED");
        let sessions = all(&sys.paths()).unwrap();
        let serving = |path: IscsiPath| {
            sessions.iter().filter(|s| s.serves(&path)).map(|s| s.id).collect::<Vec<_>>()
        };
        assert_eq!(serving(path("iqn.a:1", "10.0.0.9:3260", 1)), [1]);
        assert_eq!(serving(path("iqn.a:1", "[fd00::1]:3260", 1)), [2]);
        assert!(serving(path("iqn.a:1", "10.0.0.9:3261", 1)).is_empty());
        assert!(serving(path("iqn.a:2", "10.0.0.9:3260", 1)).is_empty());
        assert_eq!(sessions.iter().filter(|s| s.is_logged_in()).count(), 1);
        assert!(sessions.iter().all(|s| s.host() == Some(&format!("host{}", s.id))));
    }

    #[test]
    fn luns_are_found_below_their_own_session_only() {
        let sys = FakeSys::new();
        sys.session(1, "iqn.a:1", "10.0.0.9", 3260, "LOGGED_IN");
        sys.session(2, "iqn.a:2", "10.0.0.9", 3260, "LOGGED_IN");
        sys.lun(1, 1, "0", Some("sda"), "naa.1");
        sys.lun(1, 11, "0", Some("sdb"), "naa.11");
        sys.lun(2, 1, "0", None, "naa.2");
        let sessions = all(&sys.paths()).unwrap();
        let session = |id| sessions.iter().find(|s| s.id == id).unwrap();
        assert_eq!(session(1).lun(1).unwrap().disk.as_deref(), Some("sda"));
        assert_eq!(session(1).lun(11).unwrap().wwid().as_deref(), Some("naa.11"));
        assert_eq!(session(1).lun(2), None);
        assert_eq!(session(2).lun(1).unwrap().disk, None);
    }

    #[test]
    fn the_controller_lun_of_an_array_does_not_keep_a_session() {
        let sys = FakeSys::new();
        sys.session(1, "iqn.a:1", "10.0.0.9", 3260, "LOGGED_IN");
        sys.lun(1, 0, "12", None, "");
        assert!(!all(&sys.paths()).unwrap()[0].is_used());
        sys.lun(1, 1, "0", Some("sda"), "naa.1");
        assert!(all(&sys.paths()).unwrap()[0].is_used());
    }

    #[test]
    fn a_host_without_an_initiator_has_no_sessions() {
        assert!(all(&FakeSys::new().paths()).unwrap().is_empty());
    }
}
