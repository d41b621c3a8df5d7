//! Knows whether the answer to a Mount reached its engine.
//!
//! A reference that an engine never heard of is never given back: after a Mount that failed or
//! timed out, dockerd and Podman send no Unmount. So a mount that succeeded carries a [`Receipt`]
//! from the driver's task through the handler into the connection, and whoever drops it on the way
//! (a client that hung up, a deadline, a write that failed) tells the driver.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::{Engine, VolumeDriver};

/// One mounted reference that its engine has yet to hear of.
pub(super) struct Receipt(Option<Unsettled>);

struct Unsettled {
    driver: Arc<dyn VolumeDriver>,
    tasks: TaskTracker,
    runtime: Handle,
    engine: Option<Engine>,
    name: String,
    id: String,
}

impl Receipt {
    pub fn new(
        driver: Arc<dyn VolumeDriver>,
        tasks: TaskTracker,
        engine: Option<Engine>,
        name: String,
        id: String,
    ) -> Self {
        Self(Some(Unsettled { driver, tasks, runtime: Handle::current(), engine, name, id }))
    }

    /// The engine has its answer.
    fn collected(mut self) {
        let Some(Unsettled { driver, tasks, runtime, engine, name, id }) = self.0.take() else {
            return;
        };
        let note = async move { driver.mount_collected(engine, &name, &id).await };
        tasks.spawn_on(note, &runtime);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let Some(Unsettled { driver, tasks, runtime, engine, name, id }) = self.0.take() else {
            return;
        };
        let take_back = async move {
            tracing::warn!(volume = name, mount_id = id, "nobody collected this mount");
            driver.mount_uncollected(engine, &name, &id).await;
        };
        tasks.spawn_on(take_back, &runtime);
    }
}

/// The receipt, if any, of the answer that a connection is about to write.
#[derive(Clone, Default)]
pub(super) struct Outgoing(Arc<Mutex<Option<Receipt>>>);

impl Outgoing {
    /// The next bytes written are the answer of this mount.
    pub fn put(&self, receipt: Receipt) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(receipt);
    }

    fn take(&self) -> Option<Receipt> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A stream that settles the outgoing receipt when bytes were written.
///
/// The kernel takes bytes for a Unix socket only while its other end is open, and they are then in
/// that end's queue. So a successful write is a delivery, and an engine that died before it is
/// noticed. (An engine that dies before it *reads* is one that died with the volume in use.)
pub(super) struct Watched {
    stream: UnixStream,
    outgoing: Outgoing,
}

impl Watched {
    pub fn new(stream: UnixStream, outgoing: Outgoing) -> Self {
        Self { stream, outgoing }
    }

    fn settle(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = written
            && let Some(receipt) = self.outgoing.take()
        {
            receipt.collected();
        }
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.settle(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.settle(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
