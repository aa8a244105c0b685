//! The reference: a POSIX tree in memory, written for obviousness.
//!
//! Paths are relative and split at `/`; `""` is the root. Symbolic links are not followed: whoever needs
//! that resolves them. One user owns everything, so permissions are kept but not enforced. Times are told
//! by the caller, so that every run is the same.

use std::collections::BTreeMap;

use rustix::io::Errno;

/// Longest name of an entry, in bytes.
pub const NAME_LEN_MAX: usize = 255;

/// Result of an operation: what a system call would say.
pub type Outcome<T> = Result<T, Errno>;

/// Names a node for as long as the model lives, also when it has been unlinked: an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

const ROOT: NodeId = NodeId(0);

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A regular file with its bytes.
    File(Vec<u8>),
    /// A directory with its entries.
    Directory(BTreeMap<String, NodeId>),
    /// A symbolic link with its target.
    Symlink(String),
}

/// A file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub content: Content,
    /// The permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Time of the last change of the content, in nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// How [`Model::rename`] treats a target that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// Replaces it, as `rename(2)`.
    Yes,
    /// Fails with `EEXIST`: `RENAME_NOREPLACE`.
    No,
    /// Both change places: `RENAME_EXCHANGE`.
    Exchange,
}

/// A whole tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    // Nodes are never removed: ids stay good, and tests are short.
    nodes: Vec<Node>,
    /// The time that the next change gets.
    pub now_ns: i64,
    uid: u32,
    gid: u32,
}

impl Model {
    /// An empty tree owned by `uid` and `gid`.
    pub fn new(uid: u32, gid: u32) -> Self {
        let root = Node { content: Content::Directory(BTreeMap::new()), mode: 0o755, uid, gid, mtime_ns: 0 };
        Self { nodes: vec![root], now_ns: 0, uid, gid }
    }

    /// A node by id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    fn entries(&self, id: NodeId) -> Outcome<&BTreeMap<String, NodeId>> {
        match &self.node(id).content {
            Content::Directory(entries) => Ok(entries),
            Content::Symlink(_) => Err(Errno::LOOP),
            Content::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn entries_mut(&mut self, id: NodeId) -> Outcome<&mut BTreeMap<String, NodeId>> {
        let now_ns = self.now_ns;
        let node = self.node_mut(id);
        match &mut node.content {
            Content::Directory(entries) => {
                node.mtime_ns = now_ns;
                Ok(entries)
            }
            Content::Symlink(_) | Content::File(_) => Err(Errno::NOTDIR),
        }
    }

    /// The node at `path`.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`; `ELOOP` for a link on the way.
    pub fn lookup(&self, path: &str) -> Outcome<NodeId> {
        let mut id = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let entries = self.entries(id)?;
            check_name(name)?;
            id = *entries.get(name).ok_or(Errno::NOENT)?;
        }
        Ok(id)
    }

    /// What is at `path`.
    ///
    /// # Errors
    /// As [`Model::lookup`].
    pub fn get(&self, path: &str) -> Outcome<&Node> {
        Ok(self.node(self.lookup(path)?))
    }

