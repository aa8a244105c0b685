//! Is a request signed by the sandbox's own dummy key?
//!
//! Signature version 4 in the `Authorization` header or in the query, under Amazon's names or Google's. What was
//! signed must be what came: `host` and every `x-amz-` and `x-goog-` header. Any region will do, since the key is
//! worth nothing elsewhere.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::header::GetAll;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use sandpail_s3::ChecksumKind;
use sandpail_s3::address::{canonical_query_of, encode_key};
use sandpail_s3::sign::goog4::GOOG4;
use sandpail_s3::sign::sigv4::SIGV4;
use sandpail_s3::sign::{Dialect, KeyOfDay, UNSIGNED_PAYLOAD, push_canonical_value, signature};
use sandpail_s3::time;
use subtle::ConstantTimeEq;

use crate::body::{ChunkSigner, Payload, Streaming};
use crate::query::{Query, decode};
use crate::{Denied, DummyKey};

/// How far a request's date may be from ours, as at Amazon.
const SKEW_MAX: Duration = Duration::from_secs(15 * 60);
/// Longest life of a presigned URL in seconds, as at Amazon.
const EXPIRES_MAX: u64 = 7 * 24 * 3600;

/// A request whose signature was looked at.
#[derive(Debug)]
pub(crate) struct Signed<'a> {
    /// It was signed by the dummy key; else it holds no signature at all.
    pub(crate) is_signed: bool,
    /// What is said of the body.
    pub(crate) payload: Payload,
    /// What the query says beside the signature.
    pub(crate) query: Query,
    /// The request's headers, and those that a presigned query holds.
    pub(crate) headers: Cow<'a, HeaderMap>,
}

/// What a signature consists of, wherever it was.
struct Claim<'a> {
    dialect: &'static Dialect,
    credential: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
    stamp: Cow<'a, str>,
    /// Seconds that a presigned URL lives.
    expires: Option<u64>,
    payload: &'a str,
}

/// The dummy key, and what was derived from it.
#[derive(Clone, Copy)]
pub(crate) struct Verifier<'a> {
    pub(crate) key: &'a DummyKey,
    pub(crate) derived: &'a KeyOfDay,
}

/// Verifies the signature.
///
/// # Errors
/// [`Denied::Signature`] if there is one and it is not good.
pub(crate) fn verify<'a>(
    parts: &'a Parts,
    mut query: Query,
    verifier: Verifier<'_>,
    now: SystemTime,
) -> Result<Signed<'a>, Denied> {
    let authorizations = parts.headers.get_all(http::header::AUTHORIZATION).iter().count();
    let is_amz = |name: &str| starts_with_ignoring_case(name, SIGV4.query_prefix);
    let is_goog = |name: &str| starts_with_ignoring_case(name, GOOG4.query_prefix);
    let is_presigned = query.pairs().iter().any(|(name, _)| name == "X-Amz-Signature" || name == "X-Goog-Signature");
    if ["AWSAccessKeyId", "GoogleAccessId", "Signature"].iter().any(|name| query.get(name).is_some()) {
        return Err(Denied::Signature("only signature version 4 is accepted"));
    }
    let claim = match (authorizations, is_presigned) {
        (0, false) => None,
        (1, false) => Some(of_header(parts)?),
        (0, true) => Some(of_query(parts, &query)?),
        _ => return Err(Denied::Signature("the request is signed twice")),
    };
    let is_signed = claim.is_some();
    let mut headers = Cow::Borrowed(&parts.headers);
    let payload = match claim {
        Some(claim) => check(parts, &query, &claim, verifier, now)?,
        None => {
            let sent = headers.get(SIGV4.content_sha256).map_or(Ok(UNSIGNED_PAYLOAD), |value| value.to_str());
            payload(&headers, sent.map_err(|_| BAD_HASH)?, None)?
        }
    };
    if is_presigned {
        for (name, value) in query.drain(|name| is_amz(name) || is_goog(name)) {
            hoist(headers.to_mut(), &name, &value)?;
        }
    }
    Ok(Signed { is_signed, payload, query, headers })
}

const BAD_HASH: Denied = Denied::Invalid("x-amz-content-sha256 is none of the values that S3 knows");

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// The parameters of a presigned URL that are its signature; the others with such names are headers.
fn is_of_signature(name: &str) -> bool {
    const NAMES: [&str; 7] =
        ["algorithm", "credential", "date", "expires", "signedheaders", "signature", "content-sha256"];
    let name = name.to_ascii_lowercase();
    name.strip_prefix("x-amz-").or_else(|| name.strip_prefix("x-goog-")).is_some_and(|name| NAMES.contains(&name))
}

