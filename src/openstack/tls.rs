//! The HTTP client: one connection pool, TLS as the operator configured it.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Identity, redirect, retry};
use tokio::sync::OnceCell;

use super::{CloudError, CloudErrorKind};
use crate::config::CloudSettings;

/// A connection that isn't there by then won't come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Below Apache's KeepAliveTimeout (5 s): a request must not race with the server's close, for a
/// reserve that gets no answer is a failed Mount. The calls of one Mount still share a connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// One client for plain HTTP, and one for TLS. Reading the host's CA certificates takes tens of
/// milliseconds and half a megabyte, so that is done when the first `https` address is asked.
#[derive(Debug)]
pub(super) struct Clients {
    settings: CloudSettings,
    plain: Client,
    secure: OnceCell<Client>,
}

impl Clients {
    /// Checks the CA file and the client certificate, touches no network.
    pub(super) fn new(settings: &CloudSettings) -> Result<Self, CloudError> {
        // Fails only when a provider is installed already, and then that one serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        settings.ca_file.as_deref().map(authorities).transpose()?;
        if settings.insecure {
            tracing::warn!("Insecure is set: the certificates of the cloud are not verified");
        }
        let plain = prepare(settings)?.tls_certs_only([]).build().map_err(|e| unbuilt(&e))?;
        Ok(Self { settings: settings.clone(), plain, secure: OnceCell::new() })
    }

    /// The client for addresses of this scheme.
    pub(super) async fn of(&self, scheme: &str) -> Result<&Client, CloudError> {
        if scheme == "http" {
            return Ok(&self.plain);
        }
        let build = || async {
            let settings = self.settings.clone();
            let built = tokio::task::spawn_blocking(move || secure(&settings)).await;
            built.unwrap_or_else(|error| Err(unusable(error.to_string())))
        };
        self.secure.get_or_try_init(build).await
    }
}

fn secure(settings: &CloudSettings) -> Result<Client, CloudError> {
    let extra = match &settings.ca_file {
        Some(path) => authorities(path)?,
        None => Vec::new(),
    };
    let none_given = extra.is_empty();
    let built = prepare(settings)?.tls_certs_merge(extra).build();
    match built {
        // A minimal container may have no CA certificates at all, and some other way to trust.
        Err(error) if none_given => {
            tracing::warn!(
                "no CA certificate is trusted ({}): https endpoints need CACert",
                reason(&error)
            );
            prepare(settings)?.tls_certs_only([]).build()
        }
        built => built,
    }
    .map_err(|error| unbuilt(&error))
}

fn unbuilt(error: &reqwest::Error) -> CloudError {
    unusable(format!("cannot prepare the HTTP client: {}", reason(error)))
}

fn prepare(settings: &CloudSettings) -> Result<ClientBuilder, CloudError> {
    let builder = Client::builder()
        .user_agent(concat!("cinder-docker-driver/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_nodelay(true)
        // A redirect would turn a POST into a GET, and carry the token to another host.
        .redirect(redirect::Policy::none())
        // `http.rs` decides what may be repeated.
        .retry(retry::never())
        .tls_danger_accept_invalid_certs(settings.insecure);
    match &settings.client_certificate {
        Some((certificate, key)) => Ok(builder.identity(identity(certificate, key)?)),
        None => Ok(builder),
    }
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, CloudError> {
    let found = Certificate::from_pem_bundle(&read(path, "CACert")?).unwrap_or_default();
    if found.is_empty() {
        return Err(unusable(format!("CACert {} holds no PEM certificate", path.display())));
    }
    Ok(found)
}

fn identity(certificate: &Path, key: &Path) -> Result<Identity, CloudError> {
    let mut pem = read(key, "Key")?;
    pem.push(b'\n');
    pem.extend(read(certificate, "Cert")?);
    Identity::from_pem(&pem).map_err(|_| {
        unusable(format!(
            "Cert {} and Key {} are not a PEM certificate and its unencrypted private key",
            certificate.display(),
            key.display()
        ))
    })
}

fn read(path: &Path, setting: &str) -> Result<Vec<u8>, CloudError> {
    fs::read(path)
        .map_err(|error| unusable(format!("cannot read {setting} {}: {error}", path.display())))
}

/// The innermost cause: reqwest's own text says only "builder error".
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

fn unusable(message: String) -> CloudError {
    CloudError::new(CloudErrorKind::BadRequest, message)
}
