//! Clients, the proxy and a bucket, over real sockets.

mod common;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{Got, Proxy, REAL_ID, ask, bytes, remote, request, service};
use futures_util::stream;
use http::{HeaderName, HeaderValue, Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use sandpail_proxy::{Access, Embedded, Upstream};
use sandpail_s3::{ChecksumKind, checksum};
use sandpail_s3d::Local;
use sandpail_spec::Provider;
use sandpail_store::dir::DirStore;
use sandpail_store::http::RelayBody;
use sandpail_store::http::{RelayError, RelayRequest};
use sandpail_store::memory::MemoryStore;
use sandpail_store::{Capabilities, ObjectKey, Store, StoreError, conformance};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

/// A body in pieces, then trailers.
fn pieces(data: &[u8], len: usize, trailer: Option<(&'static str, &str)>) -> RelayBody {
    let mut frames: Vec<Result<_, std::io::Error>> =
        data.chunks(len).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    if let Some((name, value)) = trailer {
        let trailers = [(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())];
        frames.push(Ok(Frame::trailers(trailers.into_iter().collect())));
    }
    StreamBody::new(stream::iter(frames)).map_err(Into::into).boxed_unsync()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=250_u8).cycle().take(len).collect()
}

/// Keys with `.` and `..` as whole parts are refused: no client here needs them, and some providers normalise them.
const CANNOT: [&str; 1] = ["odd_keys_come_back"];

#[tokio::test(flavor = "multi_thread")]
async fn a_store_behind_the_proxy_is_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let server = service(Arc::new(DirStore::create(directory.path()).unwrap())).await;
    let proxy = Proxy::start(remote(&server.endpoint()), "/", Access::ReadWrite).await;
    let store = proxy.store(|builder| builder.capabilities(Capabilities::default()));
    store.check_bucket("").await.unwrap();
    conformance::run_except(&store, "conformance/", &CANNOT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_behind_the_proxy_is_a_store_with_checksums() {
    let directory = tempfile::tempdir().unwrap();
    let server = service(Arc::new(DirStore::create(directory.path()).unwrap())).await;
    let proxy = Proxy::start(remote(&server.endpoint()), "/", Access::ReadWrite).await;
    let store = proxy.store(|builder| builder.provider(Provider::S3).checksum(ChecksumKind::Crc64Nvme));
    conformance::run_except(&store, "conformance/", &CANNOT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_bucket_behind_the_proxy_is_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirStore::create(directory.path()).unwrap();
    let spool = store.temp_directory().to_owned();
    let upstream = Arc::new(Embedded::new(Local::new("bucket", Arc::new(store), spool)));
    let proxy = Proxy::start(upstream, "/conformance", Access::ReadWrite).await;
    let store = proxy.store(|builder| builder.capabilities(Capabilities::default()));
    conformance::run_except(&store, "conformance/", &CANNOT).await;
}

#[tokio::test]
async fn ranges_and_conditions_pass() {
    let server = service(memory()).await;
    let proxy = Proxy::start(remote(&server.endpoint()), "/", Access::ReadWrite).await;
    let client = proxy.client();
    let put =
        ask(&client, request(Method::PUT, "a/b", &[("x-amz-meta-k", "v"), ("content-type", "x/y")], "0123456789"));
    let etag = put.await.header("etag").to_owned();
    let get = |method: Method, headers: Vec<(&'static str, String)>| {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let request = request(method, "a/b", &headers, "");
        ask(&client, request)
    };
    let whole = get(Method::GET, vec![]).await;
    assert_eq!((whole.status, whole.text(), whole.header("x-amz-meta-k")), (200, "0123456789", "v"));
    assert_eq!((whole.header("content-type"), whole.header("content-length")), ("x/y", "10"));
    let part = get(Method::GET, vec![("range", "bytes=2-4".into())]).await;
    assert_eq!((part.status, part.text(), part.header("content-range")), (206, "234", "bytes 2-4/10"));
    let tail = get(Method::GET, vec![("range", "bytes=-3".into())]).await;
    assert_eq!((tail.status, tail.text()), (206, "789"));
    let beyond = get(Method::GET, vec![("range", "bytes=10-".into())]).await;
    assert_eq!(beyond.status, 416);
    assert!(beyond.text().contains("<Code>InvalidRange</Code>"));
    let same = get(Method::GET, vec![("if-none-match", etag.clone())]).await;
    assert_eq!((same.status, same.text(), same.header("etag")), (304, "", etag.as_str()));
    let other = get(Method::GET, vec![("if-match", "\"other\"".into())]).await;
    assert_eq!(other.status, 412);
    assert!(other.text().contains("<Code>PreconditionFailed</Code>"));
    let head = get(Method::HEAD, vec![]).await;
    assert_eq!((head.status, head.header("content-length"), head.text()), (200, "10", ""));
    assert_eq!(get(Method::HEAD, vec![("if-none-match", etag)]).await.status, 304);
    let absent = ask(&client, request(Method::HEAD, "none", &[], "")).await;
    assert_eq!((absent.status, absent.text()), (404, ""));
    // All of it over one connection, which a wrong length of any answer would have ended.
    let again = get(Method::GET, vec![]).await;
    assert_eq!(again.text(), "0123456789");
    let bytes_out: u64 = proxy.log.records().iter().map(|record| record.bytes_out).sum();
    assert!(bytes_out > 20);
}

fn harmless(got: &Got) {
    let all = format!("{:?} {}", got.headers, got.text());
    for secret in [REAL_ID, "127.0.0.1", "StringToSign", "Credential="] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
    assert_eq!(got.header("x-amz-request-id").len(), 16, "{all}");
    assert!(got.text().contains("<Error><Code>"), "{all}");
    assert!(got.text().contains(got.header("x-amz-request-id")), "{all}");
}

#[tokio::test]
async fn refusals_are_documents_and_tell_nothing() {
    let server = service(memory()).await;
    let proxy = Proxy::start(remote(&server.endpoint()), "/in", Access::ReadOnly).await;
    let client = proxy.client();
    let absent = ask(&client, request(Method::GET, "in/none", &[], "")).await;
    assert_eq!(absent.status, 404);
    harmless(&absent);
    for (method, key, operation, status, rule) in
        [(Method::GET, "out", "GetObject", 403, "outside-prefix"), (Method::PUT, "in/a", "PutObject", 403, "read-only")]
    {
        let got = ask(&client, request(method, key, &[], "")).await;
        assert_eq!(got.status, status);
        harmless(&got);
        let record = proxy.log.wait(|record| record.refused == Some(rule)).await;
        assert_eq!((record.status, record.request_id.as_str()), (403, got.header("x-amz-request-id")));
        assert_eq!((record.operation, record.key.as_deref(), record.mount.is_some()), (operation, Some(key), true));
    }
    // The store refuses the mount's own key.
    let wrong = sandpail_store::http::HttpStore::builder(server.endpoint().parse().unwrap(), "bucket")
        .credentials(common::credentials(REAL_ID, "wrong"))
        .build_relay()
        .unwrap();
    let mut proxy = Proxy::start(remote(&server.endpoint()), "/", Access::ReadWrite).await;
    proxy.open(Arc::new(wrong), "/", Access::ReadWrite);
    let refused = ask(&proxy.client(), request(Method::GET, "a", &[], "")).await;
    assert_eq!(refused.status, 403);
    harmless(&refused);
    // And one that is not there.
    proxy.open(remote("http://127.0.0.1:1"), "/", Access::ReadWrite);
    let unreachable = ask(&proxy.client(), request(Method::GET, "a", &[], "")).await;
    assert_eq!(unreachable.status, 503);
    harmless(&unreachable);
}

#[tokio::test]
async fn bodies_are_checked_before_their_last_byte() {
    let store = Arc::new(MemoryStore::new());
    let server = service(Arc::clone(&store) as Arc<dyn Store>).await;
    let proxy = Proxy::start(remote(&server.endpoint()), "/", Access::ReadWrite).await;
    let client = proxy.client();
    for len in [0, 1, 1000, 65_536, 300_000, 3_000_000] {
        let data = pattern(len);
        let hash = checksum::sha256_hex(&data);
        let crc = checksum::of(ChecksumKind::Crc32, &data).unwrap();
        let wrong_crc = checksum::of(ChecksumKind::Crc32, b"something else").unwrap();

        let put = |key: &str| request(Method::PUT, key, &[], data.clone());
        let mut good = put("hash-good");
        good.payload_hash = Some(hash.clone());
        assert_eq!(ask(&client, good).await.status, 200, "{len}");
        let mut bad = put("hash-bad");
        bad.payload_hash = Some(checksum::sha256_hex(b"another"));
        let got = ask(&client, bad).await;
        assert_eq!(got.status, 400, "{len}: {}", got.text());
        assert!(store.head(&ObjectKey::new("hash-bad").unwrap()).await.unwrap_err().is_not_found());

        if len <= 65_536 {
            continue;
        }
        let mut framed = put("trailer-good");
        (framed.trailer, framed.body) =
            (Some(ChecksumKind::Crc32), pieces(&data, 70_001, Some(("x-amz-checksum-crc32", &crc))));
        assert_eq!(ask(&client, framed).await.status, 200, "{len}");
        let got = ask(&client, request(Method::GET, "trailer-good", &[], "")).await;
        assert!(got.body == data && got.header("content-encoding").is_empty());
        let mut framed = put("trailer-bad");
        (framed.trailer, framed.body) =
            (Some(ChecksumKind::Crc32), pieces(&data, 70_001, Some(("x-amz-checksum-crc32", &wrong_crc))));
        let got = ask(&client, framed).await;
        assert_eq!(got.status, 400, "{len}");
        assert!(got.text().contains("<Code>BadDigest</Code>"), "{}", got.text());
        assert!(store.head(&ObjectKey::new("trailer-bad").unwrap()).await.unwrap_err().is_not_found());
    }
    let record = proxy.log.wait(|record| record.refused == Some("digest")).await;
    assert_eq!((record.operation, record.status), ("PutObject", 400));
}

/// A store that never ends what it began.
#[derive(Debug, Default)]
struct Endless {
    has_body: tokio::sync::Notify,
}

#[async_trait]
impl Upstream for Endless {
    async fn send(&self, request: RelayRequest) -> Result<Response<RelayBody>, RelayError> {
        if request.method == Method::PUT {
            // Takes the body, and never answers.
            let _ = request.body.collect().await;
            self.has_body.notify_one();
            return std::future::pending().await;
        }
        let frames = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((Ok(Frame::data(Bytes::from_static(&[0; 1000]))), ()))
        });
        Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
    }

    fn region(&self) -> String {
        "us-east-1".into()
    }
}

#[tokio::test]
async fn a_mount_that_goes_takes_its_requests_along() {
    let endless = Arc::new(Endless::default());
    let mut proxy = Proxy::start(Arc::clone(&endless) as Arc<dyn Upstream>, "/", Access::ReadWrite).await;
    let client = proxy.client();
    let answer = client.send(request(Method::GET, "a", &[], "")).await.unwrap();
    let mut body = answer.into_body();
    for _ in 0..3 {
        body.frame().await.unwrap().unwrap();
    }
    let uploading = {
        let client = proxy.client();
        tokio::spawn(async move { client.send(request(Method::PUT, "b", &[], "x")).await.map(drop) })
    };
    endless.has_body.notified().await;
    proxy.route = None;
    let cut = async { while let Some(Ok(_)) = body.frame().await {} };
    tokio::time::timeout(Duration::from_secs(2), cut).await.expect("the download ends");
    let lost = tokio::time::timeout(Duration::from_secs(2), uploading).await.expect("the upload ends").unwrap();
    assert!(lost.is_err());
    let record = proxy.log.wait(|record| record.operation == "PutObject").await;
    assert_eq!((record.status, record.bytes_in), (0, 1), "it had no answer");
    let record = proxy.log.wait(|record| record.operation == "GetObject").await;
    assert!(record.status == 200 && record.bytes_out >= 3000, "{record:?}");
    let later = ask(&proxy.client(), request(Method::GET, "a", &[], "")).await;
    assert_eq!(later.status, 403);
}

#[tokio::test]
async fn uploads_belong_to_their_keys() {
    let server = service(memory()).await;
    let mut proxy = Proxy::start(remote(&server.endpoint()), "/", Access::ReadWrite).await;
    let client = proxy.client();
    let mut create = request(Method::POST, "big", &[], "");
    create.query = vec![("uploads".into(), String::new())];
    let id = sandpail_s3::xml::parse_create(&ask(&client, create).await.body).unwrap();
    let part = |key: &str, id: &str| {
        let mut part = request(Method::PUT, key, &[], "data");
        part.query = vec![("partNumber".into(), "1".into()), ("uploadId".into(), id.to_owned())];
        part
    };
    assert_eq!(ask(&client, part("big", &id)).await.status, 200);
    let foreign = ask(&client, part("other", &id)).await;
    assert_eq!(foreign.status, 404);
    assert!(foreign.text().contains("<Code>NoSuchUpload</Code>"));
    assert_eq!(ask(&client, part("big", "made-up")).await.status, 404);
    // After a restart the store is asked.
    proxy.open(remote(&server.endpoint()), "/", Access::ReadWrite);
    server.log().take();
    assert_eq!(ask(&client, part("big", &id)).await.status, 200);
    assert_eq!(ask(&client, part("big", &id)).await.status, 200);
    let counts = server.log().take();
    assert_eq!((counts.get("ListParts"), counts.get("UploadPart")), (Some(&1), Some(&2)), "{counts:?}");
}

/// A store that shows what was written only later.
#[derive(Debug)]
struct Late;

#[async_trait]
impl Upstream for Late {
    async fn send(&self, request: RelayRequest) -> Result<Response<RelayBody>, RelayError> {
        let mut answer = Response::new(bytes(""));
        match request.method {
            Method::PUT => {
                answer.headers_mut().insert("etag", HeaderValue::from_static("\"e\""));
            }
            Method::DELETE => *answer.status_mut() = http::StatusCode::NO_CONTENT,
            _ => *answer.status_mut() = http::StatusCode::NOT_FOUND,
        }
        Ok(answer)
    }

    fn region(&self) -> String {
        "us-east-1".into()
    }
}

#[tokio::test]
async fn directory_markers_show_at_once() {
    let proxy = Proxy::start(Arc::new(Late), "/", Access::ReadWrite).await;
    let client = proxy.client();
    let head = |key: &'static str| ask(&client, request(Method::HEAD, key, &[], ""));
    assert_eq!(head("dir/").await.status, 404);
    ask(&client, request(Method::PUT, "dir/", &[], "")).await;
    let seen = head("dir/").await;
    assert_eq!((seen.status, seen.header("etag"), seen.header("content-length")), (200, "\"e\"", "0"));
    assert_eq!(head("dir").await.status, 404);
    ask(&client, request(Method::DELETE, "dir/", &[], "")).await;
    assert_eq!(head("dir/").await.status, 404);
    // An object is not a marker.
    ask(&client, request(Method::PUT, "file", &[], "")).await;
    assert_eq!(head("file").await.status, 404);
}

/// Sends text as it is and reads until the server closes, or says nothing more for a second.
async fn raw(proxy: &Proxy, text: &str) -> String {
    let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(Ok(len @ 1..)) = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut buffer)).await {
        all.extend_from_slice(&buffer[..len]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn what_is_not_http_gets_a_document_and_the_end() {
    let proxy = Proxy::start(Arc::new(Late), "/", Access::ReadWrite).await;
    let both = "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    for (text, status) in [
        (format!("GET / HTTP/1.1\r\nHost: s3.internal\r\n{both}"), 400),
        ("CONNECT s3.internal:443 HTTP/1.1\r\nHost: s3.internal:443\r\n\r\n".into(), 405),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\nHost: s3.internal\n\n".into(), 400),
    ] {
        let got = raw(&proxy, &text).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")) && got.contains("<Error><Code>"), "{text:?}: {got}");
    }
    let got = raw(&proxy, "GET /__sandbox_credential_proxy_self_test__ HTTP/1.1\r\nHost: s3.internal\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 400 "), "the connection was made to another name: {got}");
    let unsigned = format!("GET /bucket/a HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.addr);
    let twice = raw(&proxy, &format!("{unsigned}{unsigned}")).await;
    assert_eq!(twice.matches("HTTP/1.1 403 ").count(), 2, "{twice}");
}

#[tokio::test]
async fn expectations_are_answered_here() {
    let proxy = Proxy::start(Arc::new(Late), "/", Access::ReadWrite).await;
    // A refusal comes before the body, and no 100 does.
    let refused = format!(
        "PUT /bucket/a HTTP/1.1\r\nHost: {}\r\nContent-Length: 100000\r\nExpect: 100-continue\r\n\r\n",
        proxy.addr
    );
    let got = raw(&proxy, &refused).await;
    assert!(got.starts_with("HTTP/1.1 403 "), "{got}");
    // The client keeps the body: what it sends next must not be taken for it.
    assert!(got.contains("\r\nconnection: close\r\n"), "{got}");
    // What is permitted is asked for.
    let client = proxy.client();
    let got = ask(&client, request(Method::PUT, "a", &[("expect", "100-continue")], "body")).await;
    assert_eq!(got.status, 200);
}

#[tokio::test]
async fn refused_bodies_do_not_lose_their_answers() {
    let server = service(memory()).await;
    let proxy = Proxy::start(remote(&server.endpoint()), "/", Access::ReadOnly).await;
    let client = proxy.client();
    let mut put = request(Method::PUT, "a", &[], "");
    let data = pattern(4 << 20);
    (put.len, put.body) = (data.len() as u64, pieces(&data, 65_536, None));
    let got = ask(&client, put).await;
    assert_eq!(got.status, 403);
    harmless(&got);
}

#[tokio::test]
async fn a_prefix_holds_for_a_client_that_knows_s3() {
    let store = Arc::new(MemoryStore::new());
    let server = service(Arc::clone(&store) as Arc<dyn Store>).await;
    let proxy = Proxy::start(remote(&server.endpoint()), "/data", Access::ReadWrite).await;
    let client = proxy.store(|builder| builder);
    let key = |key: &str| ObjectKey::new(key).unwrap();
    let put = |name: &'static str| {
        let (client, key) = (&client, key(name));
        async move {
            client
                .put(&key, Bytes::from_static(b"x").into(), &Default::default(), &sandpail_store::Condition::Always)
                .await
                .map(drop)
        }
    };
    put("data/a").await.unwrap();
    assert!(matches!(put("database/a").await, Err(StoreError::Denied { .. })));
    assert!(matches!(client.head(&key("other")).await, Err(StoreError::Denied { .. })));
    assert_eq!(store.list(&Default::default()).await.unwrap().objects.len(), 1);
}
