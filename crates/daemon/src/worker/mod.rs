//! The process behind a mount. It gets its plan, keys included, over a socket and holds nothing else.
//!
//! `sandpail mount` and the daemon start the same process: the one mounts by a path of the host, the other hands it an
//! open `/dev/fuse` whose file system the daemon attaches inside a sandbox.

pub mod backend;
pub mod control;
mod hand_over;
pub mod host;
pub mod keeper;
pub mod log;
pub mod profiles;
pub mod registry;
pub mod report;
pub mod secrecy;
pub mod start;
pub mod witness;

use std::hash::{Hash, Hasher};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use sandpail_fs::FsError;
use sandpail_fs::adapter::{self, IdMap, MountOptions};
use sandpail_fs::attr::Defaults;
use sandpail_fs::engine::{Engine, EngineOptions, Left, Metadata, OP_TIMEOUT, OnConflict, WriteBack};
use sandpail_fs::write::Origin;
use sandpail_spec::PathClasses;
use sandpail_store::http::Connections;
use sandpail_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::backend::{RemotePlan, Source};
use self::keeper::Kept;
use self::registry::Entry;
use self::witness::Witness;

/// The first argument of the process behind a mount.
pub const ARGUMENT: &str = "mount-worker";
/// What it says on standard output when the mount answers.
pub const READY: &str = "ready";
/// What comes before the reason when there will be no mount.
pub const FAILED: &str = "error: ";

/// How long a mount waits for what an earlier one has left to be in the bucket.
const REPLAY_PATIENCE: Duration = Duration::from_secs(10);
/// Threads that move data; the FUSE threads come besides.
const DATA_THREADS: usize = 2;

/// Everything that a mount needs to know. Keys travel in it: it is written to a socket and nowhere else.
#[derive(Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Where the data is.
    pub source: Source,
    /// How to reach the server, if there is one.
    pub store: Option<RemotePlan>,
    /// The part of the bucket: empty, or ends in `/`.
    pub prefix: String,
    /// Where it appears.
    pub place: Place,
    /// No writes.
    pub read_only: bool,
    /// Whether attributes are kept in the objects.
    pub posix_metadata: bool,
    /// Whether listings describe what carries none.
    #[serde(default)]
    pub trusts_listings: bool,
    /// How long names and attributes are believed.
    pub metadata_ttl: Duration,
    /// Owner of what has none.
    pub uid: u32,
    /// Group of what has none.
    pub gid: u32,
    /// Mode of files that have none.
    pub file_perm: u32,
    /// Mode of directories that have none.
    pub dir_perm: u32,
    /// When an object was changed by someone else.
    pub on_conflict: Conflict,
    /// Length of parts of large uploads, in bytes.
    pub part_len: u64,
    /// Whether large objects are uploaded in parts at all.
    pub multipart: bool,
    /// Parts of one file that are uploaded at the same time; the engine's choice if `None`.
    pub parallel_parts: Option<usize>,
    /// Memory for data under way, in bytes.
    pub memory_limit: u64,
    /// Where written data waits.
    pub staging_dir: PathBuf,
    /// The most bytes that may wait there.
    pub staging_limit: Option<u64>,
    /// Directory and size in bytes of the cache.
    pub cache: Option<(PathBuf, u64)>,
    /// Whether the root has a virtual `.sandpail/status`.
    pub status: bool,
    /// Whether closing returns before the bucket has the file, and within which limits.
    pub write_back: Option<WriteBackPlan>,
    /// How long a caller waits for an operation; `None`: as long as it takes.
    #[serde(default = "usual_op_timeout")]
    pub op_timeout: Option<Duration>,
    /// Whether `write_back` holds for paths that no class names; else it is for classes only.
    #[serde(default = "usually")]
    pub write_back_by_default: bool,
    /// What holds for some paths instead.
    #[serde(default)]
    pub path_classes: PathClasses,
    /// The sandbox whose mount it is: nobody else's has its local files.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Whether the mount goes on when its process is killed; somebody must keep it then.
    pub survives: bool,
    /// Whether requests come by `io_uring` where the kernel has it; not for a mount that survives.
    #[serde(default)]
    pub io_uring: bool,
    /// What to log.
    pub log: String,
    /// Where to log; beside the mount's entry if `None`.
    pub log_file: Option<PathBuf>,
}

