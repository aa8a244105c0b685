//! Background processes. Init keeps the reading ends of their pipes too, so that a daemon that restarts can go on
//! reading: the processes notice at most a pause.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};

use super::logs::Log;
use super::{Sandbox, lock, null, pipe as pipe_of, sessions};
use crate::control::Outcome;
use crate::start::system;
use crate::wire::{Kept, Order, Program, Start};
use crate::{
    ExecEvent, ExecEvents, ProcessInfo, ProcessLogs, ProcessSpec, ProcessState, SandboxError, WORKSPACE, record,
};

/// Ended processes that are remembered; beyond it the oldest are forgotten with their output.
const ENDED_COUNT_MAX: usize = 200;

/// Code of a process of whose end nobody knows: it ended with an earlier sandbox's init, or was forgotten.
const CODE_UNKNOWN: i32 = 255;

/// One background process.
#[derive(Debug)]
pub(super) struct Background {
    child: u64,
    info: Mutex<ProcessInfo>,
    stdout: Mutex<Log>,
    stderr: Mutex<Log>,
    /// Changes with each byte and at the end.
    changed: watch::Sender<u64>,
}

impl Background {
    pub(super) fn info(&self) -> ProcessInfo {
        lock(&self.info).clone()
    }

    fn is_running(&self) -> bool {
        lock(&self.info).state == ProcessState::Running
    }

    pub(super) fn logs(&self) -> Result<ProcessLogs, SandboxError> {
        let read = |log: &Mutex<Log>| lock(log).newest().map_err(system("kept output"));
        Ok(ProcessLogs { stdout: read(&self.stdout)?, stderr: read(&self.stderr)? })
    }

    /// Kept output, then new output as it comes. A reader that is slower than the process misses what was cut off.
    pub(super) fn follow(self: &Arc<Self>) -> ExecEvents {
        let (sender, receiver) = mpsc::channel(16);
        let process = Arc::clone(self);
        tokio::spawn(async move {
            let mut changed = process.changed.subscribe();
            let (mut stdout, mut stderr) = (0, 0);
            loop {
                // Asked before the logs are read: what was written before the end is then seen.
                let state = process.info().state;
                changed.mark_unchanged();
                let read = |log: &Mutex<Log>, at: u64| lock(log).read(at);
                let chunks = read(&process.stdout, stdout).and_then(|out| Ok((out, read(&process.stderr, stderr)?)));
                let ((out, out_next), (err, err_next)) = match chunks {
                    Ok(chunks) => chunks,
                    Err(error) => {
                        let _reader = sender.send(ExecEvent::Failed { message: error.to_string() }).await;
                        return;
                    }
                };
                (stdout, stderr) = (out_next, err_next);
                let is_all = out.is_empty() && err.is_empty();
                let events = [ExecEvent::Stdout(out), ExecEvent::Stderr(err)];
                for event in events {
                    let is_empty = matches!(&event, ExecEvent::Stdout(b) | ExecEvent::Stderr(b) if b.is_empty());
                    if !is_empty && sender.send(event).await.is_err() {
                        return;
                    }
                }
                match state {
                    ProcessState::Exited(code) if is_all => {
                        let _reader = sender.send(ExecEvent::Exit { code }).await;
                        return;
                    }
                    ProcessState::Running if is_all => {
                        tokio::select! {
                            changed = changed.changed() => if changed.is_err() { return },
                            () = sender.closed() => return,
                        }
                    }
                    _ => {}
                }
            }
        });
        receiver
    }
}

