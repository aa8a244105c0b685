//! Sums of what is staged: what a disk gives back is compared with them.
//!
//! The staged bytes of a file are cut into pieces, at the ends of ranges that are here and at multiples of [`BLOCK_LEN`].
//! Each piece has its CRC-32C, taken from the bytes that the program (or, for what was fetched, the store) gave, not from
//! what the disk gives back. A piece that is appended to goes on with its sum; one that is changed in the middle is read,
//! compared and summed up again (`super::checked`). No I/O here.
//!
//! The record learns of the sums when the file comes to rest, and that they hold no more before the bytes change. It
//! forgets them by whole blocks, so the length of a block is part of its format.

use std::collections::BTreeMap;
use std::ops::Range;

use crc_fast::{CrcAlgorithm, Digest};

use super::RangeSet;

/// A piece is no longer than this. Short, because who reads one byte of it reads it all.
pub(super) const BLOCK_LEN: u64 = if cfg!(test) { 1 << 10 } else { 64 << 10 };

/// Length of a sum in a record: where it starts, how long it is, the CRC.
const SUM_LEN: usize = 16;

const CRC: CrcAlgorithm = CrcAlgorithm::Crc32Iscsi;

/// The CRC-32C of some bytes.
pub(super) fn sum(bytes: &[u8]) -> u32 {
    low(crc_fast::checksum(CRC, bytes))
}

/// The CRC-32C of the bytes that have the sum `before`, and of `bytes` behind them.
pub(super) fn extended(before: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CRC, u64::from(!before));
    digest.update(bytes);
    low(digest.finalize())
}

fn low(crc: u64) -> u32 {
    // The algorithm makes 32 bits.
    u32::try_from(crc).unwrap_or_default()
}

/// Staged bytes within one block, and their sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Summed {
    pub(super) range: Range<u64>,
    pub(super) crc: u32,
}

impl Summed {
    /// Whether it can be one: what a record says may be anything.
    pub(super) fn is_sane(&self) -> bool {
        let Range { start, end } = self.range;
        start < end && start / BLOCK_LEN == (end - 1) / BLOCK_LEN
    }
}

/// Sums as an entry of a record has them.
pub(super) fn encode(sums: &[Summed]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(sums.len() * SUM_LEN);
    for Summed { range, crc } in sums {
        bytes.extend(range.start.to_le_bytes());
        // Shorter than a block.
        bytes.extend(u32::try_from(range.end - range.start).unwrap_or(0).to_le_bytes());
        bytes.extend(crc.to_le_bytes());
    }
    bytes
}

/// The other way round. `None` if they are not whole.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<Summed>> {
    let (entries, []) = bytes.as_chunks::<SUM_LEN>() else { return None };
    let decode = |entry: &[u8; SUM_LEN]| {
        let start = u64::from_le_bytes(entry[..8].try_into().ok()?);
        let len = u32::from_le_bytes(entry[8..12].try_into().ok()?);
        let crc = u32::from_le_bytes(entry[12..].try_into().ok()?);
        Some(Summed { range: start..start.checked_add(len.into())?, crc })
    };
    entries.iter().map(decode).collect()
}

/// Cuts a range where blocks end.
pub(super) fn by_block(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = *range;
    let mut at = start;
    std::iter::from_fn(move || {
        let from = at;
        at = ((from / BLOCK_LEN + 1) * BLOCK_LEN).min(end);
        (from < end).then_some(from..at)
    })
}

/// All blocks that have bytes of a range.
fn whole_blocks(range: &Range<u64>) -> Range<u64> {
    let start = range.start / BLOCK_LEN * BLOCK_LEN;
    start..range.end.div_ceil(BLOCK_LEN).saturating_mul(BLOCK_LEN)
}

/// The sums of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// By where they start. They do not overlap, and those of one block do not touch.
    pieces: BTreeMap<u64, Piece>,
    /// Bytes in all of them.
    len: u64,
    /// Bytes whose sums stand in the record.
    in_record: RangeSet,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    end: u64,
    crc: u32,
    /// The record has this very sum.
    is_recorded: bool,
}

impl Sums {
    /// What a record says.
    pub(super) fn recorded(pieces: impl IntoIterator<Item = Summed>) -> Self {
        let mut sums = Self::default();
        for piece in pieces {
            sums.in_record.insert(piece.range.clone());
            sums.insert(piece, true);
        }
        sums
    }

