//! Which directory is a mount's local tree, and that no other mount uses it.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use crate::write::Origin;

/// Under the staging directory.
pub(super) const DIRECTORY: &str = "local";
/// The tree.
pub(super) const FILES: &str = "files";
/// Files without a name.
pub(super) const OPEN: &str = "open";
const OWNER: &str = "owner";
const ORIGIN: &str = "origin";

/// Mounts of one bucket and prefix with one staging directory, at the same time.
const TREES_MAX: usize = 1000;
/// How much of a bucket's name the directory's name shows.
const NAME_SHOWN: usize = 64;

/// Finds, or makes, the tree for a mount: the one that it has already, else the first that nobody uses.
pub(super) fn claim(
    root: &Path,
    own: &Path,
    origin: &Origin,
    prefix: &str,
    tenant: Option<&str>,
) -> io::Result<PathBuf> {
    let all = root.join(DIRECTORY);
    DirBuilder::new().recursive(true).mode(0o700).create(&all)?;
    let lock = File::open(&all)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let own = own.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let name = name_of(origin, prefix, tenant);
    let trees = || (1..=TREES_MAX).map(|at| all.join(if at == 1 { name.clone() } else { format!("{name}.{at}") }));
    let has_own = |tree: &PathBuf| owner(tree).is_some_and(|owner| owner == own.as_bytes());
    if let Some(tree) = trees().take_while(|tree| tree.exists()).find(has_own) {
        return Ok(tree);
    }
    let is_free = |tree: &PathBuf| owner(tree).is_none_or(|owner| !is_alive(root, &owner));
    let tree = trees().find(is_free).ok_or_else(|| io::Error::other("too many mounts of one bucket"))?;
    for dir in [FILES, OPEN] {
        DirBuilder::new().recursive(true).mode(0o700).create(tree.join(dir))?;
    }
    let origin = json!({
        "endpoint": origin.endpoint, "bucket": origin.bucket, "directory": origin.directory, "prefix": prefix,
        "tenant": tenant,
    });
    std::fs::write(tree.join(ORIGIN), format!("{origin:#}\n"))?;
    let new = tree.join(format!("{OWNER}.new"));
    std::fs::write(&new, own.as_bytes())?;
    std::fs::rename(&new, tree.join(OWNER))?;
    Ok(tree)
}

/// Stable, and unlike that of any other bucket, prefix or tenant.
fn name_of(origin: &Origin, prefix: &str, tenant: Option<&str>) -> String {
    let directory = origin.directory.as_deref().map(|path| path.as_os_str().as_bytes());
    let parts = [
        origin.endpoint.as_deref().map(str::as_bytes),
        origin.bucket.as_deref().map(str::as_bytes),
        directory,
        Some(prefix.as_bytes()),
        tenant.map(str::as_bytes),
    ];
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        let part = part.unwrap_or_default();
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let shown = origin.bucket.as_deref().unwrap_or("directory").bytes().take(NAME_SHOWN);
    let shown = shown.map(|c| if c.is_ascii_alphanumeric() || c == b'-' || c == b'.' { char::from(c) } else { '_' });
    let hash = hasher.finalize().to_hex();
    format!("{}-{}", shown.collect::<String>(), &hash[..32])
}

/// Removes the trees of tenants that `is_gone` names, unless a mount still uses them. Says how many.
pub(super) fn remove_of(root: &Path, is_gone: impl Fn(&str) -> bool) -> io::Result<usize> {
    let all = root.join(DIRECTORY);
    let lock = match File::open(&all) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        opened => opened?,
    };
    flock(&lock, FlockOperation::LockExclusive)?;
    let mut count = 0;
    for entry in std::fs::read_dir(&all)? {
        let tree = entry?.path();
        let Ok(origin) = std::fs::read(tree.join(ORIGIN)) else { continue };
        let Ok(origin) = serde_json::from_slice::<serde_json::Value>(&origin) else { continue };
        let is_wanted = origin["tenant"].as_str().is_none_or(|tenant| !is_gone(tenant));
        if is_wanted || owner(&tree).is_some_and(|owner| is_alive(root, &owner)) {
            continue;
        }
        // Nobody can use a tree without an origin for another's by mistake: it goes last.
        for dir in [FILES, OPEN] {
            std::fs::remove_dir_all(tree.join(dir))?;
        }
        std::fs::remove_dir_all(&tree)?;
        count += 1;
    }
    Ok(count)
}

