//! The daemon's side of the control socket: orders to init, and its reports handed to those who wait for them.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::SandboxError;
use crate::packet::{self, Packet};
use crate::wire::{End, Kept, Order, Report, Start};

/// Name of the socket in a sandbox's directory.
const SOCKET: &str = "control.sock";

/// Init answers at once; one that does not is taken for dead.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// How a child ended, or why it could not be started.
pub(crate) type Outcome = Result<End, String>;

/// The child's pid and what init handed out, or why it did not start.
type StartAnswer = Result<(i32, Vec<OwnedFd>), String>;

/// A connection to a sandbox's init. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    socket: Arc<AsyncFd<OwnedFd>>,
    shared: Arc<Mutex<Shared>>,
    next_id: Arc<AtomicU64>,
}

/// A child that was started.
#[derive(Debug)]
pub(crate) struct Started {
    /// For further orders.
    pub(crate) id: u64,
    /// Its pid as the sandbox sees it.
    pub(crate) pid: i32,
    /// What init handed out, such as a terminal.
    pub(crate) fds: Vec<OwnedFd>,
    /// Resolves when it ends; an error when the sandbox does.
    pub(crate) outcome: oneshot::Receiver<Outcome>,
}

#[derive(Debug, Default)]
struct Shared {
    is_closed: bool,
    hello: Vec<oneshot::Sender<(Vec<Kept>, u64)>>,
    started: HashMap<u64, oneshot::Sender<StartAnswer>>,
    ended: HashMap<u64, oneshot::Sender<Outcome>>,
    streams: HashMap<u64, oneshot::Sender<Vec<OwnedFd>>>,
}

