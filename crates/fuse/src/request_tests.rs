use zerocopy::IntoBytes;

use super::*;

/// Pieces of a message after its header.
macro_rules! body {
    ($($piece:expr),*) => {{
        let mut bytes = Vec::new();
        $(bytes.extend_from_slice($piece.as_bytes());)*
        bytes
    }};
}

const PLAIN: Dialect = Dialect { long_setxattr: false };
const LONG: Dialect = Dialect { long_setxattr: true };

fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(size_of::<InHeader>() + body.len()).unwrap();
    let (unique, node) = (RESENT | 42, 7);
    let header = InHeader { len, opcode, unique, node, uid: 1000, gid: 100, pid: 99, ..InHeader::default() };
    [header.as_bytes(), body].concat()
}

/// A whole message is this operation; cut short anywhere it is malformed, and no message that is longer than it says is taken.
#[track_caller]
fn check(opcode: u32, body: &[u8], dialect: Dialect, expected: Operation<'_>) {
    let whole = message(opcode, body);
    let (request, operation) = parse(&whole, dialect).unwrap();
    assert_eq!(operation, Ok(expected));
    assert_eq!((request.unique(), request.ino()), (RESENT | 42, Ino(7)));
    assert_eq!((request.uid(), request.gid(), request.pid()), (1000, 100, 99));

    for len in 0..body.len() {
        let cut = message(opcode, &body[..len]);
        let operation = parse(&cut, dialect).unwrap().1;
        assert_eq!(operation, Err(Refusal::Malformed), "opcode {opcode}, {len} of {} bytes", body.len());
    }
    let padded = [whole.as_slice(), &[0]].concat();
    assert_eq!(parse(&padded, dialect).unwrap().1, Err(Refusal::Malformed));
    assert_eq!(
        parse(&whole[..whole.len() - 1], dialect).map(|parsed| parsed.1),
        match body.len() {
            0 => None,
            _ => Some(Err(Refusal::Malformed)),
        }
    );
}

#[track_caller]
fn refused(opcode: u32, body: &[u8], expected: Refusal) {
    assert_eq!(parse(&message(opcode, body), PLAIN).unwrap().1, Err(expected));
}

#[test]
fn names() {
    check(opcode::LOOKUP, b"a b\xff\0", PLAIN, Operation::Lookup { name: b"a b\xff" });
    check(opcode::UNLINK, b"x\0", PLAIN, Operation::Unlink { name: b"x" });
    check(opcode::RMDIR, b"x\0", PLAIN, Operation::Rmdir { name: b"x" });
    check(opcode::REMOVEXATTR, b"user.x\0", PLAIN, Operation::Removexattr { name: b"user.x" });
    check(opcode::SYMLINK, b"new\0../to\0", PLAIN, Operation::Symlink { name: b"new", target: b"../to" });
    let link = body!(abi::LinkIn { old_node: 5 }, b"new\0");
    check(opcode::LINK, &link, PLAIN, Operation::Link { ino: Ino(5), name: b"new" });
    // Longer than any file system takes: whoever asks is told so by the file system.
    let long = [vec![b'n'; 70_000], vec![0]].concat();
    let parsed = message(opcode::LOOKUP, &long);
    assert_eq!(parse(&parsed, PLAIN).unwrap().1, Ok(Operation::Lookup { name: &long[..70_000] }));
    refused(opcode::LOOKUP, b"no end", Refusal::Malformed);
    refused(opcode::SYMLINK, b"one\0no end", Refusal::Malformed);
}

