//! HTTP that is passed on request by request: plain HTTP to any host, so that each request of a connection is for the host
//! that the connection was made for; and HTTP to hosts that headers are added for, whose TLS ends here.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::dial::{DialError, Place};
use super::{EgressPolicy, Forbidden, Outbound, Shared, Stream};
use sandpail_store::http::RelayBody;

/// For the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// For TLS with the host.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers that belong to one connection and not to a request.
const HOP_HEADERS: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What a connection of HTTP needs.
#[derive(Debug)]
pub(super) struct Forwarding {
    pub(super) shared: Arc<Shared>,
    pub(super) place: Place,
    pub(super) port: u16,
    /// Whether it came over TLS, and so goes on over TLS.
    pub(super) is_tls: bool,
    /// The address that it is connected to.
    pub(super) address: Arc<super::accept::Connected>,
}

/// Serves a connection until it ends.
pub(super) async fn serve(forwarding: Forwarding, stream: impl Stream) -> io::Result<()> {
    let forwarding = Arc::new(forwarding);
    let connection = Arc::new(Connection::default());
    let service = {
        let (forwarding, connection) = (Arc::clone(&forwarding), Arc::clone(&connection));
        service_fn(move |request| {
            let (forwarding, connection) = (Arc::clone(&forwarding), Arc::clone(&connection));
            async move { Ok::<_, std::convert::Infallible>(forwarding.answer(request, &connection).await) }
        })
    };
    let served = server::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    let upgraded = connection.upgraded.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(upgraded) = upgraded {
        upgraded.await?;
    }
    served.map_err(io::Error::other)
}

/// The connection to the host that goes with one from the sandbox.
#[derive(Default)]
struct Connection {
    /// One request at a time.
    sender: tokio::sync::Mutex<Option<Upstream>>,
    /// What goes on after both sides changed to another protocol.
    upgraded: std::sync::Mutex<Option<BoxFuture<'static, io::Result<()>>>>,
}

struct Upstream {
    sender: client::SendRequest<Incoming>,
    _task: AbortOnDropHandle<()>,
}

/// Why a request is not passed on.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Bad(&'static str),
    #[error("{host} is not reached from this sandbox: {why}")]
    Forbidden { host: String, why: Forbidden },
    #[error("{host} wants no headers over http: use https, or set allowHttp")]
    NeedsTls { host: String },
    #[error("{host}: {why}")]
    Unreachable { host: String, why: String },
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::Forbidden { why: Forbidden::OtherHost, .. } => StatusCode::MISDIRECTED_REQUEST,
            Self::Forbidden { .. } | Self::NeedsTls { .. } => StatusCode::FORBIDDEN,
            Self::Unreachable { .. } => StatusCode::BAD_GATEWAY,
        }
    }

    fn rule(&self) -> &'static str {
        match self {
            Self::Bad(_) => "malformed",
            Self::Forbidden { why, .. } => why.rule(),
            Self::NeedsTls { .. } => "needs-tls",
            Self::Unreachable { .. } => "unreachable",
        }
    }
}

/// An answer to plain HTTP that a policy forbids, as bytes.
pub(super) fn refusal(host: &str, why: Forbidden) -> Vec<u8> {
    let refused = Refused::Forbidden { host: host.to_owned(), why };
    let (status, text) = (refused.status(), format!("sandpail: {refused}\n"));
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    )
    .into_bytes()
}

