//! One request, from signing to an answer: tries, timeouts, regions, clocks.

use std::collections::hash_map::RandomState;
use std::error::Error;
use std::hash::{BuildHasher, Hasher};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use sandpail_s3::checksum::sha256_hex;
use sandpail_s3::sign::UNSIGNED_PAYLOAD;

use sandpail_s3::{Call, Operation};
use sandpail_spec::Credentials;
use sandpail_spec::Provider;
use tokio::time::{Instant, sleep};

use super::body::{UploadBody, file_error};
use super::connect::Connector;
use super::counters::Counters;
use super::error::{Failure, classify, clean};
use super::limiter::Limiter;
use super::origin::{Origin, Outgoing};
use super::sums::Sums;
use crate::{Capabilities, PutBody, StoreError, StoreResult};

/// Longest answer that is not a download: a page of 1000 keys of 1024 bytes, each byte as `%XX`, and room.
const ANSWER_LEN_MAX: usize = 32 << 20;
/// The longest pause between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// An answer that is a success.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: ReplyBody,
}

#[derive(Debug)]
pub(super) enum ReplyBody {
    Whole(Bytes),
    Stream(Incoming),
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.body {
            ReplyBody::Whole(bytes) => bytes,
            ReplyBody::Stream(_) => &[],
        }
    }
}

/// What all clones of a store share.
pub(super) struct Shared {
    pub(super) origin: Origin,
    pub(super) client: Client<Connector, UploadBody>,
    pub(super) sums: Sums,
    pub(super) capabilities: Capabilities,
    pub(super) retry_deadline: Duration,
    pub(super) limiter: Limiter,
    pub(super) counters: Counters,
    /// An answer named SeaweedFS as its server, whatever the provider was said to be.
    pub(super) is_seaweedfs: AtomicBool,
}

/// A store is its origin, and what it takes to try again.
impl Deref for Shared {
    type Target = Origin;

    fn deref(&self) -> &Origin {
        &self.origin
    }
}

/// A pause before try `attempt + 1`: doubling, and never in step with other clients.
fn backoff(attempt: u32) -> Duration {
    let whole = Duration::from_millis(50).saturating_mul(1 << attempt.min(10)).min(BACKOFF_MAX);
    let random = RandomState::new().build_hasher().finish() % 1000;
    let half = whole / 2;
    half + half.mul_f64(random as f64 / 1000.0)
}

/// An error with its causes, each said once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    clean(&text)
}

impl Shared {
    /// Whether user metadata of keys that end in `/` is dropped here.
    pub(super) fn loses_marker_metadata(&self) -> bool {
        !self.quirks.marker_metadata || self.is_seaweedfs.load(Ordering::Relaxed)
    }

    /// Whether keys are paths of directories here.
    pub(super) fn has_directories(&self) -> bool {
        self.quirks.provider == Provider::SeaweedFs || self.is_seaweedfs.load(Ordering::Relaxed)
    }

    /// Whether a backslash in a key becomes a `/` here.
    pub(super) fn turns_backslashes(&self) -> bool {
        !self.quirks.backslashes || self.is_seaweedfs.load(Ordering::Relaxed)
    }

    /// Sends a call without a body of its own.
    pub(super) async fn ask(&self, call: &Call) -> Result<Reply, Failure> {
        self.exchange(call, None, false, self.retry_deadline).await
    }

    /// Sends a call until it succeeds, is refused, or `deadline` has passed. With `stream` the body is left unread.
    pub(super) async fn exchange(
        &self,
        call: &Call,
        body: Option<&PutBody>,
        stream: bool,
        deadline: Duration,
    ) -> Result<Reply, Failure> {
        let begun = Instant::now();
        let mut attempt = 0;
        let mut maybe_done = false;
        let (mut moved, mut clock_set, mut renewed) = (false, false, false);
        loop {
            let result = {
                let _permit = self.limiter.acquire().await;
                self.counters.request(call.operation, attempt > 0);
                self.attempt(call, body, stream).await
            };
            attempt += 1;
            let mut failure = match result {
                Ok(reply) => {
                    self.limiter.success();
                    if let Some(server) = reply.header("server") {
                        self.is_seaweedfs.fetch_or(server.starts_with("SeaweedFS"), Ordering::Relaxed);
                        self.sums.met(server);
                    }
                    return Ok(reply);
                }
                Err(failure) => failure,
            };
            if failure.slow {
                self.limiter.slow_down();
            }
            maybe_done |= failure.maybe_done;
            if !moved
                && let Some(region) = &failure.region
                && self.move_to(region)
            {
                moved = true;
                continue;
            }
            if failure.refused && self.credentials.is_some() {
                if !clock_set && self.learn_clock(failure.server_time) {
                    clock_set = true;
                    continue;
                }
                let looks_expired =
                    matches!(failure.error, StoreError::Credentials { .. } | StoreError::Invalid { .. });
                if !renewed
                    && looks_expired
                    && let Some(credentials) = &self.credentials
                    && credentials.refused().await
                {
                    renewed = true;
                    continue;
                }
            }
            failure.maybe_done = maybe_done;
            if !failure.retry {
                return Err(failure);
            }
            let pause = failure.retry_after.unwrap_or_default().max(backoff(attempt));
            if begun.elapsed() + pause > deadline {
                return Err(failure);
            }
            tracing::debug!(operation = %call.operation, key = call.key, attempt, error = %failure.error, "trying again");
            sleep(pause).await;
        }
    }

