//! Command line: what people type, and what each command prints.

mod care;
mod check;
mod engines;
mod generate;
mod health;
mod operate;
mod progress;
mod snapshots;
mod status;
mod table;
mod volumes;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::config::{DEFAULT_CONFIG_PATH, DEFAULT_SOCKET_PATH};
use crate::docker::{Arguments, Operation};
use crate::driver::options;
use crate::logging::Format;

pub use care::{adopt, release};
pub use check::{Finding, Findings, Level, check, examine, mend};
pub use generate::{CompletionShell, completions, man_pages};
pub use health::health;
pub use operate::operate;
pub use snapshots::snapshots;
pub use status::status;
pub use volumes::{inspect, ls};

/// Docker volumes that live in OpenStack Cinder
///
/// Without a command it is the daemon: it serves Docker's volume plugin protocol on a Unix socket,
/// attaches Cinder volumes to this host and mounts them. Containers use it by
/// "docker run -v NAME:/data --volume-driver=cinder …".
#[derive(Debug, Parser)]
#[command(
    name = "cinder-docker-driver",
    version,
    max_term_width = 100,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{}", create_options())
)]
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
    /// How log lines look
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// What to do
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Where the sandbox keeps everything, unless it is told otherwise.
const SANDBOX_DIR: &str = "/var/lib/cinder/sandbox";

impl Cli {
    /// The configuration that a command reads: the one that is named, or the host's; or the
    /// sandbox's, where it has run and the host's was never filled in. Says so then, on standard
    /// error.
    pub fn settings_path(&self) -> PathBuf {
        let sandbox = Path::new(SANDBOX_DIR).join("config.json");
        let is_default = self.config == Path::new(DEFAULT_CONFIG_PATH);
        let by_variables =
            ["OS_CLOUD", "OS_AUTH_URL"].iter().any(|name| std::env::var_os(name).is_some());
        if !is_default || is_filled_in(&self.config, by_variables) || !sandbox.exists() {
            return self.config.clone();
        }
        // Nobody is left to be told when standard error is gone.
        let _ = writeln!(
            io::stderr(),
            "this is about the sandbox: {} has no cloud in it yet",
            self.config.display()
        );
        sandbox
    }
}

/// Whether somebody has said which cloud it is. One that cannot be read is for those to tell who read
/// it.
fn is_filled_in(config: &Path, by_variables: bool) -> bool {
    match fs::read_to_string(config) {
        // As it was installed (config.example.json).
        Ok(text) => {
            !["//keystone.example:", "//keystone.example/"].iter().any(|it| text.contains(it))
        }
        Err(error) => by_variables || error.kind() != io::ErrorKind::NotFound,
    }
}

const EXAMPLES: &str = "\
Examples:
  docker volume create -d cinder -o size=20 -o fs=xfs db     make a volume of 20 GiB
  docker run -v db:/var/lib/data --volume-driver=cinder …    use it; made if it is not there
  cinder-docker-driver check                                 what is wrong, and what mends it
  cinder-docker-driver status                                what this host holds
  cinder-docker-driver ls                                    which volumes there are, and where
  cinder-docker-driver sandbox                               the same with no OpenStack at all";

