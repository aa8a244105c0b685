//! Keeping a mount alive when its process is killed.
//!
//! The kernel keeps a FUSE file system as long as somebody holds its device, and its requests wait. Whoever holds the
//! [`Kept`] of a mount starts another process on it. For the mounts of sandboxes that is the daemon; for `sandpail mount` it is
//! a small process of its own, without engine and network.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ExitCode, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use sandpail_fs::engine::{Engine, Left};
use sandpail_fs::ledger::State;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::start::{self, Given};
use super::witness::Witness;
use super::{ARGUMENT as WORKER, FAILED, Place, Plan, READY, control, hand_over, host, registry, report, secrecy};

/// The first argument of the process that keeps a mount of the host.
pub const ARGUMENT: &str = "mount-keeper";

/// How long a worker may take to hand over what keeps its mount.
pub const KEEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one may take to take up a mount, for which programs wait. Usual is a fraction of a second; one that has to wait for
/// the last answers to the one before takes some seconds.
const TAKE_UP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a signal that asks for the end counts: a mount that was in use then stays.
const END_REMEMBERED: Duration = Duration::from_secs(60);
/// A worker that lives shorter than this died of the mount itself, perhaps: what it was asked is asked again at once.
const LIFE_MIN: Duration = Duration::from_millis(200);
/// So many such in a row are enough.
const SHORT_LIVES_MAX: u32 = 10;

const GIVEN_UP: &str = "the mount's processes die one after the other; it is given up";
/// Time between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What keeps a mount alive without its process.
#[derive(Debug)]
pub struct Kept {
    /// What the next process is told, keys included.
    pub plan: Plan,
    device: OwnedFd,
    left: Left,
    heirs: Mutex<Heirs>,
    /// Open as long as this is held: the worker knows by it whether somebody keeps the mount. In the worker: all of these.
    lines: Mutex<Vec<UnixStream>>,
}

/// Who has to end before the mount can be taken up, besides the process that had it.
#[derive(Debug)]
struct Heirs {
    /// Hears the last answers to that process.
    witness: Option<OwnedFd>,
    /// Where one that was given the mount says who hears the answers to itself, from then on instead. It may be killed before
    /// it can hand over anything else.
    next: Option<UnixStream>,
}

impl Heirs {
    fn hear(&mut self) {
        let Some(next) = self.next.take() else { return };
        match hand_over::take(&next, RecvFlags::DONTWAIT) {
            Ok(Some(witness)) => self.witness = Some(witness),
            // It had none yet, and has asked the store for nothing.
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "a process that died has not said who hears its last answers"),
        }
    }
}

