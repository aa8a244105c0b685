//! What is told of files: numbers, attributes, times.

use std::time::Duration;

use crate::abi;

/// The number of an inode, as the file system gives it. It is the kernel's until it is forgotten as often as it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The file system's root, which the kernel knows without asking.
    pub const ROOT: Self = Self(1);
}

/// The number of something open, as the file system gives it; the kernel's until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds since 1970, rounded down; may be negative.
    pub secs: i64,
    /// 0..1e9.
    pub nanos: u32,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Length in bytes.
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// `st_mode`: kind and permissions.
    pub mode: u32,
    /// Names.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device's number if it is one.
    pub device: u32,
    /// What is good to read at once, in bytes.
    pub block_len: u32,
}

impl Attr {
    pub(crate) fn to_abi(self) -> abi::Attr {
        abi::Attr {
            ino: self.ino.0,
            size: self.size,
            blocks: self.blocks,
            atime: self.atime.secs,
            mtime: self.mtime.secs,
            ctime: self.ctime.secs,
            atimensec: self.atime.nanos,
            mtimensec: self.mtime.nanos,
            ctimensec: self.ctime.nanos,
            mode: self.mode,
            nlink: self.links,
            uid: self.uid,
            gid: self.gid,
            rdev: self.device,
            blksize: self.block_len,
            flags: 0,
        }
    }
}

/// A name that was found, and what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it stands for. The kernel counts this lookup of the inode.
    pub attr: Attr,
    /// Inode number and generation together are never given to anything else.
    pub generation: u64,
    /// How long the kernel may believe name and attributes.
    pub ttl: Duration,
}

impl Entry {
    pub(crate) fn to_abi(self) -> abi::EntryOut {
        abi::EntryOut {
            node: self.attr.ino.0,
            generation: self.generation,
            entry_valid: self.ttl.as_secs(),
            attr_valid: self.ttl.as_secs(),
            entry_valid_nsec: self.ttl.subsec_nanos(),
            attr_valid_nsec: self.ttl.subsec_nanos(),
            attr: self.attr.to_abi(),
        }
    }
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statfs {
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Blocks that anybody may take.
    pub blocks_available: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Of a block, in bytes.
    pub block_len: u32,
    /// Of a name, in bytes.
    pub name_len_max: u32,
}

impl Statfs {
    pub(crate) fn to_abi(self) -> abi::StatfsOut {
        abi::StatfsOut {
            blocks: self.blocks,
            bfree: self.blocks_free,
            bavail: self.blocks_available,
            files: self.files,
            ffree: self.files_free,
            bsize: self.block_len,
            namelen: self.name_len_max,
            frsize: self.block_len,
            padding: 0,
            spare: [0; 6],
        }
    }
}
