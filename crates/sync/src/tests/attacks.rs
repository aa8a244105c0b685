//! What a hostile guest does in the directory.

use super::*;
use crate::root::{Bounds, Root, RootError};
use std::os::unix::fs::symlink;

fn mkfifo(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o666), 0)
        .unwrap();
}

fn root(both: &Both) -> Root {
    Root::new(open_directory(&both.root()).unwrap(), both.options().owner, 0..u32::MAX)
}

#[tokio::test]
async fn links_are_carried_and_never_followed() {
    let both = Both::new();
    let secret = both.temp.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("key"), "do not tell").unwrap();
    symlink(secret.join("key"), both.path("file")).unwrap();
    symlink(&secret, both.path("dir")).unwrap();
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    for (key, content) in both.objects().await {
        assert!(!content.contains("do not tell"), "{key}");
    }
    // The bucket has a directory under the link's name now: nothing is written through the link.
    both.put("dir/planted", "planted").await;
    quiesce(&mut engine).await;
    assert!(!secret.join("planted").exists());
    assert_eq!(both.read("dir/planted").as_deref(), Some("planted"));
    assert!(!fs::symlink_metadata(both.path("dir")).unwrap().is_symlink());
    assert_eq!(fs::read_dir(&secret).unwrap().count(), 1);
}

#[tokio::test]
async fn a_directory_swapped_for_a_link_is_not_read_written_or_emptied_through() {
    let both = Both::new();
    let secret = both.temp.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("f"), "secret").unwrap();
    both.write("d/f", "plain");
    let root = root(&both);
    let seen = root.scan(0, false).unwrap().files["d/f"].stamp;
    fs::rename(both.path("d"), both.path("moved")).unwrap();
    symlink(&secret, both.path("d")).unwrap();
    assert!(matches!(root.read("d/f", 100), Err(RootError::Busy)));
    assert!(matches!(root.temp_file("d/g"), Err(RootError::Busy)));
    assert!(matches!(root.remove_file("d/f", &seen), Err(RootError::Busy)));
    assert!(matches!(root.make_dirs("d/e", 0o755), Err(RootError::Busy)));
    assert_eq!(root.stamp("d/f").unwrap(), None);
    assert_eq!(fs::read_dir(&secret).unwrap().count(), 1);
    for path in ["../secret/f", "/etc/passwd", "d/../../secret/f"] {
        root.read(path, 100).unwrap_err();
    }
}

