//! Packing a directory into a tar, as `tar -cf - -C root .` would.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::protocol::{Answer, FRAME_LEN_MAX, Failure, WirePath};
use super::walk::{Status, if_there, names, open_directory};
use super::{BodyWriter, Stop, answer, send};
use crate::unpack::relative;

const BLOCK_LEN: u64 = 512;
/// Longer names go into a member of their own before.
const NAME_LEN_MAX: usize = 100;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Sends a tar of `root`, without what is mounted below it and without `excludes`. Files may change meanwhile: one that
/// vanishes is left out, one that grows is cut at its first length, one that shrinks is filled with zeros, as `tar` does.
/// A file of several names is packed whole under each: clients refuse archives with hard links, which could lead outside.
pub(super) fn persist(root: &Path, excludes: &[WirePath], mut out: impl Write) -> Result<(), Stop> {
    let excludes = excludes.iter().map(|path| excluded(root, &path.0)).collect::<Result<_, _>>()?;
    let unreadable = |error: io::Error| Failure::archive(format!("{}: {error}", root.display()));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(|error| unreadable(error.into()))?;
    let status = Status::of_open(&directory).map_err(unreadable)?;
    send(answer(&mut out, &Answer::Done))?;
    let mut packer = Packer { out: BodyWriter::new(out), excludes };
    packer.header(&packer.name(Path::new(""), true), &status, EntryType::Directory, 0, None)?;
    packer.directory(&directory, Path::new(""))?;
    // Two blocks of zeros are the end of a tar.
    send(packer.out.write_all(&ZEROS[..2 * 512]))?;
    send(packer.out.finish())
}

/// An exclude as a path below the root.
fn excluded(root: &Path, exclude: &Path) -> Result<PathBuf, Failure> {
    let below = exclude.strip_prefix(root).unwrap_or(exclude);
    relative(below.as_os_str().as_bytes())
        .map_err(|_| Failure::archive(format!("{}: exclude paths must not contain \"..\"", exclude.display())))
}

struct Packer<W: Write> {
    out: BodyWriter<W>,
    excludes: HashSet<PathBuf>,
}

impl<W: Write> Packer<W> {
    fn directory(&mut self, directory: &OwnedFd, path: &Path) -> Result<(), Stop> {
        let Some(names) = if_there(names(directory)).map_err(|error| unreadable(path, &error))? else {
            return Ok(());
        };
        for name in names {
            let below = path.join(&name);
            if !self.excludes.contains(&below) {
                self.member(directory, &name, &below)?;
            }
        }
        Ok(())
    }

    fn member(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), Stop> {
        let failed = |error: io::Error| unreadable(path, &error);
        let Some(status) = if_there(Status::of(parent, name)).map_err(failed)? else { return Ok(()) };
        if status.is_mount {
            return Ok(());
        }
        let packed_name = self.name(path, status.is_directory());
        match status.kind {
            FileType::Directory => {
                let Some(directory) = if_there(open_directory(parent, name)).map_err(failed)? else { return Ok(()) };
                self.header(&packed_name, &status, EntryType::Directory, 0, None)?;
                return self.directory(&directory, path);
            }
            FileType::RegularFile => {
                if !self.file(parent, name, path, &packed_name)? {
                    return Ok(());
                }
            }
            FileType::Symlink => {
                let read = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(io::Error::from);
                let Some(target) = if_there(read).map_err(failed)? else { return Ok(()) };
                self.header(&packed_name, &status, EntryType::Symlink, 0, Some(target.to_bytes()))?;
            }
            // Sockets, FIFOs and devices are no data.
            _ => return Ok(()),
        }
        Ok(())
    }

    /// Packs a file; `false` if it is gone, or no file any more.
    fn file(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, packed_name: &[u8]) -> Result<bool, Stop> {
        let failed = |error: io::Error| unreadable(path, &error);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let mut file = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(false),
            Err(error) => return Err(failed(error.into()).into()),
        };
        let status = Status::of_open(&file).map_err(failed)?;
        if !status.is_regular() {
            return Ok(false);
        }
        self.header(packed_name, &status, EntryType::Regular, status.size, None)?;
        let mut left = status.size;
        let mut buffer = vec![0; FRAME_LEN_MAX];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let read = match file.read(&mut buffer[..want]) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error).into()),
            };
            send(self.out.write_all(&buffer[..read]))?;
            left -= read as u64;
        }
        self.zeros(left)?;
        self.zeros(padding(status.size))?;
        Ok(true)
    }

    fn zeros(&mut self, mut len: u64) -> Result<(), Stop> {
        while len > 0 {
            let part = usize::try_from(len).unwrap_or(usize::MAX).min(ZEROS.len());
            send(self.out.write_all(&ZEROS[..part]))?;
            len -= part as u64;
        }
        Ok(())
    }

    /// `./a/b`, or `./a/` for a directory.
    fn name(&self, path: &Path, is_directory: bool) -> Vec<u8> {
        let mut name = b"./".to_vec();
        name.extend_from_slice(path.as_os_str().as_bytes());
        if is_directory && !path.as_os_str().is_empty() {
            name.push(b'/');
        }
        name
    }

    fn header(
        &mut self,
        name: &[u8],
        status: &Status,
        kind: EntryType,
        size: u64,
        target: Option<&[u8]>,
    ) -> Result<(), Stop> {
        if let Some(target) = target.filter(|target| target.len() > NAME_LEN_MAX) {
            self.long(EntryType::GNULongLink, target)?;
        }
        if name.len() > NAME_LEN_MAX {
            self.long(EntryType::GNULongName, name)?;
        }
        let mut header = Header::new_gnu();
        fill(&mut header.as_old_mut().name, name);
        fill(&mut header.as_old_mut().linkname, target.unwrap_or_default());
        header.set_entry_type(kind);
        header.set_mode(status.mode);
        header.set_uid(status.owner.0.into());
        header.set_gid(status.owner.1.into());
        // Before 1970 there is no number for.
        header.set_mtime(u64::try_from(status.times.last_modification.tv_sec).unwrap_or(0));
        header.set_size(size);
        header.set_cksum();
        send(self.out.write_all(header.as_bytes()))
    }

    /// The member that holds a name or target for the next.
    fn long(&mut self, kind: EntryType, name: &[u8]) -> Result<(), Stop> {
        let size = name.len() as u64 + 1;
        let mut header = Header::new_gnu();
        fill(&mut header.as_old_mut().name, b"././@LongLink");
        header.set_entry_type(kind);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        send(self.out.write_all(header.as_bytes()))?;
        send(self.out.write_all(name))?;
        self.zeros(1 + padding(size))
    }
}

fn fill(field: &mut [u8; NAME_LEN_MAX], bytes: &[u8]) {
    let len = bytes.len().min(field.len());
    field[..len].copy_from_slice(&bytes[..len]);
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK_LEN) - size
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::archive(format!("./{}: {error}", path.display()))
}
