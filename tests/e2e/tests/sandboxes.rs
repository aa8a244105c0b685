//! Sandboxes with buckets in them, through the API of a real daemon: other people's client, the contract, attacks, lives and deaths.
//!
//! The daemons here stay few, and each is used for many checks: the scripts in `sandboxes/` go on after a failure and
//! tell all of them at the end.

use std::time::Duration;

use anyhow::{Result, ensure};
use sandpail_e2e::{Daemon, ServerKind, Test, World, on_peer, short_or_long};

pub(crate) const TESTS: &[Test] = &[
    Test::new("sandboxes::agents_client", agents_client).on(&[ServerKind::SeaweedFs]),
    Test::new("sandboxes::contract", contract).on(&[ServerKind::SeaweedFs]),
    Test::new("sandboxes::sdk", sdk).on(&[ServerKind::SeaweedFs]),
    Test::new("sandboxes::attack", attack).on(&[ServerKind::Embedded]).minutes(8, 8),
    Test::new("sandboxes::cycles", cycles).on(&[ServerKind::Embedded]).minutes(6, 40),
    Test::new("sandboxes::daemon_killed", daemon_killed).on(&[ServerKind::Embedded]),
    Test::new("sandboxes::worker_killed", worker_killed).on(&[ServerKind::Embedded]),
    Test::new("sandboxes::shared_and_busy", shared_and_busy).on(&[ServerKind::SeaweedFs]),
    Test::new("sandboxes::local_bucket", local_bucket).on(&[ServerKind::Embedded]),
];

/// Runs a script of `sandboxes/` on a daemon, which must leave nothing.
fn run(world: &World, script: &str, args: &[&str], limit: Duration) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let daemon = Daemon::start(world)?;
    let told = daemon.script(script, args, limit)?;
    println!("---- {script}\n{}", told.trim());
    daemon.end()
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

fn agents_client(world: &World) -> Result<()> {
    run(world, "agents_client.py", &[], minutes(4))
}

fn contract(world: &World) -> Result<()> {
    run(world, "contract.py", &[], minutes(4))
}

/// The TypeScript SDK and all its examples, which `make test` has compiled.
fn sdk(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let daemon = Daemon::start(world)?;
    let told = daemon
        .command(
            r#"
            cd "$REPO/sdk/typescript"
            export SANDPAIL_API_KEY="$(cat "$SANDPAIL_KEY_FILE")" EXAMPLE_S3_DETECTED=1
            export EXAMPLE_S3_ENDPOINT="$ENDPOINT" EXAMPLE_S3_BUCKET="$BUCKET"
            export EXAMPLE_S3_ACCESS_KEY_ID="$ACCESS_KEY" EXAMPLE_S3_SECRET_ACCESS_KEY="$SECRET_KEY"
            exec npm test --silent -- test/daemon.test.ts test/examples.test.ts
            "#,
        )?
        .limit(minutes(4))
        .run()
        .map_err(|error| error.context(format!("log of the daemon:\n{}", daemon.log())))?;
    ensure!(told.contains("19-archive") || !told.contains("skipped"), "examples were left out:\n{told}");
    daemon.end()
}

fn attack(world: &World) -> Result<()> {
    run(world, "attack_outside.py", &[], minutes(7))
}

fn cycles(world: &World) -> Result<()> {
    run(world, "cycles.py", &short_or_long(["20", "10"], ["500", "40"]), short_or_long(minutes(5), minutes(38)))
}

/// Helpers of the snippets: what is kept between them, and the sandboxes' processes as the host sees them.
const HOST: &str = r#"
import pathlib, signal, subprocess, threading
def keep(**values): pathlib.Path("kept.json").write_text(json.dumps({**kept(), **values}))
def kept(): return json.loads(pathlib.Path("kept.json").read_text()) if os.path.exists("kept.json") else {}
sys.argv = ["x", "0", "0"]
SUPERVISOR = int(os.environ["SUPERVISOR"])
def family():
    found, tree = {SUPERVISOR}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try: tree[int(name)] = pathlib.Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:2]
        except OSError: pass
    for _ in range(20): found |= {pid for pid, (state, parent) in tree.items() if int(parent) in found and state not in "ZX"}
    return sorted(found - {SUPERVISOR})
