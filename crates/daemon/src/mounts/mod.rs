//! Mounts: made in steps that are taken back when a later one fails, proven before they are reported, stored before
//! they go.

mod attach;
mod barrier;
pub(crate) mod device;
mod leave;
mod own;
mod process;
mod recover;
mod route;
mod state;
mod worker_plan;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandpail_proxy::OpenRoute;
use sandpail_spec::{MountMode, MountPlan};
use sandpail_sync::Sync;
use tokio::task::JoinHandle;

pub(crate) use self::attach::mount;
pub(crate) use self::barrier::sync;
pub(crate) use self::leave::{end_after_sandbox, rest, store_before_end, unmount};
use self::process::Worker;
pub(crate) use self::recover::recover;
use self::state::{Action, MountEvent, MountState, next};
use crate::MountInfo;
use crate::network::SandboxNetwork;
use crate::sandboxes::{Inner, Slot, random_text};
use crate::state::{MountRecord, Shown, WorkerRecord};
use crate::worker::control::Ask;
use crate::worker::keeper::{Kept, Lives};
use crate::worker::start::Given;

pub(crate) use self::worker_plan::open_store;

/// Characters of a mount's id: 100 bits, as its name is no secret but must not be guessed for another's.
const ID_LEN: usize = 20;

/// How long a mount may take to say how much it has not stored.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// How long somebody who asks a mount waits for the process that follows a killed one.
const NEXT_WORKER_TIMEOUT: Duration = Duration::from_secs(10);
const NEXT_WORKER_PAUSE: Duration = Duration::from_millis(20);
/// Time between two tries to start a process on a mount whose own was killed.
const TAKE_UP_PAUSE: Duration = Duration::from_millis(200);

/// A mount of a sandbox.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) shown: Shown,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    state: MountState,
    /// What moves the bytes.
    engine: Option<Engine>,
    /// The process that shall follow a killed one.
    next: Option<WorkerRecord>,
    /// What keeps the file system alive when its process is killed.
    kept: Option<Arc<Kept>>,
    /// Starts the next process when one is killed; ends with the mount.
    watching: Option<JoinHandle<()>>,
    /// The way of S3 clients inside.
    door: Option<OpenRoute>,
    made: Option<PathBuf>,
    /// The file system's device number; 0: there is none yet.
    device: u64,
    /// It was attached at its path.
    is_attached: bool,
}

/// What moves a mount's bytes.
#[derive(Clone, Debug)]
enum Engine {
    Worker(Worker),
    Sync(Arc<Sync>),
}

impl Mount {
    fn reserved(plan: &MountPlan) -> std::io::Result<Self> {
        let endpoint = match &plan.place {
            sandpail_spec::BucketPlace::Embedded => None,
            sandpail_spec::BucketPlace::Remote(remote) => Some(remote.endpoint.to_string()),
        };
        Ok(Self::new(Shown {
            id: random_text(ID_LEN)?,
            path: plan.path.clone(),
            mode: plan.mode,
            bucket: plan.bucket.as_str().to_owned(),
            binding: plan.binding.as_ref().map(|name| name.as_str().to_owned()),
            endpoint,
            prefix: plan.prefix.as_str().to_owned(),
            read_only: plan.read_only,
        }))
    }

