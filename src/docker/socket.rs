//! The plugin socket: bind, adopt from systemd, replace a stale one, never steal a live one.
//!
//! Who can write to this socket is root on this host, so it is never open to others, not for a
//! moment: it is made in a directory that only we may enter and moved into place when its mode and
//! group are right. The move also replaces a stale socket at once. And a dead socket costs every
//! `docker volume` command 15 s: it is removed when the plugin ends.

use std::fs::{self, DirBuilder, File, Metadata, Permissions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrLike, UnixAddr, sockopt};
use nix::unistd::{Gid, Group};
use thiserror::Error;
use tokio::net::UnixListener;

/// Why there is no socket to serve on.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant is its message")]
pub enum SocketError {
    #[error("there is no group {0:?} on this host: correct SocketGroup, or create it (groupadd)")]
    UnknownGroup(String),
    #[error("cannot look up the group {group:?} of the plugin socket")]
    LookUpGroup { group: String, source: io::Error },
    #[error("{0} is not a path for a socket: it needs a directory and a name")]
    BadPath(PathBuf),
    #[error(
        "another process is serving on {0}: stop it first (ss -xlp shows which it is), or choose \
         another --socket"
    )]
    Live(PathBuf),
    #[error(
        "{path} is no place for the plugin socket, which makes root of whoever answers on it: \
         {why}; choose a directory of root's, as /run/docker/plugins"
    )]
    OpenToOthers { path: PathBuf, why: String },
    #[error("another process is just making its socket in {0}: is the plugin started twice?")]
    Contended(PathBuf),
    #[error("{0} is there and is not a socket: it is left alone, move it away")]
    NotASocket(PathBuf),
    #[error("cannot tell whether another process serves on {path}")]
    Probe { path: PathBuf, source: io::Error },
    #[error("cannot make the plugin socket {path}: {step} failed")]
    Make { path: PathBuf, step: &'static str, source: io::Error },
    #[error("systemd passed {0} sockets, but one is wanted: keep one ListenStream=")]
    TooManyPassed(usize),
    #[error("what systemd passed is not a listening Unix stream socket: use ListenStream=/PATH")]
    NotAListener,
    #[error("cannot take the socket over from systemd")]
    Adopt(#[source] io::Error),
}

/// The file of a socket that this process made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: what else is there by that name is not ours.
    identity: (u64, u64),
}

impl SocketFile {
    /// Removes the file, if it is still the one that was made. (Somebody may have moved another
    /// into its place.)
    pub fn unlink(&self) {
        let still_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| identity(&metadata) == self.identity);
        if still_ours && let Err(error) = fs::remove_file(&self.path) {
            let path = self.path.display();
            tracing::warn!(%error, "cannot remove the socket {path}: docker will wait for it");
        }
    }
}

/// The socket that systemd passed (`LISTEN_FDS`), if it passed one. Its file is systemd's and
/// stays.
///
/// Needs a tokio runtime around it.
///
/// # Errors
/// When what was passed is not one listening Unix stream socket.
pub fn adopt() -> Result<Option<UnixListener>, SocketError> {
    let mut passed = sd_notify::listen_fds().map_err(SocketError::Adopt)?;
    match (passed.next(), passed.len()) {
        (None, _) => Ok(None),
        (Some(fd), 0) => {
            #[expect(unsafe_code, reason = "a descriptor inherited by number has no safe owner")]
            // SAFETY: LISTEN_PID names this process, so systemd opened this descriptor for it, and
            // nothing else here takes it: the daemon adopts once, at its start.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            listener_from(fd).map(Some)
        }
        (Some(_), more) => Err(SocketError::TooManyPassed(more + 1)),
    }
}

fn listener_from(fd: OwnedFd) -> Result<UnixListener, SocketError> {
    if !is_unix_listener(fd.as_fd()) {
        return Err(SocketError::NotAListener);
    }
    to_tokio(fd.into()).map_err(SocketError::Adopt)
}

