//! Sets of byte ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, non-touching, half-open ranges in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ends: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes in all ranges.
    pub fn len(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }

    /// Where the last range ends; 0 if there is none.
    pub fn end(&self) -> u64 {
        self.ends.last_key_value().map_or(0, |(_, end)| *end)
    }

    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ends.iter().map(|(start, end)| *start..*end)
    }

    /// The first range that ends behind `at`.
    pub fn next_from(&self, at: u64) -> Option<Range<u64>> {
        let holding = self.ends.range(..=at).next_back().filter(|(_, end)| **end > at);
        holding.or_else(|| self.ends.range(at..).next()).map(|(start, end)| *start..*end)
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((found_start, found_end)) = self.ends.range(..=end).next_back().map(|(s, e)| (*s, *e))
            && found_end >= start
        {
            self.ends.remove(&found_start);
            start = start.min(found_start);
            end = end.max(found_end);
        }
        self.ends.insert(start, end);
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((start, end)) = self.ends.range(..range.end).next_back().map(|(s, e)| (*s, *e))
            && end > range.start
        {
            self.ends.remove(&start);
            if end > range.end {
                self.ends.insert(range.end, end);
            }
            if start < range.start {
                self.ends.insert(start, range.start);
            }
        }
    }

    /// Adds all ranges of another set.
    pub fn extend(&mut self, other: &Self) {
        for range in other.iter() {
            self.insert(range);
        }
    }

    /// Whether some byte of `range` is in the set.
    pub fn intersects(&self, range: &Range<u64>) -> bool {
        !range.is_empty() && self.ends.range(..range.end).next_back().is_some_and(|(_, end)| *end > range.start)
    }

    /// Whether every byte of `range` is in the set.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.ends.range(..=range.start).next_back().is_some_and(|(_, end)| *end >= range.end)
    }

    /// Cuts `range` into pieces that are wholly inside or wholly outside of the set, in order.
    pub fn split(&self, range: Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        let first = self.ends.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        for (start, end) in self.ends.range(first..range.end) {
            let (start, end) = ((*start).max(range.start), (*end).min(range.end));
            if start >= end {
                continue;
            }
            if at < start {
                pieces.push((at..start, false));
            }
            pieces.push((start..end, true));
            at = end;
        }
        if at < range.end {
            pieces.push((at..range.end, false));
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_bit_vector(steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..64), 0..40)) {
            let (mut set, mut bits) = (RangeSet::default(), [false; 64]);
            for (add, a, b) in steps {
                let range = a.min(b)..a.max(b);
                if add { set.insert(range.clone()) } else { set.remove(range.clone()) }
                for at in range {
                    bits[usize::try_from(at).unwrap()] = add;
                }
                prop_assert_eq!(set.len(), bits.iter().filter(|bit| **bit).count() as u64);
                let ranges: Vec<_> = set.iter().collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
            for start in 0..64u64 {
                let range = start..(start + 9).min(64);
                let want: Vec<bool> = range.clone().map(|at| bits[usize::try_from(at).unwrap()]).collect();
                prop_assert_eq!(set.covers(&range), want.iter().all(|bit| *bit));
                prop_assert_eq!(set.intersects(&range), want.iter().any(|bit| *bit));
                let next = (start..64).find(|at| bits[usize::try_from(*at).unwrap()]);
                prop_assert_eq!(set.next_from(start).map(|range| range.start.max(start)), next);
                let split: Vec<bool> =
                    set.split(range).into_iter().flat_map(|(piece, inside)| piece.map(move |_| inside)).collect();
                prop_assert_eq!(split, want);
            }
        }
    }
}
