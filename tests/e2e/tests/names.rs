//! Whatever a key is called and whatever is in it, it can be reached through the mount and stays whole.

use anyhow::{Result, ensure};
use sandpail_e2e::{ServerKind, Test, World};

pub(crate) const TESTS: &[Test] = &[
    Test::new("names::foreign_keys_are_reachable", foreign_keys),
    Test::new("names::unusual_names_round_trip", unusual_names),
    Test::new("names::implicit_directories", implicit_directories),
    Test::new("names::long_keys", long_keys),
    Test::new("names::foreign_metadata_is_kept", foreign_metadata),
    Test::new("names::metadata_garbage_is_survived", metadata_garbage),
    Test::new("names::only_the_prefix_is_seen", only_the_prefix),
];

fn foreign_keys(world: &World) -> Result<()> {
    // SeaweedFS itself cannot hold some of these: what it refuses is not asked of the mount.
    let held = world.python(
        r#"
        wanted = ["plain", "a//b", "a///c", "//lead", "/rooted", "data/", "c", "c/d", "x/./y", "x/../z", ".", "..", "./p",
            "sp ace", "pl+us", "per%20cent", "per%", "q?uery&a=b", "ha#sh", "ünï/çødé", "日本語", "emoji😀", "quo'te\"s",
            "back\\slash", "tab\there", "new\nline", "ctl\x01x", "n" * 300, "t/" + "n" * 256 + "/u", "deep/" + "d/" * 200 + "f", "trail ", "tilde~", "=eq;semi:col,com", "a*b", "nul?"]
        held = []
        for n, key in enumerate(wanted):
            try:
                put(key, f"body {n}".encode())
                if get(key) == f"body {n}".encode() and key in keys(): held.append((n, key))
            except Exception as error: print("refused", repr(key[:30]), type(error).__name__, file=sys.stderr)
        have = set(keys())
        for n, key in held:
            if key in have and get(key) == f"body {n}".encode(): print(f"body {n}")
        "#,
    )?;
    let held: Vec<_> = held.lines().collect();
    ensure!(held.len() > 15, "the server holds only {held:?}");
    let mount = world.mount(&[])?;
    let found = world.sh(&mount, "find . -type f -print0 | xargs -0 grep -h '' | sort -V")?;
    let lost: Vec<_> = held.iter().filter(|body| !found.lines().any(|line| line == **body)).collect();
    ensure!(
        lost.is_empty(),
        "not reachable through the mount: {lost:?}\nfound:\n{}",
        world.sh(&mount, "find . | cat -A | cut -c1-200")?
    );
    // Each is edited through its path, and lands in its key; no key more, none less.
    let before = world.python("print(sorted(keys()))")?;
    world.sh(
        &mount,
        r#"
        find . -type f -print0 >"$LOCAL/all"
        while IFS= read -r -d '' path; do echo edited >>"$path"; done <"$LOCAL/all"
        while IFS= read -r -d '' path; do stat "$path" >/dev/null; tail -n 1 "$path" | grep -qx 'bodyx*edited\|edited\|body.*edited'; done <"$LOCAL/all"
        "#,
    )?;
    let after = world.python("print(sorted(keys()))")?;
    ensure!(before == after, "keys before: {before}\nafter: {after}");
    world.python(
        "for key in keys():\n    assert key.endswith('/') and not get(key) or get(key).endswith(b'edited\\n'), key",
    )?;
    // And each is removed through its path.
    world.sh(&mount, "find . -mindepth 1 -delete; [ -z \"$(ls -A)\" ]")?;
    let left = world.python("print(keys())")?;
    ensure!(left.trim() == "[]", "left in the bucket: {left}");
    mount.unmount()
}

