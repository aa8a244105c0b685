//! The kernel's FUSE channel: requests come as typed operations, answers go back in one system call each.
//!
//! A [`Device`] is an open `/dev/fuse`. A [`Session`] says hello on it ([`Session::start`]), or takes up one that a process
//! which died has served ([`Session::take_up`]), and serves a [`Filesystem`] with some threads that read from this one
//! descriptor: descriptors of their own would die with them, and with those what they had read. Whoever keeps a descriptor
//! keeps the file system alive, and [`resend`] (Linux 6.9) lets the kernel ask again for what was not answered.
//!
//! A request lives in its thread's buffer and is parsed in place ([`Operation`](request::Operation)); the reply that each
//! method of [`Filesystem`] gets may go to any other thread, and is sent by one `writev` of a header on the stack and what
//! the file system has: nothing is allocated or joined on the way.
//!
//! Where the kernel has it (Linux 6.14) requests can come by rings instead ([`Transport::Ring`]), with fewer wake-ups. All else is
//! the same: the file system sees no difference.
//!
//! Layouts are those of `linux/fuse.h`; the protocol is written down in the kernel's `Documentation/filesystems/fuse`.
#![deny(unsafe_code)]

mod abi;
mod attr;
mod backing;
mod device;
mod filesystem;
mod helper;
mod init;
mod message;
mod notify;
mod reply;
mod request;
mod ring;
mod serve;
mod session;

pub use rustix::io::Errno;

pub use self::attr::{Attr, Entry, Handle, Ino, Statfs, Time};
pub use self::backing::BackingId;
pub use self::device::{Device, is_alive};
pub use self::filesystem::Filesystem;
pub use self::helper::{HelperMount, mount_by_helper};
pub use self::init::{Agreed, InitFlags, Wishes};
pub use self::notify::{invalidate_entry, invalidate_inode, resend};
pub use self::reply::{
    FopenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
pub use self::request::{
    CopyFileRange, Fallocate, Forgets, Make, RESENT, Read, Rename, Request, SetTime, Setattr, Setxattr, Write,
};
pub use self::ring::WhyDevice;
pub use self::session::{Allowed, Placement, Running, Session, Settings, Transport};
