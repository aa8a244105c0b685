//! Files of the class `local`: a real directory on this host's disk, which no bucket ever sees.
//!
//! ```text
//! STAGING/local/BUCKET-HASH/origin   which bucket and prefix it belongs to, for people
//!                           owner    the process directory of the mount that uses it
//!                           files/   the tree; directories of the bucket stand in it only above what is local
//!                           open/    files that are open and have no name any more, by inode number
//! ```
//!
//! Every call goes by a path below `files/` that `openat2` may not leave, neither by `..` nor over a symbolic link: names,
//! and links, are what a guest chose. The engine calls under its tree's lock wherever names change, so that both agree.
//!
//! Whoever holds the lock of the staging process directory named in `owner` has the tree for itself; a mount that is taken up
//! has that directory still, and so finds its tree again. A second mount of the same bucket gets a tree of its own.

mod attributes;
mod claim;
mod names;
mod room;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use self::room::Room;
use crate::write::Origin;
use crate::{FsError, FsResult};

/// Linux's longest file name in bytes.
const NAME_LEN_MAX: usize = 255;

/// The local tree of one mount.
#[derive(Debug)]
pub(crate) struct LocalTree {
    files: OwnedFd,
    open: OwnedFd,
    room: Room,
}

/// Something in a local tree.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At<'a> {
    /// By its path below the mount, `a/b`.
    Path(&'a [u8]),
    /// A file without a name, by its inode number in the mount.
    Parked(u64),
}

impl LocalTree {
    /// Opens the tree of `origin`, `prefix` and `tenant` under the staging directory `root`, for the process with the staging
    /// directory `own`.
    ///
    /// # Errors
    /// [`FsError::Io`] if it cannot be made or used.
    pub(crate) fn of_mount(
        root: &Path,
        own: &Path,
        origin: &Origin,
        prefix: &str,
        tenant: Option<&str>,
    ) -> FsResult<Self> {
        let what = || format!("cannot use {} for local files", root.join(claim::DIRECTORY).display());
        let failed = |source| FsError::Io { what: what(), source };
        let dir = claim::claim(root, own, origin, prefix, tenant).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open =
            |name: &str| rustix::fs::open(dir.join(name), flags, Mode::empty()).map_err(|error| failed(error.into()));
        let (files, open) = (open(claim::FILES)?, open(claim::OPEN)?);
        // Before Linux 5.6 there is no such call, and no safe way without.
        openat2(&files, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
            .map_err(|error| failed(error.into()))?;
        Ok(Self { files, open, room: Room::default() })
    }

    /// Removes files without a name whose inode number nobody has open.
    ///
    /// # Errors
    /// [`FsError::Io`] if the directory cannot be read.
    pub(crate) fn remove_parked(&self, is_open: impl Fn(u64) -> bool) -> FsResult<()> {
        for (name, _) in names::entries_of(&self.open).map_err(failed("cannot list files without a name"))? {
            let ino = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok());
            if !ino.is_some_and(&is_open) {
                let removed = rustix::fs::unlinkat(&self.open, &*name, rustix::fs::AtFlags::empty());
                removed.map_err(failed("cannot remove a file without a name"))?;
            }
        }
        Ok(())
    }
}

/// Removes the local trees, below a staging directory, of tenants that are gone; mounts that still end keep theirs until the next
/// time. Says how many.
///
/// # Errors
/// If the disk fails.
pub fn remove_trees_of(root: &Path, is_gone: impl Fn(&str) -> bool) -> std::io::Result<usize> {
    claim::remove_of(root, is_gone)
}

/// A path that stays below the directory that it begins in, and leads over no link.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Checks a name that a guest chose.
///
/// # Errors
/// [`FsError::Invalid`], [`FsError::NameTooLong`].
pub(crate) fn check_name(name: &[u8]) -> FsResult<()> {
    let shown = || format!("{:.60?}", String::from_utf8_lossy(name));
    if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
        return Err(FsError::Invalid { what: format!("the name {}", shown()) });
    }
    if name.len() > NAME_LEN_MAX {
        return Err(FsError::NameTooLong { what: shown() });
    }
    Ok(())
}

/// What an error of the local disk means to the caller of the mount.
fn failed(what: impl Into<String>) -> impl FnOnce(Errno) -> FsError {
    let what = what.into();
    move |source| match source {
        Errno::NOENT => FsError::NotFound { what },
        Errno::EXIST => FsError::Exists { what },
        Errno::NOTDIR => FsError::NotADirectory,
        Errno::ISDIR => FsError::IsADirectory,
        Errno::NOTEMPTY => FsError::NotEmpty,
        Errno::PERM | Errno::ACCESS => FsError::NotPermitted { what },
        Errno::INVAL => FsError::Invalid { what },
        Errno::NAMETOOLONG => FsError::NameTooLong { what },
        Errno::FBIG => FsError::TooLarge { what },
        Errno::NOSPC | Errno::DQUOT => FsError::NoSpace { what },
        Errno::NODATA => FsError::NoAttribute,
        Errno::RANGE => FsError::Range { what },
        Errno::OPNOTSUPP => FsError::Unsupported { what },
        Errno::BUSY => FsError::Busy { what },
        source => FsError::Io { what, source: source.into() },
    }
}
