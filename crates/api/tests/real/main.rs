//! The API over a socket, with a real daemon behind it: what unit tests cannot see. The whole contract is tested from
//! outside in `tests/e2e`. Needs root and `/dev/fuse`; without them it is skipped, with a note. The program is its
//! daemon's `sandbox-init` and `mount-worker`, which is why it has its own `main`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use sandpail_daemon::{BindingConfig, Config, Daemon};
use sandpail_spec::{BindingName, BucketName, SecretKey};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const KEY: &str = "s3cret";
const LIMIT: u64 = 1 << 20;

/// No step takes long; what hangs is a failure.
const TIME_MAX: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("sandbox-init") => return sandpail_sandbox::init_main(),
        Some("sandbox-agent") => return sandpail_sandbox::agent_main(),
        Some(sandpail_daemon::worker::ARGUMENT) => return sandpail_daemon::worker::main(),
        Some(sandpail_daemon::worker::witness::ARGUMENT) => return sandpail_daemon::worker::witness::main(),
        Some("--list") => {
            println!("a_life_over_http: test");
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        println!("skipped the API over a real daemon: it needs root and /dev/fuse");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { tokio::time::timeout(TIME_MAX, a_life_over_http()).await.unwrap() });
    println!("test a_life_over_http ... ok");
    ExitCode::SUCCESS
}

async fn send(api: SocketAddr, line: &str, body: impl Into<Bytes>) -> Response<Incoming> {
    let (method, uri) = line.split_once(' ').unwrap();
    let stream = TokioIo::new(TcpStream::connect(api).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("host", "localhost")
        .header("authorization", format!("Bearer {KEY}"))
        .header("connection", "close")
        .body(Full::new(body.into()))
        .unwrap();
    sender.send_request(request).await.unwrap()
}

async fn call(api: SocketAddr, line: &str, body: impl Into<Bytes>) -> (u16, Bytes) {
    let response = send(api, line, body).await;
    (response.status().as_u16(), response.into_body().collect().await.unwrap().to_bytes())
}

#[track_caller]
fn same(found: (u16, Bytes), status: u16, body: &Value) {
    let said: Value = serde_json::from_slice(&found.1).unwrap_or_else(|_| json!(String::from_utf8_lossy(&found.1)));
    assert_eq!((found.0, &said), (status, body));
}

async fn a_life_over_http() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::in_directory(directory.path());
    config.api_key = Some(SecretKey::new(KEY));
    config.upload_limit = LIMIT;
    let name = BindingName::parse("MY_BUCKET").unwrap();
    let bucket = BucketName::parse("my-bucket").unwrap();
    config.bindings.insert(name.clone(), BindingConfig { name, bucket, remote: None });
    let daemon = Daemon::start(config).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(sandpail_api::serve(daemon.clone(), listener, async move {
        stopped.await.unwrap_or_default();
    }));

    same(call(api, "GET /health", "").await, 200, &json!({"ok": true}));
    let (status, body) = call(api, "POST /v1/sandbox", "").await;
    assert_eq!(status, 200);
    let id = serde_json::from_slice::<Value>(&body).unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 26);
    let at = |line: &str| {
        let (method, rest) = line.split_once(' ').unwrap();
        format!("{method} /v1/sandbox/{id}{rest}")
    };

    commands(api, &at).await;
    files(api, &at).await;
    mounts(api, &at).await;
    archives(api, &at).await;

    assert_eq!(call(api, &at("DELETE "), "").await.0, 204);
    same(call(api, &at("GET /running"), "").await, 200, &json!({"running": false}));

    // An answer without an end does not hold the shutdown beyond its bound, and the server does not hold the daemon.
    let events = send(api, "GET /v1/events", "").await;
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    drop(events);
    daemon.stop(true).await.unwrap();
}

async fn commands(api: SocketAddr, at: &impl Fn(&str) -> String) {
    let body = json!({"argv": ["sh", "-c", "printf out; printf err >&2; exit 3"], "timeout_ms": 30000}).to_string();
    let response = send(api, &at("POST /exec"), body).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    let said = response.into_body().collect().await.unwrap().to_bytes();
    let said = String::from_utf8(said.to_vec()).unwrap();
    assert!(said.contains("event: stdout\ndata: b3V0\n\n"), "{said}");
    assert!(said.contains("event: stderr\ndata: ZXJy\n\n"), "{said}");
    assert!(said.ends_with("event: exit\ndata: {\"exit_code\":3}\n\n"), "{said}");
    same(call(api, &at("POST /session"), json!({"id": "s"}).to_string()).await, 200, &json!({"id": "s"}));
    let taken = json!({"error": "session create failed: Session 's' already exists", "code": "session_error"});
    same(call(api, &at("POST /session"), json!({"id": "s"}).to_string()).await, 502, &taken);
}

