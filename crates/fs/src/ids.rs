//! Ids of a range: what a file's owner is called by the kernel.

/// The ids of the kernel behind the ids that files have: `0..len` is `base..base + len` to the kernel, users and groups
/// alike. Whatever is outside becomes [`IdMap::NOBODY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// First id of the kernel's side.
    pub base: u32,
    /// How many.
    pub len: u32,
}

impl IdMap {
    /// Every id stands for itself.
    pub const SAME: Self = Self { base: 0, len: u32::MAX };
    /// Who has no id.
    pub const NOBODY: u32 = 65534;

    /// The kernel's id of a file's.
    pub(crate) fn outer(self, id: u32) -> u32 {
        let inner = if id < self.len { id } else { Self::NOBODY.min(self.len.saturating_sub(1)) };
        self.base.saturating_add(inner)
    }

    /// A file's id for the kernel's.
    pub(crate) fn inner(self, id: u32) -> u32 {
        id.checked_sub(self.base).filter(|inner| *inner < self.len).unwrap_or(Self::NOBODY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_range() {
        let ids = IdMap { base: 100_000, len: 65_536 };
        for (inner, outer) in [(0, 100_000), (1000, 101_000), (65_535, 165_535), (65_534, 165_534)] {
            assert_eq!((ids.outer(inner), ids.inner(outer)), (outer, inner));
        }
        // Another owner's id, from either side.
        assert_eq!(ids.outer(70_000), 165_534);
        for outside in [0, 99_999, 165_536, u32::MAX] {
            assert_eq!(ids.inner(outside), IdMap::NOBODY, "{outside}");
        }
        assert_eq!((IdMap::SAME.outer(1000), IdMap::SAME.inner(1000)), (1000, 1000));
        assert_eq!(IdMap { base: 5, len: 10 }.outer(99), 14);
    }
}
