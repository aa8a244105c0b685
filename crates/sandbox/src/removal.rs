//! Removing directories that guests have filled.
//!
//! A guest nests directories as deep as its disk has inodes: no path limit holds for somebody who changes into each. So
//! nothing here calls itself, and the number of descriptors does not grow with the depth. A directory that is not empty
//! is moved flat into the topmost one, under a number, and is dealt with from there:
//!
//! ```text
//! top/a/b/c     ──►  top/.removing-X-0 (was a), which holds b     ──►  top/.removing-X-1 (was b), which holds c  ──► …
//! ```
//!
//! No link is followed. What is mounted below is not entered; the removal fails with `EBUSY` then.

use std::ffi::{CStr, OsStr};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

/// Removes a file, a link itself, or a directory with all that is in it. What is not there is as good as removed.
///
/// # Errors
/// `EBUSY` if something is mounted in it, and those of the file system. What was removed by then is gone.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    remove_at(CWD, path.as_os_str())
}

/// The same for `name` in the directory `parent`.
///
/// # Errors
/// As [`remove`].
pub(crate) fn remove_at(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    let parent = parent.as_fd();
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // `EPERM` is what POSIX says for directories, and what some file systems say.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(top) = if_there(open(parent, name))? else { return Ok(()) };
    let found = rustix::fs::statx(&top, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Errno::BUSY.into());
    }
    Removal::new(top).empty()?;
    if_there(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)).map(drop)
}

fn open(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Somebody else may be removing the same.
fn if_there<T>(result: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What became of the entries of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cleared {
    /// Entries that were removed, or moved to the top.
    count: u64,
    /// Whether something had to be left for another time.
    is_rest: bool,
}

struct Removal {
    top: OwnedFd,
    /// Names nothing else, so that a guest's own names are not taken for ours.
    prefix: String,
    next: u64,
    /// Numbers of directories that were moved to the top. The newest goes first, which keeps the top small.
    pending: Vec<u64>,
}

impl Removal {
    fn new(top: OwnedFd) -> Self {
        let prefix = format!(".removing-{:016x}-", RandomState::new().hash_one(0));
        Self { top, prefix, next: 0, pending: Vec::new() }
    }

    fn name(&self, number: u64) -> String {
        format!("{}{number}", self.prefix)
    }

    fn empty(&mut self) -> io::Result<()> {
        loop {
            let top = self.top.try_clone()?;
            let cleared = self.clear(&top)?;
            while let Some(number) = self.pending.pop() {
                self.remove_moved(number)?;
            }
            if !cleared.is_rest {
                return Ok(());
            }
        }
    }

    fn remove_moved(&mut self, number: u64) -> io::Result<()> {
        let name = self.name(number);
        let Some(directory) = if_there(open(self.top.as_fd(), name.as_str()))? else { return Ok(()) };
        // Below what is moved out of it now: it can go when those have gone.
        let place = self.pending.len();
        let cleared = self.clear(&directory)?;
        drop(directory);
        if !cleared.is_rest {
            match rustix::fs::unlinkat(&self.top, name.as_str(), AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // A directory that is read while it changes need not have shown everything.
                Err(Errno::NOTEMPTY | Errno::EXIST) if cleared.count > 0 => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.pending.insert(place, number);
        Ok(())
    }

    /// Removes what is in `directory`, or moves it to the top.
    fn clear(&mut self, directory: &OwnedFd) -> io::Result<Cleared> {
        let mut cleared = Cleared { count: 0, is_rest: false };
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") || name.to_bytes().starts_with(self.prefix.as_bytes()) {
                continue;
            }
            match self.clear_entry(directory, name) {
                Ok(()) => cleared.count += 1,
                // A full disk: the top has no room for another name. What is pending makes some.
                Err(Errno::NOSPC | Errno::DQUOT) if cleared.count > 0 || !self.pending.is_empty() => {
                    cleared.is_rest = true;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(cleared)
    }

    fn clear_entry(&mut self, directory: &OwnedFd, name: &CStr) -> rustix::io::Result<()> {
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let number = self.next;
        rustix::fs::renameat(directory, name, &self.top, self.name(number).as_str())?;
        self.next += 1;
        self.pending.push(number);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::process::{Resource, Rlimit};

    use super::*;

    /// Deeper than any stack or table of descriptors would bear, made as a guest makes it.
    fn dig(top: &Path, depth: u32) {
        let mut directory = open(CWD, top).unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&directory, "d", Mode::RWXU).unwrap();
            directory = open(directory.as_fd(), "d").unwrap();
        }
        rustix::fs::symlinkat("/", &directory, "link").unwrap();
    }

    /// Set in the process that runs one test alone.
    const ALONE: &str = "SANDPAIL_TEST_ALONE";

    #[test]
    fn a_deep_tree_goes_with_few_descriptors_and_little_stack() {
        // In a process of its own: the limit is the whole process's, where other tests open files meanwhile.
        if std::env::var_os(ALONE).is_none() {
            let name = "removal::tests::a_deep_tree_goes_with_few_descriptors_and_little_stack";
            let mut program = std::process::Command::new(std::env::current_exe().unwrap());
            let done = program.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
            let said = String::from_utf8_lossy(&done.stdout);
            let is_passed = done.status.success() && said.contains("1 passed");
            assert!(is_passed, "{said}{}", String::from_utf8_lossy(&done.stderr));
            return;
        }
        // In memory where there is such a place: some disks take milliseconds for each directory.
        let world = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let top = world.path().join("top");
        fs::create_dir(&top).unwrap();
        dig(&top, 20_000);
        let lowest = rustix::io::dup(open(CWD, &top).unwrap()).unwrap();
        let used = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&lowest)).unwrap();
        drop(lowest);
        let limit = Rlimit { current: Some(used + 64), ..rustix::process::getrlimit(Resource::Nofile) };
        rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
        let thread = std::thread::Builder::new().stack_size(128 * 1024);
        thread.spawn(move || remove(&top)).unwrap().join().unwrap().unwrap();
        assert_eq!(world.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let world = tempfile::tempdir().unwrap();
        let other = world.path().join("other");
        fs::create_dir_all(other.join("below")).unwrap();
        fs::write(other.join("below/file"), "kept").unwrap();
        let top = world.path().join("top");
        for directory in ["a/b", "a/c/d", "e"] {
            fs::create_dir_all(top.join(directory)).unwrap();
            symlink(&other, top.join(directory).join("link")).unwrap();
            fs::write(top.join(directory).join("file"), "").unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists());
        symlink(&other, &top).unwrap();
        remove(&top).unwrap();
        assert!(fs::symlink_metadata(&top).is_err());
        assert_eq!(fs::read_to_string(other.join("below/file")).unwrap(), "kept");
        remove(&top).unwrap();
    }

    #[test]
    fn names_like_ours_go_too() {
        let world = tempfile::tempdir().unwrap();
        let top = world.path().join("top");
        // As a removal that was cut short left it.
        for name in [".removing-0", ".removing-0000000000000000-0/a/b", "x/.removing-0/y"] {
            fs::create_dir_all(top.join(name)).unwrap();
        }
        for number in 0..500 {
            fs::create_dir_all(top.join(format!("wide/{number}/below"))).unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists());
    }
}
