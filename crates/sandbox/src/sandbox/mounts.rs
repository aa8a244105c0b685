//! Attaching mounts at paths of a sandbox, and taking them away.
//!
//! **Mount truth.** While something is mounted, the directory below it takes no writes, not even through a descriptor
//! that a process got before: it belongs to the host's root and has no mode bits, which the sandbox's root cannot get
//! around as that id is not in its namespace. What it was before is kept in a `trusted.` attribute, which guests can
//! neither see nor set, and put back at the end, also by a later daemon.
//!
//! **Whose path?** Guests make links, and change them. So where a path leads is looked at once, when something is
//! attached, and has to be a place of the sandbox's own; what was attached is written down by numbers of the kernel's, and
//! only that is ever detached.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::fs::{AtFlags, Gid, Mode, ResolveFlags, StatxFlags, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, UnmountFlags};

use super::Sandbox;
use super::namespace::Inside;
use super::table::{self, Mount};
use crate::record::Attachment;
use crate::start::system;
use crate::{SandboxError, sys};

/// Mode, user and group of a directory that a mount covers.
const COVERED: &str = "trusted.sandpail.covered";

/// The sandbox's own things for guests to use, by way of programs of ours.
const RUN: &str = "/run/sandpail";

/// File systems of the sandbox's own, on which directories may be changed. Others have their own rules, and a bucket
/// would keep what is written here.
const OWN_FILE_SYSTEMS: [u64; 2] = [0x794c_7630 /* overlay */, 0x0102_1994 /* tmpfs */];

impl Sandbox {
    pub(super) async fn attach_mount(&self, mount: OwnedFd, path: &Path) -> Result<Option<PathBuf>, SandboxError> {
        let _one_at_a_time = self.inner.mounting.lock().await;
        let attachment = describe(&mount, path).map_err(system("a mount to attach"))?;
        let places = self.places();
        // Written down first: a mount that nobody knows of could not be taken away again.
        self.change_record(|record| record.attachments.push(attachment.clone()))?;
        let to = path.to_owned();
        let attached = self.inside(move |inside| attach(inside, &mount, &to, &places)).await;
        if attached.is_err() {
            self.forget(&attachment)?;
        }
        attached
    }

    pub(super) async fn detach_mount(
        &self,
        path: &Path,
        made: Option<&Path>,
        is_forced: bool,
    ) -> Result<(), SandboxError> {
        let _one_at_a_time = self.inner.mounting.lock().await;
        let attachment = self.record().attachments.iter().rfind(|attachment| attachment.path == path).cloned();
        let Some(attachment) = attachment else {
            return Err(system(format!("unmounting {}", path.display()))(nothing_there()));
        };
        let (gone, made) = (attachment.clone(), made.map(Path::to_owned));
        let result = self.inside(move |inside| detach(inside, &gone, made.as_deref(), is_forced)).await;
        match result {
            Ok(is_detached) => {
                self.forget(&attachment)?;
                if is_detached {
                    Ok(())
                } else {
                    Err(system(format!("unmounting {}", path.display()))(nothing_there()))
                }
            }
            Err(error) => Err(error),
        }
    }

    pub(super) async fn open_made_directory(&self, path: &Path) -> Result<OwnedFd, SandboxError> {
        let path = path.to_owned();
        let places = self.places();
        self.inside(move |inside| {
            let opened = inside.open_or_make(&path)?;
            if let Err(error) = places.check(inside, &opened.directory) {
                drop(opened.directory);
                inside.remove_made(&path, opened.made.as_deref());
                return Err(SandboxError::File { operation: "open", path, source: error });
            }
            Ok(opened.directory)
        })
        .await
    }

    fn places(&self) -> Places {
        let record = self.record();
        Places { exposed: record.spec.expose.clone(), attachments: record.attachments.clone() }
    }

    fn forget(&self, attachment: &Attachment) -> Result<(), SandboxError> {
        self.change_record(|record| {
            if let Some(index) = record.attachments.iter().rposition(|known| known == attachment) {
                record.attachments.remove(index);
            }
        })
    }
}

fn nothing_there() -> io::Error {
    io::Error::other("nothing is mounted there")
}

fn describe(mount: &OwnedFd, path: &Path) -> io::Result<Attachment> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(mount, c"", flags, StatxFlags::MNT_ID)?;
    let device = (found.stx_dev_major, found.stx_dev_minor);
    Ok(Attachment { path: path.to_owned(), mount: found.stx_mnt_id, device })
}

/// Where in a sandbox the host may mount, or work in a directory: on what is the sandbox's own. Paths lead through
/// guests' links, so it is told by the mount that a directory is on.
struct Places {
    exposed: Vec<PathBuf>,
    attachments: Vec<Attachment>,
}

