//! One connection of a sandbox, from its first byte to its last.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::answer::{self, AnswerBody};
use crate::forward::forward;
use crate::meter::{Meter, Slot};
use crate::quiet::Quiet;
use crate::{Arrival, Decision, Denied, Gate, Guest, decide, upload};

/// For the head of a request, waiting for it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that takes nothing of its answer for so long is cut off.
const WRITE_STALL: Duration = Duration::from_secs(60);
/// How long a request waits for others of its sandbox to end.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a client may still send after its last answer, so that it reads the answer before the connection is gone.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
const LINGER_LEN_MAX: usize = 16 << 20;
/// Most bytes that are read from, or wait to be written to, a connection. With half of it, PUT of long bodies takes a tenth
/// more CPU.
pub(crate) const BUFFER_LEN_MAX: usize = 256 << 10;

/// Serves one connection of a sandbox until it ends, as S3. `io` should not delay small writes (`TCP_NODELAY`).
///
/// A connection is known by the `guest` whose socket it came through, and by nothing that it says.
pub async fn serve<IO>(io: IO, arrival: Arrival, guest: Arc<Guest>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(connection_permit) = guest.limits().connection() else {
        // Not worth an answer: the sandbox has so many connections open that it cannot be an honest client's.
        tracing::warn!(sandbox = guest.id(), "a connection to the credential proxy is one too many");
        return;
    };
    let slot = Arc::new(Slot::default());
    let service = {
        let (slot, arrival) = (Arc::clone(&slot), Arc::new(arrival));
        service_fn(move |request| {
            let (arrival, guest, slot) = (Arc::clone(&arrival), Arc::clone(&guest), Arc::clone(&slot));
            // In a box, so that the connection can give back its socket at the end.
            Box::pin(async move {
                let awaits_word = request.headers().contains_key(header::EXPECT);
                let mut response = handle(request, &arrival, &guest, slot).await;
                if awaits_word && !response.status().is_success() {
                    // The client keeps the body, and hyper would take the next request for it.
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            })
        })
    };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_LEN_MAX)
        .serve_connection(TokioIo::new(Gate::new(Patient::new(io))), service);
    let serving = poll_fn(|cx| match connection.poll_without_shutdown(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        // Whatever it is busy with is dropped with it.
        Poll::Pending => slot.poll_revoked(cx).map(|()| None),
    });
    let ended = Quiet::new(serving).await;
    match ended {
        None => tracing::debug!("a connection was cut: its mount is gone"),
        Some(Ok(())) => linger(connection.into_parts().io.into_inner()).await,
        Some(Err(error)) => tracing::debug!(%error, "a connection to the credential proxy broke"),
    }
    drop(connection_permit);
}

/// Lets the client read the last answer: a socket that is closed with unread bytes in it takes its answer along.
async fn linger<IO: AsyncRead + AsyncWrite + Unpin>(gate: Gate<IO>) {
    let mut io = gate.into_inner();
    let reading = async {
        io.shutdown().await?;
        let mut scratch = vec![0; 64 << 10];
        let mut left = LINGER_LEN_MAX;
        loop {
            match io.read(&mut scratch).await? {
                0 => return Ok::<_, io::Error>(()),
                len if len > left => return Ok(()),
                len => left -= len,
            }
        }
    };
    // The client is gone, or too slow: both end here.
    let _ = timeout(LINGER_TIMEOUT, reading).await;
}

