//! Two things at the same time, one of which stands still in the middle of its request to the store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandpail_fs::FsResult;
use sandpail_fs::attr::Time;
use sandpail_fs::engine::{Engine, EngineOptions, OpenMode, SetAttr, SetTime};
use sandpail_store::memory::MemoryStore;
use sandpail_store::{Condition, ObjectAttributes, ObjectKey, Store, collect};
use sandpail_testkit::gate::Gate;
use tokio::task::JoinHandle;

const ROOT: u64 = 1;
const BOTH: OpenMode = OpenMode { read: true, write: true, append: false, truncate: false };

struct World {
    engine: Arc<Engine>,
    bucket: MemoryStore,
    gate: Arc<Gate>,
    staging: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let (bucket, staging) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let (store, gate) = Gate::new(Arc::new(bucket.clone()));
        let mut options = EngineOptions::new(staging.path().to_owned());
        (options.part_len, options.stream_threshold) = (5000, 6000);
        options.metadata_ttl = Duration::from_secs(60);
        let engine = Engine::new(store, options, tokio::runtime::Handle::current()).unwrap();
        Self { engine, bucket, gate, staging }
    }

    /// The bucket through other eyes.
    fn another(&self) -> Arc<Engine> {
        let options = EngineOptions::new(self.staging.path().join("another"));
        Engine::new(Arc::new(self.bucket.clone()), options, tokio::runtime::Handle::current()).unwrap()
    }

    async fn foreign(&self, key: &str, bytes: &'static [u8]) {
        let (key, none) = (ObjectKey::new(key).unwrap(), ObjectAttributes::default());
        self.bucket.put(&key, Bytes::from_static(bytes).into(), &none, &Condition::Always).await.unwrap();
    }

    async fn stored(&self, key: &str) -> Option<Bytes> {
        let key = ObjectKey::new(key).unwrap();
        let size = self.bucket.head(&key).await.ok()?.size;
        Some(collect(self.bucket.get(&key, 0..size, None).await.unwrap(), 1 << 20).await.unwrap())
    }

    /// Begins `work`, and returns when its next `operation` stands still.
    async fn begin<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Future<Output = FsResult<T>> + Send + 'static,
    ) -> JoinHandle<FsResult<T>> {
        self.gate.hold(operation);
        let begun = tokio::spawn(work);
        self.gate.arrived().await;
        begun
    }

    async fn make(&self, parent: u64, name: &[u8], bytes: &[u8]) -> u64 {
        let opened = self.engine.create(parent, name, 0o600, 1000, 1000, BOTH).await.unwrap();
        self.engine.write(opened.handle, 0, bytes, false).unwrap();
        self.engine.flush(opened.handle).await.unwrap();
        self.engine.release(opened.handle).await;
        opened.stat.ino
    }
}