fn is_unix_listener(fd: BorrowedFd<'_>) -> bool {
    let is_unix = socket::getsockname::<UnixAddr>(std::os::fd::AsRawFd::as_raw_fd(&fd))
        .is_ok_and(|address| address.family() == Some(AddressFamily::Unix));
    is_unix
        && socket::getsockopt(&fd, sockopt::SockType) == Ok(SockType::Stream)
        && socket::getsockopt(&fd, sockopt::AcceptConn) == Ok(true)
}

fn to_tokio(listener: StdListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Makes the socket at `path`, mode 0660 and owned by `group` (a name or a number; `None` = our
/// own), and the directory above it if it is missing. A stale socket is replaced.
///
/// Needs a tokio runtime around it; does no lasting I/O but the look-up of the group.
///
/// # Errors
/// When somebody serves there, when something that is no socket is there, when there is no such
/// group. The group is looked up first, so that a wrong one changes nothing.
pub fn bind(path: &Path, group: Option<&str>) -> Result<(UnixListener, SocketFile), SocketError> {
    let gid = group.map(look_up_group).transpose()?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(SocketError::BadPath(path.to_owned()));
    };
    let make = |step| move |source| SocketError::Make { path: path.to_owned(), step, source };

    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(make("creating its directory"))?;
    // Two starting at once would both find a stale socket and replace each other's.
    let lock = File::open(directory).map_err(make("opening its directory"))?;
    refuse_what_others_own(directory, &lock.metadata().map_err(make("looking at its directory"))?)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(SocketError::Contended(directory.to_owned()));
        }
        Err(TryLockError::Error(source)) => return Err(make("locking its directory")(source)),
    }
    refuse_what_is_not_stale(path)?;

    let mut private = std::ffi::OsString::from(".");
    private.push(name);
    private.push(".new");
    let private = directory.join(private);
    remove_leftover(&private).map_err(make("removing what an earlier start left"))?;
    DirBuilder::new().mode(0o700).create(&private).map_err(make("making a private directory"))?;
    let made = make_in(&private, path, gid, &make);
    // Empty by now, or its socket is of no use.
    let removed = remove_leftover(&private).map_err(make("removing the private directory"));
    let made = made?;
    removed?;
    Ok(made)
}

