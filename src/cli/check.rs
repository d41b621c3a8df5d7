//! `check`: looks at everything that a Mount will need, and says for each thing that is wrong
//! which command mends it. Changes nothing.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use crate::config::{self, Settings};
use crate::error_chain::Chain;
use crate::host::Paths;
use crate::host::exec::Exec;
use crate::host::identity::HostIdentity;
use crate::openstack::{Cloud, CloudErrorKind};

/// How long the cloud may take to answer.
const CLOUD_PATIENCE: Duration = Duration::from_secs(30);

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warning,
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    level: Level,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, what: &'static str, found: impl Into<String>) {
        self.0.push(Finding { what, level: Level::Ok, found: found.into(), mend: None });
    }

    fn bad(
        &mut self,
        what: &'static str,
        level: Level,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.0.push(Finding { what, level, found: found.into(), mend: Some(mend.into()) });
    }

    fn worst(&self) -> Level {
        let has = |level| self.0.iter().any(|finding| finding.level == level);
        match (has(Level::Error), has(Level::Warning)) {
            (true, _) => Level::Error,
            (false, true) => Level::Warning,
            (false, false) => Level::Ok,
        }
    }
}

/// Checks and prints; the exit code is 1 when something must be mended.
pub async fn check(config: &Path, socket: &Path, json: bool) -> io::Result<ExitCode> {
    let mut findings = Findings::default();
    if let Some(settings) = check_config(config, &mut findings) {
        let paths = Paths::default();
        check_tools(&paths, &settings, &mut findings);
        check_identity(&paths, &settings, &mut findings);
        check_cloud(&settings, &mut findings).await;
    }
    check_socket(socket, &mut findings).await;
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &findings.0)?;
        writeln!(out)?;
    } else {
        print(&mut out, &findings)?;
    }
    Ok(if findings.worst() == Level::Error { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(out: &mut impl Write, findings: &Findings) -> io::Result<()> {
    for finding in &findings.0 {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Error => "ERROR  ",
        };
        writeln!(out, "{mark}  {}: {}", finding.what, finding.found)?;
        if let Some(mend) = &finding.mend {
            writeln!(out, "         → {mend}")?;
        }
    }
    match findings.worst() {
        Level::Ok => writeln!(out, "All is well."),
        Level::Warning => writeln!(out, "It will work; see the warnings."),
        Level::Error => writeln!(out, "It will not work until the errors are mended."),
    }
}

fn check_config(path: &Path, findings: &mut Findings) -> Option<Settings> {
    match config::load(path, &|name| std::env::var(name).ok()) {
        Ok((settings, warnings)) => {
            if warnings.is_empty() {
                findings.ok("config", format!("{} can be used", path.display()));
            }
            for warning in warnings {
                let mend = format!("edit {}", path.display());
                findings.bad("config", Level::Warning, warning.to_string(), mend);
            }
            Some(settings)
        }
        Err(errors) => {
            for problem in errors.problems() {
                let mend = format!("edit {}", path.display());
                findings.bad("config", Level::Error, problem, mend);
            }
            None
        }
    }
}

fn check_tools(paths: &Paths, settings: &Settings, findings: &mut Findings) {
    let exec = Exec::new(paths);
    let mkfs = format!("mkfs.{}", settings.driver.default_filesystem);
    let needed = ["mount", "umount", "iscsiadm", "mkfs.ext4", "e2fsck", "resize2fs", mkfs.as_str()];
    let mut missing = false;
    for tool in needed {
        if let Err(error) = exec.find(tool) {
            missing = true;
            findings.bad(
                "tools",
                Level::Error,
                error.to_string(),
                "install it with apt-get or dnf, then restart cinder-docker-driver",
            );
        }
    }
    if !missing {
        findings.ok("tools", "mount, iscsiadm and mkfs are installed");
    }
}

fn check_identity(paths: &Paths, settings: &Settings, findings: &mut Findings) {
    match HostIdentity::discover(paths, &settings.host) {
        Ok(identity) => {
            for warning in identity.warnings(paths, &settings.host) {
                let mend = "see InitiatorIP, InitiatorIFace and /etc/iscsi/initiatorname.iscsi";
                findings.bad("initiator", Level::Warning, warning, mend);
            }
            if let Some(initiator) = &identity.initiator {
                let ip = identity.ip.map_or_else(|| "no address".to_owned(), |ip| ip.to_string());
                let found = format!("{initiator} at {ip}, as host {}", identity.host);
                findings.ok("initiator", found);
            }
            findings.ok("host id", format!("{} (shown in Cinder)", identity.uuid));
        }
        Err(error) => {
            let text = Chain(&error).to_string();
            findings.bad("initiator", Level::Error, text, "install open-iscsi and start iscsid");
        }
    }
    if iscsid_is_listening(paths) {
        findings.ok("iscsid", "it runs");
    } else {
        findings.bad(
            "iscsid",
            Level::Warning,
            "it does not run; the first login starts it where systemd does that",
            "systemctl enable --now iscsid.socket (Debian, Ubuntu) or iscsid (Red Hat)",
        );
    }
}

/// iscsid's abstract socket, as `/proc/net/unix` shows it.
fn iscsid_is_listening(paths: &Paths) -> bool {
    std::fs::read_to_string(paths.proc.join("net/unix"))
        .is_ok_and(|sockets| sockets.contains("@ISCSIADM_ABSTRACT_NAMESPACE"))
}

async fn check_cloud(settings: &Settings, findings: &mut Findings) {
    let cloud = match Cloud::new(&settings.cloud) {
        Ok(cloud) => cloud,
        Err(error) => {
            let mend = "correct CACert, Cert, Key or Endpoint in the config";
            return findings.bad("cloud", Level::Error, error.to_string(), mend);
        }
    };
    let facts = match timeout(CLOUD_PATIENCE, cloud.facts()).await {
        Ok(Ok(facts)) => facts,
        Ok(Err(error)) => {
            return findings.bad("cloud", Level::Error, error.to_string(), mend_cloud(error.kind));
        }
        Err(_) => {
            let mend = mend_cloud(CloudErrorKind::Unreachable);
            return findings.bad("cloud", Level::Error, "no answer within 30 s", mend);
        }
    };
    findings
        .ok("identity", format!("{} knows us, project {}", facts.identity_url, facts.project_id));
    let version = match facts.max_microversion {
        Some((major, minor)) => format!("microversions up to {major}.{minor}"),
        None => "v2".to_owned(),
    };
    findings.ok("catalog", format!("block storage at {} ({version})", facts.block_storage_url));
    match timeout(CLOUD_PATIENCE, cloud.list_page(None)).await {
        Ok(Ok(page)) => {
            let more = if page.next.is_some() { " and more" } else { "" };
            findings.ok("cinder", format!("{} volumes{more} in the project", page.volumes.len()));
        }
        Ok(Err(error)) => {
            findings.bad("cinder", Level::Error, error.to_string(), mend_cloud(error.kind));
        }
        Err(_) => {
            let mend = mend_cloud(CloudErrorKind::Unreachable);
            findings.bad("cinder", Level::Error, "no answer within 30 s", mend);
        }
    }
    if !facts.roles.is_empty() && !facts.roles.iter().any(|role| can_attach(role)) {
        findings.bad(
            "roles",
            Level::Warning,
            format!("the user is {} in the project", facts.roles.join(", ")),
            "openstack role add --project PROJECT --user USER member",
        );
    }
}

/// Cinder's default policy lets members and administrators attach.
fn can_attach(role: &str) -> bool {
    matches!(role.to_ascii_lowercase().as_str(), "member" | "_member_" | "admin")
}

fn mend_cloud(kind: CloudErrorKind) -> &'static str {
    match kind {
        CloudErrorKind::Unauthenticated => {
            "correct Username, Password, TenantID and DomainName in the config"
        }
        CloudErrorKind::Forbidden => "openstack role add --project PROJECT --user USER member",
        CloudErrorKind::Catalog => "correct Region and Interface, or set BlockStorageEndpoint",
        CloudErrorKind::Unreachable | CloudErrorKind::Ambiguous | CloudErrorKind::Busy => {
            "correct Endpoint, or look at the network, the firewall and CACert"
        }
        _ => "ask the administrator of the cloud, with the request id",
    }
}

async fn check_socket(socket: &Path, findings: &mut Findings) {
    let found = tokio::net::UnixStream::connect(socket).await;
    match found {
        Ok(_) => findings.ok("socket", format!("the daemon listens on {}", socket.display())),
        Err(error) => findings.bad(
            "socket",
            Level::Warning,
            format!("nobody listens on {} ({error})", socket.display()),
            "systemctl start cinder-docker-driver",
        ),
    }
}
