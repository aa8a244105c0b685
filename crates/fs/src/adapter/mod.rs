//! Between the kernel and the engine, by the `fuser` crate.
//!
//! A request is polled once on the thread that read it, so that what is known already is answered
//! without a hand-over; what must wait goes on as a task of the runtime, and its caller is let go when its time is over or
//! it is to end ([`crate::patience`], [`caller`]).

mod caller;
mod mounting;

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use fuser::{
    CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use sandpail_fuse::RESENT;

use self::caller::Caller;
pub use self::mounting::{MountOptions, Mounted, Served, mount, serve_device, take_up, take_up_device};
use crate::attr::{Kind, S_IFMT, S_IFREG};
use crate::engine::{Asked, Engine, Listed, Metadata, OpenMode, Opened, SetAttr, SetTime, Stat, Whence};
use crate::errno::{Errno, errno};
pub use crate::ids::IdMap;
use crate::patience::{self, Course};
use crate::{FsError, FsResult};

/// The most data of one request, in bytes.
const REQUEST_LEN_MAX: u32 = 1 << 20;
/// Requests that the kernel sends ahead of answers.
const REQUESTS_AHEAD_MAX: u16 = 64;
/// Names of one `readdir`; the kernel's buffer is full much earlier.
const NAMES_PER_READDIR: usize = 1024;
/// How long the kernel may believe what it is told of local files, which nobody else changes.
const LOCAL_TTL: Duration = Duration::from_secs(3600);
/// An entry of `readdirplus` takes this much of the kernel's buffer besides its name, in bytes.
const ENTRY_PLUS_LEN: usize = 152;

#[derive(Debug)]
struct Adapter {
    engine: Arc<Engine>,
    runtime: tokio::runtime::Handle,
    ttl: Duration,
    ids: IdMap,
}

impl Adapter {
    fn new(engine: Arc<Engine>, ids: IdMap) -> Self {
        let runtime = engine.runtime().clone();
        let ttl = engine.options().metadata_ttl;
        Self { engine, runtime, ttl, ids }
    }

    /// How long the kernel may believe what it is told. Not at all while others of this host have the bucket mounted,
    /// whose changes only the engine notices: the kernel would show old sizes, and cut new contents at them.
    fn ttl(&self) -> Ttl {
        Ttl(if self.engine.has_neighbours() { Duration::ZERO } else { self.ttl })
    }

    /// Who asks, in the ids that files have.
    fn asker(&self, request: &Request) -> (u32, u32) {
        (self.ids.inner(request.uid()), self.ids.inner(request.gid()))
    }

    /// Polls once here; what is not ready goes on as a task, to its end.
    fn run(&self, future: impl Future<Output = ()> + Send + 'static) {
        let _entered = self.runtime.enter();
        let mut future: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(future);
        let mut context = Context::from_waker(Waker::noop());
        if future.as_mut().poll(&mut context).is_pending() {
            self.runtime.spawn(future);
        }
    }

    /// Does the same for a caller that waits, which gets by `answer` what `work` finds, or why it was let go before; what
    /// becomes of the work then is said by its course.
    fn attend<T: Send + 'static>(
        &self,
        call: Call,
        work: impl Future<Output = FsResult<T>> + Send + 'static,
        answer: impl FnOnce(FsResult<T>) + Send + 'static,
        course: impl FnOnce(&Engine, &FsError) -> Course<T> + Send + 'static,
    ) {
        let _entered = self.runtime.enter();
        let mut work = Box::pin(work);
        if let Poll::Ready(result) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            self.engine.settle();
            return answer(result);
        }
        let engine = Arc::clone(&self.engine);
        self.runtime.spawn(async move {
            let until = |begun| engine.patience_until(begun, call.stores);
            let leaves = || call.caller.leaves(call.closes);
            let let_go = match patience::wait(call.name, work.as_mut(), until, leaves).await {
                Ok(result) => {
                    engine.settle();
                    return answer(result);
                }
                Err(let_go) => let_go,
            };
            let undo = match course(&engine, &let_go) {
                Course::Dropped => {
                    drop(work);
                    engine.settle();
                    return answer(Err(let_go));
                }
                Course::ToItsEnd => None,
                Course::Undone(undo) => Some(undo),
            };
            engine.settle();
            answer(Err(let_go));
            if let (Ok(made), Some(undo)) = (work.await, undo) {
                undo(&engine, made);
            }
            engine.settle();
        });
    }
}

