//! The network of a sandbox: loopback only, until the daemon listens inside it.
//!
//! A new sandbox has `lo` and no way to anywhere. [`Sandbox::open_network`] enters its network namespace in a thread of
//! its own, makes the daemon's sockets there, and adds what sends every connection and every question for a name to them
//! (see `rules`). So a connection is known by the socket that it came through, and nothing of the host's network is ever
//! visible inside.

mod netlink;
mod rules;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::ThreadNameSpaceType;
use tokio::sync::oneshot;

use crate::start::system;
use crate::{Sandbox, SandboxError};

pub(crate) use rules::open_loopback;

/// The name server of each sandbox, as its `/etc/resolv.conf` says. Questions to other addresses end there too. It answers
/// once [`Sandbox::open_network`] was called and somebody serves [`Listeners::names`]; until then asking it fails at
/// once.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// Where connections of a sandbox come from. Of the range that RFC 2544 sets apart for tests of devices, as nothing of
/// it is ever on the internet.
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// The daemon's sockets inside a sandbox. They are non-blocking.
#[derive(Debug)]
pub struct Listeners {
    /// Every TCP connection to an address that is not of the loopback comes here; `SO_ORIGINAL_DST` says where it wanted
    /// to go. One that was made to this socket's own address says that, or fails to say anything.
    pub connections: TcpListener,
    /// Every UDP packet to port 53 of an address that is not of the loopback comes here.
    pub names: UdpSocket,
}

impl Sandbox {
    /// Opens the sandbox's network to the daemon: new sockets, and rules that lead to them in place of earlier ones, so a
    /// daemon that was restarted calls it again. Ports are chosen anew, so that no program inside can be in the way.
    ///
    /// # Errors
    /// [`SandboxError::Gone`]; [`SandboxError::System`] if the kernel cannot do it, see [`crate::Runtime::findings`].
    pub async fn open_network(&self) -> Result<Listeners, SandboxError> {
        if !self.is_alive() {
            return Err(SandboxError::Gone);
        }
        let pidfd = self.pidfd().map_err(system("entering a sandbox's network"))?;
        let (sender, receiver) = oneshot::channel();
        let thread = std::thread::Builder::new().name("sandbox-network".to_owned()).spawn(move || {
            let opened = enter(&pidfd).and_then(|()| open().map_err(system("the network of a sandbox")));
            let (listeners, rules) = match opened {
                Ok((listeners, rules)) => (Ok(listeners), Some(rules)),
                Err(error) => (Err(error), None),
            };
            // Whoever asked may have gone away.
            let _asker = sender.send(listeners);
            // Only now, because that takes its time.
            drop(rules);
        });
        thread.map_err(system("a thread"))?;
        receiver.await.map_err(|_| SandboxError::Host("a thread in a sandbox's network failed".to_owned()))?
    }
}

/// Whether this host's kernel has what [`Sandbox::open_network`] needs: tried in a namespace that goes away at once.
pub(crate) fn probe() -> io::Result<()> {
    let tried = std::thread::Builder::new().name("sandbox-network".to_owned()).spawn(|| {
        crate::sys::unshare(rustix::thread::UnshareFlags::NEWNET)?;
        open_loopback()?;
        open().map(drop)
    })?;
    tried.join().map_err(|_| io::Error::other("a thread failed"))?
}

fn enter(pidfd: &OwnedFd) -> Result<(), SandboxError> {
    match rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::NETWORK) {
        Err(Errno::SRCH) => Err(SandboxError::Gone),
        entered => entered.map_err(io::Error::from).map_err(system("entering a sandbox's network")),
    }
}

/// In the current namespace. With the socket that the rules were made by.
fn open() -> io::Result<(Listeners, OwnedFd)> {
    let connections = listen()?;
    let names = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    names.set_nonblocking(true)?;
    rules::open_way()?;
    let ports = rules::Ports { connections: connections.local_addr()?.port(), names: names.local_addr()?.port() };
    let rules = rules::replace(ports)?;
    Ok((Listeners { connections, names }, rules))
}

fn listen() -> io::Result<TcpListener> {
    /// Connections that wait to be accepted; the kernel takes less where `somaxconn` is lower.
    const WAITING_COUNT_MAX: i32 = 1024;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::listen(&socket, WAITING_COUNT_MAX)?;
    Ok(socket.into())
}
