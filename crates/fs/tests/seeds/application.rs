//! A program that uses the mount and knows, by the reference tree, what it must see: while the mount lives, and after each
//! death.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use sandpail_fs::FsResult;
use sandpail_fs::attr::{Kind, Time};
use sandpail_fs::engine::{Asked, Engine, OpenMode, SetAttr, SetTime, Unstored};
use sandpail_fs::errno::errno;
use sandpail_store::memory::MemoryStore;
use sandpail_testkit::faults::Random;
use sandpail_testkit::model::{Content, Model, NodeId, Outcome, Replace};
use sandpail_testkit::weather::Tally;

use crate::process::{Places, Process, Start};
use crate::reference::{
    DIRECTORIES, Seen, Tree, alike, any_bytes, any_index, any_path, any_range, kind_of, model_of, same, short, split,
    tree_of, walk,
};
use crate::world::{After, World};

const FILE_LEN_MAX: u64 = 20_000;
/// So many processes may die in a row before one lives on.
const DEATHS_MAX: u64 = 30;

/// How often somebody else looks at a directory while the program changes something.
const SPECTATORS: f64 = 0.3;

/// Begins what says that a write was cut off.
const TORN: &str = "cut off: a write to ";

struct Open {
    handle: u64,
    ino: u64,
    node: NodeId,
    /// `None` once it has no name any more.
    path: Option<String>,
}

/// What happened in a world.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) operations: u64,
    pub(crate) failed: u64,
    pub(crate) deaths: u64,
    /// Worlds at whose end a file was kept, and not stored.
    pub(crate) disputed: u64,
    pub(crate) tally: Tally,
}

/// What an operation came to.
enum Came<T> {
    /// It was answered as the reference was.
    Same(T),
    /// It failed, as the reference did.
    Refused,
    /// It failed by a fault, or its process died: the reference is what there is now.
    Settled,
}

pub(crate) struct Application {
    world: World,
    random: Random,
    bucket: MemoryStore,
    places: Places,
    process: Option<Process>,
    processes: u64,
    model: Model,
    open: Vec<Open>,
    /// What a path may be after a death, besides what it is: what was not yet safe.
    soft: BTreeMap<String, Vec<Option<Seen>>>,
    next_request: u64,
    trace: Vec<String>,
    summary: Summary,
}

impl Application {
    pub(crate) fn new(world: World) -> Self {
        let bucket = MemoryStore::with_capabilities(world.capabilities.clone());
        let mut application = Self {
            random: Random::new(world.seed.wrapping_add(1 << 40)),
            world,
            bucket,
            places: Places::new(),
            process: None,
            processes: 0,
            model: Model::new(0, 0),
            open: Vec::new(),
            soft: BTreeMap::new(),
            next_request: 2,
            trace: Vec::new(),
            summary: Summary::default(),
        };
        application.live(Start::Mount);
        application
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("somebody lives")
    }

    fn note(&mut self, what: String) {
        if std::env::var_os("SANDPAIL_TRACE").is_some() {
            eprintln!("{what}");
        }
        self.trace.push(what);
    }

    fn fail(&self, message: &str) -> ! {
        let last = self.trace.len().saturating_sub(40);
        panic!(
            "seed {}: {message}\n{:?}\nlast operations:\n{}\nstaged: {}",
            self.world.seed,
            self.world,
            self.trace[last..].join("\n"),
            self.places.staged().join("\n")
        );
    }

    fn life(&mut self) -> Option<u64> {
        self.world.life_max.map(|max| self.random.below(max))
    }

    /// A process begins, and another if that dies at once, until one lives.
    fn live(&mut self, mut start: Start) {
        loop {
            self.processes += 1;
            let life = self.life().filter(|_| !self.processes.is_multiple_of(DEATHS_MAX));
            match Process::start(&self.world, &self.bucket, &self.places, (self.processes, life), start) {
                Ok(process) => return self.process = Some(process),
                Err(left) => {
                    self.note("  dies at once".to_owned());
                    self.summary.deaths += 1;
                    start = left.map_or(Start::Mount, Start::TakeUp);
                }
            }
        }
    }

