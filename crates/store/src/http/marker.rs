//! Directory markers (`dir/`) on servers that drop their user metadata.
//!
//! SeaweedFS makes a key that ends in `/` a directory of its filer: the user metadata is lost and such an object cannot
//! be copied, but the content type stays. So the metadata travels as parameters of the content type there
//! (`application/x-directory; x-amz-meta-mode=16877`), which s3fs and others cut off when they compare the type.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::{ObjectAttributes, ObjectInfo};

const PARAMETER: &str = "x-amz-meta-";
const DIRECTORY_TYPE: &str = "application/x-directory";

/// Whether SeaweedFS speaks of a directory that is there only because keys are, or were, below it: such an answer has
/// the tag of no parts.
pub(super) fn is_implied(info: &ObjectInfo) -> bool {
    info.size == 0 && info.etag.as_str().ends_with("-0")
}

/// Moves the metadata into the content type.
pub(super) fn pack(attributes: &ObjectAttributes) -> ObjectAttributes {
    let mut packed = attributes.clone();
    let mut content_type = packed.content_type.take().unwrap_or_else(|| DIRECTORY_TYPE.to_owned());
    for (name, value) in std::mem::take(&mut packed.metadata) {
        let value = utf8_percent_encode(&value, NON_ALPHANUMERIC);
        content_type.push_str(&format!("; {PARAMETER}{name}={value}"));
    }
    packed.content_type = Some(content_type);
    packed
}

/// Takes metadata out of the content type; what is not ours stays as it is.
pub(super) fn unpack(attributes: &mut ObjectAttributes) {
    let Some(content_type) = attributes.content_type.take() else { return };
    let mut rest = Vec::new();
    for (at, parameter) in content_type.split(';').enumerate() {
        let ours = parameter.trim().strip_prefix(PARAMETER).and_then(|ours| ours.split_once('='));
        match ours {
            Some((name, value)) if at > 0 => {
                let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
                attributes.metadata.entry(name.to_owned()).or_insert(value);
            }
            _ => rest.push(parameter),
        }
    }
    attributes.content_type = Some(rest.join(";"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_round_trips_through_the_content_type() {
        let mut attributes = ObjectAttributes::default();
        attributes.metadata.insert("mode".into(), "16877".into());
        attributes.metadata.insert("xattr".into(), "a=b; c \"ü\"".into());
        attributes.content_type = Some("application/x-directory; charset=utf-8".into());
        let packed = pack(&attributes);
        assert!(packed.metadata.is_empty());
        let mut unpacked = packed;
        unpack(&mut unpacked);
        assert_eq!(unpacked, attributes);
    }

    #[test]
    fn a_plain_content_type_stays() {
        for content_type in ["text/plain", "x-amz-meta-mode=1", "a/b; c=d"] {
            let mut attributes =
                ObjectAttributes { content_type: Some(content_type.into()), ..ObjectAttributes::default() };
            let before = attributes.clone();
            unpack(&mut attributes);
            assert_eq!(attributes, before);
        }
    }
}
