//! Whether the daemon is well: what its journal and the kernel show, and on request Cinder and the
//! devices. For monitoring, so it changes nothing, and asks the cloud only when told to.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::Driver;
use super::journal::Entry;
use crate::error_chain::Chain;
use crate::host::attach::DeviceState;
use crate::host::filesystem::mount::is_healthy;
use crate::host::filesystem::mountinfo::{self, MountEntry};
use crate::metrics::{Backlog, Gauges};

/// Until what looks wrong is looked at again: it may be an operation in the middle of its work.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// How long Cinder may take to answer.
const CLOUD_LIMIT: Duration = Duration::from_secs(30);

/// Something that an operator should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ailment {
    /// Containers have no volume, or will have none; otherwise it can wait for the morning.
    critical: bool,
    what: String,
}

impl Ailment {
    fn critical(what: String) -> Self {
        Self { critical: true, what }
    }

    fn warning(what: String) -> Self {
        Self { critical: false, what }
    }
}

impl Driver {
    /// What metrics show of this moment.
    pub fn gauges(&self) -> Gauges {
        let mounts = mountinfo::own(&self.host.paths).unwrap_or_default();
        let entries = self.journal.all();
        let mounted = entries.iter().filter(|entry| self.mounted_among(entry, &mounts).is_some());
        Gauges {
            mounts: mounted.count(),
            backlog: Backlog {
                to_release: entries.iter().filter(|entry| self.is_left_over(entry)).count(),
                creating: self.journal.creations().len(),
                unanswered: entries.iter().filter(|entry| entry.unanswered.is_some()).count(),
                unwritten: self.journal.behind().len(),
                unusable: self.journal.unusable().count(),
            },
        }
    }

    /// `{"status": "ok"|"warning"|"critical", "says": [sentences], "version", "mounts", "backlog"}`.
    pub(super) async fn health(&self, deep: bool) -> Value {
        let mut ailments = self.ailments();
        if !ailments.is_empty() {
            sleep(SECOND_LOOK).await;
            let still = self.ailments();
            ailments.retain(|ailment| still.contains(ailment));
        }
        if deep {
            ailments.extend(self.deep_ailments().await);
        }
        let status = match (ailments.is_empty(), ailments.iter().any(|one| one.critical)) {
            (true, _) => "ok",
            (false, false) => "warning",
            (false, true) => "critical",
        };
        ailments.sort_by_key(|ailment| !ailment.critical);
        let says: Vec<String> = ailments.into_iter().map(|ailment| ailment.what).collect();
        let gauges = self.gauges();
        json!({
            "status": status,
            "says": says,
            "version": env!("CARGO_PKG_VERSION"),
            "mounts": gauges.mounts,
            "backlog": gauges.backlog,
        })
    }

    fn ailments(&self) -> Vec<Ailment> {
        let mut found = Vec::new();
        let mounts = match mountinfo::own(&self.host.paths) {
            Ok(mounts) => mounts,
            Err(error) => {
                let what = format!("the mounts of this host cannot be read: {error}");
                return vec![Ailment::critical(what)];
            }
        };
        for entry in self.journal.all() {
            let name = entry.shown_name();
            if self.is_left_over(&entry) {
                if let Some(error) = &entry.last_error {
                    found.push(Ailment::warning(format!("{name} is yet to be released: {error}")));
                }
                continue;
            }
            let Some(record) = entry.mount.as_ref().filter(|_| entry.users() > 0) else { continue };
            let what = match self.mounted_among(&entry, &mounts) {
                _ if entry.taken.is_some() => {
                    "was taken from this host, so its containers get errors"
                }
                None => "is not mounted any more, though containers use it",
                Some(mounted) if !is_healthy(mounted, record.read_only) => {
                    "was stopped by the kernel: its filesystem takes no writes"
                }
                Some(_) => continue,
            };
            found.push(Ailment::critical(format!("{name} {what}; stop those containers")));
        }
        if !self.journal.behind().is_empty() {
            let directory = self.journal.directory().display();
            found.push(Ailment::critical(format!("the journal in {directory} cannot be written")));
        }
        for (_, path, reason) in self.journal.unusable() {
            found.push(Ailment::warning(format!(
                "the journal entry {} cannot be used ({reason})",
                path.display()
            )));
        }
        found
    }

    async fn deep_ailments(&self) -> Vec<Ailment> {
        let mut found = Vec::new();
        match timeout(CLOUD_LIMIT, self.cloud.limits()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => found.push(Ailment::critical(error.to_string())),
            Err(_) => {
                let seconds = CLOUD_LIMIT.as_secs();
                found.push(Ailment::critical(format!("Cinder does not answer for {seconds} s")));
            }
        }
        for entry in self.journal.all() {
            let used = self.is_of_this_boot(&entry) && entry.users() > 0;
            let Some(device) = entry.device.as_ref().filter(|_| used) else { continue };
            let name = entry.shown_name();
            match self.host.attacher.find(device).await {
                Ok(Some(device)) => match device.state {
                    DeviceState::Running => {}
                    DeviceState::Waiting => found.push(Ailment::warning(format!(
                        "the target of {name} does not answer; its I/O waits"
                    ))),
                    DeviceState::Failed => {
                        found.push(Ailment::critical(format!("the device of {name} has failed")));
                    }
                },
                Ok(None) => {
                    found.push(Ailment::critical(format!("the device of {name} is gone")));
                }
                Err(error) => found.push(Ailment::warning(format!(
                    "the device of {name} cannot be looked at: {}",
                    Chain(&error)
                ))),
            }
        }
        found
    }

    /// Whether something is held that nobody uses, and that is more than a mount whose caller may
    /// come again in a moment.
    fn is_left_over(&self, entry: &Entry) -> bool {
        if !entry.has_liabilities() {
            return false;
        }
        let this_boot = self.is_of_this_boot(entry);
        !(this_boot && (entry.users() > 0 || entry.is_complete()))
    }

    fn mounted_among<'a>(&self, entry: &Entry, mounts: &'a [MountEntry]) -> Option<&'a MountEntry> {
        let record = entry.mount.as_ref().filter(|_| self.is_of_this_boot(entry))?;
        mounts.iter().rfind(|mount| {
            mount.mount_point == record.at
                && (mount.device == record.device || mount.block_device() == Some(record.device))
        })
    }
}
