//! Signatures: one algorithm under two names.

pub mod goog4;
pub mod sigv4;

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use sandpail_spec::{Credentials, SecretKey};
use sha2::Sha256;

use crate::address::canonical_query;
use crate::checksum::sha256_hex;
use crate::time;

/// Stands for the body's hash if the body is not signed.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// Headers that proxies and HTTP libraries change: they are never signed.
const NEVER_SIGNED: [&str; 9] = [
    "accept-encoding",
    "authorization",
    "connection",
    "content-length",
    "expect",
    "te",
    "transfer-encoding",
    "user-agent",
    "x-amzn-trace-id",
];

/// The names that one dialect of the algorithm uses.
#[derive(Debug, PartialEq, Eq)]
pub struct Dialect {
    /// The algorithm's name, `AWS4-HMAC-SHA256`.
    pub algorithm: &'static str,
    /// What stands before the secret, `AWS4`.
    pub secret_prefix: &'static str,
    /// The service, `s3`.
    pub service: &'static str,
    /// The end of the scope, `aws4_request`.
    pub terminator: &'static str,
    /// `x-amz-date`.
    pub date: &'static str,
    /// `x-amz-content-sha256`.
    pub content_sha256: &'static str,
    /// `x-amz-security-token`.
    pub security_token: &'static str,
    /// What names in a signed query begin with, `X-Amz-`.
    pub query_prefix: &'static str,
}

/// A request, as far as signatures look at it.
#[derive(Clone, Copy, Debug)]
pub struct Unsigned<'a> {
    /// `GET`.
    pub method: &'a str,
    /// The value of `Host`.
    pub authority: &'a str,
    /// The path, encoded.
    pub path: &'a str,
    /// The query, not encoded.
    pub query: &'a [(String, String)],
    /// Headers to be sent, without `Host`.
    pub headers: &'a HeaderMap,
    /// The body's SHA-256 in hexadecimal, or [`UNSIGNED_PAYLOAD`].
    pub payload_hash: &'a str,
}

/// Cannot be signed: a value does not fit a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the access key or the session token holds characters that do not fit an HTTP header")]
pub struct BadCredentials;

struct DayKey {
    day: String,
    secret: SecretKey,
    key: [u8; 32],
}

/// Signs requests for one region. Keeps the key of the day.
pub struct Signer {
    dialect: &'static Dialect,
    region: String,
    day_key: Mutex<Option<DayKey>>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("algorithm", &self.dialect.algorithm).field("region", &self.region).finish()
    }
}

/// HMAC-SHA256.
pub fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// The key of one day (`20130524`), region and dialect, which signs requests and chunks.
pub fn signing_key(dialect: &Dialect, secret: &SecretKey, day: &str, region: &str) -> [u8; 32] {
    let first = SecretKey::new(format!("{}{}", dialect.secret_prefix, secret.expose()));
    let key = hmac(first.expose().as_bytes(), day.as_bytes());
    let key = hmac(&key, region.as_bytes());
    let key = hmac(&key, dialect.service.as_bytes());
    hmac(&key, dialect.terminator.as_bytes())
}

impl Signer {
    /// A signer for `region`.
    pub fn new(dialect: &'static Dialect, region: impl Into<String>) -> Self {
        Self { dialect, region: region.into(), day_key: Mutex::new(None) }
    }

