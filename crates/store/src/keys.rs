//! Object keys: what S3 takes as a name.

use std::fmt;
use std::sync::Arc;

/// S3's longest key, in bytes of UTF-8.
pub const KEY_LEN_MAX: usize = 1024;

/// The name of an object: 1 to 1024 bytes of UTF-8 without NUL. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(Arc<str>);

/// A text that cannot be an object's key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Keys have at least one byte.
    #[error("an object key must not be empty")]
    Empty,
    /// Keys have at most [`KEY_LEN_MAX`] bytes.
    #[error("object key of {len} bytes is longer than S3's {KEY_LEN_MAX}: {start:?}…")]
    TooLong {
        /// Length of the refused text in bytes.
        len: usize,
        /// Its first characters.
        start: String,
    },
    /// No store takes a NUL byte.
    #[error("object key must not hold a NUL byte: {key:?}")]
    Nul {
        /// The refused text.
        key: String,
    },
}

impl ObjectKey {
    /// Checks `key` and makes it a key.
    ///
    /// # Errors
    /// [`InvalidKey`] says which rule it breaks.
    pub fn new(key: impl AsRef<str>) -> Result<Self, InvalidKey> {
        let key = key.as_ref();
        if key.is_empty() {
            return Err(InvalidKey::Empty);
        }
        if key.len() > KEY_LEN_MAX {
            return Err(InvalidKey::TooLong { len: key.len(), start: key.chars().take(60).collect() });
        }
        if key.contains('\0') {
            return Err(InvalidKey::Nul { key: key.to_owned() });
        }
        Ok(Self(key.into()))
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&*self.0, f)
    }
}
