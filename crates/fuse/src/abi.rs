//! The kernel's layouts and numbers, as in `linux/fuse.h`, as far as we speak them: version 7.40 of the protocol.
//!
//! Fields have the kernel's names where those say enough. All numbers are in the machine's own byte order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol's version.
pub(crate) const MAJOR: u32 = 7;
/// What we know of it. What came later is not asked for.
pub(crate) const MINOR: u32 = 40;
/// Before this the answer to the kernel's hello was shorter (Linux 3.15).
pub(crate) const MINOR_MIN: u32 = 23;
/// A kernel that is given a smaller buffer than this, in bytes, refuses to fill it.
pub(crate) const READ_BUFFER_LEN_MIN: usize = 8192;
/// Kernels that speak this version know rings (Linux 6.14); whether they offer them is another matter.
pub(crate) const MINOR_WITH_RINGS: u32 = 42;
/// `FUSE_DEV_IOC_MAGIC`
pub(crate) const IOCTL_GROUP: u8 = 229;

/// What the kernel asks for.
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
}

/// `fuse_notify_code`: what we say unasked.
pub(crate) mod notify {
    pub(crate) const INVAL_INODE: i32 = 2;
    pub(crate) const INVAL_ENTRY: i32 = 3;
    pub(crate) const RESEND: i32 = 7;
}

/// `fuse_uring_cmd`: what is told by a ring.
pub(crate) mod ring {
    /// An entry is there to be filled.
    pub(crate) const REGISTER: u32 = 1;
    /// An entry holds an answer, and is there again.
    pub(crate) const COMMIT_AND_FETCH: u32 = 2;
}

/// `fuse_setattr_in.valid`
pub(crate) mod valid {
    pub(crate) const MODE: u32 = 1;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
}

/// `FUSE_GETATTR_FH`
pub(crate) const GETATTR_FH: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`
pub(crate) const FSYNC_DATA_ONLY: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`
pub(crate) const WRITE_KILL_SET_ID: u32 = 1 << 2;
/// `FOPEN_PASSTHROUGH`
pub(crate) const FOPEN_PASSTHROUGH: u32 = 1 << 7;

