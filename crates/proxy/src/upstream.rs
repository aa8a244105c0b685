//! The bucket behind a route, over HTTP or in this process.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use http_body_util::combinators::UnsyncBoxBody;
use sandpail_s3::ChecksumKind;

/// Why a body broke.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body as it streams.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A request that was permitted, not yet signed.
pub struct UpstreamRequest {
    /// The method.
    pub method: Method,
    /// The key, decoded; none for the bucket.
    pub key: Option<String>,
    /// The query, decoded.
    pub query: Vec<(String, String)>,
    /// Headers beside those of address, length and signature.
    pub headers: HeaderMap,
    /// The SHA-256 of the body in hexadecimal, if the client vouched for it and it was or will be checked; else the body is sent
    /// unsigned.
    pub payload_hash: Option<String>,
    /// Length of the body in bytes.
    pub len: u64,
    /// The body: exactly `len` bytes, or an error.
    pub body: Body,
    /// The checksum that the body gives in trailers when it ends. To be passed on, where the provider takes it: it may
    /// want each part of a multipart upload to have one.
    pub trailer: Option<ChecksumKind>,
    /// The provider may work for minutes before it answers (copies, completions).
    pub is_slow: bool,
}

impl fmt::Debug for UpstreamRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamRequest").field("method", &self.method).field("key", &self.key).finish_non_exhaustive()
    }
}

/// Why there was no answer. Never holds a key or a signature.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The store cannot be reached, or broke off before it answered.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// It took too long.
    #[error("the store does not answer")]
    Timeout,
    /// The mount's own key cannot be had.
    #[error("the mount's credentials cannot be used: {0}")]
    Credentials(String),
    /// What refused the request was learned from (region, clock, new keys), but the body cannot be sent again.
    #[error("the request must be sent once more")]
    TryAgain,
    /// The provider has no counterpart for a header.
    #[error("{0} is not known to this provider")]
    Unsupported(String),
    /// The request cannot be sent.
    #[error("the request cannot be sent: {0}")]
    Invalid(String),
    /// The client's body broke, was too short, too long, or not what its checksum says.
    #[error("the body broke: {0}")]
    Body(String),
}

/// Sends permitted requests with the mount's own key.
#[async_trait]
pub trait Upstream: fmt::Debug + Send + Sync + 'static {
    /// Sends a request once and gives the answer's head as it comes; the body streams.
    ///
    /// # Errors
    /// [`UpstreamError`].
    async fn send(&self, request: UpstreamRequest) -> Result<Response<Body>, UpstreamError>;

    /// The region that clients are told (`GetBucketLocation`).
    fn region(&self) -> String;

    /// Whether objects are named by Google's headers (`x-goog-meta-*`).
    fn is_goog(&self) -> bool {
        false
    }
}
