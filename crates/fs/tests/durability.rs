//! Nobody is told that a file is stored before the bucket has acknowledged it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandpail_fs::FsError;
use sandpail_fs::engine::{Engine, EngineOptions, OnConflict, OpenMode, WriteBack};
use sandpail_store::memory::MemoryStore;
use sandpail_store::{Condition, ObjectAttributes, ObjectKey, Store, collect};
use sandpail_testkit::faults::{FaultPlan, Faults};

const ROOT: u64 = 1;
const BOTH: OpenMode = OpenMode { read: true, write: true, append: false, truncate: false };

struct World {
    engine: Arc<Engine>,
    bucket: MemoryStore,
    faults: Arc<Faults>,
    _staging: tempfile::TempDir,
}

impl World {
    /// What goes wrong goes wrong only after `resume`. By this seed the first operation takes more than 100 ms.
    fn new(refusals: f64) -> Self {
        Self::with(refusals, |_| {})
    }

    fn with(refusals: f64, change: impl FnOnce(&mut EngineOptions)) -> Self {
        let staging = tempfile::tempdir().unwrap();
        let bucket = MemoryStore::new();
        let plan = FaultPlan { seed: 3, refusals, delay_max: Duration::from_millis(800), ..FaultPlan::default() };
        let (store, faults) = Faults::new(Arc::new(bucket.clone()), plan);
        faults.pause();
        let mut options = EngineOptions::new(staging.path().to_owned());
        change(&mut options);
        let engine = Engine::new(store, options, tokio::runtime::Handle::current()).unwrap();
        Self { engine, bucket, faults, _staging: staging }
    }

    async fn written(&self, bytes: &[u8]) -> (u64, u64) {
        let opened = self.engine.create(ROOT, b"a", 0o644, 0, 0, BOTH).await.unwrap();
        self.engine.write(opened.handle, 0, bytes, false).unwrap();
        (opened.stat.ino, opened.handle)
    }

    async fn stored(&self) -> Option<Bytes> {
        let key = ObjectKey::new("a").unwrap();
        let size = self.bucket.head(&key).await.ok().filter(|info| info.size > 0)?.size;
        Some(collect(self.bucket.get(&key, 0..size, None).await.unwrap(), 1 << 20).await.unwrap())
    }
}

