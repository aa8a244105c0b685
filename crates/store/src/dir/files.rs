//! Files that appear whole: temporary files, locks, directories that come and go.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::AtFlags;

/// How often a race with another process that makes or removes the same directories is run again.
const RACE_COUNT_MAX: usize = 1000;

/// A file that is being written. It vanishes unless it is published.
///
/// Its lock is held as long as it is open, so that [`sweep`] can tell it from what a dead process left.
#[derive(Debug)]
pub(super) struct TempFile {
    file: File,
    path: PathBuf,
    published: bool,
}

impl TempFile {
    pub(super) fn create(directory: &Path) -> io::Result<Self> {
        loop {
            let path = directory.join(unique_name());
            let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            // A sweep may have come between creation and lock; then this file is already unlinked.
            match file.try_lock() {
                Ok(()) if file.metadata()?.nlink() > 0 => return Ok(Self { file, path, published: false }),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn file_mut(&mut self) -> &mut File {
        &mut self.file
    }

    /// Moves the file to `target`, replacing what is there; makes directories below `root` as needed.
    pub(super) fn publish(mut self, root: &Path, target: &Path, durable: bool) -> io::Result<()> {
        let parent = target.parent().unwrap_or(root);
        for _ in 0..RACE_COUNT_MAX {
            match fs::rename(&self.path, target) {
                Ok(()) => {
                    self.published = true;
                    return if durable { settle(root, parent) } else { Ok(()) };
                }
                // No directory yet, or someone prunes it: an empty directory may go at any moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.exists() => {
                    make_directories(root, parent, durable)?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("directories keep vanishing"))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: a sweep finds what stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes temporary files whose writers are dead.
pub(super) fn sweep(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if let Ok(file) = File::open(&path)
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// A name that no other process on this machine uses.
pub(crate) fn unique_name() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    // `RandomState` is keyed by the system's random numbers.
    let half = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}{count:x}", half(), half())
}

/// The mode bit of a directory whose name may not be durable yet. It means nothing else here: what it does, to let only
/// owners remove names, is right for all that the directory's owner does.
///
/// Whoever finds a directory cannot know whether the one who made it, in this process or another, has come to sync its
/// name, or was killed before. So it is made with this bit, which goes once the name is durable, and until then
/// everybody who puts something inside syncs the name, too. The bit itself need not be durable: what is there after a
/// power cut is on the disk.
const UNSETTLED: u32 = 0o1000;

/// Makes `directory` and what is missing between it and `root`. With `durable` they are to be settled.
fn make_directories(root: &Path, directory: &Path, durable: bool) -> io::Result<()> {
    if directory == root || !directory.starts_with(root) {
        // Only below the root: a bucket that was removed is not made again by accident.
        return Ok(());
    }
    let mode = if durable { 0o777 | UNSETTLED } else { 0o777 };
    for _ in 0..RACE_COUNT_MAX {
        match DirBuilder::new().mode(mode).create(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = directory.parent().unwrap_or(root);
                if parent == root {
                    return Err(error);
                }
                make_directories(root, parent, durable)?;
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("directories keep vanishing"))
}

/// Makes the names in `directory` durable, or that it is gone, and the names that lead to it from `root`.
///
/// Mostly that is one sync: names of directories are durable already unless they are new.
fn settle(root: &Path, directory: &Path) -> io::Result<()> {
    let mut directory = directory;
    loop {
        match File::open(directory) {
            Ok(file) => {
                file.sync_all()?;
                return settle_names(root, directory);
            }
            // What is gone is durably so when the nearest directory above it that is left is synced.
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
        match directory.parent() {
            Some(parent) if directory != root => directory = parent,
            _ => return Ok(()),
        }
    }
}

/// Makes the names durable that lead from `root` to `directory`.
fn settle_names(root: &Path, directory: &Path) -> io::Result<()> {
    let mut directory = directory;
    while directory != root
        && directory.starts_with(root)
        && let Some(parent) = directory.parent()
    {
        settle_name(directory, parent)?;
        directory = parent;
    }
    Ok(())
}

/// Makes the name of `directory` in `parent` durable if it may not be.
fn settle_name(directory: &Path, parent: &Path) -> io::Result<()> {
    match fs::metadata(directory) {
        Ok(metadata) if metadata.mode() & UNSETTLED != 0 => {}
        Err(error) if !is_absent(&error) => return Err(error),
        _ => return Ok(()),
    }
    // By descriptor: the directory may be removed and made anew meanwhile, and that one is not settled by this.
    let opened = match File::open(directory) {
        Ok(opened) => opened,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    sync_directory(parent)?;
    let mut permissions = opened.metadata()?.permissions();
    permissions.set_mode(permissions.mode() & !UNSETTLED & 0o7777);
    // Fails where the directory is another user's. Then the next one syncs the name again, which is only slower.
    let _ = opened.set_permissions(permissions);
    Ok(())
}

/// Removes `path`, a file below `root`, if it is there.
///
/// With `durable` that it is not there is durable then, also if somebody else removed it, who may have been killed before.
pub(super) fn remove(root: &Path, path: &Path, durable: bool) -> io::Result<()> {
    let allow_absent = |error: io::Error| if is_absent(&error) { Ok(()) } else { Err(error) };
    if !durable {
        return fs::remove_file(path).or_else(allow_absent);
    }
    let parent = path.parent().unwrap_or(root);
    let (Some(name), Ok(directory)) = (path.file_name(), File::open(parent)) else {
        return settle(root, parent);
    };
    rustix::fs::unlinkat(&directory, name, AtFlags::empty()).map_err(io::Error::from).or_else(allow_absent)?;
    // By descriptor: as soon as the directory is empty others may remove it, and that is not durable by itself.
    directory.sync_all()?;
    if directory.metadata()?.nlink() > 0 { settle_names(root, parent) } else { settle(root, parent) }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Removes the directories from `directory` up to `root` that are empty.
pub(super) fn prune(root: &Path, directory: &Path) {
    let mut directory = directory;
    while directory != root && directory.starts_with(root) {
        match fs::remove_dir(directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Not empty, mostly. Empty directories are no objects, so nothing depends on this.
            Err(_) => return,
        }
        let Some(parent) = directory.parent() else { return };
        directory = parent;
    }
}

/// Makes the names in a directory durable. A directory that was pruned meanwhile holds nothing to keep.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory) {
        Ok(file) => file.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes the name of `directory` durable, and those of all directories above it on its file system.
pub(super) fn sync_ancestors(directory: &Path) -> io::Result<()> {
    let directory = fs::canonicalize(directory)?;
    let device = fs::metadata(&directory)?.dev();
    for parent in directory.ancestors().skip(1) {
        if fs::metadata(parent)?.dev() != device {
            // Another file system, and so the place where this one is mounted.
            break;
        }
        match sync_directory(parent) {
            // A directory that may be passed but not read, such as those above a home.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(rustix::fs::syncfs(File::open(&directory)?)?);
            }
            done => done?,
        }
    }
    Ok(())
}