impl Sandbox {
    pub(super) async fn start_background(&self, spec: ProcessSpec) -> Result<ProcessInfo, SandboxError> {
        let ProcessSpec { id, argv, cwd, env, timeout } = spec;
        if argv.is_empty() {
            return Err(SandboxError::Exec { message: "there is no command".to_owned() });
        }
        let id = match id {
            Some(id) => id,
            None => sessions::new_name()?,
        };
        if crate::SessionId::parse(&id).is_err() {
            // It becomes a file name.
            return Err(SandboxError::Exec {
                message: format!("process id {id:?}: letters, digits, `.`, `_`, `-` only"),
            });
        }
        if lock(&self.inner.processes).contains_key(&id) {
            return Err(SandboxError::Exec { message: format!("Process '{id}' already exists") });
        }
        let ids = Some(self.inner.ids);
        let pipes = || -> std::io::Result<_> { Ok((pipe_of(ids)?, pipe_of(ids)?, null()?)) };
        let ((stdout, out), (stderr, err), stdin) = pipes().map_err(system("a process's pipes"))?;
        let kept = [&stdout, &stderr].map(OwnedFd::try_clone);
        let [kept_out, kept_err] = kept;
        let kept_out = kept_out.map_err(system("a process's pipes"))?;
        let kept_err = kept_err.map_err(system("a process's pipes"))?;
        let order = Start {
            id: 0,
            program: Program::Command { argv: argv.clone() },
            cwd: cwd.unwrap_or_else(|| WORKSPACE.into()),
            env: self.environment(&[&env]),
            timeout_ms: timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            is_kept: true,
        };
        let started = self.inner.control.start(order, vec![stdin, out, err, kept_out, kept_err]).await?;
        let info = ProcessInfo {
            id: id.clone(),
            pid: started.pid,
            argv,
            state: ProcessState::Running,
            started_ms: now_ms(),
            ended_ms: None,
        };
        self.change_record(|record| {
            let new = record::ProcessRecord { child: started.id, info: info.clone() };
            record.processes.insert(id, new);
        })?;
        let process = self.keep(started.id, info)?;
        self.pump(&process, vec![stdout, stderr], started.outcome);
        Ok(process.info())
    }

    /// All processes, by the time of their start.
    pub(super) fn backgrounds(&self) -> Vec<Arc<Background>> {
        let mut all: Vec<_> = lock(&self.inner.processes).values().cloned().collect();
        all.sort_by_key(|process| process.child);
        all
    }

    pub(super) fn background(&self, id: &str) -> Result<Arc<Background>, SandboxError> {
        lock(&self.inner.processes).get(id).cloned().ok_or_else(|| SandboxError::NoProcess { id: id.to_owned() })
    }

    pub(super) async fn signal_background(&self, id: &str, signal: i32) -> Result<(), SandboxError> {
        let process = self.background(id)?;
        self.inner.control.order(&Order::Signal { id: process.child, signal }).await
    }

    /// Takes up the processes of an earlier daemon.
    pub(super) async fn recover_processes(&self, kept: &[Kept]) -> Result<(), SandboxError> {
        let known = self.record().processes.clone();
        for record::ProcessRecord { child, info } in known.into_values() {
            let is_running = info.state == ProcessState::Running;
            let process = self.keep(child, info)?;
            if !is_running {
                continue;
            }
            let streams = self.inner.control.streams(child).await?;
            let outcome = match kept.iter().find(|kept| kept.id == child) {
                Some(Kept { end: None, .. }) => self.inner.control.watch(child),
                Some(Kept { end: Some(end), .. }) => known_outcome(Ok(*end)),
                None => known_outcome(Err("nobody knows how it ended".to_owned())),
            };
            self.pump(&process, streams, outcome);
        }
        Ok(())
    }

    fn keep(&self, child: u64, info: ProcessInfo) -> Result<Arc<Background>, SandboxError> {
        let log = |kind: &str| {
            let path = self.inner.directory.join("logs").join(format!("process-{}.{kind}", info.id));
            Log::open(&path).map(Mutex::new).map_err(system("a log"))
        };
        let (stdout, stderr) = (log("out")?, log("err")?);
        let process =
            Arc::new(Background { child, stdout, stderr, changed: watch::Sender::new(0), info: Mutex::new(info) });
        lock(&self.inner.processes).insert(process.info().id, Arc::clone(&process));
        Ok(process)
    }

