//! Between the kernel and the engine, by the `fuser` crate.
//!
//! A request is polled once on the thread that read it, so that what is known already is answered
//! without a hand-over; what must wait goes on as a task of the runtime.

use std::ffi::{CString, OsStr};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};

use crate::FsError;
use rustix::mount::{MountFlags, UnmountFlags};
use sandpail_fuse::RESENT;

use crate::attr::{Kind, S_IFMT, S_IFREG};
use crate::engine::{Engine, Metadata, OpenMode, Opened, SetAttr, SetTime, Stat, Whence, as_request};
use crate::errno::{Errno, errno};
pub use crate::ids::IdMap;

/// Threads that read requests; two keep a stream busy on a small machine.
const FUSE_THREADS: usize = 2;
/// The most data of one request, in bytes.
const REQUEST_LEN_MAX: u32 = 1 << 20;
/// Requests that the kernel sends ahead of answers.
const REQUESTS_AHEAD_MAX: u16 = 64;
/// What the kernel reads ahead of a program, in KiB.
const READ_AHEAD_KIB: u32 = 1024;
/// Names of one `readdir`; the kernel's buffer is full much earlier.
const NAMES_PER_READDIR: usize = 1024;
/// How long the kernel may believe what it is told of local files, which nobody else changes.
const LOCAL_TTL: Duration = Duration::from_secs(3600);
/// An entry of `readdirplus` takes this much of the kernel's buffer besides its name, in bytes.
const ENTRY_PLUS_LEN: usize = 152;

/// How a mount is attached.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// What `mount` shows as the source.
    pub source: String,
    /// Other users may use the mount.
    pub allow_other: bool,
    /// The kernel refuses writes.
    pub read_only: bool,
    /// Further options for the kernel, such as `noexec`.
    pub extra: Vec<String>,
}

/// A mount that answers.
#[derive(Debug)]
pub struct Mounted {
    session: Option<BackgroundSession>,
    device: OwnedFd,
    mountpoint: PathBuf,
    /// Unmounted by `fusermount3`, which the session calls.
    is_sessions: bool,
}

/// A device that is served; whoever opened it mounts and unmounts.
#[derive(Debug)]
pub struct Served {
    session: BackgroundSession,
    device: OwnedFd,
}

/// Serves `engine` on an open `/dev/fuse` whose file system somebody else has made (with `allow_other` and
/// `default_permissions`), and returns when the kernel's first message has been answered.
///
/// # Errors
/// What the kernel says.
pub fn serve_device(engine: Arc<Engine>, device: OwnedFd, ids: IdMap) -> io::Result<Served> {
    let kept = device.try_clone()?;
    let adapter = Adapter::new(engine, ids);
    let session = fuser::Session::from_fd(adapter, device, SessionACL::All, device_config(SessionACL::All))?.spawn()?;
    Ok(Served { session, device: kept })
}

/// Serves `engine`, which [took the mount up](Engine::take_up), on the device that a process which was killed has served.
/// What that process had not answered is answered.
///
/// # Errors
/// What the kernel says: before Linux 6.9 it does not ask again.
pub fn take_up_device(engine: Arc<Engine>, device: OwnedFd, ids: IdMap) -> io::Result<Served> {
    let session = take_up_session(Adapter::new(engine, ids), &device, SessionACL::All)?;
    Ok(Served { session, device })
}

/// The same for a mount of the host, made by [`mount`] with the same options.
///
/// # Errors
/// As [`take_up_device`].
pub fn take_up(engine: Arc<Engine>, device: OwnedFd, mountpoint: &Path, options: &MountOptions) -> io::Result<Mounted> {
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let session = take_up_session(Adapter::new(engine, IdMap::SAME), &device, acl)?;
    Ok(Mounted { session: Some(session), device, mountpoint: mountpoint.to_owned(), is_sessions: false })
}

fn take_up_session(adapter: Adapter, device: &OwnedFd, acl: SessionACL) -> io::Result<BackgroundSession> {
    let session = sandpail_fuse::take_up(adapter, device, acl, device_config(acl))?;
    // Before anything is read: what is being answered then would be asked again, too.
    sandpail_fuse::resend(device)?;
    session.spawn()
}

