//! What an answer that is no success means.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use sandpail_s3::call::{Call, Operation};
use sandpail_s3::time::parse_http;
use sandpail_s3::xml::ErrorDocument;

use crate::StoreError;

/// Longest text of a provider that is passed on, in characters.
const TEXT_LEN_MAX: usize = 300;

/// A try that failed, and what can be done about it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: StoreError,
    /// S3's code, or empty.
    pub(super) code: String,
    /// Another try may succeed.
    pub(super) retry: bool,
    /// The provider asked for less.
    pub(super) slow: bool,
    /// The request may have been carried out although this is all that came back.
    pub(super) maybe_done: bool,
    /// How long the provider wants to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// The region that the provider names.
    pub(super) region: Option<String>,
    /// The provider's clock, if it answered.
    pub(super) server_time: Option<SystemTime>,
    /// The signature, or the right to do this, was refused.
    pub(super) refused: bool,
}

impl Failure {
    /// A failure that another try will not mend.
    pub(super) fn lasting(error: StoreError) -> Self {
        Self {
            error,
            code: String::new(),
            retry: false,
            slow: false,
            maybe_done: false,
            retry_after: None,
            region: None,
            server_time: None,
            refused: false,
        }
    }

    /// A failure that another try may mend.
    pub(super) fn passing(error: StoreError, maybe_done: bool) -> Self {
        Self { retry: true, maybe_done, ..Self::lasting(error) }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::lasting(error)
    }
}

/// The store's name in errors.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) bucket: String,
    pub(super) endpoint: String,
}

/// Makes a provider's text fit for one line of a log.
pub(super) fn clean(text: &str) -> String {
    let words: Vec<&str> =
        text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty()).collect();
    let line = words.join(" ");
    if line.chars().count() > TEXT_LEN_MAX { line.chars().take(TEXT_LEN_MAX).chain(['…']).collect() } else { line }
}

fn what(call: &Call) -> String {
    match (&call.key, call.operation) {
        (Some(key), Operation::UploadPart | Operation::UploadPartCopy | Operation::CompleteMultipartUpload) => {
            format!("upload of {key:?}")
        }
        (Some(key), Operation::AbortMultipartUpload | Operation::ListParts) => format!("upload of {key:?}"),
        (Some(key), _) => format!("object {key:?}"),
        (None, _) => "bucket".into(),
    }
}

fn retry_after(headers: &HeaderMap, now: Option<SystemTime>) -> Option<Duration> {
    let value = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => parse_http(value)?.duration_since(now?).unwrap_or_default(),
    };
    Some(wait)
}

/// What a refusal says about how to ask better.
#[derive(Debug)]
pub(super) struct Hints {
    /// S3's code, or empty.
    code: String,
    pub(super) region: Option<String>,
    pub(super) server_time: Option<SystemTime>,
}

/// Reads the hints of a refusal.
pub(super) fn hints(headers: &HeaderMap, body: &[u8]) -> Hints {
    let document = ErrorDocument::parse(body).unwrap_or_default();
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Hints {
        region: header("x-amz-bucket-region").map(str::to_owned).or(document.region),
        server_time: header("date").and_then(parse_http),
        code: document.code,
    }
}

impl Hints {
    /// Whether the signature's time may be what was refused.
    pub(super) fn may_be_clock(&self) -> bool {
        matches!(
            self.code.as_str(),
            "" | "RequestTimeTooSkewed" | "RequestExpired" | "AccessDenied" | "SignatureDoesNotMatch"
        )
    }

    /// Whether the keys are no longer good.
    pub(super) fn is_expired(&self) -> bool {
        matches!(
            self.code.as_str(),
            "ExpiredToken"
                | "TokenRefreshRequired"
                | "InvalidToken"
                | "ExpiredTokenException"
                | "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
        )
    }
}

