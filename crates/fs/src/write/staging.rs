//! Where written bytes stay until they are stored.
//!
//! Each process has a directory of its own, locked while it lives. What a dead process left there was
//! not stored, as far as anyone knows: the next one moves it to `kept/` and says so. Nothing is deleted
//! that was not stored. Beside each file stands its record ([`super::record`]), which moves with it.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

use super::dirty_file::ZEROS;
use super::disk::{self, DiskChange};
use super::kept::{PROCESS, keep_leftovers, kept_name, lock_root, make_kept_directory, record_of};
use super::persist::Names;
use super::uploads::Uploads;
use crate::{FsError, FsResult};

/// Each failed attempt means that another process started at the same moment.
const OWN_ATTEMPTS_MAX: u32 = 1000;

/// How much of a key a staging file's name shows.
const NAME_SHOWN: usize = 120;

/// The staging files of one process.
#[derive(Debug)]
pub struct StagingArea {
    root: PathBuf,
    own: PathBuf,
    /// The directory of this process, which is locked.
    names: Names,
    limit: Option<u64>,
    used: AtomicU64,
    pub(super) next: AtomicU64,
    can_punch: AtomicBool,
    /// Files that are staged, each with a record: two descriptors.
    count: AtomicU64,
    /// The most of them; see [`StagingArea::limit_files`].
    count_max: AtomicU64,
    /// Multipart uploads that are under way.
    pub(super) uploads: Uploads,
    /// Everything here is another process's now.
    is_left: AtomicBool,
}

/// One staging file; removed when dropped with its record, unless its bytes must be kept.
#[derive(Debug)]
pub(super) struct Staged {
    area: Arc<StagingArea>,
    pub(super) file: Arc<File>,
    path: PathBuf,
    reserved: AtomicU64,
    /// When its name was made; see [`Names`].
    named: AtomicU64,
    /// It is in `kept/`, and nobody but its owner removes it.
    pub(super) is_kept: AtomicBool,
}

fn io(what: impl FnOnce() -> String) -> impl FnOnce(std::io::Error) -> FsError {
    move |source| FsError::Io { what: what(), source }
}

impl StagingArea {
    /// Opens the area under `root`, for at most `limit` bytes, and keeps what dead processes left there.
    ///
    /// # Errors
    /// [`FsError::Io`] if the directory cannot be made or used.
    pub fn open(root: &Path, limit: Option<u64>) -> FsResult<Arc<Self>> {
        let failed = || format!("cannot use staging directory {}", root.display());
        let mkdir = |path: &Path| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        mkdir(root).map_err(io(failed))?;
        let kept = keep_leftovers(root);
        if kept > 0 {
            tracing::warn!(
                "{kept} file(s) that processes which died had not stored are kept in {dir}; see: sandpail recover list \
                 --staging-dir {dir}",
                dir = root.display()
            );
        }
        let (own, lock) = own_directory(root).map_err(io(failed))?;
        Self::on(root, own, lock, limit).map(Arc::new).map_err(io(failed))
    }

    pub(super) fn on(root: &Path, own: PathBuf, lock: File, limit: Option<u64>) -> std::io::Result<Self> {
        let (used, next, can_punch) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(true));
        let names = Names::new(lock, File::open(root)?);
        let uploads = Uploads::open(root, &own);
        let (count, count_max) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        let (root, is_left) = (root.to_owned(), AtomicBool::new(false));
        Ok(Self { root, own, names, limit, used, next, can_punch, count, count_max, uploads, is_left })
    }

    /// The staging directory, and this process's in it.
    pub(crate) fn places(&self) -> (&Path, &Path) {
        (&self.root, &self.own)
    }

    /// A descriptor that keeps this process's directory from being taken for a dead one's.
    ///
    /// # Errors
    /// Without a descriptor to be had.
    pub(crate) fn share_lock(&self) -> std::io::Result<OwnedFd> {
        self.names.share()
    }

    /// Bytes that are staged now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Lets no more than `count_max` files be staged at the same time: what is left of this process's descriptors is for
    /// reaching the store, without which none of them would ever be done.
    pub(crate) fn limit_files(&self, count_max: u64) {
        self.count_max.store(count_max, Ordering::Relaxed);
    }

    pub(super) fn create(self: &Arc<Self>, key: &str) -> FsResult<Staged> {
        if self.count.load(Ordering::Relaxed) >= self.count_max.load(Ordering::Relaxed) {
            let source = rustix::io::Errno::MFILE.into();
            return Err(FsError::Io { what: format!("cannot stage {key}: too many files are being written"), source });
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.own.join(format!("{number}-{}", shown(key)));
        let file = disk::before(DiskChange::Create)
            .and_then(|()| OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path))
            .map_err(io(|| format!("cannot stage {key}")))?;
        Ok(Staged::new(self, file, path, false))
    }

    /// A file that was kept, to be gone on with.
    pub(super) fn resume(self: &Arc<Self>, file: File, path: PathBuf) -> Staged {
        Staged::new(self, file, path, true)
    }
}

