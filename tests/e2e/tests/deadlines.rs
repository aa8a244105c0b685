//! A store that takes requests and never answers: nobody waits for it longer than the mount allows, nor than he wants to.

use anyhow::Result;
use sandpail_e2e::{Mount, Proxy, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("deadlines::operations_end", operations_end).minutes(6, 6),
    Test::new("deadlines::killed_programs_are_let_go", |world| let_go(world, false)).minutes(6, 6),
    Test::new("deadlines::also_by_the_next_process", |world| let_go(world, true)).minutes(6, 6),
];

/// Files to work with; the mount knows nothing of them.
const FILL: &str = r"
for n in range(40): put(f'd{n}/f', b'x' * (5 << 20) if n < 2 else b'x' * 100)";

/// A mount through a proxy, or none where there is no server.
fn through(world: &World, options: &[&str], survives: bool) -> Result<Option<(Mount, Proxy)>> {
    // Nothing is learnt of files that nobody asks for, so that somebody waits.
    let mut plan = world.plan("mnt", &[options, &["--metadata", "posix"]].concat())?;
    if on_peer() || plan.endpoint.is_none() {
        return Ok(None);
    }
    world.python(FILL)?;
    let proxy = Proxy::start(world.server.addr())?;
    plan.endpoint = Some(proxy.endpoint());
    plan.survives = survives;
    Ok(Some((Mount::start(plan)?, proxy)))
}

/// `--op-timeout`: each call ends with `ETIMEDOUT`, and what was written is stored when the store is back.
fn operations_end(world: &World) -> Result<()> {
    let Some((mount, proxy)) = through(world, &["--op-timeout", "3s", "--metadata-ttl", "10m"], false)? else {
        return Ok(());
    };
    world.sh(
        &mount,
        "ls >/dev/null; stat d0 d0/f >/dev/null; mkdir made; echo before >made/kept; ls -l made >/dev/null",
    )?;
    proxy.set_hanging(true);
    let told = world.sh(
        &mount,
        r#"
        "$PYTHON" - <<'PY'
import errno, os, json, time
files = {}
def late(what, work):
    begun = time.monotonic()
    try: work()
    except OSError as error: assert error.errno == errno.ETIMEDOUT, (what, error)
    else: raise AssertionError(f"{what}: done, without a store")
    took = time.monotonic() - begun
    assert 2 <= took < 20, (what, took)
    print(f"{what} {took:.1f} s", end=", ")
def opened(name):
    files[name] = os.open(name, os.O_CREAT | os.O_WRONLY)
    os.write(files[name], b"written in vain")
def closed(name):
    fd = files[name]
    os.close(fd)
late("lookup", lambda: os.stat("d7/f"))
late("listing", lambda: os.listdir("d8"))
late("mkdir", lambda: os.mkdir("made/more"))
late("read", lambda: open("d0/f", "rb").read(100))
opened("made/new")
late("fsync", lambda: os.fsync(files["made/new"]))
state = json.loads(os.getxattr("made/new", "user.sandpail.state"))
assert state["errno"] == "ETIMEDOUT" and "did not answer" in state["error"] and state["state"] in ("dirty", "uploading"), state
late("close", lambda: closed("made/new"))
state = json.loads(os.getxattr("made/new", "user.sandpail.state"))
assert state["errno"] == "ETIMEDOUT" and state["unstoredBytes"] == 15, state
late("rename", lambda: os.rename("made/kept", "made/moved"))
PY
        "#,
    );
    let told = match told {
        Ok(told) => told,
        Err(error) => {
            proxy.set_hanging(false);
            return Err(error);
        }
    };
    println!("  {}: {told}", world.kind().name());
    proxy.set_hanging(false);
    world.sh(
        &mount,
        r#""$SANDPAIL" sync "$MNT"; [ "$(cat made/new)" = "written in vain" ]; grep -qx before made/moved || grep -qx before made/kept"#,
    )?;
    world.python("assert get('made/new') == b'written in vain', keys()")?;
    mount.unmount()
}

