//! Ranges of object versions kept on the local disk, shared by the mounts of a host.
//!
//! One version is two files: `<name>.data`, sparse, with the object's bytes at their own offsets, and
//! `<name>.index`, with a word for each block of 128 KiB: zero if it is not there, else its CRC32C with the
//! top bit of 64 set. A block is believed only if its bytes have that CRC. Names are a hash of the store,
//! the key, the tag and the size, so a replaced object is another file, and old ones fall out by age.

mod claim;
mod scrub;
mod version;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

pub(crate) use self::claim::Claimed;
pub use self::scrub::Scrubbed;
pub(crate) use self::version::CachedVersion;
use crate::read::ObjectVersion;

/// What is fetched, whole or not at all: a random read fetches no more.
pub(crate) const BLOCK_LEN: u64 = 128 << 10;
const PRESENT: u64 = 1 << 63;

/// A bounded cache directory.
#[derive(Debug)]
pub struct DiskCache {
    dir: PathBuf,
    limit: u64,
    /// Nobody's server can make its bytes those of another bucket by giving the same tag.
    store: String,
    /// Bytes written since old files were last removed.
    written: AtomicU64,
    was_reported: AtomicBool,
    /// Until then nobody who fetches the same is waited for.
    impatient_until: Mutex<Option<tokio::time::Instant>>,
}

fn crc(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) | PRESENT
}

impl DiskCache {
    /// Opens or makes a cache of at most `limit` bytes for objects of `store`, by which name nobody else's are meant.
    /// Several processes and stores may use one directory.
    ///
    /// # Errors
    /// If the directory cannot be made or read.
    pub fn open(dir: &Path, limit: u64, store: String) -> io::Result<Arc<Self>> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        std::fs::read_dir(dir)?;
        let cache = Arc::new(Self {
            dir: dir.to_owned(),
            limit,
            store,
            written: AtomicU64::new(0),
            was_reported: AtomicBool::new(false),
            impatient_until: Mutex::default(),
        });
        cache.evict()?;
        Ok(cache)
    }

    fn path(&self, version: &ObjectVersion, kind: &str) -> PathBuf {
        // Two different seeds of SipHash make 128 bits; key and tag never share a name by chance.
        let half = |seed: u64| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(seed);
            // Where blocks had another length, sums are those of others.
            hasher.write_u64(BLOCK_LEN);
            hasher.write(self.store.as_bytes());
            hasher.write_u8(0xff);
            hasher.write(version.key.as_str().as_bytes());
            hasher.write_u8(0xff);
            hasher.write(version.etag.as_str().as_bytes());
            hasher.write_u64(version.size);
            hasher.finish()
        };
        self.dir.join(format!("{:016x}{:016x}.{kind}", half(1), half(2)))
    }

    fn block_range(version: &ObjectVersion, block: u64) -> Range<u64> {
        block * BLOCK_LEN..((block + 1) * BLOCK_LEN).min(version.size)
    }

    /// Keeps the whole blocks among `chunks`, which begin at `offset`. Failures only cost a later fetch.
    fn insert(&self, version: &ObjectVersion, offset: u64, chunks: Vec<Bytes>) {
        let len: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let end = offset + len;
        let first = offset.div_ceil(BLOCK_LEN);
        let result = (|| {
            let mut files = None;
            for block in first.. {
                let held = Self::block_range(version, block);
                if held.start >= held.end || held.end > end {
                    break;
                }
                let bytes = crate::read::slice_of(&chunks, held.start - offset..held.end - offset).concat();
                let (data, index) = match &mut files {
                    Some(files) => files,
                    None => files.insert(self.pair(version)?),
                };
                data.write_all_at(&bytes, held.start)?;
                index.write_all_at(&crc(&bytes).to_le_bytes(), block * 8)?;
                self.written.fetch_add(held.end - held.start, Ordering::Relaxed);
            }
            if self.written.load(Ordering::Relaxed) > self.limit / 16 {
                self.written.store(0, Ordering::Relaxed);
                self.evict()?;
            }
            Ok::<_, io::Error>(())
        })();
        if let Err(error) = result {
            // Who waits for somebody else would wait for nothing.
            self.be_impatient();
            if !self.was_reported.swap(true, Ordering::Relaxed) {
                tracing::warn!(dir = %self.dir.display(), %error, "the disk cache takes nothing; reads go on without it");
            }
        }
    }

    fn writable(&self, version: &ObjectVersion, kind: &str) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).open(self.path(version, kind))
    }

    /// The two files of a version, to be written. The index is opened last, and removed last: where it is a new one, the data
    /// that was opened before may have been removed, and the sums would be those of bytes that nobody finds.
    fn pair(&self, version: &ObjectVersion) -> io::Result<(File, File)> {
        loop {
            let (data, index) = (self.writable(version, "data")?, self.writable(version, "index")?);
            if data.metadata()?.nlink() > 0 {
                return Ok((data, index));
            }
        }
    }

    /// Removes the versions used longest ago until the limit holds, with room for what comes before the next look.
    fn evict(&self) -> io::Result<()> {
        let mut versions: HashMap<PathBuf, (i64, u64)> = HashMap::new();
        let mut total = 0;
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_file() && matches!(path.extension().and_then(|e| e.to_str()), Some("data" | "index")) {
                let len = meta.blocks() * 512;
                total += len;
                let (used, held) = versions.entry(path.with_extension("")).or_default();
                (*used, *held) = ((*used).max(meta.mtime()).max(meta.atime()), *held + len);
            }
        }
        let mut oldest: Vec<_> = versions.into_iter().map(|(path, (used, len))| (used, path, len)).collect();
        oldest.sort();
        let goal = self.limit - self.limit / 8;
        for (_, path, len) in oldest {
            if total <= goal {
                break;
            }
            for kind in ["data", "index"] {
                match std::fs::remove_file(path.with_extension(kind)) {
                    // Another process may have been first.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            total -= len;
        }
        Ok(())
    }
}