#[test]
fn what_makes_and_moves() {
    let make = Make { name: b"n", mode: 0o100_644, umask: 0o22, device: 0 };
    let mknod = abi::MknodIn { mode: 0o100_644, rdev: 3, umask: 0o22, padding: 0 };
    check(opcode::MKNOD, &body!(mknod, b"n\0"), PLAIN, Operation::Mknod(Make { device: 3, ..make }));
    let mkdir = abi::MkdirIn { mode: 0o755, umask: 0o22 };
    check(opcode::MKDIR, &body!(mkdir, b"n\0"), PLAIN, Operation::Mkdir(Make { mode: 0o755, ..make }));
    let create = abi::CreateIn { flags: 0x8242, mode: 0o100_644, umask: 0o22, open_flags: 0 };
    check(opcode::CREATE, &body!(create, b"n\0"), PLAIN, Operation::Create { make, flags: 0x8242 });

    let moved = Rename { name: b"a", new_parent: Ino(9), new_name: b"b", flags: 0 };
    check(opcode::RENAME, &body!(abi::RenameIn { new_parent: 9 }, b"a\0b\0"), PLAIN, Operation::Rename(moved));
    let rename2 = abi::Rename2In { new_parent: 9, flags: 1, padding: 0 };
    check(opcode::RENAME2, &body!(rename2, b"a\0b\0"), PLAIN, Operation::Rename(Rename { flags: 1, ..moved }));
}

#[test]
fn attributes() {
    let getattr = abi::GetattrIn { flags: 0, dummy: 0, fh: 8 };
    check(opcode::GETATTR, getattr.as_bytes(), PLAIN, Operation::Getattr { handle: None });
    let getattr = abi::GetattrIn { flags: 1, ..getattr };
    check(opcode::GETATTR, getattr.as_bytes(), PLAIN, Operation::Getattr { handle: Some(Handle(8)) });
    check(opcode::STATFS, b"", PLAIN, Operation::Statfs);
    check(opcode::READLINK, b"", PLAIN, Operation::Readlink);

    let set = abi::SetattrIn {
        valid: valid::UID | valid::SIZE | valid::ATIME | valid::ATIME_NOW | valid::MTIME | valid::FH,
        fh: 8,
        size: 1 << 40,
        mtime: -2,
        mtimensec: 5,
        mode: 0o777,
        uid: 12,
        gid: 13,
        ..abi::SetattrIn::default()
    };
    let expected = Setattr {
        uid: Some(12),
        size: Some(1 << 40),
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At(Time { secs: -2, nanos: 5 })),
        handle: Some(Handle(8)),
        ..Setattr::default()
    };
    check(opcode::SETATTR, set.as_bytes(), PLAIN, Operation::Setattr(expected));
    let set = abi::SetattrIn { valid: valid::MODE | valid::GID, ..set };
    let expected = Setattr { mode: Some(0o777), gid: Some(13), ..Setattr::default() };
    check(opcode::SETATTR, set.as_bytes(), PLAIN, Operation::Setattr(expected));
}

