//! The workspace as a tar.

use std::path::PathBuf;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use sandpail_sandbox::SandboxError;

use super::upload;
use crate::error::{ApiError, Operation};
use crate::extract::{self, Id, Query};
use crate::state::Api;
use crate::wire::{self, Done, ErrorBody};

/// The `excludes` of a persist: a comma list of paths relative to `/workspace`.
fn excludes(list: &str) -> Result<Vec<PathBuf>, ApiError> {
    let mut excludes = Vec::new();
    for item in list.split(',').filter(|item| !item.is_empty()) {
        if item.contains("..") {
            return Err(ApiError::Invalid("exclude paths must not contain \"..\"".to_owned()));
        }
        let parts: PathBuf = item.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        // `.` alone would leave out everything, which nobody asks an archive for.
        if !parts.as_os_str().is_empty() {
            excludes.push(parts);
        }
    }
    Ok(excludes)
}

/// An uncompressed tar of `/workspace`, without what is mounted from buckets.
#[utoipa::path(
    post, path = "/v1/sandbox/{id}/persist", operation_id = "persistWorkspace", tag = "archives",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("excludes" = Option<String>, Query, description = "Comma list of paths relative to `/workspace`"),
    ),
    responses(
        (status = 200, description = "The tar", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "It could not be made", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn persist_workspace(State(api): State<Api>, Id(id): Id, query: Query) -> Result<Response, ApiError> {
    let excludes = excludes(&query.first("excludes").unwrap_or_default())?;
    let failed = |error: SandboxError| Operation::Persist.failed(error);
    let sandbox = api.sandbox(&id).await?;
    let tar = sandbox.persist(excludes).await.map_err(failed)?;
    upload::download(tar).await.map_err(failed)
}

/// Unpacks a tar over `/workspace`. No member lands outside.
#[utoipa::path(
    post, path = "/v1/sandbox/{id}/hydrate", operation_id = "hydrateWorkspace", tag = "archives",
    params(("id" = String, Path, description = "The sandbox")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "It is unpacked", body = Done),
        (status = 400, description = "Empty, or too large", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "It could not be unpacked", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn hydrate_workspace(
    State(api): State<Api>,
    Id(id): Id,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Done>, ApiError> {
    let limit = api.settings().upload_limit;
    if let Some(len) = extract::content_len(&headers).filter(|len| *len > limit) {
        return Err(Operation::Hydrate.failed(SandboxError::TooLarge { len, limit }));
    }
    let Some(tar) = upload::non_empty(body).await else {
        return Err(ApiError::Invalid("Empty tar payload".to_owned()));
    };
    let sandbox = api.sandbox(&id).await?;
    sandbox.hydrate(tar, limit).await.map_err(|error| Operation::Hydrate.failed(error))?;
    Ok(Json(wire::DONE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out() {
        let of =
            |list: &str| excludes(list).map(|found| found.iter().map(|p| p.to_str().unwrap().to_owned()).collect());
        let found = |list: &str| of(list).unwrap_or_else(|error| vec![format!("{error:?}")]);
        assert_eq!(found(""), Vec::<String>::new());
        assert_eq!(found("a,b/c"), ["a", "b/c"]);
        assert_eq!(found(",./a/,,/b//c,."), ["a", "b/c"]);
        assert_eq!(found("*.txt,[a]"), ["*.txt", "[a]"]);
        for bad in ["..", "a/../b", "a,..", "a..b"] {
            match excludes(bad) {
                Err(ApiError::Invalid(text)) => assert_eq!(text, "exclude paths must not contain \"..\"", "{bad}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
    }
}
