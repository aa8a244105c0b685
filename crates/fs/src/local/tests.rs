//! The local tree alone: operations as `rename(2)` and its kin have them, and names that must not lead out of it.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;
use crate::attr::{Attr, Kind, Time};
use crate::engine::{OpenMode, SetAttr, SetTime};
use crate::errno::{Errno as Number, errno};

struct World {
    root: tempfile::TempDir,
    files: PathBuf,
    tree: LocalTree,
}

fn world() -> World {
    let root = tempfile::tempdir().unwrap();
    let own = root.path().join("process-1-1");
    std::fs::create_dir(&own).unwrap();
    let tree = LocalTree::of_mount(root.path(), &own, &Origin::default(), "", None).unwrap();
    let trees: Vec<_> = std::fs::read_dir(root.path().join("local")).unwrap().flatten().collect();
    assert_eq!(trees.len(), 1);
    World { files: trees[0].path().join("files"), root, tree }
}

fn attr(kind: Kind, perm: u32) -> Attr {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Attr { kind, perm, uid, gid, size: 0, atime: Time::default(), mtime: Time::default(), ctime: Time::default() }
}

const WRITE: OpenMode = OpenMode { read: true, write: true, append: false, truncate: false };

impl World {
    /// `touch PATH`, `mkdir PATH`, `link PATH TARGET`, `rm PATH`, `rmdir PATH`, `mv FROM TO`, `mvn FROM TO` (no replace),
    /// `stat PATH`, `list PATH`, `parents PATH`, `follow FROM TO`, `prune PATH`, `open PATH`, `readlink PATH`.
    fn run(&self, line: &str) -> FsResult<()> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let path = words[1];
        let tree = &self.tree;
        match line.split(' ').next().unwrap() {
            "touch" => tree.create(path, &attr(Kind::File, 0o640), WRITE).map(drop),
            "mkdir" => tree.mkdir(path, &attr(Kind::Directory, 0o750)),
            "link" => tree.symlink(path, words[2], &attr(Kind::Symlink, 0o777)),
            "rm" => tree.unlink(path, None),
            "rmdir" => tree.rmdir(path),
            "mv" => tree.rename(path, words[2], false, None),
            "mvn" => tree.rename(path, words[2], true, None),
            "stat" => tree.stat(At::Path(path)).map(drop),
            "parents" => tree.make_parents(path),
            "follow" => tree.follow(path, words[2]),
            "prune" => {
                tree.prune(path);
                Ok(())
            }
            "open" => tree.open(At::Path(path), WRITE).map(drop),
            "readlink" => tree.readlink(path).map(drop),
            other => panic!("{other}"),
        }
    }

    #[track_caller]
    fn check(&self, line: &str, expected: Result<(), Number>) {
        let told = self.run(line).map_err(|error| errno(&error));
        assert_eq!(told, expected, "{line}");
    }

    fn list(&self, path: &str) -> Vec<String> {
        let entries = self.tree.list(path.as_bytes()).unwrap();
        entries.into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect()
    }
}

#[test]
fn names_come_and_go_as_on_any_disk() {
    let world = world();
    for (line, expected) in [
        ("touch a", Ok(())),
        ("touch a", Err(Number::EEXIST)),
        ("mkdir d", Ok(())),
        ("mkdir d", Err(Number::EEXIST)),
        ("touch d/f", Ok(())),
        ("touch no/f", Err(Number::ENOENT)),
        ("touch a/f", Err(Number::ENOTDIR)),
        ("rmdir d", Err(Number::ENOTEMPTY)),
        ("rmdir a", Err(Number::ENOTDIR)),
        ("rm d", Err(Number::EISDIR)),
        ("rm no", Err(Number::ENOENT)),
        ("stat a/b", Err(Number::ENOENT)),
        ("link l ../../etc/passwd", Ok(())),
        ("readlink l", Ok(())),
        ("readlink a", Err(Number::EINVAL)),
        ("open d", Err(Number::EISDIR)),
        ("mvn a l", Err(Number::EEXIST)),
        ("mv d d/x", Err(Number::EINVAL)),
        ("mv a d", Err(Number::EISDIR)),
        ("mv d a", Err(Number::ENOTDIR)),
        ("mv a l", Ok(())),
        ("stat a", Err(Number::ENOENT)),
        ("mv d e", Ok(())),
        ("stat e/f", Ok(())),
        ("rm e/f", Ok(())),
        ("rmdir e", Ok(())),
    ] {
        world.check(line, expected);
    }
    assert_eq!(world.list(""), ["l"]);
    assert_eq!(world.list("no"), [""; 0]);
}

