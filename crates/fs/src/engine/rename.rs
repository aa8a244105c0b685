//! Rename: a server-side copy and a delete; of a directory, of everything below it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{FutureExt, StreamExt};
use sandpail_store::{CopySource, ListRequest, ListedObject, ObjectKey, Proof, PutOutcome, StoreError};

use super::directory::touch;
use super::lookup::version_of;
use super::unlink::note_unlinked;
use super::{Engine, failed, not_found, object_key, stale};
use crate::attr::{Kind, Time};
use crate::content::Content;
use crate::read::ObjectVersion;
use crate::tree::names::{Asked, asked_for};
use crate::tree::{Name, Node, Version};
use crate::{FsError, FsResult};

/// How often a rename that a process which died had begun is looked at again.
const TRIES: usize = 5;
/// Copies of one directory's move that are under way at the same time.
const COPIES_AT_ONCE: usize = 32;

/// Whether a rename is one that a process which died had begun.
#[derive(Clone, Copy)]
pub(super) enum Begun {
    Now { no_replace: bool },
    Before,
}

/// An object, and where it goes.
type Move = (ObjectKey, ObjectKey, ListedObject);

/// What may be copied at the same time. In a store that `has_directories` each is made before anything below it.
fn stages(moves: &[Move], has_directories: bool) -> Vec<Vec<&Move>> {
    let mut stages: BTreeMap<usize, Vec<&Move>> = BTreeMap::new();
    for one in moves {
        let key = one.1.as_str();
        let is_directory = has_directories && key.ends_with('/');
        stages.entry(if is_directory { key.matches('/').count() } else { usize::MAX }).or_default().push(one);
    }
    stages.into_values().collect()
}

impl Engine {
    /// Moves a file or directory, replacing a file (or an empty directory) that stands at the target unless
    /// `no_replace`.
    ///
    /// # Errors
    /// [`FsError::Exists`] with `no_replace`; [`FsError::NotEmpty`], [`FsError::IsADirectory`],
    /// [`FsError::NotADirectory`] for a target of another kind; [`FsError::Invalid`] into itself;
    /// [`FsError::Store`]. After an error the source is whole.
    pub async fn rename(
        &self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        no_replace: bool,
    ) -> FsResult<()> {
        self.rename_as(parent, name, new_parent, new_name, Begun::Now { no_replace }).await?;
        self.supersede(new_parent, new_name);
        Ok(())
    }

    /// Renames as [`Engine::rename`] does, for a request that the kernel sends again and that a process which died had begun:
    /// what it had done stays, the rest is done.
    ///
    /// # Errors
    /// As [`Engine::rename`].
    pub async fn rename_again(&self, parent: u64, name: &[u8], new_parent: u64, new_name: &[u8]) -> FsResult<()> {
        let mut tries = 1;
        loop {
            match self.rename_rest(parent, name, new_parent, new_name).await {
                // It went away while it was looked at: what the process had asked the store for is done only now.
                Err(FsError::Store { source: StoreError::NotFound { .. }, .. } | FsError::Changed { .. })
                    if tries <= TRIES => {}
                other => {
                    if other.is_ok() {
                        // The target that this took for somebody else's was the source's copy, perhaps.
                        self.supersede(new_parent, new_name);
                    }
                    return other;
                }
            }
            tries += 1;
        }
    }

