//! Writing the log beside a staging file while the file is written.
//!
//! What matters is the order. A process can be killed between any two system calls, and what the log says must then be
//! true of the staging file: bytes are in it before the log says so, and the log says that they are gone, or end, before
//! they are. Little is synced: a kill loses nothing that is in the kernel's hands; only a machine that stops does. What a
//! program was told is safe ([`Event::Durable`]) is on the disk, and whatever takes bytes of it away is there before they go.
//!
//! Behind the last entry stand zeros, which are no frame: room for what must be said on a full disk, too
//! ([`Journal::note_kept`]).

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use super::disk::{self, DiskChange};
use super::record::{Begin, Described, Event, FORMAT, FORMAT_AT, Recorded, head, sum_events};
use super::sums::{Summed, Sums};

/// Zeros behind the last entry, at least while the disk is not full. The tag of an upload takes less.
const KEPT_LEN: usize = 256;

/// The log of one staging file, and what it needs to know to append little.
#[derive(Debug)]
pub(super) struct Journal {
    file: Arc<File>,
    /// How much of the file is right.
    len: u64,
    /// How long the file is.
    room: u64,
    /// What is to be appended with the next entry that must be there.
    queue: Vec<u8>,
    /// See [`Event::Tail`].
    tail: Option<u64>,
    /// Length of the staging file.
    data_len: u64,
    is_stored: bool,
    /// See [`Event::Durable`].
    is_durable: bool,
    /// See [`Event::Touched`].
    is_touched: bool,
    /// Something was appended since.
    has_news: bool,
    described: Described,
    has_warned: bool,
    /// The last of what is queued was written ahead of the rest.
    is_ahead: bool,
    /// How much of the file was brought to the disk before something was changed.
    #[cfg(test)]
    pub(super) synced_len: std::cell::Cell<u64>,
    /// Something is queued that must be there before the staging file grows.
    owes: bool,
}

