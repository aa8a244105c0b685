//! From staging to the bucket.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sandpail_store::{Condition, CopySource, ETag, ObjectAttributes, ObjectKey, Part, PutOutcome, StoreError};

use super::{Engine, FsError, FsResult, OnConflict, failed, guard, object_key, stale};
use crate::content::Content;
use crate::read::ObjectVersion;
use crate::tree::{Node, Tree, Version};

/// Pauses between tries to store what could not be stored when it was closed.
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(2);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Server-side copies of one large object that are under way at the same time.
const COPIES_AT_ONCE: usize = 8;

impl Engine {
    /// Tries again, as long as the engine lives, to store files whose closing failed.
    pub fn keep_trying(self: &Arc<Self>) {
        let engine = Arc::downgrade(self);
        self.runtime.spawn(async move {
            let mut pause = RETRY_PAUSE_MIN;
            loop {
                tokio::time::sleep(pause).await;
                let Some(engine) = engine.upgrade() else { return };
                pause = match engine.store_closed().await {
                    0 => RETRY_PAUSE_MIN,
                    _ => (pause * 2).min(RETRY_PAUSE_MAX),
                };
            }
        });
    }

    /// Stores what nobody has open and could not be stored before. Gives how many files are left.
    async fn store_closed(&self) -> usize {
        let mut failed: Vec<u64> = guard(&self.failures).keys().copied().collect();
        // Those of write-back have tries of their own.
        failed.retain(|ino| !self.waiting.holds(*ino));
        let mut left = 0;
        for ino in failed {
            let is_closed = self.tree().get(ino).filter(|node| node.is_local()).map(|node| node.opens == 0);
            match is_closed {
                Some(true) => {}
                Some(false) => continue,
                // Removed, or stored by another way.
                None => {
                    guard(&self.failures).remove(&ino);
                    continue;
                }
            }
            let path = self.tree().path_of(ino);
            match self.store_file(ino).await {
                Ok(()) => {
                    tracing::info!(path, "stored at last");
                    self.close_stored(ino);
                }
                Err(error) => {
                    left += 1;
                    tracing::debug!(path, %error, "not stored yet");
                }
            }
        }
        left
    }

    /// What the object of a node shall carry.
    pub(super) fn attributes_of(&self, node: &Node) -> ObjectAttributes {
        let mut attributes = (*node.attributes).clone();
        if self.has_posix_metadata() {
            node.attr.store_in(&mut attributes);
        }
        attributes
    }

    /// The version that a write relies on, if the mount's policy is to check it.
    pub(super) fn believed(&self, version: &Version) -> Option<ETag> {
        (self.options.on_conflict != OnConflict::Overwrite).then(|| version.etag.clone()).flatten()
    }

    fn condition(&self, version: Option<&Version>) -> Condition {
        if self.options.on_conflict == OnConflict::Overwrite || !self.store.capabilities().conditional_put {
            return Condition::Always;
        }
        match version {
            None => Condition::Absent,
            Some(Version { etag: Some(etag), .. }) => Condition::Matches(etag.clone()),
            Some(_) => Condition::Always,
        }
    }

    /// Where the provider does not check conditions on writes, looks before the write. What comes between the two is
    /// not seen.
    async fn check_unchanged(&self, key: &ObjectKey, version: Option<&Version>) -> FsResult<()> {
        if self.options.on_conflict == OnConflict::Overwrite || self.store.capabilities().conditional_put {
            return Ok(());
        }
        let stored = self.head(key).await?.map(|info| info.etag);
        let is_unchanged = match version {
            None => stored.is_none(),
            Some(Version { etag: Some(etag), .. }) => stored.as_ref() == Some(etag),
            Some(_) => true,
        };
        if is_unchanged {
            return Ok(());
        }
        let source = StoreError::changed(key);
        Err(FsError::Store { what: format!("cannot store {key}"), source })
    }

    /// Stores a file's data and attributes.
    pub(super) async fn store_file(&self, ino: u64) -> FsResult<()> {
        let _shared = self.structure.read().await;
        let result = self.store_file_locked(ino).await;
        match &result {
            Ok(()) => guard(&self.failures).remove(&ino),
            Err(error) => guard(&self.failures).insert(ino, error.to_string()),
        };
        result
    }

