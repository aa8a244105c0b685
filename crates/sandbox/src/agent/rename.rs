//! Renaming, and moving between file systems.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::files::{Looks, place, temporary_in};
use super::protocol::{Answer, Failure, Verb};
use super::remove::{delete, empty};
use super::walk::{Status, if_there, names, open_directory};

/// As `rename(2)`; where that cannot be, between file systems, copies and then deletes the original. A copy that fails
/// is taken back, and the original stays.
pub(super) fn rename(from: &Path, to: &Path) -> Result<Answer, Failure> {
    let failed = |path: &Path, error: &io::Error| Failure::file(Verb::Rename, path, error);
    let status = Status::of(CWD, from).map_err(|error| failed(from, &error))?;
    match rustix::fs::rename(from, to) {
        Ok(()) => Ok(Answer::Done),
        Err(Errno::XDEV) => {
            copy(from, to, &status).map_err(|error| failed(to, &error))?;
            delete(from, true)
        }
        // The original is there, so it is the other whose directory is not.
        Err(Errno::NOENT) => Err(failed(to, &Errno::NOENT.into())),
        Err(error) => Err(failed(from, &error.into())),
    }
}

fn copy(from: &Path, to: &Path, status: &Status) -> io::Result<()> {
    let old = if_there(Status::of(CWD, to))?;
    if !status.is_directory() {
        if old.as_ref().is_some_and(Status::is_directory) {
            return Err(Errno::ISDIR.into());
        }
        return Copy::default().leaf(from, to, status, old.is_some());
    }
    match old {
        // As `rename(2)`, in the place of an empty directory.
        Some(old) if old.is_directory() && !old.is_mount => rustix::fs::rmdir(to)?,
        Some(old) if old.is_mount => return Err(Errno::BUSY.into()),
        Some(_) => return Err(Errno::NOTDIR.into()),
        None => {}
    }
    let copied = Copy::default().directory(&open_directory(CWD, from)?, from, to, status);
    if copied.is_err() {
        // Best effort: the reason of the failure is what matters.
        drop(open_directory(CWD, to).and_then(|made| empty(&made)));
        drop(std::fs::remove_dir(to));
    }
    copied
}

/// One move; knows which files have more than one name.
#[derive(Default)]
struct Copy {
    copied: HashMap<(u32, u32, u64), PathBuf>,
}

impl Copy {
    fn directory(&mut self, directory: &OwnedFd, from: &Path, to: &Path, status: &Status) -> io::Result<()> {
        std::fs::create_dir(to)?;
        for name in names(directory)? {
            let (from, to) = (from.join(&name), to.join(&name));
            let status = Status::of(directory, &name)?;
            if status.is_mount {
                // It would be deleted with the original.
                return Err(Errno::BUSY.into());
            }
            if status.is_directory() {
                self.directory(&open_directory(directory, &name)?, &from, &to, &status)?;
            } else {
                self.leaf(&from, &to, &status, false)?;
            }
        }
        // After its contents, which change the times.
        let made = open_directory(CWD, to)?;
        give(CWD, to, status);
        kept(rustix::fs::fchmod(&made, Mode::from_raw_mode(status.mode)))?;
        kept(rustix::fs::futimens(&made, &status.times))
    }

    /// Copies what is no directory.
    fn leaf(&mut self, from: &Path, to: &Path, status: &Status, replaces: bool) -> io::Result<()> {
        if status.link_count > 1 {
            // A file system without hard links gets a second copy.
            if self.copied.get(&status.identity).is_some_and(|first| std::fs::hard_link(first, to).is_ok()) {
                return Ok(());
            }
            self.copied.insert(status.identity, to.to_owned());
        }
        match status.kind {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let mut source = File::from(rustix::fs::openat(CWD, from, flags, Mode::empty())?);
                let looks = Looks { mode: status.mode, owner: Some(status.owner), times: Some(status.times.clone()) };
                place(to, replaces, &looks, |file| io::copy(&mut source, file).map(drop))
            }
            FileType::Symlink => {
                let target = std::fs::read_link(from)?;
                let parent = to.parent().ok_or(Errno::ISDIR)?;
                let link = temporary_in(parent, |path| std::os::unix::fs::symlink(&target, path))?;
                give(CWD, link.path(), status);
                kept(rustix::fs::utimensat(CWD, link.path(), &status.times, AtFlags::SYMLINK_NOFOLLOW))?;
                link.persist(to).map(drop).map_err(|error| error.error)
            }
            FileType::Fifo => {
                if replaces {
                    std::fs::remove_file(to)?;
                }
                rustix::fs::mkfifoat(CWD, to, Mode::from_raw_mode(status.mode))?;
                Ok(())
            }
            // Sockets and devices would be others elsewhere.
            _ => Err(Errno::XDEV.into()),
        }
    }
}

/// Hands a copy to the owner of the original, as far as it may be: as `mv`, a move does not fail over it.
fn give(directory: impl std::os::fd::AsFd, path: &Path, status: &Status) {
    let (user, group) = status.owner;
    let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    let _: Result<(), Errno> = rustix::fs::chownat(directory, path, user, group, AtFlags::SYMLINK_NOFOLLOW);
}

/// A file system that keeps no modes or times is no reason not to move there.
fn kept(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
