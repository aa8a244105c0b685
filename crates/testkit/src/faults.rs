//! Stores that fail by seed, and stores that count.
//!
//! Both are handed out as a store to use and a handle to steer it by:
//!
//! ```
//! # use std::sync::Arc;
//! # use sandpail_store::{Store, memory::MemoryStore};
//! use sandpail_testkit::faults::{Counted, FaultPlan, Faults};
//!
//! let bucket: Arc<dyn Store> = Arc::new(MemoryStore::new());
//! let (store, faults) = Faults::new(bucket, FaultPlan { seed: 7, lost_answers: 0.1, ..FaultPlan::default() });
//! let (store, counted) = Counted::new(store);
//! faults.pause(); // e.g. while the test compares
//! assert_eq!(counted.take().operations.len(), 0);
//! # drop(store);
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use sandpail_store::{Download, Store, StoreError, StoreResult};

use crate::hook::{Hook, Hooked};

/// Numbers by seed: the same on every machine. (xorshift64*)
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds shall not begin alike, and zero would stay zero.
        let mut random = Self((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1);
        random.bits();
        random
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// True with a probability from 0 to 1.
    pub fn chance(&mut self, probability: f64) -> bool {
        // 53 bits: as many as an f64 holds exactly.
        #[allow(clippy::cast_precision_loss)]
        let unit = (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        unit < probability
    }

    /// One of `items`, which are not none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let index = self.below(items.len() as u64);
        &items[usize::try_from(index).unwrap_or_default()]
    }
}

/// How often what goes wrong. Probabilities from 0 to 1, per operation.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    /// Which sequence of faults.
    pub seed: u64,
    /// The operation fails and has not happened.
    pub refusals: f64,
    /// The store asks to slow down; the operation has not happened.
    pub throttles: f64,
    /// The operation fails and has happened: the answer was lost.
    pub lost_answers: f64,
    /// A download breaks off in the middle.
    pub truncations: f64,
    /// Operations take up to this much longer.
    pub delay_max: Duration,
}

/// Steers a store that fails by seed.
#[derive(Debug)]
pub struct Faults {
    plan: FaultPlan,
    random: Mutex<Random>,
    paused: AtomicBool,
    down: AtomicBool,
    injected: AtomicU64,
}

impl Faults {
    /// Puts faults before `store`.
    #[allow(clippy::new_ret_no_self)]
    pub fn new(store: Arc<dyn Store>, plan: FaultPlan) -> (Arc<dyn Store>, Arc<Self>) {
        let faults = Arc::new(Self {
            random: Mutex::new(Random::new(plan.seed)),
            plan,
            paused: AtomicBool::new(false),
            down: AtomicBool::new(false),
            injected: AtomicU64::new(0),
        });
        (Arc::new(Hooked { inner: store, hook: Arc::clone(&faults) }), faults)
    }

    /// Lets everything succeed until [`Faults::resume`].
    pub fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
    }

    /// Goes on with the plan.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }

    /// Lets everything fail, as if the store could not be reached, or ends that.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// How many faults there were.
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::SeqCst)
    }

    fn strikes(&self, probability: f64) -> bool {
        if self.paused.load(Ordering::SeqCst) {
            return false;
        }
        let strikes = probability > 0.0 && lock(&self.random).chance(probability);
        if strikes {
            self.injected.fetch_add(1, Ordering::SeqCst);
        }
        strikes
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unreachable(operation: &str, message: &str) -> StoreError {
    StoreError::Unreachable { endpoint: "the faulty store".into(), message: format!("{operation}: {message}") }
}

#[async_trait]
impl Hook for Faults {
    async fn before(&self, operation: &'static str) -> StoreResult<()> {
        let delay_max = u64::try_from(self.plan.delay_max.as_micros()).unwrap_or(u64::MAX);
        if delay_max > 0 && !self.paused.load(Ordering::SeqCst) {
            let delay = lock(&self.random).below(delay_max);
            tokio::time::sleep(Duration::from_micros(delay)).await;
        }
        // After the delay: what is on its way when the store goes down does not arrive.
        if self.down.load(Ordering::SeqCst) {
            self.injected.fetch_add(1, Ordering::SeqCst);
            return Err(unreachable(operation, "the store is down"));
        }
        if self.strikes(self.plan.refusals) {
            return Err(StoreError::Server { message: format!("{operation}: injected fault, nothing happened") });
        }
        if self.strikes(self.plan.throttles) {
            return Err(StoreError::Throttled { message: format!("{operation}: injected fault") });
        }
        Ok(())
    }

    async fn after(&self, operation: &'static str) -> StoreResult<()> {
        if self.strikes(self.plan.lost_answers) {
            return Err(unreachable(operation, "injected fault, the answer was lost"));
        }
        Ok(())
    }

    fn download(&self, download: Download) -> Download {
        if !self.strikes(self.plan.truncations) {
            return download;
        }
        // Half of the first piece comes, then the connection breaks.
        let first = download.body.take(1).map(|piece| piece.map(|piece| piece.slice(..piece.len() / 2)));
        let broken = stream::once(async { Err(unreachable("get", "injected fault, the body broke off")) });
        Download { info: download.info, body: Box::pin(first.chain(broken)) }
    }
}

/// What a store was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls by method of [`Store`].
    pub operations: BTreeMap<&'static str, u64>,
    /// Bytes given to `put` and `upload_part`.
    pub uploaded: u64,
    /// Bytes that downloads yielded.
    pub downloaded: u64,
}

