//! Unpacking the members of a tar below a directory, so that none lands outside.
//!
//! Two use it: the agent, for `hydrate` (as the guest's root, in a directory that the guest may change meanwhile), and
//! the host, for the layers of an image (as the host's root, in a directory of its own). Every member is put into a
//! directory that [`Beneath`] resolved, by its last name and following no link, so that what an earlier member or a
//! guest put in the way is replaced or an error, never written through.
//!
//! Symbolic links are kept as they are, wherever they lead: they are data (`.venv/bin/python` leads to `/usr`). It is
//! members that may not pass through one that leads out. Hard links lead to members or files below the root only.

mod beneath;
mod remove;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub(crate) use beneath::{Beneath, LeadsOut, Links, relative, split};
pub(crate) use remove::{remove, remove_contents};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use tar::{Entry, EntryType};

/// Names and targets of links; longer ones are no path on any system.
const NAME_LEN_MAX: usize = 16 * 1024;

/// What is taken over from members besides names, contents and times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) links: Links,
    /// Users and groups as in the archive; otherwise files belong to whoever unpacks.
    pub(crate) keeps_ids: bool,
    /// The bits of the mode that are kept.
    pub(crate) mode_mask: u32,
    /// Whether a directory with contents goes where a file is to be; otherwise that is an error, as with `tar`.
    pub(crate) replaces_trees: bool,
    /// Bytes of all files together, holes counted.
    pub(crate) limit: u64,
}

/// Why a tar cannot be unpacked.
#[derive(Debug)]
pub(crate) enum UnpackError {
    /// A member.
    Member { name: String, why: String },
    /// The files are larger than [`Policy::limit`], together.
    TooLarge { len: u64 },
}

impl std::fmt::Display for UnpackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Member { name, why } => write!(f, "{name}: {why}"),
            Self::TooLarge { len } => write!(f, "its files have {len} bytes together or more"),
        }
    }
}

/// Unpacks members, one after the other, then [`Unpacker::finish`].
#[derive(Debug)]
pub(crate) struct Unpacker {
    beneath: Beneath,
    policy: Policy,
    len: u64,
    /// Modes and times of directories: set last, for contents change them, and may not be possible any more after.
    directories: Vec<(PathBuf, Mode, Timestamps)>,
}

/// What a header says, as far as it is kept.
struct Looks {
    mode: Mode,
    ids: Option<(Uid, Gid)>,
    times: Timestamps,
}

impl Unpacker {
    pub(crate) fn open(root: &Path, policy: Policy) -> io::Result<Self> {
        Ok(Self { beneath: Beneath::open(root, policy.links)?, policy, len: 0, directories: Vec::new() })
    }

    /// The directory that everything is below.
    pub(crate) fn beneath(&mut self) -> &mut Beneath {
        &mut self.beneath
    }

    /// Bytes of the files so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Unpacks a member. What is at its name goes, except that a directory stays a directory.
    pub(crate) fn member(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let name = entry.path_bytes().into_owned();
        self.try_member(&name, entry).map_err(|refusal| match refusal {
            Refusal::TooLarge => UnpackError::TooLarge { len: self.len },
            Refusal::Io(error) => UnpackError::Member { name: lossy(&name), why: error.to_string() },
        })
    }

