//! Who fetches: mounts of one host that read the same object at the same time fetch each range once.
//!
//! Whoever is about to fetch blocks locks their words in the index file; who comes second waits, and finds them in the
//! cache. The lock is the kernel's, of one open file: it goes with the process that holds it.

use std::fs::File;
use std::ops::Range;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use tokio::time::Instant;

use super::{BLOCK_LEN, CachedVersion, DiskCache};
use crate::guard;

/// Time between two looks, at first and at last.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(16);
/// Somebody who fetches one part for longer is not waited for, nor is anybody else after that for a while.
const PATIENCE: Duration = Duration::from_secs(10);
const IMPATIENT_FOR: Duration = Duration::from_secs(60);

/// Blocks that nobody else on this host fetches, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    _index: File,
}

/// Who fetches.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// Whoever asked, and this much of what was asked for.
    Ours(Range<u64>, Claim),
    /// Somebody else did: it is in the cache.
    IsHere,
    /// It cannot be told: it is fetched all the same.
    Nobodys,
}

/// The words of the blocks of `range`.
fn words(range: &Range<u64>) -> Result<libc::flock, Errno> {
    let offset = |block: u64| libc::off_t::try_from(block * 8).map_err(|_| Errno::EOVERFLOW);
    let start = offset(range.start / BLOCK_LEN)?;
    Ok(libc::flock {
        l_type: libc::c_short::try_from(libc::F_WRLCK).map_err(|_| Errno::EINVAL)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(|_| Errno::EINVAL)?,
        l_start: start,
        l_len: offset(range.end.div_ceil(BLOCK_LEN))? - start,
        l_pid: 0,
    })
}

/// Locks the words of as many blocks from the start of `range` as nobody else has. `None`: somebody has the first one.
fn lock(index: &File, range: &Range<u64>) -> Result<Option<Range<u64>>, Errno> {
    let mut range = range.clone();
    loop {
        let wanted = words(&range)?;
        match fcntl(index, FcntlArg::F_OFD_SETLK(&wanted)) {
            Ok(_) => return Ok(Some(range)),
            Err(Errno::EAGAIN | Errno::EACCES) => {}
            Err(error) => return Err(error),
        }
        let mut found = wanted;
        fcntl(index, FcntlArg::F_OFD_GETLK(&mut found))?;
        if libc::c_int::from(found.l_type) == libc::F_UNLCK {
            continue;
        }
        let end = u64::try_from(found.l_start).unwrap_or(0) / 8 * BLOCK_LEN;
        if end <= range.start {
            return Ok(None);
        }
        range.end = end.min(range.end);
    }
}

impl DiskCache {
    /// For a while nobody else is waited for.
    pub(super) fn be_impatient(&self) {
        *guard(&self.impatient_until) = Some(Instant::now() + IMPATIENT_FOR);
    }

    fn is_impatient(&self) -> bool {
        guard(&self.impatient_until).is_some_and(|until| Instant::now() < until)
    }
}

impl CachedVersion {
    /// Keeps others on this host from fetching `range`, or some of it from its start. Waits as long as somebody else fetches the
    /// first block.
    pub(crate) async fn claim(&self, range: Range<u64>) -> Claimed {
        if self.cache.is_impatient() {
            return Claimed::Nobodys;
        }
        let Ok(index) = self.index() else { return Claimed::Nobodys };
        let begun = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            let locked = lock(&index, &range);
            if self.has(range.start / BLOCK_LEN) {
                return Claimed::IsHere;
            }
            match locked {
                Ok(Some(range)) => return Claimed::Ours(range, Claim { _index: index }),
                Ok(None) => {}
                // Some file systems have no locks.
                Err(error) => {
                    tracing::debug!(%error, "the disk cache cannot be locked");
                    self.cache.be_impatient();
                    return Claimed::Nobodys;
                }
            }
            if begun.elapsed() > PATIENCE {
                self.cache.be_impatient();
                return Claimed::Nobodys;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use sandpail_store::{ETag, ObjectKey};

    use super::super::DiskCache;
    use super::*;
    use crate::read::ObjectVersion;

    #[tokio::test(start_paused = true)]
    async fn a_range_is_claimed_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let version =
            ObjectVersion { key: ObjectKey::new("a").unwrap(), etag: ETag::new("tag"), size: 100 * BLOCK_LEN + 5 };
        let mount = || {
            let cache = DiskCache::open(dir.path(), 1 << 30, "store".into()).unwrap();
            CachedVersion::new(cache, version.clone())
        };
        let (one, other): (Arc<_>, Arc<_>) = (mount(), mount());
        let blocks = |from: u64, to: u64| from * BLOCK_LEN..to * BLOCK_LEN;
        let ours = |claimed| match claimed {
            Claimed::Ours(range, claim) => (range, claim),
            other => panic!("{other:?}"),
        };
        let (_, first) = ours(one.claim(blocks(2, 8)).await);
        // What stands beside it is free, whoever asks.
        let (beside, _beside) = ours(other.claim(blocks(8, 9)).now_or_never().unwrap());
        assert_eq!(beside, blocks(8, 9));
        let (before, _before) = ours(other.claim(blocks(0, 5)).now_or_never().unwrap());
        assert_eq!(before, blocks(0, 2));
        let _own = ours(one.claim(100 * BLOCK_LEN..version.size).now_or_never().unwrap());
        let mut second = Box::pin(other.claim(blocks(7, 8)));
        assert!((&mut second).now_or_never().is_none());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        let (_, second) = ours(second.await);
        // Who waits finds what has come, also before the lock goes.
        let mut third = Box::pin(one.claim(blocks(7, 8)));
        assert!((&mut third).now_or_never().is_none());
        other.insert(7 * BLOCK_LEN, vec![vec![1; usize::try_from(BLOCK_LEN).unwrap()].into()]);
        assert!(matches!(third.await, Claimed::IsHere));
        drop(second);
        // Nobody waits for ever.
        let _held = ours(other.claim(blocks(20, 21)).await);
        let begun = Instant::now();
        assert!(matches!(one.claim(blocks(20, 21)).await, Claimed::Nobodys));
        assert!(begun.elapsed() >= PATIENCE);
        assert!(matches!(one.claim(blocks(30, 31)).now_or_never().unwrap(), Claimed::Nobodys));
        tokio::time::sleep(IMPATIENT_FOR).await;
        ours(one.claim(blocks(30, 31)).await);
    }
}
