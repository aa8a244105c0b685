//! One span per call: method, route, sandbox, status, time. Never headers, query or path: they may hold keys and names
//! of files.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use sandpail_sandbox::SandboxId;
use tracing::{Instrument, field};

/// The layer.
pub(crate) async fn trace(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str);
    // Only what has the form of an id is one; anything else could be text of the client's choice.
    let id = request.uri().path().split('/').nth(3).and_then(|segment| SandboxId::parse(segment).ok());
    let sandbox = if route.starts_with("/v1/sandbox/{id}") { id } else { None };
    let span = tracing::info_span!(
        "api",
        method = %request.method(),
        route,
        sandbox = sandbox.as_ref().map(SandboxId::as_str),
        status = field::Empty,
    );
    let started = Instant::now();
    let response = next.run(request).instrument(span.clone()).await;
    span.record("status", response.status().as_u16());
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    span.in_scope(|| {
        if response.status().is_server_error() {
            tracing::warn!(elapsed_ms, "answered");
        } else {
            tracing::debug!(elapsed_ms, "answered");
        }
    });
    response
}
