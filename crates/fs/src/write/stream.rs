//! Uploading a new file while it is written.
//!
//! A file without a base whose first bytes are complete, beyond a threshold, becomes a multipart upload:
//! each part goes up as soon as all of its bytes are there. A part that is written again later goes up
//! again at the end. Cutting or renaming the file gives the upload up; its bytes are still in staging.
//!
//! When much is staged, parts that are uploaded are let go of: the bucket has them, but nobody can read them
//! before the upload is complete. Who needs them all the same has the file committed first. The first part
//! stays here as long as the file is open, for that is where programs patch headers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use sandpail_store::{Condition, ObjectAttributes, ObjectKey, Part, PutBody, StoreError, UploadId};

use super::checked::Fill;
use super::commit::{Stored, may_be_done};
use super::dirty_file::{State, note_base};
use super::record::{Event, PartForm, Recorded};
use super::{BaseReader, DirtyFile, RangeSet};
use crate::attr::Time;
use crate::{FsError, FsResult};

/// After so many parts their length doubles, so that any size fits the number of parts.
const PARTS_PER_LEN: u32 = 1000;
/// Writers wait when so many parts are complete and not uploaded.
const LAG_MAX: u64 = 4;

/// An upload that runs beside the writing.
#[derive(Debug)]
pub(super) struct Stream {
    /// Tells this stream from one that was given up.
    serial: u64,
    key: ObjectKey,
    attributes: ObjectAttributes,
    /// `None` while it is being begun.
    id: Option<UploadId>,
    parts: BTreeMap<u32, Part>,
    /// Bytes that were written again since the upload of their part began.
    rewritten: RangeSet,
    /// The next part to begin, and where it starts.
    next: u32,
    next_start: u64,
    /// The next part to let go of, and where it starts.
    let_go_next: u32,
    let_go_start: u64,
    running: usize,
    /// No more parts are begun.
    is_finishing: bool,
    failure: Option<StoreError>,
}

impl Stream {
    /// Whether parts are on their way.
    #[cfg(test)]
    pub(super) fn is_busy(&self) -> bool {
        self.running > 0
    }

    fn let_go_event(&self, number: u32, range: &Range<u64>) -> Option<Event> {
        let part = self.parts.get(&number)?;
        Some(Event::LetGo(PartForm {
            key: self.key.to_string(),
            upload: self.id.as_ref()?.0.clone(),
            number,
            etag: part.etag.as_str().to_owned(),
            checksum: part.checksum.clone(),
            start: range.start,
            end: range.end,
        }))
    }

    /// Begins no more parts. Gives the stream's number.
    pub(super) fn begin_finish(&mut self) -> u64 {
        self.is_finishing = true;
        self.serial
    }

    /// Goes on with an upload of a process that died: of its parts only those are named that nobody can upload again.
    pub(super) fn resume(recorded: &Recorded, part_len: impl Fn(u32) -> u64) -> Option<Self> {
        let (first, last) = (recorded.parts.first()?, recorded.parts.last()?);
        // What was written again since then is in no part.
        let mut rewritten = RangeSet::default();
        for range in recorded.in_upload.iter() {
            let pieces = recorded.local.split(range).into_iter().filter(|(_, is_local)| *is_local);
            pieces.for_each(|(piece, _)| rewritten.insert(piece));
        }
        Some(Self {
            serial: next_serial(),
            key: ObjectKey::new(&first.key).ok()?,
            // What it began with nobody knows any more: the object gets them when it is complete.
            attributes: ObjectAttributes::default(),
            id: Some(first.upload_id()),
            parts: recorded.parts.iter().map(|part| (part.number, part.part())).collect(),
            rewritten,
            next: last.number + 1,
            next_start: last.end,
            let_go_next: last.number + 1,
            let_go_start: last.start + part_len(last.number),
            running: 0,
            is_finishing: false,
            failure: None,
        })
    }
}

/// Nothing of a streamed file is in the bucket.
#[derive(Debug)]
struct NoBase;

#[async_trait::async_trait]
impl BaseReader for NoBase {
    async fn read_base(
        &self,
        _handle: u64,
        version: &crate::read::ObjectVersion,
        _range: Range<u64>,
    ) -> FsResult<Vec<bytes::Bytes>> {
        Err(FsError::Changed { what: version.key.to_string() })
    }
}

/// What an upload carries that begins while the file is written, and its times move.
fn written_now(attributes: &ObjectAttributes) -> ObjectAttributes {
    let mut attributes = attributes.clone();
    for name in ["mtime", "ctime"] {
        if let Some(time) = attributes.metadata.get_mut(name) {
            *time = Time::now().text();
        }
    }
    attributes
}

