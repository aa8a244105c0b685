//! Finding mounts again after the daemon was restarted, and cleaning what died with it.

use std::sync::Arc;
use std::time::Duration;

use sandpail_sandbox::Sandbox;

use super::process::Worker;
use super::state::MountState;
use super::{Engine, Mount, attach, is_local, route, watch};
use crate::DaemonError;
use crate::events::now_ms;
use crate::network::{self, SandboxNetwork};
use crate::sandboxes::{Inner, Slot};
use crate::state::{MountRecord, SandboxRecord};

/// How long a worker whose sandbox is gone may take to store what it has.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);

/// Takes in what an earlier daemon left.
pub(crate) async fn recover(inner: &Arc<Inner>) -> Result<(), DaemonError> {
    let found = inner.runtime.recover().await?;
    for id in &found.removed {
        inner.events.tell("sandbox.cleaned", id, None, "it had died; what it left is removed");
    }
    let mut records = inner.state.records()?;
    for sandbox in found.living {
        let at = records.iter().position(|(id, _)| id == sandbox.id());
        let record = at.map(|at| records.swap_remove(at).1);
        adopt(inner, sandbox, record).await;
    }
    for (id, record) in records {
        for mount in &record.mounts {
            if let Some(worker) = mount.worker.and_then(Worker::adopt) {
                // Its mount went with the sandbox: it ends by itself, after it has stored what it can.
                if worker.ended_within(ORPHAN_TIMEOUT).await.is_none() {
                    worker.end(ORPHAN_TIMEOUT).await;
                }
            }
        }
        inner.state.remove(&id)?;
    }
    network::prune(inner);
    inner.remove_local_trees().await;
    Ok(())
}

async fn adopt(inner: &Arc<Inner>, sandbox: Sandbox, record: Option<SandboxRecord>) {
    let created_ms = record.as_ref().map_or_else(now_ms, |record| record.created_ms);
    let slot = inner.insert(Slot::new(sandbox.id().clone(), created_ms));
    slot.now().sandbox = Some(sandbox.clone());
    slot.now().is_warm = record.as_ref().is_some_and(|record| record.is_warm);
    slot.now().network = SandboxNetwork::load(inner, &slot.id);
    let _turn = slot.turn.lock().await;
    for mount in record.map(|record| record.mounts).unwrap_or_default() {
        adopt_mount(inner, &slot, &sandbox, mount).await;
    }
    let network = slot.now().network.clone().filter(|network| network.lets_out());
    if let Some(network) = network
        && let Err(error) = network.open(&inner.config(), &sandbox).await
    {
        inner.events.tell("sandbox.offline", &slot.id, None, error.to_string());
    }
    inner.persist_or_warn(&slot);
    inner.watch(&slot, &sandbox);
    inner.events.tell("sandbox.found", &slot.id, None, "it lived on without the daemon");
}

async fn adopt_mount(inner: &Arc<Inner>, slot: &Arc<Slot>, sandbox: &Sandbox, record: MountRecord) {
    let worker = record.worker.and_then(Worker::adopt);
    let mount = Arc::new(Mount::new(record.shown.clone()));
    let path = mount.shown.path.clone();
    if !record.is_serving {
        take_back(inner, slot, sandbox, &mount, &record, worker).await;
        return;
    }
    {
        let mut now = mount.now();
        now.made = record.made;
        now.device = record.device;
        now.is_attached = true;
    }
    let proven = match &worker {
        Some(_) => attach::prove(sandbox, mount.path(), record.device).await,
        None if is_local(&mount.shown) => attach::resume_sync(inner, slot, sandbox, &mount).await,
        None => Err(crate::MountError::failed("the process behind it died while the daemon was away").into()),
    };
    match proven {
        Ok(()) => {
            mount.now().state = MountState::Serving;
            if let Some(worker) = worker {
                mount.now().engine = Some(Engine::Worker(worker.clone()));
                if inner.config().mounts.survive {
                    match worker.keep().await {
                        Ok(kept) => mount.now().kept = Some(Arc::new(kept)),
                        // Of an older version, or told not to.
                        Err(why) => {
                            tracing::warn!(path = path.as_str(), why, "the mount will fail if its process is killed")
                        }
                    }
                }
                match route::reopen(inner, slot, sandbox, &mount.shown, &worker).await {
                    Ok(door) => mount.now().door = door,
                    Err(why) => {
                        let detail = format!("S3 clients in the sandbox do not reach it any more: {why}");
                        inner.events.tell("mount.closed", &slot.id, Some(path.as_str()), detail);
                    }
                }
                watch(inner, slot, &mount, &worker);
            }
            inner.events.tell("mount.found", &slot.id, Some(path.as_str()), "");
        }
        Err(error) => {
            // It stays where it is, and refuses every call: the directory below takes no writes.
            let reason = error.to_string();
            inner.events.tell("mount.failed", &slot.id, Some(path.as_str()), reason.clone());
            mount.now().state = MountState::Failed { reason };
            if let Some(worker) = worker {
                worker.end(ORPHAN_TIMEOUT).await;
            }
        }
    }
    slot.now().mounts.insert(path, mount);
}

/// A mount that was being made: nobody was told that it is there.
async fn take_back(
    inner: &Arc<Inner>,
    slot: &Slot,
    sandbox: &Sandbox,
    mount: &Mount,
    record: &MountRecord,
    worker: Option<Worker>,
) {
    let path = mount.shown.path.as_str();
    // Without a device there was nothing to attach yet: what is at the path is somebody else's. With one it may still not
    // have been attached: it is taken away only if the sandbox shows this very file system at the path. (If its process is
    // dead, nobody answers; then it stays, refuses every call, and goes with the sandbox.)
    let is_there =
        record.device != 0 && worker.is_some() && attach::prove(sandbox, mount.path(), record.device).await.is_ok();
    if is_there && let Err(error) = sandbox.detach(mount.path(), record.made.as_deref(), true).await {
        tracing::debug!(sandbox = slot.id.as_str(), path, %error, "nothing to detach");
    }
    if let Some(worker) = worker {
        worker.end(ORPHAN_TIMEOUT).await;
    }
    inner.events.tell("mount.cleaned", &slot.id, Some(path), "it was not ready when the daemon ended");
}