#[tokio::test]
async fn a_directory_moved_away_during_a_download_gets_nothing() {
    let both = Both::new();
    fs::create_dir(both.path("d")).unwrap();
    let root = root(&both);
    let (temp, _file) = root.temp_file("d/f").unwrap();
    fs::rename(both.path("d"), both.path("moved")).unwrap();
    fs::create_dir(both.path("d")).unwrap();
    assert!(matches!(root.give_name(temp, "d/f", None, 0o644, 0), Err(RootError::Busy)));
    assert_eq!(fs::read_dir(both.path("d")).unwrap().count() + fs::read_dir(both.path("moved")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_newer_file_is_not_replaced_or_removed() {
    let both = Both::new();
    both.write("f", "first");
    let root = root(&both);
    let seen = root.stamp("f").unwrap().unwrap();
    both.write("f", "second, longer");
    let (temp, _file) = root.temp_file("f").unwrap();
    assert!(matches!(root.give_name(temp, "f", Some(&seen), 0o644, 0), Err(RootError::Busy)));
    let (temp, _file) = root.temp_file("f").unwrap();
    assert!(matches!(root.give_name(temp, "f", None, 0o644, 0), Err(RootError::Busy)));
    assert!(matches!(root.remove_file("f", &seen), Err(RootError::Busy)));
    assert_eq!(both.files(), BTreeMap::from([("f".to_owned(), "second, longer".to_owned())]));
}

#[tokio::test]
async fn fifos_and_sockets_are_left_alone_without_waiting() {
    let both = Both::new();
    both.write("f", "F");
    both.write("g", "G");
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    // A FIFO in the place of a known file is no removal.
    fs::remove_file(both.path("f")).unwrap();
    mkfifo(&both.path("f"));
    mkfifo(&both.path("other"));
    let _socket = std::os::unix::net::UnixListener::bind(both.path("socket")).unwrap();
    quiesce(&mut engine).await;
    assert_eq!(both.keys().await, ["f", "g"]);
    assert_eq!(engine.report.skipped, 3);
    both.put("other", "O").await;
    quiesce(&mut engine).await;
    assert!(matches!(root(&both).read("f", 100), Err(RootError::Busy)));
}

#[tokio::test]
async fn set_id_bits_do_not_come_down() {
    let both = Both::new();
    let mut attributes = ObjectAttributes::default();
    attributes.metadata.insert("mode".into(), 0o106_755.to_string());
    both.put_as("su", "program", attributes).await;
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    assert_eq!(fs::metadata(both.path("su")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(engine.report.uploaded, 0);
}

#[tokio::test]
async fn leftovers_of_a_killed_sync_are_removed_at_the_start() {
    let both = Both::new();
    both.write("d/.sandpail-sync-0123456789abcdef", "half a file");
    both.write(".sandpail-sync-mine", "a guest's own");
    both.write("f", "F");
    fs::create_dir(both.path(".sandpail-sync-0123456789abcdee")).unwrap();
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    assert_eq!(both.keys().await, ["d/", "f"]);
    assert_eq!(both.files().into_keys().collect::<Vec<_>>(), [".sandpail-sync-mine", "d/", "f"]);
}

#[tokio::test]
async fn a_tree_too_deep_is_left_alone() {
    let both = Both::new();
    fs::create_dir_all(both.path(&vec!["d"; 200].join("/"))).unwrap();
    both.write("f", "F");
    let mut engine = both.engine().await;
    quiesce(&mut engine).await;
    assert_eq!(both.get("f").await.as_deref(), Some("F"));
    assert_eq!(engine.report.skipped, 1);
}

#[tokio::test]
async fn a_file_that_pretends_to_be_endless_is_reported_and_holds_up_nothing() {
    let both = Both::new();
    fs::File::create(both.path("endless")).unwrap().set_len(8 << 40).unwrap();
    both.write("f", "F");
    let mut engine = both.engine().await;
    engine.round(Pace { hurry: true }).await.unwrap();
    assert_eq!(both.keys().await, ["f"]);
    let [(path, reason)] = engine.report.failed.as_slice() else { panic!("{:?}", engine.report) };
    assert_eq!(path, "endless");
    assert!(reason.contains("more than an object can have"), "{reason}");
}

#[tokio::test]
async fn files_of_others_are_left_alone() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let both = Both::new();
    for (path, owner) in [("own", 5), ("foreign", 0), ("dir/below", 5)] {
        both.write(path, path);
        std::os::unix::fs::chown(both.path(path), Some(owner), Some(5)).unwrap();
    }
    // The group counts too.
    both.write("group", "group");
    std::os::unix::fs::chown(both.path("group"), Some(5), Some(0)).unwrap();
    std::os::unix::fs::lchown(both.root(), Some(5), Some(5)).unwrap();
    let mut engine = Engine::new(SyncOptions { owner: (5, 5), ids: 5..6, ..both.options() }).await.unwrap();
    engine.set_times(Duration::ZERO, Duration::ZERO);
    quiesce(&mut engine).await;
    // `dir` itself is the host's: nothing below it is looked at either.
    assert_eq!(both.keys().await, ["own"]);
    assert_eq!(engine.report.skipped, 3);
    let root = Root::new(open_directory(&both.root()).unwrap(), (5, 5), 5..6);
    assert!(matches!(root.read("foreign", 100), Err(RootError::Io(_))));
    // Nor do they count as removed, or give way to the bucket's.
    both.put("foreign", "the bucket's").await;
    quiesce(&mut engine).await;
    assert_eq!(both.read("foreign").as_deref(), Some("foreign"));
    assert_eq!(both.get("foreign").await.as_deref(), Some("the bucket's"));
}

#[tokio::test]
async fn a_directory_of_others_or_of_the_kernel_is_refused() {
    let both = Both::new();
    let refused = |options: SyncOptions| async { Engine::new(options).await.unwrap_err().to_string() };
    let why = refused(SyncOptions { ids: 1_000_000..1_065_536, ..both.options() }).await;
    assert!(why.contains("does not belong to the sandbox"), "{why}");
    for path in ["/proc", "/proc/self/task", "/sys"] {
        let why = refused(SyncOptions { directory: open_directory(Path::new(path)).unwrap(), ..both.options() }).await;
        assert!(why.contains("the kernel's words"), "{path}: {why}");
    }
}

#[tokio::test]
async fn many_and_long_paths_are_bounded() {
    let both = Both::new();
    let name = "n".repeat(250);
    let deep = [name.as_str(); 4].join("/");
    both.write(&format!("{deep}/0123456789"), "still a key");
    both.write(&format!("{deep}/{name}"), "longer than a key");
    let mut root = root(&both);
    let tree = root.scan(0, false).unwrap();
    assert_eq!((tree.files.len(), tree.dirs.len(), tree.blocked.len(), tree.skipped), (1, 4, 0, 1));
    let total: usize = tree.files.keys().chain(&tree.dirs).map(String::len).sum();
    root.set_bounds(Bounds { entry_count: 100, path_bytes: total });
    root.scan(0, false).unwrap();
    root.set_bounds(Bounds { entry_count: 100, path_bytes: total - 1 });
    let why = root.scan(0, false).unwrap_err().to_string();
    assert!(why.contains("bytes"), "{why}");
    root.set_bounds(Bounds { entry_count: 8, path_bytes: total });
    let why = root.scan(0, false).unwrap_err().to_string();
    assert!(why.contains("more than 8 entries"), "{why}");
}

#[tokio::test]
async fn a_long_look_makes_a_long_pause() {
    let both = Both::new();
    for number in 0..300 {
        both.write(&format!("{number}"), "");
    }
    let options = SyncOptions { interval: Duration::from_millis(10), ..both.options() };
    let sync = crate::Sync::start(options).await.unwrap();
    let look_time = *sync.shared.look_time();
    assert!(look_time > Duration::ZERO);
    *sync.shared.look_time() = Duration::from_secs(3);
    assert_eq!(sync.shared.pause(), Duration::from_secs(30));
    *sync.shared.look_time() = Duration::from_micros(1);
    assert_eq!(sync.shared.pause(), Duration::from_millis(10));
}
