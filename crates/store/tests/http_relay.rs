//! The relay against a real S3 service, and against servers that answer nastily.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use sandpail_s3d::{KeyPair, Server, ServerOptions};
use sandpail_spec::{Credentials, Provider, SecretKey};
use sandpail_store::StoreResult;
use sandpail_store::http::{
    CredentialProvider, HttpStore, HttpStoreBuilder, Relay, RelayBody, RelayError, RelayRequest, StaticCredentials,
    Timeouts,
};
use sandpail_store::memory::MemoryStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn key(id: &str, secret: &str) -> Credentials {
    Credentials { access_key_id: id.into(), secret_access_key: SecretKey::new(secret), session_token: None }
}

fn builder(endpoint: &str) -> HttpStoreBuilder {
    let timeouts = Timeouts {
        connect: Duration::from_secs(2),
        first_byte: Duration::from_millis(300),
        slow: Duration::from_secs(2),
        stall: Duration::from_millis(300),
    };
    HttpStore::builder(endpoint.parse().unwrap(), "bucket")
        .credentials(Arc::new(StaticCredentials::new(key("test", "testtest"))))
        .timeouts(timeouts)
}

fn bytes(bytes: impl Into<Bytes>) -> RelayBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn request(method: Method, key: &str, body: impl Into<Bytes>) -> RelayRequest {
    let body = body.into();
    RelayRequest {
        method,
        key: Some(key.into()),
        query: Vec::new(),
        headers: HeaderMap::new(),
        payload_hash: None,
        len: body.len() as u64,
        body: bytes(body),
        trailer: None,
        is_slow: false,
    }
}

