//! What was closed is whole in the bucket, whatever dies; and servers that fail do not make wrong bytes.

use anyhow::{Result, anyhow, ensure};
use sandpail_e2e::{Fault, Mount, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("crashes::closed_files_survive_kill", closed_files_survive_kill),
    Test::new("crashes::uploads_of_the_dead_are_aborted", abandoned),
    Test::new("crashes::the_mountpoint_can_be_used_again", mount_again),
    Test::new("crashes::storms_are_waited_out", storms).minutes(8, 8),
    Test::new("crashes::answers_cut_short_are_no_data", cut_short).minutes(8, 8),
    Test::new("crashes::stored_at_last", stored_at_last),
    Test::new("crashes::umount_names_what_is_not_stored", umount_names).minutes(8, 8),
    Test::new("crashes::a_failed_upload_is_told", failed_upload).minutes(8, 8),
    Test::new("crashes::recover_puts_back_what_a_killed_mount_staged", recover_killed).minutes(8, 8),
    Test::new("crashes::recover_never_mixes_versions", recover_changed).minutes(8, 8),
    Test::new("crashes::recover_after_a_mount_ended_without_its_store", recover_unstored).minutes(8, 8),
];

fn closed_files_survive_kill(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        "mkdir d; for n in $(seq 30); do head -c $((n * 20000)) /dev/urandom >d/f$n; done; (cd d; sha256sum *) >\"$LOCAL/sums\"
         head -c 20000000 /dev/urandom >big; echo first >edited; echo second >edited; sha256sum big edited >\"$LOCAL/sums2\"",
    )?;
    // One file is being written when the process dies: it is whole or absent.
    let _open =
        world.sh(&mount, "(exec 7>torn; head -c 30000000 /dev/zero >&7; sleep 30) >/dev/null 2>&1 & sleep 1")?;
    let plan = mount.crash()?;
    ensure!(
        world.python("print('torn' in keys() and len(get('torn')) not in (0, 30000000))")?.trim() == "False",
        "a torn object"
    );
    let mount = Mount::start(plan)?;
    world.sh(&mount, "(cd d; sha256sum --quiet -c \"$LOCAL/sums\"); sha256sum --quiet -c \"$LOCAL/sums2\"; ls -l >/dev/null; echo works >new")?;
    mount.unmount()
}

/// Parts cost money: what a killed process left is aborted with the next mount, what is somebody else's stays.
fn abandoned(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let uploads_become = |wanted: &str| {
        world.python(&format!(
            r"
import time
end = time.monotonic() + 120
while True:
    found = sorted({{upload['Key'] for upload in s3.list_multipart_uploads(Bucket=bucket).get('Uploads', [])}})
    if found == {wanted}: break
    assert time.monotonic() < end, found
    time.sleep(0.2)
"
        ))
    };
    world.python("s3.create_multipart_upload(Bucket=bucket, Key='theirs')")?;
    let mount = world.mount(&[])?;
    // One process, which has it open until the process behind the mount is dead: each one's end would store it.
    let dead = world.local().join("dead");
    let writes = world.script_in(
        mount.path(),
        r#""$PYTHON" - <<'PY'
import os, time
file = open("large", "wb", buffering=0)
try:
    for _ in range(40): file.write(os.urandom(1 << 20))
except OSError: pass
while not os.path.exists(os.environ["LOCAL"] + "/dead"): time.sleep(0.1)
os._exit(0)
PY"#,
    )?;
    let plan = std::thread::scope(|scope| {
        let writing = scope.spawn(move || writes.run());
        let begun = uploads_become("['large', 'theirs']");
        let plan = mount.crash();
        std::fs::write(&dead, "")?;
        writing.join().map_err(|_| anyhow!("the writer panicked"))??;
        begun.and(plan)
    })?;
    uploads_become("['large', 'theirs']")?;
    let mount = Mount::start(plan)?;
    uploads_become("['theirs']")?;
    mount.unmount()
}

/// After a crash the directory is a dead mount; mounting there again works, or says what to do.
fn mount_again(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    world
        .script_in(
            &world.local(),
            r#"
            mkdir mnt; mount() { "$SANDPAIL" mount --endpoint "$ENDPOINT" --region us-east-1 "$BUCKET" mnt; }
            mount; echo x >mnt/a; pid=$("$SANDPAIL" list | sed -n "s|.*$LOCAL/mnt.*pid ||p"); kill -KILL $pid; sleep 0.3
            if ! mount 2>err; then cat err >&2; grep -q umount err; "$SANDPAIL" umount mnt; mount; fi
            [ "$(cat mnt/a)" = x ]; "$SANDPAIL" umount mnt; fails mountpoint -q mnt; rm "/run/sandpail/mount-$pid.log"
            "#,
        )?
        .run()?;
    Ok(())
}

