//! The ONLY place that starts a process.
//!
//! Tools are looked up once in fixed directories, never in the caller's `$PATH`; they run with
//! `LC_ALL=C` and nothing else of our environment (`OS_PASSWORD` may be in it), no standard input, in a process group of their own and with a deadline, and what
//! they print is captured with a limit.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Paths;
use crate::effects::{self, Kind};

/// Where distributions keep the tools of an administrator.
const DIRECTORIES: &[&str] = &["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin"];

/// Tools that are used, and the packages that have them (Debian; Red Hat in brackets).
const TOOLS: &[(&str, &str)] = &[
    ("mount", "mount (util-linux)"),
    ("umount", "mount (util-linux)"),
    ("iscsiadm", "open-iscsi (iscsi-initiator-utils)"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("resize2fs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_growfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("btrfs", "btrfs-progs"),
    ("multipath", "multipath-tools (device-mapper-multipath)"),
    ("multipathd", "multipath-tools (device-mapper-multipath)"),
    ("systemctl", "systemd"),
    ("tgtadm", "tgt (scsi-target-utils)"),
    ("tgtd", "tgt (scsi-target-utils)"),
    ("modprobe", "kmod"),
];

/// How much of what a tool prints is kept, in bytes, for each of its streams.
const OUTPUT_LIMIT: usize = 64 * 1024;
/// How much of it an error quotes, in bytes.
const QUOTE_LIMIT: usize = 1024;
/// How long what a tool has printed is waited for once it has ended. A process that it left behind
/// (a helper, a daemon) may keep its streams open for ever.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a killed process gets to end. One that hangs in the kernel is left behind.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// A command line as plain data. Never holds a secret: other processes can read an argv.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmd {
    /// Name of the tool: `mkfs.ext4`.
    pub tool: &'static str,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// How long it may take.
    pub timeout: Duration,
}

impl Cmd {
    /// A command without arguments.
    pub fn new(tool: &'static str, timeout: Duration) -> Self {
        Self { tool, args: Vec::new(), timeout }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I>(mut self, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tool)?;
        for arg in &self.args {
            write!(f, " {}", arg.to_string_lossy())?;
        }
        Ok(())
    }
}

/// How a process ended, and what it printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// `exit 1` or `signal 9`.
    pub status: String,
    /// First 64 KiB, lossy UTF-8.
    pub stdout: String,
    /// First 64 KiB, lossy UTF-8.
    pub stderr: String,
}

impl Output {
    /// The end of what was printed, stderr first, on one line, for an error message.
    pub fn quote(&self) -> String {
        let text = [self.stderr.trim(), self.stdout.trim()]
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default();
        let mut start = text.len().saturating_sub(QUOTE_LIMIT);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        text[start..]
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    }
}

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The tool is not installed.
    #[error("{tool} is not installed; install the package {package}")]
    Missing {
        /// The tool.
        tool: String,
        /// Debian's package (Red Hat's in brackets, where it differs).
        package: &'static str,
    },
    /// It could not be started.
    #[error("cannot start {cmd}")]
    Start {
        /// The command line.
        cmd: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ran longer than allowed; it was killed, or left behind when it could not be.
    #[error("{cmd} took longer than {seconds} s")]
    Timeout {
        /// The command line.
        cmd: String,
        /// The limit.
        seconds: u64,
    },
    /// It failed.
    #[error("{cmd} failed ({status}){}{output}", if output.is_empty() { "" } else { ": " })]
    Failed {
        /// The command line.
        cmd: String,
        /// `exit 1` or `signal 9`.
        status: String,
        /// Exit code.
        code: Option<i32>,
        /// The end of what it printed.
        output: String,
    },
}

/// Runs commands. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Exec {
    tools: Arc<BTreeMap<&'static str, PathBuf>>,
}

impl Exec {
    /// Looks all tools up, once.
    pub fn new(paths: &Paths) -> Self {
        let directories: Vec<PathBuf> =
            paths.tools.iter().cloned().chain(DIRECTORIES.iter().map(PathBuf::from)).collect();
        let tools = TOOLS
            .iter()
            .filter_map(|(tool, _)| {
                let path = directories.iter().map(|d| d.join(tool)).find(|p| p.is_file())?;
                Some((*tool, path))
            })
            .collect();
        Self { tools: Arc::new(tools) }
    }

    /// Where a tool is, or the error that names its package.
    pub fn find(&self, tool: &str) -> Result<&PathBuf, ExecError> {
        self.tools.get(tool).ok_or_else(|| ExecError::Missing {
            tool: tool.to_owned(),
            package: TOOLS
                .iter()
                .find(|(name, _)| *name == tool)
                .map_or("that has it", |(_, package)| package),
        })
    }

    /// Runs the command; any exit code is an answer.
    pub async fn output(&self, cmd: &Cmd) -> Result<Output, ExecError> {
        let path = self.find(cmd.tool)?;
        let passage = effects::enter(Kind::Process, || cmd.to_string())
            .map_err(|injected| not_started(cmd, injected.into()))?;
        let started = tokio::time::Instant::now();
        #[expect(clippy::disallowed_methods, reason = "this is the one place")]
        let mut command = tokio::process::Command::new(path);
        end_with_us(&mut command);
        let mut child = command
            .args(&cmd.args)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .current_dir("/")
            .spawn()
            .map_err(|source| not_started(cmd, source))?;
        passage.midway();
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let run = async {
            let mut streams = std::pin::pin!(async {
                tokio::join!(read_limited(out, &mut stdout), read_limited(err, &mut stderr))
            });
            tokio::select! {
                status = child.wait() => {
                    let _ = tokio::time::timeout(LAST_WORDS, streams).await;
                    status
                }
                _ = &mut streams => child.wait().await,
            }
        };
        let Ok(ended) = tokio::time::timeout(cmd.timeout, run).await else {
            if let Some(group) = group {
                // It may have ended by itself in this moment.
                let _ = killpg(group, Signal::SIGKILL);
            }
            let _ = tokio::time::timeout(KILL_GRACE, child.wait()).await;
            return Err(ExecError::Timeout {
                cmd: cmd.to_string(),
                seconds: cmd.timeout.as_secs(),
            });
        };
        let status = ended.map_err(|source| not_started(cmd, source))?;
        passage.leave().map_err(|_| ExecError::Failed {
            cmd: cmd.to_string(),
            status: "signal 9".to_owned(),
            code: None,
            output: String::new(),
        })?;
        let output = Output {
            code: status.code(),
            status: describe(status),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        };
        tracing::debug!(%cmd, status = output.status, elapsed_ms = started.elapsed().as_millis(), "ran");
        Ok(output)
    }

