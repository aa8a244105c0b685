//! Names of buckets.

use std::fmt;
use std::str::FromStr;

/// The name of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketName(String);

/// Why a text is not the name of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBucketName {
    /// Breaks S3's rule.
    #[error(
        "Invalid bucket name: \"{0}\". Bucket names must be 3-63 characters, lowercase alphanumeric, dots, or hyphens, \
         and cannot start/end with dots or hyphens."
    )]
    Rule(String),
    /// `bucket:/prefix`, as s3fs takes it.
    #[error(
        "Bucket name cannot contain ':'. To mount a prefix, use the 'prefix' option:\n  \
         mountBucket('{bucket}', '<path>', {{ ...options, prefix: '{prefix}' }})"
    )]
    Colon {
        /// What stands before the colon.
        bucket: String,
        /// What stands behind it.
        prefix: String,
    },
    /// Not even a lenient server has such a bucket.
    #[error("Invalid bucket name: \"{0}\". A bucket name is not empty and holds no '/', '?', '#' or control character.")]
    Impossible(String),
}

impl BucketName {
    /// Takes a name by S3's rule: 3 to 63 of `a-z 0-9 . -`, with a letter or digit at both ends.
    ///
    /// # Errors
    /// [`InvalidBucketName::Rule`], [`InvalidBucketName::Colon`].
    pub fn new(name: &str) -> Result<Self, InvalidBucketName> {
        if let Some((bucket, prefix)) = name.split_once(':') {
            return Err(InvalidBucketName::Colon { bucket: bucket.into(), prefix: prefix.into() });
        }
        let bytes = name.as_bytes();
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let good = (3..=63).contains(&bytes.len())
            && bytes.iter().all(|&byte| alphanumeric(byte) || byte == b'.' || byte == b'-')
            && alphanumeric(bytes[0])
            && alphanumeric(bytes[bytes.len() - 1]);
        if good { Ok(Self(name.into())) } else { Err(InvalidBucketName::Rule(name.into())) }
    }

    /// Takes any name that can stand in a path: older servers allow capitals, underscores and other lengths.
    ///
    /// # Errors
    /// [`InvalidBucketName::Impossible`].
    pub fn lenient(name: &str) -> Result<Self, InvalidBucketName> {
        let bad = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '\\' | '?' | '#');
        if name.is_empty() || name == "." || name == ".." || name.len() > 255 || name.contains(bad) {
            return Err(InvalidBucketName::Impossible(name.into()));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name can be a label of a host name under a wildcard certificate: S3's rule, and no dot.
    pub fn fits_host(&self) -> bool {
        Self::new(&self.0).is_ok() && !self.0.contains('.')
    }
}

impl FromStr for BucketName {
    type Err = InvalidBucketName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_names() {
        for name in ["abc", "a-b", "a.b.c", "0ab", &"a".repeat(63)] {
            assert!(BucketName::new(name).is_ok(), "{name}");
        }
        for name in ["", "ab", "-ab", "ab-", ".ab", "ab.", "Abc", "a_b", "a b", "ä12", &"a".repeat(64)] {
            let error = BucketName::new(name).unwrap_err().to_string();
            assert!(error.starts_with(&format!("Invalid bucket name: \"{name}\". Bucket names must")), "{error}");
        }
        let error = BucketName::new("data:/sub").unwrap_err().to_string();
        assert!(error.contains("\n  mountBucket('data', '<path>', { ...options, prefix: '/sub' })"), "{error}");
    }

    #[test]
    fn lenient_names() {
        assert!(BucketName::lenient("My_Bucket").is_ok());
        assert!(BucketName::lenient("a/b").is_err());
        assert!(BucketName::lenient("").is_err());
        assert!(!BucketName::lenient("My_Bucket").unwrap().fits_host());
        assert!(!BucketName::new("a.b").unwrap().fits_host());
    }
}
