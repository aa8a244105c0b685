//! What a file system answers.

use crate::reply::{
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use crate::request::{CopyFileRange, Fallocate, Make, Read, Rename, Request, Setattr, Setxattr, Write};
use crate::{Errno, Handle, Ino};

/// A file system. Its methods are called by several threads at once, and what they get is borrowed from the thread's buffer:
/// who answers later takes a copy. A method that is left out answers `ENOSYS`; for most operations the kernel then does not
/// ask again.
///
/// The inode of each request is [`Request::ino`]; for what makes, removes and looks up names it is their directory. Names are
/// as callers wrote them, any bytes but `/` and zero.
pub trait Filesystem: Send + Sync + 'static {
    /// What a name stands for.
    fn lookup(&self, _request: &Request, _name: &[u8], reply: ReplyEntry) {
        reply.error(Errno::NOSYS);
    }

    /// The kernel forgets an inode that it was told of `count` times. Not answered.
    fn forget(&self, _ino: Ino, _count: u64) {}

    /// `stat` and `fstat`.
    fn getattr(&self, _request: &Request, _handle: Option<Handle>, reply: ReplyAttr) {
        reply.error(Errno::NOSYS);
    }

    /// `chmod`, `chown`, `truncate`, `utimens`; several of them at once.
    fn setattr(&self, _request: &Request, _set: Setattr, reply: ReplyAttr) {
        reply.error(Errno::NOSYS);
    }

    /// The target of a link.
    fn readlink(&self, _request: &Request, reply: ReplyData) {
        reply.error(Errno::NOSYS);
    }

    /// A file, device, pipe or socket.
    fn mknod(&self, _request: &Request, _make: Make<'_>, reply: ReplyEntry) {
        reply.error(Errno::NOSYS);
    }

    /// A directory.
    fn mkdir(&self, _request: &Request, _make: Make<'_>, reply: ReplyEntry) {
        reply.error(Errno::NOSYS);
    }

    /// Removes the name of anything but a directory.
    fn unlink(&self, _request: &Request, _name: &[u8], reply: ReplyEmpty) {
        reply.error(Errno::NOSYS);
    }

    /// Removes a directory.
    fn rmdir(&self, _request: &Request, _name: &[u8], reply: ReplyEmpty) {
        reply.error(Errno::NOSYS);
    }

    /// A symbolic link.
    fn symlink(&self, _request: &Request, _name: &[u8], _target: &[u8], reply: ReplyEntry) {
        reply.error(Errno::NOSYS);
    }

    /// Moves a name, over another one if there is one.
    fn rename(&self, _request: &Request, _rename: Rename<'_>, reply: ReplyEmpty) {
        reply.error(Errno::NOSYS);
    }

    /// Another name for a file, in the request's directory.
    fn link(&self, _request: &Request, _file: Ino, _name: &[u8], reply: ReplyEntry) {
        reply.error(Errno::NOSYS);
    }

    /// Opens a file, with `O_…` of `open(2)`.
    fn open(&self, _request: &Request, _flags: u32, reply: ReplyOpen) {
        reply.error(Errno::NOSYS);
    }

    /// Makes a file if there is none, and opens it.
    fn create(&self, _request: &Request, _make: Make<'_>, _flags: u32, reply: ReplyCreate) {
        reply.error(Errno::NOSYS);
    }

    /// Bytes of a file; fewer than asked for only at its end.
    fn read(&self, _request: &Request, _read: Read, reply: ReplyData) {
        reply.error(Errno::NOSYS);
    }

    /// Bytes for a file.
    fn write(&self, _request: &Request, _write: Write<'_>, reply: ReplyWrite) {
        reply.error(Errno::NOSYS);
    }

    /// One descriptor of an open file is closed; its caller waits for the answer, and sees an error.
    fn flush(&self, _request: &Request, _handle: Handle, reply: ReplyEmpty) {
        reply.error(Errno::NOSYS);
    }

    /// An open file is closed by all; nobody sees an error.
    fn release(&self, _request: &Request, _handle: Handle, reply: ReplyEmpty) {
        reply.error(Errno::NOSYS);
    }

    /// What was written is to be safe; with `data_only` attributes that nobody needs to find it need not.
    fn fsync(&self, _request: &Request, _handle: Handle, _data_only: bool, reply: ReplyEmpty) {
        reply.error(Errno::NOSYS);
    }

    /// Opens a directory.
    fn opendir(&self, _request: &Request, _flags: u32, reply: ReplyOpen) {
        reply.error(Errno::NOSYS);
    }

    /// Entries of an open directory, from [`Read::offset`]: 0, or what an entry before said is next.
    fn readdir(&self, _request: &Request, _read: Read, reply: ReplyDirectory) {
        reply.error(Errno::NOSYS);
    }

    /// The same with attributes.
    fn readdirplus(&self, _request: &Request, _read: Read, reply: ReplyDirectoryPlus) {
        reply.error(Errno::NOSYS);
    }

    /// An open directory is closed by all.
    fn releasedir(&self, _request: &Request, _handle: Handle, reply: ReplyEmpty) {
        reply.error(Errno::NOSYS);
    }

    /// Names of a directory are to be safe.
    fn fsyncdir(&self, _request: &Request, _handle: Handle, _data_only: bool, reply: ReplyEmpty) {
        reply.error(Errno::NOSYS);
    }

    /// Room.
    fn statfs(&self, _request: &Request, reply: ReplyStatfs) {
        reply.error(Errno::NOSYS);
    }

    /// Sets an extended attribute.
    fn setxattr(&self, _request: &Request, _set: Setxattr<'_>, reply: ReplyEmpty) {
        reply.error(Errno::NOSYS);
    }

    /// An extended attribute of at most `len_max` bytes; with 0 only its length.
    fn getxattr(&self, _request: &Request, _name: &[u8], _len_max: u32, reply: ReplyXattr) {
        reply.error(Errno::NOSYS);
    }

    /// The names of extended attributes, with a zero after each, in at most `len_max` bytes; with 0 only the length.
    fn listxattr(&self, _request: &Request, _len_max: u32, reply: ReplyXattr) {
        reply.error(Errno::NOSYS);
    }

    /// Removes an extended attribute.
    fn removexattr(&self, _request: &Request, _name: &[u8], reply: ReplyEmpty) {
        reply.error(Errno::NOSYS);
    }

    /// Allocates or clears a range.
    fn fallocate(&self, _request: &Request, _range: Fallocate, reply: ReplyEmpty) {
        reply.error(Errno::NOSYS);
    }

    /// Looks for data or a hole (`SEEK_DATA`, `SEEK_HOLE`) from an offset in bytes.
    fn lseek(&self, _request: &Request, _handle: Handle, _offset: i64, _whence: u32, reply: ReplyLseek) {
        reply.error(Errno::NOSYS);
    }

    /// Copies between open files.
    fn copy_file_range(&self, _request: &Request, _copy: CopyFileRange, reply: ReplyWrite) {
        reply.error(Errno::NOSYS);
    }
}
