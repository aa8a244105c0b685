//! Files by path: read, write, remove.

use std::path::PathBuf;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Uri, header};
use sandpail_sandbox::{Sandbox, SandboxError, SessionId, SessionSpec};

use super::upload;
use crate::error::{ApiError, Operation};
use crate::extract::{self, Id, Query};
use crate::path::{self, Scope};
use crate::state::Api;
use crate::wire::{self, Done, ErrorBody, PathResult};

/// The checks of all three, in the contract's order: path, then session.
fn target(uri: &Uri, query: &Query, headers: &HeaderMap) -> Result<(PathBuf, Option<SessionId>), ApiError> {
    let scope = Scope::parse(query.first("scope").as_deref())?;
    let path = path::of_file_route(uri.path(), scope)?;
    Ok((path, extract::session_header(headers)?))
}

/// A session that is named is made, though a file is the same in all of them.
async fn ensure_session(sandbox: &Sandbox, session: Option<SessionId>) -> Result<(), SandboxError> {
    let Some(id) = session else { return Ok(()) };
    match sandbox.create_session(SessionSpec { id: Some(id), ..SessionSpec::default() }).await {
        Ok(_) | Err(SandboxError::SessionExists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads a file.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/file/{*path}", operation_id = "readFile", tag = "files",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = String, Path, description = "The absolute path without its first `/`, percent-encoded"),
        ("scope" = Option<String>, Query, description = "`sandbox`: any path of the sandbox, not only `/workspace`"),
        ("Session-Id" = Option<String>, Header, description = "The session; made if it is not there"),
    ),
    responses(
        (status = 200, description = "Its bytes", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 403, description = "The path is outside", body = ErrorBody),
        (status = 404, description = "There is no such file", body = ErrorBody),
        (status = 502, description = "It could not be read", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn read_file(
    State(api): State<Api>,
    Id(id): Id,
    query: Query,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (path, session) = target(&uri, &query, &headers)?;
    let failed = |error: SandboxError| match error {
        // The answer names the path that was asked for.
        SandboxError::NotFound { .. } => Operation::Read.failed(SandboxError::NotFound { path: path.clone() }),
        error => Operation::Read.failed(error),
    };
    let sandbox = api.sandbox(&id).await?;
    ensure_session(&sandbox, session).await.map_err(failed)?;
    let file = sandbox.read_file(&path).await.map_err(failed)?;
    let size = file.size;
    let mut response = upload::download(file.body).await.map_err(failed)?;
    // Files of `/proc` say that they are empty, and are not.
    if size > 0 {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    }
    Ok(response)
}

/// Replaces a file whole, or makes it and the directories above it.
#[utoipa::path(
    put, path = "/v1/sandbox/{id}/file/{*path}", operation_id = "writeFile", tag = "files",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = String, Path, description = "The absolute path without its first `/`, percent-encoded"),
        ("scope" = Option<String>, Query, description = "`sandbox`: any path of the sandbox, not only `/workspace`"),
        ("Session-Id" = Option<String>, Header, description = "The session; made if it is not there"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "It is written", body = Done),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 403, description = "The path is outside", body = ErrorBody),
        (status = 413, description = "Too large", body = ErrorBody),
        (status = 502, description = "It could not be written; the old file is still there", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn write_file(
    State(api): State<Api>,
    Id(id): Id,
    query: Query,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Done>, ApiError> {
    let (path, session) = target(&uri, &query, &headers)?;
    let limit = api.settings().upload_limit;
    if let Some(len) = extract::content_len(&headers).filter(|len| *len > limit) {
        return Err(Operation::Write.failed(SandboxError::TooLarge { len, limit }));
    }
    let failed = |error: SandboxError| Operation::Write.failed(error);
    let sandbox = api.sandbox(&id).await?;
    ensure_session(&sandbox, session).await.map_err(failed)?;
    sandbox.write_file(&path, upload::byte_stream(body), limit).await.map_err(failed)?;
    Ok(Json(wire::DONE))
}

/// Removes a file, or with `recursive` a directory and what is below it.
#[utoipa::path(
    delete, path = "/v1/sandbox/{id}/file/{*path}", operation_id = "deleteFile", tag = "files",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = String, Path, description = "The absolute path without its first `/`, percent-encoded"),
        ("recursive" = Option<bool>, Query, description = "Directories too, with what is below them"),
        ("scope" = Option<String>, Query, description = "`sandbox`: any path of the sandbox, not only `/workspace`"),
    ),
    responses(
        (status = 200, description = "It is removed", body = PathResult),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 403, description = "The path is outside", body = ErrorBody),
        (status = 404, description = "There is no such file", body = ErrorBody),
        (status = 502, description = "It could not be removed", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn delete_file(
    State(api): State<Api>,
    Id(id): Id,
    query: Query,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<PathResult>, ApiError> {
    let (path, _session) = target(&uri, &query, &headers)?;
    let recursive = query.flag("recursive", false)?;
    let sandbox = api.sandbox(&id).await?;
    sandbox.delete(&path, recursive).await.map_err(|error| Operation::File("delete").failed(error))?;
    Ok(Json(PathResult { success: true, path: path.display().to_string(), timestamp: wire::now() }))
}

/// `…/file/` with nothing behind it.
pub(crate) async fn no_path(Id(_id): Id, uri: Uri) -> Result<(), ApiError> {
    path::of_file_route(uri.path(), Scope::Sandbox).map(drop)
}
