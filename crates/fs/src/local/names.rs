//! Names in a local tree: looking them up, making, moving and removing them.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, RenameFlags, Uid, chownat, fchmod, fchown, linkat, mkdirat, openat,
    openat2, readlinkat, renameat, renameat_with, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::room::NAME_COST;
use super::{At, LocalTree, RESOLVE, failed};
use crate::FsResult;
use crate::attr::{Attr, Kind, Time};
use crate::engine::OpenMode;

type Done<T> = Result<T, Errno>;

/// Where something is: a descriptor of its directory, and its name there.
pub(super) struct Spot {
    pub(super) dir: OwnedFd,
    pub(super) name: CString,
}

impl Spot {
    pub(super) fn stat(&self) -> Done<Attr> {
        let stat = statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = kind_of(FileType::from_raw_mode(stat.st_mode)).ok_or(Errno::NOENT)?;
        #[allow(clippy::cast_possible_truncation, reason = "nanoseconds of a second")]
        let time = |secs: i64, nanos: u64| Time { secs, nanos: nanos as u32 };
        #[allow(clippy::unnecessary_cast, reason = "the types differ between platforms")]
        Ok(Attr {
            kind,
            perm: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if kind == Kind::Directory { 0 } else { u64::try_from(stat.st_size).unwrap_or_default() },
            atime: time(stat.st_atime as i64, stat.st_atime_nsec as u64),
            mtime: time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            ctime: time(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        })
    }

    /// A descriptor of the thing itself, which can be anything.
    pub(super) fn path(&self) -> Done<OwnedFd> {
        openat(&self.dir, &self.name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    }
}

fn kind_of(kind: FileType) -> Option<Kind> {
    match kind {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Directory),
        FileType::Symlink => Some(Kind::Symlink),
        // Nothing that a mount makes.
        _ => None,
    }
}

/// The names in a directory, and what they are; not in order.
pub(super) fn entries_of(dir: impl AsFd) -> Done<Vec<(Vec<u8>, Kind)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => FileType::from_raw_mode(statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode),
            known => known,
        };
        if let Some(kind) = kind_of(kind) {
            entries.push((name.to_bytes().to_vec(), kind));
        }
    }
    Ok(entries)
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn shown(path: &[u8]) -> String {
    format!("{:?} (local)", String::from_utf8_lossy(path))
}

/// A mode without the bits that make no sense in it.
fn mode_of(perm: u32) -> Mode {
    Mode::from_raw_mode(perm & 0o7777)
}

