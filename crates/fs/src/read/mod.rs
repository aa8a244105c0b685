//! Reading one object version: read-ahead, ranged GETs, bounded memory.
//!
//! A [`Reader`] is pinned to one version of one object. Its reads are answered from *parts*: ranged GETs
//! that are under way or done. [`ReadAhead`] decides, without I/O, how far parts should reach; a part's
//! bytes are handed out as they arrive, as a chain of the network's own buffers.

mod memory;
pub(crate) mod part;
mod read_ahead;
mod reader;

use std::sync::Arc;

use sandpail_store::{ETag, ObjectKey, Store};

pub use self::memory::{MemoryBudget, Permit};
pub(crate) use self::part::slice as slice_of;
pub use self::read_ahead::{Ahead, ReadAhead};
pub use self::reader::Reader;
use crate::cache::DiskCache;

/// One version of one object; what a reader is pinned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectVersion {
    /// Its key.
    pub key: ObjectKey,
    /// Its tag: a read of another version fails with [`crate::FsError::Changed`].
    pub etag: ETag,
    /// Its length in bytes.
    pub size: u64,
}

/// What all readers of a mount share.
#[derive(Debug)]
pub struct ReadContext {
    store: Arc<dyn Store>,
    memory: Arc<MemoryBudget>,
    cache: Option<Arc<DiskCache>>,
    runtime: tokio::runtime::Handle,
}

impl ReadContext {
    /// Reads from `store`, within `memory`, through `cache` if there is one; fetches run on `runtime`.
    pub fn new(
        store: Arc<dyn Store>,
        memory: Arc<MemoryBudget>,
        cache: Option<Arc<DiskCache>>,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self { store, memory, cache, runtime }
    }
}
