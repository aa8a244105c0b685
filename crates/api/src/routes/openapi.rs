//! The API's own description.

use std::sync::OnceLock;

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use http::header;

use crate::openapi;
use crate::state::Api;
use crate::wire::ErrorBody;

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", operation_id = "getOpenApiSchema", tag = "service",
    params(("token" = Option<String>, Query, description = "The key, for tools that set no header")),
    responses(
        (status = 200, description = "OpenAPI 3.1.0", body = serde_json::Value),
        (status = 401, description = "No key, or another", body = ErrorBody),
    ),
)]
pub(crate) async fn get_open_api_schema(State(_api): State<Api>) -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(openapi::document);
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

/// The document as a page.
pub(crate) async fn page() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(openapi::page);
    // The key may be in this page's address: nothing may carry it on.
    let headers = [
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Html(text.as_str())).into_response()
}
