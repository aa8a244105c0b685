//! What can go wrong with a sandbox.

use std::io;
use std::path::PathBuf;

/// A failure. Its text is for people and holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No file or directory at this path (of the sandbox).
    #[error("File not found: {}", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// A file operation inside the sandbox failed.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried: `read`, `write`, …
        operation: &'static str,
        /// The path in the sandbox.
        path: PathBuf,
        /// Why; `raw_os_error` is the errno, so that callers can tell `EROFS` or `EISDIR`.
        source: io::Error,
    },
    /// A stream is larger than the limit.
    #[error("payload too large: {len} bytes exceeds the {limit}-byte limit")]
    TooLarge {
        /// Bytes seen so far, or announced.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A `tar` operation failed; `exit` is a code as `tar` would have.
    #[error("{message}")]
    Archive {
        /// 2 for a fatal error.
        exit: i32,
        /// Why.
        message: String,
    },
    /// The command could not be started.
    #[error("{message}")]
    Exec {
        /// Why.
        message: String,
    },
    /// The session is there already.
    #[error("Session '{id}' already exists")]
    SessionExists {
        /// Its id.
        id: String,
    },
    /// There is no such session.
    #[error("Session '{id}' not found")]
    NoSession {
        /// Its id.
        id: String,
    },
    /// There is no such background process.
    #[error("Process '{id}' not found")]
    NoProcess {
        /// Its id.
        id: String,
    },
    /// Something in the sandbox uses the mount.
    #[error("{} is in use by {}", path.display(), users.join(", "))]
    Busy {
        /// Where it is mounted.
        path: PathBuf,
        /// Who: `python (pid 12)`; pids as the sandbox sees them.
        users: Vec<String>,
    },
    /// The sandbox is gone.
    #[error("the sandbox has ended")]
    Gone,
    /// The host cannot do it; the text says what to change.
    #[error("{0}")]
    Host(String),
    /// A system call of the host's side failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why.
        source: io::Error,
    },
}
