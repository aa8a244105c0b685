//! Directories and attributes: list, describe, make, rename, watch. These reach the whole sandbox.

use std::path::PathBuf;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sandpail_sandbox::{ListOptions, SandboxError, WORKSPACE};
use serde_json::json;

use crate::error::{ApiError, Operation};
use crate::extract::{self, Id, Query};
use crate::state::Api;
use crate::wire::{
    self, ErrorBody, FileEntry, FileExists, FileList, MadeDirectory, MkdirRequest, RenameRequest, Renamed, WatchEvent,
};
use crate::{path, sse};

fn path_of(query: &Query) -> Result<PathBuf, ApiError> {
    let path = query.filled("path").ok_or_else(|| ApiError::Invalid("path must not be empty".to_owned()))?;
    path::resolve_own(&path)
}

/// Lists a directory.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/files", operation_id = "listFiles", tag = "files",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = Option<String>, Query, description = "The directory; `/workspace` if it is missing"),
        ("recursive" = Option<bool>, Query, description = "Whole subtrees"),
        ("hidden" = Option<bool>, Query, description = "Names that begin with `.` too"),
    ),
    responses(
        (status = 200, description = "What is in it", body = FileList),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is no such directory", body = ErrorBody),
        (status = 502, description = "It could not be read", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn list_files(State(api): State<Api>, Id(id): Id, query: Query) -> Result<Json<FileList>, ApiError> {
    let path = path::resolve_own(query.filled("path").as_deref().unwrap_or(WORKSPACE))?;
    let options = ListOptions { recursive: query.flag("recursive", false)?, hidden: query.flag("hidden", false)? };
    let sandbox = api.sandbox(&id).await?;
    let found = sandbox.list_files(&path, options).await.map_err(|error| Operation::File("list").failed(error))?;
    Ok(Json(FileList::new(&path, &found)))
}

/// Describes a path, following links.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/stat", operation_id = "statFile", tag = "files",
    params(("id" = String, Path, description = "The sandbox"), ("path" = String, Query, description = "The path")),
    responses(
        (status = 200, description = "What it is", body = FileEntry),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is nothing", body = ErrorBody),
        (status = 502, description = "It could not be told", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn stat_file(State(api): State<Api>, Id(id): Id, query: Query) -> Result<Json<FileEntry>, ApiError> {
    let path = path_of(&query)?;
    let sandbox = api.sandbox(&id).await?;
    let info = sandbox.stat(&path).await.map_err(|error| Operation::File("stat").failed(error))?;
    Ok(Json(FileEntry::new(&info, None)))
}

/// Whether a path is there.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/exists", operation_id = "fileExists", tag = "files",
    params(("id" = String, Path, description = "The sandbox"), ("path" = String, Query, description = "The path")),
    responses(
        (status = 200, description = "Whether it is", body = FileExists),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "It could not be told", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn file_exists(
    State(api): State<Api>,
    Id(id): Id,
    query: Query,
) -> Result<Json<FileExists>, ApiError> {
    let path = path_of(&query)?;
    let sandbox = api.sandbox(&id).await?;
    let exists = match sandbox.stat(&path).await {
        Ok(_) => true,
        Err(SandboxError::NotFound { .. }) => false,
        Err(error) => return Err(Operation::File("exists").failed(error)),
    };
    Ok(Json(FileExists { success: true, path: path.display().to_string(), exists, timestamp: wire::now() }))
}

/// Makes a directory.
#[utoipa::path(
    post, path = "/v1/sandbox/{id}/mkdir", operation_id = "mkdir", tag = "files",
    params(("id" = String, Path, description = "The sandbox")),
    request_body = MkdirRequest,
    responses(
        (status = 200, description = "It is made", body = MadeDirectory),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "The directory above it is missing", body = ErrorBody),
        (status = 502, description = "It could not be made", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn mkdir(State(api): State<Api>, Id(id): Id, body: Body) -> Result<Json<MadeDirectory>, ApiError> {
    let members = wire::object(&extract::small_body(body).await?)?;
    let (path, recursive) = MkdirRequest::parse(&members)?;
    let sandbox = api.sandbox(&id).await?;
    sandbox.mkdir(&path, recursive).await.map_err(|error| Operation::File("mkdir").failed(error))?;
    Ok(Json(MadeDirectory { success: true, path: path.display().to_string(), recursive, timestamp: wire::now() }))
}

/// Renames or moves a file or directory.
#[utoipa::path(
    post, path = "/v1/sandbox/{id}/rename", operation_id = "renameFile", tag = "files",
    params(("id" = String, Path, description = "The sandbox")),
    request_body = RenameRequest,
    responses(
        (status = 200, description = "It is renamed", body = Renamed),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is nothing", body = ErrorBody),
        (status = 502, description = "It could not be renamed", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn rename_file(State(api): State<Api>, Id(id): Id, body: Body) -> Result<Json<Renamed>, ApiError> {
    let members = wire::object(&extract::small_body(body).await?)?;
    let (old, new) = RenameRequest::parse(&members)?;
    let sandbox = api.sandbox(&id).await?;
    sandbox.rename(&old, &new).await.map_err(|error| Operation::File("rename").failed(error))?;
    Ok(Json(Renamed {
        success: true,
        path: old.display().to_string(),
        new_path: new.display().to_string(),
        timestamp: wire::now(),
    }))
}

/// Watches a directory.
///
/// Events: `watching` once, then `change` for each, `stopped` at the end.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/watch", operation_id = "watchFiles", tag = "files",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = Option<String>, Query, description = "The directory; `/workspace` if it is missing"),
        ("recursive" = Option<bool>, Query, description = "Whole subtrees, unless `false`"),
    ),
    responses(
        (status = 200, description = "Events", body = WatchEvent, content_type = "text/event-stream"),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is no such directory", body = ErrorBody),
        (status = 502, description = "It could not be watched", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn watch_files(State(api): State<Api>, Id(id): Id, query: Query) -> Result<Response, ApiError> {
    let path = path::resolve_own(query.filled("path").as_deref().unwrap_or(WORKSPACE))?;
    let recursive = query.flag("recursive", true)?;
    let sandbox = api.sandbox(&id).await?;
    let changes = sandbox.watch(&path, recursive).await.map_err(|error| Operation::File("watch").failed(error))?;
    let first = sse::json_event("watching", &json!({ "type": "watching", "path": path.display().to_string() }));
    let changes = stream::unfold(Some(changes), |changes| async move {
        let mut changes = changes?;
        Some(match changes.recv().await {
            Some(change) => (sse::json_event("change", &WatchEvent::from(change)), Some(changes)),
            None => (stopped(), None),
        })
    });
    Ok(sse::response(stream::once(async { first }).chain(changes)))
}

fn stopped() -> Bytes {
    sse::json_event("stopped", &json!({ "type": "stopped", "reason": "the directory or its sandbox is gone" }))
}
