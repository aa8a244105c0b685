//! A disk that gives back other bytes than were written: nobody sees them, and nothing is stored of them.

use anyhow::{Result, ensure};
use sandpail_e2e::{Fault, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("integrity::a_flipped_bit_in_the_cache_is_not_seen", cache),
    Test::new("integrity::a_flipped_bit_in_staging_is_an_error_and_never_stored", staging).minutes(8, 8),
    Test::new("integrity::what_was_closed_and_damaged_is_not_put_back_by_the_next_mount", replayed).minutes(8, 8),
];

/// For scripts: `flip FILE OFFSET…` and `read_again FILE`, which asks the mount, not the kernel's cache.
const FLIP: &str = r#"
    flip() { "$PYTHON" - "$@" <<'PY'
import os, sys
f = os.open(sys.argv[1], os.O_RDWR)
for at in map(int, sys.argv[2:]): os.pwrite(f, bytes([os.pread(f, 1, at)[0] ^ 4]), at)
PY
    }
    read_again() { "$PYTHON" - "$1" <<'PY'
import os, sys
f = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
try:
    while os.read(f, 65536): pass
except OSError as error: sys.exit(error.errno)
PY
    }
    scrub() { "$SANDPAIL" cache scrub --cache-dir "$LOCAL/cache" "$@"; }
"#;

fn cache(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let cache = world.local().join("cache");
    let mount = world.mount(&["--cache-dir", &cache.display().to_string()])?;
    let script = |text: &str| format!("{FLIP}\n{text}");
    world.sh(&mount, "head -c 6000000 /dev/urandom >f; sha256sum f >\"$LOCAL/sums\"")?;
    let mount = mount.remount(&[])?;
    world.sh(
        &mount,
        &script(
            r#"
            sha256sum --quiet -c "$LOCAL/sums"
            scrub --json >"$LOCAL/scrub"; cat "$LOCAL/scrub" >&2; grep -q '"damaged":0' "$LOCAL/scrub"; grep -q '"blocks":46' "$LOCAL/scrub"
            flip "$LOCAL"/cache/*.data 17 1048576 3000000 5999999
            "#,
        ),
    )?;
    let mount = mount.remount(&[])?;
    world.sh(
        &mount,
        &script(
            r#"
            sha256sum --quiet -c "$LOCAL/sums"
            flip "$LOCAL"/cache/*.data 5 2100000
            fails scrub >"$LOCAL/scrub"; cat "$LOCAL/scrub" >&2; grep -q ' 2 damaged; they are taken out' "$LOCAL/scrub"
            scrub --json | grep -q '"damaged":0'
            "#,
        ),
    )?;
    ensure!(mount.log().contains("a cached block is damaged"), "no word of it:\n{}", mount.log());
    let mount = mount.remount(&[])?;
    world.sh(&mount, "sha256sum --quiet -c \"$LOCAL/sums\"")?;
    mount.unmount()
}

/// What the scripts of both tests below need: two files are closed, and a bit of one is flipped where it is staged.
const DAMAGE: &str = r#"
    head -c 300000 /dev/urandom >"$LOCAL/precious"; cp "$LOCAL/precious" precious; cp "$LOCAL/precious" fine
    flip "$LOCAL"/../mnt.scratch/staging/process-*/*-precious 123456
"#;

fn staging(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&["--write-back"])?;
    proxy.break_next("PUT ", Fault::AccessDenied, 1_000_000);
    world.sh(
        &mount,
        &format!(
            r#"{FLIP}{DAMAGE}
            read_again precious && exit 1 || [ $? = 5 ]
            read_again fine; cmp fine "$LOCAL/precious"
            # An error is not an end: what is beside the damage is there.
            head -c 60000 precious | cmp - "$LOCAL/precious" -n 60000
            "#
        ),
    )?;
    let named = |log: &str| log.contains("are damaged") && log.contains("precious");
    ensure!(named(&mount.log()), "no word of it:\n{}", mount.log());
    // The store is well again: everything else goes up.
    proxy.heal();
    world.sh(
        &mount,
        r#"
        for n in $(seq 300); do getfattr --only-values -n user.sandpail.state fine | grep -q '"stored"' && break; sleep 0.1; done
        fails sync precious 2>/dev/null
        fails "$SANDPAIL" sync --timeout 20s "$MNT" 2>"$LOCAL/err"; cat "$LOCAL/err" >&2; grep -q precious "$LOCAL/err"
        "#,
    )?;
    world.python("assert keys() == ['fine'], keys()")?;
    world.script_in(&world.local(), r#""$SANDPAIL" umount --force "$MNT""#)?.env("MNT", mount.path()).run()?;
    drop(mount);
    recover_damaged(world)
}

/// `recover` names the file, refuses it, and gives it to who asks for it as it is.
fn recover_damaged(world: &World) -> Result<()> {
    world
        .script_in(
            &world.local(),
            r#"
            recover() { "$SANDPAIL" recover --staging-dir "$LOCAL/../mnt.scratch/staging" "$@"; }
            recover list >list; cat list >&2; grep -q '/precious$' list; grep -q 'DAMAGED on the disk: 65536 bytes' list
            recover list --json | tr -d ' \n' | grep -q '"damaged":\[\[65536,131072\]\]'
            store="--endpoint $ENDPOINT --region us-east-1"
            fails recover upload --all $store 2>err; cat err >&2; grep -q 'precious.*damaged.*--damaged' err
            id=$(recover list | sed -n 's/^\([0-9a-f]\{8\}\) .*/\1/p')
            fails recover export $id out $store 2>err; grep -q damaged err; [ ! -e out ]
            recover export --damaged $id out $store; fails cmp out precious; cmp -n 123456 out precious
            "#,
        )?
        .env("HOME", world.local())
        .run()?;
    world.python("assert 'precious' not in keys(), keys()")?;
    world
        .script_in(
            &world.local(),
            r#"
            recover() { "$SANDPAIL" recover --staging-dir "$LOCAL/../mnt.scratch/staging" "$@"; }
            store="--endpoint $ENDPOINT --region us-east-1"
            recover upload --all --damaged $store; recover list | grep 'nothing is kept'
            "#,
        )?
        .env("HOME", world.local())
        .run()?;
    let exported = world.local().join("out").display().to_string();
    world.python(&format!("assert get('precious') == open({exported:?}, 'rb').read()"))?;
    Ok(())
}

fn replayed(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&["--write-back"])?;
    proxy.break_next("PUT ", Fault::AccessDenied, 1_000_000);
    world.sh(&mount, &format!("{FLIP}{DAMAGE}"))?;
    let plan = mount.crash()?;
    proxy.heal();
    let mount = sandpail_e2e::Mount::start(plan)?;
    world.sh(
        &mount,
        "for n in $(seq 300); do cmp -s fine \"$LOCAL/precious\" && break; sleep 0.1; done; fails test -e precious",
    )?;
    ensure!(mount.log().contains("are damaged"), "no word of it:\n{}", mount.log());
    mount.unmount()?;
    recover_damaged(world)
}