/// What stands in the tree, and what a guest calls a file, never leads out of it.
#[test]
fn nothing_leads_out() {
    let world = world();
    let outside = world.root.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, world.files.join("absolute")).unwrap();
    symlink("../../../outside", world.files.join("relative")).unwrap();
    symlink(".", world.files.join("loop")).unwrap();
    symlink(outside.join("secret"), world.files.join("file")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, world.files.join("pipe"), Mode::RWXU).unwrap();
    std::fs::create_dir(world.files.join("d")).unwrap();
    for path in ["absolute/x", "relative/x", "loop/x", "../x", "d/../../x", "/x", "/etc/x", "d/..", "..", ".", ""] {
        for command in ["touch", "mkdir", "stat", "open", "rm", "rmdir", "readlink", "parents"] {
            // What is inside may be there.
            if command == "parents" && matches!(path, "" | "." | "loop/x" | "d/..") {
                continue;
            }
            assert!(world.run(&format!("{command} {path}")).is_err(), "{command} {path}");
        }
        assert!(world.run(&format!("link {path} x")).is_err(), "link {path}");
        assert!(world.run(&format!("mv d {path}")).is_err(), "mv d {path}");
        assert!(world.run(&format!("mv {path} new")).is_err(), "mv {path} new");
        let listed = world.tree.list(path.as_bytes());
        let is_inside = matches!(path, "" | "." | "d/..");
        assert!(is_inside || listed.is_err() || listed.is_ok_and(|names| names.is_empty()), "list {path}");
    }
    assert!(world.run("open file").is_err() && world.run("open pipe").is_err());
    let set = SetAttr { perm: Some(0o777), ..SetAttr::default() };
    assert!(world.tree.set(At::Path(b"file"), &set).is_err());
    world.tree.set(At::Path(b"file"), &SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() }).unwrap();
    assert!(world.tree.set_xattr(At::Path(b"file"), "user.x", b"x", 0).is_err());
    let secret = std::fs::metadata(outside.join("secret")).unwrap();
    assert_ne!(secret.permissions().mode() & 0o777, 0o777);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
    // A pipe is nothing that a mount made.
    assert!(!world.list("").contains(&"pipe".to_owned()));
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
    for name in [&b"..."[..], b"=sp=", b"\xff", &[b'x'; 255]] {
        check_name(name).unwrap();
    }
}

#[test]
fn a_file_that_is_open_keeps_its_bytes() {
    let world = world();
    let write = |path: &str, text: &str| std::fs::write(world.files.join(path), text).unwrap();
    let parked = |ino: u64| {
        let mode = OpenMode { read: true, ..OpenMode::default() };
        world.tree.open(At::Parked(ino), mode).map(|file| std::io::read_to_string(file).unwrap())
    };
    write("a", "one");
    world.tree.unlink(b"a", Some(7)).unwrap();
    assert!(world.tree.stat(At::Path(b"a")).is_err());
    assert_eq!(parked(7).unwrap(), "one");
    // The number is another file's by now.
    write("a", "two");
    write("b", "three");
    world.tree.rename(b"b", b"a", false, Some(7)).unwrap();
    assert_eq!(parked(7).unwrap(), "two");
    assert_eq!(std::fs::read_to_string(world.files.join("a")).unwrap(), "three");
    world.tree.unlink(b"a", Some(8)).unwrap();
    world.tree.remove_parked(|ino| ino == 8).unwrap();
    assert!(parked(7).is_err() && parked(8).is_ok());
    world.tree.unpark(8).unwrap();
    world.tree.unpark(8).unwrap();
    assert!(parked(8).is_err());
}

