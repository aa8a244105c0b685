//! Names of the class `local`: they live in the [local tree](crate::local) and nowhere else.
//!
//! Each operation asks here first. Below a local directory everything is local; below one of the bucket the rules say which
//! names are, and those hide what the bucket has under them. Names of the local tree are changed under the lock of the
//! node tree, so that both say the same at any moment; nothing is awaited there. A file's bytes go by its descriptor.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate};
use rustix::io::Errno;
use sandpail_spec::PathClass;
use sandpail_store::Proof;

use super::directory::{DirItem, touch};
use super::file::clear_set_id;
use super::{Begun, Engine, FileHandle, OpenMode, Opened, SetAttr, Stat, Whence, WriteBack, guard, not_found, stale};
use crate::attr::{Attr, Kind};
use crate::ledger::Moving;
use crate::local::{At, LocalTree, check_name};
use crate::receipt::{FileState, Receipt};
use crate::tree::{Entry, Name, Tree};
use crate::{FsError, FsResult};

/// What is read at once, in bytes; more than the kernel asks for.
const READ_LEN_MAX: u64 = 16 << 20;

/// Where something of a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    Bucket,
    Local,
    /// A directory is local, anything else is in the bucket.
    DirectoryLocal,
}

impl Home {
    fn is_local(self, kind: Kind) -> bool {
        match self {
            Self::Bucket => false,
            Self::Local => true,
            Self::DirectoryLocal => kind == Kind::Directory,
        }
    }
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> FsError {
    let what = what.to_owned();
    move |source| FsError::Io { what, source }
}

pub(super) fn on_disk(what: &str) -> impl FnOnce(Errno) -> FsError {
    let what = what.to_owned();
    move |source| match source {
        Errno::NOSPC | Errno::DQUOT => FsError::NoSpace { what },
        Errno::FBIG => FsError::TooLarge { what },
        Errno::OPNOTSUPP => FsError::Unsupported { what },
        Errno::NXIO => FsError::Range { what },
        source => FsError::Io { what, source: source.into() },
    }
}

pub(super) fn other_class(name: &[u8], new_name: &[u8]) -> FsError {
    let what = format!("{:?} to {:?}", String::from_utf8_lossy(name), String::from_utf8_lossy(new_name));
    FsError::OtherClass { what }
}

pub(super) fn path_in(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// Something of the local tree under the tree's lock.
struct Found<'a> {
    local: &'a LocalTree,
    path: Vec<u8>,
    /// `None`: it still has its name.
    parked: Option<u64>,
}

impl Found<'_> {
    fn at(&self) -> At<'_> {
        self.parked.map_or(At::Path(&self.path), At::Parked)
    }
}

impl Engine {
    /// When a closed file is stored.
    fn class_of(&self, tree: &Tree, ino: u64) -> Option<PathClass> {
        self.options.path_classes.class_of(&tree.names_of(ino), false)
    }

    /// How a file is closed before the bucket has it; `None`: it is not.
    pub(super) fn write_back_of(&self, ino: u64) -> Option<WriteBack> {
        let policy = self.options.write_back?;
        let is_wanted = match self.class_of(&self.tree(), ino) {
            Some(class) => class == PathClass::WriteBack,
            None => self.options.write_back_by_default,
        };
        is_wanted.then_some(policy)
    }

    /// The same of a name that nothing has yet.
    pub(super) fn is_written_back(&self, parent: u64, name: &[u8]) -> bool {
        let path = path_in(&self.tree().names_of(parent), name);
        let class = self.options.path_classes.class_of(&path, false);
        class.map_or(self.options.write_back_by_default, |class| class == PathClass::WriteBack)
    }

    fn home(&self, tree: &Tree, parent: u64, name: &[u8]) -> Home {
        if self.local.is_none() {
            return Home::Bucket;
        }
        if tree.get(parent).is_some_and(|node| node.off_bucket) {
            return Home::Local;
        }
        self.home_of(&path_in(&tree.names_of(parent), name))
    }

