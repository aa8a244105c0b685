//! Rounds: look at both sides, decide, carry over, remember.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use sandpail_store::{ETag, ListRequest, StoreError};
use tokio::time::Instant;

use crate::plan::{Plan, Rules, Transfer, plan};
use crate::root::Root;
use crate::snapshot::{
    Base, BaseFile, BaseMap, Change, ENTRY_COUNT_MAX, Identity, LocalTree, PATH_BYTES_MAX, RemoteFile, RemoteTree,
    Stamp, load, millis, save,
};
use crate::transfer::{DIR_MODE, Met, Sides, TransferError, TransferResult};
use crate::{SyncError, SyncOptions, SyncReport};

/// Files are carried over so many at a time.
const CONCURRENCY: usize = 8;
/// Most paths that a report names.
const FAILED_COUNT_MAX: usize = 1000;
/// A file whose last write is younger is still being written.
const SETTLE: Duration = Duration::from_millis(300);
/// Rounds after which a file that never settles goes up from a consistent read.
const WAIT_ROUND_MAX: u32 = 5;
/// A side that had more entries and is empty now is not believed at once.
const FEW_ENTRIES: usize = 3;
/// Rounds in which a side must be seen empty before its emptiness is carried over.
pub(crate) const EMPTY_ROUND_COUNT: u32 = 3;
/// While much is carried over, the state is kept so often.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// A path that fails for a reason that stays is tried again after so long, at most.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);

/// What a round led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The store or the directory did not answer as it must: the next round waits longer.
    pub(crate) is_failing: bool,
    /// Something waits only for another round soon.
    pub(crate) is_unfinished: bool,
    /// Removals are held back until a side has been empty for some time.
    pub(crate) is_held: bool,
}

/// How a round goes about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// Nothing waits: neither files that are being written nor paths that failed before.
    pub(crate) hurry: bool,
}

/// Holds what a sync knows. One round at a time.
#[derive(Debug)]
pub(crate) struct Engine {
    sides: Arc<Sides>,
    state_file: PathBuf,
    identity: Identity,
    base: BaseMap,
    is_saved: bool,
    is_first: bool,
    settle: Duration,
    local_empty: Emptiness,
    remote_empty: Emptiness,
    /// Rounds that follow sooner say nothing more about whether a side stays empty.
    empty_gap: Duration,
    /// For how many rounds a file has been written.
    waiting: HashMap<String, u32>,
    retries: HashMap<String, Retry>,
    /// What the last look at the directory took.
    pub(crate) look_time: Duration,
    pub(crate) report: SyncReport,
}

#[derive(Debug)]
struct Retry {
    delay: Duration,
    not_before: Instant,
    reason: String,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.sides.root.end();
    }
}

/// For how long a side has been seen empty.
#[derive(Debug, Default)]
struct Emptiness {
    rounds: u32,
    last: Option<Instant>,
}

impl Emptiness {
    fn is_believed(&mut self, is_empty: bool, gap: Duration) -> bool {
        if !is_empty {
            *self = Self::default();
            return true;
        }
        if self.last.is_none_or(|last| last.elapsed() >= gap) {
            self.rounds += 1;
            self.last = Some(Instant::now());
        }
        self.rounds >= EMPTY_ROUND_COUNT
    }
}

/// One thing to do with one path.
enum Step {
    DeleteLocal(Stamp),
    DeleteRemote(ETag),
    /// With the object as it was listed.
    Carry(Transfer, Option<RemoteFile>),
}

/// What became of one step.
enum Done {
    Uploaded(BaseFile),
    Downloaded(BaseFile),
    Met(Met),
    Deleted,
}

