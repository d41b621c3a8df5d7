//! Waiting for the kernel to make or remove a device, without fixed sleeps.

use std::future;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout_at};

use crate::host::HostError;

/// The multicast group in which the kernel itself speaks (udev speaks in group 2).
const KERNEL_GROUP: u32 = 1;
/// Poll interval for hosts that hear no events (a network namespace of a user namespace).
const SHORTEST_POLL: Duration = Duration::from_millis(5);
const LONGEST_POLL: Duration = Duration::from_millis(100);

/// The kernel's announcements about block devices. Open it *before* doing what causes them.
///
/// An event is only a hint to look at sysfs: nothing is believed from its text, so it needs no
/// proof of its sender, and a lost one costs a poll interval.
#[derive(Debug)]
pub struct BlockEvents {
    socket: Option<AsyncFd<OwnedFd>>,
}

impl BlockEvents {
    /// Starts to listen. Without permission, waiting falls back to polling.
    pub fn listen() -> Self {
        let socket = open().inspect_err(|error| tracing::debug!(%error, "no kernel events")).ok();
        Self { socket }
    }

    /// No events, only polling: for what is announced to nobody.
    pub fn none() -> Self {
        Self { socket: None }
    }

    /// The next event about a block device; never, when we cannot listen.
    async fn next(&self) {
        let Some(socket) = &self.socket else { return future::pending().await };
        let mut message = [0; 8192];
        loop {
            let Ok(mut ready) = socket.readable().await else { return future::pending().await };
            let read = ready
                .try_io(|socket| Ok(recv(socket.as_raw_fd(), &mut message, MsgFlags::empty())?));
            match read {
                Ok(Ok(length)) if !is_about_a_block_device(&message[..length]) => {}
                // ENOBUFS: events were lost, one of them may have been ours.
                Ok(_) => return,
                Err(_would_block) => {}
            }
        }
    }

    /// Looks until `look` finds something, first at once, then at each event and each poll
    /// interval. `None` when the time is up.
    pub async fn wait_for<T>(
        &self,
        limit: Duration,
        mut look: impl FnMut() -> Result<Option<T>, HostError>,
    ) -> Result<Option<T>, HostError> {
        let deadline = Instant::now() + limit;
        let mut poll = SHORTEST_POLL;
        loop {
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            let hint = async {
                tokio::select! {
                    () = self.next() => {}
                    () = sleep(poll) => poll = (poll * 2).min(LONGEST_POLL),
                }
            };
            // At the deadline it looks once more.
            let _ = timeout_at(deadline, hint).await;
        }
    }
}

fn open() -> std::io::Result<AsyncFd<OwnedFd>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
    #[expect(unsafe_code, reason = "the safe constructor is deprecated")]
    // SAFETY: an OwnedFd is open, and the same descriptor, for as long as the AsyncFd has it.
    let registered = unsafe { AsyncFd::register(socket) };
    Ok(registered?)
}

/// The text is `ACTION@DEVPATH`, then `KEY=VALUE` strings, all ended by NUL.
fn is_about_a_block_device(message: &[u8]) -> bool {
    message.split(|byte| *byte == 0).any(|line| line == b"SUBSYSTEM=block")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_of_block_devices_are_looked_at() {
        let block = b"add@/devices/platform/host0/session1/target0:0:0/0:0:0:1/block/sda\0\
            ACTION=add\0SUBSYSTEM=block\0MAJOR=8\0";
        let scsi = b"add@/devices/platform/host0/session1\0ACTION=add\0SUBSYSTEM=iscsi_session\0";
        assert!(is_about_a_block_device(block));
        assert!(!is_about_a_block_device(scsi));
    }

    #[tokio::test]
    async fn what_is_there_already_needs_no_event() {
        let found = BlockEvents::listen().wait_for(Duration::ZERO, || Ok(Some(7))).await;
        assert_eq!(found.unwrap(), Some(7));
    }

    #[tokio::test]
    async fn without_events_it_polls() {
        let mut looks = 0;
        let found = BlockEvents::none()
            .wait_for(Duration::from_secs(30), || {
                looks += 1;
                Ok((looks == 4).then_some(()))
            })
            .await;
        assert_eq!(found.unwrap(), Some(()));
    }

    #[tokio::test]
    async fn waiting_ends_at_its_limit() {
        let found: Option<()> =
            BlockEvents::listen().wait_for(Duration::from_millis(30), || Ok(None)).await.unwrap();
        assert_eq!(found, None);
    }
}
