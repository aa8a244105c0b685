//! The part of a bucket that a mount shows.

/// A key prefix as S3 wants it: no leading `/`; ends in `/` unless empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPrefix(String);

/// A text that is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Prefix must start with '/': \"{prefix}\"")]
pub struct InvalidPrefix {
    /// The refused text.
    pub prefix: String,
}

impl KeyPrefix {
    /// Parses the `prefix` option of a mount, such as `/logs/2024/`.
    ///
    /// # Errors
    /// [`InvalidPrefix`] without a leading `/`.
    pub fn parse(option: &str) -> Result<Self, InvalidPrefix> {
        let Some(key) = option.strip_prefix('/') else {
            return Err(InvalidPrefix { prefix: option.to_owned() });
        };
        let key = key.trim_end_matches('/');
        Ok(Self(if key.is_empty() { String::new() } else { format!("{key}/") }))
    }

    /// The prefix of keys.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (option, key) in [("/", ""), ("/a", "a/"), ("/a/b/", "a/b/"), ("/a//", "a/")] {
            assert_eq!(KeyPrefix::parse(option).unwrap().as_str(), key);
        }
        assert_eq!(KeyPrefix::parse("a").unwrap_err().to_string(), "Prefix must start with '/': \"a\"");
    }
}