impl DirtyFile {
    pub(super) fn stream_part_len(&self, number: u32) -> u64 {
        let limits = self.context.store.capabilities();
        if limits.equal_parts {
            return self.context.options.part_len;
        }
        let doublings = (number - 1) / PARTS_PER_LEN;
        (self.context.options.part_len << doublings.min(20)).min(limits.part_len_max)
    }

    /// Bytes changed: begins or goes on with an upload, if it makes sense.
    pub(super) fn on_change(self: &Arc<Self>, state: &mut State, range: &Range<u64>) {
        // What is let go of must be in one upload, not in another one of which nobody knows yet whether it is the object now.
        let is_unclear = state.stream.is_none() && state.attempt.is_some();
        if state.stays_here || is_unclear {
            return;
        }
        if let Some(stream) = &mut state.stream {
            // Rare: a header is patched at the end, say.
            stream.rewritten.insert(range.start..range.end.min(stream.next_start));
        } else {
            // It would upload what the commit uploads.
            let is_committing = state.under_way.is_some();
            let is_new = state.base.is_none() && state.size > self.context.options.stream_threshold;
            if !is_new || !state.local.covers(&(0..self.context.options.stream_threshold)) || is_committing {
                return;
            }
            // An earlier upload that was about to be completed is none of its: whoever finds parts of this one must not take them
            // for parts of that.
            note_base(state);
            state.stream = Some(Stream {
                serial: next_serial(),
                key: state.key.clone(),
                attributes: written_now(&state.attributes),
                id: None,
                parts: BTreeMap::new(),
                rewritten: RangeSet::default(),
                next: 1,
                next_start: 0,
                let_go_next: 2,
                let_go_start: self.stream_part_len(1),
                running: 0,
                is_finishing: false,
                failure: None,
            });
            self.spawn_begin(state);
        }
        self.spawn_parts(state);
    }

    /// Goes on with an upload that was to be completed, if it was not.
    ///
    /// # Errors
    /// When nobody can say.
    pub async fn go_on(self: &Arc<Self>) -> FsResult<bool> {
        if self.state().stream.is_none() {
            // The next commit asks, which needs the answer.
            return Ok(false);
        }
        self.clear_up_attempt().await?;
        let mut state = self.state();
        self.spawn_parts(&mut state);
        Ok(state.stream.is_some())
    }

    fn spawn_begin(self: &Arc<Self>, state: &mut State) {
        let Some(stream) = &mut state.stream else { return };
        stream.running += 1;
        let (serial, key, attributes) = (stream.serial, stream.key.clone(), stream.attributes.clone());
        let file = Arc::clone(self);
        self.context.runtime.spawn(async move {
            let begun = file.context.store.create_multipart(&key, &attributes).await;
            let id = begun.as_ref().ok().cloned();
            if let Some(id) = &id {
                file.context.upload_begun(&key, id);
            }
            let is_wanted = file.with_stream(serial, begun, |stream, begun| match begun {
                Ok(id) => stream.id = Some(id),
                Err(error) => stream.failure = Some(error),
            });
            if let Some(id) = id.filter(|_| !is_wanted) {
                // Given up before it had a name.
                file.context.abort_upload(&key, &id).await;
            }
        });
    }

    /// Writes a result into the stream it belongs to, and begins what can begin now. `false` if the stream was given up.
    fn with_stream<T>(
        self: &Arc<Self>,
        serial: u64,
        result: Result<T, StoreError>,
        write: impl FnOnce(&mut Stream, Result<T, StoreError>),
    ) -> bool {
        let is_wanted = {
            let mut state = self.state();
            if let Some(stream) = state.stream.as_mut().filter(|stream| stream.serial == serial) {
                stream.running -= 1;
                if result.is_ok() {
                    self.context.progress.note();
                }
                write(stream, result);
                if let Some(keep) = self.context.options.let_go_above {
                    self.let_go(&mut state, keep);
                }
                self.spawn_parts(&mut state);
                true
            } else {
                false
            }
        };
        self.progress.notify_waiters();
        is_wanted
    }

    fn spawn_parts(self: &Arc<Self>, state: &mut State) {
        let limits = self.context.store.capabilities();
        let State { stream: Some(stream), local, attempt: None, .. } = state else { return };
        let Some(id) = stream.id.clone() else { return };
        while !stream.is_finishing
            && stream.failure.is_none()
            && stream.running < self.context.options.max_parallel_parts
        {
            let number = stream.next;
            let range = stream.next_start..stream.next_start + self.stream_part_len(number);
            // The last number is left for the end of the file.
            if !local.covers(&range) || number >= limits.part_count_max {
                return;
            }
            stream.next += 1;
            stream.next_start = range.end;
            stream.running += 1;
            let (serial, key, id, file) = (stream.serial, stream.key.clone(), id.clone(), Arc::clone(self));
            self.context.runtime.spawn(async move {
                let uploaded = file.upload_stream_part(&key, &id, number, range).await;
                file.with_stream(serial, uploaded, |stream, uploaded| match uploaded {
                    Ok(part) => drop(stream.parts.insert(number, part)),
                    Err(error) => stream.failure = Some(error),
                });
            });
        }
    }

