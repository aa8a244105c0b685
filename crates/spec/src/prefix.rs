//! The part of a bucket that is mounted.

use std::fmt;
use std::str::FromStr;

/// A prefix of keys: empty for the whole bucket, else ending in `/` and never beginning with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyPrefix(String);

/// A prefix that does not begin with `/`, or is too long to leave room for keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPrefix {
    /// Does not begin with `/`.
    #[error("Prefix must start with '/': \"{0}\"")]
    NoSlash(String),
    /// Over S3's length of a key.
    #[error("Prefix is longer than the 1024 bytes of a key: {0} bytes")]
    TooLong(usize),
}

impl KeyPrefix {
    /// The whole bucket.
    pub fn root() -> Self {
        Self::default()
    }

    /// Takes a prefix as options spell it: `/a/b` and `/a/b/` are `a/b/`; `/` and nothing are the whole bucket.
    ///
    /// # Errors
    /// [`InvalidPrefix`].
    pub fn new(prefix: &str) -> Result<Self, InvalidPrefix> {
        if prefix.is_empty() {
            return Ok(Self::root());
        }
        let Some(rest) = prefix.strip_prefix('/') else { return Err(InvalidPrefix::NoSlash(prefix.into())) };
        Self::from_key(rest)
    }

    /// Takes a prefix as `s3://bucket/a/b` spells it, without the leading `/`.
    ///
    /// # Errors
    /// [`InvalidPrefix::TooLong`].
    pub fn from_key(prefix: &str) -> Result<Self, InvalidPrefix> {
        if prefix.is_empty() {
            return Ok(Self::root());
        }
        let mut prefix = prefix.to_owned();
        if !prefix.ends_with('/') {
            prefix.push('/');
        }
        if prefix.len() > 1024 { Err(InvalidPrefix::TooLong(prefix.len())) } else { Ok(Self(prefix)) }
    }

    /// The prefix as keys begin with it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the whole bucket.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for KeyPrefix {
    type Err = InvalidPrefix;

    fn from_str(prefix: &str) -> Result<Self, Self::Err> {
        Self::new(prefix)
    }
}

impl fmt::Display for KeyPrefix {
    /// As options spell it, with the leading `/`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for (text, prefix) in [("", ""), ("/", ""), ("/a/b", "a/b/"), ("/a/b/", "a/b/"), ("/a b/ü", "a b/ü/")] {
            assert_eq!(KeyPrefix::new(text).unwrap().as_str(), prefix);
        }
        assert_eq!(KeyPrefix::new("a").unwrap_err().to_string(), "Prefix must start with '/': \"a\"");
        assert!(KeyPrefix::new(&format!("/{}", "a".repeat(1024))).is_err());
        assert_eq!(KeyPrefix::new("/a").unwrap().to_string(), "/a/");
    }
}
