//! Mounts that are attached nowhere. Not all tests use all of it.
#![allow(dead_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use sandpail_fuse::{Device, Running, is_alive};

/// A file system's only place, without a name.
#[derive(Debug)]
pub(crate) struct Mount(pub(crate) OwnedFd);

/// `None` where this user cannot mount.
pub(crate) fn mount() -> Option<(Mount, Device)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let device = Device::open().ok()?;
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(context.as_fd(), key, value).unwrap();
    set("fd", &device.as_fd().as_raw_fd().to_string());
    set("rootmode", "40000");
    set("user_id", "0");
    set("group_id", "0");
    rustix::mount::fsconfig_set_flag(context.as_fd(), "allow_other").unwrap();
    rustix::mount::fsconfig_create(context.as_fd()).unwrap();
    let place = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
    Some((Mount(place.unwrap()), device))
}

impl Mount {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }

    /// Ends it, whoever waits for it.
    pub(crate) fn abort(&self) {
        let number = rustix::fs::fstat(&self.0).map(|stat| rustix::fs::minor(stat.st_dev)).unwrap();
        let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        rustix::mount::fsconfig_create(context.as_fd()).unwrap();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let control = rustix::mount::fsmount(context.as_fd(), flags, MountAttrFlags::empty()).unwrap();
        std::fs::write(format!("/proc/self/fd/{}/{number}/abort", control.as_raw_fd()), "1").unwrap();
    }

    /// Unmounts; the last program that used it may be a moment behind.
    pub(crate) fn end(self, device: &Device, running: Running) {
        assert!(is_alive(device).unwrap());
        drop(self);
        running.join().unwrap();
        assert!(!is_alive(device).unwrap());
    }
}

/// For a mount that must have a name.
#[derive(Debug)]
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sandpail-fuse-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // It is gone already if all is well.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.0);
    }
}
