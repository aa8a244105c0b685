//! Bodies pass through in pieces, however many there are and however slow the store is. A program of its own: it looks
//! at the memory of its process.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{Proxy, request};
use futures_util::stream;
use http::{HeaderValue, Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use sandpail_proxy::{Access, Upstream};
use sandpail_store::http::{RelayBody, RelayError, RelayRequest};

const UPLOAD_COUNT: usize = 64;
/// Of one upload, in bytes: in the short form, and in the long one.
const LENS: [usize; 2] = [24 << 20, 1 << 30];
const PIECE: &[u8] = &[7; 64 << 10];

/// Takes bodies, slower than they come.
#[derive(Debug, Default)]
struct Slow {
    taken: AtomicU64,
}

#[async_trait]
impl Upstream for Slow {
    async fn send(&self, mut request: RelayRequest) -> Result<Response<RelayBody>, RelayError> {
        let mut count = 0_u32;
        while let Some(frame) = request.body.frame().await {
            let frame = frame.map_err(|error| RelayError::Body(error.to_string()))?;
            self.taken.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
            count += 1;
            if count.is_multiple_of(16) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        let mut answer = Response::new(common::bytes(""));
        answer.headers_mut().insert("etag", HeaderValue::from_static("\"e\""));
        Ok(answer)
    }

    fn region(&self) -> String {
        "us-east-1".into()
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_uploads_take_little_memory() {
    let len = LENS[usize::from(std::env::var_os("SANDPAIL_LONG").is_some())];
    let upstream = Arc::new(Slow::default());
    let proxy = Proxy::start(Arc::clone(&upstream) as Arc<dyn Upstream>, "/", Access::ReadWrite).await;
    let before = resident();
    let uploads: Vec<_> = (0..UPLOAD_COUNT)
        .map(|number| {
            let client = proxy.client();
            tokio::spawn(async move {
                let frames = (0..len / PIECE.len()).map(|_| Ok(Frame::data(Bytes::from_static(PIECE))));
                let mut put = request(Method::PUT, &format!("k{number}"), &[], "");
                (put.len, put.body) = (len as u64, StreamBody::new(stream::iter(frames)).boxed_unsync());
                client.send(put).await.unwrap().status()
            })
        })
        .collect();
    let mut most = 0;
    while uploads.iter().any(|upload| !upload.is_finished()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        most = most.max(resident());
    }
    for upload in uploads {
        assert_eq!(upload.await.unwrap(), 200);
    }
    let total = (UPLOAD_COUNT * len) as u64;
    assert_eq!(upstream.taken.load(Ordering::Relaxed), total);
    // Both the clients and the proxy are in this process: 64 of each.
    let grown = most.saturating_sub(before);
    println!("{UPLOAD_COUNT} uploads, {total} bytes: memory grew by {} KiB", grown >> 10);
    assert!(grown < 64 << 20, "{grown} bytes for {total}");
}
