//! The reads of one object version, by all handles of an inode.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use sandpail_store::ObjectInfo;

use super::part::{Part, ask_leave};
use super::{Ahead, ObjectVersion, ReadAhead, ReadContext};
use crate::cache::{BLOCK_LEN, CachedVersion};
use crate::{FsResult, guard};

const MIB: u64 = 1 << 20;
/// One GET of a long stream.
const PART_LEN: u64 = 8 * MIB;
/// The first GETs of a stream are smaller: they are waited for.
const FIRST_PART_LEN: u64 = MIB;
/// What is less below a read than this belongs to it: whole blocks are fetched.
const PART_LEN_MIN: u64 = MIB / 2;
/// What was read stays this long behind a stream: the kernel asks for some of it again.
const TAIL_LEN: u64 = 2 * MIB;
/// Short parts that no stream needs are kept up to this number, for random readers that come back.
const IDLE_PART_COUNT: usize = 8;
/// So much of a file may be compared while somebody waits for it to be opened: some milliseconds.
const COMPARED_AT_OPEN: u64 = 16 * MIB;

/// Reads one version of one object.
#[derive(Debug)]
pub struct Reader {
    context: Arc<ReadContext>,
    version: ObjectVersion,
    cached: Option<Arc<CachedVersion>>,
    state: Mutex<State>,
    was_ahead: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    ahead: ReadAhead,
    /// By start; they may touch but do not overlap.
    parts: BTreeMap<u64, Arc<Part>>,
}

impl Reader {
    /// A reader of `version`.
    pub fn new(context: Arc<ReadContext>, version: ObjectVersion) -> Arc<Self> {
        Self::made(context, version, false)
    }

    /// The same, for a small object that nobody has opened yet.
    pub fn ahead(context: Arc<ReadContext>, version: ObjectVersion) -> Arc<Self> {
        Self::made(context, version, true)
    }

    fn made(context: Arc<ReadContext>, version: ObjectVersion, is_ahead: bool) -> Arc<Self> {
        let cached = context.cache.as_ref().map(|cache| CachedVersion::new(Arc::clone(cache), version.clone()));
        Arc::new(Self { context, version, cached, state: Mutex::default(), was_ahead: is_ahead.into() })
    }

    /// Whether it was made before anybody had opened the object; says so once.
    pub fn was_ahead(&self) -> bool {
        self.was_ahead.swap(false, Ordering::Relaxed)
    }

    /// Whether there is memory for the whole object, so that it can be fetched before anybody wants it.
    pub fn has_room(&self) -> bool {
        self.context.memory.try_acquire(self.version.size).is_some()
    }

