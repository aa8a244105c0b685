//! What the kernel says about a sandbox's mounts and who uses them.
//!
//! It is read from the host's `/proc`, opened before a thread enters a sandbox: what a path such as `/proc/1/mountinfo`
//! leads to in there may be a guest's doing, a bucket even.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, StatxFlags};

/// Most bytes of one of the kernel's tables. Larger ones are cut off.
const TABLE_LEN_MAX: u64 = 16 * 1024 * 1024;

/// Descriptors of one process that are looked at.
const DESCRIPTOR_COUNT_MAX: usize = 100_000;

/// Processes that are named as users of a mount.
const USER_COUNT_MAX: usize = 32;

/// The magic number of procfs.
const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;

/// The host's `/proc`, and which process in it is the sandbox's init.
#[derive(Debug)]
pub(super) struct Processes {
    proc: OwnedFd,
    init: i32,
}

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) id: u64,
    /// Major and minor number.
    pub(super) device: (u32, u32),
    /// Below the sandbox's root.
    pub(super) at: PathBuf,
    /// Such as `overlay`.
    pub(super) kind: String,
}

impl Processes {
    /// To be called where `/proc` is the host's.
    pub(super) fn open(init: i32) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
        if rustix::fs::fstatfs(&proc)?.f_type != PROC_SUPER_MAGIC {
            return Err(io::Error::other("/proc is no proc file system"));
        }
        Ok(Self { proc, init })
    }

    fn read(&self, name: &str) -> io::Result<impl BufRead + use<>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.proc, name, flags, Mode::empty())?;
        Ok(BufReader::new(File::from(file).take(TABLE_LEN_MAX)))
    }

    fn link(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.proc, name, Vec::new())?.into_bytes())
    }

    /// All mounts of the sandbox, the older first.
    pub(super) fn mounts(&self) -> io::Result<Vec<Mount>> {
        let table = self.read(&format!("{}/mountinfo", self.init))?;
        let lines = table.split(b'\n').collect::<io::Result<Vec<_>>>()?;
        Ok(lines.iter().filter_map(|line| parse_mount(line)).collect())
    }

    /// Where an open file is, seen from the calling thread's root.
    pub(super) fn path_of(&self, file: &OwnedFd) -> io::Result<PathBuf> {
        use std::os::fd::AsRawFd;
        use std::os::unix::ffi::OsStringExt;
        let path = self.link(&format!("thread-self/fd/{}", file.as_raw_fd()))?;
        Ok(std::ffi::OsString::from_vec(path).into())
    }

    /// Processes of the sandbox that hold the mount: `name (pid)`, as the sandbox sees them. Asks nothing of the file
    /// system itself, whose server may hang.
    pub(super) fn users_of(&self, mount: &Mount) -> io::Result<Vec<String>> {
        let namespace = self.link(&format!("{}/ns/mnt", self.init))?;
        let mut users = Vec::new();
        for entry in Dir::read_from(&self.proc)? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()) else { continue };
            // Processes come and go while they are looked at; one that is gone uses nothing.
            if !self.link(&format!("{pid}/ns/mnt")).is_ok_and(|its| its == namespace) {
                continue;
            }
            if self.is_user(pid, mount) {
                users.push(self.describe(pid));
                if users.len() == USER_COUNT_MAX {
                    users.push("others".to_owned());
                    break;
                }
            }
        }
        Ok(users)
    }

    fn is_user(&self, pid: i32, mount: &Mount) -> bool {
        let is_at = ["cwd", "root"]
            .iter()
            .any(|link| mount_id(&self.proc, format!("{pid}/{link}").as_str()).is_ok_and(|id| id == mount.id));
        is_at || self.is_open(pid, mount.id).unwrap_or(false) || self.is_mapped(pid, mount.device).unwrap_or(false)
    }

    fn is_open(&self, pid: i32, mount: u64) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let infos = rustix::fs::openat(&self.proc, format!("{pid}/fdinfo").as_str(), flags, Mode::empty())?;
        for entry in Dir::read_from(&infos)?.take(DESCRIPTOR_COUNT_MAX) {
            let entry = entry?;
            let Ok(info) = rustix::fs::openat(&infos, entry.file_name(), OFlags::CLOEXEC, Mode::empty()) else {
                continue;
            };
            // It is one of the first lines; others may be many.
            let mut text = [0; 512];
            let Ok(len) = rustix::io::read(&info, &mut text) else { continue };
            let text = String::from_utf8_lossy(&text[..len]);
            let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
            if id.is_some_and(|id| id.trim().parse() == Ok(mount)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_mapped(&self, pid: i32, mounted: (u32, u32)) -> io::Result<bool> {
        let mut maps = self.read(&format!("{pid}/maps"))?;
        let mut line = Vec::new();
        loop {
            line.clear();
            if maps.read_until(b'\n', &mut line)? == 0 {
                return Ok(false);
            }
            let device = line.split(|byte| *byte == b' ').nth(3).and_then(|device| parse_device(device, 16));
            if device == Some(mounted) {
                return Ok(true);
            }
        }
    }

    fn describe(&self, pid: i32) -> String {
        let mut name = String::new();
        // One that has just ended has no name any more.
        let _result = self.read(&format!("{pid}/comm")).and_then(|mut comm| comm.read_to_string(&mut name));
        // Guests choose these names, and people read them in logs.
        let name: String = name.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        format!("{name} (pid {})", self.pid_inside(pid).unwrap_or_default())
    }

    fn pid_inside(&self, pid: i32) -> Option<i32> {
        let status = self.read(&format!("{pid}/status")).ok()?;
        let line = status.lines().map_while(Result::ok).find(|line| line.starts_with("NSpid:"))?;
        line.split_ascii_whitespace().last()?.parse().ok()
    }
}

/// The id of the mount that a path or (with an empty one) a descriptor is on. Asks nothing of the file system, whose
/// server may hang.
pub(super) fn mount_id(at: impl AsFd, path: impl rustix::path::Arg) -> io::Result<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(at, path, flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = parse_device(fields.nth(1)?, 10)?;
    let at = unescape(fields.nth(1)?);
    // Optional fields end with a dash.
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { id, device, at, kind: String::from_utf8_lossy(kind).into_owned() })
}

/// `253:1` of the mount table, or `fd:01` of a memory map.
fn parse_device(text: &[u8], radix: u32) -> Option<(u32, u32)> {
    let (major, minor) = str::from_utf8(text).ok()?.split_once(':')?;
    Some((u32::from_str_radix(major, radix).ok()?, u32::from_str_radix(minor, radix).ok()?))
}

/// Spaces and such are written as `\ooo`.
fn unescape(text: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    OsStr::from_bytes(&bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_tables() {
        let line = br"36 35 98:0 /mnt1 /mnt/a\040b rw,noatime master:1 - ext3 /dev/root rw";
        let expected = Mount { id: 36, device: (98, 0), at: "/mnt/a b".into(), kind: "ext3".to_owned() };
        assert_eq!(parse_mount(line), Some(expected));
        assert_eq!(parse_mount(b"nonsense"), None);
    }

    #[test]
    fn devices() {
        assert_eq!(parse_device(b"00:2a", 16), parse_device(b"0:42", 10));
        assert_ne!(parse_device(b"00:2b", 16), parse_device(b"0:42", 10));
        assert_eq!(parse_device(b"", 10), None);
    }
}
