//! Runs a table of tests: each on every server it is meant for, two at a time, with a time limit.
//!
//! Takes what `cargo test` passes on: filters, `--exact`, `--skip`, `--list`, `--test-threads`.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::mount::abort_mounts_of;
use crate::{Server, ServerKind, World, is_long, on_peer};

/// The servers that most tests run on.
const BOTH: &[ServerKind] = &[ServerKind::Embedded, ServerKind::SeaweedFs];

/// How long a test may take to end after its mounts were taken from it.
const ABORT_GRACE: Duration = Duration::from_secs(60);

/// Lines of a failure's cause that are shown again at the end.
const CAUSE_LINE_COUNT: usize = 20;
/// Tests that the end of the output names, with their times.
const SLOWEST_SHOWN: usize = 25;

type Body = fn(&World) -> Result<()>;

/// One test.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    name: &'static str,
    body: Body,
    kinds: &'static [ServerKind],
    short_minutes: u64,
    long_minutes: u64,
}

impl Test {
    /// A test that runs on the embedded server and on SeaweedFS, for five minutes at most.
    pub const fn new(name: &'static str, body: Body) -> Self {
        Self { name, body, kinds: BOTH, short_minutes: 5, long_minutes: 5 }
    }

    /// Chooses other servers.
    #[must_use]
    pub const fn on(mut self, kinds: &'static [ServerKind]) -> Self {
        self.kinds = kinds;
        self
    }

    /// Sets the limits of the short and of the long form, in minutes.
    #[must_use]
    pub const fn minutes(mut self, short: u64, long: u64) -> Self {
        self.short_minutes = short;
        self.long_minutes = long;
        self
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(60 * if is_long() { self.long_minutes } else { self.short_minutes })
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    number: u64,
    test: Test,
    kind: ServerKind,
}

impl Case {
    fn name(&self) -> String {
        format!("{}::{}", self.test.name, self.kind.name())
    }
}

#[derive(Debug, Default)]
struct Options {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    list: bool,
    threads: usize,
}

impl Options {
    fn from_args() -> Self {
        let mut options = Self { threads: 2, ..Self::default() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let (name, mut value) = match arg.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (arg, None),
            };
            let mut value = || value.take().or_else(|| args.next()).unwrap_or_default();
            match name.as_str() {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--skip" => options.skips.push(value()),
                "--test-threads" => options.threads = value().parse().unwrap_or(2),
                "--format" | "--color" | "-Z" => drop(value()),
                _ if name.starts_with('-') => {}
                _ => options.filters.push(name),
            }
        }
        options
    }

    fn wants(&self, name: &str) -> bool {
        let matches = |filter: &String| if self.exact { name == filter } else { name.contains(filter) };
        (self.filters.is_empty() || self.filters.iter().any(matches)) && !self.skips.iter().any(matches)
    }
}

