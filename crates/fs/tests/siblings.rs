//! Small files of a directory that are read one after the other cost one request each, and are there before they are opened.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandpail_fs::engine::{Engine, EngineOptions, Metadata, OpenMode, SetAttr};
use sandpail_store::memory::MemoryStore;
use sandpail_store::{Condition, ObjectAttributes, ObjectKey, Store};
use sandpail_testkit::faults::Counted;

const ROOT: u64 = 1;
const READ: OpenMode = OpenMode { read: true, write: false, append: false, truncate: false };

struct World {
    bucket: Arc<dyn Store>,
    counted: Arc<Counted>,
    staging: tempfile::TempDir,
    engine: Arc<Engine>,
}

/// What was asked of the store.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    gets: u64,
    heads: u64,
    lists: u64,
}

impl World {
    /// A bucket with so many files `d/f0`, …, and a mount that knows nothing of it.
    async fn new(count: usize, metadata: Metadata) -> Self {
        Self::with(count, metadata, Duration::from_secs(60), None).await
    }

    /// The same; what is learnt is believed for `ttl`, and bytes are kept in a cache.
    async fn with(count: usize, metadata: Metadata, ttl: Duration, cache: Option<&Path>) -> Self {
        let (bucket, counted) = Counted::new(Arc::new(MemoryStore::new()));
        let staging = tempfile::tempdir().unwrap();
        let mut options = EngineOptions::new(staging.path().to_owned());
        (options.metadata, options.metadata_ttl) = (metadata, ttl);
        options.cache = cache.map(|path| (path.to_owned(), 1 << 30));
        let engine = Engine::new(Arc::clone(&bucket), options, tokio::runtime::Handle::current()).unwrap();
        let world = Self { bucket, counted, staging, engine };
        for number in 0..count {
            world.put(number, &format!("first {number}"), "33184").await;
        }
        world.counted.take();
        world
    }

    async fn put(&self, number: usize, text: &str, mode: &str) {
        let metadata = [("mode".to_owned(), mode.to_owned())].into();
        let attributes = ObjectAttributes { metadata, ..ObjectAttributes::default() };
        let key = ObjectKey::new(format!("d/f{number}")).unwrap();
        let text = Bytes::from(text.to_owned());
        self.bucket.put(&key, text.into(), &attributes, &Condition::Always).await.unwrap();
    }

    async fn directory(&self) -> u64 {
        self.engine.lookup(ROOT, b"d").await.unwrap().ino
    }

    /// What `cat` does, and then the kernel forgets the file.
    async fn read(&self, number: usize) -> (String, u32) {
        let directory = self.directory().await;
        let found = self.engine.lookup(directory, format!("f{number}").as_bytes()).await.unwrap();
        let opened = self.engine.open(found.ino, READ).await.unwrap();
        let bytes = self.engine.read(opened.handle, 0, 4096).await.unwrap().concat();
        self.engine.release(opened.handle).await;
        (String::from_utf8(bytes).unwrap(), found.attr.perm)
    }

    async fn read_all(&self, order: impl IntoIterator<Item = usize>) {
        for number in order {
            assert_eq!(self.read(number).await, (format!("first {number}"), 0o640));
        }
    }

    fn asked(&self) -> Asked {
        let counts = self.counted.take().operations;
        let of = |name: &str| counts.get(name).copied().unwrap_or(0);
        Asked { gets: of("get"), heads: of("head"), lists: of("list") }
    }
}

/// In the order of a listing.
fn listed(count: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..count).collect();
    numbers.sort_by_key(usize::to_string);
    numbers
}

/// Everything that is under way has its turn.
async fn settle() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn in_any_order_one_request_each() {
    let mixed = (0..100).map(|number| number * 37 % 100).collect();
    for (order, name) in [(listed(100), "listed"), ((0..100).collect(), "by number"), (mixed, "mixed")] {
        for metadata in [Metadata::Posix, Metadata::Auto, Metadata::None] {
            let world = World::new(100, metadata).await;
            let perm = if metadata == Metadata::None { 0o644 } else { 0o640 };
            for &number in &order {
                assert_eq!(world.read(number).await, (format!("first {number}"), perm), "{name}");
            }
            let asked = world.asked();
            assert_eq!(asked.gets, 100, "{name} {metadata:?}: {asked:?}");
            assert!(asked.heads < 40 && asked.lists <= 3, "{name} {metadata:?}: {asked:?}");
        }
    }
}