fn device_config(acl: SessionACL) -> Config {
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(FUSE_THREADS);
    config
}

impl Served {
    /// The device, for whoever keeps the mount alive.
    pub fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Waits until the file system is gone, whoever unmounts it.
    ///
    /// # Errors
    /// What ended the session.
    pub fn wait(self) -> io::Result<()> {
        self.session.join()
    }
}

/// Mounts `engine` at `mountpoint` and returns when the kernel has been answered.
///
/// # Errors
/// What the kernel or `fusermount3` says.
pub fn mount(engine: Arc<Engine>, mountpoint: &Path, options: &MountOptions) -> io::Result<Mounted> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.source.clone()),
        MountOption::Subtype("sandpail".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoAtime,
    ];
    if options.read_only {
        config.mount_options.push(MountOption::RO);
    }
    config.mount_options.extend(options.extra.iter().map(|option| match option.as_str() {
        "noexec" => MountOption::NoExec,
        "exec" => MountOption::Exec,
        "sync" => MountOption::Sync,
        "dirsync" => MountOption::DirSync,
        other => MountOption::CUSTOM(other.to_owned()),
    }));
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(FUSE_THREADS);
    let adapter = Adapter::new(engine, IdMap::SAME);
    let is_root = rustix::process::geteuid().is_root();
    let (session, device) = if is_root {
        let device = mount_as_root(mountpoint, options)?;
        let session = device.try_clone().and_then(|kept| {
            let session = fuser::Session::from_fd(adapter, device, config.acl, config)?;
            Ok((session.spawn()?, kept))
        });
        session.inspect_err(|_| {
            // The first error is the one to tell.
            let _ = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH);
        })?
    } else {
        let session = fuser::Session::new(adapter, mountpoint, &config)?;
        let kept = session.as_fd().try_clone_to_owned()?;
        (session.spawn()?, kept)
    };
    raise_read_ahead(mountpoint);
    Ok(Mounted { session: Some(session), device, mountpoint: mountpoint.to_owned(), is_sessions: !is_root })
}

/// Mounts without a helper, so that the mount table shows the type `fuse.sandpail`, which `fuser` leaves out.
fn mount_as_root(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse")?;
    let root_mode = std::fs::metadata(mountpoint)?.mode() & S_IFMT;
    let mut data = format!("fd={},rootmode={root_mode:o},user_id=0,group_id=0,default_permissions", device.as_raw_fd());
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
    flags.set(MountFlags::RDONLY, options.read_only);
    for option in &options.extra {
        match option.as_str() {
            "noexec" => flags |= MountFlags::NOEXEC,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            _ => {}
        }
    }
    let data = CString::new(data)?;
    let source = CString::new(options.source.as_bytes())?;
    rustix::mount::mount(source.as_c_str(), mountpoint, c"fuse.sandpail", flags, Some(data.as_c_str()))?;
    Ok(device.into())
}

/// A larger kernel read-ahead raises the rate of cold streams by half; only root may set it.
fn raise_read_ahead(mountpoint: &Path) {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::metadata(mountpoint) else { return };
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(path, %error, "read-ahead stays at the kernel's default");
    }
}

impl Mounted {
    /// The device, for whoever keeps the mount alive.
    pub fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Waits until the mount is gone, whoever unmounts it.
    ///
    /// # Errors
    /// What ended the session.
    pub fn wait(mut self) -> io::Result<()> {
        match self.session.take() {
            Some(session) => session.join(),
            None => Ok(()),
        }
    }

    /// Unmounts and waits for the last request.
    ///
    /// # Errors
    /// What the kernel says; `EBUSY` if the mount is in use.
    pub fn unmount(mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        if self.is_sessions {
            return session.umount_and_join();
        }
        rustix::mount::unmount(&self.mountpoint, UnmountFlags::NOFOLLOW)?;
        session.join()
    }
}

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

    /// Polls once here; what is not ready goes on as a task.
    fn run(&self, future: impl Future<Output = ()> + Send + 'static) {
        let _entered = self.runtime.enter();
        let mut future: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(future);
        let mut context = Context::from_waker(Waker::noop());
        if future.as_mut().poll(&mut context).is_pending() {
            self.runtime.spawn(future);
        }
    }

    /// Whether a request is sent again which a process that was killed had begun, and may have done.
    fn is_begun(&self, request: &Request) -> bool {
        let number = request.unique().0;
        number & RESENT != 0 && self.engine.was_begun(number & !RESENT)
    }

    /// What a process that was killed had opened for a request that is sent again.
    fn opened_before(&self, request: &Request) -> Option<Opened> {
        let number = request.unique().0;
        if number & RESENT == 0 { None } else { self.engine.opened_before(number & !RESENT) }
    }
}

