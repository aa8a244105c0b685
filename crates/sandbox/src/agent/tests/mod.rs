//! The agent as the daemon sees it: whole requests, answered over pipes, in a directory of the test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode};

mod archives;
mod daemon;
mod mounts;

use super::protocol::{
    Answer, Failure, FrameKind, Request, Verb, WireInfo, WirePath, from_json, read_frame, write_frame, write_json,
};
use super::serve;
use crate::ListOptions;

fn wire(path: impl Into<PathBuf>) -> WirePath {
    WirePath(path.into())
}

/// What an agent answered.
#[derive(Debug)]
struct Said {
    answer: Result<Answer, Failure>,
    frames: Vec<Vec<u8>>,
    /// How the body ended; `None` if there was no end.
    end: Option<Result<(), Failure>>,
}

/// Lets an agent serve a request; `chunks` is the body, `None` if the request has none.
fn ask(request: &Request, chunks: Option<&[&[u8]]>) -> Said {
    let mut stdin = tempfile::tempfile().unwrap();
    write_json(&mut stdin, FrameKind::Json, request).unwrap();
    if let Some(chunks) = chunks {
        for part in chunks.iter().flat_map(|chunk| chunk.chunks(100_000)) {
            write_frame(&mut stdin, FrameKind::Data, part).unwrap();
        }
        write_frame(&mut stdin, FrameKind::End, &[]).unwrap();
    }
    serve_file(stdin)
}

fn serve_file(mut stdin: File) -> Said {
    stdin.seek(SeekFrom::Start(0)).unwrap();
    let mut stdout = Vec::new();
    serve(stdin, &mut stdout).unwrap();
    let (mut from, mut payload) = (stdout.as_slice(), Vec::new());
    let answer = match read_frame(&mut from, &mut payload).unwrap() {
        FrameKind::Json => Ok(from_json(&payload).unwrap()),
        FrameKind::Failure => Err(from_json(&payload).unwrap()),
        kind => panic!("{kind:?} is no answer"),
    };
    let mut said = Said { answer, frames: Vec::new(), end: None };
    while !from.is_empty() {
        match read_frame(&mut from, &mut payload).unwrap() {
            FrameKind::End => said.end = Some(Ok(())),
            FrameKind::Failure => said.end = Some(Err(from_json(&payload).unwrap())),
            _ => said.frames.push(payload.clone()),
        }
    }
    said
}

fn files_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn errno(answer: &Result<Answer, Failure>) -> Option<i32> {
    match answer {
        Err(Failure::File { errno, .. }) => *errno,
        other => panic!("{other:?}"),
    }
}

// Reading and writing.

#[test]
fn a_file_is_read_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    let contents: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    fs::write(&path, &contents).unwrap();
    let said = ask(&Request::Read { path: wire(&path) }, None);
    assert_eq!(said.answer, Ok(Answer::Size(300_000)));
    assert_eq!(said.frames.concat(), contents);
    assert_eq!(said.end, Some(Ok(())));
}

#[test]
fn a_file_without_a_length_is_read_whole() {
    let said = ask(&Request::Read { path: wire("/proc/self/status") }, None);
    let Ok(Answer::Size(size)) = said.answer else { panic!("{said:?}") };
    assert!(size > 100, "{size}");
    assert_eq!(said.frames.concat().len() as u64, size);
}

#[test]
fn what_is_no_file_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    rustix::fs::mkfifoat(CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
    for path in [fifo, directory.path().join("socket"), "/dev/zero".into()] {
        let said = ask(&Request::Read { path: wire(&path) }, None);
        let Err(Failure::File { verb: Verb::Read, message, .. }) = said.answer else { panic!("{path:?}: {said:?}") };
        assert_eq!(message, "it is not a regular file");
    }
    let said = ask(&Request::Read { path: wire(directory.path()) }, None);
    assert_eq!(errno(&said.answer), Some(21));
    let missing = directory.path().join("missing");
    let said = ask(&Request::Read { path: wire(&missing) }, None);
    assert_eq!(said.answer, Err(Failure::NotFound { path: wire(missing) }));
}

#[test]
fn a_file_is_written_with_its_parents() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/c");
    let said = ask(&Request::Write { path: wire(&path) }, Some(&[b"one ", b"two"]));
    assert_eq!(said.answer, Ok(Answer::Done));
    assert_eq!(fs::read(&path).unwrap(), b"one two");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    assert_eq!(files_in(path.parent().unwrap()), ["c"]);
}

