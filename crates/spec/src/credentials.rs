//! Keys, and how they are kept from sight.

use std::fmt;

use zeroize::Zeroizing;

/// A secret: no `Display`, no `Serialize`, wiped when dropped. Only the signer looks inside.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<String>);

impl SecretKey {
    /// Takes a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(Zeroizing::new(secret.into()))
    }

    /// The secret itself: for signing, and for handing it to a process of ours over a pipe.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// An access key.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The key's public name.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: SecretKey,
    /// For temporary keys.
    pub session_token: Option<SecretKey>,
}

impl Credentials {
    /// Finds a complete pair among variables: `AWS_*` first, then `R2_*`.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let filled = |name: &str| get(name).filter(|value| !value.is_empty());
        let pair = |id: &str, secret: &str| Some((filled(id)?, filled(secret)?));
        if let Some((id, secret)) = pair("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") {
            let session_token = filled("AWS_SESSION_TOKEN").map(SecretKey::new);
            return Some(Self { access_key_id: id, secret_access_key: SecretKey::new(secret), session_token });
        }
        let (id, secret) = pair("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY")?;
        Some(Self { access_key_id: id, secret_access_key: SecretKey::new(secret), session_token: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(variables: &[(&str, &str)], expected: Option<&str>) {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        assert_eq!(Credentials::from_variables(get).map(|found| found.access_key_id).as_deref(), expected);
    }

    #[test]
    fn aws_wins_and_half_a_pair_is_none() {
        let r2 = [("R2_ACCESS_KEY_ID", "r"), ("R2_SECRET_ACCESS_KEY", "s")];
        check(&r2, Some("r"));
        check(&[&r2[..], &[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "s")]].concat(), Some("a"));
        check(&[&r2[..], &[("AWS_ACCESS_KEY_ID", "a")]].concat(), Some("r"));
        check(&[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "s")], None);
    }

    #[test]
    fn a_secret_does_not_print() {
        let secret = SecretKey::new("hunter2");
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
