//! A file that is being written.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use sandpail_store::{ETag, ObjectAttributes, ObjectInfo, ObjectKey};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::checked::Fill;
use super::journal::{Journal, boot, now_ms};
use super::record::{Begin, Described, Event};
use super::staging::Staged;
use super::stream::Stream;
use super::sums::{Summed, Sums};
use super::{Base, BaseReader, RangeSet, WriteContext};
use crate::engine::carried;
use crate::read::ObjectVersion;
use crate::{FsError, FsResult, guard};

/// Buffers of local bytes are this long at most.
pub(super) const CHUNK_LEN: u64 = 1 << 20;
/// What is fetched at once to make a file local.
const FETCH_LEN: u64 = 8 << 20;

/// A staged file, shared by all handles of an inode.
#[derive(Debug)]
pub struct DirtyFile {
    pub(super) context: Arc<WriteContext>,
    pub(super) staged: Staged,
    pub(super) state: Mutex<State>,
    /// A part of a stream was stored, or failed.
    pub(super) progress: Notify,
    /// Held while the file is brought to the disk.
    pub(super) persisting: tokio::sync::Mutex<()>,
    /// Bytes that differ from their sum were met, and logged.
    pub(super) is_damaged: AtomicBool,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) key: ObjectKey,
    pub(super) size: u64,
    /// Bytes that are valid in staging.
    pub(super) local: RangeSet,
    /// Their sums.
    pub(super) sums: Sums,
    /// Bytes that changed since the last upload.
    pub(super) dirty: RangeSet,
    /// Something changed since the last upload, if only the size or that the file exists.
    pub(super) is_changed: bool,
    /// Since when; also while the upload goes on and after one that failed.
    pub(super) changed_since: Option<Instant>,
    /// What is being uploaded, and not acknowledged.
    pub(super) under_way: Option<UnderWay>,
    pub(super) base: Option<Base>,
    /// The tag of the object that the next upload replaces, as far as known; also when nothing of it shows any more.
    pub(super) replaces: Option<ETag>,
    /// An upload whose completion failed, and may have been done all the same: then it has replaced the base.
    pub(super) attempt: Option<Attempt>,
    /// What such an upload was found to have made, until somebody asks.
    pub(super) found: Option<ObjectVersion>,
    /// A removal of the object was asked for since it was stored, and may be done.
    pub(super) may_be_removed: bool,
    /// Bytes that are not here any more, only in parts of the upload under way.
    pub(super) in_upload: RangeSet,
    /// How often bytes were let go of: a read that saw another number looks again.
    pub(super) times_let_go: u64,
    /// The smallest size since the upload under way began.
    pub(super) low_water: u64,
    pub(super) attributes: ObjectAttributes,
    pub(super) stream: Option<Stream>,
    /// It is not uploaded while it is written any more: it has no name, or is about to lose it.
    pub(super) stays_here: bool,
    /// What was staged is on the disk.
    pub(super) is_synced: bool,
    /// What is known of the file if this process dies.
    pub(super) journal: Journal,
}

/// What an upload set out with.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnderWay {
    /// Since when it was not stored.
    pub(super) since: Instant,
    /// Changed bytes in it.
    pub(super) bytes: u64,
}

impl State {
    /// What was nowhere but in an upload is in the object now, up to `limit`: it is stored, and no hole.
    pub(super) fn uploaded(&mut self, limit: u64) {
        let ranges: Vec<_> = self.in_upload.iter().map(|range| range.start..range.end.min(limit)).collect();
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            for (part, is_local) in self.local.split(range) {
                if !is_local {
                    self.dirty.remove(part);
                }
            }
        }
        self.in_upload.remove(0..limit);
    }

    /// Does without the base, if all of it that shows is here.
    pub(super) fn leave_base(&mut self) {
        if self.base.as_ref().is_some_and(|base| self.local.covers(&(0..base.limit))) {
            self.base = None;
            note_base(self);
        }
    }

    /// The bucket has everything.
    pub(super) fn stored(&mut self) {
        self.may_be_removed = false;
        self.journal.stored();
    }

    /// Something is not stored from now on.
    pub(super) fn changed(&mut self) {
        self.is_changed = true;
        self.is_synced = false;
        self.changed_since.get_or_insert_with(Instant::now);
    }
}

