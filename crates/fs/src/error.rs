//! What a file operation can fail with. [`crate::errno`] turns it into a number.

use std::ops::Range;
use std::path::PathBuf;

use sandpail_store::StoreError;

/// Result of a file operation.
pub type FsResult<T> = Result<T, FsError>;

/// A failed file operation.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// No such file or directory.
    #[error("{what} does not exist")]
    NotFound {
        /// The path or name.
        what: String,
    },
    /// The name is taken.
    #[error("{what} exists already")]
    Exists {
        /// The path or name.
        what: String,
    },
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// A file was needed.
    #[error("is a directory")]
    IsADirectory,
    /// The directory has entries.
    #[error("directory is not empty")]
    NotEmpty,
    /// The mount or the handle takes no writes.
    #[error("the mount is read-only")]
    ReadOnly,
    /// The handle was not opened for this.
    #[error("the file is not open for this operation")]
    BadHandle,
    /// The caller may not do this.
    #[error("operation not permitted: {what}")]
    NotPermitted {
        /// What was refused and why.
        what: String,
    },
    /// No store has this operation.
    #[error("not supported: {what}")]
    Unsupported {
        /// The operation.
        what: String,
    },
    /// An argument makes no sense.
    #[error("invalid argument: {what}")]
    Invalid {
        /// Which one.
        what: String,
    },
    /// The name or the whole key is too long.
    #[error("name too long: {what}")]
    NameTooLong {
        /// Which one.
        what: String,
    },
    /// Larger than the store's limits allow.
    #[error("file too large: {what}")]
    TooLarge {
        /// Which limit.
        what: String,
    },
    /// No room on the local disk (staging) or in the store.
    #[error("no space: {what}")]
    NoSpace {
        /// Where.
        what: String,
    },
    /// The extended attribute is not there.
    #[error("no such attribute")]
    NoAttribute,
    /// A result does not fit what the caller offers, or what S3 metadata can hold.
    #[error("does not fit: {what}")]
    Range {
        /// What.
        what: String,
    },
    /// In use.
    #[error("busy: {what}")]
    Busy {
        /// What.
        what: String,
    },
    /// A move between what is in the bucket and what is on this host only.
    #[error("{what}: one of them is of the class local and the other is not")]
    OtherClass {
        /// From where to where.
        what: String,
    },
    /// The object was replaced while it was open.
    #[error("{what} was replaced in the bucket while it was open")]
    Changed {
        /// The key.
        what: String,
    },
    /// The bytes are in the bucket already, in an upload that has to be completed before they can be had again.
    #[error("{what} was let go of before its upload was complete")]
    InUpload {
        /// The key.
        what: String,
    },
    /// Bytes that were written and are not stored yet are other bytes on the local disk now. The file is kept as it is.
    #[error("{key}: its staged bytes on the local disk are damaged ({path}, from byte {start} to {end})",
        path = path.display(), start = range.start, end = range.end)]
    Damaged {
        /// The key.
        key: String,
        /// The staging file.
        path: PathBuf,
        /// A piece of it that differs from its sum.
        range: Range<u64>,
    },
    /// The operation took longer than [`op_timeout`](crate::engine::EngineOptions::op_timeout).
    #[error("{what} got no answer for {seconds} s, the mount's time for an operation; the store may still be doing it")]
    TimedOut {
        /// The operation.
        what: &'static str,
        /// How long the caller has waited, in whole seconds.
        seconds: u64,
    },
    /// The caller was told by a signal to end, and does not wait any more.
    #[error("{what} was interrupted by a signal; what it had begun goes on")]
    Interrupted {
        /// The operation.
        what: &'static str,
    },
    /// The store failed.
    #[error("{what}: {source}")]
    Store {
        /// What was done.
        what: String,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// A local file failed (staging, cache).
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}
