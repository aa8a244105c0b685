//! Between the words of S3 and those of the store.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use s3s::dto::{self, Timestamp, TimestampFormat};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use sandpail_store::{ETag, ObjectAttributes, ObjectKey, StoreError};

/// What S3 says of an object that was stored without a type.
const DEFAULT_TYPE: &str = "binary/octet-stream";

/// The refusal that stands for a store's failure.
pub(crate) fn refusal(error: StoreError) -> S3Error {
    let text = error.to_string();
    match error {
        StoreError::NotFound { what } if what.starts_with("upload") => {
            s3_error!(NoSuchUpload, "The specified multipart upload does not exist.")
        }
        StoreError::NotFound { .. } => s3_error!(NoSuchKey, "The specified key does not exist."),
        StoreError::NoSuchBucket { .. } => s3_error!(NoSuchBucket, "The specified bucket does not exist"),
        StoreError::Precondition { .. } => precondition_failed(),
        StoreError::Denied { .. } | StoreError::Credentials { .. } => s3_error!(AccessDenied, "{}", text),
        StoreError::Throttled { .. } => s3_error!(SlowDown, "{}", text),
        StoreError::Unreachable { .. } => s3_error!(ServiceUnavailable, "{}", text),
        StoreError::Invalid { .. } => s3_error!(InvalidArgument, "{}", text),
        StoreError::Unsupported { .. } => s3_error!(NotImplemented, "{}", text),
        StoreError::NoSpace { .. } => no_space(),
        StoreError::Io { source, .. } => io_refusal(source),
        StoreError::Server { .. } | StoreError::Integrity { .. } | StoreError::Protocol { .. } => {
            tracing::error!(error = text, "the store failed");
            s3_error!(InternalError, "{}", text)
        }
    }
}

/// The refusal that stands for a local failure. Paths stay in the log.
pub(crate) fn io_refusal(error: io::Error) -> S3Error {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return no_space();
    }
    tracing::error!(%error, "a file of the server failed");
    s3_error!(InternalError, "We encountered an internal error. Please try again.")
}

fn no_space() -> S3Error {
    // S3 has no code for it, being never full; WebDAV's status says it best.
    let mut refusal = S3Error::with_message(S3ErrorCode::Custom("InsufficientStorage".into()), "No space is left.");
    refusal.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
    refusal
}

pub(crate) fn precondition_failed() -> S3Error {
    s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
}

pub(crate) fn key(key: &str) -> S3Result<ObjectKey> {
    ObjectKey::new(key).map_err(|error| match error {
        sandpail_store::InvalidKey::TooLong { .. } => s3_error!(KeyTooLongError, "Your key is too long"),
        error => s3_error!(InvalidArgument, "{}", error),
    })
}

pub(crate) fn etag(etag: &ETag) -> dto::ETag {
    dto::ETag::Strong(etag.as_str().to_owned())
}

/// A store's time as S3 shows it: whole seconds, in headers and listings alike.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(whole_seconds(time))
}

pub(crate) fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// The longest length there is in answers is an `i64`.
pub(crate) fn len(len: u64) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

/// What an upload says of its object beside the bytes.
pub(crate) struct Described {
    pub(crate) metadata: Option<dto::Metadata>,
    pub(crate) content_type: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) content_disposition: Option<String>,
    pub(crate) content_language: Option<String>,
    pub(crate) cache_control: Option<String>,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) storage_class: Option<dto::StorageClass>,
}

/// Takes the describing fields out of an input of PutObject, CopyObject or CreateMultipartUpload.
macro_rules! described {
    ($input:expr) => {
        $crate::convert::Described {
            metadata: $input.metadata.take(),
            content_type: $input.content_type.take().map(Into::into),
            content_encoding: $input.content_encoding.take().map(Into::into),
            content_disposition: $input.content_disposition.take().map(Into::into),
            content_language: $input.content_language.take().map(Into::into),
            cache_control: $input.cache_control.take().map(Into::into),
            expires: $input.expires.take(),
            storage_class: $input.storage_class.take(),
        }
    };
}
pub(crate) use described;

impl Described {
    pub(crate) fn attributes(self) -> S3Result<ObjectAttributes> {
        // `aws-chunked` is how the body travelled, not what it is.
        let content_encoding = self.content_encoding.and_then(|encodings| {
            let kept: Vec<_> =
                encodings.split(',').map(str::trim).filter(|encoding| *encoding != "aws-chunked").collect();
            let kept = kept.join(", ");
            (!kept.is_empty()).then_some(kept)
        });
        let attributes = ObjectAttributes {
            metadata: self.metadata.unwrap_or_default().into_iter().collect(),
            content_type: self.content_type,
            content_encoding,
            content_disposition: self.content_disposition,
            content_language: self.content_language,
            cache_control: self.cache_control,
            expires: self.expires.as_ref().and_then(http_date),
            storage_class: self
                .storage_class
                .map(|class| class.as_str().to_owned())
                .filter(|class| class != "STANDARD"),
            ..ObjectAttributes::default()
        };
        attributes.check().map_err(|error| s3_error!(MetadataTooLarge, "{}", error))?;
        Ok(attributes)
    }
}

fn http_date(time: &Timestamp) -> Option<String> {
    let mut text = Vec::new();
    time.format(TimestampFormat::HttpDate, &mut text).ok()?;
    String::from_utf8(text).ok()
}

pub(crate) fn expires(attributes: &ObjectAttributes) -> Option<Timestamp> {
    Timestamp::parse(TimestampFormat::HttpDate, attributes.expires.as_deref()?).ok()
}

pub(crate) fn content_type(attributes: &ObjectAttributes) -> String {
    attributes.content_type.clone().unwrap_or_else(|| DEFAULT_TYPE.to_owned())
}

/// Fills the describing fields of an output of GetObject or HeadObject.
macro_rules! describe {
    ($output:ident, $info:expr) => {
        let attributes = &$info.attributes;
        $output.accept_ranges = Some("bytes".to_owned());
        $output.content_type = Some($crate::convert::content_type(attributes).into());
        $output.content_encoding = attributes.content_encoding.clone().map(Into::into);
        $output.content_disposition = attributes.content_disposition.clone().map(Into::into);
        $output.content_language = attributes.content_language.clone().map(Into::into);
        $output.cache_control = attributes.cache_control.clone().map(Into::into);
        $output.expires = $crate::convert::expires(attributes);
        $output.storage_class = attributes.storage_class.clone().map(Into::into);
        $output.metadata = Some(attributes.metadata.clone().into_iter().collect());
        $output.e_tag = Some($crate::convert::etag(&$info.etag));
        $output.last_modified = Some($crate::convert::timestamp($info.last_modified));
    };
}
pub(crate) use describe;