/// What an upload of which nobody knows whether it was completed would have made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) key: ObjectKey,
    pub(super) size: u64,
    pub(super) part_count: usize,
    /// The object before.
    pub(super) replaces: Option<ETag>,
    /// The tag that the object would have, if that is known: the same bytes as before have the same.
    pub(super) tag: Option<ETag>,
    /// It was another process's, which died.
    pub(super) is_of_the_dead: bool,
    /// What a copy of the object onto itself carries, if one may have been made: it has a tag that nobody could know before.
    pub(super) copied: Option<ETag>,
}

impl Attempt {
    /// Whether `info` is the object that the upload would have made.
    pub(super) fn made(&self, info: &ObjectInfo) -> bool {
        if self.tag.as_ref() == Some(&info.etag) {
            return true;
        }
        if self.is_of_the_dead {
            return info.size == self.size && self.copied.is_some() && carried(&info.attributes) == self.copied;
        }
        info.size == self.size
            && self.replaces.as_ref() != Some(&info.etag)
            && info.etag.as_str().ends_with(&format!("-{}", self.part_count))
    }
}

/// Where bytes come from.
enum Piece {
    Local(Range<u64>, Vec<Summed>),
    InUpload,
    Base(ObjectVersion, Range<u64>),
    Zeros(Range<u64>),
}

impl DirtyFile {
    /// A file of `size` bytes, those of `base` where it has them; not changed yet.
    ///
    /// # Errors
    /// [`FsError::Io`] if it cannot be staged.
    pub fn new(context: Arc<WriteContext>, key: ObjectKey, base: Option<Base>, size: u64) -> FsResult<Arc<Self>> {
        let staged = context.staging.create(key.as_str())?;
        let replaces = base.as_ref().map(|base| base.version.etag.clone());
        let begin = Begin {
            boot: boot().to_owned(),
            created: now_ms(),
            origin: (*context.origin).clone(),
            key: key.to_string(),
            size,
            base: base.as_ref().map(Into::into),
            replaces: replaces.as_ref().map(|etag| etag.as_str().to_owned()),
            part_len: context.options.part_len,
        };
        let journal = Journal::create(&staged.record_path(), begin).map_err(not_recorded(&key))?;
        staged.note_names();
        let state = State {
            key,
            size,
            local: RangeSet::default(),
            sums: Sums::default(),
            dirty: RangeSet::default(),
            is_changed: false,
            changed_since: None,
            under_way: None,
            replaces,
            base,
            attempt: None,
            found: None,
            may_be_removed: false,
            in_upload: RangeSet::default(),
            times_let_go: 0,
            low_water: size,
            attributes: ObjectAttributes::default(),
            stream: None,
            stays_here: false,
            is_synced: false,
            journal,
        };
        Ok(Arc::new(Self::with_state(context, staged, state)))
    }

