//! Directories that plain S3 tools have filled are described by their listings, and nothing else is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandpail_fs::attr::{Attr, Kind, Time};
use sandpail_fs::engine::{Engine, EngineOptions, Left, Metadata, OpenMode, SetAttr, SetTime};
use sandpail_store::memory::MemoryStore;
use sandpail_store::{Condition, ObjectAttributes, ObjectKey, PutBody, Store};
use sandpail_testkit::faults::{Counted, FaultPlan, Faults};

const ROOT: u64 = 1;
const BOTH: OpenMode = OpenMode { read: true, write: true, append: false, truncate: false };

struct World {
    bucket: Arc<dyn Store>,
    counted: Arc<Counted>,
    staging: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let (bucket, counted) = Counted::new(Arc::new(MemoryStore::new()));
        Self { bucket, counted, staging: tempfile::tempdir().unwrap() }
    }

    /// A mount of a moment, with nothing known.
    fn mount(&self, metadata: Metadata) -> Arc<Engine> {
        self.mount_for(metadata, Duration::from_secs(60))
    }

    fn mount_for(&self, metadata: Metadata, ttl: Duration) -> Arc<Engine> {
        let options = self.options(metadata, ttl);
        Engine::new(Arc::clone(&self.bucket), options, tokio::runtime::Handle::current()).unwrap()
    }

    fn options(&self, metadata: Metadata, ttl: Duration) -> EngineOptions {
        let mut options = EngineOptions::new(tempfile::tempdir_in(self.staging.path()).unwrap().keep());
        options.metadata = metadata;
        options.metadata_ttl = ttl;
        options.survives = true;
        options
    }

    async fn put(&self, key: &str, metadata: &[(&str, &str)]) {
        let metadata = metadata.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let content_type = Some("text/plain".to_owned());
        let attributes = ObjectAttributes { metadata, content_type, ..ObjectAttributes::default() };
        let body = if key.ends_with('/') { PutBody::empty() } else { PutBody::from(Bytes::from_static(b"data")) };
        self.bucket.put(&ObjectKey::new(key).unwrap(), body, &attributes, &Condition::Always).await.unwrap();
    }

    async fn attributes(&self, key: &str) -> ObjectAttributes {
        self.bucket.head(&ObjectKey::new(key).unwrap()).await.unwrap().attributes
    }

    /// Directories `{top}/d0`, … with files `f000`, ….
    async fn fill(&self, top: &str, directories: usize, files: usize) {
        for directory in 0..directories {
            for file in 0..files {
                self.put(&format!("{top}/d{directory}/f{file:03}"), &[]).await;
            }
        }
        self.counted.take();
    }

    fn asked(&self) -> (u64, u64) {
        let counts = self.counted.take().operations;
        let of = |name: &str| counts.get(name).copied().unwrap_or(0);
        (of("head"), of("list"))
    }
}

async fn node(engine: &Engine, path: &str) -> u64 {
    let mut ino = ROOT;
    for name in path.split('/') {
        ino = engine.lookup(ino, name.as_bytes()).await.unwrap_or_else(|error| panic!("{path}: {error}")).ino;
    }
    ino
}

async fn stat(engine: &Engine, path: &str) -> Attr {
    let ino = node(engine, path).await;
    engine.getattr(ino).await.unwrap().attr
}

/// What `find -ls` does.
async fn walk(engine: &Engine, path: &str) -> BTreeMap<String, Attr> {
    let (mut found, mut waiting) = (BTreeMap::new(), vec![(path.to_owned(), node(engine, path).await)]);
    while let Some((path, ino)) = waiting.pop() {
        let handle = engine.opendir(ino).unwrap();
        let mut position = 0;
        loop {
            let page = engine.readdir(handle, position, 64, true).await.unwrap();
            let Some(last) = page.last() else { break };
            position = last.next;
            for item in page.iter().filter(|item| ![&b"."[..], b".."].contains(&&*item.name)) {
                let name = format!("{path}/{}", String::from_utf8_lossy(&item.name));
                let stat = match item.is_known {
                    true => item.stat.clone(),
                    false => engine.lookup(ino, &item.name).await.unwrap(),
                };
                if stat.attr.kind == Kind::Directory {
                    waiting.push((name.clone(), stat.ino));
                }
                found.insert(name, stat.attr);
            }
        }
        engine.releasedir(handle);
    }
    found
}

