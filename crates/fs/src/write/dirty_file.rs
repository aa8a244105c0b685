//! A file that is being written.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use sandpail_store::{ObjectAttributes, ObjectKey};
use tokio::sync::Notify;

use super::staging::Staged;
use super::stream::Stream;
use super::{Base, BaseReader, RangeSet, WriteContext};
use crate::read::ObjectVersion;
use crate::{FsError, FsResult};

/// Buffers of local bytes are this long at most.
const CHUNK_LEN: u64 = 1 << 20;
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
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) key: ObjectKey,
    pub(super) size: u64,
    /// Bytes that are valid in staging.
    pub(super) local: RangeSet,
    /// Bytes that changed since the last upload.
    pub(super) dirty: RangeSet,
    /// Something changed since the last upload, if only the size or that the file exists.
    pub(super) is_changed: bool,
    pub(super) base: Option<Base>,
    /// The smallest size since the upload under way began.
    pub(super) low_water: u64,
    pub(super) attributes: ObjectAttributes,
    pub(super) stream: Option<Stream>,
}

/// Where bytes come from.
enum Piece {
    Local(Range<u64>),
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
        let state = State {
            key,
            size,
            local: RangeSet::default(),
            dirty: RangeSet::default(),
            is_changed: false,
            base,
            low_water: size,
            attributes: ObjectAttributes::default(),
            stream: None,
        };
        Ok(Arc::new(Self { context, staged, state: Mutex::new(state), progress: Notify::new() }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.state().size
    }

    /// Whether something is not stored yet.
    pub fn is_dirty(&self) -> bool {
        self.state().is_changed
    }

    /// What an upload that begins while the file is written shall carry.
    pub fn set_attributes(&self, attributes: ObjectAttributes) {
        self.state().attributes = attributes;
    }

    /// The file has another key now.
    pub fn retarget(&self, key: ObjectKey) {
        let mut state = self.state();
        state.key = key;
        if let Some(stream) = state.stream.take() {
            self.abandon(stream);
        }
    }

    /// The same bytes stand under another key or tag now.
    pub fn set_base_version(&self, version: ObjectVersion) {
        let mut state = self.state();
        if let Some(base) = &mut state.base {
            base.limit = base.limit.min(version.size);
            base.version = version;
        }
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] if it cannot be staged; then nothing changed.
    pub fn write(self: &Arc<Self>, offset: u64, data: &[u8]) -> FsResult<()> {
        if data.is_empty() {
            return Ok(());
        }
        let range = offset..offset + data.len() as u64;
        let mut state = self.state();
        let new: u64 = state
            .local
            .split(range.clone())
            .into_iter()
            .filter(|(_, is_local)| !is_local)
            .map(|(r, _)| r.end - r.start)
            .sum();
        self.staged.reserve(new)?;
        if let Err(error) = self.staged.write(offset, data) {
            self.staged.give_back(new);
            return Err(error);
        }
        state.local.insert(range.clone());
        state.dirty.insert(range.clone());
        state.is_changed = true;
        state.size = state.size.max(range.end);
        self.on_change(&mut state, &range);
        Ok(())
    }

    /// Cuts the file, or grows it with zeros.
    ///
    /// # Errors
    /// [`FsError::Io`].
    pub fn truncate(self: &Arc<Self>, size: u64) -> FsResult<()> {
        let mut state = self.state();
        state.is_changed = true;
        if size < state.size {
            let cut = size..u64::MAX;
            let freed: u64 = state
                .local
                .split(size..state.size)
                .into_iter()
                .filter(|(_, is_local)| *is_local)
                .map(|(r, _)| r.end - r.start)
                .sum();
            state.local.remove(cut.clone());
            state.dirty.remove(cut);
            if let Some(base) = &mut state.base {
                base.limit = base.limit.min(size);
            }
            state.low_water = state.low_water.min(size);
            let what = || format!("cannot cut the staging file of {}", state.key);
            self.staged.file.set_len(size).map_err(|source| FsError::Io { what: what(), source })?;
            self.staged.give_back(freed);
            if let Some(stream) = state.stream.take() {
                self.abandon(stream);
            }
        } else if size > state.size {
            // The new bytes are zeros, and no base may show through.
            let grown = state.size..size;
            state.dirty.insert(grown);
        }
        state.size = size;
        Ok(())
    }

    /// Makes a range zeros; the size stays.
    ///
    /// # Errors
    /// [`FsError::NoSpace`], [`FsError::Io`].
    pub fn punch(self: &Arc<Self>, range: Range<u64>) -> FsResult<()> {
        let zeros = vec![0; usize::try_from((range.end - range.start).min(CHUNK_LEN)).unwrap_or(0)];
        let mut at = range.start;
        // A hole inside the base must hide it, so it is staged as zeros.
        while at < range.end {
            let base_limit = self.state().base.as_ref().map_or(0, |base| base.limit);
            if at >= base_limit {
                let mut state = self.state();
                let rest = at..range.end;
                state.local.remove(rest.clone());
                state.dirty.insert(rest.clone());
                state.is_changed = true;
                self.on_change(&mut state, &rest);
                return Ok(());
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

    fn pieces(&self, range: Range<u64>) -> Vec<Piece> {
        let state = self.state();
        let mut pieces = Vec::new();
        for (part, is_local) in state.local.split(range) {
            if is_local {
                pieces.push(Piece::Local(part));
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
        pieces
    }

    /// Reads `range`, all of it; behind the end come zeros.
    ///
    /// # Errors
    /// [`FsError::Changed`] if the base object was replaced; [`FsError::Store`].
    pub async fn read(&self, handle: u64, range: Range<u64>, base: &dyn BaseReader) -> FsResult<Vec<Bytes>> {
        'again: loop {
            let mut chain = Vec::new();
            for piece in self.pieces(range.clone()) {
                match piece {
                    Piece::Local(range) => {
                        let mut at = range.start;
                        while at < range.end {
                            let len = (range.end - at).min(CHUNK_LEN);
                            let mut bytes = BytesMut::zeroed(usize::try_from(len).unwrap_or(0));
                            match self.staged.read(at, &mut bytes) {
                                Ok(()) => {}
                                // Cut by someone else between the look and the read.
                                Err(_) if self.size() < range.end => continue 'again,
                                Err(error) => return Err(error),
                            }
                            chain.push(bytes.freeze());
                            at += len;
                        }
                    }
                    Piece::Base(version, range) => match base.read_base(handle, &version, range).await {
                        Ok(chunks) => chain.extend(chunks),
                        // Our own upload replaced the base meanwhile.
                        Err(FsError::Changed { .. }) if self.base_version().as_ref() != Some(&version) => {
                            continue 'again;
                        }
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
                        return Ok(());
                    }
                }
            };
            let chunks = self.read(0, missing.clone(), base).await?;
            let mut state = self.state();
            let mut at = missing.start;
            for chunk in chunks {
                let end = at + chunk.len() as u64;
                // What was written or cut meanwhile stays as it is.
                let limit = state.base.as_ref().map_or(0, |base| base.limit);
                for (part, is_local) in state.local.split(at..end.min(limit).max(at)) {
                    if !is_local {
                        self.staged.reserve(part.end - part.start)?;
                        let slice = |offset: u64| usize::try_from(offset - at).unwrap_or(0);
                        self.staged.write(part.start, &chunk[slice(part.start)..slice(part.end)])?;
                        state.local.insert(part);
                    }
                }
                at = end;
            }
        }
    }

    /// Moves the staged bytes to where the operator finds them; what they lack is said in a note beside them.
    ///
    /// # Errors
    /// [`FsError::Io`].
    pub fn keep(&self, key: &str, reason: &str) -> FsResult<PathBuf> {
        let state = self.state();
        let missing: Vec<_> = state
            .local
            .split(0..state.size)
            .into_iter()
            .filter(|(_, is_local)| !is_local)
            .map(|(range, _)| serde_json::json!([range.start, range.end]))
            .collect();
        let base = state.base.as_ref().map(|base| {
            serde_json::json!({
                "key": base.version.key.as_str(), "etag": base.version.etag.as_str(), "limit": base.limit,
            })
        });
        let note = serde_json::json!({
            "key": key, "size": state.size, "reason": reason, "not_here": missing, "not_here_is_of": base,
        });
        self.staged.keep(key, &note)
    }
}

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