#[test]
fn directories_of_the_bucket_come_and_go_with_what_is_local_in_them() {
    let world = world();
    world.check("parents a/b/c", Ok(()));
    world.check("parents a/b/c", Ok(()));
    world.check("mkdir a/b/c/target", Ok(()));
    world.check("prune a/b/c", Ok(()));
    world.check("follow a/b x/y", Ok(()));
    // It was done before.
    world.check("follow a/b x/y", Ok(()));
    assert_eq!((world.list(""), world.list("x/y/c")), (vec!["x".to_owned()], vec!["target".to_owned()]));
    // Something is left where another directory comes to stand.
    world.check("parents p/q", Ok(()));
    world.check("mkdir p/q/target", Ok(()));
    world.check("follow x p", Ok(()));
    assert_eq!(world.list(""), ["p", "p.left-1"]);
    assert_eq!((world.list("p/y/c"), world.list("p.left-1/q")), (vec!["target".to_owned()], vec!["target".to_owned()]));
    world.check("rmdir p/y/c/target", Ok(()));
    world.check("prune p/y/c", Ok(()));
    assert_eq!(world.list(""), ["p.left-1"]);
}

#[test]
fn attributes_are_those_of_the_disk() {
    let world = world();
    let file = world.tree.create(b"f", &attr(Kind::File, 0o4711), WRITE).unwrap();
    let stat = || world.tree.stat(At::Path(b"f")).unwrap();
    assert_eq!((stat().kind, stat().perm), (Kind::File, 0o4711));
    let set = |set: SetAttr| world.tree.set(At::Path(b"f"), &set).unwrap();
    set(SetAttr { kill_set_id: true, ..SetAttr::default() });
    assert_eq!(stat().perm, 0o711);
    let times = [Time { secs: 5, nanos: 7 }, Time { secs: -9, nanos: 1 }];
    set(SetAttr { atime: Some(SetTime::At(times[0])), mtime: Some(SetTime::At(times[1])), ..SetAttr::default() });
    assert_eq!([stat().atime, stat().mtime], times);
    set(SetAttr { perm: Some(0o400), ..SetAttr::default() });
    file.set_len(1000).unwrap();
    assert_eq!((stat().perm, stat().size, stat().mtime == times[1]), (0o400, 1000, false));
    if rustix::process::geteuid().is_root() {
        set(SetAttr { uid: Some(1234), gid: Some(99), perm: Some(0o6755), ..SetAttr::default() });
        assert_eq!((stat().uid, stat().gid, stat().perm), (1234, 99, 0o6755));
        assert_eq!(std::fs::metadata(world.files.join("f")).unwrap().uid(), 1234);
    }
    let at = At::Path(b"f");
    let number = |done: FsResult<()>| done.map_err(|error| errno(&error));
    assert_eq!(number(world.tree.xattr(at, "user.a").map(drop)), Err(Number::ENODATA));
    assert_eq!(number(world.tree.set_xattr(at, "user.a", b"1", 2)), Err(Number::ENODATA));
    world.tree.set_xattr(at, "user.a", b"1", 0).unwrap();
    assert_eq!(number(world.tree.set_xattr(at, "user.a", b"2", 1)), Err(Number::EEXIST));
    world.tree.set_xattr(at, "user.b", &[0, 255], 0).unwrap();
    assert_eq!(world.tree.xattr(at, "user.b").unwrap(), [0, 255]);
    world.tree.remove_xattr(at, "user.a").unwrap();
    assert_eq!(world.tree.xattr_names(at).unwrap(), ["user.b"]);
    assert_eq!(number(world.tree.remove_xattr(at, "user.a")), Err(Number::ENODATA));
}
