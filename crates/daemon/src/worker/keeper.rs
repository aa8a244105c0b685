//! Keeping a mount alive when its process is killed.
//!
//! The kernel keeps a FUSE file system as long as somebody holds its device, and its requests wait. Whoever holds the
//! [`Kept`] of a mount starts another process on it. For the mounts of sandboxes that is the daemon; for `sandpail mount` it is
//! a small process of its own, which has no thread, no engine and no network.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sandpail_fs::engine::{Engine, Left};
use sandpail_fs::ledger::State;

use super::start::{self, Given};
use super::{ARGUMENT as WORKER, FAILED, Plan, READY, control, hand_over, registry, report, secrecy};

/// The first argument of the process that keeps a mount of the host.
pub const ARGUMENT: &str = "mount-keeper";

/// How long a worker may take to hand over what keeps its mount.
pub const KEEP_TIMEOUT: Duration = Duration::from_secs(10);
/// A worker that lives shorter than this died of the mount itself, perhaps.
const LIFE_MIN: Duration = Duration::from_secs(1);
/// So many such in a row are enough.
const SHORT_LIVES_MAX: u32 = 8;

/// What keeps a mount alive without its process.
#[derive(Debug)]
pub struct Kept {
    /// What the next process is told, keys included.
    pub plan: Plan,
    device: OwnedFd,
    left: Left,
}

impl Kept {
    pub(super) fn new(plan: Plan, descriptors: Vec<OwnedFd>) -> Option<Self> {
        let [device, ledger, staging] = <[OwnedFd; 3]>::try_from(descriptors).ok()?;
        Some(Self { plan, device, left: Left { ledger, staging } })
    }

    /// What a worker hands over; `None` if its plan does not say so.
    pub(super) fn of(plan: &Plan, device: &OwnedFd, engine: &Engine) -> anyhow::Result<Option<Self>> {
        let Some(left) = engine.share()? else { return Ok(None) };
        Ok(Some(Self { plan: plan.clone(), device: device.try_clone()?, left }))
    }

    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.device.as_fd(), self.left.ledger.as_fd(), self.left.staging.as_fd()]
    }

    /// Whether another process shall take the mount up, now that its own is gone: it was not ended on purpose, and is not
    /// unmounted.
    pub fn wants_another(&self) -> bool {
        let is_wanted = || -> io::Result<bool> {
            Ok(State::of(&self.left.ledger)? == State::Whole && sandpail_fuse::is_alive(&self.device)?)
        };
        is_wanted().unwrap_or_else(|error| {
            tracing::error!(%error, "a mount cannot be taken up");
            false
        })
    }
}

/// Says when a mount whose processes die again and again is given up.
#[derive(Debug)]
pub struct Lives {
    since: Instant,
    short: u32,
}

impl Lives {
    /// A process has begun.
    pub fn begin() -> Self {
        Self { since: Instant::now(), short: 0 }
    }

    /// It has ended; whether another shall be tried.
    pub fn may_begin_again(&mut self) -> bool {
        self.short = if self.since.elapsed() < LIFE_MIN { self.short + 1 } else { 0 };
        self.since = Instant::now();
        self.short < SHORT_LIVES_MAX
    }
}

/// As a process of its own: takes the plan from the socket that is standard input, starts the worker, says what that says,
/// and stays until the mount is gone.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may listen any more, which must not end in a panic.
            let _ = writeln!(io::stdout(), "{FAILED}{}", report::in_one_line(&error).replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    secrecy::keep_memory_private().context("cannot keep the process's memory private")?;
    let (text, _) = hand_over::receive(rustix::stdio::stdin())?;
    let plan: Plan = serde_json::from_str(&text).context("the plan makes no sense")?;
    drop(text);
    rustix::process::setsid().context("cannot leave the terminal")?;
    let program = start::own_program()?;
    // A signal that asks for the end is the worker's to answer; it is in no group with this process.
    let signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])?;
    let current = std::sync::Arc::new(std::sync::Mutex::new(None));
    pass_on(signals, std::sync::Arc::clone(&current))?;
    let mut worker = Worker::start(&program, &plan, Given::Nothing)?;
    worker.tell(&current);
    let mut kept = match worker.keep() {
        Ok(kept) => kept,
        Err(error) => {
            worker.kill();
            return Err(error);
        }
    };
    println!("{READY}");
    io::stdout().flush().ok();
    let mut lives = Lives::begin();
    loop {
        let status = worker.child.wait()?;
        if status.success() || !kept.wants_another() {
            return Ok(());
        }
        loop {
            if !lives.may_begin_again() {
                bail!("the mount's processes die one after the other; it is given up");
            }
            match Worker::start(&program, &kept.plan, Given::Mount(&kept)) {
                Ok(next) => {
                    worker = next;
                    break;
                }
                Err(_) if !kept.wants_another() => return Ok(()),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        worker.tell(&current);
        // The descriptors stay the same; the worker itself has not got them from elsewhere.
        if let Ok(next) = worker.keep() {
            kept = next;
        }
    }
}

/// The process to which signals are passed on.
type Current = std::sync::Arc<std::sync::Mutex<Option<rustix::process::Pid>>>;

fn pass_on(mut signals: signal_hook::iterator::Signals, current: Current) -> anyhow::Result<()> {
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _signal in signals.forever() {
            let pid = *current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(pid) = pid {
                // It may have ended.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
    })?;
    Ok(())
}

struct Worker {
    child: Child,
}

impl Worker {
    /// Returns when it serves.
    fn start(program: &Path, plan: &Plan, given: Given<'_>) -> anyhow::Result<Self> {
        let (mut command, socket) = start::command(program, WORKER)?;
        let child = command.spawn().context("cannot start the mount's process")?;
        // The worker's end of the socket is in there.
        drop(command);
        let mut worker = Self { child };
        match start::hand_plan(&socket, plan, given).and_then(|()| worker.first_line()) {
            Ok(()) => Ok(worker),
            Err(error) => {
                worker.kill();
                Err(error)
            }
        }
    }

    fn first_line(&mut self) -> anyhow::Result<()> {
        let mut line = String::new();
        let output = self.child.stdout.take().context("no pipe")?;
        BufReader::new(output).read_line(&mut line)?;
        match line.trim_end() {
            READY => Ok(()),
            "" => bail!("the mount's process ended before the mount was there ({})", self.child.wait()?),
            line => bail!("{}", line.strip_prefix(FAILED).unwrap_or(line)),
        }
    }

    fn tell(&self, current: &Current) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        *current.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = pid;
    }

    fn keep(&self) -> anyhow::Result<Kept> {
        control::keep(&registry::socket_of(self.child.id())?, KEEP_TIMEOUT)
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
