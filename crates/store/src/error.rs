//! What can go wrong with a store, told apart as far as callers must act differently.

use std::io;

/// Result of a store's operation.
pub type StoreResult<T> = Result<T, StoreError>;

/// A failed operation of a store. Texts name the thing; none holds a credential.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object (or upload).
    #[error("{what} not found")]
    NotFound {
        /// `object "a/b"`, `upload of "a/b"`.
        what: String,
    },
    /// There is no such bucket.
    #[error("bucket {bucket:?} does not exist at {endpoint}")]
    NoSuchBucket {
        /// The bucket's name.
        bucket: String,
        /// Where it was looked for.
        endpoint: String,
    },
    /// The object is not the version that the caller named (412), or exists although it must not.
    #[error("{what} was changed by someone else")]
    Precondition {
        /// `object "a/b"`.
        what: String,
    },
    /// The provider refuses: no permission for this operation.
    #[error("access denied: {message}")]
    Denied {
        /// What was refused and what the provider said.
        message: String,
    },
    /// The credentials themselves are refused: unknown key, wrong signature, expired token.
    #[error("credentials refused: {message}")]
    Credentials {
        /// What the provider said, and the fix.
        message: String,
    },
    /// The provider asks to slow down; retries were used up.
    #[error("the store is throttling: {message}")]
    Throttled {
        /// What the provider said.
        message: String,
    },
    /// No answer in time, connection refused or broken, TLS refused; retries were used up.
    #[error("cannot reach {endpoint}: {message}")]
    Unreachable {
        /// The endpoint that did not answer.
        endpoint: String,
        /// The cause.
        message: String,
    },
    /// The provider failed (5xx); retries were used up.
    #[error("the store failed: {message}")]
    Server {
        /// Status and what the provider said.
        message: String,
    },
    /// What came is not what was sent or announced: checksum, length, range or version differ.
    #[error("damaged answer: {message}")]
    Integrity {
        /// What differs.
        message: String,
    },
    /// The answer is not S3.
    #[error("not an S3 answer: {message}")]
    Protocol {
        /// What came instead.
        message: String,
    },
    /// The request breaks one of the store's rules (name, size, number of parts, metadata).
    #[error("the store refused the request: {message}")]
    Invalid {
        /// Which rule.
        message: String,
    },
    /// The provider cannot do this at all.
    #[error("the store cannot do this: {what}")]
    Unsupported {
        /// The operation.
        what: String,
    },
    /// No room left in the store.
    #[error("the store is full: {message}")]
    NoSpace {
        /// Which limit.
        message: String,
    },
    /// A local file failed (directory store, upload body).
    #[error("{what}: {source}")]
    Io {
        /// What was done to which file.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// `NotFound` for an object.
    pub fn no_object(key: &crate::ObjectKey) -> Self {
        Self::NotFound { what: format!("object {key:?}") }
    }

    /// `Precondition` for an object.
    pub fn changed(key: &crate::ObjectKey) -> Self {
        Self::Precondition { what: format!("object {key:?}") }
    }

    /// Whether the thing asked for is simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether a later try of the same request may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unreachable { .. } | Self::Server { .. } | Self::Integrity { .. })
    }
}