    /// The process is dead. The next one takes the mount up, or mounts anew.
    fn bury(&mut self) {
        let dead = self.process.take().expect("it lived");
        self.summary.deaths += 1;
        self.summary.tally += dead.weather.tally();
        self.note(format!("  dies, {:?}", self.world.after));
        let left = dead.die(self.world.lands);
        let start = match self.world.after {
            After::Remount => {
                // With it goes the lock on what was staged.
                drop(left);
                Start::Mount
            }
            After::TakeUp => Start::TakeUp(left),
        };
        self.live(start);
    }

    /// Asks the mount for something, as the kernel does. `None`: the process died, and the mount with it.
    fn ask<T>(&mut self, ask: impl AsyncFn(&Arc<Engine>, Asked) -> FsResult<T>) -> Option<FsResult<T>> {
        let mut asked = Asked { number: self.next_request, is_again: false };
        self.next_request += 2;
        // Who uses a store with old lists waits until they are not: what is done in between may not be seen.
        let stale_max = self.world.climate.stale_max;
        if stale_max.is_zero() && self.random.chance(SPECTATORS) {
            let directory = *self.random.pick(&DIRECTORIES);
            self.process().spectate(|engine| async move { look_around(&engine, directory).await });
        }
        loop {
            let answer = self.process().call(async |engine| {
                tokio::time::sleep(stale_max).await;
                ask(engine, asked).await
            });
            if let Some(answer) = answer {
                return Some(answer);
            }
            self.bury();
            if self.world.after == After::Remount {
                return None;
            }
            asked.is_again = true;
        }
    }

    /// Works undisturbed.
    fn undisturbed<T>(&mut self, work: impl AsyncFnOnce(&Arc<Engine>) -> T) -> T {
        self.process().pause();
        let done = self.process().call(async |engine| Ok(work(engine).await));
        let life = self.life();
        self.process().resume(life);
        match done {
            Some(Ok(done)) => done,
            _ => self.fail("undisturbed work was disturbed"),
        }
    }

    /// Long enough that everything believed is asked for again.
    fn believed(&self) -> Duration {
        self.world.climate.stale_max + Duration::from_secs(1)
    }

    fn walk(&mut self) -> Tree {
        let (believed, is_stale) = (self.believed(), !self.world.climate.stale_max.is_zero());
        let tree = self.undisturbed(async |engine| {
            if is_stale {
                engine.sync().await;
            }
            tokio::time::sleep(believed).await;
            walk(engine).await
        });
        tree.unwrap_or_else(|problem| self.fail(&problem))
    }

    fn compare(&mut self, when: &str) {
        let (real, expected) = (self.walk(), tree_of(&self.model));
        for path in real.keys().chain(expected.keys()) {
            if !alike(real.get(path), expected.get(path)) {
                let (is, wanted) = (short(real.get(path)), short(expected.get(path)));
                self.fail(&format!("{when}: {path} is {is}, expected {wanted}"));
            }
        }
        self.compare_numbers(when);
    }

    /// An open file and its path are one inode: sqlite, for one, takes its database for replaced if they are not.
    fn compare_numbers(&mut self, when: &str) {
        let open: Vec<_> = self.open.iter().filter_map(|open| Some((open.ino, open.path.clone()?))).collect();
        for (ino, path) in open {
            let found = self.undisturbed(async |engine| node(engine, &path).await);
            match found {
                Ok(found) if found == ino => {}
                found => self.fail(&format!("{when}: {path} is open as inode {ino}, its path is {found:?}")),
            }
        }
    }

    /// Runs a change on both sides.
    fn change<T>(
        &mut self,
        what: String,
        ours: impl AsyncFn(&Arc<Engine>, Asked) -> FsResult<T>,
        theirs: impl FnOnce(&mut Model) -> Outcome<()>,
    ) -> Came<T> {
        self.note(what.clone());
        self.summary.operations += 1;
        let before = self.model.clone();
        let expected = theirs(&mut self.model);
        match (self.ask(ours), expected) {
            (Some(Ok(done)), Ok(())) => return Came::Same(done),
            (Some(Err(error)), Err(expected)) if same(errno(&error), expected) => return Came::Refused,
            (Some(Err(error)), _) if !self.world.is_calm() => {
                self.note(format!("  failed: {error}"));
                self.summary.failed += 1;
                self.settle(&what, &before, false);
            }
            (Some(Err(error)), _) => {
                self.fail(&format!("{what}: {error} ({:?}), expected {expected:?}", errno(&error)));
            }
            (Some(Ok(_)), Err(expected)) => self.fail(&format!("{what}: succeeded, expected {expected:?}")),
            (None, _) => self.settle(&what, &before, true),
        }
        Came::Settled
    }

