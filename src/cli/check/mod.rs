//! `check`: looks at everything that a Mount will need, and says for each thing that is wrong
//! which command mends it. Changes nothing.

mod cloud;
mod directories;
mod findings;
mod host;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use nix::unistd::Uid;

pub use findings::{Finding, Findings, Level};

use crate::config::{self, Settings};
use crate::host::Paths;

/// Checks and prints; the exit code is 1 when something must be mended.
pub async fn check(config: &Path, socket: &Path, json: bool) -> io::Result<ExitCode> {
    let findings = examine(config, socket, &Paths::default()).await;
    let mut out = io::stdout().lock();
    if json {
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
    if let Some(settings) = &settings {
        host::check_initiator(paths, &settings.host, &mut findings);
    }
    host::check_iscsi(paths, &mut findings).await;
    if let Some(settings) = &settings {
        directories::check_state(paths, &settings.driver.state_dir, &mut findings);
        directories::check_mount_point(paths, &settings.host.mount_point, &mut findings);
    }
    host::check_selinux(paths, &mut findings);
    if let Some(settings) = &settings {
        cloud::check(&settings.cloud, &mut findings).await;
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

async fn check_socket(socket: &Path, findings: &mut Findings) {
    let shown = socket.display();
    match tokio::net::UnixStream::connect(socket).await {
        Ok(_) => findings.ok("socket", format!("the daemon listens on {shown}")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            findings.skip("socket", format_args!("{shown} belongs to root"));
        }
        Err(error) => findings.warn(
            "socket",
            format!("nobody listens on {shown} ({error}), so Docker has no driver \"cinder\""),
            "systemctl enable --now cinder-docker-driver",
        ),
    }
}