#[tokio::test]
async fn a_tree_of_plain_files_costs_its_listings() {
    let world = World::new();
    world.fill("top", 100, 30).await;
    let engine = world.mount(Metadata::Auto);
    assert_eq!(walk(&engine, "top").await.len(), 100 * 31);
    let (heads, lists) = world.asked();
    assert!(heads <= 17 && lists <= 102, "{heads} HEAD, {lists} LIST");
    // With the attributes of each object asked for.
    walk(&world.mount(Metadata::Posix), "top").await;
    assert!(world.asked().0 >= 3000);
}

#[tokio::test]
async fn a_long_directory_costs_its_pages() {
    let world = World::new();
    world.fill("top", 1, 3000).await;
    let engine = world.mount(Metadata::Auto);
    assert_eq!(walk(&engine, "top/d0").await.len(), 3000);
    let (heads, lists) = world.asked();
    assert!(heads <= 6 && lists <= 8, "{heads} HEAD, {lists} LIST");
}

#[tokio::test]
async fn a_file_that_carries_more_is_believed_and_then_all_are_asked() {
    for (name, value, differs) in [
        ("mode", "33152", "a mode"),
        ("mtime", "1000000000", "a time"),
        ("uid", "77", "an owner"),
        ("mode", "41471", "a link"),
        ("xattr", "{\"user.a\":\"YQ==\"}", "an extended attribute"),
    ] {
        let world = World::new();
        world.fill("top", 3, 40).await;
        world.put("top/d0/f000", &[(name, value)]).await;
        world.put("top/d2/f039", &[("mode", "33152")]).await;
        let engine = world.mount(Metadata::Auto);
        let seen = walk(&engine, "top").await;
        // Walked from the last one on: `d0`, and what comes after it, is known.
        let again = world.mount(Metadata::Auto);
        walk(&again, "top/d0").await;
        assert_eq!(walk(&again, "top").await["top/d2/f039"].perm, 0o600, "{differs}");
        assert_eq!(seen["top/d0/f000"], walk(&world.mount(Metadata::Posix), "top").await["top/d0/f000"], "{differs}");
    }
}

#[tokio::test]
async fn what_says_no_more_than_a_listing_refutes_nothing() {
    let world = World::new();
    world.fill("top", 3, 40).await;
    let now = Time::now().secs.to_string();
    let same = [("mode", "33188"), ("uid", "0"), ("gid", "0"), ("mtime", &now), ("note", "x")];
    world.put("top/d0/f000", &same).await;
    world.counted.take();
    walk(&world.mount(Metadata::Auto), "top").await;
    assert!(world.asked().0 <= 8);
}

#[tokio::test]
async fn directories_with_a_marker_are_what_it_says() {
    let world = World::new();
    world.fill("top", 20, 3).await;
    world.put("top/d7/", &[("mode", "16832"), ("uid", "5")]).await;
    world.put("top/d7/f001", &[("mode", "33024")]).await;
    let engine = world.mount(Metadata::Auto);
    let seen = walk(&engine, "top").await;
    assert_eq!((seen["top/d7"].perm, seen["top/d7"].uid), (0o700, 5));
    assert_eq!(seen["top/d7/f001"].perm, 0o400);
    assert_eq!((seen["top/d8"].perm, seen["top/d8"].uid), (0o755, 0));
}

/// What an engine has heard, it believes for this long at least.
const BELIEVED: Duration = Duration::from_millis(130);

#[tokio::test]
async fn a_marker_that_somebody_else_made_stays_as_it_is() {
    let world = World::new();
    world.fill("top", 2, 9).await;
    let (ours, theirs) = (world.mount(Metadata::Auto), world.mount(Metadata::Posix));
    walk(&ours, "top").await;
    let set = SetAttr { perm: Some(0o700), ..SetAttr::default() };
    theirs.setattr(node(&theirs, "top/d1").await, set).await.unwrap();
    change(&ours, "create").await;
    assert_eq!(stat(&world.mount(Metadata::Auto), "top/d1").await.perm, 0o700);
}

#[tokio::test]
async fn what_is_not_stored_yet_keeps_no_directory() {
    let world = World::new();
    world.put("top/d/only", &[]).await;
    let engine = world.mount(Metadata::Auto);
    walk(&engine, "top").await;
    let directory = node(&engine, "top/d").await;
    let opened = engine.create(directory, b"new", 0o644, 0, 0, BOTH).await.unwrap();
    engine.unlink(directory, b"only").await.unwrap();
    assert_eq!(stat(&world.mount(Metadata::Auto), "top/d").await.kind, Kind::Directory);
    engine.release(opened.handle).await;
}

