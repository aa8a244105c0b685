//! A process with a mount, in virtual time, that dies between any two of its steps.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandpail_fs::FsResult;
use sandpail_fs::engine::{Engine, EngineOptions, Left, Metadata, WriteBack};
use sandpail_fs::write::{DiskChange, set_disk_hook};
use sandpail_store::Store;
use sandpail_store::memory::MemoryStore;
use sandpail_testkit::faults::Random;
use sandpail_testkit::weather::{Fate, Weather};
use tokio::runtime::Runtime;

use crate::world::{DiskFaults, World};

/// Nothing takes longer, by the clock of the world; whatever does hangs.
const HANGS: Duration = Duration::from_secs(24 * 3600);

/// What the dead leave to those who take their mount up.
pub(crate) struct Legacy {
    ledger: Arc<Mutex<Vec<u8>>>,
    staging: std::os::fd::OwnedFd,
}

pub(crate) struct Process {
    // Before the runtime, whose end ends the tasks that hold it, too.
    pub(crate) engine: Arc<Engine>,
    runtime: Option<Runtime>,
    pub(crate) weather: Arc<Weather>,
    pub(crate) fate: Arc<Fate>,
    disk: Arc<Disk>,
    left: Option<Left>,
    ledger: Arc<Mutex<Vec<u8>>>,
}

/// The disk of a process.
#[derive(Debug)]
struct Disk {
    state: Mutex<DiskState>,
    faults: DiskFaults,
}

#[derive(Debug)]
struct DiskState {
    random: Random,
    is_paused: bool,
    full_for: u64,
}

impl Disk {
    fn before(&self, change: DiskChange) -> io::Result<Duration> {
        let mut state = self.state.lock().unwrap();
        let DiskState { random, is_paused, full_for } = &mut *state;
        if *is_paused {
            return Ok(Duration::ZERO);
        }
        if random.chance(self.faults.full) {
            *full_for = random.below(20) + 1;
        }
        let takes_room = matches!(change, DiskChange::Create | DiskChange::Write(_) | DiskChange::Record);
        if *full_for > 0 && takes_room {
            *full_for -= 1;
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()));
        }
        if random.chance(self.faults.broken) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        let micros = u64::try_from(self.faults.sync_max.as_micros()).unwrap();
        Ok(Duration::from_micros(random.below(micros + 1)))
    }
}

fn options(world: &World, staging: &Path, cache: Option<&Path>) -> EngineOptions {
    let mut options = EngineOptions::new(staging.to_owned());
    options.metadata = if world.seed.is_multiple_of(3) { Metadata::Auto } else { Metadata::Posix };
    options.metadata_ttl = Duration::ZERO;
    options.part_len = 5_000;
    options.stream_threshold = 6_000;
    options.let_go_above = 8_000;
    // Some uploads begin at once, and at times there is no room for more that wait.
    let policy = WriteBack { delay: Duration::from_secs(1), bytes_max: 40_000, ..WriteBack::default() };
    options.write_back = world.write_back.then_some(policy);
    options.survives = true;
    options.cache = cache.map(|dir| (dir.to_owned(), 1 << 24));
    options
}

/// Where the files of a world are.
pub(crate) struct Places {
    pub(crate) staging: tempfile::TempDir,
    pub(crate) cache: tempfile::TempDir,
}

impl Places {
    pub(crate) fn new() -> Self {
        // In memory where there is such a thing: no disk is asked, so none makes the worlds wait.
        let memory = Path::new("/dev/shm");
        let make = || if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self { staging: make().unwrap(), cache: make().unwrap() }
    }

    /// The files that are staged.
    pub(crate) fn staged(&self) -> Vec<String> {
        let (mut left, mut found) = (vec![self.staging.path().to_owned()], Vec::new());
        while let Some(dir) = left.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(meta) if meta.is_dir() => left.push(entry.path()),
                    Ok(meta) => found.push(format!("{} ({} bytes)", entry.path().display(), meta.len())),
                    Err(_) => {}
                }
            }
        }
        found
    }
}

/// How a process begins.
pub(crate) enum Start {
    Mount,
    TakeUp(Legacy),
}

