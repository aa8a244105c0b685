//! A small file system that is served by rings.
//!
//! The kernel has them switched off at first. Root may switch them on: each test does, and puts back what was when the last
//! has ended. Where that cannot be it says that it is skipped.

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use common::{Directory, Mount, mount};
use rustix::mount::{MoveMountFlags, UnmountFlags};
use sandpail_fuse::{
    Allowed, Attr, Device, Entry, Errno, Filesystem, FopenFlags, Handle, InitFlags, Ino, Make, Placement, Read, Rename,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, ReplyXattr, Request, Running, Session, Setattr, Settings, Setxattr, Time, Transport, WhyDevice, Wishes,
    Write, invalidate_entry, invalidate_inode, is_alive,
};

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// The switch as a test wants it, and as it was when that is over. One test at a time has it: it is the machine's.
struct Switch {
    before: String,
    /// Its lock.
    _turn: File,
}

impl Switch {
    /// `None`, which is said, where rings cannot be.
    fn set(to: &str) -> Option<Self> {
        let skip = |why: &str| {
            eprintln!("SKIPPED: {why}");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skip("only root can mount here");
        }
        // All who do the same on this machine use the device.
        let turn = File::open("/dev/fuse").unwrap();
        rustix::fs::flock(&turn, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let Ok(before) = std::fs::read_to_string(SWITCH) else {
            return skip("this kernel has no FUSE over io_uring (Linux 6.14)");
        };
        if before.trim() != to && std::fs::write(SWITCH, to).is_err() {
            return skip("FUSE over io_uring cannot be switched here");
        }
        Some(Self { before, _turn: turn })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        std::fs::write(SWITCH, self.before.trim()).unwrap();
    }
}

#[derive(Debug, Default)]
struct State {
    /// Inodes are counted from 2.
    files: Vec<(String, Vec<u8>)>,
    values: HashMap<String, Vec<u8>>,
    forgotten: u64,
}

impl State {
    fn bytes(&self, ino: Ino, read: &Read) -> Vec<u8> {
        let bytes = &self.files[index(ino)].1;
        let from = usize::try_from(read.offset).unwrap().min(bytes.len());
        let end = (from + usize::try_from(read.len).unwrap()).min(bytes.len());
        bytes[from..end].to_vec()
    }
}

/// What was asked for, and waits to be answered by whoever has the other end.
enum Waiting {
    Read(Read, Ino, ReplyData),
    Written(u32, ReplyWrite),
}

/// One directory. Files whose names begin with `slow` are read, and written to, with the help of others.
#[derive(Clone)]
struct Memory {
    state: Arc<Mutex<State>>,
    slow: Sender<Waiting>,
}

impl Memory {
    fn new(files: &[(&str, &[u8])]) -> (Self, Receiver<Waiting>) {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let (slow, waiting) = channel();
        (Self { state: Arc::new(Mutex::new(State { files, ..State::default() })), slow }, waiting)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn entry(&self, ino: Ino) -> Option<Entry> {
        let (mode, size) = match ino {
            Ino::ROOT => (0o040_755, 0),
            Ino(number) => (0o100_644, self.state().files.get(usize::try_from(number).ok()?.checked_sub(2)?)?.1.len()),
        };
        let time = Time { secs: 1_000_000_000, nanos: 5 };
        let size = u64::try_from(size).ok()?;
        let (blocks, links, uid, gid, device, block_len) = (size.div_ceil(512), 1, 0, 0, 0, 4096);
        let attr =
            Attr { ino, size, blocks, atime: time, mtime: time, ctime: time, mode, links, uid, gid, device, block_len };
        Some(Entry { attr, generation: 0, ttl: Duration::ZERO })
    }

    fn find(&self, name: &[u8]) -> Option<Ino> {
        let at = self.state().files.iter().position(|(known, _)| known.as_bytes() == name)?;
        Some(Ino(u64::try_from(at).ok()? + 2))
    }

    fn is_slow(&self, ino: Ino) -> bool {
        self.state().files[index(ino)].0.starts_with("slow")
    }
}

fn index(ino: Ino) -> usize {
    usize::try_from(ino.0).unwrap() - 2
}

impl Filesystem for Memory {
    fn lookup(&self, _request: &Request, name: &[u8], reply: ReplyEntry) {
        match self.find(name).and_then(|ino| self.entry(ino)) {
            Some(entry) => reply.entry(entry),
            None => reply.error(Errno::NOENT),
        }
    }