/// Long enough for whoever does not wait.
async fn meanwhile() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn mode(perm: u32) -> SetAttr {
    SetAttr { perm: Some(perm), ..SetAttr::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_begins_while_a_file_is_written_carries_its_mode() {
    let world = World::new();
    world.make(ROOT, b"a", &[7; 20_000]).await;
    assert_eq!((world.gate.count("complete_multipart"), world.gate.count("copy")), (1, 0), "copied onto itself");
    let seen = world.another().lookup(ROOT, b"a").await.unwrap().attr;
    assert_eq!((seen.perm, seen.uid, seen.size), (0o600, 1000, 20_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_begins_while_a_file_is_written_again_has_no_old_time() {
    let world = World::new();
    let opened = world.engine.create(ROOT, b"a", 0o600, 0, 0, BOTH).await.unwrap();
    world.engine.write(opened.handle, 0, &[7; 20_000], false).unwrap();
    let chosen = Time { secs: 1000, nanos: 0 };
    let set = SetAttr { mtime: Some(SetTime::At(chosen)), handle: Some(opened.handle), ..SetAttr::default() };
    world.engine.setattr(opened.stat.ino, set).await.unwrap();
    world.engine.fsync(opened.handle).await.unwrap();
    let cut = SetAttr { size: Some(0), handle: Some(opened.handle), ..SetAttr::default() };
    world.engine.setattr(opened.stat.ino, cut).await.unwrap();
    world.engine.write(opened.handle, 0, &[8; 20_000], false).unwrap();
    world.engine.fsync(opened.handle).await.unwrap();
    assert_ne!(world.engine.getattr(opened.stat.ino).await.unwrap().attr.mtime, chosen);
    assert_ne!(world.another().lookup(ROOT, b"a").await.unwrap().attr.mtime, chosen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_made_while_its_directory_moves_moves_along() {
    let world = World::new();
    let dir = world.engine.mkdir(ROOT, b"a", 0o755, 0, 0).await.unwrap().ino;
    let below = world.engine.mkdir(dir, b"b", 0o755, 0, 0).await.unwrap().ino;
    world.make(below, b"old", b"old").await;
    let engine = Arc::clone(&world.engine);
    let moving = world.begin("copy", async move { engine.rename(ROOT, b"a", ROOT, b"c", false).await }).await;
    let engine = Arc::clone(&world.engine);
    let making = tokio::spawn(async move {
        let opened = engine.create(below, b"new", 0o600, 0, 0, BOTH).await.unwrap();
        engine.write(opened.handle, 0, b"new", false).unwrap();
        engine.flush(opened.handle).await.unwrap();
    });
    meanwhile().await;
    world.gate.open();
    moving.await.unwrap().unwrap();
    making.await.unwrap();
    assert_eq!(world.stored("c/b/new").await.as_deref(), Some(&b"new"[..]));
    assert_eq!(world.stored("a/b/new").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_opened_while_its_directory_moves_is_stored_where_it_is() {
    let world = World::new();
    world.foreign("a/b/f", b"before").await;
    let dir = world.engine.lookup(ROOT, b"a").await.unwrap().ino;
    let below = world.engine.lookup(dir, b"b").await.unwrap().ino;
    let engine = Arc::clone(&world.engine);
    let moving = world.begin("copy", async move { engine.rename(ROOT, b"a", ROOT, b"c", false).await }).await;
    let ino = world.engine.lookup(below, b"f").await.unwrap().ino;
    let handle = world.engine.open(ino, BOTH).await.unwrap().handle;
    world.engine.write(handle, 0, b"BE", false).unwrap();
    world.gate.open();
    moving.await.unwrap().unwrap();
    world.engine.flush(handle).await.unwrap();
    assert_eq!(world.stored("c/b/f").await.as_deref(), Some(&b"BEfore"[..]));
    assert_eq!(world.stored("a/b/f").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attribute_that_is_set_during_an_upload_stays() {
    let world = World::new();
    let ino = world.make(ROOT, b"a", b"bytes").await;
    let handle = world.engine.open(ino, BOTH).await.unwrap().handle;
    world.engine.write(handle, 0, b"BYTES", false).unwrap();
    let engine = Arc::clone(&world.engine);
    let uploading = world.begin("put", async move { engine.flush(handle).await }).await;
    let engine = Arc::clone(&world.engine);
    let setting = tokio::spawn(async move { engine.setxattr(ino, "user.k", b"value", 0).await });
    meanwhile().await;
    world.gate.open();
    uploading.await.unwrap().unwrap();
    setting.await.unwrap().unwrap();
    assert_eq!(world.engine.getxattr(ino, "user.k").await.unwrap(), b"value");
    let another = world.another();
    let seen = another.lookup(ROOT, b"a").await.unwrap().ino;
    assert_eq!(another.getxattr(seen, "user.k").await.unwrap(), b"value");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mode_that_is_set_while_another_is_stored_is_stored_too() {
    let world = World::new();
    let ino = world.make(ROOT, b"a", b"bytes").await;
    let engine = Arc::clone(&world.engine);
    let first = world.begin("copy", async move { engine.setattr(ino, mode(0o644)).await }).await;
    let engine = Arc::clone(&world.engine);
    let second = tokio::spawn(async move { engine.setattr(ino, mode(0o640)).await });
    meanwhile().await;
    world.gate.open();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(world.another().lookup(ROOT, b"a").await.unwrap().attr.perm, 0o640);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_a_file_is_renamed_comes_along() {
    let world = World::new();
    world.foreign("a", b"before").await;
    let ino = world.engine.lookup(ROOT, b"a").await.unwrap().ino;
    let engine = Arc::clone(&world.engine);
    let moving = world.begin("copy", async move { engine.rename(ROOT, b"a", ROOT, b"b", false).await }).await;
    let engine = Arc::clone(&world.engine);
    let writing = tokio::spawn(async move {
        let handle = engine.open(ino, OpenMode { truncate: true, ..BOTH }).await.unwrap().handle;
        engine.write(handle, 0, b"after", false).unwrap();
        engine.flush(handle).await
    });
    meanwhile().await;
    world.gate.open();
    moving.await.unwrap().unwrap();
    writing.await.unwrap().unwrap();
    assert_eq!(world.stored("b").await.as_deref(), Some(&b"after"[..]));
    assert_eq!(world.stored("a").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_a_file_while_it_is_replaced_looks_again() {
    let world = World::new();
    let (old, new) = (world.make(ROOT, b"f", b"old").await, world.make(ROOT, b"tmp", b"new").await);
    let engine = Arc::clone(&world.engine);
    let moving = world.begin("delete", async move { engine.rename(ROOT, b"tmp", ROOT, b"f", false).await }).await;
    let engine = Arc::clone(&world.engine);
    // As the kernel does, which had looked the name up before.
    let reading = tokio::spawn(async move {
        let mode = OpenMode { read: true, ..OpenMode::default() };
        let opened = match engine.open(old, mode).await {
            Err(sandpail_fs::FsError::Changed { .. }) => {
                let ino = engine.lookup(ROOT, b"f").await?.ino;
                engine.open(ino, mode).await?
            }
            opened => opened?,
        };
        engine.read(opened.handle, 0, 10).await
    });
    meanwhile().await;
    world.gate.open();
    moving.await.unwrap().unwrap();
    let read = reading.await.unwrap().unwrap().concat();
    assert!(read == b"old" || read == b"new", "{read:?}");
    assert_eq!(world.engine.lookup(ROOT, b"f").await.unwrap().ino, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_during_a_copy_inside_the_store_is_kept() {
    let world = World::new();
    let from = world.make(ROOT, b"from", &[7; 20_000]).await;
    let source = world.engine.open(from, BOTH).await.unwrap().handle;
    let target = world.engine.create(ROOT, b"to", 0o600, 0, 0, BOTH).await.unwrap();
    let (engine, to) = (Arc::clone(&world.engine), target.handle);
    let copying = world.begin("copy", async move { engine.copy_file_range(source, 0, to, 0, 20_000).await }).await;
    let handle = world.engine.open(target.stat.ino, OpenMode { truncate: true, ..BOTH }).await.unwrap().handle;
    world.engine.write(handle, 0, b"x", false).unwrap();
    let engine = Arc::clone(&world.engine);
    let closing = tokio::spawn(async move { engine.flush(handle).await });
    meanwhile().await;
    world.gate.open();
    assert_eq!(copying.await.unwrap().unwrap(), 20_000);
    closing.await.unwrap().unwrap();
    assert_eq!(world.stored("to").await.as_deref(), Some(&b"x"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_being_changed_is_no_error_in_a_large_directory() {
    let world = World::new();
    for number in 0..1200 {
        world.foreign(Box::leak(format!("d/{number}").into_boxed_str()), b"x").await;
    }
    let dir = world.engine.lookup(ROOT, b"d").await.unwrap().ino;
    for name in [&b"1"[..], b"2", b"3", b"4", b"5"] {
        world.engine.lookup(dir, name).await.unwrap();
    }
    let engine = Arc::clone(&world.engine);
    let moving = world.begin("copy", async move { engine.rename(dir, b"7", dir, b"seven", false).await }).await;
    let engine = Arc::clone(&world.engine);
    let looking = tokio::spawn(async move { engine.lookup(dir, b"seven").await });
    let seen = world.engine.lookup(dir, b"7").await;
    assert!(seen.is_ok(), "{seen:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.gate.open();
    moving.await.unwrap().unwrap();
    looking.await.unwrap().unwrap();
}
