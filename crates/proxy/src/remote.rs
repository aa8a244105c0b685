//! A bucket behind an S3 endpoint.

use async_trait::async_trait;
use http::Response;
use sandpail_spec::Provider;
use sandpail_store::http::{Relay, RelayError, RelayRequest};

use crate::{Body, Upstream, UpstreamError, UpstreamRequest};

/// Sends requests with the mount's own key to a provider.
#[derive(Debug)]
pub struct Remote(Relay);

impl Remote {
    /// Of [`sandpail_store::http::HttpStoreBuilder::build_relay`].
    pub fn new(relay: Relay) -> Self {
        Self(relay)
    }
}

#[async_trait]
impl Upstream for Remote {
    async fn send(&self, request: UpstreamRequest) -> Result<Response<Body>, UpstreamError> {
        let UpstreamRequest { method, key, query, headers, payload_hash, len, body, trailer, is_slow } = request;
        let request = RelayRequest { method, key, query, headers, payload_hash, len, body, trailer, is_slow };
        self.0.send(request).await.map_err(|error| match error {
            RelayError::Unreachable(cause) => UpstreamError::Unreachable(cause),
            RelayError::Timeout(_) => UpstreamError::Timeout,
            RelayError::TryAgain => UpstreamError::TryAgain,
            RelayError::Credentials(cause) => UpstreamError::Credentials(cause),
            RelayError::Body(cause) => UpstreamError::Body(cause),
            RelayError::Unsupported(what) => UpstreamError::Unsupported(what),
            RelayError::Invalid(cause) => UpstreamError::Invalid(cause),
        })
    }

    fn region(&self) -> String {
        self.0.region()
    }

    fn is_goog(&self) -> bool {
        self.0.provider() == Provider::Gcs
    }
}
