//! From a request's head to what is done with it. Pure: no I/O, and the clock is an argument.
//!
//! ```text
//! head ─► target ─► signature ─► operation ─► scope ─► Permit + headers ─► Decision::Forward
//!            └─ self test, ListBuckets, HeadBucket, GetBucketLocation ─► Decision::Local
//! ```

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Response, Version};
use sandpail_s3::ChecksumKind;

use crate::documents::{COMPLETION_LEN_MAX, DELETES_LEN_MAX};
use crate::query::Query;
use crate::scope::List;
use crate::target::{Candidate, Target};
use crate::token::Seal;
use crate::{
    Action, BodyCheck, Denied, Guest, Payload, Permit, Route, gate, headers, local, operation, scope, signature, target,
};

/// How a connection reached the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The name that the connection was made to, lower-case, without port; empty if it is not known.
    pub host: String,
    /// Whether it came over TLS (ended by the proxy).
    pub is_tls: bool,
    /// The port that it was made to.
    pub port: u16,
}

/// What is done with a request.
#[derive(Debug)]
pub enum Decision {
    /// It is answered here.
    Local(LocalAnswer),
    /// It is sent to the bucket.
    Forward(Box<Forward>),
}

/// An answer that asks no bucket.
#[derive(Debug)]
pub struct LocalAnswer {
    /// The mount that was meant, if it is one.
    pub route: Option<Arc<Route>>,
    /// S3's name of the operation, for the audit record; `SelfTest` for the self test.
    pub operation: &'static str,
    /// The answer; its body is to be left out for HEAD.
    pub response: Response<Bytes>,
}

/// A request that may be sent to the bucket.
#[derive(Debug)]
pub struct Forward {
    /// The mount.
    pub route: Arc<Route>,
    /// What was permitted.
    pub permit: Permit,
    /// The method to send.
    pub method: Method,
    /// The headers to send: a closed list, with names and values of our own making where S3 defines them (also
    /// `x-amz-copy-source`). No address, length, hash, date or signature.
    pub headers: HeaderMap,
    /// What was said of the body.
    pub payload: Payload,
    /// What to do with the body.
    pub body: BodyRule,
    /// How keys are shown.
    pub view: View,
    /// `true` if the answer's body of a 2xx status is a document that [`Forward::rewrite_answer`] must write anew (it
    /// is at most some MiB then); else it streams.
    pub answer_is_document: bool,
    /// The provider may work for minutes before it answers.
    pub is_slow: bool,
    /// The mounts among which the keys of a DeleteObjects decide.
    pub(crate) alternatives: Vec<Candidate>,
    /// How a list was asked for.
    pub(crate) list: Option<List>,
    /// The client's own URL, where the answer tells it.
    pub(crate) location: String,
    /// Checksums that the headers say of a document.
    pub(crate) sums: Vec<(ChecksumKind, String)>,
}

/// What to do with a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyRule {
    /// There is none: nothing is read, and length 0 is sent.
    Empty,
    /// It streams through a [`crate::BodyCheck`] of this many decoded bytes. If `len` is 0, the check must be finished
    /// before the request is sent.
    Stream {
        /// Decoded bytes.
        len: u64,
    },
    /// It is a document: read wholly through a [`crate::BodyCheck`], then [`Forward::rewrite_body`] makes what is sent.
    Document {
        /// Which.
        document: Document,
        /// Decoded bytes; at most some MiB.
        len: u64,
    },
}

/// Documents that come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// Of DeleteObjects.
    Deletes,
    /// Of CompleteMultipartUpload.
    Completion,
}

/// How a mount's keys are shown to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The bucket's name as the client knows it: the real name, or the binding's.
    pub bucket: String,
    /// What keys are shown without: the mount's prefix at `r2.internal`, else empty.
    pub hidden_prefix: String,
}

impl Forward {
    /// KiB of documents that are in memory at once for this, roughly; 0 if there is none of a size to speak of.
    pub(crate) fn documents_kib(&self) -> u32 {
        let body = match self.body {
            // As it came, and as it is sent.
            BodyRule::Document { len, .. } => u32::try_from(len >> 9).unwrap_or(u32::MAX).saturating_add(1),
            BodyRule::Empty | BodyRule::Stream { .. } => 0,
        };
        // Pages have at most 1,000 names, most of which are much shorter than the 1,024 bytes that they may have.
        let answer = self.list.as_ref().map_or(0, |list| 16 + 2 * list.page_len);
        body.saturating_add(answer)
    }