fn storms(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&[])?;
    for (matches, fault) in [
        ("PUT ", Fault::SlowDown),
        ("PUT ", Fault::InternalError),
        ("PUT ", Fault::Reset),
        ("GET ", Fault::SlowDown),
        ("GET ", Fault::Reset),
        ("HEAD ", Fault::SlowDown),
        ("HEAD ", Fault::Reset),
        ("POST ", Fault::InternalError),
    ] {
        proxy.break_next(matches, fault, 3);
        world.sh(
            &mount,
            r#"
            head -c 10000000 /dev/urandom >"$LOCAL/f"; cp "$LOCAL/f" f; cp f copy; cmp f "$LOCAL/f"; cmp copy "$LOCAL/f"; sleep 1.2; ls -l >/dev/null
            echo small >s; cat s >/dev/null; mv s t; rm t copy f
            "#,
        )
        .map_err(|error| error.context(format!("three times {fault:?} at {matches:?}")))?;
        proxy.heal();
    }
    mount.unmount()
}

/// A body that ends early is fetched again, or an error; never other bytes.
fn cut_short(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&[])?;
    world.sh(&mount, "head -c 12000000 /dev/urandom >f; sha256sum f >\"$LOCAL/sums\"; echo small >s")?;
    mount.unmount()?;
    for cut in [10, 200, 700, 5_000, 100_000, 1_000_000] {
        let (mount, proxy) = world.mount_counted(&[])?;
        proxy.break_next("/f", Fault::Truncate(cut), 2);
        world
            .sh(&mount, "sha256sum --quiet -c \"$LOCAL/sums\"")
            .map_err(|error| error.context(format!("answers cut at {cut}")))?;
        proxy.heal();
        mount.unmount()?;
        let (mount, proxy) = world.mount_counted(&[])?;
        proxy.break_next("list-type", Fault::Truncate(cut.min(400)), 1);
        world
            .sh(&mount, "[ \"$(ls)\" = \"$(printf 'f\\ns')\" ]")
            .map_err(|error| error.context("a listing was cut"))?;
        proxy.heal();
        mount.unmount()?;
    }
    Ok(())
}

/// What could not be stored at close is stored when the server takes it, without anybody asking.
fn stored_at_last(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&[])?;
    proxy.break_next("PUT ", Fault::AccessDenied, 1_000_000);
    world
        .sh(&mount, "fails \"$PYTHON\" -c 'f = open(\"late\", \"w\"); f.write(\"precious\"); f.close()' 2>/dev/null")?;
    proxy.heal();
    world.python(
        r#"
        import time
        for _ in range(600):
            if keys() == ["late"]: break
            time.sleep(0.1)
        assert get("late") == b"precious"
        "#,
    )?;
    world.sh(&mount, "[ \"$(cat late)\" = precious ]")?;
    mount.unmount()
}

/// `sandpail umount` does not leave bytes behind without a word: it lists the files, and the mount stays.
fn umount_names(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&[])?;
    world.sh(&mount, "mkdir d; echo fine >d/stored")?;
    proxy.break_next("PUT ", Fault::AccessDenied, 1_000_000);
    world.sh(
        &mount,
        r#"
        write() { "$PYTHON" -c 'import sys; f = open(sys.argv[1], "w"); f.write("precious"); f.close()' "$1" 2>/dev/null; }
        fails write d/late; fails write later
        cd /; fails "$SANDPAIL" umount "$MNT" 2>"$LOCAL/err"; mountpoint -q "$MNT"
        for text in 'stays mounted: 2 file(s)' 'd/late: ' 'later: '; do
            grep -q "$text" "$LOCAL/err" || { echo "does not say: $text"; cat "$LOCAL/err"; exit 1; } >&2
        done
        fails grep -q d/stored "$LOCAL/err"; [ "$(cat "$MNT/d/late")" = precious ]
        "#,
    )?;
    proxy.heal();
    mount.unmount()?;
    world.python("assert get('d/late') == b'precious' and get('later') == b'precious'")?;
    Ok(())
}

/// When the server refuses, close says so, the log names the file, and its bytes are kept.
fn failed_upload(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&[])?;
    proxy.break_next("PUT ", Fault::AccessDenied, 1_000_000);
    let out = world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import os