fn usual_op_timeout() -> Option<Duration> {
    Some(OP_TIMEOUT)
}

/// In plans of versions that had no path classes.
fn usually() -> bool {
    true
}

/// When closing returns before the bucket has the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteBackPlan {
    /// The most bytes that may be staged then.
    pub bytes_max: u64,
    /// The longest that something may wait then.
    pub age_max: Duration,
}

impl Default for WriteBackPlan {
    fn default() -> Self {
        let WriteBack { bytes_max, age_max, .. } = WriteBack::default();
        Self { bytes_max, age_max }
    }
}

/// Where a mount appears.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Place {
    /// At a path of this host; the worker mounts it itself.
    Host {
        /// The path.
        mountpoint: PathBuf,
        /// Other users may use it.
        allow_other: bool,
        /// Options for the kernel.
        kernel_options: Vec<String>,
    },
    /// Inside a sandbox: the daemon has made the file system and attaches it.
    Sandbox {
        /// The sandbox's name.
        sandbox: String,
        /// The path inside.
        path: String,
        /// The first host id of the sandbox, and how many it has.
        ids: (u32, u32),
    },
}

/// When an object was changed by someone else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Conflict {
    /// The last writer wins.
    Overwrite,
    /// The write fails.
    Fail,
    /// Ours is stored beside.
    KeepBoth,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys are in it.
        f.debug_struct("Plan").field("source", &self.source).field("place", &self.place).finish_non_exhaustive()
    }
}

impl Plan {
    /// The file that all mounts of one bucket share.
    fn neighbours_file(&self) -> String {
        let mut hasher = std::hash::DefaultHasher::new();
        self.source.to_string().hash(&mut hasher);
        self.store.as_ref().map(|store| store.endpoint()).hash(&mut hasher);
        format!("bucket-{:016x}.changes", hasher.finish())
    }

    /// A name for people and for the mount table.
    pub fn shown_source(&self) -> String {
        let prefix = self.prefix.trim_end_matches('/');
        if prefix.is_empty() { self.source.to_string() } else { format!("{}/{prefix}", self.source) }
    }

    fn entry(&self, log_file: &Path) -> anyhow::Result<Entry> {
        let (mountpoint, sandbox) = match &self.place {
            Place::Host { mountpoint, .. } => (mountpoint.clone(), None),
            Place::Sandbox { sandbox, path, .. } => (PathBuf::from(path), Some(sandbox.clone())),
        };
        Ok(Entry {
            pid: std::process::id(),
            source: self.shown_source(),
            mountpoint,
            sandbox,
            started: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs(),
            log_file: Some(log_file.to_owned()),
        })
    }
}

