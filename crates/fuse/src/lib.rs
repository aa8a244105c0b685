//! What the `fuser` crate lacks: taking up a device that a process which died has served.
//!
//! The kernel says hello (`FUSE_INIT`) once for each file system. Whoever holds a descriptor of the device keeps the file
//! system alive, and another process may answer on it: it says the hello itself ([`take_up`]), and asks the kernel to send
//! again what the dead process had read and not answered ([`resend`], Linux 6.9).
//!
//! Layouts are those of `linux/fuse.h`.
#![deny(unsafe_code)]

mod hello;

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use self::hello::take_up;

/// A request that the kernel sends again has this bit in its number, and its answer must have it.
pub const RESENT: u64 = 1 << 63;

/// `fuse_out_header` without a body: length, code of the notification, no request.
const NOTIFICATION_LEN: usize = 16;
/// `FUSE_NOTIFY_RESEND`
const NOTIFY_RESEND: i32 = 7;

/// Asks the kernel to send again what was read from the device and not answered. Nobody may serve the device meanwhile.
///
/// # Errors
/// `EINVAL` before Linux 6.9; `EPERM` if the file system is gone.
pub fn resend(device: impl AsFd) -> io::Result<()> {
    let mut message = [0; NOTIFICATION_LEN];
    message[..4].copy_from_slice(&16u32.to_ne_bytes());
    message[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    rustix::io::write(device, &message)?;
    Ok(())
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
