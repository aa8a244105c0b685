//! What only a directory can get wrong: crashes, other processes, foreign files, size.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sandpail_store::dir::{DirOptions, DirStore};
use sandpail_store::{
    Condition, CopySource, ListRequest, ObjectAttributes, ObjectKey, PutBody, Store, StoreError, collect,
};

const CHILD_DIRECTORY: &str = "SANDPAIL_TEST_DIRECTORY";
const CHILD_SEED: &str = "SANDPAIL_TEST_SEED";

fn key(key: &str) -> ObjectKey {
    ObjectKey::new(key).unwrap()
}

async fn put(store: &DirStore, name: &str, data: impl Into<Bytes>) {
    let body = PutBody::from(data.into());
    store.put(&key(name), body, &ObjectAttributes::default(), &Condition::Always).await.unwrap();
}

async fn list_all(store: &DirStore, request: &ListRequest) -> Vec<String> {
    let mut request = request.clone();
    let mut keys = Vec::new();
    loop {
        let page = store.list(&request).await.unwrap();
        keys.extend(page.objects.into_iter().map(|object| object.key));
        keys.extend(page.prefixes);
        match page.next {
            Some(next) => request.continuation = Some(next),
            None => return keys,
        }
    }
}

/// Content that shows by itself whether it is whole: a counter, over and over.
fn content(count: u64, len: usize) -> Vec<u8> {
    count.to_le_bytes().into_iter().cycle().take(len.max(8)).collect()
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Not a test of its own: the writer that the next test kills. Says `key count` after each acknowledged write.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_writes_until_it_is_killed() {
    let Ok(directory) = std::env::var(CHILD_DIRECTORY) else { return };
    let seed: u64 = std::env::var(CHILD_SEED).unwrap().parse().unwrap();
    let store = DirStore::open(directory).unwrap();
    let writers = (0..4u64).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut state = (seed << 8 | writer << 1 | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for count in seed * 1_000_000.. {
                let name = format!("w{writer}/{}/k{}", next(&mut state) % 3, next(&mut state) % 3);
                let data = content(count, usize::try_from(next(&mut state) % 200_000).unwrap());
                match next(&mut state) % 4 {
                    0 => {
                        let id = store.create_multipart(&key(&name), &ObjectAttributes::default()).await.unwrap();
                        let part = store.upload_part(&key(&name), &id, 1, Bytes::from(data).into()).await.unwrap();
                        store.complete_multipart(&key(&name), &id, &[part], &Condition::Always).await.unwrap();
                    }
                    1 => {
                        // Directories come and go meanwhile.
                        store.delete(&key(&format!("w{writer}/gone/a/b")), None).await.unwrap();
                        put(&store, &format!("w{writer}/gone/a/b"), data.clone()).await;
                        put(&store, &name, data).await;
                    }
                    _ => put(&store, &name, data).await,
                }
                let mut out = std::io::stdout().lock();
                writeln!(out, "acknowledged {name} {count}").unwrap();
                out.flush().unwrap();
            }
        })
    });
    futures_util::future::join_all(writers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_leaves_only_whole_objects() {
    let directory = tempfile::tempdir().unwrap();
    let bucket = directory.path().join("bucket");
    DirStore::create(&bucket).unwrap();
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    for round in 1..=12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD_DIRECTORY, &bucket)
            .env(CHILD_SEED, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            let words = |line: String| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
            lines.map_while(Result::ok).map(words).filter(|words| words[0] == "acknowledged").collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_millis(150 + round * 37 % 150));
        child.kill().unwrap();
        child.wait().unwrap();
        for words in reader.join().unwrap() {
            // The last line may have been cut.
            if let [_, name, count] = &words[..]
                && let Ok(count) = count.parse::<u64>()
            {
                let newest = acknowledged.entry(name.clone()).or_default();
                *newest = count.max(*newest);
            }
        }

        let store = DirStore::open(&bucket).unwrap();
        assert_eq!(std::fs::read_dir(bucket.join("tmp")).unwrap().count(), 0, "round {round}: temporary files stay");
        let mut found = BTreeMap::new();
        for name in list_all(&store, &ListRequest::default()).await {
            let download = store.get(&key(&name), 0..u64::MAX, None).await.unwrap();
            let data = collect(download, usize::MAX).await.unwrap();
            let count = u64::from_le_bytes(data[..8].try_into().unwrap());
            assert!(data == content(count, data.len()), "round {round}: {name} is mixed");
            found.insert(name, count);
        }
        for (name, count) in &acknowledged {
            assert!(found.get(name) >= Some(count), "round {round}: {name} is {:?}, not {count}", found.get(name));
        }
        // What was begun and not ended can be found and ended.
        for upload in store.list_multipart("").await.unwrap() {
            store.abort_multipart(&key(&upload.key), &upload.id).await.unwrap();
        }
        assert_eq!(std::fs::read_dir(bucket.join("uploads")).unwrap().count(), 0, "round {round}: uploads stay");
    }
    assert!(acknowledged.len() > 20, "only {} keys were written", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_openers_share_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    DirStore::create(directory.path()).unwrap();
    let open = || DirStore::open_with(directory.path(), DirOptions { durable: false }).unwrap();
    let stores = [open(), open()];
    for round in 0..50 {
        let name = format!("race/{round}/x");
        let tries = (0..8usize).map(|number| {
            let (store, name) = (stores[number % 2].clone(), key(&name));
            tokio::spawn(async move {
                let body = Bytes::from(number.to_string()).into();
                store.put(&name, body, &ObjectAttributes::default(), &Condition::Absent).await.is_ok()
            })
        });
        let won = futures_util::future::join_all(tries).await;
        assert_eq!(won.into_iter().filter(|won| *won.as_ref().unwrap()).count(), 1, "round {round}");
    }
    // Directories that one prunes while the other fills them.
    let workers = (0..8usize).map(|number| {
        let store = stores[number % 2].clone();
        tokio::spawn(async move {
            for _ in 0..200 {
                let name = format!("deep/a/b/c/d/{number}");
                put(&store, &name, "x").await;
                store.head(&key(&name)).await.unwrap();
                store.delete(&key(&name), None).await.unwrap();
            }
        })
    });
    for worker in futures_util::future::join_all(workers).await {
        worker.unwrap();
    }
    let request = ListRequest { prefix: "deep/".into(), ..ListRequest::default() };
    assert_eq!(list_all(&stores[0], &request).await, Vec::<String>::new());
}

