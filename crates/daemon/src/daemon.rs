//! The daemon itself.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sandpail_proxy::Threads;
use sandpail_sandbox::{Runtime, RuntimeOptions, Sandbox, SandboxId};
use tokio::sync::broadcast;

use crate::embedded::Embedded;
use crate::sandboxes::{Inner, Slot};
use crate::state::StateDir;
use crate::worker::start::own_program;
use crate::{
    BucketBody, BucketListOptions, BucketObject, BucketPage, BucketPutOptions, Config, DaemonError, Event, MountInfo,
    MountRequest, MountSynced, PoolStats, SandboxInfo, mounts, objects, worker,
};

/// The daemon: cheap to clone, one per process.
///
/// Whatever changes something runs to its end even if its caller goes away.
#[derive(Clone, Debug)]
pub struct Daemon {
    inner: Arc<Inner>,
}

/// Runs a piece of work to its end, whether or not its caller waits.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, DaemonError>> + Send + 'static,
) -> Result<T, DaemonError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(DaemonError::State(format!("the daemon itself failed: {error}"))),
    }
}

/// How long the log of a mount that told of trouble is kept.
const LOG_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

fn prune_logs(dir: &Path) {
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let age = file.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > LOG_AGE_MAX)
            && let Err(error) = std::fs::remove_file(file.path())
        {
            tracing::debug!(file = %file.path().display(), %error, "an old log stays");
        }
    }
}

impl Daemon {
    /// Starts: finds living sandboxes and mounts again, cleans what died.
    ///
    /// # Errors
    /// When the state directory cannot be used, or another daemon uses it; when this host cannot run sandboxes.
    pub async fn start(config: Config) -> Result<Self, DaemonError> {
        let state = StateDir::open(&config.state_dir)?;
        let program = match &config.program {
            Some(program) => program.clone(),
            None => own_program().map_err(|error| DaemonError::State(format!("{error:#}")))?,
        };
        let mut hidden = config.hidden.clone();
        hidden.push(state.join(""));
        let runtime =
            Runtime::new(RuntimeOptions { state_dir: state.join("sandboxes"), program: program.clone(), hidden })?;
        let threads =
            Threads::start().map_err(|error| DaemonError::State(format!("no threads for networks: {error}")))?;
        let inner = Arc::new(Inner::new(config, state, runtime, threads, program));
        prune_logs(&inner.state.join("logs"));
        worker::registry::prune();
        mounts::recover(&inner).await?;
        if let Some(embedded) = Embedded::start(&inner).await? {
            let keys = embedded.keys_file().display().to_string();
            tracing::info!(endpoint = embedded.endpoint(), keys, "embedded buckets are served");
            // Nobody else sets it.
            let _ = inner.embedded.set(embedded);
        }
        inner.fill_later();
        Ok(Self { inner })
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.inner.config()
    }

    /// Where embedded buckets are served to S3 clients, and the file that holds their key; `None` if they are not.
    pub fn embedded_endpoint(&self) -> Option<(String, PathBuf)> {
        self.inner.embedded.get().map(|embedded| (embedded.endpoint(), embedded.keys_file().to_owned()))
    }

