//! Attributes of what is in a local tree.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags, chmodat, chownat, getxattr,
    listxattr, removexattr, setxattr, utimensat,
};
use rustix::io::Errno;

use super::{At, LocalTree, failed};
use crate::FsResult;
use crate::attr::{Attr, Kind};
use crate::engine::{SetAttr, SetTime, clear_set_id};

/// Linux's longest value, and list of names, in bytes.
const XATTR_LEN_MAX: usize = 64 << 10;

fn spec(time: Option<SetTime>) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, UTIME_OMIT),
        Some(SetTime::Now) => (0, UTIME_NOW),
        Some(SetTime::At(time)) => (time.secs, time.nanos.into()),
    };
    Timespec { tv_sec, tv_nsec }
}

/// By which calls that know no descriptor reach exactly this thing.
fn magic(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

impl LocalTree {
    /// Changes mode, owner and times; the size is changed through a descriptor.
    ///
    /// # Errors
    /// [`crate::FsError::NotPermitted`] if this process may not give files away; [`crate::FsError::NotFound`].
    pub(crate) fn set(&self, at: At<'_>, set: &SetAttr) -> FsResult<()> {
        let change = || {
            let spot = self.spot(at)?;
            let before: Attr = spot.stat()?;
            if set.uid.is_some() || set.gid.is_some() {
                let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
                chownat(&spot.dir, &spot.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            let mut perm = set.perm.unwrap_or(before.perm) & 0o7777;
            if set.kill_set_id && before.kind == Kind::File {
                clear_set_id(&mut perm);
            }
            if perm != before.perm || set.perm.is_some() {
                // A link has no mode, and this would follow it.
                if before.kind == Kind::Symlink {
                    return Err(Errno::OPNOTSUPP);
                }
                chmodat(&spot.dir, &spot.name, Mode::from_raw_mode(perm), AtFlags::empty())?;
            }
            if set.atime.is_some() || set.mtime.is_some() {
                let times = Timestamps { last_access: spec(set.atime), last_modification: spec(set.mtime) };
                utimensat(&spot.dir, &spot.name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Ok(())
        };
        change().map_err(failed("cannot change a local file"))
    }

    fn thing(&self, at: At<'_>) -> Result<(OwnedFd, String), Errno> {
        let file = self.spot(at)?.path()?;
        let path = magic(&file);
        Ok((file, path))
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// [`crate::FsError::NoAttribute`].
    pub(crate) fn xattr(&self, at: At<'_>, name: &str) -> FsResult<Vec<u8>> {
        let get = || {
            let (_file, path) = self.thing(at)?;
            let mut value = vec![0; XATTR_LEN_MAX];
            let len = getxattr(&path, name, &mut value[..])?;
            value.truncate(len);
            Ok(value)
        };
        get().map_err(failed(format!("attribute {name:?}")))
    }

    /// The names of the `user.*` attributes.
    ///
    /// # Errors
    /// [`crate::FsError::NotFound`].
    pub(crate) fn xattr_names(&self, at: At<'_>) -> FsResult<Vec<String>> {
        let list = || {
            let (_file, path) = self.thing(at)?;
            let mut names = vec![0; XATTR_LEN_MAX];
            match listxattr(&path, &mut names[..]) {
                Ok(len) => names.truncate(len),
                // A disk without any.
                Err(Errno::OPNOTSUPP) => names.clear(),
                Err(error) => return Err(error),
            }
            Ok(names)
        };
        let names = list().map_err(failed("attributes"))?;
        let names = names.split(|byte| *byte == 0).map(|name| String::from_utf8_lossy(name).into_owned());
        Ok(names.filter(|name| name.starts_with("user.")).collect())
    }

    /// Sets an extended attribute; flags as for `setxattr(2)`.
    ///
    /// # Errors
    /// [`crate::FsError::Exists`], [`crate::FsError::NoAttribute`], [`crate::FsError::NoSpace`] as the flags and the disk ask.
    pub(crate) fn set_xattr(&self, at: At<'_>, name: &str, value: &[u8], flags: i32) -> FsResult<()> {
        let flags = XattrFlags::from_bits_truncate(u32::from_ne_bytes(flags.to_ne_bytes()));
        let set = || {
            let (_file, path) = self.thing(at)?;
            setxattr(&path, name, value, flags)
        };
        set().map_err(failed(format!("attribute {name:?}")))
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// [`crate::FsError::NoAttribute`].
    pub(crate) fn remove_xattr(&self, at: At<'_>, name: &str) -> FsResult<()> {
        let remove = || {
            let (_file, path) = self.thing(at)?;
            removexattr(&path, name)
        };
        remove().map_err(failed(format!("attribute {name:?}")))
    }
}