fn unusual_names(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import os
names = ["sp ace", " lead", "trail ", "pl+us", "per%20cent", "%", "%2F", "q?a=b&c", "ha#sh", "ünï", "日本語", "e\u0301", "\u00e9", "😀", "quo'te\"s",
    "back\\slash", "tab\t", "new\nline", "-dash", "~", "...", ".hidden", "a:b", "a*b", "n" * 255, "=;,", "{}[]<>|^`", "a%2Fb", "%2E", "@", "$HOME"]
# SeaweedFS would store it as a '/', so it is refused there
try: open("back\\slash", "w").close()
except OSError as error: assert error.errno == 22, error; names[names.index("back\\slash")] = "no slash"
for n, name in enumerate(names):
    open(name, "w").write(str(n)); os.mkdir(f"dir {n}"); open(f"dir {n}/{name}", "w").write(str(n))
for name in names: os.rename(name, name + "2" if len(name) < 250 else "2" + name[1:]); 
assert sorted(os.listdir()) == sorted([n + "2" if len(n) < 250 else "2" + n[1:] for n in names] + [f"dir {n}" for n in range(len(names))])
for n, name in enumerate(names):
    assert os.listdir(f"dir {n}") == [name], (name, os.listdir(f"dir {n}"))
    assert open(f"dir {n}/{name}").read() == str(n)
raw = b"not\xffutf8"
try: open(raw, "w").close()
except OSError as error: assert error.errno in (22, 84), error
else: assert raw in os.listdir(b"."); open(raw).close(); os.unlink(raw)
PY"#,
    )?;
    let mount = crate::everyday::remounted_the_same(world, mount)?;
    // The plain ones are in the bucket under the very same name.
    world.python("assert get('sp ace2') == b'0' and get('日本語2') == b'10' and get('per%20cent2') == b'4' and get('pl+us2') == b'3', keys()")?;
    mount.unmount()
}

fn implicit_directories(world: &World) -> Result<()> {
    world.python(
        "put('a/b/c/file', b'x'); put('marked/', b''); put('marked/f', b'y'); put('only/', b''); put('x/y', b'z')",
    )?;
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#"
        [ "$(cat a/b/c/file)" = x ]; [ -d a/b ]; [ "$(ls)" = "$(printf 'a\nmarked\nonly\nx')" ]; [ -z "$(ls only)" ]; [ "$(ls marked)" = f ]
        [ "$(stat -c %F a/b)" = directory ]; echo new >a/b/new; rm a/b/c/file; [ -d a/b/c ]; rmdir a/b/c; [ "$(ls a/b)" = new ]
        rm x/y; [ -d x ]; [ -z "$(ls x)" ]; mv marked moved; [ "$(cat moved/f)" = y ]; chmod 711 a; [ "$(stat -c %a a)" = 711 ]
        rmdir only; [ "$(ls)" = "$(printf 'a\nmoved\nx')" ]
        # A plain file that was moved has the time of its copy, which the kernel sees when what it knew is old.
        sleep 1.2
        "#,
    )?;
    let mount = crate::everyday::remounted_the_same(world, mount)?;
    if world.kind() == ServerKind::SeaweedFs {
        // There a directory stays in listings when its last object goes.
        return mount.unmount();
    }
    // Another client removes the last object of a directory that has no marker.
    world.python("put('gone/soon', b''); s3.delete_object(Bucket=bucket, Key='gone/soon')")?;
    world.sh(&mount, "sleep 2; [ ! -e gone ]")?;
    mount.unmount()
}

fn long_keys(world: &World) -> Result<()> {
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#""$PYTHON" - <<'PY'
import errno, os
part = "p" * 199
path = "/".join([part] * 5)  # 999 bytes
os.makedirs(path); name = path + "/" + "f" * 24
open(name, "w").write("1024 bytes"); assert open(name).read() == "1024 bytes"
try: open(path + "/" + "f" * 25, "w").close()
except OSError as error: assert error.errno == errno.ENAMETOOLONG, error
else: raise AssertionError("a key of 1025 bytes")
try: os.rename(part, "q" * 250)
except OSError as error: assert error.errno == errno.ENAMETOOLONG, error
else: raise AssertionError("a rename that makes keys too long")
assert open(name).read() == "1024 bytes"
PY"#,
    )?;
    world.python("assert max(len(key) for key in keys()) == 1024")?;
    crate::everyday::remounted_the_same(world, mount)?.unmount()
}