#[cfg(test)]
impl DiskCache {
    /// What a reader that comes now gets of one block.
    fn get(self: &Arc<Self>, version: &ObjectVersion, range: Range<u64>) -> Option<Bytes> {
        CachedVersion::new(Arc::clone(self), version.clone()).get(range)
    }
}

#[cfg(test)]
mod tests {
    use sandpail_store::{ETag, ObjectKey};

    use super::*;

    // A block is far smaller than any address space.
    #[allow(clippy::cast_possible_truncation)]
    const BLOCK: usize = BLOCK_LEN as usize;
    const LEN: usize = 2 * BLOCK + 1000;

    fn version(key: &str) -> ObjectVersion {
        ObjectVersion { key: ObjectKey::new(key).unwrap(), etag: ETag::new("tag"), size: LEN as u64 }
    }

    fn bytes() -> Bytes {
        (0..LEN).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<_>>().into()
    }

    fn all_of(cache: &Arc<DiskCache>, version: &ObjectVersion) -> Option<Vec<u8>> {
        let mut all: Vec<u8> = Vec::new();
        while (all.len() as u64) < version.size {
            all.extend(cache.get(version, all.len() as u64..version.size)?);
        }
        Some(all)
    }

    fn files(dir: &Path, kind: &str) -> Vec<PathBuf> {
        let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|found| found == kind)).collect()
    }

    #[test]
    fn what_was_put_in_comes_out_of_whole_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), 1 << 30, "store".into()).unwrap();
        let one = version("a");
        assert!(cache.get(&one, 0..10).is_none());
        // The first block is cut, so only the others are kept.
        cache.insert(&one, 5, vec![bytes().slice(5..)]);
        assert!(cache.get(&one, 0..10).is_none());
        let from = BLOCK + 7;
        assert_eq!(cache.get(&one, from as u64..from as u64 + 9).unwrap(), bytes()[from..from + 9]);
        cache.insert(&one, 0, vec![bytes().slice(..70_000), bytes().slice(70_000..)]);
        assert_eq!(all_of(&cache, &one).unwrap(), bytes());
        assert!(cache.get(&ObjectVersion { etag: ETag::new("other"), ..one }, 0..10).is_none());
    }

    #[test]
    fn another_store_sees_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), 1 << 30, "one".into()).unwrap();
        cache.insert(&version("a"), 0, vec![bytes()]);
        let other = DiskCache::open(dir.path(), 1 << 30, "two".into()).unwrap();
        assert!(other.get(&version("a"), 0..10).is_none());
        let again = DiskCache::open(dir.path(), 1 << 30, "one".into()).unwrap();
        assert_eq!(all_of(&again, &version("a")).unwrap(), bytes());
    }

    #[test]
    fn a_flipped_bit_costs_a_block_and_is_never_served() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), 1 << 30, "store".into()).unwrap();
        let one = version("a");
        cache.insert(&one, 0, vec![bytes()]);
        let data = OpenOptions::new().read(true).write(true).open(&files(dir.path(), "data")[0]).unwrap();
        let mut byte = [0];
        data.read_exact_at(&mut byte, BLOCK_LEN + 33).unwrap();
        data.write_all_at(&[byte[0] ^ 4], BLOCK_LEN + 33).unwrap();
        assert!(cache.get(&one, BLOCK_LEN..BLOCK_LEN + 10).is_none());
        assert!(cache.get(&one, 0..10).is_some());
        cache.insert(&one, 0, vec![bytes()]);
        assert_eq!(all_of(&cache, &one).unwrap(), bytes());
        // Files cut short or gone are nothing worse than empty.
        data.set_len(100).unwrap();
        assert!(cache.get(&one, 0..10).is_none());
        std::fs::remove_file(&files(dir.path(), "index")[0]).unwrap();
        assert!(cache.get(&one, 0..10).is_none());
    }

    #[test]
    fn the_limit_holds() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 20 * BLOCK_LEN;
        let cache = DiskCache::open(dir.path(), limit, "store".into()).unwrap();
        for number in 0..30 {
            cache.insert(&version(&format!("key-{number}")), 0, vec![bytes()]);
            let used: u64 = files(dir.path(), "data").iter().map(|path| path.metadata().unwrap().len()).sum();
            assert!(used <= limit + limit / 8, "{used} bytes");
        }
        assert!(files(dir.path(), "data").len() > 4);
    }
}