/// Makes the socket on which init will listen.
///
/// # Errors
/// Those of the system; `ENAMETOOLONG` if the directory's name is too long for a socket's.
pub(crate) fn listen(directory: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    with_short_name(directory, |address| rustix::net::bind(&socket, address))?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

/// Socket names are 107 bytes at most, and state directories may be longer: names through a descriptor always fit.
fn with_short_name(directory: &Path, call: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<()>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let directory = std::fs::File::open(directory)?;
    let name = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    Ok(call(&SocketAddrUnix::new(name)?)?)
}

impl Control {
    /// Connects and says hello. Must be called within a runtime.
    ///
    /// # Errors
    /// When nobody listens or answers.
    pub(crate) async fn connect(directory: &Path) -> io::Result<(Self, Vec<Kept>)> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        with_short_name(directory, |address| rustix::net::connect(&socket, address))?;
        let control = Self {
            socket: Arc::new(crate::sys::watch(socket, Interest::READABLE | Interest::WRITABLE)?),
            shared: Arc::default(),
            next_id: Arc::new(AtomicU64::new(0)),
        };
        tokio::spawn(control.clone().take_reports());
        let (sender, receiver) = oneshot::channel();
        control.lock().hello.push(sender);
        control.send(&Order::Hello, Vec::new()).await?;
        let answer = tokio::time::timeout(ANSWER_TIME_MAX, receiver).await;
        let (children, next_id) =
            answer.map_err(|_| io::ErrorKind::TimedOut)?.map_err(|_| io::ErrorKind::UnexpectedEof)?;
        control.next_id.store(next_id, Ordering::Relaxed);
        Ok((control, children))
    }

    /// Starts a child; `order.id` is chosen here.
    ///
    /// # Errors
    /// [`SandboxError::Gone`]; [`SandboxError::Exec`] if init cannot start anything.
    pub(crate) async fn start(&self, mut order: Start, fds: Vec<OwnedFd>) -> Result<Started, SandboxError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        order.id = id;
        let (started_sender, started) = oneshot::channel();
        let outcome = {
            let mut shared = self.lock();
            if shared.is_closed {
                return Err(SandboxError::Gone);
            }
            shared.started.insert(id, started_sender);
            let (sender, outcome) = oneshot::channel();
            shared.ended.insert(id, sender);
            outcome
        };
        if let Err(error) = self.send(&Order::Start(Box::new(order)), fds).await {
            self.forget_waiters(id);
            return Err(match error.raw_os_error() {
                Some(libc::E2BIG) => SandboxError::Exec { message: "Argument list too long".to_owned() },
                Some(libc::EPIPE | libc::ECONNRESET) => SandboxError::Gone,
                _ => SandboxError::System { what: "an order to the sandbox".to_owned(), source: error },
            });
        }
        match started.await {
            Ok(Ok((pid, fds))) => Ok(Started { id, pid, fds, outcome }),
            Ok(Err(message)) => Err(SandboxError::Exec { message }),
            Err(_) => Err(SandboxError::Gone),
        }
    }

    /// Waits for the end of a child that an earlier daemon started.
    pub(crate) fn watch(&self, id: u64) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        let mut shared = self.lock();
        if !shared.is_closed {
            shared.ended.insert(id, sender);
        }
        receiver
    }

    /// The kept descriptors of a child.
    ///
    /// # Errors
    /// [`SandboxError::Gone`].
    pub(crate) async fn streams(&self, id: u64) -> Result<Vec<OwnedFd>, SandboxError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut shared = self.lock();
            if shared.is_closed {
                return Err(SandboxError::Gone);
            }
            shared.streams.insert(id, sender);
        }
        self.order(&Order::Streams { id }).await?;
        receiver.await.map_err(|_| SandboxError::Gone)
    }

    /// Sends an order that has no answer.
    ///
    /// # Errors
    /// [`SandboxError::Gone`].
    pub(crate) async fn order(&self, order: &Order) -> Result<(), SandboxError> {
        self.send(order, Vec::new()).await.map_err(|_| SandboxError::Gone)
    }

    async fn send(&self, order: &Order, fds: Vec<OwnedFd>) -> io::Result<()> {
        let packet = Packet::new(order, fds)?;
        self.socket.async_io(Interest::WRITABLE, |socket| packet.send(socket)).await
    }

    async fn take_reports(self) {
        loop {
            let report = self.socket.async_io(Interest::READABLE, |socket| packet::receive::<Report>(socket)).await;
            match report {
                Ok(Some((report, fds))) => self.hand_out(report, fds),
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "a sandbox's init cannot be read");
                    break;
                }
            }
        }
        // Dropping the senders tells everybody who waits.
        *self.lock() = Shared { is_closed: true, ..Shared::default() };
    }

    fn hand_out(&self, report: Report, fds: Vec<OwnedFd>) {
        let mut shared = self.lock();
        // Those who asked may have gone away, so nothing that is sent here needs to arrive.
        match report {
            Report::Hello { children, next_id } => {
                for sender in std::mem::take(&mut shared.hello) {
                    let _asker = sender.send((children.clone(), next_id));
                }
            }
            Report::Started { id, pid } => {
                if let Some(sender) = shared.started.remove(&id) {
                    let _asker = sender.send(Ok((pid, fds)));
                }
            }
            Report::Failed { id, message } => {
                if let Some(sender) = shared.started.remove(&id) {
                    shared.ended.remove(&id);
                    let _asker = sender.send(Err(message));
                } else if let Some(sender) = shared.ended.remove(&id) {
                    let _asker = sender.send(Err(message));
                }
            }
            Report::Exited { id, end } => {
                if let Some(sender) = shared.ended.remove(&id) {
                    let _asker = sender.send(Ok(end));
                }
            }
            Report::Streams { id } => {
                if let Some(sender) = shared.streams.remove(&id) {
                    let _asker = sender.send(fds);
                }
            }
        }
    }

    fn forget_waiters(&self, id: u64) {
        let mut shared = self.lock();
        shared.started.remove(&id);
        shared.ended.remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing can panic while it is held, and if it did, maps of waiters are still maps of waiters.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