    /// Bytes that are summed up.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Where the last of them is.
    pub(super) fn end(&self) -> u64 {
        self.pieces.last_key_value().map_or(0, |(_, piece)| piece.end)
    }

    /// All pieces, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Summed> + '_ {
        self.pieces.iter().map(|(start, piece)| Summed { range: *start..piece.end, crc: piece.crc })
    }

    /// The pieces that have bytes of `range`, in order.
    pub(super) fn within(&self, range: &Range<u64>) -> Vec<Summed> {
        let first = self.holding(range.start).map_or(range.start, |piece| piece.range.start);
        let found = self.pieces.range(first..range.end.max(first));
        found.map(|(start, piece)| Summed { range: *start..piece.end, crc: piece.crc }).collect()
    }

    /// The piece that has the byte at `at`.
    pub(super) fn holding(&self, at: u64) -> Option<Summed> {
        let (start, piece) = self.pieces.range(..=at).next_back()?;
        (piece.end > at).then_some(Summed { range: *start..piece.end, crc: piece.crc })
    }

    fn insert(&mut self, piece: Summed, is_recorded: bool) {
        let Range { start, end } = piece.range;
        self.len += end - start;
        self.pieces.insert(start, Piece { end, crc: piece.crc, is_recorded });
    }

    /// `range` was changed: `pieces` stand in place of those that have bytes of it, or of them.
    pub(super) fn replace(&mut self, range: &Range<u64>, pieces: Vec<Summed>) {
        let start = pieces.first().map_or(range.start, |piece| piece.range.start.min(range.start));
        let end = pieces.last().map_or(range.end, |piece| piece.range.end.max(range.end));
        for old in self.within(&(start..end)) {
            self.pieces.remove(&old.range.start);
            self.len -= old.range.end - old.range.start;
        }
        pieces.into_iter().for_each(|piece| self.insert(piece, false));
    }

    /// Nothing is known of the pieces that have bytes of `range`.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        self.replace(range, Vec::new());
    }

    /// What the record must forget before `range` changes.
    pub(super) fn to_void(&self, range: &Range<u64>) -> Option<Range<u64>> {
        self.in_record.intersects(range).then(|| whole_blocks(range))
    }

    /// The record has forgotten what it said of the blocks of `range`.
    pub(super) fn voided(&mut self, range: &Range<u64>) {
        let blocks = whole_blocks(range);
        if self.in_record.intersects(&blocks) {
            self.in_record.remove(blocks.clone());
            self.pieces.range_mut(blocks).for_each(|(_, piece)| piece.is_recorded = false);
        }
    }

    /// What the record does not say yet; it will.
    pub(super) fn take_unrecorded(&mut self) -> Vec<Summed> {
        let Self { pieces, in_record, .. } = self;
        let mut news = Vec::new();
        for (start, piece) in pieces.iter_mut().filter(|(_, piece)| !piece.is_recorded) {
            piece.is_recorded = true;
            in_record.insert(*start..piece.end);
            news.push(Summed { range: *start..piece.end, crc: piece.crc });
        }
        news
    }
}

/// What a record says of sums, while it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RecordedSums {
    sums: Sums,
    /// Recorded since the file was last brought to the disk.
    fresh: RangeSet,
    /// Bytes that have sums were changed since then.
    pub(super) is_touched: bool,
    /// The log says more, which is not believed. Who goes on with it has to take that back there, too.
    pub(super) is_less: bool,
}

impl RecordedSums {
    /// These pieces have these sums. `None` if they cannot.
    pub(super) fn add(&mut self, pieces: Vec<Summed>) -> Option<()> {
        for piece in pieces {
            if !piece.is_sane() {
                return None;
            }
            let range = piece.range.clone();
            self.sums.replace(&range, vec![piece]);
            self.fresh.insert(range);
        }
        Some(())
    }

    /// The blocks of `range` change.
    pub(super) fn void(&mut self, range: &Range<u64>) {
        self.sums.forget(&whole_blocks(range));
    }

    /// Everything up to here is on the disk.
    pub(super) fn safe(&mut self) {
        self.fresh = RangeSet::default();
        self.is_touched = false;
    }

    /// The machine stopped. What was not on the disk by then may be on it or not, be it bytes or what the record says of
    /// them: only sums of what was brought there together, and was not touched again, are true for sure.
    pub(super) fn machine_stopped(&mut self, was_safe: bool) {
        let before = self.sums.len();
        if self.is_touched || !was_safe {
            self.sums = Sums::default();
        }
        for range in std::mem::take(&mut self.fresh).iter() {
            self.sums.forget(&range);
        }
        self.is_less |= self.sums.len() < before;
    }

