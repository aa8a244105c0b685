//! Passthrough (Linux 6.9): the kernel reads and writes a file of this host in place of asking.
//!
//! A backing file is registered with the device and named in the answer to `OPEN` or `CREATE`. All opens of an inode that
//! overlap must name the same one. Whether a mount can do that was agreed when it was made, perhaps by a process that is gone
//! or by an older program: so nobody remembers it, the kernel is asked, and its first refusal counts for the mount.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, opcode};

use crate::abi::{BackingMap, IOCTL_GROUP};
use crate::device::Shared;
use crate::{Device, Errno};

/// A file that the kernel serves by itself. Closed when dropped: files that were opened with it go on.
#[derive(Debug)]
pub struct BackingId {
    /// Not kept alive by us: a device that nobody serves must close, so that callers are let go.
    device: Weak<Shared>,
    id: u32,
}

impl Device {
    /// Registers a regular file of this host, open for what callers may do with it.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`, or if the mount was made without passthrough; `EOPNOTSUPP` or `ENOTTY` if the kernel
    /// has none. Each of them is then said without asking the kernel again ([`Device::may_pass_through`]). `ELOOP` if the file
    /// is on a file system that is stacked itself; `EINVAL` or `EOPNOTSUPP` if it cannot be used so.
    pub fn open_backing(&self, file: impl AsFd) -> rustix::io::Result<BackingId> {
        if !self.may_pass_through() {
            return Err(Errno::PERM);
        }
        match register(self, file) {
            Ok(id) => Ok(BackingId::from_raw(self, id)),
            Err(error) => {
                if matches!(error, Errno::PERM | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) {
                    self.0.refuses_backing.store(true, Ordering::Relaxed);
                }
                Err(error)
            }
        }
    }

    /// Whether backing files are worth a try: none was refused for good.
    pub fn may_pass_through(&self) -> bool {
        !self.0.refuses_backing.load(Ordering::Relaxed)
    }
}

impl BackingId {
    /// Takes up what an earlier process registered with the same file system ([`BackingId::into_raw`]).
    pub fn from_raw(device: &Device, id: u32) -> Self {
        Self { device: Arc::downgrade(&device.0), id }
    }

    /// The kernel's number. It stays registered, for whoever takes it up.
    pub fn into_raw(mut self) -> u32 {
        self.device = Weak::new();
        self.id
    }

    /// The kernel's number.
    pub fn as_raw(&self) -> u32 {
        self.id
    }
}

impl Drop for BackingId {
    fn drop(&mut self) {
        let Some(device) = self.device.upgrade() else { return };
        if let Err(error) = unregister(&*device, self.id) {
            tracing::debug!(id = self.id, %error, "a backing file was not closed");
        }
    }
}

/// `FUSE_DEV_IOC_BACKING_OPEN`
const OPEN: Opcode = opcode::write::<BackingMap>(IOCTL_GROUP, 1);
/// `FUSE_DEV_IOC_BACKING_CLOSE`
const CLOSE: Opcode = opcode::write::<u32>(IOCTL_GROUP, 2);

#[allow(unsafe_code)]
fn register(device: impl AsFd, file: impl AsFd) -> rustix::io::Result<u32> {
    let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the device's driver reads one `fuse_backing_map` and changes no memory of ours; other drivers do not know the
    // number, which has this one's group in it.
    unsafe { rustix::ioctl::ioctl(device, Register(map)) }
}

#[allow(unsafe_code)]
fn unregister(device: impl AsFd, id: u32) -> rustix::io::Result<()> {
    // SAFETY: as above, for one `u32`.
    unsafe { rustix::ioctl::ioctl(device, Setter::<CLOSE, u32>::new(id)) }
}

/// [`OPEN`], whose result is the answer.
struct Register(BackingMap);

// SAFETY: `as_ptr` is of the structure that `OPEN` reads, which lives as long as the call; the result is a number, and
// nothing is written.
#[allow(unsafe_code)]
unsafe impl Ioctl for Register {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        OPEN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| Errno::INVAL)
    }
}