    fn forget(&self, _ino: Ino, count: u64) {
        self.state().forgotten += count;
    }

    fn getattr(&self, request: &Request, _handle: Option<Handle>, reply: ReplyAttr) {
        match self.entry(request.ino()) {
            Some(entry) => reply.attr(entry.ttl, entry.attr),
            None => reply.error(Errno::STALE),
        }
    }

    fn setattr(&self, request: &Request, set: Setattr, reply: ReplyAttr) {
        if let Some(size) = set.size {
            self.state().files[index(request.ino())].1.resize(usize::try_from(size).unwrap(), 0);
        }
        self.getattr(request, None, reply);
    }

    fn create(&self, _request: &Request, make: Make<'_>, _flags: u32, reply: ReplyCreate) {
        let name = String::from_utf8(make.name.to_vec()).unwrap();
        let ino = {
            let mut state = self.state();
            state.files.push((name, vec![]));
            Ino(u64::try_from(state.files.len()).unwrap() + 1)
        };
        reply.created(self.entry(ino).unwrap(), Handle(ino.0), FopenFlags::default());
    }

    fn rename(&self, _request: &Request, rename: Rename<'_>, reply: ReplyEmpty) {
        let Some(ino) = self.find(rename.name) else { return reply.error(Errno::NOENT) };
        self.state().files[index(ino)].0 = String::from_utf8(rename.new_name.to_vec()).unwrap();
        reply.ok();
    }

    fn symlink(&self, _request: &Request, name: &[u8], target: &[u8], reply: ReplyEntry) {
        // What came is told by a file.
        self.state().files.push(("symlink".to_owned(), [name, b" ", target].concat()));
        reply.error(Errno::PERM);
    }

    fn unlink(&self, _request: &Request, _name: &[u8], reply: ReplyEmpty) {
        // Nobody answers.
        drop(reply);
    }

    fn open(&self, request: &Request, _flags: u32, reply: ReplyOpen) {
        let direct_io = self.is_slow(request.ino());
        reply.opened(Handle(request.ino().0), FopenFlags { direct_io, ..FopenFlags::default() });
    }

    fn read(&self, request: &Request, read: Read, reply: ReplyData) {
        if self.is_slow(request.ino()) {
            let _ = self.slow.send(Waiting::Read(read, request.ino(), reply));
        } else {
            // In pieces, some of them empty.
            let bytes = self.state().bytes(request.ino(), &read);
            let mut pieces: Vec<&[u8]> = bytes.chunks(10_000).collect();
            pieces.insert(pieces.len() / 2, &[]);
            reply.chain(&pieces);
        }
    }

    fn write(&self, request: &Request, write: Write<'_>, reply: ReplyWrite) {
        let len = u32::try_from(write.data.len()).unwrap();
        let is_slow = self.is_slow(request.ino());
        let reply = if is_slow {
            // It may be answered before its data was read.
            let _ = self.slow.send(Waiting::Written(len, reply));
            std::thread::yield_now();
            None
        } else {
            Some(reply)
        };
        let bytes = &mut self.state().files[index(request.ino())].1;
        let from = usize::try_from(write.offset).unwrap();
        bytes.resize(bytes.len().max(from + write.data.len()), 0);
        bytes[from..from + write.data.len()].copy_from_slice(write.data);
        if let Some(reply) = reply {
            reply.written(len);
        }
    }

