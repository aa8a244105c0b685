//! The engine against a reference, by seed: random operations, changes by other clients of the bucket, and a store that
//! fails.
//!
//! A failure names its seed: `SANDPAIL_SEED=7 cargo test -p sandpail-fs --test model` runs that one alone.

mod reference;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno as E;
use sandpail_fs::FsResult;
use sandpail_fs::attr::{Kind, Time};
use sandpail_fs::engine::{Engine, EngineOptions, Left, Metadata, OpenMode, SetAttr, SetTime, WriteBack, as_request};
use sandpail_fs::errno::errno;
use sandpail_spec::{PathClass, PathClasses};
use sandpail_store::dir::DirStore;
use sandpail_store::memory::MemoryStore;
use sandpail_store::{Capabilities, Condition, ListRequest, ObjectAttributes, ObjectKey, PutBody, Store};
use sandpail_testkit::faults::{FaultPlan, Faults, Random};
use sandpail_testkit::model::{Content, Model, NodeId, Outcome, Replace};

use self::reference::{
    DIRECTORIES, Tree, alike, any_bytes, any_index, any_path, any_range, kind_of, model_of, same, short, split,
    tree_of, walk,
};

const FILE_LEN_MAX: u64 = 200_000;
/// What an engine has heard, it believes for this long at least.
const BELIEVED: Duration = Duration::from_millis(130);

struct Open {
    handle: u64,
    ino: u64,
    node: NodeId,
    path: String,
}

/// What follows a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kill {
    /// Another mount: what was closed with write-back must be there.
    Remount,
    /// Another process on the same mount: everything must be as it was, open files too.
    TakeUp,
}

/// How a mount is run.
#[derive(Clone, Copy, Debug)]
struct Mode {
    /// Closing does not wait for the bucket.
    write_back: bool,
    kill: Option<Kill>,
    /// Some paths are local, some are written back, some are durable.
    classes: bool,
}

/// By name anywhere, by place, and of directories only.
const CLASSES: [&str; 5] = ["d1=local", "**/c=local", "d0/e/=local", "a=durable", "d0/a=write-back"];

struct Run {
    seed: u64,
    random: Random,
    bucket: Arc<dyn Store>,
    faults: Option<Arc<Faults>>,
    /// The process is killed now and then, and the store of the next one fails like this.
    kills: Option<(Kill, FaultPlan)>,
    write_back: bool,
    /// The rules of the mount.
    classes: PathClasses,
    /// Of the kernel.
    next_request: AtomicU64,
    engine: Arc<Engine>,
    model: Model,
    open: Vec<Open>,
    trace: Vec<String>,
    staging: tempfile::TempDir,
}

fn options(seed: u64, staging: &tempfile::TempDir, write_back: bool, classes: &PathClasses) -> EngineOptions {
    let mut options = EngineOptions::new(staging.path().to_owned());
    options.metadata = if seed.is_multiple_of(2) { Metadata::Posix } else { Metadata::Auto };
    options.metadata_ttl = Duration::ZERO;
    options.part_len = 50_000;
    options.stream_threshold = 60_000;
    options.let_go_above = 80_000;
    // Some uploads begin at once, and at times there is no room for more that wait.
    let policy = WriteBack { delay: Duration::from_millis(3), bytes_max: 400_000, ..WriteBack::default() };
    options.write_back = (write_back || classes.gives(PathClass::WriteBack)).then_some(policy);
    options.write_back_by_default = write_back;
    options.path_classes = classes.clone();
    options.survives = true;
    options
}

fn new_engine(
    seed: u64,
    store: &Arc<dyn Store>,
    staging: &tempfile::TempDir,
    write_back: bool,
    classes: &PathClasses,
) -> Arc<Engine> {
    let options = options(seed, staging, write_back, classes);
    let engine = Engine::new(Arc::clone(store), options, tokio::runtime::Handle::current()).unwrap();
    engine.write_back();
    engine
}

impl Run {
    fn request(&self) -> u64 {
        self.next_request.fetch_add(2, Ordering::Relaxed)
    }

