//! Mounts.

use axum::Json;
use axum::body::Body;
use axum::extract::State;

use crate::error::{ApiError, Operation};
use crate::extract::{self, Id};
use crate::state::Api;
use crate::wire::{
    self, Done, ErrorBody, MountBucketRequest, MountEntry, MountList, MountSynced, SyncBucketRequest,
    UnmountBucketRequest, Unmounted,
};

/// Mounts a bucket. The mount is usable when this answers.
#[utoipa::path(
    post, path = "/v1/sandbox/{id}/mount", operation_id = "mountBucket", tag = "mounts",
    params(("id" = String, Path, description = "The sandbox")),
    request_body = MountBucketRequest,
    responses(
        (status = 200, description = "It is mounted", body = Done),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "It could not be mounted; nothing is left of it", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn mount_bucket(State(api): State<Api>, Id(id): Id, body: Body) -> Result<Json<Done>, ApiError> {
    let members = wire::object(&extract::small_body(body).await?)?;
    let request = MountBucketRequest::parse(&members)?;
    // It may hold a key, which is needed no longer than the request that was made of it.
    drop(members);
    api.daemon()?.mount(&id, request).await.map_err(|error| Operation::Mount.failed(error))?;
    Ok(Json(wire::DONE))
}

/// Stores everything, then unmounts.
#[utoipa::path(
    post, path = "/v1/sandbox/{id}/unmount", operation_id = "unmountBucket", tag = "mounts",
    params(("id" = String, Path, description = "The sandbox")),
    request_body = UnmountBucketRequest,
    responses(
        (status = 200, description = "It is unmounted", body = Unmounted),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "It could not be unmounted and stays usable", body = ErrorBody),
    ),
)]
pub(crate) async fn unmount_bucket(
    State(api): State<Api>,
    Id(id): Id,
    body: Body,
) -> Result<Json<Unmounted>, ApiError> {
    let members = wire::object(&extract::small_body(body).await?)?;
    let (path, force) = UnmountBucketRequest::parse(&members)?;
    let left = api.daemon()?.unmount(&id, &path, force).await.map_err(|error| Operation::Unmount.failed(error))?;
    Ok(Json(Unmounted::new(left)))
}

/// Answers when everything that was written to a mount before the call is in the bucket, also of files that are open, or
/// says what could not be stored.
#[utoipa::path(
    post, path = "/v1/sandbox/{id}/mounts/sync", operation_id = "syncBucket", tag = "mounts",
    params(("id" = String, Path, description = "The sandbox")),
    request_body = SyncBucketRequest,
    responses(
        (status = 200, description = "Everything was tried; `ok` says whether all of it is stored", body = MountSynced),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "There is no such mount, it failed, or the time is up", body = ErrorBody),
    ),
)]
pub(crate) async fn sync_bucket(State(api): State<Api>, Id(id): Id, body: Body) -> Result<Json<MountSynced>, ApiError> {
    let path = SyncBucketRequest::parse(&wire::object(&extract::small_body(body).await?)?)?;
    let synced = api.daemon()?.sync_mount(&id, &path).await.map_err(|error| Operation::Sync.failed(error))?;
    Ok(Json(synced.into()))
}

/// Lists the mounts of a sandbox; none for an unknown id.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/mounts", operation_id = "listMounts", tag = "mounts",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "All of them", body = MountList),
        (status = 400, description = "Not an id", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
    ),
)]
pub(crate) async fn list_mounts(State(api): State<Api>, Id(id): Id) -> Result<Json<MountList>, ApiError> {
    let mut mounts: Vec<_> = api.daemon()?.list_mounts(&id).await.into_iter().map(MountEntry::from).collect();
    mounts.sort_by(|left, right| left.mount_path.cmp(&right.mount_path));
    Ok(Json(MountList { mounts }))
}
