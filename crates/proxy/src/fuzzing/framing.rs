//! The bytes of a connection: one machine says where its requests begin and end, and hyper must say the same.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::framing::{Framing, Step, rule};
use crate::gate::refusal;
use crate::serve::BUFFER_LEN_MAX;
use crate::{Denied, Gate};

/// A request as the machine sees it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    head: Vec<u8>,
    body: Vec<u8>,
    /// Whether its end came.
    is_whole: bool,
}

/// What the machine said of a connection.
#[derive(Debug)]
struct Driven {
    requests: Vec<Seen>,
    refusal: Option<Denied>,
    is_at_head: bool,
}

/// The first byte says in what pieces the others come, and whether the client goes away after them.
///
/// What passes is a prefix of what came, whatever the pieces; a head that passes is one that httparse reads as long and
/// with the same length of its body; and hyper, behind the gate, sees exactly the requests that passed.
pub fn fuzz_framing(data: &[u8]) {
    run(data);
}

/// How many requests came whole.
pub(super) fn run(data: &[u8]) -> usize {
    let Some((&first, input)) = data.split_first() else { return 0 };
    let (step, ends) = (usize::from(first & 0x7f).max(1), first & 0x80 == 0x80);
    let driven = drive(input, step);
    let whole = drive(input, input.len().max(1));
    assert_eq!(driven.requests, whole.requests, "pieces change what passes");
    assert_eq!(driven.refusal.is_some(), whole.refusal.is_some(), "pieces change what is refused");
    if driven.refusal != whole.refusal {
        // Only a limit may be noticed before, or in place of, what else is wrong with a line.
        let is_limit = |refusal: &Option<Denied>| matches!(refusal, Some(Denied::TooLarge(_)));
        assert!(is_limit(&driven.refusal) || is_limit(&whole.refusal), "{driven:?} {whole:?}");
    }
    behind_the_gate(input, step, ends, &driven);
    driven.requests.iter().filter(|request| request.is_whole).count()
}

fn drive(input: &[u8], piece_len: usize) -> Driven {
    let mut framing = Framing::new();
    let mut waiting = Vec::new();
    let mut driven = Driven { requests: Vec::new(), refusal: None, is_at_head: true };
    let mut passed = 0;
    for piece in input.chunks(piece_len) {
        waiting.extend_from_slice(piece);
        loop {
            let (is_head, is_body) = (framing.is_at_head(), framing.blind() > 0);
            let len = match framing.step(&waiting) {
                Ok(Step::Pass(len)) => len,
                Ok(Step::More) => break,
                Err(denied) => {
                    assert!(rule::ALL.contains(&denied), "{denied:?} has no number");
                    driven.is_at_head = framing.is_at_head();
                    driven.refusal = Some(denied);
                    return driven;
                }
            };
            assert!(0 < len && len <= waiting.len(), "a step passes what is there");
            let bytes: Vec<u8> = waiting.drain(..len).collect();
            passed += len;
            if is_head {
                check_head(&bytes, &framing);
                driven.requests.push(Seen { head: bytes, ..Seen::default() });
            } else if let Some(request) = driven.requests.last_mut()
                && is_body
            {
                request.body.extend_from_slice(&bytes);
            }
            if let Some(request) = driven.requests.last_mut() {
                request.is_whole = framing.is_at_head();
            }
        }
    }
    assert_eq!(passed + waiting.len(), input.len(), "nothing is lost");
    driven
}

/// A head that passed, as another reads it; `framing` has just passed it.
fn check_head(head: &[u8], framing: &Framing) {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    assert_eq!(request.parse(head), Ok(httparse::Status::Complete(head.len())), "{}", head.escape_ascii());
    assert_eq!(request.version, Some(1));
    let all = |name: &str| -> Vec<&[u8]> {
        request
            .headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
            .collect()
    };
    assert_eq!(all("host").len(), 1);
    assert!(all("upgrade").is_empty());
    let (is_head, blind) = (framing.is_at_head(), framing.blind());
    match (&*all("transfer-encoding"), &*all("content-length")) {
        ([], []) => assert!(is_head, "a body of no length"),
        ([coding], []) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked"));
            assert!(!is_head && blind == 0);
        }
        ([], [len]) => {
            let len = std::str::from_utf8(len).ok().and_then(|len| len.parse::<u64>().ok());
            assert_eq!(len, Some(blind));
            assert_eq!(is_head, blind == 0);
        }
        both => panic!("{both:?}"),
    }
}

/// What hyper saw of a request: its head, and its body if that came whole.
type Served = (Parts, Option<Bytes>);

/// hyper must see what passed, and after it at most the stand-in for what was refused.
fn behind_the_gate(input: &[u8], step: usize, ends: bool, driven: &Driven) {
    for (index, (parts, body)) in serve(input, step, ends).into_iter().enumerate() {
        let Some(seen) = driven.requests.get(index) else {
            assert_eq!(index, driven.requests.len(), "nothing comes behind the stand-in");
            assert!(driven.is_at_head, "only a head has a stand-in");
            assert_eq!(refusal(&parts), driven.refusal, "{parts:?}");
            assert!(refusal(&parts).is_some(), "hyper saw a request that did not pass: {parts:?}");
            continue;
        };
        assert_eq!(refusal(&parts), None);
        let line = seen.head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let mut words = line.split(|byte| *byte == b' ');
        assert_eq!(words.next(), Some(parts.method.as_str().as_bytes()));
        let target = words.next().unwrap_or_default();
        if target.starts_with(b"/") {
            assert_eq!(parts.uri.to_string().as_bytes(), target);
        } else {
            let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
            assert!(target.ends_with(path.as_bytes()) || path.starts_with('/'), "{parts:?}");
        }
        match body {
            Some(body) => {
                assert!(seen.is_whole, "hyper saw an end that did not come: {parts:?}");
                assert_eq!(body, seen.body);
            }
            // When the client goes away, hyper drops what it is busy with.
            None => assert!(!seen.is_whole || ends, "hyper did not see the end: {parts:?}"),
        }
    }
}

/// What comes in pieces, and then ends, or waits.
struct Pieces {
    input: Bytes,
    len: usize,
    ends: bool,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.input.is_empty() && !self.ends {
            return Poll::Pending;
        }
        let len = self.len.min(self.input.len()).min(buf.remaining());
        buf.put_slice(&self.input.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Gives the bytes to hyper, as `serve` does.
fn serve(input: &[u8], step: usize, ends: bool) -> Vec<Served> {
    let served: Rc<RefCell<Vec<Served>>> = Rc::default();
    let service = service_fn(|request: Request<Incoming>| {
        let served = Rc::clone(&served);
        async move {
            let (parts, body) = request.into_parts();
            let index = served.borrow().len();
            served.borrow_mut().push((parts, None));
            let body = body.collect().await.ok().map(http_body_util::Collected::to_bytes);
            served.borrow_mut()[index].1 = body;
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let io = Pieces { input: Bytes::copy_from_slice(input), len: step, ends };
    let connection = hyper::server::conn::http1::Builder::new()
        .max_buf_size(BUFFER_LEN_MAX)
        .max_headers(128)
        .serve_connection(TokioIo::new(Gate::new(io)), service);
    let mut connection = pin!(connection);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    loop {
        let polled = connection.as_mut().poll(&mut Context::from_waker(&waker));
        // What waits without being woken waits for a client that says nothing more.
        if polled.is_ready() || !woken.0.swap(false, Ordering::Relaxed) {
            break;
        }
    }
    served.take()
}