    /// What the request's body must pass through.
    pub fn body_check(&self) -> BodyCheck {
        let len = match self.body {
            BodyRule::Empty => 0,
            BodyRule::Stream { len } | BodyRule::Document { len, .. } => len,
        };
        BodyCheck::new(&self.payload, len, &self.sums)
    }
}

impl View {
    /// The key as the client sees it; none if it is not to be seen.
    pub fn show<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&*self.hidden_prefix)
    }
}

/// Decides about a request by its head.
///
/// # Errors
/// [`Denied`]: nothing may be sent; [`crate::ErrorAnswer`] makes the answer.
pub fn decide(parts: &Parts, arrival: &Arrival, guest: &Guest, now: SystemTime) -> Result<Decision, Denied> {
    if let Some(denied) = gate::refusal(parts) {
        return Err(denied);
    }
    if parts.version != Version::HTTP_11 {
        return Err(Denied::Malformed("only HTTP/1.1 is spoken here"));
    }
    let query = Query::parse(parts.uri.query())?;
    let target = target::find(parts, arrival, &guest.routes())?;
    if matches!(target, Target::SelfTest) {
        return Ok(Decision::Local(local::self_test()));
    }
    let signed = signature::verify(parts, query, guest.verifier(), now)?;
    let headers = headers::normalise(&signed.headers)?;
    let mut query = signed.query;
    let may = |candidate: &Candidate| signed.is_signed || candidate.route.spec().allow_unsigned;
    let (candidates, key) = match target {
        Target::SelfTest => (Vec::new(), None),
        Target::Root { candidates } => {
            if !signed.is_signed && !candidates.iter().any(may) {
                return Err(UNSIGNED);
            }
            check_root(parts, &mut query)?;
            let shown: Vec<_> = candidates.into_iter().filter(may).collect();
            return Ok(Decision::Local(local::list_buckets(&shown)));
        }
        Target::Bucket { candidates, key } => (candidates, key),
    };
    let candidates: Vec<Candidate> = candidates.into_iter().filter(may).collect();
    if candidates.is_empty() {
        return Err(UNSIGNED);
    }
    let copy_source = headers.get("x-amz-copy-source");
    let action = operation::name(&parts.method, key.is_some(), &mut query, copy_source.is_some())?;
    let sent_headers = headers::select(action, &headers)?;
    let (body, payload) = body_rule(action, parts, signed.payload)?;
    match (action, candidates.first()) {
        (Action::HeadBucket, Some(candidate)) => return Ok(Decision::Local(local::head_bucket(candidate))),
        (Action::GetBucketLocation, Some(candidate)) => return Ok(Decision::Local(local::location(candidate))),
        _ => {}
    }
    let seal = |candidate: &Candidate| Seal::new(guest.key(), &candidate.route.spec().id);
    let scoped = scope::check(action, key.as_deref(), &query, copy_source, candidates, seal)?;
    let is_told = action == Action::CompleteMultipartUpload;
    let mut forward = Forward {
        route: scoped.candidate.route,
        permit: scoped.permit,
        method: parts.method.clone(),
        headers: sent_headers,
        payload,
        body,
        view: scoped.candidate.view,
        answer_is_document: has_document(action),
        is_slow: matches!(action, Action::CopyObject | Action::UploadPartCopy | Action::CompleteMultipartUpload),
        alternatives: scoped.alternatives,
        list: scoped.list,
        location: if is_told { location(parts, arrival) } else { String::new() },
        sums: Vec::new(),
    };
    if matches!(body, BodyRule::Document { .. }) {
        forward.sums = headers::document_sums(action, &headers)?;
    }
    if let Some(source) = &forward.permit.copy_source {
        scope::copy_source_header(&forward.route.spec().bucket, source, &mut forward.headers)?;
    }
    Ok(Decision::Forward(Box::new(forward)))
}

/// What a refused request was about, as far as it can be told, for the audit record alone.
#[derive(Debug, Default)]
pub(crate) struct Meant {
    /// The mount, if it is clear which.
    pub(crate) route: Option<Arc<Route>>,
    /// S3's name of the operation; empty if it has none.
    pub(crate) operation: &'static str,
    /// The key as the bucket would know it, or the path as it came.
    pub(crate) key: String,
}

