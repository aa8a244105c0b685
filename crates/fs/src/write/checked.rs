//! Staged bytes and their sums: every read is compared, every change keeps the sums true.
//!
//! Who changes a piece in the middle reads what stays of it and compares that first, so damage is found and never summed up
//! as if it were right. Two kinds of bytes are here without a sum: those of a process that was killed before it recorded
//! one, and those where a write failed half-way. They are summed up as they are when the file comes to rest.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::dirty_file::{CHUNK_LEN, State, ZEROS, not_recorded};
use super::sums::{self, BLOCK_LEN, Summed, Sums};
use super::{DirtyFile, RangeSet, Recorded};
use crate::{FsError, FsResult};

// No piece lies across two buffers of a read.
const _: () = assert!(CHUNK_LEN.is_multiple_of(BLOCK_LEN) && ZEROS.len() as u64 >= BLOCK_LEN);

/// Bytes without a sum that are read at once, in bytes.
const REST_LEN: u64 = 4 << 20;

/// What a range of the staging file becomes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fill<'a> {
    Bytes(&'a [u8]),
    Zeros,
    /// It is not here any more.
    Nothing,
}

impl<'a> Fill<'a> {
    /// What a part of `range`, within one block, becomes.
    fn part(self, range: &Range<u64>, part: &Range<u64>) -> &'a [u8] {
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        match self {
            Fill::Bytes(bytes) => &bytes[index(part.start - range.start)..index(part.end - range.start)],
            Fill::Zeros => &ZEROS[..index(part.end - part.start)],
            Fill::Nothing => &[],
        }
    }
}

/// Pieces that were read for a change, with their bytes: of a small one, the same piece is at both ends.
type Read = Option<(Summed, Vec<u8>)>;

impl DirtyFile {
    /// The error of bytes that differ from their sum.
    fn damaged(&self, state: &State, range: Range<u64>) -> FsError {
        let path = self.staged.path().to_owned();
        let key = state.key.to_string();
        if !self.is_damaged.swap(true, Ordering::Relaxed) {
            tracing::error!(key, path = %path.display(), at = range.start, "staged bytes on the local disk are damaged");
        }
        FsError::Damaged { key, path, range }
    }

    /// Reads one piece and compares it.
    fn piece(&self, state: &State, piece: &Summed) -> FsResult<Vec<u8>> {
        let len = usize::try_from(piece.range.end - piece.range.start).unwrap_or(0);
        let mut bytes = vec![0; len];
        match self.staged.read(piece.range.start, &mut bytes) {
            Ok(()) if sums::sum(&bytes) == piece.crc => Ok(bytes),
            Ok(()) => Err(self.damaged(state, piece.range.clone())),
            Err(FsError::Io { source, .. }) if source.kind() == ErrorKind::UnexpectedEof => {
                Err(self.damaged(state, piece.range.clone()))
            }
            Err(error) => Err(error),
        }
    }

