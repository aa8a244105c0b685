//! A small directory that gets a local name.
//!
//! Programs make a directory under another name, put a note into it and move it to where it belongs: cargo does so with
//! `target`, and takes `EXDEV` for the end. So such a move is done here. Larger ones are left to `mv`, which copies.

use std::os::unix::fs::FileExt;

use super::local::{on_disk, other_class, path_in};
use super::{Engine, OpenMode, Stat};
use crate::attr::Kind;
use crate::local::{At, LocalTree};
use crate::tree::Name;
use crate::{FsError, FsResult};

/// What is carried at most: files, and bytes of each.
const FILES_MAX: usize = 16;
const FILE_LEN_MAX: u64 = 1 << 20;

impl Engine {
    /// Moves a directory of the bucket, with a few plain files in it, to a name in the local tree that is free; `is_again` if a
    /// process that died may have begun with that.
    ///
    /// # Errors
    /// [`FsError::OtherClass`] for anything else; [`FsError::Store`], [`FsError::Io`]: then the source is whole, and some of it may
    /// stand at the target, too.
    pub(super) async fn carry_to_local(
        &self,
        source: &Stat,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        is_again: bool,
    ) -> FsResult<()> {
        let refused = || other_class(name, new_name);
        if self.tree().is_within(new_parent, source.ino) {
            return Err(FsError::Invalid { what: "a directory cannot be moved into itself".to_owned() });
        }
        let target = match self.resolve(new_parent, new_name, false).await {
            Ok(target) if is_again && target.is_local && target.attr.kind == Kind::Directory => Some(target),
            Ok(_) => return Err(refused()),
            Err(FsError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let items = self.few_files(source.ino).await?.ok_or_else(refused)?;
        let path = {
            let tree = self.tree();
            let (local, path) = self.free_place(&tree, new_parent, new_name)?;
            if target.is_none() {
                local.mkdir(&path, &source.attr)?;
            }
            path
        };
        let local = self.local.as_ref().ok_or_else(refused)?;
        let carried = async {
            for (item, ino) in &items {
                self.carry_file(local, &path, item, *ino).await?;
            }
            Ok(())
        };
        if let Err(error) = carried.await {
            if !is_again {
                for (item, _) in &items {
                    let _ = local.unlink(&path_in(&path, item), None);
                }
                let _ = local.rmdir(&path);
            }
            return Err(error);
        }
        for (item, _) in &items {
            match self.unlink(source.ino, item).await {
                // By the process that had begun.
                Err(FsError::NotFound { .. }) => {}
                other => other?,
            }
        }
        match self.rmdir(parent, name).await {
            Err(FsError::NotFound { .. }) => {}
            other => other?,
        }
        // The kernel takes the inodes along to the new names.
        let attr = local.stat(At::Path(&path))?;
        let mut tree = self.tree();
        tree.detach(new_parent, new_name);
        if tree.get(source.ino).is_some() {
            tree.relink(source.ino, new_parent, Name::from(new_name), String::from_utf8_lossy(new_name).into());
            if let Some(node) = tree.get_mut(source.ino) {
                (node.is_linked, node.off_bucket, node.version, node.attr) = (true, true, None, attr);
                node.dir = Some(Box::default());
            }
        }
        for (item, ino) in &items {
            let attr = local.stat(At::Path(&path_in(&path, item)))?;
            if tree.get(*ino).is_none() {
                continue;
            }
            tree.relink(*ino, source.ino, Name::clone(item), String::from_utf8_lossy(item).into());
            if let Some(node) = tree.get_mut(*ino) {
                (node.is_linked, node.off_bucket, node.version, node.attr) = (true, true, None, attr);
                node.content = None;
            }
        }
        self.changed_in(&mut tree, local, new_parent, true);
        Ok(())
    }

    /// What is in a directory, if that is little.
    async fn few_files(&self, ino: u64) -> FsResult<Option<Vec<(Name, u64)>>> {
        let handle = self.opendir(ino)?;
        let listed = self.readdir(handle, 0, FILES_MAX + 3, false).await;
        self.releasedir(handle);
        let mut items = Vec::new();
        for entry in listed? {
            if *entry.name == *b"." || *entry.name == *b".." {
                continue;
            }
            let stat = self.resolve(ino, &entry.name, false).await?;
            let is_open = self.tree().get(stat.ino).is_none_or(|node| node.opens > 0);
            if stat.attr.kind != Kind::File || stat.is_local || stat.attr.size > FILE_LEN_MAX || is_open {
                return Ok(None);
            }
            items.push((entry.name, stat.ino));
        }
        Ok((items.len() <= FILES_MAX).then_some(items))
    }

    async fn carry_file(&self, local: &LocalTree, directory: &[u8], name: &[u8], ino: u64) -> FsResult<()> {
        let opened = self.open(ino, OpenMode { read: true, ..OpenMode::default() }).await?;
        let bytes = self.read(opened.handle, 0, FILE_LEN_MAX).await;
        self.release(opened.handle).await;
        let bytes = bytes?.concat();
        local.reserve(bytes.len() as u64)?;
        let path = path_in(directory, name);
        // One that a process which died had begun with.
        let _ = local.unlink(&path, None);
        let mode = OpenMode { write: true, ..OpenMode::default() };
        let file = local.create(&path, &opened.stat.attr, mode)?;
        let failed = on_disk("cannot write a local file");
        file.write_all_at(&bytes, 0).map_err(|error| match rustix::io::Errno::from_io_error(&error) {
            Some(errno) => failed(errno),
            None => FsError::Io { what: "cannot write a local file".to_owned(), source: error },
        })
    }
}
