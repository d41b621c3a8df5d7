//! The binary: parse arguments, start logging, run, print the error chain, exit code.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use cinder_docker_driver::cli::{self, Cli, Command};
use cinder_docker_driver::config::Settings;
use cinder_docker_driver::error_chain::Chain;
use cinder_docker_driver::host::Paths;
use cinder_docker_driver::host::filesystem::freeze::guard;
use cinder_docker_driver::{daemon, logging, memory};
use clap::Parser;

/// Threads for blocking work are made anew in some microseconds; idle ones only take memory.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    if let Some(code) = guard::run(std::env::args_os()) {
        return code;
    }
    let cli = Cli::parse_from(cli::accept_go_habits(std::env::args_os()));
    logging::start(cli.debug, cli.log_format);
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
        Some(Command::Check(args)) => {
            return Ok(cli::check(&cli.settings_path(), &cli.socket, args).await?);
        }
        Some(Command::Health { deep, json }) => {
            return Ok(cli::health(&cli.socket, *deep, *json).await?);
        }
        Some(Command::Status { json }) => {
            let settings = daemon::load_settings(&cli.settings_path())?;
            let state_dir = &settings.driver.state_dir;
            print(&cli::status(state_dir, &cli.socket, &Paths::default(), *json).await?)?;
        }
        Some(Command::Snapshots { name, json }) => {
            let settings = daemon::load_settings(&cli.settings_path())?;
            print(&cli::snapshots(&settings.cloud, name.as_deref(), *json).await?)?;
        }
        Some(Command::Ls { all, json }) => {
            print(&cli::ls(&cli.socket, settings_of(cli), *all, *json).await?)?;
        }
        Some(Command::Inspect { name, json }) => {
            print(&cli::inspect(&cli.socket, settings_of(cli), name, *json).await?)?;
        }
        Some(Command::Adopt(args)) => cli::adopt(&cli.socket, args).await?,
        Some(Command::Release(args)) => cli::release(&cli.socket, args).await?,
        Some(Command::Completions { shell }) => {
            cli::completions(*shell, &mut std::io::stdout())?;
        }
        Some(Command::Man { dir }) => cli::man_pages(dir)?,
        Some(command) => {
            if let Some((operation, name, arguments)) = command.operation() {
                cli::operate(&cli.socket, operation, name, arguments).await?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Read only when the daemon cannot be asked.
fn settings_of(cli: &Cli) -> impl FnOnce() -> Result<Settings, String> {
    || daemon::load_settings(&cli.settings_path()).map_err(|errors| errors.to_string())
}

/// Nobody reads on behind `| head`: that is no failure.
fn print(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn fail(error: &(dyn Error + 'static)) -> ExitCode {
    // Nobody is left to be told when standard error is gone.
    let _ = writeln!(std::io::stderr(), "cinder-docker-driver: {}", Chain(error));
    ExitCode::FAILURE
}
