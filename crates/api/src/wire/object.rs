//! Objects of a binding, in the shapes of R2.

use std::collections::BTreeMap;
use std::fmt::Write;

use sandpail_daemon::{BucketObject, BucketPage};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Members, invalid, iso_unsigned};
use crate::error::ApiError;

/// As many as S3 deletes in one call.
const KEY_COUNT_MAX: usize = 1000;

/// The names of the bindings.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
pub struct BindingList {
    /// In the order of the configuration.
    pub bindings: Vec<String>,
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    /// With quotes, as in the `ETag` header.
    pub http_etag: String,
    /// ISO 8601.
    pub uploaded: String,
    /// What HTTP says of it; empty in listings.
    pub http_metadata: HttpMetadata,
    /// User metadata; empty in listings.
    pub custom_metadata: BTreeMap<String, String>,
}

/// What HTTP says of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpMetadata {
    /// `Content-Type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub content_type: Option<String>,
}

impl From<BucketObject> for Object {
    fn from(object: BucketObject) -> Self {
        Self {
            key: object.key,
            size: object.size,
            http_etag: format!("\"{}\"", object.etag),
            etag: object.etag,
            uploaded: iso_unsigned(object.uploaded_ms),
            http_metadata: HttpMetadata { content_type: object.content_type },
            custom_metadata: object.custom_metadata,
        }
    }
}

/// A page of a listing.
#[derive(Clone, Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectPage {
    /// In order of their keys.
    pub objects: Vec<Object>,
    /// Whether there is more.
    pub truncated: bool,
    /// Where to go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub cursor: Option<String>,
    /// What the delimiter folded.
    pub delimited_prefixes: Vec<String>,
}

impl From<BucketPage> for ObjectPage {
    fn from(page: BucketPage) -> Self {
        Self {
            objects: page.objects.into_iter().map(Object::from).collect(),
            truncated: page.cursor.is_some(),
            cursor: page.cursor,
            delimited_prefixes: page.delimited_prefixes,
        }
    }
}

/// Objects to remove.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct ObjectKeys {
    /// Their keys, at most 1000.
    #[schema(max_items = 1000)]
    pub keys: Vec<String>,
}

impl ObjectKeys {
    pub(crate) fn parse(members: &Members) -> Result<Vec<String>, ApiError> {
        let keys: Option<Vec<String>> = match members.get("keys") {
            Some(Value::Array(keys)) if keys.len() <= KEY_COUNT_MAX => {
                keys.iter().map(|key| key.as_str().filter(|key| !key.is_empty()).map(ToOwned::to_owned)).collect()
            }
            _ => None,
        };
        keys.ok_or_else(|| invalid("keys must be an array of at most 1000 non-empty strings"))
    }
}

/// User metadata as one header: a JSON object, ASCII only, because a header cannot be trusted with more.
pub(crate) fn encode_metadata(metadata: &BTreeMap<String, String>) -> String {
    // A map of strings always serializes.
    let json = serde_json::to_string(metadata).unwrap_or_else(|_| "{}".to_owned());
    let mut ascii = String::with_capacity(json.len());
    for char in json.chars() {
        if char.is_ascii() && char != '\x7f' {
            ascii.push(char);
        } else {
            for unit in char.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(ascii, "\\u{unit:04x}");
            }
        }
    }
    ascii
}

/// The reverse.
pub(crate) fn decode_metadata(header: &[u8]) -> Result<BTreeMap<String, String>, ApiError> {
    serde_json::from_slice(header)
        .map_err(|_quotes_the_header| invalid("X-Object-Metadata must be a JSON object of strings"))
}

/// The part of an object of `size` bytes that a `Range` header asks for, as offset and length. `None`: the whole,
/// because there is no such header, or one that HTTP says to ignore (several ranges, another unit).
pub(crate) fn parse_range(header: Option<&str>, size: u64) -> Result<Option<(u64, u64)>, ApiError> {
    let Some((first, last)) = header.and_then(|text| text.strip_prefix("bytes=")?.split_once('-')) else {
        return Ok(None);
    };
    let (offset, end) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(offset), Ok(last)) if offset <= last => (offset, last.saturating_add(1).min(size)),
        (Ok(offset), Err(_)) if last.trim().is_empty() => (offset, size),
        // The last so many bytes.
        (Err(_), Ok(len)) if first.trim().is_empty() => (if len == 0 { size } else { size.saturating_sub(len) }, size),
        _ => return Ok(None),
    };
    if offset >= end { Err(ApiError::Range { size }) } else { Ok(Some((offset, end - offset))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_survives_the_header() {
        let metadata: BTreeMap<_, _> =
            [("a", "ü€😀"), ("b\n", "\"\\\u{7f}"), ("", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let header = encode_metadata(&metadata);
        assert!(header.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{header}");
        assert_eq!(decode_metadata(header.as_bytes()).unwrap(), metadata);
        for bad in ["", "[]", "{\"a\":1}", "x"] {
            assert!(decode_metadata(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges() {
        let of = |header| parse_range(Some(header), 10).map_err(|error| format!("{error:?}"));
        assert_eq!(of("bytes=0-3"), Ok(Some((0, 4))));
        assert_eq!(of("bytes=5-"), Ok(Some((5, 5))));
        assert_eq!(of("bytes=-3"), Ok(Some((7, 3))));
        assert_eq!(of("bytes=-30"), Ok(Some((0, 10))));
        assert_eq!(of("bytes=2-99999999999999999999"), Ok(None));
        assert_eq!(of("bytes=2-18446744073709551615"), Ok(Some((2, 8))));
        assert_eq!(of("bytes=0-1,3-4"), Ok(None));
        assert_eq!(of("lines=0-1"), Ok(None));
        assert_eq!(of("bytes=3-2"), Ok(None));
        for outside in ["bytes=10-", "bytes=10-12", "bytes=-0"] {
            assert!(of(outside).is_err(), "{outside}");
        }
        assert!(parse_range(None, 10).unwrap().is_none());
    }

    #[test]
    fn keys_to_remove() {
        let of = |body: Value| ObjectKeys::parse(body.as_object().unwrap());
        assert_eq!(of(serde_json::json!({"keys": ["a", "b/c"]})).unwrap(), ["a", "b/c"]);
        for bad in [serde_json::json!({}), serde_json::json!({"keys": [""]}), serde_json::json!({"keys": [1]})] {
            assert!(of(bad).is_err());
        }
        assert!(of(serde_json::json!({"keys": vec!["k"; 1001]})).is_err());
    }
}