/// Some SDKs put headers into the query when they presign.
fn hoist(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), Denied> {
    if is_of_signature(name) {
        return Ok(());
    }
    const BAD: Denied = Denied::Invalid("a parameter of the presigned URL does not fit a header");
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| BAD)?;
    let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| BAD)?;
    if headers.get(&name).is_some_and(|other| other != value) {
        return Err(Denied::Invalid("a header and a parameter of the presigned URL say different things"));
    }
    headers.insert(name, value);
    Ok(())
}

/// `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…`
fn of_header(parts: &Parts) -> Result<Claim<'_>, Denied> {
    const BAD: Denied = Denied::Signature("the Authorization header cannot be read");
    let text = parts.headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or(BAD)?;
    let (algorithm, fields) = text.split_once(' ').ok_or(BAD)?;
    let dialect = [&SIGV4, &GOOG4].into_iter().find(|dialect| dialect.algorithm == algorithm);
    let dialect = dialect.ok_or(Denied::Signature("only signature version 4 is accepted"))?;
    let (mut credential, mut signed_headers, mut signature) = (None, None, None);
    for field in fields.split(',') {
        let (name, value) = field.trim().split_once('=').ok_or(BAD)?;
        let slot = match name {
            "Credential" => &mut credential,
            "SignedHeaders" => &mut signed_headers,
            "Signature" => &mut signature,
            _ => return Err(BAD),
        };
        if slot.replace(value).is_some() {
            return Err(BAD);
        }
    }
    let single = |name: &str| -> Result<Option<&str>, Denied> {
        let mut values = parts.headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().map_err(|_| BAD)).transpose()?;
        if values.next().is_some() {
            Err(Denied::Signature("a header of the signature is given twice"))
        } else {
            Ok(value)
        }
    };
    let stamp = match (single(dialect.date)?, single("date")?) {
        (Some(stamp), _) => Cow::Borrowed(stamp),
        (None, Some(date)) => Cow::Owned(time::basic(time::parse_http(date).ok_or(BAD)?)),
        (None, None) => return Err(Denied::Signature("the request has no date")),
    };
    let payload = single(dialect.content_sha256)?;
    Ok(Claim {
        dialect,
        credential: credential.ok_or(BAD)?,
        signed_headers: signed_headers.ok_or(BAD)?,
        signature: signature.ok_or(BAD)?,
        stamp,
        expires: None,
        payload: payload.ok_or(Denied::Signature("the x-amz-content-sha256 header is missing"))?,
    })
}

/// A presigned URL.
fn of_query<'a>(parts: &'a Parts, query: &'a Query) -> Result<Claim<'a>, Denied> {
    const BAD: Denied = Denied::Signature("the presigned URL lacks a part of its signature");
    let is_amz = query.get("X-Amz-Signature").is_some();
    let dialect = if is_amz { &SIGV4 } else { &GOOG4 };
    let other = if is_amz { &GOOG4 } else { &SIGV4 };
    // `x-amz-signature` beside `X-Amz-Signature` would be a second opinion.
    let mut seen: Vec<String> = Vec::new();
    for (name, _) in query.pairs() {
        let lower = name.to_ascii_lowercase();
        if starts_with_ignoring_case(&lower, other.query_prefix) && is_of_signature(&lower) || seen.contains(&lower) {
            return Err(Denied::Signature("the request is signed twice"));
        }
        seen.push(lower);
    }
    let get = |name: &str| query.get(&format!("{}{name}", dialect.query_prefix));
    if get("Algorithm").ok_or(BAD)? != dialect.algorithm {
        return Err(Denied::Signature("only signature version 4 is accepted"));
    }
    let expires = get("Expires").ok_or(BAD)?;
    let is_number = !expires.is_empty() && expires.bytes().all(|byte| byte.is_ascii_digit());
    let expires = expires.parse::<u64>().ok().filter(|seconds| is_number && (1..=EXPIRES_MAX).contains(seconds));
    let hash =
        parts.headers.get(dialect.content_sha256).map(|value| value.to_str().map_err(|_| BAD_HASH)).transpose()?;
    let payload = get("Content-Sha256").or_else(|| get("Content-SHA256")).or(hash);
    Ok(Claim {
        dialect,
        credential: get("Credential").ok_or(BAD)?,
        signed_headers: get("SignedHeaders").ok_or(BAD)?,
        signature: get("Signature").ok_or(BAD)?,
        stamp: Cow::Borrowed(get("Date").ok_or(BAD)?),
        expires: Some(expires.ok_or(Denied::Signature("a presigned URL lives 1 to 604800 seconds"))?),
        payload: payload.unwrap_or(UNSIGNED_PAYLOAD),
    })
}

