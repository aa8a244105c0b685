//! A bucket behind an S3 endpoint.
//!
//! ```
//! use std::sync::Arc;
//! use sandpail_spec::{Credentials, SecretKey};
//! use sandpail_store::http::{HttpStore, StaticCredentials};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = Credentials {
//!     access_key_id: "test".into(),
//!     secret_access_key: SecretKey::new("testtest"),
//!     session_token: None,
//! };
//! let store = HttpStore::builder("http://127.0.0.1:9000".parse()?, "bucket")
//!     .credentials(Arc::new(StaticCredentials::new(key)))
//!     .build()?;
//! # Ok(())
//! # }
//! ```

mod body;
#[cfg(feature = "aws-chain")]
mod chain;
mod connect;
mod counters;
mod credentials;
mod download;
mod error;
mod framed;
mod goog;
mod headers;
mod limiter;
mod marker;
mod origin;
mod probe;
mod relay;
mod send;
mod sums;
mod wire;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use md5::{Digest, Md5};
use sandpail_s3::call::BadHeader;
use sandpail_s3::sign::Dialect;
use sandpail_s3::sign::goog4::GOOG4;
use sandpail_s3::sign::sigv4::SIGV4;
use sandpail_s3::xml::{self, CompletedPart, XmlError};
use sandpail_s3::{Call, ChecksumKind, Quirks, checksum, list};
use sandpail_spec::{Endpoint, Provider};

#[cfg(feature = "aws-chain")]
pub use chain::AwsChain;
pub use connect::{Connections, is_asked};
pub use counters::RequestCounts;
pub use credentials::{CredentialProvider, StaticCredentials, environment};
pub use probe::{FirstAnswer, ProbeStep, ProviderProfile};
pub use relay::{BodyError, Relay, RelayBody, RelayError, RelayRequest};

use self::connect::Connector;
use self::error::{Failure, Names};
use self::headers::{object_info, with_attributes, with_placement, with_tagging};
use self::limiter::Limiter;
use self::origin::{Origin, Target};
use self::send::{Reply, Shared};
use self::sums::{Sent, Sums};
use crate::{
    Capabilities, Condition, CopySource, Download, ETag, ListPage, ListRequest, ListedObject, ListedPart,
    ObjectAttributes, ObjectInfo, ObjectKey, Part, Proof, PutBody, PutOutcome, Store, StoreError, StoreResult,
    UploadId, UploadInProgress,
};

/// Most keys of one DeleteObjects.
const DELETE_BATCH_LEN: usize = 1000;
/// How long [`Store::check_bucket`] tries: somebody waits for the answer.
const CHECK_DEADLINE: Duration = Duration::from_secs(5);

/// Connections without work are closed after this long, before most servers do it.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// From the end of a request to the beginning of its answer.
    pub first_byte: Duration,
    /// The same for copies and completions, which some providers answer only when they are done.
    pub slow: Duration,
    /// Without a byte moving, in either direction.
    pub stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(30),
            slow: Duration::from_secs(300),
            stall: Duration::from_secs(30),
        }
    }
}

/// Says how to reach a bucket. From [`HttpStore::builder`].
#[derive(Debug)]
pub struct HttpStoreBuilder {
    endpoint: Endpoint,
    bucket: String,
    provider: Provider,
    region: Option<String>,
    credentials: Option<Arc<dyn CredentialProvider>>,
    path_style: Option<bool>,
    ca_file: Option<PathBuf>,
    insecure: bool,
    max_connections: usize,
    timeouts: Timeouts,
    retry_deadline: Duration,
    capabilities: Option<Capabilities>,
    checksum: Option<ChecksumKind>,
    profile: Option<ProviderProfile>,
    connections: Option<Arc<dyn Connections>>,
}

impl HttpStoreBuilder {
    /// Whose dialect it is; detected by the host unless given.
    #[must_use]
    pub fn provider(mut self, provider: Provider) -> Self {
        self.provider = provider;
        self
    }

    /// The region to sign for; the provider's usual one unless given. Another one that the server names is followed.
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// Where keys come from; without them requests are anonymous.
    #[must_use]
    pub fn credentials(mut self, credentials: Arc<dyn CredentialProvider>) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Whether the bucket stands in the path (`true`) or in the host name (`false`).
    #[must_use]
    pub fn path_style(mut self, path_style: bool) -> Self {
        self.path_style = Some(path_style);
        self
    }

