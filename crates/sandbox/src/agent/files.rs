//! Reading and writing single files, and making directories.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, Timestamps, Uid};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::protocol::{Answer, Failure, Verb, WirePath};
use super::walk::{Status, if_there};
use super::{BodyWriter, Stop, answer, send};
use crate::unpack::FUSE_MAGIC;

/// Names of files that are not whole yet begin so.
pub(super) const TEMPORARY_PREFIX: &str = ".sandpail-";

/// As many links as the kernel follows.
const LINK_COUNT_MAX: usize = 40;

/// Files of `/proc` and the like say that they are empty and are not. As much of one is read to learn its length.
const UNSIZED_LEN_MAX: u64 = 4 * 1024 * 1024;

/// Sends a regular file. Nothing else is opened in a way that could wait or start something.
pub(super) fn read(path: &Path, mut out: impl Write) -> Result<(), Stop> {
    let failed = |error: io::Error| Failure::file(Verb::Read, path, &error);
    let (mut file, status) = open_regular(path).map_err(failed)?;
    let mut beginning = Vec::new();
    let mut size = status.size;
    if size == 0 {
        let read = (&mut file).take(UNSIZED_LEN_MAX + 1).read_to_end(&mut beginning).map_err(failed)? as u64;
        if read > UNSIZED_LEN_MAX {
            return Err(failed(io::Error::other("it has no length of its own, and does not end")).into());
        }
        size = read;
    }
    send(answer(&mut out, &Answer::Size(size)))?;
    let mut body = BodyWriter::new(out);
    send(body.write_all(&beginning))?;
    let mut left = size - beginning.len() as u64;
    let mut buffer = vec![0; super::protocol::FRAME_LEN_MAX];
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = match file.read(&mut buffer[..want]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(failed)?,
        };
        if read == 0 {
            return Err(failed(io::Error::other("it became shorter while it was read")).into());
        }
        send(body.write_all(&buffer[..read]))?;
        left -= read as u64;
    }
    send(body.finish())
}

fn open_regular(path: &Path) -> io::Result<(File, Status)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        // What `open` says of a socket.
        Err(Errno::NXIO) => return Err(irregular()),
        file => file?,
    };
    let status = Status::of_open(&file)?;
    check_regular(&status)?;
    Ok((file.into(), status))
}

fn check_regular(status: &Status) -> io::Result<()> {
    if status.is_directory() {
        return Err(Errno::ISDIR.into());
    }
    if status.is_regular() { Ok(()) } else { Err(irregular()) }
}

fn irregular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")
}

/// Replaces a file, or makes it and its parents. The old file stays until the new one is whole.
pub(super) fn write(path: &Path, body: &mut impl Read) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::file(Verb::Write, path, &error);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let target = follow(path).map_err(failed)?;
    let old = if_there(Status::of(CWD, &target)).map_err(failed)?;
    if let Some(old) = &old {
        check_regular(old).map_err(failed)?;
    }
    let mut looks = Looks { mode: 0o644, owner: None, times: None };
    if let Some(old) = &old {
        // Set-id bits do not outlive a change of contents.
        looks = Looks { mode: old.mode & 0o1777, owner: Some(old.owner), times: None };
    }
    place(&target, old.is_some(), &looks, |file| io::copy(body, file).map(drop)).map_err(failed)
}

/// Follows a link at the end of `path` to where a file is, or would be.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINK_COUNT_MAX {
        match std::fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            // `EINVAL`: it is no link.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::LOOP.into())
}

/// What a new file looks like.
#[derive(Clone, Debug)]
pub(super) struct Looks {
    pub(super) mode: u32,
    /// User and group, as far as they may be given away.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) times: Option<Timestamps>,
}

impl Looks {
    fn apply(&self, file: &File, is_fuse: bool) -> io::Result<()> {
        let now = Status::of_open(file)?;
        if let Some(owner) = self.owner.filter(|owner| *owner != now.owner) {
            // As `mv` and `sed -i`: an owner that cannot be kept is no reason not to write.
            match rustix::fs::fchown(file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1))) {
                Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let kept = [
            if now.mode == self.mode { Ok(()) } else { rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode)) },
            self.times.as_ref().map_or(Ok(()), |times| rustix::fs::futimens(file, times)),
        ];
        for result in kept {
            match result {
                // Buckets need not keep modes and times.
                Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS) if is_fuse => {}
                result => result?,
            }
        }
        Ok(())
    }
}