impl Places {
    /// # Errors
    /// `EPERM` with a reason.
    fn check(&self, inside: &Inside, directory: &OwnedFd) -> io::Result<()> {
        let refused = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()));
        let id = table::mount_id(directory, c"")?;
        let is_attached = |mount: &Mount| self.attachments.iter().any(|known| is_same(known, mount));
        let Some(mount) = inside.processes.mounts()?.into_iter().find(|mount| mount.id == id) else {
            return refused("it is in no file system of the sandbox");
        };
        if is_attached(&mount) {
            return Ok(());
        }
        let at = inside.processes.path_of(directory)?;
        if at == Path::new("/") {
            return refused("it leads to the root directory");
        }
        if at.starts_with(RUN) {
            return refused("it leads to the sandbox's own files");
        }
        if self.exposed.contains(&mount.at) {
            return refused("it leads to a directory of the host");
        }
        // What else there is belongs to the kernel (/proc, /sys, /dev) or to the host.
        match mount.kind.as_str() {
            "overlay" if mount.at.components().count() <= 2 => Ok(()),
            "tmpfs" if mount.at == Path::new("/run") => Ok(()),
            _ => refused("it leads to a system directory"),
        }
    }
}

fn is_same(known: &Attachment, mount: &Mount) -> bool {
    known.mount == mount.id && known.device == mount.device
}

fn attach(inside: &Inside, mount: &OwnedFd, path: &Path, places: &Places) -> Result<Option<PathBuf>, SandboxError> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    sys::set_mount_flags(mount, flags).map_err(system("flags of a mount"))?;
    let opened = inside.open_or_make(path)?;
    let attached = places.check(inside, &opened.directory).and_then(|()| cover(&opened.directory)).and_then(|()| {
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

/// Unmounts what was attached, wherever its path leads by now. `false` if it is not mounted any more.
fn detach(
    inside: &Inside,
    attachment: &Attachment,
    made: Option<&Path>,
    is_forced: bool,
) -> Result<bool, SandboxError> {
    let path = &attachment.path;
    let failed = |error: io::Error| system(format!("unmounting {}", path.display()))(error);
    let busy = |users| SandboxError::Busy { path: path.clone(), users };
    let mut tries = 0;
    let (parent, mount) = loop {
        let mounts = inside.processes.mounts().map_err(failed)?;
        let Some(mount) = mounts.into_iter().find(|mount| is_same(attachment, mount)) else {
            return Ok(false);
        };
        match find(inside, &mount) {
            Ok(parent) => break (parent, mount),
            // The guest renamed what is above between both looks.
            Err(_) if tries < MOVED_COUNT_MAX => tries += 1,
            Err(error) => return Err(failed(error)),
        }
    };
    if !is_forced {
        let users = inside.processes.users_of(&mount).map_err(failed)?;
        if !users.is_empty() {
            return Err(busy(users));
        }
    }
    let name = mount.at.file_name().unwrap_or_default();
    rustix::process::fchdir(&parent).map_err(|error| failed(error.into()))?;
    let flags = if is_forced { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(name, UnmountFlags::NOFOLLOW | flags) {
        Err(Errno::BUSY) => return Err(busy(vec!["something in the sandbox".to_owned()])),
        unmounted => unmounted.map_err(|error| failed(error.into()))?,
    }
    // Below it there may be another mount; then there is nothing to put back.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        Ok(bare) => uncover(&bare).map_err(failed)?,
        // The guest was faster and renamed it, which is its own loss.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
        Err(error) => return Err(failed(error.into())),
    }
    inside.remove_made(path, made);
    Ok(true)
}

/// How often a guest may move directories about while it is looked where a mount is.
const MOVED_COUNT_MAX: u32 = 100;

/// The directory that a mount is in, opened without following any link. The mount's name in it stays what it is: what is
/// mounted on can neither be renamed nor removed.
fn find(inside: &Inside, mount: &Mount) -> io::Result<OwnedFd> {
    let (Some(parent), Some(name)) = (mount.at.parent(), mount.at.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let parent = rustix::fs::openat2(&inside.root, parent, flags, Mode::empty(), resolve)?;
    let at_flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(&parent, name, at_flags, StatxFlags::MNT_ID)?.stx_mnt_id;
    if found != mount.id {
        return Err(io::Error::other("directories were moved meanwhile, or something is mounted over it"));
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_directory_was() {
        assert_eq!(parse_covered("755 1000000 1000005"), Some((0o755, 1_000_000, 1_000_005)));
        assert_eq!(parse_covered("8 1 1"), None);
    }
}