impl Engine {
    pub(crate) async fn new(options: SyncOptions) -> Result<Self, SyncError> {
        let SyncOptions { directory, store, prefix, read_only, owner, ids, state_file, interval } = options;
        let bucket = store.describe();
        let prefix = prefix.as_str().to_owned();
        let (path, named) = (state_file.clone(), prefix.clone());
        let (root, identity, base) = blocking("read the sync state", move || {
            let root = Root::new(directory, owner, ids);
            root.check_own()?;
            let (device, inode, born) = root.identity()?;
            let identity = Identity { bucket, prefix: named, device, inode, born };
            let base = load(&path, &identity)?;
            Ok((root, identity, base))
        })
        .await?;
        Ok(Self {
            sides: Arc::new(Sides::new(Arc::new(root), store, prefix, read_only)),
            state_file,
            identity,
            base,
            is_saved: true,
            is_first: true,
            settle: SETTLE,
            local_empty: Emptiness::default(),
            remote_empty: Emptiness::default(),
            empty_gap: interval / 2,
            waiting: HashMap::new(),
            retries: HashMap::new(),
            look_time: Duration::ZERO,
            report: SyncReport::default(),
        })
    }

    /// For tests, which make round after round: how old a write must be, and the time between rounds that count.
    #[cfg(test)]
    pub(crate) fn set_times(&mut self, settle: Duration, empty_gap: Duration) {
        (self.settle, self.empty_gap) = (settle, empty_gap);
    }

    /// Brings both sides together as far as it goes now. What failed for single paths is in the report.
    ///
    /// # Errors
    /// When a side could not be looked at; nothing was done then.
    pub(crate) async fn round(&mut self, pace: Pace) -> Result<Outcome, SyncError> {
        let looked = self.look().await;
        let (local, remote) = match looked {
            Ok(seen) => seen,
            Err(error) => {
                self.report.failed = vec![(String::new(), error.to_string())];
                return Err(error);
            }
        };
        self.report.failed.clear();
        self.report.skipped = local.skipped + remote.skipped;
        let (local_deletions, remote_deletions) = self.believed(&local, &remote).await;
        let rules = Rules { read_only: self.sides.read_only, local_deletions, remote_deletions, hurry: pace.hurry };
        let mut plan = plan(&self.base, &local, &remote, rules);
        self.report.skipped += plan.skipped;
        for (path, reason) in &local.blocked {
            // What is left alone on purpose is only counted.
            if let Some(reason) = reason {
                self.fail(path, reason.clone());
            }
        }
        let is_unfinished = self.note_waiting(&mut plan, &local);
        let mut outcome = Outcome { is_unfinished, is_held: !plan.held.is_empty(), is_failing: false };
        if outcome.is_held {
            let reason = format!("a side lost all at once: {} removals are not carried over", plan.held.len());
            self.fail("", reason);
        }
        self.drop_unfit(&mut plan, pace);
        self.act(plan, &local, &remote, &mut outcome).await;
        self.is_first = false;
        if let Err(error) = self.save().await {
            self.fail("", error.to_string());
            outcome.is_failing = true;
        }
        Ok(outcome)
    }

    fn fail(&mut self, path: &str, reason: String) {
        // A guest may make any number of them.
        if self.report.failed.len() < FAILED_COUNT_MAX {
            self.report.failed.push((path.to_owned(), reason));
        }
    }

    async fn look(&mut self) -> Result<(LocalTree, RemoteTree), SyncError> {
        let remote = self.list();
        let root = Arc::clone(&self.sides.root);
        let settle = i64::try_from(self.settle.as_nanos()).unwrap_or(i64::MAX);
        let clean = self.is_first;
        let scan = blocking("look at the directory", move || {
            let begun = Instant::now();
            Ok((root.scan(settle, clean), begun.elapsed()))
        });
        let (remote, scanned) = futures_util::future::join(remote, scan).await;
        // Also one that failed has taken its time.
        let (local, scan_time) = scanned?;
        self.look_time = scan_time;
        let (mut remote, mut local) = (remote?, local.map_err(cannot("look at the directory"))?);
        let begun = Instant::now();
        self.drop_names(&mut local);
        self.compare_local(&mut local).await;
        self.look_time += begun.elapsed();
        self.compare_remote(&mut remote).await;
        Ok((local, remote))
    }

