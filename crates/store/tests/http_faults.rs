//! Servers that answer nastily: every answer of a script in turn, then as told last. No byte may ever be wrong.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sandpail_s3::ChecksumKind;
use sandpail_spec::{Credentials, Provider, SecretKey};
use sandpail_store::http::{HttpStore, HttpStoreBuilder, StaticCredentials, Timeouts};
use sandpail_store::{
    Condition, CopySource, ETag, ListRequest, ObjectAttributes, ObjectKey, Part, PutBody, Store, StoreError, UploadId,
    collect,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request as it came.
#[derive(Clone, Debug)]
struct Seen {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }
}

/// What the server does with one request.
#[derive(Clone)]
enum Act {
    /// Sends these bytes and closes.
    Raw(Vec<u8>),
    /// Sends these bytes, then nothing more, and stays.
    Hang(Vec<u8>),
    /// Sends these bytes and resets the connection.
    Reset(Vec<u8>),
}

fn raw(text: impl Into<String>) -> Act {
    Act::Raw(text.into().into_bytes())
}

/// A whole answer with a right Content-Length.
fn answer(status: &str, headers: &str, body: &str) -> Act {
    raw(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}", body.len()))
}

fn error(status: &str, code: &str) -> Act {
    answer(status, "", &format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message></Error>"))
}

/// A part of the object `data` with ETag "v1".
fn part(data: &[u8], from: usize, to: usize, send: usize) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\nETag: \"v1\"\r\n\
         Last-Modified: Fri, 24 May 2013 00:00:00 GMT\r\nConnection: close\r\n\r\n",
        to - from,
        to - 1,
        data.len()
    )
    .into_bytes();
    bytes.extend_from_slice(&data[from..from + send]);
    bytes
}

struct Server {
    endpoint: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Plays `script`; its last act again and again.
    async fn play(script: Vec<Act>) -> Self {
        let next = AtomicUsize::new(0);
        Self::start(move |_| script[next.fetch_add(1, Ordering::SeqCst).min(script.len() - 1)].clone()).await
    }

