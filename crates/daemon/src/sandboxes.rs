//! Who exists: sandboxes by name, how they start and end, how many there may be.
//!
//! Lock order: a slot's `turn` (one mount, unmount or destroy at a time, in order of arrival), then its `starting`, then
//! the short locks (`slots`, a slot's `now`), which are never held across an await.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use sandpail_proxy::Threads;
use sandpail_sandbox::{Runtime, Sandbox, SandboxId, SandboxSpec};
use sandpail_spec::MountPath;
use sandpail_store::Store;

use crate::embedded::Embedded;
use crate::events::{Events, now_ms};
use crate::mounts::{self, Mount};
use crate::network::SandboxNetwork;
use crate::state::{SandboxRecord, StateDir};
use crate::{Config, DaemonError};

/// Characters of an id that the daemon makes.
const ID_LEN: usize = 26;
const ID_CHARACTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A name, and the sandbox behind it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: SandboxId,
    pub(crate) created_ms: u64,
    /// Held by the mount, unmount or destroy that is under way.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Held by whoever starts or ends the sandbox.
    pub(crate) starting: tokio::sync::Mutex<()>,
    now: Mutex<Now>,
}

/// What a slot holds at the moment.
#[derive(Debug, Default)]
pub(crate) struct Now {
    pub(crate) sandbox: Option<Sandbox>,
    /// Its way to buckets and out; none of a sandbox that is not started.
    pub(crate) network: Option<Arc<SandboxNetwork>>,
    /// Started and unused.
    pub(crate) is_warm: bool,
    /// Destroyed: whoever still holds the slot must look for a new one.
    pub(crate) is_gone: bool,
    pub(crate) mounts: BTreeMap<MountPath, Arc<Mount>>,
}

impl Slot {
    pub(crate) fn new(id: SandboxId, created_ms: u64) -> Self {
        Self {
            id,
            created_ms,
            turn: tokio::sync::Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            now: Mutex::default(),
        }
    }

    pub(crate) fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sandbox, if it is alive.
    pub(crate) fn living(&self) -> Option<Sandbox> {
        self.now().sandbox.clone().filter(Sandbox::is_alive)
    }

    pub(crate) fn mount(&self, path: &MountPath) -> Option<Arc<Mount>> {
        self.now().mounts.get(path).cloned()
    }

    pub(crate) fn mounts(&self) -> Vec<Arc<Mount>> {
        self.now().mounts.values().cloned().collect()
    }

    fn record(&self, now: &Now) -> SandboxRecord {
        SandboxRecord {
            id: self.id.to_string(),
            created_ms: self.created_ms,
            is_warm: now.is_warm,
            mounts: now.mounts.values().filter_map(|mount| mount.record()).collect(),
        }
    }
}

/// Everything that the daemon holds.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: RwLock<Arc<Config>>,
    pub(crate) state: StateDir,
    pub(crate) runtime: Runtime,
    /// Serve the networks of sandboxes.
    pub(crate) threads: Arc<Threads>,
    /// The executable of workers.
    pub(crate) program: PathBuf,
    pub(crate) events: Events,
    pub(crate) is_stopping: AtomicBool,
    /// Stores of bindings, made when they are first used.
    pub(crate) stores: Mutex<BTreeMap<String, Arc<dyn Store>>>,
    /// Where embedded buckets are served to S3 clients, if they are.
    pub(crate) embedded: OnceLock<Embedded>,
    slots: Mutex<BTreeMap<SandboxId, Arc<Slot>>>,
    /// Held by whoever fills or empties the pool; how often it was emptied.
    filling: tokio::sync::Mutex<()>,
    emptied: AtomicU64,
}

