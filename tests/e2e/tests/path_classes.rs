//! Mounts with path classes: trees that programs make again stay on the host's disk, at its speed, and never in the bucket.

use anyhow::{Result, ensure};
use sandpail_e2e::{Mount, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("path_classes::local_files_are_files", files),
    Test::new("path_classes::each_name_is_where_its_class_says", classes),
    Test::new("path_classes::git_npm_cargo_and_python", tools).minutes(8, 8),
    Test::new("path_classes::local_files_survive_kills", kills).minutes(8, 30),
    Test::new("path_classes::what_cannot_be_is_told_before", refused),
];

/// What the bucket may never have.
const NOTHING_LOCAL: &str = r"
local = [k for k in keys() if {'target', 'node_modules', '__pycache__', '.venv'} & set(k.split('/'))]
assert not local, local";

/// Every call that a program makes of a file, on a local one.
fn files(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&["--path-class", "**/target/=local"])?;
    world.sh(
        &mount,
        r#"
        mkdir -p p/target
        "$PYTHON" - <<'PY'
import errno, fcntl, mmap, os, shutil, stat
os.chdir("p/target")
with open("f", "w+b", buffering=0) as f:
    f.write(b"0123456789"); os.pwrite(f.fileno(), b"XY", 20); assert os.fstat(f.fileno()).st_size == 22
    assert os.pread(f.fileno(), 100, 0) == b"0123456789" + bytes(10) + b"XY"
    os.ftruncate(f.fileno(), 4); os.truncate("f", 6); assert open("f", "rb").read() == b"0123\0\0"
    os.posix_fallocate(f.fileno(), 0, 1 << 20); assert os.path.getsize("f") == 1 << 20
    with mmap.mmap(f.fileno(), 8192) as m:
        assert m[:4] == b"0123"; m[4096:4100] = b"page"; m.flush()
    assert os.pread(f.fileno(), 4, 4096) == b"page"; os.fsync(f.fileno())
    fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX)
a = open("log", "ab", buffering=0); b = open("log", "ab", buffering=0)
a.write(b"1"); b.write(b"2"); a.write(b"3"); assert open("log", "rb").read() == b"123"
os.chmod("f", 0o640); os.utime("f", ns=(5_000_000_007, 9_000_000_001)); os.chown("f", 1234, 99)
s = os.stat("f"); assert (s.st_mode & 0o7777, s.st_uid, s.st_gid, s.st_mtime_ns, s.st_atime_ns) == (0o640, 1234, 99, 9_000_000_001, 5_000_000_007)
os.setxattr("f", "user.a", b"x" * 3000); assert os.getxattr("f", "user.a") == b"x" * 3000
assert os.listxattr("f") == ["user.a"]; os.removexattr("f", "user.a"); assert os.listxattr("f") == []
os.symlink("../../outside", "l"); assert os.readlink("l") == "../../outside" and os.path.islink("l") and not os.path.exists("l")
gone = open("gone", "w+b", buffering=0); gone.write(b"still"); ino = os.fstat(gone.fileno()).st_ino
os.unlink("gone"); assert not os.path.exists("gone") and os.fstat(gone.fileno()).st_nlink == 0
gone.write(b" here"); assert os.pread(gone.fileno(), 100, 0) == b"still here" and os.fstat(gone.fileno()).st_ino == ino
again = open(f"/proc/self/fd/{gone.fileno()}", "rb"); assert again.read() == b"still here"
old = open("replaced", "w+b", buffering=0); old.write(b"old"); open("new", "w").write("new"); os.rename("new", "replaced")
assert os.pread(old.fileno(), 9, 0) == b"old" and open("replaced").read() == "new"
os.makedirs("x/y/z"); open("x/y/z/f", "w").close(); inode = os.stat("x/y/z/f").st_ino; os.rename("x", "w")
assert os.stat("w/y/z/f").st_ino == inode and not os.path.exists("x")
try: os.rmdir("w"); raise SystemExit("rmdir")
except OSError as e: assert e.errno == errno.ENOTEMPTY
try: os.rename("w", "w/y/under"); raise SystemExit("below itself")
except OSError as e: assert e.errno == errno.EINVAL
shutil.rmtree("w")
try: os.link("f", "hard"); raise SystemExit("link")
except OSError as e: assert e.errno == errno.EPERM
names = [f"n{n:04}" for n in range(1500)]
for name in names: open(name, "w").write(name)
assert sorted(os.listdir(".")) == sorted(names + ["f", "log", "l", "replaced"])
assert {e.name: e.is_symlink() for e in os.scandir(".")}["l"]
assert all(open(name).read() == name for name in names)
d = os.open(".", os.O_RDONLY); os.fsync(d)
os.mkdir("s"); os.chown("s", 0, 77); os.chmod("s", 0o2775); os.mkdir("s/t"); t = os.stat("s/t"); assert (t.st_gid, t.st_mode & 0o2000) == (77, 0o2000)
with open("copy", "wb") as to, open("f", "rb") as source: assert os.copy_file_range(source.fileno(), to.fileno(), 1 << 20) == 1 << 20
with open("holes", "wb") as h: h.truncate(1 << 22); os.pwrite(h.fileno(), b"x", 1 << 21)
with open("holes", "rb") as h: assert os.lseek(h.fileno(), 0, os.SEEK_DATA) <= 1 << 21 and os.stat("holes").st_size == 1 << 22
PY
        cp -a p/target "$LOCAL/before"; diff -r --no-dereference p/target "$LOCAL/before"
        getfattr --only-values -n user.sandpail.state p/target/f | grep -q '"state":"local"'
        getfattr --only-values -n user.sandpail.state p/target | grep -q '"state":"local"'
        fails setfattr -n user.sandpail.state -v x p/target/f 2>/dev/null
        grep -q '"\*\*/target/"' .sandpail/status; "$SANDPAIL" sync "$MNT"
        "#,
    )?;
    world.python(&format!("{NOTHING_LOCAL}\nassert keys() == ['p/'], keys()"))?;
    let mount = mount.remount(&[])?;
    world.sh(&mount, r#"diff -r --no-dereference p/target "$LOCAL/before"; [ "$(stat -c %u p/target/f)" = 1234 ]"#)?;
    mount.unmount()
}

