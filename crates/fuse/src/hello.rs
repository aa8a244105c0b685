//! Saying the kernel's hello.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::io::DupFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// `FUSE_INIT`
const INIT: u32 = 26;
/// `fuse_in_header` and `fuse_init_in`.
const MESSAGE_LEN: usize = 40 + 64;
/// The protocol's version; what it adds to older ones was asked for, or not, by the process that answered the kernel.
const MAJOR: u32 = 7;
const MINOR: u32 = 40;
/// What `max_readahead` is offered, in bytes.
const READ_AHEAD_MAX: u32 = 1 << 20;

/// Serves a device whose kernel was answered before, by a process that has ended. What that process asked the kernel for
/// holds: `filesystem` must ask for the same.
///
/// # Errors
/// What `fuser` says; without enough descriptors.
pub fn take_up<FS: Filesystem>(
    filesystem: FS,
    device: &OwnedFd,
    acl: SessionACL,
    config: Config,
) -> io::Result<Session<FS>> {
    // `fuser` waits for the hello on the descriptor that it is given: a socket, on which each read takes one message.
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&ours, &hello())?;
    let session = Session::from_fd(filesystem, theirs, acl, config)?;
    replace(&session, device)?;
    Ok(session)
}

fn hello() -> [u8; MESSAGE_LEN] {
    let mut message = [0; MESSAGE_LEN];
    let all_flags = u32::MAX;
    let words = [
        (0, u32::try_from(MESSAGE_LEN).unwrap_or_default()),
        (4, INIT),
        // The request's number, in eight bytes.
        (8, 1),
        (40, MAJOR),
        (44, MINOR),
        (48, READ_AHEAD_MAX),
        (52, all_flags),
        (56, all_flags),
    ];
    for (at, word) in words {
        message[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    message
}

/// From now on the session's descriptor is the device.
fn replace(session: &impl AsFd, device: &OwnedFd) -> io::Result<()> {
    let number = session.as_fd().as_raw_fd();
    // SAFETY: `number` is open as long as the session is borrowed, and stays open: it is neither closed here (it is never
    // dropped) nor by `dup3`, which puts the device in its place in one step. Nobody reads from it yet.
    #[allow(unsafe_code)]
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    rustix::io::dup3(device, &mut target, DupFlags::CLOEXEC)?;
    Ok(())
}
