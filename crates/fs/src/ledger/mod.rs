//! What the kernel relies on, told to whoever takes the mount up when this process is killed: inode numbers, how often
//! the kernel knows them, open files and directories, and which requests had begun to change names.
//!
//! The ledger is a file without a name that the mount's keeper holds, too. It says what a node *is now*, not what happened:
//! before a request is answered, the nodes that it changed are written again. An entry too much does no harm (a node is
//! held longer than the kernel needs it); an answer that is not in the ledger would, so entries are written first.
//! What is staged has records of its own ([`crate::write`]), which say to which node it belongs.

mod entry;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use sandpail_store::ObjectAttributes;

pub(crate) use self::entry::{Entry, Moving, NodeNote};
use crate::engine::OpenMode;
use crate::frames;
use crate::guard;
use crate::tree::Name;

/// With the format's version.
const MAGIC: &[u8; 16] = b"sandpail ledger1";
/// Where the offset of the first entry stands, and after it the [`State`].
const START_AT: u64 = 16;
const STATE_AT: u64 = 24;
const HEAD_LEN: u64 = 32;
/// A ledger is written anew when it is this long, in bytes, and this many times as long as it was then.
const REWRITE_LEN_MIN: u64 = 1 << 20;
const REWRITE_GROWTH: u64 = 4;
/// So many changes are remembered that had begun: more than are ever under way.
const BEGUN_COUNT: usize = 4096;

/// What a ledger is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its mount can be taken up.
    Whole,
    /// Its process ended the mount itself.
    Ended,
    /// Something is missing in it.
    Broken,
}

impl State {
    /// What a mount's keeper finds in the ledger that it holds.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(ledger: impl AsFd) -> io::Result<Self> {
        let file = File::from(ledger.as_fd().try_clone_to_owned()?);
        let mut word = [0; 8];
        file.read_exact_at(&mut word, STATE_AT)?;
        Ok(match word[0] {
            0 => Self::Whole,
            1 => Self::Ended,
            _ => Self::Broken,
        })
    }

    fn word(self) -> [u8; 8] {
        let code = match self {
            Self::Whole => 0,
            Self::Ended => 1,
            Self::Broken => 2,
        };
        [code, 0, 0, 0, 0, 0, 0, 0]
    }
}

/// Which nodes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Those that have changed.
    News,
    All,
}

/// The ledger that this process writes.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: File,
    writing: Mutex<Writing>,
}

#[derive(Debug)]
struct Writing {
    start: u64,
    end: u64,
    /// How long it was when it was written anew.
    fresh_len: u64,
    /// Entries for the next write.
    pending: Vec<u8>,
    /// The entries of open handles, for the next time that it is written anew.
    handles: HashMap<u64, Vec<u8>>,
    /// What else is known of them.
    details: HashMap<u64, Vec<u8>>,
    begun: VecDeque<u64>,
    under_way: HashSet<u64>,
    next_handle: u64,
    is_broken: bool,
}

/// An open file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HandleNote {
    pub(crate) ino: u64,
    /// Of a file.
    pub(crate) mode: Option<OpenMode>,
    /// The request that opened it.
    pub(crate) request: u64,
    /// From where entries of a directory were asked for, and the name before.
    pub(crate) position: Option<(u64, Name)>,
    /// The local file that the kernel reads instead, by the kernel's number.
    pub(crate) backing: Option<u32>,
}

/// What a process that died had told the kernel.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) nodes: BTreeMap<u64, NodeNote>,
    pub(crate) attributes: BTreeMap<u64, ObjectAttributes>,
    pub(crate) handles: BTreeMap<u64, HandleNote>,
    pub(crate) begun: HashSet<u64>,
    /// Changes that had begun and not ended.
    pub(crate) under_way: HashSet<u64>,
    /// Moves in the local tree of which the nodes' entries say nothing yet.
    pub(crate) moving: Vec<Moving>,
    pub(crate) next_handle: u64,
}

