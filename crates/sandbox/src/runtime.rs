//! What makes sandboxes, and finds them again.

use std::path::PathBuf;

use crate::{Recovered, Sandbox, SandboxError, SandboxId, SandboxSpec};

/// How sandboxes are made on this host.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Where sandboxes keep their disks and records, one directory each, for root alone.
    pub state_dir: PathBuf,
    /// The executable that runs [`crate::init_main`] when its first argument is `sandbox-init`.
    pub program: PathBuf,
    /// Directories of the host that no sandbox may see, besides those that are never shown.
    pub hidden: Vec<PathBuf>,
}

/// One thing that this host can or cannot do, for `doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: `user namespaces`, `cgroup memory`, …
    pub what: &'static str,
    /// Whether it is there.
    pub is_ok: bool,
    /// What was found, and what to change.
    pub detail: String,
}

/// Makes sandboxes.
#[derive(Clone, Debug)]
pub struct Runtime {}

impl Runtime {
    /// Checks the host.
    ///
    /// # Errors
    /// [`SandboxError::Host`] if this process may not make sandboxes; the text says what is missing.
    pub fn new(_options: RuntimeOptions) -> Result<Self, SandboxError> {
        todo!()
    }

    /// What this host can do.
    pub fn findings() -> Vec<Finding> {
        todo!()
    }

    /// Makes a sandbox and returns when it takes commands. On failure nothing is left of it.
    ///
    /// # Errors
    /// [`SandboxError::Host`], [`SandboxError::System`].
    pub async fn create(&self, _id: SandboxId, _spec: SandboxSpec) -> Result<Sandbox, SandboxError> {
        todo!()
    }

    /// Finds the sandboxes of a daemon that ended, and removes what is left of those that died.
    ///
    /// # Errors
    /// When the state directory cannot be read.
    pub async fn recover(&self) -> Result<Recovered, SandboxError> {
        todo!()
    }
}