    async fn upload_stream_part(
        self: &Arc<Self>,
        key: &ObjectKey,
        id: &UploadId,
        number: u32,
        range: Range<u64>,
    ) -> Result<Part, StoreError> {
        let _permit = self.context.parts.acquire().await;
        let body = self.read(0, range, &NoBase).await.map_err(|error| match error {
            FsError::Store { source, .. } => source,
            FsError::Io { what, source } => StoreError::Io { what, source },
            damaged @ FsError::Damaged { .. } => StoreError::Integrity { message: damaged.to_string() },
            other => StoreError::Invalid { message: other.to_string() },
        })?;
        self.context.store.upload_part(key, id, number, PutBody::Chunks(body)).await
    }

    /// Lets go of uploaded parts, the oldest first, until no more than `keep` bytes are staged. Says whether it did.
    fn let_go(&self, state: &mut State, keep: u64) -> bool {
        let before = state.times_let_go;
        while let Some(stream) = &state.stream {
            if !self.staged.holds_more_than(keep)
                || !stream.parts.contains_key(&stream.let_go_next)
                || self.context.keeps_whole.load(Ordering::Acquire)
                || !self.staged.can_let_go()
            {
                break;
            }
            let range = stream.let_go_start..stream.let_go_start + self.stream_part_len(stream.let_go_next);
            // What was written again since then is in no part.
            let goes = state.local.covers(&range) && !stream.rewritten.intersects(&range);
            // Bytes beside it that are damaged are told to whoever reads them.
            let sums = if goes { self.sums_after(state, &range, Fill::Nothing) } else { Ok(Vec::new()) };
            let Ok(sums) = sums else { break };
            let State { stream: Some(stream), local, sums: all_sums, in_upload, times_let_go, journal, .. } =
                &mut *state
            else {
                break;
            };
            if goes {
                let Some(event) = stream.let_go_event(stream.let_go_next, &range) else { break };
                if journal.let_go(event).is_err() {
                    break;
                }
                // The record has it: so it is, also if that is not on the disk, or the disk does not take the bytes back. The upload,
                // which may be all that a later process sees of them, is not given up.
                if journal.sync_if_durable().is_ok() {
                    self.staged.let_go(&range);
                }
                all_sums.voided(&range);
                all_sums.replace(&range, sums);
                local.remove(range.clone());
                in_upload.insert(range.clone());
                *times_let_go += 1;
            }
            stream.let_go_next += 1;
            stream.let_go_start = range.end;
        }
        state.times_let_go > before
    }

    /// There is no room for more: lets go of what is uploaded, or waits until something is. `false` if there is nothing
    /// to wait for.
    pub async fn make_room(&self) -> bool {
        if self.context.options.let_go_above.is_none() {
            return false;
        }
        let lets_go = self.context.lets_go.notified();
        tokio::pin!(lets_go);
        lets_go.as_mut().enable();
        if self.context.keeps_whole.load(Ordering::Acquire) && self.state().stream.is_some() {
            // A directory is being moved. It does not wait for whoever waits here.
            lets_go.await;
            return true;
        }
        let progressed = self.progress.notified();
        tokio::pin!(progressed);
        progressed.as_mut().enable();
        {
            let mut state = self.state();
            if self.let_go(&mut state, 0) {
                return true;
            }
            if state.stream.as_ref().is_none_or(|stream| stream.running == 0) {
                return false;
            }
        }
        progressed.await;
        true
    }

    /// Waits while more is complete than the store takes.
    pub async fn backpressure(&self) {
        loop {
            let progressed = self.progress.notified();
            tokio::pin!(progressed);
            progressed.as_mut().enable();
            {
                let state = self.state();
                let Some(stream) = &state.stream else { return };
                let lag_max =
                    LAG_MAX * self.stream_part_len(stream.next) * self.context.options.max_parallel_parts as u64;
                let lag_max = self.staged.limit().map_or(lag_max, |limit| lag_max.min(limit / 4));
                if stream.failure.is_some() || state.size.saturating_sub(stream.next_start) <= lag_max {
                    return;
                }
                // With a gap nothing goes up, however long one waits.
                let part = stream.next_start..stream.next_start + self.stream_part_len(stream.next);
                if stream.running == 0 || !state.local.covers(&part) {
                    return;
                }
            }
            progressed.await;
        }
    }