#[test]
fn files() {
    let handle = Handle(3);
    check(
        opcode::OPEN,
        body!(abi::OpenIn { flags: 0x8001, open_flags: 0 }).as_slice(),
        PLAIN,
        Operation::Open { flags: 0x8001 },
    );
    let read = abi::ReadIn { fh: 3, offset: 4096, size: 1 << 20, ..abi::ReadIn::default() };
    let expected = Read { handle, offset: 4096, len: 1 << 20, is_direct: false };
    check(opcode::READ, read.as_bytes(), PLAIN, Operation::Read(expected));
    let direct = abi::ReadIn { flags: OFlags::DIRECT.bits() | OFlags::RDWR.bits(), ..read };
    check(opcode::READ, direct.as_bytes(), PLAIN, Operation::Read(Read { is_direct: true, ..expected }));
    let write = abi::WriteIn { fh: 3, offset: 10, size: 5, write_flags: 4, ..abi::WriteIn::default() };
    let expected = Write { handle, offset: 10, data: b"hello", kill_set_id: true };
    check(opcode::WRITE, &body!(write, b"hello"), PLAIN, Operation::Write(expected));
    refused(opcode::WRITE, &body!(write, b"hello!"), Refusal::Malformed);
    let none = abi::WriteIn { size: 0, write_flags: 0, ..write };
    let expected = Write { handle, offset: 10, data: b"", kill_set_id: false };
    check(opcode::WRITE, none.as_bytes(), PLAIN, Operation::Write(expected));

    let release = abi::ReleaseIn { fh: 3, ..abi::ReleaseIn::default() };
    check(opcode::RELEASE, release.as_bytes(), PLAIN, Operation::Release { handle });
    check(
        opcode::FLUSH,
        body!(abi::FlushIn { fh: 3, ..abi::FlushIn::default() }).as_slice(),
        PLAIN,
        Operation::Flush { handle },
    );
    let fsync = abi::FsyncIn { fh: 3, flags: 1, padding: 0 };
    check(opcode::FSYNC, fsync.as_bytes(), PLAIN, Operation::Fsync { handle, data_only: true });

    let range = abi::FallocateIn { fh: 3, offset: 1, length: 2, mode: 3, padding: 0 };
    let expected = Fallocate { handle, offset: 1, len: 2, mode: 3 };
    check(opcode::FALLOCATE, range.as_bytes(), PLAIN, Operation::Fallocate(expected));
    let lseek = abi::LseekIn { fh: 3, offset: -1, whence: 4, padding: 0 };
    check(opcode::LSEEK, lseek.as_bytes(), PLAIN, Operation::Lseek { handle, offset: -1, whence: 4 });
    let copy =
        abi::CopyFileRangeIn { fh_in: 3, offset_in: 1, node_out: 9, fh_out: 4, offset_out: 2, len: u64::MAX, flags: 0 };
    let expected = CopyFileRange { from: handle, from_offset: 1, to: Handle(4), to_offset: 2, len: u64::MAX, flags: 0 };
    check(opcode::COPY_FILE_RANGE, copy.as_bytes(), PLAIN, Operation::CopyFileRange(expected));

    let beyond = 1 << 63;
    refused(opcode::READ, abi::ReadIn { offset: beyond, ..read }.as_bytes(), Refusal::Offset);
    refused(opcode::WRITE, abi::WriteIn { offset: beyond, ..none }.as_bytes(), Refusal::Offset);
    refused(opcode::FALLOCATE, abi::FallocateIn { length: beyond, ..range }.as_bytes(), Refusal::Offset);
    refused(opcode::COPY_FILE_RANGE, abi::CopyFileRangeIn { offset_out: beyond, ..copy }.as_bytes(), Refusal::Offset);
}

#[test]
fn directories() {
    let handle = Handle(3);
    check(
        opcode::OPENDIR,
        body!(abi::OpenIn { flags: 1, open_flags: 0 }).as_slice(),
        PLAIN,
        Operation::Opendir { flags: 1 },
    );
    // Where a listing goes on is any number.
    let read = abi::ReadIn { fh: 3, offset: u64::MAX, size: 4096, ..abi::ReadIn::default() };
    let expected = Read { handle, offset: u64::MAX, len: 4096, is_direct: false };
    check(opcode::READDIR, read.as_bytes(), PLAIN, Operation::Readdir(expected));
    check(opcode::READDIRPLUS, read.as_bytes(), PLAIN, Operation::Readdirplus(expected));
    let release = abi::ReleaseIn { fh: 3, ..abi::ReleaseIn::default() };
    check(opcode::RELEASEDIR, release.as_bytes(), PLAIN, Operation::Releasedir { handle });
    let fsync = abi::FsyncIn { fh: 3, ..abi::FsyncIn::default() };
    check(opcode::FSYNCDIR, fsync.as_bytes(), PLAIN, Operation::Fsyncdir { handle, data_only: false });
}

#[test]
fn extended_attributes() {
    let set = abi::SetxattrIn { size: 5, flags: 1 };
    let expected = Setxattr { name: b"user.a", value: b"v\0lue", flags: 1 };
    check(opcode::SETXATTR, &body!(set, b"user.a\0v\0lue"), PLAIN, Operation::Setxattr(expected));
    let long = body!(set, abi::SetxattrExtIn::default(), b"user.a\0v\0lue");
    check(opcode::SETXATTR, &long, LONG, Operation::Setxattr(expected));
    refused(opcode::SETXATTR, &body!(set, b"user.a\0value!"), Refusal::Malformed);
    let get = abi::GetxattrIn { size: 255, padding: 0 };
    check(opcode::GETXATTR, &body!(get, b"user.a\0"), PLAIN, Operation::Getxattr { name: b"user.a", len_max: 255 });
    check(opcode::LISTXATTR, get.as_bytes(), PLAIN, Operation::Listxattr { len_max: 255 });
}

