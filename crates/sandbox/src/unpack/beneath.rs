//! Paths below a directory, resolved so that nothing leads out of it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// `openat2` gives up when something is renamed meanwhile, and may be asked again. A guest that renames without end
/// gets the error.
const ATTEMPT_COUNT_MAX: usize = 64;

/// Links without a target that are followed when directories are made.
const LINK_COUNT_MAX: usize = 16;

/// What a link in the middle of a path may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// Lead to another place below the root; one that leads out is an error.
    Beneath,
    /// Mean what it means to a process whose root this is.
    InRoot,
}

/// The directory that nothing leads out of. Whoever swaps directories for links meanwhile gains nothing: the kernel
/// resolves each path as a whole.
#[derive(Debug)]
pub(crate) struct Beneath {
    root: OwnedFd,
    links: Links,
    /// The directory that was asked for last: members of an archive come by directory.
    last: Option<(PathBuf, OwnedFd)>,
}

impl Beneath {
    pub(crate) fn open(root: &Path, links: Links) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
        Ok(Self { root, links, last: None })
    }

    /// The directory at `path`, to work in by names; `path` as from [`relative`].
    pub(crate) fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::NO_MAGICLINKS
            | match self.links {
                Links::Beneath => ResolveFlags::BENEATH,
                Links::InRoot => ResolveFlags::IN_ROOT,
            };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        for _ in 0..ATTEMPT_COUNT_MAX {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::XDEV) => return Err(io::Error::other("a link on the way leads outside")),
                opened => return Ok(opened?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// The directory at `path`, made with its parents if it is not there.
    pub(crate) fn made_directory(&mut self, path: &Path) -> io::Result<OwnedFd> {
        if let Some((_, open)) = self.last.as_ref().filter(|(last, _)| last == path) {
            return open.try_clone();
        }
        let opened = match self.directory(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make(path, 0)?,
            opened => opened?,
        };
        self.last = Some((path.to_owned(), opened.try_clone()?));
        Ok(opened)
    }

    /// To be called when a directory may have been replaced.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// Makes what is missing; `depth` links that led nowhere have been followed.
    fn make(&self, path: &Path, depth: usize) -> io::Result<OwnedFd> {
        let mut parent = self.directory(Path::new(""))?;
        let mut so_far = PathBuf::new();
        for component in path.components() {
            let name = component.as_os_str();
            so_far.push(name);
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            parent = match self.directory(&so_far) {
                // A link whose target nobody has made yet, such as `/var/run` without a `/run`.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && self.links == Links::InRoot
                        && depth < LINK_COUNT_MAX =>
                {
                    let target = rustix::fs::readlinkat(&parent, name, Vec::new())?;
                    let target = Path::new(OsStr::from_bytes(target.to_bytes()));
                    self.make(&joined(so_far.parent().unwrap_or(Path::new("")), target), depth + 1)?
                }
                opened => opened?,
            };
        }
        Ok(parent)
    }
}

/// Where a link in `directory` leads, as text, below the root. Wherever that is: it is resolved beneath the root again.
fn joined(directory: &Path, target: &Path) -> PathBuf {
    let mut path = if target.is_absolute() { PathBuf::new() } else { directory.to_owned() };
    for component in target.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => drop(path.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    path
}

/// Why a name is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeadsOut;

/// A member's name as a path below the root: without a `/` at its beginning and without `.`; empty for the root itself.
pub(crate) fn relative(name: &[u8]) -> Result<PathBuf, LeadsOut> {
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(LeadsOut),
        }
    }
    Ok(path)
}

/// Splits a path into its directory and its name; `None` for the root itself.
pub(crate) fn split(path: &Path) -> Option<(&Path, OsString)> {
    Some((path.parent()?, path.file_name()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: Result<&str, LeadsOut>) {
        assert_eq!(relative(name.as_bytes()), expected.map(PathBuf::from), "{name}");
    }

    #[test]
    fn names_of_members() {
        check("./a/b", Ok("a/b"));
        check("a//b/./c/", Ok("a/b/c"));
        check("/etc/passwd", Ok("etc/passwd"));
        check("./", Ok(""));
        check("", Ok(""));
        check("..", Err(LeadsOut));
        check("a/../../b", Err(LeadsOut));
        check("..a/b", Ok("..a/b"));
    }

    #[test]
    fn links_lead_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("real")).unwrap();
        std::fs::create_dir_all(directory.path().join("etc")).unwrap();
        for (target, name) in [("real", "in"), ("../etc", "out"), ("/etc", "absolute"), ("/real", "rooted")] {
            std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        }
        let beneath = Beneath::open(&root, Links::Beneath).unwrap();
        assert!(beneath.directory(Path::new("in")).is_ok());
        for name in ["out", "absolute", "rooted", "in/../../etc"] {
            assert!(beneath.directory(Path::new(name)).is_err(), "{name}");
        }
        let in_root = Beneath::open(&root, Links::InRoot).unwrap();
        assert!(in_root.directory(Path::new("rooted")).is_ok());
        assert_eq!(in_root.directory(Path::new("absolute")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
