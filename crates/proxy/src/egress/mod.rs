//! A sandbox's way out: the name server and the listener that all of its connections come to.

mod pattern;
mod policy;

use std::fmt;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::tls::Ca;
use crate::{Arrival, Guest};

pub use pattern::{HostPattern, InvalidPattern};
pub use policy::{EgressPolicy, Forbidden, HeaderSecret, HostName, InvalidPolicy, Outbound, ShownPolicy};

/// A connection of a sandbox: plain, or what came out of its TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// What serves S3 on an intercepted connection until it ends: `sandpail_proxy::serve`.
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
    guest: Arc<Guest>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("guest", &self.guest.id()).finish_non_exhaustive()
    }
}

/// Why a network does not start.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The sockets cannot be used.
    #[error("the sockets of a sandbox's network: {0}")]
    Sockets(#[from] std::io::Error),
    /// The policy makes no sense.
    #[error("{0}")]
    Policy(#[from] InvalidPolicy),
    /// No certificates.
    #[error("{0}")]
    Ca(#[from] crate::CaError),
}

impl Network {
    /// Serves a sandbox's connections and questions, in tasks of the current tokio runtime. Mounts are those that are
    /// open at `guest`, at each moment.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn start(
        guest: Arc<Guest>,
        sockets: Sockets,
        policy: EgressPolicy,
        ca: Ca,
        serve: Serve,
    ) -> Result<Self, NetworkError> {
        todo!("{guest:?} {sockets:?} {policy:?} {ca:?} {}", Arc::strong_count(&serve))
    }

    /// Changes the policy for what comes from now on. Connections that the new policy forbids end at once.
    ///
    /// # Errors
    /// [`InvalidPolicy`]; the old policy stays then.
    pub fn set_policy(&self, policy: EgressPolicy) -> Result<(), InvalidPolicy> {
        todo!("{policy:?}")
    }

    /// The policy, as it may be shown.
    pub fn policy(&self) -> Arc<EgressPolicy> {
        todo!()
    }
}
