//! The body of a request on its way in: read, checked, and given on, no more than a read at a time.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sandpail_s3::ChecksumKind;
use sandpail_store::http::BodyError;
use tokio::time::{Instant, Sleep, sleep};

use crate::body::{BodyCheck, Checked};
use crate::{Denied, Forward};

/// A body that does not move for so long is given up.
const STALL: Duration = Duration::from_secs(30);

/// Why a body broke, told beside the body: those who read it only see that it did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fault(Arc<Mutex<Option<Denied>>>);

impl Fault {
    fn set(&self, denied: Denied) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(denied);
    }

    /// What was wrong with the body, if it was the body.
    pub(crate) fn get(&self) -> Option<Denied> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the wire carries, with a bound on how long nothing may come, and counted.
struct Wire {
    incoming: Incoming,
    received: Arc<AtomicU64>,
    stall: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
}

impl Wire {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Denied>>> {
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.is_stalled = false;
                    // Trailers mean nothing here; those of `aws-chunked` are inside the body.
                    let Ok(data) = frame.into_data() else { continue };
                    self.received.fetch_add(data.len() as u64, Ordering::Relaxed);
                    return Poll::Ready(Some(Ok(data)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(cause(&error)))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(STALL)));
                    if !std::mem::replace(&mut self.is_stalled, true) {
                        stall.as_mut().reset(Instant::now() + STALL);
                    }
                    ready!(stall.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(Denied::Malformed("the body stopped for too long"))));
                }
            }
        }
    }
}

/// What the gate said, or that the connection broke.
fn cause(error: &hyper::Error) -> Denied {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(denied) = error.downcast_ref::<Denied>() {
            return denied.clone();
        }
        // The source of an `io::Error` is the source of what it wraps: look at that first.
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && let Some(denied) = error.get_ref().and_then(|inner| inner.downcast_ref::<Denied>())
        {
            return denied.clone();
        }
        cause = error.source();
    }
    Denied::Malformed("the body broke off")
}

/// A checked body that streams.
pub(crate) struct Upload {
    wire: Wire,
    check: Option<BodyCheck>,
    /// Decoded and not yet given on, from `next` on.
    decoded: Vec<Bytes>,
    next: usize,
    /// Decoded bytes that were not given on yet.
    left: u64,
    /// The checksum that came behind the body.
    trailer: Option<HeaderMap>,
    fault: Fault,
}

impl Upload {
    /// The body of a request that was permitted, of `len` decoded bytes.
    pub(crate) fn new(forward: &Forward, len: u64, incoming: Incoming, received: Arc<AtomicU64>, fault: Fault) -> Self {
        Self {
            wire: Wire { incoming, received, stall: None, is_stalled: false },
            check: Some(forward.body_check()),
            decoded: Vec::new(),
            next: 0,
            left: len,
            trailer: None,
            fault,
        }
    }

    fn poll_decoded(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Denied>>> {
        loop {
            if let Some(bytes) = self.decoded.get_mut(self.next) {
                self.next += 1;
                let bytes = std::mem::take(bytes);
                if bytes.is_empty() {
                    continue;
                }
                self.left = self.left.saturating_sub(bytes.len() as u64);
                return Poll::Ready(Some(Ok(bytes)));
            }
            self.decoded.clear();
            self.next = 0;
            let Some(check) = &mut self.check else { return Poll::Ready(None) };
            match ready!(self.wire.poll_data(cx)) {
                Some(Ok(data)) => {
                    if let Err(denied) = check.push(data, &mut self.decoded) {
                        return Poll::Ready(Some(Err(denied)));
                    }
                }
                Some(Err(denied)) => return Poll::Ready(Some(Err(denied))),
                None => match self.check.take().map(BodyCheck::finish) {
                    Some(Ok(Checked { last, checksum })) => {
                        self.decoded.push(last);
                        self.trailer = checksum.map(header);
                    }
                    Some(Err(denied)) => return Poll::Ready(Some(Err(denied))),
                    None => return Poll::Ready(None),
                },
            }
        }
    }

    /// Reads all of it; at most `len` bytes come, as the check promises.
    ///
    /// # Errors
    /// [`Denied`].
    pub(crate) async fn collect(mut self) -> Result<(Bytes, HeaderMap), Denied> {
        let mut all = BytesMut::new();
        while let Some(bytes) = std::future::poll_fn(|cx| self.poll_decoded(cx)).await {
            all.extend_from_slice(&bytes?);
        }
        Ok((all.freeze(), self.trailer.unwrap_or_default()))
    }
}

fn header((kind, value): (ChecksumKind, String)) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // A verified checksum is base64.
    if let (Some(name), Ok(value)) = (kind.header(), HeaderValue::from_str(&value)) {
        headers.insert(HeaderName::from_static(name), value);
    }
    headers
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match ready!(this.poll_decoded(cx)) {
            Some(Ok(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Err(denied)) => {
                this.fault.set(denied.clone());
                this.check = None;
                Poll::Ready(Some(Err(denied.into())))
            }
            None => Poll::Ready(this.trailer.take().map(|trailer| Ok(Frame::trailers(trailer)))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Reads what is left of a body that nobody wants, so that the client reads the answer instead of losing it to a reset
/// connection; within bounds.
pub(crate) async fn drain(mut incoming: Incoming) {
    const LEN_MAX: usize = 8 << 20;
    let mut left = LEN_MAX;
    let reading = async {
        while let Some(Ok(frame)) = incoming.frame().await {
            let len = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(len) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Who is slower loses the answer, not more.
    let _ = tokio::time::timeout(Duration::from_secs(2), reading).await;
}
