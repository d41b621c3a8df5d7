//! Command line: what people type, and what each command prints.

mod check;
mod operate;
mod status;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{DEFAULT_CONFIG_PATH, DEFAULT_SOCKET_PATH};
use crate::docker::Operation;

pub use check::{Finding, Findings, Level, check, examine};
pub use operate::operate;
pub use status::status;

/// Docker volumes that live in OpenStack Cinder
///
/// Without a command it is the daemon: it serves Docker's volume plugin protocol on a Unix socket,
/// attaches Cinder volumes to this host and mounts them. Containers use it by
/// "docker run -v NAME:/data --volume-driver=cinder …".
#[derive(Debug, Parser)]
#[command(name = "cinder-docker-driver", version, max_term_width = 100)]
pub struct Cli {
    /// Configuration file; the environment (OS_*) fills what it leaves out
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_CONFIG_PATH)]
    pub config: PathBuf,
    /// The plugin's socket
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET_PATH)]
    pub socket: PathBuf,
    /// Log every command and HTTP call (as RUST_LOG=cinder_docker_driver=debug)
    #[arg(long, global = true)]
    pub debug: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon (the default)
    Serve,
    /// Try everything with no OpenStack: an embedded Keystone and Cinder, and the plugin beside it
    Sandbox(SandboxArgs),
    /// Look at configuration, cloud, tools, initiator and socket; say what is wrong and how to mend it
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what this host has mounted, and what is still to be undone
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a volume away from a host that is gone (shows what it will do, asks for the volume's id)
    Release(NameArgs),
    /// Erase a volume and make an empty filesystem (shows what is on it, asks for the volume's id)
    Format(NameArgs),
    /// Accept the filesystem on a volume as its own (shows it, asks for the volume's id)
    AcceptUuid(NameArgs),
}

/// Arguments of `sandbox`.
#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// Where volumes, state and the generated config.json are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cinder/sandbox")]
    pub dir: PathBuf,
    /// Where Keystone and Cinder listen
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15000")]
    pub listen: SocketAddr,
    /// Only Keystone and Cinder, without the plugin
    #[arg(long)]
    pub cloud_only: bool,
    /// Export volumes by iSCSI (tgtd) instead of as loop devices
    #[arg(long)]
    pub iscsi: bool,
}

/// Arguments of the commands for one volume.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// The volume's name
    pub name: String,
    /// The volume's id: do it without asking
    #[arg(long, value_name = "UUID")]
    pub id: Option<String>,
}

impl Command {
    /// The request to the daemon that a command is, if it is one.
    pub fn operation(&self) -> Option<(Operation, &NameArgs)> {
        match self {
            Self::Release(args) => Some((Operation::Release, args)),
            Self::Format(args) => Some((Operation::Format, args)),
            Self::AcceptUuid(args) => Some((Operation::AcceptUuid, args)),
            _ => None,
        }
    }
}

/// Lets the Go driver's command lines pass: its flags had one dash, and its unit file ended in a
/// lone `&`.
pub fn accept_go_habits(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    args.filter(|arg| arg != "&")
        .map(|arg| {
            let text = arg.to_string_lossy();
            let (flag, _) = text.split_once('=').unwrap_or((&text, ""));
            match flag {
                "-config" | "-debug" | "-version" | "-help" => format!("-{text}").into(),
                _ => arg,
            }
        })
        // Go's boolean flags may carry a value.
        .filter(|arg| arg != "--debug=false")
        .map(|arg| if arg == "--debug=true" { "--debug".into() } else { arg })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Cli {
        let args = line.split(' ').map(OsString::from);
        Cli::try_parse_from(accept_go_habits(args)).unwrap()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_go_drivers_command_lines_pass() {
        let cli = parse("/usr/bin/cinder-docker-driver -config /etc/c.json -debug &");
        assert_eq!(cli.config, PathBuf::from("/etc/c.json"));
        assert!(cli.debug && cli.command.is_none());
        assert_eq!(parse("d -config=/x").config, PathBuf::from("/x"));
        assert!(!parse("d -debug=false").debug);
        let version = ["d", "-version"].into_iter().map(OsString::from);
        let error = Cli::try_parse_from(accept_go_habits(version)).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::DisplayVersion);
    }

    #[test]
    fn global_flags_may_stand_on_either_side_of_the_command() {
        assert!(parse("d --debug serve").debug);
        assert!(parse("d serve --debug").debug);
    }
}
