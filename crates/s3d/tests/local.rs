//! A bucket that is served inside this process, without keys.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use sandpail_s3d::{Local, LocalBody};
use sandpail_store::memory::MemoryStore;

fn request(method: Method, path: &str, headers: &[(&str, &str)], body: &'static [u8]) -> Request<LocalBody> {
    let mut request = Request::builder().method(method).uri(path).header("host", "embedded");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request = request.header("content-length", body.len());
    request.body(Full::new(Bytes::from_static(body)).map_err(|never| match never {}).boxed_unsync()).unwrap()
}

async fn text(response: Response<LocalBody>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn serves_without_keys() {
    let spool = tempfile::tempdir().unwrap();
    let local = Local::new("photos", Arc::new(MemoryStore::new()), spool.path());

    let put = local.call(request(Method::PUT, "/photos/a/b%20c", &[("x-amz-meta-k", "v")], b"hello")).await;
    assert_eq!(put.status(), StatusCode::OK);
    let get = local.call(request(Method::GET, "/photos/a/b%20c", &[("range", "bytes=1-2")], b"")).await;
    assert_eq!(get.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(get.headers()["content-range"], "bytes 1-2/5");
    assert_eq!(get.headers()["x-amz-meta-k"], "v");
    assert_eq!(text(get).await, "el");

    let list = local.call(request(Method::GET, "/photos?list-type=2&prefix=a%2F", &[], b"")).await;
    assert!(text(list).await.contains("<Key>a/b c</Key>"));
    let copy = [("x-amz-copy-source", "photos/a/b%20c")];
    assert_eq!(local.call(request(Method::PUT, "/photos/d", &copy, b"")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn refuses_with_error_documents() {
    let spool = tempfile::tempdir().unwrap();
    let local = Local::new("photos", Arc::new(MemoryStore::new()), spool.path());
    let absent = local.call(request(Method::GET, "/photos/none", &[], b"")).await;
    assert_eq!(absent.status(), StatusCode::NOT_FOUND);
    assert!(text(absent).await.contains("<Code>NoSuchKey</Code>"));
    let elsewhere = local.call(request(Method::GET, "/other/none", &[], b"")).await;
    assert!(text(elsewhere).await.contains("<Code>NoSuchBucket</Code>"));
}
