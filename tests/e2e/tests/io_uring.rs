//! Mounts that talk with the kernel by `io_uring`.

use std::fs::File;
use std::time::Duration;

use anyhow::{Result, ensure};
use sandpail_e2e::{ServerKind, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("io_uring::everyday_work", everyday).on(&[ServerKind::Embedded, ServerKind::SeaweedFs]),
    Test::new("io_uring::without_the_switch_the_device_serves", without),
    Test::new("io_uring::nobody_waits_for_a_dead_process", killed),
    Test::new("io_uring::needs_no_restart", alone),
];

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
const FALLEN_BACK: &str = "requests come by /dev/fuse";
const OPTION: &str = "--io-uring";

/// The kernel's switch, which is the machine's: one test at a time has it, and puts back what was.
struct Switch {
    before: String,
    _turn: File,
}

impl Switch {
    /// `None`, which is said, where the kernel has no rings.
    fn set(to: &str) -> Result<Option<Self>> {
        let turn = File::open("/dev/fuse")?;
        turn.lock()?;
        let Ok(before) = std::fs::read_to_string(SWITCH) else {
            println!("  skipped: this kernel has no FUSE over io_uring (Linux 6.14)");
            return Ok(None);
        };
        if before.trim() != to && std::fs::write(SWITCH, to).is_err() {
            println!("  skipped: FUSE over io_uring cannot be switched here");
            return Ok(None);
        }
        Ok(Some(Self { before, _turn: turn }))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = std::fs::write(SWITCH, self.before.trim());
    }
}

const WORK: &str = r#"
    mkdir -p a/b; for n in $(seq 50); do echo $n >a/f$n; done; head -c 40000000 /dev/urandom >big; cp big a/b/copy; cmp big a/b/copy
    ln -s ../big a/link; chmod 640 a/f1; touch -d '2003-03-03 UTC' a/f2; mv a/f3 a/b/moved; rm a/f4; setfattr -n user.x -v y a/f5
    printf later >>a/f6; dd if=/dev/zero of=big bs=4k seek=100 count=1 conv=notrunc status=none; truncate -s 30000000 a/b/copy
    git init --quiet -b main repo; cd repo; git config user.email a@b; git config user.name n
    for n in $(seq 30); do echo $n >f$n; done; git add .; git commit --quiet -m all; git fsck --full --strict; git gc --quiet; cd ..
    for n in $(seq 8); do (for m in $(seq 20); do echo $n $m >a/p$n-$m; cat a/p$n-$m >/dev/null; done; sha256sum big >/dev/null) & done; wait
    [ $(ls a | wc -l) = 210 ]; [ "$(getfattr --only-values -n user.x a/f5)" = y ]; [ "$(stat -c %a a/f1)" = 640 ]
"#;

const LIST: &str = r#"
    find . -printf '%p %y %m %s %l\n' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum
"#;

fn everyday(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let Some(_switch) = Switch::set("Y")? else { return Ok(()) };
    let mount = world.mount(&[OPTION])?;
    ensure!(!mount.log().contains(FALLEN_BACK), "{}", mount.log());
    let threads = std::fs::read_dir(format!("/proc/{}/task", mount.pid()))?
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with("fuse-ring"))
        .count();
    ensure!(threads > 0, "no thread serves a ring");
    world.script_in(mount.path(), WORK)?.limit(Duration::from_secs(300)).run()?;
    let wrote = world.script_in(mount.path(), LIST)?.run()?;
    mount.unmount()?;
    // The way to the kernel leaves nothing in the bucket.
    let read = world.script_in(world.mount(&[])?.path(), LIST)?.run()?;
    ensure!(wrote == read, "by a ring:\n{wrote}\nby the device:\n{read}");
    Ok(())
}

fn without(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let Some(_switch) = Switch::set("N")? else { return Ok(()) };
    let mount = world.mount(&[OPTION])?;
    ensure!(mount.log().contains(FALLEN_BACK) && mount.log().contains("enable_uring"), "{}", mount.log());
    world.script_in(mount.path(), "echo x >f; [ $(cat f) = x ]")?.run()?;
    mount.unmount()
}

fn killed(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let Some(_switch) = Switch::set("Y")? else { return Ok(()) };
    let mount = world.mount(&[OPTION])?;
    world.script_in(mount.path(), "mkdir d; for n in $(seq 100); do echo $n >d/f$n; done")?.run()?;
    let reads = "for n in $(seq 4); do (while cat d/* >/dev/null 2>&1; do :; done) & done; wait; echo ended";
    let directory = mount.path().to_owned();
    let work = world.script_in(&directory, reads)?.limit(Duration::from_secs(120));
    let ended = std::thread::scope(|scope| {
        let worker = scope.spawn(move || work.run());
        std::thread::sleep(Duration::from_secs(1));
        let crashed = mount.crash();
        let ended = worker.join().unwrap_or_else(|_| anyhow::bail!("the reader has panicked"));
        crashed.and(ended)
    })?;
    ensure!(ended.trim() == "ended", "{ended}");
    let again = world.mount(&[OPTION])?;
    world.script_in(again.path(), "[ $(cat d/f7) = 7 ]")?.run()?;
    again.unmount()
}

fn alone(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let script = "mkdir mnt; \"$SANDPAIL\" mount --io-uring dir:/ mnt 2>&1 && exit 1; ! mountpoint -q mnt";
    let said = world.script_in(&world.local(), script)?.run()?;
    ensure!(said.contains("--io-uring needs --no-restart"), "{said}");
    Ok(())
}
