//! What makes sandboxes, and finds them again.

use std::fs::{self, DirBuilder};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use crate::cgroup::Cgroups;
use crate::record::Record;
use crate::removal;
use crate::start::{self, Starter, system};
use crate::{Recovered, Sandbox, SandboxError, SandboxId, SandboxSpec};

/// Beside the sandboxes' directories: what they share. No sandbox's id has an underscore.
pub(crate) const BASE_DIR: &str = "_base";

/// How sandboxes are made on this host.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Where sandboxes keep their disks and records, one directory each, for root alone.
    pub state_dir: PathBuf,
    /// The executable that runs [`crate::init_main`] when its first argument is `sandbox-init`.
    pub program: PathBuf,
    /// Directories of the host that no sandbox may see, besides those that are never shown and `state_dir`. They may be
    /// named through links; directories in them cannot be exposed.
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
pub struct Runtime {
    shared: Arc<Shared>,
}

/// What all sandboxes of a runtime need for their end.
#[derive(Debug)]
pub(crate) struct Shared {
    options: RuntimeOptions,
    cgroups: Cgroups,
}

impl Runtime {
    /// Checks the host.
    ///
    /// # Errors
    /// [`SandboxError::Host`] if this process may not make sandboxes; the text says what is missing.
    pub fn new(options: RuntimeOptions) -> Result<Self, SandboxError> {
        if !rustix::process::geteuid().is_root() {
            return Err(SandboxError::Host("sandboxes need root: run the daemon as root".to_owned()));
        }
        let state_dir = &options.state_dir;
        let name = state_dir.display().to_string();
        DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(system(format!("making {name}")))?;
        fs::set_permissions(state_dir, fs::Permissions::from_mode(0o700)).map_err(system(format!("mode of {name}")))?;
        let state_dir = state_dir.canonicalize().map_err(system(name))?;
        let program = options.program.canonicalize().map_err(system(options.program.display().to_string()))?;
        let mut hidden = options.hidden;
        hidden.push(state_dir.clone());
        let options = RuntimeOptions { state_dir, program, hidden };
        Ok(Self { shared: Arc::new(Shared { options, cgroups: Cgroups::detect() }) })
    }

    /// What this host can do.
    pub fn findings() -> Vec<Finding> {
        crate::findings::all()
    }

    /// Makes a sandbox and returns when it takes commands. On failure nothing is left of it.
    ///
    /// # Errors
    /// [`SandboxError::Host`], [`SandboxError::System`].
    pub async fn create(&self, id: SandboxId, spec: SandboxSpec) -> Result<Sandbox, SandboxError> {
        let directory = self.shared.directory(&id);
        if directory.exists() {
            return Err(SandboxError::Host(format!("the sandbox {id} is there already")));
        }
        // In a task of its own: a caller that goes away must not leave half a sandbox.
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move {
            match shared.start(&id, spec).await {
                Ok(sandbox) => Ok(sandbox),
                Err(error) => {
                    if let Err(error) = shared.remove(&id).await {
                        tracing::warn!(%id, %error, "what is left of a failed start could not be removed");
                    }
                    Err(error)
                }
            }
        });
        task.await.map_err(|error| system("the start of a sandbox")(io::Error::other(error)))?
    }

    /// Finds the sandboxes of a daemon that ended, and removes what is left of those that died.
    ///
    /// # Errors
    /// When the state directory cannot be read.
    pub async fn recover(&self) -> Result<Recovered, SandboxError> {
        let mut recovered = Recovered::default();
        let entries = fs::read_dir(&self.shared.options.state_dir).map_err(system("the state directory"))?;
        for entry in entries {
            let entry = entry.map_err(system("the state directory"))?;
            let Some(id) = entry.file_name().to_str().and_then(|name| SandboxId::parse(name).ok()) else { continue };
            match self.shared.find(&id).await {
                Ok(Some(sandbox)) => recovered.living.push(sandbox),
                found => {
                    if let Err(error) = found {
                        tracing::warn!(%id, %error, "a sandbox cannot be reached and is removed");
                    }
                    match self.shared.remove(&id).await {
                        Ok(()) => recovered.removed.push(id),
                        Err(error) => tracing::warn!(%id, %error, "a dead sandbox could not be removed"),
                    }
                }
            }
        }
        Ok(recovered)
    }
}

impl Shared {
    /// Where a sandbox keeps its things.
    pub(crate) fn directory(&self, id: &SandboxId) -> PathBuf {
        self.options.state_dir.join(id.as_str())
    }

    /// Groups of several daemons live side by side, and ids are unique in each of them only.
    fn cgroup(&self, id: &SandboxId) -> String {
        let mut hasher = DefaultHasher::new();
        self.options.state_dir.hash(&mut hasher);
        format!("{id}.{:08x}", hasher.finish() & 0xffff_ffff)
    }

    async fn start(self: &Arc<Self>, id: &SandboxId, spec: SandboxSpec) -> Result<Sandbox, SandboxError> {
        let directory = self.directory(id);
        let RuntimeOptions { state_dir, program, hidden } = &self.options;
        let starter = Starter { program, state_dir, hidden, cgroups: &self.cgroups };
        let (record, init) = starter.start(id, spec, &directory, &self.cgroup(id)).await?;
        Sandbox::connect(id.clone(), Arc::clone(self), record, init).await
    }

    /// Finds a living sandbox of an earlier daemon; `None` if it died.
    async fn find(self: &Arc<Self>, id: &SandboxId) -> Result<Option<Sandbox>, SandboxError> {
        let record = Record::read(&self.directory(id)).map_err(system("the sandbox's record"))?;
        let Some(pidfd) = start::find(record.pid, record.start_ticks) else { return Ok(None) };
        Sandbox::connect(id.clone(), Arc::clone(self), record, pidfd).await.map(Some)
    }

    /// Kills whatever lives of a sandbox, and removes all that is known of it.
    pub(crate) async fn remove(&self, id: &SandboxId) -> Result<(), SandboxError> {
        let directory = self.directory(id);
        if let Ok(record) = Record::read(&directory)
            && let Some(pidfd) = start::find(record.pid, record.start_ticks)
        {
            start::kill(&pidfd).await?;
        }
        self.cgroups.remove(&self.cgroup(id)).map_err(system("removing control groups"))?;
        let removed = tokio::task::spawn_blocking(move || removal::remove(&directory)).await;
        removed.map_err(io::Error::other).and_then(|removed| removed).map_err(system("removing a sandbox's files"))
    }
}