#[tokio::test]
async fn a_directory_that_is_plain_no_more_is_asked_about_again() {
    let world = World::new();
    world.fill("before", 20, 2).await;
    world.fill("top", 1, 9).await;
    world.put("top/d0/f007", &[("mode", "33152")]).await;
    let engine = world.mount_for(Metadata::Auto, Duration::ZERO);
    walk(&engine, "before").await;
    assert_eq!(walk(&engine, "top").await["top/d0/f007"].perm, 0o644, "nothing tells of it");
    world.put("top/d0/", &[]).await;
    tokio::time::sleep(BELIEVED).await;
    for _ in 0..3 {
        walk(&engine, "top").await;
        tokio::time::sleep(BELIEVED / 4).await;
    }
    tokio::time::sleep(BELIEVED).await;
    assert_eq!(walk(&engine, "top").await["top/d0/f007"].perm, 0o600);
}

#[tokio::test]
async fn a_long_listing_does_not_bring_back_what_was_replaced_since() {
    for metadata in [Metadata::Auto, Metadata::None] {
        let world = World::new();
        world.fill("top", 1, 200).await;
        let engine = world.mount_for(metadata, Duration::ZERO);
        let directory = node(&engine, "top/d0").await;
        let handle = engine.opendir(directory).unwrap();
        let first = engine.readdir(handle, 0, 100, true).await.unwrap();
        let (key, body) =
            (ObjectKey::new("top/d0/f150").unwrap(), PutBody::from(Bytes::from_static(b"longer than before")));
        world.bucket.put(&key, body, &ObjectAttributes::default(), &Condition::Always).await.unwrap();
        tokio::time::sleep(BELIEVED).await;
        let seen = engine.lookup(directory, b"f150").await.unwrap();
        let opened = engine.open(seen.ino, OpenMode { read: true, ..OpenMode::default() }).await.unwrap();
        tokio::time::sleep(BELIEVED).await;
        let rest = engine.readdir(handle, first.last().unwrap().next, 200, true).await.unwrap();
        let again = rest.iter().find(|item| &*item.name == b"f150").unwrap();
        assert!(!again.is_known || again.stat.attr.size == 18, "{metadata:?}: {again:?}");
        assert!(engine.getattr(seen.ino).await.unwrap().is_linked, "{metadata:?}");
        engine.release(opened.handle).await;
    }
}

#[tokio::test]
async fn the_next_process_does_not_take_one_versions_attributes_for_anothers() {
    for metadata in [Metadata::Auto, Metadata::None] {
        let world = World::new();
        world.fill("before", 20, 2).await;
        world.put("top/d/file", &[("note", "first")]).await;
        world.put("top/d/other", &[]).await;
        let engine = world.mount_for(metadata, Duration::ZERO);
        walk(&engine, "before").await;
        let ino = node(&engine, "top/d/file").await;
        let opened = engine.open(ino, BOTH).await.unwrap();
        engine.settle();
        engine.release(opened.handle).await;
        let second = ObjectAttributes {
            metadata: [("note".to_owned(), "second".to_owned())].into(),
            ..ObjectAttributes::default()
        };
        let (key, body) = (ObjectKey::new("top/d/file").unwrap(), PutBody::from(Bytes::from_static(b"second version")));
        world.bucket.put(&key, body, &second, &Condition::Always).await.unwrap();
        tokio::time::sleep(BELIEVED).await;
        walk(&engine, "top").await;
        engine.settle();
        let told = engine.share().unwrap().unwrap();
        let (mut ledger, mut copy) = (File::from(told.ledger), tempfile::tempfile().unwrap());
        ledger.seek(SeekFrom::Start(0)).unwrap();
        std::io::copy(&mut ledger, &mut copy).unwrap();
        let left = Left { ledger: copy.into(), staging: told.staging };
        let options = world.options(metadata, Duration::ZERO);
        let next =
            Engine::take_up(Arc::clone(&world.bucket), options, tokio::runtime::Handle::current(), left).unwrap();
        let opened = next.open(ino, BOTH).await.unwrap();
        next.write(opened.handle, 0, b"X", false).unwrap();
        next.flush(opened.handle).await.unwrap();
        next.release(opened.handle).await;
        let kept = world.attributes("top/d/file").await.metadata;
        assert_eq!(kept.get("note").map(String::as_str), Some("second"), "{metadata:?}");
    }
}