/// Who waits for what.
struct Call {
    name: &'static str,
    caller: Caller,
    /// It stores or moves data: its time begins anew whenever the store has taken a part of that.
    stores: bool,
    /// It comes from a program that may be gone.
    closes: bool,
}

impl Call {
    fn new(name: &'static str, request: &Request) -> Self {
        let stores = matches!(name, "flush" | "fsync" | "mknod" | "rename" | "setattr" | "unlink" | "write");
        Self { name, caller: Caller::new(request.pid()), stores, closes: name == "flush" }
    }
}

/// A request, by its number; whether it is sent the first time or again.
fn asked(request: &Request) -> Asked {
    let number = request.unique().0;
    Asked { number: number & !RESENT, is_again: number & RESENT != 0 }
}

/// How long the kernel may believe what it is told of files of the bucket.
#[derive(Clone, Copy)]
struct Ttl(Duration);

impl Ttl {
    fn of(self, stat: &Stat) -> Duration {
        if stat.is_local { LOCAL_TTL } else { self.0 }
    }
}

fn number(error: Errno) -> fuser::Errno {
    match error {
        Errno::ENOENT => fuser::Errno::ENOENT,
        Errno::EEXIST => fuser::Errno::EEXIST,
        Errno::ENOTDIR => fuser::Errno::ENOTDIR,
        Errno::EISDIR => fuser::Errno::EISDIR,
        Errno::ENOTEMPTY => fuser::Errno::ENOTEMPTY,
        Errno::EROFS => fuser::Errno::EROFS,
        Errno::EBADF => fuser::Errno::EBADF,
        Errno::EPERM => fuser::Errno::EPERM,
        Errno::EACCES => fuser::Errno::EACCES,
        Errno::EOPNOTSUPP => fuser::Errno::EOPNOTSUPP,
        Errno::EINVAL => fuser::Errno::EINVAL,
        Errno::ENAMETOOLONG => fuser::Errno::ENAMETOOLONG,
        Errno::EFBIG => fuser::Errno::EFBIG,
        Errno::ENOSPC => fuser::Errno::ENOSPC,
        Errno::ENODATA => fuser::Errno::ENODATA,
        Errno::ERANGE => fuser::Errno::ERANGE,
        Errno::EBUSY => fuser::Errno::EBUSY,
        Errno::EXDEV => fuser::Errno::EXDEV,
        Errno::ESTALE => fuser::Errno::ESTALE,
        Errno::EIO => fuser::Errno::EIO,
        Errno::ETIMEDOUT => fuser::Errno::ETIMEDOUT,
        Errno::EINTR => fuser::Errno::EINTR,
        Errno::EMFILE => fuser::Errno::EMFILE,
        Errno::ENFILE => fuser::Errno::ENFILE,
        Errno::EDQUOT => fuser::Errno::EDQUOT,
        Errno::ENOMEM => fuser::Errno::ENOMEM,
    }
}

/// The errno of a failure; what the operator must hear of is logged.
fn report(operation: &str, error: &FsError) -> fuser::Errno {
    let chosen = errno(error);
    match error {
        FsError::Store { .. }
        | FsError::Io { .. }
        | FsError::Damaged { .. }
        | FsError::NoSpace { .. }
        | FsError::Changed { .. }
        | FsError::TimedOut { .. } => {
            tracing::warn!(operation, errno = ?chosen, %error, "failed");
        }
        _ => tracing::debug!(operation, errno = ?chosen, %error, "refused"),
    }
    number(chosen)
}

