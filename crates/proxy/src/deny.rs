//! The one place where S3 error documents are written.
//!
//! Texts are ours, also for what a provider said: its own may quote account ids, key ids, hosts or what was signed.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use sandpail_s3::xml::{ErrorDocument, escape};

use sandpail_store::http::RelayError;

use crate::{BadAnswer, Denied};

/// Longest code of an error that a provider may have of its own.
const CODE_LEN_MAX: usize = 64;

/// An error, as S3 tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// The status.
    pub status: StatusCode,
    /// `AccessDenied`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Errors that tell clients something: code, status, text.
const KNOWN: [(&str, StatusCode, &str); 36] = [
    ("AccessDenied", StatusCode::FORBIDDEN, "the store refused access to the mount"),
    ("BadDigest", StatusCode::BAD_REQUEST, "the body does not have the checksum that was sent"),
    ("BadRequest", StatusCode::BAD_REQUEST, "the store refused the request"),
    ("BucketAlreadyExists", StatusCode::CONFLICT, "the bucket exists"),
    ("ConditionalRequestConflict", StatusCode::CONFLICT, "another request changed the object at the same time"),
    ("EntityTooLarge", StatusCode::BAD_REQUEST, "the object is too large"),
    ("EntityTooSmall", StatusCode::BAD_REQUEST, "a part that is not the last is too small"),
    ("IncompleteBody", StatusCode::BAD_REQUEST, "the body ended early"),
    ("InternalError", StatusCode::INTERNAL_SERVER_ERROR, "the store failed; please try again"),
    ("InvalidArgument", StatusCode::BAD_REQUEST, "the store refused an argument"),
    ("InvalidDigest", StatusCode::BAD_REQUEST, "the checksum that was sent cannot be read"),
    ("InvalidObjectState", StatusCode::FORBIDDEN, "the object is archived"),
    ("InvalidPart", StatusCode::BAD_REQUEST, "a part was not found, or its ETag is another"),
    ("InvalidPartOrder", StatusCode::BAD_REQUEST, "the parts are not in ascending order"),
    ("InvalidRange", StatusCode::RANGE_NOT_SATISFIABLE, "the object does not have this range"),
    ("InvalidRequest", StatusCode::BAD_REQUEST, "the store refused the request"),
    ("InvalidStorageClass", StatusCode::BAD_REQUEST, "the store does not have this storage class"),
    ("KeyTooLongError", StatusCode::BAD_REQUEST, "the key is too long"),
    ("MalformedXML", StatusCode::BAD_REQUEST, "the document cannot be read"),
    ("MetadataTooLarge", StatusCode::BAD_REQUEST, "the metadata are too large"),
    ("MethodNotAllowed", StatusCode::METHOD_NOT_ALLOWED, "the store does not take this method here"),
    ("MissingContentLength", StatusCode::LENGTH_REQUIRED, "the length of the body must be told"),
    ("NoSuchBucket", StatusCode::NOT_FOUND, "the bucket does not exist"),
    ("NoSuchKey", StatusCode::NOT_FOUND, "the key does not exist"),
    ("NoSuchUpload", StatusCode::NOT_FOUND, "the multipart upload does not exist"),
    ("NotFound", StatusCode::NOT_FOUND, "it does not exist"),
    ("NotImplemented", StatusCode::NOT_IMPLEMENTED, "the store does not do this"),
    ("NotModified", StatusCode::NOT_MODIFIED, "it was not changed"),
    ("OperationAborted", StatusCode::CONFLICT, "another request is doing the same"),
    ("PreconditionFailed", StatusCode::PRECONDITION_FAILED, "a condition of the request does not hold"),
    ("RequestTimeout", StatusCode::BAD_REQUEST, "the body came too slowly"),
    ("ServiceUnavailable", StatusCode::SERVICE_UNAVAILABLE, "the store is not available; please try again"),
    ("SlowDown", StatusCode::SERVICE_UNAVAILABLE, "too many requests; please slow down"),
    ("TooManyRequests", StatusCode::SERVICE_UNAVAILABLE, "too many requests; please slow down"),
    ("XAmzContentChecksumMismatch", StatusCode::BAD_REQUEST, "the body does not have the checksum that was sent"),
    ("XAmzContentSHA256Mismatch", StatusCode::BAD_REQUEST, "the body does not have the hash that was signed"),
];

