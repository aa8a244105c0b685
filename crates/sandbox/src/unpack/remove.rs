//! Removing what an archive replaces.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::removal;

/// Removes `name` from `parent`, with everything below, following no link. What is in `kept` stays; the
/// directories above it must be in it too. `path` is the name as `kept` has it. Returns whether nothing stayed.
pub(crate) fn remove(parent: impl AsFd, name: &OsStr, path: &Path, kept: &HashSet<PathBuf>) -> io::Result<bool> {
    if !kept.contains(path) {
        // Then nothing below is kept either, and how deep it is does not matter.
        return removal::remove_at(parent, name).map(|()| true);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(true),
        // It is kept, and no directory.
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        opened => opened?,
    };
    remove_contents(&directory, path, kept)?;
    Ok(false)
}

/// The same for everything in a directory, which stays.
pub(crate) fn remove_contents(directory: impl AsFd, path: &Path, kept: &HashSet<PathBuf>) -> io::Result<bool> {
    let names: Vec<_> = Dir::read_from(&directory)?
        .map(|entry| entry.map(|entry| entry.file_name().to_bytes().to_vec()))
        .filter(|name| !matches!(name.as_deref(), Ok(b"." | b"..")))
        .collect::<Result<_, _>>()?;
    let mut is_empty = true;
    for name in names {
        let name = OsStr::from_bytes(&name);
        is_empty &= remove(&directory, name, &path.join(name), kept)?;
    }
    Ok(is_empty)
}