/// Puts a file at `path` whole or not at all; what is there, if it is no directory, goes when the new one is complete.
///
/// A bucket's file system renames by copying the object, so there a new file is written in place, and removed if it
/// fails; only one that replaces another takes the way over a second name, for the old one must stay until then.
pub(super) fn place(
    path: &Path,
    replaces: bool,
    looks: &Looks,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let parent = path.parent().ok_or(Errno::ISDIR)?;
    let is_fuse = is_fuse(parent)?;
    if is_fuse && !replaces {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(looks.mode).open(path)?;
        let filled = complete(&mut file, looks, is_fuse, fill);
        if filled.is_err() {
            // Before it is closed: a file system of a bucket uploads what is closed.
            drop(std::fs::remove_file(path));
        }
        return filled;
    }
    let mut temporary = temporary_in(parent, |path| {
        OpenOptions::new().read(true).write(true).create_new(true).mode(looks.mode).open(path)
    })?;
    complete(temporary.as_file_mut(), looks, is_fuse, fill)?;
    temporary.persist(path).map(drop).map_err(|error| error.error)
}

/// Makes something under a name of its own in `parent`; it is removed again unless it is given its real name.
pub(super) fn temporary_in<T>(
    parent: &Path,
    mut make: impl FnMut(&Path) -> io::Result<T>,
) -> io::Result<NamedTempFile<T>> {
    // `tempfile` puts the path around errors; callers know errors by number.
    let mut errno = None;
    tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .make_in(parent, |path| make(path).inspect_err(|error| errno = error.raw_os_error()))
        .map_err(|error| errno.map_or(error, io::Error::from_raw_os_error))
}

fn complete(
    file: &mut File,
    looks: &Looks,
    is_fuse: bool,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    fill(file)?;
    looks.apply(file, is_fuse)?;
    // A bucket's errors come with `close`, which cannot report here; after `fsync` there are none left. A sandbox's
    // own disk does not outlive its host's crash, so there it would only cost time.
    if is_fuse { file.sync_all() } else { Ok(()) }
}

fn is_fuse(directory: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statfs(directory)?.f_type == FUSE_MAGIC)
}

pub(super) fn stat(path: &Path) -> Result<Answer, Failure> {
    match Status::following(path) {
        Ok(status) => Ok(Answer::Info(status.info(path.to_owned()))),
        Err(error) => Err(Failure::file(Verb::Stat, path, &error)),
    }
}

pub(super) fn exists(path: &Path) -> Result<Answer, Failure> {
    match if_there(Status::following(path)) {
        Ok(status) => Ok(Answer::Bool(status.is_some())),
        // A file where a directory would have to be.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Answer::Bool(false)),
        Err(error) => Err(Failure::file(Verb::Stat, path, &error)),
    }
}

pub(super) fn make_directory(path: &Path, parents: bool) -> Result<Answer, Failure> {
    let made = if parents { std::fs::create_dir_all(path) } else { std::fs::create_dir(path) };
    made.map(|()| Answer::Done).map_err(|error| Failure::file(Verb::Mkdir, path, &error))
}

/// Makes `path` and its parents; says which was the first that was not there. On failure nothing is left.
pub(super) fn make_mountpoint(path: &Path) -> Result<Answer, Failure> {
    let mut made: Option<PathBuf> = None;
    let mut so_far = PathBuf::new();
    let result = path.components().try_for_each(|component| {
        so_far.push(component);
        match std::fs::create_dir(&so_far) {
            Ok(()) => {
                made.get_or_insert_with(|| so_far.clone());
                Ok(())
            }
            // Also of a read-only file system, and of a link to a directory.
            Err(_) if so_far.is_dir() => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Errno::NOTDIR.into()),
            Err(error) => Err(error),
        }
    });
    match result {
        Ok(()) => Ok(Answer::Made(made.map(WirePath))),
        Err(error) => {
            if let (Some(made), Some(last)) = (&made, so_far.parent()) {
                drop(remove_mountpoint(last, made));
            }
            Err(Failure::file(Verb::Mkdir, path, &error))
        }
    }
}

/// Removes `path` and its parents up to `made`, until one is not empty.
pub(super) fn remove_mountpoint(path: &Path, made: &Path) -> Result<Answer, Failure> {
    for directory in path.ancestors().take_while(|directory| directory.starts_with(made)) {
        match rustix::fs::rmdir(directory) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY | Errno::NOTDIR) => break,
            Err(error) => return Err(Failure::file(Verb::Rmdir, directory, &error.into())),
        }
    }
    Ok(Answer::Done)
}