    pub(super) fn with_state(context: Arc<WriteContext>, staged: Staged, state: State) -> Self {
        let (progress, persisting) = (Notify::new(), tokio::sync::Mutex::default());
        Self { context, staged, state: Mutex::new(state), progress, persisting, is_damaged: AtomicBool::new(false) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        guard(&self.state)
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.state().size
    }

    /// Whether something is not stored yet.
    pub fn is_dirty(&self) -> bool {
        self.state().is_changed
    }

    /// Since when something is not stored or not acknowledged yet, and how many bytes are.
    pub fn waiting(&self) -> (Option<Instant>, u64) {
        let state = self.state();
        let under_way = state.under_way;
        let since = under_way.map(|upload| upload.since).or(state.changed_since);
        let bytes = state.dirty.len().saturating_add(under_way.map_or(0, |upload| upload.bytes));
        (since, bytes.min(state.size))
    }

    /// What an upload that begins while the file is written shall carry.
    pub fn set_attributes(&self, attributes: ObjectAttributes) {
        self.state().attributes = attributes;
    }

    /// For whoever finds the file after this process died: what the object shall carry, and whether someone chose its
    /// times.
    ///
    /// # Errors
    /// [`FsError::NoSpace`], [`FsError::Io`]: then what was said before holds.
    pub fn describe(&self, attributes: ObjectAttributes, times_set: bool) -> FsResult<()> {
        let mut state = self.state();
        let described = state.journal.describe(Described { attributes: attributes.clone(), times_set });
        described.map_err(not_recorded(&state.key))?;
        // An upload that begins while the file is written carries it, too.
        state.attributes = attributes;
        Ok(())
    }

    /// Something else than an upload gives the object its bytes: what is written from now on is a change of those. Gives whether
    /// something was to be stored before.
    pub fn begin_replacement(&self) -> bool {
        std::mem::take(&mut self.state().is_changed)
    }

    /// It did not.
    pub fn replacement_failed(&self, had_changes: bool) {
        if had_changes {
            self.state().changed();
        }
    }

    /// The object is gone: the file goes up once more, as it is. `false` if it is not all here.
    ///
    /// # Errors
    /// [`FsError::NoSpace`], [`FsError::Io`].
    pub fn store_again(&self) -> FsResult<bool> {
        let mut state = self.state();
        if state.base.is_some() || !state.in_upload.is_empty() {
            return Ok(false);
        }
        let failed = not_recorded(&state.key);
        state.journal.change(None).map_err(failed)?;
        state.changed();
        Ok(true)
    }

    /// The object has what it shall have, its attributes too: whoever finds the file need not look any more.
    pub fn note_stored(&self) {
        let mut state = self.state();
        if !state.is_changed {
            state.stored();
        }
    }

    /// Comes before the object of a file that was stored is moved: whoever finds the file must not look for it where it was.
    ///
    /// # Errors
    /// [`FsError::NoSpace`], [`FsError::Io`].
    pub fn catch_up(&self) -> FsResult<()> {
        let mut state = self.state();
        let recorded = state.journal.catch_up();
        recorded.map_err(not_recorded(&state.key))
    }

    /// The object that the next upload replaces has this tag, though none of its bytes may show.
    pub fn set_replaces(&self, etag: ETag) {
        let mut state = self.state();
        state.found = None;
        if state.replaces.as_ref() != Some(&etag) {
            state.journal.replaces(Some(etag.as_str().to_owned()));
            state.replaces = Some(etag);
        }
    }

    /// Whether it may be gone from the bucket by a removal that was asked for here.
    pub fn may_be_removed(&self) -> bool {
        self.state().may_be_removed
    }

    /// Whether bytes of it may be nowhere but in the object that it was made from.
    pub fn has_base(&self) -> bool {
        self.state().base.is_some()
    }

    /// For whoever takes the mount up after this process died: the inode that the file belongs to.
    pub fn belongs_to(&self, ino: u64) {
        self.state().journal.belongs_to(ino);
    }

    /// The file has no name any more: nobody wants it back if this process dies.
    pub fn note_unlinked(&self) {
        let mut state = self.state();
        state.journal.note_surely(&Event::Unlinked);
        self.stay_here(&mut state);
    }

    /// The object is about to be removed: nobody wants the file back if this process dies and it is gone.
    pub fn note_removing(&self) {
        let mut state = self.state();
        state.may_be_removed = true;
        state.journal.note_surely(&Event::Removing);
    }

    /// What is written from now on goes up with the next commit, if there is one, and not before.
    fn stay_here(&self, state: &mut State) {
        // Bytes that are only there need it.
        if state.in_upload.is_empty() {
            state.stays_here = true;
            if let Some(stream) = state.stream.take() {
                self.abandon(stream);
            }
        }
    }

    /// Whether every changed byte is here: none is only in an upload that has begun.
    pub fn is_whole(&self) -> bool {
        let state = self.state();
        state.stream.is_none() && state.in_upload.is_empty() && state.attempt.is_none()
    }

    /// Whether nobody knows if an upload was completed.
    pub fn is_unclear(&self) -> bool {
        self.state().attempt.is_some()
    }

    /// Whether some bytes are only in an upload that has begun.
    pub fn has_bytes_in_upload(&self) -> bool {
        !self.state().in_upload.is_empty()
    }

    /// Where the next upload puts it.
    pub fn key(&self) -> ObjectKey {
        self.state().key.clone()
    }

    /// The file has another key now.
    pub fn retarget(&self, key: ObjectKey) {
        let mut state = self.state();
        state.found = None;
        state.journal.note(&[Event::Key(key.to_string())]);
        state.key = key;
        if let Some(stream) = state.stream.take() {
            self.abandon(stream);
        }
    }

    /// The same bytes stand under another key or tag now.
    pub fn set_base_version(&self, version: ObjectVersion) {
        let mut state = self.state();
        state.found = None;
        state.replaces = Some(version.etag.clone());
        if let Some(base) = &mut state.base {
            base.limit = base.limit.min(version.size);
            base.version = version;
        }
        note_base(&mut state);
    }

    /// An upload of the file was completed, as was found out later, and made `version`: what it took from its base, or from
    /// parts, is there now. `false` if there is no room for the zeros that may have come since.
    pub(crate) fn stand_on(&self, version: ObjectVersion) -> bool {
        self.stand_on_in(&mut self.state(), version)
    }

    pub(super) fn stand_on_in(&self, state: &mut State, version: ObjectVersion) -> bool {
        let before = state.base.as_ref().map_or(0, |base| base.limit);
        let limit = before.max(state.in_upload.end()).min(version.size);
        if !state.in_upload.is_empty() {
            let mut gaps = RangeSet::default();
            gaps.insert(0..state.size.min(limit));
            let known = state.local.iter().chain(state.in_upload.iter()).chain(std::iter::once(0..before));
            known.for_each(|range| gaps.remove(range));
            // Holes, which the object has, too, or what was punched since, which it has not.
            for gap in gaps.iter().collect::<Vec<_>>() {
                if let Err(error) = self.stage_holes(state, gap) {
                    tracing::warn!(key = %state.key, %error, "an upload that is complete cannot be stood on");
                    return false;
                }
            }
        }
        state.uploaded(u64::MAX);
        // Complete: there is nothing to abort.
        state.stream = None;
        state.replaces = Some(version.etag.clone());
        state.base = (limit > 0).then_some(Base { version, limit });
        note_base(state);
        true
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] if it cannot be staged; [`FsError::Damaged`] if it would stand beside staged bytes that are. Then
    /// nothing changed but, perhaps, bytes of the range that were staged before.
    pub fn write(self: &Arc<Self>, offset: u64, data: &[u8]) -> FsResult<()> {
        if data.is_empty() {
            return Ok(());
        }
        let range = offset..offset + data.len() as u64;
        let mut state = self.state();
        let (here, missing): (Vec<_>, Vec<_>) =
            state.local.split(range.clone()).into_iter().partition(|(_, is_local)| *is_local);
        let new: u64 = missing.iter().map(|(part, _)| part.end - part.start).sum();
        self.staged.reserve(new)?;
        if let Err(error) = self.stage_written(&mut state, &range, data, new > 0) {
            self.staged.give_back(new);
            // Some of it may have replaced what was here: that is what readers see, so it is what is stored.
            for (part, _) in here {
                state.dirty.insert(part.clone());
                state.changed();
                self.on_change(&mut state, &part);
            }
            return Err(error);
        }
        state.local.insert(range.clone());
        state.dirty.insert(range.clone());
        state.changed();
        state.size = state.size.max(range.end);
        self.on_change(&mut state, &range);
        Ok(())
    }

    fn stage_written(&self, state: &mut State, range: &Range<u64>, data: &[u8], is_new: bool) -> FsResult<()> {
        let sums = self.sums_after(state, range, Fill::Bytes(data))?;
        self.void_sums(state, range)?;
        let failed = not_recorded(&state.key);
        let replaces = state.local.intersects(range);
        let told = state.journal.before_write(range, true);
        told.and_then(|()| if replaces { state.journal.before_replacement() } else { Ok(()) }).map_err(failed)?;
        let written = self.staged.write(range.start, data);
        let written = written.and_then(|()| {
            let failed = not_recorded(&state.key);
            state.journal.after_write(range, is_new).map_err(failed)
        });
        self.was_written(state, range, sums, written)
    }

    /// Writes bytes that hide the base, or are the base's; they are no change.
    pub(super) fn stage_unchanged(&self, state: &mut State, range: &Range<u64>, fill: Fill<'_>) -> FsResult<()> {
        let sums = self.sums_after(state, range, fill)?;
        self.void_sums(state, range)?;
        let failed = not_recorded(&state.key);
        state.journal.before_write(range, false).map_err(failed)?;
        state.is_synced = false;
        let written = match fill {
            Fill::Bytes(bytes) => self.staged.write(range.start, bytes),
            Fill::Zeros | Fill::Nothing => self.staged.write_zeros(range),
        };
        let written = written.and_then(|()| {
            let failed = not_recorded(&state.key);
            state.journal.after_fetch(range).map_err(failed)
        });
        self.was_written(state, range, sums, written)
    }

    /// A write is over: what is there has these sums, or, after an error, nobody knows which.
    fn was_written(
        &self,
        state: &mut State,
        range: &Range<u64>,
        sums: Vec<Summed>,
        written: FsResult<()>,
    ) -> FsResult<()> {
        match written {
            Ok(()) => state.sums.replace(range, sums),
            Err(_) => {
                state.sums.forget(range);
                self.undo_growth(state, range);
            }
        }
        written
    }

    /// After a write that failed: what it may have added to the staging file is no part of the file.
    fn undo_growth(&self, state: &mut State, range: &Range<u64>) {
        let len = state.journal.data_len();
        if range.end <= len {
            return;
        }
        let len_now = match self.staged.set_len(len) {
            Ok(()) => len,
            Err(_) => self.staged.file.metadata().map_or(range.end, |meta| meta.len()),
        };
        state.journal.after_failure(len_now);
    }

    /// Cuts the file, or grows it with zeros.
    ///
    /// # Errors
    /// [`FsError::InUpload`] if bytes that stay are only in the upload under way: commit, then try again;
    /// [`FsError::Damaged`] if staged bytes beside the cut are; [`FsError::Io`].
    pub fn truncate(self: &Arc<Self>, size: u64) -> FsResult<()> {
        let mut state = self.state();
        if size < state.size && state.in_upload.intersects(&(0..size)) {
            return Err(FsError::InUpload { what: state.key.to_string() });
        }
        let event = match size.cmp(&state.size) {
            std::cmp::Ordering::Less => Some(Event::Cut(size)),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(Event::Grow(size)),
        };
        let cut = size..u64::MAX;
        let sums = match &event {
            Some(Event::Cut(_)) => self.sums_after(&state, &cut, Fill::Nothing)?,
            _ => Vec::new(),
        };
        let failed = not_recorded(&state.key);
        state.journal.change(event).map_err(failed)?;
        // From here on the record has it, so it is done, also if whoever asked hears of an error.
        let takes_away = size < state.size;
        let synced = if takes_away { state.journal.sync_if_durable() } else { Ok(()) };
        state.changed();
        if takes_away {
            state.sums.replace(&cut, sums);
            state.sums.voided(&cut);
            let freed: u64 = state
                .local
                .split(size..state.size)
                .into_iter()
                .filter(|(_, is_local)| *is_local)
                .map(|(r, _)| r.end - r.start)
                .sum();
            state.local.remove(cut.clone());
            state.in_upload.remove(cut.clone());
            state.dirty.remove(cut);
            if let Some(base) = &mut state.base {
                base.limit = base.limit.min(size);
            }
            // Nothing of it shows: what is written now is a new file, which goes up while it is written.
            state.base.take_if(|base| base.limit == 0);
            state.low_water = state.low_water.min(size);
            match self.staged.set_len(size) {
                Ok(()) => {
                    state.journal.resized(size);
                    self.staged.give_back(freed);
                }
                // It is cut all the same: what is not local does not show.
                Err(error) => tracing::warn!(key = %state.key, %error, "a staging file stays longer than its file"),
            }
            if let Some(stream) = state.stream.take() {
                self.abandon(stream);
            }
        } else if size > state.size {
            // The new bytes are zeros, and no base may show through.
            let grown = state.size..size;
            state.dirty.insert(grown);
        }
        state.size = size;
        synced.map_err(not_recorded(&state.key))
    }

    /// Makes a range zeros; the size stays.
    ///
    /// # Errors
    /// [`FsError::NoSpace`], [`FsError::Damaged`], [`FsError::Io`].
    pub fn punch(self: &Arc<Self>, range: Range<u64>) -> FsResult<()> {
        let zeros = vec![0; usize::try_from((range.end - range.start).min(CHUNK_LEN)).unwrap_or(0)];
        let mut at = range.start;
        // A hole inside the base must hide it, so it is staged as zeros.
        while at < range.end {
            let base_limit = {
                let state = self.state();
                state.base.as_ref().map_or(0, |base| base.limit).max(state.in_upload.end())
            };
            if at >= base_limit {
                let mut state = self.state();
                let rest = at..range.end;
                let sums = self.sums_after(&state, &rest, Fill::Nothing)?;
                let failed = not_recorded(&state.key);
                state.journal.change(Some(Event::Punch(rest.clone()))).map_err(failed)?;
                // As when it is cut: the record has it.
                let mut cleared = state.journal.sync_if_durable().map_err(not_recorded(&state.key));
                state.sums.replace(&rest, sums);
                state.sums.voided(&rest);
                // Old bytes must not come back in place of new ones that a machine which stops loses.
                for (part, is_local) in state.local.split(rest.clone()) {
                    if is_local {
                        cleared = cleared.and_then(|()| self.staged.clear(&part));
                    }
                }
                state.local.remove(rest.clone());
                state.dirty.insert(rest.clone());
                state.changed();
                self.on_change(&mut state, &rest);
                return cleared;
            }
            let len = usize::try_from((range.end - at).min(zeros.len() as u64)).unwrap_or(0);
            self.write(at, &zeros[..len])?;
            at += len as u64;
        }
        Ok(())
    }

    /// Grows the file to `size`.
    ///
    /// # Errors
    /// As [`DirtyFile::truncate`].
    pub fn allocate_to(self: &Arc<Self>, size: u64) -> FsResult<()> {
        if size > self.size() { self.truncate(size) } else { Ok(()) }
    }

    /// Where the bytes of `range` are; and [`State::times_let_go`].
    fn pieces(&self, range: Range<u64>) -> (Vec<Piece>, u64) {
        let state = self.state();
        let mut pieces = Vec::new();
        for (part, is_local) in state.local.split(range) {
            if is_local {
                let sums = state.sums.within(&part);
                pieces.push(Piece::Local(part, sums));
                continue;
            }
            if state.in_upload.intersects(&part) {
                pieces.push(Piece::InUpload);
                continue;
            }
            let (limit, version) = match &state.base {
                Some(base) => (base.limit.clamp(part.start, part.end), Some(&base.version)),
                None => (part.start, None),
            };
            if let Some(version) = version.filter(|_| part.start < limit) {
                pieces.push(Piece::Base(version.clone(), part.start..limit));
            }
            if limit < part.end {
                pieces.push(Piece::Zeros(limit..part.end));
            }
        }
        (pieces, state.times_let_go)
    }

    /// Reads `range`, all of it; behind the end come zeros.
    ///
    /// # Errors
    /// [`FsError::Changed`] if the base object was replaced; [`FsError::InUpload`]: commit, then try again;
    /// [`FsError::Damaged`] if staged bytes differ from what was written; [`FsError::Store`].
    pub async fn read(&self, handle: u64, range: Range<u64>, base: &dyn BaseReader) -> FsResult<Vec<Bytes>> {
        'again: loop {
            let mut chain = Vec::new();
            let (pieces, times_let_go) = self.pieces(range.clone());
            for piece in pieces {
                match piece {
                    Piece::InUpload => return Err(FsError::InUpload { what: self.state().key.to_string() }),
                    Piece::Local(range, sums) => {
                        // Cut by someone else between the look and the read.
                        let Some(bytes) = self.read_staged(&range, &sums)? else { continue 'again };
                        chain.extend(bytes);
                        // A hole that was punched under the read would be taken for zeros.
                        if self.state().times_let_go != times_let_go {
                            continue 'again;
                        }
                    }
                    Piece::Base(version, range) => match base.read_base(handle, &version, range).await {
                        Ok(chunks) => chain.extend(chunks),
                        // Our own upload replaced the base meanwhile.
                        Err(FsError::Changed { .. }) if self.base_version().as_ref() != Some(&version) => {
                            continue 'again;
                        }
                        Err(FsError::Changed { .. }) if self.clear_up_attempt().await?.is_some() => continue 'again,
                        Err(error) => return Err(error),
                    },
                    Piece::Zeros(range) => {
                        let mut left = range.end - range.start;
                        while left > 0 {
                            let len = left.min(ZEROS.len() as u64);
                            chain.push(Bytes::from_static(&ZEROS[..usize::try_from(len).unwrap_or(0)]));
                            left -= len;
                        }
                    }
                }
            }
            return Ok(chain);
        }
    }

    fn base_version(&self) -> Option<ObjectVersion> {
        self.state().base.as_ref().map(|base| base.version.clone())
    }

    /// Fetches what is still only in the base object, so that the object may go.
    ///
    /// # Errors
    /// [`FsError::NoSpace`]; as [`DirtyFile::read`].
    pub async fn materialise(&self, base: &dyn BaseReader) -> FsResult<()> {
        loop {
            let missing = {
                let mut state = self.state();
                let limit = state.base.as_ref().map_or(0, |base| base.limit);
                match state.local.split(0..limit).into_iter().find(|(_, is_local)| !is_local) {
                    Some((range, _)) => range.start..range.end.min(range.start + FETCH_LEN),
                    None => {
                        state.base = None;
                        note_base(&mut state);
                        self.stay_here(&mut state);
                        return Ok(());
                    }
                }
            };
            let chunks = self.read(0, missing.clone(), base).await?;
            self.stage_fetched(missing.start, &chunks)?;
        }
    }

    /// Stages bytes that were read at `at`, where the base still shows through.
    pub(super) fn stage_fetched(&self, mut at: u64, chunks: &[Bytes]) -> FsResult<()> {
        let mut state = self.state();
        for chunk in chunks {
            let end = at + chunk.len() as u64;
            // What was written or cut meanwhile stays as it is.
            let limit = state.base.as_ref().map_or(0, |base| base.limit);
            for (part, is_local) in state.local.split(at..end.min(limit).max(at)) {
                if !is_local {
                    self.staged.reserve(part.end - part.start)?;
                    let slice = |offset: u64| usize::try_from(offset - at).unwrap_or(0);
                    let data = &chunk[slice(part.start)..slice(part.end)];
                    self.stage_unchanged(&mut state, &part, Fill::Bytes(data))?;
                    state.local.insert(part);
                }
            }
            at = end;
        }
        Ok(())
    }

    /// Moves the staged bytes with their record to where the operator finds them.
    ///
    /// # Errors
    /// [`FsError::Io`].
    pub fn keep(&self, key: &str, reason: &str) -> FsResult<PathBuf> {
        self.note_sums();
        let mut state = self.state();
        let failed = not_recorded(&state.key);
        let recorded = state.journal.kept(reason, &self.staged.file).map_err(failed);
        // What is not recorded is kept all the same.
        let path = self.staged.keep(key)?;
        recorded.map(|()| path)
    }
}

/// Records on which object the file stands.
pub(super) fn note_base(state: &mut State) {
    let base = state.base.as_ref().map(Into::into);
    let replaces = state.replaces.as_ref().map(|etag| etag.as_str().to_owned());
    state.journal.note(&[Event::Base(base), Event::Replaces(replaces)]);
}

pub(super) fn not_recorded(key: &ObjectKey) -> impl FnOnce(std::io::Error) -> FsError + use<> {
    let key = key.clone();
    move |source| FsError::Io { what: format!("cannot record what is staged of {key}"), source }
}

pub(super) static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use proptest::prelude::*;
    use sandpail_store::memory::MemoryStore;
    use sandpail_store::{Capabilities, Condition, PutBody, Store, StoreResult, collect};

