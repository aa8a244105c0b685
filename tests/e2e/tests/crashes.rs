//! What was closed is whole in the bucket, whatever dies; and servers that fail do not make wrong bytes.

use anyhow::{Result, ensure};
use sandpail_e2e::{Fault, Mount, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("crashes::closed_files_survive_kill", closed_files_survive_kill),
    Test::new("crashes::the_mountpoint_can_be_used_again", mount_again),
    Test::new("crashes::storms_are_waited_out", storms).minutes(8, 8),
    Test::new("crashes::answers_cut_short_are_no_data", cut_short).minutes(8, 8),
    Test::new("crashes::stored_at_last", stored_at_last),
    Test::new("crashes::umount_names_what_is_not_stored", umount_names).minutes(8, 8),
    Test::new("crashes::a_failed_upload_is_told", failed_upload).minutes(8, 8),
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