    async fn list(&self) -> Result<RemoteTree, SyncError> {
        let prefix = &self.sides.prefix;
        let mut tree = RemoteTree::default();
        let mut request = ListRequest { prefix: prefix.clone(), ..ListRequest::default() };
        let (mut count, mut path_bytes) = (0, 0);
        loop {
            let page = self.sides.store.list(&request).await?;
            count += page.objects.len();
            if count > ENTRY_COUNT_MAX {
                let message = format!("there are more than {ENTRY_COUNT_MAX} objects to keep equal");
                return Err(StoreError::Invalid { message }.into());
            }
            path_bytes += page.objects.iter().map(|object| object.key.len()).sum::<usize>();
            if path_bytes > PATH_BYTES_MAX {
                let message = format!("the keys of the objects to keep equal have more than {PATH_BYTES_MAX} bytes");
                return Err(StoreError::Invalid { message }.into());
            }
            for object in page.objects {
                match object.key.strip_prefix(prefix.as_str()) {
                    Some(key) => tree.add(key, object.etag, object.size, object.last_modified),
                    None => {
                        let message = format!("a listing of {prefix:?} shows {:?}", object.key);
                        return Err(StoreError::Protocol { message }.into());
                    }
                }
            }
            if page.next.is_none() {
                break;
            }
            // Half a listing must not look like removals, and one that goes in circles must end.
            if page.next == request.continuation {
                return Err(StoreError::Protocol { message: "a listing does not go on".into() }.into());
            }
            request.continuation = page.next;
        }
        tree.finish();
        Ok(tree)
    }

    /// Takes out what the bucket has no key for.
    fn drop_names(&self, local: &mut LocalTree) {
        let sides = &self.sides;
        let mut unfit: Vec<(String, String)> = Vec::new();
        for path in local.files.keys().chain(&local.dirs) {
            if let Err(reason) = sides.check_path(path) {
                unfit.push((path.clone(), reason));
            }
        }
        for (path, reason) in unfit {
            local.skipped += 1;
            local.blocked.insert(path, None);
            tracing::debug!(reason, "a name cannot be carried over");
        }
    }

    /// Finds out which files differ from the base: most by their stamps, the others by their content.
    async fn compare_local(&mut self, local: &mut LocalTree) {
        let mut touched = Vec::new();
        for (path, file) in &mut local.files {
            if let Some(Base::File(base)) = self.base.get(path) {
                file.change = base.local_change(&file.stamp);
                if file.change == Change::Touched {
                    touched.push(path.clone());
                }
            }
        }
        let reads = touched.into_iter().map(|path| {
            let sides = Arc::clone(&self.sides);
            // The bytes go at once; there may be many files.
            async move { (sides.read(&path).await.map(|content| (content.stamp, content.racy, content.hash)), path) }
        });
        let reads: Vec<_> = stream::iter(reads).buffer_unordered(CONCURRENCY).collect().await;
        for (read, path) in reads {
            let (Some(file), Some(Base::File(base))) = (local.files.get_mut(&path), self.base.get_mut(&path)) else {
                continue;
            };
            match read {
                Ok((stamp, racy, hash)) if stamp == file.stamp && hash == base.hash => {
                    file.change = Change::Same;
                    if (base.local, base.racy) != (stamp, racy) {
                        (base.local, base.racy) = (stamp, racy);
                        self.is_saved = false;
                    }
                }
                Ok((stamp, ..)) if stamp == file.stamp => file.change = Change::Changed,
                // It moves while we look.
                Ok(_) | Err(TransferError::Busy) => {
                    file.change = Change::Changed;
                    file.settled = false;
                }
                Err(error) => {
                    local.blocked.insert(path, Some(error.to_string()));
                }
            }
        }
    }

