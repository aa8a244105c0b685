//! The directory, in which a hostile guest may change anything at any moment.
//!
//! Every path is resolved by the kernel below the directory's descriptor, without following a link and without leaving
//! the file system (`openat2`); what is opened is looked at again before it is used. Nothing here waits for a guest:
//! FIFOs and devices are never opened for reading. All calls block and belong into `spawn_blocking`.

use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, StatxFlags, Timespec, Timestamps,
    Uid,
};
use rustix::io::Errno;
use sandpail_store::KEY_LEN_MAX;

use crate::snapshot::{
    Change, DEPTH_MAX, ENTRY_COUNT_MAX, LocalFile, LocalTree, NAME_LEN_MAX, PATH_BYTES_MAX, Stamp, TEMP_PREFIX,
    conflict_path, now_nanos,
};

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// Renames elsewhere make `openat2` give up now and then.
const RESOLVE_TRY_COUNT: u32 = 16;
/// Random hexadecimal digits of a temporary name.
const TEMP_DIGIT_COUNT: usize = 16;
/// S3's longest object, in bytes. A sparse file may pretend to be much longer.
const FILE_LEN_MAX: u64 = 5 << 40;
/// File systems whose files are questions to the kernel, which we may ask more than a guest: `proc`, `sysfs`, `cgroup`,
/// `cgroup2`, `devpts`, `debugfs`, `tracefs`, `securityfs`, `bpf`.
const KERNEL_FILE_SYSTEMS: [u64; 9] =
    [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x1cd1, 0x6462_6720, 0x7472_6163, 0x7363_6673, 0xcafe_4a11];
/// Times of files move in steps of the kernel's tick: 10 ms at most.
const TICK_NANOS: i64 = 20_000_000;

/// Why a file could not be used now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// It is not as it was seen: the next round decides anew.
    #[error("it is being changed")]
    Busy,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for RootError {
    fn from(errno: Errno) -> Self {
        match errno {
            // Vanished, or swapped for something else.
            Errno::NOENT
            | Errno::LOOP
            | Errno::NOTDIR
            | Errno::EXIST
            | Errno::NOTEMPTY
            | Errno::ISDIR
            | Errno::AGAIN => Self::Busy,
            errno => Self::Io(errno.into()),
        }
    }
}

pub(crate) type RootResult<T> = Result<T, RootError>;

/// The directory that is kept equal.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    owner: (Uid, Gid),
    /// Whose files are looked at: the guest's own. We may read what it may not.
    ids: Range<u32>,
    bounds: Bounds,
    /// Set when nobody waits any more: a guest's file may be long, and a thread cannot be ended.
    is_over: AtomicBool,
}

/// What of a directory is held in memory at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) entry_count: usize,
    /// Of all paths together.
    pub(crate) path_bytes: usize,
}

impl Bounds {
    const USUAL: Self = Self { entry_count: ENTRY_COUNT_MAX, path_bytes: PATH_BYTES_MAX };
}

/// Content of a file that was the same before and after it was read.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) stamp: Stamp,
    /// See [`crate::snapshot::BaseFile::racy`].
    pub(crate) racy: bool,
    pub(crate) hash: String,
    pub(crate) body: Body,
}

#[derive(Debug)]
pub(crate) enum Body {
    Bytes(Vec<u8>),
    /// Too long for memory: to be read again, and checked against the stamp before it counts.
    File(Arc<File>),
}

/// The directory of a path, and the name in it.
#[derive(Debug)]
struct Place<'a> {
    parent: OwnedFd,
    name: &'a str,
}

/// Something under a temporary name; removed unless it was given a name.
#[derive(Debug)]
pub(crate) struct Temp {
    parent: OwnedFd,
    name: String,
    /// The file; a link has none.
    file: Option<File>,
    done: bool,
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::empty())
            && error != Errno::NOENT
        {
            tracing::debug!(%error, "a temporary file stays until the next start");
        }
    }
}

impl Root {
    pub(crate) fn new(fd: OwnedFd, owner: (u32, u32), ids: Range<u32>) -> Self {
        let owner = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        Self { fd, owner, ids, bounds: Bounds::USUAL, is_over: AtomicBool::new(false) }
    }

    #[cfg(test)]
    pub(crate) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// Whether it belongs to somebody in the sandbox.
    fn is_own(&self, stat: &Stat) -> bool {
        self.ids.contains(&stat.st_uid) && self.ids.contains(&stat.st_gid)
    }

