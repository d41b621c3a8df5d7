//! Volumes as iSCSI targets of a tgtd of our own, as Cinder's reference driver serves them.
//!
//! tgtd outlives the sandbox, as exports do. Its control socket is private: its number is that of
//! the portal's port, which only one process can have. A target shows a grown volume's new size
//! only after it was closed and opened again, as with the real one.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use crate::error_chain::Chain;
use crate::host::exec::ExecError;
use crate::host::{Cmd, Exec, Paths};
use crate::sandbox::state::Chap;

/// tgtd's control port is a C `short`; below the ports that the kernel hands out.
const PORTS: std::ops::Range<u16> = 20_000..32_767;
/// tgtd's control socket; the control port is appended.
const SOCKET: &str = "/var/run/tgtd/socket";
/// tgtd says at once whether it could start, to those who ask it; on a busy machine, late.
const STARTED_WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
const TOOL_TIMEOUT: Duration = Duration::from_secs(10);
/// tgtadm says this of a target with a session.
const ACTIVE: &str = "this target is still active";

/// A tgtd.
#[derive(Debug)]
pub(in crate::sandbox) struct Targets {
    exec: Exec,
    port: u16,
    /// A new target takes the number after the highest.
    numbers: tokio::sync::Mutex<()>,
}

impl Targets {
    /// Finds the tgtd of this sandbox on `port`, or starts one there, or on a free port.
    pub(in crate::sandbox) async fn start(dir: &Path, port: Option<u16>) -> io::Result<Self> {
        let exec = Exec::new(&Paths::default());
        for tool in ["tgtd", "tgtadm"] {
            exec.find(tool).map_err(in_words)?;
        }
        let candidates: Vec<u16> = match port {
            Some(port) => vec![port],
            None => free_ports(dir).collect(),
        };
        for port in candidates {
            let targets = Self { exec: exec.clone(), port, numbers: tokio::sync::Mutex::default() };
            if targets.serves().await || targets.begin().await? {
                return Ok(targets);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            match port {
                Some(port) => format!("tgtd cannot listen on 127.0.0.1:{port}"),
                None => "tgtd cannot listen on any of many ports".to_owned(),
            },
        ))
    }

