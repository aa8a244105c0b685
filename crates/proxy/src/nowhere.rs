//! A bucket and a log that nothing comes to, for tests and fuzzers.

use async_trait::async_trait;
use http::Response;
use sandpail_store::http::{RelayBody, RelayError, RelayRequest};

use crate::{Audit, AuditRecord, Upstream};

/// A bucket and a log that nothing comes to.
#[derive(Debug)]
pub(crate) struct Nowhere;

#[async_trait]
impl Upstream for Nowhere {
    async fn send(&self, _: RelayRequest) -> Result<Response<RelayBody>, RelayError> {
        Err(RelayError::TryAgain)
    }

    fn region(&self) -> String {
        "eu-central-1".into()
    }
}

impl Audit for Nowhere {
    fn record(&self, _: AuditRecord) {}
}
