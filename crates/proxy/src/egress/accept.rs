//! A sandbox's connections: where each of them wanted to go, and who serves it.
//!
//! ```text
//! accepted ─► original destination ─┬─► port 53              name server
//!                                   ├─► a mount's host       (TLS ends here) S3
//!                                   ├─► headers to add       (TLS ends here) requests one by one
//!                                   ├─► plain HTTP           requests one by one
//!                                   └─► anything else        bytes both ways
//! ```
//!
//! A destination is a name if its address is one that the name server gave. Whatever else the connection says of its
//! destination (SNI, Host) must agree.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::counted::Counted;
use super::dial::{self, DialError, Place};
use super::first::{self, First, Rewound};
use super::http::{self, Forwarding};
use super::names::{self, Held};
use super::{EgressPolicy, Forbidden, Shared, Stream, dns, intercept};
use crate::Arrival;

/// For TLS with the sandbox.
const TLS_TIMEOUT: Duration = Duration::from_secs(30);
/// For the first byte of a connection where the client begins.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(30);
/// For the first byte where either side may begin: after that it is the host's turn.
const FIRST_BYTE_PATIENCE: Duration = Duration::from_millis(300);
/// A connection without a byte in either direction ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Of each direction of a connection that is passed on.
const BUFFER_LEN: usize = 32 * 1024;

/// Serves connections until the listener fails. Dropping it ends them.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) -> io::Result<()> {
    let own = listener.local_addr()?;
    let mut running = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_ended) = running.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // One that was gone before it was taken, or the daemon's own shortage, which passes.
            Err(error) => {
                tracing::warn!(sandbox = shared.guest.id(), %error, "a connection of a sandbox cannot be taken");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        // No honest client has so many; the others are closed at once.
        let Ok(permit) = Arc::clone(&shared.connections).try_acquire_owned() else { continue };
        let shared = Arc::clone(&shared);
        running.spawn(async move {
            if let Err(error) = connection(&shared, stream, own).await {
                tracing::debug!(sandbox = shared.guest.id(), %error, "a connection of a sandbox broke");
            }
            drop(permit);
        });
    }
}

async fn connection(shared: &Arc<Shared>, mut stream: TcpStream, own: SocketAddr) -> io::Result<()> {
    // Without it small writes are a little later.
    let _result = stream.set_nodelay(true);
    // One that was not redirected has none: it was made to this socket itself.
    let Some(to) = (shared.destination)(&stream).filter(|to| SocketAddr::V4(*to) != own && !to.ip().is_loopback())
    else {
        shared.tell_refused("CONNECT", "", "loopback");
        return Ok(());
    };
    if to.port() == 53 {
        return dns::serve_stream(shared, &mut stream).await;
    }
    let held = Held::take(&shared.names, *to.ip());
    let place = match &held {
        Some(held) => Place::Name(held.name().to_owned()),
        None if names::is_given(*to.ip()) => {
            shared.tell_refused("CONNECT", &to.ip().to_string(), "unknown-address");
            return Ok(());
        }
        None => Place::Address(IpAddr::V4(*to.ip())),
    };
    let connection = Connection { shared: Arc::clone(shared), place, to, address: Arc::default() };
    if intercept::is_intercepted(&shared.guest, &connection.place.host(), to.port()) {
        return connection.serve_s3(stream).await;
    }
    connection.serve_egress(stream).await
}

/// The address that a connection goes to, once it does.
#[derive(Debug, Default)]
pub(super) struct Connected(Mutex<Option<IpAddr>>);

impl Connected {
    /// Connects to a place, by the policy that counts now. If it changes meanwhile, either the change is seen here or the
    /// address is seen by who watches for changes.
    pub(super) async fn dial(&self, shared: &Shared, place: &Place, port: u16) -> Result<TcpStream, DialError> {
        let policy = || shared.policy.borrow().clone();
        let (stream, address) = dial::dial(&*shared.outside, &policy(), place, port).await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        place.check_address(&policy(), address)?;
        Ok(stream)
    }