def inits():
    # Host pids of the sandboxes' inits, by a file that the test put there.
    found = {}
    for pid in family():
        try:
            if re.search(r"NSpid:\t\d+\t1$", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M):
                found[pathlib.Path(f"/proc/{pid}/root/workspace/name").read_text()] = pid
        except OSError: pass
    return found
def about(pid, file):
    # One may end between two looks.
    try: return pathlib.Path(f"/proc/{pid}/{file}").read_text()
    except OSError: return ""
def workers(): return [pid for pid in family() if "mount-worker" in about(pid, "cmdline")]
def state(sandbox, path): return next((one["state"] for one in api.mounts(sandbox) if one["mountPath"] == path), None)
import re
"#;

fn snippet(daemon: &Daemon, code: &str) -> Result<String> {
    daemon.python(&format!("{HOST}\n{}", sandpail_e2e::server::dedent(code)))
}

/// A daemon that dies leaves sandboxes and mounts at work; the next one finds them, and cleans up what died meanwhile.
fn daemon_killed(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mut daemon = Daemon::start(world)?;
    snippet(
        &daemon,
        r#"
        for name in "abc":
            box = api.create()
            keep(**{name: box})
            api.put(box, "/workspace/name", name.encode())
            api.mount(box, "/data", binding="MY_BUCKET", options={"prefix": "/" + name})
            api.mount(box, "/remote", bucket=os.environ["BUCKET"], options={"endpoint": os.environ["ENDPOINT"], "prefix": "/" + name,
                "credentials": {"accessKeyId": os.environ["ACCESS_KEY"], "secretAccessKey": os.environ["SECRET_KEY"]}})
            api.sh(box, f"echo {name} >/data/{name}; echo {name} >/remote/{name}")
        a = kept()["a"]
        api.mount(a, "/local", binding="SECOND", options={"localBucket": True})
        api.must("POST", f"/v1/sandbox/{a}/processes", {"processId": "counter", "argv": ["sh", "-c", "n=0; while :; do n=$((n+1)); echo $n >/data/count.tmp; mv /data/count.tmp /data/count; sleep 0.05; done"]})
        api.exec(a, "export", "KEPT=yes", session="s")
        # What prints, and whoever asked for it is gone: a command, a session's, and what a command left behind.
        words = "while :; do echo word; echo word >&2; echo x >>/workspace/{}; sleep 0.05; done"
        for name, session, script in [("command", None, words), ("session", "t", words), ("left", None, "(" + words + ") &")]:
            threading.Thread(target=lambda *given: Api().exec(a, "bash", "-c", given[1], session=given[0]), args=(session, script.format(name)), daemon=True).start()
            until(f"the {name} is at work", lambda: api.exec(a, "test", "-e", f"/workspace/{name}").code == 0)
        # A fourth is unused, a fifth is destroyed at the moment of the crash.
        keep(d=api.create())
        until("the inits are seen", lambda: sorted(inits()) == list("abc"))
        "#,
    )?;
    daemon.kill()?;
    snippet(
        &daemon,
        r#"
        a, b, c = (inits()[name] for name in "abc")
        def count():
            # The file is replaced all the time; whoever has the old one open may be told so.
            for _ in range(50):
                try: return int(open(f"/proc/{a}/root/data/count").read())
                except OSError: pass
        before = count()
        until("work goes on without a daemon", lambda: count() > before + 5)
        for name in ["command", "session", "left"]:
            words = lambda: os.stat(f"/proc/{a}/root/workspace/{name}").st_size
            before = words()
            until(f"the {name} goes on without a daemon", lambda: words() > before + 10)
        os.kill(c, signal.SIGKILL)
        "#,
    )?;
    daemon.start_again()?;
    snippet(
        &daemon,
        r#"
        a, b, c, d = (kept()[name] for name in "abcd")
        found = api.sandboxes()
        assert a in found and b in found and c not in found, found
        for name, box in (("a", a), ("b", b)):
            assert api.call("GET", f"/v1/sandbox/{box}/running").json() == {"running": True}
            assert {one["mountPath"]: one["state"] for one in api.mounts(box)} == {"/data": "serving", "/remote": "serving", **({"/local": "serving"} if name == "a" else {})}, api.mounts(box)
            told = api.sh(box, f"cat /data/{name} /remote/{name}; echo more >>/data/{name}; echo new >/remote/new; cat /data/{name}")
            assert told == f"{name}\n{name}\n{name}\nmore\n", (name, told)
            assert api.object("MY_BUCKET", f"{name}/{name}") == f"{name}\nmore\n".encode()
            assert api.get(box, "/workspace/name").decode() == name
            reply = api.call("POST", f"/v1/sandbox/{box}/mount", {"binding": "MY_BUCKET", "mountPath": "/data", "options": {}})
            assert reply.status == 502 and "Mount path already in use: /data" in reply.error()[0], reply
        assert api.exec(a, "sh", "-c", "echo $KEPT", session="s").out in (b"yes\n", b"\n")
        for name in ["command", "session", "left"]:
            size = lambda: int(api.sh(a, f"stat -c %s /workspace/{name}"))
            before = size()
            until(f"the {name} goes on with another daemon", lambda: size() > before + 10)
        # The sync of the plain directory goes on.
        api.sh(a, "echo from inside >/local/inside")
        api.put_object("SECOND", "outside", b"from outside")
        until("the sync goes on, outwards", lambda: api.object("SECOND", "inside") == b"from inside\n")
        until("the sync goes on, inwards", lambda: api.exec(a, "cat", "/local/outside").out == b"from outside")
        api.unmount(b, "/remote")
        assert api.sh(b, "ls -d /remote 2>&1 || true").startswith("ls:")
        api.mount(b, "/remote", binding="REMOTE", options={"prefix": "/b"})
        assert api.sh(b, "cat /remote/new") == "new\n"
        # What died is cleaned: nothing names it, and its name starts afresh.
        assert api.exec(c, "ls", "-A", "/workspace", "/data").out == b"/workspace:\n"
        assert api.call("GET", f"/v1/sandbox/{d}/running").json() == {"running": True}
        for box in (a, b, c, d): api.destroy(box)
        assert not workers() and not inits(), family()
        assert api.object("MY_BUCKET", "a/a") == b"a\nmore\n", "destroying lost data"
        "#,
    )?;
    // In the middle of everything.
    for round in 0..short_or_long(2, 10) {
        let busy = snippet(
            &daemon,
            &format!(
                r#"
        import time
        code = '''
        from client import *
        import random, sys
        api = Api()
        while True:
            box = api.create(); print(box, flush=True)
            api.mount(box, "/data", binding="MY_BUCKET"); api.sh(box, "echo x >/data/x")
            if random.random() < 0.5: api.destroy(box)
        '''
        out = open("busy.out", "w")
        import textwrap
        busy = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=out, stderr=subprocess.DEVNULL, start_new_session=True) for n in range(3)]
        open("busy.pids", "w").write(" ".join(str(one.pid) for one in busy))
        time.sleep(1.0 + 0.37 * {round})
        "#
            ),
        );
        daemon.kill()?;
        busy?;
        daemon.start_again()?;
        snippet(
            &daemon,
            r#"
            # One that began late, or had just lost its connection, goes on with the new daemon.
            for pid in open("busy.pids").read().split():
                try: os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError: pass
            living = api.sandboxes()
            for box in living:
                if not api.call("GET", f"/v1/sandbox/{box}/running").json()["running"]: continue
                assert api.exec(box, "echo", "hi").out == b"hi\n"
                for one in api.mounts(box):
                    if one["state"] == "serving": assert api.exec(box, "ls", one["mountPath"], timeout_ms=10000).code == 0
            # What a killed client had asked for may still come.
            until("no sandbox is left", lambda: not [api.destroy(box) for box in api.sandboxes()])
            try: until("nothing is left", lambda: len(family()) == 1)
            except Failed: raise Failed(f"left: {[(pid, about(pid, 'cmdline'), about(pid, 'status'), about(pid, 'wchan')) for pid in family()]}")
            "#,
        )?;
    }
    // Gracefully: exit code 0, data stored, sandboxes found again; and no second daemon beside the first.
    snippet(
        &daemon,
        "box = api.create(); keep(e=box); api.mount(box, '/data', binding='MY_BUCKET'); api.sh(box, 'echo graceful >/data/g')",
    )?;
    let second = daemon
        .command("sed 's/^listen.*/listen = \"127.0.0.1:0\"/' \"$CONFIG\" >second.toml; exec timeout 20 \"$SANDPAIL\" serve --config second.toml")?
        .finish()?;
    ensure!(!matches!(second.code, 0 | 124), "a second daemon starts: {}", second.told());
    ensure!(
        second.stderr.contains("state") || second.stdout.contains("state"),
        "says what is wrong: {}",
        second.told()
    );
    snippet(&daemon, "assert api.sh(kept()['e'], 'cat /data/g') == 'graceful\\n'")?;
    let code = daemon.stop()?;
    ensure!(code == 0, "SIGTERM: exit code {code}\n{}", daemon.log());
    daemon.start_again()?;
    snippet(
        &daemon,
        r#"
        box = kept()["e"]
        assert api.object("MY_BUCKET", "g") == b"graceful\n"
        assert api.sh(box, "cat /data/g; echo again >/data/h; cat /data/h") == "graceful\nagain\n"
        "#,
    )?;
    daemon.end()
}

