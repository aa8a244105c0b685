//! A small file system on a real device. Only root can mount, so others skip these; the mounts are attached nowhere but at a
//! descriptor, and go with it.

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandpail_fuse::{
    Allowed, Attr, BackingId, Device, Entry, Errno, Filesystem, FopenFlags, Handle, InitFlags, Ino, Placement, RESENT,
    Read, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request,
    Running, Session, Settings, Setxattr, Time, Transport, Wishes, Write, is_alive,
};

use common::{Directory, mount};

const TTL: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
struct Node {
    /// In pieces, as they are given to the kernel.
    pieces: Vec<Vec<u8>>,
    /// The kernel reads this in its place.
    backing: Option<Arc<BackingId>>,
}

/// One directory of files, whose inodes are counted from 2.
#[derive(Debug, Default)]
struct State {
    names: Vec<(String, Node)>,
    /// Operations by name, and what was sent again.
    counts: HashMap<&'static str, usize>,
    value: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<State>>);

impl Memory {
    fn with(names: &[(&str, Vec<Vec<u8>>)]) -> Self {
        let memory = Self::default();
        let node = |pieces: &Vec<Vec<u8>>| Node { pieces: pieces.clone(), backing: None };
        memory.state().names = names.iter().map(|(name, pieces)| ((*name).to_owned(), node(pieces))).collect();
        memory
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn count(&self, what: &'static str) -> usize {
        self.state().counts.get(what).copied().unwrap_or_default()
    }

    fn note(&self, what: &'static str, request: &Request) {
        let mut state = self.state();
        *state.counts.entry(what).or_default() += 1;
        *state.counts.entry("again").or_default() += usize::from(request.unique() & RESENT != 0);
    }

    fn attr(&self, ino: Ino) -> Option<Attr> {
        let state = self.state();
        let (mode, size) = match ino {
            Ino::ROOT => (0o040_755, 0),
            Ino(number) => {
                let (_, node) = state.names.get(usize::try_from(number).ok()?.checked_sub(2)?)?;
                (0o100_644, node.pieces.iter().map(Vec::len).sum())
            }
        };
        let time = Time { secs: 1_000_000_000, nanos: 5 };
        Some(Attr {
            ino,
            size: u64::try_from(size).ok()?,
            blocks: 1,
            atime: time,
            mtime: time,
            ctime: time,
            mode,
            links: 1,
            uid: 0,
            gid: 0,
            device: 0,
            block_len: 4096,
        })
    }

    fn index(request: &Request) -> usize {
        usize::try_from(request.ino().0).unwrap() - 2
    }
}

impl Filesystem for Memory {
    fn lookup(&self, request: &Request, name: &[u8], reply: ReplyEntry) {
        self.note("lookup", request);
        let found = self.state().names.iter().position(|(known, _)| known.as_bytes() == name);
        let attr = found.and_then(|at| self.attr(Ino(u64::try_from(at).unwrap() + 2)));
        match attr {
            Some(attr) => reply.entry(Entry { attr, generation: 0, ttl: TTL }),
            None => reply.error(Errno::NOENT),
        }
    }

    fn getattr(&self, request: &Request, _handle: Option<Handle>, reply: ReplyAttr) {
        self.note("getattr", request);
        match self.attr(request.ino()) {
            Some(attr) => reply.attr(TTL, attr),
            None => reply.error(Errno::STALE),
        }
    }

    fn open(&self, request: &Request, _flags: u32, reply: ReplyOpen) {
        self.note("open", request);
        let backing = self.state().names[Self::index(request)].1.backing.clone();
        match backing {
            Some(backing) => {
                let flags = FopenFlags { keep_cache: true, ..FopenFlags::default() };
                reply.opened_passthrough(Handle(1), flags, &backing);
            }
            None => reply.opened(Handle(1), FopenFlags::default()),
        }
    }

    fn read(&self, request: &Request, read: Read, reply: ReplyData) {
        self.note("read", request);
        let state = self.state();
        let (mut skip, mut left) = (usize::try_from(read.offset).unwrap(), usize::try_from(read.len).unwrap());
        let mut chain = Vec::new();
        for piece in &state.names[Self::index(request)].1.pieces {
            let from = skip.min(piece.len());
            let part = &piece[from..(from + left).min(piece.len())];
            (skip, left) = (skip - from, left - part.len());
            chain.push(part);
        }
        reply.chain(&chain);
    }

    fn write(&self, request: &Request, write: Write<'_>, reply: ReplyWrite) {
        self.note("write", request);
        let mut state = self.state();
        let pieces = &mut state.names[Self::index(request)].1.pieces;
        let len: usize = pieces.iter().map(Vec::len).sum();
        if write.offset != u64::try_from(len).unwrap() {
            return reply.error(Errno::INVAL);
        }
        pieces.push(write.data.to_vec());
        reply.written(u32::try_from(write.data.len()).unwrap());
    }

    fn flush(&self, request: &Request, _handle: Handle, reply: ReplyEmpty) {
        self.note("flush", request);
        reply.ok();
    }

