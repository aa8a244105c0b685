//! Closing before the bucket has it: what is closed is on the local disk with its record, and goes up a little later.
//!
//! Only contents wait. Names are changed in the bucket at once, after what they depend on: a rename or a move of a directory
//! stores what is below first, a removal takes what waits along. So the bucket is never in an order that was not the
//! program's, and what waits is whole files, of which only the last version goes up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use tokio::sync::{Notify, Semaphore};

use super::{Engine, guard};
use crate::FsResult;
use crate::content::Content;

/// Files that are uploaded at the same time.
const UPLOADS_AT_ONCE: usize = 16;
/// How many times the delay a file waits that is closed again and again.
const DELAYS_MAX: u32 = 10;

/// How closing is done before the bucket has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteBack {
    /// How long a closed file waits for being written again.
    pub delay: Duration,
    /// While more bytes than this are staged, closing stores, as it does without this.
    pub bytes_max: u64,
    /// While something has waited longer than this, closing stores.
    pub age_max: Duration,
    /// While more files than this wait, closing stores. Each holds two descriptors of this process.
    pub files_max: usize,
}

impl Default for WriteBack {
    /// A second; 4 GiB; an hour; 4,096 files.
    fn default() -> Self {
        Self { delay: Duration::from_secs(1), bytes_max: 4 << 30, age_max: Duration::from_secs(3600), files_max: 4096 }
    }
}

/// Pauses between tries of one file.
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(2);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Closed files that are to be uploaded.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    files: Mutex<HashMap<u64, Closed>>,
    news: Notify,
}

/// When a file was closed since it was stored.
#[derive(Clone, Copy, Debug)]
struct Closed {
    first: Instant,
    last: Instant,
    /// When it is tried again, and how long is waited after that.
    retry: Option<(Instant, Duration)>,
    /// An upload has begun, or has its turn soon.
    is_under_way: bool,
}

impl Closed {
    fn new(now: Instant) -> Self {
        Self { first: now, last: now, retry: None, is_under_way: false }
    }

    fn due(&self, policy: &WriteBack) -> Instant {
        match self.retry {
            Some((at, _)) => at,
            // One that is written again and again goes up all the same.
            None => (self.last + policy.delay).min(self.first + policy.delay * DELAYS_MAX),
        }
    }
}

impl Engine {
    /// A descriptor with changes is closed: stores the file, or brings it to the disk for later.
    pub(super) async fn close_changed(&self, ino: u64, content: &Arc<Content>) -> FsResult<()> {
        let Some(policy) = self.write_back_of(ino) else { return self.store_file(ino).await };
        // Attributes alone have no record.
        let Some(dirty) = content.dirty().filter(|dirty| dirty.is_dirty() || content.is_uploading()) else {
            return self.store_file(ino).await;
        };
        let persisted = match self.describe(ino, &dirty) {
            Ok(()) => dirty.persist().await,
            Err(error) => Err(error),
        };
        if let Err(error) = &persisted {
            tracing::warn!(%error, "what is closed is stored at once");
        }
        if persisted.is_err() || !self.may_wait(&policy) {
            return self.store_file(ino).await;
        }
        self.waiting.add(ino);
        Ok(())
    }

    /// Whether there is room for one more file that waits.
    fn may_wait(&self, policy: &WriteBack) -> bool {
        let files = guard(&self.waiting.files);
        files.len() < policy.files_max
            && self.writing.staged_len() <= policy.bytes_max
            && files.values().all(|closed| closed.first.elapsed() <= policy.age_max)
    }

    /// Uploads what was closed, as long as the engine lives.
    pub fn write_back(self: &Arc<Self>) {
        let Some(policy) = self.options.write_back else { return };
        let weak = Arc::downgrade(self);
        let waiting = Arc::clone(&self.waiting);
        let slots = Arc::new(Semaphore::new(UPLOADS_AT_ONCE));
        self.runtime.spawn(async move {
            loop {
                let now = Instant::now();
                for (ino, closed) in waiting.take_due(&policy, now) {
                    // The semaphore is never closed.
                    let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                    let Some(engine) = weak.upgrade() else { return };
                    tokio::spawn(async move {
                        engine.store_waiting(ino, closed).await;
                        drop(slot);
                        engine.waiting.news.notify_one();
                    });
                }
                // Nothing holds the engine here, so that it can end.
                if weak.strong_count() == 0 {
                    return;
                }
                match waiting.next_due(&policy) {
                    Some(at) => {
                        let _news = tokio::time::timeout_at(at, waiting.news.notified()).await;
                    }
                    None => waiting.news.notified().await,
                }
            }
        });
    }

    /// Stores one file that has waited long enough.
    async fn store_waiting(&self, ino: u64, before: Closed) {
        let stored = self.store_file(ino).await;
        let is_wanted = self.tree().get(ino).is_some_and(|node| node.is_linked);
        {
            let mut files = guard(&self.waiting.files);
            let Some(closed) = files.get_mut(&ino) else { return };
            closed.is_under_way = false;
            match stored {
                Err(error) if is_wanted => {
                    let pause = before.retry.map_or(RETRY_PAUSE_MIN, |(_, pause)| (pause * 2).min(RETRY_PAUSE_MAX));
                    closed.retry = Some((Instant::now() + pause, pause));
                    // Once: a store may be away for long, and many files wait.
                    if before.retry.is_none() {
                        tracing::warn!(ino, %error, "closed, and not stored yet; it is on the disk and tried again");
                    }
                    return;
                }
                _ if closed.last == before.last => drop(files.remove(&ino)),
                // What was closed meanwhile waits anew.
                _ => *closed = Closed::new(closed.last),
            }
        }
        self.close_stored(ino);
    }
}

impl Waiting {
    /// A file was closed.
    pub(super) fn add(&self, ino: u64) {
        let now = Instant::now();
        guard(&self.files).entry(ino).or_insert_with(|| Closed::new(now)).last = now;
        self.news.notify_one();
    }

    /// A file was closed before, in another process. It goes up no sooner than `not_before`.
    pub(super) fn add_again(&self, ino: u64, not_before: Option<Instant>) {
        self.add(ino);
        if let Some(closed) = guard(&self.files).get_mut(&ino) {
            closed.retry = not_before.map(|at| (at, RETRY_PAUSE_MIN));
        }
    }

    pub(super) fn holds(&self, ino: u64) -> bool {
        guard(&self.files).contains_key(&ino)
    }

    /// The files whose time has come; they are under way now.
    fn take_due(&self, policy: &WriteBack, now: Instant) -> Vec<(u64, Closed)> {
        let mut files = guard(&self.files);
        let due = files.iter_mut().filter(|(_, closed)| !closed.is_under_way && closed.due(policy) <= now);
        let mut due: Vec<(u64, Closed)> = due
            .map(|(ino, closed)| {
                closed.is_under_way = true;
                (*ino, *closed)
            })
            .collect();
        due.sort_by_key(|(ino, closed)| (closed.first, *ino));
        due
    }

    fn next_due(&self, policy: &WriteBack) -> Option<Instant> {
        let files = guard(&self.files);
        files.values().filter(|closed| !closed.is_under_way).map(|closed| closed.due(policy)).min()
    }
}