fn check_date(claim: &Claim<'_>, now: SystemTime) -> Result<(), Denied> {
    let signed_at =
        time::parse_basic(&claim.stamp).ok_or(Denied::Signature("the date of the signature cannot be read"))?;
    if signed_at > now + SKEW_MAX {
        return Err(Denied::Signature("the signature is from the future: see the clock"));
    }
    let life = claim.expires.map_or(SKEW_MAX, Duration::from_secs);
    if signed_at + life < now {
        return Err(Denied::Signature("the signature has expired"));
    }
    Ok(())
}

fn check(
    parts: &Parts,
    query: &Query,
    claim: &Claim<'_>,
    verifier: Verifier<'_>,
    now: SystemTime,
) -> Result<Payload, Denied> {
    const CREDENTIAL: Denied = Denied::Signature("the credential of the signature cannot be read");
    let Verifier { key, derived } = verifier;
    // The id may hold a `/`, the rest does not.
    let mut fields = claim.credential.rsplitn(5, '/');
    let mut field = || fields.next().ok_or(CREDENTIAL);
    let (terminator, service, region, day, id) = (field()?, field()?, field()?, field()?, field()?);
    if terminator != claim.dialect.terminator || service != claim.dialect.service || region.is_empty() {
        return Err(CREDENTIAL);
    }
    check_date(claim, now)?;
    if claim.stamp.get(..8) != Some(day) {
        return Err(Denied::Signature("the day of the credential is not the signature's"));
    }
    let is_token = |name: &str| name.to_ascii_lowercase().ends_with("-security-token");
    let has_token = parts.headers.keys().any(|name| TOKENS.contains(&name.as_str()))
        || query.pairs().iter().any(|(name, _)| is_token(name));
    if has_token {
        return Err(Denied::Signature("the sandbox's key has no session token: unset AWS_SESSION_TOKEN"));
    }
    let signed = signed_headers(parts, claim)?;
    let is_id = bool::from(id.as_bytes().ct_eq(key.id.as_bytes()));
    let signing = derived.get(claim.dialect, &key.secret, day, region);
    // Behind the id, which the fields were split off from.
    let scope = &claim.credential[id.len() + 1..];
    let mut sent = [0_u8; 32];
    let is_hex = hex::decode_to_slice(claim.signature, &mut sent).is_ok();
    let fits = |path: &str| {
        let canonical = canonical(parts, query, claim, path, &signed);
        let expected = signature(claim.dialect, &signing, &claim.stamp, scope, &canonical);
        bool::from(expected.ct_eq(&sent))
    };
    // S3 encodes the path itself; some clients sign it as they wrote it.
    let raw = parts.uri.path();
    let own = encode_key(&decode(raw, "the path is not percent-encoded UTF-8")?);
    if !(is_hex && is_id && (fits(&own) || (own != raw && fits(raw)))) {
        return Err(Denied::Signature("the signature is not by this sandbox's key"));
    }
    let signer =
        || ChunkSigner::new(signing, claim.stamp.clone().into_owned(), scope.to_owned(), claim.signature.to_owned());
    payload(&parts.headers, claim.payload, Some((claim.expires.is_some(), &signer)))
}

/// Headers that hold a session token, which the sandbox's key has not.
const TOKENS: [&str; 2] = ["x-amz-security-token", "x-goog-security-token"];

/// A signed header, and its values.
type SignedHeader<'a> = (&'a str, GetAll<'a, HeaderValue>);

