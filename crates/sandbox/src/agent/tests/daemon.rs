//! The daemon's side, with an agent in a thread.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::super::protocol::{Answer, FrameKind, write_frame, write_json};
use super::super::{Agent, serve};
use super::files_in;
use crate::{ByteStream, FileEvent, SandboxError};

/// An agent in a thread.
fn agent() -> Agent {
    let stream = || UnixStream::pair().unwrap();
    let ((our_stdin, its_stdin), (our_stdout, its_stdout)) = (stream(), stream());
    std::thread::spawn(move || serve(its_stdin, its_stdout));
    let ours = |stream: UnixStream| {
        stream.set_nonblocking(true).unwrap();
        tokio::net::UnixStream::from_std(stream).unwrap()
    };
    Agent::new(ours(our_stdin), ours(our_stdout), ())
}

fn body(chunks: Vec<Result<Bytes, SandboxError>>) -> ByteStream {
    Box::pin(stream::iter(chunks))
}

#[tokio::test]
async fn large_files_go_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    let chunk = Bytes::from(vec![9; 3_000_000]);
    agent().write_file(&path, body(vec![Ok(chunk.clone()), Ok(chunk)]), 6_000_000).await.unwrap();
    assert_eq!(agent().stat(&path).await.unwrap().size, 6_000_000);
    let reader = agent().read_file(&path).await.unwrap();
    let read: Vec<_> = reader.body.map(Result::unwrap).collect().await;
    assert_eq!((reader.size, read.concat().len()), (6_000_000, 6_000_000));
}

#[tokio::test]
async fn an_empty_file_may_be_looked_at_more_than_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    fs::write(&path, "").unwrap();
    let mut reader = agent().read_file(&path).await.unwrap();
    for _ in 0..2 {
        assert!(reader.body.next().await.is_none());
    }
}

#[tokio::test]
async fn failed_uploads_say_why_and_leave_the_old_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    fs::write(&path, "old").unwrap();
    let chunk = || Ok(Bytes::from(vec![9; 300_000]));
    let error = agent().write_file(&path, body(vec![chunk(), chunk()]), 599_999).await.unwrap_err();
    assert!(matches!(error, SandboxError::TooLarge { len: 600_000, limit: 599_999 }), "{error}");
    let error = agent().write_file(&path, body(vec![chunk(), Err(SandboxError::Gone)]), 1 << 30).await.unwrap_err();
    assert!(matches!(error, SandboxError::Gone), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(files_in(directory.path()), ["a"]);
    // An early answer, while the body has no end.
    let endless = Box::pin(stream::repeat_with(move || Ok(Bytes::from_static(&[0; 8192]))));
    let error = agent().write_file(directory.path(), endless, u64::MAX).await.unwrap_err();
    assert!(matches!(&error, SandboxError::File { source, .. } if source.raw_os_error() == Some(21)), "{error}");
    let pending = Box::pin(stream::pending());
    let error = agent().write_file(directory.path(), pending, u64::MAX).await.unwrap_err();
    assert!(matches!(&error, SandboxError::File { operation: "write", .. }), "{error}");
}

#[tokio::test]
async fn an_agent_that_dies_is_an_error() {
    let (ours, theirs) = tokio::io::duplex(1024);
    drop(theirs);
    let error = Agent::new(tokio::io::sink(), ours, ()).stat(Path::new("/a")).await.unwrap_err();
    assert!(matches!(error, SandboxError::System { .. }), "{error}");
}

#[tokio::test]
async fn an_agent_that_lies_about_a_length_is_an_error() {
    for announced in [1, 2, 3] {
        let mut said = Vec::new();
        write_json(&mut said, FrameKind::Json, &Answer::Size(announced)).unwrap();
        write_frame(&mut said, FrameKind::Data, b"ab").unwrap();
        write_frame(&mut said, FrameKind::End, &[]).unwrap();
        let agent = Agent::new(tokio::io::sink(), io::Cursor::new(said), ());
        let read: Vec<_> = agent.read_file(Path::new("/a")).await.unwrap().body.collect().await;
        assert_eq!(read.iter().all(Result::is_ok), announced == 2, "{announced}: {read:?}");
    }
}

/// The next event that is about `path`, with those before it passed over.
async fn next(events: &mut tokio::sync::mpsc::Receiver<FileEvent>, kind: &str, path: &Path) -> FileEvent {
    let wanted = async {
        loop {
            let event = events.recv().await.expect("the watch ended");
            if event.path == path && event.kind == kind {
                return event;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wanted).await.unwrap_or_else(|_| panic!("no {kind} of {path:?}"))
}

#[tokio::test]
async fn changes_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir(root.join("old")).unwrap();
    let mut events = agent().watch(root, true).await.unwrap();
    fs::write(root.join("old/a"), "x").unwrap();
    next(&mut events, "create", &root.join("old/a")).await;
    next(&mut events, "modify", &root.join("old/a")).await;
    fs::rename(root.join("old/a"), root.join("b")).unwrap();
    next(&mut events, "delete", &root.join("old/a")).await;
    next(&mut events, "move", &root.join("b")).await;
    // New directories are watched, and what was in them first is told.
    fs::create_dir_all(root.join("new/sub")).unwrap();
    assert!(next(&mut events, "create", &root.join("new/sub")).await.is_directory);
    fs::write(root.join("new/sub/c"), "x").unwrap();
    next(&mut events, "create", &root.join("new/sub/c")).await;
    // A moved directory is watched under its new name, one that left is not.
    fs::rename(root.join("new"), root.join("moved")).unwrap();
    next(&mut events, "move", &root.join("moved")).await;
    next(&mut events, "create", &root.join("moved/sub/c")).await;
    fs::write(root.join("moved/sub/d"), "x").unwrap();
    next(&mut events, "create", &root.join("moved/sub/d")).await;
    fs::remove_file(root.join("b")).unwrap();
    next(&mut events, "delete", &root.join("b")).await;
    // An upload is one event, not those of its temporary file.
    agent().write_file(&root.join("up"), body(vec![Ok(Bytes::from_static(b"x"))]), 9).await.unwrap();
    let event = events.recv().await.unwrap();
    assert_eq!((event.kind.as_str(), event.path), ("move", root.join("up")));
    let missing = agent().watch(&root.join("missing"), true).await.unwrap_err();
    assert!(matches!(missing, SandboxError::NotFound { .. }), "{missing}");
}

#[tokio::test]
async fn a_watch_ends_with_its_directory_or_its_reader() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut events = agent().watch(&root, false).await.unwrap();
    fs::remove_dir(&root).unwrap();
    next(&mut events, "delete", &root).await;
    assert_eq!(events.recv().await, None);

    let (our_stdin, its_stdin) = UnixStream::pair().unwrap();
    let (our_stdout, its_stdout) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn(move || serve(its_stdin, its_stdout));
    let ours = |stream: UnixStream| {
        stream.set_nonblocking(true).unwrap();
        tokio::net::UnixStream::from_std(stream).unwrap()
    };
    let agent = Agent::new(ours(our_stdin), ours(our_stdout), ());
    drop(agent.watch(directory.path(), false).await.unwrap());
    tokio::task::spawn_blocking(|| serving.join().unwrap().unwrap()).await.unwrap();
}
