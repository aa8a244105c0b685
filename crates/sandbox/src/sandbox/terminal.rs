//! Terminals. Init opens them inside and hands their outer side to the daemon, which reads and writes it. For a session's
//! terminal init keeps that side too, so that it outlives the daemon.

use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::{Sandbox, lock};
use crate::control::{Control, Outcome};
use crate::start::system;
use crate::wire::{Kept, Order, Program, Start};
use crate::{Pty, PtyEvent, PtyInput, PtySpec, SandboxError, SessionId, WORKSPACE};

/// Recent output that the next connection gets.
const REPLAY_LEN: usize = 256 * 1024;

/// Events that wait for a connection. Replayed output and `Ready` fit, which are sent without waiting.
const EVENT_COUNT_MAX: usize = 64;

/// How long a connection waits for its shell to run before it is answered without knowing.
const START_TIME_MAX: Duration = Duration::from_secs(5);

/// Of what a child says before it gives up, which names a program or a directory.
const TROUBLE_LEN_MAX: usize = 8192;

/// A terminal that is open.
#[derive(Debug)]
pub(super) struct Terminal {
    child: u64,
    control: Control,
    outside: AsyncFd<OwnedFd>,
    screen: Mutex<Screen>,
}

#[derive(Debug, Default)]
struct Screen {
    recent: BytesMut,
    connections: Vec<mpsc::Sender<PtyEvent>>,
    is_over: bool,
}

impl Screen {
    fn remember(&mut self, bytes: &[u8]) {
        self.recent.extend_from_slice(bytes);
        // Cut seldom, not at each byte.
        if self.recent.len() > 2 * REPLAY_LEN {
            let _old = self.recent.split_to(self.recent.len() - REPLAY_LEN);
        }
    }

    fn replay(&self) -> Bytes {
        Bytes::copy_from_slice(&self.recent[self.recent.len().saturating_sub(REPLAY_LEN)..])
    }
}

impl Terminal {
    fn new(child: u64, control: Control, outside: OwnedFd) -> Result<Arc<Self>, SandboxError> {
        let outside =
            crate::sys::watch(outside, Interest::READABLE | Interest::WRITABLE).map_err(system("a terminal"))?;
        Ok(Arc::new(Self { child, control, outside, screen: Mutex::default() }))
    }

    /// Ends the shell and all that it started.
    pub(super) async fn end(&self) {
        // If the sandbox has ended, so has the shell.
        let _result = self.control.order(&Order::Kill { id: self.child }).await;
        let _result = self.control.order(&Order::Forget { id: self.child }).await;
    }

    /// Adds a connection: what was shown lately, then what comes. `None` if the shell has ended.
    fn connect(self: &Arc<Self>, is_owner: bool) -> Option<Pty> {
        let (sender, output) = mpsc::channel(EVENT_COUNT_MAX);
        let (input, typed) = mpsc::channel(EVENT_COUNT_MAX);
        {
            let mut screen = lock(&self.screen);
            if screen.is_over {
                return None;
            }
            let recent = screen.replay();
            if !recent.is_empty() {
                // The channel is new and has room.
                let _sent = sender.try_send(PtyEvent::Output(recent));
            }
            let _sent = sender.try_send(PtyEvent::Ready);
            screen.connections.push(sender.clone());
        }
        tokio::spawn(Arc::clone(self).take_input(typed, sender, is_owner));
        Some(Pty { output, input })
    }

    async fn take_input(
        self: Arc<Self>,
        mut typed: mpsc::Receiver<PtyInput>,
        output: mpsc::Sender<PtyEvent>,
        is_owner: bool,
    ) {
        loop {
            let input = tokio::select! {
                input = typed.recv() => input,
                () = output.closed() => None,
            };
            let result = match input {
                Some(PtyInput::Bytes(bytes)) => self.write(&bytes).await,
                Some(PtyInput::Resize { cols, rows }) => self.resize(cols, rows),
                None => break,
            };
            if let Err(error) = result {
                tracing::debug!(%error, "a terminal takes no more input");
                break;
            }
        }
        if is_owner {
            self.end().await;
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.outside.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// The kernel tells the programs.
    fn resize(&self, cols: u16, rows: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows.max(1), ws_col: cols.max(1), ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.outside.get_ref(), size)?)
    }

    /// Shows output until the shell has ended.
    async fn run(self: Arc<Self>, mut outcome: oneshot::Receiver<Outcome>) {
        let mut chunk = vec![0; 16 * 1024];
        let mut is_open = true;
        let outcome = loop {
            tokio::select! {
                biased;
                read = self.read(&mut chunk), if is_open => match read {
                    Ok(len @ 1..) => self.show(&chunk[..len]).await,
                    // EIO: nobody has the inner side open just now, or ever again.
                    _ => is_open = false,
                },
                outcome = &mut outcome => break outcome,
            }
        };
        let event = match outcome {
            Ok(Ok(end)) => PtyEvent::Exit { code: end.code, signal: end.signal.map(signal_name) },
            Ok(Err(message)) => {
                self.show(format!("{message}\r\n").as_bytes()).await;
                PtyEvent::Exit { code: 127, signal: None }
            }
            Err(_) => PtyEvent::Exit { code: 128 + libc::SIGKILL, signal: Some(signal_name(libc::SIGKILL)) },
        };
        let connections = {
            let mut screen = lock(&self.screen);
            screen.is_over = true;
            std::mem::take(&mut screen.connections)
        };
        for connection in connections {
            // It may have gone away.
            let _sent = connection.send(event.clone()).await;
        }
        self.end().await;
    }

