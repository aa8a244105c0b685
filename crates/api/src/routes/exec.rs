//! Commands.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;

use crate::error::{self, ApiError, Operation};
use crate::extract::{self, Id};
use crate::sse;
use crate::state::Api;
use crate::wire::{self, ErrorBody, ExecRequest};

/// Runs a command and streams what it does.
///
/// Events: `stdout` and `stderr` (base64 of a chunk), then exactly one of `exit` (`{"exit_code":n}`) and `error`
/// (`{"error":"…","code":"…"}`: it could not be run or watched). The command runs on if the client goes away.
#[utoipa::path(
    post, path = "/v1/sandbox/{id}/exec", operation_id = "execCommand", tag = "commands",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("Session-Id" = Option<String>, Header, description = "The session; made if it is not there"),
    ),
    request_body = ExecRequest,
    responses(
        (status = 200, description = "Events", body = String, content_type = "text/event-stream"),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 403, description = "`cwd` is outside", body = ErrorBody),
        (status = 502, description = "The sandbox could not be started", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn exec_command(
    State(api): State<Api>,
    Id(id): Id,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let members = wire::object(&extract::small_body(body).await?)?;
    let spec = ExecRequest::parse(&members, || extract::session_header(&headers))?;
    let sandbox = api.sandbox(&id).await?;
    match sandbox.exec(spec).await {
        Ok(events) => Ok(sse::exec(events)),
        Err(source) => {
            let (text, code) = error::text_and_code(&Operation::Exec.failed(source));
            Ok(sse::exec_failed(&text, code))
        }
    }
}
