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
pub(super) const LEN_MAX: usize = 32 * 1024;

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
        // Some servers overlook an alert, or another record of TLS, before the hello.
        Some(20..=24) => match bytes.get(1) {
            None => Ok(None),
            Some(3) => Err(io::Error::new(io::ErrorKind::InvalidData, "TLS that does not begin with a hello")),
            Some(_) => Ok(Some(First::Other)),
        },
        Some(_) => Ok(line(bytes)),
    }
}

/// What is taken for a request, or a hello, that is longer than [`LEN_MAX`].
///
/// # Errors
/// `InvalidData` for TLS.
pub(super) fn classify_long(bytes: &[u8]) -> io::Result<First> {
    if bytes.first() == Some(&TLS_HANDSHAKE) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a hello that is too long"));
    }
    // A word, a space, and no line end for so long: if anything, it is a request whose URL is very long.
    let behind = bytes.iter().skip_while(|byte| is_space(byte)).find(|byte| !is_of_a_method(byte));
    let has_word = bytes.iter().find(|byte| !is_space(byte)).is_some_and(is_of_a_method);
    Ok(if has_word && behind.is_some_and(is_space) { First::Http } else { First::Other })
}

/// What some servers take for a space in a request's first line.
fn is_space(byte: &u8) -> bool {
    byte.is_ascii_whitespace() || *byte == 0x0b
}

fn is_of_a_method(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
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

/// `METHOD TARGET HTTP/1.1`, after empty lines and spaces, which servers skip. Other text protocols have other first lines.
fn line(bytes: &[u8]) -> Option<First> {
    let start = bytes.iter().position(|byte| !is_space(byte))?;
    let bytes = &bytes[start..];
    let method_len = bytes.iter().take_while(|byte| is_of_a_method(byte)).count();
    match bytes.get(method_len) {
        Some(byte) if is_space(byte) && method_len > 0 => {}
        Some(_) => return Some(First::Other),
        None => return None,
    }
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let is_version = |word: &[u8]| word.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"HTTP/"));
    Some(if bytes[..end].split(is_space).any(is_version) { First::Http } else { First::Other })
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
        let mut word = bytes.iter().skip_while(|byte| is_space(byte)).take_while(|byte| !is_space(byte));
        bytes.first() == Some(&TLS_HANDSHAKE) || word.all(|byte| byte.is_ascii_uppercase() || *byte == b'-')
    };
    let mut deadline = Instant::now() + patience;
    loop {
        if let Some(first) = classify(bytes)? {
            return Ok(first);
        }
        if bytes.len() >= LEN_MAX {
            return classify_long(bytes);
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
        for request in
            [" GET / HTTP/1.1\r\n", "\x0bGET / HTTP/1.1\r\n", "GET\x0c/\x0cHTTP/1.1\n", "x / HTTP/1.1\rHost: y\n"]
        {
            check(request.as_bytes(), Some(First::Http));
        }
        check(b"QUIT\r\n", Some(First::Other));
        check(&[21], None);
        check(&[21, 9], Some(First::Other));
        assert!(classify(&[21, 3, 1, 0, 2, 1, 90]).is_err());
        assert!(classify_long(&[22; LEN_MAX]).is_err());
        assert_eq!(classify_long(&[b'a'; LEN_MAX]).unwrap(), First::Other);
        assert_eq!(classify_long(&[b"\n get /".as_slice(), &[b'a'; LEN_MAX]].concat()).unwrap(), First::Http);
        assert_eq!(classify_long(&[b"{ /".as_slice(), &[b'a'; LEN_MAX]].concat()).unwrap(), First::Other);
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
