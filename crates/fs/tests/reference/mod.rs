//! An engine beside the reference tree: what both show, and whether that is the same.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use sandpail_fs::attr::Kind;
use sandpail_fs::engine::{Engine, OpenMode};
use sandpail_fs::errno::Errno;
use sandpail_testkit::faults::Random;
use sandpail_testkit::model::{Content, Model};

pub(crate) const DIRECTORIES: [&str; 5] = ["", "d0", "d1", "d0/e", "d1/e"];
const NAMES: [&str; 6] = ["a", "b", "c", "ü %+", "d0", "e"];

/// One of few paths, so that many operations meet.
pub(crate) fn any_path(random: &mut Random) -> String {
    let directory = *random.pick(&DIRECTORIES);
    let name = *random.pick(&NAMES);
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// Less than `len`.
pub(crate) fn any_index(random: &mut Random, len: usize) -> usize {
    usize::try_from(random.below(len as u64)).unwrap()
}

/// A range that begins in a file of `len_max` bytes.
pub(crate) fn any_range(random: &mut Random, len_max: u64) -> Range<usize> {
    let start = usize::try_from(random.below(len_max)).unwrap();
    let len = usize::try_from(random.below(len_max / 4)).unwrap() + 1;
    start..start + len
}

/// So many bytes, of which the first is not zero.
pub(crate) fn any_bytes(random: &mut Random, len: usize) -> Vec<u8> {
    let byte = u8::try_from(random.below(255)).unwrap() + 1;
    (0..len).map(|at| byte.wrapping_add(u8::try_from(at % 251).unwrap())).collect()
}

pub(crate) fn kind_of(model: &Model, path: &str) -> Option<Kind> {
    model.get(path).ok().map(|node| match node.content {
        Content::File(_) => Kind::File,
        Content::Directory(_) => Kind::Directory,
        Content::Symlink(_) => Kind::Symlink,
    })
}

/// What a path is, for comparisons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    File { perm: u32, bytes: Vec<u8>, mtime: i64 },
    Directory { perm: u32 },
    Symlink(String),
}

pub(crate) type Tree = BTreeMap<String, Seen>;

pub(crate) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Whether both mean the same.
pub(crate) fn same(ours: Errno, theirs: rustix::io::Errno) -> bool {
    use rustix::io::Errno as E;
    let name = match theirs {
        E::NOENT => Errno::ENOENT,
        E::EXIST => Errno::EEXIST,
        E::NOTDIR => Errno::ENOTDIR,
        E::ISDIR => Errno::EISDIR,
        E::NOTEMPTY => Errno::ENOTEMPTY,
        E::INVAL => Errno::EINVAL,
        // Links are followed by the kernel, not by the engine.
        E::LOOP => return true,
        // Of several reasons each may be told.
        E::XDEV => {
            return matches!(ours, Errno::EXDEV | Errno::ENOENT | Errno::ENOTDIR | Errno::EINVAL | Errno::ENOTEMPTY);
        }
        _ => return false,
    };
    // Where several are right, each may choose.
    let in_the_way = [Errno::ENOTDIR, Errno::ENOENT];
    let taken = [Errno::ENOTEMPTY, Errno::EISDIR, Errno::ENOTDIR, Errno::EINVAL, Errno::EEXIST];
    ours == name
        || in_the_way.contains(&ours) && in_the_way.contains(&name)
        || taken.contains(&ours) && taken.contains(&name)
}

