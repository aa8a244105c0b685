//! Listing in key order, seeking instead of visiting.
//!
//! A directory's names are read, decoded and sorted so that their keys ascend: a directory `n` sorts as
//! `n/`. Keys under a continued segment (`n%c`) may lie on both sides of `n/`, so that directory is
//! entered twice, once for the keys before and once for those behind. Whatever lies before the page's
//! lower bound is jumped over by binary search and never opened.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::names::{self, NameKind};
use super::{io_error, object};
use crate::cursor::{Cursor, PageBuilder, just_after_prefix};
use crate::{ListPage, ListedObject, StoreResult};

/// The sorted names of one directory.
type Names = Arc<[Entry]>;

/// One name of a directory, as the keys it stands for.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// The segment, then what makes it sort right: nothing, `/`, or a stand-in for what follows.
    sort_key: Box<[u8]>,
    kind: EntryKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EntryKind {
    Object,
    Directory,
    /// Continued segment: its keys that sort before `segment/`.
    Below,
    /// Continued segment: its keys that sort behind everything under `segment/`.
    Above,
}

impl Entry {
    fn push(entries: &mut Vec<Self>, segment: String, kind: NameKind) {
        let mut add = |suffix: &[u8], kind| {
            let sort_key = [segment.as_bytes(), suffix].concat().into_boxed_slice();
            entries.push(Self { sort_key, kind });
        };
        match kind {
            NameKind::Object => add(b"", EntryKind::Object),
            NameKind::Directory => add(b"/", EntryKind::Directory),
            NameKind::Continued => {
                // The smallest and the largest byte that can stand there, seen from `/`.
                add(b"\0", EntryKind::Below);
                add(b"0", EntryKind::Above);
            }
        }
    }

    /// What all keys of this entry begin with (an object's is its key), relative to the directory.
    fn start(&self) -> &[u8] {
        match self.kind {
            EntryKind::Object | EntryKind::Directory => &self.sort_key,
            EntryKind::Below | EntryKind::Above => &self.sort_key[..self.sort_key.len() - 1],
        }
    }

    /// Whether every key of this entry is smaller than `lower` (both relative to the directory).
    fn is_before(&self, lower: &[u8]) -> bool {
        let start = self.start();
        if start >= lower {
            return false;
        }
        match self.kind {
            EntryKind::Object => true,
            EntryKind::Directory | EntryKind::Above => !lower.starts_with(start),
            EntryKind::Below => !lower.starts_with(start) || lower.get(start.len()).is_some_and(|&next| next >= b'/'),
        }
    }
}

/// Sorted names of big directories, kept while the directory does not change.
#[derive(Debug, Default)]
pub(super) struct NameCache {
    inner: Mutex<CacheInner>,
}

#[derive(Debug, Default)]
struct CacheInner {
    directories: HashMap<PathBuf, Cached>,
    entry_count: usize,
    clock: u64,
}

#[derive(Debug)]
struct Cached {
    version: Version,
    names: Names,
    used: u64,
}

/// What changes when a name is added to or removed from a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Smaller directories are read anew each time.
const CACHED_ENTRY_COUNT_MIN: usize = 256;
/// Bounds the cache to some tens of megabytes.
const CACHED_ENTRY_COUNT_MAX: usize = 500_000;
/// A directory that changed more recently could change again within the same tick of the clock.
const SETTLED: Duration = Duration::from_millis(100);