    /// A file of certificates (PEM) to trust beside the machine's own.
    #[must_use]
    pub fn ca_file(mut self, ca_file: PathBuf) -> Self {
        self.ca_file = Some(ca_file);
        self
    }

    /// Takes any certificate: whoever is on the way can read and change everything.
    #[must_use]
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    /// Most requests under way; a download counts until its answer has begun.
    #[must_use]
    pub fn max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// How long to wait for what.
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// How long a request is tried again after failures that may pass.
    #[must_use]
    pub fn retry_deadline(mut self, retry_deadline: Duration) -> Self {
        self.retry_deadline = retry_deadline;
        self
    }

    /// What the provider can do, in place of the provider's table and of a profile.
    #[must_use]
    pub fn capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = Some(capabilities);
        self
    }

    /// What [`HttpStore::probe`] found out, in place of the provider's table.
    #[must_use]
    pub fn profile(mut self, profile: ProviderProfile) -> Self {
        self.profile = Some(profile);
        self
    }

    /// The checksum of uploads, in place of the provider's table.
    #[must_use]
    pub fn checksum(mut self, checksum: ChecksumKind) -> Self {
        self.checksum = Some(checksum);
        self
    }

    /// Tells of each connection that the store opens.
    #[must_use]
    pub fn watched_by(mut self, connections: Arc<dyn Connections>) -> Self {
        self.connections = Some(connections);
        self
    }

    /// Makes the store. Nothing is sent yet.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if TLS cannot be set up.
    pub fn build(self) -> StoreResult<HttpStore> {
        let mut quirks = Quirks::of(self.provider).clone();
        if let Some(checksum) = self.checksum {
            quirks.checksum = checksum;
        }
        let mut sums = Sums::new(quirks.checksum, self.checksum.is_none() && self.provider == Provider::Generic);
        if let Some(profile) = &self.profile {
            quirks.conditional_put = profile.conditional_put;
            quirks.conditional_delete = profile.conditional_delete;
            quirks.part_copy = profile.part_copy;
            quirks.equal_parts = !profile.unequal_parts;
            quirks.url_encoded_lists = profile.url_encoded_lists;
            quirks.delete_objects = profile.delete_objects;
            sums.was_probed(profile.checks(ChecksumKind::Crc32c));
        }
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(self.max_connections)
            .pool_timer(TokioTimer::new())
            .build(self.connector()?);
        let capabilities = self.capabilities.clone().unwrap_or(Capabilities {
            conditional_put: quirks.conditional_put,
            conditional_delete: quirks.conditional_delete,
            part_copy: quirks.part_copy,
            equal_parts: quirks.equal_parts,
            part_len_min: quirks.part_len_min,
            part_len_max: quirks.part_len_max,
            part_count_max: quirks.part_count_max,
            put_len_max: quirks.put_len_max,
            copy_len_max: quirks.copy_len_max,
        });
        let single_deletes = AtomicBool::new(!quirks.delete_objects);
        let (max_connections, retry_deadline) = (self.max_connections, self.retry_deadline);
        let shared = Shared {
            // Google takes Amazon's signature, too, and then Amazon's headers.
            origin: self.origin(quirks, &SIGV4),
            client,
            sums,
            capabilities,
            retry_deadline,
            limiter: Limiter::new(max_connections),
            counters: counters::Counters::default(),
            is_seaweedfs: AtomicBool::new(false),
        };
        Ok(HttpStore { shared: Arc::new(shared), single_deletes })
    }

    /// Makes a relay: it sends single requests that others made, with this bucket's address and keys. Nothing is sent
    /// yet.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if TLS cannot be set up.
    pub fn build_relay(self) -> StoreResult<Relay> {
        let quirks = Quirks::of(self.provider).clone();
        let dialect = if self.provider == Provider::Gcs { &GOOG4 } else { &SIGV4 };
        let connector = self.connector()?;
        let idle_count_max = self.max_connections;
        Ok(Relay::new(self.origin(quirks, dialect), connector, idle_count_max))
    }

    fn connector(&self) -> StoreResult<Connector> {
        let connector = if self.endpoint.is_tls() {
            Connector::tls(self.timeouts.connect, self.ca_file.as_deref(), self.insecure)?
        } else {
            Connector::plain(self.timeouts.connect)
        };
        Ok(connector.watched_by(self.connections.clone()))
    }

    fn origin(self, quirks: Quirks, dialect: &'static Dialect) -> Origin {
        let path_style = self.path_style.unwrap_or_else(|| {
            let host = self.endpoint.host();
            let is_address = host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok();
            quirks.path_style
                || is_address
                || host == "localhost"
                || self.bucket.contains(['.', '_'])
                || self.bucket.chars().any(char::is_uppercase)
        });
        let region = self.region.unwrap_or_else(|| quirks.region_at(&self.endpoint));
        let names = Names { bucket: self.bucket.clone(), endpoint: self.endpoint.to_string() };
        Origin {
            target: RwLock::new(Arc::new(Target::new(self.endpoint, &self.bucket, path_style, dialect, region))),
            bucket: self.bucket,
            path_style,
            dialect,
            names,
            quirks,
            credentials: self.credentials,
            timeouts: self.timeouts,
            skew: AtomicI64::new(0),
        }
    }
}

