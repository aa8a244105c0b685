//! From a head to what is sent.

use std::sync::Arc;

use http::Method;
use sandpail_s3::address::encode_key;

use super::world::{Flags, Text, World};
use crate::query::decode;
use crate::target::{check_dots, check_key};
use crate::{Access, Action, Arrival, BodyRule, Decision, Document, Forward, decide};

thread_local! {
    static WORLD: World = World::new();
}

/// What a query that is sent may hold.
const QUERY: [&str; 24] = [
    "attributes",
    "continuation-token",
    "delete",
    "delimiter",
    "encoding-type",
    "key-marker",
    "list-type",
    "marker",
    "max-keys",
    "max-parts",
    "max-uploads",
    "part-number-marker",
    "partNumber",
    "prefix",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "start-after",
    "upload-id-marker",
    "uploadId",
    "uploads",
];

/// What the headers that are sent may be, beside `x-amz-meta-`.
const HEADERS: [&str; 33] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-md5",
    "content-type",
    "expires",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-unmodified-since",
    "range",
    "x-amz-checksum-algorithm",
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-mode",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
    "x-amz-checksum-type",
    "x-amz-copy-source",
    "x-amz-copy-source-if-match",
    "x-amz-copy-source-if-modified-since",
    "x-amz-copy-source-if-none-match",
    "x-amz-copy-source-if-unmodified-since",
    "x-amz-copy-source-range",
    "x-amz-max-parts",
    "x-amz-metadata-directive",
    "x-amz-mp-object-size",
    "x-amz-object-attributes",
    "x-amz-part-number-marker",
    "x-amz-server-side-encryption",
    "x-amz-storage-class",
];

/// A head, unsigned or signed by the sandbox's key. Whatever it says, what is permitted is inside the mount, as S3
/// itself would understand the request that is sent.
pub fn fuzz_decide(data: &[u8]) {
    let Some(text) = Text::parse(data) else { return };
    let flags = text.flags;
    WORLD.with(|world| {
        let parts = if flags.is_signed() { text.sign(world.now) } else { Some(text.parts) };
        let Some(parts) = parts else { return };
        let host = parts.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default().to_ascii_lowercase();
        let is_tls = flags.is_tls();
        let port = if is_tls { 443 } else { 80 };
        let host = if flags.is_host_known() { host } else { String::new() };
        let arrival = Arrival { host, is_tls, port };
        match decide(&parts, &arrival, &world.guest, world.now) {
            Ok(Decision::Forward(forward)) => {
                assert!(world.guest.routes().iter().any(|route| Arc::ptr_eq(route, &forward.route)));
                assert_eq!(parts.method, forward.method);
                check(&forward, flags);
            }
            Ok(Decision::Local(answer)) => {
                let body = String::from_utf8_lossy(answer.response.body());
                assert!(flags.is_signed() || !body.contains("hidden"), "{body}");
                let is_open = answer.route.as_ref().is_none_or(|route| route.spec().allow_unsigned);
                assert!(flags.is_signed() || is_open);
                assert!(matches!(parts.method, Method::GET | Method::HEAD));
            }
            Err(_) => {}
        }
    });
}

fn check(forward: &Forward, flags: Flags) {
    let (spec, permit) = (forward.route.spec(), &forward.permit);
    let (action, prefix) = (permit.action(), spec.prefix.as_str());
    assert!(flags.is_signed() || spec.allow_unsigned, "{} wants a signature", spec.id);
    assert!(!action.is_write() || spec.access == Access::ReadWrite, "{action:?} at a mount that is read-only");
    for route in forward.alternatives.iter().map(|candidate| candidate.route.spec()) {
        assert!(flags.is_signed() || route.allow_unsigned);
        assert!(route.access == Access::ReadWrite && route.bucket == spec.bucket);
    }
    for key in [permit.key(), permit.copy_source()].into_iter().flatten() {
        assert!(key.starts_with(prefix), "{key:?} is outside of {prefix:?}");
        assert!(check_key(key).is_ok() && !key.is_empty(), "{key:?}");
        assert!(!key.split(['/', '\\']).any(|part| matches!(part, "." | "..")), "{key:?} leads up");
        assert!(forward.view.show(key).is_some());
    }
    check_query(forward, prefix);
    check_headers(forward);
    let has_key = permit.key().is_some();
    let query = |name: &str| permit.query().iter().any(|(known, _)| known == name);
    let sent = meaning(&forward.method, has_key, query, permit.copy_source().is_some());
    assert_eq!(sent, Some(action), "S3 understands something else: {permit:?}");
    let bodies = match forward.body {
        BodyRule::Empty => !matches!(
            action,
            Action::PutObject | Action::UploadPart | Action::DeleteObjects | Action::CompleteMultipartUpload
        ),
        BodyRule::Stream { len } => matches!(action, Action::PutObject | Action::UploadPart) && len <= 5 << 30,
        BodyRule::Document { document: Document::Deletes, len } => action == Action::DeleteObjects && len <= 4 << 20,
        BodyRule::Document { document: Document::Completion, len } => {
            action == Action::CompleteMultipartUpload && len <= 4 << 20
        }
    };
    assert!(bodies, "{action:?} has the body {:?}", forward.body);
}

