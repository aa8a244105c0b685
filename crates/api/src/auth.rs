//! Who may ask: the bearer key, and what is asked of a client when there is none.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Uri, header};
use sandpail_spec::SecretKey;
use subtle::ConstantTimeEq;

use crate::error::ApiError;
use crate::extract::Query;
use crate::peers::Pending;
use crate::state::Api;

/// Refuses what has not the key, before anything else of the request is looked at.
pub(crate) async fn require_key(State(api): State<Api>, request: Request, next: Next) -> Response {
    let allowed = match api.settings().api_key {
        Some(key) => check_key(&key, request.uri(), request.headers()),
        None => check_local(request.headers()),
    };
    match allowed {
        Ok(()) => {
            // `/health` proves nothing.
            if request.uri().path().starts_with("/v1/")
                && let Some(pending) = request.extensions().get::<Pending>()
            {
                pending.admit();
            }
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

fn check_key(key: &SecretKey, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    if !uri.path().starts_with("/v1/") {
        // `/health`, and paths that are not ours: there is nothing to protect.
        return Ok(());
    }
    if is_key(key, bearer(headers)) {
        return Ok(());
    }
    // A browser cannot set a header for a page that it opens, so these pages, and no others, take the key by query.
    if uri.path().starts_with("/v1/openapi") && is_key(key, Query::of(uri).first("token").as_deref().map(str::as_bytes))
    {
        return Ok(());
    }
    Err(ApiError::Unauthorized)
}

/// Compares in time that depends on the lengths only.
fn is_key(key: &SecretKey, presented: Option<&[u8]>) -> bool {
    let key = key.expose().as_bytes();
    // An empty key would be met by an empty header.
    presented.is_some_and(|presented| !key.is_empty() && bool::from(key.ct_eq(presented)))
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, key) = value.split_at(space);
    scheme.eq_ignore_ascii_case(b"bearer").then(|| key.trim_ascii())
}

/// Without a key the daemon listens on loopback only, but a browser on this machine runs pages of others. They reach us
/// as a form or script of another origin (`Origin` is theirs), or under a name of theirs that they point at loopback
/// (`Host` is theirs), or as an image or a link (then there is no `Origin`, but browsers say `Sec-Fetch-Site`). A page that
/// another server of this machine sends is another's too: `Origin` has our port, or is none of ours.
fn check_local(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_local = |value: &http::HeaderValue| value.to_str().is_ok_and(|text| is_loopback_authority(authority(text)));
    let host = headers.get(header::HOST);
    let origin = headers.get(header::ORIGIN);
    let is_ours = |origin: &http::HeaderValue| {
        let host = host.and_then(|host| host.to_str().ok());
        let origin_port = origin.to_str().ok().and_then(port_of);
        is_local(origin) && origin_port.is_some() && origin_port == host.and_then(port_of)
    };
    let is_same_site = |site: &http::HeaderValue| matches!(site.as_bytes(), b"same-origin" | b"none");
    let is_good = host.is_none_or(is_local)
        && origin.is_none_or(is_ours)
        && headers.get_all("sec-fetch-site").iter().all(is_same_site);
    if is_good { Ok(()) } else { Err(ApiError::Foreign) }
}

/// The port of a `Host` or an `Origin`.
fn port_of(text: &str) -> Option<u16> {
    let authority = authority(text);
    let behind_name = authority.rsplit(']').next().unwrap_or(authority);
    match behind_name.rsplit_once(':') {
        Some((_, port)) => port.parse().ok(),
        None if text.starts_with("https://") => Some(443),
        None => Some(80),
    }
}

fn authority(text: &str) -> &str {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

fn is_loopback_authority(authority: &str) -> bool {
    let name = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.split(':').next().unwrap_or(authority),
    };
    let is_loopback_name = name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost");
    is_loopback_name || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| (name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap());
        pairs.iter().map(pair).collect()
    }

    #[track_caller]
    fn check(uri: &str, authorization: &str, expected: bool) {
        let headers = headers(&[("authorization", authorization)]);
        let found = check_key(&SecretKey::new("s3cret"), &uri.parse().unwrap(), &headers);
        assert_eq!(found.is_ok(), expected, "{uri} {authorization}");
    }

    #[test]
    fn the_scheme_is_case_insensitive_and_the_key_is_not() {
        for good in ["Bearer s3cret", "bearer s3cret", "BEARER s3cret"] {
            check("/v1/sandbox", good, true);
        }
        for bad in
            ["", "Bearer", "Bearer ", "Bearer S3CRET", "Bearer s3cre", "Bearer s3crett", "Basic s3cret", "s3cret"]
        {
            check("/v1/sandbox", bad, false);
        }
        check("/health", "", true);
    }

    #[test]
    fn only_the_openapi_routes_take_the_token_by_query() {
        check("/v1/openapi.json?token=s3cret", "", true);
        check("/v1/openapi?x=1&token=s3cret", "", true);
        check("/v1/openapi.html?token=wrong", "", false);
        check("/v1/sandbox?token=s3cret", "", false);
    }

    #[test]
    fn an_empty_key_opens_nothing() {
        assert!(!is_key(&SecretKey::new(""), Some(b"")));
    }

    #[test]
    fn without_a_key_pages_of_others_are_refused() {
        for good in ["localhost:8787", "127.0.0.1", "[::1]:8787", "sandpail.localhost:1"] {
            assert!(check_local(&headers(&[("host", good)])).is_ok(), "{good}");
        }
        for (host, origin) in [
            ("localhost:8787", "http://localhost:8787"),
            ("127.0.0.1:8787", "http://localhost:8787"),
            ("[::1]:8787", "http://[::1]:8787"),
            ("localhost", "http://localhost"),
            ("localhost:443", "https://localhost"),
        ] {
            assert!(check_local(&headers(&[("host", host), ("origin", origin)])).is_ok(), "{host} {origin}");
        }
        // Another server of this machine.
        for (host, origin) in [
            ("localhost:8787", "http://localhost:5173"),
            ("localhost:8787", "http://localhost"),
            ("localhost", "http://localhost:5173"),
            ("[::1]:8787", "http://[::1]"),
            ("localhost:8787", "http://localhost:x"),
        ] {
            assert!(check_local(&headers(&[("host", host), ("origin", origin)])).is_err(), "{host} {origin}");
        }
        assert!(check_local(&headers(&[("origin", "http://localhost:8787")])).is_err());
        for (site, expected) in [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false)] {
            let found = check_local(&headers(&[("host", "localhost:8787"), ("sec-fetch-site", site)]));
            assert_eq!(found.is_ok(), expected, "{site}");
        }
        for bad in ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "10.0.0.1"] {
            assert!(check_local(&headers(&[("host", bad)])).is_err(), "{bad}");
        }
        for bad in ["https://evil.example", "null", "http://localhost.evil.example"] {
            assert!(check_local(&headers(&[("host", "localhost"), ("origin", bad)])).is_err(), "{bad}");
        }
    }
}
