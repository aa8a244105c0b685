//! Answers to the sandbox: their heads by a closed list, their bodies counted.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body::{Frame, SizeHint};
use sandpail_store::http::BodyError;

use crate::meter::Meter;
use crate::{Denied, ErrorAnswer};
use sandpail_store::http::RelayBody;

/// What a client may learn of an object beside `x-amz-meta-*` and `x-amz-checksum-*`. Not among them: names of keys,
/// rules, accounts and hosts (`x-amz-server-side-encryption-aws-kms-key-id`, `x-amz-expiration`, `x-amz-id-2`,
/// `x-amz-version-id`, `server`, `location`).
const PASSED: [&str; 24] = [
    "accept-ranges",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "retry-after",
    "x-amz-archive-status",
    "x-amz-delete-marker",
    "x-amz-missing-meta",
    "x-amz-mp-parts-count",
    "x-amz-object-size",
    "x-amz-restore",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-bucket-key-enabled",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-storage-class",
    "x-amz-tagging-count",
];

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

/// The body of an answer, and the meter of its request, which tells of it when the body is dropped.
pub(crate) struct AnswerBody {
    source: Source,
    meter: Meter,
}

enum Source {
    Whole(Bytes),
    Stream(RelayBody),
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let data = match &mut this.source {
            Source::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Source::Whole(bytes) => std::mem::take(bytes),
            Source::Stream(body) => loop {
                match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    Some(Ok(frame)) => {
                        // A store's trailers are not ours to pass on.
                        if let Ok(data) = frame.into_data() {
                            break data;
                        }
                    }
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => return Poll::Ready(None),
                }
            },
        };
        this.meter.sent(data.len());
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Stream(body) => body.size_hint(),
        }
    }
}

/// An answer whose body is complete.
pub(crate) fn whole(response: Response<Bytes>, meter: Meter) -> Response<AnswerBody> {
    finish(response.map(Source::Whole), meter)
}

/// An answer whose body is the store's.
pub(crate) fn streaming(parts: Parts, body: RelayBody, meter: Meter) -> Response<AnswerBody> {
    finish(Response::from_parts(parts, Source::Stream(body)), meter)
}

/// The answer to a request that was refused, or that the store refused or could not answer.
pub(crate) fn error(answer: &ErrorAnswer, is_head: bool, meter: Meter) -> Response<AnswerBody> {
    let response = answer.response(is_head, meter.request_id());
    whole(response, meter)
}

/// The answer to a request that the rules forbid.
pub(crate) fn denied(denied: &Denied, is_head: bool, mut meter: Meter) -> Response<AnswerBody> {
    meter.refused(denied);
    error(&ErrorAnswer::from(denied), is_head, meter)
}

fn finish(response: Response<Source>, mut meter: Meter) -> Response<AnswerBody> {
    let (mut parts, source) = response.into_parts();
    meter.answered(parts.status.as_u16());
    if let Ok(id) = HeaderValue::from_str(meter.request_id()) {
        parts.headers.insert(REQUEST_ID, id);
    }
    Response::from_parts(parts, AnswerBody { source, meter })
}

/// The headers of the store's answer that the client may see.
pub(crate) fn passed(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(headers.len() + 1);
    for (name, value) in headers {
        if is_passed(name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

fn is_passed(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-amz-meta-") || name.starts_with("x-amz-checksum-") || PASSED.binary_search(&name).is_ok()
}

/// The length of a document that took the place of the store's.
pub(crate) fn describe_document(headers: &mut HeaderMap, len: usize) {
    headers.remove(header::CONTENT_ENCODING);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_headers_pass() {
        assert!(PASSED.is_sorted());
        let mut headers = HeaderMap::new();
        for name in [
            "etag",
            "x-amz-meta-a",
            "x-amz-checksum-crc32",
            "server",
            "x-amz-id-2",
            "location",
            "set-cookie",
            "x-amz-request-id",
            "x-amz-server-side-encryption-aws-kms-key-id",
            "connection",
            "transfer-encoding",
        ] {
            headers.insert(name, HeaderValue::from_static("v"));
        }
        let kept = passed(&headers);
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["etag", "x-amz-checksum-crc32", "x-amz-meta-a"]);
    }
}