#[test]
fn a_file_keeps_its_mode_and_a_link_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let (real, link) = (directory.path().join("sub/real"), directory.path().join("link"));
    fs::create_dir(directory.path().join("sub")).unwrap();
    fs::write(&real, "old").unwrap();
    fs::set_permissions(&real, PermissionsExt::from_mode(0o750)).unwrap();
    symlink("sub/real", &link).unwrap();
    assert_eq!(ask(&Request::Write { path: wire(&link) }, Some(&[b"new"])).answer, Ok(Answer::Done));
    assert_eq!(fs::read(&real).unwrap(), b"new");
    assert_eq!(fs::metadata(&real).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("sub/real"));
}

#[test]
fn an_upload_that_breaks_off_leaves_the_old_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    fs::write(&path, "old").unwrap();
    for (name, aborted) in [("a", false), ("a", true), ("new", false), ("new", true)] {
        let mut stdin = tempfile::tempfile().unwrap();
        let request = Request::Write { path: wire(directory.path().join(name)) };
        write_json(&mut stdin, FrameKind::Json, &request).unwrap();
        write_frame(&mut stdin, FrameKind::Data, b"half of the new").unwrap();
        if aborted {
            write_json(&mut stdin, FrameKind::Failure, &Failure::Aborted).unwrap();
        }
        assert_eq!(serve_file(stdin).answer, Err(Failure::Aborted));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(files_in(directory.path()), ["a"]);
    }
}

#[test]
fn what_is_no_file_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let said = ask(&Request::Write { path: wire(directory.path()) }, Some(&[b"x"]));
    assert_eq!(errno(&said.answer), Some(21));
    symlink("loop", directory.path().join("loop")).unwrap();
    let said = ask(&Request::Write { path: wire(directory.path().join("loop")) }, Some(&[b"x"]));
    assert_eq!(errno(&said.answer), Some(40));
    fs::write(directory.path().join("file"), "").unwrap();
    let said = ask(&Request::Write { path: wire(directory.path().join("file/below")) }, Some(&[b"x"]));
    assert!(matches!(errno(&said.answer), Some(17 | 20)), "{said:?}");
}

// Directories.

#[test]
fn listings_are_sorted() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("b/.git/objects")).unwrap();
    fs::write(root.join("b/x"), "123").unwrap();
    fs::write(root.join("b.txt"), "").unwrap();
    symlink("b", root.join("a")).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"\xff")), "").unwrap();
    let list = |recursive, hidden| {
        let options = ListOptions { recursive, hidden };
        let said = ask(&Request::list(wire(root), options), None);
        assert_eq!((said.answer, said.end), (Ok(Answer::Done), Some(Ok(()))));
        let infos: Vec<WireInfo> = said.frames.iter().flat_map(|json| from_json::<Vec<_>>(json).unwrap()).collect();
        let names = infos.iter().map(|info| info.path.0.strip_prefix(root).unwrap().to_owned());
        names.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(false, false), ["a", "b", "b.txt", "\u{fffd}"]);
    assert_eq!(list(true, false), ["a", "b", "b/x", "b.txt", "\u{fffd}"]);
    assert_eq!(list(true, true), ["a", "b", "b/.git", "b/.git/objects", "b/x", "b.txt", "\u{fffd}"]);
    let said = ask(&Request::list(wire(root.join("b/x")), ListOptions::default()), None);
    assert_eq!(errno(&said.answer), Some(20));
}

#[test]
fn long_listings_come_in_frames() {
    let directory = tempfile::tempdir().unwrap();
    let name = |i| format!("{i:0>200}");
    for i in 0..500 {
        fs::write(directory.path().join(name(i)), "").unwrap();
    }
    let said = ask(&Request::list(wire(directory.path()), ListOptions::default()), None);
    assert!(said.frames.len() > 1);
    let infos: Vec<WireInfo> = said.frames.iter().flat_map(|json| from_json::<Vec<_>>(json).unwrap()).collect();
    let paths: Vec<_> = infos.into_iter().map(|info| info.path.0).collect();
    assert_eq!(paths, (0..500).map(|i| directory.path().join(name(i))).collect::<Vec<_>>());
}