/// Everything that an engine shows.
pub(crate) async fn walk(engine: &Arc<Engine>) -> Result<Tree, String> {
    let mut tree = Tree::new();
    let mut left = vec![(1, String::new())];
    while let Some((directory, prefix)) = left.pop() {
        let handle = engine.opendir(directory).unwrap();
        let mut position = 0;
        loop {
            let page = engine
                .readdir(handle, position, 7, false)
                .await
                .map_err(|error| format!("cannot list {prefix:?}: {error}"))?;
            let Some(last) = page.last() else { break };
            position = last.next;
            for item in page {
                let name = String::from_utf8(item.name.to_vec()).unwrap();
                if name == "." || name == ".." {
                    continue;
                }
                let path = format!("{prefix}{name}");
                let stat = match engine.lookup(directory, &item.name).await {
                    Ok(stat) => stat,
                    Err(error) => return Err(format!("{path} is listed and not there: {error}")),
                };
                if stat.attr.kind != item.stat.attr.kind {
                    return Err(format!("{path} is listed as a {:?}, and is not", item.stat.attr.kind));
                }
                let seen = match stat.attr.kind {
                    Kind::Directory => {
                        left.push((stat.ino, format!("{path}/")));
                        Seen::Directory { perm: stat.attr.perm }
                    }
                    Kind::Symlink => {
                        let target =
                            engine.readlink(stat.ino).await.map_err(|error| format!("cannot read {path}: {error}"))?;
                        Seen::Symlink(String::from_utf8(target.to_vec()).unwrap())
                    }
                    Kind::File => {
                        let mode = OpenMode { read: true, ..OpenMode::default() };
                        let opened = engine
                            .open(stat.ino, mode)
                            .await
                            .map_err(|error| format!("cannot open {path}: {error}"))?;
                        let bytes = engine.read(opened.handle, 0, 1 << 30).await;
                        engine.release(opened.handle).await;
                        let bytes = match bytes {
                            Ok(bytes) => bytes.concat(),
                            Err(error) => return Err(format!("cannot read {path}: {error}")),
                        };
                        if bytes.len() as u64 != stat.attr.size {
                            return Err(format!("{path} has {} bytes, stat says {}", bytes.len(), stat.attr.size));
                        }
                        Seen::File { perm: stat.attr.perm, bytes, mtime: stat.attr.mtime.secs }
                    }
                };
                tree.insert(path, seen);
            }
        }
        engine.releasedir(handle);
    }
    Ok(tree)
}

pub(crate) fn short(seen: Option<&Seen>) -> String {
    match seen {
        Some(Seen::File { perm, bytes, mtime }) => {
            let sum = bytes.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
            format!("a file of {} bytes (sum {sum:x}), mode {perm:o}, time {mtime}", bytes.len())
        }
        Some(other) => format!("{other:?}"),
        None => "not there".to_owned(),
    }
}

/// Times are compared only where somebody chose them.
pub(crate) fn alike(a: Option<&Seen>, b: Option<&Seen>) -> bool {
    match (a, b) {
        (
            Some(Seen::File { perm, bytes, mtime }),
            Some(Seen::File { perm: other_perm, bytes: other_bytes, mtime: other_mtime }),
        ) => {
            let is_chosen = |secs: &i64| (1_000_000_000..1_100_000_000).contains(secs);
            let same_time = mtime == other_mtime || !is_chosen(mtime) && !is_chosen(other_mtime);
            perm == other_perm && bytes == other_bytes && same_time
        }
        _ => a == b,
    }
}

pub(crate) fn tree_of(model: &Model) -> Tree {
    let seen = |path: String| {
        let node = model.get(&path).unwrap();
        let seen = match &node.content {
            Content::File(bytes) => Seen::File { perm: node.mode, bytes: bytes.clone(), mtime: node.mtime_ns },
            Content::Directory(_) => Seen::Directory { perm: node.mode },
            Content::Symlink(target) => Seen::Symlink(target.clone()),
        };
        (path, seen)
    };
    model.paths().into_iter().map(seen).collect()
}

pub(crate) fn model_of(tree: &Tree) -> Model {
    let mut model = Model::new(0, 0);
    for (path, seen) in tree {
        match seen {
            Seen::File { perm, bytes, mtime } => {
                let id = model.create(path, *perm).unwrap();
                model.write(id, 0, bytes).unwrap();
                model.utimens(path, *mtime).unwrap();
            }
            Seen::Directory { perm } => drop(model.mkdir(path, *perm).unwrap()),
            Seen::Symlink(target) => drop(model.symlink(target, path).unwrap()),
        }
    }
    model
}
