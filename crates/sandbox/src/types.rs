//! What callers ask for, and what they get.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;

use crate::{SandboxError, SandboxId, SessionId};

/// Where sandboxes start, and what relative paths mean.
pub const WORKSPACE: &str = "/workspace";

/// The root file system of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RootFs {
    /// The host's system directories, read-only below a private overlay.
    #[default]
    Host,
    /// A directory that holds a root file system; read-only below a private overlay.
    Directory(PathBuf),
    /// An OCI image layout (directory or tar), or what `docker save` wrote; unpacked once per image.
    Image(PathBuf),
}

/// Limits of one sandbox.
///
/// A sandbox without any can still take all memory, processors and disk of the host: set `memory` and `disk` where guests
/// are not trusted. Bounded in any case are what `pids` and `open_files` say, `/dev/shm` (a quarter of `memory`, else of
/// the host's, at most 1 GiB), the other small file systems in memory, and core files, of which there are none.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Memory in bytes; swap is off then. `None` is no limit.
    pub memory: Option<u64>,
    /// Processes and threads; 4096 if `None`, where the host has control groups.
    pub pids: Option<u64>,
    /// CPUs, such as 1.5. `None` is no limit.
    pub cpus: Option<f64>,
    /// Bytes that files of the sandbox's own (not of mounts) may take on the host's disk. `None` is no limit.
    pub disk: Option<u64>,
    /// Open files of each process; 65,536 if `None`. Never more than the daemon's own hard limit.
    pub open_files: Option<u64>,
}

/// Processes and threads of a sandbox that was given no limit.
const PIDS_DEFAULT: u64 = 4096;

/// Open files of a process that was given no limit.
const OPEN_FILES_DEFAULT: u64 = 65_536;

/// Most bytes of `/dev/shm`.
const SHARED_LEN_MAX: u64 = 1024 * 1024 * 1024;

impl Limits {
    /// With limits where none were asked for, of what no sandbox needs without end.
    pub(crate) fn with_defaults(&self) -> Self {
        Self { pids: self.pids.or(Some(PIDS_DEFAULT)), ..self.clone() }
    }

    /// Open files of each process.
    pub(crate) fn open_files(&self, hard_limit: Option<u64>) -> u64 {
        self.open_files.unwrap_or(OPEN_FILES_DEFAULT).min(hard_limit.unwrap_or(u64::MAX))
    }

    /// Bytes that `/dev/shm` holds, on a host with this much memory.
    pub(crate) fn shared_len(&self, host_memory: u64) -> u64 {
        (self.memory.unwrap_or(host_memory).min(host_memory) / 4).min(SHARED_LEN_MAX)
    }
}

/// What a new sandbox is like.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SandboxSpec {
    /// Root file system.
    pub rootfs: RootFs,
    /// Limits.
    pub limits: Limits,
    /// Variables of every command.
    pub env: BTreeMap<String, String>,
    /// More directories of the host that are visible read-only at the same path.
    pub expose: Vec<PathBuf>,
    /// Files of the daemon's that the sandbox sees, read-only whatever it does, in each kind of root file system. Not part
    /// of what is serialised: they are on disk once the sandbox is made.
    #[serde(skip)]
    pub files: Vec<SandboxFile>,
}

/// A file of the daemon's, such as a bundle of certificates. Everybody in the sandbox may read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxFile {
    /// Where, absolute. A link there is replaced by the file; `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` replace
    /// those that each sandbox has. Directories above are made.
    pub path: PathBuf,
    /// What it holds. Files of equal content share one copy on disk.
    pub content: Bytes,
    /// Whether it is left out where nothing is at `path`: for files that distributions keep at different places.
    pub is_optional: bool,
}

/// The host ids behind the sandbox's ids: inside `0..len` is outside `base..base + len`, users and groups alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IdMap {
    /// First host id.
    pub base: u32,
    /// How many.
    pub len: u32,
}

/// A command.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    /// Program and arguments, one word each; not empty. The first may be a shell builtin.
    pub argv: Vec<String>,
    /// Working directory; `None`: the session's, else `/workspace`. Absolute.
    pub cwd: Option<PathBuf>,
    /// Variables for this command only.
    pub env: BTreeMap<String, String>,
    /// What it reads from standard input.
    pub stdin: Bytes,
    /// The whole process group is killed after this time; exit code 124 and a last line on stderr.
    pub timeout: Option<Duration>,
    /// The session whose working directory and variables it uses and may change; made if it is not there.
    pub session: Option<SessionId>,
}

/// What a command does. `Exit` or `Failed` is the last one, exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// A chunk of standard output.
    Stdout(Bytes),
    /// A chunk of standard error.
    Stderr(Bytes),
    /// The command itself ended; 128+n for signal n.
    Exit {
        /// As a shell would say it.
        code: i32,
    },
    /// It could not be run or watched any longer.
    Failed {
        /// Why.
        message: String,
    },
}

