//! Which mounts of this host are alive: one small file each, without secrets.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The process behind it.
    pub(crate) pid: u32,
    /// What is mounted.
    pub(crate) source: String,
    /// Where.
    pub(crate) mountpoint: PathBuf,
    /// Since when, in seconds since 1970.
    pub(crate) started: u64,
    /// Where it logs.
    pub(crate) log_file: Option<PathBuf>,
}

/// The directory of entries and control sockets, for this user alone.
pub(crate) fn directory() -> anyhow::Result<PathBuf> {
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
    Ok(dir)
}

/// The name of a mount's files in the directory.
pub(crate) fn name_of(pid: u32) -> String {
    format!("mount-{pid}")
}

pub(crate) fn socket_of(pid: u32) -> anyhow::Result<PathBuf> {
    Ok(directory()?.join(format!("{}.sock", name_of(pid))))
}

impl Entry {
    fn path(&self) -> anyhow::Result<PathBuf> {
        Ok(directory()?.join(format!("{}.json", name_of(self.pid))))
    }

    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let path = self.path()?;
        std::fs::write(&path, serde_json::to_vec(self)?).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the entry and the socket; the log stays only if it holds a warning.
    pub(crate) fn remove(&self) {
        let Ok(path) = self.path() else { return };
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_file(path.with_extension("sock"));
        let log = path.with_extension("log");
        let is_quiet = |text: String| !text.contains(" WARN ") && !text.contains(" ERROR ");
        if std::fs::read_to_string(&log).is_ok_and(is_quiet) {
            let _ = std::fs::remove_file(log);
        }
    }

    fn is_alive(&self) -> bool {
        let command = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let text = String::from_utf8_lossy(&command);
        text.contains("mount-worker") || text.contains("sandpail") || text.contains("--foreground")
    }
}

/// The mounts that are alive; entries of dead ones are removed.
pub(crate) fn entries() -> anyhow::Result<Vec<Entry>> {
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

/// The mount on this directory, if it is one of ours.
pub(crate) fn find(mountpoint: &Path) -> anyhow::Result<Option<Entry>> {
    Ok(entries()?.into_iter().rev().find(|entry| entry.mountpoint == mountpoint))
}

pub(crate) fn print_list() -> anyhow::Result<()> {
    let entries = entries()?;
    if entries.is_empty() {
        println!("no mounts");
    }
    for entry in entries {
        println!("{}\t{}\tpid {}", entry.mountpoint.display(), entry.source, entry.pid);
    }
    Ok(())
}