    /// The same, for callers that hold `structure`.
    pub(super) async fn store_file_locked(&self, ino: u64) -> FsResult<()> {
        let Some(content) = self.tree().get(ino).ok_or_else(|| stale(ino))?.content.clone() else { return Ok(()) };
        let _one = content.commit.lock().await;
        self.settle_removal(ino).await?;
        if content.is_unlinked() || !content.has_changes() {
            return Ok(());
        }
        let uploading = content.begin_upload();
        let result = self.store_content(ino, &content).await;
        self.note_result(ino, &content, &result);
        drop(uploading);
        // That its attributes are not on their way any more.
        self.tree().is_news(ino);
        result
    }

    /// What is found to have been made by an upload, or a copy, of which nobody had heard is what the next upload replaces.
    async fn settle_upload(&self, ino: u64, content: &Content) -> FsResult<()> {
        let Some(dirty) = content.dirty() else { return Ok(()) };
        let was_unclear = dirty.is_unclear();
        let found = dirty.take_found().await?;
        if (was_unclear || found.is_some())
            && let Some(node) = self.tree().get_mut(ino)
        {
            node.copying = None;
            if let Some(ObjectVersion { etag, size, .. }) = found {
                node.version = Some(Version { etag: Some(etag), size, modified: SystemTime::now() });
            }
        }
        Ok(())
    }