    /// Fetches a small object as a whole, if that has not begun, and waits for it. Returns what the store said of it, if it was
    /// asked: not if the disk cache has the bytes.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub async fn fetch_whole(&self) -> FsResult<Option<ObjectInfo>> {
        let first = {
            let mut state = self.state();
            let whole = 0..self.version.size;
            self.begin(&mut state, whole.clone(), &whole);
            state.parts.get(&0).map(Arc::clone)
        };
        let Some(first) = first else { return Ok(None) };
        first.read(first.range.clone(), &self.version).await?;
        Ok(first.info().cloned())
    }

    /// The store has let this mount have the object: the disk cache may give it, too.
    pub fn allow(&self) {
        if let Some(cached) = &self.cached {
            cached.allow();
        }
    }

    /// Whether something could not be fetched.
    pub fn has_failed(&self) -> bool {
        self.state().parts.values().any(|part| part.has_failed())
    }

    /// What it reads.
    pub fn version(&self) -> &ObjectVersion {
        &self.version
    }

    fn state(&self) -> MutexGuard<'_, State> {
        guard(&self.state)
    }

    /// Reads `range` (byte offsets, half-open), cut at the object's end, as a chain of buffers.
    ///
    /// # Errors
    /// [`crate::FsError::Changed`] if the object is another version now; [`crate::FsError::Store`].
    pub async fn read(&self, handle: u64, range: Range<u64>) -> FsResult<Vec<Bytes>> {
        let range = range.start..range.end.min(self.version.size);
        let mut chain = Vec::new();
        let mut at = range.start;
        let mut retried = false;
        while at < range.end {
            if let Some(cached) = self.cached(at..range.end) {
                at += cached.len() as u64;
                chain.push(cached);
                continue;
            }
            let part = self.part_at(handle, at, range.clone());
            let end = part.range.end.min(range.end);
            match part.read(at..end, &self.version).await {
                Ok(chunks) => {
                    chain.extend(chunks);
                    at = end;
                }
                Err(error) => {
                    self.drop_failed();
                    // What failed while it was read ahead is asked for once more, now that it is wanted.
                    if retried || matches!(error, crate::FsError::Changed { .. }) {
                        return Err(error);
                    }
                    retried = true;
                }
            }
        }
        Ok(chain)
    }

    fn cached(&self, range: Range<u64>) -> Option<Bytes> {
        let cached = self.cached.as_ref().filter(|cached| cached.is_allowed())?;
        let has_part =
            self.state().parts.range(..=range.start).next_back().is_some_and(|(_, p)| p.range.end > range.start);
        if has_part { None } else { cached.get(range) }
    }

    /// The part that holds offset `at`; begins it, and what should be read ahead, if need be.
    fn part_at(&self, handle: u64, at: u64, wanted: Range<u64>) -> Arc<Part> {
        let mut state = self.state();
        let Ahead { window, jumps } = state.ahead.on_read(handle, wanted.clone(), self.version.size);
        let (below, start) = match wanted.start.checked_sub(window.start) {
            Some(below) if below > PART_LEN_MIN => (window.start..wanted.start, wanted.start),
            _ => (0..0, window.start),
        };
        self.begin(&mut state, start.min(at)..window.end.max(wanted.end), &wanted);
        self.begin_below(&mut state, below);
        for jump in jumps {
            self.begin_jump(&mut state, jump);
        }
        self.drop_idle(&mut state, &wanted);
        let found = state.parts.range(..=at).next_back().map(|(_, part)| Arc::clone(part));
        match found {
            Some(part) if part.range.end > at => part,
            // Only if `begin` left a gap, which it does for lack of memory behind `wanted` alone.
            _ => {
                let next = state.parts.range(at..).next().map_or(u64::MAX, |(start, _)| *start);
                self.begin_demand(&mut state, at..self.block_end(wanted.end).min(next))
            }
        }
    }

    /// Begins parts so that `window` is covered, as far as memory allows; `wanted` in any case. Parts are whole blocks of the
    /// cache, which keeps nothing else.
    fn begin(&self, state: &mut State, window: Range<u64>, wanted: &Range<u64>) {
        let mut at = window.start / BLOCK_LEN * BLOCK_LEN;
        let window_end = self.block_end(window.end);
        while at < window_end {
            if let Some((_, part)) = state.parts.range(..=at).next_back()
                && part.range.end > at
            {
                at = part.range.end;
                continue;
            }
            let next = state.parts.range(at..).next().map_or(u64::MAX, |(start, _)| *start);
            let is_wanted = at < wanted.end;
            let len = if is_wanted { FIRST_PART_LEN.max(wanted.end - at) } else { PART_LEN };
            let mut end = self.block_end(at.saturating_add(len)).min(next);
            // Half a part of the window that is not asked for yet is worth a GET, of a whole part: less grows into that soon.
            if !is_wanted && end > window_end && window_end < self.version.size && window_end - at < PART_LEN / 2 {
                return;
            }
            if is_wanted {
                end = end.min(window_end);
            }
            match self.context.memory.try_acquire(end - at) {
                Some(memory) => {
                    state
                        .parts
                        .insert(at, Part::fetch(&self.context, &self.version, self.cached.as_ref(), at..end, memory));
                    at = end;
                }
                // Less than what is missing is better than nothing.
                None if !is_wanted && end - at > PART_LEN / 2 => {
                    let end = self.block_end(at + PART_LEN / 2);
                    let Some(memory) = self.context.memory.try_acquire(end - at) else { return };
                    let part = Part::fetch(&self.context, &self.version, self.cached.as_ref(), at..end, memory);
                    state.parts.insert(at, part);
                    at = end;
                }
                None if is_wanted => at = self.begin_demand(state, at..self.block_end(wanted.end).min(next)).range.end,
                None => return,
            }
        }
    }

    /// Begins parts of a range that is read backwards, from its end, as far as memory allows.
    fn begin_below(&self, state: &mut State, range: Range<u64>) {
        let range = range.start / BLOCK_LEN * BLOCK_LEN..range.end;
        let mut to = range.end;
        while to > range.start {
            let before = state.parts.range(..to).next_back().map(|(_, part)| part.range.clone());
            if let Some(part) = before.as_ref().filter(|part| part.end >= to) {
                to = part.start;
                continue;
            }
            let start = (to.saturating_sub(PART_LEN) / BLOCK_LEN * BLOCK_LEN)
                .max(range.start)
                .max(before.map_or(0, |part| part.end));
            // As with the end of a window that goes forward.
            if start == range.start && start > 0 && to < range.end && to - start < PART_LEN / 2 {
                return;
            }
            let Some(memory) = self.context.memory.try_acquire(to - start) else { return };
            let part = Part::fetch(&self.context, &self.version, self.cached.as_ref(), start..to, memory);
            state.parts.insert(start, part);
            to = start;
        }
    }

    /// Begins what is expected to be read elsewhere, unless some of it is there or memory is short.
    fn begin_jump(&self, state: &mut State, range: Range<u64>) {
        let before = state.parts.range(..range.end).next_back();
        let is_there = before.is_some_and(|(_, part)| part.range.end > range.start);
        if !is_there && let Some(memory) = self.context.memory.try_acquire(range.end - range.start) {
            let part = Part::fetch(&self.context, &self.version, self.cached.as_ref(), range.clone(), memory);
            state.parts.insert(range.start, part);
        }
    }

    /// Where the block that `offset` stands in, or at the end of, ends; or the object.
    fn block_end(&self, offset: u64) -> u64 {
        offset.checked_next_multiple_of(BLOCK_LEN).map_or(self.version.size, |end| end.min(self.version.size))
    }

    fn begin_demand(&self, state: &mut State, range: Range<u64>) -> Arc<Part> {
        let memory = self.context.memory.acquire_for_demand(range.end - range.start);
        let part = Part::fetch(&self.context, &self.version, self.cached.as_ref(), range.clone(), memory);
        state.parts.insert(range.start, Arc::clone(&part));
        part
    }

    fn drop_idle(&self, state: &mut State, wanted: &Range<u64>) {
        let is_needed = |part: &Part, ahead: &ReadAhead| {
            (part.range.start < wanted.end && part.range.end > wanted.start) || ahead.needs(&part.range, TAIL_LEN)
        };
        let State { ahead, parts } = state;
        parts.retain(|_, part| part.range.end - part.range.start <= FIRST_PART_LEN || is_needed(part, ahead));
        let idle: Vec<u64> =
            state.parts.iter().filter(|(_, part)| !is_needed(part, &state.ahead)).map(|(start, _)| *start).collect();
        let excess = idle.len().saturating_sub(IDLE_PART_COUNT);
        for start in idle.into_iter().take(excess) {
            state.parts.remove(&start);
        }
    }

    fn drop_failed(&self) {
        self.state().parts.retain(|_, part| !part.has_failed());
    }

    /// A handle was closed: what was read ahead for it alone is dropped.
    pub fn forget_handle(&self, handle: u64) {
        let mut state = self.state();
        state.ahead.forget(handle);
        let State { ahead, parts } = &mut *state;
        parts.retain(|_, part| ahead.needs(&part.range, TAIL_LEN));
    }

    /// Nobody has the object open.
    pub fn rest(&self) {
        if let Some(cached) = &self.cached {
            cached.rest();
        }
    }

    /// A local file with all bytes of the version, each compared with what was fetched, if there is one. Where that takes
    /// long, it goes on in the background, for whoever opens the file next.
    pub async fn whole_copy(self: &Arc<Self>) -> Option<Arc<File>> {
        let cached = self.cached.as_ref().filter(|_| self.version.size > 0)?;
        // Whoever may not have it hears so when he reads.
        let is_allowed = || ask_leave(&self.context, &self.version, cached);
        if let Some(whole) = cached.whole() {
            is_allowed().await.ok()?;
            return Some(whole);
        }
        let left = cached.uncompared()?;
        is_allowed().await.ok()?;
        let comparing = {
            let cached = Arc::clone(cached);
            self.context.runtime.spawn_blocking(move || cached.compare_all())
        };
        if left > COMPARED_AT_OPEN {
            return None;
        }
        comparing.await.ok()?;
        cached.whole()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sandpail_store::memory::MemoryStore;
    use sandpail_store::{Condition, ETag, ObjectAttributes, ObjectKey, Store};
    use sandpail_testkit::faults::Counted;

    use super::*;
    use crate::cache::DiskCache;
    use crate::read::MemoryBudget;

    const LEN: u64 = 20 * MIB + 12_345;
    const READ_LEN: u64 = 128 << 10;

    struct World {
        store: Arc<dyn Store>,
        counted: Arc<Counted>,
        bytes: Bytes,
        version: ObjectVersion,
        dir: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            let bytes: Bytes = (0..LEN).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<_>>().into();
            let bucket = MemoryStore::new();
            let key = ObjectKey::new("a").unwrap();
            let none = ObjectAttributes::default();
            let put = bucket.put(&key, bytes.clone().into(), &none, &Condition::Always).await.unwrap();
            let (store, counted) = Counted::new(Arc::new(bucket));
            counted.take();
            let version = ObjectVersion { key, etag: put.etag, size: LEN };
            Self { store, counted, bytes, version, dir: tempfile::tempdir().unwrap() }
        }

        /// What a mount has.
        fn reader(&self, cache: &Path, version: ObjectVersion) -> Arc<Reader> {
            let cache = DiskCache::open(cache, 1 << 30, "store".into()).unwrap();
            let memory = MemoryBudget::new(64 * MIB);
            let runtime = tokio::runtime::Handle::current();
            Reader::new(Arc::new(ReadContext::new(Arc::clone(&self.store), memory, Some(cache), runtime)), version)
        }

        async fn read_all(&self, reader: &Reader) {
            let mut at = 0;
            while at < LEN {
                let to = (at + READ_LEN).min(LEN);
                let read = reader.read(1, at..to).await.unwrap().concat();
                let index = |offset| usize::try_from(offset).unwrap();
                assert_eq!(read, self.bytes[index(at)..index(to)], "at {at}");
                at = to;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn mounts_that_read_one_object_at_once_fetch_it_once() {
        let world = World::new().await;
        let readers: Vec<_> = (0..20).map(|_| world.reader(world.dir.path(), world.version.clone())).collect();
        futures_util::future::join_all(readers.iter().map(|reader| world.read_all(reader))).await;
        let counts = world.counted.take();
        // A few blocks that are there are fetched again with what stands around them.
        assert!(counts.downloaded < LEN + LEN / 10, "{counts:?}");
        assert_eq!(std::fs::read_dir(world.dir.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn a_long_stream_is_fetched_in_whole_parts() {
        let (store, counted) = Counted::new(Arc::new(MemoryStore::new()));
        let key = ObjectKey::new("long").unwrap();
        let len = 80 * MIB;
        let bytes = Bytes::from(vec![7; usize::try_from(len).unwrap()]);
        let put = store.put(&key, bytes.into(), &ObjectAttributes::default(), &Condition::Always).await.unwrap();
        let memory = MemoryBudget::new(64 * MIB);
        let context = ReadContext::new(Arc::clone(&store), memory, None, tokio::runtime::Handle::current());
        let reader = Reader::new(Arc::new(context), ObjectVersion { key, etag: put.etag, size: len });
        counted.take();
        for at in (0..len).step_by(1 << 20) {
            assert_eq!(reader.read(1, at..at + MIB).await.unwrap().iter().map(Bytes::len).sum::<usize>(), 1 << 20);
        }
        let counts = counted.take();
        assert!(counts.operations["get"] <= len / PART_LEN + 3 && counts.downloaded == len, "{counts:?}");
    }

    #[tokio::test]
    async fn only_what_the_cache_does_not_have_is_fetched() {
        let world = World::new().await;
        let one = world.reader(world.dir.path(), world.version.clone());
        // In the middle of what is read ahead.
        one.read(1, 3 * MIB..4 * MIB).await.unwrap();
        one.read(2, 9 * MIB..10 * MIB).await.unwrap();
        let before = world.counted.take().downloaded;
        assert!((2 * MIB..5 * MIB).contains(&before), "{before}");
        let other = world.reader(world.dir.path(), world.version.clone());
        world.read_all(&other).await;
        assert_eq!(world.counted.take().downloaded + before, LEN);
    }

    #[tokio::test]
    async fn a_cache_that_lost_its_bytes_is_read_around() {
        let world = World::new().await;
        let one = world.reader(world.dir.path(), world.version.clone());
        world.read_all(&one).await;
        for path in std::fs::read_dir(world.dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
            if path.extension().is_some_and(|kind| kind == "data") {
                std::fs::File::options().write(true).open(path).unwrap().set_len(5 * MIB).unwrap();
            }
        }
        let other = world.reader(world.dir.path(), world.version.clone());
        world.read_all(&other).await;
    }

    #[tokio::test]
    async fn another_version_is_not_what_was_fetched() {
        let world = World::new().await;
        let one = world.reader(world.dir.path(), world.version.clone());
        world.read_all(&one).await;
        let replaced = ObjectVersion { etag: ETag::new("another"), ..world.version.clone() };
        let other = world.reader(world.dir.path(), replaced);
        assert!(matches!(other.read(1, 0..READ_LEN).await, Err(crate::FsError::Changed { .. })));
    }
}
