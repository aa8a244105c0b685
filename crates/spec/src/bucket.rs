//! Bucket names.

use std::fmt;

/// The name of a bucket: never empty, no `/`, no control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BucketName(String);

/// A text that cannot be a bucket's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBucket {
    /// Breaks S3's rule.
    #[error(
        "Invalid bucket name: \"{name}\". Bucket names must be 3-63 characters, lowercase alphanumeric, dots, or \
         hyphens, and cannot start/end with dots or hyphens."
    )]
    Rule {
        /// The refused text.
        name: String,
    },
}

impl BucketName {
    /// Checks S3's rule: `^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`.
    ///
    /// # Errors
    /// [`InvalidBucket::Rule`].
    pub fn parse(name: &str) -> Result<Self, InvalidBucket> {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ends_well = |b: Option<&u8>| b.is_some_and(|b| alphanumeric(*b));
        let bytes = name.as_bytes();
        let is_valid = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|b| alphanumeric(*b) || matches!(b, b'.' | b'-'))
            && ends_well(bytes.first())
            && ends_well(bytes.last());
        if is_valid { Ok(Self(name.to_owned())) } else { Err(InvalidBucket::Rule { name: name.to_owned() }) }
    }

    /// Takes what some servers allow besides: upper case, `_`, up to 255 characters.
    ///
    /// # Errors
    /// [`InvalidBucket::Rule`] for what no server takes.
    pub fn parse_lenient(name: &str) -> Result<Self, InvalidBucket> {
        let is_valid = (1..=255).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            && !matches!(name, "." | "..");
        if is_valid { Ok(Self(name.to_owned())) } else { Err(InvalidBucket::Rule { name: name.to_owned() }) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
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
    fn the_rule() {
        for good in ["a", "my-bucket", "a.b-c9", &"x".repeat(63)] {
            assert!(BucketName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", ".a", "a_b", "a/b", &"x".repeat(64), "a b"] {
            assert!(BucketName::parse(bad).is_err(), "{bad}");
        }
        assert!(BucketName::parse_lenient("My_Bucket").is_ok());
        assert!(BucketName::parse_lenient("a/b").is_err());
    }
}
