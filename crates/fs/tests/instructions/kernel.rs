//! The kernel's side of a mount: asks what a program's calls become, one request at a time, so that each run asks the same.
//!
//! A socket that keeps messages apart stands for the device. Layouts are those of `linux/fuse.h`.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// The root's node.
pub(crate) const ROOT: u64 = 1;
/// The most data of one request, in bytes: as much as a socket of an ordinary user takes at once.
pub(crate) const DATA_LEN: u32 = 128 << 10;

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const CREATE: u32 = 35;
const DESTROY: u32 = 38;
const READDIRPLUS: u32 = 44;

const ENOENT: i32 = -2;
/// Of `fuse_out_header`, `fuse_entry_out` and `fuse_dirent`, in bytes.
const OUT_HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 128;
const DIRENT_LEN: usize = 24;
/// What a listing asks for at once, in bytes.
const LIST_LEN: u32 = 16 << 10;
/// The mount's process is made some fifty times slower.
const PATIENCE: Duration = Duration::from_secs(120);

/// A file that is open: its node, and the handle.
#[derive(Clone, Copy)]
pub(crate) struct Open(u64, u64);

/// A name of a listing, the node that it was looked up as (0: it was not), and where the listing goes on.
struct Listed {
    name: Vec<u8>,
    node: u64,
    next: u64,
}

pub(crate) struct Kernel {
    device: OwnedFd,
    asked: u64,
    buffer: Vec<u8>,
}

/// The fields of a request, in the machine's order.
macro_rules! body {
    ($($field:expr),*) => { [$(&$field.to_ne_bytes()[..]),*].concat() };
}

fn word(bytes: &[u8], at: usize) -> Result<u64> {
    let bytes = bytes.get(at..at + 8).context("an answer is too short")?;
    Ok(u64::from_ne_bytes(bytes.try_into()?))
}

fn half_word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..at + 4).context("an answer is too short")?;
    Ok(u32::from_ne_bytes(bytes.try_into()?))
}

impl Kernel {
    /// Both ends of a device.
    pub(crate) fn new() -> Result<(Self, OwnedFd)> {
        let (device, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&device, Timeout::Recv, Some(PATIENCE))?;
        Ok((Self { device, asked: 0, buffer: vec![0; 2 * DATA_LEN as usize] }, other))
    }