/// The process directory that a tree is said to be used by.
fn owner(tree: &Path) -> Option<Vec<u8>> {
    std::fs::read(tree.join(OWNER)).ok()
}

/// Whether the mount with this staging directory lives, in a process or with its keeper: its directory is locked then.
fn is_alive(root: &Path, process: &[u8]) -> bool {
    if process.is_empty() || process.contains(&b'/') || process.contains(&0) {
        return false;
    }
    match File::open(root.join(OsStr::from_bytes(process))) {
        Ok(dir) => flock(&dir, FlockOperation::NonBlockingLockShared).is_err(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(bucket: &str) -> Origin {
        Origin { bucket: Some(bucket.to_owned()), ..Origin::default() }
    }

    fn process(root: &Path, name: &str) -> (PathBuf, File) {
        let own = root.join(name);
        std::fs::create_dir(&own).unwrap();
        let lock = File::open(&own).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        (own, lock)
    }

    #[test]
    fn a_tree_is_found_again_and_used_by_one_mount() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let claim = |own: &Path, bucket: &str, prefix: &str| claim(root, own, &origin(bucket), prefix, None).unwrap();
        let (one, lock) = process(root, "process-1-1");
        let first = claim(&one, "b", "");
        // The same mount, in another process.
        assert_eq!(claim(&one, "b", ""), first);
        assert_ne!(claim(&one, "b", "p/"), first);
        assert_ne!(claim(&one, "c", ""), first);
        let (two, _lock) = process(root, "process-2-2");
        let second = claim(&two, "b", "");
        assert_ne!(second, first);
        // Killed, and then removed.
        drop(lock);
        let (three, _lock) = process(root, "process-3-3");
        assert_eq!(claim(&three, "b", ""), first);
        std::fs::remove_dir(&two).unwrap();
        let (four, _lock) = process(root, "process-4-4");
        assert_eq!(claim(&four, "b", ""), second);
    }

    #[test]
    fn a_tenant_has_a_tree_of_its_own_which_goes_with_it() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let (one, lock) = process(root, "process-1-1");
        let (two, _lock) = process(root, "process-2-2");
        let (three, _lock) = process(root, "process-3-3");
        let of = |own: &Path, tenant| claim(root, own, &origin("b"), "", tenant).unwrap();
        let (a, b, nobody) = (of(&one, Some("a")), of(&two, Some("b")), of(&three, None));
        assert!(a != b && a != nobody && b != nobody);
        // In use; and those of nobody are not its.
        assert_eq!(remove_of(root, |_| true).unwrap(), 0);
        drop(lock);
        assert_eq!(remove_of(root, |tenant| tenant == "b").unwrap(), 0);
        std::os::unix::fs::symlink("/", a.join(FILES).join("link")).unwrap();
        assert_eq!(remove_of(root, |tenant| tenant == "a").unwrap(), 1);
        assert!(!a.exists() && b.exists() && nobody.exists() && Path::new("/").exists());
    }

    #[test]
    fn parts_of_a_name_do_not_run_together() {
        let name = |bucket: &str, prefix: &str| name_of(&origin(bucket), prefix, None);
        assert_ne!(name("ab", "c/"), name("a", "bc/"));
        assert!(name("../x", "").starts_with(".._x-"));
        assert_eq!(name("b", "p/"), name("b", "p/"));
    }
}
