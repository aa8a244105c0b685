//! What the kernel asks for: a message of the device, or an entry of a ring, becomes a typed [`Operation`].
//!
//! Small structures are copied out of the message, which need not be aligned; names and data are borrowed from it. A message
//! is believed only as far as its length: nothing in it can make us panic.

use rustix::fs::OFlags;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::abi::{self, InHeader, opcode, valid};
use crate::{Errno, Handle, Ino, Time};

/// A request that the kernel sends again has this bit in its number, and its answer must have it.
pub const RESENT: u64 = 1 << 63;

/// Who asks, and by which number the answer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request(InHeader);

impl Request {
    /// The request's number as the answer must have it, with [`RESENT`] if that is set.
    pub fn unique(&self) -> u64 {
        self.0.unique
    }

    /// The user whose rights count, as the mount's user namespace knows it.
    pub fn uid(&self) -> u32 {
        self.0.uid
    }

    /// The group whose rights count.
    pub fn gid(&self) -> u32 {
        self.0.gid
    }

    /// The thread that waits; 0 if it is of no process that this pid namespace knows, or the kernel's own.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// The file or directory that the request is about.
    pub fn ino(&self) -> Ino {
        Ino(self.0.node)
    }

    pub(crate) fn opcode(&self) -> u32 {
        self.0.opcode
    }

    /// The kernel does not wait for an answer.
    pub(crate) fn is_unanswered(&self) -> bool {
        matches!(self.0.opcode, opcode::FORGET | opcode::BATCH_FORGET)
    }
}

/// What is asked for. Names are without the zero at their end, and as the caller wrote them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Lookup { name: &'a [u8] },
    Forget { count: u64 },
    BatchForget(Forgets<'a>),
    Getattr { handle: Option<Handle> },
    Setattr(Setattr),
    Readlink,
    Symlink { name: &'a [u8], target: &'a [u8] },
    Mknod(Make<'a>),
    Mkdir(Make<'a>),
    Unlink { name: &'a [u8] },
    Rmdir { name: &'a [u8] },
    Rename(Rename<'a>),
    Link { ino: Ino, name: &'a [u8] },
    Open { flags: u32 },
    Read(Read),
    Write(Write<'a>),
    Statfs,
    Release { handle: Handle },
    Fsync { handle: Handle, data_only: bool },
    Setxattr(Setxattr<'a>),
    Getxattr { name: &'a [u8], len_max: u32 },
    Listxattr { len_max: u32 },
    Removexattr { name: &'a [u8] },
    Flush { handle: Handle },
    Init(Offer),
    Opendir { flags: u32 },
    Readdir(Read),
    Readdirplus(Read),
    Releasedir { handle: Handle },
    Fsyncdir { handle: Handle, data_only: bool },
    Create { make: Make<'a>, flags: u32 },
    Interrupt { unique: u64 },
    Destroy,
    Fallocate(Fallocate),
    Lseek { handle: Handle, offset: i64, whence: u32 },
    CopyFileRange(CopyFileRange),
}

/// A new name and what it shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Make<'a> {
    /// In the request's directory.
    pub name: &'a [u8],
    /// `st_mode`: kind (not for a directory) and permissions.
    pub mode: u32,
    /// The caller's; the kernel has applied it already.
    pub umask: u32,
    /// The device's number if it shall be one.
    pub device: u32,
}

/// A change of attributes: what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setattr {
    /// `st_mode`.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the contents.
    pub mtime: Option<SetTime>,
    /// The open file that this goes through.
    pub handle: Option<Handle>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This one.
    At(Time),
}

/// A move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rename<'a> {
    /// In the request's directory.
    pub name: &'a [u8],
    /// The directory that it moves to.
    pub new_parent: Ino,
    /// Its name there.
    pub new_name: &'a [u8],
    /// `RENAME_…`, as of `renameat2(2)`.
    pub flags: u32,
}

/// A part of a file or of a directory's listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// What was opened.
    pub handle: Handle,
    /// In bytes; at most `i64::MAX` for a file. For a listing what the entry before said is next.
    pub offset: u64,
    /// The most that is taken, in bytes.
    pub len: u32,
    /// It goes past the kernel's pages, to the memory of whoever asks: `O_DIRECT`.
    pub is_direct: bool,
}

/// Bytes for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write<'a> {
    /// What was opened.
    pub handle: Handle,
    /// In bytes; at most `i64::MAX`.
    pub offset: u64,
    /// Borrowed from the request's buffer, which the next request overwrites.
    pub data: &'a [u8],
    /// The caller may not keep the file's set-id bits.
    pub kill_set_id: bool,
}

/// An extended attribute to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setxattr<'a> {
    /// With its namespace, such as `user.`.
    pub name: &'a [u8],
    /// Any bytes.
    pub value: &'a [u8],
    /// `XATTR_CREATE`, `XATTR_REPLACE` or 0.
    pub flags: u32,
}

/// A range of a file to allocate or to clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallocate {
    /// What was opened.
    pub handle: Handle,
    /// In bytes; at most `i64::MAX`.
    pub offset: u64,
    /// In bytes; at most `i64::MAX`.
    pub len: u64,
    /// `FALLOC_FL_…`
    pub mode: u32,
}

/// A copy from one open file to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFileRange {
    /// What is read.
    pub from: Handle,
    /// In bytes; at most `i64::MAX`.
    pub from_offset: u64,
    /// What is written.
    pub to: Handle,
    /// In bytes; at most `i64::MAX`.
    pub to_offset: u64,
    /// In bytes.
    pub len: u64,
    /// None are known yet.
    pub flags: u64,
}

/// Inodes to forget, and how many lookups of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgets<'a>(&'a [u8]);

impl Iterator for Forgets<'_> {
    type Item = (Ino, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let (one, rest) = abi::ForgetOne::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some((Ino(one.node), one.count))
    }
}

/// What a kernel can do: `fuse_init_in`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// In bytes.
    pub(crate) max_readahead: u32,
    pub(crate) flags: u64,
}

/// What was agreed that changes layouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dialect {
    /// `FUSE_SETXATTR_EXT`
    pub(crate) long_setxattr: bool,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// We do not know what it asks for. Said once, most kernels do without from then on.
    Unknown,
    /// It is cut short, or its parts do not fit each other.
    Malformed,
    /// An offset that no file has.
    Offset,
}

