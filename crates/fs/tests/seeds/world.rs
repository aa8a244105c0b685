//! What a seed stands for: a store and a network, a disk, and how long processes live.

use std::time::Duration;

use sandpail_store::Capabilities;
use sandpail_testkit::faults::Random;
use sandpail_testkit::weather::Climate;

/// What follows a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Another mount: what was closed must be there.
    Remount,
    /// Another process on the same mount: everything must be as it was, also what is open.
    TakeUp,
}

/// How often a change of the staging directory fails.
#[derive(Clone, Debug, Default)]
pub(crate) struct DiskFaults {
    /// The disk is full for a while.
    pub(crate) full: f64,
    /// A change fails with `EIO`.
    pub(crate) broken: f64,
    /// Bringing bytes to the disk takes up to this long.
    pub(crate) sync_max: Duration,
}

/// A world.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) write_back: bool,
    pub(crate) after: After,
    pub(crate) climate: Climate,
    pub(crate) capabilities: Capabilities,
    pub(crate) disk: DiskFaults,
    /// A process lives for at most so many steps; `None`: for ever.
    pub(crate) life_max: Option<u64>,
    /// What the dead had sent arrives with this probability.
    pub(crate) lands: f64,
    /// Reads are kept on the disk, where bits flip.
    pub(crate) has_cache: bool,
    /// Many writes begin at the beginning, and are long.
    pub(crate) is_streaming: bool,
    /// A copy of an object has another tag, and each object a type.
    pub(crate) is_like_aws: bool,
}

impl World {
    /// The world of a seed. Some are calm in one way or another, so that what goes wrong is seen apart from the rest.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut some = |share: f64, max: f64| if random.chance(share) { max * unit(&mut random) } else { 0.0 };
        let climate = Climate {
            seed,
            slow: some(0.4, 0.1),
            refusals: some(0.5, 0.1),
            throttles: some(0.3, 0.05),
            lost_answers: some(0.5, 0.1),
            duplicates: some(0.5, 0.2),
            truncations: some(0.4, 0.1),
            storms: some(0.3, 0.01),
            ..Climate::default()
        };
        let disk = DiskFaults { full: some(0.2, 0.01), broken: some(0.2, 0.01), sync_max: Duration::ZERO };
        let lands = some(0.7, 1.0);
        let mut upto = |share: f64, max: u64| if random.chance(share) { random.below(max) + 1 } else { 0 };
        let climate = Climate {
            latency_max: Duration::from_millis(upto(0.8, 200)),
            slow_max: Duration::from_secs(upto(1.0, 30)),
            storm_max: Duration::from_secs(upto(1.0, 60)),
            skew_max_secs: upto(0.3, 86_400),
            stale_max: Duration::from_secs(upto(STALE, 10)),
            ..climate
        };
        let disk = DiskFaults { sync_max: Duration::from_millis(upto(0.3, 2000)), ..disk };
        let life_max = Some(upto(0.8, 150)).filter(|life| *life > 0);
        let part_copy = !random.chance(0.25);
        let equal_parts = random.chance(0.3);
        Self {
            seed,
            write_back: random.chance(0.5),
            after: if random.chance(0.5) { After::Remount } else { After::TakeUp },
            climate,
            capabilities: Capabilities { part_len_min: 2000, part_copy, equal_parts, ..Capabilities::default() },
            disk,
            life_max,
            lands,
            has_cache: random.chance(0.3),
            is_streaming: false,
            is_like_aws: false,
        }
    }

    /// Whether an operation may fail for no fault of the program.
    pub(crate) fn is_calm(&self) -> bool {
        let Climate { refusals, throttles, lost_answers, truncations, storms, .. } = self.climate;
        [refusals, throttles, lost_answers, truncations, storms, self.disk.full, self.disk.broken]
            .iter()
            .all(|probability| *probability == 0.0)
    }
}

/// Share of worlds whose lists are old.
const STALE: f64 = 0.15;

/// From 0 to 1.
fn unit(random: &mut Random) -> f64 {
    f64::from(u32::try_from(random.below(1 << 20)).unwrap_or_default()) / f64::from(1 << 20)
}