impl Known {
    /// Reads a ledger.
    ///
    /// # Errors
    /// When it is none, or not whole.
    pub(crate) fn read(ledger: &File) -> io::Result<Self> {
        if State::of(ledger)? != State::Whole {
            return Err(io::Error::other("the ledger of the mount is not whole"));
        }
        let mut magic = [0; MAGIC.len()];
        ledger.read_exact_at(&mut magic, 0)?;
        if &magic != MAGIC {
            return Err(io::Error::other("the ledger of the mount is of another version"));
        }
        let mut start = [0; 8];
        ledger.read_exact_at(&mut start, START_AT)?;
        let start = u64::from_le_bytes(start);
        let len = ledger.metadata()?.len().saturating_sub(start);
        let mut log = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        ledger.read_exact_at(&mut log, start)?;
        let mut known = Self::default();
        let mut at = 0;
        while let Some((payload, next)) = frames::at(&log, at) {
            let entry = Entry::decode(payload).ok_or_else(|| io::Error::other("the ledger of the mount is damaged"))?;
            known.apply(entry);
            at = next;
        }
        Ok(known)
    }

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Node(node) => {
                self.moving.retain(|moving| moving.ino != node.ino);
                self.nodes.insert(node.ino, node);
            }
            Entry::Attributes(ino, attributes) => drop(self.attributes.insert(ino, attributes)),
            Entry::Gone(ino) => {
                self.nodes.remove(&ino);
                self.attributes.remove(&ino);
            }
            Entry::File { handle, ino, mode, request } => {
                self.opened(handle, HandleNote { ino, mode: Some(mode), request, position: None, backing: None });
            }
            Entry::Directory { handle, ino, request } => {
                self.opened(handle, HandleNote { ino, mode: None, request, position: None, backing: None });
            }
            Entry::Closed(handle) => drop(self.handles.remove(&handle)),
            Entry::Position { handle, position, name } => {
                if let Some(note) = self.handles.get_mut(&handle) {
                    note.position = Some((position, name));
                }
            }
            Entry::Passed { handle, backing } => {
                if let Some(note) = self.handles.get_mut(&handle) {
                    note.backing = Some(backing);
                }
            }
            Entry::Begun(change) => {
                self.begun.insert(change);
                self.under_way.insert(change);
            }
            Entry::Ended(change) => drop(self.under_way.remove(&change)),
            Entry::Moving(moving) => self.moving.push(moving),
            Entry::Handles(next) => self.next_handle = self.next_handle.max(next),
        }
    }

    fn opened(&mut self, handle: u64, note: HandleNote) {
        self.next_handle = self.next_handle.max(handle + 1);
        self.handles.insert(handle, note);
    }
}

