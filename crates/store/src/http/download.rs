//! Downloads: checked before the first byte, and taken up again where a connection breaks.
//!
//! Where the server says the checksum of the object and the whole object comes, the bytes are compared with it: those of
//! a short one before any of them is handed out, those of a longer one before the last of them is.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sandpail_s3::checksum::Checksummer;
use sandpail_s3::{Call, ChecksumKind};

use super::headers::object_info;
use super::send::{Reply, ReplyBody, Shared};
use crate::{Download, ETag, ObjectInfo, ObjectKey, StoreError, StoreResult};

/// How often a download is taken up again without a byte of progress.
const TRIES_MAX: u32 = 5;

/// A whole object with a checksum is compared with it before a byte is handed out, if it is not longer than this: what a
/// reader asks for at once.
const GATHERED_LEN_MAX: u64 = 8 << 20;

/// How often an object whose bytes differ from its checksum is fetched again.
const DIFFERENT_TRIES_MAX: u32 = 2;

/// Checksums that tell a whole object, the cheapest first.
const KINDS: [ChecksumKind; 3] = [ChecksumKind::Crc64Nvme, ChecksumKind::Crc32c, ChecksumKind::Crc32];

/// Begins a download.
pub(super) async fn open(
    shared: Arc<Shared>,
    key: &ObjectKey,
    range: Range<u64>,
    etag: Option<&ETag>,
) -> StoreResult<Download> {
    if range.is_empty() {
        return Err(StoreError::Invalid { message: format!("empty range of object {key:?}") });
    }
    let mut tries = 0;
    loop {
        let Answer { info, end, body, sum } = request(&shared, key, &range, etag).await?;
        // Bytes in the middle of an object have no checksum of their own.
        let sum = sum.filter(|_| range.start == 0 && end == info.size);
        let is_gathered = sum.is_some() && end <= GATHERED_LEN_MAX;
        let state = State {
            shared: Arc::clone(&shared),
            key: key.clone(),
            etag: info.etag.clone(),
            size: info.size,
            next: range.start,
            end,
            body: Some(body),
            tries: 0,
            sum: sum.map(|(kind, sum)| (Checksummer::new(kind), sum)),
        };
        let body = chunks(state);
        if !is_gathered {
            return Ok(Download { info, body: Box::pin(body) });
        }
        match body.try_collect::<Vec<_>>().await {
            Ok(chunks) => {
                let body = stream::iter(chunks.into_iter().map(Ok));
                return Ok(Download { info, body: Box::pin(body) });
            }
            Err(StoreError::Integrity { message }) if tries < DIFFERENT_TRIES_MAX => {
                tries += 1;
                tracing::warn!(message, "asking again");
            }
            Err(error) => return Err(error),
        }
    }
}

fn chunks(state: State) -> impl Stream<Item = StoreResult<Bytes>> + Send {
    stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        match state.next_chunk().await {
            Some(Ok(chunk)) => Some((Ok(chunk), Some(state))),
            Some(Err(error)) => Some((Err(error), None)),
            None => None,
        }
    })
}

struct State {
    shared: Arc<Shared>,
    key: ObjectKey,
    etag: ETag,
    size: u64,
    /// Offset in the object of the next byte.
    next: u64,
    end: u64,
    body: Option<Incoming>,
    tries: u32,
    /// The sum so far, and what it shall be when the last byte has come.
    sum: Option<(Checksummer, String)>,
}

impl State {
    async fn next_chunk(&mut self) -> Option<StoreResult<Bytes>> {
        loop {
            if self.next == self.end {
                // Hear the end of the answer, so that the connection can serve again.
                if let Some(mut body) = self.body.take() {
                    let _ = tokio::time::timeout(Duration::from_millis(100), body.frame()).await;
                }
                return None;
            }
            let Some(body) = &mut self.body else {
                match self.resume().await {
                    Ok(()) => continue,
                    Err(error) => return Some(Err(error)),
                }
            };
            let stall = self.shared.timeouts.stall;
            let broken = match tokio::time::timeout(stall, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    if data.is_empty() {
                        continue;
                    }
                    let len = data.len() as u64;
                    if len > self.end - self.next {
                        let message = format!("more bytes of object {:?} came than were asked for", self.key);
                        return Some(Err(StoreError::Integrity { message }));
                    }
                    self.shared.counters.received(len);
                    self.next += len;
                    self.tries = 0;
                    return Some(self.compared(&data).map(|()| data));
                }
                Ok(Some(Err(error))) => error.to_string(),
                Ok(None) => "the body ended early".into(),
                Err(_) => format!("no byte for {stall:?}"),
            };
            tracing::debug!(key = %self.key, at = self.next, cause = broken, "a download broke off");
            self.body = None;
            self.tries += 1;
            if self.tries > TRIES_MAX {
                let message =
                    format!("object {:?} broke off at byte {} of {}: {broken}", self.key, self.next, self.size);
                return Some(Err(StoreError::Integrity { message }));
            }
        }
    }

    /// Sums `data` up; behind the last byte, compares.
    fn compared(&mut self, data: &[u8]) -> StoreResult<()> {
        let Some((summer, _)) = &mut self.sum else { return Ok(()) };
        summer.update(data);
        if self.next < self.end {
            return Ok(());
        }
        match self.sum.take().map(|(summer, expected)| summer.finish() == Some(expected)) {
            Some(false) => {
                let message = format!("the bytes of object {:?} that came differ from its checksum", self.key);
                Err(StoreError::Integrity { message })
            }
            Some(true) | None => Ok(()),
        }
    }

    /// Asks for what is missing, of the same version.
    async fn resume(&mut self) -> StoreResult<()> {
        if self.tries > 1 {
            tokio::time::sleep(Duration::from_millis(50 << self.tries)).await;
        }
        let Answer { info, end, body, .. } =
            request(&self.shared, &self.key, &(self.next..self.end), Some(&self.etag)).await?;
        if info.size != self.size || end != self.end {
            let message = format!("object {:?} had {} bytes and now has {}", self.key, self.size, info.size);
            return Err(StoreError::Integrity { message });
        }
        self.body = Some(body);
        Ok(())
    }
}