fn file_attr(stat: &Stat, ids: IdMap) -> FileAttr {
    let attr = &stat.attr;
    FileAttr {
        ino: INodeNo(stat.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.atime.into(),
        mtime: attr.mtime.into(),
        ctime: attr.ctime.into(),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.perm & 0o7777).unwrap_or_default(),
        // As for many file systems: 1 means that the number of subdirectories is not counted.
        nlink: u32::from(stat.is_linked),
        uid: ids.outer(attr.uid),
        gid: ids.outer(attr.gid),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
    }
}

fn open_mode(flags: i32) -> OpenMode {
    let flags_bits = rustix::fs::OFlags::from_bits_retain(u32::from_ne_bytes(flags.to_ne_bytes()));
    let access = OpenFlags(flags).acc_mode();
    OpenMode {
        read: access != OpenAccMode::O_WRONLY,
        write: access != OpenAccMode::O_RDONLY,
        append: flags_bits.contains(rustix::fs::OFlags::APPEND),
        truncate: flags_bits.contains(rustix::fs::OFlags::TRUNC),
    }
}

fn fopen_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(time) => SetTime::At(time.into()),
        TimeOrNow::Now => SetTime::Now,
    }
}

/// Joins the chain for the reply; a chain of one is passed as it is.
fn reply_chain(reply: ReplyData, chain: &[bytes::Bytes]) {
    match chain {
        [] => reply.data(&[]),
        [one] => reply.data(one),
        many => reply.data(&many.concat()),
    }
}

const GENERATION: Generation = Generation(0);

/// Answers with what `work` finds. The course of work whose caller was let go is `drop`, `end` (it goes on to its end), or a
/// function of the engine and the error.
macro_rules! answer {
    (
        $self:ident,
        $name:literal,
        $request:ident,
        $reply:ident,
        $course:tt,
        |$engine:ident| $work:expr,
        |$value:pat_param| $ok:expr
    ) => {{
        let $engine = Arc::clone(&$self.engine);
        $self.attend(
            Call::new($name, $request),
            async move { $work.await },
            move |result| match result {
                Ok($value) => $ok,
                Err(error) => $reply.error(report($name, &error)),
            },
            course!($course),
        );
    }};
}

macro_rules! course {
    (drop) => {
        |_, _| Course::Dropped
    };
    (end) => {
        |_, _| Course::ToItsEnd
    };
    ($course:ident) => {
        $course
    };
    (($course:expr)) => {
        $course
    };
}

