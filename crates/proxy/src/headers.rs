//! Which headers are sent on: a closed list. Headers that could change what a request means are refused, the others of
//! no meaning to S3 are left out.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use sandpail_s3::ChecksumKind;

use crate::{Action, Denied};

/// What is done with a header.
enum Rule {
    Send,
    LeaveOut,
    Refuse(Denied),
}

/// Google's names for headers that Amazon has, too.
const GOOGLE: [(&str, &str); 9] = [
    ("x-goog-acl", "x-amz-acl"),
    ("x-goog-copy-source", "x-amz-copy-source"),
    ("x-goog-copy-source-if-match", "x-amz-copy-source-if-match"),
    ("x-goog-copy-source-if-modified-since", "x-amz-copy-source-if-modified-since"),
    ("x-goog-copy-source-if-none-match", "x-amz-copy-source-if-none-match"),
    ("x-goog-copy-source-if-unmodified-since", "x-amz-copy-source-if-unmodified-since"),
    ("x-goog-metadata-directive", "x-amz-metadata-directive"),
    ("x-goog-storage-class", "x-amz-storage-class"),
    ("x-goog-date", "x-amz-date"),
];

/// Gives Google's headers Amazon's names, so that one table decides; no name twice.
pub(crate) fn normalise(headers: &HeaderMap) -> Result<Cow<'_, HeaderMap>, Denied> {
    if !headers.keys().any(|name| name.as_str().starts_with("x-goog-")) {
        let is_twice = |name: &HeaderName| headers.get_all(name).iter().nth(1).is_some();
        if headers.len() > headers.keys_len() && headers.keys().any(|name| is_ours(name.as_str()) && is_twice(name)) {
            return Err(TWICE);
        }
        return Ok(Cow::Borrowed(headers));
    }
    let mut normal = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = match name.as_str().strip_prefix("x-goog-") {
            Some("content-sha256" | "api-client") => continue,
            Some(rest) => {
                let known = GOOGLE.iter().find(|(google, _)| google == &name.as_str());
                match (known, rest.strip_prefix("meta-")) {
                    (Some((_, amazon)), _) => HeaderName::from_static(amazon),
                    (None, Some(meta)) => HeaderName::from_bytes(format!("x-amz-meta-{meta}").as_bytes())
                        .map_err(|_| Denied::Malformed("the name of a header is not a token"))?,
                    (None, None) => return Err(Denied::Unknown("an x-goog- header is not known")),
                }
            }
            None => name.clone(),
        };
        if normal.contains_key(&name) && is_ours(name.as_str()) {
            return Err(TWICE);
        }
        normal.insert(name, value.clone());
    }
    Ok(Cow::Owned(normal))
}

const TWICE: Denied = Denied::Invalid("a header is given twice");

/// `accept`, `cookie` and so on may be repeated; they are left out anyway.
fn is_ours(name: &str) -> bool {
    name.starts_with("x-amz-") || is_standard(name)
}

fn is_standard(name: &str) -> bool {
    name.starts_with("content-") || name.starts_with("if-") || ["range", "cache-control", "expires"].contains(&name)
}

/// The headers to send (without copy source), of normalised ones.
pub(crate) fn select(action: Action, headers: &HeaderMap) -> Result<HeaderMap, Denied> {
    let mut selected = HeaderMap::with_capacity(6);
    for (name, value) in headers {
        let rule = match name.as_str().strip_prefix("x-amz-") {
            Some(rest) => amazon(action, rest, value),
            None => standard(action, name.as_str()),
        };
        match rule {
            Rule::Send => {
                selected.insert(name.clone(), value.clone());
            }
            Rule::LeaveOut => {}
            Rule::Refuse(denied) => return Err(denied),
        }
    }
    content_encoding(&mut selected)?;
    // Stores do not say that they know `If-Range`; without a range, the answer is right whether the object changed or
    // not.
    if headers.contains_key(http::header::IF_RANGE) {
        selected.remove(http::header::RANGE);
    }
    Ok(selected)
}

/// The checksums that headers say of a document's body.
pub(crate) fn document_sums(action: Action, headers: &HeaderMap) -> Result<Vec<(ChecksumKind, String)>, Denied> {
    let mut sums = Vec::new();
    for (name, value) in headers {
        let Some(kind) = ChecksumKind::of_header(name.as_str()) else { continue };
        // At a completion, these are of the object.
        let is_of_body = kind == ChecksumKind::ContentMd5 || action == Action::DeleteObjects;
        if is_of_body {
            let value = value.to_str().map_err(|_| Denied::Digest("a checksum of the body cannot be read"))?;
            sums.push((kind, value.to_owned()));
        }
    }
    Ok(sums)
}

/// Whether the operation makes an object out of the headers.
fn makes(action: Action) -> bool {
    matches!(action, Action::PutObject | Action::CopyObject | Action::CreateMultipartUpload)
}

