//! A request that was permitted, on its way to the bucket, and the answer on its way back.

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use sandpail_store::http::{RelayBody, RelayError, RelayRequest};

use crate::answer::{self, AnswerBody};
use crate::meter::Meter;
use crate::upload::{Fault, Upload};
use crate::{Action, BadAnswer, BodyRule, Denied, ErrorAnswer, Forward, Payload, Permit, Rewritten};

/// Bodies up to this length are checked in whole before anything is sent.
const WHOLE_LEN_MAX: u64 = 64 << 10;
/// Longest document of a store that is written anew: a page of 1000 keys of 1024 bytes, each byte as `%XX`, and room.
const DOCUMENT_LEN_MAX: usize = 32 << 20;
/// Longest error document that is looked at.
const ERROR_LEN_MAX: usize = 64 << 10;

/// Why there is no answer of the store's to pass on.
enum Failure {
    Denied(Denied),
    Upstream(RelayError),
    Told(ErrorAnswer),
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl From<BadAnswer> for Failure {
    fn from(error: BadAnswer) -> Self {
        tracing::warn!(%error, "a store's answer is not passed on");
        Self::Told(ErrorAnswer::from(&error))
    }
}

/// What is passed on.
enum Passed {
    Whole(Response<Bytes>),
    Stream(Parts, RelayBody),
}

/// Sends a request and makes the answer; a failure is an answer, too.
pub(crate) async fn forward(
    mut forward: Box<Forward>,
    incoming: Incoming,
    is_head: bool,
    mut meter: Meter,
) -> Response<AnswerBody> {
    match pass(&mut forward, incoming, is_head, &mut meter).await {
        Ok(Passed::Whole(response)) => answer::whole(response, meter),
        Ok(Passed::Stream(parts, body)) => answer::streaming(parts, body, meter),
        Err(Failure::Denied(denied)) => answer::denied(&denied, is_head, meter),
        Err(Failure::Upstream(error)) => {
            tracing::warn!(%error, mount = forward.route.spec().id, operation = forward.permit.action().name(),
                request_id = meter.request_id(), "a request through the credential proxy got no answer");
            answer::error(&ErrorAnswer::from(&error), is_head, meter)
        }
        Err(Failure::Told(error)) => answer::error(&error, is_head, meter),
    }
}

async fn pass(forward: &mut Forward, incoming: Incoming, is_head: bool, meter: &mut Meter) -> Result<Passed, Failure> {
    check_upload(forward).await?;
    let fault = Fault::default();
    let request = request(forward, incoming, meter, &fault).await?;
    let forward = &*forward;
    let permit = &forward.permit;
    let len = request.len;
    let answer = match forward.route.upstream().send(request).await {
        Ok(answer) => answer,
        Err(error) => return Err(fault.get().map_or(Failure::Upstream(error), Failure::Denied)),
    };
    // A store in this process answers with a document of its own when the body breaks.
    if let Some(denied) = fault.get() {
        return Err(denied.into());
    }
    let (parts, body) = answer.into_parts();
    let headers = answer::passed(&parts.headers);
    match parts.status {
        status if status.is_success() && forward.answer_is_document => document(forward, status, headers, body).await,
        status if status.is_success() => {
            remember(forward, len, &headers, None);
            Ok(head(status, headers, body))
        }
        StatusCode::NOT_MODIFIED => Ok(head(parts.status, headers, body)),
        StatusCode::NOT_FOUND if permit.action() == Action::HeadObject && is_marker(permit) => {
            match permit.key().and_then(|key| forward.route.memory().marker(key)) {
                Some(etag) => Ok(Passed::Whole(marker(etag))),
                None => Err(refusal(parts.status, headers, body, is_head).await),
            }
        }
        status => {
            let told = refusal(status, headers, body, is_head).await;
            match told {
                // Which part of the object is not there is said in a header.
                Failure::Told(error) if status == StatusCode::RANGE_NOT_SATISFIABLE => {
                    let mut response = error.response(is_head, meter.request_id());
                    if let Some(range) = parts.headers.get(header::CONTENT_RANGE) {
                        response.headers_mut().insert(header::CONTENT_RANGE, range.clone());
                    }
                    Ok(Passed::Whole(response))
                }
                told => Err(told),
            }
        }
    }
}

/// The request that is sent, its body checked, or to be checked while it is sent.
async fn request(
    forward: &mut Forward,
    incoming: Incoming,
    meter: &mut Meter,
    fault: &Fault,
) -> Result<RelayRequest, Failure> {
    let mut headers = std::mem::take(&mut forward.headers);
    let mut payload_hash = forward.payload.hash().map(str::to_owned);
    let received = meter.received();
    let upload = |len, incoming| Upload::new(forward, len, incoming, received, fault.clone());
    let mut trailer = None;
    let (len, body) = match forward.body {
        BodyRule::Empty => (0, full(Bytes::new())),
        BodyRule::Stream { len } if len <= WHOLE_LEN_MAX => {
            let (bytes, trailer) = upload(len, incoming).collect().await?;
            headers.extend(trailer);
            (len, full(bytes))
        }
        BodyRule::Stream { len } => {
            trailer = match &forward.payload {
                Payload::Streaming(streaming) => streaming.trailer,
                Payload::Hash(_) | Payload::Unsigned => None,
            };
            (len, upload(len, incoming).boxed_unsync())
        }
        BodyRule::Document { len, .. } => {
            let (bytes, _) = upload(len, incoming).collect().await?;
            let Rewritten { body, headers: own, payload_hash: hash } = forward.rewrite_body(&bytes)?;
            // The keys may have told that another mount is meant.
            meter.found(Some(&forward.route), forward.permit.action().name(), forward.permit.key());
            for (name, value) in &own {
                headers.insert(name, value.clone());
            }
            payload_hash = Some(hash);
            (body.len() as u64, full(body))
        }
    };
    Ok(RelayRequest {
        method: forward.method.clone(),
        key: forward.permit.key().map(str::to_owned),
        query: forward.permit.query().to_vec(),
        headers,
        payload_hash,
        len,
        body,
        trailer,
        is_slow: forward.is_slow,
    })
}

fn full(bytes: Bytes) -> RelayBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// An answer whose body passes as it is.
fn head(status: StatusCode, headers: HeaderMap, body: RelayBody) -> Passed {
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    parts.headers = headers;
    Passed::Stream(parts, body)
}

/// Parts are only taken for uploads that this mount began for this key, or that the store knows for it.
async fn check_upload(forward: &Forward) -> Result<(), Failure> {
    let permit = &forward.permit;
    // The store itself compares key and id of these.
    if permit.action() == Action::ListParts {
        return Ok(());
    }
    let (Some(id), Some(key)) = (permit.upload_id(), permit.key()) else { return Ok(()) };
    let memory = forward.route.memory();
    if memory.knows_upload(id, key) {
        return Ok(());
    }
    let request = RelayRequest {
        method: Method::GET,
        key: Some(key.to_owned()),
        query: vec![("max-parts".into(), "1".into()), ("uploadId".into(), id.to_owned())],
        headers: HeaderMap::new(),
        payload_hash: None,
        len: 0,
        body: full(Bytes::new()),
        trailer: None,
        is_slow: false,
    };
    let answer = forward.route.upstream().send(request).await.map_err(Failure::Upstream)?;
    let status = answer.status();
    if status.is_success() {
        let bytes = gather(answer.into_body(), DOCUMENT_LEN_MAX).await?;
        // Some stores answer for any key; the document says whose upload it is.
        let named = sandpail_s3::xml::Element::parse(&bytes).ok();
        let text = |name| named.as_ref().and_then(|named| named.text_of(name));
        if text("Key").is_some_and(|named| named != key) || text("UploadId").is_some_and(|named| named != id) {
            return Err(Denied::Upload.into());
        }
        memory.add_upload(id, key);
        return Ok(());
    }
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(refusal(status, HeaderMap::new(), answer.into_body(), false).await);
    }
    Err(Denied::Upload.into())
}

