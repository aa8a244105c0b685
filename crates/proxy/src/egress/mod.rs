//! A sandbox's way out: the name server and the listener that all of its connections come to.
//!
//! ```text
//! question ─► policy on the name ─► resolve ─► policy on its addresses ─► an address that stands for the name
//! connection to it ─► the name ─┬─► a mount's: S3
//!                               └─► policy, resolve, policy again ─► connect to the checked address
//! ```

mod accept;
mod counted;
mod dial;
mod dns;
mod first;
mod http;
mod intercept;
mod names;
mod outside;
mod pattern;
mod policy;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{SocketAddrV4, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::meter::{clean, request_id};
use crate::tls::{Ca, Mint};
use crate::{Arrival, AuditRecord, Guest};

pub use pattern::{HostPattern, InvalidPattern};
pub use policy::{EgressPolicy, Forbidden, HeaderSecret, HostName, InvalidPolicy, Outbound, ShownPolicy};

/// Connections of one sandbox that are open at a time; those beyond are closed at once.
const CONNECTION_COUNT_MAX: usize = 1024;
/// Questions of one sandbox that are being answered at a time; those beyond are not answered.
const QUESTION_COUNT_MAX: usize = 64;

/// A connection of a sandbox: plain, or what came out of its TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// What serves S3 on an intercepted connection until it ends: [`crate::serve`].
pub type Serve = Arc<dyn Fn(Box<dyn Stream>, Arrival, Arc<Guest>) -> BoxFuture<'static, ()> + Send + Sync>;

/// The sockets inside a sandbox: the fields of `sandpail_sandbox::Listeners`.
#[derive(Debug)]
pub struct Sockets {
    /// Where connections come.
    pub connections: TcpListener,
    /// Where questions for names come.
    pub names: UdpSocket,
}

/// A sandbox's running network. Dropping it closes its sockets and ends its connections.
pub struct Network {
    shared: Arc<Shared>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("guest", &self.shared.guest.id()).finish_non_exhaustive()
    }
}

/// Why a network does not start.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The sockets cannot be used.
    #[error("the sockets of a sandbox's network: {0}")]
    Sockets(#[from] io::Error),
    /// The policy makes no sense.
    #[error("{0}")]
    Policy(#[from] InvalidPolicy),
    /// No certificates.
    #[error("{0}")]
    Ca(#[from] crate::CaError),
}

impl Network {
    /// Serves a sandbox's connections and questions, in tasks of the current tokio runtime, see [`Threads`](crate::Threads). Mounts are those that are
    /// open at `guest`, at each moment.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn start(guest: Arc<Guest>, sockets: Sockets, policy: EgressPolicy, ca: Ca) -> Result<Self, NetworkError> {
        let serve: Serve = Arc::new(|stream, arrival, guest| Box::pin(crate::serve(stream, arrival, guest)));
        let world = World { serve, outside: Arc::new(outside::Host::default()), destination: original_destination };
        Self::start_in(world, guest, sockets, policy, ca)
    }

    fn start_in(
        world: World,
        guest: Arc<Guest>,
        sockets: Sockets,
        policy: EgressPolicy,
        ca: Ca,
    ) -> Result<Self, NetworkError> {
        policy.check()?;
        sockets.connections.set_nonblocking(true)?;
        sockets.names.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(sockets.connections)?;
        let socket = tokio::net::UdpSocket::from_std(sockets.names)?;
        let shared = Arc::new(Shared {
            guest,
            names: Arc::new(Mutex::new(names::Names::new())),
            policy: watch::Sender::new(Arc::new(policy)),
            outside: world.outside,
            destination: world.destination,
            mint: Mint::new(ca)?,
            serve: world.serve,
            connections: Arc::new(Semaphore::new(CONNECTION_COUNT_MAX)),
            questions: Arc::new(Semaphore::new(QUESTION_COUNT_MAX)),
        });
        let connections = told("connections", Arc::clone(&shared), accept::serve(Arc::clone(&shared), listener));
        let names = told("names", Arc::clone(&shared), dns::serve_packets(Arc::clone(&shared), socket));
        Ok(Self { shared, _tasks: [connections, names] })
    }

    /// Changes the policy for what comes from now on. Connections that the new policy forbids end at once.
    ///
    /// # Errors
    /// [`InvalidPolicy`]; the old policy stays then.
    pub fn set_policy(&self, policy: EgressPolicy) -> Result<(), InvalidPolicy> {
        policy.check()?;
        self.shared.policy.send_replace(Arc::new(policy));
        Ok(())
    }

    /// The policy that counts now.
    pub fn policy(&self) -> Arc<EgressPolicy> {
        self.shared.policy.borrow().clone()
    }
}

fn told(
    what: &'static str,
    shared: Arc<Shared>,
    work: impl Future<Output = io::Result<()>> + Send + 'static,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = work.await {
            tracing::error!(sandbox = shared.guest.id(), what, %error, "a sandbox's network is out of order");
        }
    }))
}

/// Where a redirected connection wanted to go.
fn original_destination(stream: &TcpStream) -> Option<SocketAddrV4> {
    rustix::net::sockopt::ip_original_dst(stream).ok()
}

/// What is around a network; tests have their own.
struct World {
    serve: Serve,
    outside: Arc<dyn outside::Outside>,
    destination: fn(&TcpStream) -> Option<SocketAddrV4>,
}

/// What the parts of a network share.
struct Shared {
    guest: Arc<Guest>,
    names: Arc<Mutex<names::Names>>,
    policy: watch::Sender<Arc<EgressPolicy>>,
    outside: Arc<dyn outside::Outside>,
    destination: fn(&TcpStream) -> Option<SocketAddrV4>,
    mint: Mint,
    serve: Serve,
    connections: Arc<Semaphore>,
    questions: Arc<Semaphore>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("guest", &self.guest.id()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Tells of something that was refused before anything else happened.
    fn tell_refused(&self, operation: &'static str, host: &str, rule: &'static str) {
        self.tell(operation, host, 0, Instant::now(), (0, 0), Some(rule));
    }

    fn tell(
        &self,
        operation: &'static str,
        host: &str,
        status: u16,
        begun: Instant,
        (bytes_in, bytes_out): (u64, u64),
        refused: Option<&'static str>,
    ) {
        self.guest.audit().record(AuditRecord {
            sandbox: self.guest.id().to_owned(),
            mount: None,
            operation,
            key: Some(clean(host)),
            status,
            bytes_in,
            bytes_out,
            duration: begun.elapsed(),
            refused,
            request_id: request_id(),
        });
    }
}
