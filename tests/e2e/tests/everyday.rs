//! The programs people use every day do their work on a mount, and what they leave is the same after the bucket
//! was unmounted and mounted again.

use anyhow::{Result, ensure};
use sandpail_e2e::{Mount, ServerKind, Test, World, on_peer};

/// Every path with type, mode, owner, times of files, target and content.
const SNAPSHOT: &str = r#"
find . -mindepth 1 -type d -printf '%P|%y|%m|%U|%G\n' | sort
find . -type l -printf '%P|%y|%l|%U|%G\n' | sort
find . -type f -printf "%P|%y|%m|%U|%G|%s|%T@\n" | sort
find . -type f -print0 | sort -z | xargs -0r sha256sum
"#;

/// Takes what `find` prints of fractions of seconds away.
fn whole_seconds(snapshot: &str) -> String {
    let cut = |line: &str| match (line.contains("|f|"), line.rsplit_once('.')) {
        (true, Some((whole, fraction))) if fraction.bytes().all(|byte| byte.is_ascii_digit()) => whole.to_owned(),
        _ => line.to_owned(),
    };
    snapshot.lines().map(cut).collect::<Vec<_>>().join("\n")
}

/// Remounts and looks whether everything is as it was.
pub(crate) fn remounted_the_same(world: &World, mount: Mount) -> Result<Mount> {
    let before = world.sh(&mount, SNAPSHOT)?;
    let mount = mount.remount(&[])?;
    let after = world.sh(&mount, SNAPSHOT)?;
    // s3fs keeps whole seconds only.
    let shown = |text: &str| if on_peer() { whole_seconds(text) } else { text.to_owned() };
    // SeaweedFS keeps no metadata of keys that end in `/`, where the modes of directories live.
    let shown = |text: &str| match world.kind() {
        ServerKind::SeaweedFs => without_directory_modes(&shown(text)),
        ServerKind::Embedded | ServerKind::Directory => shown(text),
    };
    let (before, after) = (shown(&before), shown(&after));
    let lost: Vec<_> = before.lines().filter(|line| !after.lines().any(|other| other == *line)).take(10).collect();
    let new: Vec<_> = after.lines().filter(|line| !before.lines().any(|other| other == *line)).take(10).collect();
    ensure!(before == after, "not the same after a remount\nbefore: {lost:#?}\nafter: {new:#?}");
    Ok(mount)
}

fn without_directory_modes(snapshot: &str) -> String {
    let cut = |line: &str| match line.split_once("|d|") {
        Some((path, _)) => format!("{path}|d"),
        None => line.to_owned(),
    };
    snapshot.lines().map(cut).collect::<Vec<_>>().join("\n")
}

fn works_and_stays(world: &World, script: &str) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(&mount, script)?;
    remounted_the_same(world, mount)?.unmount()
}

macro_rules! everyday {
    ($($name:literal: $script:expr;)*) => {
        pub(crate) const TESTS: &[Test] = &[$(Test::new(concat!("everyday::", $name), |world| works_and_stays(world, $script)).minutes(5, 60)),*];
    };
}

