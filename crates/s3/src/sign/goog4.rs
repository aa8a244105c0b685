//! Google's GOOG4-HMAC-SHA256: the same algorithm under other names. A request signed so may carry `x-goog-` headers
//! and no `x-amz-` ones.

use super::Dialect;

/// The names of GOOG4-HMAC-SHA256.
pub static GOOG4: Dialect = Dialect {
    algorithm: "GOOG4-HMAC-SHA256",
    secret_prefix: "GOOG4",
    service: "storage",
    terminator: "goog4_request",
    date: "x-goog-date",
    content_sha256: "x-goog-content-sha256",
    security_token: "x-goog-security-token",
    query_prefix: "X-Goog-",
};

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use http::HeaderMap;
    use sandpail_spec::{Credentials, SecretKey};

    use super::GOOG4;
    use crate::sign::{Signer, UNSIGNED_PAYLOAD, Unsigned};

    #[test]
    fn names() {
        let request = Unsigned {
            method: "GET",
            authority: "storage.googleapis.com",
            path: "/bucket/key",
            query: &[],
            headers: &HeaderMap::new(),
            payload_hash: UNSIGNED_PAYLOAD,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        let credentials = Credentials {
            access_key_id: "GOOGEXAMPLE".into(),
            secret_access_key: SecretKey::new("hidden"),
            session_token: None,
        };
        let headers = Signer::new(&GOOG4, "auto").sign(&request, &credentials, now).unwrap();
        let authorization = headers["authorization"].to_str().unwrap();
        assert!(
            authorization.starts_with(
                "GOOG4-HMAC-SHA256 Credential=GOOGEXAMPLE/20130524/auto/storage/goog4_request, \
                 SignedHeaders=host;x-goog-content-sha256;x-goog-date, Signature="
            ),
            "{authorization}"
        );
        assert_eq!(headers["x-goog-date"], "20130524T000000Z");
    }
}
