//! What the cache has of one version, for its reader: files that stay open while the version is read, and which blocks were
//! found to be what was fetched.
//!
//! A block is compared with its sum at each read. When every block was compared within an hour, the data file is a whole copy of
//! the object, which the kernel may read by itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rustix::fs::{AtFlags, StatxFlags, Timespec, Timestamps, futimens, statx};

use super::{BLOCK_LEN, DiskCache, crc};
use crate::guard;
use crate::read::ObjectVersion;

/// How often it is noted that a version is in use, so that it is not the next to be removed.
const USE_NOTED_EVERY: Duration = Duration::from_secs(60);
/// How long it is believed, for readers that do not compare, that a disk gives back what it gave.
const COMPARED_FOR: Duration = Duration::from_secs(3600);

/// So few blocks that are here are fetched again with those around them.
const BRIDGED: usize = 4;

/// The cached blocks of one version.
#[derive(Debug)]
pub(crate) struct CachedVersion {
    pub(super) cache: Arc<DiskCache>,
    version: ObjectVersion,
    files: Mutex<Files>,
    /// Somebody compares all blocks.
    is_comparing: AtomicBool,
    /// The store has let this mount have the object.
    is_allowed: AtomicBool,
}

#[derive(Debug, Default)]
struct Files {
    open: Option<Arc<Pair>>,
    /// Which blocks of which file were compared, while nobody reads.
    compared: Option<(Identity, Arc<Compared>)>,
}

/// The two files of a version.
#[derive(Debug)]
struct Pair {
    data: Arc<File>,
    index: File,
    identity: Option<Identity>,
    compared: Arc<Compared>,
}

/// One file for all time: a number may be given again, and not at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: (u32, u32),
    ino: u64,
    born: (i64, u32),
}

/// A bit for each block that was compared.
#[derive(Debug)]
struct Compared {
    since: Instant,
    words: Box<[AtomicU64]>,
    /// How many blocks were not.
    left: AtomicU64,
}

