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

impl Action {
    /// S3's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ListBuckets => "ListBuckets",
            Self::HeadBucket => "HeadBucket",
            Self::GetBucketLocation => "GetBucketLocation",
            Self::ListObjects => "ListObjects",
            Self::ListObjectsV2 => "ListObjectsV2",
            Self::ListMultipartUploads => "ListMultipartUploads",
            Self::ListParts => "ListParts",
            Self::HeadObject => "HeadObject",
            Self::GetObject => "GetObject",
            Self::GetObjectAttributes => "GetObjectAttributes",
            Self::PutObject => "PutObject",
            Self::CopyObject => "CopyObject",
            Self::DeleteObject => "DeleteObject",
            Self::DeleteObjects => "DeleteObjects",
            Self::CreateMultipartUpload => "CreateMultipartUpload",
            Self::UploadPart => "UploadPart",
            Self::UploadPartCopy => "UploadPartCopy",
            Self::CompleteMultipartUpload => "CompleteMultipartUpload",
            Self::AbortMultipartUpload => "AbortMultipartUpload",
        }
    }

    /// Whether it changes what is stored.
    pub fn is_write(self) -> bool {
        match self {
            Self::ListBuckets
            | Self::HeadBucket
            | Self::GetBucketLocation
            | Self::ListObjects
            | Self::ListObjectsV2
            | Self::ListMultipartUploads
            | Self::ListParts
            | Self::HeadObject
            | Self::GetObject
            | Self::GetObjectAttributes => false,
            Self::PutObject
            | Self::CopyObject
            | Self::DeleteObject
            | Self::DeleteObjects
            | Self::CreateMultipartUpload
            | Self::UploadPart
            | Self::UploadPartCopy
            | Self::CompleteMultipartUpload
            | Self::AbortMultipartUpload => true,
        }
    }
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

    /// The query to send, decoded.
    pub fn query(&self) -> &[(String, String)] {
        &self.query
    }

    /// The key that a copy reads; the header that says so is in [`crate::Forward::headers`].
    pub fn copy_source(&self) -> Option<&str> {
        self.copy_source.as_deref()
    }

    /// The multipart upload that is meant: it must be known as one of this mount's and key's before it is sent.
    pub fn upload_id(&self) -> Option<&str> {
        self.upload_id.as_deref()
    }
}