#[tokio::test]
async fn opening_spares_what_others_are_writing() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirStore::create(directory.path()).unwrap();
    let upload = store.create_multipart(&key("u"), &ObjectAttributes::default()).await.unwrap();
    let stale = directory.path().join("tmp/stale");
    std::fs::write(&stale, "left behind").unwrap();
    let busy = directory.path().join("tmp/busy");
    let held = std::fs::File::create(&busy).unwrap();
    held.lock().unwrap();
    std::fs::create_dir(directory.path().join("uploads/0123")).unwrap();
    DirStore::open(directory.path()).unwrap();
    assert!(!stale.exists() && busy.exists());
    assert!(!directory.path().join("uploads/0123").exists());
    assert_eq!(store.list_multipart("").await.unwrap()[0].id, upload);
}

#[tokio::test]
async fn directories_are_marked_until_their_names_are_durable() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirStore::create(directory.path()).unwrap();
    let outer = directory.path().join("objects/a%d");
    let is_marked = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o1000 != 0;
    put(&store, "a/b/c", "x").await;
    assert!(!is_marked(&outer) && !is_marked(&outer.join("b%d")));
    // As one who was killed between the two has left it.
    std::fs::set_permissions(&outer, std::fs::Permissions::from_mode(0o1755)).unwrap();
    put(&store, "a/b/d", "x").await;
    assert!(!is_marked(&outer));
}

