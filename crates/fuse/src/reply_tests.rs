use std::os::fd::OwnedFd;

use super::*;
use crate::Time;

const UNIQUE: u64 = 1 << 63 | 0xabcd;

/// What `answer` writes to the device, for which a pipe stands: error and body.
#[track_caller]
fn sent<R: From<Due>>(answer: impl FnOnce(R)) -> (i32, Vec<u8>) {
    sent_by(|due| answer(due.into()))
}

#[track_caller]
fn sent_by(answer: impl FnOnce(Due)) -> (i32, Vec<u8>) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    answer(Due::new(&Device::from(writer), UNIQUE));
    let message = all(&reader);
    let word = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
    assert_eq!(usize::try_from(word(0)).unwrap(), message.len(), "one message, as long as it says");
    assert_eq!(message[8..16], UNIQUE.to_ne_bytes(), "with the bit of a request that was sent again");
    (i32::from_ne_bytes(message[4..8].try_into().unwrap()), message[16..].to_vec())
}

fn all(reader: &OwnedFd) -> Vec<u8> {
    let mut message = vec![0; 1 << 16];
    let len = rustix::io::read(reader, &mut message).unwrap();
    message.truncate(len);
    message
}

/// Numbers of four and eight bytes, as the machine has them.
macro_rules! words {
    ($($word:expr),*) => {{
        let pieces: &[&[u8]] = &[$(&$word.to_ne_bytes()),*];
        pieces.concat()
    }};
}

fn attr() -> Attr {
    let time = |secs| Time { secs, nanos: 5 };
    Attr {
        ino: Ino(2),
        size: 3,
        blocks: 4,
        atime: time(-1),
        mtime: time(7),
        ctime: time(8),
        mode: 0o100_644,
        links: 9,
        uid: 10,
        gid: 11,
        device: 12,
        block_len: 13,
    }
}

fn attr_bytes() -> Vec<u8> {
    words!(2u64, 3u64, 4u64, -1i64, 7i64, 8i64, 5u32, 5u32, 5u32, 0o100_644u32, 9u32, 10u32, 11u32, 12u32, 13u32, 0u32)
}

fn entry() -> Entry {
    Entry { attr: attr(), generation: 1, ttl: Duration::new(20, 21) }
}

fn entry_bytes() -> Vec<u8> {
    [words!(2u64, 1u64, 20u64, 20u64, 21u32, 21u32), attr_bytes()].concat()
}

#[test]
fn forms() {
    assert_eq!(sent(ReplyEmpty::ok), (0, vec![]));
    assert_eq!(sent(|reply: ReplyEmpty| reply.error(Errno::NOENT)), (-2, vec![]));
    assert_eq!(sent(|reply: ReplyEntry| reply.entry(entry())), (0, entry_bytes()));
    let attributes = [words!(20u64, 21u32, 0u32), attr_bytes()].concat();
    assert_eq!(sent(|reply: ReplyAttr| reply.attr(Duration::new(20, 21), attr())), (0, attributes));
    assert_eq!(sent(|reply: ReplyData| reply.data(b"bytes")), (0, b"bytes".to_vec()));
    assert_eq!(sent(|reply: ReplyData| reply.chain::<&[u8]>(&[])), (0, vec![]));
    assert_eq!(sent(|reply: ReplyData| reply.chain(&["by", "", "tes"])), (0, b"bytes".to_vec()));
    assert_eq!(sent(|reply: ReplyWrite| reply.written(5)), (0, words!(5u32, 0u32)));
    assert_eq!(sent(|reply: ReplyXattr| reply.len(5)), (0, words!(5u32, 0u32)));
    assert_eq!(sent(|reply: ReplyXattr| reply.data(b"v")), (0, b"v".to_vec()));
    assert_eq!(sent(|reply: ReplyLseek| reply.offset(1 << 40)), (0, words!(1u64 << 40)));
    let room = Statfs {
        blocks: 1,
        blocks_free: 2,
        blocks_available: 3,
        files: 4,
        files_free: 5,
        block_len: 6,
        name_len_max: 7,
    };
    let expected = [words!(1u64, 2u64, 3u64, 4u64, 5u64, 6u32, 7u32, 6u32, 0u32), vec![0; 24]].concat();
    assert_eq!(sent(|reply: ReplyStatfs| reply.statfs(room)), (0, expected));
}