#[test]
fn mountpoints_leave_no_directories() {
    let directory = tempfile::tempdir().unwrap();
    let (path, made) = (directory.path().join("a/b/c"), directory.path().join("a"));
    assert_eq!(ask(&Request::MakeMountpoint { path: wire(&path) }, None).answer, Ok(Answer::Made(Some(wire(&made)))));
    assert_eq!(ask(&Request::MakeMountpoint { path: wire(&path) }, None).answer, Ok(Answer::Made(None)));
    fs::write(made.join("kept"), "").unwrap();
    let remove = Request::RemoveMountpoint { path: wire(&path), made: wire(&made) };
    assert_eq!(ask(&remove, None).answer, Ok(Answer::Done));
    assert_eq!(files_in(&made), ["kept"]);
    fs::remove_file(made.join("kept")).unwrap();
    assert_eq!(ask(&remove, None).answer, Ok(Answer::Done));
    assert!(!made.exists() && directory.path().exists());
    // Where a file is in the way, nothing is made.
    fs::write(directory.path().join("file"), "").unwrap();
    let said = ask(&Request::MakeMountpoint { path: wire(directory.path().join("file/a")) }, None);
    assert_eq!(errno(&said.answer), Some(20));
}

#[test]
fn deleting_follows_no_link_and_enters_no_mount() {
    let directory = tempfile::tempdir().unwrap();
    let (outside, tree) = (directory.path().join("outside"), directory.path().join("tree"));
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "").unwrap();
    symlink(&outside, tree.join("a/link")).unwrap();
    let delete = |path: &Path, recursive| ask(&Request::Delete { path: wire(path), recursive }, None).answer;
    assert_eq!(errno(&delete(&tree, false)), Some(39));
    assert_eq!(delete(&tree, true), Ok(Answer::Done));
    assert_eq!(files_in(directory.path()), ["outside"]);
    assert_eq!(files_in(&outside), ["kept"]);
    assert_eq!(delete(&tree, true), Err(Failure::NotFound { path: wire(&tree) }));
    // Neither a mount nor the root is deleted.
    for mount in ["/proc", "/"] {
        assert_eq!(errno(&delete(Path::new(mount), true)), Some(16), "{mount}");
    }
}

#[test]
fn renaming() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    fs::write(&from, "x").unwrap();
    let rename = |from: &Path, to: &Path| ask(&Request::Rename { from: wire(from), to: wire(to) }, None).answer;
    assert_eq!(rename(&from, &to), Ok(Answer::Done));
    assert_eq!(files_in(directory.path()), ["to"]);
    assert_eq!(rename(&from, &to), Err(Failure::NotFound { path: wire(&from) }));
    let lost = directory.path().join("no/where");
    assert_eq!(rename(&to, &lost), Err(Failure::NotFound { path: wire(&lost) }));
}

/// A directory on another file system than temporary ones, if this machine has one.
fn elsewhere() -> Option<tempfile::TempDir> {
    let other = tempfile::tempdir_in("/dev/shm").ok()?;
    let here = tempfile::tempdir().unwrap();
    (fs::metadata(other.path()).unwrap().dev() != fs::metadata(here.path()).unwrap().dev()).then_some(other)
}

#[test]
fn moving_to_another_file_system_keeps_everything() {
    let Some(other) = elsewhere() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), other.path().join("to"));
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(from.join("sub/file"), "contents").unwrap();
    fs::set_permissions(from.join("sub/file"), PermissionsExt::from_mode(0o705)).unwrap();
    fs::hard_link(from.join("sub/file"), from.join("again")).unwrap();
    symlink("sub/file", from.join("link")).unwrap();
    let old_time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    File::open(from.join("sub/file")).unwrap().set_modified(old_time).unwrap();
    File::open(from.join("sub")).unwrap().set_modified(old_time).unwrap();
    let rename = |from: &Path, to: &Path| ask(&Request::Rename { from: wire(from), to: wire(to) }, None).answer;
    assert_eq!(rename(&from, &to), Ok(Answer::Done));
    assert!(!from.exists());
    assert_eq!(files_in(&to), ["again", "link", "sub"]);
    let moved = fs::metadata(to.join("sub/file")).unwrap();
    assert_eq!((moved.mode() & 0o7777, moved.modified().unwrap(), moved.nlink()), (0o705, old_time, 2));
    assert_eq!(fs::metadata(to.join("sub")).unwrap().modified().unwrap(), old_time);
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("sub/file"));
    // Onto a directory with contents, and what cannot be moved: both sides stay as they are.
    fs::create_dir(&from).unwrap();
    fs::write(from.join("a"), "").unwrap();
    assert_eq!(errno(&rename(&from, &to)), Some(39));
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    assert_eq!(errno(&rename(&from, &other.path().join("new"))), Some(18));
    assert_eq!((files_in(&from).len(), files_in(other.path())), (2, vec!["to".to_owned()]));
}
