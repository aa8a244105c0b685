//! Answers: one type for each form, so that an operation can only be answered in its own.
//!
//! A reply may go to any thread. One that is dropped unsent says `EIO`: whoever waits is never left waiting.

use std::time::Duration;

use zerocopy::{Immutable, IntoBytes};

use crate::abi;
use crate::message::send;
use crate::ring::Ticket;
use crate::{Attr, BackingId, Device, Entry, Errno, Handle, Ino, Statfs};

/// How the kernel treats what was opened: `FOPEN_…`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FopenFlags {
    /// Reads and writes go past the page cache.
    pub direct_io: bool,
    /// What is cached of the file holds.
    pub keep_cache: bool,
    /// Closing is not told: there is nothing to flush.
    pub no_flush: bool,
}

impl FopenFlags {
    fn bits(self) -> u32 {
        u32::from(self.direct_io) | u32::from(self.keep_cache) << 1 | u32::from(self.no_flush) << 5
    }
}

/// The right, and the duty, to answer one request.
#[derive(Debug)]
pub(crate) struct Due {
    device: Device,
    unique: u64,
    way: Way,
}

/// Where the answer goes.
#[derive(Debug)]
enum Way {
    /// It is written to the device.
    Device,
    /// Back into the entry of a ring that the request came by.
    Ring(Ticket),
    /// It has gone.
    Sent,
}

impl Due {
    pub(crate) fn new(device: &Device, unique: u64) -> Self {
        Self { device: device.clone(), unique, way: Way::Device }
    }

    pub(crate) fn by_ring(device: &Device, unique: u64, ticket: Ticket) -> Self {
        Self { device: device.clone(), unique, way: Way::Ring(ticket) }
    }

    /// `error` is 0 or a negative errno.
    fn send<B: AsRef<[u8]>>(&mut self, error: i32, body: &[B]) {
        match std::mem::replace(&mut self.way, Way::Sent) {
            Way::Device => note(send(&self.device, error, self.unique, body), self.unique),
            Way::Ring(ticket) => ticket.answer(error, self.unique, body),
            Way::Sent => {}
        }
    }

    fn pieces<B: AsRef<[u8]>>(mut self, body: &[B]) {
        self.send(0, body);
    }

    fn body(self, body: &(impl IntoBytes + Immutable)) {
        self.pieces(&[body.as_bytes()]);
    }

    pub(crate) fn done(self) {
        self.pieces::<&[u8]>(&[]);
    }

    pub(crate) fn error(mut self, error: Errno) {
        self.fail(error);
    }

    fn fail(&mut self, error: Errno) {
        self.send::<&[u8]>(-error.raw_os_error(), &[]);
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        if !matches!(self.way, Way::Sent) {
            tracing::warn!(request = self.unique, "a request was dropped without an answer");
            self.fail(Errno::IO);
        }
    }
}

fn note(sent: rustix::io::Result<()>, request: u64) {
    match sent {
        Ok(()) => {}
        // The caller was killed meanwhile, or the file system is gone.
        Err(error @ (Errno::NOENT | Errno::PERM | Errno::NODEV)) => tracing::debug!(request, %error, "nobody waits"),
        Err(error) => tracing::warn!(request, %error, "the kernel did not take an answer"),
    }
}

