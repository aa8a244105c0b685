//! Deleting.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::protocol::{Answer, Failure, Verb};
use super::walk::{Status, if_there, names, open_directory};

/// Deletes a file, a link itself, or a directory: an empty one, or with `recursive` any.
///
/// What is mounted below is another's: then nothing is deleted at all, and the answer names the mount (`EBUSY`).
pub(super) fn delete(path: &Path, recursive: bool) -> Result<Answer, Failure> {
    let failed = |error: io::Error| Failure::file(Verb::Delete, path, &error);
    let status = Status::of(CWD, path).map_err(failed)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(Errno::BUSY.into()));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    if !status.is_directory() {
        unlink(&parent, name, AtFlags::empty()).map_err(failed)?;
        return Ok(Answer::Done);
    }
    if status.is_mount {
        return Err(failed(Errno::BUSY.into()));
    }
    if recursive {
        let directory = open_directory(&parent, name).map_err(failed)?;
        if let Some(mount) = find_mount(&directory, path).map_err(failed)? {
            return Err(Failure::file(Verb::Delete, mount, &Errno::BUSY.into()));
        }
        empty(&directory).map_err(failed)?;
    }
    unlink(&parent, name, AtFlags::REMOVEDIR).map_err(failed)?;
    Ok(Answer::Done)
}

fn unlink(parent: &OwnedFd, name: &OsStr, flags: AtFlags) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(parent, name, flags)?)
}

/// The first mount below a directory. A mounted file is not looked for: the kernel does not unlink it.
fn find_mount(directory: &OwnedFd, path: &Path) -> io::Result<Option<PathBuf>> {
    for name in names(directory)? {
        let Some(status) = if_there(Status::of(directory, &name))? else { continue };
        if !status.is_directory() {
            continue;
        }
        let below = path.join(&name);
        if status.is_mount {
            return Ok(Some(below));
        }
        if let Some(opened) = if_there(open_directory(directory, &name))?
            && let Some(mount) = find_mount(&opened, &below)?
        {
            return Ok(Some(mount));
        }
    }
    Ok(None)
}

/// Deletes everything in a directory, following no link and entering no mount.
pub(super) fn empty(directory: &OwnedFd) -> io::Result<()> {
    for name in names(directory)? {
        let Some(status) = if_there(Status::of(directory, &name))? else { continue };
        let flags = if status.is_directory() {
            if status.is_mount {
                return Err(Errno::BUSY.into());
            }
            let Some(below) = if_there(open_directory(directory, &name))? else { continue };
            empty(&below)?;
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        if_there(unlink(directory, &name, flags))?;
    }
    Ok(())
}