    /// The directory that holds `path`, and the last name.
    fn parent<'a>(&self, path: &'a str) -> Outcome<(NodeId, &'a str)> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() {
            // The root itself.
            return Err(Errno::BUSY);
        }
        let parent = self.lookup(directory)?;
        self.entries(parent)?;
        check_name(name)?;
        Ok((parent, name))
    }

    fn add(&mut self, path: &str, content: Content, mode: u32) -> Outcome<NodeId> {
        let (parent, name) = match self.parent(path) {
            Err(Errno::BUSY) => return Err(Errno::EXIST),
            found => found?,
        };
        if self.entries(parent)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let id = NodeId(self.nodes.len());
        let (uid, gid, mtime_ns) = (self.uid, self.gid, self.now_ns);
        self.nodes.push(Node { content, mode: mode & 0o7777, uid, gid, mtime_ns });
        self.entries_mut(parent)?.insert(name.to_owned(), id);
        Ok(id)
    }

    /// `open(O_CREAT | O_EXCL)`.
    ///
    /// # Errors
    /// `EEXIST`, and as [`Model::lookup`].
    pub fn create(&mut self, path: &str, mode: u32) -> Outcome<NodeId> {
        self.add(path, Content::File(Vec::new()), mode)
    }

    /// `open` of a regular file; the id stays good when the file is unlinked.
    ///
    /// # Errors
    /// `EISDIR`, `ELOOP`, and as [`Model::lookup`].
    pub fn open(&self, path: &str) -> Outcome<NodeId> {
        let id = self.lookup(path)?;
        self.bytes(id)?;
        Ok(id)
    }

    /// `mkdir`.
    ///
    /// # Errors
    /// `EEXIST`, and as [`Model::lookup`].
    pub fn mkdir(&mut self, path: &str, mode: u32) -> Outcome<NodeId> {
        self.add(path, Content::Directory(BTreeMap::new()), mode)
    }

    /// `symlink`.
    ///
    /// # Errors
    /// `EEXIST`, and as [`Model::lookup`].
    pub fn symlink(&mut self, target: &str, path: &str) -> Outcome<NodeId> {
        if target.is_empty() {
            return Err(Errno::NOENT);
        }
        self.add(path, Content::Symlink(target.to_owned()), 0o777)
    }

    /// `readlink`.
    ///
    /// # Errors
    /// `EINVAL` if it is no link, and as [`Model::lookup`].
    pub fn readlink(&self, path: &str) -> Outcome<&str> {
        match &self.get(path)?.content {
            Content::Symlink(target) => Ok(target),
            Content::File(_) | Content::Directory(_) => Err(Errno::INVAL),
        }
    }

    /// Names in a directory, in order of bytes, without `.` and `..`.
    ///
    /// # Errors
    /// `ENOTDIR`, and as [`Model::lookup`].
    pub fn readdir(&self, path: &str) -> Outcome<Vec<&str>> {
        match &self.get(path)?.content {
            Content::Directory(entries) => Ok(entries.keys().map(String::as_str).collect()),
            Content::File(_) | Content::Symlink(_) => Err(Errno::NOTDIR),
        }
    }

    fn bytes(&self, id: NodeId) -> Outcome<&Vec<u8>> {
        match &self.node(id).content {
            Content::File(bytes) => Ok(bytes),
            Content::Directory(_) => Err(Errno::ISDIR),
            Content::Symlink(_) => Err(Errno::LOOP),
        }
    }

    fn bytes_mut(&mut self, id: NodeId) -> Outcome<&mut Vec<u8>> {
        self.bytes(id)?;
        let now_ns = self.now_ns;
        let node = self.node_mut(id);
        node.mtime_ns = now_ns;
        match &mut node.content {
            Content::File(bytes) => Ok(bytes),
            Content::Directory(_) | Content::Symlink(_) => Err(Errno::ISDIR),
        }
    }

    /// `pread`: fewer bytes at the end of the file.
    ///
    /// # Errors
    /// `EISDIR`.
    pub fn read(&self, id: NodeId, offset: usize, len: usize) -> Outcome<&[u8]> {
        let bytes = self.bytes(id)?;
        let start = offset.min(bytes.len());
        Ok(&bytes[start..bytes.len().min(start.saturating_add(len))])
    }

    /// `pwrite`: a gap before `offset` reads as zeros.
    ///
    /// # Errors
    /// `EISDIR`.
    pub fn write(&mut self, id: NodeId, offset: usize, data: &[u8]) -> Outcome<()> {
        if data.is_empty() {
            return self.bytes(id).map(drop);
        }
        let bytes = self.bytes_mut(id)?;
        let end = offset + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset..end].copy_from_slice(data);
        Ok(())
    }

    /// A write with `O_APPEND`.
    ///
    /// # Errors
    /// `EISDIR`.
    pub fn append(&mut self, id: NodeId, data: &[u8]) -> Outcome<()> {
        let len = self.bytes(id)?.len();
        self.write(id, len, data)
    }

    /// `ftruncate`: shrinks, or grows with zeros.
    ///
    /// # Errors
    /// `EISDIR`.
    pub fn truncate(&mut self, id: NodeId, len: usize) -> Outcome<()> {
        self.bytes_mut(id)?.resize(len, 0);
        Ok(())
    }

    /// `unlink`.
    ///
    /// # Errors
    /// `EISDIR` for a directory, and as [`Model::lookup`].
    pub fn unlink(&mut self, path: &str) -> Outcome<()> {
        let (parent, name) = match self.parent(path) {
            Err(Errno::BUSY) => return Err(Errno::ISDIR),
            found => found?,
        };
        let id = *self.entries(parent)?.get(name).ok_or(Errno::NOENT)?;
        if matches!(self.node(id).content, Content::Directory(_)) {
            return Err(Errno::ISDIR);
        }
        self.entries_mut(parent)?.remove(name);
        Ok(())
    }

    /// `rmdir`.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOTEMPTY`, `EBUSY` for the root, and as [`Model::lookup`].
    pub fn rmdir(&mut self, path: &str) -> Outcome<()> {
        let (parent, name) = self.parent(path)?;
        let id = *self.entries(parent)?.get(name).ok_or(Errno::NOENT)?;
        match &self.node(id).content {
            Content::Directory(entries) if entries.is_empty() => {}
            Content::Directory(_) => return Err(Errno::NOTEMPTY),
            Content::File(_) | Content::Symlink(_) => return Err(Errno::NOTDIR),
        }
        self.entries_mut(parent)?.remove(name);
        Ok(())
    }

    /// `renameat2`.
    ///
    /// # Errors
    /// `EEXIST`, `EISDIR`, `ENOTDIR`, `ENOTEMPTY`, `EINVAL` if a directory would move below itself, `EBUSY` for the
    /// root, and as [`Model::lookup`].
    pub fn rename(&mut self, from: &str, to: &str, replace: Replace) -> Outcome<()> {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        let moved = *self.entries(from_parent)?.get(from_name).ok_or(Errno::NOENT)?;
        let replaced = self.entries(to_parent)?.get(to_name).copied();
        // In the order in which Linux looks.
        match (replace, replaced) {
            (Replace::No, Some(_)) => return Err(Errno::EXIST),
            (Replace::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if self.is_or_holds(moved, to_parent) {
            return Err(Errno::INVAL);
        }
        if let Some(other) = replaced {
            if self.is_or_holds(other, from_parent) {
                // It holds what is moved.
                return Err(if replace == Replace::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
            }
            if other == moved {
                return Ok(());
            }
            if replace == Replace::Exchange {
                self.entries_mut(from_parent)?.insert(from_name.to_owned(), other);
                self.entries_mut(to_parent)?.insert(to_name.to_owned(), moved);
                return Ok(());
            }
            let is_directory = |id| matches!(self.node(id).content, Content::Directory(_));
            match (is_directory(moved), is_directory(other)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !self.entries(other)?.is_empty() => return Err(Errno::NOTEMPTY),
                _ => {}
            }
        }
        self.entries_mut(from_parent)?.remove(from_name);
        self.entries_mut(to_parent)?.insert(to_name.to_owned(), moved);
        Ok(())
    }

    fn is_or_holds(&self, ancestor: NodeId, id: NodeId) -> bool {
        ancestor == id
            || self.entries(ancestor).is_ok_and(|entries| entries.values().any(|child| self.is_or_holds(*child, id)))
    }

    /// `chmod`.
    ///
    /// # Errors
    /// As [`Model::lookup`]; `EOPNOTSUPP` for a link, as Linux says.
    pub fn chmod(&mut self, path: &str, mode: u32) -> Outcome<()> {
        let id = self.lookup(path)?;
        if matches!(self.node(id).content, Content::Symlink(_)) {
            return Err(Errno::OPNOTSUPP);
        }
        self.node_mut(id).mode = mode & 0o7777;
        Ok(())
    }

    /// `lchown`.
    ///
    /// # Errors
    /// As [`Model::lookup`].
    pub fn chown(&mut self, path: &str, uid: u32, gid: u32) -> Outcome<()> {
        let id = self.lookup(path)?;
        let node = self.node_mut(id);
        (node.uid, node.gid) = (uid, gid);
        Ok(())
    }

    /// `utimensat` of the time of modification, without following a link.
    ///
    /// # Errors
    /// As [`Model::lookup`].
    pub fn utimens(&mut self, path: &str, mtime_ns: i64) -> Outcome<()> {
        let id = self.lookup(path)?;
        self.node_mut(id).mtime_ns = mtime_ns;
        Ok(())
    }

    /// Every path but the root's, in order: parents before what they hold.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths(ROOT, "", &mut paths);
        paths
    }

    fn collect_paths(&self, id: NodeId, path: &str, paths: &mut Vec<String>) {
        for (name, child) in self.entries(id).into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            paths.push(path.clone());
            self.collect_paths(*child, &path, paths);
        }
    }
}

