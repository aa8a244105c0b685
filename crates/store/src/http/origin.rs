//! Whom requests are addressed to, and how they are signed: what [`super::HttpStore`] and [`super::Relay`] share.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use sandpail_s3::address::canonical_query;
use sandpail_s3::sign::{Dialect, Unsigned};
use sandpail_s3::{Address, Quirks, Signer};
use sandpail_spec::{Credentials, Endpoint, Provider};

use super::Timeouts;
use super::credentials::CredentialProvider;
use super::error::Names;
use crate::{StoreError, StoreResult};

/// From this difference on the provider's clock is believed more than ours.
const SKEW_MAX: Duration = Duration::from_secs(4 * 60);

/// Where requests go, and for which region they are signed.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) address: Address,
    pub(super) signer: Signer,
    /// The address as a URL and as the `Host` header, so that it is not parsed for each request.
    root: Option<(Uri, HeaderValue)>,
}

impl Target {
    pub(super) fn new(
        endpoint: Endpoint,
        bucket: &str,
        path_style: bool,
        dialect: &'static Dialect,
        region: String,
    ) -> Self {
        let address = Address::new(endpoint, bucket, path_style);
        let root = address.url("/", "").parse().ok().zip(HeaderValue::from_str(address.authority()).ok());
        Self { address, signer: Signer::new(dialect, region), root }
    }

    /// The URL of an encoded path, with an already encoded query.
    fn url(&self, path: &str, query: &str) -> Option<Uri> {
        let mut parts = self.root.as_ref()?.0.clone().into_parts();
        let mark = if query.is_empty() { "" } else { "?" };
        parts.path_and_query = Some(PathAndQuery::try_from([path, mark, query].concat()).ok()?);
        Uri::from_parts(parts).ok()
    }
}

/// A bucket's address and keys, and what was learned of both.
pub(super) struct Origin {
    pub(super) target: RwLock<Arc<Target>>,
    pub(super) bucket: String,
    pub(super) path_style: bool,
    pub(super) dialect: &'static Dialect,
    pub(super) names: Names,
    pub(super) quirks: Quirks,
    pub(super) credentials: Option<Arc<dyn CredentialProvider>>,
    pub(super) timeouts: Timeouts,
    /// The provider's clock minus ours, in seconds.
    pub(super) skew: AtomicI64,
}

/// A request before it is addressed and signed.
pub(super) struct Outgoing<'a> {
    pub(super) method: &'a Method,
    pub(super) key: Option<&'a str>,
    pub(super) query: &'a [(String, String)],
    pub(super) headers: &'a HeaderMap,
    pub(super) payload_hash: &'a str,
}

impl Origin {
    pub(super) fn target(&self) -> Arc<Target> {
        Arc::clone(&self.target.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Signs for another region from now on. Says whether that is a change.
    pub(super) fn move_to(&self, region: &str) -> bool {
        let mut target = self.target.write().unwrap_or_else(PoisonError::into_inner);
        let old = target.signer.region();
        let good = region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if old == region || region.is_empty() || region.len() > 64 || !good {
            return false;
        }
        tracing::info!(bucket = self.bucket, from = old, to = region, "the bucket is in another region");
        let mut endpoint = target.address.endpoint().clone();
        if self.quirks.provider == Provider::S3 && endpoint.host().ends_with(".amazonaws.com") {
            endpoint = endpoint.with_host(&format!("s3.{region}.amazonaws.com"));
        }
        *target = Arc::new(Target::new(endpoint, &self.bucket, self.path_style, self.dialect, region.to_owned()));
        true
    }

    /// Compares clocks. Says whether ours was corrected.
    pub(super) fn learn_clock(&self, server: Option<SystemTime>) -> bool {
        let Some(server) = server else { return false };
        let ours = self.now();
        let apart = server.duration_since(ours).unwrap_or_else(|error| error.duration());
        if apart < SKEW_MAX {
            return false;
        }
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0))
        };
        let skew = seconds(server) - seconds(SystemTime::now());
        tracing::warn!(
            seconds = skew,
            "this machine's clock differs from the store's; requests are signed with the store's time"
        );
        self.skew.store(skew, Ordering::Relaxed);
        true
    }

    /// The time by the provider's clock.
    pub(super) fn now(&self) -> SystemTime {
        let skew = self.skew.load(Ordering::Relaxed);
        let offset = Duration::from_secs(skew.unsigned_abs());
        let now = SystemTime::now();
        if skew >= 0 { now + offset } else { now.checked_sub(offset).unwrap_or(SystemTime::UNIX_EPOCH) }
    }

    pub(super) fn unreachable(&self, message: String) -> StoreError {
        StoreError::Unreachable { endpoint: self.names.endpoint.clone(), message }
    }

    /// Addresses a request to `target` and signs it, if there are keys.
    pub(super) fn request<B>(
        &self,
        target: &Target,
        outgoing: &Outgoing<'_>,
        credentials: Option<&Credentials>,
        body: B,
    ) -> StoreResult<Request<B>> {
        let path = target.address.path(outgoing.key);
        let query = canonical_query(outgoing.query);
        let invalid = || StoreError::Invalid { message: format!("{} is no URL", target.address.url(&path, &query)) };
        let mut request = Request::new(body);
        *request.method_mut() = outgoing.method.clone();
        *request.uri_mut() = target.url(&path, &query).ok_or_else(invalid)?;
        // Room for the signature and for what comes below.
        let mut headers = HeaderMap::with_capacity(outgoing.headers.len() + 5);
        for (name, value) in outgoing.headers {
            headers.append(name.clone(), value.clone());
        }
        if let Some(credentials) = credentials {
            let unsigned = Unsigned {
                method: outgoing.method.as_str(),
                authority: target.address.authority(),
                path: &path,
                query: outgoing.query,
                headers: outgoing.headers,
                payload_hash: outgoing.payload_hash,
            };
            let signed = target.signer.sign_into(&unsigned, credentials, self.now(), &mut headers);
            signed.map_err(|error| StoreError::Credentials { message: error.to_string() })?;
        }
        if let Some((_, authority)) = &target.root {
            headers.insert(header::HOST, authority.clone());
        }
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("sandpail/", env!("CARGO_PKG_VERSION"))));
        if self.quirks.unpacks_gzip {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        *request.headers_mut() = headers;
        Ok(request)
    }
}
