//! Requests: method, key, query, headers and body of each operation.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// What is asked of S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are S3's own")]
pub enum Operation {
    HeadObject,
    GetObject,
    GetObjectTagging,
    PutObject,
    CopyObject,
    DeleteObject,
    DeleteObjects,
    ListObjectsV2,
    CreateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListMultipartUploads,
    ListParts,
    CreateBucket,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::HeadObject,
        Self::GetObject,
        Self::GetObjectTagging,
        Self::PutObject,
        Self::CopyObject,
        Self::DeleteObject,
        Self::DeleteObjects,
        Self::ListObjectsV2,
        Self::CreateMultipartUpload,
        Self::UploadPart,
        Self::UploadPartCopy,
        Self::CompleteMultipartUpload,
        Self::AbortMultipartUpload,
        Self::ListMultipartUploads,
        Self::ListParts,
        Self::CreateBucket,
    ];

    /// S3's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::HeadObject => "HeadObject",
            Self::GetObject => "GetObject",
            Self::GetObjectTagging => "GetObjectTagging",
            Self::PutObject => "PutObject",
            Self::CopyObject => "CopyObject",
            Self::DeleteObject => "DeleteObject",
            Self::DeleteObjects => "DeleteObjects",
            Self::ListObjectsV2 => "ListObjectsV2",
            Self::CreateMultipartUpload => "CreateMultipartUpload",
            Self::UploadPart => "UploadPart",
            Self::UploadPartCopy => "UploadPartCopy",
            Self::CompleteMultipartUpload => "CompleteMultipartUpload",
            Self::AbortMultipartUpload => "AbortMultipartUpload",
            Self::ListMultipartUploads => "ListMultipartUploads",
            Self::ListParts => "ListParts",
            Self::CreateBucket => "CreateBucket",
        }
    }

    /// Whether the provider may work for minutes before it answers.
    pub fn is_slow(self) -> bool {
        matches!(self, Self::CopyObject | Self::UploadPartCopy | Self::CompleteMultipartUpload)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A header's value has characters that no header can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot be sent as a header: its name or value holds characters that do not fit")]
pub struct BadHeader {
    /// The header's name.
    pub name: String,
}

/// One request, before it is addressed and signed.
#[derive(Clone, Debug)]
pub struct Call {
    /// What it asks.
    pub operation: Operation,
    /// How.
    pub method: Method,
    /// Of which object; none for the bucket itself.
    pub key: Option<String>,
    /// The query, not encoded.
    pub query: Vec<(String, String)>,
    /// Headers beside the ones of address and signature.
    pub headers: HeaderMap,
    /// A small body that is signed; uploads have theirs elsewhere.
    pub body: Bytes,
}

impl Call {
    fn new(operation: Operation, method: Method, key: Option<&str>) -> Self {
        Self {
            operation,
            method,
            key: key.map(str::to_owned),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    #[must_use]
    fn query(mut self, name: &str, value: impl Into<String>) -> Self {
        self.query.push((name.into(), value.into()));
        self
    }

    /// Adds a header, in place of an earlier one of that name.
    ///
    /// # Errors
    /// [`BadHeader`].
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, BadHeader> {
        let bad = || BadHeader { name: name.into() };
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        self.headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).map_err(|_| bad())?);
        Ok(self)
    }

    /// Adds a header whose value is known to fit.
    #[must_use]
    fn plain(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    #[must_use]
    fn xml(mut self, body: String) -> Self {
        self.body = body.into();
        self.plain("content-type", "application/xml")
    }

    /// HeadObject.
    pub fn head(key: &str) -> Self {
        Self::new(Operation::HeadObject, Method::HEAD, Some(key))
    }

    /// GetObject of a half-open range, of the version `etag` (without quotes) if given.
    pub fn get(key: &str, range: &Range<u64>, etag: Option<&str>) -> Self {
        let call = Self::new(Operation::GetObject, Method::GET, Some(key));
        let call = call.plain("range", &format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        match etag {
            Some(etag) => call.if_match(etag),
            None => call,
        }
    }

    /// Asks for the checksum of the object, too.
    #[must_use]
    pub fn with_checksum(self) -> Self {
        self.plain("x-amz-checksum-mode", "ENABLED")
    }

    /// GetObjectTagging.
    pub fn get_tagging(key: &str) -> Self {
        Self::new(Operation::GetObjectTagging, Method::GET, Some(key)).query("tagging", "")
    }

    /// PutObject; the body is sent apart.
    pub fn put(key: &str) -> Self {
        Self::new(Operation::PutObject, Method::PUT, Some(key))
    }

    /// CopyObject from `source` (an `x-amz-copy-source` value).
    pub fn copy(key: &str, source: &str, source_etag: Option<&str>) -> Self {
        Self::new(Operation::CopyObject, Method::PUT, Some(key)).copy_source(source, source_etag)
    }

    /// DeleteObject.
    pub fn delete(key: &str) -> Self {
        Self::new(Operation::DeleteObject, Method::DELETE, Some(key))
    }

    /// DeleteObjects; `body` from [`crate::xml::delete_body`].
    pub fn delete_many(body: String) -> Self {
        Self::new(Operation::DeleteObjects, Method::POST, None).query("delete", "").xml(body)
    }

    /// ListObjectsV2.
    pub fn list(
        prefix: &str,
        delimited: bool,
        start_after: Option<&str>,
        continuation: Option<&str>,
        max_keys: u16,
    ) -> Self {
        let mut call = Self::new(Operation::ListObjectsV2, Method::GET, None).query("list-type", "2");
        if !prefix.is_empty() {
            call = call.query("prefix", prefix);
        }
        if delimited {
            call = call.query("delimiter", "/");
        }
        if let Some(key) = start_after {
            call = call.query("start-after", key);
        }
        if let Some(token) = continuation {
            call = call.query("continuation-token", token);
        }
        if max_keys != 0 && max_keys < 1000 {
            call = call.query("max-keys", max_keys.to_string());
        }
        call
    }

    /// Asks that keys come percent-encoded.
    #[must_use]
    pub fn url_encoded(self) -> Self {
        self.query("encoding-type", "url")
    }

    /// CreateMultipartUpload.
    pub fn create_multipart(key: &str) -> Self {
        Self::new(Operation::CreateMultipartUpload, Method::POST, Some(key)).query("uploads", "")
    }

    /// UploadPart; the body is sent apart.
    pub fn upload_part(key: &str, upload: &str, number: u32) -> Self {
        Self::new(Operation::UploadPart, Method::PUT, Some(key))
            .query("partNumber", number.to_string())
            .query("uploadId", upload)
    }

    /// UploadPartCopy of a half-open range of `source`.
    pub fn upload_part_copy(
        key: &str,
        upload: &str,
        number: u32,
        source: &str,
        source_etag: Option<&str>,
        range: &Range<u64>,
    ) -> Self {
        let mut call = Self::upload_part(key, upload, number).copy_source(source, source_etag);
        call.operation = Operation::UploadPartCopy;
        call.plain("x-amz-copy-source-range", &format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))
    }

    /// CompleteMultipartUpload; `body` from [`crate::xml::complete_body`].
    pub fn complete(key: &str, upload: &str, body: String) -> Self {
        Self::new(Operation::CompleteMultipartUpload, Method::POST, Some(key)).query("uploadId", upload).xml(body)
    }

    /// AbortMultipartUpload.
    pub fn abort(key: &str, upload: &str) -> Self {
        Self::new(Operation::AbortMultipartUpload, Method::DELETE, Some(key)).query("uploadId", upload)
    }

    /// ListMultipartUploads, behind `marker` (key and upload id).
    pub fn list_uploads(prefix: &str, marker: Option<(&str, &str)>) -> Self {
        let mut call = Self::new(Operation::ListMultipartUploads, Method::GET, None).query("uploads", "");
        if !prefix.is_empty() {
            call = call.query("prefix", prefix);
        }
        if let Some((key, id)) = marker {
            call = call.query("key-marker", key);
            if !id.is_empty() {
                call = call.query("upload-id-marker", id);
            }
        }
        call
    }

    /// ListParts, behind part `marker`.
    pub fn list_parts(key: &str, upload: &str, marker: Option<u32>) -> Self {
        let call = Self::new(Operation::ListParts, Method::GET, Some(key)).query("uploadId", upload);
        match marker {
            Some(marker) => call.query("part-number-marker", marker.to_string()),
            None => call,
        }
    }

    /// CreateBucket.
    pub fn create_bucket() -> Self {
        Self::new(Operation::CreateBucket, Method::PUT, None)
    }

    /// Only if the stored object is this version (tag without quotes).
    #[must_use]
    pub fn if_match(self, etag: &str) -> Self {
        self.plain("if-match", &format!("\"{etag}\""))
    }

    /// Only if there is no such object.
    #[must_use]
    pub fn if_absent(self) -> Self {
        self.plain("if-none-match", "*")
    }

    #[must_use]
    fn copy_source(self, source: &str, etag: Option<&str>) -> Self {
        let call = self.plain("x-amz-copy-source", source);
        match etag {
            Some(etag) => call.plain("x-amz-copy-source-if-match", &format!("\"{etag}\"")),
            None => call,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let call = Call::get("k", &(5..10), Some("e"));
        assert_eq!(
            (&call.headers["range"], &call.headers["if-match"]),
            (&"bytes=5-9".parse().unwrap(), &"\"e\"".parse().unwrap())
        );
        let call = Call::upload_part_copy("k", "u", 3, "b/s", Some("e"), &(0..5));
        assert_eq!(call.headers["x-amz-copy-source-range"], "bytes=0-4");
        assert_eq!(call.operation, Operation::UploadPartCopy);
        assert!(Call::put("k").header("x-amz-meta-a", "line\nend").is_err());
        assert!(Call::put("k").header("x-amz-meta-ä", "x").is_err());
    }
}
