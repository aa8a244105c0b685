//! How a worker gets its plan: over the socket that is its standard input. Keys and descriptors travel here and nowhere
//! else, but for single descriptors that go without a text.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use zeroize::Zeroizing;

/// The most descriptors of one message.
const DESCRIPTOR_COUNT_MAX: usize = 4;
/// The one byte that carries the descriptors.
const GREETING: [u8; 1] = [1];

/// Sends everything and closes this direction.
///
/// # Errors
/// When the other side does not take it.
pub(super) fn send(socket: &UnixStream, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_COUNT_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("the descriptors do not fit into the message"));
    }
    // In one call: whoever has the descriptors has the text, too, when this process is killed.
    let all = [IoSlice::new(&GREETING), IoSlice::new(text)];
    let sent = sendmsg(socket, &all, &mut control, SendFlags::NOSIGNAL)?;
    let mut writer = socket;
    writer.write_all(text.get(sent.saturating_sub(GREETING.len())..).unwrap_or_default())?;
    socket.shutdown(std::net::Shutdown::Write)
}

/// Takes everything.
///
/// # Errors
/// When the other side goes away, or `socket` is none.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<(Zeroizing<String>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_COUNT_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut greeting = [0; 1];
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut greeting)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes != 1 || greeting != GREETING {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    // Large enough for any plan: a text that grew would leave copies of keys behind.
    let mut text = Zeroizing::new(String::with_capacity(64 << 10));
    File::from(socket.as_fd().try_clone_to_owned()?).read_to_string(&mut text)?;
    Ok((text, descriptors))
}

/// Sends one descriptor, if there is room.
///
/// # Errors
/// When the other side is gone, or has not taken many.
pub(super) fn pass(socket: impl AsFd, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for the descriptor"));
    }
    sendmsg(socket, &[IoSlice::new(&GREETING)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Takes what [`pass`] has sent; `None` when the other side is gone.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::WouldBlock`] if nothing is there, with `DONTWAIT`; [`io::ErrorKind::Interrupted`];
/// [`io::ErrorKind::InvalidData`] if the descriptor did not arrive.
pub(super) fn take(socket: impl AsFd, flags: RecvFlags) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut greeting = [0; 1];
    let parts = &mut [IoSliceMut::new(&mut greeting)];
    let got = match recvmsg(socket, parts, &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
        Ok(got) => got,
        // It was killed with bytes of ours unread.
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if got.bytes == 0 {
        return Ok(None);
    }
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut received) => received.next(),
        _ => None,
    });
    // The kernel drops what this process has no room for.
    received.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_and_a_descriptor_arrive() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut pipe = std::io::pipe().unwrap();
        let text = "x".repeat(100_000);
        let sent = text.clone();
        let sender = std::thread::spawn(move || send(&here, sent.as_bytes(), &[pipe.1.as_fd()]).map(|()| here));
        let (received, descriptors) = receive(there.as_fd()).unwrap();
        assert_eq!(*received, text);
        sender.join().unwrap().unwrap();
        File::from(descriptors.into_iter().next().unwrap()).write_all(b"same pipe").unwrap();
        let mut read = [0; 9];
        pipe.0.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"same pipe");
    }

    #[test]
    fn without_a_descriptor() {
        let (here, there) = UnixStream::pair().unwrap();
        send(&here, b"plan", &[]).unwrap();
        let (text, descriptors) = receive(there.as_fd()).unwrap();
        assert_eq!((text.as_str(), descriptors.is_empty()), ("plan", true));
    }
}
