//! What real clients send, as it was recorded on the wire, is taken.
//!
//! Each file of `captures/` holds the requests of one client, one behind the other as on a connection, against
//! `127.0.0.1` and a bucket `train`, signed with the key of [`crate::testing`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue};
use sandpail_s3::time::parse_iso;

use crate::framing::{Framing, Step};
use crate::testing::world_of_captures;
use crate::{Arrival, BodyRule, Decision, Denied, Guest, decide};

/// One request of a capture.
struct Request {
    parts: Parts,
    body: Vec<u8>,
}

fn parse_head(head: &[u8]) -> Parts {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let line = std::str::from_utf8(lines.next().unwrap()).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let mut request = http::Request::builder().method(words[0]).uri(words[1]).body(()).unwrap();
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap();
        let name = HeaderName::from_bytes(&line[..colon]).unwrap();
        request.headers_mut().append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).unwrap());
    }
    request.into_parts().0
}

/// Takes the framing of HTTP away.
fn dechunk(mut wire: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = wire.windows(2).position(|pair| pair == b"\r\n").unwrap();
        let len = usize::from_str_radix(std::str::from_utf8(&wire[..end]).unwrap(), 16).unwrap();
        body.extend_from_slice(&wire[end + 2..end + 2 + len]);
        wire = &wire[end + 2 + len..];
        if len == 0 {
            return body;
        }
        wire = &wire[2..];
    }
}

/// Splits a capture by the same framing that connections are read with.
fn requests(capture: &[u8]) -> Vec<Request> {
    let mut framing = Framing::new();
    let (mut rest, mut requests) = (capture, Vec::new());
    while !rest.is_empty() {
        let Step::Pass(len) = framing.step(rest).unwrap() else { panic!("the capture is cut") };
        let (head, mut after) = rest.split_at(len);
        let mut wire = Vec::new();
        while !framing.is_at_head() {
            let Step::Pass(len) = framing.step(after).unwrap() else { panic!("the capture is cut") };
            wire.extend_from_slice(&after[..len]);
            after = &after[len..];
        }
        let parts = parse_head(head);
        let body = if parts.headers.contains_key("transfer-encoding") { dechunk(&wire) } else { wire };
        requests.push(Request { parts, body });
        rest = after;
    }
    requests
}

/// When the request was signed.
fn time_of(parts: &Parts) -> SystemTime {
    let header = parts.headers.get("x-amz-date").map(|value| value.to_str().unwrap().to_owned());
    let query = || parts.uri.query()?.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Date=")).map(str::to_owned);
    let stamp = header.or_else(query).unwrap();
    let part = |range: std::ops::Range<usize>| stamp[range].to_owned();
    let (date, time) = ([part(0..4), part(4..6), part(6..8)], [part(9..11), part(11..13), part(13..15)]);
    parse_iso(&format!("{}T{}Z", date.join("-"), time.join(":"))).unwrap()
}

fn replay(guest: &Arc<Guest>, request: Request) -> Result<&'static str, String> {
    let told = format!("{} {} {:?}", request.parts.method, request.parts.uri, request.parts.headers);
    let decision = decide(&request.parts, &Arrival::default(), guest, time_of(&request.parts));
    let decision = match decision {
        // Looks that find nothing, as they must.
        Err(Denied::Above) => return Ok("Above"),
        Err(Denied::NoRoute) if request.parts.uri.path().contains("extremelyunlikelytoexist") => return Ok("NoRoute"),
        Err(denied) => return Err(format!("{told}: {denied:?}")),
        Ok(decision) => decision,
    };
    let mut forward = match decision {
        Decision::Local(answer) => return Ok(answer.operation),
        Decision::Forward(forward) => forward,
    };
    let mut check = forward.body_check();
    let mut out = Vec::new();
    for piece in request.body.chunks(1000) {
        check.push(Bytes::copy_from_slice(piece), &mut out).map_err(|denied| format!("{told}: {denied:?}"))?;
    }
    let checked = check.finish().map_err(|denied| format!("{told}: {denied:?}"))?;
    out.push(checked.last);
    if matches!(forward.body, BodyRule::Document { .. }) {
        forward.rewrite_body(&out.concat()).map_err(|denied| format!("{told}: {denied:?}"))?;
    }
    Ok(forward.permit.action().name())
}

