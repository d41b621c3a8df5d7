//! The token that all callers share, the addresses that came with it, and calls sent with both.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::{Mutex as AsyncMutex, OnceCell};
use tracing::Instrument;
use url::Url;

use super::answer::Answer;
use super::catalog::{BLOCK_STORAGE, IMAGE};
use super::endpoint::{
    BlockStorageAddress, BlockStorageEndpoint, BlockStorageVersion, block_storage_versions,
};
use super::http::{Call, Http, Microversion, Service};
use super::keystone::{Keystone, Token};
use super::model::is_plain;
use super::page::Sink;
use super::{CloudError, CloudErrorKind};
use crate::config::CloudSettings;
use crate::shown::shown;

/// A token and what it opens.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) token: Token,
    pub(super) project_id: String,
    pub(super) block_storage: BlockStorageEndpoint,
}

/// Keeps the session, renews it and sends calls with it.
#[derive(Debug)]
pub(super) struct Sessions {
    http: Http,
    keystone: Keystone,
    region: String,
    interface: String,
    block_storage_override: Option<String>,
    current: Mutex<Current>,
    /// Held by the one task that authenticates.
    renewing: AsyncMutex<()>,
    highest_microversion: OnceCell<Option<Microversion>>,
}

#[derive(Debug, Default)]
struct Current {
    session: Option<Arc<Session>>,
    /// Attempts finished so far: who waited while one finished shares its outcome.
    attempts: u64,
    failure: Option<CloudError>,
}

impl Sessions {
    pub(super) fn new(settings: &CloudSettings, http: Http) -> Result<Self, CloudError> {
        Ok(Self {
            http,
            keystone: Keystone::new(settings)?,
            region: settings.region.clone(),
            interface: settings.interface.clone(),
            block_storage_override: settings.block_storage_endpoint.clone(),
            current: Mutex::default(),
            renewing: AsyncMutex::new(()),
            highest_microversion: OnceCell::new(),
        })
    }

    /// Sends a call to its service.
    pub(super) async fn send(self: &Arc<Self>, call: &Call) -> Result<Answer, CloudError> {
        let mut body = Vec::new();
        let answer = self.send_into(call, &mut body).await?;
        Ok(Answer { body, ..answer })
    }

    /// The same; the body of a success goes into the sink, not into the answer.
    pub(super) async fn send_into(
        self: &Arc<Self>,
        call: &Call,
        sink: &mut dyn Sink,
    ) -> Result<Answer, CloudError> {
        let endpoint = |session: &Session| match call.service {
            Service::BlockStorage => Ok(session.block_storage.url.clone()),
            Service::Identity => Ok(session.token.identity_url.clone()),
            Service::Image => self.image_endpoint(session),
        };
        self.send_to(call, endpoint, sink).await
    }

    /// Sends a call with the shared token, and once more with a new token after a 401: those come
    /// from the door of the service, so nothing has happened yet.
    async fn send_to(
        self: &Arc<Self>,
        call: &Call,
        endpoint: impl Fn(&Session) -> Result<Url, CloudError>,
        sink: &mut dyn Sink,
    ) -> Result<Answer, CloudError> {
        let session = self.session().await?;
        let token = &session.token.secret;
        match self.http.send_into(&endpoint(&session)?, call, Some(token), sink).await {
            Err(error) if error.kind == CloudErrorKind::Unauthenticated => {
                tracing::debug!(%error, "the token is not accepted any more");
                self.forget(&session);
                let session = self.session().await?;
                let token = &session.token.secret;
                let endpoint = endpoint(&session)?;
                let again = self.http.send_into(&endpoint, call, Some(token), sink).await;
                again.map_err(after_second_refusal)
            }
            result => result,
        }
    }

    /// The session, made or renewed where needed, once for all who ask.
    pub(super) async fn session(self: &Arc<Self>) -> Result<Arc<Session>, CloudError> {
        let (session, seen) = {
            let current = self.current();
            (current.session.clone(), current.attempts)
        };
        if let Some(session) = session.filter(|session| !session.token.has_expired()) {
            if session.token.should_be_renewed() && self.renewing.try_lock().is_ok() {
                // Nobody waits for it: the old token still serves.
                let renewal = Arc::clone(self).renew(seen);
                let renewed = async move {
                    if let Err(error) = renewal.await {
                        tracing::warn!(%error, "cannot renew the token yet");
                    }
                };
                tokio::spawn(renewed.in_current_span());
            }
            return Ok(session);
        }
        // In a task of its own, so that a caller who gives up doesn't take the login with it.
        match tokio::spawn(Arc::clone(self).renew(seen).in_current_span()).await {
            Ok(result) => result,
            Err(_) => Err(CloudError::new(
                CloudErrorKind::Unreachable,
                "cannot get a token: the driver is stopping",
            )),
        }
    }

