//! Sessions: shells whose working directory and variables last.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use http::Uri;

use crate::error::{ApiError, Operation};
use crate::extract::{self, Id};
use crate::state::Api;
use crate::wire::{self, ErrorBody, SessionCreated, SessionDeleted, SessionRequest};

/// Makes a session.
#[utoipa::path(
    post, path = "/v1/sandbox/{id}/session", operation_id = "createSession", tag = "sessions",
    params(("id" = String, Path, description = "The sandbox")),
    request_body = Option<SessionRequest>,
    responses(
        (status = 200, description = "Its name", body = SessionCreated),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 403, description = "`cwd` is outside", body = ErrorBody),
        (status = 502, description = "It could not be made", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn create_session(
    State(api): State<Api>,
    Id(id): Id,
    body: Body,
) -> Result<Json<SessionCreated>, ApiError> {
    let members = wire::optional_object(&extract::small_body(body).await?)?;
    let spec = SessionRequest::parse(&members)?;
    let sandbox = api.sandbox(&id).await?;
    let session = sandbox.create_session(spec).await.map_err(|error| Operation::SessionCreate.failed(error))?;
    Ok(Json(SessionCreated { id: session.as_str().to_owned() }))
}

/// Ends a session, its terminal and its running command.
#[utoipa::path(
    delete, path = "/v1/sandbox/{id}/session/{sid}", operation_id = "deleteSession", tag = "sessions",
    params(("id" = String, Path, description = "The sandbox"), ("sid" = String, Path, description = "The session")),
    responses(
        (status = 200, description = "It is ended", body = SessionDeleted),
        (status = 400, description = "Not an id", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "There is no such session", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn delete_session(
    State(api): State<Api>,
    Id(id): Id,
    uri: Uri,
) -> Result<Json<SessionDeleted>, ApiError> {
    let session = extract::session_id(&extract::segment(&uri, 5))?;
    let sandbox = api.sandbox(&id).await?;
    sandbox.delete_session(&session).await.map_err(|error| Operation::SessionDelete.failed(error))?;
    Ok(Json(SessionDeleted { success: true, session_id: session.as_str().to_owned(), timestamp: wire::now() }))
}
