//! The binary: parse arguments, start logging, run, print the error chain, exit code.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use cinder_docker_driver::cli::{self, Cli, Command};
use cinder_docker_driver::error_chain::Chain;
use cinder_docker_driver::host::Paths;
use cinder_docker_driver::{daemon, memory};
use clap::Parser;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Threads for blocking work are made anew in some microseconds; idle ones only take memory.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse_from(cli::accept_go_habits(std::env::args_os()));
    start_logging(cli.debug);
    memory::keep_small();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let code = match runtime.block_on(run(&cli)) {
        Ok(code) => code,
        Err(error) => fail(&*error),
    };
    // A thread that hangs in the kernel (a dead target) must not keep the process.
    runtime.shutdown_background();
    code
}

async fn run(cli: &Cli) -> Result<ExitCode, Box<dyn Error>> {
    match &cli.command {
        None | Some(Command::Serve) => {
            daemon::serve(daemon::load_settings(&cli.config)?, &cli.socket).await?;
        }
        Some(Command::Sandbox(args)) => daemon::serve_sandbox(args, &cli.socket).await?,
        Some(Command::Check { json }) => {
            return Ok(cli::check(&cli.config, &cli.socket, *json).await?);
        }
        Some(Command::Status { json }) => {
            let settings = daemon::load_settings(&cli.config)?;
            let state_dir = &settings.driver.state_dir;
            let text = cli::status(state_dir, &cli.socket, &Paths::default(), *json)?;
            std::io::stdout().write_all(text.as_bytes())?;
        }
        Some(Command::Snapshots { name, json }) => {
            let settings = daemon::load_settings(&cli.config)?;
            let text = cli::snapshots(&settings.cloud, name.as_deref(), *json).await?;
            std::io::stdout().write_all(text.as_bytes())?;
        }
        Some(command) => {
            if let Some((operation, name, arguments)) = command.operation() {
                cli::operate(&cli.socket, operation, name, arguments).await?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn fail(error: &(dyn Error + 'static)) -> ExitCode {
    // Nobody is left to be told when standard error is gone.
    let _ = writeln!(std::io::stderr(), "cinder-docker-driver: {}", Chain(error));
    ExitCode::FAILURE
}

/// One line an event on standard error. The journal has its own time stamps. `RUST_LOG` takes targets
/// and levels (`warn,cinder_docker_driver=debug`); what only `EnvFilter` knows, spans and fields, would
/// cost a regular expression engine in memory.
fn start_logging(debug: bool) {
    let level = if debug { tracing::Level::DEBUG } else { tracing::Level::INFO };
    let asked = std::env::var("RUST_LOG").ok().filter(|asked| !asked.is_empty());
    let filter = asked
        .and_then(|asked| asked.parse().ok())
        .unwrap_or_else(|| Targets::new().with_target("cinder_docker_driver", level));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        registry.with(layer.without_time()).init();
    } else {
        registry.with(layer).init();
    }
}