fn send_if(is_meant: bool) -> Rule {
    if is_meant { Rule::Send } else { Rule::LeaveOut }
}

fn standard(action: Action, name: &str) -> Rule {
    use Action::{CompleteMultipartUpload, CopyObject, DeleteObject, GetObject, HeadObject, PutObject, UploadPart};
    send_if(match name {
        "cache-control"
        | "content-disposition"
        | "content-encoding"
        | "content-language"
        | "content-type"
        | "expires" => makes(action),
        "content-md5" => matches!(action, PutObject | UploadPart),
        "range" => matches!(action, GetObject | HeadObject),
        "if-match" | "if-none-match" => {
            matches!(action, GetObject | HeadObject | PutObject | CopyObject | DeleteObject | CompleteMultipartUpload)
        }
        "if-modified-since" | "if-unmodified-since" => matches!(action, GetObject | HeadObject),
        _ => false,
    })
}

/// A header of Amazon's, by its name without `x-amz-`.
fn amazon(action: Action, name: &str, value: &HeaderValue) -> Rule {
    use Action::{
        CompleteMultipartUpload, CopyObject, CreateMultipartUpload, GetObject, GetObjectAttributes, HeadObject,
        PutObject, UploadPart, UploadPartCopy,
    };
    let refuse = |what| Rule::Refuse(Denied::Operation(what));
    let invalid = |what| Rule::Refuse(Denied::Invalid(what));
    let is_number = !value.is_empty() && value.len() <= 19 && value.as_bytes().iter().all(u8::is_ascii_digit);
    match name {
        // Of the signature, of the framing, or of nobody's concern; a copy's source is written anew.
        "api-version"
        | "content-sha256"
        | "copy-source"
        | "date"
        | "decoded-content-length"
        | "optional-object-attributes"
        | "sdk-checksum-algorithm"
        | "trailer"
        | "user-agent" => Rule::LeaveOut,
        "checksum-crc32" | "checksum-crc32c" | "checksum-crc64nvme" | "checksum-sha1" | "checksum-sha256" => {
            send_if(matches!(action, PutObject | UploadPart | CompleteMultipartUpload))
        }
        "checksum-algorithm" => send_if(matches!(action, CreateMultipartUpload | CopyObject)),
        "checksum-type" => send_if(matches!(action, CreateMultipartUpload | CompleteMultipartUpload)),
        "checksum-mode" => send_if(matches!(action, GetObject | HeadObject)),
        "storage-class" => send_if(makes(action)),
        "metadata-directive" if value != "COPY" && value != "REPLACE" => {
            invalid("x-amz-metadata-directive must be COPY or REPLACE")
        }
        "metadata-directive" => send_if(action == CopyObject),
        "tagging-directive" if value != "COPY" => refuse("replacing tags"),
        // It is what happens anyway, and some stores do not know the header.
        "tagging-directive" => Rule::LeaveOut,
        "copy-source-if-match"
        | "copy-source-if-none-match"
        | "copy-source-if-modified-since"
        | "copy-source-if-unmodified-since" => send_if(matches!(action, CopyObject | UploadPartCopy)),
        "copy-source-range" => send_if(action == UploadPartCopy),
        "object-attributes" => send_if(action == GetObjectAttributes),
        "max-parts" | "part-number-marker" if action == GetObjectAttributes => {
            if is_number {
                Rule::Send
            } else {
                invalid("a number of the headers cannot be read")
            }
        }
        "mp-object-size" if action == CompleteMultipartUpload => {
            if is_number {
                Rule::Send
            } else {
                invalid("a number of the headers cannot be read")
            }
        }
        // The default at every store.
        "acl" if value == "private" => Rule::LeaveOut,
        "acl" => refuse("an x-amz-acl other than private"),
        // Stores encrypt so anyway, or ignore it; other keys would be the operator's.
        "server-side-encryption" if value == "AES256" => send_if(makes(action)),
        "tagging" => refuse("tagging objects"),
        "website-redirect-location" => refuse("x-amz-website-redirect-location"),
        "bypass-governance-retention" => refuse("x-amz-bypass-governance-retention"),
        // To leave these out would drop the client's own check, to send them would let it try account ids.
        "expected-bucket-owner" | "source-expected-bucket-owner" => refuse("checking the bucket's owner"),
        // The operator would pay.
        "request-payer" => refuse("x-amz-request-payer"),
        "mfa" => refuse("x-amz-mfa"),
        _ if name.starts_with("meta-") => send_if(makes(action)),
        _ if name.starts_with("grant-") => refuse("granting access"),
        _ if name.starts_with("object-lock-") => refuse("locking objects"),
        _ if name.starts_with("server-side-encryption") || name.starts_with("copy-source-server-side-encryption") => {
            refuse("choosing the encryption's key")
        }
        _ => Rule::Refuse(Denied::Unknown("an x-amz- header is not known")),
    }
}