    async fn node(&self, path: &str) -> FsResult<u64> {
        let mut ino = 1;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            ino = self.engine.lookup(ino, name.as_bytes()).await?.ino;
        }
        Ok(ino)
    }

    fn path(&mut self) -> String {
        any_path(&mut self.random)
    }

    fn index(&mut self, len: usize) -> usize {
        any_index(&mut self.random, len)
    }

    fn range(&mut self) -> Range<usize> {
        any_range(&mut self.random, FILE_LEN_MAX)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        any_bytes(&mut self.random, len)
    }

    fn kind(&self, path: &str) -> Option<Kind> {
        kind_of(&self.model, path)
    }

    fn is_local(&self, path: &str, kind: Kind) -> bool {
        self.classes.class_of(path.as_bytes(), kind == Kind::Directory) == Some(PathClass::Local)
    }

    /// Whether a move would bring something from the bucket to this host only, or back.
    fn changes_class(&self, from: &str, to: &str) -> bool {
        let below = format!("{from}/");
        let moved = self.model.paths().into_iter().filter(|path| path == from || path.starts_with(&below));
        moved.into_iter().any(|path| {
            let kind = self.kind(&path).unwrap();
            self.is_local(&path, kind) != self.is_local(&format!("{to}{}", &path[from.len()..]), kind)
        })
    }

    fn fail(&self, message: &str) -> ! {
        let last = self.trace.len().saturating_sub(40);
        panic!("seed {}: {message}\nlast operations:\n{}", self.seed, self.trace[last..].join("\n"));
    }

    /// Both must agree. Says whether the engine failed where only a fault can have made it fail.
    fn was_hit<T>(&self, what: &str, ours: &FsResult<T>, theirs: Outcome<()>) -> bool {
        match (ours, theirs) {
            (Ok(_), Ok(())) => false,
            (Err(error), Err(expected)) if same(errno(error), expected) => false,
            (Err(_), _) if self.faults.is_some() => true,
            (Err(error), _) => self.fail(&format!("{what}: {error} ({:?}), expected {theirs:?}", errno(error))),
            (Ok(_), Err(expected)) => self.fail(&format!("{what}: succeeded, expected {expected:?}")),
        }
    }

    /// Runs a change on both sides.
    async fn change<T>(
        &mut self,
        what: String,
        ours: impl AsyncFnOnce(&Self) -> FsResult<T>,
        theirs: impl FnOnce(&mut Model) -> Outcome<()>,
    ) -> Option<T> {
        self.trace.push(what.clone());
        let before = self.model.clone();
        let expected = theirs(&mut self.model);
        let result = ours(self).await;
        if self.was_hit(&what, &result, expected) {
            self.trace.push(format!("  failed: {}", result.err().map(|error| error.to_string()).unwrap_or_default()));
            self.settle(&what, &before).await;
            return None;
        }
        result.ok()
    }

    fn pause(&self) {
        if let Some(faults) = &self.faults {
            faults.pause();
        }
    }

    fn resume(&self) {
        if let Some(faults) = &self.faults {
            faults.resume();
        }
    }

    /// After a failure each path must be as it was or as it was to be; what is then there is the new reference.
    async fn settle(&mut self, what: &str, before: &Model) {
        self.pause();
        for open in std::mem::take(&mut self.open) {
            self.engine.release(open.handle).await;
        }
        tokio::time::sleep(BELIEVED).await;
        let (old, new, real) = (tree_of(before), tree_of(&self.model), self.walk(&self.engine).await);
        let paths: BTreeSet<_> = old.keys().chain(new.keys()).chain(real.keys()).collect();
        for path in paths {
            let is = real.get(path);
            if !alike(is, old.get(path)) && !alike(is, new.get(path)) {
                let (old, new) = (short(old.get(path)), short(new.get(path)));
                self.fail(&format!("{what} failed, {path} was {old}, was to be {new}, and is {}", short(is)));
            }
        }
        // A move may leave both names, never none.
        if let Some(from) = what.strip_prefix("rename ").and_then(|rest| rest.split('|').next()) {
            let to = what.split('|').nth(1).unwrap();
            let is_there = |path: &str, seen| alike(real.get(path), seen);
            if old.contains_key(from) && !is_there(from, old.get(from)) && !is_there(to, old.get(from)) {
                self.fail(&format!("{what} failed, and the file is lost"));
            }
        }
        self.model = model_of(&real);
        self.resume();
    }

    async fn walk(&self, engine: &Arc<Engine>) -> Tree {
        walk(engine).await.unwrap_or_else(|problem| self.fail(&problem))
    }

    async fn compare(&self, engine: &Arc<Engine>, when: &str) {
        self.pause();
        let (real, expected) = (self.walk(engine).await, tree_of(&self.model));
        for path in real.keys().chain(expected.keys()) {
            if !alike(real.get(path), expected.get(path)) {
                let (is, wanted) = (short(real.get(path)), short(expected.get(path)));
                let more: Vec<_> = real.keys().filter(|path| !expected.contains_key(*path)).collect();
                self.fail(&format!("{when}: {path} is {is}, expected {wanted}; not expected: {more:?}"));
            }
        }
        self.resume();
    }

    async fn step(&mut self) {
        let path = self.path();
        match self.random.below(24) {
            0..=3 => self.create(path).await,
            4 | 5 => self.open(path).await,
            6..=8 => self.write().await,
            9 => self.cut().await,
            10 => self.read().await,
            11 | 12 => self.close().await,
            13 => {
                let ours = async |run: &Self| {
                    let (parent, name) = split(&path);
                    run.engine.unlink(run.node(parent).await?, name.as_bytes()).await
                };
                self.change(format!("unlink {path}"), ours, |model| model.unlink(&path)).await;
            }
            14 | 15 => {
                let path = *self.random.pick(&DIRECTORIES[1..]);
                let ours = async |run: &Self| {
                    let (parent, name) = split(path);
                    run.engine.mkdir(run.node(parent).await?, name.as_bytes(), 0o750, 0, 0).await
                };
                self.change(format!("mkdir {path}"), ours, |model| model.mkdir(path, 0o750).map(drop)).await;
            }
            16 => {
                let ours = async |run: &Self| {
                    let (parent, name) = split(&path);
                    run.engine.rmdir(run.node(parent).await?, name.as_bytes()).await
                };
                self.change(format!("rmdir {path}"), ours, |model| model.rmdir(&path)).await;
            }
            17 | 18 => self.rename(path).await,
            19 => {
                let ours = async |run: &Self| {
                    let (parent, name) = split(&path);
                    run.engine.symlink(run.node(parent).await?, name.as_bytes(), b"to/where", 0, 0).await
                };
                let theirs = |model: &mut Model| model.symlink("to/where", &path).map(drop);
                self.change(format!("symlink {path}"), ours, theirs).await;
            }
            20 if self.kind(&path) != Some(Kind::Symlink) => {
                let perm = *self.random.pick(&[0o600, 0o644, 0o755, 0o4711]);
                let set = SetAttr { perm: Some(perm), ..SetAttr::default() };
                let ours = async |run: &Self| run.engine.setattr(run.node(&path).await?, set).await;
                self.change(format!("chmod {perm:o} {path}"), ours, |model| model.chmod(&path, perm)).await;
            }
            21 if self.kind(&path) == Some(Kind::File) => {
                let secs = 1_000_000_000 + i64::try_from(self.random.below(1_000_000)).unwrap();
                let mtime = Some(SetTime::At(Time { secs, nanos: 5 }));
                let set = SetAttr { mtime, ..SetAttr::default() };
                let ours = async |run: &Self| run.engine.setattr(run.node(&path).await?, set).await;
                self.change(format!("utimens {secs} {path}"), ours, |model| model.utimens(&path, secs)).await;
            }
            22 => self.someone_else(path).await,
            23 => {
                self.trace.push("compare".to_owned());
                self.compare(&self.engine, "on the way").await;
            }
            _ => {}
        }
    }

    async fn create(&mut self, path: String) {
        let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
        let ours = async |run: &Self| {
            let (parent, name) = split(&path);
            let parent = run.node(parent).await?;
            as_request(run.request(), run.engine.create(parent, name.as_bytes(), 0o640, 0, 0, mode)).await
        };
        let theirs = |model: &mut Model| model.create(&path, 0o640).map(drop);
        if let Some(opened) = self.change(format!("create {path}"), ours, theirs).await {
            let node = self.model.lookup(&path).unwrap();
            self.open.push(Open { handle: opened.handle, ino: opened.stat.ino, node, path });
        }
    }

    async fn open(&mut self, path: String) {
        if self.kind(&path) == Some(Kind::Symlink) {
            return;
        }
        let truncate = self.random.chance(0.3);
        let mode = OpenMode { read: true, write: true, truncate, append: false };
        let ours = async |run: &Self| {
            let ino = run.node(&path).await?;
            as_request(run.request(), run.engine.open(ino, mode)).await
        };
        let theirs = |model: &mut Model| {
            let id = model.open(&path)?;
            if truncate { model.truncate(id, 0) } else { Ok(()) }
        };
        if let Some(opened) = self.change(format!("open {path} truncate {truncate}"), ours, theirs).await {
            let node = self.model.lookup(&path).unwrap();
            self.open.push(Open { handle: opened.handle, ino: opened.stat.ino, node, path });
        }
    }

    async fn write(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.index(self.open.len());
        let (handle, node) = (self.open[at].handle, self.open[at].node);
        let range = self.range();
        let data = self.bytes(range.len());
        self.trace.push(format!("write {} {range:?}", self.open[at].path));
        // What is written is local, so no fault of the store can make it fail.
        if let Err(error) = self.engine.write(handle, range.start as u64, &data, false) {
            self.fail(&format!("write: {error}"));
        }
        self.engine.backpressure(handle).await;
        self.model.write(node, range.start, &data).unwrap();
    }

    /// Cuts or grows a file, or clears a range of it.
    async fn cut(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.index(self.open.len());
        let (handle, ino, node) = (self.open[at].handle, self.open[at].ino, self.open[at].node);
        let range = self.range();
        let is_punch = self.random.chance(0.4);
        self.trace.push(format!("{} {} {range:?}", if is_punch { "punch" } else { "truncate" }, self.open[at].path));
        if !is_punch {
            let set = SetAttr { size: Some(range.start as u64), handle: Some(handle), ..SetAttr::default() };
            if let Err(error) = self.engine.setattr(ino, set).await {
                self.fail(&format!("truncate: {error}"));
            }
            self.model.truncate(node, range.start).unwrap();
            return;
        }
        if let Err(error) = self.engine.fallocate(handle, range.start as u64..range.end as u64, true, true) {
            self.fail(&format!("punch: {error}"));
        }
        let Content::File(bytes) = &self.model.node(node).content else { return };
        let (len, end) = (bytes.len(), range.end.min(bytes.len()));
        // The time moves in any case.
        self.model.truncate(node, len).unwrap();
        if range.start < end {
            self.model.write(node, range.start, &vec![0; end - range.start]).unwrap();
        }
    }

    async fn read(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.index(self.open.len());
        let (handle, node) = (self.open[at].handle, self.open[at].node);
        let range = self.range();
        self.trace.push(format!("read {} {range:?}", self.open[at].path));
        let expected = self.model.read(node, range.start, range.len()).unwrap();
        match self.engine.read(handle, range.start as u64, range.len() as u64).await {
            Ok(bytes) if bytes.concat() == expected => {}
            Ok(bytes) => self.fail(&format!("wrong bytes ({} of {})", bytes.concat().len(), expected.len())),
            Err(_) if self.faults.is_some() => {}
            Err(error) => self.fail(&format!("read: {error}")),
        }
    }

    async fn close(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.index(self.open.len());
        let open = self.open.swap_remove(at);
        self.trace.push(format!("close {}", open.path));
        if let (Err(error), None) = (&self.engine.flush(open.handle).await, &self.faults) {
            self.fail(&format!("close of {}: {error}", open.path));
        }
        self.engine.release(open.handle).await;
    }

    async fn rename(&mut self, from: String) {
        let to = self.path();
        // Of a directory's move that fails half-way both directories may be left, which is documented: with faults only
        // files are moved.
        if self.kind(&from) == Some(Kind::Directory) && self.faults.is_some() {
            return;
        }
        let no_replace = self.random.chance(0.2);
        let replace = if no_replace { Replace::No } else { Replace::Yes };
        let ours = async |run: &Self| {
            let ((parent, name), (new_parent, new_name)) = (split(&from), split(&to));
            let (parent, new_parent) = (run.node(parent).await?, run.node(new_parent).await?);
            run.engine.rename(parent, name.as_bytes(), new_parent, new_name.as_bytes(), no_replace).await
        };
        let changes_class = self.changes_class(&from, &to);
        if changes_class && self.kind(&from) == Some(Kind::Directory) {
            // Small ones are carried over, which `path_classes` tries with real programs.
            return;
        }
        let theirs = |model: &mut Model| {
            if !changes_class {
                return model.rename(&from, &to, replace);
            }
            // It does not happen.
            let first = model.clone().rename(&from, &to, replace);
            Err(if first == Err(E::NOENT) { E::NOENT } else { E::XDEV })
        };
        if self.change(format!("rename {from}|{to}|{replace:?}"), ours, theirs).await.is_some() {
            for open in &mut self.open {
                if open.path == from || open.path.starts_with(&format!("{from}/")) {
                    open.path = format!("{to}{}", &open.path[from.len()..]);
                }
            }
        }
    }

    /// The process is gone: the next one must find everything.
    async fn kill(&mut self, kill: Kill, plan: FaultPlan) {
        self.trace.push(format!("kill, {kill:?}"));
        self.pause();
        if kill == Kill::Remount {
            for open in std::mem::take(&mut self.open) {
                self.engine.release(open.handle).await;
            }
        }
        let faults = self.faults.take().expect("a store to cut off");
        faults.set_down(true);
        // What is on its way arrives.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let staging = tempfile::tempdir().unwrap();
        let own = copy_staging(self.staging.path(), staging.path());
        let (store, faults) = Faults::new(Arc::clone(&self.bucket), plan);
        faults.pause();
        let engine = match kill {
            Kill::Remount => {
                let engine = new_engine(self.seed, &store, &staging, true, &self.classes);
                engine.replay(Duration::from_secs(60)).await.unwrap();
                engine
            }
            Kill::TakeUp => {
                // The process before writes no more to its ledger.
                let mut old = File::from(self.engine.share().unwrap().unwrap().ledger);
                let mut ledger = tempfile::tempfile().unwrap();
                old.seek(SeekFrom::Start(0)).unwrap();
                std::io::copy(&mut old, &mut ledger).unwrap();
                let left = Left { ledger: ledger.into(), staging: File::open(own).unwrap().into() };
                let options = options(self.seed, &staging, self.write_back, &self.classes);
                let engine = Engine::take_up(store, options, tokio::runtime::Handle::current(), left).unwrap();
                engine.write_back();
                engine
            }
        };
        (self.engine, self.staging, self.faults) = (engine, staging, Some(faults));
        self.compare(&self.engine, "after a kill").await;
        self.pause();
        for open in &self.open {
            let expected = self.model.read(open.node, 0, usize::try_from(FILE_LEN_MAX * 2).unwrap()).unwrap();
            let found = self.engine.read(open.handle, 0, FILE_LEN_MAX * 2).await;
            if !found.as_ref().is_ok_and(|found| found.concat() == expected) {
                self.fail(&format!("the open file {} is another: {:?}", open.path, found.map(|found| found.len())));
            }
        }
        self.resume();
    }

    /// Another client changes the bucket.
    async fn someone_else(&mut self, path: String) {
        if self.write_back {
            self.pause();
            self.engine.sync().await;
            self.resume();
        }
        let is_ours = !self.open.is_empty() || self.engine.unstored_count() > 0;
        let is_file = self.kind(&path) == Some(Kind::File);
        let parent = split(&path).0;
        let is_free = self.kind(&path).is_none();
        let can_be_made = is_free && self.kind(parent) == Some(Kind::Directory);
        // Then the directory is there, too, without an object of its own.
        let with_parent = is_free
            && self.kind(parent).is_none()
            && self.kind(split(parent).0) == Some(Kind::Directory)
            && !self.is_local(parent, Kind::Directory);
        if is_ours || !(is_file || can_be_made || with_parent) || self.is_local(&path, Kind::File) {
            return;
        }
        let key = ObjectKey::new(&path).unwrap();
        if is_file && self.random.chance(0.4) {
            self.trace.push(format!("someone else deletes {path}"));
            self.bucket.delete(&key, None).await.unwrap();
            self.model.unlink(&path).unwrap();
            self.vanish(parent).await;
        } else {
            if with_parent {
                self.model.mkdir(parent, 0o755).unwrap();
            }
            let len = self.range().len();
            let data = self.bytes(len);
            self.trace.push(format!("someone else puts {path}: {} bytes", data.len()));
            let body = PutBody::from(bytes::Bytes::from(data.clone()));
            self.bucket.put(&key, body, &ObjectAttributes::default(), &Condition::Always).await.unwrap();
            if is_file {
                self.model.unlink(&path).unwrap();
            }
            let id = self.model.create(&path, 0o644).unwrap();
            self.model.write(id, 0, &data).unwrap();
        }
        tokio::time::sleep(BELIEVED).await;
    }

    /// Directories without an object of their own go with their last file.
    async fn vanish(&mut self, directory: &str) {
        let mut at = directory;
        while !at.is_empty() {
            let request = ListRequest { prefix: format!("{at}/"), max_keys: 1, ..ListRequest::default() };
            if !self.bucket.list(&request).await.unwrap().objects.is_empty() {
                return;
            }
            self.model.rmdir(at).unwrap();
            at = split(at).0;
        }
    }

    async fn finish(mut self) {
        self.pause();
        for open in std::mem::take(&mut self.open) {
            self.engine.release(open.handle).await;
        }
        let left = self.engine.drain().await;
        if !left.is_empty() {
            self.fail(&format!("not stored: {left:?}"));
        }
        // No more faults.
        self.faults = None;
        self.compare(&self.engine, "at the end").await;
        let local: Vec<String> = self.keys().await.into_iter().filter(|key| self.hides(key)).collect();
        if !local.is_empty() {
            self.fail(&format!("the bucket has local names: {local:?}"));
        }
        let staging = tempfile::tempdir().unwrap();
        copy_local(self.staging.path(), staging.path());
        let fresh = new_engine(self.seed, &self.bucket, &staging, false, &self.classes);
        self.compare(&fresh, "on a new mount").await;
    }

    async fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let mut request = ListRequest::default();
        loop {
            let page = self.bucket.list(&request).await.unwrap();
            keys.extend(page.objects.into_iter().map(|object| object.key));
            let Some(next) = page.next else { return keys };
            request.continuation = Some(next);
        }
    }

    fn hides(&self, key: &str) -> bool {
        let path = key.trim_end_matches('/');
        self.is_local(path, if path.len() < key.len() { Kind::Directory } else { Kind::File })
    }
}