impl Forwarding {
    async fn answer(&self, request: Request<Incoming>, connection: &Connection) -> Response<RelayBody> {
        let begun = Instant::now();
        let answer = self.forward(request, connection).await;
        let (response, refused) = match answer {
            Ok(response) => (response, None),
            Err(refused) => {
                let text = Full::new(Bytes::from(format!("sandpail: {refused}\n")));
                let mut response = Response::new(text.map_err(|never| match never {}).boxed_unsync());
                *response.status_mut() = refused.status();
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                // The rest of a refused request is of no use.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                (response, Some(refused.rule()))
            }
        };
        self.shared.tell("REQUEST", &self.place.host(), response.status().as_u16(), begun, (0, 0), refused);
        response
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Result<Response<RelayBody>, Refused> {
        let policy = self.shared.policy.borrow().clone();
        let host = || self.place.host();
        self.check_host(&request, &policy)?;
        let outbound = self.outbound(&policy);
        if let Some(outbound) = outbound
            && !self.is_tls
            && !outbound.allow_http
        {
            return Err(Refused::NeedsTls { host: host() });
        }
        // TRACE says back what came, headers that were added too.
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(Refused::Bad("CONNECT and TRACE are not passed on"));
        }
        let mut request = request;
        let wants_upgrade = is_upgrade(request.headers());
        let ours = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
        let request = self.outgoing(request, outbound, wants_upgrade)?;
        let mut sender = connection.sender.lock().await;
        let failed = |why: String| Refused::Unreachable { host: host(), why };
        // One that the host has closed meanwhile is of no use.
        if let Some(known) = &mut *sender
            && known.sender.ready().await.is_err()
        {
            *sender = None;
        }
        let upstream = match sender.take() {
            Some(known) => sender.insert(known),
            None => sender.insert(self.connect().await?),
        };
        let response = upstream.sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(incoming(response));
        }
        let Some(ours) = ours else { return Err(failed("it changed the protocol unasked".to_owned())) };
        let mut response = response;
        let theirs = hyper::upgrade::on(&mut response);
        let used = sender.take();
        let pipe = async move {
            let (ours, theirs) = futures_util::try_join!(ours, theirs).map_err(io::Error::other)?;
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            let copied = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
            drop(used);
            copied.map(drop)
        };
        *connection.upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::pin(pipe));
        Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
    }

    fn outbound<'a>(&self, policy: &'a EgressPolicy) -> Option<&'a Outbound> {
        match &self.place {
            Place::Name(name) => policy.outbound(name),
            Place::Address(_) => None,
        }
    }

    /// A request is for the host that the connection was made to, whatever its headers say.
    fn check_host(&self, request: &Request<Incoming>, policy: &EgressPolicy) -> Result<(), Refused> {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(Refused::Bad("a request has one Host header"));
        };
        let host: Authority = host
            .to_str()
            .ok()
            .and_then(|host| host.parse().ok())
            .ok_or(Refused::Bad("the Host header names no host"))?;
        for authority in [Some(&host), request.uri().authority()].into_iter().flatten() {
            self.check_authority(authority, policy)?;
        }
        Ok(())
    }

    fn check_authority(&self, authority: &Authority, policy: &EgressPolicy) -> Result<(), Refused> {
        if authority.as_str().contains('@') {
            return Err(Refused::Bad("the Host header has a user's name"));
        }
        let said = authority.host().to_ascii_lowercase();
        let said = said.trim_start_matches('[').trim_end_matches([']', '.']);
        let is_this = match &self.place {
            Place::Name(name) => name == said,
            // Whoever reaches addresses reaches all hosts there but denied ones.
            Place::Address(_) => policy.check_name(said) != Err(Forbidden::Denied),
        };
        let is_port = authority.port_u16().is_none_or(|port| port == self.port);
        if is_this && is_port {
            return Ok(());
        }
        Err(Refused::Forbidden { host: self.place.host(), why: Forbidden::OtherHost })
    }

    /// The request as it is sent: its own headers but those of the connection, and those that are added.
    fn outgoing(
        &self,
        request: Request<Incoming>,
        outbound: Option<&Outbound>,
        wants_upgrade: bool,
    ) -> Result<Request<Incoming>, Refused> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = path.parse::<Uri>().map_err(|_| Refused::Bad("the target is no path"))?;
        parts.version = Version::HTTP_11;
        let upgrade = parts.headers.get(header::UPGRADE).cloned();
        remove_hop_headers(&mut parts.headers);
        // Answered here when the body is asked for.
        parts.headers.remove(header::EXPECT);
        if let (true, Some(upgrade)) = (wants_upgrade, upgrade) {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, upgrade);
        }
        if let Some(outbound) = outbound {
            add_headers(&mut parts.headers, outbound).ok_or(Refused::Bad("a header to add is none"))?;
        }
        Ok(Request::from_parts(parts, body))
    }

    async fn connect(&self) -> Result<Upstream, Refused> {
        let host = self.place.host();
        let failed = |why: String| Refused::Unreachable { host: host.clone(), why };
        let dialled = self.address.dial(&self.shared, &self.place, self.port).await;
        let stream = dialled.map_err(|error| match error {
            DialError::Forbidden(why) => Refused::Forbidden { host: host.clone(), why },
            error => failed(error.to_string()),
        })?;
        if !self.is_tls {
            return handshake(stream).await.map_err(|error| failed(error.to_string()));
        }
        let config = self.shared.outside.tls().map_err(|error| failed(error.to_string()))?;
        let name = rustls::pki_types::ServerName::try_from(host.clone()).map_err(|error| failed(error.to_string()))?;
        let stream = timeout(TLS_TIMEOUT, TlsConnector::from(config).connect(name, stream)).await;
        let stream = stream.map_err(io::Error::from).flatten().map_err(|error| failed(error.to_string()))?;
        handshake(stream).await.map_err(|error| failed(error.to_string()))
    }
}

