//! The file system is what programs expect of one: exercisers, and single promises.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sandpail_e2e::{Test, World, is_long, on_peer, short_or_long};

pub(crate) const TESTS: &[Test] = &[
    Test::new("posix::fsx", |world| fsx(world, false)).minutes(10, 240),
    Test::new("posix::fsx_mmap", |world| fsx(world, true)).minutes(10, 240),
    Test::new("posix::fsx_large_file", fsx_large).minutes(10, 60),
    Test::new("posix::pjdfstest", pjdfstest).minutes(15, 15),
    Test::new("posix::model", model).minutes(10, 60),
    Test::new("posix::read_only", read_only),
    Test::new("posix::errors", errors),
    Test::new("posix::open_files", open_files),
    Test::new("posix::sparse", sparse),
    Test::new("posix::renames", renames),
    Test::new("posix::locks", locks),
    Test::new("posix::two_writers_of_one_file", two_writers),
    Test::new("posix::readdir_while_changing", readdir_while_changing),
    Test::new("posix::memory_maps", memory_maps),
    Test::new("posix::with_a_cache_directory", with_a_cache_directory),
];

/// Operations on seeds, each an `fsx` run of its own.
fn fsx(world: &World, mmap: bool) -> Result<()> {
    let (count, seeds) = short_or_long((5_000, 2), (200_000, 5));
    let maps = if mmap { "mapread = 10\nmapwrite = 10\ninvalidate = 1\n" } else { "mapread = 0\nmapwrite = 0\n" };
    let config = format!(
        "flen = 262144\n[opsize]\nmax = 65536\n[weights]\nclose_open = 1\nread = 10\nwrite = 10\n{maps}truncate = 5\n\
         fsync = 0.2\nfdatasync = 0.2\npunch_hole = 1\nposix_fallocate = 1\nsendfile = 1\nposix_fadvise = 1\ncopy_file_range = 2\n"
    );
    run_fsx(world, &config, count, seeds)
}

/// Files over several parts.
fn fsx_large(world: &World) -> Result<()> {
    let (count, seeds) = short_or_long((300, 1), (5_000, 3));
    let config = "flen = 33554432\n[opsize]\nmax = 4194304\n[weights]\nclose_open = 1\nread = 10\nwrite = 10\n\
                  mapread = 2\nmapwrite = 2\ntruncate = 5\nfsync = 1\n";
    run_fsx(world, config, count, seeds)
}

fn run_fsx(world: &World, config: &str, count: usize, seeds: usize) -> Result<()> {
    // s3fs has no punch_hole and no copy_file_range.
    let supported =
        |line: &&str| !on_peer() || !["punch_hole", "posix_fallocate"].iter().any(|op| line.starts_with(op));
    let config: String = config.lines().filter(supported).map(|line| format!("{line}\n")).collect();
    std::fs::write(world.local().join("fsx.toml"), config)?;
    let mount = world.mount(&[])?;
    for seed in 1..=seeds {
        let script = format!(
            "mkdir -p \"$LOCAL/left\"; \"$TOOLS/fsx\" -f \"$LOCAL/fsx.toml\" -S {seed} -N {count} -P \"$LOCAL/left\" file{seed} \
             >\"$LOCAL/out\" 2>&1 || {{ tail -n 40 \"$LOCAL/out\" >&2; exit 1; }}; sha256sum file{seed}"
        );
        world
            .script_in(mount.path(), &script)?
            .limit(Duration::from_secs(short_or_long(280, 3600)))
            .run()
            .with_context(|| format!("fsx, seed {seed}\n{}", mount.log()))?;
    }
    let before = world.sh(&mount, "sha256sum *")?;
    let mount = mount.remount(&[])?;
    ensure!(before == world.sh(&mount, "sha256sum *")?, "another content after a remount");
    mount.unmount()
}

/// All cases but those listed in `pjdfstest-expected.txt`.
fn pjdfstest(world: &World) -> Result<()> {
    if world.script_in(&world.local(), "id -u")?.run()?.trim() != "0" {
        println!("posix::pjdfstest needs root, for it becomes other users: not run");
        return Ok(());
    }
    // Other users walk through this test's directory.
    world.script_in(world.directory(), "chmod 755 .")?.run()?;
    let mount = world.mount(&["--allow-other"])?;
    let script = world
        .script_in(
            mount.path(),
            "chmod 755 .; \"$TOOLS/pjdfstest\" -c \"$E2E/tests/pjdfstest.toml\" -p . >\"$LOCAL/out\" 2>&1 || true
             sed 's/\\x1b\\[[0-9;]*m//g' \"$LOCAL/out\"",
        )?
        .limit(Duration::from_secs(800));
    let out = script.run().context(mount.log())?;
    if let Some(keep) = std::env::var_os("SANDPAIL_E2E_KEEP_PJDFSTEST") {
        std::fs::write(keep, &out)?;
    }
    check_pjdfstest(&out)?;
    mount.unmount()
}