/// Makes a directory that is locked, so that no other process takes it for what a dead one has left. One that looks between
/// the making and the locking does so, and removes it: then another is made.
fn own_directory(root: &Path) -> std::io::Result<(PathBuf, File)> {
    use std::os::unix::fs::MetadataExt;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let own = root.join(format!("{PROCESS}{}-{started}", std::process::id()));
        let locked = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&own).and_then(|()| {
            let lock = File::open(&own)?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            let is_there = std::fs::symlink_metadata(&own)?.ino() == lock.metadata()?.ino();
            if is_there { Ok(lock) } else { Err(std::io::ErrorKind::NotFound.into()) }
        });
        match locked {
            Ok(lock) => return Ok((own, lock)),
            Err(error)
                if attempt < OWN_ATTEMPTS_MAX
                    && matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
}

impl StagingArea {
    /// Leaves everything as it is to another process: nothing is removed from now on.
    pub(crate) fn leave(&self) {
        self.is_left.store(true, Ordering::Release);
    }

    /// Removes the directory of this process.
    pub(crate) fn end(&self) {
        if self.is_left.load(Ordering::Acquire) {
            return;
        }
        self.uploads.end();
        // Not empty if something is left that must be kept; the next process finds it.
        let _ = disk::remove_dir(&self.own);
    }
}

impl Drop for StagingArea {
    fn drop(&mut self) {
        self.end();
    }
}

impl Staged {
    fn new(area: &Arc<StagingArea>, file: File, path: PathBuf, is_kept: bool) -> Self {
        area.count.fetch_add(1, Ordering::Relaxed);
        let (reserved, named, is_kept) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(is_kept));
        Self { area: Arc::clone(area), file: Arc::new(file), path, reserved, named, is_kept }
    }

    /// Where this file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file this long.
    pub(super) fn set_len(&self, len: u64) -> std::io::Result<()> {
        let done = disk::before(DiskChange::Resize).and_then(|()| self.file.set_len(len));
        super::crash::point();
        done
    }

    /// Where the record of this file is.
    pub(super) fn record_path(&self) -> PathBuf {
        record_of(&self.path)
    }

    /// The file and its record have their names now.
    pub(super) fn note_names(&self) {
        self.named.store(self.area.names.made(), Ordering::Release);
    }

    /// Returns when both names are on the disk.
    pub(super) async fn sync_names(&self) -> std::io::Result<()> {
        self.area.names.sync(self.named.load(Ordering::Acquire)).await
    }

    /// Counts `len` more bytes as staged.
    pub(super) fn reserve(&self, len: u64) -> FsResult<()> {
        let before = self.area.used.fetch_add(len, Ordering::AcqRel);
        if let Some(limit) = self.area.limit.filter(|limit| before + len > *limit) {
            self.area.used.fetch_sub(len, Ordering::AcqRel);
            let what = format!("staging holds {before} of at most {limit} bytes (--staging-limit)");
            return Err(FsError::NoSpace { what });
        }
        self.reserved.fetch_add(len, Ordering::AcqRel);
        Ok(())
    }

    /// Whether more than `len` bytes are staged by all files together.
    pub(super) fn holds_more_than(&self, len: u64) -> bool {
        self.area.used() > len
    }

    /// The most that may be staged.
    pub(super) fn limit(&self) -> Option<u64> {
        self.area.limit
    }

    /// Whether the disk's file system takes ranges back, as far as is known.
    pub(super) fn can_let_go(&self) -> bool {
        self.area.can_punch.load(Ordering::Relaxed)
    }

    /// Gives a range back to the disk, if its file system can do that.
    pub(super) fn let_go(&self, range: &Range<u64>) {
        let len = range.end - range.start;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if disk::before(DiskChange::Punch).is_err() {
            return;
        }
        let punched = self.can_let_go() && fallocate(&self.file, flags, range.start, len).is_ok();
        super::crash::point();
        if punched {
            self.give_back(len);
        } else if self.area.can_punch.swap(false, Ordering::Relaxed) {
            tracing::warn!(dir = %self.area.root.display(), "this file system has no holes; large files stay staged until they are closed");
        }
    }

    /// Makes a range zeros, without giving anything back.
    pub(super) fn clear(&self, range: &Range<u64>) -> FsResult<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let cleared = disk::before(DiskChange::Punch);
        if cleared.is_ok() && fallocate(&self.file, flags, range.start, range.end - range.start).is_ok() {
            super::crash::point();
            return Ok(());
        }
        self.write_zeros(range)
    }

    /// Writes zeros.
    pub(super) fn write_zeros(&self, range: &Range<u64>) -> FsResult<()> {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(ZEROS.len() as u64);
            self.write(at, &ZEROS[..usize::try_from(len).unwrap_or(0)])?;
            at += len;
        }
        Ok(())
    }

    pub(super) fn give_back(&self, len: u64) {
        let len = len.min(self.reserved.load(Ordering::Acquire));
        self.reserved.fetch_sub(len, Ordering::AcqRel);
        self.area.used.fetch_sub(len, Ordering::AcqRel);
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> FsResult<()> {
        let written = disk::before(DiskChange::Write(data.len() as u64));
        let written = written.and_then(|()| self.file.write_all_at(data, offset));
        super::crash::point();
        written.map_err(io(|| format!("cannot stage to {}", self.area.root.display())))
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) -> FsResult<()> {
        self.file.read_exact_at(data, offset).map_err(io(|| format!("cannot read {}", self.path.display())))
    }

    /// Moves the file and its record to where the operator finds them.
    pub(super) fn keep(&self, key: &str) -> FsResult<PathBuf> {
        let failed = || format!("cannot keep {}", self.path.display());
        // Also if it cannot be moved: then the next process finds it here.
        self.is_kept.store(true, Ordering::Release);
        let dir = make_kept_directory(&self.area.root).map_err(io(failed))?;
        let process = self.area.own.file_name().unwrap_or_default();
        let kept = dir.join(kept_name(process, self.path.file_name().unwrap_or_default()));
        {
            let _lock = lock_root(&self.area.root).map_err(io(failed))?;
            disk::rename(self.record_path(), record_of(&kept)).map_err(io(failed))?;
            disk::rename(&self.path, &kept).map_err(io(failed))?;
        }
        tracing::error!(key, path = %kept.display(), "bytes that could not be stored are kept here; see: sandpail recover list");
        Ok(kept)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.give_back(u64::MAX);
        self.area.count.fetch_sub(1, Ordering::Relaxed);
        if self.is_kept.load(Ordering::Acquire) || self.area.is_left.load(Ordering::Acquire) {
            return;
        }
        // The record last: a file without one would be taken for something that was not stored.
        let _ = disk::remove_file(&self.path);
        let _ = disk::remove_file(self.record_path());
    }
}

