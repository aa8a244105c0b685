//! The agent as the daemon sees it: whole requests, answered over pipes, in a directory of the test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use rustix::fs::{CWD, Mode};
use tar::{Builder, EntryType, Header};

use super::protocol::{
    Answer, Failure, FrameKind, Request, Verb, WireInfo, WirePath, from_json, read_frame, write_frame, write_json,
};
use super::{Agent, serve};
use crate::{ByteStream, FileEvent, ListOptions, SandboxError};

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
    for aborted in [false, true] {
        let mut stdin = tempfile::tempfile().unwrap();
        write_json(&mut stdin, FrameKind::Json, &Request::Write { path: wire(&path) }).unwrap();
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

// Archives.

fn hydrate(root: &Path, tar: &[u8]) -> Result<Answer, Failure> {
    ask(&Request::Hydrate { root: wire(root), limit: 1 << 20 }, Some(&[tar])).answer
}

fn persist(root: &Path, excludes: &[&str]) -> Vec<u8> {
    let excludes = excludes.iter().map(wire).collect();
    let said = ask(&Request::Persist { root: wire(root), excludes }, None);
    assert_eq!((said.answer, said.end), (Ok(Answer::Done), Some(Ok(()))));
    said.frames.concat()
}

/// A member with any name, also one that the `tar` crate would not write.
fn member(tar: &mut Vec<u8>, kind: EntryType, name: &str, target: &str, contents: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(contents);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn names_in(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    archive
        .entries()
        .unwrap()
        .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
        .collect()
}

#[test]
fn a_tree_survives_persist_and_hydrate() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let long = ["n".repeat(200), "m".repeat(200)].join("/");
    fs::create_dir_all(old.path().join(&long).parent().unwrap()).unwrap();
    fs::write(old.path().join(&long), "long").unwrap();
    fs::create_dir(old.path().join("locked")).unwrap();
    fs::write(old.path().join("locked/.hidden"), vec![7; 5000]).unwrap();
    fs::hard_link(old.path().join("locked/.hidden"), old.path().join("other name")).unwrap();
    symlink("/usr/bin/python3", old.path().join("python")).unwrap();
    symlink("t".repeat(150), old.path().join("long target")).unwrap();
    rustix::fs::mkfifoat(CWD, old.path().join("fifo"), Mode::from_raw_mode(0o600)).unwrap();
    fs::set_permissions(old.path().join("locked/.hidden"), PermissionsExt::from_mode(0o4711)).unwrap();
    fs::set_permissions(old.path().join("locked"), PermissionsExt::from_mode(0o500)).unwrap();
    let old_time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_234_567);
    File::open(old.path().join("locked")).unwrap().set_modified(old_time).unwrap();

    let tar = persist(old.path(), &[]);
    assert_eq!(names_in(&tar)[..4], ["./", "./locked/", "./locked/.hidden", "./long target"]);
    fs::write(new.path().join("kept"), "").unwrap();
    fs::create_dir(new.path().join("other name")).unwrap();
    assert_eq!(hydrate(new.path(), &tar), Ok(Answer::Done));

    assert_eq!(fs::read(new.path().join(&long)).unwrap(), b"long");
    assert_eq!(fs::read_link(new.path().join("python")).unwrap(), Path::new("/usr/bin/python3"));
    assert_eq!(fs::read_link(new.path().join("long target")).unwrap(), Path::new(&"t".repeat(150)));
    let hidden = fs::metadata(new.path().join("locked/.hidden")).unwrap();
    assert_eq!((hidden.mode() & 0o7777, hidden.size(), hidden.nlink()), (0o711, 5000, 2));
    let locked = fs::metadata(new.path().join("locked")).unwrap();
    assert_eq!((locked.mode() & 0o7777, locked.modified().unwrap()), (0o500, old_time));
    assert!(new.path().join("kept").exists() && !new.path().join("fifo").exists());
    fs::set_permissions(old.path().join("locked"), PermissionsExt::from_mode(0o700)).unwrap();
    fs::set_permissions(new.path().join("locked"), PermissionsExt::from_mode(0o700)).unwrap();
}

#[test]
fn gnu_tar_reads_what_is_persisted() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(old.path().join("d")).unwrap();
    fs::write(old.path().join("d").join("n".repeat(150)), "x").unwrap();
    fs::write(old.path().join("empty"), "").unwrap();
    let mut tar = tempfile::NamedTempFile::new().unwrap();
    tar.write_all(&persist(old.path(), &[])).unwrap();
    let Ok(output) = std::process::Command::new("tar").arg("-xf").arg(tar.path()).arg("-C").arg(new.path()).output()
    else {
        return;
    };
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(fs::read(new.path().join("d").join("n".repeat(150))).unwrap(), b"x");
}

#[test]
fn excludes_are_literal_subtrees() {
    let directory = tempfile::tempdir().unwrap();
    for path in ["a/b", "a/bc", "[x]*", "x"] {
        fs::create_dir_all(directory.path().join(path)).unwrap();
        fs::write(directory.path().join(path).join("f"), "").unwrap();
    }
    let tar = persist(directory.path(), &["a/b", "./[x]*/", "f", "a/bc/g"]);
    assert_eq!(names_in(&tar), ["./", "./a/", "./a/bc/", "./a/bc/f", "./x/", "./x/f"]);
    let said = ask(&Request::Persist { root: wire(directory.path()), excludes: vec![wire("a/../b")] }, None);
    assert!(matches!(said.answer, Err(Failure::Archive { exit: 2, .. })), "{said:?}");
}