impl Inner {
    pub(crate) fn new(config: Config, state: StateDir, runtime: Runtime, threads: Threads, program: PathBuf) -> Self {
        Self {
            config: RwLock::new(Arc::new(config)),
            state,
            runtime,
            threads: Arc::new(threads),
            program,
            events: Events::new(),
            is_stopping: AtomicBool::new(false),
            stores: Mutex::default(),
            embedded: OnceLock::new(),
            slots: Mutex::default(),
            filling: tokio::sync::Mutex::default(),
            emptied: AtomicU64::new(0),
        }
    }

    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn slots(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn slot(&self, id: &SandboxId) -> Option<Arc<Slot>> {
        self.slots().get(id).cloned()
    }

    pub(crate) fn all_slots(&self) -> Vec<Arc<Slot>> {
        self.slots().values().cloned().collect()
    }

    pub(crate) fn check_running(&self) -> Result<(), DaemonError> {
        if self.is_stopping.load(Ordering::Relaxed) { Err(DaemonError::Stopping) } else { Ok(()) }
    }

    /// Writes down what a restarted daemon must know.
    pub(crate) fn persist(&self, slot: &Slot) -> Result<(), DaemonError> {
        // Held while it is written: what is gone must not be written down again by a call that came late.
        let now = slot.now();
        if now.is_gone {
            return Ok(());
        }
        self.state.write(&slot.id, &slot.record(&now))
    }

    /// The same where nothing can be undone any more.
    pub(crate) fn persist_or_warn(&self, slot: &Slot) {
        if let Err(error) = self.persist(slot) {
            tracing::error!(sandbox = slot.id.as_str(), %error, "a restarted daemon will not know the latest");
        }
    }

    /// The sandbox of this id, made if there is none yet.
    pub(crate) async fn sandbox(self: &Arc<Self>, id: &SandboxId) -> Result<(Arc<Slot>, Sandbox), DaemonError> {
        loop {
            self.check_running()?;
            let slot = self.slot_or_new(id, false).await?;
            if let Some(sandbox) = slot.living() {
                self.use_warm(&slot);
                return Ok((slot, sandbox));
            }
            let starting = slot.starting.lock().await;
            if slot.now().is_gone {
                continue;
            }
            if let Some(sandbox) = slot.living() {
                self.use_warm(&slot);
                drop(starting);
                return Ok((slot, sandbox));
            }
            let sandbox = self.start(&slot).await?;
            drop(starting);
            return Ok((slot, sandbox));
        }
    }

    /// A sandbox and its network; made if there is none yet.
    pub(crate) async fn network(
        self: &Arc<Self>,
        id: &SandboxId,
    ) -> Result<(Sandbox, Arc<SandboxNetwork>), DaemonError> {
        let (slot, sandbox) = self.sandbox(id).await?;
        let network = slot.now().network.clone();
        let network = network.ok_or_else(|| {
            DaemonError::State(
                "this sandbox was made by an earlier version and has no network; make a new one".to_owned(),
            )
        })?;
        Ok((sandbox, network))
    }

    /// A warm sandbox that is used is warm no longer, whoever guessed its name.
    fn use_warm(&self, slot: &Slot) {
        let was_warm = std::mem::replace(&mut slot.now().is_warm, false);
        if was_warm {
            self.persist_or_warn(slot);
        }
    }

    /// Starts a slot's sandbox; the caller holds `starting`. A slot that never had one goes if that fails.
    async fn start(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<Sandbox, DaemonError> {
        let dead = slot.now().sandbox.take();
        if let Some(dead) = dead {
            self.clean_dead(slot, &dead).await;
        }
        let (network, sandbox) = match self.make(&slot.id).await {
            Ok(made) => made,
            Err(error) => {
                self.forget(slot);
                return Err(error);
            }
        };
        {
            let mut now = slot.now();
            now.sandbox = Some(sandbox.clone());
            now.network = Some(Arc::clone(&network));
        }
        if let Err(error) = self.persist(slot) {
            network.close().await;
            if let Err(error) = sandbox.destroy().await {
                tracing::error!(sandbox = slot.id.as_str(), %error, "a sandbox that cannot be kept is not removed");
            }
            self.forget(slot);
            return Err(error);
        }
        self.events.tell("sandbox.created", &slot.id, None, "");
        self.watch(slot, &sandbox);
        Ok(sandbox)
    }

    /// Makes a sandbox and its network. On failure nothing is left.
    async fn make(&self, id: &SandboxId) -> Result<(Arc<SandboxNetwork>, Sandbox), DaemonError> {
        let config = self.config();
        let (network, files) = SandboxNetwork::new(self, id)?;
        let made = self.runtime.create(id.clone(), SandboxSpec { files, ..config.sandbox.clone() }).await;
        let sandbox = match made {
            Ok(sandbox) => sandbox,
            Err(error) => {
                network.close().await;
                return Err(error.into());
            }
        };
        if network.lets_out()
            && let Err(error) = network.open(&config, &sandbox).await
        {
            network.close().await;
            if let Err(error) = sandbox.destroy().await {
                tracing::error!(sandbox = id.as_str(), %error, "a sandbox without its network is not removed");
            }
            return Err(error);
        }
        Ok((network, sandbox))
    }

    /// Takes a slot out: its name is free.
    fn forget(&self, slot: &Arc<Slot>) {
        let mut now = slot.now();
        now.is_gone = true;
        now.sandbox = None;
        drop(now);
        let mut slots = self.slots();
        if slots.get(&slot.id).is_some_and(|current| Arc::ptr_eq(current, slot)) {
            // Before the name is free: the next one's record must not be removed.
            if let Err(error) = self.state.remove(&slot.id) {
                tracing::error!(sandbox = slot.id.as_str(), %error, "the record of a sandbox that is gone");
            }
            slots.remove(&slot.id);
        }
    }

    /// Notices when the sandbox ends by itself.
    pub(crate) fn watch(self: &Arc<Self>, slot: &Arc<Slot>, sandbox: &Sandbox) {
        // A watch does not keep the daemon, whose directory is free for the next one when it goes.
        let (inner, slot, sandbox) = (Arc::downgrade(self), Arc::clone(slot), sandbox.clone());
        tokio::spawn(async move {
            sandbox.ended().await;
            let Some(inner) = inner.upgrade() else { return };
            let _turn = slot.turn.lock().await;
            let _starting = slot.starting.lock().await;
            let is_ours = slot.now().sandbox.as_ref().is_some_and(|now| now.pid() == sandbox.pid());
            if slot.now().is_gone || !is_ours || inner.is_stopping.load(Ordering::Relaxed) {
                return;
            }
            slot.now().sandbox = None;
            inner.clean_dead(&slot, &sandbox).await;
            inner.events.tell(
                "sandbox.ended",
                &slot.id,
                None,
                "its first process ended; the next call starts it afresh",
            );
            if slot.now().is_warm {
                inner.forget(&slot);
            } else {
                inner.persist_or_warn(&slot);
            }
        });
    }

    /// What a dead sandbox leaves: its mounts went with it, their processes store what they have.
    async fn clean_dead(self: &Arc<Self>, slot: &Arc<Slot>, dead: &Sandbox) {
        let (mounts, network) = {
            let mut now = slot.now();
            (std::mem::take(&mut now.mounts), now.network.take())
        };
        if let Some(network) = network {
            network.close().await;
        }
        if let Err(error) = dead.destroy().await {
            tracing::error!(sandbox = slot.id.as_str(), %error, "what a sandbox left cannot be removed");
        }
        for mount in mounts.into_values() {
            mounts::end_after_sandbox(self, slot, &mount).await;
        }
    }

    /// Stores and unmounts everything, then removes the sandbox.
    pub(crate) async fn destroy(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<(), DaemonError> {
        self.destroy_if(slot, |_| true).await
    }

    /// The same for a sandbox that waits for use, unless it was taken meanwhile.
    async fn destroy_warm(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<(), DaemonError> {
        // No longer warm: nobody takes it from here on.
        self.destroy_if(slot, |now| std::mem::replace(&mut now.is_warm, false)).await
    }

    async fn destroy_if(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        still: impl FnOnce(&mut Now) -> bool,
    ) -> Result<(), DaemonError> {
        // Whoever has the turn may wait for a bucket that never answers. Then the end of the sandbox, and of the processes
        // behind its mounts, is what ends that wait.
        let patience = self.config().mounts.drain_timeout;
        let turn = tokio::time::timeout(patience, slot.turn.lock()).await;
        if turn.is_err() {
            tracing::warn!(sandbox = slot.id.as_str(), "destroyed although a mount of it is being made or ended");
        }
        let _starting = slot.starting.lock().await;
        let is_wanted = {
            let mut now = slot.now();
            !now.is_gone && still(&mut now)
        };
        if !is_wanted {
            return Ok(());
        }
        // From here on the name means nothing: a call that comes now waits for this end, then makes a new sandbox.
        let mounts = slot.mounts();
        futures_util::future::join_all(mounts.iter().map(|mount| mounts::store_before_end(self, slot, mount))).await;
        let (sandbox, network) = {
            let now = slot.now();
            (now.sandbox.clone(), now.network.clone())
        };
        let removed = match &sandbox {
            Some(sandbox) => sandbox.destroy().await,
            None => Ok(()),
        };
        // Nothing uses the mounts any more: their processes end by themselves.
        futures_util::future::join_all(mounts.iter().map(|mount| mounts::end_after_sandbox(self, slot, mount))).await;
        slot.now().mounts.clear();
        if let Some(network) = &network {
            network.close().await;
        }
        self.forget(slot);
        self.remove_local_trees().await;
        self.events.tell("sandbox.destroyed", &slot.id, None, "");
        removed.map_err(DaemonError::from)
    }

    /// Removes what sandboxes that are gone had on this host only.
    pub(crate) async fn remove_local_trees(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        let removed = tokio::task::spawn_blocking(move || {
            let is_gone = |tenant: &str| !inner.slots().keys().any(|id| id.as_str() == tenant);
            sandpail_fs::local::remove_trees_of(&inner.state.join("staging"), is_gone)
        });
        match removed.await {
            Ok(Err(error)) => tracing::warn!(%error, "local files of sandboxes that are gone cannot be removed yet"),
            Err(error) => tracing::warn!(%error, "local files of sandboxes that are gone cannot be removed yet"),
            Ok(Ok(_)) => {}
        }
    }

    /// The slot of an id; a new one if there is room.
    async fn slot_or_new(self: &Arc<Self>, id: &SandboxId, is_warm: bool) -> Result<Arc<Slot>, DaemonError> {
        loop {
            let evicted = {
                let mut slots = self.slots();
                if let Some(slot) = slots.get(id) {
                    return Ok(Arc::clone(slot));
                }
                match self.config().max_sandboxes {
                    Some(limit) if slots.len() >= limit => {
                        // One that waits for use makes room for one that is used.
                        let warm = slots.values().find(|slot| slot.now().is_warm).filter(|_| !is_warm);
                        warm.cloned().ok_or_else(|| full(limit))?
                    }
                    _ => {
                        let slot = Arc::new(Slot::new(id.clone(), now_ms()));
                        slot.now().is_warm = is_warm;
                        slots.insert(id.clone(), Arc::clone(&slot));
                        return Ok(slot);
                    }
                }
            };
            self.destroy_warm(&evicted).await?;
        }
    }

    /// Takes in a sandbox that an earlier daemon made.
    pub(crate) fn insert(&self, slot: Slot) -> Arc<Slot> {
        let slot = Arc::new(slot);
        self.slots().insert(slot.id.clone(), Arc::clone(&slot));
        slot
    }

    /// A new sandbox, or a warm one.
    pub(crate) async fn create(self: &Arc<Self>) -> Result<SandboxId, DaemonError> {
        self.check_running()?;
        let warm = self.all_slots().into_iter().find(|slot| {
            let mut now = slot.now();
            let is_usable = now.is_warm && now.sandbox.as_ref().is_some_and(Sandbox::is_alive);
            if is_usable {
                now.is_warm = false;
            }
            is_usable
        });
        if let Some(slot) = warm {
            self.persist_or_warn(&slot);
            self.fill_later();
            return Ok(slot.id.clone());
        }
        let id = new_id()?;
        self.sandbox(&id).await?;
        self.fill_later();
        Ok(id)
    }

    /// Fills the pool in the background, unless it is emptied first.
    pub(crate) fn fill_later(self: &Arc<Self>) {
        if self.config().warm_target == 0 {
            return;
        }
        let inner = Arc::clone(self);
        let emptied = self.emptied.load(Ordering::Relaxed);
        tokio::spawn(async move {
            if let Err(error) = inner.fill(emptied).await {
                tracing::debug!(%error, "the pool is not full");
            }
        });
    }

    /// Fills the pool now.
    pub(crate) async fn prime(self: &Arc<Self>) -> Result<(), DaemonError> {
        self.fill(self.emptied.load(Ordering::Relaxed)).await
    }

    /// Fills the pool, unless somebody emptied it since it had been emptied `emptied` times.
    async fn fill(self: &Arc<Self>, emptied: u64) -> Result<(), DaemonError> {
        let _filling = self.filling.lock().await;
        loop {
            self.check_running()?;
            if self.emptied.load(Ordering::Relaxed) != emptied {
                return Ok(());
            }
            let warm = self.slots().values().filter(|slot| slot.now().is_warm).count();
            if warm >= self.config().warm_target {
                return Ok(());
            }
            let slot = self.slot_or_new(&new_id()?, true).await?;
            let starting = slot.starting.lock().await;
            self.start(&slot).await?;
            drop(starting);
        }
    }

    /// Ends the warm sandboxes.
    pub(crate) async fn empty(self: &Arc<Self>) -> Result<(), DaemonError> {
        // Before the lock: a filling that is under way stops.
        self.emptied.fetch_add(1, Ordering::Relaxed);
        let _filling = self.filling.lock().await;
        for slot in self.all_slots() {
            if slot.now().is_warm {
                self.destroy_warm(&slot).await?;
            }
        }
        Ok(())
    }
}

fn full(limit: usize) -> DaemonError {
    DaemonError::Capacity(format!(
        "instance limit reached: there are {limit} sandboxes already; destroy one, or raise max_sandboxes"
    ))
}

fn new_id() -> Result<SandboxId, DaemonError> {
    let failed = |error: &dyn std::fmt::Display| DaemonError::State(format!("no random bytes: {error}"));
    let text = random_text(ID_LEN).map_err(|error| failed(&error))?;
    SandboxId::parse(&text).map_err(|error| failed(&error))
}

/// Random letters and digits of base32, each worth five bits.
pub(crate) fn random_text(len: usize) -> std::io::Result<String> {
    let mut random = vec![0u8; len];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut random)?;
    Ok(random.iter().map(|byte| char::from(ID_CHARACTERS[usize::from(byte % 32)])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_have_the_form_and_differ() {
        let (one, other) = (new_id().unwrap(), new_id().unwrap());
        assert_eq!(one.as_str().len(), ID_LEN);
        assert_ne!(one, other);
    }
}
