//! Node records: how open-iscsi keeps what a login needs, one text file a target and portal.
//!
//! We write them ourselves, because `iscsiadm --op update` would take the CHAP password on its
//! command line, where every process can read it. The form is that of `iscsiadm --op new`: the
//! file `nodes/IQN/ADDRESS,PORT` of open-iscsi's data base; what a record leaves out comes from
//! open-iscsi's defaults.
//!
//! # Whose session is it?
//!
//! A record of ours begins with a mark that names this boot. It is written, under the target's
//! lock, only when there is no session through that portal. So a session beside a record with a
//! mark of this boot was opened by us, and the last volume of ours to leave it logs out. The mark
//! and the credentials arrive in one rename, so a crash before the journal knows of the session
//! leaves the proof behind. (A session found without a mark is used and left as it was.)

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::IscsiPath;
use super::connection::Chap;
use crate::effects::{self, Kind};
use crate::host::{HostError, Paths};

/// First words of the mark; a line with `#` is a comment to open-iscsi.
pub(super) const MARK: &str = "# cinder-docker-driver boot=";
/// Upstream's and Red Hat's place, and Debian's since 13.
const UPSTREAM_DB: &str = "/var/lib/iscsi";
/// The interface record that is always there.
pub(super) const DEFAULT_IFACE: &str =
    "iface.iscsi_ifacename = default\niface.transport_name = tcp\n";

/// open-iscsi's data base on this host.
#[derive(Debug)]
pub struct NodeDb {
    root: PathBuf,
}

/// What a node record says of its maker.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner {
    /// There is none.
    Nobody,
    /// This driver, in the boot with this id.
    Us(String),
    /// Somebody else; `automatic` when open-iscsi logs in by itself at boot.
    Other {
        /// Whether it starts by itself.
        automatic: bool,
    },
}

impl NodeDb {
    /// Finds it: where a distribution keeps `nodes`.
    pub fn find(paths: &Paths) -> Self {
        if let Some(root) = &paths.iscsi_db {
            return Self { root: root.clone() };
        }
        let upstream = PathBuf::from(UPSTREAM_DB);
        let debian = paths.etc.join("iscsi");
        let root = if upstream.join("nodes").is_dir() {
            upstream
        } else if debian.join("nodes").is_dir() || !upstream.is_dir() {
            debian
        } else {
            upstream
        };
        Self { root }
    }

