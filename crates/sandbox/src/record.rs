//! What a daemon writes down about a sandbox, so that the next daemon knows it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{IdMap, ProcessInfo, SandboxSpec};

/// Name of the file in a sandbox's directory.
const FILE: &str = "record.json";

/// All that cannot be asked from init.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The host's pid of init; 0 while it is being started.
    pub(crate) pid: i32,
    /// When that process started, in the kernel's ticks since the host's: a pid alone may be somebody else's by now.
    pub(crate) start_ticks: u64,
    pub(crate) ids: IdMap,
    pub(crate) spec: SandboxSpec,
    /// Variables that the root file system came with.
    #[serde(default)]
    pub(crate) rootfs_env: BTreeMap<String, String>,
    /// Variables that the daemon gives.
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
    /// How often these were changed.
    #[serde(default)]
    pub(crate) environment_count: u32,
    pub(crate) sessions: BTreeMap<String, SessionRecord>,
    pub(crate) processes: BTreeMap<String, ProcessRecord>,
    /// What was attached and not detached, in that order.
    #[serde(default)]
    pub(crate) attachments: Vec<Attachment>,
}

/// A mount that was attached. The guest may make its path lead elsewhere; these numbers it cannot change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// Where, as it was asked for.
    pub(crate) path: PathBuf,
    /// The kernel's id of the mount. It may be another's when this mount is gone.
    pub(crate) mount: u64,
    /// Major and minor number of its file system.
    pub(crate) device: (u32, u32),
}

/// A session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SessionRecord {
    /// Where it began.
    pub(crate) cwd: PathBuf,
    /// What it began with.
    pub(crate) env: BTreeMap<String, String>,
    /// The child of init that is its terminal's shell.
    pub(crate) terminal: Option<u64>,
}

/// A background process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessRecord {
    /// The child of init that it is.
    pub(crate) child: u64,
    pub(crate) info: ProcessInfo,
}

impl Record {
    /// # Errors
    /// When there is none, or nonsense.
    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(directory.join(FILE))?)?)
    }

    /// Replaces the record whole. It need not survive the host, which the sandbox does not survive either.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        let new = directory.join("record.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, directory.join(FILE))
    }
}

/// When a process started, in ticks since the host's start; `None` if there is no such process.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22; the name (field 2) may hold spaces and parentheses. 19 fields after the state (field 3).
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_started() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(start_ticks(pid).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_ticks(i32::MAX), None);
    }
}
