//! Connections for [`super::Relay`]: each is driven by the task of its request, and waits in a pool between two.
//!
//! A connection that has a task of its own hands each piece of a body from one thread to another, which costs more than
//! to send it. Here the future of the answer, and then the answer's body, poll the connection themselves.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use tokio::time::{Instant, Sleep, sleep};

use super::IDLE_MAX;
use super::connect::{Connector, Socket};
use super::origin::Target;
use super::relay::{BodyError, SentBody};

/// Most that is read from a connection at once; hyper begins with 8 KiB and grows while there is more. Larger pieces
/// fall out of the processor's cache before they are sent.
const READ_LEN_MAX: usize = 256 << 10;

/// One connection.
pub(super) struct Wire {
    pub(super) sender: SendRequest<SentBody>,
    driver: Option<Pin<Box<http1::Connection<Socket, SentBody>>>>,
    target: Arc<Target>,
}

impl Wire {
    /// Lets the connection read and write what it can.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        // Errors come to whoever waits for the answer or its body.
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether another request can be sent.
    fn is_ready(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// Connections without a request.
pub(super) struct Pool {
    connector: Connector,
    idle_count_max: usize,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The latest last.
    wires: Vec<(Wire, Instant)>,
    /// A task will close what stays too long.
    is_watched: bool,
}

impl Pool {
    pub(super) fn new(connector: Connector, idle_count_max: usize) -> Arc<Self> {
        Arc::new(Self { connector, idle_count_max, idle: Mutex::default() })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that waited, and still works as far as one can see.
    pub(super) fn take(&self, target: &Arc<Target>) -> Option<Wire> {
        loop {
            let (mut wire, since) = self.idle().wires.pop()?;
            if since.elapsed() < IDLE_MAX && Arc::ptr_eq(&wire.target, target) && wire.is_ready() {
                return Some(wire);
            }
        }
    }

    pub(super) async fn connect(&self, target: &Arc<Target>, uri: Uri) -> io::Result<Wire> {
        let socket = self.connector.clone().connect(uri).await?;
        let (sender, driver) =
            http1::Builder::new().max_buf_size(READ_LEN_MAX).handshake(socket).await.map_err(io::Error::other)?;
        Ok(Wire { sender, driver: Some(Box::pin(driver)), target: Arc::clone(target) })
    }

    /// Keeps a connection whose answer was read to its end.
    fn put(self: &Arc<Self>, mut wire: Wire) {
        if !wire.is_ready() {
            return;
        }
        let mut idle = self.idle();
        if idle.wires.len() >= self.idle_count_max {
            return;
        }
        idle.wires.push((wire, Instant::now()));
        if !std::mem::replace(&mut idle.is_watched, true) {
            let pool = Arc::downgrade(self);
            tokio::spawn(async move {
                loop {
                    sleep(IDLE_MAX).await;
                    let Some(pool) = pool.upgrade() else { return };
                    let mut idle = pool.idle();
                    idle.wires.retain(|(_, since)| since.elapsed() < IDLE_MAX);
                    if idle.wires.is_empty() {
                        idle.is_watched = false;
                        return;
                    }
                }
            });
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("idle_count", &self.idle().wires.len()).finish_non_exhaustive()
    }
}

/// The body of an answer, which drives its connection and gives it back at the end.
pub(super) struct Received {
    incoming: Incoming,
    wire: Option<Wire>,
    pool: Arc<Pool>,
    patience: Duration,
    /// Runs while nothing comes.
    stall: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
}

impl Received {
    pub(super) fn new(incoming: Incoming, wire: Wire, pool: Arc<Pool>, patience: Duration) -> Self {
        let mut this = Self { incoming, wire: Some(wire), pool, patience, stall: None, is_stalled: false };
        if this.incoming.is_end_stream() {
            this.release();
        }
        this
    }

    fn release(&mut self) {
        if let Some(wire) = self.wire.take() {
            self.pool.put(wire);
        }
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let incoming = Pin::new(&mut self.incoming);
        let Some(wire) = &mut self.wire else { return incoming.poll_frame(cx) };
        // Pieces come out of the connection when it is driven, and at no other time: who waits need not be woken.
        let mut quiet = Context::from_waker(Waker::noop());
        match incoming.poll_frame(&mut quiet) {
            Poll::Pending => {
                wire.drive(cx);
                Pin::new(&mut self.incoming).poll_frame(&mut quiet)
            }
            ready => ready,
        }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this.poll_incoming(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                // Time in which nobody asked for more does not count against the store.
                this.is_stalled = false;
                if this.incoming.is_end_stream() {
                    this.release();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.release();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                this.wire = None;
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Pending => {
                let patience = this.patience;
                let stall = this.stall.get_or_insert_with(|| Box::pin(sleep(patience)));
                if !std::mem::replace(&mut this.is_stalled, true) {
                    stall.as_mut().reset(Instant::now() + patience);
                }
                if stall.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                this.wire = None;
                Poll::Ready(Some(Err(format!("the store sent nothing for {patience:?}").into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
