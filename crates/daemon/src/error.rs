//! What can go wrong, in the words of the API's contract.

use sandpail_sandbox::SandboxError;
use sandpail_spec::{InvalidMount, MountClass};

/// The class of a mount error, as clients test it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountErrorKind {
    /// `InvalidMountConfigError`, `INVALID_MOUNT_CONFIG`
    InvalidConfig,
    /// `MissingCredentialsError`, `MISSING_CREDENTIALS`
    MissingCredentials,
    /// `S3FSMountError`, `S3FS_MOUNT_ERROR`
    MountFailed,
    /// `BucketUnmountError`, `BUCKET_UNMOUNT_ERROR`
    UnmountFailed,
    /// `BucketMountError`, `BUCKET_MOUNT_ERROR`
    Other,
}

impl MountErrorKind {
    /// The class's name and its code.
    pub fn name_and_code(self) -> (&'static str, &'static str) {
        match self {
            Self::InvalidConfig => ("InvalidMountConfigError", "INVALID_MOUNT_CONFIG"),
            Self::MissingCredentials => ("MissingCredentialsError", "MISSING_CREDENTIALS"),
            Self::MountFailed => ("S3FSMountError", "S3FS_MOUNT_ERROR"),
            Self::UnmountFailed => ("BucketUnmountError", "BUCKET_UNMOUNT_ERROR"),
            Self::Other => ("BucketMountError", "BUCKET_MOUNT_ERROR"),
        }
    }
}

/// A mount or unmount that failed. The message is the contract's and holds no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MountError {
    /// The class.
    pub kind: MountErrorKind,
    /// The whole text, without `mount failed: `.
    pub message: String,
}

impl MountError {
    pub(crate) fn failed(cause: impl std::fmt::Display) -> Self {
        Self { kind: MountErrorKind::MountFailed, message: format!("S3FS mount failed: {cause}") }
    }

    pub(crate) fn not_unmounted(why: impl Into<String>) -> Self {
        Self { kind: MountErrorKind::UnmountFailed, message: why.into() }
    }

    pub(crate) fn not_synced(path: &str, why: impl std::fmt::Display) -> Self {
        Self { kind: MountErrorKind::Other, message: format!("Cannot sync {path}: {why}") }
    }

    pub(crate) fn nothing_at(path: &str) -> Self {
        let message = format!("No active mount found at path: {path}");
        Self { kind: MountErrorKind::InvalidConfig, message }
    }
}

impl From<InvalidMount> for MountError {
    fn from(invalid: InvalidMount) -> Self {
        let kind = match invalid.class() {
            MountClass::InvalidConfig => MountErrorKind::InvalidConfig,
            MountClass::MissingCredentials => MountErrorKind::MissingCredentials,
        };
        Self { kind, message: invalid.to_string() }
    }
}

impl From<InvalidMount> for DaemonError {
    fn from(invalid: InvalidMount) -> Self {
        Self::Mount(invalid.into())
    }
}

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// About mounts.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Of the sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// No room for one more sandbox; the text holds `instance limit reached`.
    #[error("{0}")]
    Capacity(String),
    /// No binding has this name.
    #[error("R2 binding \"{name}\" not found")]
    NoBinding {
        /// The name.
        name: String,
    },
    /// No object has this key.
    #[error("no object has the key {key:?}")]
    NoObject {
        /// The key.
        key: String,
    },
    /// The bucket of a binding did not do it. The text holds no key.
    #[error("{0}")]
    Bucket(String),
    /// A policy that makes no sense. The text holds no value of a header.
    #[error("invalid egress policy: {0}")]
    Egress(String),
    /// The daemon's own files cannot be used.
    #[error("{0}")]
    State(String),
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}
