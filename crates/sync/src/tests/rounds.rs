//! What a round must do, case by case.

use super::*;
use sandpail_store::Capabilities;
use sandpail_testkit::faults::{Counted, FaultPlan, Faults};

fn mode(mode: u32) -> ObjectAttributes {
    let mut attributes = ObjectAttributes::default();
    attributes.metadata.insert("mode".into(), mode.to_string());
    attributes
}

#[tokio::test]
async fn both_sides_are_united_and_then_follow_each_other() {
    let both = Both::new();
    both.write("here/a.txt", "A");
    both.put("there/b +%ä.txt", "B").await;
    both.put("same", "S").await;
    both.write("same", "S");
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    assert_eq!(both.read("there/b +%ä.txt").as_deref(), Some("B"));
    assert_eq!(both.get("here/a.txt").await.as_deref(), Some("A"));
    assert_eq!((engine.report.uploaded, engine.report.downloaded, engine.report.conflicts), (1, 1, 0));

    both.write("here/a.txt", "A2");
    both.put("there/b +%ä.txt", "B2").await;
    both.delete("same").await;
    quiesce(&mut engine).await;
    assert_eq!(both.get("here/a.txt").await.as_deref(), Some("A2"));
    assert_eq!(both.read("there/b +%ä.txt").as_deref(), Some("B2"));
    assert_eq!(both.read("same"), None);

    fs::remove_file(both.path("here/a.txt")).unwrap();
    quiesce(&mut engine).await;
    assert_eq!(both.get("here/a.txt").await, None);
    // The directory stays, although the bucket knew it only by its file.
    assert_eq!(both.keys().await, ["here/", "there/b +%ä.txt"]);
    assert!(both.path("here").is_dir());
}

