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

use super::{BLOCK_LEN, CachedVersion};
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

/// Locks the words of the blocks of `range`, if nobody else has.
fn lock(index: &File, range: &Range<u64>) -> Result<(), Errno> {
    let offset = |block: u64| libc::off_t::try_from(block * 8).unwrap_or(libc::off_t::MAX);
    let start = offset(range.start / BLOCK_LEN);
    let mut wanted: libc::flock = libc::flock {
        l_type: 0,
        l_whence: 0,
        l_start: start,
        l_len: offset(range.end.div_ceil(BLOCK_LEN)) - start,
        l_pid: 0,
    };
    wanted.l_type = libc::c_short::try_from(libc::F_WRLCK).map_err(|_| Errno::EINVAL)?;
    wanted.l_whence = libc::c_short::try_from(libc::SEEK_SET).map_err(|_| Errno::EINVAL)?;
    fcntl(index, FcntlArg::F_OFD_SETLK(&wanted)).map(drop)
}

impl CachedVersion {
    /// Waits until nobody else on this host fetches any block of `range`, and keeps others from it. `None` where that cannot be
    /// done: then it is fetched all the same.
    pub(crate) async fn claim(&self, range: &Range<u64>) -> Option<Claim> {
        if guard(&self.impatient_until).is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let index = self.index().ok()?;
        let begun = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            match lock(&index, range) {
                Ok(()) => return Some(Claim { _index: index }),
                Err(Errno::EAGAIN | Errno::EACCES) => {}
                // Some file systems have no locks.
                Err(error) => {
                    tracing::debug!(%error, "the disk cache cannot be locked");
                    return None;
                }
            }
            if begun.elapsed() > PATIENCE {
                *guard(&self.impatient_until) = Some(Instant::now() + IMPATIENT_FOR);
                return None;
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
        let first = one.claim(&blocks(0, 8)).await.unwrap();
        // What stands beside it is free, whoever asks.
        let _beside = other.claim(&blocks(8, 9)).now_or_never().unwrap().unwrap();
        let _own = one.claim(&(100 * BLOCK_LEN..version.size)).now_or_never().unwrap().unwrap();
        let wanted = blocks(7, 8);
        let mut second = Box::pin(other.claim(&wanted));
        assert!((&mut second).now_or_never().is_none());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        let second = second.await.unwrap();
        // Nobody waits for ever.
        let begun = Instant::now();
        assert!(one.claim(&wanted).await.is_none());
        assert!(begun.elapsed() >= PATIENCE);
        drop(second);
        assert!(one.claim(&wanted).now_or_never().unwrap().is_none());
        tokio::time::sleep(IMPATIENT_FOR).await;
        assert!(one.claim(&wanted).await.is_some());
    }
}