impl Process {
    /// Begins one that lives for `life` steps. `None`: it died before it could answer anybody; then what the one before
    /// had left is left again.
    pub(crate) fn start(
        world: &World,
        bucket: &MemoryStore,
        places: &Places,
        (number, life): (u64, Option<u64>),
        start: Start,
    ) -> Result<Self, Option<Legacy>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let fate = Fate::new();
        let mut climate = world.climate.clone();
        climate.seed = world.seed.wrapping_mul(1000).wrapping_add(number);
        let weather = Weather::over(bucket.clone(), climate, Arc::clone(&fate));
        let state = DiskState { random: Random::new(world.seed ^ number << 32), is_paused: false, full_for: 0 };
        let disk = Arc::new(Disk { state: Mutex::new(state), faults: world.disk.clone() });
        let (hook_fate, hook_disk) = (Arc::clone(&fate), Arc::clone(&disk));
        set_disk_hook(Some(Box::new(move |change| {
            if !hook_fate.step() {
                return Err(io::Error::other("the process is dead"));
            }
            hook_disk.before(change)
        })));
        // Beginning to live is not for those who have no disk: that is a mount that fails, and tested elsewhere.
        disk.state.lock().unwrap().is_paused = true;
        let cache = world.has_cache.then(|| places.cache.path());
        let options = options(world, places.staging.path(), cache);
        let store: Arc<dyn Store> = Arc::clone(&weather) as Arc<dyn Store>;
        let mut again = None;
        let engine = {
            let _entered = runtime.enter();
            match start {
                Start::Mount => {
                    arm(&fate, life, None);
                    Engine::new(store, options, runtime.handle().clone())
                }
                Start::TakeUp(Legacy { ledger, staging }) => {
                    let file = tempfile::tempfile().unwrap();
                    file.write_all_at(&ledger.lock().unwrap(), 0).unwrap();
                    arm(&fate, life, Some((&file, &ledger)));
                    again = Some(Legacy { ledger, staging: staging.try_clone().unwrap() });
                    let left = Left { ledger: file.into(), staging };
                    Engine::take_up(store, options, runtime.handle().clone(), left)
                }
            }
        };
        let engine = match engine {
            Ok(engine) if !fate.is_dead() => engine,
            Err(error) if !fate.is_dead() => panic!("seed {}: no engine: {error}", world.seed),
            _ => return Err(again),
        };
        let left = engine.share().unwrap();
        let process = Self { engine, runtime: Some(runtime), weather, fate, disk, left, ledger: Arc::default() };
        process.arm(life);
        let is_new = again.is_none();
        let begun = process.call(async |engine| {
            engine.write_back();
            if is_new {
                engine.replay(Duration::from_secs(60)).await?;
            } else {
                engine.wait_until_quiet(async {}).await;
            }
            Ok(())
        });
        match begun {
            Some(Ok(())) => {
                process.disk.state.lock().unwrap().is_paused = false;
                Ok(process)
            }
            Some(Err(error)) => panic!("seed {}: {error}", world.seed),
            None => Err(Some(process.die(world.lands)).filter(|_| !is_new)),
        }
    }

    /// It dies after `life` more steps.
    fn arm(&self, life: Option<u64>) {
        let file = self.left.as_ref().map(|left| File::from(left.ledger.try_clone().unwrap()));
        arm(&self.fate, life, file.as_ref().map(|file| (file, &self.ledger)));
    }

    /// Good weather and a good disk, and no death, until [`Process::resume`].
    pub(crate) fn pause(&self) {
        self.fate.spare();
        self.weather.pause();
        self.disk.state.lock().unwrap().is_paused = true;
    }

    pub(crate) fn resume(&self, life: Option<u64>) {
        self.weather.resume();
        self.disk.state.lock().unwrap().is_paused = false;
        self.arm(life);
    }

    /// Asks it for something. `None`: it died, and nobody was answered.
    pub(crate) fn call<T>(&self, ask: impl AsyncFnOnce(&Arc<Engine>) -> FsResult<T>) -> Option<FsResult<T>> {
        let work = async {
            tokio::select! {
                biased;
                () = self.fate.death() => None,
                answer = tokio::time::timeout(HANGS, ask(&self.engine)) => {
                    let answer = answer.unwrap_or_else(|_| panic!("it hangs"));
                    // Its last word may have been lost on the way; and before it is heard, the ledger is written.
                    if !self.fate.step() {
                        return None;
                    }
                    self.engine.settle();
                    self.fate.step().then_some(answer)
                }
            }
        };
        let answer = self.runtime.as_ref().unwrap().block_on(work);
        answer.filter(|_| !self.fate.is_dead())
    }

    /// Lets somebody ask it for something, beside everything else and for as long as that takes.
    pub(crate) fn spectate<F>(&self, look: impl FnOnce(Arc<Engine>) -> F)
    where
        F: Future<Output = FsResult<()>> + Send + 'static,
    {
        let looks = look(Arc::clone(&self.engine));
        // What they are told is not what this is about.
        self.runtime.as_ref().unwrap().spawn(async move { drop(looks.await) });
    }

    /// What happens when it is dead.
    pub(crate) fn die(mut self, lands: f64) -> Legacy {
        assert!(self.fate.is_dead());
        self.weather.land(lands);
        drop(self.runtime.take());
        let Left { staging, .. } = self.left.take().expect("it survives");
        Legacy { ledger: Arc::clone(&self.ledger), staging }
    }
}

/// After `life` more steps death comes, at which the ledger is copied: what is written there later is nobody's word.
fn arm(fate: &Fate, life: Option<u64>, ledger: Option<(&File, &Arc<Mutex<Vec<u8>>>)>) {
    let Some(life) = life else { return };
    let ledger = ledger.map(|(file, copy)| (file.try_clone().unwrap(), Arc::clone(copy)));
    fate.die_after(life, move || {
        if let Some((file, copy)) = ledger {
            let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            *copy.lock().unwrap() = bytes;
        }
    });
}