impl Counts {
    /// Calls of all methods together.
    pub fn total(&self) -> u64 {
        self.operations.values().sum()
    }
}

/// Counts what a store is asked for.
#[derive(Debug, Default)]
pub struct Counted {
    counts: Arc<Mutex<Counts>>,
}

impl Counted {
    /// Counts what comes to `store`.
    #[allow(clippy::new_ret_no_self)]
    pub fn new(store: Arc<dyn Store>) -> (Arc<dyn Store>, Arc<Self>) {
        let counted = Arc::new(Self::default());
        (Arc::new(Hooked { inner: store, hook: Arc::clone(&counted) }), counted)
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }

    /// Returns the counts and begins anew.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut *lock(&self.counts))
    }
}

#[async_trait]
impl Hook for Counted {
    async fn before(&self, operation: &'static str) -> StoreResult<()> {
        *lock(&self.counts).operations.entry(operation).or_default() += 1;
        Ok(())
    }

    async fn after(&self, _: &'static str) -> StoreResult<()> {
        Ok(())
    }

    fn download(&self, download: Download) -> Download {
        let counts = Arc::clone(&self.counts);
        let count = move |piece: &StoreResult<bytes::Bytes>| {
            if let Ok(piece) = piece {
                lock(&counts).downloaded += piece.len() as u64;
            }
        };
        Download { info: download.info, body: Box::pin(download.body.inspect(count)) }
    }

    fn upload(&self, len: u64) {
        lock(&self.counts).uploaded += len;
    }
}

#[cfg(test)]
mod tests {
    use sandpail_store::memory::MemoryStore;
    use sandpail_store::{Condition, ObjectAttributes, ObjectKey, PutBody, collect};

    use super::*;

    async fn put(store: &dyn Store, number: u32) -> bool {
        let key = ObjectKey::new(format!("k{number}")).unwrap();
        let body = PutBody::from(bytes::Bytes::from_static(b"some bytes"));
        store.put(&key, body, &ObjectAttributes::default(), &Condition::Always).await.is_ok()
    }

    async fn outcomes(plan: FaultPlan) -> (Vec<bool>, Vec<bool>) {
        let bucket = MemoryStore::new();
        let (store, _) = Faults::new(Arc::new(bucket.clone()), plan);
        let (mut told, mut there) = (Vec::new(), Vec::new());
        for number in 0..200 {
            told.push(put(&*store, number).await);
            there.push(bucket.head(&ObjectKey::new(format!("k{number}")).unwrap()).await.is_ok());
        }
        (told, there)
    }

    #[tokio::test]
    async fn a_seed_is_a_sequence_of_faults() {
        let plan = FaultPlan { seed: 5, refusals: 0.2, ..FaultPlan::default() };
        let (told, there) = outcomes(plan.clone()).await;
        assert_eq!(told, there);
        let failed = told.iter().filter(|told| !**told).count();
        assert!((20..=60).contains(&failed), "{failed} of 200");
        assert_eq!(outcomes(plan.clone()).await.0, told);
        assert_ne!(outcomes(FaultPlan { seed: 6, ..plan }).await.0, told);
    }

    #[tokio::test]
    async fn a_lost_answer_hides_what_happened() {
        let (told, there) = outcomes(FaultPlan { seed: 1, lost_answers: 0.3, ..FaultPlan::default() }).await;
        assert!(there.iter().all(|there| *there));
        assert!(told.contains(&false) && told.contains(&true));
    }

    #[tokio::test]
    async fn a_body_breaks_off_with_an_error() {
        let (store, faults) =
            Faults::new(Arc::new(MemoryStore::new()), FaultPlan { truncations: 1.0, ..FaultPlan::default() });
        put(&*store, 1).await;
        let key = ObjectKey::new("k1").unwrap();
        collect(store.get(&key, 0..10, None).await.unwrap(), 100).await.unwrap_err();
        faults.pause();
        assert_eq!(collect(store.get(&key, 0..10, None).await.unwrap(), 100).await.unwrap(), "some bytes");
        faults.set_down(true);
        store.head(&key).await.unwrap_err();
        faults.set_down(false);
        store.head(&key).await.unwrap();
    }

    #[tokio::test]
    async fn calls_and_bytes_are_counted() {
        let (store, counted) = Counted::new(Arc::new(MemoryStore::new()));
        put(&*store, 1).await;
        put(&*store, 2).await;
        let key = ObjectKey::new("k1").unwrap();
        collect(store.get(&key, 2..5, None).await.unwrap(), 100).await.unwrap();
        let counts = counted.take();
        assert_eq!(counts.operations, BTreeMap::from([("get", 1), ("put", 2)]));
        assert_eq!((counts.uploaded, counts.downloaded, counts.total()), (20, 3, 3));
        assert_eq!(counted.counts(), Counts::default());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn wrapped_stores_keep_the_promises() {
        let (store, _) = Faults::new(Arc::new(MemoryStore::new()), FaultPlan::default());
        let (store, _) = Counted::new(store);
        sandpail_store::conformance::run(&*store, "").await;
    }
}
