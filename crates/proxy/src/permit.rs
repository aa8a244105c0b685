//! What a request was allowed to do: the only thing that is ever signed and sent.

/// An operation that mounts offer. The names are S3's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are S3's own")]
pub enum Action {
    ListBuckets,
    HeadBucket,
    GetBucketLocation,
    ListObjects,
    ListObjectsV2,
    ListMultipartUploads,
    ListParts,
    HeadObject,
    GetObject,
    GetObjectAttributes,
    PutObject,
    CopyObject,
    DeleteObject,
    DeleteObjects,
    CreateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    CompleteMultipartUpload,
    AbortMultipartUpload,
}

/// Evidence that a request was checked. Made by the scope's check and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    pub(crate) action: Action,
    /// The key as S3 knows it, decoded; none for operations on the bucket.
    pub(crate) key: Option<String>,
    /// The query to send, decoded, built anew.
    pub(crate) query: Vec<(String, String)>,
    /// The source of a copy: a key of the same bucket, decoded.
    pub(crate) copy_source: Option<String>,
    /// The upload that is meant.
    pub(crate) upload_id: Option<String>,
}

impl Permit {
    /// What may be done.
    pub fn action(&self) -> Action {
        self.action
    }

    /// To which object.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}