/// Changes `top/d1/f005`, or makes another file there, as no listing could show it.
async fn change(engine: &Engine, how: &str) {
    let directory = node(engine, "top/d1").await;
    let ino = node(engine, "top/d1/f005").await;
    let set = |set: SetAttr| async move { engine.setattr(ino, set).await.map(|_| ()).unwrap() };
    match how {
        "chmod" => set(SetAttr { perm: Some(0o700), ..SetAttr::default() }).await,
        "chown" => set(SetAttr { uid: Some(9), ..SetAttr::default() }).await,
        "utimens" => {
            let time = SetTime::At(Time { secs: 1_000_000_000, nanos: 0 });
            set(SetAttr { mtime: Some(time), ..SetAttr::default() }).await;
        }
        "utimens to a moment ago" => {
            let time = SetTime::At(Time { secs: Time::now().secs - 40, nanos: 0 });
            set(SetAttr { mtime: Some(time), ..SetAttr::default() }).await;
        }
        "setxattr" => engine.setxattr(ino, "user.a", b"b", 0).await.unwrap(),
        "symlink" => engine.symlink(directory, b"f005x", b"f001", 0, 0).await.map(|_| ()).unwrap(),
        "create" | "rename" => {
            let place = if how == "create" { directory } else { ROOT };
            let opened = engine.create(place, b"f005x", 0o600, 3, 4, BOTH).await.unwrap();
            engine.write(opened.handle, 0, b"more", false).unwrap();
            engine.flush(opened.handle).await.unwrap();
            engine.release(opened.handle).await;
            if how == "rename" {
                engine.rename(ROOT, b"f005x", directory, b"f005x", false).await.unwrap();
            }
        }
        _ => unreachable!(),
    }
}

#[tokio::test]
async fn what_is_stored_here_is_seen_by_every_mount() {
    for how in ["chmod", "chown", "utimens", "utimens to a moment ago", "setxattr", "symlink", "create", "rename"] {
        for metadata in [Metadata::Posix, Metadata::Auto] {
            let world = World::new();
            world.fill("top", 3, 9).await;
            world.fill("before", 20, 2).await;
            let engine = world.mount(metadata);
            walk(&engine, "before").await;
            walk(&engine, "top").await;
            change(&engine, how).await;
            let reader = world.mount(Metadata::Auto);
            // All its samples are taken elsewhere.
            walk(&reader, "before").await;
            let seen = walk(&reader, "top").await;
            let exact = walk(&world.mount(Metadata::Posix), "top").await;
            for (path, attr) in &exact {
                let is_file = attr.kind != Kind::Directory;
                let shown =
                    |attr: &Attr| (attr.kind, attr.perm, attr.uid, attr.gid, is_file.then_some(attr.mtime.secs));
                assert_eq!(shown(&seen[path]), shown(attr), "{how} by {metadata:?}: {path}");
            }
            let (ours, theirs) = (node(&engine, "top/d1/f005").await, node(&reader, "top/d1/f005").await);
            assert_eq!(engine.listxattr(ours).await.unwrap(), reader.listxattr(theirs).await.unwrap(), "{how}");
        }
    }
}

#[tokio::test]
async fn an_edit_keeps_what_was_not_asked_for() {
    for metadata in [Metadata::Auto, Metadata::None, Metadata::Posix] {
        for how in ["write", "truncate", "chmod", "setxattr", "rename"] {
            if metadata == Metadata::None && how == "setxattr" {
                continue;
            }
            let world = World::new();
            world.fill("before", 20, 2).await;
            world.put("top/d/file", &[("note", "kept")]).await;
            world.put("top/d/other", &[]).await;
            let engine = world.mount(metadata);
            walk(&engine, "before").await;
            walk(&engine, "top").await;
            world.counted.take();
            let (directory, ino) = (node(&engine, "top/d").await, node(&engine, "top/d/file").await);
            let mut key = "top/d/file";
            match how {
                "write" | "truncate" => {
                    let opened = engine.open(ino, OpenMode { truncate: how == "truncate", ..BOTH }).await.unwrap();
                    engine.write(opened.handle, 2, b"XX", false).unwrap();
                    engine.flush(opened.handle).await.unwrap();
                    engine.release(opened.handle).await;
                }
                "chmod" => {
                    engine.setattr(ino, SetAttr { perm: Some(0o700), ..SetAttr::default() }).await.map(|_| ()).unwrap()
                }
                "setxattr" => engine.setxattr(ino, "user.a", b"b", 0).await.unwrap(),
                _ => {
                    engine.rename(directory, b"file", directory, b"moved", false).await.unwrap();
                    key = "top/d/moved";
                }
            }
            let kept = world.attributes(key).await;
            assert_eq!(kept.metadata.get("note").map(String::as_str), Some("kept"), "{how} with {metadata:?}");
            assert_eq!(kept.content_type.as_deref(), Some("text/plain"), "{how} with {metadata:?}");
        }
    }
}

