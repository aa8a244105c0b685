//! How a mount comes to be, and goes: by a path of the host, on a device that somebody else has mounted, or on one that
//! another process has served.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mount::{MountFlags, UnmountFlags};
use sandpail_fuse::{
    Allowed, Device, HelperMount, InitFlags, Placement, Running, Session, Settings, Transport, Wishes, mount_by_helper,
};

use super::{Adapter, IdMap};
use crate::attr::S_IFMT;
use crate::engine::{Engine, Metadata};

/// Threads that read requests; two keep a stream busy on a small machine.
const FUSE_THREADS: usize = 2;
/// What the kernel reads ahead of a program, in KiB.
const READ_AHEAD_KIB: u32 = 1024;
/// The most data of one request, in bytes.
const REQUEST_LEN_MAX: u32 = 1 << 20;
/// Requests that the kernel sends ahead of answers.
const REQUESTS_AHEAD_MAX: u16 = 64;

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
    /// Requests come by `io_uring` where the kernel has that switched on. Only for a mount that goes with its process, and whose device
    /// nobody keeps: see [`Transport::Ring`].
    pub io_uring: bool,
}

/// A mount that answers.
#[derive(Debug)]
pub struct Mounted {
    session: Option<Running>,
    device: OwnedFd,
    mountpoint: PathBuf,
    /// An ordinary user's, unmounted by `fusermount3`.
    helper: Option<HelperMount>,
}

/// A device that is served; whoever opened it mounts and unmounts.
#[derive(Debug)]
pub struct Served {
    session: Running,
    device: OwnedFd,
}

/// Serves `engine` on an open `/dev/fuse` whose file system somebody else has made (with `allow_other` and
/// `default_permissions`), and returns when the kernel's first message has been answered.
///
/// # Errors
/// What the kernel says.
pub fn serve_device(engine: Arc<Engine>, device: OwnedFd, ids: IdMap) -> io::Result<Served> {
    let kept = device.try_clone()?;
    let session = start(engine, device.into(), ids, Allowed::All, Transport::Device)?;
    Ok(Served { session, device: kept })
}

/// Serves `engine`, which [took the mount up](Engine::take_up), on the device that a process which was killed has served.
/// What that process had not answered is answered.
///
/// # Errors
/// What the kernel says: before Linux 6.9 it does not ask again.
pub fn take_up_device(engine: Arc<Engine>, device: OwnedFd, ids: IdMap) -> io::Result<Served> {
    let session = take_up_session(engine, &device, ids, Allowed::All)?;
    Ok(Served { session, device })
}

/// The same for a mount of the host, made by [`mount`] with the same options.
///
/// # Errors
/// As [`take_up_device`].
pub fn take_up(engine: Arc<Engine>, device: OwnedFd, mountpoint: &Path, options: &MountOptions) -> io::Result<Mounted> {
    let session = take_up_session(engine, &device, IdMap::SAME, options.allowed())?;
    Ok(Mounted { session: Some(session), device, mountpoint: mountpoint.to_owned(), helper: None })
}

/// Says hello, and serves.
fn start(
    engine: Arc<Engine>,
    device: Device,
    ids: IdMap,
    allowed: Allowed,
    transport: Transport,
) -> io::Result<Running> {
    let settings = Settings { transport, ..settings(&engine, allowed) };
    let running = Session::start(Adapter::new(engine, ids, &device), device, settings)?.spawn()?;
    match running.why_device() {
        Some(why) => tracing::warn!("requests come by /dev/fuse: {why}"),
        None => tracing::debug!(transport = ?running.transport(), "requests come"),
    }
    Ok(running)
}

fn take_up_session(engine: Arc<Engine>, device: &OwnedFd, ids: IdMap, allowed: Allowed) -> io::Result<Running> {
    let settings = settings(&engine, allowed);
    let served = Device::from(device.try_clone()?);
    let session = Session::take_up(Adapter::new(engine, ids, &served), served, settings);
    // Before anything is read: what is being answered then would be asked again, too.
    sandpail_fuse::resend(device)?;
    session.spawn()
}

/// What each process that serves a mount asks for, the first and those that take it up: see `sandpail_fuse`'s hello.
fn settings(engine: &Engine, allowed: Allowed) -> Settings {
    // With attributes in the objects a plain `ls` must not ask for each of them; `lookup` asks ahead instead. Where only some
    // are there, the engine tells what needs no question.
    let plus = match engine.options().metadata {
        Metadata::Posix => InitFlags::default(),
        Metadata::Auto | Metadata::None => InitFlags::DO_READDIRPLUS | InitFlags::READDIRPLUS_AUTO,
    };
    // Only root may name backing files, and what is asked for takes a level of stacking from everybody.
    let passthrough = if rustix::process::geteuid().is_root() { InitFlags::PASSTHROUGH } else { InitFlags::default() };
    let flags = InitFlags::ATOMIC_O_TRUNC
        | InitFlags::PARALLEL_DIROPS
        | InitFlags::HANDLE_KILLPRIV_V2
        | InitFlags::ASYNC_DIO
        | InitFlags::CACHE_SYMLINKS
        | InitFlags::AUTO_INVAL_DATA
        | InitFlags::DIRECT_IO_ALLOW_MMAP
        | plus
        | passthrough;
    let wishes = Wishes {
        flags,
        max_write: REQUEST_LEN_MAX,
        max_readahead: REQUEST_LEN_MAX,
        max_background: REQUESTS_AHEAD_MAX,
        // Backing files are on plain file systems, and the mount can be the lower layer of an overlay.
        max_stack_depth: 1,
    };
    Settings { wishes, allowed, threads: FUSE_THREADS, placement: Placement::Anywhere, transport: Transport::Device }
}

impl MountOptions {
    fn allowed(&self) -> Allowed {
        if self.allow_other { Allowed::All } else { Allowed::Owner }
    }

    fn transport(&self) -> Transport {
        if self.io_uring { Transport::Ring } else { Transport::Device }
    }
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
    let allowed = options.allowed();
    let (session, device, helper) = if rustix::process::geteuid().is_root() {
        let device = mount_as_root(mountpoint, options)?;
        let session = device.try_clone().and_then(|kept| {
            let session = start(engine, device.into(), IdMap::SAME, allowed, options.transport())?;
            Ok((session, kept, None))
        });
        session.inspect_err(|_| {
            // The first error is the one to tell.
            let _ = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH);
        })?
    } else {
        let (device, helper) = mount_by_helper(mountpoint, &helper_options(options))?;
        let kept = device.as_fd().try_clone_to_owned()?;
        (start(engine, device, IdMap::SAME, allowed, options.transport())?, kept, Some(helper))
    };
    raise_read_ahead(mountpoint);
    Ok(Mounted { session: Some(session), device, mountpoint: mountpoint.to_owned(), helper })
}

/// What `fusermount3 -o` takes.
fn helper_options(options: &MountOptions) -> Vec<String> {
    let mut list = vec![format!("fsname={}", HelperMount::escape(&options.source)), "subtype=sandpail".to_owned()];
    list.extend(["default_permissions", "nodev", "nosuid", "noatime"].map(str::to_owned));
    list.extend(options.read_only.then(|| "ro".to_owned()));
    list.extend(options.extra.iter().cloned());
    list.extend(options.allow_other.then(|| "allow_other".to_owned()));
    list
}

/// Mounts without a helper.
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
        match self.helper.take() {
            Some(helper) => helper.unmount(),
            None => rustix::mount::unmount(&self.mountpoint, UnmountFlags::NOFOLLOW)?,
        }
        session.join()
    }
}