/// A document that the client sees in the proxy's own words.
async fn document(
    forward: &Forward,
    status: StatusCode,
    mut headers: HeaderMap,
    body: RelayBody,
) -> Result<Passed, Failure> {
    let bytes = gather(body, DOCUMENT_LEN_MAX).await?;
    match forward.rewrite_answer(&bytes)? {
        Ok(document) => {
            remember(forward, 0, &headers, Some(&document));
            answer::describe_document(&mut headers, document.len());
            let mut response = Response::new(document);
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            Ok(Passed::Whole(response))
        }
        // An error after all: clients understand it better by a status of its own.
        Err(error) => Err(Failure::Told(ErrorAnswer::from_document(&error))),
    }
}

/// The store's refusal in harmless words.
async fn refusal(status: StatusCode, headers: HeaderMap, body: RelayBody, is_head: bool) -> Failure {
    // Where the store would send the client is not for the client, and the relay has followed what can be followed.
    let status = if status.is_client_error() || status.is_server_error() { status } else { StatusCode::BAD_GATEWAY };
    let bytes = if is_head { Bytes::new() } else { gather(body, ERROR_LEN_MAX).await.unwrap_or_default() };
    drop(headers);
    Failure::Told(ErrorAnswer::from_provider(status, &bytes))
}

/// Reads a document of at most `len_max` bytes.
async fn gather(mut body: RelayBody, len_max: usize) -> Result<Bytes, BadAnswer> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| BadAnswer("it broke off".into()))?;
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + data.len() > len_max {
            return Err(BadAnswer(format!("it has more than {len_max} bytes")));
        }
        if all.is_empty() {
            // Most come in one piece, which need not be copied.
            all = BytesMut::from(data);
        } else {
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}

fn is_marker(permit: &Permit) -> bool {
    permit.key().is_some_and(|key| key.ends_with('/'))
}

/// The answer to HEAD of a marker that the store does not show yet.
fn marker(etag: HeaderValue) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(header::ETAG, etag);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

/// What a success means for later requests.
fn remember(forward: &Forward, len: u64, headers: &HeaderMap, document: Option<&[u8]>) {
    let (permit, memory) = (&forward.permit, forward.route.memory());
    match permit.action() {
        Action::PutObject if is_marker(permit) && len == 0 => {
            if let (Some(key), Some(etag)) = (permit.key(), headers.get(header::ETAG)) {
                memory.add_marker(key, etag.clone());
            }
        }
        Action::PutObject | Action::CopyObject | Action::DeleteObject if is_marker(permit) => {
            memory.forget_markers(permit.key());
        }
        Action::DeleteObjects => memory.forget_markers(None),
        Action::CreateMultipartUpload => {
            let id = document.and_then(|document| sandpail_s3::xml::parse_create(document).ok());
            if let (Some(id), Some(key)) = (id, permit.key()) {
                memory.add_upload(&id, key);
            }
        }
        Action::CompleteMultipartUpload | Action::AbortMultipartUpload => {
            if let Some(id) = permit.upload_id() {
                memory.remove_upload(id);
            }
        }
        _ => {}
    }
}