/// Runs the tests that the command line chooses.
pub fn main(tests: &[Test]) -> ExitCode {
    let options = Options::from_args();
    let cases = cases(tests, &options);
    if options.list {
        for case in &cases {
            println!("{}: test", case.name());
        }
        return ExitCode::SUCCESS;
    }
    if cases.is_empty() {
        println!("\nno end-to-end test is meant");
        return ExitCode::SUCCESS;
    }
    if !Path::new("/dev/fuse").exists() {
        println!("end-to-end tests need /dev/fuse, which this machine does not have");
        let tolerated = std::env::var_os("SANDPAIL_E2E_TOLERATE_NO_FUSE").is_some();
        return if tolerated { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match run(cases, options.threads.max(1)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("end-to-end tests cannot run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn cases(tests: &[Test], options: &Options) -> Vec<Case> {
    let chosen = std::env::var("SANDPAIL_E2E_SERVER").ok();
    let mut cases = Vec::new();
    for test in tests {
        let kinds: Vec<ServerKind> = match chosen.as_deref() {
            // A bucket directory needs no server, and can stand for any of them.
            Some("directory") => vec![ServerKind::Directory],
            Some(name) => test.kinds.iter().copied().filter(|kind| kind.name() == name).collect(),
            None if on_peer() => test.kinds.iter().copied().filter(|kind| *kind == ServerKind::SeaweedFs).collect(),
            None => test.kinds.to_vec(),
        };
        for kind in kinds {
            let case = Case { number: cases.len() as u64, test: *test, kind };
            if options.wants(&case.name()) {
                cases.push(case);
            }
        }
    }
    cases
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(cases: Vec<Case>, thread_count: usize) -> Result<bool> {
    let total = cases.len();
    let start = Instant::now();
    println!("\nrunning {total} end-to-end tests ({} form)", if is_long() { "long" } else { "short" });
    let seaweedfs = if cases.iter().any(|case| case.kind == ServerKind::SeaweedFs) {
        Some(Arc::new(Server::start(ServerKind::SeaweedFs)?))
    } else {
        None
    };
    let queue = Mutex::new(VecDeque::from(cases));
    let failed = Mutex::new(Vec::new());
    let times = Mutex::new(Vec::with_capacity(total));
    std::thread::scope(|scope| {
        for _ in 0..thread_count {
            scope.spawn(|| {
                loop {
                    let Some(case) = lock(&queue).pop_front() else { break };
                    let begun = Instant::now();
                    let result = run_guarded(case, seaweedfs.clone());
                    let took = begun.elapsed().as_secs_f64();
                    lock(&times).push((took, case.name()));
                    match result {
                        Ok(()) => println!("test {} ... ok ({took:.1} s)", case.name()),
                        Err(error) => {
                            println!("test {} ... FAILED ({took:.1} s)\n---- {error:#}\n----", case.name());
                            lock(&failed).push((case.name(), end_of(&error.root_cause().to_string())));
                        }
                    }
                }
            });
        }
    });
    drop(seaweedfs);
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = nothing_is_left() {
        println!("---- after all: {error:#}");
        failed.push(("nothing is left".to_owned(), error.to_string()));
    }
    println!("\n{} of {total} passed in {:.0} s", total.saturating_sub(failed.len()), start.elapsed().as_secs_f64());
    let mut times = times.into_inner().unwrap_or_else(PoisonError::into_inner);
    times.sort_by(|a, b| b.0.total_cmp(&a.0));
    let slowest: Vec<String> =
        times.iter().take(SLOWEST_SHOWN).map(|(took, name)| format!("{name} {took:.0} s")).collect();
    println!("the slowest: {}", slowest.join(", "));
    // With the cause once more: whoever keeps only the end of a long output sees why.
    for (name, cause) in &failed {
        println!("    FAILED {name}\n{cause}");
    }
    Ok(failed.is_empty())
}

/// Runs a test in a thread of its own; one that hangs loses its mounts, which wakes it up.
fn run_guarded(case: Case, seaweedfs: Option<Arc<Server>>) -> Result<()> {
    let (done, wait) = channel();
    std::thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| run_one(case, seaweedfs)));
        let _ = done.send(result.unwrap_or_else(|panic| Err(anyhow!("panicked: {}", text_of(&*panic)))));
    });
    match wait.recv_timeout(case.test.limit()) {
        Ok(result) => result,
        Err(RecvTimeoutError::Disconnected) => Err(anyhow!("the test's thread is gone")),
        Err(RecvTimeoutError::Timeout) => {
            abort_mounts_of(case.number);
            let told = match wait.recv_timeout(ABORT_GRACE) {
                Ok(Ok(())) => "it then ended well".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "it does not end at all".to_owned(),
            };
            Err(anyhow!("not done after {} s; its mounts were ended; {told}", case.test.limit().as_secs()))
        }
    }
}

fn run_one(case: Case, seaweedfs: Option<Arc<Server>>) -> Result<()> {
    let server = match seaweedfs.filter(|_| case.kind == ServerKind::SeaweedFs) {
        Some(shared) => shared,
        None => Arc::new(Server::start(case.kind)?),
    };
    let world = World::new(server, case.number)?;
    (case.test.body)(&world)
}

/// The last lines of a text, which for a script are what it said of its failure.
fn end_of(text: &str) -> String {
    let lines: Vec<_> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(CAUSE_LINE_COUNT)..].join("\n")
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (None, Some(text)) => (*text).to_owned(),
        (None, None) => "no message".to_owned(),
    }
}

/// No mount, process or directory of this run is left.
fn nothing_is_left() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let ours = format!("/sandpail-e2e-{}-", std::process::id());
    for process in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        ensure!(!command.contains(&ours), "a process is left: {} {command}", process.path().display());
    }
    let temp = std::env::temp_dir();
    for entry in std::fs::read_dir(&temp).with_context(|| temp.display().to_string())?.flatten() {
        let path = entry.path().display().to_string();
        if path.contains(&ours) {
            let mounted = mounts.contains(&path);
            anyhow::bail!("{path} is left{}", if mounted { ", with a mount in it" } else { "" });
        }
    }
    Ok(())
}