/// What a kill leaves. Records first: only uploads go on meanwhile, which add to staging files before they say so. Gives the
/// process's own directory.
fn copy_staging(from: &Path, to: &Path) -> PathBuf {
    let mut own = PathBuf::new();
    copy_local(from, to);
    for process in std::fs::read_dir(from).unwrap().flatten() {
        if process.file_name() == "local" {
            continue;
        }
        let target = to.join(process.file_name());
        if process.file_name().to_string_lossy().starts_with("process-") {
            own.clone_from(&target);
        }
        std::fs::create_dir(&target).unwrap();
        let mut files: Vec<_> = std::fs::read_dir(process.path()).unwrap().flatten().map(|file| file.path()).collect();
        files.sort_by_key(|file| file.extension().is_none_or(|extension| extension != "record"));
        for file in files {
            // Stored meanwhile.
            if let Err(error) = std::fs::copy(&file, target.join(file.file_name().unwrap())) {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
            }
        }
    }
    own
}

/// The local tree, with what is open and has no name.
fn copy_local(from: &Path, to: &Path) {
    if from.join("local").exists() {
        let copied = std::process::Command::new("cp").arg("-a").arg(from.join("local")).arg(to).status().unwrap();
        assert!(copied.success());
    }
}

async fn run(seed: u64, count: u64, bucket: Arc<dyn Store>, plan: Option<FaultPlan>, mode: Mode) {
    let Mode { write_back, kill, classes } = mode;
    let classes = PathClasses::parse(if classes { &CLASSES[..] } else { &[] }, false).unwrap();
    let staging = tempfile::tempdir().unwrap();
    let (store, faults) = match plan.clone() {
        Some(plan) => {
            let (store, faults) = Faults::new(Arc::clone(&bucket), plan);
            (store, Some(faults))
        }
        None => (Arc::clone(&bucket), None),
    };
    let engine = new_engine(seed, &store, &staging, write_back, &classes);
    let kills = kill.zip(plan);
    let (random, model) = (Random::new(seed), Model::new(0, 0));
    let (open, trace) = (Vec::new(), Vec::new());
    let next_request = AtomicU64::new(2);
    let mut run = Run {
        seed,
        random,
        bucket,
        faults,
        kills,
        write_back,
        classes,
        next_request,
        engine,
        model,
        open,
        trace,
        staging,
    };
    for _ in 0..count {
        run.step().await;
        run.engine.settle();
        if let Some((kill, plan)) = run.kills.clone()
            && run.random.chance(0.03)
        {
            run.kill(kill, plan).await;
        }
    }
    run.finish().await;
}