/// As a process of its own: takes the plan from the socket that is standard input, says [`READY`] or [`FAILED`] and why
/// on standard output.
pub fn main() -> ExitCode {
    // Before it holds a key.
    let private = secrecy::keep_memory_private().context("cannot keep the process's memory private");
    let received = private.and_then(|()| Ok(hand_over::receive(rustix::stdio::stdin())?));
    let result = received.and_then(|(text, descriptors)| {
        let plan = serde_json::from_str::<Plan>(&text).context("the plan makes no sense")?;
        drop(text);
        // Away from the terminal and its signals.
        rustix::process::setsid().context("cannot leave the terminal")?;
        run(&plan, Begin::with(descriptors), || {
            let mut output = std::io::stdout();
            writeln!(output, "{READY}")?;
            output.flush()
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell_failed(&error);
            ExitCode::FAILURE
        }
    }
}

/// Tells whoever started this process why there will be no mount.
fn tell_failed(error: &anyhow::Error) {
    // Nobody may listen any more, which must not end in a panic.
    let _ = writeln!(std::io::stdout(), "{FAILED}{}", report::in_one_line(error).replace('\n', " "));
}

/// What a worker begins with.
#[derive(Debug)]
pub enum Begin {
    /// It mounts itself.
    Mount,
    /// A device that nobody has served.
    Device(OwnedFd),
    /// A mount whose process was killed: its device, what that process left, and who hears its last answers.
    TakeUp(OwnedFd, Left, Option<OwnedFd>),
}

impl Begin {
    fn with(descriptors: Vec<OwnedFd>) -> Self {
        let mut descriptors = descriptors.into_iter();
        match (descriptors.next(), descriptors.next(), descriptors.next()) {
            (Some(device), Some(ledger), Some(staging)) => {
                Self::TakeUp(device, Left { ledger, staging }, descriptors.next())
            }
            (Some(device), ..) => Self::Device(device),
            _ => Self::Mount,
        }
    }
}

/// Mounts (or serves what it begins with), says so through `ready`, and serves until it is unmounted.
///
/// # Errors
/// Why there is no mount, or what ended it.
pub fn run(plan: &Plan, begin: Begin, ready: impl FnOnce() -> std::io::Result<()>) -> anyhow::Result<()> {
    let log_file = plan.log_file.clone().map_or_else(|| default_log(std::process::id()), Ok)?;
    start_log(&plan.log, &log_file)?;
    let result = serve(plan, begin, &log_file, ready);
    // A daemon's mounts come and go: only logs that tell something stay.
    if plan.log_file.is_none() || matches!(plan.place, Place::Sandbox { .. }) {
        registry::remove_quiet_log(&log_file);
    }
    result
}

fn serve(
    plan: &Plan,
    begin: Begin,
    log_file: &Path,
    ready: impl FnOnce() -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(DATA_THREADS)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let witness = witness_of(plan);
    let store: Arc<dyn Store> = match (&plan.source, &plan.store) {
        (Source::Directory(path), _) => backend::open_directory(path)?,
        (Source::Bucket(name), Some(remote)) => {
            let connections = witness.clone().map(|witness| witness as Arc<dyn Connections>);
            remote.store_watched(name, connections)?
        }
        (Source::Bucket(name), None) => anyhow::bail!("bucket {name:?} has no endpoint"),
    };
    let file_limit = host::raise_file_limit();
    let mut options = engine_options(plan);
    // Half of the descriptors for what is written; connections and the cache need some.
    options.staged_files_max = Some(file_limit / 4);
    if let Some(policy) = &mut options.write_back {
        // Half of those for what is closed, so that programs can go on.
        policy.files_max = policy.files_max.min(usize::try_from(file_limit / 8).unwrap_or(usize::MAX));
    }
    options.neighbours = Some(registry::directory()?.join(plan.neighbours_file()));
    let handle = runtime.handle().clone();
    let is_taken_up = matches!(begin, Begin::TakeUp(..));
    let (engine, device) = match begin {
        Begin::Mount => (Engine::new(store, options, handle)?, Device::None),
        Begin::Device(device) => (Engine::new(store, options, handle)?, Device::New(device)),
        Begin::TakeUp(device, left, before) => {
            let engine = Engine::take_up(store, options, handle, left)?;
            let answered = async {
                if let Some(before) = before {
                    witness::ended(before).await;
                }
            };
            runtime.block_on(engine.wait_until_quiet(answered));
            if let Some(witness) = &witness {
                witness.tell();
            }
            (engine, Device::Left(device))
        }
    };
    let result = serve_engine(plan, device, log_file, &runtime, &engine, witness.as_deref(), ready);
    if is_taken_up && let Err(error) = &result {
        tracing::error!(%error, "the mount cannot be taken up by this process");
        tell_failed(error);
        leave();
    }
    engine.end();
    if let Some(witness) = witness {
        witness.dismiss();
    }
    result
}

/// Who holds this process's connections. Without it the mount works as well, until its process is killed.
fn witness_of(plan: &Plan) -> Option<Arc<Witness>> {
    if !plan.survives || plan.store.is_none() {
        return None;
    }
    match Witness::start() {
        Ok(witness) => Some(Arc::new(witness)),
        Err(error) => {
            tracing::warn!(error = %report::in_one_line(&error), "nobody would hear this process's last answers");
            None
        }
    }
}

/// What is served.
enum Device {
    /// What is mounted then.
    None,
    New(OwnedFd),
    /// By a process that was killed.
    Left(OwnedFd),
}

/// A mount of either kind.
enum Attached {
    Host(adapter::Mounted),
    Device(adapter::Served),
}

impl Attached {
    fn device(&self) -> &OwnedFd {
        match self {
            Self::Host(mounted) => mounted.device(),
            Self::Device(served) => served.device(),
        }
    }

    fn wait(self) -> std::io::Result<()> {
        match self {
            Self::Host(mounted) => mounted.wait(),
            Self::Device(served) => served.wait(),
        }
    }
}

fn attach(plan: &Plan, device: Device, engine: &Arc<Engine>) -> anyhow::Result<Attached> {
    let engine = Arc::clone(engine);
    match &plan.place {
        Place::Host { mountpoint, allow_other, kernel_options } => {
            let options = MountOptions {
                source: plan.shown_source(),
                allow_other: *allow_other,
                read_only: plan.read_only,
                extra: kernel_options.clone(),
                io_uring: plan.io_uring && !plan.survives,
            };
            let mounted = match device {
                Device::Left(device) => adapter::take_up(engine, device, mountpoint, &options),
                Device::None | Device::New(_) => adapter::mount(engine, mountpoint, &options),
            };
            let what = || format!("cannot mount on {}", mountpoint.display());
            Ok(Attached::Host(mounted.with_context(what)?))
        }
        Place::Sandbox { ids: (base, len), .. } => {
            let ids = IdMap { base: *base, len: *len };
            let served = match device {
                Device::New(device) => adapter::serve_device(engine, device, ids),
                Device::Left(device) => adapter::take_up_device(engine, device, ids),
                Device::None => anyhow::bail!("no device was handed over"),
            };
            Ok(Attached::Device(served.context("cannot serve the device")?))
        }
    }
}

fn serve_engine(
    plan: &Plan,
    device: Device,
    log_file: &Path,
    runtime: &tokio::runtime::Runtime,
    engine: &Arc<Engine>,
    witness: Option<&Witness>,
    ready: impl FnOnce() -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let pid = std::process::id();
    let is_taken_up = matches!(device, Device::Left(_));
    if !is_taken_up {
        runtime.block_on(engine.probe()).map_err(|error| match &plan.place {
            Place::Host { .. } => error.into(),
            Place::Sandbox { .. } => anyhow::anyhow!("{}", cause(&error)),
        })?;
    }
    engine.keep_trying();
    if plan.write_back.is_some() {
        // Before anybody looks: what was closed in an earlier mount shall be there. In one that is taken up, somebody waits.
        runtime.block_on(engine.replay(if is_taken_up { Duration::ZERO } else { REPLAY_PATIENCE }))?;
        engine.write_back();
    }
    engine.keep_aborting_left_uploads();
    // From before there is anything to end.
    let signals = {
        let _context = runtime.enter();
        EndSignals::new()?
    };
    let attached = attach(plan, device, engine)?;
    let entry = plan.entry(log_file)?;
    let remote = plan.store.clone().filter(|_| matches!(plan.place, Place::Sandbox { .. }));
    let socket = registry::socket_of(pid)?;
    let registered = Kept::of(plan, attached.device(), engine, witness).and_then(|kept| {
        control::serve(&socket, Arc::clone(engine), remote, kept)?;
        // Only now: whoever finds it asks.
        entry.write()
    });
    let told = registered.and_then(|()| match ready() {
        // A daemon that was killed after it had given the mount to this process; the next one knows it by its record.
        Err(error) if is_taken_up => {
            tracing::warn!(%error, "nobody hears that the mount goes on");
            Ok(())
        }
        told => Ok(told?),
    });
    if let Err(error) = told {
        entry.remove();
        if let Attached::Host(mounted) = attached
            && !is_taken_up
        {
            let _ = mounted.unmount();
        }
        return Err(error);
    }
    let (source, mountpoint) = (&entry.source, entry.mountpoint.display());
    if is_taken_up {
        tracing::warn!(source, %mountpoint, "taken up, as the process before was killed");
    } else {
        tracing::info!(source, %mountpoint, "mounted");
    }
    let served = wait(runtime, engine, &plan.place, attached, signals)?;
    if plan.survives
        && let Err(error) = &served
    {
        tracing::error!(%error, "the mount is left to another process");
        leave();
    }
    let left = runtime.block_on(engine.keep_unstored());
    entry.remove();
    tracing::info!(left = left.len(), "unmounted");
    served.context("the mount ended")
}

/// Why a bucket cannot be used, each cause with a word of its own in front.
pub fn cause(error: &FsError) -> String {
    let FsError::Store { source, .. } = error else { return error.to_string() };
    store_cause(source)
}

/// The same for an error of the store itself.
pub fn store_cause(error: &StoreError) -> String {
    let kind = match error {
        StoreError::NoSuchBucket { .. } => "bucket not found",
        StoreError::Credentials { .. } => "access denied",
        StoreError::Unreachable { message, .. } if is_timeout(message) => "timeout",
        StoreError::Unreachable { .. } => "endpoint unreachable",
        StoreError::Throttled { .. } | StoreError::Server { .. } => "the store failed",
        StoreError::Protocol { .. } | StoreError::Integrity { .. } => "endpoint does not speak S3",
        // Their texts begin with the cause.
        StoreError::Denied { .. }
        | StoreError::NotFound { .. }
        | StoreError::Precondition { .. }
        | StoreError::Invalid { .. }
        | StoreError::Unsupported { .. }
        | StoreError::NoSpace { .. }
        | StoreError::Io { .. } => return error.to_string(),
    };
    format!("{kind}: {error}")
}

fn is_timeout(message: &str) -> bool {
    ["timed out", "within", "does not answer", "no answer"].iter().any(|words| message.contains(words))
}

/// Waits for the end: the mount is gone, or a signal asks for it.
///
/// SIGTERM and SIGINT store everything first. A mount of the host is then unmounted, unless it is in use. One in a
/// sandbox cannot be unmounted from here: the end of the process ends it, and the daemon hears of it.
fn wait(
    runtime: &tokio::runtime::Runtime,
    engine: &Arc<Engine>,
    place: &Place,
    attached: Attached,
    signals: EndSignals,
) -> anyhow::Result<std::io::Result<()>> {
    let (tell, told) = std::sync::mpsc::channel();
    let asked = tell.clone();
    std::thread::Builder::new().name("session".to_owned()).spawn(move || {
        // Nobody listens any more after a signal.
        let _ = tell.send(attached.wait());
    })?;
    let (engine, place) = (Arc::clone(engine), place.clone());
    runtime.spawn(async move {
        on_signals(&engine, &place, signals).await;
        if let Place::Sandbox { .. } = place {
            tracing::info!("asked to end");
            let _ = asked.send(Ok(()));
        }
    });
    told.recv().context("nobody waits for the mount")
}

/// The signals that ask for the end.
struct EndSignals {
    term: Signal,
    int: Signal,
}

impl EndSignals {
    /// From now on they are heard. In a runtime's context.
    fn new() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.term.recv() => {}, _ = self.int.recv() => {} }
    }
}

