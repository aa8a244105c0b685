//! Making a mount.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sandpail_sandbox::{Sandbox, SandboxError, SandboxId};
use sandpail_spec::{
    Binding, BindingName, InvalidMount, MountPath, MountPlan, MountRequest, Surroundings, plan as plan_mount,
};
use sandpail_sync::{Sync, SyncError, SyncOptions};

use super::device::{self, Device, DeviceOptions};
use super::process::Worker;
use super::worker_plan::{open_store, shown_source, worker_plan};
use super::{Action, Engine, Mount, MountEvent, is_local, leave, sync_state_file, watch};
use super::{own, route};
use crate::config::Config;
use crate::sandboxes::{Inner, Slot};
use crate::worker::start::Given;
use crate::worker::store_cause;
use crate::{DaemonError, MountError};

/// How long the first look through the sandbox's path may take.
const PROOF_TIMEOUT: Duration = Duration::from_secs(15);

/// What a plan depends on.
struct Around<'a> {
    config: &'a Config,
    /// `None`: paths are not looked at.
    slot: Option<&'a Slot>,
}

impl Surroundings for Around<'_> {
    fn secret(&self, name: &str) -> Option<String> {
        self.config.secrets.get(name).map(|secret| secret.expose().to_owned())
    }

    fn binding(&self, name: &BindingName) -> Result<Option<Binding>, InvalidMount> {
        self.config.binding(name)
    }

    fn mounted_at(&self, path: &MountPath) -> Option<String> {
        // A failed mount gives way.
        let mount = self.slot?.mount(path).filter(|mount| !mount.is_failed())?;
        Some(mount.shown.bucket.clone())
    }
}

/// The path is free again when this goes, unless the mount stays.
struct Reservation<'a> {
    slot: &'a Slot,
    mount: Arc<Mount>,
    stays: bool,
}

impl<'a> Reservation<'a> {
    fn new(slot: &'a Slot, plan: &MountPlan) -> Result<Self, DaemonError> {
        let mount = Arc::new(Mount::reserved(plan).map_err(|error| failed(format!("no random bytes: {error}")))?);
        slot.now().mounts.insert(plan.path.clone(), Arc::clone(&mount));
        Ok(Self { slot, mount, stays: false })
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.stays {
            self.slot.now().mounts.remove(&self.mount.shown.path);
        }
    }
}

/// Mounts a bucket, and returns when the mount has been used once through the sandbox's own path.
pub(crate) async fn mount(inner: &Arc<Inner>, id: &SandboxId, request: MountRequest) -> Result<(), DaemonError> {
    let config = inner.config();
    // What is wrong with the call itself is found before a sandbox is started for it.
    plan_mount(&request, &Around { config: &config, slot: None })?;
    loop {
        let (slot, sandbox) = inner.sandbox(id).await?;
        let _turn = slot.turn.lock().await;
        if slot.now().is_gone {
            // It was destroyed while this call waited: its name means a new sandbox.
            continue;
        }
        let plan = plan_mount(&request, &Around { config: &config, slot: Some(&slot) })?;
        drop(request);
        return mount_planned(inner, &slot, &sandbox, &plan).await;
    }
}

async fn mount_planned(
    inner: &Arc<Inner>,
    slot: &Arc<Slot>,
    sandbox: &Sandbox,
    plan: &MountPlan,
) -> Result<(), DaemonError> {
    if let Some(failed) = slot.mount(&plan.path) {
        leave::clear_failed(inner, slot, &failed).await?;
    }
    let mut reservation = Reservation::new(slot, plan)?;
    let mount = Arc::clone(&reservation.mount);
    let made = match is_local(&mount.shown) {
        true => start_sync(inner, slot, sandbox, plan, &mount).await,
        false => attach(inner, slot, sandbox, plan, &mount).await,
    };
    let opened = match made {
        Ok(()) => route::open(inner, slot, sandbox, &mount.shown, &plan.place, &plan.s3fs)
            .await
            .map_err(|why| failed(format!("S3 clients in the sandbox cannot be let to it: {why}"))),
        Err(error) => Err(error),
    };
    let proven = opened.and_then(|door| {
        mount.now().door = door;
        if mount.on(MountEvent::Proven) == Action::Refuse {
            return Err(failed("the process behind it ended at once"));
        }
        inner.persist(slot)
    });
    if let Err(error) = proven {
        take_back(inner, slot, sandbox, &mount).await;
        drop(reservation);
        inner.persist_or_warn(slot);
        return Err(error);
    }
    reservation.stays = true;
    let detail = format!("{} of {}", mount.shown.mode.as_str(), mount.shown.bucket);
    inner.events.tell("mount.serving", &slot.id, Some(plan.path.as_str()), detail);
    Ok(())
}

