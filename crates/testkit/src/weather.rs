//! A bucket behind a network that does everything a network does, by seed and in virtual time.
//!
//! ```
//! use sandpail_store::memory::MemoryStore;
//! use sandpail_testkit::weather::{Climate, Fate, Weather};
//!
//! let fate = Fate::new();
//! let weather = Weather::over(MemoryStore::new(), Climate { seed: 7, lost_answers: 0.1, ..Climate::default() }, fate);
//! weather.pause(); // e.g. while the test compares
//! ```
//!
//! Between the sending of a request and its effect, and between that and the answer, other requests can overtake it. When the
//! process that waits for it is said to be dead ([`Fate`]), what it sent happens at once or never.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use sandpail_store::memory::MemoryStore;
use sandpail_store::{
    Capabilities, Condition, CopySource, Download, ETag, ListPage, ListRequest, ListedPart, ObjectAttributes,
    ObjectInfo, ObjectKey, Part, PutBody, PutOutcome, Store, StoreError, StoreResult, UploadId, UploadInProgress,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::faults::Random;

/// How many old listings are kept.
const PAST_LEN: usize = 32;

/// How often what happens: probabilities from 0 to 1, per request.
#[derive(Clone, Debug, Default)]
pub struct Climate {
    /// Which sequence of faults.
    pub seed: u64,
    /// A request takes up to this long to arrive, and its answer as long again.
    pub latency_max: Duration,
    /// One takes up to `slow_max` instead.
    pub slow: f64,
    /// See `slow`.
    pub slow_max: Duration,
    /// It fails and nothing happened.
    pub refusals: f64,
    /// The store asks to slow down; nothing happened.
    pub throttles: f64,
    /// It fails and has happened.
    pub lost_answers: f64,
    /// It arrives twice.
    pub duplicates: f64,
    /// A download breaks off in the middle.
    pub truncations: f64,
    /// A storm begins, in which everything is refused.
    pub storms: f64,
    /// A storm is at most so long.
    pub storm_max: Duration,
    /// Lists are up to this old.
    pub stale_max: Duration,
    /// The store's clock jumps, to at most so many seconds before or after ours.
    pub skew_max_secs: u64,
}

/// When the process under test dies: after so many steps, which are changes of its disk and requests.
pub struct Fate {
    steps_left: AtomicU64,
    is_dead: AtomicBool,
    died: Notify,
    last_act: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl fmt::Debug for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fate")
            .field("steps_left", &self.steps_left)
            .field("is_dead", &self.is_dead)
            .finish_non_exhaustive()
    }
}

impl Fate {
    /// One that lives.
    pub fn new() -> Arc<Self> {
        let (steps_left, is_dead) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
        Arc::new(Self { steps_left, is_dead, died: Notify::new(), last_act: Mutex::default() })
    }

    /// It dies after `steps` more; `last_act` is done at that moment, before anything else can happen.
    pub fn die_after(&self, steps: u64, last_act: impl FnOnce() + Send + 'static) {
        *lock(&self.last_act) = Some(Box::new(last_act));
        self.steps_left.store(steps, Ordering::SeqCst);
    }

    /// It does not die of age any more.
    pub fn spare(&self) {
        self.steps_left.store(u64::MAX, Ordering::SeqCst);
    }

    /// A step is about to be done. Says whether it is.
    pub fn step(&self) -> bool {
        if self.is_dead() {
            return false;
        }
        if self.steps_left.load(Ordering::SeqCst) == u64::MAX {
            return true;
        }
        if self.steps_left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.is_dead.store(true, Ordering::SeqCst);
            if let Some(act) = lock(&self.last_act).take() {
                act();
            }
            self.died.notify_one();
            return false;
        }
        true
    }

    /// Whether it is dead.
    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::SeqCst)
    }

    /// Returns when it is.
    pub async fn death(&self) {
        if !self.is_dead() {
            self.died.notified().await;
        }
    }
}

/// What became of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub requests: u64,
    /// That failed without effect.
    pub refused: u64,
    /// That had an effect and failed.
    pub lost: u64,
    /// That came twice.
    pub doubled: u64,
    /// Lists that were old.
    pub stale: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.refused += other.refused;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.stale += other.stale;
    }
}

type Landing = Box<dyn FnOnce() + Send>;

/// A [`MemoryStore`] far away.
pub struct Weather {
    bucket: MemoryStore,
    climate: Climate,
    fate: Arc<Fate>,
    random: Mutex<Random>,
    is_paused: AtomicBool,
    storm_until: Mutex<Option<Instant>>,
    past: Mutex<Vec<(Instant, MemoryStore)>>,
    next: AtomicU64,
    under_way: Mutex<BTreeMap<u64, Landing>>,
    tally: Mutex<Tally>,
    /// Every request is printed.
    tells: bool,
}

