//! The words of the [`Store`](crate::Store) trait.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::ObjectKey;

/// The entity tag of one version of an object, without its quotes. Opaque: only compared.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ETag(Arc<str>);

impl ETag {
    /// Takes a tag as a server sent it, with or without quotes.
    pub fn new(tag: &str) -> Self {
        Self(tag.trim().trim_matches('"').into())
    }

    /// The tag without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// What an object carries beside its bytes, and what an edit must keep.
///
/// `metadata` names are lower case, without `x-amz-meta-`; values are as on the wire after decoding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectAttributes {
    /// User metadata (`x-amz-meta-*`).
    pub metadata: BTreeMap<String, String>,
    /// `Content-Type`; absent means the store's default.
    pub content_type: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// `Content-Disposition`.
    pub content_disposition: Option<String>,
    /// `Content-Language`.
    pub content_language: Option<String>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
    /// `Expires`, as text.
    pub expires: Option<String>,
    /// `x-amz-storage-class`; absent means the bucket's default.
    pub storage_class: Option<String>,
    /// `x-amz-server-side-encryption`.
    pub sse: Option<String>,
    /// `x-amz-server-side-encryption-aws-kms-key-id`.
    pub sse_kms_key_id: Option<String>,
    /// Number of tags, as HEAD and GET report it (`x-amz-tagging-count`); 0 if none or unknown.
    pub tag_count: u32,
    /// The tags that a new object gets, in the form of `x-amz-tagging` (a URL query). Never reported, see
    /// [`Store::tagging`](crate::Store::tagging).
    pub tagging: Option<String>,
}

/// Most bytes of user metadata, names and values together (S3's limit).
pub const METADATA_LEN_MAX: usize = 2048;

impl ObjectAttributes {
    /// Checks what every S3 store checks before it takes metadata.
    ///
    /// # Errors
    /// [`StoreError::Invalid`](crate::StoreError::Invalid) over [`METADATA_LEN_MAX`].
    pub fn check(&self) -> crate::StoreResult<()> {
        let metadata_len: usize = self.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        if metadata_len > METADATA_LEN_MAX {
            return Err(crate::StoreError::Invalid {
                message: format!("{metadata_len} bytes of metadata are more than S3's {METADATA_LEN_MAX}"),
            });
        }
        Ok(())
    }
}

/// One version of an object, as HEAD or GET describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Length of the whole object in bytes.
    pub size: u64,
    /// Which version this is.
    pub etag: ETag,
    /// When it was stored, by the server's clock (whole seconds over HTTP).
    pub last_modified: SystemTime,
    /// What it carries beside its bytes.
    pub attributes: ObjectAttributes,
}

/// One object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// The full key. Not an [`ObjectKey`]: a listing shows whatever the bucket holds.
    pub key: String,
    /// Length in bytes.
    pub size: u64,
    /// Which version; absent where the provider leaves it out.
    pub etag: Option<ETag>,
    /// When it was stored, by the server's clock.
    pub last_modified: SystemTime,
    /// `StorageClass`, if named.
    pub storage_class: Option<String>,
}

/// What to list. Keys come in ascending order of their UTF-8 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Only keys that begin so; empty for all.
    pub prefix: String,
    /// With `true`, keys are rolled up after the first `/` behind `prefix`.
    pub delimited: bool,
    /// Only keys after this one.
    pub start_after: Option<String>,
    /// Where an earlier page ended ([`ListPage::next`]).
    pub continuation: Option<String>,
    /// The most entries of a page, 1 to 1000; 0 means 1000.
    pub max_keys: u16,
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Objects directly under the prefix.
    pub objects: Vec<ListedObject>,
    /// Rolled-up prefixes, full, each ending in `/`.
    pub prefixes: Vec<String>,
    /// How to ask for the next page; `None` if this is the last one.
    pub next: Option<String>,
}

/// What must hold of the stored object for a write to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    Always,
    /// There is no such object (`If-None-Match: *`).
    Absent,
    /// The object is this version (`If-Match`).
    Matches(ETag),
}

