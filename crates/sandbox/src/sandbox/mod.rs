//! A living sandbox.

mod background;
mod exec;
mod files;
mod leftovers;
mod logs;
mod mounts;
mod namespace;
mod sessions;
mod table;
mod terminal;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::control::Control;
use crate::record::Record;
use crate::runtime::Shared;
use crate::start::system;
use crate::{
    ByteStream, ExecEvents, ExecSpec, FileEvent, FileInfo, FileReader, IdMap, ListOptions, ProcessInfo, ProcessLogs,
    ProcessSpec, Pty, PtySpec, SandboxError, SandboxId, SessionId, SessionSpec,
};

/// A living sandbox. Cheap to clone; dropping it ends nothing.
#[derive(Clone, Debug)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: SandboxId,
    runtime: Arc<Shared>,
    directory: PathBuf,
    pid: i32,
    ids: IdMap,
    pidfd: AsyncFd<OwnedFd>,
    control: Control,
    /// Written to disk at each change, while the lock is held.
    record: Mutex<Record>,
    /// Commands of a session wait here for their turn.
    turns: Mutex<HashMap<SessionId, Arc<tokio::sync::Mutex<()>>>>,
    /// Children that are commands of sessions just now.
    running: Mutex<HashMap<SessionId, u64>>,
    terminals: tokio::sync::Mutex<HashMap<SessionId, Arc<terminal::Terminal>>>,
    processes: Mutex<HashMap<String, Arc<background::Background>>>,
    /// One mount is attached or detached at a time.
    mounting: tokio::sync::Mutex<()>,
    /// Output of ended commands that others may still write.
    leftovers: leftovers::Leftovers,
}

impl Sandbox {
    /// Connects to a living init, and takes up what an earlier daemon began.
    pub(crate) async fn connect(
        id: SandboxId,
        runtime: Arc<Shared>,
        record: Record,
        pidfd: OwnedFd,
    ) -> Result<Self, SandboxError> {
        let directory = runtime.directory(&id);
        let (control, kept) = Control::connect(&directory).await.map_err(system("connecting to a sandbox"))?;
        let pidfd = crate::sys::watch(pidfd, Interest::READABLE).map_err(system("watching a sandbox"))?;
        let inner = Inner {
            id,
            runtime,
            directory,
            pid: record.pid,
            ids: record.ids,
            pidfd,
            control,
            record: Mutex::new(record),
            turns: Mutex::default(),
            running: Mutex::default(),
            terminals: tokio::sync::Mutex::default(),
            processes: Mutex::default(),
            mounting: tokio::sync::Mutex::default(),
            leftovers: leftovers::Leftovers::default(),
        };
        let sandbox = Self { inner: Arc::new(inner) };
        sandbox.recover_processes(&kept).await?;
        sandbox.recover_terminals(&kept).await?;
        Ok(sandbox)
    }

    /// Its name.
    pub fn id(&self) -> &SandboxId {
        &self.inner.id
    }

    /// The host ids behind its ids.
    pub fn id_map(&self) -> IdMap {
        self.inner.ids
    }

    /// The host's pid of its init.
    pub fn pid(&self) -> i32 {
        self.inner.pid
    }

    /// Replaces the variables that the daemon gives to what runs in this sandbox: commands, sessions, terminals and
    /// processes that start from now on have them. Kept in the sandbox's record.
    ///
    /// They win over defaults and over what an image says. Over them win [`crate::SandboxSpec::env`] and what is given with
    /// a command, session or process. A session takes them over with its next command (and keeps those that are gone); what
    /// it exports afterwards is its own.
    ///
    /// # Errors
    /// [`SandboxError::System`] if the record cannot be written.
    pub fn set_environment(&self, environment: BTreeMap<String, String>) -> Result<(), SandboxError> {
        self.change_record(|record| {
            record.environment = environment;
            record.environment_count += 1;
        })
    }

    /// A descriptor of its init.
    pub(crate) fn pidfd(&self) -> io::Result<OwnedFd> {
        self.inner.pidfd.get_ref().try_clone()
    }

