//! The worker of a mount, as the daemon sees it: started, asked, watched, ended. It outlives the daemon.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, BufReader, Interest};
use tokio::process::Child;
use tokio::sync::watch;

use crate::state::WorkerRecord;
use crate::worker::control::{self, Answer, Ask};
use crate::worker::keeper::{KEEP_TIMEOUT, Kept};
use crate::worker::start::{self, Given};
use crate::worker::{ARGUMENT, FAILED, Plan, READY, registry};

/// How long a worker may take until its bucket has answered. The bucket itself is given 5 s; the keys of a profile may
/// have to be fetched first.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a killed process takes to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process that has closed its sockets may take to be gone.
const CUT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two tries to reach one that does not serve yet.
const KEEP_PAUSE: Duration = Duration::from_millis(20);

/// A worker. Cheap to clone; dropping it ends nothing.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    record: WorkerRecord,
    handle: Arc<OwnedFd>,
    /// How it ended.
    ended: watch::Receiver<Option<String>>,
}

/// Kills a process that was not let go.
struct KillOnDrop(Option<Arc<OwnedFd>>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            // It may have ended by itself.
            let _ = pidfd_send_signal(handle.as_fd(), Signal::KILL);
        }
    }
}

/// A worker's process that does not know its mount yet. Dropping it ends it.
pub(crate) struct Starting {
    child: Child,
    socket: UnixStream,
    record: WorkerRecord,
    handle: Arc<OwnedFd>,
    guard: KillOnDrop,
}

impl Starting {
    pub(crate) fn record(&self) -> WorkerRecord {
        self.record
    }

    /// Tells it what it shall do, and returns when its bucket has answered and it serves.
    ///
    /// # Errors
    /// Why not, in words for people. No process is left then.
    pub(crate) async fn serve(self, plan: &Plan, given: Given<'_>) -> Result<Worker, String> {
        let Self { mut child, socket, record, handle, mut guard } = self;
        let output = child.stdout.take().ok_or("the mount's process has no output")?;
        start::hand_plan(&socket, plan, given).map_err(|error| format!("{error:#}"))?;
        let mut line = String::new();
        let mut output = BufReader::new(output);
        let read = tokio::time::timeout(START_TIMEOUT, output.read_line(&mut line)).await;
        match read {
            Err(_) => return Err(format!("timeout: the mount was not there within {START_TIMEOUT:?}")),
            Ok(Err(error)) => return Err(format!("the mount's process does not say what it does: {error}")),
            Ok(Ok(_)) => {}
        }
        match line.trim_end() {
            READY => {}
            "" => return Err(format!("the mount's process ended early ({})", end_of(child.wait().await))),
            line => {
                let reason = line.strip_prefix(FAILED).unwrap_or(line).to_owned();
                // It ends by itself; the guard makes sure.
                let _ = tokio::time::timeout(KILL_TIMEOUT, child.wait()).await;
                return Err(reason);
            }
        }
        guard.0 = None;
        let (tell, ended) = watch::channel(None);
        tokio::spawn(reap(child, tell));
        Ok(Worker { record, handle, ended })
    }
}

impl Worker {
    /// Starts a process for a mount.
    ///
    /// # Errors
    /// Why not, in words for people. No process is left then.
    pub(crate) fn start(program: &Path) -> Result<Starting, String> {
        let (command, socket) = start::command(program, ARGUMENT).map_err(|error| format!("{error:#}"))?;
        let mut command = tokio::process::Command::from(command);
        let child = command.spawn().map_err(|error| format!("cannot start the mount's process: {error}"))?;
        // The worker's end of the socket is in there.
        drop(command);
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or("the mount's process has no pid")?;
        let handle = open_handle(pid).map_err(|error| format!("cannot watch the mount's process: {error}"))?;
        let guard = KillOnDrop(Some(Arc::clone(&handle)));
        let started = started(pid).ok_or("the mount's process has ended")?;
        Ok(Starting { child, socket, record: WorkerRecord { pid, started }, handle, guard })
    }

    /// Finds the worker of an earlier daemon; `None` if it is not alive.
    pub(crate) fn adopt(record: WorkerRecord) -> Option<Self> {
        let handle = open_handle(record.pid).ok()?;
        // Only now: the handle is of the process that has this pid, whoever that is.
        if started(record.pid) != Some(record.started) {
            return None;
        }
        let (tell, ended) = watch::channel(None);
        tokio::spawn(watch_handle(Arc::clone(&handle), tell));
        Some(Self { record, handle, ended })
    }

    pub(crate) fn record(&self) -> WorkerRecord {
        self.record
    }

    fn socket(&self) -> Result<PathBuf, String> {
        let pid = u32::try_from(self.record.pid).map_err(|error| error.to_string())?;
        registry::socket_of(pid).map_err(|error| format!("{error:#}"))
    }

