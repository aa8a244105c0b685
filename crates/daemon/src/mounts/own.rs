//! Whether a directory that was reached by a sandbox's path is the sandbox's own. A guest may lead any path elsewhere by a
//! link: to `/proc`, where the host's root reads more than the guest may, or into a directory of the host that is shown.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{fstat, fstatfs, major, minor};

/// File systems of the sandbox's own: `overlay` (its root) and `tmpfs` (`/tmp`, `/run`).
const OWN_FILE_SYSTEMS: [u64; 2] = [0x794c_7630, 0x0102_1994];

/// Whether a directory is on a file system that belongs to a sandbox: of the right kind, and mounted nowhere on the host.
///
/// # Errors
/// When the kernel does not say.
pub(super) fn is_sandboxs(directory: &OwnedFd) -> io::Result<bool> {
    let kind = fstatfs(directory)?.f_type;
    if !u64::try_from(kind).is_ok_and(|kind| OWN_FILE_SYSTEMS.contains(&kind)) {
        return Ok(false);
    }
    let device = fstat(directory)?.st_dev;
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(!devices(&table).contains(format!("{}:{}", major(device), minor(device)).as_str()))
}

/// The devices of a mount table, as it writes them.
fn devices(table: &str) -> HashSet<&str> {
    table.lines().filter_map(|line| line.split(' ').nth(2)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_directories_are_no_sandboxs() {
        for path in ["/proc", "/proc/self", "/sys", "/", "/dev"] {
            let directory = sandpail_sync::open_directory(std::path::Path::new(path)).unwrap();
            assert!(!is_sandboxs(&directory).unwrap(), "{path}");
        }
    }

    #[test]
    fn mount_tables() {
        let table = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n40 35 0:42 / /x rw - tmpfs t rw\n";
        assert_eq!(devices(table), HashSet::from(["98:0", "0:42"]));
    }
}