/// Parts are short, so that files of the model have many; and not every store can copy them, or mix lengths.
fn memory(seed: u64) -> Arc<dyn Store> {
    let part_copy = !seed.is_multiple_of(4);
    let equal_parts = seed.is_multiple_of(3);
    let limits = Capabilities { part_len_min: 20_000, part_copy, equal_parts, ..Capabilities::default() };
    Arc::new(MemoryStore::with_capabilities(limits))
}

/// A store that fails in every way.
fn failing(seed: u64) -> (Arc<dyn Store>, Option<FaultPlan>) {
    let plan = FaultPlan {
        seed,
        refusals: 0.03,
        throttles: 0.01,
        lost_answers: 0.03,
        truncations: 0.03,
        delay_max: Duration::from_micros(200),
    };
    (memory(seed), Some(plan))
}

/// A store that only takes its time.
fn slow(seed: u64) -> (Arc<dyn Store>, Option<FaultPlan>) {
    let plan = FaultPlan { seed, delay_max: Duration::from_micros(200), ..FaultPlan::default() };
    (memory(seed), Some(plan))
}

fn seeds(short: u64, long: u64) -> Range<u64> {
    match std::env::var("SANDPAIL_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..if std::env::var_os("SANDPAIL_LONG").is_some() { long } else { short },
    }
}