#[test]
fn hydrate_replaces_and_writes_through_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::write(&outside, "untouched").unwrap();
    symlink(&outside, root.join("link")).unwrap();
    fs::hard_link(&outside, root.join("hard")).unwrap();
    symlink(directory.path(), root.join("dir")).unwrap();
    let mut tar = Vec::new();
    for name in ["link", "hard"] {
        member(&mut tar, EntryType::Regular, name, "", b"new");
    }
    member(&mut tar, EntryType::Directory, "dir/", "", b"");
    member(&mut tar, EntryType::Regular, "dir/outside", "", b"new");
    assert_eq!(hydrate(&root, &tar), Ok(Answer::Done));
    assert_eq!(fs::read(&outside).unwrap(), b"untouched");
    for name in ["link", "hard", "dir/outside"] {
        assert_eq!(fs::read(root.join(name)).unwrap(), b"new", "{name}");
    }
}

/// A tar that must not be unpacked, and must leave nothing outside.
#[track_caller]
fn check_attack(build: impl FnOnce(&mut Vec<u8>, &Path)) {
    let directory = tempfile::tempdir().unwrap();
    let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let mut tar = Vec::new();
    build(&mut tar, &outside);
    let answer = hydrate(&root, &tar);
    assert!(matches!(&answer, Err(Failure::Archive { exit: 2, message }) if !message.is_empty()), "{answer:?}");
    assert_eq!(files_in(directory.path()), ["outside", "root"]);
    assert_eq!(files_in(&outside), ["secret"]);
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
    assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
}

#[test]
fn no_member_lands_outside() {
    check_attack(|tar, _| member(tar, EntryType::Regular, "../outside/new", "", b"x"));
    check_attack(|tar, _| member(tar, EntryType::Regular, "a/../../outside/new", "", b"x"));
    check_attack(|tar, outside| {
        member(tar, EntryType::Symlink, "link", outside.to_str().unwrap(), b"");
        member(tar, EntryType::Regular, "link/new", "", b"x");
    });
    check_attack(|tar, _| {
        member(tar, EntryType::Symlink, "link", "../outside", b"");
        member(tar, EntryType::Directory, "link/new", "", b"");
    });
    check_attack(|tar, _| {
        member(tar, EntryType::Directory, "a/b/", "", b"");
        member(tar, EntryType::Symlink, "a/b/up", "../../..", b"");
        member(tar, EntryType::Symlink, "up", "a/b/up", b"");
        member(tar, EntryType::Regular, "up/outside/new", "", b"x");
    });
    check_attack(|tar, _| member(tar, EntryType::Link, "hard", "../outside/secret", b""));
    check_attack(|tar, _| {
        member(tar, EntryType::Symlink, "link", "../outside", b"");
        member(tar, EntryType::Link, "hard", "link/secret", b"");
    });
    check_attack(|tar, outside| {
        let target = outside.join("secret");
        member(tar, EntryType::Link, "hard", target.to_str().unwrap(), b"");
    });
}

#[test]
fn a_link_in_the_place_of_a_directory_is_not_passed() {
    check_attack(|tar, outside| {
        member(tar, EntryType::Directory, "d/", "", b"");
        member(tar, EntryType::Symlink, "d", outside.to_str().unwrap(), b"");
        member(tar, EntryType::Regular, "d/secret", "", b"x");
    });
}

#[test]
fn absolute_names_land_inside() {
    let directory = tempfile::tempdir().unwrap();
    let mut tar = Vec::new();
    member(&mut tar, EntryType::Regular, "/etc/sandpail-test", "", b"x");
    member(&mut tar, EntryType::Char, "zero", "", b"");
    member(&mut tar, EntryType::Fifo, "fifo", "", b"");
    assert_eq!(hydrate(directory.path(), &tar), Ok(Answer::Done));
    assert_eq!(files_in(directory.path()), ["etc"]);
    assert_eq!(fs::read(directory.path().join("etc/sandpail-test")).unwrap(), b"x");
}

#[test]
fn what_is_no_tar_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let message = |tar: &[u8]| match hydrate(root, tar) {
        Err(Failure::Archive { exit: 2, message }) => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(message(b""), "Empty tar payload");
    for garbage in [&b"hello"[..], &[0x1f; 2048], &[b'a'; 511]] {
        assert!(message(garbage).starts_with("This does not look like"), "{garbage:?}");
    }
    assert_eq!(hydrate(root, &[0; 1024]), Ok(Answer::Done));
    // Cut in a file: it is not left half.
    let mut tar = Vec::new();
    member(&mut tar, EntryType::Regular, "whole", "", &[1; 600]);
    member(&mut tar, EntryType::Regular, "half", "", &[2; 6000]);
    assert_eq!(message(&tar[..2048 + 1000]), "half: the archive ends in the middle of it");
    assert_eq!(files_in(root), ["whole"]);
    // Cut in a header.
    assert!(message(&tar[..1024 + 512 + 100]).contains("damaged"));
    // Names that no system has.
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append_data(&mut header, "n/".repeat(40_000), io::empty()).unwrap();
    assert!(message(&builder.into_inner().unwrap()).contains("the name is too long"));
}

#[test]
fn files_are_bounded_in_sum() {
    let directory = tempfile::tempdir().unwrap();
    let mut tar = Vec::new();
    member(&mut tar, EntryType::Regular, "a", "", &[0; 600]);
    member(&mut tar, EntryType::Regular, "b", "", &[0; 600]);
    let request = Request::Hydrate { root: wire(directory.path()), limit: 1000 };
    assert_eq!(ask(&request, Some(&[&tar])).answer, Err(Failure::TooLarge { len: 1200, limit: 1000 }));
}

// The daemon's side.

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
    assert!(agent().exists(&path).await.unwrap());
    let reader = agent().read_file(&path).await.unwrap();
    let read: Vec<_> = reader.body.map(Result::unwrap).collect().await;
    assert_eq!((reader.size, read.concat().len()), (6_000_000, 6_000_000));
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