/// A body that comes in `chunks`, and cannot be had twice.
fn chunks(chunks: Vec<Result<Bytes, &'static str>>) -> RelayBody {
    let frames = chunks.into_iter().map(|chunk| chunk.map(Frame::data).map_err(Into::into));
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

async fn service() -> Server {
    let options = ServerOptions::new(KeyPair::new("test", "testtest")).bucket("bucket", Arc::new(MemoryStore::new()));
    Server::bind("127.0.0.1:0".parse().unwrap(), options).await.unwrap()
}

async fn text(body: RelayBody) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A server that counts its connections, and answers the requests of all of them in turn as told.
struct Script {
    endpoint: String,
    heads: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

impl Script {
    async fn play(answers: Vec<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (heads, connections, next) =
            (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (log, count) = (Arc::clone(&heads), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (answers, next, log) = (answers.clone(), Arc::clone(&next), Arc::clone(&log));
                tokio::spawn(async move {
                    loop {
                        let mut seen = Vec::new();
                        while !seen.windows(4).any(|window| window == b"\r\n\r\n") {
                            let mut byte = [0];
                            if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                                return;
                            }
                            seen.push(byte[0]);
                        }
                        log.lock().unwrap().push(String::from_utf8_lossy(&seen).into_owned());
                        let answer = answers[next.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)];
                        if answer == "hang" {
                            return std::future::pending().await;
                        }
                        let (answer, closes) = match answer.strip_suffix("close") {
                            Some(answer) => (answer, true),
                            None => (answer, false),
                        };
                        let _ = stream.write_all(answer.as_bytes()).await;
                        if closes {
                            return;
                        }
                    }
                });
            }
        });
        Self { endpoint, heads, connections }
    }

    fn relay(&self) -> Relay {
        builder(&self.endpoint).build_relay().unwrap()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn objects_stream_both_ways() {
    let server = service().await;
    let relay = builder(&server.endpoint()).build_relay().unwrap();
    let data: Vec<u8> = (0..=250_u8).cycle().take(3_000_000).collect();

    let pieces = data.chunks(70_001).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    let mut put = request(Method::PUT, "a/ü b+c", "");
    (put.len, put.body) = (data.len() as u64, chunks(pieces));
    put.headers.insert("x-amz-meta-k", HeaderValue::from_static("v"));
    assert_eq!(relay.send(put).await.unwrap().status(), StatusCode::OK);

    let got = relay.send(request(Method::GET, "a/ü b+c", "")).await.unwrap();
    assert_eq!(got.headers()["x-amz-meta-k"], "v");
    assert!(got.into_body().collect().await.unwrap().to_bytes() == data);

    let mut part = request(Method::GET, "a/ü b+c", "");
    part.headers.insert("range", HeaderValue::from_static("bytes=10-19"));
    let part = relay.send(part).await.unwrap();
    assert_eq!(
        (part.status(), &part.headers()["content-range"]),
        (StatusCode::PARTIAL_CONTENT, &HeaderValue::from_static("bytes 10-19/3000000"))
    );
    assert!(part.into_body().collect().await.unwrap().to_bytes() == data[10..20]);

    let head = relay.send(request(Method::HEAD, "a/ü b+c", "")).await.unwrap();
    assert_eq!(head.headers()["content-length"], "3000000");
    let absent = relay.send(request(Method::GET, "none", "")).await.unwrap();
    assert_eq!(absent.status(), StatusCode::NOT_FOUND);
    assert!(text(absent.into_body()).await.contains("NoSuchKey"));
    assert_eq!(relay.send(request(Method::PUT, "empty", "")).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn signed_hashes_are_the_bodies() {
    let server = service().await;
    let relay = builder(&server.endpoint()).build_relay().unwrap();
    let mut good = request(Method::PUT, "a", "hello");
    good.payload_hash = Some("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824".into());
    assert_eq!(relay.send(good).await.unwrap().status(), StatusCode::OK);
    let mut bad = request(Method::PUT, "a", "hellO");
    bad.payload_hash = Some("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824".into());
    assert_eq!(relay.send(bad).await.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn connections_are_used_again() {
    let server = Script::play(vec![OK]).await;
    let relay = server.relay();
    for _ in 0..5 {
        assert_eq!(text(relay.send(request(Method::GET, "a", "")).await.unwrap().into_body()).await, "ok");
        assert_eq!(text(relay.send(request(Method::PUT, "a", "x")).await.unwrap().into_body()).await, "ok");
    }
    assert_eq!(server.connections(), 1);
    // A body that nobody reads to its end takes its connection along.
    drop(relay.send(request(Method::GET, "a", "")).await.unwrap());
    relay.send(request(Method::GET, "a", "")).await.unwrap();
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_connection_that_died_while_it_waited_is_replaced() {
    let server = Script::play(vec![concat!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "close"), OK]).await;
    let relay = server.relay();
    for _ in 0..2 {
        assert_eq!(text(relay.send(request(Method::PUT, "a", "x")).await.unwrap().into_body()).await, "ok");
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_named_region_is_followed() {
    const MOVED: &str = "HTTP/1.1 301 Moved Permanently\r\nx-amz-bucket-region: eu-west-9\r\nLocation: \
        http://198.51.100.1/\r\nContent-Length: 0\r\n\r\n";
    let server = Script::play(vec![MOVED, OK]).await;
    let relay = server.relay();
    assert_eq!(relay.send(request(Method::GET, "a", "")).await.unwrap().status(), StatusCode::OK);
    assert_eq!(relay.region(), "eu-west-9");
    assert!(server.heads()[1].contains("/eu-west-9/s3/aws4_request"));

    // A body that is gone cannot be sent again: the client is to do it.
    let server = Script::play(vec![MOVED, OK]).await;
    let relay = server.relay();
    let mut put = request(Method::PUT, "a", "");
    (put.len, put.body) = (100_000, chunks(vec![Ok(Bytes::from(vec![0; 100_000]))]));
    assert!(matches!(relay.send(put).await, Err(RelayError::TryAgain)));
    assert_eq!(relay.send(request(Method::GET, "a", "")).await.unwrap().status(), StatusCode::OK);
}

#[derive(Debug)]
struct Renewed(AtomicUsize);

#[async_trait::async_trait]
impl CredentialProvider for Renewed {
    async fn get(&self) -> StoreResult<Arc<Credentials>> {
        Ok(Arc::new(key(&format!("KEY{}", self.0.load(Ordering::SeqCst)), "secret")))
    }

    async fn refused(&self) -> bool {
        self.0.fetch_add(1, Ordering::SeqCst);
        true
    }
}

#[tokio::test]
async fn expired_keys_are_renewed_once() {
    const EXPIRED: &str =
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 40\r\n\r\n<Error><Code>ExpiredToken</Code></Error>";
    let server = Script::play(vec![EXPIRED, EXPIRED, OK]).await;
    let relay = builder(&server.endpoint).credentials(Arc::new(Renewed(AtomicUsize::new(1)))).build_relay().unwrap();
    let answer = relay.send(request(Method::GET, "a", "")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert!(text(answer.into_body()).await.contains("ExpiredToken"), "the refusal is passed on whole");
    let heads = server.heads();
    assert!(heads[0].contains("Credential=KEY1/") && heads[1].contains("Credential=KEY2/"), "{heads:?}");
}

#[tokio::test]
async fn the_stores_clock_is_believed() {
    const SKEWED: &str = "HTTP/1.1 403 Forbidden\r\nDate: Fri, 24 May 2030 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n";
    let server = Script::play(vec![SKEWED, OK]).await;
    let answer = server.relay().send(request(Method::GET, "a", "")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(server.heads()[1].contains("x-amz-date: 20300524T00"), "{:?}", server.heads());
}

#[tokio::test]
async fn broken_bodies_are_told_apart_from_broken_stores() {
    let server = service().await;
    let relay = builder(&server.endpoint()).build_relay().unwrap();
    let big = || Ok(Bytes::from(vec![0; 80_000]));
    for (len, body) in [
        (200_000, vec![big(), Err("it broke")]),
        (200_000, vec![big()]),
        (100_000, vec![big(), big()]),
        (10, vec![Ok(Bytes::from_static(b"short"))]),
        (3, vec![Ok(Bytes::from_static(b"too long"))]),
    ] {
        let mut put = request(Method::PUT, "broken", "");
        (put.len, put.body) = (len, chunks(body));
        let error = relay.send(put).await.unwrap_err();
        assert!(matches!(error, RelayError::Body(_)), "{len}: {error:?}");
    }
    assert_eq!(relay.send(request(Method::GET, "broken", "")).await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn silence_and_absence_have_an_end() {
    let server = Script::play(vec!["hang"]).await;
    let error = server.relay().send(request(Method::GET, "a", "")).await.unwrap_err();
    assert!(matches!(error, RelayError::Timeout(_)), "{error:?}");

    let server = Script::play(vec!["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"]).await;
    let answer = server.relay().send(request(Method::GET, "a", "")).await.unwrap();
    assert!(answer.into_body().collect().await.unwrap_err().to_string().contains("sent nothing"));

    let relay = builder("http://127.0.0.1:1").build_relay().unwrap();
    let error = relay.send(request(Method::GET, "a", "")).await.unwrap_err();
    assert!(matches!(error, RelayError::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn google_gets_its_own_words() {
    const META: &str = "HTTP/1.1 200 OK\r\nx-goog-meta-k: v\r\nContent-Length: 0\r\n\r\n";
    let server = Script::play(vec![META]).await;
    let relay = builder(&server.endpoint).provider(Provider::Gcs).build_relay().unwrap();
    let mut put = request(Method::PUT, "a", "");
    put.headers.insert("x-amz-meta-k", HeaderValue::from_static("v"));
    let answer = relay.send(put).await.unwrap();
    assert_eq!(answer.headers()["x-amz-meta-k"], "v");
    let head = server.heads().remove(0);
    assert!(head.contains("GOOG4-HMAC-SHA256 Credential=test/") && head.contains("/auto/storage/goog4_request"));
    assert!(head.contains("x-goog-meta-k: v") && !head.contains("x-amz-"), "{head}");

    let mut tagged = request(Method::PUT, "a", "");
    tagged.headers.insert("x-amz-tagging", HeaderValue::from_static("a=b"));
    assert!(matches!(relay.send(tagged).await, Err(RelayError::Unsupported(_))));
    assert_eq!(server.heads().len(), 1, "nothing was sent");
}
