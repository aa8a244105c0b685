//! Power cuts, simulated from the system calls that the store really makes.
//!
//! A child process plays random operations on an embedded bucket under `strace` (`play`). Its calls (`trace`) are done
//! again on a simulated disk (`replay`, `disk`) that knows what was synced. After any call the power may go: what is
//! left then is written to a directory, in several ways, and opened as a bucket, and must be what the operations and
//! their answers say (`check`).
//!
//! A failure names its seed, and keeps its trace: `SANDPAIL_SEED=7` runs this seed alone, with `SANDPAIL_CUT=120` this
//! cut alone; with `SANDPAIL_TRACE=DIR` the calls are not made again but taken from a trace that was kept, so that
//! threads take turns as they did. `SANDPAIL_LONG=1` cuts after every call, for more seeds.

mod check;
mod disk;
mod play;
mod replay;
mod trace;

use std::path::{Path, PathBuf};
use std::process::Command;

use self::check::History;
use self::disk::{Disk, Ino, Kept, ROOT, Random};
use self::play::{Said, Script};
use self::replay::{Replay, Step, shown};

const CHILD: &str = "SANDPAIL_TEST_PLAY";

/// How one seed is played.
#[derive(Clone, Copy, Debug)]
struct Scene {
    seed: u64,
    worker_count: u64,
    op_count: u64,
    /// At which of its syncs a first process is killed. Another one goes on in its place.
    kill_at: Option<u64>,
}

impl Scene {
    fn of(seed: u64) -> Self {
        let kill_at = (seed % 3 == 2).then_some(seed / 3 * 7 % 40 + 1);
        Self { seed, worker_count: if seed.is_multiple_of(2) { 1 } else { 4 }, op_count: 48, kill_at }
    }
}

/// How much is tried of one seed.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Cuts are this many steps apart, on average.
    stride: usize,
    random_images: u64,
}

/// Not a test of its own: what is traced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_plays() {
    let Ok(script) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = script.split(' ').collect();
    let number = |at: usize| words[at].parse().unwrap();
    let script = Script { seed: number(0), round: number(1), worker_count: number(2), op_count: number(3) };
    play::play(script, Path::new(words[4]), Path::new(words[5])).await;
}

/// How often a scene is played for a trace that can be followed.
const RECORDINGS_MAX: usize = 5;

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let long = std::env::var_os("SANDPAIL_LONG").is_some();
    let given = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
    let seeds = match std::env::var("SANDPAIL_SEED") {
        Ok(seeds) => match seeds.split_once("..") {
            Some((start, end)) => start.parse().unwrap()..end.parse().unwrap(),
            None => seeds.parse().unwrap()..seeds.parse::<u64>().unwrap() + 1,
        },
        Err(_) => 0..if long { 60 } else { 6 },
    };
    let only_cut: Option<u64> = given("SANDPAIL_CUT");
    let alone = only_cut.is_some() || seeds.end - seeds.start == 1;
    let effort = match (long, alone) {
        (true, _) => Effort { stride: 1, random_images: 8 },
        (false, true) => Effort { stride: 1, random_images: 4 },
        (false, false) => Effort { stride: 9, random_images: 3 },
    };
    let (mut cut_count, mut image_count) = (0, 0);
    for seed in seeds {
        // What four threads do at the same time is not always told in an order that is one: then they do it once more.
        let mut tries = (0..RECORDINGS_MAX).map(|_| run(Scene::of(seed), effort, only_cut));
        let ran = tries.find_map(|ran| ran.map_err(|why| println!("seed {seed}: {why}")).ok());
        let (cuts, images) =
            ran.unwrap_or_else(|| panic!("seed {seed}: none of {RECORDINGS_MAX} traces can be followed"));
        cut_count += cuts;
        image_count += images;
    }
    println!("{cut_count} power cuts, {image_count} images");
    assert!(image_count > 0);
}

/// Plays a scene and cuts the power. Gives how many cuts and images there were; an error if its trace cannot be followed.
fn run(scene: Scene, effort: Effort, only_cut: Option<u64>) -> Result<(u64, u64), String> {
    let (directory, is_given) = match std::env::var_os("SANDPAIL_TRACE") {
        Some(given) => (PathBuf::from(given), true),
        None => (in_memory().keep(), false),
    };
    let processes = if is_given { 0 } else { play_scene(scene, &directory) };
    let base = std::fs::read_to_string(directory.join("base")).unwrap();
    let marks = format!("{}/marks", base.strip_suffix("/disk").unwrap());

    let mut replay = Replay::new(&base, &marks);
    let mut cutter = Cutter::new(scene.seed, effort, only_cut);
    let mut process_count = 0;
    while let Ok(text) = std::fs::read_to_string(directory.join(format!("trace.{process_count}"))) {
        let calls = trace::parse(&text);
        let followed = replay.process(&calls, |disk, call, step| cutter.step(disk, &shown(call), step));
        if let Err(why) = followed {
            if !is_given {
                std::fs::remove_dir_all(&directory).unwrap();
            }
            return Err(why);
        }
        cutter.history.process_died();
        process_count += 1;
    }
    assert!(process_count > 0 && (is_given || process_count == processes));
    if let Some(first) = cutter.failures.first() {
        let what = |failure: &String| failure.lines().next().map(|line| format!("  {:.300}", line));
        let more: Vec<String> = cutter.failures.iter().skip(1).filter_map(what).take(20).collect();
        panic!(
            "{scene:?}: {} of {} images are wrong. The first one:\n{first}\nothers:\n{}\nagain: SANDPAIL_SEED={} \
             SANDPAIL_TRACE={} cargo test -p sandpail-store --test power_cut (with SANDPAIL_CUT=… one of them alone)",
            cutter.failures.len(),
            cutter.image_count,
            more.join("\n"),
            scene.seed,
            directory.display(),
        );
    }
    if !is_given {
        compare(&replay.disk, ROOT, &directory.join("disk"));
        std::fs::remove_dir_all(&directory).unwrap();
    }
    Ok((cutter.cut_count, cutter.image_count))
}

