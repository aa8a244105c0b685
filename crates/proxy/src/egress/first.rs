//! What a connection begins with: enough to tell which host the client means to speak to.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

/// What the first bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum First {
    /// A TLS client's hello, for the host of this name (lower-case) if it says one.
    Tls(Option<String>),
    /// The first line of an HTTP request.
    Http,
    /// Some other protocol.
    Other,
    /// The client waits for the server to begin, or has closed its side.
    Nothing,
}

/// Longest hello, or first line of a request, that is looked at.
const LEN_MAX: usize = 32 * 1024;

/// The first byte of TLS.
const TLS_HANDSHAKE: u8 = 22;

/// What `bytes` are the beginning of; `None` if more are needed to tell.
///
/// # Errors
/// `InvalidData` for what looks like TLS and is none.
pub(super) fn classify(bytes: &[u8]) -> io::Result<Option<First>> {
    match bytes.first() {
        None => Ok(None),
        Some(&TLS_HANDSHAKE) => hello(bytes).map(|hello| hello.map(First::Tls)),
        Some(_) => Ok(line(bytes)),
    }
}

fn hello(bytes: &[u8]) -> io::Result<Option<Option<String>>> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    loop {
        while !rest.is_empty() && acceptor.read_tls(&mut rest)? > 0 {}
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return Ok(Some(accepted.client_hello().server_name().map(str::to_ascii_lowercase)));
            }
            Ok(None) if rest.is_empty() => return Ok(None),
            Ok(None) => {}
            Err((error, _alert)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

/// `METHOD TARGET HTTP/1.1`, after empty lines, which servers skip. Other text protocols have other first lines.
fn line(bytes: &[u8]) -> Option<First> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let bytes = &bytes[start..];
    let is_of_a_method = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method_len = bytes.iter().take_while(|byte| is_of_a_method(byte)).count();
    match bytes.get(method_len) {
        Some(b' ' | b'\t') if method_len > 0 => {}
        Some(_) => return Some(First::Other),
        None => return None,
    }
    let end = bytes.iter().position(|byte| matches!(byte, b'\n'))?;
    let line = bytes[..end].trim_ascii_end();
    let last = line.rsplit(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default();
    let is_http = last.get(..5).is_some_and(|word| word.eq_ignore_ascii_case(b"HTTP/"));
    Some(if is_http { First::Http } else { First::Other })
}

/// Reads until it can be told what a connection begins with. `patience` is for the first byte, and for the rest of what may
/// still be text of another protocol, which need not have lines: programs write the methods of HTTP in capitals, and at
/// once.
///
/// # Errors
/// Those of the stream; `InvalidData`; `TimedOut` if a client stops in the middle of TLS or HTTP.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
    patience: Duration,
) -> io::Result<First> {
    /// From the first byte on.
    const WHOLE_TIMEOUT: Duration = Duration::from_secs(30);
    let is_for_sure = |bytes: &[u8]| {
        let is_of_a_method = |byte: &u8| byte.is_ascii_uppercase() || *byte == b'-';
        let line = bytes.trim_ascii_start();
        bytes.first() == Some(&TLS_HANDSHAKE) || line.iter().take_while(|byte| **byte != b' ').all(is_of_a_method)
    };
    let mut deadline = Instant::now() + patience;
    loop {
        if let Some(first) = classify(bytes)? {
            return Ok(first);
        }
        if bytes.len() >= LEN_MAX {
            return Ok(First::Other);
        }
        let was_empty = bytes.is_empty();
        match timeout_at(deadline, stream.read_buf(bytes)).await {
            Ok(read) => {
                if read? == 0 {
                    return Ok(if was_empty { First::Nothing } else { First::Other });
                }
            }
            Err(_) if was_empty => return Ok(First::Nothing),
            Err(late) if is_for_sure(bytes) => return Err(late.into()),
            Err(_) => return Ok(First::Other),
        }
        if was_empty {
            deadline = Instant::now() + if is_for_sure(bytes) { WHOLE_TIMEOUT } else { patience };
        }
    }
}

/// A stream whose first bytes were read already, and are read again.
#[derive(Debug)]
pub(super) struct Rewound<S> {
    first: Vec<u8>,
    at: usize,
    stream: S,
}

impl<S> Rewound<S> {
    pub(super) fn new(first: Vec<u8>, stream: S) -> Self {
        Self { first, at: 0, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.at < self.first.len() {
            let len = buf.remaining().min(self.first.len() - self.at);
            buf.put_slice(&self.first[self.at..self.at + len]);
            self.at += len;
            if self.at == self.first.len() {
                (self.first, self.at) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: Option<First>) {
        assert_eq!(classify(bytes).unwrap(), expected, "{}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn protocols() {
        check(b"", None);
        check(b"GET", None);
        check(b"GET /", None);
        check(b"GET / HTTP/1.1\r\nHost: x", Some(First::Http));
        check(b"\r\n\r\nPROPFIND /x HTTP/1.1\r\n", Some(First::Http));
        check(b"get /x http/1.0\n", Some(First::Http));
        check(b"GET\t/x\tHTTP/1.1 \r\n", Some(First::Http));
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(First::Http));
        check(b"CONNECT a:1 HTTP/1.1\n", Some(First::Http));
        check(b"EHLO host\r\n", Some(First::Other));
        check(b"SSH-2.0-OpenSSH_9\r\n", Some(First::Other));
        check(b"*1\r\n$4\r\nPING\r\n", Some(First::Other));
        check(&[0, 0, 0, 8, 4, 210], Some(First::Other));
        check(&[22, 3, 1], None);
        assert!(classify(&[22, 3, 1, 0, 5, 9, 9, 9, 9, 9]).is_err());
    }

    #[test]
    fn hellos_in_pieces() {
        let provider = crate::tls::provider();
        let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = client.unwrap().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let client = std::sync::Arc::new(client);
        let hello = |name: &str| {
            let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
            let mut bytes = Vec::new();
            rustls::ClientConnection::new(std::sync::Arc::clone(&client), name).unwrap().write_tls(&mut bytes).unwrap();
            bytes
        };
        let whole = hello("Api.Example.com");
        for len in 1..whole.len() {
            check(&whole[..len], None);
        }
        check(&whole, Some(First::Tls(Some("api.example.com".to_owned()))));
        check(&hello("10.1.2.3"), Some(First::Tls(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_wait() {
        let (mut ours, theirs) = tokio::io::duplex(100);
        let mut bytes = Vec::new();
        assert_eq!(read(&mut ours, &mut bytes, Duration::from_secs(1)).await.unwrap(), First::Nothing);
        let (mut ours, mut slow) = tokio::io::duplex(100);
        tokio::io::AsyncWriteExt::write_all(&mut slow, b"GE").await.unwrap();
        assert_eq!(
            read(&mut ours, &mut bytes, Duration::from_secs(1)).await.unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        let (mut other, mut text) = tokio::io::duplex(100);
        tokio::io::AsyncWriteExt::write_all(&mut text, b"x").await.unwrap();
        assert_eq!(read(&mut other, &mut Vec::new(), Duration::from_secs(1)).await.unwrap(), First::Other);
        drop((theirs, slow));
        let mut rewound = Rewound::new(bytes, ours);
        let mut text = String::new();
        rewound.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "GE");
    }
}
