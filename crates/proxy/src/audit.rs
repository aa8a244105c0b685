//! What is told of each request.

use std::fmt;
use std::time::Duration;

/// One request that was answered. Holds no key, signature or query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditRecord {
    /// The sandbox it came from.
    pub sandbox: String,
    /// The mount ([`crate::RouteSpec::id`]), if one was found.
    pub mount: Option<String>,
    /// S3's name of the operation; `CONNECT` for a connection that was passed on; empty if it could not be told.
    pub operation: &'static str,
    /// The key, or the host; at most 1,024 bytes of it, control characters replaced.
    pub key: Option<String>,
    /// The HTTP status of the answer; 0 for a connection without one.
    pub status: u16,
    /// Bytes that the sandbox sent as body.
    pub bytes_in: u64,
    /// Bytes that the sandbox got as body.
    pub bytes_out: u64,
    /// From the head of the request to the end of the answer.
    pub duration: Duration,
    /// The rule that refused it ([`crate::Denied::rule`], or one of egress).
    pub refused: Option<&'static str>,
    /// The same as in the answer's `x-amz-request-id`.
    pub request_id: String,
}

/// Takes records; called once for each request, at its end. Must not block.
pub trait Audit: fmt::Debug + Send + Sync + 'static {
    /// One request.
    fn record(&self, record: AuditRecord);
}
