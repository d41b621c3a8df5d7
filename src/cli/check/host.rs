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
pub(super) fn check_initiator(paths: &Paths, settings: &HostSettings, findings: &mut Findings) {
    let identity = match HostIdentity::discover(paths, settings) {
        Ok(identity) => identity,
        Err(error) if is_denied(&error) => {
            return findings.skip("initiator", "its name is shown to root only");
        }
        Err(error) => {
            return findings.error("initiator", Chain(&error).to_string(), START_ISCSID);
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
        if came_with_the_image(paths) {
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
}

/// The file is root's, and so is iscsid; both must know the same name.
const MAKE_NAME: &str = "echo \"InitiatorName=$(iscsi-iname)\" >/etc/iscsi/initiatorname.iscsi && \
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

/// The daemon and the kernel's part of open-iscsi.
pub(super) async fn check_iscsi(paths: &Paths, findings: &mut Findings) {
    // iscsid's abstract socket, which systemd may hold for it.
    let listens = fs::read_to_string(paths.proc.join("net/unix"))
        .is_ok_and(|sockets| sockets.contains("@ISCSIADM_ABSTRACT_NAMESPACE"));
    if listens {
        findings.ok("iscsid", "it listens");
    } else {
        findings.warn(
            "iscsid",
            "it does not run; a login starts it where iscsid.conf says how (iscsid.startup)",
            START_ISCSID,
        );
    }
    const MODULE: &str = "iscsi_tcp";
    if paths.sys.join("module").join(MODULE).exists() {
        return findings.ok("kernel", format!("{MODULE} is loaded"));
    }
    let cmd = Cmd::new("modprobe", MODPROBE_LIMIT).args(["--dry-run", "--quiet", MODULE]);
    match Exec::new(paths).output(&cmd).await {
        Ok(output) if output.code == Some(0) => {
            findings.ok("kernel", format!("{MODULE} is there, and is loaded when it is needed"));
        }
        Ok(_) => findings.error(
            "kernel",
            format!("this kernel has no module {MODULE}, so it cannot reach iSCSI targets"),
            "install a kernel with it: linux-image-amd64 in place of linux-image-cloud-amd64 \
             (Debian), linux-modules-extra-$(uname -r) (Ubuntu), kernel-modules-extra (Red Hat); \
             then reboot",
        ),
        Err(error) => findings.warn(
            "kernel",
            format!("nobody can tell whether it has {MODULE}: {error}"),
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