    fn get(&self) -> Option<IpAddr> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Connection {
    shared: Arc<Shared>,
    place: Place,
    to: SocketAddrV4,
    address: Arc<Connected>,
}

/// How a connection ended that did not end well.
enum End {
    Refused(Forbidden),
    Broke(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broke(error)
    }
}

impl From<Forbidden> for End {
    fn from(forbidden: Forbidden) -> Self {
        Self::Refused(forbidden)
    }
}

impl Connection {
    async fn serve_s3(self, mut stream: TcpStream) -> io::Result<()> {
        let host = self.place.host();
        let mut bytes = Vec::new();
        let first = first::read(&mut stream, &mut bytes, FIRST_BYTE_TIMEOUT).await?;
        let stream = Rewound::new(bytes, stream);
        let is_tls = matches!(first, First::Tls(_));
        let arrival = Arrival { host: host.clone(), is_tls, port: self.to.port() };
        let guest = Arc::clone(&self.shared.guest);
        let First::Tls(name) = first else {
            (self.shared.serve)(Box::new(stream), arrival, guest).await;
            return Ok(());
        };
        if name.is_some_and(|name| name != host) {
            self.shared.tell_refused("CONNECT", &host, Forbidden::OtherHost.rule());
            return Ok(());
        }
        let stream = self.end_tls(stream).await?;
        (self.shared.serve)(Box::new(stream), arrival, guest).await;
        Ok(())
    }

