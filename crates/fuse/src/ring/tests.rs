use std::os::fd::{AsFd, AsRawFd};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::*;
use crate::{Allowed, InitFlags, Placement, ReplyXattr, Request, Session, Settings, Transport};

#[test]
fn cpus_are_counted() {
    let cases =
        [("0\n", Some(1)), ("0-1\n", Some(2)), ("0-3,8,10-11\n", Some(7)), ("", None), ("3-1", None), ("x", None)];
    for (list, count) in cases {
        assert_eq!(count_of(list), count, "{list:?}");
    }
}

const ENTRY_LEN: usize = 8192;

#[test]
fn a_slot_holds_an_answer_or_says_that_it_is_too_long() {
    let mut made = slots(5, 3, 1, ENTRY_LEN).unwrap();
    let mut slot = made.remove(1);
    drop(made);
    assert_eq!(slot.queue(), 1);
    slot.fill(0, 7, &[b"by".as_slice(), b"", b"tes"]);
    assert_eq!(slot.request_payload(), b"bytes");
    slot.fill(0, 7, &[vec![1; ENTRY_LEN]]);
    assert_eq!(slot.answer_len(), ENTRY_LEN);
    slot.fill(0, 7, &[vec![1; ENTRY_LEN], vec![2]]);
    assert_eq!(slot.answer_len(), 0);
    // What it is answered with has no place in a request.
    assert!(slot.request().is_none());
}

#[test]
fn who_sleeps_is_woken_once() {
    let post = Post::new().unwrap();
    let rung = || rustix::io::read(&post.bell, &mut [0u8; 8]).is_ok();
    let slot = || slots(0, 1, 0, ENTRY_LEN).unwrap().remove(0);
    post.put(Task::Give(slot()));
    assert!(post.put_if_asleep(Task::Give(slot())).is_err());
    assert!(!rung());
    let mut tasks = Vec::new();
    post.take(&mut tasks, true);
    assert_eq!(tasks.len(), 1);
    tasks.clear();
    post.take(&mut tasks, false);
    assert!(post.put_if_asleep(Task::Give(slot())).is_err(), "it has something to do");
    post.take(&mut tasks, true);
    assert!(post.put_if_asleep(Task::Give(slot())).is_ok());
    assert!(rung());
    post.put(Task::Give(slot()));
    assert!(!rung(), "it knows");
}

/// Answers what no one who is refused would hear.
struct Told;

impl Filesystem for Told {
    fn getxattr(&self, _request: &Request, _name: &[u8], _len_max: u32, reply: ReplyXattr) {
        reply.data(b"value");
    }
}

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// The kernel has agreed to a ring by then, and lets everybody wait for it.
#[test]
fn a_kernel_that_takes_no_entries_goes_back_to_the_device() {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root || !std::path::Path::new(SWITCH).exists() {
        return eprintln!("SKIPPED: no FUSE over io_uring here");
    }
    let turn = std::fs::File::open("/dev/fuse").unwrap();
    rustix::fs::flock(&turn, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let before = std::fs::read_to_string(SWITCH).unwrap();
    std::fs::write(SWITCH, "Y").unwrap();
    let device = Device::open().unwrap();
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(context.as_fd(), key, value).unwrap();
    set("fd", &device.as_fd().as_raw_fd().to_string());
    set("rootmode", "40000");
    set("user_id", "0");
    set("group_id", "0");
    rustix::mount::fsconfig_create(context.as_fd()).unwrap();
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let place = rustix::mount::fsmount(context.as_fd(), flags, MountAttrFlags::empty()).unwrap();
    let len = 1 << 20;
    let flags = InitFlags::default();
    let wishes = Wishes { flags, max_write: len, max_readahead: len, max_background: 8, max_stack_depth: 0 };
    let (allowed, threads, placement, transport) = (Allowed::All, 2, Placement::Anywhere, Transport::Ring);
    let settings = Settings { wishes, allowed, threads, placement, transport };
    let mut session = Session::start(Told, device.clone(), settings).unwrap();
    std::fs::write(SWITCH, before.trim()).unwrap();
    drop(turn);
    assert_eq!(session.transport(), Transport::Ring);
    // Entries that hold less than was agreed.
    let small = Wishes { max_write: 4096, max_readahead: 4096, ..wishes };
    session.ring = Some(Prepared::new(&device, &small));

    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let ask = move || rustix::fs::getxattr(path, "user.a", &mut [0u8; 64]);
    let early = std::thread::spawn(ask.clone());
    let running = session.spawn().unwrap();
    let why = Some(WhyDevice::Refused(Errno::INVAL));
    assert_eq!((running.transport(), running.why_device()), (Transport::Device, why));
    assert_eq!(early.join().unwrap(), Ok(5));
    assert_eq!(ask(), Ok(5));
    drop((context, place));
    running.join().unwrap();
}