#[test]
fn what_is_opened() {
    let (handle, none) = (Handle(5), FopenFlags::default());
    assert_eq!(sent(|reply: ReplyOpen| reply.opened(handle, none)), (0, words!(5u64, 0u32, 0u32)));
    let cached = FopenFlags { keep_cache: true, ..none };
    assert_eq!(sent(|reply: ReplyOpen| reply.opened(handle, cached)), (0, words!(5u64, 2u32, 0u32)));
    let direct = FopenFlags { direct_io: true, ..none };
    let unflushed = FopenFlags { no_flush: true, ..none };
    assert_eq!(sent(|reply: ReplyOpen| reply.opened(handle, unflushed)), (0, words!(5u64, 1u32 << 5, 0u32)));
    let created = [entry_bytes(), words!(5u64, 1u32, 0u32)].concat();
    assert_eq!(sent(|reply: ReplyCreate| reply.created(entry(), handle, direct)), (0, created));

    let backed = |reply: &Device| BackingId::from_raw(reply, 77);
    let open = |reply: ReplyOpen| {
        let backing = backed(reply.device());
        reply.opened_passthrough(handle, none, &backing);
        assert_eq!(backing.into_raw(), 77);
    };
    assert_eq!(sent(open), (0, words!(5u64, 1u32 << 7, 77u32)));
    let create = |reply: ReplyCreate| {
        let backing = backed(reply.device());
        reply.created_passthrough(entry(), handle, cached, &backing);
        backing.into_raw();
    };
    assert_eq!(sent(create), (0, [entry_bytes(), words!(5u64, 1u32 << 7, 77u32)].concat()));
}

#[test]
fn listings_are_as_long_as_the_kernel_wants_them() {
    let names = |len_max: u32| {
        sent_by(|due| {
            let mut reply = ReplyDirectory::new(due, len_max);
            let _ = reply.add(Ino(2), 1, 0o040_755, b"dir") && reply.add(Ino(3), 2, 0o100_644, b"12345678");
            reply.ok();
        })
    };
    let first = [words!(2u64, 1u64, 3u32, 4u32), b"dir\0\0\0\0\0".to_vec()].concat();
    let second = [words!(3u64, 2u64, 8u32, 8u32), b"12345678".to_vec()].concat();
    assert_eq!(names(4096), (0, [first.as_slice(), &second].concat()));
    assert_eq!(names(64), (0, [first.as_slice(), &second].concat()));
    assert_eq!(names(63), (0, first));
    assert_eq!(names(31), (0, vec![]));

    let plus = |len_max: u32| {
        sent_by(|due| {
            let mut reply = ReplyDirectoryPlus::new(due, len_max);
            while reply.add(entry(), 6, b"name") {}
            reply.ok();
        })
    };
    let one = [entry_bytes(), words!(2u64, 6u64, 4u32, 8u32), b"name\0\0\0\0".to_vec()].concat();
    assert_eq!(plus(320), (0, [one.as_slice(), &one].concat()));
    assert_eq!(plus(319), (0, one));
    let only_its_name = sent_by(|due| {
        let mut reply = ReplyDirectoryPlus::new(due, 160);
        while reply.add_name(Ino(2), 6, 0o040_000, b"name") {}
        reply.ok();
    });
    assert_eq!(only_its_name, (0, [vec![0; 128], words!(2u64, 6u64, 4u32, 4u32), b"name\0\0\0\0".to_vec()].concat()));
    assert_eq!(sent_by(|due| ReplyDirectory::new(due, 10).error(Errno::BADF)), (-9, vec![]));
}

#[test]
fn nobody_is_left_waiting() {
    assert_eq!(sent::<ReplyData>(drop), (-5, vec![]));
    assert_eq!(sent_by(|due| drop(ReplyDirectoryPlus::new(due, 10))), (-5, vec![]));
}
