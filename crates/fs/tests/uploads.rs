//! Multipart uploads that a killed process left are aborted, and no others.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandpail_fs::engine::{Engine, EngineOptions, Left, OpenMode, as_request};
use sandpail_fs::recover::{Damage, KeptFiles};
use sandpail_fs::write::Origin;
use sandpail_store::memory::MemoryStore;
use sandpail_store::{Capabilities, ObjectAttributes, ObjectKey, Store, UploadId, collect};
use sandpail_testkit::faults::{FaultPlan, Faults, Random};

const ROOT: u64 = 1;
const BOTH: OpenMode = OpenMode { read: true, write: true, append: false, truncate: false };
const PART_LEN: u64 = 1000;

/// A bucket in which somebody else has an upload, too.
async fn bucket() -> (MemoryStore, UploadId) {
    let bucket = MemoryStore::with_capabilities(Capabilities { part_len_min: 1, ..Capabilities::default() });
    let key = ObjectKey::new("data/of somebody else").unwrap();
    let other = bucket.create_multipart(&key, &ObjectAttributes::default()).await.unwrap();
    (bucket, other)
}

fn options(staging: &Path, let_go_above: u64, survives: bool) -> EngineOptions {
    let mut options = EngineOptions::new(staging.to_owned());
    options.prefix = "data/".to_owned();
    options.part_len = PART_LEN;
    options.stream_threshold = 2 * PART_LEN;
    options.let_go_above = let_go_above;
    options.survives = survives;
    options.origin = Origin { bucket: Some("b".to_owned()), prefix: "data/".to_owned(), ..Origin::default() };
    options
}

fn engine(store: &Arc<dyn Store>, options: EngineOptions) -> Arc<Engine> {
    Engine::new(Arc::clone(store), options, tokio::runtime::Handle::current()).unwrap()
}

async fn uploads(bucket: &MemoryStore) -> Vec<UploadId> {
    bucket.list_multipart("").await.unwrap().into_iter().map(|upload| upload.id).collect()
}

/// What a process that is killed just now leaves. Gives its own directory.
fn left_by_a_kill(from: &Path, to: &Path) -> PathBuf {
    let mut own = PathBuf::new();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_name().to_string_lossy().starts_with("process-") {
            own.clone_from(&target);
        }
        std::fs::create_dir(&target).unwrap();
        for file in std::fs::read_dir(entry.path()).unwrap().flatten() {
            std::fs::copy(file.path(), target.join(file.file_name())).unwrap();
        }
    }
    own
}