#[tokio::test]
async fn they_are_there_before_they_are_opened() {
    let world = World::new(100, Metadata::Posix).await;
    world.read_all(listed(100).into_iter().take(10)).await;
    settle().await;
    world.asked();
    world.read_all(listed(100).into_iter().skip(10).take(40)).await;
    let asked = world.asked();
    assert!(asked.heads == 0 && asked.gets <= 50, "{asked:?}");
}

#[tokio::test]
async fn a_few_of_many_cost_little_more() {
    let world = World::new(5000, Metadata::Posix).await;
    let mut at = 17;
    for _ in 0..100 {
        at = at * 1103 % 4999;
        world.read_all([at]).await;
    }
    settle().await;
    let asked = world.asked();
    assert!((100..120).contains(&asked.gets), "{asked:?}");
}

#[tokio::test]
async fn who_only_looks_gets_nothing() {
    let world = World::new(500, Metadata::Posix).await;
    world.read_all(listed(500).into_iter().take(3)).await;
    settle().await;
    world.asked();
    let directory = world.directory().await;
    for number in listed(500) {
        world.engine.lookup(directory, format!("f{number}").as_bytes()).await.unwrap();
    }
    let asked = world.asked();
    assert!(asked.gets <= 8 && asked.heads >= 450, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn an_old_answer_does_not_count() {
    let mut world = World::new(50, Metadata::Posix).await;
    let mut options = EngineOptions::new(world.staging.path().join("short"));
    options.metadata_ttl = Duration::from_secs(2);
    world.engine = Engine::new(Arc::clone(&world.bucket), options, tokio::runtime::Handle::current()).unwrap();
    world.read_all(listed(50).into_iter().take(6)).await;
    settle().await;
    // Another client replaces all of them.
    for number in 0..50 {
        world.put(number, &format!("second {number}"), "33188").await;
    }
    tokio::time::advance(Duration::from_secs(3)).await;
    for number in listed(50) {
        assert_eq!(world.read(number).await, (format!("second {number}"), 0o644));
    }
}

#[tokio::test]
async fn what_is_changed_here_counts_more() {
    let world = World::new(50, Metadata::Posix).await;
    world.read_all(listed(50).into_iter().take(6)).await;
    settle().await;
    let directory = world.directory().await;
    for number in listed(50) {
        let file = world.engine.lookup(directory, format!("f{number}").as_bytes()).await.unwrap();
        let perm = SetAttr { perm: Some(0o600), ..SetAttr::default() };
        world.engine.setattr(file.ino, perm).await.unwrap();
    }
    for number in listed(50) {
        assert_eq!(world.read(number).await, (format!("first {number}"), 0o600));
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_comes_for_is_forgotten() {
    let world = World::new(100, Metadata::Posix).await;
    world.read_all(listed(100).into_iter().take(6)).await;
    settle().await;
    let before = world.asked().gets;
    assert!(before > 20, "{before}");
    tokio::time::sleep(Duration::from_secs(30)).await;
    let late = listed(100)[20];
    world.read_all([late]).await;
    assert_eq!(world.asked().gets, 1);
}

/// A reader that takes longer for each file than an answer is believed.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_each_file_once() {
    for metadata in [Metadata::Posix, Metadata::Auto] {
        let world = World::with(200, metadata, Duration::from_secs(1), None).await;
        for number in listed(200) {
            world.read_all([number]).await;
            settle().await;
            tokio::time::advance(Duration::from_millis(50)).await;
        }
        let asked = world.asked();
        assert!(asked.gets == 200 && asked.heads <= 200, "{metadata:?}: {asked:?}");
    }
}

/// Others have filled the cache; each file is asked about once, whatever tells of it.
#[tokio::test]
async fn with_a_warm_cache_one_question_each() {
    for metadata in [Metadata::Posix, Metadata::Auto] {
        let cache = tempfile::tempdir().unwrap();
        for is_warm in [false, true] {
            let world = World::with(100, metadata, Duration::from_secs(60), Some(cache.path())).await;
            world.read_all(listed(100)).await;
            let asked = world.asked();
            assert!(asked.gets + asked.heads <= 120, "{metadata:?}, warm: {is_warm}: {asked:?}");
        }
    }
}
