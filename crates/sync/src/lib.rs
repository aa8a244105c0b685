//! Keeps a directory and a prefix of a bucket equal, both ways (`localBucket`).
//!
//! About once a second both sides are looked at (`snapshot`), what is to be done is decided (`plan`, pure) and carried
//! over (`run`, `transfer`). What was equal is remembered in a state file, so that a sync that starts again understands
//! what was changed and removed meanwhile. Without one, nothing is removed: both sides are united.
//!
//! **Conflicts.** When a file changed on both sides, nothing is lost: the directory's version keeps the name and goes
//! up, the bucket's version is kept beside it on both sides as `name (conflict SECONDS)`, with the time at which it was
//! stored (in seconds since 1970). When one side removed what the other changed, the change wins. A file that stands
//! where the bucket has a directory gets such a second name too, with the time of its last write.
//!
//! **Emptiness.** A removal is carried over only if the whole side could be seen. A side that had more than three
//! entries and shows none is never carried over: once it was seen so in three rounds on end, and is the same directory
//! (by inode) or an answering bucket, or once it shows something again, it gets everything back from the other side,
//! as at a start.
//! Each single removal is checked once more: the object by HEAD, the file by a look.
//!
//! **Files that are being written** wait until they rest for 300 ms; one that never rests goes up after five rounds,
//! from a read during which it did not change. Files come down under a temporary name (`.sandpail-sync-…`, never
//! carried over, removed at the next start), and get their name when they are whole.
//!
//! **Read-only** syncs go from the bucket to the directory: files of the bucket are put back when they are changed or
//! removed in the directory; what is only in the directory is left alone.
//!
//! Permissions and times travel in the objects' metadata as s3fs writes them; set-id bits do not come down. Symbolic
//! links are objects with the target as body, and are never followed. FIFOs, sockets, devices, other file systems
//! mounted inside, files of owners that are not the sandbox's, names that are not UTF-8, paths longer than a key and keys
//! that are no paths are left alone and counted.
//!
//! **Bounds.** A side of more than 200,000 entries, or whose paths have more than 64 MiB, is not kept equal, and is told as
//! an error. The time between two looks is at least ten times what the last look at the directory took.
#![forbid(unsafe_code)]

mod plan;
mod root;
mod run;
mod snapshot;
#[cfg(test)]
mod tests;
mod transfer;

use std::hash::{BuildHasher, Hasher};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sandpail_spec::KeyPrefix;
use sandpail_store::{Store, StoreError};
use tokio::task::JoinHandle;

pub use root::open_directory;
use run::{EMPTY_ROUND_COUNT, Engine, Outcome, Pace};

/// The longest time between two looks while the bucket does not answer.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Looks at the directory take at most one part in so many of the time.
const LOOK_TIME_FACTOR: u32 = 10;
/// Rounds that a start or a stop makes at most until all is equal.
const LAST_ROUND_COUNT: u32 = EMPTY_ROUND_COUNT + 3;

/// What is kept equal, and how.
#[derive(Debug)]
pub struct SyncOptions {
    /// The directory, opened by whoever knows where it is. Everything below it is untrusted: links are not followed.
    pub directory: OwnedFd,
    /// The bucket.
    pub store: Arc<dyn Store>,
    /// The part of the bucket.
    pub prefix: KeyPrefix,
    /// Changes go from the bucket to the directory only.
    pub read_only: bool,
    /// Time between two looks; a second is usual.
    pub interval: Duration,
    /// Owner and group of what is made in the directory.
    pub owner: (u32, u32),
    /// Users and groups whose files are carried over; `owner` is among them. What belongs to others is left alone: who
    /// runs the sync may read it, but whoever else uses the directory may not.
    pub ids: std::ops::Range<u32>,
    /// Where the last snapshot is kept, so that a restarted sync knows what was equal.
    pub state_file: std::path::PathBuf,
}

/// What a sync has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Files that went up.
    pub uploaded: u64,
    /// Files that came down.
    pub downloaded: u64,
    /// Removed on either side.
    pub deleted: u64,
    /// Both sides had changed: the bucket's version is kept under a second name.
    pub conflicts: u64,
    /// Names and keys that cannot be on the other side, at the last look. They are left where they are.
    pub skipped: u64,
    /// What is not equal now, with the reasons; empty when all is well. The path is empty for a whole side.
    pub failed: Vec<(String, String)>,
}

/// Why a sync cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The bucket does not answer as it must.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory cannot be read or written.
    #[error("{what}: {source}")]
    Directory {
        /// What was tried.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// Both sides are not equal yet.
    #[error("{} could not be carried over{}", count(.failed), first(.failed))]
    Incomplete {
        /// Paths, with the reasons.
        failed: Vec<(String, String)>,
    },
}

fn count(failed: &[(String, String)]) -> String {
    if failed.len() == 1 { "one path".to_owned() } else { format!("{} paths", failed.len()) }
}

fn first(failed: &[(String, String)]) -> String {
    failed.first().map(|(path, reason)| format!(": {path:?}: {reason}")).unwrap_or_default()
}

