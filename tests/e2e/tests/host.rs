//! A host that lacks something: no FUSE, no room on its disks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use sandpail_e2e::{Mount, ServerKind, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("host::no_fuse", no_fuse).on(&[ServerKind::Embedded]),
    Test::new("host::an_ordinary_user", ordinary_user).on(&[ServerKind::Embedded]),
    Test::new("host::root_without_fusermount", without_fusermount).on(&[ServerKind::Embedded]),
    Test::new("host::mount_and_fstab", mount_and_fstab).on(&[ServerKind::Embedded]),
    Test::new("host::a_full_staging_disk", full_staging),
    Test::new("host::staging_limit", staging_limit).on(&[ServerKind::Embedded]),
    Test::new("host::a_full_cache_disk", full_cache),
    Test::new("host::descriptors_run_out", descriptors),
    Test::new("host::a_full_disk_when_the_process_is_killed", full_disk_and_kill),
];

/// A small disk in memory; gone after the test.
struct Disk(PathBuf);

impl Disk {
    fn new(path: &Path, mib: u64) -> Result<Self> {
        let size = format!("size={mib}m");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(path).status()?;
        ensure!(done.success(), "cannot mount a disk in memory on {}", path.display());
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

pub(crate) fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("/proc")) == 0
}

/// In a mount namespace of its own the device is missing, or closed to the user.
fn no_fuse(world: &World) -> Result<()> {
    if on_peer() || !is_root() {
        return Ok(());
    }
    let script = r#"
        mkdir mnt; chmod 755 . ..; chown 65534:65534 mnt
        without() {
            unshare --mount bash -ec '
                mount --make-rprivate /; mount -t tmpfs none /dev
                mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; eval "$1"; shift; exec "$@"' - "$@"
        }
        try() { "$SANDPAIL" mount --endpoint "$ENDPOINT" --region us-east-1 "$BUCKET" mnt; }
        refused() {
            fails "$@" "$SANDPAIL" mount --endpoint "$ENDPOINT" --region us-east-1 "$BUCKET" mnt 2>err
            [ "$(wc -l <err)" = 1 ] || { cat err >&2; return 1; }; grep -q /dev/fuse err || { cat err >&2; return 1; }
            fails mountpoint -q mnt
        }
        refused without true
        without true "$SANDPAIL" doctor >out || true; grep -q '/dev/fuse' out
        # Everybody must reach the program for the second half.
        cp "$SANDPAIL" sandpail; chmod 755 sandpail; SANDPAIL=$PWD/sandpail
        refused without 'mknod -m 600 /dev/fuse c 10 229' setpriv --reuid 65534 --regid 65534 --clear-groups env HOME="$PWD/mnt" XDG_RUNTIME_DIR="$PWD/mnt"
    "#;
    world.script_in(&world.local(), script)?.run()?;
    Ok(())
}