/// An answer to a GET whose headers fit the question.
struct Answer {
    /// The version.
    info: ObjectInfo,
    /// Where the body ends, as an offset in the object.
    end: u64,
    body: Incoming,
    /// The checksum of the whole object.
    sum: Option<(ChecksumKind, String)>,
}

async fn request(shared: &Shared, key: &ObjectKey, range: &Range<u64>, etag: Option<&ETag>) -> StoreResult<Answer> {
    let mut call = Call::get(key.as_str(), range, etag.map(ETag::as_str));
    if range.start == 0 && shared.sums.are_kept() {
        call = call.with_checksum();
    }
    let mut tries = 0;
    loop {
        let reply = shared.exchange(&call, None, true, shared.retry_deadline).await.map_err(|failure| failure.error)?;
        match check(reply, key, range, etag) {
            Err(StoreError::Integrity { message }) if tries < 2 => {
                tries += 1;
                tracing::debug!(message, "asking again");
                tokio::time::sleep(Duration::from_millis(50 << tries)).await;
            }
            result => return result,
        }
    }
}

/// Compares an answer's headers with the question, before a byte of it is believed.
fn check(reply: Reply, key: &ObjectKey, range: &Range<u64>, etag: Option<&ETag>) -> StoreResult<Answer> {
    let protocol = |message: String| StoreError::Protocol { message: format!("GetObject of {key:?}: {message}") };
    let length: Option<u64> = reply.header("content-length").and_then(|length| length.trim().parse().ok());
    let (size, end) = match reply.status {
        StatusCode::PARTIAL_CONTENT => {
            let text = reply.header("content-range").ok_or_else(|| protocol("no Content-Range".into()))?;
            let (start, last, size) =
                parse_content_range(text).ok_or_else(|| protocol(format!("Content-Range {text:?}")))?;
            let end = range.end.min(size);
            if start != range.start || last + 1 != end {
                let message = format!(
                    "object {key:?}: bytes {start} to {last} came, {} to {} were asked for",
                    range.start,
                    end - 1
                );
                return Err(StoreError::Integrity { message });
            }
            (size, end)
        }
        // The whole object, which a server may send if that is what the range means.
        StatusCode::OK if range.start == 0 => {
            let size = length.ok_or_else(|| protocol("neither Content-Range nor Content-Length".into()))?;
            if size == 0 {
                return Err(StoreError::Invalid { message: format!("object {key:?} has no byte {}", range.start) });
            }
            if size > range.end {
                return Err(protocol("the server does not obey Range".into()));
            }
            (size, size)
        }
        status => return Err(protocol(format!("status {status} to a range"))),
    };
    if length.is_some_and(|length| length != end - range.start) {
        let message =
            format!("object {key:?}: Content-Length {length:?} and the range of {} bytes differ", end - range.start);
        return Err(StoreError::Integrity { message });
    }
    let info = object_info(&reply.headers, size, etag).map_err(protocol)?;
    if etag.is_some_and(|etag| *etag != info.etag) {
        return Err(StoreError::changed(key));
    }
    let sum = sum_of_whole(&reply);
    match reply.body {
        ReplyBody::Stream(body) => Ok(Answer { info, end, body, sum }),
        ReplyBody::Whole(_) => Err(protocol("no body".into())),
    }
}

/// The checksum that an answer says of the object's bytes. One of the sums of its parts is none.
pub(super) fn sum_of_whole(reply: &Reply) -> Option<(ChecksumKind, String)> {
    if reply.header("x-amz-checksum-type").is_some_and(|kind| kind.eq_ignore_ascii_case("COMPOSITE")) {
        return None;
    }
    KINDS.into_iter().find_map(|kind| {
        let sum = reply.header(kind.header()?)?.trim();
        (!sum.is_empty() && !sum.contains('-')).then(|| (kind, sum.to_owned()))
    })
}

/// Reads `bytes 0-9/100`.
fn parse_content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, last, size) = (start.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (start <= last && last < size).then_some((start, last, size))
}

#[cfg(test)]
mod tests {
    use super::parse_content_range;

    #[test]
    fn content_ranges() {
        assert_eq!(parse_content_range("bytes 0-9/100"), Some((0, 9, 100)));
        for bad in ["", "bytes", "bytes 0-9/*", "bytes 9-0/100", "bytes 0-100/100", "lines 0-9/100", "bytes a-b/c"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
