//! The root directory of sandboxes that use the host's system directories: empty places, links, and an `/etc` of what
//! programs need and no more.
//!
//! It is copied once and shared, read-only, by all sandboxes. What is not on the list does not get in; so a new secret in the
//! host's `/etc` needs no new rule here.

use std::fs::{self, DirBuilder};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

/// Changes when this file makes something else of the same host.
const VERSION: u32 = 1;

/// Directories of each sandbox and their modes.
const DIRECTORIES: [(&str, u32); 27] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("home/sandbox", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/cache/apt", 0o755),
    ("var/lib", 0o755),
    ("var/lib/apt", 0o755),
    ("var/lib/misc", 0o755),
    ("var/local", 0o755),
    ("var/log", 0o755),
    ("var/mail", 0o755),
    ("var/opt", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
    ("workspace", 0o755),
];

/// Names at the host's root that are system directories, or links to them.
const SYSTEM: [&str; 8] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32"];

/// What of the host's `/etc` is shown, whole subtrees too. Private keys lie in `ssl/private`, which is not named.
const ETC: [&str; 42] = [
    "alternatives",
    "bash.bashrc",
    "bash_completion.d",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "default/locale",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java-11-openjdk",
    "java-17-openjdk",
    "java-21-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "locale.conf",
    "localtime",
    "magic",
    "magic.mime",
    "mime.types",
    "networks",
    "nsswitch.conf",
    "os-release",
    "perl",
    "pki/ca-trust",
    "pki/tls/certs",
    "profile",
    "protocols",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
    "rpc",
    "services",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
];

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
sys:x:3:3:sys:/dev:/usr/sbin/nologin
mail:x:8:8:mail:/var/mail:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
sandbox:x:1000:1000:sandbox:/home/sandbox:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";

const GROUP: &str = "\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
shadow:x:42:
utmp:x:43:
video:x:44:
staff:x:50:
users:x:100:
www-data:x:33:
sandbox:x:1000:
nogroup:x:65534:
";

/// The user `sandbox`.
const USER_ID: u32 = 1000;

/// Makes the skeleton below `parent` unless it is there, and returns it.
///
/// # Errors
/// Those of the file system.
pub(crate) fn prepare(parent: &Path) -> io::Result<PathBuf> {
    let skeleton = parent.join(fingerprint());
    if skeleton.is_dir() {
        return Ok(skeleton);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let new = tempfile::Builder::new().prefix("new-").tempdir_in(parent)?;
    fill(new.path())?;
    match fs::rename(new.path(), &skeleton) {
        // Another daemon, or thread, was faster; both made the same.
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {}
        result => {
            result?;
            // There is nothing left to remove, which is what dropping it does not know.
            let _path = new.keep();
        }
    }
    Ok(skeleton)
}

/// The system directories of this host that need a layer of their own, such as `usr`: those that are no links.
pub(crate) fn system_directories() -> Vec<String> {
    let is_own = |name: &&&str| fs::symlink_metadata(Path::new("/").join(name)).is_ok_and(|found| found.is_dir());
    SYSTEM.iter().filter(is_own).map(|name| (*name).to_owned()).collect()
}

/// Changes when what would be copied changes.
fn fingerprint() -> String {
    let mut hasher = DefaultHasher::new();
    VERSION.hash(&mut hasher);
    for path in ETC.iter().map(|name| Path::new("/etc").join(name)).chain(SYSTEM.map(|name| Path::new("/").join(name)))
    {
        if let Ok(found) = fs::symlink_metadata(&path) {
            (path, found.ino(), found.mtime(), found.mtime_nsec(), found.size()).hash(&mut hasher);
        }
    }
    format!("{:016x}", hasher.finish())
}

fn fill(root: &Path) -> io::Result<()> {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    for (name, mode) in DIRECTORIES {
        let path = root.join(name);
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    chown(root.join("home/sandbox"), Some(USER_ID), Some(USER_ID))?;
    symlink("/run", root.join("var/run"))?;
    symlink("/run/lock", root.join("var/lock"))?;
    for name in SYSTEM {
        let from = Path::new("/").join(name);
        match fs::symlink_metadata(&from) {
            Ok(found) if found.is_symlink() => symlink(fs::read_link(&from)?, root.join(name))?,
            Ok(found) if found.is_dir() => fs::create_dir_all(root.join(name))?,
            _ => {}
        }
    }
    let etc = root.join("etc");
    for name in ETC {
        let from = Path::new("/etc").join(name);
        if fs::symlink_metadata(&from).is_ok() {
            if let Some(parent) = etc.join(name).parent() {
                fs::create_dir_all(parent)?;
            }
            copy(&from, &etc.join(name))?;
        }
    }
    for (name, text) in [("passwd", PASSWD), ("group", GROUP), ("hosts", ""), ("hostname", ""), ("resolv.conf", "")] {
        fs::write(etc.join(name), text)?;
    }
    symlink("/proc/self/mounts", etc.join("mtab"))
}

/// Copies what everybody may read: files, directories, links as they are. All of it becomes root's.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    /// `r--` for others.
    const OTHERS_READ: u32 = 0o004;
    let found = fs::symlink_metadata(from)?;
    if found.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if found.mode() & OTHERS_READ == 0 {
        return Ok(());
    }
    if found.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if found.is_file() {
        fs::copy(from, to)?;
    } else {
        return Ok(());
    }
    fs::set_permissions(to, fs::Permissions::from_mode(found.mode() & 0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_get_in() {
        let parent = tempfile::tempdir().unwrap();
        // Only root may give files away, which the home directory needs.
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let skeleton = prepare(parent.path()).unwrap();
        assert_eq!(prepare(parent.path()).unwrap(), skeleton);
        for name in ["shadow", "gshadow", "ssh", "machine-id", "sudoers", "ssl/private", "npmrc", "pip.conf"] {
            assert!(!skeleton.join("etc").join(name).exists(), "{name}");
        }
        for name in ["etc/passwd", "usr", "workspace", "tmp", "etc/ld.so.cache"] {
            assert!(skeleton.join(name).exists(), "{name}");
        }
    }
}
