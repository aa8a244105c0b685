//! Small files that are likely to be read next are fetched before they are opened, with what they carry: a program that reads
//! one after the other would wait for the store twice for each, to hear of the file and to get it.
//!
//! What was fetched is of one version, as everything that is read: it counts for whoever opens that version. What came with it
//! about the file is believed as long as any answer.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use sandpail_store::ObjectInfo;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::lookup::version_of;
use super::{Engine, object_key};
use crate::guard;
use crate::read::{ObjectVersion, Reader};
use crate::tree::{Entry, Name, Since, Tree};

const KIB: u64 = 1 << 10;
/// Up to this length a file is small.
const SMALL_LEN: u64 = 128 * KIB;
/// What may be fetched and not read yet, of the whole mount.
const AHEAD_LEN_MAX: u64 = 16 * 1024 * KIB;
/// Small files of one directory that are little together.
const FITTING_LEN: u64 = AHEAD_LEN_MAX;
const FITTING_COUNT: usize = 4096;
/// Fetched at the same time.
const AT_ONCE: usize = 32;
/// So long something waits to be read, and how often that is looked at.
const KEPT: Duration = Duration::from_secs(20);
const LOOKED_AT_EVERY: Duration = Duration::from_secs(5);
/// Names that are looked at for one read.
const SCAN_MAX: usize = 1024;

/// A small file that was fetched, or is being fetched, and not opened yet.
#[derive(Debug)]
pub(super) struct Sibling {
    directory: u64,
    name: Name,
    reader: Arc<Reader>,
    since: Arc<Since>,
    begun: Instant,
}

/// What came with the bytes of one.
#[derive(Debug)]
struct Told {
    sibling: Arc<Sibling>,
    info: ObjectInfo,
}

/// Those of a mount.
#[derive(Debug)]
pub(super) struct Siblings {
    waiting: Mutex<Waiting>,
    turns: Semaphore,
    is_looked_at: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    by_directory: HashMap<u64, HashMap<Name, Arc<Sibling>>>,
    len: u64,
    /// Not in the tree yet.
    told: Vec<Told>,
}

impl Default for Siblings {
    fn default() -> Self {
        let turns = Semaphore::new(AT_ONCE);
        Self { waiting: Mutex::default(), turns, is_looked_at: AtomicBool::default() }
    }
}

impl Siblings {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        guard(&self.waiting)
    }

    /// Fetches one that waited for its turn, unless somebody has come for it or there is no memory.
    async fn fetch(&self, sibling: &Weak<Sibling>) {
        let Ok(_turn) = self.turns.acquire().await else { return };
        // It is among those that wait as long as nobody has come for it.
        let Some(sibling) = sibling.upgrade() else { return };
        if !sibling.reader.has_room() {
            self.waiting().remove(sibling.directory, &sibling.name);
            return;
        }
        // Whoever reads it will hear of a failure, or fetches it again.
        if let Ok(Some(info)) = sibling.reader.fetch_whole().await {
            let mut waiting = self.waiting();
            // Whoever has come for it meanwhile knows of it.
            if waiting.get(sibling.directory, &sibling.name).is_some_and(|known| Arc::ptr_eq(known, &sibling)) {
                waiting.told.push(Told { sibling, info });
            }
        }
    }

    /// What was fetched of this version, for somebody who is about to read it.
    pub(super) fn take(&self, directory: u64, name: &[u8], version: &ObjectVersion) -> Option<Arc<Reader>> {
        let sibling = self.waiting().remove(directory, name)?;
        let reader = Arc::clone(&sibling.reader);
        (reader.version() == version && !reader.has_failed()).then_some(reader)
    }
}

impl Waiting {
    fn get(&self, directory: u64, name: &[u8]) -> Option<&Arc<Sibling>> {
        self.by_directory.get(&directory)?.get(name)
    }

    fn count_in(&self, directory: u64) -> usize {
        self.by_directory.get(&directory).map_or(0, HashMap::len)
    }

    fn insert(&mut self, sibling: Arc<Sibling>) {
        self.len += sibling.reader.version().size;
        let (directory, name) = (sibling.directory, Arc::clone(&sibling.name));
        let before = self.by_directory.entry(directory).or_default().insert(name, sibling);
        self.len -= before.map_or(0, |sibling| sibling.reader.version().size);
    }

    fn remove(&mut self, directory: u64, name: &[u8]) -> Option<Arc<Sibling>> {
        let names = self.by_directory.get_mut(&directory)?;
        let sibling = names.remove(name)?;
        if names.is_empty() {
            self.by_directory.remove(&directory);
        }
        self.len -= sibling.reader.version().size;
        Some(sibling)
    }

