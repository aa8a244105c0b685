//! What the host says: mounts, users of a mount, what FUSE needs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use rustix::mount::UnmountFlags;

/// One line of the mount table.
#[derive(Clone, Debug)]
pub struct MountLine {
    pub mountpoint: PathBuf,
    /// The file system's number, `major:minor`.
    pub device: String,
    pub fs_type: String,
    pub source: String,
    /// Who mounted it, for file systems that say so.
    pub uid: Option<u32>,
}

impl MountLine {
    /// Whether it is a sandpail mount.
    pub fn is_sandpail(&self) -> bool {
        self.fs_type == "fuse.sandpail"
    }

    /// Whether this user has mounted it.
    pub fn is_own(&self) -> bool {
        self.uid == Some(rustix::process::geteuid().as_raw())
    }
}

/// The mount table of this process.
pub fn mounts() -> Vec<MountLine> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(mount_line).collect()
}

fn mount_line(line: &str) -> Option<MountLine> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let (fs_type, source) = (after.next()?, after.next()?);
    let mut before = before.split(' ').skip(2);
    let (device, mountpoint) = (before.next()?, before.nth(1)?);
    let uid = after.next().and_then(|options| options.split(',').find_map(|option| option.strip_prefix("user_id=")));
    Some(MountLine {
        mountpoint: PathBuf::from(unescape(mountpoint)),
        device: device.to_owned(),
        fs_type: fs_type.to_owned(),
        source: unescape(source),
        uid: uid.and_then(|uid| uid.parse().ok()),
    })
}

/// The table writes spaces and the like as octal.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let code = (*byte == b'\\')
            .then(|| text.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()))
            .flatten();
        match code {
            Some(code) => {
                out.push(code);
                at += 4;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The mount on top of a directory, if it is a sandpail mount.
pub fn sandpail_mount(mountpoint: &Path) -> Option<MountLine> {
    let top = mounts().into_iter().rev().find(|line| line.mountpoint == mountpoint)?;
    top.is_sandpail().then_some(top)
}

/// Unmounts: directly as root, else through `fusermount3`.
pub fn unmount(mountpoint: &Path, lazy: bool) -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() } | UnmountFlags::NOFOLLOW;
        return rustix::mount::unmount(mountpoint, flags).map_err(|error| match error {
            rustix::io::Errno::BUSY => anyhow::anyhow!("{} is in use{}", mountpoint.display(), users_text(mountpoint)),
            other => anyhow::anyhow!("cannot unmount {}: {other}", mountpoint.display()),
        });
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg(mountpoint);
    let output = command.output().context("cannot run fusermount3 (Debian package fuse3)")?;
    if !output.status.success() {
        let users = users_text(mountpoint);
        bail!("cannot unmount {}: {}{users}", mountpoint.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn users_text(mountpoint: &Path) -> String {
    let users = users(mountpoint);
    if users.is_empty() { String::new() } else { format!(" by {}", users.join(", ")) }
}

/// Processes that have something of a mount open, as `name (pid)`.
fn users(mountpoint: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let dir = process.path();
        let links = ["cwd", "root", "exe"].into_iter().map(|link| dir.join(link));
        let open = std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().map(|fd| fd.path());
        let uses = links.chain(open).any(|link| std::fs::read_link(link).is_ok_and(|to| to.starts_with(mountpoint)));
        let maps = || std::fs::read_to_string(dir.join("maps")).unwrap_or_default();
        let needle = format!(" {}/", mountpoint.display());
        if uses || maps().contains(&needle) {
            let command = std::fs::read_to_string(dir.join("comm")).unwrap_or_default();
            found.push(format!("{} ({pid})", command.trim()));
        }
    }
    found
}

/// Says what is missing for a mount by this user.
pub fn check_fuse() -> anyhow::Result<()> {
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        bail!("/dev/fuse is missing: load the module with \"modprobe fuse\", or give the container --device /dev/fuse");
    }
    let is_root = rustix::process::geteuid().is_root();
    std::fs::File::options().read(true).write(true).open(device).context(if is_root {
        "/dev/fuse cannot be opened: give the container --device /dev/fuse and CAP_SYS_ADMIN"
    } else {
        "/dev/fuse cannot be opened by this user: as root, chmod 666 /dev/fuse (its mode on most systems), or mount as root"
    })?;
    if !is_root && find_program("fusermount3").is_none() {
        bail!("fusermount3 is missing, which mounts for ordinary users: apt install fuse3, or run as root");
    }
    Ok(())
}

/// Lets this process have as many open files as its user may have, and says how many: each sandbox, each stream and each
/// staged file takes some, and the usual soft limit is from another time.
pub fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            limit.current.unwrap_or(u64::MAX)
        }
    }
}

/// Finds a program on the path.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Checks a directory to mount on, and says its absolute path.
pub fn check_mountpoint(path: &Path) -> anyhow::Result<PathBuf> {
    let shown = path.display();
    let absolute = std::path::absolute(path).with_context(|| format!("invalid path {shown}"))?;
    if let Some(line) = sandpail_mount(&absolute) {
        bail!("{shown} is already a sandpail mount of {}; unmount it with: sandpail umount {shown}", line.source);
    }
    let meta = match std::fs::metadata(&absolute) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("mountpoint {shown} does not exist; make it with: mkdir -p {shown}")
        }
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) => {
            bail!("a dead mount is on {shown}; remove it with: umount -l {shown}")
        }
        Err(error) => return Err(error).with_context(|| format!("mountpoint {shown} cannot be used")),
    };
    if !meta.is_dir() {
        bail!("mountpoint {shown} is not a directory");
    }
    let canonical = absolute.canonicalize().with_context(|| format!("mountpoint {shown} cannot be used"))?;
    if let Some(line) = sandpail_mount(&canonical) {
        bail!("{shown} is already a sandpail mount of {}; unmount it with: sandpail umount {shown}", line.source);
    }
    if std::fs::read_dir(&canonical).is_ok_and(|mut entries| entries.next().is_some()) {
        eprintln!("sandpail: note: {shown} is not empty; the mount hides what is in it");
    }
    let me = rustix::process::geteuid();
    if !me.is_root() && meta.uid() != me.as_raw() {
        bail!("mountpoint {shown} belongs to someone else; mount on a directory of your own");
    }
    Ok(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_mount_table() {
        let line = r"36 35 0:98 / /mnt/a\040b rw,nosuid - fuse.sandpail s3://x rw,user_id=0";
        let read = mount_line(line).unwrap();
        assert_eq!(read.mountpoint, Path::new("/mnt/a b"));
        assert_eq!((read.fs_type.as_str(), read.source.as_str()), ("fuse.sandpail", "s3://x"));
    }
}