/// The signed headers; `host` and all that S3 calls its own must be among them.
fn signed_headers<'a>(parts: &'a Parts, claim: &Claim<'a>) -> Result<Vec<SignedHeader<'a>>, Denied> {
    const NAMES: Denied = Denied::Signature("the names of the signed headers are not sorted, lower-case and single");
    let is_name = |name: &str| !name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase() || byte <= b' ');
    let mut signed: Vec<SignedHeader<'_>> = Vec::with_capacity(parts.headers.keys_len());
    for name in claim.signed_headers.split(';') {
        if !is_name(name) || signed.last().is_some_and(|(last, _)| *last >= name) {
            return Err(NAMES);
        }
        let values = parts.headers.get_all(name);
        if values.iter().next().is_none() {
            return Err(Denied::Signature("a signed header is missing"));
        }
        signed.push((name, values));
    }
    let is_signed = |name: &str| signed.binary_search_by(|(known, _)| (*known).cmp(name)).is_ok();
    if !is_signed("host") {
        return Err(Denied::Signature("the Host header is not signed"));
    }
    let is_own = |name: &str| name.starts_with("x-amz-") || name.starts_with("x-goog-");
    if parts.headers.keys().any(|name| is_own(name.as_str()) && !is_signed(name.as_str())) {
        return Err(Denied::Signature("an x-amz- or x-goog- header is not signed"));
    }
    Ok(signed)
}

fn canonical(parts: &Parts, query: &Query, claim: &Claim<'_>, path: &str, signed: &[SignedHeader<'_>]) -> Vec<u8> {
    let is_signature =
        |name: &str| name.strip_prefix(claim.dialect.query_prefix).is_some_and(|name| name == "Signature");
    let query = query.pairs().iter().filter(|(name, _)| !is_signature(name));
    let query = canonical_query_of(query.map(|(name, value)| (&**name, &**value)));
    let mut text = Vec::with_capacity(path.len() + query.len() + claim.signed_headers.len() + 512);
    for part in [parts.method.as_str(), path, &query] {
        text.extend_from_slice(part.as_bytes());
        text.push(b'\n');
    }
    for (name, values) in signed {
        text.extend_from_slice(name.as_bytes());
        text.push(b':');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                text.push(b',');
            }
            push_canonical_value(&mut text, value.as_bytes());
        }
        text.push(b'\n');
    }
    text.push(b'\n');
    text.extend_from_slice(claim.signed_headers.as_bytes());
    text.push(b'\n');
    text.extend_from_slice(claim.payload.as_bytes());
    text
}

/// Reads what is said of the body; `signed` says whether the URL is presigned, and makes the signer of chunks.
fn payload(
    headers: &HeaderMap,
    text: &str,
    signed: Option<(bool, &dyn Fn() -> ChunkSigner)>,
) -> Result<Payload, Denied> {
    let rest = match text {
        UNSIGNED_PAYLOAD => return Ok(Payload::Unsigned),
        _ if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            return Ok(Payload::Hash(text.to_ascii_lowercase()));
        }
        _ => text.strip_prefix("STREAMING-").ok_or(BAD_HASH)?,
    };
    let (chunks, has_trailer) = match (rest, signed) {
        ("UNSIGNED-PAYLOAD-TRAILER", _) => (None, true),
        ("AWS4-HMAC-SHA256-PAYLOAD", Some((false, signer))) => (Some(signer()), false),
        ("AWS4-HMAC-SHA256-PAYLOAD-TRAILER", Some((false, signer))) => (Some(signer()), true),
        _ => return Err(BAD_HASH),
    };
    let single = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let value = values.next().and_then(|value| value.to_str().ok());
        if values.next().is_some() { None } else { value }
    };
    let decoded_len = single("x-amz-decoded-content-length").ok_or(Denied::LengthRequired)?;
    let is_number = !decoded_len.is_empty() && decoded_len.bytes().all(|byte| byte.is_ascii_digit());
    let decoded_len = decoded_len.parse().ok().filter(|_| is_number);
    let decoded_len = decoded_len.ok_or(Denied::Invalid("x-amz-decoded-content-length is not a number"))?;
    let trailer = match headers.get("x-amz-trailer") {
        None => None,
        Some(_) if !has_trailer => return Err(Denied::Invalid("x-amz-trailer does not fit x-amz-content-sha256")),
        Some(_) => {
            let name = single("x-amz-trailer").map(|name| name.trim().to_ascii_lowercase()).unwrap_or_default();
            let kind = ChecksumKind::of_header(&name).filter(|kind| *kind != ChecksumKind::ContentMd5);
            Some(kind.ok_or(Denied::Invalid("x-amz-trailer must name one checksum that is known"))?)
        }
    };
    Ok(Payload::Streaming(Streaming { decoded_len, trailer, has_trailer, chunks }))
}