/// Guesses what a request that was refused was about. Decides nothing.
pub(crate) fn meant(parts: &Parts, arrival: &Arrival, guest: &Guest) -> Meant {
    if gate::refusal(parts).is_some() {
        return Meant::default();
    }
    let Ok(Target::Bucket { candidates, key }) = target::find(parts, arrival, &guest.routes()) else {
        return Meant { key: parts.uri.path().to_owned(), ..Meant::default() };
    };
    let mut query = Query::parse(parts.uri.query()).unwrap_or_default();
    // What a presigned URL says beside the operation.
    query.drain(|name| {
        let name = name.to_ascii_lowercase();
        name.starts_with("x-amz-") || name.starts_with("x-goog-")
    });
    let is_copy = ["x-amz-copy-source", "x-goog-copy-source"].iter().any(|name| parts.headers.contains_key(*name));
    let operation = operation::name(&parts.method, key.is_some(), &mut query, is_copy).map_or("", Action::name);
    let shown = key.unwrap_or_default();
    let covering = candidates.iter().find(|candidate| scope::covers(candidate, &candidate.full_key(&shown)));
    let only = if candidates.len() == 1 { candidates.first() } else { None };
    match covering.or(only) {
        Some(candidate) => {
            Meant { route: Some(Arc::clone(&candidate.route)), operation, key: candidate.full_key(&shown).into_owned() }
        }
        None => Meant { route: None, operation, key: shown },
    }
}

const UNSIGNED: Denied = Denied::Signature("the request is not signed");

/// At the root there is only ListBuckets.
fn check_root(parts: &Parts, query: &mut Query) -> Result<(), Denied> {
    if parts.method != Method::GET {
        return Err(Denied::Method("only GET is taken here"));
    }
    if query.take("x-id").is_some_and(|name| name != Action::ListBuckets.name()) {
        return Err(Denied::Invalid("x-id is not the operation's name"));
    }
    query.take("max-buckets");
    if !query.is_empty() {
        return Err(Denied::Unknown("a parameter of the query is not known for this operation"));
    }
    body_rule(Action::ListBuckets, parts, Payload::Unsigned).map(drop)
}

/// The URL that the client itself used, for answers that tell one.
fn location(parts: &Parts, arrival: &Arrival) -> String {
    let host = target::host_of(parts).unwrap_or_default();
    format!("{}://{host}{}", if arrival.is_tls { "https" } else { "http" }, parts.uri.path())
}

fn has_document(action: Action) -> bool {
    match action {
        Action::ListObjects
        | Action::ListObjectsV2
        | Action::ListMultipartUploads
        | Action::ListParts
        | Action::GetObjectAttributes
        | Action::CopyObject
        | Action::DeleteObjects
        | Action::CreateMultipartUpload
        | Action::UploadPartCopy
        | Action::CompleteMultipartUpload => true,
        Action::ListBuckets
        | Action::HeadBucket
        | Action::GetBucketLocation
        | Action::HeadObject
        | Action::GetObject
        | Action::PutObject
        | Action::DeleteObject
        | Action::UploadPart
        | Action::AbortMultipartUpload => false,
    }
}

/// The largest PUT of S3, in bytes.
const PUT_LEN_MAX: u64 = 5 << 30;
/// The SHA-256 of nothing.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What is to be done with the body, by its length; the gate has looked at how that is told.
fn body_rule(action: Action, parts: &Parts, payload: Payload) -> Result<(BodyRule, Payload), Denied> {
    let told = match parts.headers.get(http::header::CONTENT_LENGTH) {
        Some(value) => {
            let len = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
            Some(len.ok_or(Denied::Malformed("Content-Length is not a number"))?)
        }
        None => None,
    };
    let is_chunked = parts.headers.contains_key(http::header::TRANSFER_ENCODING);
    let len = match (&payload, told) {
        (Payload::Streaming(streaming), _) => streaming.decoded_len,
        (_, Some(len)) => len,
        (_, None) if is_chunked => return Err(Denied::LengthRequired),
        (_, None) => 0,
    };
    let (rule, len_max) = match action {
        Action::PutObject | Action::UploadPart => (BodyRule::Stream { len }, PUT_LEN_MAX),
        Action::DeleteObjects => (BodyRule::Document { document: Document::Deletes, len }, DELETES_LEN_MAX),
        Action::CompleteMultipartUpload => {
            (BodyRule::Document { document: Document::Completion, len }, COMPLETION_LEN_MAX)
        }
        _ => {
            let is_empty = !is_chunked && len == 0 && !matches!(payload, Payload::Streaming(_));
            if !is_empty {
                return Err(Denied::Invalid("the operation takes no body"));
            }
            if payload.hash().is_some_and(|hash| hash != EMPTY_SHA256) {
                return Err(Denied::Digest("the hash that was signed is not that of an empty body"));
            }
            return Ok((BodyRule::Empty, payload));
        }
    };
    if len > len_max {
        return Err(Denied::TooLarge("the body is larger than S3 takes"));
    }
    Ok((rule, payload))
}
