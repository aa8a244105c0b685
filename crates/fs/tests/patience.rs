//! Callers that were let go: what they had begun goes on, and the state of the file says why nobody waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sandpail_fs::FsError;
use sandpail_fs::engine::{Engine, EngineOptions, OpenMode, SetAttr};
use sandpail_fs::errno::{Errno, errno};
use sandpail_fs::patience;
use sandpail_fs::receipt::FileState;
use sandpail_store::memory::MemoryStore;
use sandpail_store::{Condition, ObjectAttributes, ObjectKey, Store};
use sandpail_testkit::faults::{FaultPlan, Faults};

const ROOT: u64 = 1;

/// A store that needs an hour for a request while it sleeps.
fn slow(bucket: &MemoryStore) -> (Arc<dyn Store>, Arc<Faults>) {
    let plan = FaultPlan { seed: 3, delay_max: Duration::from_secs(7200), ..FaultPlan::default() };
    let (store, faults) = Faults::new(Arc::new(bucket.clone()), plan);
    faults.pause();
    (store, faults)
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_late_leaves_the_upload_to_its_end() {
    let staging = tempfile::tempdir().unwrap();
    let bucket = MemoryStore::new();
    let (store, faults) = slow(&bucket);
    let options = EngineOptions::new(staging.path().to_owned());
    let engine = Engine::new(store, options, tokio::runtime::Handle::current()).unwrap();
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let opened = engine.create(ROOT, b"f", 0o644, 0, 0, mode).await.unwrap();
    engine.write(opened.handle, 0, b"bytes", false).unwrap();
    faults.resume();
    let begun = tokio::time::Instant::now();
    let mut closing = Box::pin(engine.flush(opened.handle));
    let until = |begun| engine.patience_until(begun, true);
    let let_go = patience::wait("flush", closing.as_mut(), until, || false).await.unwrap_err();
    assert_eq!((errno(&let_go), begun.elapsed()), (Errno::ETIMEDOUT, Duration::from_secs(120)));
    engine.note_unanswered(opened.handle, &let_go);
    faults.pause();
    let receipt = engine.receipt(opened.stat.ino).await.unwrap();
    assert_eq!((receipt.state, receipt.unstored_bytes), (FileState::Uploading, 5));
    let failure = receipt.failure.expect("the state does not say why");
    assert!(failure.errno == Errno::ETIMEDOUT && failure.cause.contains("did not answer"), "{failure:?}");
    let unstored = engine.unstored(10);
    assert!(unstored.len() == 1 && unstored[0].reason.contains("flush got no answer for 120 s"), "{unstored:?}");
    // It was not dropped: its time comes.
    closing.await.unwrap();
    let receipt = engine.receipt(opened.stat.ino).await.unwrap();
    assert_eq!((receipt.state, receipt.failure), (FileState::Stored, None));
    assert_eq!(bucket.head(&ObjectKey::new("f").unwrap()).await.unwrap().size, 5);
    engine.note_unanswered(opened.handle, &let_go);
    assert_eq!(engine.receipt(opened.stat.ino).await.unwrap().failure, None, "of what is stored nothing is told");
}

#[tokio::test(start_paused = true)]
async fn what_changes_nothing_can_be_dropped() {
    let staging = tempfile::tempdir().unwrap();
    let bucket = MemoryStore::new();
    let (store, faults) = slow(&bucket);
    let engine =
        Engine::new(store, EngineOptions::new(staging.path().to_owned()), tokio::runtime::Handle::current()).unwrap();
    faults.resume();
    let gone = AtomicBool::new(false);
    let until = |begun| engine.patience_until(begun, false);
    for name in [&b"a"[..], b"b", b"c"] {
        let mut looking = Box::pin(engine.lookup(ROOT, name));
        let leaves = || gone.swap(true, Ordering::Relaxed);
        let let_go = patience::wait("lookup", looking.as_mut(), until, leaves).await.unwrap_err();
        assert!(matches!(let_go, FsError::Interrupted { what: "lookup" }), "{let_go:?}");
        assert_eq!(errno(&let_go), Errno::EINTR);
    }
    faults.pause();
    assert!(matches!(engine.lookup(ROOT, b"a").await, Err(FsError::NotFound { .. })));
}

/// The kernel waits for pages that it drops, where no signal reaches whoever opens the file.
#[tokio::test(start_paused = true)]
async fn pages_are_dropped_only_where_they_are_old() {
    let staging = tempfile::tempdir().unwrap();
    let bucket = MemoryStore::new();
    let put = async |data: &'static [u8]| {
        let key = ObjectKey::new("f").unwrap();
        let (data, none) = (bytes::Bytes::from_static(data).into(), ObjectAttributes::default());
        bucket.put(&key, data, &none, &Condition::Always).await.unwrap();
    };
    put(b"one").await;
    let mut options = EngineOptions::new(staging.path().to_owned());
    options.metadata_ttl = Duration::from_secs(1);
    let engine = Engine::new(Arc::new(bucket.clone()), options, tokio::runtime::Handle::current()).unwrap();
    let keeps = async |mode: OpenMode| {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let stat = engine.lookup(ROOT, b"f").await.unwrap();
        let opened = engine.open(stat.ino, mode).await.unwrap();
        engine.release(opened.handle).await;
        opened.keep_cache
    };
    let read = OpenMode { read: true, ..OpenMode::default() };
    assert!(keeps(read).await, "nobody has opened it, so there are none");
    assert!(keeps(read).await, "they are of the same version");
    put(b"two").await;
    assert!(!keeps(read).await, "they may be of the version before");
    assert!(keeps(read).await);
    assert!(!keeps(OpenMode { write: true, truncate: true, ..read }).await);
}

/// The upload has to mark the directory first, and that takes a while.
#[tokio::test(start_paused = true)]
async fn a_mode_that_is_changed_while_an_upload_begins_is_stored() {
    let staging = tempfile::tempdir().unwrap();
    let bucket = MemoryStore::new();
    let none = ObjectAttributes::default();
    bucket
        .put(&ObjectKey::new("d/other").unwrap(), bytes::Bytes::new().into(), &none, &Condition::Always)
        .await
        .unwrap();
    let (store, faults) = slow(&bucket);
    let mut options = EngineOptions::new(staging.path().to_owned());
    options.op_timeout = None;
    let engine = Engine::new(store, options, tokio::runtime::Handle::current()).unwrap();
    let directory = engine.lookup(ROOT, b"d").await.unwrap().ino;
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let opened = engine.create(directory, b"f", 0o640, 0, 0, mode).await.unwrap();
    engine.write(opened.handle, 0, b"bytes", false).unwrap();
    faults.resume();
    let changing = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let set = SetAttr { perm: Some(0o600), handle: Some(opened.handle), ..SetAttr::default() };
        engine.setattr(opened.stat.ino, set).await.unwrap();
    };
    let (closed, ()) = tokio::join!(engine.flush(opened.handle), changing);
    closed.unwrap();
    engine.release(opened.handle).await;
    faults.pause();
    assert!(engine.drain().await.is_empty());
    let stored = bucket.head(&ObjectKey::new("d/f").unwrap()).await.unwrap().attributes.metadata;
    assert_eq!(stored.get("mode").map(String::as_str), Some("33152"), "{stored:?}");
}