/// A bounded stream of events. If the receiver is dropped, the command runs on and its output is thrown away.
pub type ExecEvents = mpsc::Receiver<ExecEvent>;

/// A new session.
#[derive(Clone, Debug, Default)]
pub struct SessionSpec {
    /// Its name; a new one is made if `None`.
    pub id: Option<SessionId>,
    /// Where it starts; `/workspace` if `None`.
    pub cwd: Option<PathBuf>,
    /// Its variables.
    pub env: BTreeMap<String, String>,
}

/// A terminal to open.
#[derive(Clone, Debug)]
pub struct PtySpec {
    /// Width in characters, at least 1.
    pub cols: u16,
    /// Height in lines, at least 1.
    pub rows: u16,
    /// The shell; `bash` (else `sh`) if `None`.
    pub shell: Option<String>,
    /// The session it belongs to: that terminal outlives the connection and replays recent output.
    pub session: Option<SessionId>,
}

/// A connection to a terminal. Dropping it ends a terminal without a session.
#[derive(Debug)]
pub struct Pty {
    /// What the terminal shows; `Replayed` comes first, once.
    pub output: mpsc::Receiver<PtyEvent>,
    /// What is typed and resized.
    pub input: mpsc::Sender<PtyInput>,
}

/// What a terminal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PtyEvent {
    /// Bytes to show.
    Output(Bytes),
    /// What came before has been replayed; from here on it is live.
    Ready,
    /// The shell ended.
    Exit {
        /// Its code, 128+n for signal n.
        code: i32,
        /// The signal's name, such as `SIGKILL`.
        signal: Option<String>,
    },
}

/// What a terminal is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PtyInput {
    /// Bytes as typed.
    Bytes(Bytes),
    /// A new size, each at least 1.
    Resize {
        /// Width in characters.
        cols: u16,
        /// Height in lines.
        rows: u16,
    },
}

/// A background process to start.
#[derive(Clone, Debug, Default)]
pub struct ProcessSpec {
    /// Its name; a new one is made if `None`.
    pub id: Option<String>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Working directory, absolute; `/workspace` if `None`.
    pub cwd: Option<PathBuf>,
    /// Variables.
    pub env: BTreeMap<String, String>,
    /// Killed after this time.
    pub timeout: Option<Duration>,
}

/// A background process.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProcessInfo {
    /// Its name.
    pub id: String,
    /// Its pid as the sandbox sees it.
    pub pid: i32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its state.
    pub state: ProcessState,
    /// Start, in milliseconds since 1970.
    pub started_ms: u64,
    /// End, in milliseconds since 1970.
    pub ended_ms: Option<u64>,
}

/// Where a background process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ProcessState {
    /// It runs.
    Running,
    /// It ended with this code, 128+n for signal n.
    Exited(i32),
}

/// The kept output of a background process (the newest bytes, bounded).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessLogs {
    /// Standard output.
    pub stdout: Bytes,
    /// Standard error.
    pub stderr: Bytes,
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Other,
}

/// A file's attributes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileInfo {
    /// Absolute path in the sandbox.
    pub path: PathBuf,
    /// What it is.
    pub kind: FileKind,
    /// Length in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Milliseconds since 1970.
    pub modified_ms: i64,
}

/// Bytes as they come. An `Err` is the last item.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, SandboxError>> + Send>>;

/// A file that is being read.
pub struct FileReader {
    /// Its length when it was opened, in bytes.
    pub size: u64,
    /// Its bytes.
    pub body: ByteStream,
}

impl std::fmt::Debug for FileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileReader").field("size", &self.size).finish_non_exhaustive()
    }
}

/// How to list a directory.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListOptions {
    /// Whole subtrees; links are not followed.
    pub recursive: bool,
    /// Names that begin with `.` too.
    pub hidden: bool,
}

/// A change below a watched directory.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileEvent {
    /// `create`, `modify`, `delete` or `move`.
    pub kind: String,
    /// Absolute path in the sandbox.
    pub path: PathBuf,
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// What `Runtime::recover` found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Sandboxes that are alive.
    pub living: Vec<crate::Sandbox>,
    /// Sandboxes that had died; what they left is removed.
    pub removed: Vec<SandboxId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_bounded() {
        let none = Limits::default();
        assert_eq!(none.with_defaults(), Limits { pids: Some(4096), ..Limits::default() });
        assert_eq!((none.open_files(None), none.open_files(Some(20_000))), (65_536, 20_000));
        assert_eq!((none.shared_len(2 << 30), none.shared_len(64 << 30)), (512 << 20, 1 << 30));
        let some = Limits { memory: Some(64 << 20), pids: Some(7), open_files: Some(64), ..Limits::default() };
        assert_eq!(some.with_defaults(), some);
        assert_eq!((some.open_files(Some(20_000)), some.shared_len(64 << 30)), (64, 16 << 20));
    }
}
