//! Netlink messages (`netlink(7)`), as many of them as the network of sandboxes needs: requests that change something, each
//! of which is acknowledged.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink, sockopt,
};

const HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// The highest bit but one of an attribute's type: it holds attributes.
const NLA_F_NESTED: u16 = 1 << 15;

/// `NLM_F_CREATE`: make it if it is not there.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_REPLACE`: change it if it is there.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_APPEND`: at the end of a list.
pub(crate) const APPEND: u16 = 0x800;

/// The kernel answers at once; this is for a kernel that does not know what to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Requests that are sent together.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    bytes: Vec<u8>,
    sequence: u32,
    /// What each request that is acknowledged does, with its sequence.
    expected: Vec<(u32, String)>,
}

impl Requests {
    /// Adds a request. `head` is the family's own header; `what` names it in errors, and one without is not acknowledged.
    pub(crate) fn add(
        &mut self,
        kind: u16,
        flags: u16,
        head: &[u8],
        what: Option<&str>,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.sequence += 1;
        let flags = NLM_F_REQUEST | flags | if what.is_some() { NLM_F_ACK } else { 0 };
        self.bytes.extend([0; 4]); // length, known at the end
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]); // from the kernel's side of view: chosen by it
        self.bytes.extend(head);
        pad(&mut self.bytes);
        fill(&mut Attributes { bytes: &mut self.bytes });
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        if let Some(what) = what {
            self.expected.push((self.sequence, what.to_owned()));
        }
    }

    /// Sends all requests to the current network namespace and waits for the kernel's word on each. Without a protocol it
    /// is the first one, for interfaces, addresses and routes. Returns the socket, for those to whom it matters when it is
    /// closed.
    ///
    /// # Errors
    /// The first one that the kernel gives, with what was tried.
    pub(crate) fn send(mut self, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
        let socket = open(protocol)?;
        rustix::net::sendto(&socket, &self.bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answers = vec![0; 32 * 1024];
        while !self.expected.is_empty() {
            let (len, _) = rustix::net::recv(&socket, answers.as_mut_slice(), RecvFlags::empty())?;
            self.take_answers(answers.get(..len).unwrap_or_default())?;
        }
        Ok(socket)
    }

    fn take_answers(&mut self, mut answers: &[u8]) -> io::Result<()> {
        while !answers.is_empty() {
            let (sequence, number, rest) = answer(answers).ok_or(io::ErrorKind::InvalidData)?;
            answers = rest;
            let known = self.expected.iter().position(|(expected, _)| *expected == sequence);
            let what = known.map_or_else(|| "netlink".to_owned(), |index| self.expected.swap_remove(index).1);
            if number != 0 {
                let error = io::Error::from_raw_os_error(-number);
                return Err(io::Error::new(error.kind(), format!("{what}: {error}")));
            }
        }
        Ok(())
    }
}

fn open(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIME_MAX))?;
    Ok(socket)
}

/// Sequence and error number (0 or negative) of the first answer, and what follows it.
fn answer(bytes: &[u8]) -> Option<(u32, i32, &[u8])> {
    let len = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let number = i32::from_ne_bytes(bytes.get(HEADER_LEN..HEADER_LEN + 4)?.try_into().ok()?);
    let is_whole = kind == NLMSG_ERROR && len >= HEADER_LEN + 4;
    is_whole.then(|| (sequence, number, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// Where attributes are written.
#[derive(Debug)]
pub(crate) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Attributes<'_> {
    /// An attribute with these bytes.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.write(kind, |to| to.bytes.extend(value))
    }

    /// A text, with the NUL at its end.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.write(kind, |to| {
            to.bytes.extend(value.as_bytes());
            to.bytes.push(0);
        })
    }

    /// A number in network byte order, which is nftables' way.
    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Attributes in an attribute.
    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.write(kind | NLA_F_NESTED, fill)
    }

    fn write(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]); // length, known at the end
        self.bytes.extend(kind.to_ne_bytes());
        fill(&mut Attributes { bytes: self.bytes });
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        pad(self.bytes);
        self
    }
}

/// Everything begins at a multiple of four.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_what_the_kernel_counts() {
        let mut requests = Requests::default();
        requests.add(16, CREATE, &[7; 4], Some("a"), |to| {
            to.text(1, "ab").nested(2, |to| {
                to.number(3, 9);
            });
        });
        assert_eq!(requests.bytes.len(), 16 + 4 + 8 + 4 + 8);
        assert_eq!(requests.bytes[..4], 40_u32.to_ne_bytes());
        // The padding is not counted.
        assert_eq!(requests.bytes[20..22], 7_u16.to_ne_bytes());
        assert_eq!(requests.bytes[28..32], [12_u16.to_ne_bytes(), (2 | NLA_F_NESTED).to_ne_bytes()].concat());
        assert_eq!(requests.bytes[36..40], [0, 0, 0, 9]);
    }

    #[test]
    fn answers_are_told_by_what_was_tried() {
        let answer = |sequence: u32, number: i32| {
            let mut bytes = [20_u32.to_ne_bytes(), [2, 0, 0, 0], sequence.to_ne_bytes(), [0; 4]].concat();
            bytes.extend(number.to_ne_bytes());
            bytes
        };
        let requests = || {
            let mut requests = Requests::default();
            requests.add(1, 0, &[], Some("first"), |_| {});
            requests.add(1, 0, &[], None, |_| {});
            requests.add(1, 0, &[], Some("second"), |_| {});
            requests
        };
        let mut good = requests();
        good.take_answers(&[answer(1, 0), answer(3, 0)].concat()).unwrap();
        assert!(good.expected.is_empty());
        let error = requests().take_answers(&[answer(1, 0), answer(3, -1)].concat()).unwrap_err();
        assert!(error.to_string().starts_with("second: "), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(requests().take_answers(&[0; 7]).is_err());
    }
}