impl Compared {
    fn new(block_count: u64) -> Self {
        let words = (0..block_count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { since: Instant::now(), words, left: AtomicU64::new(block_count) }
    }

    fn word(&self, block: u64) -> Option<&AtomicU64> {
        self.words.get(usize::try_from(block / 64).ok()?)
    }

    fn has(&self, block: u64) -> bool {
        self.word(block).is_some_and(|word| word.load(Ordering::Acquire) >> (block % 64) & 1 == 1)
    }

    fn add(&self, block: u64) {
        let bit = 1 << (block % 64);
        if let Some(word) = self.word(block)
            && word.fetch_or(bit, Ordering::AcqRel) & bit == 0
        {
            self.left.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn is_old(&self) -> bool {
        self.since.elapsed() > COMPARED_FOR
    }

    fn is_all(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }
}

impl Identity {
    /// `None` where the file system does not tell when a file was made.
    fn of(file: &File) -> Option<Self> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let found = statx(file, c"", AtFlags::EMPTY_PATH, wanted).ok()?;
        StatxFlags::from_bits_retain(found.stx_mask).contains(wanted).then_some(Self {
            device: (found.stx_dev_major, found.stx_dev_minor),
            ino: found.stx_ino,
            born: (found.stx_btime.tv_sec, found.stx_btime.tv_nsec),
        })
    }
}

impl CachedVersion {
    pub(crate) fn new(cache: Arc<DiskCache>, version: ObjectVersion) -> Arc<Self> {
        let [is_comparing, is_allowed] = [AtomicBool::new(false), AtomicBool::new(false)];
        Arc::new(Self { cache, version, files: Mutex::default(), is_comparing, is_allowed })
    }

    /// The store has let this mount have the object, or know of it what only its readers may know.
    pub(crate) fn allow(&self) {
        self.is_allowed.store(true, Ordering::Release);
    }

    /// Whether it has. Others, with other keys, may have fetched what is here.
    pub(crate) fn is_allowed(&self) -> bool {
        self.is_allowed.load(Ordering::Acquire)
    }

    fn block_count(&self) -> u64 {
        self.version.size.div_ceil(BLOCK_LEN)
    }

    fn held(&self, block: u64) -> Range<u64> {
        DiskCache::block_range(&self.version, block)
    }

    /// Bytes from the start of `range`, to the end of the block that holds it at most. `None` if they are not here.
    pub(crate) fn get(&self, range: Range<u64>) -> Option<Bytes> {
        let block = range.start / BLOCK_LEN;
        let pair = self.opened()?;
        let held = self.held(block);
        let wanted = range.start..range.end.min(held.end);
        let bytes = self.compare(&pair, block)?;
        let at = |offset: u64| usize::try_from(offset - held.start).unwrap_or(usize::MAX);
        Some(Bytes::from(bytes).slice(at(wanted.start)..at(wanted.end)))
    }

    /// The bytes of a block that have the sum which was noted when they came.
    fn compare(&self, pair: &Pair, block: u64) -> Option<Vec<u8>> {
        let mut word = [0; 8];
        let noted = pair.index.read_exact_at(&mut word, block * 8).map(|()| u64::from_le_bytes(word));
        let Some(expected) = noted.ok().filter(|noted| *noted != 0) else {
            self.close_removed(pair);
            return None;
        };
        let bytes = read(&pair.data, self.held(block)).ok()?;
        if crc(&bytes) != expected {
            tracing::warn!(key = %self.version.key, block, "a cached block is damaged; it is fetched again");
            let index = OpenOptions::new().write(true).open(self.cache.path(&self.version, "index"));
            let _ = index.and_then(|index| index.write_all_at(&[0; 8], block * 8));
            // It may have been whole before.
            *guard(&self.files) = Files::default();
            return None;
        }
        pair.compared.add(block);
        Some(bytes)
    }

    /// The files, if there are any.
    fn opened(&self) -> Option<Arc<Pair>> {
        let mut files = guard(&self.files);
        if let Some(pair) = files.open.as_ref().filter(|pair| !pair.compared.is_old()) {
            return Some(Arc::clone(pair));
        }
        let open = |kind| File::open(self.cache.path(&self.version, kind)).ok();
        // The index is removed last, so it may be that of new data; the sums tell.
        let (data, index) = (open("data")?, open("index")?);
        let identity = Identity::of(&data);
        let compared = match files.compared.take() {
            Some((of, compared)) if Some(of) == identity && !compared.is_old() => compared,
            _ => Arc::new(Compared::new(self.block_count())),
        };
        note_use(&index);
        let pair = Arc::new(Pair { data: Arc::new(data), index, identity, compared });
        files.open = Some(Arc::clone(&pair));
        Some(pair)
    }

    /// Lets go of files that were removed to make room: there may be others.
    fn close_removed(&self, pair: &Pair) {
        let is_removed = |file: &File| rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0);
        if is_removed(&pair.data) || is_removed(&pair.index) {
            *guard(&self.files) = Files::default();
        }
    }

    /// Keeps the whole blocks among `chunks`, which begin at `offset`. Failures only cost a later fetch.
    pub(crate) fn insert(&self, offset: u64, chunks: Vec<Bytes>) {
        self.cache.insert(&self.version, offset, chunks);
    }

    /// Whether a block is here, or seems to be.
    pub(super) fn has(&self, block: u64) -> bool {
        let Some(pair) = self.opened() else { return false };
        let mut word = [0; 8];
        pair.index.read_exact_at(&mut word, block * 8).is_ok() && word != [0; 8]
    }

    /// The index file, opened for itself.
    pub(super) fn index(&self) -> io::Result<File> {
        Ok(self.cache.pair(&self.version)?.1)
    }

    /// How far, from the start of `range`, it is best fetched: to where the next few blocks are here. Fewer than that are not
    /// worth another request.
    pub(crate) fn missing_to(&self, range: &Range<u64>) -> u64 {
        let first = range.start / BLOCK_LEN + 1;
        let Some(pair) = self.opened() else { return range.end };
        let len = range.end.div_ceil(BLOCK_LEN).saturating_sub(first) * 8;
        let mut words = vec![0; usize::try_from(len).unwrap_or(0)];
        // Behind the end of the index nothing is there.
        let read = pair.index.read_at(&mut words, first * 8).unwrap_or(0);
        let is_here: Vec<bool> = words[..read].chunks_exact(8).map(|word| word != [0; 8]).collect();
        let next = is_here.windows(BRIDGED).position(|few| few.iter().all(|is_here| *is_here));
        next.map_or(range.end, |at| (first + at as u64) * BLOCK_LEN)
    }

    /// Closes the files until the next read. Nobody has the object open.
    pub(crate) fn rest(&self) {
        let mut files = guard(&self.files);
        if let Some(pair) = files.open.take() {
            files.compared = pair.identity.map(|identity| (identity, Arc::clone(&pair.compared)));
        }
    }

    /// A file with all bytes of the object, each compared before; `None` if some are missing or not compared yet.
    pub(crate) fn whole(&self) -> Option<Arc<File>> {
        let pair = self.opened()?;
        pair.compared.is_all().then(|| Arc::clone(&pair.data))
    }

    /// How many bytes would have to be compared for [`CachedVersion::whole`]; `None` if some are missing.
    pub(crate) fn uncompared(&self) -> Option<u64> {
        let pair = self.opened()?;
        let block_count = self.block_count();
        let mut words = vec![0; usize::try_from(block_count * 8).ok()?];
        if pair.index.read_exact_at(&mut words, 0).is_err() || words.chunks_exact(8).any(|word| word == [0; 8]) {
            self.close_removed(&pair);
            return None;
        }
        Some(pair.compared.left.load(Ordering::Acquire) * BLOCK_LEN)
    }

    /// Compares what was not compared yet. Blocks until all is read, or something is missing; returns at once if somebody
    /// else is at it.
    pub(crate) fn compare_all(&self) {
        let Some(pair) = self.opened() else { return };
        if self.is_comparing.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut left = (0..self.block_count()).filter(|block| !pair.compared.has(*block));
        left.all(|block| self.compare(&pair, block).is_some());
        self.is_comparing.store(false, Ordering::Release);
    }
}

/// What is used least is removed first. Reads alone do not tell: most file systems note them once a day.
fn note_use(index: &File) {
    let is_noted = |meta: std::fs::Metadata| {
        let noted = meta.modified().and_then(|at| SystemTime::now().duration_since(at).map_err(io::Error::other));
        noted.is_ok_and(|age| age < USE_NOTED_EVERY)
    };
    if !index.metadata().is_ok_and(is_noted) {
        let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        // Somebody else's cache is used without a note.
        let _ = futimens(index, &Timestamps { last_access: now, last_modification: now });
    }
}

fn read(data: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes: Vec<u8> = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = range.start + bytes.len() as u64;
        let room = rustix::buffer::spare_capacity(&mut bytes);
        if rustix::io::pread(data, room, at)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use sandpail_store::{ETag, ObjectKey};

    use super::*;

    const LEN: u64 = 2 * BLOCK_LEN + 1000;

    struct World {
        dir: tempfile::TempDir,
        cached: Arc<CachedVersion>,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), 1 << 30, "store".into()).unwrap();
        let version = ObjectVersion { key: ObjectKey::new("a").unwrap(), etag: ETag::new("tag"), size: LEN };
        World { dir, cached: CachedVersion::new(cache, version) }
    }

    fn bytes() -> Bytes {
        (0..LEN).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<_>>().into()
    }

    fn part(range: Range<u64>) -> Bytes {
        let at = |offset| usize::try_from(offset).unwrap();
        bytes().slice(at(range.start)..at(range.end))
    }

    impl World {
        fn path(&self, kind: &str) -> std::path::PathBuf {
            self.cached.cache.path(&self.cached.version, kind)
        }

        fn flip(&self, at: u64) {
            let data = OpenOptions::new().read(true).write(true).open(self.path("data")).unwrap();
            let mut byte = [0];
            data.read_exact_at(&mut byte, at).unwrap();
            data.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }

        fn remove(&self) {
            for kind in ["data", "index"] {
                std::fs::remove_file(self.path(kind)).unwrap();
            }
        }
    }

    #[test]
    fn a_block_is_compared_before_its_first_use() {
        let world = world();
        world.cached.insert(0, vec![bytes()]);
        world.flip(BLOCK_LEN + 5);
        assert_eq!(world.cached.get(10..20).unwrap(), part(10..20));
        assert_eq!(world.cached.get(10..LEN).unwrap(), part(10..BLOCK_LEN));
        assert_eq!(world.cached.get(BLOCK_LEN..BLOCK_LEN + 1), None);
        // It is fetched again.
        world.cached.insert(BLOCK_LEN, vec![part(BLOCK_LEN..LEN)]);
        assert_eq!(world.cached.get(BLOCK_LEN..LEN).unwrap(), part(BLOCK_LEN..2 * BLOCK_LEN));
        assert_eq!(world.cached.get(LEN - 3..LEN + 7).unwrap(), part(LEN - 3..LEN));
    }

    #[test]
    fn a_whole_copy_is_one_whose_blocks_were_all_compared() {
        let world = world();
        assert!(world.cached.whole().is_none() && world.cached.uncompared().is_none());
        world.cached.insert(0, vec![part(0..2 * BLOCK_LEN)]);
        world.cached.compare_all();
        assert!(world.cached.whole().is_none() && world.cached.uncompared().is_none());
        world.cached.insert(2 * BLOCK_LEN, vec![part(2 * BLOCK_LEN..LEN)]);
        assert_eq!(world.cached.uncompared(), Some(BLOCK_LEN));
        world.cached.compare_all();
        let mut all = vec![0; bytes().len()];
        world.cached.whole().unwrap().read_exact_at(&mut all, 0).unwrap();
        assert_eq!(all, bytes());
        assert_eq!(world.cached.uncompared(), Some(0));

        // What is damaged is no whole copy for another reader.
        world.flip(7);
        let other = CachedVersion::new(Arc::clone(&world.cached.cache), world.cached.version.clone());
        other.compare_all();
        assert!(other.whole().is_none() && other.uncompared().is_none());
    }

    #[test]
    fn what_is_found_damaged_is_no_whole_copy_any_more() {
        let world = world();
        world.cached.insert(0, vec![bytes()]);
        world.cached.compare_all();
        assert!(world.cached.whole().is_some());
        world.flip(BLOCK_LEN + 5);
        assert_eq!(world.cached.get(BLOCK_LEN..BLOCK_LEN + 1), None);
        assert!(world.cached.whole().is_none() && world.cached.uncompared().is_none());
    }

    #[test]
    fn comparing_is_remembered_for_the_same_file_only() {
        let world = world();
        world.cached.insert(0, vec![bytes()]);
        world.cached.compare_all();
        world.cached.rest();
        assert!(world.cached.whole().is_some(), "the file system tells when files were made");
        world.cached.rest();
        world.remove();
        assert!(world.cached.whole().is_none() && world.cached.get(0..1).is_none());
        world.cached.insert(0, vec![bytes()]);
        world.flip(3);
        assert!(world.cached.whole().is_none());
        assert_eq!(world.cached.get(0..1), None);
    }

    #[test]
    fn what_is_missing_ends_where_a_block_is() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), 1 << 30, "store".into()).unwrap();
        let size = 20 * BLOCK_LEN + 5;
        let version = ObjectVersion { key: ObjectKey::new("a").unwrap(), etag: ETag::new("tag"), size };
        let cached = CachedVersion::new(cache, version);
        assert_eq!(cached.missing_to(&(5..size)), size);
        let blocks = |count: u64| vec![Bytes::from(vec![7; usize::try_from(count * BLOCK_LEN).unwrap()])];
        // Too few.
        cached.insert(3 * BLOCK_LEN, blocks(3));
        cached.insert(10 * BLOCK_LEN, blocks(4));
        assert_eq!(cached.missing_to(&(5..size)), 10 * BLOCK_LEN);
        assert_eq!(cached.missing_to(&(5..11 * BLOCK_LEN)), 11 * BLOCK_LEN);
        assert_eq!(cached.missing_to(&(14 * BLOCK_LEN..size)), size);
        assert_eq!(cached.missing_to(&(20 * BLOCK_LEN..size)), size);
    }

    #[test]
    fn removed_files_are_read_while_they_are_open_and_then_let_go() {
        let world = world();
        world.cached.insert(0, vec![part(0..BLOCK_LEN)]);
        assert!(world.cached.get(0..1).is_some());
        world.remove();
        assert_eq!(world.cached.get(5..6).unwrap(), part(5..6));
        assert_eq!(world.cached.get(BLOCK_LEN..BLOCK_LEN + 1), None);
        world.cached.insert(0, vec![bytes()]);
        assert_eq!(world.cached.get(BLOCK_LEN..BLOCK_LEN + 1).unwrap(), part(BLOCK_LEN..BLOCK_LEN + 1));
        assert_eq!(std::fs::read_dir(world.dir.path()).unwrap().count(), 2);
    }
}