/// The version to copy from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySource {
    /// The key, in the same bucket.
    pub key: ObjectKey,
    /// Refuse ([`StoreError::Precondition`](crate::StoreError::Precondition)) unless the source is this version.
    pub etag: Option<ETag>,
}

/// The bytes of an upload. Can be read more than once, for retries.
#[derive(Clone, Debug)]
pub enum PutBody {
    /// In memory, as a chain of buffers.
    Chunks(Vec<Bytes>),
    /// A byte range of a file (half-open); read with positioned reads, while it is sent.
    File {
        /// The file to read.
        file: Arc<File>,
        /// Byte offsets, half-open.
        range: Range<u64>,
    },
}

impl PutBody {
    /// No bytes at all.
    pub fn empty() -> Self {
        Self::Chunks(Vec::new())
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Chunks(chunks) => chunks.iter().map(|chunk| chunk.len() as u64).sum(),
            Self::File { range, .. } => range.end - range.start,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Bytes> for PutBody {
    fn from(bytes: Bytes) -> Self {
        Self::Chunks(vec![bytes])
    }
}

/// What a finished write left in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutOutcome {
    /// The new version.
    pub etag: ETag,
    /// When it was stored, where the answer says so (copies do, uploads mostly do not).
    pub last_modified: Option<SystemTime>,
    /// What else the store said of it.
    pub proof: Proof,
}

/// What a store says of a version besides its tag, where it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// A checksum of all of the object's bytes, which the store has compared or keeps: the algorithm's name in lower case, a
    /// colon, and the sum in Base64, as in `crc64nvme:AAAAAAAAAAA=`.
    pub checksum: Option<String>,
    /// The version's id in a bucket that keeps versions (`x-amz-version-id`).
    pub version_id: Option<String>,
}

impl Proof {
    /// For stores whose tag of 32 digits is the MD5 of the bytes.
    pub(crate) fn of_md5_tag(etag: &ETag) -> Self {
        let md5 = hex::decode(etag.as_str()).ok().filter(|md5| md5.len() == 16);
        Self { checksum: md5.map(|md5| format!("md5:{}", STANDARD.encode(md5))), version_id: None }
    }
}

/// The name of a multipart upload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(pub String);

/// A part that was uploaded or copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// 1 to 10,000.
    pub number: u32,
    /// The part's tag, to be named at completion.
    pub etag: ETag,
    /// Base64 CRC64NVME of the part, if the upload carries checksums.
    pub checksum: Option<String>,
}

/// A part of an upload in progress, as the store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPart {
    /// 1 to 10,000.
    pub number: u32,
    /// The part's tag.
    pub etag: ETag,
    /// Length in bytes.
    pub size: u64,
    /// When it was stored, by the server's clock.
    pub last_modified: SystemTime,
}

/// A multipart upload that was begun and neither completed nor aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadInProgress {
    /// The key it is for.
    pub key: String,
    /// Its name.
    pub id: UploadId,
    /// When it was begun.
    pub initiated: SystemTime,
}

/// What a store can do; the engine plans with it. Values come from the provider's table or a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `If-Match` and `If-None-Match` on PUT and CompleteMultipartUpload are obeyed.
    pub conditional_put: bool,
    /// `If-Match` on DELETE is obeyed.
    pub conditional_delete: bool,
    /// UploadPartCopy works, with any byte range.
    pub part_copy: bool,
    /// All parts but the last must have one length (R2).
    pub equal_parts: bool,
    /// Smallest length of a part that is not the last, in bytes.
    pub part_len_min: u64,
    /// Largest length of a part, in bytes.
    pub part_len_max: u64,
    /// Most parts of an upload.
    pub part_count_max: u32,
    /// Largest object that one PUT takes, in bytes.
    pub put_len_max: u64,
    /// Largest object that one CopyObject takes, in bytes.
    pub copy_len_max: u64,
}

impl Default for Capabilities {
    /// Amazon S3's own.
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        Self {
            conditional_put: true,
            conditional_delete: true,
            part_copy: true,
            equal_parts: false,
            part_len_min: 5 * MIB,
            part_len_max: 5 * GIB,
            part_count_max: 10_000,
            put_len_max: 5 * GIB,
            copy_len_max: 5 * GIB,
        }
    }
}