    /// Whether its init lives.
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(self.inner.pidfd.get_ref(), PollFlags::IN)];
        // Readable means ended; an error of poll itself says nothing.
        !matches!(rustix::event::poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }

    /// Returns when its init has ended.
    pub async fn ended(&self) {
        if let Err(error) = self.inner.pidfd.readable().await {
            tracing::debug!(%error, "a sandbox is watched by a runtime that ends");
        }
    }

    /// Starts a command.
    ///
    /// # Errors
    /// [`SandboxError::Gone`]. What the command itself does wrong comes as events.
    pub async fn exec(&self, spec: ExecSpec) -> Result<ExecEvents, SandboxError> {
        self.start_exec(spec).await
    }

    /// Makes a session.
    ///
    /// # Errors
    /// [`SandboxError::SessionExists`].
    pub async fn create_session(&self, spec: SessionSpec) -> Result<SessionId, SandboxError> {
        self.make_session(spec)
    }

    /// Ends a session, its terminal and its running command.
    ///
    /// # Errors
    /// [`SandboxError::NoSession`].
    pub async fn delete_session(&self, id: &SessionId) -> Result<(), SandboxError> {
        self.end_session(id).await
    }

    /// Opens a terminal, or connects to the session's.
    ///
    /// # Errors
    /// [`SandboxError::Exec`] if the shell cannot be started.
    pub async fn open_pty(&self, spec: PtySpec) -> Result<Pty, SandboxError> {
        self.connect_terminal(spec).await
    }

    /// Starts a process in the background.
    ///
    /// # Errors
    /// [`SandboxError::Exec`].
    pub async fn start_process(&self, spec: ProcessSpec) -> Result<ProcessInfo, SandboxError> {
        self.start_background(spec).await
    }

    /// The background processes, ended ones too.
    pub async fn list_processes(&self) -> Vec<ProcessInfo> {
        self.backgrounds().iter().map(|process| process.info()).collect()
    }

    /// The kept output of one.
    ///
    /// # Errors
    /// [`SandboxError::NoProcess`].
    pub async fn process_logs(&self, id: &str) -> Result<ProcessLogs, SandboxError> {
        self.background(id)?.logs()
    }

    /// Kept output, then what comes, until it ends.
    ///
    /// # Errors
    /// [`SandboxError::NoProcess`].
    pub async fn follow_process(&self, id: &str) -> Result<ExecEvents, SandboxError> {
        Ok(self.background(id)?.follow())
    }

    /// Sends a signal to its process group, such as 15.
    ///
    /// # Errors
    /// [`SandboxError::NoProcess`].
    pub async fn kill_process(&self, id: &str, signal: i32) -> Result<(), SandboxError> {
        self.signal_background(id, signal).await
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn read_file(&self, path: &Path) -> Result<FileReader, SandboxError> {
        self.agent().await?.read_file(path).await
    }

    /// Replaces a file whole, or makes it and its parent directories. A failed write leaves the old file.
    ///
    /// # Errors
    /// [`SandboxError::File`], [`SandboxError::TooLarge`].
    pub async fn write_file(&self, path: &Path, body: ByteStream, limit: u64) -> Result<(), SandboxError> {
        self.agent().await?.write_file(path, body, limit).await
    }

    /// Describes a path, following links.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn stat(&self, path: &Path) -> Result<FileInfo, SandboxError> {
        self.agent().await?.stat(path).await
    }

    /// Lists a directory.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn list_files(&self, path: &Path, options: ListOptions) -> Result<Vec<FileInfo>, SandboxError> {
        self.agent().await?.list_files(path, options).await
    }

    /// Makes a directory; with `parents` also those above, and one that is there is no error.
    ///
    /// # Errors
    /// [`SandboxError::File`].
    pub async fn mkdir(&self, path: &Path, parents: bool) -> Result<(), SandboxError> {
        self.agent().await?.mkdir(path, parents).await
    }

    /// Removes a file, or with `recursive` a directory and what is below it.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn delete(&self, path: &Path, recursive: bool) -> Result<(), SandboxError> {
        self.agent().await?.delete(path, recursive).await
    }

    /// Renames, or moves between file systems by copying and removing.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn rename(&self, from: &Path, to: &Path) -> Result<(), SandboxError> {
        self.agent().await?.rename(from, to).await
    }

    /// Reports changes below a directory until the receiver is dropped.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn watch(&self, path: &Path, recursive: bool) -> Result<mpsc::Receiver<FileEvent>, SandboxError> {
        self.agent().await?.watch(path, recursive).await
    }

    /// An uncompressed tar of `/workspace`, names `./a/b`; mounts and `excludes` (below `/workspace`) are left out.
    ///
    /// # Errors
    /// [`SandboxError::Archive`] before the first byte; later ones are the stream's last item.
    pub async fn persist(&self, excludes: Vec<PathBuf>) -> Result<ByteStream, SandboxError> {
        self.agent().await?.persist(excludes).await
    }

    /// Unpacks a tar over `/workspace`; no member lands outside.
    ///
    /// # Errors
    /// [`SandboxError::Archive`], [`SandboxError::TooLarge`].
    pub async fn hydrate(&self, tar: ByteStream, limit: u64) -> Result<(), SandboxError> {
        self.agent().await?.hydrate(tar, limit).await
    }

    /// Attaches a detached mount (from `fsmount` or `open_tree`) at `path`, which is made with its parents if it is not
    /// there (links are resolved inside the sandbox's root). Returns the topmost directory that was made, to be given
    /// back to [`Sandbox::detach`].
    ///
    /// Refused is what leads, through links too, to the root directory, `/proc`, `/sys`, `/dev`, `/run/sandpail` or an
    /// exposed directory.
    ///
    /// # Errors
    /// [`SandboxError::File`], [`SandboxError::System`]; nothing is left then.
    pub async fn attach(&self, mount: OwnedFd, path: &Path) -> Result<Option<PathBuf>, SandboxError> {
        self.attach_mount(mount, path).await
    }

    /// Detaches what was attached at `path`, and nothing else, wherever that path leads by now; an earlier daemon may
    /// have attached it. Removes `made` if it is empty. With `force` it goes even if it is in use.
    ///
    /// # Errors
    /// [`SandboxError::Busy`] names the processes that use it; the mount stays then. [`SandboxError::System`] if nothing
    /// was attached there, or it is not mounted any more.
    pub async fn detach(&self, path: &Path, made: Option<&Path>, force: bool) -> Result<(), SandboxError> {
        self.detach_mount(path, made, force).await
    }

    /// Opens a directory of the sandbox for the host's side (`O_PATH`-free, readable), made with its parents if it is not there;
    /// links are resolved inside the sandbox's root. What [`Sandbox::attach`] refuses is refused here too.
    ///
    /// # Errors
    /// [`SandboxError::File`].
    pub async fn open_directory(&self, path: &Path) -> Result<OwnedFd, SandboxError> {
        self.open_made_directory(path).await
    }

    /// Kills everything and removes everything. Mounts must have been detached, or are gone with it.
    ///
    /// # Errors
    /// When something could not be removed; it is tried again by the next [`crate::Runtime::recover`].
    pub async fn destroy(&self) -> Result<(), SandboxError> {
        self.inner.runtime.remove(&self.inner.id).await
    }
}

