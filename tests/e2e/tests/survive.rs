//! Mounts whose process is killed again and again under programs that must not notice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sandpail_e2e::{Fault, Mount, Proxy, Test, World, is_long, on_peer, short_or_long};

pub(crate) const TESTS: &[Test] = &[
    Test::new("survive::programs_see_no_error", |world| programs(world, &[])).minutes(8, 60),
    Test::new("survive::nor_with_write_back", |world| programs(world, &["--write-back"])).minutes(8, 60),
    Test::new("survive::single_promises", promises),
    Test::new("survive::who_waits_for_the_bucket_waits_for_the_next_process", asked_meanwhile),
    Test::new("survive::what_the_store_does_late", late).minutes(5, 5),
    Test::new("survive::fsx_with_faults", fsx).minutes(10, 120),
    Test::new("survive::pjdfstest_with_kills", pjdfstest).minutes(15, 30),
    Test::new("survive::the_store_is_away", store_away).minutes(8, 20),
    Test::new("survive::without_it_the_mount_is_gone", without),
];

/// In a mount: nothing is missing of what the programs were told is there.
pub(crate) const SURVIVED: &str = include_str!("survived.sh");

/// Kills until `$LOCAL/stop` is there; begun by [`with_kills`].
const KILLER: &str = r#"
kills() { "$PYTHON" "$E2E/tests/survive.py" "$MNT" "$LOCAL" 0 "$1" "$2" none; }
"#;

fn start(world: &World, options: &[&str]) -> Result<Mount> {
    let mut plan = world.plan("mnt", options)?;
    plan.survives = true;
    Mount::start(plan)
}

/// Databases, commits, archives, verified writes, names, open files and listings, while the process is killed.
fn programs(world: &World, options: &[&str]) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let kills: u32 = short_or_long(12, 500);
    let seed = if is_long() { 2 } else { 1 };
    let mount = start(world, options)?;
    let told = world.script_in(
        &world.local(),
        &format!("\"$PYTHON\" \"$E2E/tests/survive.py\" \"$MNT\" \"$LOCAL\" {kills} {seed} 1.0"),
    )?;
    let told = told.env("MNT", mount.path()).limit(Duration::from_secs(short_or_long(400, 3500)));
    println!("{}: {}", world.kind().name(), told.run().with_context(|| mount.log())?.trim());
    let mount = mount.remount(&[])?;
    world.sh(&mount, SURVIVED)?;
    world.sh(&mount, r#"[ -z "$(ls "$LOCAL/../mnt.scratch/staging/kept" 2>/dev/null)" ]"#)?;
    mount.unmount()
}

