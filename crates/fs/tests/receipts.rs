//! What `user.sandpail.state` and `.sandpail/status` say is true at every moment, and what the barrier promises holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandpail_fs::engine::{Engine, EngineOptions, OpenMode, SetAttr, SetTime, Unstored};
use sandpail_fs::errno::{Errno, errno};
use sandpail_fs::receipt::{FileState, STATE_ATTRIBUTE};
use sandpail_fs::{FsError, FsResult};
use sandpail_store::memory::MemoryStore;
use sandpail_store::{Condition, ObjectAttributes, ObjectKey, PutBody, Store, collect};
use sandpail_testkit::faults::{FaultPlan, Faults};
use serde_json::{Value, json};

const ROOT: u64 = 1;

/// An engine over a bucket that can be made to fail.
struct World {
    engine: Arc<Engine>,
    bucket: MemoryStore,
    faults: Arc<Faults>,
    _staging: tempfile::TempDir,
}

impl World {
    /// What goes wrong goes wrong only between `resume` and `pause`.
    fn new(plan: FaultPlan) -> Self {
        Self::with(plan, |_| {})
    }

    fn with(plan: FaultPlan, change: impl FnOnce(&mut EngineOptions)) -> Self {
        let staging = tempfile::tempdir().unwrap();
        let bucket = MemoryStore::new();
        let (store, faults) = Faults::new(Arc::new(bucket.clone()), plan);
        faults.pause();
        let mut options = EngineOptions::new(staging.path().to_owned());
        change(&mut options);
        let engine = Engine::new(store, options, tokio::runtime::Handle::current()).unwrap();
        Self { engine, bucket, faults, _staging: staging }
    }

    /// Makes a file and writes to it: inode and handle.
    async fn written(&self, name: &str, bytes: &[u8]) -> (u64, u64) {
        let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
        let opened = self.engine.create(ROOT, name.as_bytes(), 0o644, 0, 0, mode).await.unwrap();
        self.engine.write(opened.handle, 0, bytes, false).unwrap();
        (opened.stat.ino, opened.handle)
    }

    async fn state(&self, ino: u64) -> FileState {
        self.engine.receipt(ino).await.unwrap().state
    }

    /// The receipt as programs see it.
    async fn told(&self, ino: u64) -> Value {
        serde_json::from_slice(&self.engine.getxattr(ino, STATE_ATTRIBUTE).await.unwrap()).unwrap()
    }

