//! The cloud's side of `check`: login, catalog, Cinder, roles.

use std::time::Duration;

use tokio::time::timeout;

use super::Findings;
use crate::config::CloudSettings;
use crate::openstack::{Cloud, CloudError, CloudErrorKind, CloudFacts, Volume};

/// How long the cloud may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Logs in and asks Cinder for a page of volumes.
pub(super) async fn check(settings: &CloudSettings, findings: &mut Findings) {
    let cloud = match Cloud::new(settings) {
        Ok(cloud) => cloud,
        Err(error) => {
            let mend = "correct CACert, Cert, Key or Endpoint in the config";
            return findings.error("cloud", error.to_string(), mend);
        }
    };
    let facts = match in_time(cloud.facts()).await {
        Ok(facts) => facts,
        Err((found, mend)) => return findings.error("cloud", found, mend),
    };
    tell(&facts, findings);
    match in_time(cloud.list_page::<Volume>(None)).await {
        Ok(page) => {
            let more = if page.next.is_some() { " and more" } else { "" };
            findings.ok("cinder", format!("{} volumes{more} in the project", page.volumes.len()));
        }
        Err((found, mend)) => findings.error("cinder", found, mend),
    }
}

fn tell(facts: &CloudFacts, findings: &mut Findings) {
    findings
        .ok("identity", format!("{} knows us, project {}", facts.identity_url, facts.project_id));
    let version = match facts.max_microversion {
        Some((major, minor)) => format!("microversions up to {major}.{minor}"),
        None => "no microversions".to_owned(),
    };
    findings.ok("catalog", format!("block storage at {} ({version})", facts.block_storage_url));
    if !facts.roles.is_empty() && !facts.roles.iter().any(|role| can_attach(role)) {
        findings.warn(
            "roles",
            format!("the user is {} in the project, which may not do", facts.roles.join(", ")),
            format!("openstack role add --project {} --user USER member", facts.project_id),
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
