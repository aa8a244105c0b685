//! The upload of a staged file.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use sandpail_store::{
    Condition, CopySource, ETag, ObjectAttributes, ObjectKey, Part, Proof, PutBody, PutOutcome, StoreError, UploadId,
    multipart_tag, put_tag,
};
use tokio::time::Instant;

use super::checked::Fill;
use super::dirty_file::{Attempt, State, UnderWay, note_base};
use super::record::Event;
use super::stream::Stream;
use super::{Base, BaseReader, Committed, DirtyFile, PartSource, RangeSet, UploadPlan, plan};
use crate::read::ObjectVersion;
use crate::{FsError, FsResult};

/// Most parts that are read before the copies beside them begin.
const READY_MAX: usize = 2;

/// What an upload set out to store.
struct Snapshot {
    key: ObjectKey,
    size: u64,
    dirty: RangeSet,
    base: Option<Base>,
    /// The number of the stream that uploads it.
    stream: Option<u64>,
}

/// What an upload did.
pub(super) struct Stored {
    pub(super) outcome: PutOutcome,
    pub(super) attributes: ObjectAttributes,
    /// Changes that are not in it.
    pub(super) left_out: RangeSet,
}

/// Whether what failed so may be done all the same. An upload that is not there may be complete.
pub(crate) fn may_be_done(error: &StoreError) -> bool {
    error.is_transient() || matches!(error, StoreError::NotFound { .. })
}

impl Stored {
    fn all(outcome: PutOutcome, attributes: &ObjectAttributes) -> Self {
        Self { outcome, attributes: attributes.clone(), left_out: RangeSet::default() }
    }
}

impl DirtyFile {
    /// Stores the file as it is now. What is written meanwhile stays dirty; after an error everything does.
    ///
    /// # Errors
    /// [`FsError::Changed`] if the base object was replaced; [`FsError::Store`] with
    /// [`StoreError::Precondition`] if `condition` does not hold, or with the store's own error.
    pub async fn commit(
        self: &Arc<Self>,
        attributes: &ObjectAttributes,
        condition: &Condition,
        base: &dyn BaseReader,
    ) -> FsResult<Committed> {
        let mut condition = condition.clone();
        let made = self.clear_up_attempt().await?;
        // A reader may have found it out.
        let made = made.or_else(|| self.state().found.as_ref().map(|version| version.etag.clone()));
        if let Some(made) = made
            && !matches!(condition, Condition::Always)
        {
            // What the caller believes to be there was replaced by the upload itself.
            condition = Condition::Matches(made);
        }
        loop {
            let (committed, is_whole) = self.commit_once(attributes, &condition, base).await?;
            if is_whole {
                return Ok(committed);
            }
            if !matches!(condition, Condition::Always) {
                // The rest goes over what this upload has made.
                condition = Condition::Matches(committed.outcome.etag);
            }
        }
    }

    /// Stores the file. `false`: without changes to parts whose other bytes are only in the bucket, which need one more
    /// commit, over the object that this one made.
    async fn commit_once(
        self: &Arc<Self>,
        attributes: &ObjectAttributes,
        condition: &Condition,
        base: &dyn BaseReader,
    ) -> FsResult<(Committed, bool)> {
        let (mut snapshot, since) = {
            let mut state = self.state();
            state.journal.note(&[Event::Storing]);
            state.is_changed = false;
            let since = state.changed_since.take().unwrap_or_else(Instant::now);
            state.under_way = Some(UnderWay { since, bytes: state.dirty.len() });
            state.low_water = state.size;
            let snapshot = Snapshot {
                key: state.key.clone(),
                size: state.size,
                dirty: std::mem::take(&mut state.dirty),
                base: state.base.clone(),
                // It stays where its parts report to.
                stream: state.stream.as_mut().map(Stream::begin_finish),
            };
            (snapshot, since)
        };
        let result = self.upload(&mut snapshot, attributes, condition, base).await;
        let mut state = self.state();
        state.under_way = None;
        match result {
            Ok(Stored { outcome, attributes: attributes_stored, mut left_out }) => {
                let version = ObjectVersion { key: snapshot.key, etag: outcome.etag.clone(), size: snapshot.size };
                state.found = None;
                // What was punched meanwhile is neither local nor the base's.
                let limit = snapshot.size.min(state.low_water);
                left_out.remove(limit..u64::MAX);
                state.dirty.extend(&left_out);
                if !left_out.is_empty() {
                    state.is_changed = true;
                    state.changed_since = Some(since);
                }
                if let Err(error) = self.rebase(&mut state, version.clone()) {
                    // It is stored, and nothing here stands on it yet: the next try does.
                    let replaces = state.replaces.clone();
                    let ObjectVersion { key, etag, size } = version;
                    state.attempt = Some(Attempt {
                        key,
                        size,
                        part_count: 0,
                        replaces,
                        tag: Some(etag),
                        is_of_the_dead: false,
                        copied: None,
                    });
                    self.not_committed(state, &snapshot.dirty, since);
                    return Err(error);
                }
                // Otherwise the caller brings it what it lacks before it says so.
                if !state.is_changed && attributes_stored == *attributes {
                    state.stored();
                }
                Ok((Committed { outcome, size: snapshot.size, attributes_stored }, left_out.is_empty()))
            }
            Err(error) => {
                self.not_committed(state, &snapshot.dirty, since);
                Err(error)
            }
        }
    }

