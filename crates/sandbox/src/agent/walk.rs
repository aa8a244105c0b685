//! Looking at files: attributes and directories, by descriptor where a guest could swap what is looked at.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxAttributes, StatxFlags, Timespec, Timestamps};
use rustix::path::Arg;

use super::protocol::{WireInfo, WirePath};
use crate::FileKind;

/// What `statx` says.
#[derive(Clone, Debug)]
pub(super) struct Status {
    pub(super) kind: FileType,
    /// Permission bits with set-id and sticky.
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) owner: (u32, u32),
    pub(super) link_count: u32,
    /// Device and inode.
    pub(super) identity: (u32, u32, u64),
    pub(super) times: Timestamps,
    /// Whether another file system, or a part of one, is attached here. Device numbers do not tell: a bind mount has
    /// the same, and files of an overlay have others than their directory.
    pub(super) is_mount: bool,
}

impl Status {
    /// Of `name` in `directory`; a link itself.
    pub(super) fn of(directory: impl AsFd, name: impl Arg) -> io::Result<Self> {
        Self::get(directory, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Of what a path leads to.
    pub(super) fn following(path: &Path) -> io::Result<Self> {
        Self::get(CWD, path, AtFlags::empty())
    }

    /// Of an open file.
    pub(super) fn of_open(file: impl AsFd) -> io::Result<Self> {
        Self::get(file, c"", AtFlags::EMPTY_PATH)
    }

    fn get(directory: impl AsFd, name: impl Arg, flags: AtFlags) -> io::Result<Self> {
        let flags = flags | AtFlags::NO_AUTOMOUNT;
        let found = rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS)?;
        let mode = u32::from(found.stx_mode);
        let time = |sec, nsec: u32| Timespec { tv_sec: sec, tv_nsec: nsec.into() };
        Ok(Self {
            kind: FileType::from_raw_mode(mode),
            mode: mode & 0o7777,
            size: found.stx_size,
            owner: (found.stx_uid, found.stx_gid),
            link_count: found.stx_nlink,
            identity: (found.stx_dev_major, found.stx_dev_minor, found.stx_ino),
            times: Timestamps {
                last_access: time(found.stx_atime.tv_sec, found.stx_atime.tv_nsec),
                last_modification: time(found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec),
            },
            is_mount: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        })
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }

    pub(super) fn is_regular(&self) -> bool {
        self.kind == FileType::RegularFile
    }

    /// As the daemon wants to see it.
    pub(super) fn info(&self, path: PathBuf) -> WireInfo {
        let modified = self.times.last_modification;
        WireInfo {
            path: WirePath(path),
            kind: match self.kind {
                FileType::RegularFile => FileKind::File,
                FileType::Directory => FileKind::Directory,
                FileType::Symlink => FileKind::Symlink,
                _ => FileKind::Other,
            },
            size: self.size,
            mode: self.mode,
            modified_ms: modified.tv_sec.saturating_mul(1000).saturating_add(modified.tv_nsec / 1_000_000),
        }
    }
}

/// Opens a directory for reading; a link is refused.
pub(super) fn open_directory(parent: impl AsFd, name: impl Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// The names in a directory, sorted by their bytes.
pub(super) fn names(directory: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Turns "it is not there (any more)" into `None`.
pub(super) fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_seen() {
        assert!(Status::following(Path::new("/proc")).unwrap().is_mount);
        assert!(!Status::following(Path::new("/proc/self")).unwrap().is_mount);
    }
}
