//! Removing what an archive replaces.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Removes `name` from `parent`, with everything below, following no link. What is in `kept` stays, with the
/// directories above it; `path` is the name as `kept` has it. Returns whether nothing stayed.
pub(crate) fn remove(parent: impl AsFd, name: &OsStr, path: &Path, kept: &HashSet<PathBuf>) -> io::Result<bool> {
    let is_kept = kept.contains(path);
    if !is_kept {
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(true),
        // It is kept, and no directory.
        Err(Errno::NOTDIR | Errno::LOOP) if is_kept => return Ok(false),
        opened => opened?,
    };
    let is_empty = remove_contents(&directory, path, kept)?;
    if is_kept || !is_empty {
        return Ok(false);
    }
    rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
    Ok(true)
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