    fn new(shown: Shown) -> Self {
        let now = Now {
            state: MountState::Reserved,
            engine: None,
            next: None,
            kept: None,
            watching: None,
            door: None,
            made: None,
            device: 0,
            is_attached: false,
        };
        Self { shown, now: Mutex::new(now) }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MountState {
        self.now().state.clone()
    }

    /// Moves the state, and says what has to be done.
    fn on(&self, event: MountEvent) -> Action {
        let mut now = self.now();
        let before = std::mem::replace(&mut now.state, MountState::Reserved);
        let (state, action) = next(before, event);
        now.state = state;
        action
    }

    /// Ends what S3 clients inside do with it, at once.
    fn close_door(&self, slot: &Slot) {
        if self.now().door.take().is_some()
            && let Some(network) = &slot.now().network
        {
            network.audit().forget(&self.shown.id);
        }
    }

    fn worker(&self) -> Option<Worker> {
        match &self.now().engine {
            Some(Engine::Worker(worker)) => Some(worker.clone()),
            _ => None,
        }
    }

    /// The process that follows one which has ended; `None` if there is none soon.
    async fn next_worker(&self, before: &Worker) -> Option<Worker> {
        self.now().kept.as_ref()?;
        let followed = async {
            loop {
                if let Some(next) = self.worker().filter(|next| next.record() != before.record()) {
                    return Some(next);
                }
                if before.ended_within(Duration::ZERO).await.is_none() || self.is_failed() {
                    return None;
                }
                tokio::time::sleep(NEXT_WORKER_PAUSE).await;
            }
        };
        tokio::time::timeout(NEXT_WORKER_TIMEOUT, followed).await.ok().flatten()
    }

    /// Waits until no other process is being started for it any more, now that it is gone.
    async fn is_left(&self, timeout: Duration) {
        self.now().kept = None;
        let watching = self.now().watching.take();
        if let Some(watching) = watching
            && tokio::time::timeout(timeout, watching).await.is_err()
        {
            tracing::warn!(path = %self.shown.path, "a process that was started for a mount is still there");
        }
    }

    fn sync(&self) -> Option<Arc<Sync>> {
        match &self.now().engine {
            Some(Engine::Sync(sync)) => Some(Arc::clone(sync)),
            _ => None,
        }
    }

    fn is_failed(&self) -> bool {
        matches!(self.now().state, MountState::Failed { .. })
    }

    fn path(&self) -> &std::path::Path {
        std::path::Path::new(self.shown.path.as_str())
    }

    /// What a restarted daemon must know; `None` for a mount of which nothing exists yet.
    pub(crate) fn record(&self) -> Option<MountRecord> {
        let now = self.now();
        if now.state == MountState::Reserved {
            return None;
        }
        Some(MountRecord {
            shown: self.shown.clone(),
            made: now.made.clone(),
            is_serving: now.state != MountState::Starting,
            worker: match &now.engine {
                Some(Engine::Worker(worker)) => now.next.or_else(|| Some(worker.record())),
                _ => None,
            },
            device: now.device,
        })
    }

    /// How it is shown; `None` while it is being made.
    pub(crate) async fn info(&self, network: Option<&SandboxNetwork>) -> Option<MountInfo> {
        let state = match self.state() {
            MountState::Reserved | MountState::Starting => return None,
            MountState::Serving => "serving",
            MountState::Draining | MountState::Leaving => "draining",
            MountState::Failed { .. } => "failed",
        };
        let engine = self.now().engine.clone();
        let unstored = match engine {
            Some(Engine::Worker(worker)) if state != "failed" => {
                worker.ask(Ask::Status, STATUS_TIMEOUT).await.map_or(0, |answer| answer.unstored)
            }
            Some(Engine::Sync(sync)) => sync.report().failed.len(),
            _ => 0,
        };
        let proxy = if self.now().door.is_some() {
            network.map(|network| network.audit().counts(&self.shown.id))
        } else {
            None
        };
        Some(MountInfo {
            mount_id: self.shown.id.clone(),
            mount_path: self.shown.path.to_string(),
            mode: self.shown.mode.as_str(),
            state,
            bucket: self.shown.bucket.clone(),
            binding: self.shown.binding.clone(),
            endpoint: self.shown.endpoint.clone(),
            prefix: format!("/{}", self.shown.prefix),
            read_only: self.shown.read_only,
            unstored: u64::try_from(unstored).unwrap_or(u64::MAX),
            proxy,
        })
    }
}

/// Starts another process when the one behind a mount is killed, and reports when that cannot be done.
fn watch(inner: &Arc<Inner>, slot: &Arc<Slot>, mount: &Arc<Mount>, worker: &Worker) {
    let watched = Arc::clone(mount);
    let (inner, slot, mount, worker) = (Arc::downgrade(inner), Arc::clone(slot), Arc::clone(mount), worker.clone());
    let watching = tokio::spawn(async move {
        let (mut worker, mut lives) = (worker, Lives::begin());
        loop {
            let reason = worker.ended().await;
            let Some(inner) = inner.upgrade() else { return };
            // A sandbox that ended took its mounts along: that is no failure of theirs.
            if slot.living().is_none() {
                mount.now().kept = None;
                return;
            }
            let path = mount.shown.path.as_str();
            if let Some(next) = take_up(&inner, &slot, &mount, &mut lives).await {
                let detail = format!("the process behind it ended ({reason}); another one goes on");
                tracing::warn!(sandbox = slot.id.as_str(), path, reason, "a mount goes on with another process");
                inner.events.tell("mount.restarted", &slot.id, Some(path), detail);
                worker = next;
                continue;
            }
            // From here on every call in the mount fails at once.
            mount.now().kept = None;
            if mount.on(MountEvent::Ended { reason: reason.clone() }) != Action::Report {
                return;
            }
            let detail = format!("the process behind it ended ({reason}); what it had not stored is kept in staging");
            tracing::error!(sandbox = slot.id.as_str(), path, reason, "a mount failed");
            inner.events.tell("mount.failed", &slot.id, Some(path), detail);
            inner.persist_or_warn(&slot);
            return;
        }
    });
    watched.now().watching = Some(watching);
}

/// Starts another process on a mount whose own was killed. `None`: it shall end, or cannot be taken up.
async fn take_up(inner: &Arc<Inner>, slot: &Slot, mount: &Mount, lives: &mut Lives) -> Option<Worker> {
    let path = mount.shown.path.as_str();
    loop {
        let kept = {
            let now = mount.now();
            now.kept.clone().filter(|_| is_wanted(&now.state))?
        };
        if !kept.wants_another() {
            return None;
        }
        if !lives.may_begin_again() {
            tracing::error!(sandbox = slot.id.as_str(), path, "the mount's processes die one after the other");
            return None;
        }
        match start_next(inner, slot, mount, &kept).await {
            Ok(next) => {
                let serves = {
                    let mut now = mount.now();
                    let serves = is_wanted(&now.state) && now.kept.is_some();
                    if serves {
                        now.engine = Some(Engine::Worker(next.clone()));
                        now.next = None;
                    }
                    serves
                };
                if !serves {
                    // Unmounted meanwhile.
                    next.end(inner.config().mounts.drain_timeout).await;
                    return None;
                }
                lives.begun_again();
                match next.keep().await {
                    Ok(kept) => {
                        // It may have been unmounted meanwhile.
                        if let Some(held) = &mut mount.now().kept {
                            *held = Arc::new(kept);
                        }
                    }
                    // It has died meanwhile; what is held is the same.
                    Err(why) => tracing::warn!(path, why, "the mount's process hands over nothing"),
                }
                inner.persist_or_warn(slot);
                return Some(next);
            }
            Err(why) => {
                tracing::error!(sandbox = slot.id.as_str(), path, why, "the mount cannot be taken up; trying again");
                tokio::time::sleep(TAKE_UP_PAUSE).await;
            }
        }
    }
}

/// Whether a mount in this state needs a process. One that leaves may find that it is in use, and serve again.
fn is_wanted(state: &MountState) -> bool {
    use MountState::{Draining, Leaving, Serving, Starting};
    matches!(state, Starting | Serving | Draining | Leaving)
}

/// Starts a process, writes down that the mount is its from now on, and gives it the mount: a daemon that is started at any
/// time finds whoever has it.
async fn start_next(inner: &Inner, slot: &Slot, mount: &Mount, kept: &Kept) -> Result<Worker, String> {
    let starting = Worker::start(&inner.program)?;
    mount.now().next = Some(starting.record());
    inner.persist_or_warn(slot);
    starting.serve(&kept.plan, Given::Mount(kept)).await
}

/// The file in which a local bucket remembers what was equal.
fn sync_state_file(inner: &Inner, slot: &Slot, shown: &Shown) -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    shown.path.hash(&mut hasher);
    inner.state.join("sync").join(format!("{}-{:016x}.json", slot.id, hasher.finish()))
}

fn is_local(shown: &Shown) -> bool {
    shown.mode == MountMode::Local
}
