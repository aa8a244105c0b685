//! Names of sandboxes and sessions.

use std::fmt;

/// A sandbox's name: `^[a-z2-7]{1,128}$`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxId(String);

/// A session's name: `^[a-zA-Z0-9._-]{1,128}$`, without `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

/// A text that is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Not a sandbox's.
    #[error("Invalid sandbox ID format")]
    Sandbox,
    /// Not a session's.
    #[error("Invalid session ID format")]
    Session,
}

const ID_LEN_MAX: usize = 128;

impl SandboxId {
    /// Checks the form.
    ///
    /// # Errors
    /// [`InvalidId::Sandbox`].
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let is_valid =
            (1..=ID_LEN_MAX).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'));
        if is_valid { Ok(Self(text.to_owned())) } else { Err(InvalidId::Sandbox) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SessionId {
    /// Checks the form.
    ///
    /// # Errors
    /// [`InvalidId::Session`].
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let is_valid = (1..=ID_LEN_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && !text.contains("..");
        if is_valid { Ok(Self(text.to_owned())) } else { Err(InvalidId::Session) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for good in ["a", "abc234567", &"z".repeat(128)] {
            assert!(SandboxId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "1", "a-b", "a/b", &"z".repeat(129)] {
            assert_eq!(SandboxId::parse(bad), Err(InvalidId::Sandbox), "{bad}");
        }
        for good in ["a", "A.b_c-9"] {
            assert!(SessionId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a..b", "a/b", "a b", &"z".repeat(129)] {
            assert_eq!(SessionId::parse(bad), Err(InvalidId::Session), "{bad}");
        }
    }
}