    async fn wait_for(&self, ino: u64, state: FileState) {
        let waiting = async {
            while self.state(ino).await != state {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("never that state");
    }

    async fn stored(&self, key: &str) -> Option<Bytes> {
        let key = ObjectKey::new(key).unwrap();
        let size = self.bucket.head(&key).await.ok()?.size;
        if size == 0 {
            return Some(Bytes::new());
        }
        Some(collect(self.bucket.get(&key, 0..size, None).await.unwrap(), 1 << 20).await.unwrap())
    }

    async fn etag(&self, key: &str) -> String {
        self.bucket.head(&ObjectKey::new(key).unwrap()).await.unwrap().etag.as_str().to_owned()
    }

    async fn put(&self, key: &str, body: &'static str) {
        let body = PutBody::from(Bytes::from_static(body.as_bytes()));
        let key = ObjectKey::new(key).unwrap();
        self.bucket.put(&key, body, &ObjectAttributes::default(), &Condition::Always).await.unwrap();
    }

    async fn status(&self) -> Value {
        let directory = self.engine.lookup(ROOT, b".sandpail").await.unwrap();
        let file = self.engine.lookup(directory.ino, b"status").await.unwrap();
        let opened = self.engine.open(file.ino, OpenMode { read: true, ..OpenMode::default() }).await.unwrap();
        let text = self.engine.read(opened.handle, 0, 1 << 20).await.unwrap().concat();
        assert_eq!(self.engine.read(opened.handle, 5, 10).await.unwrap().concat(), &text[5..15]);
        self.engine.flush(opened.handle).await.unwrap();
        self.engine.release(opened.handle).await;
        assert!(matches!(self.engine.read(opened.handle, 0, 1).await, Err(FsError::BadHandle)), "closed and readable");
        serde_json::from_slice(&text).unwrap()
    }
}

/// Each operation of the store takes its time; by this seed the first takes more than 100 ms.
fn slow() -> FaultPlan {
    FaultPlan { seed: 3, delay_max: Duration::from_millis(800), ..FaultPlan::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn dirty_then_uploading_then_stored() {
    let world = World::with(slow(), |options| options.metadata_ttl = Duration::from_secs(60));
    // That the bucket has no such name is known from here on, so the slow store is not asked.
    world.status().await;
    let (ino, handle) = world.written("a", b"seven b").await;
    let told = world.told(ino).await;
    assert_eq!((&told["state"], &told["size"], &told["unstoredBytes"]), (&json!("dirty"), &json!(7), &json!(7)));
    assert!(told.get("etag").is_none() && told.get("error").is_none(), "{told}");
    world.faults.resume();
    let closing = tokio::spawn({
        let engine = Arc::clone(&world.engine);
        async move { engine.flush(handle).await }
    });
    world.wait_for(ino, FileState::Uploading).await;
    let told = world.told(ino).await;
    assert_eq!((&told["state"], &told["unstoredBytes"]), (&json!("uploading"), &json!(7)));
    assert_eq!(world.stored("a").await, None, "acknowledged, but not told");
    assert_eq!(world.status().await["uploading"], json!({ "files": 1, "bytes": 7 }));
    closing.await.unwrap().unwrap();
    world.faults.pause();
    let etag = world.etag("a").await;
    let checksum = "md5:CteOyP8DcvssJg5HCGteqA==";
    assert_eq!(world.told(ino).await, json!({ "state": "stored", "size": 7, "etag": etag, "checksum": checksum }));
    // More is dirty again, and no tag is told that is not that of these bytes.
    world.engine.write(handle, 2, b"xy", false).unwrap();
    let told = world.told(ino).await;
    assert_eq!((&told["state"], &told["size"], &told["unstoredBytes"]), (&json!("dirty"), &json!(7), &json!(2)));
    assert!(told.get("etag").is_none(), "{told}");
    world.engine.release(handle).await;
    assert_eq!(world.told(ino).await["etag"], world.etag("a").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_during_an_upload_is_dirty_until_it_is_stored_itself() {
    let world = World::new(slow());
    let (ino, handle) = world.written("a", b"first").await;
    world.faults.resume();
    let engine = Arc::clone(&world.engine);
    let closing = tokio::spawn(async move { engine.flush(handle).await });
    world.wait_for(ino, FileState::Uploading).await;
    world.engine.write(handle, 0, b"later", false).unwrap();
    assert_eq!(world.state(ino).await, FileState::Dirty);
    closing.await.unwrap().unwrap();
    assert_eq!(world.state(ino).await, FileState::Dirty);
    assert_eq!(world.stored("a").await.unwrap(), "first");
    assert_eq!(world.engine.sync().await.stored, 1);
    assert_eq!((world.state(ino).await, world.stored("a").await.unwrap()), (FileState::Stored, "later".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_until_it_is_made_good() {
    let world = World::new(FaultPlan::default());
    let (ino, handle) = world.written("a", b"precious").await;
    world.faults.set_down(true);
    world.engine.flush(handle).await.unwrap_err();
    let told = world.told(ino).await;
    let text = told.to_string();
    assert_eq!(
        (&told["state"], &told["error"], &told["errno"]),
        (&json!("dirty"), &json!("the store cannot be reached"), &json!("ETIMEDOUT"))
    );
    assert!(!text.contains("faulty"), "the provider's words: {text}");
    let status = world.status().await;
    assert_eq!(status["dirty"], json!({ "files": 1, "bytes": 8 }));
    assert_eq!((&status["files"][0]["path"], &status["files"][0]["errno"]), (&json!("/a"), &json!("ETIMEDOUT")));
    assert_eq!(status["lastErrors"][0]["path"], "/a");
    assert!(status["oldestSeconds"].as_f64().unwrap() >= 0.0, "{status}");
    let synced = world.engine.sync().await;
    assert_eq!((synced.stored, synced.failed.len()), (0, 1));
    // Who operates the mount gets the whole reason.
    let Unstored { path, reason } = &synced.failed[0];
    assert!(path == "/a" && reason.contains("the store is down"), "{path}: {reason}");
    assert_eq!(world.engine.unstored(10), synced.failed);
    world.faults.set_down(false);
    assert_eq!(world.engine.sync().await.stored, 1);
    assert_eq!(world.told(ino).await["state"], "stored");
    let status = world.status().await;
    assert_eq!(
        (&status["dirty"]["files"], &status["files"], &status["oldestSeconds"]),
        (&json!(0), &json!([]), &Value::Null)
    );
    // What failed once is remembered.
    assert_eq!(status["lastErrors"][0]["path"], "/a");
}

/// Before, whoever closed or synced a file while somebody else's upload of it went on was told that all is stored.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_of_success_before_the_store_has_acknowledged() {
    let world = World::new(slow());
    let (ino, handle) = world.written("a", b"bytes").await;
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let second = world.engine.open(ino, mode).await.unwrap().handle;
    for through in ["fsync", "flush", "sync"] {
        world.engine.write(handle, 0, through.as_bytes(), false).unwrap();
        world.faults.resume();
        let engine = Arc::clone(&world.engine);
        let first = tokio::spawn(async move { engine.flush(handle).await });
        world.wait_for(ino, FileState::Uploading).await;
        match through {
            "fsync" => world.engine.fsync(second).await.unwrap(),
            "flush" => world.engine.flush(second).await.unwrap(),
            _ => assert_eq!(world.engine.sync().await.failed, []),
        }
        let stored = world.stored("a").await.unwrap();
        assert!(stored.starts_with(through.as_bytes()), "{through} returned over {stored:?}");
        first.await.unwrap().unwrap();
        world.faults.pause();
    }
}

/// Before, closing a file while it was stored again in the background let go of its staged bytes, also when that failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_closes_during_an_upload_that_fails_loses_nothing() {
    let world = World::new(FaultPlan { refusals: 1.0, ..slow() });
    let (ino, handle) = world.written("a", b"precious").await;
    world.faults.set_down(true);
    world.engine.flush(handle).await.unwrap_err();
    world.engine.release(handle).await;
    world.faults.set_down(false);
    world.faults.resume();
    let engine = Arc::clone(&world.engine);
    let trying = tokio::spawn(async move { engine.sync().await });
    world.wait_for(ino, FileState::Uploading).await;
    let reader = world.engine.open(ino, OpenMode { read: true, ..OpenMode::default() }).await.unwrap();
    world.engine.release(reader.handle).await;
    assert_eq!(trying.await.unwrap().failed.len(), 1);
    world.faults.pause();
    assert_eq!(world.state(ino).await, FileState::Dirty);
    assert_eq!(world.engine.sync().await.stored, 1);
    assert_eq!(world.stored("a").await.unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_barrier_takes_open_files_along_and_removed_ones_not() {
    let world = World::new(FaultPlan::default());
    let (_, open) = world.written("open", b"written").await;
    let (_, gone) = world.written("gone", b"nobody's").await;
    world.engine.unlink(ROOT, b"gone").await.unwrap();
    let synced = world.engine.sync().await;
    assert_eq!((synced.stored, synced.failed.len()), (1, 0));
    assert_eq!(world.stored("open").await.unwrap(), "written");
    assert_eq!(world.stored("gone").await, None);
    // Nothing is left for the next one.
    assert_eq!(world.engine.sync().await.stored, 0);
    // Attributes that wait for the close count, too.
    let ino = world.engine.lookup(ROOT, b"open").await.unwrap().ino;
    let mtime = Some(SetTime::At(sandpail_fs::attr::Time { secs: 1_000_000_000, nanos: 0 }));
    world.engine.setattr(ino, SetAttr { mtime, handle: Some(open), ..SetAttr::default() }).await.unwrap();
    assert_eq!(world.state(ino).await, FileState::Dirty);
    assert_eq!(world.engine.sync().await.stored, 1);
    let info = world.bucket.head(&ObjectKey::new("open").unwrap()).await.unwrap();
    assert_eq!(info.attributes.metadata["mtime"], "1000000000");
    world.engine.release(gone).await;
}

#[tokio::test]
async fn a_file_without_a_name_says_so() {
    let world = World::new(FaultPlan::default());
    let (ino, handle) = world.written("a", b"x").await;
    world.engine.unlink(ROOT, b"a").await.unwrap();
    assert_eq!(world.told(ino).await, json!({ "state": "removed", "size": 1 }));
    assert_eq!(world.status().await["files"], json!([]));
    world.engine.release(handle).await;
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: FsResult<T>, expected: Errno) {
    let error = result.unwrap_err();
    assert_eq!(errno(&error), expected, "{error}");
}

#[tokio::test]
async fn the_state_is_in_no_list_and_cannot_be_changed() {
    let world = World::new(FaultPlan::default());
    let (ino, handle) = world.written("a", b"x").await;
    world.engine.release(handle).await;
    world.engine.setxattr(ino, "user.own", b"v", 0).await.unwrap();
    refused(world.engine.setxattr(ino, STATE_ATTRIBUTE, b"stored", 0).await, Errno::EPERM);
    refused(world.engine.removexattr(ino, STATE_ATTRIBUTE).await, Errno::EPERM);
    assert_eq!(world.engine.listxattr(ino).await.unwrap(), b"user.own\0");
    let directory = world.engine.mkdir(ROOT, b"d", 0o755, 0, 0).await.unwrap();
    refused(world.engine.getxattr(directory.ino, STATE_ATTRIBUTE).await, Errno::ENODATA);
}

/// Some client may have stored an attribute under our name: it is neither believed nor listed.
#[tokio::test]
async fn what_others_stored_under_the_states_name_is_not_believed() {
    let world = World::new(FaultPlan::default());
    let mut attributes = ObjectAttributes::default();
    let all = [(STATE_ATTRIBUTE.to_owned(), b"forged".to_vec()), ("user.k".to_owned(), b"v".to_vec())];
    sandpail_fs::attr::set_xattrs(&mut attributes, &all.into_iter().collect()).unwrap();
    let body = PutBody::from(Bytes::from_static(b"x"));
    world.bucket.put(&ObjectKey::new("a").unwrap(), body, &attributes, &Condition::Always).await.unwrap();
    let ino = world.engine.lookup(ROOT, b"a").await.unwrap().ino;
    assert_eq!(world.told(ino).await["state"], "stored");
    assert_eq!(world.engine.listxattr(ino).await.unwrap(), b"user.k\0");
}

async fn names_of(engine: &Engine, ino: u64) -> Vec<String> {
    let handle = engine.opendir(ino).unwrap();
    let listed = engine.readdir(handle, 0, 100, true).await.unwrap();
    let last = listed.last().unwrap().next;
    assert!(engine.readdir(handle, last, 100, true).await.unwrap().is_empty());
    engine.releasedir(handle);
    listed.iter().map(|item| String::from_utf8(item.name.to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn the_status_is_hidden_and_read_only() {
    let world = World::new(FaultPlan::default());
    world.put("a", "x").await;
    let engine = &world.engine;
    assert_eq!(names_of(engine, ROOT).await, [".", "..", "a"]);
    let directory = engine.lookup(ROOT, b".sandpail").await.unwrap().ino;
    assert_eq!(names_of(engine, directory).await, [".", "..", "status"]);
    let file = engine.lookup(directory, b"status").await.unwrap();
    assert_eq!((file.attr.perm, engine.getattr(file.ino).await.unwrap().attr.perm), (0o440, 0o440));
    let write = OpenMode { write: true, ..OpenMode::default() };
    refused(engine.open(file.ino, write).await, Errno::EPERM);
    refused(engine.open(directory, OpenMode::default()).await, Errno::EISDIR);
    refused(engine.create(directory, b"new", 0o644, 0, 0, write).await, Errno::EPERM);
    refused(engine.mkdir(directory, b"new", 0o755, 0, 0).await, Errno::EPERM);
    refused(engine.symlink(directory, b"new", b"to", 0, 0).await, Errno::EPERM);
    refused(engine.unlink(directory, b"status").await, Errno::EPERM);
    refused(engine.rmdir(ROOT, b".sandpail").await, Errno::EPERM);
    refused(engine.mkdir(ROOT, b".sandpail", 0o755, 0, 0).await, Errno::EEXIST);
    refused(engine.rename(ROOT, b".sandpail", ROOT, b"b", false).await, Errno::EPERM);
    refused(engine.rename(ROOT, b"a", ROOT, b".sandpail", false).await, Errno::EPERM);
    refused(engine.rename(ROOT, b"a", directory, b"b", false).await, Errno::EPERM);
    refused(engine.setattr(file.ino, SetAttr { perm: Some(0o777), ..SetAttr::default() }).await, Errno::EPERM);
    refused(engine.setxattr(file.ino, "user.k", b"v", 0).await, Errno::EPERM);
    refused(engine.lookup(directory, b"other").await, Errno::ENOENT);
    assert_eq!(engine.listxattr(file.ino).await.unwrap(), b"");
    assert_eq!(world.bucket.list(&sandpail_store::ListRequest::default()).await.unwrap().objects.len(), 1);
}

#[tokio::test]
async fn the_buckets_own_name_comes_first() {
    for key in [".sandpail/status", ".sandpail/other", ".sandpail"] {
        let world = World::with(FaultPlan::default(), |options| options.metadata_ttl = Duration::ZERO);
        assert_eq!(world.status().await["files"], json!([]), "the mount's own");
        world.put(key, "the bucket's").await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        let mut found = world.engine.lookup(ROOT, b".sandpail").await.unwrap();
        if let Some((_, name)) = key.split_once('/') {
            refused(world.engine.lookup(found.ino, b"neither").await, Errno::ENOENT);
            found = world.engine.lookup(found.ino, name.as_bytes()).await.unwrap();
        }
        let opened = world.engine.open(found.ino, OpenMode { read: true, ..OpenMode::default() }).await.unwrap();
        assert_eq!(world.engine.read(opened.handle, 0, 100).await.unwrap().concat(), b"the bucket's", "{key}");
        world.engine.release(opened.handle).await;
        // Known to be there, it is not covered when the store fails, either.
        tokio::time::sleep(Duration::from_millis(150)).await;
        world.faults.set_down(true);
        refused(world.engine.lookup(ROOT, b".sandpail").await, Errno::ETIMEDOUT);
    }
}

#[tokio::test]
async fn the_status_can_be_read_while_the_store_is_down() {
    let world = World::new(FaultPlan::default());
    world.faults.set_down(true);
    assert_eq!(world.status().await["dirty"]["files"], 0);
}

#[tokio::test]
async fn without_a_status_the_name_is_like_any_other() {
    let world = World::with(FaultPlan::default(), |options| options.status = false);
    refused(world.engine.lookup(ROOT, b".sandpail").await, Errno::ENOENT);
    world.engine.mkdir(ROOT, b".sandpail", 0o755, 0, 0).await.unwrap();
    assert_eq!(names_of(&world.engine, ROOT).await, [".", "..", ".sandpail"]);
}