fn check_name(name: &str) -> Outcome<()> {
    if name.len() > NAME_LEN_MAX { Err(Errno::NAMETOOLONG) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use rustix::fs::{CWD, RenameFlags, renameat_with};

    use super::*;
    use crate::faults::Random;

    fn errno<T>(result: io::Result<T>) -> Outcome<T> {
        result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// Random operations on the model and on this machine's own file system agree.
    #[test]
    fn the_model_is_right_about_linux() {
        for seed in 0..20 {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path().join("root");
            fs::create_dir(&root).unwrap();
            // Links lead into a loop, so that following one fails as the model has it.
            let target = directory.path().join("loop");
            std::os::unix::fs::symlink(&target, &target).unwrap();
            let target = target.to_str().unwrap();
            let mut random = Random::new(seed);
            let mut model = Model::new(0, 0);
            for step in 0..400 {
                let real = |path: &str| root.join(path);
                let (a, b) = (path(&mut random), path(&mut random));
                let (told, expected) = match random.below(13) {
                    0 | 1 => {
                        let told = model.create(&a, 0o644).map(drop);
                        (told, errno(fs::File::create_new(real(&a))).map(drop))
                    }
                    2 | 3 => (model.mkdir(&a, 0o755).map(drop), errno(fs::create_dir(real(&a)))),
                    4 => (model.unlink(&a), errno(rustix::fs::unlink(real(&a)).map_err(Into::into))),
                    5 => (model.rmdir(&a), errno(fs::remove_dir(real(&a)))),
                    6 | 7 => (model.rename(&a, &b, Replace::Yes), errno(fs::rename(real(&a), real(&b)))),
                    8 => {
                        let (replace, flags) = *random
                            .pick(&[(Replace::No, RenameFlags::NOREPLACE), (Replace::Exchange, RenameFlags::EXCHANGE)]);
                        let told = model.rename(&a, &b, replace);
                        (told, renameat_with(CWD, real(&a), CWD, real(&b), flags))
                    }
                    9 | 10 => {
                        let (offset, len) = (random.below(50), random.below(50));
                        let data = vec![u8::try_from(random.below(256)).unwrap(); usize::try_from(len).unwrap()];
                        let told =
                            model.open(&a).and_then(|id| model.write(id, usize::try_from(offset).unwrap(), &data));
                        (told, open(&real(&a)).and_then(|file| errno(file.write_all_at(&data, offset))))
                    }
                    11 => {
                        let len = random.below(60);
                        let told = model.open(&a).and_then(|id| model.truncate(id, usize::try_from(len).unwrap()));
                        (told, open(&real(&a)).and_then(|file| errno(file.set_len(len))))
                    }
                    _ => (model.symlink(target, &a).map(drop), errno(std::os::unix::fs::symlink(target, real(&a)))),
                };
                assert_eq!(told, expected, "seed {seed}, step {step}: {a:?} {b:?}");
            }
            compare(&model, &root);
        }
    }

    fn path(random: &mut Random) -> String {
        let names = ["a", "b", "c"];
        let depth = 1 + random.below(3);
        (0..depth).map(|_| *random.pick(&names)).collect::<Vec<_>>().join("/")
    }

    fn open(path: &Path) -> Outcome<fs::File> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
    }

    fn compare(model: &Model, root: &Path) {
        for path in model.paths() {
            let node = model.get(&path).unwrap();
            let real = root.join(&path);
            match &node.content {
                Content::File(bytes) => assert_eq!(fs::read(&real).unwrap(), *bytes, "{path}"),
                Content::Directory(entries) => {
                    assert_eq!(fs::read_dir(&real).unwrap().count(), entries.len(), "{path}");
                }
                Content::Symlink(target) => assert_eq!(fs::read_link(&real).unwrap(), Path::new(target)),
            }
        }
    }

    #[test]
    fn attributes_are_kept() {
        let mut model = Model::new(1000, 100);
        model.now_ns = 5;
        let id = model.create("f", 0o640).unwrap();
        assert_eq!((model.get("f").unwrap().mode, model.get("f").unwrap().mtime_ns), (0o640, 5));
        model.chmod("f", 0o104_755).unwrap();
        model.chown("f", 1, 2).unwrap();
        model.utimens("f", -7).unwrap();
        let node = model.get("f").unwrap();
        assert_eq!((node.mode, node.uid, node.gid, node.mtime_ns), (0o4755, 1, 2, -7));
        model.now_ns = 9;
        model.unlink("f").unwrap();
        model.append(id, b"still open").unwrap();
        assert_eq!(model.read(id, 6, 100).unwrap(), b"open");
        assert_eq!(model.node(id).mtime_ns, 9);
        assert_eq!(model.lookup("f"), Err(Errno::NOENT));
        assert_eq!(model.create(&"x".repeat(256), 0), Err(Errno::NAMETOOLONG));
    }
}