/// Mounts through `fusermount3`, with nothing of root's.
fn ordinary_user(world: &World) -> Result<()> {
    if on_peer() || !is_root() {
        return Ok(());
    }
    let script = r#"
        # Everybody must reach the program and the directories.
        mkdir home mnt; chmod 755 . ..; chown 65534:65534 home mnt; cp "$SANDPAIL" sandpail; chmod 755 sandpail
        cat >work <<'END'
            trap './sandpail umount mnt 2>/dev/null || true' EXIT
            ./sandpail mount --endpoint "$ENDPOINT" --region us-east-1 "$BUCKET" mnt
            echo x >mnt/a; [ "$(cat mnt/a)" = x ]; [ "$(stat -c %u:%g mnt/a)" = 65534:65534 ]; mkdir mnt/d; mv mnt/a mnt/d/b
            chmod 600 mnt/d/b; [ "$(stat -c %a mnt/d/b)" = 600 ]; ./sandpail list | grep -F "$PWD/mnt" >/dev/null
            # Without user_allow_other in /etc/fuse.conf that is refused, and said so.
            if ! grep -q '^user_allow_other' /etc/fuse.conf 2>/dev/null; then
                mkdir home/other
                if ./sandpail mount --allow-other --endpoint "$ENDPOINT" --region us-east-1 "$BUCKET" home/other 2>home/err; then exit 1; fi
                grep -q user_allow_other home/err || { cat home/err >&2; exit 1; }
                if mountpoint -q home/other; then exit 1; fi
            fi
            pid=$(./sandpail list | grep -F "$PWD/mnt" | sed 's/.*pid //'); ./sandpail umount mnt
            if mountpoint -q mnt; then exit 1; fi
            for n in $(seq 100); do [ -d /proc/$pid ] || break; sleep 0.1; done; [ ! -d /proc/$pid ]
            ./sandpail doctor >home/out || true; grep -q '^ok .*mounts can be made by this user' home/out
END
        unshare --mount bash -ec '
            mount --make-rprivate /; mount -t tmpfs none /dev; ln -s /proc/self/fd /dev/fd
            for node in "null c 1 3" "urandom c 1 9" "fuse c 10 229"; do set -- $node; mknod -m 666 /dev/$1 $2 $3 $4; done
            exec setpriv --reuid 65534 --regid 65534 --clear-groups \
                env HOME="$PWD/home" XDG_RUNTIME_DIR="$PWD/home" XDG_STATE_HOME="$PWD/home" TMPDIR="$PWD/home" bash -euo pipefail work'
    "#;
    world.script_in(&world.local(), script)?.run()?;
    Ok(())
}

fn without_fusermount(world: &World) -> Result<()> {
    if on_peer() || !is_root() {
        return Ok(());
    }
    let script = r#"
        mkdir mnt
        unshare --mount bash -ec '
            mount --make-rprivate /
            for name in fusermount3 fusermount; do if path=$(command -v $name); then mount --bind /dev/null "$path"; fi; done
            if fusermount3 -V 2>/dev/null; then exit 1; fi
            "$SANDPAIL" mount --endpoint "$ENDPOINT" --region us-east-1 "$BUCKET" mnt
            echo x >mnt/a; [ "$(cat mnt/a)" = x ]; "$SANDPAIL" umount mnt; if mountpoint -q mnt; then exit 1; fi'
    "#;
    world.script_in(&world.local(), script)?.run()?;
    Ok(())
}

/// `mount -t fuse.sandpail` and a line of fstab, by the system's own mount(8); keys come from a profile.
fn mount_and_fstab(world: &World) -> Result<()> {
    if on_peer() || !is_root() || !Path::new("/sbin/mount.fuse3").exists() {
        return Ok(());
    }
    let script = r#"
        mkdir bin mnt; cp "$SANDPAIL" bin/sandpail
        printf '[fstab]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" >keys
        export AWS_SHARED_CREDENTIALS_FILE="$PWD/keys" AWS_EC2_METADATA_DISABLED=true; unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
        echo "$BUCKET $PWD/mnt fuse.sandpail _netdev,nofail,endpoint=$ENDPOINT,region=us-east-1,profile=fstab,metadata_ttl=2s 0 0" >fstab
        sed 's/_netdev/ro,_netdev/' fstab >fstab.ro; sed 's/metadata_ttl/no_such_thing/' fstab >fstab.bad
        # mount(8) looks for programs in the system's directories only.
        unshare --mount bash -ec '
            mount --make-rprivate /; mount --bind bin /usr/local/bin; refused() { if "$@"; then exit 1; fi; }
            mount -t fuse.sandpail "$BUCKET" mnt -o "endpoint=$ENDPOINT,region=us-east-1,profile=fstab"; echo x >mnt/a; umount mnt
            mount -T fstab mnt; [ "$(cat mnt/a)" = x ]; echo y >mnt/b; "$SANDPAIL" umount mnt
            mount -T fstab.ro mnt; [ "$(cat mnt/b)" = y ]; refused touch mnt/c 2>err; grep -q "Read-only file system" err; umount mnt
            refused mount -T fstab.bad mnt 2>err; grep -q no.such.thing err; refused mountpoint -q mnt'
    "#;
    world.script_in(&world.local(), script)?.run()?;
    Ok(())
}