    /// Gives an upload up; its parts are dropped from the store.
    pub(super) fn abandon(&self, stream: Stream) {
        let Some(id) = stream.id else { return };
        let (context, key) = (Arc::clone(&self.context), stream.key);
        self.context.runtime.spawn(async move { context.abort_upload(&key, &id).await });
    }

    /// Waits for the parts under way, uploads the rest and completes. `None` if the stream had failed: then the
    /// file is uploaded anew. A stream with parts that were let go of is never given up.
    pub(super) async fn finish_stream(
        self: &Arc<Self>,
        serial: u64,
        size: u64,
        condition: &Condition,
    ) -> FsResult<Option<Stored>> {
        let (stream, in_upload) = loop {
            let progressed = self.progress.notified();
            tokio::pin!(progressed);
            progressed.as_mut().enable();
            {
                let mut state = self.state();
                match &mut state.stream {
                    Some(stream) if stream.serial == serial => {
                        if stream.running == 0 {
                            break (state.stream.take(), state.in_upload.clone());
                        }
                    }
                    // Cut or renamed meanwhile: it was given up.
                    _ => return Ok(None),
                }
            }
            progressed.await;
        };
        let Some(mut stream) = stream else { return Ok(None) };
        if let Some(error) = stream.failure.take() {
            tracing::info!(key = %stream.key, %error, "the upload beside the writing failed; trying again");
            if in_upload.is_empty() {
                self.abandon(stream);
                return Ok(None);
            }
        }
        let Some(id) = stream.id.clone().filter(|_| stream.next_start <= size) else {
            self.abandon(stream);
            return Ok(None);
        };
        let mut todo: Vec<(u32, Range<u64>)> = Vec::new();
        let mut left_out = RangeSet::default();
        let mut start = 0;
        for number in 1..stream.next {
            let range = start..start + self.stream_part_len(number);
            if in_upload.intersects(&range) {
                let changes = stream.rewritten.split(range.clone()).into_iter().filter(|(_, is_inside)| *is_inside);
                changes.for_each(|(change, _)| left_out.insert(change));
            } else if !stream.parts.contains_key(&number) || stream.rewritten.intersects(&range) {
                todo.push((number, range.clone()));
            }
            start = range.end;
        }
        let mut number = stream.next;
        while start < size {
            let end = (start + self.stream_part_len(number)).min(size);
            todo.push((number, start..end));
            start = end;
            number += 1;
        }
        let too_many = number - 1 > self.context.store.capabilities().part_count_max;
        if too_many {
            self.abandon(stream);
            return Ok(None);
        }
        let key = stream.key.clone();
        let mut uploads = Vec::new();
        for (number, range) in todo {
            let (key, id) = (&key, &id);
            let upload = async move {
                let part = self.upload_stream_part(key, id, number, range).await?;
                self.context.progress.note();
                Ok((number, part))
            };
            uploads.push(upload.boxed());
        }
        let rest: Result<Vec<_>, StoreError> =
            futures_util::stream::iter(uploads).buffered(self.context.options.max_parallel_parts).try_collect().await;
        let result = match rest {
            Ok(rest) => {
                stream.parts.extend(rest);
                let parts: Vec<Part> = stream.parts.values().cloned().collect();
                let attempt = self.attempt(&key, size, &parts);
                let completed = self.complete(&attempt, &id, &parts, condition).await;
                if completed.as_ref().is_err_and(may_be_done) {
                    // Then nothing can be added to it any more.
                    self.state().attempt = Some(attempt);
                }
                completed
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(outcome) => Ok(Some(Stored { outcome, attributes: stream.attributes, left_out })),
            Err(source) => {
                self.put_back(stream);
                Err(FsError::Store { what: format!("cannot store {key}"), source })
            }
        }
    }

    /// After a failure: a stream that holds the only copy of some bytes is finished by the next try.
    fn put_back(&self, mut stream: Stream) {
        let mut state = self.state();
        if state.in_upload.is_empty() || state.stream.is_some() {
            self.abandon(stream);
        } else {
            stream.is_finishing = false;
            // What was written since the upload was to be finished is in none of its parts.
            for range in state.dirty.iter() {
                stream.rewritten.insert(range.start..range.end.min(stream.next_start));
            }
            // The end may not be the end next time.
            let next = stream.next;
            stream.parts.retain(|number, _| *number < next);
            state.stream = Some(stream);
        }
    }
}

/// A number that differs between streams of one process.
fn next_serial() -> u64 {
    use std::sync::atomic::AtomicU64;
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Drop for DirtyFile {
    fn drop(&mut self) {
        let mut state = self.state();
        let stream = state.stream.take();
        // Parts that hold the only copy of what is kept stay in the bucket.
        let is_needed = self.staged.is_kept.load(Ordering::Acquire) && !state.in_upload.is_empty();
        if let Some(stream) = stream.filter(|_| !is_needed) {
            self.abandon(stream);
        }
    }
}