async fn handle(request: Request<Incoming>, arrival: &Arrival, guest: &Guest, slot: Arc<Slot>) -> Response<AnswerBody> {
    let mut meter = Meter::new(guest, slot);
    let (parts, incoming) = request.into_parts();
    let is_head = parts.method == Method::HEAD;
    let expects = parts.headers.contains_key(header::EXPECT);
    match guest.limits().request(QUEUE_TIMEOUT).await {
        Some(permit) => meter.hold(permit),
        None => return refuse(Denied::Busy, is_head, expects, incoming, meter).await,
    }
    match decide(&parts, arrival, guest, SystemTime::now()) {
        Err(denied) => {
            let meant = decide::meant(&parts, arrival, guest);
            meter.meant(meant.route.as_deref(), meant.operation, &meant.key);
            refuse(denied, is_head, expects, incoming, meter).await
        }
        Ok(Decision::Local(local)) => {
            meter.found(local.route.as_deref(), local.operation, None);
            let mut response = local.response;
            if is_head {
                response.body_mut().clear();
            }
            answer::whole(response, meter)
        }
        Ok(Decision::Forward(decided)) => {
            drop(parts);
            meter.found(Some(&decided.route), decided.permit.action().name(), decided.permit.key());
            // It may have been revoked since the decision looked.
            if decided.route.revoked().is_cancelled() {
                return refuse(Denied::NoRoute, is_head, expects, incoming, meter).await;
            }
            let kib = decided.documents_kib();
            if kib > 0 {
                match timeout(QUEUE_TIMEOUT, guest.limits().documents(kib)).await {
                    Ok(permit) => meter.hold_documents(permit),
                    Err(_) => return refuse(Denied::Busy, is_head, expects, incoming, meter).await,
                }
            }
            forward(decided, incoming, is_head, meter).await
        }
    }
}

async fn refuse(
    denied: Denied,
    is_head: bool,
    expects: bool,
    incoming: Incoming,
    meter: Meter,
) -> Response<AnswerBody> {
    tracing::debug!(%denied, rule = denied.rule(), request_id = meter.request_id(), "refused");
    // Who asked first has not begun to send.
    if !expects {
        upload::drain(incoming).await;
    }
    answer::denied(&denied, is_head, meter)
}

/// Ends a connection whose other side takes nothing.
struct Patient<IO> {
    io: IO,
    stall: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
}

impl<IO> Patient<IO> {
    fn new(io: IO) -> Self {
        Self { io, stall: None, is_stalled: false }
    }

    fn watch<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.is_stalled = false;
            return polled;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL)));
        if !std::mem::replace(&mut self.is_stalled, true) {
            stall.as_mut().reset(Instant::now() + WRITE_STALL);
        }
        match stall.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing"))),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Patient<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Patient<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.watch(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.watch(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.watch(polled, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use sandpail_spec::SecretKey;
    use tokio::io::duplex;

    use super::*;
    use crate::{Audit, AuditRecord, DummyKey};

    #[derive(Debug)]
    struct Unheard;

    impl Audit for Unheard {
        fn record(&self, _: AuditRecord) {}
    }

    fn guest() -> Arc<Guest> {
        let key = DummyKey { id: "id".into(), secret: SecretKey::new("secret") };
        Arc::new(Guest::new("sandbox", key, Arc::new(Unheard)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off() {
        let (near, _far) = duplex(16);
        let error = Patient::new(near).write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_ends_the_connection() {
        for begun in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nHost: s3.internal\r\n"] {
            let (near, mut far) = duplex(4096);
            far.write_all(begun).await.unwrap();
            let serving = timeout(HEAD_TIMEOUT * 2, serve(near, Arrival::default(), guest()));
            assert!(serving.await.is_ok(), "{begun:?}");
        }
    }

    #[tokio::test]
    async fn as_many_headers_as_the_gate_passes_are_served() {
        let (near, mut far) = duplex(1 << 16);
        tokio::spawn(serve(near, Arrival::default(), guest()));
        let others = "a: b\r\n".repeat(98);
        let head = format!(
            "GET /__sandbox_credential_proxy_self_test__ HTTP/1.1\r\nHost: s3.internal\r\n{others}Connection: close\r\n\r\n"
        );
        far.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test]
    async fn connections_are_bounded() {
        let guest = guest();
        let mut held = Vec::new();
        while let Some(permit) = guest.limits().connection() {
            held.push(permit);
        }
        let (near, mut far) = duplex(4096);
        serve(near, Arrival::default(), Arc::clone(&guest)).await;
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0, "closed without a word");
        held.pop();
        assert!(guest.limits().connection().is_some());
    }
}