fn check_query(forward: &Forward, prefix: &str) {
    let permit = &forward.permit;
    let all = |name: &str| -> Vec<&str> {
        permit.query().iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    };
    for (name, value) in permit.query() {
        assert!(QUERY.contains(&name.as_str()), "{name:?} is sent");
        assert_eq!(all(name).len(), 1, "{name:?} is sent twice");
        assert!(!value.contains('\0') && value.len() <= 64 << 10);
    }
    assert_eq!(all("uploadId").first().copied(), permit.upload_id());
    let is_list = permit.key().is_none() && permit.action() != Action::DeleteObjects;
    assert_eq!(forward.list.is_some(), is_list);
    if is_list {
        let [listed] = *all("prefix") else { panic!("a list without a prefix") };
        assert!(listed.starts_with(prefix), "{listed:?} is outside of {prefix:?}");
        // The last part may be the beginning of a name.
        assert!(check_dots(listed.rsplit_once('/').map_or("", |(parts, _)| parts)).is_ok());
        assert_eq!(all("encoding-type"), ["url"]);
        for name in ["max-keys", "max-uploads"] {
            assert!(all(name).iter().all(|len| len.parse::<u32>().is_ok_and(|len| len <= 1000)));
        }
    } else {
        assert!(all("prefix").is_empty());
    }
    assert!(all("partNumber").iter().all(|part| part.parse::<u32>().is_ok_and(|part| (1..=10_000).contains(&part))));
}

fn check_headers(forward: &Forward) {
    for name in forward.headers.keys().map(http::HeaderName::as_str) {
        assert!(HEADERS.contains(&name) || name.starts_with("x-amz-meta-"), "{name:?} is sent");
        assert_eq!(forward.headers.get_all(name).iter().count(), 1, "{name:?} is sent twice");
    }
    let sent = forward.headers.get("x-amz-copy-source").map(|value| value.to_str().expect("it is ASCII"));
    let source = forward.permit.copy_source();
    let expected = source.map(|key| format!("{}/{}", forward.route.spec().bucket, encode_key(key)));
    assert_eq!(sent, expected.as_deref());
    if let (Some(sent), Some(source)) = (sent, source) {
        let decoded = decode(sent, "").expect("it is encoded");
        assert_eq!(decoded.split_once('/').map(|(_, key)| key), Some(source));
    }
    if let Some(coding) = forward.headers.get("content-encoding") {
        let mut codings = coding.as_bytes().split(|byte| *byte == b',');
        assert!(!codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"aws-chunked")), "it was undone");
    }
}

/// What S3 takes a request for: its subresources decide, whatever else is there.
fn meaning(method: &Method, has_key: bool, query: impl Fn(&str) -> bool, is_copy: bool) -> Option<Action> {
    let action = match (method.as_str(), has_key) {
        ("GET", false) if query("uploads") => Action::ListMultipartUploads,
        ("GET", false) if query("list-type") => Action::ListObjectsV2,
        ("GET", false) => Action::ListObjects,
        ("POST", false) if query("delete") => Action::DeleteObjects,
        ("GET", true) if query("attributes") => Action::GetObjectAttributes,
        ("GET", true) if query("uploadId") => Action::ListParts,
        ("GET", true) => Action::GetObject,
        ("HEAD", true) => Action::HeadObject,
        ("PUT", true) => match (query("uploadId") && query("partNumber"), is_copy) {
            (true, true) => Action::UploadPartCopy,
            (true, false) => Action::UploadPart,
            (false, true) => Action::CopyObject,
            (false, false) => Action::PutObject,
        },
        ("POST", true) if query("uploads") => Action::CreateMultipartUpload,
        ("POST", true) if query("uploadId") => Action::CompleteMultipartUpload,
        ("DELETE", true) if query("uploadId") => Action::AbortMultipartUpload,
        ("DELETE", true) => Action::DeleteObject,
        _ => return None,
    };
    Some(action)
}
