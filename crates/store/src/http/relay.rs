//! Sends single requests that others made, with a bucket's own address and keys, bodies streaming both ways.

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use sandpail_s3::ChecksumKind;
use sandpail_s3::sign::UNSIGNED_PAYLOAD;
use sandpail_spec::Provider;

use super::connect::Connector;
use super::error::hints;
use super::framed::{self, Framed};
use super::goog;
use super::origin::{Origin, Outgoing, Target};
use super::send::chain;
use super::wire::{Pool, Received, Wire};
use crate::StoreError;

/// Bodies up to this length are taken in before they are sent, so that they can be sent again to another region, or over
/// another connection.
const REPLAY_LEN_MAX: u64 = 64 << 10;
/// Longest error document that is looked at.
const REFUSAL_LEN_MAX: usize = 64 << 10;

/// Why a body broke.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// A body as it streams.
pub type RelayBody = UnsyncBoxBody<Bytes, BodyError>;

/// One request, not yet addressed and signed.
pub struct RelayRequest {
    /// The method.
    pub method: Method,
    /// The key, decoded; none for the bucket itself.
    pub key: Option<String>,
    /// The query, decoded.
    pub query: Vec<(String, String)>,
    /// Headers beside those of address, length and signature.
    pub headers: HeaderMap,
    /// The body's SHA-256 in hexadecimal, to be signed; else the body is not signed.
    pub payload_hash: Option<String>,
    /// Length of the body in bytes.
    pub len: u64,
    /// Gives `len` bytes.
    pub body: RelayBody,
    /// The checksum that the body gives in trailers when it ends. It is passed on behind the body if the body is long
    /// and the provider knows such bodies; of a short body it should be among the headers.
    pub trailer: Option<ChecksumKind>,
    /// Waits for the answer as long as copies and completions may take.
    pub is_slow: bool,
}

impl fmt::Debug for RelayRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayRequest").field("method", &self.method).field("key", &self.key).finish_non_exhaustive()
    }
}

