//! Opening and closing sessions.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connection::Connection;
use super::iscsiadm::{self, Verdict};
use super::node_record::Owner;
use super::session::{self, Session};
use super::uevent::BlockEvents;
use super::{Connector, IscsiPath, IscsiRecord};
use crate::error_chain::Chain;
use crate::host::exec::ExecError;
use crate::host::{Cmd, HostError};

/// How long a portal gets to accept a connection: iscsiadm itself needs 3 to 17 s to find a dead
/// one.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// How long a session that has lost its connection gets to come back.
const RECOVERY_LIMIT: Duration = Duration::from_secs(10);
/// How long a session may take to show in sysfs once iscsiadm said that it is there.
const SESSION_LIMIT: Duration = Duration::from_secs(5);
/// Between a login or logout and its repetition.
const PAUSE: Duration = Duration::from_secs(1);
/// iscsid answers 9 while a session changes its state.
const LOGOUT_TRIES: u32 = 5;
const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(15);
const MODPROBE_LIMIT: Duration = Duration::from_secs(15);

/// Why a portal could not be used, and whether another one may be tried.
struct Failure {
    error: HostError,
    give_up: bool,
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        Self { error, give_up: true }
    }
}

impl Connector<'_> {
    /// A session that carries I/O, and the path that it serves: one that is there, or a new one
    /// through the first portal that works.
    pub(super) async fn ensure_session(
        self,
        record: &mut IscsiRecord,
        connection: &Connection,
    ) -> Result<(usize, Session), HostError> {
        self.ensure_transport().await?;
        for path in &mut record.paths {
            (path.opened_session, path.wrote_node) = (false, false);
        }
        if let Some(found) = self.existing_session(record).await? {
            return Ok(found);
        }
        let (reachable, mut failures) = self.probe(&record.paths).await;
        for index in reachable {
            match self.log_in(record, index, connection).await {
                Ok(session) => return Ok((index, session)),
                Err(failure) if failure.give_up => return Err(failure.error),
                Err(failure) => failures.push(Chain(&failure.error).to_string()),
            }
        }
        Err(HostError::Login { what: failures.join("; ") })
    }

    /// The kernel's part of open-iscsi. The unit loads it before it starts us, and leaves us no
    /// right to; elsewhere we can. iscsid loads it too, but says less when it can't.
    async fn ensure_transport(self) -> Result<(), HostError> {
        if self.paths.sys.join("class/iscsi_transport/tcp").exists() {
            return Ok(());
        }
        self.exec.run(&Cmd::new("modprobe", MODPROBE_LIMIT).arg("iscsi_tcp")).await.map_err(
            |source| HostError::Tool {
                what: "the kernel's iSCSI initiator (module iscsi_tcp) is not loaded: run \
                       \"modprobe iscsi_tcp\", and if the kernel has no such module, install one \
                       that has it"
                    .to_owned(),
                source,
            },
        )?;
        Ok(())
    }

    /// A session through one of the portals that is there already. One that has lost its
    /// connection gets some time; then it is closed, if it is ours and nothing is on it.
    async fn existing_session(
        self,
        record: &mut IscsiRecord,
    ) -> Result<Option<(usize, Session)>, HostError> {
        for index in 0..record.paths.len() {
            let path = record.paths[index].clone();
            let Some(found) = self.session_of(&path)? else { continue };
            let ours = self.is_ours(record, &path)?;
            let limit = if found.is_logged_in() { Duration::ZERO } else { RECOVERY_LIMIT };
            let recovered = self.wait_for_session(&path, limit).await?;
            if let Some(session) = recovered {
                let path = &mut record.paths[index];
                (path.opened_session, path.wrote_node) = (ours, ours);
                return Ok(Some((index, session)));
            }
            if ours && !found.is_used() {
                self.log_out(&found).await?;
            } else {
                tracing::warn!(
                    target_name = path.iqn,
                    portal = path.portal,
                    state = found.state,
                    "a session does not come back"
                );
            }
        }
        Ok(None)
    }

    fn session_of(self, path: &IscsiPath) -> Result<Option<Session>, HostError> {
        let sessions = session::all(self.paths)?;
        let mut serving: Vec<_> = sessions.into_iter().filter(|s| s.serves(path)).collect();
        serving.sort_by_key(|session| (!session.is_logged_in(), session.id));
        Ok(serving.into_iter().next())
    }

    async fn wait_for_session(
        self,
        path: &IscsiPath,
        limit: Duration,
    ) -> Result<Option<Session>, HostError> {
        let look = || Ok(self.session_of(path)?.filter(Session::is_logged_in));
        BlockEvents::none().wait_for(limit, look).await
    }

    /// Which portals accept a connection, and what the others said. Not asked when the login is
    /// bound to an interface: our own connection would go another way.
    async fn probe(self, paths: &[IscsiPath]) -> (Vec<usize>, Vec<String>) {
        if self.iface.is_some() {
            return ((0..paths.len()).collect(), Vec::new());
        }
        let mut probes = JoinSet::new();
        for (index, path) in paths.iter().enumerate() {
            let portal = path.portal.clone();
            probes.spawn(async move {
                let answer = connect(&portal).await;
                (
                    index,
                    answer.map_err(|error| {
                        format!(
                            "cannot reach the iSCSI portal {portal} ({error}): check that this \
                             host can reach the storage network, and that the target service runs"
                        )
                    }),
                )
            });
        }
        let mut answers = Vec::new();
        while let Some(answer) = probes.join_next().await {
            answers.extend(answer.ok());
        }
        answers.sort_by_key(|(index, _)| *index);
        let dead = answers.iter().filter_map(|(_, answer)| answer.clone().err()).collect();
        let alive = answers.into_iter().filter(|(_, answer)| answer.is_ok()).map(|(i, _)| i);
        (alive.collect(), dead)
    }

    async fn log_in(
        self,
        record: &mut IscsiRecord,
        index: usize,
        connection: &Connection,
    ) -> Result<Session, Failure> {
        let path = record.paths[index].clone();
        let what = format!("cannot log in to the iSCSI target {} at {}", path.iqn, path.portal);
        if let Some(session) = self.session_of(&path)? {
            let what = format!(
                "{what}: session {} is there, but it has lost its connection ({}), and it is not \
                 ours or in use; see: iscsiadm -m session -r {0} -P 1",
                session.id, session.state
            );
            return Err(Failure { error: HostError::Login { what }, give_up: false });
        }
        self.check_replaceable(&path, connection)?;
        let (db, chap) = (self.db(), connection.chap.as_ref());
        let ours = &mut record.paths[index];
        (ours.opened_session, ours.wrote_node) = (true, true);
        db.write(&path, chap, self.iface, &record.boot_id)?;
        let code = self.run_login(&path).await;
        let limit = match &code {
            Ok(code) if iscsiadm::verdict(*code) == Verdict::LoggedIn => SESSION_LIMIT,
            _ => Duration::ZERO,
        };
        if let Some(session) = self.wait_for_session(&path, limit).await? {
            return Ok(session);
        }
        // iscsid may go on trying behind the back of an iscsiadm that failed.
        match self.close_path(record, &record.paths[index]).await {
            Ok(()) => {
                let ours = &mut record.paths[index];
                (ours.opened_session, ours.wrote_node) = (false, false);
            }
            // The undoing of the whole attach tries again, and tells it.
            Err(error) => tracing::warn!(error = %Chain(&error), "cannot undo a failed login"),
        }
        Err(match code {
            Ok(code) => Failure {
                error: HostError::Login { what: format!("{what}: {}", iscsiadm::login_said(code)) },
                give_up: iscsiadm::verdict(code) == Verdict::GiveUp,
            },
            Err(source) => {
                let give_up = !matches!(source, ExecError::Timeout { .. });
                Failure { error: HostError::Tool { what, source }, give_up }
            }
        })
    }

    /// One login, with the one repetition that some answers deserve. Answers its exit code.
    async fn run_login(self, path: &IscsiPath) -> Result<Option<i32>, ExecError> {
        let cmd = iscsiadm::login(&path.iqn, &path.portal, self.iface);
        let code = self.exec.output(&cmd).await?.code;
        match iscsiadm::verdict(code) {
            Verdict::OnceMore => sleep(PAUSE).await,
            Verdict::StartDaemon => self.start_daemon().await,
            _ => return Ok(code),
        }
        Ok(self.exec.output(&cmd).await?.code)
    }

    /// The socket unit where there is one (Debian, Red Hat), else the daemon. The login that
    /// follows tells whether it helped.
    async fn start_daemon(self) {
        for unit in ["iscsid.socket", "iscsid.service"] {
            let start = Cmd::new("systemctl", SYSTEMCTL_LIMIT).args(["start", unit]);
            match self.exec.run(&start).await {
                Ok(_) => return,
                Err(error) => tracing::debug!(error = %Chain(&error), unit, "cannot start"),
            }
        }
    }

    /// Somebody else's record without a session is a leftover when the target is the volume's own,
    /// as with LVM. On a shared target it may be what an administrator wants at the next boot.
    fn check_replaceable(self, path: &IscsiPath, connection: &Connection) -> Result<(), HostError> {
        let own = connection.volume_id.as_ref().is_some_and(|id| path.iqn.contains(id.as_str()));
        if own || self.db().owner(path)? != (Owner::Other { automatic: true }) {
            return Ok(());
        }
        Err(HostError::Refused {
            what: format!(
                "open-iscsi has a record of the target {iqn} at {portal} that logs in by itself \
                 at boot, and no session: log in to it (iscsiadm -m node -T {iqn} -p {portal} \
                 --login), or delete it if nobody needs it (… -o delete)",
                iqn = path.iqn,
                portal = path.portal,
            ),
        })
    }

    /// Logs out of the sessions that are ours and that nothing is on, and removes our node
    /// records that no session needs.
    pub(super) async fn close_sessions(self, record: &IscsiRecord) -> Result<(), HostError> {
        for path in &record.paths {
            self.close_path(record, path).await?;
        }
        Ok(())
    }

    async fn close_path(self, record: &IscsiRecord, path: &IscsiPath) -> Result<(), HostError> {
        let ours = self.is_ours(record, path)?;
        let mut stays = false;
        for session in session::all(self.paths)?.into_iter().filter(|s| s.serves(path)) {
            if ours && !session.is_used() {
                self.log_out(&session).await?;
            } else {
                stays = true;
            }
        }
        if stays { Ok(()) } else { self.db().remove(path) }
    }

    /// Logs out of one session; that it is gone is what counts.
    async fn log_out(self, session: &Session) -> Result<(), HostError> {
        let mut said = String::new();
        for attempt in 0..LOGOUT_TRIES {
            if attempt > 0 {
                sleep(PAUSE).await;
            }
            match self.exec.output(&iscsiadm::logout(session.id)).await {
                Ok(output) => {
                    said = iscsiadm::logout_said(output.code);
                    if iscsiadm::verdict(output.code) == Verdict::StartDaemon
                        && session.directory.exists()
                    {
                        self.start_daemon().await;
                    }
                }
                Err(error) => said = Chain(&error).to_string(),
            }
            if !session.directory.exists() {
                return Ok(());
            }
        }
        Err(HostError::Login {
            what: format!(
                "cannot log out of the iSCSI target {}: {said}; see: iscsiadm -m session -r {} -P 1",
                session.iqn, session.id
            ),
        })
    }
}

async fn connect(portal: &str) -> io::Result<()> {
    let portal: SocketAddr =
        portal.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match timeout(PROBE_LIMIT, TcpStream::connect(portal)).await {
        Ok(connected) => connected.map(drop),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in 2 s")),
    }
}
