//! What is decided before a daemon is asked. The daemon here is none: what would reach it answers 503 `unavailable`.

use axum::body::Body;
use axum::response::Response;
use futures_util::StreamExt;
use http::{Request, StatusCode};
use sandpail_spec::SecretKey;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::state::Settings;

const KEY: &str = "s3cret";
const LIMIT: u64 = 100;

async fn send(request: Request<Body>) -> Response {
    let settings = Settings { api_key: Some(SecretKey::new(KEY)), upload_limit: LIMIT };
    router(Api::without_daemon(settings)).oneshot(request).await.unwrap()
}

async fn json_of(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn request(line: &str, body: impl Into<Body>) -> Request<Body> {
    let (method, uri) = line.split_once(' ').unwrap();
    let builder = Request::builder().method(method).uri(uri).header("authorization", format!("Bearer {KEY}"));
    builder.body(body.into()).unwrap()
}

/// `expected`: status, code, text (empty: any).
#[track_caller]
fn check(line: &str, body: &str, expected: (u16, &str, &str)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (status, said) = runtime.block_on(async { json_of(send(request(line, body.to_owned())).await).await });
    let text = said["error"].as_str().unwrap_or("").to_owned();
    let text = if expected.2.is_empty() { "" } else { &text };
    assert_eq!((status.as_u16(), said["code"].as_str().unwrap_or(""), text), expected, "{line} {body}");
}

/// All checks were passed.
const REACHES_THE_DAEMON: (u16, &str, &str) = (503, "unavailable", "");

fn invalid(text: &str) -> (u16, &str, &str) {
    (400, "invalid_request", text)
}

#[test]
fn what_is_no_route() {
    for line in [
        "GET /",
        "POST /sandbox",
        "POST /sandbox/abc/exec",
        "GET /v1",
        "GET /v1/",
        "GET /v1/nothing",
        "PATCH /v1/sandbox",
        "PUT /v1/sandbox/abc/exec",
        "GET /v1/sandbox/abc",
        "GET /v1/sandbox/abc/exec",
        "GET /v1/sandbox/abc/nothing",
        "POST /v1/sandbox/abc/running",
        "OPTIONS /v1/sandbox",
        "POST /health",
        "GET /v1/sandbox/",
    ] {
        check(line, "", (404, "not_found", "Not found"));
    }
}

#[test]
fn ids() {
    let bad = invalid("Invalid sandbox ID format");
    for line in [
        "DELETE /v1/sandbox/ABC",
        "GET /v1/sandbox/a1/running",
        "POST /v1/sandbox/a-b/exec",
        "GET /v1/sandbox/A/file/x",
        "PUT /v1/sandbox/A/file/x",
        "POST /v1/sandbox/A/session",
        "GET /v1/sandbox/A/pty",
        "POST /v1/sandbox/A/persist",
        "POST /v1/sandbox/A/hydrate",
        "POST /v1/sandbox/A/mount",
        "POST /v1/sandbox/A/unmount",
        "POST /v1/sandbox/A/mounts/sync",
        "POST /v1/sandbox/A/tunnel/8080",
        "GET /v1/sandbox/A/mounts",
        "GET /v1/sandbox/A/processes",
        "GET /v1/sandbox/A/file/",
        "GET /v1/sandbox/a%2Fb/running",
        "GET /v1/sandbox/A/files",
    ] {
        check(line, "not json", bad);
    }
    check("GET /v1/sandbox/abc234567/running", "", REACHES_THE_DAEMON);
    check("GET /v1/sandbox/%61bc/running", "", REACHES_THE_DAEMON);
    check(&format!("DELETE /v1/sandbox/{}", "a".repeat(129)), "", bad);
}

#[tokio::test]
async fn the_key_comes_before_everything_else() {
    let without = |line: &str| {
        let (method, uri) = line.split_once(' ').unwrap();
        Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()
    };
    for line in [
        "POST /v1/sandbox",
        "DELETE /v1/sandbox/INVALID",
        "POST /v1/sandbox/INVALID/exec",
        "GET /v1/nothing",
        "GET /v1/sandbox/abc/pty",
        "GET /v1/openapi.json",
        "GET /v1/openapi",
        "GET /v1/events",
        "GET /v1/bindings",
        "GET /v1/sandbox?token=s3cret",
        "GET /v1/openapi.json?token=wrong",
    ] {
        let (status, said) = json_of(send(without(line)).await).await;
        assert_eq!(status, 401, "{line}");
        assert_eq!(said, json!({"error": "Unauthorized", "code": "unauthorized"}), "{line}");
    }
    for line in
        ["GET /v1/openapi.json?token=s3cret", "GET /v1/openapi.html?token=s3cret", "GET /v1/openapi?token=s3cret"]
    {
        assert_eq!(send(without(line)).await.status(), 200, "{line}");
    }
    assert_eq!(send(without("GET /health")).await.status(), 503);
    assert_eq!(send(without("POST /sandbox")).await.status(), 404);
}

#[tokio::test]
async fn the_openapi_routes() {
    let response = send(request("GET /v1/openapi.json", "")).await;
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(json_of(response).await.1["openapi"], "3.1.0");
    for line in ["GET /v1/openapi", "GET /v1/openapi.html"] {
        assert_eq!(send(request(line, "")).await.headers()["content-type"], "text/html; charset=utf-8");
    }
}

#[test]
fn commands() {
    let exec = "POST /v1/sandbox/abc/exec";
    check(exec, "", invalid("Invalid JSON body"));
    check(exec, "[]", invalid("Invalid JSON body"));
    check(exec, "{}", invalid("argv must be a non-empty array"));
    check(exec, r#"{"argv":["ls"],"timeout_ms":0}"#, invalid("timeout_ms must be a positive number"));
    let outside = (403, "invalid_request", "cwd must resolve to a location within /workspace");
    check(exec, r#"{"argv":["ls"],"cwd":"/etc"}"#, outside);
    check(exec, r#"{"argv":["ls"],"cwd":"/workspace/.."}"#, outside);
    check(exec, r#"{"argv":["ls"],"cwd":"/etc","scope":"sandbox"}"#, REACHES_THE_DAEMON);
    check(exec, r#"{"argv":["ls"],"timeout_ms":30000}"#, REACHES_THE_DAEMON);
    check(
        "POST /v1/sandbox/abc/processes",
        r#"{"argv":["ls"],"processId":"a/b"}"#,
        invalid("Invalid process ID format"),
    );
    check("POST /v1/sandbox/abc/processes", r#"{"argv":["ls"]}"#, REACHES_THE_DAEMON);
    check("DELETE /v1/sandbox/abc/processes/p?signal=X", "", invalid("signal must be a signal's name or its number"));
}

#[test]
fn files() {
    let outside = (403, "invalid_request", "path must resolve to a location within /workspace");
    for method in ["GET", "PUT", "DELETE"] {
        let at = |path: &str| format!("{method} /v1/sandbox/abc/file{path}");
        for none in ["", "/", "%2F"] {
            check(&at(none), "", invalid("file path must not be empty"));
        }
        check(&at("/etc/passwd"), "", outside);
        check(&at("/workspace/..%2f..%2fetc/passwd"), "", outside);
        check(&at("/workspace/../etc"), "", outside);
        check(&at("/workspace/a%20b%23"), "", REACHES_THE_DAEMON);
        check(&at("//workspace//a"), "", REACHES_THE_DAEMON);
        check(&at("/data/results.json?scope=sandbox"), "", REACHES_THE_DAEMON);
        check(&at("/data/results.json?scope=host"), "", invalid("scope must be workspace or sandbox"));
    }
    check("GET /v1/sandbox/abc/stat", "", invalid("path must not be empty"));
    check("POST /v1/sandbox/abc/mkdir", "{}", invalid("path must be a non-empty string"));
    check("POST /v1/sandbox/abc/rename", r#"{"oldPath":"a"}"#, invalid("newPath must be a non-empty string"));
    check("GET /v1/sandbox/abc/files?recursive=x", "", invalid("recursive must be true or false"));
}

#[tokio::test]
async fn bad_sessions() {
    for line in
        ["POST /v1/sandbox/abc/exec", "GET /v1/sandbox/abc/file/workspace/a", "PUT /v1/sandbox/abc/file/workspace/a"]
    {
        let mut request = request(line, r#"{"argv":["ls"]}"#);
        request.headers_mut().insert("session-id", "a..b".parse().unwrap());
        let (status, said) = json_of(send(request).await).await;
        assert_eq!(status, 400, "{line}");
        assert_eq!(said, json!({"error": "Invalid session ID format", "code": "invalid_request"}), "{line}");
    }
}

#[tokio::test]
async fn uploads_that_say_that_they_are_too_large() {
    let announced = |line: &str, len: u64| {
        let mut request = request(line, "x");
        request.headers_mut().insert("content-length", len.into());
        request
    };
    let (status, said) = json_of(send(announced("PUT /v1/sandbox/abc/file/workspace/a", 101)).await).await;
    assert_eq!(status, 413);
    let text = "payload too large: 101 bytes exceeds the 100-byte limit";
    assert_eq!(said, json!({"error": text, "code": "payload_too_large"}));
    let (status, said) = json_of(send(announced("POST /v1/sandbox/abc/hydrate", 101)).await).await;
    assert_eq!(status, 400);
    let text = "tar payload too large: 101 bytes exceeds the 100-byte limit";
    assert_eq!(said, json!({"error": text, "code": "invalid_request"}));
    let (status, _) = json_of(send(announced("PUT /v1/sandbox/abc/file/workspace/a", 100)).await).await;
    assert_eq!(status, 503);
}

#[test]
fn sessions_archives_mounts() {
    check("POST /v1/sandbox/abc/session", "", REACHES_THE_DAEMON);
    check("POST /v1/sandbox/abc/session", "x", invalid("Invalid JSON body"));
    check("POST /v1/sandbox/abc/session", r#"{"id":"a/b"}"#, invalid("Invalid session ID format"));
    check("POST /v1/sandbox/abc/persist?excludes=a,../b", "", invalid("exclude paths must not contain \"..\""));
    check("POST /v1/sandbox/abc/persist?excludes=a,b&root=/etc", "", REACHES_THE_DAEMON);
    check("POST /v1/sandbox/abc/hydrate", "", invalid("Empty tar payload"));
    check("POST /v1/sandbox/abc/hydrate", "tar", REACHES_THE_DAEMON);
    check("POST /v1/sandbox/abc/mount", "x", invalid("Invalid JSON body"));
    check("POST /v1/sandbox/abc/mount", "{}", invalid("mountPath must be a non-empty string"));
    let mount = r#"{"binding":"B","mountPath":"/d","options":{}}"#;
    check("POST /v1/sandbox/abc/mount", mount, REACHES_THE_DAEMON);
    let root = invalid("mountPath must not resolve to / (filesystem root)");
    check("POST /v1/sandbox/abc/unmount", r#"{"mountPath":"/a/.."}"#, root);
    check("POST /v1/sandbox/abc/mounts/sync", r#"{"mountPath":"/a/.."}"#, root);
    check(
        "POST /v1/sandbox/abc/mounts/sync",
        r#"{"mountPath":"a"}"#,
        invalid("mountPath must be an absolute path (start with /)"),
    );
    check("POST /v1/sandbox/abc/mounts/sync", r#"{"mountPath":"/a"}"#, REACHES_THE_DAEMON);
    check("POST /v1/sandbox/abc/unmount", r#"{"mountPath":"/a"}"#, REACHES_THE_DAEMON);
}

#[test]
fn tunnels() {
    for method in ["POST", "DELETE"] {
        for port in ["80", "3000", "65536", "x"] {
            check(&format!("{method} /v1/sandbox/abc/tunnel/{port}"), "", invalid("Invalid port"));
        }
    }
    let post = "POST /v1/sandbox/abc/tunnel/8080";
    check(post, r#"{"name":1}"#, invalid("name must be a string when provided"));
    check(post, "", (502, "tunnel_error", ""));
    check(post, r#"{"name":"web"}"#, (502, "tunnel_error", ""));
    check("DELETE /v1/sandbox/abc/tunnel/8080", "", (204, "", ""));
}

#[tokio::test]
async fn terminals() {
    let of = |query: &str, headers: &[(&'static str, &str)]| {
        let mut request = request(&format!("GET /v1/sandbox/abc/pty{query}"), "");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        async { json_of(send(request).await).await }
    };
    let said = |text: &str| (StatusCode::BAD_REQUEST, json!({"error": text, "code": "invalid_request"}));
    assert_eq!(of("?cols=x", &[]).await, said("WebSocket upgrade required"));
    let upgrade = ("upgrade", "websocket");
    assert_eq!(of("?cols=x&session=a/b", &[upgrade]).await, said("cols and rows must be valid numbers"));
    assert_eq!(of("?session=a/b", &[upgrade]).await, said("Invalid session ID format"));
}

#[test]
fn objects() {
    check("GET /v1/bindings/B/objects?limit=0", "", invalid("limit must be a number from 1 to 1000"));
    check("GET /v1/bindings/B/objects?limit=1000&prefix=a", "", REACHES_THE_DAEMON);
    check("GET /v1/bindings/B/objects/a/b", "", REACHES_THE_DAEMON);
    check("PUT /v1/bindings/B/objects/a%2Fb", "x", REACHES_THE_DAEMON);
    check("GET /v1/bindings/B/objects/%FF", "", invalid("a key must be UTF-8"));
    check("POST /v1/bindings/B/delete", "{}", invalid("keys must be an array of at most 1000 non-empty strings"));
}

/// A refused client that is still sending can read why: the rest of its body is taken before the connection closes.
#[tokio::test]
async fn a_refused_upload_is_read_to_its_end() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let chunks = futures_util::stream::iter(0..50).map(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok::<_, std::io::Error>(bytes::Bytes::from_static(&[0; 1024]))
    });
    let mut request = request("PUT /v1/sandbox/abc/file/etc/passwd", Body::from_stream(chunks));
    request.headers_mut().insert("content-length", 51_200.into());
    let (status, _) = json_of(send(request).await).await;
    assert_eq!((status.as_u16(), sent.load(Ordering::Relaxed)), (403, 50));
}