/// Writes a file from its end to its front, which cannot go up meanwhile, until there is no room; and a large one from
/// its front.
const FILL: &str = r#"
    "$PYTHON" - <<'PY'
import errno, os
block = os.urandom(1 << 20)
f = os.open("backwards", os.O_CREAT | os.O_RDWR)
try:
    for n in reversed(range(100)): os.pwrite(f, block, n << 20)
    raise SystemExit("everything found room")
except OSError as error: assert error.errno == errno.ENOSPC, error
# What was taken is there, and the file can still be cut, and used.
assert n < 90 and os.pread(f, 1 << 20, 99 << 20) == block and os.pread(f, 10, n << 20) == bytes(10)
os.ftruncate(f, 0); os.pwrite(f, b"small", 0); os.close(f)
assert open("backwards").read() == "small"
PY
    "#;

const LARGE: &str = r#"
    "$PYTHON" - <<'PY'
import hashlib, os, random
block = random.Random(7).randbytes(1 << 20)
with open("large", "wb", buffering=0) as f:
    for n in range(300): f.write(n.to_bytes(8, "big") + block[8:])
    # A header that is patched at the end, and a place whose bytes have left the disk.
    f.seek(100); f.write(b"header"); f.seek(150 << 20); f.write(b"middle")
expected = hashlib.sha256()
for n in range(300):
    data = bytearray(n.to_bytes(8, "big") + block[8:])
    if n == 0: data[100:106] = b"header"
    if n == 150: data[:6] = b"middle"
    expected.update(data)
found = hashlib.sha256()
with open("large", "rb") as f:
    while data := f.read(1 << 20): found.update(data)
assert found.digest() == expected.digest()
PY
    [ "$(cat kept)" = x ]; rm large
    "#;

fn full_staging(world: &World) -> Result<()> {
    if on_peer() || !is_root() {
        return Ok(());
    }
    let plan = world.plan("mnt", &[])?;
    let disk = Disk::new(&plan.scratch, 80)?;
    let mount = Mount::start(plan)?;
    world.sh(&mount, "echo x >kept")?;
    world.sh(&mount, FILL)?;
    world.sh(&mount, LARGE)?;
    mount.unmount()?;
    drop(disk);
    Ok(())
}

fn staging_limit(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&["--staging-limit", "64MiB"])?;
    world.sh(&mount, "echo x >kept")?;
    world.sh(&mount, FILL)?;
    world.sh(&mount, LARGE)?;
    mount.unmount()
}

/// A cache without room costs only time.
fn full_cache(world: &World) -> Result<()> {
    if on_peer() || !is_root() {
        return Ok(());
    }
    let cache = world.directory().join("cache");
    std::fs::create_dir(&cache)?;
    let disk = Disk::new(&cache, 8)?;
    let mount = world.mount(&["--cache-dir", &cache.display().to_string()])?;
    world.sh(&mount, "head -c 40000000 /dev/urandom >\"$LOCAL/a\"; cp \"$LOCAL/a\" a")?;
    let mount = mount.remount(&[])?;
    world.sh(&mount, "cmp a \"$LOCAL/a\"; cmp a \"$LOCAL/a\"")?;
    ensure!(mount.log().contains("cache"), "the log does not name the cache:\n{}", mount.log());
    mount.unmount()?;
    drop(disk);
    Ok(())
}

