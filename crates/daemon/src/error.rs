//! What can go wrong, in the words of the API's contract.

use sandpail_sandbox::SandboxError;

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
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}