impl LocalTree {
    /// Opens a directory of the tree, to work in it; `""` is the root.
    fn dir(&self, path: &[u8], flags: OFlags) -> Done<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat2(&self.files, path, flags, Mode::empty(), RESOLVE)
    }

    pub(super) fn spot(&self, at: At<'_>) -> Done<Spot> {
        match at {
            At::Path(path) => {
                let (parent, name) = split(path);
                // Nothing but a name: what `*at` calls do with it cannot lead elsewhere.
                if matches!(name, b"" | b"." | b"..") || path.starts_with(b"/") {
                    return Err(Errno::INVAL);
                }
                let name = CString::new(name).map_err(|_| Errno::INVAL)?;
                Ok(Spot { dir: self.dir(parent, OFlags::PATH)?, name })
            }
            At::Parked(ino) => {
                let dir = rustix::io::fcntl_dupfd_cloexec(&self.open, 0)?;
                Ok(Spot { dir, name: CString::new(ino.to_string()).map_err(|_| Errno::INVAL)? })
            }
        }
    }

    fn at(&self, path: &[u8]) -> Done<Spot> {
        self.spot(At::Path(path))
    }

    /// What `stat` shows.
    ///
    /// # Errors
    /// [`crate::FsError::NotFound`].
    pub(crate) fn stat(&self, at: At<'_>) -> FsResult<Attr> {
        let what = || if let At::Path(path) = at { shown(path) } else { format!("{at:?}") };
        self.spot(at).and_then(|spot| spot.stat()).map_err(|error| match error {
            // What stands above it in the bucket may be anything here.
            Errno::NOTDIR | Errno::LOOP => failed(what())(Errno::NOENT),
            error => failed(what())(error),
        })
    }

    /// The names in a directory, in order; none if it is not there.
    ///
    /// # Errors
    /// [`crate::FsError::Io`] if the disk fails.
    pub(crate) fn list(&self, path: &[u8]) -> FsResult<Vec<(Vec<u8>, Kind)>> {
        let listed = self.dir(path, OFlags::RDONLY).and_then(entries_of);
        let mut entries = match listed {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Vec::new(),
            listed => listed.map_err(failed(shown(path)))?,
        };
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(entries)
    }

    /// Makes the directories of a path that the bucket has, so that something local can stand there.
    ///
    /// # Errors
    /// [`crate::FsError::Io`], [`crate::FsError::NoSpace`].
    pub(crate) fn make_parents(&self, path: &[u8]) -> FsResult<()> {
        let make = || {
            if path.is_empty() || self.dir(path, OFlags::PATH).is_ok() {
                return Ok(());
            }
            let mut ends: Vec<usize> = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).collect();
            ends.push(path.len());
            for end in ends {
                let spot = self.at(&path[..end])?;
                match mkdirat(&spot.dir, &spot.name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        make().map_err(failed(shown(path)))
    }

    /// Removes the directories of a path that nothing local stands in any more, from its end.
    pub(crate) fn prune(&self, path: &[u8]) {
        let mut path = path;
        while !path.is_empty() {
            let removed = self.at(path).and_then(|spot| unlinkat(&spot.dir, &spot.name, AtFlags::REMOVEDIR));
            match removed {
                Ok(()) | Err(Errno::NOENT) => {}
                // In use; or it fails, and then an empty directory stays that nobody sees.
                Err(_) => return,
            }
            path = split(path).0;
        }
    }

    /// Makes a file and opens it.
    ///
    /// # Errors
    /// [`crate::FsError::Exists`], [`crate::FsError::NoSpace`], [`crate::FsError::NotPermitted`] if this process may not give
    /// files to that owner.
    pub(crate) fn create(&self, path: &[u8], attr: &Attr, mode: OpenMode) -> FsResult<File> {
        self.room.take(&self.files, NAME_COST)?;
        let create = || {
            let spot = self.at(path)?;
            let flags = access(mode) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&spot.dir, &spot.name, flags, Mode::RUSR | Mode::WUSR)?;
            own(&file, attr).and_then(|()| fchmod(&file, mode_of(attr.perm))).inspect_err(|_| {
                // The first error is the one to tell.
                let _ = unlinkat(&spot.dir, &spot.name, AtFlags::empty());
            })?;
            Ok(file.into())
        };
        create().map_err(failed(shown(path)))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`LocalTree::create`].
    pub(crate) fn mkdir(&self, path: &[u8], attr: &Attr) -> FsResult<()> {
        self.room.take(&self.files, NAME_COST)?;
        let make = || {
            let spot = self.at(path)?;
            mkdirat(&spot.dir, &spot.name, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let owned = openat(&spot.dir, &spot.name, flags, Mode::empty())
                .and_then(|dir| own(&dir, attr).and_then(|()| fchmod(&dir, mode_of(attr.perm))));
            owned.inspect_err(|_| {
                // The first error is the one to tell.
                let _ = unlinkat(&spot.dir, &spot.name, AtFlags::REMOVEDIR);
            })
        };
        make().map_err(failed(shown(path)))
    }

    /// Makes a symbolic link; nothing here ever follows it.
    ///
    /// # Errors
    /// As [`LocalTree::create`].
    pub(crate) fn symlink(&self, path: &[u8], target: &[u8], attr: &Attr) -> FsResult<()> {
        self.room.take(&self.files, NAME_COST)?;
        let make = || {
            let spot = self.at(path)?;
            symlinkat(OsStr::from_bytes(target), &spot.dir, &spot.name)?;
            if is_given(attr) {
                return Ok(());
            }
            let (uid, gid) = (Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid)));
            chownat(&spot.dir, &spot.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).inspect_err(|_| {
                // The first error is the one to tell.
                let _ = unlinkat(&spot.dir, &spot.name, AtFlags::empty());
            })
        };
        make().map_err(failed(shown(path)))
    }

    /// The text of a symbolic link.
    ///
    /// # Errors
    /// [`crate::FsError::Invalid`] if it is none.
    pub(crate) fn readlink(&self, path: &[u8]) -> FsResult<Vec<u8>> {
        let read = self.at(path).and_then(|spot| readlinkat(&spot.dir, &spot.name, Vec::new()));
        read.map(CString::into_bytes).map_err(failed(shown(path)))
    }

    /// Removes a file or a link; with `ino` it is parked first, for who has it open.
    ///
    /// # Errors
    /// [`crate::FsError::NotFound`], [`crate::FsError::IsADirectory`].
    pub(crate) fn unlink(&self, path: &[u8], ino: Option<u64>) -> FsResult<()> {
        let remove = || {
            let spot = self.at(path)?;
            if let Some(ino) = ino {
                self.park(&spot, ino)?;
            }
            unlinkat(&spot.dir, &spot.name, AtFlags::empty())
        };
        remove().map_err(failed(shown(path)))
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`crate::FsError::NotFound`], [`crate::FsError::NotEmpty`], [`crate::FsError::NotADirectory`].
    pub(crate) fn rmdir(&self, path: &[u8]) -> FsResult<()> {
        let removed = self.at(path).and_then(|spot| unlinkat(&spot.dir, &spot.name, AtFlags::REMOVEDIR));
        removed.map_err(failed(shown(path)))
    }

    /// Gives a file a second name, by which it is found when it has lost the first.
    fn park(&self, spot: &Spot, ino: u64) -> Done<()> {
        let parked = ino.to_string();
        match unlinkat(&self.open, &parked, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        linkat(&spot.dir, &spot.name, &self.open, &parked, AtFlags::empty())
    }

    /// Nobody has a file without a name open any more.
    ///
    /// # Errors
    /// [`crate::FsError::Io`] if the disk fails; the next mount removes it then.
    pub(crate) fn unpark(&self, ino: u64) -> FsResult<()> {
        match unlinkat(&self.open, ino.to_string(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("a file without a name")(error)),
        }
    }

    /// Moves something; `parked` is the inode number of a file at the target that is open.
    ///
    /// # Errors
    /// [`crate::FsError::Exists`] with `no_replace`; as `rename(2)`.
    pub(crate) fn rename(&self, from: &[u8], to: &[u8], no_replace: bool, parked: Option<u64>) -> FsResult<()> {
        let rename = || {
            let (old, new) = (self.at(from)?, self.at(to)?);
            if let Some(ino) = parked {
                self.park(&new, ino)?;
            }
            if no_replace {
                return renameat_with(&old.dir, &old.name, &new.dir, &new.name, RenameFlags::NOREPLACE);
            }
            renameat(&old.dir, &old.name, &new.dir, &new.name)
        };
        rename().map_err(failed(format!("{} to {}", shown(from), shown(to))))
    }

    /// A directory of the bucket was moved: what is local below it moves along. Nothing happens if there is nothing, also
    /// because it was done before.
    ///
    /// # Errors
    /// [`crate::FsError::Io`] if the disk fails: then it is still at the old path.
    pub(crate) fn follow(&self, from: &[u8], to: &[u8]) -> FsResult<()> {
        if self.dir(from, OFlags::PATH).is_err() {
            return Ok(());
        }
        self.make_parents(split(to).0)?;
        // Left from a directory that another client of the bucket removed: it is in nobody's way here, and not lost.
        let stands = self.at(to).and_then(|spot| spot.stat()).is_ok();
        if stands && self.rmdir(to).is_err() {
            let aside = (1..u32::MAX).map(|at| [to, format!(".left-{at}").as_bytes()].concat());
            let is_free = |path: &Vec<u8>| self.at(path).and_then(|spot| spot.stat()) == Err(Errno::NOENT);
            if let Some(aside) = aside.take(1000).find(is_free) {
                self.rename(to, &aside, true, None)?;
            }
        }
        self.rename(from, to, true, None)?;
        self.prune(split(from).0);
        Ok(())
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`crate::FsError::NotFound`]; [`crate::FsError::IsADirectory`].
    pub(crate) fn open(&self, at: At<'_>, mode: OpenMode) -> FsResult<File> {
        let open = || {
            let spot = self.spot(at)?;
            // A device or a pipe would do something when it is opened.
            if spot.stat()?.kind != Kind::File {
                return Err(Errno::ISDIR);
            }
            let flags = access(mode) | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let opened = match openat(&spot.dir, &spot.name, flags, Mode::empty()) {
                // The kernel has let the program do it, perhaps before the mode was changed.
                Err(Errno::ACCESS) => self.open_forbidden(&spot, flags),
                opened => opened,
            };
            opened.map(File::from)
        };
        open().map_err(failed("cannot open a local file"))
    }

    /// Opens a file of our own whose mode forbids it.
    fn open_forbidden(&self, spot: &Spot, flags: OFlags) -> Done<OwnedFd> {
        let perm = spot.stat()?.perm;
        rustix::fs::chmodat(&spot.dir, &spot.name, mode_of(perm | 0o600), AtFlags::empty())?;
        let opened = openat(&spot.dir, &spot.name, flags, Mode::empty());
        rustix::fs::chmodat(&spot.dir, &spot.name, mode_of(perm), AtFlags::empty())?;
        opened
    }

    /// Brings the names in a directory to the disk. Call it where waiting is allowed.
    ///
    /// # Errors
    /// [`crate::FsError::Io`].
    pub(crate) fn sync_dir(&self, path: &[u8]) -> FsResult<()> {
        let synced = self.dir(path, OFlags::RDONLY).and_then(rustix::fs::fsync);
        synced.map_err(failed(shown(path)))
    }

    /// Takes room for bytes that are about to be written.
    ///
    /// # Errors
    /// [`crate::FsError::NoSpace`].
    pub(crate) fn reserve(&self, len: u64) -> FsResult<()> {
        self.room.take(&self.files, len)
    }
}

fn access(mode: OpenMode) -> OFlags {
    if mode.write { OFlags::RDWR } else { OFlags::RDONLY }
}

/// Whether what this process makes has that owner.
fn is_given(attr: &Attr) -> bool {
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    me == (attr.uid, attr.gid)
}

fn own(file: impl AsFd, attr: &Attr) -> Done<()> {
    if is_given(attr) {
        return Ok(());
    }
    fchown(file, Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid)))
}
