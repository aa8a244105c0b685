//! Our signatures are those of `aws-sigv4`, for odd keys, queries and headers.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials as AwsCredentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use http::{HeaderMap, HeaderName, HeaderValue};
use sandpail_s3::address::canonical_query;
use sandpail_s3::sign::sigv4::SIGV4;
use sandpail_s3::sign::{Signer, UNSIGNED_PAYLOAD, Unsigned};
use sandpail_s3::{Address, checksum};
use sandpail_spec::{Credentials, SecretKey};

const TOKEN: &str = "FwoGZXIvYXdzEBY//token+with=odd/characters==";

fn settings(location: SignatureLocation) -> SigningSettings {
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.signature_location = location;
    if location == SignatureLocation::Headers {
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    } else {
        settings.expires_in = Some(Duration::from_secs(3600));
    }
    settings
}

#[track_caller]
fn check(key: &str, query: &[(&str, &str)], headers: &[(&str, &str)], body: Option<&[u8]>, token: Option<&str>) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_763_000_000);
    let ours = Credentials {
        access_key_id: "AKIDEXAMPLE".into(),
        secret_access_key: SecretKey::new("secret/with+odd=characters"),
        session_token: token.map(SecretKey::new),
    };
    let identity =
        AwsCredentials::from_keys("AKIDEXAMPLE", "secret/with+odd=characters", token.map(str::to_owned)).into();
    let address = Address::new("https://s3.example.com:9000".parse().unwrap(), "bucket", true);
    let path = address.path(Some(key));
    let query: Vec<(String, String)> = query.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
    let url = address.url(&path, &canonical_query(&query));
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    let hash = body.map_or_else(|| UNSIGNED_PAYLOAD.to_owned(), checksum::sha256_hex);
    let unsigned = Unsigned {
        method: "PUT",
        authority: address.authority(),
        path: &path,
        query: &query,
        headers: &map,
        payload_hash: &hash,
    };
    let signer = Signer::new(&SIGV4, "eu-west-1");
    let signed = signer.sign(&unsigned, &ours, now).unwrap();

    let params = |location| {
        v4::SigningParams::builder()
            .identity(&identity)
            .region("eu-west-1")
            .name("s3")
            .time(now)
            .settings(settings(location))
            .build()
            .unwrap()
            .into()
    };
    let signable = |body| {
        let headers = std::iter::once(("host", address.authority())).chain(headers.iter().copied());
        SignableRequest::new("PUT", url.as_str(), headers, body).unwrap()
    };
    let theirs = body.map_or(SignableBody::UnsignedPayload, SignableBody::Bytes);
    let (instructions, _) = sign(signable(theirs), &params(SignatureLocation::Headers)).unwrap().into_parts();
    for (name, value) in instructions.headers() {
        assert_eq!(signed.get(name).map(|value| value.to_str().unwrap()), Some(value), "{name} of {url}");
    }

    let query = signer.presign(&unsigned, &ours, now, Duration::from_secs(3600));
    let (_, signature) = query.rsplit_once("X-Amz-Signature=").unwrap();
    if body.is_none() {
        let output = sign(signable(SignableBody::UnsignedPayload), &params(SignatureLocation::QueryParams)).unwrap();
        assert_eq!(output.signature(), signature, "presigned {url}");
    }
}

#[test]
fn the_same_as_aws_sigv4() {
    for key in [
        "a",
        "a/b/c",
        "a//b",
        "/lead",
        "trail/",
        "sp ace",
        "plus+",
        "per%cent",
        "%2F",
        "ü/日本",
        "~-._",
        "a..b/./../c",
        "!*'()",
        "q?x=1&y#z",
        "\u{1}",
        "=;:@,$",
    ] {
        check(key, &[], &[], None, None);
        check(key, &[], &[], Some(b"body"), Some(TOKEN));
    }
    for query in [
        &[("uploads", "")][..],
        &[("list-type", "2"), ("prefix", "a b/ü+"), ("delimiter", "/"), ("start-after", "x=y&z")],
        &[("partNumber", "10"), ("uploadId", "abc~._-%/+=")],
        &[("b", "2"), ("a", "2"), ("a", "1"), ("a-b", "0")],
        &[("continuation-token", "1//+==")],
    ] {
        check("k", query, &[], None, None);
        check("k", query, &[], Some(b""), Some(TOKEN));
    }
    for headers in [
        &[("x-amz-meta-a", "b")][..],
        &[("x-amz-meta-a", "one two"), ("content-type", "text/plain; charset=utf-8"), ("if-none-match", "*")],
        &[("range", "bytes=0-9"), ("if-match", "\"etag\""), ("x-amz-copy-source", "bucket/a%20b")],
        &[("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="), ("x-amz-acl", "private")],
    ] {
        check("k", &[], headers, None, None);
        check("k", &[], headers, Some(b"x"), Some(TOKEN));
    }
}