/// Whether only those cases failed that must.
pub(crate) fn check_pjdfstest(out: &str) -> Result<()> {
    let expected: Vec<_> = include_str!("pjdfstest-expected.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let name = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let failed: Vec<_> = out.lines().filter(|line| line.ends_with("FAILED")).map(name).collect();
    let passed = out.lines().filter(|line| line.ends_with(" ok")).count();
    ensure!(passed > 100, "only {passed} cases passed:\n{out}");
    let unexpected: Vec<_> = failed.iter().filter(|name| !expected.contains(&name.as_str())).collect();
    ensure!(
        unexpected.is_empty(),
        "{} of {} cases failed that should not: {unexpected:#?}",
        unexpected.len(),
        passed + failed.len()
    );
    Ok(())
}

/// Random operations on the mount and on a local file at once.
fn model(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    let count = short_or_long(400, 20_000);
    for seed in 1..=short_or_long(2, 5) {
        let program = include_str!("model.py");
        let script = format!("\"$PYTHON\" - \"$MNT/m{seed}\" \"$LOCAL/m{seed}\" {seed} {count} <<'PY'\n{program}\nPY");
        let script = world.script_in(mount.path(), &script)?.env("MNT", mount.path());
        script.limit(Duration::from_secs(short_or_long(250, 1500))).run().with_context(|| mount.log())?;
    }
    crate::everyday::remounted_the_same(world, mount)?.unmount()
}

fn read_only(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(&mount, "echo x >a; mkdir d; ln -s a l")?;
    let mount = mount.remount(&["--read-only"])?;
    world.sh(
        &mount,
        r#"
        refused() { fails bash -c "$1" 2>"$LOCAL/err"; grep -q 'Read-only file system' "$LOCAL/err"; }
        [ "$(cat a)" = x ]; [ "$(cat l)" = x ]
        refused 'echo y >a'; refused 'echo y >>a'; refused 'echo y >b'; refused 'mkdir e'; refused 'rm -f a'; refused 'rmdir d'
        refused 'mv a b'; refused 'chmod 600 a'; refused 'touch -d 2001-01-01 a'; refused 'ln -s a m'; refused 'truncate -s 9 a'
        [ "$(ls)" = "$(printf 'a\nd\nl')" ]
        "#,
    )?;
    mount.unmount()
}

fn errors(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import errno, os
def fails(code, call, *args):
    try: call(*args)
    except OSError as error: assert error.errno == getattr(errno, code), (code, call, args, error)
    else: raise AssertionError(f"no {code}: {call} {args}")
open("a", "w").write("x"); os.mkdir("d"); open("d/f", "w").close(); os.symlink("loop", "loop")
fails("ENOENT", os.stat, "no"); fails("ENOENT", os.open, "no/a", os.O_CREAT | os.O_WRONLY); fails("ENOTDIR", os.stat, "a/b")
fails("EEXIST", os.open, "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY); fails("EEXIST", os.mkdir, "d"); fails("EEXIST", os.mkdir, "a")
fails("EEXIST", os.symlink, "x", "a"); fails("ENOTEMPTY", os.rmdir, "d"); fails("ENOTDIR", os.rmdir, "a"); fails("EISDIR", os.unlink, "d")
fails("EISDIR", os.open, "d", os.O_WRONLY); fails("ELOOP", os.stat, "loop"); fails("ENOTDIR", os.listdir, "a")
fails("ENAMETOOLONG", os.open, "n" * 256, os.O_CREAT | os.O_WRONLY); fails("EINVAL", os.readlink, "a")
fails("EISDIR", os.rename, "a", "d"); fails("ENOTDIR", os.rename, "d", "a"); fails("EINVAL", os.rename, "d", "d/e"); fails("ENOENT", os.rename, "no", "x")
for call in [lambda: os.link("a", "hard"), lambda: os.mkfifo("fifo"), lambda: os.mknod("node", 0o20600, os.makedev(1, 3))]:
    try: call()
    except OSError as error: assert error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK), error
    else: raise AssertionError("hard links, FIFOs and devices cannot be kept in a bucket")
f = os.open("a", os.O_RDONLY); fails("EBADF", os.write, f, b"x"); os.close(f)
f = os.open("a", os.O_WRONLY | os.O_APPEND); os.write(f, b"y"); os.close(f); assert open("a").read() == "xy"
fails("ENODATA", os.getxattr, "a", "user.no")
assert sorted(os.listdir()) == ["a", "d", "loop"]
PY"#,
    )?;
    mount.unmount()
}

