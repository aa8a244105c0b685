//! Why a request is refused, and nowhere else.

/// The rule that a request broke. Texts are for the guest: they name the rule, and nothing that the guest did not send.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Not HTTP as we take it: framing, duplicates, control characters, sizes.
    #[error("{0}")]
    Malformed(&'static str),
    /// No signature, or one that is not by this sandbox's dummy key.
    #[error("{0}")]
    Signature(&'static str),
    /// No mount of this sandbox is meant.
    #[error("no mount of this sandbox covers this bucket")]
    NoRoute,
    /// Not an operation that mounts offer.
    #[error("{0} is not available through the credential proxy")]
    Operation(&'static str),
    /// A key, prefix or copy source outside the mount.
    #[error("{0} is outside the mount's prefix")]
    Outside(&'static str),
    /// The mount is read-only.
    #[error("the mount is read-only")]
    ReadOnly,
    /// A value that makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// Too large.
    #[error("{0}")]
    TooLarge(&'static str),
    /// The upload is not one of this mount's.
    #[error("the upload does not belong to this key of this mount")]
    Upload,
    /// Too many requests or connections at once.
    #[error("too many requests at once")]
    Busy,
}

impl Denied {
    /// A short, stable name of the rule, for the audit log and metrics.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Signature(_) => "signature",
            Self::NoRoute => "no-route",
            Self::Operation(_) => "operation",
            Self::Outside(_) => "outside-prefix",
            Self::ReadOnly => "read-only",
            Self::Invalid(_) => "invalid",
            Self::TooLarge(_) => "too-large",
            Self::Upload => "upload",
            Self::Busy => "busy",
        }
    }
}