/// A mount whose worker dies says so, hangs nobody, takes no writes into the directory below it, and can be made again.
fn worker_killed(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let daemon = Daemon::start(world)?;
    snippet(
        &daemon,
        r#"
        import time
        box = api.create()
        other = api.create()
        api.mount(other, "/data", binding="MY_BUCKET")
        spared = set(workers())
        api.sh(box, "mkdir -p /workspace/over; echo under >/workspace/over/f")
        for path, options in [("/data", {}), ("/workspace/over", {"prefix": "/over"})]:
            api.mount(box, path, binding="MY_BUCKET", options=options)
        api.sh(box, "echo kept >/data/kept; echo kept >/workspace/over/kept")
        api.must("POST", f"/v1/sandbox/{box}/processes", {"argv": ["sh", "-c", "cd /data; while :; do date >now 2>/dev/null; sleep 0.01; done"]})
        victims = set(workers()) - spared
        assert len(victims) == 2, (victims, spared)
        for pid in victims: os.kill(pid, signal.SIGKILL)
        for path in ["/data", "/workspace/over"]:
            # Either it is said that the mount failed, or it works again; nothing between.
            def settled():
                told = state(box, path)
                return told == "failed" or told == "serving" and api.exec(box, "cat", path + "/kept", timeout_ms=5000).out == b"kept\n"
            until(f"{path} is failed, or works again", settled)
            before = time.monotonic()
            code = api.exec(box, "sh", "-c", f"echo lost >{path}/lost; ls {path}; stat {path}", timeout_ms=8000).code
            assert code != 124 and time.monotonic() - before < 8, f"{path} hangs"
            if state(box, path) == "failed":
                for script in [f"echo x >{path}/lost", f"mkdir {path}/lost", f"cp /etc/hostname {path}/"]:
                    assert api.exec(box, "sh", "-c", script, timeout_ms=8000).code not in (0, 124), script
                reply = api.call("PUT", f"/v1/sandbox/{box}/file{path}/lost?scope=sandbox", b"x")
                assert reply.status == 502, reply
                # It holds its path until it is unmounted, and then it can be mounted again.
                reply = api.call("POST", f"/v1/sandbox/{box}/mount", {"binding": "MY_BUCKET", "mountPath": path, "options": {}})
                assert reply.status in (200, 502), reply
                if reply.status == 200: api.unmount(box, path, force=True)
            if state(box, path): api.unmount(box, path, force=True)
        assert api.sh(box, "ls -A /workspace/over; ls -d /data 2>/dev/null || true") == "f\n", api.sh(box, "ls -lA /workspace/over /data || true")
        for path, options in [("/data", {}), ("/workspace/over", {"prefix": "/over"})]:
            api.mount(box, path, binding="MY_BUCKET", options=options)
            assert api.sh(box, f"cat {path}/kept; echo new >{path}/new; cat {path}/new") == "kept\nnew\n"
        assert api.sh(other, "cat /data/kept; echo fine >/data/fine") == "kept\n", "another mount was harmed"
        # A dead worker does not keep its sandbox from being destroyed.
        for pid in set(workers()) - spared: os.kill(pid, signal.SIGKILL)
        before = time.monotonic()
        api.destroy(box)
        assert time.monotonic() - before < 15
        assert set(workers()) == spared
        # Nor does an init that dies: the id starts afresh, its mounts are gone.
        api.put(other, "/workspace/name", b"other")
        os.kill(inits()["other"], signal.SIGKILL)
        until("the death is noticed", lambda: api.mounts(other) == [] and not workers())
        assert api.exec(other, "sh", "-c", "ls -A /workspace /data 2>/dev/null").out == b"/workspace:\n"
        assert api.object("MY_BUCKET", "fine") == b"fine\n"
        "#,
    )?;
    daemon.end()
}