impl fmt::Debug for Weather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weather").field("climate", &self.climate).finish_non_exhaustive()
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What happens to one request.
struct Trip {
    there: Duration,
    back: Duration,
    refusal: Option<StoreError>,
    is_doubled: bool,
    answers_second: bool,
    is_lost: bool,
}

/// Takes itself off the list when a request is over.
struct UnderWay<'a> {
    weather: &'a Weather,
    number: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        // The dead take nothing off: what they sent is for [`Weather::land`].
        if !self.weather.fate.is_dead() {
            lock(&self.weather.under_way).remove(&self.number);
        }
    }
}

impl Weather {
    /// Puts `climate` before `bucket`, for a process with this fate.
    pub fn over(bucket: MemoryStore, climate: Climate, fate: Arc<Fate>) -> Arc<Self> {
        Arc::new(Self {
            random: Mutex::new(Random::new(climate.seed)),
            bucket,
            climate,
            fate,
            is_paused: AtomicBool::new(false),
            storm_until: Mutex::default(),
            past: Mutex::default(),
            next: AtomicU64::new(0),
            under_way: Mutex::default(),
            tally: Mutex::default(),
            tells: std::env::var_os("SANDPAIL_TRACE").is_some(),
        })
    }

    /// Good weather until [`Weather::resume`]; lists stay old.
    pub fn pause(&self) {
        self.is_paused.store(true, Ordering::SeqCst);
    }

    /// Goes on by the climate.
    pub fn resume(&self) {
        self.is_paused.store(false, Ordering::SeqCst);
    }

    /// What happened so far.
    pub fn tally(&self) -> Tally {
        *lock(&self.tally)
    }

    /// The process is dead: what it had sent happens now, each with this probability, in any order.
    pub fn land(&self, probability: f64) {
        let mut left: Vec<Landing> = std::mem::take(&mut *lock(&self.under_way)).into_values().collect();
        while !left.is_empty() {
            let at = lock(&self.random).below(left.len() as u64);
            let landing = left.swap_remove(usize::try_from(at).unwrap_or_default());
            if lock(&self.random).chance(probability) {
                landing();
            }
        }
    }

    fn is_stormy(&self, random: &mut Random) -> bool {
        let now = Instant::now();
        let mut until = lock(&self.storm_until);
        if until.is_none_or(|until| until <= now) && random.chance(self.climate.storms) {
            *until = Some(now + Duration::from_micros(random.below(micros(self.climate.storm_max).max(1))));
        }
        until.is_some_and(|until| until > now)
    }

    fn trip(&self, operation: &str) -> Trip {
        let climate = &self.climate;
        let mut random = lock(&self.random);
        let mut way = || {
            let max = if random.chance(climate.slow) { climate.slow_max } else { climate.latency_max };
            Duration::from_micros(random.below(micros(max) + 1))
        };
        let (there, back) = (way(), way());
        if self.is_paused.load(Ordering::SeqCst) {
            return Trip { there, back, refusal: None, is_doubled: false, answers_second: false, is_lost: false };
        }
        if climate.skew_max_secs > 0 && random.chance(0.02) {
            let secs = i64::try_from(random.below(2 * climate.skew_max_secs)).unwrap_or_default();
            self.bucket.set_clock_skew(secs - i64::try_from(climate.skew_max_secs).unwrap_or_default());
        }
        let refusal = if self.is_stormy(&mut random) {
            Some(StoreError::Server { message: format!("{operation}: a storm") })
        } else if random.chance(climate.refusals) {
            Some(StoreError::Server { message: format!("{operation}: injected fault, nothing happened") })
        } else if random.chance(climate.throttles) {
            Some(StoreError::Throttled { message: format!("{operation}: injected fault") })
        } else {
            None
        };
        let (is_doubled, answers_second) = (random.chance(climate.duplicates), random.chance(0.5));
        Trip { there, back, refusal, is_doubled, answers_second, is_lost: random.chance(climate.lost_answers) }
    }