    async fn rename_rest(&self, parent: u64, name: &[u8], new_parent: u64, new_name: &[u8]) -> FsResult<()> {
        // Attributes that wait say nothing of the bytes: they were stored under the old name first.
        let has_bytes = |node: &Node| node.content.as_ref().is_some_and(|content| content.has_unstored_bytes());
        let known = self.tree().child(parent, name).map(|node| (node.ino, has_bytes(node) || node.off_bucket));
        let Some((ino, is_local)) = known else {
            // It is known to be done, or the bucket must say.
            return match self.resolve(parent, name, false).await {
                Err(FsError::NotFound { .. }) => self.resolve(new_parent, new_name, false).await.map(drop),
                Err(error) => Err(error),
                Ok(_) => self.rename_as(parent, name, new_parent, new_name, Begun::Before).await,
            };
        };
        if is_local || !self.is_gone_from_bucket(ino).await? {
            return self.rename_as(parent, name, new_parent, new_name, Begun::Before).await;
        }
        let target = self.resolve(new_parent, new_name, false).await?;
        let _shared = self.structure.read().await;
        let contents = self.contents_of(ino, Some(target.ino));
        let mut locks = Vec::new();
        for (_, content) in &contents {
            locks.push(content.commit.lock().await);
        }
        let staged_key = {
            let tree = self.tree();
            let is_staged = |node: &Node| node.dir.is_none() && !node.off_bucket && node.is_ours_to_tell();
            let is_staged = target.ino != ino && tree.get(target.ino).is_some_and(is_staged);
            is_staged.then(|| self.file_key(&tree, target.ino)).transpose()?
        };
        // What is staged there is what was replaced, and the bucket says by what.
        let moved = match staged_key {
            Some(key) => match self.head(&key).await {
                Ok(found) => Some(found.ok_or_else(|| not_found(name))?),
                Err(error) => {
                    // It is done all the same: only that the old name is gone says so, and it must not be undone by what is
                    // staged. The rest is asked for when somebody wants to know.
                    tracing::debug!(%key, %error, "moved by the process before");
                    let mut tree = self.tree();
                    let Some(segment) = tree.get(target.ino).map(|node| Arc::clone(&node.segment)) else {
                        return Err(stale(target.ino));
                    };
                    self.follow(&tree, ino, new_parent, new_name)?;
                    note_unlinked(&tree, new_parent, new_name);
                    tree.detach(new_parent, new_name);
                    tree.relink(ino, new_parent, Name::from(new_name), segment);
                    tree.doubt(ino);
                    tree.note_removed(parent, &Name::from(name), self.believed_until());
                    return Ok(());
                }
            },
            None => None,
        };
        let mut tree = self.tree();
        let found = tree.get(target.ino).filter(|_| target.ino != ino);
        let off_bucket = found.is_some_and(|node| node.off_bucket);
        if let Some((segment, attr, attributes, version, is_described)) = found.map(|node| {
            let segment = Arc::clone(&node.segment);
            match moved {
                Some(info) => {
                    let version = version_of(&info);
                    let attr = self.attr_of_file(&info.attributes, &version);
                    (segment, attr, Arc::new(info.attributes), Some(version), true)
                }
                None => {
                    let (attr, attributes, version) = (&node.attr, &node.attributes, &node.version);
                    (segment, attr.clone(), Arc::clone(attributes), version.clone(), node.is_described)
                }
            }
        }) {
            self.follow(&tree, ino, new_parent, new_name)?;
            note_unlinked(&tree, new_parent, new_name);
            tree.detach(new_parent, new_name);
            tree.relink(ino, new_parent, Name::from(new_name), segment);
            if let Some(node) = tree.get_mut(ino) {
                (node.attr, node.attributes, node.version) = (attr, attributes, version);
                node.is_described = is_described;
                node.off_bucket = off_bucket;
            }
        }
        tree.note_removed(parent, &Name::from(name), self.believed_until());
        Ok(())
    }

    /// Whether nothing of a node that the bucket had is there any more.
    async fn is_gone_from_bucket(&self, ino: u64) -> FsResult<bool> {
        let (key, prefix) = {
            let tree = self.tree();
            let is_directory = tree.dir(ino).is_some();
            (self.file_key(&tree, ino)?, is_directory.then(|| self.dir_prefix(&tree, ino)))
        };
        let Some(prefix) = prefix else { return Ok(self.head(&key).await?.is_none()) };
        let request = ListRequest { prefix: prefix.clone(), max_keys: 1, ..ListRequest::default() };
        let page = self.store.list(&request).await.map_err(failed(|| format!("cannot list {prefix:?}")))?;
        Ok(page.objects.is_empty())
    }

