//! What a sandbox has at `/proc`, `/sys`, `/dev` and `/run`, and what the daemon puts into `/etc`.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags};

use super::failure::{During, Failure};
use crate::wire::{SetUp, ShownFile};
use crate::{NAME_SERVER, sys};

const NOSUID_NODEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NO_ALL: MountFlags = NOSUID_NODEV.union(MountFlags::NOEXEC);

/// Character devices: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Hidden, as the OCI runtime specification's defaults say.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/kallsyms",
];

/// Readable at most.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What of the host's `/sys` programs look at: how many processors there are. The rest of it is no guest's business, so
/// there is no sysfs.
const SYS: [&str; 2] = ["/sys/devices/system/cpu", "/sys/devices/system/node"];

/// What of the host will be shown.
pub(super) struct Views {
    directories: Vec<View>,
    /// Files of the daemon's.
    files: Vec<Given>,
}

struct View {
    at: PathBuf,
    tree: OwnedFd,
    is_file: bool,
}

/// A file of the daemon's, still to be read.
struct Given {
    shown: ShownFile,
    file: fs::File,
}

/// Takes views of what the sandbox is to see of the host, read-only.
pub(super) fn views(set_up: &SetUp) -> Result<Views, Failure> {
    let mut directories = Vec::new();
    let sys = SYS.iter().map(PathBuf::from).filter(|path| path.is_dir());
    for at in set_up.expose.iter().cloned().chain(sys) {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let what = format!("a view of {}", at.display());
        let tree = rustix::mount::open_tree(CWD, &at, flags).during(&what)?;
        let flags =
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        sys::set_mount_flags(&tree, flags).during(&what)?;
        let is_file = fs::metadata(&at).during(&what)?.is_file();
        directories.push(View { at, tree, is_file });
    }
    let given = |shown: &ShownFile| {
        let file = fs::File::open(set_up.directory.join(&shown.name));
        let file = file.during(format!("opening the daemon's {}", shown.at.display()))?;
        Ok(Given { shown: shown.clone(), file })
    };
    let files = set_up.files.iter().map(given).collect::<Result<_, Failure>>()?;
    Ok(Views { directories, files })
}

/// Nothing to write, run or open as a device.
const READ_ONLY_DATA: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Mounts everything. The root is the sandbox's already, so no link can lead out of it.
pub(super) fn mount_all(set_up: &SetUp, views: Views) -> Result<(), Failure> {
    let root = format!("uid={base},gid={base}", base = set_up.ids.base);
    mount("proc", "/proc", NO_ALL, "")?;
    mount_dev(&root, set_up)?;
    // Inodes take the host's memory too, also those of empty files.
    mount("tmpfs", "/sys", NO_ALL, &format!("{root},mode=755,size=64k,nr_inodes=1k"))?;
    mount("tmpfs", "/run", NOSUID_NODEV, &format!("{root},mode=755,size=64m,nr_inodes=64k"))?;
    for view in views.directories {
        let is_file = view.is_file;
        make_place(&view.at, is_file)?;
        move_to(&view.tree, &view.at)?;
    }
    remount_read_only(Path::new("/sys"))?;
    for path in &set_up.hidden {
        if fs::symlink_metadata(path).is_ok() {
            mask(path)?;
        }
    }
    for path in MASKED.map(Path::new) {
        mask(path)?;
    }
    for path in READ_ONLY.map(Path::new) {
        set_read_only(path)?;
    }
    own_files(set_up, views.files)?;
    for (directory, mode) in [("/workspace", 0o755), ("/tmp", 0o1777), ("/root", 0o700)] {
        if !Path::new(directory).is_dir() {
            fs::create_dir_all(directory).during(directory)?;
            let (uid, gid) = (rustix::fs::Uid::from_raw(set_up.ids.base), rustix::fs::Gid::from_raw(set_up.ids.base));
            rustix::fs::chown(directory, Some(uid), Some(gid)).during(directory)?;
            rustix::fs::chmod(directory, Mode::from_raw_mode(mode)).during(directory)?;
        }
    }
    Ok(())
}

fn mount_dev(root: &str, set_up: &SetUp) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    let base = set_up.ids.base;
    mount("tmpfs", "/dev", flags, &format!("{root},mode=755,size=64k,nr_inodes=1k"))?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(base), rustix::fs::Gid::from_raw(base));
    for (name, major, minor) in DEVICES {
        let path = Path::new("/dev").join(name);
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)
            .during(format!("making {}", path.display()))?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o666)).during("a device's mode")?;
        rustix::fs::chown(&path, Some(uid), Some(gid)).during("a device's owner")?;
    }
    for (name, to) in LINKS {
        symlink(to, Path::new("/dev").join(name)).during(format!("making /dev/{name}"))?;
    }
    // Group 5 is "tty" in every distribution; terminals must not be readable for all.
    mount(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        &format!("newinstance,ptmxmode=666,mode=620,gid={}", base + 5),
    )?;
    let shared = format!("{root},mode=1777,size={},nr_inodes=64k", set_up.shared_len);
    mount("tmpfs", "/dev/shm", NO_ALL, &shared)?;
    match mount("mqueue", "/dev/mqueue", NO_ALL, "") {
        // Not every kernel has message queues, and few programs do.
        Err(failure) if failure.errno() == Some(Errno::NODEV.raw_os_error()) => Ok(()),
        result => result,
    }
}