    fn home_of(&self, path: &[u8]) -> Home {
        let is_local = |is_directory| self.options.path_classes.class_of(path, is_directory) == Some(PathClass::Local);
        match (is_local(true), is_local(false)) {
            (false, _) => Home::Bucket,
            (true, true) => Home::Local,
            (true, false) => Home::DirectoryLocal,
        }
    }

    /// Whether something new of this kind is local.
    pub(super) fn is_local_place(&self, parent: u64, name: &[u8], kind: Kind) -> bool {
        self.local.is_some() && self.home(&self.tree(), parent, name).is_local(kind)
    }

    /// Whether a node is in the local tree.
    pub(super) fn is_off_bucket(&self, ino: u64) -> bool {
        self.local.is_some() && self.tree().get(ino).is_some_and(|node| node.off_bucket)
    }

    /// Whether what the bucket has under a name is not shown.
    pub(super) fn hides(&self, tree: &Tree, parent: u64, name: &[u8], is_directory: bool) -> bool {
        let kind = if is_directory { Kind::Directory } else { Kind::File };
        self.home(tree, parent, name).is_local(kind)
    }

    /// Takes what is hidden out of what the bucket has listed.
    pub(super) fn show_only(&self, parent: u64, entries: &mut std::collections::BTreeMap<Name, Entry>) {
        if self.local.is_some() {
            let tree = self.tree();
            entries.retain(|name, entry| !self.hides(&tree, parent, name, entry.is_directory()));
        }
    }