/// What one program has open, holds and has begun is the same after the kill.
fn promises(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = start(world, &[])?;
    world.sh(
        &mount,
        r##"
        "$PYTHON" - <<'PY'
import fcntl, mmap, os, pathlib, signal, subprocess, time
MNT = os.environ["MNT"]
def worker():
    for line in subprocess.run([os.environ["SANDPAIL"], "list"], capture_output=True, text=True).stdout.splitlines():
        if line.startswith(MNT + "\t"): return int(line.split("pid ")[1])
def kill():
    before = worker()
    os.kill(before, signal.SIGKILL)
    end = time.monotonic() + 60
    while worker() in (before, None):
        assert time.monotonic() < end, "no other process has come"
        time.sleep(0.01)
os.mkdir("d"); os.mkdir("d/e")
for n in range(500): open(f"d/{n:05}-" + "x" * 100, "w").close()
stored = open("stored", "w+b", buffering=0); stored.write(b"stored"); os.fsync(stored.fileno())
new = open("new", "w+b", buffering=0); new.write(b"not stored")
gone = open("gone", "w+b", buffering=0); gone.write(b"no name"); os.unlink("gone")
moved = open("moved.tmp", "w+b", buffering=0); moved.write(b"moved"); os.rename("moved.tmp", "moved")
end = open("end", "ab", buffering=0); end.write(b"one ")
large = open("large", "w+b", buffering=0)
blocks = [os.urandom(1 << 20) for _ in range(40)]
for block in blocks[:30]: large.write(block)
os.chmod("new", 0o640); os.utime("stored", (1000, 2000)); os.setxattr("stored", "user.note", b"kept")
inodes = {name: os.stat(name).st_ino for name in ["stored", "new", "moved", "end", "d", "d/e"]}
os.chdir("d/e")
fcntl.flock(stored, fcntl.LOCK_EX); fcntl.lockf(new, fcntl.LOCK_EX)
listing, seen = os.scandir(".."), []
for _ in range(100): seen.append(next(listing).name)
for _ in range(3):
    kill()
    assert os.pread(stored.fileno(), 100, 0) == b"stored" and os.pread(new.fileno(), 100, 0) == b"not stored"
    assert os.pread(gone.fileno(), 100, 0) == b"no name" and os.fstat(gone.fileno()).st_nlink == 0
    assert os.pread(moved.fileno(), 100, 0) == b"moved"
    # The locks are held, seen from others.
    code = "import fcntl,sys; f=open(sys.argv[1],'r+b'); fcntl.%s(f, fcntl.LOCK_EX|fcntl.LOCK_NB)"
    for name, how in [("stored", "flock"), ("new", "lockf")]:
        assert subprocess.run(["python3", "-c", code % how, f"{MNT}/{name}"], capture_output=True).returncode != 0, name
    assert {name: os.stat(f"{MNT}/{name}").st_ino for name in inodes} == inodes
    assert os.getcwd() == f"{MNT}/d/e"
    end.write(b"more ")
seen += [entry.name for entry in listing]
assert len(seen) == 501 and len(set(seen)) == 501, (len(seen), len(set(seen)))
for block in blocks[30:]: large.write(block)
assert os.pread(large.fileno(), 40 << 20, 0) == b"".join(blocks)
os.pwrite(large.fileno(), b"edited", 5 << 20)
kill()
large.close()
# This mount alone: the processes of others are none of its business.
before = worker(); told = subprocess.run([os.environ["SANDPAIL"], "upgrade", MNT], capture_output=True, text=True)
assert f"pid {worker()} follows pid {before}" in told.stdout and before != worker(), told
gone.write(b" at all"); assert os.pread(gone.fileno(), 100, 0) == b"no name at all"
# A name that is made, or a request that is under way, at the very moment.
os.chdir(MNT)
for n in range(20):
    threads = []
    script = f"mkdir m{n} && ln -s x m{n}/l && mv m{n} n{n} && touch n{n}/f && rm -r n{n} && set -C && : >once{n} && rm once{n}"
    running = subprocess.Popen(["sh", "-ec", script], stderr=subprocess.PIPE)
    time.sleep(0.002 * n)
    kill()
    # One that dies again and again at once is given up.
    time.sleep(0.25)
    assert running.wait() == 0, (n, running.stderr.read())
assert sorted(os.listdir(".")) == ["d", "end", "large", "moved", "new", "stored"], os.listdir(".")
assert (os.stat("new").st_mode & 0o777, os.stat("stored").st_mtime, os.getxattr("stored", "user.note")) == (0o640, 2000, b"kept")
for file in [stored, new, moved, end, gone]: file.close()
with open("large", "rb") as file:
    expected = bytearray(b"".join(blocks)); expected[5 << 20:(5 << 20) + 6] = b"edited"
    assert file.read() == bytes(expected)
PY
        "##,
    )?;
    world.python(
        r"
assert get('stored') == b'stored' and get('new') == b'not stored' and get('moved') == b'moved' and get('end') == b'one more more more '
assert len(get('large')) == 40 << 20 and not [k for k in keys() if k.startswith(('m', 'n')) and k not in ('moved', 'new')], keys()",
    )?;
    mount.unmount()
}