fn open_files(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import os
# an open file outlives its name
f = open("a", "w+b"); f.write(b"x" * 100000); f.flush(); os.unlink("a"); assert not os.path.exists("a")
f.seek(0); assert f.read() == b"x" * 100000; f.write(b"y"); f.flush(); assert os.fstat(f.fileno()).st_size == 100001
assert os.listdir() == []; f.close(); assert os.listdir() == []
# also one that was stored before
open("b", "wb").write(b"stored" * 1000); f = open("b", "rb"); os.unlink("b"); open("b", "wb").write(b"other")
assert f.read() == b"stored" * 1000; f.close(); assert open("b", "rb").read() == b"other"
# a file renamed while it is written keeps what is written later
f = open("c", "wb"); f.write(b"1"); f.flush(); os.rename("c", "c2"); f.write(b"2"); f.close(); assert open("c2", "rb").read() == b"12"
assert not os.path.exists("c")
# a directory renamed while a file in it is open
os.mkdir("d"); f = open("d/f", "wb"); f.write(b"1"); os.rename("d", "e"); f.write(b"2"); f.close(); assert open("e/f", "rb").read() == b"12"
# renamed over while open: the reader keeps the old bytes
open("g", "wb").write(b"old" * 50000); open("h", "wb").write(b"new"); f = open("g", "rb"); assert f.read(3) == b"old"; os.rename("h", "g")
assert f.read(3) == b"old"; f.close(); assert open("g", "rb").read() == b"new"
# a writer's bytes are seen by a reader through another descriptor before close
w = open("i", "wb"); w.write(b"seen"); w.flush(); assert open("i", "rb").read() == b"seen"; assert os.stat("i").st_size == 4; w.close()
# many at once
files = [open(f"m{n}", "w+b") for n in range(200)]
for n, f in enumerate(files): f.write(str(n).encode())
for f in files: f.close()
assert all(open(f"m{n}", "rb").read() == str(n).encode() for n in range(200))
PY"#,
    )?;
    crate::everyday::remounted_the_same(world, mount)?.unmount()
}

fn sparse(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import os
with open("a", "wb") as f: f.seek(20_000_000); f.write(b"end")
data = open("a", "rb").read(); assert len(data) == 20_000_003 and data[:20_000_000].count(0) == 20_000_000 and data[-3:] == b"end"
with open("a", "r+b") as f: f.truncate(10_000_000); f.truncate(15_000_000); f.seek(12_000_000); f.write(b"mid")
data = open("a", "rb").read(); assert len(data) == 15_000_000 and data[12_000_000:12_000_003] == b"mid" and data.count(0) == 14_999_997
with open("b", "wb") as f: f.truncate(5); f.truncate(0); f.truncate(7)
assert open("b", "rb").read() == b"\0" * 7
with open("c", "w+b") as f:
    f.write(b"x" * 50000); f.truncate(100); f.seek(200); f.write(b"y"); f.seek(0); assert f.read() == b"x" * 100 + b"\0" * 100 + b"y"
f = os.open("a", os.O_RDONLY); assert os.lseek(f, 0, os.SEEK_DATA) <= 12_000_000; assert os.lseek(f, 0, os.SEEK_HOLE) <= 15_000_000; os.close(f)
os.truncate("a", 12_000_001); assert open("a", "rb").read()[-1:] == b"m"
PY"#,
    )?;
    crate::everyday::remounted_the_same(world, mount)?.unmount()
}

fn renames(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#"
        mkdir -p d/sub/deep d/empty; for n in $(seq 50); do echo $n >d/f$n; done; echo x >d/sub/deep/x; ln -s f1 d/l; chmod 700 d/sub
        mv d e; [ ! -e d ]; [ "$(ls e | wc -l)" = 53 ]; [ "$(cat e/f50)" = 50 ]; [ "$(cat e/sub/deep/x)" = x ]; [ "$(cat e/l)" = 1 ]
        [ "$(stat -c %a e/sub)" = 700 ]; [ -d e/empty ]; mkdir target; mv e target/; [ "$(cat target/e/f7)" = 7 ]
        mkdir over; mv -T target/e over; [ "$(cat over/f8)" = 8 ]; [ ! -e target/e ]
        fails mv -T target over 2>/dev/null; mv over/sub/deep/x over/f1; [ "$(cat over/f1)" = x ]
        echo a >a; echo b >b; mv -n a b; [ "$(cat b)" = b ]
        "$PYTHON" - <<'PY'
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def rename2(a, b, flags): return 0 if libc.renameat2(-100, a.encode(), -100, b.encode(), flags) == 0 else ctypes.get_errno()
assert rename2("a", "b", 1) == errno.EEXIST, "RENAME_NOREPLACE"
assert rename2("a", "c", 1) == 0 and open("c").read() == "a\n"
result = rename2("c", "b", 2)
assert result in (0, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP), result
if result == 0: assert open("b").read() == "a\n" and open("c").read() == "b\n"
PY
        head -c 20000000 /dev/urandom >big; sum=$(sha256sum <big); mv big bigger; [ "$(sha256sum <bigger)" = "$sum" ]; [ ! -e big ]
        "#,
    )?;
    crate::everyday::remounted_the_same(world, mount)?.unmount()
}