    /// Where a node of the local tree is. The caller holds the tree's lock.
    fn found(&self, tree: &Tree, ino: u64) -> FsResult<Option<Found<'_>>> {
        let (Some(local), Some(node)) = (&self.local, tree.get(ino)) else { return Ok(None) };
        if !node.off_bucket {
            return Ok(None);
        }
        Ok(Some(Found { local, path: tree.names_of(ino), parked: (!node.is_linked).then_some(ino) }))
    }

    /// The path of a name in a directory in which it may be made. The caller holds the tree's lock.
    pub(super) fn free_place(&self, tree: &Tree, parent: u64, name: &[u8]) -> FsResult<(&LocalTree, Vec<u8>)> {
        let local = self.local.as_ref().ok_or_else(|| not_found(name))?;
        check_name(name)?;
        let node = tree.get(parent).ok_or_else(|| stale(parent))?;
        if node.dir.is_none() {
            return Err(FsError::NotADirectory);
        }
        if !node.is_linked {
            return Err(not_found(name));
        }
        let directory = tree.names_of(parent);
        if !node.off_bucket {
            local.make_parents(&directory)?;
        }
        Ok((local, path_in(&directory, name)))
    }

    /// A name has come or gone in a directory, or was to.
    pub(super) fn changed_in(&self, tree: &mut Tree, local: &LocalTree, parent: u64, is_done: bool) {
        if tree.get(parent).is_some_and(|node| !node.off_bucket) {
            if is_done {
                touch(tree, parent);
            }
            local.prune(&tree.names_of(parent));
        }
    }

    fn place(&self, tree: &mut Tree, parent: u64, name: &[u8], attr: Attr) -> u64 {
        let known = tree.child(parent, name).filter(|node| node.off_bucket && node.attr.kind == attr.kind);
        if let Some(ino) = known.map(|node| node.ino) {
            note_attr(tree, ino, attr);
            return ino;
        }
        let segment = Arc::from(String::from_utf8_lossy(name));
        let ino = tree.insert(parent, name.into(), segment, attr);
        if let Some(node) = tree.get_mut(ino) {
            node.off_bucket = true;
        }
        ino
    }

    /// Finds a name in the local tree. `None`: the bucket is to be asked.
    pub(super) fn resolve_local(&self, parent: u64, name: &[u8], pin: bool) -> FsResult<Option<Stat>> {
        let Some(local) = &self.local else { return Ok(None) };
        let mut tree = self.tree();
        let node = tree.get(parent).ok_or_else(|| stale(parent))?;
        if node.dir.is_none() {
            return Err(FsError::NotADirectory);
        }
        let is_linked = node.is_linked;
        let home = self.home(&tree, parent, name);
        if home == Home::Bucket {
            return Ok(None);
        }
        if !is_linked {
            return Err(not_found(name));
        }
        check_name(name)?;
        let path = path_in(&tree.names_of(parent), name);
        let found = match local.stat(At::Path(&path)) {
            // Left from a time with other rules.
            Ok(attr) if !home.is_local(attr.kind) => None,
            Ok(attr) => Some(attr),
            Err(FsError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let Some(attr) = found else {
            if tree.child(parent, name).is_some_and(|node| node.off_bucket) {
                tree.detach(parent, name);
            }
            return if home == Home::Local { Err(not_found(name)) } else { Ok(None) };
        };
        let ino = self.place(&mut tree, parent, name, attr);
        if pin && let Some(node) = tree.get_mut(ino) {
            node.lookups += 1;
        }
        super::stat_of(&tree, ino).map(Some)
    }

    /// What `stat` shows now. `None`: it is not local.
    pub(super) fn local_stat(&self, ino: u64) -> FsResult<Option<Stat>> {
        if self.local.is_none() {
            return Ok(None);
        }
        let mut tree = self.tree();
        let Some(found) = self.found(&tree, ino)? else { return Ok(None) };
        match found.local.stat(found.at()) {
            Ok(attr) => note_attr(&mut tree, ino, attr),
            // Nobody has it open; it is known by a descriptor that opens nothing.
            Err(FsError::NotFound { .. }) if found.parked.is_some() => {}
            Err(error) => return Err(error),
        }
        super::stat_of(&tree, ino).map(Some)
    }

    /// What stands in a directory, as far as it is local.
    pub(super) fn local_items(&self, tree: &Tree, ino: u64) -> FsResult<Vec<DirItem>> {
        let Some(local) = &self.local else { return Ok(Vec::new()) };
        let is_all_local = tree.get(ino).is_some_and(|node| node.off_bucket);
        let directory = tree.names_of(ino);
        let mut listed = local.list(&directory)?;
        listed.retain(|(name, kind)| is_all_local || self.home_of(&path_in(&directory, name)).is_local(*kind));
        let item = |(name, kind): (Vec<u8>, Kind)| DirItem {
            name: Name::from(name),
            is_directory: kind == Kind::Directory,
            local: Some(kind),
        };
        Ok(listed.into_iter().map(item).collect())
    }

    pub(super) async fn mkdir_local(&self, parent: u64, name: &[u8], perm: u32, uid: u32, gid: u32) -> FsResult<Stat> {
        self.check_free(parent, name).await?;
        let attr = self.new_attr(parent, Kind::Directory, perm, uid, gid);
        self.note_made(parent, name, attr, |local, path, attr| local.mkdir(path, attr))
    }

    pub(super) async fn symlink_local(
        &self,
        parent: u64,
        name: &[u8],
        target: &[u8],
        uid: u32,
        gid: u32,
    ) -> FsResult<Stat> {
        self.check_free(parent, name).await?;
        let attr = self.new_attr(parent, Kind::Symlink, 0o777, uid, gid);
        self.note_made(parent, name, attr, |local, path, attr| local.symlink(path, target, attr))
    }

    async fn check_free(&self, parent: u64, name: &[u8]) -> FsResult<()> {
        match self.resolve(parent, name, false).await {
            Ok(_) => Err(FsError::Exists { what: format!("{:?}", String::from_utf8_lossy(name)) }),
            Err(FsError::NotFound { .. }) if self.is_status_name(parent, name) => {
                Err(FsError::Exists { what: "the mount's own directory".to_owned() })
            }
            Err(FsError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn note_made(
        &self,
        parent: u64,
        name: &[u8],
        attr: Attr,
        make: impl FnOnce(&LocalTree, &[u8], &Attr) -> FsResult<()>,
    ) -> FsResult<Stat> {
        // From here on it may be there, if it is asked for again.
        self.note_ended(self.note_begun());
        let mut tree = self.tree();
        let (local, path) = self.free_place(&tree, parent, name)?;
        let made = make(local, &path, &attr).and_then(|()| local.stat(At::Path(&path)));
        self.changed_in(&mut tree, local, parent, made.is_ok());
        let ino = self.place(&mut tree, parent, name, made?);
        if let Some(node) = tree.get_mut(ino) {
            node.lookups += 1;
        }
        super::stat_of(&tree, ino)
    }

    pub(super) async fn create_local(
        &self,
        parent: u64,
        name: &[u8],
        perm: u32,
        uid: u32,
        gid: u32,
        mode: OpenMode,
    ) -> FsResult<Opened> {
        self.check_free(parent, name).await?;
        let attr = self.new_attr(parent, Kind::File, perm, uid, gid);
        self.note_ended(self.note_begun());
        let (stat, file) = {
            let mut tree = self.tree();
            let (local, path) = self.free_place(&tree, parent, name)?;
            let made = local.create(&path, &attr, mode).and_then(|file| Ok((file, local.stat(At::Path(&path))?)));
            self.changed_in(&mut tree, local, parent, made.is_ok());
            let (file, attr) = made?;
            let ino = self.place(&mut tree, parent, name, attr);
            if let Some(node) = tree.get_mut(ino) {
                node.lookups += 1;
                node.opens += 1;
                node.has_pages = true;
            }
            (super::stat_of(&tree, ino)?, file)
        };
        let handle = self.add_local_handle(stat.ino, file, mode);
        Ok(Opened { handle, stat, keep_cache: false, direct_io: false })
    }

    /// Opens a file of the local tree. `None`: it is not local.
    pub(super) fn open_local(&self, ino: u64, mode: OpenMode) -> FsResult<Option<Opened>> {
        if self.local.is_none() {
            return Ok(None);
        }
        let (file, stat) = {
            let mut tree = self.tree();
            let Some(found) = self.found(&tree, ino)? else { return Ok(None) };
            let file = found.local.open(found.at(), OpenMode { write: mode.write || mode.truncate, ..mode })?;
            if mode.truncate {
                file.set_len(0).map_err(io("cannot empty a local file"))?;
            }
            note_attr(&mut tree, ino, found.local.stat(found.at())?);
            if let Some(node) = tree.get_mut(ino) {
                node.opens += 1;
                node.has_pages = true;
            }
            (file, super::stat_of(&tree, ino)?)
        };
        let handle = self.add_local_handle(ino, file, mode);
        // Nobody but this mount changes it.
        Ok(Some(Opened { handle, stat, keep_cache: !mode.truncate, direct_io: false }))
    }

    fn add_local_handle(&self, ino: u64, file: File, mode: OpenMode) -> u64 {
        let handle = self.new_handle();
        guard(&self.files).insert(handle, Arc::new(FileHandle::local(ino, file, mode)));
        self.note_opened(handle, ino, Some(mode));
        handle
    }

    /// The same for a handle that the process before had given.
    pub(super) fn reopen_local(&self, ino: u64, mode: OpenMode) -> FsResult<FileHandle> {
        let tree = self.tree();
        let found = self.found(&tree, ino)?.ok_or_else(|| stale(ino))?;
        // First what was parked: another file may have the name already, which the ledger does not know yet.
        let opened = match found.local.open(At::Parked(ino), mode) {
            Err(FsError::NotFound { .. }) if found.parked.is_none() => found.local.open(found.at(), mode),
            opened => opened,
        };
        Ok(FileHandle::local(ino, opened?, mode))
    }

    /// Puts nodes where the process before had moved them, if it was killed before it could say so.
    pub(super) fn finish_moves(&self, moves: Vec<Moving>) {
        let Some(local) = &self.local else { return };
        let mut tree = self.tree();
        for Moving { ino, parent, name } in moves {
            let Some(node) = tree.get(ino).filter(|node| node.is_linked) else { continue };
            let is_there = |path: &[u8]| local.stat(At::Path(path)).is_ok();
            let (old, new) = (tree.names_of(ino), path_in(&tree.names_of(parent), &name));
            if (node.parent, &node.name) == (parent, &name) || is_there(&old) || !is_there(&new) {
                continue;
            }
            let segment = Arc::from(String::from_utf8_lossy(&name));
            tree.detach(parent, &name);
            tree.relink(ino, parent, name, segment);
        }
    }

    /// Removes what was parked for handles that are gone.
    pub(super) fn clean_parked(&self) -> FsResult<()> {
        let Some(local) = &self.local else { return Ok(()) };
        let tree = self.tree();
        local.remove_parked(|ino| tree.get(ino).is_some_and(|node| node.opens > 0))
    }

    /// A handle is closed.
    pub(super) fn unpark_unused(&self, tree: &Tree, ino: u64) {
        if let Some(local) = &self.local
            && tree.get(ino).is_some_and(|node| node.off_bucket && node.opens == 0 && !node.is_linked)
            && let Err(error) = local.unpark(ino)
        {
            tracing::warn!(%error, "a removed file still takes room until the next mount");
        }
    }

    /// Removes a file or a link. `None`: it is not local.
    pub(super) fn unlink_local(&self, parent: u64, name: &[u8], ino: u64) -> FsResult<Option<()>> {
        self.remove_local(parent, name, ino, |local, path, open| local.unlink(path, open))
    }

    /// Removes an empty directory. `None`: it is not local.
    pub(super) fn rmdir_local(&self, parent: u64, name: &[u8], ino: u64) -> FsResult<Option<()>> {
        self.remove_local(parent, name, ino, |local, path, _| local.rmdir(path))
    }

    fn remove_local(
        &self,
        parent: u64,
        name: &[u8],
        ino: u64,
        remove: impl FnOnce(&LocalTree, &[u8], Option<u64>) -> FsResult<()>,
    ) -> FsResult<Option<()>> {
        if !self.is_off_bucket(ino) {
            return Ok(None);
        }
        self.note_ended(self.note_begun());
        let mut tree = self.tree();
        let Some(found) = self.found(&tree, ino)? else { return Ok(None) };
        if tree.child(parent, name).is_none_or(|node| node.ino != ino) {
            return Err(not_found(name));
        }
        let open = tree.get(ino).filter(|node| node.opens > 0).map(|node| node.ino);
        remove(found.local, &found.path, open)?;
        tree.detach(parent, name);
        self.changed_in(&mut tree, found.local, parent, true);
        Ok(Some(()))
    }

    /// Moves what is local to where it stays so. `None`: neither is local.
    pub(super) async fn rename_local(
        &self,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        begun: Begun,
    ) -> FsResult<Option<()>> {
        if self.local.is_none() {
            return Ok(None);
        }
        let source = match self.resolve_to_change(parent, name).await {
            // It is done already.
            Err(FsError::NotFound { .. }) if matches!(begun, Begun::Before) => return Ok(None),
            source => source?,
        };
        let is_local = self.is_local_place(new_parent, new_name, source.attr.kind);
        if source.is_local != is_local {
            if source.is_local || source.attr.kind != Kind::Directory {
                return Err(other_class(name, new_name));
            }
            self.note_ended(self.note_begun());
            let is_again = matches!(begun, Begun::Before);
            self.carry_to_local(&source, (parent, name), (new_parent, new_name), is_again).await?;
            return Ok(Some(()));
        }
        if !is_local {
            return Ok(None);
        }
        let no_replace = matches!(begun, Begun::Now { no_replace: true });
        match self.resolve(new_parent, new_name, false).await {
            Ok(target) if target.ino == source.ino && !no_replace => return Ok(Some(())),
            Ok(_) if no_replace => {
                return Err(FsError::Exists { what: format!("{:?}", String::from_utf8_lossy(new_name)) });
            }
            Ok(target) => match (source.attr.kind == Kind::Directory, target.attr.kind == Kind::Directory) {
                (true, false) => return Err(FsError::NotADirectory),
                (false, true) => return Err(FsError::IsADirectory),
                _ => {}
            },
            Err(FsError::NotFound { .. }) if self.is_status_name(new_parent, new_name) => {
                return Err(super::status::refused());
            }
            Err(FsError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        self.note_ended(self.note_begun());
        let mut tree = self.tree();
        let ino = source.ino;
        if tree.child(parent, name).is_none_or(|node| node.ino != ino) {
            return Err(not_found(name));
        }
        let old = tree.names_of(ino);
        let (local, new) = self.free_place(&tree, new_parent, new_name)?;
        let open = tree.child(new_parent, new_name).filter(|node| node.opens > 0 && node.dir.is_none());
        let open = open.map(|node| node.ino);
        self.note_moving(ino, new_parent, new_name);
        let moved = local.rename(&old, &new, no_replace, open);
        if moved.is_ok() {
            tree.detach(new_parent, new_name);
            let segment = Arc::from(String::from_utf8_lossy(new_name));
            tree.relink(ino, new_parent, Name::from(new_name), segment);
        }
        self.changed_in(&mut tree, local, parent, moved.is_ok());
        self.changed_in(&mut tree, local, new_parent, moved.is_ok());
        moved.map(Some)
    }

    fn note_moving(&self, ino: u64, parent: u64, name: &[u8]) {
        if let Some(ledger) = &self.ledger {
            ledger.moving(Moving { ino, parent, name: name.into() });
        }
    }

    /// Checks that a move of a directory of the bucket leaves every path below it of its kind: local, or in the bucket.
    pub(super) fn check_classes_below<'a>(
        &self,
        ino: u64,
        (new_parent, new_name): (u64, &[u8]),
        keys: impl Iterator<Item = &'a str>,
    ) -> FsResult<()> {
        let Some(local) = &self.local else { return Ok(()) };
        let (old, new) = {
            let tree = self.tree();
            (tree.names_of(ino), path_in(&tree.names_of(new_parent), new_name))
        };
        let differs = |below: &[u8], is_directory: bool| {
            let is_local = |directory: &[u8]| {
                let path = path_in(directory, below);
                self.options.path_classes.class_of(&path, is_directory) == Some(PathClass::Local)
            };
            is_local(&old) != is_local(&new)
        };
        for key in keys.filter(|key| !key.is_empty()) {
            let path = key.strip_suffix('/').unwrap_or(key);
            if differs(path.as_bytes(), path.len() < key.len()) {
                return Err(other_class(&old, &new));
            }
        }
        // Local names; below them nothing can differ.
        let mut open = vec![Vec::new()];
        while let Some(directory) = open.pop() {
            for (name, kind) in local.list(&path_in_or(&old, &directory))? {
                let below = path_in(&directory, &name);
                if differs(&below, kind == Kind::Directory) {
                    return Err(other_class(&old, &new));
                }
                if kind == Kind::Directory && !self.home_of(&path_in(&old, &below)).is_local(kind) {
                    open.push(below);
                }
            }
        }
        Ok(())
    }

    /// A directory of the bucket has another place from now on: what is local below it goes along.
    pub(super) fn follow(&self, tree: &Tree, ino: u64, new_parent: u64, new_name: &[u8]) -> FsResult<()> {
        let Some(local) = &self.local else { return Ok(()) };
        self.note_moving(ino, new_parent, new_name);
        local.follow(&tree.names_of(ino), &path_in(&tree.names_of(new_parent), new_name))
    }

    /// A directory of the bucket is gone.
    pub(super) fn forget_directory(&self, parent: u64, name: &[u8]) {
        if let Some(local) = &self.local {
            local.prune(&path_in(&self.tree().names_of(parent), name));
        }
    }

    /// Changes attributes. `None`: it is not local.
    pub(super) fn setattr_local(&self, ino: u64, set: &SetAttr) -> FsResult<Option<Stat>> {
        if !self.is_off_bucket(ino) {
            return Ok(None);
        }
        let through = match set.handle.filter(|_| set.size.is_some()) {
            Some(handle) => self.local_file(handle, |file| file.can_write)?,
            None => None,
        };
        {
            let tree = self.tree();
            let Some(found) = self.found(&tree, ino)? else { return Ok(None) };
            if let Some(size) = set.size {
                let resized = match through {
                    Some(file) => file.set_len(size),
                    None => found
                        .local
                        .open(found.at(), OpenMode { read: true, write: true, ..OpenMode::default() })?
                        .set_len(size),
                };
                resized.map_err(io("cannot change the length of a local file"))?;
            }
            found.local.set(found.at(), set)?;
        }
        self.local_stat(ino)
    }

    /// The descriptor of a local file that is open so.
    fn local_file(&self, handle: u64, is_fit: impl FnOnce(&FileHandle) -> bool) -> FsResult<Option<Arc<File>>> {
        let file = guard(&self.files).get(&handle).cloned().ok_or(FsError::BadHandle)?;
        if !is_fit(&file) {
            return Err(FsError::BadHandle);
        }
        Ok(file.local.clone())
    }

    pub(super) fn readlink_local(&self, ino: u64) -> FsResult<Option<Arc<[u8]>>> {
        if self.local.is_none() {
            return Ok(None);
        }
        let tree = self.tree();
        let Some(found) = self.found(&tree, ino)? else { return Ok(None) };
        Ok(Some(found.local.readlink(&found.path)?.into()))
    }

    /// The receipt of something local.
    pub(super) fn receipt_local(&self, ino: u64) -> FsResult<Option<Receipt>> {
        let Some(stat) = self.local_stat(ino)? else { return Ok(None) };
        let state = if stat.is_linked { FileState::Local } else { FileState::Removed };
        let size = stat.attr.size;
        Ok(Some(Receipt {
            state,
            size,
            etag: None,
            proof: Proof::default(),
            unstored_bytes: 0,
            waiting: None,
            failure: None,
        }))
    }

    /// Does something with the extended attributes of what is local. `None`: it is not.
    pub(super) fn with_local<T>(
        &self,
        ino: u64,
        work: impl FnOnce(&LocalTree, At<'_>) -> FsResult<T>,
    ) -> FsResult<Option<T>> {
        if self.local.is_none() {
            return Ok(None);
        }
        let tree = self.tree();
        let Some(found) = self.found(&tree, ino)? else { return Ok(None) };
        work(found.local, found.at()).map(Some)
    }

    pub(super) fn write_local(
        &self,
        file: &File,
        offset: Option<u64>,
        data: &[u8],
        kill_set_id: bool,
    ) -> FsResult<usize> {
        if let Some(local) = &self.local {
            local.reserve(data.len() as u64)?;
        }
        let failed = || io("cannot write a local file");
        let offset = match offset {
            Some(offset) => offset,
            // The kernel sends one write of a file at a time.
            None => file.metadata().map_err(failed())?.len(),
        };
        file.write_all_at(data, offset).map_err(failed())?;
        if kill_set_id {
            drop_set_id(file).map_err(on_disk("cannot change the mode of a local file"))?;
        }
        Ok(data.len())
    }

    pub(super) fn fallocate_local(
        &self,
        file: &File,
        range: &std::ops::Range<u64>,
        keep_size: bool,
        zero: bool,
    ) -> FsResult<()> {
        let failed = || on_disk("cannot allocate for a local file");
        let len = range.end - range.start;
        if zero {
            fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range.start, len)
                .map_err(failed())?;
            let size = file.metadata().map_err(io("cannot allocate for a local file"))?.len();
            if !keep_size && range.end > size {
                file.set_len(range.end).map_err(io("cannot allocate for a local file"))?;
            }
            return Ok(());
        }
        if let Some(local) = &self.local {
            local.reserve(len)?;
        }
        let flags = if keep_size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
        fallocate(file, flags, range.start, len).map_err(failed())
    }

    pub(super) fn copy_local(&self, from: (&File, u64), to: (&File, u64), len: u64, len_max: u64) -> FsResult<u64> {
        let len = len.min(len_max);
        if let Some(local) = &self.local {
            local.reserve(len.min(from.0.metadata().map_err(io("cannot copy a local file"))?.len()))?;
        }
        let (mut from_offset, mut to_offset) = (from.1, to.1);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let copied = rustix::fs::copy_file_range(from.0, Some(&mut from_offset), to.0, Some(&mut to_offset), len);
        match copied {
            Ok(copied) => Ok(copied as u64),
            // The caller copies the bytes itself.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                Err(FsError::Unsupported { what: "a copy on the local disk".to_owned() })
            }
            Err(error) => Err(on_disk("cannot copy a local file")(error)),
        }
    }

    /// Brings the names in a directory to the local disk, if it is local.
    ///
    /// # Errors
    /// [`FsError::Io`] if the disk fails.
    pub async fn fsyncdir(self: &Arc<Self>, ino: u64) -> FsResult<()> {
        if self.local.is_none() {
            return Ok(());
        }
        let engine = Arc::clone(self);
        let sync = move || {
            let path = engine.tree().names_of(ino);
            match engine.local.as_ref().map(|local| local.sync_dir(&path)) {
                // Nothing local stands in it.
                Some(Err(FsError::NotFound { .. })) | None => Ok(()),
                Some(synced) => synced,
            }
        };
        tokio::task::spawn_blocking(sync).await.map_err(|error| io("cannot wait for the disk")(error.into()))?
    }
}

fn note_attr(tree: &mut Tree, ino: u64, attr: Attr) {
    // Only what has changed is news for the ledger.
    if tree.get(ino).is_some_and(|node| node.attr != attr)
        && let Some(node) = tree.get_mut(ino)
    {
        node.attr = attr;
    }
}

fn path_in_or(directory: &[u8], below: &[u8]) -> Vec<u8> {
    if below.is_empty() { directory.to_vec() } else { path_in(directory, below) }
}

fn drop_set_id(file: &File) -> Result<(), Errno> {
    let before = rustix::fs::fstat(file)?.st_mode & 0o7777;
    let mut perm = before;
    clear_set_id(&mut perm);
    if perm == before { Ok(()) } else { rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(perm)) }
}

/// Reads `len` bytes from `offset`; fewer at the end.
pub(super) fn read_local(file: &File, offset: u64, len: u64) -> FsResult<Vec<Bytes>> {
    let mut bytes = vec![0; usize::try_from(len.min(READ_LEN_MAX)).unwrap_or(0)];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io("cannot read a local file")(error)),
        }
    }
    bytes.truncate(filled);
    Ok(vec![bytes.into()])
}

/// Finds data or a hole.
pub(super) fn seek_local(file: &File, offset: u64, whence: Whence) -> FsResult<u64> {
    let to = match whence {
        Whence::Data => SeekFrom::Data(offset),
        Whence::Hole => SeekFrom::Hole(offset),
    };
    rustix::fs::seek(file, to).map_err(on_disk("offset behind the end"))
}

/// Returns when the file is on the local disk.
pub(super) async fn sync_local(file: Arc<File>) -> FsResult<()> {
    let synced = tokio::task::spawn_blocking(move || file.sync_all()).await;
    synced.map_err(std::io::Error::other).and_then(|done| done).map_err(io("cannot bring a local file to the disk"))
}
