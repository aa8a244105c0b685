//! Continuation tokens are the store's, sealed for one list of one mount.
//!
//! A token minted elsewhere is refused before it is sent. (It could not lead outside anyway: each page is asked for
//! with the mount's prefix, and what is outside is not written into the answer.)

use std::fmt;

use sandpail_s3::sign::sigv4::SIGV4;
use sandpail_s3::sign::{hmac, signing_key};
use subtle::ConstantTimeEq;

use crate::DummyKey;

/// Hexadecimal digits before the store's token.
const SEAL_LEN: usize = 32;

/// Seals the tokens of one mount.
#[derive(Clone)]
pub(crate) struct Seal {
    key: [u8; 32],
    mount: String,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(..)")
    }
}

impl Seal {
    /// Of a mount of the sandbox that has `key`: so tokens live as long as the two, across restarts.
    pub(crate) fn new(key: &DummyKey, mount: &str) -> Self {
        Self { key: signing_key(&SIGV4, &key.secret, "continuation-token", ""), mount: mount.to_owned() }
    }

    fn mark(&self, prefix: &str, delimiter: Option<&str>, token: &str) -> String {
        let text = format!("{:?}", (&self.mount, prefix, delimiter, token));
        hex::encode(&hmac(&self.key, text.as_bytes())[..SEAL_LEN / 2])
    }

    /// The token that the client gets.
    pub(crate) fn close(&self, prefix: &str, delimiter: Option<&str>, token: &str) -> String {
        format!("{}{token}", self.mark(prefix, delimiter, token))
    }

    /// The store's token, if it was sealed for this list.
    pub(crate) fn open<'a>(&self, prefix: &str, delimiter: Option<&str>, sealed: &'a str) -> Option<&'a str> {
        let (mark, token) = sealed.split_at_checked(SEAL_LEN)?;
        let expected = self.mark(prefix, delimiter, token);
        bool::from(mark.as_bytes().ct_eq(expected.as_bytes())).then_some(token)
    }
}

#[cfg(test)]
mod tests {
    use sandpail_spec::SecretKey;

    use super::*;

    #[test]
    fn of_one_list_only() {
        let key = |secret: &str| DummyKey { id: "id".into(), secret: SecretKey::new(secret) };
        let seal = Seal::new(&key("s"), "m1");
        let token = seal.close("a/", Some("/"), "1/abc=");
        assert_eq!(seal.open("a/", Some("/"), &token), Some("1/abc="));
        assert_eq!(seal.open("a/", None, &token), None);
        assert_eq!(seal.open("b/", Some("/"), &token), None);
        assert_eq!(seal.open("a/", Some("/"), "1/abc="), None);
        assert_eq!(seal.open("a/", Some("/"), ""), None);
        assert_eq!(Seal::new(&key("s"), "m2").open("a/", Some("/"), &token), None);
        assert_eq!(Seal::new(&key("t"), "m1").open("a/", Some("/"), &token), None);
    }
}