impl NameCache {
    /// The sorted names of `directory`; none if it is gone.
    fn names(&self, directory: &Path) -> StoreResult<Names> {
        match self.try_names(directory) {
            Ok(names) => Ok(names),
            // No key is that long or holds a NUL, so none begins so either.
            Err(error)
                if is_gone(&error)
                    || matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename) =>
            {
                Ok(Arc::from([]))
            }
            Err(error) => Err(io_error(format!("cannot list {}", directory.display()), error)),
        }
    }

    fn try_names(&self, directory: &Path) -> io::Result<Names> {
        let before = version(directory)?;
        if let Some(names) = self.find(directory, before) {
            return Ok(names);
        }
        let mut entries = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            match name.to_str().and_then(names::decode) {
                Some((segment, kind)) => Entry::push(&mut entries, segment, kind),
                None => tracing::debug!(directory = %directory.display(), ?name, "not an object's name, left out"),
            }
        }
        entries.sort_unstable();
        let names: Names = entries.into();
        let age = SystemTime::now().duration_since(from_pair(before.modified.max(before.changed)));
        if names.len() >= CACHED_ENTRY_COUNT_MIN && age.is_ok_and(|age| age > SETTLED) && version(directory)? == before
        {
            self.keep(directory, before, &names);
        }
        Ok(names)
    }

    fn find(&self, directory: &Path, version: Version) -> Option<Names> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let clock = inner.clock;
        let cached = inner.directories.get_mut(directory).filter(|cached| cached.version == version)?;
        cached.used = clock;
        Some(Arc::clone(&cached.names))
    }

    fn keep(&self, directory: &Path, version: Version, names: &Names) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = Cached { version, names: Arc::clone(names), used: inner.clock };
        inner.entry_count += names.len();
        if let Some(old) = inner.directories.insert(directory.to_owned(), cached) {
            inner.entry_count -= old.names.len();
        }
        // The newest stays even if it alone is over the bound: its pages are being asked for.
        while inner.entry_count > CACHED_ENTRY_COUNT_MAX && inner.directories.len() > 1 {
            let Some(oldest) =
                inner.directories.iter().min_by_key(|(_, cached)| cached.used).map(|(path, _)| path.clone())
            else {
                break;
            };
            if let Some(old) = inner.directories.remove(&oldest) {
                inner.entry_count -= old.names.len();
            }
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn version(directory: &Path) -> io::Result<Version> {
    let metadata = fs::metadata(directory)?;
    Ok(Version {
        inode: metadata.ino(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

fn from_pair((seconds, nanos): (i64, i64)) -> SystemTime {
    let since = Duration::new(u64::try_from(seconds).unwrap_or_default(), u32::try_from(nanos).unwrap_or_default());
    SystemTime::UNIX_EPOCH + since
}

/// Lists one page of the objects under `root`.
pub(super) fn list(root: &Path, cache: &NameCache, cursor: &Cursor) -> StoreResult<ListPage> {
    let mut page = PageBuilder::new(cursor.limit);
    let mut walk = Walk::new(root, cache, &cursor.prefix, cursor.lower.clone(), cursor.delimited)?;
    while let Some(found) = walk.next()? {
        match found {
            Found::Object { key, path } => {
                let info = match object::open(&path) {
                    Ok(Some((_, info))) => info,
                    // Removed since the names were read.
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::warn!(key, %error, "left out of the listing");
                        continue;
                    }
                };
                if page.is_full() {
                    return Ok(page.more());
                }
                page.object(ListedObject {
                    key,
                    size: info.size,
                    etag: Some(info.etag),
                    last_modified: info.last_modified,
                    storage_class: info.attributes.storage_class,
                });
            }
            Found::Prefix(prefix) => {
                if page.is_full() {
                    return Ok(page.more());
                }
                page.prefix(prefix);
            }
        }
    }
    Ok(page.done())
}

enum Found {
    Object { key: String, path: PathBuf },
    Prefix(String),
}

/// Visits keys in ascending order from a lower bound on.
struct Walk<'a> {
    root: &'a Path,
    cache: &'a NameCache,
    prefix: String,
    lower: Vec<u8>,
    delimited: bool,
    /// The directories being visited, outermost first. Its own stack: keys nest up to 1024 deep.
    levels: Vec<Level>,
}

struct Level {
    path: PathBuf,
    /// What the keys in this directory begin with.
    base: String,
    names: Names,
    next: usize,
    /// Which names to visit, if the directory is a continued segment.
    half: Option<EntryKind>,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Path, cache: &'a NameCache, prefix: &str, lower: Vec<u8>, delimited: bool) -> StoreResult<Self> {
        let mut walk = Self { root, cache, prefix: prefix.to_owned(), lower, delimited, levels: Vec::new() };
        // Everything wanted lies in this directory, so those above it need not be read.
        let base = &prefix[..prefix.rfind('/').map_or(0, |slash| slash + 1)];
        walk.enter(walk.root.join(names::directory_path(base)), base.to_owned(), None)?;
        Ok(walk)
    }

    fn enter(&mut self, path: PathBuf, base: String, half: Option<EntryKind>) -> StoreResult<()> {
        let names = self.cache.names(&path)?;
        let next = match self.lower.strip_prefix(base.as_bytes()) {
            Some(lower) => names.partition_point(|entry| entry.is_before(lower)),
            // A bound that does not begin so lies before or behind all of it; a caller enters only the former.
            None => 0,
        };
        self.levels.push(Level { path, base, names, next, half });
        Ok(())
    }

    fn next(&mut self) -> StoreResult<Option<Found>> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some(entry) = level.names.get(level.next) else {
                self.levels.pop();
                continue;
            };
            level.next += 1;
            let first = entry.sort_key.first().copied().unwrap_or_default();
            let in_half = match level.half {
                Some(EntryKind::Below) => first < b'/',
                Some(EntryKind::Above) => first > b'/',
                _ => true,
            };
            // Names come from `names::decode`, so they are UTF-8 whole.
            let (true, Ok(start)) = (in_half, std::str::from_utf8(entry.start())) else { continue };
            let full = format!("{}{start}", level.base);
            let (kind, base_len) = (entry.kind, level.base.len());
            let leads_to_prefix = kind != EntryKind::Object && self.prefix.starts_with(&full);
            if !full.starts_with(&self.prefix) && !leads_to_prefix {
                if full.as_bytes() > self.prefix.as_bytes() {
                    // All that follows is behind the prefix, too.
                    self.levels.clear();
                }
                continue;
            }
            match kind {
                EntryKind::Object => {
                    if full.as_bytes() >= &*self.lower {
                        let path = level.path.join(names::object_name(&full[base_len..]));
                        return Ok(Some(Found::Object { key: full, path }));
                    }
                }
                EntryKind::Directory if self.lower >= just_after_prefix(&full) => {}
                EntryKind::Directory if self.delimited && full.len() > self.prefix.len() => {
                    if self.holds_any(&full)? {
                        return Ok(Some(Found::Prefix(full)));
                    }
                }
                EntryKind::Directory => {
                    let path = level.path.join(names::directory_path(&full[base_len..]));
                    self.enter(path, full, None)?;
                }
                EntryKind::Below | EntryKind::Above => {
                    let path = level.path.join(names::continued_name(&full[base_len..]));
                    self.enter(path, full, Some(kind))?;
                }
            }
        }
    }

    /// Whether there is a key within the bounds under `directory`.
    fn holds_any(&self, directory: &str) -> StoreResult<bool> {
        if self.lower.as_slice() <= directory.as_bytes() {
            let path = self.root.join(names::directory_path(directory));
            return holds_file(&path).map_err(|error| io_error(format!("cannot list {}", path.display()), error));
        }
        Ok(Walk::new(self.root, self.cache, directory, self.lower.clone(), false)?.next()?.is_some())
    }
}

/// Whether an object's file lies anywhere under `directory`; reads as little as it can.
fn holds_file(directory: &Path) -> io::Result<bool> {
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            match entry.file_name().to_str().and_then(names::decode) {
                Some((_, NameKind::Object)) => return Ok(true),
                Some(_) => pending.push(entry.path()),
                None => {}
            }
        }
    }
    Ok(false)
}