/// Errors about the mount's own key, which is not the client's.
const OF_CREDENTIALS: [&str; 15] = [
    "AccountProblem",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "CredentialsNotSupported",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "MissingSecurityHeader",
    "NotSignedUp",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
];

impl ErrorAnswer {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }

    /// The answer: a document, or its head only (HEAD).
    pub fn response(&self, is_head: bool, request_id: &str) -> Response<Bytes> {
        let document = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{}</Code><Message>{}</Message>\
             <RequestId>{}</RequestId></Error>",
            escape(&self.code),
            escape(&self.message),
            escape(request_id)
        );
        let body = if is_head { Bytes::new() } else { Bytes::from(document) };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let len = response.body().len();
        let headers = response.headers_mut();
        if !is_head {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
        }
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert("x-amz-request-id", id);
        }
        response
    }

    /// Of an error that a provider told, by its code, or else by its status.
    pub fn from_provider(status: StatusCode, body: &[u8]) -> Self {
        match ErrorDocument::parse(body).filter(|document| !document.code.is_empty()) {
            Some(document) => Self::of_code(&document.code, Some(status)),
            None => Self::of_status(status),
        }
    }

    /// Of an error that a provider told in an answer of status 200.
    pub fn from_document(document: &ErrorDocument) -> Self {
        Self::of_code(&document.code, None)
    }

    pub(crate) fn of_code(code: &str, status: Option<StatusCode>) -> Self {
        if OF_CREDENTIALS.contains(&code) {
            return Self::new(StatusCode::FORBIDDEN, "AccessDenied", "the store refused the mount's own credentials");
        }
        if let Some((code, known, message)) = KNOWN.iter().find(|(known, ..)| *known == code) {
            let status = status.filter(|status| status.is_client_error() || status.is_server_error());
            return Self::new(status.unwrap_or(*known), code, *message);
        }
        let fallback = Self::of_status(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
        let is_name = (1..=CODE_LEN_MAX).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_alphabetic());
        // A redirect that could not be followed names other hosts; the client cannot follow it either.
        if !is_name || code.contains("Redirect") { fallback } else { Self { code: code.to_owned(), ..fallback } }
    }

    fn of_status(status: StatusCode) -> Self {
        let code = match status.as_u16() {
            400 => "InvalidRequest",
            401 | 403 => "AccessDenied",
            404 => "NoSuchKey",
            405 => "MethodNotAllowed",
            409 => "OperationAborted",
            411 => "MissingContentLength",
            412 => "PreconditionFailed",
            416 => "InvalidRange",
            429 | 503 => "SlowDown",
            501 => "NotImplemented",
            _ if status.is_client_error() => "InvalidRequest",
            _ => "InternalError",
        };
        let known = KNOWN.iter().find(|(known, ..)| *known == code);
        let (status, message) = known.map_or((status, "the store failed"), |(_, status, message)| (*status, *message));
        Self::new(status, code, message)
    }
}