#[tokio::test]
async fn a_part_that_was_damaged_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirStore::create(directory.path()).unwrap();
    let (name, none) = (key("u"), ObjectAttributes::default());
    put(&store, "source", "0123456789").await;
    let source = CopySource { key: key("source"), etag: None };
    for is_copy in [false, true] {
        let id = store.create_multipart(&name, &none).await.unwrap();
        let upload = async || match is_copy {
            true => store.upload_part_copy(&name, &id, 1, &source, 2..8).await.unwrap(),
            false => store.upload_part(&name, &id, 1, Bytes::from_static(b"234567").into()).await.unwrap(),
        };
        let part = upload().await;
        let path = directory.path().join("uploads").join(&id.0).join("part-00001");
        let mut bytes = std::fs::read(&path).unwrap();
        // As if the page had not come to the disk, while what describes it had.
        bytes[..6].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let told = store.complete_multipart(&name, &id, std::slice::from_ref(&part), &Condition::Always).await;
        let told = told.unwrap_err();
        assert!(
            matches!(told, StoreError::Invalid { .. }) && told.to_string().contains("part 1 was damaged"),
            "{told}"
        );
        std::fs::write(&path, &bytes[..9]).unwrap();
        assert_eq!(store.list_parts(&name, &id).await.unwrap(), []);
        let told = store.complete_multipart(&name, &id, std::slice::from_ref(&part), &Condition::Always).await;
        assert!(matches!(told, Err(StoreError::Invalid { .. })), "{told:?}");
        // The upload goes on.
        let part = upload().await;
        store.complete_multipart(&name, &id, &[part], &Condition::Always).await.unwrap();
        let download = store.get(&name, 0..6, None).await.unwrap();
        assert_eq!(collect(download, 10).await.unwrap(), "234567");
    }
}

#[tokio::test]
async fn an_upload_that_cannot_be_read_is_swept() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirStore::create(directory.path()).unwrap();
    let id = store.create_multipart(&key("u"), &ObjectAttributes::default()).await.unwrap();
    let upload = directory.path().join("uploads").join(&id.0);
    std::fs::write(upload.join("upload.json"), [0; 60]).unwrap();
    DirStore::open(directory.path()).unwrap();
    assert!(!upload.exists());
}

#[tokio::test]
async fn damaged_and_foreign_files_are_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirStore::create(directory.path()).unwrap();
    for name in ["a", "b", "dir/c"] {
        put(&store, name, name).await;
    }
    let objects = directory.path().join("objects");
    let whole = std::fs::read(objects.join("b")).unwrap();
    std::fs::write(objects.join("b"), &whole[..whole.len() - 3]).unwrap();
    std::fs::write(objects.join("foreign"), "no trailer").unwrap();
    std::fs::write(objects.join("%zz"), "no name").unwrap();
    std::fs::create_dir(objects.join("a directory")).unwrap();
    std::fs::write(objects.join("file%d"), "not a directory").unwrap();
    std::os::unix::fs::symlink("/nowhere", objects.join("link")).unwrap();
    assert_eq!(list_all(&store, &ListRequest::default()).await, ["a", "dir/c"]);
    let delimited = ListRequest { delimited: true, ..ListRequest::default() };
    assert_eq!(list_all(&store, &delimited).await, ["a", "dir/"]);
    assert!(matches!(store.head(&key("b")).await, Err(StoreError::Integrity { .. })));
    assert!(matches!(store.head(&key("file/x")).await, Err(StoreError::NotFound { .. })));
    // It can be replaced and removed, but is not taken for absent.
    let refused = store.put(&key("b"), PutBody::empty(), &ObjectAttributes::default(), &Condition::Absent).await;
    assert!(matches!(refused, Err(StoreError::Precondition { .. })));
    put(&store, "b", "new").await;
    store.delete(&key("b"), None).await.unwrap();
}

