//! Keys.

use std::fmt;

use zeroize::Zeroize;

/// A secret. Never printed; overwritten in memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(String);

impl SecretKey {
    /// Takes a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for signing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// What signs a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Names the key; not secret.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: SecretKey,
    /// Goes with temporary keys.
    pub session_token: Option<SecretKey>,
}

impl Credentials {
    /// A lasting pair.
    pub fn new(access_key_id: impl Into<String>, secret_access_key: impl Into<String>) -> Self {
        Self {
            access_key_id: access_key_id.into(),
            secret_access_key: SecretKey::new(secret_access_key),
            session_token: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides() {
        let mut credentials = Credentials::new("AK", "hidden-one");
        credentials.session_token = Some(SecretKey::new("hidden-two"));
        let text = format!("{credentials:?}");
        assert!(text.contains("SecretKey(..)") && !text.contains("hidden"), "{text}");
    }
}
