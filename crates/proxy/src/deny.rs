//! The one place where S3 error documents are written.

use bytes::Bytes;
use http::{Response, StatusCode};

use crate::{BadAnswer, Denied, UpstreamError};

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

impl ErrorAnswer {
    /// The answer: a document, or its head only (HEAD).
    pub fn response(&self, _is_head: bool, _request_id: &str) -> Response<Bytes> {
        unimplemented!()
    }

    /// Of an error that a provider told: its code, and its message if that cannot quote keys, accounts or hosts.
    pub fn from_provider(_status: StatusCode, _body: &[u8]) -> Self {
        unimplemented!()
    }
}

impl From<&Denied> for ErrorAnswer {
    fn from(_denied: &Denied) -> Self {
        unimplemented!()
    }
}

impl From<&UpstreamError> for ErrorAnswer {
    fn from(_error: &UpstreamError) -> Self {
        unimplemented!()
    }
}

impl From<&BadAnswer> for ErrorAnswer {
    fn from(_error: &BadAnswer) -> Self {
        unimplemented!()
    }
}
