//! What must be known after a restart: one JSON file for each sandbox, without secrets, and the lock that keeps a second
//! daemon away.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sandpail_sandbox::SandboxId;
use sandpail_spec::{MountMode, MountPath};
use serde::{Deserialize, Serialize};

use crate::DaemonError;

/// A sandbox, and what is mounted in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    pub(crate) created_ms: u64,
    pub(crate) is_warm: bool,
    pub(crate) mounts: Vec<MountRecord>,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountRecord {
    pub(crate) shown: Shown,
    /// The topmost directory that was made for it.
    pub(crate) made: Option<PathBuf>,
    /// `false` while it is being made: a restarted daemon takes it back.
    pub(crate) is_serving: bool,
    /// The process behind it.
    pub(crate) worker: Option<WorkerRecord>,
    /// The file system's device number, by which the mount is known again.
    pub(crate) device: u64,
}

/// What everybody may know of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown {
    /// Random letters and digits; empty for a mount of an earlier version, which no S3 client reaches.
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) path: MountPath,
    pub(crate) mode: MountMode,
    pub(crate) bucket: String,
    pub(crate) binding: Option<String>,
    pub(crate) endpoint: Option<String>,
    /// Without `/` in front.
    pub(crate) prefix: String,
    pub(crate) read_only: bool,
}

/// A process, told apart from a later one of the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerRecord {
    pub(crate) pid: i32,
    /// When it started, in clock ticks since the machine did.
    pub(crate) started: u64,
}

/// The daemon's directory, held for as long as this lives.
#[derive(Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
    _lock: File,
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> DaemonError {
    let what = format!("cannot {what} {}", path.display());
    move |error| DaemonError::State(format!("{what}: {error}"))
}

impl StateDir {
    /// Opens the directory, or makes it.
    pub(crate) fn open(root: &Path) -> Result<Self, DaemonError> {
        let root = std::path::absolute(root).map_err(failed("use", root))?;
        for dir in ["", "registry", "logs", "buckets", "sync", "network"] {
            let dir = root.join(dir);
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed("make", &dir))?;
        }
        let path = root.join("lock");
        let lock =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => DaemonError::State(format!(
                "another daemon uses {}; stop it, or give another state_dir",
                root.display()
            )),
            std::fs::TryLockError::Error(error) => failed("lock", &path)(error),
        })?;
        Ok(Self { root, _lock: lock })
    }

    /// A file or directory of it.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    fn record_file(&self, id: &SandboxId) -> PathBuf {
        self.join("registry").join(format!("{id}.json"))
    }

    /// Writes a record whole: a reader sees the old one or the new one.
    pub(crate) fn write(&self, id: &SandboxId, record: &SandboxRecord) -> Result<(), DaemonError> {
        let path = self.record_file(id);
        let write = || {
            let new = tempfile::NamedTempFile::new_in(self.join("registry"))?;
            serde_json::to_writer(new.as_file(), record)?;
            new.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(failed("write", &path))
    }

    /// Removes a record; one that is not there is no error.
    pub(crate) fn remove(&self, id: &SandboxId) -> Result<(), DaemonError> {
        let path = self.record_file(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// All records. One that makes no sense is told in the log and left for people to look at.
    pub(crate) fn records(&self) -> Result<Vec<(SandboxId, SandboxRecord)>, DaemonError> {
        let dir = self.join("registry");
        let mut found = Vec::new();
        for file in std::fs::read_dir(&dir).map_err(failed("read", &dir))?.flatten() {
            let path = file.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // A temporary file of a daemon that was killed.
                let _ = std::fs::remove_file(&path);
                continue;
            }
            let read = std::fs::read(&path).map_err(failed("read", &path))?;
            match serde_json::from_slice::<SandboxRecord>(&read) {
                Ok(record) => match SandboxId::parse(&record.id) {
                    Ok(id) => found.push((id, record)),
                    Err(error) => tracing::error!(path = %path.display(), %error, "a record without a sandbox"),
                },
                Err(error) => tracing::error!(path = %path.display(), %error, "a record makes no sense"),
            }
        }
        Ok(found)
    }

    /// Whether the directory can be written.
    pub(crate) fn check(&self) -> Result<(), DaemonError> {
        tempfile::tempfile_in(&self.root).map(drop).map_err(failed("write into", &self.root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_the_second_daemon_stays_out() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let id = SandboxId::parse("abc").unwrap();
        let record = SandboxRecord {
            id: id.to_string(),
            created_ms: 7,
            is_warm: false,
            mounts: vec![MountRecord {
                shown: Shown {
                    id: "m1".to_owned(),
                    path: MountPath::parse("/my data").unwrap(),
                    mode: MountMode::EndpointProxy,
                    bucket: "b".to_owned(),
                    binding: None,
                    endpoint: Some("http://x".to_owned()),
                    prefix: "a/".to_owned(),
                    read_only: true,
                },
                made: Some("/my data".into()),
                is_serving: true,
                worker: Some(WorkerRecord { pid: 1, started: 2 }),
                device: 3,
            }],
        };
        state.write(&id, &record).unwrap();
        std::fs::write(dir.path().join("registry/x.json"), "{").unwrap();
        assert_eq!(state.records().unwrap(), [(id.clone(), record)]);
        assert!(StateDir::open(dir.path()).unwrap_err().to_string().contains("another daemon uses"));
        state.remove(&id).unwrap();
        state.remove(&id).unwrap();
        assert!(state.records().unwrap().is_empty());
        drop(state);
        StateDir::open(dir.path()).unwrap().check().unwrap();
    }
}
