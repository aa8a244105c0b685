//! The operations of the file system, free of any kernel's types.
//!
//! Every operation follows one pattern: look at the [`Tree`] under its lock and decide; ask the store
//! without the lock; take the lock again and write the answer in, unless a local change has made it void.
//!
//! Lock order: `structure` (shared by all that change the bucket, exclusive for moving a directory),
//! then one file's `Content::commit`, then `tree`. The tree's lock is never held across an await.

mod again;
mod attributes;
mod carry;
mod directory;
mod file;
mod local;
mod lookup;
mod neighbours;
mod plain;
mod receipts;
mod rename;
mod self_copy;
mod siblings;
mod status;
mod survive;
mod unlink;
mod upload;
mod uploads;
mod write_back;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sandpail_spec::{PathClass, PathClasses};
use sandpail_store::{ObjectKey, Store, StoreError};
use tokio::time::Instant;

pub use self::again::Asked;
pub use self::attributes::{SetAttr, SetTime};
pub use self::directory::{DirItem, Listed};
pub(crate) use self::file::clear_set_id;
pub use self::file::{OpenMode, Opened, Whence};
use self::neighbours::Neighbours;
use self::plain::Samples;
use self::receipts::Failures;
pub use self::receipts::{StoredFile, Synced};
use self::rename::Begun;
pub(crate) use self::self_copy::carried;
use self::siblings::Siblings;
use self::status::StatusFiles;
pub use self::status::{STATUS_DIRECTORY, STATUS_FILE};
use self::survive::Restored;
pub use self::survive::{Left, OpenBefore, as_request};
use self::write_back::Waiting;
pub use self::write_back::WriteBack;
use crate::attr::{Attr, Defaults};
use crate::cache::DiskCache;
use crate::content::Content;
use crate::ledger::Ledger;
use crate::local::LocalTree;
use crate::read::{MemoryBudget, ReadContext};
use crate::tree::{Name, Tree};
use crate::write::{Origin, StagingArea, WriteContext, WriteOptions};
use crate::{FsError, FsResult, guard};

/// Whether POSIX attributes are kept in the objects' metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Metadata {
    /// Mode, owner, times, links and `user.*` attributes are read from and written to user metadata.
    Posix,
    /// The same, but files of a directory that plain S3 tools have filled are described by its listing, without a question
    /// for each: a directory without a marker, of which the first files that were asked about carried nothing.
    #[default]
    Auto,
    /// Objects carry nothing of ours; attributes come from listings, links are refused.
    None,
}

/// What to do when an object is not the version that this mount last saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// The last writer wins.
    #[default]
    Overwrite,
    /// The write fails with `ESTALE`; the bytes stay in staging.
    Fail,
    /// Ours is stored as `name (conflict <host> <seconds>)`.
    KeepBoth,
}

/// How an engine behaves.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The part of the bucket that is shown: empty, or a key prefix that ends in `/`.
    pub prefix: String,
    /// No writes.
    pub read_only: bool,
    /// Where attributes live.
    pub metadata: Metadata,
    /// How long names and attributes are believed without asking.
    pub metadata_ttl: Duration,
    /// What objects without metadata get.
    pub defaults: Defaults,
    /// Conflict policy.
    pub on_conflict: OnConflict,
    /// Length of a part of a multipart upload, in bytes; grows for very large files.
    pub part_len: u64,
    /// Parts of one file that are uploaded at the same time.
    pub max_parallel_parts: usize,
    /// A new file larger than this is uploaded while it is written, in bytes.
    pub stream_threshold: u64,
    /// Memory for data under way, in bytes.
    pub memory_limit: u64,
    /// Where written data stays until it is stored.
    pub staging_dir: PathBuf,
    /// The most files that may be staged at the same time; each takes two descriptors of this process.
    pub staged_files_max: Option<u64>,
    /// The most bytes that may be staged; `None`: what the disk holds.
    pub staging_limit: Option<u64>,
    /// While more bytes than this (or half the limit) are staged, those of a file that is uploaded while it is written
    /// are let go of as soon as they are in the bucket.
    pub let_go_above: u64,
    /// Disk cache for reads: directory and size in bytes.
    pub cache: Option<(PathBuf, u64)>,
    /// A file that all mounts of the bucket on this host share, to see each other's changes at once.
    pub neighbours: Option<PathBuf>,
    /// Whether the root has a virtual `.sandpail/status`.
    pub status: bool,
    /// Whether closing returns before the bucket has the file; [`Engine::write_back`] must run then.
    pub write_back: Option<WriteBack>,
    /// How long a caller waits for an operation ([`crate::patience`]); `None`: as long as it takes.
    pub op_timeout: Option<Duration>,
    /// Whether `write_back` holds for paths that no class names. Else it is for classes only.
    pub write_back_by_default: bool,
    /// Which paths are stored when; `local` ones never are.
    pub path_classes: PathClasses,
    /// Whose local files are whose: mounts of one bucket see each other's only with the same tenant.
    pub tenant: Option<String>,
    /// Whether another process may take the mount up when this one is killed ([`Engine::take_up`]).
    pub survives: bool,
    /// Where the files belong, for whoever finds them staged after this process died.
    pub origin: Origin,
}

