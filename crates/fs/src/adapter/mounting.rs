//! How a mount comes to be, and goes: by a path of the host, on a device that somebody else has mounted, or on one that
//! another process has served.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use rustix::mount::{MountFlags, UnmountFlags};

use super::{Adapter, IdMap};
use crate::attr::S_IFMT;
use crate::engine::Engine;

/// Threads that read requests; two keep a stream busy on a small machine.
const FUSE_THREADS: usize = 2;
/// What the kernel reads ahead of a program, in KiB.
const READ_AHEAD_KIB: u32 = 1024;

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