    fn release(&self, request: &Request, _handle: Handle, reply: ReplyEmpty) {
        self.note("release", request);
        reply.ok();
    }

    fn opendir(&self, _request: &Request, _flags: u32, reply: ReplyOpen) {
        reply.opened(Handle(2), FopenFlags::default());
    }

    fn readdir(&self, _request: &Request, read: Read, mut reply: ReplyDirectory) {
        let skip = usize::try_from(read.offset).unwrap();
        for (at, (name, _)) in (1u64..).zip(&self.state().names).skip(skip) {
            if !reply.add(Ino(at + 1), at, 0o100_644, name.as_bytes()) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _request: &Request, _handle: Handle, reply: ReplyEmpty) {
        reply.ok();
    }

    fn setxattr(&self, _request: &Request, set: Setxattr<'_>, reply: ReplyEmpty) {
        self.state().value = [set.name, b"=", set.value].concat();
        reply.ok();
    }

    fn getxattr(&self, _request: &Request, _name: &[u8], len_max: u32, reply: ReplyXattr) {
        let value = self.state().value.clone();
        let len = u32::try_from(value.len()).unwrap();
        if len_max == 0 { reply.len(len) } else { reply.data(&value) }
    }
}

fn settings(flags: InitFlags) -> Settings {
    let wishes = Wishes { flags, max_write: 1 << 20, max_readahead: 1 << 20, max_background: 64, max_stack_depth: 1 };
    Settings { wishes, allowed: Allowed::All, threads: 2, placement: Placement::Anywhere, transport: Transport::Device }
}

fn serve(memory: &Memory, device: &Device, flags: InitFlags) -> Running {
    Session::start(memory.clone(), device.clone(), settings(flags)).unwrap().spawn().unwrap()
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}

#[test]
fn what_is_served_is_seen() {
    let Some((place, device)) = mount() else { return };
    let whole = bytes(3 << 20);
    let small = whole.chunks(16 << 10).map(<[u8]>::to_vec).collect();
    // More pieces in one answer than the kernel takes.
    let tiny = whole[..200_000].chunks(50).map(<[u8]>::to_vec).collect();
    let memory = Memory::with(&[("small", small), ("tiny", tiny), ("new", vec![])]);
    let running = serve(&memory, &device, InitFlags::PARALLEL_DIROPS | InitFlags::ASYNC_DIO);

    assert!(std::fs::read(place.path("small")).unwrap() == whole);
    assert!(std::fs::read(place.path("tiny")).unwrap() == whole[..200_000]);
    assert_eq!(std::fs::read(place.path("none")).unwrap_err().raw_os_error(), Some(2));
    let mut listed: Vec<_> =
        std::fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    listed.sort();
    assert_eq!(listed, ["new", "small", "tiny"]);
    let mut new = File::options().write(true).open(place.path("new")).unwrap();
    new.write_all(&whole).unwrap();
    drop(new);
    assert!(memory.state().names[2].1.pieces.concat() == whole);
    assert!(memory.state().names[2].1.pieces.iter().any(|piece| piece.len() == 1 << 20), "writes of a megabyte");
    assert!(memory.count("flush") >= 1);

    let small = place.path("small");
    rustix::fs::setxattr(&small, "user.a", b"value", rustix::fs::XattrFlags::empty()).unwrap();
    let mut value = [0; 64];
    let len = rustix::fs::getxattr(&small, "user.a", &mut value).unwrap();
    assert_eq!(&value[..len], b"user.a=value");
    // What the file system does not know is told so, and does no harm.
    assert_eq!(std::fs::create_dir(place.path("other")).unwrap_err().raw_os_error(), Some(38));
    assert!(rustix::fs::statfs(&small).is_err());
    place.end(&device, running);
}

#[test]
fn the_kernel_reads_a_backing_file_by_itself() {
    let Some((place, device)) = mount() else { return };
    let contents = bytes(300_000);
    let mut local = temporary();
    local.write_all(&contents).unwrap();
    let memory = Memory::with(&[("backed", vec![vec![0; 300_000]])]);
    let session = Session::start(memory.clone(), device.clone(), settings(InitFlags::PASSTHROUGH)).unwrap();
    let is_offered = session.agreed().flags.contains(InitFlags::PASSTHROUGH);
    let running = session.spawn().unwrap();
    match device.open_backing(&local) {
        Ok(backing) => {
            // The number can be handed to another process that takes the mount up.
            let backing = BackingId::from_raw(&device, backing.into_raw());
            memory.state().names[0].1.backing = Some(Arc::new(backing));
            let mut open = File::open(place.path("backed")).unwrap();
            let mut got = vec![0; 1000];
            open.read_exact(&mut got).unwrap();
            // What is open goes on without the number.
            memory.state().names[0].1.backing = None;
            open.read_to_end(&mut got).unwrap();
            assert!(got == contents);
            assert_eq!(memory.count("read"), 0);
        }
        // An older kernel, or temporary files on an overlay.
        Err(error) => {
            assert!(!is_offered || error == Errno::LOOP, "{error}");
            eprintln!("not tested: {error}");
        }
    }
    place.end(&device, running);
}

/// As in a mount that was made by an older version of this program.
#[test]
fn a_mount_without_passthrough_is_asked_only_once() {
    let Some((place, device)) = mount() else { return };
    let running = serve(&Memory::default(), &device, InitFlags::default());
    let local = temporary();
    assert!(device.may_pass_through());
    let error = device.open_backing(&local).unwrap_err();
    assert!(matches!(error, Errno::PERM | Errno::OPNOTSUPP | Errno::NOTTY), "{error}");
    assert!(!device.may_pass_through());
    assert_eq!(device.open_backing(&local).unwrap_err(), Errno::PERM);
    place.end(&device, running);
}

fn temporary() -> File {
    let directory = std::env::temp_dir();
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap().into()
}

#[test]
fn what_a_dead_process_had_read_is_answered_by_the_next_one() {
    let Some((place, device)) = mount() else { return };
    let memory = Memory::with(&[("file", vec![b"contents".to_vec()])]);
    // It says hello, reads a request, and dies.
    drop(Session::start(memory.clone(), device.clone(), settings(InitFlags::default())).unwrap());
    let path = place.path("file");
    let reader = std::thread::spawn(move || std::fs::read(path).unwrap());
    rustix::io::read(&device, &mut vec![0; (1 << 20) + 4096]).unwrap();

    let session = Session::take_up(memory.clone(), device.clone(), settings(InitFlags::default()));
    if sandpail_fuse::resend(&device).is_err() {
        // Before Linux 6.9: when the last descriptor goes, its callers are let go.
        return;
    }
    let running = session.spawn().unwrap();
    assert_eq!(reader.join().unwrap(), b"contents");
    assert_eq!(memory.count("again"), 1);
    place.end(&device, running);
}

#[test]
fn what_the_kernel_has_cached_is_taken_back() {
    let Some((place, device)) = mount() else { return };
    let memory = Memory::with(&[("file", vec![b"contents".to_vec()])]);
    let running = serve(&memory, &device, InitFlags::default());
    let len = || std::fs::metadata(place.path("file")).map(|meta| meta.len());
    assert_eq!(len().unwrap(), 8);
    memory.state().names[0].1.pieces = vec![b"longer contents".to_vec()];
    assert_eq!(len().unwrap(), 8, "within its time");
    sandpail_fuse::invalidate_inode(&device, Ino(2), -1, 0).unwrap();
    assert_eq!(len().unwrap(), 15);
    assert_eq!(std::fs::read(place.path("file")).unwrap(), b"longer contents");
    memory.state().names[0].1.pieces = vec![b"other contents!".to_vec()];
    sandpail_fuse::invalidate_inode(&device, Ino(2), 0, 0).unwrap();
    assert_eq!(std::fs::read(place.path("file")).unwrap(), b"other contents!");

    memory.state().names[0].0 = "moved".to_owned();
    assert_eq!(len().unwrap(), 15, "within its time");
    sandpail_fuse::invalidate_entry(&device, Ino::ROOT, b"file").unwrap();
    assert_eq!(len().unwrap_err().raw_os_error(), Some(2));
    assert_eq!(sandpail_fuse::invalidate_entry(&device, Ino::ROOT, b"unknown"), Err(Errno::NOENT));
    place.end(&device, running);
}

#[test]
fn an_aborted_file_system_ends() {
    let Some((place, device)) = mount() else { return };
    let running = serve(&Memory::default(), &device, InitFlags::default());
    place.abort();
    running.join().unwrap();
    assert!(!is_alive(&device).unwrap());
}

/// As ordinary users mount; the helper does the same for root.
#[test]
fn the_helper_mounts_and_unmounts() {
    if !rustix::process::geteuid().is_root() || std::process::Command::new("fusermount3").arg("-V").output().is_err() {
        return;
    }
    let directory = Directory::new("helper");
    let lines = || std::fs::read_to_string("/proc/self/mounts").unwrap();
    let is_mounted = || lines().contains(&format!("{} ", directory.0.display()));
    let refused = sandpail_fuse::mount_by_helper(&directory.0, &["no_such_option".to_owned()]).unwrap_err();
    assert!(refused.to_string().contains("fusermount3"), "{refused}");
    for drops in [false, true] {
        let options = [r"fsname=a\,b", "subtype=test", "nodev", "nosuid", "ro"].map(str::to_owned);
        let (device, helper) = sandpail_fuse::mount_by_helper(&directory.0, &options).unwrap();
        let memory = Memory::with(&[("file", vec![b"contents".to_vec()])]);
        let running = serve(&memory, &device, InitFlags::default());
        assert_eq!(std::fs::read(directory.0.join("file")).unwrap(), b"contents");
        let line = lines().lines().find(|line| line.contains(directory.0.to_str().unwrap())).unwrap().to_owned();
        assert!(line.starts_with("a,b ") && line.contains(" fuse.test ro,"), "{line}");
        if drops {
            drop(helper)
        } else {
            helper.unmount()
        }
        running.join().unwrap();
        assert!(!is_mounted());
    }
}
