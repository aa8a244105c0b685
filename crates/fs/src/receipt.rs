//! Where a file's bytes are: what `user.sandpail.state` and `.sandpail/status` say.
//!
//! ```text
//!        write              close, fsync, sync          the store acknowledges
//! stored ─────► dirty ──────────────────────► uploading ─────────────────────► stored
//!                 ▲──────────── failure ───────────┘
//! ```
//!
//! Users of the mount read these texts, also guests in sandboxes. So they hold paths below the mount and causes in words
//! of our own; no key, no endpoint, and nothing that a provider has said.

use std::time::{Duration, SystemTime};

use sandpail_store::{ETag, Proof, StoreError};
use serde_json::{Value, json};

use crate::FsError;
use crate::errno::{Errno, errno};

/// The extended attribute that tells a file's state. It is in no list of attributes, so that copies do not carry it.
pub const STATE_ATTRIBUTE: &str = "user.sandpail.state";

/// Where the present bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// On this host: something was changed that is not on its way to the bucket.
    Dirty,
    /// On their way; the store has not acknowledged them.
    Uploading,
    /// In the bucket.
    Stored,
    /// On this host only, and nothing will store them: the path is of the class `local`.
    Local,
    /// The file has no name any more (removed or replaced while open), so nothing will store it.
    Removed,
}

impl FileState {
    /// The one word of the receipt.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dirty => "dirty",
            Self::Uploading => "uploading",
            Self::Stored => "stored",
            Self::Local => "local",
            Self::Removed => "removed",
        }
    }

    /// What a file's facts come to. Changes count for more than an upload of what was there before them.
    pub fn of(is_linked: bool, has_changes: bool, is_uploading: bool) -> Self {
        match (is_linked, has_changes, is_uploading) {
            (false, _, _) => Self::Removed,
            (true, true, _) => Self::Dirty,
            (true, false, true) => Self::Uploading,
            (true, false, false) => Self::Stored,
        }
    }
}

/// How a try to store a file failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why, in words of our own.
    pub cause: &'static str,
    /// What `close` and `fsync` were told.
    pub errno: Errno,
    /// When.
    pub at: SystemTime,
}

impl Failure {
    /// What is told of `error`.
    pub fn of(error: &FsError, at: SystemTime) -> Self {
        Self { cause: cause(error), errno: errno(error), at }
    }

    fn seconds_ago(&self) -> f64 {
        seconds(self.at.elapsed().unwrap_or_default())
    }

    /// The failure of the file at `path`, with how long ago it was.
    pub fn to_json(&self, path: &str) -> Value {
        json!({
            "path": path,
            "error": self.cause,
            "errno": format!("{:?}", self.errno),
            "secondsAgo": self.seconds_ago(),
        })
    }
}

/// What is known of one file.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// Where its bytes are.
    pub state: FileState,
    /// Its length in bytes, as a reader sees it.
    pub size: u64,
    /// The stored version's tag; told only of what is stored.
    pub etag: Option<ETag>,
    /// The stored version's checksum and id, where the store says them.
    pub proof: Proof,
    /// Bytes that are not acknowledged.
    pub unstored_bytes: u64,
    /// How long something has been waiting.
    pub waiting: Option<Duration>,
    /// How the last try failed, if it did.
    pub failure: Option<Failure>,
}

impl Receipt {
    /// One line of JSON. Members that do not apply are left out.
    pub fn to_json(&self) -> Value {
        let mut shown = json!({ "state": self.state.as_str(), "size": self.size });
        match self.state {
            FileState::Stored => {
                if let Some(etag) = &self.etag {
                    shown["etag"] = etag.as_str().into();
                }
                let Proof { checksum, version_id } = &self.proof;
                for (name, value) in [("checksum", checksum), ("version", version_id)] {
                    if let Some(value) = value {
                        shown[name] = value.as_str().into();
                    }
                }
            }
            FileState::Dirty | FileState::Uploading => {
                shown["unstoredBytes"] = self.unstored_bytes.into();
                shown["seconds"] = seconds(self.waiting.unwrap_or_default()).into();
                if let Some(failure) = &self.failure {
                    shown["error"] = failure.cause.into();
                    shown["errno"] = format!("{:?}", failure.errno).into();
                }
            }
            FileState::Local | FileState::Removed => {}
        }
        shown
    }
}