/// Reads an answer that is no success: its status, or the error document inside a 200.
pub(super) fn classify(call: &Call, names: &Names, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let document = ErrorDocument::parse(body);
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let server_time = header("date").as_deref().and_then(parse_http);
    let region =
        header("x-amz-bucket-region").or_else(|| document.as_ref().and_then(|document| document.region.clone()));
    let is_s3 = document.is_some() || body.iter().all(u8::is_ascii_whitespace);
    let ErrorDocument { code, message: said, .. } = document.unwrap_or_default();
    let said = clean(&said);
    let place = match &call.key {
        Some(key) => format!("{} of {key:?} in bucket {:?}", call.operation, names.bucket),
        None => format!("{} of bucket {:?}", call.operation, names.bucket),
    };
    let detail = match (code.as_str(), said.as_str()) {
        ("", _) if !is_s3 => format!(
            "{place}: status {}: {}",
            status.as_u16(),
            clean(&String::from_utf8_lossy(&body[..body.len().min(2000)]))
        ),
        ("", _) => format!("{place}: status {status}"),
        (code, "") => format!("{place}: {code} (status {})", status.as_u16()),
        (code, said) => format!("{place}: {code}: {said}"),
    };
    let mut failure = Failure::lasting(StoreError::Protocol { message: detail.clone() });
    failure.server_time = server_time;
    failure.retry_after = retry_after(headers, server_time);
    failure.region = region;
    let credentials =
        |fix: &str| StoreError::Credentials { message: format!("{}. {fix}", detail.trim_end_matches('.')) };

    match code.as_str() {
        "NoSuchKey" => failure.error = StoreError::NotFound { what: what(call) },
        "NoSuchUpload" => {
            failure.error = StoreError::NotFound { what: format!("upload of {:?}", call.key.as_deref().unwrap_or("")) };
        }
        "NoSuchBucket" => {
            failure.error = StoreError::NoSuchBucket { bucket: names.bucket.clone(), endpoint: names.endpoint.clone() };
        }
        "PreconditionFailed" => failure.error = StoreError::Precondition { what: what(call) },
        // Another write of this key was under way; S3's advice is to try again.
        "ConditionalRequestConflict" | "OperationAborted" => {
            failure.error = StoreError::Precondition { what: what(call) };
            failure.retry = true;
        }
        "InvalidAccessKeyId" | "InvalidSecurity" | "UnrecognizedClientException" => {
            failure.refused = true;
            failure.error = credentials("The access key id is not known there: check it, and the endpoint.");
        }
        "SignatureDoesNotMatch" => {
            failure.refused = true;
            failure.error = credentials("The secret access key does not belong to the access key id.");
        }
        "ExpiredToken" | "TokenRefreshRequired" | "InvalidToken" | "ExpiredTokenException" => {
            failure.refused = true;
            failure.error = credentials("The session token is no longer good: get new credentials.");
        }
        "RequestTimeTooSkewed" | "RequestExpired" => {
            failure.refused = true;
            failure.error = credentials("This machine's clock is wrong: set it.");
        }
        "AuthorizationHeaderMalformed" | "AuthorizationQueryParametersError" => {
            failure.refused = true;
            let fix = match &failure.region {
                Some(region) => format!("Set the region to {region:?}."),
                None => "Set the right region.".into(),
            };
            failure.error = credentials(&fix);
        }
        "PermanentRedirect" | "TemporaryRedirect" | "IllegalLocationConstraintException" => {
            let fix = match &failure.region {
                Some(region) => format!("the bucket is in region {region:?}: set the region"),
                None => "the bucket is at another endpoint".into(),
            };
            failure.error = StoreError::Invalid { message: format!("{detail} ({fix})") };
        }
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "InvalidObjectState" => {
            failure.refused = true;
            failure.error = StoreError::Denied { message: detail };
        }
        "SlowDown"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "BandwidthLimitExceeded"
        | "ServiceUnavailable"
        | "SlowDownRead"
        | "SlowDownWrite" => {
            failure.error = StoreError::Throttled { message: detail };
            failure.retry = true;
            failure.slow = true;
        }
        "RequestTimeout" | "IncompleteBody" => {
            failure.error = StoreError::Server { message: detail };
            failure.retry = true;
        }
        "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => {
            failure.error = StoreError::Integrity { message: detail };
            failure.retry = true;
        }
        "InternalError" => {
            failure.error = StoreError::Server { message: detail };
            failure.retry = true;
            failure.maybe_done = true;
        }
        "NotImplemented" | "MethodNotAllowed" => failure.error = StoreError::Unsupported { what: detail },
        "QuotaExceeded"
        | "InsufficientStorage"
        | "XMinioStorageFull"
        | "StorageFull"
        | "OverQuota"
        | "NoSpaceLeft"
        | "TotalLimitExceeded" => failure.error = StoreError::NoSpace { message: detail },
        _ => by_status(call, names, status, is_s3, code.is_empty(), detail, &mut failure),
    }
    failure.code = code;
    failure
}

/// For codes that nobody knows, and answers without one.
fn by_status(
    call: &Call,
    names: &Names,
    status: StatusCode,
    is_s3: bool,
    no_code: bool,
    detail: String,
    failure: &mut Failure,
) {
    let no_bucket = || StoreError::NoSuchBucket { bucket: names.bucket.clone(), endpoint: names.endpoint.clone() };
    failure.error = match status.as_u16() {
        429 => {
            failure.retry = true;
            failure.slow = true;
            StoreError::Throttled { message: detail }
        }
        503 => {
            failure.retry = true;
            failure.slow = true;
            failure.maybe_done = !is_s3;
            StoreError::Server { message: detail }
        }
        507 => StoreError::NoSpace { message: detail },
        501 => StoreError::Unsupported { what: detail },
        500..=599 => {
            failure.retry = true;
            failure.maybe_done = true;
            StoreError::Server { message: detail }
        }
        408 => {
            failure.retry = true;
            StoreError::Server { message: detail }
        }
        // Without an error document in its body it is some other web server that answers, not S3.
        _ if !is_s3 => StoreError::Protocol { message: detail },
        401 => {
            failure.refused = true;
            StoreError::Credentials { message: detail }
        }
        403 => {
            failure.refused = true;
            StoreError::Denied { message: detail }
        }
        404 if call.key.is_some() => StoreError::NotFound { what: what(call) },
        404 => no_bucket(),
        405 => StoreError::Unsupported { what: detail },
        412 => StoreError::Precondition { what: what(call) },
        // HEAD has no body, so a wrong region or an expired token look like this.
        400 if call.operation == Operation::HeadObject => {
            failure.refused = no_code;
            StoreError::Invalid { message: detail }
        }
        400 | 409 | 411 | 413 | 414 | 416 | 417 | 431 => StoreError::Invalid { message: detail },
        _ => StoreError::Protocol { message: detail },
    };
}
