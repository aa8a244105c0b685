//! A bucket in this process.

use async_trait::async_trait;
use http::{HeaderValue, Request, Response, header};
use sandpail_s3::address::{canonical_query, encode_key};
use sandpail_s3d::Local;
use sandpail_store::http::{RelayBody, RelayError, RelayRequest};

use crate::Upstream;

/// Hands requests to an embedded bucket, which needs no keys.
#[derive(Debug)]
pub struct Embedded(Local);

impl Embedded {
    /// For one bucket.
    pub fn new(local: Local) -> Self {
        Self(local)
    }
}

#[async_trait]
impl Upstream for Embedded {
    async fn send(&self, request: RelayRequest) -> Result<Response<RelayBody>, RelayError> {
        let mut url = format!("/{}", encode_key(self.0.bucket()));
        if let Some(key) = &request.key {
            url.push('/');
            url.push_str(&encode_key(key));
        }
        if !request.query.is_empty() {
            url.push('?');
            url.push_str(&canonical_query(&request.query));
        }
        let mut local = Request::new(request.body);
        *local.method_mut() = request.method;
        *local.uri_mut() = url.parse().map_err(|_| RelayError::Invalid("the key makes no URL".into()))?;
        *local.headers_mut() = request.headers;
        local.headers_mut().insert(header::HOST, HeaderValue::from_static("embedded"));
        local.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(request.len));
        Ok(self.0.call(local).await)
    }

    fn region(&self) -> String {
        "us-east-1".into()
    }
}
