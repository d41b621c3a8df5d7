//! multipathd may take every SCSI disk that appears, single ones too, and put a map over it. Then
//! the map is the volume's device. We neither need nor configure it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::uevent::BlockEvents;
use crate::host::attach::block::{self, attribute};
use crate::host::exec::ExecError;
use crate::host::{Cmd, Exec, HostError, Paths};

/// multipathd's abstract socket, as /proc/net/unix shows it: it runs.
const SOCKET: &str = "@/org/kernel/linux/storage/multipathd";
/// One file a block device, `b8:16`, written once udev has looked at the device. Before that
/// `multipath -c` knows no world-wide id, and says no to everything.
const UDEV_DATA: &str = "/run/udev/data";
/// How long udev gets. Where it can't be seen (a container), this is how long we wait in vain.
const UDEV_LIMIT: Duration = Duration::from_secs(5);
const TOOL_LIMIT: Duration = Duration::from_secs(10);
const REMOVE_LIMIT: Duration = Duration::from_secs(5);
/// How long multipathd gets to build a map that it says it will.
const MAP_LIMIT: Duration = Duration::from_secs(10);

/// The map over a disk: `dm-0`.
pub(super) fn map_over(paths: &Paths, disk: &str) -> Option<String> {
    block::holders(paths, disk).into_iter().find(|holder| {
        let directory = paths.sys.join("class/block").join(holder);
        attribute(&directory, "dm/uuid").is_ok_and(|uuid| uuid.starts_with("mpath-"))
    })
}

/// Waits for the map if multipathd is there and wants this disk. `None`: the disk stays bare.
pub(super) async fn wait_for_map(
    paths: &Paths,
    exec: &Exec,
    events: &BlockEvents,
    disk: &str,
) -> Result<Option<String>, HostError> {
    if !daemon_runs(paths) || !is_wanted(paths, exec, events, disk).await? {
        return Ok(map_over(paths, disk));
    }
    let map = events.wait_for(MAP_LIMIT, || Ok(map_over(paths, disk))).await?;
    map.map(Some).ok_or_else(|| HostError::Busy {
        what: format!(
            "multipathd wants the disk {disk} but made no map of it in {} s: see `multipathd show \
             paths`, or set `find_multipaths strict` in /etc/multipath.conf",
            MAP_LIMIT.as_secs()
        ),
    })
}

fn daemon_runs(paths: &Paths) -> bool {
    let sockets = fs::read_to_string(paths.proc.join("net/unix")).unwrap_or_default();
    sockets.lines().any(|line| line.ends_with(SOCKET))
}

/// Whether multipathd's configuration wants the disk.
async fn is_wanted(
    paths: &Paths,
    exec: &Exec,
    events: &BlockEvents,
    disk: &str,
) -> Result<bool, HostError> {
    let number = block::device_named(paths, disk)?.number;
    let file = Path::new(UDEV_DATA).join(format!("b{}:{}", number.major, number.minor));
    events.wait_for(UDEV_LIMIT, || Ok(file.exists().then_some(()))).await?;
    let ask = Cmd::new("multipath", TOOL_LIMIT).arg("-c").arg(paths.dev.join(disk));
    match exec.output(&ask).await {
        // "2" is a maybe: only when a second path turns up.
        Ok(output) => Ok(output.code == Some(0) && !output.stdout.contains("\"2\"")),
        Err(ExecError::Missing { .. }) => Ok(false),
        Err(source) => {
            let what = format!("cannot ask multipath whether it wants {disk}");
            Err(HostError::Tool { what, source })
        }
    }
}

/// Removes a map that nobody uses. (udev and multipathd itself open a new one for moments.)
pub(super) async fn remove_map(paths: &Paths, exec: &Exec, map: &str) -> Result<(), HostError> {
    let directory = paths.sys.join("class/block").join(map);
    let Ok(name) = attribute(&directory, "dm/name") else { return Ok(()) };
    let remove = Cmd::new("multipath", TOOL_LIMIT).args(["-f", &name]);
    let deadline = Instant::now() + REMOVE_LIMIT;
    loop {
        match exec.run(&remove).await {
            _ if !directory.exists() => return Ok(()),
            Ok(_) => return Ok(()),
            Err(ExecError::Failed { .. }) if Instant::now() < deadline => {
                sleep(Duration::from_millis(250)).await;
            }
            Err(source) => {
                return Err(HostError::Tool {
                    what: format!(
                        "cannot remove the multipath map {name}; see `lsblk` for who has it"
                    ),
                    source,
                });
            }
        }
    }
}

/// Makes a map as large as its disks are now. Only the daemon can: `multipath -r` keeps the size.
pub(super) async fn resize_map(paths: &Paths, exec: &Exec, map: &str) -> Result<(), HostError> {
    let directory = paths.sys.join("class/block").join(map);
    let name = attribute(&directory, "dm/name")
        .map_err(|source| HostError::io("read", directory.join("dm/name"), source))?;
    let resize = Cmd::new("multipathd", TOOL_LIMIT).args(["resize", "map", &name]);
    exec.run(&resize).await.map(drop).map_err(|source| HostError::Tool {
        what: format!("cannot resize the multipath map {name}"),
        source,
    })
}