    fn request(
        &self,
        call: &Call,
        body: UploadBody,
        is_upload: bool,
        credentials: Option<&Credentials>,
    ) -> StoreResult<Request<UploadBody>> {
        let hash = if is_upload { None } else { credentials.map(|_| sha256_hex(&call.body)) };
        let outgoing = Outgoing {
            method: &call.method,
            key: call.key.as_deref(),
            query: &call.query,
            headers: &call.headers,
            payload_hash: hash.as_deref().unwrap_or(UNSIGNED_PAYLOAD),
        };
        self.origin.request(&self.target(), &outgoing, credentials, body)
    }

    /// A request that asks for nothing, unsigned: to see whether anybody answers.
    pub(super) fn bare_request(&self) -> StoreResult<Request<UploadBody>> {
        let url = self.target().address.url("/", "");
        let (body, _) = UploadBody::new(&PutBody::empty());
        Request::head(&url)
            .body(body)
            .map_err(|error| StoreError::Invalid { message: format!("{url} is no URL: {error}") })
    }

    async fn attempt(&self, call: &Call, upload: Option<&PutBody>, stream: bool) -> Result<Reply, Failure> {
        let credentials = match &self.credentials {
            Some(provider) => Some(provider.get().await?),
            None => None,
        };
        let own = PutBody::from(call.body.clone());
        let (body, progress) = UploadBody::new(upload.unwrap_or(&own));
        let len = progress.left();
        let request = self.request(call, body, upload.is_some(), credentials.as_deref())?;
        let answering = self.client.request(request);
        tokio::pin!(answering);

        // One timer for both timeouts: a body that does not move, and an answer that does not come.
        let mut left = len;
        let result = loop {
            let patience = if left > 0 {
                self.timeouts.stall
            } else if call.operation.is_slow() {
                self.timeouts.first_byte.max(self.timeouts.slow)
            } else {
                self.timeouts.first_byte
            };
            match tokio::time::timeout(patience, &mut answering).await {
                Ok(result) => break result,
                Err(_) if progress.left() != left => left = progress.left(),
                Err(_) => {
                    self.counters.sent(len - progress.left());
                    let message = format!("{} got no answer for {patience:?}", call.operation);
                    return Err(Failure::passing(self.unreachable(message), true));
                }
            }
        };
        self.counters.sent(len - progress.left());
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                if let Some(error) = progress.failure() {
                    return Err(file_error(error).into());
                }
                return Err(self.broken(&error));
            }
        };
        let (parts, body) = response.into_parts();
        if parts.status.is_success() && stream {
            return Ok(Reply { status: parts.status, headers: parts.headers, body: ReplyBody::Stream(body) });
        }
        let bytes = self.gather(call, body).await?;
        let is_error_in_200 = || call.operation != Operation::HeadObject && sniff_error(&bytes);
        if !parts.status.is_success() || is_error_in_200() {
            return Err(classify(call, &self.names, parts.status, &parts.headers, &bytes));
        }
        Ok(Reply { status: parts.status, headers: parts.headers, body: ReplyBody::Whole(bytes) })
    }

    /// A request that broke before there was an answer.
    pub(super) fn broken(&self, error: &hyper_util::client::legacy::Error) -> Failure {
        let text = chain(error);
        if text.contains("invalid peer certificate") {
            let message = format!(
                "{text}. If you trust this server, name its authority with --ca-file, or take any with --insecure."
            );
            return Failure::lasting(self.unreachable(message));
        }
        Failure::passing(self.unreachable(text), !error.is_connect())
    }

    /// Reads an answer that is not a download.
    async fn gather(&self, call: &Call, mut body: Incoming) -> Result<Bytes, Failure> {
        let mut all = BytesMut::new();
        loop {
            match tokio::time::timeout(self.timeouts.stall, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    self.counters.received(data.len() as u64);
                    if all.len() + data.len() > ANSWER_LEN_MAX {
                        let message = format!("the answer to {} has more than {ANSWER_LEN_MAX} bytes", call.operation);
                        return Err(StoreError::Protocol { message }.into());
                    }
                    if all.is_empty() {
                        // Most answers come in one piece, which need not be copied twice.
                        all = BytesMut::from(data);
                    } else {
                        all.extend_from_slice(&data);
                    }
                }
                Ok(Some(Err(error))) => {
                    let message = format!("the answer to {} broke off: {}", call.operation, chain(&error));
                    return Err(Failure::passing(self.unreachable(message), true));
                }
                Err(_) => {
                    let message = format!("the answer to {} stopped for {:?}", call.operation, self.timeouts.stall);
                    return Err(Failure::passing(self.unreachable(message), true));
                }
            }
        }
        Ok(all.freeze())
    }
}

/// Whether a successful answer is an error document after all.
fn sniff_error(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(512)];
    let has = |needle: &[u8]| start.windows(needle.len()).any(|window| window == needle);
    (has(b"<Error>") || has(b"<Error ") || has(b"<ErrorResponse"))
        && sandpail_s3::xml::ErrorDocument::parse(bytes).is_some()
}