fn foreign_metadata(world: &World) -> Result<()> {
    world.python(
        "for key in ('edit', 'mode', 'move', 'shrink'):\n    put(key, b'x' * 1000, ContentType='application/x-e2e', ContentEncoding='identity', \
         CacheControl='max-age=7', ContentDisposition='inline', Metadata={'project': 'apollo', 'mode': '33188'})",
    )?;
    // The embedded bucket has no tags.
    let has_tags = world.kind() == ServerKind::SeaweedFs;
    if has_tags {
        world.python(
            "for key in ('edit', 'mode', 'move', 'shrink'):\n    s3.put_object_tagging(Bucket=bucket, Key=key, Tagging={'TagSet': [{'Key': 'team a', 'Value': 'x+y'}, {'Key': 'b', 'Value': 'ü'}]})",
        )?;
    }
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        "echo more >>edit; chmod 600 mode; mv move moved; truncate -s 10 shrink; touch -d '2002-02-02 UTC' mode",
    )?;
    mount.unmount()?;
    world.python(
        r#"
        for key in ("edit", "mode", "moved", "shrink"):
            seen = head(key)
            assert seen["ContentType"] == "application/x-e2e", (key, seen["ContentType"])
            assert seen["Metadata"].get("project") == "apollo", (key, seen["Metadata"])
            assert seen.get("CacheControl") == "max-age=7" and seen.get("ContentDisposition") == "inline", (key, seen)
        assert int(head("mode")["Metadata"]["mode"]) & 0o777 == 0o600
        "#,
    )?;
    if has_tags {
        world.python(
            r#"
            for key in ("edit", "mode", "moved", "shrink"):
                tags = {tag["Key"]: tag["Value"] for tag in s3.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]}
                assert tags == {"team a": "x+y", "b": "ü"}, (key, tags)
            "#,
        )?;
    }
    Ok(())
}

fn metadata_garbage(world: &World) -> Result<()> {
    world.python(
        r#"
        put("a", b"1", Metadata={"mode": "banana", "uid": "-5", "gid": "99999999999999999999", "mtime": "NaN"})
        put("b", b"2", Metadata={"mode": "0", "mtime": "1e400", "atime": "", "ctime": "-1"})
        put("c", b"3", Metadata={"mode": "16877"})
        put("d", b"4", Metadata={"mode": "33188", "mtime": "1700000000.123456789"})
        put("e", b"/etc/hostname", Metadata={"mode": "41471"})
        put("f/", b"", Metadata={"mode": "33188"})
        put("g", b"5", Metadata={"mode": "8612"})
        "#,
    )?;
    let mount = world.mount(&[])?;
    world.sh(
        &mount,
        r#"
        ls -la >/dev/null; [ "$(cat a)" = 1 ]; [ "$(cat b)" = 2 ]; [ "$(stat -c %Y d)" = 1700000000 ]; [ "$(readlink e)" = /etc/hostname ]
        [ -d f ]; cat c g >/dev/null 2>&1 || true; echo more >>a; [ "$(head -c1 a)" = 1 ]; chmod 640 b; [ "$(stat -c %a b)" = 640 ]; find . >/dev/null
        "#,
    )?;
    mount.unmount()
}

fn only_the_prefix(world: &World) -> Result<()> {
    world.python("put('in/a', b'1'); put('inside', b'no'); put('out/b', b'no'); put('in/sub/c', b'2')")?;
    let mount = world.mount(&["--prefix", "/in/"])?;
    world.sh(&mount, "[ \"$(ls)\" = \"$(printf 'a\\nsub')\" ]; echo new >sub/d; mv sub moved; [ \"$(cat moved/c)\" = 2 ]; ! stat ../in 2>/dev/null")?;
    mount.unmount()?;
    world.python("found = [key for key in keys() if not key.endswith('/')]; assert found == ['in/a', 'in/moved/c', 'in/moved/d', 'inside', 'out/b'], found")?;
    Ok(())
}