    /// The body of the answer, or the error in it.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Result<&[u8], i32>> {
        self.asked += 2;
        let ids = [0, 0, std::process::id(), 0];
        let len = u32::try_from(40 + body.len())?;
        let header = body!(len, opcode, self.asked, node, ids[0], ids[1], ids[2], ids[3]);
        rustix::io::write(&self.device, &[&header, body].concat())?;
        let len = rustix::io::read(&self.device, &mut self.buffer).context("the mount does not answer")?;
        ensure!(len >= OUT_HEADER_LEN, "the mount has ended");
        ensure!(word(&self.buffer, 8)? == self.asked, "an answer to another request");
        let error = half_word(&self.buffer, 4)?.cast_signed();
        Ok(if error == 0 { Ok(&self.buffer[OUT_HEADER_LEN..len]) } else { Err(error) })
    }

    fn must(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<&[u8]> {
        match self.ask(opcode, node, body)? {
            Ok(answer) => Ok(answer),
            Err(error) => bail!("request {opcode} failed: {}", rustix::io::Errno::from_raw_os_error(-error)),
        }
    }

    pub(crate) fn hello(&mut self) -> Result<()> {
        let all = u32::MAX;
        // Nothing of the second word, where the kernel offers rings and backing files: a socket has neither.
        self.must(INIT, 0, &body!(7u32, 40u32, 1u32 << 20, all, 0u32))?;
        Ok(())
    }

    /// The end, which each of the mount's threads hears for itself.
    pub(crate) fn end(mut self, thread_count: usize) -> Result<()> {
        for _ in 0..thread_count {
            self.must(DESTROY, 0, &[])?;
        }
        Ok(())
    }

    /// The node of a name, if it is there.
    pub(crate) fn lookup(&mut self, parent: u64, name: &str) -> Result<Option<u64>> {
        match self.ask(LOOKUP, parent, &[name.as_bytes(), &[0]].concat())? {
            Ok(entry) => word(entry, 0).map(Some),
            Err(ENOENT) => Ok(None),
            Err(error) => bail!("lookup of {name}: error {error}"),
        }
    }

    /// The size of a file.
    pub(crate) fn getattr(&mut self, node: u64) -> Result<u64> {
        word(self.must(GETATTR, node, &body!(0u32, 0u32, 0u64))?, 16 + 8)
    }

    pub(crate) fn open(&mut self, node: u64) -> Result<Open> {
        Ok(Open(node, word(self.must(OPEN, node, &body!(0u32, 0u32))?, 0)?))
    }

    pub(crate) fn read(&mut self, Open(node, handle): Open, offset: u64) -> Result<&[u8]> {
        self.must(READ, node, &body!(handle, offset, DATA_LEN, 0u32, 0u64, 0u32, 0u32))
    }

    /// Makes a file, for writing.
    pub(crate) fn create(&mut self, parent: u64, name: &str) -> Result<Open> {
        let body = body!(rustix::fs::OFlags::WRONLY.bits(), 0o100_644u32, 0o022u32, 0u32);
        let made = self.must(CREATE, parent, &[&body, name.as_bytes(), &[0]].concat())?;
        Ok(Open(word(made, 0)?, word(made, ENTRY_LEN)?))
    }

    pub(crate) fn write(&mut self, Open(node, handle): Open, offset: u64, data: &[u8]) -> Result<()> {
        let len = u32::try_from(data.len())?;
        let body = body!(handle, offset, len, 0u32, 0u64, 0u32, 0u32);
        let written = half_word(self.must(WRITE, node, &[&body, data].concat())?, 0)?;
        ensure!(written == len, "{written} of {len} bytes written");
        Ok(())
    }

    /// `close` of a file that was written.
    pub(crate) fn flush(&mut self, Open(node, handle): Open) -> Result<()> {
        self.must(FLUSH, node, &body!(handle, 0u32, 0u32, 0u64))?;
        Ok(())
    }

    pub(crate) fn release(&mut self, Open(node, handle): Open) -> Result<()> {
        self.must(RELEASE, node, &body!(handle, 0u32, 0u32, 0u64))?;
        Ok(())
    }

    /// The names of a directory, and the nodes of those that came with their attributes.
    pub(crate) fn list(&mut self, node: u64) -> Result<Vec<(String, Option<u64>)>> {
        let handle = word(self.must(OPENDIR, node, &body!(0u32, 0u32))?, 0)?;
        let (mut names, mut at) = (Vec::new(), 0u64);
        loop {
            let body = body!(handle, at, LIST_LEN, 0u32, 0u64, 0u32, 0u32);
            let listed = listed(self.must(READDIRPLUS, node, &body)?)?;
            let Some(last) = listed.last() else { break };
            at = last.next;
            for Listed { name, node, .. } in listed {
                names.push((String::from_utf8(name)?, Some(node).filter(|&node| node != 0)));
            }
        }
        self.must(RELEASEDIR, node, &body!(handle, 0u32, 0u32, 0u64))?;
        names.retain(|(name, _)| !matches!(name.as_str(), "." | ".."));
        Ok(names)
    }
}

fn listed(mut bytes: &[u8]) -> Result<Vec<Listed>> {
    let mut listed = Vec::new();
    while !bytes.is_empty() {
        let name_len = half_word(bytes, ENTRY_LEN + 16)? as usize;
        let end = ENTRY_LEN + DIRENT_LEN + name_len;
        let name = bytes.get(ENTRY_LEN + DIRENT_LEN..end).context("a name is cut")?.to_vec();
        listed.push(Listed { name, node: word(bytes, 0)?, next: word(bytes, ENTRY_LEN + 8)? });
        bytes = bytes.get(end.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(listed)
}
