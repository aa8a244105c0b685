//! The barrier: everything that was written to a mount before the call is in the bucket when it returns.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use sandpail_sandbox::{Sandbox, SandboxError, SandboxId};
use sandpail_spec::MountPath;
use sandpail_sync::SyncError;

use super::Mount;
use super::leave::drained;
use super::state::MountState;
use crate::sandboxes::Inner;
use crate::{DaemonError, MountError, MountSynced};

/// Stores what a mount has not stored. It stays usable meanwhile, and other calls for the sandbox go on.
pub(crate) async fn sync(inner: &Inner, id: &SandboxId, mount_path: &str) -> Result<MountSynced, DaemonError> {
    inner.check_running()?;
    let path = MountPath::parse(mount_path).map_err(sandpail_spec::InvalidMount::from)?;
    let nothing = || DaemonError::from(MountError::nothing_at(path.as_str()));
    let slot = inner.slot(id).ok_or_else(nothing)?;
    let mount = slot.mount(&path).ok_or_else(nothing)?;
    let sandbox = slot.living().ok_or(SandboxError::Gone)?;
    match mount.state() {
        MountState::Reserved | MountState::Starting => return Err(nothing()),
        MountState::Failed { reason } => {
            let why = format!("the process behind it ended ({reason}); what it had not stored is kept in staging");
            return Err(MountError::not_synced(path.as_str(), why).into());
        }
        MountState::Serving | MountState::Draining | MountState::Leaving => {}
    }
    let timeout = inner.config().mounts.drain_timeout;
    let synced = match mount.sync() {
        Some(local) => carried_over(&local, timeout).await,
        None => stored(&sandbox, &mount, timeout).await,
    };
    synced.map_err(|why| MountError::not_synced(path.as_str(), why).into())
}

async fn stored(sandbox: &Sandbox, mount: &Arc<Mount>, timeout: Duration) -> Result<MountSynced, String> {
    let started = Instant::now();
    let root = sandbox.open_directory(mount.path()).await.map_err(|error| error.to_string())?;
    flush_pages(root, timeout).await?;
    let worker = mount.worker().ok_or("there is no process behind it")?;
    let left = timeout.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
    let answer = drained(mount, worker, left).await.1.map_err(|why| format!("not everything is stored: {why}"))?;
    Ok(MountSynced { stored: answer.stored as u64, failed: answer.failed })
}

/// Pages that were changed through a shared mapping are still the kernel's; nobody has told the mount's process.
async fn flush_pages(root: OwnedFd, timeout: Duration) -> Result<(), String> {
    let flushing = tokio::task::spawn_blocking(move || {
        // The one at hand may stand for the path only.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::syncfs(rustix::fs::openat(root, c".", flags, Mode::empty())?)
    });
    match tokio::time::timeout(timeout, flushing).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(format!("what was written through mappings cannot be had: {error}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the mount does not answer within {timeout:?}")),
    }
}

async fn carried_over(local: &sandpail_sync::Sync, timeout: Duration) -> Result<MountSynced, String> {
    let before = local.report().uploaded;
    match tokio::time::timeout(timeout, local.barrier()).await {
        Ok(Ok(report)) => Ok(MountSynced { stored: report.uploaded.saturating_sub(before), failed: Vec::new() }),
        Ok(Err(SyncError::Incomplete { failed })) => {
            Ok(MountSynced { stored: local.report().uploaded.saturating_sub(before), failed })
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("not everything is carried over within {timeout:?}")),
    }
}
