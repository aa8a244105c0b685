//! A FUSE file system that is mounted nowhere yet.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags, fstat, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

/// What the kernel reads ahead of a program, in KiB: raises the rate of cold streams by half.
const READ_AHEAD_KIB: u32 = 1024;

/// The two ends of a new file system.
#[derive(Debug)]
pub(crate) struct Device {
    /// Where its requests come out; for the worker.
    pub(crate) requests: OwnedFd,
    /// The mount, to be attached somewhere.
    pub(crate) mount: OwnedFd,
}

/// What a file system is made with.
#[derive(Clone, Debug)]
pub(crate) struct DeviceOptions {
    /// What the mount table shows.
    pub(crate) source: String,
    /// The kernel refuses writes.
    pub(crate) read_only: bool,
    /// The kernel refuses to execute.
    pub(crate) no_exec: bool,
}

/// Makes the file system. It answers as soon as somebody serves `requests`; it is gone when `mount` is closed without
/// having been attached.
///
/// # Errors
/// What the kernel says; `/dev/fuse` may be missing.
pub(crate) fn open(options: &DeviceOptions) -> io::Result<Device> {
    let requests = File::options().read(true).write(true).open("/dev/fuse").map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("/dev/fuse cannot be opened ({error}); load the module with modprobe fuse"),
        )
    })?;
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // The kernel takes this descriptor as text only.
    fsconfig_set_string(&context, "fd", requests.as_raw_fd().to_string())?;
    fsconfig_set_string(&context, "rootmode", "40000")?;
    fsconfig_set_string(&context, "user_id", "0")?;
    fsconfig_set_string(&context, "group_id", "0")?;
    fsconfig_set_flag(&context, "allow_other")?;
    fsconfig_set_flag(&context, "default_permissions")?;
    fsconfig_set_string(&context, "subtype", "sandpail")?;
    fsconfig_set_string(&context, "source", options.source.as_str())?;
    if options.read_only {
        // Of the file system itself: no remount inside can take it back.
        fsconfig_set_flag(&context, "ro")?;
    }
    fsconfig_create(&context)?;
    let mut attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME;
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, options.read_only);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, options.no_exec);
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok(Device { requests: requests.into(), mount })
}

/// Asks the file system for its root, past every cache, and says its device number. Blocks until it answers.
///
/// # Errors
/// What the file system says; `ENOTCONN` if nobody serves it.
pub(crate) fn ask_root(directory: impl AsFd) -> io::Result<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    statx(&directory, c"", flags, StatxFlags::BASIC_STATS)?;
    Ok(fstat(&directory)?.st_dev)
}

/// Raises the read-ahead of a file system.
pub(crate) fn raise_read_ahead(device: u64) {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(Path::new(&path), READ_AHEAD_KIB.to_string()) {
        tracing::debug!(path, %error, "read-ahead stays at the kernel's default");
    }
}