    async fn read(&self, chunk: &mut [u8]) -> io::Result<usize> {
        self.outside.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *chunk)?)).await
    }

    /// Remembers output and sends it to all connections. A slow one holds the terminal up, as a slow modem would.
    async fn show(&self, bytes: &[u8]) {
        let connections = {
            let mut screen = lock(&self.screen);
            screen.remember(bytes);
            screen.connections.retain(|connection| !connection.is_closed());
            screen.connections.clone()
        };
        for connection in connections {
            let _sent = connection.send(PtyEvent::Output(Bytes::copy_from_slice(bytes))).await;
        }
    }
}

impl Sandbox {
    pub(super) async fn connect_terminal(&self, spec: PtySpec) -> Result<Pty, SandboxError> {
        let Some(session) = spec.session.clone() else {
            let terminal = self.open_terminal(spec, None).await?;
            return terminal.connect(true).ok_or(SandboxError::Gone);
        };
        self.session(&session)?;
        let mut terminals = self.inner.terminals.lock().await;
        if let Some(terminal) = terminals.get(&session)
            && let Some(pty) = terminal.connect(false)
        {
            terminal.resize(spec.cols, spec.rows).map_err(system("a terminal's size"))?;
            return Ok(pty);
        }
        let terminal = self.open_terminal(spec, Some(&session)).await?;
        self.note_terminal(&session, terminal.child)?;
        terminals.insert(session, Arc::clone(&terminal));
        terminal.connect(false).ok_or(SandboxError::Gone)
    }

    async fn open_terminal(&self, spec: PtySpec, session: Option<&SessionId>) -> Result<Arc<Terminal>, SandboxError> {
        let known = session.map(|session| self.session(session)).transpose()?;
        let env = known.as_ref().map(|known| known.env.clone()).unwrap_or_default();
        let order = Start {
            id: 0,
            program: Program::Terminal {
                shell: spec.shell,
                state: session.map(|session| self.session_state(session)),
                cols: spec.cols.max(1),
                rows: spec.rows.max(1),
            },
            cwd: known.map_or_else(|| WORKSPACE.into(), |known| known.cwd),
            env: self.environment(&[&env]),
            timeout_ms: None,
            is_kept: session.is_some(),
        };
        let (trouble, tell) = std::io::pipe().map_err(system("a pipe"))?;
        let mut started = self.inner.control.start(order, vec![tell.into()]).await?;
        let outside = started.fds.pop().ok_or(SandboxError::Gone)?;
        let terminal = Terminal::new(started.id, self.inner.control.clone(), outside)?;
        if let Some(message) = await_trouble(trouble).await.map_err(system("a pipe"))? {
            terminal.end().await;
            return Err(SandboxError::Exec { message });
        }
        tokio::spawn(Arc::clone(&terminal).run(started.outcome));
        Ok(terminal)
    }

    fn note_terminal(&self, session: &SessionId, child: u64) -> Result<(), SandboxError> {
        self.change_record(|record| {
            if let Some(session) = record.sessions.get_mut(session.as_str()) {
                session.terminal = Some(child);
            }
        })
    }

    /// Takes up the terminals of an earlier daemon. What they showed before is not known any more.
    pub(super) async fn recover_terminals(&self, kept: &[Kept]) -> Result<(), SandboxError> {
        let sessions = self.record().sessions.clone();
        for (name, session) in sessions {
            let Some(child) = session.terminal else { continue };
            let is_running = kept.iter().any(|kept| kept.id == child && kept.end.is_none());
            let (true, Ok(id)) = (is_running, SessionId::parse(&name)) else { continue };
            if let Some(outside) = self.inner.control.streams(child).await?.pop() {
                let terminal = Terminal::new(child, self.inner.control.clone(), outside)?;
                tokio::spawn(Arc::clone(&terminal).run(self.inner.control.watch(child)));
                self.inner.terminals.lock().await.insert(id, terminal);
            }
        }
        Ok(())
    }
}

/// Waits until the shell runs, and returns why it does not. One that hangs on its way, such as in a working directory
/// that is a bucket out of reach, counts as running: its terminal shows what comes of it.
async fn await_trouble(trouble: PipeReader) -> io::Result<Option<String>> {
    let trouble = crate::sys::watch(trouble.into(), Interest::READABLE)?;
    let mut message = [0; TROUBLE_LEN_MAX];
    let read = trouble.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut message)?));
    let len = match tokio::time::timeout(START_TIME_MAX, read).await {
        Ok(len) => len?,
        Err(_) => 0,
    };
    Ok((len > 0).then(|| String::from_utf8_lossy(&message[..len]).into_owned()))
}

/// Such as `SIGKILL`.
fn signal_name(signal: i32) -> String {
    signal_hook::low_level::signal_name(signal).map_or_else(|| format!("SIG{signal}"), str::to_owned)
}