#[tokio::test]
async fn a_directory_stays_plain_while_nothing_else_is_stored_there() {
    let world = World::new();
    world.fill("top", 3, 3).await;
    let engine = world.mount(Metadata::Auto);
    walk(&engine, "top").await;
    let directory = node(&engine, "top/d1").await;
    let opened = engine.create(directory, b"result", 0o644, 0, 0, BOTH).await.unwrap();
    engine.write(opened.handle, 0, b"more", false).unwrap();
    engine.flush(opened.handle).await.unwrap();
    engine.release(opened.handle).await;
    for name in ["f000", "f001", "f002"] {
        engine.unlink(directory, name.as_bytes()).await.unwrap();
    }
    assert!(world.bucket.head(&ObjectKey::new("top/d1/").unwrap()).await.is_err());
    assert_eq!(stat(&world.mount(Metadata::Auto), "top/d1/result").await.perm, 0o644);
    // With its last file it would be gone.
    engine.unlink(directory, b"result").await.unwrap();
    assert_eq!(stat(&world.mount(Metadata::Auto), "top/d1").await.kind, Kind::Directory);
}

/// Another mount, with other keys, may have fetched what lies there.
#[tokio::test]
async fn who_may_list_a_file_is_asked_about_it_before_the_cache_gives_it() {
    const READ: OpenMode = OpenMode { write: false, ..BOTH };
    for metadata in [Metadata::Auto, Metadata::None] {
        let world = World::new();
        world.fill("top", 20, 2).await;
        let (bucket, faults) = Faults::new(Arc::clone(&world.bucket), FaultPlan::default());
        let mount = || {
            let mut options = world.options(metadata, Duration::from_secs(60));
            options.cache = Some((world.staging.path().join("cache"), 1 << 20));
            Engine::new(Arc::clone(&bucket), options, tokio::runtime::Handle::current()).unwrap()
        };
        let first = mount();
        let opened = first.open(node(&first, "top/d9/f001").await, READ).await.unwrap();
        assert_eq!(first.read(opened.handle, 0, 4).await.unwrap().concat(), b"data");

        let second = mount();
        walk(&second, "top").await;
        let ino = node(&second, "top/d9/f001").await;
        world.counted.take();
        let opened = second.open(ino, READ).await.unwrap();
        assert_eq!(second.read(opened.handle, 0, 4).await.unwrap().concat(), b"data");
        let asked = world.counted.take().operations;
        assert_eq!((asked.get("head"), asked.get("get")), (None, Some(&1)), "{metadata:?}");

        let third = mount();
        walk(&third, "top").await;
        let ino = node(&third, "top/d9/f001").await;
        faults.set_down(true);
        let opened = third.open(ino, READ).await.unwrap();
        third.read(opened.handle, 0, 4).await.unwrap_err();
        assert!(third.whole_copy(opened.handle).await.is_none());
    }
}

/// A copy in the store has a time of its own, and nothing else keeps that of a plain file.
#[tokio::test]
async fn a_moved_plain_file_shows_the_time_that_other_mounts_show() {
    for (from, to) in [("top/d0", "moved"), ("top/d1/f000", "file")] {
        for metadata in [Metadata::Auto, Metadata::Posix] {
            let world = World::new();
            world.fill("top", 4, 3).await;
            let engine = world.mount(metadata);
            walk(&engine, "top").await;
            // Stores tell seconds.
            tokio::time::sleep(Duration::from_millis(1100)).await;
            let (parent, name) = from.rsplit_once('/').unwrap();
            let parent = node(&engine, parent).await;
            engine.rename(parent, name.as_bytes(), ROOT, to.as_bytes(), false).await.unwrap();
            let path = if to == "moved" { "moved/f001" } else { to };
            let seconds = |attr: Attr| attr.mtime.secs;
            assert_eq!(seconds(stat(&engine, path).await), seconds(stat(&world.mount(metadata), path).await), "{path}");
        }
    }
}