/// Where names go, what moves, and what the bucket has under a local name.
fn classes(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    world.python("put('hidden/target/object', b'x'); put('hidden/f', b'f'); put('file/target', b'a file')")?;
    let rules = ["--path-class", "**/target/=local", "--path-class", "*.log=local", "--path-class", "wb/=write-back"];
    let mount = world.mount(&rules)?;
    world.sh(
        &mount,
        r#"
        [ "$(ls hidden)" = f ]; fails ls hidden/target 2>/dev/null; fails rmdir hidden 2>/dev/null
        # The rule is for directories.
        [ "$(cat file/target)" = 'a file' ]; fails mkdir file/target 2>/dev/null; echo x >target; [ "$(cat target)" = x ]
        mkdir -p a/b/target; echo bytes >a/b/target/f; echo durable >a/b/g; echo note >x.log; mkdir -p a/x.log; rmdir a/x.log
        fails rmdir a/b 2>/dev/null; fails "$PYTHON" -c 'import os; os.rename("a/b/target/f", "a/b/h")' 2>"$LOCAL/err"; grep -q 'Errno 18' "$LOCAL/err"
        fails "$PYTHON" -c 'import os; os.rename("a/b/g", "a/b/target/g")' 2>"$LOCAL/err"; grep -q 'Errno 18' "$LOCAL/err"
        fails "$PYTHON" -c 'import os; os.rename("a/b/target", "a/b/other")' 2>"$LOCAL/err"; grep -q 'Errno 18' "$LOCAL/err"
        mv a/b/g a/b/target/g; [ "$(cat a/b/target/g)" = durable ]; mv a/b/target/g a/b/g; mv a/b/target a/b/kept; mv a/b/kept a/b/target
        # What is local goes along with a directory of the bucket.
        mv a c; [ "$(cat c/b/target/f c/b/g)" = 'bytes
durable' ]; [ "$(ls -A c/b | sort | tr '\n' ' ')" = 'g target ' ]; fails ls a 2>/dev/null
        mkdir -p a/b; [ -z "$(ls a/b)" ]; rmdir a/b a
        mkdir -p k/target; touch k/target/f; rm -r k/target; rmdir k
        mkdir wb; "$PYTHON" -c 'open("wb/f", "w").write("x"); import os; assert b"\"stored\"" not in os.getxattr("wb/f", "user.sandpail.state")'
        "$PYTHON" -c 'open("now", "w").write("x"); import os; assert b"\"stored\"" in os.getxattr("now", "user.sandpail.state")'
        "$SANDPAIL" sync "$MNT"; getfattr --only-values -n user.sandpail.state wb/f | grep -q '"stored"'
        "#,
    )?;
    world.python(
        r"
found = [k for k in keys() if not k.endswith('/')]
assert sorted(found) == sorted(['hidden/target/object', 'hidden/f', 'file/target', 'target', 'c/b/g', 'wb/f', 'now']), found
assert not [k for k in keys() if 'target/' in k and not k.startswith('hidden/')], keys()",
    )?;
    // Another mount with the same staging directory has local files of its own.
    let mut plan = world.plan("second", &rules)?;
    plan.scratch = mount.path().with_extension("scratch");
    if plan.scratch.join("staging").exists() {
        let second = Mount::start(plan)?;
        world.sh(&second, "[ \"$(ls c/b)\" = g ]; mkdir c/b/target; echo other >c/b/target/f")?;
        world.sh(&mount, "[ \"$(cat c/b/target/f)\" = bytes ]")?;
        second.unmount()?;
    }
    mount.unmount()
}

/// Programs that make such trees.
fn tools(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&["--agent"])?;
    let prepare = r#"
        has() { command -v "$1" >/dev/null; }
        export npm_config_cache="$LOCAL/npm" npm_config_update_notifier=false; unset PYTHONDONTWRITEBYTECODE
        if has cargo; then export CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}"; fi
    "#;
    let checks = r#"
        (cd repo; git fsck --strict; [ -z "$(git status --porcelain)" ]; [ "$(git rev-list --count HEAD)" = 21 ])
        if has npm; then [ "$(cd web; node -e 'console.log(require("dep"))')" = 42 ]; fi
        [ "$(cd py; .venv/bin/python -c 'import mod; print(mod.f())')" = 42 ]; ls py/__pycache__/mod.*.pyc >/dev/null
        if has cargo; then [ "$(crate/target/debug/tiny)" = hello ]; fi
    "#;
    world.sh(
        &mount,
        &format!(
            r#"{prepare}
            git init -q -b main "$LOCAL/origin"
            (cd "$LOCAL/origin"; for n in $(seq 20); do mkdir -p d$n; head -c 20000 /dev/urandom >d$n/f; echo $n >g; git add -A; git commit -qm $n; done)
            git clone -q "$LOCAL/origin" repo
            (cd repo; printf 'target\nnode_modules\n' >.gitignore; git branch target/topic; git add -A; git commit -qm more; git gc -q; git fsck --strict; git rev-parse --verify -q target/topic)
            if has npm; then
                mkdir -p web/dep; printf '{{"name":"dep","version":"1.0.0","main":"i.js"}}' >web/dep/package.json; echo 'module.exports = 42' >web/dep/i.js
                printf '{{"name":"web","version":"1.0.0"}}' >web/package.json
                (cd web; npm install --offline --no-audit --no-fund --install-links ./dep >/dev/null; [ -f node_modules/dep/i.js ])
            fi
            mkdir py; echo 'def f(): return 42' >py/mod.py; (cd py; "$PYTHON" -m venv --without-pip .venv; "$PYTHON" -c 'import mod')
            if has cargo; then
                mkdir -p crate/src; printf '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n' >crate/Cargo.toml
                echo 'fn main() {{ println!("hello") }}' >crate/src/main.rs; (cd crate; cargo build -q --offline)
            fi
            {checks}
            "$SANDPAIL" sync "$MNT"; getfattr --only-values -n user.sandpail.state repo/.git/HEAD | grep -q '"stored"'
            "#
        ),
    )?;
    world.python(NOTHING_LOCAL.replace("'target', ", "").trim())?;
    world.python("assert not [k for k in keys() if k.startswith('crate/target')] and 'repo/.git/HEAD' in keys()")?;
    // A branch is no such tree, whatever its name.
    world.python("assert [k for k in keys() if 'target/topic' in k or k == 'repo/.git/packed-refs'], keys()")?;
    let mount = Mount::start(mount.crash()?)?;
    world.sh(
        &mount,
        &format!(
            r#"{prepare} {checks}
            if has cargo; then (cd crate; cargo build --offline 2>&1 | tee "$LOCAL/out" >/dev/null; grep -q Finished "$LOCAL/out"; fails grep -q Compiling "$LOCAL/out"); fi
            rm -rf web/node_modules py/.venv py/__pycache__ crate/target; [ ! -e web/node_modules ]"#
        ),
    )?;
    mount.unmount()
}

