//! Bodies of requests: read while they are sent, and readable again for the next try.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use sandpail_s3::{ChecksumKind, Checksummer};
use tokio::task::JoinHandle;

use crate::{PutBody, StoreError, StoreResult};

/// How much of a file is read at once.
const CHUNK_LEN: u64 = 256 << 10;
/// Bodies up to this length are summed up without a thread of their own.
const INLINE_SUM_LEN: u64 = 128 << 10;

/// How far a body has been sent, for the timeouts.
#[derive(Debug, Default)]
pub(super) struct Progress {
    left: AtomicU64,
    failed: Mutex<Option<io::Error>>,
}

impl Progress {
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Why the local file could not be read.
    pub(super) fn failure(&self) -> Option<io::Error> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// One sending of a body.
pub(super) struct UploadBody {
    rest: Rest,
    left: u64,
    progress: Arc<Progress>,
}

enum Rest {
    Chunks(std::vec::IntoIter<Bytes>),
    File { file: Arc<File>, next: u64, end: u64, reading: Option<JoinHandle<io::Result<Bytes>>> },
}

impl UploadBody {
    pub(super) fn new(body: &PutBody) -> (Self, Arc<Progress>) {
        let left = body.len();
        let progress = Arc::new(Progress { left: AtomicU64::new(left), failed: Mutex::new(None) });
        let rest = match body {
            PutBody::Chunks(chunks) => Rest::Chunks(chunks.clone().into_iter()),
            PutBody::File { file, range } => {
                Rest::File { file: Arc::clone(file), next: range.start, end: range.end, reading: None }
            }
        };
        (Self { rest, left, progress: Arc::clone(&progress) }, progress)
    }
}

fn read_chunk(file: &File, offset: u64, end: u64) -> io::Result<Bytes> {
    let len = usize::try_from((end - offset).min(CHUNK_LEN)).unwrap_or(0);
    let mut buffer = vec![0; len];
    file.read_exact_at(&mut buffer, offset)?;
    Ok(buffer.into())
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let chunk = match &mut this.rest {
            Rest::Chunks(chunks) => match chunks.find(|chunk| !chunk.is_empty()) {
                Some(chunk) => chunk,
                None => return Poll::Ready(None),
            },
            Rest::File { file, next, end, reading } => {
                if reading.is_none() && next >= end {
                    return Poll::Ready(None);
                }
                let start = |next: u64| {
                    let (file, end) = (Arc::clone(file), *end);
                    tokio::task::spawn_blocking(move || read_chunk(&file, next, end))
                };
                let handle = reading.get_or_insert_with(|| start(*next));
                let read = match Pin::new(handle).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(read) => read.unwrap_or_else(|error| Err(io::Error::other(error))),
                };
                *reading = None;
                match read {
                    Ok(chunk) => {
                        *next += chunk.len() as u64;
                        // The next chunk is read while this one is sent.
                        if *next < *end {
                            *reading = Some(start(*next));
                        }
                        chunk
                    }
                    Err(error) => {
                        let copy = io::Error::new(error.kind(), error.to_string());
                        *this.progress.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy);
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        };
        this.left = this.left.saturating_sub(chunk.len() as u64);
        this.progress.left.store(this.left, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The error of a file that is to be uploaded.
pub(super) fn file_error(source: io::Error) -> StoreError {
    StoreError::Io { what: "read the bytes to upload".into(), source }
}

/// Sums up a body before it is sent.
pub(super) async fn checksum(kind: ChecksumKind, body: &PutBody) -> StoreResult<Option<String>> {
    if kind == ChecksumKind::None {
        return Ok(None);
    }
    let body = body.clone();
    let is_short = body.len() <= INLINE_SUM_LEN && matches!(body, PutBody::Chunks(_));
    let sum = move || -> io::Result<Option<String>> {
        let mut sum = Checksummer::new(kind);
        match body {
            PutBody::Chunks(chunks) => chunks.iter().for_each(|chunk| sum.update(chunk)),
            PutBody::File { file, range } => {
                let mut next = range.start;
                while next < range.end {
                    let chunk = read_chunk(&file, next, range.end)?;
                    sum.update(&chunk);
                    next += chunk.len() as u64;
                }
            }
        }
        Ok(sum.finish())
    };
    let result = if is_short {
        sum()
    } else {
        tokio::task::spawn_blocking(sum).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    };
    result.map_err(file_error)
}