/// Why there was no answer. Texts hold no key and no signature.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The store cannot be reached, or broke off before it answered.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("the store did not answer within {0:?}")]
    Timeout(Duration),
    /// The store's region or clock was learned, or new keys were got, but the body cannot be sent again.
    #[error("the request must be sent once more")]
    TryAgain,
    /// There are no keys to sign with.
    #[error("{0}")]
    Credentials(String),
    /// The body broke, or has another length than was said.
    #[error("the body broke: {0}")]
    Body(String),
    /// The provider's dialect has no word for it.
    #[error("{0} is not known to this provider")]
    Unsupported(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl From<StoreError> for RelayError {
    fn from(error: StoreError) -> Self {
        match error {
            error @ StoreError::Credentials { .. } => Self::Credentials(error.to_string()),
            error => Self::Invalid(error.to_string()),
        }
    }
}

/// Sends requests of others to one bucket. From [`super::HttpStoreBuilder::build_relay`].
///
/// Every request is sent once. It is sent again only if that cannot do harm: to the region that the store names, by the
/// store's clock, or with new keys, when it was refused; or when a connection that had waited turned out to be dead.
pub struct Relay {
    origin: Origin,
    pool: Arc<Pool>,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("target", &self.origin.target())
            .field("provider", &self.origin.quirks.provider)
            .field("credentials", &self.origin.credentials)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// What has been tried for one request.
#[derive(Default)]
struct Tried {
    region: bool,
    clock: bool,
    keys: bool,
    connection: bool,
}

impl Relay {
    pub(super) fn new(origin: Origin, connector: Connector, idle_count_max: usize) -> Self {
        Self { origin, pool: Pool::new(connector, idle_count_max) }
    }

    /// The region that requests are signed for now.
    pub fn region(&self) -> String {
        self.origin.target().signer.region().to_owned()
    }

    /// Whose dialect it is.
    pub fn provider(&self) -> Provider {
        self.origin.quirks.provider
    }

    /// Sends a request and gives the answer, whatever its status; its body streams.
    ///
    /// # Errors
    /// [`RelayError`] if there is no answer.
    pub async fn send(&self, request: RelayRequest) -> Result<Response<RelayBody>, RelayError> {
        let RelayRequest { method, key, query, mut headers, mut payload_hash, mut len, body, trailer, is_slow } =
            request;
        let is_goog = self.provider() == Provider::Gcs;
        if is_goog {
            headers = goog::request(&method, &headers).map_err(RelayError::Unsupported)?;
        }
        let mut stock = Stock::new(body, len).await?;
        // Google knows `aws-chunked`, but not the checksums behind it.
        if let Some(kind) = trailer.filter(|_| !is_goog) {
            stock = stock.framed(kind, &mut headers);
            if let Stock::Stream { len: wire_len, .. } = stock
                && wire_len != len
            {
                (payload_hash, len) = (Some(framed::HASH.into()), wire_len);
            }
        }
        let outgoing = Outgoing {
            method: &method,
            key: key.as_deref(),
            query: &query,
            headers: &headers,
            payload_hash: payload_hash.as_deref().unwrap_or(UNSIGNED_PAYLOAD),
        };
        let mut tried = Tried::default();
        loop {
            let credentials = match &self.origin.credentials {
                Some(provider) => Some(provider.get().await?),
                None => None,
            };
            let target = self.origin.target();
            let (body, progress) = stock.take().ok_or(RelayError::TryAgain)?;
            let mut request = self.origin.request(&target, &outgoing, credentials.as_deref(), body)?;
            if len > 0 || !matches!(method, Method::GET | Method::HEAD | Method::DELETE) {
                request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(len));
            }
            let answer = match self.exchange(&target, request, &progress, is_slow).await {
                Ok(answer) => answer,
                // It died while it waited, most likely before it saw the request.
                Err(Lost::Waited(_)) if stock.is_whole() && !tried.connection => {
                    tried.connection = true;
                    continue;
                }
                Err(lost) => return Err(lost.into_error(&progress)),
            };
            let mut answer = match refused(answer).await {
                Judged::Other(answer) => answer,
                Judged::Refused(parts, bytes) => {
                    if self.mends(&method, &parts, &bytes, &mut tried).await {
                        continue;
                    }
                    Response::from_parts(parts, full(bytes))
                }
            };
            if is_goog {
                goog::answer(answer.headers_mut());
            }
            return Ok(answer);
        }
    }

    /// Learns from a refusal. Says whether another try can help.
    async fn mends(&self, method: &Method, parts: &http::response::Parts, body: &[u8], tried: &mut Tried) -> bool {
        let hints = hints(&parts.headers, body);
        if !tried.region
            && let Some(region) = &hints.region
            && self.origin.move_to(region)
        {
            tried.region = true;
            return true;
        }
        let Some(credentials) = &self.origin.credentials else { return false };
        if !tried.clock && hints.may_be_clock() && self.origin.learn_clock(hints.server_time) {
            tried.clock = true;
            return true;
        }
        // An answer to HEAD has no body to say it.
        let is_mute = *method == Method::HEAD && parts.status == StatusCode::BAD_REQUEST;
        if !tried.keys && (hints.is_expired() || is_mute) && credentials.refused().await {
            tried.keys = true;
            return true;
        }
        false
    }

    async fn exchange(
        &self,
        target: &Arc<Target>,
        mut request: Request<SentBody>,
        progress: &Progress,
        is_slow: bool,
    ) -> Result<Response<RelayBody>, Lost> {
        let url = std::mem::take(request.uri_mut());
        let path = url.path_and_query().cloned().ok_or_else(|| Lost::Fresh(format!("{url} has no path")))?;
        *request.uri_mut() = Uri::from(path);
        let timeouts = &self.origin.timeouts;
        let first_byte = if is_slow { timeouts.first_byte.max(timeouts.slow) } else { timeouts.first_byte };
        loop {
            let (mut wire, has_waited) = match self.pool.take(target) {
                Some(wire) => (wire, true),
                None => {
                    let opened = self.pool.connect(target, url.clone()).await;
                    (opened.map_err(|error| Lost::Fresh(chain(&error)))?, false)
                }
            };
            let mut sending = pin!(wire.sender.try_send_request(request));
            let mut answering = poll_fn(|cx| {
                wire.drive(cx);
                // It gets its answer while the connection is driven, and at no other time: it need not be woken.
                sending.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            });
            let result = loop {
                let seen = progress.seen();
                let patience = if progress.is_sent() { first_byte } else { timeouts.stall };
                match tokio::time::timeout(patience, &mut answering).await {
                    Ok(result) => break result,
                    // The store can only be blamed if it does not take, or not answer, what is there.
                    Err(_) if progress.is_starved() || progress.seen() != seen => {}
                    Err(_) => return Err(Lost::Silent(patience)),
                }
            };
            match result {
                Ok(answer) => return Ok(self.received(answer, wire)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if has_waited => request = unsent,
                    _ if has_waited => return Err(Lost::Waited(chain(error.error()))),
                    _ => return Err(Lost::Fresh(chain(error.error()))),
                },
            }
        }
    }

    fn received(&self, answer: Response<hyper::body::Incoming>, wire: Wire) -> Response<RelayBody> {
        let stall = self.origin.timeouts.stall;
        answer.map(|incoming| Received::new(incoming, wire, Arc::clone(&self.pool), stall).boxed_unsync())
    }
}

fn full(bytes: Bytes) -> RelayBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// An answer, looked at if it may be one that another try mends.
enum Judged {
    Other(Response<RelayBody>),
    Refused(http::response::Parts, Bytes),
}

async fn refused(answer: Response<RelayBody>) -> Judged {
    if !matches!(answer.status().as_u16(), 301 | 302 | 307 | 308 | 400 | 401 | 403) {
        return Judged::Other(answer);
    }
    let (mut parts, mut body) = answer.into_parts();
    let mut bytes = BytesMut::new();
    // Cut off or broken it is still a refusal, only one without hints.
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > REFUSAL_LEN_MAX {
            break;
        }
        bytes.extend_from_slice(&data);
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.remove(header::TRANSFER_ENCODING);
    Judged::Refused(parts, bytes.freeze())
}

/// There was no answer.
enum Lost {
    /// On a connection that had waited in the pool.
    Waited(String),
    Fresh(String),
    Silent(Duration),
}

impl Lost {
    fn into_error(self, progress: &Progress) -> RelayError {
        if let Some(cause) = progress.failure() {
            return RelayError::Body(cause);
        }
        match self {
            Self::Waited(cause) | Self::Fresh(cause) => RelayError::Unreachable(cause),
            Self::Silent(patience) => RelayError::Timeout(patience),
        }
    }
}

/// A request's body before it is sent.
enum Stock {
    Whole(Bytes),
    Stream { body: Option<RelayBody>, len: u64 },
}

impl Stock {
    async fn new(mut body: RelayBody, len: u64) -> Result<Self, RelayError> {
        if len > REPLAY_LEN_MAX {
            return Ok(Self::Stream { body: Some(body), len });
        }
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| RelayError::Body(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.is_empty() {
                // Most come in one piece, which need not be copied.
                bytes = BytesMut::from(data);
            } else {
                bytes.extend_from_slice(&data);
            }
            if bytes.len() as u64 > len {
                break;
            }
        }
        if bytes.len() as u64 != len {
            return Err(RelayError::Body(format!("it has not the {len} bytes that were said")));
        }
        Ok(Self::Whole(bytes.freeze()))
    }

    /// A body that streams, with the checksum behind it.
    fn framed(self, kind: ChecksumKind, headers: &mut HeaderMap) -> Self {
        match self {
            Self::Stream { body: Some(body), len } => match Framed::new(body, len, kind) {
                Ok((framed, wire_len)) => {
                    framed.describe(headers);
                    Self::Stream { body: Some(framed.boxed_unsync()), len: wire_len }
                }
                Err(body) => Self::Stream { body: Some(body), len },
            },
            other => other,
        }
    }

    fn is_whole(&self) -> bool {
        matches!(self, Self::Whole(_))
    }

    /// The body for one try; none if it was already given away.
    fn take(&mut self) -> Option<(SentBody, Arc<Progress>)> {
        let (source, len) = match self {
            Self::Whole(bytes) => (Source::Bytes(bytes.clone()), bytes.len() as u64),
            Self::Stream { body, len } => (Source::Stream(body.take()?), *len),
        };
        let progress = Arc::new(Progress { left: AtomicU64::new(len), ..Progress::default() });
        Some((SentBody { source, left: len, progress: Arc::clone(&progress) }, progress))
    }
}

/// How far a body has been sent.
#[derive(Debug, Default)]
struct Progress {
    left: AtomicU64,
    is_starved: AtomicBool,
    failed: Mutex<Option<String>>,
}

impl Progress {
    fn seen(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    fn is_sent(&self) -> bool {
        self.seen() == 0
    }

    /// The store waits for the body, not we for the store.
    fn is_starved(&self) -> bool {
        self.is_starved.load(Ordering::Relaxed)
    }

    fn failure(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

enum Source {
    Bytes(Bytes),
    Stream(RelayBody),
}

/// One sending of a body; never more or less than the length that was said.
pub(super) struct SentBody {
    source: Source,
    left: u64,
    progress: Arc<Progress>,
}

impl SentBody {
    fn fail(&self, cause: String) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        *self.progress.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause.clone());
        Poll::Ready(Some(Err(cause.into())))
    }
}

impl Body for SentBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let data = loop {
            let body = match &mut this.source {
                Source::Bytes(bytes) if bytes.is_empty() => return Poll::Ready(None),
                Source::Bytes(bytes) => break std::mem::take(bytes),
                Source::Stream(body) => body,
            };
            let polled = Pin::new(body).poll_frame(cx);
            this.progress.is_starved.store(polled.is_pending(), Ordering::Relaxed);
            match polled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) if this.left > 0 => {
                    return this.fail(format!("{} bytes are missing", this.left));
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => return this.fail(error.to_string()),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => break data,
                    Err(_) => {}
                },
            }
        };
        match this.left.checked_sub(data.len() as u64) {
            Some(left) => this.left = left,
            None => return this.fail("it is longer than was said".into()),
        }
        this.progress.left.store(this.left, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