/// Which start of the machine this is; empty if the kernel does not say.
pub(super) fn boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    })
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Journal {
    /// A new log. Its first entries come with the first change.
    pub(super) fn create(path: &Path, begin: Begin) -> io::Result<Self> {
        disk::before(DiskChange::Create)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let mut queue = head();
        Event::Begin(begin).encode(&mut queue);
        Ok(Self {
            file: Arc::new(file),
            len: 0,
            room: 0,
            queue,
            tail: None,
            data_len: 0,
            is_stored: true,
            is_durable: false,
            is_touched: false,
            has_news: true,
            described: Described::default(),
            has_warned: false,
            is_ahead: false,
            #[cfg(test)]
            synced_len: std::cell::Cell::default(),
            owes: false,
        })
    }

    /// Goes on with a log whose first `len` bytes are whole.
    pub(super) fn resume(file: File, len: u64, data_len: u64, recorded: &Recorded) -> io::Result<Self> {
        // What was torn must not stand behind shorter new entries; the room is kept.
        disk::before(DiskChange::Kept)?;
        let room = file.metadata()?.len().max(len);
        file.write_all_at(&vec![0; usize::try_from(room - len).unwrap_or_default()], len)?;
        // A program that knows no sums must not take them for damage.
        file.write_all_at(&[FORMAT], FORMAT_AT as u64)?;
        let described = Described { attributes: recorded.attributes.clone(), times_set: recorded.times_set };
        let mut journal = Self {
            file: Arc::new(file),
            len,
            room,
            queue: Vec::new(),
            tail: None,
            data_len,
            is_stored: recorded.is_stored,
            is_durable: recorded.is_durable,
            is_touched: recorded.sums.is_touched,
            has_news: true,
            described,
            has_warned: false,
            is_ahead: false,
            owes: false,
            #[cfg(test)]
            synced_len: std::cell::Cell::default(),
        };
        // Where an open tail ends must not depend on what is appended to the staging file now.
        let mut events = vec![Event::TailEnd(data_len)];
        if recorded.sums.is_less {
            events.push(Event::Unsummed(0..u64::MAX));
            events.extend(sum_events(&recorded.sums.iter().collect::<Vec<_>>()));
        }
        if let Err(error) = journal.append(&events) {
            // A full disk must not keep the file from being read and stored.
            tracing::warn!(%error, "the record of a staged file cannot be gone on with yet");
            events.iter().for_each(|event| event.encode(&mut journal.queue));
            journal.owes = true;
        }
        Ok(journal)
    }

    fn flush(&mut self) -> io::Result<()> {
        disk::before(DiskChange::Record)?;
        let queued = self.queue.len();
        if self.len + (queued + KEPT_LEN) as u64 > self.room {
            // More than is needed, so that not each entry makes the file longer.
            self.queue.resize(queued + 2 * KEPT_LEN, 0);
        }
        let written = self.put(0..self.queue.len());
        self.queue.truncate(queued);
        written?;
        self.len += queued as u64;
        self.has_news |= queued > 0;
        self.queue.clear();
        self.owes = false;
        super::crash::point();
        Ok(())
    }

    /// Writes some of the queue behind the last entry.
    fn put(&mut self, queued: Range<usize>) -> io::Result<()> {
        let bytes = &self.queue[queued];
        if let Err(error) = self.file.write_all_at(bytes, self.len) {
            // Some may be there. No shorter entry must stand before the rest of it.
            let zeros = vec![0; bytes.len()];
            let room = usize::try_from(self.room - self.len).unwrap_or(usize::MAX);
            self.file.write_all_at(&zeros[..room.min(zeros.len())], self.len)?;
            self.file.set_len(self.room)?;
            return Err(error);
        }
        self.room = self.room.max(self.len + bytes.len() as u64);
        Ok(())
    }

    /// Appends entries, or nothing.
    fn append(&mut self, events: &[Event]) -> io::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let before = self.queue.len();
        events.iter().for_each(|event| event.encode(&mut self.queue));
        self.flush().inspect_err(|_| self.queue.truncate(before))
    }

    /// Appends entries; those that cannot be written now are written before the next.
    pub(super) fn note(&mut self, events: &[Event]) {
        events.iter().for_each(|event| event.encode(&mut self.queue));
        if let Err(error) = self.flush()
            && !std::mem::replace(&mut self.has_warned, true)
        {
            tracing::warn!(%error, "the record of a staged file cannot be written; it will be tried again");
        }
    }

    /// Appends an entry; where the disk is full, also ahead of those that wait for room. It must be true without them, and
    /// is written once more behind them.
    pub(super) fn note_kept(&mut self, event: &Event) -> io::Result<()> {
        let mut frame = Vec::new();
        event.encode(&mut frame);
        let is_queued = self.queue.ends_with(&frame);
        if !is_queued {
            self.queue.extend(&frame);
        }
        let Err(error) = self.flush() else { return Ok(()) };
        if is_queued && self.is_ahead {
            return Ok(());
        }
        let queued = self.queue.len() - frame.len();
        self.is_ahead = false;
        if self.len + frame.len() as u64 > self.room {
            return Err(error);
        }
        disk::before(DiskChange::Kept)?;
        self.put(queued..self.queue.len())?;
        self.len += frame.len() as u64;
        (self.has_news, self.is_ahead) = (true, true);
        super::crash::point();
        Ok(())
    }

    /// The same for what is worth a try.
    pub(super) fn note_surely(&mut self, event: &Event) {
        if let Err(error) = self.note_kept(event) {
            tracing::warn!(%error, "the record of a staged file cannot be written; it will be tried again");
        }
    }

    /// What the object shall carry. Not written before there is something to store.
    pub(super) fn describe(&mut self, described: Described) -> io::Result<()> {
        if described == self.described {
            return Ok(());
        }
        let event = Event::Described(described.clone());
        match self.is_stored {
            true => event.encode(&mut self.queue),
            false => self.append(&[event])?,
        }
        self.described = described;
        Ok(())
    }

    /// The file belongs to this inode. Not written before there is something to store.
    pub(super) fn belongs_to(&mut self, ino: u64) {
        Event::Node(ino).encode(&mut self.queue);
    }

    /// The object that the file replaces has this tag.
    pub(super) fn replaces(&mut self, etag: Option<String>) {
        Event::Replaces(etag).encode(&mut self.queue);
        if !self.is_stored {
            self.note(&[]);
        }
    }

    /// Length of the staging file.
    pub(super) fn data_len(&self) -> u64 {
        self.data_len
    }

    fn tail_end(&self) -> Option<Event> {
        self.tail.map(|_| Event::TailEnd(self.data_len))
    }

    /// `range` is about to be written to the staging file; `is_change` unless it only is the base's.
    pub(super) fn before_write(&mut self, range: &Range<u64>, is_change: bool) -> io::Result<()> {
        if self.owes {
            self.flush()?;
        }
        let breaks_tail = range.end > self.data_len && (!is_change || range.start > self.data_len);
        if breaks_tail && let Some(end) = self.tail_end() {
            self.append(&[end])?;
            self.tail = None;
        }
        Ok(())
    }

    /// Bytes that are here are about to be replaced. Not said afterwards: if that failed the new ones would be here, and whoever
    /// finds the file would take what the bucket has for the whole of it.
    pub(super) fn before_replacement(&mut self) -> io::Result<()> {
        if self.is_stored {
            self.append(&[Event::Changed])?;
            self.is_stored = false;
        }
        Ok(())
    }

    /// `range` was written to the staging file by a program; `is_new` if some of it was not there before.
    pub(super) fn after_write(&mut self, range: &Range<u64>, is_new: bool) -> io::Result<()> {
        let mut tail = self.tail;
        let grows = range.end > self.data_len;
        let mut events = Vec::new();
        if grows && tail.is_none_or(|start| start > range.start) {
            tail = Some(range.start);
            events.push(Event::Tail(range.start));
        } else if !grows && is_new {
            events.push(Event::Write(range.clone()));
        } else if self.is_stored {
            events.push(Event::Changed);
        }
        if self.described.times_set {
            events.push(Event::TimesFree);
        }
        self.append(&events)?;
        self.tail = tail;
        self.data_len = self.data_len.max(range.end);
        self.is_stored = false;
        self.described.times_set = false;
        Ok(())
    }

    /// Bytes of the base, or zeros that hide it, were written to the staging file.
    pub(super) fn after_fetch(&mut self, range: &Range<u64>) -> io::Result<()> {
        self.append(&[Event::Fetched(range.clone())])?;
        self.data_len = self.data_len.max(range.end);
        Ok(())
    }

    /// A write failed, after which the staging file may be longer than it was.
    pub(super) fn after_failure(&mut self, data_len_now: u64) {
        if data_len_now != self.data_len
            && let Some(end) = self.tail_end()
        {
            self.tail = None;
            self.note(&[end]);
        }
        self.data_len = data_len_now;
    }

    /// Something else changes, which must be written before the staging file changes. `None`: nothing but the times.
    pub(super) fn change(&mut self, event: Option<Event>) -> io::Result<()> {
        let mut events: Vec<Event> = self.tail_end().filter(|_| event.is_some()).into_iter().collect();
        let keeps_tail = events.is_empty();
        events.extend(event.or(self.is_stored.then_some(Event::Changed)));
        if self.described.times_set {
            events.push(Event::TimesFree);
        }
        self.append(&events)?;
        self.tail = self.tail.filter(|_| keeps_tail);
        self.is_stored = false;
        self.described.times_set = false;
        Ok(())
    }

    /// Bytes of `blocks`, whose sums the record has, are about to change.
    pub(super) fn void_sums(&mut self, blocks: &Range<u64>) -> io::Result<()> {
        let touches = self.is_durable && !self.is_touched;
        let mut events = vec![Event::Unsummed(blocks.clone())];
        if touches {
            events.push(Event::Touched);
        }
        self.append(&events)?;
        if touches {
            // Once until the file is safe again: a machine that stops must not leave new bytes with their old sums.
            self.sync_if_durable()?;
            self.is_touched = true;
        }
        Ok(())
    }

    /// The file is at rest: says what the record does not say yet of its sums.
    pub(super) fn note_sums(&mut self, sums: &mut Sums) {
        let news: Vec<Summed> = sums.take_unrecorded();
        if !news.is_empty() {
            self.note(&sum_events(&news));
        }
    }

    /// Bytes leave the staging file, which stays as long as it is.
    pub(super) fn let_go(&mut self, event: Event) -> io::Result<()> {
        let mut events: Vec<Event> = self.tail_end().into_iter().collect();
        events.push(event);
        self.append(&events)?;
        self.tail = None;
        Ok(())
    }

    /// The staging file was cut to, or extended to, `len`.
    pub(super) fn resized(&mut self, len: u64) {
        self.data_len = len;
    }

    /// The bucket has everything.
    pub(super) fn stored(&mut self) {
        self.note(&[Event::Stored]);
        self.is_stored = true;
        self.is_durable = false;
    }

    /// Appends what could not be written before.
    pub(super) fn catch_up(&mut self) -> io::Result<()> {
        // Of a file that nobody has changed nothing need be said.
        if self.len == 0 || self.queue.is_empty() { Ok(()) } else { self.flush() }
    }

    /// Appends that the file is safe, for which the staging file must be on the disk already. Then the log must follow it
    /// there. `None`: it is safe as it is.
    pub(super) fn durable(&mut self) -> io::Result<Option<Arc<File>>> {
        if self.is_durable && !self.has_news && self.queue.is_empty() {
            return Ok(None);
        }
        self.append(&[Event::Durable])?;
        self.is_durable = true;
        self.is_touched = false;
        self.has_news = false;
        Ok(Some(Arc::clone(&self.file)))
    }

    /// The log could not be brought to the disk.
    pub(super) fn not_durable(&mut self) {
        self.has_news = true;
    }

    /// The file is kept as it is, on the disk, with `data`.
    pub(super) fn kept(&mut self, reason: &str, data: &File) -> io::Result<()> {
        disk::before(DiskChange::Sync)?;
        data.sync_all()?;
        self.append(&[Event::Kept(reason.to_owned())])?;
        self.is_touched = false;
        self.sync()
    }

    /// If somebody was told that the file is safe: brings the log to the disk.
    pub(super) fn sync_if_durable(&self) -> io::Result<()> {
        if !self.is_durable {
            return Ok(());
        }
        #[cfg(test)]
        self.synced_len.set(self.len);
        disk::before(DiskChange::Sync)?;
        self.file.sync_data()
    }

    /// To the disk.
    fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        disk::before(DiskChange::Sync)?;
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::set_hook;
    use super::super::record::{self, Origin};
    use super::*;

    fn begin() -> Begin {
        Begin {
            boot: boot().to_owned(),
            created: 0,
            origin: Origin::default(),
            key: "k".to_owned(),
            size: 0,
            base: None,
            replaces: None,
            part_len: 1,
        }
    }

    #[test]
    fn which_tag_an_upload_will_have_is_noted_on_a_full_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        let mut journal = Journal::create(&path, begin()).unwrap();
        journal.change(None).unwrap();
        set_hook(Some(Box::new(|change| match change {
            DiskChange::Record => Err(rustix::io::Errno::NOSPC.into()),
            _ => Ok(std::time::Duration::ZERO),
        })));
        journal.belongs_to(7);
        assert!(journal.change(Some(Event::Cut(0))).is_err());
        let tag = |n: usize| format!("{n:032x}-10000");
        for n in [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2] {
            journal.note_kept(&Event::Completing(tag(n))).unwrap();
        }
        let read = || record::read(&std::fs::read(&path).unwrap(), 0).unwrap().0;
        let noted = |n| Some(sandpail_store::ETag::new(&tag(n)));
        assert_eq!((read().completing, read().node), (noted(2), None), "what can wait does");
        // It comes to an end.
        assert!((3..20).any(|n| journal.note_kept(&Event::Completing(tag(n))).is_err()));
        assert!(std::fs::metadata(&path).unwrap().len() < 2 * KEPT_LEN as u64 + 400);
        set_hook(None);
        journal.note_kept(&Event::Completing(tag(20))).unwrap();
        assert_eq!((read().completing, read().node), (noted(20), Some(7)));
        assert_eq!(record::entries_in(&path).len() as u64, journal.len);
    }
}