    /// The pieces that stand in place of those that `range` touches, once it has become `fill`.
    ///
    /// # Errors
    /// [`FsError::Damaged`] if what stays of a piece is; [`FsError::Io`].
    pub(super) fn sums_after(&self, state: &State, range: &Range<u64>, fill: Fill<'_>) -> FsResult<Vec<Summed>> {
        let mut read: Read = None;
        let before = self.stays_before(state, range.start, &mut read)?;
        let is_gone = matches!(fill, Fill::Nothing);
        let behind = self.stays_behind(state, range.end, is_gone, &mut read)?;
        let mut pieces = Vec::new();
        if is_gone {
            pieces.extend(before);
            pieces.extend(behind.map(|(range, bytes)| Summed { range, crc: sums::sum(&bytes) }));
            return Ok(pieces);
        }
        for part in sums::by_block(range) {
            let bytes = fill.part(range, &part);
            let mut piece = match &before {
                Some(before) if part.start == range.start => {
                    Summed { range: before.range.start..part.end, crc: sums::extended(before.crc, bytes) }
                }
                _ => Summed { range: part.clone(), crc: sums::sum(bytes) },
            };
            if let Some((behind, bytes)) = behind.as_ref().filter(|_| part.end == range.end) {
                piece = Summed { range: piece.range.start..behind.end, crc: sums::extended(piece.crc, bytes) };
            }
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// What stays of the piece that reaches `at`, in its block.
    fn stays_before(&self, state: &State, at: u64, read: &mut Read) -> FsResult<Option<Summed>> {
        if at.is_multiple_of(BLOCK_LEN) {
            return Ok(None);
        }
        let Some(piece) = state.sums.holding(at - 1) else { return Ok(None) };
        // Nothing of it changes.
        if piece.range.end == at {
            return Ok(Some(piece));
        }
        let bytes = self.piece(state, &piece)?;
        let kept = &bytes[..usize::try_from(at - piece.range.start).unwrap_or(0)];
        let kept = Summed { range: piece.range.start..at, crc: sums::sum(kept) };
        *read = Some((piece, bytes));
        Ok(Some(kept))
    }

    /// What stays of the piece that has the byte at `at`, in its block; not if that is all of it and `is_gone`.
    fn stays_behind(
        &self,
        state: &State,
        at: u64,
        is_gone: bool,
        read: &mut Read,
    ) -> FsResult<Option<(Range<u64>, Vec<u8>)>> {
        if at.is_multiple_of(BLOCK_LEN) {
            return Ok(None);
        }
        let Some(piece) = state.sums.holding(at).filter(|piece| !is_gone || piece.range.start < at) else {
            return Ok(None);
        };
        let mut bytes = match read.take() {
            Some((same, bytes)) if same == piece => bytes,
            _ => self.piece(state, &piece)?,
        };
        bytes.drain(..usize::try_from(at - piece.range.start).unwrap_or(0));
        Ok(Some((at..piece.range.end, bytes)))
    }

    /// Makes the record forget the sums of bytes that are about to change.
    pub(super) fn void_sums(&self, state: &mut State, range: &Range<u64>) -> FsResult<()> {
        let Some(blocks) = state.sums.to_void(range) else { return Ok(()) };
        state.journal.void_sums(&blocks).map_err(not_recorded(&state.key))?;
        state.sums.voided(&blocks);
        Ok(())
    }

    /// Reads staged bytes, which had `sums` when they were looked for. `None`: look again.
    ///
    /// # Errors
    /// [`FsError::Damaged`], [`FsError::Io`].
    pub(super) fn read_staged(&self, range: &Range<u64>, sums: &[Summed]) -> FsResult<Option<Vec<Bytes>>> {
        if let Some(bytes) = self.read_compared(range, sums) {
            return Ok(Some(bytes));
        }
        // It may have been written or cut under the read: with the lock nobody does.
        let state = self.state();
        if !state.local.covers(range) {
            return Ok(None);
        }
        let mut chain = Vec::new();
        let mut at = range.start;
        for piece in state.sums.within(range) {
            self.read_plain(at..piece.range.start, &mut chain)?;
            let bytes = Bytes::from(self.piece(&state, &piece)?);
            chain.push(part_of(bytes, &piece.range, range));
            at = piece.range.end;
        }
        self.read_plain(at..range.end, &mut chain)?;
        Ok(Some(chain))
    }

    /// Reads whole pieces and compares them. `None` if something differs or cannot be read.
    fn read_compared(&self, range: &Range<u64>, sums: &[Summed]) -> Option<Vec<Bytes>> {
        let start = sums.first().map_or(range.start, |piece| piece.range.start.min(range.start));
        let end = sums.last().map_or(range.end, |piece| piece.range.end.max(range.end));
        let mut sums = sums.iter().peekable();
        let mut chain = Vec::new();
        let mut at = start;
        while at < end {
            let held = at..((at / CHUNK_LEN + 1) * CHUNK_LEN).min(end);
            let index = |at: u64| usize::try_from(at - held.start).unwrap_or(usize::MAX);
            let mut bytes = self.context.buffers.take(index(held.end));
            self.staged.read(held.start, &mut bytes).ok()?;
            while let Some(piece) = sums.next_if(|piece| piece.range.end <= held.end) {
                if sums::sum(&bytes[index(piece.range.start)..index(piece.range.end)]) != piece.crc {
                    return None;
                }
            }
            chain.push(part_of(bytes.freeze(), &held, range));
            at = held.end;
        }
        Some(chain)
    }

    /// Reads bytes that have no sum.
    fn read_plain(&self, range: Range<u64>, chain: &mut Vec<Bytes>) -> FsResult<()> {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(CHUNK_LEN);
            let mut bytes = self.context.buffers.take(usize::try_from(len).unwrap_or(0));
            self.staged.read(at, &mut bytes)?;
            chain.push(bytes.freeze());
            at += len;
        }
        Ok(())
    }

    /// The file comes to rest: the record learns the sums. What is here without one is summed up as it is.
    pub(crate) fn note_sums(&self) {
        // Of a kept file everything that is known stands in its record, and what differs must stay to be seen.
        if self.staged.is_kept.load(Ordering::Acquire) {
            return;
        }
        let mut after = 0;
        while let Some(next) = self.sum_rest(after) {
            after = next;
        }
        let mut state = self.state();
        let State { journal, sums, .. } = &mut *state;
        journal.note_sums(sums);
    }

    /// Sums up some of the bytes behind `after` that have no sum. Says where to go on; `None` if none is left.
    fn sum_rest(&self, after: u64) -> Option<u64> {
        let mut state = self.state();
        if state.sums.len() == state.local.len() {
            return None;
        }
        let local = state.local.next_from(after)?;
        let start = local.start.max(after);
        let looked_at = start..local.end.min(start.saturating_add(REST_LEN));
        let mut rest = RangeSet::default();
        rest.insert(looked_at.clone());
        state.sums.within(&looked_at).into_iter().for_each(|piece| rest.remove(piece.range));
        for range in rest.iter() {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
            let summed = self.staged.read(range.start, &mut bytes);
            let summed = summed.and_then(|()| self.sums_after(&state, &range, Fill::Bytes(&bytes)));
            match summed {
                Ok(pieces) => state.sums.replace(&range, pieces),
                Err(error) => tracing::warn!(key = %state.key, %error, "some staged bytes have no sum"),
            }
        }
        Some(looked_at.end)
    }

    /// What is staged is taken as it is, whatever the record says.
    pub(crate) fn believe(&self) {
        self.state().sums = Sums::default();
    }

    /// Every staged byte has a sum, which is that of the bytes on the disk.
    #[cfg(test)]
    pub(super) fn assert_sums(&self) {
        let state = self.state();
        let mut cut = Vec::new();
        state.local.iter().for_each(|range| cut.extend(sums::by_block(&range)));
        assert_eq!(state.sums.iter().map(|piece| piece.range).collect::<Vec<_>>(), cut);
        assert_eq!(state.sums.len(), state.local.len());
        state.sums.iter().for_each(|piece| drop(self.piece(&state, &piece).unwrap()));
    }
}

impl Recorded {
    /// The pieces of the staging file `data` that differ from their sums. Reads them all.
    ///
    /// # Errors
    /// If the file cannot be read. One that ends before a piece does is no error but damage.
    pub(crate) fn damaged(&self, data: &File) -> io::Result<RangeSet> {
        let mut damaged = RangeSet::default();
        let mut bytes = Vec::new();
        for piece in self.sums.iter() {
            bytes.resize(usize::try_from(piece.range.end - piece.range.start).unwrap_or(0), 0);
            match data.read_exact_at(&mut bytes, piece.range.start) {
                Ok(()) if sums::sum(&bytes) == piece.crc => {}
                Ok(()) => damaged.insert(piece.range),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => damaged.insert(piece.range),
                Err(error) => return Err(error),
            }
        }
        Ok(damaged)
    }
}

/// The bytes of `range` among those of `held`.
fn part_of(bytes: Bytes, held: &Range<u64>, range: &Range<u64>) -> Bytes {
    let index = |at: u64| usize::try_from(at.clamp(held.start, held.end) - held.start).unwrap_or(usize::MAX);
    bytes.slice(index(range.start)..index(range.end))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sandpail_store::memory::MemoryStore;
    use sandpail_store::{Condition, ObjectAttributes, ObjectKey, Store};

    use super::*;
    use crate::read::ObjectVersion;
    use crate::write::{BaseReader, StagingArea, WriteContext, WriteOptions};

    struct NoBase;

    #[async_trait::async_trait]
    impl BaseReader for NoBase {
        async fn read_base(&self, _handle: u64, version: &ObjectVersion, _: Range<u64>) -> FsResult<Vec<Bytes>> {
            panic!("nothing of {version:?} is needed")
        }
    }

    struct World {
        runtime: tokio::runtime::Runtime,
        store: Arc<dyn Store>,
        file: Arc<DirtyFile>,
        _dir: tempfile::TempDir,
    }

    const LEN: u64 = 5000;

    fn bytes() -> Vec<u8> {
        (0..LEN).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    impl World {
        /// A new file of 5000 bytes, written in pieces, with a hole from 2000 to 3000.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            let options = WriteOptions {
                part_len: 5 << 20,
                max_parallel_parts: 1,
                stream_threshold: u64::MAX,
                let_go_above: None,
                records_tags: false,
            };
            let area = StagingArea::open(dir.path(), None).unwrap();
            let context = WriteContext::new(Arc::clone(&store), area, options, runtime.handle().clone());
            let file = DirtyFile::new(Arc::new(context), ObjectKey::new("dir/key").unwrap(), None, 0).unwrap();
            for (at, end) in [(0, 700), (4000, 5000), (700, 2000), (3000, 3500), (3700, 4000), (3500, 3700)] {
                file.write(at as u64, &bytes()[at..end]).unwrap();
            }
            file.assert_sums();
            Self { runtime, store, file, _dir: dir }
        }

        fn flip(&self, at: u64) {
            let mut byte = [0];
            self.file.staged.file.read_exact_at(&mut byte, at).unwrap();
            self.file.staged.file.write_all_at(&[byte[0] ^ 32], at).unwrap();
        }

        fn read(&self, range: Range<u64>) -> FsResult<Vec<u8>> {
            self.runtime.block_on(self.file.read(0, range, &NoBase)).map(|chunks| chunks.concat())
        }

        #[track_caller]
        fn assert_damaged(&self, result: FsResult<impl std::fmt::Debug>, at: u64) {
            match result {
                Err(FsError::Damaged { key, path, range }) => {
                    assert_eq!((key.as_str(), path.as_path()), ("dir/key", self.file.staged.path()));
                    assert!(range.contains(&at), "{range:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_never_read_nor_stored() {
        for at in [0, 699, 700, 1023, 1024, 1999, 3000, 3600, 4095, 4096, 4999] {
            let world = World::new();
            world.flip(at);
            world.assert_damaged(world.read(at..at + 1), at);
            world.assert_damaged(world.read(0..LEN), at);
            // One byte of its block is not believed either; those of other blocks are.
            let block = at / BLOCK_LEN * BLOCK_LEN;
            for part in sums::by_block(&(0..LEN)).filter(|part| part.start != block) {
                assert!(world.read(part).is_ok());
            }
            let attributes = ObjectAttributes::default();
            let commit = world.file.commit(&attributes, &Condition::Always, &NoBase);
            world.assert_damaged(world.runtime.block_on(commit), at);
            assert!(world.file.is_dirty());
            assert!(world.runtime.block_on(world.store.head(&ObjectKey::new("dir/key").unwrap())).is_err());
            // Written anew as a whole, it is right.
            let end = (block + BLOCK_LEN).min(LEN);
            world.file.write(block, &vec![9; usize::try_from(end - block).unwrap()]).unwrap();
            assert!(world.read(0..LEN).is_ok());
            world.file.assert_sums();
        }
    }

    #[test]
    fn damage_is_not_summed_up_by_a_change_beside_it() {
        type Change = fn(&World) -> FsResult<()>;
        let changes: [(&str, Change); 4] = [
            ("a write before it", |world| world.file.write(1050, b"new")),
            ("a write behind it", |world| world.file.write(1200, &[1; 1000])),
            ("a cut", |world| world.file.truncate(1500)),
            ("a hole", |world| world.file.punch(1300..1800)),
        ];
        for (what, change) in changes {
            let world = World::new();
            world.flip(1100);
            world.assert_damaged(change(&world), 1100);
            world.assert_damaged(world.read(1030..1031), 1100);
            assert_eq!((world.file.size(), world.read(3000..LEN).unwrap()), (LEN, bytes()[3000..].to_vec()), "{what}");
            // What takes the damage away is done.
            world.file.truncate(1024).unwrap();
            assert_eq!(world.read(0..1024).unwrap(), bytes()[..1024]);
            world.file.assert_sums();
        }
    }

    #[test]
    fn a_staging_file_that_was_cut_is_damaged() {
        let world = World::new();
        world.file.staged.file.set_len(4500).unwrap();
        world.assert_damaged(world.read(4100..4101), 4100);
        assert_eq!(world.read(3000..4096).unwrap(), bytes()[3000..4096]);
    }

    #[test]
    fn what_has_no_sum_gets_one_at_rest() {
        let world = World::new();
        world.file.believe();
        assert_eq!(world.read(500..1500).unwrap(), bytes()[500..1500]);
        // Changes beside it do not need one.
        world.file.write(100, &bytes()[100..200]).unwrap();
        world.file.truncate(4800).unwrap();
        world.file.note_sums();
        world.file.assert_sums();
        world.flip(600);
        world.assert_damaged(world.read(600..601), 600);
    }

    #[test]
    fn who_reads_what_is_being_written_sees_no_damage() {
        let world = World::new();
        let len = usize::try_from(BLOCK_LEN).unwrap();
        world.file.write(0, &vec![0; 2 * len]).unwrap();
        std::thread::scope(|scope| {
            let file = &world.file;
            scope.spawn(move || {
                for round in 0..2000usize {
                    let at = (round * 37) % (2 * len - 300);
                    file.write(at as u64, &vec![u8::try_from(round % 256).unwrap(); 300]).unwrap();
                }
            });
            for _ in 0..500 {
                assert_eq!(world.read(100..1900).unwrap().len(), 1800);
            }
        });
        world.file.assert_sums();
    }
}