    /// What keeps its mount alive without it. One that does not serve yet is waited for.
    ///
    /// # Errors
    /// When it does not hand that over.
    pub(crate) async fn keep(&self) -> Result<Kept, String> {
        let begun = Instant::now();
        loop {
            let socket = self.socket()?;
            let asked = tokio::task::spawn_blocking(move || control::keep(&socket, KEEP_TIMEOUT)).await;
            match asked.map_err(|error| error.to_string())? {
                Err(error)
                    if is_not_there(&error)
                        && begun.elapsed() < KEEP_TIMEOUT
                        && self.ended_within(KEEP_PAUSE).await.is_none() => {}
                kept => return kept.map_err(|error| format!("{error:#}")),
            }
        }
    }

    /// Asks it.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub(crate) async fn ask(&self, ask: Ask, timeout: Duration) -> Result<Answer, String> {
        let socket = self.socket()?;
        let asked = tokio::task::spawn_blocking(move || control::ask(&socket, ask, timeout));
        let answer = tokio::select! {
            answer = asked => answer.map_err(|error| error.to_string())?,
            reason = self.ended() => return Err(format!("the mount's process ended ({reason})")),
        };
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if control::is_cut(&error) {
            // Its sockets are closed before anybody is told that it has ended; whoever asks wants to know that.
            self.ended_within(CUT_TIMEOUT).await;
        }
        Err(if control::is_late(&error) { format!("no answer within {timeout:?}") } else { format!("{error:#}") })
    }

    /// Waits until it has ended, and says how; `None` after `timeout`.
    pub(crate) async fn ended_within(&self, timeout: Duration) -> Option<String> {
        tokio::time::timeout(timeout, self.ended()).await.ok()
    }

    /// Waits until it has ended, and says how.
    pub(crate) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let reason = ended.wait_for(Option::is_some).await;
        text_of(reason)
    }

    /// Lets it store what it can and keep the rest aside, then ends it for sure.
    pub(crate) async fn end(&self, timeout: Duration) {
        if self.signal(Signal::TERM).is_ok() && self.ended_within(timeout).await.is_some() {
            return;
        }
        tracing::warn!(pid = self.record.pid, "a mount's process does not end and is killed");
        // One that has ended meanwhile cannot be killed.
        let _ = self.signal(Signal::KILL);
        if self.ended_within(KILL_TIMEOUT).await.is_none() {
            tracing::error!(pid = self.record.pid, "a mount's process cannot be killed");
        }
    }

    fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        pidfd_send_signal(self.handle.as_fd(), signal)
    }
}

/// Whether nobody listens at a socket.
fn is_not_there(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
}

fn text_of(reason: Result<watch::Ref<'_, Option<String>>, watch::error::RecvError>) -> String {
    reason.ok().and_then(|reason| reason.clone()).unwrap_or_else(|| "nobody watched it".to_owned())
}

fn open_handle(pid: i32) -> io::Result<Arc<OwnedFd>> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(Arc::new(pidfd_open(pid, PidfdFlags::NONBLOCK)?))
}

/// When a process started, in clock ticks since the machine did; `None` if it is none or a zombie.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also spaces and brackets.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    if matches!(fields.first(), Some(&("Z" | "X"))) {
        return None;
    }
    // Field 22 of the whole line; the state is field 3.
    fields.get(19)?.parse().ok()
}

fn end_of(status: io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

async fn reap(mut child: Child, tell: watch::Sender<Option<String>>) {
    let reason = end_of(child.wait().await);
    // Nobody may be interested any more.
    let _ = tell.send(Some(reason));
}

/// Watches a process that is no child of ours.
#[expect(deprecated, reason = "the descriptor is owned and stays open; what replaces this function is unsafe")]
async fn watch_handle(handle: Arc<OwnedFd>, tell: watch::Sender<Option<String>>) {
    let reason = match AsyncFd::with_interest(handle, Interest::READABLE) {
        Ok(waiting) => match waiting.readable().await {
            Ok(_) => "it ended".to_owned(),
            Err(error) => format!("it cannot be watched: {error}"),
        },
        Err(error) => format!("it cannot be watched: {error}"),
    };
    let _ = tell.send(Some(reason));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_known_again_and_its_end_is_seen() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let record = WorkerRecord { pid, started: started(pid).unwrap() };
        // Another process of the same pid is not taken for it.
        assert!(Worker::adopt(WorkerRecord { started: record.started + 1, ..record }).is_none());
        let worker = Worker::adopt(record).unwrap();
        assert!(worker.ended_within(Duration::from_millis(20)).await.is_none());
        worker.signal(Signal::KILL).unwrap();
        assert!(worker.ended_within(Duration::from_secs(10)).await.is_some());
        assert!(Worker::adopt(record).is_none());
        child.wait().unwrap();
        assert!(Worker::adopt(record).is_none());
    }
}