/// Its process is killed or upgraded while `sync` and `umount` wait until everything is stored.
fn asked_meanwhile(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let proxy = Proxy::start(world.server.addr())?;
    let mut plan = world.plan("mnt", &["--write-back"])?;
    if plan.endpoint.is_none() {
        return Ok(());
    }
    plan.endpoint = Some(proxy.endpoint());
    plan.survives = true;
    let mount = Mount::start(plan)?;
    proxy.set_latency(Duration::from_millis(600));
    let script = r#"
import os, signal, subprocess, sys, time
MNT, SANDPAIL = os.environ["MNT"], os.environ["SANDPAIL"]
def worker():
    listed = subprocess.run([SANDPAIL, "list"], capture_output=True, text=True).stdout.splitlines()
    return next((int(line.split("pid ")[1]) for line in listed if line.startswith(MNT + "\t")), None)
def write(name):
    with open(f"{MNT}/{name}", "w") as file: file.write(name)
for how in ["killed", "upgraded"]:
    write(how)
    before = worker()
    waiting = subprocess.Popen([SANDPAIL, "sync", MNT])
    time.sleep(0.2)
    if how == "killed": os.kill(before, signal.SIGKILL)
    else: subprocess.run([SANDPAIL, "upgrade", MNT], check=True)
    assert waiting.wait() == 0, how
    assert worker() not in (before, None), how
    assert b'"stored"' in os.getxattr(f"{MNT}/{how}", "user.sandpail.state"), how
write("unmounted")
if not os.fork():
    # The programs around it do not wait for this one.
    for end in (0, 1, 2): os.dup2(os.open(os.devnull, os.O_RDWR), end)
    os.chdir("/")
    time.sleep(0.5)
    os.kill(worker(), signal.SIGKILL)
    os._exit(0)
"#;
    world.sh(&mount, &format!("\"$PYTHON\" - <<'PY'{script}PY\n"))?;
    mount.unmount()?;
    proxy.set_latency(Duration::ZERO);
    world.python("assert [get(key) for key in ('killed', 'upgraded', 'unmounted')] == [b'killed', b'upgraded', b'unmounted'], keys()")?;
    Ok(())
}

/// What the killed process has asked for is done long after the next one has come: a link would be back, a file gone.
fn late(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let proxy = Proxy::start(world.server.addr())?;
    let mut plan = world.plan("mnt", &[])?;
    if plan.endpoint.is_none() {
        return Ok(());
    }
    plan.endpoint = Some(proxy.endpoint());
    plan.survives = true;
    let mount = Mount::start(plan)?;
    world.sh(&mount, "mkdir d e; echo old >d/f")?;
    for (request, script) in [
        (
            "PUT ",
            "os.symlink('x', 'd/l'); os.unlink('d/l'); time.sleep(3); assert os.listdir('d') == ['f'], os.listdir('d')",
        ),
        (
            "DELETE ",
            "os.unlink('d/f'); open('d/f', 'w').write('new'); time.sleep(3); assert open('d/f').read() == 'new'",
        ),
        ("PUT ", "os.chmod('e', 0o711); os.rmdir('e'); time.sleep(3); assert not os.path.exists('e')"),
    ] {
        proxy.break_next(request, Fault::Late(Duration::from_millis(2000)), 1);
        let killed = format!(
            r#"exec "$PYTHON" -c "
import os, signal, subprocess, threading, time
listed = subprocess.run([os.environ['SANDPAIL'], 'list'], capture_output=True, text=True).stdout.splitlines()
pid = next(int(line.split('pid ')[1]) for line in listed if line.startswith(os.environ['MNT'] + '	'))
threading.Timer(0.3, os.kill, [pid, signal.SIGKILL]).start()
{script}""#
        );
        world.sh(&mount, &killed)?;
    }
    mount.unmount()
}

/// Breaks requests now and then while `work` goes on.
fn with_faults<T>(proxy: &Proxy, work: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let kinds = [Fault::SlowDown, Fault::InternalError, Fault::Reset];
            for turn in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let method = ["PUT ", "GET ", "HEAD ", "POST ", "DELETE "][turn % 5];
                proxy.break_next(method, kinds[turn / 5 % 3], 1);
                std::thread::sleep(Duration::from_millis(150));
            }
        });
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        done
    })
}

