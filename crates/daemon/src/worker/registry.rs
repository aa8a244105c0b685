//! Which mounts of this host are alive: one small file each, without secrets.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::log::older;

/// How long the log of a mount that ended badly is kept after its last line.
const LOG_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The process behind it.
    pub pid: u32,
    /// What is mounted.
    pub source: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// The sandbox that the path belongs to; `None` for the host itself.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// Since when, in seconds since 1970.
    pub started: u64,
    /// Where it logs.
    pub log_file: Option<PathBuf>,
}

/// The directory of entries and control sockets, for this user alone.
pub fn directory() -> anyhow::Result<PathBuf> {
    let uid = rustix::process::geteuid();
    let dir = if uid.is_root() {
        PathBuf::from("/run/sandpail")
    } else if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        PathBuf::from(runtime).join("sandpail")
    } else {
        std::env::temp_dir().join(format!("sandpail-{}", uid.as_raw()))
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("cannot make the runtime directory {}", dir.display()))?;
    // In a directory that everyone can write to, someone else may have been first.
    let owner = std::fs::symlink_metadata(&dir)?;
    anyhow::ensure!(
        owner.is_dir() && owner.uid() == uid.as_raw(),
        "the runtime directory {} belongs to someone else; remove it or set XDG_RUNTIME_DIR",
        dir.display()
    );
    keep_private(&dir, owner.mode())?;
    Ok(dir)
}

/// Whoever made the directory first: nobody else looks in, or locks its files.
fn keep_private(dir: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if mode & 0o077 != 0 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// The directory of what outlives mounts: staged bytes, provider profiles. Not made here.
pub fn state_directory() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/sandpail"));
    }
    let state = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")));
    Ok(state.context("HOME is not set")?.join("sandpail"))
}

/// The name of a mount's files in the directory.
pub fn name_of(pid: u32) -> String {
    format!("mount-{pid}")
}

/// Where a mount's process answers.
///
/// # Errors
/// Without a runtime directory.
pub fn socket_of(pid: u32) -> anyhow::Result<PathBuf> {
    Ok(directory()?.join(format!("{}.sock", name_of(pid))))
}

/// Where something appears that is mounted on the host or in a sandbox, for people.
pub fn shown_place(sandbox: Option<&str>, mountpoint: &Path) -> String {
    let inside = sandbox.map_or_else(String::new, |sandbox| format!("sandbox {sandbox}:"));
    format!("{inside}{}", mountpoint.display())
}

impl Entry {
    fn path(&self) -> anyhow::Result<PathBuf> {
        Ok(directory()?.join(format!("{}.json", name_of(self.pid))))
    }

    /// Where it appears, for people.
    pub fn shown_place(&self) -> String {
        shown_place(self.sandbox.as_deref(), &self.mountpoint)
    }

    pub fn write(&self) -> anyhow::Result<()> {
        let path = self.path()?;
        let new = path.with_extension("new");
        // Nobody shall read half of it.
        std::fs::write(&new, serde_json::to_vec(self)?)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the entry and the socket; the log stays only if it holds a warning.
    pub fn remove(&self) {
        let Ok(path) = self.path() else { return };
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_file(path.with_extension("sock"));
    }

    fn is_alive(&self) -> bool {
        let command = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let text = String::from_utf8_lossy(&command);
        text.contains("mount-worker") || text.contains("sandpail") || text.contains("--foreground")
    }
}

/// Removes what mounts that were killed have left and nobody reads any more.
pub fn prune() {
    let Ok(files) = directory().and_then(|dir| Ok(std::fs::read_dir(dir)?)) else { return };
    for path in files.flatten().map(|file| file.path()) {
        let is_over = match path.extension().and_then(|extension| extension.to_str()) {
            Some("log") => std::fs::metadata(&path)
                .and_then(|meta| meta.modified())
                .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > LOG_AGE_MAX)),
            // Living mounts hold a lock on theirs.
            Some("changes") => std::fs::File::open(&path).is_ok_and(|file| file.try_lock().is_ok()),
            _ => false,
        };
        if is_over {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes a log that tells nothing of interest.
pub fn remove_quiet_log(log: &Path) {
    let is_quiet = |text: String| !text.contains(" WARN ") && !text.contains(" ERROR ");
    if older(log).exists() {
        // So long a log is of interest.
        return;
    }
    if std::fs::read_to_string(log).is_ok_and(is_quiet) {
        let _ = std::fs::remove_file(log);
    }
}

/// The mounts that are alive; entries of dead ones are removed.
pub fn entries() -> anyhow::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(directory()?)?.flatten() {
        let path = file.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let Ok(entry) = serde_json::from_slice::<Entry>(&std::fs::read(&path).unwrap_or_default()) else { continue };
        if entry.is_alive() { found.push(entry) } else { entry.remove() }
    }
    found.sort_by_key(|entry| entry.started);
    Ok(found)
}

pub fn print_list() -> anyhow::Result<()> {
    let entries = entries()?;
    if entries.is_empty() {
        println!("no mounts");
    }
    for entry in entries {
        println!("{}\t{}\tpid {}", entry.shown_place(), entry.source, entry.pid);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_made_private() {
        let dir = tempfile::tempdir().unwrap();
        let mode = || std::fs::metadata(dir.path()).unwrap().mode() & 0o777;
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        keep_private(dir.path(), mode()).unwrap();
        assert_eq!(mode(), 0o700);
    }
}