    /// Finds out which objects differ from the base.
    async fn compare_remote(&mut self, remote: &mut RemoteTree) {
        let mut touched = Vec::new();
        for (path, file) in &mut remote.files {
            if let Some(Base::File(base)) = self.base.get_mut(path) {
                file.change = base.remote_change(file);
                match file.change {
                    Change::Touched => touched.push(path.clone()),
                    Change::Same if base.modified != Some(file.modified) => {
                        base.modified = Some(file.modified);
                        self.is_saved = false;
                    }
                    _ => {}
                }
            }
        }
        let heads = touched.into_iter().map(|path| {
            let sides = Arc::clone(&self.sides);
            async move { (sides.head(&path).await, path) }
        });
        let heads: Vec<_> = stream::iter(heads).buffer_unordered(CONCURRENCY).collect().await;
        for (head, path) in heads {
            let (Some(file), Some(Base::File(base))) = (remote.files.get_mut(&path), self.base.get_mut(&path)) else {
                continue;
            };
            // If it cannot be asked now, the download will say so.
            file.change = Change::Changed;
            if let Ok(info) = head {
                file.etag = Some(info.etag.clone());
                let is_same_mode =
                    crate::transfer::permissions_of(&info).is_none_or(|mode| mode == base.local.mode & 0o777);
                if info.etag.as_str() == base.etag && is_same_mode {
                    file.change = Change::Same;
                    base.modified = Some(millis(info.last_modified));
                    self.is_saved = false;
                }
            }
        }
    }

    /// Which sides are believed to have removed what they do not show: the directory, the bucket.
    ///
    /// An emptied side must stay so for some rounds. One that was empty when the sync began (a new disk, a lost volume)
    /// gets everything from the other instead.
    async fn believed(&mut self, local: &LocalTree, remote: &RemoteTree) -> (bool, bool) {
        let is_local_empty = local.files.is_empty() && local.dirs.is_empty() && local.blocked.is_empty();
        let is_remote_empty = remote.files.is_empty() && remote.dirs.is_empty() && remote.hidden.is_empty();
        let had_more = self.base.len() > FEW_ENTRIES;
        if self.is_first && had_more && (is_local_empty || is_remote_empty) {
            tracing::info!("a side is empty at the start: it gets everything from the other");
            self.base.clear();
            self.is_saved = false;
            return (true, true);
        }
        let is_answering = !(is_remote_empty && had_more) || self.is_bucket_answering().await;
        let gap = self.empty_gap;
        let was_empty = self.local_empty.rounds > 0 || self.remote_empty.rounds > 0;
        let local = self.local_empty.is_believed(is_local_empty, gap) || !had_more;
        let remote = (self.remote_empty.is_believed(is_remote_empty && is_answering, gap) || !had_more) && is_answering;
        // Something in an emptied side does not make the removal of all the rest believable.
        let is_back = was_empty && !is_local_empty && !is_remote_empty;
        if had_more && (is_local_empty && local || is_remote_empty && remote || is_back) {
            // Whoever meant it removes the rest on the other side, too; whoever did not has lost nothing.
            tracing::warn!("a side lost all at once: it gets everything back from the other");
            self.base.clear();
            self.is_saved = false;
        }
        (local, remote)
    }

    async fn is_bucket_answering(&self) -> bool {
        let answer = self.sides.store.check_bucket(&self.sides.prefix).await;
        if let Err(error) = &answer {
            tracing::warn!(%error, "the bucket shows nothing and does not answer");
        }
        answer.is_ok()
    }

    /// Counts for how long files have been written; the ones that never stop go up from a consistent read.
    fn note_waiting(&mut self, plan: &mut Plan, local: &LocalTree) -> bool {
        let mut counts = HashMap::new();
        for path in std::mem::take(&mut plan.waiting) {
            let count = self.waiting.get(&path).copied().unwrap_or_default() + 1;
            match (self.base.get(&path), local.files.get(&path)) {
                // The condition lets it go up only if the bucket's version is the known one, or there is none.
                (base, Some(_)) if count > WAIT_ROUND_MAX => {
                    let over = match base {
                        Some(Base::File(base)) => Some(ETag::new(&base.etag)),
                        _ => None,
                    };
                    plan.transfers.insert(path, Transfer::Upload { over });
                }
                _ => {
                    counts.insert(path, count);
                }
            }
        }
        self.waiting = counts;
        !self.waiting.is_empty()
    }