    async fn end_tls<S: Stream>(&self, stream: S) -> io::Result<tokio_rustls::server::TlsStream<S>> {
        let config = self.shared.mint.config(&self.place.host()).map_err(io::Error::other)?;
        timeout(TLS_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await.map_err(io::Error::from).flatten()
    }

    async fn serve_egress(self, stream: TcpStream) -> io::Result<()> {
        let begun = Instant::now();
        let mut policies = self.shared.policy.subscribe();
        let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let stream = Counted::new(stream, Arc::clone(&counts));
        let policy = policies.borrow_and_update().clone();
        let ended = match self.place.check(&policy) {
            Ok(()) => tokio::select! {
                ended = self.pass_on(stream, &policy) => ended,
                forbidden = self.until_forbidden(&policy, policies) => Err(forbidden.into()),
                () = until_idle(&counts) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            },
            Err(forbidden) => {
                refuse(stream, &self.place.host(), forbidden).await;
                Err(forbidden.into())
            }
        };
        let refused = match &ended {
            Err(End::Refused(forbidden)) => Some(forbidden.rule()),
            _ => None,
        };
        let bytes = (counts.0.load(Ordering::Relaxed), counts.1.load(Ordering::Relaxed));
        let host = format!("{}:{}", self.place.host(), self.to.port());
        self.shared.tell("CONNECT", &host, 0, begun, bytes, refused);
        match ended {
            Err(End::Broke(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Resolves when a changed policy no longer lets this connection be, or wants its requests changed.
    async fn until_forbidden(
        &self,
        begun_with: &EgressPolicy,
        mut policies: watch::Receiver<Arc<EgressPolicy>>,
    ) -> Forbidden {
        let is_changed = |policy: &EgressPolicy| match &self.place {
            Place::Name(name) => policy.outbound(name).is_some() != begun_with.outbound(name).is_some(),
            Place::Address(_) => false,
        };
        while policies.changed().await.is_ok() {
            let policy = policies.borrow_and_update().clone();
            let checked = match self.address.get() {
                Some(address) => self.place.check_address(&policy, address),
                None => self.place.check(&policy),
            };
            match checked {
                Ok(()) if is_changed(&policy) => return Forbidden::Denied,
                Ok(()) => {}
                Err(forbidden) => return forbidden,
            }
        }
        // The network ends, and this with it.
        std::future::pending().await
    }

    async fn pass_on(&self, mut stream: Counted<TcpStream>, policy: &EgressPolicy) -> Result<(), End> {
        let port = self.to.port();
        let adds_headers = matches!(&self.place, Place::Name(name) if policy.outbound(name).is_some());
        let client_begins = adds_headers || matches!(port, 80 | 443);
        let patience = if client_begins { FIRST_BYTE_TIMEOUT } else { FIRST_BYTE_PATIENCE };
        let mut bytes = Vec::new();
        let first = first::read(&mut stream, &mut bytes, patience).await?;
        match first {
            First::Tls(name) => {
                self.check_sni(policy, name.as_deref())?;
                if adds_headers {
                    let stream = self.end_tls(Rewound::new(bytes, stream)).await?;
                    return Ok(http::serve(self.forwarding(true), stream).await?);
                }
                self.pipe(stream, bytes, policy).await
            }
            First::Http => Ok(http::serve(self.forwarding(false), Rewound::new(bytes, stream)).await?),
            // Headers can be added to nothing else.
            First::Other | First::Nothing if adds_headers => Err(Forbidden::OtherHost.into()),
            First::Other | First::Nothing => self.pipe(stream, bytes, policy).await,
        }
    }

    fn forwarding(&self, is_tls: bool) -> Forwarding {
        Forwarding {
            shared: Arc::clone(&self.shared),
            place: self.place.clone(),
            port: self.to.port(),
            is_tls,
            address: Arc::clone(&self.address),
        }
    }

    fn check_sni(&self, policy: &EgressPolicy, name: Option<&str>) -> Result<(), Forbidden> {
        let is_good = match (&self.place, name) {
            (Place::Name(place), name) => name == Some(place),
            (Place::Address(_), Some(name)) => policy.check_name(name) != Err(Forbidden::Denied),
            (Place::Address(_), None) => true,
        };
        if is_good { Ok(()) } else { Err(Forbidden::OtherHost) }
    }

    async fn dial(&self) -> Result<TcpStream, End> {
        match self.address.dial(&self.shared, &self.place, self.to.port()).await {
            Ok(stream) => Ok(stream),
            Err(DialError::Forbidden(forbidden)) => Err(forbidden.into()),
            Err(DialError::Unresolved(error) | DialError::Unreachable(error)) => Err(error.into()),
        }
    }

    /// Passes bytes both ways; those of the client that were read already come first. What it begins with is looked at until
    /// it can be told, however slowly it comes, and whichever side speaks first: what tells of another host is not passed on.
    async fn pipe(&self, mut stream: Counted<TcpStream>, mut bytes: Vec<u8>, policy: &EgressPolicy) -> Result<(), End> {
        let mut host = self.dial().await?;
        let mut from_host = vec![0; 4096];
        let mut sent = 0;
        loop {
            let first = match first::classify(&bytes)? {
                None if bytes.len() >= first::LEN_MAX => Some(first::classify_long(&bytes)?),
                first => first,
            };
            match &first {
                Some(First::Tls(name)) => self.check_sni(policy, name.as_deref())?,
                // Its requests could be for other hosts; a client that speaks HTTP begins at once.
                Some(First::Http) => return Err(Forbidden::OtherHost.into()),
                Some(First::Other | First::Nothing) | None => {}
            }
            host.write_all(&bytes[sent..]).await?;
            sent = bytes.len();
            if first.is_some() {
                break;
            }
            tokio::select! {
                read = stream.read_buf(&mut bytes) => if read? == 0 {
                    break;
                },
                read = host.read(&mut from_host) => match read? {
                    // It has nothing more to say.
                    0 => return Ok(stream.shutdown().await?),
                    len => stream.write_all(&from_host[..len]).await?,
                },
            }
        }
        drop((bytes, from_host));
        tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut host, BUFFER_LEN, BUFFER_LEN).await?;
        Ok(())
    }
}

/// Tells clients that speak HTTP why; others see a closed connection.
async fn refuse(mut stream: Counted<TcpStream>, host: &str, forbidden: Forbidden) {
    let mut bytes = Vec::new();
    if let Ok(First::Http) = first::read(&mut stream, &mut bytes, FIRST_BYTE_PATIENCE).await {
        // The client may be gone.
        let _result = stream.write_all(&http::refusal(host, forbidden)).await;
        let _result = stream.shutdown().await;
    }
}

/// Resolves when nothing was counted for long.
async fn until_idle(counts: &(AtomicU64, AtomicU64)) {
    let mut last = (u64::MAX, u64::MAX);
    loop {
        let now = (counts.0.load(Ordering::Relaxed), counts.1.load(Ordering::Relaxed));
        if now == last {
            return;
        }
        last = now;
        tokio::time::sleep(IDLE_TIMEOUT).await;
    }
}
