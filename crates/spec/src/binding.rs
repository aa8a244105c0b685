//! Names by which trusted code knows buckets, and what stands behind them.

use std::fmt;

use crate::{BucketName, Credentials, Endpoint, Provider};

/// A binding's name: letters, digits and `_`, no digit first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BindingName(String);

/// A text that is no binding's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Invalid R2 binding name: \"{name}\". Binding names hold letters, digits and underscores, and do not begin with a \
     digit."
)]
pub struct InvalidBinding {
    /// The refused text.
    pub name: String,
}

impl BindingName {
    /// Checks the rule.
    ///
    /// # Errors
    /// [`InvalidBinding`].
    pub fn parse(name: &str) -> Result<Self, InvalidBinding> {
        let first_is_good = name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_');
        let is_valid = first_is_good && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if is_valid { Ok(Self(name.to_owned())) } else { Err(InvalidBinding { name: name.to_owned() }) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BindingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A binding of the configuration.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Its name.
    pub name: BindingName,
    /// The bucket's name.
    pub bucket: BucketName,
    /// Where the bucket is; `None`: in a directory of the daemon (an embedded bucket).
    pub remote: Option<Remote>,
}

/// A bucket's server, and who asks it.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its dialect.
    pub provider: Provider,
    /// The region to sign for; the provider's usual one if `None`.
    pub region: Option<String>,
    /// Whether the bucket's name stands in the path; as the provider likes it if `None`.
    pub path_style: Option<bool>,
    /// Who signs.
    pub keys: Keys,
}

/// Who signs.
#[derive(Clone, Debug)]
pub enum Keys {
    /// These.
    These(Credentials),
    /// A profile of the AWS shared files; read, and renewed, by the process that needs the keys.
    Profile(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule() {
        for good in ["MY_BUCKET", "a", "_x9"] {
            assert!(BindingName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "9A", "MY-BUCKET", "a b", "é", "a.b"] {
            let text = BindingName::parse(bad).unwrap_err().to_string();
            assert!(text.starts_with(&format!("Invalid R2 binding name: \"{bad}\". ")), "{text}");
        }
    }
}