fn locks(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#"
        : >lock; : >count; echo 0 >count
        worker() { for n in $(seq 10); do flock lock bash -c 'echo $(($(cat count) + 1)) >count'; done; }
        worker & worker & wait; [ "$(cat count)" = 20 ]
        "$PYTHON" - <<'PY'
import fcntl, os
f = open("lock", "r+b"); fcntl.lockf(f, fcntl.LOCK_EX, 10, 0)
if os.fork() == 0:
    g = open("lock", "r+b")
    try: fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5); os._exit(1)
    except BlockingIOError: pass
    fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 10); os._exit(0)
assert os.wait()[1] == 0
PY
        "#,
    )?;
    mount.unmount()
}

fn two_writers(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import os, threading
size, block = 8_000_000, 10_000
with open("a", "wb") as f: f.truncate(size)
def write(part):
    f = os.open("a", os.O_WRONLY)
    for n in range(part, size // block, 4): os.pwrite(f, bytes([part + 1]) * block, n * block)
    os.close(f)
threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
data = open("a", "rb").read(); assert len(data) == size
for n in range(size // block): assert data[n * block:(n + 1) * block] == bytes([n % 4 + 1]) * block, n
PY"#,
    )?;
    crate::everyday::remounted_the_same(world, mount)?.unmount()
}

fn readdir_while_changing(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    let count = if is_long() { 3000 } else { 1200 };
    world.python(&format!(
        "with concurrent.futures.ThreadPoolExecutor(16) as pool: list(pool.map(lambda n: put(f'd/f{{n:05}}'), range({count})))"
    ))?;
    world.sh(
        &mount,
        &format!(
            r#""$PYTHON" - {count} <<'PY'
import os, sys
count = int(sys.argv[1]); seen = []
with os.scandir("d") as entries:
    for n, entry in enumerate(entries):
        seen.append(entry.name)
        if n == 10: open("d/new", "w").close()
        if n == 20: os.unlink("d/f00000") if "f00000" in seen else None
assert len(seen) == len(set(seen)), "a name was told twice"
assert set(f"f{{n:05}}" for n in range(1, count)) <= set(seen), "a name was left out"
for name in os.listdir("d"): os.unlink(f"d/{{name}}")
os.rmdir("d")
PY"#
        ),
    )?;
    mount.unmount()
}

fn memory_maps(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import mmap, os
with open("a", "w+b") as f:
    f.truncate(3_000_000)
    with mmap.mmap(f.fileno(), 0) as m:
        m[0:5] = b"hello"; m[2_999_990:3_000_000] = b"0123456789"; m.flush()
        assert os.pread(f.fileno(), 5, 0) == b"hello"
        m[1_500_000] = 7
assert open("a", "rb").read()[1_500_000] == 7
with open("a", "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m: assert m[:5] == b"hello" and m[-1:] == b"9"
PY"#,
    )?;
    let mount = crate::everyday::remounted_the_same(world, mount)?;
    let stored = world.python("print(get('a')[:5], len(get('a')))")?;
    ensure!(stored.trim() == "b'hello' 3000000", "in the bucket: {stored}");
    mount.unmount()
}

fn with_a_cache_directory(world: &World) -> Result<()> {
    let cache = world.directory().join("cache");
    let cache = cache.to_str().context("the temporary directory's name is not UTF-8")?;
    let options = ["--cache-dir", cache, "--cache-size", "16MiB"];
    let mount = world.mount(if on_peer() { &[] } else { &options })?;
    world.sh(
        &mount,
        "for n in 1 2 3; do head -c 10000000 /dev/urandom >f$n; done; cat f* | sha256sum >\"$LOCAL/sum\"",
    )?;
    let mount = mount.remount(&[])?;
    let check = "[ \"$(cat f* | sha256sum)\" = \"$(cat \"$LOCAL/sum\")\" ]; cmp f1 f1";
    world.sh(&mount, check)?;
    world.sh(&mount, check)?;
    world.python("put('f2', b'changed elsewhere')")?;
    let mount = mount.remount(&[])?;
    world.sh(&mount, "[ \"$(cat f2)\" = 'changed elsewhere' ]; du -sm \"$LOCAL/../cache\" || true")?;
    mount.unmount()
}
