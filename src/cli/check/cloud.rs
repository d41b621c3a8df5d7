//! The cloud's side of `check`: login, clock, catalog, roles, quota, Cinder; and whether another host
//! says that it is this one.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use super::Findings;
use super::host::MAKE_NAME;
use crate::config::{CloudSettings, Settings};
use crate::driver::metadata;
use crate::driver::report::holder_of;
use crate::host::identity::HostIdentity;
use crate::openstack::{Cloud, CloudError, CloudErrorKind, CloudFacts, Limits, Volume};

/// How long the cloud may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds between the clocks that are worth a word: NTP keeps them within one.
const SKEW_SEEN: u64 = 30;
/// Seconds from which on reservations of others may be taken for old: see `DOUBTFUL_FOR` in the
/// driver.
const SKEW_BAD: u64 = 300;
/// From here on attachments are released by their id alone.
const ATTACHMENTS: (u32, u32) = (3, 44);
/// Pages of volumes that are looked at; a check is no audit.
const PAGES: usize = 20;

/// What is looked at of a volume.
pub(super) struct Seen {
    pub(super) id: Uuid,
    name: String,
    /// Who has it, by its attachments.
    pub(super) hosts: Vec<String>,
    /// Who attached it last in the actions flow: host and initiator.
    connector: Option<(String, String)>,
}

impl From<Volume> for Seen {
    fn from(volume: Volume) -> Self {
        let hosts = volume.attachments.iter().filter_map(|one| holder_of(one).0);
        let hosts = hosts.map(str::to_owned).collect();
        let connector = volume.metadata.get(metadata::CONNECTOR).and_then(|text| {
            let connector: Value = serde_json::from_str(text).ok()?;
            let member = |name: &str| connector[name].as_str().map(str::to_owned);
            Some((member("host")?, member("initiator")?))
        });
        Self { id: volume.id, hosts, connector, name: volume.name }
    }
}

impl Seen {
    /// A name that commands take.
    pub(super) fn shown_name(&self) -> String {
        match crate::driver::VolumeName::is_valid(&self.name) {
            true => self.name.clone(),
            false => self.id.to_string(),
        }
    }
}

/// Logs in, asks Cinder for its versions, the quota and the volumes; answers the volumes when all of
/// them were seen.
pub(super) async fn check(settings: &Settings, findings: &mut Findings) -> Option<Vec<Seen>> {
    let cloud = connect(&settings.cloud, findings)?;
    let facts = match in_time(cloud.facts()).await {
        Ok(facts) => facts,
        Err((found, mend)) => {
            findings.error("cloud", found, mend);
            return None;
        }
    };
    tell(&facts, settings, findings);
    match in_time(cloud.limits()).await {
        Ok(limits) => check_quota(&limits, settings.driver.default_size, findings),
        Err((found, mend)) => findings.warn("quota", found, mend),
    }
    match in_time(volumes(&cloud)).await {
        Ok((volumes, all)) => {
            let more = if all { "" } else { " and more" };
            findings.ok("cinder", format!("{} volumes{more} in the project", volumes.len()));
            all.then_some(volumes)
        }
        Err((found, mend)) => {
            findings.error("cinder", found, mend);
            None
        }
    }
}

fn connect(settings: &CloudSettings, findings: &mut Findings) -> Option<Cloud> {
    let cloud = Cloud::new(settings);
    let mend = "correct CACert, Cert, Key or Endpoint in the config";
    cloud.map_err(|error| findings.error("cloud", error.to_string(), mend)).ok()
}

/// The volumes, and whether they are all.
async fn volumes(cloud: &Cloud) -> Result<(Vec<Seen>, bool), CloudError> {
    let (mut seen, mut next) = (Vec::new(), None);
    for _ in 0..PAGES {
        let page = cloud.list_page::<Seen>(next.as_deref()).await?;
        seen.extend(page.volumes);
        next = page.next;
        if next.is_none() {
            return Ok((seen, true));
        }
    }
    Ok((seen, false))
}

