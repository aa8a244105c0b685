//! Mounting for ordinary users, by `fusermount3`, which is root's and gives us the device.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

use crate::{Device, Errno, is_alive};

const HELPER: &str = "fusermount3";
/// Where the helper is told which of its descriptors is our socket.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";
/// Our socket is the helper's standard input: it reads nothing else from there, and it is the one way to hand a descriptor
/// to a program that concurrently started ones do not inherit.
const SOCKET_NUMBER: &str = "0";

/// A mount that the helper has made. Unmounted when dropped, unless it is gone already.
#[derive(Debug)]
pub struct HelperMount {
    mountpoint: PathBuf,
    device: Device,
    is_left: bool,
}

/// Mounts at `mountpoint` with options as `fusermount3 -o` takes them, each in one string (what of them is a comma or
/// a backslash must be escaped, [`escape`](HelperMount::escape)).
///
/// # Errors
/// `PermissionDenied` if `/etc/fuse.conf` does not let users allow others; what the helper says; `NotFound` without it.
pub fn mount_by_helper(mountpoint: &Path, options: &[String]) -> io::Result<(Device, HelperMount)> {
    let mountpoint = mountpoint.canonicalize()?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let child = {
        let mut command = Command::new(HELPER);
        command.arg("-o").arg(options.join(",")).arg("--").arg(&mountpoint);
        command.env(SOCKET_VARIABLE, SOCKET_NUMBER);
        command.stdin(theirs).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?
        // With the command goes our copy of the helper's end, so that ours ends when the helper does.
    };
    let received = receive(&ours);
    drop(ours);
    let output = child.wait_with_output()?;
    let device = received.map_err(|_| refusal(&output.stderr))?;
    let device = Device::from(device);
    Ok((device.clone(), HelperMount { mountpoint, device, is_left: false }))
}

fn refusal(stderr: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(stderr).into_owned();
    let is_denied = text.contains("only allowed if 'user_allow_other' is set");
    io::Error::new(if is_denied { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other }, text)
}

/// The descriptor that comes with the helper's one byte.
fn receive(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut byte)];
        match recvmsg(&socket, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => {
                let rights = control.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                    _ => None,
                });
                return rights.ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl HelperMount {
    /// An option's value as the helper takes it.
    pub fn escape(value: &str) -> String {
        value.replace('\\', "\\\\").replace(',', "\\,")
    }

    /// Unmounts: no more names lead to it, and it ends when what is open is closed.
    pub fn unmount(mut self) {
        self.leave();
    }

    fn leave(&mut self) {
        // Somebody else may have mounted at the same place since.
        if std::mem::replace(&mut self.is_left, true) || !is_alive(&self.device).unwrap_or(false) {
            return;
        }
        let mut command = Command::new(HELPER);
        match command.args(["-u", "-q", "-z", "--"]).arg(&self.mountpoint).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => tracing::debug!(error = %String::from_utf8_lossy(&output.stderr), "not unmounted"),
            Err(error) => tracing::debug!(%error, "not unmounted"),
        }
    }
}

impl Drop for HelperMount {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_helper_would_take_for_another_option_is_escaped() {
        assert_eq!(HelperMount::escape(r"s3://bucket/a,suid\b"), r"s3://bucket/a\,suid\\b");
    }
}