/// The table of create options, for people.
fn create_options() -> String {
    let mut text = "Options of docker volume create -o NAME=VALUE:".to_owned();
    for row in options::TABLE {
        let example = format!("{}={}", row.name, row.example);
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {example:24}  {}", row.help);
    }
    text
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon (the default)
    Serve,
    /// Try everything with no OpenStack: an embedded Keystone and Cinder, and the plugin beside it
    ///
    /// Volumes are sparse files below --dir, and outlive it. The config file that it makes there
    /// (config.json) also serves the other commands.
    #[command(after_help = "Example:\n  cinder-docker-driver sandbox &\n  \
                            docker run --rm -v demo:/data --volume-driver=cinder busybox df /data")]
    Sandbox(SandboxArgs),
    /// Look at configuration, cloud, tools, initiator and socket; say what is wrong and how to mend it
    ///
    /// Changes nothing without --fix. The exit code is 1 when volumes cannot be used as things are.
    /// Without root it says what it could not look at.
    Check(CheckArgs),
    /// Say in one line whether the daemon is well, for monitoring
    ///
    /// Exit code 0: all is well. 1: somebody should look. 2: containers have no volumes, or will have
    /// none. Asks the daemon, not the cloud.
    #[command(after_help = "Example:\n  cinder-docker-driver health --deep || page-somebody")]
    Health {
        /// Have the daemon ask Cinder, and look at the devices
        #[arg(long)]
        deep: bool,
        /// Print JSON: {status, says, version, mounts, backlog}; status is ok, warning or critical
        #[arg(long)]
        json: bool,
    },
    /// Show what this host has mounted, by whom, and what is still to be undone
    ///
    /// Reads the journal and the kernel, so it works without the daemon and without the cloud. The
    /// names of containers come from Docker or Podman, where one answers at once.
    Status {
        /// Print JSON: a list with one object for each volume
        ///
        /// Its keys: name, id, state, mountpoint, device, filesystem, users, references (Docker's
        /// mount ids), containers [{id, name, pid, command, at}], attachment, flow, attached,
        /// sessions [{target, portal, lun, state}], since (seconds since 1970), to_do (sentences),
        /// last_error.
        #[arg(long)]
        json: bool,
    },
    /// List volumes: size, type, status, where they are attached, and where they are mounted here
    ///
    /// Asks the daemon; where none runs, Cinder itself.
    #[command(after_help = "Example:\n  cinder-docker-driver ls --all")]
    Ls {
        /// All volumes of the project, not only those that this driver made
        #[arg(long)]
        all: bool,
        /// Print JSON: a list with one object for each volume
        ///
        /// Its keys: name, id, size (GiB), type, status, cluster, ours, attached [{attachment, host, at,
        /// instance, since}], mounted_at and users (of this host).
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of a volume: by Cinder, by this host's kernel, in its journal
    #[command(after_help = "Example:\n  cinder-docker-driver inspect db")]
    Inspect {
        /// The volume's name or id
        name: String,
        /// Print JSON: {name, id, cinder, cinder_error, here (as of status), journal}
        #[arg(long)]
        json: bool,
    },
    /// Take a volume that was made elsewhere into this driver's care (asks for the volume's id)
    ///
    /// It gets this driver's mark, so that docker lists it and may remove it, and its filesystem is
    /// recorded, so that no other is ever taken for it. What is on it stays as it is. It must be
    /// available, and hold a filesystem that this driver knows.
    #[command(after_help = "Example:\n  cinder-docker-driver adopt \"old data\" archive")]
    Adopt(AdoptArgs),
    /// Take a volume away from a host that is gone (shows what it will do, asks for the volume's id)
    ///
    /// That host must not run any more: should it still write, it destroys the filesystem together
    /// with the next host.
    #[command(after_help = "Examples:\n  cinder-docker-driver release db\n  \
                            cinder-docker-driver release --host node-3")]
    Release(ReleaseArgs),
    /// Erase a volume and make an empty filesystem (shows what is on it, asks for the volume's id)
    ///
    /// For a volume that the driver refused to format because it may hold data.
    #[command(after_help = "Example:\n  cinder-docker-driver format db")]
    Format(NameArgs),
    /// Accept the filesystem on a volume as its own (shows it, asks for the volume's id)
    ///
    /// For a volume that was formatted or restored by hand: the driver refuses a filesystem with
    /// another UUID than the one that it made, for it may be another volume's.
    #[command(after_help = "Example:\n  cinder-docker-driver accept-uuid db")]
    AcceptUuid(NameArgs),
    /// Try whether the storage cuts a host off, so that volumes may be taken from a dead one
    ///
    /// "Failover" in the config names volume types whose volumes are taken from a host that gives no
    /// sign of life. That is safe only if the storage lets the old host neither read nor write any
    /// more once its attachment is deleted. Many storages do; many do not, Cinder's LVM driver among
    /// them. This attaches a volume that holds nothing, has itself cut off, watches for a minute, and
    /// remembers the result for the type of the volume. Do it on each host.
    #[command(after_help = "Example:\n  docker volume create -d cinder -o type=fast proof\n  \
                            cinder-docker-driver prove-failover proof\n  docker volume rm proof")]
    ProveFailover(NameArgs),
    /// Make a volume larger, also while containers use it on this host
    ///
    /// A volume that is mounted here grows at once, filesystem included. One that is free grows with
    /// its next start; one that another host has is refused. Run it again after anything went wrong:
    /// it finishes what was begun.
    #[command(after_help = "Example:\n  cinder-docker-driver resize db 40")]
    Resize {
        /// The volume's name
        name: String,
        /// Its new size: whole GiB, as in 40, 40G or 1T
        size: String,
    },
    /// Take a snapshot of a volume; its filesystem is frozen for the moment if it is mounted here
    ///
    /// "docker volume create -d cinder -o from=NAME@SNAP COPY" makes a volume of it.
    #[command(after_help = "Example:\n  cinder-docker-driver snapshot db before-upgrade\n  \
                            cinder-docker-driver snapshot --delete db before-upgrade")]
    Snapshot {
        /// The volume's name
        name: String,
        /// The snapshot's name; after the volume and the time if it is left out
        #[arg(required_if_eq("delete", "true"))]
        snapshot: Option<String>,
        /// Delete this snapshot (by name or id; shows it, asks for its id)
        #[arg(long)]
        delete: bool,
        /// The snapshot's id: delete it without asking
        #[arg(long, value_name = "UUID", requires = "delete")]
        id: Option<String>,
    },
    /// List the snapshots of a volume, or of the project
    ///
    /// Asks Cinder itself, so it works without the daemon.
    Snapshots {
        /// The volume's name; all volumes if it is left out
        name: Option<String>,
        /// Print JSON: a list of {name, id, volume, volume_id, size, created_at, status}
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell
    #[command(after_help = "Example:\n  cinder-docker-driver completions bash \
                            >/etc/bash_completion.d/cinder-docker-driver")]
    Completions {
        /// The shell
        shell: CompletionShell,
    },
    /// Write the manual pages into a directory
    #[command(after_help = "Example:\n  cinder-docker-driver man /usr/local/share/man/man8")]
    Man {
        /// The directory; it is made if need be
        dir: PathBuf,
    },
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON: a list of {what, level, found, mend}; level is ok, skipped, warning or error
    #[arg(long)]
    pub json: bool,
    /// Mend what can be mended without touching data: directories and their modes, the mode of the
    /// config, iscsid's socket, empty directories, iSCSI sessions and records of this driver that were
    /// left and that nothing uses; says what it does
    #[arg(long, conflicts_with = "json")]
    pub fix: bool,
}

/// Arguments of `adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// The volume's name in Cinder, or its id
    pub name: String,
    /// The name that it gets, in Cinder too [default: the one that it has]
    pub new_name: Option<String>,
    /// The volume's id: do it without asking
    #[arg(long, value_name = "UUID")]
    pub id: Option<String>,
}

/// Arguments of `release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The volume's name
    #[arg(required_unless_present = "host", conflicts_with = "host")]
    pub name: Option<String>,
    /// All volumes of this host, as "ls" names it
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// The volume's id: do it without asking
    #[arg(long, value_name = "UUID", conflicts_with = "host")]
    pub id: Option<String>,
    /// With --host: the host's name once more, to do it without asking
    #[arg(long, value_name = "HOST", requires = "host")]
    pub confirm: Option<String>,
}

