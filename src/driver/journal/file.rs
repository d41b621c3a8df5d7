//! Small JSON files that survive a power cut.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::effects::{self, Kind};

/// Creates a directory and its parents for root alone.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens a file of ours for root alone, never through a symbolic link.
pub fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
}

/// Replaces a file: temp + fsync + rename + fsync(directory).
pub async fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    let path = path.to_owned();
    blocking(move || {
        let temporary = path.with_extension("new");
        let shown = |path: &Path| path.display().to_string();
        let write = || {
            let mut file = open_private(&temporary)?;
            file.set_len(0)?;
            file.write_all(&text)?;
            file.sync_all()
        };
        let rename = || {
            std::fs::rename(&temporary, &path)?;
            sync_parent(&path)
        };
        effects::run_blocking(Kind::Journal, || format!("write {}", shown(&temporary)), write)
            .and_then(|()| {
                effects::run_blocking(
                    Kind::Journal,
                    || format!("rename to {}", shown(&path)),
                    rename,
                )
            })
            .inspect_err(|_| remove_temporary(&temporary))
    })
    .await
}

/// Removes what writing left that did not come to its end.
fn remove_temporary(path: &Path) {
    let what = || format!("remove {}", path.display());
    match effects::run_blocking(Kind::Journal, what, || std::fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "an unfinished file stays");
        }
        _ => {}
    }
}

/// Removes what an earlier run was writing when it ended. For when nobody writes.
pub fn remove_unfinished(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            remove_temporary(&path);
        }
    }
    Ok(())
}

/// Removes a file for good; one that isn't there is fine.
pub async fn remove(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    blocking(move || {
        effects::run_blocking(
            Kind::Journal,
            || format!("remove {}", path.display()),
            || match std::fs::remove_file(&path) {
                Ok(()) => sync_parent(&path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            },
        )
    })
    .await
}

/// Every `*.json` of a directory with its value, or what is wrong with it.
pub fn read_all<T: DeserializeOwned>(
    directory: &Path,
) -> io::Result<Vec<(PathBuf, Result<T, String>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let value = read(&path);
            found.push((path, value));
        }
    }
    Ok(found)
}

/// The value of one file, or what is wrong with it.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = read_plain(path).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

/// Reads a file, never through a symbolic link; a pipe or a device in its place is not waited for.
fn read_plain(path: &Path) -> io::Result<Vec<u8>> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => return Err(not_plain()),
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(not_plain());
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(text)
}

fn not_plain() -> io::Error {
    io::Error::other("it is no plain file")
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