/// A key as part of a file name.
fn shown(key: &str) -> String {
    let safe = key.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' });
    safe.collect::<Vec<_>>().into_iter().rev().take(NAME_SHOWN).collect::<Vec<_>>().into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let area = StagingArea::open(dir.path(), Some(10)).unwrap();
        let staged = area.create("a/b").unwrap();
        staged.reserve(8).unwrap();
        assert!(matches!(staged.reserve(3), Err(FsError::NoSpace { .. })));
        drop(staged);
        assert_eq!(area.used(), 0);
    }

    #[test]
    fn descriptors_are_left_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let area = StagingArea::open(dir.path(), None).unwrap();
        area.limit_files(2);
        let staged = [area.create("a").unwrap(), area.create("b").unwrap()];
        let refused = area.create("c").unwrap_err();
        assert_eq!(crate::errno::errno(&refused), crate::errno::Errno::EMFILE);
        drop(staged);
        area.create("c").unwrap();
    }

    #[test]
    fn what_a_dead_process_staged_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let dead = dir.path().join("process-1-1");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("0-key"), "bytes").unwrap();
        let _area = StagingArea::open(dir.path(), None).unwrap();
        let kept: Vec<_> = std::fs::read_dir(dir.path().join("kept")).unwrap().flatten().collect();
        assert_eq!(std::fs::read(kept[0].path()).unwrap(), b"bytes");
        assert!(!dead.exists());
    }

    #[test]
    fn a_record_that_was_moved_alone_is_followed_by_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let (dead, kept) = (dir.path().join("process-1-1"), dir.path().join("kept"));
        std::fs::create_dir(&dead).unwrap();
        std::fs::create_dir(&kept).unwrap();
        // A file of no bytes is nothing without a record.
        std::fs::write(dead.join("0-key"), "").unwrap();
        std::fs::write(kept.join("process-1-1-0.record"), "record").unwrap();
        std::fs::write(dead.join("1-key"), "").unwrap();
        let _area = StagingArea::open(dir.path(), None).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&kept).unwrap().flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        assert_eq!(names, ["process-1-1-0-key", "process-1-1-0.record"]);
        assert!(!dead.exists());
    }

    #[test]
    fn the_staging_of_a_living_process_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let area = StagingArea::open(dir.path(), None).unwrap();
        let staged = area.create("key").unwrap();
        staged.write(0, b"bytes").unwrap();
        let _other = StagingArea::open(dir.path(), None).unwrap();
        assert!(!dir.path().join("kept").exists());
    }

    #[test]
    fn many_that_start_at_once_keep_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let area = StagingArea::open(dir.path(), None).unwrap();
                        area.create("key").unwrap();
                    }
                });
            }
        });
    }
}
