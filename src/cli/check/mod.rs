//! `check`: looks at everything that a Mount will need, and says for each thing that is wrong
//! which command mends it. Changes nothing, unless it is told to mend what it safely can.

mod cloud;
mod directories;
mod findings;
mod fix;
mod host;
mod leftovers;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::unistd::Uid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

pub use findings::{Finding, Findings, Level};
pub use fix::mend;

use super::CheckArgs;
use super::progress::while_waiting;
use crate::config::{self, Settings};
use crate::host::Paths;

/// Checks and prints, with `--fix` after mending; the exit code is 1 when something must be mended.
///
/// # Errors
/// When nothing can be printed.
pub async fn check(config: &Path, socket: &Path, args: &CheckArgs) -> io::Result<ExitCode> {
    let paths = Paths::default();
    if args.fix {
        mend(config, &paths, &mut io::stdout()).await?;
    }
    let examined = Box::pin(examine(config, socket, &paths));
    let findings = while_waiting("looking at this host and the cloud", examined).await;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, findings.all())?;
        writeln!(out)?;
    } else {
        findings.print(&mut out)?;
    }
    Ok(if findings.worst() == Level::Error { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Looks at everything. Without usable settings, at what does not depend on them.
pub async fn examine(config: &Path, socket: &Path, paths: &Paths) -> Findings {
    let mut findings = Findings::default();
    if !Uid::effective().is_root() {
        findings.skip("user", "parts of this host are shown to root only");
    }
    let settings = check_config(config, &mut findings);
    let filesystem = settings.as_ref().map(|settings| settings.driver.default_filesystem.as_str());
    host::check_tools(paths, filesystem.unwrap_or("ext4"), &mut findings);
    let identity = settings
        .as_ref()
        .and_then(|settings| host::check_initiator(paths, &settings.host, &mut findings));
    host::check_iscsi(paths, &mut findings).await;
    host::check_filesystem(paths, filesystem.unwrap_or("ext4"), &mut findings).await;
    if let Some(settings) = &settings {
        directories::check_state(paths, &settings.driver.state_dir, &mut findings);
        directories::check_mount_point(paths, &settings.host.mount_point, &mut findings);
    }
    host::check_selinux(paths, &mut findings);
    if let Some(settings) = &settings {
        let seen = cloud::check(settings, &mut findings).await;
        let seen = seen.as_deref();
        if let (Some(seen), Some(identity)) = (seen, &identity) {
            cloud::check_twins(seen, identity, &mut findings);
        }
        let host = identity.as_ref().map(|identity| &*identity.host);
        leftovers::check(paths, settings, seen, host, &mut findings).await;
    }
    check_socket(socket, &mut findings).await;
    findings
}

fn check_config(path: &Path, findings: &mut Findings) -> Option<Settings> {
    let edit = || format!("edit {}, then: systemctl restart cinder-docker-driver", path.display());
    match config::load(path, &|name| std::env::var(name).ok()) {
        Ok((settings, warnings)) => {
            if warnings.is_empty() {
                findings.ok("config", format!("{} can be used", path.display()));
            }
            for warning in warnings {
                let text = warning.to_string();
                // A warning about the file's mode ends in its command.
                match text.split_once(": chmod ") {
                    Some((found, command)) => {
                        findings.warn("config", found, format!("chmod {command}"));
                    }
                    None => findings.warn("config", text, edit()),
                }
            }
            Some(settings)
        }
        Err(errors) => {
            for problem in errors.problems() {
                findings.error("config", problem, edit());
            }
            None
        }
    }
}

/// How long the daemon may take to answer; systemd may have to start it first.
const SOCKET_LIMIT: Duration = Duration::from_secs(10);

/// That somebody listens says little: systemd does it for a daemon that is dead, and the kernel for
/// one that hangs.
async fn check_socket(socket: &Path, findings: &mut Findings) {
    let shown = socket.display();
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return findings.skip("socket", format_args!("{shown} belongs to root"));
        }
        Err(error) => {
            return findings.warn(
                "socket",
                format!("nobody listens on {shown} ({error}), so Docker has no driver \"cinder\""),
                "systemctl enable --now cinder-docker-driver",
            );
        }
    };
    let wrong = match timeout(SOCKET_LIMIT, activate(stream)).await {
        Ok(Ok(answer)) if answer.contains("VolumeDriver") => {
            return findings.ok("socket", format!("the daemon answers on {shown}"));
        }
        Ok(Ok(answer)) if answer.is_empty() => "hangs up without an answer".to_owned(),
        Ok(Ok(_)) => "is no volume driver".to_owned(),
        Ok(Err(error)) => format!("does not answer ({error})"),
        Err(_) => format!("does not answer within {} s", SOCKET_LIMIT.as_secs()),
    };
    findings.error(
        "socket",
        format!("who listens on {shown} {wrong}, so every docker command with volumes waits"),
        "journalctl -u cinder-docker-driver -n 20; systemctl restart cinder-docker-driver",
    );
}

/// The question that Docker asks first; what came back.
async fn activate(mut stream: UnixStream) -> io::Result<String> {
    let request = b"POST /Plugin.Activate HTTP/1.1\r\nHost: cinder\r\nConnection: close\r\n\
                    Content-Length: 0\r\n\r\n";
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LIMIT).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Bytes; the answer has some two hundred.
const ANSWER_LIMIT: u64 = 64 * 1024;