/// With few descriptors only those who want one more are refused; what is open works, and is stored.
fn descriptors(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let source = world.plan("mnt", &[])?;
    let endpoint =
        source.endpoint.map_or(String::new(), |endpoint| format!("--endpoint {endpoint} --region us-east-1"));
    let script = r##"
        mkdir mnt staging
        for more in --no-restart ""; do
        (ulimit -n 256; exec "$SANDPAIL" mount @ mnt --staging-dir "$PWD/staging" $more)
        "$PYTHON" - <<'PY'
import errno, os
os.chdir("mnt")
files, refused = {}, 0
for n in range(400):
    try:
        files[n] = os.open(f"f{n}", os.O_CREAT | os.O_RDWR); os.write(files[n], b"x" * 1000)
    except OSError as error:
        assert error.errno in (errno.EMFILE, errno.ENFILE), error
        refused += 1
        os.close(files.pop(n)) if n in files else None
assert len(files) > 30 and refused > 100, (len(files), refused)
# What is open goes on.
for n, fd in files.items(): os.write(fd, b"y"); assert os.pread(fd, 10, 995) == b"xxxxxy"
assert os.path.exists("f0") and len(os.listdir(".")) >= len(files)
os.fsync(files[0])
for fd in files.values(): os.close(fd)
with open("f399", "w") as f: f.write("there is room now")
assert open("f399").read() == "there is room now" and open("f1").read() == "x" * 1000 + "y"
for name in os.listdir("."): os.unlink(name)
PY
        "$SANDPAIL" umount mnt; done
    "##;
    let text = script.replace('@', &format!("{endpoint} {}", source.source));
    world.script_in(&world.local(), &text)?.limit(std::time::Duration::from_secs(200)).run()?;
    Ok(())
}

/// The disk of staged files is full, and then the process is killed: what is open is there, and can be stored.
fn full_disk_and_kill(world: &World) -> Result<()> {
    if on_peer() || !is_root() {
        return Ok(());
    }
    let mut plan = world.plan("mnt", &[])?;
    let disk = Disk::new(&plan.scratch, 60)?;
    let scratch = plan.scratch.clone();
    plan.survives = true;
    let mount = Mount::start(plan)?;
    let script = r#"
        SCRATCH=@ "$PYTHON" - <<'PY'
import errno, os, signal, subprocess
MNT = os.environ["MNT"]; fill = os.environ["SCRATCH"] + "/fill"
def worker():
    for line in subprocess.run([os.environ["SANDPAIL"], "list"], capture_output=True, text=True).stdout.splitlines():
        if line.startswith(MNT + "\t"): return int(line.split("pid ")[1])
# A child that is started closes what is open, which stores it: so this is asked before.
before = worker()
small = [open(f"s{n}", "w+b", buffering=0) for n in range(3)]
for f in small: f.write(b"small")
large = open("large", "w+b", buffering=0); block = os.urandom(1 << 20)
for n in range(10): large.write(block)
with open(fill, "wb", buffering=0) as f:
    try:
        while True: f.write(bytes(1 << 16))
    except OSError as error: assert error.errno == errno.ENOSPC
    try:
        while True: f.write(bytes(512))
    except OSError as error: assert error.errno == errno.ENOSPC
os.kill(before, signal.SIGKILL)
os.statvfs(MNT)
for f in small: assert os.pread(f.fileno(), 10, 0) == b"small"
assert os.pread(large.fileno(), 20 << 20, 0) == block * 10
disk = os.statvfs(os.environ["SCRATCH"])
try: n = large.write(block); raise SystemExit(f"there was room for {n}, {disk}")
except OSError as error: assert error.errno == errno.ENOSPC, error
small[0].close()
os.unlink(fill)
large.write(block); small[1].write(b" and more")
for f in [*small[1:], large]: f.close()
assert open("large", "rb").read() == block * 11 and open("s0", "rb").read() == b"small" and open("s1", "rb").read() == b"small and more"
PY
    "#;
    world.sh(&mount, &script.replace('@', &scratch.display().to_string()))?;
    world.python(
        "assert get('s0') == b'small' and get('s1') == b'small and more' and len(get('large')) == 11 << 20, keys()",
    )?;
    mount.unmount()?;
    drop(disk);
    Ok(())
}