    /// The same, for the holder of the content's `commit`.
    pub(super) async fn store_content(&self, ino: u64, content: &Arc<Content>) -> FsResult<()> {
        self.settle_copy(ino).await?;
        self.settle_upload(ino, content).await?;
        self.describe_first(ino).await?;
        let (key, mut attributes, version, parent, name, carries_more) = {
            let tree = self.tree();
            let node = tree.get(ino).ok_or_else(|| stale(ino))?;
            let (parent, name) = (node.parent, Arc::clone(&node.name));
            let key = self.file_key(&tree, ino)?;
            let attributes = self.attributes_of(node);
            // In the same moment: what is changed from now on waits for the next time.
            content.attributes_go_up();
            (key, attributes, node.version.clone(), parent, name, self.carries_more(node))
        };
        if carries_more && let Err(error) = self.mark(parent).await {
            content.attributes_wait();
            return Err(error);
        }
        let change = self.begin_upload(parent, &name);
        let Some(dirty) = content.dirty().filter(|dirty| dirty.is_dirty()) else {
            let stored = self.store_attributes(ino, &key, attributes).await;
            if stored.is_err() {
                content.attributes_wait();
            }
            change.done(&mut self.tree());
            return match (stored, content.dirty()) {
                // By a removal of ours that nobody heard of, for instance.
                (Err(FsError::Store { source: StoreError::NotFound { .. }, .. }), Some(dirty))
                    if (dirty.may_be_removed() || self.options.on_conflict == OnConflict::Overwrite)
                        && dirty.store_again()? =>
                {
                    tracing::debug!(%key, "the object is gone, and is stored again");
                    if let Some(node) = self.tree().get_mut(ino) {
                        node.version = None;
                    }
                    Box::pin(self.store_content(ino, content)).await
                }
                (Ok(()), Some(dirty)) => {
                    dirty.note_stored();
                    Ok(())
                }
                (stored, _) => stored,
            };
        };
        if dirty.key() != key && !dirty.has_bytes_in_upload() {
            // It was staged while its directory moved.
            dirty.retarget(key.clone());
        }
        if attributes.tag_count > 0 {
            // A new version has only the tags that come with it.
            attributes.tagging = match self.store.tagging(&key).await {
                Ok(tagging) => tagging,
                Err(StoreError::NotFound { .. }) => None,
                Err(source) => {
                    let what = format!("cannot read the tags of {key}, which an edit must keep");
                    return Err(FsError::Store { what, source });
                }
            };
        }
        dirty.set_attributes(attributes.clone());
        let base = self.base_of(content);
        let unchanged = self.check_unchanged(&key, version.as_ref()).await;
        let committed = match unchanged {
            Ok(()) => dirty.commit(&attributes, &self.condition(version.as_ref()), &base).await,
            Err(error) => Err(error),
        };
        let committed = match committed {
            Err(FsError::Store { source: StoreError::Precondition { .. }, .. })
                if self.options.on_conflict == OnConflict::KeepBoth =>
            {
                return self.store_beside(ino, &key, &attributes, &dirty, &base).await;
            }
            Err(error) => {
                if !matches!(error, FsError::Store { source: StoreError::Precondition { .. }, .. }) {
                    content.set_may_be_stored();
                }
                return Err(error);
            }
            Ok(committed) => committed,
        };
        let mut stored = committed.attributes_stored;
        let mut outcome = committed.outcome;
        if stored != attributes {
            // The upload began before the attributes were final. Times that nobody chose may stay as they were then.
            let mut with_times = stored.clone();
            for name in ["mtime", "ctime", "atime"] {
                if let Some(value) = attributes.metadata.get(name) {
                    with_times.metadata.insert(name.to_owned(), value.clone());
                }
            }
            if with_times == attributes && !content.times_were_set() {
                dirty.note_stored();
            } else {
                let source = CopySource { key: key.clone(), etag: Some(outcome.etag.clone()) };
                // Whoever takes the mount up if this process dies meanwhile knows that the bytes are there, and what they lack:
                // the copy may have a tag that nobody can know before. Only the record outlives the mount: what it promises stays.
                let outlives = self.write_back_of(ino).is_some();
                let waiting = {
                    let mut tree = self.tree();
                    let waiting = content.attributes_changed();
                    self.stored(&mut tree, ino, &outcome, committed.size, stored);
                    waiting
                };
                if self.options.survives && !outlives {
                    self.settle();
                    dirty.note_stored();
                }
                let copied = self.copy_onto_itself(ino, &source, committed.size, &attributes).await;
                content.attributes_restored(waiting);
                outcome = match copied {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        // The bytes are there; what they shall carry still waits.
                        content.attributes_wait();
                        change.done(&mut self.tree());
                        return Err(error);
                    }
                };
                dirty.set_base_version(ObjectVersion {
                    key: key.clone(),
                    etag: outcome.etag.clone(),
                    size: committed.size,
                });
                dirty.note_stored();
                stored = attributes;
            }
        }
        let mut tree = self.tree();
        self.stored(&mut tree, ino, &outcome, committed.size, stored);
        change.done(&mut tree);
        Ok(())
    }

    /// Someone else changed the object: ours goes beside it.
    async fn store_beside(
        &self,
        ino: u64,
        key: &ObjectKey,
        attributes: &ObjectAttributes,
        dirty: &Arc<crate::write::DirtyFile>,
        base: &super::file::Bases,
    ) -> FsResult<()> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let beside = object_key(format!("{key} (conflict {host} {seconds})"))?;
        dirty.materialise(base).await?;
        dirty.retarget(beside.clone());
        dirty.commit(attributes, &Condition::Always, base).await?;
        tracing::warn!(?key, kept = ?beside, "the object was changed by someone else; both versions are kept");
        let mut tree = self.tree();
        if let Some(node) = tree.get(ino) {
            let (parent, name) = (node.parent, Arc::clone(&node.name));
            tree.detach_replaced(parent, &name);
            if let Some(dir) = tree.dir_mut(parent) {
                dir.complete_until = None;
            }
        }
        Ok(())
    }

    /// Writes into the tree what the bucket now holds for a node.
    pub(super) fn stored(
        &self,
        tree: &mut Tree,
        ino: u64,
        outcome: &PutOutcome,
        size: u64,
        mut attributes: ObjectAttributes,
    ) {
        let until = self.believed_until();
        let has_posix_metadata = self.has_posix_metadata();
        let Some(node) = tree.get_mut(ino) else { return };
        node.set_stored(outcome, size);
        let is_unchanged = node.content.as_ref().is_none_or(|content| !content.has_changes());
        if is_unchanged {
            node.attr.size = size;
            if has_posix_metadata {
                let time = |name: &str| attributes.metadata.get(name).and_then(|text| crate::attr::Time::parse(text));
                node.attr.mtime = time("mtime").unwrap_or(node.attr.mtime);
            }
        }
        // What was changed meanwhile goes up next.
        if is_unchanged {
            // They are asked for again before the next edit.
            attributes.tagging = None;
            node.attributes = Arc::new(attributes);
        }
        node.is_described = true;
        node.fresh_until = until;
        tree.note_stored(ino);
    }

    /// Replaces only what the object carries.
    pub(super) async fn store_attributes(
        &self,
        ino: u64,
        key: &ObjectKey,
        attributes: ObjectAttributes,
    ) -> FsResult<()> {
        if !self.has_posix_metadata() {
            return Ok(());
        }
        let Some(Version { etag, size, .. }) = self.tree().get(ino).and_then(|node| node.version.clone()) else {
            return Ok(());
        };
        let source = CopySource { key: key.clone(), etag };
        let outcome = self.copy_onto_itself(ino, &source, size, &attributes).await?;
        let mut tree = self.tree();
        if let Some(content) = tree.get(ino).and_then(|node| node.content.clone())
            && let Some(dirty) = content.dirty()
        {
            let etag = outcome.etag.clone();
            dirty.set_base_version(ObjectVersion { key: key.clone(), etag, size });
        }
        self.stored(&mut tree, ino, &outcome, size, attributes);
        Ok(())
    }

    /// Copies an object of any size inside the store.
    pub(super) async fn copy_object(
        &self,
        source: &CopySource,
        target: &ObjectKey,
        size: u64,
        attributes: Option<&ObjectAttributes>,
    ) -> FsResult<PutOutcome> {
        let what = || format!("cannot copy {} to {target}", source.key);
        let limits = self.store.capabilities();
        if size <= limits.copy_len_max {
            let copied = self.store.copy(source, target, attributes, &Condition::Always).await;
            return match (copied, attributes) {
                (Err(error), Some(attributes)) if source.key == *target => {
                    // Where a copy has a tag of its own, one whose answer was lost looks like somebody else's object.
                    self.copied_before(target, size, attributes).await.ok_or(error)
                }
                (copied, _) => copied,
            }
            .map_err(|error| changed_or(error, &source.key, what));
        }
        if !limits.part_copy {
            return Err(FsError::TooLarge { what: format!("{size} bytes cannot be copied by this provider") });
        }
        let owned;
        let attributes = match attributes {
            Some(attributes) => attributes,
            None => {
                owned = self.store.head(&source.key).await.map_err(failed(what))?.attributes;
                &owned
            }
        };
        let id = self.store.create_multipart(target, attributes).await.map_err(failed(what))?;
        self.writing.upload_begun(target, &id);
        let part_len = limits.part_len_max.min(1 << 30).max(size.div_ceil(u64::from(limits.part_count_max)));
        let parts = self.copy_parts(source, target, &id, size, part_len).await;
        let result = match parts {
            Ok(parts) => self.store.complete_multipart(target, &id, &parts, &Condition::Always).await,
            Err(error) => Err(error),
        };
        match &result {
            Ok(_) => self.writing.upload_ended(&id),
            Err(_) => self.writing.abort_upload(target, &id).await,
        }
        result.map_err(|error| changed_or(error, &source.key, what))
    }

    async fn copy_parts(
        &self,
        source: &CopySource,
        target: &ObjectKey,
        id: &sandpail_store::UploadId,
        size: u64,
        part_len: u64,
    ) -> Result<Vec<Part>, StoreError> {
        use futures_util::{StreamExt, TryStreamExt};
        let mut copies = Vec::new();
        for (number, at) in (1u32..).zip(0..size.div_ceil(part_len)) {
            let range = at * part_len..((at + 1) * part_len).min(size);
            copies.push(async move {
                let copied = self.store.upload_part_copy(target, id, number, source, range).await;
                self.writing.progress.note();
                copied
            });
        }
        futures_util::stream::iter(copies).buffered(COPIES_AT_ONCE).try_collect().await
    }
}

fn changed_or(error: StoreError, key: &ObjectKey, what: impl FnOnce() -> String) -> FsError {
    match error {
        StoreError::Precondition { .. } => FsError::Changed { what: key.to_string() },
        source => FsError::Store { what: what(), source },
    }
}
