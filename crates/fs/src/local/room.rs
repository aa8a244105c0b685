//! Local files may fill the disk only so far: what waits to be stored, also that of others, needs some of it.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::fstatvfs;

use super::failed;
use crate::{FsError, FsResult};

/// This part of the disk, or this many bytes, stays free.
const FREE_PART: u64 = 20;
const FREE_MAX: u64 = 1 << 30;
/// After so many bytes the disk is looked at again, at the latest.
const LOOK_AFTER_MAX: u64 = 64 << 20;
/// What a name takes on the disk besides its bytes, roughly.
pub(super) const NAME_COST: u64 = 4096;

/// What may be written until the disk is looked at again.
#[derive(Debug, Default)]
pub(super) struct Room {
    left: AtomicU64,
}

impl Room {
    /// Takes `len` bytes of the disk that `dir` is on.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] if the disk is that full.
    pub(super) fn take(&self, dir: impl AsFd, len: u64) -> FsResult<()> {
        let taken = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(len));
        if taken.is_ok() {
            return Ok(());
        }
        let disk = fstatvfs(dir).map_err(failed("cannot look at the local disk"))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let all = disk.f_blocks.saturating_mul(disk.f_frsize);
        let left = allowance(free, all, len).ok_or_else(|| FsError::NoSpace {
            what: format!("local files leave {free} bytes of the disk of the staging directory free"),
        })?;
        self.left.store(left, Ordering::Release);
        Ok(())
    }
}

/// How many bytes may be written after `len` more before the disk is looked at again; `None`: not even those.
fn allowance(free: u64, all: u64, len: u64) -> Option<u64> {
    let kept = (all / FREE_PART).min(FREE_MAX);
    let left = free.checked_sub(kept)?.checked_sub(len)?;
    // Others write, too.
    Some((left / 16).min(LOOK_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_of_the_disk_stays_free() {
        const GIB: u64 = 1 << 30;
        assert_eq!(allowance(100 * GIB, 200 * GIB, 1), Some(LOOK_AFTER_MAX));
        assert_eq!(allowance(GIB + 10, 200 * GIB, 10), Some(0));
        assert_eq!(allowance(GIB + 10, 200 * GIB, 11), None);
        assert_eq!(allowance(10, 100, 5), Some(0));
        assert_eq!(allowance(10, 100, 6), None);
        assert_eq!(allowance(4, 100, 0), None);
    }
}
