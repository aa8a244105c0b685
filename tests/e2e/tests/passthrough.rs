//! Files that are whole in the disk cache, which the kernel reads without asking.

use anyhow::Result;
use sandpail_e2e::{Mount, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[Test::new("passthrough::whole_files_are_read_without_the_mounts_process", whole)];

/// For programs: `Passed(path)` is a descriptor of a file that can be read while nobody answers for the mount.
const PASSED: &str = r##"
import hashlib, os, pathlib, signal, subprocess, sys, time
MNT = os.environ["MNT"]

def worker():
    for line in subprocess.run([os.environ["SANDPAIL"], "list"], capture_output=True, text=True).stdout.splitlines():
        if line.startswith(MNT + "\t"): return int(line.split("pid ")[1])

# In a process of its own: without passthrough it waits for the mount's process. Attributes are asked for in any case, so it is
# the C library's mmap, which does not look at them.
READ = """
import ctypes, hashlib, os, sys
fd, length = map(int, sys.argv[1:])
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
read = hashlib.sha256(os.pread(fd, length, 0)).hexdigest()
c = ctypes.CDLL(None)
c.mmap.restype = ctypes.c_void_p
at = c.mmap(None, ctypes.c_size_t(length), 1, 2, fd, ctypes.c_long(0))
mapped = hashlib.sha256(ctypes.string_at(at, length)).hexdigest()
assert read == mapped, (read, mapped)
print(read)
"""

def alone(fd, length):
    """What is read while the mount's process is stopped; `None` if nothing is."""
    pid = worker()
    os.kill(pid, signal.SIGSTOP)
    command = [sys.executable, "-c", READ, str(fd), str(length)]
    # Not in the mount, where Python would look for its modules.
    reader = subprocess.Popen(command, cwd="/", pass_fds=[fd], stdout=subprocess.PIPE, text=True)
    try:
        return reader.communicate(timeout=10)[0].strip()
    except subprocess.TimeoutExpired:
        return None
    finally:
        os.kill(pid, signal.SIGCONT)
        reader.wait()

def opened_whole(path, length):
    """Open anew until the kernel reads it by itself: the cache is looked through in the background."""
    end = time.monotonic() + 120
    while True:
        fd = os.open(path, os.O_RDONLY)
        found = alone(fd, length)
        if found: return fd, found
        os.close(fd)
        assert time.monotonic() < end, f"{path} is never read without asking"

def sha(data): return hashlib.sha256(data).hexdigest()
"##;

fn whole(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    if world.script_in(&world.local(), "stat -f -c %T .")?.run()?.trim() == "overlayfs" {
        println!("the kernel takes no local file of an overlay: not tried");
        return Ok(());
    }
    let writer = world.mount_at("writer", &[])?;
    world.sh(
        &writer,
        r#"head -c 25000000 /dev/urandom >large; head -c 5000 /dev/urandom >small; : >empty
        sha256sum large small >"$LOCAL/sums""#,
    )?;
    let cache = world.local().join("cache");
    let cache = cache.display().to_string();
    let mut plan = world.plan("mnt", &["--read-only", "--cache-dir", &cache])?;
    plan.survives = true;
    let mount = Mount::start(plan)?;
    let python = |text: &str| format!("\"$PYTHON\" - <<'PY'\n{PASSED}\n{text}\nPY\n");
    world.sh(
        &mount,
        &python(
            r#"
sums = dict(reversed(line.split()) for line in (pathlib.Path(os.environ["LOCAL"]) / "sums").read_text().splitlines())
lengths = {"large": 25000000, "small": 5000}
for name in sums: assert sha(pathlib.Path(name).read_bytes()) == sums[name], name
held = {}
for name, length in lengths.items():
    held[name], found = opened_whole(name, length)
    assert found == sums[name], name
assert pathlib.Path("empty").read_bytes() == b""
# The process is killed: what is open goes on, before and after another one has come.
before = worker()
os.kill(before, signal.SIGKILL)
for name, fd in held.items(): assert sha(os.pread(fd, lengths[name], 0)) == sums[name], name
end = time.monotonic() + 60
while worker() in (before, None):
    assert time.monotonic() < end, "no other process has come"
    time.sleep(0.01)
for name, fd in held.items():
    assert os.fstat(fd).st_size == lengths[name]
    # All handles of one file go one way, which only the process before had chosen.
    again = os.open(name, os.O_RDONLY)
    assert alone(again, lengths[name]) == sums[name], name
    assert sha(os.pread(fd, lengths[name], 0)) == sums[name], name
    os.close(again)
# Somebody else replaces it: who has it open sees what it was.
import random
new = random.Random(1).randbytes(6000)
(pathlib.Path(MNT).parent / "writer" / "small").write_bytes(new)
end = time.monotonic() + 60
while pathlib.Path("small").read_bytes() != new:
    assert time.monotonic() < end, "the new contents never come"
    time.sleep(0.1)
assert sha(os.pread(held["small"], 5000, 0)) == sums["small"]
fd, found = opened_whole("small", 6000)
assert found == sha(new)
assert sha(pathlib.Path("large").read_bytes()) == sums["large"]
"#,
        ),
    )?;
    // What the disk gives back wrong is noticed by the next process before the kernel reads it.
    let mount = mount.remount(&[])?;
    world.sh(
        &mount,
        &python(
            r#"
cache = pathlib.Path(os.environ["LOCAL"]) / "cache"
large = max(cache.glob("*.data"), key=lambda path: path.stat().st_size)
with open(large, "r+b") as file:
    file.seek(24000000); byte = file.read(1)[0]; file.seek(24000000); file.write(bytes([byte ^ 1]))
for _ in range(3): subprocess.run(["sha256sum", "--quiet", "-c", os.environ["LOCAL"] + "/sums", "--ignore-missing"], check=False)
fd, found = opened_whole("large", 25000000)
assert found in (pathlib.Path(os.environ["LOCAL"]) / "sums").read_text()
"#,
        ),
    )?;
    mount.unmount()?;
    writer.unmount()
}