/// Returns when everything is stored after a signal, and a mount of the host is unmounted.
async fn on_signals(engine: &Engine, place: &Place, mut signals: EndSignals) {
    loop {
        signals.next().await;
        engine.drain().await;
        let Place::Host { mountpoint, .. } = place else { return };
        let at = mountpoint.clone();
        let unmounted = tokio::task::spawn_blocking(move || host::unmount(&at, false)).await;
        match unmounted {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::warn!(%error, "asked to end, but the mount is in use"),
            Err(error) => tracing::warn!(%error, "asked to end"),
        }
    }
}

/// The exit code of a worker that leaves its mount to another.
const FAILED_CODE: i32 = 70;

/// Ends this process and leaves its mount to another one.
#[expect(clippy::disallowed_methods, reason = "what guards would clean up, the next process needs")]
fn leave() -> ! {
    std::process::exit(FAILED_CODE)
}

/// S3's largest object of one PUT, in bytes.
const PUT_LEN_MAX: u64 = 5 << 30;

fn engine_options(plan: &Plan) -> EngineOptions {
    let mut options = EngineOptions::new(plan.staging_dir.clone());
    options.prefix.clone_from(&plan.prefix);
    options.read_only = plan.read_only;
    options.metadata = match (plan.posix_metadata, plan.trusts_listings) {
        (true, false) => Metadata::Posix,
        (true, true) => Metadata::Auto,
        (false, _) => Metadata::None,
    };
    options.metadata_ttl = plan.metadata_ttl;
    options.defaults = Defaults { uid: plan.uid, gid: plan.gid, file_perm: plan.file_perm, dir_perm: plan.dir_perm };
    options.on_conflict = match plan.on_conflict {
        Conflict::Overwrite => OnConflict::Overwrite,
        Conflict::Fail => OnConflict::Fail,
        Conflict::KeepBoth => OnConflict::KeepBoth,
    };
    options.part_len = plan.part_len;
    if !plan.multipart {
        options.part_len = PUT_LEN_MAX;
        options.stream_threshold = u64::MAX;
    }
    if let Some(count) = plan.parallel_parts {
        options.max_parallel_parts = count;
    }
    options.memory_limit = plan.memory_limit;
    options.staging_limit = plan.staging_limit;
    options.cache.clone_from(&plan.cache);
    options.status = plan.status;
    options.op_timeout = plan.op_timeout;
    options.survives = plan.survives;
    options.write_back = plan.write_back.map(|WriteBackPlan { bytes_max, age_max }| WriteBack {
        bytes_max,
        age_max,
        ..WriteBack::default()
    });
    options.write_back_by_default = plan.write_back_by_default;
    options.path_classes = plan.path_classes.clone();
    options.tenant.clone_from(&plan.tenant);
    options.origin = origin(plan);
    options
}

