//! Mounts whose closing does not wait for the bucket: what was closed is never lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use sandpail_e2e::{Fault, Mount, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("write_back::closing_does_not_wait_and_fsync_does", closing),
    Test::new("write_back::one_upload_for_many_closings", coalesced),
    Test::new("write_back::what_was_closed_survives_kills", killed).minutes(8, 30),
    Test::new("write_back::limits_make_closing_wait", limits),
];

/// Refuses all writes of data, as long as a test needs.
const LONG: usize = 1_000_000;

fn closing(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&["--write-back"])?;
    world.sh(&mount, "mkdir d")?;
    proxy.break_next("PUT ", Fault::AccessDenied, LONG);
    world.sh(
        &mount,
        r#"
        for n in $(seq 30); do echo $n >d/$n; done; cp d/1 d/copy; mv d/2 d/moved; rm d/3; echo more >>d/4; chmod 600 d/5
        [ "$(cat d/1 d/4 d/copy d/moved | tr '\n' ' ')" = '1 4 more 1 2 ' ]; [ "$(ls d | wc -l)" = 30 ]; [ "$(stat -c %a d/5)" = 600 ]
        getfattr --only-values -n user.sandpail.state d/1 | grep -q '"dirty"\|"uploading"'
        fails sync d/1 2>/dev/null
        fails "$SANDPAIL" sync --timeout 20s "$MNT" 2>"$LOCAL/err"; grep -q 'd/moved' "$LOCAL/err"
        "#,
    )?;
    world.python("assert not [k for k in keys() if not k.endswith('/') and k != 'd'], keys()")?;
    proxy.heal();
    world.sh(
        &mount,
        r#"sync d/1; "$SANDPAIL" sync "$MNT"; getfattr --only-values -n user.sandpail.state d/30 | grep -q '"stored"'"#,
    )?;
    world.python(
        r"
assert get('d/1') == b'1\n' and get('d/moved') == b'2\n' and get('d/4') == b'4\nmore\n' and get('d/copy') == b'1\n'
assert 'd/2' not in keys() and 'd/3' not in keys(), keys()
assert len([k for k in keys() if k.startswith('d/') and k != 'd/']) == 30, keys()",
    )?;
    mount.unmount()
}

/// What is written again and again in a short time goes up once, and a temporary name never.
fn coalesced(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&["--write-back"])?;
    world.sh(&mount, r#"touch old; "$SANDPAIL" sync "$MNT""#)?;
    proxy.take();
    world.sh(
        &mount,
        r#"
        "$PYTHON" - <<'PY'
import os
for n in range(50):
    with open("new.tmp", "w") as f: f.write(f"version {n}")
    os.rename("new.tmp", "new")
with open("old", "w") as f: f.write("one")
with open("old", "w") as f: f.write("two")
PY
        "$SANDPAIL" sync "$MNT"; [ "$(cat new old)" = 'version 49two' ]
        "#,
    )?;
    let puts: Vec<String> = proxy.take().into_iter().filter(|request| request.starts_with("PUT ")).collect();
    world.python("assert get('new') == b'version 49' and get('old') == b'two' and 'new.tmp' not in keys()")?;
    ensure!(puts.len() <= 60, "{} uploads: {puts:?}", puts.len());
    ensure!(puts.iter().filter(|put| put.contains("/old")).count() <= 2, "{puts:?}");
    mount.unmount()
}

/// Real programs work, the process is killed, another mount takes over: nothing that was closed is missing.
fn killed(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let rounds: u64 = sandpail_e2e::short_or_long(3, 40);
    let mut plan = world.plan("mnt", &["--write-back"])?;
    for round in 0..rounds {
        let mount = Mount::start(plan)?;
        world.sh(
            &mount,
            &format!(
                r#"
                if [ {round} -gt 0 ]; then
                    diff -r -x .git tree "$LOCAL/tree"; (cd tree; git fsck --strict >/dev/null; [ -z "$(git status --porcelain)" ])
                    "$PYTHON" -c 'import sqlite3, sys; c = sqlite3.connect("db"); assert c.execute("pragma integrity_check").fetchone() == ("ok",); n = c.execute("select max(n) from t").fetchone()[0]; assert n == int(sys.argv[1]), n' {round}
                fi
                mkdir -p tree "$LOCAL/tree"
                cd tree; [ -d .git ] || git init -q -b main .; git config user.email a@b; git config user.name n
                "$PYTHON" - <<'PY'
import os, random
random.seed({round})
for n in range(60):
    data = random.randbytes(random.choice([0, 10, 5000, 300000]))
    name = "f%d" % random.randrange(200)
    for tree in (".", os.environ["LOCAL"] + "/tree"):
        with open(tree + "/" + name + ".tmp", "wb") as f: f.write(data)
        os.rename(tree + "/" + name + ".tmp", tree + "/" + name)
PY
                git add -A; git commit -q --allow-empty -m "round {round}"; cd ..
                "$PYTHON" -c 'import sqlite3, sys; c = sqlite3.connect("db"); c.execute("create table if not exists t(n)"); c.execute("insert into t values (?)", (int(sys.argv[1]) + 1,)); c.commit()' {round}
                "#
            ),
        )?;
        // At another moment of the uploads each time.
        std::thread::sleep(Duration::from_millis(round * 170 % 1500));
        plan = mount.crash()?;
    }
    let mount = Mount::start(plan)?;
    world.sh(
        &mount,
        r#"diff -r -x .git tree "$LOCAL/tree"; cd tree; git fsck --strict >/dev/null; cd /; "$SANDPAIL" sync "$MNT""#,
    )?;
    world.sh(&mount, "[ -z \"$(find . -name '*recovered*' -o -name '*conflict*')\" ]")?;
    mount.unmount()
}

fn limits(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&["--write-back", "--write-back-limit", "100KiB"])?;
    proxy.break_next("PUT ", Fault::AccessDenied, LONG);
    world.sh(
        &mount,
        r#"
        put() { "$PYTHON" -c 'import sys; f = open(sys.argv[1], "w"); f.write("x" * int(sys.argv[2])); f.close()' "$1" "$2" 2>/dev/null; }
        for n in $(seq 600); do echo $n >many$n; done; rm many*
        put a 90000; fails put b 90000; [ "$(stat -c %s b)" = 90000 ]
        "#,
    )?;
    proxy.heal();
    world.sh(&mount, r#""$SANDPAIL" sync "$MNT""#)?;
    world.python("assert len(get('a')) == len(get('b')) == 90000")?;
    mount.unmount()
}