/// The kernel does not know the node that was made, so it will not say that it forgets it.
fn forget_made(_: &Engine, _: &FsError) -> Course<Stat> {
    Course::Undone(Box::new(|engine, stat| engine.forget(stat.ino, 1)))
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is asked for alone: a kernel that lacks one must not lose the others.
        // With attributes in the objects a plain `ls` must not ask for each of them; `lookup` asks ahead instead.
        let plus: &[InitFlags] = match self.engine.options().metadata {
            Metadata::Posix => &[],
            Metadata::None => &[InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO],
        };
        let flags = [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        for &flag in flags.iter().chain(plus) {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel lacks this");
            }
        }
        // A refused value comes back as the largest that is allowed.
        let _ = config.set_max_write(REQUEST_LEN_MAX).or_else(|most| config.set_max_write(most));
        let _ = config.set_max_readahead(REQUEST_LEN_MAX).or_else(|most| config.set_max_readahead(most));
        let _ = config.set_max_background(REQUESTS_AHEAD_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (name, ttl, ids) = (name.as_bytes().to_vec(), self.ttl(), self.ids);
        answer!(self, "lookup", request, reply, drop, |engine| engine.lookup(parent.0, &name), |stat| {
            reply.entry(&ttl.of(&stat), &file_attr(&stat, ids), GENERATION);
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.engine.forget(ino.0, count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let (ttl, ids) = (self.ttl(), self.ids);
        answer!(self, "getattr", request, reply, drop, |engine| engine.getattr(ino.0), |stat| reply
            .attr(&ttl.of(&stat), &file_attr(&stat, ids)));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (ttl, ids) = (self.ttl(), self.ids);
        let set = SetAttr {
            perm: mode,
            uid: uid.map(|uid| ids.inner(uid)),
            gid: gid.map(|gid| ids.inner(gid)),
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            handle: handle.map(|handle| handle.0),
            // A change of owner takes the set-id bits away; the kernel leaves that to us.
            kill_set_id: mode.is_none() && (uid.is_some() || gid.is_some()),
        };
        answer!(self, "setattr", request, reply, end, |engine| engine.setattr(ino.0, set), |stat| {
            reply.attr(&ttl.of(&stat), &file_attr(&stat, ids));
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        answer!(self, "readlink", request, reply, drop, |engine| engine.readlink(ino.0), |target| reply.data(&target));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        // Devices, pipes and sockets are nothing that a bucket can hold.
        if mode & S_IFMT != S_IFREG && mode & S_IFMT != 0 {
            return reply.error(fuser::Errno::EPERM);
        }
        let (name, ttl, ids, (uid, gid)) = (name.as_bytes().to_vec(), self.ttl(), self.ids, self.asker(request));
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move {
            asked.mknod(&engine, parent.0, &name, mode & !umask, uid, gid).await
        };
        answer!(self, "mknod", request, reply, forget_made, |engine| work(Arc::clone(&engine)), |stat| reply.entry(
            &ttl.of(&stat),
            &file_attr(&stat, ids),
            GENERATION
        ));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (name, ttl, ids, (uid, gid)) = (name.as_bytes().to_vec(), self.ttl(), self.ids, self.asker(request));
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move {
            asked.mkdir(&engine, parent.0, &name, mode & !umask, uid, gid).await
        };
        answer!(self, "mkdir", request, reply, forget_made, |engine| work(Arc::clone(&engine)), |stat| {
            reply.entry(&ttl.of(&stat), &file_attr(&stat, ids), GENERATION);
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move { asked.unlink(&engine, parent.0, &name).await };
        answer!(self, "unlink", request, reply, end, |engine| work(Arc::clone(&engine)), |()| { reply.ok() });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move { asked.rmdir(&engine, parent.0, &name).await };
        answer!(self, "rmdir", request, reply, end, |engine| work(Arc::clone(&engine)), |()| reply.ok());
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target) = (name.as_bytes().to_vec(), target.as_os_str().as_bytes().to_vec());
        let (ttl, ids, (uid, gid)) = (self.ttl(), self.ids, self.asker(request));
        let asked = asked(request);
        let work =
            move |engine: Arc<Engine>| async move { asked.symlink(&engine, parent.0, &name, &target, uid, gid).await };
        answer!(self, "symlink", request, reply, forget_made, |engine| work(Arc::clone(&engine)), |stat| {
            reply.entry(&ttl.of(&stat), &file_attr(&stat, ids), GENERATION);
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let no_replace = flags == RenameFlags::RENAME_NOREPLACE;
        // Exchange and whiteout cannot be done in one step of any store: refused before anything happens.
        if !flags.is_empty() && !no_replace {
            return reply.error(fuser::Errno::EINVAL);
        }
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move {
            asked.rename(&engine, (parent.0, &name), (new_parent.0, &new_name), no_replace).await
        };
        answer!(self, "rename", request, reply, end, |engine| work(Arc::clone(&engine)), |()| { reply.ok() });
    }

    fn link(&self, _request: &Request, _ino: INodeNo, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        // The errno of a file system without hard links; programs fall back to copies.
        reply.error(fuser::Errno::EPERM);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mode = open_mode(flags.0);
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move { asked.open(&engine, ino.0, mode).await };
        answer!(self, "open", request, reply, drop, |engine| work(Arc::clone(&engine)), |opened| {
            reply.opened(FileHandle(opened.handle), fopen_flags(&opened));
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, ttl, ids, (uid, gid)) = (name.as_bytes().to_vec(), self.ttl(), self.ids, self.asker(request));
        let open = open_mode(flags);
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move {
            asked.create(&engine, parent.0, &name, mode & !umask, uid, gid, open).await
        };
        answer!(self, "create", request, reply, drop, |engine| work(Arc::clone(&engine)), |opened| {
            let flags = fopen_flags(&opened);
            reply.created(
                &ttl.of(&opened.stat),
                &file_attr(&opened.stat, ids),
                GENERATION,
                FileHandle(opened.handle),
                flags,
            );
        });
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(
            self,
            "read",
            request,
            reply,
            (left_reading(handle)),
            |engine| engine.read(handle.0, offset, size.into()),
            |chain| {
                reply_chain(reply, &chain);
            }
        );
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _entered = self.runtime.enter();
        let kill_set_id = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // The data is borrowed from the request's buffer, so it is taken before anything waits. Pages of a
        // shared mapping come without the O_APPEND of the handle that they are written through.
        let asked = asked(request);
        let written = asked.write(&self.engine, handle.0, offset, data, kill_set_id);
        match written {
            Ok(len) => {
                let engine = Arc::clone(&self.engine);
                let lag = async move {
                    engine.backpressure(handle.0).await;
                    Ok(())
                };
                // The bytes are taken, also when the caller is let go: `close` says what became of them.
                let written = move |_| reply.written(u32::try_from(len).unwrap_or(u32::MAX));
                self.attend(Call::new("write", request), lag, written, |_, _| Course::Dropped);
            }
            Err(error) if errno(&error) == Errno::ENOSPC => {
                let data = data.to_vec();
                answer!(
                    self,
                    "write",
                    request,
                    reply,
                    drop,
                    |engine| engine.write_when_there_is_room(handle.0, offset, &data, kill_set_id, asked.is_again),
                    |len| reply.written(u32::try_from(len).unwrap_or(u32::MAX))
                );
            }
            Err(error) => reply.error(report("write", &error)),
        }
    }

    fn flush(&self, request: &Request, _ino: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        answer!(self, "flush", request, reply, (left_storing(handle)), |engine| engine.flush(handle.0), |()| reply
            .ok());
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let engine = Arc::clone(&self.engine);
        self.run(async move {
            engine.release(handle.0).await;
            engine.settle();
            reply.ok();
        });
    }

    fn fsync(&self, request: &Request, _ino: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer!(self, "fsync", request, reply, (left_storing(handle)), |engine| engine.fsync(handle.0), |()| reply
            .ok());
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move { asked.opendir(&engine, ino.0).await };
        answer!(self, "opendir", request, reply, drop, |engine| work(Arc::clone(&engine)), |handle| {
            reply.opened(FileHandle(handle), FopenFlags::empty());
        });
    }

    fn readdir(&self, request: &Request, _ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let work =
            move |engine: Arc<Engine>| async move { engine.readdir(handle.0, offset, NAMES_PER_READDIR, false).await };
        answer!(self, "readdir", request, reply, drop, |engine| work(Arc::clone(&engine)), |listed| {
            for entry in listed {
                let kind = file_type(entry.stat.attr.kind);
                if reply.add(INodeNo(entry.stat.ino), entry.next, kind, OsStr::from_bytes(&entry.name)) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (engine, ttl, ids) = (Arc::clone(&self.engine), self.ttl(), self.ids);
        // As many as fit the smallest buffer that kernels use with names of ordinary length; a name that is
        // looked up and does not fit would be asked for in vain.
        let count = 4096 / (ENTRY_PLUS_LEN + 24) * PLUS_PAGES;
        let asked = Arc::clone(&self.engine);
        let work = async move { asked.readdir(handle.0, offset, count, true).await };
        let answer = move |listed: FsResult<Vec<Listed>>| match listed {
            Ok(listed) => {
                let mut is_full = false;
                for entry in listed {
                    let (ino, name) = (INodeNo(entry.stat.ino), OsStr::from_bytes(&entry.name));
                    let attr = file_attr(&entry.stat, ids);
                    is_full = is_full || reply.add(ino, entry.next, name, &ttl.of(&entry.stat), &attr, GENERATION);
                    if is_full && entry.is_known {
                        engine.forget(entry.stat.ino, 1);
                    }
                }
                engine.settle();
                reply.ok();
            }
            Err(error) => reply.error(report("readdirplus", &error)),
        };
        self.attend(Call::new("readdirplus", request), work, answer, forget_listed);
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.engine.releasedir(handle.0);
        self.engine.settle();
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // Names are in the bucket when the call that made them returns; those of the local disk may not be there yet.
        answer!(self, "fsyncdir", request, reply, drop, |engine| engine.fsyncdir(ino.0), |()| reply.ok());
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let stat = self.engine.statfs();
        let (blocks, files) = (stat.blocks, stat.files);
        reply.statfs(blocks, blocks, blocks, files, files, stat.block_len, stat.name_len_max, stat.block_len);
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name.to_string_lossy().into_owned(), value.to_vec());
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move { asked.setxattr(&engine, ino.0, &name, &value, flags).await };
        answer!(self, "setxattr", request, reply, end, |engine| work(Arc::clone(&engine)), |()| { reply.ok() });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_string_lossy().into_owned();
        answer!(self, "getxattr", request, reply, drop, |engine| engine.getxattr(ino.0, &name), |value| {
            reply_xattr(reply, size, &value);
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        answer!(self, "listxattr", request, reply, drop, |engine| engine.listxattr(ino.0), |names| reply_xattr(
            reply, size, &names
        ));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_string_lossy().into_owned();
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move { asked.removexattr(&engine, ino.0, &name).await };
        answer!(self, "removexattr", request, reply, end, |engine| work(Arc::clone(&engine)), |()| reply.ok());
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const KEEP_SIZE: i32 = 0x01;
        const PUNCH_HOLE: i32 = 0x02;
        const ZERO_RANGE: i32 = 0x10;
        if mode & !(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE) != 0 {
            return reply.error(fuser::Errno::EOPNOTSUPP);
        }
        let _entered = self.runtime.enter();
        let zero = mode & (PUNCH_HOLE | ZERO_RANGE) != 0;
        let range = offset..offset.saturating_add(length);
        let done = self.engine.fallocate(handle.0, range, mode & KEEP_SIZE != 0, zero);
        self.engine.settle();
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(report("fallocate", &error)),
        }
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let whence = match whence {
            SEEK_DATA => Whence::Data,
            SEEK_HOLE => Whence::Hole,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let Ok(from) = u64::try_from(offset) else { return reply.error(fuser::Errno::ENXIO) };
        match self.engine.seek(handle.0, from, whence) {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(FsError::Range { .. }) => reply.error(fuser::Errno::ENXIO),
            Err(error) => reply.error(report("lseek", &error)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _ino_out: INodeNo,
        to: FileHandle,
        to_offset: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        answer!(
            self,
            "copy_file_range",
            request,
            reply,
            end,
            |engine| engine.copy_file_range(from.0, from_offset, to.0, to_offset, len),
            |copied| reply.written(u32::try_from(copied).unwrap_or(u32::MAX))
        );
    }
}

/// Each name that was looked up is counted, and the kernel does not know of it.
fn forget_listed(_: &Engine, _: &FsError) -> Course<Vec<Listed>> {
    Course::Undone(Box::new(|engine, listed| {
        listed.iter().filter(|entry| entry.is_known).for_each(|entry| engine.forget(entry.stat.ino, 1));
    }))
}

/// An upload goes on without the caller that waited for it; the file's state says meanwhile why that one was let go.
fn left_storing(handle: FileHandle) -> impl FnOnce(&Engine, &FsError) -> Course<()> {
    move |engine, error| {
        engine.note_unanswered(handle.0, error);
        Course::ToItsEnd
    }
}

/// A read may have to complete an upload first, which is not to be dropped half-way.
fn left_reading(handle: FileHandle) -> impl FnOnce(&Engine, &FsError) -> Course<Vec<bytes::Bytes>> {
    move |engine, _| if engine.may_store(handle.0) { Course::ToItsEnd } else { Course::Dropped }
}

/// The kernel's buffer for `readdirplus` holds some pages of entries.
const PLUS_PAGES: usize = 4;

fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply.size(len);
    } else if len <= size {
        reply.data(value);
    } else {
        reply.error(fuser::Errno::ERANGE);
    }
}
