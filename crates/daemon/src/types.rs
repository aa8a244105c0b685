//! What the daemon is asked for, and what it tells.

use bytes::Bytes;
use sandpail_sandbox::SandboxId;

pub use sandpail_spec::{MountOptions, MountRequest, MountSource};

/// A mount as it is shown. Never holds a key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MountInfo {
    /// Its id: random letters and digits, as in `s3-credential-proxy.internal/<mountId>/`.
    pub mount_id: String,
    /// Where in the sandbox.
    pub mount_path: String,
    /// `endpoint`, `endpoint-proxy`, `binding` or `local`.
    pub mode: &'static str,
    /// `serving`, `draining` or `failed`.
    pub state: &'static str,
    /// The bucket's name.
    pub bucket: String,
    /// The binding, if it is one.
    pub binding: Option<String>,
    /// The store, if it is not embedded.
    pub endpoint: Option<String>,
    /// The part of the bucket, begins and ends with `/`.
    pub prefix: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Files that are not stored yet.
    pub unstored: u64,
    /// What S3 clients inside did with it; none if they cannot reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyCounts>,
}

/// What a barrier did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountSynced {
    /// Files that were not in the bucket when it began, and are now.
    pub stored: u64,
    /// Files that are not in the bucket, with the reasons. Their bytes are kept and tried again.
    pub failed: Vec<(String, String)>,
}

/// What went through a mount's door for S3 clients, since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyCounts {
    /// Requests, refused ones too.
    pub requests: u64,
    /// Requests that a rule refused.
    pub refused: u64,
    /// Requests that failed at the store, or on the way.
    pub failed: u64,
    /// Bytes of bodies that the sandbox sent.
    pub bytes_in: u64,
    /// Bytes of bodies that it got.
    pub bytes_out: u64,
}

/// A sandbox as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxInfo {
    /// Its id.
    #[serde(serialize_with = "as_text")]
    pub id: SandboxId,
    /// Whether it runs; one that was named but not used yet does not.
    pub running: bool,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// How many mounts it has.
    pub mounts: usize,
}

fn as_text<S: serde::Serializer>(id: &SandboxId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(id.as_str())
}

/// The pool of started sandboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Started and unused.
    pub warm: usize,
    /// In use.
    pub assigned: usize,
    /// Wanted number of warm ones.
    pub warm_target: usize,
    /// The most sandboxes at the same time; `None`: no limit.
    pub max_instances: Option<usize>,
}

/// Something that happened, for the stream of events.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// `sandbox.created`, `sandbox.destroyed`, `mount.serving`, `mount.failed`, `mount.gone`, …
    pub kind: String,
    /// The sandbox, if it is about one.
    pub sandbox: Option<String>,
    /// The path of the mount, if it is about one.
    pub mount_path: Option<String>,
    /// For people. Never holds a key.
    pub detail: String,
}

/// An object of a binding's bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketObject {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    /// Milliseconds since 1970.
    pub uploaded_ms: u64,
    /// `Content-Type`, if it has one and it was asked for itself (listings leave it out).
    pub content_type: Option<String>,
    /// User metadata (listings leave it out).
    pub custom_metadata: std::collections::BTreeMap<String, String>,
}

/// A page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketPage {
    /// Objects in order of their keys.
    pub objects: Vec<BucketObject>,
    /// What the delimiter folded.
    pub delimited_prefixes: Vec<String>,
    /// Where to go on; `None` at the end.
    pub cursor: Option<String>,
}

/// How to list a bucket.
#[derive(Clone, Debug, Default)]
pub struct BucketListOptions {
    /// Only keys that begin so.
    pub prefix: String,
    /// Fold at this.
    pub delimiter: Option<String>,
    /// Where the last page ended.
    pub cursor: Option<String>,
    /// At most so many, 1000 if `None`.
    pub limit: Option<usize>,
}

/// What an object is put with.
#[derive(Clone, Debug, Default)]
pub struct BucketPutOptions {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// User metadata.
    pub custom_metadata: std::collections::BTreeMap<String, String>,
}

/// An object's bytes as they come.
pub type BucketBody = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Bytes, crate::DaemonError>> + Send>>;