fn mount(kind: &str, at: &str, flags: MountFlags, options: &str) -> Result<(), Failure> {
    fs::create_dir_all(at).during(format!("making {at}"))?;
    let options = std::ffi::CString::new(options).map_err(io::Error::from).during("options of a mount")?;
    rustix::mount::mount(kind, at, kind, flags, Some(options.as_c_str())).during(format!("mounting {at}"))
}

fn make_place(at: &Path, is_file: bool) -> Result<(), Failure> {
    let what = format!("making {}", at.display());
    if !is_file {
        return fs::create_dir_all(at).during(what);
    }
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent).during(&what)?;
    }
    fs::File::options().create(true).append(true).open(at).map(drop).during(what)
}

/// Mounts at `at`; a link there is followed, inside the sandbox's root.
fn move_to(tree: &OwnedFd, at: &Path) -> Result<(), Failure> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, at, flags).during(format!("mounting {}", at.display()))
}

/// A read-only view of a path over itself.
fn set_read_only(path: &Path) -> Result<(), Failure> {
    let what = format!("making {} read-only", path.display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = match rustix::mount::open_tree(CWD, path, flags) {
        Err(Errno::NOENT) => return Ok(()),
        tree => tree.during(&what)?,
    };
    sys::set_mount_flags(&tree, MountAttrFlags::MOUNT_ATTR_RDONLY).during(&what)?;
    move_to(&tree, path)
}

/// Makes the mount at `path` itself read-only.
fn remount_read_only(path: &Path) -> Result<(), Failure> {
    let what = format!("making {} read-only", path.display());
    let mount = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during(&what)?;
    sys::set_mount_flags(&mount, MountAttrFlags::MOUNT_ATTR_RDONLY).during(&what)
}

/// Covers a file by `/dev/null`, a directory by an empty one that is read-only.
fn mask(path: &Path) -> Result<(), Failure> {
    let what = format!("hiding {}", path.display());
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.during(&what)?,
    };
    let tree = if metadata.is_dir() {
        empty_tmpfs("size=4k,mode=555").during(&what)?
    } else {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(CWD, "/dev/null", flags).during(&what)?
    };
    sys::set_mount_flags(&tree, MountAttrFlags::MOUNT_ATTR_RDONLY).during(&what)?;
    move_to(&tree, path)
}

/// A detached tmpfs; `options` are `name=value` pairs.
fn empty_tmpfs(options: &str) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for option in options.split(',') {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        rustix::mount::fsconfig_set_string(context.as_fd(), name, value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The files that are the daemon's: on a tmpfs of their own, mounted read-only over the root's. They are copied there, as
/// the table of mounts would name the host's directory of a file that is shown itself.
fn own_files(set_up: &SetUp, given: Vec<Given>) -> Result<(), Failure> {
    const WHAT: &str = "the daemon's files";
    let name = &set_up.name;
    let files = [
        ("hosts", format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{name}\n")),
        ("hostname", format!("{name}\n")),
        ("resolv.conf", format!("# The daemon's, once it opens this sandbox's network.\nnameserver {NAME_SERVER}\n")),
    ];
    let mut len = 1 << 20;
    for one in &given {
        len += one.file.metadata().during(WHAT)?.len().next_multiple_of(1 << 16);
    }
    let own = empty_tmpfs(&format!("size={len},mode=755")).during(WHAT)?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(set_up.ids.base), rustix::fs::Gid::from_raw(set_up.ids.base));
    let create = |name: &str| -> Result<fs::File, Failure> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let created = rustix::fs::openat(&own, name, flags, Mode::from_raw_mode(0o444)).during(WHAT)?;
        rustix::fs::fchown(&created, Some(uid), Some(gid)).during(WHAT)?;
        Ok(created.into())
    };
    let show = |name: &str, at: &Path| -> Result<(), Failure> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let view = rustix::mount::open_tree(own.as_fd(), name, flags).during(WHAT)?;
        sys::set_mount_flags(&view, READ_ONLY_DATA).during(WHAT)?;
        place_file(&view, at)
    };
    fs::create_dir_all("/etc").during(WHAT)?;
    for (file, text) in files {
        let at = Path::new("/etc").join(file);
        if set_up.files.iter().any(|given| given.at == at) {
            continue;
        }
        io::Write::write_all(&mut create(file)?, text.as_bytes()).during(WHAT)?;
        show(file, &at)?;
    }
    // Files of equal content have one name, and one copy here.
    let mut copied = HashSet::new();
    for Given { shown, mut file } in given {
        if shown.is_optional && fs::metadata(&shown.at).is_err() {
            continue;
        }
        let name = shown.name.replace('/', "-");
        if copied.insert(name.clone()) {
            io::copy(&mut file, &mut create(&name)?).during(WHAT)?;
        }
        show(&name, &shown.at)?;
    }
    Ok(())
}

/// Mounts a file at `at`, in place of a link too.
fn place_file(view: &OwnedFd, at: &Path) -> Result<(), Failure> {
    // An image may have a link here, such as the one of systemd's resolver, that leads nowhere.
    if fs::symlink_metadata(at).is_ok_and(|found| found.is_symlink()) {
        fs::remove_file(at).during(format!("making {}", at.display()))?;
    }
    make_place(at, true)?;
    move_to(view, at)
}