    /// Sends a request; `apply` is its effect.
    async fn send<T: Send + 'static>(
        &self,
        operation: String,
        apply: impl Fn(&MemoryStore) -> StoreResult<T> + Send + Sync + 'static,
        changes: bool,
    ) -> StoreResult<T> {
        self.live().await;
        let trip = self.trip(&operation);
        lock(&self.tally).requests += 1;
        let apply = Arc::new(apply);
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let under_way = UnderWay { weather: self, number };
        if changes {
            let (apply, bucket) = (Arc::clone(&apply), self.bucket.clone());
            let what = format!("{operation}, by the dead");
            let tells = self.tells;
            let land = move || {
                let result = apply(&bucket);
                tell(tells, &what, result.as_ref().err());
            };
            lock(&self.under_way).insert(number, Box::new(land));
        }
        tokio::time::sleep(trip.there).await;
        self.live().await;
        if let Some(refusal) = trip.refusal {
            lock(&self.tally).refused += 1;
            return Err(refusal);
        }
        drop(under_way);
        let mut result = apply(&self.bucket);
        self.tell(&operation, result.as_ref().err());
        if changes && trip.is_doubled {
            lock(&self.tally).doubled += 1;
            let second = apply(&self.bucket);
            self.tell(&operation, second.as_ref().err());
            if trip.answers_second {
                result = second;
            }
        }
        if changes {
            self.remember();
        }
        self.live().await;
        tokio::time::sleep(trip.back).await;
        if trip.is_lost {
            lock(&self.tally).lost += 1;
            let message = format!("{operation}: injected fault, the answer was lost");
            return Err(StoreError::Unreachable { endpoint: "the bucket far away".into(), message });
        }
        result
    }

    fn tell(&self, operation: &str, error: Option<&StoreError>) {
        tell(self.tells, operation, error);
    }

    /// The dead hear nothing more.
    async fn live(&self) {
        if !self.fate.step() {
            std::future::pending::<()>().await;
        }
    }

    fn remember(&self) {
        if !self.climate.stale_max.is_zero() {
            let mut past = lock(&self.past);
            past.push((Instant::now(), self.bucket.snapshot()));
            if past.len() > PAST_LEN {
                past.remove(0);
            }
        }
    }

    /// The bucket as some lists see it.
    fn seen(&self) -> MemoryStore {
        if self.climate.stale_max.is_zero() || lock(&self.random).chance(0.5) {
            return self.bucket.clone();
        }
        let age = Duration::from_micros(lock(&self.random).below(micros(self.climate.stale_max)));
        let past = lock(&self.past);
        let Some(at) = Instant::now().checked_sub(age) else { return self.bucket.clone() };
        let old = past.iter().rev().find(|(since, _)| *since <= at);
        match old {
            Some((_, old)) => {
                lock(&self.tally).stale += 1;
                old.snapshot()
            }
            None => self.bucket.clone(),
        }
    }
}

/// For who looks into one seed.
fn tell(tells: bool, operation: &str, error: Option<&StoreError>) {
    if tells {
        eprintln!("  store: {operation}: {}", error.map_or("done".to_owned(), ToString::to_string));
    }
}

/// This store never waits.
fn now<T>(answer: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
    answer.now_or_never().unwrap_or_else(|| Err(StoreError::Invalid { message: "the bucket in memory waits".into() }))
}

/// What a request carries when it is sent: the file that it is read from may change on the way.
fn sent(body: &PutBody) -> StoreResult<Bytes> {
    match body {
        PutBody::Chunks(chunks) => Ok(chunks.concat().into()),
        PutBody::File { file, range } => {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut bytes, range.start)
                .map_err(|source| StoreError::Io { what: "cannot read the upload's file".into(), source })?;
            Ok(bytes.into())
        }
    }
}

#[async_trait]
impl Store for Weather {
    fn capabilities(&self) -> &Capabilities {
        self.bucket.capabilities()
    }

    fn has_directories(&self) -> bool {
        self.bucket.has_directories()
    }

    fn describe(&self) -> String {
        self.bucket.describe()
    }

    async fn check_bucket(&self, prefix: &str) -> StoreResult<()> {
        let prefix = prefix.to_owned();
        self.send("check_bucket".to_owned(), move |bucket| now(bucket.check_bucket(&prefix)), false).await
    }

    async fn head(&self, key: &ObjectKey) -> StoreResult<ObjectInfo> {
        let key = key.clone();
        let what = format!("head {key}");
        self.send(what, move |bucket| now(bucket.head(&key)), false).await
    }

