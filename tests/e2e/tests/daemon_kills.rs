//! A daemon that is killed again and again under programs in a sandbox, which must not notice.
//!
//! The programs are those of `survive.py`, inside, in two mounts of one bucket; `sandboxes/daemon_kills.py` starts them, calls
//! the API meanwhile, and looks after each restart.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use sandpail_e2e::{Daemon, Mount, Script, ServerKind, Test, World, is_long, on_peer, short_or_long};

use crate::survive::SURVIVED;

pub(crate) const TESTS: &[Test] = &[
    Test::new("daemon_kills::programs_see_no_error", programs).minutes(8, 110),
    Test::new("daemon_kills::nor_while_a_mount_gets_another_process", overlapping)
        .on(&[ServerKind::Embedded])
        .minutes(8, 20),
];

/// The mounts, by their paths and prefixes.
const NAMES: [&str; 2] = ["through", "back"];

/// The longest between two kills, in milliseconds; and between a kill and the next start.
const WORK_MS: u64 = 1000;
const AWAY_MS: u64 = 300;
/// About as long as a daemon needs to take in what its predecessor left.
const START_MS: u64 = 150;

fn programs(world: &World) -> Result<()> {
    let (kills, seed) = (short_or_long(10, 1000), if is_long() { 2 } else { 1 });
    under_programs(world, seed, |daemon| {
        let clients = script(daemon, &format!("clients {seed}"))?.limit(Duration::from_secs(short_or_long(400, 6500)));
        std::thread::scope(|scope| {
            let clients = scope.spawn(move || clients.run());
            let killed = kill_again_and_again(daemon, kills, &mut Random(seed));
            let stopped = daemon.command("touch stop").and_then(|stop| stop.run());
            let called = clients.join().map_err(|_| anyhow!("the clients panicked"));
            let killed = killed?;
            stopped?;
            Ok(format!("{killed}\n{}", called??.trim()))
        })
    })
}

/// The process behind a mount is killed, and then the daemon, which has just given the mount to another one.
fn overlapping(world: &World) -> Result<()> {
    let kills = short_or_long(5, 100);
    under_programs(world, 3, |daemon| {
        for kill in 1..=kills {
            script(daemon, "overlap")?.run()?;
            daemon.kill()?;
            daemon.start_again()?;
            script(daemon, "check")?.run().with_context(|| format!("after {kill} kills"))?;
        }
        Ok(format!("{kills} kills of both"))
    })
}

/// Kills under programs that must not notice, and compares the bucket with what they were told.
fn under_programs(world: &World, seed: u64, kills: impl FnOnce(&mut Daemon) -> Result<String>) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mut daemon = Daemon::start(world)?;
    script(&daemon, &format!("begin {seed}"))?.run().with_context(|| daemon.log())?;
    let told = kills(&mut daemon).with_context(|| daemon.log())?;
    let kept = script(&daemon, &format!("end '{}'", world.local().display()))?.run().with_context(|| daemon.log())?;
    println!("{}: seed {seed}; {told}\n{}", world.kind().name(), kept.trim());
    script(&daemon, "workers")?.run().with_context(|| daemon.log())?;
    for name in NAMES {
        in_the_bucket(world, name).with_context(|| daemon.log())?;
    }
    daemon.command(r#"[ -z "$(find "$STATE/staging" -path '*/kept/*')" ]"#)?.run()?;
    daemon.end()
}

/// One of the things that `daemon_kills.py` does.
fn script(daemon: &Daemon, what: &str) -> Result<Script> {
    daemon.command(&format!("exec \"$PYTHON\" \"$SCRIPTS/daemon_kills.py\" {what}"))
}

/// Returns what it did.
fn kill_again_and_again(daemon: &mut Daemon, kills: u32, random: &mut Random) -> Result<String> {
    let (mut killed, mut at_start) = (0, 0);
    while killed < kills {
        random.wait(WORK_MS);
        daemon.kill()?;
        killed += 1;
        random.wait(AWAY_MS);
        while random.below(4) == 0 && killed < kills {
            daemon.begin()?;
            random.wait(START_MS);
            daemon.kill()?;
            killed += 1;
            at_start += 1;
        }
        daemon.start_again()?;
        script(daemon, "check")?.run().with_context(|| format!("after {killed} kills"))?;
    }
    ensure!(killed == kills, "{killed} kills");
    Ok(format!("{killed} kills of the daemon, {at_start} of them while it started"))
}

/// Compares the bucket with what the programs were told: object by object, then as another mount shows it.
fn in_the_bucket(world: &World, name: &str) -> Result<()> {
    let told = world.local().join(name);
    world.python(&format!(
        r#"
        import pathlib
        expected = {{path.name: path.read_bytes() for path in pathlib.Path("{told}/expected").iterdir()}}
        assert len(expected) > 3, expected.keys()
        found = {{key.rpartition("/")[2] for key in keys("{name}/files/")}} - {{""}}
        assert found == set(expected), found ^ set(expected)
        wrong = [file for file, data in expected.items() if get(f"{name}/files/{{file}}") != data]
        assert not wrong, wrong
        "#,
        told = told.display(),
    ))?;
    let mut plan = world.plan(name, &[])?;
    plan.endpoint = Some(world.server.endpoint());
    plan.source = format!("{}/{name}", world.bucket);
    let mount = Mount::start(plan)?;
    world.script_in(mount.path(), SURVIVED)?.env("LOCAL", told).run().with_context(|| mount.log())?;
    mount.unmount()
}

/// The same pauses for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn wait(&mut self, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(most_ms)));
    }
}
