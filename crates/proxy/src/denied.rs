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
    /// A method that the bucket or its objects do not have here.
    #[error("{0}")]
    Method(&'static str),
    /// A parameter or header that could change what a request means, and that is not known here.
    #[error("{0}")]
    Unknown(&'static str),
    /// A key, prefix or copy source outside the mount.
    #[error("{0} is outside the mount's prefix")]
    Outside(&'static str),
    /// A look (HEAD) at a directory above the mount's prefix: clients do so when they begin, and must learn that there
    /// is no such object, whatever the bucket holds.
    #[error("the key is not in the mount")]
    Above,
    /// The mount is read-only.
    #[error("the mount is read-only")]
    ReadOnly,
    /// A value that makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// A document that is not what it should be.
    #[error("{0}")]
    Xml(&'static str),
    /// A body that is not what was promised of it: hash, checksum, signature, length.
    #[error("{0}")]
    Digest(&'static str),
    /// A body of unknown length.
    #[error("the length of the body must be told (Content-Length or x-amz-decoded-content-length)")]
    LengthRequired,
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
            Self::Method(_) => "method",
            Self::Unknown(_) => "unknown",
            Self::Outside(_) | Self::Above => "outside-prefix",
            Self::ReadOnly => "read-only",
            Self::Invalid(_) => "invalid",
            Self::Xml(_) => "malformed-xml",
            Self::Digest(_) => "digest",
            Self::LengthRequired => "length-required",
            Self::TooLarge(_) => "too-large",
            Self::Upload => "upload",
            Self::Busy => "busy",
        }
    }
}
