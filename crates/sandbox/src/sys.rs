//! The few system calls that have no safe wrapper. Everything unsafe of this crate is in this file.
#![allow(unsafe_code, reason = "raw system calls; each block says why it is sound")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What a forked child returns to [`fork_child`] when it did not become another program.
pub(crate) type ChildCode = i32;

/// Forks; the child runs `main` and exits with what it returns, without running destructors or exit handlers of the
/// parent's copy.
///
/// Callers are init and the helper that starts it, which have one thread only: the child may therefore run any code, as no
/// lock can be held by a thread that does not exist in it.
///
/// # Errors
/// Those of `fork(2)`.
pub(crate) fn fork_child(main: impl FnOnce() -> ChildCode) -> io::Result<Pid> {
    // SAFETY: the process has a single thread (see above), so the child's copy of the memory is consistent.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = main();
            // SAFETY: `_exit` only ends the process; nothing of the parent's is flushed or dropped twice.
            unsafe { libc::_exit(code) }
        }
        pid => Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork returned no process id")),
    }
}

/// Moves the calling thread into new namespaces.
///
/// # Errors
/// Those of `unshare(2)`.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "descriptors are shared by all threads");
    // SAFETY: the table of descriptors stays shared, which is what this call is unsafe for.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Closes all descriptors from `first` on. For a process that was just started, and owns none of them yet, and for a forked
/// child that goes on without `exec`, so that it keeps no pipe of its siblings open.
///
/// # Errors
/// Those of `close_range(2)`.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: nothing owns these descriptors in a new process; a forked child exits without dropping their owners.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0_u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `MOUNT_ATTR_IDMAP` of `<linux/mount.h>`.
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Maps the ids of a detached mount: what root owns on disk belongs to the root of `userns` in it.
///
/// # Errors
/// `EINVAL` where the file system or the kernel has no id-mapped mounts.
pub(crate) fn map_ids(mount: impl AsFd, userns: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = u64::try_from(userns.as_raw_fd()).map_err(io::Error::other)?;
    set_attributes(mount.as_fd(), MountAttr { attr_set: MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd })
}

/// Sets `MOUNT_ATTR_*` flags (such as read-only) on a mount, and on those below it.
///
/// # Errors
/// Those of `mount_setattr(2)`.
pub(crate) fn set_mount_flags(mount: impl AsFd, flags: rustix::mount::MountAttrFlags) -> io::Result<()> {
    let attr_set = u64::from(flags.bits());
    set_attributes(mount.as_fd(), MountAttr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 })
}

fn set_attributes(mount: BorrowedFd<'_>, attributes: MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a constant C string, and the structure lives through the call and has the length given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the current tokio runtime watch a descriptor.
///
/// # Errors
/// Those of `epoll_ctl(2)`.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps the same descriptor open until it is dropped.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
