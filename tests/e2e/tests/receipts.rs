//! What is stored and what is not: each file says so itself, the status file for all of them, and `sandpail sync` waits.

use std::time::Duration;

use anyhow::{Result, ensure};
use sandpail_e2e::{Fault, Test, World, on_peer};

pub(crate) const TESTS: &[Test] = &[
    Test::new("receipts::a_file_says_where_its_bytes_are", states),
    Test::new("receipts::copies_do_not_carry_the_state", copies),
    Test::new("receipts::the_status_file", status_file),
    Test::new("receipts::sync_is_a_barrier", barrier),
    Test::new("receipts::sync_and_forced_umount_name_what_is_not_stored", named).minutes(8, 8),
];

/// Shell functions: the state of a file, or one member of it.
const STATE: &str = r#"
state() { getfattr --only-values -n user.sandpail.state "$1"; }
member() { state "$1" | "$PYTHON" -c 'import json, sys; print(json.load(sys.stdin).get(sys.argv[1]))' "$2"; }
"#;

fn states(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&[])?;
    let sh = |script: &str| world.sh(&mount, &format!("{STATE}\n{script}"));
    // Dirty while it is open and written; stored, with the tag that the store's HEAD gives, when it is closed.
    sh(r#"
        # By the process that has it open: another one that was forked from it would close the file, which stores it.
        "$PYTHON" - <<'PY'
import json, os
f = os.open("a", os.O_CREAT | os.O_WRONLY); os.write(f, b"written")
s = json.loads(os.getxattr("a", "user.sandpail.state"))
assert (s["state"], s["size"], s["unstoredBytes"], s.get("etag")) == ("dirty", 7, 7, None), s
PY
        [ "$(member a state) $(member a size)" = 'stored 7' ]; member a etag >"$LOCAL/etag"
        [ "$(state a | wc -l)" = 0 ]; head -c 20000000 /dev/zero >large; member large etag >"$LOCAL/large"
    "#)?;
    for (key, file) in [("a", "etag"), ("large", "large")] {
        let told = std::fs::read_to_string(world.local().join(file))?;
        let head = world.python(&format!("print(s3.head_object(Bucket=bucket, Key='{key}')['ETag'].strip('\"'))"))?;
        ensure!(told.trim() == head.trim(), "{key}: the receipt says {told:?}, HEAD says {head:?}");
    }
    // On its way.
    proxy.set_latency(Duration::from_secs(2));
    sh(r#"
        "$PYTHON" -c 'open("slow", "w").write("x" * 1000)' & pid=$!; seen=
        for _ in $(seq 200); do
            case "$(member slow state 2>/dev/null || true)" in uploading) seen=yes; break;; esac; sleep 0.05
        done
        [ "$seen" ]; wait $pid; [ "$(member slow state)" = stored ]
    "#)?;
    proxy.set_latency(Duration::ZERO);
    // Refused by the server: dirty, with the error that close gave, until it is stored at last.
    proxy.break_next("PUT ", Fault::AccessDenied, 1_000_000);
    sh(r#"
        fails "$PYTHON" -c 'f = open("late", "w"); f.write("precious"); f.close()' 2>/dev/null
        # The kernel tells of the end of the descriptor when it has the time, and then it is tried once more.
        for _ in $(seq 100); do [ "$(member late state)" = uploading ] || break; sleep 0.1; done
        [ "$(member late state) $(member late error) $(member late errno)" = 'dirty access denied EACCES' ]
    "#)?;
    proxy.heal();
    sh(r#"for _ in $(seq 600); do [ "$(member late state)" = stored ] && exit; sleep 0.1; done; exit 1"#)?;
    // It is nobody's to set.
    sh(r#"
        for file in a late; do
            fails setfattr -n user.sandpail.state -v stored $file 2>"$LOCAL/err"; grep -q 'not permitted' "$LOCAL/err"
            fails setfattr -x user.sandpail.state $file 2>"$LOCAL/err"; grep -q 'not permitted' "$LOCAL/err"
        done
        mkdir d; fails getfattr -n user.sandpail.state d 2>/dev/null
    "#)?;
    mount.unmount()
}

fn copies(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#"
        mkdir t; echo x >t/a; setfattr -n user.own -v v t/a; [ "$(getfattr -m - -d t/a | grep -c =)" = 1 ]
        cp -a t u; rsync -aX t/ v/; tar --xattrs --xattrs-include='*' -cf "$LOCAL/t.tar" t; mkdir w; tar --xattrs --xattrs-include='*' -xf "$LOCAL/t.tar" -C w
        for copy in u v w/t; do
            [ "$(getfattr -m - -d $copy/a | grep =)" = 'user.own="v"' ]; getfattr --only-values -n user.sandpail.state $copy/a | grep -q '"stored"'
        done
        fails grep -q sandpail "$LOCAL/t.tar"; cp -a t "$LOCAL/out"; fails getfattr -n user.sandpail.state "$LOCAL/out/a" 2>/dev/null
        "#,
    )?;
    world.python(
        "for key in keys(): assert 'sandpail' not in str(s3.head_object(Bucket=bucket, Key=key)['Metadata'])",
    )?;
    mount.unmount()
}

fn status_file(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let (mount, proxy) = world.mount_counted(&[])?;
    let read = r#"status() { "$PYTHON" -c 'import json, sys; s = json.load(open(sys.argv[1])); assert eval(sys.argv[2]), s' "$MNT/.sandpail/status" "$1"; }"#;
    let sh = |script: &str| world.sh(&mount, &format!("{read}\n{script}"));
    sh(r#"
        [ -z "$(ls -A)" ]; [ "$(find .)" = . ]; [ "$(ls .sandpail)" = status ]
        status 's["dirty"] == s["uploading"] == {"files": 0, "bytes": 0} and not s["files"] and s["oldestSeconds"] is None'
        # In one process: another one that was forked from it would close the file, which stores it.
        "$PYTHON" - <<'PY'
import json, os
f = os.open("open", os.O_CREAT | os.O_WRONLY); os.write(f, b"12345")
with open(os.environ["LOCAL"] + "/copy", "wb") as copy: copy.write(open(".sandpail/status", "rb").read())
for path in (".sandpail/status", os.environ["LOCAL"] + "/copy"):
    s = json.load(open(path))
    assert s["dirty"] == {"files": 1, "bytes": 5} and s["files"][0]["path"] == "/open", s
os.close(f)
assert json.load(open(".sandpail/status"))["files"] == []
PY
    "#)?;
    sh(r#"
        fails rm -rf .sandpail 2>/dev/null; fails mkdir .sandpail 2>/dev/null; fails touch .sandpail/x 2>/dev/null
        fails rm -f .sandpail/status 2>/dev/null; fails mv .sandpail x 2>/dev/null; echo x >f; fails cp f .sandpail/status 2>/dev/null
        fails chmod 777 .sandpail/status 2>/dev/null; [ "$(ls -A | tr '\n' ' ')" = 'f open ' ]; rm f
    "#)?;
    // It is there when it is needed, names the failure, and tells nothing of the keys or of what the provider says.
    proxy.break_next("PUT ", Fault::AccessDenied, 1_000_000);
    let text = sh(r#"
        fails "$PYTHON" -c 'f = open("late", "w"); f.write("precious"); f.close()' 2>/dev/null
        status '(s["lastErrors"][0]["path"], s["lastErrors"][0]["errno"]) == ("/late", "EACCES")'; cat .sandpail/status
    "#)?;
    for secret in [sandpail_e2e::server::ACCESS_KEY, sandpail_e2e::server::SECRET_KEY, "http://"] {
        ensure!(!text.contains(secret), "{secret} is in the status:\n{text}");
    }
    proxy.heal();
    mount.unmount()?;
    // What the bucket has comes first; and without the option there is nothing.
    world.python("put('.sandpail/status', b'mine')")?;
    let mount = world.mount(&[])?;
    world.sh(&mount, "[ \"$(cat .sandpail/status)\" = mine ]; [ -d .sandpail ]; rm -r .sandpail; sleep 1.5; grep -q dirty .sandpail/status")?;
    let mount = mount.remount(&["--no-status"])?;
    world.sh(&mount, "[ ! -e .sandpail ]; mkdir .sandpail; echo x >.sandpail/status; [ \"$(ls -A .sandpail)\" = status ]; rm -r .sandpail")?;
    mount.unmount()
}

fn barrier(world: &World) -> Result<()> {
    if on_peer() {
        return Ok(());
    }
    let mount = world.mount(&[])?;
    // Open files, one of them written through a mapping: nothing is closed, and nothing asks for fsync.
    world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import boto3, mmap, os, subprocess
from botocore.config import Config
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1", config=Config(s3={"addressing_style": "path"}))
body = lambda key: s3.get_object(Bucket=os.environ["BUCKET"], Key=key)["Body"].read()
# Started before: a process that is forked from one with open files closes them, which stores them.
helper = subprocess.Popen(["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def sync(arg, code=0):
    helper.stdin.write(f'"$SANDPAIL" sync {arg} 2>&1; echo "exit $?"\n'); helper.stdin.flush()
    lines = []
    while not lines or not lines[-1].startswith("exit "): lines.append(helper.stdout.readline())
    ended = lines.pop()
    assert code is None or ended == f"exit {code}\n", (lines, ended)
    return "".join(lines)
files = []
for n in range(40):
    f = os.open(f"open{n}", os.O_CREAT | os.O_RDWR); os.write(f, b"%d" % n); files.append(f)
large = os.open("large", os.O_CREAT | os.O_RDWR); os.write(large, b"x" * 30_000_000)
out = sync(os.environ["MNT"])
assert "everything is stored (41 file(s) just now)" in out, out
for n in range(40): assert body(f"open{n}") == b"%d" % n
assert body("large") == b"x" * 30_000_000
m = mmap.mmap(large, 30_000_000); m[5:10] = b"mmaps"
sync(os.environ["MNT"])
assert body("large")[:12] == b"xxxxxmmapsxx"
# Once more: only what is new.
os.pwrite(files[3], b"three", 0)
assert "(1 file(s) just now)" in sync("."), "not only the changed file"
assert body("open3") == b"three"
# Other mounts, of other tests, may be unable to.
assert f'{os.environ["MNT"]}: everything is stored' in sync("--all", None)
PY
        cd /; fails "$SANDPAIL" sync "$LOCAL" 2>"$LOCAL/err"; grep -q 'not mounted by sandpail' "$LOCAL/err"
        fails "$SANDPAIL" sync 2>/dev/null"#,
    )?;
    mount.unmount()
}

fn named(world: &World) -> Result<()> {
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
        fails write d/late; fails write later; cd /
        if "$SANDPAIL" sync "$MNT" >"$LOCAL/out" 2>"$LOCAL/err"; then exit 7; else [ $? = 1 ]; fi; [ ! -s "$LOCAL/out" ]
        for text in '2 file(s) could not be stored' 'd/late: .*denied' 'later: .*denied'; do grep -q "$text" "$LOCAL/err"; done
        fails grep -q d/stored "$LOCAL/err"
        "#,
    )?;
    // A store that does not answer in time: what waits is named.
    proxy.heal();
    proxy.set_latency(Duration::from_secs(4));
    world.sh(
        &mount,
        r#"
        cd /; fails "$SANDPAIL" sync --timeout 1s "$MNT" 2>"$LOCAL/err"
        grep -q 'not everything is stored after 1s' "$LOCAL/err"; grep -q 'later: ' "$LOCAL/err"
        "#,
    )?;
    proxy.set_latency(Duration::ZERO);
    world.sh(&mount, "cd /; \"$SANDPAIL\" sync \"$MNT\"")?;
    world.python("assert get('d/late') == b'precious' and get('later') == b'precious'")?;
    // Given up on purpose, they are named all the same.
    proxy.break_next("PUT ", Fault::AccessDenied, 1_000_000);
    world.sh(
        &mount,
        r#"
        "$PYTHON" -c 'f = open("left", "w"); f.write("behind"); f.close()' 2>/dev/null || true
        "#,
    )?;
    world
        .script_in(
            &world.local(),
            r#"
        "$SANDPAIL" umount --force "$MNT" 2>"$LOCAL/err"; grep -q 'left: .*denied' "$LOCAL/err"; grep -q 'kept/' "$LOCAL/err"
        fails mountpoint -q "$MNT"
        "#,
        )?
        .env("MNT", mount.path())
        .run()?;
    drop(mount);
    Ok(())
}
