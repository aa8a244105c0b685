//! Sandboxes.

use axum::Json;
use axum::extract::State;
use http::StatusCode;

use crate::error::{ApiError, NO_CONTENT, Operation};
use crate::extract::Id;
use crate::state::Api;
use crate::wire::{ErrorBody, Running, SandboxCreated, SandboxEntry, SandboxList};

/// Makes a sandbox.
#[utoipa::path(
    post, path = "/v1/sandbox", operation_id = "createSandbox", tag = "sandboxes",
    responses(
        (status = 200, description = "Its id", body = SandboxCreated),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "It could not be started", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn create_sandbox(State(api): State<Api>) -> Result<Json<SandboxCreated>, ApiError> {
    let id = api.daemon()?.create_sandbox().await.map_err(|error| Operation::Start.failed(error))?;
    Ok(Json(SandboxCreated { id: id.as_str().to_owned() }))
}

/// Lists the sandboxes.
#[utoipa::path(
    get, path = "/v1/sandbox", operation_id = "listSandboxes", tag = "sandboxes",
    responses(
        (status = 200, description = "All of them", body = SandboxList),
        (status = 401, description = "No key, or another", body = ErrorBody),
    ),
)]
pub(crate) async fn list_sandboxes(State(api): State<Api>) -> Result<Json<SandboxList>, ApiError> {
    let sandboxes = api.daemon()?.list_sandboxes().await.into_iter().map(SandboxEntry::from).collect();
    Ok(Json(SandboxList { sandboxes }))
}

/// Destroys a sandbox: stores and unmounts everything first. An unknown id is no error.
#[utoipa::path(
    delete, path = "/v1/sandbox/{id}", operation_id = "deleteSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 400, description = "Not an id", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "Something could not be stored or removed", body = ErrorBody),
    ),
)]
pub(crate) async fn delete_sandbox(State(api): State<Api>, Id(id): Id) -> Result<StatusCode, ApiError> {
    api.daemon()?.destroy_sandbox(&id).await.map_err(|error| Operation::Destroy.failed(error))?;
    Ok(NO_CONTENT)
}

/// Whether an id was created and not destroyed.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/running", operation_id = "isSandboxRunning", tag = "sandboxes",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "Whether it was", body = Running),
        (status = 400, description = "Not an id", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
    ),
)]
pub(crate) async fn is_sandbox_running(State(api): State<Api>, Id(id): Id) -> Result<Json<Running>, ApiError> {
    Ok(Json(Running { running: api.daemon()?.is_running(&id).await }))
}
