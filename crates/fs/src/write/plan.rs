//! How a staged file becomes an object. No I/O.

use std::ops::Range;

use sandpail_store::Capabilities;

use super::RangeSet;
use crate::{FsError, FsResult};

/// Copies run side by side inside the store, which makes long ones faster; shorter than this they only cost requests.
const COPY_LEN_MIN: u64 = 16 << 20;
/// A longer copy takes so long that its answer may be given up.
const COPY_LEN_MAX: u64 = 1 << 30;
/// Into about how many copies a large file is divided: some times as many as run at once.
const COPY_COUNT: u64 = 64;

/// Where a part's bytes come from. Ranges are offsets in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartSource {
    /// Uploaded from here.
    Upload(Range<u64>),
    /// Copied inside the store from the base object, at the same offsets.
    Copy(Range<u64>),
}

impl PartSource {
    /// The bytes of the file that the part holds.
    pub fn range(&self) -> &Range<u64> {
        match self {
            Self::Upload(range) | Self::Copy(range) => range,
        }
    }
}

/// How to upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadPlan {
    /// One PUT.
    Put,
    /// Parts, in order, that cover the whole file.
    Multipart(Vec<PartSource>),
}

/// Decides how to store a file of `size` bytes of which `dirty` were changed; below `base_limit` the rest is as in
/// the base object.
///
/// # Errors
/// [`FsError::TooLarge`] if the provider's parts cannot hold it.
pub fn plan(
    size: u64,
    dirty: &RangeSet,
    base_limit: Option<u64>,
    part_len: u64,
    limits: &Capabilities,
) -> FsResult<UploadPlan> {
    if size <= part_len && size <= limits.put_len_max {
        return Ok(UploadPlan::Put);
    }
    // A base that is shorter than the shortest part cannot be copied as one.
    let base_limit = base_limit.filter(|limit| limits.part_copy && *limit >= limits.part_len_min);
    let base_limit = base_limit.map_or(0, |limit| limit.min(size));
    let has_one_grid = limits.equal_parts || base_limit == 0;
    // Where the base ends one part more may begin, and one at the end.
    let count_max = if has_one_grid { limits.part_count_max } else { limits.part_count_max - 2 };
    let part_len = part_len_for(size, part_len, count_max, limits)?;
    // Around a change as little as possible is uploaded: the grid is the finest that the provider takes.
    let cell_len = if has_one_grid { part_len } else { part_len_for(size, 0, count_max, limits)? };
    let upload_len_max = part_len.next_multiple_of(cell_len);
    let copy_len_max = (base_limit / COPY_COUNT).clamp(COPY_LEN_MIN, COPY_LEN_MAX.min(limits.part_len_max));
    let mut parts: Vec<PartSource> = Vec::new();
    let mut start = 0;
    while start < size {
        let range = start..match start {
            _ if has_one_grid => (start + part_len).min(size),
            // The base ends a cell, so that an append copies all of it.
            _ if start < base_limit && start + cell_len + limits.part_len_min > base_limit => base_limit,
            _ if start < base_limit => start + cell_len,
            _ => (start + part_len).min(size),
        };
        start = range.end;
        let is_upload = range.end > base_limit || dirty.intersects(&range);
        let (last, len_max) = match parts.last_mut() {
            Some(PartSource::Copy(last)) if !is_upload => (last, copy_len_max),
            Some(PartSource::Upload(last)) if is_upload => (last, upload_len_max),
            _ => {
                parts.push(if is_upload { PartSource::Upload(range) } else { PartSource::Copy(range) });
                continue;
            }
        };
        if !limits.equal_parts && range.end - last.start <= len_max {
            last.end = range.end;
        } else {
            parts.push(if is_upload { PartSource::Upload(range) } else { PartSource::Copy(range) });
        }
    }
    Ok(UploadPlan::Multipart(parts))
}