    /// What a commit had set out with, which has failed, is to be stored as before.
    fn not_committed(&self, mut state: MutexGuard<'_, State>, dirty: &RangeSet, since: Instant) {
        let size = state.size;
        state.dirty.extend(dirty);
        state.dirty.remove(size..u64::MAX);
        state.is_changed = true;
        state.changed_since = Some(since);
        drop(state);
        // It may lie here for long.
        self.note_sums();
    }

    /// The file stands on `version` now, which holds what it was when the upload of that began.
    fn rebase(&self, state: &mut State, version: ObjectVersion) -> FsResult<()> {
        // What was cut meanwhile is not to come back.
        let limit = version.size.min(state.low_water);
        // What was punched meanwhile is neither local nor the base's, and is hidden before the base is there.
        let mut punched = RangeSet::default();
        state.dirty.iter().for_each(|range| punched.insert(range.start..range.end.min(limit)));
        state.in_upload.iter().for_each(|range| punched.remove(range));
        for range in punched.iter().collect::<Vec<_>>() {
            self.stage_holes(state, range)?;
        }
        state.replaces = Some(version.etag.clone());
        state.base = Some(Base { version, limit });
        state.attempt = None;
        state.uploaded(limit);
        // After the holes, which hide it.
        note_base(state);
        Ok(())
    }

    /// The version that an upload, or a copy, of which nobody had heard was found to have made; told once.
    ///
    /// # Errors
    /// [`FsError::Store`] if the store does not say.
    pub(crate) async fn take_found(&self) -> FsResult<Option<ObjectVersion>> {
        self.clear_up_attempt().await?;
        Ok(self.state().found.take())
    }

    /// If the answer to the last completion was lost: looks whether the object was made, and stands on it if so. Gives
    /// its tag.
    pub(super) async fn clear_up_attempt(&self) -> FsResult<Option<ETag>> {
        let (attempt, info, mut state) = loop {
            let Some(attempt) = self.state().attempt.clone() else { return Ok(None) };
            let info = match self.context.store.head(&attempt.key).await {
                Ok(info) => Some(info),
                Err(StoreError::NotFound { .. }) => None,
                Err(source) => {
                    let what = format!("cannot see whether {} was stored", attempt.key);
                    return Err(FsError::Store { what, source });
                }
            };
            let state = self.state();
            // Another reader may have been faster, and an upload have come after that.
            if state.attempt.as_ref() == Some(&attempt) {
                break (attempt, info, state);
            }
        };
        let Some(info) = info.filter(|info| attempt.made(info)) else {
            state.attempt = None;
            return Ok(None);
        };
        if attempt.is_of_the_dead {
            // What was written after its upload is known from the record alone.
            state.attempt = None;
            let version = ObjectVersion { key: attempt.key, etag: info.etag.clone(), size: info.size };
            if !self.stand_on_in(&mut state, version.clone()) {
                return Ok(None);
            }
            state.found = Some(version);
            return Ok(Some(info.etag));
        }
        let version = ObjectVersion { key: attempt.key, etag: info.etag.clone(), size: info.size };
        self.rebase(&mut state, version.clone())?;
        state.found = Some(version);
        // It was complete, and nothing can be added to it.
        if let Some(stream) = state.stream.take() {
            self.abandon(stream);
        }
        Ok(Some(info.etag))
    }

    /// Dirty bytes that are not local are zeros; under a new base they must be staged as such.
    pub(super) fn stage_holes(&self, state: &mut State, range: Range<u64>) -> FsResult<()> {
        if range.is_empty() {
            return Ok(());
        }
        for (part, is_local) in state.local.split(range) {
            if is_local {
                continue;
            }
            self.staged.reserve(part.end - part.start)?;
            self.stage_unchanged(state, &part, Fill::Zeros)?;
            state.local.insert(part);
        }
        Ok(())
    }