impl From<&Denied> for ErrorAnswer {
    fn from(denied: &Denied) -> Self {
        let (status, code) = match denied {
            Denied::Malformed(_) => (StatusCode::BAD_REQUEST, "InvalidRequest"),
            Denied::Invalid(_) => (StatusCode::BAD_REQUEST, "InvalidArgument"),
            Denied::Xml(_) => (StatusCode::BAD_REQUEST, "MalformedXML"),
            Denied::Digest(_) => (StatusCode::BAD_REQUEST, "BadDigest"),
            Denied::TooLarge(_) => (StatusCode::BAD_REQUEST, "EntityTooLarge"),
            Denied::LengthRequired => (StatusCode::LENGTH_REQUIRED, "MissingContentLength"),
            Denied::Signature(_) | Denied::NoRoute | Denied::Operation(_) | Denied::Outside(_) | Denied::ReadOnly => {
                (StatusCode::FORBIDDEN, "AccessDenied")
            }
            Denied::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Denied::Unknown(_) => (StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
            Denied::Above => (StatusCode::NOT_FOUND, "NoSuchKey"),
            Denied::Upload => (StatusCode::NOT_FOUND, "NoSuchUpload"),
            Denied::Busy => (StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
        };
        Self::new(status, code, denied.to_string())
    }
}

impl From<&RelayError> for ErrorAnswer {
    fn from(error: &RelayError) -> Self {
        // The details name hosts and files of the operator's: they are for the log.
        match error {
            RelayError::Unreachable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "the store cannot be reached")
            }
            RelayError::Timeout(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "the store does not answer")
            }
            RelayError::TryAgain => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "SlowDown", "please send the request again")
            }
            RelayError::Unsupported(what) => {
                Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", format!("the store does not know {what}"))
            }
            RelayError::Invalid(_) => {
                Self::new(StatusCode::BAD_REQUEST, "InvalidRequest", "the request cannot be sent")
            }
            RelayError::Credentials(_) => {
                Self::new(StatusCode::FORBIDDEN, "AccessDenied", "the mount's own credentials cannot be used")
            }
            RelayError::Body(_) => Self::new(StatusCode::BAD_REQUEST, "IncompleteBody", "the body broke"),
        }
    }
}

impl From<&BadAnswer> for ErrorAnswer {
    fn from(_: &BadAnswer) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "the store's answer cannot be passed on")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_provider_said_is_told_in_our_words() {
        let body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>AKIASECRET</Message>\
            <AWSAccessKeyId>AKIASECRET</AWSAccessKeyId><StringToSign>x</StringToSign></Error>";
        let answer = ErrorAnswer::from_provider(StatusCode::FORBIDDEN, body);
        assert_eq!((answer.status, answer.code.as_str()), (StatusCode::FORBIDDEN, "AccessDenied"));
        let body = b"<Error><Code>AccessDenied</Code><Message>User: arn:aws:iam::123456789012:user/x</Message></Error>";
        let response = ErrorAnswer::from_provider(StatusCode::FORBIDDEN, body).response(false, "id-1");
        let text = std::str::from_utf8(response.body()).unwrap();
        assert!(!text.contains("123456789012") && text.contains("<RequestId>id-1</RequestId>"), "{text}");
        for (status, body, code) in [
            (404, &b"<Error><Code>NoSuchKey</Code></Error>"[..], "NoSuchKey"),
            (404, b"", "NoSuchKey"),
            (503, b"<html>", "SlowDown"),
            (400, b"<Error><Code>SomethingNew</Code></Error>", "SomethingNew"),
            (400, b"<Error><Code>arn:aws:123</Code></Error>", "InvalidRequest"),
            (301, b"<Error><Code>PermanentRedirect</Code><Endpoint>other</Endpoint></Error>", "InternalError"),
        ] {
            let answer = ErrorAnswer::from_provider(StatusCode::from_u16(status).unwrap(), body);
            assert_eq!(answer.code, code, "{status}");
            assert!(answer.status.is_client_error() || answer.status.is_server_error(), "{answer:?}");
        }
    }

    #[test]
    fn a_head_has_no_document() {
        let response = ErrorAnswer::from(&Denied::NoRoute).response(true, "id");
        assert!(response.body().is_empty());
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let secret = RelayError::Unreachable("10.0.0.1:443".into());
        assert!(!ErrorAnswer::from(&secret).message.contains("10.0.0.1"));
    }
}