impl Refusal {
    pub(crate) fn errno(self) -> Errno {
        match self {
            Self::Unknown | Self::Malformed => Errno::NOSYS,
            Self::Offset => Errno::INVAL,
        }
    }
}

/// Takes a message of the device apart. `None` without even a header, so that there is nobody to answer.
pub(crate) fn parse(message: &[u8], dialect: Dialect) -> Option<(Request, Result<Operation<'_>, Refusal>)> {
    let (header, body) = InHeader::read_from_prefix(message).ok()?;
    Some(parse_parts(&header, body, &[], dialect))
}

/// Takes a message apart whose body is in two places: the structure of the operation, if it has one, may be apart from the names
/// and data that follow it.
pub(crate) fn parse_parts<'a>(
    header: &InHeader,
    structure: &'a [u8],
    rest: &'a [u8],
    dialect: Dialect,
) -> (Request, Result<Operation<'a>, Refusal>) {
    let operation = body(header, structure, rest).and_then(|body| operation(header, body, dialect));
    (Request(*header), operation)
}

/// What stands between the header and the extensions, none of which we have asked for.
fn body<'a>(header: &InHeader, structure: &'a [u8], rest: &'a [u8]) -> Result<Body<'a>, Refusal> {
    if usize::try_from(header.len) != Ok(size_of::<InHeader>() + structure.len() + rest.len()) {
        return Err(Refusal::Malformed);
    }
    let without_extensions = |bytes: &'a [u8]| {
        let len = bytes.len().checked_sub(usize::from(header.extensions_len) * 8).ok_or(Refusal::Malformed)?;
        Ok(&bytes[..len])
    };
    Ok(match rest {
        [] => Body { first: without_extensions(structure)?, then: &[] },
        _ => Body { first: structure, then: without_extensions(rest)? },
    })
}