try: f = os.open("lost", os.O_CREAT | os.O_WRONLY)
except OSError as error: print("open", error.errno); raise SystemExit
os.write(f, b"precious")
for what, call in (("fsync", os.fsync), ("close", os.close)):
    try: call(f); print(what, "ok")
    except OSError as error: print(what, error.errno)
PY"#,
    )?;
    ensure!(!out.contains("fsync ok"), "fsync succeeded though the server refused: {out}");
    ensure!(mount.log().contains("lost"), "the log does not name the file:\n{}", mount.log());
    proxy.heal();
    world.sh(&mount, "echo fine >other; [ \"$(cat other)\" = fine ]")?;
    drop(mount);
    Ok(())
}

/// For scripts: `recover …` on the staging directory of the mount at `mnt`, and `id KEY`.
const RECOVER: &str = r#"
    recover() { "$SANDPAIL" recover --staging-dir "$LOCAL/../mnt.scratch/staging" "$@"; }
    id() { recover list --json | "$PYTHON" -c '
import json, sys
print([file["id"] for file in json.load(sys.stdin) if file.get("key") == sys.argv[1]][0])' "$1"; }
    same() { cmp "$1" "$2" || { ls -l "$1" "$2"; exit 1; } >&2; }
"#;

fn recover(world: &World, text: &str) -> Result<String> {
    world.script_in(&world.local(), &format!("{RECOVER}\n{text}"))?.env("HOME", world.local()).run()
}

/// Writes files through the mount by a process that keeps them open, and beside, into `$LOCAL`, what they are then; ends
/// when all is written. The process is ended with the mount.
fn write_and_keep_open(world: &World, mount: &Mount, code: &str) -> Result<()> {
    let script = format!(
        r#"
cat >"$LOCAL/write.py" <<'PY'
import os, shutil, sys, time
local = os.environ["LOCAL"]
def both(name, flags, work):
    for where in (".", local):
        f = os.open(os.path.join(where, name), flags | os.O_RDWR)
        work(f)
{code}
open(local + "/written", "w").close()
time.sleep(100)
PY
"$PYTHON" "$LOCAL/write.py" >/dev/null 2>"$LOCAL/err" & writer=$!
for n in $(seq 600); do [ ! -e "$LOCAL/written" ] || break; kill -0 $writer || break; sleep 0.1; done
[ -e "$LOCAL/written" ] || {{ cat "$LOCAL/err" >&2; exit 1; }}
echo $writer >"$LOCAL/writer"; rm "$LOCAL/written""#
    );
    world.sh(mount, &script)?;
    Ok(())
}

fn end_writer(world: &World) -> Result<()> {
    world.script_in(&world.local(), "kill -KILL \"$(cat writer)\" 2>/dev/null || true")?.run()?;
    Ok(())
}

/// Parts of an object, a new file with holes, a cut one and an empty one are on the disk when the mount is killed. All come
/// back byte for byte.
fn recover_killed(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#"head -c 30000000 /dev/urandom >"$LOCAL/edited"; head -c 100000 /dev/urandom >"$LOCAL/cut"
        cp "$LOCAL/edited" "$LOCAL/cut" .; mkdir d; chmod 640 edited"#,
    )?;
    write_and_keep_open(
        world,
        &mount,
        r#"
os.makedirs(local + "/d", exist_ok=True)
def edit(f):
    for at in range(0, 30_000_000, 1_500_000): os.pwrite(f, os.pread(f, 1, at) + b"edit" * 700, at + 11)
    os.pwrite(f, b"end" * 100_000, 30_500_000)
both("edited", 0, edit)
def cut(f):
    os.ftruncate(f, 50_000); os.ftruncate(f, 80_000); os.pwrite(f, b"x" * 10, 60_000)
both("cut", 0, cut)
def fill(f):
    for n in range(200): os.write(f, bytes([n]) * 5000)
    os.pwrite(f, b"far", 9_000_000)
both("d/new \u00e9 %41 &", os.O_CREAT, fill)
both("empty", os.O_CREAT, lambda f: None)
gone = os.open("gone", os.O_CREAT | os.O_RDWR); os.write(gone, b"z" * 5000); os.unlink("gone")
stored = os.open("stored", os.O_CREAT | os.O_RDWR); os.write(stored, b"stored"); os.fsync(stored)
"#,
    )?;
    let plan = mount.crash()?;
    end_writer(world)?;
    let mount = Mount::start(plan)?;
    ensure!(mount.log().contains("sandpail recover list"), "no word of what is kept:\n{}", mount.log());
    recover(
        world,
        r#"
        recover list >list; cat list >&2; [ "$(grep -c '^[0-9a-f]\{8\} ' list)" = 4 ]; grep -q '/cut$' list; fails grep -q gone list
        new=$'d/new \u00e9 %41 &'; recover list --json >list.json
        recover export "$(id "$new")" out.new; same out.new "$LOCAL/$new"
        recover export "$(id edited)" out.edited; same out.edited edited
        recover export "$(id cut)" out.cut; same out.cut cut
        fails recover export "$(id cut)" out.cut 2>err; grep -q 'exists already' err; fails recover export ffffffffff x 2>err; grep -q 'no kept file' err
        recover export --raw "$(id cut)" out.raw; [ -s out.raw ]
        fails recover discard --all 2>err; grep -q -- --yes err
        recover discard "$(id empty)"; recover upload "$(id edited)" "$(id cut)"
        [ "$(recover list | grep -c '^[0-9a-f]\{8\} ')" = 1 ]; recover upload --all; recover list | grep 'nothing is kept'
        [ -z "$(ls "$LOCAL/../mnt.scratch/staging/kept")" ]; fails grep -rq "$AWS_SECRET_ACCESS_KEY" list.json
        "#,
    )?;
    world.sh(
        &mount,
        r#"
        for n in $(seq 100); do cmp -s edited "$LOCAL/edited" && break; sleep 0.1; done
        cmp edited "$LOCAL/edited"; cmp cut "$LOCAL/cut"; for f in d/new*; do cmp "$f" "$LOCAL/$f"; done
        [ "$(stat -c %a edited)" = 640 ]; fails test -e empty; fails test -e gone; [ "$(cat stored)" = stored ]
        "#,
    )?;
    mount.unmount()
}