fn failed(cause: impl std::fmt::Display) -> DaemonError {
    MountError::failed(cause).into()
}

/// Makes the file system, starts its process, attaches and proves it. What stands in `mount` at an error is to be taken
/// back.
async fn attach(
    inner: &Arc<Inner>,
    slot: &Arc<Slot>,
    sandbox: &Sandbox,
    plan: &MountPlan,
    mount: &Arc<Mount>,
) -> Result<(), DaemonError> {
    let options = DeviceOptions { source: shown_source(plan), read_only: plan.read_only, no_exec: plan.s3fs.no_exec };
    let made = tokio::task::spawn_blocking(move || device::open(&options)).await.map_err(failed)?;
    let Device { requests, mount: detached } =
        made.map_err(|error| failed(format!("the file system cannot be made: {error}")))?;
    let told = worker_plan(inner, slot, sandbox, plan).map_err(failed)?;
    let starting = Worker::start(&inner.program).map_err(failed)?;
    let worker = starting.serve(&told, Given::Device(&requests)).await.map_err(failed)?;
    let survives = told.survives;
    drop(told);
    // Without one that is kept the worker holds the only one: when it ends, nobody waits for answers.
    drop(requests);
    mount.now().engine = Some(Engine::Worker(worker.clone()));
    if survives {
        mount.now().kept = Some(Arc::new(worker.keep().await.map_err(failed)?));
    }
    mount.on(MountEvent::Spawned);
    watch(inner, slot, mount, &worker);
    // From here on something could be left behind by a daemon that is killed.
    inner.persist(slot)?;
    let own = detached.try_clone().map_err(|error| failed(format!("no descriptor: {error}")))?;
    let device = ask(own, "the mount does not answer").await?;
    device::raise_read_ahead(device);
    let path = mount.path();
    // Before it is attached: without the number a later daemon could not know it again, and would not touch it.
    mount.now().device = device;
    inner.persist(slot)?;
    let made = sandbox
        .attach(detached, path)
        .await
        .map_err(|error| failed(format!("it cannot be attached at {}: {error}", path.display())))?;
    {
        let mut now = mount.now();
        now.made = made;
        now.is_attached = true;
    }
    prove(sandbox, path, device).await
}

/// Whether the sandbox's own view of `path` is this file system, and it answers there.
pub(super) async fn prove(sandbox: &Sandbox, path: &Path, device: u64) -> Result<(), DaemonError> {
    let opening = tokio::time::timeout(PROOF_TIMEOUT, sandbox.open_directory(path));
    let directory = match opening.await {
        Ok(opened) => opened.map_err(|error| failed(format!("it cannot be used at {}: {error}", path.display())))?,
        Err(_) => return Err(failed(format!("timeout: {} does not answer", path.display()))),
    };
    let seen = ask(directory, "the mount does not answer in the sandbox").await?;
    if seen != device {
        return Err(failed(format!("{} in the sandbox is another file system", path.display())));
    }
    Ok(())
}

/// Asks a file system for its root, for a while.
async fn ask(directory: OwnedFd, what: &str) -> Result<u64, DaemonError> {
    let asking = tokio::task::spawn_blocking(move || device::ask_root(&directory));
    match tokio::time::timeout(PROOF_TIMEOUT, asking).await {
        Ok(Ok(Ok(device))) => Ok(device),
        Ok(Ok(Err(error))) => Err(failed(format!("{what}: {error}"))),
        Ok(Err(error)) => Err(failed(format!("{what}: {error}"))),
        Err(_) => Err(failed(format!("timeout: {what} within {PROOF_TIMEOUT:?}"))),
    }
}