    fn flush(&self, _request: &Request, _handle: Handle, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(&self, _request: &Request, _handle: Handle, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _request: &Request, _flags: u32, reply: ReplyOpen) {
        reply.opened(Handle(1), FopenFlags::default());
    }

    fn readdir(&self, _request: &Request, _read: Read, reply: ReplyDirectory) {
        reply.error(Errno::IO);
    }

    fn readdirplus(&self, _request: &Request, read: Read, mut reply: ReplyDirectoryPlus) {
        let names: Vec<_> = self.state().files.iter().map(|(name, _)| name.clone()).collect();
        for (next, name) in (1u64..).zip(names).skip(usize::try_from(read.offset).unwrap()) {
            if !reply.add(self.entry(Ino(next + 1)).unwrap(), next, name.as_bytes()) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _request: &Request, _handle: Handle, reply: ReplyEmpty) {
        reply.ok();
    }

    fn setxattr(&self, _request: &Request, set: Setxattr<'_>, reply: ReplyEmpty) {
        self.state().values.insert(String::from_utf8(set.name.to_vec()).unwrap(), set.value.to_vec());
        reply.ok();
    }

    fn getxattr(&self, _request: &Request, name: &[u8], len_max: u32, reply: ReplyXattr) {
        let value = self.state().values.get(std::str::from_utf8(name).unwrap()).cloned();
        match value {
            Some(value) if len_max == 0 => reply.len(u32::try_from(value.len()).unwrap()),
            Some(value) => reply.data(&value),
            None => reply.error(Errno::NODATA),
        }
    }

    fn listxattr(&self, _request: &Request, len_max: u32, reply: ReplyXattr) {
        let names: Vec<u8> = self.state().values.keys().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
        if len_max == 0 { reply.len(u32::try_from(names.len()).unwrap()) } else { reply.data(&names) }
    }

    fn removexattr(&self, _request: &Request, name: &[u8], reply: ReplyEmpty) {
        assert_ne!(name, b"user.panic", "as a test wants it");
        match self.state().values.remove(std::str::from_utf8(name).unwrap()) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::NODATA),
        }
    }
}

/// Answers what is slow, in this thread, until the file system is gone.
fn help(state: &Mutex<State>, waiting: Receiver<Waiting>) {
    for asked in waiting {
        match asked {
            Waiting::Read(read, ino, reply) => {
                let bytes = state.lock().unwrap().bytes(ino, &read);
                reply.data(&bytes);
            }
            Waiting::Written(len, reply) => reply.written(len),
        }
    }
}

fn settings() -> Settings {
    let flags = InitFlags::PARALLEL_DIROPS | InitFlags::ASYNC_DIO | InitFlags::DO_READDIRPLUS;
    let wishes = Wishes { flags, max_write: 1 << 20, max_readahead: 1 << 20, max_background: 64, max_stack_depth: 1 };
    let (threads, placement, transport) = (2, Placement::Anywhere, Transport::Ring);
    Settings { wishes, allowed: Allowed::All, threads, placement, transport }
}

/// Served by rings, for as long as the switch is kept. `None` where that cannot be.
fn ring(memory: &Memory) -> Option<(Switch, Mount, Device, Running)> {
    let switch = Switch::set("Y")?;
    let (place, device) = mount()?;
    let session = Session::start(memory.clone(), device.clone(), settings()).unwrap();
    assert_eq!((session.transport(), session.why_device()), (Transport::Ring, None));
    let running = session.spawn().unwrap();
    assert_eq!((running.transport(), running.why_device()), (Transport::Ring, None));
    Some((switch, place, device, running))
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}

#[track_caller]
fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().unwrap().raw_os_error()
}

#[test]
fn what_is_served_is_seen() {
    let whole = bytes((3 << 20) + 5);
    let (memory, _) = Memory::new(&[("small", b"contents"), ("large", &whole), ("empty", b"")]);
    let Some((_switch, place, device, running)) = ring(&memory) else { return };
    assert_eq!(std::fs::metadata(place.path("small")).unwrap().len(), 8);
    assert_eq!(std::fs::read(place.path("small")).unwrap(), b"contents");
    assert_eq!(std::fs::read(place.path("empty")).unwrap(), b"");
    assert!(std::fs::read(place.path("large")).unwrap() == whole);
    let large = File::open(place.path("large")).unwrap();
    let mut got = vec![0; 1 << 20];
    large.read_exact_at(&mut got, 4097).unwrap();
    assert!(got == whole[4097..4097 + got.len()]);
    drop(large);

    for len in [1, 4096, 8 << 10, (8 << 10) + 1, 1 << 20, (2 << 20) + 3] {
        let mut new = File::options().write(true).truncate(true).create(true).open(place.path("new")).unwrap();
        new.write_all(&whole[..len]).unwrap();
        drop(new);
        let at = index(memory.find(b"new").unwrap());
        assert!(memory.state().files[at].1 == whole[..len], "{len} bytes");
    }
    std::fs::rename(place.path("new"), place.path("moved")).unwrap();
    assert!(memory.find(b"new").is_none() && memory.find(b"moved").is_some());
    assert_eq!(errno(std::os::unix::fs::symlink("../target", place.path("link"))), Some(1));
    assert_eq!(std::fs::read(place.path("symlink")).unwrap(), b"link ../target");
    place.end(&device, running);
}

#[test]
fn listings_are_whole() {
    let names: Vec<_> = (0..3000).map(|number| format!("{number:040}")).collect();
    let (memory, _) = Memory::new(&names.iter().map(|name| (name.as_str(), b"12345".as_slice())).collect::<Vec<_>>());
    let Some((_switch, place, device, running)) = ring(&memory) else { return };
    let mut listed = Vec::new();
    for entry in std::fs::read_dir(place.path("")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().len(), 5);
        listed.push(entry.file_name().into_string().unwrap());
    }
    listed.sort();
    assert_eq!(listed, names);
    // Forgets come by the device.
    invalidate_entry(&device, Ino::ROOT, names[7].as_bytes()).unwrap();
    while memory.state().forgotten == 0 {
        std::thread::yield_now();
    }
    place.end(&device, running);
}

