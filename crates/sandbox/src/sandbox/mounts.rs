//! Attaching mounts at paths of a sandbox, and taking them away.
//!
//! **Mount truth.** While something is mounted, the directory below it takes no writes, not even through a descriptor
//! that a process got before: it belongs to the host's root and has no mode bits, which the sandbox's root cannot get
//! around as that id is not in its namespace. What it was before is kept in a `trusted.` attribute, which guests can
//! neither see nor set, and put back at the end, also by a later daemon.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::fs::{AtFlags, Gid, Mode, ResolveFlags, StatxFlags, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, UnmountFlags};

use super::Sandbox;
use super::namespace::Inside;
use crate::start::system;
use crate::{SandboxError, sys};

/// Mode, user and group of a directory that a mount covers.
const COVERED: &str = "trusted.sandpail.covered";

/// File systems of the sandbox's own, on which directories may be changed. Others have their own rules, and a bucket
/// would keep what is written here.
const OWN_FILE_SYSTEMS: [u64; 2] = [0x794c_7630 /* overlay */, 0x0102_1994 /* tmpfs */];

impl Sandbox {
    pub(super) async fn attach_mount(&self, mount: OwnedFd, path: &Path) -> Result<Option<PathBuf>, SandboxError> {
        let _one_at_a_time = self.inner.mounting.lock().await;
        let path = path.to_owned();
        self.inside(move |inside| attach(inside, &mount, &path)).await
    }

    pub(super) async fn detach_mount(
        &self,
        path: &Path,
        made: Option<&Path>,
        is_forced: bool,
    ) -> Result<(), SandboxError> {
        let _one_at_a_time = self.inner.mounting.lock().await;
        let (path, made) = (path.to_owned(), made.map(Path::to_owned));
        self.inside(move |inside| detach(inside, &path, made.as_deref(), is_forced)).await
    }

    pub(super) async fn open_made_directory(&self, path: &Path) -> Result<OwnedFd, SandboxError> {
        let path = path.to_owned();
        self.inside(move |inside| Ok(inside.open_or_make(&path)?.directory)).await
    }
}

fn attach(inside: &Inside, mount: &OwnedFd, path: &Path) -> Result<Option<PathBuf>, SandboxError> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    sys::set_mount_flags(mount, flags).map_err(system("flags of a mount"))?;
    let opened = inside.open_or_make(path)?;
    let attached = cover(&opened.directory).and_then(|()| {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        let moved = rustix::mount::move_mount(mount.as_fd(), "", opened.directory.as_fd(), "", flags);
        if moved.is_err() {
            uncover(&opened.directory)?;
        }
        Ok(moved?)
    });
    if let Err(error) = attached {
        drop(opened.directory);
        inside.remove_made(path, opened.made.as_deref());
        return Err(system(format!("mounting {}", path.display()))(error));
    }
    Ok(opened.made)
}