    /// Authenticates, unless somebody finished doing so since attempt `seen`.
    async fn renew(self: Arc<Self>, seen: u64) -> Result<Arc<Session>, CloudError> {
        let _alone = self.renewing.lock().await;
        {
            let current = self.current();
            if current.attempts != seen {
                if let Some(error) = &current.failure {
                    return Err(error.clone());
                }
                if let Some(session) = &current.session {
                    return Ok(Arc::clone(session));
                }
            }
        }
        let result = self.authenticate().await.map(Arc::new);
        crate::metrics::token(if result.is_ok() { "ok" } else { "failed" });
        let mut current = self.current();
        current.attempts += 1;
        current.failure = result.as_ref().err().cloned();
        if let Ok(session) = &result {
            current.session = Some(Arc::clone(session));
        }
        result
    }

    async fn authenticate(&self) -> Result<Session, CloudError> {
        let token = self.keystone.authenticate(&self.http).await?;
        let Some(project_id) = token.project_id.clone() else {
            return Err(CloudError::new(
                CloudErrorKind::Catalog,
                "Keystone gave a token without a project: set TenantID or TenantName",
            ));
        };
        if !is_plain(&project_id) {
            return Err(CloudError::new(
                CloudErrorKind::Catalog,
                format!(
                    "Keystone gave a token for \"{}\", which is no project id",
                    shown(&project_id)
                ),
            ));
        }
        let written = match &self.block_storage_override {
            Some(written) => written,
            None => {
                token.catalog.find("block storage", BLOCK_STORAGE, &self.region, &self.interface)?
            }
        };
        let block_storage = match BlockStorageAddress::parse(written, &project_id)? {
            BlockStorageAddress::Complete(endpoint) => endpoint,
            BlockStorageAddress::Unversioned(root) => {
                let version = self.block_storage_version(&root).await?;
                BlockStorageEndpoint::below_root(&root, version, &project_id)
            }
        };
        Ok(Session { token, project_id, block_storage })
    }

    async fn block_storage_version(&self, root: &Url) -> Result<BlockStorageVersion, CloudError> {
        let call = versions_call();
        let answer = self.http.send(root, &call, None).await.map_err(CloudError::before_sending)?;
        let document: Value = answer.json(&call).map_err(CloudError::before_sending)?;
        block_storage_versions(&document).0.ok_or_else(|| {
            CloudError::new(
                CloudErrorKind::Catalog,
                format!("{root} lists neither version 2 nor 3 of the block storage API"),
            )
        })
    }

    /// Highest microversion of the block storage API; `None` on v2, and where Cinder lists none.
    /// Asked once.
    pub(super) async fn highest_microversion(
        self: &Arc<Self>,
    ) -> Result<Option<Microversion>, CloudError> {
        let ask = async || {
            let session = self.session().await?;
            if session.block_storage.version == BlockStorageVersion::V2 {
                return Ok(None);
            }
            let call = versions_call();
            // The root of v3 is certainly behind the same proxy as the rest, but wants a token;
            // some proxies forward only the root of all.
            for place in 0..2 {
                let root = |session: &Session| Ok(session.block_storage.roots()[place].clone());
                let mut document = Vec::new();
                match self.send_to(&call, root, &mut document).await {
                    Ok(_) => {
                        let document: Value = serde_json::from_slice(&document).unwrap_or_default();
                        if let (_, Some(highest)) = block_storage_versions(&document) {
                            return Ok(Some(highest));
                        }
                    }
                    // Forbidden, redirected, not found: an answer for good.
                    Err(error)
                        if matches!(error.status, Some(300..=400 | 403..=499))
                            && error.kind != CloudErrorKind::Busy =>
                    {
                        tracing::debug!(%error, "no version document here");
                    }
                    Err(error) => return Err(error.before_sending()),
                }
            }
            tracing::warn!("Cinder does not list its microversions: using none");
            Ok(None)
        };
        self.highest_microversion.get_or_try_init(ask).await.copied()
    }

    /// Glance's version 2 endpoint, whether the catalog's address names the version or not.
    fn image_endpoint(&self, session: &Session) -> Result<Url, CloudError> {
        let written = session.token.catalog.find("image", IMAGE, &self.region, &self.interface)?;
        let base = written.trim_end_matches('/');
        let base = base.strip_suffix("/v2").unwrap_or(base);
        Url::parse(&format!("{base}/v2")).map_err(|error| {
            CloudError::new(
                CloudErrorKind::Catalog,
                format!("the catalog's image endpoint {written} is not an address: {error}"),
            )
        })
    }

    fn forget(&self, refused: &Arc<Session>) {
        let mut current = self.current();
        if current.session.as_ref().is_some_and(|session| Arc::ptr_eq(session, refused)) {
            current.session = None;
        }
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        // Nothing under the lock can panic half way.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn versions_call() -> Call {
    Call {
        accept: &[200, 300],
        ..Call::list(Service::BlockStorage, "list the versions of the block storage API", "/", None)
    }
}

fn after_second_refusal(mut error: CloudError) -> CloudError {
    if error.kind == CloudErrorKind::Unauthenticated {
        error.message += "; Keystone issued it this very moment: check that both belong to the \
                          same cloud and that their clocks agree";
    }
    error
}
