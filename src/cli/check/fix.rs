//! `check --fix`: what can be mended without touching data, each thing said when it is done. What
//! cannot be mended so is left to the check that follows.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::libc::{O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK};
use nix::unistd::{Gid, Uid, fchown};

use super::host::{has_module, iscsid_listens};
use super::leftovers::{Left, stray_records, stray_sessions, strays};
use crate::config;
use crate::effects::{self, Kind};
use crate::error_chain::Chain;
use crate::host::attach::iscsi;
use crate::host::exec::{Cmd, Exec};
use crate::host::{HostError, Paths};

/// For systemctl and modprobe.
const TOOL_LIMIT: Duration = Duration::from_secs(30);
/// The iSCSI initiator over TCP.
const MODULE: &str = "iscsi_tcp";

/// Mends what it safely can, and writes a line for each thing done or tried in vain.
///
/// # Errors
/// When nothing can be written to `out`; what could not be mended is a line.
pub async fn mend(config: &Path, paths: &Paths, out: &mut impl Write) -> io::Result<()> {
    if !Uid::effective().is_root() {
        return writeln!(out, "not root: nothing is mended");
    }
    let exec = Exec::new(paths);
    let mut done = Done { out, any: false };
    done.note("chmod 600 the config", tighten_config(config))?;
    if let Ok((settings, _)) = config::load(config, &|name| std::env::var(name).ok()) {
        let (state, mounts) = (&settings.driver.state_dir, &settings.host.mount_point);
        for directory in [state, mounts] {
            let what = format!("make {} root's alone", directory.display());
            done.note(&what, make_private(directory))?;
        }
        // Before the journal is read: whoever connects now has written there first.
        let sessions = iscsi::sessions(paths).unwrap_or_default();
        let records = iscsi::idle_records(paths).unwrap_or_default();
        if let Some(left) = Left::read(state) {
            for session in stray_sessions(sessions, &left) {
                let what = format!("end iSCSI session {} with {}", session.id, session.target);
                let ended = iscsi::end(paths, &exec, &session).await;
                done.note(&what, ended.map(|()| true).map_err(|error| told(&error)))?;
            }
            for record in stray_records(records, &left) {
                let what = format!("remove the record of {} at {}", record.iqn, record.portal);
                let removed = iscsi::remove_record(paths, &record);
                done.note(&what, removed.map(|()| true).map_err(|error| told(&error)))?;
            }
            for (stray, _) in strays(paths, mounts, &left).iter().filter(|(_, empty)| *empty) {
                let what = format!("rmdir {}", stray.display());
                // Whatever came into it since keeps it: nothing below it is ever removed.
                let removed = effects::run_blocking(
                    Kind::File,
                    || what.clone(),
                    || std::fs::remove_dir(stray),
                );
                done.note(&what, removed.map(|()| true))?;
            }
        }
    }
    if !has_module(paths, MODULE) {
        let cmd = Cmd::new("modprobe", TOOL_LIMIT).args(["--quiet", MODULE]);
        done.note(&format!("modprobe {MODULE}"), run(&exec, &cmd).await)?;
    }
    if !iscsid_listens(paths) {
        let cmd = Cmd::new("systemctl", TOOL_LIMIT).args(["enable", "--now", "iscsid.socket"]);
        done.note("systemctl enable --now iscsid.socket", run(&exec, &cmd).await)?;
    }
    if !done.any {
        writeln!(done.out, "nothing to mend")?;
    }
    Ok(())
}

struct Done<'a, W> {
    out: &'a mut W,
    any: bool,
}

impl<W: Write> Done<'_, W> {
    /// `false` = it was not needed.
    fn note(&mut self, what: &str, result: io::Result<bool>) -> io::Result<()> {
        match result {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.any = true;
                writeln!(self.out, "mended   {what}")
            }
            Err(error) => {
                self.any = true;
                writeln!(self.out, "failed   {what}: {error}")
            }
        }
    }
}

/// With its causes, in one line.
fn told(error: &HostError) -> io::Error {
    io::Error::other(Chain(error).to_string())
}

async fn run(exec: &Exec, cmd: &Cmd) -> io::Result<bool> {
    exec.run(cmd).await.map(|_| true).map_err(io::Error::other)
}

/// Takes the rights of others away from the file itself, never from what a link leads to.
fn tighten_config(path: &Path) -> io::Result<bool> {
    let file = match open(path, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    let metadata = file.metadata()?;
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_file() || mode & 0o077 == 0 {
        return Ok(false);
    }
    set_mode(&file, path, mode & 0o700)?;
    Ok(true)
}

/// Makes a missing directory, or takes one for root alone; what is no directory is left.
fn make_private(path: &Path) -> io::Result<bool> {
    let directory = match open(path, O_DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let what = || format!("mkdir {}", path.display());
            effects::run_blocking(Kind::File, what, || {
                DirBuilder::new().recursive(true).mode(0o700).create(path)
            })?;
            return Ok(true);
        }
        opened => opened?,
    };
    let metadata = directory.metadata()?;
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.uid() == 0 && mode & 0o077 == 0 {
        return Ok(false);
    }
    if metadata.uid() != 0 {
        let what = || format!("chown root {}", path.display());
        effects::run_blocking(Kind::File, what, || {
            Ok::<_, io::Error>(fchown(&directory, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)))?)
        })?;
    }
    set_mode(&directory, path, 0o700)?;
    Ok(true)
}

/// A link in its place is an error; a pipe is not waited for.
fn open(path: &Path, more: i32) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK | more).open(path)
}

fn set_mode(file: &File, path: &Path, mode: u32) -> io::Result<()> {
    let what = || format!("chmod {mode:o} {}", path.display());
    effects::run_blocking(Kind::File, what, || file.set_permissions(Permissions::from_mode(mode)))
}
