//! How the daemon, the helper that starts a sandbox, and init talk: whole messages over a `SOCK_SEQPACKET` socket.
//!
//! The kernel keeps the borders of messages and the descriptors that belong to them, so a peer that dies in the middle of
//! something leaves either a whole message or none, and nobody waits for the rest of one. What is too large for a packet
//! (a long command line) goes as a memory file whose descriptor is the packet's last.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message that travels in the packet itself; far below the smallest send buffer that hosts set.
const INLINE_LEN_MAX: usize = 32 * 1024;

/// Longest message at all: more than the kernel takes as arguments and environment of a program.
const MESSAGE_LEN_MAX: u64 = 16 * 1024 * 1024;

/// Most descriptors of one message.
const FD_COUNT_MAX: usize = 8;

const TAG_INLINE: u8 = 0;
const TAG_MEMORY: u8 = 1;

/// A connected pair.
///
/// # Errors
/// Those of `socketpair(2)`.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok(pair)
}

/// A message ready to be sent, perhaps more than once.
#[derive(Debug)]
pub(crate) struct Packet {
    bytes: Vec<u8>,
    memory: Option<OwnedFd>,
    fds: Vec<OwnedFd>,
}

impl Packet {
    /// # Errors
    /// When the message is too large, or a memory file cannot be made.
    pub(crate) fn new(message: &impl Serialize, fds: Vec<OwnedFd>) -> io::Result<Self> {
        assert!(fds.len() < FD_COUNT_MAX, "a message may have {FD_COUNT_MAX} descriptors");
        let json = serde_json::to_vec(message)?;
        if json.len() <= INLINE_LEN_MAX {
            let mut bytes = Vec::with_capacity(json.len() + 1);
            bytes.push(TAG_INLINE);
            bytes.extend_from_slice(&json);
            return Ok(Self { bytes, memory: None, fds });
        }
        if json.len() as u64 > MESSAGE_LEN_MAX {
            return Err(io::Error::from(Errno::TOOBIG));
        }
        let mut memory = File::from(rustix::fs::memfd_create("sandpail-message", MemfdFlags::CLOEXEC)?);
        memory.write_all(&json)?;
        memory.rewind()?;
        Ok(Self { bytes: vec![TAG_MEMORY], memory: Some(memory.into()), fds })
    }

    /// Sends it in one go.
    ///
    /// # Errors
    /// Those of `sendmsg(2)`; `WouldBlock` if the socket does not block.
    pub(crate) fn send(&self, socket: impl AsFd) -> io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().chain(&self.memory).map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FD_COUNT_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        rustix::net::sendmsg(socket, &[IoSlice::new(&self.bytes)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// Receives one message; `None` when the peer is gone.
///
/// # Errors
/// Those of `recvmsg(2)`, and `InvalidData` for what is no message.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; INLINE_LEN_MAX + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FD_COUNT_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    match bytes.get(..got.bytes).unwrap_or_default() {
        [] => Ok(None),
        [TAG_INLINE, json @ ..] => Ok(Some((serde_json::from_slice(json)?, fds))),
        [TAG_MEMORY] => {
            let memory = fds.pop().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            let mut json = Vec::new();
            File::from(memory).take(MESSAGE_LEN_MAX).read_to_end(&mut json)?;
            Ok(Some((serde_json::from_slice(&json)?, fds)))
        }
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_all_sizes_arrive_whole_with_their_descriptors() {
        for len in [0, 1, INLINE_LEN_MAX - 2, INLINE_LEN_MAX, 1_000_000] {
            let (left, right) = pair().unwrap();
            let text = "x".repeat(len);
            let (mut reader, writer) = std::io::pipe().unwrap();
            Packet::new(&text, vec![writer.into()]).unwrap().send(&left).unwrap();
            let (got, mut fds) = receive::<String>(&right).unwrap().unwrap();
            assert_eq!(got, text);
            assert_eq!(fds.len(), 1);
            File::from(fds.pop().unwrap()).write_all(b"through").unwrap();
            let mut read = String::new();
            reader.read_to_string(&mut read).unwrap();
            assert_eq!(read, "through");
        }
    }

    #[test]
    fn the_end_of_the_peer_is_no_message_and_nonsense_an_error() {
        let (left, right) = pair().unwrap();
        rustix::net::send(&left, b"\x07nonsense", SendFlags::empty()).unwrap();
        assert!(receive::<String>(&right).is_err());
        drop(left);
        assert!(receive::<String>(&right).unwrap().is_none());
    }
}
