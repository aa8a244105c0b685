//! Packing and unpacking.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode};
use tar::{Builder, EntryType, Header};

use super::super::protocol::{Answer, Failure, Request};
use super::{ask, files_in, wire};

pub(super) fn hydrate(root: &Path, tar: &[u8]) -> Result<Answer, Failure> {
    ask(&Request::Hydrate { root: wire(root), limit: 1 << 20 }, Some(&[tar])).answer
}

pub(super) fn persist(root: &Path, excludes: &[&str]) -> Vec<u8> {
    let excludes = excludes.iter().map(wire).collect();
    let said = ask(&Request::Persist { root: wire(root), excludes }, None);
    assert_eq!((said.answer, said.end), (Ok(Answer::Done), Some(Ok(()))));
    said.frames.concat()
}

/// A member with any name, also one that the `tar` crate would not write.
pub(super) fn member(tar: &mut Vec<u8>, kind: EntryType, name: &str, target: &str, contents: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_size(contents.len() as u64);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_mtime(1_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(contents);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

pub(super) fn names_in(tar: &[u8]) -> Vec<String> {
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
    assert_eq!((hidden.mode() & 0o7777, hidden.size(), hidden.nlink()), (0o711, 5000, 1));
    // Under its other name it is a file of its own: clients refuse hard links.
    assert_eq!(fs::read(new.path().join("other name")).unwrap(), vec![7; 5000]);
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