/// A mount with write-back through a proxy that breaks requests, whose process is killed.
fn fsx(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (count, seeds) = short_or_long((4_000, 1), (20_000, 5));
    let config = "flen = 262144\n[opsize]\nmax = 65536\n[weights]\nclose_open = 1\nread = 10\nwrite = 10\n\
                  mapread = 10\nmapwrite = 10\ninvalidate = 1\ntruncate = 5\nfsync = 0.2\nfdatasync = 0.2\n\
                  punch_hole = 1\nposix_fallocate = 1\nsendfile = 1\ncopy_file_range = 2\n";
    std::fs::write(world.local().join("fsx.toml"), config)?;
    let proxy = Proxy::start(world.server.addr())?;
    let mut plan = world.plan("mnt", &["--write-back"])?;
    if plan.endpoint.is_some() {
        plan.endpoint = Some(proxy.endpoint());
    }
    plan.survives = true;
    let mount = Mount::start(plan)?;
    for seed in 1..=seeds {
        let script = format!(
            "{KILLER} mkdir -p \"$LOCAL/left\"; rm -f \"$LOCAL/stop\"; kills {seed} 0.7 & killer=$!
             \"$TOOLS/fsx\" -f \"$LOCAL/fsx.toml\" -S {seed} -N {count} -P \"$LOCAL/left\" file{seed} >\"$LOCAL/out\" 2>&1 || \
                 {{ touch \"$LOCAL/stop\"; tail -n 40 \"$LOCAL/out\" >&2; wait $killer; exit 1; }}
             touch \"$LOCAL/stop\"; wait $killer"
        );
        let told = with_faults(&proxy, || world.sh(&mount, &script)).with_context(|| format!("fsx, seed {seed}"))?;
        println!("{}: {}", world.kind().name(), told.trim());
    }
    proxy.heal();
    let before = world.sh(&mount, "sha256sum *")?;
    let mount = mount.remount(&[])?;
    ensure!(before == world.sh(&mount, "sha256sum *")?, "another content after a remount");
    mount.unmount()
}

fn pjdfstest(world: &World) -> Result<()> {
    if on_peer() || world.script_in(&world.local(), "id -u")?.run()?.trim() != "0" {
        return Ok(());
    }
    world.script_in(world.directory(), "chmod 755 .")?.run()?;
    let mount = start(world, &["--allow-other", "--write-back"])?;
    let out = world.sh(
        &mount,
        &format!(
            "{KILLER} chmod 755 .; kills 1 2.0 >/dev/null & killer=$!
             \"$TOOLS/pjdfstest\" -c \"$E2E/tests/pjdfstest.toml\" -p . >\"$LOCAL/out\" 2>&1 || true
             touch \"$LOCAL/stop\"; wait $killer; sed 's/\\x1b\\[[0-9;]*m//g' \"$LOCAL/out\""
        ),
    )?;
    crate::posix::check_pjdfstest(&out)?;
    mount.unmount()
}

/// The store does not answer for a while: closing waits, nothing is lost, and no program sees an error.
fn store_away(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let seconds = short_or_long(5, 60);
    let proxy = Proxy::start(world.server.addr())?;
    for option in ["--write-back", "--metadata-ttl=1s"] {
        let mut plan = world.plan("mnt", &[option])?;
        if plan.endpoint.is_none() {
            return Ok(());
        }
        plan.endpoint = Some(proxy.endpoint());
        plan.survives = true;
        let mount = Mount::start(plan)?;
        let script = format!(
            "{KILLER} rm -rf \"$LOCAL\"/* ./*; kills 1 2.0 & killer=$!; end=$(($(date +%s) + {seconds} + 4)); n=0
             while [ \"$(date +%s)\" -lt $end ]; do echo $n >f$n; echo $n >\"$LOCAL/f$n\"; cat f$n >/dev/null; n=$((n + 1)); sleep 0.05; done
             mkdir \"$LOCAL/all\"; mv \"$LOCAL\"/f* \"$LOCAL/all\"; touch \"$LOCAL/stop\"; wait $killer; \"$SANDPAIL\" sync \"$MNT\"; diff -r . \"$LOCAL/all\""
        );
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(2));
                for kind in ["PUT ", "GET ", "HEAD ", "POST ", "DELETE "] {
                    proxy.break_next(kind, Fault::Reset, usize::MAX);
                }
                std::thread::sleep(Duration::from_secs(seconds));
                proxy.heal();
            });
            world.sh(&mount, &script)
        })?;
        mount.unmount()?;
    }
    Ok(())
}

/// What `--no-restart` means.
fn without(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&[])?;
    world.sh(&mount, "echo stored >a")?;
    let at = mount.path().to_owned();
    world.script_in(&world.local(), &format!("kill -KILL {}", mount.pid()))?.run()?;
    world
        .script_in(&world.local(), r#"for _ in $(seq 100); do cat "$AT/a" 2>err && sleep 0.05 || break; done >/dev/null; grep -q 'not connected' err"#)?
        .env("AT", &at)
        .run()?;
    mount.crash()?;
    Ok(())
}
