//! Between the kernel and the engine, by the transport of `sandpail-fuse`.
//!
//! A request is polled once on the thread that read it, so that what is known already is answered
//! without a hand-over; what must wait goes on as a task of the runtime, and its caller is let go when its time is over or
//! it is to end ([`crate::patience`], [`caller`]).

mod caller;
mod mounting;
mod passed;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sandpail_fuse::{
    CopyFileRange, Device, Entry, Fallocate, Filesystem, FopenFlags, Handle, Ino, Make, RESENT, Read, Rename,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Setattr, Setxattr, Statfs, Write,
};

use self::caller::{Caller, Want};
pub use self::mounting::{MountOptions, Mounted, Served, mount, serve_device, take_up, take_up_device};
use self::passed::PassedFiles;
use crate::attr::{S_IFMT, S_IFREG, Time};
use crate::engine::{Asked, Engine, Listed, OpenMode, Opened, SetAttr, SetTime, Stat, Whence};
use crate::errno::{Errno, errno};
pub use crate::ids::IdMap;
use crate::patience::{self, Course};
use crate::{FsError, FsResult};

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
    /// What the kernel reads by itself.
    passed: Option<Arc<PassedFiles>>,
}

impl Adapter {
    fn new(engine: Arc<Engine>, ids: IdMap, device: &Device) -> Self {
        let runtime = engine.runtime().clone();
        let ttl = engine.options().metadata_ttl;
        let passed = PassedFiles::of(&engine, device).map(Arc::new);
        Self { engine, runtime, ttl, ids, passed }
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
            let leaves = || call.caller.leaves(call.wants);
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
    wants: Want,
}

impl Call {
    fn new(name: &'static str, request: &Request) -> Self {
        let stores = matches!(name, "flush" | "fsync" | "mknod" | "open" | "rename" | "setattr" | "unlink" | "write");
        let wants = if name == "flush" { Want::Close } else { Want::Answer };
        Self { name, caller: Caller::new(request.pid()), stores, wants }
    }
}

/// A request, by its number; whether it is sent the first time or again.
fn asked(request: &Request) -> Asked {
    let number = request.unique();
    Asked { number: number & !RESENT, is_again: number & RESENT != 0 }
}

/// How long the kernel may believe what it is told of files of the bucket.
#[derive(Clone, Copy)]
struct Ttl(Duration);

impl Ttl {
    fn of(self, stat: &Stat) -> Duration {
        if stat.is_local { LOCAL_TTL } else { self.0 }
    }