    async fn upload(
        self: &Arc<Self>,
        snapshot: &mut Snapshot,
        attributes: &ObjectAttributes,
        condition: &Condition,
        base: &dyn BaseReader,
    ) -> FsResult<Stored> {
        let store = &self.context.store;
        let key = snapshot.key.clone();
        let failed = |source| FsError::Store { what: format!("cannot store {key}"), source };
        if let Some(stream) = snapshot.stream
            && let Some(finished) = self.finish_stream(stream, snapshot.size, condition).await?
        {
            return Ok(finished);
        }
        let base_limit = snapshot.base.as_ref().map(|base| base.limit);
        let limits = store.capabilities();
        let mut parts = match plan(snapshot.size, &snapshot.dirty, base_limit, self.context.options.part_len, limits)? {
            UploadPlan::Put => {
                let _permit = self.context.parts.acquire().await;
                let body = self.read(0, 0..snapshot.size, base).await?;
                let mut needs_base = false;
                if snapshot.base.is_some()
                    && let Err(error) = self.stage_fetched(0, &body)
                {
                    // The base will be gone even if the answer is lost, or this process killed, before that is known.
                    tracing::debug!(?key, %error, "an edit is stored without a whole copy of the file here");
                    needs_base = true;
                }
                let tag = || put_tag(body.iter().map(|chunk| &chunk[..]));
                // Where the next try would take what this one has made for somebody else's, it must know it.
                let is_noted = self.context.options.records_tags || needs_base;
                let tag = (is_noted || !matches!(condition, Condition::Always)).then(tag);
                if let Some(tag) = tag.as_ref().filter(|_| is_noted) {
                    self.note_completing(tag);
                }
                let outcome = store.put(&key, PutBody::Chunks(body), attributes, condition).await;
                if outcome.as_ref().is_err_and(may_be_done) {
                    let mut state = self.state();
                    // What the next try may not find any more it must not copy from.
                    state.leave_base();
                    let (key, size, replaces) = (key.clone(), snapshot.size, state.replaces.clone());
                    state.attempt = tag.map(|tag| Attempt {
                        key,
                        size,
                        part_count: 0,
                        replaces,
                        tag: Some(tag),
                        is_of_the_dead: false,
                        copied: None,
                    });
                }
                return Ok(Stored::all(outcome.map_err(failed)?, attributes));
            }
            UploadPlan::Multipart(parts) => parts,
        };
        loop {
            let begun = store.create_multipart(&key, attributes);
            let (id, ready) = futures_util::future::join(begun, self.read_ahead_of_copies(&parts, base)).await;
            let id = id.map_err(failed)?;
            self.context.upload_begun(&key, &id);
            let copy_refused = AtomicBool::new(false);
            let uploaded = match ready {
                Ok(ready) => self.upload_parts(snapshot, &id, &parts, ready, base, &copy_refused).await,
                Err(error) => Err(error),
            };
            let result = match uploaded {
                Ok(done) => {
                    let attempt = self.attempt(&key, snapshot.size, &done);
                    let completed = self.complete(&attempt, &id, &done, condition).await;
                    if completed.as_ref().is_err_and(may_be_done) {
                        self.state().attempt = Some(attempt);
                    }
                    completed.map_err(failed)
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(outcome) => return Ok(Stored::all(outcome, attributes)),
                Err(error) => {
                    self.context.abort_upload(&key, &id).await;
                    let has_copies = parts.iter().any(|part| matches!(part, PartSource::Copy(_)));
                    if !copy_refused.load(Ordering::Relaxed) || !has_copies {
                        return Err(error);
                    }
                    // The provider cannot copy parts after all: everything is uploaded.
                    let everything = RangeSet::default();
                    let without = sandpail_store::Capabilities { part_copy: false, ..limits.clone() };
                    let UploadPlan::Multipart(all) =
                        plan(snapshot.size, &everything, None, self.context.options.part_len, &without)?
                    else {
                        return Err(error);
                    };
                    parts = all;
                }
            }
        }
    }

    /// For a small change of a large object: what goes up with the change is fetched while the upload begins, before
    /// the provider is busy with copies.
    async fn read_ahead_of_copies(
        self: &Arc<Self>,
        parts: &[PartSource],
        base: &dyn BaseReader,
    ) -> FsResult<HashMap<u32, Vec<Bytes>>> {
        let uploads: Vec<_> =
            (1u32..).zip(parts).filter(|(_, part)| matches!(part, PartSource::Upload(_))).take(READY_MAX + 1).collect();
        let mut ready = HashMap::new();
        if uploads.len() < parts.len() && uploads.len() <= READY_MAX {
            for (number, part) in uploads {
                ready.insert(number, self.read(0, part.range().clone(), base).await?);
            }
        }
        Ok(ready)
    }

    async fn upload_parts(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        id: &UploadId,
        parts: &[PartSource],
        mut ready: HashMap<u32, Vec<Bytes>>,
        base: &dyn BaseReader,
        copy_refused: &AtomicBool,
    ) -> FsResult<Vec<Part>> {
        // Boxed one by one: a closure over borrowed parts would not do for a stream.
        let mut uploads = Vec::new();
        for (number, part) in (1u32..).zip(parts) {
            let ready = ready.remove(&number);
            uploads.push(self.upload_one(snapshot, id, (number, part, ready), base, copy_refused).boxed());
        }
        futures_util::stream::iter(uploads).buffered(self.context.options.max_parallel_parts).try_collect().await
    }

    async fn upload_one(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        id: &UploadId,
        (number, part, ready): (u32, &PartSource, Option<Vec<Bytes>>),
        base: &dyn BaseReader,
        copy_refused: &AtomicBool,
    ) -> FsResult<Part> {
        let key = &snapshot.key;
        let failed = |source| FsError::Store { what: format!("cannot store part {number} of {key}"), source };
        let uploaded = match (part, &snapshot.base) {
            (PartSource::Copy(range), Some(base)) => {
                let source = CopySource { key: base.version.key.clone(), etag: Some(base.version.etag.clone()) };
                let copied = self.context.store.upload_part_copy(key, id, number, &source, range.clone()).await;
                copied.map_err(|error| match error {
                    StoreError::Precondition { .. } => FsError::Changed { what: source.key.to_string() },
                    StoreError::Unsupported { .. } => {
                        copy_refused.store(true, Ordering::Relaxed);
                        failed(error)
                    }
                    other => failed(other),
                })
            }
            _ => {
                let _permit = self.context.parts.acquire().await;
                let body = match ready {
                    Some(ready) => ready,
                    None => self.read(0, part.range().clone(), base).await?,
                };
                let body = PutBody::Chunks(body);
                self.context.store.upload_part(key, id, number, body).await.map_err(failed)
            }
        };
        if uploaded.is_ok() {
            self.context.progress.note();
        }
        uploaded
    }

    pub(super) fn attempt(&self, key: &ObjectKey, size: u64, parts: &[Part]) -> Attempt {
        let replaces = self.state().replaces.clone();
        let tag = multipart_tag(parts.iter().map(|part| &part.etag)).ok();
        Attempt { key: key.clone(), size, part_count: parts.len(), replaces, tag, is_of_the_dead: false, copied: None }
    }

    /// Completes an upload. If the answer to an earlier try was lost, the upload is gone and the object is there.
    pub(super) async fn complete(
        &self,
        attempt: &Attempt,
        id: &UploadId,
        parts: &[Part],
        condition: &Condition,
    ) -> Result<PutOutcome, StoreError> {
        if let Some(tag) = &attempt.tag {
            self.note_completing(tag);
        }
        let store = &self.context.store;
        let completed = match store.complete_multipart(&attempt.key, id, parts, condition).await {
            Err(error @ StoreError::NotFound { .. }) => match store.head(&attempt.key).await {
                Ok(info) if attempt.made(&info) => {
                    let proof = Proof::default();
                    Ok(PutOutcome { etag: info.etag, last_modified: Some(info.last_modified), proof })
                }
                _ => Err(error),
            },
            other => other,
        };
        if completed.is_ok() {
            self.context.upload_ended(id);
        }
        completed
    }

    /// What the file stood on will be gone, and whoever finds the file must know that the object with this tag is its own.
    fn note_completing(&self, tag: &ETag) {
        let mut state = self.state();
        let noted = state.journal.note_kept(&Event::Completing(tag.as_str().to_owned()));
        let synced = noted.and_then(|()| if state.base.is_some() { state.journal.sync_if_durable() } else { Ok(()) });
        if let Err(error) = synced {
            // It is stored all the same: a disk that is broken may not get better.
            tracing::warn!(key = %state.key, %error, "the record of a staged file is not on the disk");
        }
    }
}
