//! Objects by key: one trait, [`Store`], and what stands behind it.
//!
//! Everything above this crate sees only [`Store`]: the engine does not know whether a bucket is
//! reached over HTTP ([`http`]), is a directory on this machine ([`dir`]) or lives in memory
//! ([`memory`]). Behaviour that every store must share is written once, in [`conformance`].
#![forbid(unsafe_code)]

pub mod conformance;
mod cursor;
mod digest;
pub mod dir;
mod error;
pub mod http;
mod keys;
pub mod memory;
mod store;
mod types;

pub use cursor::token_after;
pub use digest::{multipart_tag, put_tag};
pub use error::{StoreError, StoreResult};
pub use keys::{InvalidKey, KEY_LEN_MAX, ObjectKey};
pub use store::{BodyStream, Download, Store, collect};
pub use types::{
    Capabilities, Condition, CopySource, ETag, ListPage, ListRequest, ListedObject, ListedPart, METADATA_LEN_MAX,
    ObjectAttributes, ObjectInfo, Part, Proof, PutBody, PutOutcome, UploadId, UploadInProgress,
};
