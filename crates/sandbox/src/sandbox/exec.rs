//! Commands: their pipes, their environment, and the events that they become.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::{Sandbox, lock, null, pipe_from_us, pipe_to_us};
use crate::control::{Control, Outcome, Started};
use crate::start::system;
use crate::wire::{Order, Program, Start};
use crate::{ExecEvent, ExecEvents, ExecSpec, IdMap, SandboxError, WORKSPACE};

/// Events that wait for their reader; with the pipes, all that a command can write ahead.
const EVENT_COUNT_MAX: usize = 16;

/// As much as a pipe holds.
const CHUNK_LEN: usize = 64 * 1024;

/// What every command has, unless the sandbox's or its own variables say otherwise.
const DEFAULTS: [(&str, &str); 6] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "xterm-256color"),
];

impl Sandbox {
    pub(super) async fn start_exec(&self, spec: ExecSpec) -> Result<ExecEvents, SandboxError> {
        let ExecSpec { argv, cwd, env, stdin, timeout, session } = spec;
        let (sender, receiver) = mpsc::channel(EVENT_COUNT_MAX);
        let timeout_ms = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let control = self.inner.control.clone();
        let Some(session) = session else {
            let cwd = cwd.unwrap_or_else(|| PathBuf::from(WORKSPACE));
            let program = Program::Command { argv };
            let order = Start { id: 0, program, cwd, env: self.environment(&[&env]), timeout_ms, is_kept: false };
            // Begun here, so that the caller learns at once that the sandbox is gone.
            let begun = begin(&control, order, stdin, self.inner.ids).await;
            if matches!(begun, Err(SandboxError::Gone)) {
                return Err(SandboxError::Gone);
            }
            let sandbox = self.clone();
            tokio::spawn(async move { sandbox.leave(follow(begun, timeout_ms, sender).await) });
            return Ok(receiver);
        };
        let known = self.session(&session)?;
        let is_cwd_given = cwd.is_some();
        let (given, given_count) = self.given(&known.env);
        let order = Start {
            id: 0,
            program: Program::Session {
                argv,
                state: self.session_state(&session),
                given,
                given_count,
                only: env.into_iter().collect(),
                is_cwd_given,
            },
            cwd: cwd.unwrap_or(known.cwd),
            env: self.environment(&[&known.env]),
            timeout_ms,
            is_kept: false,
        };
        // Polled once here, so that turns are taken in the order of calls and not in that of tasks.
        let mine = self.turn(&session);
        let mut turn = Box::pin(Arc::clone(&mine).lock_owned());
        let taken = (&mut turn).now_or_never();
        let sandbox = self.clone();
        tokio::spawn(async move {
            let turn = match taken {
                Some(turn) => turn,
                None => turn.await,
            };
            // A session that was deleted meanwhile has no turns any more, or others.
            let is_deleted = || !lock(&sandbox.inner.turns).get(&session).is_some_and(|turn| Arc::ptr_eq(turn, &mine));
            let begun = if is_deleted() {
                Err(SandboxError::NoSession { id: session.to_string() })
            } else {
                begin(&control, order, stdin, sandbox.inner.ids).await
            };
            if let Ok(begun) = &begun {
                lock(&sandbox.inner.running).insert(session.clone(), begun.started.id);
                // Deleting takes the turns away first and looks for what runs then, so one of both sees the other.
                if is_deleted() {
                    // If the sandbox has ended, so has the command.
                    let _result = control.order(&Order::Kill { id: begun.started.id }).await;
                }
            }
            let rest = follow(begun, timeout_ms, sender).await;
            lock(&sandbox.inner.running).remove(&session);
            drop(turn);
            sandbox.leave(rest);
        });
        Ok(receiver)
    }

    /// Lets children that a command left behind go on writing.
    fn leave(&self, outputs: Vec<Output>) {
        for output in outputs.into_iter().filter(|output| !output.is_over) {
            self.inner.leftovers.add(output.pipe);
        }
    }

    /// The daemon's variables for a session that was made with `known`, and which of the daemon's environments they are.
    fn given(&self, known: &BTreeMap<String, String>) -> (Vec<(String, String)>, u32) {
        let record = self.record();
        let is_theirs = |name: &String| known.contains_key(name) || record.spec.env.contains_key(name);
        // What the shell could not export is no variable either.
        let is_name = |name: &String| {
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && !name.starts_with(|c: char| c.is_ascii_digit())
        };
        let given = record
            .environment
            .iter()
            .filter(|(name, value)| !name.is_empty() && is_name(name) && !is_theirs(name) && !value.contains('\0'));
        (given.map(|(name, value)| (name.clone(), value.clone())).collect(), record.environment_count)
    }