/// Two sandboxes on one bucket; unmounting what is in use; destroying what writes.
fn shared_and_busy(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let daemon = Daemon::start(world)?;
    snippet(
        &daemon,
        r#"
        import time
        a, b = api.create(), api.create()
        for box in (a, b):
            api.mount(box, "/data", binding="MY_BUCKET")
            api.mount(box, "/remote", bucket=os.environ["BUCKET"], options={"endpoint": os.environ["ENDPOINT"]})
        api.mount(b, "/part", binding="MY_BUCKET", options={"prefix": "/d", "readOnly": True})
        for top in ("/data", "/remote"):
            api.sh(a, f"mkdir -p {top}/d")
            for n in range(25):
                one, two = (a, b) if n % 2 else (b, a)
                # A name that was asked for before it was there, an old version that was read, a listing that was made.
                api.exec(two, "sh", "-c", f"cat {top}/d/same {top}/d/n{n}; ls {top}/d")
                api.sh(one, f"echo {n} >{top}/d/n{n}; echo '{n} {'x' * (n * 7)}' >{top}/d/same; mkdir {top}/d/dir{n}; mv {top}/d/n{n - 1} {top}/d/moved{n - 1} 2>/dev/null || true; rm -f {top}/d/moved{n - 2}")
                told = api.sh(two, f"cat {top}/d/n{n} {top}/d/same; ls -d {top}/d/dir{n}; ls {top}/d | grep -v dir | sort; ! cat {top}/d/n{n - 1} 2>/dev/null")
                listed = sorted([f"n{n}", "same"] + ([f"moved{n - 1}"] if n else []))
                assert told == f"{n}\n{n} {'x' * (n * 7)}\n{top}/d/dir{n}\n" + "".join(x + "\n" for x in listed), (n, told)
                if top == "/data":
                    part = api.sh(b, "cat /part/same")
                    assert part == f"{n} {'x' * (n * 7)}\n", (n, part)
        # Append from both sides, in turns.
        for n in range(10): api.sh((a, b)[n % 2], f"echo {n} >>/data/log")
        assert api.sh(a, "cat /data/log") == "".join(f"{n}\n" for n in range(10))
        # Busy, by a directory, an open file, and a mapped program; and then with force.
        api.sh(a, "cp /bin/sleep /data/napper; chmod +x /data/napper")
        for name, argv in [("cwd", ["sh", "-c", "cd /data/d; exec sleep 60"]), ("file", ["sh", "-c", "exec 7>/data/open; echo half >&7; exec sleep 61"]), ("program", ["/data/napper", "62"])]:
            api.must("POST", f"/v1/sandbox/{a}/processes", {"argv": argv, "processId": name})
            named = "napper" if name == "program" else "sleep"
            until("the process is there", lambda: api.exec(a, "pgrep", named).code == 0)
            time.sleep(0.1)
            reply = api.call("POST", f"/v1/sandbox/{a}/unmount", {"mountPath": "/data"})
            text, code = reply.error()
            assert (reply.status, code) == (502, "unmount_error") and text.startswith("unmount failed: ") and named in text, reply
            assert (reply.json()["name"], reply.json()["sdkCode"]) == ("BucketUnmountError", "BUCKET_UNMOUNT_ERROR"), reply
            assert api.sh(a, "echo usable >/data/usable; cat /data/usable") == "usable\n"
            if name != "program": api.must("DELETE", f"/v1/sandbox/{a}/processes/{name}?signal=KILL")
            until("it ended", lambda: name == "program" or api.must("GET", f"/v1/sandbox/{a}/processes/{name}").json()["status"] != "running")
        api.unmount(a, "/data", force=True)
        assert api.mounts(a) and all(one["mountPath"] != "/data" for one in api.mounts(a))
        assert api.sh(a, "ls -d /data 2>/dev/null || echo gone") == "gone\n"
        api.mount(a, "/data", binding="MY_BUCKET")
        assert api.sh(a, "cat /data/usable /data/log | tail -n 1") == "9\n"
        # A session or terminal that merely stands there is named, too, or does not keep the mount.
        api.exec(a, "cd", "/data/d", session="stands")
        reply = api.call("POST", f"/v1/sandbox/{a}/unmount", {"mountPath": "/data"})
        assert reply.status == 200 or reply.status == 502 and "sh" in reply.error()[0], reply
        assert reply.status == 200 or api.call("DELETE", f"/v1/sandbox/{a}/session/stands").status == 200
        if reply.status != 200: api.unmount(a, "/data")
        api.mount(a, "/data", binding="MY_BUCKET")
        # A command that just ended never keeps a mount, however often.
        for n in range(20):
            api.sh(a, f"cd /data; echo {n} >quick; cat quick")
            api.unmount(a, "/data")
            api.mount(a, "/data", binding="MY_BUCKET")
        # What was closed is in the bucket, also when the sandbox is destroyed the next moment.
        api.sh(a, "head -c 30000000 /dev/zero | tr '\\0' x >/data/large; echo last >/data/last; echo last >/remote/last; (while :; do echo y >>/data/writing; done) >/dev/null 2>&1 &")
        api.destroy(a)
        assert api.object("MY_BUCKET", "large") == b"x" * 30000000 and api.object("MY_BUCKET", "last") == b"last\n" and api.object("REMOTE", "last") == b"last\n"
        assert api.sh(b, "cat /data/last /remote/last; cmp <(head -c 30000000 /dev/zero | tr '\\0' x) /data/large") == "last\nlast\n"
        # Trusted code and the mount see each other.
        api.put_object("MY_BUCKET", "d/trusted", b"by trusted code")
        until("an object of trusted code", lambda: api.exec(b, "cat", "/data/d/trusted").out == b"by trusted code", 5)
        "#,
    )?;
    daemon.end()
}

