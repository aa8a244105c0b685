//! The bucket behind a route, over HTTP or in this process.

use std::fmt;

use async_trait::async_trait;
use http::Response;
use sandpail_spec::Provider;
use sandpail_store::http::{Relay, RelayBody, RelayError, RelayRequest};

/// Sends permitted requests with the mount's own key.
#[async_trait]
pub trait Upstream: fmt::Debug + Send + Sync + 'static {
    /// Sends a request once and gives the answer's head as it comes; the body streams.
    ///
    /// # Errors
    /// [`RelayError`], whose details may name the operator's hosts and files.
    async fn send(&self, request: RelayRequest) -> Result<Response<RelayBody>, RelayError>;

    /// The region that clients are told (`GetBucketLocation`).
    fn region(&self) -> String;

    /// Whether objects are named by Google's headers (`x-goog-meta-*`).
    fn is_goog(&self) -> bool {
        false
    }
}

#[async_trait]
impl Upstream for Relay {
    async fn send(&self, request: RelayRequest) -> Result<Response<RelayBody>, RelayError> {
        Self::send(self, request).await
    }

    fn region(&self) -> String {
        Self::region(self)
    }

    fn is_goog(&self) -> bool {
        self.provider() == Provider::Gcs
    }
}
