//! The process behind a mount. It gets its plan, keys included, over a pipe and holds nothing else.

use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use sandpail_fs::adapter::{self, MountOptions};
use sandpail_fs::attr::Defaults;
use sandpail_fs::engine::{Engine, EngineOptions, Metadata, OnConflict};
use sandpail_store::Store;
use serde::{Deserialize, Serialize};

use crate::backend::{self, Source};
use crate::control;
use crate::registry::{self, Entry};
use crate::report;

/// Threads that move data; the FUSE threads come besides.
const DATA_THREADS: usize = 2;

/// Everything that a mount needs to know. Keys travel in it: it is written to a pipe and nowhere else.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) source: Source,
    pub(crate) store: Option<crate::backend::RemotePlan>,
    pub(crate) prefix: String,
    pub(crate) mountpoint: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) allow_other: bool,
    pub(crate) kernel_options: Vec<String>,
    pub(crate) posix_metadata: bool,
    pub(crate) metadata_ttl: Duration,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) file_perm: u32,
    pub(crate) dir_perm: u32,
    pub(crate) on_conflict: Conflict,
    pub(crate) part_len: u64,
    pub(crate) memory_limit: u64,
    pub(crate) staging_dir: PathBuf,
    pub(crate) staging_limit: Option<u64>,
    pub(crate) cache: Option<(PathBuf, u64)>,
    pub(crate) log: String,
    pub(crate) log_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Conflict {
    Overwrite,
    Fail,
    KeepBoth,
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
    pub(crate) fn shown_source(&self) -> String {
        let prefix = self.prefix.trim_end_matches('/');
        if prefix.is_empty() { self.source.to_string() } else { format!("{}/{prefix}", self.source) }
    }
}

/// As a process of its own: reads the plan from standard input, says `ready` or `error: …` on standard output.
pub(crate) fn run_from_stdin() -> ExitCode {
    let mut text = zeroize_on_drop();
    let read = std::io::stdin().read_to_string(&mut text.0);
    let plan = read.map_err(anyhow::Error::from).and_then(|_| Ok(serde_json::from_str::<Plan>(&text.0)?));
    drop(text);
    let result = plan.and_then(|plan| {
        // Away from the terminal and its signals.
        rustix::process::setsid().context("cannot leave the terminal")?;
        run(&plan, || {
            println!("ready");
            std::io::stdout().flush()
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {}", report::in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

struct Wiped(String);

fn zeroize_on_drop() -> Wiped {
    Wiped(String::new())
}

impl Drop for Wiped {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

/// Mounts, says so through `ready`, and serves until it is unmounted.
pub(crate) fn run(plan: &Plan, ready: impl FnOnce() -> std::io::Result<()>) -> anyhow::Result<()> {
    let default_log = registry::directory()?.join(format!("{}.log", registry::name_of(std::process::id())));
    let log_file = plan.log_file.clone().unwrap_or(default_log);
    start_log(&plan.log, &log_file)?;
    let result = serve(plan, &log_file, ready);
    if plan.log_file.is_none() {
        registry::remove_quiet_log(&log_file);
    }
    result
}

fn serve(plan: &Plan, log_file: &Path, ready: impl FnOnce() -> std::io::Result<()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(DATA_THREADS)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let store: Arc<dyn Store> = match (&plan.source, &plan.store) {
        (Source::Directory(path), _) => backend::open_directory(path)?,
        (Source::Bucket(name), Some(remote)) => remote.store(name)?,
        (Source::Bucket(name), None) => anyhow::bail!("bucket {name:?} has no endpoint"),
    };
    let mut options = engine_options(plan);
    options.neighbours = Some(registry::directory()?.join(plan.neighbours_file()));
    let engine = Engine::new(store, options, runtime.handle().clone())?;
    let result = serve_engine(plan, log_file, &runtime, &engine, ready);
    engine.end();
    result
}

fn serve_engine(
    plan: &Plan,
    log_file: &Path,
    runtime: &tokio::runtime::Runtime,
    engine: &Arc<Engine>,
    ready: impl FnOnce() -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let pid = std::process::id();
    runtime.block_on(engine.probe())?;
    engine.keep_trying();
    let options = MountOptions {
        source: plan.shown_source(),
        allow_other: plan.allow_other,
        read_only: plan.read_only,
        extra: plan.kernel_options.clone(),
    };
    let mounted = adapter::mount(Arc::clone(engine), &plan.mountpoint, &options)
        .with_context(|| format!("cannot mount on {}", plan.mountpoint.display()))?;
    let entry = Entry {
        pid,
        source: plan.shown_source(),
        mountpoint: plan.mountpoint.clone(),
        started: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs(),
        log_file: Some(log_file.to_owned()),
    };
    let registered = entry.write().and_then(|()| control::serve(&registry::socket_of(pid)?, Arc::clone(engine)));
    if let Err(error) = registered.and_then(|()| Ok(ready()?)) {
        entry.remove();
        let _ = mounted.unmount();
        return Err(error);
    }
    tracing::info!(source = entry.source, mountpoint = %plan.mountpoint.display(), "mounted");
    end_on_signal(runtime, Arc::clone(engine), plan.mountpoint.clone());
    let served = mounted.wait();
    let left = runtime.block_on(engine.keep_unstored());
    entry.remove();
    tracing::info!(left = left.len(), "unmounted");
    served.context("the mount ended")
}

/// SIGTERM and SIGINT store everything and unmount.
fn end_on_signal(runtime: &tokio::runtime::Runtime, engine: Arc<Engine>, mountpoint: PathBuf) {
    use tokio::signal::unix::{SignalKind, signal};
    runtime.spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            return;
        };
        loop {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            engine.drain().await;
            let at = mountpoint.clone();
            let unmounted = tokio::task::spawn_blocking(move || crate::host::unmount(&at, false)).await;
            match unmounted {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::warn!(%error, "asked to end, but the mount is in use"),
                Err(error) => tracing::warn!(%error, "asked to end"),
            }
        }
    });
}

fn engine_options(plan: &Plan) -> EngineOptions {
    let mut options = EngineOptions::new(plan.staging_dir.clone());
    options.prefix.clone_from(&plan.prefix);
    options.read_only = plan.read_only;
    options.metadata = if plan.posix_metadata { Metadata::Posix } else { Metadata::None };
    options.metadata_ttl = plan.metadata_ttl;
    options.defaults = Defaults { uid: plan.uid, gid: plan.gid, file_perm: plan.file_perm, dir_perm: plan.dir_perm };
    options.on_conflict = match plan.on_conflict {
        Conflict::Overwrite => OnConflict::Overwrite,
        Conflict::Fail => OnConflict::Fail,
        Conflict::KeepBoth => OnConflict::KeepBoth,
    };
    options.part_len = plan.part_len;
    options.memory_limit = plan.memory_limit;
    options.staging_limit = plan.staging_limit;
    options.cache.clone_from(&plan.cache);
    options
}

fn start_log(level: &str, file: &std::path::Path) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(level)
        .with_context(|| format!("unknown log level {level:?}: use error, warn, info, debug or trace"))?;
    let file = File::options()
        .create(true)
        .append(true)
        .open(file)
        .with_context(|| format!("cannot write the log {}", file.display()))?;
    // A second mount in one process keeps the first one's log.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(file).try_init();
    Ok(())
}