/// Signals end programs that wait in the mount, also with the next process of the mount, which has their requests from the
/// kernel again.
fn let_go(world: &World, kill_mount: bool) -> Result<()> {
    let Some((mount, proxy)) = through(world, &["--metadata-ttl", "10m"], true)? else { return Ok(()) };
    world.sh(&mount, "ls >/dev/null; stat d0 d0/f d1/f >/dev/null; mkdir made other; ls -l made other")?;
    proxy.set_hanging(true);
    let script = r##"
        KILL_MOUNT=@ "$PYTHON" - <<'PY'
import os, select, signal, subprocess, sys, time
MNT, LOCAL, PYTHON = os.environ["MNT"], os.environ["LOCAL"], sys.executable
handled = "import os, signal, sys\ndef end(*_): sys.exit(7)\nfor s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, end)\n"
programs = {
    "lookup": (["stat", "d10/f"], signal.SIGKILL),
    "listing": (["ls", "d11"], signal.SIGINT),
    "read": (["cat", "d0/f"], signal.SIGKILL),
    "direct read": (["dd", "if=d0/f", "iflag=direct", "bs=1M"], signal.SIGTERM),
    "mkdir": (["mkdir", "other/more"], signal.SIGKILL),
    "close": (["tee", "made/closed"], signal.SIGINT),
    "fsync": (["dd", "if=/dev/zero", "of=made/synced", "bs=1k", "count=1", "conv=fsync"], signal.SIGKILL),
    "listing of one that handles it": ([PYTHON, "-Ic", handled + "os.listdir('d14')"], signal.SIGTERM),
    "lookup of one that handles it": ([PYTHON, "-Ic", handled + "os.stat('d12/f')"], signal.SIGINT),
    "open files of one that is killed": ([PYTHON, "-Ic", "import time; f = open('made/open', 'w'); f.write('kept'); f.flush(); time.sleep(600)"], signal.SIGKILL),
    "rename": (["mv", "-T", "d13", "made/d13"], signal.SIGKILL),
}
def worker():
    for line in subprocess.run([os.environ["SANDPAIL"], "list"], capture_output=True, text=True).stdout.splitlines():
        if line.startswith(MNT + "\t"): return int(line.split("pid ")[1])
running = {}
for what, (program, how) in programs.items():
    # The kernel lets nobody else use a directory in which something is made or moved.
    if what == "rename": time.sleep(2)
    running[what] = subprocess.Popen(program, cwd=MNT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(f"{LOCAL}/{what}", "w"), start_new_session=True)
time.sleep(3)
for what, process in running.items(): assert process.poll() is None, (what, process.poll(), open(f"{LOCAL}/{what}").read())
if os.environ["KILL_MOUNT"] == "1":
    before = worker(); os.kill(before, signal.SIGKILL); end = time.monotonic() + 60
    while worker() in (before, None):
        assert time.monotonic() < end, "no other process has come"
        time.sleep(0.05)
    time.sleep(2)
for what, process in running.items(): assert process.poll() is None, (what, process.poll(), open(f"{LOCAL}/{what}").read())
begun = time.monotonic()
for what, (_, how) in programs.items(): os.kill(running[what].pid, how)
late = []
for what, process in running.items():
    try: code = process.wait(max(0.1, begun + 10 - time.monotonic()))
    except subprocess.TimeoutExpired: late.append(what); continue
    how = programs[what][1]
    assert code in ((7,) if "handles" in what else (-how,)), (what, code, open(f"{LOCAL}/{what}").read())
    print(f"{what} {time.monotonic() - begun:.1f} s", end=", ")
assert not late, late
# The next process would ask the store before it opens anything.
if os.environ["KILL_MOUNT"] == "1": sys.exit()
# Nor do others wait for what nobody wants any more: no signal reaches one that cuts a file whose pages are asked for.
reader = subprocess.Popen(["cat", "d1/f"], cwd=MNT, stdout=subprocess.DEVNULL, start_new_session=True)
time.sleep(1)
os.kill(reader.pid, signal.SIGKILL)
reader.wait()
cut = "import time; f = open('d1/f', 'w'); print('cut', flush=True); time.sleep(600)"
cutter = subprocess.Popen([PYTHON, "-Ic", cut], cwd=MNT, stdout=subprocess.PIPE, start_new_session=True)
was_cut = select.select([cutter.stdout], [], [], 20)[0]
where = open(f"/proc/{cutter.pid}/stack").read()
os.kill(cutter.pid, signal.SIGKILL)
assert was_cut, where
cutter.wait(20)
PY
    "##;
    let told = world.sh(&mount, &script.replace('@', if kill_mount { "1" } else { "0" }));
    proxy.set_hanging(false);
    println!("  {}: {}", world.kind().name(), told?);
    // What they had begun goes on to its end, and the mount is well.
    let well = r#"
        "$SANDPAIL" sync "$MNT"; [ -e made/closed ]; [ "$(cat made/open)" = kept ]; ls made >/dev/null
        [ "$(stat -c %s d0/f)" = 5242880 ]; [ "$(cat d0/f | wc -c)" = 5242880 ]; [ "$(stat -c %s d1/f)" = @ ]"#;
    world.sh(&mount, &well.replace('@', if kill_mount { "5242880" } else { "0" }))?;
    world.python("assert get('made/open') == b'kept' and get('made/closed') == b'', keys()")?;
    mount.unmount()
}