    fn entry(self, stat: &Stat, ids: IdMap) -> Entry {
        // No inode number is given to another file.
        Entry { attr: file_attr(stat, ids), generation: 0, ttl: self.of(stat) }
    }
}

fn number(error: Errno) -> sandpail_fuse::Errno {
    use sandpail_fuse::Errno as Number;
    match error {
        Errno::ENOENT => Number::NOENT,
        Errno::EEXIST => Number::EXIST,
        Errno::ENOTDIR => Number::NOTDIR,
        Errno::EISDIR => Number::ISDIR,
        Errno::ENOTEMPTY => Number::NOTEMPTY,
        Errno::EROFS => Number::ROFS,
        Errno::EBADF => Number::BADF,
        Errno::EPERM => Number::PERM,
        Errno::EACCES => Number::ACCESS,
        Errno::EOPNOTSUPP => Number::OPNOTSUPP,
        Errno::EINVAL => Number::INVAL,
        Errno::ENAMETOOLONG => Number::NAMETOOLONG,
        Errno::EFBIG => Number::FBIG,
        Errno::ENOSPC => Number::NOSPC,
        Errno::ENODATA => Number::NODATA,
        Errno::ERANGE => Number::RANGE,
        Errno::EBUSY => Number::BUSY,
        Errno::EXDEV => Number::XDEV,
        Errno::ESTALE => Number::STALE,
        Errno::EIO => Number::IO,
        Errno::ETIMEDOUT => Number::TIMEDOUT,
        Errno::EINTR => Number::INTR,
        Errno::EMFILE => Number::MFILE,
        Errno::ENFILE => Number::NFILE,
        Errno::EDQUOT => Number::DQUOT,
        Errno::ENOMEM => Number::NOMEM,
    }
}

/// The errno of a failure; what the operator must hear of is logged.
fn report(operation: &str, error: &FsError) -> sandpail_fuse::Errno {
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

fn file_attr(stat: &Stat, ids: IdMap) -> sandpail_fuse::Attr {
    let attr = &stat.attr;
    sandpail_fuse::Attr {
        ino: Ino(stat.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        mode: attr.kind.type_bits() | attr.perm & 0o7777,
        // As for many file systems: 1 means that the number of subdirectories is not counted.
        links: u32::from(stat.is_linked),
        uid: ids.outer(attr.uid),
        gid: ids.outer(attr.gid),
        device: 0,
        block_len: 4096,
    }
}

fn time(time: Time) -> sandpail_fuse::Time {
    sandpail_fuse::Time { secs: time.secs, nanos: time.nanos }
}

fn open_mode(flags: u32) -> OpenMode {
    use rustix::fs::OFlags;
    let flags = OFlags::from_bits_retain(flags);
    let access = flags & OFlags::ACCMODE;
    OpenMode {
        // All bits together, which only some drivers know, are taken for reading.
        read: access != OFlags::WRONLY,
        write: access == OFlags::WRONLY || access == OFlags::RDWR,
        append: flags.contains(OFlags::APPEND),
        truncate: flags.contains(OFlags::TRUNC),
    }
}

fn fopen_flags(opened: &Opened, mode: OpenMode) -> FopenFlags {
    // Nothing is stored for those who only read.
    FopenFlags { keep_cache: opened.keep_cache, direct_io: opened.direct_io, no_flush: !mode.write }
}

fn set_time(time: sandpail_fuse::SetTime) -> SetTime {
    match time {
        sandpail_fuse::SetTime::At(sandpail_fuse::Time { secs, nanos }) => SetTime::At(Time { secs, nanos }),
        sandpail_fuse::SetTime::Now => SetTime::Now,
    }
}

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
    fn lookup(&self, request: &Request, name: &[u8], reply: ReplyEntry) {
        let parent = request.ino();
        let (name, ttl, ids) = (name.to_vec(), self.ttl(), self.ids);
        answer!(self, "lookup", request, reply, drop, |engine| engine.lookup(parent.0, &name), |stat| {
            reply.entry(ttl.entry(&stat, ids));
        });
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.engine.forget(ino.0, count);
    }

    fn getattr(&self, request: &Request, _handle: Option<Handle>, reply: ReplyAttr) {
        let ino = request.ino();
        let (ttl, ids) = (self.ttl(), self.ids);
        answer!(self, "getattr", request, reply, drop, |engine| engine.getattr(ino.0), |stat| reply
            .attr(ttl.of(&stat), file_attr(&stat, ids)));
    }

    fn setattr(&self, request: &Request, set: Setattr, reply: ReplyAttr) {
        let ino = request.ino();
        let (ttl, ids) = (self.ttl(), self.ids);
        let set = SetAttr {
            perm: set.mode,
            uid: set.uid.map(|uid| ids.inner(uid)),
            gid: set.gid.map(|gid| ids.inner(gid)),
            size: set.size,
            atime: set.atime.map(set_time),
            mtime: set.mtime.map(set_time),
            handle: set.handle.map(|handle| handle.0),
            // A change of owner takes the set-id bits away; the kernel leaves that to us.
            kill_set_id: set.mode.is_none() && (set.uid.is_some() || set.gid.is_some()),
        };
        answer!(self, "setattr", request, reply, end, |engine| engine.setattr(ino.0, set), |stat| {
            reply.attr(ttl.of(&stat), file_attr(&stat, ids));
        });
    }

    fn readlink(&self, request: &Request, reply: ReplyData) {
        let ino = request.ino();
        answer!(self, "readlink", request, reply, drop, |engine| engine.readlink(ino.0), |target| reply.data(&target));
    }

    fn mknod(&self, request: &Request, make: Make<'_>, reply: ReplyEntry) {
        // Devices, pipes and sockets are nothing that a bucket can hold.
        if make.mode & S_IFMT != S_IFREG && make.mode & S_IFMT != 0 {
            return reply.error(sandpail_fuse::Errno::PERM);
        }
        let (parent, name, mode) = (request.ino(), make.name.to_vec(), make.mode & !make.umask);
        let (ttl, ids, (uid, gid)) = (self.ttl(), self.ids, self.asker(request));
        let asked = asked(request);
        let work =
            move |engine: Arc<Engine>| async move { asked.mknod(&engine, parent.0, &name, mode, uid, gid).await };
        answer!(self, "mknod", request, reply, forget_made, |engine| work(Arc::clone(&engine)), |stat| reply
            .entry(ttl.entry(&stat, ids)));
    }

    fn mkdir(&self, request: &Request, make: Make<'_>, reply: ReplyEntry) {
        let (parent, name, mode) = (request.ino(), make.name.to_vec(), make.mode & !make.umask);
        let (ttl, ids, (uid, gid)) = (self.ttl(), self.ids, self.asker(request));
        let asked = asked(request);
        let work =
            move |engine: Arc<Engine>| async move { asked.mkdir(&engine, parent.0, &name, mode, uid, gid).await };
        answer!(self, "mkdir", request, reply, forget_made, |engine| work(Arc::clone(&engine)), |stat| {
            reply.entry(ttl.entry(&stat, ids));
        });
    }

    fn unlink(&self, request: &Request, name: &[u8], reply: ReplyEmpty) {
        let parent = request.ino();
        let name = name.to_vec();
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move { asked.unlink(&engine, parent.0, &name).await };
        answer!(self, "unlink", request, reply, end, |engine| work(Arc::clone(&engine)), |()| { reply.ok() });
    }

    fn rmdir(&self, request: &Request, name: &[u8], reply: ReplyEmpty) {
        let parent = request.ino();
        let name = name.to_vec();
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move { asked.rmdir(&engine, parent.0, &name).await };
        answer!(self, "rmdir", request, reply, end, |engine| work(Arc::clone(&engine)), |()| reply.ok());
    }

    fn symlink(&self, request: &Request, name: &[u8], target: &[u8], reply: ReplyEntry) {
        let parent = request.ino();
        let (name, target) = (name.to_vec(), target.to_vec());
        let (ttl, ids, (uid, gid)) = (self.ttl(), self.ids, self.asker(request));
        let asked = asked(request);
        let work =
            move |engine: Arc<Engine>| async move { asked.symlink(&engine, parent.0, &name, &target, uid, gid).await };
        answer!(self, "symlink", request, reply, forget_made, |engine| work(Arc::clone(&engine)), |stat| {
            reply.entry(ttl.entry(&stat, ids));
        });
    }

    fn rename(&self, request: &Request, rename: Rename<'_>, reply: ReplyEmpty) {
        const NO_REPLACE: u32 = 1;
        let (parent, new_parent) = (request.ino(), rename.new_parent);
        let no_replace = rename.flags == NO_REPLACE;
        // Exchange and whiteout cannot be done in one step of any store: refused before anything happens.
        if rename.flags != 0 && !no_replace {
            return reply.error(sandpail_fuse::Errno::INVAL);
        }
        let (name, new_name) = (rename.name.to_vec(), rename.new_name.to_vec());
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move {
            asked.rename(&engine, (parent.0, &name), (new_parent.0, &new_name), no_replace).await
        };
        answer!(self, "rename", request, reply, end, |engine| work(Arc::clone(&engine)), |()| { reply.ok() });
    }

    fn link(&self, _request: &Request, _file: Ino, _name: &[u8], reply: ReplyEntry) {
        // The errno of a file system without hard links; programs fall back to copies.
        reply.error(sandpail_fuse::Errno::PERM);
    }

    fn open(&self, request: &Request, flags: u32, reply: ReplyOpen) {
        let ino = request.ino();
        let mode = open_mode(flags);
        let asked = asked(request);
        let (passed, device) = (self.passed.clone(), reply.device().clone());
        let work = move |engine: Arc<Engine>| async move {
            let opened = asked.open(&engine, ino.0, mode).await?;
            let backing = match passed {
                Some(passed) => passed.opened(&engine, &device, &opened).await,
                None => None,
            };
            Ok((opened, backing))
        };
        answer!(self, "open", request, reply, drop, |engine| work(Arc::clone(&engine)), |(opened, backing)| {
            let (handle, flags) = (Handle(opened.handle), fopen_flags(&opened, mode));
            match backing {
                Some(backing) => reply.opened_passthrough(handle, flags, &backing),
                None => reply.opened(handle, flags),
            }
        });
    }

    fn create(&self, request: &Request, make: Make<'_>, flags: u32, reply: ReplyCreate) {
        let (parent, name, mode) = (request.ino(), make.name.to_vec(), make.mode & !make.umask);
        let (ttl, ids, (uid, gid)) = (self.ttl(), self.ids, self.asker(request));
        let open = open_mode(flags);
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move {
            asked.create(&engine, parent.0, &name, mode, uid, gid, open).await
        };
        answer!(self, "create", request, reply, drop, |engine| work(Arc::clone(&engine)), |opened| {
            reply.created(ttl.entry(&opened.stat, ids), Handle(opened.handle), fopen_flags(&opened, open));
        });
    }

    fn read(&self, request: &Request, read: Read, reply: ReplyData) {
        let Read { handle, offset, len, is_direct } = read;
        let wants = if is_direct { Want::Answer } else { Want::Pages };
        let engine = Arc::clone(&self.engine);
        self.attend(
            Call { wants, ..Call::new("read", request) },
            async move { engine.read(handle.0, offset, len.into()).await },
            move |read| match read {
                Ok(chain) => reply.chain(&chain),
                Err(error) => reply.error(report("read", &error)),
            },
            left_reading(handle),
        );
    }

    fn write(&self, request: &Request, write: Write<'_>, reply: ReplyWrite) {
        let Write { handle, offset, data, kill_set_id } = write;
        let _entered = self.runtime.enter();
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

    fn flush(&self, request: &Request, handle: Handle, reply: ReplyEmpty) {
        answer!(self, "flush", request, reply, (left_storing(handle)), |engine| engine.flush(handle.0), |()| reply
            .ok());
    }

    fn release(&self, request: &Request, handle: Handle, reply: ReplyEmpty) {
        let engine = Arc::clone(&self.engine);
        if let Some(passed) = &self.passed {
            passed.closed(request.ino().0, handle.0);
        }
        self.run(async move {
            engine.release(handle.0).await;
            engine.settle();
            reply.ok();
        });
    }

    fn fsync(&self, request: &Request, handle: Handle, _data_only: bool, reply: ReplyEmpty) {
        answer!(self, "fsync", request, reply, (left_storing(handle)), |engine| engine.fsync(handle.0), |()| reply
            .ok());
    }

    fn opendir(&self, request: &Request, _flags: u32, reply: ReplyOpen) {
        let ino = request.ino();
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move { asked.opendir(&engine, ino.0).await };
        answer!(self, "opendir", request, reply, drop, |engine| work(Arc::clone(&engine)), |handle| {
            reply.opened(Handle(handle), FopenFlags::default());
        });
    }

    fn readdir(&self, request: &Request, read: Read, mut reply: ReplyDirectory) {
        let Read { handle, offset, .. } = read;
        let work =
            move |engine: Arc<Engine>| async move { engine.readdir(handle.0, offset, NAMES_PER_READDIR, false).await };
        answer!(self, "readdir", request, reply, drop, |engine| work(Arc::clone(&engine)), |listed| {
            for entry in listed {
                let kind = entry.stat.attr.kind.type_bits();
                if !reply.add(Ino(entry.stat.ino), entry.next, kind, &entry.name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(&self, request: &Request, read: Read, mut reply: ReplyDirectoryPlus) {
        let Read { handle, offset, .. } = read;
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
                    let Listed { next, ref name, ref stat, is_known } = entry;
                    let kind = stat.attr.kind.type_bits();
                    is_full = is_full
                        || match is_known {
                            true => !reply.add(ttl.entry(stat, ids), next, name),
                            false => !reply.add_name(Ino(stat.ino), next, kind, name),
                        };
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

    fn releasedir(&self, _request: &Request, handle: Handle, reply: ReplyEmpty) {
        self.engine.releasedir(handle.0);
        self.engine.settle();
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, _handle: Handle, _data_only: bool, reply: ReplyEmpty) {
        let ino = request.ino();
        // Names are in the bucket when the call that made them returns; those of the local disk may not be there yet.
        answer!(self, "fsyncdir", request, reply, drop, |engine| engine.fsyncdir(ino.0), |()| reply.ok());
    }

    fn statfs(&self, _request: &Request, reply: ReplyStatfs) {
        let stat = self.engine.statfs();
        let (blocks, files) = (stat.blocks, stat.files);
        reply.statfs(Statfs {
            blocks,
            blocks_free: blocks,
            blocks_available: blocks,
            files,
            files_free: files,
            block_len: stat.block_len,
            name_len_max: stat.name_len_max,
        });
    }

    fn setxattr(&self, request: &Request, set: Setxattr<'_>, reply: ReplyEmpty) {
        let (ino, flags) = (request.ino(), i32::from_ne_bytes(set.flags.to_ne_bytes()));
        let (name, value) = (String::from_utf8_lossy(set.name).into_owned(), set.value.to_vec());
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move { asked.setxattr(&engine, ino.0, &name, &value, flags).await };
        answer!(self, "setxattr", request, reply, end, |engine| work(Arc::clone(&engine)), |()| { reply.ok() });
    }

    fn getxattr(&self, request: &Request, name: &[u8], len_max: u32, reply: ReplyXattr) {
        let ino = request.ino();
        let name = String::from_utf8_lossy(name).into_owned();
        answer!(self, "getxattr", request, reply, drop, |engine| engine.getxattr(ino.0, &name), |value| {
            reply_xattr(reply, len_max, &value);
        });
    }

    fn listxattr(&self, request: &Request, len_max: u32, reply: ReplyXattr) {
        let ino = request.ino();
        answer!(self, "listxattr", request, reply, drop, |engine| engine.listxattr(ino.0), |names| reply_xattr(
            reply, len_max, &names
        ));
    }

    fn removexattr(&self, request: &Request, name: &[u8], reply: ReplyEmpty) {
        let ino = request.ino();
        let name = String::from_utf8_lossy(name).into_owned();
        let asked = asked(request);
        let work = move |engine: Arc<Engine>| async move { asked.removexattr(&engine, ino.0, &name).await };
        answer!(self, "removexattr", request, reply, end, |engine| work(Arc::clone(&engine)), |()| reply.ok());
    }

    fn fallocate(&self, _request: &Request, range: Fallocate, reply: ReplyEmpty) {
        const KEEP_SIZE: u32 = 0x01;
        const PUNCH_HOLE: u32 = 0x02;
        const ZERO_RANGE: u32 = 0x10;
        let Fallocate { handle, offset, len, mode } = range;
        if mode & !(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE) != 0 {
            return reply.error(sandpail_fuse::Errno::OPNOTSUPP);
        }
        let _entered = self.runtime.enter();
        let zero = mode & (PUNCH_HOLE | ZERO_RANGE) != 0;
        let range = offset..offset.saturating_add(len);
        let done = self.engine.fallocate(handle.0, range, mode & KEEP_SIZE != 0, zero);
        self.engine.settle();
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(report("fallocate", &error)),
        }
    }

    fn lseek(&self, _request: &Request, handle: Handle, offset: i64, whence: u32, reply: ReplyLseek) {
        const SEEK_DATA: u32 = 3;
        const SEEK_HOLE: u32 = 4;
        let whence = match whence {
            SEEK_DATA => Whence::Data,
            SEEK_HOLE => Whence::Hole,
            _ => return reply.error(sandpail_fuse::Errno::INVAL),
        };
        let Ok(from) = u64::try_from(offset) else { return reply.error(sandpail_fuse::Errno::NXIO) };
        match self.engine.seek(handle.0, from, whence) {
            Ok(found) => reply.offset(found),
            Err(FsError::Range { .. }) => reply.error(sandpail_fuse::Errno::NXIO),
            Err(error) => reply.error(report("lseek", &error)),
        }
    }

    fn copy_file_range(&self, request: &Request, copy: CopyFileRange, reply: ReplyWrite) {
        let CopyFileRange { from, from_offset, to, to_offset, len, .. } = copy;
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
fn left_storing(handle: Handle) -> impl FnOnce(&Engine, &FsError) -> Course<()> {
    move |engine, error| {
        engine.note_unanswered(handle.0, error);
        Course::ToItsEnd
    }
}

/// A read may have to complete an upload first, which is not to be dropped half-way.
fn left_reading(handle: Handle) -> impl FnOnce(&Engine, &FsError) -> Course<Vec<bytes::Bytes>> {
    move |engine, _| if engine.may_store(handle.0) { Course::ToItsEnd } else { Course::Dropped }
}

/// The kernel's buffer for `readdirplus` holds some pages of entries.
const PLUS_PAGES: usize = 4;

fn reply_xattr(reply: ReplyXattr, len_max: u32, value: &[u8]) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if len_max == 0 {
        reply.len(len);
    } else if len <= len_max {
        reply.data(value);
    } else {
        reply.error(sandpail_fuse::Errno::RANGE);
    }
}
