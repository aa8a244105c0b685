//! Callers that were let go: what they had begun goes on, and the state of the file says why nobody waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sandpail_fs::FsError;
use sandpail_fs::engine::{Engine, EngineOptions, OpenMode};
use sandpail_fs::errno::{Errno, errno};
use sandpail_fs::patience;
use sandpail_fs::receipt::FileState;
use sandpail_store::memory::MemoryStore;
use sandpail_store::{ObjectKey, Store};
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