/// Plays a scene and keeps its traces in `directory`. Returns how many processes there were.
fn play_scene(scene: Scene, directory: &Path) -> usize {
    // As the store will call it.
    let directory = &std::fs::canonicalize(directory).unwrap();
    let disk = directory.join("disk");
    std::fs::create_dir(&disk).unwrap();
    std::fs::write(directory.join("base"), disk.to_str().unwrap()).unwrap();
    let marks = directory.join("marks");
    // Whose parents are to be made, too.
    let bucket = disk.join("host/bucket");
    let kills: Vec<Option<u64>> = scene.kill_at.map(Some).into_iter().chain([None]).collect();
    for (round, kill_at) in kills.iter().enumerate() {
        std::fs::write(&marks, "").unwrap();
        let Scene { seed, worker_count, op_count, .. } = scene;
        let script = format!("{seed} {round} {worker_count} {op_count} {} {}", bucket.display(), marks.display());
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "child_that_plays", "--nocapture"]).env(CHILD, script);
        let output = trace::run(&mut program, *kill_at, &directory.join(format!("trace.{round}")));
        assert!(
            output.status.success() || kill_at.is_some(),
            "seed {seed}: the traced process ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    kills.len()
}

/// The simulated disk without a cut must be the real one, or the simulation is wrong.
fn compare(disk: &Disk, ino: Ino, real: &Path) {
    let mut names: Vec<String> =
        std::fs::read_dir(real).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    let entries = disk.entries(ino).unwrap_or_else(|| panic!("{} is no directory in the simulation", real.display()));
    assert_eq!(names, entries.keys().cloned().collect::<Vec<_>>(), "the simulation of {} is wrong", real.display());
    for (name, ino) in entries {
        let path = real.join(name);
        match disk.data(*ino) {
            Some(data) => assert!(std::fs::read(&path).unwrap() == data, "simulation of {} is wrong", path.display()),
            None => compare(disk, *ino, &path),
        }
    }
}

/// Cuts the power after steps.
struct Cutter {
    effort: Effort,
    only_cut: Option<u64>,
    history: History,
    random: Random,
    runtime: tokio::runtime::Runtime,
    step_count: u64,
    cut_count: u64,
    image_count: u64,
    /// The last steps, for people.
    recent: Vec<String>,
    failures: Vec<String>,
}

impl Cutter {
    fn new(seed: u64, effort: Effort, only_cut: Option<u64>) -> Self {
        Self {
            effort,
            only_cut,
            history: History::default(),
            random: Random(seed << 1 | 1),
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            step_count: 0,
            cut_count: 0,
            image_count: 0,
            recent: Vec::new(),
            failures: Vec::new(),
        }
    }

    fn step(&mut self, disk: &Disk, call: &str, step: Step) {
        self.recent.push(call.to_owned());
        let mut is_answer = false;
        if let Step::Said(line) = step {
            let said: Said = serde_json::from_str(&line).unwrap();
            // A promise counts from here on, so this is where most can be broken.
            is_answer = matches!(said, Said::Ended { .. } | Said::Created | Said::Over);
            self.history.add(said);
        }
        self.step_count += 1;
        let stride = if is_answer { self.effort.stride.div_ceil(3) } else { self.effort.stride };
        let chosen = self.random.below(stride) == 0;
        if self.only_cut.map_or(chosen, |only| only == self.step_count) {
            self.cut(disk);
        }
    }

    fn cut(&mut self, disk: &Disk) {
        self.cut_count += 1;
        let random = (0..self.effort.random_images).map(|at| Kept::Some { seed: self.step_count << 8 | at });
        let fixed = [Kept::Everything, Kept::Nothing, Kept::Names, Kept::NamesAndSizes, Kept::Data];
        for kept in fixed.into_iter().chain(random) {
            self.image_count += 1;
            let image = in_memory();
            let root = image.path().join("disk");
            disk.write_image(kept, &root);
            let bucket = root.join("host/bucket");
            if let Err(why) = self.runtime.block_on(check::check(&bucket, &self.history)) {
                let recent = self.recent[self.recent.len().saturating_sub(25)..].join("\n  ");
                let step = self.step_count;
                self.failures.push(format!(
                    "power cut {step}, {kept:?} kept of what was not synced: {why}\nthe last calls:\n  {recent}"
                ));
            }
        }
    }
}

/// A directory in memory where there is such a place: nothing here needs a disk that keeps anything.
fn in_memory() -> tempfile::TempDir {
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("sandpail-power-cut-");
        builder
    };
    builder().tempdir_in("/dev/shm").or_else(|_| builder().tempdir()).unwrap()
}
