//! Amazon's AWS4-HMAC-SHA256, which everybody speaks.

use super::Dialect;

/// The names of AWS4-HMAC-SHA256 for S3.
pub static SIGV4: Dialect = Dialect {
    algorithm: "AWS4-HMAC-SHA256",
    secret_prefix: "AWS4",
    service: "s3",
    terminator: "aws4_request",
    date: "x-amz-date",
    content_sha256: "x-amz-content-sha256",
    security_token: "x-amz-security-token",
    query_prefix: "X-Amz-",
};

#[cfg(test)]
mod tests {
    //! The published examples: Amazon S3 API Reference, "Signature Calculations for the Authorization Header" and
    //! "Authenticating Requests: Using Query Parameters".

    use std::time::{Duration, SystemTime};

    use http::HeaderMap;
    use sandpail_spec::{Credentials, SecretKey};

    use super::SIGV4;
    use crate::address::encode_key;
    use crate::checksum::sha256_hex;
    use crate::sign::{Signer, UNSIGNED_PAYLOAD, Unsigned};

    fn credentials() -> Credentials {
        Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_access_key: SecretKey::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session_token: None,
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600)
    }

    fn signature(
        method: &str,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&'static str, &'static str)],
        body: &[u8],
    ) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let query: Vec<(String, String)> = query.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        let request = Unsigned {
            method,
            authority: "examplebucket.s3.amazonaws.com",
            path: &format!("/{}", encode_key(key)),
            query: &query,
            headers: &map,
            payload_hash: &sha256_hex(body),
        };
        let signer = Signer::new(&SIGV4, "us-east-1");
        let signed = signer.sign(&request, &credentials(), now()).unwrap();
        let again = signer.sign(&request, &credentials(), now()).unwrap();
        assert_eq!(signed, again, "the cached key of the day signs the same");
        signed["authorization"].to_str().unwrap().rsplit_once("Signature=").unwrap().1.to_owned()
    }

    #[test]
    fn published_header_examples() {
        assert_eq!(
            signature("GET", "test.txt", &[], &[("range", "bytes=0-9")], b""),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let headers = [("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")];
        assert_eq!(
            signature("PUT", "test$file.text", &[], &headers, b"Welcome to Amazon S3."),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
        assert_eq!(
            signature("GET", "", &[("lifecycle", "")], &[], b""),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            signature("GET", "", &[("prefix", "J"), ("max-keys", "2")], &[], b""),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }

    #[test]
    fn published_query_example() {
        let request = Unsigned {
            method: "GET",
            authority: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            query: &[],
            headers: &HeaderMap::new(),
            payload_hash: UNSIGNED_PAYLOAD,
        };
        let query =
            Signer::new(&SIGV4, "us-east-1").presign(&request, &credentials(), now(), Duration::from_secs(86400));
        assert!(
            query.ends_with("&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"),
            "{query}"
        );
    }
}