    async fn get(&self, key: &ObjectKey, range: Range<u64>, etag: Option<&ETag>) -> StoreResult<Download> {
        let (key, etag) = (key.clone(), etag.cloned());
        let what = format!("get {key}");
        let apply = move |bucket: &MemoryStore| now(bucket.get(&key, range.clone(), etag.as_ref()));
        let download = self.send(what, apply, false).await?;
        let breaks = !self.is_paused.load(Ordering::SeqCst) && lock(&self.random).chance(self.climate.truncations);
        if !breaks {
            return Ok(download);
        }
        let message = "get: injected fault, the body broke off".to_owned();
        let error = StoreError::Unreachable { endpoint: "the bucket far away".into(), message };
        let first = download.body.take(1).map(|piece| piece.map(|piece| piece.slice(..piece.len() / 2)));
        Ok(Download { info: download.info, body: Box::pin(first.chain(stream::once(async { Err(error) }))) })
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: PutBody,
        attributes: &ObjectAttributes,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        let body = sent(&body)?;
        let (key, attributes, condition) = (key.clone(), attributes.clone(), condition.clone());
        let what = format!("put {key} {} bytes if {condition:?}", body.len());
        let apply =
            move |bucket: &MemoryStore| now(bucket.put(&key, PutBody::from(body.clone()), &attributes, &condition));
        self.send(what, apply, true).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        target: &ObjectKey,
        attributes: Option<&ObjectAttributes>,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        let (source, target, attributes, condition) =
            (source.clone(), target.clone(), attributes.cloned(), condition.clone());
        let what = format!("copy {} to {target} if {condition:?}", source.key);
        let apply = move |bucket: &MemoryStore| now(bucket.copy(&source, &target, attributes.as_ref(), &condition));
        self.send(what, apply, true).await
    }

    async fn delete(&self, key: &ObjectKey, etag: Option<&ETag>) -> StoreResult<()> {
        let (key, etag) = (key.clone(), etag.cloned());
        let what = format!("delete {key}");
        self.send(what, move |bucket| now(bucket.delete(&key, etag.as_ref())), true).await
    }

    async fn delete_many(&self, keys: &[ObjectKey]) -> StoreResult<Vec<(ObjectKey, StoreError)>> {
        let keys = keys.to_vec();
        let what = format!("delete_many {keys:?}");
        self.send(what, move |bucket| now(bucket.delete_many(&keys)), true).await
    }

    async fn list(&self, request: &ListRequest) -> StoreResult<ListPage> {
        let (request, seen) = (request.clone(), self.seen());
        let what = format!("list {:?}", request.prefix);
        self.send(what, move |_| now(seen.list(&request)), false).await
    }

    async fn create_multipart(&self, key: &ObjectKey, attributes: &ObjectAttributes) -> StoreResult<UploadId> {
        let (key, attributes) = (key.clone(), attributes.clone());
        let what = format!("create_multipart {key}");
        self.send(what, move |bucket| now(bucket.create_multipart(&key, &attributes)), true).await
    }

    async fn upload_part(&self, key: &ObjectKey, id: &UploadId, number: u32, body: PutBody) -> StoreResult<Part> {
        let (key, id, body) = (key.clone(), id.clone(), sent(&body)?);
        let what = format!("upload_part {key} {number}");
        let apply = move |bucket: &MemoryStore| now(bucket.upload_part(&key, &id, number, PutBody::from(body.clone())));
        self.send(what, apply, true).await
    }

    async fn upload_part_copy(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        number: u32,
        source: &CopySource,
        range: Range<u64>,
    ) -> StoreResult<Part> {
        let (key, id, source) = (key.clone(), id.clone(), source.clone());
        let what = format!("upload_part_copy {key} {number}");
        let apply = move |bucket: &MemoryStore| now(bucket.upload_part_copy(&key, &id, number, &source, range.clone()));
        self.send(what, apply, true).await
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        parts: &[Part],
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        let (key, id, parts, condition) = (key.clone(), id.clone(), parts.to_vec(), condition.clone());
        let what = format!("complete_multipart {key} if {condition:?}");
        let apply = move |bucket: &MemoryStore| now(bucket.complete_multipart(&key, &id, &parts, &condition));
        self.send(what, apply, true).await
    }

    async fn abort_multipart(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<()> {
        let (key, id) = (key.clone(), id.clone());
        let what = format!("abort_multipart {key}");
        self.send(what, move |bucket| now(bucket.abort_multipart(&key, &id)), true).await
    }

    async fn list_multipart(&self, prefix: &str) -> StoreResult<Vec<UploadInProgress>> {
        let prefix = prefix.to_owned();
        let what = format!("list_multipart {prefix}");
        self.send(what, move |bucket| now(bucket.list_multipart(&prefix)), false).await
    }

    async fn list_parts(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<Vec<ListedPart>> {
        let (key, id) = (key.clone(), id.clone());
        let what = format!("list_parts {key}");
        self.send(what, move |bucket| now(bucket.list_parts(&key, &id)), false).await
    }
}
