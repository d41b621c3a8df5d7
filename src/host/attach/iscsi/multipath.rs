//! multipathd may take every SCSI disk that appears, single ones too, and put a map over it. Then
//! the map is the volume's device. We neither need nor configure it.

use std::fs;
use std::time::Duration;

use super::uevent::BlockEvents;
use crate::host::attach::block::{self, attribute};
use crate::host::exec::ExecError;
use crate::host::{Cmd, Exec, HostError, Paths};

/// multipathd's abstract socket, as /proc/net/unix shows it: it runs.
const SOCKET: &str = "@/org/kernel/linux/storage/multipathd";
const TOOL_LIMIT: Duration = Duration::from_secs(10);
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
    let sockets = fs::read_to_string(paths.proc.join("net/unix")).unwrap_or_default();
    if !sockets.lines().any(|line| line.ends_with(SOCKET)) {
        return Ok(map_over(paths, disk));
    }
    // Exit code 0: the configuration wants it.
    let asked =
        exec.output(&Cmd::new("multipath", TOOL_LIMIT).arg("-c").arg(paths.dev.join(disk))).await;
    match asked {
        Ok(output) if output.code == Some(0) => {}
        Ok(_) | Err(ExecError::Missing { .. }) => return Ok(map_over(paths, disk)),
        Err(source) => {
            let what = format!("cannot ask multipath whether it wants {disk}");
            return Err(HostError::Tool { what, source });
        }
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

/// Removes a map that nobody uses.
pub(super) async fn remove_map(paths: &Paths, exec: &Exec, map: &str) -> Result<(), HostError> {
    let directory = paths.sys.join("class/block").join(map);
    let Ok(name) = attribute(&directory, "dm/name") else { return Ok(()) };
    let result = exec.run(&Cmd::new("multipath", TOOL_LIMIT).args(["-f", &name])).await;
    match result {
        Err(source) if directory.exists() => Err(HostError::Tool {
            what: format!("cannot remove the multipath map {name}: see who has it with `lsblk -s`"),
            source,
        }),
        _ => Ok(()),
    }
}

/// Makes a map as large as its disks are now.
pub(super) async fn resize_map(paths: &Paths, exec: &Exec, map: &str) -> Result<(), HostError> {
    let name = attribute(&paths.sys.join("class/block").join(map), "dm/name")
        .map_err(|source| HostError::io("read the name of", map, source))?;
    let reload = Cmd::new("multipath", TOOL_LIMIT).args(["-r", &name]);
    exec.run(&reload).await.map(drop).map_err(|source| HostError::Tool {
        what: format!("cannot resize the multipath map {name}"),
        source,
    })
}
