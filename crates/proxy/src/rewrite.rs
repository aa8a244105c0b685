//! Documents that pass through the proxy are read and written anew, in both directions.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use sandpail_s3::ChecksumKind;
use sandpail_s3::checksum::{of, sha256_hex};
use sandpail_s3::xml::{Element, ErrorDocument};

use crate::documents::{read_deletes, rewrite_completion, write_deletes};
use crate::scope::covers;
use crate::{BodyRule, Denied, Document, Forward, lists};

/// The store's answer is not what it should be.
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

impl Rewritten {
    fn new(body: String) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        let payload_hash = sha256_hex(body.as_bytes());
        Self { body: body.into(), headers, payload_hash }
    }
}

impl Forward {
    /// Makes the body that is sent of the one that came (decoded and checked by [`crate::BodyCheck`]). Where several
    /// mounts of a bucket are open, the keys of a DeleteObjects decide which one is meant: [`Self::route`] may change.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn rewrite_body(&mut self, body: &[u8]) -> Result<Rewritten, Denied> {
        match self.body {
            BodyRule::Document { document: Document::Deletes, .. } => self.rewrite_deletes(body),
            BodyRule::Document { document: Document::Completion, .. } => rewrite_completion(body).map(Rewritten::new),
            BodyRule::Empty | BodyRule::Stream { .. } => Err(Denied::Invalid("the operation has no document")),
        }
    }

    fn rewrite_deletes(&mut self, body: &[u8]) -> Result<Rewritten, Denied> {
        let deletes = read_deletes(body)?;
        let covering = self
            .alternatives
            .iter()
            .filter(|candidate| deletes.keys.iter().all(|key| covers(candidate, &candidate.full_key(key))));
        let narrowest = covering.max_by_key(|candidate| candidate.route.spec().prefix.as_str().len());
        let candidate = narrowest.ok_or(Denied::Outside("a key to delete"))?.clone();
        let keys: Vec<String> = deletes.keys.iter().map(|key| candidate.full_key(key).into_owned()).collect();
        for key in &keys {
            crate::target::check_key(key)?;
        }
        self.route = candidate.route;
        self.view = candidate.view;
        let mut rewritten = Rewritten::new(write_deletes(keys.iter().map(String::as_str), deletes.is_quiet));
        // S3 wants a checksum of this document, and every store knows this one.
        let md5 = of(ChecksumKind::ContentMd5, &rewritten.body).unwrap_or_default();
        if let Ok(md5) = HeaderValue::from_str(&md5) {
            rewritten.headers.insert("content-md5", md5);
        }
        Ok(rewritten)
    }

    /// Makes the body of an answer of status 2xx that the client sees. A document of status 200 may tell of an error
    /// after all (`<Error>`): then the outcome is `Ok(Err(document))`, for [`crate::ErrorAnswer::from_document`].
    ///
    /// # Errors
    /// [`BadAnswer`].
    pub fn rewrite_answer(&self, body: &[u8]) -> Result<Result<Bytes, ErrorDocument>, BadAnswer> {
        let root = Element::parse(body).map_err(|error| BadAnswer(error.to_string()))?;
        if matches!(&*root.name, "Error" | "ErrorResponse")
            && let Some(error) = ErrorDocument::parse(body)
        {
            return Ok(Err(error));
        }
        lists::rewrite(self, &root).map(|text| Ok(text.into()))
    }
}