    /// What was asked for failed, or the mount is another one: each path must be as it was, or as it was to be, or, after
    /// a death, what it was before that and not yet safe. What is there is the new reference.
    fn settle(&mut self, what: &str, before: &Model, is_remounted: bool) {
        let open = std::mem::take(&mut self.open);
        self.undisturbed(async |engine| {
            if is_remounted {
                // Whatever is put back has been put back by then.
                tokio::time::sleep(Duration::from_secs(3600)).await;
                return;
            }
            for open in open {
                engine.release(open.handle).await;
            }
        });
        let (old, new, real) = (tree_of(before), tree_of(&self.model), self.walk());
        let soft = if is_remounted { std::mem::take(&mut self.soft) } else { BTreeMap::new() };
        let paths: BTreeSet<_> = old.keys().chain(new.keys()).chain(real.keys()).chain(soft.keys()).collect();
        for path in paths {
            let is = real.get(path);
            let may_be = what.strip_prefix(TORN) == Some(path) && is_mixed(is, old.get(path), new.get(path))
                || soft.get(path).is_some_and(|states| states.iter().any(|state| alike(is, state.as_ref())));
            if !may_be && !alike(is, old.get(path)) && !alike(is, new.get(path)) {
                let (old, new) = (short(old.get(path)), short(new.get(path)));
                let or: Vec<_> = soft.get(path).into_iter().flatten().map(|seen| short(seen.as_ref())).collect();
                self.fail(&format!("{what}: {path} was {old}, was to be {new} (or {or:?}), and is {}", short(is)));
            }
            if !is_remounted && !alike(old.get(path), new.get(path)) {
                let doubts = [old.get(path).cloned(), new.get(path).cloned()];
                self.soft.entry(path.clone()).or_default().extend(doubts);
            }
        }
        // A move may leave both names, never none.
        if let Some((from, to)) = what.strip_prefix("rename ").and_then(|rest| rest.split_once('|')) {
            let to = to.split('|').next().unwrap();
            let is_one = |path: &str| {
                let others = soft.get(from).into_iter().flatten().map(Option::as_ref);
                others.chain([old.get(from)]).any(|seen| alike(real.get(path), seen))
            };
            if old.contains_key(from) && !is_one(from) && !is_one(to) {
                self.fail(&format!("{what} failed, and the file is lost"));
            }
        }
        self.model = model_of(&real);
    }

    pub(crate) fn step(&mut self) {
        let path = self.path();
        match self.random.below(31) {
            0..=4 => self.create(path),
            5 | 6 => self.open(path),
            7..=10 => self.write(),
            11 => self.cut(),
            12 => self.punch(),
            13 => self.read(),
            14..=16 => self.close(),
            17 => self.fsync(),
            18 | 19 => self.unlink(&path),
            20 | 21 => self.mkdir(),
            22 => self.rmdir(&path),
            23 | 24 => self.rename(path),
            25 => self.symlink(&path),
            26 => self.set_attributes(&path),
            27 => self.idle(),
            28 => self.sync(),
            29 => self.rot(),
            _ => {
                self.note("compare".to_owned());
                self.compare("on the way");
            }
        }
    }

