//! Strict HTTP/1.1 in front of hyper: what hyper would forgive is refused here, before it sees it.
//!
//! A head is held until it is complete and was found good; bodies are only counted. In place of a bad head, hyper gets
//! a request of our own, which a client cannot send ([`Gate::REFUSED`] is not a method that passes), and
//! [`crate::decide`] answers it with the rule that was broken; then the connection ends. A broken body ends in an error
//! of kind `InvalidData`, whose source is the [`crate::Denied`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Checks what is read from `IO`; what is written passes.
#[derive(Debug)]
pub struct Gate<IO> {
    io: IO,
}

impl<IO> Gate<IO> {
    /// The method of the request that stands for a refused head.
    pub const REFUSED: &'static str = "REFUSED";

    /// A new connection.
    pub fn new(io: IO) -> Self {
        Self { io }
    }

    /// What is behind the gate.
    pub fn into_inner(self) -> IO {
        self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gate<IO> {
    fn poll_read(self: Pin<&mut Self>, _cx: &mut Context<'_>, _buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
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