impl Ledger {
    /// A new one.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn create() -> io::Result<Self> {
        let file = File::from(memfd_create("sandpail ledger", MemfdFlags::CLOEXEC)?);
        let mut head = MAGIC.to_vec();
        head.extend(HEAD_LEN.to_le_bytes());
        head.extend(State::Whole.word());
        file.write_all_at(&head, 0)?;
        Ok(Self::on(file, HEAD_LEN..HEAD_LEN))
    }

    /// Goes on with the ledger of a process that died; [`Ledger::settle`] writes it anew.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn resume(file: File, known: &Known) -> io::Result<Self> {
        let mut start = [0; 8];
        file.read_exact_at(&mut start, START_AT)?;
        let range = u64::from_le_bytes(start)..file.metadata()?.len();
        let ledger = Self::on(file, range);
        let mut writing = ledger.writing();
        // The next write is one of everything.
        writing.fresh_len = 0;
        writing.next_handle = known.next_handle;
        writing.begun = known.begun.iter().copied().collect();
        writing.under_way.clone_from(&known.under_way);
        for (handle, note) in &known.handles {
            let HandleNote { ino, mode, request, position, backing } = note;
            let (handle, ino, request) = (*handle, *ino, *request);
            let entry = match *mode {
                Some(mode) => Entry::File { handle, ino, mode, request },
                None => Entry::Directory { handle, ino, request },
            };
            writing.handles.insert(handle, frame(&entry));
            if let Some((position, name)) = position {
                let entry = Entry::Position { handle, position: *position, name: name.clone() };
                writing.details.insert(handle, frame(&entry));
            }
            if let Some(backing) = *backing {
                writing.details.insert(handle, frame(&Entry::Passed { handle, backing }));
            }
        }
        drop(writing);
        Ok(ledger)
    }

    fn on(file: File, Range { start, end }: Range<u64>) -> Self {
        let writing = Writing {
            start,
            end,
            fresh_len: REWRITE_LEN_MIN / REWRITE_GROWTH,
            pending: Vec::new(),
            handles: HashMap::new(),
            details: HashMap::new(),
            begun: VecDeque::new(),
            under_way: HashSet::new(),
            next_handle: 1,
            is_broken: false,
        };
        Self { file, writing: Mutex::new(writing) }
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        guard(&self.writing)
    }

    /// A descriptor for the mount's keeper.
    ///
    /// # Errors
    /// Without a descriptor to be had.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// The mount ends, and nobody shall take it up.
    pub(crate) fn end(&self) {
        self.set_state(State::Ended);
    }

    fn set_state(&self, state: State) {
        if let Err(error) = self.file.write_all_at(&state.word(), STATE_AT) {
            tracing::error!(%error, "the mount's ledger cannot be written");
        }
    }

    /// A file, or without `mode` a directory, was opened.
    pub(crate) fn opened(&self, handle: u64, ino: u64, mode: Option<OpenMode>, request: u64) {
        let entry = frame(&match mode {
            Some(mode) => Entry::File { handle, ino, mode, request },
            None => Entry::Directory { handle, ino, request },
        });
        let mut writing = self.writing();
        writing.pending.extend(&entry);
        writing.handles.insert(handle, entry);
        writing.next_handle = writing.next_handle.max(handle + 1);
    }

    pub(crate) fn closed(&self, handle: u64) {
        let mut writing = self.writing();
        if writing.handles.remove(&handle).is_some() {
            writing.details.remove(&handle);
            Entry::Closed(handle).encode(&mut writing.pending);
        }
    }

    /// Entries of an open directory are asked for.
    pub(crate) fn asked_from(&self, handle: u64, position: u64, name: Name) {
        let entry = frame(&Entry::Position { handle, position, name });
        let mut writing = self.writing();
        writing.pending.extend(&entry);
        writing.details.insert(handle, entry);
    }

    /// The kernel shall read an open file by itself.
    pub(crate) fn passed(&self, handle: u64, backing: u32) {
        let entry = frame(&Entry::Passed { handle, backing });
        let mut writing = self.writing();
        writing.pending.extend(&entry);
        writing.details.insert(handle, entry);
    }

    /// A change of the bucket is about to begin: written at once.
    pub(crate) fn begun(&self, change: u64) {
        let mut writing = self.writing();
        Entry::Begun(change).encode(&mut writing.pending);
        writing.under_way.insert(change);
        writing.begun.push_back(change);
        if writing.begun.len() > BEGUN_COUNT {
            writing.begun.pop_front();
        }
        self.write(&mut writing);
    }

    /// A name of the local tree is about to change: written at once. The caller keeps the nodes still until it has.
    pub(crate) fn moving(&self, moving: Moving) {
        let mut writing = self.writing();
        Entry::Moving(moving).encode(&mut writing.pending);
        self.write(&mut writing);
    }

    /// It has ended, well or not.
    pub(crate) fn ended(&self, change: u64) {
        let mut writing = self.writing();
        if writing.under_way.remove(&change) {
            Entry::Ended(change).encode(&mut writing.pending);
        }
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.writing().pending.is_empty()
    }

    /// Writes what is pending and what is new of the nodes, which `nodes` appends; from time to time everything anew. The
    /// caller keeps the nodes still.
    pub(crate) fn settle(&self, nodes: impl FnOnce(&mut Vec<u8>, Extent)) {
        let mut writing = self.writing();
        let len = writing.end - writing.start;
        if len >= REWRITE_LEN_MIN && len >= writing.fresh_len * REWRITE_GROWTH || writing.fresh_len == 0 {
            return self.write_anew(&mut writing, |log| nodes(log, Extent::All));
        }
        nodes(&mut writing.pending, Extent::News);
        self.write(&mut writing);
    }

    fn write(&self, writing: &mut Writing) {
        if writing.pending.is_empty() || writing.is_broken {
            return writing.pending.clear();
        }
        match self.file.write_all_at(&writing.pending, writing.end) {
            Ok(()) => writing.end += writing.pending.len() as u64,
            Err(error) => self.break_off(writing, &error),
        }
        writing.pending.clear();
    }

    fn write_anew(&self, writing: &mut Writing, all: impl FnOnce(&mut Vec<u8>)) {
        let mut log = Vec::new();
        Entry::Handles(writing.next_handle).encode(&mut log);
        all(&mut log);
        writing.handles.values().chain(writing.details.values()).for_each(|entry| log.extend(entry));
        for change in &writing.begun {
            Entry::Begun(*change).encode(&mut log);
            if !writing.under_way.contains(change) {
                Entry::Ended(*change).encode(&mut log);
            }
        }
        writing.pending.clear();
        writing.fresh_len = (log.len() as u64).max(1);
        if writing.is_broken {
            return;
        }
        let (old, new) = (writing.start, writing.end);
        // First all of it, then the word that says where it begins: a reader finds the old one or the new one.
        let written = self.file.write_all_at(&log, new).and_then(|()| {
            self.file.write_all_at(&new.to_le_bytes(), START_AT)?;
            writing.start = new;
            writing.end = new + log.len() as u64;
            if old == new {
                return Ok(());
            }
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(fallocate(&self.file, flags, old, new - old)?)
        });
        if let Err(error) = written {
            self.break_off(writing, &error);
        }
    }

    /// Without it the mount is like any other's: gone if its process is.
    fn break_off(&self, writing: &mut Writing, error: &io::Error) {
        writing.is_broken = true;
        self.set_state(State::Broken);
        tracing::error!(%error, "the mount's ledger cannot be written; if this process dies, the mount will be gone");
    }
}