/// Replays a capture: all operations that it asks for, in order of their names.
#[track_caller]
fn check(capture: &[u8], expected: &str) {
    let (guest, _routes) = world_of_captures();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut refused = Vec::new();
    for request in requests(capture) {
        match replay(&guest, request) {
            Ok(name) => *counts.entry(name).or_default() += 1,
            Err(told) => refused.push(told),
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    assert_eq!(counts.join(", "), expected);
}

#[test]
fn awscli() {
    check(
        include_bytes!("../captures/awscli.http"),
        "CompleteMultipartUpload 1, CopyObject 1, CreateMultipartUpload 1, DeleteObject 1, GetObject 1, \
         HeadObject 2, ListBuckets 1, ListObjectsV2 2, PutObject 2",
    );
}

#[test]
fn boto3() {
    check(
        include_bytes!("../captures/boto3.http"),
        "CompleteMultipartUpload 1, CopyObject 1, CreateMultipartUpload 1, DeleteObject 1, DeleteObjects 1, \
         GetBucketLocation 1, GetObject 2, GetObjectAttributes 2, HeadBucket 1, HeadObject 1, ListBuckets 1, \
         ListMultipartUploads 1, ListObjects 1, ListObjectsV2 1, PutObject 7",
    );
}

#[test]
fn duckdb() {
    check(include_bytes!("../captures/duckdb.http"), "GetObject 1, HeadObject 1, ListObjectsV2 1, PutObject 1");
}

#[test]
fn aws_sdk_for_javascript() {
    check(
        include_bytes!("../captures/js.http"),
        "CompleteMultipartUpload 1, CopyObject 1, CreateMultipartUpload 1, DeleteObject 1, DeleteObjects 1, \
         GetObject 2, HeadObject 1, ListObjectsV2 1, PutObject 4",
    );
}

#[test]
fn minio_py() {
    check(
        include_bytes!("../captures/minio.http"),
        "CompleteMultipartUpload 1, CopyObject 1, CreateMultipartUpload 1, DeleteObject 1, DeleteObjects 1, \
         GetBucketLocation 1, GetObject 1, HeadBucket 1, HeadObject 2, ListObjectsV2 1, PutObject 1",
    );
}

#[test]
fn rust_object_store() {
    check(
        include_bytes!("../captures/obstore.http"),
        "CompleteMultipartUpload 1, CopyObject 1, CreateMultipartUpload 1, DeleteObjects 1, GetObject 1, \
         ListObjectsV2 1, PutObject 1",
    );
}

#[test]
fn pyarrow() {
    check(
        include_bytes!("../captures/pyarrow.http"),
        "CompleteMultipartUpload 2, CopyObject 1, CreateMultipartUpload 2, DeleteObject 1, GetObject 1, \
         HeadBucket 1, HeadObject 4, ListObjectsV2 1, NoRoute 1, PutObject 3, UploadPart 2",
    );
}

#[test]
fn rclone() {
    check(
        include_bytes!("../captures/rclone.http"),
        "Above 1, CompleteMultipartUpload 1, CreateMultipartUpload 1, DeleteObject 3, GetObject 1, HeadObject \
         10, ListObjects 2, PutObject 1",
    );
}

#[test]
fn s3fs() {
    check(
        include_bytes!("../captures/s3fs.http"),
        "CompleteMultipartUpload 1, CopyObject 2, CreateMultipartUpload 1, DeleteObject 2, GetObject 1, \
         HeadObject 12, ListObjects 3, PutObject 3",
    );
}
