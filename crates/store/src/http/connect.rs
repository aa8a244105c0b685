//! Sockets: TCP without delay, TLS by rustls.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt::{self, Timeout};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{StoreError, StoreResult};

/// How a connection is marked on which something is asked.
const ASKED_MARK: Duration = Duration::from_secs(1);

/// Hears of the connections of a store.
pub trait Connections: std::fmt::Debug + Send + Sync {
    /// One was opened, and nothing was asked on it yet. Another descriptor of it may be kept: the store shuts its connections
    /// down when it closes them, and [`is_asked`] says what goes on on it.
    fn opened(&self, socket: BorrowedFd<'_>);
}

/// Opens connections for hyper's pool.
#[derive(Clone)]
pub(super) struct Connector {
    tls: Option<TlsConnector>,
    timeout: Duration,
    connections: Option<Arc<dyn Connections>>,
}

impl Connector {
    pub(super) fn plain(timeout: Duration) -> Self {
        Self { tls: None, timeout, connections: None }
    }

    pub(super) fn watched_by(mut self, connections: Option<Arc<dyn Connections>>) -> Self {
        self.connections = connections;
        self
    }

    /// Trusts the machine's roots and those in `ca_file`; with `insecure` anybody.
    pub(super) fn tls(timeout: Duration, ca_file: Option<&Path>, insecure: bool) -> StoreResult<Self> {
        let provider = Arc::new(ring::default_provider());
        let invalid = |message: String| StoreError::Invalid { message };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| invalid(format!("TLS cannot be set up: {error}")))?;
        let config = if insecure {
            let verifier = Arc::new(TrustAnybody(provider));
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        } else {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if let Some(path) = ca_file {
                let bad = |error: &dyn std::fmt::Display| invalid(format!("CA file {}: {error}", path.display()));
                let mut found = false;
                for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(&error))? {
                    roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
                    found = true;
                }
                if !found {
                    return Err(bad(&"holds no certificate in PEM form"));
                }
            }
            if roots.is_empty() {
                return Err(invalid("this machine has no root certificates; install them or name a CA file".into()));
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        };
        Ok(Self { tls: Some(TlsConnector::from(Arc::new(config))), timeout, connections: None })
    }

    pub(super) async fn connect(self, uri: Uri) -> io::Result<Socket> {
        let host = uri.host().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "URL without a host"))?;
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let opening = async {
            let stream = open(&bare, port).await?;
            stream.set_nodelay(true)?;
            let Some(tls) = self.tls.filter(|_| is_tls) else { return Ok(Stream::Plain(TokioIo::new(stream))) };
            let name =
                ServerName::try_from(bare).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            Ok(Stream::Tls(Box::new(TokioIo::new(tls.connect(name, stream).await?))))
        };
        let stream = tokio::time::timeout(self.timeout, opening).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {:?}", self.timeout)))
        })?;
        let socket = Socket { stream, is_asked: self.connections.is_some().then_some(false) };
        if let Some(connections) = &self.connections {
            connections.opened(socket.as_fd());
        }
        Ok(socket)
    }
}

/// Tries the host's addresses in turn, none of them so long that the next has no chance.
async fn open(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        match tokio::time::timeout(Duration::from_secs(3), TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(last)
}

impl tower_service::Service<Uri> for Connector {
    type Response = Socket;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Socket>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection.
pub(super) struct Socket {
    stream: Stream,
    /// Whether something was asked on it and not answered yet; `None` if nobody wants to know.
    is_asked: Option<bool>,
}

/// Encrypted or not.
enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Socket {
    fn note_asked(&mut self, is_asked: bool) {
        if self.is_asked.is_some_and(|known| known != is_asked) {
            self.is_asked = Some(is_asked);
            // Means nothing to a socket that never blocks, and can be read by whoever holds it, too.
            let mark = is_asked.then_some(ASKED_MARK);
            if let Err(error) = sockopt::set_socket_timeout(&*self, Timeout::Recv, mark) {
                tracing::debug!(%error, "a connection cannot be marked");
            }
        }
    }
}

/// Whether something was asked on this connection of a store, which is [watched](super::HttpStoreBuilder::watched_by), and not
/// answered yet.
///
/// # Errors
/// Those of `getsockopt(2)`.
pub fn is_asked(socket: impl AsFd) -> io::Result<bool> {
    Ok(sockopt::socket_timeout(socket, Timeout::Recv)?.is_some())
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Plain(stream) => stream.inner().as_fd(),
            Stream::Tls(stream) => stream.inner().get_ref().0.as_fd(),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may hold it, too. It may be closed already.
        let _ = rustix::net::shutdown(&*self, rustix::net::Shutdown::Both);
    }
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
        };
        if read.is_ready() {
            this.note_asked(false);
        }
        read
    }
}

impl Write for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.note_asked(true);
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.note_asked(true);
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, bufs),
        }
    }
}

/// Takes any certificate: only behind an explicit `insecure`.
#[derive(Debug)]
struct TrustAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[derive(Debug, Default)]
    struct Held(Mutex<Vec<OwnedFd>>);

    impl Connections for Held {
        fn opened(&self, socket: BorrowedFd<'_>) {
            self.0.lock().unwrap().push(socket.try_clone_to_owned().unwrap());
        }
    }

    #[tokio::test]
    async fn who_holds_a_connection_too_sees_what_is_asked_and_the_server_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let held = Arc::new(Held::default());
        let connector = Connector::plain(Duration::from_secs(5)).watched_by(Some(Arc::clone(&held) as _));
        let uri = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let mut client = TokioIo::new(connector.connect(uri).await.unwrap());
        let (mut server, _) = listener.accept().await.unwrap();
        let other = held.0.lock().unwrap().pop().unwrap();
        for _ in 0..2 {
            assert!(!is_asked(&other).unwrap());
            client.write_all(b"question").await.unwrap();
            assert!(is_asked(&other).unwrap());
            server.read_exact(&mut [0; 8]).await.unwrap();
            server.write_all(b"answer").await.unwrap();
            client.read_exact(&mut [0; 6]).await.unwrap();
        }
        drop(client);
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0, "it is held, and not closed");
    }
}
