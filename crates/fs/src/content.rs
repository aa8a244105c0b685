//! The data of one file while it is open or not yet stored.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sandpail_store::{ETag, ObjectKey};
use tokio::time::Instant;

use crate::guard;
use crate::read::{ObjectVersion, ReadContext, Reader};
use crate::receipt::Failure;
use crate::write::DirtyFile;

/// Shared by all handles of an inode. The file is *clean* (read from one object version) or *dirty*
/// (a staging file over an optional base version).
#[derive(Debug, Default)]
pub struct Content {
    /// With [`Tree::moves`](crate::tree::Tree::moves) when its key was looked at last.
    reader: Mutex<Option<(Option<u64>, Arc<Reader>)>>,
    dirty: Mutex<Option<Arc<DirtyFile>>>,
    /// Held while the file is uploaded, renamed or removed. Taken before the tree's lock, never under it.
    pub(crate) commit: tokio::sync::Mutex<()>,
    attributes: Mutex<Waiting>,
    /// Something is on its way to the bucket, which has not acknowledged it.
    uploading: AtomicBool,
    /// How the last try to store it failed, if it did.
    failure: Mutex<Option<Failure>>,
    times_were_set: AtomicBool,
    unlinked: AtomicBool,
    replaced: AtomicBool,
    may_be_stored: AtomicBool,
    removal_open: AtomicBool,
    leaving: AtomicBool,
}

/// Attributes that wait to be stored.
#[derive(Debug, Default)]
struct Waiting {
    since: Option<Instant>,
    /// Counts the changes.
    changes: u64,
    /// They are on their way.
    go_up: bool,
}

/// A change of attributes, which can be taken back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttributeChange {
    number: u64,
    was_waiting: bool,
}

impl Content {
    /// The reader of `version`, made if need be.
    pub(crate) fn reader(&self, context: &Arc<ReadContext>, version: &ObjectVersion) -> Arc<Reader> {
        self.reader_at(version, None, || Reader::new(Arc::clone(context), version.clone()))
    }

    fn reader_at(
        &self,
        version: &ObjectVersion,
        moves: Option<u64>,
        make: impl FnOnce() -> Arc<Reader>,
    ) -> Arc<Reader> {
        let mut slot = guard(&self.reader);
        match &mut *slot {
            Some((looked_at, reader)) if reader.version() == version => {
                *looked_at = moves.or(*looked_at);
                Arc::clone(reader)
            }
            _ => {
                let reader = make();
                *slot = Some((moves, Arc::clone(&reader)));
                reader
            }
        }
    }

    /// The reader of the version with this tag and size, else one that `make` makes. Its key is built by `key`, unless it was after
    /// so many moves.
    pub(crate) fn reader_of<E>(
        &self,
        (etag, size): (&ETag, u64),
        moves: u64,
        key: impl FnOnce() -> Result<ObjectKey, E>,
        make: impl FnOnce(&ObjectVersion) -> Arc<Reader>,
    ) -> Result<Arc<Reader>, E> {
        if let Some((Some(looked_at), reader)) = &*guard(&self.reader)
            && *looked_at == moves
            && (&reader.version().etag, reader.version().size) == (etag, size)
        {
            return Ok(Arc::clone(reader));
        }
        let version = ObjectVersion { key: key()?, etag: etag.clone(), size };
        Ok(self.reader_at(&version, Some(moves), || make(&version)))
    }

    /// Ends the read-ahead of a handle.
    pub(crate) fn forget_handle(&self, handle: u64) {
        if let Some((_, reader)) = &*guard(&self.reader) {
            reader.forget_handle(handle);
        }
    }

    /// Nobody has it open.
    pub(crate) fn rest(&self) {
        if let Some((_, reader)) = &*guard(&self.reader) {
            reader.rest();
        }
    }

    /// The staged file, if there is one.
    pub(crate) fn dirty(&self) -> Option<Arc<DirtyFile>> {
        guard(&self.dirty).clone()
    }

    /// The staged file, made if need be.
    pub(crate) fn dirty_or<E>(&self, make: impl FnOnce() -> Result<Arc<DirtyFile>, E>) -> Result<Arc<DirtyFile>, E> {
        let mut slot = guard(&self.dirty);
        match &*slot {
            Some(dirty) => Ok(Arc::clone(dirty)),
            None => {
                let dirty = make()?;
                *slot = Some(Arc::clone(&dirty));
                Ok(dirty)
            }
        }
    }

    /// Lets go of the staged file.
    pub(crate) fn drop_dirty(&self) {
        guard(&self.dirty).take();
    }

    /// Whether something is not in the bucket yet: changed since the last upload began, or on its way.
    pub(crate) fn has_unstored(&self) -> bool {
        // In this order: an upload that fails says that there are changes before it ends.
        self.is_uploading() || self.has_changes()
    }

    /// The same for bytes alone.
    pub(crate) fn has_unstored_bytes(&self) -> bool {
        self.is_uploading() || self.dirty().is_some_and(|dirty| dirty.is_dirty())
    }

