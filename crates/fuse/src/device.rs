//! The device: one descriptor of `/dev/fuse`, which all threads read from and answer on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Errno;

/// An open `/dev/fuse`. Clones are the same descriptor.
#[derive(Clone, Debug)]
pub struct Device(pub(crate) Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    fd: OwnedFd,
    /// The kernel has refused a backing file for a reason that holds for all of them.
    pub(crate) refuses_backing: AtomicBool,
}

impl Device {
    /// Opens a new one, for a file system that is not mounted yet.
    ///
    /// # Errors
    /// `ENOENT` without the kernel's module; `EACCES` if this user may not.
    pub fn open() -> io::Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/fuse")?;
        Ok(OwnedFd::from(file).into())
    }

    /// Waits for a message and returns its length. `None` when the file system is gone: unmounted everywhere, or aborted.
    ///
    /// # Errors
    /// What the kernel says, `EINVAL` for a buffer that is too small.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(self, &mut *buffer) {
                Ok(len) => return Ok(Some(len)),
                // The request was taken back (its caller was killed), or a signal came.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::NODEV) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl From<OwnedFd> for Device {
    fn from(fd: OwnedFd) -> Self {
        Self(Arc::new(Shared { fd, refuses_backing: AtomicBool::new(false) }))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether the device's file system is still there: not unmounted everywhere, and not aborted.
///
/// # Errors
/// When the kernel does not say.
pub fn is_alive(device: impl AsFd) -> io::Result<bool> {
    let mut asked = [PollFd::new(&device, PollFlags::OUT)];
    poll(&mut asked, Some(&Timespec::default()))?;
    Ok(!asked[0].revents().contains(PollFlags::ERR))
}