macro_rules! layouts {
    ($($(#[$about:meta])* $name:ident { $($(#[$note:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$about])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub(crate) struct $name {
            $($(#[$note])* pub(crate) $field: $kind,)*
        }
    )*};
}

layouts! {
    /// Before each request.
    InHeader {
        len: u32,
        opcode: u32,
        unique: u64,
        node: u64,
        uid: u32,
        gid: u32,
        pid: u32,
        /// Of extensions at the end, in units of eight bytes.
        extensions_len: u16,
        padding: u16,
    }
    /// Before each answer; `error` is a negative errno, or the code of a notification.
    OutHeader {
        len: u32,
        error: i32,
        unique: u64,
    }
    /// The part of `fuse_init_in` that each kernel of this version sends.
    InitIn {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
    }
    InitOut {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        max_background: u16,
        congestion_threshold: u16,
        max_write: u32,
        time_gran: u32,
        max_pages: u16,
        map_alignment: u16,
        flags2: u32,
        max_stack_depth: u32,
        unused: [u32; 6],
    }
    Attr {
        ino: u64,
        size: u64,
        blocks: u64,
        atime: i64,
        mtime: i64,
        ctime: i64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        blksize: u32,
        flags: u32,
    }
    EntryOut {
        node: u64,
        generation: u64,
        entry_valid: u64,
        attr_valid: u64,
        entry_valid_nsec: u32,
        attr_valid_nsec: u32,
        attr: Attr,
    }
    AttrOut {
        attr_valid: u64,
        attr_valid_nsec: u32,
        dummy: u32,
        attr: Attr,
    }
    ForgetIn {
        count: u64,
    }
    BatchForgetIn {
        count: u32,
        dummy: u32,
    }
    ForgetOne {
        node: u64,
        count: u64,
    }
    GetattrIn {
        flags: u32,
        dummy: u32,
        fh: u64,
    }
    SetattrIn {
        valid: u32,
        padding: u32,
        fh: u64,
        size: u64,
        lock_owner: u64,
        atime: i64,
        mtime: i64,
        ctime: i64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        unused4: u32,
        uid: u32,
        gid: u32,
        unused5: u32,
    }
    MknodIn {
        mode: u32,
        rdev: u32,
        umask: u32,
        padding: u32,
    }
    MkdirIn {
        mode: u32,
        umask: u32,
    }
    RenameIn {
        new_parent: u64,
    }
    Rename2In {
        new_parent: u64,
        flags: u32,
        padding: u32,
    }
    LinkIn {
        old_node: u64,
    }
    OpenIn {
        flags: u32,
        open_flags: u32,
    }
    CreateIn {
        flags: u32,
        mode: u32,
        umask: u32,
        open_flags: u32,
    }
    OpenOut {
        fh: u64,
        open_flags: u32,
        backing_id: u32,
    }
    CreateOut {
        entry: EntryOut,
        open: OpenOut,
    }
    /// Also of `READDIR` and `READDIRPLUS`.
    ReadIn {
        fh: u64,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
    WriteIn {
        fh: u64,
        offset: u64,
        size: u32,
        write_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
    WriteOut {
        size: u32,
        padding: u32,
    }
    ReleaseIn {
        fh: u64,
        flags: u32,
        release_flags: u32,
        lock_owner: u64,
    }
    FlushIn {
        fh: u64,
        unused: u32,
        padding: u32,
        lock_owner: u64,
    }
    FsyncIn {
        fh: u64,
        flags: u32,
        padding: u32,
    }
    StatfsOut {
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
        padding: u32,
        spare: [u32; 6],
    }
    /// What comes first of `fuse_setxattr_in`, and all of it unless `FUSE_SETXATTR_EXT` was agreed.
    SetxattrIn {
        size: u32,
        flags: u32,
    }
    SetxattrExtIn {
        setxattr_flags: u32,
        padding: u32,
    }
    /// Also of `LISTXATTR`.
    GetxattrIn {
        size: u32,
        padding: u32,
    }
    GetxattrOut {
        size: u32,
        padding: u32,
    }
    InterruptIn {
        unique: u64,
    }
    FallocateIn {
        fh: u64,
        offset: u64,
        length: u64,
        mode: u32,
        padding: u32,
    }
    LseekIn {
        fh: u64,
        offset: i64,
        whence: u32,
        padding: u32,
    }
    LseekOut {
        offset: u64,
    }
    CopyFileRangeIn {
        fh_in: u64,
        offset_in: u64,
        node_out: u64,
        fh_out: u64,
        offset_out: u64,
        len: u64,
        flags: u64,
    }
    /// The name follows, and zeros up to eight bytes.
    Dirent {
        ino: u64,
        next: u64,
        name_len: u32,
        kind: u32,
    }
    DirentPlus {
        entry: EntryOut,
        dirent: Dirent,
    }
    NotifyInvalInode {
        ino: u64,
        offset: i64,
        len: i64,
    }
    /// The name follows, with a zero at its end.
    NotifyInvalEntry {
        parent: u64,
        name_len: u32,
        flags: u32,
    }
    BackingMap {
        fd: i32,
        flags: u32,
        padding: u64,
    }
    /// With each command of a ring.
    RingCommand {
        flags: u64,
        commit: u64,
        queue: u16,
        padding: [u8; 6],
    }
    /// What comes in an entry of a ring besides the request, or goes with the answer.
    RingInOut {
        flags: u64,
        /// Names the request when it is answered.
        commit: u64,
        payload_len: u32,
        padding: u32,
        reserved: u64,
    }
    /// `iovec`
    Span {
        start: u64,
        len: u64,
    }
}

// The sizes that the kernel's header has.
const _: () = {
    assert!(size_of::<InHeader>() == 40);
    assert!(size_of::<OutHeader>() == 16);
    assert!(size_of::<InitOut>() == 64);
    assert!(size_of::<Attr>() == 88);
    assert!(size_of::<EntryOut>() == 128);
    assert!(size_of::<AttrOut>() == 104);
    assert!(size_of::<SetattrIn>() == 88);
    assert!(size_of::<OpenOut>() == 16);
    assert!(size_of::<ReadIn>() == 40);
    assert!(size_of::<WriteIn>() == 40);
    assert!(size_of::<StatfsOut>() == 80);
    assert!(size_of::<CopyFileRangeIn>() == 56);
    assert!(size_of::<Dirent>() == 24);
    assert!(size_of::<BackingMap>() == 16);
    assert!(size_of::<RingCommand>() == 24);
    assert!(size_of::<RingInOut>() == 32);
};
