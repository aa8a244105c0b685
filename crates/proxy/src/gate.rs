//! Strict HTTP/1.1 in front of hyper: what hyper would forgive is refused here, before it sees it.
//!
//! A head is held until it is complete and was found good; bodies are only counted. In place of a bad head, hyper gets
//! a request of our own, which a client cannot send ([`REFUSED`] is not a method that passes), and [`crate::decide`]
//! answers it with the rule that was broken; then the connection ends. A broken body ends in an error of kind
//! `InvalidData`, whose source is the [`Denied`].
//!
//! hyper must take as much as passes here: 100 headers, which is its default (and what it has room for on the stack), and
//! `max_buf_size` of more than 64 KiB.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::request::Parts;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::Denied;
use crate::framing::{Framing, Step, rule};

/// The method of the request that stands for a refused head.
const REFUSED: &str = "REFUSED";

/// Bytes that are read at a time while heads are looked at.
const READ_LEN: usize = 16 * 1024;

/// Checks what is read from `IO`; what is written passes.
#[derive(Debug)]
pub struct Gate<IO> {
    io: IO,
    framing: Framing,
    /// Read, not passed on yet.
    input: BytesMut,
    /// So many bytes of `input` may be passed on.
    good: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// A head was refused: nothing more is read, and what is left of `input` is ours.
    Refused,
}

impl<IO> Gate<IO> {
    /// A new connection.
    pub fn new(io: IO) -> Self {
        Self { io, framing: Framing::new(), input: BytesMut::new(), good: 0, state: State::Open }
    }

    /// The connection itself.
    pub fn into_inner(self) -> IO {
        self.io
    }

    /// Lets the framing look at what was read.
    fn look(&mut self) -> io::Result<Step> {
        match self.framing.step(&self.input) {
            Ok(step) => Ok(step),
            Err(denied) if self.framing.is_at_head() => {
                self.input.clear();
                self.input.extend_from_slice(stand_in(&denied).as_bytes());
                self.state = State::Refused;
                Ok(Step::Pass(self.input.len()))
            }
            Err(denied) => Err(io::Error::new(io::ErrorKind::InvalidData, denied)),
        }
    }
}

/// The request that hyper gets in place of a refused one: it names the rule by its index.
fn stand_in(denied: &Denied) -> String {
    let index = rule::ALL.iter().position(|rule| rule == denied).unwrap_or(rule::ALL.len());
    format!("{REFUSED} /{index} HTTP/1.1\r\nhost: gate\r\nconnection: close\r\n\r\n")
}

/// The rule that a refused head broke, if this request stands for one.
pub(crate) fn refusal(parts: &Parts) -> Option<Denied> {
    if parts.method.as_str() != REFUSED {
        return None;
    }
    let index = parts.uri.path().strip_prefix('/').and_then(|index| index.parse::<usize>().ok());
    let rule = index.and_then(|index| rule::ALL.get(index)).cloned();
    Some(rule.unwrap_or(Denied::Malformed("the request cannot be read")))
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gate<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.good > 0 {
                let len = this.good.min(buf.remaining());
                buf.put_slice(&this.input[..len]);
                this.input.advance(len);
                this.good -= len;
                return Poll::Ready(Ok(()));
            }
            if this.state == State::Refused {
                // Not the end of the stream: hyper would drop the answer.
                return Poll::Pending;
            }
            if this.input.is_empty() && this.framing.blind() > 0 {
                // Bodies go straight into hyper's buffer.
                let blind = usize::try_from(this.framing.blind()).unwrap_or(usize::MAX);
                let before = buf.filled().len();
                if blind >= buf.remaining() {
                    ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                    let read = buf.filled().len() - before;
                    this.framing.passed(read as u64);
                } else {
                    let mut part = ReadBuf::new(buf.initialize_unfilled_to(blind));
                    ready!(Pin::new(&mut this.io).poll_read(cx, &mut part))?;
                    let read = part.filled().len();
                    buf.advance(read);
                    this.framing.passed(read as u64);
                }
                return Poll::Ready(Ok(()));
            }
            match this.look()? {
                Step::Pass(len) => {
                    this.good = len;
                    continue;
                }
                Step::More => {}
            }
            this.input.reserve(READ_LEN);
            if ready!(poll_read_buf(Pin::new(&mut this.io), cx, &mut this.input))? == 0 {
                // The client went away; half a head is nobody's request.
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gate<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn parts(text: &str) -> Parts {
        let mut words = text.split(' ');
        let builder = http::Request::builder().method(words.next().unwrap()).uri(words.next().unwrap());
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn every_rule_comes_back_from_its_stand_in() {
        for denied in rule::ALL {
            assert_eq!(refusal(&parts(&stand_in(denied))).as_ref(), Some(denied));
        }
        assert_eq!(refusal(&parts("GET /1")), None);
        assert!(refusal(&parts("REFUSED /999")).is_some());
    }

    #[tokio::test]
    async fn a_bad_head_is_replaced_and_the_rest_is_not_read() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let body = "x".repeat(30_000);
        let good = format!("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 30000\r\n\r\n{body}");
        client
            .write_all(format!("{good}GET / HTTP/1.1\r\nBad Name: x\r\n\r\nGET / HTTP/1.1\r\n").as_bytes())
            .await
            .unwrap();
        let mut gate = Gate::new(server);
        let mut read = Vec::new();
        let expected = format!("{good}{}", stand_in(&rule::HEADER_NAME));
        while read.len() < expected.len() {
            // Odd sizes, so that every way through is taken.
            let mut piece = [0; 777];
            let len = gate.read(&mut piece).await.unwrap();
            read.extend_from_slice(&piece[..len]);
        }
        assert_eq!(String::from_utf8(read).unwrap(), expected);
        let more = tokio::time::timeout(Duration::from_millis(20), gate.read(&mut [0; 10])).await;
        assert!(more.is_err(), "nothing more comes, and not the end either");
    }

    #[tokio::test]
    async fn a_bad_body_is_an_error_that_names_the_rule() {
        let (mut client, server) = tokio::io::duplex(4096);
        let text = "PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello";
        client.write_all(text.as_bytes()).await.unwrap();
        drop(client);
        let error = Gate::new(server).read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let denied = error.get_ref().and_then(|source| source.downcast_ref::<Denied>());
        assert_eq!(denied, Some(&rule::CHUNK_SIZE));
    }

    #[tokio::test]
    async fn the_end_is_the_end() {
        let (mut client, server) = tokio::io::duplex(4096);
        client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET / HT").await.unwrap();
        drop(client);
        let mut read = Vec::new();
        Gate::new(server).read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "half a head is nobody's request");
    }
}