    /// A whole environment: defaults, the root file system's, the daemon's, the sandbox's, then `more`, the last of which
    /// wins.
    pub(super) fn environment(&self, more: &[&BTreeMap<String, String>]) -> Vec<(String, String)> {
        let mut all: BTreeMap<String, String> =
            DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let record = self.record();
        for variables in [&record.rootfs_env, &record.environment, &record.spec.env] {
            all.extend(variables.clone());
        }
        drop(record);
        for variables in more {
            all.extend((*variables).clone());
        }
        // A name with `=` or a NUL cannot be told from its value.
        all.retain(|name, value| !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
        all.into_iter().collect()
    }
}

/// A command that runs, with its pipes.
struct Begun {
    started: Started,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    stdin: Option<tokio::task::JoinHandle<()>>,
}

async fn begin(control: &Control, order: Start, stdin: Bytes, ids: IdMap) -> Result<Begun, SandboxError> {
    check_argv(&order.program)?;
    let pipes = || -> io::Result<_> {
        let input: (Option<pipe::Sender>, OwnedFd) = if stdin.is_empty() {
            (None, null()?)
        } else {
            let (ours, theirs) = pipe_from_us(Some(ids))?;
            (Some(ours), theirs)
        };
        Ok((input, pipe_to_us(Some(ids))?, pipe_to_us(Some(ids))?))
    };
    let (input, output, errors) = pipes().map_err(system("a command's pipes"))?;
    // Init reads on when this process is gone, so that the command is not killed by its next word.
    let held = [&output.0, &errors.0].map(|pipe| pipe.as_fd().try_clone_to_owned());
    let [held_output, held_errors] = held;
    let held_output = held_output.map_err(system("a command's pipes"))?;
    let held_errors = held_errors.map_err(system("a command's pipes"))?;
    let fds = vec![input.1, output.1, errors.1, held_output, held_errors];
    let started = control.start(order, fds).await?;
    let stdin = input.0.map(|mut to| {
        tokio::spawn(async move {
            // A command need not read what it is given.
            let _result = to.write_all(&stdin).await;
        })
    });
    Ok(Begun { started, stdout: output.0, stderr: errors.0, stdin })
}

/// The kernel's strings end at a NUL.
fn check_argv(program: &Program) -> Result<(), SandboxError> {
    let (Program::Command { argv } | Program::Session { argv, .. }) = program else { return Ok(()) };
    let message = match argv.iter().any(|word| word.contains('\0')) {
        _ if argv.is_empty() => "there is no command",
        true => "a command's words cannot hold NUL characters",
        false => return Ok(()),
    };
    Err(SandboxError::Exec { message: message.to_owned() })
}

/// Turns a command into events, until it ends. Returns pipes that others may still write to.
async fn follow(
    begun: Result<Begun, SandboxError>,
    timeout_ms: Option<u64>,
    sender: mpsc::Sender<ExecEvent>,
) -> Vec<Output> {
    let Begun { started, stdout, stderr, stdin } = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let _reader = sender.send(ExecEvent::Failed { message: error.to_string() }).await;
            return Vec::new();
        }
    };
    let mut output = Output::new(stdout, ExecEvent::Stdout);
    let mut errors = Output::new(stderr, ExecEvent::Stderr);
    let mut outcome = started.outcome;
    let outcome = loop {
        // The branches that lose are dropped, so they only read; what one has read is sent by its handler, which nothing
        // cuts off. That is the back-pressure, too: nothing is read while the reader is behind.
        let chunk = tokio::select! {
            outcome = &mut outcome => break outcome,
            chunk = output.next(), if !output.is_over => chunk,
            chunk = errors.next(), if !errors.is_over => chunk,
        };
        if let Some(chunk) = chunk {
            // Without a reader it is thrown away.
            let _reader = sender.send(chunk).await;
        }
    };
    if let Some(stdin) = stdin {
        stdin.abort();
    }
    for pipe in [&mut output, &mut errors] {
        pipe.finish(&sender).await;
    }
    let last = last_event(outcome, timeout_ms, &sender).await;
    // Whoever asked may have gone away.
    let _reader = sender.send(last).await;
    vec![output, errors]
}

async fn last_event(
    outcome: Result<Outcome, oneshot::error::RecvError>,
    timeout_ms: Option<u64>,
    sender: &mpsc::Sender<ExecEvent>,
) -> ExecEvent {
    match outcome {
        Ok(Ok(end)) => {
            if let Some(timeout_ms) = timeout_ms.filter(|_| end.is_timeout) {
                let text = format!("Command timed out after {timeout_ms}ms\n");
                let _reader = sender.send(ExecEvent::Stderr(text.into())).await;
            }
            ExecEvent::Exit { code: end.code }
        }
        Ok(Err(message)) => ExecEvent::Failed { message },
        Err(_) => ExecEvent::Failed { message: SandboxError::Gone.to_string() },
    }
}

/// One of a command's two streams.
struct Output {
    pipe: pipe::Receiver,
    event: fn(Bytes) -> ExecEvent,
    is_over: bool,
}

impl Output {
    fn new(pipe: pipe::Receiver, event: fn(Bytes) -> ExecEvent) -> Self {
        Self { pipe, event, is_over: false }
    }

    /// Reads one chunk, if there is one after all. Loses nothing when it is dropped: it awaits only before it reads.
    async fn next(&mut self) -> Option<ExecEvent> {
        let mut chunk = BytesMut::new();
        let read = self.pipe.readable().await.and_then(|()| {
            chunk.resize(CHUNK_LEN, 0);
            self.pipe.try_read(&mut chunk)
        });
        match read {
            Ok(0) => self.is_over = true,
            Ok(len) => {
                chunk.truncate(len);
                return Some((self.event)(chunk.freeze()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::debug!(%error, "a command's output cannot be read");
                self.is_over = true;
            }
        }
        None
    }

    /// Hands on what is in the pipe now that the command has ended, and not what others go on writing.
    async fn finish(&mut self, sender: &mpsc::Sender<ExecEvent>) {
        let mut rest = rustix::io::ioctl_fionread(&self.pipe).unwrap_or_default();
        while rest > 0 && !self.is_over {
            let mut chunk = BytesMut::zeroed(usize::try_from(rest).unwrap_or(CHUNK_LEN).min(CHUNK_LEN));
            // Not by way of tokio, which may not have heard yet that there is something.
            match rustix::io::read(&self.pipe, &mut *chunk) {
                Ok(0) => self.is_over = true,
                Ok(len) => {
                    chunk.truncate(len);
                    rest = rest.saturating_sub(len as u64);
                    let _reader = sender.send((self.event)(chunk.freeze())).await;
                }
                Err(_) => return,
            }
        }
    }
}