#[test]
fn what_is_of_no_file() {
    check(opcode::FORGET, body!(abi::ForgetIn { count: 3 }).as_slice(), PLAIN, Operation::Forget { count: 3 });
    let ones = [abi::ForgetOne { node: 2, count: 1 }, abi::ForgetOne { node: 3, count: u64::MAX }];
    let batch = body!(abi::BatchForgetIn { count: 2, dummy: 0 }, ones);
    let parsed = message(opcode::BATCH_FORGET, &batch);
    let Ok(Operation::BatchForget(forgets)) = parse(&parsed, PLAIN).unwrap().1 else { panic!("no batch") };
    assert_eq!(forgets.collect::<Vec<_>>(), [(Ino(2), 1), (Ino(3), u64::MAX)]);
    for count in [3, u32::MAX] {
        let batch = body!(abi::BatchForgetIn { count, dummy: 0 }, ones);
        refused(opcode::BATCH_FORGET, &batch, Refusal::Malformed);
    }
    check(
        opcode::INTERRUPT,
        body!(abi::InterruptIn { unique: 6 }).as_slice(),
        PLAIN,
        Operation::Interrupt { unique: 6 },
    );
    check(opcode::DESTROY, b"", PLAIN, Operation::Destroy);

    let init = abi::InitIn { major: 7, minor: 31, max_readahead: 1, flags: 2 };
    let offer = Offer { major: 7, minor: 31, max_readahead: 1, flags: 2 };
    check(opcode::INIT, init.as_bytes(), PLAIN, Operation::Init(offer));
    let flags = 1 << 30 | 2;
    let init = body!(abi::InitIn { flags, ..init }, 0x20u32);
    check(opcode::INIT, &init, PLAIN, Operation::Init(Offer { flags: 0x20 << 32 | u64::from(flags), ..offer }));
    let whole = [init, vec![0; 44]].concat();
    assert!(matches!(parse(&message(opcode::INIT, &whole), PLAIN), Some((_, Ok(Operation::Init(_))))));
}

#[test]
fn what_is_not_known_is_told_so() {
    // ACCESS, GETLK, SETLK, SETLKW, BMAP, IOCTL, POLL, NOTIFY_REPLY, SYNCFS, TMPFILE, STATX, COPY_FILE_RANGE_64, CUSE_INIT.
    for opcode in [34, 31, 32, 33, 37, 39, 40, 41, 50, 51, 52, 53, 4096, 0, u32::MAX] {
        refused(opcode, &[0; 64], Refusal::Unknown);
    }
    assert_eq!(Refusal::Unknown.errno(), Errno::NOSYS);
    assert_eq!(Refusal::Malformed.errno(), Errno::NOSYS);
    assert_eq!(Refusal::Offset.errno(), Errno::INVAL);
}

#[test]
fn extensions_at_the_end_are_left_out() {
    let mut extended =
        message(opcode::WRITE, &body!(abi::WriteIn { size: 2, ..abi::WriteIn::default() }, b"ok", [9u8; 8]));
    let at = std::mem::offset_of!(InHeader, extensions_len);
    extended[at..at + 2].copy_from_slice(&1u16.to_ne_bytes());
    let Some((_, Ok(Operation::Write(write)))) = parse(&extended, PLAIN) else { panic!("no write") };
    assert_eq!(write.data, b"ok");
    extended[at..at + 2].copy_from_slice(&u16::MAX.to_ne_bytes());
    assert_eq!(parse(&extended, PLAIN).unwrap().1, Err(Refusal::Malformed));
}