fn tell(facts: &CloudFacts, settings: &Settings, findings: &mut Findings) {
    findings
        .ok("identity", format!("{} knows us, project {}", facts.identity_url, facts.project_id));
    if let Some(ahead) = facts.clock_ahead {
        check_clock(ahead, findings);
    }
    let version = match facts.max_microversion {
        Some((major, minor)) => format!("microversions up to {major}.{minor}"),
        None => "no microversions".to_owned(),
    };
    findings.ok("catalog", format!("block storage at {} ({version})", facts.block_storage_url));
    let failover = &settings.driver.failover.types;
    if !failover.is_empty() && facts.max_microversion.is_none_or(|most| most < ATTACHMENTS) {
        findings.error(
            "failover",
            format!("Failover needs microversion 3.44, and this Cinder has {version}"),
            "remove Failover from the config",
        );
    }
    if !facts.roles.is_empty() && !facts.roles.iter().any(|role| can_attach(role)) {
        findings.warn(
            "roles",
            format!("the user is {} in the project, which may not do", facts.roles.join(", ")),
            format!("openstack role add --project {} --user USER member", facts.project_id),
        );
    }
}

/// How old a reservation is, is told by Cinder's clock and ours.
fn check_clock(ahead: i64, findings: &mut Findings) {
    const MEND: &str =
        "timedatectl set-ntp true (or install chrony), on this host or on the cloud's";
    let apart = ahead.unsigned_abs();
    let side = if ahead < 0 { "ahead of" } else { "behind" };
    let found = format!("this host's clock is {apart} s {side} the cloud's");
    match apart {
        0..=SKEW_SEEN => {
            findings.ok("clock", format!("within {SKEW_SEEN} s of the cloud's ({apart} s)"));
        }
        _ if apart < SKEW_BAD => findings.warn("clock", found, MEND),
        _ => findings.error(
            "clock",
            format!("{found}: what another host is just reserving may be taken for forgotten"),
            MEND,
        ),
    }
}

fn check_quota(limits: &Limits, default_size: u64, findings: &mut Findings) {
    let of = |(used, most): (u64, Option<u64>)| match most {
        Some(most) => format!("{used} of {most}"),
        None => format!("{used} (no limit)"),
    };
    let left = |(used, most): (u64, Option<u64>)| most.map(|most| most.saturating_sub(used));
    let (volumes, gigabytes) = (of(limits.volumes), of(limits.gigabytes));
    let found = format!("{volumes} volumes and {gigabytes} GiB are used");
    let no_volume = left(limits.volumes) == Some(0);
    let no_room = left(limits.gigabytes).is_some_and(|left| left < default_size);
    if no_volume || no_room {
        let what = if no_volume { "no volume" } else { "no volume of the default size" };
        findings.warn(
            "quota",
            format!("{found}: {what} can be made any more"),
            "docker volume prune or openstack volume delete, or ask for a larger quota",
        );
    } else {
        findings.ok("quota", found);
    }
}

/// Two hosts with one initiator name are one host to every target. What others are, only the actions
/// flow shows; two hosts of one name it shows to be one.
pub(super) fn check_twins(seen: &[Seen], identity: &HostIdentity, findings: &mut Findings) {
    let Some(ours) = &identity.initiator else { return };
    let twin = seen
        .iter()
        .filter_map(|volume| volume.connector.as_ref())
        .find(|(host, initiator)| initiator == ours && *host != identity.host);
    if let Some((host, _)) = twin {
        findings.error(
            "initiator",
            format!(
                "host {host} has the same initiator name, {ours}: to targets it and this host are \
                 one, and each can reach the other's volumes"
            ),
            MAKE_NAME,
        );
    }
}

/// Cinder's default policy lets members and administrators attach.
fn can_attach(role: &str) -> bool {
    matches!(role.to_ascii_lowercase().as_str(), "member" | "_member_" | "admin")
}

/// The answer, or what is wrong and how to mend it.
async fn in_time<T>(
    call: impl Future<Output = Result<T, CloudError>>,
) -> Result<T, (String, &'static str)> {
    match timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err((error.to_string(), mend(error.kind))),
        Err(_) => {
            let found = format!("no answer within {} s", PATIENCE.as_secs());
            Err((found, mend(CloudErrorKind::Unreachable)))
        }
    }
}

fn mend(kind: CloudErrorKind) -> &'static str {
    match kind {
        CloudErrorKind::Unauthenticated => {
            "correct Username, Password, TenantID and DomainName in the config"
        }
        CloudErrorKind::Forbidden => "openstack role add --project PROJECT --user USER member",
        CloudErrorKind::Catalog => {
            "correct Region and Interface in the config, or set BlockStorageEndpoint"
        }
        CloudErrorKind::Unreachable | CloudErrorKind::Ambiguous | CloudErrorKind::Busy => {
            "correct Endpoint in the config, or look at the network, the firewall and CACert"
        }
        _ => "ask the administrator of the cloud, with the request id",
    }
}