fn operation<'a>(header: &InHeader, mut body: Body<'a>, dialect: Dialect) -> Result<Operation<'a>, Refusal> {
    Ok(match header.opcode {
        opcode::LOOKUP => Operation::Lookup { name: body.name()? },
        opcode::FORGET => Operation::Forget { count: body.take::<abi::ForgetIn>()?.count },
        opcode::BATCH_FORGET => {
            let count = body.take::<abi::BatchForgetIn>()?.count;
            let len = usize::try_from(count).ok().and_then(|count| count.checked_mul(size_of::<abi::ForgetOne>()));
            Operation::BatchForget(Forgets(body.bytes(len.ok_or(Refusal::Malformed)?)?))
        }
        opcode::GETATTR => {
            let getattr = body.take::<abi::GetattrIn>()?;
            Operation::Getattr { handle: (getattr.flags & abi::GETATTR_FH != 0).then_some(Handle(getattr.fh)) }
        }
        opcode::SETATTR => Operation::Setattr(setattr(&body.take()?)),
        opcode::READLINK => Operation::Readlink,
        opcode::SYMLINK => Operation::Symlink { name: body.name()?, target: body.name()? },
        opcode::MKNOD => {
            let mknod = body.take::<abi::MknodIn>()?;
            Operation::Mknod(Make { mode: mknod.mode, umask: mknod.umask, device: mknod.rdev, name: body.name()? })
        }
        opcode::MKDIR => {
            let mkdir = body.take::<abi::MkdirIn>()?;
            Operation::Mkdir(Make { mode: mkdir.mode, umask: mkdir.umask, device: 0, name: body.name()? })
        }
        opcode::UNLINK => Operation::Unlink { name: body.name()? },
        opcode::RMDIR => Operation::Rmdir { name: body.name()? },
        opcode::RENAME => {
            let new_parent = body.take::<abi::RenameIn>()?.new_parent;
            body.rename(new_parent, 0)?
        }
        opcode::RENAME2 => {
            let rename = body.take::<abi::Rename2In>()?;
            body.rename(rename.new_parent, rename.flags)?
        }
        opcode::LINK => Operation::Link { ino: Ino(body.take::<abi::LinkIn>()?.old_node), name: body.name()? },
        opcode::OPEN => Operation::Open { flags: body.take::<abi::OpenIn>()?.flags },
        opcode::OPENDIR => Operation::Opendir { flags: body.take::<abi::OpenIn>()?.flags },
        opcode::CREATE => {
            let create = body.take::<abi::CreateIn>()?;
            let make = Make { mode: create.mode, umask: create.umask, device: 0, name: body.name()? };
            Operation::Create { make, flags: create.flags }
        }
        opcode::READ => {
            let read = body.read()?;
            Operation::Read(Read { offset: offset(read.offset)?, ..read })
        }
        opcode::READDIR => Operation::Readdir(body.read()?),
        opcode::READDIRPLUS => Operation::Readdirplus(body.read()?),
        opcode::WRITE => body.write()?,
        opcode::STATFS => Operation::Statfs,
        opcode::RELEASE => Operation::Release { handle: Handle(body.take::<abi::ReleaseIn>()?.fh) },
        opcode::RELEASEDIR => Operation::Releasedir { handle: Handle(body.take::<abi::ReleaseIn>()?.fh) },
        opcode::FLUSH => Operation::Flush { handle: Handle(body.take::<abi::FlushIn>()?.fh) },
        opcode::FSYNC => {
            let (handle, data_only) = body.fsync()?;
            Operation::Fsync { handle, data_only }
        }
        opcode::FSYNCDIR => {
            let (handle, data_only) = body.fsync()?;
            Operation::Fsyncdir { handle, data_only }
        }
        opcode::SETXATTR => body.setxattr(dialect)?,
        opcode::GETXATTR => {
            let len_max = body.take::<abi::GetxattrIn>()?.size;
            Operation::Getxattr { name: body.name()?, len_max }
        }
        opcode::LISTXATTR => Operation::Listxattr { len_max: body.take::<abi::GetxattrIn>()?.size },
        opcode::REMOVEXATTR => Operation::Removexattr { name: body.name()? },
        opcode::INIT => body.init()?,
        opcode::INTERRUPT => Operation::Interrupt { unique: body.take::<abi::InterruptIn>()?.unique },
        opcode::DESTROY => Operation::Destroy,
        opcode::FALLOCATE => {
            let range = body.take::<abi::FallocateIn>()?;
            let (handle, mode) = (Handle(range.fh), range.mode);
            Operation::Fallocate(Fallocate { handle, offset: offset(range.offset)?, len: offset(range.length)?, mode })
        }
        opcode::LSEEK => {
            let lseek = body.take::<abi::LseekIn>()?;
            Operation::Lseek { handle: Handle(lseek.fh), offset: lseek.offset, whence: lseek.whence }
        }
        opcode::COPY_FILE_RANGE => {
            let copy = body.take::<abi::CopyFileRangeIn>()?;
            Operation::CopyFileRange(CopyFileRange {
                from: Handle(copy.fh_in),
                from_offset: offset(copy.offset_in)?,
                to: Handle(copy.fh_out),
                to_offset: offset(copy.offset_out)?,
                len: copy.len,
                flags: copy.flags,
            })
        }
        _ => return Err(Refusal::Unknown),
    })
}

