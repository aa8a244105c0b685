//! Strict HTTP/1.1 in front of hyper: what hyper would forgive is refused here, before it sees it.
//!
//! A head is held until it is complete and was found good; bodies are only counted. In place of a bad head, hyper gets
//! a request of our own, which a client cannot send ([`REFUSED`] is not a method that passes), and [`crate::decide`]
//! answers it with the rule that was broken; then the connection ends. A broken body ends in an error of kind
//! `InvalidData`, whose source is the [`Denied`].
//!
//! hyper must take as much as passes here: `max_headers` of more than 100, `max_buf_size` of more than 64 KiB.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::request::Parts;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
            let before = this.input.len();
            this.input.resize(before + READ_LEN, 0);
            let mut part = ReadBuf::new(&mut this.input[before..]);
            let polled = Pin::new(&mut this.io).poll_read(cx, &mut part);
            let read = part.filled().len();
            this.input.truncate(before + read);
            ready!(polled)?;
            if read == 0 {
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
