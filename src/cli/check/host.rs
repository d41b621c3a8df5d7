//! This host's side of `check`: tools, initiator, iscsid, kernel, SELinux.

use std::error::Error;
use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

use super::Findings;
use crate::config::HostSettings;
use crate::error_chain::Chain;
use crate::host::Paths;
use crate::host::exec::{Cmd, Exec, ExecError};
use crate::host::identity::HostIdentity;

/// A look at the module index.
const MODPROBE_LIMIT: Duration = Duration::from_secs(10);
/// An initiator name this much older than the machine's own id came with the image.
const OF_THE_IMAGE: Duration = Duration::from_secs(24 * 3600);

/// The tools that a Mount runs, with those of the default filesystem.
pub(super) fn check_tools(paths: &Paths, filesystem: &str, findings: &mut Findings) {
    let exec = Exec::new(paths);
    let mut needed = vec!["mount", "umount", "iscsiadm", "mkfs.ext4", "e2fsck", "resize2fs"];
    match filesystem {
        "xfs" => needed.extend(["mkfs.xfs", "xfs_growfs"]),
        "btrfs" => needed.extend(["mkfs.btrfs", "btrfs"]),
        _ => {}
    }
    let mut all = true;
    for tool in &needed {
        if let Err(error) = exec.find(tool) {
            all = false;
            findings.error("tools", error.to_string(), install_command(&error));
        }
    }
    if all {
        findings.ok("tools", format!("{} are installed", needed.join(", ")));
    }
}

fn install_command(error: &ExecError) -> String {
    let ExecError::Missing { package, .. } = error else { return String::new() };
    let (debian, red_hat) = package
        .split_once(" (")
        .map_or((*package, *package), |(debian, other)| (debian, other.trim_end_matches(')')));
    format!(
        "apt-get install {debian} (Debian, Ubuntu) or dnf install {red_hat} (Red Hat), then: \
         systemctl restart cinder-docker-driver"
    )
}

/// Who this host is to Cinder and to targets.
pub(super) fn check_initiator(
    paths: &Paths,
    settings: &HostSettings,
    findings: &mut Findings,
) -> Option<HostIdentity> {
    let identity = match HostIdentity::discover(paths, settings) {
        Ok(identity) => identity,
        Err(error) if is_denied(&error) => {
            findings.skip("initiator", "its name is shown to root only");
            return None;
        }
        Err(error) => {
            findings.error("initiator", Chain(&error).to_string(), START_ISCSID);
            return None;
        }
    };
    for warning in identity.warnings(paths, settings) {
        let mend = "edit InitiatorIP or InitiatorIFace in the config, or set HostUUID";
        match &identity.initiator {
            // The one warning without which nothing works.
            None if warning.contains("initiator") => {
                findings.error("initiator", warning, MAKE_NAME);
            }
            Some(name) if warning.contains(name) => findings.error("initiator", warning, MAKE_NAME),
            _ => findings.warn("initiator", warning, mend),
        }
    }
    if let Some(initiator) = &identity.initiator {
        let ip = identity.ip.map_or_else(|| "no address".to_owned(), |ip| ip.to_string());
        findings.ok("initiator", format!("{initiator} at {ip}, as host {}", identity.host));
        if is_an_example(initiator) {
            findings.error(
                "initiator",
                format!(
                    "the name {initiator} is an example of the documentation: others have it, too"
                ),
                MAKE_NAME,
            );
        } else if came_with_the_image(paths) {
            findings.warn(
                "initiator",
                format!(
                    "the name {initiator} is older than this machine's id: if it was copied with \
                     an image, targets cannot tell this host from the others that have it"
                ),
                MAKE_NAME,
            );
        }
    }
    findings.ok("host id", format!("Cinder shows this host as {}", identity.uuid));
    Some(identity)
}

/// Names below domains that are reserved for examples (RFC 2606), as manuals have them.
fn is_an_example(initiator: &str) -> bool {
    ["com", "org", "net"].iter().any(|top| initiator.contains(&format!(".{top}.example")))
}

/// The file is root's, and so is iscsid; both must know the same name.
pub(super) const MAKE_NAME: &str = "echo \"InitiatorName=$(iscsi-iname)\" >/etc/iscsi/initiatorname.iscsi && \
                         systemctl restart iscsid (while no iSCSI volume is in use)";
const START_ISCSID: &str = "systemctl enable --now iscsid.socket (Debian, Ubuntu) or iscsid (Red \
                            Hat, SUSE)";