async fn handshake(stream: impl Stream) -> hyper::Result<Upstream> {
    let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    let task = tokio::spawn(async move {
        // Its requests tell what went wrong.
        let _result = connection.with_upgrades().await;
    });
    Ok(Upstream { sender, _task: AbortOnDropHandle::new(task) })
}

fn incoming(response: Response<Incoming>) -> Response<RelayBody> {
    let (mut parts, body) = response.into_parts();
    remove_hop_headers(&mut parts.headers);
    parts.version = Version::HTTP_11;
    Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let names_upgrade = |value: &HeaderValue| {
        value.to_str().is_ok_and(|value| value.split(',').any(|name| name.trim().eq_ignore_ascii_case("upgrade")))
    };
    headers.contains_key(header::UPGRADE) && headers.get_all(header::CONNECTION).iter().any(names_upgrade)
}

/// Removes what belongs to the connection, and what `Connection` says belongs to it.
fn remove_hop_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // What frames the body stays true.
        .filter(|name| *name != header::CONTENT_LENGTH && *name != header::HOST)
        .collect();
    for name in named.iter().chain(&HOP_HEADERS) {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(name);
    }
}

/// Adds headers in place of the sandbox's own, also those that some servers take for the same (`x_api_key`). `None` if one is
/// no header, which the policy's check has ruled out.
fn add_headers(headers: &mut HeaderMap, outbound: &Outbound) -> Option<()> {
    for (name, secret) in &outbound.headers {
        let name: HeaderName = name.parse().ok()?;
        let mut value = HeaderValue::from_str(secret.expose()).ok()?;
        value.set_sensitive(true);
        let plain = name.as_str().replace('_', "-");
        let same: Vec<HeaderName> =
            headers.keys().filter(|own| own.as_str().replace('_', "-") == plain).cloned().collect();
        for own in same {
            headers.remove(own);
        }
        headers.insert(name, value);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeaderSecret;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            headers.append::<HeaderName>(name, value);
        }
        headers
    }

    #[test]
    fn added_headers_replace_the_sandboxs_own() {
        let mut all = headers(&[("authorization", "a"), ("Authorization", "b"), ("x_api_key", "c"), ("x-other", "d")]);
        let secrets = [("Authorization", "Bearer s"), ("X-Api-Key", "k")];
        let secrets = secrets.map(|(name, value)| (name.to_owned(), HeaderSecret::new(value)));
        add_headers(&mut all, &Outbound { headers: secrets.into(), allow_http: false }).unwrap();
        let expected = headers(&[("x-other", "d"), ("authorization", "Bearer s"), ("x-api-key", "k")]);
        assert_eq!(all, expected);
        assert!(!format!("{all:?}").contains("Bearer"));
    }

    #[test]
    fn what_belongs_to_the_connection_stays_there() {
        let mut all = headers(&[
            ("connection", "keep-alive, X-Hop, content-length"),
            ("keep-alive", "5"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("trailer", "authorization"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ]);
        remove_hop_headers(&mut all);
        assert_eq!(all, headers(&[("content-length", "3"), ("accept", "*/*")]));
        assert!(is_upgrade(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])));
        assert!(!is_upgrade(&headers(&[("upgrade", "h2c")])));
    }
}
