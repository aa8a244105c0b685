//! `sandpail demo`: does everything it says, and leaves nothing, also when it is stopped on the way.

use anyhow::Result;
use sandpail_e2e::{ServerKind, Test, World, on_peer};

const EMBEDDED: &[ServerKind] = &[ServerKind::Embedded];

pub(crate) const TESTS: &[Test] = &[
    Test::new("demo::does_everything", does_everything).on(EMBEDDED),
    Test::new("demo::ctrl_c_leaves_nothing", ctrl_c).on(EMBEDDED),
    Test::new("demo::without_fuse", without_fuse).on(EMBEDDED),
];

/// Sets `nothing_left`, which says what a demo below this test's directory has left.
const PRELUDE: &str = r#"
    mkdir tree tmp; echo hello >tree/a; seq 100 >tree/b; export TMPDIR="$PWD/tmp"
    nothing_left() {
        [ -z "$(ls -A tmp)" ] || { find tmp >&2; return 1; }
        fails grep -F "$PWD/tmp" /proc/mounts
        for process in /proc/[0-9]*/cmdline; do
            if tr '\0' ' ' 2>/dev/null <"$process" | grep -F "$PWD/tmp/sandpail-demo"; then return 1; fi
        done
    }
"#;

fn does_everything(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let script = r#"
        "$SANDPAIL" demo --tree tree >out || { cat out >&2; exit 1; }
        for line in 'read 5000 rows' 'commit [0-9a-f]' 'app.log has 20 lines' 'tree/ is source/ now, with 2 files' \
            'by GET over S3' 'results/summary.csv' 'all the same' 'Read-only file system' 'MiB/s' 'seconds' 'Next:'; do
            grep -q "$line" out || { echo "no line: $line"; cat out; exit 1; } >&2
        done
        nothing_left
    "#;
    world.script_in(&world.local(), &format!("{PRELUDE}{script}"))?.run()?;
    Ok(())
}

fn ctrl_c(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    // Stopped early, in the middle of a command, and once by another signal.
    let script = r#"
        # A background job of a script ignores SIGINT; Python gives it back, as a terminal would.
        start() { "$PYTHON" -c 'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])' \
            "$SANDPAIL" demo --tree tree >out 2>err & demo=$!; }
        for step in 'start an embedded' 'unpack' 'write and read back'; do
            for signal in INT TERM; do
                start
                for n in $(seq 600); do grep -q "$step" out && break; sleep 0.05; done
                kill -$signal $demo; code=0; wait $demo || code=$?
                [ $code != 0 ] || { echo "SIG$signal at $step: ended well" >&2; cat out >&2; exit 1; }
                grep -q 'interrupted' err || { cat err >&2; exit 1; }
                nothing_left || { echo "SIG$signal at $step" >&2; exit 1; }
            done
        done
    "#;
    world.script_in(&world.local(), &format!("{PRELUDE}{script}"))?.run()?;
    Ok(())
}

/// Says what works all the same, and what to do.
fn without_fuse(world: &World) -> Result<()> {
    if on_peer() || !crate::host::is_root() {
        return Ok(());
    }
    let script = r#"
        fails unshare --mount bash -ec 'mount --make-rprivate /; mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; exec "$@"' - \
            "$SANDPAIL" demo --tree tree >out 2>err
        grep -q '/dev/fuse is missing' out; grep -q 'What works without' out; [ "$(wc -l <err)" = 1 ]; nothing_left
    "#;
    world.script_in(&world.local(), &format!("{PRELUDE}{script}"))?.run()?;
    Ok(())
}