const MIB: u64 = 1 << 20;
/// How long callers wait if nobody says: longer than a store is given to answer one request, with all tries.
pub const OP_TIMEOUT: Duration = Duration::from_secs(120);
/// An answer counts for the operation that asked for it, whatever the configured time.
const BELIEVED_MIN: Duration = Duration::from_millis(100);

impl EngineOptions {
    /// The defaults, with staging in `staging_dir`.
    pub fn new(staging_dir: PathBuf) -> Self {
        Self {
            prefix: String::new(),
            read_only: false,
            metadata: Metadata::default(),
            metadata_ttl: Duration::from_secs(1),
            defaults: Defaults { uid: 0, gid: 0, file_perm: 0o644, dir_perm: 0o755 },
            on_conflict: OnConflict::default(),
            part_len: 8 * MIB,
            max_parallel_parts: 4,
            stream_threshold: 16 * MIB,
            memory_limit: 512 * MIB,
            staging_dir,
            staged_files_max: None,
            staging_limit: None,
            let_go_above: 1024 * MIB,
            cache: None,
            neighbours: None,
            status: true,
            write_back: None,
            op_timeout: Some(OP_TIMEOUT),
            write_back_by_default: true,
            path_classes: PathClasses::default(),
            tenant: None,
            survives: false,
            origin: Origin::default(),
        }
    }
}

/// What `statfs` shows: an object store has no end, so these are large round figures.
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    /// Bytes of a block.
    pub block_len: u32,
    /// All blocks, and free ones.
    pub blocks: u64,
    /// All inodes, and free ones.
    pub files: u64,
    /// Longest name in bytes.
    pub name_len_max: u32,
}

/// An inode's number and attributes.
#[derive(Clone, Debug)]
pub struct Stat {
    /// Inode number.
    pub ino: u64,
    /// Attributes.
    pub attr: Attr,
    /// Whether it still has a name.
    pub is_linked: bool,
    /// Whether it is in the local tree: nobody but this mount changes it.
    pub is_local: bool,
}

/// A file that is not in the bucket yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unstored {
    /// Its path below the mount.
    pub path: String,
    /// Why the last try failed.
    pub reason: String,
}

#[derive(Debug)]
struct FileHandle {
    ino: u64,
    content: Arc<Content>,
    can_read: bool,
    can_write: bool,
    append: bool,
    /// Of a file of the local tree.
    local: Option<Arc<File>>,
}

impl FileHandle {
    fn local(ino: u64, file: File, mode: OpenMode) -> Self {
        let OpenMode { read, write, append, .. } = mode;
        let (content, local) = (Arc::default(), Some(Arc::new(file)));
        Self { ino, content, can_read: read, can_write: write, append, local }
    }
}

#[derive(Debug)]
struct DirHandle {
    ino: u64,
    snapshot: Mutex<Option<Arc<Vec<DirItem>>>>,
    /// Of a handle that a process which died had given: a position, and the name before it.
    resumed: Option<(u64, Name)>,
}

/// A bucket prefix as a tree of files.
#[derive(Debug)]
pub struct Engine {
    store: Arc<dyn Store>,
    options: EngineOptions,
    tree: Mutex<Tree>,
    files: Mutex<HashMap<u64, Arc<FileHandle>>>,
    dirs: Mutex<HashMap<u64, Arc<DirHandle>>>,
    next_handle: AtomicU64,
    structure: tokio::sync::RwLock<()>,
    neighbours: Neighbours,
    failures: Mutex<HashMap<u64, String>>,
    /// Files that are not stored and may be removed.
    removals: Mutex<BTreeSet<u64>>,
    recent_failures: Failures,
    samples: Samples,
    siblings: Arc<Siblings>,
    status_files: StatusFiles,
    /// What was closed and is not stored yet.
    waiting: Arc<Waiting>,
    ledger: Option<Ledger>,
    /// What is of the class `local`.
    local: Option<LocalTree>,
    restored: Restored,
    reading: Arc<ReadContext>,
    writing: Arc<WriteContext>,
    runtime: tokio::runtime::Handle,
}

/// Adds to a store's error what was being done, and finds out what it means for a file.
fn failed(what: impl FnOnce() -> String) -> impl FnOnce(StoreError) -> FsError {
    move |source| FsError::Store { what: what(), source }
}

fn failed_io(what: &str) -> impl FnOnce(std::io::Error) -> FsError {
    let what = what.to_owned();
    move |source| FsError::Io { what, source }
}

