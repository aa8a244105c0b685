//! Two mounts of one bucket, and other clients of it: what is closed here is there.

use anyhow::{Result, ensure};
use sandpail_e2e::proxy::Proxy;
use sandpail_e2e::{Mount, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("two_mounts::closed_here_is_read_there", closed_here_is_read_there),
    Test::new("two_mounts::closed_here_is_in_the_bucket", in_the_bucket),
    Test::new("two_mounts::changed_elsewhere_is_seen", changed_elsewhere),
    Test::new("two_mounts::replaced_while_read_is_never_mixed", never_mixed),
    Test::new("two_mounts::on_conflict_fail", on_conflict_fail),
    Test::new("two_mounts::with_one_cache_fetch_once", with_one_cache),
];

fn closed_here_is_read_there(world: &World) -> Result<()> {
    let here = world.mount(&[])?;
    let there = world.mount_at("mnt2", &[])?;
    world.sh(
        &here,
        r#"
        there=../mnt2
        for n in $(seq 20); do echo "round $n" >f$n; [ "$(cat $there/f$n)" = "round $n" ]; done
        # names and sizes that the other has looked at before may be believed for a second, not longer
        echo first >a; cat $there/a >/dev/null; echo second, longer >a; sleep 1.5; [ "$(cat $there/a)" = 'second, longer' ]
        echo more >>$there/a; sleep 1.5; [ "$(wc -l <a)" = 2 ]
        mv a b; sleep 1.5; [ ! -e $there/a ]; [ "$(wc -l <$there/b)" = 2 ]; rm $there/b; sleep 1.5; [ ! -e b ]
        mkdir d; touch d/x; [ -e $there/d/x ]; ls $there/d >/dev/null; touch d/y; sleep 1.5; [ "$(ls $there/d)" = "$(printf 'x\ny')" ]
        chmod 600 f1; sleep 1.5; [ "$(stat -c %a $there/f1)" = 600 ]
        head -c 20000000 /dev/urandom >big; cmp big $there/big; dd if=/dev/urandom of=big bs=4096 seek=1000 count=1 conv=notrunc status=none
        sleep 1.5; cmp big $there/big
        "#,
    )?;
    there.unmount()?;
    here.unmount()
}

fn in_the_bucket(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    for n in 0..5 {
        world.sh(&mount, &format!("echo 'body {n}' >f{n}"))?;
        let body = world.python(&format!("print(get('f{n}').decode(), end='')"))?;
        ensure!(body == format!("body {n}\n"), "{body:?} in the bucket after close");
    }
    // fsync is as good as close, while the file stays open.
    world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import os, boto3
from botocore.config import Config
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1", config=Config(s3={"addressing_style": "path"}))
f = os.open("g", os.O_CREAT | os.O_RDWR)
for body in (b"one", b"one two", b"x" * 9_000_000):
    os.pwrite(f, body, 0); os.fsync(f)
    assert s3.get_object(Bucket=os.environ["BUCKET"], Key="g")["Body"].read() == body
os.close(f)
PY"#,
    )?;
    mount.unmount()
}

fn changed_elsewhere(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(&mount, "echo old >a; mkdir d; echo x >d/x; ls -l . d >/dev/null; cat a")?;
    world.python("put('a', b'new, from elsewhere'); put('d/y', b'y'); s3.delete_object(Bucket=bucket, Key='d/x'); put('fresh', b'f')")?;
    world.sh(&mount, "sleep 1.5; [ \"$(cat a)\" = 'new, from elsewhere' ]; [ \"$(ls d)\" = y ]; [ \"$(cat fresh)\" = f ]; [ \"$(stat -c %s a)\" = 19 ]")?;
    world.python("put('a', b'short')")?;
    world.sh(&mount, "sleep 1.5; [ \"$(cat a)\" = short ]; echo appended >>a; [ \"$(cat a)\" = shortappended ]")?;
    mount.unmount()
}

/// A reader gets the old bytes, the new bytes after opening anew, or an error; never some of each.
fn never_mixed(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    world.python("put('a', b'1' * 30_000_000)")?;
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import os, boto3, time
from botocore.config import Config
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1", config=Config(s3={"addressing_style": "path"}))
f = os.open("a", os.O_RDONLY); assert os.read(f, 100_000) == b"1" * 100_000
s3.put_object(Bucket=os.environ["BUCKET"], Key="a", Body=b"2" * 30_000_000)
time.sleep(1.5)
os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
seen = set()
for offset in range(0, 30_000_000, 1_000_000):
    try: seen |= set(os.pread(f, 1000, offset))
    except OSError as error: assert error.errno in (116, 5), error
assert len(seen) <= 1, f"mixed: {seen}"
os.close(f)
data = open("a", "rb").read(); assert data == b"2" * 30_000_000, (len(data), set(data))
PY"#,
    )?;
    mount.unmount()
}

fn on_conflict_fail(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&["--on-conflict", "fail"])?;
    world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import os, boto3
from botocore.config import Config
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1", config=Config(s3={"addressing_style": "path"}))
bucket = os.environ["BUCKET"]
open("a", "w").write("base")
f = os.open("a", os.O_RDWR); os.write(f, b"mine")
s3.put_object(Bucket=bucket, Key="a", Body=b"theirs, longer")
try: os.close(f); raised = False
except OSError as error: raised = True
assert raised, "close succeeded over another's change"
assert s3.get_object(Bucket=bucket, Key="a")["Body"].read() == b"theirs, longer"
PY"#,
    )?;
    drop(mount);
    Ok(())
}

/// Mounts that read one large file at the same time.
const READERS: usize = 6;

fn with_one_cache(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let writer = world.mount_at("writer", &[])?;
    world.sh(&writer, r#"head -c 50000000 /dev/urandom >large; sha256sum <large >"$LOCAL/sum""#)?;
    let proxy = Proxy::start(world.server.addr())?;
    let read_by = |count: usize, cache: &str| -> Result<usize> {
        let cache = world.local().join(cache).display().to_string();
        let mut mounts = Vec::new();
        for number in 0..count {
            let mut plan = world.plan(&format!("{count}-{number}"), &["--cache-dir", &cache])?;
            plan.endpoint = Some(proxy.endpoint());
            plan.source.clone_from(&world.bucket);
            mounts.push(Mount::start(plan)?);
        }
        proxy.take();
        let script = format!(
            r#"
            pids=
            for at in $(seq 0 {}); do
                {{ sha256sum <../{count}-$at/large | cmp - "$LOCAL/sum"; }} & pids="$pids $!"
            done
            for pid in $pids; do wait $pid; done
            "#,
            count - 1
        );
        world.sh(&writer, &script)?;
        let gets = proxy.take_counts().0.get("GET").copied().unwrap_or_default();
        for mount in mounts {
            mount.unmount()?;
        }
        Ok(gets)
    };
    let alone = read_by(1, "alone")?;
    let together = read_by(READERS, "together")?;
    // Where one reader begins a part may differ from where another one does: some are fetched in two pieces.
    ensure!(together <= 2 * alone, "{together} requests of {READERS} mounts, {alone} of one");
    writer.unmount()
}
