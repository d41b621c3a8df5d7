//! Wires the parts together and runs them: settings → socket, driver, background work; signals,
//! sd_notify, orderly stop.
//!
//! The socket is there before anything touches the network, for dockerd waits 15 s for a plugin
//! that isn't. Mounts outlive the daemon: nothing is unmounted at its end.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::cli::SandboxArgs;
use crate::config::{self, ConfigErrors, Settings};
use crate::docker::server::{self, Limits};
use crate::docker::socket::{self, SocketError};
use crate::driver::{Driver, DriverError};
use crate::effects;
use crate::error_chain::Chain;
use crate::host::Paths;
use crate::memory;
use crate::metrics;
use crate::openstack::{Cloud, CloudError};
use crate::sandbox::{self, Sandbox};

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// CA file, client certificate, endpoint.
    #[error("cannot use the cloud settings")]
    Cloud(#[from] CloudError),
    /// Journal, identity.
    #[error("cannot start")]
    Driver(#[from] DriverError),
    /// Signals.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    /// The sandbox.
    #[error("cannot start the sandbox in {}", dir.display())]
    Sandbox {
        /// Its directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Reads the settings, with the process's environment, and logs what an operator should look at.
pub fn load_settings(path: &Path) -> Result<Settings, ConfigErrors> {
    let (settings, warnings) = config::load(path, &|name| std::env::var(name).ok())?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(settings)
}

/// Serves Docker until SIGTERM or SIGINT.
pub async fn serve(settings: Settings, socket: &Path) -> Result<(), DaemonError> {
    let shutdown = shutdown_signal()?;
    let (listener, file) = match socket::adopt()? {
        Some(listener) => (listener, None),
        None => {
            let (listener, file) = socket::bind(socket, settings.socket_group.as_deref())?;
            (listener, Some(file))
        }
    };
    let served = serve_on(listener, settings, shutdown).await;
    if let Some(file) = file {
        file.unlink();
    }
    served
}

async fn serve_on(
    listener: tokio::net::UnixListener,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let cloud = Cloud::new(&settings.cloud)?;
    let paths = Paths { tools: effects::tools(), ..Paths::default() };
    let driver = Arc::new(Driver::new(settings.driver, &settings.host, cloud, paths)?);
    let scrapes = match &settings.metrics {
        Some(address) => serve_metrics(address, settings.socket_group.as_deref(), &driver).await,
        None => None,
    };
    let background = tokio::spawn(Arc::clone(&driver).work_in_background());
    let tidying = tokio::spawn(memory::give_back_after_work());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        journal = %driver.journal().directory().display(),
        "ready"
    );
    notify(sd_notify::NotifyState::Ready);
    server::serve(listener, Arc::new(driver), Limits::default(), async {
        shutdown.await;
        notify(sd_notify::NotifyState::Stopping);
        tracing::info!("stopping; what is mounted stays mounted");
    })
    .await;
    background.abort();
    tidying.abort();
    if let Some(scrapes) = scrapes {
        scrapes.abort();
        // Its socket is gone when it has ended.
        scrapes.await.ok();
    }
    Ok(())
}

/// Volumes are worth more than their figures: what keeps metrics from being served is told, and the
/// daemon goes on without them.
async fn serve_metrics(
    address: &metrics::server::Address,
    group: Option<&str>,
    driver: &Arc<Driver>,
) -> Option<JoinHandle<()>> {
    match metrics::server::Listener::bind(address, group).await {
        Ok(listener) => {
            metrics::enable();
            tracing::info!(%address, "metrics are served");
            let driver = Arc::clone(driver);
            Some(tokio::spawn(listener.serve(move || driver.gauges())))
        }
        Err(error) => {
            tracing::error!("no metrics: {}", Chain(&error));
            None
        }
    }
}

/// Serves the embedded cloud and, unless told otherwise, the plugin beside it.
pub async fn serve_sandbox(args: &SandboxArgs, socket: &Path) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::Sandbox { dir: args.dir.clone(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&args.dir).map_err(failed)?;
    let options = sandbox::Options {
        listen: args.listen,
        iscsi: args.iscsi,
        ..sandbox::Options::new(&args.dir)
    };
    let sandbox = Sandbox::start(options).await.map_err(failed)?;
    let config = args.dir.join("config.json");
    write_config(&config, &sandbox, &args.dir).map_err(failed)?;
    tracing::info!(
        "the sandbox cloud listens on http://{}; a config file for it is {}",
        sandbox.address(),
        config.display()
    );
    if args.cloud_only {
        let shutdown = shutdown_signal()?;
        notify(sd_notify::NotifyState::Ready);
        shutdown.await;
        return Ok(());
    }
    // Only the file counts: a shell's OS_* variables are about another cloud.
    let (settings, _) = config::load(&config, &|_| None)?;
    serve(settings, socket).await
}

fn write_config(path: &Path, sandbox: &Sandbox, dir: &Path) -> io::Result<()> {
    let mut config = sandbox.config();
    config.insert("MountPoint".into(), json!(dir.join("mount")));
    config.insert("StateDir".into(), json!(dir.join("driver")));
    let text = serde_json::to_string_pretty(&Value::Object(config))?;
    let temporary = path.with_extension("new");
    // Made anew, so that it is private from its first byte on.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file =
        fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    fs::rename(temporary, path)
}

/// Resolves at SIGTERM or SIGINT; they are caught from now on.
fn shutdown_signal() -> Result<impl Future<Output = ()>, DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd could not be notified");
    }
}
