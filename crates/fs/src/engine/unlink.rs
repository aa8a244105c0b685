//! Removing files: from the bucket, from the tree, and what becomes of one whose removal may be done or not.

use std::sync::Arc;
use std::time::Duration;

use super::directory::touch;
use super::{Engine, failed, guard, stale};
use crate::attr::{Kind, Time};
use crate::content::Content;
use crate::tree::{Name, Node, ROOT, Tree};
use crate::{FsError, FsResult};

/// How often, and how long, a handle that may be closed already is waited for.
const RELEASE_WAITS: u32 = 10;
const RELEASE_WAIT: Duration = Duration::from_millis(3);

impl Engine {
    /// Removes a file or a symbolic link. Open handles keep its contents.
    ///
    /// # Errors
    /// [`FsError::IsADirectory`], [`FsError::ReadOnly`], [`FsError::Store`].
    pub async fn unlink(&self, parent: u64, name: &[u8]) -> FsResult<()> {
        self.check_may_change(parent)?;
        let stat = self.resolve_to_change(parent, name).await?;
        if stat.attr.kind == Kind::Directory {
            return Err(FsError::IsADirectory);
        }
        if self.unlink_local(parent, name, stat.ino)?.is_some() {
            return Ok(());
        }
        let _shared = self.structure.read().await;
        // Also of a file that nobody has had open: it may be opened, written and closed meanwhile.
        let content = self.content_of(stat.ino);
        let _one = match &content {
            Some(content) => Some(content.commit.lock().await),
            None => None,
        };
        let _leaving = content.as_ref().map(|content| content.begin_leaving());
        self.save_for_handles(stat.ino).await?;
        let (key, version) = {
            let tree = self.tree();
            let node = tree.get(stat.ino).ok_or_else(|| stale(stat.ino))?;
            (self.file_key(&tree, stat.ino)?, node.version.clone())
        };
        let change = self.begin(parent, name);
        let mut is_settled = false;
        // Only what nobody can have stored needs no request.
        let is_new = content.as_ref().is_some_and(|content| content.has_unstored() && !content.may_be_stored());
        if version.is_some() || !is_new {
            let etag = version.and_then(|version| self.believed(&version));
            self.keep_parent_without(parent, Some(name)).await?;
            if let Some(dirty) = content.as_ref().and_then(|content| content.dirty()) {
                dirty.note_removing();
            }
            let deleted =
                self.store.delete(&key, etag.as_ref()).await.map_err(failed(|| format!("cannot remove {key}")));
            if let Err(error) = deleted {
                self.note_removal_failed(stat.ino);
                // A store that does not say this either may do so later. Somebody else may have asked at the same time.
                is_settled = self.settle_removal(stat.ino).await.unwrap_or(false)
                    || !self.tree().get(stat.ino).is_some_and(|node| node.is_linked);
                if !is_settled {
                    return Err(error);
                }
            }
        }
        if !is_settled {
            self.removed(parent, name);
        }
        {
            let mut tree = self.tree();
            if let Some(node) = tree.get_mut(stat.ino) {
                node.attr.ctime = Time::now();
            }
            change.done(&mut tree);
        }
        self.supersede(parent, name);
        self.keep_parent(parent).await;
        Ok(())
    }

    /// The content of a file, made if need be.
    pub(super) fn content_of(&self, ino: u64) -> Option<Arc<Content>> {
        let mut tree = self.tree();
        let node = tree.get_mut(ino).filter(|node| node.dir.is_none())?;
        Some(Arc::clone(node.content.get_or_insert_default()))
    }

    /// Forgets a name that was removed from the bucket.
    pub(super) fn removed(&self, parent: u64, name: &[u8]) {
        self.removed_in(&mut self.tree(), parent, name);
    }

    fn removed_in(&self, tree: &mut Tree, parent: u64, name: &[u8]) {
        note_unlinked(tree, parent, name);
        tree.detach(parent, name);
        tree.note_removed(parent, &Name::from(name), self.believed_until());
        touch(tree, parent);
    }

    /// A name was removed, or given to another file, from here: what somebody else had replaced there before, and is still
    /// open, does not get it back.
    pub(super) fn supersede(&self, parent: u64, name: &[u8]) {
        let open: Vec<_> = guard(&self.files)
            .values()
            .filter(|file| file.content.is_replaced())
            .map(|file| (file.ino, Arc::clone(&file.content)))
            .collect();
        for (ino, content) in open {
            let had_it = |node: &Node| !node.is_linked && node.parent == parent && *node.name == *name;
            if self.tree().get(ino).is_some_and(had_it) {
                content.mark_superseded();
                if let Some(dirty) = content.dirty() {
                    dirty.note_unlinked();
                }
            }
        }
    }

    /// Before an open file loses its object: fetches what its handles may still read. For the holder of `commit`.
    pub(super) async fn save_for_handles(&self, ino: u64) -> FsResult<()> {
        self.settle_copy(ino).await?;
        self.await_releases(ino).await;
        let (content, is_open) = {
            let tree = self.tree();
            let Some(node) = tree.get(ino) else { return Ok(()) };
            (node.content.clone(), node.opens > 0)
        };
        let (Some(content), true) = (content, is_open) else { return Ok(()) };
        let dirty = self.staged(ino, &content)?;
        loop {
            dirty.materialise(&self.base_of(&content)).await?;
            if !dirty.has_bytes_in_upload() {
                return Ok(());
            }
            // They are nowhere else, and an upload that is not complete cannot be read.
            let uploading = content.begin_upload();
            let result = self.store_content(ino, &content).await;
            self.note_result(ino, &content, &result);
            drop(uploading);
            self.tree().is_news(ino);
            result?;
        }
    }