    /// Whose the record of this target and portal is.
    pub fn owner(&self, path: &IscsiPath) -> Result<Owner, HostError> {
        let mut owner = Owner::Nobody;
        for file in self.files(path)? {
            let text = match fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(HostError::io("read", file, source)),
            };
            match owner_of(&text) {
                // Somebody else's beside ours: what iscsiadm would take is not known.
                other @ Owner::Other { .. } => return Ok(other),
                ours => owner = ours,
            }
        }
        Ok(owner)
    }

    /// Targets and portals whose record is ours, of whatever boot.
    pub fn ours(&self) -> Result<Vec<IscsiPath>, HostError> {
        let mut found = Vec::new();
        for target in list(&self.root.join("nodes"))? {
            let Some(iqn) = target.file_name().and_then(|name| name.to_str()) else { continue };
            if !target.is_dir() {
                continue;
            }
            for file in list(&target)? {
                let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let portal = name.split_once(',').and_then(|(address, port)| {
                    Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
                });
                let Some(portal) = portal else { continue };
                let path = super::way(portal, iqn, 0);
                if matches!(self.owner(&path)?, Owner::Us(_)) {
                    found.push(path);
                }
            }
        }
        Ok(found)
    }

    /// Writes the record in place of any other of this target and portal.
    pub fn write(
        &self,
        path: &IscsiPath,
        chap: Option<&Chap>,
        iface: Option<&str>,
        boot_id: &str,
    ) -> Result<(), HostError> {
        let portal = address_of(path)?;
        let text = text(path, portal, chap, &self.iface_lines(iface)?, boot_id);
        let target = self.target_directory(path);
        // A record with a portal group tag is another one to iscsiadm, and would be logged in too.
        for file in self.files(path)? {
            remove_file(&file)?;
        }
        effects::run_blocking(
            Kind::File,
            || format!("mkdir {}", target.display()),
            || DirBuilder::new().recursive(true).mode(0o700).create(&target),
        )
        .map_err(|source| HostError::io("create", &target, source))?;
        // Beside `nodes`, where iscsiadm does not take it for a record.
        let temporary = self.root.join(format!(".cinder-docker-driver.{}", uuid::Uuid::new_v4()));
        let what = || format!("write the node record {}", target.join(file_name(portal)).display());
        let written = effects::run_blocking(Kind::File, what, || {
            write_new(&temporary, &text)?;
            fs::rename(&temporary, target.join(file_name(portal)))
        });
        written.map_err(|source| {
            // Secrets must not stay behind; a failed removal is the lesser trouble.
            let _ = fs::remove_file(&temporary);
            HostError::io("write a node record below", target, source)
        })
    }

    /// Removes the record if it is ours, by its mark or by the journal, and directories that are
    /// empty then.
    pub fn remove(&self, path: &IscsiPath) -> Result<(), HostError> {
        if path.wrote_node || matches!(self.owner(path)?, Owner::Us(_)) {
            for file in self.files(path)? {
                remove_file(&file)?;
            }
            // Refused while it holds other portals' records.
            let _ = fs::remove_dir(self.target_directory(path));
        }
        Ok(())
    }

    fn target_directory(&self, path: &IscsiPath) -> PathBuf {
        self.root.join("nodes").join(&path.iqn)
    }

    /// All records of a target and portal: `ADDRESS,PORT`, and `ADDRESS,PORT,TAG/INTERFACE`
    /// where discovery told the portal group tag.
    fn files(&self, path: &IscsiPath) -> Result<Vec<PathBuf>, HostError> {
        let name = file_name(address_of(path)?);
        let directory = self.target_directory(path);
        let mut files = Vec::new();
        for entry in list(&directory)? {
            let Some(found) = entry.file_name().and_then(|name| name.to_str()) else { continue };
            if found == name && entry.is_file() {
                files.push(entry);
            } else if found.strip_prefix(&name).is_some_and(|rest| rest.starts_with(',')) {
                files.extend(list(&entry)?);
            }
        }
        Ok(files)
    }

    /// The lines that bind a login to an interface record, as `iscsiadm -I NAME --op new` copies
    /// them.
    fn iface_lines(&self, iface: Option<&str>) -> Result<String, HostError> {
        let Some(iface) = iface else { return Ok(DEFAULT_IFACE.to_owned()) };
        let file = self.root.join("ifaces").join(iface);
        let text =
            fs::read_to_string(&file).map_err(|source| HostError::io("read", file, source))?;
        let lines = text.lines().filter(|line| line.starts_with("iface."));
        Ok(lines.flat_map(|line| [line, "\n"]).collect())
    }
}

pub(super) fn text(
    path: &IscsiPath,
    portal: SocketAddr,
    chap: Option<&Chap>,
    iface: &str,
    boot_id: &str,
) -> String {
    let auth = match chap {
        Some(chap) => chap.record_lines(),
        None => "node.session.auth.authmethod = None\n".to_owned(),
    };
    // Tag -1 is "not known". Startup and scan: after a reboot nothing may log in by itself to a
    // volume that another host uses by then, and a login must not bring in other LUNs.
    format!(
        "{MARK}{boot_id}\n\
         node.name = {iqn}\n\
         node.tpgt = -1\n\
         node.startup = manual\n\
         {iface}\
         node.discovery_type = static\n\
         node.session.scan = manual\n\
         {auth}\
         node.session.initial_login_retry_max = 1\n\
         node.session.timeo.replacement_timeout = 120\n\
         node.conn[0].timeo.login_timeout = 10\n\
         node.conn[0].address = {address}\n\
         node.conn[0].port = {port}\n\
         node.conn[0].startup = manual\n",
        iqn = path.iqn,
        address = portal.ip(),
        port = portal.port(),
    )
}

