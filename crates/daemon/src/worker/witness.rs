//! What becomes of requests whose process was killed.
//!
//! A store does what it was asked for also when nobody is there any more to hear it, and perhaps late: a file that the next
//! process makes and removes would come back, one that it makes again would be gone. So each worker has a witness: a small
//! process that holds the worker's connections, too. When the worker is killed, the store sees nothing of that yet, and answers;
//! the witness waits for that, then closes what is left, waits until the store has closed its side, and ends. The process that
//! takes up the mount begins when the witness has ended ([`ended`]).
//!
//! ```text
//! worker ── connections ──► store
//!   └─ each new one ─► witness ── pidfd, by the keeper ─► next worker
//! ```
//!
//! It knows no keys; what a store still sends, it takes and forgets. Without it the next process only waits for a fixed time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvFlags, Shutdown, shutdown};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use sandpail_store::http::{Connections, is_asked};

use super::{hand_over, secrecy, start};

/// The first argument of the process.
pub const ARGUMENT: &str = "mount-witness";

/// So long the store may answer what it was asked for, before it sees that nobody is there. An upload that had not been sent
/// whole is never answered.
const ANSWERED_WITHIN: Duration = Duration::from_millis(600);
/// So long it may take to close its side then.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);
/// The same where it has begun to answer: not each closes at once what it could use again.
const CLOSED_WHEN_ANSWERED_WITHIN: Duration = Duration::from_millis(300);

/// The witness of this process.
#[derive(Debug)]
pub(super) struct Witness {
    line: UnixStream,
    process: OwnedFd,
}

impl Witness {
    pub(super) fn start() -> anyhow::Result<Self> {
        let (line, theirs) = UnixStream::pair().context("cannot make a socket")?;
        let mut command = Command::new(start::own_program()?);
        command.arg(ARGUMENT).env_clear().current_dir("/");
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("cannot start the process that hears the last answers")?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Self { line, process })
    }

    /// For whoever waits for its end.
    pub(super) fn process(&self) -> &OwnedFd {
        &self.process
    }

    /// Tells whoever has given this process its mount, who would not know of it if this process were killed before it can
    /// hand the mount over. The store must not be asked for anything before, nor the witness of the process before be alive.
    pub(super) fn tell(&self) {
        if let Err(error) = hand_over::pass(rustix::stdio::stdin(), self.process.as_fd()) {
            tracing::warn!(%error, "whoever keeps the mount does not know yet who hears this process's last answers");
        }
    }

    /// This process ends by itself, and nothing is under way.
    pub(super) fn dismiss(&self) {
        // It may have been killed before.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED);
    }
}

impl Connections for Witness {
    fn opened(&self, socket: BorrowedFd<'_>) {
        if let Err(error) = hand_over::pass(&self.line, socket) {
            // It was killed: what follows is as without it.
            tracing::debug!(%error, "nobody would hear this connection's last answer");
        }
    }
}

/// Returns when the witness of a process that was killed has ended.
pub(super) async fn ended(witness: OwnedFd) {
    let begun = Instant::now();
    let waiting = tokio::task::spawn_blocking(move || {
        let mut process = [PollFd::new(&witness, PollFlags::IN)];
        wait(&mut process, Some(ANSWERED_WITHIN + CLOSED_WITHIN * 2))?;
        Ok::<_, io::Error>(!process[0].revents().is_empty())
    });
    match waiting.await.map_err(io::Error::other).flatten() {
        Ok(true) => tracing::debug!(after = ?begun.elapsed(), "the process before has its last answer"),
        Ok(false) => tracing::warn!("the store may still be doing what the process before has asked for"),
        Err(error) => tracing::warn!(%error, "nobody knows when the process before had its last answer"),
    }
}

