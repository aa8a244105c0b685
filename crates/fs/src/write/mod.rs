//! Writing one file: staging, extents, upload plans.
//!
//! A [`DirtyFile`] is a sparse staging file on the local disk and three facts about its byte ranges:
//! which are *local* (valid in staging), which are *dirty* (changed since the last upload), and which
//! are still those of the *base* object. What is none of these is a hole and reads as zeros.
//! The same is written to a log beside the file ([`Recorded`]), so that it can be put back if this process dies.
//! What is staged has checksums ([`sums`]), and what a disk gives back is compared with them.
//! [`plan`] decides, without I/O, how to turn that into an object; [`DirtyFile::commit`] does it.

mod adopt;
mod buffers;
mod checked;
mod commit;
mod dirty_file;
pub(crate) mod disk;
mod extents;
mod journal;
pub(crate) mod kept;
mod persist;
mod plan;
mod record;
pub(crate) mod resume;
mod staging;
mod stream;
mod sums;
mod uploads;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use sandpail_store::{ObjectAttributes, ObjectKey, PutOutcome, Store, StoreError, UploadId};

pub(crate) use self::adopt::Adopted;
pub(crate) use self::commit::may_be_done;
pub use self::dirty_file::DirtyFile;
#[doc(hidden)]
pub use self::disk::{DiskChange, set_hook as set_disk_hook};
pub use self::extents::RangeSet;
pub use self::plan::{PartSource, UploadPlan, plan};
#[cfg(test)]
pub(crate) use self::record::of_another_boot;
pub use self::record::{Origin, RecordProblem, Recorded};
pub(crate) use self::record::{attributes_json, parse_attributes};
pub use self::staging::StagingArea;
use crate::FsResult;
use crate::patience::Progress;
use crate::read::ObjectVersion;

/// Where a test looks at what a process that is killed just now would leave.
mod crash {
    /// A system call has changed a staging file or its record.
    #[cfg(not(test))]
    pub(super) fn point() {}

    #[cfg(test)]
    pub(super) fn point() {
        HOOK.with(|hook| hook.borrow_mut().as_mut().map(|look| look()));
    }

    #[cfg(test)]
    type Hook = Box<dyn FnMut()>;

    #[cfg(test)]
    thread_local! {
        static HOOK: std::cell::RefCell<Option<Hook>> = const { std::cell::RefCell::new(None) };
    }

    /// From now on `look` is called at each point that this thread passes.
    #[cfg(test)]
    pub(super) fn watch(look: impl FnMut() + 'static) {
        HOOK.with(|hook| *hook.borrow_mut() = Some(Box::new(look)));
    }
}

/// Uploads of parts that are under way in one mount, over all files.
const PARTS_AT_ONCE: usize = 16;

/// Reads what a staged file still has in the bucket.
#[async_trait]
pub trait BaseReader: Send + Sync {
    /// Reads `range` of `version`, all of it.
    ///
    /// # Errors
    /// [`crate::FsError::Changed`] if the object is another version now.
    async fn read_base(&self, handle: u64, version: &ObjectVersion, range: Range<u64>) -> FsResult<Vec<Bytes>>;
}

/// The object under a staged file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Which version.
    pub version: ObjectVersion,
    /// Only bytes below this offset are the file's; the rest was cut off.
    pub limit: u64,
}

/// What an upload left in the bucket.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The new version.
    pub outcome: PutOutcome,
    /// Its length in bytes.
    pub size: u64,
    /// What it carries; older than asked for if the upload began while the file was written.
    pub attributes_stored: ObjectAttributes,
}

/// How staged files are uploaded.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Length of a part, in bytes.
    pub part_len: u64,
    /// Parts of one file that are uploaded at the same time.
    pub max_parallel_parts: usize,
    /// A new file larger than this is uploaded while it is written, in bytes.
    pub stream_threshold: u64,
    /// While more bytes than this are staged, those of parts that are uploaded are let go of. `None`: never.
    pub let_go_above: Option<u64>,
    /// Whether the record of a file says which tag its one PUT makes, so that a file that was written again after it is put
    /// back over it. Costs an MD5 of the file.
    pub records_tags: bool,
}

/// What all staged files of a mount share.
#[derive(Debug)]
pub struct WriteContext {
    store: Arc<dyn Store>,
    staging: Arc<StagingArea>,
    options: WriteOptions,
    runtime: tokio::runtime::Handle,
    buffers: Arc<buffers::Buffers>,
    /// One permit for each part in memory.
    parts: Arc<tokio::sync::Semaphore>,
    /// What the records say of where files belong.
    origin: Arc<Origin>,
    pub(crate) progress: Progress,
    /// While keys change, no bytes are let go of: what is nowhere but in an upload could not go along.
    keeps_whole: AtomicBool,
    /// It is over.
    lets_go: tokio::sync::Notify,
}

/// As long as it lives, staged files stay whole.
#[derive(Debug)]
pub(crate) struct Whole<'a> {
    context: &'a WriteContext,
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        self.context.keeps_whole.store(false, Ordering::Release);
        self.context.lets_go.notify_waiters();
    }
}

impl WriteContext {
    /// Uploads to `store`.
    pub fn new(
        store: Arc<dyn Store>,
        staging: Arc<StagingArea>,
        mut options: WriteOptions,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let limits = store.capabilities();
        options.part_len = options.part_len.clamp(limits.part_len_min, limits.part_len_max);
        let parts = Arc::new(tokio::sync::Semaphore::new(PARTS_AT_ONCE));
        Self {
            store,
            staging,
            options,
            runtime,
            buffers: Arc::default(),
            parts,
            origin: Arc::default(),
            progress: Progress::default(),
            keeps_whole: AtomicBool::new(false),
            lets_go: tokio::sync::Notify::new(),
        }
    }

    /// Its files belong there.
    #[must_use]
    pub fn with_origin(self, origin: Origin) -> Self {
        Self { origin: Arc::new(origin), ..self }
    }

    /// An upload to `key` was begun: written down, so that it is aborted if this process is killed.
    pub(crate) fn upload_begun(&self, key: &ObjectKey, id: &UploadId) {
        self.staging.uploads.begun(&self.origin, key, id);
    }

    /// From now on no bytes are let go of. One at a time asks for it.
    pub(crate) fn keep_whole(&self) -> Whole<'_> {
        self.keeps_whole.store(true, Ordering::Release);
        Whole { context: self }
    }

    /// It was completed.
    pub(crate) fn upload_ended(&self, id: &UploadId) {
        self.staging.uploads.ended(id);
    }

    /// Drops an upload and its parts.
    pub(crate) async fn abort_upload(&self, key: &ObjectKey, id: &UploadId) {
        match self.store.abort_multipart(key, id).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => self.staging.uploads.ended(id),
            Err(error) => {
                tracing::warn!(?key, %error, "a multipart upload was left behind; it will be tried again");
                self.staging.uploads.left_behind(id);
            }
        }
    }

    /// Aborts uploads of this bucket that processes which died have left. Says how many there were.
    pub(crate) async fn abort_left_uploads(&self) -> usize {
        self.staging.uploads.abort_left(&*self.store, &self.origin).await
    }

    /// Bytes that are staged now, by all files.
    pub fn staged_len(&self) -> u64 {
        self.staging.used()
    }

    pub(crate) fn share_staging(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        self.staging.share_lock()
    }

    /// Leaves what is staged to another process.
    pub(crate) fn leave(&self) {
        self.staging.leave();
    }

    /// Removes the staging directory of this process, unless something in it must be kept.
    pub(crate) fn end(&self) {
        self.staging.end();
    }
}
