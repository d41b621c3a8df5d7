//! The block storage API: one method for each call that the driver makes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{CloudError, CreateVolume, Snapshot, Volume, VolumePage};
use crate::config::CloudSettings;

/// A project in a cloud: credentials, token, catalog and connection pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cloud {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {}

/// What `check` and `status` show of a cloud.
#[derive(Debug, Clone)]
pub struct CloudFacts {
    /// Identity endpoint as used, with its version.
    pub identity_url: String,
    /// Block storage endpoint as used.
    pub block_storage_url: String,
    /// Project id of the token.
    pub project_id: String,
    /// Highest microversion, `None` on v2.
    pub max_microversion: Option<(u32, u32)>,
    /// When the token ends.
    pub token_expires_in: Option<Duration>,
    /// Roles in the token.
    pub roles: Vec<String>,
}

impl Cloud {
    /// Prepares the client. Touches no network; reads the CA file and client certificate.
    pub fn new(settings: &CloudSettings) -> Result<Self, CloudError> {
        todo!()
    }

    /// Authenticates (once for all callers), looks the catalog up and asks for versions.
    pub async fn facts(&self) -> Result<CloudFacts, CloudError> {
        todo!()
    }

    /// `GET /volumes/ID`.
    pub async fn volume(&self, id: Uuid) -> Result<Volume, CloudError> {
        todo!()
    }

    /// Every volume of exactly this name, whatever its state: `GET /volumes/detail?name=`, paged
    /// to the end and compared byte for byte (Cinder's filter may ignore case, or be ignored).
    pub async fn volumes_named(&self, name: &str) -> Result<Vec<Volume>, CloudError> {
        todo!()
    }

    /// One page of all volumes of the project, detailed. `next` is `None` at first, then what the
    /// page before said.
    pub async fn list_page(&self, next: Option<&str>) -> Result<VolumePage, CloudError> {
        todo!()
    }

    /// `POST /volumes`. Ambiguous answers are the caller's to resolve (by nonce in the metadata).
    pub async fn create_volume(&self, volume: &CreateVolume) -> Result<Volume, CloudError> {
        todo!()
    }

    /// `DELETE /volumes/ID`. A 404 is [`super::CloudErrorKind::NotFound`].
    pub async fn delete_volume(&self, id: Uuid) -> Result<(), CloudError> {
        todo!()
    }

    /// Sets these metadata keys, keeps the others (`POST /volumes/ID/metadata`). Idempotent, so it
    /// is repeated when ambiguous.
    pub async fn set_metadata(
        &self,
        id: Uuid,
        metadata: &BTreeMap<String, String>,
    ) -> Result<(), CloudError> {
        todo!()
    }

    /// A snapshot by id or by exact name. Several of one name: an error that lists the ids.
    pub async fn snapshot(&self, name_or_id: &str) -> Result<Snapshot, CloudError> {
        todo!()
    }

    /// Id of an image given by id or exact name (Glance from the catalog; an id is taken as such).
    pub async fn image_id(&self, name_or_id: &str) -> Result<String, CloudError> {
        todo!()
    }

    /// Cinder's user messages about a volume, newest first (3.3); empty where there are none.
    pub async fn messages(&self, volume_id: Uuid) -> Result<Vec<String>, CloudError> {
        todo!()
    }
}