macro_rules! replies {
    ($($(#[$about:meta])* $name:ident)*) => {$(
        $(#[$about])*
        #[derive(Debug)]
        pub struct $name(Due);

        impl $name {
            /// It failed.
            pub fn error(self, error: Errno) {
                self.0.error(error);
            }
        }

        impl From<Due> for $name {
            fn from(due: Due) -> Self {
                Self(due)
            }
        }
    )*};
}

replies! {
    /// Of what only succeeds or fails.
    ReplyEmpty
    /// Of a lookup, and of what makes a name.
    ReplyEntry
    /// Of what shows attributes.
    ReplyAttr
    /// Of what gives bytes.
    ReplyData
    /// Of what opens.
    ReplyOpen
    /// Of what makes a file and opens it.
    ReplyCreate
    /// Of what takes bytes.
    ReplyWrite
    /// Of `statfs`.
    ReplyStatfs
    /// Of what gives extended attributes.
    ReplyXattr
    /// Of `lseek`.
    ReplyLseek
}

impl ReplyEmpty {
    /// It is done.
    pub fn ok(self) {
        self.0.done();
    }
}

impl ReplyEntry {
    /// This was found or made. The kernel counts one lookup of its inode.
    pub fn entry(self, entry: Entry) {
        self.0.body(&entry.to_abi());
    }
}

impl ReplyAttr {
    /// These, and how long the kernel may believe them.
    pub fn attr(self, ttl: Duration, attr: Attr) {
        self.0.body(&abi::AttrOut {
            attr_valid: ttl.as_secs(),
            attr_valid_nsec: ttl.subsec_nanos(),
            dummy: 0,
            attr: attr.to_abi(),
        });
    }
}

impl ReplyData {
    /// These; not more than were asked for.
    pub fn data(self, data: &[u8]) {
        self.0.pieces(&[data]);
    }

    /// The same, in pieces, which the kernel takes from where they are; a ring has them copied by this thread.
    pub fn chain<B: AsRef<[u8]>>(self, chain: &[B]) {
        self.0.pieces(chain);
    }
}

impl ReplyOpen {
    /// It is open.
    pub fn opened(self, handle: Handle, flags: FopenFlags) {
        self.0.body(&open_out(handle, flags, None));
    }

    /// It is open, and the kernel reads and writes the backing file.
    pub fn opened_passthrough(self, handle: Handle, flags: FopenFlags, backing: &BackingId) {
        self.0.body(&open_out(handle, flags, Some(backing)));
    }

    /// For a backing file.
    pub fn device(&self) -> &Device {
        &self.0.device
    }
}

impl ReplyCreate {
    /// It was made, and is open. The kernel counts one lookup of its inode.
    pub fn created(self, entry: Entry, handle: Handle, flags: FopenFlags) {
        self.0.body(&abi::CreateOut { entry: entry.to_abi(), open: open_out(handle, flags, None) });
    }

    /// The same, and the kernel reads and writes the backing file.
    pub fn created_passthrough(self, entry: Entry, handle: Handle, flags: FopenFlags, backing: &BackingId) {
        self.0.body(&abi::CreateOut { entry: entry.to_abi(), open: open_out(handle, flags, Some(backing)) });
    }

    /// For a backing file.
    pub fn device(&self) -> &Device {
        &self.0.device
    }
}

fn open_out(handle: Handle, flags: FopenFlags, backing: Option<&BackingId>) -> abi::OpenOut {
    // The kernel refuses, with `EIO` to the caller, an open that names a backing file and speaks of cached pages.
    let open_flags = match backing {
        Some(_) => FopenFlags { keep_cache: false, ..flags }.bits() | abi::FOPEN_PASSTHROUGH,
        None => flags.bits(),
    };
    abi::OpenOut { fh: handle.0, open_flags, backing_id: backing.map_or(0, BackingId::as_raw) }
}

impl ReplyWrite {
    /// So many bytes were taken.
    pub fn written(self, len: u32) {
        self.0.body(&abi::WriteOut { size: len, padding: 0 });
    }
}

impl ReplyStatfs {
    /// This.
    pub fn statfs(self, statfs: Statfs) {
        self.0.body(&statfs.to_abi());
    }
}

impl ReplyXattr {
    /// How long it is, in bytes: only that was asked for.
    pub fn len(self, len: u32) {
        self.0.body(&abi::GetxattrOut { size: len, padding: 0 });
    }

    /// This.
    pub fn data(self, data: &[u8]) {
        self.0.pieces(&[data]);
    }
}

impl ReplyLseek {
    /// There, in bytes.
    pub fn offset(self, offset: u64) {
        self.0.body(&abi::LseekOut { offset });
    }
}

/// Of `readdir`: entries are added until it is full.
#[derive(Debug)]
pub struct ReplyDirectory {
    due: Due,
    list: List,
}

/// Of `readdirplus`: the same with attributes. The kernel counts one lookup of each inode that is added.
#[derive(Debug)]
pub struct ReplyDirectoryPlus {
    due: Due,
    list: List,
}

impl ReplyDirectory {
    pub(crate) fn new(due: Due, len_max: u32) -> Self {
        Self { due, list: List::new(len_max) }
    }

    /// Adds an entry: its inode, where the listing goes on after it, the kind of its `st_mode`, its name. `false` if it does
    /// not fit any more.
    #[must_use]
    pub fn add(&mut self, ino: Ino, next: u64, mode: u32, name: &[u8]) -> bool {
        dirent(ino, next, mode, name).is_some_and(|dirent| self.list.push(dirent.as_bytes(), name))
    }

    /// These.
    pub fn ok(self) {
        self.due.pieces(&[self.list.bytes]);
    }

    /// It failed.
    pub fn error(self, error: Errno) {
        self.due.error(error);
    }
}

impl ReplyDirectoryPlus {
    pub(crate) fn new(due: Due, len_max: u32) -> Self {
        Self { due, list: List::new(len_max) }
    }

    /// Adds an entry, and where the listing goes on after it. `false` if it does not fit any more.
    #[must_use]
    pub fn add(&mut self, entry: Entry, next: u64, name: &[u8]) -> bool {
        let dirent = dirent(entry.attr.ino, next, entry.attr.mode, name);
        let plus = dirent.map(|dirent| abi::DirentPlus { entry: entry.to_abi(), dirent });
        plus.is_some_and(|plus| self.list.push(plus.as_bytes(), name))
    }

    /// Adds an entry as [`ReplyDirectory::add`] does: it is not looked up, and no lookup is counted. `false` if it does not fit any
    /// more.
    #[must_use]
    pub fn add_name(&mut self, ino: Ino, next: u64, mode: u32, name: &[u8]) -> bool {
        let dirent = dirent(ino, next, mode, name);
        // Node 0 is none.
        let plus = dirent.map(|dirent| abi::DirentPlus { entry: abi::EntryOut::default(), dirent });
        plus.is_some_and(|plus| self.list.push(plus.as_bytes(), name))
    }

    /// These.
    pub fn ok(self) {
        self.due.pieces(&[self.list.bytes]);
    }

    /// It failed.
    pub fn error(self, error: Errno) {
        self.due.error(error);
    }
}

/// The kind stands in an entry without the permissions below it.
const KIND_SHIFT: u32 = 12;

fn dirent(ino: Ino, next: u64, mode: u32, name: &[u8]) -> Option<abi::Dirent> {
    let name_len = u32::try_from(name.len()).ok()?;
    Some(abi::Dirent { ino: ino.0, next, name_len, kind: mode >> KIND_SHIFT })
}

/// Entries, each filled up to eight bytes.
#[derive(Debug)]
struct List {
    bytes: Vec<u8>,
    len_max: usize,
}

impl List {
    fn new(len_max: u32) -> Self {
        Self { bytes: Vec::new(), len_max: usize::try_from(len_max).unwrap_or(usize::MAX) }
    }

    fn push(&mut self, head: &[u8], name: &[u8]) -> bool {
        let end = (self.bytes.len() + head.len() + name.len()).next_multiple_of(8);
        if end > self.len_max {
            return false;
        }
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
