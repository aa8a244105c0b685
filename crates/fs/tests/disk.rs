//! A local disk that takes nothing more: what that costs, and what it does not.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sandpail_fs::engine::{Engine, EngineOptions, OpenMode, SetAttr};
use sandpail_fs::errno::{Errno, errno};
use sandpail_fs::write::{DiskChange, set_disk_hook};
use sandpail_store::memory::MemoryStore;

const ROOT: u64 = 1;
const WRITE: OpenMode = OpenMode { read: true, write: true, append: false, truncate: false };

fn engine(staging: &tempfile::TempDir) -> Arc<Engine> {
    let options = EngineOptions::new(staging.path().to_owned());
    Engine::new(Arc::new(MemoryStore::new()), options, tokio::runtime::Handle::current()).unwrap()
}

/// From now on, changes of this kind fail as on a full disk.
fn fill(full: Option<DiskChange>) {
    set_disk_hook(Some(Box::new(move |change| {
        if full.is_some_and(|full| std::mem::discriminant(&full) == std::mem::discriminant(&change)) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()));
        }
        Ok(Duration::ZERO)
    })));
}

async fn names(engine: &Arc<Engine>) -> Vec<String> {
    let handle = engine.opendir(ROOT).unwrap();
    let listed = engine.readdir(handle, 0, 100, false).await.unwrap();
    engine.releasedir(handle);
    let names = listed.into_iter().map(|entry| String::from_utf8(entry.name.to_vec()).unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}

#[tokio::test]
async fn a_file_that_could_not_be_made_is_in_no_listing() {
    for full in [DiskChange::Create, DiskChange::Record] {
        let staging = tempfile::tempdir().unwrap();
        let engine = engine(&staging);
        // The listing is believed for a while.
        assert_eq!(names(&engine).await, [""; 0]);
        fill(Some(full));
        let refused = engine.create(ROOT, b"a", 0o644, 0, 0, WRITE).await;
        assert_eq!(refused.map(|_| ()).map_err(|error| errno(&error)), Err(Errno::ENOSPC), "{full:?}");
        assert_eq!(names(&engine).await, [""; 0], "{full:?}");
        fill(None);
        let opened = engine.create(ROOT, b"a", 0o644, 0, 0, WRITE).await.unwrap();
        engine.flush(opened.handle).await.unwrap();
        engine.release(opened.handle).await;
        assert_eq!(names(&engine).await, ["a"]);
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_cut_on_the_disk_is_cut_all_the_same() {
    let staging = tempfile::tempdir().unwrap();
    let engine = engine(&staging);
    let opened = engine.create(ROOT, b"a", 0o644, 0, 0, WRITE).await.unwrap();
    engine.write(opened.handle, 0, &[7; 5000], false).unwrap();
    fill(Some(DiskChange::Resize));
    let cut = SetAttr { size: Some(100), handle: Some(opened.handle), ..SetAttr::default() };
    engine.setattr(opened.stat.ino, cut).await.unwrap();
    fill(None);
    // What was cut off does not come back when the file grows over it.
    engine.write(opened.handle, 3000, &[8; 10], false).unwrap();
    let found = engine.read(opened.handle, 0, 1 << 20).await.unwrap().concat();
    let expected = [vec![7; 100], vec![0; 2900], vec![8; 10]].concat();
    assert!(found == expected, "{} bytes", found.len());
    engine.flush(opened.handle).await.unwrap();
}

/// A change that could be lost with the process is not said to be made.
#[tokio::test]
async fn attributes_of_a_file_that_cannot_be_recorded_stay_as_they_are() {
    let staging = tempfile::tempdir().unwrap();
    let engine = engine(&staging);
    let opened = engine.create(ROOT, b"a", 0o644, 0, 0, WRITE).await.unwrap();
    engine.write(opened.handle, 0, b"bytes", false).unwrap();
    let perm = async |perm| {
        let set = SetAttr { perm: Some(perm), handle: Some(opened.handle), ..SetAttr::default() };
        engine.setattr(opened.stat.ino, set).await.map(|stat| stat.attr.perm).map_err(|error| errno(&error))
    };
    assert_eq!(perm(0o600).await, Ok(0o600));
    fill(Some(DiskChange::Record));
    assert_eq!(perm(0o640).await, Err(Errno::ENOSPC));
    assert_eq!(engine.getattr(opened.stat.ino).await.unwrap().attr.perm, 0o600);
    fill(None);
    assert_eq!(perm(0o640).await, Ok(0o640));
    engine.flush(opened.handle).await.unwrap();
}