fn frame(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::new();
    entry.encode(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::attr::{Attr, Kind, Time};

    fn note(ino: u64, lookups: u64) -> NodeNote {
        let times = Time::from(UNIX_EPOCH);
        let attr =
            Attr { kind: Kind::File, perm: 0o644, uid: 1, gid: 2, size: 3, atime: times, mtime: times, ctime: times };
        let name = Name::from(format!("name-{ino}").into_bytes());
        NodeNote {
            ino,
            parent: 1,
            name,
            segment: None,
            attr,
            version: None,
            lookups,
            is_linked: true,
            copying: None,
            is_pending: false,
            off_bucket: false,
        }
    }

    fn settle(ledger: &Ledger, news: &[NodeNote], all: &[NodeNote]) {
        ledger.settle(|log, extent| {
            let nodes = if extent == Extent::All { all } else { news };
            nodes.iter().for_each(|node| Entry::Node(node.clone()).encode(log));
        });
    }

    fn read(ledger: &Ledger) -> Known {
        Known::read(&ledger.file).unwrap()
    }

    #[test]
    fn what_is_told_is_known() {
        let ledger = Ledger::create().unwrap();
        let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
        settle(&ledger, &[note(5, 1), note(6, 1)], &[]);
        ledger.opened(1, 5, Some(mode), 100);
        ledger.opened(2, 1, None, 102);
        ledger.opened(3, 6, Some(mode), 104);
        ledger.closed(3);
        ledger.asked_from(2, 7, Name::from(&b"before"[..]));
        // Not written yet: nobody was answered.
        assert_eq!(read(&ledger).handles.len(), 0);
        ledger.begun(106);
        ledger.begun(108);
        ledger.ended(106);
        settle(&ledger, &[note(6, 4)], &[]);
        let known = read(&ledger);
        assert_eq!((known.nodes[&5].lookups, known.nodes[&6].lookups), (1, 4));
        let note = HandleNote { ino: 5, mode: Some(mode), request: 100, position: None, backing: None };
        assert_eq!(known.handles[&1], note);
        assert_eq!(known.handles[&2].position, Some((7, Name::from(&b"before"[..]))));
        assert!(!known.handles.contains_key(&3) && known.next_handle == 4);
        assert_eq!((known.begun, known.under_way), (HashSet::from([106, 108]), HashSet::from([108])));
    }

    #[test]
    fn it_is_written_anew_and_stays_small() {
        let ledger = Ledger::create().unwrap();
        ledger.opened(1, 5, Some(OpenMode::default()), 100);
        ledger.opened(9, 5, None, 100);
        ledger.closed(9);
        ledger.begun(102);
        for turn in 0..100_000u64 {
            settle(&ledger, &[note(5, turn)], &[note(5, turn), note(6, 1)]);
        }
        let known = read(&ledger);
        assert!(known.nodes[&5].lookups == 99_999 && known.nodes[&6].lookups == 1);
        assert!(known.handles.len() == 1 && known.next_handle == 10 && known.under_way.contains(&102));
        let stored = std::os::unix::fs::MetadataExt::blocks(&ledger.file.metadata().unwrap()) * 512;
        assert!(stored < 4 << 20, "{stored} bytes");
    }

    #[test]
    fn the_next_process_goes_on_with_it() {
        let ledger = Ledger::create().unwrap();
        settle(&ledger, &[note(5, 1)], &[]);
        ledger.opened(4, 5, Some(OpenMode::default()), 100);
        ledger.passed(4, 77);
        ledger.begun(102);
        settle(&ledger, &[], &[]);
        // It was killed in the middle of an entry.
        let end = ledger.file.metadata().unwrap().len();
        ledger.file.write_all_at(&[9; 30], end).unwrap();
        let known = read(&ledger);
        let next = Ledger::resume(File::from(ledger.share().unwrap()), &known).unwrap();
        settle(&next, &[], &[note(5, 1)]);
        settle(&next, &[note(7, 2)], &[]);
        let again = read(&next);
        assert_eq!(known.handles[&4].backing, Some(77));
        assert_eq!((again.nodes.len(), again.handles, again.next_handle), (2, known.handles, 5));
        assert!(again.begun.contains(&102) && again.under_way.contains(&102));
    }

    #[test]
    fn an_empty_one_is_gone_on_with() {
        let ledger = Ledger::create().unwrap();
        let next = Ledger::resume(File::from(ledger.share().unwrap()), &read(&ledger)).unwrap();
        settle(&next, &[], &[note(5, 1)]);
        settle(&next, &[note(6, 1)], &[]);
        assert_eq!(read(&next).nodes.len(), 2);
    }

    #[test]
    fn only_a_whole_one_is_taken_up() {
        let ledger = Ledger::create().unwrap();
        assert_eq!(State::of(&ledger.file).unwrap(), State::Whole);
        ledger.end();
        assert_eq!(State::of(&ledger.file).unwrap(), State::Ended);
        assert!(Known::read(&ledger.file).is_err());
        assert!(Known::read(&tempfile::tempfile().unwrap()).is_err());
    }
}