async fn files(api: SocketAddr, at: &impl Fn(&str) -> String) {
    let ok = json!({"ok": true});
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    same(call(api, &at("PUT /file/workspace/d/a%20b%23.bin"), bytes.clone()).await, 200, &ok);
    let response = send(api, &at("GET /file/workspace/d/a%20b%23.bin"), "").await;
    assert_eq!(response.headers()["content-length"], "300000");
    assert_eq!(response.headers()["content-type"], "application/octet-stream");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), bytes);
    same(call(api, &at("PUT /file/workspace/empty"), "").await, 200, &ok);
    assert_eq!(call(api, &at("GET /file/workspace/empty"), "").await, (200, Bytes::new()));
    let missing = call(api, &at("GET /file/workspace/none"), "").await;
    assert_eq!(missing.0, 404);
    assert!(
        missing.1.starts_with(b"{\"error\":\"File not found: /workspace/none\",\"code\":\"workspace_read_not_found\"")
    );
    let too_large = vec![0; usize::try_from(LIMIT).unwrap() + 1];
    let text = "payload too large: 1048577 bytes exceeds the 1048576-byte limit";
    let refusal = json!({"error": text, "code": "payload_too_large"});
    same(call(api, &at("PUT /file/workspace/big"), too_large).await, 413, &refusal);
    let (status, listed) = call(api, &at("GET /files?path=d"), "").await;
    let listed: Value = serde_json::from_slice(&listed).unwrap();
    assert_eq!((status, &listed["files"][0]["name"], &listed["count"]), (200, &json!("a b#.bin"), &json!(1)));
}

async fn mounts(api: SocketAddr, at: &impl Fn(&str) -> String) {
    let ok = json!({"ok": true});
    let request = json!({"binding": "MY_BUCKET", "mountPath": "/data", "options": {}}).to_string();
    same(call(api, &at("POST /mount"), request).await, 200, &ok);
    same(call(api, &at("PUT /file/data/k?scope=sandbox"), "value").await, 200, &ok);
    assert_eq!(call(api, "GET /v1/bindings/MY_BUCKET/objects/k", "").await, (200, Bytes::from_static(b"value")));
    let request = json!({"binding": "NOPE", "mountPath": "/x", "options": {}}).to_string();
    let (status, body) = call(api, &at("POST /mount"), request).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["name"], &body["code"]), (502, &json!("InvalidMountConfigError"), &json!("mount_error")));
    let text = body["error"].as_str().unwrap();
    assert!(text.starts_with("mount failed: R2 binding \"NOPE\" not found in Worker env"), "{text}");
    let (_, listed) = call(api, &at("GET /mounts"), "").await;
    let listed: Value = serde_json::from_slice(&listed).unwrap();
    assert_eq!(
        (&listed["mounts"][0]["mountPath"], &listed["mounts"][0]["state"]),
        (&json!("/data"), &json!("serving"))
    );
    same(call(api, &at("POST /unmount"), json!({"mountPath": "/data"}).to_string()).await, 200, &ok);
    let gone = call(api, &at("POST /unmount"), json!({"mountPath": "/data"}).to_string()).await;
    assert_eq!(gone.0, 502);
    assert!(gone.1.starts_with(
        b"{\"error\":\"unmount failed: No active mount found at path: /data\",\"code\":\"unmount_error\""
    ));
}

async fn archives(api: SocketAddr, at: &impl Fn(&str) -> String) {
    let (status, tar) = call(api, &at("POST /persist?excludes=nothing"), "").await;
    assert_eq!((status, tar.len() % 512), (200, 0));
    same(call(api, &at("POST /hydrate"), tar).await, 200, &json!({"ok": true}));
    let (status, body) = call(api, &at("POST /hydrate"), "no tar at all").await;
    assert_eq!(status, 502, "{body:?}");
    assert!(body.starts_with(b"{\"error\":\"tar extract failed (exit 2): "), "{body:?}");
}