/// A bucket behind an S3 endpoint.
pub struct HttpStore {
    shared: Arc<Shared>,
    /// DeleteObjects turned out not to work here.
    single_deletes: AtomicBool,
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.shared.target();
        f.debug_struct("HttpStore")
            .field("target", &target)
            .field("provider", &self.shared.quirks.provider)
            .field("credentials", &self.shared.credentials)
            .finish_non_exhaustive()
    }
}

fn not_s3(call: &Call) -> impl Fn(XmlError) -> StoreError {
    let operation = call.operation;
    move |error| StoreError::Protocol { message: format!("{operation}: {error}") }
}

fn bad_header(error: BadHeader) -> StoreError {
    StoreError::Invalid { message: error.to_string() }
}

/// Adds the condition that the write's target must meet.
fn with_condition(call: Call, condition: &Condition) -> Call {
    match condition {
        Condition::Always => call,
        Condition::Absent => call.if_absent(),
        Condition::Matches(etag) => call.if_match(etag.as_str()),
    }
}

/// The error of a lost answer that could not be cleared up.
fn unclear(key: &ObjectKey) -> StoreError {
    StoreError::Server {
        message: format!(
            "the answer to a conditional write of object {key:?} was lost; whether it was stored is not known"
        ),
    }
}

impl HttpStore {
    /// Begins to describe a bucket at `endpoint`.
    pub fn builder(endpoint: Endpoint, bucket: &str) -> HttpStoreBuilder {
        let provider = Provider::detect(endpoint.host());
        HttpStoreBuilder {
            endpoint,
            bucket: bucket.into(),
            provider,
            region: None,
            credentials: None,
            path_style: None,
            ca_file: None,
            insecure: false,
            max_connections: 64,
            timeouts: Timeouts::default(),
            retry_deadline: Duration::from_secs(60),
            capabilities: None,
            checksum: None,
            profile: None,
            connections: None,
        }
    }

    /// Requests so far.
    pub fn counters(&self) -> RequestCounts {
        self.shared.counters.snapshot()
    }

    /// The provider's clock minus ours, in seconds, as far as a refused signature has shown it.
    pub fn clock_skew(&self) -> i64 {
        self.shared.skew.load(Ordering::Relaxed)
    }

    /// The bound on requests under way: lower than asked for while the provider throttles.
    pub fn connection_limit(&self) -> usize {
        self.shared.limiter.limit()
    }