/// `aws-chunked` is of the transfer and was undone.
fn content_encoding(headers: &mut HeaderMap) -> Result<(), Denied> {
    const BAD: Denied = Denied::Invalid("Content-Encoding cannot be read");
    let Some(value) = headers.remove(http::header::CONTENT_ENCODING) else { return Ok(()) };
    let text = value.to_str().map_err(|_| BAD)?;
    let kept: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    if !kept.is_empty() {
        headers.insert(http::header::CONTENT_ENCODING, HeaderValue::from_str(&kept.join(",")).map_err(|_| BAD)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        let mut map = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            map.append(name, value);
        }
        map
    }

    #[track_caller]
    fn check(action: Action, sent: &[(&str, &str)], expected: Result<&[(&str, &str)], &str>) {
        let got = normalise(&map(sent)).and_then(|headers| select(action, &headers));
        let mut got = got.map_err(|denied| denied.rule()).map(|map| {
            let pair = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}={}", value.to_str().unwrap());
            map.iter().map(pair).collect::<Vec<_>>()
        });
        if let Ok(lines) = &mut got {
            lines.sort();
        }
        let expected = expected.map(|pairs| pairs.iter().map(|(name, value)| format!("{name}={value}")).collect());
        assert_eq!(got, expected, "{sent:?}");
    }

    #[test]
    fn what_is_sent_and_what_is_left_out() {
        check(
            Action::PutObject,
            &[
                ("authorization", "x"),
                ("content-encoding", "aws-chunked,gzip"),
                ("content-type", "text/plain"),
                ("cookie", "a"),
                ("cookie", "b"),
                ("expect", "100-continue"),
                ("range", "bytes=0-1"),
                ("x-amz-acl", "private"),
                ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
                ("x-amz-date", "x"),
                ("x-amz-meta-a", "1"),
                ("x-amz-storage-class", "STANDARD"),
                ("x-amz-tagging-directive", "COPY"),
                ("x-forwarded-for", "1.2.3.4"),
            ],
            Ok(&[
                ("content-encoding", "gzip"),
                ("content-type", "text/plain"),
                ("x-amz-meta-a", "1"),
                ("x-amz-storage-class", "STANDARD"),
            ]),
        );
        check(Action::PutObject, &[("content-encoding", "aws-chunked")], Ok(&[]));
        check(Action::GetObject, &[("range", "bytes=0-1"), ("if-range", "\"e\"")], Ok(&[]));
        check(Action::GetObject, &[("x-amz-meta-a", "1"), ("range", "bytes=0-1")], Ok(&[("range", "bytes=0-1")]));
        check(Action::PutObject, &[("x-goog-meta-a", "1"), ("x-goog-acl", "private")], Ok(&[("x-amz-meta-a", "1")]));
    }

    #[test]
    fn what_is_refused() {
        for (name, value, rule) in [
            ("x-amz-acl", "public-read", "operation"),
            ("x-amz-acl", "", "operation"),
            ("x-goog-acl", "public-read", "operation"),
            ("x-amz-grant-read", "id=1", "operation"),
            ("x-amz-grant-full-control", "id=1", "operation"),
            ("x-amz-website-redirect-location", "/", "operation"),
            ("x-amz-object-lock-mode", "GOVERNANCE", "operation"),
            ("x-amz-object-lock-legal-hold", "ON", "operation"),
            ("x-amz-bypass-governance-retention", "true", "operation"),
            ("x-amz-expected-bucket-owner", "1", "operation"),
            ("x-amz-source-expected-bucket-owner", "1", "operation"),
            ("x-amz-request-payer", "requester", "operation"),
            ("x-amz-tagging", "a=b", "operation"),
            ("x-amz-tagging-directive", "REPLACE", "operation"),
            ("x-amz-mfa", "1", "operation"),
            ("x-amz-server-side-encryption", "aws:kms", "operation"),
            ("x-amz-server-side-encryption-customer-key", "k", "operation"),
            ("x-amz-copy-source-server-side-encryption-customer-key", "k", "operation"),
            ("x-amz-write-offset-bytes", "1", "unknown"),
            ("x-amz-rename-source", "1", "unknown"),
            ("x-goog-if-generation-match", "1", "unknown"),
            ("x-goog-content-length-range", "1", "unknown"),
            ("x-amz-metadata-directive", "OTHER", "invalid"),
        ] {
            check(Action::PutObject, &[(name, value)], Err(rule));
            check(Action::GetObject, &[(name, value)], Err(rule));
        }
        check(Action::PutObject, &[("x-amz-meta-a", "1"), ("x-amz-meta-a", "2")], Err("invalid"));
        check(Action::PutObject, &[("x-amz-meta-a", "1"), ("x-goog-meta-a", "2")], Err("invalid"));
        check(Action::CopyObject, &[("x-amz-copy-source", "a"), ("x-goog-copy-source", "a")], Err("invalid"));
        check(Action::GetObject, &[("range", "bytes=0-1"), ("range", "bytes=2-3")], Err("invalid"));
    }
}