/// How long the kernel may believe what it is told of files of the bucket.
#[derive(Clone, Copy)]
struct Ttl(Duration);

impl Ttl {
    fn of(self, stat: &Stat) -> Duration {
        if stat.is_local { LOCAL_TTL } else { self.0 }
    }
}

/// The number of a request, whether it is sent the first time or again.
fn number_of(request: &Request) -> u64 {
    request.unique().0 & !RESENT
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
    }
}

/// The errno of a failure; what the operator must hear of is logged.
fn report(operation: &str, error: &FsError) -> fuser::Errno {
    let chosen = errno(error);
    match error {
        FsError::Store { .. } | FsError::Io { .. } | FsError::NoSpace { .. } | FsError::Changed { .. } => {
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

macro_rules! answer {
    ($self:ident, $name:literal, $reply:ident, |$engine:ident| $work:expr, |$value:pat_param| $ok:expr) => {{
        let $engine = Arc::clone(&$self.engine);
        $self.run(async move {
            let result = $work.await;
            $engine.settle();
            match result {
                Ok($value) => $ok,
                Err(error) => $reply.error(report($name, &error)),
            }
        });
    }};
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

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (name, ttl, ids) = (name.as_bytes().to_vec(), self.ttl(), self.ids);
        answer!(self, "lookup", reply, |engine| engine.lookup(parent.0, &name), |stat| {
            reply.entry(&ttl.of(&stat), &file_attr(&stat, ids), GENERATION);
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.engine.forget(ino.0, count);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let (ttl, ids) = (self.ttl(), self.ids);
        answer!(self, "getattr", reply, |engine| engine.getattr(ino.0), |stat| reply
            .attr(&ttl.of(&stat), &file_attr(&stat, ids)));
    }

    fn setattr(
        &self,
        _request: &Request,
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
        answer!(self, "setattr", reply, |engine| engine.setattr(ino.0, set), |stat| {
            reply.attr(&ttl.of(&stat), &file_attr(&stat, ids));
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        answer!(self, "readlink", reply, |engine| engine.readlink(ino.0), |target| reply.data(&target));
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
        let (before, is_begun) = (self.opened_before(request), self.is_begun(request));
        let work = move |engine: Arc<Engine>| async move {
            let mode_of_open = OpenMode { write: true, ..OpenMode::default() };
            let opened = match before {
                Some(opened) => opened,
                None => match engine.create(parent.0, &name, mode & !umask, uid, gid, mode_of_open).await {
                    Err(FsError::Exists { .. }) if is_begun => {
                        engine.open_created(parent.0, &name, mode_of_open).await?
                    }
                    other => other?,
                },
            };
            let stored = engine.flush(opened.handle).await;
            engine.release(opened.handle).await;
            stored.map(|()| opened.stat)
        };
        let number = number_of(request);
        answer!(self, "mknod", reply, |engine| as_request(number, work(Arc::clone(&engine))), |stat| reply.entry(
            &ttl.of(&stat),
            &file_attr(&stat, ids),
            GENERATION
        ));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (name, ttl, ids, (uid, gid)) = (name.as_bytes().to_vec(), self.ttl(), self.ids, self.asker(request));
        let (number, is_begun) = (number_of(request), self.is_begun(request));
        let work = move |engine: Arc<Engine>| async move {
            match engine.mkdir(parent.0, &name, mode & !umask, uid, gid).await {
                Err(FsError::Exists { .. }) if is_begun => engine.lookup(parent.0, &name).await,
                other => other,
            }
        };
        answer!(self, "mkdir", reply, |engine| as_request(number, work(Arc::clone(&engine))), |stat| {
            reply.entry(&ttl.of(&stat), &file_attr(&stat, ids), GENERATION);
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        let (number, is_begun) = (number_of(request), self.is_begun(request));
        let work = move |engine: Arc<Engine>| async move {
            match engine.unlink(parent.0, &name).await {
                Err(FsError::NotFound { .. }) if is_begun => {
                    engine.keep_parent(parent.0).await;
                    Ok(())
                }
                other => other,
            }
        };
        answer!(self, "unlink", reply, |engine| as_request(number, work(Arc::clone(&engine))), |()| reply.ok());
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        let (number, is_begun) = (number_of(request), self.is_begun(request));
        let work = move |engine: Arc<Engine>| async move {
            match engine.rmdir(parent.0, &name).await {
                Err(FsError::NotFound { .. }) if is_begun => {
                    engine.keep_parent(parent.0).await;
                    Ok(())
                }
                other => other,
            }
        };
        answer!(self, "rmdir", reply, |engine| as_request(number, work(Arc::clone(&engine))), |()| reply.ok());
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target) = (name.as_bytes().to_vec(), target.as_os_str().as_bytes().to_vec());
        let (ttl, ids, (uid, gid)) = (self.ttl(), self.ids, self.asker(request));
        let (number, is_begun) = (number_of(request), self.is_begun(request));
        let work = move |engine: Arc<Engine>| async move {
            match engine.symlink(parent.0, &name, &target, uid, gid).await {
                Err(FsError::Exists { .. }) if is_begun => engine.lookup(parent.0, &name).await,
                other => other,
            }
        };
        answer!(self, "symlink", reply, |engine| as_request(number, work(Arc::clone(&engine))), |stat| {
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
        let (number, is_begun) = (number_of(request), self.is_begun(request));
        let work = move |engine: Arc<Engine>| async move {
            if is_begun {
                let renamed = engine.rename_again(parent.0, &name, new_parent.0, &new_name).await;
                if renamed.is_ok() {
                    engine.keep_parent(parent.0).await;
                }
                renamed
            } else {
                engine.rename(parent.0, &name, new_parent.0, &new_name, no_replace).await
            }
        };
        answer!(self, "rename", reply, |engine| as_request(number, work(Arc::clone(&engine))), |()| reply.ok());
    }

    fn link(&self, _request: &Request, _ino: INodeNo, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        // The errno of a file system without hard links; programs fall back to copies.
        reply.error(fuser::Errno::EPERM);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mode = open_mode(flags.0);
        if let Some(opened) = self.opened_before(request) {
            return reply.opened(FileHandle(opened.handle), fopen_flags(&opened));
        }
        let number = number_of(request);
        answer!(self, "open", reply, |engine| as_request(number, engine.open(ino.0, mode)), |opened| {
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
        if let Some(opened) = self.opened_before(request) {
            let (attr, flags) = (file_attr(&opened.stat, ids), fopen_flags(&opened));
            return reply.created(&self.ttl().of(&opened.stat), &attr, GENERATION, FileHandle(opened.handle), flags);
        }
        let (number, is_begun) = (number_of(request), self.is_begun(request));
        let work = move |engine: Arc<Engine>| async move {
            match engine.create(parent.0, &name, mode & !umask, uid, gid, open).await {
                Err(FsError::Exists { .. }) if is_begun => engine.open_created(parent.0, &name, open).await,
                other => other,
            }
        };
        answer!(self, "create", reply, |engine| as_request(number, work(Arc::clone(&engine))), |opened| {
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
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(self, "read", reply, |engine| engine.read(handle.0, offset, size.into()), |chain| {
            reply_chain(reply, &chain);
        });
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
        let is_again = request.unique().0 & RESENT != 0;
        let written = if is_again {
            self.engine.write_again(handle.0, offset, data, kill_set_id)
        } else {
            self.engine.write(handle.0, offset, data, kill_set_id)
        };
        match written {
            Ok(len) => {
                let engine = Arc::clone(&self.engine);
                self.run(async move {
                    engine.backpressure(handle.0).await;
                    engine.settle();
                    reply.written(u32::try_from(len).unwrap_or(u32::MAX));
                });
            }
            Err(error) if errno(&error) == Errno::ENOSPC => {
                let data = data.to_vec();
                answer!(
                    self,
                    "write",
                    reply,
                    |engine| engine.write_when_there_is_room(handle.0, offset, &data, kill_set_id, is_again),
                    |len| reply.written(u32::try_from(len).unwrap_or(u32::MAX))
                );
            }
            Err(error) => reply.error(report("write", &error)),
        }
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        answer!(self, "flush", reply, |engine| engine.flush(handle.0), |()| reply.ok());
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

    fn fsync(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer!(self, "fsync", reply, |engine| engine.fsync(handle.0), |()| reply.ok());
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if let Some(opened) = self.opened_before(request) {
            return reply.opened(FileHandle(opened.handle), FopenFlags::empty());
        }
        let number = number_of(request);
        answer!(self, "opendir", reply, |engine| as_request(number, async { engine.opendir(ino.0) }), |handle| {
            reply.opened(FileHandle(handle), FopenFlags::empty());
        });
    }

    fn readdir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let work =
            move |engine: Arc<Engine>| async move { engine.readdir(handle.0, offset, NAMES_PER_READDIR, false).await };
        answer!(self, "readdir", reply, |engine| work(Arc::clone(&engine)), |listed| {
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
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (engine, ttl, ids) = (Arc::clone(&self.engine), self.ttl(), self.ids);
        self.run(async move {
            // As many as fit the smallest buffer that kernels use with names of ordinary length; a name that is
            // looked up and does not fit would be asked for in vain.
            let count = 4096 / (ENTRY_PLUS_LEN + 24) * PLUS_PAGES;
            match engine.readdir(handle.0, offset, count, true).await {
                Ok(listed) => {
                    let mut is_full = false;
                    for entry in listed {
                        let attr = file_attr(&entry.stat, ids);
                        is_full = is_full
                            || reply.add(
                                INodeNo(entry.stat.ino),
                                entry.next,
                                OsStr::from_bytes(&entry.name),
                                &ttl.of(&entry.stat),
                                &attr,
                                GENERATION,
                            );
                        if is_full && entry.is_known {
                            engine.forget(entry.stat.ino, 1);
                        }
                    }
                    engine.settle();
                    reply.ok();
                }
                Err(error) => reply.error(report("readdirplus", &error)),
            }
        });
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.engine.releasedir(handle.0);
        self.engine.settle();
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // Names are in the bucket when the call that made them returns; those of the local disk may not be there yet.
        answer!(self, "fsyncdir", reply, |engine| engine.fsyncdir(ino.0), |()| reply.ok());
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
        let (number, is_begun) = (number_of(request), self.is_begun(request));
        let work = move |engine: Arc<Engine>| async move {
            // One that was to be made may be there already: then it is made so again.
            let flags = if is_begun { 0 } else { flags };
            engine.setxattr(ino.0, &name, &value, flags).await
        };
        answer!(self, "setxattr", reply, |engine| as_request(number, work(Arc::clone(&engine))), |()| reply.ok());
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_string_lossy().into_owned();
        answer!(self, "getxattr", reply, |engine| engine.getxattr(ino.0, &name), |value| {
            reply_xattr(reply, size, &value);
        });
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        answer!(self, "listxattr", reply, |engine| engine.listxattr(ino.0), |names| reply_xattr(reply, size, &names));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_string_lossy().into_owned();
        let (number, is_begun) = (number_of(request), self.is_begun(request));
        let work = move |engine: Arc<Engine>| async move {
            match engine.removexattr(ino.0, &name).await {
                Err(error) if is_begun && errno(&error) == Errno::ENODATA => Ok(()),
                other => other,
            }
        };
        answer!(self, "removexattr", reply, |engine| as_request(number, work(Arc::clone(&engine))), |()| reply.ok());
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
        _request: &Request,
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
            reply,
            |engine| engine.copy_file_range(from.0, from_offset, to.0, to_offset, len),
            |copied| reply.written(u32::try_from(copied).unwrap_or(u32::MAX))
        );
    }
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