/// What the records of staged files say of where they belong.
fn origin(plan: &Plan) -> Origin {
    let remote = plan.store.as_ref();
    let (bucket, directory) = match &plan.source {
        Source::Bucket(name) => (Some(name.clone()), None),
        Source::Directory(path) => (None, Some(path.clone())),
    };
    Origin {
        endpoint: remote.map(|remote| remote.endpoint.clone()),
        provider: remote.map(|remote| remote.provider.clone()),
        region: remote.and_then(|remote| remote.region.clone()),
        path_style: remote.and_then(|remote| remote.path_style),
        bucket,
        directory,
        prefix: plan.prefix.clone(),
    }
}

/// Where the process behind a mount logs if nobody says.
fn default_log(pid: u32) -> anyhow::Result<PathBuf> {
    Ok(registry::directory()?.join(format!("{}.log", registry::name_of(pid))))
}

fn start_log(level: &str, file: &Path) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(level)
        .with_context(|| format!("unknown log level {level:?}: use error, warn, info, debug or trace"))?;
    let log = log::BoundedLog::open(file).with_context(|| format!("cannot write the log {}", file.display()))?;
    let log = std::sync::Mutex::new(log);
    // A second mount in one process keeps the first one's log.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(log).try_init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart() {
        let endpoint = || "https://s3.example.com".to_owned();
        let unreachable = |message: &str| StoreError::Unreachable { endpoint: endpoint(), message: message.to_owned() };
        let message = || "the provider's words".to_owned();
        for (error, begin) in [
            (StoreError::NoSuchBucket { bucket: "b".to_owned(), endpoint: endpoint() }, "bucket not found: "),
            (StoreError::Denied { message: message() }, "access denied: "),
            (StoreError::Credentials { message: message() }, "access denied: credentials refused: "),
            (unreachable("connection refused"), "endpoint unreachable: cannot reach https://s3.example.com"),
            (unreachable("no connection within 10s"), "timeout: cannot reach https://s3.example.com"),
            (StoreError::Protocol { message: message() }, "endpoint does not speak S3: "),
            (StoreError::Server { message: message() }, "the store failed: "),
        ] {
            let text = store_cause(&error);
            assert!(text.starts_with(begin), "{text}");
        }
    }
}