fn setattr(set: &abi::SetattrIn) -> Setattr {
    let has = |bit| set.valid & bit != 0;
    let time = |bit, now, secs, nanos| {
        let at = if has(now) { SetTime::Now } else { SetTime::At(Time { secs, nanos }) };
        has(bit).then_some(at)
    };
    Setattr {
        mode: has(valid::MODE).then_some(set.mode),
        uid: has(valid::UID).then_some(set.uid),
        gid: has(valid::GID).then_some(set.gid),
        size: has(valid::SIZE).then_some(set.size),
        atime: time(valid::ATIME, valid::ATIME_NOW, set.atime, set.atimensec),
        mtime: time(valid::MTIME, valid::MTIME_NOW, set.mtime, set.mtimensec),
        handle: has(valid::FH).then_some(Handle(set.fh)),
    }
}

/// The kernel's offsets are signed.
fn offset(offset: u64) -> Result<u64, Refusal> {
    if i64::try_from(offset).is_ok() { Ok(offset) } else { Err(Refusal::Offset) }
}

/// What is left of a message: all of it in one place, or its structure apart. Nothing is in both.
struct Body<'a> {
    first: &'a [u8],
    then: &'a [u8],
}

impl<'a> Body<'a> {
    /// Where the next of it is.
    fn left(&mut self) -> &mut &'a [u8] {
        if self.first.is_empty() { &mut self.then } else { &mut self.first }
    }

    /// All that is left.
    fn all(mut self) -> Result<&'a [u8], Refusal> {
        let left = *self.left();
        if left.len() == self.first.len() + self.then.len() { Ok(left) } else { Err(Refusal::Malformed) }
    }

    fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, Refusal> {
        let left = self.left();
        let (value, rest) = T::read_from_prefix(left).map_err(|_| Refusal::Malformed)?;
        *left = rest;
        Ok(value)
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Refusal> {
        let left = self.left();
        let (bytes, rest) = left.split_at_checked(len).ok_or(Refusal::Malformed)?;
        *left = rest;
        Ok(bytes)
    }

    /// Up to a zero, which must be there.
    fn name(&mut self) -> Result<&'a [u8], Refusal> {
        let left = self.left();
        let len = left.iter().position(|&byte| byte == 0).ok_or(Refusal::Malformed)?;
        let name = &left[..len];
        *left = &left[len + 1..];
        Ok(name)
    }

    fn rename(&mut self, new_parent: u64, flags: u32) -> Result<Operation<'a>, Refusal> {
        let (name, new_name) = (self.name()?, self.name()?);
        Ok(Operation::Rename(Rename { name, new_parent: Ino(new_parent), new_name, flags }))
    }

    fn read(&mut self) -> Result<Read, Refusal> {
        let read = self.take::<abi::ReadIn>()?;
        let is_direct = OFlags::from_bits_retain(read.flags).contains(OFlags::DIRECT);
        Ok(Read { handle: Handle(read.fh), offset: read.offset, len: read.size, is_direct })
    }

    fn write(mut self) -> Result<Operation<'a>, Refusal> {
        let write = self.take::<abi::WriteIn>()?;
        let data = self.all()?;
        if usize::try_from(write.size) != Ok(data.len()) {
            return Err(Refusal::Malformed);
        }
        let kill_set_id = write.write_flags & abi::WRITE_KILL_SET_ID != 0;
        let (handle, offset) = (Handle(write.fh), offset(write.offset)?);
        Ok(Operation::Write(Write { handle, offset, data, kill_set_id }))
    }

    fn fsync(&mut self) -> Result<(Handle, bool), Refusal> {
        let fsync = self.take::<abi::FsyncIn>()?;
        Ok((Handle(fsync.fh), fsync.flags & abi::FSYNC_DATA_ONLY != 0))
    }

    fn setxattr(mut self, dialect: Dialect) -> Result<Operation<'a>, Refusal> {
        let set = self.take::<abi::SetxattrIn>()?;
        if dialect.long_setxattr {
            self.take::<abi::SetxattrExtIn>()?;
        }
        let name = self.name()?;
        let value = self.all()?;
        if usize::try_from(set.size) != Ok(value.len()) {
            return Err(Refusal::Malformed);
        }
        Ok(Operation::Setxattr(Setxattr { name, value, flags: set.flags }))
    }

    fn init(&mut self) -> Result<Operation<'a>, Refusal> {
        let init = self.take::<abi::InitIn>()?;
        // Kernels before 5.17 have no second word, and do not say that they have one.
        let high = if u64::from(init.flags) & crate::InitFlags::INIT_EXT.bits() != 0 { self.take::<u32>()? } else { 0 };
        let flags = u64::from(init.flags) | u64::from(high) << 32;
        let (major, minor, max_readahead) = (init.major, init.minor, init.max_readahead);
        Ok(Operation::Init(Offer { major, minor, max_readahead, flags }))
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
