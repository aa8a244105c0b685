//! Listing directories.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::protocol::{FRAME_LEN_MAX, Failure, FrameKind, LIST_COUNT_MAX, Verb, WireInfo, write_frame, write_json};
use super::walk::{Status, if_there, names, open_directory};
use super::{Answer, Stop, answer, send};

/// Entries are sent in batches that keep below a frame: a path is at most 4096 bytes, six times that in JSON.
const BATCH_LEN_MAX: usize = FRAME_LEN_MAX / 8;

/// Sends what is in the directory at `path`, sorted by path; whole subtrees if `recursive`.
pub(super) fn list(path: &Path, recursive: bool, hidden: bool, out: impl Write) -> Result<(), Stop> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|error| Failure::file(Verb::List, path, &error.into()))?;
    let mut out = out;
    send(answer(&mut out, &Answer::Done))?;
    let mut listing = Listing { out, batch: Vec::new(), batch_len: 0, count: 0, recursive, hidden };
    listing.directory(directory, path)?;
    listing.send()?;
    send(write_frame(&mut listing.out, FrameKind::End, &[]))
}

struct Listing<W> {
    out: W,
    batch: Vec<WireInfo>,
    batch_len: usize,
    count: usize,
    recursive: bool,
    hidden: bool,
}

impl<W: Write> Listing<W> {
    fn directory(&mut self, directory: OwnedFd, path: &Path) -> Result<(), Stop> {
        let failed = |path: &Path, error| Failure::file(Verb::List, path, &error);
        for name in names(&directory).map_err(|error| failed(path, error))? {
            if !self.hidden && is_hidden(&name) {
                continue;
            }
            let below = path.join(&name);
            // What is gone since its name was read is not listed.
            let Some(status) = if_there(Status::of(&directory, &name)).map_err(|error| failed(&below, error))? else {
                continue;
            };
            let is_directory = status.is_directory();
            self.push(status.info(below.clone()), path)?;
            if self.recursive && is_directory {
                let opened = if_there(open_directory(&directory, &name)).map_err(|error| failed(&below, error))?;
                if let Some(opened) = opened {
                    self.directory(opened, &below)?;
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, info: WireInfo, directory: &Path) -> Result<(), Stop> {
        if self.count == LIST_COUNT_MAX {
            let message = format!("more than {LIST_COUNT_MAX} entries; list smaller directories");
            return Err(Failure::file(Verb::List, directory, &std::io::Error::other(message)).into());
        }
        self.count += 1;
        self.batch_len += info.path.0.as_os_str().len() + 128;
        self.batch.push(info);
        if self.batch_len >= BATCH_LEN_MAX { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), Stop> {
        if !self.batch.is_empty() {
            send(write_json(&mut self.out, FrameKind::Json, &self.batch))?;
            self.batch.clear();
            self.batch_len = 0;
        }
        Ok(())
    }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}