/// Binds in the private directory, sets group and mode there, and moves the socket to `path`.
fn make_in<E>(
    private: &Path,
    path: &Path,
    gid: Option<Gid>,
    make: &impl Fn(&'static str) -> E,
) -> Result<(UnixListener, SocketFile), SocketError>
where
    E: FnOnce(io::Error) -> SocketError,
{
    let hidden = private.join("s");
    let listener = StdListener::bind(&hidden).map_err(make("binding"))?;
    if let Some(gid) = gid {
        std::os::unix::fs::chown(&hidden, None, Some(gid.as_raw()))
            .map_err(make("giving it to its group"))?;
    }
    fs::set_permissions(&hidden, Permissions::from_mode(0o660))
        .map_err(make("setting its mode"))?;
    let metadata = fs::symlink_metadata(&hidden).map_err(make("looking at it"))?;
    let listener = to_tokio(listener).map_err(make("listening"))?;
    fs::rename(&hidden, path).map_err(make("moving it into place"))?;
    Ok((listener, SocketFile { path: path.to_owned(), identity: identity(&metadata) }))
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn remove_leftover(private: &Path) -> io::Result<()> {
    match fs::remove_dir_all(private) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A name first, as `chown` does: a group may be called `100`.
fn look_up_group(group: &str) -> Result<Gid, SocketError> {
    let found = Group::from_name(group).map_err(|errno| SocketError::LookUpGroup {
        group: group.to_owned(),
        source: errno.into(),
    })?;
    let by_number = || group.parse().ok().map(Gid::from_raw);
    found
        .map(|found| found.gid)
        .or_else(by_number)
        .ok_or_else(|| SocketError::UnknownGroup(group.to_owned()))
}

/// Who can rename things in the directory can put a socket of their own in place of ours, and lead
/// what we do to ours elsewhere.
fn refuse_what_others_own(path: &Path, directory: &Metadata) -> Result<(), SocketError> {
    let (owner, mode) = (directory.uid(), directory.mode());
    let ours = [0, nix::unistd::geteuid().as_raw()];
    let why = if !ours.contains(&owner) {
        format!("the user {owner} owns it")
    } else if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        format!("everybody may rename things in it (mode {:04o})", mode & 0o7777)
    } else {
        return Ok(());
    };
    Err(SocketError::OpenToOthers { path: path.to_owned(), why })
}

/// Succeeds when nothing is at `path`, or a socket that nobody listens on.
fn refuse_what_is_not_stale(path: &Path) -> Result<(), SocketError> {
    let probe = |source| SocketError::Probe { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(probe(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let address = UnixAddr::new(path).map_err(|errno| probe(errno.into()))?;
    // Not blocking: one whose queue is full is alive all the same.
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let client = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| probe(errno.into()))?;
    match socket::connect(std::os::fd::AsRawFd::as_raw_fd(&client), &address) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        // EPROTOTYPE: a socket of another type, which is not ours.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Err(SocketError::Live(path.to_owned())),
        Err(errno) => Err(probe(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use tempfile::TempDir;

    /// A directory and the path of a socket in it.
    fn place() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cinder.sock");
        (directory, path)
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    /// The names in the directory of `path`.
    fn names_beside(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path.parent().unwrap()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_new_socket_has_its_mode_and_group_and_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker/plugins/cinder.sock");
        let (listener, file) = bind(&path, Some("54321")).unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(fs::symlink_metadata(&path).unwrap().gid(), 54321);
        assert_eq!(mode(path.parent().unwrap()) & !0o755, 0);
        assert_eq!(names_beside(&path), ["cinder.sock"]);

        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().await.unwrap();
        file.unlink();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_group_is_found_by_its_name_and_an_unknown_one_changes_nothing() {
        let (_directory, path) = place();
        bind(&path, Some("root")).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().gid(), 0);

        let missing = path.with_file_name("sub").join("cinder.sock");
        let error = bind(&missing, Some("no-such-group")).unwrap_err();
        assert!(matches!(error, SocketError::UnknownGroup(_)), "{error}");
        assert!(!missing.parent().unwrap().exists());
    }

    #[tokio::test]
    async fn a_stale_socket_and_an_earlier_attempt_are_replaced() {
        let (directory, path) = place();
        drop(StdListener::bind(&path).unwrap());
        let leftover = directory.path().join(".cinder.sock.new");
        fs::create_dir(&leftover).unwrap();
        drop(StdListener::bind(leftover.join("s")).unwrap());

        let (_listener, _file) = bind(&path, None).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(names_beside(&path), ["cinder.sock"]);
    }

    #[tokio::test]
    async fn a_live_socket_is_left_to_its_owner() {
        let (_directory, path) = place();
        let owner = StdListener::bind(&path).unwrap();
        let error = bind(&path, None).unwrap_err();
        assert!(matches!(error, SocketError::Live(_)), "{error}");
        let before = identity(&fs::symlink_metadata(&path).unwrap());
        // One whose queue is full, too: this connects until nobody more may wait.
        socket::listen(&owner, socket::Backlog::new(1).unwrap()).unwrap();
        let mut waiting = Vec::new();
        loop {
            let address = UnixAddr::new(&path).unwrap();
            let flags = SockFlag::SOCK_NONBLOCK;
            let client =
                socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
            let connected = socket::connect(std::os::fd::AsRawFd::as_raw_fd(&client), &address);
            waiting.push(client);
            if connected == Err(Errno::EAGAIN) {
                break;
            }
        }
        assert!(matches!(bind(&path, None), Err(SocketError::Live(_))));
        assert_eq!(identity(&fs::symlink_metadata(&path).unwrap()), before);
    }

    #[tokio::test]
    async fn what_is_no_stream_socket_is_refused_and_left() {
        let (directory, path) = place();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path, None), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");

        let link = directory.path().join("link.sock");
        drop(StdListener::bind(directory.path().join("target.sock")).unwrap());
        std::os::unix::fs::symlink("target.sock", &link).unwrap();
        assert!(matches!(bind(&link, None), Err(SocketError::NotASocket(_))));

        let other = directory.path().join("datagram.sock");
        let _owner = UnixDatagram::bind(&other).unwrap();
        assert!(matches!(bind(&other, None), Err(SocketError::Live(_))));
        assert!(matches!(bind(Path::new("/"), None), Err(SocketError::BadPath(_))));
    }

    #[tokio::test]
    async fn a_directory_that_others_rule_is_refused_and_left() {
        let (directory, path) = place();
        let may = |mode| fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
        may(0o777);
        assert!(matches!(bind(&path, None), Err(SocketError::OpenToOthers { .. })));
        // As /tmp: others can put things there, but not move ours.
        may(0o1777);
        drop(bind(&path, None).unwrap());
        fs::remove_file(&path).unwrap();
        may(0o755);
        drop(bind(&path, None).unwrap());
        fs::remove_file(&path).unwrap();
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        std::os::unix::fs::chown(&directory, Some(1234), None).unwrap();
        let error = bind(&path, None).unwrap_err();
        assert!(error.to_string().contains("the user 1234 owns it"), "{error}");
        assert_eq!(names_beside(&path), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_others_planted_where_the_socket_is_made_is_not_followed() {
        let (directory, path) = place();
        let victim = tempfile::tempdir().unwrap();
        fs::write(victim.path().join("s"), "precious").unwrap();
        fs::set_permissions(victim.path().join("s"), Permissions::from_mode(0o600)).unwrap();
        let private = directory.path().join(".cinder.sock.new");
        std::os::unix::fs::symlink(victim.path(), &private).unwrap();
        drop(bind(&path, None).unwrap());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&private).unwrap();
        std::os::unix::fs::symlink(victim.path().join("s"), private.join("s")).unwrap();
        drop(bind(&path, None).unwrap());
        assert_eq!(fs::read(victim.path().join("s")).unwrap(), b"precious");
        assert_eq!(mode(&victim.path().join("s")), 0o600);
        assert_eq!(names_beside(&path), ["cinder.sock"]);
    }

    #[tokio::test]
    async fn two_that_start_at_once_do_not_take_the_socket_from_each_other() {
        let (directory, path) = place();
        let other = File::open(directory.path()).unwrap();
        other.lock().unwrap();
        assert!(matches!(bind(&path, None), Err(SocketError::Contended(_))));
        other.unlock().unwrap();
        bind(&path, None).unwrap();
    }

    #[tokio::test]
    async fn only_our_own_file_is_removed() {
        let (_directory, path) = place();
        let (_listener, file) = bind(&path, None).unwrap();
        let successor = path.with_extension("new");
        let _successor = StdListener::bind(&successor).unwrap();
        fs::rename(&successor, &path).unwrap();
        file.unlink();
        UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn of_what_systemd_passes_only_a_unix_listener_is_taken() {
        let (_directory, path) = place();
        let listener = listener_from(StdListener::bind(&path).unwrap().into()).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().await.unwrap();

        let (stream, _other) = UnixStream::pair().unwrap();
        let datagram = UnixDatagram::unbound().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let file = File::open("/dev/null").unwrap();
        let others: [OwnedFd; 4] = [stream.into(), datagram.into(), tcp.into(), file.into()];
        for fd in others {
            assert!(matches!(listener_from(fd), Err(SocketError::NotAListener)));
        }
    }

    #[tokio::test]
    async fn without_systemd_there_is_nothing_to_adopt() {
        assert!(adopt().unwrap().is_none());
    }
}