    /// Whether something was changed since the last upload began.
    pub(crate) fn has_changes(&self) -> bool {
        self.has_pending_attributes() || self.dirty().is_some_and(|dirty| dirty.is_dirty())
    }

    /// Attributes were changed, and wait to be stored.
    pub(crate) fn attributes_changed(&self) -> AttributeChange {
        let mut waiting = guard(&self.attributes);
        let was_waiting = waiting.since.is_some();
        waiting.since.get_or_insert_with(Instant::now);
        waiting.changes += 1;
        AttributeChange { number: waiting.changes, was_waiting }
    }

    /// A change could not be stored and is taken back; others that wait go on waiting.
    pub(crate) fn attributes_restored(&self, change: AttributeChange) {
        let mut waiting = guard(&self.attributes);
        if waiting.changes == change.number && !change.was_waiting {
            waiting.since = None;
        }
    }

    /// They are not stored, or not as they are now.
    pub(crate) fn attributes_wait(&self) {
        guard(&self.attributes).since.get_or_insert_with(Instant::now);
    }

    /// They are on their way as they are now. Only under the tree's lock.
    pub(crate) fn attributes_go_up(&self) {
        let mut waiting = guard(&self.attributes);
        waiting.go_up |= waiting.since.take().is_some();
    }

    pub(crate) fn has_pending_attributes(&self) -> bool {
        guard(&self.attributes).since.is_some()
    }

    /// The same, or they are on their way: whoever comes after this process stores them.
    pub(crate) fn has_unstored_attributes(&self) -> bool {
        let waiting = guard(&self.attributes);
        waiting.since.is_some() || waiting.go_up
    }

    /// Since when something waits to be stored, and how many bytes.
    pub(crate) fn waiting(&self) -> (Option<Instant>, u64) {
        let (since, bytes) = self.dirty().map_or((None, 0), |dirty| dirty.waiting());
        (since.into_iter().chain(guard(&self.attributes).since).min(), bytes)
    }

    pub(crate) fn is_uploading(&self) -> bool {
        self.uploading.load(Ordering::Acquire)
    }

    /// An upload begins; it ends when the guard is dropped. Only for the holder of `commit`.
    pub(crate) fn begin_upload(&self) -> Uploading<'_> {
        self.uploading.store(true, Ordering::Release);
        Uploading { content: self }
    }

    /// How the last try to store it failed, if it did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        guard(&self.failure).clone()
    }

    pub(crate) fn set_failure(&self, failure: Option<Failure>) {
        *guard(&self.failure) = failure;
    }

    /// Remembers that someone chose the times, so that a stored time may not differ from them.
    pub(crate) fn set_times_were_set(&self, set: bool) {
        self.times_were_set.store(set, Ordering::Release);
    }

    pub(crate) fn times_were_set(&self) -> bool {
        self.times_were_set.load(Ordering::Acquire)
    }

    pub(crate) fn mark_unlinked(&self) {
        self.unlinked.store(true, Ordering::Release);
    }

    /// The bucket has another object under the name, or none: somebody else's doing, which those who have this one open
    /// for writing do not know of.
    pub(crate) fn mark_replaced(&self) {
        self.replaced.store(true, Ordering::Release);
    }

    /// What stands in its place now was put there from here: it has lost its name for good.
    pub(crate) fn mark_superseded(&self) {
        self.replaced.store(false, Ordering::Release);
        self.mark_unlinked();
    }

    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    /// It has its name again.
    pub(crate) fn mark_reclaimed(&self) {
        self.replaced.store(false, Ordering::Release);
    }

    pub(crate) fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire)
    }

    /// Remembers, or forgets, what [`Content::is_removal_open`] says.
    pub(crate) fn set_removal_open(&self, is_open: bool) {
        self.removal_open.store(is_open, Ordering::Release);
    }

    /// Nobody knows whether its removal was done, and what is staged is no whole file if it was.
    pub(crate) fn is_removal_open(&self) -> bool {
        self.removal_open.load(Ordering::Acquire)
    }

    /// Its object is about to go: whoever opens the file has to wait until that is decided. Until the guard is dropped; only for the
    /// holder of `commit`.
    pub(crate) fn begin_leaving(&self) -> Leaving<'_> {
        self.leaving.store(true, Ordering::Release);
        Leaving { content: self }
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Remembers that an upload failed, which may have been done all the same: its answer may only have been lost.
    pub(crate) fn set_may_be_stored(&self) {
        self.may_be_stored.store(true, Ordering::Release);
    }

    pub(crate) fn may_be_stored(&self) -> bool {
        self.may_be_stored.load(Ordering::Acquire)
    }
}

/// The object is being removed or replaced.
#[derive(Debug)]
pub(crate) struct Leaving<'a> {
    content: &'a Content,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.content.leaving.store(false, Ordering::Release);
    }
}

/// An upload under way.
#[derive(Debug)]
pub(crate) struct Uploading<'a> {
    content: &'a Content,
}

impl Drop for Uploading<'_> {
    fn drop(&mut self) {
        guard(&self.content.attributes).go_up = false;
        self.content.uploading.store(false, Ordering::Release);
    }
}