    fn retain(&mut self, is_kept: impl Fn(&Sibling) -> bool) {
        let mut len = 0;
        self.by_directory.retain(|_, names| {
            names.retain(|_, sibling| is_kept(sibling));
            len += names.values().map(|sibling| sibling.reader.version().size).sum::<u64>();
            !names.is_empty()
        });
        self.len = len;
        // It keeps the bytes.
        self.told.retain(|told| is_kept(&told.sibling));
    }

    fn is_empty(&self) -> bool {
        self.by_directory.is_empty() && self.told.is_empty()
    }
}

impl Engine {
    /// A file is read from its beginning: fetches those that are likely to come next.
    pub(super) fn fetch_siblings(&self, ino: u64, reader: &Reader) {
        if reader.version().size > SMALL_LEN {
            return;
        }
        let was_fetched = reader.was_ahead();
        let mut begun = Vec::new();
        {
            let mut tree = self.tree();
            self.learn_from_siblings(&mut tree);
            let Some(node) = tree.get(ino).filter(|node| node.is_linked) else { return };
            let (parent, name) = (node.parent, Arc::clone(&node.name));
            let Some(dir) = tree.dir_mut(parent).filter(|dir| dir.complete_until.is_some()) else { return };
            if !dir.reads.on_read(&name, was_fetched, Instant::now()) {
                return;
            }
            dir.reads.expect(small_after(&dir.entries, &name));
            if dir.reads.fits.is_none() && dir.reads.has_no_order() {
                dir.reads.fits = Some(fits(&dir.entries));
            }
            let waiting = self.siblings.waiting();
            let count = dir.reads.ahead().saturating_sub(waiting.count_in(parent));
            let room = AHEAD_LEN_MAX.saturating_sub(waiting.len);
            drop(waiting);
            if count == 0 {
                return;
            }
            let names = self.next_names(&mut tree, parent, count, room);
            let since = Arc::new(tree.ask());
            for name in names {
                begun.extend(self.fetch_sibling(&tree, parent, &name, &since).map(|sibling| Arc::downgrade(&sibling)));
            }
        }
        for sibling in begun {
            let siblings = Arc::clone(&self.siblings);
            self.runtime.spawn(async move { siblings.fetch(&sibling).await });
        }
        self.look_at_siblings();
    }

    /// Small files of a directory that nobody has opened yet, of no more than `room` bytes together.
    fn next_names(&self, tree: &mut Tree, parent: u64, count: usize, room: u64) -> Vec<Name> {
        let (mut found, mut left) = (Vec::new(), room);
        let Some(dir) = tree.dir(parent) else { return found };
        let (mut at, mut wrapped) = (dir.reads.cursor.clone(), dir.reads.wrapped);
        let waiting = self.siblings.waiting();
        for _ in 0..SCAN_MAX {
            let from = at.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let Some((name, entry)) = dir.entries.range::<[u8], _>((from, Bound::Unbounded)).next() else {
                if wrapped || dir.reads.fits != Some(true) {
                    break;
                }
                (at, wrapped) = (None, true);
                continue;
            };
            let is_open = || tree.child(parent, name).is_some_and(|node| node.content.is_some() || node.is_local());
            if let Some(size) = small_len(entry)
                && !is_open()
                && waiting.get(parent, name).is_none()
            {
                if found.len() == count || size > left {
                    break;
                }
                left -= size;
                found.push(Arc::clone(name));
            }
            at = Some(Arc::clone(name));
        }
        drop(waiting);
        if let Some(dir) = tree.dir_mut(parent) {
            (dir.reads.cursor, dir.reads.wrapped) = (at, wrapped);
        }
        found
    }

    /// Makes what fetches one file, as it is listed. Nothing is asked for yet.
    fn fetch_sibling(&self, tree: &Tree, parent: u64, name: &[u8], since: &Arc<Since>) -> Option<Arc<Sibling>> {
        let entry = tree.dir(parent)?.entries.get(name)?;
        let version = entry.version.as_ref()?;
        let key = object_key(format!("{}{}", self.dir_prefix(tree, parent), tree.key_part(parent, name))).ok()?;
        let version = ObjectVersion { key, etag: version.etag.clone()?, size: version.size };
        let reader = Reader::ahead(Arc::clone(&self.reading), version);
        if entry.attributes.is_some() {
            reader.allow();
        }
        let (name, since) = (Name::from(name), Arc::clone(since));
        let sibling = Sibling { directory: parent, name, reader, since, begun: Instant::now() };
        let sibling = Arc::new(sibling);
        self.siblings.waiting().insert(Arc::clone(&sibling));
        Some(sibling)
    }