impl Kept {
    pub(super) fn new(plan: Plan, descriptors: Vec<OwnedFd>, line: UnixStream) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        let (device, ledger, staging) = (descriptors.next()?, descriptors.next()?, descriptors.next()?);
        let witness = descriptors.next();
        let heirs = Mutex::new(Heirs { witness, next: None });
        Some(Self { plan, device, left: Left { ledger, staging }, heirs, lines: Mutex::new(vec![line]) })
    }

    /// It is handed over to whoever is at the other end of `line`.
    pub(super) fn add_holder(&self, line: UnixStream) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(is_open);
        lines.push(line);
    }

    /// Whether it was handed over to somebody, who may be gone by now.
    pub(super) fn was_held(&self) -> bool {
        !self.lines.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether somebody would start another process.
    pub(super) fn is_held(&self) -> bool {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().any(is_open)
    }

    /// What a worker hands over; `None` if its plan does not say so.
    pub(super) fn of(
        plan: &Plan,
        device: &OwnedFd,
        engine: &Engine,
        witness: Option<&Witness>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(left) = engine.share()? else { return Ok(None) };
        let witness = witness.map(|witness| witness.process().try_clone()).transpose()?;
        let heirs = Mutex::new(Heirs { witness, next: None });
        Ok(Some(Self { plan: plan.clone(), device: device.try_clone()?, left, heirs, lines: Mutex::default() }))
    }

    /// Sends it with `text` to another process.
    pub(super) fn send(&self, socket: &UnixStream, text: &[u8]) -> io::Result<()> {
        self.send_with(&self.heirs(), socket, text)
    }

    /// The same to one that shall take the mount up.
    pub(super) fn send_to_next(&self, socket: &UnixStream, text: &[u8]) -> io::Result<()> {
        let mut heirs = self.heirs();
        heirs.hear();
        self.send_with(&heirs, socket, text)?;
        heirs.next = Some(socket.try_clone()?);
        Ok(())
    }

    fn send_with(&self, heirs: &Heirs, socket: &UnixStream, text: &[u8]) -> io::Result<()> {
        let own = [&self.device, &self.left.ledger, &self.left.staging];
        let descriptors: Vec<_> = own.into_iter().chain(&heirs.witness).map(AsFd::as_fd).collect();
        hand_over::send(socket, text, &descriptors)
    }

    fn heirs(&self) -> MutexGuard<'_, Heirs> {
        self.heirs.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Whether the other side has not closed it. Nothing is ever sent.
fn is_open(line: &UnixStream) -> bool {
    let mut nothing = [0; 1];
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    !matches!(rustix::net::recv(line, &mut nothing, flags), Ok((0, _)))
}

/// Says when a mount whose processes die again and again is given up.
#[derive(Debug)]
pub struct Lives {
    /// When the present one began to serve.
    since: Option<Instant>,
    short: u32,
}

impl Lives {
    /// A process serves.
    pub fn begin() -> Self {
        Self { since: Some(Instant::now()), short: 0 }
    }

    /// The next one serves.
    pub fn begun_again(&mut self) {
        self.since = Some(Instant::now());
    }

    /// A process has ended, or did not even begin to serve; whether another shall be tried.
    pub fn may_begin_again(&mut self) -> bool {
        let was_long = self.since.take().is_some_and(|since| since.elapsed() >= LIFE_MIN);
        self.short = if was_long { 0 } else { self.short + 1 };
        self.short < SHORT_LIVES_MAX
    }
}

/// As a process of its own: takes the plan from the socket that is standard input, starts the worker, says what that says,
/// and stays until the mount is gone.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::tell_failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    secrecy::keep_memory_private().context("cannot keep the process's memory private")?;
    let (text, _) = hand_over::receive(rustix::stdio::stdin())?;
    let plan: Plan = serde_json::from_str(&text).context("the plan makes no sense")?;
    drop(text);
    // Away from the terminal and its signals.
    rustix::process::setsid().context("cannot leave the terminal")?;
    keep(&plan, || {
        // Not `println!`, which panics if nobody reads it any more.
        writeln!(io::stdout(), "{READY}")?;
        io::stdout().flush()
    })
}

/// Starts the worker of a mount of the host, says so through `ready`, and starts another one whenever it is killed. Returns
/// when the mount is gone.
///
/// # Errors
/// Why there is no mount, or that it was given up.
pub fn keep(plan: &Plan, ready: impl FnOnce() -> io::Result<()>) -> anyhow::Result<()> {
    let program = start::own_program()?;
    let signals = Signals::new([SIGTERM, SIGINT])?;
    let current = Arc::<Current>::default();
    pass_on(signals, Arc::clone(&current))?;
    let mut worker = Worker::start(&program, plan, Given::Nothing)?;
    current.is(&worker);
    let mut kept = match worker.keep() {
        Ok(kept) => kept,
        Err(error) => {
            worker.kill();
            // Nobody will answer there.
            if let Place::Host { mountpoint, .. } = &plan.place
                && host::sandpail_mount(mountpoint).is_some_and(|line| line.is_own())
                && let Err(error) = host::unmount(mountpoint, true)
            {
                worker.log(plan, &report::in_one_line(&error));
            }
            return Err(error);
        }
    };
    if ready().is_err() {
        // Whoever wanted the mount is gone, and cannot know that it is there.
        current.ask_to_end();
    }
    let mut lives = Lives::begin();
    loop {
        let status = worker.wait(&current)?;
        if status.success() || !kept.wants_another() {
            return Ok(());
        }
        loop {
            if !lives.may_begin_again() {
                worker.log(plan, GIVEN_UP);
                bail!(GIVEN_UP);
            }
            match Worker::start(&program, plan, Given::Mount(&kept)) {
                Ok(next) => {
                    worker = next;
                    lives.begun_again();
                    break;
                }
                Err(_) if !kept.wants_another() => return Ok(()),
                Err(error) => {
                    worker.log(plan, &format!("cannot take up the mount: {}", report::in_one_line(&error)));
                    std::thread::sleep(RETRY_PAUSE);
                }
            }
        }
        current.is(&worker);
        match worker.keep() {
            Ok(next) => kept = next,
            // It has died meanwhile; what is held is the same.
            Err(error) => worker.log(plan, &report::in_one_line(&error)),
        }
    }
}

