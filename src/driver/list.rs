//! List: what this driver made, what is mounted here, and every name known here.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::Instrument;
use uuid::Uuid;

use super::{Driver, DriverError, VolumeName, metadata};
use crate::docker::{Failure, Listed};
use crate::openstack::{Volume, VolumeStatus};

/// What decides whether and how a volume is listed.
struct Row {
    id: Uuid,
    name: String,
    is_ours: bool,
    is_leaving: bool,
    is_retained: bool,
    cluster: Option<String>,
}

impl From<Volume> for Row {
    fn from(volume: Volume) -> Self {
        Self {
            id: volume.id,
            is_ours: metadata::is_ours(&volume),
            is_leaving: volume.status == VolumeStatus::Deleting,
            is_retained: metadata::retained(&volume).is_some(),
            cluster: metadata::cluster(&volume).map(str::to_owned),
            name: volume.name,
        }
    }
}

impl Driver {
    /// All volumes, page by page: one page is in memory at a time.
    pub(super) fn list_volumes(driver: &Arc<Self>) -> mpsc::Receiver<Result<Vec<Listed>, Failure>> {
        let (sender, receiver) = mpsc::channel(1);
        let (driver, pages) = (Arc::clone(driver), sender.clone());
        let send = async move {
            // A task of its own: should it break off, the list must not look complete.
            let pages = async move { driver.send_pages(&pages).await };
            let sent = tokio::spawn(pages.in_current_span());
            let reason = match sent.await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    crate::metrics::error(error.label());
                    crate::error_chain::Chain(&error).to_string()
                }
                Err(broken) => broken.to_string(),
            };
            let message = format!("cannot list volumes: {reason}");
            // A receiver that is gone needs no answer.
            sender.send(Err(Failure { bad_request: false, message })).await.ok();
        };
        tokio::spawn(send.in_current_span());
        receiver
    }

    async fn send_pages(
        &self,
        sender: &mpsc::Sender<Result<Vec<Listed>, Failure>>,
    ) -> Result<(), DriverError> {
        // What is held here is listed first: it is true whatever Cinder says.
        let mut listed = HashSet::new();
        let mut batch = Vec::new();
        for entry in self.journal.all() {
            if entry.mount.is_some() {
                let directory = self.mounted_directory(&entry)?;
                for name in &entry.names {
                    if listed.insert(name.clone()) {
                        batch.push(Listed {
                            name: name.clone(),
                            mountpoint: directory.as_ref().map(|path| path.display().to_string()),
                        });
                    }
                }
            }
        }
        let mut next = None;
        let mut seen = HashSet::new();
        loop {
            let page = self.cloud.list_page::<Row>(next.as_deref()).await?;
            for volume in page.volumes {
                for name in self.names_of(&volume) {
                    // Only names that may come again are remembered, not those of the project.
                    if !listed.contains(&name) {
                        batch.push(Listed { name, mountpoint: None });
                    }
                }
            }
            if sender.send(Ok(std::mem::take(&mut batch))).await.is_err() || page.next.is_none() {
                return Ok(());
            }
            next = page.next;
            if next.as_ref().is_some_and(|next| !seen.insert(next.clone())) {
                return Err(DriverError::Refused(
                    "the pages of Cinder's list come to no end".to_owned(),
                ));
            }
        }
    }

    /// The Docker names under which a volume is listed.
    fn names_of(&self, volume: &Row) -> Vec<String> {
        let is_ours_by_cluster = volume.cluster == self.settings.cluster;
        if volume.is_leaving || volume.cluster.is_some() && !is_ours_by_cluster {
            return Vec::new();
        }
        let is_ours = volume.is_ours && is_ours_by_cluster && !volume.is_retained;
        let mut names = Vec::new();
        let known = self.journal.get(volume.id).ok().flatten();
        let nameable = VolumeName::is_valid(&volume.name);
        if nameable && (self.settings.list_all || is_ours) {
            names.push(volume.name.clone());
        }
        if let Some(entry) = known {
            let id = volume.id.to_string();
            for name in &entry.names {
                if (*name == volume.name || *name == id) && !names.contains(name) {
                    names.push(name.clone());
                }
            }
        }
        names
    }
}
