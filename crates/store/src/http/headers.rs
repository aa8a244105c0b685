//! Attributes of objects as headers.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue};
use sandpail_s3::Call;
use sandpail_s3::metadata;
use sandpail_s3::time::parse_http;

use crate::{ETag, ObjectAttributes, ObjectInfo, StoreError, StoreResult};

const META: &str = "x-amz-meta-";

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(latin_or_utf8).filter(|value| !value.is_empty())
}

fn latin_or_utf8(value: &HeaderValue) -> String {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => value.as_bytes().iter().map(|&byte| char::from(byte)).collect(),
    }
}

/// Reads what HEAD and GET say of an object of `size` bytes; `known` stands in for an ETag that a provider leaves out.
pub(super) fn object_info(headers: &HeaderMap, size: u64, known: Option<&ETag>) -> Result<ObjectInfo, String> {
    let etag = text(headers, "etag").map(|etag| ETag::new(&etag)).or_else(|| known.cloned()).ok_or("no ETag")?;
    let last_modified =
        text(headers, "last-modified").and_then(|time| parse_http(&time)).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut attributes = ObjectAttributes {
        content_type: text(headers, "content-type"),
        content_encoding: text(headers, "content-encoding").filter(|encoding| encoding != "aws-chunked"),
        content_disposition: text(headers, "content-disposition"),
        content_language: text(headers, "content-language"),
        cache_control: text(headers, "cache-control"),
        expires: text(headers, "expires"),
        storage_class: text(headers, "x-amz-storage-class"),
        sse: text(headers, "x-amz-server-side-encryption"),
        sse_kms_key_id: text(headers, "x-amz-server-side-encryption-aws-kms-key-id"),
        tag_count: text(headers, "x-amz-tagging-count").and_then(|count| count.parse().ok()).unwrap_or(0),
        ..ObjectAttributes::default()
    };
    for name in headers.keys() {
        let Some(short) = name.as_str().strip_prefix(META) else { continue };
        let values: Vec<String> =
            headers.get_all(name).iter().map(|value| metadata::decode(value.as_bytes())).collect();
        attributes.metadata.insert(short.to_owned(), values.join(","));
    }
    Ok(ObjectInfo { size, etag, last_modified, attributes })
}

/// Adds attributes to a PUT, a copy or the beginning of a multipart upload.
pub(super) fn with_attributes(mut call: Call, attributes: &ObjectAttributes) -> StoreResult<Call> {
    attributes.check()?;
    let invalid = |error: sandpail_s3::call::BadHeader| StoreError::Invalid { message: error.to_string() };
    for (name, value) in &attributes.metadata {
        call = call.header(&format!("{META}{name}"), &metadata::encode(value)).map_err(invalid)?;
    }
    for (name, value) in [
        ("content-type", &attributes.content_type),
        ("content-encoding", &attributes.content_encoding),
        ("content-disposition", &attributes.content_disposition),
        ("content-language", &attributes.content_language),
        ("cache-control", &attributes.cache_control),
        ("expires", &attributes.expires),
    ] {
        if let Some(value) = value {
            call = call.header(name, value).map_err(invalid)?;
        }
    }
    with_placement(call, attributes)
}

/// Adds the tags of a new object.
pub(super) fn with_tagging(call: Call, attributes: &ObjectAttributes) -> StoreResult<Call> {
    let Some(tagging) = &attributes.tagging else { return Ok(call) };
    call.header("x-amz-tagging", tagging).map_err(|error| StoreError::Invalid { message: error.to_string() })
}

/// Tags in the form of a URL query.
pub(super) fn tagging(tags: &[(String, String)]) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pairs: Vec<_> = tags.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.join("&")
}

/// Adds what says how the object is kept: storage class and encryption.
pub(super) fn with_placement(mut call: Call, attributes: &ObjectAttributes) -> StoreResult<Call> {
    for (name, value) in [
        ("x-amz-storage-class", &attributes.storage_class),
        ("x-amz-server-side-encryption", &attributes.sse),
        ("x-amz-server-side-encryption-aws-kms-key-id", &attributes.sse_kms_key_id),
    ] {
        if let Some(value) = value {
            call = call.header(name, value).map_err(|error| StoreError::Invalid { message: error.to_string() })?;
        }
    }
    Ok(call)
}