pub(super) fn owner_of(text: &str) -> Owner {
    if let Some(boot_id) = text.lines().next().and_then(|line| line.strip_prefix(MARK)) {
        return Owner::Us(boot_id.trim().to_owned());
    }
    let mut startup = text.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "node.startup").then(|| value.trim())
    });
    // open-iscsi takes the last.
    Owner::Other { automatic: matches!(startup.next_back(), Some("automatic" | "onboot")) }
}

pub(super) fn address_of(path: &IscsiPath) -> Result<SocketAddr, HostError> {
    path.portal.parse().map_err(|_| HostError::Refused {
        what: format!("the recorded portal {:?} is not an address", path.portal),
    })
}

pub(super) fn file_name(portal: SocketAddr) -> String {
    format!("{},{}", portal.ip(), portal.port())
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, HostError> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(HostError::io("read", directory, source)),
    }
}

fn write_new(file: &Path, text: &str) -> io::Result<()> {
    let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    open.write_all(text.as_bytes())
}

/// Removes a record, and its directory `ADDRESS,PORT,TAG` when that is empty then.
fn remove_file(file: &Path) -> Result<(), HostError> {
    let what = || format!("remove the node record {}", file.display());
    match effects::run_blocking(Kind::File, what, || fs::remove_file(file)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(HostError::io("remove", file, source)),
    }
    if let Some(parent) = file.parent() {
        // Refused while something else is in it.
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use secrecy::SecretString;

    use super::*;

    fn path() -> IscsiPath {
        IscsiPath {
            portal: "10.0.0.9:3260".into(),
            iqn: "iqn.2010-10.org.openstack:volume-1".into(),
            lun: 1,
            opened_session: false,
            wrote_node: false,
        }
    }

    fn db() -> (tempfile::TempDir, NodeDb) {
        let dir = tempfile::tempdir().unwrap();
        let db = NodeDb { root: dir.path().to_owned() };
        (dir, db)
    }

    fn chap() -> Chap {
        Chap { username: SecretString::from("user"), password: SecretString::from("a #b c") }
    }

    #[test]
    fn a_record_has_the_credentials_and_never_starts_by_itself() {
        let (dir, db) = db();
        db.write(&path(), Some(&chap()), None, "boot-1").unwrap();
        let file = dir.path().join("nodes/iqn.2010-10.org.openstack:volume-1/10.0.0.9,3260");
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(
            text,
            "# cinder-docker-driver boot=boot-1\n\
             node.name = iqn.2010-10.org.openstack:volume-1\n\
             node.tpgt = -1\n\
             node.startup = manual\n\
             iface.iscsi_ifacename = default\n\
             iface.transport_name = tcp\n\
             node.discovery_type = static\n\
             node.session.scan = manual\n\
             node.session.auth.authmethod = CHAP\n\
             node.session.auth.username = user\n\
             node.session.auth.password = a #b c\n\
             node.session.initial_login_retry_max = 1\n\
             node.session.timeo.replacement_timeout = 120\n\
             node.conn[0].timeo.login_timeout = 10\n\
             node.conn[0].address = 10.0.0.9\n\
             node.conn[0].port = 3260\n\
             node.conn[0].startup = manual\n"
        );
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let directory = file.parent().unwrap();
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left");
    }

    #[test]
    fn a_record_of_an_ipv6_portal_has_the_bare_address() {
        let (dir, db) = db();
        let path = IscsiPath { portal: "[fd00::1]:3261".into(), ..path() };
        db.write(&path, None, None, "boot-1").unwrap();
        let file = dir.path().join("nodes").join(&path.iqn).join("fd00::1,3261");
        let text = fs::read_to_string(file).unwrap();
        assert!(text.contains("address = fd00::1\nnode.conn[0].port = 3261\n"), "{text}");
        assert!(text.contains("authmethod = None\n"), "{text}");
    }

    #[test]
    fn an_interface_record_is_copied_in() {
        let (dir, db) = db();
        fs::create_dir(dir.path().join("ifaces")).unwrap();
        fs::write(
            dir.path().join("ifaces/san"),
            "# BEGIN RECORD 2.1.8\niface.iscsi_ifacename = san\niface.net_ifacename = eth1\n",
        )
        .unwrap();
        let lines = db.iface_lines(Some("san")).unwrap();
        assert_eq!(lines, "iface.iscsi_ifacename = san\niface.net_ifacename = eth1\n");
        assert!(db.iface_lines(Some("absent")).is_err());
    }

    #[test]
    fn the_mark_tells_whose_a_record_is() {
        let (_dir, db) = db();
        assert_eq!(db.owner(&path()).unwrap(), Owner::Nobody);
        db.write(&path(), None, None, "boot-1").unwrap();
        assert_eq!(db.owner(&path()).unwrap(), Owner::Us("boot-1".into()));
        assert_eq!(
            owner_of("# BEGIN RECORD 2.1.8\nnode.startup = automatic\n"),
            Owner::Other { automatic: true }
        );
        assert_eq!(owner_of("node.startup = manual\n"), Owner::Other { automatic: false });
        let twice = "node.startup = manual\nnode.startup = automatic\n";
        assert_eq!(owner_of(twice), Owner::Other { automatic: true }, "the last one counts");
    }

    #[test]
    fn records_of_ours_are_listed_whatever_their_boot_and_no_others() {
        let (dir, db) = db();
        assert_eq!(db.ours().unwrap(), []);
        let second = IscsiPath { portal: "[fd00::1]:3261".into(), ..path() };
        db.write(&path(), None, None, "boot-1").unwrap();
        db.write(&second, None, None, "boot-2").unwrap();
        let nodes = dir.path().join("nodes");
        let theirs = nodes.join("iqn.x:theirs");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("10.0.0.9,3260"), "node.startup = manual\n").unwrap();
        fs::write(nodes.join(path().iqn).join("README"), MARK).unwrap();
        fs::write(nodes.join("README"), MARK).unwrap();
        let mut found = db.ours().unwrap();
        found.sort_by(|a, b| a.portal.cmp(&b.portal));
        assert_eq!(found, [IscsiPath { lun: 0, ..path() }, IscsiPath { lun: 0, ..second }]);
    }

    #[test]
    fn writing_replaces_every_form_of_the_record() {
        let (dir, db) = db();
        let tagged = dir.path().join("nodes").join(path().iqn).join("10.0.0.9,3260,1");
        fs::create_dir_all(&tagged).unwrap();
        fs::write(tagged.join("default"), "node.startup = manual\n").unwrap();
        assert_eq!(db.owner(&path()).unwrap(), Owner::Other { automatic: false });
        db.write(&path(), None, None, "boot-1").unwrap();
        assert!(!tagged.exists());
        assert_eq!(db.owner(&path()).unwrap(), Owner::Us("boot-1".into()));
    }

    #[test]
    fn only_our_record_is_removed_and_other_portals_stay() {
        let (dir, db) = db();
        let directory = dir.path().join("nodes").join(path().iqn);
        let similar = IscsiPath { portal: "10.0.0.9:32601".into(), ..path() };
        db.write(&path(), None, None, "boot-1").unwrap();
        db.write(&similar, None, None, "boot-1").unwrap();
        db.remove(&path()).unwrap();
        assert!(!directory.join("10.0.0.9,3260").exists());
        assert!(directory.join("10.0.0.9,32601").exists());
        db.remove(&path()).unwrap();
        db.remove(&similar).unwrap();
        assert!(!directory.exists());

        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("10.0.0.9,3260"), "node.startup = manual\n").unwrap();
        db.remove(&path()).unwrap();
        assert!(directory.join("10.0.0.9,3260").exists());
    }
}