/// An object that was changed since is neither replaced nor mixed with what was staged over its older version.
fn recover_changed(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&[])?;
    world.sh(&mount, "head -c 1000000 /dev/zero >edited; cp edited rewritten")?;
    write_and_keep_open(
        world,
        &mount,
        r#"
f = os.open("edited", os.O_RDWR); os.pwrite(f, b"part", 5000)
f = os.open("rewritten", os.O_RDWR | os.O_TRUNC); os.write(f, b"all of it")
f = os.open("new", os.O_RDWR | os.O_CREAT); os.write(f, b"mine")
"#,
    )?;
    mount.crash()?;
    end_writer(world)?;
    world.python("for key in ('edited', 'rewritten', 'new'): put(key, b'theirs')")?;
    recover(
        world,
        r#"
        fails recover export "$(id edited)" out 2>err; grep -q 'changed or removed since' err; [ ! -e out ]
        fails recover upload --all 2>err >told; cat err told >&2; grep -q 'edited.*changed or removed since' err; grep -q '1 of 3 file(s) are still kept' err
        [ "$(grep -c 'both are kept' told)" = 2 ]
        recover export --raw "$(id edited)" raw; [ "$(tail -c 4 raw)" = part ]
        recover discard --all --yes; recover list | grep 'nothing is kept'
        "#,
    )?;
    world.python(
        r#"
        found = {key.split(" (recovered ")[0] + ("+" if "(" in key else ""): get(key) for key in keys()}
        assert found == {"edited": b"theirs", "rewritten": b"theirs", "new": b"theirs", "rewritten+": b"all of it", "new+": b"mine"}, found
        "#,
    )?;
    Ok(())
}

/// A store that refuses until the mount is forced to end: the bytes can be stored later.
fn recover_unstored(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&[])?;
    proxy.break_next("PUT ", Fault::AccessDenied, 1_000_000);
    world.sh(
        &mount,
        r#"
        fails "$PYTHON" -c 'f = open("late.txt", "w"); f.write("precious"); f.close()' 2>/dev/null
        "#,
    )?;
    world.script_in(&world.local(), r#""$SANDPAIL" umount --force "$MNT""#)?.env("MNT", mount.path()).run()?;
    drop(mount);
    proxy.heal();
    recover(
        world,
        r#"
        recover list >list; cat list >&2; grep -q '/late.txt$' list; grep -qi 'denied' list
        recover upload --endpoint "$ENDPOINT" --region us-east-1 "$(id late.txt)"; recover list | grep 'nothing is kept'
        "#,
    )?;
    world.python("assert get('late.txt') == b'precious'")?;
    Ok(())
}