/// Files that are being written, as long as one likes: their names and what they have.
async fn write_some(engine: &Engine, random: &mut Random) -> Vec<(String, u64, Vec<u8>)> {
    let mut files = Vec::new();
    for number in 0..3u64 {
        let name = format!("f{number}");
        let creating = engine.create(ROOT, name.as_bytes(), 0o644, 0, 0, BOTH);
        let opened = as_request((number + 1) << 1, creating).await.unwrap();
        let mut bytes = Vec::new();
        for _ in 0..random.below(30) {
            let block = vec![u8::try_from(random.below(256)).unwrap(); usize::try_from(random.below(900) + 1).unwrap()];
            engine.write(opened.handle, bytes.len() as u64, &block, false).unwrap();
            bytes.extend(block);
            if random.chance(0.3) {
                tokio::time::sleep(Duration::from_micros(random.below(300))).await;
            }
        }
        files.push((name, opened.handle, bytes));
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_aborts_what_killed_processes_left() {
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let (bucket, other) = bucket().await;
        let (store, faults) = Faults::new(Arc::new(bucket.clone()), FaultPlan::default());
        let (staging, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = engine(&store, options(staging.path(), [0, u64::MAX][usize::try_from(seed % 2).unwrap()], false));
        write_some(&first, &mut random).await;
        faults.set_down(true);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let own = left_by_a_kill(staging.path(), after.path());
        let before = uploads(&bucket).await;
        let bare: Arc<dyn Store> = Arc::new(bucket.clone());
        let next = engine(&bare, options(after.path(), 0, false));
        let aborted = next.abort_left_uploads().await;
        let left = uploads(&bucket).await;
        assert_eq!(left.len() + aborted, before.len(), "seed {seed}, {}", own.display());
        // Only those with the only copy of some bytes are left.
        let kept = KeptFiles::open(after.path()).unwrap().unwrap();
        let needed = |file: &&sandpail_fs::recover::KeptFile| !file.recorded().unwrap().in_upload.is_empty();
        let files = kept.list().unwrap();
        assert_eq!(left.len(), 1 + files.iter().filter(needed).count(), "seed {seed}: {left:?}");
        assert!(left.contains(&other), "seed {seed}: somebody else's is gone");
        for file in &files {
            match random.chance(0.5) {
                true => drop(kept.upload(file, Arc::clone(&bare), Damage::Refuse).await.unwrap()),
                false => kept.discard(file).unwrap(),
            }
        }
        next.abort_left_uploads().await;
        assert_eq!(uploads(&bucket).await, [other], "seed {seed}");
        assert!(!after.path().join("uploads").join(own.file_name().unwrap()).exists(), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_of_a_mount_goes_on_with_some_and_aborts_the_others() {
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let (bucket, other) = bucket().await;
        let (store, faults) = Faults::new(Arc::new(bucket.clone()), FaultPlan::default());
        let (staging, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let let_go_above = [0, u64::MAX][usize::try_from(seed % 2).unwrap()];
        let first = engine(&store, options(staging.path(), let_go_above, true));
        let files = write_some(&first, &mut random).await;
        first.settle();
        faults.set_down(true);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let own = left_by_a_kill(staging.path(), after.path());
        let mut old = File::from(first.share().unwrap().unwrap().ledger);
        let mut ledger = tempfile::tempfile().unwrap();
        old.seek(SeekFrom::Start(0)).unwrap();
        std::io::copy(&mut old, &mut ledger).unwrap();
        let left = Left { ledger: ledger.into(), staging: File::open(own).unwrap().into() };
        let bare: Arc<dyn Store> = Arc::new(bucket.clone());
        let runtime = tokio::runtime::Handle::current();
        let next = Engine::take_up(bare, options(after.path(), let_go_above, true), runtime, left).unwrap();
        next.abort_left_uploads().await;
        assert!(uploads(&bucket).await.contains(&other), "seed {seed}: somebody else's is gone");
        for (name, handle, bytes) in files {
            next.flush(handle).await.unwrap();
            next.release(handle).await;
            let key = ObjectKey::new(format!("data/{name}")).unwrap();
            let size = bucket.head(&key).await.unwrap().size;
            assert_eq!(size, bytes.len() as u64, "seed {seed}: {name}");
            if size > 0 {
                let found = collect(bucket.get(&key, 0..size, None).await.unwrap(), 1 << 20).await.unwrap();
                assert!(found == bytes, "seed {seed}: {name} has other bytes");
            }
        }
        assert_eq!(uploads(&bucket).await, [other], "seed {seed}");
    }
}

#[tokio::test]
async fn a_mount_that_takes_no_writes_aborts_nothing() {
    let (bucket, _) = bucket().await;
    let (store, faults) = Faults::new(Arc::new(bucket.clone()), FaultPlan::default());
    let (staging, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = engine(&store, options(staging.path(), u64::MAX, false));
    let opened = first.create(ROOT, b"f", 0o644, 0, 0, BOTH).await.unwrap();
    first.write(opened.handle, 0, &[7; 5000], false).unwrap();
    while uploads(&bucket).await.len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    faults.set_down(true);
    left_by_a_kill(staging.path(), after.path());
    let bare: Arc<dyn Store> = Arc::new(bucket.clone());
    let read_only = engine(&bare, EngineOptions { read_only: true, ..options(after.path(), 0, false) });
    assert_eq!((read_only.abort_left_uploads().await, uploads(&bucket).await.len()), (0, 2));
    let next = engine(&bare, options(after.path(), 0, false));
    assert_eq!((next.abort_left_uploads().await, uploads(&bucket).await.len()), (1, 1));
}