    /// What is not well, for `/health`; empty when all is.
    pub async fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Err(error) = self.inner.check_running() {
            found.push(error.to_string());
        }
        if let Err(error) = self.inner.state.check() {
            found.push(error.to_string());
        }
        if !Path::new("/dev/fuse").exists() {
            found.push("/dev/fuse is missing: buckets cannot be mounted".to_owned());
        }
        found
    }

    /// Makes a sandbox with a new id (26 random base32 characters), or takes a warm one.
    ///
    /// # Errors
    /// [`DaemonError::Capacity`].
    pub async fn create_sandbox(&self) -> Result<SandboxId, DaemonError> {
        let inner = Arc::clone(&self.inner);
        to_its_end(async move { inner.create().await }).await
    }

    /// The sandbox of this id, made if there is none yet (the same call for exec, files, sessions, mounts, archives).
    ///
    /// # Errors
    /// [`DaemonError::Capacity`], [`DaemonError::Sandbox`].
    pub async fn sandbox(&self, id: &SandboxId) -> Result<Sandbox, DaemonError> {
        // The usual case needs no task.
        if let Some(sandbox) = self.inner.slot(id).filter(|slot| !slot.now().is_warm).and_then(|slot| slot.living()) {
            self.inner.check_running()?;
            return Ok(sandbox);
        }
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        to_its_end(async move { inner.sandbox(&id).await.map(|(_, sandbox)| sandbox) }).await
    }

    /// Whether the id was created and not destroyed; starts it if need be.
    pub async fn is_running(&self, id: &SandboxId) -> bool {
        match self.inner.slot(id) {
            Some(slot) if !slot.now().is_warm => self.sandbox(id).await.is_ok(),
            _ => false,
        }
    }

    /// Stores and unmounts everything, then removes the sandbox. An unknown id is no error.
    ///
    /// # Errors
    /// When something could not be removed.
    pub async fn destroy_sandbox(&self, id: &SandboxId) -> Result<(), DaemonError> {
        let Some(slot) = self.inner.slot(id) else { return Ok(()) };
        let inner = Arc::clone(&self.inner);
        to_its_end(async move { inner.destroy(&slot).await }).await
    }

    /// All sandboxes in use.
    pub async fn list_sandboxes(&self) -> Vec<SandboxInfo> {
        let info = |slot: Arc<Slot>| SandboxInfo {
            id: slot.id.clone(),
            running: slot.living().is_some(),
            created_ms: slot.created_ms,
            mounts: slot.now().mounts.len(),
        };
        self.inner.all_slots().into_iter().filter(|slot| !slot.now().is_warm).map(info).collect()
    }

    /// Mounts a bucket; returns when the mount has been used once through the sandbox's own path.
    ///
    /// # Errors
    /// [`DaemonError::Mount`] with the contract's text. Nothing is left then, and other mounts are as they were.
    pub async fn mount(&self, id: &SandboxId, request: MountRequest) -> Result<(), DaemonError> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        to_its_end(async move { mounts::mount(&inner, &id, request).await }).await
    }

    /// Stores everything, then unmounts. With `force` also what is in use or cannot be stored (its bytes are kept): gives
    /// those files, with the reasons.
    ///
    /// # Errors
    /// [`DaemonError::Mount`]; the mount stays usable.
    pub async fn unmount(
        &self,
        id: &SandboxId,
        mount_path: &str,
        force: bool,
    ) -> Result<Vec<(String, String)>, DaemonError> {
        let (inner, id, path) = (Arc::clone(&self.inner), id.clone(), mount_path.to_owned());
        to_its_end(async move { mounts::unmount(&inner, &id, &path, force).await }).await
    }

    /// Returns when everything that was written to a mount before the call is in the bucket, or says what is not.
    ///
    /// # Errors
    /// [`DaemonError::Mount`] if there is no such mount, its process ended, or the time (`drain_timeout`) is up.
    pub async fn sync_mount(&self, id: &SandboxId, mount_path: &str) -> Result<MountSynced, DaemonError> {
        let (inner, id, path) = (Arc::clone(&self.inner), id.clone(), mount_path.to_owned());
        to_its_end(async move { mounts::sync(&inner, &id, &path).await }).await
    }

    /// The mounts of a sandbox; none for an unknown id.
    pub async fn list_mounts(&self, id: &SandboxId) -> Vec<MountInfo> {
        let Some(slot) = self.inner.slot(id) else { return Vec::new() };
        let (mounts, network) = (slot.mounts(), slot.now().network.clone());
        let infos = futures_util::future::join_all(mounts.iter().map(|mount| mount.info(network.as_deref()))).await;
        infos.into_iter().flatten().collect()
    }

    /// What a sandbox reaches of the network: its policy, without values of headers. Starts it if need be.
    ///
    /// # Errors
    /// [`DaemonError::Capacity`], [`DaemonError::Sandbox`], [`DaemonError::State`].
    pub async fn egress(&self, id: &SandboxId) -> Result<serde_json::Value, DaemonError> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        to_its_end(async move { inner.network(&id).await?.1.shown_policy() }).await
    }

    /// Changes what a sandbox reaches of the network, from now on; connections that it forbids end. `policy` is an
    /// [`sandpail_proxy::EgressPolicy`] as JSON, where `${NAME}` in a header's value is a secret of the daemon.
    ///
    /// # Errors
    /// [`DaemonError::Egress`]; the old policy stays then.
    pub async fn set_egress(
        &self,
        id: &SandboxId,
        policy: serde_json::Value,
    ) -> Result<serde_json::Value, DaemonError> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        to_its_end(async move {
            let (sandbox, network) = inner.network(&id).await?;
            network.set_policy(&inner.config(), &sandbox, policy).await?;
            inner.events.tell("sandbox.egress", &id, None, "its policy was changed");
            network.shown_policy()
        })
        .await
    }

    /// The pool of started sandboxes.
    pub async fn pool_stats(&self) -> PoolStats {
        let config = self.inner.config();
        let slots = self.inner.all_slots();
        let warm = slots.iter().filter(|slot| slot.now().is_warm).count();
        PoolStats {
            warm,
            assigned: slots.len() - warm,
            warm_target: config.warm_target,
            max_instances: config.max_sandboxes,
        }
    }

    /// Fills the pool.
    ///
    /// # Errors
    /// [`DaemonError::Capacity`].
    pub async fn prime_pool(&self) -> Result<(), DaemonError> {
        let inner = Arc::clone(&self.inner);
        to_its_end(async move { inner.prime().await }).await
    }

    /// Ends the warm sandboxes; those in use stay.
    ///
    /// # Errors
    /// When one could not be removed.
    pub async fn empty_pool(&self) -> Result<(), DaemonError> {
        let inner = Arc::clone(&self.inner);
        to_its_end(async move { inner.empty().await }).await
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// The names of the bindings.
    pub fn bindings(&self) -> Vec<String> {
        self.inner.config().bindings.keys().map(|name| name.as_str().to_owned()).collect()
    }

    /// Stores an object in a binding's bucket. The body is streamed.
    ///
    /// # Errors
    /// [`DaemonError::NoBinding`], [`DaemonError::Bucket`].
    pub async fn put_object(
        &self,
        binding: &str,
        key: &str,
        body: BucketBody,
        options: BucketPutOptions,
    ) -> Result<BucketObject, DaemonError> {
        objects::put(&self.inner, binding, key, body, options).await
    }

    /// Reads an object, or `range` of it (offset and length in bytes).
    ///
    /// # Errors
    /// [`DaemonError::NoBinding`], [`DaemonError::NoObject`], [`DaemonError::Bucket`].
    pub async fn get_object(
        &self,
        binding: &str,
        key: &str,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<(BucketObject, BucketBody), DaemonError> {
        objects::get(&self.inner, binding, key, range).await
    }

    /// Describes an object.
    ///
    /// # Errors
    /// [`DaemonError::NoBinding`], [`DaemonError::NoObject`], [`DaemonError::Bucket`].
    pub async fn head_object(&self, binding: &str, key: &str) -> Result<BucketObject, DaemonError> {
        objects::head(&self.inner, binding, key).await
    }

    /// Removes objects; those that are not there are no error.
    ///
    /// # Errors
    /// [`DaemonError::NoBinding`], [`DaemonError::Bucket`].
    pub async fn delete_objects(&self, binding: &str, keys: &[String]) -> Result<(), DaemonError> {
        objects::delete(&self.inner, binding, keys).await
    }

    /// Lists a binding's bucket.
    ///
    /// # Errors
    /// [`DaemonError::NoBinding`], [`DaemonError::Bucket`].
    pub async fn list_objects(&self, binding: &str, options: BucketListOptions) -> Result<BucketPage, DaemonError> {
        objects::list(&self.inner, binding, options).await
    }

    /// Takes in changed bindings, secrets and limits (SIGHUP). Mounts that are there stay as they are; where the daemon
    /// listens and keeps its state does not change.
    pub async fn reload(&self, config: Config) {
        let before = self.inner.config();
        let config = Config {
            listen: before.listen,
            state_dir: before.state_dir.clone(),
            program: before.program.clone(),
            hidden: before.hidden.clone(),
            ..config
        };
        *self.inner.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        self.inner.stores.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Some(Err(error)) = self.inner.embedded.get().map(|embedded| embedded.add_buckets(&self.inner)) {
            tracing::error!(%error, "a new embedded bucket is not served");
        }
        self.inner.fill_later();
    }

    /// Stops gracefully: no new calls; sandboxes and mounts go on without the daemon and are found by the next one,
    /// unless `destroy` asks to store, unmount and end everything.
    ///
    /// # Errors
    /// What could not be stored or removed.
    pub async fn stop(&self, destroy: bool) -> Result<(), DaemonError> {
        self.inner.is_stopping.store(true, Ordering::Relaxed);
        let slots = self.inner.all_slots();
        let ends = slots.iter().map(|slot| async {
            if destroy {
                return self.inner.destroy(slot).await;
            }
            // Whatever is under way for this sandbox comes to its end first.
            let _turn = slot.turn.lock().await;
            mounts::rest(slot).await
        });
        let ended = futures_util::future::join_all(ends).await;
        ended.into_iter().collect()
    }
}