    pub(crate) fn finish(mut self) -> Summary {
        let open = std::mem::take(&mut self.open);
        let left = self.undisturbed(async |engine| {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            for open in open {
                engine.release(open.handle).await;
            }
            engine.drain().await
        });
        self.summary.tally += self.process().weather.tally();
        // That an upload was about to be done could not be recorded, the disk being full, and then its process died: to the
        // next one the object is somebody else's. It overwrites nothing, says so, and keeps what it has.
        let is_disputed = |file: &Unstored| file.reason.contains("was replaced in the bucket");
        if !left.is_empty() && self.world.disk.has_faults() && self.summary.deaths > 0 && left.iter().all(is_disputed) {
            self.summary.disputed += 1;
            return self.summary;
        }
        if !left.is_empty() {
            self.fail(&format!("not stored: {left:?}"));
        }
        self.compare("at the end");
        // A mount that ends well, and one of another host.
        self.process = None;
        self.world.life_max = None;
        self.places = Places::new();
        self.live(Start::Mount);
        self.compare("on a new mount");
        self.process = None;
        self.summary
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

    fn seen(&self, path: &str) -> Option<Seen> {
        tree_of(&self.model).remove(path)
    }

    fn kind(&self, path: &str) -> Option<Kind> {
        kind_of(&self.model, path)
    }

    /// What `path` is now may be lost by a change that is not yet safe.
    fn soften(&mut self, path: &str, was: Option<Seen>) {
        self.soft.entry(path.to_owned()).or_default().push(was);
    }

    fn harden(&mut self, path: &str) {
        self.soft.remove(path);
    }

    /// Whether a change of this file's attributes may wait for its bytes.
    fn is_soft(&self, path: &str) -> bool {
        self.soft.contains_key(path) || self.open.iter().any(|open| open.path.as_deref() == Some(path))
    }
}

/// Whether each byte is one of the two files'.
fn are_mixed(found: &[u8], old: &[u8], new: &[u8]) -> bool {
    let byte = |bytes: &[u8], at: usize| bytes.get(at).copied().unwrap_or(0);
    let has_len = (old.len().min(new.len())..=old.len().max(new.len())).contains(&found.len());
    has_len && (0..found.len()).all(|at| [byte(old, at), byte(new, at)].contains(&found[at]))
}

fn is_mixed(found: Option<&Seen>, old: Option<&Seen>, new: Option<&Seen>) -> bool {
    match (found, old, new) {
        (
            Some(Seen::File { bytes: found, .. }),
            Some(Seen::File { bytes: old, .. }),
            Some(Seen::File { bytes: new, .. }),
        ) => are_mixed(found, old, new),
        _ => false,
    }
}

async fn node(engine: &Arc<Engine>, path: &str) -> FsResult<u64> {
    let mut ino = 1;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        ino = engine.lookup(ino, name.as_bytes()).await?.ino;
    }
    Ok(ino)
}

/// What `ls -l` asks for, of interest to nobody.
async fn look_around(engine: &Arc<Engine>, directory: &str) -> FsResult<()> {
    let ino = node(engine, directory).await?;
    let handle = engine.opendir(ino)?;
    let listed = engine.readdir(handle, 0, 100, true).await;
    engine.releasedir(handle);
    for item in listed? {
        if item.name[..] != *b"." && item.name[..] != *b".." {
            engine.lookup(ino, &item.name).await?;
        }
    }
    Ok(())
}

/// What the program does.
impl Application {
    fn create(&mut self, path: String) {
        let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
        let (parent, name) = split(&path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let parent = node(engine, parent).await?;
            asked.create(engine, parent, name.as_bytes(), 0o640, 0, 0, mode).await
        };
        let theirs = |model: &mut Model| model.create(&path, 0o640).map(drop);
        if let Came::Same(opened) = self.change(format!("create {path}"), ours, theirs) {
            self.soften(&path, None);
            let node = self.model.lookup(&path).unwrap();
            self.open.push(Open { handle: opened.handle, ino: opened.stat.ino, node, path: Some(path) });
        }
    }

    fn open(&mut self, path: String) {
        if self.kind(&path) == Some(Kind::Symlink) {
            return;
        }
        let truncate = self.random.chance(0.3);
        let mode = OpenMode { read: true, write: true, truncate, append: false };
        let was = self.seen(&path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let ino = node(engine, &path).await?;
            asked.open(engine, ino, mode).await
        };
        let theirs = |model: &mut Model| {
            let id = model.open(&path)?;
            if truncate { model.truncate(id, 0) } else { Ok(()) }
        };
        if let Came::Same(opened) = self.change(format!("open {path} truncate {truncate}"), ours, theirs) {
            if truncate {
                self.soften(&path, was);
            }
            let node = self.model.lookup(&path).unwrap();
            self.open.push(Open { handle: opened.handle, ino: opened.stat.ino, node, path: Some(path) });
        }
    }

    /// One of the open files: handle, inode, node and path.
    fn pick(&mut self) -> Option<(u64, u64, NodeId, Option<String>)> {
        if self.open.is_empty() {
            return None;
        }
        let at = self.index(self.open.len());
        let Open { handle, ino, node, path } = &self.open[at];
        Some((*handle, *ino, *node, path.clone()))
    }