everyday! {
    "shell_basics": r#"
        echo one >a; echo two >>a; [ "$(cat a)" = "$(printf 'one\ntwo')" ]
        mkdir -p d/e/f; mv a d/e/b; [ ! -e a ]; [ -s d/e/b ]
        cp d/e/b d/c; cmp d/e/b d/c; rm d/c; [ ! -e d/c ]
        mv d/e d/g; [ "$(head -1 d/g/b)" = one ]; rmdir d/g/f
        fails rmdir d/g 2>"$LOCAL/err"; grep -q 'not empty' "$LOCAL/err"
        echo x | tee d/t >/dev/null; [ "$(wc -c <d/t)" = 2 ]; : >d/empty; [ ! -s d/empty ]
        rm -r d/g; [ "$(ls d)" = "$(printf 'empty\nt')" ]
    "#;
    "touch_and_times": r#"
        touch a; touch -d '2001-02-03 04:05:06.789 UTC' a; [ "$(stat -c %Y a)" = 981173106 ]
        touch -d '1970-01-02 00:00:00 UTC' old; [ "$(stat -c %Y old)" = 86400 ]
        touch -r a b; [ "$(stat -c %Y b)" = 981173106 ]
        echo more >>b; [ "$(stat -c %Y b)" -gt 1000000000 ]
        touch -a -d '2010-01-01 UTC' a; [ "$(stat -c %X a)" = 1262304000 ]; [ "$(stat -c %Y a)" = 981173106 ]
    "#;
    "modes_and_owners": r#"
        echo x >a; chmod 640 a; [ "$(stat -c %a a)" = 640 ]; chmod u+s,a+x a; [ "$(stat -c %a a)" = 4751 ]
        mkdir -m 1777 d; [ "$(stat -c %a d)" = 1777 ]
        if [ "$(id -u)" = 0 ]; then chown 12:34 a d; [ "$(stat -c %u:%g a)" = 12:34 ]; fi
        (umask 027; echo y >b; mkdir e); [ "$(stat -c %a b)" = 640 ]; [ "$(stat -c %a e)" = 750 ]
        cat a | grep x >/dev/null
    "#;
    "symlinks": r#"
        echo x >a; ln -s a l; [ "$(readlink l)" = a ]; [ "$(cat l)" = x ]; ln -s /no/where/ät dangling
        [ -L dangling ]; [ ! -e dangling ]; ln -sfn dangling l; [ "$(readlink l)" = dangling ]
        mkdir d; ln -s ../a d/up; [ "$(cat d/up)" = x ]; mv d/up d/up2; [ "$(cat d/up2)" = x ]; rm l
        long=$(printf 'x%.0s' $(seq 900)); ln -s "$long" long; [ "$(readlink long)" = "$long" ]
    "#;
    "sed_in_place": r#"
        seq 1000 >a; chmod 600 a; sed -i 's/^5$/five/; 7d' a; [ "$(sed -n 5p a)" = five ]; [ "$(wc -l <a)" = 999 ]
        [ "$(stat -c %a a)" = 600 ]; [ "$(ls -A)" = a ]; sed -i.bak 1d a; [ "$(wc -l <a.bak)" = 999 ]
    "#;
    "truncate": r#"
        printf 0123456789 >a; truncate -s 4 a; [ "$(cat a)" = 0123 ]; truncate -s 8 a
        [ "$(od -An -tx1 a | tr -d ' ')" = 3031323300000000 ]; truncate -s 0 a; [ ! -s a ]
        truncate -s 20M big; [ "$(stat -c %s big)" = 20971520 ]; cmp -n 20971520 big /dev/zero
        printf x >>big; [ "$(tail -c1 big)" = x ]; truncate -s 5M big; [ "$(stat -c %s big)" = 5242880 ]
    "#;
    "dd_into_the_middle": r#"
        head -c 30000000 /dev/urandom >"$LOCAL/a"; cp "$LOCAL/a" a; cmp a "$LOCAL/a"
        head -c 4096 /dev/urandom >"$LOCAL/p"
        for at in 0 4096 9999360 15000576 29995008 31000576; do
            for f in a "$LOCAL/a"; do dd if="$LOCAL/p" of="$f" bs=512 seek=$((at / 512)) conv=notrunc status=none; done
            cmp a "$LOCAL/a"
        done
        dd if="$LOCAL/p" of=a bs=4096 seek=100 conv=notrunc,fsync oflag=direct status=none
        dd if="$LOCAL/p" of="$LOCAL/a" bs=4096 seek=100 conv=notrunc status=none; cmp a "$LOCAL/a"
    "#;
    "append": r#"
        for n in $(seq 50); do echo "line $n" >>log; done; [ "$(wc -l <log)" = 50 ]; [ "$(tail -1 log)" = "line 50" ]
        head -c 12000000 /dev/urandom >big; cp big "$LOCAL/big"; echo end >>big; echo end >>"$LOCAL/big"
        cmp big "$LOCAL/big"
        (for n in $(seq 200); do echo "a$n"; done >>both) & (for n in $(seq 200); do echo "b$n"; done >>both) & wait
        [ "$(sort both | uniq | wc -l)" = 400 ]
    "#;
    "patch": r#"
        seq 100 >a; cp a "$LOCAL/a"; sed 's/^50$/fifty/' a >"$LOCAL/b"
        diff -u a "$LOCAL/b" >"$LOCAL/p" || true
        patch --quiet a "$LOCAL/p"; cmp a "$LOCAL/b"; patch --quiet -R -b a "$LOCAL/p"; cmp a "$LOCAL/a"; [ -e a.orig ]
    "#;
    "zip": r#"
        mkdir -p t/sub; seq 5000 >t/a; head -c 100000 /dev/urandom >t/sub/b; ln -s a t/l; chmod 750 t/a
        zip -qry z.zip t; unzip -tq z.zip >/dev/null; mkdir out; cd out; unzip -q ../z.zip
        cmp t/a ../t/a; cmp t/sub/b ../t/sub/b; [ "$(readlink t/l)" = a ]; [ "$(stat -c %a t/a)" = 750 ]
        cd ..; echo new >t/c; zip -qr z.zip t/c; unzip -l z.zip | grep t/c >/dev/null; zip -qd z.zip t/a
        unzip -l z.zip >"$LOCAL/l"; fails grep -q 't/a$' "$LOCAL/l"
    "#;
    "cp_archive": r#"
        mkdir -p "$LOCAL/t/sub/deep"; cd "$LOCAL/t"; seq 1000 >a; echo x >sub/b; ln -s ../a sub/l; : >sub/deep/empty
        chmod 600 a; chmod 2755 sub; touch -d '2011-11-11 UTC' a sub/b; cd "$MNT"; cp -a "$LOCAL/t" t
        diff -r --no-dereference "$LOCAL/t" t
        list() { (cd "$1" && find . \( -type f -printf '%p %m %s %T@\n' \) -o -printf '%p %m %l\n' | sort); }
        [ "$(list "$LOCAL/t")" = "$(list t)" ]; cp -a t t2; diff -r --no-dereference t t2
        [ "$(list t2)" = "$(list t)" ]; cp -a t2 "$LOCAL/back"; diff -r --no-dereference "$LOCAL/t" "$LOCAL/back"
    "#;
    "tar_out_and_back": r#"
        git -C "$REPO" archive HEAD >"$LOCAL/a.tar"; mkdir t "$LOCAL/t"
        tar -xf "$LOCAL/a.tar" -C t; tar -xf "$LOCAL/a.tar" -C "$LOCAL/t"; diff -r "$LOCAL/t" t
        list() { (cd "$1" && find . -type f -printf '%p %m %U %G %s %T@\n' | sort); }
        [ "$(list t)" = "$(list "$LOCAL/t")" ]
        tar -cf inside.tar --sort=name -C t .; mkdir "$LOCAL/u"; tar -xf inside.tar -C "$LOCAL/u"; diff -r "$LOCAL/t" "$LOCAL/u"
        [ "$(list "$LOCAL/u")" = "$(list "$LOCAL/t")" ]
        tar -czf inside.tgz t; tar -tzf inside.tgz | grep Cargo.toml >/dev/null; tar --compare -f inside.tgz -z
    "#;
    "rsync_twice": r#"
        mkdir "$LOCAL/t"; git -C "$REPO" archive HEAD | tar -x -C "$LOCAL/t"; ln -s Cargo.toml "$LOCAL/t/l"
        rsync -a "$LOCAL/t/" t/; diff -r --no-dereference "$LOCAL/t" t
        second=$(rsync -a --itemize-changes --omit-dir-times "$LOCAL/t/" t/); [ -z "$second" ] || { echo "copied again: $second" >&2; false; }
        second=$(rsync -a --itemize-changes "$LOCAL/t/" t/ | grep '^[<>ch]' || true); [ -z "$second" ] || { echo "copied: $second" >&2; false; }
        echo more >>"$LOCAL/t/Cargo.toml"; rm "$LOCAL/t/Cargo.lock"
        changes=$(rsync -a --delete --itemize-changes "$LOCAL/t/" t/ | grep -v '^\.d' | wc -l); [ "$changes" = 2 ]
        diff -r --no-dereference "$LOCAL/t" t; rsync -a --inplace --checksum "$LOCAL/t/" t/; rsync -a t/ "$LOCAL/back/"
        diff -r --no-dereference "$LOCAL/t" "$LOCAL/back"
    "#;
    "git": r#"
        git clone --quiet --no-hardlinks "$REPO" clone; cd clone; git fsck --strict --no-dangling; git status --porcelain >"$LOCAL/s"; [ ! -s "$LOCAL/s" ]
        echo x >new; git add new; git commit --quiet -m new; git checkout --quiet -b side; git mv new newer
        git commit --quiet -m moved; git checkout --quiet -; git merge --quiet side; [ -e newer ]; git gc --quiet
        git stash list; echo y >>newer; git stash --quiet; git stash pop --quiet; git diff --stat | grep newer >/dev/null
        git fsck --no-dangling; git clone --quiet --no-hardlinks . "$LOCAL/back"; git -C "$LOCAL/back" fsck --no-dangling
        git log -1 --oneline | grep moved >/dev/null
    "#;
    "git_init_commit": r#"
        git init --quiet r; cd r; for n in $(seq 30); do seq $n >f$n; done; git add .; git commit --quiet -m all
        [ "$(git ls-files | wc -l)" = 30 ]; git rm --quiet f1; git commit --quiet -m less; git fsck; git status --porcelain | wc -l | grep -qx 0
    "#;
    "python_shutil": r#"
        "$PYTHON" - <<'PY'
import os, shutil, tempfile, filecmp, stat
os.makedirs("t/sub"); open("t/a", "w").write("x" * 1000); open("t/sub/b", "wb").write(os.urandom(70000))
os.chmod("t/a", 0o640); os.utime("t/a", (1e9, 1.1e9)); os.symlink("a", "t/l")
shutil.copytree("t", "u", symlinks=True); assert filecmp.dircmp("t", "u").diff_files == []
a, b = os.stat("t/a"), os.stat("u/a"); assert (a.st_mode, int(a.st_mtime)) == (b.st_mode, int(b.st_mtime))
open("c", "w").close(); shutil.copystat("t/a", "c"); assert int(os.stat("c").st_mtime) == 1100000000
assert stat.S_IMODE(os.stat("c").st_mode) == 0o640
shutil.move("u", "v"); assert not os.path.exists("u") and os.path.islink("v/l"); shutil.rmtree("v")
assert sorted(os.listdir(".")) == ["c", "t"]
with tempfile.TemporaryDirectory(dir=".") as d:
    with tempfile.NamedTemporaryFile(dir=d) as f:
        f.write(b"abc"); f.flush(); assert open(f.name, "rb").read() == b"abc"
    with tempfile.TemporaryFile(dir=d) as f:
        f.write(b"abc"); f.seek(0); assert f.read() == b"abc"
    with tempfile.SpooledTemporaryFile(10, dir=d) as f:
        f.write(b"abc" * 10); f.seek(3); assert f.read(3) == b"abc"
assert sorted(os.listdir(".")) == ["c", "t"]
shutil.make_archive("arch", "gztar", "t"); shutil.unpack_archive("arch.tar.gz", "w"); assert os.path.exists("w/sub/b")
with open("c", "r+b") as f:
    f.seek(100); f.write(b"z"); f.seek(0); assert f.read() == b"\0" * 100 + b"z"
print(shutil.disk_usage("."))
PY
    "#;
    "pandas_and_pyarrow": r#"
        "$PYTHON" - <<'PY'
import numpy as np, pandas as pd, pyarrow.parquet as pq, pyarrow.dataset as ds
frame = pd.DataFrame({"n": np.arange(100_000), "x": np.random.default_rng(1).random(100_000), "s": [f"row{i % 97}" for i in range(100_000)]})
frame.to_parquet("a.parquet"); pd.testing.assert_frame_equal(pd.read_parquet("a.parquet"), frame)
assert pd.read_parquet("a.parquet", columns=["n"])["n"].sum() == frame["n"].sum()
pq.write_to_dataset(pq.read_table("a.parquet"), "set", partition_cols=["s"], max_partitions=200)
assert ds.dataset("set", partitioning="hive").count_rows() == 100_000
table = pq.read_table("a.parquet", memory_map=True); assert table.num_rows == 100_000
frame[:1000].to_csv("a.csv", index=False); assert len(pd.read_csv("a.csv")) == 1000
frame[:1000].to_feather("a.feather"); pd.testing.assert_frame_equal(pd.read_feather("a.feather"), frame[:1000])
PY
        [ "$(find set -name '*.parquet' | wc -l)" = 97 ]
    "#;
    "h5py": r#"
        "$PYTHON" - <<'PY'
import h5py, numpy as np
data = np.random.default_rng(2).random((500, 500))
with h5py.File("a.h5", "w") as f: f["x"] = data; f.create_dataset("g/grow", (10,), maxshape=(None,), chunks=True, data=np.arange(10))
with h5py.File("a.h5", "a") as f: f["g/grow"].resize((100000,)); f["g/grow"][99990:] = 7; f["x"][3, 4] = 42; f.attrs["k"] = "v"
with h5py.File("a.h5", "r") as f:
    assert f["x"][3, 4] == 42 and (f["x"][4:] == data[4:]).all() and f["g/grow"][5] == 5 and f["g/grow"][-1] == 7 and f.attrs["k"] == "v"
PY
    "#;
    "pip_target": concat!(include_str!("tinypkg.sh"), r#"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-cache-dir --target site "$LOCAL/p"
        PYTHONPATH=site "$PYTHON" -c 'import tinypkg; assert tinypkg.f() == 42; assert "site" in tinypkg.__file__'
        "$PYTHON" -m venv --without-pip env; env/bin/python -c 'import sys; assert "env" in sys.prefix'
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --upgrade --target site "$LOCAL/p"
    "#);
    // The cache is on the mount, too: uv would link the package's files to it.
    "uv_install": concat!(include_str!("tinypkg.sh"), r#"
        export UV_CACHE_DIR="$MNT/cache" UV_OFFLINE=1 UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never
        install() { uv pip install --quiet --no-index "$@" "$LOCAL/p" 2>"$LOCAL/err" || { cat "$LOCAL/err" >&2; return 1; }; }
        uv venv --quiet --python "$PYTHON" env; install --python env/bin/python
        env/bin/python -c 'import tinypkg; assert tinypkg.f() == 42 and "/env/" in tinypkg.__file__'
        install --python "$PYTHON" --target site
        PYTHONPATH=site "$PYTHON" -c 'import tinypkg; assert tinypkg.f() == 42 and "site" in tinypkg.__file__'
    "#);
    "hard_links_are_refused_and_programs_copy": r#"
        echo x >a; mkdir d; echo y >d/b
        fails ln a b 2>"$LOCAL/err"; grep -q 'not permitted\|not supported' "$LOCAL/err"; [ ! -e b ]
        fails cp -l a c 2>"$LOCAL/err"; fails cp -al d e 2>"$LOCAL/err"; rm -rf e; [ "$(stat -c %h a)" = 1 ]; [ "$(cat a)" = x ]
        # git links objects where it can, and copies where it cannot.
        git init --quiet r; echo x >r/f; git -C r add f; git -C r commit --quiet -m f
        git clone --quiet r s; git -C s fsck --no-dangling; [ "$(cat s/f)" = x ]
        rsync -a --link-dest="$MNT/d" d/ linked/; [ "$(cat linked/b)" = y ]
    "#;
    "npm_install": r#"
        mkdir -p "$LOCAL/dep/bin" app; echo '{"name":"dep","version":"1.0.0","bin":{"dep":"bin/dep.js"}}' >"$LOCAL/dep/package.json"
        echo 'module.exports = 42' >"$LOCAL/dep/index.js"; printf '#!/usr/bin/env node\nconsole.log(require("../index.js"))\n' >"$LOCAL/dep/bin/dep.js"
        tarball=$(cd "$LOCAL" && npm pack --silent --cache "$LOCAL/cache" ./dep); cd app
        echo '{"name":"app","version":"1.0.0","private":true}' >package.json
        npm install --silent --offline --no-audit --no-fund --cache "$LOCAL/cache" "$LOCAL/$tarball"
        [ "$(node -p 'require("dep")')" = 42 ]; [ "$(node_modules/.bin/dep)" = 42 ]; grep -q dep package-lock.json
        npm ci --silent --offline --no-audit --no-fund --cache "$LOCAL/cache"; [ "$(node -p 'require("dep")')" = 42 ]
    "#;
    "cargo_build": r#"
        mkdir -p tiny/src; cd tiny; printf '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n' >Cargo.toml
        echo 'fn main() { println!("hello"); }' >src/main.rs
        CARGO_TARGET_DIR="$MNT/target" cargo build --quiet --offline; [ "$("$MNT/target/debug/tiny")" = hello ]
        echo 'fn main() { println!("again"); }' >src/main.rs; touch src/main.rs
        CARGO_TARGET_DIR="$MNT/target" cargo build --quiet --offline; [ "$("$MNT/target/debug/tiny")" = again ]
        rm -r "$MNT/target"
    "#;
    "make_and_cc": r#"
        printf 'int f(void) { return 7; }\n' >f.c; printf 'int f(void); int main(void) { return f() - 7; }\n' >m.c
        printf 'prog: f.o m.o\n\tcc -o prog f.o m.o\n%%.o: %%.c\n\tcc -c $<\n' >Makefile
        make -s; ./prog; make -q; sleep 1.1; touch f.c; fails make -q; make -s; ./prog; ar rc lib.a f.o; cc -o p2 m.o lib.a; ./p2
    "#;
    "editors": r#"
        echo old >a; chmod 640 a
        # vim with backupcopy=no: rename away, write anew, unlink
        mv a a~; echo new >a; chmod 640 a; rm a~; [ "$(cat a)" = new ]
        # nano and others: temporary file, then rename over
        echo newer >.a.swp; chmod 640 .a.swp; mv .a.swp a; [ "$(cat a)" = newer ]
        # in place with O_TRUNC, then fsync
        "$PYTHON" -c 'import os; f = os.open("a", os.O_WRONLY | os.O_TRUNC); os.write(f, b"newest\n"); os.fsync(f); os.close(f)'
        [ "$(cat a)" = newest ]; [ "$(ls -A)" = a ]; [ "$(stat -c %a a)" = 640 ]
    "#;
    "find_du_grep": r#"
        for d in 1 2 3; do mkdir d$d; for f in $(seq 20); do echo "needle $f" >d$d/f$f; done; done
        [ "$(find . -type f | wc -l)" = 60 ]; [ "$(grep -rl 'needle 7$' . | wc -l)" = 3 ]; du -s . >/dev/null; df . >/dev/null
        [ "$(ls -lR | grep -c '^-')" = 60 ]; find . -name 'f1*' -delete; [ "$(find . -type f | wc -l)" = 27 ]
        [ "$(sort d1/f2 d2/f3 | cut -d' ' -f1 | uniq -c | awk '{print $1}')" = 2 ]; rm -rf d1; [ ! -e d1 ]
    "#;
    "sqlite_rollback_journal": concat!("MODE=delete\n", include_str!("sqlite.sh"));
    "sqlite_wal": concat!("MODE=wal\n", include_str!("sqlite.sh"));
    "fio_verify": include_str!("fio.sh");
    "xattr": r#"
        echo x >a; setfattr -n user.k -v 'v 1' a; [ "$(getfattr --only-values -n user.k a)" = 'v 1' ]
        setfattr -n user.k -v v2 a; setfattr -n user.other -v w a; [ "$(getfattr --only-values -n user.k a)" = v2 ]
        echo more >>a; chmod 600 a; mv a b; [ "$(getfattr --only-values -n user.k b)" = v2 ]; getfattr -d b | grep user.other >/dev/null
        setfattr -x user.k b; fails getfattr -n user.k b 2>/dev/null; fails setfattr -x user.k b 2>/dev/null
    "#;
    "many_small_files": r#"
        mkdir d; for n in $(seq 300); do echo $n >d/f$n; done; [ "$(ls d | wc -l)" = 300 ]
        [ "$(cat d/f* | sort -n | md5sum)" = "$(seq 300 | md5sum)" ]; mv d e; [ "$(cat e/f* | sort -n | md5sum)" = "$(seq 300 | md5sum)" ]
        [ ! -e d ]; cp -r e f; diff -r e f; rm -r e; [ "$(ls)" = f ]
    "#;
}
