//! Parts of a request, checked: ids, queries, bodies.

use axum::body::Body;
use axum::extract::FromRequestParts;
use bytes::Bytes;
use futures_util::StreamExt;
use http::request::Parts;
use http::{HeaderMap, Uri, header};
use percent_encoding::percent_decode_str;
use sandpail_sandbox::{SandboxId, SessionId};

use crate::error::ApiError;

/// The most bytes of a JSON body: it holds command lines, not files.
const JSON_LEN_MAX: u64 = 8 << 20;

/// The sandbox of `/v1/sandbox/{id}…`, from the path as it was sent.
#[derive(Clone, Debug)]
pub(crate) struct Id(pub(crate) SandboxId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let segment = parts.uri.path().split('/').nth(3).unwrap_or("");
        let text = percent_decode_str(segment).decode_utf8_lossy();
        SandboxId::parse(&text).map(Self).map_err(|error| ApiError::Invalid(error.to_string()))
    }
}

/// Segment `index` of the path (the first is 1), percent-decoded once.
pub(crate) fn segment(uri: &Uri, index: usize) -> String {
    let raw = uri.path().split('/').nth(index).unwrap_or("");
    percent_decode_str(raw).decode_utf8_lossy().into_owned()
}

/// A query's parameters.
#[derive(Clone, Debug)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> Self {
        Self(form_urlencoded::parse(uri.query().unwrap_or("").as_bytes()).into_owned().collect())
    }

    /// The first value of this name.
    pub(crate) fn first(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    }

    /// The first value of this name, unless it is empty.
    pub(crate) fn filled(&self, name: &str) -> Option<String> {
        self.first(name).filter(|value| !value.is_empty())
    }

    /// A switch.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        match self.first(name).as_deref() {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(_) => Err(ApiError::Invalid(format!("{name} must be true or false"))),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Ok(Self::of(&parts.uri))
    }
}

/// A session's name as header, query or member give it.
pub(crate) fn session_id(text: &str) -> Result<SessionId, ApiError> {
    SessionId::parse(text).map_err(|error| ApiError::Invalid(error.to_string()))
}

/// The `Session-Id` header; an empty one is none.
pub(crate) fn session_header(headers: &HeaderMap) -> Result<Option<SessionId>, ApiError> {
    match headers.get("session-id") {
        Some(value) if !value.is_empty() => session_id(&String::from_utf8_lossy(value.as_bytes())).map(Some),
        _ => Ok(None),
    }
}

/// The announced length of the body, if it was announced.
pub(crate) fn content_len(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A body that is small enough to be held.
pub(crate) async fn small_body(body: Body) -> Result<Bytes, ApiError> {
    let mut stream = body.into_data_stream();
    let mut whole = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_broken| ApiError::BrokenBody)?;
        let len = (whole.len() + chunk.len()) as u64;
        if len > JSON_LEN_MAX {
            return Err(ApiError::TooLarge { len, limit: JSON_LEN_MAX });
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query::of(&"/x?a=1&a=2&b=&c=x+y%2Cz&d".parse().unwrap());
        assert_eq!(query.first("a").as_deref(), Some("1"));
        assert_eq!(query.first("b").as_deref(), Some(""));
        assert_eq!(query.filled("b"), None);
        assert_eq!(query.first("c").as_deref(), Some("x y,z"));
        assert_eq!(query.first("nothing"), None);
        assert!(query.flag("a", false).is_ok_and(|on| on));
        assert!(query.flag("c", false).is_err());
        assert!(query.flag("nothing", true).is_ok_and(|on| on));
    }

    #[test]
    fn sessions() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("session-id", value.parse().unwrap());
            session_header(&headers)
        };
        assert_eq!(of("a.b-C_9").unwrap().unwrap().as_str(), "a.b-C_9");
        assert!(of("").unwrap().is_none());
        assert!(session_header(&HeaderMap::new()).unwrap().is_none());
        for bad in ["a..b", "a/b", "a b", &"a".repeat(129)] {
            match of(bad) {
                Err(ApiError::Invalid(text)) => assert_eq!(text, "Invalid session ID format", "{bad}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
    }
}
