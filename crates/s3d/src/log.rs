//! What is asked of the server: counted, recorded, delayed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey, SimpleAuth};
use s3s::path::S3Path;
use s3s::{S3Result, s3_error};

/// Older records are forgotten; counts are not.
const RECORD_COUNT_MAX: usize = 100_000;

/// One request that was understood and correctly signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// The operation's name as S3 has it: `GetObject`, `ListObjectsV2`.
    pub operation: String,
    /// The bucket, if one is named.
    pub bucket: Option<String>,
    /// The key, if one is named.
    pub key: Option<String>,
}

/// The requests that a server got.
#[derive(Debug, Default)]
pub struct RequestLog {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<String, u64>,
    records: VecDeque<RequestRecord>,
}

impl RequestLog {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, record: RequestRecord) {
        tracing::debug!(operation = record.operation, bucket = record.bucket, key = record.key, "request");
        let mut inner = self.inner();
        *inner.counts.entry(record.operation.clone()).or_default() += 1;
        if inner.records.len() == RECORD_COUNT_MAX {
            inner.records.pop_front();
        }
        inner.records.push_back(record);
    }

    /// Requests since the start or the last [`RequestLog::take`], by operation.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.inner().counts.clone()
    }

    /// The latest requests, oldest first.
    pub fn records(&self) -> Vec<RequestRecord> {
        self.inner().records.iter().cloned().collect()
    }

    /// Returns the counts and begins anew.
    pub fn take(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.inner()).counts
    }
}

/// Stands before every operation.
pub(crate) struct Gate {
    pub(crate) log: Arc<RequestLog>,
    pub(crate) latency: Duration,
}

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        if cx.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "Anonymous requests are not allowed"));
        }
        let (bucket, key) = match cx.s3_path() {
            S3Path::Root => (None, None),
            S3Path::Bucket { bucket } => (Some(bucket.to_string()), None),
            S3Path::Object { bucket, key } => (Some(bucket.to_string()), Some(key.to_string())),
        };
        self.log.add(RequestRecord { operation: cx.s3_op().name().to_owned(), bucket, key });
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        Ok(())
    }
}

/// The keys the server takes; others get the answer that S3 gives.
pub(crate) struct KnownKeys(pub(crate) SimpleAuth);

#[async_trait::async_trait]
impl S3Auth for KnownKeys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        self.0.lookup(access_key).cloned().ok_or_else(|| {
            s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records.")
        })
    }
}