    /// Takes out what failed a short while ago for a reason that stays.
    fn drop_unfit(&mut self, plan: &mut Plan, pace: Pace) {
        let planned: HashSet<&String> = plan
            .transfers
            .keys()
            .chain(plan.delete_remote.iter().map(|(path, _)| path))
            .chain(plan.delete_local.iter().map(|(path, _)| path))
            .collect();
        self.retries.retain(|path, _| planned.contains(path));
        if pace.hurry {
            return;
        }
        let now = Instant::now();
        let late: BTreeMap<String, String> = self
            .retries
            .iter()
            .filter(|(_, retry)| retry.not_before > now)
            .map(|(path, retry)| (path.clone(), retry.reason.clone()))
            .collect();
        plan.transfers.retain(|path, _| !late.contains_key(path));
        plan.delete_remote.retain(|(path, _)| !late.contains_key(path));
        plan.delete_local.retain(|(path, _)| !late.contains_key(path));
        for (path, reason) in late {
            self.fail(&path, reason);
        }
    }

    async fn act(&mut self, plan: Plan, local: &LocalTree, remote: &RemoteTree, outcome: &mut Outcome) {
        for path in &plan.forget {
            self.is_saved &= self.base.remove(path).is_none();
        }
        for path in &plan.evict {
            let secs = local.files.get(path).map_or(0, |file| file.stamp.mtime / 1_000_000_000);
            match self.sides.set_aside(path, secs).await {
                Ok(_) => {
                    self.report.conflicts += 1;
                    // Its second name goes up.
                    outcome.is_unfinished = true;
                    self.is_saved &= self.base.remove(path).is_none();
                }
                Err(error) => self.note_failure(path, &error, outcome),
            }
        }
        let steps = plan.delete_local.iter().map(|(path, stamp)| (path.clone(), Step::DeleteLocal(*stamp)));
        self.run(steps.collect(), outcome).await;
        self.directories(&plan, outcome).await;
        let steps = plan
            .transfers
            .iter()
            .map(|(path, transfer)| (path.clone(), Step::Carry(transfer.clone(), remote.files.get(path).cloned())));
        self.run(steps.collect(), outcome).await;
        for path in &plan.put_markers {
            match self.sides.put_marker(path).await {
                Ok(()) => self.remember_dir(path),
                Err(error) => self.note_failure(path, &error, outcome),
            }
        }
        self.announce_removals(&plan, outcome).await;
        let steps = plan.delete_remote.iter().map(|(path, etag)| (path.clone(), Step::DeleteRemote(etag.clone())));
        self.run(steps.collect(), outcome).await;
        for (path, marker) in &plan.delete_markers {
            match self.sides.delete_marker(path, marker).await {
                Ok(()) => {
                    self.is_saved &= self.base.remove(path).is_none();
                    self.report.deleted += 1;
                }
                Err(error) => self.note_failure(path, &error, outcome),
            }
        }
    }

    /// Notes which objects are about to be removed, durably: the answer may get lost.
    async fn announce_removals(&mut self, plan: &Plan, outcome: &mut Outcome) {
        for (path, _) in &plan.delete_remote {
            if let Some(Base::File(file)) = self.base.get_mut(path).filter(|base| matches!(base, Base::File(_))) {
                self.is_saved &= file.leaving;
                file.leaving = true;
            }
        }
        if let Err(error) = self.save().await {
            self.fail("", error.to_string());
            outcome.is_failing = true;
        }
    }

    async fn directories(&mut self, plan: &Plan, outcome: &mut Outcome) {
        for path in &plan.remove_dirs {
            let named = path.clone();
            match self.sides.blocking(move |root| root.remove_dir(&named)).await {
                Ok(()) => {
                    self.is_saved &= self.base.remove(path).is_none();
                    self.report.deleted += 1;
                }
                Err(error) => self.note_failure(path, &error, outcome),
            }
        }
        for path in &plan.make_dirs {
            let named = path.clone();
            match self.sides.blocking(move |root| root.make_dirs(&named, DIR_MODE)).await {
                Ok(()) => self.remember_dir(path),
                Err(error) => self.note_failure(path, &error, outcome),
            }
        }
        for path in plan.equal_dirs.iter().filter(|path| !plan.put_markers.contains(path)) {
            self.remember_dir(path);
        }
    }

    fn remember_dir(&mut self, path: &str) {
        if self.base.get(path) != Some(&Base::Dir) {
            self.base.insert(path.to_owned(), Base::Dir);
            self.is_saved = false;
        }
    }