impl Engine {
    /// An engine over `store`; its background work runs on `runtime`.
    ///
    /// # Errors
    /// [`FsError::Io`] if the staging or the cache directory cannot be used.
    pub fn new(store: Arc<dyn Store>, options: EngineOptions, runtime: tokio::runtime::Handle) -> FsResult<Arc<Self>> {
        let staging = StagingArea::open(&options.staging_dir, options.staging_limit)?;
        let ledger = options.survives.then(Ledger::create).transpose();
        let ledger = ledger.map_err(failed_io("cannot make the mount's ledger"))?;
        let engine = Self::on(store, options, runtime, staging, ledger)?;
        // Nobody has a file of an earlier mount open.
        engine.clean_parked()?;
        Ok(Arc::new(engine))
    }

    fn on(
        store: Arc<dyn Store>,
        options: EngineOptions,
        runtime: tokio::runtime::Handle,
        staging: Arc<StagingArea>,
        ledger: Option<Ledger>,
    ) -> FsResult<Self> {
        let cache = match &options.cache {
            Some((dir, size)) => Some(
                DiskCache::open(dir, *size, store.describe())
                    .map_err(failed_io(&format!("cannot use cache directory {}", dir.display())))?,
            ),
            None => None,
        };
        let neighbours = match &options.neighbours {
            Some(path) => Neighbours::open(path).map_err(failed_io(&format!("cannot use {}", path.display())))?,
            None => Neighbours::default(),
        };
        if let Some(count_max) = options.staged_files_max {
            staging.limit_files(count_max);
        }
        let local = match options.path_classes.gives(PathClass::Local) {
            true => {
                let (root, own) = staging.places();
                Some(LocalTree::of_mount(root, own, &options.origin, &options.prefix, options.tenant.as_deref())?)
            }
            false => None,
        };
        let memory = MemoryBudget::new(options.memory_limit);
        let reading = Arc::new(ReadContext::new(Arc::clone(&store), memory, cache, runtime.clone()));
        let let_go_above = options.let_go_above.min(options.staging_limit.unwrap_or(u64::MAX) / 2);
        let believes_all = options.on_conflict == OnConflict::Overwrite;
        let write_options = WriteOptions {
            part_len: options.part_len,
            max_parallel_parts: options.max_parallel_parts,
            stream_threshold: options.stream_threshold,
            // Under the other policies an upload may be refused at its end, and then all bytes must be here.
            let_go_above: believes_all.then_some(let_go_above),
            // An upload that was done when its process died must be known again, not taken for somebody else's.
            records_tags: options.write_back.is_some() || (options.survives && !believes_all),
        };
        let writing = WriteContext::new(Arc::clone(&store), staging, write_options, runtime.clone());
        let writing = Arc::new(writing.with_origin(options.origin.clone()));
        let mut tree = Tree::new(options.defaults.clone());
        if ledger.is_some() {
            tree.keep_notes();
        }
        Ok(Self {
            tree: Mutex::new(tree),
            store,
            options,
            files: Mutex::default(),
            dirs: Mutex::default(),
            next_handle: AtomicU64::new(1),
            structure: tokio::sync::RwLock::default(),
            neighbours,
            failures: Mutex::default(),
            removals: Mutex::default(),
            recent_failures: Failures::default(),
            samples: Samples::default(),
            siblings: Arc::default(),
            status_files: StatusFiles::default(),
            waiting: Arc::default(),
            ledger,
            local,
            restored: Restored::default(),
            reading,
            writing,
            runtime,
        })
    }

    /// How this engine behaves.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Where its background work runs.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// What `statfs` shows.
    pub fn statfs(&self) -> StatFs {
        StatFs { block_len: 4096, blocks: 1 << 38, files: 1 << 40, name_len_max: 255 }
    }

    /// Asks whether the bucket answers and the prefix can be listed.
    ///
    /// # Errors
    /// [`FsError::Store`] with the cause.
    pub async fn probe(&self) -> FsResult<()> {
        self.store.check_bucket(&self.options.prefix).await.map_err(failed(|| self.store.describe()))
    }

    /// Until when a caller waits for an operation that `begun` then. One that `stores` or moves data is not late while the
    /// store takes some.
    pub fn patience_until(&self, begun: tokio::time::Instant, stores: bool) -> Option<tokio::time::Instant> {
        let from = if stores { begun.max(self.writing.progress.last()) } else { begun };
        self.options.op_timeout.map(|limit| from + limit)
    }

    /// The kernel lets go of a node.
    pub fn forget(&self, ino: u64, count: u64) {
        self.tree().forget(ino, count);
    }

    /// Stores everything that is not stored; returns what could not be.
    pub async fn drain(&self) -> Vec<Unstored> {
        self.sync().await.failed
    }