/// As a process of its own: holds what comes by the socket that is standard input, and ends some time after that has.
pub fn main() -> ExitCode {
    // Nothing secret is here; but whoever could trace it could speak on the worker's connections.
    let result = secrecy::keep_memory_private().and_then(|()| {
        // Away from the terminal and its signals.
        let _ = rustix::process::setsid();
        hold(rustix::stdio::stdin())
    });
    match result {
        Ok(sockets) => {
            hear_out(sockets);
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Holds connections until the worker is gone.
fn hold(line: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut sockets: Vec<OwnedFd> = Vec::new();
    loop {
        let mut polled = vec![PollFd::from_borrowed_fd(line, PollFlags::IN)];
        // Nothing is asked for, and told all the same: that the worker has closed it.
        polled.extend(sockets.iter().map(|socket| PollFd::new(socket, PollFlags::empty())));
        wait(&mut polled, None)?;
        let is_told = !polled[0].revents().is_empty();
        let mut closed = polled[1..].iter().map(|socket| !socket.revents().is_empty()).collect::<Vec<_>>().into_iter();
        sockets.retain(|_| !closed.next().unwrap_or(false));
        if is_told && !receive(line, &mut sockets)? {
            return Ok(sockets);
        }
    }
}

/// Takes what the worker sends; `false` when it is gone.
fn receive(line: BorrowedFd<'_>, sockets: &mut Vec<OwnedFd>) -> io::Result<bool> {
    match hand_over::take(line, RecvFlags::empty()) {
        Ok(Some(socket)) => sockets.push(socket),
        Ok(None) => return Ok(false),
        // Without this one the others are heard out all the same.
        Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::InvalidData) => {}
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// Waits for the answers to what was asked for, closes, and waits until the store has closed, too.
fn hear_out(mut sockets: Vec<OwnedFd>) {
    sockets.retain(|socket| is_asked(socket).unwrap_or(false));
    let mut unanswered = sockets;
    let mut answered = while_silent(&mut unanswered, Instant::now() + ANSWERED_WITHIN, |_| true);
    for socket in answered.iter().chain(&unanswered) {
        // Closed by the store meanwhile.
        let _ = shutdown(socket, Shutdown::Write);
    }
    answered.extend(while_silent(&mut unanswered, Instant::now() + CLOSED_WITHIN, |_| true));
    // The first bytes may be those of the encryption, or come before the rest of a long answer.
    while_silent(&mut answered, Instant::now() + CLOSED_WHEN_ANSWERED_WITHIN, is_closed);
    for socket in &unanswered {
        // What waits here to be sent must not be, later.
        let _ = set_socket_linger(socket, Some(Duration::ZERO));
    }
}

/// Gives the connections that are heard of, and are what `is_heard` asks for, before `until`; the others stay.
fn while_silent(sockets: &mut Vec<OwnedFd>, until: Instant, is_heard: impl Fn(&OwnedFd) -> bool) -> Vec<OwnedFd> {
    let mut heard = Vec::new();
    while !sockets.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        let mut polled: Vec<_> = sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        if left.is_zero() || wait(&mut polled, Some(left)).is_err() {
            break;
        }
        let told: Vec<bool> = polled.iter().map(|socket| !socket.revents().is_empty()).collect();
        drop(polled);
        for (at, _) in told.iter().enumerate().rev().filter(|(_, told)| **told) {
            if is_heard(&sockets[at]) {
                heard.push(sockets.swap_remove(at));
            }
        }
    }
    heard
}

/// Whether the store has closed its side; takes what it has sent before.
fn is_closed(socket: &OwnedFd) -> bool {
    let mut scratch = [0; 16 << 10];
    loop {
        match rustix::net::recv(socket, &mut scratch[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return true,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return false,
            Err(_) => return true,
        }
    }
}

fn wait(polled: &mut [PollFd<'_>], most: Option<Duration>) -> io::Result<()> {
    let most = most.and_then(|most| Timespec::try_from(most).ok());
    match poll(polled, most.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use rustix::net::sockopt::{Timeout, set_socket_timeout};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// Asks as a store's connection does.
    fn ask(mut client: &TcpStream, request: &[u8]) {
        set_socket_timeout(client, Timeout::Recv, Some(Duration::from_secs(1))).unwrap();
        client.write_all(request).unwrap();
    }

    #[test]
    fn an_answer_is_waited_for() {
        let (client, mut server) = pair();
        ask(&client, b"PUT");
        let store = thread::spawn(move || {
            let mut request = [0; 3];
            server.read_exact(&mut request).unwrap();
            // Nobody hangs up meanwhile.
            server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            server.read(&mut request).unwrap_err();
            let answering = Instant::now();
            server.write_all(b"200").unwrap();
            answering
        });
        hear_out(vec![client.into()]);
        assert!(Instant::now() >= store.join().unwrap());
    }

    #[test]
    fn what_is_never_answered_is_closed_and_waited_for() {
        let (client, mut server) = pair();
        ask(&client, b"half of a request");
        let store = thread::spawn(move || {
            let mut request = Vec::new();
            server.read_to_end(&mut request).unwrap();
            // What it does then is not over before it closes.
            thread::sleep(Duration::from_millis(100));
            let closing = Instant::now();
            drop(server);
            closing
        });
        hear_out(vec![client.into()]);
        assert!(Instant::now() >= store.join().unwrap());
    }

    #[test]
    fn connections_are_held_until_the_worker_closes_them_or_is_gone() {
        let (line, theirs) = UnixStream::pair().unwrap();
        let holding = thread::spawn(move || hold(theirs.as_fd()).unwrap());
        let (kept, mut kept_server) = pair();
        let (closed, mut closed_server) = pair();
        for socket in [&kept, &closed] {
            hand_over::pass(&line, socket.as_fd()).unwrap();
        }
        // As a store's connection does when it is dropped.
        shutdown(&closed, Shutdown::Both).unwrap();
        drop(closed);
        assert_eq!(closed_server.read(&mut [0; 1]).unwrap(), 0);
        drop(kept);
        kept_server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        kept_server.read(&mut [0; 1]).unwrap_err();
        drop(line);
        let left = holding.join().unwrap();
        assert_eq!(left.len(), 1);
    }
}
