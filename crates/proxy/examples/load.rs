//! What the credential proxy costs: a store that answers from memory, the proxy, a plain proxy to compare with, and
//! a client that measures, each a process of its own. `benches/proxy/run` starts them.
//!
//! ```text
//! load origin ADDRESS                          any GET gives the bytes of its range, any PUT is taken
//! load proxy  ADDRESS ENDPOINT                 the credential proxy
//! load plain  ADDRESS ENDPOINT                 hyper's server and pooled client back to back: nothing checked or signed
//! load run    ENDPOINT OPERATION LEN N SECONDS  measures (`get` or `put`), N requests at a time, prints one line
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandpail_proxy::{Access, Arrival, Audit, AuditRecord, DummyKey, Guest, OpenRoute, RouteSpec, serve};
use sandpail_s3::Signer;
use sandpail_s3::sign::sigv4::SIGV4;
use sandpail_s3::sign::{UNSIGNED_PAYLOAD, Unsigned};
use sandpail_spec::{Credentials, KeyPrefix, SecretKey};
use sandpail_store::http::{HttpStore, StaticCredentials};
use tokio::net::{TcpListener, TcpStream};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The origin hands these out again and again.
static DATA: [u8; 1 << 18] = [b'x'; 1 << 18];

fn key() -> Credentials {
    Credentials { access_key_id: "test".into(), secret_access_key: SecretKey::new("testtest"), session_token: None }
}

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().collect();
    // Both proxies run as the daemon runs a sandbox's: on one thread. See `sandpail_proxy::Threads`.
    let mut runtime = match words.get(1).map(String::as_str) {
        Some("proxy" | "plain") => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().build()?.block_on(run_mode())
}

async fn run_mode() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["origin", address] => origin(address).await,
        ["proxy", address, endpoint] => proxy(address, endpoint).await,
        ["plain", address, endpoint] => plain(address, endpoint).await,
        ["run", endpoint, operation, len, at_once, seconds] => {
            let method = if operation == "put" { Method::PUT } else { Method::GET };
            run(endpoint, method, len.parse()?, at_once.parse()?, seconds.parse()?).await
        }
        _ => bail!("usage: see the top of the file"),
    }
}

async fn accept<F: Future<Output = ()> + Send + 'static>(
    address: &str,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    println!("http://{local}");
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve(stream, local));
    }
}

async fn origin(address: &str) -> anyhow::Result<()> {
    accept(address, |stream, _| async move {
        let service = service_fn(|request: Request<Incoming>| async { Ok::<_, Infallible>(answer(request).await) });
        // Ends with its client.
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let range = request.headers().get(header::RANGE).and_then(|range| range.to_str().ok());
    let ends = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let len = ends.and_then(|(first, last)| Some(last.parse::<usize>().ok()? + 1 - first.parse::<usize>().ok()?));
    let status = if range.is_some() { 206 } else { 200 };
    let len = if *request.method() == Method::GET { len.unwrap_or(4096) } else { 0 };
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let frames = (0..len.div_ceil(DATA.len())).map(move |at| {
        let piece = DATA.len().min(len - at * DATA.len());
        Ok(http_body::Frame::data(Bytes::from_static(&DATA[..piece])))
    });
    Response::builder()
        .status(status)
        .header(header::CONTENT_LENGTH, len)
        .header(header::ETAG, "\"0123456789abcdef\"")
        .body(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
        .unwrap_or_default()
}

#[derive(Debug)]
struct Unheard;

impl Audit for Unheard {
    fn record(&self, _: AuditRecord) {}
}

async fn proxy(address: &str, endpoint: &str) -> anyhow::Result<()> {
    let secret = DummyKey { id: "test".into(), secret: SecretKey::new("testtest") };
    let guest = Arc::new(Guest::new("bench", secret, Arc::new(Unheard)));
    let relay = HttpStore::builder(endpoint.parse()?, "bucket")
        .credentials(Arc::new(StaticCredentials::new(key())))
        .build_relay()?;
    let spec = RouteSpec {
        id: "bench".into(),
        binding: None,
        bucket: "bucket".into(),
        prefix: KeyPrefix::parse("/").context("a prefix")?,
        access: Access::ReadWrite,
        endpoint: Some(format!("http://{address}").parse()?),
        allow_unsigned: false,
    };
    let _route: OpenRoute = guest.open(spec, Arc::new(relay));
    accept(address, |stream, local| {
        let arrival = Arrival { host: local.ip().to_string(), is_tls: false, port: local.port() };
        serve(stream, arrival, Arc::clone(&guest))
    })
    .await
}

async fn plain(address: &str, endpoint: &str) -> anyhow::Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<HttpConnector, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
    let endpoint: Arc<Uri> = Arc::new(endpoint.parse()?);
    accept(address, |stream, _| {
        let (client, endpoint) = (client.clone(), Arc::clone(&endpoint));
        async move {
            let service = service_fn(move |mut request: Request<Incoming>| {
                let (client, endpoint) = (client.clone(), Arc::clone(&endpoint));
                async move {
                    let mut parts = std::mem::take(request.uri_mut()).into_parts();
                    (parts.scheme, parts.authority) = (endpoint.scheme().cloned(), endpoint.authority().cloned());
                    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
                    client.request(request).await
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

async fn run(endpoint: &str, method: Method, len: u64, at_once: usize, seconds: f64) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let tasks: Vec<_> = (0..at_once)
        .map(|number| tokio::spawn(ask(endpoint.to_owned(), method.clone(), len, number as u64, until)))
        .collect();
    let begun = Instant::now();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let elapsed = begun.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e6);
    let bytes = times.len() as f64 * len as f64;
    println!("requests={} bytes={bytes} seconds={elapsed:.3} p50_us={:.0} p99_us={:.0}", times.len(), at(50), at(99));
    Ok(())
}

/// One client: one connection, one request after the other.
async fn ask(endpoint: String, method: Method, len: u64, number: u64, until: Instant) -> anyhow::Result<Vec<Duration>> {
    let authority = endpoint.strip_prefix("http://").context("http only")?.to_owned();
    let stream = TcpStream::connect(&authority).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::Builder::new().handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let signer = Signer::new(&SIGV4, "us-east-1");
    let body = if method == Method::PUT { Bytes::from(vec![b'x'; usize::try_from(len)?]) } else { Bytes::new() };
    let expected = if method == Method::GET { len } else { 0 };
    let mut times = Vec::new();
    while Instant::now() < until {
        let path = format!("/bucket/key{number}");
        let mut headers = HeaderMap::new();
        if method == Method::GET {
            headers.insert(header::RANGE, format!("bytes=0-{}", len - 1).parse()?);
        }
        let unsigned = Unsigned {
            method: method.as_str(),
            authority: &authority,
            path: &path,
            query: &[],
            headers: &headers,
            payload_hash: UNSIGNED_PAYLOAD,
        };
        headers.extend(signer.sign(&unsigned, &key(), SystemTime::now())?);
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse()?;
        headers.insert(header::HOST, authority.parse()?);
        *request.headers_mut() = headers;
        let begun = Instant::now();
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        if !answer.status().is_success() {
            let status = answer.status();
            bail!("{status}: {}", String::from_utf8_lossy(&answer.into_body().collect().await?.to_bytes()));
        }
        let mut body = answer.into_body();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            received += frame?.data_ref().map_or(0, Bytes::len) as u64;
        }
        if received != expected {
            bail!("{received} bytes came, not {expected}");
        }
        times.push(begun.elapsed());
    }
    Ok(times)
}