/// Brings the directory and the bucket together once, and goes on.
async fn start_sync(
    inner: &Arc<Inner>,
    slot: &Arc<Slot>,
    sandbox: &Sandbox,
    plan: &MountPlan,
    mount: &Arc<Mount>,
) -> Result<(), DaemonError> {
    let store = open_store(inner, plan.bucket.as_str(), &plan.place, &plan.s3fs).map_err(failed)?;
    store.check_bucket(plan.prefix.as_str()).await.map_err(|error| failed(store_cause(&error)))?;
    let directory = sandbox.open_directory(mount.path()).await.map_err(|error| match error {
        SandboxError::Gone => DaemonError::from(error),
        error => failed(format!("{} cannot be used: {error}", mount.path().display())),
    })?;
    let checked = directory.try_clone().map_err(failed)?;
    let is_own = tokio::task::spawn_blocking(move || own::is_sandboxs(&checked)).await.map_err(failed)?;
    if !is_own.map_err(failed)? {
        let path = mount.path().display();
        return Err(failed(format!("{path} cannot be used: it leads out of the sandbox's own files")));
    }
    let ids = sandbox.id_map();
    let owner = |id: Option<u32>| ids.base.saturating_add(id.unwrap_or(0).min(ids.len.saturating_sub(1)));
    let options = SyncOptions {
        directory,
        store,
        prefix: plan.prefix.clone(),
        read_only: plan.read_only,
        interval: inner.config().mounts.sync_interval,
        owner: (owner(plan.s3fs.uid), owner(plan.s3fs.gid)),
        ids: ids.base..ids.base.saturating_add(ids.len),
        state_file: sync_state_file(inner, slot, &mount.shown),
    };
    let sync = Sync::start(options).await.map_err(|error| match error {
        SyncError::Store(error) => failed(store_cause(&error)),
        error => failed(error),
    })?;
    mount.now().engine = Some(Engine::Sync(Arc::new(sync)));
    Ok(())
}

/// Takes back whatever was made.
async fn take_back(inner: &Arc<Inner>, slot: &Slot, sandbox: &Sandbox, mount: &Mount) {
    mount.close_door(slot);
    // Whoever asked is told; nobody else knows of it yet.
    mount.on(MountEvent::Unmount);
    mount.on(MountEvent::Stored);
    let (is_attached, made) = {
        let now = mount.now();
        (now.is_attached, now.made.clone())
    };
    // At the path may be another mount, or below it, if this one never came there.
    if is_attached && let Err(error) = sandbox.detach(mount.path(), made.as_deref(), true).await {
        tracing::error!(sandbox = slot.id.as_str(), path = mount.shown.path.as_str(), %error, "a failed mount stays");
    }
    // Nobody shall start another process for it.
    mount.now().kept = None;
    if let Some(worker) = mount.worker() {
        worker.end(inner.config().mounts.drain_timeout).await;
    }
    mount.is_left(inner.config().mounts.drain_timeout).await;
    if let Some(sync) = mount.sync() {
        // Dropping it ends it; nothing was promised yet.
        drop(sync);
        mount.now().engine = None;
    }
}

/// Brings a local bucket of an earlier daemon to life again.
pub(super) async fn resume_sync(
    inner: &Arc<Inner>,
    slot: &Arc<Slot>,
    sandbox: &Sandbox,
    mount: &Arc<Mount>,
) -> Result<(), DaemonError> {
    let options = sandpail_spec::MountOptions {
        prefix: Some(format!("/{}", mount.shown.prefix)),
        read_only: mount.shown.read_only,
        local_bucket: true,
        ..Default::default()
    };
    let binding = mount.shown.binding.clone().unwrap_or_default();
    let request = MountRequest {
        source: sandpail_spec::MountSource::Binding(binding),
        mount_path: mount.shown.path.to_string(),
        options,
    };
    let config = inner.config();
    let plan = plan_mount(&request, &Around { config: &config, slot: None })?;
    start_sync(inner, slot, sandbox, &plan, mount).await
}