/// Arguments of `sandbox`.
#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// Where volumes, state and the generated config.json are kept
    #[arg(long, value_name = "DIR", default_value = SANDBOX_DIR)]
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
    /// The request to the daemon that a command is, if it is one: what about which volume.
    pub fn operation(&self) -> Option<(Operation, &str, Arguments)> {
        let confirmed = |args: &NameArgs| Arguments { id: args.id.clone(), ..Arguments::default() };
        match self {
            Self::Format(args) => Some((Operation::Format, &args.name, confirmed(args))),
            Self::AcceptUuid(args) => Some((Operation::AcceptUuid, &args.name, confirmed(args))),
            Self::ProveFailover(args) => {
                Some((Operation::ProveFailover, &args.name, confirmed(args)))
            }
            Self::Resize { name, size } => {
                let arguments = Arguments { size: Some(size.clone()), ..Arguments::default() };
                Some((Operation::Resize, name, arguments))
            }
            Self::Snapshot { name, snapshot, delete, id } => {
                let operation =
                    if *delete { Operation::DeleteSnapshot } else { Operation::Snapshot };
                let (id, snapshot) = (id.clone(), snapshot.clone());
                Some((operation, name, Arguments { id, snapshot, ..Arguments::default() }))
            }
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
    fn a_configuration_counts_as_filled_in_unless_it_is_the_example_or_missing() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        assert!(!is_filled_in(&config, false));
        assert!(is_filled_in(&config, true), "OS_* may be all of it");
        fs::write(&config, include_str!("../../config.example.json")).unwrap();
        assert!(!is_filled_in(&config, true));
        fs::write(&config, r#"{ "Endpoint": "https://cloud:5000/v3" }"#).unwrap();
        assert!(is_filled_in(&config, false));
        // No file, and there.
        assert!(is_filled_in(dir.path(), false));
        assert_eq!(parse("d --config /x status").settings_path(), PathBuf::from("/x"));
    }

    #[test]
    fn global_flags_may_stand_on_either_side_of_the_command() {
        assert!(parse("d --debug serve").debug);
        assert!(parse("d serve --debug").debug);
    }
}