    /// The kernel tells of closed handles when it has the time, so that one that was closed just before its file is removed counts as
    /// open: a short wait costs less than to fetch a large file for nobody.
    async fn await_releases(&self, ino: u64) {
        for _ in 0..RELEASE_WAITS {
            let is_large = |node: &Node| node.version.as_ref().is_some_and(|known| known.size >= self.options.part_len);
            if !self.tree().get(ino).is_some_and(|node| node.opens > 0 && is_large(node)) {
                return;
            }
            tokio::time::sleep(RELEASE_WAIT).await;
        }
    }

    /// An implicit directory would vanish with its last entry; a marker keeps it. The entry is gone already, so a marker
    /// that cannot be written is no failure of what was asked for.
    pub async fn keep_parent(&self, parent: u64) {
        if let Err(error) = self.keep_parent_without(parent, None).await {
            tracing::warn!(%error, "an empty directory could not be kept and will be gone");
        }
    }

    /// The same before `leaving` goes: nothing goes whose directory cannot be kept for now. Where it never could be, it goes.
    pub(super) async fn keep_parent_without(&self, parent: u64, leaving: Option<&[u8]>) -> FsResult<()> {
        {
            let tree = self.tree();
            let Some(node) = tree.get(parent) else { return Ok(()) };
            let Some(dir) = node.dir.as_deref() else { return Ok(()) };
            // A marker would cost a plain directory a question for each of its files.
            let is_stored = |name: &Name| {
                leaving != Some(&**name)
                    && tree.child(parent, name).is_none_or(|node| node.version.is_some() || node.dir.is_some())
            };
            let has_others = self.may_be_plain(&tree, parent)
                && dir.complete_until.is_some_and(|until| dir.believes(until, self.believed_for()))
                && dir.entries.keys().any(is_stored);
            if parent == ROOT
                || node.off_bucket
                || dir.has_marker == Some(true)
                || node.version.is_some()
                || !node.is_linked
                || has_others
            {
                return Ok(());
            }
        }
        match self.put_marker(parent).await {
            // Nothing could be removed from a bucket that is full, or where no marker may be written, or none so long.
            Err(FsError::Store { source, .. }) if !source.is_transient() => {
                tracing::warn!(error = %source, "an empty directory cannot be kept, and will be gone");
                Ok(())
            }
            put => put,
        }
    }

    /// The removal of a file's object has failed, or its process died meanwhile; it may be done all the same. If the file is not
    /// stored as it is here, and stands on its object, what is staged is no whole file then.
    pub(super) fn note_removal_failed(&self, ino: u64) {
        let tree = self.tree();
        // What is open was fetched whole before, and is stored again.
        let Some(node) = tree.get(ino).filter(|node| node.is_linked && node.opens == 0) else { return };
        if let Some(content) = &node.content
            && content.dirty().is_some_and(|dirty| dirty.is_dirty() && dirty.has_base())
        {
            content.set_removal_open(true);
            guard(&self.removals).insert(ino);
        }
    }

    /// Asks whether such a removal was done, and does here what is left of it; whether it was.
    ///
    /// # Errors
    /// When the store does not say.
    pub(super) async fn settle_removal(&self, ino: u64) -> FsResult<bool> {
        let asked = {
            let tree = self.tree();
            let node = tree.get(ino).filter(|node| node.is_linked && node.opens == 0);
            let content = node.and_then(|node| node.content.clone()).filter(|content| content.is_removal_open());
            match node.zip(content) {
                Some((node, content)) => {
                    Some((self.file_key(&tree, ino)?, node.parent, Arc::clone(&node.name), content))
                }
                None => None,
            }
        };
        let Some((key, parent, name, content)) = asked else {
            guard(&self.removals).remove(&ino);
            return Ok(false);
        };
        let change = self.begin_upload(parent, &name);
        let found = self.head(&key).await?;
        let mut tree = self.tree();
        // Nobody has settled it meanwhile, opened the file, or put another in its place.
        let is_open = tree
            .child(parent, &name)
            .is_some_and(|node| node.opens == 0 && node.content.as_ref().is_some_and(|now| Arc::ptr_eq(now, &content)))
            && content.is_removal_open();
        let is_gone = is_open && found.is_none();
        if is_gone {
            tracing::debug!(%key, "its removal was done");
            self.removed_in(&mut tree, parent, &name);
        }
        if is_open {
            content.set_removal_open(false);
            guard(&self.removals).remove(&ino);
        }
        change.done(&mut tree);
        Ok(is_gone)
    }

    /// The same for all of a directory, before it is listed.
    pub(super) async fn settle_removals_in(&self, parent: u64) {
        let open: Vec<u64> = guard(&self.removals).iter().copied().collect();
        let is_here = |ino: &u64| self.tree().get(*ino).is_none_or(|node| node.parent == parent);
        let settled = open.into_iter().filter(is_here).map(|ino| async move {
            if let Err(error) = self.settle_removal(ino).await {
                // Whoever looks it up is told.
                tracing::debug!(ino, %error, "whether a file is there is not known");
            }
        });
        futures_util::future::join_all(settled).await;
    }
}

/// What is staged of a name that is removed here is not wanted back after a crash.
pub(super) fn note_unlinked(tree: &Tree, parent: u64, name: &[u8]) {
    if let Some(dirty) = tree.child(parent, name).and_then(|node| node.content.as_ref()?.dirty()) {
        dirty.note_unlinked();
    }
}