/// The shortest part length, at least `part_len`, that fits the provider's number of parts.
fn part_len_for(size: u64, part_len: u64, count_max: u32, limits: &Capabilities) -> FsResult<u64> {
    const MIB: u64 = 1 << 20;
    let needed = size.div_ceil(u64::from(count_max.max(1))).next_multiple_of(MIB);
    let len = needed.max(part_len).max(limits.part_len_min);
    if len > limits.part_len_max {
        return Err(FsError::TooLarge { what: format!("{size} bytes do not fit the provider's limits for parts") });
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn set(ranges: impl IntoIterator<Item = Range<u64>>) -> RangeSet {
        let mut set = RangeSet::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }

    fn one(range: Range<u64>) -> RangeSet {
        set(std::iter::once(range))
    }

    /// Copies between these places, in MiB.
    fn copies(places: impl IntoIterator<Item = u64>) -> Vec<PartSource> {
        let places: Vec<u64> = places.into_iter().collect();
        places.windows(2).map(|pair| PartSource::Copy(pair[0] * MIB..pair[1] * MIB)).collect()
    }

    #[test]
    fn a_small_change_of_a_large_file_uploads_one_part() {
        let dirty = one(100 * MIB..100 * MIB + 4096);
        let plan = plan(256 * MIB, &dirty, Some(256 * MIB), 8 * MIB, &Capabilities::default()).unwrap();
        let UploadPlan::Multipart(parts) = plan else { panic!() };
        assert_eq!(
            parts,
            [
                copies((0..7).map(|n| n * 15).chain([100])),
                vec![PartSource::Upload(100 * MIB..105 * MIB)],
                copies((7..17).map(|n| n * 15).chain([256])),
            ]
            .concat()
        );
    }

    #[test]
    fn an_append_copies_all_that_was_there() {
        let size = 32 * MIB + 70_000;
        let plan = plan(size + 9, &one(size..size + 9), Some(size), 8 * MIB, &Capabilities::default()).unwrap();
        let mut parts = copies([0, 15, 25]);
        parts.extend([PartSource::Copy(25 * MIB..size), PartSource::Upload(size..size + 9)]);
        assert_eq!(plan, UploadPlan::Multipart(parts));
    }

    #[test]
    fn the_copies_of_a_large_file_are_few() {
        let size = 2 << 40;
        let plan = plan(size + 9, &one(size..size + 9), Some(size), 8 * MIB, &Capabilities::default()).unwrap();
        let UploadPlan::Multipart(parts) = plan else { panic!() };
        assert!(parts.len() < 2600 && parts.iter().all(|part| part.range().end - part.range().start <= 1 << 30));
    }

    #[test]
    fn the_largest_object_fits_and_a_larger_one_is_refused() {
        let limits = Capabilities::default();
        assert!(plan(5 << 40, &one(0..1), None, 8 * MIB, &limits).is_ok());
        let refused = plan(60 << 40, &one(0..1), None, 8 * MIB, &limits);
        assert!(matches!(refused, Err(FsError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn it_covers_the_file_and_uploads_all_that_is_dirty(
            size in 0u64..400 * MIB, limit in 0u64..400 * MIB, changes in prop::collection::vec((0u64..400 * MIB, 1u64..MIB), 0..6),
            part_copy: bool, equal_parts: bool,
        ) {
            let limits = Capabilities { part_copy, equal_parts, part_count_max: 40, ..Capabilities::default() };
            let dirty = set(changes.iter().map(|(start, len)| *start..start + len));
            let base = Some(limit.min(size));
            if let UploadPlan::Multipart(parts) = plan(size, &dirty, base, 5 * MIB, &limits).unwrap() {
                prop_assert!(parts.len() <= 40);
                let mut at = 0;
                for (index, part) in parts.iter().enumerate() {
                    let range = part.range();
                    prop_assert_eq!(range.start, at);
                    at = range.end;
                    let is_last = index + 1 == parts.len();
                    prop_assert!(is_last || range.end - range.start >= limits.part_len_min);
                    if equal_parts && !is_last {
                        prop_assert_eq!(range.end - range.start, parts[0].range().end);
                    }
                    if matches!(part, PartSource::Copy(_)) {
                        prop_assert!(part_copy && !dirty.intersects(range) && range.end <= limit);
                    }
                }
                prop_assert_eq!(at, size);
            } else {
                prop_assert!(size <= 5 * MIB);
            }
        }
    }
}