#[test]
fn attributes_of_any_length() {
    use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
    let (memory, _) = Memory::new(&[("file", b"")]);
    let Some((_switch, place, device, running)) = ring(&memory) else { return };
    let file = place.path("file");
    let mut got = vec![0; 64 << 10];
    for len in [0, 1, 1000, 60_000] {
        let value = bytes(len);
        setxattr(&file, "user.a", &value, XattrFlags::empty()).unwrap();
        let got_len = getxattr(&file, "user.a", &mut got).unwrap();
        assert!(got[..got_len] == value, "{len} bytes");
    }
    let len = listxattr(&file, &mut got).unwrap();
    assert_eq!(&got[..len], b"user.a\0");
    removexattr(&file, "user.a").unwrap();
    assert_eq!(getxattr(&file, "user.a", &mut got).unwrap_err(), Errno::NODATA);
    place.end(&device, running);
}

#[test]
fn errors_and_silence_are_told() {
    let (memory, _) = Memory::new(&[("file", b"contents")]);
    let Some((_switch, place, device, running)) = ring(&memory) else { return };
    assert_eq!(errno(std::fs::read(place.path("none"))), Some(2));
    assert_eq!(errno(std::fs::create_dir(place.path("other"))), Some(38), "not served");
    assert_eq!(errno(std::fs::remove_file(place.path("file"))), Some(5), "a reply that was dropped");
    assert_eq!(std::fs::read(place.path("file")).unwrap(), b"contents");
    place.end(&device, running);
}

#[test]
fn a_panic_is_told_and_others_are_served() {
    let (memory, _) = Memory::new(&[("file", b"contents")]);
    let Some((_switch, place, _device, running)) = ring(&memory) else { return };
    for _ in 0..5 {
        assert_eq!(rustix::fs::removexattr(place.path("file"), "user.panic"), Err(Errno::IO));
    }
    assert_eq!(std::fs::read(place.path("file")).unwrap(), b"contents");
    drop(place);
    assert!(running.join().unwrap_err().to_string().contains("panicked"));
}

#[test]
fn many_ask_at_once_and_others_answer() {
    let whole = bytes(4 << 20);
    let (memory, waiting) = Memory::new(&[("fast", &whole), ("slow", &whole), ("slow-new", b""), ("slow-small", b"x")]);
    let Some((_switch, place, device, running)) = ring(&memory) else { return };
    let state = Arc::clone(&memory.state);
    let helped = std::thread::spawn(move || help(&state, waiting));
    std::thread::scope(|scope| {
        for client in 0..16u64 {
            let (place, whole) = (&place, &whole);
            scope.spawn(move || {
                let name = if client % 2 == 0 { "fast" } else { "slow" };
                let file = File::open(place.path(name)).unwrap();
                let mut state = client + 1;
                let mut got = vec![0; 1 << 20];
                for round in 0..200 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let at = usize::try_from((state >> 33) % (3 << 20)).unwrap();
                    // Most are small, some as large as can be.
                    let len = if round % 20 == 0 { got.len() } else { 1 + at % 9000 };
                    file.read_exact_at(&mut got[..len], u64::try_from(at).unwrap()).unwrap();
                    assert!(got[..len] == whole[at..at + len], "{len} bytes at {at} of {name}");
                    assert_eq!(std::fs::metadata(place.path("slow-small")).unwrap().len(), 1);
                }
            });
        }
        // Writes that are answered by others, some before their data was read.
        let new = File::options().write(true).open(place.path("slow-new")).unwrap();
        for (number, part) in (0u64..).zip(whole.chunks(1 << 20)) {
            new.write_all_at(part, number << 20).unwrap();
        }
    });
    let at = index(memory.find(b"slow-new").unwrap());
    assert!(memory.state().files[at].1 == whole);
    place.end(&device, running);
    // The file system has gone with its threads, all but the helper's part.
    drop(memory);
    helped.join().unwrap();
}