/// Shuts a directory while something is mounted on it.
fn cover(directory: &OwnedFd) -> io::Result<()> {
    if !is_own(directory)? {
        return Ok(());
    }
    let found = rustix::fs::fstat(directory)?;
    let before = format!("{:o} {} {}", found.st_mode & 0o7777, found.st_uid, found.st_gid);
    match rustix::fs::fsetxattr(directory, COVERED, before.as_bytes(), XattrFlags::CREATE) {
        Ok(()) => {}
        // It is covered: an earlier daemon died between covering and mounting, or after unmounting.
        Err(Errno::EXIST) => return Ok(()),
        // Without a way to remember what it was, it stays what it is.
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    rustix::fs::fchown(directory, Some(Uid::ROOT), Some(Gid::ROOT))?;
    Ok(rustix::fs::fchmod(directory, Mode::empty())?)
}

/// Makes a directory again what it was.
fn uncover(directory: &OwnedFd) -> io::Result<()> {
    if !is_own(directory)? {
        return Ok(());
    }
    let mut before = [0; 64];
    let len = match rustix::fs::fgetxattr(directory, COVERED, &mut before) {
        Ok(len) => len,
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let text = str::from_utf8(before.get(..len).unwrap_or_default()).map_err(io::Error::other)?;
    let (mode, uid, gid) = parse_covered(text).ok_or(io::ErrorKind::InvalidData)?;
    rustix::fs::fchown(directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    rustix::fs::fchmod(directory, Mode::from_raw_mode(mode))?;
    Ok(rustix::fs::fremovexattr(directory, COVERED)?)
}

fn parse_covered(text: &str) -> Option<(u32, u32, u32)> {
    let mut fields = text.split(' ');
    let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
    Some((mode, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn is_own(directory: &OwnedFd) -> io::Result<bool> {
    let kind = rustix::fs::fstatfs(directory)?.f_type;
    Ok(u64::try_from(kind).is_ok_and(|kind| OWN_FILE_SYSTEMS.contains(&kind)))
}

fn detach(inside: &Inside, path: &Path, made: Option<&Path>, is_forced: bool) -> Result<(), SandboxError> {
    let what = || format!("unmounting {}", path.display());
    let failed = |error: io::Error| system(what())(error);
    // The path may lead through links; the mount table has where it is really.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let target = rustix::fs::openat2(&inside.root, path, flags, Mode::empty(), resolve)
        .map_err(|error| SandboxError::File { operation: "unmount", path: path.to_owned(), source: error.into() })?;
    let id = mount_id(&target).map_err(failed)?;
    // An open descriptor would keep it busy.
    drop(target);
    let mount = find_mount(id).map_err(failed)?;
    let Some(mount) = mount.filter(|mount| mount.at != Path::new("/")) else {
        return Err(failed(io::Error::other("nothing is mounted there")));
    };
    if !is_forced {
        let users = users_of(&mount).map_err(failed)?;
        if !users.is_empty() {
            return Err(SandboxError::Busy { path: path.to_owned(), users });
        }
    }
    unmount(inside, &mount, is_forced).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => {
            SandboxError::Busy { path: path.to_owned(), users: vec!["something in the sandbox".to_owned()] }
        }
        _ => failed(error),
    })?;
    // Below a mount of somebody else there may be another; then there is nothing to put back.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let bare = rustix::fs::openat2(&inside.root, parent, flags, Mode::empty(), resolve)
        .and_then(|parent| rustix::fs::openat2(&parent, name, flags, Mode::empty(), resolve))
        .or_else(|_| rustix::fs::openat2(&inside.root, path, flags, Mode::empty(), resolve));
    match bare {
        Ok(bare) => uncover(&bare).map_err(failed)?,
        // The guest renamed what is above meanwhile.
        Err(Errno::NOENT) => {}
        Err(error) => return Err(failed(error.into())),
    }
    inside.remove_made(path, made);
    Ok(())
}

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    /// `major:minor` as the mount table writes it.
    device: String,
    at: PathBuf,
}

/// The id of the mount that a descriptor is on. Asks nothing of the file system, whose server may hang.
fn mount_id(at: &OwnedFd) -> io::Result<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(at, "", flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn find_mount(id: u64) -> io::Result<Option<Mount>> {
    // Of the thread: the process as a whole has another namespace.
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", THREAD))?;
    Ok(table.lines().filter_map(parse_mount).find(|mount| mount.id == id))
}

/// Init, as the sandbox's own `/proc` calls it; it has the same mounts as this thread.
const THREAD: &str = "1";

fn parse_mount(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let id = fields.next()?.parse().ok()?;
    let device = fields.nth(1)?.to_owned();
    let at = unescape(fields.nth(1)?);
    Some(Mount { id, device, at })
}

/// Spaces and such are written as `\ooo`.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Unmounts exactly this mount: by its name in its parent directory, which is opened without following any link, so that
/// a guest that moves directories about cannot make it another one.
fn unmount(inside: &Inside, mount: &Mount, is_forced: bool) -> io::Result<()> {
    let (Some(parent), Some(name)) = (mount.at.parent(), mount.at.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let parent = rustix::fs::openat2(&inside.root, parent, flags, Mode::empty(), resolve)?;
    let at_flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(&parent, name, at_flags, StatxFlags::MNT_ID)?.stx_mnt_id;
    if found != mount.id {
        return Err(io::Error::other("directories were moved meanwhile"));
    }
    rustix::process::fchdir(&parent)?;
    let detach = if is_forced { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    Ok(rustix::mount::unmount(name, UnmountFlags::NOFOLLOW | detach)?)
}

/// Processes that hold the mount: `name (pid)`, as the sandbox sees them. Looks at the kernel's tables only, never at the
/// file system itself.
fn users_of(mount: &Mount) -> io::Result<Vec<String>> {
    let mut users = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if is_user(&entry.path(), mount) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            users.push(format!("{} (pid {pid})", name.trim_end()));
        }
    }
    Ok(users)
}

/// Processes come and go while they are looked at; one that is gone uses nothing.
fn is_user(process: &Path, mount: &Mount) -> bool {
    let is_at = ["cwd", "root"]
        .iter()
        .any(|link| fs::read_link(process.join(link)).is_ok_and(|path| path.starts_with(&mount.at)));
    let is_open = || {
        fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten().any(|info| {
            let text = fs::read_to_string(info.path()).unwrap_or_default();
            let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
            id.is_some_and(|id| id.trim().parse() == Ok(mount.id))
        })
    };
    let is_mapped = || {
        let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
        maps.lines().any(|line| line.split(' ').nth(3).is_some_and(|device| is_device(device, &mount.device)))
    };
    is_at || is_open() || is_mapped()
}

/// Whether `fd:01` of a memory map is `253:1` of the mount table.
fn is_device(hexadecimal: &str, decimal: &str) -> bool {
    let parse = |text: &str, radix| {
        let (major, minor) = text.split_once(':')?;
        Some((u32::from_str_radix(major, radix).ok()?, u32::from_str_radix(minor, radix).ok()?))
    };
    parse(hexadecimal, 16).is_some_and(|device| parse(decimal, 10) == Some(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_tables() {
        let line = r"36 35 98:0 /mnt1 /mnt/a\040b rw,noatime master:1 - ext3 /dev/root rw";
        let expected = Mount { id: 36, device: "98:0".to_owned(), at: "/mnt/a b".into() };
        assert_eq!(parse_mount(line), Some(expected));
        assert_eq!(parse_mount("nonsense"), None);
    }

    #[test]
    fn devices() {
        assert!(is_device("00:2a", "0:42"));
        assert!(!is_device("00:2b", "0:42"));
        assert!(!is_device("", "0:42"));
    }

    #[test]
    fn what_a_directory_was() {
        assert_eq!(parse_covered("755 1000000 1000005"), Some((0o755, 1_000_000, 1_000_005)));
        assert_eq!(parse_covered("8 1 1"), None);
    }
}