#[tokio::test]
async fn own_writes_are_no_changes() {
    let mut both = Both::new();
    let (store, counted) = Counted::new(Arc::clone(&both.store));
    both.store = store;
    both.write("a", "A");
    both.put("b", "B").await;
    both.put("d/", "").await;
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    counted.take();
    for _ in 0..3 {
        assert_eq!(engine.round(Pace::default()).await.unwrap(), Outcome::default());
    }
    // Nothing is read, nothing is asked: one listing per round.
    assert_eq!(counted.take().operations, BTreeMap::from([("list", 3)]));
    // New times on the same content are none either.
    fs::File::open(both.path("a")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    engine.round(Pace::default()).await.unwrap();
    assert_eq!(counted.take().operations, BTreeMap::from([("list", 1)]));
}

#[tokio::test]
async fn empty_directories_go_both_ways() {
    let both = Both::new();
    fs::create_dir_all(both.path("up/deep")).unwrap();
    both.put("down/deep/", "").await;
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    assert_eq!(both.keys().await, ["down/deep/", "up/deep/"]);
    assert!(both.path("down/deep").is_dir());
    fs::remove_dir_all(both.path("down")).unwrap();
    both.delete("up/deep/").await;
    quiesce(&mut engine).await;
    assert_eq!(both.keys().await, [""; 0]);
    assert_eq!(both.files(), BTreeMap::new());
}

#[tokio::test]
async fn permissions_times_and_links_survive_the_round_trip() {
    let both = Both::new();
    both.write("run.sh", "#!/bin/sh");
    fs::set_permissions(both.path("run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink("../outside", both.path("link")).unwrap();
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    let object = both.bucket.head(&ObjectKey::new("link").unwrap()).await.unwrap();
    assert_eq!((object.attributes.metadata["mode"].as_str(), object.size), ("41471", 10));

    let mut other = Both::new();
    other.store = Arc::clone(&both.store);
    other.bucket = both.bucket.clone();
    let mut second = other.engine().await;
    quiesce(&mut second).await;
    assert_eq!(fs::read_link(other.path("link")).unwrap(), Path::new("../outside"));
    let (here, there) = (fs::metadata(both.path("run.sh")).unwrap(), fs::metadata(other.path("run.sh")).unwrap());
    assert_eq!((here.mode(), here.mtime(), here.mtime_nsec()), (there.mode(), there.mtime(), there.mtime_nsec()));
    // A change of the mode alone is carried over too, although the tag is the same.
    fs::set_permissions(both.path("run.sh"), fs::Permissions::from_mode(0o600)).unwrap();
    quiesce(&mut engine).await;
    quiesce(&mut second).await;
    assert_eq!(fs::metadata(other.path("run.sh")).unwrap().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn a_conflict_keeps_both_on_both_sides() {
    let both = Both::new();
    both.write("d/f.txt", "old");
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    both.write("d/f.txt", "from here");
    both.put_as("d/f.txt", "from there", mode(0o100_640)).await;
    quiesce(&mut engine).await;
    let objects = both.objects().await;
    assert_eq!(objects, both.files());
    assert_eq!(objects.len(), 2);
    assert_eq!(objects["d/f.txt"], "from here");
    let (name, content) = objects.iter().find(|(name, _)| *name != "d/f.txt").unwrap();
    assert!(name.starts_with("d/f.txt (conflict "), "{name}");
    assert_eq!(content, "from there");
    assert_eq!(engine.report.conflicts, 1);
    // What is equal is no conflict.
    both.write("d/f.txt", "the same");
    both.put("d/f.txt", "the same").await;
    quiesce(&mut engine).await;
    assert_eq!(engine.report.conflicts, 1);
}

#[tokio::test]
async fn against_a_removal_the_change_wins() {
    let both = Both::new();
    both.write("a", "A");
    both.write("b", "B");
    both.write("c", "C");
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    fs::remove_file(both.path("a")).unwrap();
    both.put("a", "A2").await;
    both.delete("b").await;
    both.write("b", "B2");
    quiesce(&mut engine).await;
    let expected = BTreeMap::from([("a", "A2"), ("b", "B2"), ("c", "C")]);
    assert_eq!(both.files(), expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
    assert_eq!(both.objects().await, both.files());
}

#[tokio::test]
async fn a_file_and_a_directory_change_places() {
    let both = Both::new();
    both.write("x", "file");
    both.write("y/below", "below");
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    // Here the file becomes a directory, there the directory becomes a file.
    fs::remove_file(both.path("x")).unwrap();
    both.write("x/inside", "inside");
    both.delete("y/below").await;
    both.put("y", "file now").await;
    quiesce(&mut engine).await;
    assert_eq!(both.keys().await, ["x/inside", "y"]);
    assert_eq!(both.files(), both.objects().await);
    // Both at once: the directory has the name, and the file is kept.
    both.write("z", "mine");
    both.put("z/theirs", "theirs").await;
    quiesce(&mut engine).await;
    assert_eq!(both.read("z/theirs").as_deref(), Some("theirs"));
    assert_eq!(both.files(), both.objects().await);
    assert!(both.files().iter().any(|(name, content)| name.starts_with("z (conflict ") && content == "mine"));
}

#[tokio::test]
async fn keys_that_cannot_be_files_are_counted_and_left() {
    let both = Both::new();
    let long = "n".repeat(300);
    for key in ["a//b", "../up", "f", "f/g", "..", ".sandpail-sync-0123456789abcdef", &long] {
        both.put(key, key).await;
    }
    let before = both.keys().await;
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    assert_eq!(both.files(), BTreeMap::from([("f/g".to_owned(), "f/g".to_owned())]));
    assert_eq!(engine.report.skipped, 6);
    assert_eq!(both.keys().await, before);
    assert!(!both.temp.path().join("up").exists());
}

#[tokio::test]
async fn a_prefix_is_all_that_is_touched() {
    let mut both = Both::new();
    both.prefix = "/p/q";
    both.put("p/other", "o").await;
    both.put("p/q/in", "i").await;
    both.put("p/qq", "o").await;
    both.write("new", "n");
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    fs::remove_file(both.path("in")).unwrap();
    quiesce(&mut engine).await;
    assert_eq!(both.keys().await, ["p/other", "p/q/new", "p/qq"]);
}

#[tokio::test]
async fn read_only_syncs_put_back_what_the_bucket_has() {
    let mut both = Both::new();
    both.read_only = true;
    both.put("a", "A").await;
    both.put("b", "B").await;
    both.write("b", "was here before");
    both.write("mine", "M");
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    let keys = both.keys().await;
    assert_eq!(keys, ["a", "b"]);
    assert_eq!((both.read("a").as_deref(), both.read("b").as_deref()), (Some("A"), Some("B")));
    assert!(both.files().iter().any(|(name, text)| name.starts_with("b (conflict ") && text == "was here before"));
    both.write("a", "changed");
    fs::remove_file(both.path("b")).unwrap();
    quiesce(&mut engine).await;
    assert_eq!((both.read("a").as_deref(), both.read("b").as_deref()), (Some("A"), Some("B")));
    both.delete("a").await;
    quiesce(&mut engine).await;
    assert_eq!((both.read("a"), both.read("mine").as_deref()), (None, Some("M")));
    assert_eq!(both.keys().await, ["b"]);
}

#[tokio::test]
async fn a_restart_knows_what_was_equal() {
    let both = Both::new();
    for name in ["a", "b", "c", "d", "e"] {
        both.write(name, name);
    }
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    drop(engine);
    fs::remove_file(both.path("a")).unwrap();
    both.delete("b").await;
    both.write("c", "C2");
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    assert_eq!(both.keys().await, ["c", "d", "e"]);
    assert_eq!(both.files(), both.objects().await);
    assert_eq!((engine.report.uploaded, engine.report.downloaded, engine.report.deleted), (1, 0, 2));
    // Without the state nothing is removed.
    drop(engine);
    fs::remove_dir_all(both.temp.path().join("state")).unwrap();
    fs::remove_file(both.path("c")).unwrap();
    both.delete("d").await;
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    assert_eq!(both.keys().await, ["c", "d", "e"]);
    assert_eq!((both.files(), engine.report.deleted), (both.objects().await, 0));
}

#[tokio::test]
async fn emptiness_is_not_carried_over() {
    let both = Both::new();
    for name in ["a", "b", "c", "d", "e"] {
        both.write(name, name);
    }
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    fs::remove_dir_all(both.root()).unwrap_or_default();
    // The directory itself is gone: nothing at all is done.
    assert!(matches!(engine.round(Pace { hurry: true }).await, Err(SyncError::Directory { .. })));
    assert_eq!(both.keys().await.len(), 5);
    // A new one gets everything from the bucket.
    fs::create_dir(both.root()).unwrap();
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    assert_eq!(both.files(), both.objects().await);
    assert_eq!(both.keys().await.len(), 5);
    // Emptied while it ran: filled again when it stays so.
    for name in both.files().keys() {
        fs::remove_file(both.path(name)).unwrap();
    }
    for _ in 1..crate::run::EMPTY_ROUND_COUNT {
        assert!(engine.round(Pace { hurry: true }).await.unwrap().is_held);
        assert_eq!(engine.report.failed.len(), 1);
        assert_eq!(both.keys().await.len(), 5);
    }
    quiesce(&mut engine).await;
    assert_eq!((both.keys().await.len(), both.files()), (5, both.objects().await));
    // One file in an emptied directory does not make the removal of the others believable.
    for name in both.files().keys() {
        fs::remove_file(both.path(name)).unwrap();
    }
    assert!(engine.round(Pace { hurry: true }).await.unwrap().is_held);
    both.write("new", "N");
    quiesce(&mut engine).await;
    assert_eq!((both.keys().await.len(), both.files()), (6, both.objects().await));
    // Removals of some are carried over as ever.
    for name in ["a", "b", "new"] {
        fs::remove_file(both.path(name)).unwrap();
    }
    quiesce(&mut engine).await;
    assert_eq!(both.keys().await, ["c", "d", "e"]);
}

#[tokio::test]
async fn an_emptied_directory_is_filled_at_the_start() {
    let both = Both::new();
    for name in ["a", "b", "c", "d", "e"] {
        both.write(name, name);
    }
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    drop(engine);
    for name in both.files().keys() {
        fs::remove_file(both.path(name)).unwrap();
    }
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    assert_eq!((both.keys().await.len(), both.files()), (5, both.objects().await));
    // An emptied bucket is not believed at once either.
    for key in both.keys().await {
        both.delete(&key).await;
    }
    assert!(engine.round(Pace { hurry: true }).await.unwrap().is_held);
    assert_eq!(both.files().len(), 5);
    // It comes back: that was a hiccup.
    both.put("a", "a").await;
    engine.round(Pace { hurry: true }).await.unwrap();
    quiesce(&mut engine).await;
    assert_eq!((both.keys().await.len(), both.files()), (5, both.objects().await));
}

#[tokio::test]
async fn a_store_that_is_down_changes_nothing_and_is_caught_up_with() {
    let mut both = Both::new();
    let (store, faults) = Faults::new(Arc::clone(&both.store), FaultPlan::default());
    both.store = store;
    for name in ["a", "b", "c", "d", "e"] {
        both.write(name, name);
    }
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    faults.set_down(true);
    both.write("new", "N");
    fs::remove_file(both.path("a")).unwrap();
    assert!(matches!(engine.round(Pace { hurry: true }).await, Err(SyncError::Store(_))));
    assert_eq!(engine.report.failed.len(), 1);
    assert_eq!(both.files().len(), 5);
    faults.set_down(false);
    quiesce(&mut engine).await;
    assert_eq!(both.keys().await, ["b", "c", "d", "e", "new"]);
}

#[tokio::test]
async fn a_large_file_goes_in_parts_and_keeps_its_other_metadata() {
    let mut both = Both::new();
    both.bucket = MemoryStore::with_capabilities(Capabilities {
        conditional_put: false,
        conditional_delete: false,
        equal_parts: true,
        ..Capabilities::default()
    });
    let (store, counted) = Counted::new(Arc::new(both.bucket.clone()));
    both.store = store;
    let mut attributes = mode(0o100_644);
    attributes.content_type = Some("text/x-large".into());
    attributes.metadata.insert("owner-team".into(), "t".into());
    both.put_as("large", "small yet", attributes).await;
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    both.write("large", &"0123456789abcdef".repeat(20 << 16));
    quiesce(&mut engine).await;
    assert_eq!(counted.take().operations["upload_part"], 3);
    let info = both.bucket.head(&ObjectKey::new("large").unwrap()).await.unwrap();
    assert_eq!((info.size, info.attributes.content_type.as_deref()), (20 << 20, Some("text/x-large")));
    assert_eq!(info.attributes.metadata["owner-team"], "t");
    assert_eq!(both.objects().await, both.files());
}

#[tokio::test]
async fn a_file_that_is_being_written_waits() {
    let both = Both::new();
    let mut engine = both.engine().await;
    engine.set_times(Duration::from_secs(3600), Duration::ZERO);
    both.write("log", "line\n");
    for round in 1..=5 {
        assert!(engine.round(Pace::default()).await.unwrap().is_unfinished, "{round}");
        assert_eq!(both.keys().await.len(), 0);
    }
    // One that never rests goes up all the same.
    engine.round(Pace::default()).await.unwrap();
    assert_eq!(both.get("log").await.as_deref(), Some("line\n"));
    both.write("log", "line\nline\n");
    engine.round(Pace { hurry: true }).await.unwrap();
    assert_eq!(both.get("log").await.as_deref(), Some("line\nline\n"));
}

#[tokio::test]
async fn start_unites_and_stop_makes_a_last_look() {
    let mut both = Both::new();
    let (store, faults) = Faults::new(Arc::clone(&both.store), FaultPlan::default());
    both.store = store;
    both.write("a", "A");
    both.put("b", "B").await;
    let sync = crate::Sync::start(SyncOptions { interval: Duration::from_millis(20), ..both.options() }).await.unwrap();
    assert_eq!(both.files(), both.objects().await);
    both.write("c", "C");
    faults.set_down(true);
    sync.stop().await.unwrap_err();
    faults.set_down(false);
    sync.stop().await.unwrap();
    assert_eq!(both.get("c").await.as_deref(), Some("C"));
    // It has stopped.
    both.write("d", "D");
    sync.sync_now().await.unwrap();
    assert_eq!(both.get("d").await, None);
    faults.set_down(true);
    crate::Sync::start(both.options()).await.unwrap_err();
}
