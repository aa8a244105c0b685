//! One bucket as S3 without a server: requests are answered in this process, and nobody asks who sends them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use s3s::service::{S3Service, S3ServiceBuilder};
use sandpail_store::Store;

use crate::service::{Buckets, Service};

/// A body as it streams.
pub type LocalBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Serves one store to callers in this process.
///
/// Requests are those of S3, path style, below the bucket's name, and need no signature: whoever can call is trusted.
pub struct Local {
    bucket: String,
    service: S3Service,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl Local {
    /// Serves `store` as `bucket`. Uploads over 8 MiB wait in files without names in `spool_directory` until they are
    /// whole.
    pub fn new(bucket: impl Into<String>, store: Arc<dyn Store>, spool_directory: impl Into<PathBuf>) -> Self {
        let bucket = bucket.into();
        let stores = BTreeMap::from([(bucket.clone(), store)]);
        let service = Service::new(Arc::new(Buckets::new(stores, None)), spool_directory.into());
        // Without `S3Auth` every request is one of nobody, and without `S3Access` nobody may do everything.
        Self { bucket, service: S3ServiceBuilder::new(service).build() }
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Answers one request. Refusals are answers, too, with an error document.
    pub async fn call(&self, request: Request<LocalBody>) -> Response<LocalBody> {
        use http_body_util::{BodyExt, Empty};
        match self.service.call(request.map(s3s::Body::http_body_unsync)).await {
            Ok(response) => response.map(|body| body.map_err(Into::into).boxed_unsync()),
            Err(error) => {
                tracing::error!(?error, bucket = self.bucket, "a request to an embedded bucket broke");
                let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            }
        }
    }
}
