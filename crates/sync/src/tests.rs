//! Both sides in a test: a directory, and a bucket in memory. Rounds are driven by hand; nothing sleeps.

mod attacks;
mod random;
mod rounds;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandpail_spec::KeyPrefix;
use sandpail_store::memory::MemoryStore;
use sandpail_store::{Condition, ListRequest, ObjectAttributes, ObjectKey, PutBody, Store, collect};
use tempfile::TempDir;

use crate::run::{Engine, Outcome, Pace};
use crate::{SyncError, SyncOptions, open_directory};

struct Both {
    temp: TempDir,
    bucket: MemoryStore,
    /// What the engine sees of the bucket.
    store: Arc<dyn Store>,
    prefix: &'static str,
    read_only: bool,
}

impl Both {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("dir")).unwrap();
        let bucket = MemoryStore::new();
        Self { temp, store: Arc::new(bucket.clone()), bucket, prefix: "/", read_only: false }
    }

    fn root(&self) -> PathBuf {
        self.temp.path().join("dir")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn options(&self) -> SyncOptions {
        let metadata = fs::metadata(self.root()).unwrap();
        SyncOptions {
            directory: open_directory(&self.root()).unwrap(),
            store: Arc::clone(&self.store),
            prefix: KeyPrefix::parse(self.prefix).unwrap(),
            read_only: self.read_only,
            interval: Duration::from_secs(1),
            owner: (metadata.uid(), metadata.gid()),
            ids: 0..u32::MAX,
            state_file: self.temp.path().join("state/sync.json"),
        }
    }

    async fn engine(&self) -> Engine {
        let mut engine = Engine::new(self.options()).await.unwrap();
        engine.set_times(Duration::ZERO, Duration::ZERO);
        engine
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }

    async fn put(&self, key: &str, content: &str) {
        self.put_as(key, content, ObjectAttributes::default()).await;
    }

    async fn put_as(&self, key: &str, content: &str, attributes: ObjectAttributes) {
        let body = PutBody::from(Bytes::from(content.to_owned()));
        self.bucket.put(&ObjectKey::new(key).unwrap(), body, &attributes, &Condition::Always).await.unwrap();
    }

    async fn delete(&self, key: &str) {
        self.bucket.delete(&ObjectKey::new(key).unwrap(), None).await.unwrap();
    }

    async fn get(&self, key: &str) -> Option<String> {
        get(&self.bucket, key).await
    }

    async fn keys(&self) -> Vec<String> {
        let page = self.bucket.list(&ListRequest::default()).await.unwrap();
        assert_eq!(page.next, None);
        page.objects.into_iter().map(|object| object.key).collect()
    }

    /// All of the bucket below the prefix.
    async fn objects(&self) -> BTreeMap<String, String> {
        let prefix = KeyPrefix::parse(self.prefix).unwrap();
        let mut all = BTreeMap::new();
        for key in self.keys().await {
            if let Some(path) = key.strip_prefix(prefix.as_str()) {
                all.insert(path.to_owned(), self.get(&key).await.unwrap());
            }
        }
        all
    }

    /// All of the directory: files, and empty directories with a slash at the end.
    fn files(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        walk(&self.root(), "", &mut all);
        all
    }
}

async fn get(store: &dyn Store, key: &str) -> Option<String> {
    let key = ObjectKey::new(key).unwrap();
    let info = store.head(&key).await.ok()?;
    if info.size == 0 {
        return Some(String::new());
    }
    let bytes = collect(store.get(&key, 0..info.size, None).await.unwrap(), 64 << 20).await.unwrap();
    Some(String::from_utf8(bytes.to_vec()).unwrap())
}

fn walk(dir: &Path, path: &str, all: &mut BTreeMap<String, String>) {
    let mut is_empty = true;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        is_empty = false;
        let name = entry.file_name().into_string().unwrap();
        let below = if path.is_empty() { name } else { format!("{path}/{name}") };
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            walk(&entry.path(), &below, all);
        } else if kind.is_symlink() {
            all.insert(below, fs::read_link(entry.path()).unwrap().to_str().unwrap().to_owned());
        } else {
            all.insert(below, fs::read_to_string(entry.path()).unwrap());
        }
    }
    if is_empty && !path.is_empty() {
        all.insert(format!("{path}/"), String::new());
    }
}

/// Rounds until nothing is left to do, checking that it comes to that.
async fn quiesce(engine: &mut Engine) {
    for _ in 0..10 {
        let before = (engine.report.uploaded, engine.report.downloaded, engine.report.deleted, engine.report.conflicts);
        let outcome = engine.round(Pace { hurry: true }).await.unwrap();
        let after = (engine.report.uploaded, engine.report.downloaded, engine.report.deleted, engine.report.conflicts);
        if outcome == Outcome::default() && before == after {
            assert_eq!(engine.report.failed, []);
            return;
        }
    }
    panic!("it does not come to rest: {:?}", engine.report);
}