    /// A change of an open file's bytes, which is local and can fail by the disk only.
    fn edit<T>(
        &mut self,
        what: String,
        (node, path): (NodeId, Option<String>),
        handle: u64,
        ours: impl AsyncFn(&Arc<Engine>, Asked) -> FsResult<T>,
        theirs: impl FnOnce(&mut Model),
    ) {
        self.note(format!("{what} ({path:?})"));
        self.summary.operations += 1;
        let before = self.model.clone();
        if let Some(path) = &path {
            let was = self.seen(path);
            self.soften(path, was);
        }
        theirs(&mut self.model);
        match self.ask(ours) {
            Some(Ok(_)) => {}
            Some(Err(error)) if !self.world.is_calm() => {
                self.note(format!("  failed: {error}"));
                self.summary.failed += 1;
                self.accept(&what, handle, node, &before);
            }
            Some(Err(error)) => self.fail(&format!("{what}: {error}")),
            // Of a write that nobody was told of, some may be there.
            None => self.settle(&path.map_or(what, |path| format!("{TORN}{path}")), &before, true),
        }
    }

    /// Some of a change that failed may be there.
    fn accept(&mut self, what: &str, handle: u64, node: NodeId, before: &Model) {
        let all = usize::try_from(FILE_LEN_MAX * 4).unwrap();
        let found = self.undisturbed(async |engine| engine.read(handle, 0, FILE_LEN_MAX * 4).await);
        let found = match found {
            Ok(found) => found.concat(),
            Err(error) => self.fail(&format!("{what} failed, and the file cannot be read: {error}")),
        };
        let (old, new) = (before.read(node, 0, all).unwrap(), self.model.read(node, 0, all).unwrap());
        if !are_mixed(&found, old, new) {
            self.fail(&format!("{what} failed: the file is neither as before nor as it was to be"));
        }
        self.model.truncate(node, 0).unwrap();
        self.model.write(node, 0, &found).unwrap();
        let open = self.open.iter().find(|open| open.handle == handle).map(|open| (open.ino, open.path.clone()));
        let Some((ino, path)) = open else { return };
        if let Some(path) = path {
            // It may have kept its time.
            let old = before.node(node).mtime_ns;
            let stat = self.undisturbed(async |engine| engine.getattr(ino).await);
            if stat.is_ok_and(|stat| stat.attr.mtime.secs == old) {
                self.model.utimens(&path, old).unwrap();
            }
            let now = self.seen(&path);
            self.soften(&path, now);
        }
    }