/// The process is killed again and again under programs that work with local files.
fn kills(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mut plan = world.plan("mnt", &["--agent"])?;
    plan.survives = true;
    let mount = Mount::start(plan)?;
    let rounds: u32 = sandpail_e2e::short_or_long(600, 3000);
    let told = world.sh(
        &mount,
        &format!(
            r#"
            "$PYTHON" "$E2E/tests/survive.py" "$MNT" "$LOCAL" 0 1 0.7 none >"$LOCAL/kills" & killer=$!
            "$PYTHON" - {rounds} <<'PY' || {{ touch "$LOCAL/stop"; wait $killer; exit 1; }}
import os, random, sys
rng = random.Random(3); rounds = int(sys.argv[1])
os.makedirs("p/target"); log = open("p/target/log", "ab", buffering=0); lines = b""
unnamed = open("p/target/unnamed", "w+b", buffering=0); unnamed.write(b"no name"); os.unlink("p/target/unnamed")
where, files = "p", {{}}
for n in range(rounds):
    d = f"{{where}}/target"
    name = f"f{{rng.randrange(40)}}"; data = rng.randbytes(rng.choice([0, 10, 5000, 200000]))
    old = open(f"{{d}}/{{name}}", "rb") if name in files else None
    with open(f"{{d}}/{{name}}.tmp", "wb") as f: f.write(data[:len(data) // 2]); f.flush(); f.write(data[len(data) // 2:])
    os.rename(f"{{d}}/{{name}}.tmp", f"{{d}}/{{name}}")
    if old: assert old.read() == files[name], name; old.close()
    files[name] = data
    line = b"%d\n" % n; log.write(line); lines += line
    os.mkdir(f"{{d}}/dir"); open(f"{{d}}/dir/x", "wb").write(b"x"); os.rename(f"{{d}}/dir", f"{{d}}/moved")
    os.symlink("x", f"{{d}}/moved/l"); os.unlink(f"{{d}}/moved/l"); os.unlink(f"{{d}}/moved/x"); os.rmdir(f"{{d}}/moved")
    if n % 10 == 9:
        other = "q" if where == "p" else "p"; os.rename(where, other); where = other
    other = rng.choice(list(files)); assert open(f"{{where}}/target/{{other}}", "rb").read() == files[other], other
    assert sorted(os.listdir(f"{{where}}/target")) == sorted(list(files) + ["log"])
    assert os.pread(unnamed.fileno(), 100, 0) == b"no name" and os.fstat(unnamed.fileno()).st_nlink == 0
assert open(f"{{where}}/target/log", "rb").read() == lines
os.rename(where, "end") if where != "end" else None
for name, data in files.items(): open(os.environ["LOCAL"] + "/" + name, "wb").write(data)
PY
            touch "$LOCAL/stop"; wait $killer; cat "$LOCAL/kills"
            for f in end/target/f*; do cmp "$f" "$LOCAL/$(basename "$f")"; done
            "#
        ),
    )?;
    println!("{}: {}", world.kind().name(), told.trim());
    let kills: u32 = told.split_whitespace().filter_map(|word| word.parse().ok()).next().unwrap_or(0);
    ensure!(kills > 2, "hardly a kill: {told}");
    world.python(NOTHING_LOCAL)?;
    let mount = mount.remount(&[])?;
    world.sh(
        &mount,
        r#"for f in end/target/f*; do cmp "$f" "$LOCAL/$(basename "$f")"; done; [ ! -e p ] && [ ! -e q ]"#,
    )?;
    mount.unmount()
}

fn refused(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    world
        .script_in(
            &world.local(),
            r#"
            mkdir m b
            fails "$SANDPAIL" mount dir:b m --path-class target 2>err; grep -q 'write GLOB=CLASS, such as' err
            fails "$SANDPAIL" mount dir:b m --path-class 'a[=local' 2>err; grep -q '"a\[=local"' err
            fails "$SANDPAIL" mount dir:b m --path-class a=fast 2>err; grep -q 'use durable, write-back or local' err
            [ -z "$(ls m)$(ls b)" ]
            "#,
        )?
        .run()?;
    Ok(())
}