    /// What is being fetched of a listed file that is looked up and that nobody has described, or shall be: it is asked for in any
    /// case, and will probably be read.
    pub(super) fn sibling_of(&self, tree: &mut Tree, parent: u64, name: &[u8]) -> Option<Arc<Sibling>> {
        let known = self.siblings.waiting().get(parent, name).cloned();
        let dir = tree.dir_mut(parent)?;
        let is_likely = dir.reads.on_lookup(Instant::now());
        let entry = dir.entries.get(name)?;
        let size = small_len(entry)?;
        let etag = entry.version.as_ref().and_then(|version| version.etag.as_ref());
        let is_this = |version: &ObjectVersion| (Some(&version.etag), version.size) == (etag, size);
        if let Some(sibling) = known.filter(|sibling| is_this(sibling.reader.version())) {
            // What came with it long ago is not believed any more, but its bytes will be read.
            let is_young = dir.believes(sibling.begun + self.believed_for(), self.believed_for());
            return is_young.then_some(sibling);
        }
        if !is_likely || self.siblings.waiting().len + size > AHEAD_LEN_MAX {
            return None;
        }
        let since = Arc::new(tree.ask());
        let sibling = self.fetch_sibling(tree, parent, name, &since);
        self.look_at_siblings();
        sibling
    }

    /// Learns of a file what comes with its bytes. Returns whether that was something.
    pub(super) async fn learn_from(&self, sibling: &Sibling) -> bool {
        match sibling.reader.fetch_whole().await {
            Ok(Some(info)) => self.take_in(&mut self.tree(), sibling, info),
            _ => false,
        }
    }

    /// Learns what has come with bytes that were fetched ahead.
    pub(super) fn learn_from_siblings(&self, tree: &mut Tree) {
        let told = std::mem::take(&mut self.siblings.waiting().told);
        for Told { sibling, info } in told {
            let until = sibling.begun + self.believed_for();
            if tree.dir(sibling.directory).is_some_and(|dir| dir.believes(until, self.believed_for())) {
                self.take_in(tree, &sibling, info);
            }
        }
    }

    fn take_in(&self, tree: &mut Tree, sibling: &Sibling, info: ObjectInfo) -> bool {
        let (parent, name) = (sibling.directory, &sibling.name);
        if tree.is_outdated(parent, name, &sibling.since) {
            return false;
        }
        let found = version_of(&info);
        let entry = tree.dir(parent).and_then(|dir| dir.entries.get(name));
        match entry.filter(|entry| entry.version.as_ref().is_some_and(|version| version.is_same(&found))) {
            Some(entry) if entry.attributes.is_some() => return true,
            Some(_) => {}
            None => return false,
        }
        // Each file counts once.
        self.sampled(tree, parent, &info);
        if let Some(entry) = tree.dir_mut(parent).and_then(|dir| dir.entries.get_mut(name)) {
            entry.attributes = Some(Arc::new(info.attributes));
        }
        true
    }

    /// While something waits, now and then forgets what nobody comes for.
    fn look_at_siblings(&self) {
        if self.siblings.is_looked_at.swap(true, Ordering::AcqRel) {
            return;
        }
        let siblings = Arc::downgrade(&self.siblings);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(LOOKED_AT_EVERY).await;
                let Some(siblings) = siblings.upgrade() else { return };
                let mut waiting = siblings.waiting();
                waiting.retain(|sibling| sibling.begun.elapsed() < KEPT);
                if waiting.is_empty() {
                    // Under the lock: what comes after this begins another one.
                    siblings.is_looked_at.store(false, Ordering::Release);
                    return;
                }
            }
        });
    }
}

/// The length of a small file.
fn small_len(entry: &Entry) -> Option<u64> {
    entry.version.as_ref().map(|version| version.size).filter(|size| (1..=SMALL_LEN).contains(size))
}

/// The next small file in listed order, if it is not far.
fn small_after(entries: &BTreeMap<Name, Entry>, name: &[u8]) -> Option<Name> {
    let mut after = entries.range::<[u8], _>((Bound::Excluded(name), Bound::Unbounded)).take(SCAN_MAX);
    after.find(|(_, entry)| small_len(entry).is_some()).map(|(name, _)| Arc::clone(name))
}

fn fits(entries: &BTreeMap<Name, Entry>) -> bool {
    entries.len() <= FITTING_COUNT && entries.values().filter_map(small_len).sum::<u64>() <= FITTING_LEN
}