#[test]
fn cached_pages_are_invalidated_while_others_are_served() {
    let (memory, _) = Memory::new(&[("file", b"before")]);
    let Some((_switch, place, device, running)) = ring(&memory) else { return };
    let mut open = File::open(place.path("file")).unwrap();
    let mut got = String::new();
    open.read_to_string(&mut got).unwrap();
    let ino = memory.find(b"file").unwrap();
    memory.state().files[index(ino)].1 = b"after!".to_vec();
    invalidate_inode(&device, ino, 0, 0).unwrap();
    let mut after = [0; 6];
    open.read_exact_at(&mut after, 0).unwrap();
    assert_eq!((got.as_str(), &after), ("before", b"after!"));
    drop(open);
    place.end(&device, running);
}

/// More than there are entries, so that some have not even left the kernel.
#[test]
fn what_waits_ends_with_the_file_system() {
    let (memory, waiting) = Memory::new(&[("slow", b"contents"), ("file", b"contents")]);
    let Some((_switch, place, device, running)) = ring(&memory) else { return };
    let directory = Directory::new("ring");
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(place.0.as_fd(), "", rustix::fs::CWD, directory.0.as_path(), flags).unwrap();
    let path = directory.0.join("slow");
    let clients: Vec<_> = (0..300)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || File::open(path).and_then(|file| file.read_at(&mut [0; 8], 0)))
        })
        .collect();
    let held: Vec<_> = waiting.iter().take(100).collect();
    rustix::mount::unmount(directory.0.as_path(), UnmountFlags::FORCE | UnmountFlags::DETACH).unwrap();
    for client in clients {
        assert!(client.join().unwrap().is_err());
    }
    running.join().unwrap();
    assert!(!is_alive(&device).unwrap());
    // Nobody waits for these any more, and it does no harm to answer.
    for asked in held {
        if let Waiting::Read(.., reply) = asked {
            reply.data(b"contents");
        }
    }
}

/// What entries take, in KiB: a queue of them has more addresses than anything else in this process.
fn entries_kib() -> u64 {
    const QUEUE_KIB: u64 = 100 << 10;
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let number = |line: &str| line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    let (mut len, mut sum) = (0, 0);
    for line in maps.lines() {
        if line.starts_with("Size:") {
            len = number(line);
        } else if line.starts_with("Rss:") && len > QUEUE_KIB {
            sum += number(line);
        }
    }
    sum
}

#[test]
fn what_many_large_answers_took_is_given_back() {
    const CLIENTS: usize = 48;
    const MOST_KIB: u64 = 10 << 10;
    let whole = bytes(1 << 20);
    let (memory, waiting) = Memory::new(&[("slow", &whole)]);
    let Some((_switch, place, device, running)) = ring(&memory) else { return };
    let ask = || {
        let mut got = vec![0; 1 << 20];
        File::open(place.path("slow")).unwrap().read_exact_at(&mut got, 0).unwrap();
        assert!(got == whole);
    };
    let answer = |asked| {
        let Waiting::Read(read, ino, reply) = asked else { panic!("no read") };
        let bytes = memory.state().bytes(ino, &read);
        reply.data(&bytes);
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        // All of them have an entry at once.
        let held: Vec<_> = waiting.iter().take(CLIENTS).collect();
        held.into_iter().for_each(answer);
        // The kernel asks in two parts if the memory does not begin with a page.
        while clients.iter().any(|client| !client.is_finished()) {
            waiting.try_iter().for_each(answer);
        }
    });
    assert!(entries_kib() > MOST_KIB);
    while entries_kib() > MOST_KIB {
        std::thread::sleep(Duration::from_millis(20));
    }
    // They are as good as new.
    std::thread::scope(|scope| {
        let client = scope.spawn(ask);
        while !client.is_finished() {
            waiting.try_iter().for_each(answer);
        }
    });
    place.end(&device, running);
}

#[test]
fn without_rings_the_device_serves() {
    let (memory, _) = Memory::new(&[("file", b"contents")]);
    let Some(_switch) = Switch::set("N") else { return };
    let Some((place, device)) = mount() else { return };
    let session = Session::start(memory.clone(), device.clone(), settings()).unwrap();
    assert_eq!((session.transport(), session.why_device()), (Transport::Device, Some(WhyDevice::SwitchedOff)));
    let running = session.spawn().unwrap();
    assert_eq!((running.transport(), running.why_device()), (Transport::Device, Some(WhyDevice::SwitchedOff)));
    assert_eq!(std::fs::read(place.path("file")).unwrap(), b"contents");
    place.end(&device, running);
}
