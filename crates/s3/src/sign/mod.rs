//! Signatures: one algorithm under two names.

pub mod goog4;
pub mod sigv4;

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use sandpail_spec::{Credentials, SecretKey};
use sha2::{Digest, Sha256};

use crate::address::canonical_query;
use crate::checksum::{hex_digits, hex_text};
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
    dialect: &'static Dialect,
    day: String,
    region: String,
    secret: SecretKey,
    key: [u8; 32],
}

/// Makes [`signing_key`]s and keeps the last: most requests have the same day and region.
#[derive(Default)]
pub struct KeyOfDay(Mutex<Option<DayKey>>);

impl std::fmt::Debug for KeyOfDay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyOfDay(..)")
    }
}

impl KeyOfDay {
    /// The [`signing_key`] of these.
    pub fn get(&self, dialect: &'static Dialect, secret: &SecretKey, day: &str, region: &str) -> [u8; 32] {
        let mut cached = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(cached) = &*cached
            && std::ptr::eq(cached.dialect, dialect)
            && cached.day == day
            && cached.region == region
            && cached.secret.expose() == secret.expose()
        {
            return cached.key;
        }
        let key = signing_key(dialect, secret, day, region);
        *cached = Some(DayKey { dialect, day: day.into(), region: region.into(), secret: secret.clone(), key });
        key
    }
}

/// Signs requests for one region. Keeps the key of the day.
pub struct Signer {
    dialect: &'static Dialect,
    region: String,
    day_key: KeyOfDay,
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

/// The signature of a canonical request; `key` is a [`signing_key`].
pub fn signature(dialect: &Dialect, key: &[u8; 32], stamp: &str, scope: &str, canonical: &[u8]) -> [u8; 32] {
    let hash = hex_digits(&Sha256::digest(canonical).into());
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    let lines = [dialect.algorithm.as_bytes(), b"\n", stamp.as_bytes(), b"\n", scope.as_bytes(), b"\n", &hash];
    for part in lines {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Appends a header's value as it is signed: trimmed, and with runs of blanks as one.
pub fn push_canonical_value(text: &mut Vec<u8>, value: &[u8]) {
    let words = value.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    for (index, word) in words.enumerate() {
        if index > 0 {
            text.push(b' ');
        }
        text.extend_from_slice(word);
    }
}

impl Signer {
    /// A signer for `region`.
    pub fn new(dialect: &'static Dialect, region: impl Into<String>) -> Self {
        Self { dialect, region: region.into(), day_key: KeyOfDay::default() }
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
        let mut added = HeaderMap::with_capacity(4);
        self.sign_into(request, credentials, now, &mut added)?;
        Ok(added)
    }

    /// As [`Signer::sign`], with a map that the headers are inserted into.
    ///
    /// # Errors
    /// [`BadCredentials`]: then only some headers were inserted.
    pub fn sign_into(
        &self,
        request: &Unsigned<'_>,
        credentials: &Credentials,
        now: SystemTime,
        headers: &mut HeaderMap,
    ) -> Result<(), BadCredentials> {
        let dialect = self.dialect;
        let stamp = time::basic(now);
        let mut add = |name: HeaderName, value: HeaderValue| headers.insert(name, value);
        let token = credentials.session_token.as_ref().map(SecretKey::expose);
        let added = [
            (dialect.date, Some(&*stamp)),
            (dialect.content_sha256, Some(request.payload_hash)),
            (dialect.security_token, token),
        ];
        for (name, value) in added {
            let Some(value) = value else { continue };
            let mut value = HeaderValue::from_str(value).map_err(|_| BadCredentials)?;
            value.set_sensitive(name == dialect.security_token);
            add(HeaderName::from_static(name), value);
        }
        let added = added.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let (canonical, signed) = canonical(request, request.query, added);
        let scope = self.scope(&stamp);
        let signature = self.signature(&canonical, &stamp, &scope, credentials);
        let authorization = [
            dialect.algorithm,
            " Credential=",
            &credentials.access_key_id,
            "/",
            &scope,
            ", SignedHeaders=",
            &signed,
            ", Signature=",
            &signature,
        ];
        let mut value = HeaderValue::try_from(authorization.concat()).map_err(|_| BadCredentials)?;
        value.set_sensitive(true);
        add(AUTHORIZATION, value);
        Ok(())
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
        let (canonical, _) = canonical(request, &query, std::iter::empty());
        let signature = self.signature(&canonical, &stamp, &scope, credentials);
        format!("{}&{prefix}Signature={signature}", canonical_query(&query))
    }

    fn scope(&self, stamp: &str) -> String {
        [&stamp[..8], &self.region, self.dialect.service, self.dialect.terminator].join("/")
    }

    fn signature(&self, canonical: &[u8], stamp: &str, scope: &str, credentials: &Credentials) -> String {
        let key = self.day_key.get(self.dialect, &credentials.secret_access_key, &stamp[..8], &self.region);
        hex_text(&signature(self.dialect, &key, stamp, scope, canonical))
    }
}

/// The canonical request, and the names of its headers; `added` are headers beside the request's own.
fn canonical<'a>(
    request: &Unsigned<'a>,
    query: &[(String, String)],
    added: impl Iterator<Item = (&'static str, &'a str)>,
) -> (Vec<u8>, String) {
    let own = request.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let own = own.filter(|(name, _)| is_signed(name) && *name != HOST.as_str());
    let mut headers: Vec<(&str, &[u8])> = Vec::with_capacity(request.headers.len() + 4);
    headers.push((HOST.as_str(), request.authority.as_bytes()));
    headers.extend(own);
    headers.extend(added.map(|(name, value)| (name, value.as_bytes())));
    // Stable: the values of one name stay in their order.
    headers.sort_by_key(|(name, _)| *name);
    let mut names = String::with_capacity(headers.iter().map(|(name, _)| name.len() + 1).sum());
    let values_len: usize = headers.iter().map(|(_, value)| value.len() + 2).sum();
    let query = canonical_query(query);
    let mut text = Vec::with_capacity(request.path.len() + query.len() + 2 * names.capacity() + values_len + 128);
    for part in [request.method, request.path, &query] {
        text.extend_from_slice(part.as_bytes());
        text.push(b'\n');
    }
    for group in headers.chunk_by(|(one, _), (two, _)| one == two) {
        for (index, (name, value)) in group.iter().enumerate() {
            if index == 0 {
                let separator = if names.is_empty() { "" } else { ";" };
                names.push_str(separator);
                names.push_str(name);
                text.extend_from_slice(name.as_bytes());
            }
            text.push(if index == 0 { b':' } else { b',' });
            push_canonical_value(&mut text, value);
        }
        text.push(b'\n');
    }
    text.push(b'\n');
    text.extend_from_slice(names.as_bytes());
    text.push(b'\n');
    text.extend_from_slice(request.payload_hash.as_bytes());
    (text, names)
}

fn is_signed(name: &str) -> bool {
    !NEVER_SIGNED.contains(&name)
}