    fn remember(&mut self, path: String, file: BaseFile) {
        self.base.insert(path, Base::File(file));
        self.is_saved = false;
    }

    async fn run(&mut self, steps: Vec<(String, Step)>, outcome: &mut Outcome) {
        let sides = Arc::clone(&self.sides);
        let steps = stream::iter(steps.into_iter().map(|(path, step)| carry(Arc::clone(&sides), path, step)));
        let mut steps = steps.buffer_unordered(CONCURRENCY);
        let mut saved = Instant::now();
        while let Some((path, result)) = steps.next().await {
            match result {
                Ok(done) => {
                    self.retries.remove(&path);
                    self.note(path, done);
                }
                Err(error) => self.note_failure(&path, &error, outcome),
            }
            if saved.elapsed() > SAVE_INTERVAL {
                if let Err(error) = self.save().await {
                    tracing::warn!(%error, "the sync state is not kept");
                }
                saved = Instant::now();
            }
        }
    }

    fn note(&mut self, path: String, done: Done) {
        match done {
            Done::Uploaded(file) => {
                self.report.uploaded += 1;
                self.remember(path, file);
            }
            Done::Downloaded(file) => {
                self.report.downloaded += 1;
                self.remember(path, file);
            }
            Done::Met(met) => {
                self.report.conflicts += u64::from(met.is_conflict);
                self.report.uploaded += u64::from(met.is_upload);
                for (path, file) in met.equal {
                    self.remember(path, file);
                }
            }
            Done::Deleted => {
                self.report.deleted += 1;
                self.base.remove(&path);
                self.is_saved = false;
            }
        }
    }

    fn note_failure(&mut self, path: &str, error: &TransferError, outcome: &mut Outcome) {
        self.fail(path, error.to_string());
        match error {
            TransferError::Busy => outcome.is_unfinished = true,
            TransferError::Store(error) if error.is_transient() => {
                outcome.is_failing = true;
                tracing::warn!(path, %error, "not carried over");
            }
            error => {
                tracing::warn!(path, %error, "not carried over");
                let last = self.retries.get(path).map_or(Duration::from_millis(500), |retry| retry.delay);
                let delay = (last * 2).min(RETRY_DELAY_MAX);
                let retry = Retry { delay, not_before: Instant::now() + delay, reason: error.to_string() };
                self.retries.insert(path.to_owned(), retry);
            }
        }
    }

    async fn save(&mut self) -> Result<(), SyncError> {
        if self.is_saved {
            return Ok(());
        }
        let (path, identity, base) = (self.state_file.clone(), self.identity.clone(), self.base.clone());
        blocking("keep the sync state", move || save(&path, &identity, &base)).await?;
        self.is_saved = true;
        Ok(())
    }

    /// What waits for another round although nothing failed.
    pub(crate) fn waiting(&self) -> Vec<(String, String)> {
        self.waiting.keys().map(|path| (path.clone(), "it is being written".to_owned())).collect()
    }
}

async fn carry(sides: Arc<Sides>, path: String, step: Step) -> (String, TransferResult<Done>) {
    let done = match step {
        Step::DeleteLocal(stamp) => sides.delete_local(&path, stamp).await.map(|()| Done::Deleted),
        Step::DeleteRemote(etag) => sides.delete_remote(&path, &etag).await.map(|()| Done::Deleted),
        Step::Carry(Transfer::Upload { over }, _) => sides.upload(&path, over.as_ref()).await.map(Done::Uploaded),
        Step::Carry(Transfer::Download { over }, Some(file)) => {
            sides.download(&path, &file, over).await.map(Done::Downloaded)
        }
        Step::Carry(Transfer::Meet { local }, Some(file)) => sides.meet(&path, &local, &file).await.map(Done::Met),
        // The plan names only objects that were listed.
        Step::Carry(..) => Err(TransferError::Busy),
    };
    (path, done)
}

async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, SyncError> {
    let result = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    result.map_err(cannot(what))
}

fn cannot(what: &str) -> impl FnOnce(std::io::Error) -> SyncError {
    move |source| SyncError::Directory { what: format!("cannot {what}"), source }
}
