//! What we say to the kernel unasked.

use std::os::fd::AsFd;

use zerocopy::IntoBytes;

use crate::abi::{NotifyInvalEntry, NotifyInvalInode, notify};
use crate::message::send;
use crate::{Errno, Ino};

/// The number of no request.
const UNASKED: u64 = 0;

/// Asks the kernel to send again what was read from the device and not answered. Nobody may serve the device meanwhile.
///
/// # Errors
/// `EINVAL` before Linux 6.9; `EPERM` if the file system is gone.
pub fn resend(device: impl AsFd) -> std::io::Result<()> {
    Ok(send::<&[u8]>(device, notify::RESEND, UNASKED, &[])?)
}

/// The kernel forgets the attributes of an inode, and what it has cached of `len` bytes from `offset` (0 for all that follow);
/// with a negative offset only the attributes.
///
/// Pages that are being read or written are waited for: not to be called where a request is served that this waits for.
///
/// # Errors
/// `ENOENT` if the kernel does not know the inode.
pub fn invalidate_inode(device: impl AsFd, ino: Ino, offset: i64, len: i64) -> rustix::io::Result<()> {
    send(device, notify::INVAL_INODE, UNASKED, &[NotifyInvalInode { ino: ino.0, offset, len }.as_bytes()])
}

/// The kernel forgets what `name` stands for in `parent`, and asks again.
///
/// Waits for what is under way in that directory: not to be called where one of those requests is served.
///
/// # Errors
/// `ENOENT` if the kernel does not know the directory or the name; `ENAMETOOLONG` for a name that it would not have.
pub fn invalidate_entry(device: impl AsFd, parent: Ino, name: &[u8]) -> rustix::io::Result<()> {
    let name_len = u32::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
    let entry = NotifyInvalEntry { parent: parent.0, name_len, flags: 0 };
    send(device, notify::INVAL_ENTRY, UNASKED, &[entry.as_bytes(), name, b"\0".as_slice()])
}