    use super::*;
    use crate::write::{StagingArea, WriteOptions};

    const PART_LEN: u64 = 1000;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, usize, u8),
        Append(usize, u8),
        Truncate(u64),
        Punch(u64, u64),
        Read(u64, u64),
        Commit,
        Wait,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..12_000u64, 1..3000usize, 1..=255u8).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
            6 => (1..3000usize, 1..=255u8).prop_map(|(len, byte)| Step::Append(len, byte)),
            1 => (0..12_000u64).prop_map(Step::Truncate),
            1 => (0..12_000u64, 1..3000u64).prop_map(|(at, len)| Step::Punch(at, len)),
            3 => (0..12_000u64, 1..4000u64).prop_map(|(at, len)| Step::Read(at, len)),
            1 => Just(Step::Commit),
            3 => Just(Step::Wait),
        ];
        prop::collection::vec(step, 1..30)
    }

    struct FromStore(Arc<dyn Store>);

    #[async_trait]
    impl BaseReader for FromStore {
        async fn read_base(&self, _handle: u64, version: &ObjectVersion, range: Range<u64>) -> FsResult<Vec<Bytes>> {
            let bytes = stored(&*self.0, &version.key, range, Some(&version.etag)).await;
            Ok(vec![bytes.map_err(|source| FsError::Store { what: "read".into(), source })?])
        }
    }

    async fn stored(store: &dyn Store, key: &ObjectKey, range: Range<u64>, etag: Option<&ETag>) -> StoreResult<Bytes> {
        collect(store.get(key, range, etag).await?, 1 << 20).await
    }

    async fn commit(file: &Arc<DirtyFile>, base: &FromStore) {
        file.commit(&ObjectAttributes::default(), &Condition::Always, base).await.unwrap();
    }

    async fn play(steps: Vec<Step>, let_go_above: Option<u64>, on_base: bool) -> Result<(), TestCaseError> {
        let directory = tempfile::tempdir().unwrap();
        // Parts below what S3 takes, so that short files have many.
        let limits = Capabilities { part_len_min: 1, ..Capabilities::default() };
        let store: Arc<dyn Store> = Arc::new(MemoryStore::with_capabilities(limits));
        let staging = StagingArea::open(directory.path(), None).unwrap();
        let options = WriteOptions {
            part_len: PART_LEN,
            max_parallel_parts: 2,
            stream_threshold: 2000,
            let_go_above,
            records_tags: true,
        };
        let runtime = tokio::runtime::Handle::current();
        let context = WriteContext::new(Arc::clone(&store), staging, options, runtime);
        let key = ObjectKey::new("key").unwrap();
        let mut expected: Vec<u8> = Vec::new();
        let mut base = None;
        if on_base {
            expected = (0..7000).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let body = PutBody::from(Bytes::from(expected.clone()));
            let put = store.put(&key, body, &ObjectAttributes::default(), &Condition::Always).await.unwrap();
            base = Some(Base { version: ObjectVersion { key: key.clone(), etag: put.etag, size: 7000 }, limit: 7000 });
        }
        let file = DirtyFile::new(Arc::new(context), key.clone(), base, expected.len() as u64).unwrap();
        let base = FromStore(Arc::clone(&store));
        let index = |at: u64| usize::try_from(at).unwrap();
        for step in steps {
            match step {
                Step::Write(at, len, byte) => {
                    file.write(at, &vec![byte; len]).unwrap();
                    expected.resize(expected.len().max(index(at) + len), 0);
                    expected[index(at)..][..len].fill(byte);
                }
                Step::Append(len, byte) => {
                    file.write(expected.len() as u64, &vec![byte; len]).unwrap();
                    expected.resize(expected.len() + len, byte);
                }
                Step::Truncate(size) => {
                    if let Err(FsError::InUpload { .. }) = file.truncate(size) {
                        commit(&file, &base).await;
                        file.truncate(size).unwrap();
                    }
                    expected.resize(index(size), 0);
                }
                Step::Punch(at, len) => {
                    let end = (at + len).min(expected.len() as u64);
                    if at < end {
                        file.punch(at..end).unwrap();
                        expected[index(at)..index(end)].fill(0);
                    }
                }
                Step::Read(at, len) => {
                    let range = at.min(expected.len() as u64)..(at + len).min(expected.len() as u64);
                    let mut read = file.read(0, range.clone(), &base).await;
                    if let Err(FsError::InUpload { .. }) = read {
                        commit(&file, &base).await;
                        read = file.read(0, range.clone(), &base).await;
                    }
                    prop_assert_eq!(read.unwrap().concat(), &expected[index(range.start)..index(range.end)]);
                }
                Step::Commit => commit(&file, &base).await,
                Step::Wait => {
                    while file.state().stream.as_ref().is_some_and(|stream| stream.is_busy()) {
                        tokio::task::yield_now().await;
                    }
                }
            }
            file.assert_sums();
            prop_assert_eq!(file.size(), expected.len() as u64);
        }
        commit(&file, &base).await;
        prop_assert!(!file.is_dirty());
        prop_assert_eq!(store.head(&key).await.unwrap().size, expected.len() as u64);
        if !expected.is_empty() {
            let object = stored(&*store, &key, 0..expected.len() as u64, None).await.unwrap();
            prop_assert_eq!(object, expected);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_vector(steps in steps(), let_go_above in prop::option::of(0..4000u64), on_base: bool) {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
            runtime.block_on(play(steps, let_go_above, on_base))?;
        }
    }
}