/// The process to which signals are passed on.
#[derive(Default)]
struct Current {
    state: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    pid: Option<Pid>,
    /// When a signal has asked for the end. A process that was killed just then has not done it, and the next one is told.
    to_end: Option<Instant>,
}

impl Current {
    fn state(&self) -> MutexGuard<'_, Asked> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process serves from now on.
    fn is(&self, worker: &Worker) {
        let mut state = self.state();
        state.pid = worker.pid();
        state.pass_on();
    }

    /// None serves, and nobody else may get signals if its number is used again.
    fn is_none(&self) {
        self.state().pid = None;
    }

    fn ask_to_end(&self) {
        let mut state = self.state();
        state.to_end = Some(Instant::now());
        state.pass_on();
    }
}

impl Asked {
    fn pass_on(&self) {
        let is_asked = self.to_end.is_some_and(|asked| asked.elapsed() < END_REMEMBERED);
        if let Some(pid) = self.pid.filter(|_| is_asked) {
            // It may have ended.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// A signal that asks for the end is the worker's to answer, which is in no group with this process.
fn pass_on(mut signals: Signals, current: Arc<Current>) -> anyhow::Result<()> {
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _signal in signals.forever() {
            current.ask_to_end();
        }
    })?;
    Ok(())
}

struct Worker {
    child: Child,
}

/// Seconds since 1970: this process has no other use for a calendar.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Worker {
    /// Returns when it serves.
    fn start(program: &Path, plan: &Plan, given: Given<'_>) -> anyhow::Result<Self> {
        let (mut command, socket) = start::command(program, WORKER)?;
        let child = command.spawn().context("cannot start the mount's process")?;
        // The worker's end of the socket is in there.
        drop(command);
        let mut worker = Self { child };
        let limit = matches!(given, Given::Mount(_)).then_some(TAKE_UP_TIMEOUT);
        match start::hand_plan(&socket, plan, given).and_then(|()| worker.first_line(limit)) {
            Ok(()) => Ok(worker),
            Err(error) => {
                worker.kill();
                Err(error)
            }
        }
    }

    fn first_line(&mut self, limit: Option<Duration>) -> anyhow::Result<()> {
        let mut line = String::new();
        let output = self.child.stdout.take().context("no pipe")?;
        if let Some(limit) = limit {
            let begun = Instant::now();
            loop {
                let left = Timespec::try_from(limit.saturating_sub(begun.elapsed()))?;
                match poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&left)) {
                    Ok(0) => bail!("the mount's process does not serve within {limit:?}"),
                    Ok(_) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        BufReader::new(output).read_line(&mut line)?;
        match line.trim_end() {
            READY => Ok(()),
            "" => bail!("the mount's process ended before the mount was there ({})", self.child.wait()?),
            line => bail!("{}", line.strip_prefix(FAILED).unwrap_or(line)),
        }
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// Waits for its end.
    fn wait(&mut self, current: &Current) -> io::Result<ExitStatus> {
        if let Some(pid) = self.pid() {
            // Its number is its own until it is waited for in earnest.
            while waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).err() == Some(Errno::INTR) {}
        }
        current.is_none();
        self.child.wait()
    }

    /// Says in its log what it cannot say itself any more.
    fn log(&self, plan: &Plan, text: &str) {
        let log = plan.log_file.clone().map_or_else(|| super::default_log(self.child.id()), Ok);
        let written = log.and_then(|log| {
            let mut log = std::fs::File::options().append(true).create(true).open(log)?;
            Ok(writeln!(log, "{} ERROR sandpail keeper: {text}", now())?)
        });
        // Nobody else would hear of this either.
        drop(written);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hears_the_last_answers_is_known_of_each_process_that_has_asked_for_any() {
        let (first, second) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        let number = |descriptor: &OwnedFd| rustix::fs::fstat(descriptor).unwrap().st_ino;
        let (first, second) = (OwnedFd::from(first.0), OwnedFd::from(second.0));
        let numbers = [number(&first), number(&second)];
        let mut heirs = Heirs { witness: Some(first), next: None };
        let mut heard = |tells: Option<&OwnedFd>| {
            let (here, there) = UnixStream::pair().unwrap();
            if let Some(witness) = tells {
                hand_over::pass(&there, witness.as_fd()).unwrap();
            }
            drop(there);
            heirs.next = Some(here);
            heirs.hear();
            heirs.witness.as_ref().map(number)
        };
        assert_eq!(heard(None), Some(numbers[0]), "killed before it had one");
        assert_eq!(heard(Some(&second)), Some(numbers[1]));
        assert_eq!(heard(None), Some(numbers[1]));
    }
}