    /// Only bytes of `local` are in the file.
    pub(super) fn limit_to(&mut self, local: &RangeSet) {
        let others: Vec<_> = self.iter().filter(|piece| !local.covers(&piece.range)).collect();
        self.is_less |= !others.is_empty();
        others.iter().for_each(|piece| self.sums.forget(&piece.range));
    }

    /// Where the last of them is.
    pub(super) fn end(&self) -> u64 {
        self.sums.end()
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Summed> + '_ {
        self.sums.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_goes_on_where_it_ended() {
        let bytes: Vec<u8> = (0..5000u32).map(|at| u8::try_from(at % 253).unwrap()).collect();
        assert_eq!(sum(b"123456789"), 0xe306_9283);
        for cut in [0, 1, 7, 64, 255, 256, 1024, 4999, 5000] {
            let (before, after) = bytes.split_at(cut);
            assert_eq!(extended(sum(before), after), sum(&bytes), "cut at {cut}");
        }
    }

    #[track_caller]
    fn check_blocks(range: Range<u64>, expected: &[Range<u64>], hull: Range<u64>) {
        assert_eq!(by_block(&range).collect::<Vec<_>>(), expected);
        assert_eq!(whole_blocks(&range), hull);
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)] // lists of ranges
    fn ranges_are_cut_where_blocks_end() {
        check_blocks(0..1, &[0..1], 0..1024);
        check_blocks(1000..1024, &[1000..1024], 0..1024);
        check_blocks(1000..2100, &[1000..1024, 1024..2048, 2048..2100], 0..3072);
        check_blocks(2048..4096, &[2048..3072, 3072..4096], 2048..4096);
        check_blocks(5..5, &[], 0..1024);
        assert_eq!(whole_blocks(&(1500..u64::MAX)), 1024..u64::MAX);
    }

    fn piece(range: Range<u64>, crc: u32) -> Summed {
        Summed { range, crc }
    }

    #[test]
    fn what_stands_in_the_record_is_voided_once_and_by_blocks() {
        let mut sums = Sums::default();
        sums.replace(&(0..3072), vec![piece(0..1024, 1), piece(1024..2048, 2), piece(2048..2500, 3)]);
        assert_eq!(sums.to_void(&(0..9)), None);
        assert_eq!(sums.take_unrecorded().len(), 3);
        assert_eq!(sums.take_unrecorded(), []);
        // Appending takes nothing back.
        assert_eq!(sums.to_void(&(2500..2600)), None);
        sums.replace(&(2500..2600), vec![piece(2048..2600, 4)]);
        assert_eq!(sums.to_void(&(2550..2600)), None);
        assert_eq!(sums.to_void(&(1030..1040)), Some(1024..2048));
        sums.voided(&(1030..1040));
        assert_eq!(sums.to_void(&(1030..1040)), None);
        assert_eq!(sums.take_unrecorded(), [piece(1024..2048, 2), piece(2048..2600, 4)]);
        assert_eq!((sums.len(), sums.end()), (2600, 2600));
    }

    #[test]
    fn after_the_machine_stopped_only_what_was_safe_is_believed() {
        let mut sums = RecordedSums::default();
        sums.add(vec![piece(0..1024, 1), piece(1024..1500, 2)]).unwrap();
        sums.safe();
        sums.add(vec![piece(1024..1600, 3), piece(2048..2100, 4)]).unwrap();
        assert_eq!((sums.iter().count(), sums.is_less), (3, false));
        let mut stopped = sums.clone();
        stopped.machine_stopped(true);
        assert_eq!(stopped.iter().collect::<Vec<_>>(), [piece(0..1024, 1)]);
        assert!(stopped.is_less);
        for (is_touched, was_safe) in [(true, true), (false, false)] {
            let mut stopped = sums.clone();
            stopped.is_touched = is_touched;
            stopped.machine_stopped(was_safe);
            assert_eq!((stopped.iter().count(), stopped.is_less), (0, true));
        }
        let mut local = RangeSet::default();
        local.insert(0..2050);
        sums.limit_to(&local);
        assert_eq!(sums.iter().collect::<Vec<_>>(), [piece(0..1024, 1), piece(1024..1600, 3)]);
        assert_eq!(sums.add(vec![piece(1000..1025, 1)]), None);
        assert_eq!(sums.add(vec![piece(5..5, 1)]), None);
    }
}