fn came_with_the_image(paths: &Paths) -> bool {
    let changed = |file: &str| -> Option<SystemTime> {
        fs::metadata(paths.etc.join(file)).ok()?.modified().ok()
    };
    match (changed("iscsi/initiatorname.iscsi"), changed("machine-id")) {
        (Some(name), Some(machine)) => {
            machine.duration_since(name).is_ok_and(|age| age > OF_THE_IMAGE)
        }
        _ => false,
    }
}

fn is_denied(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source()).any(|error| {
        error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    })
}

/// Whether somebody listens on iscsid's abstract socket; systemd may hold it for it.
pub(super) fn iscsid_listens(paths: &Paths) -> bool {
    fs::read_to_string(paths.proc.join("net/unix"))
        .is_ok_and(|sockets| sockets.contains("@ISCSIADM_ABSTRACT_NAMESPACE"))
}

/// Whether iscsid itself runs.
fn iscsid_runs(paths: &Paths) -> bool {
    fs::read_dir(&paths.proc).into_iter().flatten().flatten().any(|process| {
        fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim() == "iscsid")
    })
}

/// Whether the kernel has a module, loaded or built in with parameters.
pub(super) fn has_module(paths: &Paths, module: &str) -> bool {
    paths.sys.join("module").join(module).exists()
}

/// The daemon and the kernel's part of open-iscsi.
pub(super) async fn check_iscsi(paths: &Paths, findings: &mut Findings) {
    match (iscsid_listens(paths), iscsid_runs(paths)) {
        (true, true) => findings.ok("iscsid", "it runs, and listens"),
        (true, false) => {
            findings.ok("iscsid", "its socket is there: systemd starts it with the first login");
        }
        (false, _) => findings.warn(
            "iscsid",
            "it does not run; a login starts it where iscsid.conf says how (iscsid.startup)",
            START_ISCSID,
        ),
    }
    const MODULE: &str = "iscsi_tcp";
    if has_module(paths, MODULE) {
        return findings.ok("kernel", format!("{MODULE} is loaded"));
    }
    check_loadable(
        paths,
        MODULE,
        "so it cannot reach iSCSI targets",
        "install a kernel with it: linux-image-amd64 in place of linux-image-cloud-amd64 \
         (Debian), linux-modules-extra-$(uname -r) (Ubuntu), kernel-modules-extra (Red Hat); \
         then reboot",
        findings,
    )
    .await;
}

/// The filesystem of new volumes.
pub(super) async fn check_filesystem(paths: &Paths, filesystem: &str, findings: &mut Findings) {
    let known = fs::read_to_string(paths.proc.join("filesystems")).unwrap_or_default();
    if known.lines().any(|line| line.trim() == filesystem) {
        return findings.ok("kernel", format!("it mounts {filesystem}"));
    }
    check_loadable(
        paths,
        filesystem,
        "so new volumes cannot be mounted",
        "set DefaultFilesystem to one that it has (/proc/filesystems), or install a kernel with it",
        findings,
    )
    .await;
}

/// A module that is not loaded yet can be, or is missing.
async fn check_loadable(
    paths: &Paths,
    module: &str,
    so: &str,
    mend: &str,
    findings: &mut Findings,
) {
    let cmd = Cmd::new("modprobe", MODPROBE_LIMIT).args(["--dry-run", "--quiet", module]);
    match Exec::new(paths).output(&cmd).await {
        Ok(output) if output.code == Some(0) => {
            findings.ok("kernel", format!("{module} is there, and is loaded when it is needed"));
        }
        Ok(_) => {
            findings.error("kernel", format!("this kernel has no module {module}, {so}"), mend);
        }
        Err(error) => findings.warn(
            "kernel",
            format!("nobody can tell whether it has {module}: {error}"),
            install_command(&error),
        ),
    }
}

/// An enforcing SELinux keeps containers from files that carry no label for them.
pub(super) fn check_selinux(paths: &Paths, findings: &mut Findings) {
    let enforces = fs::read_to_string(paths.sys.join("fs/selinux/enforce"))
        .is_ok_and(|enforce| enforce.trim() == "1");
    if enforces {
        findings.warn(
            "SELinux",
            "it enforces: a container may be refused the files of its volume",
            "docker volume create -o \
             mount_opts=context=system_u:object_r:container_file_t:s0 …, or run it with -v NAME:/path:z",
        );
    }
}