    async fn start(act: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let act: Arc<dyn Fn(&Seen) -> Act + Send + Sync> = Arc::new(act);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&log), Arc::clone(&act)));
            }
        });
        Self { endpoint, seen }
    }

    fn store(&self) -> HttpStore {
        self.store_with(|builder| builder)
    }

    fn store_with(&self, adjust: impl FnOnce(HttpStoreBuilder) -> HttpStoreBuilder) -> HttpStore {
        let key = Credentials {
            access_key_id: "AK".into(),
            secret_access_key: SecretKey::new("hidden-secret"),
            session_token: Some(SecretKey::new("hidden-token")),
        };
        let timeouts = Timeouts {
            connect: Duration::from_secs(2),
            first_byte: Duration::from_millis(400),
            slow: Duration::from_secs(2),
            stall: Duration::from_millis(400),
        };
        let builder = HttpStore::builder(self.endpoint.parse().unwrap(), "bucket")
            .credentials(Arc::new(StaticCredentials::new(key)))
            .timeouts(timeouts)
            .retry_deadline(Duration::from_secs(3));
        adjust(builder).build().unwrap()
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Vec<Seen>>>, act: Arc<dyn Fn(&Seen) -> Act + Send + Sync>) {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or("").to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut seen = Seen { line, headers, body: bytes[end + 4..].to_vec() };
    let length: usize = seen.header("content-length").parse().unwrap_or(0);
    while seen.body.len() < length {
        if stream.read_buf(&mut seen.body).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let act = act(&seen);
    log.lock().unwrap().push(seen);
    match act {
        Act::Raw(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        Act::Hang(bytes) => {
            let _ = stream.write_all(&bytes).await;
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        Act::Reset(bytes) => {
            let _ = stream.write_all(&bytes).await;
            // Give the bytes time to arrive: a reset may overtake them.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = stream.set_zero_linger();
        }
    }
}

fn key() -> ObjectKey {
    ObjectKey::new("a/b").unwrap()
}

fn data() -> Vec<u8> {
    (0..100_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

async fn read(store: &HttpStore, etag: Option<&str>) -> Result<Bytes, StoreError> {
    let etag = etag.map(ETag::new);
    collect(store.get(&key(), 0..100_000, etag.as_ref()).await?, usize::MAX).await
}

async fn put(store: &HttpStore, condition: &Condition) -> Result<ETag, StoreError> {
    let body = PutBody::from(Bytes::from_static(b"hello"));
    store.put(&key(), body, &ObjectAttributes::default(), condition).await.map(|outcome| outcome.etag)
}

/// The store's secrets are in no text.
fn hides(text: &str) {
    assert!(!text.contains("hidden"), "{text}");
}

#[tokio::test]
async fn a_body_cut_short_is_taken_up_again() {
    let data = data();
    let server = Server::play(vec![
        Act::Raw(part(&data, 0, 100_000, 30_000)),
        Act::Reset(part(&data, 30_000, 100_000, 20_000)),
        Act::Hang(part(&data, 50_000, 100_000, 10_000)),
        Act::Raw(part(&data, 60_000, 100_000, 40_000)),
    ])
    .await;
    let store = server.store();
    assert_eq!(read(&store, None).await.unwrap(), data);
    let seen = server.seen();
    let ranges: Vec<&str> = seen.iter().map(|seen| seen.header("range")).collect();
    assert_eq!(ranges, ["bytes=0-99999", "bytes=30000-99999", "bytes=50000-99999", "bytes=60000-99999"]);
    assert_eq!(seen[0].header("if-match"), "");
    assert!(seen[1..].iter().all(|seen| seen.header("if-match") == "\"v1\""), "the same version is asked for");
}

#[tokio::test]
async fn a_body_that_never_comes_is_an_error() {
    let data = data();
    let server = Server::start(move |seen| {
        let from = seen.header("range").trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap();
        Act::Raw(part(&data, from, 100_000, usize::from(from == 0) * 10))
    })
    .await;
    let error = read(&server.store(), None).await.unwrap_err();
    assert!(matches!(error, StoreError::Integrity { .. }), "{error}");
    assert!(server.seen().len() < 12);
}

#[tokio::test]
async fn a_version_that_changes_under_a_download_is_never_mixed() {
    let data = data();
    let other = String::from_utf8(part(&data, 30_000, 100_000, 0)).unwrap().replace("\"v1\"", "\"v2\"");
    for second in [error("412 Precondition Failed", "PreconditionFailed"), raw(other)] {
        let server = Server::play(vec![Act::Raw(part(&data, 0, 100_000, 30_000)), second]).await;
        let error = read(&server.store(), None).await.unwrap_err();
        assert!(matches!(error, StoreError::Precondition { .. }), "{error}");
    }
}

#[tokio::test]
async fn headers_that_do_not_fit_the_question_are_refused() {
    let data = data();
    let good = String::from_utf8(part(&data, 0, 100_000, 0)).unwrap();
    for (wrong, replacement) in [
        ("Content-Length: 100000", "Content-Length: 99999"),
        ("bytes 0-99999/100000", "bytes 1-100000/100001"),
        ("bytes 0-99999/100000", "bytes 0-99999/*"),
        ("bytes 0-99999/100000", "bytes 0-99999/200000\r\nX-Fine: no\r\nTransfer-Encoding: chunked"),
        ("ETag: \"v1\"", "X-No: tag"),
        ("206 Partial Content", "200 OK\r\nContent-Type: text/html"),
    ] {
        assert!(good.contains(wrong));
        let server = Server::play(vec![raw(good.replace(wrong, replacement))]).await;
        let result = read(&server.store(), None).await;
        assert!(result.is_err(), "{replacement}: {} bytes", result.unwrap().len());
    }
    // Another version than the one that was asked for, from a server that ignores If-Match.
    let server = Server::play(vec![raw(good)]).await;
    assert!(matches!(read(&server.store(), Some("v0")).await, Err(StoreError::Precondition { .. })));
}

#[tokio::test]
async fn bytes_that_differ_from_their_checksum_are_never_handed_out() {
    let data = data();
    let sum = |kind| sandpail_s3::checksum::of(kind, &data).unwrap();
    let said = |headers: &str, data: &[u8]| {
        let mut answer = part(data, 0, 100_000, 0);
        answer.truncate(answer.len() - 2);
        answer.extend_from_slice(format!("{headers}\r\n").as_bytes());
        answer.extend_from_slice(data);
        Act::Raw(answer)
    };
    let mut wrong = data.clone();
    wrong[70_000] ^= 1;
    for kind in [ChecksumKind::Crc64Nvme, ChecksumKind::Crc32c, ChecksumKind::Crc32] {
        let header = format!("{}: {}\r\n", kind.header().unwrap(), sum(kind));
        // Damaged on the way, once: asked for again.
        let server = Server::play(vec![said(&header, &wrong), said(&header, &data)]).await;
        assert_eq!(read(&server.store(), None).await.unwrap(), data, "{kind:?}");
        assert_eq!(server.seen().len(), 2);
        assert_eq!(server.seen()[0].header("x-amz-checksum-mode"), "ENABLED");
        // Damaged where it is kept: no byte of it is handed out.
        let server = Server::play(vec![said(&header, &wrong)]).await;
        let error = server.store().get(&key(), 0..100_000, None).await.map(drop).unwrap_err();
        assert!(matches!(&error, StoreError::Integrity { message } if message.contains("checksum")), "{error}");
        assert_eq!(server.seen().len(), 3);
    }
    // A sum of sums says nothing of the bytes, nor does that of a whole object of some of them.
    let composite =
        format!("x-amz-checksum-crc32c: {}-2\r\nx-amz-checksum-type: COMPOSITE\r\n", sum(ChecksumKind::Crc32));
    let server = Server::play(vec![said(&composite, &data)]).await;
    assert_eq!(read(&server.store(), None).await.unwrap(), data);
    let header = format!("x-amz-checksum-crc32c: {}\r\n", sum(ChecksumKind::Crc32));
    let some = String::from_utf8(part(&data, 0, 50_000, 0)).unwrap().replace("ETag", &format!("{header}ETag"));
    let server = Server::play(vec![Act::Raw([some.as_bytes(), &data[..50_000]].concat())]).await;
    let half = collect(server.store().get(&key(), 0..50_000, None).await.unwrap(), usize::MAX).await.unwrap();
    assert_eq!(half, data[..50_000]);
    // Where only MD5 is spoken, the question is not asked.
    let server = Server::play(vec![Act::Raw(part(&data, 0, 100_000, 100_000))]).await;
    let store = server.store_with(|builder| builder.checksum(ChecksumKind::ContentMd5));
    assert_eq!(read(&store, None).await.unwrap(), data);
    assert_eq!(server.seen()[0].header("x-amz-checksum-mode"), "");
}

/// What a store says of the bytes that it has is compared with what was sent.
#[tokio::test]
async fn a_store_that_has_other_bytes_is_not_believed() {
    let md5 = "5d41402abc4b2a76b9719d911017c592";
    let said = |headers: &str| answer("200 OK", headers, "");
    let tagged = |tag: &str| said(&format!("ETag: \"{tag}\"\r\n"));
    let wrong_sum = |kind: ChecksumKind| {
        let sum = sandpail_s3::checksum::of(kind, b"hellO").unwrap();
        said(&format!("ETag: \"e\"\r\n{}: {sum}\r\n", kind.header().unwrap()))
    };
    let part = |store: HttpStore| async move {
        store.upload_part(&key(), &UploadId("u".into()), 1, PutBody::from(Bytes::from_static(b"hello"))).await
    };
    for kind in [ChecksumKind::Crc64Nvme, ChecksumKind::Crc32c, ChecksumKind::Sha256] {
        let with = |builder: HttpStoreBuilder| builder.checksum(kind);
        // Damaged on the way, once: sent again.
        let sum = sandpail_s3::checksum::of(kind, b"hello").unwrap();
        let right = said(&format!("ETag: \"e\"\r\n{}: {sum}\r\n", kind.header().unwrap()));
        let server = Server::play(vec![wrong_sum(kind), right]).await;
        assert_eq!(put(&server.store_with(with), &Condition::Always).await.unwrap().as_str(), "e");
        assert_eq!(server.seen().len(), 2);
        // Again and again: an error. With a condition nothing is sent twice.
        let server = Server::play(vec![wrong_sum(kind)]).await;
        let error = put(&server.store_with(with), &Condition::Always).await.unwrap_err();
        assert!(matches!(&error, StoreError::Integrity { message } if message.contains("other bytes")), "{error}");
        assert!(matches!(part(server.store_with(with)).await, Err(StoreError::Integrity { .. })));
        assert_eq!(server.seen().len(), 4);
        assert!(matches!(put(&server.store_with(with), &Condition::Absent).await, Err(StoreError::Integrity { .. })));
        assert_eq!(server.seen().len(), 5);
    }
    // A tag is compared once tags were seen to be MD5s; that of a random kind is none.
    let with = |builder: HttpStoreBuilder| builder.checksum(ChecksumKind::ContentMd5);
    let other = "00000000000000000000000000000000";
    let server = Server::play(vec![tagged(other), tagged(md5), tagged(other)]).await;
    let store = server.store_with(with);
    assert_eq!(put(&store, &Condition::Always).await.unwrap().as_str(), other);
    assert_eq!(put(&store, &Condition::Always).await.unwrap().as_str(), md5);
    let error = put(&store, &Condition::Always).await.unwrap_err();
    assert!(matches!(&error, StoreError::Integrity { message } if message.contains(md5)), "{error}");
    let encrypted = said(&format!("ETag: \"{other}\"\r\nx-amz-server-side-encryption: aws:kms\r\n"));
    let server = Server::play(vec![tagged(md5), encrypted]).await;
    let store = server.store_with(with);
    assert_eq!(put(&store, &Condition::Always).await.unwrap().as_str(), md5);
    assert_eq!(put(&store, &Condition::Always).await.unwrap().as_str(), other);
}

#[tokio::test]
async fn storms_pass() {
    let storm = || error("503 Slow Down", "SlowDown");
    let server = Server::play(vec![
        storm(),
        storm(),
        error("500 Internal Server Error", "InternalError"),
        answer("502 Bad Gateway", "", "<html>bad gateway</html>"),
        Act::Reset(Vec::new()),
        Act::Hang(Vec::new()),
        answer("200 OK", "ETag: \"e\"\r\n", ""),
    ])
    .await;
    let store = server.store_with(|builder| builder.max_connections(16).retry_deadline(Duration::from_secs(30)));
    assert_eq!(put(&store, &Condition::Always).await.unwrap().as_str(), "e");
    assert_eq!(store.connection_limit(), 4, "throttling makes the store careful");
    assert_eq!(server.seen().len(), 7);
    assert!(server.seen().iter().all(|seen| seen.body == b"hello"), "each try sends the body anew");
    assert_eq!((store.counters().of("PutObject"), store.counters().retries), (7, 6));
}

#[tokio::test]
async fn endless_storms_end_in_time() {
    for (act, kind) in [
        (error("503 Slow Down", "SlowDown"), "throttling"),
        (answer("429 Too Many Requests", "", ""), "throttling"),
        (error("500 Internal Server Error", "InternalError"), "failed"),
        (Act::Reset(Vec::new()), "cannot reach"),
    ] {
        let server = Server::play(vec![act]).await;
        let begun = Instant::now();
        let store = server.store_with(|builder| builder.retry_deadline(Duration::from_millis(600)));
        let error = put(&store, &Condition::Always).await.unwrap_err().to_string();
        assert!(error.contains(kind), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(3));
        hides(&error);
    }
}

#[tokio::test]
async fn retry_after_is_obeyed() {
    let script =
        vec![answer("429 Too Many Requests", "Retry-After: 1\r\n", ""), answer("200 OK", "ETag: \"e\"\r\n", "")];
    let server = Server::play(script).await;
    let begun = Instant::now();
    put(&server.store(), &Condition::Always).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    // Longer than anybody will wait: the answer comes at once.
    let server = Server::play(vec![answer("503 Busy", "Retry-After: 600\r\n", "")]).await;
    let begun = Instant::now();
    assert!(put(&server.store(), &Condition::Always).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn an_error_inside_a_200_is_an_error() {
    let inside =
        |code: &str| answer("200 OK", "", &format!("\n\n<Error><Code>{code}</Code><Message>m</Message></Error>"));
    let copied = answer("200 OK", "", "<CopyObjectResult><ETag>\"e\"</ETag></CopyObjectResult>");
    let source = CopySource { key: key(), etag: None };
    let target = ObjectKey::new("t").unwrap();

    let server = Server::play(vec![inside("InternalError"), copied.clone()]).await;
    let outcome = server.store().copy(&source, &target, None, &Condition::Always).await.unwrap();
    assert_eq!(outcome.etag.as_str(), "e");
    assert_eq!(server.seen().len(), 2);

    let server = Server::play(vec![inside("NoSuchKey")]).await;
    let error = server.store().copy(&source, &target, None, &Condition::Always).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");

    let parts = [Part { number: 1, etag: ETag::new("e"), checksum: None }];
    let id = UploadId("u".into());
    let server = Server::play(vec![inside("InvalidPart")]).await;
    let error = server.store().complete_multipart(&key(), &id, &parts, &Condition::Always).await.unwrap_err();
    assert!(error.to_string().contains("InvalidPart"), "{error}");

    let server = Server::play(vec![answer("200 OK", "", "")]).await;
    assert!(server.store().complete_multipart(&key(), &id, &parts, &Condition::Always).await.is_err());
    assert!(server.store().copy(&source, &target, None, &Condition::Always).await.is_err());
}

#[tokio::test]
async fn the_right_region_is_followed_and_remembered() {
    let good = answer("200 OK", "ETag: \"e\"\r\n", "");
    let malformed =
        "<Error><Code>AuthorizationHeaderMalformed</Code><Message>wrong</Message><Region>eu-west-3</Region></Error>";
    for first in [
        answer("301 Moved Permanently", "x-amz-bucket-region: eu-west-3\r\n", ""),
        answer("400 Bad Request", "", malformed),
    ] {
        let server = Server::play(vec![first, good.clone()]).await;
        let store = server.store_with(|builder| builder.region("us-east-1"));
        put(&store, &Condition::Always).await.unwrap();
        put(&store, &Condition::Always).await.unwrap();
        let seen = server.seen();
        let regions: Vec<bool> =
            seen.iter().map(|seen| seen.header("authorization").contains("/eu-west-3/s3/")).collect();
        assert_eq!(regions, [false, true, true]);
    }
    // Two regions that point at each other are no endless loop.
    let server = Server::start(|seen| {
        let other = if seen.header("authorization").contains("/eu-west-3/") { "us-east-1" } else { "eu-west-3" };
        answer("400 Bad Request", "", &malformed_for(other))
    })
    .await;
    let error = put(&server.store(), &Condition::Always).await.unwrap_err().to_string();
    assert!(error.contains("Set the region to"), "{error}");
    assert_eq!(server.seen().len(), 2);
}

fn malformed_for(region: &str) -> String {
    format!("<Error><Code>AuthorizationHeaderMalformed</Code><Message>wrong</Message><Region>{region}</Region></Error>")
}

#[tokio::test]
async fn a_wrong_clock_is_corrected() {
    let skewed = "<Error><Code>RequestTimeTooSkewed</Code><Message>skew</Message></Error>";
    let script = vec![
        answer("403 Forbidden", "Date: Fri, 24 May 2013 00:00:00 GMT\r\n", skewed),
        answer("200 OK", "ETag: \"e\"\r\n", ""),
    ];
    let server = Server::play(script).await;
    let store = server.store();
    put(&store, &Condition::Always).await.unwrap();
    assert!(server.seen()[1].header("x-amz-date").starts_with("20130524T0000"));
    assert!(store.clock_skew() < 0);
}

#[tokio::test]
async fn what_is_not_s3_is_said() {
    let html = "<!DOCTYPE html><html><body>Log in to the café network</body></html>";
    let server = Server::play(vec![answer("200 OK", "Content-Type: text/html\r\n", html)]).await;
    let store = server.store();
    for error in [
        store.check_bucket("").await.unwrap_err(),
        store.list(&ListRequest::default()).await.unwrap_err(),
        put(&store, &Condition::Always).await.unwrap_err(),
        read(&store, None).await.unwrap_err(),
        store.head(&key()).await.unwrap_err(),
        store.create_multipart(&key(), &ObjectAttributes::default()).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Protocol { .. }), "{error}");
    }
    let server = Server::play(vec![answer("404 Not Found", "", html)]).await;
    let error = read(&server.store(), None).await.unwrap_err();
    assert!(error.to_string().contains("café"), "{error}");
    assert!(
        matches!(error, StoreError::Protocol { .. }),
        "another web server's 404 does not mean that an object is gone"
    );
}

#[tokio::test]
async fn a_server_that_refuses_crc32c_gets_md5() {
    let stored = answer("200 OK", "ETag: \"v1\"\r\n", "");
    let server = Server::play(vec![error("501 Not Implemented", "NotImplemented"), stored]).await;
    let store = server.store();
    put(&store, &Condition::Always).await.unwrap();
    put(&store, &Condition::Absent).await.unwrap();
    let sums: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| ["content-md5", "x-amz-checksum-crc32c"].map(|name| !seen.header(name).is_empty()))
        .collect();
    assert_eq!(sums, [[true, true], [true, false], [true, false]]);
}

#[tokio::test]
async fn a_server_that_repeats_crc32c_gets_it_alone() {
    let knows = || answer("200 OK", "ETag: \"v1\"\r\nx-amz-checksum-crc32c: mnG7TA==\r\n", "");
    let forgets = answer("200 OK", "ETag: \"v1\"\r\n", "");
    let server = Server::play(vec![knows(), knows(), forgets]).await;
    let store = server.store();
    for _ in 0..3 {
        put(&store, &Condition::Always).await.unwrap();
    }
    let sums: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| ["content-md5", "x-amz-checksum-crc32c"].map(|name| !seen.header(name).is_empty()))
        .collect();
    // The last answer but one shows that nobody checked the body, so it is sent again.
    assert_eq!(sums, [[true, true], [false, true], [false, true], [true, false]]);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    type Is = fn(&StoreError) -> bool;
    let cases: [(&str, &str, Is); 8] = [
        ("404 Not Found", "NoSuchBucket", |e| matches!(e, StoreError::NoSuchBucket { .. })),
        ("404 Not Found", "NoSuchKey", |e| matches!(e, StoreError::NotFound { .. })),
        ("403 Forbidden", "AccessDenied", |e| matches!(e, StoreError::Denied { .. })),
        ("403 Forbidden", "InvalidAccessKeyId", |e| matches!(e, StoreError::Credentials { .. })),
        ("403 Forbidden", "SignatureDoesNotMatch", |e| matches!(e, StoreError::Credentials { .. })),
        ("400 Bad Request", "ExpiredToken", |e| matches!(e, StoreError::Credentials { .. })),
        ("400 Bad Request", "EntityTooLarge", |e| matches!(e, StoreError::Invalid { .. })),
        ("501 Not Implemented", "NotImplemented", |e| matches!(e, StoreError::Unsupported { .. })),
    ];
    for (status, code, is) in cases {
        let server = Server::play(vec![error(status, code)]).await;
        let store = server.store_with(|builder| builder.checksum(ChecksumKind::ContentMd5));
        let found = put(&store, &Condition::Always).await.unwrap_err();
        assert!(is(&found), "{code}: {found:?}");
        assert_eq!(server.seen().len(), 1, "{code} is not tried again");
        hides(&format!("{found} {found:?} {store:?}"));
    }
}

#[tokio::test]
async fn a_lost_answer_to_a_conditional_write_is_cleared_up() {
    // "hello" is 5d41402abc4b2a76b9719d911017c592 in MD5.
    let head = |etag: &str| {
        raw(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"{etag}\"\r\nLast-Modified: Fri, 24 May 2013 00:00:00 GMT\r\nConnection: close\r\n\r\n"
        ))
    };
    let refused = || error("412 Precondition Failed", "PreconditionFailed");
    for (stored, ours) in [("5d41402abc4b2a76b9719d911017c592", true), ("00000000000000000000000000000000", false)] {
        let server = Server::play(vec![Act::Reset(Vec::new()), refused(), head(stored)]).await;
        match put(&server.store(), &Condition::Absent).await {
            Ok(etag) => assert!(ours && etag.as_str() == stored),
            Err(error) => assert!(!ours && matches!(error, StoreError::Precondition { .. }), "{error}"),
        }
    }
    // A tag that tells nothing: neither done nor refused may be claimed.
    let server = Server::play(vec![Act::Reset(Vec::new()), refused(), head("opaque")]).await;
    let error = put(&server.store(), &Condition::Absent).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    // Nothing was lost: a refusal is a refusal.
    let server = Server::play(vec![refused()]).await;
    assert!(matches!(put(&server.store(), &Condition::Absent).await, Err(StoreError::Precondition { .. })));
    assert_eq!(server.seen().len(), 1);

    let parts = [Part { number: 1, etag: ETag::new("5d41402abc4b2a76b9719d911017c592"), checksum: None }];
    // MD5 of the part's MD5, and the number of parts.
    let expected = "62109206880d38a4010a98e11243924a-1";
    let gone = || answer("404 Not Found", "", "<Error><Code>NoSuchUpload</Code><Message>m</Message></Error>");
    let server = Server::play(vec![Act::Reset(Vec::new()), gone(), head(expected)]).await;
    let id = UploadId("u".into());
    let outcome = server.store().complete_multipart(&key(), &id, &parts, &Condition::Always).await.unwrap();
    assert_eq!(outcome.etag.as_str(), expected);
    let server = Server::play(vec![Act::Reset(Vec::new()), gone(), head("5d41402abc4b2a76b9719d911017c592")]).await;
    let error = server.store().complete_multipart(&key(), &id, &parts, &Condition::Always).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[tokio::test]
async fn deletes_fall_back_to_single_ones() {
    let server = Server::start(|seen| {
        if seen.line.starts_with("POST") {
            error("501 Not Implemented", "NotImplemented")
        } else {
            answer("204 No Content", "", "")
        }
    })
    .await;
    let store = server.store();
    let keys: Vec<ObjectKey> = (0..5).map(|i| ObjectKey::new(format!("k{i}")).unwrap()).collect();
    assert!(store.delete_many(&keys).await.unwrap().is_empty());
    assert!(store.delete_many(&keys).await.unwrap().is_empty());
    assert_eq!((store.counters().of("DeleteObjects"), store.counters().of("DeleteObject")), (1, 10));
}

#[tokio::test]
async fn requests_look_as_they_should() {
    let server = Server::play(vec![answer("200 OK", "ETag: \"e\"\r\n", "")]).await;
    let store = server.store_with(|builder| builder.provider(Provider::S3));
    let mut attributes = ObjectAttributes { content_type: Some("text/plain".into()), ..ObjectAttributes::default() };
    attributes.metadata.insert("name".into(), "grün".into());
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 1_000_000], 0).unwrap();
    let body = PutBody::File { file: Arc::new(file), range: 10..900_010 };
    let odd = ObjectKey::new("a b/ü+%.txt").unwrap();
    store.put(&odd, body, &attributes, &Condition::Absent).await.unwrap();
    let seen = server.seen().remove(0);
    assert_eq!(seen.line, "PUT /bucket/a%20b/%C3%BC%2B%25.txt HTTP/1.1");
    assert_eq!(seen.body, vec![7; 900_000]);
    assert_eq!(seen.header("x-amz-content-sha256"), "UNSIGNED-PAYLOAD");
    assert_eq!(seen.header("x-amz-security-token"), "hidden-token");
    assert_eq!(seen.header("if-none-match"), "*");
    assert_eq!(seen.header("x-amz-meta-name"), "=?UTF-8?B?Z3LDvG4=?=");
    assert_eq!(seen.header("content-type"), "text/plain");
    assert_eq!(seen.header("x-amz-checksum-crc64nvme").len(), 12);
    assert!(seen.header("authorization").contains("SignedHeaders=content-type;host;if-none-match;"));

    // Anonymous requests carry no signature.
    let store = HttpStore::builder(server.endpoint.parse().unwrap(), "bucket").build().unwrap();
    put(&store, &Condition::Always).await.unwrap();
    assert_eq!(server.seen()[1].header("authorization"), "");
}

#[tokio::test]
async fn a_file_that_shrinks_is_a_local_error() {
    let server = Server::play(vec![answer("200 OK", "ETag: \"e\"\r\n", "")]).await;
    let body = PutBody::File { file: Arc::new(tempfile::tempfile().unwrap()), range: 0..10 };
    let error = server.store().put(&key(), body, &ObjectAttributes::default(), &Condition::Always).await.unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
}

#[tokio::test]
async fn a_bucket_is_asked_for_the_prefix_that_is_used() {
    let list = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
    let server = Server::play(vec![answer("200 OK", "", list), answer("200 OK", "", list)]).await;
    server.store().check_bucket("a b/").await.unwrap();
    server.store().check_bucket("").await.unwrap();
    let lines: Vec<String> = server.seen().iter().map(|seen| seen.line.clone()).collect();
    assert!(lines[0].contains("prefix=a%20b%2F") && !lines[1].contains("prefix"), "{lines:?}");
}

#[tokio::test]
async fn nobody_there_is_said_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let server = Server { endpoint, seen: Arc::default() };
    let begun = Instant::now();
    let error = server.store().check_bucket("").await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }) && error.to_string().contains("refused"), "{error}");
    within(begun, Duration::from_secs(5));
}

fn within(begun: Instant, limit: Duration) {
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn dropped_requests_leave_room() {
    let server = Server::play(vec![Act::Hang(Vec::new())]).await;
    let store = server.store_with(|builder| builder.max_connections(2));
    for _ in 0..10 {
        let waiting: &mut (dyn Future<Output = _> + Unpin + Send) = &mut Box::pin(put(&store, &Condition::Always));
        assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err());
    }
    assert_eq!(server.seen().len(), 10);
}
