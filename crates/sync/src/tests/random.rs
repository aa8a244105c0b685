//! Random changes on both sides with a store that fails now and then: nothing is lost, and it comes to rest equal.

use std::collections::BTreeSet;

use super::*;
use sandpail_testkit::faults::{FaultPlan, Faults, Random};

const PATHS: [&str; 8] = ["a", "b", "d/a", "d/b", "d/e/a", "f", "f/a", "ü +%"];

/// What a side holds was written by somebody; what was there and is not must have been removed or overwritten, on the
/// side where it was, by its owner.
struct Owners {
    /// Contents that nobody has given up: each must be somewhere.
    alive: BTreeSet<String>,
}

impl Owners {
    fn give_up(&mut self, content: Option<String>) {
        if let Some(content) = content {
            self.alive.remove(&content);
        }
    }
}

async fn world(seed: u64, operations: u64) {
    let mut both = Both::new();
    let plan = FaultPlan {
        seed,
        refusals: 0.05,
        throttles: 0.02,
        lost_answers: 0.06,
        truncations: 0.1,
        ..FaultPlan::default()
    };
    let (store, faults) = Faults::new(Arc::clone(&both.store), plan);
    both.store = store;
    let mut random = Random::new(seed);
    let mut owners = Owners { alive: BTreeSet::new() };
    let mut engine = both.engine().await;
    for number in 0..operations {
        operation(&both, &mut random, &mut owners, &format!("{seed}.{number} ")).await;
        if random.chance(0.4) {
            // A side that cannot be looked at is no failure of the test.
            let _: Result<_, SyncError> = engine.round(Pace { hurry: random.chance(0.5) }).await;
        }
        if random.chance(0.05) {
            drop(engine);
            engine = both.engine().await;
        }
    }
    faults.pause();
    quiesce(&mut engine).await;
    let files = both.files();
    let mut objects = both.objects().await;
    // An object under a directory's name has no place in the directory, a marker with files no counterpart.
    let hidden: Vec<String> = objects
        .keys()
        .filter(|key| match key.strip_suffix('/') {
            Some(_) => objects.keys().any(|other| other != *key && other.starts_with(*key)),
            None => objects.keys().any(|other| other.starts_with(&format!("{key}/"))),
        })
        .cloned()
        .collect();
    let everywhere: BTreeSet<String> = objects.values().chain(files.values()).cloned().collect();
    for key in hidden {
        objects.remove(&key);
    }
    assert_eq!(files, objects, "seed {seed}");
    for content in &owners.alive {
        assert!(everywhere.contains(content), "seed {seed}: {content:?} is lost; there is {everywhere:?}");
    }
}

async fn operation(both: &Both, random: &mut Random, owners: &mut Owners, content: &str) {
    let path = *random.pick(&PATHS);
    match random.below(8) {
        0..=2 => {
            let here = both.read(path);
            let parent = both.path(path).parent().unwrap().to_owned();
            if fs::create_dir_all(&parent).is_ok() && fs::write(both.path(path), content).is_ok() {
                owners.give_up(here);
                owners.alive.insert(content.to_owned());
            }
        }
        3..=4 => {
            owners.give_up(both.get(path).await);
            both.put(path, content).await;
            owners.alive.insert(content.to_owned());
        }
        5 => {
            let here = both.read(path);
            if fs::remove_file(both.path(path)).is_ok() {
                owners.give_up(here);
            }
        }
        6 => {
            owners.give_up(both.get(path).await);
            both.delete(path).await;
        }
        _ => {
            let to = *random.pick(&PATHS);
            let target = both.read(to);
            if both.path(path).is_file() && path != to && fs::rename(both.path(path), both.path(to)).is_ok() {
                owners.give_up(target);
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_lost_and_both_sides_are_equal_in_the_end() {
    let seeds = std::env::var("SANDPAIL_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(40);
    // 197: a file moved away and back, while the answer to the removal of its object was lost.
    for seed in (0..seeds).chain([197]) {
        world(seed, 60).await;
    }
}