    /// The region it signs for.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Gives the headers that sign the request: date, content hash, token and `Authorization`.
    ///
    /// # Errors
    /// [`BadCredentials`].
    pub fn sign(
        &self,
        request: &Unsigned<'_>,
        credentials: &Credentials,
        now: SystemTime,
    ) -> Result<HeaderMap, BadCredentials> {
        let dialect = self.dialect;
        let stamp = time::basic(now);
        let mut added = HeaderMap::new();
        let mut add = |name: &'static str, value: &str, secret: bool| {
            let mut value = HeaderValue::from_str(value).map_err(|_| BadCredentials)?;
            value.set_sensitive(secret);
            added.insert(HeaderName::from_static(name), value);
            Ok(())
        };
        add(dialect.date, &stamp, false)?;
        add(dialect.content_sha256, request.payload_hash, false)?;
        if let Some(token) = &credentials.session_token {
            add(dialect.security_token, token.expose(), true)?;
        }
        let (canonical, signed) = self.canonical(request, request.query, &added);
        let scope = self.scope(&stamp);
        let signature = self.signature(&canonical, &stamp, &scope, credentials);
        let authorization = format!(
            "{} Credential={}/{scope}, SignedHeaders={signed}, Signature={signature}",
            dialect.algorithm, credentials.access_key_id
        );
        let mut value = HeaderValue::from_str(&authorization).map_err(|_| BadCredentials)?;
        value.set_sensitive(true);
        added.insert(AUTHORIZATION, value);
        Ok(added)
    }

    /// Gives the query, encoded, that makes a URL valid for `expires` without headers.
    pub fn presign(
        &self,
        request: &Unsigned<'_>,
        credentials: &Credentials,
        now: SystemTime,
        expires: Duration,
    ) -> String {
        let prefix = self.dialect.query_prefix;
        let stamp = time::basic(now);
        let scope = self.scope(&stamp);
        let mut names: Vec<&str> =
            request.headers.keys().map(HeaderName::as_str).filter(|name| is_signed(name)).collect();
        names.push(HOST.as_str());
        names.sort_unstable();
        names.dedup();
        let mut query = request.query.to_vec();
        query.push((format!("{prefix}Algorithm"), self.dialect.algorithm.into()));
        query.push((format!("{prefix}Credential"), format!("{}/{scope}", credentials.access_key_id)));
        query.push((format!("{prefix}Date"), stamp.clone()));
        query.push((format!("{prefix}Expires"), expires.as_secs().to_string()));
        query.push((format!("{prefix}SignedHeaders"), names.join(";")));
        if let Some(token) = &credentials.session_token {
            query.push((format!("{prefix}Security-Token"), token.expose().into()));
        }
        let (canonical, _) = self.canonical(request, &query, &HeaderMap::new());
        let signature = self.signature(&canonical, &stamp, &scope, credentials);
        format!("{}&{prefix}Signature={signature}", canonical_query(&query))
    }

    fn scope(&self, stamp: &str) -> String {
        format!("{}/{}/{}/{}", &stamp[..8], self.region, self.dialect.service, self.dialect.terminator)
    }

    /// The canonical request, and the names of its headers.
    fn canonical(&self, request: &Unsigned<'_>, query: &[(String, String)], added: &HeaderMap) -> (String, String) {
        let mut headers: Vec<(&str, String)> = vec![(HOST.as_str(), request.authority.to_owned())];
        for map in [request.headers, added] {
            for name in map.keys().filter(|name| is_signed(name.as_str()) && **name != HOST) {
                let values: Vec<String> = map.get_all(name).iter().map(canonical_value).collect();
                headers.push((name.as_str(), values.join(",")));
            }
        }
        headers.sort_unstable();
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut text = format!("{}\n{}\n{}\n", request.method, request.path, canonical_query(query));
        for (name, value) in &headers {
            text.push_str(name);
            text.push(':');
            text.push_str(value);
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&names);
        text.push('\n');
        text.push_str(request.payload_hash);
        (text, names)
    }

    fn signature(&self, canonical: &str, stamp: &str, scope: &str, credentials: &Credentials) -> String {
        let hash = sha256_hex(canonical.as_bytes());
        let to_sign = format!("{}\n{stamp}\n{scope}\n{hash}", self.dialect.algorithm);
        hex::encode(hmac(&self.key_of_day(&stamp[..8], &credentials.secret_access_key), to_sign.as_bytes()))
    }

    fn key_of_day(&self, day: &str, secret: &SecretKey) -> [u8; 32] {
        let mut cached = self.day_key.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(cached) = &*cached
            && cached.day == day
            && cached.secret.expose() == secret.expose()
        {
            return cached.key;
        }
        let key = signing_key(self.dialect, secret, day, &self.region);
        *cached = Some(DayKey { day: day.into(), secret: secret.clone(), key });
        key
    }
}

fn is_signed(name: &str) -> bool {
    !NEVER_SIGNED.contains(&name)
}

/// Trimmed, and with runs of blanks as one.
fn canonical_value(value: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(value.as_bytes());
    text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}