/// Long enough for an upload to begin, and shorter than it takes.
async fn meanwhile() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_syncs_or_closes_during_an_upload_waits_for_it() {
    for through in ["fsync", "flush", "drain"] {
        let world = World::new(0.0);
        let (ino, handle) = world.written(through.as_bytes()).await;
        let second = world.engine.open(ino, BOTH).await.unwrap().handle;
        world.faults.resume();
        let engine = Arc::clone(&world.engine);
        let first = tokio::spawn(async move { engine.flush(handle).await });
        meanwhile().await;
        match through {
            "fsync" => world.engine.fsync(second).await.unwrap(),
            "flush" => world.engine.flush(second).await.unwrap(),
            _ => drop(world.engine.drain().await),
        }
        assert_eq!(world.stored().await.as_deref(), Some(through.as_bytes()), "{through} came back too early");
        first.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_over_anothers_change_is_stored_or_refused() {
    for on_conflict in [OnConflict::Overwrite, OnConflict::Fail] {
        let world = World::with(0.0, |options| {
            options.on_conflict = on_conflict;
            options.metadata_ttl = Duration::ZERO;
        });
        let (ino, handle) = world.written(b"mine").await;
        world.engine.flush(handle).await.unwrap();
        let key = ObjectKey::new("a").unwrap();
        let (theirs, plain) = (Bytes::from_static(b"theirs"), ObjectAttributes::default());
        world.bucket.put(&key, theirs.into(), &plain, &Condition::Always).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Whoever looks sees the other's file, and the open one has no name.
        let seen = world.engine.lookup(ROOT, b"a").await.unwrap();
        assert_ne!(seen.ino, ino);
        assert_eq!(world.engine.write(handle, 0, b"mine again", false).unwrap(), 10);
        assert_eq!(world.engine.lookup(ROOT, b"a").await.unwrap().ino, ino);
        match (on_conflict, world.engine.flush(handle).await) {
            (OnConflict::Overwrite, Ok(())) => {
                assert_eq!(world.stored().await.as_deref(), Some(&b"mine again"[..]));
            }
            (OnConflict::Fail, Err(FsError::Changed { .. } | FsError::Store { .. })) => {
                assert_eq!(world.stored().await.as_deref(), Some(&b"theirs"[..]));
            }
            (_, other) => panic!("{on_conflict:?}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_closes_during_an_upload_that_fails_loses_nothing() {
    let world = World::new(1.0);
    let (ino, handle) = world.written(b"precious").await;
    world.faults.set_down(true);
    world.engine.flush(handle).await.unwrap_err();
    world.engine.release(handle).await;
    world.faults.set_down(false);
    world.faults.resume();
    let engine = Arc::clone(&world.engine);
    let trying = tokio::spawn(async move { drop(engine.drain().await) });
    meanwhile().await;
    let reader = world.engine.open(ino, OpenMode { read: true, ..OpenMode::default() }).await.unwrap();
    world.engine.release(reader.handle).await;
    trying.await.unwrap();
    world.faults.pause();
    world.engine.drain().await;
    assert_eq!(world.stored().await.as_deref(), Some(&b"precious"[..]));
}

/// What is staged is no whole file when its object is gone.
#[tokio::test]
async fn a_removal_that_nobody_heard_of_is_found_out() {
    let staging = tempfile::tempdir().unwrap();
    let bucket = MemoryStore::new();
    let key = ObjectKey::new("a").unwrap();
    let (data, none) = (Bytes::from(vec![7; 9000]), ObjectAttributes::default());
    bucket.put(&key, data.into(), &none, &Condition::Always).await.unwrap();
    let plan = FaultPlan { lost_answers: 1.0, ..FaultPlan::default() };
    let (store, faults) = Faults::new(Arc::new(bucket.clone()), plan);
    faults.pause();
    let mut options = EngineOptions::new(staging.path().to_owned());
    options.write_back = Some(WriteBack { delay: Duration::from_secs(3600), ..WriteBack::default() });
    let engine = Engine::new(store, options, tokio::runtime::Handle::current()).unwrap();
    let stat = engine.lookup(ROOT, b"a").await.unwrap();
    let opened = engine.open(stat.ino, BOTH).await.unwrap();
    engine.write(opened.handle, 0, b"new", false).unwrap();
    engine.flush(opened.handle).await.unwrap();
    engine.release(opened.handle).await;

    faults.resume();
    engine.unlink(ROOT, b"a").await.unwrap();
    faults.pause();
    assert!(matches!(engine.lookup(ROOT, b"a").await, Err(FsError::NotFound { .. })));
    let left = engine.drain().await;
    assert!(left.is_empty(), "{left:?}");
    assert!(bucket.head(&key).await.is_err(), "it came back");
}

/// The kernel asks once for the removal; whoever has the file open goes on with it.
#[tokio::test]
async fn what_is_open_and_was_removed_unheard_is_stored_again_for_its_attributes() {
    let staging = tempfile::tempdir().unwrap();
    let bucket = MemoryStore::new();
    let key = ObjectKey::new("a").unwrap();
    let plan = FaultPlan { lost_answers: 1.0, ..FaultPlan::default() };
    let (store, faults) = Faults::new(Arc::new(bucket.clone()), plan);
    faults.pause();
    let options = EngineOptions::new(staging.path().to_owned());
    let engine = Engine::new(store, options, tokio::runtime::Handle::current()).unwrap();
    let opened = engine.create(ROOT, b"a", 0o644, 0, 0, BOTH).await.unwrap();
    engine.write(opened.handle, 0, &[7; 9000], false).unwrap();
    engine.flush(opened.handle).await.unwrap();
    // Nothing but the times.
    engine.fallocate(opened.handle, 0..9000, false, false).unwrap();

    faults.resume();
    engine.unlink(ROOT, b"a").await.unwrap_err();
    faults.pause();
    assert!(bucket.head(&key).await.is_err(), "the removal was done");
    engine.fsync(opened.handle).await.unwrap();
    assert_eq!(bucket.head(&key).await.unwrap().size, 9000);
    assert_eq!(engine.read(opened.handle, 0, 9000).await.unwrap().concat(), vec![7; 9000]);
    let left = engine.drain().await;
    assert!(left.is_empty(), "{left:?}");
}
