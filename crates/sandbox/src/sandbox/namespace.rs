//! Work of the host's root in a sandbox's mount namespace.
//!
//! A thread of its own enters the namespace and ends afterwards: no other thread of the daemon ever sees the sandbox's
//! file systems. In there `/` is the sandbox's root, so no path leads out of it. Paths are the guest's all the same: they
//! are opened component by component, links are followed only below that root, and magic links never. What they lead to
//! may be anything the guest has, so nothing is read from there: the kernel's tables come from the host's `/proc`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};
use tokio::sync::oneshot;

use super::Sandbox;
use super::table::Processes;
use crate::start::system;
use crate::{IdMap, SandboxError, sys};

/// What the thread works with.
#[derive(Debug)]
pub(super) struct Inside {
    /// The sandbox's root directory.
    pub(super) root: OwnedFd,
    pub(super) ids: IdMap,
    pub(super) processes: Processes,
}

/// A directory that was opened, and perhaps made.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) directory: OwnedFd,
    /// The topmost directory that was made for it.
    pub(super) made: Option<PathBuf>,
}

impl Sandbox {
    /// Runs `work` in the sandbox's mount namespace.
    pub(super) async fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inside) -> Result<T, SandboxError> + Send + 'static,
    ) -> Result<T, SandboxError> {
        if !self.is_alive() {
            return Err(SandboxError::Gone);
        }
        let pidfd = self.inner.pidfd.get_ref().try_clone().map_err(system("entering a sandbox"))?;
        let (ids, init) = (self.inner.ids, self.inner.pid);
        let (sender, receiver) = oneshot::channel();
        let thread = std::thread::Builder::new().name("sandbox-mounts".to_owned());
        let thread = thread.spawn(move || {
            let result = enter(pidfd.as_fd(), ids, init).and_then(|inside| work(&inside));
            // Whoever asked may have gone away.
            let _asker = sender.send(result);
        });
        thread.map_err(system("a thread"))?;
        receiver.await.map_err(|_| SandboxError::Host("a thread in a sandbox's mounts failed".to_owned()))?
    }
}

fn enter(pidfd: BorrowedFd<'_>, ids: IdMap, init: i32) -> Result<Inside, SandboxError> {
    let processes = Processes::open(init).map_err(system("the host's /proc"))?;
    // Working directory and root are shared by all threads until this one has its own.
    sys::unshare(UnshareFlags::FS).map_err(system("a thread of its own"))?;
    let entered = rustix::thread::move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::MOUNT);
    match entered {
        Err(Errno::SRCH) => return Err(SandboxError::Gone),
        entered => entered.map_err(io::Error::from).map_err(system("entering a sandbox"))?,
    }
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(io::Error::from).map_err(system("a sandbox's root"))?;
    Ok(Inside { root, ids, processes })
}

impl Inside {
    /// Opens a directory for reading.
    pub(super) fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }

    /// Opens a directory and makes it, with those above, where it is not there. They belong to the sandbox's root.
    pub(super) fn open_or_make(&self, path: &Path) -> Result<Opened, SandboxError> {
        let failed = |source| SandboxError::File { operation: "mkdir", path: path.to_owned(), source };
        let mut made = None;
        let mut so_far = PathBuf::from("/");
        let mut directory = self.open(&so_far).map_err(failed)?;
        for name in names(path).map_err(failed)? {
            let parent = directory;
            so_far.push(&name);
            directory = match self.open(&so_far) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => match self.make(&parent, &name) {
                    Ok(new) => {
                        made.get_or_insert_with(|| so_far.clone());
                        new
                    }
                    Err(error) => {
                        self.remove_made(&so_far, made.as_deref());
                        return Err(failed(error));
                    }
                },
                Err(error) => {
                    self.remove_made(&so_far, made.as_deref());
                    return Err(failed(error));
                }
            };
        }
        Ok(Opened { directory, made })
    }

    fn make(&self, parent: &OwnedFd, name: &OsString) -> io::Result<OwnedFd> {
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let new = rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)?;
        rustix::fs::fchown(&new, Some(Uid::from_raw(self.ids.base)), Some(Gid::from_raw(self.ids.base)))?;
        Ok(new)
    }

    /// Removes `path` and the directories above it up to `made`, as far as they are empty.
    pub(super) fn remove_made(&self, path: &Path, made: Option<&Path>) {
        let Some(made) = made else { return };
        for directory in path.ancestors().take_while(|directory| directory.starts_with(made)) {
            let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else { return };
            let removed = self
                .open(parent)
                .and_then(|parent| Ok(rustix::fs::unlinkat(&parent, name, rustix::fs::AtFlags::REMOVEDIR)?));
            match removed {
                Ok(()) => {}
                // Not made, or gone; what is above may still be there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // Somebody uses it, so it stays.
                Err(_) => return,
            }
        }
    }
}

/// The components of an absolute path.
fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let mut components = path.components();
    if components.next() != Some(Component::RootDir) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let name = |component| match component {
        Component::Normal(name) => Ok(OsString::from(name)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    components.map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_absolute_paths_have_names() {
        assert_eq!(names(Path::new("/a//b/")).unwrap(), ["a", "b"]);
        for bad in ["a", "/a/../b", ""] {
            assert!(names(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