    fn write(&mut self) {
        let Some((handle, _, node, path)) = self.pick() else { return };
        let range = self.range();
        let data = self.bytes(range.len());
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            asked.write(engine, handle, range.start as u64, &data, false)?;
            engine.backpressure(handle).await;
            Ok(())
        };
        let theirs = |model: &mut Model| model.write(node, range.start, &data).unwrap();
        self.edit(format!("write {range:?}"), (node, path), handle, ours, theirs);
    }

    fn cut(&mut self) {
        let Some((handle, ino, node, path)) = self.pick() else { return };
        let len = self.range().start;
        let set = SetAttr { size: Some(len as u64), handle: Some(handle), ..SetAttr::default() };
        let ours = async |engine: &Arc<Engine>, _: Asked| engine.setattr(ino, set).await;
        let theirs = |model: &mut Model| model.truncate(node, len).unwrap();
        self.edit(format!("truncate {len}"), (node, path), handle, ours, theirs);
    }

    fn punch(&mut self) {
        let Some((handle, _, node, path)) = self.pick() else { return };
        let range = self.range();
        let ours = async |engine: &Arc<Engine>, _: Asked| {
            engine.fallocate(handle, range.start as u64..range.end as u64, true, true)
        };
        let theirs = |model: &mut Model| {
            let Content::File(bytes) = &model.node(node).content else { return };
            let (len, end) = (bytes.len(), range.end.min(bytes.len()));
            // The time moves in any case.
            model.truncate(node, len).unwrap();
            if range.start < end {
                model.write(node, range.start, &vec![0; end - range.start]).unwrap();
            }
        };
        self.edit(format!("punch {range:?}"), (node, path), handle, ours, theirs);
    }

    fn read(&mut self) {
        let Some((handle, _, node, path)) = self.pick() else { return };
        let range = self.range();
        self.note(format!("read {range:?} of {path:?}"));
        let expected = self.model.read(node, range.start, range.len()).unwrap().to_vec();
        let before = self.model.clone();
        let ours =
            async |engine: &Arc<Engine>, _: Asked| engine.read(handle, range.start as u64, range.len() as u64).await;
        match self.ask(ours) {
            Some(Ok(bytes)) if bytes.concat() == expected => {}
            Some(Ok(bytes)) => self.fail(&format!("wrong bytes ({} of {})", bytes.concat().len(), expected.len())),
            Some(Err(_)) if !self.world.is_calm() => self.summary.failed += 1,
            Some(Err(error)) => self.fail(&format!("read: {error}")),
            None => self.settle("read", &before, true),
        }
    }

    fn close(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.index(self.open.len());
        let (handle, path) = (self.open[at].handle, self.open[at].path.clone());
        self.store("close", path, async |engine, _| engine.flush(handle).await);
        // After a remount there is no such handle any more.
        let Some(at) = self.open.iter().position(|open| open.handle == handle) else { return };
        self.open.swap_remove(at);
        let before = self.model.clone();
        let released = self.ask(async |engine: &Arc<Engine>, _: Asked| {
            engine.release(handle).await;
            Ok(())
        });
        if released.is_none() {
            self.settle("release", &before, true);
        }
    }

    fn fsync(&mut self) {
        let Some((handle, _, _, path)) = self.pick() else { return };
        self.store("fsync", path, async |engine, _| engine.fsync(handle).await);
    }

    /// Something after which a file is safe.
    fn store(&mut self, what: &str, path: Option<String>, ours: impl AsyncFn(&Arc<Engine>, Asked) -> FsResult<()>) {
        self.note(format!("{what} {path:?}"));
        self.summary.operations += 1;
        let before = self.model.clone();
        match self.ask(ours) {
            Some(Ok(())) => {
                if let Some(path) = path {
                    self.harden(&path);
                }
            }
            Some(Err(error)) if !self.world.is_calm() => {
                self.note(format!("  failed: {error}"));
                self.summary.failed += 1;
            }
            Some(Err(error)) => self.fail(&format!("{what} of {path:?}: {error}")),
            None => self.settle(what, &before, true),
        }
    }

    fn unlink(&mut self, path: &str) {
        let (parent, name) = split(path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let parent = node(engine, parent).await?;
            asked.unlink(engine, parent, name.as_bytes()).await
        };
        if let Came::Same(()) = self.change(format!("unlink {path}"), ours, |model| model.unlink(path)) {
            self.harden(path);
            for open in &mut self.open {
                if open.path.as_deref() == Some(path) {
                    open.path = None;
                }
            }
        }
    }

    fn mkdir(&mut self) {
        let path = *self.random.pick(&DIRECTORIES[1..]);
        let (parent, name) = split(path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let parent = node(engine, parent).await?;
            asked.mkdir(engine, parent, name.as_bytes(), 0o750, 0, 0).await
        };
        let made = self.change(format!("mkdir {path}"), ours, |model| model.mkdir(path, 0o750).map(drop));
        if let Came::Same(_) = made {
            self.harden(path);
        }
    }

    fn rmdir(&mut self, path: &str) {
        let (parent, name) = split(path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let parent = node(engine, parent).await?;
            asked.rmdir(engine, parent, name.as_bytes()).await
        };
        if let Came::Same(()) = self.change(format!("rmdir {path}"), ours, |model| model.rmdir(path)) {
            self.harden(path);
        }
    }

    fn symlink(&mut self, path: &str) {
        let (parent, name) = split(path);
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let parent = node(engine, parent).await?;
            asked.symlink(engine, parent, name.as_bytes(), b"to/where", 0, 0).await
        };
        let theirs = |model: &mut Model| model.symlink("to/where", path).map(drop);
        if let Came::Same(_) = self.change(format!("symlink {path}"), ours, theirs) {
            self.harden(path);
        }
    }

    fn set_attributes(&mut self, path: &str) {
        let was = self.seen(path);
        let perm = *self.random.pick(&[0o600, 0o644, 0o755, 0o4711]);
        let secs = 1_000_000_000 + i64::try_from(self.random.below(1_000_000)).unwrap();
        let changed = match self.kind(path) {
            Some(Kind::Symlink) => return,
            Some(Kind::File) if self.random.chance(0.5) => {
                let set = SetAttr { mtime: Some(SetTime::At(Time { secs, nanos: 5 })), ..SetAttr::default() };
                let ours = async |engine: &Arc<Engine>, _: Asked| engine.setattr(node(engine, path).await?, set).await;
                self.change(format!("utimens {secs} {path}"), ours, |model| model.utimens(path, secs))
            }
            _ => {
                let set = SetAttr { perm: Some(perm), ..SetAttr::default() };
                let ours = async |engine: &Arc<Engine>, _: Asked| engine.setattr(node(engine, path).await?, set).await;
                self.change(format!("chmod {perm:o} {path}"), ours, |model| model.chmod(path, perm))
            }
        };
        if let Came::Same(_) = changed
            && self.is_soft(path)
        {
            self.soften(path, was);
        }
    }

    fn rename(&mut self, from: String) {
        let to = self.path();
        // Of a directory's move that fails half-way both directories may be left, which is documented.
        let can_fail = !self.world.is_calm() || self.world.life_max.is_some();
        if self.kind(&from) == Some(Kind::Directory) && can_fail {
            return;
        }
        let no_replace = self.random.chance(0.2);
        let replace = if no_replace { Replace::No } else { Replace::Yes };
        let target = self.seen(&to);
        let ((parent, name), (new_parent, new_name)) = (split(&from), split(&to));
        let ours = async |engine: &Arc<Engine>, asked: Asked| {
            let (parent, new_parent) = (node(engine, parent).await?, node(engine, new_parent).await?);
            asked.rename(engine, (parent, name.as_bytes()), (new_parent, new_name.as_bytes()), no_replace).await
        };
        let theirs = |model: &mut Model| model.rename(&from, &to, replace);
        let Came::Same(()) = self.change(format!("rename {from}|{to}|{replace:?}"), ours, theirs) else { return };
        if from == to {
            return;
        }
        for open in &mut self.open {
            let Some(path) = &open.path else { continue };
            if *path == to {
                open.path = None;
            } else if *path == from || path.starts_with(&format!("{from}/")) {
                open.path = Some(format!("{to}{}", &path[from.len()..]));
            }
        }
        // What is not safe under its new name may leave what had that before.
        let before_target = self.soft.remove(&to).unwrap_or_default();
        let under = format!("{from}/");
        let moved: Vec<String> =
            self.soft.keys().filter(|path| **path == from || path.starts_with(&under)).cloned().collect();
        for path in moved {
            let mut states = self.soft.remove(&path).unwrap();
            if path == from {
                states.push(target.clone());
                states.extend(before_target.clone());
            }
            self.soft.insert(format!("{to}{}", &path[from.len()..]), states);
        }
    }

    /// Nobody asks for anything, for a while.
    fn idle(&mut self) {
        let pause = Duration::from_millis(self.random.below(30_000));
        self.note(format!("idle {pause:?}"));
        let before = self.model.clone();
        let ours = async |_: &Arc<Engine>, _: Asked| {
            tokio::time::sleep(pause).await;
            Ok(())
        };
        if self.ask(ours).is_none() {
            self.settle("idle", &before, true);
        }
    }

    /// Bits of what is cached flip.
    fn rot(&mut self) {
        let files: Vec<_> = std::fs::read_dir(self.places.cache.path()).unwrap().flatten().collect();
        for file in files {
            let mut bytes = std::fs::read(file.path()).unwrap();
            if !bytes.is_empty() && self.random.chance(0.5) {
                let at = self.index(bytes.len());
                bytes[at] ^= 1 << self.random.below(8);
                self.note(format!("bit rot in {}", file.path().display()));
                std::fs::write(file.path(), bytes).unwrap();
            }
        }
    }

    fn sync(&mut self) {
        self.note("sync".to_owned());
        let before = self.model.clone();
        match self.ask(async |engine: &Arc<Engine>, _: Asked| Ok(engine.sync().await.failed)) {
            // What is open and changed goes up, too.
            Some(Ok(failed)) if failed.is_empty() => self.soft.clear(),
            Some(Ok(failed)) if self.world.is_calm() => self.fail(&format!("sync: {failed:?}")),
            Some(_) => {}
            None => self.settle("sync", &before, true),
        }
    }
}