    /// Makes the bucket; one of ours that is there already is as good.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] if somebody else has it; [`StoreError::Denied`].
    pub async fn create_bucket(&self) -> StoreResult<()> {
        match self.ask(&Call::create_bucket()).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.code == "BucketAlreadyOwnedByYou" => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    async fn ask(&self, call: &Call) -> Result<Reply, Failure> {
        self.shared.ask(call).await
    }

    /// Sends a body with its checksum. Gives the answer and the checksum.
    async fn upload(&self, call: Call, body: &PutBody) -> Result<(Reply, Option<Sent>), Failure> {
        let sums = &self.shared.sums;
        let is_conditional = call.headers.contains_key("if-match") || call.headers.contains_key("if-none-match");
        let mut differed = false;
        loop {
            let kinds = sums.kinds();
            let (mut call, mut sent) = (call.clone(), Vec::new());
            for kind in kinds {
                if let (Some(name), Some(sum)) = (kind.header(), body::checksum(*kind, body).await?) {
                    call = call.header(name, &sum).map_err(bad_header)?;
                    sent.push((*kind, sum));
                }
            }
            let result = self.shared.exchange(&call, Some(body), false, self.shared.retry_deadline).await;
            if let Ok(reply) = &result
                && let Some(difference) = sums.difference(&sent, reply)
            {
                let message = format!("the store has other bytes than were sent: {difference}");
                // Once more, where that does no harm; a condition would see our own write.
                if is_conditional || std::mem::replace(&mut differed, true) {
                    return Err(Failure::lasting(StoreError::Integrity { message }));
                }
                tracing::warn!(message, "sending it again");
                continue;
            }
            match result {
                // Stored, but nobody checked the bytes: once more, where that does no harm.
                Ok(reply) if !sums.answered(kinds, sent.last().map(|(_, sum)| &**sum), &reply) && !is_conditional => {}
                // The table's, if there are two: the other is still being tried.
                Ok(reply) => return Ok((reply, sent.into_iter().next())),
                Err(failure) if sums.refused(kinds, &failure) => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    /// The ETag header, without which a write is not believed.
    fn etag_of(&self, call: &str, key: &ObjectKey, reply: &Reply) -> StoreResult<ETag> {
        let etag = reply.header("etag").filter(|etag| !etag.is_empty());
        etag.map(ETag::new)
            .ok_or_else(|| StoreError::Protocol { message: format!("{call} of {key:?}: no ETag in the answer") })
    }

    /// A conditional write was refused after an earlier try whose answer was lost: was that try the one that won?
    /// `is_ours` judges the stored version.
    async fn settle(
        &self,
        key: &ObjectKey,
        refusal: StoreError,
        is_ours: impl FnOnce(&ObjectInfo) -> Option<bool>,
    ) -> StoreResult<PutOutcome> {
        let stored = match self.head(key).await {
            Ok(info) => info,
            Err(StoreError::NotFound { .. }) => return Err(refusal),
            Err(_) => return Err(unclear(key)),
        };
        match is_ours(&stored) {
            Some(true) => {
                let proof = Proof::default();
                Ok(PutOutcome { etag: stored.etag, last_modified: Some(stored.last_modified), proof })
            }
            Some(false) => Err(refusal),
            None => Err(unclear(key)),
        }
    }

    fn source_of(&self, source: &CopySource) -> String {
        self.shared.target().address.copy_source(source.key.as_str())
    }

    /// Errors of a copy speak of the source where the source is at fault.
    fn copy_error(source: &CopySource, failure: Failure) -> StoreError {
        match failure.error {
            StoreError::NotFound { what } if !what.starts_with("upload") || failure.code == "NoSuchKey" => {
                StoreError::no_object(&source.key)
            }
            error => error,
        }
    }

    /// UploadPartCopy, whether or not the provider is said to have it.
    async fn copy_part(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        number: u32,
        source: &CopySource,
        range: Range<u64>,
    ) -> StoreResult<Part> {
        let etag = source.etag.as_ref().map(ETag::as_str);
        let call = Call::upload_part_copy(key.as_str(), &id.0, number, &self.source_of(source), etag, &range);
        let reply = match self.ask(&call).await {
            Ok(reply) => reply,
            Err(failure) if matches!(failure.error, StoreError::Precondition { .. }) => {
                return Err(StoreError::changed(&source.key));
            }
            Err(failure) => return Err(Self::copy_error(source, failure)),
        };
        match xml::parse_copy(reply.bytes()).map_err(not_s3(&call))? {
            Ok(result) => Ok(Part { number, etag: ETag::new(&result.etag), checksum: result.crc64nvme }),
            Err(error) => Err(StoreError::Server { message: format!("copy of a part of {key:?}: {}", error.code) }),
        }
    }

    async fn delete_batch(
        &self,
        keys: &[&ObjectKey],
        failed: &mut Vec<(ObjectKey, StoreError)>,
    ) -> Result<(), Failure> {
        let body = xml::delete_body(keys.iter().map(|key| key.as_str()));
        let md5 = checksum::of(ChecksumKind::ContentMd5, body.as_bytes()).unwrap_or_default();
        let kind = self.shared.quirks.checksum;
        let more = checksum::of(kind, body.as_bytes());
        let mut call = Call::delete_many(body).header("content-md5", &md5).map_err(bad_header)?;
        if let (Some(name), Some(value)) = (kind.header(), &more) {
            call = call.header(name, value).map_err(bad_header)?;
        }
        let reply = self.ask(&call).await?;
        let answer = xml::parse_delete(reply.bytes()).map_err(not_s3(&call))?;
        for (key, document) in answer.unwrap_or_default() {
            // A key that is gone is as good as removed.
            if document.code == "NoSuchKey" {
                continue;
            }
            let Some(key) = keys.iter().find(|known| known.as_str() == key) else { continue };
            let message = format!("DeleteObjects of {key:?}: {}: {}", document.code, error::clean(&document.message));
            let error = match document.code.as_str() {
                "AccessDenied" => StoreError::Denied { message },
                "SlowDown" | "ServiceUnavailable" => StoreError::Throttled { message },
                _ => StoreError::Server { message },
            };
            failed.push(((*key).clone(), error));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for HttpStore {
    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    fn has_directories(&self) -> bool {
        self.shared.has_directories()
    }

    fn describe(&self) -> String {
        format!("s3://{} at {}", self.shared.bucket, self.shared.target().address.endpoint())
    }

    fn check_key(&self, key: &ObjectKey) -> StoreResult<()> {
        if key.as_str().contains('\\') && self.shared.turns_backslashes() {
            let message = format!("SeaweedFS stores a backslash as '/', so the key {key:?} cannot be kept there");
            return Err(StoreError::Invalid { message });
        }
        Ok(())
    }

    async fn check_bucket(&self, prefix: &str) -> StoreResult<()> {
        let call = Call::list(prefix, false, None, None, 1);
        let deadline = CHECK_DEADLINE.min(self.shared.retry_deadline);
        let reply =
            self.shared.exchange(&call, None, false, deadline).await.map_err(|failure| match failure.error {
                // A directory whose names nobody may see is none, so reading alone is not enough.
                StoreError::Denied { message } => StoreError::Denied {
                    message: format!("{message}; give these keys the permission to list it (s3:ListBucket)"),
                },
                error => error,
            })?;
        list::parse_objects(reply.bytes()).map_err(not_s3(&call))?;
        Ok(())
    }

    async fn head(&self, key: &ObjectKey) -> StoreResult<ObjectInfo> {
        let reply = self.ask(&Call::head(key.as_str())).await.map_err(|failure| failure.error)?;
        let protocol = |message: String| StoreError::Protocol { message: format!("HeadObject of {key:?}: {message}") };
        let length = reply.header("content-length").and_then(|length| length.trim().parse().ok());
        let size = length.ok_or_else(|| protocol("no Content-Length".into()))?;
        let mut info = object_info(&reply.headers, size, None).map_err(protocol)?;
        if key.as_str().ends_with('/') {
            if self.shared.loses_marker_metadata() && marker::is_implied(&info) {
                return Err(StoreError::no_object(key));
            }
            marker::unpack(&mut info.attributes);
        }
        Ok(info)
    }

    async fn proof(&self, key: &ObjectKey, etag: &ETag) -> StoreResult<Proof> {
        let mut call = Call::head(key.as_str());
        if self.shared.sums.are_kept() {
            call = call.with_checksum();
        }
        let reply = self.ask(&call).await.map_err(|failure| failure.error)?;
        if self.etag_of("HeadObject", key, &reply)? != *etag {
            return Err(StoreError::changed(key));
        }
        Ok(proof_of(&reply))
    }

    async fn tagging(&self, key: &ObjectKey) -> StoreResult<Option<String>> {
        let call = Call::get_tagging(key.as_str());
        let reply = self.ask(&call).await.map_err(|failure| failure.error)?;
        let tags = xml::parse_tagging(reply.bytes()).map_err(not_s3(&call))?;
        Ok((!tags.is_empty()).then(|| headers::tagging(&tags)))
    }

    async fn get(&self, key: &ObjectKey, range: Range<u64>, etag: Option<&ETag>) -> StoreResult<Download> {
        download::open(Arc::clone(&self.shared), key, range, etag).await
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: PutBody,
        attributes: &ObjectAttributes,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        self.check_key(key)?;
        let packed =
            (key.as_str().ends_with('/') && self.shared.loses_marker_metadata()).then(|| marker::pack(attributes));
        let attributes = packed.as_ref().unwrap_or(attributes);
        let call =
            with_condition(with_tagging(with_attributes(Call::put(key.as_str()), attributes)?, attributes)?, condition);
        match self.upload(call, &body).await {
            Ok((reply, sent)) => {
                let etag = self.etag_of("PutObject", key, &reply)?;
                let mut proof = proof_of(&reply);
                if let (None, Some((kind, sum))) = (&proof.checksum, sent) {
                    proof.checksum = kind.name().map(|name| format!("{name}:{sum}"));
                }
                Ok(PutOutcome { etag, last_modified: None, proof })
            }
            Err(failure) if failure.maybe_done && matches!(failure.error, StoreError::Precondition { .. }) => {
                let md5 = md5_hex(&body).await?;
                self.settle(key, failure.error, |stored| {
                    // Where the ETag is the MD5 of the bytes it tells; elsewhere nothing does.
                    let is_md5 = stored.etag.as_str().len() == 32 && attributes.sse_kms_key_id.is_none();
                    if stored.etag.as_str() == md5 { Some(true) } else { is_md5.then_some(false) }
                })
                .await
            }
            Err(failure) => Err(failure.error),
        }
    }

    async fn copy(
        &self,
        source: &CopySource,
        target: &ObjectKey,
        attributes: Option<&ObjectAttributes>,
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        self.check_key(target)?;
        if source.key.as_str().ends_with('/') && self.shared.loses_marker_metadata() {
            let info = self.head(&source.key).await?;
            if info.size == 0 {
                let attributes = attributes.unwrap_or(&info.attributes);
                return self.put(target, PutBody::empty(), attributes, condition).await;
            }
        }
        let provider = self.shared.quirks.provider;
        let mut call = Call::copy(target.as_str(), &self.source_of(source), source.etag.as_ref().map(ETag::as_str));
        match attributes {
            Some(attributes) => {
                call = with_attributes(call, attributes)?
                    .header("x-amz-metadata-directive", "REPLACE")
                    .map_err(bad_header)?;
                if attributes.tagging.is_some() && self.shared.quirks.tagging_directive {
                    call = with_tagging(call, attributes)?
                        .header("x-amz-tagging-directive", "REPLACE")
                        .map_err(bad_header)?;
                }
            }
            // Amazon puts a copy into the standard class unless told otherwise.
            None if provider == Provider::S3 => {
                let info = self.head(&source.key).await?;
                call = with_placement(call, &info.attributes)?;
            }
            None => {}
        }
        call = match (provider, condition) {
            // R2 knows conditions on a copy's target under names of its own.
            (Provider::R2, Condition::Absent) => {
                call.header("cf-copy-destination-if-none-match", "*").map_err(bad_header)?
            }
            (Provider::R2, Condition::Matches(etag)) => {
                call.header("cf-copy-destination-if-match", &format!("\"{}\"", etag.as_str())).map_err(bad_header)?
            }
            _ => with_condition(call, condition),
        };
        match self.ask(&call).await {
            Ok(reply) => match xml::parse_copy(reply.bytes()).map_err(not_s3(&call))? {
                Ok(result) => {
                    // The sum is of parts if the source was made of them, and the answer does not say so.
                    let proof = Proof { checksum: None, ..proof_of(&reply) };
                    Ok(PutOutcome { etag: ETag::new(&result.etag), last_modified: result.last_modified, proof })
                }
                Err(error) => Err(StoreError::Server { message: format!("copy to {target:?}: {}", error.code) }),
            },
            Err(failure) if failure.maybe_done && matches!(failure.error, StoreError::Precondition { .. }) => {
                Err(unclear(target))
            }
            Err(failure) => match failure.error {
                StoreError::NotFound { .. } => Err(StoreError::no_object(&source.key)),
                StoreError::Precondition { .. } if *condition == Condition::Always => {
                    Err(StoreError::changed(&source.key))
                }
                error => Err(error),
            },
        }
    }

    async fn delete(&self, key: &ObjectKey, etag: Option<&ETag>) -> StoreResult<()> {
        let mut call = Call::delete(key.as_str());
        if let Some(etag) = etag.filter(|_| self.shared.capabilities.conditional_delete) {
            call = call.if_match(etag.as_str());
        }
        match self.ask(&call).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.error.is_not_found() => Ok(()),
            Err(failure) if failure.maybe_done && matches!(failure.error, StoreError::Precondition { .. }) => {
                match self.head(key).await {
                    Err(StoreError::NotFound { .. }) => Ok(()),
                    Ok(info) if etag.is_some_and(|etag| info.etag != *etag) => Err(failure.error),
                    _ => Err(unclear(key)),
                }
            }
            Err(failure) => Err(failure.error),
        }
    }

    async fn delete_many(&self, keys: &[ObjectKey]) -> StoreResult<Vec<(ObjectKey, StoreError)>> {
        let mut failed = Vec::new();
        // XML cannot name every key.
        let (named, odd): (Vec<&ObjectKey>, Vec<&ObjectKey>) = keys.iter().partition(|key| xml::can_hold(key.as_str()));
        let mut singly = odd;
        for batch in named.chunks(DELETE_BATCH_LEN) {
            if batch.len() == 1 || self.single_deletes.load(Ordering::Relaxed) {
                singly.extend(batch);
                continue;
            }
            match self.delete_batch(batch, &mut failed).await {
                Ok(()) => {}
                Err(failure) if matches!(failure.error, StoreError::Unsupported { .. }) => {
                    tracing::info!(bucket = self.shared.bucket, "no DeleteObjects here: removing keys one by one");
                    self.single_deletes.store(true, Ordering::Relaxed);
                    singly.extend(batch);
                }
                Err(failure) => return Err(failure.error),
            }
        }
        for some in singly.chunks(16) {
            let results = futures_util::future::join_all(some.iter().map(|key| self.delete(key, None))).await;
            for (key, result) in some.iter().zip(results) {
                if let Err(error) = result {
                    failed.push(((*key).clone(), error));
                }
            }
        }
        Ok(failed)
    }

    async fn list(&self, request: &ListRequest) -> StoreResult<ListPage> {
        let start_after = request.start_after.as_deref().filter(|_| request.continuation.is_none());
        let mut call = Call::list(
            &request.prefix,
            request.delimited,
            start_after,
            request.continuation.as_deref(),
            request.max_keys,
        );
        if self.shared.quirks.url_encoded_lists {
            call = call.url_encoded();
        }
        let reply = self.ask(&call).await.map_err(|failure| failure.error)?;
        let page = list::parse_objects(reply.bytes()).map_err(not_s3(&call))?;
        let objects = page.objects.into_iter().map(|object| ListedObject {
            key: object.key,
            size: object.size,
            etag: object.etag.map(|etag| ETag::new(&etag)),
            last_modified: object.last_modified,
            storage_class: object.storage_class,
        });
        Ok(ListPage { objects: objects.collect(), prefixes: page.prefixes, next: page.next })
    }

    async fn create_multipart(&self, key: &ObjectKey, attributes: &ObjectAttributes) -> StoreResult<UploadId> {
        self.check_key(key)?;
        let mut call = with_tagging(with_attributes(Call::create_multipart(key.as_str()), attributes)?, attributes)?;
        let kind = self.shared.quirks.checksum;
        if let Some(algorithm) = kind.algorithm() {
            call = call.header("x-amz-checksum-algorithm", algorithm).map_err(bad_header)?;
            if kind == ChecksumKind::Crc64Nvme {
                call = call.header("x-amz-checksum-type", "FULL_OBJECT").map_err(bad_header)?;
            }
        }
        let reply = self.ask(&call).await.map_err(|failure| failure.error)?;
        xml::parse_create(reply.bytes()).map(UploadId).map_err(not_s3(&call))
    }

    async fn upload_part(&self, key: &ObjectKey, id: &UploadId, number: u32, body: PutBody) -> StoreResult<Part> {
        let call = Call::upload_part(key.as_str(), &id.0, number);
        let (reply, sum) = self.upload(call, &body).await.map_err(|failure| failure.error)?;
        let etag = self.etag_of("UploadPart", key, &reply)?;
        let sum = sum.filter(|(kind, _)| *kind == ChecksumKind::Crc64Nvme);
        Ok(Part { number, etag, checksum: sum.map(|(_, sum)| sum) })
    }

    async fn upload_part_copy(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        number: u32,
        source: &CopySource,
        range: Range<u64>,
    ) -> StoreResult<Part> {
        if !self.shared.capabilities.part_copy {
            return Err(StoreError::Unsupported { what: "copy a range into a part (UploadPartCopy)".into() });
        }
        self.copy_part(key, id, number, source, range).await
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        id: &UploadId,
        parts: &[Part],
        condition: &Condition,
    ) -> StoreResult<PutOutcome> {
        let body = xml::complete_body(parts.iter().map(|part| CompletedPart {
            number: part.number,
            etag: part.etag.as_str(),
            crc64nvme: part.checksum.as_deref(),
        }));
        let mut call = with_condition(Call::complete(key.as_str(), &id.0, body), condition);
        if self.shared.quirks.checksum == ChecksumKind::Crc64Nvme {
            call = call.header("x-amz-checksum-type", "FULL_OBJECT").map_err(bad_header)?;
        }
        let begun = self.shared.now();
        let failure = match self.ask(&call).await {
            Ok(reply) => {
                return match xml::parse_complete(reply.bytes()).map_err(not_s3(&call))? {
                    Ok(result) => {
                        let checksum = result.full_crc64nvme.map(|sum| format!("crc64nvme:{sum}"));
                        let proof = Proof { checksum, ..proof_of(&reply) };
                        Ok(PutOutcome { etag: ETag::new(&result.etag), last_modified: None, proof })
                    }
                    Err(error) => Err(StoreError::Server { message: format!("completion of {key:?}: {}", error.code) }),
                };
            }
            Err(failure) => failure,
        };
        if !failure.maybe_done
            || !matches!(failure.error, StoreError::Precondition { .. } | StoreError::NotFound { .. })
        {
            return Err(match failure.error {
                StoreError::Precondition { .. } => StoreError::changed(key),
                error => error,
            });
        }
        let tags = multipart_etags(parts);
        let suffix = format!("-{}", parts.len());
        self.settle(key, failure.error, |stored| {
            let stored_tag = stored.etag.as_str();
            if tags.as_deref() == Some(stored_tag) {
                return Some(true);
            }
            // Random tags still tell the number of parts, and the time is the server's.
            let is_new = stored.last_modified + Duration::from_secs(2) >= begun
                && stored.last_modified != SystemTime::UNIX_EPOCH;
            (!(stored_tag.ends_with(&suffix) && is_new)).then_some(false)
        })
        .await
    }

    async fn abort_multipart(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<()> {
        match self.ask(&Call::abort(key.as_str(), &id.0)).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.error.is_not_found() => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    async fn list_multipart(&self, prefix: &str) -> StoreResult<Vec<UploadInProgress>> {
        let mut all = Vec::new();
        let mut marker: Option<(String, String)> = None;
        loop {
            let mut call = Call::list_uploads(prefix, marker.as_ref().map(|(key, id)| (key.as_str(), id.as_str())));
            if self.shared.quirks.url_encoded_lists {
                call = call.url_encoded();
            }
            let reply = self.ask(&call).await.map_err(|failure| failure.error)?;
            let page = list::parse_uploads(reply.bytes()).map_err(not_s3(&call))?;
            // Not every provider obeys the prefix.
            let uploads = page.uploads.into_iter().filter(|upload| upload.key.starts_with(prefix));
            all.extend(uploads.map(|upload| UploadInProgress {
                key: upload.key,
                id: UploadId(upload.id),
                initiated: upload.initiated,
            }));
            if page.next.is_none() || page.next == marker {
                return Ok(all);
            }
            marker = page.next;
        }
    }

    async fn list_parts(&self, key: &ObjectKey, id: &UploadId) -> StoreResult<Vec<ListedPart>> {
        let mut all = Vec::new();
        let mut marker = None;
        loop {
            let call = Call::list_parts(key.as_str(), &id.0, marker);
            let reply = self.ask(&call).await.map_err(|failure| match failure.error {
                StoreError::NotFound { .. } => StoreError::NotFound { what: format!("upload of {key:?}") },
                error => error,
            })?;
            let page = list::parse_parts(reply.bytes()).map_err(not_s3(&call))?;
            all.extend(page.parts.into_iter().map(|part| ListedPart {
                number: part.number,
                etag: ETag::new(&part.etag),
                size: part.size,
                last_modified: part.last_modified,
            }));
            if page.next.is_none() || page.next <= marker {
                return Ok(all);
            }
            marker = page.next;
        }
    }
}

/// What the headers of an answer say of the object's version besides its tag.
fn proof_of(reply: &Reply) -> Proof {
    let version_id = reply.header("x-amz-version-id").filter(|id| !id.is_empty() && *id != "null");
    let checksum = download::sum_of_whole(reply).and_then(|(kind, sum)| Some(format!("{}:{sum}", kind.name()?)));
    Proof { checksum, version_id: version_id.map(str::to_owned) }
}

/// The MD5 of a body in hexadecimal: what many stores take as its ETag.
async fn md5_hex(body: &PutBody) -> StoreResult<String> {
    use base64::Engine;
    let sum = body::checksum(ChecksumKind::ContentMd5, body).await?.unwrap_or_default();
    Ok(hex::encode(base64::engine::general_purpose::STANDARD.decode(sum).unwrap_or_default()))
}

/// The ETag that most stores give to an object of these parts; `None` if the parts' tags are no MD5s.
fn multipart_etags(parts: &[Part]) -> Option<String> {
    let mut sum = Md5::new();
    for part in parts {
        let bytes = hex::decode(part.etag.as_str()).ok().filter(|bytes| bytes.len() == 16)?;
        sum.update(bytes);
    }
    Some(format!("{}-{}", hex::encode(sum.finalize()), parts.len()))
}
