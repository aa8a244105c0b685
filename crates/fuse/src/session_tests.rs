use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::abi::{InHeader, InitIn, InitOut, opcode};
use crate::{Allowed, InitFlags, Ino, ReplyEmpty, ReplyEntry, Request};

const WISHES: Wishes = Wishes {
    flags: InitFlags::PARALLEL_DIROPS,
    max_write: 1 << 16,
    max_readahead: 1 << 16,
    max_background: 8,
    max_stack_depth: 0,
};

fn settings(allowed: Allowed) -> Settings {
    Settings { wishes: WISHES, allowed, threads: 1, placement: Placement::OneCpuEach, transport: Transport::Device }
}

/// The kernel's end of a device, for which a socket stands that keeps messages apart.
struct Kernel(OwnedFd);

fn device() -> (Kernel, Device) {
    let (kernel, device) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    (Kernel(kernel), device.into())
}

impl Kernel {
    fn ask(&self, unique: u64, opcode: u32, uid: u32, body: &[u8]) {
        let len = u32::try_from(size_of::<InHeader>() + body.len()).unwrap();
        let header = InHeader { len, opcode, unique, node: 1, uid, ..InHeader::default() };
        rustix::io::write(&self.0, &[header.as_bytes(), body].concat()).unwrap();
    }

    /// The number and error of an answer, and its body.
    fn hear(&self) -> (u64, i32, Vec<u8>) {
        let mut bytes = vec![0; 4096];
        let len = rustix::io::read(&self.0, &mut bytes).unwrap();
        let number = |at| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        let error = i32::from_ne_bytes(bytes[4..8].try_into().unwrap());
        (number(8), error, bytes[16..len].to_vec())
    }

    fn hello(&self, major: u32) {
        let init = InitIn { major, minor: 36, max_readahead: 1 << 17, flags: u32::MAX };
        self.ask(1, opcode::INIT, 0, &[init.as_bytes(), &u32::MAX.to_ne_bytes()].concat());
    }
}

/// Says what it was asked to forget; a lookup gives `ENOENT`, and `unlink` no answer.
struct Told(Sender<(u64, u64)>);

impl Filesystem for Told {
    fn lookup(&self, _request: &Request, _name: &[u8], reply: ReplyEntry) {
        reply.error(Errno::NOENT);
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.0.send((ino.0, count)).unwrap();
    }

    fn unlink(&self, _request: &Request, _name: &[u8], _reply: ReplyEmpty) {}
}

fn told() -> (Told, Receiver<(u64, u64)>) {
    let (sender, receiver) = channel();
    (Told(sender), receiver)
}

#[test]
fn the_hello_is_answered_then_requests_are() {
    let (kernel, device) = device();
    // A kernel of the future first hears which version we speak.
    kernel.hello(8);
    kernel.hello(7);
    let (fs, forgotten) = told();
    let session = Session::start(fs, device, settings(Allowed::All)).unwrap();
    assert!(session.agreed().flags.contains(InitFlags::PARALLEL_DIROPS));
    let (_, error, body) = kernel.hear();
    assert_eq!((error, body.len(), &body[..4]), (0, size_of::<InitOut>(), 7u32.to_ne_bytes().as_slice()));
    assert_eq!(&body[12..16], &[0; 4], "only the version");
    let (unique, error, body) = kernel.hear();
    assert_eq!((unique, error, body.len()), (1, 0, size_of::<InitOut>()));
    assert_ne!(&body[12..16], &[0; 4]);

    let running = session.spawn().unwrap();
    let again = 1 << 63 | 2;
    kernel.ask(again, opcode::LOOKUP, 5, b"name\0");
    assert_eq!(kernel.hear(), (again, -2, vec![]));
    kernel.ask(4, opcode::UNLINK, 5, b"name\0");
    assert_eq!(kernel.hear(), (4, -5, vec![]), "a reply that was dropped");
    kernel.ask(6, opcode::LOOKUP, 5, b"no end");
    assert_eq!(kernel.hear(), (6, -38, vec![]), "malformed");
    kernel.ask(8, 999, 5, b"");
    assert_eq!(kernel.hear(), (8, -38, vec![]), "unknown");
    kernel.ask(11, opcode::INTERRUPT, 0, &8u64.to_ne_bytes());
    assert_eq!(kernel.hear(), (11, -38, vec![]), "interrupts are not wanted");
    kernel.hello(7);
    assert_eq!(kernel.hear(), (1, -5, vec![]), "one hello is enough");

    // These have no answer, good or bad.
    kernel.ask(12, opcode::FORGET, 0, &3u64.to_ne_bytes());
    kernel.ask(14, opcode::FORGET, 0, b"");
    let batch = [2u64, 9, 1, 8, 7].map(u64::to_ne_bytes).concat();
    kernel.ask(16, opcode::BATCH_FORGET, 0, &batch);
    kernel.ask(18, opcode::DESTROY, 0, b"");
    assert_eq!(kernel.hear(), (18, 0, vec![]));
    running.join().unwrap();
    assert_eq!(forgotten.iter().collect::<Vec<_>>(), [(1, 3), (9, 1), (8, 7)]);
}

#[test]
fn a_device_is_taken_up_without_a_hello() {
    let (kernel, device) = device();
    let running = Session::take_up(told().0, device, settings(Allowed::All)).spawn().unwrap();
    kernel.ask(2, opcode::LOOKUP, 5, b"name\0");
    assert_eq!(kernel.hear(), (2, -2, vec![]));
    // What is no request ends it, with an error.
    rustix::io::write(&kernel.0, b"short").unwrap();
    assert_eq!(running.join().unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn others_are_kept_away_from_an_owners_mount() {
    let (kernel, device) = device();
    let running = Session::take_up(told().0, device, settings(Allowed::Owner)).spawn().unwrap();
    let owner = rustix::process::geteuid().as_raw();
    kernel.ask(2, opcode::LOOKUP, owner, b"name\0");
    assert_eq!(kernel.hear(), (2, -2, vec![]));
    kernel.ask(4, opcode::LOOKUP, owner + 1, b"name\0");
    assert_eq!(kernel.hear(), (4, -13, vec![]));
    // The kernel's own.
    let read = crate::abi::ReadIn::default();
    kernel.ask(6, opcode::READ, owner + 1, read.as_bytes());
    assert_eq!(kernel.hear(), (6, -38, vec![]));
    kernel.ask(8, opcode::DESTROY, 0, b"");
    kernel.hear();
    running.join().unwrap();
}

#[test]
fn what_is_no_hello_is_refused() {
    let start = |device| Session::start(told().0, device, settings(Allowed::All)).map(drop);
    let (kernel, dev) = device();
    kernel.ask(2, opcode::LOOKUP, 0, b"name\0");
    assert_eq!(start(dev).unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(kernel.hear(), (2, -5, vec![]));
    let (kernel, dev) = device();
    kernel.hello(6);
    assert_eq!(start(dev).unwrap_err().kind(), io::ErrorKind::Unsupported);
    assert_eq!(kernel.hear(), (1, -71, vec![]));
}