    pub(in crate::sandbox) fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`
    pub(in crate::sandbox) fn portal(&self) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// The name of a volume's target.
    pub(in crate::sandbox) fn name(volume: Uuid) -> String {
        format!("iqn.2010-10.org.openstack:volume-{volume}")
    }

    /// A tgtd answers on our socket and has our portal.
    async fn serves(&self) -> bool {
        let shown = self.tgtadm("portal", "show", &[]).await;
        shown.is_ok_and(|shown| shown.contains(&format!("{},", self.portal())))
    }

    /// Starts tgtd. It goes to the background and its exit code says nothing, so we ask it.
    async fn begin(&self) -> io::Result<bool> {
        let cmd = Cmd::new("tgtd", TOOL_TIMEOUT)
            .args(["-C", &self.port.to_string()])
            .args(["--iscsi", &format!("portal={}", self.portal())]);
        self.exec.run(&cmd).await.map_err(in_words)?;
        let started = async {
            while self.tgtadm("portal", "show", &[]).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        };
        let answers = tokio::time::timeout(STARTED_WITHIN, started).await.is_ok();
        if answers && self.serves().await {
            return Ok(true);
        }
        // It could not have the portal: it must not stay.
        if answers {
            self.stop().await?;
        }
        Ok(false)
    }

    /// Ends tgtd, unless a target is there.
    pub(in crate::sandbox) async fn stop(&self) -> io::Result<()> {
        self.tgtadm("system", "delete", &[]).await.map_err(in_words)?;
        for suffix in ["", ".lock"] {
            // tgtd leaves them; nobody misses one that is gone already.
            let _ = std::fs::remove_file(format!("{SOCKET}.{}{suffix}", self.port));
        }
        Ok(())
    }

    /// Makes the target of a volume: LUN 1, one CHAP account, for everybody who knows it. One that
    /// is there stays.
    pub(in crate::sandbox) async fn open(
        &self,
        volume: Uuid,
        file: &Path,
        chap: &Chap,
    ) -> io::Result<()> {
        let _one_by_one = self.numbers.lock().await;
        let shown = self.tgtadm("target", "show", &[]).await.map_err(in_words)?;
        let there = numbers(&shown);
        if there.iter().any(|(_, name)| *name == Self::name(volume)) {
            return Ok(());
        }
        let number = there.iter().map(|(number, _)| number + 1).max().unwrap_or(1).to_string();
        let made = self.make(volume, file, chap, &number).await;
        if made.is_err() {
            // Half a target would be taken for a whole one; what failed first is the error.
            let _ = self.tgtadm("target", "delete", &["--tid", &number]).await;
        }
        made.map_err(in_words)
    }

    async fn make(
        &self,
        volume: Uuid,
        file: &Path,
        chap: &Chap,
        number: &str,
    ) -> Result<(), ExecError> {
        let name = Self::name(volume);
        let file = file.display().to_string();
        // Its own WWID for each volume; tgt's own repeat with the target's number.
        let id = volume.simple().to_string();
        let identity = format!("scsi_id={id},scsi_sn={}", id.get(..8).unwrap_or(&id));
        // An account that an earlier target left behind is in the way.
        let _ = self.tgtadm("account", "delete", &["--user", &chap.username]).await;
        // The password on the command line protects nothing but a sandbox; tgtadm has no other way.
        let account = ["--user", &*chap.username, "--password", &*chap.password];
        self.tgtadm("target", "new", &["--tid", number, "--targetname", &name]).await?;
        let lun = ["--tid", number, "--lun", "1"];
        self.tgtadm("logicalunit", "new", &[&lun[..], &["--backing-store", &file]].concat())
            .await?;
        self.tgtadm("logicalunit", "update", &[&lun[..], &["--params", &identity]].concat())
            .await?;
        self.tgtadm("account", "new", &account).await?;
        self.tgtadm("account", "bind", &["--tid", number, "--user", &chap.username]).await?;
        self.tgtadm("target", "bind", &["--tid", number, "--initiator-address", "ALL"]).await?;
        Ok(())
    }

    /// Removes the target of a volume; there may be none. [`io::ErrorKind::ResourceBusy`] when it
    /// has a session: tgtd 1.0.85 aborts when a LUN in use is taken by force (measured).
    pub(in crate::sandbox) async fn close(&self, volume: Uuid) -> io::Result<()> {
        let _one_by_one = self.numbers.lock().await;
        let shown = self.tgtadm("target", "show", &[]).await.map_err(in_words)?;
        let Some((number, _)) =
            numbers(&shown).into_iter().find(|(_, name)| *name == Self::name(volume))
        else {
            return Ok(());
        };
        let deleted = self.tgtadm("target", "delete", &["--tid", &number.to_string()]).await;
        deleted.map(drop).map_err(|error| match &error {
            ExecError::Failed { output, .. } if output.contains(ACTIVE) => {
                io::Error::new(io::ErrorKind::ResourceBusy, Chain(&error).to_string())
            }
            _ => in_words(error),
        })
    }

    async fn tgtadm(&self, mode: &str, op: &str, args: &[&str]) -> Result<String, ExecError> {
        let cmd = Cmd::new("tgtadm", TOOL_TIMEOUT)
            .args(["-C", &self.port.to_string(), "--lld", "iscsi"])
            .args(["--mode", mode, "--op", op])
            .args(args);
        Ok(self.exec.run(&cmd).await?.stdout)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn in_words(error: ExecError) -> io::Error {
    io::Error::other(Chain(&error).to_string())
}

/// Ports that nobody has, beginning at one that belongs to this directory.
fn free_ports(dir: &Path) -> impl Iterator<Item = u16> {
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, dir.as_os_str().as_encoded_bytes()).as_u128();
    let count = u128::from(PORTS.end - PORTS.start);
    let first = PORTS.start + u16::try_from(hash % count).unwrap_or(0);
    let ports = (first..PORTS.end).chain(PORTS.start..first);
    ports.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).take(10)
}

/// Number and name of each target: lines `Target 1: iqn…`.
fn numbers(shown: &str) -> Vec<(u32, &str)> {
    let lines = shown.lines().filter_map(|line| line.strip_prefix("Target "));
    lines
        .filter_map(|line| line.split_once(": "))
        .filter_map(|(number, name)| Some((number.parse().ok()?, name.trim())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_from_what_tgtadm_shows() {
        let shown = "Target 1: iqn.a\n    System information:\nTarget 12: iqn.b\n";
        assert_eq!(numbers(shown), [(1, "iqn.a"), (12, "iqn.b")]);
    }

    #[test]
    fn a_free_port_is_one_that_can_be_had() {
        let dir = Path::new("/some/where");
        let port = free_ports(dir).next().unwrap();
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_ne!(free_ports(dir).next(), Some(port));
    }
}