/// Any bytes give an operation or a refusal, whatever they say of themselves.
#[test]
fn no_bytes_make_it_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..200_000u32 {
        let len = usize::try_from(random() % 200).unwrap();
        let mut bytes: Vec<u8> =
            (0..len).map(|_| random().to_le_bytes()[3] & if round % 2 == 0 { 0xff } else { 3 }).collect();
        if let (Some(head), true) = (bytes.get_mut(..8), round % 8 != 0) {
            head[..4].copy_from_slice(&u32::try_from(len).unwrap().to_ne_bytes());
            head[4..].copy_from_slice(&u32::try_from(random() % 56).unwrap().to_ne_bytes());
        }
        if let (Some(extensions), true) = (bytes.get_mut(36..38), round % 4 != 0) {
            extensions.fill(0);
        }
        let dialect = if round % 3 == 0 { LONG } else { PLAIN };
        match parse(&bytes, dialect) {
            None => assert!(len < size_of::<InHeader>()),
            Some((_, Ok(Operation::BatchForget(forgets)))) => assert!(forgets.count() <= len / 16),
            Some((_, Ok(Operation::Write(write)))) => assert!(write.data.len() <= len),
            Some(_) => {}
        }
    }
}

/// As a ring gives it: the structure in one place, names and data in another.
#[track_caller]
fn check_parts(opcode: u32, structure: &[u8], rest: &[u8], expected: Result<Operation<'_>, Refusal>) {
    let whole = message(opcode, &[structure, rest].concat());
    let (header, _) = InHeader::read_from_prefix(&whole).unwrap();
    let (request, operation) = parse_parts(&header, structure, rest, PLAIN);
    assert_eq!((request.unique(), request.ino()), (RESENT | 42, Ino(7)));
    assert_eq!(operation, expected);
    let longer = InHeader { len: header.len + 1, ..header };
    assert_eq!(parse_parts(&longer, structure, rest, PLAIN).1, Err(Refusal::Malformed), "not as long as it says");
}

#[test]
fn a_structure_may_be_apart() {
    check_parts(opcode::STATFS, b"", b"", Ok(Operation::Statfs));
    check_parts(opcode::LOOKUP, b"", b"name\0", Ok(Operation::Lookup { name: b"name" }));
    check_parts(opcode::SYMLINK, b"", b"new\0../to\0", Ok(Operation::Symlink { name: b"new", target: b"../to" }));
    let getattr = abi::GetattrIn { flags: 1, dummy: 0, fh: 5 };
    check_parts(opcode::GETATTR, getattr.as_bytes(), b"", Ok(Operation::Getattr { handle: Some(Handle(5)) }));
    let rename = Rename { name: b"a", new_parent: Ino(3), new_name: b"b", flags: 1 };
    let structure = abi::Rename2In { new_parent: 3, flags: 1, padding: 0 };
    check_parts(opcode::RENAME2, structure.as_bytes(), b"a\0b\0", Ok(Operation::Rename(rename)));
    let set = abi::SetxattrIn { size: 3, flags: 2 };
    let expected = Setxattr { name: b"user.x", value: b"val", flags: 2 };
    check_parts(opcode::SETXATTR, set.as_bytes(), b"user.x\0val", Ok(Operation::Setxattr(expected)));
    check_parts(opcode::SETXATTR, set.as_bytes(), b"user.x\0valu", Err(Refusal::Malformed));
    let write = abi::WriteIn { fh: 5, offset: 6, size: 4, ..abi::WriteIn::default() };
    let expected = Write { handle: Handle(5), offset: 6, data: b"data", kill_set_id: false };
    check_parts(opcode::WRITE, write.as_bytes(), b"data", Ok(Operation::Write(expected)));
    check_parts(opcode::WRITE, write.as_bytes(), b"dat", Err(Refusal::Malformed));
    // In both places at once, or cut in two.
    check_parts(opcode::WRITE, &body!(write, b"da"), b"ta", Err(Refusal::Malformed));
    let (head, tail) = write.as_bytes().split_at(20);
    check_parts(opcode::WRITE, head, &body!(tail, b"data"), Err(Refusal::Malformed));
}