    /// Checks once that the directory is one to be kept equal: a guest may have led us elsewhere by a link.
    pub(crate) fn check_own(&self) -> io::Result<()> {
        let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if !self.is_own(&rustix::fs::fstat(&self.fd)?) {
            return refuse("the directory does not belong to the sandbox");
        }
        let kind = rustix::fs::fstatfs(&self.fd)?.f_type;
        if u64::try_from(kind).is_ok_and(|kind| KERNEL_FILE_SYSTEMS.contains(&kind)) {
            return refuse("the directory holds no files, but the kernel's words");
        }
        Ok(())
    }

    /// Lets reads of long files end.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Device, inode number and birth time.
    pub(crate) fn identity(&self) -> io::Result<(u64, u64, Option<i64>)> {
        let stat = rustix::fs::fstat(&self.fd)?;
        let born = rustix::fs::statx(&self.fd, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME)
            .ok()
            .filter(|statx| statx.stx_mask & StatxFlags::BTIME.bits() != 0)
            .map(|statx| nanos(statx.stx_btime.tv_sec, i64::from(statx.stx_btime.tv_nsec)));
        Ok((stat.st_dev, stat.st_ino, born))
    }

    /// Checks that the directory still has a name.
    fn check(&self) -> io::Result<()> {
        if rustix::fs::fstat(&self.fd)?.st_nlink == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the directory was removed"));
        }
        Ok(())
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { "." } else { path };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        for _ in 1..RESOLVE_TRY_COUNT {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), RESOLVE) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), RESOLVE)
    }

    fn open_dir(&self, path: &str) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn place<'a>(&self, path: &'a str) -> Result<Place<'a>, Errno> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok(Place { parent: self.open_dir(parent)?, name })
    }

    /// Whether there is nothing at all at `path`.
    pub(crate) fn is_absent(&self, path: &str) -> RootResult<bool> {
        self.check()?;
        let stat = self.place(path).and_then(|place| stat_at(place.parent.as_fd(), place.name));
        match stat {
            Ok(_) => Ok(false),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there is a directory at `path`.
    pub(crate) fn is_dir(&self, path: &str) -> RootResult<bool> {
        match self.open_dir(path) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks at everything. Files written in the last `settle` nanoseconds are not settled.
    pub(crate) fn scan(&self, settle: i64, clean: bool) -> io::Result<LocalTree> {
        self.check()?;
        let mut tree = LocalTree::default();
        let mut todo = vec![String::new()];
        let (mut entry_count, mut path_bytes) = (0, 0);
        let bounds = self.bounds;
        while let Some(path) = todo.pop() {
            let dir = match self.open_dir(&path).and_then(|fd| Ok((Dir::read_from(&fd)?, fd))) {
                Ok(dir) => dir,
                Err(error) if path.is_empty() => return Err(error.into()),
                // Another file system is mounted there.
                Err(Errno::XDEV) => {
                    tree.dirs.remove(&path);
                    tree.skipped += 1;
                    tree.blocked.insert(path, None);
                    continue;
                }
                Err(error) => {
                    tree.dirs.remove(&path);
                    tree.blocked.insert(path, Some(error.to_string()));
                    continue;
                }
            };
            let (entries, fd) = dir;
            for entry in entries {
                let entry = match entry {
                    Ok(entry) => entry,
                    // Half a directory must not look like a removal.
                    Err(error) if path.is_empty() => return Err(error.into()),
                    Err(error) => {
                        tree.blocked.insert(path.clone(), Some(error.to_string()));
                        break;
                    }
                };
                entry_count += 1;
                if entry_count > bounds.entry_count {
                    return Err(io::Error::other(format!("there are more than {} entries", bounds.entry_count)));
                }
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                if name.starts_with(TEMP_PREFIX.as_bytes()) {
                    if clean && is_temp_name(name) {
                        remove_left_over(fd.as_fd(), entry.file_name());
                    }
                    continue;
                }
                let Ok(name) = std::str::from_utf8(name) else {
                    tree.skipped += 1;
                    continue;
                };
                // No key is so long: the bucket can have nothing there or below, so nobody needs to know the name.
                if path.len() + 1 + name.len() > KEY_LEN_MAX {
                    tree.skipped += 1;
                    continue;
                }
                let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
                path_bytes += below.len();
                if path_bytes > bounds.path_bytes {
                    let most = bounds.path_bytes;
                    return Err(io::Error::other(format!("the paths of its entries have more than {most} bytes")));
                }
                self.entry(fd.as_fd(), name, below, settle, &mut tree, &mut todo);
            }
        }
        Ok(tree)
    }

    fn entry(
        &self,
        dir: BorrowedFd<'_>,
        name: &str,
        path: String,
        settle: i64,
        tree: &mut LocalTree,
        todo: &mut Vec<String>,
    ) {
        let stat = match stat_at(dir, name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return,
            Err(error) => {
                tree.blocked.insert(path, Some(error.to_string()));
                return;
            }
        };
        if !self.is_own(&stat) {
            tree.skipped += 1;
            tree.blocked.insert(path, None);
            return;
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if path.matches('/').count() + 1 >= DEPTH_MAX => {
                tree.skipped += 1;
                tree.blocked.insert(path, None);
            }
            FileType::Directory => {
                tree.dirs.insert(path.clone());
                todo.push(path);
            }
            FileType::RegularFile | FileType::Symlink => {
                let stamp = stamp_of(&stat);
                let age = now_nanos().saturating_sub(stamp.mtime);
                // A time in the future says nothing about now.
                let settled = !(0..settle).contains(&age);
                tree.files.insert(path, LocalFile { stamp, settled, change: Change::Changed });
            }
            _ => {
                tree.skipped += 1;
                tree.blocked.insert(path, None);
            }
        }
    }

    /// Reads a file or the target of a link; into memory up to `len_max` bytes.
    pub(crate) fn read(&self, path: &str, len_max: u64) -> RootResult<Content> {
        let began = now_nanos();
        let place = self.place(path)?;
        let before = stat_at(place.parent.as_fd(), place.name)?;
        let (stamp, hash, body) = match FileType::from_raw_mode(before.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&place.parent, place.name, Vec::new())?.into_bytes();
                if stat_at(place.parent.as_fd(), place.name)?.st_ino != before.st_ino {
                    return Err(RootError::Busy);
                }
                (stamp_of(&before), blake3::hash(&target), Body::Bytes(target))
            }
            FileType::RegularFile => {
                let (file, stamp) = self.open_file(path)?;
                if stamp.size > FILE_LEN_MAX {
                    return Err(
                        io::Error::other(format!("{} bytes are more than an object can have", stamp.size)).into()
                    );
                }
                let (hash, body) = read_all(file, stamp.size, len_max, &self.is_over)?;
                (stamp, hash, body)
            }
            _ => return Err(RootError::Busy),
        };
        if self.stamp(path)? != Some(stamp) {
            return Err(RootError::Busy);
        }
        let racy = is_racy(stamp.mtime, began);
        Ok(Content { stamp, racy, hash: hash.to_hex().to_string(), body })
    }

    fn open_file(&self, path: &str) -> RootResult<(File, Stamp)> {
        // NONBLOCK: if the file was swapped for a FIFO since, opening does not wait for a writer.
        let file = File::from(self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?);
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(RootError::Busy);
        }
        if !self.is_own(&stat) {
            return Err(RootError::Io(io::ErrorKind::PermissionDenied.into()));
        }
        Ok((file, stamp_of(&stat)))
    }

    /// The stamp of the file or link at `path`, if there is one.
    pub(crate) fn stamp(&self, path: &str) -> RootResult<Option<Stamp>> {
        let stat = self.place(path).and_then(|place| stat_at(place.parent.as_fd(), place.name));
        match stat {
            Ok(stat) => Ok(is_content(&stat).then(|| stamp_of(&stat))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes `path` and what is missing above it.
    pub(crate) fn make_dirs(&self, path: &str, mode: u32) -> RootResult<()> {
        for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
            let path = &path[..end];
            if path.is_empty() || self.is_dir(path)? {
                continue;
            }
            let place = self.place(path)?;
            let temp = temp_name();
            rustix::fs::mkdirat(&place.parent, &temp, Mode::RWXU)?;
            let made = self.finish_dir(&place, &temp, mode);
            if made.is_err() {
                // An empty directory under a reserved name; the next start removes it too.
                rustix::fs::unlinkat(&place.parent, &temp, AtFlags::REMOVEDIR)?;
            }
            made?;
        }
        Ok(())
    }

    fn finish_dir(&self, place: &Place<'_>, temp: &str, mode: u32) -> RootResult<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&place.parent, temp, flags, Mode::empty())?;
        rustix::fs::fchown(&dir, Some(self.owner.0), Some(self.owner.1))?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode & 0o777))?;
        rustix::fs::renameat_with(&place.parent, temp, &place.parent, place.name, RenameFlags::NOREPLACE)?;
        Ok(())
    }

    /// Removes an empty directory.
    pub(crate) fn remove_dir(&self, path: &str) -> RootResult<()> {
        let place = self.place(path)?;
        Ok(rustix::fs::unlinkat(&place.parent, place.name, AtFlags::REMOVEDIR)?)
    }

    /// Makes an empty file under a temporary name beside `path`, which only we can open.
    pub(crate) fn temp_file(&self, path: &str) -> RootResult<(Temp, File)> {
        let place = self.place(path)?;
        let name = temp_name();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&place.parent, &name, flags, Mode::RUSR | Mode::WUSR)?);
        let temp = Temp { parent: place.parent, name, file: Some(file.try_clone()?), done: false };
        Ok((temp, file))
    }

    /// Makes a link under a temporary name beside `path`.
    pub(crate) fn temp_link(&self, path: &str, target: &[u8]) -> RootResult<Temp> {
        let place = self.place(path)?;
        let name = temp_name();
        rustix::fs::symlinkat(target, &place.parent, &name)?;
        let temp = Temp { parent: place.parent, name, file: None, done: false };
        let owner = (Some(self.owner.0), Some(self.owner.1));
        rustix::fs::chownat(&temp.parent, &temp.name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(temp)
    }

    /// Gives a temporary file its name, over the version `over` or where there is nothing. Returns its stamp there.
    pub(crate) fn give_name(
        &self,
        mut temp: Temp,
        path: &str,
        over: Option<&Stamp>,
        mode: u32,
        mtime: i64,
    ) -> RootResult<Stamp> {
        let place = self.place(path)?;
        let (held, named) = (rustix::fs::fstat(&temp.parent)?, rustix::fs::fstat(&place.parent)?);
        if (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino) {
            // The directory was moved away meanwhile.
            return Err(RootError::Busy);
        }
        let times = timestamps(mtime);
        let made = if let Some(file) = &temp.file {
            file.sync_data()?;
            rustix::fs::fchown(file, Some(self.owner.0), Some(self.owner.1))?;
            // Without set-id bits: whoever writes to the bucket shall not make such programs here.
            rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o777))?;
            rustix::fs::futimens(file, &times)?;
            rustix::fs::fstat(file)?
        } else {
            rustix::fs::utimensat(&temp.parent, &temp.name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            stat_at(temp.parent.as_fd(), &temp.name)?
        };
        let made = stamp_of(&made);
        match over {
            None => self.rename_new(&place, &temp.name)?,
            Some(over) => exchange(&place, &mut temp, over)?,
        }
        temp.done = true;
        let stat = stat_at(place.parent.as_fd(), place.name)?;
        // Somebody had his hands on the file while it was made: then it is not what came down.
        let stamp = stamp_of(&stat);
        if stamp.is_same_content(&made) { Ok(stamp) } else { Err(RootError::Busy) }
    }

    fn rename_new(&self, place: &Place<'_>, from: &str) -> RootResult<()> {
        Ok(rustix::fs::renameat_with(&place.parent, from, &place.parent, place.name, RenameFlags::NOREPLACE)?)
    }

    /// Removes the version `stamp` of a file.
    pub(crate) fn remove_file(&self, path: &str, stamp: &Stamp) -> RootResult<()> {
        self.check()?;
        let place = self.place(path)?;
        let dir = place.parent.as_fd();
        if stamp_of(&stat_at(dir, place.name)?) != *stamp {
            return Err(RootError::Busy);
        }
        // Out of the way first: then nobody can put another file under the name between the last look and the removal.
        let temp = temp_name();
        rustix::fs::renameat_with(dir, place.name, dir, &temp, RenameFlags::NOREPLACE)?;
        if !stamp_of(&stat_at(dir, &temp)?).is_same_content(stamp) {
            put_back(dir, &temp, place.name)?;
            return Err(RootError::Busy);
        }
        Ok(rustix::fs::unlinkat(dir, &temp, AtFlags::empty())?)
    }

    /// Gives a file another name in its directory; false if that is taken.
    pub(crate) fn rename(&self, path: &str, to: &str) -> RootResult<bool> {
        let (from, to) = (self.place(path)?, self.place(to)?);
        match rustix::fs::renameat_with(&from.parent, from.name, &to.parent, to.name, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The permissions of a directory.
    pub(crate) fn dir_mode(&self, path: &str) -> RootResult<u32> {
        Ok(rustix::fs::fstat(self.open_dir(path)?)?.st_mode)
    }
}

/// Swaps the new file in, looks at what came out, and swaps back if that is not the version that may go.
fn exchange(place: &Place<'_>, temp: &mut Temp, over: &Stamp) -> RootResult<()> {
    let dir = place.parent.as_fd();
    if stamp_of(&stat_at(dir, place.name)?) != *over {
        return Err(RootError::Busy);
    }
    let swap = |name: &str| rustix::fs::renameat_with(dir, name, dir, place.name, RenameFlags::EXCHANGE);
    swap(&temp.name)?;
    if stamp_of(&stat_at(dir, &temp.name)?).is_same_content(over) {
        return Ok(rustix::fs::unlinkat(dir, &temp.name, AtFlags::empty())?);
    }
    if swap(&temp.name).is_err() {
        // Under the temporary name is somebody's new file now.
        temp.done = true;
        put_back(dir, &temp.name, place.name)?;
    }
    Err(RootError::Busy)
}

/// Gives a file its name again, or a second one if that was taken meanwhile.
fn put_back(dir: BorrowedFd<'_>, temp: &str, name: &str) -> RootResult<()> {
    let rename = |to: &str| rustix::fs::renameat_with(dir, temp, dir, to, RenameFlags::NOREPLACE);
    let mut renamed = rename(name);
    let now = now_nanos() / 1_000_000_000;
    for secs in now..now + 100 {
        if renamed != Err(Errno::EXIST) {
            break;
        }
        renamed = rename(&conflict_path(name, secs));
    }
    Ok(renamed?)
}

/// Removes what an earlier run left.
fn remove_left_over(dir: BorrowedFd<'_>, name: &std::ffi::CStr) {
    let removed = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
        result => result,
    };
    if let Err(error) = removed {
        tracing::debug!(%error, "a temporary file of an earlier sync stays");
    }
}

