//! Keeps a directory and a prefix of a bucket equal, both ways (`localBucket`).
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use sandpail_spec::KeyPrefix;
use sandpail_store::{Store, StoreError};

/// What is kept equal, and how.
#[derive(Debug)]
pub struct SyncOptions {
    /// The directory, opened by whoever knows where it is. Everything below it is untrusted: links are not followed.
    pub directory: OwnedFd,
    /// The bucket.
    pub store: Arc<dyn Store>,
    /// The part of the bucket.
    pub prefix: KeyPrefix,
    /// Changes go from the bucket to the directory only.
    pub read_only: bool,
    /// Time between two looks; a second is usual.
    pub interval: Duration,
    /// Owner and group of what is made in the directory.
    pub owner: (u32, u32),
    /// Where the last snapshot is kept, so that a restarted sync knows what was equal.
    pub state_file: std::path::PathBuf,
}

/// What a sync has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Files that went up.
    pub uploaded: u64,
    /// Files that came down.
    pub downloaded: u64,
    /// Removed on either side.
    pub deleted: u64,
    /// Both sides had changed: the bucket's version is kept under a second name.
    pub conflicts: u64,
    /// What is not equal now, with the reasons; empty when all is well.
    pub failed: Vec<(String, String)>,
}

/// Why a sync cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The bucket does not answer as it must.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory cannot be read or written.
    #[error("{what}: {source}")]
    Directory {
        /// What was tried.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A running sync. Dropping it stops it without a last look.
#[derive(Debug)]
pub struct Sync {}

impl Sync {
    /// Brings both sides together once, then goes on in the background.
    ///
    /// # Errors
    /// When the first look fails; nothing runs then.
    pub async fn start(_options: SyncOptions) -> Result<Self, SyncError> {
        todo!()
    }

    /// What it has done.
    pub fn report(&self) -> SyncReport {
        todo!()
    }

    /// Looks a last time, carries everything over, and stops. The files stay on both sides.
    ///
    /// # Errors
    /// What could not be carried over; the sync goes on then, so that nothing is lost and it can be tried again.
    pub async fn stop(&self) -> Result<SyncReport, SyncError> {
        todo!()
    }
}