/// Rounded to milliseconds.
pub(crate) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Why a file could not be stored, without a word of anybody else.
fn cause(error: &FsError) -> &'static str {
    match error {
        FsError::Store { source, .. } => cause_at_store(source),
        FsError::Changed { .. } => "the object was changed by someone else",
        FsError::NoSpace { .. } => "no space to stage its bytes",
        FsError::TooLarge { .. } => "larger than the store takes",
        FsError::NameTooLong { .. } => "its name is too long for a key",
        FsError::Io { .. } => "a local file failed",
        FsError::InUpload { .. } => "an earlier upload is not complete",
        FsError::Damaged { .. } => "its staged bytes are damaged on the local disk",
        FsError::ReadOnly => "the mount is read-only",
        FsError::TimedOut { .. } => "the store did not answer in the mount's time for an operation; it is still tried",
        FsError::Interrupted { .. } => "a signal interrupted the program that waited; it is still tried",
        FsError::NotFound { .. }
        | FsError::Exists { .. }
        | FsError::NotADirectory
        | FsError::IsADirectory
        | FsError::NotEmpty
        | FsError::BadHandle
        | FsError::NotPermitted { .. }
        | FsError::Unsupported { .. }
        | FsError::Invalid { .. }
        | FsError::NoAttribute
        | FsError::Range { .. }
        | FsError::Busy { .. }
        | FsError::OtherClass { .. } => "it cannot be stored as it is",
    }
}

fn cause_at_store(error: &StoreError) -> &'static str {
    match error {
        StoreError::Denied { .. } => "access denied",
        StoreError::Credentials { .. } => "credentials refused",
        StoreError::NoSuchBucket { .. } => "the bucket does not exist",
        StoreError::Precondition { .. } => "the object was changed by someone else",
        StoreError::Throttled { .. } => "the store asks to slow down",
        StoreError::Unreachable { .. } => "the store cannot be reached",
        StoreError::Server { .. } => "the store failed",
        StoreError::Integrity { .. } => "the store received other bytes",
        StoreError::Protocol { .. } => "the store does not speak S3",
        StoreError::NoSpace { .. } => "the store is full",
        StoreError::Io { .. } => "a local file failed",
        StoreError::NotFound { .. } | StoreError::Invalid { .. } | StoreError::Unsupported { .. } => {
            "the store refused the request"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_count_for_more_than_an_upload_of_what_was_before() {
        assert_eq!(FileState::of(true, false, false), FileState::Stored);
        assert_eq!(FileState::of(true, true, false), FileState::Dirty);
        assert_eq!(FileState::of(true, false, true), FileState::Uploading);
        assert_eq!(FileState::of(true, true, true), FileState::Dirty);
        assert_eq!(FileState::of(false, true, true), FileState::Removed);
    }

    #[test]
    fn a_receipt_is_one_line_and_tells_nothing_of_the_provider() {
        let secret = || "AKIAEXAMPLE at https://internal.example".to_owned();
        let denied = FsError::Store { what: secret(), source: StoreError::Denied { message: secret() } };
        let receipt = Receipt {
            state: FileState::Dirty,
            size: 7,
            etag: Some(ETag::new("\"old\"")),
            proof: Proof { checksum: Some("md5:old".to_owned()), version_id: Some("7".to_owned()) },
            unstored_bytes: 3,
            waiting: Some(Duration::from_millis(1500)),
            failure: Some(Failure::of(&denied, SystemTime::now())),
        };
        let text = receipt.to_json().to_string();
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            json!({
                "state": "dirty", "size": 7, "unstoredBytes": 3, "seconds": 1.5,
                "error": "access denied", "errno": "EACCES",
            })
        );
        assert!(!text.contains('\n'), "{text}");
        let stored = Receipt { state: FileState::Stored, ..receipt };
        assert_eq!(
            stored.to_json(),
            json!({ "state": "stored", "size": 7, "etag": "old", "checksum": "md5:old", "version": "7" })
        );
    }
}