#[tokio::test]
async fn what_is_no_bucket_says_how_to_make_one() {
    let directory = tempfile::tempdir().unwrap();
    let told = |result: Result<DirStore, StoreError>| result.unwrap_err().to_string();
    let told_open = told(DirStore::open(directory.path()));
    assert!(
        told_open.contains("is not a sandpail bucket directory; make one with: sandpail bucket create"),
        "{told_open}"
    );
    let missing = DirStore::open(directory.path().join("missing"));
    assert!(matches!(missing, Err(StoreError::NoSuchBucket { .. })), "{missing:?}");
    std::fs::write(directory.path().join("mine"), "precious").unwrap();
    let told_create = told(DirStore::create(directory.path()));
    assert!(told_create.contains("is not empty") && told_create.contains("mine"), "{told_create}");

    let bucket = directory.path().join("bucket");
    DirStore::create(&bucket).unwrap();
    DirStore::create(&bucket).unwrap();
    let marker = bucket.join("sandpail-bucket.json");
    std::fs::write(&marker, r#"{"format":"sandpail-bucket","version":99}"#).unwrap();
    assert!(told(DirStore::open(&bucket)).contains("bucket format 99"));
    std::fs::write(&marker, "garbage").unwrap();
    assert!(told(DirStore::open(&bucket)).contains("is not a sandpail bucket's marker"));
}

#[tokio::test]
async fn a_removed_bucket_is_missed_and_not_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let bucket = directory.path().join("bucket");
    let store = DirStore::create(&bucket).unwrap();
    std::fs::remove_dir_all(&bucket).unwrap();
    assert!(matches!(store.check_bucket("").await, Err(StoreError::NoSuchBucket { .. })));
    let none = ObjectAttributes::default();
    store.put(&key("a/b"), PutBody::empty(), &none, &Condition::Always).await.unwrap_err();
    assert!(!bucket.exists());
}

/// Fills one flat directory and pages through it. `SANDPAIL_TEST_KEYS=100000` for the full form.
#[tokio::test(flavor = "multi_thread")]
async fn a_big_directory_is_listed_page_by_page() {
    let count: usize = std::env::var("SANDPAIL_TEST_KEYS").map_or(5_000, |count| count.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    DirStore::create(directory.path()).unwrap();
    let store = Arc::new(DirStore::open_with(directory.path(), DirOptions { durable: false }).unwrap());
    let begun = Instant::now();
    let writers = (0..4).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for number in (writer..count).step_by(4) {
                put(&store, &format!("big/key-{number:06}"), "x").await;
            }
        })
    });
    futures_util::future::join_all(writers).await;
    put(&store, "after/x", "x").await;
    println!("{count} objects written in {:?}", begun.elapsed());
    // So old that its names may be kept.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for delimited in [false, true] {
        let begun = Instant::now();
        let request = ListRequest { prefix: "big/".into(), delimited, ..ListRequest::default() };
        let keys = list_all(&store, &request).await;
        println!("{count} keys listed in {:?}", begun.elapsed());
        assert_eq!(keys.len(), count);
        assert!(keys.is_sorted());
    }
    let begun = Instant::now();
    let request = ListRequest { delimited: true, ..ListRequest::default() };
    assert_eq!(list_all(&store, &request).await, ["after/", "big/"]);
    println!("rolled up in {:?}", begun.elapsed());
    // A change is seen at once, even though names were kept.
    store.delete(&key("big/key-000007"), None).await.unwrap();
    put(&store, "big/key-000007.5", "x").await;
    let request = ListRequest { prefix: "big/key-000007".into(), ..ListRequest::default() };
    assert_eq!(list_all(&store, &request).await, ["big/key-000007.5"]);
    print_peak_memory(Path::new("/proc/self/status"));
}

fn print_peak_memory(status: &Path) {
    let status = std::fs::read_to_string(status).unwrap_or_default();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
}
