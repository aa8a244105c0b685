//! Documents that pass through the proxy are read and written anew, in both directions.

use bytes::Bytes;
use http::HeaderMap;

use crate::{Denied, Forward};

/// The store's answer is not what it should be, or names what the mount must not show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store's answer cannot be passed on: {0}")]
pub struct BadAnswer(pub String);

/// A body that is sent in place of the client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The document.
    pub body: Bytes,
    /// Headers that go with it (`content-md5`, `content-type`), to be put over [`Forward::headers`].
    pub headers: HeaderMap,
    /// The SHA-256 of `body` in hexadecimal.
    pub payload_hash: String,
}

impl Forward {
    /// Makes the body that is sent of the one that came (decoded and checked by [`crate::BodyCheck`]).
    ///
    /// # Errors
    /// [`Denied`].
    pub fn rewrite_body(&self, _body: &[u8]) -> Result<Rewritten, Denied> {
        unimplemented!()
    }

    /// Makes the body of an answer of status 2xx that the client sees. A document of status 200 may tell of an error
    /// after all (`<Error>`): then the outcome is `Ok(Err(document))`.
    ///
    /// # Errors
    /// [`BadAnswer`].
    pub fn rewrite_answer(&self, _body: &[u8]) -> Result<Result<Bytes, sandpail_s3::xml::ErrorDocument>, BadAnswer> {
        unimplemented!()
    }
}