    /// Moves output into the logs until the process has ended and its pipes are empty.
    fn pump(&self, process: &Arc<Background>, streams: Vec<OwnedFd>, outcome: oneshot::Receiver<Outcome>) {
        let mut streams = streams.into_iter().map(pipe::Receiver::from_owned_fd);
        let (stdout, stderr) = (streams.next(), streams.next());
        let (sandbox, process) = (self.clone(), Arc::clone(process));
        tokio::spawn(async move {
            let stop = watch::Sender::new(false);
            let end = async {
                let outcome = outcome.await;
                stop.send_replace(true);
                outcome
            };
            let outputs = async {
                tokio::join!(
                    fill(&process, |process| &process.stdout, stdout, stop.subscribe()),
                    fill(&process, |process| &process.stderr, stderr, stop.subscribe()),
                )
            };
            let (outcome, (stdout, stderr)) = tokio::join!(end, outputs);
            if let Err(error) = sandbox.note_end(&process, outcome).await {
                tracing::debug!(%error, "the end of a process could not be written down");
            }
            // What it left behind may go on writing, which nobody keeps.
            for pipe in [stdout, stderr].into_iter().flatten() {
                sandbox.inner.leftovers.add(pipe);
            }
        });
    }

    async fn note_end(
        &self,
        process: &Background,
        outcome: Result<Outcome, oneshot::error::RecvError>,
    ) -> Result<(), SandboxError> {
        let code = match outcome {
            Ok(Ok(end)) => end.code,
            Ok(Err(message)) => {
                lock(&process.stderr).append(format!("{message}\n").as_bytes()).map_err(system("a log"))?;
                CODE_UNKNOWN
            }
            // The connection is lost. If the sandbox lives, the next daemon will know.
            Err(_) if self.is_alive() => return Ok(()),
            Err(_) => 128 + libc::SIGKILL,
        };
        let info = {
            let mut info = lock(&process.info);
            info.state = ProcessState::Exited(code);
            info.ended_ms = Some(now_ms());
            info.clone()
        };
        process.changed.send_modify(|count| *count += 1);
        if !self.is_alive() {
            return Ok(());
        }
        self.change_record(|record| {
            record.processes.insert(info.id.clone(), record::ProcessRecord { child: process.child, info });
        })?;
        self.inner.control.order(&Order::Forget { id: process.child }).await?;
        self.forget_old()
    }

    fn forget_old(&self) -> Result<(), SandboxError> {
        let ended: Vec<_> = self.backgrounds().into_iter().filter(|process| !process.is_running()).collect();
        for process in ended.iter().take(ended.len().saturating_sub(ENDED_COUNT_MAX)) {
            let id = process.info().id;
            lock(&self.inner.processes).remove(&id);
            self.change_record(|record| record.processes.remove(&id))?;
            for kind in ["out", "err"] {
                let path = self.inner.directory.join("logs").join(format!("process-{id}.{kind}"));
                std::fs::remove_file(path).map_err(system("removing a log"))?;
            }
        }
        Ok(())
    }
}

/// Fills one log until the stream ends, or the process has ended and what it wrote is read.
async fn fill(
    process: &Background,
    log: fn(&Background) -> &Mutex<Log>,
    pipe: Option<std::io::Result<pipe::Receiver>>,
    mut stop: watch::Receiver<bool>,
) -> Option<pipe::Receiver> {
    let mut pipe = pipe?.inspect_err(|error| tracing::warn!(%error, "a process's output cannot be read")).ok()?;
    let mut chunk = BytesMut::zeroed(64 * 1024);
    let keep = |bytes: &[u8]| {
        if let Err(error) = lock(log(process)).append(bytes) {
            tracing::warn!(%error, "a process's output cannot be kept");
        }
        process.changed.send_modify(|count| *count += 1);
    };
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            read = pipe.read(&mut chunk) => match read {
                Ok(len @ 1..) => keep(&chunk[..len]),
                _ => return None,
            },
        }
    }
    let mut rest = rustix::io::ioctl_fionread(&pipe).unwrap_or_default();
    while rest > 0 {
        // Not by way of tokio, which may not have heard yet that there is something.
        let Ok(len @ 1..) = rustix::io::read(&pipe, &mut *chunk) else { break };
        keep(&chunk[..len]);
        rest = rest.saturating_sub(len as u64);
    }
    Some(pipe)
}

fn known_outcome(outcome: Outcome) -> oneshot::Receiver<Outcome> {
    let (sender, receiver) = oneshot::channel();
    // The receiver is here.
    let _sent = sender.send(outcome);
    receiver
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