    async fn rename_as(
        &self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        begun: Begun,
    ) -> FsResult<()> {
        self.check_may_change(parent)?;
        self.check_may_change(new_parent)?;
        if let Some(done) = self.rename_local((parent, name), (new_parent, new_name), begun).await? {
            return Ok(done);
        }
        let source = self.resolve_to_change(parent, name).await?;
        let target = match self.resolve(new_parent, new_name, false).await {
            Ok(target) => Some(target),
            Err(FsError::NotFound { .. }) if self.is_status_name(new_parent, new_name) => {
                return Err(super::status::refused());
            }
            Err(FsError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(target) = &target {
            if matches!(begun, Begun::Now { no_replace: true }) {
                return Err(FsError::Exists { what: format!("{:?}", String::from_utf8_lossy(new_name)) });
            }
            if target.ino == source.ino {
                return Ok(());
            }
            match (source.attr.kind == Kind::Directory, target.attr.kind == Kind::Directory) {
                (true, false) => return Err(FsError::NotADirectory),
                (false, true) => return Err(FsError::IsADirectory),
                _ => {}
            }
        }
        let segment: Arc<str> = match asked_for(new_name)? {
            Asked::Segment(segment) => Arc::from(&*segment),
            // Over the same file, a shadowed name may be the target.
            Asked::ShadowedFile(segment) if target.is_some() => Arc::from(&*segment),
            _ => {
                let what = format!("{:?} is the escape of another name", String::from_utf8_lossy(new_name));
                return Err(FsError::Invalid { what });
            }
        };
        let new_key = self.key_in(&self.tree(), new_parent, &segment)?;
        self.store.check_key(&new_key).map_err(|error| FsError::Invalid { what: error.to_string() })?;
        if parent != new_parent {
            let _shared = self.structure.read().await;
            self.keep_parent_without(parent, Some(name)).await?;
        }
        if source.attr.kind == Kind::Directory {
            let target = target.map(|target| target.ino).filter(|_| matches!(begun, Begun::Now { .. }));
            self.rename_directory(source.ino, new_parent, new_name, segment, target).await?;
        } else {
            self.rename_file(source.ino, new_parent, new_name, segment, target.map(|target| target.ino)).await?;
        }
        self.keep_parent(parent).await;
        Ok(())
    }

    /// What is to be locked for a move. Always in the order of inode numbers, so that two never wait for each other.
    fn contents_of(&self, ino: u64, target: Option<u64>) -> Vec<(u64, Arc<Content>)> {
        let mut both: Vec<_> = [Some(ino), target].into_iter().flatten().collect();
        both.sort_unstable();
        both.dedup();
        both.into_iter().filter_map(|ino| Some((ino, self.content_of(ino)?))).collect()
    }

    async fn rename_file(
        &self,
        ino: u64,
        new_parent: u64,
        new_name: &[u8],
        segment: Arc<str>,
        target: Option<u64>,
    ) -> FsResult<()> {
        if self.rename_waiting(ino, new_parent, new_name, &segment, target).await? {
            return Ok(());
        }
        // What is not stored yet is stored under its old name first, so that one path does all the work.
        self.store_file(ino).await?;
        let _shared = self.structure.read().await;
        let contents = self.contents_of(ino, target);
        let mut locks = Vec::new();
        for (_, content) in &contents {
            locks.push(content.commit.lock().await);
        }
        let replaced = contents.iter().find(|(ino, _)| Some(*ino) == target);
        let _leaving = replaced.map(|(_, content)| content.begin_leaving());
        if let Some(target) = target {
            self.save_for_handles(target).await?;
        }
        self.settle_copy(ino).await?;
        self.catch_up(&[ino])?;
        if self.tree().get(ino).is_some_and(|node| self.carries_more(node)) {
            self.mark(new_parent).await?;
        }
        let (parent, name, old_key, new_key, version) = {
            let tree = self.tree();
            let node = tree.get(ino).ok_or_else(|| stale(ino))?;
            let old_key = self.file_key(&tree, ino)?;
            let new_key = self.key_in(&tree, new_parent, &segment)?;
            (node.parent, Arc::clone(&node.name), old_key, new_key, node.version.clone().ok_or_else(|| stale(ino))?)
        };
        let (from, to) = (self.begin(parent, &name), self.begin(new_parent, new_name));
        let origin = CopySource { key: old_key.clone(), etag: version.etag.clone() };
        let copied = self.copy_object(&origin, &new_key, version.size, None).await;
        if copied.is_err()
            && let Some(target) = target
        {
            // It may be replaced all the same.
            self.tree().doubt(target);
        }
        let outcome = copied?;
        let removed = self.store.delete(&old_key, self.believed(&version).as_ref()).await;
        if let Err(source) = removed
            && !self.is_gone(&old_key).await
        {
            // Both names exist, or may exist. The copy is taken back only if it has replaced nothing and the old one is
            // certainly there: two names of a file are better than none.
            if target.is_none()
                && self.head(&old_key).await.is_ok_and(|info| info.is_some())
                && let Err(error) = self.store.delete(&new_key, None).await
            {
                tracing::warn!(%new_key, %error, "a copy was left behind by a rename that failed");
            }
            {
                let mut tree = self.tree();
                tree.detach(new_parent, new_name);
                if let Some(dir) = tree.dir_mut(new_parent) {
                    dir.complete_until = None;
                    dir.entries.remove(new_name);
                    dir.absent.clear();
                }
            }
            return Err(FsError::Store {
                what: format!("cannot move {old_key}: its old name cannot be removed"),
                source,
            });
        }
        let mut tree = self.tree();
        note_unlinked(&tree, new_parent, new_name);
        tree.detach(new_parent, new_name);
        tree.relink(ino, new_parent, Name::from(new_name), segment);
        self.moved(&mut tree, ino, &new_key, &outcome, version.size);
        tree.note_removed(parent, &name, self.believed_until());
        tree.note_stored(ino);
        touch(&mut tree, parent);
        touch(&mut tree, new_parent);
        from.done(&mut tree);
        to.done(&mut tree);
        Ok(())
    }

    /// With write-back: a file that the bucket has never had gets its new name before it goes up, at no cost. `false`: it
    /// is not such a file.
    async fn rename_waiting(
        &self,
        ino: u64,
        new_parent: u64,
        new_name: &[u8],
        segment: &Arc<str>,
        target: Option<u64>,
    ) -> FsResult<bool> {
        if self.write_back_of(ino).is_none() || !self.is_written_back(new_parent, new_name) {
            return Ok(false);
        }
        let _shared = self.structure.read().await;
        let Some(content) = self.tree().get(ino).and_then(|node| node.content.clone()) else { return Ok(false) };
        // Never two locks, for which there is an order: the target's own upload replaces nothing that comes after it.
        let target_content = target.and_then(|target| self.tree().get(target)?.content.clone());
        if target_content.is_some_and(|content| content.has_unstored() || content.may_be_stored()) {
            return Ok(false);
        }
        let _one = content.commit.lock().await;
        let Some(dirty) = content.dirty().filter(|dirty| dirty.is_dirty() && dirty.is_whole()) else {
            return Ok(false);
        };
        if let Some(target) = target {
            self.save_for_handles(target).await?;
        }
        let tree = self.tree();
        let is_new = tree.get(ino).is_some_and(|node| node.version.is_none() && node.is_linked);
        let replaced = target.and_then(|target| tree.get(target)?.version.clone());
        // Without its tag nobody could tell later whether it is still the object that is replaced.
        if !is_new
            || content.may_be_stored()
            || target.is_some() && replaced.as_ref().is_none_or(|old| old.etag.is_none())
        {
            return Ok(false);
        }
        let Some((parent, name)) = tree.get(ino).map(|node| (node.parent, Arc::clone(&node.name))) else {
            return Ok(false);
        };
        let new_key = self.key_in(&tree, new_parent, segment)?;
        drop(tree);
        let (from, to) = (self.begin(parent, &name), self.begin(new_parent, new_name));
        dirty.retarget(new_key);
        if let Some(etag) = replaced.as_ref().and_then(|old| old.etag.clone()) {
            dirty.set_replaces(etag);
        }
        let until = self.believed_until();
        let mut tree = self.tree();
        note_unlinked(&tree, new_parent, new_name);
        tree.detach(new_parent, new_name);
        tree.relink(ino, new_parent, Name::from(new_name), Arc::clone(segment));
        if let Some(node) = tree.get_mut(ino) {
            // What stands in the bucket under its name now, and goes when the file does.
            node.version = replaced;
            node.attr.ctime = Time::now();
        }
        tree.note_removed(parent, &name, until);
        touch(&mut tree, parent);
        touch(&mut tree, new_parent);
        from.done(&mut tree);
        to.done(&mut tree);
        Ok(true)
    }

    /// Whether an object is certainly not there: the answer to its removal may only have been lost.
    async fn is_gone(&self, key: &ObjectKey) -> bool {
        matches!(self.head(key).await, Ok(None))
    }

    /// A node's object has another key now, and perhaps another tag.
    fn moved(&self, tree: &mut crate::tree::Tree, ino: u64, key: &ObjectKey, outcome: &PutOutcome, size: u64) {
        let until = self.believed_until();
        let Some(node) = tree.get_mut(ino) else { return };
        let before = node.proof().and_then(|proof| proof.checksum.clone());
        node.set_stored(outcome, size);
        // The bytes are the same.
        if let Some(checksum) = before
            && outcome.proof.checksum.is_none()
        {
            let proof = Proof { checksum: Some(checksum), ..outcome.proof.clone() };
            node.proof = Some(Arc::new((outcome.etag.clone(), proof)));
        }
        // Of what carries no time of its own the copy's is shown from now on, as other mounts show it.
        if node.dir.is_none()
            && !node.is_local()
            && let Some(version) = &node.version
        {
            let shown = self.attr_of_file(&node.attributes, version).mtime;
            if shown == Time::from(version.modified) {
                // A HEAD knows whole seconds only.
                node.attr.mtime = Time { nanos: 0, ..shown };
            }
        }
        node.fresh_until = until;
        node.attr.ctime = Time::now();
        if let Some(dirty) = node.content.as_ref().and_then(|content| content.dirty()) {
            dirty.retarget(key.clone());
            dirty.set_base_version(ObjectVersion { key: key.clone(), etag: outcome.etag.clone(), size });
        }
    }

    async fn rename_directory(
        &self,
        ino: u64,
        new_parent: u64,
        new_name: &[u8],
        segment: Arc<str>,
        target: Option<u64>,
    ) -> FsResult<()> {
        if self.tree().is_within(new_parent, ino) {
            return Err(FsError::Invalid { what: "a directory cannot be moved into itself".to_owned() });
        }
        // From here on nothing else changes the bucket.
        let _alone = self.structure.write().await;
        let _whole = self.writing.keep_whole();
        let below = self.tree().descendants(ino);
        for file in &below {
            let is_linked =
                self.tree().get(*file).is_some_and(|node| node.is_linked && node.dir.is_none() && !node.off_bucket);
            if is_linked {
                self.store_file_locked(*file).await?;
                self.settle_copy(*file).await?;
            }
        }
        let (parent, name, old_prefix, new_prefix) = {
            let tree = self.tree();
            let node = tree.get(ino).ok_or_else(|| stale(ino))?;
            let new_prefix = format!("{}/", self.key_in(&tree, new_parent, &segment)?);
            (node.parent, Arc::clone(&node.name), self.dir_prefix(&tree, ino), new_prefix)
        };
        if let Some(target) = target {
            self.check_empty(target).await?;
        }
        let moves = self.moves(&old_prefix, &new_prefix).await?;
        let below_old = moves.iter().filter_map(|(old, ..)| old.as_str().strip_prefix(&old_prefix));
        self.check_classes_below(ino, (new_parent, new_name), below_old)?;
        self.catch_up(&below)?;
        let (from, to) = (self.begin(parent, &name), self.begin(new_parent, new_name));
        let copied = self.copy_all(&moves).await?;
        // What is below first: stores made of directories (SeaweedFS) keep a directory that is not empty yet.
        let old_keys: Vec<ObjectKey> = moves.iter().rev().map(|(old, _, _)| old.clone()).collect();
        let left = self.store.delete_many(&old_keys).await.map_err(failed(|| {
            format!("{old_prefix:?} was copied to {new_prefix:?}, but could not be removed; both are there")
        }))?;
        if let Some((key, source)) = left.into_iter().next() {
            let what = format!("{old_prefix:?} was copied to {new_prefix:?}, but {key} could not be removed");
            return Err(FsError::Store { what, source });
        }
        let mut tree = self.tree();
        // With those that were looked up meanwhile.
        let below = tree.descendants(ino);
        let followed = self.follow(&tree, ino, new_parent, new_name);
        tree.detach(new_parent, new_name);
        tree.relink(ino, new_parent, Name::from(new_name), segment);
        let below = below.into_iter().filter(|child| tree.get(*child).is_some_and(|node| !node.off_bucket));
        for child in &below.collect::<Vec<_>>() {
            if let Some(dir) = tree.dir_mut(*child) {
                dir.complete_until = None;
                dir.entries.clear();
                dir.absent.clear();
            }
            let Ok(key) = self.file_key(&tree, *child) else { continue };
            let Some((outcome, origin)) = copied.get(&key) else {
                // Made meanwhile, and not stored yet.
                let staged = tree.get(*child).filter(|node| node.version.is_none() && node.dir.is_none());
                if let Some(dirty) = staged.and_then(|node| node.content.as_ref()?.dirty()) {
                    dirty.retarget(key);
                }
                continue;
            };
            let known = tree.get(*child).and_then(|node| node.version.clone());
            if known.as_ref().is_some_and(|known| known.has_same_bytes(origin)) {
                self.moved(&mut tree, *child, &key, outcome, origin.size);
                if known.is_some_and(|known| !known.is_same(origin)) {
                    tree.doubt(*child);
                }
            } else if let Some((parent, name)) = tree.get(*child).map(|node| (node.parent, Arc::clone(&node.name))) {
                // Replaced by another client since it was looked up.
                tree.detach(parent, &name);
            }
        }
        let until = self.believed_until();
        if let Some(node) = tree.get_mut(ino) {
            node.fresh_until = until;
            node.attr.ctime = Time::now();
            if let Some(dir) = &mut node.dir {
                dir.complete_until = None;
                dir.entries.clear();
                dir.absent.clear();
            }
        }
        tree.note_removed(parent, &name, until);
        tree.note_stored(ino);
        touch(&mut tree, parent);
        touch(&mut tree, new_parent);
        from.done(&mut tree);
        to.done(&mut tree);
        followed
    }

    /// The records of files whose objects are about to move must say what is stored.
    fn catch_up(&self, files: &[u64]) -> FsResult<()> {
        for ino in files {
            let dirty = self.tree().get(*ino).and_then(|node| node.content.as_ref()?.dirty());
            dirty.map_or(Ok(()), |dirty| dirty.catch_up())?;
        }
        Ok(())
    }

    /// Every key below a prefix, and where it goes.
    async fn moves(&self, old: &str, new: &str) -> FsResult<Vec<Move>> {
        let mut moves = Vec::new();
        let mut request = ListRequest { prefix: old.to_owned(), ..ListRequest::default() };
        loop {
            let page = self.store.list(&request).await.map_err(failed(|| format!("cannot list {old:?}")))?;
            for object in page.objects {
                let rest = object.key.strip_prefix(old).unwrap_or_default();
                let target = object_key(format!("{new}{rest}"))?;
                moves.push((object_key(object.key.clone())?, target, object));
            }
            match page.next {
                Some(next) => request.continuation = Some(next),
                None => return Ok(moves),
            }
        }
    }

    /// Copies all; if one fails, takes the copies back.
    async fn copy_all(&self, moves: &[Move]) -> FsResult<HashMap<ObjectKey, (PutOutcome, Version)>> {
        let has_failed = AtomicBool::new(false);
        let copy = |(old, new, object): &Move| {
            let (old, new, object, has_failed) = (old.clone(), new.clone(), object.clone(), &has_failed);
            async move {
                if has_failed.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let source = CopySource { key: old.clone(), etag: object.etag.clone() };
                let outcome = self.copy_object(&source, &new, object.size, None).await;
                let (etag, size, modified) = (object.etag.clone(), object.size, object.last_modified);
                has_failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
                self.writing.progress.note();
                Ok::<_, FsError>(Some((new, (outcome?, Version { etag, size, modified }))))
            }
            .boxed()
        };
        let mut copied = Vec::new();
        for stage in stages(moves, self.store.has_directories()) {
            let copies: Vec<_> = stage.into_iter().map(&copy).collect();
            // All that began are waited for: a copy that came after its removal would stay.
            let mut copies = futures_util::stream::iter(copies).buffer_unordered(COPIES_AT_ONCE);
            while let Some(result) = copies.next().await {
                copied.push(result);
            }
        }
        let result = copied.into_iter().filter_map(Result::transpose).collect();
        if has_failed.load(Ordering::Relaxed) {
            let targets: Vec<ObjectKey> = moves.iter().map(|(_, new, _)| new.clone()).collect();
            match self.store.delete_many(&targets).await {
                Ok(left) if left.is_empty() => {}
                Ok(left) => tracing::warn!(count = left.len(), "copies were left behind by a rename that failed"),
                Err(error) => tracing::warn!(%error, "copies were left behind by a rename that failed"),
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_from_above() {
        let object = ListedObject {
            key: String::new(),
            size: 0,
            etag: None,
            last_modified: std::time::SystemTime::UNIX_EPOCH,
            storage_class: None,
        };
        let key = |name: &str| ObjectKey::new(name).unwrap();
        let names = ["t/e/", "t/e/a", "t/e/b/", "t/e/b/c/", "t/e/b/c/x", "t/e/d/"];
        let moves: Vec<Move> = names.iter().map(|name| (key("old"), key(name), object.clone())).collect();
        let staged = |has_directories: bool| -> Vec<Vec<&str>> {
            let stages = stages(&moves, has_directories);
            stages.into_iter().map(|stage| stage.into_iter().map(|(_, new, _)| new.as_str()).collect()).collect()
        };
        assert_eq!(staged(false), [names.to_vec()]);
        let expected = [vec!["t/e/"], vec!["t/e/b/", "t/e/d/"], vec!["t/e/b/c/"], vec!["t/e/a", "t/e/b/c/x"]];
        assert_eq!(staged(true), expected);
    }
}
