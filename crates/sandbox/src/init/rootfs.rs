//! The layers of a sandbox's root file system, put together in the starter's own mount namespace.
//!
//! ```text
//! mnt/        a small tmpfs, which exists in this namespace only and goes when init leaves it behind
//!   low/N     the read-only layers, each an id-mapped view: what root owns there belongs to the sandbox's root here
//!   root      overlay of those on disk/upper/root; for the host's file system with one overlay more for each of /usr, …
//! disk/       what the sandbox writes; an ext4 image of its own if its size is bounded
//! ```
//!
//! The overlays are the host's (their superblocks belong to its user namespace), so whiteouts, `trusted.` attributes and
//! copying up work as for the host's root, whatever the guest may do. Names in mount options are relative, so that the
//! guest's `/proc/mounts` says nothing about the host's directories.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Gid, Uid};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};

use super::failure::{During, Failure};
use crate::wire::{Layers, SetUp};
use crate::{IdMap, sys};

/// Where the new root is, below the sandbox's directory.
pub(super) const NEW_ROOT: &str = "mnt/root";

const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Builds [`NEW_ROOT`]; the current directory is the sandbox's. Returns what had to be left out.
pub(super) fn build(set_up: &SetUp, users: BorrowedFd<'_>) -> Result<Vec<String>, Failure> {
    rustix::mount::mount("tmpfs", "mnt", "tmpfs", FLAGS, Some(c"mode=755,size=1m")).during("a tmpfs")?;
    if let Some(image) = &set_up.disk_image {
        mount_disk(image)?;
    }
    let mut builder = Builder { ids: set_up.ids, users, count: 0, notes: Vec::new() };
    fs::create_dir_all(NEW_ROOT).during("the new root")?;
    match &set_up.layers {
        Layers::Host { skeleton, system } => {
            builder.overlay("root", &[skeleton], Path::new(NEW_ROOT))?;
            for name in system {
                let layer = Path::new("/").join(name);
                builder.overlay(name, &[&layer], &Path::new(NEW_ROOT).join(name))?;
            }
        }
        Layers::Stack(layers) => {
            let layers: Vec<&Path> = layers.iter().map(AsRef::as_ref).collect();
            builder.overlay("root", &layers, Path::new(NEW_ROOT))?;
        }
    }
    Ok(builder.notes)
}

struct Builder<'a> {
    ids: IdMap,
    users: BorrowedFd<'a>,
    count: u32,
    notes: Vec<String>,
}

impl Builder<'_> {
    /// Mounts `layers` (the uppermost first) at `target`, below a private layer.
    fn overlay(&mut self, name: &str, layers: &[impl AsRef<Path>], target: &Path) -> Result<(), Failure> {
        let mut lower = Vec::new();
        for layer in layers {
            lower.push(self.layer(layer.as_ref())?);
        }
        let (upper, work) = (format!("disk/upper/{name}"), format!("disk/work/{name}"));
        for directory in [&upper, &work] {
            fs::create_dir_all(directory).during(format!("making {directory}"))?;
        }
        let (uid, gid) = (Uid::from_raw(self.ids.base), Gid::from_raw(self.ids.base));
        rustix::fs::chown(&upper, Some(uid), Some(gid)).during(format!("owner of {upper}"))?;
        // Volatile: a sandbox does not outlive the host's power, so its own files need no fsync of the host's disk.
        let options = format!("lowerdir={},upperdir={upper},workdir={work},redirect_dir=on,volatile", lower.join(":"));
        let options = std::ffi::CString::new(options).map_err(std::io::Error::from).during("options of an overlay")?;
        rustix::mount::mount("overlay", target, "overlay", FLAGS, Some(options.as_c_str()))
            .during(format!("an overlay for {}", target.display()))
    }

    /// Shows `layer` with the sandbox's ids and returns where.
    fn layer(&mut self, layer: &Path) -> Result<String, Failure> {
        let tree = clone_tree(layer)?;
        if let Err(error) = sys::map_ids(&tree, self.users) {
            let note = format!("files of {} seem to be owned by nobody: no id-mapped mounts: {error}", layer.display());
            self.notes.push(note);
        }
        let place = format!("mnt/low/{}", self.count);
        self.count += 1;
        fs::create_dir_all(&place).during(&place)?;
        attach(&tree, Path::new(&place))?;
        Ok(place)
    }
}

/// A detached copy of the mount at `path`, without those below it.
pub(super) fn clone_tree(path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).during(format!("a view of {}", path.display()))
}

/// Attaches a detached mount.
pub(super) fn attach(tree: &OwnedFd, at: &Path) -> Result<(), Failure> {
    rustix::mount::move_mount(tree.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .during(format!("mounting {}", at.display()))
}

/// Mounts the image that bounds what the sandbox can write. `mount` finds a loop device, which frees itself with the
/// mount.
fn mount_disk(image: &Path) -> Result<(), Failure> {
    let output = Command::new("mount")
        .args(["-t", "ext4", "-o", "loop,nosuid,nodev,noatime"])
        .arg(image)
        .arg("disk")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .during("mount(8), for the disk's limit")?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::new("mounting the sandbox's disk", std::io::Error::other(why)))
}