    /// Runs the command; an exit code other than 0 is an error.
    pub async fn run(&self, cmd: &Cmd) -> Result<Output, ExecError> {
        let output = self.output(cmd).await?;
        if output.code == Some(0) {
            return Ok(output);
        }
        Err(ExecError::Failed {
            cmd: cmd.to_string(),
            status: output.status.clone(),
            code: output.code,
            output: output.quote(),
        })
    }
}

/// Starts this very program once more, also when its file was replaced meanwhile, under a name that
/// tells it what to be. Unlike a tool it lives on when this process dies: its group is its own, and it
/// is told by what it is given. It gets nothing of our environment, and says what it has to say on our
/// standard error.
pub fn start_ourselves(
    paths: &Paths,
    name: &str,
    args: impl IntoIterator<Item = OsString>,
    stdin: Stdio,
    stdout: impl Into<Stdio>,
) -> Result<Child, ExecError> {
    let failed = |source| ExecError::Start { cmd: name.to_owned(), source };
    let passage = effects::enter(Kind::Process, || name.to_owned())
        .map_err(|injected| failed(injected.into()))?;
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    let mut child = std::process::Command::new(&paths.program)
        .arg0(name)
        .args(args)
        .env_clear()
        .stdin(stdin)
        .stdout(stdout)
        .process_group(0)
        .current_dir("/")
        .spawn()
        .map_err(failed)?;
    passage.midway();
    match passage.leave() {
        Ok(()) => Ok(child),
        Err(injected) => {
            let _ = child.kill().and_then(|()| child.wait());
            Err(failed(injected.into()))
        }
    }
}

/// The kernel kills the process when this one dies: what nobody waits for must not go on working on
/// a device that the next run of the daemon takes down. (A daemon that a tool leaves behind is a
/// process of its own, and stays.)
fn end_with_us(command: &mut tokio::process::Command) {
    let parent = nix::unistd::getpid();
    let set = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        match nix::unistd::getppid() == parent {
            true => Ok(()),
            // It died before the kernel knew what to do then.
            false => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    };
    #[expect(
        unsafe_code,
        reason = "what runs between fork and exec is not checked by the compiler"
    )]
    // SAFETY: two system calls; neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(set);
    }
}

fn not_started(cmd: &Cmd, source: std::io::Error) -> ExecError {
    ExecError::Start { cmd: cmd.to_string(), source }
}

fn describe(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended for an unknown reason".to_owned(),
    }
}

/// Reads to the end, so that the tool never blocks on a full pipe, and keeps the first part.
async fn read_limited(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = OUTPUT_LIMIT - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn with_tool(script: &str) -> (tempfile::TempDir, Exec) {
        let dir = tempfile::tempdir().unwrap();
        let tool = dir.path().join("mount");
        std::fs::write(&tool, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        let exec = Exec::new(&Paths { tools: Some(dir.path().into()), ..Paths::default() });
        (dir, exec)
    }

    #[tokio::test]
    async fn a_failure_quotes_the_end_of_stderr_and_the_exit_code() {
        let (_dir, exec) = with_tool("echo first >&2; echo 'no such device' >&2; exit 32");
        let error =
            exec.run(&Cmd::new("mount", Duration::from_secs(5)).arg("/x")).await.unwrap_err();
        assert_eq!(error.to_string(), "mount /x failed (exit 32): first; no such device");
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_killed_with_its_children() {
        let (_dir, exec) = with_tool("sleep 47 & wait");
        let error = exec.run(&Cmd::new("mount", Duration::from_millis(200))).await.unwrap_err();
        assert!(matches!(error, ExecError::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_process_that_a_tool_leaves_behind_is_not_waited_for() {
        let (_dir, exec) = with_tool("echo done; setsid sleep 20 & exit 3");
        let output = exec.output(&Cmd::new("mount", Duration::from_secs(15))).await.unwrap();
        assert_eq!((output.code, output.stdout.as_str()), (Some(3), "done\n"));
    }

    #[tokio::test]
    async fn a_tool_gets_nothing_of_our_environment() {
        let (_dir, exec) = with_tool("tr '\\0' '\\n' </proc/$$/environ");
        let output = exec.run(&Cmd::new("mount", Duration::from_secs(5))).await.unwrap();
        let mut lines: Vec<_> = output.stdout.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
    }

    #[tokio::test]
    async fn endless_output_neither_blocks_nor_fills_memory() {
        let (_dir, exec) = with_tool("head -c 1000000 /dev/zero");
        let output = exec.run(&Cmd::new("mount", Duration::from_secs(5))).await.unwrap();
        assert_eq!(output.stdout.len(), OUTPUT_LIMIT);
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let exec = Exec { tools: Arc::default() };
        let error = exec.find("iscsiadm").unwrap_err().to_string();
        assert!(error.contains("open-iscsi"), "{error}");
    }
}