/// Several seeds side by side, for much of a run is waiting.
async fn run_all(
    seeds: Range<u64>,
    count: u64,
    mode: Mode,
    start: impl Fn(u64) -> (Arc<dyn Store>, Option<FaultPlan>),
) {
    use futures_util::StreamExt;
    let runs = seeds.map(|seed| {
        let (bucket, plan) = start(seed);
        run(seed, count, bucket, plan, mode)
    });
    futures_util::stream::iter(runs).buffer_unordered(8).collect::<()>().await;
}

const PLAIN: Mode = Mode { write_back: false, kill: None, classes: false };
const REMOUNTED: Mode = Mode { write_back: true, kill: Some(Kill::Remount), classes: false };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_is_what_the_reference_is() {
    run_all(seeds(40, 2000), 200, PLAIN, |seed| (memory(seed), None)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_bucket_directory() {
    let directory = tempfile::tempdir().unwrap();
    let start = |seed| -> (Arc<dyn Store>, Option<FaultPlan>) {
        let path = directory.path().join(format!("b{seed}"));
        (Arc::new(DirStore::create(&path).unwrap()), None)
    };
    run_all(seeds(4, 100), 150, PLAIN, start).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_makes_no_wrong_bytes() {
    run_all(seeds(40, 2000), 120, PLAIN, failing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_closed_outlives_its_process() {
    run_all(seeds(40, 2000), 200, REMOUNTED, slow).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_closed_outlives_its_process_and_a_store_that_fails() {
    run_all(seeds(40, 2000), 120, REMOUNTED, failing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_goes_on_in_another_process() {
    for write_back in [false, true] {
        run_all(seeds(30, 2000), 200, Mode { write_back, kill: Some(Kill::TakeUp), classes: false }, slow).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_goes_on_in_another_process_over_a_store_that_fails() {
    for write_back in [false, true] {
        run_all(seeds(30, 2000), 120, Mode { write_back, kill: Some(Kill::TakeUp), classes: false }, failing).await;
    }
}

const CLASSED: Mode = Mode { classes: true, ..PLAIN };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_classes_nothing_looks_different() {
    run_all(seeds(40, 2000), 250, CLASSED, |seed| (memory(seed), None)).await;
    run_all(seeds(20, 1000), 150, Mode { write_back: true, ..CLASSED }, failing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_local_outlives_its_process() {
    run_all(seeds(15, 500), 200, Mode { classes: true, ..REMOUNTED }, slow).await;
    for write_back in [false, true] {
        let mode = Mode { write_back, kill: Some(Kill::TakeUp), ..CLASSED };
        run_all(seeds(15, 500), 200, mode, slow).await;
        run_all(seeds(8, 250), 120, mode, failing).await;
    }
}
