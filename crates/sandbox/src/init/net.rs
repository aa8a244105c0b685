//! The network of a new sandbox: the loopback interface, and nothing else.

use std::fs;
use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Brings `lo` up in the current network namespace. Guests may use every port: the namespace is theirs alone, while the
/// capability for low ports counts in the namespace's owner only, which is the host.
pub(super) fn open_loopback() -> io::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::send(&socket, &link_up(LOOPBACK_INDEX), SendFlags::empty())?;
    let mut answer = [0; 256];
    let (len, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    check_answer(answer.get(..len).unwrap_or_default())?;
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
}

/// The first interface of each namespace is the loopback.
const LOOPBACK_INDEX: i32 = 1;

const RTM_NEWLINK: u16 = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const IFF_UP: u32 = 1;

/// A netlink message that sets an interface's flag "up": `nlmsghdr`, then `ifinfomsg`.
fn link_up(index: i32) -> Vec<u8> {
    const LEN: u32 = 32;
    let mut message = Vec::with_capacity(32);
    message.extend(LEN.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes()); // sequence
    message.extend(0_u32.to_ne_bytes()); // from
    message.extend([0; 4]); // family, padding, type
    message.extend(index.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // flags
    message.extend(IFF_UP.to_ne_bytes()); // which flags change
    message
}

/// The answer is an error message in each case; its number is 0 if all went well.
fn check_answer(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    let number = answer.get(16..20).and_then(|number| number.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, number) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(number)) => Err(io::Error::from_raw_os_error(-number)),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_length_that_it_says() {
        let message = link_up(1);
        assert_eq!(message.len(), 32);
        assert_eq!(message[..4], 32_u32.to_ne_bytes());
    }

    #[test]
    fn answers() {
        let answer = |number: i32| [&[0; 4][..], &2_u16.to_ne_bytes(), &[0; 10], &number.to_ne_bytes()].concat();
        assert!(check_answer(&answer(0)).is_ok());
        assert_eq!(check_answer(&answer(-1)).unwrap_err().raw_os_error(), Some(1));
        assert!(check_answer(b"").is_err());
    }
}