    fn try_member(&mut self, name: &[u8], entry: &mut Entry<'_, impl Read>) -> Result<(), Refusal> {
        if name.len() > NAME_LEN_MAX {
            return Err(io::Error::other("the name is too long").into());
        }
        let path = relative(name)?;
        let kind = entry.header().entry_type();
        let looks = self.looks(entry)?;
        let Some((parent, name)) = split(&path) else {
            if kind == EntryType::Directory {
                self.directories.push((path, looks.mode, looks.times));
                return Ok(());
            }
            return Err(io::Error::other("it is no directory, but has the place of the root").into());
        };
        match kind {
            EntryType::Directory => {
                let parent = self.beneath.made_directory(parent)?;
                self.directory(&parent, &name)?;
                looks.give(&parent, &name)?;
                self.directories.push((path, looks.mode, looks.times));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.len = self.len.saturating_add(entry.size());
                if self.len > self.policy.limit {
                    return Err(Refusal::TooLarge);
                }
                let parent = self.vacant(parent, &name)?;
                let written = file(&parent, &name, entry, &looks);
                if written.is_err() {
                    // Half a file looks like a whole one. Why it is half is what matters.
                    let _: Result<(), Errno> = rustix::fs::unlinkat(&parent, &name, AtFlags::empty());
                }
                written?;
            }
            EntryType::Symlink => {
                let target = link_target(entry)?;
                let parent = self.vacant(parent, &name)?;
                rustix::fs::symlinkat(target.as_slice(), &parent, &name)?;
                looks.give(&parent, &name)?;
                kept(rustix::fs::utimensat(&parent, &name, &looks.times, AtFlags::SYMLINK_NOFOLLOW))?;
            }
            EntryType::Link => {
                let target = relative(&link_target(entry)?)?;
                let Some((directory, target_name)) = split(&target) else {
                    return Err(io::Error::other("it is a hard link to a directory").into());
                };
                let source = self.beneath.directory(directory)?;
                if target == path {
                    return Ok(());
                }
                let parent = self.vacant(parent, &name)?;
                match rustix::fs::linkat(&source, &target_name, &parent, &name, AtFlags::empty()) {
                    Ok(()) => {}
                    // Buckets have no hard links, and none leads from one file system to another.
                    Err(Errno::PERM | Errno::XDEV | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK) => {
                        copy(&source, &target_name, &parent, &name)?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            // Devices and FIFOs have no place in a sandbox's files; the rest are notes of the archive about itself.
            _ => {}
        }
        Ok(())
    }

    /// Makes a directory, or takes the one that is there.
    fn directory(&mut self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => {}
            made => return Ok(made?),
        }
        let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
            return Ok(());
        }
        self.beneath.forget();
        rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        Ok(rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?)
    }

    /// Makes room for a new `name` in `parent`.
    fn vacant(&mut self, directory: &Path, name: &OsStr) -> io::Result<OwnedFd> {
        let parent = self.beneath.made_directory(directory)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) => self.beneath.forget(),
            Err(Errno::NOENT) => {}
            // An empty directory may go, as with `tar`.
            Err(Errno::ISDIR) => {
                self.beneath.forget();
                if self.policy.replaces_trees {
                    remove(&parent, name, &directory.join(name), &HashSet::new())?;
                } else {
                    rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(parent)
    }

    fn looks(&self, entry: &Entry<'_, impl Read>) -> io::Result<Looks> {
        let header = entry.header();
        // A time that is none (before 1970, as some write it) is no reason to refuse a file.
        let modified = i64::try_from(header.mtime()?).unwrap_or(0);
        let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("the owner is out of range"));
        Ok(Looks {
            mode: Mode::from_raw_mode(header.mode()? & self.policy.mode_mask),
            ids: if self.policy.keeps_ids {
                Some((Uid::from_raw(id(header.uid()?)?), Gid::from_raw(id(header.gid()?)?)))
            } else {
                None
            },
            times: Timestamps {
                last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                last_modification: Timespec { tv_sec: modified, tv_nsec: 0 },
            },
        })
    }

    /// Sets the modes and times of directories.
    pub(crate) fn finish(self) -> Result<(), UnpackError> {
        for (path, mode, times) in self.directories.iter().rev() {
            self.finish_directory(path, *mode, times)
                .map_err(|error| UnpackError::Member { name: path.display().to_string(), why: error.to_string() })?;
        }
        Ok(())
    }

    fn finish_directory(&self, path: &Path, mode: Mode, times: &Timestamps) -> io::Result<()> {
        let (parent, name) = split(path).unwrap_or((Path::new(""), ".".into()));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match self.beneath.directory(parent) {
            Ok(parent) => rustix::fs::openat(parent, name, flags, Mode::empty()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        match opened {
            // A later member took its place.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            opened => {
                let opened = opened?;
                kept(rustix::fs::fchmod(&opened, mode))?;
                kept(rustix::fs::futimens(&opened, times))
            }
        }
    }
}

enum Refusal {
    TooLarge,
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl From<LeadsOut> for Refusal {
    fn from(LeadsOut: LeadsOut) -> Self {
        Self::Io(io::Error::other("the name leads outside: it contains \"..\""))
    }
}

impl Looks {
    /// Gives a file to its owner.
    fn give(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let Some((user, group)) = self.ids else { return Ok(()) };
        let now = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (now.st_uid, now.st_gid) != (user.as_raw(), group.as_raw()) {
            rustix::fs::chownat(parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}

/// Writes a new file at a vacant name.
fn file(parent: &OwnedFd, name: &OsStr, entry: &mut Entry<'_, impl Read>, looks: &Looks) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let private = Mode::from_raw_mode(looks.mode.as_raw_mode() & 0o777);
    let mut file = File::from(rustix::fs::openat(parent, name, flags, private)?);
    let len = entry.size();
    let copied = io::copy(entry, &mut file)?;
    if copied != len {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle of it"));
    }
    // Owner first: giving a file away clears set-id bits.
    looks.give(parent, name)?;
    if rustix::fs::fstat(&file)?.st_mode & 0o7777 != looks.mode.as_raw_mode() {
        kept(rustix::fs::fchmod(&file, looks.mode))?;
    }
    kept(rustix::fs::futimens(&file, &looks.times))?;
    stored(&file)
}

/// Copies a file where it cannot have a second name.
fn copy(source: &OwnedFd, target: &OsStr, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut source = File::from(rustix::fs::openat(source, target, flags, Mode::empty())?);
    let status = rustix::fs::fstat(&source)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is a hard link to what is no file"));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(status.st_mode & 0o1777);
    let mut copy = File::from(rustix::fs::openat(parent, name, flags, mode)?);
    io::copy(&mut source, &mut copy)?;
    stored(&copy)
}

/// A bucket's errors come with `close`, which cannot report here; after `fsync` there are none left.
fn stored(file: &File) -> io::Result<()> {
    if rustix::fs::fstatfs(file)?.f_type == FUSE_MAGIC { file.sync_all() } else { Ok(()) }
}

/// The file systems that a bucket may be behind.
pub(crate) const FUSE_MAGIC: i64 = 0x6573_5546;

fn link_target(entry: &Entry<'_, impl Read>) -> io::Result<Vec<u8>> {
    let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
    if target.is_empty() || target.len() > NAME_LEN_MAX {
        return Err(io::Error::other("it is a link without a usable target"));
    }
    Ok(target)
}

/// A bucket need not keep modes and times.
fn kept(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A member's name for messages: bounded, without control characters.
fn lossy(name: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&name[..name.len().min(200)]).replace(char::is_control, "?");
    if name.len() > 200 { format!("{shown}…") } else { shown }
}