/// A running sync. Dropping it stops it without a last look.
#[derive(Debug)]
pub struct Sync {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// Held for a round, so that rounds do not overlap. `None` after the last one.
    engine: tokio::sync::Mutex<Option<Engine>>,
    report: Mutex<SyncReport>,
    interval: Duration,
    /// What the last look at the directory took.
    look_time: Mutex<Duration>,
}

impl Sync {
    /// Brings both sides together once, then goes on in the background.
    ///
    /// # Errors
    /// When the first look fails; nothing runs then.
    pub async fn start(options: SyncOptions) -> Result<Self, SyncError> {
        let interval = options.interval.max(Duration::from_millis(10));
        let mut engine = Engine::new(options).await?;
        let mut outcome = engine.round(Pace { hurry: true }).await?;
        for _ in 1..LAST_ROUND_COUNT {
            // What is held back must rest; that is looked at in the background.
            if !outcome.is_failing && !outcome.is_unfinished {
                break;
            }
            outcome = engine.round(Pace { hurry: true }).await?;
        }
        let report = Mutex::new(engine.report.clone());
        let look_time = Mutex::new(engine.look_time);
        let shared = Arc::new(Shared { engine: tokio::sync::Mutex::new(Some(engine)), report, interval, look_time });
        let task = tokio::spawn(run_until_stopped(Arc::clone(&shared)));
        Ok(Self { shared, task })
    }

    /// What it has done.
    pub fn report(&self) -> SyncReport {
        self.shared.report().clone()
    }

    /// Looks now, and carries over what is ready. For those who do not want to wait for the next look.
    ///
    /// # Errors
    /// When a side could not be looked at. What failed for single paths is in the report.
    pub async fn sync_now(&self) -> Result<SyncReport, SyncError> {
        self.shared.round(Pace { hurry: true }).await.map(|_| self.report())
    }

    /// Carries everything over that was written so far, waiting for files that are being written to rest.
    ///
    /// # Errors
    /// What could not be carried over.
    pub async fn barrier(&self) -> Result<SyncReport, SyncError> {
        self.settle().await?;
        self.settled(&*self.shared.engine.lock().await)
    }

    /// Looks a last time, carries everything over, and stops. The files stay on both sides.
    ///
    /// # Errors
    /// What could not be carried over; the sync goes on then, so that nothing is lost and it can be tried again.
    pub async fn stop(&self) -> Result<SyncReport, SyncError> {
        self.settle().await?;
        let mut engine = self.shared.engine.lock().await;
        let report = self.settled(&engine)?;
        *engine = None;
        self.task.abort();
        Ok(report)
    }

    /// Looks until both sides are equal, or for as many rounds as it is worth.
    async fn settle(&self) -> Result<(), SyncError> {
        for round in 1.. {
            let outcome = self.shared.round(Pace { hurry: true }).await?;
            if outcome == Some(Outcome::default()) || outcome.is_none() || round == LAST_ROUND_COUNT {
                break;
            }
            // What moves, or was emptied a moment ago, may rest after a while.
            tokio::time::sleep(self.shared.interval).await;
        }
        Ok(())
    }

    /// Whether everything is carried over.
    fn settled(&self, engine: &Option<Engine>) -> Result<SyncReport, SyncError> {
        let report = self.report();
        let mut failed = report.failed.clone();
        failed.extend(engine.as_ref().map(Engine::waiting).unwrap_or_default());
        if failed.is_empty() { Ok(report) } else { Err(SyncError::Incomplete { failed }) }
    }
}

impl Drop for Sync {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn report(&self) -> std::sync::MutexGuard<'_, SyncReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_time(&self) -> std::sync::MutexGuard<'_, Duration> {
        self.look_time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time between two looks. Who fills the directory must not decide how busy we are.
    fn pause(&self) -> Duration {
        self.interval.max(self.look_time().saturating_mul(LOOK_TIME_FACTOR))
    }

    /// One round; `None` when the sync was stopped.
    async fn round(&self, pace: Pace) -> Result<Option<Outcome>, SyncError> {
        let mut guard = self.engine.lock().await;
        let Some(engine) = guard.as_mut() else { return Ok(None) };
        let result = engine.round(pace).await;
        self.report().clone_from(&engine.report);
        *self.look_time() = engine.look_time;
        result.map(Some)
    }
}

async fn run_until_stopped(shared: Arc<Shared>) {
    let mut failures = 0;
    loop {
        tokio::time::sleep(delay(shared.pause(), failures)).await;
        match shared.round(Pace::default()).await {
            Ok(None) => return,
            Ok(Some(outcome)) if !outcome.is_failing => failures = 0,
            Ok(Some(_)) => failures += 1,
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, failures, "a sync round failed");
            }
        }
    }
}

/// The time until the next look: longer with each failure, and not the same for all who wait for one bucket.
fn delay(interval: Duration, failures: u32) -> Duration {
    if failures == 0 {
        return interval;
    }
    let longest = interval.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX).max(interval);
    let random = std::hash::RandomState::new().build_hasher().finish();
    let half = longest / 2;
    half + Duration::from_nanos(random % u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1))
}
