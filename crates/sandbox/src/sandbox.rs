//! A living sandbox.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::{
    ByteStream, ExecEvents, ExecSpec, FileEvent, FileInfo, FileReader, IdMap, ListOptions, ProcessInfo, ProcessLogs,
    ProcessSpec, Pty, PtySpec, SandboxError, SandboxId, SessionId, SessionSpec,
};

/// A living sandbox. Cheap to clone; dropping it ends nothing.
#[derive(Clone, Debug)]
pub struct Sandbox {}

impl Sandbox {
    /// Its name.
    pub fn id(&self) -> &SandboxId {
        todo!()
    }

    /// The host ids behind its ids.
    pub fn id_map(&self) -> IdMap {
        todo!()
    }

    /// The host's pid of its init.
    pub fn pid(&self) -> i32 {
        todo!()
    }

    /// Whether its init lives.
    pub fn is_alive(&self) -> bool {
        todo!()
    }

    /// Returns when its init has ended.
    pub async fn ended(&self) {
        todo!()
    }

    /// Starts a command.
    ///
    /// # Errors
    /// [`SandboxError::Gone`]. What the command itself does wrong comes as events.
    pub async fn exec(&self, _spec: ExecSpec) -> Result<ExecEvents, SandboxError> {
        todo!()
    }

    /// Makes a session.
    ///
    /// # Errors
    /// [`SandboxError::SessionExists`].
    pub async fn create_session(&self, _spec: SessionSpec) -> Result<SessionId, SandboxError> {
        todo!()
    }

    /// Ends a session, its terminal and its running command.
    ///
    /// # Errors
    /// [`SandboxError::NoSession`].
    pub async fn delete_session(&self, _id: &SessionId) -> Result<(), SandboxError> {
        todo!()
    }

    /// Opens a terminal, or connects to the session's.
    ///
    /// # Errors
    /// [`SandboxError::Exec`] if the shell cannot be started.
    pub async fn open_pty(&self, _spec: PtySpec) -> Result<Pty, SandboxError> {
        todo!()
    }

    /// Starts a process in the background.
    ///
    /// # Errors
    /// [`SandboxError::Exec`].
    pub async fn start_process(&self, _spec: ProcessSpec) -> Result<ProcessInfo, SandboxError> {
        todo!()
    }

    /// The background processes, ended ones too.
    pub async fn list_processes(&self) -> Vec<ProcessInfo> {
        todo!()
    }

    /// The kept output of one.
    ///
    /// # Errors
    /// [`SandboxError::NoProcess`].
    pub async fn process_logs(&self, _id: &str) -> Result<ProcessLogs, SandboxError> {
        todo!()
    }

    /// Kept output, then what comes, until it ends.
    ///
    /// # Errors
    /// [`SandboxError::NoProcess`].
    pub async fn follow_process(&self, _id: &str) -> Result<ExecEvents, SandboxError> {
        todo!()
    }

    /// Sends a signal to its process group, such as 15.
    ///
    /// # Errors
    /// [`SandboxError::NoProcess`].
    pub async fn kill_process(&self, _id: &str, _signal: i32) -> Result<(), SandboxError> {
        todo!()
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn read_file(&self, _path: &Path) -> Result<FileReader, SandboxError> {
        todo!()
    }

    /// Replaces a file whole, or makes it and its parent directories. A failed write leaves the old file.
    ///
    /// # Errors
    /// [`SandboxError::File`], [`SandboxError::TooLarge`].
    pub async fn write_file(&self, _path: &Path, _body: ByteStream, _limit: u64) -> Result<(), SandboxError> {
        todo!()
    }

    /// Describes a path, following links.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn stat(&self, _path: &Path) -> Result<FileInfo, SandboxError> {
        todo!()
    }

    /// Lists a directory.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn list_files(&self, _path: &Path, _options: ListOptions) -> Result<Vec<FileInfo>, SandboxError> {
        todo!()
    }

    /// Makes a directory; with `parents` also those above, and one that is there is no error.
    ///
    /// # Errors
    /// [`SandboxError::File`].
    pub async fn mkdir(&self, _path: &Path, _parents: bool) -> Result<(), SandboxError> {
        todo!()
    }

    /// Removes a file, or with `recursive` a directory and what is below it.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn delete(&self, _path: &Path, _recursive: bool) -> Result<(), SandboxError> {
        todo!()
    }

    /// Renames, or moves between file systems by copying and removing.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn rename(&self, _from: &Path, _to: &Path) -> Result<(), SandboxError> {
        todo!()
    }

    /// Reports changes below a directory until the receiver is dropped.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::File`].
    pub async fn watch(&self, _path: &Path, _recursive: bool) -> Result<mpsc::Receiver<FileEvent>, SandboxError> {
        todo!()
    }

    /// An uncompressed tar of `/workspace`, names `./a/b`; mounts and `excludes` (below `/workspace`) are left out.
    ///
    /// # Errors
    /// [`SandboxError::Archive`] before the first byte; later ones are the stream's last item.
    pub async fn persist(&self, _excludes: Vec<PathBuf>) -> Result<ByteStream, SandboxError> {
        todo!()
    }

    /// Unpacks a tar over `/workspace`; no member lands outside.
    ///
    /// # Errors
    /// [`SandboxError::Archive`], [`SandboxError::TooLarge`].
    pub async fn hydrate(&self, _tar: ByteStream, _limit: u64) -> Result<(), SandboxError> {
        todo!()
    }

    /// Attaches a detached mount (from `fsmount` or `open_tree`) at `path`, which is made with its parents if it is not
    /// there (links are resolved inside the sandbox's root). Returns the topmost directory that was made, to be given
    /// back to [`Sandbox::detach`].
    ///
    /// # Errors
    /// [`SandboxError::File`], [`SandboxError::System`]; nothing is left then.
    pub async fn attach(&self, _mount: OwnedFd, _path: &Path) -> Result<Option<PathBuf>, SandboxError> {
        todo!()
    }

    /// Detaches what is mounted at `path` and removes `made` if it is empty. With `force` it goes even if it is in use.
    ///
    /// # Errors
    /// [`SandboxError::Busy`] names the processes that use it; the mount stays then.
    pub async fn detach(&self, _path: &Path, _made: Option<&Path>, _force: bool) -> Result<(), SandboxError> {
        todo!()
    }

    /// Opens a directory of the sandbox for the host's side (`O_PATH`-free, readable), made with its parents if it is not there;
    /// links are resolved inside the sandbox's root.
    ///
    /// # Errors
    /// [`SandboxError::File`].
    pub async fn open_directory(&self, _path: &Path) -> Result<OwnedFd, SandboxError> {
        todo!()
    }

    /// Kills everything and removes everything. Mounts must have been detached, or are gone with it.
    ///
    /// # Errors
    /// When something could not be removed; it is tried again by the next [`crate::Runtime::recover`].
    pub async fn destroy(&self) -> Result<(), SandboxError> {
        todo!()
    }
}