    /// How many files are not stored yet.
    pub fn unstored_count(&self) -> usize {
        self.tree().unstored().len()
    }

    /// At the end of a mount: moves what could not be stored to where the operator finds it.
    pub async fn keep_unstored(&self) -> Vec<Unstored> {
        let mut kept = Vec::new();
        for left in self.drain().await {
            tracing::error!(path = left.path, reason = left.reason, "not stored; its bytes are kept in staging");
            kept.push(left);
        }
        // Not in the head of the loop, which would hold the tree's lock to its end.
        let unstored = self.tree().unstored();
        for ino in unstored {
            let (dirty, path, key) = {
                let tree = self.tree();
                let Some(node) = tree.get(ino) else { continue };
                let Some(dirty) = node.content.as_ref().and_then(|content| content.dirty()) else { continue };
                (dirty, tree.path_of(ino), self.file_key(&tree, ino))
            };
            let reason = guard(&self.failures).get(&ino).cloned().unwrap_or_default();
            let key = key.map_or_else(|_| path.clone(), |key| key.to_string());
            if let Err(error) = dirty.keep(&key, &reason) {
                tracing::error!(path, %error, "its bytes could not be kept");
            }
        }
        kept
    }

    /// Removes what only a living mount needs from this host. The process ends with tasks that still hold the engine, so
    /// nobody else would.
    pub fn end(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.end();
        }
        self.neighbours.leave();
        self.writing.end();
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        guard(&self.tree)
    }

    /// Until when an answer may be believed that came just now. Never at once over: what was asked for
    /// must still count when it is looked at.
    fn believed_until(&self) -> Instant {
        Instant::now() + self.believed_for()
    }

    fn believed_for(&self) -> Duration {
        self.options.metadata_ttl.max(BELIEVED_MIN)
    }

    /// Takes in whether another mount of this host has changed something in a directory.
    fn notice(&self, tree: &mut Tree, ino: u64) {
        let value = self.neighbours.value(&self.dir_prefix(tree, ino));
        if let Some(dir) = tree.dir_mut(ino)
            && dir.told != value
        {
            dir.told = value;
            dir.doubted = Some(Instant::now());
        }
    }

    /// Whether other mounts of this host have the same bucket.
    pub fn has_neighbours(&self) -> bool {
        self.neighbours.has_others()
    }

    /// Tells the other mounts of this host that something was changed in a directory.
    fn tell(&self, tree: &mut Tree, ino: u64) {
        self.notice(tree, ino);
        let value = self.neighbours.tell(&self.dir_prefix(tree, ino));
        if let Some(dir) = tree.dir_mut(ino) {
            dir.told = value;
        }
    }

    fn new_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    fn check_writable(&self) -> FsResult<()> {
        if self.options.read_only { Err(FsError::ReadOnly) } else { Ok(()) }
    }

    /// Checks that a node, or what stands in a directory, may be changed here.
    fn check_may_change(&self, ino: u64) -> FsResult<()> {
        status::check_real(ino)?;
        self.check_writable()
    }

    fn has_posix_metadata(&self) -> bool {
        self.options.metadata != Metadata::None
    }

    /// The full key prefix of a directory.
    fn dir_prefix(&self, tree: &Tree, ino: u64) -> String {
        format!("{}{}", self.options.prefix, tree.prefix_of(ino))
    }

    /// The full key of a file.
    fn file_key(&self, tree: &Tree, ino: u64) -> FsResult<ObjectKey> {
        let node = tree.get(ino).ok_or_else(|| stale(ino))?;
        self.key_in(tree, node.parent, &node.segment)
    }

    /// The full key of a segment in a directory.
    fn key_in(&self, tree: &Tree, parent: u64, segment: &str) -> FsResult<ObjectKey> {
        object_key(format!("{}{segment}", self.dir_prefix(tree, parent)))
    }
}

fn object_key(key: String) -> FsResult<ObjectKey> {
    ObjectKey::new(&key).map_err(|error| match error {
        sandpail_store::InvalidKey::TooLong { .. } => FsError::NameTooLong { what: error.to_string() },
        _ => FsError::Invalid { what: error.to_string() },
    })
}

fn stale(ino: u64) -> FsError {
    FsError::NotFound { what: format!("inode {ino}") }
}

fn not_found(name: &[u8]) -> FsError {
    FsError::NotFound { what: format!("{:?}", String::from_utf8_lossy(name)) }
}

/// The stat of a node, for a reply.
fn stat_of(tree: &Tree, ino: u64) -> FsResult<Stat> {
    let node = tree.get(ino).ok_or_else(|| stale(ino))?;
    let mut attr = node.attr.clone();
    if let Some(dirty) = node.content.as_ref().and_then(|content| content.dirty()) {
        attr.size = dirty.size();
    }
    Ok(Stat { ino, attr, is_linked: node.is_linked, is_local: node.off_bucket })
}