impl Sandbox {
    /// Changes the record, in memory and on disk.
    fn change_record<T>(&self, change: impl FnOnce(&mut Record) -> T) -> Result<T, SandboxError> {
        let mut record = self.record();
        let result = change(&mut record);
        record.write(&self.inner.directory).map_err(system("the sandbox's record"))?;
        Ok(result)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.inner.record)
    }
}

/// Locks what stays usable after a panic elsewhere: everything that is kept so is changed in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reading and the writing end of a pipe. With `ids` it belongs to the sandbox's root, who can then open it again by
/// the name `/dev/stderr`.
fn pipe(ids: Option<IdMap>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    if let Some(IdMap { base, .. }) = ids {
        // Both ends are one file.
        rustix::fs::fchown(&writer, Some(rustix::fs::Uid::from_raw(base)), Some(rustix::fs::Gid::from_raw(base)))?;
    }
    Ok((reader.into(), writer.into()))
}

/// A pipe of which the first is for the runtime: the end that is read.
fn pipe_to_us(ids: Option<IdMap>) -> io::Result<(tokio::net::unix::pipe::Receiver, OwnedFd)> {
    let (reader, writer) = pipe(ids)?;
    Ok((tokio::net::unix::pipe::Receiver::from_owned_fd(reader)?, writer))
}

/// A pipe of which the first is for the runtime: the end that is written.
fn pipe_from_us(ids: Option<IdMap>) -> io::Result<(tokio::net::unix::pipe::Sender, OwnedFd)> {
    let (reader, writer) = pipe(ids)?;
    Ok((tokio::net::unix::pipe::Sender::from_owned_fd(writer)?, reader))
}

/// `/dev/null`, of the host: the same device.
fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::File::options().read(true).write(true).open("/dev/null")?.into())
}