/// Reads `len` bytes and then the end.
fn read_all(mut file: File, len: u64, len_max: u64, is_over: &AtomicBool) -> RootResult<(blake3::Hash, Body)> {
    if len <= len_max {
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
        file.by_ref().take(len_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != len {
            return Err(RootError::Busy);
        }
        return Ok((blake3::hash(&bytes), Body::Bytes(bytes)));
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut read_len = 0;
    loop {
        let count = file.read(&mut buffer)?;
        read_len += count as u64;
        // A file that only grows would never end.
        if read_len > len || is_over.load(Ordering::Relaxed) {
            return Err(RootError::Busy);
        }
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    if read_len != len {
        return Err(RootError::Busy);
    }
    Ok((hasher.finalize(), Body::File(Arc::new(file))))
}

fn stat_at(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
}

fn is_content(stat: &Stat) -> bool {
    matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink)
}

fn stamp_of(stat: &Stat) -> Stamp {
    let nanos_of = |secs, part: u64| nanos(secs, i64::try_from(part).unwrap_or_default());
    Stamp {
        ino: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        mtime: nanos_of(stat.st_mtime, stat.st_mtime_nsec),
        ctime: nanos_of(stat.st_ctime, stat.st_ctime_nsec),
        mode: stat.st_mode,
    }
}

fn nanos(secs: i64, part: i64) -> i64 {
    secs.saturating_mul(1_000_000_000).saturating_add(part)
}

/// Whether a write after `since` may leave the same time on the file. (One in the future is not left by a write now.)
pub(crate) fn is_racy(mtime: i64, since: i64) -> bool {
    mtime > since.saturating_sub(TICK_NANOS) && mtime < now_nanos().saturating_add(TICK_NANOS)
}

fn timestamps(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime.div_euclid(1_000_000_000), tv_nsec: mtime.rem_euclid(1_000_000_000) };
    Timestamps { last_access: time, last_modification: time }
}

fn temp_name() -> String {
    // The standard library's hash keys are random, and a new state is other than the last.
    let random = std::hash::RandomState::new().build_hasher().finish();
    format!("{TEMP_PREFIX}{random:016x}")
}

fn is_temp_name(name: &[u8]) -> bool {
    name.len() <= NAME_LEN_MAX
        && name
            .strip_prefix(TEMP_PREFIX.as_bytes())
            .is_some_and(|rest| rest.len() == TEMP_DIGIT_COUNT && rest.iter().all(u8::is_ascii_hexdigit))
}

/// Opens a directory by its path, for tests and for whoever starts a sync.
///
/// # Errors
/// When it is not a directory or may not be read.
pub fn open_directory(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}