/// A plain directory and a bucket, kept equal.
fn local_bucket(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let daemon = Daemon::start(world)?;
    snippet(
        &daemon,
        r#"
        import time
        box = api.create()
        local = {"localBucket": True}
        for key, body in [("in/a.txt", b"a"), ("in/deep/b.bin", bytes(range(256)) * 5000), ("in/empty", b"")]: api.put_object("MY_BUCKET", key, body)
        api.sh(box, "mkdir -p /local/mine; echo before >/local/mine/f")
        api.mount(box, "/local", binding="MY_BUCKET", options={**local, "prefix": "/in"})
        # The first sync is done when the mount returns, both ways.
        assert api.sh(box, "cat /local/a.txt; wc -c </local/deep/b.bin; ls -A /local; cat /local/mine/f") == "a1280000\na.txt\ndeep\nempty\nmine\nbefore\n", api.sh(box, "find /local")
        until("local files at first", lambda: api.object("MY_BUCKET", "in/mine/f") == b"before\n", 3)
        assert api.sh(box, "grep -c fuse /proc/self/mountinfo || true") == "0\n", "a plain directory is no file system"
        assert api.mounts(box)[0]["mode"] == "local"
        # Changes, both ways.
        api.sh(box, "echo changed >/local/a.txt; mkdir -p /local/new/er; head -c 3000000 /dev/zero >/local/new/er/zero; echo 'ü 1' >'/local/ü 1'; mv /local/mine/f /local/mine/g; chmod +x /local/mine/g; mkdir /local/hollow")
        api.put_object("MY_BUCKET", "in/deep/b.bin", b"short now")
        api.put_object("MY_BUCKET", "in/from/trusted", b"t")
        api.delete_object("MY_BUCKET", "in/empty")
        until("outwards", lambda: (api.object("MY_BUCKET", "in/a.txt"), api.object("MY_BUCKET", "in/new/er/zero"), api.object("MY_BUCKET", "in/ü 1"), api.object("MY_BUCKET", "in/mine/f"), api.object("MY_BUCKET", "in/mine/g"))
              == (b"changed\n", bytes(3000000), "ü 1\n".encode(), None, b"before\n"))
        until("inwards", lambda: api.exec(box, "sh", "-c", "cat /local/deep/b.bin /local/from/trusted; ls /local/empty").out == b"short nowt")
        # Deletions of some, both ways.
        api.sh(box, "rm -r /local/new")
        api.delete_object("MY_BUCKET", "in/from/trusted")
        until("deleted outwards", lambda: api.object("MY_BUCKET", "in/new/er/zero") is None)
        until("deleted inwards", lambda: api.exec(box, "ls", "/local/from/trusted").code != 0)
        # Quiet: what was carried is not carried back, again and again.
        age = lambda: [o["uploaded"] for o in api.must("GET", "/v1/bindings/MY_BUCKET/objects?prefix=in/").json()["objects"]], api.sh(box, "find /local -type f -printf '%p %T@ %i\\n' | sort")
        before = age[0](), age[1]
        time.sleep(2.5)
        assert (age[0](), api.sh(box, "find /local -type f -printf '%p %T@ %i\\n' | sort")) == before, "echoes"
        # Readers never see half a file.
        api.must("POST", f"/v1/sandbox/{box}/processes", {"processId": "reader", "argv": ["python3", "-c", "import sys,time\nend=time.time()+4\nwhile time.time()<end:\n data=open('/local/a.txt','rb').read()\n if data not in (b'changed\\n', b'w'*2000000): sys.exit(3)\n"]})
        api.put_object("MY_BUCKET", "in/a.txt", b"w" * 2000000)
        until("the reader is done", lambda: api.must("GET", f"/v1/sandbox/{box}/processes/reader").json()["status"] != "running")
        assert api.must("GET", f"/v1/sandbox/{box}/processes/reader").json()["exitCode"] == 0, "a file was seen half"
        # Both sides change one file between two syncs: neither is lost.
        for n in range(3):
            api.put_object("MY_BUCKET", f"in/both{n}", b"first"); until("the first version", lambda: api.exec(box, "cat", f"/local/both{n}").out == b"first")
            ours = threading.Thread(target=lambda: Api().sh(box, f"echo -n ours{n} >/local/both{n}")); ours.start()
            api.put_object("MY_BUCKET", f"in/both{n}", f"theirs{n}".encode()); ours.join()
        def kept_both():
            texts = api.sh(box, "find /local -name '*both*' -exec cat {} + ; true")
            objects = b"".join(api.object("MY_BUCKET", key) or b"" for key in api.keys("MY_BUCKET", "in/") if "both" in key).decode()
            return all(f"ours{n}" in texts + objects and f"theirs{n}" in texts + objects for n in range(3))
        time.sleep(3)
        assert kept_both(), (api.sh(box, "find /local -name '*both*' -printf '%p ' -exec cat {} \\;"), [(k, api.object("MY_BUCKET", k)) for k in api.keys("MY_BUCKET", "in/") if "both" in k])
        # A side that is suddenly empty is not carried over data: the directory first, then the bucket.
        for _ in range(4):
            before = {key: api.object("MY_BUCKET", key) for key in api.keys("MY_BUCKET", "in/")}
            api.sh(box, "rm -rf /local/* /local/.[!.]*")
            time.sleep(3)
            missing = [key for key in set(before) - set(api.keys("MY_BUCKET", "in/")) if not key.endswith("/")]
            if not missing: break
            # A round looked while rm was at it: what was gone by then was removed like any file. Once more.
            for key in missing: api.put_object("MY_BUCKET", key, before[key])
            until("all is back", lambda: len(api.sh(box, "find /local -type f").splitlines()) >= len([k for k in before if not k.endswith("/")]), 30)
        assert not missing, f"an emptied directory emptied the bucket: {missing}"
        until("the files come back, or stay away", lambda: True)
        api.sh(box, "echo again >/local/again")
        until("the sync goes on", lambda: api.object("MY_BUCKET", "in/again") == b"again\n", 30)
        until("the files are back", lambda: api.exec(box, "cat", "/local/deep/b.bin").out == b"short now", 30)
        files = api.sh(box, "find /local -type f | sort")
        for key in api.keys("MY_BUCKET", "in/"): api.delete_object("MY_BUCKET", key)
        time.sleep(3)
        assert api.sh(box, "find /local -type f | sort") == files, "an emptied bucket emptied the directory"
        # Unmounting makes a last sync, leaves the files and stops.
        api.sh(box, "echo last >/local/last")
        api.unmount(box, "/local")
        assert api.object("MY_BUCKET", "in/last") == b"last\n"
        assert api.sh(box, "cat /local/last /local/again") == "last\nagain\n"
        api.put_object("MY_BUCKET", "in/after", b"x"); api.sh(box, "echo x >/local/after-too")
        time.sleep(2.5)
        assert api.object("MY_BUCKET", "in/after-too") is None and api.exec(box, "ls", "/local/after").code != 0
        # Read-only: nothing goes out. Another binding, another prefix, at the same time.
        api.put_object("SECOND", "ro/x", b"1")
        api.mount(box, "/ro", binding="SECOND", options={**local, "prefix": "/ro", "readOnly": True})
        api.mount(box, "/rw", binding="SECOND", options={**local, "prefix": "/rw"})
        reply = api.call("POST", f"/v1/sandbox/{box}/mount", {"binding": "THIRD", "mountPath": "/rw", "options": local})
        assert reply.status == 502 and reply.error()[0].startswith("mount failed: Mount path already in use: /rw"), reply
        found = api.exec(box, "sh", "-c", "cat /ro/x; echo 2 >/ro/y; echo 3 >/rw/z")
        assert found.out == b"1", found
        until("the other goes out", lambda: api.object("SECOND", "rw/z") == b"3\n")
        api.put_object("SECOND", "ro/x", b"22")
        until("changes come in", lambda: api.exec(box, "cat", "/ro/x").out == b"22")
        assert api.object("SECOND", "ro/y") is None and api.object("SECOND", "ro/x") == b"22"
        # What a guest does with links stays inside.
        api.sh(box, "ln -s /etc/passwd /rw/link; ln -s / /rw/root; mkfifo /rw/pipe; echo 4 >/rw/after-links")
        until("links do not stop it", lambda: api.object("SECOND", "rw/after-links") == b"4\n")
        assert not any(b"root:" in (api.object("SECOND", key) or b"") for key in api.keys("SECOND", "rw/") if "root/" not in key) and not any(key.startswith("rw/root/") for key in api.keys("SECOND", "rw/")), api.keys("SECOND", "rw/")
        api.put_object("SECOND", "rw/../../escape", b"x"); api.put_object("SECOND", "rw//etc/passwd", b"x"); api.put_object("SECOND", "rw/link/below", b"x")
        api.sh(box, "echo 5 >/rw/after-keys")
        until("strange keys do not stop it", lambda: api.object("SECOND", "rw/after-keys") == b"5\n")
        assert api.sh(box, "ls -d /escape /rw/../escape 2>/dev/null || true; head -c 5 /etc/passwd") == "root:"
        # Destroying makes a last sync, too.
        api.sh(box, "echo at the end >/rw/end")
        api.destroy(box)
        assert api.object("SECOND", "rw/end") == b"at the end\n"
        "#,
    )?;
    daemon.end()
}
