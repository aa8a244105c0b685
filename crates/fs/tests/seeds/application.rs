//! A program that uses the mount and knows, by the reference tree, what it must see: while the mount lives, and after each
//! death.

#[path = "operations.rs"]
mod operations;

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
const STREAM_LEN_MIN: usize = 6_000;
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
        if world.is_like_aws {
            bucket.behave_as_aws();
        }
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
        // Who uses a store with old lists waits until they are not, after what was to be stored a little later, too: what is
        // done in between may not be seen.
        let stale_max = self.world.climate.stale_max;
        if stale_max.is_zero() && self.random.chance(SPECTATORS) {
            let directory = *self.random.pick(&DIRECTORIES);
            self.process().spectate(|engine| async move { look_around(&engine, directory).await });
        }
        loop {
            let answer = self.process().call(async |engine| {
                if !stale_max.is_zero() {
                    engine.sync().await;
                    tokio::time::sleep(stale_max).await;
                }
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
            // What was written again to a part that is only in an upload goes up after that is complete.
            let is_in_steps = is_remounted && self.world.is_streaming && soft.contains_key(path) && {
                let states = soft[path].iter().flatten().chain(old.get(path)).chain(new.get(path));
                is_made_of(is, &states.collect::<Vec<_>>())
            };
            let may_be = is_in_steps
                || what.strip_prefix(TORN) == Some(path) && is_mixed(is, old.get(path), new.get(path))
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
        // That an upload was about to be done could not be recorded, the disk being broken, and then its process died: to the
        // next one the object is somebody else's. It overwrites nothing, says so, and keeps what it has.
        let is_disputed = |file: &Unstored| file.reason.contains("was replaced in the bucket");
        if !left.is_empty() && self.world.disk.broken > 0.0 && self.summary.deaths > 0 && left.iter().all(is_disputed) {
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
        if self.world.is_streaming && self.random.chance(0.4) {
            // Long enough for an upload that begins while it is written.
            return 0..STREAM_LEN_MIN + self.index(usize::try_from(FILE_LEN_MAX).unwrap() - STREAM_LEN_MIN);
        }
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

/// Whether each byte is one of some files'.
fn is_made_of(found: Option<&Seen>, files: &[&Seen]) -> bool {
    let Some(Seen::File { bytes: found, .. }) = found else { return false };
    let files: Vec<&[u8]> = files
        .iter()
        .filter_map(|file| match file {
            Seen::File { bytes, .. } => Some(&bytes[..]),
            _ => None,
        })
        .collect();
    let has_len = files.iter().any(|file| file.len() == found.len());
    has_len && (0..found.len()).all(|at| files.iter().any(|file| file.get(at) == Some(&found[at])))
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
