//! Reading one object version: read-ahead, ranged GETs, bounded memory.

use sandpail_store::{ETag, ObjectKey};

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
